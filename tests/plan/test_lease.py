"""Racks that are leased: they stand on a site's own power, cost by the month and go back when their term ends."""

from __future__ import annotations

from dataclasses import replace
from functools import cache

import numpy as np
import pytest

from baseload.app import plan_fleet, plan_report, plan_whole
from baseload.app.plan_map import PlanMap
from baseload.errors import FleetError
from baseload.fleet import check
from baseload.fleet.load import Loaded, loads
from baseload.formulas.money import capital_recovery_factor
from baseload.plan import check_answer, money, solve
from baseload.plan.problem import Answer, Problem
from baseload.policies import KINDS
from tests.plan.test_plan_problem import FLEET, question

HOURS_PER_QUARTER = 8760.0 / 4.0
MONTH = 700.0  # of an accelerator
LEASE = f"plan.lease=[{{accelerator: h100-sxm, price_per_accelerator_month: {MONTH}, term_months: 10, lead_weeks: 13}}]"
BUY = "plan.buy=[{accelerator: h100-sxm, lead_weeks: 13}]"
DEAR = LEASE.replace(str(MONTH), "20000")


@cache
def answered(*overrides: str, quarters: int = 8) -> tuple[Loaded, Problem, PlanMap, Answer]:
    """Return the problem with its answer."""
    loaded, problem, plan_map = question(*overrides, quarters=quarters)
    return loaded, problem, plan_map, solve.solve(problem, gap=0.002, cpu_limit_s=20.0)


def test_the_cash_of_decisions_is_that_of_the_books():
    """Racks, leases, rent and colocation: what is taken or paid for by the quarter is told where it is decided."""
    block = "plan.colocation=[{site: frankfurt, power_mw: 0.05, months: 6, price_per_kw_month: 20, take_or_pay_ratio: 0.85}]"
    rent = "plan.rent=[{accelerator: h100-sxm, place: oslo, price_per_accelerator_hour: 2}]"
    _, problem, plan_map, answer = answered(BUY, LEASE, block, rent)
    p = next(p for p, one in enumerate(plan_map.phases) if one.kind == "colocation")
    w, buy, sign = answer.w.copy(), np.ones_like(answer.buy), np.zeros_like(answer.sign)
    w[p] = [0.0, *([1.0] * 7)]  # begun in the second quarter, with power from the fourth
    sign[problem.sites.index("cloud-oslo"), :, 0, 3] = 0.3
    made = replace(answer, w=w, buy=buy, sign=sign)
    rows = plan_report.decisions(problem, made, plan_map, plan_whole.whole(problem, made, plan_map))
    books = money.books(problem, made, plan_map.prices, plan_report.terms_of(plan_map))
    assert [one.cash for one in rows if one.what == plan_map.phases[p].name] == [
        pytest.approx(5 * 3 * 50.0 * 20.0 * 0.85)
    ]
    assert books.running["rent"].sum() > 0.0
    spent = books.spent.sum() + books.running["rent"].sum() + books.running["grid and colocation"].sum()
    assert sum(one.cash for one in rows) == pytest.approx(spent)


def test_a_lease_is_a_kind_of_rack_with_a_term():
    """Same power, floor and work as its accelerator otherwise; no price at the order, its months while it stands."""
    _, problem, plan_map = question(BUY, LEASE, "sites.frankfurt.facility_capex_per_kw=8000", quarters=8)
    own, leased = problem.kinds.index("h100-sxm"), problem.kinds.index("h100-sxm leased 10 months")
    assert problem.rack_mw[:, own].tolist() == problem.rack_mw[:, leased].tolist()
    assert problem.rate[own].tolist() == problem.rate[leased].tolist()
    assert (int(problem.lead[leased]), int(problem.life[leased])) == (1, 4)
    assert problem.cost_buy[:, leased].max() == 0.0 and problem.spend_buy[:, leased].max() == 0.0
    assert problem.spend_buy[0, own].min() > 0.0 and problem.existing[:, leased].sum() == 0.0
    terms, site = plan_map.fleet.money, plan_map.fleet.sites["frankfurt"]
    rack_kw = float(problem.rack_mw[0, leased]) * 1000.0 / 1.25
    building = 8000.0 * rack_kw * capital_recovery_factor(terms.wacc, terms.facility_life_years) / 4.0
    upkeep = float(plan_map.prices.owned_upkeep[0, own, 0])
    more = 3.0 * 8 * MONTH + building - upkeep
    got = (problem.cost_owned[0, leased] - problem.cost_owned[0, own]) * plan_map.money_unit
    assert site.colocation_per_kw_month == 0.0
    assert got == pytest.approx(more * plan_map.discount * (1.0 - plan_map.plan.tax_ratio), rel=1e-9)


