"""The compiled data plane is used where it fits the sources to the byte, and nowhere else."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from baseload import native

LOOK = """
import sys
from pathlib import Path
from baseload import native
why = native.use(Path(sys.argv[1]))
import baseload.serve.sse as sse
print(why + "|" + str(sse.__file__) + "|" + str(sse.usage_end(b'{"usage":{"a":1}}')))
"""


def look(folder: Path, **environment: str) -> list[str]:
    """Return, from a process of its own: why the sources run, where a module came from, and what it answers."""
    import os

    done = subprocess.run(
        [sys.executable, "-c", LOOK, str(folder)], capture_output=True, text=True, check=True,
        env={**os.environ, "BASELOAD_NATIVE": "1", **environment},
    )  # fmt: skip
    return done.stdout.strip().split("|")


def manifest(folder: Path, **changed: Any) -> Path:
    """Write a manifest that fits, but for what is changed; return its folder."""
    library = folder / "one.so"
    library.write_bytes(b"no library")
    content = {
        "python": native.PYTHON, "sources": native.sources(),
        "libraries": {native.MODULES[0]: ["one.so", native.digest(library)]}, **changed,
    }  # fmt: skip
    (folder / "manifest.json").write_text(json.dumps(content))
    return folder


@pytest.mark.parametrize(
    ("changed", "words"),
    [
        ({"python": "cpython-27"}, "built for another Python (cpython-27)"),
        ({"sources": {"baseload.serve.sse": "0" * 64}}, "built from other sources"),
        ({"libraries": {"baseload.serve.sse": ["one.so", "0" * 64]}}, "what was built is damaged"),
        ({"libraries": 3}, "cannot be read"),
    ],
)
def test_what_does_not_fit_is_not_used(tmp_path: Path, changed: dict[str, Any], words: str) -> None:
    """Another Python, other sources, a damaged library, a manifest that is none: the sources run, and it is said why."""
    why, file, answer = look(manifest(tmp_path, **changed))
    assert words in why and "make native" in why
    assert file.endswith("sse.py") and answer == "15"


def test_what_was_never_built_is_said_so(tmp_path: Path) -> None:
    """Without a build nothing is different but a word."""
    assert look(tmp_path)[0] == "not built; `make native` builds it"


def test_a_switch_turns_it_off(tmp_path: Path) -> None:
    """BASELOAD_NATIVE=0 runs the sources, whatever was built."""
    assert look(manifest(tmp_path), BASELOAD_NATIVE="0")[0] == "switched off (BASELOAD_NATIVE=0)"


def test_what_was_built_is_used() -> None:
    """Where `make native` was run on these sources, a process that asks for it gets machine code, and the same answers."""
    why, file, answer = look(native.FOLDER)
    assert answer == "15"
    assert file.endswith(".py") if why else file.endswith("baseload.serve.sse.so")


def test_every_compiled_module_is_one_of_ours() -> None:
    """The list names modules that are there, once each."""
    assert len(set(native.MODULES)) == len(native.MODULES)
    assert all(native.source(module).is_file() for module in native.MODULES)
