"""The ledger in PostgreSQL, for several gateway hosts or where a database is kept anyway: the same tables, the same promises.

asyncpg runs on a loop in a thread of its own; the methods block. A lost connection is taken up again for `retry_s`; whether a
commit that was cut short took place is asked of the database (is our checkpoint there?), never guessed. What is left to
the caller: rows without a request id that were handed in while the database stayed away longer than that may be stored
twice if handed in again. `export` writes the SQLite file that `baseload verify` reads.
"""

from __future__ import annotations

import asyncio
import os
import re
import sqlite3
import threading
import time
from collections.abc import Awaitable, Callable, Coroutine, Iterator, Sequence
from pathlib import Path
from typing import Any, TypeVar

import asyncpg
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
)
from baseload.adapters.ledger_core import MerkleLedger, Stale
from baseload.adapters.ledger_postgres_sql import EXPORT, PG_DROP, PG_KEY, PG_LEASE, PG_META, PG_SCHEMA, PG_TOTAL
from baseload.adapters.ledger_schema import SCHEMA, refuse_existing, statements
from baseload.adapters.ledger_sqlite import SqliteLedger
from baseload.adapters.signing import SigningKey, Witness, checkpoint_of, sync_folder
from baseload.errors import LedgerError, LedgerUnavailable
from baseload.ports import KIND_NAMES, KINDS, LEDGER_FORMAT, Checkpoint, RowOut, Total

T = TypeVar("T")
COMMAND_S = 10.0  # longest that one statement may take before the connection is given up
LOST = (
    asyncpg.PostgresConnectionError, asyncpg.InterfaceError, asyncpg.InternalClientError, asyncpg.OperatorInterventionError,
    OSError, asyncio.TimeoutError,
)  # fmt: skip


