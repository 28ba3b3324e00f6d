"""The books of a real run: joules, time, tokens and money add up from requests to replicas to sites to the report."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from baseload import jit

jit.enable()

from baseload.adapters.store import RunReader  # noqa: E402  (numba must be loaded before the kernel)
from baseload.app.simulating import Wish, prepare, run_into  # noqa: E402
from baseload.fleet import catalog  # noqa: E402
from baseload.report.kpis import kpis  # noqa: E402
from baseload.report.model import COST_PARTS  # noqa: E402
from tests.simulate.specs import engine, simulate, system, trace  # noqa: E402

FLEET = """
baseload: 1
name: books
money: {currency: EUR, usd_rate: 0.9, wacc: 0.08, accelerator_life_years: 5, opex_per_year: 100000}
sites:
  frankfurt:
    place: frankfurt
    grid: [{power_mw: 0.1, energised: 2023-01-01}]
    contracts: [{power_mw: 0.1, price_per_mwh: 120, demand_charge_per_kw_month: 10}]
    cooling: {pue: 1.3}
    racks: {a: {accelerator: h100-sxm, accelerators_per_rack: 8, racks: 4, capex_per_accelerator: 30000}}
    training: {job: {accelerator: h100-sxm, accelerators: 8, checkpoint_every_s: 60, checkpoint_s: 10}}
    parked_power_ratio: 0.4
  oslo:
    place: oslo
    contracts: [{power_mw: 0.1, price_per_mwh: 60}]
    cooling: {pue: 1.1}
    racks: {a: {accelerator: l40s, accelerators_per_rack: 8, racks: 2, rent_per_accelerator_hour: 1.5}}
models: {small: {catalog: llama-3.1-8b}, large: {catalog: llama-3.1-70b}}
deployments:
  small: {model: small, accelerator: l40s, precision: fp8, sites: {oslo: {min: 2, max: 6}}, cold_start_s: 20}
  large: {model: large, accelerator: h100-sxm, precision: fp8, tp: 2, sites: {frankfurt: {min: 2, max: 6}}}
regions: {south: {place: madrid}, north: {place: stockholm}}
tenants:
  one: {share: 1, price: {input_per_mtok: 2.0, cached_per_mtok: 0.5, output_per_mtok: 8.0}}
  two: {share: 1, price: {input_per_mtok: 1.0, output_per_mtok: 3.0}, committed_per_month: 40000000}
demand:
  generator: {kind: gamma, requests_per_s: 12, cv: 3, duration_s: 300, prefixes: 5, prefix_tokens: 256}
policy: {route: least_wait, scale: target_utilisation, target_utilisation: 0.1, scale_down_s: 20}
failures:
  replica_mtbf_h: 0.2
  events: [{site: oslo, start_s: 100, duration_s: 30}]
"""
H_YEAR = 8760.0


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run with two sites, failures, autoscaling, parked accelerators and a training job."""
    where = tmp_path_factory.mktemp("books")
    (where / "fleet.yaml").write_text(FLEET, encoding="utf-8")
    wish = Wish(fleet=where / "fleet.yaml", seed=5, search=False, measure_replicas=False)
    return run_into(
        prepare(wish), wish, where / "run",
        say=lambda _: None, progress=lambda _m, _d: None, overwrite=False,
    )  # fmt: skip


def _tables(folder: Path) -> tuple[Any, dict[str, dict[str, Any]]]:
    with RunReader(folder) as reader:
        tables = {name: reader.columns(f"SELECT * FROM {name}") for name in ("requests", "replicas", "sites")}
        return kpis(reader), tables


