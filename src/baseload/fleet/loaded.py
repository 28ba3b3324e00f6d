"""A fleet that was read: the records, and the text that they come from. Also as bytes, for a process that need not read again.

Reading is `load.py`; what reads YAML is imported here only when a line has to be named.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from datetime import date
from pathlib import Path as FilePath
from typing import TYPE_CHECKING

import msgspec

from baseload.errors import Problem
from baseload.fleet.model import Fleet

if TYPE_CHECKING:
    from baseload.fleet.tree import Node, Path


@dataclass(frozen=True, slots=True, kw_only=True)
class Loaded:
    """A fleet with the text it came from, so that later errors can name the line."""

    fleet: Fleet
    path: str  # as the user wrote it
    text: str
    overrides: tuple[str, ...]
    base_folder: FilePath  # what files named in the fleet file are relative to
    digest: str  # SHA-256 of the text and the overrides
    root: Node | None = field(repr=False, compare=False, default=None)  # None: read again when a line is asked for

    def problem(self, path: Path, what: str, mend: str = "") -> Problem:
        """Return a Problem at a key's line."""
        from baseload.fleet import load, tree

        root = self.root
        if root is None:
            root = load.tree_of(self.text, file=self.path, overrides=self.overrides)
        file, line = tree.locate(root, path)
        return Problem(file=file, line=line, key=tree.key_text(path), what=what, mend=mend)


class _Packed(msgspec.Struct, frozen=True, kw_only=True):
    """A fleet that was read and found right on a day."""

    day: date
    path: str
    text: str
    overrides: tuple[str, ...]
    base_folder: str
    digest: str
    fleet: Fleet


def pack(loaded: Loaded, day: date) -> bytes:
    """Return a fleet that was checked for `day` as bytes."""
    return msgspec.msgpack.encode(
        _Packed(
            day=day, path=loaded.path, text=loaded.text, overrides=loaded.overrides,
            base_folder=str(loaded.base_folder), digest=loaded.digest, fleet=loaded.fleet,
        )
    )  # fmt: skip


def unpack(blob: bytes, *, day: date, path: str, overrides: tuple[str, ...], text: str | None = None) -> Loaded | None:
    """Return the fleet of such bytes; None where they are of another day, file or text, or no such bytes."""
    try:
        found = msgspec.msgpack.decode(blob, type=_Packed)
    except (msgspec.DecodeError, ValueError):
        return None
    if (found.day, found.path, found.overrides) != (day, path, overrides) or text not in (None, found.text):
        return None
    return Loaded(
        fleet=found.fleet, path=found.path, text=found.text, overrides=found.overrides,
        base_folder=FilePath(found.base_folder), digest=found.digest,
    )  # fmt: skip
