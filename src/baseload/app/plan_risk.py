"""`--risk`: what to decide now, held against late power, late shipments and demand that grows otherwise.

Phases are drawn by the delay model of `baseload capacity`, demand by the plan section's `growth_sigma`; the search is
`plan/risk.py`. What it decides now is checked on scenarios that it was not made for; the plan that is written keeps it, and
goes on as is best where things turn out as the plan says: phases at their median, demand as declared.
"""

from __future__ import annotations

from collections.abc import Callable
from math import isfinite
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from baseload.app import plan_delay
from baseload.app.plan_map import PlanMap
from baseload.fleet.phases import months_between
from baseload.plan import keep, risk, scenarios
from baseload.plan import money as books
from baseload.plan.problem import Answer, Floats, Problem
from baseload.report.capacity import draw_phase
from baseload.report.plan_model import Risk
from baseload.report.words import money, number, percent

if TYPE_CHECKING:
    from baseload.app.plan_verb import Asked

NOW_PERIODS = 2  # whose orders and rent are decided now
DRAWS = 400
SIGMA_MAX = 1.0
RISK_CPU_S = 120.0
CHECK_CPU_S = 30.0
KEEP_CPU_S = 30.0
_EPS = 1e-6


def look(
    asked: Asked, measure: str, n: int, seed: int, stop: Callable[[], bool], say: Callable[[str], None]
) -> tuple[Risk, Answer | None]:
    """Return what the decision of now costs over scenarios, in sentences, and the plan that keeps it (None: the same)."""
    problem, plan_map, answer = asked.problem, asked.plan_map, asked.answer
    assert answer is not None
    cvar = 0.95 if measure == "cvar95" else None
    given = _scenarios(problem, plan_map, n, seed)
    found = risk.robust(problem, given, first=NOW_PERIODS, cvar=cvar, cpu_limit_s=RISK_CPU_S, stop=stop, say=say)
    first = found.now.buy.shape[2]
    planned = risk.Now(w=answer.w, buy=answer.buy[:, :, :first], sign=answer.sign[..., :first])
    costs = risk.evaluate(problem, planned, given, cpu_limit_s=CHECK_CPU_S, stop=stop)
    of_plan = scenarios.measured(costs, cvar) if np.isfinite(costs).all() else float("inf")
    now, value = (found.now, found.value) if found.value <= of_plan else (planned, of_plan)
    if not isfinite(value):
        why = "stopped before all scenarios were priced" if stop() else ""
        short = f"{why or 'not all scenarios were priced in the time that there was'}: nothing is said of risk"
        return Risk(measure=_named(cvar), scenarios=n, lines=[short]), None
    kept = None
    if now is not planned:
        kept = keep.keeping(problem, now, bound=answer.bound, cpu_limit_s=KEEP_CPU_S, stop=stop)
    words = "the mean of the worst 5 %" if cvar else "the mean"
    gap = (value - found.bound) / max(_EPS, abs(value))
    proof = f"no decision of now has less than {_money(found.bound, plan_map)} (gap {percent(gap, 1)})"
    if not isfinite(found.bound):
        proof = "how far from the best that is was not found out in the time that there was"
    lines = [f"decided now as below, {words} over {n} scenarios costs {_money(value, plan_map)}; {proof}"]
    if isfinite(of_plan):
        lines.append(f"the plan for the median future alone costs {_money(of_plan, plan_map)} by the same measure")
    lines += _worth(found, value, plan_map)
    if not stop():
        fresh = _scenarios(problem, plan_map, n, seed + 1)
        ours = risk.evaluate(problem, now, fresh, cpu_limit_s=CHECK_CPU_S, stop=stop)
        other = ours
        if now is not planned:
            other = risk.evaluate(problem, planned, fresh, cpu_limit_s=CHECK_CPU_S, stop=stop)
        lines.append(out_of_sample(ours, other, cvar, lambda cost: _money(cost, plan_map)))
    lines += _now(problem, plan_map, now) + _uncentred(plan_map, seed)
    lines.append(_written(problem, plan_map, answer, now is planned, kept))
    return Risk(measure=_named(cvar), scenarios=n, lines=lines, kept=kept is not None), kept


