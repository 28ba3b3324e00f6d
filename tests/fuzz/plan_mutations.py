"""Mutated `plan` sections, planned to the end: each gives an error with its mend, or a plan; never anything else.

Values are moved, lost and replaced by hostile ones as in fleet_mutations.py, and by what contradicts itself: days out of order
or far away, money below nought, budgets that buy nothing, regions that no site may serve, shares that leave nobody.
"""

from __future__ import annotations

import contextlib
import copy
import io
import json
import math
import random
import tempfile
from pathlib import Path
from typing import Any

from baseload.app import cli
from baseload.errors import BaseloadError
from baseload.fleet.tree import parse
from tests.fuzz.fleet_mutations import HOSTILE, change, slots

BASE = """
baseload: 1
name: small
sites:
  oslo:
    place: oslo
    grid: [{power_mw: 0.2, energised: 2023-01-01}, {power_mw: 0.3, announced: 2026-01-01}]
    contracts: [{power_mw: 0.5, price_per_mwh: 60, start: 2023-01-01}]
    racks: {a: {accelerator: h100-sxm, accelerators_per_rack: 8, racks: 2}}
  madrid: {place: madrid, grid: [{power_mw: 0.2, energised: 2023-01-01}],
           contracts: [{power_mw: 0.2, price_per_mwh: 80}], racks: {b: {accelerator: h100-sxm, accelerators_per_rack: 8}}}
models: {m: {catalog: llama-3.1-8b}}
deployments:
  d: {model: m, accelerator: h100-sxm, sites: {oslo: {min: 1}, madrid: {min: 1}}}
regions: {north: {place: stockholm}, south: {place: madrid}}
tenants:
  t: {residency: [EEA], regions: {north: 1, south: 1}}
  u: {regions: {south: 1}, slo: {ttft_ms: 3000}}
demand: {generator: {kind: poisson, requests_per_s: 20, duration_s: 60}}
plan:
  start: 2026-11-21
  horizon: 1y
  demand:
    growth_per_year: 0.3
    tenants: {t: {per_year: 0.4, sigma: 0.15}}
    peak_to_mean: 1.6
    load_blocks: [{hours_ratio: 0.3, of_peak: 0.9}, {hours_ratio: 0.7, of_peak: 0.45}]
    unserved_price_factor: 10
  buy:
    - {accelerator: h100-sxm, sites: [oslo], lead_weeks: 12, most_per_quarter: 64, price_per_accelerator: 30000}
  lease:
    - {accelerator: h100-sxm, price_per_accelerator_month: 900, term_months: 6, sites: [madrid], lead_weeks: 6}
    - {accelerator: l40s, price_per_accelerator_month: 90, most_per_quarter: 9}
  begin:
    - {site: oslo, phase: 1, cost_to_begin: 90000, months: 3, not_before: 2027-01-01}
    - {site: madrid, power_mw: 0.3, cost_to_begin: 120000, cost_per_year: 100}
  colocation: [{site: madrid, power_mw: 0.05, blocks: 2, price_per_kw_month: 20, take_or_pay_ratio: 0.85, months: 3}]
  rent:
    - {accelerator: h100-sxm, place: frankfurt, operator: eu-cloud, operator_jurisdiction: DE}
    - {accelerator: h100-sxm, place: paris, kind: reserved, term_months: 12, most: 64, price_per_accelerator_hour: 2}
    - {accelerator: l40s, place: madrid, kind: spot, price_per_accelerator_hour: 0.6, interruptions_per_hour: 0.05}
  budgets: {capex_by_year: {'2027': 1.5e6}, carbon_t_by_year: {'2027': 400}, water_m3_by_year: {'2027': 4000}}
  shares: {site: 0.8, jurisdiction: 0.9, vendor: 1, grid_zone: 0.9}
  survive: {ratio: 0.8}
  tax_ratio: 0.2
  resale_ratio: 0.7
"""
CONTRADICTIONS: list[tuple[str, Any]] = [
    ("plan.start", "2099-01-01"), ("plan.start", "2198-06-01"), ("plan.start", "1951-01-01"), ("plan.horizon", "5q"),
    ("plan.horizon", "0y"), ("plan.horizon", "9999y"), ("plan.begin.0.not_before", "2020-01-01"),
    ("plan.begin.0.not_before", "2199-01-01"), ("plan.begin.0.months", 600), ("plan.buy.0.lead_weeks", 520),
    ("plan.buy.0.price_per_accelerator", -1), ("plan.buy.0.price_per_accelerator", 1e15), ("plan.buy", []),
    ("plan.lease.0.term_months", 240), ("plan.lease.0.term_months", 1), ("plan.lease.1.accelerators_per_rack", 12),
    ("plan.lease.0.price_per_accelerator_month", 0), ("plan.lease.1.price_per_accelerator_month", 1e15),
    ("plan.lease.0.lead_weeks", 520), ("plan.lease.1.sites", ["atlantis"]), ("plan.lease.1.accelerator", "h100-sxm"),
    ("plan.lease", []),
    ("plan.rent", []), ("plan.begin", []), ("plan.budgets.capex_by_year", {"2026": 0, "2027": 1}),
    ("plan.budgets.carbon_t_by_year", {"2026": 1e-9}), ("plan.budgets.capex_by_year", {"1950": 0, "2199": 1e300}),
    ("plan.shares.site", 0.05), ("plan.shares.vendor", 0), ("plan.survive.ratio", 1), ("plan.survive.halls", 16),
    ("tenants.t.residency", ["JP"]), ("tenants.u.sovereignty", ["CH"]), ("tenants.u.slo", {"ttft_ms": 1}),
    ("demand.generator.requests_per_s", 0), ("demand.generator.requests_per_s", 1e-9), ("plan.tax_ratio", 0.9),
    ("demand.generator.requests_per_s", 100000), ("plan.demand.growth_per_year", 20), ("plan.demand.peak_to_mean", 1000),
    ("plan.demand.growth_per_year", -0.99), ("plan.demand.unserved_price_factor", 1e300), ("plan.unknown", 1),
    ("plan.demand.load_blocks", [{"hours_ratio": 1, "of_peak": 0}]), ("plan.rent.0.place", "atlantis"),
    ("plan.rent.2.interruptions_per_hour", 3600), ("plan.rent.2.restart_s", 1e6), ("plan.rent.1.term_months", 240),
    ("sites.oslo.grid.0.energised", "2150-01-01"), ("sites.oslo.grid.0.until", "2026-12-01"), ("plan", None), ("plan", {}),
    ("money", {"wacc_ratio": 0.9}), ("plan.colocation.0.power_mw", 1e4), ("plan.begin.1.power_mw", 1e-9),
    ("plan.demand.growth_per_year", math.nan), ("plan.budgets.capex_by_year", {"2027": math.inf}),
]  # fmt: skip
OPTIONS = ("--quick", "--table", "modelled", "--gap", "5%", "--cpu-limit", "1")


