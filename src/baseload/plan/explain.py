"""What a plan's cost hangs on: the limits that bind, with what one more unit is worth, and what one change would do.

Two ways, said with every figure. "price": with the whole decisions of the plan kept, the prices of the linear programme; exact
for a small change. "re-solve": the problem changed and solved again with the whole decisions kept, so that a saving is at
least, and a loss at most, what is said.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np

from baseload.plan import build as building
from baseload.plan.build import Hall, Model
from baseload.plan.highs import INF, Lp, Solution
from baseload.plan.problem import Answer, Bools, Floats, Problem

_ROUNDS = 40
WEEKS = 13.0  # of a quarter


@dataclass(frozen=True, kw_only=True)
class Worth:
    """What one more unit of something saves (above zero) or costs (below), present value over the horizon."""

    kind: (
        str  # power, supply, shared supply, share, rent, floor, capex, carbon, water, survive, demand, delay, law, ...
    )
    who: str
    worth: float
    unit: str  # of what there would be one more: MW, rack a period, week
    how: Literal["price", "re-solve"]


@dataclass(frozen=True, kw_only=True)
class Settled:
    """A plan's linear programme with its whole decisions kept."""

    model: Model
    halls: tuple[Hall, ...]
    first_hall: int  # row of the first of them
    found: Solution

    @property
    def cost(self) -> float:
        """Return the cost; inf where the decisions are impossible."""
        return self.found.cost if self.found.state == "optimal" else INF


def settle(problem: Problem, answer: Answer, *, cpu_limit_s: float = 20.0, halls: tuple[Hall, ...] = ()) -> Settled:
    """Solve for everything but the whole decisions of `answer`."""
    known = list(halls) or building.first_halls(problem)
    model = building.build(problem, known)
    first = len(model.program.row_lower) - len(known)
    lp = Lp(model.program, relaxed=True)
    fixed = {"w": answer.w} | ({"host": answer.host} if answer.host is not None else {})
    for name, values in fixed.items():
        number = model.columns[name]
        at = number >= 0
        lp.set_bounds(number[at], values[at], values[at])
    number = model.columns["buy"]
    at = (number >= 0) & problem.whole[:, :, None]
    lp.set_bounds(number[at], answer.buy[at], answer.buy[at])
    found = lp.solve(cpu_limit_s=cpu_limit_s)
    for _ in range(_ROUNDS):
        if found.state != "optimal" or found.x is None:
            break
        short, unserved = np.maximum(0.0, model.value("short_survive", found.x)), model.value("unserved", found.x)
        missing, _ = building.missing_halls(problem, building.carried(model, found.x), unserved, short)
        if not missing:
            break
        least, start, index, value = building.rows_of(model, missing)
        lp.add_rows(least, np.full(len(least), INF), start, index, value)
        known += missing
        found = lp.solve(cpu_limit_s=cpu_limit_s)
    return Settled(model=model, halls=tuple(known), first_hall=first, found=found)


def binding(problem: Problem, settled: Settled, *, least: float = 1e-6) -> list[Worth]:
    """Return every limit that binds with the price of one more unit of it, the dearest first.

    Args:
        problem: what was asked.
        settled: its plan's programme, solved.
        least: share of the whole cost below which a worth is not listed.
    """
    found, model = settled.found, settled.model
    if found.row_dual is None or found.reduced_cost is None:
        return []
    y, reduced, rows = found.row_dual, found.reduced_cost, model.rows

    def saved(name: str, *at: int) -> float:
        """Return what one more unit in each period saves: rows are 'at most'."""
        number = rows[name][at] if name in rows else np.zeros(0, dtype=np.int64)
        return -float(y[number[number >= 0]].sum())

    def at_upper(name: str, *at: int) -> float:
        """Return what one more unit of a column's upper bound saves."""
        number = model.columns[name][at]
        return -float(np.minimum(0.0, reduced[number[number >= 0]]).sum())

    listed = [
        Worth(kind="power", who=s, worth=saved("power", i), unit="MW", how="price") for i, s in enumerate(problem.sites)
    ]
    listed += [
        Worth(kind="floor", who=s, worth=saved("floor", i), unit="m2", how="price") for i, s in enumerate(problem.sites)
    ]
    for a, kind in enumerate(problem.kinds):
        worth = saved("supply", a) + sum(at_upper("buy", s, a) for s in range(len(problem.sites)))
        listed.append(Worth(kind="supply", who=kind, worth=worth, unit="rack a period", how="price"))
    for i, limit in enumerate(problem.limits):
        listed.append(
            Worth(kind="shared supply", who=limit, worth=saved("shared", i), unit="unit a period", how="price")
        )
    for k, rental in enumerate(problem.rentals):
        for s, site in enumerate(problem.sites):
            worth = sum(at_upper("rent", s, a, k) for a in range(len(problem.kinds)))
            listed.append(Worth(kind="rent", who=f"{rental} at {site}", worth=worth, unit="rack", how="price"))
    for g, group in enumerate(problem.groups):
        listed.append(Worth(kind="share", who=group, worth=saved(f"share {g}"), unit="MW", how="price"))
    for name, unit in (("over_capex", "money a period"), ("over_carbon", "t a period"), ("over_water", "m3 a period")):
        listed.append(Worth(kind=name.removeprefix("over_"), who="budget", worth=saved(name), unit=unit, how="price"))
    listed += _survival(problem, settled) + _demand(problem, model, y)
    floor = least * max(1e-9, abs(found.cost))
    return sorted((one for one in listed if abs(one.worth) > floor), key=lambda one: -abs(one.worth))