def _worth(found: risk.RiskPlan, value: float, plan_map: PlanMap) -> list[str]:
    """Return what it is worth to have looked at the scenarios, and to know the future; or why that is not known."""
    vss = "the value of the stochastic solution is not known: no time was left to price deciding by the mean scenario alone"
    if isfinite(found.of_mean_plan):
        more = _money(max(0.0, found.of_mean_plan - value), plan_map)
        vss = f"deciding by the mean scenario alone would cost {more} more (value of the stochastic solution)"
    evpi = (
        "what it would be worth to know the future is not known: no time was left to solve each scenario as if it were "
        "known, since scenarios that must decide alike, a few at a time, say more of how good this decision is"
    )
    if isfinite(found.known):
        evpi = f"to know the future would be worth at most {_money(max(0.0, value - found.known), plan_map)}"
    return [vss, evpi]


def _named(cvar: float | None) -> str:
    return "CVaR 95 %" if cvar else "expected cost"


def _written(problem: Problem, plan_map: PlanMap, answer: Answer, same: bool, kept: Answer | None) -> str:
    """Return which plan the files hold."""
    if same:
        return "the plan that is best for the median future is also the best found here: the files are its own"
    if kept is None:
        return "no plan that keeps this was found in time: the files are those of the plan for the median future alone"
    more = _money(max(0.0, kept.cost - answer.cost), plan_map)
    divided = "" if problem.whole.all() else " racks and rent are those of the exact answer, rounded in the fleet file;"
    return (
        f"the figures and files are those of the plan that keeps this and goes on as is best in the median future;{divided} "
        f"there it costs {more} more than the plan for that future alone, for which what binds, other plans and what the "
        f"cost depends on were found"
    )


def _scenarios(problem: Problem, plan_map: PlanMap, n: int, seed: int) -> list[scenarios.Scenario]:
    years = len(problem.periods) / 4.0
    demand = plan_map.plan.demand
    sigma = min(SIGMA_MAX, demand.growth_sigma / (1.0 + demand.growth_per_year) * years)
    return scenarios.draw(problem, n, seed=seed, phase_delays=_delays(problem, plan_map, seed), demand_sigma=sigma)


def _delays(problem: Problem, plan_map: PlanMap, seed: int) -> npt.NDArray[np.int64] | None:
    """Return periods from begin to power by draw and phase; a phase that is given up comes after the horizon."""
    T = len(problem.periods)
    if not plan_map.phases:
        return None
    drawn = np.zeros((DRAWS, len(plan_map.phases)), np.int64)
    wait = months_between(plan_map.today, plan_map.days[0])
    for p, one in enumerate(plan_map.phases):
        if one.index is None or one.kind != "grid":
            drawn[:, p] = one.periods
            continue
        months = _months(plan_map, p, seed)[0]
        months = np.minimum(months, 3.0 * (T + 1) + wait) - (wait if one.begun else 0.0)
        drawn[:, p] = np.ceil(np.maximum(0.0, months) / 3.0 - 1e-9)
    return drawn


def _months(plan_map: PlanMap, p: int, seed: int) -> tuple[npt.NDArray[np.float64], bool]:
    """Return draws of the months from begin to power of an announced phase, and False where they miss its declared ones."""
    one = plan_map.phases[p]
    assert one.index is not None
    phase = plan_map.fleet.sites[one.declared].grid[one.index]
    declared = plan_delay.declared_months(plan_map, one)
    if declared is not None:
        drawn, scaled = plan_delay.drawn_delay(phase, plan_map.today, declared, n=DRAWS, seed=[seed, 77, p])
        return drawn - plan_delay.MOST_OFF_MONTHS, scaled  # else a median a little above whole quarters were one more
    drawn = draw_phase(phase, plan_map.today, n=DRAWS, seed=[seed, 77, p]).draws.energised_month
    first = -np.inf if phase.energised is None else months_between(plan_map.today, phase.energised)
    return np.maximum(drawn, first - plan_delay.MOST_OFF_MONTHS), True  # a declared day is the earliest


