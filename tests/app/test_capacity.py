"""`baseload capacity`: the ladder holds together, agrees with the dates, says what binds, and refuses what cannot be."""

from __future__ import annotations

import json
import re
from datetime import date
from pathlib import Path
from typing import Any

import msgspec
import pytest

from baseload.app.capacity_verb import horizon_quarters
from baseload.app.cli import run
from baseload.errors import BaseloadError, InputError
from baseload.fleet import dates, load
from baseload.fleet.grid import GridStage
from baseload.fleet.model import Cooling, Fleet, GridConnection, Rack, Site
from baseload.fleet.template import template
from baseload.report import capacity, capacity_html, capacity_text
from baseload.report.capacity_model import RUNGS

TODAY = date(2026, 11, 21)
ROOT = Path(__file__).resolve().parents[2]
RACKS = {"h100": Rack(accelerator="h100-sxm", accelerators_per_rack=32, racks=100)}


def fleet_of(grid: list[GridConnection], **more: Any) -> Fleet:
    """Return a fleet of one site in Oslo with 100 racks of H100 (about 3 MW)."""
    site = Site(place="oslo", grid=grid, **({"racks": RACKS} | more))
    return msgspec.structs.replace(_template_fleet(), sites={"oslo": site})


def _template_fleet() -> Fleet:
    return load.loads(template()).fleet


@pytest.mark.parametrize("example", sorted(path.parent.name for path in (ROOT / "examples").glob("*/*.yaml")))
def test_the_examples_ladders_hold_together(example: str):
    """At every quarter and share, no rung is above the one that carries it, and P10 <= P50 <= P90."""
    (file,) = (ROOT / "examples" / example).glob("*.yaml")
    report = capacity.capacity(load.load(file).fleet, TODAY, 20, draws=400)
    for outlook in (report.whole, *report.sites):
        for share in ("p10_mw", "p50_mw", "p90_mw"):
            rungs = {name: getattr(outlook.rungs[name], share) for name in RUNGS}
            for above, below in (
                ("announced", "contracted"),
                ("contracted", "energised"),
                ("energised", "coolable"),
                ("coolable", "usable"),
                ("racked", "usable"),
            ):
                assert all(high >= low - 1e-9 for high, low in zip(rungs[above], rungs[below])), (outlook.name, above)
        for band in outlook.rungs.values():
            assert all(a <= b <= c for a, b, c in zip(band.p10_mw, band.p50_mw, band.p90_mw))
        quarters = [q for one in outlook.binds for q in report.quarters if one.first <= q <= one.last]
        assert quarters == report.quarters


def test_declared_days_are_taken_as_they_are():
    """Without stages the ladder is that of the dates: no band, and the same MW as `fleet.dates` on each day."""
    grid = [
        GridConnection(power_mw=2.0, energised=date(2025, 1, 1)),
        GridConnection(power_mw=3.0, contracted=date(2026, 1, 1), energised=date(2027, 8, 1), until=date(2029, 2, 1)),
    ]
    report = capacity.capacity(fleet_of(grid), TODAY, 12, draws=50)
    (site,) = report.sites
    for k, day in enumerate(capacity.quarter_ends(TODAY, 12)):
        wanted = dates.energised_mw(fleet_of(grid).sites["oslo"], day) / site.pue_peak  # type: ignore[operator]
        assert site.rungs["energised"].p10_mw[k] == site.rungs["energised"].p90_mw[k] == pytest.approx(wanted, rel=1e-4)
    assert not report.sources


def test_stages_give_a_band_and_a_chance():
    """Own stages give days with doubt; the chance by the horizon is that of their law (certainty times the share)."""
    stages = {"transformer": load_stage(p10=10.0, p50=14.0, p90=21.5)}
    grid = [GridConnection(power_mw=6.0, announced=TODAY, stages=stages, certainty=0.8)]
    report = capacity.capacity(fleet_of(grid), TODAY, 20)
    (phase,) = report.phases
    assert (phase.p10, phase.p50, phase.p90) == ("2027-09", "2028-01", "2028-09")
    assert phase.chance_ever == pytest.approx(0.8, abs=0.02) and phase.waits_for == "transformer"
    assert report.sites[0].binds[0].kind == "power" and "transformer" in report.sites[0].binds[0].words
    assert not phase.from_prior and not report.sources


def load_stage(p10: float, p50: float, p90: float) -> Any:
    """Return a stage by its quantiles."""
    return GridStage(p10_months=p10, p50_months=p50, p90_months=p90)


@pytest.mark.parametrize(
    ("mw", "more", "kind", "words"),
    [
        (20.0, {}, "racks", "racks: 3.04 MW stand"),
        (20.0, {"cooling": Cooling(capacity_mw=1.0)}, "cooling", "the cooling plant takes 1 MW"),
        (3.0, {}, "power", "nothing more is announced"),
        (5.0, {"redundancy": "2N"}, "redundancy", "2N keeps power spare"),
        (20.0, {"racks": {}}, "racks", "no rack is in service"),
    ],
)
def test_what_binds_is_named(mw: float, more: dict[str, Any], kind: str, words: str):
    """Racks, cooling, power and redundancy are each named where they are what usable MW waits for."""
    fleet = fleet_of([GridConnection(power_mw=mw, energised=date(2024, 1, 1))], **more)
    (binding,) = capacity.capacity(fleet, TODAY, 4, draws=20).sites[0].binds
    assert binding.kind == kind and words in binding.words, binding


