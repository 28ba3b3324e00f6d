"""Ten thousand ways to cheat with a ledger, and whether the verifier sees each: `python -m tests.chaos.tamper [N] [SEED]`.

The cheat has the file and can write every byte of it; he lifts the triggers and puts them back. He does not have the
signing key, the public key that the customer keeps, or the witness file. Each kind of cheating says which row it touched
where it can, and then the verifier's first finding has to name that row, or a range around it.
"""

from __future__ import annotations

import base64
import hashlib
import random
import shutil
import sqlite3
import sys
import tempfile
from collections import Counter
from collections.abc import Callable
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path

import msgspec
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from baseload.adapters import merkle
from baseload.adapters.ledger_book import BLOCK_LEVEL
from baseload.adapters.ledger_schema import TABLES
from baseload.adapters.ledger_sqlite import SqliteLedger
from baseload.adapters.signing import SigningKey, Witness
from baseload.report import verify, verify_notes
from baseload.serve.rows import ControlRow, LeaseRow, ReconcileRow, SettleRow, VoidRow, row_in

START_NS = 1_790_000_000 * 10**9


@dataclass(frozen=True, slots=True)
class Honest:
    """A ledger as it was written, and what its customer holds."""

    ledger: Path
    witness: Path
    receipt: bytes
    key: verify_notes.Key


@dataclass(slots=True)
class Cheat:
    """What was done: the row it touched where one can be named, and whether the verifier must name it exactly."""

    seq: int | None = None
    exact: bool = False
    done: bool = True


def write_honest(folder: Path, seed: int) -> Honest:
    """Write a ledger of some 200 rows: leases, requests, voids, meters, a change of key."""
    dice = random.Random(seed)
    ticks = iter(range(10_000_000))
    key = _key(dice)
    witness = Witness(folder / "witness.log", every_s=0.0)
    ledger = SqliteLedger.open(
        folder / "honest.db",
        key,
        witness=witness,
        clock_ns=lambda: START_NS + next(ticks) * 10**9,
        origin="baseload/test/1",
    )
    for turn in range(24):
        first = ledger.next_request_id()
        at_ns = START_NS + turn * 10**10
        n = dice.randrange(1, 14)
        who = {"tenant": f"t-{turn % 3}", "key": f"k-{turn % 5}"}
        rows = [row_in(LeaseRow(request_id=first, at_ns=at_ns, n_ids=n, worker=turn % 2, money_nano=10**6, **who))]
        ids = sorted(dice.sample(range(first, first + n), k=dice.randrange(n + 1)))
        rows += [row_in(_settled(i, at_ns, dice, who)) for i in ids]
        ledger.append(rows)
        if turn % 2 and len(ids) < n:
            ledger.append([row_in(VoidRow(request_id=first, at_ns=at_ns, **who))])
        if turn % 7 == 3:
            ledger.append([row_in(ReconcileRow(at_ns=at_ns, site="oslo", start_ns=at_ns, end_ns=at_ns + 1,
                                               metered_mj=10, requests_mj=7, idle_mj=3))])  # fmt: skip
        if turn == 15:
            ledger.change_key(_key(dice), who="operator")
            ledger.append([row_in(ControlRow(at_ns=at_ns, action="key-made", key="k-9"))])
    settled = [row.request_id for row in ledger.rows() if row.kind == "settle"]
    receipt = ledger.receipt(dice.choice(settled))
    assert receipt is not None
    ledger.close()
    with closing(sqlite3.connect(folder / "honest.db")) as database:
        database.execute("PRAGMA journal_mode = DELETE")
    current = verify_notes.read_key(msgspec.json.decode(receipt)["public_key"])
    return Honest(folder / "honest.db", folder / "witness.log", receipt, current)


def _key(dice: random.Random) -> SigningKey:
    """Return a key that follows from the seed, so that a run can be repeated."""
    return SigningKey(Ed25519PrivateKey.from_private_bytes(dice.randbytes(32)))


