"""Whole runs of hostile but valid fleets: BaseloadError, or a report that balances; never NaN, a hang or a traceback.

Every key of the fleet file is moved to its declared bounds or removed, names are crossed, demand is made up in every way, and
the whole verb is run: prepare, simulate into a folder, read back, text, JSON, HTML.
"""

from __future__ import annotations

import copy
import json
import math
import random
import re
import tempfile
from functools import cache
from pathlib import Path
from typing import Any

from msgspec import inspect

from baseload.errors import BaseloadError
from baseload.fleet.model import Fleet
from baseload.fleet.template import template
from baseload.fleet.tree import parse
from tests.fuzz import fleet_mutations

EXAMPLES = Path(__file__).parents[2] / "examples"
REQUESTS = 200
Tree = dict[str, Any]

# Good words for a key that holds a name, by the key's last part; anything else is taken from the file itself.
WORDS: dict[str, list[Any]] = {
    "route": ["round_robin", "least_outstanding", "least_wait", "prefix_affine", "cheapest", "greenest"],
    "admit": ["always", "within_slo", "within_budget", "within_slo_and_budget"],
    "scale": ["fixed", "target_utilisation"],
    "cap": ["none", "slow", "shed", "by_priority"],
    "place": ["oslo", "frankfurt", "singapore", "texas"],
    "accelerator": ["h100-sxm", "l40s", "gb200", "mi300x", "a100-sxm-80gb"],
    "catalog": ["llama-3.1-8b", "llama-3.1-70b", "deepseek-v3", "qwen3-30b-a3b"],
    "jurisdiction": ["NO", "US", "DE"],
    "operator_jurisdiction": ["US", "DE"],
    "residency": [["DE"], ["EU"], ["EEA", "US"], ["JP"], []],
    "sovereignty": [["EU"], ["US"], []],
    "currency": ["EUR", "JPY"],
    "block_tokens": [1, 8, 24, 32, 64, 4096],
    "kv_blocks": [1, 2, 3, 16, 100, 100_000],
    "max_num_seqs": [1, 2, 3, 1024],
    "max_num_batched_tokens": [1, 2, 256, 8192],
    "max_context_tokens": [1, 2, 100, 1 << 20],
    "control_every_s": [0.05, 1e-9, 0.5, 60.0, 1e9],
    "observe_every_s": [0.05, 1e-9, 0.5, 60.0, 1e9],
    "replica_mtbf_h": [0.001, 0.01],
    "server_mtbf_h": [0.001, 0.01],
    "site_mtbf_h": [0.001, 0.01],
    "max_wait_s": [1e-12, 0.001, 1.0, 30.0],
    "power_mw": [1e-6, 1e5, 0.001, 0.01],
    "min": [0, 1, 2, 100],
    "max": [0, 1, 4, 200, None],
    "tp": [1, 2, 4, 8, 64],
    "scale_of_demand": [1e6, 1e-3, 0.1, 100.0],
    "users": [1, 3, 10_000],
    "requests": [1, 2, REQUESTS],
    "start": ["2020-01-01", "2023-12-31", "2024-02-29", "2026-10-01", "2030-01-01"],
}  # fmt: skip


def check(seed: int) -> str:
    """Run one mutated fleet; return what came of it."""
    dice = random.Random(seed)
    with tempfile.TemporaryDirectory() as folder:
        here = Path(folder)
        fleet, wish = hostile(dice, here)
        (here / "fleet.yaml").write_text(as_yaml(fleet), encoding="utf-8")
        try:
            run = whole(here, seed=seed, shown=dice.random() < 0.3, **wish)
        except BaseloadError as error:
            said = str(error)
            assert said.strip() and "Traceback" not in said, said
            return "error"
        except (AssertionError, Exception) as error:
            error.add_note(as_yaml(fleet) + f"\n{wish}")
            raise
    try:
        hold(run)
    except AssertionError as error:
        error.add_note(as_yaml(fleet) + f"\n{wish}")
        raise
    return "valid"


