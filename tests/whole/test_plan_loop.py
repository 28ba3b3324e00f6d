"""Every example plans, and its plan keeps every promise in the twin with any one site (or hall) lost.

In the tests one milestone each, the last; `make plan-examples` runs all of them, and says what it took.
"""

from __future__ import annotations

import sys
import time
from dataclasses import dataclass
from pathlib import Path

import pytest

from baseload.app.capacity_verb import horizon_quarters
from baseload.app.loop import LoopResult, Planned, all_milestones, close_loop, planned_of
from baseload.app.plan_fleet import planned_fleet
from baseload.app.plan_problem import plan_problem
from baseload.app.replica_table import replica_table
from baseload.fleet import load
from baseload.fleet.load import Loaded
from baseload.plan.solve import solve
from baseload.plan.table import ReplicaTable

ROOT = Path(__file__).resolve().parents[2]
EXAMPLES = ("three-sites", "edge", "ai-factory")
GAP = 0.02


@dataclass(frozen=True, slots=True)
class Closed:
    """An example whose loop was closed, and the CPU seconds that its parts took."""

    loaded: Loaded
    result: LoopResult
    table_s: float
    solve_s: float
    all_s: float


def close(name: str, **changes: object) -> Closed:
    """Plan an example as `baseload plan` does, and close the loop."""
    began = time.process_time()
    loaded = load.load(ROOT / "examples" / name / "fleet.yaml", ())
    plan = loaded.fleet.plan
    assert plan is not None and plan.start is not None
    table = replica_table(loaded)
    table_s, solve_s = time.process_time() - began, 0.0

    def plan_once(rows: ReplicaTable) -> Planned:
        nonlocal solve_s
        start = time.process_time()
        assert plan.start is not None
        problem, plan_map = plan_problem(
            loaded, rows, quarters=horizon_quarters(plan.horizon), today=plan.start, seed=0
        )  # fmt: skip
        answer = solve(problem, gap=GAP, cpu_limit_s=30.0)
        assert answer.meets and answer.gap <= GAP
        text = planned_fleet(loaded, problem, answer, plan_map)
        planned = load.loads(text, file="plan/fleet.yaml", base_folder=loaded.base_folder)
        solve_s += time.process_time() - start
        return planned_of(planned, problem, answer, plan_map)

    result = close_loop(table, plan_once, **changes)  # type: ignore[arg-type]
    return Closed(loaded, result, table_s, solve_s, time.process_time() - began)


@pytest.mark.slow
@pytest.mark.parametrize("name", EXAMPLES)
def test_the_plan_of_an_example_keeps_every_promise_with_any_one_site_lost(name: str) -> None:
    """Plan and twin agree; everybody who may be served by two sites is judged with each site that serves lost in turn."""
    closed = close(name, milestones=1, every=False)
    result, fleet = closed.result, closed.result.planned.loaded.fleet
    assert result.agreed, result.notes()
    assert not result.planned.left_out
    trials = result.rounds[-1].trials
    day = all_milestones(result.planned)[-1]
    assert {trial.case.day for trial in trials} == {day}
    assert sum(trial.case.lost is None for trial in trials) == 1
    lost = {trial.case.lost for trial in trials} - {None}
    serving = {
        site
        for one in fleet.deployments.values()
        if (one.start is None or one.start <= day) and (one.until is None or day < one.until)
        for site in one.sites
    }
    assert lost == serving and len(lost) >= 2
    judged = {one.tenant for trial in trials if trial.case.lost is not None for one in trial.kept}
    assert judged == {tenant for tenant, _ in result.planned.survivors}
    calm = next(trial for trial in trials if trial.case.lost is None)
    assert calm.requests_per_s > 1.3 * _today_per_s(closed.loaded)  # demand has grown


def _today_per_s(loaded: Loaded) -> float:
    from baseload.app.plan_demand import traffic
    from baseload.fleet.planning import Plan

    return traffic(loaded, loaded.fleet.plan or Plan()).mean_per_s


def main() -> int:
    """Close the loop of each example at every milestone, and say what it took; 1 where one does not agree."""
    from baseload import jit

    jit.enable()
    code = 0
    for name in sys.argv[1:] or EXAMPLES:
        closed = close(name)
        print(f"{name}: {closed.all_s:.0f} CPU s (table {closed.table_s:.0f}, plans {closed.solve_s:.0f})")
        for line in closed.result.notes():
            print(f"  {line}")
        code |= not closed.result.agreed
    return code


if __name__ == "__main__":
    sys.exit(main())
