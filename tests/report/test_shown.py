"""The report as text, JSON, HTML and comparison: complete, safe with hostile names, the same bytes each time."""

from __future__ import annotations

import re
import shutil
from html.parser import HTMLParser
from io import StringIO
from pathlib import Path

import msgspec
import pytest

from baseload.adapters.store import RunReader
from baseload.report import compare, html, maps, text
from baseload.report.charts import ticks
from baseload.report.json_out import to_json
from baseload.report.kpis import kpis
from baseload.report.model import Report
from tests.report import synthetic

HOSTILE = "<script>alert('1')</script>\"&{{ 7*7 }}"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a made-up run of 400 requests."""
    return synthetic.write_run(tmp_path_factory.mktemp("runs") / "a", n=400)


@pytest.fixture(scope="module")
def report(folder: Path) -> Report:
    """Return its report."""
    with RunReader(folder) as run:
        return kpis(run)


class Page(HTMLParser):
    """Gathers the tags, attributes and text of a page, and holds that tags close in order."""

    VOID = ("meta", "rect", "line", "circle", "path", "i", "br")

    def __init__(self, source: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.words: list[str] = []
        self.open: list[str] = []
        self.feed(source)
        assert not self.open, self.open

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        """Note a tag."""
        self.tags.append((tag, dict(attrs)))
        if tag != "meta":
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        """Note a tag that closes itself."""
        self.tags.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        """Hold that the innermost open tag is the one that closes."""
        assert self.open and self.open.pop() == tag, (tag, self.getpos())

    def handle_data(self, data: str) -> None:
        """Note text."""
        self.words.append(data)


def hostile(report: Report) -> Report:
    """Return the report with every name replaced by one that would run a script if it could."""

    def renamed(value: object) -> object:
        if isinstance(value, dict):
            return {key: renamed(one) for key, one in value.items()}
        if isinstance(value, list):
            return [renamed(one) for one in value]
        return HOSTILE if isinstance(value, str) else value

    built = renamed(msgspec.to_builtins(report))
    assert isinstance(built, dict)
    built["basis"] = [{**row, "basis": "modelled"} for row in built["basis"]]
    for deployment in built["deployments"]:
        deployment["what"]["basis"] = "modelled"
    return msgspec.convert(built, Report)


def test_a_hostile_name_stays_text(report):
    """No name, reason, source or fleet file can become markup, an attribute or a template in the page."""
    page = Page(html.to_html(hostile(report), fleet_text=HOSTILE + "</pre><script>"))

    assert "script" not in {tag for tag, _ in page.tags}
    assert not [key for _, attributes in page.tags for key in attributes if key.startswith("on")]
    assert "alert('1')" in "".join(page.words) and "{{ 7*7 }}" in "".join(page.words)


def test_the_page_needs_no_network_and_no_script(report):
    """The page holds all it shows: no address, import, script, frame or image from elsewhere."""
    source = html.to_html(report, fleet_text="name: a")
    page = Page(source)

    assert not {"script", "link", "img", "iframe", "object", "base", "form"} & {tag for tag, _ in page.tags}
    assert not [value for _, one in page.tags for key, value in one.items() if key in ("src", "href", "xlink:href")]
    assert not re.search(r"@import|url\(|https?:", source)


def test_the_page_speaks_to_those_who_do_not_see_it(report):
    """Each chart has a title and a description, each table a caption, and the page its language."""
    page = Page(html.to_html(report))
    names = [tag for tag, _ in page.tags]
    charts = [one for tag, one in page.tags if tag == "svg"]

    assert ("html", {"lang": "en"}) in page.tags
    assert len(charts) >= 8 and all(one.get("role") == "img" for one in charts)
    assert names.count("desc") == len(charts) and names.count("caption") == names.count("table")
    assert report.headline in "".join(page.words) and report.built_on in "".join(page.words)


def test_charts_hold_only_numbers_that_can_be_drawn(report):
    """No coordinate in the page is NaN or infinite, whatever the run."""
    assert not re.search(r"\b(nan|inf|None)\b", re.sub(r"<style>.*?</style>", "", html.to_html(report)))


def test_the_same_run_gives_the_same_bytes(folder, report, tmp_path):
    """Text, JSON and HTML of a copy of a run are those of the run, byte for byte."""
    copy = tmp_path / folder.name
    shutil.copytree(folder, copy)
    with RunReader(copy) as run:
        again = kpis(run)
        html.write(again, run, tmp_path / "report.html")
        page = (tmp_path / "report.html").read_text("utf-8")
        assert page == html.to_html(report, run.fleet_text)
    assert to_json(again) == to_json(report) and text.to_text(again) == text.to_text(report)
    assert [path.name for path in tmp_path.iterdir() if path.name.startswith(".")] == []


@pytest.mark.parametrize("width", [60, 80, 100, 120])
@pytest.mark.parametrize("ascii_only", [False, True])
def test_text_fits_the_terminal(report, width, ascii_only):
    """No line is wider than the terminal, no colour code is in it, and in ASCII nothing but ASCII."""
    shown = text.to_text(report, width=width, ascii_only=ascii_only)

    assert max(len(line) for line in shown.splitlines()) <= width
    assert "\x1b" not in shown and (not ascii_only or shown.isascii())
    for words in ("Capacity ladder, fleet", "Tenants", "Sites", "Cost over", "Not served", "TTFT, median"):
        assert words in shown


def test_text_suits_what_it_is_written_to(report, monkeypatch):
    """A pipe or a dumb terminal gets plain text; colour is for terminals that have it."""
    monkeypatch.setenv("TERM", "dumb")
    out = StringIO()
    text.show(report, out)

    assert "\x1b" not in out.getvalue() and out.getvalue().isascii()
    assert "\x1b[" in text.to_text(report, colour=True)


def test_hostile_names_do_not_style_the_terminal(report):
    """Names with rich's markup or control characters come out as text."""
    shown = text.to_text(msgspec.structs.replace(report, headline="[bold red]x[/] \x1b[31m"))

    assert "[bold red]x[/]" in shown and "\x1b" not in shown


