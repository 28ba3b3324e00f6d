"""What a limit is worth: prices agree with solving anew."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from baseload.plan.explain import Rates, explain, opened
from baseload.plan.generate import instance
from baseload.plan.nearby import Nearby
from baseload.plan.problem import Problem
from baseload.plan.solve import solve
from tests.plan.brute import best_cost
from tests.plan.tiny import tiny


@pytest.fixture(scope="module")
def problem() -> Problem:
    return instance(4, 3, 3, 8, 8, seed=1)


@pytest.mark.slow
def test_prices_are_what_a_little_more_saves(problem: Problem) -> None:
    """A little more power, quota or share saves what its price says, solved anew with the phases kept."""
    answer = solve(problem, gap=0.01)
    near = Nearby(problem, answer)
    base = near.cost()
    assert base is not None and base <= answer.cost * (1.0 + 1e-9)
    rows = explain(problem, answer)
    step = 1e-4
    seen = set()
    for row in rows:
        changed = None
        if row.kind == "power":
            power = problem.power_mw.copy()
            power[problem.sites.index(row.what)] -= step
            bill = problem.minimum_bill[problem.sites.index(row.what)]
            changed = replace(problem, power_mw=power) if bill == 0.0 else None
        elif row.kind == "supply":
            supply = problem.supply.copy()
            supply[problem.kinds.index(row.what), problem.periods.index(row.where[0])] -= step
            changed = replace(problem, supply=supply)
        if changed is not None:
            cost = near.cost(changed)
            assert cost is not None
            assert (cost - base) / step >= row.value * 0.98 - 1e-6 * abs(base)
            seen.add(row.kind)
    assert seen and {"delay", "demand"} <= {row.kind for row in rows}


@pytest.mark.slow
def test_a_week_of_delay_is_what_the_missing_power_costs() -> None:
    """One phase that alone feeds the racks: its delay by a period costs what brute force says."""
    found = 0
    for seed in range(40):
        problem = tiny(seed, 2, 2, 1, 2, 2, 1, 1, host=False, whole=0)
        answer = solve(problem, gap=1e-9)
        rows = [row for row in explain(problem, answer, weeks_per_period=13.0) if row.kind == "delay"]
        for row in rows:
            begin = int(np.flatnonzero(answer.w[0] > 0.5)[0])
            begun = replace(problem, begin_from=np.array([begin]), begin_by=np.array([begin]))
            late = replace(begun, phase_delay=problem.phase_delay + 1)
            assert row.value * 13.0 == pytest.approx(best_cost(late) - best_cost(begun), abs=1e-5)
            found += 1
    assert found


def test_an_opened_jurisdiction_and_a_looser_slo_save(problem: Problem) -> None:
    """Where no loss is to be survived, more sites for a client and racks that carry more never cost more."""
    problem = replace(problem, survive_ratio=np.zeros(len(problem.services)))
    answer = solve(problem, gap=0.01)
    everywhere = opened(problem, range(len(problem.clients)), range(len(problem.sites)))
    assert everywhere.sum() >= problem.allowed.sum()
    rows = explain(
        problem,
        answer,
        openings={"all": everywhere},
        rates=[Rates(name="ttft", looser_ms=100.0, rate=problem.rate * 1.1)],
    )
    by_kind = {row.kind: row for row in rows}
    assert by_kind["SLO"].value > 0.0 and by_kind["SLO"].unit == "ms"
    assert "law" not in by_kind or by_kind["law"].value > 0.0
