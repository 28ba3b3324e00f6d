"""Figures of a run: three requests reckoned by hand, what always holds, and runs in which nothing happened."""

from __future__ import annotations

import re
from dataclasses import replace
from datetime import date
from math import isclose, isfinite
from pathlib import Path

import msgspec
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from baseload.adapters.store import RunReader
from baseload.fleet.load import loads
from baseload.ports import BasisMeta, DeploymentMeta, SearchMeta, TraceMeta, Window
from baseload.records import REASON_SLO, TABLES
from baseload.report import requests, words
from baseload.report.json_out import from_json, to_json
from baseload.report.kpi_table import GROUPS, KPIS, fields, markdown
from baseload.report.kpis import kpis
from baseload.report.model import COST_PARTS, Report
from baseload.report.site_power import hours_of, over_limit, plant_of
from tests.report import synthetic

ROOT = Path(__file__).resolve().parents[2]
S = 1_000_000_000
KWH = 3_600_000.0

HAND = """
baseload: 1
name: by-hand
money: {currency: EUR, wacc: 0, carbon_price_per_t: 100, embodied_kg_per_accelerator: 438, opex_per_year: 0}
sites:
  here:
    lat: 50
    lon: 8
    jurisdiction: DE
    carbon_g_per_kwh: 200
    grid:
      - {power_mw: 0.03, announced: 2020-01-01, contracted: 2020-06-01, energised: 2021-01-01}
      - {power_mw: 0.03, announced: 2022-01-01}
    contracts: [{power_mw: 0.03, price_per_mwh: 100, demand_charge_per_kw_month: 7.3, green_ratio: 0.25}]
    cooling: {type: air, pue: 1.5, wetbulb_c: 0, design_wetbulb_c: 20}
    racks:
      one: {accelerator: h100-sxm, accelerators_per_rack: 8, rack_kw: 6, area_m2: 3, capex_per_accelerator: 10000}
    staff_cost_per_year: 87600
models: {m: {catalog: llama-3.1-8b}}
deployments: {d: {model: m, accelerator: h100-sxm, tp: 4, sites: {here: {min: 1}}}}
tenants:
  t:
    slo: {ttft_ms: 1000, tpot_ms: 600, attainment: 0.5}
    price: {input_per_mtok: 2, cached_per_mtok: 1, output_per_mtok: 4}
    committed_per_month: 730
"""


