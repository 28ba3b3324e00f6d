"""The example fleets, the template and the schema: whole, recognisable, and in agreement with the code."""

from __future__ import annotations

import json
import random
import re
import subprocess
import sys
from datetime import date
from pathlib import Path
from typing import Any

import msgspec
import pytest

from baseload.fleet import check, dates, resolve
from baseload.fleet.load import load, loads
from baseload.fleet.model import Fleet
from baseload.fleet.schema import json_schema, schema_text, shipped_schema_text
from baseload.fleet.template import template
from baseload.fleet.tree import parse
from baseload.policies import KINDS
from tests.fuzz.fleet_mutations import EVERYTHING, change

EXAMPLES = sorted((Path(__file__).parents[2] / "examples").glob("*/fleet.yaml"))
every_example = pytest.mark.parametrize("path", EXAMPLES, ids=lambda path: path.parent.name)


def test_the_three_examples_are_there():
    """A regional cloud, an AI factory and an edge, each with a page of its own."""
    names = {path.parent.name for path in EXAMPLES}

    assert {"three-sites", "ai-factory", "edge"} <= names
    assert all((path.parent / "README.md").is_file() for path in EXAMPLES)


@every_example
def test_an_example_has_no_problems(path: Path):
    """Each example loads and keeps its promises, and its name is its folder's."""
    loaded = load(path)

    assert check.problems(loaded, policies=KINDS) == []
    assert loaded.fleet.name == path.parent.name


@every_example
def test_the_commands_in_an_examples_page_are_possible(path: Path):
    """Every --set that an example's page offers is accepted."""
    page = (path.parent / "README.md").read_text("utf-8")
    offered = re.findall(r"--set '?([^=`\s]+=(?:\[[^\]]*\]|[^`'\s]+))", page)

    assert offered
    for override in offered:
        assert check.problems(load(path, [override]), policies=KINDS) == [], override


def test_three_sites_has_a_ladder_with_steps():
    """In three-sites announced, contracted, energised and racked MW are four different numbers."""
    fleet = load(EXAMPLES[0].parents[1] / "three-sites" / "fleet.yaml").fleet
    day = dates.run_day(fleet)
    sites = dates.on(fleet, day).sites.values()
    rungs = [
        sum(ask(site, day) for site in sites) for ask in (dates.announced_mw, dates.contracted_mw, dates.energised_mw)
    ]
    rungs.append(sum(resolve.racks_power_mw(site) for site in sites))

    assert rungs == sorted(set(rungs), reverse=True)


def test_the_ai_factory_has_its_100_mw():
    """The campus announces 100 MW, and its halls fill one after the other."""
    fleet = load(EXAMPLES[0].parents[1] / "ai-factory" / "fleet.yaml").fleet
    by_day = [
        sum(dates.energised_mw(site, day) for site in fleet.sites.values())
        for day in (date(2025, 1, 1), date(2025, 7, 1), date(2026, 2, 1), date(2026, 6, 1))
    ]

    assert sum(dates.announced_mw(site, date(2026, 6, 1)) for site in fleet.sites.values()) == 100
    assert by_day == sorted(set(by_day))


def test_the_template_is_a_fleet_without_problems():
    """What `baseload init` writes is whole, without a word of warning, and every section has a comment."""
    loaded = loads(template("demo"), file="demo.yaml")
    sections = [line for line in template("demo").splitlines() if re.match(r"[a-z]+:", line)]

    assert check.problems(loaded, policies=KINDS) == []
    assert check.warnings(loaded) == []
    assert loaded.fleet.name == "demo"
    assert [line for line in sections if "#" not in line] == ["name: demo"]


def test_loading_a_fleet_needs_no_heavy_package():
    """Reading and checking a fleet file imports neither numpy, numba nor duckdb, so `baseload check` stays quick."""
    path = EXAMPLES[0].parents[1] / "three-sites" / "fleet.yaml"
    code = (
        "import sys; from baseload.fleet import check, load;"
        f"check.require(load.load({str(path)!r}));"
        "print(sorted({'numpy', 'numba', 'duckdb', 'rich', 'jinja2'} & set(sys.modules)))"
    )

    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)

    assert done.stdout.strip() == "[]"


# ---- the schema ------------------------------------------------------------------------------------------


def test_the_shipped_schema_is_the_records():
    """The JSON Schema beside the code is what the records give today (make docs writes it)."""
    assert shipped_schema_text() == schema_text()


def test_every_key_of_the_schema_is_described():
    """Each key of each record says in words what it is."""
    missing = [
        f"{record}.{key}"
        for record, shape in json_schema()["$defs"].items()
        for key, value in shape["properties"].items()
        if not value.get("description")
    ]

    assert missing == []


