"""Does a tree fit the records of `model.py`? Every misfit with its line and mend, not the first alone.

Walks the records' own types, so a new field needs nothing here. Rules between records are in `check.py`.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from datetime import date
from difflib import get_close_matches
from functools import cache
from typing import Any, get_args

from msgspec import NODEFAULT, inspect

from baseload.errors import Problem
from baseload.fleet.kinds import Country, Name
from baseload.fleet.model import Fleet
from baseload.fleet.tree import Node, Path, key_text, locate, shorten

MAX_PROBLEMS = 50  # more do not help anybody
FIRST_YEAR, LAST_YEAR = 1950, 2200

_UNITS = (
    "mw",
    "kw",
    "mwh",
    "kwh",
    "ms",
    "s",
    "h",
    "ns",
    "c",
    "m2",
    "m3",
    "km",
    "gb",
    "tokens",
    "ratio",
    "mtok",
    "hours",
)
_QUANTITY = re.compile(r"\s*([-+]?[0-9][0-9., _']*)\s*(.*)")
_PATTERN_WORDS = {
    get_args(Name)[1].pattern: "1 to 64 letters, digits, `.`, `_` or `-`, the first one a letter or digit",
    get_args(Country)[1].pattern: "a country code of two capital letters, e.g. NO",
    "^[0-9]{1,4}[yqm]$": "years, months or quarters: 5y, 18m or 20q",
    "^[A-Z]{3}$": "a currency code of three capital letters, e.g. EUR",
}


@cache
def fleet_type() -> inspect.StructType:
    """Return the type of the whole file."""
    found = inspect.type_info(Fleet)
    assert isinstance(found, inspect.StructType)
    return found


def bare(kind: inspect.Type) -> inspect.Type:
    """Return a type without the note on its field."""
    while isinstance(kind, inspect.Metadata):
        kind = kind.type
    return kind


def choose(kind: inspect.Type, node: Node | None) -> inspect.Type:
    """Return the member of a union that a node means; the type itself where it is none.

    A mapping means the record; anything else means the number or text, or none.
    """
    kind = bare(kind)
    if not isinstance(kind, inspect.UnionType):
        return kind
    members = [bare(member) for member in kind.types]
    if node is not None and node.value is None:
        for member in members:
            if isinstance(member, inspect.NoneType):
                return member
    members = [member for member in members if not isinstance(member, inspect.NoneType)]
    records = [member for member in members if isinstance(member, inspect.StructType)]
    others = [member for member in members if member not in records]
    wants_record = node is None or isinstance(node.value, dict)
    return (records or others)[0] if wants_record else (others or records)[0]


def misfits(root: Node) -> list[Problem]:
    """Return what does not fit the records, at most MAX_PROBLEMS."""
    walker = _Walker(root)
    walker.value(root, fleet_type(), ())
    return walker.problems[:MAX_PROBLEMS]


def nearest(wrong: str, known: Iterable[str]) -> str:
    """Return a sentence that offers the nearest known names, or lists a few.

    >>> nearest("olso", ["oslo", "madrid"])
    'did you mean `oslo`?'
    """
    names = sorted(known)
    if not names:
        return "there are none"
    lower = {name.lower(): name for name in names}
    close = get_close_matches(wrong.lower()[:100], lower, n=2, cutoff=0.6)
    if close:
        return "did you mean " + " or ".join(f"`{lower[name]}`" for name in close) + "?"
    shown = ", ".join(names[:8]) + (", …" if len(names) > 8 else "")
    return f"choose from {shown}"


def unknown_key(key: str, record: inspect.StructType) -> str:
    """Return the mend for a key that a record does not have: a wrong unit, a slip, another record's key."""
    fields = [field.encode_name for field in record.fields]
    stem, unit = _split_unit(key)
    for name in fields:
        own_stem, own_unit = _split_unit(name)
        if unit and own_unit and own_stem == stem:
            return f"the key is `{name}`: give the value in its unit"
    if get_close_matches(key.lower(), [name.lower() for name in fields], cutoff=0.6):
        return nearest(key, fields)
    owners = sorted(kind.cls.__name__ for kind in _records() if any(f.name == key for f in kind.fields))
    if owners:
        return f"`{key}` is a key of {' and '.join(owners[:3])}"
    return nearest(key, fields)


def _split_unit(key: str) -> tuple[str, str]:
    stem, _, unit = key.rpartition("_")
    return (stem, unit) if stem and unit in _UNITS else (key, "")


