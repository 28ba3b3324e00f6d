"""The board: a small mapped file in which the processes of one host tell each other how the replicas stand.

Cells of eight bytes, each with ONE writer: a worker writes its own rows (what it sent and has not seen end, what it could
not place), the owner writes everything else. A cell is written whole or not at all, so no lock is needed; a reader that
meets a burst half done sees `version` move when the burst is over, and reads again. Plain memoryviews: no NumPy.
Deciding with what stands here is `door.py`; filling it in from engines and meters is the owner's loop.

Fail closed: on a fresh board no replica takes anything (`gate` is GATE_UNKNOWN) until the owner says so.
"""

from __future__ import annotations

import mmap
import os
from pathlib import Path
from typing import Any, Final

GATE_UNKNOWN: Final = -1  # of `gate`, as in the twin: not known to be up; closed to all at a power limit
GATE_POWER: Final = -2
MAGIC: Final = 0x42_4C_42_4F_41_52_44_01  # "BLBOARD", layout 1
CELL: Final = 8
LINE: Final = 8  # cells of a cache line: rows of different writers share none

# The first cells of the file.
H_MAGIC: Final = 0
H_REPLICAS: Final = 1
H_SITES: Final = 2
H_WORKERS: Final = 3
H_VERSION: Final = 4
H_ENDPOINTS: Final = 5
HEADER: Final = 16

WORKER_WHOLE = ("outstanding", "asked")  # (replica,) and (pool,): as wide as the replicas
REPLICA_WHOLE = ("gate", "running", "waiting", "epoch")
REPLICA_REAL = ("kv_free", "cost_per_mtok", "carbon_g_per_mtok")
SITE_REAL = ("limit_kw", "power_kw", "carbon_g_per_kwh", "price_per_kwh", "dynamic_ratio", "lowest_open")
COUNTERS: Final = (
    "decided",  # requests that reached the door, first tries
    "refused",
    "sent",  # tries on their way to an engine, retries too
    "retried",
    "retry_denied",  # the retry budget was spent
    "ejected",
    "waited",  # put in the queue
    "shed",
    "connections",
    "streams",
    "bytes_in",
    "bytes_out",
    "client_gone",
    "upstream_cut",
    "unauthorised",
    "limited",
    "alive",  # 1 while the worker lives; the sum says how many do
)
COUNTER_I = {name: i for i, name in enumerate(COUNTERS)}
Cells = Any  # memoryview of int64 or float64 cells; typeshed knows no item type of a cast


