"""Read a fleet file: YAML text becomes a frozen Fleet, or one error with every problem's file, line, key and mend.

The text becomes a tree in `tree.py`, the tree is held against the records in `typed.py`; rules between records are
in `check.py`. `--set key=value` changes the tree before it is looked at, so its mistakes are found the same way.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path as FilePath

import msgspec
from msgspec import inspect

from baseload.errors import FleetError, Problem
from baseload.fleet.loaded import Loaded as Loaded
from baseload.fleet.model import Fleet
from baseload.fleet.tree import MAX_BYTES, Node, Path, key_text, parse, shorten
from baseload.fleet.typed import bare, choose, fleet_type, misfits, nearest, unknown_key


def load(path: str | FilePath, overrides: Sequence[str] = ()) -> Loaded:
    """Return the fleet of a file, changed by `overrides` (`key=value`), or raise FleetError."""
    file = FilePath(path)
    return loads(_read(file), file=str(path), base_folder=file.parent, overrides=overrides)


def loads(
    text: str,
    *,
    file: str = "<string>",
    base_folder: FilePath = FilePath("."),
    overrides: Sequence[str] = (),
) -> Loaded:
    """Return the fleet of a text, or raise FleetError with all that is wrong."""
    root = tree_of(text, file=file, overrides=overrides)
    problems = misfits(root)
    if problems:
        raise FleetError(problems)
    try:
        fleet = msgspec.convert(root.plain_value(), Fleet)
    except (msgspec.ValidationError, OverflowError) as error:
        raise FleetError(Problem(file=file, what=str(error), mend="see docs/fleet-file.md")) from None
    digest = hashlib.sha256("\0".join([text, *overrides]).encode("utf-8")).hexdigest()
    return Loaded(
        fleet=fleet,
        path=file,
        text=text,
        overrides=tuple(overrides),
        base_folder=base_folder,
        digest=digest,
        root=root,
    )


def tree_of(text: str, *, file: str, overrides: Sequence[str] = ()) -> Node:
    """Return the tree of a text, changed by overrides; what it says is not looked at yet."""
    root = parse(text.removeprefix("\ufeff"), file=file)
    for override in overrides:
        root = override_tree(root, override)
    return root


def _read(file: FilePath) -> str:
    def fail(what: str, mend: str, line: int | None = None) -> FleetError:
        return FleetError(Problem(file=str(file), line=line, what=what, mend=mend))

    try:
        if not file.exists():
            raise fail("no such file", f"`baseload init {file}` writes one to start from")
        if not file.is_file():
            raise fail("not a regular file", "name a YAML file")
        if file.stat().st_size > MAX_BYTES:
            raise fail(
                f"larger than the {MAX_BYTES / 1e6:.1f} MB that a fleet file may have",
                "keep hourly series in CSV or Parquet files of their own",
            )
        content = file.read_bytes()
    except (OSError, ValueError) as error:  # ValueError: a null byte in the name
        raise fail(f"cannot be read: {error}", "check its name and permissions") from None
    try:
        return content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = content.count(b"\n", 0, error.start) + 1
        raise fail("not UTF-8 text", "save it as UTF-8", line) from None


# ---- --set key=value -------------------------------------------------------------------------------------


def override_tree(root: Node, override: str) -> Node:
    """Return the tree with one `key=value` put in, e.g. `sites.oslo.contracts.0.price_per_mwh=40`.

    A place in a list may also stand in brackets (`contracts[0]`), and a day may be a month, of which it is the first.
    """
    source = f"--set {shorten(override, 200)}"
    key, equals, text = override.partition("=")
    parts = tuple(re.sub(r"\[(-?\d+)\]", r".\1", key.strip()).split("."))
    if not equals or not all(parts):
        raise FleetError(Problem(file=source, what="not of the form key=value", mend="e.g. --set demand.scale=2"))
    if not text.strip():
        raise FleetError(Problem(file=source, what="no value after the `=`", mend="write one, or null"))
    try:
        new = replace_lines(parse(text, file=source))
    except FleetError as error:
        raise FleetError([replace(problem, line=None) for problem in error.problems]) from None
    return _Setter(source, new).put(root, fleet_type(), parts, ())


def replace_lines(node: Node) -> Node:
    """Return the node without line numbers: there is no file they could point into."""
    if isinstance(node.value, dict):
        value: object = {key: replace_lines(child) for key, child in node.value.items()}
    elif isinstance(node.value, list):
        value = [replace_lines(child) for child in node.value]
    else:
        value = node.value
    return Node(value, None, node.file, size=node.size, plain=node.plain)


def _whole_day(node: Node, kind: inspect.Type) -> Node:
    """Return the first day of a month where a date is wanted and a month is given; anything else as it is."""
    plain = bare(kind)
    kinds = plain.types if isinstance(plain, inspect.UnionType) else (plain,)
    dated = any(isinstance(bare(one), inspect.DateType) for one in kinds)
    month = isinstance(node.value, str) and re.fullmatch(r"\d{4}-\d{2}", node.value)
    return replace(node, value=f"{node.value}-01") if dated and month else node


class _Setter:
    """Puts one node at a path; copies what lies above it, because an alias may share it."""

    def __init__(self, source: str, new: Node) -> None:
        self.source = source
        self.new = new

    def put(self, node: Node, kind: inspect.Type, parts: Path, done: Path) -> Node:
        """Return a copy of `node` with the new value below it, `parts` further down."""
        if not parts:
            return _whole_day(self.new, kind)
        kind = choose(kind, None if node.value is None else node)
        if isinstance(kind, inspect.StructType):
            return self._in_record(node, kind, parts, done)
        if isinstance(kind, inspect.DictType):
            return self._in_mapping(node, kind, parts, done)
        if isinstance(kind, inspect.ListType | inspect.TupleType):
            return self._in_list(node, kind, parts, done)
        raise self.fail(done, f"is a value, and has no key `{shorten(key_text(parts))}`", "shorten the key")

    def _in_record(self, node: Node, kind: inspect.StructType, parts: Path, done: Path) -> Node:
        if not isinstance(node.value, dict):
            node = Node({}, None, self.source)
        for field_ in kind.fields:
            if field_.encode_name == parts[0]:
                return self._with(node, field_.encode_name, field_.type, parts[1:], done)
        raise self.fail((*done, parts[0]), "no such key", unknown_key(parts[0], kind))

    def _in_mapping(self, node: Node, kind: inspect.DictType, parts: Path, done: Path) -> Node:
        if not isinstance(node.value, dict):
            node = Node({}, None, self.source)
        for n in range(len(parts), 0, -1):  # names may hold dots: the longest that exists is meant
            name = ".".join(parts[:n])
            if name in node.value:
                return self._with(node, name, kind.value_type, parts[n:], done)
        is_record = isinstance(choose(kind.value_type, None), inspect.StructType)
        if is_record and len(parts) > 1:
            raise self.fail((*done, parts[0]), "no such name in the file", nearest(parts[0], node.value))
        return self._with(node, ".".join(parts), kind.value_type, (), done)

    def _in_list(self, node: Node, kind: inspect.ListType | inspect.TupleType, parts: Path, done: Path) -> Node:
        items = list(node.value) if isinstance(node.value, list) else []
        if not (parts[0].isascii() and parts[0].isdecimal() and len(parts[0]) < 7 and int(parts[0]) < len(items)):
            there = f"it has entries 0 to {len(items) - 1}" if items else "the list is empty"
            raise self.fail((*done, parts[0]), "no such entry", there)
        i = int(parts[0])
        item = (
            kind.item_type if isinstance(kind, inspect.ListType) else kind.item_types[min(i, len(kind.item_types) - 1)]
        )
        items[i] = self.put(items[i], item, parts[1:], (*done, parts[0]))
        return replace(node, value=items)

    def _with(self, node: Node, name: str, kind: inspect.Type, rest: Path, done: Path) -> Node:
        child = node.value.get(name, Node({}, None, self.source))
        value = {**node.value, name: self.put(child, kind, rest, (*done, name))}
        return replace(node, value=value)

    def fail(self, path: Path, what: str, mend: str) -> FleetError:
        """Return the error for a key that cannot be set."""
        return FleetError(Problem(file=self.source, key=shorten(key_text(path), 200), what=what, mend=mend))
