"""What a worker's process loads, and that an operator's own rule decides there too."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

from baseload.serve import tables as t
from tests.serve.fleet import policy, tables

SCRIPT = """
import json, re, sys
from pathlib import Path
from baseload.serve import tables as t
from baseload.serve.rules import prepare
fleet = t.decode(Path(sys.argv[1]).read_bytes())
prepare(fleet, Path(sys.argv[1]).parent)
from baseload.serve.door import Door
door = Door(fleet)
chosen = []
for i in range(20):
    r = door.decide(i * 0.01, tenant_i=0, model_i=0, input_tokens=100, budget_left=1.0, prefix_key=i + 1)
    chosen.append(r)
    door.sent(r, 10.0)
door.check()
heavy = sorted({"numpy", "numba", "duckdb", "starlette", "cryptography"} & set(sys.modules))
status = Path("/proc/self/status")  # not getrusage: that remembers the process it was forked from
peak_mb = int(re.search(r"VmHWM:\\s+(\\d+)", status.read_text())[1]) / 1024 if status.exists() else 0.0
print(json.dumps({"chosen": chosen, "heavy": heavy, "compiled": door.compiled, "peak_mb": peak_mb}))
"""


def worker(folder: Path, fleet: t.Tables) -> Any:
    """Run a worker's door in a process of its own."""
    (folder / "tables.json").write_bytes(t.encode(fleet))
    environment = {k: v for k, v in os.environ.items() if k != "BASELOAD_JIT"}
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT, str(folder / "tables.json")], capture_output=True, text=True, env=environment,
        check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def test_a_worker_of_a_small_fleet_is_light(tmp_path: Path) -> None:
    """Up to 64 replicas a worker decides without NumPy or numba, and this part of it stays far below 80 MB."""
    seen = worker(tmp_path, tables(64, tenants=1))
    assert not seen["compiled"] and seen["heavy"] == []
    assert seen["peak_mb"] < 60.0, seen
    assert seen["chosen"] == list(range(20))


def test_a_worker_of_a_large_fleet_is_compiled(tmp_path: Path) -> None:
    """Above that it loads the compiler, decides alike, and stays below 220 MB."""
    seen = worker(tmp_path, tables(66, tenants=1))
    assert seen["compiled"] and seen["heavy"] == ["numba", "numpy"]
    assert seen["peak_mb"] < 220.0, seen
    assert seen["chosen"] == list(range(20))


def test_an_operators_own_rule_decides_in_the_gateway(tmp_path: Path) -> None:
    """A rule from the operator's file, plain in a small fleet and compiled in a large one, sends to the same replicas."""
    (tmp_path / "mine.py").write_text(
        "from baseload.policies.view import NO_REPLICA\n\n\n"
        "def last(ask, columns, allowed, tunables):\n"
        "    for i in range(len(allowed) - 1, -1, -1):\n"
        "        if allowed[i] and columns.outstanding[i] < 2:\n"
        "            return i\n"
        "    return NO_REPLICA\n",
        encoding="utf-8",
    )
    for replicas in (16, 66):
        seen = worker(tmp_path, tables(replicas, tenants=1, policy=policy(route="mine.py:last")))
        assert seen["compiled"] == (replicas == 66)
        assert seen["chosen"] == [replicas - 1 - i // 2 for i in range(20)]
