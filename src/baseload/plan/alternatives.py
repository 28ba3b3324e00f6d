"""Other plans that cost nearly as much, and what the cost depends on.

Near-optimal plans are found by turning the question round (modelling to generate alternatives: Brill 1979; DeCarolis 2011):
the cost may be a little more than the plan's, and within that something else is made as small as can be: grid phases begun,
racks at the site that has most, racks of the kind that is used most, racks bought, racks rented. Each is a whole plan, checked
as any other. The tornado moves one input at a time, phases kept (`nearby.py`), so that small effects are not lost in a
search's gap.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace

import numpy as np

from baseload.plan import build as building
from baseload.plan.build import Hall, Model
from baseload.plan.check_answer import derived, recompute_cost
from baseload.plan.highs import INF, Lp
from baseload.plan.nearby import Nearby
from baseload.plan.problem import Answer, Floats, Problem
from baseload.plan.small import columns_of
from baseload.plan.solve import columns

_ROUNDS = 6
_BRANCHES = 14_000  # columns up to which phases are searched, not rounded
_THRESHOLDS = (0.5, 0.2, 0.8, 1e-6)
_SEARCHED = 0.8  # of a search's time for branch and bound; the rest makes its plan exact
_LESS = 0.01  # of what there is to be less of: a plan with hardly less is no other plan
_LEAST_S = 2.0  # CPU seconds that making a plan exact may take when time is over


@dataclass(frozen=True, kw_only=True)
class Alternative:
    """Another plan: what it does less of, what it costs, and how far it is from the first."""

    name: str
    answer: Answer
    more: float  # cost above the first plan's, as a share
    before: float  # what is made small: in the first plan, and here
    after: float
    unit: str
    apart: float  # share of the racks' power, by site, kind and period, that stands elsewhere; 0: the same, 1: all


@dataclass(frozen=True, kw_only=True)
class Aim:
    """Something to have less of: weights on the variables of a programme."""

    name: str
    unit: str
    weights: dict[str, Floats]  # by variable, in its shape

    def of(self, answer: Answer) -> float:
        """Return how much of it an answer has."""
        held = {"w": answer.w, "buy": answer.buy, "sign": answer.sign}
        return float(sum((held[name] * weight).sum() for name, weight in self.weights.items()))


def aims(problem: Problem, answer: Answer) -> list[Aim]:
    """Return what an alternative may have less of, by what the answer has most of."""
    found = []
    mw = _mw_begun(problem)
    if (answer.w * mw).sum() > 0.0:
        found.append(Aim(name="fewer MW of grid begun", unit="MW", weights={"w": mw}))
    buy, sign = np.ones_like(answer.buy), np.ones_like(answer.sign)
    months = np.minimum(problem.term[:, None], len(problem.periods) - np.arange(len(problem.periods))[None])
    sign = sign * months[None, None]
    racks = answer.buy.sum(axis=2) + (answer.sign * months).sum(axis=(2, 3)) / max(1, len(problem.periods))
    if racks.sum() <= 0.0:
        return found
    if len(problem.sites) > 1:
        s = int(np.argmax((racks * problem.rack_mw).sum(axis=1)))
        here = np.arange(len(problem.sites)) == s
        weights = {"buy": buy * here[:, None, None], "sign": sign * here[:, None, None, None]}
        found.append(Aim(name=f"less at {problem.sites[s]}", unit="racks and rack periods", weights=weights))
    if len(problem.kinds) > 1:
        a = int(np.argmax(racks.sum(axis=0)))
        this = np.arange(len(problem.kinds)) == a
        weights = {"buy": buy * this[None, :, None], "sign": sign * this[None, :, None, None]}
        found.append(Aim(name=f"fewer {problem.kinds[a]}", unit="racks and rack periods", weights=weights))
    if answer.buy.sum() > 0.0:
        found.append(Aim(name="less money up front", unit="money", weights={"buy": problem.spend_buy}))
    if answer.sign.sum() > 0.0:
        found.append(Aim(name="less rent", unit="rack periods", weights={"sign": sign}))
    return found


def _mw_begun(problem: Problem) -> Floats:
    """Return weights on w that count the MW of phases that are begun in time to bring power, and not decided already."""
    n_periods = len(problem.periods)
    mw = np.zeros((len(problem.phases), n_periods))
    for p, delay in enumerate(problem.phase_delay):
        if delay < n_periods <= problem.begin_by[p]:
            mw[p, n_periods - 1 - int(delay)] = problem.phase_mw[p]
    return mw


def alternatives(
    problem: Problem,
    answer: Answer,
    *,
    within: float = 0.02,
    cpu_limit_s: float = 60.0,
    stop: Callable[[], bool] | None = None,
) -> list[Alternative]:
    """Return plans that cost at most `within` (a share) more than `answer`, each with as little of one thing as can be."""
    until_s = time.process_time() + cpu_limit_s
    found = []
    wanted = aims(problem, answer)
    for i, aim in enumerate(wanted):
        left_s = until_s - time.process_time()
        if left_s <= 0.0 or (stop is not None and stop()):
            break
        search = _Search(problem, answer, aim, within, time.process_time() + left_s / (len(wanted) - i), stop)
        other = search.run()
        if other is not None and aim.of(other) < (1.0 - _LESS) * aim.of(answer):
            found.append(
                Alternative(
                    name=aim.name,
                    answer=other,
                    more=(other.cost - answer.cost) / max(1e-9, abs(answer.cost)),
                    before=aim.of(answer),
                    after=aim.of(other),
                    unit=aim.unit,
                    apart=apart(problem, answer, other),
                )
            )
    return found


def apart(problem: Problem, one: Answer, other: Answer) -> float:
    """Return the share of the racks' power, by site, kind and period, that stands elsewhere in another plan."""
    mw = []
    for answer in (one, other):
        of = derived(problem, answer)
        mw.append(problem.rack_mw[:, :, None] * (of.owned + of.rented.sum(axis=2)))
    return float(np.abs(mw[0] - mw[1]).sum() / max(1e-12, mw[0].sum() + mw[1].sum()))


