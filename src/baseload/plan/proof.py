"""A bound that holds whatever the solver did: prices of rows, evaluated over the columns' bounds.

For any prices y of the rows (of the right sign), no solution costs less than sum of y times the rows' sides plus, for each
column, its reduced cost times the bound that it drives to. So a bound needs no trust in tolerances, and prices of an
unfinished or inexact solve serve too. Columns without an upper bound get one from the cost of a known plan: no better plan
spends more than that on a single column.
"""

from __future__ import annotations

import numpy as np

from baseload.plan.build import Model
from baseload.plan.problem import Floats
from baseload.plan.project import INF, Program

_DUST = 1e-9


def upper_bounds(model: Model, cost: float) -> Floats:
    """Return an upper bound of every column in some best plan, given a plan of `cost`; inf where none is known."""
    program, problem = model.program, model.problem
    upper = program.upper.copy()
    flow = model.columns["flow"]
    most = np.broadcast_to(problem.demand[:, None], flow.shape)
    upper[flow[flow >= 0]] = np.minimum(upper[flow[flow >= 0]], most[flow >= 0])
    # What every plan costs at least, column by column; what is above that may be spent on one column.
    with np.errstate(invalid="ignore"):
        floor = np.where(program.cost >= 0.0, program.cost * program.lower, program.cost * upper)
    if not np.isfinite(floor).all() or not np.isfinite(cost):
        return upper
    spare = max(0.0, cost - float(floor.sum()))
    with np.errstate(divide="ignore"):
        by_cost = np.where(program.cost > 0.0, program.lower + spare / np.maximum(program.cost, 1e-300), INF)
    upper = np.minimum(upper, by_cost * (1.0 + 1e-9) + _DUST)
    own, buy = model.columns["own"], model.columns["buy"]
    bought = np.where(buy >= 0, upper[buy], 0.0).sum(axis=2, keepdims=True)
    there = np.broadcast_to(problem.existing + bought, own.shape)
    upper[own[own >= 0]] = np.minimum(upper[own[own >= 0]], there[own >= 0])
    return upper


def safe_bound(program: Program, row_dual: Floats, lower: Floats, upper: Floats) -> float:
    """Return a cost below which no solution of `program` within `lower` and `upper` lies, from any prices of its rows.

    >>> one = np.ones(1)
    >>> least = Program(cost=2 * one, lower=0 * one, upper=9 * one, whole=one > 2, row_lower=3 * one, row_upper=INF * one,
    ...                 start=np.array([0, 1]), index=np.array([0]), value=one)
    >>> safe_bound(least, 2 * one, least.lower, least.upper), safe_bound(least, one, least.lower, least.upper)
    (6.0, 3.0)
    """
    total, _, ends = priced(program, row_dual, lower, upper)
    return total + float(ends.sum())


def priced(program: Program, row_dual: Floats, lower: Floats, upper: Floats) -> tuple[float, Floats, Floats]:
    """Return (worth of the rows, reduced costs, least part of each column); first and last add up to the bound."""
    y = row_dual.copy()
    y[(y > 0.0) & ~np.isfinite(program.row_lower)] = 0.0
    y[(y < 0.0) & ~np.isfinite(program.row_upper)] = 0.0
    side = np.where(y > 0.0, program.row_lower, program.row_upper)
    total = float(np.where(y != 0.0, y * np.where(np.isfinite(side), side, 0.0), 0.0).sum())
    weight = program.value * np.repeat(y, np.diff(program.start))
    reduced = program.cost - np.bincount(program.index, weights=weight, minlength=len(program.cost))
    end = np.where(reduced >= 0.0, lower, upper)
    with np.errstate(invalid="ignore"):
        more = np.where(reduced == 0.0, 0.0, reduced * end)
    return total, reduced, more
