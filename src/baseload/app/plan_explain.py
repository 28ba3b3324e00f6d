"""Why a plan is what it is, in the fleet's units: what binds and what more of it is worth, delay, law, promises; other plans.

Figures are `plan/explain.py`'s and `plan/alternatives.py`'s; this says them in sentences with money of the fleet.
"""

from __future__ import annotations

from collections.abc import Callable
from math import isfinite
from typing import TYPE_CHECKING

from baseload.app import plan_problem, plan_rent, plan_rows
from baseload.app.plan_map import PlanMap
from baseload.plan import alternatives, explain
from baseload.plan.problem import Answer, Floats, Problem
from baseload.plan.table import ReplicaTable
from baseload.report.plan_model import Alternative, Binding, Swing
from baseload.report.words import money

if TYPE_CHECKING:
    from baseload.app.plan_verb import Asked

SETTLE_CPU_S = 10.0
OTHERS_CPU_S = 8.0
SWINGS_CPU_S = 16.0
LISTED_MAX = 14
CHANGES_MAX = 3
LOOSER_MS = 5.0
PHASES_MAX = 12
SAVES = {
    "power": "a MW more at {who}",
    "floor": "a square metre more at {who}",
    "supply": "one more rack of {who} in each quarter",
    "shared supply": "more of {who} in each quarter",
    "rent": "one more rack {who} to be had",
    "share": "a MW more for {who}",
    "capex": "a {currency} more of capital in each quarter",
    "carbon": "a tonne of CO2 more in each quarter",
    "water": "a cubic metre of water more in each quarter",
    "survive": "serving {who} whole with any one site lost",
    "demand": "one more request a second of {who} at every peak",
    "delay": "a week of delay of {who}",
    "law": "letting everybody be served in {who}",
    "slo": "a millisecond more for each token of {who}",
}


def what_binds(asked: Asked, stop: Callable[[], bool]) -> list[Binding]:
    """Return what binds with its worth, the dearest first; a few re-solves say what delay, law and promises cost."""
    problem, answer, plan_map = asked.problem, asked.answer, asked.plan_map
    assert answer is not None
    settled = explain.settle(problem, answer, cpu_limit_s=SETTLE_CPU_S)
    if not isfinite(settled.cost):
        return []
    limited = {kind for a, kind in enumerate(problem.kinds) if bool((problem.supply[a] < float("inf")).any())}
    elsewhere = {site.name for site in plan_map.sites if site.rented}
    found = [
        one
        for one in explain.binding(problem, settled)
        if (one.kind != "supply" or one.who in limited)
        and not (one.kind in ("power", "floor") and one.who in elsewhere)
    ]
    del found[LISTED_MAX:]
    if len(problem.phases) <= PHASES_MAX and not stop():
        found += explain.delays(problem, answer, settled)
    if not stop():
        found += explain.opened(problem, answer, settled, _countries(plan_map, asked.table))
    if not stop():
        rates = _looser(problem, plan_map, asked.table)
        found += explain.looser_slo(problem, answer, settled, rates, LOOSER_MS)
    made = [_binding(one, plan_map) for one in found if isfinite(one.worth) and abs(one.worth) > 0.0]
    least = 1e-6 * abs(answer.cost) * plan_map.money_unit
    # Where the law opens a second site, surviving the loss of one is asked for too: that is no price of the law.
    return [
        one
        for one in made
        if (abs(one.worth) > least or one.what == "capex") and (one.what, one.worth > 0.0) != ("law", False)
    ]


def _binding(one: explain.Worth, plan_map: PlanMap) -> Binding:
    currency = plan_map.currency
    worth = one.worth * (1.0 if one.kind == "capex" else plan_map.money_unit)
    what = SAVES.get(one.kind, one.kind + " of {who}").format(who=one.who, currency=currency)
    how = {"price": "a small change, whole decisions kept", "re-solve": "solved again, whole decisions kept"}[one.how]
    words = f"{what} {'saves' if worth > 0.0 else 'costs'} {money(abs(worth), currency)} ({how})"
    if one.kind == "slo":
        words += "; what a replica gains is modelled"
    return Binding(what=one.kind, worth=worth, unit=f"{currency} for {one.unit}", words=words)


def _countries(plan_map: PlanMap, table: ReplicaTable) -> dict[str, plan_problem.Mask]:
    """Return by country who could be served where, were the law there no hindrance."""
    names = dict.fromkeys(plan_rent.law_of(plan_map.fleet, site.declared) for site in plan_map.sites)
    return {name: plan_problem.allowed(plan_map, table, opened=name) for name in names}


def _looser(problem: Problem, plan_map: PlanMap, table: ReplicaTable) -> dict[str, Floats]:
    """Return by service the rates of racks with its promise per token looser."""
    rates: dict[str, Floats] = {}
    for service, factors in plan_rows.looser(plan_map.fleet, table, plan_map.asked, LOOSER_MS).items():
        m = problem.services.index(service)
        rate = problem.rate.copy()
        for a, kind in enumerate(plan_map.kinds):
            rate[a, m] *= factors.get(kind.accelerator, 1.0)
        if (rate > problem.rate * (1.0 + 1e-9)).any():
            rates[service] = rate
    return rates


def others(problem: Problem, answer: Answer, plan_map: PlanMap, stop: Callable[[], bool]) -> list[Alternative]:
    """Return plans that cost nearly as much, each with one way closed."""
    found = alternatives.alternatives(problem, answer, cpu_limit_s=OTHERS_CPU_S, stop=stop)
    return [
        Alternative(
            name=one.name,
            cost=one.answer.cost * plan_map.money_unit + plan_map.sunk,
            more=one.more,
            words="; ".join(one.changes[:CHANGES_MAX]) or "the same decisions",
        )
        for one in found
    ]


def swings(problem: Problem, answer: Answer, plan_map: PlanMap, stop: Callable[[], bool]) -> list[Swing]:
    """Return how the cost moves with each assumption."""
    unit, sunk = plan_map.money_unit, plan_map.sunk
    made = []
    for one in alternatives.tornado(problem, answer, cpu_limit_s=SWINGS_CPU_S, stop=stop):
        less, _, rest = one.by.partition(" and ")
        low, high = (
            (less, f"{less.partition(' ')[0]} % {rest}") if "%" in one.by else ("a quarter sooner", "a quarter later")
        )
        made.append(
            Swing(what=one.what, low_words=low, low=one.low * unit + sunk, high_words=high, high=one.high * unit + sunk)
        )
    return made
