"""A ledger as demand: whose request it was, from where and for what is what the ledger says, not what shares would draw."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import pytest

from baseload.adapters.accounts import AccountsFile
from baseload.adapters.ledger_sqlite import SqliteLedger
from baseload.adapters.signing import SigningKey, Witness
from baseload.adapters.store import RunReader
from baseload.app import replay
from baseload.app.cli import parser
from baseload.app.verbs import simulate_verb
from baseload.errors import RunError, TraceError
from baseload.fleet import load
from baseload.records import SERVED
from baseload.serve.rows import LeaseRow, SettleRow, row_in

FLEET = """
baseload: 1
name: short
sites: {here: {place: frankfurt, grid: [{power_mw: 0.1, energised: 2022-01-01}],
  racks: {r: {accelerator: l40s, accelerators_per_rack: 8, racks: 1, in_service: 2022-01-01}}}}
regions: {north: {place: oslo}, south: {place: madrid}, east: {place: frankfurt}}
models: {small: {catalog: llama-3.1-8b}, other: {catalog: llama-3.1-8b}}
deployments:
  s: {model: small, accelerator: l40s, precision: fp8, sites: {here: {min: 1, max: 2}}}
  o: {model: other, accelerator: l40s, precision: fp8, sites: {here: {min: 1, max: 2}}}
tenants: {office: {}, public: {}, desk: {}}
"""
ASKED = [  # tenant, region, model: no two columns count alike
    ("desk", "south", "small"), ("public", "east", "small"), ("public", "north", "other"), ("public", "south", "small"),
    ("office", "north", "other"), ("desk", "east", "other"), ("desk", "south", "other"),
]  # fmt: skip
START_NS = 1_700_000_000_000_000_000


@pytest.fixture
def fleet(tmp_path: Path) -> Path:
    """Write the fleet file that was served."""
    path = tmp_path / "fleet.yaml"
    path.write_text(FLEET)
    return path


def kept(folder: Path, asked: list[tuple[str, str, str]]) -> Path:
    """Write a state folder's ledger and accounts; a tenant in capitals is one whose name was forgotten."""
    accounts = AccountsFile(folder / "accounts.db")
    rows = []
    for i, (tenant, region, model) in enumerate(asked):
        arrival_ns = START_NS + i * 2_000_000_000
        rows.append(SettleRow(
            request_id=1 + i, at_ns=arrival_ns, key="k", model=model, region=region, site="here", deployment=model[0],
            tenant="t_forgotten" if tenant.isupper() else accounts.tenant_pseudonym(tenant), status=SERVED,
            arrival_ns=arrival_ns, first_token_ns=arrival_ns + 10**8, finish_ns=arrival_ns + 10**9,
            input_tokens=100 + i, output_tokens=20,
        ))  # fmt: skip
    accounts.close()
    path = folder / "ledger.db"
    with SqliteLedger.open(path, SigningKey.load_or_create(folder / "k"), witness=Witness(folder / "w")) as ledger:
        lease = LeaseRow(request_id=1, at_ns=START_NS, n_ids=len(rows))
        ledger.append([row_in(lease), *map(row_in, rows)])
    return path


def test_each_request_of_a_ledger_keeps_its_tenant_region_and_model(tmp_path: Path, fleet: Path):
    """The twin is asked by the tenants, from the regions and for the models that the ledger's rows name, row by row."""
    ledger = kept(tmp_path, ASKED)
    words = ["simulate", str(fleet), "--replay", str(ledger), "--out", str(tmp_path / "run")]
    assert simulate_verb(parser().parse_args(words)) == 0
    tenants, regions, models = ("office", "public", "desk"), ("north", "south", "east"), ("small", "other")
    with RunReader(tmp_path / "run") as run:
        found = run.query("SELECT tenant_i, region_i, model_i FROM requests ORDER BY request_id")
    assert [(tenants[t], regions[r], models[m]) for t, r, m in found] == ASKED
    assert Counter(tenants[t] for t, _, _ in found) == {"desk": 3, "public": 3, "office": 1}


def test_requests_of_a_tenant_without_a_name_are_left_away_and_said(
    tmp_path: Path, fleet: Path, capsys: pytest.CaptureFixture[str]
):
    """Whose a request was is never guessed: what a forgotten tenant asked is not replayed, and report and answer say so."""
    ledger = kept(tmp_path, [("FORGOTTEN", "north", "small"), *ASKED, ("FORGOTTEN", "north", "small")])
    words = ["simulate", str(fleet), "--replay", str(ledger), "--out", str(tmp_path / "run")]
    assert simulate_verb(parser().parse_args(words)) == 0
    said = "2 settled request(s) left away: no name of their tenant is in accounts.db"
    told = capsys.readouterr().out
    assert said in told.splitlines() and "of 7 requests 7 ended alike" in told
    with RunReader(tmp_path / "run") as run:
        assert said in run.meta.notes


def test_a_ledger_without_its_accounts_is_refused_where_there_are_several_tenants(tmp_path: Path, fleet: Path):
    """Pseudonyms alone say nothing of several tenants; the one tenant of a fleet is known without them."""
    ledger = kept(tmp_path, ASKED)
    (tmp_path / "accounts.db").unlink()
    several = load.load(fleet, ()).fleet
    with pytest.raises(RunError, match=r"nobody can say which tenants asked: no accounts\.db"):
        replay.named(replay.read(ledger), several)
    fleet.write_text(FLEET.replace("{office: {}, public: {}, desk: {}}", "{office: {}}"))
    alone = load.load(fleet, ()).fleet
    trace = replay.source(replay.named(replay.read(ledger), alone), alone).whole()
    assert trace.tenant_i.tolist() == [0] * len(ASKED)
    assert trace.model_i.tolist() == [0, 0, 1, 0, 1, 1, 1]


@pytest.mark.parametrize("name", ["desk", "south", "other"])
def test_a_fleet_file_that_was_not_served_is_refused(tmp_path: Path, fleet: Path, name: str):
    """A tenant, a region or a model that the ledger names and the file does not have is named."""
    ledger = kept(tmp_path, ASKED)
    fleet.write_text(FLEET.replace(f"{name}:", "new:").replace(f"model: {name}", "model: new"))
    other = load.load(fleet, ()).fleet
    with pytest.raises(TraceError, match=f"that the fleet file does not have: {name}; replay it with"):
        replay.source(replay.named(replay.read(ledger), other), other)