def _lines(cells: int) -> int:
    """Return the cells of whole cache lines that hold so many."""
    return -(-cells // LINE) * LINE


def room_for(n: int) -> int:
    """Return how many rows a board is given for `n`: the rest of a cache line is room for what a reload adds.

    >>> [room_for(n) for n in (1, 8, 9)]
    [8, 8, 16]
    """
    return _lines(max(1, n))


def size_bytes(n_replicas: int, n_sites: int, n_workers: int) -> int:
    """Return the size of a board's file.

    >>> size_bytes(16, 3, 2)
    2560
    """
    return CELL * (
        HEADER
        + n_workers * _worker_cells(n_replicas)
        + len(REPLICA_WHOLE + REPLICA_REAL) * _lines(n_replicas)
        + len(SITE_REAL) * _lines(n_sites)
    )


def _worker_cells(n_replicas: int) -> int:
    return (len(WORKER_WHOLE) + 1) * _lines(n_replicas) + _lines(len(COUNTERS))


class Board:
    """Columns shared by all processes of a host; see the module's text for who writes which.

    `gate` is the largest priority number that a replica takes, GATE_UNKNOWN or GATE_POWER.
    By worker (index first): `outstanding[w][r]`, `asked[w][p]` whole, `queued_tokens[w][r]` real, `counters[w][...]`
    (places in COUNTER_I). By the owner: `gate`, `running`, `waiting`, `epoch` (times a replica came up), `kv_free`,
    `cost_per_mtok`, `carbon_g_per_mtok` by replica; `limit_kw`, `power_kw`, `carbon_g_per_kwh`, `price_per_kwh`,
    `dynamic_ratio`, `lowest_open` by site.
    """

    def __init__(self, mapped: mmap.mmap, file: tuple[int, int] = (0, 0)) -> None:
        self._file = file  # device and inode
        whole = memoryview(mapped).cast("q")
        real = memoryview(mapped).cast("d")
        self._mapped: mmap.mmap | None = mapped
        self._views: list[Cells] = [whole, real]
        self.head: Cells = whole
        self.n_replicas, self.n_sites, self.n_workers = (int(whole[i]) for i in (H_REPLICAS, H_SITES, H_WORKERS))
        n, at = self.n_replicas, HEADER
        self.outstanding: list[Cells] = []
        self.asked: list[Cells] = []
        self.queued_tokens: list[Cells] = []
        self.counters: list[Cells] = []
        for _ in range(self.n_workers):
            self.outstanding.append(self._view(whole, at, n))
            self.asked.append(self._view(whole, at + _lines(n), n))
            self.queued_tokens.append(self._view(real, at + 2 * _lines(n), n))
            self.counters.append(self._view(whole, at + 3 * _lines(n), len(COUNTERS)))
            at += _worker_cells(n)
        columns: dict[str, Cells] = {}
        for names, view, length in (
            (REPLICA_WHOLE, whole, n), (REPLICA_REAL, real, n), (SITE_REAL, real, self.n_sites),
        ):  # fmt: skip
            for name in names:
                columns[name] = self._view(view, at, length)
                at += _lines(length)
        assert at * CELL == size_bytes(n, self.n_sites, self.n_workers), at
        self.gate, self.running, self.waiting, self.epoch = (columns[name] for name in REPLICA_WHOLE)
        self.kv_free, self.cost_per_mtok, self.carbon_g_per_mtok = (columns[name] for name in REPLICA_REAL)
        self.limit_kw, self.power_kw, self.carbon_g_per_kwh = (columns[name] for name in SITE_REAL[:3])
        self.price_per_kwh, self.dynamic_ratio, self.lowest_open = (columns[name] for name in SITE_REAL[3:])

    def _view(self, cells: Cells, at: int, length: int) -> Cells:
        view = cells[at : at + length]
        self._views.append(view)
        return view

    @classmethod
    def create(cls, path: Path | str, n_replicas: int, n_sites: int, n_workers: int) -> Board:
        """Make the file, readable by its owner alone, and return it; a board already there is replaced."""
        assert min(n_replicas, n_sites, n_workers) >= 1, (n_replicas, n_sites, n_workers)
        fresh = f"{path}.fresh"
        if os.path.exists(fresh):
            os.unlink(fresh)
        handle = os.open(fresh, os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o600)
        try:
            os.ftruncate(handle, size_bytes(n_replicas, n_sites, n_workers))
            mapped = mmap.mmap(handle, 0)
            here = os.fstat(handle)
        finally:
            os.close(handle)
        cells = memoryview(mapped).cast("q")
        cells[H_REPLICAS], cells[H_SITES], cells[H_WORKERS] = n_replicas, n_sites, n_workers
        cells.release()
        board = cls(mapped, (here.st_dev, here.st_ino))
        board._know_nothing()
        board.head[H_MAGIC] = MAGIC
        os.replace(fresh, path)  # so that nobody ever opens half a board
        return board

    @classmethod
    def take_over(cls, path: Path | str, n_replicas: int, n_sites: int, n_workers: int) -> Board:
        """Owner started anew: return the very board that the workers still look at, or a new one where it is too small."""
        try:
            board = cls.open(path)
        except (OSError, ValueError):
            return cls.create(path, n_replicas, n_sites, n_workers)
        if not board.holds(n_replicas, n_sites) or board.n_workers != n_workers:
            board.close()
            return cls.create(path, n_replicas, n_sites, n_workers)
        board._know_nothing()
        board.bump()
        return board

    def _know_nothing(self) -> None:
        for r in range(self.head[H_REPLICAS]):
            self.gate[r] = GATE_UNKNOWN
            self.kv_free[r] = 1.0
        for s in range(self.head[H_SITES]):
            self.limit_kw[s] = float("inf")
            self.dynamic_ratio[s] = 1.0
            self.lowest_open[s] = 9.0

    @classmethod
    def open(cls, path: Path | str) -> Board:
        """Return the board in the file; ValueError where it is none, or of another layout."""
        handle = os.open(path, os.O_RDWR)
        try:
            here = os.fstat(handle)
            length = here.st_size
            if length < HEADER * CELL or length % CELL:
                raise ValueError(f"{path}: {length} bytes are no board; start `baseload serve` anew")
            mapped = mmap.mmap(handle, 0)
        finally:
            os.close(handle)
        cells = memoryview(mapped).cast("q")
        magic, sizes = cells[H_MAGIC], (cells[H_REPLICAS], cells[H_SITES], cells[H_WORKERS])
        cells.release()
        if magic != MAGIC or min(sizes) < 1 or size_bytes(*sizes) != length:
            mapped.close()
            raise ValueError(f"{path}: not a board of this version of Baseload; start `baseload serve` anew")
        return cls(mapped, (here.st_dev, here.st_ino))

    def holds(self, n_replicas: int, n_sites: int) -> bool:
        """Say whether there is a row for so many."""
        return self.n_replicas >= n_replicas and self.n_sites >= n_sites

    def is_at(self, path: Path | str) -> bool:
        """Say whether this is the file that now lies there: after a reload it may be a larger one."""
        try:
            there = os.stat(path)
        except OSError:
            return True  # nothing better is known
        return (there.st_dev, there.st_ino) == self._file

    def close(self) -> None:
        """Let the mapping go; the file stays."""
        for view in reversed(self._views):
            view.release()
        self._views = []
        if self._mapped is not None:
            self._mapped.close()
            self._mapped = None

    @property
    def version(self) -> int:
        """Return how many bursts the owner has written."""
        return int(self.head[H_VERSION])

    @property
    def endpoint_version(self) -> int:
        """Return how often the list of endpoints changed."""
        return int(self.head[H_ENDPOINTS])

    def bump(self) -> None:
        """Owner: say that a burst of writes is over."""
        self.head[H_VERSION] += 1

    def bump_endpoints(self) -> None:
        """Owner: say that `endpoints.json` is new."""
        self.head[H_ENDPOINTS] += 1

    def clear_worker(self, w: int) -> None:
        """Forget what worker `w` had in flight: by the worker when it starts, by the owner when it is seen dead."""
        for r in range(self.n_replicas):
            self.outstanding[w][r] = 0
            self.queued_tokens[w][r] = 0.0
        self.counters[w][COUNTER_I["alive"]] = 0

    def totals(self, name: str) -> list[int]:
        """Return the sum over workers of `outstanding` (by replica) or `asked` (by pool)."""
        rows = self.outstanding if name == "outstanding" else self.asked
        return [sum(column) for column in zip(*(row.tolist() for row in rows), strict=True)]

    def count(self, w: int, name: str, n: int = 1) -> None:
        """Worker `w`: add to one of its counters."""
        self.counters[w][COUNTER_I[name]] += n

    def counted(self) -> dict[str, int]:
        """Return the counters, summed over workers."""
        sums = [sum(column) for column in zip(*(row.tolist() for row in self.counters), strict=True)]
        return dict(zip(COUNTERS, sums, strict=True))

    def check(self) -> None:
        """Assert what must hold of every board."""
        assert self.head[H_MAGIC] == MAGIC
        assert all(GATE_POWER <= gate <= 9 for gate in self.gate.tolist()), self.gate.tolist()
        assert all(n >= 0 for row in self.outstanding for n in row.tolist())
        assert all(tokens >= 0.0 for row in self.queued_tokens for tokens in row.tolist())
        assert all(0.0 < ratio <= 1.0 for ratio in self.dynamic_ratio.tolist())
