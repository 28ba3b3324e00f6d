"""What is found out beside a plan: the smallest conflict, what binds, other plans, what the cost depends on, rounds, risk.

Each part is `plan/`'s; this turns its figures into sentences with the units and names of the fleet.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

import numpy as np

from baseload.app.plan_map import PlanMap
from baseload.plan import conflict, whatif
from baseload.plan.problem import Problem
from baseload.report.plan_model import IN_THE_TWIN, Alternative, Binding, Miss, Risk, Round, Swing
from baseload.report.words import megawatts, number

if TYPE_CHECKING:
    from baseload.app.loop import LoopResult
    from baseload.app.plan_verb import Asked, Wish

CONFLICT_CPU_S = 10.0
UNSERVED = 1e-6
WHY_MAX = 4
NOT_BEGUN = "not begun"
RENTED_SAME = 0.05  # of what is signed for
SAME = 1e-6  # of a cost: two that are nearer are the same
LESS = ("serve", "survive the loss of a site")
KINDS = {
    "serve": "the demand of {who}",
    "survive the loss of a site": "serving {who} with a site lost",
    "power": "the power at {who}",
    "floor": "the floor at {who}",
    "share": "the largest share of {who}",
    "capex budget": "the budget of capital",
    "carbon budget": "the budget of carbon",
    "water budget": "the budget of water",
    "supply": "the supply of {who}",
    "shared supply": "the supply that all share of {who}",
    "rent": "the offer of rent, {who}",
}


@dataclass(slots=True)
class Findings:
    """What was found out beside the answer itself."""

    binding: list[Binding] = field(default_factory=list)
    alternatives: list[Alternative] = field(default_factory=list)
    swings: list[Swing] = field(default_factory=list)
    conflict: list[str] = field(default_factory=list)
    relax: list[str] = field(default_factory=list)
    changes: list[str] = field(default_factory=list)
    rounds: list[Round] = field(default_factory=list)
    broken: list[Miss] = field(default_factory=list)  # in the last round
    risk: Risk | None = None
    notes: list[str] = field(default_factory=list)


def rounds_of(result: LoopResult) -> list[Round]:
    """Return the rounds of the loop for the report."""
    return [
        Round(number=one.number, words=one.sentence(), meets=not one.misses and not one.left, cut=one.left > 0)
        for one in result.rounds
    ]


def broken_of(result: LoopResult) -> list[Miss]:
    """Return each tenant's promise that the last round found broken, where it was furthest."""
    worst: dict[str, tuple[float, Miss]] = {}
    for trial in result.rounds[-1].misses:
        for one in trial.misses:
            short, day = one.promised - one.attainment, trial.case.day
            if short <= worst.get(one.tenant, (0.0,))[0]:
                continue
            share = f"{100.0 * one.attainment:.2f} % where {100.0 * one.promised:g} %"
            quarter = f"{day.year}-Q{(day.month + 2) // 3}"
            miss = Miss(
                limit=IN_THE_TWIN, first=quarter, last=quarter, who=one.tenant, amount=short, unit="of its requests",
                words=f"{quarter}: {one.tenant} on {trial.case}, in the twin: {share} of its requests have to be kept",
            )  # fmt: skip
            worst[one.tenant] = short, miss
    return [miss for _, miss in sorted(worst.values(), key=lambda pair: -pair[0])]


def look(asked: Asked, into: Findings, wish: Wish, say: Callable[[str], None], stop: Callable[[], bool]) -> None:
    """Find out what can be found out of an answer, as far as time allows."""
    assert asked.answer is not None
    if not asked.answer.meets or float(asked.answer.unserved.max(initial=0.0)) > UNSERVED:
        say("looking for the smallest conflict ...")
        find_conflict(asked.problem, asked.plan_map, into, stop)
    from baseload.app import plan_explain

    if not stop():
        say("asking what binds, what else would do, and what the cost depends on ...")
        into.binding = plan_explain.what_binds(asked, stop)
    if not stop():
        into.alternatives = plan_explain.others(asked.problem, asked.answer, asked.plan_map, stop)
    if not stop():
        into.swings = plan_explain.swings(asked.problem, asked.answer, asked.plan_map, stop)


