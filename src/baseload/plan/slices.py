"""Rows that whole columns of a single period imply, found by HiGHS on that period alone.

What is whole makes a relaxation dearer mostly within periods: where services are hosted, by how many racks, with how much
power. So a period is cut out of the relaxation, the rows that tie it to others replaced by their prices, and HiGHS is asked for
the rows by which it would raise the bound of that small programme. They come of rows of the whole programme, so they hold there
too, and stand in the relaxation that plans are looked for with. The first periods, where racks are scarce, give most.
"""

from __future__ import annotations

import time
from dataclasses import replace

import numpy as np

from baseload.plan.build import Model
from baseload.plan.highs import Lp, Stop
from baseload.plan.problem import Bools, Floats, Ints
from baseload.plan.project import Program

_SLOW = 2  # periods in a row
_MARKETS = 4  # of 30 products: no whole split is known to any search for plans

Row = tuple[Ints, Floats, float]  # (columns, values, least)


def periods_of(model: Model) -> tuple[Ints, Ints]:
    """Return (period, period in which it comes) of all columns: racks come when they serve, phases when they are energised."""
    problem, n_periods = model.problem, len(model.problem.periods)
    period = np.full(len(model.program.cost), -1)
    for columns in model.columns.values():
        if columns.size:
            period[columns[columns >= 0]] = np.broadcast_to(np.arange(n_periods), columns.shape)[columns >= 0]
    came = period.copy()
    for name, later in (("buy", problem.lead[None, :, None]), ("w", problem.phase_delay[:, None])):
        columns = model.columns[name]
        came[columns[columns >= 0]] += np.broadcast_to(later, columns.shape)[columns >= 0]
    return period, came


def counted(model: Model) -> Bools:
    """Return which columns are whole in every plan: those that must be, and the racks that are there because of them."""
    problem, own = model.problem, model.columns["own"]
    whole = model.program.whole.copy()
    each = (own >= 0) & problem.whole[:, :, None] & (problem.existing == np.round(problem.existing))
    whole[own[each]] = True
    return whole


def slice_of(program: Program, prices: Floats, mine: Bools) -> Program:
    """Return the programme over the columns `mine`, with the rows that are theirs alone; the others count by their `prices`.

    >>> one = np.ones(1)
    >>> two = Program(cost=np.ones(2), lower=np.zeros(2), upper=9 * np.ones(2), whole=np.ones(2, bool),
    ...               row_lower=np.array([1.0, 3.0]), row_upper=9 * np.ones(2), start=np.array([0, 1, 3]),
    ...               index=np.array([0, 0, 1]), value=np.ones(3))
    >>> part = slice_of(two, np.array([0.0, 0.25]), np.array([True, False]))
    >>> part.cost, part.row_lower, part.index
    (array([0.75]), array([1.]), array([0]))
    """
    rows = len(program.row_lower)
    cells = np.diff(program.start)
    of = np.repeat(np.arange(rows), cells)
    inside = (np.bincount(of[~mine[program.index]], minlength=rows) == 0) & (cells > 0)
    worth = program.value * np.where(inside, 0.0, prices)[of]
    cost = program.cost - np.bincount(program.index, weights=worth, minlength=len(program.cost))
    kept = inside[of]
    return Program(
        cost=cost[mine],
        lower=program.lower[mine],
        upper=program.upper[mine],
        whole=program.whole[mine],
        row_lower=program.row_lower[inside],
        row_upper=program.row_upper[inside],
        start=np.concatenate([[0], np.cumsum(cells[inside])]).astype(np.int64),
        index=(np.cumsum(mine) - 1)[program.index[kept]],
        value=program.value[kept],
    )


def without_plans(program: Program) -> Program:
    """Return a programme with the same relaxation and no plan: its rows beside a few of others that no whole numbers meet.

    Once the solver knows a plan it looks for cheaper ones alone, and what it then finds holds for those only. So it is given
    none to find: whole columns of half a market each, which do not add up (Cornuéjols and Dawande 1999).
    """
    weights = np.random.default_rng(_MARKETS).integers(0, 100, (_MARKETS, 10 * (_MARKETS - 1))).astype(np.float64)
    rows, n = weights.shape
    half = np.floor(weights.sum(axis=1) / 2.0)
    first = len(program.cost)
    return Program(
        cost=np.concatenate([program.cost, np.zeros(n)]),
        lower=np.concatenate([program.lower, np.zeros(n)]),
        upper=np.concatenate([program.upper, np.ones(n)]),
        whole=np.concatenate([program.whole, np.ones(n, bool)]),
        row_lower=np.concatenate([program.row_lower, half]),
        row_upper=np.concatenate([program.row_upper, half]),
        start=np.concatenate([program.start, program.start[-1] + n * np.arange(1, rows + 1)]),
        index=np.concatenate([program.index, np.tile(first + np.arange(n), rows)]),
        value=np.concatenate([program.value, weights.ravel()]),
    )


def implied(
    model: Model, program: Program, prices: Floats, *, worth: float, until_s: float, stop: Stop | None
) -> list[Row]:
    """Return the rows that periods alone imply, the first period first, as far as it pays.

    Args:
        model: columns by name.
        program: the whole programme, its bounds as tight as they are known.
        prices: of its rows, of the relaxation.
        worth: raise of the bound, a CPU second, below which it is not worth the time: two periods in a row end it.
        until_s: CPU second of this process at which to end.
        stop: asked now and then.
    """
    _, came = periods_of(model)
    whole = replace(program, whole=counted(model))
    found: list[Row] = []
    slow = 0
    for period in range(len(model.problem.periods)):
        left_s = until_s - time.process_time()
        if left_s <= 0.0 or (stop is not None and stop()):
            break
        mine = came == period
        part = slice_of(whole, prices, mine)
        if not part.whole.any():
            continue
        columns = np.flatnonzero(mine)
        began_s = time.process_time()
        relaxed = Lp(part, relaxed=True).solve(cpu_limit_s=left_s, stop=stop)
        bound, (least, start, index, value) = Lp(without_plans(part)).root_rows(cpu_limit_s=left_s, stop=stop)
        slow = 0 if bound - relaxed.cost >= worth * (time.process_time() - began_s) else slow + 1
        for i in range(len(least)):
            of, by = index[start[i] : start[i + 1]], value[start[i] : start[i + 1]]
            if (of < len(columns)).all():
                found.append((columns[of], by, float(least[i])))
        if slow >= _SLOW:
            break
    return found
