"""Marks: what survives kill -9, what a torn write leaves, and whose file is read."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

from hypothesis import given, settings
from hypothesis import strategies as st

from baseload.records import SERVED, UNFINISHED
from baseload.serve import marks as m
from baseload.serve.marks import CELLS, COUNT_CELL, SLOT_BYTES, Marks, check

ROOT = Path(__file__).resolve().parents[2]
IDS = st.integers(1, 2**62)
COUNTS = st.integers(0, 2**32 - 1)


def begin(marks: Marks, request_id: int) -> int:
    """Open a request at 1 nano a prompt token, 2 an answer token."""
    return marks.begin(request_id, 1_790_000_000_000_000_000, (1000, 100, 2000), 50, 3, 1, 2, 4, True)


def count(marks: Marks, slot: int, request_id: int, tokens: int, turn: int) -> None:
    """Write a count as the purse does."""
    marks.delivered(slot * CELLS + COUNT_CELL + turn % 2, tokens, request_id)


def slot_of(marks: Marks, slot: int) -> bytes:
    """Return a slot's bytes."""
    return marks.path.read_bytes()[slot * SLOT_BYTES : (slot + 1) * SLOT_BYTES]


def test_a_slot_says_what_was_written(tmp_path):
    """Opened, routed, counted, and the price that follows: of the answer, and of the prompt once the engine counted it."""
    marks = Marks(tmp_path, 7, 4)
    slot = begin(marks, 99)
    marks.routed(slot, 99, 11)
    for turn, tokens in enumerate((1, 2, 3)):
        count(marks, slot, 99, tokens, turn)
    (mark,) = m.read(marks.path).marks
    assert (mark.request_id, mark.replica_i, mark.output_tokens, mark.input_tokens) == (99, 11, 3, 0)
    assert (mark.price_nano, mark.status, mark.settled) == (6, UNFINISHED, False)
    assert (mark.tables_version, mark.model_i, mark.tenant_i, mark.region_i, mark.streamed) == (3, 1, 2, 4, True)
    marks.prompt(slot, 99, 40, 10)
    assert m.read(marks.path).marks[0].price_nano == (30 * 1000 + 10 * 100 + 3 * 2000) // 1000
    marks.settle(slot, 99, price_nano=77, input_tokens=41, cached_tokens=5, output_tokens=6, status=SERVED)
    (mark,) = m.read(marks.path).marks
    assert (mark.price_nano, mark.input_tokens, mark.cached_tokens, mark.output_tokens) == (77, 41, 5, 6)
    assert (mark.status, mark.settled) == (SERVED, True)
    marks.free(slot)
    assert m.read(marks.path).marks == [] and marks.n_free == 4
    marks.close(remove=True)


@given(request_id=IDS, before=COUNTS, after=COUNTS, cut=st.integers(0, 8))
@settings(max_examples=200)
def test_a_count_torn_at_any_byte_is_the_one_before_or_after_never_another(request_id, before, after, cut):
    """Eight bytes written in part leave the other cell's count, or are whole."""
    blob = bytearray(SLOT_BYTES)
    opened = m.OPENED.pack(request_id, 0, 1, 1, 1, 0, 0, 0, 0, 0, 0)
    blob[:60] = opened + m.SUM.pack(m.zlib.crc32(opened))
    cell = (before | check(before, request_id) << 32).to_bytes(8, "little")
    blob[64:72] = cell
    fresh = (after | check(after, request_id) << 32).to_bytes(8, "little")
    blob[72 : 72 + cut] = fresh[:cut]
    mark = m.read_slot(bytes(blob))
    assert mark is not None
    assert mark.output_tokens in (before, max(before, after))


@given(request_id=IDS, cut=st.integers(0, SLOT_BYTES), noise=st.binary(min_size=SLOT_BYTES, max_size=SLOT_BYTES))
@settings(max_examples=200)
def test_a_slot_torn_at_its_beginning_is_none(request_id, cut, noise):
    """A beginning that is not whole was never forwarded, and is not billed; noise is nothing."""
    opened = m.OPENED.pack(request_id, 5, 1, 1, 1, 0, 0, 0, 0, 0, 0)
    whole = opened + m.SUM.pack(m.zlib.crc32(opened)) + bytes(68)
    torn = whole[:cut] + bytes(SLOT_BYTES - cut)
    mark = m.read_slot(torn)
    assert mark is None or (torn[:60] == whole[:60] and mark.request_id == request_id)
    assert m.read_slot(noise) is None


@given(blob=st.binary(max_size=600))
@settings(max_examples=100)
def test_any_file_can_be_read(blob, tmp_path_factory):
    """Whatever stands in a marks file, reading it ends, and invents nothing."""
    path = tmp_path_factory.mktemp("marks") / "marks-1-2-00000000"
    path.write_bytes(blob)
    assert m.read(path).marks == [] or blob[:8] == b"BLMARKS1"


def test_what_a_killed_process_wrote_is_there_and_its_file_is_free(tmp_path):
    """After kill -9 the last count stands in the file, and the lock is gone; before, it is held."""
    script = (
        "import sys, time; from pathlib import Path; from baseload.serve.marks import *\n"
        "marks = Marks(Path(sys.argv[1]), 3, 8)\n"
        "slot = marks.begin(5, 0, (0, 0, 1000), 1, 1, 0, 0, 0, False)\n"
        "for n in range(1, 1001): marks.delivered(slot * CELLS + COUNT_CELL + n % 2, n, 5)\n"
        "print('ready', flush=True); time.sleep(60)\n"
    )
    env = {**os.environ, "PYTHONPATH": str(ROOT / "src")}
    child = subprocess.Popen([sys.executable, "-c", script, str(tmp_path)], stdout=subprocess.PIPE, env=env)
    assert child.stdout is not None
    try:
        assert child.stdout.readline() == b"ready\n"
        (path,) = m.files(tmp_path)
        assert m.is_held(path) and m.worker_of(path) == 3
    finally:
        child.send_signal(signal.SIGKILL)
        child.wait()
        child.stdout.close()
    assert not m.is_held(path)
    (mark,) = m.read(path).marks
    assert (mark.output_tokens, mark.price_nano) == (1000, 1000)


def test_slots_run_out_with_a_word_and_come_back(tmp_path):
    """With no slot free a request is not begun; nothing is overwritten."""
    marks = Marks(tmp_path, 0, 2)
    slots = [begin(marks, i) for i in (1, 2, 3)]
    assert slots[2] == 0 and len({*slots[:2]}) == 2
    marks.free(slots[0])
    assert begin(marks, 4) == slots[0]
    assert {mark.request_id for mark in m.read(marks.path).marks} == {2, 4}
    marks.close(remove=True)
