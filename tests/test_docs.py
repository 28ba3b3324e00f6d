"""Every key, column, policy and flag is documented, and the pages say what the code does today."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from baseload import policies, records
from baseload.app import docs
from baseload.fleet import load
from baseload.fleet.schema import json_schema
from baseload.serve import rows

ROOT = Path(__file__).resolve().parent.parent
PAGES = docs.pages()


@pytest.mark.parametrize("name", sorted(PAGES))
def test_a_made_page_is_up_to_date(name: str):
    """The page in the repository is what `make docs` would write."""
    assert (ROOT / name).read_text("utf-8") == PAGES[name], "run `make docs`"


def test_every_key_has_its_row():
    """Each key of each record of the fleet file has a row with words."""
    page = PAGES["docs/reference/fleet.md"]
    for shape in json_schema()["$defs"].values():
        for key in shape["properties"]:
            rows = re.findall(rf"^\| `{key}` \|.*\| (.*) \|$", page, re.MULTILINE)
            assert rows and all(rows), key


def test_links_within_the_fleet_page_lead_somewhere():
    """Each link from a key to its record meets a heading."""
    page = PAGES["docs/reference/fleet.md"]
    headings = re.findall(r"^## (.*)$", page, re.MULTILINE)
    anchors = {re.sub(r"[^a-z0-9_ -]", "", heading.lower()).replace(" ", "-") for heading in headings}

    assert set(re.findall(r"\]\(#([^)]*)\)", page)) <= anchors


def test_every_column_and_reason_has_its_row():
    """Each column of Records has a row, with its unit where it has one."""
    page = PAGES["docs/reference/records.md"]
    for columns in records.TABLES.values():
        for column in columns:
            assert f"| `{column.name}` | {column.dtype} | {column.unit} | {column.meaning} |" in page
    assert all(name in page for name in (*records.STATUS_NAMES, *records.REASON_NAMES))


def test_every_field_of_the_ledger_has_its_row():
    """Each field of each kind of row is on the page with its unit and a meaning."""
    page = PAGES["docs/reference/rows.md"]
    for field in rows.describe():
        assert f"| `{field.name}` | {field.type} | {field.unit} | {field.meaning} |" in page
        assert field.meaning, field.name


def test_every_policy_says_what_it_does():
    """Each rule that a fleet file may name has a row with words."""
    page = PAGES["docs/reference/policies.md"]
    for names in policies.KINDS.values():
        for name in names:
            assert re.search(rf"^\| `{name}` \| \w.+ \|$", page, re.MULTILINE), name


def test_every_command_and_flag_says_what_it_does():
    """Each command and each argument has a help text, on the page of the command line."""
    if "docs/reference/cli.md" not in PAGES:
        pytest.skip("baseload.app.cli is not there")
    page = PAGES["docs/reference/cli.md"]
    for name, about, command in docs.commands(docs.parser()):
        assert f"## baseload {name}\n\n{about}\n" in page
        assert about, name
        for action in command._actions:
            assert action.help, (name, action.dest)


def test_the_fleet_files_in_the_documentation_are_possible():
    """The --set examples of the fleet file's page are accepted by the three-sites example."""
    page = (ROOT / "docs" / "fleet-file.md").read_text("utf-8")
    offered = [one.strip("'") for one in re.findall(r"^--set (.+)$", page, re.MULTILINE)]

    assert len(offered) >= 3
    for override in offered:
        load.load(ROOT / "examples" / "three-sites" / "fleet.yaml", [override])
