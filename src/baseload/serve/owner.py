"""The owner: the one process of a host that holds budgets, limits and the ledger's writer. Workers lease from it.

It answers workers over `run/owner.sock`. A lease of request ids is a durable row before it is granted; money and rates that
are granted without ids need no row, because no request can be opened without one, a living worker says at hello what it
holds, and a dead one's marks say what it used. Settled rows are stored, then acknowledged; a worker hands in again what
was not, and the ledger ignores what it has. When a worker dies its leases are closed from its marks; when the owner
dies, workers go on with what they hold and say hello to the next one. What may be granted is `bank.py`; the thread that
writes is `journal.py`; what a dead worker leaves, `recovery.py`.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import re
import time
from collections import deque
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import msgspec

from baseload.ports import Ledger
from baseload.serve import marks as marks_files
from baseload.serve import recovery, wire
from baseload.serve.bank import Bank, Change
from baseload.serve.booking import book
from baseload.serve.clientele import Clientele
from baseload.serve.holders import Holder, MarksFiles, Syncer
from baseload.serve.journal import Journal
from baseload.serve.keys import Keyring
from baseload.serve.overview import month_of, newest, overview, send_receipt
from baseload.serve.recovery import Leased
from baseload.serve.rows import ControlRow, LeaseRow, ReloadRow, Row, SettleRow, row_in
from baseload.serve.settled import Batch, batch_of
from baseload.serve.tables import Tables
from baseload.serve.wire import Wire

HELLO_S = 2.0  # a new owner waits so long for the workers that live before it grants anything
WATCH_S = 0.1
KEYS_S = 0.25  # how often it is looked whether keys changed
SLACK_S = 0.01  # a timer may be early by so much
RECENT = 200
_MARKS_NAME = re.compile(r"marks-\d{1,6}-\d{1,10}-[0-9a-f]{8}")


class Owner:
    """Budgets, limits, leases and the ledger's writer, for one state folder. Runs on one event loop."""

    def __init__(
        self,
        folder: Path,  # `run/` of the state folder
        ledger: Ledger,
        keyring: Keyring,
        tables: Tables,
        *,
        on_rows: Callable[[Batch], None] | None = None,  # told of settled rows once they are durable
        on_fatal: Callable[[str], None] | None = None,  # told when this process must end
        clock_s: Callable[[], float] = time.monotonic,
        utc_ns: Callable[[], int] = time.time_ns,
    ) -> None:
        self.folder, self.ledger, self.keyring, self.tables = folder, ledger, keyring, tables
        self._on_rows, self._on_fatal = on_rows, on_fatal
        self._clock_s, self._utc_ns = clock_s, utc_ns
        self._last_ns = 0
        self.bank = Bank()
        self.clientele = Clientele(self.bank, keyring, tables, self._do, clock_s=clock_s, utc_ns=self.now_ns)
        self._recent: deque[bytes] = deque(maxlen=RECENT)
        self.faults: deque[str] = deque(maxlen=50)  # what ought not to have happened, for the operator
        self.counts = {"recovered": 0, "voided": 0, "repeated": 0, "dropped_connections": 0, "bugs": 0}
        self.leases: dict[int, Leased] = {}
        self.holders: dict[str, Holder] = {}
        self._by_number: dict[int, Holder] = {}
        self._n_holders = 0
        self._marks = MarksFiles(folder)
        self._hurry = asyncio.Event()  # what is watched cannot wait for long
        self._unsettled = True  # a marks file is of no worker that is connected
        self._read: set[Path] = set()  # marks files that are on their way into the ledger
        self._early: list[Callable[[], None]] = []  # asks that wait until living workers have said hello
        self._begun_s = 0.0
        self.granting = False
        self._server: asyncio.Server | None = None
        self._tasks: list[asyncio.Task[None]] = []
        self._loop: asyncio.AbstractEventLoop | None = None
        self._syncer = Syncer(self.holders.values)
        self.journal = Journal(ledger, self._on_loop, storage=self._storage_is, fatal=self._fatally, bug=self._bug)

    # ---- life ----

    async def start(self) -> None:
        """Take up what the ledger says, recover what the dead left, and listen."""
        self._loop = asyncio.get_running_loop()
        self._begun_s = self._clock_s()
        self.bank.next_id = self.ledger.next_request_id()
        self.bank.month = month_of(self.now_ns())
        self.clientele.begin(self.ledger.totals())
        self.leases = self.clientele.leased(self.ledger.open_leases())
        self.journal.start()
        self._syncer.start()
        path = self.folder / "owner.sock"
        path.unlink(missing_ok=True)
        self._server = await self._loop.create_unix_server(
            lambda: Wire(wire.ToOwner, self._heard, self._lost, self._made), str(path)
        )
        os.chmod(path, 0o600)
        self._watch_workers()
        self._tasks = [self._loop.create_task(self._watch())]

    async def stop(self) -> bool:
        """Write what waits and end; False where rows could not be stored (workers and marks still have them)."""
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        if self._server is not None:
            self._server.close()
        whole = await asyncio.to_thread(self.journal.stop)
        await asyncio.sleep(0)  # the last acknowledgements
        for holder in self.holders.values():
            if holder.connection is not None:
                holder.connection.close()
        await asyncio.to_thread(self._syncer.stop)
        for holder in self.holders.values():
            os.close(holder.handle)
        self.holders.clear()
        (self.folder / "owner.sock").unlink(missing_ok=True)
        return whole

    def _on_loop(self, call: Callable[[], None]) -> None:
        assert self._loop is not None
        with contextlib.suppress(RuntimeError):  # the loop is closed: we are ending
            self._loop.call_soon_threadsafe(call)

    def now_ns(self) -> int:
        """Return the time for rows: UTC, never backwards."""
        self._last_ns = max(self._last_ns, self._utc_ns())
        return self._last_ns

    def _storage_is(self, ok: bool) -> None:
        if not ok:
            self.faults.append("the ledger cannot be written; nothing new is admitted until it can")
        self._tell_all(wire.Storage(ok))

    def _fatally(self, said: str) -> None:
        self.faults.append(said)
        if self._on_fatal is not None:
            self._on_fatal(said)

    def _bug(self, said: str) -> None:
        self.counts["bugs"] += 1
        self.faults.append(said)

    def _tell_all(self, message: wire.Message) -> None:
        for holder in self.holders.values():
            if holder.connection is not None:
                holder.connection.send(message)

    # ---- watching ----

    async def _watch(self) -> None:
        keys_s = 0.0
        while True:
            await self._rest()
            now_s = self._clock_s()
            try:
                self.bank.turn_month(month_of(self.now_ns()))
                self._do(self.bank.tick(now_s))
                self._watch_workers()
                if now_s - keys_s >= KEYS_S - SLACK_S:
                    keys_s = now_s
                    if self.keyring.accounts.changed():
                        self._keys_changed()
            except Exception as error:  # the watch goes on; an operator reads of it
                self._bug(f"watch: {error!r}")

    async def _rest(self) -> None:
        """Wait: shortly where something is under way, else until keys are looked at, or a worker is lost."""
        self._hurry.clear()
        busy = self._unsettled or self.bank.waiting or not self.granting
        if busy:
            return await asyncio.sleep(WATCH_S)
        handle = asyncio.get_running_loop().call_later(KEYS_S, self._hurry.set)
        await self._hurry.wait()
        handle.cancel()

    def _watch_workers(self) -> None:
        """Recover what dead workers left; begin to grant when all that live have said hello."""
        paths = self._marks.now()
        silent: set[int] = set()
        dead: list[Path] = []
        self._unsettled = False
        strangers: list[Path] = []  # dead before this owner knew them
        for path in paths:
            holder = self.holders.get(path.name)
            if holder is not None and holder.connection is not None:
                continue
            self._unsettled = True
            if path in self._read:
                continue
            if marks_files.is_held(path):
                if holder is None:
                    silent.add(marks_files.worker_of(path))
            else:
                (strangers if holder is None else dead).append(path)
        # Whose leases are whose shows when the successor has said which are its own: until then the file is kept.
        dead += [path for path in strangers if marks_files.worker_of(path) not in silent]
        ended = set(dead) | {holder.path for holder in self.holders.values() if holder.path not in paths}  # or left
        gone = [h for h in self.holders.values() if h.connection is None and h.path in ended]
        orphans = [x for x in self.leases.values() if x.holder == 0 and x.worker not in silent]
        if dead or gone or orphans:
            self._recover(dead, gone, orphans)
        if not self.granting and (not silent or self._clock_s() - self._begun_s > HELLO_S):
            self.granting = True
            early, self._early = self._early, []
            for call in early:
                call()

    def _recover(self, dead: list[Path], gone: list[Holder], orphans: list[Leased]) -> None:
        """Close each open id of dead workers once; their files go when that is durable."""
        found = {mark.request_id: mark for path in dead for mark in marks_files.read(path).marks}
        numbers = {holder.number for holder in gone}
        leases = orphans + [x for x in self.leases.values() if x.holder in numbers]
        now_ns = self.now_ns()
        rows = recovery.close(leases, found, self.tables, now_ns)
        key_i = {lease.key: lease.key_i for lease in leases}
        settled = [row for row in rows if isinstance(row, SettleRow)]
        for row in settled:
            if key_i[row.key] in self.bank.keys:
                self.bank.recovered(key_i[row.key], row.price_nano)
        self.counts["recovered"] += len(settled)
        self.counts["voided"] += len(rows) - len(settled)
        for lease in leases:
            self.leases.pop(lease.lease_id, None)

        def stored(ok: bool) -> None:
            for path in dead:
                path.unlink(missing_ok=True)
            self._seen(batch_of(settled, now_ns))

        self._read |= set(dead)  # once; the files stay until the rows are durable, for an owner after us
        self.journal.put([row_in(row) for row in rows], stored)
        now_s = self._clock_s()
        for holder in gone:
            del self.holders[holder.path.name]
            del self._by_number[holder.number]
            os.close(holder.handle)
            self._do(self.bank.leave(holder.number, now_s))

    # ---- what workers say ----

    def _made(self, connection: Wire) -> None:
        if not connection.same_user():
            connection.drop("another user")

    def _lost(self, connection: Wire) -> None:
        if connection.fault:
            self.counts["dropped_connections"] += 1
            self.faults.append(f"a worker's connection was dropped: {connection.fault}"[:300])
        holder: Holder | None = connection.who
        if holder is not None and holder.connection is connection:
            holder.connection = None
            self._unsettled = True
            self._hurry.set()

    def _heard(self, connection: Wire, message: Any) -> None:
        holder: Holder | None = connection.who
        try:
            if isinstance(message, wire.Hello):
                self._hello(connection, message)
            elif holder is None or holder.connection is not connection:
                connection.drop("no hello")
            else:
                self._obey(holder, connection, message)
        except Exception as error:  # a bug of ours must not take the connection with it
            self._bug(f"{type(message).__name__}: {error!r}")

    def _obey(self, holder: Holder, connection: Wire, message: Any) -> None:
        now_s = self._clock_s()
        match message:
            case wire.Ask():
                self._ask(holder, message)
            case wire.Handed():
                self._rows(holder, message)
            case wire.Return():
                self._returned(holder, message, now_s)
            case wire.LookUp():
                self._look_up(connection, message)
            case wire.Stats():
                holder.stats = message.values
            case wire.ReceiptAsk():
                self._receipt(connection, message)

    def _hello(self, connection: Wire, hello: wire.Hello) -> None:
        path = self.folder / hello.marks
        if hello.version != wire.VERSION or not _MARKS_NAME.fullmatch(hello.marks) or not path.exists():
            return connection.drop("a hello of another version, or without its marks")
        holder = self.holders.get(hello.marks)
        if holder is None:
            self._n_holders += 1
            holder = Holder(self._n_holders, hello.worker, hello.pid, path)
            self.holders[hello.marks] = self._by_number[holder.number] = holder
        elif holder.connection is not None:
            holder.connection.drop("")
        holder.connection, connection.who = connection, holder
        holder.hellos += 1
        holder.tables_version = hello.tables_version
        pouches = []
        for pouch in hello.pouches:
            record = self.keyring.accounts.key(pouch.key_i)
            if record is not None:
                self.clientele.take_up(record)
                pouches.append(pouch)
        claimed = {lease_id for pouch in pouches for lease_id in pouch.leases}
        for lease_id in claimed:
            if lease_id in self.leases and self.leases[lease_id].holder in (0, holder.number):
                self.leases[lease_id].holder = holder.number
        lost = [x for x in self.leases.values() if x.holder == holder.number and x.lease_id not in claimed]
        self._void(lost, "its grant was lost on the way")
        connection.send(wire.Welcome(wire.VERSION, self.journal.ok))
        if hello.tables_version != self.tables.version:
            connection.send(wire.Reload(self.tables.version, str(self.folder / "tables.json")))
        self._do(self.bank.hello(holder.number, pouches, self._clock_s()))
        for pouch in pouches:
            if pouch.key_i in self.bank.stopped:
                connection.send(wire.Stop(pouch.key_i, self.bank.stopped[pouch.key_i]))

    def _void(self, leases: Iterable[Leased], why: str) -> None:
        gone = list(leases)
        for lease in gone:
            self.leases.pop(lease.lease_id, None)
            self.counts["voided"] += 1
        if gone:
            self.journal.put([row_in(recovery.void_row(lease, self.now_ns(), why)) for lease in gone])

    def _ask(self, holder: Holder, ask: wire.Ask) -> None:
        if not self.granting:
            self._early.append(lambda: self._ask(holder, ask) if holder.connection is not None else None)
        elif ask.ids and not self.journal.ok:
            self._tell(holder.number, wire.Refuse(ask.key_i, ask.ask_i, "storage", 1.0))
        else:
            self._do(self.bank.ask(holder.number, ask, self._clock_s()))
            if self.bank.waiting:
                self._hurry.set()  # a recall is answered in time, or given up

    def _returned(self, holder: Holder, back: wire.Return, now_s: float) -> None:
        if back.key_i in self.bank.keys:
            self._do(self.bank.returned(holder.number, back, now_s))
        mine = [self.leases[i] for i in back.leases if i in self.leases and self.leases[i].holder == holder.number]
        self._void(mine, "not used")

    def _rows(self, holder: Holder, message: wire.Handed) -> None:
        now_ns = self.now_ns()
        self.bank.turn_month(month_of(now_ns))
        try:
            done = book(message, self.leases, holder.number, now_ns)
        except (msgspec.MsgspecError, ValueError) as error:
            assert holder.connection is not None
            return holder.connection.drop(f"no rows: {error}")
        self.counts["repeated"] += done.n_repeated
        for (key_i, again), nano in done.booked.items():
            if key_i in self.bank.keys:
                self.bank.settled(holder.number, key_i, nano, again=again)
        for key_i, nano in message.overdrawn:
            if key_i in self.bank.keys and nano > 0:
                self.bank.overdrawn(holder.number, key_i, nano)

        def stored(ok: bool) -> None:
            if holder.connection is not None:
                holder.connection.send(wire.Stored(message.batch_i))
            self._seen(done.fresh)

        self.journal.put(done.store, stored, n_rows=done.n_rows)

    def _seen(self, rows: Batch) -> None:
        self._recent.extend(rows.bodies[-RECENT:])
        if self._on_rows is not None and rows.ids:
            self._on_rows(rows)

    def recent(self, n: int = RECENT) -> list[SettleRow]:
        """Return the last rows that were stored, the newest first."""
        return newest(self._recent, n)

    def _look_up(self, connection: Wire, message: wire.LookUp) -> None:
        record = self.keyring.look_up(message.bearer, self.now_ns())
        if record is None:
            return connection.send(wire.KeyIs(message.ask_i, None))
        self.clientele.take_up(record)
        connection.send(wire.KeyIs(message.ask_i, self.clientele.view(record)))

    def _receipt(self, connection: Wire, message: wire.ReceiptAsk) -> None:
        """Send a receipt, if the request was made with a key of the asking key's tenant."""
        record = self.clientele.records.get(message.key_i)
        tenant = "" if record is None else record.tenant_pseudonym

        answer = send_receipt(connection, self.ledger, message, tenant, self._bug)
        task = asyncio.get_running_loop().create_task(answer)
        self._tasks.append(task)
        task.add_done_callback(self._tasks.remove)

    # ---- saying ----

    def _tell(self, number: int, message: wire.Message) -> None:
        holder = self._by_number.get(number)
        if holder is not None and holder.connection is not None:
            holder.connection.send(message)

    def _do(self, changes: list[tuple[int, Change]]) -> None:
        for number, change in changes:
            if isinstance(change, wire.Grant) and change.n_ids:
                self._lease(number, change)
            else:
                self._tell(number, change)

    def _lease(self, number: int, grant: wire.Grant) -> None:
        """Make a lease durable, then grant it."""
        holder = self._by_number[number]
        record = self.clientele.records[grant.key_i]
        lease = Leased(
            grant.lease_id, grant.n_ids, holder.worker, record.tenant_pseudonym, record.pseudonym, grant.key_i, number
        )
        self.leases[grant.lease_id] = lease
        hellos = holder.hellos

        def done(ok: bool) -> None:
            here = self._by_number.get(number) is holder and holder.hellos == hellos
            if ok and here:
                self._tell(number, grant)
            elif not ok:
                if here:
                    back = wire.Return(
                        grant.key_i, grant.money_nano, grant.tokens, grant.requests, grant.permits, []
                    )  # fmt: skip
                    self._tell(number, wire.Refuse(grant.key_i, grant.ask_i, "storage", 1.0))
                    self._do(self.bank.returned(number, back, self._clock_s()))
                if grant.lease_id in self.leases:
                    self._void([lease], "could not be stored in time")

        row = LeaseRow(
            request_id=grant.lease_id, at_ns=self.now_ns(), n_ids=grant.n_ids, worker=holder.worker,
            tenant=record.tenant_pseudonym, key=record.pseudonym, money_nano=grant.money_nano,
        )  # fmt: skip
        self.journal.put([row_in(row)], done, urgent=True)

    def _keys_changed(self) -> None:
        """Take up what another process did to keys: revoked ones stop at once."""
        self.clientele.look_again()
        self._tell_all(wire.Forget())

    # ---- for the control listener ----

    def record(self, row: Row, done: Callable[[bool], None] | None = None) -> None:
        """Append a row of the operator's or the meters': reconcile, control."""
        self.journal.put([row_in(row)], done)

    def revoke(self, key_i: int, who: str = "") -> bool:
        """Revoke a key; its running streams stop at once."""
        known = self.keyring.accounts.key(key_i)
        done = self.keyring.revoke(key_i, self.now_ns())
        if done and known is not None:
            self._keys_changed()
            self.record(
                ControlRow(
                    at_ns=self.now_ns(),
                    action="key revoked",
                    who=who,
                    tenant=known.tenant_pseudonym,
                    key=known.pseudonym,
                )
            )
        return done

    def reload(self, tables: Tables, who: str = "") -> None:
        """Take up new tables, which lie in `run/tables.json` already, and tell the workers."""
        self.tables = tables
        self.clientele.reload(tables)
        self._tell_all(wire.Reload(tables.version, str(self.folder / "tables.json")))
        self.record(
            ReloadRow(
                at_ns=self.now_ns(),
                version=tables.version,
                fleet=tables.fleet,
                fleet_digest=tables.fleet_digest,
                who=who,
            )
        )

    def drain(self, deadline_s: float) -> None:
        """Let the workers take nothing new and end what runs."""
        self._tell_all(wire.Drain(deadline_s))

    def snapshot(self) -> dict[str, Any]:
        """Return what there is to see: money by tenant, workers, storage, and sums of the workers' counters."""
        return overview(self)
