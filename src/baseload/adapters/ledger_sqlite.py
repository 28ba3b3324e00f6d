"""The ledger in one SQLite file: WAL, synchronous=FULL, one writer, one transaction and one signed checkpoint a batch.

Only what is specific to SQLite is here; what a batch means is in `ledger_core.py`. The WAL is moved into the file by this
module and not by SQLite on its own, because a failed fsync there must not go unseen: after one, this process may not
trust what the system says it wrote, so the ledger is dead until it is opened anew. Disk full and other failures leave
nothing half-written and end by themselves. Readers have connections of their own, and wait for nobody.
"""

from __future__ import annotations

import os
import sqlite3
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import msgspec

from baseload.adapters.ledger_book import (
    BLOCK,
    LEASE,
    SETTLE,
    SUMS,
    Book,
    Head,
    Lease,
    Place,
    Plan,
    Rotate,
    begin,
    begin_after,
    next_origin,
)
from baseload.adapters.ledger_core import MerkleLedger, Stale
from baseload.adapters.ledger_schema import DROP, SCHEMA, TABLES, copy_whole, insert_plan, refuse_existing, statements
from baseload.adapters.signing import SigningKey, Witness, checkpoint_of, sync_folder
from baseload.errors import LedgerError, LedgerUnavailable
from baseload.ports import KIND_NAMES, KINDS, LEDGER_FORMAT, Checkpoint, RowOut, Total

PAGE_BYTES = 8192  # ten rows a page: fewer to write, and to move out of the WAL
WAL_BYTES_MAX = 4 * 1024 * 1024  # then the WAL is moved into the file
BUSY_S = 5.0
FSYNC_CODES = {1034, 1290}  # SQLITE_IOERR_FSYNC, SQLITE_IOERR_DIR_FSYNC
DAMAGED_CODES = {11, 26}  # SQLITE_CORRUPT, SQLITE_NOTADB


