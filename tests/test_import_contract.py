"""What may be imported by whom, and when: the contract of pyproject.toml, and the lightness of `--help`.

The contract itself is held by import-linter; here it is run, so that `make test` alone sees a breach too.
"""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
HEAVY = {"numpy", "numba", "llvmlite", "duckdb", "jinja2", "scipy", "pandas"}


def modules_after(code: str) -> set[str]:
    """Return the packages a fresh interpreter has loaded once it has run `code`."""
    program = f"import sys\n{code}\nprint('LOADED', *{{name.split('.')[0] for name in sys.modules}})"
    answer = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True, cwd=ROOT)
    return set(answer.stdout.splitlines()[-1].removeprefix("LOADED ").split())


def test_the_rooms_import_downwards_only():
    """import-linter finds every contract of pyproject.toml kept."""
    answer = subprocess.run(
        [Path(sys.executable).parent / "lint-imports", "--no-cache"],
        capture_output=True, text=True, check=False, cwd=ROOT,
    )  # fmt: skip

    assert answer.returncode == 0, answer.stdout


@pytest.mark.parametrize("option", ["--help", "--version"])
def test_help_loads_nothing_heavy(option: str):
    """Asking for help pays for neither arrays, compiler nor database, whatever the machine."""
    loaded = modules_after(
        f"import runpy\nsys.argv = ['baseload', {option!r}]\n"
        "try:\n    runpy.run_module('baseload', run_name='__main__')\n"
        "except SystemExit as stop:\n    assert not stop.code, stop.code"
    )

    assert "baseload" in loaded
    assert loaded & HEAVY == set()


def test_declaring_a_fleet_loads_no_arrays():
    """The records of the fleet file can be used without numpy and numba, as the live side will want."""
    loaded = modules_after("import baseload.fleet.model")

    assert loaded & HEAVY == set()
