"""The live half of `make demo`, short: a real engine behind each replica, real HTTP, a real ledger, and the twin beside it."""

from __future__ import annotations

from pathlib import Path

import pytest

from baseload.adapters.ledger_sqlite import SqliteLedger
from baseload.adapters.store import RunReader
from baseload.app import live_demo, replay
from baseload.app.cli import parser
from baseload.app.verbs import simulate_verb
from baseload.errors import RunError, TraceError
from baseload.serve.rows import settled

ROOT = Path(__file__).resolve().parents[2]
EDGE = """
baseload: 1
name: short
sites: {here: {place: frankfurt, grid: [{power_mw: 0.1, energised: 2022-01-01}],
  racks: {r: {accelerator: l40s, accelerators_per_rack: 4, racks: 1, in_service: 2022-01-01}}}}
models: {chat: {catalog: llama-3.1-8b}}
deployments: {d: {model: chat, accelerator: l40s, precision: fp8, sites: {here: {min: 1, max: 2}}}}
tenants: {acme: {price: {input_per_mtok: 1, output_per_mtok: 3}}}
"""


@pytest.mark.slow
def test_the_demo_shows_twin_and_reality_of_the_same_requests(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
):
    """Every request sent is answered, billed by the price list in the ledger, and served alike in the twin."""
    pytest.importorskip("xllamacpp")
    fleet = tmp_path / "fleet.yaml"
    fleet.write_text(EDGE + "demand: {scale: 7}\n")  # of a trace; a ledger is replayed at its own pace
    state = tmp_path / "state"
    monkeypatch.setattr("sys.stdin", None)  # nobody waits for Ctrl-C
    assert live_demo.run(fleet, 4.0, state) == 0

    said = capsys.readouterr().out
    assert "median error, not fitted" in said  # the engine was measured first
    assert "of 8 requests 8 ended alike" in said
    assert "8 served in both, 8 (100.0%) went to the same site" in said
    with SqliteLedger.read(state / "ledger.db") as ledger:
        rows = list(settled(row.body for row in ledger.rows()))
    assert len(rows) == 8
    assert sum(row.price_nano for row in rows) == sum(1000 * r.input_tokens + 3000 * r.output_tokens for r in rows)

    # The same ledger by the command line: a run folder, a report, and where reality differed.
    ledger = state / "ledger.db"
    words = ["simulate", str(fleet), "--replay", str(ledger), "--engines", "embedded", "--out", str(tmp_path / "again")]
    assert simulate_verb(parser().parse_args(words)) == 0
    said = capsys.readouterr().out
    assert "of 8 requests 8 ended alike" in said
    assert "without the network" in said
    assert (tmp_path / "again" / "report.html").is_file()
    with RunReader(tmp_path / "again") as run:
        span_ns = int(run.query("SELECT max(arrival_ns) FROM requests")[0][0])
    assert span_ns == max(row.arrival_ns for row in rows) - min(row.arrival_ns for row in rows)

    # With a fleet file that was not served, it says so.
    other = tmp_path / "other.yaml"
    other.write_text(EDGE.replace("chat:", "talk:").replace("model: chat", "model: talk"))
    words[1] = str(other)
    with pytest.raises(TraceError, match="chat"):
        simulate_verb(parser().parse_args([*words[:-1], str(tmp_path / "third")]))


def test_a_ledger_that_is_not_there_is_named(tmp_path: Path):
    """No such file: a sentence that says what to name."""
    with pytest.raises(RunError, match=r"no such ledger; name the ledger\.db"):
        replay.read(tmp_path / "ledger.db")


def test_an_empty_ledger_says_that_it_holds_nothing(tmp_path: Path):
    """A ledger without a settled request cannot be replayed, and says so."""
    from baseload.adapters.signing import SigningKey, Witness

    ledger = SqliteLedger.open(
        tmp_path / "ledger.db", SigningKey.load_or_create(tmp_path / "k"), witness=Witness(tmp_path / "w")
    )
    ledger.close()
    with pytest.raises(RunError, match="holds no settled request"):
        replay.read(tmp_path / "ledger.db")
