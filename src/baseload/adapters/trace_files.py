"""Traces from files: which format it is, its rows in bounded memory, and every mistake named by file and line.

Azure 2023 and 2024 CSV, BurstGPT CSV, plain CSV or Parquet, Mooncake JSONL; any text format may be gzipped. Cells become
numbers in `trace_cells.py`; what a Trace is stands in `traces.py`. Rows are never sorted or mended here: a wrong row is
an error that names it.
"""

from __future__ import annotations

import gzip
import zlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import IO, cast

import numpy as np

from baseload.adapters import trace_cells as tc
from baseload.adapters.trace_rows import Checker, Columns
from baseload.adapters.traces import CHUNK_ROWS, Ints, Names, Trace, TraceSource
from baseload.errors import TraceError
from baseload.units import NS_PER_S

BLOCK_BYTES = 4_194_304
LONGEST_LINE_BYTES = 16_777_216
PLAIN_BLOCK_TOKENS = 16  # a plain file's prefixes are hashed in vLLM's default KV blocks
MOONCAKE_BLOCK_TOKENS = 512
_FOLDER = Path(__file__).parent / "data"
_AZURE = "Azure LLM inference trace 2023-11-16 ({}), Microsoft, CC-BY-4.0"
SHIPPED = {
    # name: (file, source, requests, seconds to the last one)
    "azure-conv": ("azure_llm_2023_conv.csv.gz", _AZURE.format("conversation"), 19_366, 3501.721937),
    "azure-code": ("azure_llm_2023_code.csv.gz", _AZURE.format("code"), 8_819, 3435.948056),
}
ACCEPTED = (
    "accepted are: Azure CSV (TIMESTAMP,ContextTokens,GeneratedTokens), BurstGPT CSV (Timestamp,...,Request tokens,"
    "Response tokens,...), Mooncake JSONL (timestamp, input_length, output_length, hash_ids), and plain CSV or Parquet "
    "(arrival_s,input_tokens,output_tokens[,tenant,region,model,prefix_key,prefix_tokens]); text may be gzipped"
)


@dataclass(frozen=True, slots=True)
class Layout:
    """A text table's format: which columns it must have, what they mean to us, how its times are written."""

    name: str
    arrival: str
    input: str
    output: str
    time: Callable[[tc.Cells], Ints]
    relative: bool  # times count from the run's start; otherwise from the first row
    failures: bool = False  # rows with 0 output tokens are failed requests, and are left out


LAYOUTS = (
    Layout("Azure CSV", "TIMESTAMP", "ContextTokens", "GeneratedTokens", tc.timestamps, relative=False),
    Layout("BurstGPT CSV", "Timestamp", "Request tokens", "Response tokens", tc.seconds, relative=True, failures=True),
    Layout("plain CSV", "arrival_s", "input_tokens", "output_tokens", tc.seconds, relative=True),
)
OPTIONAL = ("tenant", "region", "model", "prefix_key", "prefix_tokens")


def open_trace(
    name_or_path: str | Path, *, base_folder: Path | None = None, prefix_block_tokens: int = PLAIN_BLOCK_TOKENS
) -> TraceSource:
    """Return the trace of that name (azure-conv, azure-code) or file, relative to `base_folder`.

    The first rows are read at once, so that most mistakes show here; a short file is then known in full (n, duration_s).
    """
    shipped = SHIPPED.get(str(name_or_path))
    if shipped is not None:
        file, note, n, duration_s = shipped
        source = _source(_FOLDER / file, str(name_or_path), note, prefix_block_tokens)
        return _with_length(source, n, duration_s)
    path = Path(name_or_path) if base_folder is None else base_folder / name_or_path
    try:
        source = _source(path, str(name_or_path), f"file {name_or_path}", prefix_block_tokens)
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or str(error)
        raise TraceError(
            f"{name_or_path}: cannot be read ({reason}); name a file, or one of {', '.join(SHIPPED)}"
        ) from None
    n, last_ns = 0, 0
    for block in source.blocks():
        n += len(block)
        if len(block):
            last_ns = int(block.arrival_ns[-1])
        if n > CHUNK_ROWS:
            return source
    return _with_length(source, n, last_ns / NS_PER_S)


def _with_length(source: TraceSource, n: int, duration_s: float) -> TraceSource:
    def bind(names: Names) -> TraceSource:
        assert source.bind is not None
        return _with_length(source.bind(names), n, duration_s)

    return replace(source, n=n, n_about=float(n), duration_s=duration_s, bind=None if source.bind is None else bind)


