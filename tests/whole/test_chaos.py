"""A short storm over a whole gateway: `make chaos` is the long one."""

from __future__ import annotations

import asyncio
import importlib.util
import time
from pathlib import Path

import pytest

from tests.chaos import leaks, run

pytestmark = pytest.mark.skipif(
    importlib.util.find_spec("baseload.serve.worker") is None, reason="not run: the gateway is not built"
)


def stormed(words: list[str], folder: Path) -> run.Storm:
    """Run a storm in which nothing goes wrong that should not."""
    began_s = time.monotonic()
    storm, wrong = asyncio.run(run.storm_of(run.parse(words), folder, say=lambda line: None))
    run.tell(storm, wrong, time.monotonic() - began_s)
    assert not wrong, f"repeat: python -m tests.chaos.run {' '.join(words)}\n" + "\n".join(wrong[:20])
    return storm


def test_nothing_is_lost_in_a_short_storm(tmp_path: Path) -> None:
    """Kills of gateway, owner, worker and engines, a full disk, a partition, faulty engines: the books balance afterwards."""
    storm = stormed(["--seed", "11", "--requests", "300", "--users", "24"], tmp_path / "storm")
    assert storm.done["engine"] and storm.done["gateway"] and storm.done["owner"] and storm.done["worker"]


def test_a_gateway_that_outlives_a_storm_holds_no_more_than_before(tmp_path: Path) -> None:
    """Files and memory are given back, and no prompt and no key is in anything that the gateway wrote or shows."""
    storm = stormed(["--seed", "12", "--requests", "400", "--users", "24", "--spare"], tmp_path / "storm")
    assert not storm.done["gateway"] and storm.done["engine"] and set(storm.after) == {"owner", "worker", "parent"}
    assert len(storm.pages) == len(leaks.PAGES)
    assert b'"chaos"' in storm.pages["/api/snapshot"], "the pages were seen with the rights of an admin"
