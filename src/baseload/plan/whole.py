"""From a relaxation to whole columns: a few rounded at a time, solved again, and taken back where it costs too much.

Each step rounds the columns that are nearest to whole, and solves anew from where the last solve ended. Where the cost jumps,
the batch is taken back and tried in parts; a single column is tried both ways, and keeps the cheaper. Under pressure of time
batches grow and what may be afforded is taken, so that there is always an end. Improving a plan is the same: what belongs
together is freed, relaxed, and rounded again as long as it stays below the plan.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from baseload.plan.highs import INF, Lp, Solution, Stop
from baseload.plan.problem import Bools, Floats, Ints

_SHARE = 0.2  # of what is not whole that is rounded in one step
_JUMP = 2e-4  # of the relaxation's cost; a batch that costs more times the root of its size is taken back
_LATE = 12  # solves for all that is left when time is up
_FAIR = 0.7  # of a batch's part of what may be lost in all; one that costs no more is taken
_WORTH = 2e-5  # an improvement by less is none
_WHOLE = 1e-5

AddRows = Callable[[Floats], int]  # adds the rows that a solution breaks to the programme that is held


@dataclass(kw_only=True)
class Box:
    """A relaxed programme that HiGHS holds, with the bounds of its columns as they are now."""

    lp: Lp
    lower: Floats
    upper: Floats
    add_rows: AddRows
    stop: Stop | None = None
    until_s: float = INF

    def __post_init__(self) -> None:
        """Take down the bounds that it begins with."""
        self.widest = (self.lower.copy(), self.upper.copy())

    def narrow(self, columns: Ints, lower: Floats, upper: Floats) -> None:
        """Set the bounds of some columns."""
        self.lower[columns], self.upper[columns] = lower, upper
        self.lp.set_bounds(columns, lower, upper)

    def solve(self, rounds: int = 3) -> Solution | None:
        """Solve with the rows that are missing; None where no optimum was found in time."""
        found = None
        for _ in range(rounds):
            left_s = self.until_s - time.process_time()
            if left_s <= 0.0:
                return None
            found = self.lp.solve(method="simplex", cpu_limit_s=left_s, stop=self.stop)
            if found.x is None or found.state != "optimal":
                return None
            if not self.add_rows(found.x):
                break
        return found

    def over(self) -> bool:
        """Return whether time is up, or somebody asked to stop."""
        return time.process_time() >= self.until_s or (self.stop is not None and self.stop())


def rounded(
    box: Box,
    numbers: Ints,
    x: Floats,
    cost: float,
    *,
    up_from: float,
    end_s: float,
    most: float = INF,
) -> tuple[Floats, float] | None:
    """Make the columns `numbers` whole, beginning with the solution `x`; return (solution, cost), None where none came.

    Args:
        box: the programme; its bounds are narrowed.
        numbers: the columns.
        x: the solution within its bounds as they are now.
        cost: of `x`.
        up_from: parts from here on are rounded up first.
        end_s: CPU time of the process at which it should be done.
        most: a cost at which to give up.
    """
    share, scale, torn = _SHARE, abs(cost), False
    while True:
        base = np.floor(x[numbers] + _WHOLE)
        part = x[numbers] - base
        loose = np.flatnonzero((part > _WHOLE) & (box.upper[numbers] - box.lower[numbers] > 0.5))
        if not len(loose):
            break
        late = time.process_time() >= end_s
        least = int(np.ceil(len(loose) / _LATE)) if late and not torn else 1
        ups = part[loose] >= up_from
        order = np.argsort(np.where(ups, 1.0 - part[loose], part[loose]), kind="stable")
        order = order[: max(1, least, int(share * len(loose)))]
        columns, ups, below = numbers[loose[order]], ups[order], base[loose[order]]
        jump = _JUMP * scale * float(np.sqrt(len(columns)))
        if np.isfinite(most):
            jump = max(jump, _FAIR * (most - cost) * len(columns) / len(loose))
        found, taken = _step(box, columns, ups, below, most if late else min(most, cost + jump))
        if box.over():
            return None
        torn = not taken
        if not taken:
            share = len(columns) / 3.0 / len(loose)
            continue
        if found is None or found.x is None or found.cost >= most:
            return None
        share = _SHARE if len(columns) == 1 else min(_SHARE, 2.0 * share)
        x, cost = found.x, found.cost
    exact = np.round(x[numbers])
    box.narrow(numbers, exact, exact)
    return x, cost


def _step(box: Box, columns: Ints, ups: Bools, below: Floats, most: float) -> tuple[Solution | None, bool]:
    """Round some columns; return the solution, and whether it was taken.

    A batch that comes to more than `most` is not taken. A single column goes the other way where that is cheaper.
    """
    low, high = box.lower[columns], box.upper[columns]

    def to(up: Bools) -> Solution | None:
        box.narrow(columns, np.where(up, np.minimum(below + 1.0, high), low), np.where(up, high, below))
        return box.solve(2)

    found = to(ups)
    if found is not None and found.cost <= most:
        return found, True
    if len(columns) > 1:
        box.narrow(columns, low, high)
        return None, False
    other = to(~ups)
    if other is None or (found is not None and found.cost <= other.cost):
        return to(ups), True
    return other, True


def promised(box: Box, numbers: Ints, free: Bools, best: Floats) -> Solution | None:
    """Return the plan `best` with the columns `numbers[free]` relaxed; their bounds stay wide, those of the others held."""
    held, low, high = np.round(best[numbers]), box.widest[0][numbers], box.widest[1][numbers]
    box.narrow(numbers, np.where(free, low, held), np.where(free, high, held))
    return box.solve(2)


def renewed(
    box: Box, found: Solution, cost: float, *, stages: list[tuple[Ints, float]], cpu_s: float
) -> tuple[Floats, float] | None:
    """Return a plan cheaper than `cost`, rounded from the relaxation `found` of a part; None where there is none.

    `stages` are the columns to be made whole one group after the other, each with its `up_from`.
    """
    began_s, most = time.process_time(), cost - _WORTH * abs(cost)
    if found.x is None or found.cost >= most:
        return None
    result: tuple[Floats, float] | None = (found.x, found.cost)
    for i, (columns, up_from) in enumerate(stages):
        end_s = began_s + cpu_s * (i + 1) / len(stages)
        assert result is not None
        result = rounded(box, columns, *result, up_from=up_from, end_s=end_s, most=most)
        if result is None:
            return None
    return result
