"""docs/formulas.md and the code say the same: every public formula has its row, and every row its formula."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
PAGE = ROOT / "docs" / "formulas.md"
MODULES = sorted(path for path in (ROOT / "src" / "baseload" / "formulas").glob("*.py") if path.stem != "__init__")


def rows_of(section: str) -> set[str]:
    """Return the function names in the first column of the tables under `## section`."""
    found = re.search(rf"^## {re.escape(section)}\n(.*?)(?=^## |\Z)", PAGE.read_text(), re.MULTILINE | re.DOTALL)
    return set(re.findall(r"^\| `(\w+)` \|", found.group(1), re.MULTILINE)) if found else set()


def functions_of(path: Path) -> dict[str, str]:
    """Return the public functions of a module and the first line of what they say they do."""
    tree = ast.parse(path.read_text())
    return {
        node.name: (ast.get_docstring(node) or "").split("\n")[0]
        for node in tree.body
        if isinstance(node, ast.FunctionDef) and not node.name.startswith("_")
    }


@pytest.mark.parametrize("path", MODULES, ids=[path.stem for path in MODULES])
def test_every_formula_is_on_the_page(path: Path):
    """A formula without a row, or a row without a formula, is named with what to write."""
    functions, rows = functions_of(path), rows_of(path.stem)
    missing = [f"| `{name}` | {line} |" for name, line in functions.items() if name not in rows]
    assert not missing, "\n".join([f"under '## {path.stem}' of docs/formulas.md add:", *missing])
    gone = sorted(rows - set(functions))
    assert not gone, f"under '## {path.stem}' docs/formulas.md names what is not in the code: {gone}"


def test_every_cited_test_exists():
    """The page's table of agreement names tests that are there."""
    for name in set(re.findall(r"`(test_\w+\.py)`", PAGE.read_text())):
        assert (ROOT / "tests" / "formulas" / name).is_file(), name
