"""A programme cut out of a larger one: some of its columns, all others as in a plan, with only the rows that these are in.

A solver's plan keeps its rows only nearly; where one is missed by a little, it is as wide here as the plan needs, so that the
plan is always a beginning. What comes of it is put back into the plan and solved once more with all rows as they are.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from baseload.plan.problem import Bools, Floats, Ints
from baseload.plan.project import Program


def cut_out(program: Program, x: Floats, free: Bools) -> Program:
    """Return the programme over the columns `free`, in their order, with the others as in `x`.

    >>> one = np.ones(1)
    >>> two = Program(cost=np.ones(2), lower=np.zeros(2), upper=9 * np.ones(2), whole=np.array([True, False]),
    ...               row_lower=3 * one, row_upper=9 * one, start=np.array([0, 2]), index=np.array([0, 1]), value=np.ones(2))
    >>> part = cut_out(two, np.array([2.0, 1.5]), np.array([False, True]))
    >>> part.row_lower, part.row_upper, part.whole
    (array([1.]), array([7.]), array([False]))
    """
    n, rows = len(program.cost), len(program.row_lower)
    of = np.repeat(np.arange(rows), np.diff(program.start))
    mine = free[program.index]
    worth = program.value * x[program.index]
    held = np.bincount(of[~mine], weights=worth[~mine], minlength=rows)
    now = np.bincount(of[mine], weights=worth[mine], minlength=rows)
    cells = np.bincount(of[mine], minlength=rows)
    kept = np.flatnonzero(cells)
    place = np.full(n, -1, dtype=np.int64)
    place[free] = np.arange(int(free.sum()))
    return Program(
        cost=program.cost[free],
        lower=program.lower[free],
        upper=program.upper[free],
        whole=program.whole[free],
        row_lower=np.minimum(program.row_lower - held, now)[kept],
        row_upper=np.maximum(program.row_upper - held, now)[kept],
        start=np.concatenate([[0], np.cumsum(cells[kept])]).astype(np.int64),
        index=place[program.index[mine]],
        value=program.value[mine],
    )


def kept_rows(program: Program, kept: Bools) -> Program:
    """Return the programme with the rows `kept` alone.

    >>> one = np.ones(2)
    >>> two = Program(cost=one, lower=0 * one, upper=9 * one, whole=one > 2, row_lower=np.array([3.0, 4.0]), row_upper=9 * one,
    ...               start=np.array([0, 2, 3]), index=np.array([0, 1, 1]), value=np.ones(3))
    >>> kept_rows(two, np.array([False, True])).start, rows_at_least(two, np.array([1]))
    (array([0, 1]), [(array([1]), array([1.]), 4.0)])
    """
    cells = np.diff(program.start)
    mine = np.repeat(kept, cells)
    return replace(
        program,
        row_lower=program.row_lower[kept],
        row_upper=program.row_upper[kept],
        start=np.concatenate([[0], np.cumsum(cells[kept])]).astype(np.int64),
        index=program.index[mine],
        value=program.value[mine],
    )


def rows_at_least(program: Program, numbers: Ints) -> list[tuple[Ints, Floats, float]]:
    """Return rows of a programme that have only a lower side, as (columns, values, least)."""
    start = program.start
    return [
        (program.index[start[i] : start[i + 1]], program.value[start[i] : start[i + 1]], float(program.row_lower[i]))
        for i in numbers
    ]
