"""A first plan for problems with whole racks and hosting: phases, then hosts, then racks made whole, one warm re-solve each.

Phases begun to a third in the relaxation are begun. A service is hosted where it then carries at least half of the least size.
Racks are first cut down to whole ones, what they leave open being rented or paid for; then a small branch and bound decides,
rack by rack, between the whole number below and above.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

import numpy as np

from baseload.plan.build import Model
from baseload.plan.highs import Lp, Stop
from baseload.plan.nothing import in_order
from baseload.plan.problem import Floats, Ints

_BEGUN = 1.0 / 3.0
_HOSTED = 0.5
_SHARE = 0.7  # of the time left for choosing racks


class Search(Protocol):
    """What a dive needs of the search that it is part of."""

    model: Model
    lp: Lp
    gap: float
    stop: Stop | None

    def keep(self, x: Floats) -> None:
        """Remember a plan if it is the best."""

    def add_missing(self, x: Floats) -> int:
        """Add the survival rows that a solution breaks; return how many."""


def dive(search: Search, x: Floats, left_s: Callable[[], float], *, choose: bool = True) -> None:
    """Hand the search a plan, found from the relaxation's solution `x`, and with `choose` one whose racks are chosen well."""
    model, lp = search.model, search.lp
    lower, upper = model.program.lower.copy(), model.program.upper.copy()
    w, whole = model.columns["w"], np.flatnonzero(model.program.whole)
    lp.set_whole(False)
    found = _fixed(search, w, in_order(model.problem, x[w] >= _BEGUN, lower[w], upper[w]), left_s)
    if found is not None and "host" in model.columns:
        host, carry = model.columns["host"], model.value("carry", found)
        hosted = carry >= _HOSTED * np.asarray(model.problem.host_min)[None, :, None]
        found = _fixed(search, host, (hosted & (carry > 0.0)).astype(np.float64), left_s)
    if found is not None:
        racks = model.columns["buy"][np.broadcast_to(model.problem.whole[:, :, None], model.columns["buy"].shape)]
        racks = racks[racks >= 0]
        below = np.maximum(lower[racks], np.floor(found[racks] + 1e-6))
        start = _fixed(search, racks, below, left_s)
        if start is not None:
            start[whole] = np.round(start[whole])
            search.keep(start)
        if start is not None and choose:
            lp.set_bounds(racks, below, np.minimum(upper[racks], np.ceil(found[racks] - 1e-6)))
            lp.set_whole(True)
            least_s = max(0.5, _SHARE * left_s())
            chosen = lp.solve(gap=search.gap / 3.0, cpu_limit_s=least_s, start=start, stop=search.stop)
            lp.set_whole(False)
            if chosen.x is not None and _fixed(search, whole, np.round(chosen.x[whole]), left_s, keep=True) is None:
                search.keep(chosen.x)
    lp.set_bounds(whole, lower[whole], upper[whole])
    lp.set_whole(True)


def _fixed(
    search: Search, columns: Ints, values: Floats, left_s: Callable[[], float], keep: bool = False
) -> Floats | None:
    """Solve with some columns fixed and survival rows added as they are missing; None where time or rows forbid."""
    numbers, sides = columns[columns >= 0], values[columns >= 0]
    search.lp.set_bounds(numbers, sides, sides)
    for _ in range(3):
        found = search.lp.solve(cpu_limit_s=max(0.05, left_s()), stop=search.stop)
        if found.state != "optimal" or found.x is None:
            return None
        if keep:
            exact = found.x.copy()
            exact[numbers] = sides
            search.keep(exact)
        if search.add_missing(found.x) == 0:
            break
    return found.x
