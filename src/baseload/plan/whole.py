"""A relaxation that HiGHS holds, narrowed and widened again: what a part of a plan promises is one warm solve away.

The bounds of its columns are kept beside it. Rows that a solution breaks come in as it is solved.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from baseload.plan.highs import INF, Lp, Solution, Stop
from baseload.plan.problem import Bools, Floats, Ints

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


def promised(box: Box, numbers: Ints, free: Bools, best: Floats) -> Solution | None:
    """Return the plan `best` with the columns `numbers[free]` relaxed; their bounds stay wide, those of the others held."""
    held, low, high = np.round(best[numbers]), box.widest[0][numbers], box.widest[1][numbers]
    box.narrow(numbers, np.where(free, low, held), np.where(free, high, held))
    return box.solve(2)