def whole(here: Path, *, seed: int, shown: bool, trace: str | None, windows: int = 0, measured: bool = False) -> Tree:
    """Run the whole verb in `here`; return the report's JSON, read strictly."""
    from baseload.adapters.store import RunReader
    from baseload.app import simulating
    from baseload.report import html, json_out, kpis, text

    def quiet(_: str) -> None: ...

    wish = simulating.Wish(fleet=here / "fleet.yaml", trace=trace, seed=seed % 7, requests=REQUESTS, windows=windows,
                           measure_replicas=measured, search=measured)  # fmt: skip
    prepared = simulating.prepare(wish)
    out = simulating.run_into(
        prepared, wish, here / "run", say=quiet, progress=lambda moment, duration_s: None, overwrite=False
    )
    with RunReader(out) as run:
        report = kpis.kpis(run)
        if shown:
            page = here / "report.html"
            html.write(report, run, page)
            for words in (
                text.to_text(report),
                re.sub(r"<script.*?</script>", "", page.read_text("utf-8"), flags=re.S),
            ):
                wrong = re.search(r".*\b(nan|NaN|inf|Infinity|None)\b.*", words)
                assert wrong is None, wrong
        return {"balance": json.loads((out / "meta.json").read_text())["balance"], **strict(json_out.to_json(report))}


def strict(text: str) -> Any:
    """Return JSON; NaN and Infinity are no JSON."""

    def refuse(word: str) -> Any:
        raise AssertionError(f"{word} in the report")

    return json.loads(text, parse_constant=refuse)


def hold(report: Tree) -> None:
    """Assert what every report promises."""
    books = report["balance"]
    ended = [books[name] for name in ("served", "refused", "failed", "unfinished")]
    assert books["requests_in"] == sum(ended) and min(ended) >= 0, books
    assert books["kv_blocks_leaked"] == 0, books
    assert not any("balance" in note for note in report["notes"]), report["notes"]
    for part in (report["fleet"], *report["sites"]):
        rungs = [(step["mw"], step["tokens_per_s"]) for step in part["ladder"]]
        for above, below in zip(rungs, rungs[1:]):
            assert below[0] <= above[0] * (1 + 1e-12) and below[1] <= above[1] * (1 + 1e-12), part["ladder"]
        for step in part["ladder"]:
            assert step["mw"] >= 0.0 and step["tokens_per_s"] >= 0.0 and step["lost_mw"] >= -1e-12, step
        cost = part["cost"]
        parts = [cost[name] for name in cost if name in COST_PARTS]
        for those in (parts, [cost["cost_serving"], cost["cost_idle"], cost["cost_training"]]):
            assert math.isclose(
                sum(those), cost["cost_total"], rel_tol=1e-9, abs_tol=1e-9 * sum(map(abs, those)) + 1e-12
            )
    for scope in ("tenants", "sites", "models", "deployments"):
        served = [one["service"]["served"] or 0 for one in report[scope]]
        assert sum(served) <= books["served"] + 1e-6, (scope, served, books)
    for part in (report["fleet"], *report["sites"], *report["deployments"]):
        for name, value in part["hardware"].items():
            if name.endswith("_ratio") and value is not None:
                assert -1e-9 <= value <= 1 + 1e-9, (name, value)
    for part in (report["fleet"], *report["sites"]):
        energy = part["energy"]
        assert energy["it_kwh"] >= 0 and energy["site_kwh"] >= energy["it_kwh"] * (1 - 1e-9), energy
        assert energy["idle_it_kwh"] <= energy["it_kwh"] * (1 + 1e-9), energy


COST_PARTS = (
    "cost_accelerators", "cost_rent", "cost_facility", "cost_colocation", "cost_maintenance", "cost_staff",
    "cost_other", "cost_energy", "cost_demand_charge", "cost_water", "cost_carbon",
)  # fmt: skip


# ---- making one --------------------------------------------------------------------------------------------


def hostile(dice: random.Random, here: Path) -> tuple[Tree, Tree]:
    """Return a fleet with some keys at their bounds, and how it is to be run; trace files are written to `here`."""
    fleet: Tree = copy.deepcopy(dice.choice(bases()))
    if dice.random() < 0.85:
        fleet.setdefault("demand", {}).pop("trace", None)
        fleet["demand"].pop("scale", None)
        fleet["demand"]["generator"] = generator(dice)
    if dice.random() < 0.25:
        dice.choice(RECIPES)(dice, fleet)
    for _ in range(dice.choice([0, 1, 1, 2, 3, 5])):
        extreme(dice, fleet, inspect.type_info(Fleet))
    if dice.random() < 0.1:
        fleet_mutations.change(dice, fleet)
    wish: Tree = {"trace": None, "measured": dice.random() < 0.15}
    if dice.random() < 0.25:
        wish["trace"] = trace_file(dice, here)
    if dice.random() < 0.03:
        wish["windows"] = dice.choice([1, 2, 5])
    return fleet, wish