def test_joules_of_sites_are_those_of_replicas_and_of_what_is_parked(folder: Path) -> None:
    """At each site energy is what its replicas drew, and what every accelerator without a replica or a job drew idle."""
    report, tables = _tables(folder)
    replicas, sites, requests = tables["replicas"], tables["sites"], tables["requests"]
    duration_s = report.run.duration_s
    for i, (kind, racked, in_training, parked_ratio) in enumerate((("h100-sxm", 32, 8, 0.4), ("l40s", 16, 0, 1.0))):
        here, bins = replicas["site_i"] == i, sites["site_i"] == i
        known = catalog.accelerator(kind)
        idle_w = known.idle_w + known.server_idle_other_w
        powered_s = float((replicas["powered_ns"] * replicas["accelerators"])[here].sum()) / 1e9
        on_s = duration_s - (0.0, 30.0)[i]  # oslo is down for half a minute, and draws nothing meanwhile
        parked_j = parked_ratio * idle_w * ((racked - in_training) * on_s - powered_s)
        assert parked_j > 0.0
        assert sites["inference_j"][bins].sum() == pytest.approx(replicas["energy_j"][here].sum() + parked_j, rel=1e-9)
        assert sites["idle_j"][bins].sum() == pytest.approx(replicas["idle_j"][here].sum() + parked_j, rel=1e-9)
        lengths_s = sites["length_ns"][bins] / 1e9
        assert lengths_s.sum() == pytest.approx(duration_s, rel=1e-9)
        assert (sites["powered_replicas"][bins] * lengths_s).sum() * 1e9 == pytest.approx(
            replicas["powered_ns"][here].sum()
        )
        for column in ("served", "prefill_tokens", "decode_tokens"):
            assert sites[column][bins].sum() == replicas[column][here].sum(), column
        assert (sites["inference_j"][bins] >= sites["idle_j"][bins]).all()
    assert replicas["down_ns"].max() > 0 and replicas["powered_ns"].min() < duration_s * 1e9, "the run shows too little"
    busy_j = (replicas["energy_j"] - replicas["idle_j"]).sum()
    assert requests["energy_j"].sum() == pytest.approx(busy_j, rel=1e-7)
    job_w = 8 * (catalog.accelerator("h100-sxm").tdp_w * 0.85 + catalog.accelerator("h100-sxm").server_other_w)
    assert 0.6 * job_w * duration_s < sites["training_j"].sum() < job_w * duration_s


def test_the_meter_shows_it_energy_times_pue(folder: Path) -> None:
    """With a declared PUE, kWh at the meter are the IT joules times it: once, not twice."""
    report, tables = _tables(folder)
    sites = tables["sites"]
    for i, pue in enumerate((1.3, 1.1)):
        bins = sites["site_i"] == i
        it_kwh = float((sites["inference_j"] + sites["training_j"])[bins].sum()) / 3.6e6
        assert report.sites[i].energy.it_kwh == pytest.approx(it_kwh, rel=1e-9)
        assert report.sites[i].energy.site_kwh == pytest.approx(it_kwh * pue, rel=1e-9)


def test_every_cost_is_the_fleet_files_price_times_what_was_used(folder: Path) -> None:
    """Parts of cost add up to the total, at each site and for the fleet, and each is its price times its amount."""
    report, tables = _tables(folder)
    hours = report.run.duration_s / 3600.0
    for cost in (*(site.cost for site in report.sites), report.fleet.cost):
        assert cost.cost_total == pytest.approx(sum(getattr(cost, part) for part in COST_PARTS), rel=1e-9)
        assert cost.cost_total == pytest.approx(cost.cost_serving + cost.cost_idle + cost.cost_training, rel=1e-9)
        assert min(cost.cost_serving, cost.cost_idle, cost.cost_training) >= 0.0
    company = 100_000 * hours / H_YEAR
    for part in COST_PARTS:
        own = sum(getattr(site.cost, part) for site in report.sites) + (company if part == "cost_other" else 0.0)
        assert getattr(report.fleet.cost, part) == pytest.approx(own, rel=1e-9, abs=1e-12), part
    frankfurt, oslo = (site.cost for site in report.sites)
    assert frankfurt.cost_energy == pytest.approx(report.sites[0].energy.site_kwh * 0.120, rel=1e-9)
    assert oslo.cost_energy == pytest.approx(report.sites[1].energy.site_kwh * 0.060, rel=1e-9)
    assert oslo.cost_rent == pytest.approx(16 * 1.5 * hours, rel=1e-9) and oslo.cost_accelerators == 0.0
    annuity = 0.08 / (1.0 - 1.08**-5)
    assert frankfurt.cost_accelerators == pytest.approx(32 * 30_000 * annuity * hours / H_YEAR, rel=1e-9)
    # One billing interval of a quarter of an hour holds the whole run: the mean over its bins, for that part of a month.
    sites = tables["sites"]
    bins = sites["site_i"] == 0
    kw = 1.3 * (sites["inference_j"] + sites["training_j"])[bins] / sites["length_ns"][bins] * 1e6
    assert report.run.duration_s < 900.0
    assert frankfurt.cost_demand_charge == pytest.approx(kw.mean() * 10 * hours / (H_YEAR / 12), rel=1e-9)
    assert frankfurt.cost_training > 0.0 == oslo.cost_training


