"""The plan section: each mistake gets its line, what is wrong and how to mend it; a plan section may be left away."""

from __future__ import annotations

from datetime import date

import pytest

from baseload.errors import FleetError, Problem
from baseload.fleet import check
from baseload.fleet.load import loads
from baseload.fleet.planning import Plan, grown, quarters_from, years_after
from baseload.policies import KINDS

GOOD = """\
baseload: 1
name: good
sites:
  frankfurt:
    place: frankfurt
    grid:
      - {power_mw: 0.2, contracted: 2022-01-01, energised: 2023-01-01}
      - {power_mw: 0.2, announced: 2026-03-01, until: 2040-01-01}
    contracts: [{power_mw: 0.2, price_per_mwh: 90}]
    racks: {h: {accelerator: h100-sxm, accelerators_per_rack: 8, racks: 4}}
models: {chat: {catalog: llama-3.1-8b}}
deployments: {chat: {model: chat, accelerator: h100-sxm, sites: {frankfurt: {min: 4}}}}
tenants:
  eu: {residency: [EU]}
demand: {trace: azure-conv}
plan:
  start: 2027-01-01
  demand: {growth_per_year: 0.3, tenants: {eu: {per_year: 0.5}}}
  buy: [{accelerator: h100-sxm, sites: [frankfurt]}]
  begin: [{site: frankfurt, phase: 1, cost_to_begin: 1e5}]
  rent: [{accelerator: h100-sxm, place: frankfurt}]
"""


def found(old: str = "", new: str = "", *overrides: str) -> list[Problem]:
    """Return the problems of GOOD with one change."""
    assert old in GOOD
    return check.problems(loads(GOOD.replace(old, new, 1), file="f.yaml", overrides=overrides), policies=KINDS)


def test_a_plan_section_that_holds_has_no_problems():
    """The section that the other tests break is whole."""
    assert found() == []
    check.require_plannable(loads(GOOD), policies=KINDS)


@pytest.mark.parametrize(
    ("old", "new", "line", "what"),
    [
        ("{eu: {per_year", "{uk: {per_year", 18, "there is no tenant `uk`"),
        ("sites: [frankfurt]", "sites: [oslo]", 19, "there is no site `oslo`"),
        ("buy: [{accelerator: h100-sxm", "buy: [{accelerator: h1000", 19, "has no accelerator"),
        ("buy: [{accelerator: h100-sxm", "buy: [{accelerator: gb200", 19, "needs liquid"),
        ("sites: [frankfurt]", "accelerators_per_rack: 12", 19, "not whole servers of 8"),
        ("[frankfurt]}]", "[frankfurt]}, {accelerator: h100, lead_weeks: 9}]", 19, "the accelerator of buy[0] again"),
        ("phase: 1", "phase: 0", 20, "it is begun already"),
        ("phase: 1", "phase: 7", 20, "has no phase 7"),
        ("phase: 1, ", "", 20, "names neither a phase nor MW"),
        ("phase: 1", "phase: 1, power_mw: 2", 20, "both say how much"),
        ("phase: 1", "phase: 1, not_before: 2025-01-01", 20, "before the phase was announced"),
        ("phase: 1", "phase: 1, not_before: 2041-01-01", 20, "the phase is gone from 2040-01-01 on"),
        ("cost_to_begin: 1e5}", "cost_to_begin: 1e5}, {site: frankfurt, phase: 1}", 20, "again"),
        ("place: frankfurt}]", "place: atlantis}]", 21, "has no place"),
        ("place: frankfurt}]", "place: frankfurt, kind: spot}]", 21, "has no spot price"),
        ("place: frankfurt}]", "place: frankfurt, interruptions_per_hour: 1}]", 21, "are not taken away"),
        ("place: frankfurt}]", "place: frankfurt, operator_jurisdiction: EU}]", 21, "is no country"),
        (
            "frankfurt}]",
            "frankfurt, operator_jurisdiction: DE}, {accelerator: l40s, place: frankfurt}]",
            21,
            "law of US",
        ),
    ],
)
def test_each_mistake_has_its_line(old: str, new: str, line: int, what: str):
    """Unknown names, contradictory dates and prices nobody knows are found where they stand."""
    problems = found(old, new)
    assert [problem for problem in problems if problem.line == line and what in problem.what], problems


@pytest.mark.parametrize(
    ("override", "what"),
    [
        ("plan.shares.jurisdiction=0.4", "does not add up to a whole"),
        ("plan.demand.load_blocks=[{hours_ratio: 0.5, of_peak: 1}]", "adds up to 0.5"),
        ("plan.demand.load_blocks=[{hours_ratio: 1, of_peak: 0}]", "no block has any load"),
        ("plan.budgets.capex_by_year={soon: 5}", "is no year"),
    ],
)
def test_limits_that_cannot_be_kept_are_found(override: str, what: str):
    """Shares below an even split, load blocks that leave hours out, and budgets of no year."""
    assert any(what in problem.what for problem in found("", "", override))


def test_negative_money_is_refused():
    """A price below nothing never reaches the planner."""
    for key in (
        "plan.begin.0.cost_to_begin",
        "plan.rent.0.price_per_accelerator_hour",
        "plan.budgets.capex_by_year.2027",
    ):
        with pytest.raises(FleetError, match=r"-5|>= 0"):
            loads(GOOD, overrides=[f"{key}=-5"])


def test_what_is_written_off_lasts_at_least_a_quarter():
    """A life below a quarter of a year, or beyond a century, is no life that a plan can reckon with."""
    for key in ("money.accelerator_life_years", "money.facility_life_years"):
        for years in ("1e-9", "0.2", "101"):
            with pytest.raises(FleetError, match="is out of range"):
                loads(GOOD, overrides=[f"{key}={years}"])


def test_a_tenant_whom_nobody_may_ever_serve_stands_in_the_way_of_a_plan():
    """Neither a declared site nor an offer lies where their data may sit: the line of the tenant, and the mend."""
    text = GOOD.replace(
        "{residency: [EU]}", "{residency: [EU]}\n  far: {share: 0, residency: [NZ], models: {chat: 0.0001}}"
    )
    with pytest.raises(FleetError) as caught:
        check.require_plannable(loads(text, file="f.yaml"), policies=KINDS)
    assert any("far" in problem.key for problem in caught.value.problems)


def test_growth_and_quarters():
    """Growth is compounded by tenant, nothing before the start; quarters begin with the first whole one."""
    plan = loads(GOOD).fleet.plan
    assert plan is not None
    assert grown(plan, "eu", 2.0) == pytest.approx(2.25) and grown(plan, "other", 1.0) == pytest.approx(1.3)
    assert grown(Plan(), "eu", -1.0) == 1.0
    assert years_after(plan, date(2026, 1, 1)) == 0.0
    assert quarters_from(date(2027, 1, 1), 2) == [date(2027, 1, 1), date(2027, 4, 1)]
    assert quarters_from(date(2027, 1, 2), 1) == [date(2027, 4, 1)]
