"""The planner's answers are right: against brute force, against its own bound, and row by row."""

from __future__ import annotations

import pytest
from hypothesis import HealthCheck, given, settings

from baseload.plan.check_answer import check, recompute_cost
from baseload.plan.problem import Problem
from baseload.plan.solve import solve
from tests.plan.brute import best_cost
from tests.plan.tiny import problems


@pytest.mark.slow
@given(problem=problems())
@settings(max_examples=500, deadline=None, suppress_health_check=list(HealthCheck))
def test_an_answer_costs_what_brute_force_finds_and_breaks_no_row(problem: Problem) -> None:
    """On any small problem the plan is the cheapest there is, its bound never exceeds it, and every row of it holds."""
    answer = solve(problem, gap=1e-9, cpu_limit_s=30.0)
    least = best_cost(problem)
    size = max(1.0, abs(least))
    assert check(problem, answer) == []
    assert recompute_cost(problem, answer).total == pytest.approx(answer.cost, rel=1e-6, abs=1e-6)
    assert answer.cost == pytest.approx(least, abs=2e-6 * size)
    assert answer.bound <= least + 2e-6 * size
    assert answer.bound >= least - 1e-5 * size
