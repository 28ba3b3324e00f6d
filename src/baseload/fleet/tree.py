"""YAML text as a tree that knows its lines: what `load.py` checks and `check.py` points into.

Reads YAML 1.2 with the core types alone: `NO` and `on` are texts, dates stay texts until a key wants a date. Built from
the parser's events, so that a bomb (nesting, aliases, size) is refused before it is unfolded. What the values mean is
`load.py`.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from math import inf, isfinite
from typing import Any

from ruamel.yaml import YAML
from ruamel.yaml.error import MarkedYAMLError, YAMLError
from ruamel.yaml.events import (
    AliasEvent,
    DocumentStartEvent,
    Event,
    MappingEndEvent,
    MappingStartEvent,
    ScalarEvent,
    SequenceEndEvent,
    SequenceStartEvent,
)

from baseload.errors import FleetError, Problem

MAX_BYTES = 8 * 1024 * 1024
MAX_DEPTH = 24  # the fleet file needs 7
MAX_NODES = 250_000  # after aliases are unfolded; a thousand sites need about 60,000
MAX_ALIASES = 10_000
MAX_TEXT = 4096  # characters in one value
MAX_DIGITS = 40

Scalar = None | bool | int | float | str
Path = tuple[str, ...]

_NULL = {"", "~", "null", "Null", "NULL"}
_BOOL = {
    "true": True,
    "True": True,
    "TRUE": True,
    "false": False,
    "False": False,
    "FALSE": False,
}
_INT = re.compile(r"[-+]?[0-9]+")
_HEX = re.compile(r"0x[0-9a-fA-F]+|0o[0-7]+")
_FLOAT = re.compile(r"[-+]?(\.[0-9]+|[0-9]+(\.[0-9]*)?)([eE][-+]?[0-9]+)?")
_NUMBER = re.compile(rf"{_INT.pattern}|{_HEX.pattern}|{_FLOAT.pattern}|[-+]?\.(inf|Inf|INF)|\.(nan|NaN|NAN)")


@dataclass(slots=True, eq=False)
class Node:
    """One value of the file: a scalar, a list of nodes or a mapping of key to node; and where it stands."""

    value: Any  # Scalar | list[Node] | dict[str, Node]
    line: int | None  # from 1; None where it came with --set
    file: str
    key_lines: dict[str, int] = field(default_factory=dict)
    size: int = 1  # nodes below and including this one, aliases unfolded
    plain: bool = True  # a scalar without quotes

    def plain_value(self) -> Any:
        """Return dicts, lists and scalars without lines."""
        if isinstance(self.value, dict):
            return {key: node.plain_value() for key, node in self.value.items()}
        if isinstance(self.value, list):
            return [node.plain_value() for node in self.value]
        return self.value


def key_text(path: Path) -> str:
    """Return a path as it is written after --set and in errors.

    >>> key_text(("sites", "oslo", "contracts", "0"))
    'sites.oslo.contracts.0'
    """
    return ".".join(path)


def locate(root: Node, path: Path) -> tuple[str, int | None]:
    """Return file and line of a key; of the nearest record around it where the key itself is absent."""
    node, file, line = root, root.file, root.line
    for part in path:
        if isinstance(node.value, dict) and part in node.value:
            own = node.value[part]
            line = node.key_lines.get(part, own.line) if own.file == node.file else own.line
        elif isinstance(node.value, list) and part.isdecimal() and int(part) < len(node.value):
            own = node.value[int(part)]
            line = own.line
        else:
            break
        node, file = own, own.file
    return file, line


def parse(text: str, *, file: str) -> Node:
    """Return the tree of one YAML document, or raise FleetError that names file and line."""
    n_bytes = len(text.encode("utf-8", errors="surrogatepass"))
    if n_bytes > MAX_BYTES:
        raise FleetError(
            Problem(
                file=file,
                what=f"{n_bytes / 1e6:.1f} MB, more than the {MAX_BYTES / 1e6:.1f} MB that a fleet file may have",
                mend="keep hourly series in CSV or Parquet files of their own",
            )
        )
    builder = _Builder(file)
    try:
        for event in YAML(typ="safe", pure=True).parse(text):
            builder.take(event)
    except MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        line = None if mark is None else mark.line + 1
        what = f"not valid YAML: {error.problem or error.context}"
        raise FleetError(Problem(file=file, line=line, what=what, mend=_YAML_MEND)) from None
    except YAMLError as error:
        what = str(error).splitlines()[0] if str(error) else "not YAML"
        raise FleetError(Problem(file=file, what=f"not valid YAML: {what}", mend=_YAML_MEND)) from None
    except (ValueError, OverflowError, LookupError, TypeError, AttributeError, AssertionError) as error:
        # The parser trips over a few malformed escapes and directives instead of reporting them.
        raise FleetError(
            Problem(file=file, line=builder.line, what=f"not valid YAML ({type(error).__name__})", mend=_YAML_MEND)
        ) from None
    return builder.result()


_YAML_MEND = "look at indentation, quotes, brackets and colons there"


class _Builder:
    """Takes the parser's events one by one and grows the tree."""

    def __init__(self, file: str) -> None:
        self.file = file
        self.line = 1
        self.n_documents = 0
        self.n_nodes = 0
        self.n_aliases = 0
        self.root: Node | None = None
        self.stack: list[tuple[Node, str | None, int]] = []  # open collection, its anchor, its line
        self.keys: list[tuple[str, int] | None] = []  # the key that waits for its value, for each open collection
        self.anchors: dict[str, Node] = {}
        self.open_anchors: set[str] = set()

    def take(self, event: Event) -> None:
        """Take one event."""
        if event.start_mark is not None:
            self.line = event.start_mark.line + 1
        if isinstance(event, DocumentStartEvent):
            self.n_documents += 1
            if self.n_documents > 1:
                self.fail("a second document", "keep one document in the file: remove the `---`")
        elif isinstance(event, AliasEvent):
            self.alias(str(event.anchor))
        elif isinstance(event, ScalarEvent):
            self.refuse_tag(event)
            self.count(1)
            plain = event.style in (None, "")
            node = Node(self.scalar(event.value, plain=plain), self.line, self.file, plain=plain)
            self.place(node, event.anchor, text=event.value)
        elif isinstance(event, MappingStartEvent | SequenceStartEvent):
            self.refuse_tag(event)
            self.count(1)
            if len(self.stack) >= MAX_DEPTH:
                self.fail(f"more than {MAX_DEPTH} levels deep", "a fleet file needs at most 7")
            if self.stack and isinstance(self.stack[-1][0].value, dict) and self.keys[-1] is None:
                self.fail("a list or a mapping as a key", "keys are names")
            empty: Any = {} if isinstance(event, MappingStartEvent) else []
            self.stack.append((Node(empty, self.line, self.file), event.anchor, self.line))
            self.keys.append(None)
            if event.anchor:
                self.open_anchors.add(event.anchor)
        elif isinstance(event, MappingEndEvent | SequenceEndEvent):
            node, anchor, _ = self.stack.pop()
            self.keys.pop()
            self.open_anchors.discard(anchor or "")
            self.place(node, anchor)

    def result(self) -> Node:
        """Return the finished tree."""
        if self.root is None:
            raise FleetError(
                Problem(
                    file=self.file,
                    line=1,
                    what="the file is empty",
                    mend="`baseload init FILE` writes a start",
                )
            )
        return self.root

    def place(self, node: Node, anchor: str | None, *, text: str | None = None) -> None:
        """Put a finished node where it belongs."""
        if anchor:
            self.anchors[anchor] = node
        if not self.stack:
            self.root = node
            return
        parent = self.stack[-1][0]
        if isinstance(parent.value, list):
            parent.value.append(node)
            parent.size += node.size
        elif self.keys[-1] is None:
            self.keys[-1] = (self.key(node, parent, text), self.line)
        else:
            name, line = self.keys[-1]
            self.keys[-1] = None
            parent.value[name] = node
            parent.key_lines[name] = line
            parent.size += node.size
        if parent.size > MAX_NODES:
            self.fail(f"more than {MAX_NODES:,} values once its aliases are unfolded", "write fewer aliases")

    def key(self, node: Node, parent: Node, text: str | None) -> str:
        """Return the text of a key, which must be a scalar that is not there yet."""
        if isinstance(node.value, dict | list):
            self.fail("a list or a mapping as a key", "keys are names")
        name = text if text is not None else str(node.value)
        if name == "<<":
            self.fail(
                "merge key `<<` is not part of YAML 1.2",
                "write the keys out, or use an alias for a whole value",
            )
        if name in parent.value:
            first = parent.key_lines[name]
            self.fail(f"key `{shorten(name)}` stands twice, first in line {first}", "keep one of them")
        return name

    def alias(self, anchor: str) -> None:
        """Put the node that an alias stands for."""
        self.n_aliases += 1
        if anchor in self.open_anchors:
            self.fail(f"alias `*{shorten(anchor)}` stands inside what it names", "a value cannot contain itself")
        if anchor not in self.anchors:
            self.fail(f"alias `*{shorten(anchor)}` has no anchor `&{shorten(anchor)}` before it", "write the value")
        if self.n_aliases > MAX_ALIASES:
            self.fail(f"more than {MAX_ALIASES:,} aliases", "write the values")
        node = self.anchors[anchor]
        text = str(node.value) if not isinstance(node.value, dict | list) else None
        self.place(node, None, text=text)

    def count(self, n: int) -> None:
        """Count nodes as they come, so that a huge file stops early."""
        self.n_nodes += n
        if self.n_nodes > MAX_NODES:
            self.fail(f"more than {MAX_NODES:,} values", "keep hourly series in files of their own")

    def refuse_tag(self, event: Any) -> None:
        """Refuse `!tag`: the keys alone say what a value is."""
        if event.tag is not None and str(event.tag) not in ("None", ""):
            self.fail(f"tag `{shorten(str(event.tag))}`", "remove it: the key says what a value is")

    def scalar(self, text: str, *, plain: bool) -> Scalar:
        """Return the value of a scalar by the core schema of YAML 1.2."""
        if len(text) > MAX_TEXT:
            self.fail(f"a value of {len(text):,} characters", f"{MAX_TEXT:,} are allowed")
        if not text.isprintable():
            self.fail(
                f"control characters or line breaks in `{shorten(text)}`",
                "write it on one line, in plain text",
            )
        if not plain:
            return text
        if text in _NULL:
            return None
        if text in _BOOL:
            return _BOOL[text]
        return self.number(text) if _NUMBER.fullmatch(text) else text

    def number(self, text: str) -> int | float:
        """Return a number that can be computed with."""
        if len(text) > MAX_DIGITS:
            self.fail(f"a number of {len(text)} digits", "write a number that can be true")
        if _INT.fullmatch(text):
            return int(text)
        if _HEX.fullmatch(text):
            return int(text, 0)
        value = float(text) if _FLOAT.fullmatch(text) else inf
        if not isfinite(value):
            self.fail(f"{text} is not a number that can be used", "write a finite number, or leave the key out")
        return value

    def fail(self, what: str, mend: str) -> None:
        """Raise the error of the current line."""
        raise FleetError(Problem(file=self.file, line=self.line, what=what, mend=mend))


def shorten(text: str, limit: int = 60) -> str:
    """Return the text on one line, cut and without control characters, for use in a message.

    >>> shorten("a\\nb")
    'a b'
    """
    shown = "".join(char if char.isprintable() else " " for char in text)
    return shown if len(shown) <= limit else shown[: limit - 1] + "…"


def walk(node: Node, path: Path = ()) -> Iterator[tuple[Path, Node]]:
    """Yield every node below and including this one with its path."""
    yield path, node
    if isinstance(node.value, dict):
        for key, child in node.value.items():
            yield from walk(child, (*path, key))
    elif isinstance(node.value, list):
        for i, child in enumerate(node.value):
            yield from walk(child, (*path, str(i)))
