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
from baseload.plan.problem import Answer, Problem
from baseload.plan.table import ReplicaTable
from baseload.report.plan_model import Alternative, Binding, Swing
from baseload.report.words import money, number, percent

if TYPE_CHECKING:
    from baseload.app.plan_verb import Asked

SETTLE_CPU_S = 10.0
OTHERS_CPU_S = 8.0
SWINGS_CPU_S = 16.0
LISTED_MAX = 20
LESS_BELOW = 0.98  # of what there was: else it is no other plan
CHANGES_MAX = 3
LOOSER_MS = 5.0
LEAST_SHARE = 1e-5  # of the plan's cost: less is not listed
SAVES = {
    "power": "a MW more at {what}, throughout",
    "floor": "a square metre more at {what}, throughout",
    "supply": "one more rack of {what} in {where}",
    "shared supply": "a unit more of {what} in {where}",
    "share": "a point more for {what}, throughout",
    "capex budget": "one {currency} more of capital in {where}",
    "carbon budget": "a tonne of CO2 more in {where}",
    "water budget": "a cubic metre of water more in {where}",
    "survive": "surviving the loss of a site, {what},",
    "demand": "one per cent more of {what}, throughout,",
    "delay": "a week of delay of {what}",
    "law": "letting everybody be served in {what}",
    "SLO": "a millisecond more for each token of {what}",
}
PER_MONEY = "capex budget"


def what_binds(asked: Asked, stop: Callable[[], bool]) -> list[Binding]:
    """Return what binds with its worth; a few re-solves say what delay, law and promises cost."""
    problem, answer, plan_map = asked.problem, asked.answer, asked.plan_map
    assert answer is not None
    found = explain.explain(
        problem,
        answer,
        openings=_countries(problem, plan_map, asked.table),
        rates=_looser(problem, plan_map, asked.table),
        cpu_limit_s=SETTLE_CPU_S,
        stop=stop,
    )
    least = LEAST_SHARE * abs(answer.cost)
    elsewhere = {site.name for site in plan_map.sites if site.rented}
    limited = {kind for a, kind in enumerate(problem.kinds) if bool((problem.supply[a] < float("inf")).any())}
    made = []
    for one in found:
        if not isfinite(one.value) or (abs(one.value) < least and one.kind != PER_MONEY):
            continue
        if one.kind in ("power", "floor") and one.what in elsewhere:
            continue  # rented sites have no power of ours to price
        if (one.kind == "supply" and one.what not in limited) or (one.kind == "law" and one.value < 0.0):
            continue  # where the law opens a second site, surviving the loss of one is asked for too: no price of the law
        made.append(_binding(one, plan_map))
    return sorted(made, key=lambda one: -abs(one.worth) if one.what != PER_MONEY else -abs(one.worth) * 1e3)[
        :LISTED_MAX
    ]


def _binding(one: explain.Worth, plan_map: PlanMap) -> Binding:
    currency = plan_map.currency
    worth = one.value * (1.0 if one.kind == PER_MONEY else plan_map.money_unit)
    if one.kind in ("delay", "demand"):
        worth = -worth  # what is paid for it
    where = "" if not one.where else one.where[0] if len(one.where) == 1 else f"{one.where[0]} to {one.where[-1]}"
    what = SAVES.get(one.kind, one.kind + " of {what}").format(what=one.what, currency=currency, where=where)
    how = {"price": "a small change, phases kept", "solved anew": "solved anew, phases kept"}[one.how]
    words = f"{what} {'saves' if worth > 0.0 else 'costs'} {money(abs(worth), currency)} ({how})"
    if one.kind == "SLO":
        words += "; what a replica gains is modelled"
    return Binding(what=one.kind, worth=worth, unit=f"{currency} for a {one.unit}", words=words)


def _countries(problem: Problem, plan_map: PlanMap, table: ReplicaTable) -> dict[str, plan_problem.Mask]:
    """Return by country who could be served where, were the law there no hindrance; countries where that changes something."""
    names = dict.fromkeys(plan_rent.law_of(plan_map.fleet, site.declared) for site in plan_map.sites)
    masks = {name: plan_problem.allowed(plan_map, table, opened=name) for name in names}
    return {name: mask for name, mask in masks.items() if (mask & ~problem.allowed).any()}


def _looser(problem: Problem, plan_map: PlanMap, table: ReplicaTable) -> list[explain.Rates]:
    """Return by service the rates of racks with its promise per token looser."""
    rates = []
    for service, factors in plan_rows.looser(plan_map.fleet, table, plan_map.asked, LOOSER_MS).items():
        m = problem.services.index(service)
        rate = problem.rate.copy()
        for a, kind in enumerate(plan_map.kinds):
            rate[a, m] *= factors.get(kind.accelerator, 1.0)
        if (rate > problem.rate * (1.0 + 1e-9)).any():
            rates.append(explain.Rates(name=service, looser_ms=LOOSER_MS, rate=rate))
    return rates


def others(problem: Problem, answer: Answer, plan_map: PlanMap, stop: Callable[[], bool]) -> list[Alternative]:
    """Return plans that cost nearly as much, each with as little of one thing as can be."""
    found = alternatives.alternatives(problem, answer, cpu_limit_s=OTHERS_CPU_S, stop=stop)
    return [
        Alternative(
            name=one.name,
            cost=one.answer.cost * plan_map.money_unit + plan_map.sunk,
            more=one.more,
            words=_less(one, plan_map),
        )
        for one in found
        if one.after < LESS_BELOW * one.before
    ]


def _less(one: alternatives.Alternative, plan_map: PlanMap) -> str:
    """Return what an alternative has less of, and how far it is from the plan."""
    scale, unit = (plan_map.money_unit, plan_map.currency) if one.unit == "money" else (1.0, one.unit)
    return (
        f"{number(one.after * scale)} {unit} instead of {number(one.before * scale)}; {percent(one.apart, 0)} of the racks' "
        "power stands elsewhere"
    )


def swings(problem: Problem, answer: Answer, plan_map: PlanMap, stop: Callable[[], bool]) -> list[Swing]:
    """Return how the cost moves with each assumption, grid phases kept."""
    base, found = alternatives.tornado(problem, answer, cpu_limit_s=SWINGS_CPU_S, stop=stop)
    unit, sunk = plan_map.money_unit, plan_map.sunk + (answer.cost - base) * plan_map.money_unit
    return [
        Swing(
            what=one.what,
            low_words=one.low_words,
            low=one.low * unit + sunk,
            high_words=one.high_words,
            high=one.high * unit + sunk,
        )
        for one in found
        if one.low is not None and one.high is not None and one.width > LEAST_SHARE * abs(answer.cost)
    ]
