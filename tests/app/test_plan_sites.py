"""Phases that may add power: when the plan counts on them, from when on, and what it says of those in doubt."""

from __future__ import annotations

from datetime import date

import pytest

from baseload.app import plan_demand, plan_problem, plan_risk, plan_rows, plan_sites
from baseload.app.plan_sites import Phase
from baseload.fleet.load import loads
from baseload.fleet.phases import months_between
from baseload.fleet.planning import Plan, quarters_from

FLEET = """
baseload: 1
name: phases
sites:
  a:
    place: stockholm
    grid:
      - {power_mw: 0.1, energised: 2024-01-01}
      - power_mw: 0.2
        contracted: 2026-12-01
        stages: {line: {min_months: 10, mode_months: 12, max_months: 14}}
        withdrawn_per_year: 0.0
    racks: {h: {accelerator: h100-sxm, accelerators_per_rack: 8}}
models: {m: {catalog: llama-3.1-8b}}
deployments: {d: {model: m, accelerator: h100-sxm, precision: fp8, sites: {a: {min: 1}}}}
demand: {generator: {kind: poisson, requests_per_s: 2, duration_s: 300}, start: 2026-01-01}
"""
TODAY = date(2027, 1, 1)
DAYS = quarters_from(TODAY, 20)


def phases_of(*overrides: str) -> tuple[list[Phase], str]:
    """Return the phases of the fleet with some keys set, and all that is said of them."""
    sets = [f"sites.a.grid[1].{one}" for one in overrides]
    fleet = loads(FLEET, overrides=sets).fleet
    made, notes = plan_sites.site_phases(fleet, Plan(), TODAY, DAYS, 0)
    return made, " ".join(notes)


def test_a_phase_under_way_comes_at_the_median_of_its_stages() -> None:
    """A year of line from the first day is four quarters; nothing needs to be said of a phase without doubt."""
    made, said = phases_of()
    assert [one.periods for one in made] == [4] and not said


def test_power_that_ends_within_the_horizon_is_not_counted_on() -> None:
    """A phase that is not there yet and ends within the horizon is left out, with a word; one that ends after it counts."""
    made, said = phases_of("until=2029-01-01")
    assert not made and "2029-01-01" in said and "does not count on it" in said
    assert len(phases_of("until=2032-01-01")[0]) == 1


@pytest.mark.parametrize(("day", "periods"), [("2029-01-01", 8), ("2029-06-01", 10), ("2027-02-01", 4)])
def test_a_declared_day_beside_stages_is_the_earliest(day: str, periods: int) -> None:
    """Power is counted from the first quarter that begins on or after the later of the declared day and the stages' median."""
    made, said = phases_of(f"energised={day}")
    assert [one.periods for one in made] == [periods] and day in said


def test_a_phase_with_stages_is_counted_once() -> None:
    """A declared day beside stages gives the site no power of its own: the phase brings it."""
    fleet = loads(FLEET, overrides=["sites.a.grid[1].energised=2029-06-01"])
    years = plan_sites.site_years(fleet.fleet, "a", DAYS, fleet.base_folder, Plan(), TODAY)
    assert years.usable_mw[-1] == years.usable_mw[0]


@pytest.mark.parametrize("doubt", ["withdrawn_per_year=4", "certainty=0.02"])
def test_what_is_likely_given_up_comes_no_sooner_and_is_said(doubt: str) -> None:
    """Being given up more often shortens no stage: the time to power stays, and the chance is named."""
    made, said = phases_of(*(("withdrawn_per_year=null", doubt) if "certainty" in doubt else (doubt,)))
    assert [one.periods for one in made] == [4] and "given up" in said and "9" in said


def test_what_never_comes_is_left_out() -> None:
    """A phase that is certain to be given up is not counted on, and that is said."""
    made, said = phases_of("withdrawn_per_year=null", "certainty=0")
    assert not made and "never comes to power" in said


def test_no_future_of_the_risk_has_power_before_the_declared_day() -> None:
    """The scenarios keep to it as the plan does: drawn delays of a phase with a declared day end there at the earliest."""
    loaded = loads(FLEET, overrides=["sites.a.grid[1].energised=2029-06-01"])
    table = plan_rows.modelled_table(loaded.fleet, plan_demand.traffic(loaded, Plan()))
    plan_map = plan_problem.plan_problem(loaded, table, quarters=20, today=TODAY)[1]
    drawn, _ = plan_risk._months(plan_map, 0, 0)
    assert drawn.min() == pytest.approx(months_between(TODAY, date(2029, 6, 1)), abs=0.02)
