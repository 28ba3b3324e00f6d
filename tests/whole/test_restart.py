"""After a crash of the whole gateway: what was made of the fleet file is used as it lies, and put right where it must be."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import msgspec

from baseload.app import owner_made
from baseload.serve import tables as t
from tests.chaos.stack import Gateway, MockEngine, fleet_text


def price(state: Path) -> int:
    """Return what workers believe that acme pays for a prompt token."""
    found = t.decode((state / "run" / "tables.json").read_bytes())
    return next(row.input_pico for row in found.tenants if row.name == "acme")


def until(true: Callable[[], bool], gateway: Gateway) -> None:
    """Wait until something holds."""
    end_s = time.monotonic() + 20.0
    while not true():
        assert time.monotonic() < end_s, gateway.log.read_text()
        time.sleep(0.05)


def change(made: Path, **changes: object) -> None:
    """Let what lies there say something else of acme."""
    found = msgspec.msgpack.decode(made.read_bytes(), type=owner_made.Made)
    rows = [msgspec.structs.replace(row, **changes) if row.name == "acme" else row for row in found.tables.tenants]
    tables = msgspec.structs.replace(found.tables, tenants=rows)
    made.write_bytes(msgspec.msgpack.encode(msgspec.structs.replace(found, tables=tables)))


def test_what_was_made_before_a_crash_is_used_and_put_right(tmp_path: Path) -> None:
    """Killed whole, it comes back on what lies there; where the twin says otherwise, or the file changed, that holds soon."""
    engine = MockEngine(tmp_path / "engine.truth").start()
    fleet, state = tmp_path / "fleet.yaml", tmp_path / "state"
    state.mkdir(mode=0o700)
    fleet.write_text(fleet_text([engine.url], [], workers=1))
    gateway = Gateway(fleet, state)
    made = state / "run" / owner_made.NAME
    try:
        gateway.start()
        gateway.key("acme")
        until(made.exists, gateway)
        right = price(state)

        gateway.kill9()
        gateway.start()
        assert any("--after-a-crash" in line for line in gateway.pids.values())
        assert price(state) == right and "reload" not in gateway.log.read_text()

        until(lambda: "board" in os.listdir(state / "run"), gateway)
        gateway.kill9()
        change(made, input_pico=7)
        gateway.start()
        until(lambda: "fleet file reloaded" in gateway.log.read_text(), gateway)
        until(lambda: price(state) == right, gateway)

        gateway.kill9()
        fleet.write_text(fleet.read_text().replace("input_per_mtok: 0.5", "input_per_mtok: 5"))
        gateway.start()
        assert price(state) == 10 * right, "a file that changed is read, not what lies there"
    finally:
        gateway.stop()
        engine.kill()
    assert not owner_made.after_a_crash(state / "run"), "an orderly end leaves nothing to come back to"
    assert gateway.baseload("verify", str(state / "ledger.db")).returncode == 0


def test_after_a_crash_nothing_heavy_is_imported_first() -> None:
    """Until requests are served the owner needs neither NumPy nor the YAML reader, nor does its supervisor."""
    words = (
        "import importlib, sys; from baseload.app import owner_main, serving;"
        "[importlib.import_module(name) for name in owner_main.EARLY];"
        "print([name for name in ('numpy', 'ruamel.yaml', 'numba', 'duckdb', 'starlette') if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", words], capture_output=True, text=True, check=True, timeout=60)
    assert done.stdout.strip() == "[]", done.stdout