def test_json_has_every_figure_with_its_unit_in_the_name(report):
    """The JSON's figures are those of the report, and a figure that is not defined is null."""
    decoded = msgspec.json.decode(to_json(report))

    assert decoded["fleet"]["service"]["ttft_s_p99"] == report.fleet.service.ttft_s_p99
    assert decoded["fleet"]["cost"]["cost_per_mtok"] == report.fleet.cost.cost_per_mtok
    assert [one["name"] for one in decoded["sites"]] == ["frankfurt", "oslo"]
    assert decoded["report"] == 1


def test_comparison_says_what_changed_and_whether_it_is_better(folder, tmp_path):
    """Two runs of two fleet files differ in the keys that were edited, and slower answers are worse."""
    cheaper = synthetic.FLEET.replace("price_per_mwh: 120", "price_per_mwh: 60")
    other = synthetic.write_run(tmp_path / "b", cheaper, n=400, slow=2.0)
    with RunReader(folder) as a, RunReader(other) as b:
        found = compare.compare(a, b)
    marks = {(one.scope, one.name): one.mark for one in found.changes}

    assert [(one.key, one.a, one.b) for one in found.fleet] == [
        ("sites.frankfurt.contracts.0.price_per_mwh", "120.0", "60.0")
    ]
    assert marks["fleet", "ttft_s_p99"] == "worse" and marks["site frankfurt", "cost_energy"] == "better"
    assert marks["fleet", "input_tokens"] == "same"
    shown = compare.to_text(found)
    assert "sites.frankfurt.contracts.0.price_per_mwh: 120.0 -> 60.0" in shown
    assert max(len(line) for line in shown.splitlines()) <= 80
    assert msgspec.json.decode(compare.to_json(found))["a"] == "a"


def test_a_run_compared_with_itself_has_no_change(folder):
    """Every figure of a run against itself is the same or not defined, and no key differs."""
    with RunReader(folder) as a, RunReader(folder) as b:
        found = compare.compare(a, b)

    assert {one.mark for one in found.changes} <= {"same", ""}
    assert not found.fleet and not found.run


@pytest.mark.parametrize("highest", [1e-9, 0.03, 1.0, 9.99, 60.0, 1e12])
def test_ticks_are_round_and_reach_the_top(highest):
    """An axis begins at 0, reaches the highest value with at most six steps, and its steps are round."""
    marks = ticks(highest)

    assert marks[0] == 0.0 and marks[-1] >= highest * 0.999 and 2 <= len(marks) <= 6
    assert f"{marks[1]:.1e}"[0] in "125"


def test_the_map_shows_every_site_where_it_is(report):
    """Sites lie inside the picture, north above south and west left of east, also across 180 degrees."""
    oslo, frankfurt = (next(one for one in report.sites if one.name == name) for name in ("oslo", "frankfurt"))
    tokyo = msgspec.structs.replace(oslo, name="tokyo", lat=35.7, lon=139.7)
    drawn = [
        (float(x), float(y))
        for x, y in re.findall(r'cx="([-\d.]+)" cy="([-\d.]+)"', maps.site_map([oslo, frankfurt, tokyo]))
    ]

    assert all(0.0 < x < 380.0 and 0.0 < y < 240.0 for x, y in drawn)
    assert drawn[0][1] < drawn[1][1] < drawn[2][1] and drawn[1][0] < drawn[0][0] < drawn[2][0]
    assert all(abs(a[0] - b[0]) < 90.0 for ring in maps._coastline() for a, b in zip(ring, ring[1:]))
