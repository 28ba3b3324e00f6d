"""Other plans and changed questions: every alternative is a plan, swings go the right way, changes add up."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings

from baseload.plan.alternatives import alternatives, apart, tornado
from baseload.plan.check_answer import check, recompute_cost
from baseload.plan.generate import instance
from baseload.plan.problem import Answer, Problem
from baseload.plan.solve import solve
from baseload.plan.whatif import what_if
from tests.plan.tiny import problems


@pytest.fixture(scope="module")
def solved() -> tuple[Problem, Answer]:
    problem = instance(4, 3, 3, 8, 8, seed=2)
    return problem, solve(problem, gap=0.005)


@pytest.mark.slow
@given(problem=problems())
@settings(max_examples=30, deadline=None, suppress_health_check=list(HealthCheck))
def test_every_alternative_is_a_plan_within_its_cost(problem: Problem) -> None:
    """An alternative breaks no row, costs no more than was allowed, and has no more of what it was to have less of."""
    answer = solve(problem, gap=1e-9)
    for other in alternatives(problem, answer, within=0.05):
        assert check(problem, other.answer, tol=1e-5) == []
        assert other.more <= 0.05 + 1e-5
        assert other.after <= other.before * (1.0 + 0.03) + 1e-5


@pytest.mark.slow
def test_alternatives_differ(solved: tuple[Problem, Answer]) -> None:
    """For 3 % more there are plans with clearly less of something, whose racks stand elsewhere."""
    problem, answer = solved
    found = alternatives(problem, answer, within=0.03, cpu_limit_s=6.0)
    assert len(found) >= 3
    assert max(other.apart for other in found) > 0.02
    assert any(other.after < 0.9 * other.before for other in found)
    assert apart(problem, answer, answer) == 0.0


def test_time_that_is_short_costs_distance_and_no_plan(solved: tuple[Problem, Answer]) -> None:
    """Searches that are stopped at once give no plan that breaks a row or its cost, and none that has hardly less."""
    problem, answer = solved
    for other in alternatives(problem, answer, within=0.03, cpu_limit_s=0.5):
        assert check(problem, other.answer, tol=1e-5) == []
        assert other.more <= 0.03 + 1e-5 and other.after < other.before


def test_a_tornado_is_ordered_and_goes_the_right_way(solved: tuple[Problem, Answer]) -> None:
    """Dearer inputs, more demand and later dates never cost less; the widest swing comes first."""
    base, swings = tornado(solved[0], solved[1])
    assert base <= solved[1].cost * (1 + 1e-9)
    assert [swing.width for swing in swings] == sorted((swing.width for swing in swings), reverse=True)
    for swing in swings:
        assert swing.low is not None and swing.high is not None
        if swing.what == "speed of racks":
            assert swing.low >= base * (1 - 1e-9) and swing.high <= base * (1 + 1e-9)
        elif not swing.what.startswith("delay"):
            assert swing.low <= base * (1 + 1e-9) and swing.high >= base * (1 - 1e-9)


def test_a_what_if_says_what_changes_and_its_parts_add_up(solved: tuple[Problem, Answer]) -> None:
    """With a third of the rent's price, more is rented; the parts of the cost add up to both costs."""
    problem, answer = solved
    found = what_if(problem, answer, replace(problem, cost_sign=problem.cost_sign / 3.0))
    assert sum(before for before, _ in found.parts.values()) == pytest.approx(answer.cost)
    assert sum(after for _, after in found.parts.values()) == pytest.approx(found.answer.cost)
    assert found.answer.cost < answer.cost
    rents = [change for change in found.changes if change.action == "rent"]
    assert rents and sum((change.after or 0.0) - (change.before or 0.0) for change in rents) > 0.0
    assert found.why[0][1] != 0.0


def test_nothing_changes_where_nothing_is_changed(solved: tuple[Problem, Answer]) -> None:
    """The same question again has the same phases, and its cost lies within the gap."""
    problem, answer = solved
    again = what_if(problem, answer, replace(problem, name="the same"), gap=0.005)
    assert again.answer.cost <= answer.cost * (1 + 1e-6)
    assert recompute_cost(problem, again.answer).total == pytest.approx(again.answer.cost)
    assert np.array_equal(again.answer.w.sum(axis=1) > 0, answer.w.sum(axis=1) > 0) or again.changes