def _settled(request_id: int, at_ns: int, dice: random.Random, who: dict[str, str]) -> SettleRow:
    return SettleRow(
        request_id=request_id, at_ns=at_ns, model="chat", site="oslo", arrival_ns=at_ns, input_tokens=dice.randrange(1, 999),
        output_tokens=dice.randrange(999), price_nano=dice.randrange(1, 10**7), cost_nano=dice.randrange(10**6),
        energy_mj=dice.randrange(10**6), why="cheapest; next: bergen", prefix=[dice.getrandbits(63)], **who,
    )  # fmt: skip


# ---- the cheat's tools -----------------------------------------------------------------------------------


def _flip(raw: bytes, dice: random.Random) -> bytes:
    place = dice.randrange(len(raw) * 8)
    changed = bytearray(raw)
    changed[place // 8] ^= 1 << place % 8
    return bytes(changed)


def _row(db: sqlite3.Connection, dice: random.Random) -> tuple[int, int, int, bytes, bytes]:
    (n,) = db.execute("SELECT count(*) FROM rows").fetchone()
    row: tuple[int, int, int, bytes, bytes] = db.execute(
        "SELECT * FROM rows WHERE seq = ?", (dice.randrange(n),)
    ).fetchone()
    return row


def _renumber(db: sqlite3.Connection, rows: list[tuple[int, bytes, int, bytes]]) -> None:
    """Write these (kind, leaf, request_id, body) as all rows, from 0."""
    db.execute("DELETE FROM rows")
    db.execute("DROP INDEX once")
    db.executemany(
        "INSERT INTO rows VALUES (?, ?, ?, ?, ?)", [(i, k, r, leaf, b) for i, (k, leaf, r, b) in enumerate(rows)]
    )


def _all(db: sqlite3.Connection) -> list[tuple[int, bytes, int, bytes]]:
    return db.execute("SELECT kind, leaf, request_id, body FROM rows ORDER BY seq").fetchall()


def _rehash(db: sqlite3.Connection, forger: SigningKey | None) -> None:
    """Compute all leaves, nodes and checkpoints anew; sign with the forger's key, or keep the old signatures."""
    frontier = merkle.Frontier()
    nodes, roots = [], {0: frontier.root()}
    for seq, body in db.execute("SELECT seq, body FROM rows ORDER BY seq").fetchall():
        leaf = merkle.leaf_hash(body)
        db.execute("UPDATE rows SET leaf = ? WHERE seq = ?", (leaf, seq))
        nodes += [node for node in frontier.append(leaf) if node[0] >= BLOCK_LEVEL]
        roots[frontier.size] = frontier.root()
    db.execute("DELETE FROM nodes")
    db.executemany("INSERT INTO nodes VALUES (?, ?, ?)", nodes)
    for size, note in db.execute("SELECT size, note FROM checkpoints").fetchall():
        if size not in roots:
            db.execute("DELETE FROM checkpoints WHERE size = ?", (size,))
            continue
        lines = note.split("\n")
        lines[2] = base64.b64encode(roots[size]).decode()
        text = "\n".join(lines[:5]) + "\n"
        signature = forger.signature_line(text) if forger else "\n".join(lines[6:])
        db.execute("UPDATE checkpoints SET note = ? WHERE size = ?", (f"{text}\n{signature}", size))
    if forger:
        db.execute("UPDATE keys SET key_id = ?, public_line = ? WHERE i = (SELECT max(i) FROM keys)",
                   (forger.key_id, forger.public_line))  # fmt: skip
        db.execute("UPDATE meta SET value = ? WHERE name = 'key_id'", (forger.key_id,))


def _cheaper(db: sqlite3.Connection, dice: random.Random) -> int:
    """Make one request cheaper, in the sums too; return its row."""
    found = db.execute("SELECT seq, body FROM rows WHERE kind = 2").fetchall()
    seq, body = dice.choice(found)
    row = msgspec.json.decode(body, type=SettleRow)
    less = dice.randrange(1, row.price_nano + 1)
    row.price_nano -= less
    db.execute("UPDATE rows SET body = ? WHERE seq = ?", (msgspec.json.encode(row), seq))
    db.execute(
        "UPDATE totals SET price_nano = price_nano - ? WHERE tenant = ? AND key = ?", (less, row.tenant, row.key)
    )
    return int(seq)


# ---- kinds of cheating: on an open database, triggers lifted ---------------------------------------------


def flip_body(db: sqlite3.Connection, dice: random.Random) -> Cheat:
    """Change a bit of a row's body."""
    seq, _, _, _, body = _row(db, dice)
    db.execute("UPDATE rows SET body = ? WHERE seq = ?", (_flip(body, dice), seq))
    return Cheat(seq, exact=True)


def flip_leaf(db: sqlite3.Connection, dice: random.Random) -> Cheat:
    """Change a bit of a row's hash."""
    seq, _, _, leaf, _ = _row(db, dice)
    db.execute("UPDATE rows SET leaf = ? WHERE seq = ?", (_flip(leaf, dice), seq))
    return Cheat(seq, exact=True)


def flip_node(db: sqlite3.Connection, dice: random.Random) -> Cheat:
    """Change a bit of a stored subtree's hash."""
    level, i, node = dice.choice(db.execute("SELECT level, i, hash FROM nodes").fetchall())
    db.execute("UPDATE nodes SET hash = ? WHERE level = ? AND i = ?", (_flip(node, dice), level, i))
    return Cheat(i << level)


def flip_checkpoint(db: sqlite3.Connection, dice: random.Random) -> Cheat:
    """Change a bit of a signed checkpoint."""
    size, note = dice.choice(db.execute("SELECT size, note FROM checkpoints").fetchall())
    changed = _flip(note.encode(), dice).decode("utf-8", "replace")
    db.execute("UPDATE checkpoints SET note = ? WHERE size = ?", (changed, size))
    return Cheat()


def change_column(db: sqlite3.Connection, dice: random.Random) -> Cheat:
    """File a row under another kind or request id."""
    seq, kind, request_id, _, _ = _row(db, dice)
    db.execute("DROP INDEX once")
    if dice.random() < 0.5:
        db.execute("UPDATE rows SET kind = ? WHERE seq = ?", (kind % 7 + 1, seq))
    else:
        db.execute("UPDATE rows SET request_id = ? WHERE seq = ?", (request_id + 10**6, seq))
    return Cheat(seq, exact=True)


def change_table(db: sqlite3.Connection, dice: random.Random) -> Cheat:
    """Change one value of the tables of sums, leases, keys or facts."""
    table = dice.choice(["totals", "leases", "keys", "meta"])
    cursor = db.execute(f"SELECT rowid, * FROM {table}" if table in ("leases", "keys") else f"SELECT * FROM {table}")
    names = [column[0] for column in cursor.description]
    row = dice.choice(cursor.fetchall())
    skip = {"rowid", "i"}  # how the keys are numbered means nothing
    place = dice.choice([i for i, name in enumerate(names) if name not in skip])
    value = row[place]
    if isinstance(value, bytes):
        value = _flip(value, dice)
    elif isinstance(value, int):
        value += dice.choice([-1, 1])
    else:
        value = value[:-1] + chr(ord(value[-1]) ^ 1) if value else "x"
    where = " AND ".join(f"{name} IS ?" for name in names)
    try:
        db.execute(f"UPDATE {table} SET {names[place]} = ? WHERE {where}", (value, *row))
    except sqlite3.IntegrityError:  # another row is called that
        return change_table(db, dice)
    return Cheat()


def drop_row(db: sqlite3.Connection, dice: random.Random) -> Cheat:
    """Remove a row and leave the gap."""
    (n,) = db.execute("SELECT count(*) FROM rows").fetchone()
    seq = dice.randrange(n)
    db.execute("DELETE FROM rows WHERE seq = ?", (seq,))
    return Cheat(seq)


def drop_and_close(db: sqlite3.Connection, dice: random.Random) -> Cheat:
    """Remove a row and close the gap."""
    rows = _all(db)
    seq = dice.randrange(len(rows))
    del rows[seq]
    _renumber(db, rows)
    return Cheat(seq)


def swap_rows(db: sqlite3.Connection, dice: random.Random) -> Cheat:
    """Let two rows change places, with their hashes."""
    rows = _all(db)
    i, j = sorted(dice.sample(range(len(rows)), 2))
    rows[i], rows[j] = rows[j], rows[i]
    _renumber(db, rows)
    return Cheat(i)


def insert_row(db: sqlite3.Connection, dice: random.Random) -> Cheat:
    """Slip a made-up row in, properly hashed."""
    rows = _all(db)
    place = dice.randrange(len(rows) + 1)
    made = ControlRow(at_ns=START_NS, action="nothing to see", who=str(dice.random()))
    kind, request_id, body, _ = row_in(made)
    assert kind == "control"
    rows.insert(place, (6, merkle.leaf_hash(body), request_id, body))
    _renumber(db, rows)
    return Cheat(place)


def repeat_row(db: sqlite3.Connection, dice: random.Random) -> Cheat:
    """Bill a request twice."""
    rows = _all(db)
    place = dice.choice([i for i, row in enumerate(rows) if row[0] == 2])
    rows.insert(dice.randrange(place, len(rows)) + 1, rows[place])
    _renumber(db, rows)
    return Cheat()


def cut_tail(db: sqlite3.Connection, dice: random.Random) -> Cheat:
    """Cut rows off the end, checkpoints and nodes with them, anywhere."""
    (n,) = db.execute("SELECT count(*) FROM rows").fetchone()
    keep = dice.randrange(1, n)
    db.execute("DELETE FROM rows WHERE seq >= ?", (keep,))
    db.execute("DELETE FROM checkpoints WHERE size > ?", (keep,))
    db.execute("DELETE FROM nodes WHERE (i + 1) << level > ?", (keep,))
    return Cheat()


def drop_checkpoint(db: sqlite3.Connection, dice: random.Random) -> Cheat:
    """Remove a signed checkpoint."""
    (size,) = dice.choice(db.execute("SELECT size FROM checkpoints").fetchall())
    db.execute("DELETE FROM checkpoints WHERE size = ?", (size,))
    return Cheat()


def swap_checkpoints(db: sqlite3.Connection, dice: random.Random) -> Cheat:
    """File a good checkpoint's text under another one's size."""
    (a, note_a), (b, note_b) = dice.sample(db.execute("SELECT size, note FROM checkpoints").fetchall(), 2)
    db.executemany("UPDATE checkpoints SET note = ? WHERE size = ?", [(note_b, a), (note_a, b)])
    return Cheat()


def rewrite(db: sqlite3.Connection, dice: random.Random) -> Cheat:
    """Make a request cheaper and compute every hash anew, the old signatures kept."""
    seq = _cheaper(db, dice)
    _rehash(db, None)
    return Cheat(seq)


def rewrite_and_sign(db: sqlite3.Connection, dice: random.Random) -> Cheat:
    """Make a request cheaper, compute every hash anew, and sign it all with a key of one's own."""
    seq = _cheaper(db, dice)
    _rehash(db, _key(dice))
    return Cheat(seq)


def append_signed(db: sqlite3.Connection, dice: random.Random) -> Cheat:
    """Add a row at the end with a checkpoint signed by a key of one's own."""
    rows = _all(db)
    kind, request_id, body, _ = row_in(ControlRow(at_ns=START_NS, action="key-revoked", key=str(dice.random())))
    frontier = merkle.Frontier()
    for row in rows:
        frontier.append(row[1])
    frontier.append(merkle.leaf_hash(body))
    db.execute("INSERT INTO rows VALUES (?, ?, ?, ?, ?)", (len(rows), 6, request_id, merkle.leaf_hash(body), body))
    note = (
        SigningKey.make()
        .sign_checkpoint("baseload/test/1", frontier.size, frontier.root(), 2 * START_NS, len(rows))
        .note
    )
    db.execute("INSERT INTO checkpoints VALUES (?, ?)", (frontier.size, note))
    assert kind == "control"
    return Cheat(len(rows))


IN_THE_DATABASE: tuple[Callable[[sqlite3.Connection, random.Random], Cheat], ...] = (
    flip_body, flip_leaf, flip_node, flip_checkpoint, change_column, change_table, drop_row, drop_and_close, swap_rows,
    insert_row, repeat_row, cut_tail, drop_checkpoint, swap_checkpoints, rewrite, rewrite_and_sign, append_signed,
)  # fmt: skip


# ---- kinds of cheating outside the database --------------------------------------------------------------


def _dump(path: Path) -> list[object] | None:
    """Return all that a file says, or None where SQLite cannot read it."""
    try:
        with closing(sqlite3.connect(f"{path.as_uri()}?mode=ro", uri=True)) as db:
            if db.execute("PRAGMA integrity_check(1)").fetchone() != ("ok",):
                return None
            return [db.execute(f"SELECT * FROM {table}").fetchall() for table in TABLES]
    except (sqlite3.Error, OverflowError, UnicodeDecodeError):
        return None


def flip_file(copy: Path, honest: Honest, dice: random.Random) -> Cheat:
    """Change a bit of the file; where it means the same as before, nothing was tampered with."""
    raw = bytearray(copy.read_bytes())
    place = dice.randrange(len(raw))
    raw[place] ^= 1 << dice.randrange(8)
    copy.write_bytes(raw)
    return Cheat(done=_dump(copy) != _dump(honest.ledger))


def cheat_once(honest: Honest, folder: Path, number: int, seed: int) -> tuple[str, bool, str]:
    """Cheat once; return the kind, whether it was seen as it should be, and the verdict's words."""
    dice = random.Random(f"{seed}/{number}")
    kinds = [*IN_THE_DATABASE, flip_file, "rollback", "flip_witness", "flip_receipt"]
    kind = kinds[number % len(kinds)]
    copy = folder / "cheated.db"
    shutil.copyfile(honest.ledger, copy)
    witness = honest.witness
    if kind == "flip_receipt":
        receipt = _flip(honest.receipt, dice)
        verdict = verify.verify_receipt(receipt, key=honest.key)
        return "flip_receipt", not verdict.whole, "\n".join(verdict.lines())
    if kind == "flip_witness":
        witness = folder / "cheated.log"
        witness.write_bytes(_flip(honest.witness.read_bytes(), dice))
        cheat, name = Cheat(), "flip_witness"
    elif kind == "rollback":
        cheat, name = _rollback(honest, copy, dice), "rollback"
    elif kind is flip_file:
        cheat, name = flip_file(copy, honest, dice), "flip_file"
    else:
        assert callable(kind)
        name = kind.__name__
        with closing(sqlite3.connect(copy)) as db:
            db.execute("PRAGMA synchronous = OFF")
            triggers = db.execute("SELECT name, sql FROM sqlite_master WHERE type = 'trigger'").fetchall()
            for trigger, _ in triggers:
                db.execute(f"DROP TRIGGER {trigger}")
            cheat = kind(db, dice)
            for _, sql in triggers:
                db.execute(sql)
            db.commit()
    verdict = verify.verify_ledger(copy, key=honest.key, witness=witness)
    return name, _seen(cheat, verdict), "\n".join(verdict.lines())


def _rollback(honest: Honest, copy: Path, dice: random.Random) -> Cheat:
    """Put a perfect older copy in the ledger's place: signed, consistent, only shorter."""
    with closing(sqlite3.connect(f"{honest.ledger.as_uri()}?mode=ro", uri=True)) as db:
        sizes = [size for (size,) in db.execute("SELECT size FROM checkpoints ORDER BY size")][:-1]
        keep = dice.choice(sizes)
        rows = [(kind, body) for kind, body in db.execute("SELECT kind, body FROM rows WHERE seq < ?", (keep,))]
        notes = db.execute("SELECT * FROM checkpoints WHERE size <= ?", (keep,)).fetchall()
        keys = db.execute("SELECT * FROM keys ORDER BY i").fetchall()
    from baseload.report.verify_books import Books, read_body

    books, frontier, nodes, stored = Books(), merkle.Frontier(), [], []
    changed = 0
    for seq, (kind, body) in enumerate(rows):
        row = read_body(body)
        books.take(seq, row)
        changed += row.get("action") == "signing-key"
        leaf = hashlib.sha256(b"\x00" + body).digest()
        nodes += [node for node in frontier.append(leaf) if node[0] >= BLOCK_LEVEL]
        stored.append((seq, kind, row.get("request_id", 0), leaf, body))
    with closing(sqlite3.connect(copy)) as db:
        triggers = db.execute("SELECT name, sql FROM sqlite_master WHERE type = 'trigger'").fetchall()
        for trigger, _ in triggers:
            db.execute(f"DROP TRIGGER {trigger}")
        for table in ("rows", "nodes", "checkpoints", "keys", "leases", "totals"):
            db.execute(f"DELETE FROM {table}")
        db.executemany("INSERT INTO rows VALUES (?, ?, ?, ?, ?)", stored)
        db.executemany("INSERT INTO nodes VALUES (?, ?, ?)", nodes)
        db.executemany("INSERT INTO checkpoints VALUES (?, ?)", notes)
        db.executemany("INSERT INTO keys VALUES (?, ?, ?, ?)", keys[: 1 + changed])
        db.executemany("INSERT INTO leases VALUES (?, ?, ?, ?, ?, ?, ?, ?)", list(books.open_leases()))
        db.executemany(f"INSERT INTO totals VALUES ({', '.join('?' * 11)})", [(*a, *s) for a, s in books.sums.items()])
        db.executemany("UPDATE meta SET value = ? WHERE name = ?",
                       [(str(books.next_id), "next_request_id"), (keys[changed][1], "key_id")])  # fmt: skip
        for _, sql in triggers:
            db.execute(sql)
        db.commit()
    return Cheat(keep)


def _seen(cheat: Cheat, verdict: verify.Verdict) -> bool:
    """Say whether the verifier saw it, and named the right row where one can be named."""
    if not cheat.done:
        return True
    first = verdict.first
    if first is None:
        return False
    if cheat.seq is None:
        return True
    if cheat.exact:
        return first.seq == cheat.seq and first.until in (None, cheat.seq)
    return first.seq is not None and first.seq <= cheat.seq <= (first.seq if first.until is None else first.until)


def run(n: int, seed: int, say: Callable[[str], None] = print) -> list[str]:
    """Cheat `n` times; return what was missed."""
    missed, kinds = [], Counter[str]()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        honest = write_honest(folder, seed)
        verdict = verify.verify_ledger(honest.ledger, key=honest.key, witness=honest.witness)
        receipt = verify.verify_receipt(honest.receipt, key=honest.key, ledger=honest.ledger)
        assert verdict.whole and receipt.whole, [*verdict.lines(), *receipt.lines()]
        for number in range(n):
            kind, seen, words = cheat_once(honest, folder, number, seed)
            kinds[kind] += 1
            if not seen:
                missed.append(f"{kind} (python -m tests.chaos.tamper 1 {seed} {number}):\n{words}")
            if n >= 1000 and number % 1000 == 999:
                say(f"{number + 1} cheats, {len(missed)} missed")
    say(f"{n} cheats of {len(kinds)} kinds, {len(missed)} missed: " + ", ".join(f"{k} {c}" for k, c in kinds.items()))
    return missed


def main(arguments: list[str]) -> int:
    """Run from the command line: N (10,000), SEED (1); print what was missed."""
    n = int(arguments[0]) if arguments else 10_000
    seed = int(arguments[1]) if len(arguments) > 1 else 1
    if len(arguments) > 2:
        with tempfile.TemporaryDirectory() as name:
            print(*cheat_once(write_honest(Path(name), seed), Path(name), int(arguments[2]), seed), sep="\n")
        return 0
    missed = run(n, seed)
    for words in missed[:20]:
        print("MISSED", words)
    return 1 if missed else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
