"""Declared months of a phase: delays drawn in the risk, the planned file and the ladder have them as their median."""

from __future__ import annotations

from datetime import date
from functools import cache
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest

from baseload.app import (
    plan_delay,
    plan_demand,
    plan_fleet,
    plan_problem,
    plan_report,
    plan_risk,
    plan_rows,
    plan_whole,
)
from baseload.app.plan_map import PlanMap
from baseload.app.plan_verb import Asked
from baseload.fleet import check
from baseload.fleet.grid import GridStage
from baseload.fleet.load import Loaded, load, loads
from baseload.fleet.model import GridConnection
from baseload.plan import solve
from baseload.plan.problem import Answer, Problem
from baseload.plan.table import ReplicaTable
from baseload.policies import KINDS
from baseload.report import capacity
from baseload.report.capacity import draw_phase

ROOT = Path(__file__).resolve().parents[2]
TODAY = date(2027, 1, 1)
OWN = {
    "agreement": GridStage(p50_months=3.0),
    "transformer": GridStage(p10_months=18.0, p50_months=26.0, p90_months=40.0),
    "line": GridStage(min_months=10.0, mode_months=14.0, max_months=30.0),
    "commissioning": GridStage(),
}
PHASES: dict[str, GridConnection] = {
    "priors": GridConnection(power_mw=1.0, announced=date(2024, 2, 1), permitted=date(2025, 3, 1)),
    "own stages": GridConnection(power_mw=1.0, announced=date(2025, 1, 1), stages=OWN),
    "often given up": GridConnection(power_mw=1.0, withdrawn_per_year=0.2),
    "a chance": GridConnection(power_mw=1.0, certainty=0.5, stages=OWN),
    "without doubt": GridConnection(
        power_mw=1.0,
        certainty=1.0,
        stages={"build": GridStage(min_months=9.0, mode_months=9.0, max_months=9.0)},
    ),
}


@pytest.mark.parametrize("name", PHASES)
@pytest.mark.parametrize("months", [0.5, 15.0, 70.0])
def test_half_of_what_comes_to_power_does_within_the_declared_months(name: str, months: float) -> None:
    """Whatever its stages, its chance and its rate of being given up, the median drawn delay is the declared months."""
    drawn, scaled = plan_delay.drawn_delay(PHASES[name], TODAY, months, n=400, seed=[1, 2])
    assert scaled
    assert np.median(drawn[np.isfinite(drawn)]) == pytest.approx(months, abs=0.02, rel=0.01)


def test_what_runs_before_it_is_begun_is_scaled_too() -> None:
    """Stages that run on the day that is asked about, in a phase begun two years later, are scaled to the declared months."""
    running = msgspec.structs.replace(PHASES["own stages"], stages=OWN | {"land": GridStage(p50_months=30.0)})
    for begins, month in ((0.0, 4.0), (0.0, 15.0), (24.0, 30.0), (24.0, 90.0)):
        found = plan_delay.centred(running, TODAY, month, begins=begins, n=400, seed=[7])
        assert found is not None
        drawn = draw_phase(found, TODAY, n=400, seed=[7]).draws.energised_month
        assert np.median(drawn[np.isfinite(drawn)]) == pytest.approx(month, abs=0.02, rel=0.01)


def test_what_takes_longer_is_given_up_more_often() -> None:
    """A phase is given up by its rate over the scaled time: the chance of that grows with the declared months."""
    gone = [
        float(np.mean(np.isinf(plan_delay.drawn_delay(PHASES["priors"], TODAY, months, n=2000, seed=[1])[0])))
        for months in (6.0, 15.0, 40.0)
    ]
    assert gone == sorted(gone) and 0.0 < gone[0] < gone[2] < 0.3


def test_stages_keep_their_shape_when_they_are_scaled() -> None:
    """All open stages are scaled by one number, so a delay is that number times what it would have been."""
    phase = msgspec.structs.replace(PHASES["own stages"], certainty=1.0)
    free = draw_phase(phase, TODAY, n=400, seed=[3]).draws.energised_month
    drawn, _ = plan_delay.drawn_delay(phase, TODAY, 12.0, n=400, seed=[3])
    assert drawn / free == pytest.approx(np.full(400, 12.0 / np.median(free)), rel=2e-3)


