"""What a plan is worth: its figures recomputed from its cash alone, and what they leave out is said."""

from __future__ import annotations

from dataclasses import replace

import msgspec
import numpy as np
import pytest
from scipy.optimize import brentq

from baseload.app import plan_findings, plan_report, plan_rows, plan_verb, plan_whole
from baseload.app.plan_verb import Asked
from baseload.plan import alternatives, money, solve
from baseload.report import plan_html, plan_text, words
from baseload.report.plan_model import PlanReport
from tests.plan.test_plan_problem import question

TERMS = money.Terms(
    wacc=0.1, tax_ratio=0.4, resale_ratio=0.5, it_life_years=5.0, facility_life_years=20.0, load_ratio=0.5,
    tokens_per_request=1000.0,
)  # fmt: skip


def books(income: list[float], spent: list[float], running: list[float], salvage: float = 0.0) -> money.Books:
    """Return books with cash as given, and nothing written off."""
    none = np.zeros(len(income))
    return money.Books(
        capex={"racks": np.array(spent)}, running={"energy": np.array(running)}, income=np.array(income),
        capital_charge=none, salvage=salvage, book=salvage, depreciation=none, mtok=none, it_mwh=none, carbon_t=none,
        carbon_market_t=none, water_m3=none, busy_ratio=none,
    )  # fmt: skip


def test_a_plan_that_is_never_in_the_red_needs_no_payback_and_has_no_rate():
    """Income in each quarter, tax in the last of the year above that quarter's: gain, paid back at once, no rate of return."""
    kept = books(income=[100.0] * 8, spent=[0.0] * 8, running=[20.0] * 8)
    worth = money.worth(kept, TERMS)
    assert worth.cash.tolist() == [80.0, 80.0, 80.0, 80.0 - 0.4 * 320.0] * 2
    assert worth.npv > 0.0 and worth.irr is None and worth.payback_years == 0.0
    out_of_income = money.worth(books(income=[100.0] * 8, spent=[60.0, *[0.0] * 7], running=[20.0] * 8), TERMS)
    assert out_of_income.cash.min() < 0.0 and out_of_income.irr is None and out_of_income.payback_years == 0.0


def test_an_investment_is_paid_back_and_has_one_rate():
    """Balance by quarter: -100, -60, -20, 20: back in the middle of the fourth; at the rate of return nothing is left."""
    kept = books(income=[0.0, 40.0, 40.0, 40.0], spent=[100.0, 0.0, 0.0, 0.0], running=[0.0] * 4)
    plain = replace(TERMS, wacc=0.0, tax_ratio=0.0)
    assert money.worth(kept, plain).payback_years == pytest.approx(3.5 / 4.0)
    rate = money.worth(kept, plain).irr
    assert rate is not None and rate == pytest.approx(brentq(lambda r: discounted(r) - 100.0, 0.0, 10.0))
    assert money.worth(kept, replace(plain, wacc=rate)).npv == pytest.approx(0.0, abs=1e-6)
    assert money.worth(kept, replace(plain, wacc=rate + 0.01)).payback_years is None


def discounted(rate: float) -> float:
    """Return what 40 in the middle of each quarter but the first are worth."""
    return sum(40.0 * (1.0 + rate) ** -((t + 0.5) / 4.0) for t in (1, 2, 3))


def test_present_value_is_counted_from_when_money_flows():
    """Racks are paid on the first day of a quarter, income and running cost come in its middle, resale at the horizon."""
    kept = books(income=[0.0, 60.0], spent=[100.0, 0.0], running=[5.0, 10.0], salvage=30.0)
    worth = money.worth(kept, replace(TERMS, tax_ratio=0.0))
    assert worth.npv == pytest.approx(-100.0 - 5.0 / 1.1**0.125 + 50.0 / 1.1**0.375 + 30.0 / 1.1**0.5)
    assert worth.cash.tolist() == [-105.0, 80.0]
    assert money.worth(kept, replace(TERMS, tax_ratio=0.0, wacc=0.0)).npv == pytest.approx(-25.0)


def reported(*overrides: str) -> PlanReport:
    """Return the report of a fleet in which all are served."""
    loaded, problem, plan_map = question("demand.scale=0.7", *overrides, quarters=6)
    answer = solve.solve(problem, gap=0.01, cpu_limit_s=20.0)
    table = plan_rows.modelled_table(loaded.fleet, plan_map.asked)
    asked = Asked(loaded=loaded, problem=problem, plan_map=plan_map, table=table, answer=answer)
    return plan_verb.reported(asked, plan_findings.Findings())[0]


def test_without_tax_a_plan_is_worth_its_income_less_its_cost():
    """NPV is the income of the table by quarter, discounted, less the headline's cost less what is said to be not in it."""
    report = reported("money.opex_per_year=50000", "plan.tax_ratio=0")
    assert report.meets and report.missed < 1e-6 and report.worth.invested > 0.0
    middle = 1.1 ** -((np.arange(6) + 0.5) / 4.0)
    income_per_s = report.years.income[0] / sum(one.served_per_s for one in report.by_quarter[:4])
    income = sum(income_per_s * one.served_per_s * now for one, now in zip(report.by_quarter, middle, strict=True))
    assert report.fixed == pytest.approx(12_500.0 * middle.sum())
    assert report.worth.npv == pytest.approx(income - report.cost - report.fixed, rel=1e-6)