@cache
def bases() -> tuple[Tree, ...]:
    """Return the fleets to start from."""
    texts = [fleet_mutations.SMALL, fleet_mutations.SMALL, fleet_mutations.EVERYTHING, template()]
    texts += [(EXAMPLES / name / "fleet.yaml").read_text() for name in ("three-sites", "edge", "ai-factory")]
    found = []
    for text in texts:
        tree = parse(text, file="base").plain_value()
        for contract in (c for site in tree["sites"].values() for c in site.get("contracts", [])):
            if isinstance(contract.get("price_per_mwh"), dict):
                contract["price_per_mwh"].pop("file", None)
        found.append(tree)
    return tuple(found)


def generator(dice: random.Random) -> Tree:
    """Return demand of some hundred requests, now and then extreme."""
    rate = dice.choice([0.01, 1.0, 20.0, 1000.0, 1e7])
    made: Tree = {
        "kind": dice.choice(["poisson", "gamma", "mmpp", "diurnal", "closed_loop"]),
        "requests_per_s": rate,
        "duration_s": max(1e-3, REQUESTS / rate),
        "cv": dice.choice([1e-9, 0.2, 1.0, 3.0, 100.0]),
        "burst_factor": dice.choice([1.0, 4.0, 10.0]),
        "users": dice.choice([1, 8, 64, 10_000]),
        "think_s": dice.choice([0.0, 0.0, 1e-9, 2.0]),
        "input_tokens": dice.choice([1.0, 300.0, 1500.0, 20_000.0]),
        "output_tokens": dice.choice([1.0, 30.0, 300.0, 3000.0]),
        "length_cv": dice.choice([0.0, 1.0, 3.0]),
    }
    if dice.random() < 0.5:
        made["requests"] = dice.choice([1, 2, REQUESTS])
    if dice.random() < 0.3:
        made["prefixes"], made["prefix_tokens"] = dice.choice([1, 5, 1000]), dice.choice([0, 1, 16, 100, 1024, 6400])
    return made