def _source(path: Path, shown: str, note: str, prefix_block_tokens: int, names: Names | None = None) -> TraceSource:
    """Return the source of a file whose format is told from its first bytes."""
    notes: list[str] = []
    hash_tokens, named = 0, False
    with path.open("rb") as file:
        magic = file.read(4)
    if magic == b"PAR1":
        from baseload.adapters import trace_parquet

        found = trace_parquet.columns_of(path, shown, ACCEPTED)
        named = bool(set(found) & set(OPTIONAL[:3]))
        hash_tokens = prefix_block_tokens if "prefix_key" in found else 0

        def blocks() -> Iterator[Trace]:
            return trace_parquet.blocks(path, Checker(shown, notes, names, hash_tokens), found)
    else:
        first = _first_line(path, shown)
        if first.lstrip().startswith(b"{"):
            from baseload.adapters import trace_jsonl

            hash_tokens = MOONCAKE_BLOCK_TOKENS

            def blocks() -> Iterator[Trace]:
                return trace_jsonl.blocks(_line_blocks(path, shown), Checker(shown, notes, names, hash_tokens))
        else:
            layout, header = _layout(first, shown)
            if layout.name == "plain CSV":
                named = bool(set(header) & set(OPTIONAL[:3]))
                hash_tokens = prefix_block_tokens if "prefix_key" in header else 0
            begin = _header_notes(layout, header)

            def blocks() -> Iterator[Trace]:
                checker = Checker(shown, notes, names, hash_tokens, begin=begin)
                return _table(_line_blocks(path, shown), checker, layout, header)

    return TraceSource(
        name=shown,
        source_note=note,
        blocks=blocks,
        hash_block_tokens=hash_tokens,
        bind=(lambda fleet: _source(path, shown, note, prefix_block_tokens, fleet)) if named else None,
        said=(notes,),
    )


# ---- bytes and lines -----------------------------------------------------------------------------------------


def _opened(path: Path) -> IO[bytes]:
    with path.open("rb") as file:
        magic = file.read(2)
    if magic == b"\x1f\x8b":
        return cast("IO[bytes]", gzip.open(path, "rb"))
    return path.open("rb")


def _line_blocks(path: Path, shown: str) -> Iterator[tuple[int, bytes]]:
    """Yield (number of the first line, whole lines), a few MB at a time; the last line may lack its newline."""
    line, rest = 1, b""
    try:
        with _opened(path) as file:
            while True:
                more = file.read(BLOCK_BYTES)
                cut = more.rfind(b"\n") + 1
                if more and not cut:
                    rest += more
                    if len(rest) > LONGEST_LINE_BYTES:
                        raise TraceError(f"{shown}:{line}: a line of more than 16 MB is no row of a trace; {ACCEPTED}")
                    continue
                block, rest = rest + more[:cut], more[cut:]
                if not more:
                    block += rest
                if block:
                    yield line, block
                    line += block.count(b"\n")
                if not more:
                    return
    except (EOFError, zlib.error, gzip.BadGzipFile) as error:
        raise TraceError(
            f"{shown}:{line}: the gzip file is damaged or cut short after this line ({error}); fetch it again"
        ) from None
    except OSError as error:
        raise TraceError(f"{shown}:{line}: cannot be read on ({error.strerror or error}); copy it again") from None


def _first_line(path: Path, shown: str) -> bytes:
    for _, block in _line_blocks(path, shown):
        for line in block.split(b"\n"):
            text = line.removeprefix(b"\xef\xbb\xbf").removesuffix(b"\r")
            if text:
                return text
    raise TraceError(f"{shown}: the file is empty; {ACCEPTED}")


# ---- text tables -----------------------------------------------------------------------------------------------


def _layout(first: bytes, shown: str) -> tuple[Layout, list[str]]:
    """Return the format that the header tells, and its columns."""
    cells = _quoted(first, shown, 1) if b'"' in first else first.split(b",")
    try:
        header = [cell.decode("utf-8").strip() for cell in cells]
    except UnicodeDecodeError:
        header = []
    if not header or not all(name.isprintable() for name in header):
        raise TraceError(f"{shown}:1: is not a text table; {ACCEPTED}")
    for layout in LAYOUTS:
        if {layout.arrival, layout.input, layout.output} <= set(header):
            twice = [name for name in dict.fromkeys(header) if name and header.count(name) > 1]
            if twice:
                raise TraceError(f"{shown}:1: column `{twice[0][:40]}` stands there twice; keep one")
            if ("prefix_key" in header) != ("prefix_tokens" in header) and layout.name == "plain CSV":
                raise TraceError(f"{shown}:1: prefix_key and prefix_tokens belong together; add the other column")
            return layout, header
    listed = ", ".join(f"`{name[:40]}`" for name in header[:8]) + (", ..." if len(header) > 8 else "")
    near = max(LAYOUTS, key=lambda one: len({one.arrival, one.input, one.output} & set(header)))
    missing = [name for name in (near.arrival, near.input, near.output) if name not in header]
    if len(missing) < 3:
        raise TraceError(f"{shown}:1: as {near.name} it lacks column `{missing[0]}`; it has {listed}; {ACCEPTED}")
    raise TraceError(f"{shown}:1: unknown format with columns {listed}; {ACCEPTED}")


