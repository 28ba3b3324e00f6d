"""What every row of a trace file has to be, whatever its format; a wrong one is named by file and line."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace

import numpy as np
import numpy.typing as npt

from baseload.adapters import trace_cells as tc
from baseload.adapters.traces import (
    MOST_HASHES,
    MOST_S,
    MOST_TOKENS,
    Ints,
    Names,
    Trace,
    as_ids,
    columns,
    mixed64,
)
from baseload.errors import TraceError
from baseload.units import NS_PER_S

_GOLDEN = np.uint64(0x9E3779B97F4A7C15)
_NO_HASHES = np.zeros(0, np.int64)
Mask = npt.NDArray[np.bool_]


@dataclass(slots=True, kw_only=True)
class Columns:
    """Rows as a reader found them: numbers, BAD where there was none, and how the cell was written."""

    arrival_ns: Ints
    input_tokens: Ints
    output_tokens: Ints
    arrival_cell: Callable[[int], bytes | str]
    input_cell: Callable[[int], bytes | str]
    output_cell: Callable[[int], bytes | str]
    lines: Ints
    relative: bool = True
    failures: bool = False
    optional: dict[str, tc.Cells] = field(default_factory=dict)
    hash_counts: Ints | None = None
    hash_ids: Ints | None = None


class Checker:
    """Checks rows against each other in file order, and turns them into Traces; one a pass over a file."""

    def __init__(
        self,
        shown: str,
        notes: list[str],
        names: Names | None,
        hash_block_tokens: int,
        *,
        begin: Sequence[str] = (),
        unit: str = "line",
    ) -> None:
        self.shown = shown
        self.notes = notes
        self.names = names
        self.hash_block_tokens = hash_block_tokens
        self.begin = tuple(begin)
        self.unit = unit
        self.n = 0
        self.left_out = 0
        self.zero_ns: int | None = None
        self.last_ns = 0
        self.longest_ns = 0
        self.longest_line = 0
        notes[:] = self.begin

    def error(self, line: int, what: str, mend: str) -> TraceError:
        """Return the error of one line."""
        where = f"{self.shown}:{line}" if self.unit == "line" else f"{self.shown}: {self.unit} {line}"
        return TraceError(f"{where}: {what}; {mend}")

    def accept(self, found: Columns) -> Iterator[Trace]:
        """Check rows that follow those before; yield them as Traces."""
        keep = np.arange(len(found.lines))
        if found.failures:
            keep = np.flatnonzero(found.output_tokens != 0)
            self.left_out += len(found.lines) - len(keep)
        if not len(keep):
            return
        arrival_ns, prompts, answers = (
            found.arrival_ns[keep], found.input_tokens[keep], found.output_tokens[keep]
        )  # fmt: skip
        if self.zero_ns is None:
            self.zero_ns = 0 if found.relative or arrival_ns[0] == tc.BAD else int(arrival_ns[0])
        unread = arrival_ns == tc.BAD
        arrival_ns = np.where(unread, 0, arrival_ns) - self.zero_ns
        before_ns = np.concatenate([[self.last_ns if self.n else -tc.BEYOND], arrival_ns[:-1]])
        wrong = unread | (arrival_ns < before_ns) | (arrival_ns < 0) | (arrival_ns > MOST_S * NS_PER_S)
        wrong |= (prompts < 1) | (prompts > MOST_TOKENS) | (answers < 1) | (answers > MOST_TOKENS)
        if wrong.any():
            i = int(np.argmax(wrong))
            raise self._row_error(found, int(keep[i]), int(arrival_ns[i]), int(before_ns[i]), bool(unread[i]))
        self._gap(arrival_ns, found.lines[keep])
        optional = {
            name: tc.Cells(cells.text, cells.start[keep], cells.end[keep]) for name, cells in found.optional.items()
        }
        indices = self._indices(optional, found.lines[keep])
        keys, counts = self._prefixes(optional, found.lines[keep], prompts)
        if found.hash_counts is not None:
            counts = found.hash_counts
        yield from self._traces(arrival_ns, prompts, answers, indices, counts, keys, found.hash_ids)

    def finish(self) -> None:
        """Say at the end of the file what was worth saying; a file without rows is an error."""
        if not self.n:
            raise TraceError(f"{self.shown}: holds no request; give a file with at least one row")
        self.notes[:] = self.begin
        if self.left_out:
            self.notes.append(f"{self.left_out:,} failed requests (0 output tokens) were left out")
        if self.longest_line:
            self.notes.append(
                f"longest gap {self.longest_ns / NS_PER_S:,.1f} s, before {self.unit} {self.longest_line}"
            )

    def _row_error(self, found: Columns, i: int, arrival_ns: int, before_ns: int, unread: bool) -> TraceError:
        line = int(found.lines[i])
        if unread:
            written = _shown_cell(found.arrival_cell(i))
            return self.error(line, f"the time {written} cannot be read", "mend the row, or leave it out")
        if arrival_ns < 0 and found.relative:
            return self.error(
                line, f"a negative time ({arrival_ns / NS_PER_S:g} s)", "times count from the run's start"
            )
        if arrival_ns < before_ns:
            late_s = (before_ns - arrival_ns) / NS_PER_S
            return self.error(line, f"is {late_s:,.6g} s earlier than the row before it", "sort the file by time first")
        if arrival_ns > MOST_S * NS_PER_S:
            return self.error(
                line,
                f"a time of more than {MOST_S:,} s after the start",
                "times are in seconds (Mooncake: milliseconds) from the run's start, not since 1970",
            )
        for word, value, cell in (
            ("input", int(found.input_tokens[i]), found.input_cell(i)),
            ("output", int(found.output_tokens[i]), found.output_cell(i)),
        ):
            if value == tc.BAD:
                what = f"the number of {word} tokens {_shown_cell(cell)} is not a whole number"
                return self.error(line, what, "mend the row, or leave it out")
            if not 1 <= value <= MOST_TOKENS:
                return self.error(
                    line,
                    f"{_shown_cell(cell)} {word} tokens",
                    f"a request has 1 to {MOST_TOKENS:,}; mend or leave it out",
                )
        raise AssertionError(found)

    def _gap(self, arrival_ns: Ints, lines: Ints) -> None:
        gaps = np.diff(arrival_ns, prepend=self.last_ns if self.n else arrival_ns[:1])
        i = int(np.argmax(gaps))
        if gaps[i] > self.longest_ns:
            self.longest_ns, self.longest_line = int(gaps[i]), int(lines[i])
        self.n += len(arrival_ns)
        self.last_ns = int(arrival_ns[-1])

    def _indices(self, optional: dict[str, tc.Cells], lines: Ints) -> list[npt.NDArray[np.int16] | None]:
        if self.names is None:
            return [None, None, None]
        known = {"tenant": self.names.tenants, "region": self.names.regions, "model": self.names.models}
        return [
            self._index(kind, optional[kind], names, lines) if kind in optional else None
            for kind, names in known.items()
        ]

    def _index(self, kind: str, cells: tc.Cells, names: Sequence[str], lines: Ints) -> npt.NDArray[np.int16]:
        """Return each cell's place among `names`, -1 for an empty cell."""
        keys = tc.hashes(cells)
        known = tc.hashes(cells_of([name.encode() for name in names]))
        order = np.argsort(known)
        at = np.minimum(np.searchsorted(known[order], keys), max(len(names) - 1, 0))
        right = (known[order][at] == keys) if len(names) else np.zeros(len(keys), np.bool_)
        unknown = ~right & (keys != 0)
        if unknown.any():
            i = int(np.argmax(unknown))
            mend = f"the fleet file has {', '.join(names[:12]) or 'none'}"
            raise self.error(int(lines[i]), f"unknown {kind} {_shown_cell(cells.cell(i))}", mend)
        if not len(names):
            return np.full(len(keys), -1, np.int16)
        return np.where(keys == 0, -1, order[at]).astype(np.int16)

    def _prefixes(
        self, optional: dict[str, tc.Cells], lines: Ints, prompts: Ints
    ) -> tuple[npt.NDArray[np.uint64] | None, Ints | None]:
        """Return a key for each row's shared prefix, and how many whole blocks it has."""
        if "prefix_key" not in optional:
            return None, None
        keys = tc.hashes(optional["prefix_key"])
        has = np.flatnonzero(keys)
        cells = optional["prefix_tokens"]
        tokens = tc.whole_numbers(tc.Cells(cells.text, cells.start[has], cells.end[has]))
        wrong = (tokens < 0) | (tokens > prompts[has])
        if wrong.any():
            i = int(np.argmax(wrong))
            cell = _shown_cell(cells.cell(int(has[i])))
            mend = f"a prefix has 0 to all {prompts[has[i]]} tokens of its prompt"
            raise self.error(int(lines[has[i]]), f"prefix_tokens {cell}", mend)
        counts = np.zeros(len(keys), np.int64)
        counts[has] = tokens // self.hash_block_tokens
        return keys, counts

    def _traces(
        self,
        arrival_ns: Ints,
        prompts: Ints,
        answers: Ints,
        indices: list[npt.NDArray[np.int16] | None],
        counts: Ints | None,
        keys: npt.NDArray[np.uint64] | None,
        hash_ids: Ints | None,
    ) -> Iterator[Trace]:
        n = len(arrival_ns)
        offsets = np.zeros(n + 1, np.int64)
        if counts is not None:
            np.cumsum(counts, out=offsets[1:])
        at = 0
        while at < n:
            until = max(at + 1, int(np.searchsorted(offsets, offsets[at] + MOST_HASHES, side="right")) - 1)
            ids = _NO_HASHES if hash_ids is None else hash_ids[offsets[at] : offsets[until]]
            if keys is not None and counts is not None:
                ids = prefix_ids(keys[at:until], counts[at:until])
            trace = columns(
                arrival_ns[at:until],
                prompts[at:until],
                answers[at:until],
                hash_counts=None if counts is None else counts[at:until],
                hash_ids=ids,
                hash_block_tokens=self.hash_block_tokens,
                first_id=self.n - n + at,
            )
            tenant, region, model = indices
            if tenant is not None:
                trace = replace(trace, tenant_i=tenant[at:until])
            if region is not None:
                trace = replace(trace, region_i=region[at:until])
            if model is not None:
                trace = replace(trace, model_i=model[at:until])
            yield trace
            at = until


