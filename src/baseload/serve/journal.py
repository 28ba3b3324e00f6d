"""The journal: one thread that hands rows to the ledger, many a commit, in the order in which they came.

Everything that waits when a commit ends goes into the next one, so that the disk's pace sets the size of the groups. When
the ledger cannot store (disk full, connection lost) nothing is lost and nothing overtakes: the rows stay in front and are
tried again; who waited for a lease is told no at once, so that the answer to a client is quick.
"""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable, Sequence
from functools import partial

from baseload.errors import LedgerUnavailable
from baseload.ports import Ledger, RowIn, SettledIn
from baseload.serve.telling import tell_all

GATHER_S = 0.02  # settled rows wait so long for company (marks hold them meanwhile); a lease waits for nobody
BUSY_S = 0.18  # and so much longer where many come: a commit costs as much as fifty rows
BUSY_ROWS = 16  # that came within GATHER_S
GROUP_MOST = 4096  # rows a commit
RETRY_S = (0.05, 0.1, 0.25, 0.5)
FLUSH_S = 1.0

Done = Callable[
    [bool], None
]  # on the loop: True once durable; False, for rows that are `urgent`, where that may take long


class _Item:
    __slots__ = ("done", "n_rows", "rows", "told", "urgent")

    def __init__(self, rows: Sequence[RowIn | SettledIn], done: Done | None, urgent: bool, n_rows: int) -> None:
        self.rows, self.done, self.urgent, self.told, self.n_rows = rows, done, urgent, False, n_rows


class Journal:
    """Rows on their way to the ledger. `put` from the loop's thread; `call` runs a function there."""

    def __init__(
        self,
        ledger: Ledger,
        call: Callable[[Callable[[], None]], None],
        *,
        storage: Callable[[bool], None],  # told on the loop whenever the ledger can, or can no longer, be written
        fatal: Callable[[str], None],  # told on the loop when this process must end (a failed fsync)
        bug: Callable[[str], None],  # told on the loop of rows that the ledger refuses for ever
    ) -> None:
        self._ledger, self._call = ledger, call
        self._storage, self._fatal, self._bug = storage, fatal, bug
        self._queue: deque[_Item] = deque()
        self._wake = threading.Condition()
        self._n_urgent = 0  # in the queue
        self._stopping = False
        self.ok = True
        self.n_commits = 0
        self.n_rows = 0
        self._thread = threading.Thread(target=self._run, name="journal", daemon=True)

    def start(self) -> None:
        """Begin to write."""
        self._thread.start()

    def put(
        self,
        rows: Sequence[RowIn | SettledIn],
        done: Done | None = None,
        *,
        urgent: bool = False,
        n_rows: int | None = None,
    ) -> None:
        """Queue rows, `n_rows` in all (None: as many as there are); `done` is called on the loop once they are durable."""
        with self._wake:
            self._queue.append(_Item(rows, done, urgent, len(rows) if n_rows is None else n_rows))
            self._n_urgent += urgent
            if urgent or len(self._queue) == 1:  # else the thread is awake, or gathers
                self._wake.notify()

    @property
    def n_waiting(self) -> int:
        """Return how many rows wait."""
        with self._wake:
            return sum(item.n_rows for item in self._queue)

    def stop(self, timeout_s: float = 5.0) -> bool:
        """Write what waits and end; False where that did not work in time."""
        with self._wake:
            self._stopping = True
            self._wake.notify()
        self._thread.join(timeout_s)
        return not self._queue and not self._thread.is_alive()

    # ---- the thread ----

    def _run(self) -> None:
        failures = 0
        while True:
            batch = self._next(0.0 if not failures else RETRY_S[min(failures, len(RETRY_S)) - 1])
            if batch is None:
                return
            if not batch:
                self._flush()
                continue
            try:
                rows = [row for item in batch for row in item.rows]
                if rows:
                    self._ledger.append(rows)
            except ValueError:  # a row that no trying again will store: the others must not suffer for it
                self._one_by_one(batch)
            except Exception as error:  # LedgerUnavailable passes; of anything else an operator has to hear
                failures += 1
                self._hold(batch)
                if not isinstance(error, LedgerUnavailable) and failures == 1:
                    self._say(self._bug, error)
                if getattr(error, "fatal", False):
                    self._say(self._fatal, error)
                    return
                if self._stopping and failures > len(RETRY_S):
                    return
                continue
            else:
                self._told(batch)
            failures = 0
            self._can(True)

    def _next(self, pause_s: float) -> list[_Item] | None:
        """Return what goes into the next commit; [] when there was nothing for a while, None to end."""
        with self._wake:
            if pause_s:
                self._wake.wait_for(lambda: self._stopping, pause_s)
            elif not self._queue:
                self._wake.wait_for(lambda: bool(self._queue) or self._stopping, FLUSH_S)
            if not self._queue:
                return None if self._stopping else []
            if not pause_s:
                self._wake.wait_for(self._no_waiting, GATHER_S)
                if sum(item.n_rows for item in self._queue) >= BUSY_ROWS:
                    self._wake.wait_for(self._no_waiting, BUSY_S)
            batch: list[_Item] = []
            n_rows = 0
            while self._queue and n_rows < GROUP_MOST:
                batch.append(self._queue.popleft())
                n_rows += batch[-1].n_rows
            self._n_urgent -= sum(item.urgent for item in batch)
            return batch

    def _no_waiting(self) -> bool:
        return self._stopping or self._n_urgent > 0

    def _hold(self, batch: list[_Item]) -> None:
        """Put a batch back in front; tell those who would rather hear no."""
        with self._wake:
            self._queue.extendleft(reversed(batch))
            self._n_urgent += sum(item.urgent for item in batch)
            urgent = [item for item in self._queue if item.urgent and not item.told]
            for item in urgent:
                item.told = True
        self._can(False)
        self._tell(urgent, False)

    def _told(self, batch: list[_Item]) -> None:
        self.n_commits += 1
        self.n_rows += sum(item.n_rows for item in batch)
        self._tell([item for item in batch if not item.told], True)

    def _tell(self, items: list[_Item], ok: bool) -> None:
        calls = [item.done for item in items if item.done is not None]
        if calls:
            self._call(lambda: _all(calls, ok))

    def _one_by_one(self, batch: list[_Item]) -> None:
        for item in batch:
            try:
                self._ledger.append(item.rows)
            except ValueError as error:
                self._say(self._bug, error)
            except Exception:
                self._hold(batch[batch.index(item) :])
                return
            self._told([item])

    def _say(self, hear: Callable[[str], None], error: Exception) -> None:
        said = str(error) or repr(error)
        self._call(lambda: hear(said))

    def _can(self, ok: bool) -> None:
        if ok != self.ok:
            self.ok = ok
            self._call(lambda: self._storage(ok))

    def _flush(self) -> None:
        try:
            self._ledger.flush()
        except LedgerUnavailable:
            pass  # the next append says so


def _all(calls: list[Done], ok: bool) -> None:
    tell_all([partial(call, ok) for call in calls])
