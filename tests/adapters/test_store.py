"""A run on disk: what is promised when everything goes well, and when the process, the disk or the user stops it."""

from __future__ import annotations

import errno
import hashlib
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import msgspec
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from baseload.adapters.series_files import series_files
from baseload.adapters.store import RunReader, RunWriter, disk_sentence, partial_of, state_of
from baseload.errors import RunError
from baseload.fleet.load import loads
from baseload.records import TABLES, dtypes
from tests.report import synthetic

ROOT = Path(__file__).resolve().parents[2]
META = synthetic.meta_of(loads(synthetic.FLEET).fleet, duration_s=60.0)


def some_requests(n: int, first: int = 0) -> dict[str, np.ndarray]:
    """Return n rows of the requests table that differ from one another."""
    rows = {name: np.zeros(n, dtype) for name, dtype in dtypes("requests")}
    rows["request_id"] += np.arange(first, first + n)
    rows["arrival_ns"] += (np.arange(first, first + n) * 7919) % 60_000_000_000
    rows["energy_j"] += np.sqrt(np.arange(first, first + n))
    return rows


def write(folder: Path, n: int = 10, chunk: int = 10, **options: object) -> Path:
    """Write a run of n made-up requests, handed over in chunks."""
    with RunWriter(folder, META, synthetic.FLEET, **options) as writer:  # type: ignore[arg-type]
        for first in range(0, n, chunk):
            writer.append_requests(some_requests(min(chunk, n - first), first))
        writer.write_replicas(synthetic.columns("replicas", [{}]))
        writer.write_sites(synthetic.columns("sites", [{"length_ns": 60_000_000_000, "limit_kw": 1.0}]))
        return writer.finish()


def digests(folder: Path) -> dict[str, str]:
    """Return the SHA-256 of every file of a folder."""
    return {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in sorted(folder.iterdir())}


@settings(max_examples=20)
@given(n=st.integers(0, 300), chunk=st.integers(1, 400), part_rows=st.integers(1, 200))
def test_rows_come_back_as_they_were_written(tmp_path_factory, n, chunk, part_rows):
    """Whatever the chunks and parts, the requests table holds the same rows, in the same order and types."""
    folder = write(tmp_path_factory.mktemp("runs") / "a", n, chunk, part_rows=part_rows)

    with RunReader(folder) as run:
        back = run.columns("SELECT * FROM requests")
    wanted = some_requests(n)
    for column in TABLES["requests"]:
        assert back[column.name].dtype == np.dtype(column.dtype)
        assert np.array_equal(back[column.name], wanted[column.name])


def test_same_records_give_the_same_bytes(tmp_path):
    """A run folder depends on the records alone, not on how they were handed over or when."""
    a = write(tmp_path / "a", 1000, 1000, part_rows=256)
    b = write(tmp_path / "b", 1000, 37, part_rows=256)

    assert digests(a) == digests(b)
    assert len(digests(a)) == 4 + 4


def test_a_complete_run_is_not_written_over(tmp_path):
    """A folder with a complete run is refused unless the user said overwrite, and then swapped whole."""
    folder = write(tmp_path / "a", 10)
    with pytest.raises(RunError, match="holds a complete run.*--overwrite"):
        write(folder, 20)
    write(folder, 20, overwrite=True)

    with RunReader(folder) as run:
        assert run.query("SELECT count(*) FROM requests") == [(20,)]
    assert [path.name for path in tmp_path.iterdir()] == ["a"]


def test_a_folder_that_is_no_run_is_left_alone(tmp_path):
    """Neither a stranger's folder nor a stranger's .partial is written into or deleted, overwrite or not."""
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "thesis.tex").write_text("years of work")
    (tmp_path / "b.partial").mkdir()
    (tmp_path / "b.partial" / "thesis.tex").write_text("years of work")
    with pytest.raises(RunError, match="is no run folder"):
        write(tmp_path / "a", overwrite=True)
    with pytest.raises(RunError, match=r"thesis\.tex"):
        write(tmp_path / "b", overwrite=True)

    assert (tmp_path / "a" / "thesis.tex").exists() and (tmp_path / "b.partial" / "thesis.tex").exists()


def test_an_unfinished_writer_leaves_a_partial_folder(tmp_path):
    """An exception or Ctrl-C leaves .partial with what was gathered; the next run says so and replaces it."""
    folder = tmp_path / "a"
    with (
        pytest.raises(KeyboardInterrupt),
        RunWriter(folder, META, synthetic.FLEET) as writer,
    ):
        writer.append_requests(some_requests(5))
        raise KeyboardInterrupt

    assert state_of(folder) == "partial" and not folder.exists()
    assert (partial_of(folder) / "requests-00000.parquet").exists()
    with pytest.raises(RunError, match=r"a\.partial: this run was interrupted"):
        RunReader(folder)
    with RunWriter(folder, META, synthetic.FLEET) as writer:
        assert writer.said == ["a.partial: left by an interrupted run, and replaced"]


def test_two_writers_do_not_share_a_folder(tmp_path):
    """While one process writes a run, another is told so instead of deleting it."""
    with (
        RunWriter(tmp_path / "a", META, synthetic.FLEET),
        pytest.raises(RunError, match="another run is writing here"),
        RunWriter(tmp_path / "a", META, synthetic.FLEET),
    ):
        pass


