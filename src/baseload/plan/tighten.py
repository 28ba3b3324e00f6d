"""Rows that hold for every plan with whole hosting, and that a relaxation breaks: what makes its bound good.

A relaxation hosts a tenth of a service where a tenth of its largest size is carried, so that its fixed cost is nearly nothing.
Three families say what whole hosting needs instead. None cuts off a plan.

    linked    what a client gets from a site is at most its demand if the site hosts the service:   flow <= demand * host
    covered   a client with one site needs it to host, or goes unserved; one with two sites or more needs two of them,
              or is short when the only one is lost:   sum of host + 2 unserved / need + short / need' >= 2
    shielded  a Hall row of survival in which a site counts by what it carries or by what these clients need, if it hosts:
              with site k lost, for any set of clients C, each other site s counting by the less of both,
              sum of carry[s] or need(C at s) * host[s]  + short + ratio * unserved(C)  >=  ratio * demand(C)

All are many, most of them slack: but for one row a client of the second, only those are written down which a solution breaks.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from baseload.plan.build import Model
from baseload.plan.problem import Bools, Floats, Ints

_MOST_SETS = 600  # sets of clients that are looked at, by service
_EACH = 2  # shielded rows that join by service, period and lost site, at most

Rows = tuple[Floats, Ints, Ints, Floats]  # (least, start, column, value), as of `build.rows_of`
_Row = tuple[Ints, Floats, float]


def packed(rows: list[_Row]) -> Rows:
    """Return rows of (columns, values, least) as arrays; columns of -1 are left out."""
    kept = [(index[index >= 0], value[index >= 0]) for index, value, _ in rows]
    start = np.concatenate([[0], np.cumsum([len(index) for index, _ in kept])]).astype(np.int64)
    index = np.concatenate([index for index, _ in kept]).astype(np.int64) if kept else np.zeros(0, dtype=np.int64)
    value = np.concatenate([value for _, value in kept]).astype(np.float64) if kept else np.zeros(0)
    return np.array([least for _, _, least in rows], dtype=np.float64), start, index, value


class Waiting:
    """Rows that are written down once a solution breaks them, each once."""

    def __init__(self, rows: list[_Row]) -> None:
        """Take the rows; none is written down yet."""
        self._rows, self._waits = rows, np.ones(len(rows), bool)
        self._least, self._start, self._index, self._value = packed(rows)

    def broken(self, x: Floats, by: float = 1e-3) -> Rows:
        """Return the rows that a solution breaks by more than `by`; they wait no longer."""
        sums = np.concatenate([[0.0], np.cumsum(self._value * x[self._index])])
        lacks = self._least - (sums[self._start[1:]] - sums[self._start[:-1]])
        found = np.flatnonzero(self._waits & (lacks > by))
        self._waits[found] = False
        return packed([self._rows[i] for i in found])


def covered(model: Model) -> tuple[Rows, Waiting]:
    """Return the rows that say where a client's service must be hosted: (one a client, those with one site left out).

    Those that follow from other rows are left out.
    """
    problem, at = model.problem, model.columns
    rows: list[_Row] = []
    left_out: list[_Row] = []
    for m in range(len(problem.services)):
        ratio = float(problem.survive_ratio[m])
        for t in range(len(problem.periods)):
            can = at["host"][:, m, t] >= 0
            for r in np.flatnonzero(problem.demand[:, m, t] > 0.0):
                sites = problem.allowed[r, :, m] & can
                need = float(problem.demand[r, m, t])
                away = at["unserved"][r, m, t]
                if not sites.any():
                    continue
                host = at["host"][sites, m, t]
                if problem.allowed[r, :, m].sum() < 2 or ratio <= 0.0:
                    rows.append((np.append(host, away), np.append(np.ones(len(host)), 1.0 / need), 1.0))
                    continue
                ends = [away, at["short_survive"][m, t]]
                most = np.array([2.0 / need, 1.0 / (ratio * need)])
                rows.append((np.append(host, ends), np.append(np.ones(len(host)), most), 2.0))
                once = np.array([1.0 / need, 1.0 / (ratio * need)])
                for k in range(len(host)):
                    others = np.delete(host, k)
                    left_out.append((np.append(others, ends), np.append(np.ones(len(others)), once), 1.0))
    return packed(rows), Waiting(left_out)


def linked(model: Model, x: Floats, by: float = 1e-4) -> Rows:
    """Return the rows `flow <= demand * host` that a solution breaks by more than the part `by` of the demand."""
    flow = model.columns["flow"]
    host = np.broadcast_to(model.columns["host"][None], flow.shape)
    demand = np.broadcast_to(model.problem.demand[:, None], flow.shape)
    there = (flow >= 0) & (host >= 0)
    breaks = there & (np.where(there, x[flow] - demand * x[host], 0.0) > by * np.maximum(demand, 1e-3))
    f, h, d = flow[breaks], host[breaks], demand[breaks]
    n = len(f)
    value = np.stack([d, -np.ones(n)], axis=1).ravel()
    return np.zeros(n), 2 * np.arange(n + 1), np.stack([h, f], axis=1).ravel(), value


@dataclass(frozen=True, kw_only=True)
class Sets:
    """Sets of clients, by service, for which survival is looked at: all those that some sites alone may serve."""

    of: tuple[Bools, ...]  # [M] of [C,R]


def client_sets(model: Model) -> Sets:
    """Return the sets: for the sites that one, two or three clients may use together, all clients within them."""
    problem = model.problem
    found = []
    for m in range(len(problem.services)):
        allowed = problem.allowed[:, :, m]
        multi = allowed.sum(axis=1) >= 2
        single = np.unique(allowed[multi], axis=0)
        sites, wider = single, single
        for _ in range(2):
            if not len(single) or len(sites) >= _MOST_SETS:
                break
            wider = np.unique((wider[:, None] | single[None]).reshape(-1, wider.shape[1]), axis=0)
            sites = np.unique(np.concatenate([sites, wider[: 2 * _MOST_SETS]]), axis=0)
        inside = multi & ~(allowed[None] & ~sites[:_MOST_SETS, None, :]).any(axis=2)
        found.append(np.unique(inside, axis=0))
    return Sets(of=tuple(found))


def shielded(model: Model, sets: Sets, x: Floats, by: float = 1e-3) -> Rows:
    """Return the strengthened survival rows that a solution breaks by more than the part `by` of what is needed."""
    problem = model.problem
    carry, host = model.value("carry", x), model.value("host", x)
    unserved, short = model.value("unserved", x), model.value("short_survive", x)
    rows: list[_Row] = []
    for m, clients in enumerate(sets.of):
        ratio = float(problem.survive_ratio[m])
        if ratio <= 0.0 or not len(clients):
            continue
        allowed = problem.allowed[:, :, m].astype(np.float64)
        within = clients.astype(np.float64)
        for t in range(len(problem.periods)):
            demand = problem.demand[:, m, t]
            most = ratio * (within * demand) @ allowed  # [C,S]
            count = np.minimum(carry[:, m, t], most * host[:, m, t])
            need = ratio * within @ demand
            lacks = (need - short[m, t] - ratio * within @ unserved[:, m, t])[:, None] - (
                count.sum(axis=1)[:, None] - count
            )
            part = np.where(need[:, None] > 0.0, lacks / np.maximum(need[:, None], 1e-9), 0.0)
            for k in np.flatnonzero(part.max(axis=0) > by):
                for c in np.argsort(-part[:, k])[:_EACH]:
                    if part[c, k] > by:
                        rows.append(_shield(model, m, t, int(k), clients[c], most[c], carry[:, m, t], host[:, m, t]))
    return packed(rows)


def _shield(model: Model, m: int, t: int, lost: int, clients: Bools, most: Floats, carry: Floats, host: Floats) -> _Row:
    problem, at = model.problem, model.columns
    ratio = float(problem.survive_ratio[m])
    sites = most > 0.0
    sites[lost] = False
    by_carry = sites & ((carry <= most * host) | (at["host"][:, m, t] < 0))
    by_host = sites & ~by_carry
    parts = [
        (np.atleast_1d(at["short_survive"][m, t]), np.ones(1)),
        (at["unserved"][clients, m, t], np.full(int(clients.sum()), ratio)),
        (at["carry"][by_carry, m, t], np.ones(int(by_carry.sum()))),
        (at["host"][by_host, m, t], most[by_host]),
    ]
    index, value = (np.concatenate([part[i] for part in parts]) for i in range(2))
    return index, value, ratio * float(problem.demand[clients, m, t].sum())
