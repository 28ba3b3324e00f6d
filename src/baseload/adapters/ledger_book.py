"""What a batch of rows changes in a ledger: the right edge of its tree, its open leases, its sums.

`Book` is what is known of the log without reading its rows. A batch becomes a `Plan` that an adapter stores in one
transaction, or not at all; only then the book moves on. Pure: storing, signing and proving are `ledger_core.py`'s.

A lease row covers request ids; settle closes one of them, void the rest of its lease. The book knows which ids are open,
so repeated rows are seen without asking the database; its unique index is the second fence.
"""

from __future__ import annotations

from bisect import bisect_right, insort
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from typing import Any

import msgspec

from baseload.adapters import leaves, merkle
from baseload.adapters.signing import SigningKey
from baseload.ports import KINDS, LEDGER_FORMAT, Checkpoint, OpenLease, RowIn, SettledIn, Total

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


class Control(msgspec.Struct, kw_only=True, tag_field="kind", tag="control"):
    """What the ledger says of its own administration; the same bytes as `serve.rows.ControlRow` (held by a test)."""

    at_ns: int
    action: str
    who: str = ""
    tenant: str = ""
    key: str = ""
    note: str = ""


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
    successions: list[str] = []
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

    def columns(self) -> tuple[int, int, bytes, int, str, str, int, int]:
        """Return it as a row of the table of leases; the mask has the lowest id in the lowest bit of its first byte."""
        closed = self.closed.to_bytes((self.n_ids + 7) // 8, "little")
        return (self.lease_id, self.n_ids, closed, self.worker, self.tenant, self.key, self.money_nano, self.at_ns)

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
    masks: dict[int, int] = field(default_factory=dict)  # lease -> its closed ids, while the plan is being made
    totals: dict[Account, list[int]] = field(default_factory=dict)
    new_firsts: list[int] = field(default_factory=list)
    ignored: int = 0
    checkpoint: Checkpoint | None = None
    new_key: SigningKey | None = None
    succession: str = ""  # the note that makes new_key the successor
    archive: str = ""  # a seal: where the rows are going

    def add(self, kind: int, request_id: int, body: bytes) -> None:
        """Put a row at the end of the log."""
        self.add_all(kind, [request_id], [body])

    def add_all(self, kind: int, ids: list[int], bodies: list[bytes]) -> None:
        """Put rows at the end of the log."""
        edge = self.frontier
        rows, nodes, edge.peaks = leaves.grow(edge.size, edge.peaks, kind, ids, bodies, BLOCK_LEVEL)
        edge.size += len(rows)
        self.rows += rows
        self.nodes += nodes

    def add_up(self, account: Account, sums: Sequence[int]) -> None:
        """Add to the sums of an account."""
        before = self.totals.get(account)
        self.totals[account] = list(sums) if before is None else [a + b for a, b in zip(before, sums, strict=True)]


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

    def __init__(
        self,
        origin: str,
        frontier: merkle.Frontier,
        *,
        time_ns: int,
        next_id: int,
        leases: Sequence[Lease],
        sealed_for: str = "",
    ):
        self.origin = origin
        self.frontier = frontier
        self.time_ns = time_ns
        self.next_id = next_id
        self.sealed_for = sealed_for  # where the rows are going, while a rotation is under way
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

    def plan(self, rows: Sequence[RowIn | SettledIn], ask: Lookups) -> Plan:
        """Return what storing these rows changes; raises ValueError for rows that no honest caller hands in."""
        plan = Plan(self.frontier.copy(), self.next_id)
        for row in rows:
            if isinstance(row, SettledIn):
                self._settle_all(plan, row, ask)
                continue
            kind, request_id, body, said = row
            if said is not None and kind == "settle" and 0 < request_id == said.request_id <= MAX_ID:
                self._settle(plan, said, body, ask)
                continue
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
        for lease_id, closed in plan.masks.items():
            lease = plan.leases.get(lease_id) or self.leases[lease_id]
            plan.leases[lease_id] = replace(lease, closed=closed)
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

    def _settle_all(self, plan: Plan, rows: SettledIn, ask: Lookups) -> None:
        """Settle rows at once where each closes an open id of a lease, and one by one where that is not so."""
        masks: dict[int, int] = {}
        for lease_id, mask in rows.closes.items():
            lease = plan.leases.get(lease_id) or self.leases.get(lease_id)
            closed = 0 if lease is None else plan.masks.get(lease_id, lease.closed)
            if lease is None or mask & closed or mask > lease.full:
                break
            masks[lease_id] = closed | mask
        if len(masks) < len(rows.closes) or sum(mask.bit_count() for mask in rows.closes.values()) != len(rows.ids):
            for body in rows.bodies:
                self._settle(plan, _HEAD.decode(body), body, ask)
            return
        plan.masks.update(masks)
        plan.add_all(SETTLE, rows.ids, rows.bodies)
        for at_ns, tenant, key, sums in rows.sums:
            plan.add_up((month_of(at_ns), tenant, key), sums)

    def _settle(self, plan: Plan, head: Any, body: bytes, ask: Lookups) -> None:
        lease = self._open_lease(plan, head.request_id)
        if lease is None:
            if head.request_id >= plan.next_id or not ask.covered(head.request_id):
                raise ValueError(f"settle of request id {head.request_id}, which no lease covers")
            plan.ignored += 1
            return
        bit = 1 << (head.request_id - lease.lease_id)
        closed = plan.masks.get(lease.lease_id, lease.closed)
        if closed & bit:
            plan.ignored += 1
            return
        plan.masks[lease.lease_id] = closed | bit
        plan.add(SETTLE, head.request_id, body)
        sums = (
            1, head.input_tokens, head.cached_tokens, head.output_tokens, head.price_nano, head.cost_nano, head.energy_mj,
            head.carbon_ug,
        )  # fmt: skip
        plan.add_up((month_of(head.at_ns), head.tenant, head.key), sums)

    def _lease(self, plan: Plan, head: Head, body: bytes, ask: Lookups) -> None:
        first, n_ids = head.request_id, head.n_ids
        if first < plan.next_id:
            if first in plan.new_firsts or first in self.leases or ask.stored(LEASE, first):
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
        if plan.masks.get(lease.lease_id, lease.closed) == lease.full:
            plan.ignored += 1
            return
        plan.masks[lease.lease_id] = lease.full
        plan.add(VOID, head.request_id, body)

    def apply(self, plan: Plan) -> None:
        """Move on, after the plan was stored."""
        assert plan.checkpoint is not None
        self.frontier = plan.frontier
        self.time_ns = plan.checkpoint.time_ns
        self.next_id = plan.next_id
        self.sealed_for = plan.archive
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
    book = Book(row.origin, merkle.Frontier(), time_ns=row.at_ns, next_id=row.next_request_id, leases=leases)
    plan = Plan(
        book.frontier.copy(), book.next_id, leases={lease.lease_id: lease for lease in leases}, totals=dict(sums)
    )
    plan.add(ROTATE, 0, msgspec.json.encode(row))
    return book, plan


def next_origin(origin: str) -> str:
    """Return the name of the log after this one.

    >>> next_origin("baseload/nordic/9"), next_origin("baseload/nordic")
    ('baseload/nordic/10', 'baseload/nordic/2')
    """
    stem, _, number = origin.rpartition("/")
    return f"{stem}/{int(number) + 1}" if number.isdecimal() else f"{origin}/2"


def begin_after(
    book: Book,
    totals: Sequence[Total],
    successions: Sequence[str],
    *,
    origin: str,
    at_ns: int,
    next_id: int = 0,
    why: str = "",
) -> tuple[Book, Plan]:
    """Return the book and plan of a file that follows a log: its first row links back, and carries what is open."""
    leases = [book.leases[lease_id] for lease_id in book.firsts]
    sums = {(t.month, t.tenant, t.key): [int(getattr(t, name)) for name in SUMS] for t in totals}
    row = Rotate(
        at_ns=at_ns, act="begin", origin=origin, previous=book.origin, previous_size=book.size,
        previous_root=book.frontier.root().hex(), next_request_id=max(book.next_id, next_id),
        leases=[carried(lease) for lease in leases],
        totals=[[*account, *values] for account, values in sums.items()], successions=list(successions), why=why,
    )  # fmt: skip
    return begin(row, leases, sums)


def carried(lease: Lease) -> list[int | str]:
    """Return a lease as the first row of the next file carries it."""
    return [
        lease.lease_id, lease.n_ids, f"{lease.closed:x}", lease.worker,
        lease.tenant, lease.key, lease.money_nano, lease.at_ns,
    ]  # fmt: skip
