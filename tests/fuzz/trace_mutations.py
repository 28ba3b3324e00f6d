"""Damaged traces: each gives TraceError with the file's name, or rows that a run can use; never another exception.

Good files of each format are cut, scribbled on, sorted wrongly, filled with hostile cells, and gzipped or not.
"""

from __future__ import annotations

import gzip
import json
import random
import tempfile
from collections.abc import Callable
from functools import cache
from pathlib import Path

import numpy as np

from baseload.adapters import traces
from baseload.adapters.trace_files import open_trace
from baseload.adapters.trace_transforms import limited, repeated, scaled
from baseload.errors import TraceError

HOSTILE = [
    "", " ", "0", "-1", "-0", "1", "1.5", "1155.0", "nan", "inf", "-inf", "1e3", "1e308", "1e-308", "1e999", "1e-999",
    "9" * 30, "9" * 5000, "0x10", "1_000", "1,5", "+5", "abc", "é", "\u0661", "\x00", '"', '""', '"5"', "'5'", ";", "\t5",
    "10000000", "10000001", "2147483648", "9223372036854775808", "1700000000", "1000000000", "1000000001",
    "2023-11-16 18:15:46.6805900", "2023-02-30 00:00:00", "2023-11-16 24:00:00", "2024-05-12 00:00:00+00:00",
    "2024-05-12 00:00:00.001163+00:00", "2024-05-12T00:00:00Z", "9999-12-31 23:59:59", "0001-01-01 00:00:00",
    "2023-11-16 18:15:46.", "2023-11-16 18:15:46.12345678901", "2023-11-16 18:15:46-99:99", "NaT", "null", "None",
    "true", "t0", "t9", "somewhere", "m", "a" * 300, "💥", "[]", "{}", "[1,2]", "[-1]", '["a"]',
]  # fmt: skip
NAMES = traces.Names(("t0", "t1"), ("north", "south"), ("m",))