def test_what_the_headline_leaves_out_is_said_beside_it():
    """People and other fixed cost, in words with the amount, on the terminal and the page; nothing where there is none."""
    report = reported("money.opex_per_year=50000", "plan.tax_ratio=0.25")
    said = f"(people and other fixed cost, {words.money(report.fixed, 'USD')}, not in it)"
    assert report.fixed == pytest.approx(0.75 * 12_500.0 * (1.1 ** -((np.arange(6) + 0.5) / 4.0)).sum())
    assert said in plan_text.verdict(report)[0] and said in plan_html.to_html(report)
    assert plan_html.to_html(report).count("people and other fixed cost") == 2
    assert "fixed cost" not in plan_text.to_text(msgspec.structs.replace(report, fixed=0.0))


BLOCK = (
    "plan.colocation=[{site: frankfurt, power_mw: 0.05, months: 6, price_per_kw_month: 20, take_or_pay_ratio: 0.85}]"
)


@pytest.mark.parametrize(("begun", "dark"), [(0, "2027-Q2"), (1, "2027-Q3")])
def test_a_phase_is_dark_until_the_quarter_before_its_power(begun: int, dark: str):
    """A block of half a year: `until` of the decision names the last quarter without power, within the horizon."""
    _, problem, plan_map = question(BLOCK, "demand.scale=0.2")
    answer = solve.solve(problem, gap=0.01, cpu_limit_s=20.0)
    p = next(p for p, one in enumerate(plan_map.phases) if one.kind == "colocation")
    w = answer.w.copy()
    w[p] = np.arange(4) >= begun
    made = replace(answer, w=w)
    rows = plan_report.decisions(problem, made, plan_map, plan_whole.whole(problem, made, plan_map))
    assert [one.until for one in rows if one.action == "begin"] == [dark]


def test_a_phase_that_comes_after_the_horizon_is_no_decision():
    """Begun for nothing in the third quarter of four, with power half a year later: no less of it, and no change."""
    loaded, problem, plan_map = question(BLOCK, "demand.scale=0.2")
    answer = solve.solve(problem, gap=0.01, cpu_limit_s=20.0)
    p = next(p for p, one in enumerate(plan_map.phases) if one.kind == "colocation")
    w, w_soon = answer.w.copy(), answer.w.copy()
    w[p], w_soon[p] = [0.0, 0.0, 1.0, 1.0], [0.0, 1.0, 1.0, 1.0]
    late, soon = replace(answer, w=w), replace(answer, w=w_soon)
    assert not [aim for aim in alternatives.aims(problem, late) if aim.unit == "MW"]
    fewer = next(aim for aim in alternatives.aims(problem, soon) if aim.unit == "MW")
    assert fewer.of(soon) == pytest.approx(problem.phase_mw[p]) and fewer.of(late) == 0.0
    table = plan_rows.modelled_table(loaded.fleet, plan_map.asked)
    none, begun, with_power = (
        Asked(loaded=loaded, problem=problem, plan_map=plan_map, table=table, answer=one)
        for one in (answer, late, soon)
    )
    assert plan_findings.what_changed(none, begun)[-1] == "what is bought, rented and begun stays the same"
    assert f"{problem.phases[p]}: begun in 2027-Q2, before not begun" in plan_findings.what_changed(none, with_power)


@pytest.mark.parametrize("survive", [1.0, 0.0])
def test_busy_is_what_the_served_demand_needs(survive: float):
    """Requests at mean load over what all racks carry, whether or not racks are held for the loss of a site."""
    small = ("demand.scale=0.3", "tenants.all.share=9", f"plan.survive.ratio={survive}")
    _, problem, plan_map = question(*small)
    answer = solve.solve(problem, gap=0.01, cpu_limit_s=20.0)
    assert problem.rate.shape == (1, 1) and answer.buy.sum() == 0.0 and answer.unserved.max() < 1e-6
    needed = problem.demand.sum(axis=(0, 1)) / problem.rate[0, 0]
    kept = plan_report.books(problem, answer, plan_map, plan_report.terms_of(plan_map))
    assert kept.busy_ratio == pytest.approx(needed / 4.0 / 1.5)
    held = answer.put.sum(axis=(0, 1, 2)) / needed
    assert held == pytest.approx(1.8 if survive else 1.0, rel=1e-3)


def test_a_what_if_tells_fixed_cost_beside_the_cost():
    """Higher wages change no decision and not the cost, but are told: a year of 40,000 more, discounted."""
    pair = []
    for wages in ("0", "40000"):
        loaded, problem, plan_map = question(
            "demand.scale=0.2", f"sites.oslo.staff_cost_per_year={wages}", "plan.tax_ratio=0"
        )
        answer = solve.solve(problem, gap=0.01, cpu_limit_s=20.0)
        table = plan_rows.modelled_table(loaded.fleet, plan_map.asked)
        pair.append(Asked(loaded=loaded, problem=problem, plan_map=plan_map, table=table, answer=answer))
    more = sum(10_000.0 * 1.1 ** -((t + 0.5) / 4.0) for t in range(4))
    told = plan_findings.what_changed(*pair)
    assert told[0].startswith("the cost stays at") and told[-1] == "what is bought, rented and begun stays the same"
    assert f"not in it, of people and other fixed cost: {words.number(more, 'USD')} more" in told