@every_example
def test_the_schema_accepts_the_examples(path: Path):
    """An editor that knows the schema finds nothing wrong in an example."""
    tree = parse(path.read_text("utf-8"), file=str(path)).plain_value()

    assert list(complaints(tree, json_schema())) == []


def test_schema_and_records_agree_on_damaged_files():
    """Over 1,500 damaged files, the schema refuses exactly those that the records refuse."""
    schema = json_schema()
    base = parse(EVERYTHING, file="base").plain_value()
    refused = 0
    for seed in range(1500):
        tree = json.loads(json.dumps(base))
        change(random.Random(seed), tree)
        text = json.dumps(tree)
        if "NaN" in text or "Infinity" in text:
            continue  # JSON knows no such numbers
        by_schema = next(complaints(tree, schema), None)
        by_records = None
        try:
            msgspec.convert(tree, Fleet)
        except msgspec.ValidationError as error:
            by_records = str(error)
        refused += by_records is not None
        assert (by_schema is None) == (by_records is None), (seed, by_schema, by_records)
    assert refused > 300


def complaints(value: Any, schema: dict[str, Any], root: dict[str, Any] | None = None, at: str = "") -> Any:
    """Yield what JSON Schema has against a value; knows the keywords that our schema uses, and no others."""
    root = root or schema
    known = {
        "$schema", "$defs", "$ref", "title", "description", "default", "type", "enum", "anyOf", "properties",
        "required", "additionalProperties", "propertyNames", "items", "prefixItems", "minItems", "maxItems", "pattern",
        "format", "minimum", "maximum", "exclusiveMinimum", "exclusiveMaximum",
    }  # fmt: skip
    assert set(schema) <= known, set(schema) - known
    if "$ref" in schema:
        yield from complaints(value, root["$defs"][schema["$ref"].rsplit("/", 1)[-1]], root, at)
        return
    if "anyOf" in schema:
        if all(next(complaints(value, one, root, at), None) for one in schema["anyOf"]):
            yield f"{at}: fits none of anyOf"
        return
    types = {
        "object": dict, "array": list, "string": str, "integer": int, "number": (int, float), "boolean": bool,
        "null": type(None),
    }  # fmt: skip
    if "enum" in schema:
        if isinstance(value, bool) or value not in schema["enum"]:
            yield f"{at}: not in enum"
        return
    wanted = schema.get("type")
    if wanted is None:
        return
    if not isinstance(value, types[wanted]) or (isinstance(value, bool) and wanted in ("integer", "number")):
        yield f"{at}: not a {wanted}"
        return
    yield from _bounds(value, schema, at)
    if isinstance(value, dict):
        properties = schema.get("properties", {})
        yield from (f"{at}: {key} is missing" for key in schema.get("required", []) if key not in value)
        for key, child in value.items():
            names = schema.get("propertyNames", {})
            if "pattern" in names and not re.search(names["pattern"], key):
                yield f"{at}: name {key!r}"
            other = schema.get("additionalProperties", True)
            if key in properties:
                yield from complaints(child, properties[key], root, f"{at}.{key}")
            elif other is False:
                yield f"{at}: no key {key}"
            elif isinstance(other, dict):
                yield from complaints(child, other, root, f"{at}.{key}")
    elif isinstance(value, list):
        if not schema.get("minItems", 0) <= len(value) <= schema.get("maxItems", len(value)):
            yield f"{at}: {len(value)} items"
        items = schema.get("items", {})
        for i, child in enumerate(value):
            one = schema["prefixItems"][i] if i < len(schema.get("prefixItems", ())) else items
            if isinstance(one, dict):
                yield from complaints(child, one, root, f"{at}.{i}")


def _bounds(value: Any, schema: dict[str, Any], at: str) -> Any:
    if isinstance(value, str):
        if "pattern" in schema and not re.search(schema["pattern"], value):
            yield f"{at}: pattern"
        if schema.get("format") == "date":
            try:
                date.fromisoformat(value if re.fullmatch(r"\d{4}-\d\d-\d\d", value) else "")
            except ValueError:
                yield f"{at}: no date"
    elif isinstance(value, int | float):
        if (
            value < schema.get("minimum", value)
            or value > schema.get("maximum", value)
            or ("exclusiveMinimum" in schema and value <= schema["exclusiveMinimum"])
            or ("exclusiveMaximum" in schema and value >= schema["exclusiveMaximum"])
        ):
            yield f"{at}: out of bounds"
