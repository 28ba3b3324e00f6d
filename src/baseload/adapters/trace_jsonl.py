"""Mooncake JSONL: a JSON object a line with times in milliseconds and the prompt's 512-token blocks by hash."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import chain
from typing import Annotated

import msgspec
import numpy as np

from baseload.adapters import trace_cells as tc
from baseload.adapters.trace_rows import Checker, Columns, chained_ids, printable
from baseload.adapters.traces import MOST_TOKENS, Ints, Trace
from baseload.errors import TraceError

_BLOCK_ROWS = 32_768
_Whole = Annotated[int, msgspec.Meta(ge=-(2**53), le=2**53)]


class _Row(msgspec.Struct, gc=False):
    timestamp: Annotated[float, msgspec.Meta(ge=-1e15, le=1e15)]  # ms
    input_length: _Whole
    output_length: _Whole
    hash_ids: list[Annotated[int, msgspec.Meta(ge=-(2**63), le=2**63 - 1)]] = []


def blocks(line_blocks: Iterator[tuple[int, bytes]], checker: Checker) -> Iterator[Trace]:
    """Yield the rows of the lines."""
    decode = msgspec.json.Decoder(_Row).decode
    for first_line, block in line_blocks:
        found: list[_Row] = []
        lines: list[int] = []
        for i, line in enumerate(block.removeprefix(b"\xef\xbb\xbf").split(b"\n")):
            if not line.strip():
                continue
            try:
                found.append(decode(line))
            except (msgspec.MsgspecError, ValueError, RecursionError) as error:
                raise _line_error(checker, first_line + i, error) from None
            lines.append(first_line + i)
            if len(found) >= _BLOCK_ROWS:
                yield from checker.accept(_columns(found, np.array(lines, np.int64), checker))
                found, lines = [], []
        if found:
            yield from checker.accept(_columns(found, np.array(lines, np.int64), checker))
    checker.finish()


def _line_error(checker: Checker, line: int, error: Exception) -> TraceError:
    wanted = "a line is {timestamp, input_length, output_length, hash_ids} in numbers"
    return checker.error(line, f"is no request of a Mooncake trace ({printable(str(error), 160)})", wanted)


def _columns(found: list[_Row], lines: Ints, checker: Checker) -> Columns:
    n = len(found)
    ms = np.fromiter((row.timestamp for row in found), np.float64, n)
    beyond = np.abs(ms) > 1e12
    arrival_ns = np.where(beyond, 0.0, np.rint(ms * 1e6)).astype(np.int64)
    arrival_ns[beyond] = np.where(ms[beyond] > 0, tc.BEYOND, -tc.BEYOND)
    counts = np.fromiter((len(row.hash_ids) for row in found), np.int64, n)
    prompts = np.fromiter((row.input_length for row in found), np.int64, n)
    too_many = (counts > -(-prompts // checker.hash_block_tokens)) & (prompts >= 1) & (prompts <= MOST_TOKENS)
    if too_many.any():
        i = int(np.argmax(too_many))
        what = f"{counts[i]} hash_ids for {prompts[i]} input tokens"
        raise checker.error(int(lines[i]), what, f"a hash stands for {checker.hash_block_tokens} tokens of the prompt")
    ids = np.fromiter(chain.from_iterable(row.hash_ids for row in found), np.int64, int(counts.sum()))
    return Columns(
        arrival_ns=arrival_ns,
        input_tokens=prompts,
        output_tokens=np.fromiter((row.output_length for row in found), np.int64, n),
        arrival_cell=lambda i: str(found[i].timestamp),
        input_cell=lambda i: str(found[i].input_length),
        output_cell=lambda i: str(found[i].output_length),
        lines=lines,
        hash_counts=counts,
        hash_ids=chained_ids(ids, counts),
    )
