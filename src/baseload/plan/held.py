"""What a solve leaves behind for the next one, and the prices that slow an interior point down."""

from __future__ import annotations

from dataclasses import dataclass

from baseload.plan import coarse
from baseload.plan.build import Hall, Model
from baseload.plan.highs import INF
from baseload.plan.problem import Problem

SLOW_PRICES = ("short_power", "short_floor", "over_share")  # far above what keeping to them costs
CAPPED = 0.1  # of such a price while the interior point runs: a lower price is a bound all the same


@dataclass(frozen=True, kw_only=True)
class Held:
    """What a re-solve may begin with: where the relaxation ended, the survival rows found, and what its numbers stand for."""

    basis: object
    halls: tuple[Hall, ...]
    model: Model
    longer: coarse.Held | None = None  # the same, over longer periods
    cold_s: float = INF  # CPU seconds of a relaxation from nothing

    def fits(self, problem: Problem) -> bool:
        """Return whether a problem has the same names, so that all that is held means something there."""
        return self.model.problem.same_axes(problem)
