"""Was this ledger changed? An offline verifier that shares no code with what wrote it.

It believes the public key it is given, and the witness file; nothing that the ledger says of itself counts without a
signature. It names the first row whose bytes are not those that were stored, where the row's own hash tells; where somebody
recomputed hashes, too, it names the rows between the last good signed checkpoint and the first bad one. Rows that were cut
off at the end down to a signed checkpoint can only be seen against the witness, or a receipt.
"""

from __future__ import annotations

import hashlib
import sqlite3
from contextlib import closing
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from baseload.errors import InputError
from baseload.report import verify_notes as notes
from baseload.report.verify_books import KIND_WORDS, BadRow, Books, read_body
from baseload.report.verify_receipt import open_read_only, verify_receipt
from baseload.report.verify_verdict import Verdict
from baseload.report.verify_witness import compare, signer_at

FORMAT = "baseload-ledger/1"
STORED_LEVEL = 6  # subtrees of 64 rows and more are in the table of nodes


def verify(
    ledger: Path | None,
    *,
    receipt: Path | None = None,
    witness: Path | None = None,
    public_key: Path | None = None,
    previous: Path | None = None,
) -> list[Verdict]:
    """Verify a ledger, a receipt, or both, as `baseload verify` does; raises InputError where a file cannot be read."""
    key = _key_of(public_key) if public_key else None
    verdicts = []
    if ledger is not None:
        verdicts.append(verify_ledger(ledger, key=key, witness=witness, previous=previous))
    if receipt is not None:
        verdicts.append(verify_receipt(_text(receipt), name=str(receipt), key=key, ledger=ledger))
    return verdicts