@pytest.mark.parametrize(("offers", "bought", "leased"), [((BUY, LEASE), False, True), ((BUY, DEAR), True, False)])
def test_the_cheaper_of_both_is_taken(offers: tuple[str, ...], bought: bool, leased: bool):
    """Two years at 700 a month cost less than a purchase; at 20,000 a month nobody leases."""
    _, problem, _, answer = answered(*offers)
    own, lease = problem.kinds.index("h100-sxm"), problem.kinds.index("h100-sxm leased 10 months")
    assert (answer.buy[:, own].sum() > 0.0) == bought and (answer.buy[:, lease].sum() > 0.0) == leased
    assert check_answer.check(problem, answer) == []


def test_what_is_leased_is_paid_by_the_month_and_goes_back():
    """The books hold months times price for each rack while it stands; the fleet file has its last day and its rent."""
    loaded, problem, plan_map, answer = answered("plan.buy=[]", LEASE)
    whole = plan_whole.whole(problem, answer, plan_map)
    assert whole.bought.sum() > 0
    owned, _ = money.owned_racks(problem, answer.buy)
    leased = problem.kinds.index("h100-sxm leased 10 months")
    rent = (plan_map.prices.owned_lease * owned).sum(axis=(0, 1))
    assert rent == pytest.approx(owned[:, leased].sum(axis=0) * 8 * 3 * MONTH)
    planned = loads(plan_fleet.planned_fleet(loaded, problem, answer, plan_map), file="planned.yaml")
    assert check.problems(planned, policies=KINDS, day=plan_map.days[5]) == []
    racks = [rack for site in planned.fleet.sites.values() for name, rack in site.racks.items() if "leased" in name]
    assert sum(rack.racks for rack in racks) == int(whole.bought.sum())
    for rack in racks:
        assert rack.rent_per_accelerator_hour == pytest.approx(3.0 * MONTH / HOURS_PER_QUARTER, rel=1e-5)
        assert rack.until is None or (rack.until - rack.in_service).days in range(364, 367)
    assert np.all(np.array([rack.in_service >= plan_map.days[1] for rack in racks]))
    told = plan_report.decisions(problem, answer, plan_map, whole)
    orders = [one for one in told if one.action == "lease"]
    assert sum(one.amount for one in orders) == whole.bought.sum() and not [one for one in told if one.action == "buy"]
    first = orders[0]
    assert first.cash == pytest.approx(
        first.amount * 8 * 3 * MONTH * min(4, 8 - 1 - problem.periods.index(first.quarter))
    )


@pytest.mark.parametrize(
    ("lease", "words"),
    [
        ("{accelerator: h100-sxm, price_per_accelerator_month: -1}", "price_per_accelerator_month"),
        ("{accelerator: h100-sxm}", "price_per_accelerator_month"),
        ("{accelerator: h999, price_per_accelerator_month: 1}", "h999"),
        ("{accelerator: h100-sxm, price_per_accelerator_month: 1, sites: [paris]}", "paris"),
        ("{accelerator: h100-sxm, price_per_accelerator_month: 1, term_months: 0}", "term_months"),
        ("{accelerator: h100-sxm, price_per_accelerator_month: 1, accelerators_per_rack: 12}", "servers"),
    ],
)
def test_a_lease_that_cannot_be_is_told(lease: str, words: str):
    """With its line and what to do."""
    told = ""
    try:
        loaded = loads(FLEET, file="two.yaml", overrides=[f"plan.lease=[{lease}]"])
        told = "\n".join(str(problem) for problem in check.problems(loaded, policies=KINDS))
    except FleetError as error:
        told = str(error)
    assert words in told


def test_a_quota_below_one_rack_is_told():
    """Four accelerators a quarter never fill a rack of eight."""
    four = LEASE.replace("lead_weeks: 13", "lead_weeks: 13, most_per_quarter: 4")
    loaded = loads(FLEET, file="two.yaml", overrides=[four])
    assert any("less than one rack of 8" in one for one in map(str, check.warnings(loaded)))