def look_at_risk(
    asked: Asked, into: Findings, wish: Wish, say: Callable[[str], None], stop: Callable[[], bool]
) -> None:
    """Hold the first decisions against scenarios; the plan is then the one that keeps what came of it, run in the twin."""
    from baseload.app import plan_risk, plan_verb
    from baseload.app.loop import close_loop

    assert wish.risk is not None
    say(f"holding what is decided now against {wish.scenarios} scenarios ...")
    into.risk, kept = plan_risk.look(asked, wish.risk, wish.scenarios, wish.seed, stop, lambda sentence: None)
    if kept is None:
        return
    asked.answer = kept
    if wish.rounds and stop():  # what the twin said before was of another plan
        words = "the plan that keeps what was decided against the scenarios was not run: stopped"
        into.broken, again = [], Round(number=len(into.rounds) + 1, words=words, meets=False, cut=True)
        into.rounds.append(again)
    elif wish.rounds:
        result = close_loop(
            asked.table, lambda _: plan_verb.in_the_twin(asked), rounds=1, seed=wish.seed, say=say, stop=stop
        )
        words = f"once more, with what was decided against the scenarios: {result.rounds[-1].sentence()}"
        into.broken = broken_of(result)
        into.rounds.append(
            Round(number=len(into.rounds) + 1, words=words, meets=result.agreed, cut=result.rounds[-1].left > 0)
        )


def find_conflict(problem: Problem, plan_map: PlanMap, into: Findings, stop: Callable[[], bool]) -> None:
    """Write down the smallest set of demands and limits that cannot hold together, and what giving way would take."""
    found = conflict.find(_without_power_of_others(problem, plan_map), cpu_limit_s=CONFLICT_CPU_S, stop=stop)
    if found is None:
        into.conflict.append(
            "each demand and each limit can be kept, at a price above that of missing it or with parts of racks and phases"
        )
        return
    into.conflict += [_side(side, plan_map) for side in found.sides]
    if not found.proven:
        into.conflict.append("found within its limit of time: a smaller set may do")
    into.relax += [
        f"{KINDS.get(side.kind, side.kind).format(who=side.who)}: at least {_amount(side.gives, side.unit, plan_map)} "
        f"{'more' if side.kind not in LESS else 'less'}, by itself and with parts of racks"
        for side in found.sides
        if side.gives is not None
    ]


def _without_power_of_others(problem: Problem, plan_map: PlanMap) -> Problem:
    """Return the problem in which power and floor give way at sites of one's own alone: elsewhere there is only rent."""
    rented = np.array([site.rented for site in plan_map.sites])[:, None]
    price = {
        name: np.where(rented, np.inf, np.broadcast_to(problem.slack_price[name], problem.power_mw.shape))
        for name in ("short_power", "short_floor")
    }
    return replace(problem, slack_price=problem.slack_price | price)


def _side(side: conflict.Side, plan_map: PlanMap) -> str:
    when = span(side.periods)
    return f"{KINDS.get(side.kind, side.kind).format(who=side.who)}, {when}"


def _amount(value: float, unit: str, plan_map: PlanMap) -> str:
    if unit == "MW":
        return megawatts(value)
    if unit == "money":
        return number(value * plan_map.money_unit, plan_map.currency)
    return number(value, unit)


def span(periods: Sequence[str]) -> str:
    """Return periods as a span.

    >>> span(("2027-Q1", "2027-Q2")), span(("2027-Q1",))
    ('2027-Q1 to 2027-Q2', '2027-Q1')
    """
    if not periods:
        return "in no quarter"
    return periods[0] if len(periods) == 1 else f"{periods[0]} to {periods[-1]}"


