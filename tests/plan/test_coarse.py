"""A question over longer periods: what it tells of survival rows, and the plans that are found with it."""

from __future__ import annotations

import numpy as np
import pytest

from baseload.plan import build as building
from baseload.plan.check_answer import check
from baseload.plan.coarse import Coarse, coarser
from baseload.plan.generate import instance
from baseload.plan.highs import INF, Lp
from baseload.plan.phases import solve_phases
from baseload.plan.sound import require_sound


def test_one_period_as_one_is_the_same_question() -> None:
    """Nothing is lost in the rewriting itself: the programme over periods of the same length is the same, number by number."""
    problem = instance(4, 3, 3, 8, 6, seed=3)
    was, now = building.build(problem).program, building.build(coarser(problem, 1)).program
    for name in ("cost", "lower", "upper", "row_lower", "row_upper", "start", "index", "value"):
        assert np.allclose(getattr(was, name), getattr(now, name), rtol=1e-12)


@pytest.mark.parametrize("n", [2, 4])
def test_longer_periods_ask_a_sound_question_of_the_same_size(n: int) -> None:
    """Periods that do not divide evenly too; what is served and drawn over the horizon stays near."""
    problem = instance(4, 3, 3, 8, 6, seed=3)
    longer = coarser(problem, n)
    require_sound(longer)
    assert len(longer.periods) == -(-6 // n)
    assert longer.cost_owned.sum() == pytest.approx(problem.cost_owned.sum())
    assert longer.demand.mean() == pytest.approx(problem.demand.mean(), rel=0.25)


def test_a_plan_found_with_longer_periods_is_whole_and_its_bound_holds() -> None:
    """The rows that they name cut no plan off: the bound is below a plan found without them, and the other way round."""
    problem = instance(14, 2, 5, 40, 10, seed=1)
    found = solve_phases(problem, gap=0.02)
    assert check(problem, found) == []
    assert found.gap <= 0.02
    halls = Coarse(problem, 5, until_s=INF).halls()
    assert halls
    with_rows = Lp(building.build(problem, halls).program, relaxed=True).solve()
    assert with_rows.cost <= found.cost * (1.0 + 1e-9)