@cache
def _records() -> tuple[inspect.StructType, ...]:
    found: dict[str, inspect.StructType] = {}

    def visit(kind: inspect.Type) -> None:
        kind = bare(kind)
        if isinstance(kind, inspect.StructType) and kind.cls.__name__ not in found:
            found[kind.cls.__name__] = kind
            for field in kind.fields:
                visit(field.type)
        elif isinstance(kind, inspect.UnionType):
            for member in kind.types:
                visit(member)
        elif isinstance(kind, inspect.DictType):
            visit(kind.value_type)
        elif isinstance(kind, inspect.ListType):
            visit(kind.item_type)

    visit(fleet_type())
    return tuple(found.values())


class _Walker:
    """Walks tree and types side by side, and notes what does not fit."""

    def __init__(self, root: Node) -> None:
        self.root = root
        self.problems: list[Problem] = []
        self.seen: set[tuple[int, int]] = set()  # an alias leads to the same node: told once

    def note(self, path: Path, what: str, mend: str = "") -> None:
        file, line = locate(self.root, path)
        key = shorten(key_text(path), 200)
        self.problems.append(Problem(file=file, line=line, key=key, what=what, mend=mend))

    def value(self, node: Node, kind: inspect.Type, path: Path) -> None:
        """Note what is wrong with one value and all below it."""
        if len(self.problems) > MAX_PROBLEMS or (id(node), id(kind)) in self.seen:
            return
        self.seen.add((id(node), id(kind)))
        kind = choose(kind, node)
        if isinstance(kind, inspect.NoneType):
            return
        if node.value is None:
            self.note(path, "the key has no value", "write one, or remove the key")
        elif isinstance(kind, inspect.StructType):
            self.record(node, kind, path)
        elif isinstance(kind, inspect.DictType):
            self.mapping(node, kind, path)
        elif isinstance(kind, inspect.ListType | inspect.TupleType):
            self.sequence(node, kind, path)
        elif isinstance(node.value, dict | list):
            self.note(path, f"wants {_wanted(kind)}, not {_kind_of(node)}")
        else:
            self.scalar(node, kind, path)

    def record(self, node: Node, kind: inspect.StructType, path: Path) -> None:
        if not isinstance(node.value, dict):
            self.note(path, f"wants keys and values, not {_kind_of(node)}", f"keys of {_names(kind)}")
            return
        fields = {field.encode_name: field for field in kind.fields}
        for key, child in node.value.items():
            if key in fields:
                self.value(child, fields[key].type, (*path, key))
            else:
                self.note((*path, key), f"no such key in {_record_name(kind)}", unknown_key(key, kind))
        for name, field in fields.items():
            absent = field.default is NODEFAULT and field.default_factory is NODEFAULT
            if absent and name not in node.value:
                self.note(path, f"`{name}` is missing", f"add it: {_description(field.type)}")

    def mapping(self, node: Node, kind: inspect.DictType, path: Path) -> None:
        if not isinstance(node.value, dict):
            self.note(path, f"wants names with their values, not {_kind_of(node)}", "write `name: …` lines below it")
            return
        for key, child in node.value.items():
            self.text(key, bare(kind.key_type), (*path, key), "the name")
            self.value(child, kind.value_type, (*path, key))

    def sequence(self, node: Node, kind: inspect.ListType | inspect.TupleType, path: Path) -> None:
        if not isinstance(node.value, list):
            self.note(path, f"wants a list, not {_kind_of(node)}", "put `- ` before each entry, or write [ … ]")
            return
        if isinstance(kind, inspect.TupleType):
            if len(node.value) != len(kind.item_types):
                self.note(path, f"wants {len(kind.item_types)} entries, not {len(node.value)}")
                return
            kinds = kind.item_types
        else:
            kinds = (kind.item_type,) * len(node.value)
        for i, (child, item) in enumerate(zip(node.value, kinds)):
            self.value(child, item, (*path, str(i)))

    def scalar(self, node: Node, kind: inspect.Type, path: Path) -> None:
        value = node.value
        if isinstance(kind, inspect.FloatType | inspect.IntType):
            self.number(node, kind, path)
        elif isinstance(kind, inspect.LiteralType):
            if value not in kind.values or isinstance(value, bool):
                self.note(path, f"{_shown(value)} is not one of the choices", _choices(value, kind.values))
        elif isinstance(kind, inspect.StrType):
            if not isinstance(value, str):
                self.note(
                    path,
                    f"wants a text, not {_kind_of(node)} {_shown(value)}",
                    "put it in quotes if it is meant",
                )
            else:
                self.text(value, kind, path, _shown(value))
        elif isinstance(kind, inspect.BoolType):
            if not isinstance(value, bool):
                self.note(path, f"wants true or false, not {_shown(value)}")
        elif isinstance(kind, inspect.DateType):
            day = _date(value)
            if day is None:
                self.note(path, f"{_shown(value)} is not a date", "write year-month-day, e.g. 2026-03-01")
            elif not FIRST_YEAR <= day.year <= LAST_YEAR:
                between = f"write a day between {FIRST_YEAR} and {LAST_YEAR}"
                self.note(path, f"{_shown(value)} is out of range", between)

    def text(self, value: str, kind: inspect.Type, path: Path, shown: str) -> None:
        pattern = kind.pattern if isinstance(kind, inspect.StrType) else None
        if pattern and not re.fullmatch(pattern, value):
            self.note(path, f"{shown} is not allowed here", f"write {_PATTERN_WORDS.get(pattern, pattern)}")

    def number(self, node: Node, kind: inspect.FloatType | inspect.IntType, path: Path) -> None:
        value = node.value
        if isinstance(value, bool) or not isinstance(value, int | float):
            self.note(path, f"wants a number, not {_shown(value)}", _number_mend(value))
            return
        if isinstance(kind, inspect.IntType) and not isinstance(value, int):
            mend = f"write {int(value)}" if value == int(value) else ""
            self.note(path, f"wants a whole number, not {value:g}", mend)
            return
        limits = (
            ("more than", kind.gt, kind.gt is not None and not value > kind.gt),
            ("at least", kind.ge, kind.ge is not None and not value >= kind.ge),
            ("less than", kind.lt, kind.lt is not None and not value < kind.lt),
            ("at most", kind.le, kind.le is not None and not value <= kind.le),
        )
        for words, limit, broken in limits:
            if broken and limit is not None:
                is_share = limit == 1 and words == "at most" and 1 < value <= 100
                mend = f"write a share of 1, e.g. {value / 100:g} for {value:g} %" if is_share else "is the unit right?"
                self.note(path, f"{_shown(value)} is out of range: {words} {limit:,g} is wanted", mend)