def test_racks_due_sooner_than_an_order_arrives_are_noted():
    """A rack in service sooner than its lead time from today is counted, and it is said that it must be ordered already."""
    racks = {"b": Rack(accelerator="gb200", accelerators_per_rack=72, in_service=date(2027, 2, 1))}
    fleet = fleet_of([GridConnection(power_mw=20.0, energised=date(2024, 1, 1))], racks=racks)
    (note,) = capacity.capacity(fleet, TODAY, 4, draws=20).sites[0].notes
    assert "due in 10 weeks" in note and "counted as already ordered" in note


def test_the_same_seed_gives_the_same_answer_and_a_site_moves_no_other():
    """Draws belong to site and phase: the same report for the same seed, and none changes when a site is added."""
    fleet = fleet_of([GridConnection(power_mw=6.0, announced=TODAY)])
    one, again = (capacity.capacity(fleet, TODAY, 8, draws=300, seed=3) for _ in range(2))
    assert one == again
    wider = msgspec.structs.replace(fleet, sites={"bergen": fleet.sites["oslo"], **fleet.sites})
    assert capacity.capacity(wider, TODAY, 8, draws=300, seed=3).sites[1] == one.sites[0]


@pytest.fixture
def example(tmp_path: Path) -> Path:
    """Return a fleet file of the template."""
    file = tmp_path / "fleet.yaml"
    file.write_text(template())
    return file


def test_the_verb_prints_writes_and_answers_in_json(example: Path, capsys: pytest.CaptureFixture[str], tmp_path: Path):
    """Text fits 80 columns, JSON is the whole report, and the page needs nothing from outside."""
    page = tmp_path / "capacity.html"
    assert run(["capacity", str(example), "--date", "2026-11-21", "--horizon", "2y", "--html", str(page)]) == 0
    text = capsys.readouterr().out
    assert "What binds" in text and "stands in for loads" in " ".join(text.split())
    assert max(map(len, text.splitlines())) <= 120
    assert run(["capacity", str(example), "--date", "2026-11", "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert len(told["quarters"]) == 20 and set(told["whole"]["rungs"]) == set(RUNGS)
    html = page.read_text()
    assert "<script" not in html and not re.search(r'(src|href)="', html) and html.count("<svg") >= 1


def test_text_fits_a_narrow_terminal():
    """At 80 columns no line is longer."""
    report = capacity.capacity(_template_fleet(), TODAY, 20, draws=200)
    assert max(map(len, capacity_text.to_text(report, 80).splitlines())) <= 80


def test_names_from_outside_are_escaped():
    """A fleet's name cannot bring markup into the page."""
    fleet = msgspec.structs.replace(fleet_of([GridConnection(power_mw=1.0, announced=TODAY)]), name="<b>x</b>")
    assert "<b>x" not in capacity_html.to_html(capacity.capacity(fleet, TODAY, 4, draws=20))


def test_horizons():
    """Years, months and quarters are read; anything else is refused with an example."""
    assert [horizon_quarters(text) for text in ("5y", "20q", "18m", "1m")] == [20, 20, 6, 1]
    for text in ("", "5", "0y", "-1y", "21y", "5 years", "1e3y"):
        with pytest.raises(InputError, match="write e.g. 5y"):
            horizon_quarters(text)


@pytest.mark.parametrize(
    "more",
    [["--date", "soon"], ["--horizon", "x"], ["--seed", "-1"], ["--html", "."], ["--set", "sites.oslo.nonsense=1"]],
)
def test_wrong_options_are_refused(example: Path, more: list[str]):
    """Each wrong option is refused as the user's error."""
    with pytest.raises(BaseloadError):
        run(["capacity", str(example), *more])


@pytest.mark.parametrize("verb", ["capacity", "simulate"])
def test_a_page_never_replaces_the_fleet_file(example: Path, verb: str):
    """--html that names the fleet file is refused, and the file keeps its text."""
    with pytest.raises(BaseloadError, match="--html .*would replace"):
        run([verb, str(example), "--html", str(example.parent / "." / example.name)])
    assert example.read_text() == template()


def test_a_page_never_replaces_what_a_run_folder_holds(tmp_path: Path):
    """`report --html` refuses the run's own tables and fleet file; its own page may be written anew."""
    (tmp_path / "fleet.yaml").write_text("x")
    (tmp_path / "report.html").write_text("x")
    with pytest.raises(BaseloadError, match="--html .*would replace"):
        run(["report", str(tmp_path), "--html", str(tmp_path / "fleet.yaml")])
    with pytest.raises(BaseloadError, match="no run folder"):
        run(["report", str(tmp_path), "--html", str(tmp_path / "report.html")])
