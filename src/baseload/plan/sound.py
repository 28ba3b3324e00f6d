"""Whether a planning problem can be solved at all: shapes, signs, and decisions that contradict each other.

What merely cannot be served, afforded or survived is no error: it has a slack and a price. The fleet file's own checks, with
files and lines, are in `fleet/planning.py`; here every caller's arrays are looked at once more.
"""

from __future__ import annotations

import numpy as np

from baseload.errors import PlanError
from baseload.plan.problem import SLACKS, Problem

_AT_LEAST_NOUGHT = (
    "demand rate rack_mw rack_m2 existing power_mw floor_m2 phase_mw ratchet minimum_bill billed_least supply shared_use "
    "shared useful sign_max share_max survive_ratio spend_begin spend_buy capex_budget carbon_owned carbon_put carbon_budget "
    "water_owned water_put water_budget cost_unserved cost_billed cost_used phase_paid"
).split()
_MAY_BE_INFINITE = "floor_m2 supply shared sign_max share_max capex_budget carbon_budget water_budget".split()


def shapes(problem: Problem) -> dict[str, tuple[int, ...]]:
    """Return the shape that every array must have."""
    s, a, m, r, t = problem.shape
    p, k, g, n = len(problem.phases), len(problem.rentals), len(problem.groups), len(problem.limits)
    found: dict[str, tuple[int, ...]] = {"demand": (r, m, t), "allowed": (r, s, m), "may_place": (s, a), "rate": (a, m)}
    found |= {"rack_mw": (s, a), "rack_m2": (a,), "existing": (s, a, t), "lead": (a,), "life": (a,), "whole": (s, a)}
    found |= {"power_mw": (s, t), "floor_m2": (s, t), "ratchet": (s,), "minimum_bill": (s,), "phase_site": (p,)}
    found |= dict.fromkeys(("phase_mw", "phase_delay", "phase_after", "begin_from", "begin_by"), (p,))
    found |= {"supply": (a, t), "shared_use": (n, a), "shared": (n, t), "term": (k,), "useful": (k,), "on_site": (k,)}
    found |= {"sign_max": (s, a, k), "group_of": (g, s, a), "share_max": (g,), "survive_ratio": (m,)}
    found |= dict.fromkeys(("cost_begin", "cost_live", "spend_begin"), (p, t))
    found |= dict.fromkeys(("cost_buy", "cost_owned", "spend_buy", "carbon_owned", "water_owned"), (s, a, t))
    found |= dict.fromkeys(("cost_put", "carbon_put", "water_put"), (s, a, m, t))
    found |= {"cost_sign": (s, a, k, t), "cost_flow": (r, s, m, t), "cost_unserved": (r, m, t), "cost_billed": (s, t)}
    found |= {"cost_host": (s, m, t)}
    found |= dict.fromkeys(("capex_budget", "carbon_budget", "water_budget"), (t,))
    found |= {} if problem.budget_span is None else {"budget_span": (t,)}
    found |= {} if problem.cost_used is None else {"cost_used": (s, t), "phase_paid": (p,)}
    found |= {} if problem.billed_least is None else {"billed_least": (s, t)}
    return found if problem.host_min is None else found | {"host_min": (m,)}


def slack_shapes(problem: Problem) -> dict[str, tuple[int, ...]]:
    """Return the shape of every slack."""
    s, _, m, _, t = problem.shape
    found = {
        "short_power": (s, t),
        "short_floor": (s, t),
        "short_survive": (m, t),
        "over_share": (len(problem.groups), t),
    }
    return found | dict.fromkeys(("over_capex", "over_carbon", "over_water"), (t,))


def require_sound(problem: Problem) -> None:
    """Raise PlanError, one line for each thing that is wrong, unless `problem` can be solved."""
    wrong: list[str] = []
    if not problem.periods:
        wrong.append("periods: there are none; give a horizon of at least one period")
    for name, shape in shapes(problem).items():
        values = np.asarray(getattr(problem, name))
        if values.shape != shape:
            wrong.append(f"{name}: has shape {values.shape}; the axes ask for {shape}")
        elif np.isnan(values).any():
            wrong.append(f"{name}: holds something that is not a number; give every entry a value")
        elif np.isinf(values).any() and (name not in _MAY_BE_INFINITE or (values == -np.inf).any()):
            wrong.append(f"{name}: is infinite; only limits may be")
        elif name in _AT_LEAST_NOUGHT and (values < 0.0).any():
            at = tuple(int(i) for i in np.argwhere(values < 0.0)[0])
            wrong.append(f"{name}{list(at)}: is {values[at]:g}; give nought or more")
    if not wrong and (problem.survive_ratio > 1.0).any():
        wrong.append("survive_ratio: is above 1; what survives is at most all that is asked for")
    if not wrong:
        wrong = [*_periods(problem), *_phases(problem), *_prices(problem)]
    if wrong:
        raise PlanError("\n".join(f"{problem.name}: {line}" for line in wrong))


def _periods(problem: Problem) -> list[str]:
    wrong = []
    for name in ("life", "term"):
        if (getattr(problem, name) < 1).any():
            wrong.append(f"{name}: is shorter than a period; give one period or more")
    for name in ("lead", "phase_delay", "begin_from", "begin_by"):
        if (getattr(problem, name) < 0).any():
            wrong.append(f"{name}: is before the first period; give nought or more")
    return wrong


def _phases(problem: Problem) -> list[str]:
    """Look at dates and the order of phases."""
    wrong = []
    n = len(problem.phases)
    for p, name in enumerate(problem.phases):
        if not 0 <= problem.phase_site[p] < len(problem.sites):
            wrong.append(
                f"phase {name}: is at site number {problem.phase_site[p]}, which is none; name one of the sites"
            )
        before, steps = int(problem.phase_after[p]), 0
        if before >= n:
            wrong.append(f"phase {name}: comes after phase number {before}, which is none; name one of the phases")
            continue
        if problem.begin_by[p] < min(problem.begin_from[p], len(problem.periods)):
            wrong.append(
                f"phase {name}: begun by {_when(problem, problem.begin_by[p])} at the latest, but not before "
                f"{_when(problem, problem.begin_from[p])}; change one of the two"
            )
        while 0 <= before < n and steps <= n:
            if problem.begin_by[p] < min(problem.begin_from[before], len(problem.periods)):
                wrong.append(
                    f"phase {name}: begun by {_when(problem, problem.begin_by[p])} at the latest, but "
                    f"{problem.phases[before]} comes first and may not begin before "
                    f"{_when(problem, problem.begin_from[before])}; change one of the two"
                )
            before, steps = int(problem.phase_after[before]), steps + 1
        if steps > n:
            wrong.append(f"phase {name}: comes after itself by way of others; break the ring")
    return wrong


def _when(problem: Problem, period: int | np.integer) -> str:
    return problem.periods[period] if period < len(problem.periods) else "the end"


def _prices(problem: Problem) -> list[str]:
    wrong = []
    for name, price in problem.slack_price.items():
        if name not in SLACKS:
            wrong.append(f"slack_price: {name} is no slack; known are {', '.join(SLACKS)}")
        elif np.isnan(price).any() or (np.asarray(price) < 0.0).any():
            wrong.append(f"slack_price: {name} is negative or not a number; a price is nought or more")
        else:
            shape = slack_shapes(problem)[name]
            try:
                np.broadcast_to(price, shape)
            except ValueError:
                wrong.append(f"slack_price: {name} has shape {np.shape(price)}; the axes ask for {shape}")
    return wrong
