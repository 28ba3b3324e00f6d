"""What is asked after a plan: a change (`whatif`), what may be impossible (`conflict`), many futures (`risk`).

Each function does its work in the process that calls it and returns its figures in CPU seconds of that process. The changes
and requests of an instance are made from its seed; the goals are those of the coarse instance, 20 x 8 x 12 x 12 x 10.
"""

from __future__ import annotations

import resource
import statistics
import time
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from baseload.plan.problem import Problem

Size = tuple[int, int, int, int, int]  # sites, kinds, services, clients, periods
COARSE: Size = (20, 8, 12, 12, 10)
QUICK: Size = (5, 3, 3, 6, 8)
GAP = 0.01  # of a plan and of a changed one
PLAN_S = 45.0  # CPU seconds for the plan that is changed
PATIENCE_S = 20.0  # for a changed one
UNSEEN = 5  # scenarios that a decision was not made for


@dataclass(frozen=True, kw_only=True)
class Goal:
    """CPU seconds that the slowest question may take, and the gap that each must come to."""

    seconds: float
    gap: float | None
    scenarios: int = 0


GOALS = {
    "whatif": Goal(seconds=5.0, gap=GAP),
    "conflict": Goal(seconds=10.0, gap=None),
    "risk": Goal(seconds=300.0, gap=0.02, scenarios=20),
}


def changes(problem: Problem, seed: int) -> Iterator[tuple[str, Problem]]:
    """Yield ten changes, by name: the phase, service, kind, client and site that they are of go by the seed."""
    rng = np.random.default_rng(seed)
    n_sites, n_kinds, n_services, n_clients, n_periods = problem.shape
    p, s, m, a, r = (int(rng.integers(n)) for n in (len(problem.phases), n_sites, n_services, n_kinds, n_clients))
    delay, power, price = problem.phase_delay.copy(), problem.phase_mw.copy(), problem.cost_buy.copy()
    delay[p] = min(n_periods - 1, delay[p] + 2)
    power[p] *= 0.5
    price[:, a] *= 1.15
    asked, allowed, grid, begin = (
        problem.demand.copy(),
        problem.allowed.copy(),
        problem.power_mw.copy(),
        problem.begin_from.copy(),
    )
    asked[:, m] *= 1.2
    allowed[r, s, allowed[r].sum(axis=0) > 1] = False
    grid[s] *= 0.6
    begin[p] = n_periods
    yield "a phase two periods later", replace(problem, phase_delay=delay)
    yield "a service asked for 20 % more", replace(problem, demand=asked)
    yield "all demand 5 % up", replace(problem, demand=problem.demand * 1.05)
    yield "a phase of half the power", replace(problem, phase_mw=power)
    yield "a kind 15 % dearer", replace(problem, cost_buy=price)
    yield "a client no longer served from a site", replace(problem, allowed=allowed)
    yield "a site's power 40 % down", replace(problem, power_mw=grid)
    yield "0.9 of all demand survives", replace(problem, survive_ratio=np.full(n_services, 0.9))
    yield "rent 30 % down", replace(problem, cost_sign=problem.cost_sign * 0.7)
    if problem.begin_by[p] >= n_periods:
        yield "a phase never", replace(problem, begin_from=begin)


def requests(problem: Problem) -> Iterator[tuple[str, Problem]]:
    """Yield nine requests, by name, of which some can be met."""
    n_periods = len(problem.periods)
    yield "as it is", problem
    yield "three times the demand", replace(problem, demand=problem.demand * 3.0)
    yield "no rent", replace(problem, sign_max=problem.sign_max * 0.0)
    yield "a fifth of the rent", replace(problem, sign_max=problem.sign_max * 0.2)
    yield "little to spend", replace(problem, capex_budget=np.full(n_periods, 1000.0))
    yield "no group over a fifth", replace(problem, share_max=np.full(problem.share_max.shape, 0.2))
    for times in (1.2, 1.5, 2.0):
        half = replace(problem, demand=problem.demand * times, sign_max=problem.sign_max * 0.5)
        yield f"{times:g} times the demand, half the rent", half


def whatif(seed: int, size: Size = COARSE) -> dict[str, Any]:
    """Plan an instance, then solve each change from there; every changed plan is checked row by row."""
    from baseload.plan.check_answer import check
    from baseload.plan.generate import instance
    from baseload.plan.solve import solve
    from baseload.plan.whatif import what_if

    problem = instance(*size, seed=seed)
    began_s = time.process_time()
    first = solve(problem, gap=GAP, cpu_limit_s=PLAN_S)
    found: dict[str, Any] = {"first_s": round(time.process_time() - began_s, 1), "asked": []}
    for name, changed in changes(problem, seed):
        began_s = time.process_time()
        new = what_if(problem, first, changed, gap=GAP, cpu_limit_s=PATIENCE_S).answer
        cpu_s = round(time.process_time() - began_s, 2)
        broken = len(check(changed, new))
        found["asked"].append({"name": name, "cpu_s": cpu_s, "gap": new.gap, "broken_rows": broken})
    return found | {"peak_mb": _peak_mb()}


