"""All scenarios in one programme: what is decided now is one set of columns, everything later is there once a scenario.

Its relaxation is the best bound that divisible phases give; its phases and first orders are where good decisions come from.
For the mean each scenario's cost weighs the same; for CVaR (Rockafellar and Uryasev 2000) a column holds the threshold,
one more a scenario what it costs beyond, and a row a scenario ties them.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from baseload.plan.highs import INF, Lp, Stop
from baseload.plan.problem import Bools, Floats, Ints
from baseload.plan.project import Program

MOST_COLUMNS = 700_000  # that one programme may have
FEW_COLUMNS = 60_000  # below this a vertex costs little


@dataclass(frozen=True, kw_only=True)
class Block:
    """A scenario's programme, and which of its columns are decided now (-1: not there, an order that comes too late)."""

    program: Program
    now: Ints
    lost: Floats  # what a unit of a decision costs that has no column here


@dataclass(frozen=True, kw_only=True)
class Relaxed:
    """The relaxation's answer."""

    bound: float
    now: Floats  # what is decided now
    later: list[Floats]  # each scenario's own columns


def size(blocks: Sequence[Block]) -> int:
    """Return how many columns all together have."""
    return sum(len(block.program.cost) for block in blocks)


@dataclass(frozen=True, kw_only=True)
class Side:
    """Scenarios side by side: what is decided now first, then each one's own columns; rows of all, costs apart."""

    program: Program  # without cost
    places: list[Ints]  # where each scenario's columns are
    costs: list[Floats]  # by scenario, of all columns


def side_by_side(blocks: Sequence[Block]) -> Side:
    """Return the programmes of scenarios with one set of columns for what is decided now."""
    n_now = len(blocks[0].now)
    places, end = [], n_now
    for block in blocks:
        place = np.full(len(block.program.cost), -1, dtype=np.int64)
        there = block.now >= 0
        place[block.now[there]] = np.flatnonzero(there)
        own = np.flatnonzero(place < 0)
        place[own] = np.arange(end, end + len(own))
        end += len(own)
        places.append(place)
    lower, upper, costs = np.full(end, -INF), np.full(end, INF), []
    for block, place in zip(blocks, places, strict=True):
        lower[place] = np.maximum(lower[place], block.program.lower)
        upper[place] = np.minimum(upper[place], block.program.upper)
        of_block = np.zeros(end)
        of_block[place] = block.program.cost
        missing = block.now < 0
        of_block[:n_now][missing] = block.lost[missing]
        costs.append(of_block)
    lower[~np.isfinite(lower)] = 0.0  # decided now, but there in no scenario
    sizes = np.concatenate([np.diff(block.program.start) for block in blocks])
    program = Program(
        cost=np.zeros(end),
        lower=lower,
        upper=upper,
        whole=np.zeros(end, bool),
        row_lower=np.concatenate([block.program.row_lower for block in blocks]),
        row_upper=np.concatenate([block.program.row_upper for block in blocks]),
        start=np.concatenate([[0], np.cumsum(sizes)]).astype(np.int64),
        index=np.concatenate([place[block.program.index] for block, place in zip(blocks, places, strict=True)]),
        value=np.concatenate([block.program.value for block in blocks]),
    )
    return Side(program=program, places=places, costs=costs)


def joined(blocks: Sequence[Block], cvar: float | None, others: Floats | None = None) -> tuple[Program, list[Ints]]:
    """Return the programme of scenarios, and where each one's columns are in it.

    For CVaR, `others` are what further scenarios cost at least; the mean is of these alone.
    """
    side = side_by_side(blocks)
    if cvar is None:
        side.program.cost = np.sum(side.costs, axis=0) / len(blocks)
        return side.program, side.places
    least = np.zeros(0) if others is None else others
    costs = np.concatenate([np.array(side.costs), np.zeros((len(least), len(side.program.cost)))])
    return _with_tail(side.program, costs, np.concatenate([np.zeros(len(blocks)), least]), cvar), side.places


def _with_tail(plain: Program, costs: Floats, constant: Floats, cvar: float) -> Program:
    """Return the programme of the mean of the worst: threshold + sum of what is beyond / ((1 - cvar) n).

    A scenario costs `constant` and what its columns cost.
    """
    n, end = costs.shape
    weight = 1.0 / max(1.0, (1.0 - cvar) * n)
    threshold, beyond = end, np.arange(end + 1, end + 1 + n)
    index, value, sizes = [plain.index], [plain.value], [np.diff(plain.start)]
    for k in range(n):
        at = np.flatnonzero(costs[k])
        index.append(np.concatenate([at, [threshold, beyond[k]]]))
        value.append(np.concatenate([-costs[k, at], [1.0, 1.0]]))
        sizes.append(np.array([len(at) + 2]))
    return Program(
        cost=np.concatenate([np.zeros(end), [1.0], np.full(n, weight)]),
        lower=np.concatenate([plain.lower, [-INF], np.zeros(n)]),
        upper=np.concatenate([plain.upper, np.full(n + 1, INF)]),
        whole=np.zeros(end + 1 + n, bool),
        row_lower=np.concatenate([plain.row_lower, constant]),
        row_upper=np.concatenate([plain.row_upper, np.full(n, INF)]),
        start=np.concatenate([[0], np.cumsum(np.concatenate(sizes))]).astype(np.int64),
        index=np.concatenate(index),
        value=np.concatenate(value),
    )


def relax(
    blocks: Sequence[Block],
    cvar: float | None,
    *,
    cpu_limit_s: float,
    stop: Stop | None = None,
    fixed: Floats | None = None,
    others: Floats | None = None,
) -> Relaxed | None:
    """Return the relaxation's answer, with decisions of now kept where `fixed` is a number; None where time was over.

    `others` are what scenarios that are not among them cost at least, where CVaR is asked for.
    Small ones are solved to a vertex, large ones by an interior point alone. The bound is the solver's least cost, less ten
    times its tolerance.
    """
    began_s = time.process_time()
    program, places = joined(blocks, cvar, others)
    if fixed is not None:
        kept = np.flatnonzero(np.isfinite(fixed))
        program.lower[kept] = program.upper[kept] = fixed[kept]
    small = len(program.cost) < FEW_COLUMNS
    found = Lp(program, relaxed=True).solve(
        method="ipm", crossover=small, cpu_limit_s=max(0.1, cpu_limit_s - (time.process_time() - began_s)), stop=stop
    )
    if found.x is None or found.state != "optimal":
        return None
    x = found.x
    return Relaxed(
        bound=found.cost - 1e-6 * abs(found.cost), now=x[: len(blocks[0].now)], later=[x[place] for place in places]
    )


def decide(
    blocks: Sequence[Block],
    cvar: float | None,
    whole: Bools,
    *,
    gap: float,
    cpu_limit_s: float,
    stop: Stop | None = None,
) -> Relaxed | None:
    """Return the best decision of now whose `whole` entries are whole, or the best found; None where none was found."""
    began_s = time.process_time()
    program, places = joined(blocks, cvar)
    program.whole[: len(whole)] = whole
    left_s = max(0.1, cpu_limit_s - (time.process_time() - began_s))
    found = Lp(program).solve(gap=gap, cpu_limit_s=left_s, stop=stop)
    if found.x is None:
        return None
    x = np.where(np.pad(whole, (0, len(found.x) - len(whole))), np.round(found.x), found.x)
    return Relaxed(
        bound=found.bound - 1e-6 * abs(found.bound), now=x[: len(whole)], later=[x[place] for place in places]
    )
