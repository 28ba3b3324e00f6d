"""Rules between records: every promise that the fleet cannot keep is named, with line and mend."""

from __future__ import annotations

from datetime import date
from pathlib import Path

import pytest

from baseload.errors import FleetError, Problem
from baseload.fleet import check
from baseload.fleet.load import Loaded, load, loads
from baseload.policies import KINDS

GOOD = """\
baseload: 1
name: good
sites:
  frankfurt:
    place: frankfurt
    grid: [{power_mw: 0.2, announced: 2021-01-01, contracted: 2022-01-01, energised: 2023-01-01}]
    contracts: [{power_mw: 0.2, price_per_mwh: 90}]
    racks:
      h: {accelerator: h100-sxm, accelerators_per_rack: 8, racks: 4}
      a: {accelerator: a100-sxm, accelerators_per_rack: 8}
  oslo:
    place: oslo
    operator_jurisdiction: US
    contracts: [{power_mw: 0.1, price_per_mwh: 70}]
    racks:
      h: {accelerator: H100_SXM, accelerators_per_rack: 8}
models:
  chat: {catalog: llama-3.1-8b}
  big: {catalog: llama-3.1-70b}
deployments:
  chat: {model: chat, accelerator: h100-sxm, sites: {frankfurt: {min: 4, max: 8}, oslo: {min: 2}}}
  big: {model: big, accelerator: h100-sxm, tp: 4, precision: fp8, sites: {frankfurt: {min: 6}}}
regions:
  north: {place: stockholm}
tenants:
  all: {share: 3}
  eu: {residency: [EU], models: {chat: 1, big: 1}, regions: {north: 1}}
  nordic: {residency: [NO, SE], models: {chat: 1}}
links: [{between: [north, oslo], rtt_ms: 9}]
demand: {trace: azure-conv}
"""


def found(old: str = "", new: str = "", *overrides: str) -> list[Problem]:
    """Return the problems of GOOD with one change."""
    assert old in GOOD
    loaded = loads(GOOD.replace(old, new, 1), file="f.yaml", overrides=overrides)
    return check.problems(loaded, policies=KINDS)


def test_a_fleet_that_keeps_its_promises_has_no_problems():
    """The fleet that the other tests break is whole."""
    assert found() == []
    check.require(loads(GOOD), policies=KINDS)


