"""A fleet file becomes arrays: power, law, latency, export, prices and tax are the file's, and the way back is whole."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import date
from functools import cache

import msgspec
import numpy as np
import pytest

from baseload.app import (
    plan_demand,
    plan_fleet,
    plan_prices,
    plan_problem,
    plan_report,
    plan_risk,
    plan_rows,
    plan_whole,
)
from baseload.app.plan_map import PlanMap
from baseload.app.plan_verb import Asked
from baseload.fleet import check, dates
from baseload.fleet.load import Loaded, loads
from baseload.fleet.planning import Plan
from baseload.formulas import contracts
from baseload.plan import check_answer, solve
from baseload.plan.problem import Answer, Problem
from baseload.plan.table import ReplicaTable
from baseload.policies import KINDS

TODAY = date(2026, 11, 21)
FLEET = """\
baseload: 1
name: two
money: {wacc: 0.1, accelerator_life_years: 5, maintenance_ratio_per_year: 0.02}
sites:
  frankfurt:   # a comment that stays
    place: frankfurt
    redundancy: N+1
    power_modules: 4
    grid:
      - {power_mw: 0.2, announced: 2021-01-01, contracted: 2022-01-01, energised: 2023-01-01}
      - {power_mw: 0.1, announced: 2025-01-01}
    contracts: &terms
      - {power_mw: 0.3, price_per_mwh: 90, demand_charge_per_kw_month: 10, minimum_bill_ratio: 0.6}
    cooling: {pue: 1.25}
    racks: {h: {accelerator: h100-sxm, accelerators_per_rack: 8, racks: 2}}
  oslo:
    place: oslo
    operator_jurisdiction: US
    contracts: *terms
    cooling: {pue: 1.25}
    racks: {h: {accelerator: h100-sxm, accelerators_per_rack: 8, racks: 2}}
models: {chat: {catalog: llama-3.1-8b}}
deployments:
  chat: {model: chat, accelerator: h100-sxm, precision: fp8, sites: {frankfurt: {min: 8}, oslo: {min: 8}}}
regions: {north: {place: stockholm}, far: {place: sydney}}
tenants:
  all: {share: 1, regions: {north: 1}, price: {input_per_mtok: 1, output_per_mtok: 2}}
  eu: {share: 1, residency: [EU], sovereignty: [EU], regions: {north: 1}, price: {output_per_mtok: 2}}
demand:
  generator: {kind: poisson, requests_per_s: 500, duration_s: 60, length_cv: 0, input_tokens: 1000, output_tokens: 200}
plan:
  rent: []
  demand: {growth_per_year: 0.5, peak_to_mean: 1.5}
