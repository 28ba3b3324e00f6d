"""Marks: how far each request of a worker has come, in a file that outlives the worker.

A memory-mapped file of 128-byte slots, one an open request. The worker writes in place (no system call): kill -9 loses
nothing that was written, because the pages belong to the kernel; a power loss loses at most what came after the owner's
last fdatasync (100 ms). Each part of a slot carries its own check, and the count of delivered tokens alternates between
two cells, so that a torn write leaves the count before it, never a wrong one. The worker holds a lock on its file as
long as it lives; the owner reads only unlocked files, once, and removes them when the rows that follow are durable.
"""

from __future__ import annotations

import fcntl
import mmap
import os
import struct
import zlib
from pathlib import Path
from typing import Final, NamedTuple

from baseload.records import UNFINISHED
from baseload.serve import quick
from baseload.serve.quick import FINAL, FINAL_AT, OPENED, REPLICA_AT, SLOT_BYTES, SUM, check

write_opened: Final = quick.write_opened  # names of our own are found at once where this is compiled
write_count: Final = quick.write_count
write_replica: Final = quick.write_replica
write_final: Final = quick.write_final

CELLS: Final = SLOT_BYTES // 8
N_SLOTS: Final = 16_384
_MAGIC: Final = b"BLMARKS1"
_HEAD = struct.Struct("<8sIIII")  # magic, bytes a slot, slots, worker, pid
_CHECKED = struct.Struct("<QI")
_SUM_AT: Final = OPENED.size  # 56
COUNT_CELL: Final = 8  # and 9
_PROMPT_AT: Final = 80
_REPLICA_CELL: Final = REPLICA_AT // 8
_STREAMED: Final = 1
_MASK: Final = 0xFFFF_FFFF
_STATUS_BIT: Final = 28  # of the cell that holds cached tokens


class Mark(NamedTuple):
    """What a slot says of a request that nobody has settled."""

    request_id: int
    arrival_ns: int
    input_pico: int
    cached_pico: int
    output_pico: int
    tables_version: int
    model_i: int
    tenant_i: int
    region_i: int
    streamed: bool
    replica_i: int  # -1: never routed
    input_tokens: int  # as the engine counted them; 0 where it had not said
    cached_tokens: int
    output_tokens: int  # accepted by the client's socket
    price_nano: int  # of what was delivered; of the settled row where `settled`
    settled: bool  # the worker had settled it, but not yet heard that it was stored
    status: int  # of the settled row; records.UNFINISHED before