def trace_file(dice: random.Random, here: Path) -> str:
    """Return a shipped trace's name, or the path of a short file of another format."""
    kind = dice.randrange(4)
    if kind == 0:
        return dice.choice(["azure-conv", "azure-code"])
    path = here / ("t.jsonl" if kind == 1 else "t.csv")
    lines, at_s = [], 0.0
    for i in range(dice.choice([1, 2, 60, REQUESTS])):
        at_s += dice.choice([0.0, 0.001, 0.3, 20.0])
        prompt, answer = dice.choice([1, 40, 700, 5000, 120_000]), dice.choice([1, 5, 60, 900])
        if kind == 1:
            n = -(-prompt // 512)
            shared = [dice.randrange(3) * 1000 + k for k in range(n)]
            cut = dice.randrange(n + 1)
            row = {"timestamp": round(at_s * 1000), "input_length": prompt, "output_length": answer,
                   "hash_ids": shared[:cut] + [10_000 + 1000 * i + k for k in range(n - cut)]}  # fmt: skip
            lines.append(json.dumps(row))
        elif kind == 2:
            lines.append(f"{at_s:.6f},{prompt},{answer}")
        else:
            lines.append(f"{at_s:.6f},{prompt},{answer},{dice.choice(['', 'chat'])},{dice.choice([0, 16, 64, 640])}")
    if kind > 1:
        lines.insert(0, "arrival_s,input_tokens,output_tokens" + (",prefix_key,prefix_tokens" if kind == 3 else ""))
    path.write_text("\n".join(lines) + "\n")
    return str(path)


def extreme(dice: random.Random, node: Any, kind: inspect.Type, key: str = "") -> None:
    """Walk down from a record to one key at random and set it to something its type allows, or take it away."""
    fields = [field for field in kind.fields] if isinstance(kind, inspect.StructType) else []
    if isinstance(node, dict) and fields:
        field = dice.choice(fields)
        inner = plain_type(field.type, node.get(field.encode_name))
        child = node.get(field.encode_name)
        if isinstance(child, dict | list) and child and not is_leaf(inner) and dice.random() < 0.95:
            extreme(dice, child, inner, field.encode_name)
        elif isinstance(inner, inspect.StructType):
            node[field.encode_name] = {}
            extreme(dice, node[field.encode_name], inner, field.encode_name)
        elif not field.required and dice.random() < 0.1:
            node.pop(field.encode_name, None)
        else:
            name = "scale_of_demand" if field.encode_name == "scale" and key == "demand" else field.encode_name
            value = extreme_value(dice, inner, name)
            if value is not None or not field.required:
                node[field.encode_name] = value
    elif isinstance(node, dict) and isinstance(kind, inspect.DictType) and node:
        name = dice.choice(list(node))
        inner = plain_type(kind.value_type, node[name])
        if isinstance(node[name], dict) and isinstance(inner, inspect.StructType):
            extreme(dice, node[name], inner, key)
        else:
            node[name] = extreme_value(dice, inner, key)
    elif isinstance(node, list) and isinstance(kind, inspect.ListType) and node:
        i = dice.randrange(len(node))
        inner = plain_type(kind.item_type, node[i])
        if isinstance(node[i], dict):
            node[i] = copy.deepcopy(node[i])  # an alias in the file
            extreme(dice, node[i], inner, key)


def is_leaf(kind: inspect.Type) -> bool:
    """Say whether a value of this type is set as a whole."""
    if isinstance(kind, inspect.ListType):
        return not isinstance(plain_type(kind.item_type, None), inspect.StructType)
    return not isinstance(kind, inspect.StructType | inspect.DictType)


def plain_type(kind: inspect.Type, value: Any) -> inspect.Type:
    """Return the type without notes, and of a choice the one that fits the value."""
    while isinstance(kind, inspect.Metadata):
        kind = kind.type
    if isinstance(kind, inspect.UnionType):
        options = [plain_type(one, value) for one in kind.types if not isinstance(one, inspect.NoneType)]
        records = [one for one in options if isinstance(one, inspect.StructType)]
        if isinstance(value, dict) and records:
            return records[0]
        return next((one for one in options if not isinstance(one, inspect.StructType)), options[0])
    return kind


def extreme_value(dice: random.Random, kind: inspect.Type, name: str) -> Any:
    """Return a value at the edge of what a type allows."""
    if name in WORDS:
        return copy.deepcopy(dice.choice(WORDS[name]))
    if isinstance(kind, inspect.BoolType):
        return dice.random() < 0.5
    if isinstance(kind, inspect.LiteralType):
        return dice.choice(kind.values)
    if isinstance(kind, inspect.IntType | inspect.FloatType):
        whole_number = isinstance(kind, inspect.IntType)
        low = kind.ge if kind.ge is not None else kind.gt if kind.gt is not None else -1e6
        high = kind.le if kind.le is not None else kind.lt if kind.lt is not None else 1e12
        inside = [low, high, min(high, low + 1), low + (high - low) / 2, low + (high - low) * dice.random() ** 12]
        if not whole_number:
            inside += [low + 1e-12, low + 1e-4, min(high, low + 1e3), high - abs(high) * 1e-9]
            if low <= 0:
                inside += [5e-324, 1e-300]
        inside = [x for x in inside if (kind.gt is None or x > kind.gt) and (kind.lt is None or x < kind.lt)]
        value = dice.choice(inside or [low])
        return int(value) if whole_number else float(value)
    if isinstance(kind, inspect.DateType):
        return dice.choice(WORDS["start"])
    if isinstance(kind, inspect.ListType | inspect.DictType):
        return [] if isinstance(kind, inspect.ListType) else {}
    return None


# ---- whole situations ----------------------------------------------------------------------------------------


def _disaggregated(dice: random.Random, fleet: Tree) -> None:
    """Prefill and decode replicas of one model."""
    name = dice.choice(list(fleet["deployments"]))
    prefill = fleet["deployments"][name]
    decode = copy.deepcopy(prefill)
    prefill["role"], decode["role"] = "prefill", "decode"
    for deployment in (prefill, decode):
        deployment["sites"] = {
            site: {"min": dice.choice([0, 1]), "max": dice.choice([1, 2])} for site in prefill["sites"]
        }
    fleet["deployments"]["decoders"] = decode


def _dark(dice: random.Random, fleet: Tree) -> None:
    """A site without any power at times, or always."""
    site = fleet["sites"][dice.choice(list(fleet["sites"]))]
    site["power_limits"] = [{"start_h": 0, "until_h": dice.choice([1e-6, 0.01, 1e6]), "power_mw": 0,
                             "every_h": dice.choice([None, 1e-6, 0.02])}]  # fmt: skip
    fleet.setdefault("policy", {})["cap"] = dice.choice(WORDS["cap"])


def _from_nothing(dice: random.Random, fleet: Tree) -> None:
    """No replica runs until somebody asks."""
    for deployment in fleet["deployments"].values():
        for site in deployment["sites"]:
            deployment["sites"][site] = {"min": 0, "max": 2}
        deployment["cold_start_s"] = dice.choice([0, 1e-9, 5, 1e9])
    fleet.setdefault("policy", {}).update(
        scale="target_utilisation", scale_down_s=dice.choice([0, 30]), control_every_s=dice.choice([0.1, 10])
    )


def _all_breaks(dice: random.Random, fleet: Tree) -> None:
    """Failures every few seconds, with short or endless repairs."""
    fleet["failures"] = {
        "replica_mtbf_h": 0.001, "replica_mttr_s": dice.choice([0.1, 5, 1e9]),
        "server_mtbf_h": dice.choice([0, 0.002]), "site_mtbf_h": dice.choice([0, 0.005]),
        "site_mttr_s": dice.choice([1e-9, 3, 1e9]),
        "events": [{"site": dice.choice(list(fleet["sites"])), "start_s": 0, "duration_s": dice.choice([1e-9, 2, 1e9])}],
    }  # fmt: skip
    fleet.setdefault("policy", {}).update(detect_s=dice.choice([0, 1e-9, 5, 1e9]), retries=dice.choice([0, 2, 5]))


def _poor(dice: random.Random, fleet: Tree) -> None:
    """Tenants with next to no money, or free of charge."""
    for tenant in fleet.setdefault("tenants", {"t": {}}).values():
        tenant["budget_per_month"] = dice.choice([1e-4, 1e-300, 1.0])
        tenant["price"] = {"input_per_mtok": dice.choice([0, 1e12]), "output_per_mtok": dice.choice([0, 1e12])}
    fleet.setdefault("policy", {})["admit"] = dice.choice(WORDS["admit"])


def _tight(dice: random.Random, fleet: Tree) -> None:
    """Engines with hardly any memory, seats or tokens."""
    for deployment in fleet["deployments"].values():
        seats = dice.choice([1, 2, 7])
        deployment.update(max_num_seqs=seats, max_num_batched_tokens=dice.choice([seats, seats + 1, 64]),
                          kv_blocks=dice.choice([2, 3, 40, 300]), block_tokens=dice.choice([1, 8, 16]))  # fmt: skip


def _patience(dice: random.Random, fleet: Tree) -> None:
    """Users who wait for nothing, gateways that look all the time."""
    fleet.setdefault("policy", {}).update(
        max_wait_s=dice.choice([1e-9, 1e-3, 0.5]),
        route=dice.choice(WORDS["route"]),
        observe_every_s=dice.choice([0.02, 5]),
    )


def _late(dice: random.Random, fleet: Tree) -> None:
    """A run that begins at an odd hour of an odd day."""
    fleet.setdefault("demand", {}).update(
        start=dice.choice(WORDS["start"]), start_hour_utc=dice.choice([0, 23.99, 23.999999999])
    )


def _elsewhere(dice: random.Random, fleet: Tree) -> None:
    """The gateway stands in any site."""
    fleet["gateway"] = {"site": dice.choice(list(fleet["sites"]))}


RECIPES = (
    _disaggregated, _disaggregated, _dark, _from_nothing, _all_breaks, _poor, _tight, _tight, _patience, _late, _elsewhere,
)  # fmt: skip


def as_yaml(tree: Any) -> str:
    """Return a tree as text that the fleet file's reader takes."""
    text = json.dumps(tree, ensure_ascii=False, indent=0, default=str)
    return text.replace("NaN", ".nan").replace("-Infinity", "-.inf").replace("Infinity", ".inf")