@cache
def bases() -> tuple[bytes, ...]:
    """Return one good file of each format."""
    n = 24
    azure = "TIMESTAMP,ContextTokens,GeneratedTokens\r\n" + "".join(
        f"2023-11-16 18:15:{i % 60:02d}.{i:07d},{100 + i},{10 + i}\r\n" for i in range(n)
    )
    azure24 = "TIMESTAMP,ContextTokens,GeneratedTokens\n" + "".join(
        f"2024-05-12 00:00:{i:02d}{'.001163' if i % 3 else ''}+00:00,{100 + i},{10 + i}\n" for i in range(n)
    )
    burst = "Timestamp,Model,Request tokens,Response tokens,Total tokens,Log Type\n" + "".join(
        f"{5 * i},ChatGPT,{400 + i},{i % 5},{400 + i + i % 5},Conversation log\n" for i in range(n)
    )
    plain = "arrival_s,input_tokens,output_tokens,tenant,region,model,prefix_key,prefix_tokens\n" + "".join(
        f"{i * 0.25},{100 + i},{10 + i},t{i % 2},{('north', 'south', '')[i % 3]},m,"
        f"{('', 'chat', 'code')[i % 3]},{(0, 64, 80)[i % 3]}\n"
        for i in range(n)
    )
    mooncake = "".join(
        json.dumps({"timestamp": 500 * i, "input_length": 1500, "output_length": 9, "hash_ids": [0, i // 3, 100 + i]})
        + "\n"
        for i in range(n)
    )
    return tuple(text.encode() for text in (azure, azure24, burst, plain, mooncake))


@cache
def parquet() -> bytes:
    """Return a good Parquet file."""
    import duckdb

    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "good.parquet"
        with duckdb.connect() as db:
            db.execute(
                "COPY (SELECT i * 0.25 AS arrival_s, 100 + i AS input_tokens, 10 + i AS output_tokens, 't0' AS tenant "
                "FROM range(40) t(i)) TO '" + str(path) + "' (FORMAT parquet)"
            )
        return path.read_bytes()


def mutated(dice: random.Random) -> bytes:
    """Return a damaged file."""
    if dice.random() < 0.1:
        return scribbled(dice, parquet())
    base = dice.choice(bases())
    lines = base.split(b"\n")
    for _ in range(dice.choice([0, 1, 1, 1, 2, 4])):
        lines = changed(dice, lines)
    content = b"\n".join(lines)
    if dice.random() < 0.25:
        content = scribbled(dice, content)
    if dice.random() < 0.15:
        content = gzip.compress(content, 1)
        if dice.random() < 0.6:
            content = scribbled(dice, content)
    return content


def changed(dice: random.Random, lines: list[bytes]) -> list[bytes]:
    """Return lines with one of them, or one cell, changed."""
    i, j = dice.randrange(len(lines)), dice.randrange(len(lines))
    lines = list(lines)
    kind = dice.randrange(8)
    if kind == 0:
        lines[i], lines[j] = lines[j], lines[i]
    elif kind == 1:
        del lines[i]
    elif kind == 2:
        lines.insert(
            i, dice.choice([b"", b" ", b"\r", b",,", lines[j], lines[0], b"#", b"{}", b"\x00" * 9, b"\xef\xbb\xbf"])
        )
    elif kind == 3:
        lines = lines[:i]
    elif lines[i].startswith(b"{"):
        try:
            row = json.loads(lines[i])
        except ValueError:  # what an earlier change made of it
            row = {}
        if isinstance(row, dict) and row:
            cell: object = dice.choice([*HOSTILE, -1, 0, 1.5, 10**400, 2**63, None, True, [], [0] * 9, {"a": 1}, 1e308])
            row[dice.choice([*row, "extra"])] = cell
            if dice.random() < 0.2:
                row.pop(dice.choice(list(row)))
            lines[i] = json.dumps(row).encode()
    else:
        cells = lines[i].split(b",")
        cells[dice.randrange(len(cells))] = dice.choice(HOSTILE).encode()
        lines[i] = b",".join(cells)
    return lines or [b""]


def scribbled(dice: random.Random, content: bytes) -> bytes:
    """Return bytes cut, doubled, or overwritten here and there."""
    for _ in range(dice.choice([1, 1, 2, 8])):
        at, to = sorted(dice.randrange(len(content) + 1) for _ in range(2))
        kind = dice.randrange(5)
        if kind == 0:
            content = content[:at]
        elif kind == 1:
            content = content[:at] + content[at:to] + content[at:]
        elif kind == 2:
            content = content[:at] + dice.randbytes(dice.choice([1, 1, 4, 64])) + content[at + 1 :]
        elif kind == 3:
            content = content[:at] + content[to:]
        else:
            content = content[:at] + dice.choice(HOSTILE).encode() + content[at:]
    return content


def check(seed: int) -> str:
    """Feed one damaged trace; return what came of it."""
    dice = random.Random(seed)
    name = dice.choice(["trace.csv", "trace.csv.gz", "trace.jsonl", "trace.parquet", "a trace"])
    with tempfile.TemporaryDirectory() as folder:
        (Path(folder) / name).write_bytes(mutated(dice))
        try:
            source = open_trace(name, base_folder=Path(folder))
            if dice.random() < 0.5:
                source = source.bound(NAMES)
            source = dice.choice(
                [lambda s: s, lambda s: scaled(s, 0.3), lambda s: limited(s, 7), lambda s: repeated(s, 2)]
            )(source)
            chunks = list(source.chunks(dice.choice([1, 5, 1000])))
        except TraceError as error:
            said = str(error)
            assert name in said and ";" in said and said.isprintable() and len(said) < 1200, said
            return "error"
    whole = traces.joined(chunks)
    whole.check()
    assert len(whole) >= 1
    assert [chunk.first_id for chunk in chunks] == np.cumsum([0] + [len(chunk) for chunk in chunks])[:-1].tolist()
    assert all("nan" not in note for note in source.notes if note.startswith("longest gap"))
    return "valid"


def targets() -> dict[str, Callable[[int], str]]:
    """Return what can be fuzzed here, by name."""
    return {"trace": check}