def _survival(problem: Problem, settled: Settled) -> list[Worth]:
    """Return what it costs to survive the loss of a site, by service: price times need of its rows."""
    y = settled.found.row_dual
    assert y is not None
    cost = np.zeros(len(problem.services))
    for i, hall in enumerate(settled.halls):
        need = float(problem.demand[hall.clients, hall.m, hall.t].sum()) * float(problem.survive_ratio[hall.m])
        cost[hall.m] += float(y[settled.first_hall + i]) * need
    return [
        Worth(kind="survive", who=name, worth=-float(cost[m]), unit="all of it", how="price")
        for m, name in enumerate(problem.services)
    ]


def _demand(problem: Problem, model: Model, y: Floats) -> list[Worth]:
    """Return what one more request a second of each service costs, where its clients are in proportion."""
    serve, listed = model.rows["serve"], []
    for m, name in enumerate(problem.services):
        number, demand = serve[:, m], problem.demand[:, m]
        total = demand.sum(axis=0)
        share = demand / np.where(total > 0.0, total, 1.0)
        cost = float((np.where(number >= 0, y[number], 0.0) * share).sum())
        listed.append(Worth(kind="demand", who=name, worth=-cost, unit="request/s", how="price"))
    return listed


# ---- changes -----------------------------------------------------------------------------------------------------------
def change(problem: Problem, answer: Answer, settled: Settled, changed: Problem) -> float:
    """Return how much more a changed problem costs with the plan's whole decisions kept (inf: they are impossible then)."""
    halls = settled.halls if (changed.allowed == problem.allowed).all() else ()
    return settle(changed, answer, halls=halls).cost - settled.cost


def delays(problem: Problem, answer: Answer, settled: Settled, *, weeks_a_period: float = WEEKS) -> list[Worth]:
    """Return what a week of delay of each phase that the plan begins costs: one period later, by the week."""
    listed = []
    n_periods = len(problem.periods)
    for p, name in enumerate(problem.phases):
        begun = np.flatnonzero(answer.w[p] > 0.5)
        if len(begun) == 0 or begun[0] + problem.phase_delay[p] >= n_periods:
            continue
        later = problem.phase_delay.copy()
        later[p] += 1
        more = change(problem, answer, settled, replace(problem, phase_delay=later))
        listed.append(Worth(kind="delay", who=name, worth=-more / weeks_a_period, unit="week", how="re-solve"))
    return sorted(listed, key=lambda one: one.worth)


def opened(problem: Problem, answer: Answer, settled: Settled, masks: Mapping[str, Bools]) -> list[Worth]:
    """Return what it would save to allow more: by name, the mask [R,S,M] that would hold then."""
    listed = []
    for name, allowed in masks.items():
        wider = problem.allowed | allowed
        if (wider == problem.allowed).all():
            continue
        saved = -change(problem, answer, settled, replace(problem, allowed=wider))
        listed.append(Worth(kind="law", who=name, worth=saved, unit="opened", how="re-solve"))
    return sorted(listed, key=lambda one: -one.worth)


def looser_slo(
    problem: Problem, answer: Answer, settled: Settled, rates: Mapping[str, Floats], by_ms: float
) -> list[Worth]:
    """Return what a millisecond more in each service's promise saves.

    Args:
        problem: what was asked.
        answer: its plan.
        settled: its plan's programme, solved.
        rates: by service, `rate` [A,M] as measured with that service's limit `by_ms` looser.
        by_ms: how much looser.
    """
    listed = []
    for name, rate in rates.items():
        saved = -change(problem, answer, settled, replace(problem, rate=rate)) / by_ms
        listed.append(Worth(kind="slo", who=name, worth=saved, unit="ms", how="re-solve"))
    return sorted(listed, key=lambda one: -one.worth)
