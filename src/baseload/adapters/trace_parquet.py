"""Plain traces in Parquet, read a range of rows at a time through DuckDB; a wrong row is named by its number."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from baseload.adapters import trace_cells as tc
from baseload.adapters.trace_rows import Checker, Columns, cells_of, printable
from baseload.adapters.traces import Ints, Trace
from baseload.errors import TraceError
from baseload.units import NS_PER_S

REQUIRED = ("arrival_s", "input_tokens", "output_tokens")
OPTIONAL = ("tenant", "region", "model", "prefix_key", "prefix_tokens")
_ROWS = 262_144


def _connected() -> Any:
    from baseload.adapters.duck import connected

    return connected(autoinstall_known_extensions=False)


def columns_of(path: Path, shown: str, accepted: str) -> list[str]:
    """Return the columns of a Parquet file that a trace may have; the required ones must be there."""
    import duckdb

    if any(letter in str(path) for letter in "*?["):
        raise TraceError(f"{shown}: a Parquet file's name may not hold * ? [; rename it")
    try:
        with _connected() as db:
            names = [str(row[0]) for row in db.execute("DESCRIBE FROM read_parquet(?)", [str(path)]).fetchall()]
    except duckdb.Error as error:
        raise _damaged(shown, error) from None
    missing = [name for name in REQUIRED if name not in names]
    if missing:
        listed = ", ".join(f"`{name[:40]}`" for name in names[:8])
        raise TraceError(f"{shown}: lacks column `{missing[0]}`; it has {listed}; {accepted}")
    if ("prefix_key" in names) != ("prefix_tokens" in names):
        raise TraceError(f"{shown}: prefix_key and prefix_tokens belong together; add the other column")
    return [name for name in (*REQUIRED, *OPTIONAL) if name in names]


def _damaged(shown: str, error: Exception) -> TraceError:
    first = (str(error).strip().splitlines() or [type(error).__name__])[0]
    return TraceError(f"{shown}: cannot be read as Parquet ({printable(first, 200)}); write it again")


def blocks(path: Path, checker: Checker, wanted: Sequence[str]) -> Iterator[Trace]:
    """Yield the rows, a range at a time."""
    import duckdb

    from baseload.adapters.duck import undisturbed

    checker.unit = "row"
    at = 0
    while True:
        try:
            with undisturbed(), _connected() as db:
                found = db.execute(
                    "SELECT COLUMNS(lambda c: list_contains(?, c)) FROM read_parquet(?, file_row_number = true) "
                    "WHERE file_row_number >= ? AND file_row_number < ? ORDER BY file_row_number",
                    [list(wanted), str(path), at, at + _ROWS],
                ).fetchnumpy()
        except (duckdb.Error, RuntimeError, ValueError, OverflowError) as error:
            raise _damaged(checker.shown, error) from None
        n = len(found["arrival_s"])
        if not n:
            break
        yield from checker.accept(_columns(found, at))
        at += n
    checker.finish()


def _columns(found: dict[str, Any], at: int) -> Columns:
    lines = np.arange(at + 1, at + 1 + len(found["arrival_s"]), dtype=np.int64)
    columns = Columns(
        arrival_ns=_nanoseconds(found["arrival_s"]),
        input_tokens=_whole(found["input_tokens"]),
        output_tokens=_whole(found["output_tokens"]),
        arrival_cell=lambda i: _text(found["arrival_s"], i),
        input_cell=lambda i: _text(found["input_tokens"], i),
        output_cell=lambda i: _text(found["output_tokens"], i),
        lines=lines,
    )
    for name in OPTIONAL:
        if name in found:
            n = len(lines)
            columns.optional[name] = cells_of([_text(found[name], i).encode() for i in range(n)])
    return columns


def _text(values: Any, i: int) -> str:
    value = values[i]
    return "" if value is np.ma.masked or value is None else str(value)


def _floats(values: Any) -> npt.NDArray[np.float64]:
    """Return a column as float64, NaN where it is empty or no number."""
    filled = values.filled() if isinstance(values, np.ma.MaskedArray) else np.asarray(values)
    if filled.dtype.kind in "iuf":
        numbers = filled.astype(np.float64)
    else:
        numbers = np.array([_float(value) for value in filled.tolist()], np.float64)
    if isinstance(values, np.ma.MaskedArray):
        numbers = np.where(np.ma.getmaskarray(values), np.nan, numbers)
    return numbers


def _float(value: Any) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float | str):
        return np.nan
    if isinstance(value, str) and (len(value) > 64 or "_" in value):
        return np.nan
    try:
        return float(value)
    except (ValueError, OverflowError):
        return np.nan


def _nanoseconds(values: Any) -> Ints:
    numbers = _floats(values)
    readable = np.isfinite(numbers)
    ns = np.clip(np.where(readable, numbers, 0.0), -4e9, 4e9) * NS_PER_S
    return np.where(readable, np.where(numbers < 0, np.minimum(np.floor(ns), -1), np.rint(ns)).astype(np.int64), tc.BAD)


def _whole(values: Any) -> Ints:
    numbers = _floats(values)
    readable = np.isfinite(numbers) & (np.rint(numbers) == numbers)
    return np.where(readable, np.clip(np.where(readable, numbers, 0.0), -4e18, 4e18).astype(np.int64), tc.BAD)
