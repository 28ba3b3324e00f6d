"""What a trace is: chunks of columns, and a source that gives them again and again in bounded memory.

Reading files is `trace_files.py`, made-up demand `generators.py`, stretching and splicing `trace_transforms.py`, who asks
from where for which model `mix.py`. A chunk is what the twin consumes; nothing here knows the fleet's names.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace

import numpy as np
import numpy.typing as npt

from baseload.errors import TraceError
from baseload.units import NS_PER_S

Ints = npt.NDArray[np.int64]
CHUNK_ROWS = 262_144
MOST_HASHES = 4_000_000
"""Prefix hashes in a chunk, about: a chunk with long prompts has fewer rows instead of more memory."""
MOST_TOKENS = 10_000_000
MOST_S = 1_000_000_000
"""No run is longer (31 years): times stay well within int64 nanoseconds."""


@dataclass(frozen=True, slots=True)
class Trace:
    """Requests in order of arrival: one chunk, or a whole trace. Indices follow the fleet file's order, -1: not yet mixed."""

    arrival_ns: Ints  # (n,) sorted, >= 0, after the run's start
    input_tokens: npt.NDArray[np.int32]  # (n,) >= 1
    output_tokens: npt.NDArray[np.int32]  # (n,) >= 1
    tenant_i: npt.NDArray[np.int16]
    region_i: npt.NDArray[np.int16]
    model_i: npt.NDArray[np.int16]
    hash_offsets: Ints  # (n + 1,) row i owns hash_ids[hash_offsets[i]:hash_offsets[i + 1]]
    hash_ids: Ints  # (m,) > 0; an equal id is an equal whole prefix up to and with that block
    hash_block_tokens: int = 0  # tokens that an id stands for; 0: the trace has none
    first_id: int = 0  # request_id of row 0; ids count on from there

    def __len__(self) -> int:
        return len(self.arrival_ns)

    def check(self) -> None:
        """Assert what a consumer may rely on."""
        n = len(self.arrival_ns)
        assert self.arrival_ns.dtype == np.int64 and self.hash_ids.dtype == np.int64
        for column in (self.input_tokens, self.output_tokens):
            assert len(column) == n and column.dtype == np.int32
            assert n == 0 or (column.min() >= 1 and column.max() <= MOST_TOKENS)
        for index in (self.tenant_i, self.region_i, self.model_i):
            assert len(index) == n and index.dtype == np.int16
        assert n == 0 or (self.arrival_ns[0] >= 0 and (np.diff(self.arrival_ns) >= 0).all())
        assert len(self.hash_offsets) == n + 1 and self.hash_offsets[0] == 0
        assert (np.diff(self.hash_offsets) >= 0).all() and self.hash_offsets[-1] == len(self.hash_ids)
        assert len(self.hash_ids) == 0 or (self.hash_ids.min() > 0 and self.hash_block_tokens > 0)


@dataclass(frozen=True, slots=True)
class ClosedLoop:
    """Demand that waits for its answers: so many users, each pausing between an answer and the next request."""

    users: int
    think_s: float


