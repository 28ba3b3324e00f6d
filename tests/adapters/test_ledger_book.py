"""What batches do to a ledger, against a model that fits in ten lines; and the same through a file, verified."""

from __future__ import annotations

import tempfile
from pathlib import Path

from hypothesis import given, settings
from hypothesis import strategies as st

from baseload.adapters.ledger_book import Book, Lease, Plan, Rotate, begin, next_origin
from baseload.adapters.ledger_sqlite import SqliteLedger
from baseload.adapters.signing import SigningKey
from baseload.ports import RowIn
from baseload.report import verify
from baseload.serve.rows import ControlRow, LeaseRow, SettleRow, VoidRow, row_in

AT_NS = 1_790_000_000 * 10**9
KEY = SigningKey.make()
IDS = st.integers(1, 40)
STEPS = st.lists(
    st.one_of(
        st.tuples(st.just("lease"), st.integers(0, 6)),
        st.tuples(st.just("again"), IDS),
        st.tuples(st.just("settle"), IDS),
        st.tuples(st.just("void"), IDS),
        st.tuples(st.just("control"), st.just(0)),
        st.tuples(st.just("commit"), st.just(0)),
        st.tuples(st.just("reopen"), st.just(0)),
        st.tuples(st.just("rotate"), st.just(0)),
    ),
    max_size=40,
)


class Model:
    """A ledger as a set of open ids: what is left when all that is hard is taken away."""

    def __init__(self) -> None:
        self.next_id = 1
        self.leases: dict[int, int] = {}
        self.open: set[int] = set()
        self.stored: list[tuple[str, int]] = []

    def take(self, word: str, number: int) -> RowIn | None:
        """Do one step; return the row to hand in, or None where an honest caller would not."""
        if word == "control":
            self.stored.append(("control", 0))
            return row_in(ControlRow(at_ns=AT_NS, action="x"))
        if word == "lease":
            first = self.next_id
            self.leases[first] = number
            self.open |= set(range(first, first + number))
            self.next_id += max(1, number)
            self.stored.append(("lease", first))
            return row_in(LeaseRow(request_id=first, at_ns=AT_NS, n_ids=number, tenant="t", key="k"))
        covered = {i for first, n in self.leases.items() for i in range(first, first + n)}
        if word == "settle" and number in covered:
            if number in self.open:
                self.open.discard(number)
                self.stored.append(("settle", number))
            return row_in(SettleRow(request_id=number, at_ns=AT_NS, tenant="t", key="k", price_nano=number))
        if word == "void" and self.leases.get(number):
            mine = self.open & set(range(number, number + self.leases[number]))
            if mine:
                self.open -= mine
                self.stored.append(("void", number))
            return row_in(VoidRow(request_id=number, at_ns=AT_NS))
        return None


def opened(folder: Path) -> SqliteLedger:
    """Open the ledger of a folder."""
    return SqliteLedger.open(folder / "ledger.db", KEY, clock_ns=lambda: AT_NS)


@settings(max_examples=60)
@given(STEPS)
def test_whatever_comes_in_whatever_order_the_ledger_is_the_model(steps: list[tuple[str, int]]):
    """Rows, open ids, sums and next id are the model's, through batches, restarts and rotations; and all files verify."""
    with tempfile.TemporaryDirectory() as name:
        folder, model, batch = Path(name), Model(), []
        ledger, archives = opened(folder), 0
        for word, number in [*steps, ("commit", 0)]:
            if word in ("commit", "reopen", "rotate"):
                ledger.append(batch)
                batch = []
            if word == "reopen":
                ledger.close()
                ledger = opened(folder)
            elif word == "rotate":
                archives += 1
                ledger.rotate(folder / f"archive-{archives}.db")
            elif word == "again":  # a lease that is stored already is handed in again
                if model.leases.get(number) and archives == 0:
                    batch.append(row_in(LeaseRow(request_id=number, at_ns=AT_NS, n_ids=model.leases[number])))
            elif word != "commit" and (row := model.take(word, number)):
                batch.append(row)

        logs = [SqliteLedger.read(folder / f"archive-{i + 1}.db") for i in range(archives)] + [ledger]
        kept = [(row.kind, row.request_id) for log in logs for row in log.rows() if row.kind != "rotate"]
        assert kept == model.stored
        shown = {i for lease in ledger.open_leases() for a, b in lease.open_ids for i in range(a, b + 1)}
        assert shown == model.open and ledger.next_request_id() == model.next_id
        settled = [number for word, number in model.stored if word == "settle"]
        assert sum(total.price_nano for total in ledger.totals()) == sum(settled)
        for log in logs:
            log.close()
        for i in range(archives + 1):
            path = folder / (f"archive-{i + 1}.db" if i < archives else "ledger.db")
            before = folder / f"archive-{i}.db" if i else None
            verdict = verify.verify_ledger(path, previous=before)
            assert verdict.whole, verdict.lines()


@given(st.integers(1, 200), st.data())
def test_open_ids_are_shown_as_ranges(n_ids: int, data: st.DataObject):
    """Whatever was closed, the ranges hold exactly the open ids, in order, and none touches the next."""
    closed = data.draw(st.sets(st.integers(0, n_ids - 1)))
    lease = Lease(1000, n_ids, sum(1 << i for i in closed), 0, "t", "k", 0, 0)
    ranges = lease.shown().open_ids

    assert [i for a, b in ranges for i in range(a, b + 1)] == [1000 + i for i in range(n_ids) if i not in closed]
    assert all(b + 1 < a for (_, b), (a, _) in zip(ranges, ranges[1:]))
    assert int.from_bytes(lease.columns()[2], "little") == lease.closed


def test_a_plan_that_is_not_stored_changes_nothing():
    """A book moves on by `apply` alone: a plan that failed leaves no trace in it."""
    book, first = begin(Rotate(at_ns=1, act="begin", origin="a/1"), (), {})
    first.checkpoint = KEY.sign_checkpoint("a/1", 1, first.frontier.root(), 1, 0)
    book.apply(first)
    before = (book.size, book.next_id, dict(book.leases), book.frontier.root())
    plan = book.plan([row_in(LeaseRow(request_id=1, at_ns=1, n_ids=3)), row_in(SettleRow(
        request_id=2, at_ns=1, tenant="t", key="k"))], _Nothing())  # fmt: skip

    assert isinstance(plan, Plan) and len(plan.rows) == 2
    assert (book.size, book.next_id, dict(book.leases), book.frontier.root()) == before
    book.check()
    assert isinstance(book, Book)


class _Nothing:
    """A database without rows."""

    def stored(self, kind: int, request_id: int) -> bool:
        return False

    def covered(self, request_id: int) -> bool:
        return False


def test_logs_are_numbered_on():
    """The log after a numbered one has the next number; one without a number becomes the first."""
    assert [next_origin(name) for name in ("a/1", "a/99", "a/b", "a/2-restored")] == [
        "a/2",
        "a/100",
        "a/b/2",
        "a/2-restored/2",
    ]