@pytest.mark.parametrize(
    ("old", "new", "key", "line", "words"),
    [
        # names
        ("model: chat,", "model: chta,", "deployments.chat.model", 21, "did you mean `chat`?"),
        ("oslo: {min: 2}", "olso: {min: 2}", "deployments.chat.sites.olso", 21, "did you mean `oslo`?"),
        ("a100-sxm, acc", "a10-sxm, acc", "sites.frankfurt.racks.a.accelerator", 10, "did you mean"),
        ("place: oslo", "place: osla", "sites.oslo.place", 12, "no place 'osla'; did you mean oslo"),
        ("place: stockholm", "place: x", "regions.north.place", 24, "no place 'x'"),
        ("catalog: llama-3.1-8b", "catalog: lama-3.1-8b", "models.chat.catalog", 18, "did you mean"),
        ("catalog: llama-3.1-8b", "", "models.chat", 18, "has neither `catalog` nor `architecture`"),
        ("{north: 1}", "{south: 1}", "tenants.eu.regions.south", 27, "there is no region `south`"),
        ("big: 1}", "bag: 1}", "tenants.eu.models.bag", 27, "did you mean `big`?"),
        ("north, oslo", "nord, oslo", "links.0.between.0", 29, "neither a site nor a region"),
        ("north, oslo", "oslo, oslo", "links.0.between", 29, "both ends are the same"),
        ("links: [", "links: [{between: [oslo, north]},\n  ", "links.1.between", 30, "already (links.0, line 29)"),
        ("azure-conv", "azure", "demand.trace", 30, "there is no trace `azure`"),
        ("azure-conv", "mine.csv", "demand.trace", 30, "there is no file `mine.csv`"),
        ("demand:", "gateway: {site: x}\ndemand:", "gateway.site", 30, "there is no site `x`"),
        ("demand:", "policy: {route: least_wat}\ndemand:", "policy.route", 30, "did you mean `least_wait`?"),
        ("demand:", "policy: {route: 'a.py:f'}\ndemand:", "policy.route", 30, "there is no file `a.py`"),
        ("demand:", "policy: {cap: 'a.py:f'}\ndemand:", "policy.cap", 30, "there is no file `a.py`"),
        ("demand:", "policy: {digest: {a.py: xy}}\ndemand:", "policy.digest.a.py", 30, "is not a SHA-256"),
        # room
        ("min: 6", "min: 7", "deployments.chat.sites.frankfurt", 21, "36 h100-sxm at frankfurt, and 32 are racked"),
        ("max: 8", "max: 9", "deployments.chat.sites.frankfurt", 21, "want 33 h100-sxm"),
        ("max: 8", "max: 3", "deployments.chat.sites.frankfurt.max", 21, "3 is below min 4"),
        ("h100-sxm, tp", "l40s, tp", "deployments.big.sites.frankfurt", 22, "no l40s is racked there"),
        ("a100-sxm, acc", "gb200, acc", "sites.frankfurt.racks.a.accelerator", 10, "needs liquid"),
        ("racks: 4", "racks: 40", "sites.frankfurt.grid", 6, "0.2 MW are energised"),
        ("power_mw: 0.2, price", "power_mw: 0.01, price", "sites.frankfurt.contracts", 7, "0.01 MW are contracted"),
        ("place: frankfurt", "place: frankfurt\n    floor_m2: 4", "sites.frankfurt.floor_m2", 6, "racks take 15 m2"),
        (
            "place: frankfurt",
            "place: frankfurt\n    cooling: {capacity_mw: 0.01}",
            "sites.frankfurt.cooling",
            6,
            "0.01 MW are coolable",
        ),
        ("contracts: [{power_mw: 0.1, price_per_mwh: 70}]", "floor_m2: 9", "sites.oslo", 11, "neither a grid"),
        # engines
        ("precision: fp8", "precision: fp4", "deployments.big.precision", 22, "h100-sxm has no fp4"),
        ("tp: 4", "tp: 3", "deployments.big.tp", 22, "64 attention heads do not divide by 3"),
        ("tp: 4", "tp: 4, ep: 2", "deployments.big.ep", 22, "no experts to spread"),
        ("tp: 4", "tp: 4, role: prefill", "deployments.big.role", 22, "no decode replicas there"),
        ("tp: 4", "tp: 4, role: decode", "deployments.big.role", 22, "no prefill replicas there"),
        (
            "tp: 4",
            "tp: 4, max_num_batched_tokens: 9",
            "deployments.big.max_num_batched_tokens",
            22,
            "below max_num_seqs",
        ),
        # dates
        ("contracted: 2022", "contracted: 2024", "sites.frankfurt.grid.0.energised", 6, "is not after contracted"),
        (
            "price_per_mwh: 90",
            "start: 2024-01-01, until: 2024-01-01",
            "sites.frankfurt.contracts.0.until",
            7,
            "not after",
        ),
        ("racks: 4", "in_service: 2023-02-01, until: 2022-01-01", "sites.frankfurt.racks.h.until", 9, "is not after"),
        # tenants
        ("[NO, SE]", "[SE]", "tenants.nordic", 28, "no site may serve `chat`"),
        ("[NO, SE]", "[NO], sovereignty: [EEA]", "tenants.nordic", 28, "no site may serve `chat`"),
        ("[NO, SE]", "[Norway]", "tenants.nordic.residency.0", 28, "neither a country nor a bloc"),
        ("residency: [EU], models: {chat: 1, big: 1}", "models: {chat: 0}", "tenants.eu.models", 27, "weights are 0"),
        ("trace: azure-conv", "trace: azure-conv, generator: {kind: poisson}", "demand", 30, "has both"),
        (
            "trace: azure-conv",
            "generator: {kind: mmpp, burst_factor: 50}",
            "demand.generator.burst_factor",
            30,
            "50 times the mean rate",
        ),
    ],
)
def test_a_promise_that_cannot_be_kept_is_named(old: str, new: str, key: str, line: int, words: str):
    """Each rule finds its breach, at the line and key of the file, and says what is wrong."""
    said = found(old, new)

    assert any((one.file, one.line, one.key) == ("f.yaml", line, key) and words in str(one) for one in said), "\n".join(
        map(str, said)
    )