def conflict(seed: int, size: Size = COARSE) -> dict[str, Any]:
    """Say of each request what contradicts itself in it, or that nothing does."""
    from baseload.plan.conflict import find
    from baseload.plan.generate import instance

    asked = []
    for name, request in requests(instance(*size, seed=seed)):
        began_s = time.process_time()
        why = find(request)
        cpu_s = round(time.process_time() - began_s, 2)
        sides = 0 if why is None else len(why.sides)
        asked.append({"name": name, "cpu_s": cpu_s, "sides": sides, "proven": why is None or why.proven})
    return {"asked": asked, "peak_mb": _peak_mb()}


def risk(seed: int, size: Size = COARSE, scenarios: int = GOALS["risk"].scenarios) -> dict[str, Any]:
    """Decide now for the least mean cost over scenarios; a few others say what that costs where nobody looked."""
    from baseload.plan.generate import instance
    from baseload.plan.risk import evaluate, robust
    from baseload.plan.scenarios import draw

    problem, goal = instance(*size, seed=seed), GOALS["risk"]
    assert goal.gap is not None
    found = robust(problem, draw(problem, scenarios, seed=seed), gap=goal.gap, cpu_limit_s=goal.seconds)
    peak_mb = _peak_mb()
    unseen = evaluate(problem, found.now, draw(problem, UNSEEN, seed=seed + 1_000_000))
    return {
        "cpu_s": round(found.searched_s, 1),
        "known_s": round(found.cpu_s - found.searched_s, 1),
        "gap": found.gap,
        "value": found.value,
        "vss": _said(found.vss),
        "evpi": _said(found.evpi),
        "unseen": float(np.nanmean(unseen)),
        "peak_mb": peak_mb,
    }


def _peak_mb() -> int:
    return round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024)


def _said(value: float) -> float | None:
    return value if np.isfinite(value) else None


# ---- in words -------------------------------------------------------------------------------------------------------
def told(part: str, row: dict[str, Any]) -> str:
    """Return the figures of a seed in a line."""
    if part == "risk":
        of = row["value"]
        worth = [
            f"{name} {row[key] / of:.2%}" if row[key] is not None else f"{name} not known"
            for name, key in (("value of the stochastic solution", "vss"), ("knowing the future at most", "evpi"))
        ]
        return (
            f"gap {row['gap']:.2%}, {row['cpu_s']} CPU s and {row['known_s']} to know each future, {', '.join(worth)}, "
            f"unseen futures {row['unseen'] / of - 1.0:+.2%}, {row['peak_mb']} MB"
        )
    seconds, slowest = [one["cpu_s"] for one in row["asked"]], max(row["asked"], key=lambda one: one["cpu_s"])
    line = (
        f"{min(seconds)} to {max(seconds)} CPU s, median {statistics.median(seconds):.1f}; slowest: {slowest['name']}"
    )
    if part == "whatif":
        gaps, broken = [one["gap"] for one in row["asked"]], sum(one["broken_rows"] for one in row["asked"])
        return f"{line}; worst gap {max(gaps):.2%}, broken rows {broken}, {row['peak_mb']} MB"
    named = sum(one["sides"] > 0 for one in row["asked"])
    return f"{line}; {named} of {len(seconds)} impossible, {row['peak_mb']} MB"


def verdict(part: str, rows: list[dict[str, Any]]) -> str:
    """Return how the goal of a part stands over all seeds."""
    goal = GOALS[part]
    asked = rows if part == "risk" else [one for row in rows for one in row["asked"]]
    in_time = [one["cpu_s"] <= goal.seconds for one in asked]
    close = [goal.gap is None or one["gap"] <= goal.gap for one in asked]
    good = sum(a and b and one.get("proven", True) for a, b, one in zip(in_time, close, asked, strict=True))
    wanted = f"{goal.seconds:g} CPU s" if goal.gap is None else f"{goal.gap:.0%} in {goal.seconds:g} CPU s"
    slowest = max(one["cpu_s"] for one in asked)
    return f"{part}: {good} of {len(asked)} with {wanted}, slowest {slowest:g}: {'met' if good == len(asked) else 'not met'}"