class SqliteLedger(MerkleLedger):
    """A `ports.Ledger` in a SQLite file. Use `SqliteLedger.open` to write, `SqliteLedger.read` to look."""

    def __init__(
        self, path: Path, signer: SigningKey | None, witness: Witness | None, clock_ns: Callable[[], int]
    ) -> None:
        super().__init__(signer, witness, clock_ns)
        self.path = path
        self._writer: sqlite3.Connection | None = None
        self._reader: sqlite3.Connection | None = None
        self._reader_lock = threading.RLock()

    @classmethod
    def open(
        cls,
        path: Path,
        signer: SigningKey,
        *,
        origin: str = "baseload/ledger/1",
        witness: Witness | None = None,
        clock_ns: Callable[[], int] = time.time_ns,
    ) -> SqliteLedger:
        """Open a ledger for appending; make it where there is none, named `origin` (which an existing one keeps).

        Raises LedgerError where the file is damaged or not a ledger, LedgerUnavailable where it cannot be written.
        """
        ledger = cls(path, signer, witness, clock_ns)
        try:
            if not path.exists():
                os.close(os.open(path, os.O_RDWR | os.O_CREAT, 0o600))
                sync_folder(path.parent)
            with ledger._failures():
                ledger._begin(origin)
            if ledger._known().sealed_for:
                ledger._finish_rotation()
        except OSError as error:
            raise LedgerUnavailable(f"{path}: cannot be made ({error.strerror})") from None
        except BaseException:
            ledger._disconnect()
            raise
        return ledger

    @classmethod
    def read(cls, path: Path) -> SqliteLedger:
        """Open a ledger, an archive or a backup for reading only."""
        if not path.is_file():
            raise LedgerError(f"{path}: no such ledger")
        ledger = cls(path, None, None, time.time_ns)
        try:
            ledger._known()
        except BaseException:
            ledger._disconnect()
            raise
        return ledger

    def close(self) -> None:
        """Flush and close."""
        with self._lock:
            self._dead = self._dead or "the ledger is closed"
            self._disconnect()
            if self._witness is not None:
                try:
                    self._witness.close()
                except OSError as error:
                    self.witness_error = f"witness file: {error.strerror}"

    def __enter__(self) -> SqliteLedger:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    # ---- connections, and what goes wrong with them ----

    def _connect(self, *, write: bool) -> sqlite3.Connection:
        uri = f"{self.path.absolute().as_uri()}?mode={'rw' if write else 'ro'}"
        connection = sqlite3.connect(uri, timeout=BUSY_S, isolation_level=None, check_same_thread=False, uri=True)
        try:
            connection.execute("PRAGMA trusted_schema = OFF")
            if write:
                connection.execute(f"PRAGMA page_size = {PAGE_BYTES}")  # of a file that is made now
                connection.execute("PRAGMA journal_mode = WAL")
                connection.execute("PRAGMA synchronous = FULL")
                connection.execute("PRAGMA wal_autocheckpoint = 0")
        except BaseException:
            connection.close()
            raise
        return connection

    def _write(self) -> sqlite3.Connection:
        if self._writer is None:
            self._writer = self._connect(write=True)
        return self._writer

    def _disconnect(self) -> None:
        for connection in (self._reader, self._writer):  # the writer last: it takes the WAL away
            if connection is not None:
                try:
                    connection.close()
                except sqlite3.Error:
                    pass  # what was committed is in the WAL; the next opening recovers it
        self._writer = self._reader = None

    @contextmanager
    def _failures(self) -> Iterator[None]:
        """Turn SQLite's errors into ours."""
        try:
            yield
        except sqlite3.Error as error:
            raise self._failed(error) from None

    def _failed(self, error: sqlite3.Error) -> Exception:
        """Return our error for one of SQLite's; forget connections and book, so that nothing is carried over."""
        with self._reader_lock:
            self._disconnect()  # which rolls back what was open
        self._book = None
        return self._said(error)

    def _said(self, error: sqlite3.Error) -> Exception:
        """Return our error for one of SQLite's; a failed fsync ends this ledger."""
        code = getattr(error, "sqlite_errorcode", None) or 0
        if code in FSYNC_CODES:
            self._dead = f"{self.path}: fsync failed; end this process and start again, so that the disk is asked anew"
            return LedgerUnavailable(self._dead, fatal=True)
        if code & 0xFF in DAMAGED_CODES:
            return LedgerError(f"{self.path}: not a whole ledger ({error}); run `baseload verify`, restore a backup")
        return LedgerUnavailable(f"{self.path}: the ledger cannot be used now ({error})")

    # ---- beginning ----

    def _begin(self, origin: str) -> None:
        """Make the tables and the first row, in one transaction, where the file is empty."""
        connection = self._write()
        (tables,) = connection.execute("SELECT count(*) FROM sqlite_master").fetchone()
        if tables:
            return
        row = Rotate(at_ns=self._clock_ns(), act="begin", origin=origin)
        book, plan = begin(row, (), {})
        self._sign(plan, book)
        connection.execute("BEGIN IMMEDIATE")
        self._make_tables(connection, origin)
        self._insert(connection, plan)
        connection.execute("COMMIT")
        self._see(plan)

    def _make_tables(self, connection: sqlite3.Connection, origin: str) -> None:
        for statement in statements(SCHEMA):
            connection.execute(statement)
        connection.executemany("INSERT INTO meta VALUES (?, ?)", [("format", LEDGER_FORMAT), ("origin", origin)])

    def _read_book(self) -> Book:
        with self._snapshot():
            tables = {name for (name,) in self._query("SELECT name FROM sqlite_master WHERE type = 'table'")}
            if not tables >= set(TABLES):
                raise LedgerError(f"{self.path}: not a ledger; name a ledger.db")
            meta = dict(self._query("SELECT name, value FROM meta"))
            if meta.get("format") != LEDGER_FORMAT:
                raise LedgerError(f"{self.path}: format {meta.get('format')!r}, this version reads {LEDGER_FORMAT!r}")
            self._check_key(meta.get("key_id", ""), str(self.path))
            ((size,),) = self._query("SELECT ifnull(max(seq), -1) + 1 FROM rows")
            leases = [
                Lease(row[0], row[1], int.from_bytes(row[2], "little"), *row[3:])
                for row in self._query("SELECT * FROM leases ORDER BY lease_id")
            ]
            latest = self.checkpoint()
            frontier = self.load_frontier(size, latest, str(self.path))
            return Book(
                meta["origin"], frontier, time_ns=latest.time_ns, next_id=int(meta["next_request_id"]), leases=leases,
                sealed_for=meta.get("archive", ""),
            )  # fmt: skip

    # ---- storing ----

    def _store(self, plan: Plan, book: Book) -> None:
        with self._failures():
            connection = self._write()
            connection.execute("BEGIN IMMEDIATE")
            try:
                (size,) = connection.execute("SELECT ifnull(max(seq), -1) + 1 FROM rows").fetchone()
                if size != book.size:
                    raise Stale
                self._insert(connection, plan)
                connection.execute("COMMIT")
            except sqlite3.IntegrityError as error:
                raise LedgerError(f"{self.path}: refused ({error}); run `baseload verify {self.path}`") from None
            finally:
                if connection.in_transaction:
                    connection.execute("ROLLBACK")
        self._tidy_wal()

    def _insert(self, connection: sqlite3.Connection, plan: Plan) -> None:
        """Put a plan into the open transaction."""
        signer = plan.new_key or self._signer
        assert signer is not None
        insert_plan(connection, plan, signer, known_key=signer.key_id == self._key_stored)

    def _tidy_wal(self) -> None:
        """Move the WAL into the file once it is long. What was stored is stored, whatever happens here."""
        try:
            if os.stat(f"{self.path}-wal").st_size > WAL_BYTES_MAX and self._writer is not None:
                self._writer.execute("PRAGMA wal_checkpoint(PASSIVE)").fetchall()
        except OSError:
            pass
        except sqlite3.Error as error:
            self._failed(error)  # an fsync that failed ends this ledger at the next append; all else is tried again

    # ---- reading ----

    def _read_connection(self) -> sqlite3.Connection:
        if self._reader is None:
            self._reader = self._connect(write=False)
        return self._reader

    def _query(self, sql: str, params: Sequence[object] = ()) -> list[tuple]:  # type: ignore[type-arg]
        """Return the rows of a fixed query, read by a connection of its own."""
        with self._reader_lock:
            try:
                return self._read_connection().execute(sql, params).fetchall()
            except sqlite3.Error as error:
                if self._reader is not None:
                    self._reader.close()
                    self._reader = None
                raise self._said(error) from None

    @contextmanager
    def _snapshot(self) -> Iterator[None]:
        """See the ledger as it is at one moment, whatever is appended meanwhile."""
        with self._reader_lock:
            self._query("BEGIN")
            try:
                yield
            finally:
                if self._reader is not None and self._reader.in_transaction:
                    self._reader.execute("ROLLBACK")

    def stored(self, kind: int, request_id: int) -> bool:
        """Say whether the row is in this file."""
        return bool(
            self._query("SELECT 1 FROM rows WHERE request_id = ? AND kind = ? AND request_id > 0", (request_id, kind))
        )

    def covered(self, request_id: int) -> bool:
        """Say whether a lease of this file, or of the files before it, covers the id."""
        (first,) = self._query("SELECT body FROM rows WHERE seq = 0")[0]
        if request_id < msgspec.json.decode(first, type=Rotate).next_request_id:
            return True
        found = self._query(
            "SELECT body FROM rows WHERE request_id <= ? AND kind = ? AND request_id > 0 ORDER BY request_id DESC LIMIT 1",
            (request_id, LEASE),
        )
        if not found:
            return False
        head = msgspec.json.decode(found[0][0], type=Head)
        return request_id < head.request_id + head.n_ids

    def _read_nodes(self, places: Sequence[Place]) -> dict[Place, bytes]:
        found: dict[Place, bytes] = {}
        for level, i in places:
            for (node,) in self._query("SELECT hash FROM nodes WHERE level = ? AND i = ?", (level, i)):
                found[level, i] = node
        return found

    def _read_leaves(self, blocks: Sequence[int]) -> dict[int, bytes]:
        found: dict[int, bytes] = {}
        for block in blocks:
            found.update(
                self._query(
                    "SELECT seq, leaf FROM rows WHERE seq >= ? AND seq < ?", (block * BLOCK, (block + 1) * BLOCK)
                )
            )
        return found

    def checkpoint(self) -> Checkpoint:
        """Return the latest signed checkpoint."""
        found = self._query("SELECT note FROM checkpoints ORDER BY size DESC LIMIT 1")
        if not found:
            raise LedgerError(f"{self.path}: has no checkpoint; it is not a ledger, or was damaged")
        try:
            return checkpoint_of(found[0][0])
        except ValueError:
            raise LedgerError(f"{self.path}: its last checkpoint cannot be read; run `baseload verify`") from None

    def _public_line(self, key_id: str) -> str:
        found = self._query("SELECT public_line FROM keys WHERE key_id = ?", (key_id,))
        return str(found[0][0]) if found else ""

    def find(self, request_id: int) -> RowOut | None:
        """Return the settle row of a request."""
        found = self._query(
            "SELECT seq, kind, request_id, leaf, body FROM rows WHERE request_id = ? AND kind = ? AND request_id > 0",
            (request_id, SETTLE),
        )
        return _row_out(found[0]) if found else None

    def rows(self, since_seq: int = 0, until_seq: int | None = None) -> Iterator[RowOut]:
        """Return the rows since_seq <= seq < until_seq in order, a thousand at a time."""
        until = self.size() if until_seq is None else until_seq
        while since_seq < until:
            some = self._query(
                "SELECT seq, kind, request_id, leaf, body FROM rows WHERE seq >= ? AND seq < ? ORDER BY seq LIMIT 1000",
                (since_seq, until),
            )
            if not some:
                return
            yield from map(_row_out, some)
            since_seq = some[-1][0] + 1

    def latest(self, n: int, kind: str = "settle") -> list[RowOut]:
        """Return the last `n` rows of a kind, newest first."""
        found = self._query(
            "SELECT seq, kind, request_id, leaf, body FROM rows WHERE kind = ? ORDER BY seq DESC LIMIT ?",
            (KINDS[kind], n),
        )
        return [_row_out(row) for row in found]

    def totals(self, month: str | None = None) -> list[Total]:
        """Return the sums of a month (`2026-11`), or of each month, by month, tenant, key."""
        found = self._query(
            "SELECT * FROM totals WHERE month = ? OR ? IS NULL ORDER BY month, tenant, key", (month, month)
        )
        return [Total(month=row[0], tenant=row[1], key=row[2], **dict(zip(SUMS, row[3:]))) for row in found]

    # ---- keys, rotation, copies ----

    def rotate(self, archive: Path, origin: str = "") -> None:
        """Move all rows to the file `archive`, and begin anew with a row that links to it, open leases and sums with it.

        A crash in between is made good by the next opening.
        """
        with self._lock:
            if self._signer is None:
                raise LedgerUnavailable("this ledger was opened for reading")
            refuse_existing(archive)
            self._seal(str(archive.absolute()), origin)
            self._finish_rotation()

    def _finish_rotation(self) -> None:
        book = self._known()
        archive = Path(book.sealed_for)
        if not archive.exists():
            self._copy(archive)
        with SqliteLedger.read(archive) as copy:
            if copy.checkpoint() != self.checkpoint():
                raise LedgerError(f"{archive}: is not the copy of {self.path} that its rotation needs; move it away")
        (seal,) = self._query("SELECT body FROM rows ORDER BY seq DESC LIMIT 1")[0]
        origin = msgspec.json.decode(seal, type=Rotate).next
        self._restart(book, self.totals(), self._now_ns(book), origin)

    def _restart(
        self, book: Book, totals: list[Total], at_ns: int, origin: str, next_id: int = 0, why: str = ""
    ) -> None:
        """Replace all tables by those of the next log, in one transaction."""
        keys = self._query("SELECT key_id, public_line, note FROM keys ORDER BY i")
        assert self._signer is not None
        goes_on = bool(keys) and keys[-1][0] == self._signer.key_id  # else an old backup, restored under today's key
        keys = keys if goes_on else []
        new_book, plan = begin_after(
            book, totals, [note for _, _, note in keys if note], origin=origin, at_ns=at_ns, next_id=next_id, why=why
        )
        with self._failures():
            connection = self._write()
            connection.execute("BEGIN IMMEDIATE")
            for statement in DROP:
                connection.execute(statement)
            self._make_tables(connection, origin)
            connection.executemany("INSERT INTO keys (key_id, public_line, note) VALUES (?, ?, ?)", keys)
            self._key_stored = ""
            self._sign(plan, new_book)
            self._insert(connection, plan)
            connection.execute("COMMIT")
            self._book = None
            connection.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchall()
        self._see(plan)

    def begin_restored(self, skip_ids: int) -> None:
        """Begin the log that follows a backup (see `restore`); today's key may be another than the backup's."""
        self._restoring = True
        book = self._known()
        self._restart(
            book, self.totals(), self._now_ns(book), f"{next_origin(book.origin)}-restored",
            next_id=book.next_id + skip_ids, why="restored from a backup",
        )  # fmt: skip

    def backup(self, path: Path) -> None:
        """Write a copy while the ledger goes on, and check that it opens; refuses to overwrite."""
        refuse_existing(path)
        self._copy(path)

    def export(self, path: Path) -> None:
        """Write the whole ledger as a file that `baseload verify` reads: the same as `backup`."""
        self.backup(path)

    def _copy(self, path: Path) -> None:
        source = self._connect(write=False)
        try:
            copy_whole(source, path, lambda partial: SqliteLedger.read(partial).close())
        finally:
            source.close()


def _row_out(row: tuple) -> RowOut:  # type: ignore[type-arg]
    return RowOut(row[0], KIND_NAMES[row[1]], row[2], row[3], row[4])


def restore(
    backup: Path, path: Path, signer: SigningKey, *, witness: Witness | None = None, skip_ids: int = 2**32
) -> None:
    """Bring a backup back as the ledger `path`, which must not exist.

    What was stored after the backup is gone, so the log does not go on as if nothing had happened: a new one begins, linked
    to the backup's last row, and request ids go on `skip_ids` higher, so that none is given out twice. The witness file,
    which saw more rows than the backup has, remains the proof of what was lost.
    """
    for name in ("", "-wal", "-shm"):
        refuse_existing(path.with_name(path.name + name))  # another ledger's WAL would be taken for this one's
    partial = path.with_name(path.name + ".restoring")
    partial.unlink(missing_ok=True)
    with SqliteLedger.read(backup) as source:
        source.backup(partial)
    ledger = SqliteLedger(partial, signer, witness, time.time_ns)
    try:
        ledger.begin_restored(skip_ids)
    finally:
        ledger.close()
    os.rename(partial, path)
    sync_folder(path.parent)
