"""Impossible requests: what is named is a conflict, and nothing in it can be left out."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from baseload.app import plan_findings
from baseload.plan import conflict
from baseload.plan.generate import instance
from baseload.plan.problem import SLACKS, Problem
from tests.plan.brute import best_cost
from tests.plan.test_plan_problem import question
from tests.plan.tiny import tiny

_SLACK_OF = {
    "survive the loss of a site": "short_survive",
    "power": "short_power",
    "floor": "short_floor",
    "share": "over_share",
    "capex budget": "over_capex",
    "carbon budget": "over_carbon",
    "water budget": "over_water",
}


def asking_only(problem: Problem, sides: list[conflict.Side]) -> Problem:
    """Return the problem with a price on missing these sides, and none on missing anything else."""
    nought = {
        name: np.zeros_like(getattr(problem, name))
        for name in (
            "cost_begin cost_live cost_buy cost_owned cost_sign cost_put cost_flow cost_billed cost_host cost_unserved"
        ).split()
    }
    shapes = {"short_power": problem.power_mw.shape, "short_floor": problem.power_mw.shape}
    shapes |= {"short_survive": problem.demand.shape[1:], "over_share": (len(problem.groups), len(problem.periods))}
    price = {name: np.zeros(shapes.get(name, (len(problem.periods),))) for name in SLACKS}
    supply, shared, sign_max = (
        np.full_like(problem.supply, np.inf),
        np.full_like(problem.shared, np.inf),
        problem.sign_max,
    )
    rentable = np.full(len(problem.sites), True)
    for side in sides:
        if side.kind == "serve":
            client, service = side.who.split(", ")
            nought["cost_unserved"][problem.clients.index(client), problem.services.index(service)] = 1.0
        elif side.kind == "supply":
            a = problem.kinds.index(side.who)
            supply[a] = problem.supply[a]
        elif side.kind == "shared supply":
            limit = problem.limits.index(side.who)
            shared[limit] = problem.shared[limit]
        elif side.kind == "rent":
            rentable[problem.sites.index(side.who)] = False
        else:
            values = price[_SLACK_OF[side.kind]]
            rows = {"power": problem.sites, "floor": problem.sites, "share": problem.groups}.get(
                side.kind, problem.services
            )
            values[rows.index(side.who) if side.who in rows else ...] = 1.0
    sign_max = np.where(rentable[:, None, None] & (sign_max > 0.0), 1e6, sign_max)
    return replace(problem, **nought, slack_price=price, supply=supply, shared=shared, sign_max=sign_max)


@pytest.mark.slow
@given(st.integers(0, 2**32 - 1), st.integers(1, 3), st.integers(1, 2), st.integers(1, 3))
@settings(max_examples=25, deadline=None, suppress_health_check=list(HealthCheck))
def test_a_conflict_is_one_and_none_of_its_sides_can_be_left_out(seed: int, n_s: int, n_m: int, n_t: int) -> None:
    """Brute force that asks for the named sides alone still misses something; with any one side less, nothing."""
    problem = tiny(seed, n_s, 2, n_m, 2, n_t, 0, 1, host=False, whole=0)
    found = conflict.find(problem)
    if found is None:
        return
    sides = list(found.sides)
    assert found.proven and sides
    assert best_cost(asking_only(problem, sides)) > 1e-7
    named = {period for side in sides if side.kind == "serve" for period in side.periods}
    # A conflict of one period is one in that period: a budget of several may clash with less, were the others asked for too.
    there = np.array([period in named for period in problem.periods])
    alone = replace(problem, demand=np.where(there, problem.demand, 0.0))
    for i in range(len(sides)):
        less = sides[:i] + sides[i + 1 :]
        assert best_cost(asking_only(problem, less)) < 1e-6 or best_cost(asking_only(alone, less)) < 1e-6


def test_a_budget_too_small_is_named_with_the_demand_it_cannot_buy() -> None:
    """One site, one service, no rent: the demand and the budget contradict each other, and each says how far."""
    problem = tiny(3, 1, 1, 1, 1, 1, 0, 0, host=False, whole=0)
    problem = replace(
        problem,
        demand=np.full((1, 1, 1), 10.0),
        allowed=np.ones((1, 1, 1), bool),
        may_place=np.ones((1, 1), bool),
        rate=np.ones((1, 1)),
        existing=np.zeros((1, 1, 1)),
        lead=np.zeros(1, np.int64),
        power_mw=np.full((1, 1), 1e3),
        floor_m2=np.full((1, 1), np.inf),
        supply=np.full((1, 1), np.inf),
        groups=(),
        group_of=np.zeros((0, 1, 1), bool),
        share_max=np.zeros(0),
        limits=(),
        shared_use=np.zeros((0, 1)),
        shared=np.zeros((0, 1)),
        spend_buy=np.full((1, 1, 1), 2.0),
        capex_budget=np.array([12.0]),
        carbon_budget=np.array([np.inf]),
        water_budget=np.array([np.inf]),
        slack_price=problem.slack_price | {"over_share": np.zeros((0, 1))},
    )
    found = conflict.find(problem)
    assert found is not None and found.proven
    assert {side.kind: side.gives for side in found.sides} == {
        "serve": pytest.approx(4.0),
        "capex budget": pytest.approx(8.0),
    }
    assert conflict.find(replace(problem, capex_budget=np.array([20.0]))) is None


@pytest.mark.slow
def test_a_conflict_of_twenty_sites_is_named_and_proven() -> None:
    """Three times the demand that power can carry is named and proven; half of the rent for half as much more can be met."""
    problem = instance(20, 8, 12, 12, 10, seed=1)
    found = conflict.find(replace(problem, demand=problem.demand * 3.0), cpu_limit_s=200.0)
    assert found is not None and found.sides and found.proven
    enough = replace(problem, demand=problem.demand * 1.5, sign_max=problem.sign_max * 0.5)
    assert conflict.find(enough, cpu_limit_s=200.0) is None


def test_where_it_is_stopped_nothing_is_said_to_be_possible() -> None:
    """Stopped before it has looked, it knows neither a conflict nor a way to meet everything, and says so."""
    found = conflict.find(instance(20, 8, 12, 12, 10, seed=0), stop=lambda: True)
    assert found is not None and not found.sides and not found.proven


def test_the_quick_look_at_a_large_request_agrees(monkeypatch: pytest.MonkeyPatch) -> None:
    """First-order steps and one period after another say the same of requests that can and that cannot be met."""
    problem = instance(4, 3, 3, 6, 6, seed=0)
    for factor in (0.5, 1.0, 20.0):
        asked = replace(problem, demand=problem.demand * factor)
        one = conflict.find(asked)
        with monkeypatch.context() as patch:
            patch.setattr(conflict, "_MANY_COLUMNS", 0)
            other = conflict.find(asked)
        assert (one is None) == (other is None)


def test_what_the_first_period_lacks_is_named_in_it_alone() -> None:
    """Racks without end come in the second period: what is impossible in the first, where demand is least, is named there."""
    problem = instance(4, 3, 3, 6, 6, seed=0)
    early = replace(
        problem,
        sign_max=problem.sign_max * 0.0,
        existing=problem.existing * 0.0,
        lead=np.ones_like(problem.lead),
        supply=np.full_like(problem.supply, np.inf),
        shared=np.full_like(problem.shared, np.inf),
        power_mw=problem.power_mw * 1e3,
    )
    assert early.demand.sum(axis=(0, 1)).argmin() == 0
    found = conflict.find(early)
    assert found is not None and found.proven
    assert {side.periods for side in found.sides} == {problem.periods[:1]}


def test_a_rented_site_has_no_power_to_give_way() -> None:
    """A cloud's offer that is too small is named as that, and no power of ours where there is none; what is named clashes."""
    rent = (
        "plan.rent=[{accelerator: h100-sxm, place: frankfurt, operator: c, operator_jurisdiction: DE, "
        "price_per_accelerator_hour: 4, most: 16}]"
    )
    _, problem, plan_map = question(rent)
    found = plan_findings.Findings()
    plan_findings.find_conflict(problem, plan_map, found, lambda: False)
    named = [line.rsplit(", ", 1)[0] for line in found.conflict]
    assert "the offer of rent, c-frankfurt" in named and "serving chat@2000ms/100ms/99% with a site lost" in named
    assert not [
        line for line in found.conflict + found.relax if line.startswith(("the power at c-", "the floor at c-"))
    ]


def test_a_limit_that_cannot_give_way_is_no_side() -> None:
    """With a price of inf on missing it a limit is kept: the demand that it stands against is named alone."""
    problem = instance(4, 3, 3, 6, 6, seed=0)
    asked = replace(problem, demand=problem.demand * 20.0)
    free = conflict.find(asked)
    assert free is not None and "power" in {side.kind for side in free.sides}
    held = replace(asked, slack_price=asked.slack_price | {"short_power": np.full(problem.power_mw.shape, np.inf)})
    found = conflict.find(held)
    assert found is not None and found.proven and "power" not in {side.kind for side in found.sides}