"""


def question(*overrides: str, text: str = FLEET, quarters: int = 4) -> tuple[Loaded, Problem, PlanMap]:
    """Return the problem of the fleet with some keys otherwise."""
    loaded = loads(text, file="two.yaml", overrides=overrides)
    asked = plan_demand.traffic(loaded, loaded.fleet.plan or Plan())
    table = plan_rows.modelled_table(loaded.fleet, asked)
    problem, plan_map = plan_problem.plan_problem(loaded, table, quarters=quarters, today=TODAY)
    return loaded, problem, plan_map


@cache
def answered(overrides: Sequence[str] = (), quarters: int = 6) -> tuple[Loaded, Problem, PlanMap, Answer]:
    """Return the problem with its answer."""
    loaded, problem, plan_map = question(*overrides, quarters=quarters)
    return loaded, problem, plan_map, solve.solve(problem, gap=0.01, cpu_limit_s=20.0)


def test_power_is_what_redundancy_and_the_peak_pue_leave():
    """Drawable MW times three quarters at N+1; a rack draws its full load times the PUE of the hottest hour."""
    _, problem, _ = question()
    assert problem.power_mw[0, 0] == pytest.approx(0.2 * 0.75)
    assert problem.power_mw[1, 0] == pytest.approx(0.3)
    assert problem.rack_mw[0, 0] == pytest.approx(8 * 0.95 * 1.25 / 1000.0)
    assert problem.billed_least is not None  # of what is contracted, energised or not
    assert problem.billed_least[0].tolist() == pytest.approx([0.6 * 0.3] * 4)


def test_terms_are_those_of_the_contracts_in_force():
    """Energy, demand charge, minimum bill and green power follow the contracts from quarter to quarter."""
    first = "{power_mw: 0.3, price_per_mwh: 100, demand_charge_per_kw_month: 5, until: 2027-07-01}"
    then = "{power_mw: 0.2, price_per_mwh: 300, demand_charge_per_kw_month: 15, minimum_bill_ratio: 0.5, green_ratio: 1"
    _, problem, plan_map = question(f"sites.oslo.contracts=[{first}, {then}, start: 2027-07-01}}]")
    prices, later = plan_map.prices, [plan_map.days[t] >= date(2027, 7, 1) for t in range(4)]
    assert any(later) and not all(later)
    per_mwh = prices.owned_energy[1, 0] / prices.owned_mwh[1, 0] / 1.25
    assert per_mwh.tolist() == pytest.approx([300.0 if on else 100.0 for on in later])
    assert prices.demand_charge[1].tolist() == pytest.approx([45_000.0 if on else 15_000.0 for on in later])
    assert problem.billed_least is not None
    assert problem.billed_least[1].tolist() == pytest.approx([0.1 if on else 0.0 for on in later])
    assert problem.power_mw[1].tolist() == pytest.approx([0.2 if on else 0.3 for on in later])
    making = plan_map.fleet.money.embodied_kg_per_accelerator * 8 / 1000.0 / 20
    green = prices.carbon_market_owned[1, 0] <= making * (1.0 + 1e-9)
    assert green.tolist() == later


def test_a_contract_that_ends_goes_on_unless_another_follows_it():
    """One of two parallel contracts that ends is renewed like a single one; one with a successor ends; or the plan says no."""
    both = "{power_mw: 0.1, price_per_mwh: 90, until: 2027-07-01}, {power_mw: 0.2, price_per_mwh: 90"
    _, parallel, _ = question(f"sites.oslo.contracts=[{both}}}]")
    assert parallel.power_mw[1].tolist() == pytest.approx([0.3] * 4)
    _, followed, _ = question(f"sites.oslo.contracts=[{both}, start: 2027-05-01}}]")
    assert followed.power_mw[1].tolist() != pytest.approx([0.3] * 4) and followed.power_mw[1, -1] == pytest.approx(0.2)
    _, late, _ = question(f"sites.oslo.contracts=[{both}, start: 2027-10-01}}]")
    assert late.power_mw[1].min() == pytest.approx(0.1), "it goes on until the other begins"
    _, left, _ = question(f"sites.oslo.contracts=[{both}}}]", "plan.renew_contracts=false")
    assert left.power_mw[1, -1] == pytest.approx(0.2)


def test_a_block_costs_what_is_used_of_it_and_at_least_what_is_taken():
    """Take or pay: the larger of what is drawn and the part that is paid even when unused, at the block's price."""
    block = "{site: oslo, power_mw: 0.2, price_per_kw_month: 100, take_or_pay_ratio: 0.1, months: 0}"
    _, problem, plan_map = question(
        f"plan.colocation=[{block}]", "sites.oslo.contracts=[{power_mw: 0.01, price_per_mwh: 90}]", "sites.oslo.racks={}",
        "deployments.chat.sites={frankfurt: {min: 8}}", "sites.frankfurt.contracts=[{power_mw: 0.02, price_per_mwh: 90}]",
        quarters=6,
    )  # fmt: skip
    answer = solve.solve(problem, gap=0.01, cpu_limit_s=20.0)
    assert not check_answer.check(problem, answer)
    block_at = [one.kind for one in plan_map.phases].index("colocation")
    live = np.concatenate([np.zeros(int(problem.phase_delay[block_at])), answer.w[block_at]])[: answer.w.shape[1]]
    drawn = check_answer.derived(problem, answer).draw_mw[1]
    assert live.any() and (drawn > 0.01 + 0.1 * 0.2).any(), "so that more is used than is paid anyway"
    due = live * np.maximum(drawn - 0.01, 0.1 * 0.2) * 1000.0 * 100.0 * 3.0
    kept = plan_report.books(problem, answer, plan_map, plan_report.terms_of(plan_map))
    assert kept.running["grid and colocation"].tolist() == pytest.approx(due.tolist(), rel=1e-6)


