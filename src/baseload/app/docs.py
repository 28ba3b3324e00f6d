"""Write the reference pages from the code: `python -m baseload.app.docs`, or `make docs`.

Keys of the fleet file and its JSON Schema, columns of Records, rows of the ledger, policies and the command line. KPIs
have their table in `docs/report.md`, the catalogue in `docs/catalogue.md`, each with its own test. What the pages say
stands beside the code that does it; `tests/test_docs.py` holds them up to date.
"""

from __future__ import annotations

import argparse
import importlib
import importlib.util
import inspect as python_inspect
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from msgspec import NODEFAULT, Struct, inspect

from baseload import policies, records
from baseload.fleet.schema import schema_text
from baseload.fleet.typed import bare, fleet_type

ROOT = Path(__file__).resolve().parents[3]
MADE = "<!-- Made by `make docs` from the code; change it there. -->\n"


def pages() -> dict[str, str]:
    """Return every made file's text by its path from the repository's root."""
    made = {
        "docs/reference/fleet.md": fleet_page(),
        "docs/reference/records.md": records_page(),
        "docs/reference/policies.md": policies_page(),
        "docs/reference/rows.md": rows_page(),
        "src/baseload/fleet/fleet.schema.json": schema_text(),
    }
    if importlib.util.find_spec("baseload.app.cli") is not None:
        made["docs/reference/cli.md"] = cli_page()
    return made


# ---- the fleet file --------------------------------------------------------------------------------------


def fleet_page() -> str:
    """Return the page of all keys, a section for each record in the order in which the file meets them."""
    parts = [
        "# Keys of the fleet file\n",
        MADE,
        "How to write one: [the fleet file](../fleet-file.md). `null` means that",
        "the key may be left empty. NAME stands for a name of your own, N for a place in a list, counted from 0.",
        "",
    ]
    for path, kind in _records():
        title = " and ".join(f"`{one}`" for one in path) if path != [""] else "The file"
        parts += [f"## {title}\n", _first_paragraph(kind.cls) + "\n"]
        parts += ["| key | value | default | meaning |", "|---|---|---|---|"]
        for field in kind.fields:
            value, default, meaning = type_words(field.type), _default(field), describe(field.type)
            parts.append(f"| `{field.encode_name}` | {value} | {default} | {meaning} |")
        parts.append("")
    return "\n".join(parts)


def _records() -> list[tuple[list[str], inspect.StructType]]:
    """Return each record's type with the keys under which it stands."""
    found: dict[type, tuple[list[str], inspect.StructType]] = {}
    for path, kind in _walk(fleet_type(), ""):
        paths = found.setdefault(kind.cls, ([], kind))[0]
        if path not in paths:
            paths.append(path)
    return list(found.values())


def _walk(kind: inspect.Type, path: str) -> Iterator[tuple[str, inspect.StructType]]:
    kind = bare(kind)
    if isinstance(kind, inspect.StructType):
        yield path, kind
        for field in kind.fields:
            yield from _walk(field.type, f"{path}.{field.encode_name}".lstrip("."))
    elif isinstance(kind, inspect.UnionType):
        for member in kind.types:
            yield from _walk(member, path)
    elif isinstance(kind, inspect.DictType):
        yield from _walk(kind.value_type, f"{path}.NAME")
    elif isinstance(kind, inspect.ListType):
        yield from _walk(kind.item_type, f"{path}.N")


def describe(kind: inspect.Type) -> str:
    """Return the description that stands on a field."""
    while isinstance(kind, inspect.Metadata):
        if kind.extra_json_schema and "description" in kind.extra_json_schema:
            return str(kind.extra_json_schema["description"])
        kind = kind.type
    return ""


def type_words(kind: inspect.Type) -> str:
    """Return a type in words, with its bounds."""
    kind = bare(kind)
    if isinstance(kind, inspect.UnionType):
        words = [type_words(member) for member in kind.types if not isinstance(member, inspect.NoneType)]
        empty = any(isinstance(member, inspect.NoneType) for member in kind.types)
        return " or ".join(words) + (", null" if empty else "")
    if isinstance(kind, inspect.LiteralType):
        return " \\| ".join(f"`{value}`" for value in kind.values)
    if isinstance(kind, inspect.StructType):
        return f"[{kind.cls.__name__}](#{_anchor(kind)})"
    if isinstance(kind, inspect.DictType):
        return f"NAME: {type_words(kind.value_type)}"
    if isinstance(kind, inspect.ListType):
        return f"list of {type_words(kind.item_type)}"
    if isinstance(kind, inspect.TupleType):
        return f"list of {len(kind.item_types)} texts"
    if isinstance(kind, inspect.FloatType | inspect.IntType):
        word = "number" if isinstance(kind, inspect.FloatType) else "whole number"
        bounds = [(kind.gt, ">"), (kind.ge, ">="), (kind.lt, "<"), (kind.le, "<=")]
        shown = [f"{sign} {limit:,g}" for limit, sign in bounds if limit is not None and abs(limit) < 1e9]
        return ", ".join([word, *shown])
    words_of = {inspect.StrType: "text", inspect.BoolType: "true or false", inspect.DateType: "date"}
    return words_of.get(type(kind), type(kind).__name__)


def _anchor(kind: inspect.StructType) -> str:
    paths = next(paths for paths, one in _records() if one.cls is kind.cls)
    title = "-and-".join(paths)
    return "".join(char for char in title.lower() if char.isalnum() or char in "-_")


def _default(field: inspect.Field) -> str:
    if field.default is not NODEFAULT:
        value = field.default
        if value is None:
            return ""
        if isinstance(value, Struct):
            return "as below"
        if isinstance(value, bool):
            return str(value).lower()
        return f"{value:,g}" if isinstance(value, float) else f"{value}"
    return "empty" if field.default_factory is not NODEFAULT else "**required**"