def prefix_ids(keys: npt.NDArray[np.uint64], counts: Ints) -> Ints:
    """Return the block ids of prefixes: block j of an equal key is an equal id."""
    place = np.arange(int(counts.sum()), dtype=np.int64) - np.repeat(np.cumsum(counts) - counts, counts)
    return as_ids(mixed64(np.repeat(keys, counts) + (place.view(np.uint64) + np.uint64(1)) * _GOLDEN))


def chained_ids(ids: Ints, counts: Ints) -> Ints:
    """Return ids that stand for whole prefixes: each depends on its own and on all before it in its request."""
    starts = np.cumsum(counts) - counts
    order = np.argsort(-counts, kind="stable")
    longest_first = counts[order]
    chained = mixed64(ids.view(np.uint64))
    before = np.zeros(len(counts), np.uint64)
    for place in range(int(counts.max(initial=0))):
        n = int(np.searchsorted(-longest_first, -place, side="left"))  # requests with more than `place` blocks
        at = starts[order[:n]] + place
        before[:n] = mixed64(before[:n] ^ chained[at])
        chained[at] = before[:n]
    return as_ids(chained)


def cells_of(texts: Sequence[bytes]) -> tc.Cells:
    """Return texts as a column of cells."""
    ends = np.cumsum(np.array([len(text) for text in texts], np.int64))
    starts = np.concatenate([np.zeros(1, np.int64), ends[:-1]])[: len(texts)]
    return tc.Cells(np.frombuffer(b"".join(texts) or b" ", np.uint8), starts, ends)


def printable(text: str, most: int) -> str:
    """Return the beginning of a text that a user's terminal may show."""
    return "".join(letter if letter.isprintable() else "?" for letter in text[:most])


def _shown_cell(cell: bytes | str) -> str:
    text = cell.decode("utf-8", "replace") if isinstance(cell, bytes) else cell
    return f"`{printable(text, 40)}`" if text else "(empty)"