@dataclass(frozen=True, slots=True)
class Names:
    """The names that a file may use for tenants, regions and models, in the order of the fleet file."""

    tenants: tuple[str, ...]
    regions: tuple[str, ...]
    models: tuple[str, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class TraceSource:
    """Where requests come from. `blocks` starts from the beginning each time it is called, and gives the same."""

    name: str
    source_note: str  # where it is from, and its licence where it ships with us
    blocks: Callable[[], Iterator[Trace]]
    n: int | None = None  # requests, where known before reading
    n_about: float | None = None  # requests expected, for progress
    duration_s: float | None = None  # of the demand, where known before reading
    hash_block_tokens: int = 0
    closed_loop: ClosedLoop | None = None
    bind: Callable[[Names], TraceSource] | None = None  # read name columns against a fleet's names
    said: tuple[list[str], ...] = field(default=(), compare=False)

    @property
    def notes(self) -> tuple[str, ...]:
        """What reading has found worth saying so far (longest gap, rows left out); complete after a full pass."""
        return tuple(note for notes in self.said for note in notes)

    def chunks(self, chunk_rows: int = CHUNK_ROWS) -> Iterator[Trace]:
        """Yield the requests in chunks of at most `chunk_rows` rows (fewer where prompts carry many hashes)."""
        return rechunked(self.blocks(), chunk_rows)

    def whole(self) -> Trace:
        """Return all requests as one Trace; for traces that fit in memory."""
        if self.closed_loop is not None and self.n is None:
            raise TraceError(f"{self.name}: a closed loop without `requests` has no end; set requests, or limit it")
        return joined(list(self.blocks()))

    def bound(self, names: Names) -> TraceSource:
        """Return the source with its name columns read as indices into `names`; an unknown name is a TraceError."""
        return self if self.bind is None else self.bind(names)


def columns(
    arrival_ns: Ints,
    input_tokens: npt.NDArray[np.integer],
    output_tokens: npt.NDArray[np.integer],
    *,
    hash_counts: Ints | None = None,
    hash_ids: Ints | None = None,
    hash_block_tokens: int = 0,
    first_id: int = 0,
) -> Trace:
    """Return a Trace that is not yet mixed: no tenant, region or model."""
    n = len(arrival_ns)
    nobody = np.full(n, -1, np.int16)
    nobody.flags.writeable = False  # one array stands for three columns: who knows one of them puts his own there
    offsets = np.zeros(n + 1, np.int64)
    if hash_counts is not None:
        np.cumsum(hash_counts, out=offsets[1:])
    return Trace(
        np.ascontiguousarray(arrival_ns, np.int64),
        np.ascontiguousarray(input_tokens, np.int32),
        np.ascontiguousarray(output_tokens, np.int32),
        nobody, nobody, nobody,
        offsets,
        np.zeros(0, np.int64) if hash_ids is None else hash_ids,
        hash_block_tokens,
        first_id,
    )  # fmt: skip


def rows(trace: Trace, start: int, until: int) -> Trace:
    """Return rows [start, until) as views, with ids that count on."""
    n = len(trace)
    start, until = max(0, min(start, n)), max(0, min(until, n))
    if (start, until) == (0, n):
        return trace
    first, last = int(trace.hash_offsets[start]), int(trace.hash_offsets[until])
    return replace(
        trace,
        arrival_ns=trace.arrival_ns[start:until],
        input_tokens=trace.input_tokens[start:until],
        output_tokens=trace.output_tokens[start:until],
        tenant_i=trace.tenant_i[start:until],
        region_i=trace.region_i[start:until],
        model_i=trace.model_i[start:until],
        hash_offsets=trace.hash_offsets[start : until + 1] - first,
        hash_ids=trace.hash_ids[first:last],
        first_id=trace.first_id + start,
    )


def picked(trace: Trace, keep: npt.NDArray[np.bool_], first_id: int) -> Trace:
    """Return the rows where `keep` holds, numbered from `first_id`."""
    counts = np.diff(trace.hash_offsets)
    offsets = np.zeros(int(keep.sum()) + 1, np.int64)
    np.cumsum(counts[keep], out=offsets[1:])
    return replace(
        trace,
        arrival_ns=trace.arrival_ns[keep],
        input_tokens=trace.input_tokens[keep],
        output_tokens=trace.output_tokens[keep],
        tenant_i=trace.tenant_i[keep],
        region_i=trace.region_i[keep],
        model_i=trace.model_i[keep],
        hash_offsets=offsets,
        hash_ids=trace.hash_ids[np.repeat(keep, counts)],
        first_id=first_id,
    )


def joined(pieces: Sequence[Trace]) -> Trace:
    """Return pieces that follow each other as one."""
    if not pieces:
        nothing = np.zeros(0, np.int64)
        return columns(nothing, nothing, nothing)
    if len(pieces) == 1:
        return pieces[0]
    ends = np.cumsum([0] + [len(piece.hash_ids) for piece in pieces])
    return Trace(
        np.concatenate([piece.arrival_ns for piece in pieces]),
        np.concatenate([piece.input_tokens for piece in pieces]),
        np.concatenate([piece.output_tokens for piece in pieces]),
        np.concatenate([piece.tenant_i for piece in pieces]),
        np.concatenate([piece.region_i for piece in pieces]),
        np.concatenate([piece.model_i for piece in pieces]),
        np.concatenate([pieces[0].hash_offsets[:1]] + [p.hash_offsets[1:] + e for p, e in zip(pieces, ends)]),
        np.concatenate([piece.hash_ids for piece in pieces]),
        max(piece.hash_block_tokens for piece in pieces),
        pieces[0].first_id,
    )


def rechunked(blocks: Iterable[Trace], chunk_rows: int) -> Iterator[Trace]:
    """Cut and join blocks of any size into chunks of `chunk_rows`, fewer where they carry many hashes."""
    assert chunk_rows >= 1, chunk_rows
    waiting: list[Trace] = []
    n_rows = n_hashes = 0
    for block in blocks:
        at = 0
        while at < len(block):
            room = max(0, MOST_HASHES - n_hashes) + int(block.hash_offsets[at])
            fit = int(np.searchsorted(block.hash_offsets, room, side="right")) - 1
            until = min(len(block), at + chunk_rows - n_rows, max(fit, at if waiting else at + 1))
            piece = rows(block, at, until)
            if len(piece):
                waiting.append(piece)
                n_rows += len(piece)
                n_hashes += len(piece.hash_ids)
            at = until
            if waiting and (n_rows >= chunk_rows or n_hashes >= MOST_HASHES or at < len(block)):
                yield joined(waiting)
                waiting, n_rows, n_hashes = [], 0, 0
    if waiting:
        yield joined(waiting)


# ---- a first look ------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True, kw_only=True)
class Survey:
    """What one pass over a source finds."""

    n: int
    duration_s: float  # to the last arrival
    input_tokens: float  # mean
    output_tokens: float  # mean
    longest_gap_s: float
    notes: tuple[str, ...]


def survey(source: TraceSource) -> Survey:
    """Read a source once; return how many requests it has, how long, and of which mean lengths."""
    n = last_ns = gap_ns = 0
    prompts = answers = 0
    for chunk in source.chunks():
        gap_ns = max(gap_ns, int(np.diff(chunk.arrival_ns, prepend=last_ns if n else chunk.arrival_ns[:1]).max()))
        last_ns = int(chunk.arrival_ns[-1])
        n += len(chunk)
        prompts += int(chunk.input_tokens.sum(dtype=np.int64))
        answers += int(chunk.output_tokens.sum(dtype=np.int64))
    many = max(n, 1)
    return Survey(
        n=n,
        duration_s=last_ns / NS_PER_S,
        input_tokens=prompts / many,
        output_tokens=answers / many,
        longest_gap_s=gap_ns / NS_PER_S,
        notes=source.notes,
    )


def counts_per_bin(source: TraceSource, bin_s: float) -> npt.NDArray[np.float64]:
    """Return requests in each bin of `bin_s` seconds from the start: the load curve that windows are chosen from."""
    bin_ns = max(1, round(bin_s * NS_PER_S))
    counts = np.zeros(0)
    for chunk in source.chunks():
        found = np.bincount(chunk.arrival_ns // bin_ns)
        if len(found) > len(counts):
            counts = np.concatenate([counts, np.zeros(len(found) - len(counts))])
        counts[: len(found)] += found
    return counts


# ---- dice that do not care about chunks ----------------------------------------------------------------------


def mixed64(values: npt.NDArray[np.uint64]) -> npt.NDArray[np.uint64]:
    """Return splitmix64 of each value: a bijection that looks random (Steele, Lea and Flood, OOPSLA 2014).

    >>> hex(int(mixed64(np.array([0], np.uint64))[0]))
    '0xe220a8397b1dcdaf'
    """
    z = values + np.uint64(0x9E3779B97F4A7C15)
    z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return np.asarray(z ^ (z >> np.uint64(31)))


def key64(*parts: int) -> np.uint64:
    """Return one 64-bit key of several whole numbers, in order."""
    key = np.zeros(1, np.uint64)
    for part in parts:
        key = mixed64(key ^ np.array([part & 0xFFFF_FFFF_FFFF_FFFF], np.uint64))
    return np.uint64(key[0])


def as_ids(values: npt.NDArray[np.uint64]) -> Ints:
    """Return hashes as positive int64 ids."""
    ids = (values >> np.uint64(1)).view(np.int64)
    return np.maximum(ids, 1)


def salted(hash_ids: Ints, salt: npt.NDArray[np.uint64] | np.uint64) -> Ints:
    """Return ids under a salt: equal ids under an equal salt stay equal, all others differ."""
    return as_ids(mixed64(hash_ids.view(np.uint64) ^ salt))
