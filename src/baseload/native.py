"""The data plane's modules as machine code, where somebody built it (`make native`), and only while it fits the sources.

The sources stay the one truth: mypyc compiles them as they are (`app/native_build.py`), into `_native` beside this file and
outside the import path; one module of pure functions stands in C beside its source, and a test holds it to that. A worker
calls `use` before it imports anything else of the gateway. A manifest holds the digest of every source and of every
library; where one differs, the Python another version, or `BASELOAD_NATIVE=0`, the sources run.
"""

from __future__ import annotations

import json
import os
import sys
import sysconfig
from collections.abc import Sequence
from hashlib import sha256
from importlib.abc import MetaPathFinder
from importlib.machinery import ExtensionFileLoader, ModuleSpec
from importlib.util import spec_from_file_location
from pathlib import Path
from types import ModuleType

PACKAGE = Path(__file__).parent
FOLDER = PACKAGE / "_native"
MODULES = (
    *(
        f"baseload.serve.{name}"
        for name in (
            "bearers", "board", "body", "client", "door", "energy", "gateway", "inbound", "lookups", "marks", "opened",
            "outbox", "pocket", "purse", "relay", "relay_state", "reply", "sse", "turn", "upstream", "waiting",
        )
    ),
    "baseload.policies.eject",
    "baseload.policies.queue",
    "baseload.policies.retry",
)  # fmt: skip
WRITTEN = {  # in C; what it does, and where it is taken: the file of Python beside it
    "baseload.serve.quick_c": "serve/quick.c",
    "baseload.serve.glance_c": "serve/glance.c",
    "baseload.serve.settled_c": "serve/settled.c",
    "baseload.adapters.leaves_c": "adapters/leaves.c",
}
SWITCH = "BASELOAD_NATIVE"
PYTHON = f"{sysconfig.get_config_var('SOABI')}"


def source(module: str) -> Path:
    """Return the source of a module of the package.

    >>> source("baseload.serve.sse").name
    'sse.py'
    """
    return PACKAGE.joinpath(*module.split(".")[1:]).with_suffix(".py")


def digest(path: Path) -> str:
    """Return the SHA-256 of a file."""
    return sha256(path.read_bytes()).hexdigest()


def sources() -> dict[str, str]:
    """Return the digest of each source as it is now, by its module; of what stands in C, by its file."""
    told = {module: digest(source(module)) for module in MODULES}
    for file in WRITTEN.values():
        c = PACKAGE / file
        told |= {file: digest(c), f"{file} in Python": digest(c.with_suffix(".py"))}
    return told


class _Finder(MetaPathFinder):
    """Finds the compiled modules before anybody else finds their sources."""

    def __init__(self, libraries: dict[str, Path]) -> None:
        self.libraries = libraries

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        """Return where a compiled module is, None for all others."""
        library = self.libraries.get(fullname)
        if library is None:
            return None
        return spec_from_file_location(fullname, library, loader=ExtensionFileLoader(fullname, str(library)))


def use(folder: Path = FOLDER, *, written_alone: bool = False) -> str:
    """Let the compiled modules be imported from here on; return '' where they will be, else why they will not.

    `written_alone`: only what stands in C, the sources for all else; for tests whose stand-ins compiled classes refuse.
    """
    if os.environ.get(SWITCH, "1") == "0":
        return f"switched off ({SWITCH}=0)"
    already = [module for module in ((() if written_alone else MODULES) + tuple(WRITTEN)) if module in sys.modules]
    if already:
        return f"{already[0]} was imported before"
    try:
        manifest = json.loads((folder / "manifest.json").read_bytes())
        built, made_for, libraries = manifest["sources"], manifest["python"], manifest["libraries"]
        if made_for != PYTHON:
            return f"built for another Python ({made_for}); `make native` builds it anew"
        if built != sources():
            return "built from other sources; `make native` builds it anew"
        if any(digest(folder / file) != told for _, (file, told) in libraries.items()):
            return "what was built is damaged; `make native` builds it anew"
        found = {
            module: folder / file for module, (file, _) in libraries.items() if module in WRITTEN or not written_alone
        }
    except FileNotFoundError:
        return "not built; `make native` builds it"
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        return f"{folder / 'manifest.json'} cannot be read ({error}); `make native` builds it anew"
    sys.meta_path.insert(0, _Finder(found))
    return ""
