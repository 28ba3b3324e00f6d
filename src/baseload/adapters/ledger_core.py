"""What every ledger does alike: decide what a batch of rows changes, sign it, prove it. Storage is left to the adapters.

`Book` is what is known of the log without reading its rows: the tree's right edge, the open leases, the last time. A batch
becomes a `Plan` (rows, tree nodes, leases, sums, checkpoint) that an adapter stores in one transaction, or not at all; only
then the book moves on. After any failure the book is thrown away and read anew, because what a failed commit left behind
is for the database to say.

A lease row covers request ids; settle closes one of them, void the rest of its lease. The book knows which ids are open,
so repeated rows are seen without asking the database; its unique index is the second fence.
"""

from __future__ import annotations

import threading
import time
from bisect import bisect_right, insort
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from hashlib import sha256
from pathlib import Path

import msgspec

from baseload.adapters import merkle
from baseload.adapters.signing import SigningKey, Witness
from baseload.errors import LedgerError, LedgerUnavailable
from baseload.ports import KINDS, LEDGER_FORMAT, Checkpoint, OpenLease, RowIn, RowOut, Total

BLOCK_LEVEL = 6  # subtrees of 64 rows and more are stored; smaller ones are folded from the rows' own hashes
BLOCK = 1 << BLOCK_LEVEL
LEASE, SETTLE, VOID, ROTATE = KINDS["lease"], KINDS["settle"], KINDS["void"], KINDS["rotate"]
SUMS = (
    "requests", "input_tokens", "cached_tokens", "output_tokens",
    "price_nano", "cost_nano", "energy_mj", "carbon_ug",
)  # fmt: skip
DAY_NS = 86_400 * 10**9
MAX_ID = 2**63 - 1

Place = tuple[int, int]
Account = tuple[str, str, str]  # month, tenant, key


class Head(msgspec.Struct, gc=False):
    """What the ledger itself reads of a body; all other fields pass unseen."""

    kind: str
    request_id: int = 0
    at_ns: int = 0
    n_ids: int = 0
    worker: int = -1
    tenant: str = ""
    key: str = ""
    money_nano: int = 0
    input_tokens: int = 0
    cached_tokens: int = 0
    output_tokens: int = 0
    price_nano: int = 0
    cost_nano: int = 0
    energy_mj: int = 0
    carbon_ug: int = 0


_HEAD = msgspec.json.Decoder(Head)


class Rotate(msgspec.Struct, kw_only=True, tag_field="kind", tag="rotate"):
    """First and last row of a file; the same bytes as `serve.rows.RotateRow` (held by a test)."""

    at_ns: int
    act: str
    format: str = LEDGER_FORMAT
    origin: str = ""
    previous: str = ""
    previous_size: int = 0
    previous_root: str = ""
    next: str = ""
    next_request_id: int = 1
    leases: list[list[int | str]] = []
    totals: list[list[int | str]] = []
    why: str = ""


