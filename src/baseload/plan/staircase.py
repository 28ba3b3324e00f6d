"""Racks of a relaxation made whole all at once: what has come by a period is rounded, not what is ordered in each.

A relaxation orders a tenth of a rack a quarter, as demand grows; rounded one by one all of these are nothing, or ten racks.
Their sum grows as a line, and a plan is the staircase nearest to it: one more rack once the line is far enough above the last
step, where power, supply and shared limits allow. Racks that are furthest behind come first.
"""

from __future__ import annotations

import numpy as np

from baseload.plan.build import Model
from baseload.plan.highs import Solution
from baseload.plan.nothing import in_order, live
from baseload.plan.problem import Bools, Floats, Ints, Problem
from baseload.plan.whole import Box

_DUST = 1e-9
_UP_FROM = (0.4, 0.5, 0.6)  # parts of a rack from which on one comes, as they are tried
_BEGUN_FROM = (0.3, 0.5)  # the same of phases
_HOSTED_FROM = (0.5, 0.3)  # parts of the least size from which on a service is hosted


def grid_mw(problem: Problem, w: Floats) -> Floats:
    """Return [S,T]: MW that may be drawn with phases begun as in `w`."""
    grid = problem.power_mw.copy()
    np.add.at(grid, problem.phase_site, problem.phase_mw[:, None] * live(problem, w))
    return grid


def staircase(problem: Problem, buy: Floats, free: Bools, grid: Floats, up_from: float) -> Floats:
    """Return whole orders [S,A,T] near `buy`, where `free`; the others are as they are.

    Args:
        problem: what is asked.
        buy: racks ordered.
        free: which of these are to be made whole.
        grid: MW that may be drawn, by site and period.
        up_from: part of a rack from which on one comes.
    """
    n_sites, n_kinds, n_periods = buy.shape
    steps: Floats = np.where(free, 0.0, buy)
    left = problem.supply - steps.sum(axis=0)
    shared = problem.shared - np.einsum("la,sat->lt", problem.shared_use, steps)
    room = grid - (problem.rack_mw[:, :, None] * problem.existing).sum(axis=1)
    for a in range(n_kinds):
        for u in range(n_periods - int(problem.lead[a])):
            room[:, _serves(problem, a, u)] -= (problem.rack_mw[:, a] * steps[:, a, u])[:, None]
    behind = np.zeros((n_sites, n_kinds))
    for t in range(n_periods):
        ordered = t - problem.lead
        may = np.zeros((n_sites, n_kinds), bool)
        for kind in np.flatnonzero(ordered >= 0):
            may[:, kind] = free[:, kind, ordered[kind]]
            behind[:, kind] += np.where(may[:, kind], buy[:, kind, ordered[kind]], 0.0)
        order = np.argsort(-behind, axis=None, kind="stable")
        for s, a in (divmod(int(place), n_kinds) for place in order):
            at, mw = int(ordered[a]), float(problem.rack_mw[s, a])
            while may[s, a] and behind[s, a] >= up_from:
                use = problem.shared_use[:, a]
                if room[s, _serves(problem, a, at)].min() < mw - _DUST or left[a, at] < 1.0 - _DUST:
                    break
                if (shared[:, at] < use - _DUST).any():
                    break
                steps[s, a, at] += 1.0
                behind[s, a] -= 1.0
                room[s, _serves(problem, a, at)] -= mw
                left[a, at] -= 1.0
                shared[:, at] -= use
    return steps


def _serves(problem: Problem, kind: int, ordered: int) -> slice:
    """Return the periods in which a rack ordered in a period serves."""
    first = ordered + int(problem.lead[kind])
    return slice(first, first + int(problem.life[kind]))


def orders(columns: Ints, x: Floats) -> Floats:
    """Return [S,A,T] of a solution, given the orders' columns."""
    return np.where(columns >= 0, x[columns], 0.0)


def stepped(box: Box, model: Model, free: Ints, found: Solution) -> Solution | None:
    """Return the cheapest of a few plans in which the phases and racks among the columns `free` are whole; None where none is.

    Hosting stays relaxed. The box is left as narrow as the last of them, but with phases and racks as in the cheapest.
    """
    problem, w, buy = model.problem, model.columns["w"], model.columns["buy"]
    assert found.x is not None
    best: Solution | None = found
    if np.isin(w, free).any():
        best = None
        for begun_from in _BEGUN_FROM:
            begun = in_order(problem, found.x[w] >= begun_from, box.widest[0][w], box.widest[1][w])
            begun = np.where(np.isin(w, free), begun, np.round(found.x[w]))
            best = _better(best, box, w.ravel(), begun.ravel())
        if best is None or best.x is None:
            return None
        held = np.round(best.x[w]).ravel()
        box.narrow(w.ravel(), held, held)
    mine = np.isin(buy, free)
    if mine.any():
        assert best is not None
        assert best.x is not None
        line, grid, columns = orders(buy, best.x), grid_mw(problem, best.x[w]), buy[mine]
        best = None
        for up_from in _UP_FROM:
            best = _better(best, box, columns, staircase(problem, line, mine, grid, up_from)[mine])
        if best is not None and best.x is not None:
            held = np.round(best.x[columns])
            box.narrow(columns, held, held)
    return best


def hosted(box: Box, model: Model, hosts: Ints, found: Solution) -> Solution | None:
    """Return the cheapest of a few plans in which a service is hosted where `found` carries a part of its least size.

    `hosts` are the columns that are decided so; the box is left with those of the last plan. None where none was found.
    """
    columns, least = model.columns["host"], model.problem.host_min
    mine = np.isin(columns, hosts)
    assert found.x is not None
    assert least is not None
    carry = model.value("carry", found.x)
    best: Solution | None = None
    for part in _HOSTED_FROM:
        there = (carry > 0.0) & (carry >= part * least[None, :, None])
        best = _better(best, box, columns[mine], there[mine].astype(np.float64))
    return best


def _better(best: Solution | None, box: Box, columns: Ints, values: Floats) -> Solution | None:
    """Return the cheaper of `best` and the plan with some columns held."""
    box.narrow(columns, values, values)
    found = box.solve(2)
    if found is None or found.x is None or (best is not None and best.cost <= found.cost):
        return best
    return found
