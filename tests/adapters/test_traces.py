"""Traces from files: what ships, the formats, bounded memory, and how mistakes are named."""

from __future__ import annotations

import gzip
import json
import subprocess
import sys
from datetime import UTC, datetime
from pathlib import Path

import duckdb
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from baseload.adapters import trace_cells as tc
from baseload.adapters import traces
from baseload.adapters.trace_files import MOONCAKE_BLOCK_TOKENS, SHIPPED, open_trace
from baseload.adapters.traces import Names, Trace, survey
from baseload.errors import TraceError
from tests.fuzz.run import run_target

DATA = Path(traces.__file__).parent / "data"
MOONCAKE = DATA / "mooncake_conversation_first2000.jsonl.gz"
AZURE = "TIMESTAMP,ContextTokens,GeneratedTokens\n"
PLAIN = "arrival_s,input_tokens,output_tokens"


def read(folder: Path, text: str | bytes, name: str = "t.csv", names: Names | None = None) -> Trace:
    """Write a file, and read it as a trace."""
    (folder / name).write_bytes(text.encode() if isinstance(text, str) else text)
    source = open_trace(name, base_folder=folder)
    trace = (source.bound(names) if names else source).whole()
    trace.check()
    return trace


def refused(folder: Path, text: str | bytes, name: str = "t.csv", names: Names | None = None) -> str:
    """Write a file that is no trace; return what is said about it."""
    with pytest.raises(TraceError) as error:
        read(folder, text, name, names)
    return str(error.value)


# ---- facts from outside ------------------------------------------------------------------------------------


def test_the_azure_conversation_trace_is_the_published_one():
    """19,366 requests of mean 1,155 prompt and 211 answer tokens (Splitwise, ISCA 2024, and its repository)."""
    trace = open_trace("azure-conv").whole()
    trace.check()

    assert len(trace) == 19_366
    assert trace.input_tokens.mean() == pytest.approx(1155, abs=0.5)
    assert trace.output_tokens.mean() == pytest.approx(211, abs=0.5)
    assert (trace.input_tokens[:2].tolist(), trace.output_tokens[:2].tolist()) == ([374, 396], [44, 109])
    assert trace.arrival_ns[:2].tolist() == [0, 50_995_169_000 - 46_680_590_000]  # 18:15:46.680590, 18:15:50.995169


def test_the_azure_code_trace_is_the_published_one():
    """8,819 requests of a coding service: long prompts, short answers."""
    trace = open_trace("azure-code").whole()
    trace.check()

    assert len(trace) == 8_819
    assert trace.input_tokens.mean() == pytest.approx(2048, abs=0.5)
    assert trace.output_tokens.mean() == pytest.approx(28, abs=0.5)


@pytest.mark.parametrize("name", sorted(SHIPPED))
def test_what_is_said_about_a_shipped_trace_holds(name: str):
    """Length and duration of a shipped trace are known without reading it, and are right; its licence is named."""
    source = open_trace(name)
    found = survey(source)

    assert (source.n, source.duration_s) == (found.n, pytest.approx(found.duration_s, abs=1e-9))
    assert "CC-BY-4.0" in source.source_note
    assert any(note.startswith("longest gap") for note in source.notes)


