"""From an answer's racks to whole things: racks, rented racks and replicas by site and period, never more than there is.

An answer may rent part of a rack or put part of one to work; a fleet file cannot. Rented accelerators are rounded up, replicas
down to what the accelerators of a site carry, and what is left over goes to the services that lost most.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from baseload.app.plan_map import PlanMap
from baseload.fleet import catalog
from baseload.plan.problem import Answer, Problem

Floats = npt.NDArray[np.float64]
Ints = npt.NDArray[np.int64]
_EPS = 1e-6


@dataclass(frozen=True, slots=True, kw_only=True)
class Whole:
    """Whole numbers of an answer."""

    bought: Ints  # (S,A,T) racks ordered
    owned: Ints  # (S,A,T) racks in service that were bought or stood there, free for serving
    rented: Ints  # (S,A,T) rented accelerators in force
    replicas: Ints  # (S,A,M,T)
    live: Ints  # (P,) period of power; T: never
    begun: Ints  # (P,) period of begin; T: never


def whole(problem: Problem, answer: Answer, plan_map: PlanMap) -> Whole:
    """Return the whole numbers of an answer."""
    S, A, M, _, T = problem.shape
    bought = np.diff(np.floor(np.cumsum(answer.buy, axis=2) + _EPS), axis=2, prepend=0.0).astype(np.int64)
    owned = np.floor(problem.existing + _EPS).astype(np.int64) + in_service(bought, problem)
    per_rack = np.array([kind.per_rack for kind in plan_map.kinds], np.int64)[None, :, None]
    rented = np.ceil(rented_racks(answer.sign, problem) * per_rack - _EPS).astype(np.int64)
    for a, kind in enumerate(plan_map.kinds):
        rented[:, a] = whole_servers(rented[:, a], catalog.accelerator(kind.accelerator).per_server)
    replicas = np.zeros((S, A, M, T), np.int64)
    size = np.array([[_size(plan_map, a, m) for m in range(M)] for a in range(A)])
    for s in range(S):
        for a in range(A):
            for t in range(T):
                there = int(owned[s, a, t]) * plan_map.kinds[a].per_rack + int(rented[s, a, t])
                want = answer.put[s, a, :, t] * plan_map.replicas_per_rack[a]
                replicas[s, a, :, t] = share_out(want, size[a], there)
    begun = np.array([_first(row) for row in answer.w], np.int64).reshape(len(problem.phases))
    live = np.minimum(T, begun + problem.phase_delay)
    return Whole(bought=bought, owned=owned, rented=rented, replicas=replicas, live=live, begun=begun)


def _size(plan_map: PlanMap, a: int, m: int) -> int:
    row = plan_map.rows.get((a, m))
    return 1 if row is None else row.accelerators


def _first(row: Floats) -> int:
    """Return the first period in which a phase is begun; the number of periods where it never is."""
    on = np.flatnonzero(row > 0.5)
    return int(on[0]) if len(on) else len(row)


def in_service(bought: Ints, problem: Problem) -> Ints:
    """Return racks that were bought and stand, by period."""
    S, A, T = bought.shape
    there = np.zeros((S, A, T), np.int64)
    for a in range(A):
        for u in range(T):
            first = u + int(problem.lead[a])
            there[:, a, first : first + int(problem.life[a])] += bought[:, a, u][:, None]
    return there


def rented_racks(sign: Floats, problem: Problem) -> Floats:
    """Return racks in force by site, kind and period, over all contracts."""
    S, A, K, T = sign.shape
    there = np.zeros((S, A, T))
    for k in range(K):
        for t in range(T):
            there[:, :, t : t + int(problem.term[k])] += sign[:, :, k, t][:, :, None]
    return there


def whole_servers(accelerators: Ints, per_server: int) -> Ints:
    """Return accelerators rounded up to whole servers, where they are more than one server has.

    >>> whole_servers(np.array([0, 3, 9]), 8)
    array([ 0,  3, 16])
    """
    servers = -(-accelerators // per_server) * per_server
    return np.where(accelerators > per_server, servers, accelerators)


def share_out(want: Floats, size: Ints, accelerators: int) -> Ints:
    """Return whole replicas of each service, of so many accelerators each, that fit into what is there.

    All are rounded down; then those that lost most of what they want gain one, as long as it fits.

    >>> share_out(np.array([1.5, 2.4]), np.array([2, 2]), 8)
    array([2, 2])
    >>> share_out(np.array([3.2, 0.0]), np.array([2, 1]), 6)
    array([3, 0])
    """
    n = np.floor(want + _EPS).astype(np.int64)
    while int((n * size).sum()) > accelerators:
        n[int(np.argmax(n * size))] -= 1
    short = want - n
    for m in np.argsort(-short / np.maximum(want, _EPS), kind="stable"):
        if short[m] > _EPS and int((n * size).sum() + size[m]) <= accelerators:
            n[m] += 1
    return n
