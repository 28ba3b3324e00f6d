"""Runs made up for the report's tests: small, seeded, and with books that balance, as the twin's do."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from baseload.adapters.store import RunWriter
from baseload.fleet.load import loads
from baseload.fleet.model import Fleet
from baseload.ports import (
    Balance,
    BasisMeta,
    DeploymentMeta,
    Names,
    Policies,
    PolicyMeta,
    RunMeta,
    TraceMeta,
    TrainingMeta,
    Window,
)
from baseload.records import REASON_END, REASON_LOST, REASON_SLO, TABLES

NS = 1_000_000_000

FLEET = """
baseload: 1
name: two-sites
money: {currency: EUR, wacc: 0.08, carbon_price_per_t: 50, opex_per_year: 10000, usd_rate: 0.9}
sites:
  frankfurt:
    place: frankfurt
    redundancy: N+1
    grid:
      - {power_mw: 0.06, announced: 2022-03-01, contracted: 2022-10-01, energised: 2023-01-01}
      - {power_mw: 0.12, announced: 2022-06-01}
    contracts:
      - {power_mw: 0.06, price_per_mwh: 120, demand_charge_per_kw_month: 10, green_ratio: 0.5}
    cooling: {type: air, water_price_per_m3: 2.5}
    racks:
      h100: {accelerator: h100-sxm, accelerators_per_rack: 8, racks: 3}
    floor_m2: 20
    colocation_per_kw_month: 150
    staff_cost_per_year: 50000
  oslo:
    place: oslo
    grid: [{power_mw: 0.05, announced: 2022-01-01, contracted: 2022-06-01, energised: 2022-09-01}]
    contracts: [{power_mw: 0.05, price_per_mwh: {place: oslo, add: 20}, green_ratio: 1.0}]
    cooling: {type: direct_to_chip}
    racks:
      h200: {accelerator: h200-sxm, accelerators_per_rack: 8, racks: 2}
    training:
      tune: {accelerator: h200-sxm, accelerators: 4}
    facility_capex_per_kw: 9000
    staff_cost_per_year: 40000
models:
  small: {catalog: llama-3.1-8b}
  large: {catalog: llama-3.1-70b}
deployments:
  small-h100: {model: small, accelerator: h100-sxm, sites: {frankfurt: {min: 4}}}
  large-h100: {model: large, accelerator: h100-sxm, precision: fp8, tp: 4, sites: {frankfurt: {min: 4}}}
  large-h200: {model: large, accelerator: h200-sxm, precision: fp8, tp: 2, sites: {oslo: {min: 6}}}
regions:
  germany: {place: frankfurt}
tenants:
  bank:
    models: {large: 1}
    slo: {ttft_ms: 900, tpot_ms: 60, attainment: 0.95}
    price: {input_per_mtok: 1.0, cached_per_mtok: 0.5, output_per_mtok: 3.0}
    committed_per_month: 2000
  shop:
    slo: {ttft_ms: 2000, tpot_ms: 100, e2e_ms: 60000, attainment: 0.9}
    price: {input_per_mtok: 0.3, output_per_mtok: 0.9}
demand: {generator: {kind: poisson}, start: 2023-06-15}
"""


def columns(table: str, rows: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Return rows as columns of a table; what a row leaves out is 0."""
    return {column.name: np.array([row.get(column.name, 0) for row in rows], column.dtype) for column in TABLES[table]}


def meta_of(fleet: Fleet, *, duration_s: float, **more: Any) -> RunMeta:
    """Return what a run of this fleet would say of itself; `more` are fields of RunMeta."""
    deployments = [
        DeploymentMeta(
            name=name,
            model=deployment.model,
            accelerator=deployment.accelerator,
            tp=deployment.tp,
            pp=deployment.pp,
            accelerators_per_replica=deployment.tp * deployment.pp,
            precision=deployment.precision,
            kv_blocks=4096,
            weights_gb=70.0,
            active_parameters=70e9 if deployment.model == "large" else 8e9,
            peak_flops_per_s=1e15,
            saturated_tokens_per_s=6000.0 * deployment.tp,
            within_slo_tokens_per_s=4500.0 * deployment.tp,
            slo_source="found by simulation",
        )
        for name, deployment in fleet.deployments.items()
    ]
    basis = [
        BasisMeta(figure=f"speed.{name}", basis="modelled", source="roofline and twelve constants")
        for name in fleet.deployments
    ]
    given = {
        "fleet": fleet.name,
        "fleet_digest": "0" * 64,
        "seed": 7,
        "trace": TraceMeta(name="made-up", note="synthetic"),
        "start_utc": "2023-06-15T12:00:00Z",
        "duration_ns": round(duration_s * NS),
        "names": Names(
            tenants=list(fleet.tenants) or ["everyone"],
            regions=list(fleet.regions) or ["gateway"],
            models=list(fleet.models),
            deployments=list(fleet.deployments),
            sites=list(fleet.sites),
        ),
        "currency": fleet.money.currency,
        "deployments": deployments,
        "basis": basis,
        "policies": Policies(route=PolicyMeta(name="least_wait"), admit=PolicyMeta(name="slo")),
        "training": [
            TrainingMeta(site=site, name=name, accelerators=job.accelerators, goodput_ratio=0.9)
            for site, declared in fleet.sites.items()
            for name, job in declared.training.items()
        ],
    }
    return RunMeta(**{**given, **more})