def test_mooncake_blocks_are_512_tokens_and_chain():
    """Each prompt of the Mooncake trace has one hash for each 512 tokens begun, and shares whole prefixes only."""
    source = open_trace(MOONCAKE)
    trace = source.whole()
    trace.check()
    counts = np.diff(trace.hash_offsets)
    before: dict[int, int] = {}
    for first, last in zip(trace.hash_offsets[:-1], trace.hash_offsets[1:]):
        ids = trace.hash_ids[first:last].tolist()
        for parent, child in zip([0, *ids], ids):
            assert before.setdefault(child, parent) == parent

    assert (source.hash_block_tokens, MOONCAKE_BLOCK_TOKENS) == (512, 512)
    assert (counts == -(-trace.input_tokens // 512)).all()
    assert len(trace) == 2000
    assert len(np.unique(trace.hash_ids[trace.hash_offsets[:-1]])) < 20  # nearly all begin with one system prompt


def test_mooncake_hits_are_those_of_its_own_ids():
    """Reading keeps what is shared: as many distinct blocks as the file has ids."""
    with gzip.open(MOONCAKE, "rt") as file:
        rows = [json.loads(line) for line in file]
    trace = open_trace(MOONCAKE).whole()

    assert len(np.unique(trace.hash_ids)) == len({one for row in rows for one in row["hash_ids"]})
    assert trace.arrival_ns.tolist() == [row["timestamp"] * 1_000_000 for row in rows]


def test_azure_2024_rows_are_read_as_published(tmp_path: Path):
    """The rows of the 2024 notebook: a time zone, six digits of a second or none."""
    text = AZURE + (
        "2024-05-12 00:00:00+00:00,1452,3\n2024-05-12 00:00:00.001163+00:00,584,3\n2024-05-12 00:00:00.157988+00:00,862,38\n"
    )
    trace = read(tmp_path, text)

    assert trace.arrival_ns.tolist() == [0, 1_163_000, 157_988_000]
    assert trace.output_tokens.tolist() == [3, 3, 38]


def test_burstgpt_failures_are_left_out_and_counted(tmp_path: Path):
    """BurstGPT's README: failed requests have 0 response tokens; they never were work."""
    head = "Timestamp,Model,Request tokens,Response tokens,Total tokens,Log Type\n"
    text = (
        head
        + "5,ChatGPT,472,18,490,Conversation log\n45,ChatGPT,1087,0,1087,API log\n118.5,GPT-4,417,276,693,API log\n"
    )
    trace = read(tmp_path, text)
    source = open_trace("t.csv", base_folder=tmp_path)

    assert trace.arrival_ns.tolist() == [5_000_000_000, 118_500_000_000]
    assert any("1 failed" in note for note in source.notes)
    assert any("Model" in note for note in source.notes)


# ---- properties --------------------------------------------------------------------------------------------


@settings(max_examples=20)
@given(chunk_rows=st.integers(1, 5000), name=st.sampled_from(["azure-code", str(MOONCAKE)]))
def test_chunks_are_cuts_of_the_whole(chunk_rows: int, name: str):
    """However a trace is cut, the pieces joined are the whole, ids count on, and no chunk is too long."""
    source = open_trace(name)
    chunks = list(source.chunks(chunk_rows))
    whole, again = source.whole(), traces.joined(chunks)

    assert all(1 <= len(chunk) <= chunk_rows for chunk in chunks)
    assert [chunk.first_id for chunk in chunks] == np.cumsum([0] + [len(chunk) for chunk in chunks[:-1]]).tolist()
    for column in ("arrival_ns", "input_tokens", "output_tokens", "hash_offsets", "hash_ids"):
        assert np.array_equal(getattr(whole, column), getattr(again, column))


def cells(texts: list[str]) -> tc.Cells:
    """Return texts as a column."""
    ends = np.cumsum([len(text) for text in texts]).astype(np.int64)
    text = np.frombuffer("".join(texts).encode() or b" ", np.uint8)
    return tc.Cells(text, np.concatenate([[0], ends[:-1]]).astype(np.int64), ends)


@given(st.lists(st.decimals(0, 10**9, places=9, allow_nan=False, allow_infinity=False), min_size=1, max_size=8))
def test_times_are_read_exactly(times):
    """A time with up to nine digits of a second becomes that many nanoseconds, not what a float makes of it."""
    texts = [format(time, "f") for time in times] + [str(time.normalize()) for time in times]

    assert tc.seconds(cells(texts)).tolist() == [int(time * 10**9) for time in times] * 2


@given(st.lists(st.datetimes(datetime(1970, 1, 1), datetime(2199, 1, 1)), min_size=1))
def test_timestamps_are_read_as_python_reads_them(moments):
    """A timestamp in ISO form, with or without fraction and zone, is the instant that Python's datetime says."""
    texts = [m.isoformat(sep) + zone for m in moments for sep in " T" for zone in ("", "Z", "+02:00")]
    wanted = [
        (round(m.replace(tzinfo=UTC).timestamp() // 1) - hours * 3600) * 10**9 + m.microsecond * 1000
        for m in moments
        for _ in " T"
        for hours in (0, 0, 2)
    ]

    assert tc.timestamps(cells(texts)).tolist() == wanted


def test_a_parquet_file_is_the_same_trace_as_its_csv(tmp_path: Path):
    """The same rows in CSV, gzipped CSV and Parquet are the same requests, names and prefixes included."""
    rows = "".join(
        f"{i * 0.25},{100 + i},{5 + i},{'ab'[i % 2]},{('x', '')[i % 2]},{64 * (1 - i % 2)}\n" for i in range(50)
    )
    text = PLAIN + ",tenant,prefix_key,prefix_tokens\n" + rows
    names = Names(("b", "a"), (), ())
    plain = read(tmp_path, text, names=names)
    zipped = read(tmp_path, gzip.compress(text.encode()), "t.csv.gz", names)
    duckdb.sql(f"COPY (FROM read_csv('{tmp_path}/t.csv')) TO '{tmp_path}/t.parquet'")
    parquet = open_trace("t.parquet", base_folder=tmp_path).bound(names).whole()

    assert plain.tenant_i[:2].tolist() == [1, 0]
    assert np.diff(plain.hash_offsets)[:2].tolist() == [4, 0]  # 64 tokens are four blocks of 16
    for other in (zipped, parquet):
        for column in Trace.__slots__:
            assert np.array_equal(getattr(plain, column), getattr(other, column)), column


def test_an_equal_prefix_key_is_an_equal_prefix(tmp_path: Path):
    """Requests with one prefix_key share blocks as far as both prefixes reach, and no others."""
    trace = read(tmp_path, PLAIN + ",prefix_key,prefix_tokens\n0,200,5,a,64\n1,200,5,a,32\n2,200,5,b,64\n3,9,5,,\n")
    rows = np.split(trace.hash_ids, trace.hash_offsets[1:-1])

    assert [len(row) for row in rows] == [4, 2, 4, 0]
    assert rows[0][:2].tolist() == rows[1].tolist()
    assert not set(rows[0].tolist()) & set(rows[2].tolist())


@pytest.mark.slow
def test_a_long_file_is_read_in_bounded_memory(tmp_path: Path):
    """Three million rows pass through in less than 200 MB of memory more than an empty reader."""
    row = "".join(f"{{0}}.{i:03d},{100 + i},{10 + i}\n" for i in range(1000))
    with (tmp_path / "long.csv").open("w") as file:
        file.write(PLAIN + "\n")
        file.writelines(row.replace("{0}", str(second)) for second in range(3000))
    program = (
        "import resource, sys\n"
        "from pathlib import Path\n"
        "from baseload.adapters.trace_files import open_trace\n"
        "peak = lambda: resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024\n"
        "empty = peak()\n"
        "n = sum(len(chunk) for chunk in open_trace(sys.argv[1]).chunks())\n"
        "print(n, peak() - empty)\n"
    )
    said = subprocess.run(
        [sys.executable, "-c", program, str(tmp_path / "long.csv")], capture_output=True, text=True, check=True
    )
    n, megabytes = said.stdout.split()

    assert int(n) == 3_000_000
    assert float(megabytes) < 200


# ---- mistakes are named --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("rows", "line", "words"),
    [
        ("0,5,5\n2,5,5\n1,5,5\n", 4, "earlier than the row before"),
        ("-0.5,5,5\n", 2, "negative time"),
        ("0,0,5\n", 2, "`0` input tokens"),
        ("0,5,5\n1,5,0\n", 3, "`0` output tokens"),
        ("0,10000001,5\n", 2, "`10000001` input tokens"),
        ("0,5,1e30\n", 2, "`1e30` output tokens"),
        ("0,many,5\n", 2, "`many` is not a whole number"),
        ("0,5,5.5\n", 2, "`5.5` is not a whole number"),
        ("0,,5\n", 2, "(empty) is not a whole number"),
        ("nan,5,5\n", 2, "the time `nan` cannot be read"),
        ("0,5,5\ninf,5,5\n", 3, "the time `inf` cannot be read"),
        ("0,5,5\n1,5\n", 3, "2 cells where the header has 3 columns"),
        ("\n\n0,5,5\n\n0,5,5,5\n", 6, "4 cells"),
        ('0,"5,5\n', 2, "quotes that do not close"),
        ("1700000000,5,5\n", 2, "not since 1970"),
    ],
)
def test_a_wrong_row_is_named_by_file_and_line(tmp_path: Path, rows: str, line: int, words: str):
    """Whatever is wrong in a row, the error says file, line, what, and how to mend it."""
    said = refused(tmp_path, f"{PLAIN}\n{rows}")

    assert said.startswith(f"t.csv:{line}: ")
    assert words in said
    assert "; " in said


def test_the_line_is_right_far_into_a_file(tmp_path: Path):
    """A mistake after hundreds of thousands of rows is named by its own line, in a CSV and in a gzipped one."""
    rows = [f"{i},5,5" for i in range(400_000)]
    rows[390_000] = "0,5,5"
    text = "\n".join([PLAIN, *rows]).encode()

    for name, content in (("t.csv", text), ("t.gz", gzip.compress(text, 1))):
        (tmp_path / name).write_bytes(content)
        with pytest.raises(TraceError, match=rf"^{name}:390002: is 389,999 s earlier"):
            open_trace(name, base_folder=tmp_path).whole()


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"", "t.csv: the file is empty"),
        (b"\n\n", "t.csv: the file is empty"),
        (PLAIN.encode(), "t.csv: holds no request"),
        (b"a,b\n1,2\n", "t.csv:1: unknown format with columns `a`, `b`; accepted are: Azure CSV"),
        (b"arrival_s,input_tokens\n1,2\n", "t.csv:1: as plain CSV it lacks column `output_tokens`"),
        (b"arrival_s,input_tokens,output_tokens,arrival_s\n", "t.csv:1: column `arrival_s` stands there twice"),
        (b"arrival_s,input_tokens,output_tokens,prefix_key\n", "t.csv:1: prefix_key and prefix_tokens belong together"),
        (bytes(range(256)) * 40, "t.csv:1: is not a text table"),
        (b"PAR1" + bytes(200), "t.csv: cannot be read as Parquet"),
        (gzip.compress(AZURE.encode() * 5000, mtime=0)[:60], "t.csv:1: the gzip file is damaged or cut short"),
        (b'{"timestamp": 0, "input_length": 5}\n', "t.csv:1: is no request of a Mooncake trace"),
        (b'{"timestamp":0,"input_length":5,"output_length":1,"hash_ids":[1,2]}', "t.csv:1: 2 hash_ids for 5 input tokens"),
        (b'{"timestamp":5,"input_length":5,"output_length":1}\n{"timestamp":4,"input_length":5,"output_length":1}',
         "t.csv:2: is 0.001 s earlier"),
    ],
)  # fmt: skip
def test_a_wrong_file_is_named(tmp_path: Path, content: bytes, words: str):
    """A file that is no trace is refused in one line that says what was found and what is accepted."""
    assert refused(tmp_path, content).startswith(words)


