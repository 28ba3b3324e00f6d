"""The tables of a ledger's file (`baseload-ledger/1`): SQLite keeps the ledger in it, PostgreSQL exports to it.

docs/ledger.md says what each column means. Rows, nodes and checkpoints refuse to be changed or removed; who owns the file
can lift that, and `baseload verify` finds what was done then.
"""

from __future__ import annotations

import os
import sqlite3
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from baseload.adapters.ledger_book import Lease, Plan
from baseload.adapters.signing import SigningKey, sync_folder
from baseload.errors import LedgerError, LedgerUnavailable

SCHEMA = """
CREATE TABLE meta (name TEXT PRIMARY KEY, value TEXT NOT NULL) WITHOUT ROWID;
CREATE TABLE rows (
    seq INTEGER PRIMARY KEY, kind INTEGER NOT NULL, request_id INTEGER NOT NULL, leaf BLOB NOT NULL, body BLOB NOT NULL
);
CREATE UNIQUE INDEX once ON rows (request_id, kind) WHERE request_id > 0;
CREATE TABLE nodes (level INTEGER NOT NULL, i INTEGER NOT NULL, hash BLOB NOT NULL, PRIMARY KEY (level, i)) WITHOUT ROWID;
CREATE TABLE checkpoints (size INTEGER PRIMARY KEY, note TEXT NOT NULL);
CREATE TABLE keys (i INTEGER PRIMARY KEY, key_id TEXT NOT NULL UNIQUE, public_line TEXT NOT NULL, note TEXT NOT NULL);
CREATE TABLE leases (
    lease_id INTEGER PRIMARY KEY, n_ids INTEGER NOT NULL, closed BLOB NOT NULL, worker INTEGER NOT NULL,
    tenant TEXT NOT NULL, key TEXT NOT NULL, money_nano INTEGER NOT NULL, at_ns INTEGER NOT NULL
);
CREATE TABLE totals (
    month TEXT NOT NULL, tenant TEXT NOT NULL, key TEXT NOT NULL, requests INTEGER NOT NULL,
    input_tokens INTEGER NOT NULL, cached_tokens INTEGER NOT NULL, output_tokens INTEGER NOT NULL,
    price_nano INTEGER NOT NULL, cost_nano INTEGER NOT NULL, energy_mj INTEGER NOT NULL, carbon_ug INTEGER NOT NULL,
    PRIMARY KEY (month, tenant, key)
) WITHOUT ROWID;
CREATE TRIGGER rows_in_order BEFORE INSERT ON rows
    WHEN NEW.seq <> ifnull((SELECT seq FROM rows ORDER BY seq DESC LIMIT 1), -1) + 1
    BEGIN SELECT RAISE(ROLLBACK, 'the ledger only grows at its end'); END;
CREATE TRIGGER rows_kept BEFORE UPDATE ON rows BEGIN SELECT RAISE(ABORT, 'the ledger is append-only'); END;
CREATE TRIGGER rows_stay BEFORE DELETE ON rows BEGIN SELECT RAISE(ABORT, 'the ledger is append-only'); END;
CREATE TRIGGER nodes_kept BEFORE UPDATE ON nodes BEGIN SELECT RAISE(ABORT, 'the ledger is append-only'); END;
CREATE TRIGGER nodes_stay BEFORE DELETE ON nodes BEGIN SELECT RAISE(ABORT, 'the ledger is append-only'); END;
CREATE TRIGGER checkpoints_kept BEFORE UPDATE ON checkpoints BEGIN SELECT RAISE(ABORT, 'the ledger is append-only'); END;
CREATE TRIGGER checkpoints_stay BEFORE DELETE ON checkpoints BEGIN SELECT RAISE(ABORT, 'the ledger is append-only'); END;
"""
TABLES = ("meta", "rows", "nodes", "checkpoints", "keys", "leases", "totals")

DROP = tuple(f"DROP TABLE {table}" for table in TABLES)