def _first_paragraph(thing: Any) -> str:
    text = python_inspect.cleandoc(thing.__doc__ or "")
    return " ".join(text.split("\n\n")[0].split())


# ---- the other pages -------------------------------------------------------------------------------------


def records_page() -> str:
    """Return the page of the tables of Records."""
    parts = ["# Records\n", MADE, _first_paragraph(records) + "\n"]
    about = python_inspect.cleandoc(records.__doc__ or "").split("\n\n")[1:]
    parts += [" ".join(paragraph.split()) + "\n" for paragraph in about]
    for name, columns in records.TABLES.items():
        parts += [f"## {name}\n", "| column | type | unit | meaning |", "|---|---|---|---|"]
        parts += [f"| `{one.name}` | {one.dtype} | {one.unit} | {one.meaning} |" for one in columns]
        parts.append("")
    parts += ["## Status and reason\n", "| status | |", "|---|---|"]
    parts += [f"| {i} | {name} |" for i, name in enumerate(records.STATUS_NAMES)]
    parts += ["", "| reason | |", "|---|---|"]
    parts += [f"| {i} | {name or 'none'} |" for i, name in enumerate(records.REASON_NAMES)]
    return "\n".join([*parts, ""])


def rows_page() -> str:
    """Return the page of the ledger's rows, a section for each kind."""
    rows = importlib.import_module("baseload.serve.rows")
    parts = ["# Rows of the ledger\n", MADE]
    parts += [" ".join(one.split()) + "\n" for one in python_inspect.cleandoc(rows.__doc__ or "").split("\n\n")]
    for row_type in rows.ROW_TYPES:
        kind = str(row_type.__struct_config__.tag)
        parts += [f"## {kind}\n", _first_paragraph(row_type) + "\n"]
        parts += ["| field | type | unit | meaning |", "|---|---|---|---|"]
        parts += [f"| `{f.name}` | {f.type} | {f.unit} | {f.meaning} |" for f in rows.describe() if f.kind == kind]
        parts.append("")
    return "\n".join(parts)


def policies_page() -> str:
    """Return the page of the rules that a fleet file may name."""
    parts = ["# Policies\n", MADE, _first_paragraph(policies) + "\n"]
    for kind, names in policies.KINDS.items():
        module = importlib.import_module(f"baseload.policies.{kind}")
        parts += [f"## policy.{kind}\n", _first_paragraph(module) + "\n", "| name | what it does |", "|---|---|"]
        for name in names:
            function = getattr(module, name)
            parts.append(f"| `{name}` | {_first_paragraph(getattr(function, 'py_func', function))} |")
        parts.append("")
    own = importlib.import_module("baseload.policies.custom")
    parts += ["## An operator's own rule\n"]
    parts += [" ".join(one.split()) + "\n" for one in python_inspect.cleandoc(own.__doc__ or "").split("\n\n")]
    view = importlib.import_module("baseload.policies.view")
    for title, fields in (("Ask: the request at the door", view.Ask), ("Columns: the replicas", view.Columns)):
        parts += [f"### {title}\n", "| field | meaning |", "|---|---|"]
        parts += [f"| `{name}` | {meaning} |" for name, meaning in _commented_fields(fields)]
        parts.append("")
    return "\n".join(parts)


def _commented_fields(record: type) -> Iterator[tuple[str, str]]:
    for line in python_inspect.getsource(record).splitlines():
        name, colon, rest = line.strip().partition(":")
        if colon and name in record._fields:  # type: ignore[attr-defined]
            yield name, rest.partition("#")[2].strip()


def cli_page() -> str:
    """Return the page of the command line: each command with its arguments."""
    top = parser()
    parts = ["# Command line\n", MADE, (top.description or "") + "\n", (top.epilog or "") + "\n"]
    for name, about, command in commands(top):
        parts += [f"## baseload {name}\n", about + "\n"]
        rows = [_argument_row(action) for action in command._actions if action.help != argparse.SUPPRESS]
        rows = [row for row in rows if not row.startswith("| `-h")]
        parts += ["| argument | meaning |", "|---|---|", *rows, ""] if rows else []
        parts += [command.epilog + "\n"] if command.epilog else []
    return "\n".join(parts)


def parser() -> argparse.ArgumentParser:
    """Return the command line's parser."""
    cli = importlib.import_module("baseload.app.cli")
    found: argparse.ArgumentParser = cli.parser()
    return found


def commands(top: argparse.ArgumentParser, name: str = "") -> Iterator[tuple[str, str, argparse.ArgumentParser]]:
    """Yield every command of a parser with its help text, those within commands included."""
    for action in top._actions:
        if isinstance(action, argparse._SubParsersAction):
            texts = {choice.dest: choice.help or "" for choice in action._choices_actions}
            for word, command in action.choices.items():
                full = f"{name} {word}".strip()
                yield full, texts.get(word, ""), command
                yield from commands(command, full)


def _argument_row(action: argparse.Action) -> str:
    flags = ", ".join(action.option_strings) or (action.metavar if isinstance(action.metavar, str) else action.dest)
    if action.option_strings and action.nargs != 0:
        flags += f" {action.metavar or action.dest.upper()}"
    text = (action.help or "").replace("%(default)s", str(action.default)).replace("%%", "%").replace("|", "\\|")
    return f"| `{flags}` | {text} |"


def main() -> int:
    """Write every page whose text changed; say which."""
    for name, text in pages().items():
        path = ROOT / name
        if not path.is_file() or path.read_text("utf-8") != text:
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text, encoding="utf-8")
            print(f"wrote {name}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