@dataclass(frozen=True, slots=True)
class Lease:
    """An open lease, and which of its ids are closed: bit i stands for id lease_id + i."""

    lease_id: int
    n_ids: int
    closed: int
    worker: int
    tenant: str
    key: str
    money_nano: int
    at_ns: int

    @property
    def full(self) -> int:
        """Return the mask of a lease that is closed."""
        return (1 << self.n_ids) - 1

    def closed_bytes(self) -> bytes:
        """Return the mask as bytes, lowest id in the lowest bit of the first byte."""
        return self.closed.to_bytes((self.n_ids + 7) // 8, "little")

    def shown(self) -> OpenLease:
        """Return the lease with its open ids as ranges."""
        ranges: list[tuple[int, int]] = []
        still = self.full & ~self.closed
        while still:
            first = (still & -still).bit_length() - 1
            run = still >> first
            n = (~run & (run + 1)).bit_length() - 1
            ranges.append((self.lease_id + first, self.lease_id + first + n - 1))
            still &= ~(((1 << n) - 1) << first)
        return OpenLease(
            lease_id=self.lease_id, n_ids=self.n_ids, open_ids=ranges, worker=self.worker, tenant=self.tenant,
            key=self.key, money_nano=self.money_nano, at_ns=self.at_ns,
        )  # fmt: skip


StoredRow = tuple[int, int, int, bytes, bytes]  # seq, kind, request_id, leaf, body


@dataclass(slots=True)
class Plan:
    """What one transaction stores."""

    frontier: merkle.Frontier
    next_id: int
    rows: list[StoredRow] = field(default_factory=list)
    nodes: list[tuple[int, int, bytes]] = field(default_factory=list)
    leases: dict[int, Lease] = field(default_factory=dict)  # a full one is closed: remove it
    totals: dict[Account, list[int]] = field(default_factory=dict)
    new_firsts: list[int] = field(default_factory=list)
    ignored: int = 0
    checkpoint: Checkpoint | None = None

    def add(self, kind: int, request_id: int, body: bytes) -> None:
        """Put a row at the end of the log."""
        leaf = sha256(b"\x00" + body).digest()
        self.rows.append((self.frontier.size, kind, request_id, leaf, body))
        for level, i, node in self.frontier.append(leaf):
            if level >= BLOCK_LEVEL:
                self.nodes.append((level, i, node))


_MONTHS: dict[int, str] = {}


def month_of(at_ns: int) -> str:
    """Return the UTC month of a time.

    >>> month_of(1_790_000_000 * 10**9)
    '2026-09'
    """
    day = at_ns // DAY_NS
    month = _MONTHS.get(day)
    if month is None:
        if len(_MONTHS) > 1000:
            _MONTHS.clear()
        month = _MONTHS[day] = datetime.fromtimestamp(day * 86_400, UTC).strftime("%Y-%m")
    return month


class Lookups:
    """What a plan has to ask the database for, in rare cases only."""

    def stored(self, kind: int, request_id: int) -> bool:
        """Say whether the row is in this file."""
        raise NotImplementedError

    def covered(self, request_id: int) -> bool:
        """Say whether a lease of this file, or of the files before it, covers the id."""
        raise NotImplementedError


class Book:
    """What is known of a log without reading its rows."""

    def __init__(self, origin: str, frontier: merkle.Frontier, *, time_ns: int, next_id: int, leases: Sequence[Lease]):
        self.origin = origin
        self.frontier = frontier
        self.time_ns = time_ns
        self.next_id = next_id
        self.leases = {lease.lease_id: lease for lease in leases}
        self.firsts = sorted(self.leases)
        self.check()

    @property
    def size(self) -> int:
        """Return the number of rows."""
        return self.frontier.size

    def check(self) -> None:
        """Assert what must hold."""
        end = 0
        for lease_id in self.firsts:
            lease = self.leases[lease_id]
            assert lease_id >= end and lease.closed != lease.full, lease
            end = lease_id + lease.n_ids
        assert end <= self.next_id

    def plan(self, rows: Sequence[RowIn], ask: Lookups) -> Plan:
        """Return what storing these rows changes; raises ValueError for rows that no honest caller hands in."""
        plan = Plan(self.frontier.copy(), self.next_id)
        for kind, request_id, body in rows:
            head = _HEAD.decode(body)
            if head.kind != kind or head.request_id != request_id or not 0 <= request_id <= MAX_ID:
                raise ValueError(f"a row's body says {head.kind} {head.request_id}, its caller {kind} {request_id}")
            if kind == "settle":
                self._settle(plan, head, body, ask)
            elif kind == "lease":
                self._lease(plan, head, body, ask)
            elif kind == "void":
                self._void(plan, head, body, ask)
            elif kind in KINDS and kind != "rotate" and request_id == 0:
                plan.add(KINDS[kind], 0, body)
            else:
                raise ValueError(f"a {kind} row with request id {request_id} cannot be appended")
        return plan

    def _open_lease(self, plan: Plan, request_id: int) -> Lease | None:
        """Return the open lease that covers an id."""
        firsts = plan.new_firsts if plan.new_firsts and request_id >= plan.new_firsts[0] else self.firsts
        place = bisect_right(firsts, request_id) - 1
        if place < 0:
            return None
        lease_id = firsts[place]
        lease = plan.leases.get(lease_id) or self.leases[lease_id]
        return lease if request_id < lease_id + lease.n_ids else None

    def _settle(self, plan: Plan, head: Head, body: bytes, ask: Lookups) -> None:
        lease = self._open_lease(plan, head.request_id)
        if lease is None:
            if head.request_id >= plan.next_id or not ask.covered(head.request_id):
                raise ValueError(f"settle of request id {head.request_id}, which no lease covers")
            plan.ignored += 1
            return
        bit = 1 << (head.request_id - lease.lease_id)
        if lease.closed & bit:
            plan.ignored += 1
            return
        plan.leases[lease.lease_id] = replace(lease, closed=lease.closed | bit)
        plan.add(SETTLE, head.request_id, body)
        account = (month_of(head.at_ns), head.tenant, head.key)
        sums = plan.totals.get(account)
        if sums is None:
            sums = plan.totals[account] = [0] * len(SUMS)
        sums[0] += 1
        sums[1] += head.input_tokens
        sums[2] += head.cached_tokens
        sums[3] += head.output_tokens
        sums[4] += head.price_nano
        sums[5] += head.cost_nano
        sums[6] += head.energy_mj
        sums[7] += head.carbon_ug

    def _lease(self, plan: Plan, head: Head, body: bytes, ask: Lookups) -> None:
        first, n_ids = head.request_id, head.n_ids
        if first < plan.next_id:
            if first in plan.new_firsts or ask.stored(LEASE, first):
                plan.ignored += 1
                return
            raise ValueError(f"lease of request id {first}, below the next one, {plan.next_id}")
        if n_ids < 0 or first + n_ids > MAX_ID or n_ids > 1_000_000:
            raise ValueError(f"lease of {n_ids} ids at {first}")
        plan.add(LEASE, first, body)
        plan.next_id = first + max(n_ids, 1)
        if n_ids:
            plan.leases[first] = Lease(
                first, n_ids, 0, head.worker, head.tenant, head.key, head.money_nano, head.at_ns
            )  # fmt: skip
            plan.new_firsts.append(first)

    def _void(self, plan: Plan, head: Head, body: bytes, ask: Lookups) -> None:
        lease = self._open_lease(plan, head.request_id)
        if lease is None or lease.lease_id != head.request_id:
            if lease is not None or head.request_id >= plan.next_id or not ask.covered(head.request_id):
                raise ValueError(f"void of {head.request_id}, which is no lease")
            plan.ignored += 1
            return
        if lease.closed == lease.full:
            plan.ignored += 1
            return
        plan.leases[lease.lease_id] = replace(lease, closed=lease.full)
        plan.add(VOID, head.request_id, body)

    def apply(self, plan: Plan) -> None:
        """Move on, after the plan was stored."""
        assert plan.checkpoint is not None
        self.frontier = plan.frontier
        self.time_ns = plan.checkpoint.time_ns
        self.next_id = plan.next_id
        for lease in plan.leases.values():
            known = lease.lease_id in self.leases
            if lease.closed == lease.full:
                if known:
                    del self.leases[lease.lease_id]
                    self.firsts.remove(lease.lease_id)
                continue
            self.leases[lease.lease_id] = lease
            if not known:
                insort(self.firsts, lease.lease_id)


def begin(row: Rotate, leases: Sequence[Lease], sums: dict[Account, list[int]]) -> tuple[Book, Plan]:
    """Return an empty book, and the plan of a file's first row."""
    book = Book(row.origin, merkle.Frontier(), time_ns=0, next_id=row.next_request_id, leases=leases)
    plan = Plan(
        book.frontier.copy(), book.next_id, leases={lease.lease_id: lease for lease in leases}, totals=dict(sums)
    )
    plan.add(ROTATE, 0, msgspec.json.encode(row))
    return book, plan


def carried(lease: Lease) -> list[int | str]:
    """Return a lease as the first row of the next file carries it."""
    return [
        lease.lease_id, lease.n_ids, f"{lease.closed:x}", lease.worker,
        lease.tenant, lease.key, lease.money_nano, lease.at_ns,
    ]  # fmt: skip


class Stale(Exception):
    """The log has moved on since the book was read: plan again."""


class MerkleLedger(Lookups):
    """The part of a ledger that all stores share; adapters fill in the methods that begin with `_read` and `_store`."""

    def __init__(self, signer: SigningKey | None, witness: Witness | None, clock_ns: Callable[[], int] = time.time_ns):
        self._signer = signer
        self._witness = witness
        self._clock_ns = clock_ns
        self._lock = threading.RLock()
        self._book: Book | None = None
        self._dead = ""
        self.ignored = 0
        """Rows that were handed in again and not stored twice."""
        self.witness_error = ""
        """Why the witness file could not be written; '' where it could. Rows are stored all the same."""

    # ---- what an adapter fills in ----

    def _read_book(self) -> Book:
        raise NotImplementedError

    def _store(self, plan: Plan, book: Book) -> None:
        raise NotImplementedError

    def _read_nodes(self, places: Sequence[Place]) -> dict[Place, bytes]:
        raise NotImplementedError

    def _read_leaves(self, blocks: Sequence[int]) -> dict[int, bytes]:
        raise NotImplementedError

    def checkpoint(self) -> Checkpoint:
        """Return the latest signed checkpoint."""
        raise NotImplementedError

    def find(self, request_id: int) -> RowOut | None:
        """Return the settle row of a request."""
        raise NotImplementedError

    def rows(self, since_seq: int = 0, until_seq: int | None = None) -> Iterator[RowOut]:
        """Return the rows since_seq <= seq < until_seq in order."""
        raise NotImplementedError

    def totals(self, month: str | None = None) -> list[Total]:
        """Return the sums of a month, or of each month, by month, tenant, key."""
        raise NotImplementedError

    # ---- writing ----

    def _known(self) -> Book:
        """Return the book, read anew where it was thrown away."""
        if self._dead:
            raise LedgerUnavailable(self._dead, fatal=True)
        if self._book is None:
            self._book = self._read_book()
        return self._book

    def _now_ns(self, book: Book) -> int:
        return max(book.time_ns, self._clock_ns())

    def append(self, rows: Sequence[RowIn]) -> int:
        """Store rows with a signed checkpoint in one transaction; return the new number of rows."""
        if self._signer is None:
            raise LedgerUnavailable("this ledger was opened for reading")
        with self._lock:
            for _ in range(5):
                book = self._known()
                plan = book.plan(rows, self)
                if not plan.rows:
                    self.ignored += plan.ignored
                    return book.size
                self._sign(plan, book)
                try:
                    self._store(plan, book)
                except Stale:
                    self._book = None
                    continue
                except BaseException:
                    self._book = None
                    raise
                book.apply(plan)
                self.ignored += plan.ignored
                self._see(plan)
                return book.size
            raise LedgerUnavailable("another process writes to this ledger all the time")

    def _sign(self, plan: Plan, book: Book) -> None:
        assert self._signer is not None
        plan.checkpoint = self._signer.sign_checkpoint(
            book.origin, plan.frontier.size, plan.frontier.root(), self._now_ns(book)
        )

    def _see(self, plan: Plan) -> None:
        if self._witness is not None:
            assert plan.checkpoint is not None
            try:
                self._witness.see(plan.checkpoint.note)
                self.witness_error = ""
            except OSError as error:
                self.witness_error = f"witness file: {error.strerror}"

    def flush(self) -> None:
        """Hand what waits to the witness file."""
        with self._lock:
            if self._witness is not None:
                try:
                    self._witness.flush()
                    self.witness_error = ""
                except OSError as error:
                    self.witness_error = f"witness file: {error.strerror}"

    # ---- reading ----

    @property
    def origin(self) -> str:
        """Return the name of this log."""
        with self._lock:
            return self._known().origin

    def size(self) -> int:
        """Return the number of rows."""
        with self._lock:
            return self._known().size

    def open_leases(self) -> list[OpenLease]:
        """Return the leases that have open ids, by lease id."""
        with self._lock:
            book = self._known()
            return [book.leases[lease_id].shown() for lease_id in book.firsts]

    def next_request_id(self) -> int:
        """Return the lowest id that was never leased."""
        with self._lock:
            return self._known().next_id

    def proof(self, seq: int, size: int) -> list[bytes]:
        """Return the inclusion proof of row `seq` in the tree of the first `size` rows (O(log size) reads)."""
        return self._prove(lambda node: merkle.inclusion(seq, size, node))

    def consistency(self, old_size: int, new_size: int) -> list[bytes]:
        """Return the proof that the tree of `old_size` rows is a prefix of that of `new_size`."""
        return self._prove(lambda node: merkle.consistency(old_size, new_size, node))

    def _prove(self, make: Callable[[merkle.Node], list[bytes]]) -> list[bytes]:
        """Make a proof: first learn which subtrees it wants, then read them all at once."""
        wanted: set[Place] = set()

        def note(level: int, i: int) -> bytes:
            wanted.add((level, i))
            return b""

        make(note)
        return make(self._nodes(wanted))

    def _nodes(self, wanted: set[Place]) -> merkle.Node:
        """Return a function that knows the hashes of these complete subtrees."""
        high = [place for place in wanted if place[0] >= BLOCK_LEVEL]
        blocks = sorted({i >> (BLOCK_LEVEL - level) for level, i in wanted if level < BLOCK_LEVEL})
        stored = self._read_nodes(high) if high else {}
        leaves = self._read_leaves(blocks) if blocks else {}

        def node(level: int, i: int) -> bytes:
            try:
                if level >= BLOCK_LEVEL:
                    return stored[level, i]
                hashes = [leaves[seq] for seq in range(i << level, (i + 1) << level)]
            except KeyError:
                raise LedgerError(f"the ledger has lost hashes of its tree (level {level}, {i}); verify it") from None
            while len(hashes) > 1:
                hashes = [merkle.node_hash(hashes[k], hashes[k + 1]) for k in range(0, len(hashes), 2)]
            return hashes[0]

        return node

    def receipt(self, request_id: int) -> bytes | None:
        """Return the receipt of a settled request as JSON, or None: it can be verified without this ledger."""
        row = self.find(request_id)
        if row is None:
            return None
        checkpoint = self.checkpoint()
        return msgspec.json.encode(
            {
                "baseload_receipt": 1,
                "request_id": f"req-{request_id:016x}",
                "seq": row.seq,
                "body": row.body.decode(),
                "path": [step.hex() for step in self.proof(row.seq, checkpoint.size)],
                "checkpoint": checkpoint.note,
                "key_id": checkpoint.key_id,
                "public_key": self._public_line(checkpoint.key_id),
            }
        )

    def _public_line(self, key_id: str) -> str:
        raise NotImplementedError

    def load_frontier(self, size: int, latest: Checkpoint, where: str) -> merkle.Frontier:
        """Return the tree's right edge as stored; raises LedgerError where the last checkpoint says otherwise."""
        places = set(merkle.peak_places(size))
        node = self._nodes(places)
        frontier = merkle.Frontier(size, [node(level, i) for level, i in merkle.peak_places(size)])
        if latest.size != size or latest.root != frontier.root():
            raise LedgerError(
                f"{where}: its {size} rows do not match its last checkpoint ({latest.size} rows); nothing is appended to it. "
                f"Run `baseload verify {where}`, and restore a backup"
            )
        return frontier

    def _public_key(self) -> str:
        assert self._signer is not None
        return self._signer.public_line


def check_archive(path: Path) -> None:
    """Refuse to overwrite."""
    if path.exists():
        raise LedgerError(f"{path}: exists already; choose another name")
