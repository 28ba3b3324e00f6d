"""One trace made from others, chunk by chunk: faster, longer, shorter, thinner, later, or a window of it."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace

import numpy as np

from baseload.adapters.traces import (
    MOST_S,
    ClosedLoop,
    Names,
    Trace,
    TraceSource,
    joined,
    key64,
    mixed64,
    picked,
    rows,
    salted,
)
from baseload.errors import TraceError
from baseload.units import NS_PER_S, s_to_ns


def scaled(source: TraceSource, load_factor: float) -> TraceSource:
    """Return the trace sent `load_factor` times as fast; a closed loop gets that many times the users."""
    if not (math.isfinite(load_factor) and load_factor > 0.0):
        raise TraceError(f"{source.name}: a load factor of {load_factor:g} is not a load; give a number above 0")
    if load_factor == 1.0:
        return source
    if source.closed_loop is not None:
        users = max(1, round(source.closed_loop.users * load_factor))
        return replace(source, closed_loop=ClosedLoop(users, source.closed_loop.think_s))
    factor = load_factor

    def faster(block: Trace) -> Trace:
        arrival_ns = np.rint(block.arrival_ns / factor)
        if len(arrival_ns) and arrival_ns[-1] > MOST_S * NS_PER_S:
            raise TraceError(f"{source.name}: at {factor:g} times the load it lasts more than {MOST_S:,} s; scale less")
        return replace(block, arrival_ns=arrival_ns.astype(np.int64))

    return _each(
        source,
        faster,
        name=f"{source.name} x{load_factor:g}",
        duration_s=None if source.duration_s is None else source.duration_s / load_factor,
    )


def offset(source: TraceSource, seconds: float) -> TraceSource:
    """Return the trace beginning `seconds` (>= 0) later."""
    assert seconds >= 0.0, seconds
    shift_ns = s_to_ns(seconds)
    return _each(
        source,
        lambda block: replace(block, arrival_ns=block.arrival_ns + shift_ns),
        duration_s=None if source.duration_s is None else source.duration_s + seconds,
    )


def limited(source: TraceSource, requests: int) -> TraceSource:
    """Return the first `requests` requests."""
    assert requests >= 1, requests

    def blocks() -> Iterator[Trace]:
        left = requests
        for block in source.blocks():
            yield rows(block, 0, left)
            left -= len(block)
            if left <= 0:
                return

    shorter = source.n is None or source.n > requests
    n = requests if source.n is None and source.closed_loop else None if source.n is None else min(source.n, requests)
    return replace(
        source,
        blocks=blocks,
        n=n,
        n_about=min(requests, source.n_about or requests),
        duration_s=None if shorter else source.duration_s,
        bind=_rebinding(source, lambda bound: limited(bound, requests)),
    )


def thinned(source: TraceSource, keep_ratio: float, seed: int) -> TraceSource:
    """Return a random share of the requests, the same ones whatever the chunks; they are numbered anew."""
    assert 0.0 < keep_ratio <= 1.0, keep_ratio
    key = key64(seed, 0x7417)
    most = np.uint64(min(keep_ratio * 2.0**64, 2.0**64 - 2048.0))

    def blocks() -> Iterator[Trace]:
        kept = 0
        for block in source.blocks():
            ids = np.arange(block.first_id, block.first_id + len(block), dtype=np.int64).view(np.uint64)
            piece = picked(block, mixed64(ids ^ key) <= most, kept)
            kept += len(piece)
            yield piece

    return replace(
        source,
        blocks=blocks,
        n=None,
        n_about=None if source.n_about is None else source.n_about * keep_ratio,
        bind=_rebinding(source, lambda bound: thinned(bound, keep_ratio, seed)),
    )


def window(source: TraceSource, start_s: float, until_s: float) -> TraceSource:
    """Return what arrives in [start_s, until_s), with the window's start as time 0; ids stay those of the source."""
    assert 0.0 <= start_s < until_s, (start_s, until_s)
    start_ns, until_ns = s_to_ns(start_s), s_to_ns(until_s)

    def blocks() -> Iterator[Trace]:
        for block in source.blocks():
            first, last = (int(i) for i in np.searchsorted(block.arrival_ns, (start_ns, until_ns)))
            piece = rows(block, first, last)
            if len(piece):
                yield replace(piece, arrival_ns=piece.arrival_ns - start_ns)
            if last < len(block):
                return

    return replace(
        source,
        blocks=blocks,
        n=None,
        n_about=None,
        duration_s=until_s - start_s,
        bind=_rebinding(source, lambda bound: window(bound, start_s, until_s)),
    )


