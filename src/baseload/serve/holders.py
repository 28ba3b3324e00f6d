"""Workers as the owner knows them: their marks files, and what keeps these on the disk.

Idle workers cost next to nothing: a folder that did not change is not listed, a file that nobody wrote to is not synced. Both
are told by times of the file system, whose clock may stand still for a few milliseconds; so what changed just now is looked at
once more.
"""

from __future__ import annotations

import contextlib
import os
import select
import threading
import time
from collections.abc import Callable, Iterable
from pathlib import Path

from baseload.serve import marks
from baseload.serve.wire import Wire

SYNC_S = 0.1  # marks are on the disk at most so late
SYNC_ANYWAY_S = 1.0  # and so often whatever the file's time says
CLOCK_NS = 50_000_000  # a file system's clock may stand still for so long between two changes


class Holder:
    """A worker process: one life of it, from its marks file's making to its end."""

    def __init__(self, number: int, worker: int, pid: int, path: Path) -> None:
        self.number, self.worker, self.pid, self.path = number, worker, pid, path
        self.connection: Wire | None = None
        self.hellos = 0
        self.tables_version = 0
        self.stats: dict[str, float] = {}
        self.handle = os.open(path, os.O_RDWR | os.O_CLOEXEC)  # for fdatasync
        self._synced_ns = -1  # what the file's time was then; -1: it may have changed within the same tick
        self._synced_at_s = 0.0

    def sync(self) -> None:
        """Put its marks on the disk, if they were written to since: the first write after a sync moves the file's time."""
        changed_ns, now_s = os.fstat(self.handle).st_mtime_ns, time.monotonic()
        if changed_ns == self._synced_ns and now_s - self._synced_at_s < SYNC_ANYWAY_S:
            return
        self._synced_ns = changed_ns if time.time_ns() - changed_ns > CLOCK_NS else -1
        self._synced_at_s = now_s
        os.fdatasync(self.handle)


class MarksFiles:
    """The marks files of a folder, looked for anew where it has changed."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._changed_ns = -1  # when it last had; -1: it may change again within the same tick
        self._paths: list[Path] = []

    def now(self) -> list[Path]:
        """Return those there are."""
        changed_ns = os.stat(self._folder).st_mtime_ns
        if changed_ns != self._changed_ns:
            self._changed_ns = changed_ns if time.time_ns() - changed_ns > CLOCK_NS else -1
            self._paths = marks.files(self._folder)
        return self._paths


class Syncer:
    """A thread that puts the marks of `holders` on the disk: a power loss then costs what came after the last time."""

    def __init__(self, holders: Callable[[], Iterable[Holder]]) -> None:
        self._holders = holders
        self._ear = self._mouth = -1
        self._thread = threading.Thread(target=self._run, name="marks", daemon=True)

    def start(self) -> None:
        """Begin."""
        self._ear, self._mouth = os.pipe()
        self._thread.start()

    def stop(self) -> None:
        """End, and wait for it."""
        os.close(self._mouth)
        self._thread.join()
        os.close(self._ear)

    def _run(self) -> None:
        poller = select.poll()
        poller.register(self._ear, select.POLLIN)
        while not poller.poll(SYNC_S * 1000.0):
            for holder in list(self._holders()):
                with contextlib.suppress(OSError):
                    holder.sync()