def _header_notes(layout: Layout, header: Sequence[str]) -> tuple[str, ...]:
    used = {layout.arrival, layout.input, layout.output}
    if layout.name == "plain CSV":
        used |= set(OPTIONAL)
    unused = [name[:40] for name in header if name and name not in used]
    return (f"columns not used: {', '.join(unused[:12])}",) if unused else ()


def _table(
    line_blocks: Iterator[tuple[int, bytes]], checker: Checker, layout: Layout, header: list[str]
) -> Iterator[Trace]:
    """Yield the rows of a text table."""
    headed = False
    for first_line, block in line_blocks:
        text = np.frombuffer(block, np.uint8)
        start, end, lines = _lines(text, first_line)
        if not headed and len(start):  # the header is the first line that is not blank
            start, end, lines, headed = start[1:], end[1:], lines[1:], True
        if not len(start):
            continue
        wanted = {name: i for i, name in enumerate(header)}
        if b'"' in block:
            cells = _cells_quoted(block, start, end, lines, checker.shown, len(header))
        else:
            cells = _cells_plain(text, start, end, lines, checker.shown, len(header))
        found = Columns(
            arrival_ns=layout.time(cells[wanted[layout.arrival]]),
            input_tokens=tc.whole_numbers(cells[wanted[layout.input]]),
            output_tokens=tc.whole_numbers(cells[wanted[layout.output]]),
            arrival_cell=cells[wanted[layout.arrival]].cell,
            input_cell=cells[wanted[layout.input]].cell,
            output_cell=cells[wanted[layout.output]].cell,
            lines=lines,
            relative=layout.relative,
            failures=layout.failures,
        )
        if layout.name == "plain CSV":
            for name in OPTIONAL:
                if name in wanted:
                    found.optional[name] = cells[wanted[name]]
        yield from checker.accept(found)
    checker.finish()


def _lines(text: tc.Bytes, first_line: int) -> tuple[Ints, Ints, Ints]:
    """Return start, end and number of the lines that are not blank."""
    newline = np.flatnonzero(text == 10)
    if not len(text) or text[-1] != 10:
        newline = np.append(newline, len(text))
    start = np.concatenate([np.zeros(1, np.int64), newline[:-1] + 1])
    end = newline - ((newline > start) & (text.take(newline - 1, mode="clip") == 13))
    if first_line == 1 and text[:3].tobytes() == b"\xef\xbb\xbf":
        start[0] += 3
    full = end > start
    lines = first_line + np.arange(len(start), dtype=np.int64)
    return (start, end, lines) if full.all() else (start[full], end[full], lines[full])


def _cells_plain(text: tc.Bytes, start: Ints, end: Ints, lines: Ints, shown: str, width: int) -> list[tc.Cells]:
    comma = np.flatnonzero(text == 44)
    comma = comma[np.searchsorted(comma, start[0]) : np.searchsorted(comma, end[-1])]
    many = np.searchsorted(comma, end) - np.searchsorted(comma, start)
    wrong = many != width - 1
    if wrong.any():
        i = int(np.argmax(wrong))
        raise _width_error(shown, int(lines[i]), int(many[i]) + 1, width)
    grid = comma.reshape(len(start), width - 1)
    left = [start] + [grid[:, k] + 1 for k in range(width - 1)]
    right = [grid[:, k] for k in range(width - 1)] + [end]
    return [tc.Cells(text, a, b) for a, b in zip(left, right)]


def _cells_quoted(block: bytes, start: Ints, end: Ints, lines: Ints, shown: str, width: int) -> list[tc.Cells]:
    """As _cells_plain for lines with quotes, by the csv module, a line at a time."""
    pieces: list[bytes] = []
    for a, b, line in zip(start.tolist(), end.tolist(), lines.tolist()):
        row = _quoted(block[a:b], shown, line)
        if len(row) != width:
            raise _width_error(shown, line, len(row), width)
        pieces += row
    ends = np.cumsum(np.fromiter(map(len, pieces), np.int64, len(pieces)))
    starts = np.concatenate([np.zeros(1, np.int64), ends[:-1]])
    text = np.frombuffer(b"".join(pieces) or b" ", np.uint8)
    return [tc.Cells(text, starts[k::width], ends[k::width]) for k in range(width)]


def _quoted(line: bytes, shown: str, number: int) -> list[bytes]:
    import csv

    try:
        return [cell.encode("latin-1") for cell in next(csv.reader([line.decode("latin-1")], strict=True))]
    except (csv.Error, StopIteration):
        raise TraceError(f"{shown}:{number}: quotes that do not close in this line; a row is one line") from None


def _width_error(shown: str, line: int, found: int, width: int) -> TraceError:
    return TraceError(
        f"{shown}:{line}: {found} cell{'s' if found != 1 else ''} where the header has {width} columns; "
        "mend the row, or leave it out"
    )
