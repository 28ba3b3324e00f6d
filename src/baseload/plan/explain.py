"""What keeps a plan from being cheaper, in a person's units: a price for each limit that binds, and what a change is worth.

Prices are those of the linear programme with the plan's phases and hosting kept (`nearby.py`): what the next unit of a limit
would save. What is no limit of a row, a late phase, an opened jurisdiction, a looser SLO, is solved anew with the change and
everything but phases decided again; the difference is said by week, by opening, by millisecond. Phases that would be chosen
otherwise could only add to what a relief is worth, and take from what a delay costs. An opening may cost: a client with a
second site is owed service when one is lost.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np

from baseload.plan.build import Model
from baseload.plan.check_answer import derived
from baseload.plan.highs import Solution
from baseload.plan.nearby import Nearby
from baseload.plan.problem import Answer, Bools, Floats, Ints, Problem, spans

WEEKS_PER_QUARTER = 365.2425 / 4 / 7
How = Literal["price", "solved anew"]


@dataclass(frozen=True, kw_only=True)
class Worth:
    """What one unit of something is worth: saved by a relief (a limit wider, demand less), or paid for a delay."""

    kind: str  # power, floor, supply, shared supply, share, capex budget, survive, delay, law, SLO ...
    what: str  # site, phase, rack kind, group, service, opening
    value: float  # in the problem's money, present value
    unit: str  # of which one: MW, m2, rack, unit of money, t, m3, point, week, opening, ms
    how: How
    where: tuple[str, ...]  # periods in which it binds, or that were compared

    def __str__(self) -> str:
        return f"{self.kind} of {self.what}: {self.value:.6g} per {self.unit} ({self.how})"


@dataclass(frozen=True, kw_only=True)
class Rates:
    """What racks carry at another SLO."""

    name: str  # which SLO is moved
    looser_ms: float  # by how much; negative: tighter
    rate: Floats  # [A,M]


def explain(
    problem: Problem,
    answer: Answer,
    *,
    openings: Mapping[str, Bools] | None = None,
    rates: Sequence[Rates] = (),
    weeks_per_period: float = WEEKS_PER_QUARTER,
    cpu_limit_s: float = 60.0,
    stop: Callable[[], bool] | None = None,
) -> list[Worth]:
    """Return what each limit and change is worth, the dearest of each kind first; what time did not allow is left out.

    Args:
        problem: what was asked.
        answer: the plan.
        openings: by name, `allowed` [R,S,M] with a jurisdiction opened; see `opened`.
        rates: what racks carry at other SLOs.
        weeks_per_period: length of a period.
        cpu_limit_s: CPU seconds that it may take.
        stop: asked now and then; True ends it with what was found.
    """
    near = Nearby(problem, answer, cpu_limit_s=cpu_limit_s, stop=stop)
    solved = near.solve()
    if solved is None:
        return []
    base = solved[1].cost
    found = prices(problem, answer, *solved)
    for name, allowed in (openings or {}).items():
        cost = None if near.over() else near.cost(replace(problem, allowed=allowed))
        if cost is not None:
            found.append(_anew(problem, "law", name, base - cost, "opening"))
    for other in rates:
        cost = None if near.over() or other.looser_ms == 0.0 else near.cost(replace(problem, rate=other.rate))
        if cost is not None:
            found.append(_anew(problem, "SLO", other.name, (base - cost) / other.looser_ms, "ms"))
    found += _delays(problem, answer, near, base, weeks_per_period)
    least = 1e-9 * max(1.0, abs(base))
    return sorted((row for row in found if abs(row.value) > least), key=lambda row: (row.kind, -abs(row.value)))


def opened(problem: Problem, clients: Sequence[int], sites: Sequence[int]) -> Bools:
    """Return `allowed` with these sites opened to these clients, for services that somebody is served from there."""
    allowed = problem.allowed.copy()
    for s in sites:
        allowed[np.asarray(clients), s, :] |= problem.allowed[:, s, :].any(axis=0)
    return allowed


def _anew(problem: Problem, kind: str, what: str, value: float, unit: str) -> Worth:
    return Worth(kind=kind, what=what, value=value, unit=unit, how="solved anew", where=problem.periods)


def _delays(problem: Problem, answer: Answer, near: Nearby, base: float, weeks: float) -> list[Worth]:
    """Return what a week's delay of each phase costs that is energised within the horizon, the largest phases first."""
    found = []
    n_periods = len(problem.periods)
    for p in np.argsort(-problem.phase_mw, kind="stable"):
        begun = np.flatnonzero(answer.w[p] > 0.5)
        if not len(begun) or begun[0] + problem.phase_delay[p] >= n_periods or near.over():
            continue
        delay = problem.phase_delay.copy()
        delay[p] += 1
        cost = near.cost(replace(problem, phase_delay=delay))
        if cost is not None:
            live = int(begun[0] + problem.phase_delay[p])
            found.append(
                Worth(
                    kind="delay",
                    what=problem.phases[p],
                    value=(cost - base) / weeks,
                    unit="week",
                    how="solved anew",
                    where=(problem.periods[live],),
                )
            )
    return found


def prices(problem: Problem, answer: Answer, model: Model, solution: Solution) -> list[Worth]:
    """Return what one unit more of each limit saves, from the prices of the programme with phases kept."""
    dual = solution.row_dual
    if dual is None:
        return []
    rows = model.rows
    found: list[Worth] = []

    def saved(row: Ints) -> Floats:
        return np.where(row >= 0, -dual[row], 0.0) if row.size else np.zeros(row.shape)

    def add(kind: str, what: str, unit: str, by_period: Floats, *, throughout: bool, since: Ints | None = None) -> None:
        at = np.flatnonzero(np.abs(by_period) > 1e-9)
        if len(at):
            value = float(by_period.sum()) if throughout else float(by_period.max())
            last = int(np.argmax(by_period))
            first = last if since is None else max(0, last + 1 - int(since[last]))
            where = at if throughout else np.arange(first, last + 1)
            found.append(
                Worth(
                    kind=kind,
                    what=what,
                    value=value,
                    unit=unit,
                    how="price",
                    where=tuple(problem.periods[t] for t in where),
                )
            )

    for s, site in enumerate(problem.sites):
        add("power", site, "MW", saved(rows["power"][s]), throughout=True)
        add("floor", site, "m2", saved(rows["floor"][s]), throughout=True)
    for a, kind in enumerate(problem.kinds):
        add("supply", kind, "rack", saved(rows["supply"][a]), throughout=False)
    for i, limit in enumerate(problem.limits):
        add("shared supply", limit, "unit", saved(rows["shared"][i]), throughout=False)
    for name, unit in (("capex", "unit of money"), ("carbon", "t"), ("water", "m3")):
        by_period = saved(rows[f"over_{name}"])
        add(f"{name} budget", "fleet", unit, by_period, throughout=False, since=spans(problem))
    of = derived(problem, answer)
    total_mw = np.einsum("sa,sat->t", problem.rack_mw, of.owned + of.rented.sum(axis=2))
    for g, group in enumerate(problem.groups):
        add("share", group, "point", 0.01 * total_mw * saved(rows[f"share {g}"]), throughout=True)
    for m, service in enumerate(problem.services):
        price = np.where(rows["serve"][:, m] >= 0, dual[rows["serve"][:, m]], 0.0)
        percent = 0.01 * (price * problem.demand[:, m]).sum(axis=0)
        add("demand", service, "point", percent, throughout=True)
    return found
