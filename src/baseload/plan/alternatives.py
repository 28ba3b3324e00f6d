"""Other plans that cost nearly as much, what the cost depends on, and what a change of the problem changes.

An alternative is the same request with one way closed (no rent, nothing new at the largest site, ...): its cost is what that
way is worth, its plan is what to do without it. A swing is the plan made anew with one assumption lower and higher.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace

import numpy as np

from baseload.errors import PlanError
from baseload.plan.check_answer import recompute_cost
from baseload.plan.problem import Answer, Floats, Problem
from baseload.plan.solve import solve

Stop = Callable[[], bool]


@dataclass(frozen=True, kw_only=True)
class Alternative:
    """A plan with one way closed."""

    name: str
    answer: Answer
    more: float  # than the plan, as a share of its cost
    changes: tuple[str, ...]


@dataclass(frozen=True, kw_only=True)
class Swing:
    """The cost of the plan made anew with one assumption at its low and at its high end."""

    what: str
    low: float
    high: float
    by: str  # how far it was changed


def closed_ways(problem: Problem, answer: Answer) -> Iterator[tuple[str, Problem]]:
    """Yield (name, problem) with one way closed that the plan takes."""
    n_periods = len(problem.periods)
    never = np.full(len(problem.phases), n_periods, dtype=np.int64)
    begun = answer.w[:, -1] > 0.5 if len(problem.phases) else np.zeros(0, bool)
    if answer.sign.any():
        yield "without rent", replace(problem, sign_max=np.zeros_like(problem.sign_max))
    if answer.buy.any() and problem.rentals:
        yield (
            "without buying",
            replace(problem, supply=np.zeros_like(problem.supply), whole=np.zeros_like(problem.whole)),
        )
    free = begun & (problem.begin_by >= n_periods)
    if free.any():
        yield (
            "no grid phase that is not decided yet",
            replace(problem, begin_from=np.where(problem.begin_by < n_periods, problem.begin_from, never)),
        )
    new_mw = (problem.rack_mw[:, :, None] * answer.buy).sum(axis=(1, 2))
    if new_mw.max(initial=0.0) > 0.0 and len(problem.sites) > 1:
        s = int(new_mw.argmax())
        closed = problem.may_place.copy()
        closed[s] = False
        yield f"nothing new at {problem.sites[s]}", replace(problem, may_place=closed)
    bought = answer.buy.sum(axis=(0, 2))
    if bought.max(initial=0.0) > 0.0 and len(problem.kinds) > 1:
        a = int(bought.argmax())
        closed = problem.may_place.copy()
        closed[:, a] = False
        yield f"no more {problem.kinds[a]}", replace(problem, may_place=closed)


def alternatives(
    problem: Problem,
    answer: Answer,
    *,
    within: float = 0.10,
    gap: float = 0.01,
    cpu_limit_s: float = 20.0,
    stop: Stop | None = None,
) -> list[Alternative]:
    """Return plans with one way closed that cost at most `within` (a share) more, the cheapest first."""
    began_s, found = time.process_time(), []
    ways = list(closed_ways(problem, answer))
    for i, (name, other) in enumerate(ways):
        left_s = cpu_limit_s - (time.process_time() - began_s)
        if left_s <= 0.5 or (stop is not None and stop()):
            break
        try:
            plan = solve(other, gap=gap, cpu_limit_s=left_s / (len(ways) - i), stop=stop)
        except PlanError:
            continue
        more = (plan.cost - answer.cost) / max(1e-9, abs(answer.cost))
        if more <= within:
            found.append(
                Alternative(
                    name=name, answer=plan, more=more, changes=tuple(differences(problem, answer, problem, plan))
                )
            )
    return sorted(found, key=lambda one: one.more)


# ---- what the cost depends on ------------------------------------------------------------------------------------------
def assumptions(problem: Problem, by: float) -> Iterator[tuple[str, Problem, Problem, str]]:
    """Yield (what, problem with it lower, with it higher, by how much)."""
    share = f"{100 * by:.0f} % less and more"

    def scaled(*names: str) -> tuple[Problem, Problem]:
        low, high = ({name: getattr(problem, name) * (1.0 + sign * by) for name in names} for sign in (-1, 1))
        return replace(problem, **low), replace(problem, **high)

    yield "demand", *scaled("demand"), share
    yield "price of racks", *scaled("cost_buy", "spend_buy"), share
    yield "price of rent", *scaled("cost_sign"), share
    yield "energy, space and upkeep", *scaled("cost_owned", "cost_put"), share
    yield "what a replica carries", *scaled("rate"), share
    if len(problem.phases):
        yield "cost of grid phases", *scaled("cost_begin", "cost_live", "spend_begin"), share
        sooner = replace(problem, phase_delay=np.maximum(0, problem.phase_delay - 1))
        yield "energising", sooner, replace(problem, phase_delay=problem.phase_delay + 1), "one period sooner and later"
    sooner = replace(problem, lead=np.maximum(0, problem.lead - 1))
    yield "shipment", sooner, replace(problem, lead=problem.lead + 1), "one period sooner and later"


def tornado(
    problem: Problem,
    answer: Answer,
    *,
    by: float = 0.2,
    gap: float = 0.01,
    cpu_limit_s: float = 20.0,
    stop: Stop | None = None,
) -> list[Swing]:
    """Return how the cost of the best plan moves with each assumption, the widest first."""
    began_s, found = time.process_time(), []
    cases = list(assumptions(problem, by))
    for i, (what, lower, higher, words) in enumerate(cases):
        costs: list[float] = []
        for j, case in enumerate((lower, higher)):
            left_s = cpu_limit_s - (time.process_time() - began_s)
            if left_s <= 0.2 or (stop is not None and stop()):
                break
            costs.append(
                solve(case, gap=gap, cpu_limit_s=left_s / (2 * (len(cases) - i) - j), stop=stop, warm=answer).cost
            )
        if len(costs) == 2:
            found.append(Swing(what=what, low=costs[0], high=costs[1], by=words))
    return sorted(found, key=lambda one: -abs(one.high - one.low))


# ---- what a change changes ---------------------------------------------------------------------------------------------
def differences(before: Problem, plan: Answer, after: Problem, other: Answer) -> list[str]:
    """Return, in words, what another plan does otherwise; both problems have the same sites, kinds and phases by name."""
    lines = _phases(before, plan, after, other)
    lines += _amounts("buy", "racks bought", before, plan.buy.sum(axis=2), after, other.buy.sum(axis=2))
    lines += _amounts("rent", "rack periods rented", before, _rented(before, plan), after, _rented(after, other))
    parts, others = recompute_cost(before, plan).parts, recompute_cost(after, other).parts
    total = max(1e-9, abs(plan.cost))
    moved = {name: others.get(name, 0.0) - parts.get(name, 0.0) for name in parts | others}
    for name, more in sorted(moved.items(), key=lambda item: -abs(item[1])):
        if abs(more) > 0.001 * total:
            lines.append(f"{name}: {'+' if more > 0 else '-'}{100 * abs(more) / total:.1f} % of the plan's cost")
    return lines


def _rented(problem: Problem, answer: Answer) -> Floats:
    periods: Floats = (answer.sign * problem.term[None, None, :, None]).sum(axis=(2, 3))
    return periods


def _phases(before: Problem, plan: Answer, after: Problem, other: Answer) -> list[str]:
    def begins(problem: Problem, answer: Answer) -> dict[str, str]:
        first = {}
        for p, name in enumerate(problem.phases):
            at = np.flatnonzero(answer.w[p] > 0.5)
            first[name] = problem.periods[at[0]] if len(at) else "never"
        return first

    old, new = begins(before, plan), begins(after, other)
    return [
        f"{name}: begun {new[name]} instead of {old[name]}" for name in old if name in new and old[name] != new[name]
    ]


def _amounts(kind: str, what: str, before: Problem, old: Floats, after: Problem, new: Floats) -> list[str]:
    lines = []
    was = {(s, a): old[i, j] for i, s in enumerate(before.sites) for j, a in enumerate(before.kinds)}
    now = {(s, a): new[i, j] for i, s in enumerate(after.sites) for j, a in enumerate(after.kinds)}
    for at in sorted(was.keys() | now.keys(), key=lambda at: -abs(now.get(at, 0.0) - was.get(at, 0.0))):
        more = now.get(at, 0.0) - was.get(at, 0.0)
        if abs(more) >= 0.5:
            lines.append(f"{at[1]} at {at[0]}: {now.get(at, 0.0):.0f} {what} instead of {was.get(at, 0.0):.0f}")
    return lines[:8]
