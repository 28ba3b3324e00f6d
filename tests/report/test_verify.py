"""The offline verifier: whole ledgers pass, every way to cheat is found, files that are no ledgers are said to be none."""

from __future__ import annotations

import ast
import sqlite3
from contextlib import closing
from pathlib import Path

import pytest

from baseload.errors import InputError
from baseload.report import verify
from tests.chaos import tamper


@pytest.fixture(scope="module")
def honest(tmp_path_factory: pytest.TempPathFactory) -> tamper.Honest:
    """A ledger as it was written, and what its customer holds."""
    return tamper.write_honest(tmp_path_factory.mktemp("honest"), seed=3)


def test_five_hundred_ways_to_cheat_are_found():
    """The 500th part of `python -m tests.chaos.tamper`: nothing is missed, and the right rows are named."""
    missed = tamper.run(504, seed=1, say=lambda _: None)

    assert not missed, "\n".join(missed)


def test_an_honest_ledger_and_its_receipt_are_whole(honest: tamper.Honest, tmp_path: Path):
    """What the command line calls, with files: both verdicts are whole, and say what was looked at."""
    (tmp_path / "receipt.json").write_bytes(honest.receipt)
    (tmp_path / "public").write_text(honest.key.line + "\n")
    ledger, receipt = verify.verify(
        honest.ledger, receipt=tmp_path / "receipt.json", witness=honest.witness, public_key=tmp_path / "public"
    )

    assert ledger.whole and receipt.whole, [*ledger.lines(), *receipt.lines()]
    assert ledger.lines()[0].endswith("honest.db: whole")
    assert f"{ledger.n_rows} rows" in ledger.lines()[1] and ledger.n_checkpoints > 30


def test_the_first_changed_row_is_named_in_the_first_line(honest: tamper.Honest, tmp_path: Path):
    """Of several changed rows the verdict names the first, and exits in words a person can act on."""
    copy = tmp_path / "copy.db"
    copy.write_bytes(honest.ledger.read_bytes())
    with closing(sqlite3.connect(copy)) as db:
        db.execute("DROP TRIGGER rows_kept")
        for seq in (40, 17, 90):
            db.execute("UPDATE rows SET body = replace(CAST(body AS TEXT), ':', ': ') WHERE seq = ?", (seq,))
        db.commit()
    lines = verify.verify_ledger(copy, key=honest.key, witness=honest.witness).lines()

    assert "NOT WHOLE" in lines[0]
    assert lines[1].startswith("  first: row 17: its bytes are not those that were stored")


def test_what_is_no_ledger_is_said_to_be_none(honest: tamper.Honest, tmp_path: Path):
    """A missing file, a wrong key file and a file of something else are told apart."""
    with pytest.raises(InputError, match="no such ledger"):
        verify.verify(tmp_path / "absent.db")
    with pytest.raises(InputError, match="cannot be read"):
        verify.verify(honest.ledger, witness=tmp_path / "absent.log")
    (tmp_path / "key").write_text("ssh-ed25519 AAAA")
    with pytest.raises(InputError, match="not a public key of ours"):
        verify.verify(honest.ledger, public_key=tmp_path / "key")
    (tmp_path / "text.db").write_bytes(b"something else " * 1000)
    assert "damaged or not a ledger" in verify.verify(tmp_path / "text.db")[0].lines()[1]
    (tmp_path / "empty.db").write_bytes(b"")
    assert not verify.verify(tmp_path / "empty.db")[0].whole
    (tmp_path / "receipt.json").write_text("{}")
    (verdict,) = verify.verify(None, receipt=tmp_path / "receipt.json")
    assert "no receipt that can be read" in str(verdict.first)


def test_a_folder_that_may_only_be_read_is_verified_too(honest: tamper.Honest, tmp_path: Path):
    """An archive on read-only media verifies; nothing is written beside it."""
    copy = tmp_path / "archive.db"
    copy.write_bytes(honest.ledger.read_bytes())
    copy.chmod(0o400)
    assert verify.verify_ledger(copy, key=honest.key, witness=honest.witness).whole
    assert [path.name for path in tmp_path.iterdir()] == ["archive.db"]


def test_the_verifier_shares_no_code_with_the_writer():
    """None of its modules imports anything of the rooms that write the ledger."""
    for path in Path(verify.__file__).parent.glob("verify*.py"):
        for node in ast.walk(ast.parse(path.read_text("utf-8"))):
            names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            names += [node.module or ""] if isinstance(node, ast.ImportFrom) else []
            for name in names:
                assert not name.startswith(("baseload.serve", "baseload.adapters", "baseload.ports", "msgspec")), (
                    path,
                    name,
                )
