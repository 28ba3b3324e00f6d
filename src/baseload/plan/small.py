"""A problem solved exactly: branch and bound on the whole programme, survival rows added until no loss of a site breaks one.

Every round is a relaxation (rows may still be missing), so its bound holds; its solution, with what truly cannot survive paid
for, is a plan. Both meet when no row is missing. The linear relaxation finds most rows first, because it is cheap.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import replace

import numpy as np

from baseload.errors import PlanError
from baseload.plan import build as building
from baseload.plan.build import Model
from baseload.plan.dive import dive
from baseload.plan.highs import INF, Lp, Progress, Solution, Stop
from baseload.plan.nothing import Fix, keeps, nothing
from baseload.plan.problem import Answer, Floats, Problem, Status
from baseload.plan.project import rented_in

_ROUNDS = 60
_LITTLE = 400  # columns: branch and bound needs no help there


def solve_small(
    problem: Problem,
    *,
    gap: float = 1e-6,
    cpu_limit_s: float = 60.0,
    progress: Progress | None = None,
    stop: Stop | None = None,
    warm: Answer | None = None,
    fix: Fix | None = None,
) -> Answer:
    """Return the best plan within `gap`, or the best found when time or `stop` ends it.

    Args:
        problem: what is asked.
        gap: relative gap at which to end.
        cpu_limit_s: CPU seconds that it may take.
        progress: told (bound, cost) now and then.
        stop: asked now and then; True ends it with the best plan so far.
        warm: an earlier answer to begin with.
        fix: values of w by (phase, period) that are not to be decided.
    """
    began_s = time.process_time()

    def left_s() -> float:
        return cpu_limit_s - (time.process_time() - began_s)

    model = building.build(problem, building.first_halls(problem))
    lp = Lp(model.program)
    _fix(model, lp, fix or {})
    search = _Search(model=model, lp=lp, gap=gap, progress=progress, stop=stop)
    lp.set_whole(False)
    search.survive(left_s)
    lp.set_whole(True)
    if search.relaxed is not None and len(model.program.cost) > _LITTLE:
        dive(search, search.relaxed, left_s)
    if warm is not None and search.start is None:
        search.start = columns_of(model, warm)
    status = search.branch(left_s)
    idle = nothing(problem, fix)
    is_idle = idle.cost < search.best_cost and keeps(idle.w, fix or {})
    if search.best is None and not is_idle:
        raise PlanError(
            f"{problem.name}: no plan meets the rows that have no slack; give every slack a price, or see which phases, "
            "racks and supply are fixed"
        )
    cost = idle.cost if is_idle else search.best_cost
    bound = min(search.bound, cost)
    if status != "interrupted" and cost - bound <= gap * max(1e-9, abs(cost)):
        status = "optimal" if gap <= 1e-6 else "within_gap"
    spent_s = time.process_time() - began_s
    if is_idle or search.best is None:
        return replace(idle, bound=bound, status=status, cpu_s=spent_s)
    return building.answer_of(model, search.best, bound=bound, status=status, method="branch and bound", cpu_s=spent_s)


class _Search:
    """The state of a search: best plan, bound, and the programme with all rows found so far."""

    def __init__(self, *, model: Model, lp: Lp, gap: float, progress: Progress | None, stop: Stop | None) -> None:
        self.model, self.lp, self.gap, self.progress, self.stop = model, lp, gap, progress, stop
        self.best: Floats | None = None
        self.best_cost = INF
        self.bound = -INF
        self.start: Floats | None = None
        self.relaxed: Floats | None = None  # solution of the relaxation

    def told(self, bound: float, _cost: float = INF) -> None:
        """Pass on how far the search is; what the solver has found still wants its survival checked.

        Nothing is proven by what it says on its way: now and then that is the bound of a search within its search.
        """
        if self.progress is not None:
            self.progress(min(max(self.bound, bound), self.best_cost), self.best_cost)

    def survive(self, left_s: Callable[[], float]) -> None:
        """Find survival rows by the linear relaxation; its cost is a bound."""
        for _ in range(_ROUNDS):
            found = self.lp.solve(cpu_limit_s=max(0.05, left_s()), stop=self.stop)
            if found.state == "infeasible":
                return
            if found.state != "optimal" or found.x is None:
                return
            self.bound = max(self.bound, found.cost)
            self.told(self.bound)
            self.relaxed = found.x
            if self.add_missing(found.x) == 0 or left_s() <= 0:
                return

    def branch(self, left_s: Callable[[], float]) -> Status:
        """Branch and bound, round by round, until no survival row is missing."""
        for _ in range(_ROUNDS):
            found = self.lp.solve(
                gap=self.gap, cpu_limit_s=max(0.1, left_s()), start=self.start, stop=self.stop, progress=self.told
            )
            if np.isfinite(found.bound):
                self.bound = max(self.bound, found.bound)
            if found.x is None or (found.state != "optimal" and not self.model.program.whole.any()):
                return self._ended(found)
            added = self.add_missing(found.x)
            self._take(found.x, left_s)
            self.told(self.bound)
            closed = self.best_cost - self.bound <= self.gap * max(1e-9, abs(self.best_cost))
            if closed:
                return "optimal"
            if added == 0 and found.state == "optimal":
                return "stopped"  # by the solver's own reckoning there is nothing left to do
            if found.state != "optimal" or left_s() <= 0:
                return self._ended(found)
        return "stopped"

    def _ended(self, found: Solution) -> Status:
        return "interrupted" if self.stop is not None and self.stop() else "stopped"

    def add_missing(self, x: Floats) -> int:
        """Add the survival rows that a solution breaks; return how many."""
        model = self.model
        short, unserved = np.maximum(0.0, model.value("short_survive", x)), model.value("unserved", x)
        halls, _ = building.missing_halls(model.problem, building.carried(model, x), unserved, short)
        least, start, index, value = building.rows_of(model, halls)
        self.lp.add_rows(least, np.full(len(least), INF), start, index, value)
        return len(halls)

    def _take(self, x: Floats, left_s: Callable[[], float]) -> None:
        """Keep a plan if it is the best: whole columns made exactly whole, the rest solved anew for them."""
        model = self.model
        whole = np.flatnonzero(model.program.whole)
        exact = np.round(x[whole])
        if np.abs(x[whole] - exact).max(initial=0.0) > 0.0:
            self.lp.set_whole(False)
            self.lp.set_bounds(whole, exact, exact)
            clean = self.lp.solve(cpu_limit_s=max(1.0, left_s()))
            self.lp.set_bounds(whole, model.program.lower[whole], model.program.upper[whole])
            self.lp.set_whole(True)
            if clean.state == "optimal" and clean.x is not None:
                x = clean.x
                x[whole] = exact
                self.add_missing(x)
        self.keep(x)

    def keep(self, x: Floats) -> None:
        """Remember a plan with its true cost, if it is the best so far."""
        model = self.model
        unserved = np.maximum(0.0, model.value("unserved", x))
        none = np.zeros(model.problem.demand.shape[1:])
        _, short = building.missing_halls(model.problem, building.carried(model, x), unserved, none)
        cost = building.true_cost(model, x, short)
        if cost < self.best_cost:
            self.best, self.best_cost, self.start = x, cost, x


def _fix(model: Model, lp: Lp, fix: Fix) -> None:
    for (p, t), value in fix.items():
        column = model.columns["w"][p, t]
        model.program.lower[column] = model.program.upper[column] = float(value)
        lp.set_bounds(np.array([column]), np.array([float(value)]), np.array([float(value)]))


def columns_of(model: Model, answer: Answer) -> Floats:
    """Return the decisions of an answer as a start; HiGHS works out the columns that follow from them."""
    x = np.zeros(len(model.program.cost))
    parts = {"w": answer.w, "buy": answer.buy, "sign": answer.sign, "put": answer.put, "flow": answer.flow}
    parts |= {"unserved": answer.unserved, "billed": answer.billed} | answer.slack
    if answer.used is not None:
        parts["used"] = answer.used
    if answer.host is not None:
        parts["host"] = answer.host
    for name, values in parts.items():
        number = model.columns.get(name)
        if number is not None and number.shape == values.shape:
            x[number[number >= 0]] = values[number >= 0]
    problem = model.problem
    carry = np.einsum("am,samt->smt", problem.rate, answer.put)
    number = model.columns["carry"]
    x[number[number >= 0]] = carry[number >= 0]
    owned = problem.existing.copy()
    n_periods = len(problem.periods)
    for a, (lead, life) in enumerate(zip(problem.lead, problem.life, strict=True)):
        for u in range(n_periods):
            owned[:, a, u + lead : u + lead + life] += answer.buy[:, a, u : u + 1]
    number = model.columns["own"]
    x[number[number >= 0]] = owned[number >= 0]
    for k, term in enumerate(problem.term):
        rented = np.einsum("tu,sau->sat", rented_in(int(term), n_periods), answer.sign[:, :, k])
        number = model.columns["rent"][:, :, k]
        x[number[number >= 0]] = rented[number >= 0]
    return np.clip(x, model.program.lower, model.program.upper)