def test_what_cannot_be_scaled_is_drawn_as_the_file_has_it() -> None:
    """A stage done beyond the months goes by its stages; no months, or a wait that hardly one outlasts, leave no doubt."""
    late = GridConnection(power_mw=1.0, stages=OWN | {"agreement": GridStage(done=date(2029, 1, 1))})
    drawn, scaled = plan_delay.drawn_delay(late, TODAY, 15.0, n=400, seed=[1])
    assert not scaled and drawn.min() > 24.0
    drawn, scaled = plan_delay.drawn_delay(PHASES["priors"], TODAY, 0.0, n=400, seed=[1])
    assert not scaled and not drawn.any()
    doomed = GridConnection(power_mw=1.0, withdrawn_per_year=3.0)
    assert not plan_delay.drawn_delay(doomed, TODAY, 70.0, n=400, seed=[1])[1]


# ---- the shipped example ---------------------------------------------------------------------------------


@cache
def factory(*overrides: str) -> tuple[Loaded, Problem, PlanMap, ReplicaTable, Answer]:
    """Return the plan of the example whose fourth hall declares the months to its power."""
    loaded = load(ROOT / "examples/ai-factory/fleet.yaml", overrides)
    assert loaded.fleet.plan is not None
    table = plan_rows.modelled_table(loaded.fleet, plan_demand.traffic(loaded, loaded.fleet.plan))
    problem, plan_map = plan_problem.plan_problem(loaded, table, quarters=12, today=date(2026, 12, 1))
    return loaded, problem, plan_map, table, solve.solve(problem, gap=0.02, cpu_limit_s=30.0)


def ladder_of(*overrides: str) -> tuple[capacity.CapacityReport, Loaded, list[Any]]:
    """Return the report's ladder, the planned fleet file, and what is begun."""
    loaded, problem, plan_map, _, answer = factory(*overrides)
    text = plan_fleet.planned_fleet(loaded, problem, answer, plan_map)
    numbers = plan_whole.whole(problem, answer, plan_map)
    report = plan_report.ladder(text, loaded, plan_map, numbers)
    assert report is not None
    begun = [one for one in plan_report.decisions(problem, answer, plan_map, numbers) if one.action == "begin"]
    return report, loads(text, file="plan/fleet.yaml", base_folder=loaded.base_folder), begun


def test_the_ladder_has_power_from_the_quarter_that_the_decisions_name() -> None:
    """Half of all draws have a begun hall's power from the quarter of the table on, and the phase's P50 is in it."""
    report, _, (begun,) = ladder_of()
    hall = next(one for one in report.sites if one.name == "hall-d")
    first = next(i for i, mw in enumerate(hall.rungs["energised"].p50_mw) if mw > 0.0)
    assert f"power from {report.quarters[first]} (median)" in begun.note
    assert hall.rungs["usable"].p50_mw[-1] > 0.0
    phase = next(one for one in report.phases if one.site == "hall-d")
    assert phase.p50 == "2028-04" and 0.7 < phase.chance_in_horizon < 1.0
    assert report.caveats[0].startswith("hall-d grid 0: of what comes to power half does within 15 months")


def test_the_planned_file_gives_the_same_ladder() -> None:
    """From the same day, `baseload capacity` draws for the planned file what the plan's report shows; `check` takes it."""
    report, planned, _ = ladder_of()
    again = capacity.capacity(planned.fleet, date(2027, 1, 1), 12, draws=plan_delay.LADDER_DRAWS)
    assert (again.sites, again.phases) == (report.sites, report.phases)
    assert check.problems(planned, policies=KINDS, day=date(2028, 7, 1)) == []