def test_what_pays_for_training_is_no_income_of_a_plan_that_leaves_its_cost_out():
    """A tenant who asks for no tokens and commits to money counts where nothing trains, and is named where something does."""
    lab = "tenants.lab={share: 0, committed_per_month: 1000}"
    job = "sites.oslo.training={run: {accelerator: h100-sxm, accelerators: 8}}"
    _, _, idle = question(lab)
    _, _, trains = question(lab, job)
    assert [least for clients, least in plan_report.terms_of(idle).committed if not clients] == [3000.0]
    assert not [clients for clients, _ in plan_report.terms_of(trains).committed if not clients]
    (said,) = plan_report.scope(trains)
    assert "lab" in said and "12,000 USD a year" in said and not plan_report.scope(idle)


def test_recurring_curtailment_and_the_cooling_plant_cap_power():
    """A limit that comes every day, and a plant that takes less, bound what racks may draw, phases included."""
    _, curtailed, _ = question("sites.frankfurt.power_limits=[{start_h: 8, until_h: 12, every_h: 24, power_mw: 0.05}]")
    _, cooled, plan_map = question("sites.frankfurt.cooling.capacity_mw=0.13")
    assert curtailed.power_mw[0].tolist() == pytest.approx([0.05] * 4)
    assert cooled.power_mw[0, 0] == pytest.approx(0.15)
    assert plan_map.phases[0].usable_mw == pytest.approx(0.13 * 1.25 - 0.15)


def test_an_announced_phase_may_be_begun_and_takes_its_median_time():
    """A phase without an agreement is a decision; one with an agreement goes on by itself; an energised one is there."""
    _, problem, plan_map = question()
    (phase,) = plan_map.phases
    assert (phase.site, phase.index, phase.begun) == ("frankfurt", 1, False)
    assert phase.cost_to_begin == pytest.approx(100.0 * 200.0)
    assert int(problem.begin_by[0]) == 4
    _, under_way, other = question("sites.frankfurt.grid.1.contracted=2026-01-01")
    assert other.phases[0].begun and int(under_way.begin_by[0]) == 0
    assert other.phases[0].periods < phase.periods


def test_who_may_be_served_where_is_law_and_network():
    """Residency and the operator's law keep a tenant out of a site; so does a round trip beyond the table's."""
    _, problem, plan_map = question()
    names = [client.name for client in plan_map.clients]
    assert problem.allowed[names.index("all in north"), :, 0].tolist() == [True, True]
    assert problem.allowed[names.index("eu in north"), :, 0].tolist() == [True, False]
    loaded = loads(FLEET)
    table = plan_rows.modelled_table(loaded.fleet, plan_demand.traffic(loaded, Plan()))
    near = ReplicaTable.of(msgspec.structs.replace(row, network_ms=40.0) for row in table.rows)
    close, _ = plan_problem.plan_problem(loaded, near, quarters=1, today=TODAY)
    assert close.allowed[names.index("all in north"), :, 0].tolist() == [True, False]  # Oslo lies behind the gateway


def test_an_offer_farther_away_than_any_site_may_serve():
    """The modelled table leaves room for the round trip to rented accelerators too, up to half of the promise, no more."""
    rent = "plan.rent=[{accelerator: h100-sxm, place: madrid}, {accelerator: h100-sxm, place: sydney}]"
    for ttft_ms, served in ((400, [True, False]), (2000, [True, True]), (60, [False, False])):
        _, problem, plan_map = question(
            rent, f"tenants.all.slo={{ttft_ms: {ttft_ms}}}", text=FLEET.replace(", far: {place: sydney}", "")
        )
        (client,) = [r for r, one in enumerate(plan_map.clients) if one.tenant == "all"]
        m = [row.ttft_ms for row in plan_map.rows.values()].index(ttft_ms)
        assert problem.allowed[client, 2:, m].tolist() == served


def test_export_rules_and_cooling_say_what_may_stand_where():
    """An accelerator that may not be exported to a country may not be bought there, and it is said."""
    _, problem, plan_map = question("sites.oslo.jurisdiction=CN")
    assert problem.may_place[:, 0].tolist() == [True, False]
    assert any("denied" in note for note in plan_map.notes)