def check(seed: int) -> str:
    """Plan one mutated fleet file; return what came of it."""
    dice = random.Random(seed)
    found = mutated(dice)
    text = json.dumps(found, ensure_ascii=dice.random() < 0.5, indent=0)
    text = text.replace("NaN", ".nan").replace("-Infinity", "-.inf").replace("Infinity", ".inf")
    with (
        tempfile.TemporaryDirectory() as folder,
        contextlib.redirect_stdout(io.StringIO()) as said,
        contextlib.redirect_stderr(io.StringIO()),
    ):
        file, out = Path(folder) / "fleet.yaml", Path(folder) / "out"
        file.write_text(text, encoding="utf-8", errors="surrogatepass")
        try:
            cli.run(["plan", str(file), *OPTIONS, "--out", str(out)])
        except BaseloadError as error:
            return "error" if str(error).strip() else "an error that says nothing"
        report = json.loads((out / "plan.json").read_text(encoding="utf-8"))
    assert math.isfinite(report["cost"]) and math.isfinite(report["bound"]), (report["cost"], report["bound"])
    assert report["bound"] <= report["cost"] + 1e-6 * abs(report["cost"])
    assert report["meets"] or report["misses"], "a plan that does not meet and does not say what"
    assert "nan" not in said.getvalue().lower().split()
    return "meets" if report["meets"] else "does not meet"


def mutated(dice: random.Random) -> Any:
    """Return the fleet file's values, changed mostly below `plan`."""
    found = copy.deepcopy(parse(BASE, file="base").plain_value())
    for _ in range(dice.choice([0, 1, 1, 2])):
        path, value = dice.choice(CONTRADICTIONS)
        put(found, path.split("."), copy.deepcopy(value))
    for _ in range(dice.choice([0, 0, 1, 1, 2])):
        if isinstance(found.get("plan"), dict):
            change(dice, found["plan"])
    if dice.random() < 0.1:
        container, key = dice.choice(slots(found))
        container[key] = copy.deepcopy(dice.choice(HOSTILE))
    return found


def put(root: Any, path: list[str], value: Any) -> None:
    """Set a value, where the way to it is there."""
    for key in path[:-1]:
        if isinstance(root, list) and int(key) < len(root):
            root = root[int(key)]
        elif isinstance(root, dict) and isinstance(root.get(key), dict | list):
            root = root[key]
        else:
            return
    if isinstance(root, dict):
        root[path[-1]] = value
