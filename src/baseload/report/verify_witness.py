"""The witness file against a ledger: it remembers what a rewritten or shortened ledger denies."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence

from baseload.report import verify_notes as notes
from baseload.report.verify_verdict import Verdict

Signers = Sequence[tuple[int, notes.Key]]  # (first checkpoint size, key) in order


def signer_at(signers: Signers, size: int) -> notes.Key | None:
    """Return the key that had to sign a checkpoint over `size` rows."""
    found = None
    for since, key in signers:
        if size >= since:
            found = key
    return found


def read_witness(blob: bytes, verdict: Verdict) -> Iterator[notes.Stated]:
    """Yield the checkpoints of a witness file; a line that a crash tore is followed by one that says so."""
    lines = blob.split(b"\n")
    for place, line in enumerate(lines):
        if not line and place == len(lines) - 1:
            return
        try:
            entry = json.loads(line)
            if isinstance(entry, dict) and list(entry) == ["torn"]:
                if place == 0 or entry["torn"] != len(lines[place - 1]):
                    verdict.add(None, f"the witness's line {place + 1} speaks of a torn line that is not there")
                continue
            if not isinstance(entry, dict) or list(entry) != ["note"]:
                raise notes.BadNote("not a witness's line")
            stated = notes.read_checkpoint(entry["note"])
            if json.dumps(entry, ensure_ascii=False, separators=(",", ":")).encode() != line:
                raise notes.BadNote("not in canonical form")
            yield stated
        except ValueError as error:
            marked = place < len(lines) - 1 and lines[place + 1] == f'{{"torn":{len(line)}}}'.encode()
            if (marked or place == len(lines) - 1) and _could_be_cut(line):
                verdict.remarks.append(f"the witness's line {place + 1} was torn by a crash")
            else:
                verdict.add(None, f"the witness's line {place + 1} cannot be read ({error})")


def _could_be_cut(line: bytes) -> bool:
    """Say whether a line can be the beginning of a good one: a crash cuts off, it does not change."""
    start = b'{"note":"'
    return line[: len(start)] == start[: len(line)] and b"}" not in line


def compare(blob: bytes, origin: str, tree: notes.Tree, signers: Signers, verdict: Verdict) -> None:
    """Compare a log's rows with every checkpoint that the witness saw of it."""
    n_rows = len(tree.levels[0])
    seen, good, largest, differs = 0, 0, 0, False
    unsigned: list[int] = []
    by_id = {key.key_id: key for _, key in signers}
    for stated in read_witness(blob, verdict):
        key = by_id.get(stated.signed.signatures[0][0])
        if key is None or not notes.signed_with(stated.signed, key):
            if key is not None or stated.origin == origin:  # else another log, under a key that is not ours to know
                unsigned.append(stated.size)
            continue
        if stated.origin != origin:
            continue
        seen += 1
        if stated.size > n_rows:
            verdict.add(n_rows, f"cut off: the witness saw {stated.size} rows", stated.size - 1)
        elif tree.root(stated.size) == stated.root:
            good = stated.size
        elif not differs:
            differs = True
            verdict.add(
                good, f"not what the witness saw (checkpoint over {stated.size} rows)", max(good, stated.size - 1)
            )
        if stated.size < largest:
            verdict.add(None, f"the witness saw {largest} rows, then {stated.size}: the log was rolled back")
        largest = max(largest, stated.size)
    if unsigned:
        verdict.add(
            None, f"the witness saw {len(unsigned)} checkpoints that no known key signed, first over {unsigned[0]} rows"
        )
    if not seen:
        verdict.add(None, f"the witness never saw the log {origin!r}")
    else:
        verdict.remarks.append(f"the witness saw it {seen} times, last with {largest} rows")