@pytest.mark.parametrize("agreement", ["{}", "{p50_months: 4}"])
def test_own_stages_in_the_planned_file_have_the_declared_months(agreement: str) -> None:
    """Stages that the owner wrote are scaled in the planned file, the agreement among them where its length is said."""
    own = f"sites.hall-d.grid.0.stages={{agreement: {agreement}, line: {{min_months: 2, mode_months: 5, max_months: 30}}}}"
    report, planned, _ = ladder_of(own)
    (phase,) = planned.fleet.sites["hall-d"].grid
    assert next(one for one in report.phases if one.site == "hall-d").p50 in ("2028-03", "2028-04")
    assert (phase.contracted is None) == (phase.stages["agreement"].p50_months is not None)
    assert "half does within 15 months" in report.caveats[0]


def test_months_that_the_stages_contradict_are_told() -> None:
    """Where a stage ends later than the declared months allow, the report says that the ladder goes by the stages."""
    known = "sites.hall-d.grid.0.stages={agreement: {done: 2028-06-01}, build: {}}"
    report, _, begun = ladder_of(known, "plan.begin.0.months=15")
    told = [line for line in report.caveats if line.startswith("hall-d grid 0")]
    assert begun and "cannot be scaled to its 15 months; the ladder goes by the stages as they are" in told[0]
    assert "while the plan counts it from 2028-Q2" in told[0]


def test_without_months_nothing_is_scaled() -> None:
    """A phase without declared months is drawn by its stages as ever, and its planned file declares none of them."""
    loaded, problem, plan_map, _, answer = factory("plan.begin.0.months=null")
    delays = plan_risk._delays(problem, plan_map, 5)
    record = loaded.fleet.sites["hall-d"].grid[0]
    free = draw_phase(record, plan_map.today, n=plan_risk.DRAWS, seed=[5, 77, 0]).draws.energised_month
    assert delays is not None
    assert delays[:, 0].tolist() == np.ceil(np.minimum(free, 3.0 * 13 + 31 / 30.4375) / 3.0 - 1e-9).tolist()
    assert plan_delay.written_stages(plan_map, plan_map.phases[0], date(2027, 1, 1)) == {}
    assert "stages" not in plan_fleet.planned_fleet(loaded, problem, answer, plan_map)


def test_declared_months_are_the_median_of_the_scenarios() -> None:
    """Half of the futures in which a hall comes to power have it by the quarters that the plan counts."""
    _, problem, plan_map, _, _ = factory()
    delays = plan_risk._delays(problem, plan_map, 5)
    assert delays is not None and int(problem.phase_delay[0]) == 5
    came = delays[delays[:, 0] <= len(problem.periods), 0]
    assert int(np.quantile(came, 0.5, method="inverted_cdf")) == 5


def test_stages_without_doubt_come_in_the_quarters_that_the_plan_counts() -> None:
    """A phase whose stages are sure takes exactly its declared months, five quarters, in each future."""
    sure = "sites.hall-d.grid.0.stages={build: {min_months: 7, mode_months: 7, max_months: 7}}"
    _, problem, plan_map, _, _ = factory(sure, "sites.hall-d.grid.0.certainty=1")
    delays = plan_risk._delays(problem, plan_map, 5)
    assert delays is not None and set(delays[:, 0].tolist()) == {5}


@pytest.mark.slow
def test_a_plan_under_risk_begins_the_hall_of_the_example() -> None:
    """Held against late and early power, the example's fourth hall is begun now, as in the median future."""
    loaded, problem, plan_map, table, answer = factory()
    asked = Asked(loaded=loaded, problem=problem, plan_map=plan_map, table=table, answer=answer)
    found, _ = plan_risk.look(asked, "expected", 4, 0, lambda: False, lambda sentence: None)
    assert any(line.startswith("begin hall-d grid 0") for line in found.lines)
    assert not any("no stages can be scaled" in line for line in found.lines)


def test_risk_names_a_phase_whose_delays_have_another_median() -> None:
    """Where the scenarios cannot keep to the declared months, a sentence says so, and how they draw the phase instead."""
    _, _, plan_map, _, _ = factory("sites.hall-d.grid.0.stages={agreement: {done: 2028-06-01}, build: {}}")
    (line,) = plan_risk._uncentred(plan_map, 5)
    assert "hall-d grid 0: no stages can be scaled to its 15 months" in line and "its stages as they are" in line