def _date(value: Any) -> date | None:
    if not isinstance(value, str) or not re.fullmatch(r"\d{4}-\d{2}-\d{2}", value, re.ASCII):
        return None
    try:
        return date.fromisoformat(value)
    except ValueError:
        return None


def _number_mend(value: Any) -> str:
    match = _QUANTITY.fullmatch(value) if isinstance(value, str) else None
    if match is None:
        return ""
    digits = re.sub(r"[,_' ]", "", match[1])
    if match[2] == "%":
        return f"write a share of 1, without the sign: {digits} % is {digits}/100"
    if match[2]:
        return f"write the number alone, the key's name says the unit: {digits}"
    return f"write it without quotes or separators: {digits}"


def _choices(value: Any, values: tuple[Any, ...]) -> str:
    texts = sorted(str(choice) for choice in values)
    close = get_close_matches(str(value)[:100], texts, n=1, cutoff=0.6)
    return (f"did you mean `{close[0]}`? " if close else "") + f"choose from {', '.join(texts)}"


def _shown(value: Any) -> str:
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, str):
        return f"`{shorten(value)}`"
    return shorten(f"{value:,}" if isinstance(value, int) else f"{value:g}")


def _kind_of(node: Node) -> str:
    value = node.value
    if isinstance(value, dict):
        return "a mapping"
    if isinstance(value, list):
        return "a list"
    if isinstance(value, str):
        return "a text"
    return "true or false" if isinstance(value, bool) else "a number"


def _wanted(kind: inspect.Type) -> str:
    words = {
        inspect.FloatType: "a number",
        inspect.IntType: "a whole number",
        inspect.StrType: "a text",
        inspect.BoolType: "true or false",
        inspect.DateType: "a date",
        inspect.LiteralType: "one word",
    }
    return words.get(type(kind), "another value")


def _record_name(kind: inspect.StructType) -> str:
    return "the file" if kind.cls is Fleet else f"a {kind.cls.__name__}"


def _names(kind: inspect.StructType) -> str:
    return f"{_record_name(kind)}: " + ", ".join(field.encode_name for field in kind.fields[:8])


def _description(kind: inspect.Type) -> str:
    while isinstance(kind, inspect.Metadata):
        if kind.extra_json_schema and "description" in kind.extra_json_schema:
            return str(kind.extra_json_schema["description"])
        kind = kind.type
    return ""