PUT_TOTAL = """INSERT INTO totals VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?) ON CONFLICT (month, tenant, key) DO UPDATE SET
    requests = requests + excluded.requests, input_tokens = input_tokens + excluded.input_tokens,
    cached_tokens = cached_tokens + excluded.cached_tokens, output_tokens = output_tokens + excluded.output_tokens,
    price_nano = price_nano + excluded.price_nano, cost_nano = cost_nano + excluded.cost_nano,
    energy_mj = energy_mj + excluded.energy_mj, carbon_ug = carbon_ug + excluded.carbon_ug"""


def insert_plan(connection: sqlite3.Connection, plan: Plan, signer: SigningKey, *, known_key: bool) -> None:
    """Put a plan into the open transaction; `known_key`: the ledger has this signer's public key already."""
    assert plan.checkpoint is not None
    # A statement that could be undone alone copies each page it changes: what is refused undoes all, as it did before.
    # And `sqlite3` looks for adapters of `bytes`, row by row, but not of bytearrays.
    rows = [(seq, kind, id_, bytearray(leaf), bytearray(body)) for seq, kind, id_, leaf, body in plan.rows]
    connection.executemany("INSERT OR ROLLBACK INTO rows VALUES (?, ?, ?, ?, ?)", rows)
    if plan.nodes:
        connection.executemany("INSERT INTO nodes VALUES (?, ?, ?)", plan.nodes)
    if plan.leases:
        _insert_leases(connection, list(plan.leases.values()))
    if plan.totals:
        connection.executemany(PUT_TOTAL, [(*account, *sums) for account, sums in plan.totals.items()])
    connection.execute("INSERT INTO checkpoints VALUES (?, ?)", (plan.checkpoint.size, plan.checkpoint.note))
    meta = [("next_request_id", str(plan.next_id))]
    if not known_key:
        connection.execute(
            "INSERT OR IGNORE INTO keys (key_id, public_line, note) VALUES (?, ?, ?)",
            (signer.key_id, signer.public_line, plan.succession),
        )
        meta.append(("key_id", signer.key_id))
    if plan.archive:
        meta.append(("archive", plan.archive))
    connection.executemany("INSERT OR REPLACE INTO meta VALUES (?, ?)", meta)


def _insert_leases(connection: sqlite3.Connection, leases: Sequence[Lease]) -> None:
    still = [lease.columns() for lease in leases if lease.closed != lease.full]
    gone = [(lease.lease_id,) for lease in leases if lease.closed == lease.full]
    if still:
        connection.executemany("INSERT OR REPLACE INTO leases VALUES (?, ?, ?, ?, ?, ?, ?, ?)", still)
    if gone:
        connection.executemany("DELETE FROM leases WHERE lease_id = ?", gone)


def refuse_existing(path: Path) -> None:
    """Refuse to overwrite."""
    if path.exists():
        raise LedgerError(f"{path}: exists already; choose another name, or move it away")


def statements(script: str) -> Iterator[str]:
    """Return the statements of a script one by one; `executescript` would commit in between."""
    statement = ""
    for line in script.splitlines():
        statement += line + "\n"
        if sqlite3.complete_statement(statement):
            yield statement
            statement = ""


def copy_whole(source: sqlite3.Connection, path: Path, check: Callable[[Path], None]) -> None:
    """Write a copy of a database, whole, checked and durable, or not at all."""
    partial = path.with_name(path.name + ".partial")
    try:
        partial.unlink(missing_ok=True)
        os.close(os.open(partial, os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o600))
        target = sqlite3.connect(partial, isolation_level=None)
        try:
            source.backup(target)
            target.execute("PRAGMA journal_mode = DELETE")
        finally:
            target.close()
        check(partial)
        fd = os.open(partial, os.O_RDONLY)
        try:
            os.fsync(fd)
        finally:
            os.close(fd)
        os.rename(partial, path)
        sync_folder(path.parent)
    except (OSError, sqlite3.Error) as error:
        partial.unlink(missing_ok=True)
        raise LedgerUnavailable(f"{path}: the copy cannot be written ({error})") from None
