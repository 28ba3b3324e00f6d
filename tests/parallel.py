"""Tests in several processes: what stays together, who begins, and who must be alone.

A file's tests stay in one process, in order: they share fixtures, and some sum up what those before them saw. Files
that share something beyond a process are TOGETHER. A test marked `alone` measures time so finely that no other test may
run beside it: it has the machine to itself, whatever process it is in. Files of LONGEST_FIRST begin, so that none of
them is left for the end; the two on top differ in what they need compiled.
"""

from __future__ import annotations

import fcntl
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

TOGETHER = {
    "tests/whole/test_partition.py": "network namespaces",
    "tests/whole/test_chaos.py": "network namespaces",
}
LONGEST_FIRST = (
    "tests/simulate/test_custom_policy.py",
    "tests/whole/test_live_parity.py",
    "tests/app/test_control_page.py",
    "tests/whole/test_ledger_faults.py",
    "tests/whole/test_interruptions.py",
    "tests/serve/test_truth.py",
    "tests/whole/test_chaos.py",
    "tests/whole/test_overload.py",
    "tests/fuzz/test_fleet.py",
    "tests/app/test_control_api.py",
    "tests/simulate/test_queues.py",
    "tests/whole/test_serve_operator.py",
    "tests/whole/test_live_demo.py",
    "tests/app/test_fit_queues.py",
    "tests/plan/test_solve.py",
    "tests/adapters/test_engine_process.py",
    "tests/adapters/test_traces.py",
    "tests/report/test_kpis.py",
)


def unit(nodeid: str) -> str:
    """Return the name of what a test stays together with.

    >>> unit("tests/fleet/test_load.py::test_line[a::b]"), unit("src/baseload/units.py::baseload.units.kwh")
    ('tests/fleet/test_load.py', 'doctests')
    """
    file = nodeid.partition("::")[0]
    return TOGETHER.get(file, file) if file.startswith("tests/") else "doctests"


def rank(name: str) -> int:
    """Return the place of a unit in the order of beginning."""
    files = [file for file in LONGEST_FIRST if unit(file) == name]
    return LONGEST_FIRST.index(files[0]) if files else len(LONGEST_FIRST)


def scheduler(config: Any, log: Any) -> Any:
    """Return what hands units to processes: the longest first, each to whoever is free."""
    from xdist.scheduler import LoadScopeScheduling

    class LongestFirst(LoadScopeScheduling):  # type: ignore[misc]
        def _split_scope(self, nodeid: str) -> str:
            return unit(nodeid)

        def _assign_work_unit(self, node: Any) -> None:
            self.workqueue.move_to_end(min(self.workqueue, key=rank), last=False)
            super()._assign_work_unit(node)

    return LongestFirst(config, log)


class Turns:
    """Many at once or one alone, over processes: a lock on a file, and another that keeps the one from waiting for ever."""

    def __init__(self, folder: Path) -> None:
        self._gate, self._room = (os.open(folder / name, os.O_CREAT | os.O_RDWR) for name in ("gate", "room"))

    @contextmanager
    def turn(self, *, alone: bool) -> Iterator[None]:
        """Wait for a turn, and have it until the block ends."""
        fcntl.flock(self._gate, fcntl.LOCK_EX)  # whoever waits for the room lets nobody in behind it
        try:
            fcntl.flock(self._room, fcntl.LOCK_EX if alone else fcntl.LOCK_SH)
        finally:
            fcntl.flock(self._gate, fcntl.LOCK_UN)
        try:
            yield
        finally:
            fcntl.flock(self._room, fcntl.LOCK_UN)
