"""A receipt, verified without the ledger it came from; and against a ledger, where one is at hand."""

from __future__ import annotations

import hashlib
import json
import sqlite3
from contextlib import closing
from pathlib import Path

from baseload.report import verify_notes as notes
from baseload.report.verify_books import BadRow, read_body
from baseload.report.verify_verdict import Verdict


def open_read_only(path: Path) -> sqlite3.Connection:
    """Open a ledger's file for reading; a running ledger goes on."""
    uri = path.absolute().as_uri()
    database = sqlite3.connect(f"{uri}?mode=ro", uri=True, isolation_level=None, timeout=5.0)
    try:
        database.execute("SELECT count(*) FROM sqlite_master").fetchone()
    except sqlite3.OperationalError:  # a read-only folder has no room for the shared memory of a WAL
        database.close()
        database = sqlite3.connect(f"{uri}?immutable=1", uri=True, isolation_level=None)
    database.text_factory = lambda raw: raw.decode("utf-8", "replace")  # a damaged text is a finding, not a crash
    return database


def verify_receipt(
    blob: bytes, *, name: str = "receipt", key: notes.Key | None = None, ledger: Path | None = None
) -> Verdict:
    """Return what is wrong with a receipt: its row is in the signed tree, and in this ledger where one is given."""
    verdict = Verdict(name, n_rows=1)
    try:
        receipt = json.loads(blob)
        if json.dumps(receipt, ensure_ascii=False, separators=(",", ":")).encode() != blob.strip():
            raise BadRow("not in canonical form")
        body = receipt["body"].encode()
        seq, path = receipt["seq"], [bytes.fromhex(step) for step in receipt["path"]]
        stated = notes.read_checkpoint(receipt["checkpoint"])
        own = notes.read_key(receipt["public_key"])
        row = read_body(body)
        if receipt["baseload_receipt"] != 1 or type(seq) is not int:
            raise BadRow("of another version")
        if row["kind"] != "settle" or receipt["request_id"] != f"req-{row['request_id']:016x}":
            raise BadRow("its row is of another request")
        if [step.hex() for step in path] != receipt["path"]:
            raise BadRow("its proof is not in lower-case hexadecimal")
        if receipt["key_id"] != own.short:
            raise BadRow("it names another key than it holds")
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        verdict.add(None, f"is no receipt that can be read ({error})")
        return verdict
    if key is None:
        verdict.remarks.append(f"key {own.short} is the receipt's own word (--public-key FILE)")
    signer = key or own
    if not notes.signed_with(stated.signed, signer):
        verdict.add(seq, f"its checkpoint is not signed by key {signer.short}")
    leaf = hashlib.sha256(b"\x00" + body).digest()
    if notes.root_of_path(leaf, seq, stated.size, path) != stated.root:
        verdict.add(seq, "its proof does not lead to the signed root")
    if ledger is not None:
        _in_ledger(ledger, stated, seq, body, verdict)
    verdict.remarks.insert(0, f"{receipt['request_id']}: row {seq} of {stated.size} of {stated.origin}")
    return verdict


def _in_ledger(path: Path, stated: notes.Stated, seq: int, body: bytes, verdict: Verdict) -> None:
    """See whether the ledger still says what the receipt says."""
    try:
        with closing(open_read_only(path)) as database:
            (origin,) = database.execute("SELECT value FROM meta WHERE name = 'origin'").fetchone()
            leaves = [
                leaf for (leaf,) in database.execute("SELECT leaf FROM rows WHERE seq < ? ORDER BY seq", (stated.size,))
            ]
            found = database.execute("SELECT body FROM rows WHERE seq = ?", (seq,)).fetchone()
            if origin != stated.origin:
                verdict.remarks.append(f"it is of the log {stated.origin}, and {path} is {origin}: not compared")
            elif len(leaves) < stated.size:
                verdict.add(
                    len(leaves), f"cut off in {path}: the receipt was signed over {stated.size} rows", stated.size - 1
                )
            elif found is None or found[0] != body:
                verdict.add(seq, f"is another one in {path}")
            elif notes.Tree(leaves).root(stated.size) != stated.root:
                verdict.add(0, f"{path} is not the log that this receipt is from", stated.size - 1)
    except (sqlite3.Error, TypeError) as error:
        verdict.add(None, f"{path} is damaged or not a ledger ({error})")