def test_demand_grows_by_tenant_to_the_end_of_each_quarter():
    """Half of a mean of 500 a second, half more a year, times the declared peak."""
    _, problem, _ = question("plan.demand.tenants={eu: {per_year: 0}}")
    years = (date(2027, 3, 31) - TODAY).days / 365.25
    assert problem.demand[0, 0, 0] == pytest.approx(250.0 * 1.5 * 1.5**years, rel=0.05)
    ratio = problem.demand[0, 0, 0] / problem.demand[1, 0, 0]
    assert ratio == pytest.approx(1.5**years)
    assert problem.demand[1, 0].tolist() == pytest.approx([problem.demand[1, 0, 0]] * 4)


def test_a_rack_costs_its_price_less_its_worth_and_less_saved_tax():
    """Present value of a purchase: price, minus tax on the write-off within the horizon, minus resale at its end."""
    _, problem, plan_map = question("plan.tax_ratio=0.25", "plan.resale_ratio=0.5", quarters=8)
    price = plan_map.prices.buy_it[0, 0, 0]
    assert price == pytest.approx(8 * 49_248.0, rel=0.02)
    lead, life = int(problem.lead[0]), int(problem.life[0])
    assert (lead, life) == (2, 20)
    saved = sum(price / life * 0.25 * 1.1 ** -((t + 0.5) / 4.0) for t in range(lead, 8))
    book = price * (1.0 - (8 - lead) / life)
    worth = (0.5 * book + 0.25 * 0.5 * book) * 1.1**-2.0
    assert problem.cost_buy[0, 0, 0] * plan_map.money_unit == pytest.approx(price - saved - worth)


def test_budgets_shares_and_quotas_become_limits():
    """A year's budget is for its quarters together; a share of 1 is no limit; a promise of 9 accelerators is one rack."""
    _, problem, plan_map = question(
        "plan.budgets={capex_by_year: {'2027': 8e5}, carbon_t_by_year: {'2028': 10}}",
        "plan.shares.site=0.6",
        "plan.buy=[{accelerator: h100-sxm, most_per_quarter: 9}]",
        quarters=8,
    )
    assert problem.budget_span.tolist() == [1, 2, 3, 4] * 2
    assert problem.capex_budget[[3, 7]].tolist() == pytest.approx([8e5 / plan_map.money_unit] * 2)
    assert np.isinf(problem.carbon_budget[:7]).all() and problem.carbon_budget[7] == 10.0
    assert np.isinf(np.delete(problem.capex_budget, [3, 7])).all()
    _, part, there = question("plan.budgets={capex_by_year: {'2027': 8e5}}", quarters=6)
    assert part.capex_budget[5] * there.money_unit == pytest.approx(4e5)  # half a year, half of it
    assert problem.groups == ("site frankfurt", "site oslo") and problem.share_max.tolist() == [0.6, 0.6]
    assert problem.supply[0].tolist() == [1.0] * 8


def test_a_years_money_may_be_spent_in_one_quarter():
    """Money for one rack and a half a year buys one a year, in any quarter, and no more than one."""
    budget = "plan.budgets={capex_by_year: {'2027': 600000}}"
    _, problem, plan_map, answer = answered((budget,), quarters=8)
    price = problem.spend_buy[0, 0, 0] * plan_map.money_unit
    assert 300_000 < price < 400_000
    by_year = answer.buy.sum(axis=(0, 1)).reshape(2, 4).sum(axis=1)
    assert by_year.tolist() == pytest.approx([1.0, 1.0])
    assert answer.slack["over_capex"].max() == 0.0 and answer.unserved.sum() > 0.0
    assert check_answer.check(problem, answer) == []


def test_rent_is_a_site_of_its_own_under_its_operators_law():
    """Offers of one operator in one place are one site; list prices hold where none is declared."""
    _, problem, plan_map = question(
        "plan.rent=[{accelerator: h100-sxm, place: frankfurt}, "
        "{accelerator: h100-sxm, place: frankfurt, kind: reserved, most: 4}]"
    )
    assert problem.sites[2:] == ("cloud-frankfurt",)
    assert sorted(problem.term.tolist()) == [1, 12]
    hourly = plan_map.prices.rent[2, 0, :, 0] / 8 / 2190.0
    assert hourly.tolist() == pytest.approx([2.29, 1.30])
    reserved = [term.kind for term in plan_map.terms].index("reserved")
    assert problem.sign_max[2, 0, reserved] == pytest.approx(0.5)
    names = [client.tenant for client in plan_map.clients]
    assert problem.allowed[names.index("all"), 2, 0] and not problem.allowed[names.index("eu"), 2, 0]