def what_changed(first: Asked, second: Asked) -> list[str]:
    """Return what a what-if changes: cost, and what is bought, rented and begun, in sentences."""
    before, after, problem, other, plan_map = first.answer, second.answer, first.problem, second.problem, first.plan_map
    assert before is not None and after is not None
    currency, now_cost = plan_map.currency, after.cost * second.plan_map.money_unit + second.plan_map.sunk
    more = now_cost - before.cost * plan_map.money_unit - plan_map.sunk
    moves = f"{'rises' if more > 0 else 'falls'} by {number(abs(more), currency)} to"
    said = [
        f"the cost {moves if abs(more) > SAME * abs(now_cost) else 'stays at'} {number(now_cost, currency)} in present value"
    ]
    moved = {
        name.replace("_", " "): now * second.plan_map.money_unit - was * plan_map.money_unit
        for name, (was, now) in whatif.parts(problem, before, other, after).items()
    }
    rented = any(one.plan_map.prices.rented_already.any() for one in (first, second))
    stand = "racks that stand without power" if not rented else "racks that stand without power, or are rented already"
    moved[stand] = second.plan_map.sunk - plan_map.sunk
    for name in sorted(moved, key=lambda name: -abs(moved[name]))[:WHY_MAX]:
        if abs(moved[name]) > 1e-4 * abs(now_cost):
            said.append(f"of it {name}: {number(abs(moved[name]), currency)} {'more' if moved[name] > 0 else 'less'}")
    beside = second.plan_map.fixed - plan_map.fixed
    if abs(beside) > 1e-4 * abs(now_cost):
        said.append(
            f"not in it, of people and other fixed cost: {number(abs(beside), currency)} {'more' if beside > 0 else 'less'}"
        )
    said += _racks_changed(first, second) + _phases_changed(first, second)
    same = not any(one for one in said[1:] if not one.startswith(("of it ", "not in it, ")))
    return [*said, "what is bought, rented and begun stays the same"] if same else said


def _both(one: Sequence[str], other: Sequence[str]) -> list[str]:
    return [*one, *(name for name in other if name not in one)]


def _racks_changed(first: Asked, second: Asked) -> list[str]:
    """Return racks bought and accelerators signed for by site and kind, those that one of the questions alone has too."""
    said = []
    for site in _both(first.problem.sites, second.problem.sites):
        for kind in _both(first.problem.kinds, second.problem.kinds):
            (was, rented_was), (now, rented_now) = _racks(first, site, kind), _racks(second, site, kind)
            if abs(was - now) > 0.5:
                said.append(f"{site}: {now:.0f} racks of {kind} are bought, before {was:.0f}")
            if abs(rented_was - rented_now) > RENTED_SAME * max(1.0, rented_was):
                said.append(
                    f"{site}: {number(rented_now)} accelerators of {kind} are signed for over the horizon, before "
                    f"{number(rented_was)}"
                )
    return said


def _racks(asked: Asked, site: str, kind: str) -> tuple[float, float]:
    """Return racks bought and accelerators signed for at a site; nothing where the question has no such site or kind."""
    assert asked.answer is not None
    if site not in asked.problem.sites or kind not in asked.problem.kinds:
        return 0.0, 0.0
    s, a = asked.problem.sites.index(site), asked.problem.kinds.index(kind)
    per = asked.plan_map.kinds[a].per_rack
    return float(asked.answer.buy[s, a].sum()), float(asked.answer.sign[s, a].sum()) * per


def _phases_changed(first: Asked, second: Asked) -> list[str]:
    """Return when phases are begun where that differs; a phase that only one of the questions has is begun or not there."""
    said = []
    for name in _both(first.problem.phases, second.problem.phases):
        was, now = _when_begun(first, name), _when_begun(second, name)
        if was != now and {was, now} != {None, NOT_BEGUN}:
            said.append(f"{name}: {now or 'not there'}, before {was or 'not there'}")
        elif was == now:
            delays = [int(one.problem.phase_delay[one.problem.phases.index(name)]) for one in (first, second)]
            if delays[0] != delays[1]:
                said.append(f"{name}: {delays[1]} quarters from begin to power, before {delays[0]}")
    return said


def _when_begun(asked: Asked, name: str) -> str | None:
    """Return when a phase is begun, in words; None where the question has none of that name."""
    assert asked.answer is not None
    if name not in asked.problem.phases:
        return None
    p = asked.problem.phases.index(name)
    return _when(_begun(asked.answer.w[p].tolist(), int(asked.problem.phase_delay[p])), asked.problem)


def _begun(row: Sequence[float], delay: int) -> int:
    """Return the period in which a phase is begun; the horizon where that brings no power within it."""
    return next((t for t, value in enumerate(row[: max(0, len(row) - delay)]) if value > 0.5), len(row))


def _when(t: int, problem: Problem) -> str:
    return f"begun in {problem.periods[t]}" if t < len(problem.periods) else NOT_BEGUN