def cut_out(source: TraceSource, spans_s: Sequence[tuple[float, float]]) -> Iterator[Trace]:
    """Yield what arrives in each span [start_s, until_s), each with its start as time 0, in one pass over the source.

    Spans are in order of their starts and may overlap, as windows with a warm-up do; one without requests is empty.
    """
    assert list(spans_s) == sorted(spans_s), spans_s
    spans_ns = [(s_to_ns(start_s), s_to_ns(until_s)) for start_s, until_s in spans_s]
    pieces: list[list[Trace]] = [[] for _ in spans_ns]
    done = 0
    for block in source.blocks():
        if done == len(spans_ns):
            return
        if not len(block):
            continue
        for i in range(done, len(spans_ns)):
            start_ns, until_ns = spans_ns[i]
            if start_ns > block.arrival_ns[-1]:
                break
            first, last = (int(at) for at in np.searchsorted(block.arrival_ns, (start_ns, until_ns)))
            if last > first:
                piece = rows(block, first, last)
                pieces[i].append(replace(piece, arrival_ns=piece.arrival_ns - start_ns))
        while done < len(spans_ns) and spans_ns[done][1] <= block.arrival_ns[-1]:
            yield joined(pieces[done])
            pieces[done] = []
            done += 1
    for i in range(done, len(spans_ns)):
        yield joined(pieces[i])


def spliced(sources: Sequence[TraceSource]) -> TraceSource:
    """Return traces one after the other; each begins a mean gap after the last request of the one before.

    Their prefixes are kept apart: block 7 of one trace is not block 7 of another.
    """
    assert sources
    blocks_of = {source.hash_block_tokens for source in sources} - {0}
    if len(blocks_of) > 1:
        sizes = " and ".join(str(tokens) for tokens in sorted(blocks_of))
        raise TraceError(f"traces that hash blocks of {sizes} tokens cannot be spliced; splice those of one size")
    if any(source.closed_loop for source in sources):
        raise TraceError(
            "a closed loop has no arrival times, so it cannot be spliced; splice traces or open generators"
        )
    hash_tokens = max(blocks_of, default=0)

    def blocks() -> Iterator[Trace]:
        shift_ns = first_id = 0
        for i, source in enumerate(sources):
            n = start_ns = last_ns = 0
            for block in source.blocks():
                if not len(block):
                    continue
                start_ns = start_ns if n else int(block.arrival_ns[0])
                n, last_ns = n + len(block), int(block.arrival_ns[-1])
                if last_ns + shift_ns > MOST_S * NS_PER_S:
                    raise TraceError(f"{source.name}: spliced it ends after more than {MOST_S:,} s; splice fewer")
                yield replace(
                    block,
                    arrival_ns=block.arrival_ns + shift_ns,
                    hash_ids=salted(block.hash_ids, key64(i)) if i else block.hash_ids,
                    hash_block_tokens=hash_tokens,
                    first_id=first_id,
                )
                first_id += len(block)
            shift_ns += last_ns + ((last_ns - start_ns) // (n - 1) if n > 1 else 0)

    counts = [source.n for source in sources]
    about = [source.n_about for source in sources]
    known = all(source.bind is None for source in sources)
    return TraceSource(
        name=" + ".join(dict.fromkeys(source.name for source in sources)),
        source_note="; ".join(dict.fromkeys(source.source_note for source in sources)),
        blocks=blocks,
        n=None if None in counts else sum(n for n in counts if n is not None),
        n_about=None if None in about else sum(n for n in about if n is not None),
        hash_block_tokens=hash_tokens,
        bind=None if known else (lambda names: spliced([source.bound(names) for source in sources])),
        said=tuple({id(notes): notes for source in sources for notes in source.said}.values()),
    )


def repeated(source: TraceSource, times: int) -> TraceSource:
    """Return the trace `times` times in a row; each pass has prefixes of its own, as new conversations have."""
    assert times >= 1, times
    return source if times == 1 else replace(spliced([source] * times), name=f"{source.name} {times} times")


def _each(
    source: TraceSource,
    change: Callable[[Trace], Trace],
    *,
    duration_s: float | None,
    name: str | None = None,
) -> TraceSource:
    return replace(
        source,
        name=name or source.name,
        blocks=lambda: map(change, source.blocks()),
        duration_s=duration_s,
        bind=_rebinding(source, lambda bound: _each(bound, change, name=name, duration_s=duration_s)),
    )


def _rebinding(
    source: TraceSource, again: Callable[[TraceSource], TraceSource]
) -> Callable[[Names], TraceSource] | None:
    return None if source.bind is None else lambda names: again(source.bound(names))
