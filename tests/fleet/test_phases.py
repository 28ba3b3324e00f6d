"""Grid phases: what their stages and milestones leave to do, and what is wrong with them, told with line and mend."""

from __future__ import annotations

from datetime import date
from pathlib import Path

import pytest

from baseload.errors import FleetError
from baseload.fleet import check, load, phases
from baseload.fleet.grid import GridStage
from baseload.fleet.model import GridConnection
from baseload.fleet.template import template

TODAY = date(2026, 11, 21)


def test_a_declared_day_without_stages_has_no_doubt():
    """`energised` alone is a fixed day, past or future."""
    for day in (date(2024, 1, 1), date(2028, 6, 1)):
        left = phases.left_of(GridConnection(power_mw=1.0, energised=day), TODAY)
        assert left.stages == () and left.fixed_month == phases.months_between(TODAY, day) and not left.from_prior


def test_a_phase_without_dates_has_the_whole_chain():
    """Announced alone: every usual stage at its prior, in order, and the rates of withdrawal by age."""
    left = phases.left_of(GridConnection(power_mw=1.0, announced=TODAY), TODAY)
    assert [stage.name for stage in left.stages] == list(phases.ORDER)
    assert left.from_prior and left.withdrawn_per_year == phases.priors().withdrawal.per_year
    assert set(left.stages[-1].after) == {"substation", "transformer", "line", "build"}


def test_a_signed_agreement_settles_what_comes_before_it():
    """With `contracted` in the past, land, study and agreement are done, and the low rate of withdrawal holds."""
    left = phases.left_of(GridConnection(power_mw=1.0, contracted=date(2025, 2, 1)), TODAY)
    done = {stage.name for stage in left.stages if stage.done_month is not None}
    assert done == {"land", "load_study", "agreement"}
    assert left.withdrawn_per_year == (phases.priors().withdrawal.contracted_per_year,)


def test_own_stages_skip_what_is_not_declared():
    """A phase that needs a transformer and commissioning alone has those two, one after the other."""
    stages = {
        "transformer": GridStage(p50_months=20.0),
        "commissioning": GridStage(min_months=1, mode_months=2, max_months=4),
    }
    left = phases.left_of(GridConnection(power_mw=1.0, stages=stages, certainty=0.9), TODAY)
    assert [(stage.name, stage.after) for stage in left.stages] == [
        ("transformer", ()),
        ("commissioning", ("transformer",)),
    ]
    assert left.stages[0].low < 20.0 < left.stages[0].high and left.stages[1].kind == "pert"
    assert left.certainty == 0.9 and left.withdrawn_per_year == (0.0,)


def test_what_was_skipped_is_not_blamed_on_the_stage_behind_it():
    """An agreement declared alone tells nothing of how long agreements take; a transformer began with the contract, or
    today where nobody says."""
    stages = {"agreement": GridStage(done=date(2025, 10, 1)), "transformer": GridStage()}
    long_ago = GridConnection(power_mw=1.0, announced=date(2020, 1, 1), stages=stages)
    agreement, transformer = phases.left_of(long_ago, TODAY).stages
    assert agreement.kind == "fixed" and transformer.after == ("agreement",)
    alone = {"transformer": GridStage()}
    (known,) = phases.left_of(GridConnection(power_mw=1.0, contracted=date(2025, 11, 21), stages=alone), TODAY).stages
    (unknown,) = phases.left_of(GridConnection(power_mw=1.0, announced=date(2020, 1, 1), stages=alone), TODAY).stages
    assert known.started_month == pytest.approx(-12.0, abs=0.1) and unknown.started_month == 0.0


def test_every_prior_has_its_source():
    """Each prior names a source with a date, and says how far to trust it; the calibrated one says what it stands in for."""
    prior = phases.priors()
    names = {stage.from_ for stage in prior.stages.values()} | {prior.spread.from_, prior.withdrawal.from_}
    assert names <= set(prior.sources) and all(prior.sources[name].date for name in names)
    assert "not loads" in prior.sources[prior.spread.from_].source


@pytest.mark.parametrize(
    ("phase", "key", "what"),
    [
        ("stages: {land: {min_months: 9, mode_months: 3, max_months: 12}}", "stages.land", "not in order"),
        ("stages: {land: {min_months: 9, max_months: 12}}", "stages.land", "`mode_months` is missing"),
        ("stages: {land: {p10_months: 9, p50_months: 9, p90_months: 12}}", "stages.land", "do not rise"),
        ("stages: {land: {p10_months: 3, p50_months: 9}}", "stages.land", "`p90_months` is missing"),
        ("stages: {land: {p50_months: 9, max_months: 12}}", "stages.land", "has both"),
        ("stages: {land: {p50_months: -1}}", "stages.land.p50_months", ""),
        ("stages: {transfomer: {}}", "stages.transfomer", "there is no stage"),
        ("stages: {land: {after: [build]}, build: {after: [land]}}", "stages.land.after", "wait for each other"),
        ("stages: {land: {after: [line]}}", "stages.land.after.0", "is no stage of this phase"),
        ("certainty: 0.5, withdrawn_per_year: 0.1", "certainty", "both say"),
        ("certainty: 1.5", "certainty", ""),
        ("withdrawn_per_year: -0.1", "withdrawn_per_year", ""),
        ("energised: 2023-01-01, stages: {build: {done: 2024-01-01}}", "stages.build.done", "after energised"),
        (
            "contracted: 2024-01-01, stages: {agreement: {done: 2025-01-01}}",
            "stages.agreement.done",
            "after contracted",
        ),
        ("stages: {land: {}, load_study: {done: 2025-01-01}}", "stages.load_study.done", "has no day"),
        (
            "stages: {land: {done: 2025-06-01}, load_study: {done: 2025-01-01}}",
            "stages.load_study.done",
            "before land was done",
        ),
    ],
)
def test_what_cannot_be_is_told(phase: str, key: str, what: str, tmp_path: Path):
    """A wrong phase is refused at its line and key, with what is wrong and how to mend it."""
    text = template()
    start = text.index("    grid:")
    line = text[:start].count("\n") + 2
    end = text.index("\n    ", text.index("\n", start) + 1)
    while text[end + 1 :].startswith("      "):
        end = text.index("\n", end + 1)
    changed = text[:start] + f"    grid:\n      - {{power_mw: 4, {phase}}}" + text[end:]
    file = tmp_path / "fleet.yaml"
    file.write_text(changed)
    try:
        problems = check.problems(load.load(file))
    except FleetError as error:
        problems = list(error.problems)
    found = [one for one in problems if one.key and ".grid[0]" in one.key.replace(".grid.0", ".grid[0]")]
    assert found, problems
    wanted = key.replace(".0", "[0]")
    assert any(wanted in one.key.replace(".0", "[0]") and what in one.what and one.line == line for one in found), found