def write_tables(
    folder: Path,
    meta: RunMeta,
    requests: Mapping[str, Any],
    replicas: Mapping[str, Any],
    sites: Mapping[str, Any],
    fleet_text: str = FLEET,
) -> Path:
    """Write a complete run folder from columns."""
    with RunWriter(folder, meta, fleet_text) as writer:
        writer.append_requests(requests)
        writer.write_replicas(replicas)
        writer.write_sites(sites)
        return writer.finish()


def write_run(
    folder: Path,
    fleet_text: str = FLEET,
    *,
    n: int = 2000,
    seed: int = 1,
    duration_s: float = 3600.0,
    warmup_s: float = 60.0,
    windows: Sequence[Window] = (),
    slow: float = 1.0,
    limit_kw: float = 34.0,
) -> Path:
    """Write a made-up run of `n` requests through a fleet; `slow` stretches every latency."""
    fleet = loads(fleet_text).fleet
    rng = np.random.default_rng(seed)
    replicas = _replicas(fleet, duration_s, rng)
    requests = _requests(fleet, replicas, n, duration_s, rng, slow)
    _close_books(requests, replicas)
    sites = _sites(fleet, replicas, requests, duration_s, limit_kw=limit_kw)
    status = requests["status"]
    meta = meta_of(
        fleet,
        duration_s=duration_s,
        warmup_ns=round(warmup_s * NS),
        windows=list(windows),
        trace=TraceMeta(name="made-up", note="synthetic", requests=n),
        balance=Balance(
            requests_in=n,
            served=int((status == 0).sum()),
            refused=int((status == 1).sum()),
            failed=int((status == 2).sum()),
            unfinished=int((status == 3).sum()),
        ),
    )
    return write_tables(folder, meta, requests, replicas, sites, fleet_text)


def _replicas(fleet: Fleet, duration_s: float, rng: np.random.Generator) -> dict[str, Any]:
    rows = []
    site_names = list(fleet.sites)
    for d, deployment in enumerate(fleet.deployments.values()):
        for site, wanted in deployment.sites.items():
            for _ in range(wanted.min):
                busy = int(duration_s * NS * rng.uniform(0.35, 0.8))
                accelerators = deployment.tp * deployment.pp
                rows.append(
                    {
                        "replica_i": len(rows), "deployment_i": d, "site_i": site_names.index(site),
                        "accelerators": accelerators, "n_steps": busy // 30_000_000, "busy_ns": busy,
                        "prefill_ns": int(busy * 0.3), "powered_ns": int(duration_s * NS),
                        "down_ns": int(duration_s * NS * 0.02) if len(rows) == 1 else 0,
                        "kv_blocks": 4096, "kv_blocks_peak": 3000,
                        "idle_j": accelerators * 120.0 * (duration_s - busy / NS),
                    }
                )  # fmt: skip
    return columns("replicas", rows)


