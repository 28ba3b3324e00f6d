"""What every ledger does alike: plan a batch, sign it, store it once, prove it. Storage is left to the adapters.

What a batch changes is `ledger_book.py`'s to say. After any failure the book is thrown away and read anew, because what a
failed commit left behind is for the database to say.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import msgspec

from baseload.adapters import merkle
from baseload.adapters.ledger_book import (
    BLOCK_LEVEL,
    ROTATE,
    Book,
    Control,
    Lookups,
    Place,
    Plan,
    Rotate,
    next_origin,
)
from baseload.adapters.signing import SigningKey, Witness, prepare_successor, put_successor
from baseload.errors import LedgerError, LedgerUnavailable
from baseload.ports import KINDS, Checkpoint, OpenLease, RowIn, RowOut, SettledIn, Total


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
        self._key_stored = ""  # id of the key that the ledger says it is at
        self._restoring = False
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

    def _check_key(self, key_id: str, where: str) -> None:
        """See that we sign with the key that the ledger is at; finish a change of key that a crash cut short."""
        if self._signer is not None and self._signer.key_id != key_id and not self._restoring:
            successor = self._signer.successor
            if successor is None or successor.key_id != key_id:
                raise LedgerError(
                    f"{where}: is signed by key {key_id}, and this key is {self._signer.key_id}; bring the right one back"
                )
            self._signer = successor
        self._key_stored = key_id

    def _now_ns(self, book: Book) -> int:
        return max(book.time_ns, self._clock_ns())

    def append(self, rows: Sequence[RowIn | SettledIn]) -> int:
        """Store rows with a signed checkpoint in one transaction; return the new number of rows."""
        if self._signer is None:
            raise LedgerUnavailable("this ledger was opened for reading")
        with self._lock:
            for _ in range(5):
                book = self._known()
                if book.sealed_for:
                    raise LedgerUnavailable("this ledger is sealed: its rotation has to be finished first")
                plan = book.plan(rows, self)
                if not plan.rows or self._commit(plan, book):
                    self.ignored += plan.ignored
                    return book.size
            raise LedgerUnavailable("another process writes to this ledger all the time")

    def _commit(self, plan: Plan, book: Book) -> bool:
        """Sign and store a plan; False: the book was stale, plan again."""
        self._sign(plan, book)
        try:
            self._store(plan, book)
        except Stale:
            self._book = None
            return False
        except BaseException:
            self._book = None
            raise
        book.apply(plan)
        self._see(plan)
        return True

    def change_key(self, new: SigningKey, who: str = "") -> None:
        """Go on with a new signing key: a row with a note signed by both keys, under the old key's last checkpoint."""
        with self._lock:
            if self._signer is None:
                raise LedgerUnavailable("this ledger was opened for reading")
            for _ in range(5):
                book = self._known()
                now_ns = self._now_ns(book)
                note = self._signer.succeed(new, now_ns)
                plan = Plan(book.frontier.copy(), book.next_id)
                row = Control(at_ns=now_ns, action="signing-key", who=who, key=new.key_id, note=note)
                plan.add(KINDS["control"], 0, msgspec.json.encode(row))
                plan.new_key, plan.succession = new, note
                if self._commit(plan, book):
                    self._signer = new
                    return
            raise LedgerUnavailable("another process writes to this ledger all the time")

    def _sign(self, plan: Plan, book: Book) -> None:
        assert self._signer is not None
        plan.checkpoint = self._signer.sign_checkpoint(
            book.origin, plan.frontier.size, plan.frontier.root(), self._now_ns(book), book.size
        )

    def _seal(self, archive: str, origin: str) -> Book:
        """Make the log's last row; after it nothing is appended until the rows have gone to `archive`."""
        for _ in range(5):
            book = self._known()
            if book.sealed_for:
                return book
            plan = Plan(book.frontier.copy(), book.next_id, archive=archive)
            row = Rotate(at_ns=self._now_ns(book), act="seal", origin=book.origin, next=origin or next_origin(book.origin),
                         next_request_id=book.next_id)  # fmt: skip
            plan.add(ROTATE, 0, msgspec.json.encode(row))
            if self._commit(plan, book):
                return book
        raise LedgerUnavailable("another process writes to this ledger all the time")

    def _see(self, plan: Plan) -> None:
        """Tell the witness; at once where a log or a key ends here."""
        if self._witness is not None:
            assert plan.checkpoint is not None
            try:
                self._witness.see(plan.checkpoint.note)
                if plan.archive or plan.new_key is not None or plan.checkpoint.size == 1:
                    self._witness.flush(now=True)
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


def rotate_signing_key(ledger: MerkleLedger, path: Path, who: str = "") -> SigningKey:
    """Give the ledger whose signing key is in `path` a new one: prepared, taken by the ledger, put in its place, published.

    A crash at any point leaves a ledger that opens: `SigningKey.load` finds both keys, and opening takes the one it is at.
    """
    new = prepare_successor(path)
    ledger.change_key(new, who)
    put_successor(path)
    new.publish(path)
    return new
