"""From an answer's racks to whole things: racks, rented racks and replicas by site and period, never more than there is.

An answer may rent part of a rack or put part of one to work; a fleet file cannot. Rented accelerators are rounded up, to whole
servers within the offer, replicas down to what the accelerators of a site carry, and what is left over goes to the services
that lost most.
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
LEAST_REPLICA = 0.01  # of a rented replica: less is not rented


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
    most = _offered(problem, plan_map)
    replicas = np.zeros((S, A, M, T), np.int64)
    for a, kind in enumerate(plan_map.kinds):
        groups, size = _groups(plan_map, a)
        for s, site in enumerate(plan_map.sites):
            for t in range(T):
                want = answer.put[s, a, :, t] * plan_map.replicas_per_rack[a]
                together = np.array([want[group].sum() for group in groups])
                if site.rented:  # as many as whole replicas take, within the offer
                    wanted = int((np.ceil(together - LEAST_REPLICA) * size).sum())
                    rented[s, a, t] = min(most[s, a], max(rented[s, a, t], wanted))
                there = int(owned[s, a, t]) * kind.per_rack + int(rented[s, a, t])
                n = share_out(together, size, there)
                for group, count in zip(groups, n.tolist(), strict=True):
                    replicas[s, a, group, t] = split(want[group], count)
        rented[:, a] = whole_servers(rented[:, a], catalog.accelerator(kind.accelerator).per_server)
    begun = np.array([_first(row) for row in answer.w], np.int64).reshape(len(problem.phases))
    live = np.minimum(T, begun + problem.phase_delay)
    idle = (live >= T) & (np.array([one.cost_to_begin for one in plan_map.phases]).reshape(len(begun)) == 0.0)
    begun = np.where(idle & (problem.begin_by >= T), T, begun)  # costs nothing and brings nothing: no decision
    return Whole(bought=bought, owned=owned, rented=rented, replicas=replicas, live=live, begun=begun)


def _offered(problem: Problem, plan_map: PlanMap) -> Ints:
    """Return the most accelerators to rent by site and kind: whole servers, where the offers have more than one."""
    most = np.floor(problem.sign_max.sum(axis=2) * np.array([one.per_rack for one in plan_map.kinds]) + _EPS)
    server = np.array([catalog.accelerator(one.accelerator).per_server for one in plan_map.kinds])
    return np.asarray(np.where(most > server, most // server * server, most), np.int64)


def _groups(plan_map: PlanMap, a: int) -> tuple[list[list[int]], Ints]:
    """Return services that share a deployment on a kind, and the accelerators of a replica of each."""
    found: dict[str, list[int]] = {}
    for (kind, m), row in sorted(plan_map.rows.items()):
        if kind == a:
            found.setdefault(row.deployment or row.model, []).append(m)
    size = [plan_map.rows[a, group[0]].accelerators for group in found.values()]
    return list(found.values()), np.array(size, np.int64)


def split(want: Floats, n: int) -> Ints:
    """Return how many of `n` replicas that services share are counted for each, by what each wants.

    >>> split(np.array([1.5, 0.5, 0.0]), 3)
    array([2, 1, 0])
    """
    total = float(want.sum())
    if total <= 0.0:
        return np.zeros(len(want), np.int64)
    exact = want / total * n
    each = np.floor(exact + _EPS).astype(np.int64)
    for m in np.argsort(each - exact, kind="stable")[: n - int(each.sum())]:
        each[m] += 1
    return each


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