def test_training_takes_its_accelerators_from_the_same_racks():
    """Replicas and training together may not want more than is racked."""
    said = found("place: oslo", "place: oslo\n    training: {t: {accelerator: h100-sxm, accelerators: 7}}")

    assert [one.key for one in said] == ["deployments.chat.sites.oslo"]
    assert "want 9 h100-sxm at oslo, and 8 are racked" in said[0].what


def test_racks_count_from_the_day_they_are_in_service():
    """A deployment on racks that come later is a problem today, and none on a later day."""
    late = ("racks: 4}", "racks: 4, in_service: 2024-01-01}")

    assert any("is racked there on 2023-06-15" in str(one) for one in found(*late))
    assert found(*late, "demand.start=2024-02-01") == []


def test_a_model_that_nobody_serves_or_calls():
    """A model that tenants call and nobody deploys is a problem; one that nobody calls is a warning."""
    unserved = found("tp: 4, precision", "start: 2030-01-01, tp: 4, precision")
    uncalled = loads(GOOD.replace("all: {share: 3}", "all: {models: {chat: 1}}").replace(", big: 1", ""), file="f.yaml")

    assert [one.key for one in unserved] == ["models.big"]
    assert check.problems(uncalled) == []
    assert [one.key for one in check.warnings(uncalled)] == ["models.big"]


def test_power_that_is_announced_alone_is_a_warning(tmp_path: Path):
    """A site that only waits for its grid is possible, and worth a word; so are racks that no redundancy protects."""
    waiting = loads(
        GOOD.replace("models:\n", "  later: {place: paris, grid: [{power_mw: 50}]}\nmodels:\n", 1), file="f.yaml"
    )
    tight = loads(GOOD.replace("place: frankfurt", "place: frankfurt\n    redundancy: 2N", 1).replace("0.2", "0.07"))

    assert check.problems(waiting) == []
    assert "none is energised on 2023-06-15" in str(check.warnings(waiting)[0])
    assert "none is energised on 2031-01-01" in str(check.warnings(waiting, day=date(2031, 1, 1))[0])
    assert any("with redundancy 2N" in str(one) for one in check.warnings(tight))


def test_an_empty_fleet_says_what_to_add():
    """Sites, models and deployments have to be there."""
    loaded = loads("baseload: 1\nname: x\nsites: {}\nmodels: {}\ndeployments: {}\n")

    with pytest.raises(FleetError) as caught:
        check.require(loaded)

    assert [problem.key for problem in caught.value.problems] == ["sites", "models", "deployments"]


def test_an_architecture_that_cannot_be_is_refused():
    """A model's own shape has to make sense: heads divide, experts have a width."""
    shape = "{n_layers: 2, hidden: 100, n_heads: 8, n_kv_heads: 3, n_experts: 4, experts_per_token: 8}"
    said = found("catalog: llama-3.1-8b", f"architecture: {shape}")

    assert {one.key.rsplit(".", 1)[-1] for one in said} == {"head_dim", "n_kv_heads", "experts_per_token", "moe_ffn"}


def test_series_files_are_read_at_the_check(tmp_path: Path):
    """A series with a gap is found by `check`, with the file's own line."""
    (tmp_path / "price.csv").write_text("price\n" + "\n".join(["50"] * 99 + ["x"] + ["50"] * 8660))
    (tmp_path / "f.yaml").write_text(GOOD.replace("price_per_mwh: 90", "price_per_mwh: {file: price.csv}"))
    loaded: Loaded = load(tmp_path / "f.yaml")

    (problem,) = check.problems(loaded)

    assert problem.key == "sites.frankfurt.contracts.0.price_per_mwh"
    assert "price.csv:101: 'x' is not a number" in problem.what
