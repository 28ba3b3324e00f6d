"""The twin's shell: feeds arrivals to the kernel, empties records, gives it room, and lets the caller breathe.

It waits on nothing and holds no rule. Records leave through a callback, chunk by chunk, so a run needs memory for what is
in flight, not for what has been.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from baseload.simulate import control
from baseload.simulate import state as st
from baseload.simulate import world as room
from baseload.simulate.kernel import advance

EVENTS_A_CALL = 60_000  # keeps one call of the kernel well under 0.2 s


class Chunk(Protocol):
    """What a chunk of a trace looks like (adapters/traces.py: Trace): columns, one row a request."""

    @property
    def arrival_ns(self) -> Any: ...
    @property
    def input_tokens(self) -> Any: ...
    @property
    def output_tokens(self) -> Any: ...
    @property
    def tenant_i(self) -> Any: ...
    @property
    def region_i(self) -> Any: ...
    @property
    def model_i(self) -> Any: ...
    @property
    def hash_offsets(self) -> Any: ...
    @property
    def hash_ids(self) -> Any: ...
    @property
    def first_id(self) -> int: ...


@dataclass(frozen=True, slots=True)
class Moment:
    """Where a run stands, for progress."""

    now_ns: int
    arrived: int
    ended: int
    active: int


@dataclass(frozen=True, slots=True)
class Outcome:
    """The world at the end of a run."""

    world: st.World
    end_ns: int
    n_in: int
    served: int
    refused: int
    failed: int
    unfinished: int


def no_arrivals(final: bool, rtt_ns: npt.NDArray[np.int64]) -> st.Arrivals:
    """Return an empty chunk."""
    i32, i16, i64 = np.zeros(0, np.int32), np.zeros(0, np.int16), np.zeros(0, np.int64)
    return st.Arrivals(i64, i32, i32, i16, i16, i16, np.zeros(1, np.int64), i64, rtt_ns, 0, 0, final)


def _column(values: Any, dtype: Any) -> npt.NDArray[Any]:
    """Return a column as the kernel wants it; a read-only or unaligned one would compile the kernel once more."""
    return np.require(values, dtype, ["C", "A", "W"])


def as_arrivals(chunk: Chunk, rtt_ns: npt.NDArray[np.int64]) -> st.Arrivals:
    """Return the chunk as the kernel's columns, with the dtypes that it was compiled for."""
    return st.Arrivals(
        _column(chunk.arrival_ns, np.int64),
        _column(chunk.input_tokens, np.int32),
        _column(chunk.output_tokens, np.int32),
        _column(chunk.tenant_i, np.int16),
        _column(chunk.region_i, np.int16),
        _column(chunk.model_i, np.int16),
        _column(chunk.hash_offsets, np.int64),
        _column(chunk.hash_ids, np.int64),
        rtt_ns,
        int(chunk.first_id),
        int(np.diff(chunk.hash_offsets).max(initial=0)),
        False,
    )


def run(
    spec: room.TwinSpec,
    chunks: Iterable[Chunk],
    *,
    emit: Callable[[npt.NDArray[Any]], None],
    breathe: Callable[[Moment], None] | None = None,
    each_hour: Callable[[st.World, int], None] | None = None,
    until_ns: int = st.NEVER,
    out_rows: int = 65_536,
) -> Outcome:
    """Run the twin over the chunks of a trace until everything has ended, or until `until_ns`.

    `emit` is handed records (OUT rows, a view that is reused: copy what you keep) in order of their end. `breathe` is
    called a few times a second; raise in it to stop. `each_hour(world, hour)` may set the cost and carbon columns.
    """
    world, plant = room.build(spec, out_rows=out_rows)
    rtt_ns = np.rint(spec.region_rtt_s * 1e9).astype(np.int64)
    source: Iterator[Chunk] = iter(chunks)
    arrivals = no_arrivals(False, rtt_ns)
    hour = 0
    hour_ns = 3_600_000_000_000
    if each_hour is not None:
        each_hour(world, 0)
    g = world.scalars
    calls = 0
    while True:
        calls += 1
        stop_ns = until_ns if each_hour is None else min(until_ns, (hour + 1) * hour_ns)
        why = advance(world, arrivals, stop_ns, EVENTS_A_CALL)
        if why == st.FINISHED:
            break
        if why == st.NEED_ARRIVALS:
            following = next(source, None)
            arrivals = no_arrivals(True, rtt_ns) if following is None else as_arrivals(following, rtt_ns)
            g[st.G_ARRIVAL_I] = 0
        elif why == st.DUE_TIMER:
            control.on_timer(world)
        elif why == st.DUE_SCRAPE:
            control.on_scrape(world)
        elif why == st.DUE_CONTROL:
            control.on_control(world, plant)
        elif why == st.DUE_OUTAGE:
            _empty(world, emit)
            while len(world.out) < g[st.G_ACTIVE] + 1024:
                world = room.more_out(world)
            world = room.more_timers(world)
            control.on_outage(world, plant)
        elif why == st.NEED_SLOTS:
            world = room.more_slots(world)
        elif why == st.NEED_HASHES:
            world = room.more_nodes(world)
        elif why == st.NEED_BINS:
            world = room.more_bins(world)
        elif why == st.OUT_FULL and g[st.G_OUT] == 0:
            world = room.more_out(world)
        elif why == st.REACHED_UNTIL:
            if stop_ns >= until_ns:
                break
            hour += 1
            assert each_hour is not None
            each_hour(world, hour)
        if g[st.G_OUT] > len(world.out) // 2 or why == st.OUT_FULL:
            _empty(world, emit)
        if breathe is not None and (why in (st.PAUSED, st.NEED_ARRIVALS, st.OUT_FULL) or calls % 4096 == 0):
            ended = int(g[st.G_SERVED] + g[st.G_REFUSED] + g[st.G_FAILED])
            breathe(Moment(int(g[st.G_NOW]), int(g[st.G_IN]), ended, int(g[st.G_IN]) - ended))
    _empty(world, emit)
    end_ns = until_ns if why == st.REACHED_UNTIL and until_ns < st.NEVER else max(int(g[st.G_NOW]), 0)
    while end_ns // g[st.G_BIN_NS] >= world.bins.shape[1]:
        world = room.more_bins(world)
    control.close_books(world, end_ns)
    served, refused, failed = int(g[st.G_SERVED]), int(g[st.G_REFUSED]), int(g[st.G_FAILED])
    n_in = int(g[st.G_IN])
    return Outcome(world, end_ns, n_in, served, refused, failed, n_in - served - refused - failed)


def _empty(world: st.World, emit: Callable[[npt.NDArray[Any]], None]) -> None:
    n = int(world.scalars[st.G_OUT])
    if n:
        emit(world.out[:n])
        world.scalars[st.G_OUT] = 0
