"""Mutated fleet files: each gives FleetError or a fleet that every question can be asked of.

Two kinds: the text is cut, doubled and scribbled on; or its values are moved, lost and replaced by hostile ones.
"""

from __future__ import annotations

import copy
import json
import math
import random
from datetime import timedelta
from functools import cache
from pathlib import Path
from typing import Any

import msgspec

from baseload.errors import FleetError
from baseload.fleet import check as fleet_check
from baseload.fleet import dates, load, resolve
from baseload.fleet.template import template
from baseload.fleet.tree import parse
from baseload.policies import KINDS

# One of each record, so that every key can be hit.
EVERYTHING = """
baseload: 1
name: everything
sites:
  oslo:
    place: oslo
    grid: [{power_mw: 1, announced: 2021-01-01, contracted: 2022-01-01, energised: 2023-01-01, until: 2040-01-01}]
    contracts: &c
      - {power_mw: 1, price_per_mwh: {place: frankfurt, scale: 0.9, add: 40}, green_ratio: 0.5, start: 2022-01-01}
    power_limits: [{start_h: 1, until_h: 2, power_mw: 0.5, every_h: 24}]
    redundancy: N+1
    cooling: {type: direct_to_chip, capacity_mw: 0.9, wetbulb_c: 12, design_wetbulb_c: 21}
    racks: {a.1: {accelerator: h100-sxm, accelerators_per_rack: 8, racks: 4, rack_kw: 9, in_service: 2023-01-01}}
    training: {t: {accelerator: h100-sxm, accelerators: 8}}
    floor_m2: 50
  madrid:
    {place: madrid, lat: 40.4, lon: -3.7, jurisdiction: ES, operator_jurisdiction: US, carbon_g_per_kwh: 150,
     contracts: *c, racks: {b: {accelerator: l40s, accelerators_per_rack: 8, rent_per_accelerator_hour: 1.1}}}
models:
  m: {catalog: llama-3.1-8b}
  own: {architecture: {n_layers: 8, hidden: 512, n_heads: 8, n_kv_heads: 2, ffn: 2048, vocab: 32000}}
deployments:
  d: {model: m, accelerator: h100-sxm, tp: 2, precision: fp8, sites: {oslo: {min: 1, max: 3}}}
  e: {model: own, accelerator: l40s, sites: {madrid: {min: 4}}, speed: {layer_s: 0.00004}}
regions: {north: {place: stockholm}, south: {lat: 40, lon: -3, jurisdiction: ES}}
tenants:
  x: {share: 2, regions: {north: 1}, models: {m: 1}, residency: [EEA], slo: {ttft_ms: 900}, price: {input_per_mtok: 1}}
  y: {models: {own: 1}, sovereignty: [US], budget_per_month: 1000, priority: 3}
links: [{between: [north, oslo], rtt_ms: 9}]
demand: {generator: {kind: gamma, requests_per_s: 3, duration_s: 30, cv: 2}, start: 2023-07-01}
policy: {route: least_wait, digest: {}}
failures: {server_mtbf_h: 6000, events: [{site: oslo, start_s: 5, duration_s: 5}]}
money: {currency: EUR, usd_rate: 0.9}
gateway: {site: oslo}
"""

SMALL = """
baseload: 1
name: small
sites:
  oslo:
    place: oslo
    grid: [{power_mw: 1, energised: 2023-01-01}]
    racks: {a: {accelerator: h100-sxm, accelerators_per_rack: 8}}
models: {m: {catalog: llama-3.1-8b}}
deployments:
  d: {model: m, accelerator: h100-sxm, sites: {oslo: {min: 2}}}
tenants: {t: {residency: [EEA]}}
"""

HOSTILE: list[Any] = [
    None, True, False, 0, 1, -1, 2, 0.5, -0.0, 1e-320, 1e308, -1e308, 10**18, 10**30, 1e12, 100_000.5,
    math.nan, math.inf, -math.inf, "", " ", "nan", ".nan", "-.inf", "1e999", "NO", "EU", "EEA", "XX", "8 MW", "40 %",
    "2024-02-30", "0001-01-01", "9999-12-31", "2023-06-15", "é日本語", "\u202e", "\x00", "\n", "a" * 5000,
    "../../x.csv", ".", "/", "x.py:f", "a:b:c", "h100-sxm", "oslo", "m", "2N", "fp4", [], {}, [[]], {"": 0},
    [None], ["EU"], {"oslo": {}},
]  # fmt: skip
TEXTS = [
    "&a", "*a", "<<: *c", "!!python/object:os.system", "---", "...", "\t", ": ", "- ", "? ", "|", ">", "'", '"', "{",
    "[", "}", "]", "#", "%YAML 1.1", "\u0000", "\ufeff", "\u2028", "\x85", "💥", "0x", "0o9", "1_000", "12:30:45",
    "\\U99999999",
]  # fmt: skip


def check(seed: int) -> str:
    """Feed one mutated fleet file; return what came of it."""
    dice = random.Random(seed)
    text, overrides = mutated(dice)
    try:
        loaded = load.loads(text, file="fuzz.yaml", overrides=overrides, base_folder=Path("/nonexistent"))
    except FleetError as error:
        return "error" if str(error).strip() else "an error that says nothing"
    found = fleet_check.problems(loaded, policies=KINDS)
    assert all(str(problem) for problem in found + fleet_check.warnings(loaded))
    if found:
        return "error"
    ask_everything(loaded)
    return "valid"