class _Search:
    """The programme with its cost as a row, and something else to be made small."""

    def __init__(
        self, problem: Problem, answer: Answer, aim: Aim, within: float, until_s: float, stop: Callable[[], bool] | None
    ) -> None:
        self.problem, self.answer, self.aim, self.stop = problem, answer, aim, stop
        self.until_s, self.began_s = until_s, time.process_time()
        self.most = answer.cost + within * abs(answer.cost)
        halls: list[Hall] = list(getattr(answer.held, "halls", ())) or building.first_halls(problem)
        self.model: Model = building.build(problem, halls)
        program = self.model.program
        priced = np.flatnonzero(program.cost)
        self.lp = Lp(program)
        scale = max(1.0, abs(self.most))
        self.lp.add_rows(
            np.array([-INF]),
            np.array([self.most / scale]),
            np.array([0, len(priced)]),
            priced,
            program.cost[priced] / scale,
        )
        aimed = np.zeros(len(program.cost))
        for name, weight in aim.weights.items():
            number = self.model.columns[name]
            aimed[number[number >= 0]] += weight[number >= 0]
        largest = float(np.abs(aimed).max(initial=0.0))
        self.lp.set_costs(np.arange(len(aimed)), aimed / max(1e-12, largest))

    def run(self) -> Answer | None:
        """Return the plan with least of the aim within the cost, or None where none was found in time."""
        if columns(self.problem) <= _BRANCHES:
            return self._solved(branch=True)
        self.lp.set_whole(False)
        whole = np.flatnonzero(self.model.program.whole)
        x = self._point(branch=False)
        if x is None:
            return None
        for w in self._rounded(x[self.model.columns["w"]]):
            at = self.model.columns["w"].ravel()
            self.lp.set_bounds(at, w.ravel(), w.ravel())
            others = np.setdiff1d(whole, at)
            self.lp.set_bounds(others, np.round(x[others]), np.round(x[others]))
            other = self._solved(branch=False)
            if other is not None:
                return other
        return None

    def _rounded(self, w: Floats) -> Iterator[Floats]:
        """Yield phases near those of a relaxation, and at last the plan's own."""
        for threshold in _THRESHOLDS:
            chosen = np.maximum.accumulate((w >= threshold).astype(np.float64), axis=1)
            for _ in range(len(self.problem.phases)):
                for p, before in enumerate(self.problem.phase_after):
                    if before >= 0:
                        chosen[p] = np.minimum(chosen[p], chosen[before])
            yield chosen
        yield self.answer.w

    def _solved(self, *, branch: bool) -> Answer | None:
        x = self._point(branch=branch)
        if x is None:
            return None
        made = building.answer_of(self.model, x, bound=self.answer.bound, status="stopped", method="near", cpu_s=0.0)
        cost = recompute_cost(self.problem, made).total
        if cost > self.most + 1e-6 * abs(self.most):
            return None
        return replace(made, cost=cost, bound=min(self.answer.bound, cost))

    def _point(self, *, branch: bool) -> Floats | None:
        """Return a solution that breaks no survival row.

        Branch and bound begins with the first plan, so that time that runs out costs how far the plans are apart, no plan.
        """
        share, least_s = (_SEARCHED, 0.05) if branch else (1.0, _LEAST_S)
        first = columns_of(self.model, self.answer) if branch else None
        for _ in range(_ROUNDS):
            left_s = self.began_s + share * (self.until_s - self.began_s) - time.process_time()
            found = self.lp.solve(
                gap=0.05 if branch else 0.0, cpu_limit_s=max(least_s, left_s), start=first, stop=self.stop
            )
            if found.x is None or (found.state != "optimal" and not (branch and found.state == "stopped")):
                return None
            model, x = self.model, found.x
            short, unserved = np.maximum(0.0, model.value("short_survive", x)), model.value("unserved", x)
            halls, _ = building.missing_halls(model.problem, building.carried(model, x), unserved, short)
            if not halls:
                return self._exact(x) if branch else x
            first = x if branch else None
            least, start, index, value = building.rows_of(model, halls)
            self.lp.add_rows(least, np.full(len(least), INF), start, index, value)
        return None

    def _exact(self, x: Floats) -> Floats | None:
        """Return the solution with its whole columns exactly whole and the rest solved anew."""
        whole = np.flatnonzero(self.model.program.whole)
        if not len(whole):
            return x
        self.lp.set_whole(False)
        self.lp.set_bounds(whole, np.round(x[whole]), np.round(x[whole]))
        return self._point(branch=False)


