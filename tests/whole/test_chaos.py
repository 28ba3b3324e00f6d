"""A short storm over a whole gateway: `make chaos` is the long one."""

from __future__ import annotations

import asyncio
import importlib.util
import time
from pathlib import Path

import pytest

from tests.chaos import run


@pytest.mark.skipif(
    importlib.util.find_spec("baseload.serve.worker") is None, reason="not run: the gateway is not built"
)
def test_nothing_is_lost_in_a_short_storm(tmp_path: Path) -> None:
    """Kills of gateway, owner, worker and engines, a full disk, a partition, faulty engines: the books balance afterwards."""
    options = run.parse(["--seed", "11", "--requests", "300", "--users", "24"])
    began_s = time.monotonic()
    storm, wrong = asyncio.run(run.storm_of(options, tmp_path / "storm", say=lambda line: None))
    run.tell(storm, wrong, time.monotonic() - began_s)
    assert not wrong, "repeat: python -m tests.chaos.run --seed 11 --requests 300 --users 24\n" + "\n".join(wrong[:20])
    assert storm.done["engine"] and storm.done["gateway"] and storm.done["owner"] and storm.done["worker"]