def test_no_more_is_rented_than_an_offer_has():
    """Twenty accelerators on offer are two servers of eight, in the plan and in its fleet file; four are four."""
    for most, there in ((20, 16), (4, 4)):
        offer = f"plan.rent=[{{accelerator: h100-sxm, place: paris, most: {most}, price_per_accelerator_hour: 0.01}}]"
        loaded, problem, plan_map, answer = answered((offer, "plan.buy=[]", "plan.begin=[]"))
        numbers = plan_whole.whole(problem, answer, plan_map)
        assert problem.sign_max[2, 0, 0] * 8 == there and int(numbers.rented.max()) == there
        planned = loads(plan_fleet.planned_fleet(loaded, problem, answer, plan_map)).fleet
        for day in plan_map.days:
            racks = dates.on(planned, day).sites["cloud-paris"].racks.values()
            assert sum(rack.racks * rack.accelerators_per_rack for rack in racks) == there


def test_each_tier_of_an_offer_has_its_own_price_and_its_own_most():
    """Eight at 1 and forty at 9 are two offers: the dear one is paid for what is beyond the cheap one, in books and file."""
    tiers = [
        f"{{accelerator: h100-sxm, place: paris, price_per_accelerator_hour: {p}, most: {n}}}"
        for p, n in ((1, 8), (9, 40))
    ]
    changes = (f"plan.rent=[{', '.join(tiers)}]", "plan.buy=[]", "plan.begin=[]", "plan.survive.ratio=0")
    loaded, problem, plan_map, answer = answered((*changes, "tenants.eu.residency=[]", "tenants.eu.sovereignty=[]"))
    assert problem.rentals == ("on demand, 3 months", "on demand, 3 months #2")
    assert (problem.sign_max[2, 0] * 8).tolist() == [8, 40]
    hourly = plan_map.prices.rent[2, 0, :, 0] / 8 / 2190.0
    assert hourly.tolist() == pytest.approx([1.0, 9.0])
    planned = loads(plan_fleet.planned_fleet(loaded, problem, answer, plan_map)).fleet
    (rack,) = dates.on(planned, plan_map.days[-1]).sites["cloud-paris"].racks.values()
    assert rack.in_service is not None
    cheap, dear = answer.sign[2, 0, :, plan_map.days.index(rack.in_service) :].sum(axis=1)
    assert answer.sign[2, 0, 0, -1] == pytest.approx(1.0) and 0.0 < answer.sign[2, 0, 1, -1] <= 5.0
    assert rack.rent_per_accelerator_hour == pytest.approx((cheap + 9.0 * dear) / (cheap + dear), abs=1e-4)


def test_what_is_rented_emits_where_it_stands():
    """A working rack that is rented has the carbon of the grid there and of its making, and no bill of its own for either."""
    _, problem, plan_map = question("plan.rent=[{accelerator: h100-sxm, place: frankfurt}]")
    (rented,) = [s for s, one in enumerate(plan_map.sites) if one.rented]
    row = plan_map.rows[0, 0]
    kw = plan_map.replicas_per_rack[0, 0] * (
        plan_map.load_ratio * (row.power_kw_busy - row.power_kw_idle) + row.power_kw_idle
    )
    grid = plan_map.sites[rented].grid.carbon_t_per_mwh
    making = 8 * plan_map.fleet.money.embodied_kg_per_accelerator / 1000.0 / 20
    assert problem.carbon_put[rented, 0, 0] == pytest.approx(kw * 2.19 * grid + making)
    assert grid.min() > 0.05 and problem.carbon_owned[rented].max() >= 0.0 and problem.water_put[rented].max() == 0.0
    assert plan_map.prices.put_carbon[rented].max() == 0.0 and plan_map.prices.put_energy[rented].max() == 0.0


def test_in_a_shortage_those_go_who_pay_least():
    """Leaving out who pays more costs more, whoever is dearer to serve."""
    _, problem, plan_map = question()
    names = [client.tenant for client in plan_map.clients]
    earns = plan_map.prices.income[:, 0]
    left_out = problem.cost_unserved[:, 0, 0]
    assert earns[names.index("all")] != earns[names.index("eu")]
    assert (left_out[names.index("all")] > left_out[names.index("eu")]) == (
        earns[names.index("all")] > earns[names.index("eu")]
    )