def _text(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise InputError(f"{path}: cannot be read ({error.strerror}); name a file that exists") from None


def _key_of(path: Path) -> notes.Key:
    try:
        return notes.read_key(_text(path).decode("utf-8", "replace"))
    except notes.BadNote as error:
        raise InputError(f"{path}: {error}") from None


# ---- the ledger ------------------------------------------------------------------------------------------


@dataclass(slots=True)
class _Content:
    """All of a ledger that is small, and its rows as hashes."""

    meta: dict[str, Any]
    keys: list[tuple[Any, ...]]
    checkpoints: list[tuple[Any, ...]]
    nodes: list[tuple[Any, ...]]
    leases: list[tuple[Any, ...]]
    totals: list[tuple[Any, ...]]
    leaves: list[bytes] = field(default_factory=list)
    successions: list[tuple[int, notes.Key, notes.Key, str]] = field(default_factory=list)  # row, old, new, note
    first: dict[str, Any] = field(default_factory=dict)


def verify_ledger(
    path: Path, *, key: notes.Key | None = None, witness: Path | None = None, previous: Path | None = None
) -> Verdict:
    """Return what is wrong with a ledger's file; everything is read in one snapshot, a running ledger may go on."""
    verdict = Verdict(str(path))
    if not path.is_file():
        raise InputError(f"{path}: no such ledger")
    seen = _text(witness) if witness is not None else None  # before the ledger, which may grow meanwhile
    books = Books()
    try:
        with closing(open_read_only(path)) as database:
            database.execute("BEGIN")
            for (fault,) in database.execute("PRAGMA integrity_check(5)").fetchall():
                if fault != "ok":
                    verdict.add(None, f"its file is damaged ({fault})")
            content = _read(database)
            _rows(database, content, books, verdict)
    except (sqlite3.Error, OverflowError, ValueError) as error:
        verdict.add(None, f"its file is damaged or not a ledger ({error})")
        return verdict
    tree = notes.Tree(content.leaves)
    _meta(content, verdict)
    _nodes(content, tree, verdict)
    signers = _signers(content, key, verdict)
    _checkpoints(content, tree, signers, verdict)
    _tables(content, books, verdict)
    if seen is not None:
        keys = [*signers, (2**63, key)] if key else signers
        compare(seen, str(content.meta.get("origin")), tree, keys, verdict)
    else:
        verdict.remarks.append("no witness file was given: rows cut off at the end would not be seen (--witness FILE)")
    _previous(content, previous, verdict)
    _remark(content, books, verdict)
    return verdict


def _read(database: sqlite3.Connection) -> _Content:
    return _Content(
        meta=dict(database.execute("SELECT name, value FROM meta").fetchall()),
        keys=database.execute("SELECT key_id, public_line, note FROM keys ORDER BY i").fetchall(),
        checkpoints=database.execute("SELECT size, note FROM checkpoints ORDER BY size").fetchall(),
        nodes=database.execute("SELECT level, i, hash FROM nodes").fetchall(),
        leases=database.execute("SELECT * FROM leases ORDER BY lease_id").fetchall(),
        totals=database.execute("SELECT * FROM totals").fetchall(),
    )


def _rows(database: sqlite3.Connection, content: _Content, books: Books, verdict: Verdict) -> None:
    """Check each row by itself and against those before it; keep the hashes that were stored."""
    expected = 0
    for seq, kind, request_id, leaf, body in database.execute(
        "SELECT seq, kind, request_id, leaf, body FROM rows ORDER BY seq"
    ):
        if seq != expected:
            verdict.add(expected, "missing", seq - 1, sure=True)
            expected = seq
        expected += 1
        found = hashlib.sha256(b"\x00" + (body if isinstance(body, bytes) else b"")).digest()
        if leaf != found:
            verdict.add(seq, "its bytes are not those that were stored (they do not match the row's hash)", sure=True)
        content.leaves.append(leaf if isinstance(leaf, bytes) and len(leaf) == 32 else found)
        try:
            row = read_body(body)
            _filed(seq, kind, request_id, row, verdict)
            books.take(seq, row)
            if seq == 0:
                content.first = row
                content.successions += [(-2, *notes.read_succession(note), note) for note in row.get("successions", [])]
            if row["kind"] == "control" and row.get("action") == "signing-key":
                content.successions.append((seq, *notes.read_succession(row.get("note")), row["note"]))
        except (BadRow, notes.BadNote) as error:
            verdict.add(seq, str(error))
        except (OverflowError, ValueError, OSError) as error:
            verdict.add(seq, f"cannot be read ({error})")
    verdict.n_rows = len(content.leaves)


def _filed(seq: int, kind: object, request_id: object, row: dict[str, Any], verdict: Verdict) -> None:
    """See that a row is filed as what its body says it is."""
    said = row.get("request_id", 0)
    if type(kind) is not int or not 0 < kind < len(KIND_WORDS) or KIND_WORDS[kind] != row["kind"] or request_id != said:
        verdict.add(seq, f"filed as {kind!r} {request_id!r}, its body says {row['kind']} {said!r}", sure=True)


def _meta(content: _Content, verdict: Verdict) -> None:
    if content.meta.get("format") != FORMAT:
        verdict.add(None, f"its format is {content.meta.get('format')!r}; this program verifies {FORMAT!r}")
    if not content.leaves:
        verdict.add(None, "it has no rows")
    elif content.meta.get("origin") != content.first.get("origin"):
        verdict.add(0, f"names the log {content.first.get('origin')!r}, the file {content.meta.get('origin')!r}")


def _nodes(content: _Content, tree: notes.Tree, verdict: Verdict) -> None:
    """Compare the stored inner nodes with those that the rows' hashes give."""
    expected = {
        (level, i): node
        for level, nodes in enumerate(tree.levels)
        if level >= STORED_LEVEL
        for i, node in enumerate(nodes)
    }
    for level, i, node in sorted(content.nodes, key=lambda row: (str(row[0]), str(row[1]))):
        if expected.pop((level, i), None) != node:
            whole = isinstance(level, int) and isinstance(i, int) and 0 <= level < 63 and i >= 0
            start = i << level if whole else 0
            if not whole or start >= len(content.leaves):
                verdict.add(None, f"a hash of the tree (level {level!r}, {i!r}) belongs to no rows")
            else:
                verdict.add(
                    start, "the stored hash over them is not theirs", min(start + (1 << level), len(content.leaves)) - 1
                )
    for level, i in sorted(expected):
        verdict.add(i << level, "the stored hash over them is missing", ((i + 1) << level) - 1)


def _signers(content: _Content, key: notes.Key | None, verdict: Verdict) -> list[tuple[int, notes.Key]]:
    """Return (first checkpoint size, key) in order: who had to sign from when on."""
    signers: list[tuple[int, notes.Key]] = []
    for seq, old, new, _ in content.successions:
        if signers and signers[-1][1] != old:
            verdict.add(seq, f"hands over from key {old.short}, but {signers[-1][1].short} was signing")
        if not signers:
            signers.append((0, old))
        signers.append((seq + 2, new))  # the row itself is the last that the old key signs
    if not signers:
        own = _own_key(content) or key
        if own is None:
            verdict.add(None, "it holds no public key that can be read; give one (--public-key FILE)")
            return []
        signers = [(0, own)]
    if key is None:
        verdict.remarks.append(
            f"key {signers[0][1].short} is the ledger's own word: somebody who rewrote it all and signed anew would not be "
            "seen (--public-key FILE)"
        )
    elif key not in [signer for _, signer in signers]:
        verdict.add(None, f"it is signed by {signers[-1][1].short}, not by the public key given, {key.short}")
    notes_of = ["", *(note for *_, note in content.successions)]
    if content.keys != [(signer.short, signer.line, note) for (_, signer), note in zip(signers, notes_of)]:
        verdict.add(None, "its table of public keys is not that of the keys that signed it")
    if content.meta.get("key_id") != signers[-1][1].short:
        verdict.add(
            None, f"it says that key {content.meta.get('key_id')!r} signs now, its rows say {signers[-1][1].short}"
        )
    return signers


def _own_key(content: _Content) -> notes.Key | None:
    for _, line, _ in content.keys:
        try:
            found = notes.read_key(str(line))
        except notes.BadNote:
            continue
        if found.short == content.meta.get("key_id"):
            return found
    return None


def _checkpoints(content: _Content, tree: notes.Tree, signers: list[tuple[int, notes.Key]], verdict: Verdict) -> None:
    """Check every signed checkpoint against the rows; name the rows between the last good one and the first bad one."""
    good, last_ns, covered, before = 0, 0, 0, 0
    broken = ""
    refused: list[tuple[object, str]] = []
    for size, note in content.checkpoints:
        verdict.n_checkpoints += 1
        try:
            stated = _stated(size, note, content, signers)
            if stated.time_ns < last_ns:
                raise notes.BadNote("was signed before the one before it")
        except notes.BadNote as error:
            refused.append((size, str(error)))
            before = size if isinstance(size, int) else before
            continue
        _refused(refused, good, content, verdict)
        if stated.after != before:
            verdict.add(before, f"the checkpoint over {stated.after} rows is missing", max(before, stated.after - 1))
        last_ns, covered, before = stated.time_ns, max(covered, stated.size), stated.size
        if stated.size > len(content.leaves):
            verdict.add(len(content.leaves), f"cut off: a signed checkpoint covers {stated.size} rows", stated.size - 1)
            break
        if tree.root(stated.size) == stated.root:
            good = stated.size
        elif not broken:
            broken = f"not what was signed (checkpoint over {size} rows)"
            verdict.add(good, broken, max(good, size - 1))
    _refused(refused, good, content, verdict)
    if covered < len(content.leaves):
        verdict.add(covered, "no signed checkpoint covers them", len(content.leaves) - 1)


def _stated(size: object, note: object, content: _Content, signers: list[tuple[int, notes.Key]]) -> notes.Stated:
    """Return what a stored checkpoint states; raises BadNote where it is not what its signer signed for this place."""
    stated = notes.read_checkpoint(note)
    signer = signer_at(signers, stated.size)
    if stated.size != size or stated.origin != content.meta.get("origin"):
        raise notes.BadNote(f"states {stated.origin!r} of {stated.size} rows, filed under {size!r}")
    if signer is None or not notes.signed_with(stated.signed, signer):
        raise notes.BadNote(f"is not signed by key {signer.short if signer else '(none)'}")
    return stated


def _refused(refused: list[tuple[object, str]], good: int, content: _Content, verdict: Verdict) -> None:
    """Say which checkpoints in a row were refused, and which rows therefore nobody vouches for."""
    if refused:
        (size, why), (last, _) = refused[0], refused[-1]
        more = f", and {len(refused) - 1} after it" if len(refused) > 1 else ""
        verdict.add(good, f"the checkpoint over {size!r} rows {why}{more}", max(good, _until(last, content)))
        refused.clear()


def _until(size: object, content: _Content) -> int:
    return min(size, len(content.leaves)) - 1 if isinstance(size, int) else len(content.leaves) - 1


def _tables(content: _Content, books: Books, verdict: Verdict) -> None:
    """Compare the ledger's own tables of leases and sums with what its rows say."""
    sums = {account: tuple(values) for account, values in books.sums.items()}
    stored = {row[:3]: row[3:] for row in content.totals}
    for account in sorted(sums.keys() | stored.keys(), key=str):
        if sums.get(account) != stored.get(account):
            verdict.add(
                None,
                f"the sums of {' '.join(map(str, account))} are {stored.get(account)}, its rows give {sums.get(account)}",
            )
    if list(books.open_leases()) != content.leases:
        verdict.add(None, "the table of open leases is not what the rows say")
    if str(books.next_id) != content.meta.get("next_request_id"):
        verdict.add(
            None, f"the next request id is {content.meta.get('next_request_id')!r}, the rows say {books.next_id}"
        )
    if books.sealed != ("archive" in content.meta):
        verdict.add(None, "it says to be sealed, and its rows do not, or the other way round")


# ---- witness, forerunner, receipt ------------------------------------------------------------------------


def _previous(content: _Content, previous: Path | None, verdict: Verdict) -> None:
    """Check the link to the log before this one."""
    named = content.first.get("previous")
    if previous is None:
        if named:
            verdict.remarks.append(
                f"it follows {named} ({content.first.get('previous_size')} rows); verify that file too (--previous FILE)"
            )
        return
    if not previous.is_file():
        raise InputError(f"{previous}: no such ledger")
    try:
        with closing(open_read_only(previous)) as database:
            hashes = [leaf for (leaf,) in database.execute("SELECT leaf FROM rows ORDER BY seq")]
            (origin,) = database.execute("SELECT value FROM meta WHERE name = 'origin'").fetchone()
        root = notes.Tree(hashes).root(len(hashes)).hex()
    except (sqlite3.Error, TypeError) as error:
        verdict.add(0, f"the log before it, {previous}, cannot be read ({error})")
        return
    said = (named, content.first.get("previous_size"), content.first.get("previous_root"))
    if said != (origin, len(hashes), root):
        verdict.add(
            0,
            f"it says to follow {said[0]!r} with {said[1]!r} rows; {previous} is {origin!r} with {len(hashes)}, or differs",
        )
    else:
        verdict.remarks.append(f"it follows {origin} ({len(hashes)} rows in {previous})")


def _remark(content: _Content, books: Books, verdict: Verdict) -> None:
    kinds = ", ".join(f"{n} {kind}" for kind, n in sorted(books.kinds.items()))
    verdict.remarks.insert(
        0, f"{content.meta.get('origin')}: {verdict.n_rows} rows ({kinds}), {verdict.n_checkpoints} signed checkpoints"
    )
    if books.open_ids:
        verdict.remarks.append(f"{books.open_ids} leased ids are open: under way, or not recovered yet")
