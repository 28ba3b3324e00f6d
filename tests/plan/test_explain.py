"""What a plan's cost hangs on, why a request is impossible, and what else could be done."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from baseload.plan import alternatives, conflict, explain
from baseload.plan.check_answer import check
from baseload.plan.generate import instance
from baseload.plan.problem import Answer, Problem
from baseload.plan.solve import solve


@pytest.fixture(scope="module")
def planned() -> tuple[Problem, Answer]:
    problem = instance(4, 3, 3, 8, 6, seed=3)
    return problem, solve(problem, gap=0.002, cpu_limit_s=20.0)


def test_the_price_of_a_megawatt_lies_between_what_a_little_more_saves_and_a_little_less_costs() -> None:
    """Cost is convex in the power of a site, so that the price told is a slope between those of both sides."""
    problem = instance(4, 3, 3, 8, 6, seed=3)
    problem = replace(problem, minimum_bill=np.zeros(4))
    answer = solve(problem, gap=0.002, cpu_limit_s=20.0)
    settled = explain.settle(problem, answer)
    told = {one.who: one.worth for one in explain.binding(problem, settled, least=0.0) if one.kind == "power"}
    assert told, "no site's power binds: the test asks nothing"
    step, dust = 1e-3, 1e-6 * abs(settled.cost)
    for s, site in enumerate(problem.sites):
        change = np.zeros_like(problem.power_mw)
        change[s] = step
        saved = -explain.change(problem, answer, settled, replace(problem, power_mw=problem.power_mw + change))
        lost = explain.change(problem, answer, settled, replace(problem, power_mw=problem.power_mw - change))
        assert saved - dust <= told.get(site, 0.0) * step <= lost + dust
        assert told.get(site, 0.0) == 0.0 or lost > 0.0


def test_a_later_phase_never_saves_and_a_wider_law_never_costs(planned: tuple[Problem, Answer]) -> None:
    """With the whole decisions kept, delay has a price of at least nothing, and allowing more saves at least nothing."""
    problem, answer = planned
    problem = replace(problem, survive_ratio=np.zeros(3))  # a second site would have to be survived too
    settled = explain.settle(problem, answer)
    assert settled.cost <= answer.cost * (1 + 1e-6)
    everywhere = {"everywhere": np.ones_like(problem.allowed)}
    assert all(one.worth >= -1e-6 * settled.cost for one in explain.opened(problem, answer, settled, everywhere))
    for one in explain.delays(problem, answer, settled):
        assert one.worth <= 1e-6 * settled.cost or problem.cost_live.any()


def test_a_budget_too_small_is_named_with_what_would_do() -> None:
    """A budget that cannot pay for the demand is in the conflict; giving it what is said makes the request possible."""
    problem = instance(3, 2, 2, 4, 4, seed=1)
    problem = replace(problem, sign_max=np.zeros_like(problem.sign_max), capex_budget=np.full(4, 1.0))
    found = conflict.find(problem)
    assert found is not None and found.proven
    [budget] = [side for side in found.sides if side.kind == "capex budget"]
    assert budget.gives is not None and budget.gives > 1.0
    assert "serve" in {side.kind for side in found.sides}


@settings(max_examples=12, deadline=None)
@given(seed=st.integers(0, 10_000), factor=st.floats(0.05, 0.5))
def test_no_side_of_a_conflict_can_be_left_out(seed: int, factor: float) -> None:
    """Any one side given up, the rest of a conflict is no conflict any more; nothing is found where all can be met."""
    problem = instance(3, 2, 2, 4, 3, seed=seed)
    problem = replace(problem, sign_max=problem.sign_max * 0.1, supply=np.floor(problem.supply * factor))
    found = conflict.find(problem)
    easy = replace(
        problem,
        sign_max=np.full_like(problem.sign_max, 1e6),
        may_place=np.ones_like(problem.may_place),
        share_max=np.ones_like(problem.share_max),
    )
    assert conflict.find(easy) is None
    if found is None:
        return
    assert found.proven
    for side in found.sides:
        assert conflict.find(_without(problem, found.sides, side)) is None


def _without(problem: Problem, sides: tuple[conflict.Side, ...], given_up: conflict.Side) -> Problem:
    """Return the problem that asks for the sides of a conflict alone, but for one."""
    kept = [side for side in sides if side is not given_up]

    def holds(kind: str, who: str) -> bool:
        return any(side.kind == kind and side.who == who for side in kept)

    demand = problem.demand.copy()
    asked = {name for side in sides if side.kind == "serve" for name in side.periods}
    demand[:, :, [name not in asked for name in problem.periods]] = 0.0
    for r, client in enumerate(problem.clients):
        for m, service in enumerate(problem.services):
            if not (holds("serve", service) or holds("serve", f"{client}, {service}")):
                demand[r, m] = 0.0
    survive = [holds("survive the loss of a site", name) for name in problem.services]
    power = [holds("power", name) for name in problem.sites]
    supply = [holds("supply", name) for name in problem.kinds]
    rent = [holds("rent", name) for name in problem.sites]
    return replace(
        problem,
        demand=demand,
        survive_ratio=np.where(survive, problem.survive_ratio, 0.0),
        power_mw=np.where(np.array(power)[:, None], problem.power_mw, 1e6),
        supply=np.where(np.array(supply)[:, None], problem.supply, np.inf),
        shared=np.where([[holds("shared supply", name)] for name in problem.limits], problem.shared, np.inf),
        sign_max=np.where(np.array(rent)[:, None, None], problem.sign_max, 1e6 * problem.may_place[:, :, None]),
        share_max=np.where([holds("share", name) for name in problem.groups], problem.share_max, 1.0),
    )


def test_another_way_is_a_plan_that_takes_it(planned: tuple[Problem, Answer]) -> None:
    """Plans with one way closed keep every row of the request, and cost no less than the plan's bound."""
    problem, answer = planned
    others = alternatives.alternatives(problem, answer, within=5.0, cpu_limit_s=20.0)
    assert others
    for other in others:
        assert check(problem, replace(other.answer, bound=answer.bound)) == []
        assert other.answer.cost >= answer.bound * (1 - 1e-9)
        assert other.changes


def test_the_tornado_says_what_demand_does(planned: tuple[Problem, Answer]) -> None:
    """More demand costs more, dearer racks cost more, and the widest bar comes first."""
    problem, answer = planned
    swings = alternatives.tornado(problem, answer, cpu_limit_s=20.0)
    by_name = {swing.what: swing for swing in swings}
    assert by_name["demand"].low < answer.cost < by_name["demand"].high
    assert by_name["price of racks"].low < by_name["price of racks"].high
    widths = [abs(swing.high - swing.low) for swing in swings]
    assert widths == sorted(widths, reverse=True)