def test_missing_a_limit_is_always_dearer_than_keeping_it():
    """Leaving a request unserved costs more than the dearest way to serve it, and breaking a limit more than that."""
    _, problem, plan_map = question()
    frame_cost = problem.cost_buy[:, 0].min() / problem.rate[0, 0] / 20
    assert problem.cost_unserved[:, 0].min() > frame_cost
    per_rack = problem.rate[0, 0] * problem.cost_unserved[:, 0].max()
    assert problem.slack_price["short_power"].min() * problem.rack_mw.min() >= per_rack
    assert plan_map.money_unit >= 1.0


def test_the_answer_becomes_a_fleet_file_that_check_accepts():
    """Comments and shared lists survive, today's deployments end where the planned ones begin, and every rule holds."""
    loaded, problem, plan_map, answer = answered()
    text = plan_fleet.planned_fleet(loaded, problem, answer, plan_map)
    assert "# a comment that stays" in text and text.startswith("# Made by `baseload plan`")
    planned = loads(text, file="plan.yaml")
    for day in (None, date(2027, 5, 1), date(2028, 5, 1)):
        assert check.problems(planned, policies=KINDS, day=day) == []
    assert planned.fleet.deployments["chat"].until == date(2027, 1, 1)
    assert float(answer.buy.sum()) > 0.0
    bought = [rack for site in planned.fleet.sites.values() for rack in site.racks.values() if rack.in_service]
    assert sum(rack.racks for rack in bought) >= 1
    assert all(rack.capex_per_accelerator and rack.capex_per_accelerator > 0.0 for rack in bought)


def test_a_plan_never_promises_more_accelerators_than_are_racked():
    """On every day of the plan, replicas at a site fit into what stands there."""
    loaded, problem, plan_map, answer = answered()
    planned = loads(plan_fleet.planned_fleet(loaded, problem, answer, plan_map)).fleet
    for day in plan_map.days:
        today = dates.on(planned, day)
        for name, site in today.sites.items():
            used = sum(d.sites[name].min * d.tp * d.pp for d in today.deployments.values() if name in d.sites)
            assert used <= sum(rack.racks * rack.accelerators_per_rack for rack in site.racks.values())


def test_what_if_and_set_reach_the_planned_file():
    """A key that was changed for the plan is changed in the file that comes out."""
    changed = ("sites.frankfurt.grid[1].energised=2028-06", "money.wacc=0.12", "plan.budgets.capex_by_year.2027=9e9")
    loaded, problem, plan_map = question(*changed, text=FLEET + "  budgets: {capex_by_year: {2027: 1e9}}\n")
    answer = solve.solve(problem, cpu_limit_s=20.0)
    planned = loads(plan_fleet.planned_fleet(loaded, problem, answer, plan_map)).fleet
    assert planned.sites["frankfurt"].grid[1].energised == date(2028, 6, 1) and planned.money.wacc == 0.12


def test_simulate_on_a_day_asks_for_that_days_demand():
    """With a plan section the demand of a later day has grown, by tenant; without one it has not."""
    fleet = loads(FLEET, overrides=["plan.start=2026-11-21", "plan.demand.tenants={eu: {per_year: 0}}"]).fleet
    later = dates.demand_on(fleet, date(2028, 11, 21))
    factor = 1.5 ** (731 / 365.25)
    assert later.demand.scale == pytest.approx((factor + 1.0) / 2.0)
    assert later.tenants["all"].share / later.tenants["eu"].share == pytest.approx(factor)
    assert dates.demand_on(fleet, date(2026, 1, 1)) is fleet


def test_files_of_a_moved_fleet_are_still_found():
    """Traces, series and policies named relative to the fleet file are reached from the plan's folder."""
    text = "sites:\n  a: {contracts: [{price_per_mwh: {file: p.csv}}]}\n"
    text += "demand: {trace: azure-conv}\npolicy: {route: 'r.py:f'}\n"
    moved = plan_fleet.moved(text, "../x")
    assert "../x/p.csv" in moved and "../x/r.py:f" in moved and "trace: azure-conv" in moved