class Marks:
    """A worker's own file. Slots are numbered from 0; `begin` before a request is forwarded, `free` when it is stored."""

    def __init__(self, folder: Path, worker: int, n_slots: int = N_SLOTS) -> None:
        self.worker = worker
        self.name = f"marks-{worker}-{os.getpid()}-{os.urandom(4).hex()}"
        self.path = folder / self.name
        unseen = folder / f".{self.name}"  # locked before it has the name that the owner looks for
        self._handle = os.open(unseen, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
        fcntl.flock(self._handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        size = SLOT_BYTES * (n_slots + 1)  # the first is the head
        os.posix_fallocate(self._handle, 0, size)  # a full disk is told now, not by SIGBUS in mid-stream
        self._map = mmap.mmap(self._handle, size)
        _HEAD.pack_into(self._map, 0, _MAGIC, SLOT_BYTES, n_slots, worker, os.getpid())
        unseen.rename(self.path)
        _sync_folder(folder)  # a power loss must not take the name away from what is synced under it
        self._cells = memoryview(self._map).cast("Q")
        self._free = list(range(n_slots, 0, -1))

    def begin(
        self,
        request_id: int,
        arrival_ns: int,
        prices: tuple[int, int, int],
        input_tokens: int,
        tables_version: int,
        model_i: int,
        tenant_i: int,
        region_i: int,
        stream: bool,
    ) -> int:
        """Take a slot for a request; returns its number, or 0 where none is free."""
        if not self._free:
            return 0
        slot = self._free.pop()
        write_opened(
            self._map, slot, request_id, arrival_ns, prices[0], prices[1], prices[2], input_tokens, tables_version, model_i,
            tenant_i, region_i, _STREAMED if stream else 0,
        )  # fmt: skip
        return slot

    def prompt(self, slot: int, request_id: int, input_tokens: int, cached_tokens: int) -> None:
        """Note the prompt as the engine counted it."""
        both = input_tokens << 32 | cached_tokens
        _CHECKED.pack_into(self._map, slot * SLOT_BYTES + _PROMPT_AT, both, check(both, request_id))

    def routed(self, slot: int, request_id: int, replica_i: int) -> None:
        """Note which replica it was sent to."""
        write_replica(self._map, slot, request_id, replica_i)

    def delivered(self, cell: int, tokens: int, request_id: int) -> None:
        """Note in a cell how many tokens the client's socket took."""
        write_count(self._map, cell, tokens, request_id)

    def settle(
        self,
        slot: int,
        request_id: int,
        *,
        price_nano: int,
        input_tokens: int,
        cached_tokens: int,
        output_tokens: int,
        status: int = 0,
    ) -> None:
        """Note how it ended, until the row is stored."""
        cached = cached_tokens | status << _STATUS_BIT
        write_final(self._map, slot, request_id, price_nano, input_tokens, cached, output_tokens)

    def free(self, slot: int) -> None:
        """Give a slot back: its request is stored, or was never forwarded."""
        self._cells[slot * CELLS] = 0
        self._free.append(slot)

    @property
    def n_free(self) -> int:
        """Return how many slots are free."""
        return len(self._free)

    def close(self, *, remove: bool) -> None:
        """Let the file go; `remove` it where nothing in it is open any more."""
        self._cells.release()
        self._map.close()
        if remove:
            self.path.unlink(missing_ok=True)
        os.close(self._handle)


def _sync_folder(folder: Path) -> None:
    handle = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


# ---- reading what a dead worker left ------------------------------------------------------------------------


class Left(NamedTuple):
    """A marks file that nobody holds any more: whose it was, and the requests in it."""

    path: Path
    worker: int
    marks: list[Mark]


def is_held(path: Path) -> bool:
    """Say whether the worker of a marks file lives; a file that is gone is held by nobody."""
    try:
        handle = os.open(path, os.O_RDWR | os.O_CLOEXEC)
    except FileNotFoundError:
        return False
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    finally:
        os.close(handle)
    return False


def files(folder: Path) -> list[Path]:
    """Return the marks files of a folder."""
    try:
        return [folder / name for name in sorted(os.listdir(folder)) if name.startswith("marks-")]
    except FileNotFoundError:
        return []


def worker_of(path: Path) -> int:
    """Return whose a marks file is, by its name.

    >>> worker_of(Path("run/marks-3-4711-0badcafe"))
    3
    """
    part = path.name.split("-")[1]
    return int(part) if part.isdigit() else -1


def read(path: Path) -> Left:
    """Read a marks file as far as it is whole; what is torn is left out, in the customer's favour."""
    blob = path.read_bytes()
    if len(blob) < SLOT_BYTES or blob[:8] != _MAGIC:
        return Left(path, worker_of(path), [])
    _, slot_bytes, _, worker, _ = _HEAD.unpack_from(blob)
    if slot_bytes != SLOT_BYTES:
        return Left(path, worker, [])
    found = [
        mark
        for at in range(SLOT_BYTES, len(blob) - SLOT_BYTES + 1, SLOT_BYTES)
        if blob[at : at + 8] != b"\0\0\0\0\0\0\0\0" and (mark := read_slot(blob[at : at + SLOT_BYTES])) is not None
    ]
    return Left(path, worker, found)


def read_slot(slot: bytes) -> Mark | None:
    """Return what a slot says, None where it was torn at its beginning (then nothing had been forwarded)."""
    if SUM.unpack_from(slot, _SUM_AT)[0] != zlib.crc32(slot[:_SUM_AT]):
        return None
    opened = OPENED.unpack_from(slot)
    request_id, arrival_ns, input_pico, cached_pico, output_pico, _, version, model_i, tenant_i, region_i, flags = (
        opened
    )
    cells = struct.unpack("<16Q", slot)
    output_tokens = 0
    for cell in cells[COUNT_CELL : COUNT_CELL + 2]:
        tokens = cell & _MASK
        if cell >> 32 == check(tokens, request_id):
            output_tokens = max(output_tokens, tokens)
    both, sum_ = _CHECKED.unpack_from(slot, _PROMPT_AT)
    prompt = both if sum_ == check(both, request_id) else 0
    input_tokens, cached_tokens = prompt >> 32, prompt & _MASK
    place = cells[_REPLICA_CELL]
    replica_i = (place & _MASK) - 1 if place >> 32 == check(place & _MASK, request_id) else -1
    price_nano, *tokens_, final = FINAL.unpack_from(slot, FINAL_AT)
    mixed = price_nano ^ tokens_[0] << 3 ^ tokens_[1] << 17 ^ tokens_[2] << 31
    settled = final == check(mixed, request_id)
    if settled:
        input_tokens, cached_tokens, output_tokens = tokens_
        status, cached_tokens = cached_tokens >> _STATUS_BIT, cached_tokens & ((1 << _STATUS_BIT) - 1)
    else:
        status = UNFINISHED
        cached_tokens = min(cached_tokens, input_tokens)
        fresh = input_tokens - cached_tokens
        price_nano = (fresh * input_pico + cached_tokens * cached_pico + output_tokens * output_pico) // 1000
    return Mark(
        request_id, arrival_ns, input_pico, cached_pico, output_pico, version, model_i, tenant_i, region_i,
        bool(flags & _STREAMED), replica_i, input_tokens, cached_tokens, output_tokens, price_nano, settled, status,
    )  # fmt: skip