@pytest.fixture(scope="module")
def by_hand(tmp_path_factory: pytest.TempPathFactory) -> Report:
    """Return the report of three requests within one hour, on one replica of four accelerators."""
    fleet = loads(HAND).fleet
    meta = synthetic.meta_of(
        fleet,
        duration_s=3600.0,
        deployments=[
            DeploymentMeta(
                name="d", model="m", accelerator="h100-sxm", tp=4, accelerators_per_replica=4,
                active_parameters=1e9, peak_flops_per_s=1e12,
                saturated_tokens_per_s=200.0, within_slo_tokens_per_s=100.0,
            )
        ],
    )  # fmt: skip
    both = {"rtt_ns": S // 10, "n_tries": 1}
    asked = [
        {**both, "request_id": 0, "arrival_ns": 0, "input_tokens": 100, "cached_tokens": 40, "output_tokens": 5,
         "first_token_ns": S // 2, "finish_ns": 5 * S // 2, "energy_j": 7.0},
        {**both, "request_id": 1, "arrival_ns": S, "input_tokens": 200, "output_tokens": 1,
         "first_token_ns": 3 * S, "finish_ns": 3 * S, "energy_j": 3.0},
        {"request_id": 2, "arrival_ns": 2 * S, "input_tokens": 50, "status": 1, "reason": REASON_SLO,
         "first_token_ns": -1, "finish_ns": 2 * S, "deployment_i": -1, "site_i": -1, "replica_i": -1},
    ]  # fmt: skip
    replica = {
        "accelerators": 4, "busy_ns": 1800 * S, "prefill_ns": 600 * S, "powered_ns": 3600 * S, "down_ns": 36 * S,
        "prefill_tokens": 260, "decode_tokens": 6, "kv_blocks": 100, "kv_blocks_peak": 25,
    }  # fmt: skip
    hour = {"length_ns": 3600 * S, "inference_j": 2 * KWH, "idle_j": 0.5 * KWH, "limit_kw": np.inf}
    folder = synthetic.write_tables(
        tmp_path_factory.mktemp("runs") / "hand",
        meta,
        synthetic.columns("requests", asked),
        synthetic.columns("replicas", [replica]),
        synthetic.columns("sites", [hour]),
        HAND,
    )
    with RunReader(folder) as run:
        return kpis(run)


def test_service_by_hand(by_hand):
    """Latencies are the client's, TPOT leaves out the first token, and a refused request misses its SLO."""
    service = by_hand.fleet.service

    assert (service.requests_in, service.served, service.refused, service.failed) == (3, 2, 1, 0)
    assert service.ttft_s_mean == pytest.approx((0.6 + 2.1) / 2) and service.ttft_s_p50 == pytest.approx(0.6)
    assert service.ttft_s_p90 == pytest.approx(2.1) and service.ttft_s_p99 == pytest.approx(2.1)
    assert service.tpot_s_mean == pytest.approx(0.5) and service.tpot_s_p99 == pytest.approx(0.5)
    assert service.e2e_s_mean == pytest.approx((2.6 + 2.1) / 2) and service.e2e_s_p50 == pytest.approx(2.1)
    assert service.slo_attainment_ratio == pytest.approx(
        1 / 3
    ) and service.slo_attainment_served_ratio == pytest.approx(1 / 2)
    assert service.goodput_requests_per_s == pytest.approx(1 / 3600) and service.goodput_tokens_per_s == pytest.approx(
        105 / 3600
    )
    assert service.requests_per_s == pytest.approx(2 / 3600) and service.output_tokens_per_s == pytest.approx(6 / 3600)
    assert (service.input_tokens, service.cached_tokens, service.output_tokens) == (300, 40, 6)
    assert service.work_energy_j == pytest.approx(10.0)
    assert service.list_revenue == pytest.approx((260 * 2 + 40 * 1 + 6 * 4) / 1e6)
    assert by_hand.tenants[0].slo_met is False
    assert [(one.reason, one.requests) for one in by_hand.refusals] == [("expected wait beyond the SLO", 1.0)]


def test_hardware_by_hand(by_hand):
    """Busy, prefill, MFU, availability and KV use of one replica follow from its row."""
    hardware = by_hand.fleet.hardware

    assert (hardware.replicas, hardware.accelerators) == (1, 4)
    assert hardware.utilisation_ratio == pytest.approx(0.5) and hardware.prefill_ratio == pytest.approx(1 / 3)
    assert hardware.mfu_ratio == pytest.approx(2 * 1e9 * 266 / (1e12 * 4 * 3600))
    assert hardware.availability_ratio == pytest.approx(0.99) and hardware.kv_peak_ratio == pytest.approx(0.25)
    assert by_hand.deployments[0].hardware == hardware


def test_energy_and_footprint_by_hand(by_hand):
    """2 kWh of IT at a PUE of 1.5 are 3 kWh at the meter, 600 g at 200 g/kWh, of which a quarter is green."""
    energy, footprint = by_hand.fleet.energy, by_hand.fleet.footprint

    assert (
        energy.it_kwh == pytest.approx(2.0)
        and energy.site_kwh == pytest.approx(3.0)
        and energy.idle_it_kwh == pytest.approx(0.5)
    )
    assert energy.pue_mean == pytest.approx(1.5) and energy.pue_peak == pytest.approx(1.5)
    assert energy.power_kw_mean == energy.power_kw_p99 == energy.power_kw_max == pytest.approx(3.0)
    assert energy.power_kw_contract == pytest.approx(30.0) and energy.power_used_ratio == pytest.approx(0.1)
    assert energy.energy_j_per_token == pytest.approx(3 * KWH / 306)
    assert energy.energy_j_per_output_token == pytest.approx(3 * KWH / 6)
    assert energy.energy_wh_per_request == pytest.approx(1500.0) and energy.tokens_per_kwh == pytest.approx(102.0)
    assert energy.tokens_per_s_per_kw == pytest.approx(306 / 3600 / 3)
    assert energy.tokens_per_s_per_rack == pytest.approx(306 / 3600)
    assert energy.tokens_per_s_per_m2 == pytest.approx(306 / 3600 / 3)
    assert footprint.carbon_kg_location == pytest.approx(0.6) and footprint.carbon_kg_market == pytest.approx(0.45)
    assert footprint.carbon_kg_embodied == pytest.approx(8 * 438 / (5 * 8760))
    assert footprint.carbon_g_per_mtok == pytest.approx(600.0 * 1e6 / 306)


def test_money_by_hand(by_hand):
    """Each part of an hour's cost, who bears it, and what comes back follow from the fleet file."""
    cost = by_hand.fleet.cost
    accelerators, maintenance, staff = 80_000 / 5 / 8760, 0.03 * 80_000 / 8760, 10.0
    energy, demand, carbon = 0.3, 3.0 * 7.3 / 730, 0.06
    standing, by_energy = accelerators + maintenance + staff + demand, energy + carbon
    ours = standing + by_energy

    assert cost.cost_accelerators == pytest.approx(accelerators) and cost.cost_maintenance == pytest.approx(maintenance)
    assert cost.cost_staff == pytest.approx(staff) and cost.cost_energy == pytest.approx(energy)
    assert cost.cost_demand_charge == pytest.approx(demand) and cost.cost_carbon == pytest.approx(carbon)
    assert cost.cost_rent == cost.cost_facility == cost.cost_colocation == cost.cost_water == 0.0
    assert cost.cost_serving == pytest.approx(
        0.25 * standing + 0.75 * by_energy
    )  # 4 of 8 accelerators, half of the time
    assert cost.cost_idle == pytest.approx(0.75 * standing + 0.25 * by_energy) and cost.cost_training == 0.0
    assert cost.cost_per_mtok == pytest.approx(ours * 1e6 / 306)
    assert cost.cost_per_mtok_input == pytest.approx(ours / 3 * 1e6 / 300)
    assert cost.cost_per_mtok_output == pytest.approx(ours * 2 / 3 * 1e6 / 6)
    assert cost.revenue == pytest.approx(1.0)  # the committed minimum of a month, for one of its 730 hours
    assert cost.margin == pytest.approx(1.0 - ours) and cost.margin_ratio == pytest.approx(1.0 - ours)
    cash_year = (1.0 - (ours - accelerators)) * 8760
    assert cost.invested == pytest.approx(80_000) and cost.roi_ratio == pytest.approx(cash_year * 5 / 80_000 - 1)
    assert cost.payback_years is None


def test_ladder_by_hand(by_hand):
    """Megawatts at the meter become IT MW by the PUE; half of one replica's rate is within the SLO."""
    steps = {step.name: step for step in by_hand.fleet.ladder}
    mw = {name: step.mw for name, step in steps.items()}

    assert mw == pytest.approx({
        "announced": 0.04, "contracted": 0.02, "energised": 0.02, "coolable": 0.02, "racked": 0.006,
        "healthy": 0.00594, "within SLO": 0.001485, "sold": 0.001485 * (306 / 3600) / 99.0,
    })  # fmt: skip
    assert steps["within SLO"].tokens_per_s == pytest.approx(99.0) and not steps["within SLO"].modelled
    assert steps["sold"].tokens_per_s == pytest.approx(306 / 3600)
    assert steps["announced"].modelled and steps["announced"].tokens_per_s > steps["racked"].tokens_per_s
    assert "no rack stands there" in steps["racked"].reason and "1 %" in steps["healthy"].reason
    assert by_hand.headline.startswith("The replicas of by-hand can serve 99 tokens/s within its SLOs")
    assert "It missed the SLO of t (33.3 % of requests, 50 % promised)." in by_hand.headline


@pytest.mark.parametrize(
    ("factor", "first", "said"),
    [
        (
            1.5,
            "t",
            "by-hand can serve 0.128 tokens/s of this demand within its SLOs: 1.50 times what it served; beyond",
        ),
        (
            4096.0,
            "",
            "This demand is too short to tell how much by-hand can serve within its SLOs: even 4,096 times as fast",
        ),
        (
            0.0,
            "t",
            "No load was found at which by-hand keeps its promises: even a thousandth of this demand misses one.",
        ),
    ],
)
def test_a_search_that_found_no_limit_claims_none(by_hand, factor: float, first: str, said: str):
    """What a search did not find is no figure: neither where all that was tried held, nor where none of it did."""
    found = SearchMeta(
        highest_load_factor=factor, requests_per_s=0.0, tokens_per_s=0.0, first_to_miss=first, cause="TTFT"
    )
    headline = words.headline(by_hand.fleet, by_hand.tenants, "by-hand", found)
    assert headline.startswith(said)


def test_each_group_is_trusted_as_far_as_its_weakest_figure(by_hand):
    """A report built on a modelled figure says so, and names it; a declared figure does not count as modelled."""
    trust = {row.group: row for row in by_hand.confidence}

    assert by_hand.built_on.startswith("Built on modelled figures: the speed of d")
    assert trust["latency, SLO and throughput"].basis == "modelled"
    assert trust["cost and return"].basis == "declared" and "price" not in by_hand.built_on
    assert BasisMeta(figure="weather.here", basis="declared", source="the fleet file") in by_hand.basis


def report_of(folder: Path, **options: object) -> Report:
    """Return the report of a made-up run."""
    with RunReader(synthetic.write_run(folder, **options)) as run:  # type: ignore[arg-type]
        return kpis(run)


def figures(value: object) -> list[float]:
    """Return every number in a report."""
    if isinstance(value, dict):
        return [one for inner in value.values() for one in figures(inner)]
    if isinstance(value, list):
        return [one for inner in value for one in figures(inner)]
    return [value] if isinstance(value, int | float) else []


@settings(max_examples=25)
@given(
    n=st.integers(0, 60),
    seed=st.integers(0, 10_000),
    duration_s=st.sampled_from([61.0, 600.0, 90_000.0]),
    announced_mw=st.sampled_from([0.01, 0.12, 50.0]),
    slow=st.sampled_from([0.01, 1.0, 50.0]),
    redundancy=st.sampled_from(["N", "N+1", "2N"]),
)
def test_what_holds_for_every_run(tmp_path_factory, n, seed, duration_s, announced_mw, slow, redundancy):
    """Ladders never rise, costs add up both ways, sites and tenants add up to the fleet, and no figure is NaN."""
    text = synthetic.FLEET.replace("redundancy: N+1", f"redundancy: {redundancy}")
    text = text.replace("power_mw: 0.12, announced", f"power_mw: {announced_mw}, announced")
    folder = tmp_path_factory.mktemp("runs") / "a"
    report = report_of(folder, fleet_text=text, n=n, seed=seed, duration_s=duration_s, slow=slow)

    for part in (report.fleet, *report.sites):
        for above, below in zip(part.ladder, part.ladder[1:]):
            assert below.mw <= above.mw + 1e-12 and below.tokens_per_s <= above.tokens_per_s + 1e-6
            assert isclose(above.mw - below.mw, below.lost_mw, abs_tol=1e-9)
        cost = part.cost
        assert cost.cost_total == pytest.approx(sum(getattr(cost, name) for name in COST_PARTS))
        assert cost.cost_total == pytest.approx(cost.cost_serving + cost.cost_idle + cost.cost_training)
        assert min(cost.cost_serving, cost.cost_idle, cost.cost_training) >= -1e-9
    assert report.fleet.service.requests_in == n == sum(one.service.requests_in for one in report.tenants)
    assert report.fleet.service.served == sum(one.service.served for one in report.sites)
    assert report.fleet.energy.site_kwh == pytest.approx(sum(one.energy.site_kwh for one in report.sites))
    assert report.fleet.cost.revenue == pytest.approx(sum(one.revenue for one in report.tenants))
    assert all(isfinite(one) for one in figures(msgspec.to_builtins(report)))
    assert from_json(to_json(report)) == report


def test_a_run_in_which_nothing_happened_has_a_report(tmp_path):
    """Without requests, replicas and bins every undefined figure is None, and nothing divides by zero."""
    fleet = loads(HAND).fleet
    meta = synthetic.meta_of(fleet, duration_s=0.0, deployments=[], trace=TraceMeta(name="empty"))
    folder = synthetic.write_tables(
        tmp_path / "empty", meta, *(synthetic.columns(table, []) for table in TABLES), fleet_text=HAND
    )
    with RunReader(folder) as run:
        report = kpis(run)

    assert report.fleet.service.served == 0 and report.fleet.service.ttft_s_p99 is None
    assert report.fleet.cost.cost_per_mtok is None and report.fleet.energy.pue_mean is None
    assert report.tenants[0].slo_met is None
    assert "NaN" not in to_json(report) and "Infinity" not in to_json(report)


@settings(max_examples=10)
@given(seed=st.integers(0, 1000), n=st.integers(1, 400))
def test_quantiles_are_those_of_a_sorted_list(tmp_path_factory, seed, n):
    """A quantile is the smallest latency that the share of requests does not exceed; from bins within 0.2 %."""
    folder = synthetic.write_run(tmp_path_factory.mktemp("runs") / "a", n=n, seed=seed, warmup_s=60.0)
    with RunReader(folder) as run:
        rows = run.columns("SELECT * FROM requests")
        exact = requests.read(run, run.fleet).service("fleet")
        binned = requests._binned_quantiles(run).get(("fleet", 0), {})
    keep = (rows["status"] == 0) & (rows["arrival_ns"] >= 60 * S)
    ttft = np.sort((rows["first_token_ns"] - rows["arrival_ns"] + rows["rtt_ns"])[keep]) / S
    if len(ttft) == 0:
        assert exact.ttft_s_p50 is None and not binned
        return
    for i, (share, found) in enumerate([(0.5, exact.ttft_s_p50), (0.9, exact.ttft_s_p90), (0.99, exact.ttft_s_p99)]):
        wanted = ttft[int(np.ceil(len(ttft) * share - 1e-9)) - 1]
        assert found == pytest.approx(wanted, rel=1e-9)
        assert binned["ttft"][i] / S == pytest.approx(wanted, rel=0.002)


def test_weighted_windows_stand_for_their_weight(tmp_path):
    """Two windows of weight 10 over the whole run multiply counts, energy and time by ten, and leave rates alone."""
    windows = [Window(start_s=0.0, until_s=1800.0, weight=10.0), Window(start_s=1800.0, until_s=3600.0, weight=10.0)]
    plain = report_of(tmp_path / "plain", n=500, warmup_s=0.0)
    weighted = report_of(tmp_path / "weighted", n=500, warmup_s=0.0, windows=windows)
    a, b = plain.fleet, weighted.fleet

    assert b.service.served == pytest.approx(10 * a.service.served)
    assert b.energy.site_kwh == pytest.approx(10 * a.energy.site_kwh)
    assert b.cost.cost_staff == pytest.approx(10 * a.cost.cost_staff)
    assert b.service.requests_per_s == pytest.approx(a.service.requests_per_s)
    assert b.service.slo_attainment_ratio == pytest.approx(a.service.slo_attainment_ratio)
    assert b.cost.cost_per_mtok == pytest.approx(a.cost.cost_per_mtok)
    assert b.service.ttft_s_p99 == pytest.approx(a.service.ttft_s_p99, rel=0.003)
    assert "approximate" in weighted.run.quantiles and plain.run.quantiles == "exact"


@pytest.mark.parametrize("worse", ["pue: 1.3", "pue: 1.6", "pue: 2.5"])
@pytest.mark.parametrize("redundancy", ["N", "N+1", "2N"])
def test_a_worse_plant_is_never_cheaper(tmp_path, worse, redundancy):
    """Colocation and building are for what stands there: a worse PUE or more redundancy never lowers cost."""
    plain = synthetic.FLEET.replace("redundancy: N+1", "redundancy: N").replace("type: air,", "type: air, pue: 1.2,")
    plain = plain.replace("    colocation", "    facility_capex_per_kw: 5000\n    colocation")
    changed = plain.replace("pue: 1.2", worse).replace("redundancy: N", f"redundancy: {redundancy}")
    with RunReader(synthetic.write_run(tmp_path / "a", plain, n=50)) as run:
        before = kpis(run).fleet.cost
    with RunReader(synthetic.write_run(tmp_path / "b", changed, n=50)) as run:
        after = kpis(run).fleet.cost

    assert after.cost_total > before.cost_total
    assert after.cost_colocation == pytest.approx(before.cost_colocation) and before.cost_colocation > 0.0
    assert after.cost_facility == pytest.approx(before.cost_facility)


def test_power_above_a_limit_is_told(tmp_path):
    """Time above a power limit and the most kW above it are figures of site and fleet, and a sentence of the report."""
    kept = report_of(tmp_path / "a", n=50)
    assert kept.fleet.energy.over_limit_ratio == 0.0 == kept.fleet.energy.over_limit_kw_max
    assert not any("than its limit" in note for note in kept.notes)
    over = report_of(tmp_path / "b", n=50, limit_kw=0.5)
    assert over.fleet.energy.over_limit_ratio == over.sites[0].energy.over_limit_ratio == 1.0
    assert over.sites[0].energy.over_limit_kw_max > 0.0 == over.sites[1].energy.over_limit_kw_max
    assert any(note.startswith("frankfurt drew up to") and "100 % of the time" in note for note in over.notes)
    with RunReader(tmp_path / "a") as run:
        day = plant_of(run.fleet, "frankfurt", date(2023, 6, 15))
        hours = hours_of(run, run.fleet, "frankfurt", 0, day, [])
    it_kw = hours.it_kw.copy()
    it_kw[:6] = hours.limit_kw[:6] + np.array([5.0, 0.1, 2.0, 1.0, 1.0, 1.0])  # 0.1 kW of 34 kW is within 0.5 %
    share, most_kw = over_limit([replace(hours, it_kw=it_kw), hours])
    assert share == pytest.approx(5.0 / len(it_kw)) and most_kw == pytest.approx(5.0)


def test_warm_up_is_left_out_of_latencies_and_not_of_money(tmp_path):
    """Requests before the warm-up's end count in totals, and in no latency, rate or SLO attainment."""
    cold = report_of(tmp_path / "cold", n=300, warmup_s=0.0).fleet
    warm = report_of(tmp_path / "warm", n=300, warmup_s=1800.0).fleet

    assert warm.service.requests_in == cold.service.requests_in and warm.cost.cost_total == cold.cost.cost_total
    assert warm.service.list_revenue == cold.service.list_revenue
    assert warm.service.ttft_s_mean != cold.service.ttft_s_mean


def test_training_bears_its_own_cost(tmp_path):
    """A training job's accelerators and energy are in the site's cost, and not in the cost per token."""
    report = report_of(tmp_path / "a", n=200)
    oslo, frankfurt = (next(one for one in report.sites if one.name == name) for name in ("oslo", "frankfurt"))

    assert oslo.cost.cost_training > 0.2 * oslo.cost.cost_total and frankfurt.cost.cost_training == 0.0
    assert oslo.energy.training_site_kwh > 0.0
    ours = oslo.cost.cost_serving + oslo.cost.cost_idle
    tokens = oslo.service.input_tokens + oslo.service.output_tokens
    assert oslo.cost.cost_per_mtok == pytest.approx(ours * 1e6 / tokens)


# ---- documentation ---------------------------------------------------------------------------------------


def test_every_figure_is_in_the_table_and_every_line_is_a_figure():
    """The records of the report and the table of KPIs hold the same names, in the same order, each once."""
    for record, table in GROUPS.values():
        assert fields(record) == tuple(kpi.name for kpi in table)
    assert len(KPIS) == sum(len(table) for _, table in GROUPS.values())


def test_every_figure_reads_columns_that_exist():
    """What a KPI says it reads is a column of Records, a key of the fleet file or a field of meta.json."""
    columns = {f"{table}.{column.name}" for table, listed in TABLES.items() for column in listed}
    for kpi in KPIS.values():
        reads = [one.strip() for one in kpi.reads.split(",")]
        assert reads and all(one in columns or one.startswith(("fleet:", "meta:")) for one in reads), kpi


def test_the_page_of_figures_is_the_table():
    """docs/report.md holds every figure with its unit, formula and columns, as the code does."""
    page = (ROOT / "docs" / "report.md").read_text("utf-8")
    made = re.search(r"<!-- figures -->\n(.*)<!-- end -->", page, re.DOTALL)

    assert made is not None and made.group(1).strip() == markdown().strip()