def test_revenue_is_the_price_list_times_what_was_answered(folder: Path) -> None:
    """Each tenant owes its tokens by its price list, cached ones at their own price, or its commitment if that is more."""
    report, tables = _tables(folder)
    rows = {name: values[tables["requests"]["status"] == 0] for name, values in tables["requests"].items()}
    owed = []
    for i, (fresh, cached, output) in enumerate(((2.0, 0.5, 8.0), (1.0, 1.0, 3.0))):
        own = rows["tenant_i"] == i
        hit = np.minimum(rows["cached_tokens"], rows["input_tokens"])[own]
        paid = (rows["input_tokens"][own] - hit) * fresh + hit * cached + rows["output_tokens"][own] * output
        owed.append(float(paid.sum()) / 1e6)
    assert rows["cached_tokens"].sum() > 0
    commitment = 40e6 * report.run.duration_s / 3600.0 / (H_YEAR / 12)
    assert commitment > owed[1]
    assert [tenant.revenue for tenant in report.tenants] == pytest.approx([owed[0], commitment], rel=1e-9)
    cost = report.fleet.cost
    assert cost.revenue == pytest.approx(owed[0] + commitment, rel=1e-9)
    assert cost.margin == pytest.approx(cost.revenue - cost.cost_serving - cost.cost_idle, rel=1e-9)


def test_the_network_counts_once_there_and_once_back() -> None:
    """An idle system's TTFT at the client is the network there and back and one step; E2E adds a step a token."""
    spec = system(engine(step_s=0.01), one_way_s=np.array([0.02]), region_rtt_s=np.array([0.03]))
    records, _ = simulate(spec, trace([0.5], 10, 4))
    ttft_s = (records["first_token_ns"] - records["arrival_ns"] + records["rtt_ns"]) / 1e9
    e2e_s = (records["finish_ns"] - records["arrival_ns"] + records["rtt_ns"]) / 1e9
    assert ttft_s[0] == pytest.approx(0.03 + 2 * 0.02 + 0.01, abs=1e-9)
    assert e2e_s[0] == pytest.approx(0.03 + 2 * 0.02 + 4 * 0.01, abs=1e-9)


def test_weighted_windows_stand_for_the_whole_time(tmp_path: Path) -> None:
    """The replicas' hours of a run from windows are those of the time that the windows stand for, warm-up left out."""
    wish = Wish(fleet=Path("tests/whole/day.yaml"), windows=6, search=False, measure_replicas=False)
    done = run_into(
        prepare(wish), wish, tmp_path / "run",
        say=lambda _: None, progress=lambda _m, _d: None, overwrite=False,
    )  # fmt: skip
    report, tables = _tables(done)
    span_s = report.run.span_s
    assert span_s == pytest.approx(86_400, rel=0.02)
    assert tables["replicas"]["powered_ns"].sum() / 1e9 == pytest.approx(4 * span_s, rel=1e-6)
    assert report.fleet.hardware.availability_ratio == 1.0
    busy = report.fleet.hardware.utilisation_ratio
    assert busy is not None and 0.0 < busy < 1.0
    # Standing cost is shared by time: half of the eight accelerators hold no replica.
    cost = report.fleet.cost
    standing = cost.cost_accelerators + cost.cost_maintenance
    assert cost.cost_serving == pytest.approx(standing * busy / 2.0, rel=0.2)


def test_same_file_trace_and_seed_write_the_same_bytes(folder: Path, tmp_path: Path) -> None:
    """A run's folder depends on nothing but its fleet file, trace, seed and version: every file, byte by byte."""
    (tmp_path / "fleet.yaml").write_text(FLEET, encoding="utf-8")
    wish = Wish(fleet=tmp_path / "fleet.yaml", seed=5, search=False, measure_replicas=False)
    again = run_into(
        prepare(wish), wish, tmp_path / "run",
        say=lambda _: None, progress=lambda _m, _d: None, overwrite=False,
    )  # fmt: skip
    files = sorted(path.name for path in folder.iterdir())
    assert {"fleet.yaml", "meta.json", "replicas.parquet", "sites.parquet"} <= set(files)
    assert files == sorted(path.name for path in again.iterdir())
    for name in files:
        assert (folder / name).read_bytes() == (again / name).read_bytes(), name