def _uncentred(plan_map: PlanMap, seed: int) -> list[str]:
    """Name each phase whose delays do not have the median that its declared months say."""
    said = []
    for p, one in enumerate(plan_map.phases):
        declared = plan_delay.declared_months(plan_map, one)
        if declared is None or _months(plan_map, p, seed)[1]:
            continue
        how = "its stages as they are" if plan_map.fleet.sites[one.declared].grid[one.index or 0].stages else "no doubt"
        said.append(f"{one.name}: no stages can be scaled to its {declared:g} months; the scenarios draw it with {how}")
    return said


def out_of_sample(ours: Floats, other: Floats, cvar: float | None, said: Callable[[float], str]) -> str:
    """Return the same measure on other scenarios, for this decision and for that of the plan without it.

    Both [scenarios], NaN where not priced: they are held against each other where both were; the worst of a part is not told.

    >>> costs = np.array([1.0, 3.0, np.nan])
    >>> out_of_sample(costs, costs + 1.0, None, str)
    'on 2 of 3 other scenarios (no time was left for the rest) it costs 2.0, the plan for the median future alone 3.0'
    >>> out_of_sample(costs, costs, 0.95, str)
    'what it costs on other scenarios is not known: 2 of 3 were priced in the time that there was'
    """
    both, n = np.isfinite(ours) & np.isfinite(other), len(ours)
    if not both.any() or (cvar is not None and not both.all()):
        return (
            f"what it costs on other scenarios is not known: {both.sum()} of {n} were priced in the time that there was"
        )
    part = (
        f"{n} other scenarios" if both.all() else f"{both.sum()} of {n} other scenarios (no time was left for the rest)"
    )
    here, there = (said(scenarios.measured(costs[both], cvar)) for costs in (ours, other))
    return f"on {part} it costs {here}, the plan for the median future alone {there}"


def _now(problem: Problem, plan_map: PlanMap, now: risk.Now) -> list[str]:
    """Return what to decide now, in sentences."""
    until = problem.periods[min(NOW_PERIODS, len(problem.periods)) - 1]
    said = []
    for p, one in enumerate(plan_map.phases):
        on = np.flatnonzero(now.w[p] > 0.5)
        idle = one.cost_to_begin == 0.0 and len(on) and on[0] + problem.phase_delay[p] >= len(problem.periods)
        if len(on) and not one.begun and not idle:  # what costs nothing and brings nothing is no decision
            said.append(f"begin {one.name} in {problem.periods[on[0]]}")
    bought = now.buy.sum(axis=2)
    for s, a in zip(*np.nonzero(bought > _EPS), strict=True):
        n, verb = float(bought[s, a]), "lease" if plan_map.kinds[a].lease else "order"
        racks = "rack" if abs(n - 1.0) < _EPS else "racks"
        said.append(f"{verb} {number(n)} {racks} of {problem.kinds[a]} for {problem.sites[s]} by {until}")
    signed = books.rented_racks(problem, now.sign).sum(axis=2).max(axis=2)  # in force at once
    for s, a in zip(*np.nonzero(signed > 0.01), strict=True):
        n = float(signed[s, a]) * plan_map.kinds[a].per_rack
        said.append(f"rent {number(n)} accelerators of {problem.kinds[a]} at {problem.sites[s]} by {until}")
    return said or [f"nothing has to be begun, ordered or rented by {until}"]


def _money(value: float, plan_map: PlanMap) -> str:
    return money(value * plan_map.money_unit, plan_map.currency)