def ask_everything(loaded: load.Loaded) -> None:
    """Ask what the twin will ask; no answer may be missing or not a number."""
    fleet = loaded.fleet
    assert msgspec.convert(json.loads(msgspec.json.encode(fleet)), type(fleet)) == fleet
    day = dates.run_day(fleet)
    for at in (day, day + timedelta(days=400)):
        today = dates.on(fleet, at)
        for site in today.sites.values():
            for ask in (
                dates.announced_mw,
                dates.permitted_mw,
                dates.contracted_mw,
                dates.energised_mw,
                dates.drawable_mw,
            ):
                assert 0 <= ask(site, at) < math.inf
            assert math.isfinite(resolve.racks_power_mw(site))
            dates.active_contract(site, at)
    for name, site in fleet.sites.items():
        facts = resolve.site_facts(fleet, name)
        assert math.isfinite(facts.lat + facts.lon + facts.design_wetbulb_c)
        for value, kind in (
            (site.carbon_g_per_kwh, "carbon_g_per_kwh"),
            (site.cooling.wetbulb_c, "wetbulb_c"),
        ):
            series = resolve.hourly(value, place=site.place, kind=kind, base_folder=loaded.base_folder)
            assert math.isfinite(series.at(resolve.hour_of_year(day, fleet.demand.start_hour_utc)))
    for name in fleet.regions:
        resolve.region_location(fleet, name)


def mutated(dice: random.Random) -> tuple[str, list[str]]:
    """Return a mutated text and overrides."""
    base = dice.choice(bases())
    overrides = [override(dice, tree(base)) for _ in range(dice.choice([0, 0, 0, 0, 0, 0, 0, 1, 2]))]
    if dice.random() < 0.35:
        return scribble(dice, base), overrides
    found = copy.deepcopy(tree(base))
    for _ in range(dice.choice([1, 1, 1, 2, 4])):
        change(dice, found)
    text = json.dumps(found, ensure_ascii=dice.random() < 0.5, indent=0)
    return text.replace("NaN", ".nan").replace("-Infinity", "-.inf").replace("Infinity", ".inf"), overrides


@cache
def bases() -> tuple[str, ...]:
    """Return the texts to start from, the quick ones more often."""
    return SMALL, SMALL, SMALL, EVERYTHING, EVERYTHING, template()


@cache
def tree(text: str) -> Any:
    """Return the plain values of a text."""
    return parse(text, file="base").plain_value()


def slots(value: Any) -> list[tuple[Any, Any]]:
    """Return (container, key) of every value below."""
    found: list[tuple[Any, Any]] = []
    keys = value.keys() if isinstance(value, dict) else range(len(value)) if isinstance(value, list) else ()
    for key in keys:
        found += [(value, key), *slots(value[key])]
    return found


def change(dice: random.Random, root: Any) -> None:
    """Change one value of the tree in place."""
    places = slots(root)
    if not places:
        return
    container, key = dice.choice(places)
    other, other_key = dice.choice(places)
    kind = dice.choice([0, 1, 1, 2, 3, 4, 5, 6, 6, 6])
    if kind == 0:
        del container[key]
    elif kind in (1, 2):
        container[key] = copy.deepcopy(dice.choice(HOSTILE))
    elif kind == 3:
        container[key], other[other_key] = copy.deepcopy(other[other_key]), copy.deepcopy(container[key])
    elif kind == 4 and isinstance(container, dict):
        container[str(dice.choice([*HOSTILE, "powr_mw", "tp", str(key).upper()]))] = container.pop(key)
    elif kind == 5:
        deep: Any = container[key]
        for _ in range(dice.choice([1, 3, 30, 300])):
            deep = [deep] if dice.random() < 0.5 else {"a": deep}
        container[key] = deep
    elif isinstance(container[key], bool | int | float):
        factor = dice.choice([-1, 0, 1e-9, 0.5, 2, 1000, 1e6, 1e15])
        scaled = container[key] * factor
        container[key] = int(scaled) if isinstance(container[key], int) and dice.random() < 0.7 else scaled
    elif isinstance(container[key], list):
        container[key] = container[key] * dice.choice([2, 3, 100])


def scribble(dice: random.Random, text: str) -> str:
    """Damage the text itself."""
    for _ in range(dice.choice([1, 1, 2, 5])):
        lines = text.split("\n")
        i, j = dice.randrange(len(lines)), dice.randrange(len(lines))
        at, to = sorted(dice.randrange(len(text) + 1) for _ in range(2))
        kind = dice.randrange(8)
        if kind == 0:
            text = text[:at]
        elif kind == 1:
            lines.insert(j, lines[i])
        elif kind == 2:
            lines[i], lines[j] = lines[j], lines[i]
        elif kind == 3:
            del lines[i]
        elif kind == 4:
            text = text[:at] + dice.choice(TEXTS) * dice.choice([1, 1, 1, 50, 2000]) + text[at:]
        elif kind == 5:
            lines[i] = " " * dice.randrange(9) + lines[i].lstrip()
        elif kind == 6:
            text = text[:at] + text[at : at + 40] + text[at:]
        else:
            text = text[:at] + text[min(to, at + 60) :]
        if kind in (1, 2, 3, 5):
            text = "\n".join(lines)
    return text


def override(dice: random.Random, root: Any) -> str:
    """Return a `--set` text, often a wrong one."""
    parts: list[str] = []
    value = root
    while isinstance(value, dict | list) and value and (not parts or dice.random() < 0.8):
        key = dice.choice(list(value) if isinstance(value, dict) else range(len(value)))
        parts.append(str(key))
        value = value[key]
    if dice.random() < 0.2:
        parts.append(dice.choice(["a", "", "0", "-1", "99999999999", "²", "min.max"]))
    hostile = dice.choice(HOSTILE)
    text = hostile if isinstance(hostile, str) else json.dumps(hostile)
    return dice.choice([".".join(parts), "", "sites", "..", "a=b"]) + dice.choice(["=", "=", "=", "==", ""]) + text