WRITE_FOR_EVER = """
import sys
from pathlib import Path
from tests.adapters.test_store import META, some_requests, synthetic
from baseload.adapters.store import RunWriter
with RunWriter(Path(sys.argv[1]), META, synthetic.FLEET, part_rows=1000) as writer:
    for i in range(1_000_000):
        writer.append_requests(some_requests(1000, i * 1000))
"""


def test_kill_leaves_a_partial_folder(tmp_path):
    """A process killed in the middle of writing (SIGKILL) leaves .partial, which the next run replaces."""
    folder = tmp_path / "a"
    process = subprocess.Popen([sys.executable, "-c", WRITE_FOR_EVER, str(folder)], cwd=ROOT)
    deadline = time.monotonic() + 60.0
    while len(list(partial_of(folder).glob("requests-*.parquet"))) < 3:
        assert process.poll() is None and time.monotonic() < deadline
        time.sleep(0.02)
    process.send_signal(signal.SIGKILL)
    process.wait()

    assert state_of(folder) == "partial" and not folder.exists()
    with pytest.raises(RunError, match="was interrupted"):
        RunReader(folder)
    write(folder, 10)
    assert [path.name for path in tmp_path.iterdir()] == ["a"]


WRITE_TOO_MUCH = """
import resource, sys
from pathlib import Path
from tests.adapters.test_store import META, some_requests, synthetic
from baseload.adapters.store import RunWriter
from baseload.errors import RunError
resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, 20_000))
try:
    with RunWriter(Path(sys.argv[1]), META, synthetic.FLEET, part_rows=100_000) as writer:
        writer.append_requests(some_requests(100_000))
except RunError as error:
    print(error)
    sys.exit(2)
"""


def test_a_full_disk_is_said_and_leaves_a_partial_folder(tmp_path):
    """When a file may not grow, the user reads a sentence with the mend, and nothing passes for complete."""
    folder = tmp_path / "a"
    done = subprocess.run(
        [sys.executable, "-c", WRITE_TOO_MUCH, str(folder)], cwd=ROOT, capture_output=True, text=True, check=False
    )  # fmt: skip

    assert done.returncode == 2, done.stderr
    assert "disk is full, or a file may not grow further" in done.stdout and "free space" in done.stdout
    assert state_of(folder) == "partial"


def test_an_error_of_the_disk_is_a_sentence_with_a_mend():
    """What the operating system calls ENOSPC or EROFS, the user reads as what happened and what to do."""
    full = disk_sentence(Path("a.partial"), OSError(errno.ENOSPC, os.strerror(errno.ENOSPC)))
    read_only = disk_sentence(Path("a.partial"), OSError(errno.EROFS, os.strerror(errno.EROFS)))

    assert full.startswith("a.partial: the disk is full") and "free space" in full
    assert "may not be written" in read_only and "choose another --out" in read_only


def test_a_reader_says_what_is_wrong_with_a_folder(tmp_path):
    """Missing, foreign, damaged and other versions' folders are told apart, each with a mend."""
    (tmp_path / "foreign").mkdir()
    (tmp_path / "foreign" / "x").write_text("")
    newer, damaged, cut = (write(tmp_path / name) for name in ("newer", "damaged", "cut"))
    meta = msgspec.json.decode((newer / "meta.json").read_bytes())
    (newer / "meta.json").write_bytes(msgspec.json.encode({**meta, "version": 99}))
    (damaged / "meta.json").write_text('{"version": 1, "records_version": 1, "fleet": 3}')
    (cut / "requests-00000.parquet").write_bytes(b"PAR1")

    for name, words in {
        "nothing": "no such run",
        "foreign": "is no run folder",
        "newer": "another version",
        "damaged": "cannot be read",
        "x.partial": "no such run",
    }.items():
        with pytest.raises(RunError, match=words):
            RunReader(tmp_path / name)
    with pytest.raises(RunError, match="cannot be read"):
        RunReader(cut).query("SELECT count(*) FROM requests")
    (cut / "requests-00000.parquet").unlink()
    with pytest.raises(RunError, match="`requests` is missing"):
        RunReader(cut).query("SELECT count(*) FROM requests")


def test_series_files_travel_with_the_run(tmp_path):
    """A run whose fleet names a series file can be reported after the file is gone."""
    prices = tmp_path / "prices.csv"
    prices.write_text("\n".join(["50.0"] * 8760))
    text = synthetic.FLEET.replace("price_per_mwh: 120", "price_per_mwh: {file: prices.csv}")
    assert series_files(loads(text).fleet) == ["prices.csv"]
    with RunWriter(tmp_path / "a", META, text, files={"prices.csv": prices}) as writer:
        writer.write_replicas(synthetic.columns("replicas", []))
        writer.write_sites(synthetic.columns("sites", []))
        folder = writer.finish()
    prices.unlink()

    with RunReader(folder) as run:
        series = run.fleet.sites["frankfurt"].contracts[0].price_per_mwh
        assert (run.base_folder / series.file).read_text().startswith("50.0")


def test_parameters_are_bound(tmp_path):
    """A parameter is a value, whatever it looks like, and a small table can be joined."""
    with RunReader(write(tmp_path / "a")) as run:
        assert run.query("SELECT ?", ["'; DROP VIEW requests; --"]) == [("'; DROP VIEW requests; --",)]
        run.table("wanted", {"request_id": np.array([3, 4])})
        assert run.query("SELECT count(*) FROM requests JOIN wanted USING (request_id)") == [(2,)]