def test_a_missing_file_is_named(tmp_path: Path):
    """A name that is neither a file nor a shipped trace is refused, and the shipped ones are offered."""
    with pytest.raises(TraceError, match=r"azure-konv: cannot be read .*azure-conv, azure-code"):
        open_trace("azure-konv", base_folder=tmp_path)


@pytest.mark.parametrize(("kind", "column"), [("tenant", 0), ("region", 1), ("model", 2)])
def test_an_unknown_name_is_named_by_file_and_line(tmp_path: Path, kind: str, column: int):
    """A tenant, region or model that the fleet file does not have is refused; the ones it has are listed."""
    row = ["a", "n", "m"]
    row[column] = "oslo"
    said = refused(tmp_path, f"{PLAIN},tenant,region,model\n0,5,5,a,n,m\n1,5,5,{','.join(row)}\n",
                   names=Names(("a", "b"), ("n",), ("m",)))  # fmt: skip

    assert said.startswith(f"t.csv:3: unknown {kind} `oslo`; the fleet file has")


def test_a_gap_is_fine_and_is_said(tmp_path: Path):
    """A trace may have gaps; the longest is a note with its line."""
    (tmp_path / "t.csv").write_text(f"{PLAIN}\n0,5,5\n7200,5,5\n7201,5,5\n")
    source = open_trace("t.csv", base_folder=tmp_path)

    assert source.n == 3
    assert "longest gap 7,200.0 s, before line 3" in source.notes


@pytest.mark.slow
def test_a_damaged_trace_is_an_error_or_a_trace():
    """1,000 damaged traces give TraceError, or rows that a run can use; never another exception."""
    said: list[str] = []

    findings = run_target("trace", first_seed=0, count=1000, say=said.append)

    assert findings == 0, "\n".join(said)
    assert "valid" in said[-1] and "error" in said[-1]
