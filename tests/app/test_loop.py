"""The loop between plan and twin: it corrects what was promised too high, and says so; stopped, it ends in good order."""

from __future__ import annotations

import dataclasses
from datetime import date, timedelta
from math import ceil
from pathlib import Path

import msgspec
import numpy as np
import pytest

from baseload.app import loop
from baseload.app.loop import LoopResult, Planned, all_milestones, close_loop
from baseload.app.loop_trial import Case, Kept, Trial, busiest, stage, try_case
from baseload.app.plan_findings import rounds_of
from baseload.app.replica_table import replica_table
from baseload.fleet import load
from baseload.fleet.load import Loaded
from baseload.fleet.model import Replicas
from baseload.plan.table import ReplicaTable

EDGE = Path(__file__).resolve().parents[2] / "examples" / "edge" / "fleet.yaml"
SMALL = (
    "demand.generator.requests_per_s=200",
    "demand.generator.kind=poisson",
    "demand.generator.duration_s=120",
    "failures.server_mtbf_h=0",
    "failures.site_mtbf_h=0",
    "tenants.italian-registry.share=0",
)
PEAK = {"voice": 200 * 55 / 90, "agent": 200 * 35 / 90}  # requests a second
DAY = date(2026, 6, 15)


@pytest.fixture(scope="module")
def edge() -> Loaded:
    """Return the edge example with steady, smaller demand."""
    return load.load(EDGE, SMALL)


@pytest.fixture(scope="module")
def measured(edge: Loaded, tmp_path_factory: pytest.TempPathFactory) -> ReplicaTable:
    """Return its table of replicas."""
    return replica_table(edge, cache=tmp_path_factory.mktemp("table"))


def planner(edge: Loaded, peak: dict[str, float]) -> tuple[list[int], object]:
    """Return a planner for equal sites, any one of which may be lost, and the replicas that it planned each time."""
    made: list[int] = []

    def plan_once(table: ReplicaTable) -> Planned:
        fleet = edge.fleet
        deployments = {}
        for name, one in fleet.deployments.items():
            rate = min(row.carries_per_s for row in table.of_model(one.model))
            each = max(1, ceil(peak[one.model] / rate / (len(fleet.sites) - 1)))
            sites = {site: Replicas(min=each) for site in fleet.sites}
            deployments[name] = msgspec.structs.replace(one, sites=sites)
        made.append(sum(one.min for d in deployments.values() for one in d.sites.values()))
        users = frozenset((tenant, "") for tenant in ("call-centres", "software-houses"))
        return Planned(
            loaded=dataclasses.replace(edge, fleet=msgspec.structs.replace(fleet, deployments=deployments)),
            days=(DAY,), until=date(2026, 9, 14), everyone=users, survivors=users,
        )  # fmt: skip

    return made, plan_once


def closed(edge: Loaded, table: ReplicaTable, **changes: object) -> tuple[list[int], LoopResult]:
    """Return the replicas of each plan and how the loop ended."""
    made, plan_once = planner(edge, PEAK)
    return made, close_loop(table, plan_once, most_requests=16_000, **changes)  # type: ignore[arg-type]


def test_a_measured_table_needs_few_corrections(edge: Loaded, measured: ReplicaTable) -> None:
    """A plan from measured rows keeps every promise with any one site lost, and the loop says in how many rounds."""
    _, result = closed(edge, measured)
    assert result.agreed
    assert not result.rounds[-1].misses
    assert {trial.case.lost for trial in result.rounds[-1].trials} == {None, *edge.fleet.sites}
    assert f"after {len(result.rounds)} round" in result.notes()[0]


def test_rows_that_promise_too_much_are_lowered_until_both_agree(edge: Loaded, measured: ReplicaTable) -> None:
    """Where the table says six times what a replica carries, the twin misses, the rows fall, the plan grows."""
    rows = [msgspec.structs.replace(row, requests_per_s=6.0 * row.requests_per_s) for row in measured.rows]
    made, result = closed(edge, ReplicaTable.of(rows), rounds=10)
    assert result.agreed and len(result.rounds) > 1
    assert made[-1] > made[0]
    assert result.rounds[0].misses and result.rounds[0].corrections
    assert result.table.corrections()
    assert "counts" in result.rounds[0].sentence()


def test_equal_seeds_close_the_loop_equally(edge: Loaded, measured: ReplicaTable) -> None:
    """The same table, planner and seed give the same rounds, run for run."""
    first, second = closed(edge, measured)[1], closed(edge, measured)[1]
    assert first.rounds == second.rounds