def _requests(
    fleet: Fleet,
    replicas: dict[str, Any],
    n: int,
    duration_s: float,
    rng: np.random.Generator,
    slow: float,
) -> dict[str, Any]:
    models = list(fleet.models)
    model_of = [models.index(deployment.model) for deployment in fleet.deployments.values()]
    rows = []
    arrivals = np.sort(rng.uniform(0.0, duration_s * 0.98, n))
    for i, arrival_s in enumerate(arrivals):
        arrival = int(arrival_s * NS)
        replica = int(rng.integers(len(replicas["replica_i"])))
        d = int(replicas["deployment_i"][replica])
        row: dict[str, Any] = {
            "request_id": i, "arrival_ns": arrival, "tenant_i": int(rng.integers(max(1, len(fleet.tenants)))),
            "model_i": model_of[d], "input_tokens": 1 + int(rng.lognormal(6.5, 0.8)), "n_tries": 1,
            "deployment_i": d, "site_i": int(replicas["site_i"][replica]), "replica_i": replica,
        }  # fmt: skip
        first = arrival + int(NS * slow * rng.lognormal(-1.3, 0.7))
        output = 1 + int(rng.lognormal(4.8, 0.8))
        tpot = int(NS * slow * rng.lognormal(-3.4, 0.25))
        fate = rng.random()
        if fate < 0.03:
            row |= {"status": 1, "reason": REASON_SLO, "deployment_i": -1, "site_i": -1, "replica_i": -1}
            row |= {"scheduled_ns": -1, "first_token_ns": -1, "finish_ns": arrival, "n_tries": 0}
        else:
            row |= {"scheduled_ns": arrival + 1000, "first_token_ns": first, "output_tokens": output}
            row |= {"finish_ns": first + tpot * (output - 1), "rtt_ns": 12_000_000}
            row["cached_tokens"] = int(row["input_tokens"] * 0.25) if fate > 0.5 else 0
            row["energy_j"] = 0.4 * output + 0.02 * row["input_tokens"]
            if fate < 0.035:
                row |= {"status": 2, "reason": REASON_LOST}
            elif row["finish_ns"] > duration_s * NS:
                row |= {"status": 3, "reason": REASON_END, "finish_ns": -1}
        rows.append(row)
    return columns("requests", rows)


def _close_books(requests: dict[str, Any], replicas: dict[str, Any]) -> None:
    """Fill in what a replica did from what its requests say."""
    worked = requests["replica_i"] >= 0
    n = len(replicas["replica_i"])

    def total(values: Any) -> Any:
        return np.bincount(requests["replica_i"][worked], weights=values[worked], minlength=n)

    computed = requests["input_tokens"] - requests["cached_tokens"]
    replicas["prefill_tokens"] = total(computed).astype("int64")
    replicas["cached_tokens"] = total(requests["cached_tokens"]).astype("int64")
    replicas["decode_tokens"] = total(requests["output_tokens"]).astype("int64")
    replicas["served"] = total((requests["status"] == 0).astype(float)).astype("int64")
    replicas["energy_j"] = replicas["idle_j"] + total(requests["energy_j"])
    replicas["energy_j"] += replicas["busy_ns"] / NS * 500.0 * replicas["accelerators"]


def _sites(
    fleet: Fleet,
    replicas: dict[str, Any],
    requests: dict[str, Any],
    duration_s: float,
    bin_s: float = 60.0,
    limit_kw: float = 34.0,
) -> dict[str, Any]:
    rows = []
    n_bins = max(1, round(duration_s / bin_s))
    shape = 1.0 + 0.5 * np.sin(np.linspace(0.0, 2.0 * np.pi, n_bins, endpoint=False))
    shape /= shape.sum()
    for i, site in enumerate(fleet.sites.values()):
        here = replicas["site_i"] == i
        training_w = sum(job.accelerators * 800.0 for job in site.training.values())
        served = (requests["site_i"] == i) & (requests["status"] == 0)
        bins = np.minimum((requests["finish_ns"][served] / NS / bin_s).astype(int), n_bins - 1)
        counts = np.bincount(bins, minlength=n_bins)
        for b in range(n_bins):
            idle = replicas["idle_j"][here].sum() / n_bins
            busy = (replicas["energy_j"][here] - replicas["idle_j"][here]).sum() * shape[b]
            rows.append(
                {
                    "site_i": i, "start_ns": int(b * bin_s * NS), "length_ns": int(bin_s * NS),
                    "inference_j": idle + busy, "idle_j": idle, "training_j": training_w * bin_s,
                    "limit_kw": limit_kw if i == 0 else 36.0, "powered_replicas": float(here.sum()),
                    "healthy_replicas": float(here.sum()), "served": int(counts[b]),
                    "prefill_tokens": int(replicas["prefill_tokens"][here].sum() * shape[b]),
                    "decode_tokens": int(replicas["decode_tokens"][here].sum() * shape[b]),
                }
            )  # fmt: skip
    return columns("sites", rows)
