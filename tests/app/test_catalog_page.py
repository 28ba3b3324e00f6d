"""`baseload catalog`: every entry is listed, fits a terminal, and shows the source of each of its figures."""

from __future__ import annotations

import json

import pytest

from baseload.app.catalog_page import page
from baseload.errors import CatalogError
from baseload.fleet import catalog

KINDS = {"accelerators": catalog.accelerators, "models": catalog.models, "sites": catalog.places}
every_kind = pytest.mark.parametrize("kind", KINDS)
every_entry = pytest.mark.parametrize(
    ("kind", "name"), [(kind, name) for kind, table in KINDS.items() for name in table()]
)


def words(text: str) -> str:
    """Return the text with every run of white space as one blank, as a wrapped line reads."""
    return " ".join(text.split())


@every_kind
def test_a_list_fits_eighty_columns_with_one_line_an_entry(kind: str, monkeypatch: pytest.MonkeyPatch):
    """Each entry of the catalogue stands on a line of its own, in 80 columns, whatever narrower terminal asks."""
    monkeypatch.setenv("COLUMNS", "40")
    lines = page(kind, None).splitlines()
    assert max(map(len, lines)) <= 80
    first_words = [line.split()[0] for line in lines if line.strip()]
    assert all(first_words.count(name) == 1 for name in KINDS[kind]())


@pytest.mark.parametrize("columns", [80, 120, 200])
@pytest.mark.parametrize(("kind", "name"), [("accelerators", "gb200"), ("models", "deepseek-v3"), ("sites", "osaka")])
def test_an_entry_fits_the_terminal(kind: str, name: str, columns: int, monkeypatch: pytest.MonkeyPatch):
    """An entry in full keeps to the width of the terminal, so that no line breaks where nobody meant it."""
    monkeypatch.setenv("COLUMNS", str(columns))
    assert max(map(len, page(kind, name).splitlines())) <= columns


@every_entry
def test_an_entry_shows_every_source(kind: str, name: str):
    """An entry in full prints each figure's name once, and the text of every source behind its figures."""
    text = page(kind, name)
    entry = KINDS[kind]()[name]
    if isinstance(entry, catalog.CatalogModel):
        sources = {entry.shape_from.source, entry.size_from.source}
    else:
        sources = {origin.source for origin in entry.provenance.values()}
        lines = text.splitlines()
        assert all(sum(line.split(" ")[0] == figure for line in lines) == 1 for figure in entry.provenance)
    assert all(words(source) in words(text) for source in sources)


@every_kind
def test_json_holds_the_whole_catalogue(kind: str):
    """The JSON form is the catalogue itself: the same entries, each with all that one entry's JSON has."""
    entries = json.loads(page(kind, None, as_json=True))
    names = list(KINDS[kind]())
    assert len(entries) == len(names)
    assert entries[3] == json.loads(page(kind, names[3], as_json=True))


def test_facts_a_person_can_check():
    """An H100 has 989 dense TFLOPS and 700 W; Mixtral counts 46.7 and 12.7 billion; Frankfurt lies in Germany."""
    h100 = next(line for line in page("accelerators", None).splitlines() if line.startswith("h100-sxm"))
    assert h100.split() == ["h100-sxm", "NVIDIA", "989", "1,978", "-", "85.899", "3.35", "700"]
    mixtral = next(line for line in page("models", None).splitlines() if line.startswith("mixtral-8x7b"))
    assert mixtral.split() == ["mixtral-8x7b", "46.7", "12.7", "32k", "bf16", "Apache-2.0"]
    frankfurt = json.loads(page("sites", "eu-central-1", as_json=True))
    assert (frankfurt["place_id"], frankfurt["jurisdiction"], frankfurt["blocs"]) == ("frankfurt", "DE", ["EU", "EEA"])
    assert frankfurt["hourly"] == ["price_per_mwh", "carbon_g_per_kwh", "wetbulb_c"]


def test_a_guess_is_marked_in_the_list():
    """A modelled figure carries ~ in the list and the word in full; a datasheet's figure carries nothing."""
    h800 = next(line for line in page("accelerators", None).splitlines() if line.startswith("h800-sxm"))
    assert "989~" in h800
    assert "modelled" in page("accelerators", "h800-sxm")
    assert catalog.accelerator("h800-sxm").provenance["bf16_tflops"].basis == "modelled"


@every_kind
def test_an_unknown_name_offers_the_nearest(kind: str):
    """A name with a slip of the pen is refused, and the entry that was meant is named."""
    name = next(iter(KINDS[kind]()))
    with pytest.raises(CatalogError, match=name):
        page(kind, name + "q")