def test_a_loop_that_is_stopped_claims_nothing(edge: Loaded, measured: ReplicaTable) -> None:
    """Stopped between runs it returns the plan it has, and says that the round was cut short instead of what it would find."""
    asked = iter([False, False, True])
    for stop, made in ((lambda: True, 0), (lambda: next(asked, True), 2)):
        _, result = closed(edge, measured, stop=stop)
        assert not result.agreed and len(result.rounds) == 1
        runs = made + result.rounds[0].left
        assert f"cut short after {made} of {runs} runs" in result.rounds[0].sentence() and runs == 1 + len(
            edge.fleet.sites
        )
        assert [(one.meets, one.cut) for one in rounds_of(result)] == [(False, True)]


def test_a_lost_site_serves_nobody_and_costs_what_was_in_flight(edge: Loaded, measured: ReplicaTable) -> None:
    """Answers in flight at the site are struck once, in the hour of the loss; the others stay within their promise."""
    _, plan_once = planner(edge, PEAK)
    planned = plan_once(measured)  # type: ignore[operator]
    at = stage(planned.loaded, DAY, peak_factor=1.0, most_requests=16_000, seed=0)
    calm, lost = try_case(at, None, planned.everyone), try_case(at, "paris", planned.everyone)
    assert calm.meets and lost.meets
    assert all(one.struck == 0 for one in calm.kept)
    assert sum(one.struck for one in lost.kept) > 0
    assert lost.requests == calm.requests
    heavier = try_case(at, None, planned.everyone, load_factor=3.0)
    assert heavier.requests_per_s == pytest.approx(3.0 * calm.requests_per_s, rel=0.01)
    assert not heavier.meets


def test_a_site_of_several_halls_loses_one(edge: Loaded, measured: ReplicaTable) -> None:
    """Where a site counts as halls, the loss takes one hall's replicas from the start, and nobody is struck."""
    _, plan_once = planner(edge, PEAK)
    planned = plan_once(measured)  # type: ignore[operator]
    at = stage(planned.loaded, DAY, peak_factor=1.0, most_requests=8_000, seed=0)
    hall = try_case(at, "paris", planned.survivors, halls=2)
    assert hall.meets and hall.case.lost == "paris"
    assert all(one.struck == 0 for one in hall.kept)
    assert not try_case(at, "paris", planned.survivors, halls=2, load_factor=3.0).meets


def test_milestones_are_the_last_days_before_changes(edge: Loaded, measured: ReplicaTable) -> None:
    """Demand grows while nothing changes, so the last day is the hardest; the horizon's last day is always one."""
    _, plan_once = planner(edge, PEAK)
    planned = plan_once(measured)  # type: ignore[operator]
    assert all_milestones(planned) == [date(2026, 9, 14)]
    voice = planned.loaded.fleet.deployments["voice"]
    later = {**planned.loaded.fleet.deployments, "more": msgspec.structs.replace(voice, start=date(2026, 8, 1))}
    fleet = msgspec.structs.replace(planned.loaded.fleet, deployments=later)
    grown = dataclasses.replace(planned, loaded=dataclasses.replace(planned.loaded, fleet=fleet))
    assert all_milestones(grown) == [date(2026, 7, 31), date(2026, 9, 14)]


def test_the_busiest_part_is_found() -> None:
    """Of a long run the span with the most requests is tried, of a short one all of it."""
    counts = np.array([1.0] * 100 + [9.0] * 30 + [1.0] * 100)
    first, until = busiest(counts, 270)
    assert first <= 100 and until >= 129
    assert busiest(counts, 10_000) == (0.0, 230.0)


def test_rounds_try_other_days_each_time(edge: Loaded, measured: ReplicaTable, monkeypatch: pytest.MonkeyPatch) -> None:
    """Days that no round has tried are not left to the last one; the horizon's last day and those that broke always run."""
    days = [date(2026, 6, 15) + timedelta(days=30 * i) for i in range(28)]
    monkeypatch.setattr(loop, "all_milestones", lambda _: days)
    tried = []

    def trials(planned: Planned, chosen: list[date], *_: object) -> tuple[list[Trial], int]:
        kept = Kept(tenant="a", attainment=0.5, promised=0.9, requests=1, struck=0, cause="", models={}, kinds={})
        tried.append(chosen)
        case = Case(day=chosen[1], lost=None)
        return [Trial(case=case, load_factor=1.0, requests_per_s=1.0, requests=1, kept=(kept,))], 0

    lower = [loop.Correction(service="a", accelerator="b", before=1.0, after=0.9, why="")]
    monkeypatch.setattr(loop, "_trials", trials)
    monkeypatch.setattr(loop, "_corrections", lambda *_: (lower, []))
    monkeypatch.setattr(ReplicaTable, "corrected", lambda table, *_: table)
    closed(edge, measured, rounds=6)
    assert len(tried) == 6 and all(chosen[-1] == days[-1] for chosen in tried)
    assert all(before[1] in chosen for before, chosen in zip(tried, tried[1:], strict=False))
    assert len({day for chosen in tried for day in chosen}) >= 20
