"""The journal: order, groups, a disk that fills at any moment, rows that can never be stored."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Sequence
from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st

from baseload.errors import LedgerUnavailable
from baseload.ports import RowIn
from baseload.serve.journal import Journal


class Shelf:
    """A ledger in memory that fails where it is told to; only what the journal asks of one."""

    def __init__(self, failures: Sequence[int] = (), poison: bytes = b"") -> None:
        self.rows: list[bytes] = []
        self.calls = 0
        self.failures, self.poison = set(failures), poison
        self.gate = threading.Event()
        self.gate.set()
        self.groups: list[int] = []

    def append(self, rows: Sequence[RowIn]) -> int:
        """Store, or raise."""
        self.gate.wait(5.0)
        self.calls += 1
        if self.calls in self.failures:
            raise LedgerUnavailable("full")
        if self.poison and any(row.body == self.poison for row in rows):
            raise ValueError("no lease covers it")
        self.rows += [row.body for row in rows]
        self.groups.append(len(rows))
        return len(self.rows)

    def flush(self) -> None:
        """Nothing waits."""


class Desk:
    """A journal over a shelf, and what it said."""

    def __init__(self, shelf: Any) -> None:
        self.said: list[tuple[str, Any]] = []
        self.lock = threading.Lock()
        self.journal = Journal(
            shelf, self.call, storage=lambda ok: self.say("storage", ok), fatal=lambda text: self.say("fatal", text),
            bug=lambda text: self.say("bug", text),
        )  # fmt: skip
        self.journal.start()

    def call(self, what: Callable[[], None]) -> None:
        """Run at once what would run on the loop."""
        with self.lock:
            what()

    def say(self, word: str, what: Any) -> None:
        """Note it."""
        self.said.append((word, what))

    def put(self, i: int, *, urgent: bool = False) -> None:
        """Queue row i."""
        self.journal.put([RowIn("settle", i, b"%d" % i)], lambda ok: self.say(f"row {i}", ok), urgent=urgent)


@given(failures=st.sets(st.integers(1, 6)), n=st.integers(1, 20))
@settings(max_examples=15)
def test_whichever_writes_fail_each_row_is_stored_once_and_in_order(failures, n):
    """A disk that is full at the N-th write costs time, never a row, its place, or its acknowledgement."""
    shelf = Shelf(sorted(failures))
    desk = Desk(shelf)
    for i in range(n):
        desk.put(i)
    assert desk.journal.stop(10.0)
    assert shelf.rows == [b"%d" % i for i in range(n)]
    assert sorted(word for word, ok in desk.said if word.startswith("row") and ok) == sorted(
        f"row {i}" for i in range(n)
    )


def test_who_waits_for_a_lease_hears_no_at_once_and_the_row_stays_in_its_place():
    """An urgent row is refused at the first failure, told once, and stored before what came after it."""
    shelf = Shelf([1, 2])
    desk = Desk(shelf)
    desk.put(1, urgent=True)
    deadline_s = time.monotonic() + 1.0
    while ("row 1", False) not in desk.said:
        assert time.monotonic() < deadline_s
        time.sleep(0.005)
    desk.put(2)
    assert desk.journal.stop(5.0)
    assert shelf.rows == [b"1", b"2"]
    assert [x for x in desk.said if x[0] != "bug"] == [
        ("storage", False), ("row 1", False), ("row 2", True), ("storage", True)
    ]  # fmt: skip


def test_what_waits_while_the_disk_writes_goes_into_one_commit():
    """The slower the disk, the bigger the groups: a hundred rows are not a hundred commits."""
    shelf = Shelf()
    desk = Desk(shelf)
    shelf.gate.clear()
    for i in range(100):
        desk.put(i)
    shelf.gate.set()
    assert desk.journal.stop(5.0)
    assert len(shelf.rows) == 100 and len(shelf.groups) <= 3


def test_a_row_that_can_never_be_stored_does_not_hold_back_the_others():
    """It is told to the operator; the rest is stored in order."""
    shelf = Shelf(poison=b"3")
    desk = Desk(shelf)
    shelf.gate.clear()
    for i in range(6):
        desk.put(i)
    shelf.gate.set()
    assert desk.journal.stop(5.0)
    assert shelf.rows == [b"0", b"1", b"2", b"4", b"5"]
    assert ("bug", "no lease covers it") in desk.said


def test_a_failed_fsync_ends_the_process_rather_than_the_truth():
    """A ledger that may not be trusted any more is never written again by this process."""

    class Broken(Shelf):
        def append(self, rows: Sequence[RowIn]) -> int:
            """Fail as a disk does that lost a write."""
            self.calls += 1
            raise LedgerUnavailable("fsync failed", fatal=True)

    shelf = Broken()
    desk = Desk(shelf)
    desk.put(1)
    assert not desk.journal.stop(1.0)
    assert shelf.calls == 1 and ("fatal", "fsync failed") in desk.said