# ---- what the cost depends on ------------------------------------------------------------------------------------------
@dataclass(frozen=True, kw_only=True)
class Swing:
    """What the cost becomes where one input is lower or higher; None where it was not reached in time or does not apply."""

    what: str
    low_words: str
    low: float | None
    high_words: str
    high: float | None

    @property
    def width(self) -> float:
        """Return how far the ends are apart."""
        ends = [end for end in (self.low, self.high) if end is not None]
        return max(ends) - min(ends) if len(ends) > 1 else 0.0


_GROUPS = {
    "price of racks": ("cost_buy", "spend_buy"),
    "power, space and upkeep": ("cost_owned", "cost_put", "cost_billed"),
    "rent": ("cost_sign",),
    "price of grid phases": ("cost_begin", "cost_live", "spend_begin"),
    "network": ("cost_flow",),
    "speed of racks": ("rate",),
    "demand": ("demand",),
}


def tornado(
    problem: Problem,
    answer: Answer,
    *,
    by: float = 0.2,
    cpu_limit_s: float = 60.0,
    stop: Callable[[], bool] | None = None,
) -> tuple[float, list[Swing]]:
    """Return the cost with phases kept, and what each input moves it to at -`by` and +`by`, the widest first.

    Of dates, the higher end is a period later for all phases, and for all racks.
    """
    near = Nearby(problem, answer, cpu_limit_s=cpu_limit_s, stop=stop)
    base = near.cost()
    if base is None:
        return answer.cost, []
    percent = f"{by:.0%}".replace("%", " %")
    found = []
    for what, names in _GROUPS.items():
        ends: list[float | None] = []
        for factor in (1.0 - by, 1.0 + by):
            changed = replace(problem, **{name: getattr(problem, name) * factor for name in names})
            ends.append(None if near.over() else near.cost(changed))
        found.append(
            Swing(what=what, low_words=f"{percent} less", low=ends[0], high_words=f"{percent} more", high=ends[1])
        )
    for what, name in (("grid phases", "phase_delay"), ("racks", "lead")):
        changed = replace(problem, **{name: getattr(problem, name) + 1})
        late = None if near.over() else near.cost(changed)
        found.append(
            Swing(what=f"delay of {what}", low_words="as said", low=base, high_words="a period later", high=late)
        )
    return base, sorted(found, key=lambda swing: -swing.width)
