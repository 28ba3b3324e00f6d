"""Folders of something that runs: what stands in them while files come, go and are replaced under the one who looks."""

from __future__ import annotations

import contextlib
import os
import stat
from collections.abc import Iterator
from pathlib import Path


def entries(folder: Path) -> Iterator[Path]:
    """Return what stood below the folder, folders too, when it was listed; it may be gone by now."""
    for base, folders, files in os.walk(folder):
        yield from (Path(base, name) for name in (*folders, *files))


def open_to_others(folder: Path) -> list[str]:
    """Return what below the folder somebody else than its owner may read, write or enter."""
    wrong = []
    for path in entries(folder):
        with contextlib.suppress(FileNotFoundError):
            if path.lstat().st_mode & 0o077:
                wrong.append(str(path))
    return wrong


def contents(folder: Path) -> dict[str, bytes]:
    """Return the bytes of each plain file below the folder, by its path."""
    read = {}
    for path in entries(folder):
        with contextlib.suppress(FileNotFoundError):
            if stat.S_ISREG(path.stat().st_mode):
                read[str(path)] = path.read_bytes()
    return read
