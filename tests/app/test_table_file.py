"""A table of replicas from a file: what contradicts the fleet, or cannot be, is refused with place and mend."""

from __future__ import annotations

import json
from functools import cache
from pathlib import Path
from typing import Any

import pytest

from baseload.app import plan_demand, plan_rows, table_file
from baseload.errors import InputError
from baseload.fleet.load import Loaded, loads
from baseload.fleet.planning import Plan

FLEET = """
baseload: 1
name: table
sites:
  a:
    place: stockholm
    grid: [{power_mw: 0.1, energised: 2024-01-01}]
    racks: {h: {accelerator: h100-sxm, accelerators_per_rack: 8}}
models: {m: {catalog: llama-3.1-8b}, n: {catalog: llama-3.1-8b}}
deployments:
  d: {model: m, accelerator: h100-sxm, precision: fp8, sites: {a: {min: 1}}}
  e: {model: n, accelerator: h100-sxm, precision: fp8, sites: {a: {min: 1}}}
tenants: {t: {share: 3, models: {m: 1}}, u: {share: 1, models: {n: 1}, slo: {ttft_ms: 4000}}}
demand: {generator: {kind: poisson, requests_per_s: 2, duration_s: 300, lengths_from: azure-conv}, start: 2026-01-01}
"""


def fleet(old: str = "", new: str = "") -> Loaded:
    """Return the fleet with one text replaced."""
    assert old in FLEET
    return loads(FLEET.replace(old, new) if old else FLEET)


@cache
def text() -> str:
    """Return the fleet's own table as a file holds it."""
    loaded = fleet()
    asked = plan_demand.traffic(loaded, Plan())
    return plan_rows.modelled_table(loaded.fleet, asked).to_json().decode()


def written(folder: Path, **row: Any) -> str:
    """Return a file with the table, its first row changed."""
    table = json.loads(text())
    table["rows"][0].update(row)
    path = folder / "replicas.json"
    path.write_text(json.dumps(table))
    return str(path)


def test_the_fleet_s_own_table_is_taken_and_a_renamed_tenant_keeps_its_demand(tmp_path: Path) -> None:
    """A row counts for whoever is promised its service today: nobody's demand is lost with a name."""
    path = written(tmp_path)
    assert table_file.read(path, fleet()).to_json().decode() == text()
    renamed = table_file.read(path, fleet("{t: {share", "{other: {share"))
    assert renamed.service_of("other", "m") is not None


@pytest.mark.parametrize(
    ("old", "new", "said"),
    [
        ("u: {share: 1, models: {n: 1}", "u: {share: 1, models: {n: 1, m: 1}", "holds no row for m@4000ms"),
        ("ttft_ms: 4000", "ttft_ms: 3000", "holds no row for n@3000ms"),
        ("e: {model: n, accelerator: h100-sxm, precision: fp8", "e: {model: n, accelerator: h100-sxm", "precision is fp8"),
        ("e: {model: n, accelerator: h100-sxm", "e: {model: n, tp: 2, accelerator: h100-sxm", "tp is 1 in the row and 2"),
        ("azure-conv", "azure-code", "a mean prompt is"),
    ],
)  # fmt: skip
def test_a_table_of_another_fleet_is_refused(tmp_path: Path, old: str, new: str, said: str) -> None:
    """A service without a row, other settings and other lengths are named with the file; demand never shrinks in silence."""
    path = written(tmp_path)
    with pytest.raises(InputError) as error:
        table_file.read(path, fleet(old, new))
    assert (
        f"--table {path}: " in str(error.value) and said in str(error.value) and "leave --table out" in str(error.value)
    )


@pytest.mark.parametrize(
    ("row", "said"),
    [
        ({"requests_per_s": 1e30}, "requests_per_s 1e+30 is not within"),
        ({"requests_per_s": -5.0}, "requests_per_s -5 is not within"),
        ({"correction": 7.0}, "correction 7 is not within"),
        ({"accelerator": "abacus"}, "is no id of the catalogue"),
        ({"tpot_ms": 1.0}, "does not say the row's own model and promise"),
    ],
)
def test_numbers_that_cannot_be_are_refused(tmp_path: Path, row: dict[str, Any], said: str) -> None:
    """A row that no replica could have is refused with file and row."""
    with pytest.raises(InputError, match=r"rows\[0\]") as error:
        table_file.read(written(tmp_path, **row), fleet())
    assert said in str(error.value)


def test_an_empty_table_a_row_twice_and_a_seed_below_nothing_name_the_file(tmp_path: Path) -> None:
    """A table that cannot be used is said to be that file's."""
    row = json.loads(text())["rows"][:1]
    for seed, rows, said in ((0, [], "holds no row"), (0, row * 2, "two rows"), (-1, row, "seed -1")):
        path = tmp_path / "t.json"
        path.write_text(json.dumps({"seed": seed, "rows": rows}))
        with pytest.raises(InputError, match=said) as error:
            table_file.read(str(path), fleet())
        assert str(path) in str(error.value)


def test_a_what_if_that_no_row_records_is_refused(tmp_path: Path) -> None:
    """A what-if of a model changes what a replica carries: a table from before it does not answer it."""
    changed = fleet("m: {catalog: llama-3.1-8b}", "m: {catalog: qwen3-8b}")
    with pytest.raises(InputError, match=r"what-if changes `models\.m`"):
        table_file.read(written(tmp_path), changed, fleet().fleet)
