"""Racks that stand where no power flows yet: nobody decides about them, and the books count them all the same."""

from __future__ import annotations

import pytest

from baseload.app import plan_report
from baseload.plan import money, solve
from tests.plan.test_plan_problem import question


def books(*overrides: str) -> tuple[money.Books, money.Worth, float]:
    """Return the books of the answer, what they are worth, and how many racks find no power."""
    _, problem, plan_map = question(*overrides)
    answer = solve.solve(problem, cpu_limit_s=20.0)
    terms = plan_report.terms_of(plan_map)
    kept = plan_report.books(problem, answer, plan_map, terms)
    return kept, money.worth(kept, terms), float(plan_map.dark.sum())


def test_racks_without_power_cost_what_they_cost_with_it_and_are_idle():
    """When power comes a year later, space, upkeep and capital of what stands stay as they are, and are told as idle."""
    small = ("demand.scale=0.2", "sites.frankfurt.floor_m2=20", "sites.oslo.colocation_per_kw_month=100")
    lit, lit_worth, none = books(*small)
    dark, dark_worth, some = books(*small, "sites.oslo.grid=[{power_mw: 0.3, energised: 2028-06-01}]")
    assert none == 0.0 and some > 0.0
    for name in ("space", "upkeep", "people and other"):
        assert dark.running[name] == pytest.approx(lit.running[name]), name
    assert dark.capital_charge == pytest.approx(lit.capital_charge)
    assert dark.running["energy"].sum() < lit.running["energy"].sum()
    assert dark.busy_ratio == pytest.approx(lit.busy_ratio, rel=0.1)
    assert dark_worth.idle_cost == pytest.approx(lit_worth.idle_cost, rel=0.1)