class PostgresLedger(MerkleLedger):
    """A `ports.Ledger` in a schema of a PostgreSQL database. Use `PostgresLedger.open`."""

    def __init__(
        self,
        dsn: str,
        schema: str,
        signer: SigningKey,
        witness: Witness | None,
        clock_ns: Callable[[], int],
        retry_s: float,
    ) -> None:
        super().__init__(signer, witness, clock_ns)
        if not re.fullmatch(r"[a-z_][a-z0-9_]{0,62}", schema):
            raise LedgerError(f"ledger schema {schema!r}: use small letters, digits and _")
        self._dsn, self._schema, self._retry_s = dsn, schema, retry_s
        self._connection: Any = None
        self._turn = asyncio.Lock()
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="ledger-postgres", daemon=True)
        self._thread.start()

    @classmethod
    def open(
        cls,
        dsn: str,
        signer: SigningKey,
        *,
        origin: str = "baseload/ledger/1",
        schema: str = "baseload",
        witness: Witness | None = None,
        clock_ns: Callable[[], int] = time.time_ns,
        retry_s: float = 5.0,
    ) -> PostgresLedger:
        """Open the ledger of a database for appending; make it where there is none, named `origin`."""
        ledger = cls(dsn, schema, signer, witness, clock_ns, retry_s)
        try:
            ledger._begin(origin)
            if ledger._known().sealed_for:
                ledger._finish_rotation()
        except BaseException:
            ledger._stop()
            raise
        return ledger

    def close(self) -> None:
        """Flush and close."""
        with self._lock:
            self._dead = self._dead or "the ledger is closed"
            self._stop()
            if self._witness is not None:
                try:
                    self._witness.close()
                except OSError as error:
                    self.witness_error = f"witness file: {error.strerror}"

    def __enter__(self) -> PostgresLedger:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    # ---- the loop, the connection, and what goes wrong ----

    def _call(self, work: Coroutine[Any, Any, T]) -> T:
        """Run a coroutine on the ledger's loop, and wait."""
        if not self._thread.is_alive():
            work.close()
            raise LedgerUnavailable("the ledger is closed")
        return asyncio.run_coroutine_threadsafe(work, self._loop).result()

    def _stop(self) -> None:
        if self._thread.is_alive():
            self._call(self._disconnect())
            self._loop.call_soon_threadsafe(self._loop.stop)
            self._thread.join()
            self._loop.close()

    async def _disconnect(self) -> None:
        connection, self._connection = self._connection, None
        if connection is not None:
            try:
                await connection.close(timeout=2.0)
            except (*LOST, asyncpg.PostgresError):
                connection.terminate()

    async def _connect(self) -> Any:
        """Return the connection, made anew where it was lost; tries for `retry_s`."""
        if self._connection is not None and not self._connection.is_closed():
            return self._connection
        deadline_s = time.monotonic() + self._retry_s
        while True:
            try:
                settings = {
                    "search_path": self._schema,
                    "synchronous_commit": "on",
                    "application_name": "baseload-ledger",
                }
                self._connection = await asyncpg.connect(
                    self._dsn, server_settings=settings, timeout=COMMAND_S, command_timeout=COMMAND_S
                )
                return self._connection
            except (*LOST, asyncpg.TooManyConnectionsError) as error:
                if time.monotonic() >= deadline_s:
                    raise LedgerUnavailable(f"the ledger's database does not answer ({_words(error)})") from None
                await asyncio.sleep(0.05)
            except asyncpg.PostgresError as error:
                raise LedgerError(
                    f"the ledger's database refuses us ({_words(error)}); see its address and grants"
                ) from None

    async def _with(self, work: Callable[[Any], Awaitable[T]], *, again: bool) -> T:
        """Do a piece of work on the connection, one at a time; once more, where it may be done `again`, if that was lost."""
        async with self._turn:
            for attempt in (1, 2):
                connection = await self._connect()
                try:
                    return await work(connection)
                except LOST as error:
                    connection.terminate()
                    self._connection = None
                    if not again or attempt == 2:
                        raise _Lost(_words(error)) from None
            raise AssertionError

    def _query(self, sql: str, *params: object) -> list[Any]:
        """Return the rows of a fixed query."""

        async def ask(connection: Any) -> Any:
            return await connection.fetch(sql, *params)

        found: list[Any] = self._ask(ask)
        return found

    def _ask(self, work: Callable[[Any], Awaitable[T]]) -> T:
        """Do a piece of reading, again where the connection was lost."""
        try:
            return self._call(self._with(work, again=True))
        except _Lost as error:
            raise LedgerUnavailable(f"the ledger's database was lost ({error})") from None
        except asyncpg.PostgresError as error:
            raise LedgerUnavailable(f"the ledger cannot be read now ({_words(error)})") from None

    # ---- beginning ----

    def _begin(self, origin: str) -> None:
        """Make the tables and the first row, in one transaction, where there are none."""

        async def make(connection: Any) -> Plan | None:
            if await connection.fetchval("SHOW fsync") != "on":
                raise LedgerError("the ledger's database runs with fsync = off: it would lose what it promised")
            async with connection.transaction():
                await connection.execute("SELECT pg_advisory_xact_lock(7232101)")
                if await connection.fetchval("SELECT to_regclass($1) IS NOT NULL", f"{self._schema}.meta"):
                    return None
                await connection.execute(f"CREATE SCHEMA IF NOT EXISTS {self._schema}")
                book, plan = begin(Rotate(at_ns=self._clock_ns(), act="begin", origin=origin), (), {})
                self._sign(plan, book)
                await self._make_tables(connection, origin)
                await self._insert(connection, plan)
                return plan

        try:
            plan = self._call(self._with(make, again=True))
        except _Lost as error:
            raise LedgerUnavailable(f"the ledger's database was lost ({error})") from None
        except asyncpg.PostgresError as error:
            raise LedgerError(f"the ledger's tables cannot be made ({_words(error)}); see the grants") from None
        if plan is not None:
            self._see(plan)

    async def _make_tables(self, connection: Any, origin: str) -> None:
        await connection.execute(PG_SCHEMA)
        await connection.executemany(
            "INSERT INTO meta VALUES ($1, $2)", [("format", LEDGER_FORMAT), ("origin", origin)]
        )

    def _read_book(self) -> Book:
        async def look(connection: Any) -> Any:
            async with connection.transaction(isolation="repeatable_read", readonly=True):
                return (
                    {row["name"]: row["value"] for row in await connection.fetch("SELECT name, value FROM meta")},
                    await connection.fetchval("SELECT coalesce(max(seq), -1) + 1 FROM rows"),
                    [tuple(row) for row in await connection.fetch("SELECT * FROM leases ORDER BY lease_id")],
                    await connection.fetchval("SELECT note FROM checkpoints ORDER BY size DESC LIMIT 1"),
                )

        meta, size, found, note = self._ask(look)
        if meta.get("format") != LEDGER_FORMAT or note is None:
            raise LedgerError(f"the ledger's format is {meta.get('format')!r}, this version reads {LEDGER_FORMAT!r}")
        latest = checkpoint_of(note)
        leases = [Lease(row[0], row[1], int.from_bytes(row[2], "little"), *row[3:]) for row in found]
        frontier = self.load_frontier(size, latest, "the database's ledger (export it first)")
        self._check_key(meta.get("key_id", ""), "the ledger in the database")
        return Book(
            meta["origin"], frontier, time_ns=latest.time_ns, next_id=int(meta["next_request_id"]), leases=leases,
            sealed_for=meta.get("archive", ""),
        )  # fmt: skip

    # ---- storing ----

    def _store(self, plan: Plan, book: Book) -> None:
        async def put(connection: Any) -> None:
            async with connection.transaction():
                await connection.fetchval("SELECT value FROM meta WHERE name = 'origin' FOR UPDATE")
                if await connection.fetchval("SELECT coalesce(max(seq), -1) + 1 FROM rows") != book.size:
                    raise Stale
                await self._insert(connection, plan)

        try:
            self._call(self._with(put, again=False))
        except _Lost:
            if not self._is_stored(plan):
                raise Stale from None
        except asyncpg.IntegrityConstraintViolationError as error:
            raise LedgerError(f"the ledger refused rows ({_words(error)}); export and verify it") from None
        except asyncpg.PostgresError as error:
            raise LedgerUnavailable(f"the ledger cannot store now ({_words(error)})") from None

    def _is_stored(self, plan: Plan) -> bool:
        """Say whether a commit that was cut short took place: is the very checkpoint there that went with it?"""
        assert plan.checkpoint is not None
        found = self._query("SELECT note FROM checkpoints WHERE size = $1", plan.checkpoint.size)
        return bool(found) and found[0][0] == plan.checkpoint.note

    async def _insert(self, connection: Any, plan: Plan) -> None:
        """Put a plan into the open transaction."""
        signer = plan.new_key or self._signer
        assert plan.checkpoint is not None and signer is not None
        await connection.copy_records_to_table("rows", records=plan.rows)
        if plan.nodes:
            await connection.copy_records_to_table("nodes", records=plan.nodes)
        still = [lease.columns() for lease in plan.leases.values() if lease.closed != lease.full]
        gone = [lease.lease_id for lease in plan.leases.values() if lease.closed == lease.full]
        if still:
            await connection.executemany(PG_LEASE, still)
        if gone:
            await connection.execute("DELETE FROM leases WHERE lease_id = ANY($1::bigint[])", gone)
        if plan.totals:
            await connection.executemany(PG_TOTAL, [(*account, *sums) for account, sums in sorted(plan.totals.items())])
        await connection.execute("INSERT INTO checkpoints VALUES ($1, $2)", plan.checkpoint.size, plan.checkpoint.note)
        await connection.execute(PG_META, "next_request_id", str(plan.next_id))
        if signer.key_id != self._key_stored:
            await connection.execute(PG_KEY, signer.key_id, signer.public_line, plan.succession)
            await connection.execute(PG_META, "key_id", signer.key_id)
        if plan.archive:
            await connection.execute(PG_META, "archive", plan.archive)

    # ---- reading ----

    def stored(self, kind: int, request_id: int) -> bool:
        """Say whether the row is in this log."""
        return bool(
            self._query("SELECT 1 FROM rows WHERE request_id = $1 AND kind = $2 AND request_id > 0", request_id, kind)
        )

    def covered(self, request_id: int) -> bool:
        """Say whether a lease of this log, or of the logs before it, covers the id."""
        first = self._query("SELECT body FROM rows WHERE seq = 0")[0][0]
        if request_id < msgspec.json.decode(first, type=Rotate).next_request_id:
            return True
        found = self._query(
            "SELECT body FROM rows WHERE request_id <= $1 AND kind = $2 AND request_id > 0 ORDER BY request_id DESC LIMIT 1",
            request_id, LEASE,
        )  # fmt: skip
        if not found:
            return False
        head = msgspec.json.decode(found[0][0], type=Head)
        return request_id < head.request_id + head.n_ids

    def _read_nodes(self, places: Sequence[Place]) -> dict[Place, bytes]:
        found = self._query(
            "SELECT level, i, hash FROM nodes JOIN unnest($1::integer[], $2::bigint[]) AS wanted (level, i) USING (level, i)",
            [level for level, _ in places], [i for _, i in places],
        )  # fmt: skip
        return {(row[0], row[1]): row[2] for row in found}

    def _read_leaves(self, blocks: Sequence[int]) -> dict[int, bytes]:
        wanted = [seq for block in blocks for seq in range(block * BLOCK, (block + 1) * BLOCK)]
        found = self._query("SELECT seq, leaf FROM rows WHERE seq = ANY($1::bigint[])", wanted)
        return {row[0]: row[1] for row in found}

    def checkpoint(self) -> Checkpoint:
        """Return the latest signed checkpoint."""
        found = self._query("SELECT note FROM checkpoints ORDER BY size DESC LIMIT 1")
        if not found:
            raise LedgerError("the database's ledger has no checkpoint; it was damaged")
        return checkpoint_of(found[0][0])

    def _public_line(self, key_id: str) -> str:
        found = self._query("SELECT public_line FROM keys WHERE key_id = $1", key_id)
        return str(found[0][0]) if found else ""

    def find(self, request_id: int) -> RowOut | None:
        """Return the settle row of a request."""
        found = self._query(
            "SELECT * FROM rows WHERE request_id = $1 AND kind = $2 AND request_id > 0", request_id, SETTLE
        )
        return _row_out(found[0]) if found else None

    def rows(self, since_seq: int = 0, until_seq: int | None = None) -> Iterator[RowOut]:
        """Return the rows since_seq <= seq < until_seq in order, a thousand at a time."""
        until = self.size() if until_seq is None else until_seq
        while since_seq < until:
            some = self._query(
                "SELECT * FROM rows WHERE seq >= $1 AND seq < $2 ORDER BY seq LIMIT 1000", since_seq, until
            )
            if not some:
                return
            yield from map(_row_out, some)
            since_seq = some[-1][0] + 1

    def latest(self, n: int, kind: str = "settle") -> list[RowOut]:
        """Return the last `n` rows of a kind, newest first."""
        found = self._query("SELECT * FROM rows WHERE kind = $1 ORDER BY seq DESC LIMIT $2", KINDS[kind], n)
        return [_row_out(row) for row in found]

    def totals(self, month: str | None = None) -> list[Total]:
        """Return the sums of a month (`2026-11`), or of each month, by month, tenant, key."""
        found = self._query("SELECT * FROM totals WHERE month = $1 OR $1::text IS NULL", month)
        found.sort(key=lambda row: tuple(row)[:3])
        return [Total(month=row[0], tenant=row[1], key=row[2], **dict(zip(SUMS, tuple(row)[3:]))) for row in found]

    # ---- rotation and export ----

    def rotate(self, archive: Path, origin: str = "") -> None:
        """Move all rows to the SQLite file `archive`, and begin anew with a row that links to it."""
        with self._lock:
            refuse_existing(archive)
            self._seal(str(archive.absolute()), origin)
            self._finish_rotation()

    def _finish_rotation(self) -> None:
        book = self._known()
        archive = Path(book.sealed_for)
        if not archive.exists():
            self.export(archive)
        with SqliteLedger.read(archive) as copy:
            if copy.checkpoint() != self.checkpoint():
                raise LedgerError(f"{archive}: is not the copy of the ledger that its rotation needs; move it away")
        seal = msgspec.json.decode(self._query("SELECT body FROM rows ORDER BY seq DESC LIMIT 1")[0][0], type=Rotate)
        totals, now_ns = self.totals(), self._now_ns(book)
        keys = [tuple(row) for row in self._query("SELECT key_id, public_line, note FROM keys ORDER BY i")]
        successions = [note for _, _, note in keys if note]
        new_book, plan = begin_after(book, totals, successions, origin=seal.next, at_ns=now_ns)

        async def restart(connection: Any) -> None:
            async with connection.transaction():
                await connection.execute(PG_DROP)
                await self._make_tables(connection, seal.next)
                await connection.executemany(PG_KEY, keys)
                await self._insert(connection, plan)

        self._key_stored = ""
        self._sign(plan, new_book)
        self._book = None
        try:
            self._call(self._with(restart, again=False))
        except _Lost as error:
            if not self._is_stored(plan):
                raise LedgerUnavailable(
                    f"the ledger's database was lost in a rotation ({error}); open it again"
                ) from None
        except asyncpg.PostgresError as error:
            raise LedgerUnavailable(f"the ledger's rotation failed ({_words(error)}); open it again") from None
        self._see(plan)

    def export(self, path: Path) -> None:
        """Write the whole ledger as a SQLite file that `baseload verify` reads; refuses to overwrite."""
        refuse_existing(path)
        partial = path.with_name(path.name + ".partial")
        partial.unlink(missing_ok=True)
        try:
            os.close(os.open(partial, os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o600))
            file = sqlite3.connect(partial, isolation_level=None, check_same_thread=False)
            try:
                file.execute("BEGIN")
                for statement in statements(SCHEMA):
                    file.execute(statement)
                self._call(self._with(lambda connection: _copy_tables(connection, file), again=False))
                file.execute("COMMIT")
            finally:
                file.close()
            with SqliteLedger.read(partial):
                pass  # raises where the copy's tree does not match its checkpoint
            os.rename(partial, path)
            sync_folder(path.parent)
        except (OSError, sqlite3.Error, asyncpg.PostgresError, _Lost) as error:
            partial.unlink(missing_ok=True)
            raise LedgerUnavailable(f"{path}: the ledger cannot be exported now ({_words(error)})") from None


async def _copy_tables(connection: Any, file: sqlite3.Connection) -> None:
    """Copy all tables as they are at one moment."""
    async with connection.transaction(isolation="repeatable_read", readonly=True):
        for select, insert in EXPORT.values():
            cursor = await connection.cursor(select)
            while some := await cursor.fetch(1000):
                file.executemany(insert, [tuple(row) for row in some])


class _Lost(Exception):
    """The connection was lost while something was under way."""


def _words(error: BaseException) -> str:
    return str(error).splitlines()[0] if str(error) else type(error).__name__


def _row_out(row: Any) -> RowOut:
    return RowOut(row[0], KIND_NAMES[row[1]], row[2], row[3], row[4])