def test_replicas_are_shared_out_whole():
    """Whatever is wanted, whole replicas fit into the accelerators, and none is taken that was not wanted."""
    dice = np.random.default_rng(3)
    for _ in range(300):
        want, size = dice.uniform(0.0, 9.0, 4) * (dice.random(4) < 0.7), dice.choice([1, 2, 4, 8], 4)
        there = int(dice.integers(0, 60))
        n = plan_whole.share_out(want, size, there)
        assert (n >= 0).all() and int((n * size).sum()) <= there and (n <= np.ceil(want)).all()


def test_the_depreciation_of_a_plan_is_that_of_the_formulas():
    """Straight line over the life: four quarters of it are a year of `contracts.depreciation_by_year`."""
    _, problem, plan_map = question(quarters=8)
    f_price = float(plan_map.prices.buy_it[0, 0, 0])
    quarterly = f_price / int(problem.life[0])
    assert 4.0 * quarterly == pytest.approx(contracts.depreciation_by_year(f_price, years=5)[0])
    assert round(plan_prices.WEEKS_PER_QUARTER, 2) == 13.04


def test_a_fleet_of_one_site_may_lose_a_power_hall():
    """Two halls share power, racks and phases equally; the file that comes out has the one site, with whole replicas."""
    alone = FLEET.replace("  oslo:\n", "  oslo_gone:\n")
    start, end = alone.index("  oslo_gone:"), alone.index("models:")
    text = (alone[:start] + alone[end:]).replace(", oslo: {min: 8}", "")
    loaded, problem, plan_map = question("plan.survive.halls=2", text=text)
    assert problem.sites == ("frankfurt hall 1", "frankfurt hall 2")
    assert problem.power_mw[:, 0].tolist() == pytest.approx([0.075, 0.075])
    assert problem.existing[:, 0, 0].tolist() == [1.0, 1.0]
    assert problem.phase_mw.tolist() == pytest.approx([0.0375, 0.0375])
    assert problem.allowed[:, :, 0].all()
    answer = solve.solve(problem, cpu_limit_s=20.0)
    planned = loads(plan_fleet.planned_fleet(loaded, problem, answer, plan_map))
    assert list(planned.fleet.sites) == ["frankfurt"]
    assert check.problems(planned, policies=KINDS, day=date(2027, 5, 1)) == []


def test_first_decisions_are_held_against_scenarios():
    """The risk of a plan is told with its bound, and on scenarios that nothing was decided for; same seed, same words."""
    loaded, problem, plan_map, answer = answered(quarters=4)
    table = plan_rows.modelled_table(loaded.fleet, plan_map.asked)
    asked = Asked(loaded=loaded, problem=problem, plan_map=plan_map, table=table, answer=answer)
    first, kept = plan_risk.look(asked, "expected", 4, 3, lambda: False, lambda sentence: None)
    assert first.kept == (kept is not None) and ("files" in first.lines[-1])
    assert first.measure == "expected cost" and first.scenarios == 4
    assert "no decision of now has less" in first.lines[0]
    for said in ("on 4 other scenarios", "value of the stochastic solution", "to know the future"):
        assert any(said in line for line in first.lines)


def test_who_only_an_offer_may_serve_can_be_planned_for():
    """A tenant whom no declared site may serve is a warning where an offer of rent may, and an error where none may."""
    french = "tenants.eu.residency=[FR]"
    offer = "plan.rent=[{accelerator: h100-sxm, place: paris, operator_jurisdiction: FR}]"
    alone = loads(FLEET, file="two.yaml", overrides=[french])
    assert any("no site may serve" in str(one) for one in check.problems(alone, policies=KINDS))
    loaded, problem, plan_map = question(french, offer)
    assert check.problems(loaded, policies=KINDS) == []
    names, sites = [client.tenant for client in plan_map.clients], [one.declared for one in plan_map.sites]
    assert problem.allowed[names.index("eu"), :, 0].tolist() == [name == "cloud-paris" for name in sites]


def test_demand_grows_from_the_plans_start_on_whatever_day_is_planned_from():
    """A plan as of a later day asks for what `simulate --date` asks for then: growth counts from `plan.start`."""
    _, early, _ = question("plan.start=2024-11-21")
    _, late, plan_map = question()
    assert early.demand[0, 0, 0] / late.demand[0, 0, 0] == pytest.approx(1.5**2, rel=1e-3)
    assert plan_fleet.grows_from(plan_map.plan, TODAY) == TODAY
