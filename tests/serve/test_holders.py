"""What is not done again where nothing changed, and is done again where something did: listing a folder, syncing marks."""

from __future__ import annotations

import os
import time
from pathlib import Path

import pytest

from baseload.serve import holders
from baseload.serve.holders import Holder, MarksFiles
from baseload.serve.marks import Marks


def test_a_mark_written_after_a_sync_is_synced(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """However soon after: the file's time moves at the first write behind a sync, or is not relied upon."""
    monkeypatch.setattr(holders, "SYNC_ANYWAY_S", 1e9)
    marks = Marks(tmp_path, 0, 64)
    holder = Holder(1, 0, os.getpid(), marks.path)
    synced: list[int] = []
    real = os.fdatasync
    monkeypatch.setattr(os, "fdatasync", lambda handle: (synced.append(handle), real(handle)))
    for pause_s in (0.0, 0.0, 0.001, 0.004, 0.06, 0.0, 0.06):
        marks.begin(7, 1, (1, 1, 1), 5, 1, 0, 0, 0, False)
        before = len(synced)
        holder.sync()
        assert len(synced) == before + 1
        time.sleep(pause_s)
    time.sleep(0.06)
    holder.sync()
    before = len(synced)
    for _ in range(3):
        holder.sync()
    assert len(synced) == before, "nothing was written, and it was synced"
    marks.begin(8, 1, (1, 1, 1), 5, 1, 0, 0, 0, False)
    holder.sync()
    assert len(synced) == before + 1
    os.close(holder.handle)
    marks.close(remove=True)


def test_a_file_that_comes_or_goes_is_seen_at_once(tmp_path: Path):
    """However soon after another one."""
    folder = MarksFiles(tmp_path)
    for pause_s in (0.0, 0.0, 0.001, 0.06, 0.0):
        assert folder.now() == []
        path = tmp_path / "marks-0-1-00000000"
        path.touch()
        assert folder.now() == [path] == folder.now()
        time.sleep(pause_s)
        path.unlink()
