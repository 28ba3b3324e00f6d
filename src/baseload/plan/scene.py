"""One scenario's programme, held for re-solves: as if the future were known, or with what is decided now kept.

What is decided now is a vector: all phases, then the orders and the rent of the first periods. A scenario in which an order
comes after the horizon has no column for it; its money is lost there all the same.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace

import numpy as np

from baseload.plan import build as building
from baseload.plan import extensive
from baseload.plan.build import Hall
from baseload.plan.held import CAPPED, SLOW_PRICES, Held
from baseload.plan.highs import INF, Lp, Solution, moved_basis
from baseload.plan.problem import Bools, Floats, Problem
from baseload.plan.proof import safe_bound
from baseload.plan.weights import MANY, Weights

_ROUNDS = 12
_PATIENCE = 1.1  # times what an interior point takes from nothing: so long a start from another one's end may take
_NEAR_PATIENCE = 2.0  # or one from where the same was decided: it needs fewer rounds after it
_NEAR_LONG = 1.4  # likewise: where one took longer, the next begin from nothing
_SOON_S = 0.2  # or that, where it is more
_MISSED = 1e-4
_LOOSE = 1e-7  # of a cost that the solver calls best


@dataclass(frozen=True, kw_only=True)
class Now:
    """What is decided now: all phases, and the orders and rent of the first periods."""

    w: Floats  # [P,T]
    buy: Floats  # [S,A,n]
    sign: Floats  # [S,A,K,n]

    def vector(self) -> Floats:
        """Return it as one vector."""
        return np.concatenate([self.w.ravel(), self.buy.ravel(), self.sign.ravel()])

    def of(self, vector: Floats) -> Now:
        """Return the decision that a vector of the same shape says, with orders of no less than nought."""
        n_w, n_buy = self.w.size, self.buy.size
        orders = np.maximum(0.0, vector[n_w:])
        return Now(
            w=vector[:n_w].reshape(self.w.shape),
            buy=orders[:n_buy].reshape(self.buy.shape),
            sign=orders[n_buy:].reshape(self.sign.shape),
        )


@dataclass(frozen=True, kw_only=True)
class Kept:
    """What a decision costs in a scenario, and how that changes with it."""

    cost: float
    slope: Floats  # of the cost by the decision's entries


@dataclass(kw_only=True)
class Pace:
    """CPU seconds that programmes of many scenarios take, which share it."""

    cold_s: float = INF  # from nothing, by an interior point
    warm_s: float = 0.0  # from where another one ended, by the simplex method
    near_s: float = 0.0  # from where another one ended in which the same was decided, likewise

    def is_cold(self, *, near: bool) -> bool:
        """Return whether it is better to begin from nothing."""
        return self.near_s > _NEAR_LONG * self.cold_s if near else self.warm_s > self.cold_s


class Scene:
    """The programme of one scenario."""

    def __init__(
        self,
        problem: Problem,
        first: int,
        halls: Iterable[Hall] | None = None,
        held: Held | None = None,
        pace: Pace | None = None,
    ) -> None:
        """Build it with the survival rows given, such as those that an earlier scenario needed; `held` is where to begin."""
        self.problem, self.pace = problem, pace or Pace()
        self.halls = list(halls) if halls is not None else building.first_halls(problem)
        self.model = building.build(problem, self.halls)
        self.program = self.model.program
        self.lp = Lp(self.program, relaxed=True)
        self.weights = Weights(self.lp)
        self.warm = held is not None and held.fits(problem)
        self.solved = False  # here, not where `held` comes from
        self.near = False  # begun from another scenario in which the same was decided
        if held is not None and self.warm:
            places = building.carried_over(held.model, held.halls, self.model, self.halls)
            self.lp.set_basis(moved_basis(held.basis, *places))
        at = self.model.columns
        slow = np.concatenate([at[name].ravel() for name in SLOW_PRICES])
        self.slow = slow[slow >= 0]  # columns
        self.parts = {"w": at["w"], "buy": at["buy"][..., :first], "sign": at["sign"][..., :first]}
        self.columns = np.concatenate([part.ravel() for part in self.parts.values()])
        self.there: Bools = self.columns >= 0
        self.cost = self.program.cost.copy()
        late = np.where(self.parts["buy"] < 0, problem.cost_buy[..., : self.parts["buy"].shape[2]], 0.0)
        none = [np.zeros(self.parts["w"].size), np.zeros(self.parts["sign"].size)]
        self.lost = np.concatenate([none[0], late.ravel(), none[1]])

    def block(self, *, for_bound: bool = False) -> extensive.Block:
        """Return the programme for the one of many scenarios; `for_bound` with less dear slacks, which is solved sooner."""
        program = self.program
        if for_bound:
            program = replace(program, cost=program.cost.copy())
            program.cost[self.slow] *= CAPPED
        return extensive.Block(program=program, now=self.columns, lost=self.lost)

    def misses(self, x: Floats) -> bool:
        """Return whether a solution breaks a limit whose slack is dear."""
        return any(float(self.model.value(name, x).max(initial=0.0)) > _MISSED for name in SLOW_PRICES)

    def missed_cost(self, x: Floats) -> float:
        """Return what a solution with less dear slacks would cost more at their own prices."""
        slow = self.slow
        return (1.0 - CAPPED) * float(self.cost[slow] @ np.maximum(0.0, x[slow]))

    def vector(self, x: Floats) -> Floats:
        """Return what is decided now in a solution."""
        return np.where(self.there, x[self.columns], 0.0)

    def solve(self, until_s: float, stop: Callable[[], bool] | None = None) -> Solution | None:
        """Return the solution with all survival rows that it needs, as far as a few rounds find them; None where time was over.

        Rows that the last round would need are not added: what it returns is a solution of the programme as it stands.
        """
        n_more = MANY
        for turn in range(_ROUNDS):
            left_s = max(0.05, until_s - time.process_time())
            if turn:
                options = self.weights.after(n_more)
                found = self.lp.solve(method="simplex", cpu_limit_s=left_s, stop=stop, options=options)
            else:
                found = self._begun(left_s, stop)
            if found.state != "optimal" or found.x is None:
                return None
            self.warm = self.solved = True
            if turn == _ROUNDS - 1:
                break
            model, x = self.model, found.x
            short, unserved = np.maximum(0.0, model.value("short_survive", x)), model.value("unserved", x)
            halls, _ = building.missing_halls(self.problem, building.carried(model, x), unserved, short)
            if not halls:
                return found
            self.add(halls)
            n_more = len(halls)
        return found

    def _begun(self, left_s: float, stop: Callable[[], bool] | None) -> Solution:
        """Solve from where this or another one ended, or from nothing where that is likely to be sooner."""
        pace, options, began_s = self.pace, self.weights.after(MANY), time.process_time()
        if self.warm and (self.solved or not pace.is_cold(near=self.near)):
            patience = _NEAR_PATIENCE if self.near else _PATIENCE
            limit_s = min(left_s, max(_SOON_S, patience * pace.cold_s))
            found = self.lp.solve(method="simplex", cpu_limit_s=limit_s, stop=stop, options=options)
            if not self.solved:  # one that had to be given up took twice as long, it may be
                took_s = found.cpu_s if found.state == "optimal" else 2.0 * limit_s
                if self.near:
                    pace.near_s = took_s
                else:
                    pace.warm_s = took_s
            if found.state != "stopped" or limit_s == left_s:
                return found
        slow = self.slow
        self.lp.set_costs(slow, CAPPED * self.program.cost[slow])
        self.lp.forget_basis()
        left_s = max(0.05, left_s - (time.process_time() - began_s))
        found = self.lp.solve(method="ipm", cpu_limit_s=left_s, stop=stop, options=options)
        self.lp.set_costs(slow, self.program.cost[slow])
        if found.state == "optimal" and found.x is not None:
            pace.cold_s = found.cpu_s
            if self.misses(found.x):  # at less than their price
                left_s = max(0.05, left_s - found.cpu_s)
                return self.lp.solve(method="simplex", cpu_limit_s=left_s, stop=stop, options=options)
        return found

    def begin_from(self, other: Scene) -> None:
        """Begin the next solve where another scenario that decides the same ended, if that is likely to be sooner."""
        basis = None if self.pace.is_cold(near=True) else other.lp.basis()
        if basis is not None:
            places = building.carried_over(other.model, other.halls, self.model, self.halls)
            self.lp.set_basis(moved_basis(basis, *places))
            self.warm = self.near = True

    def add(self, halls: list[Hall]) -> None:
        """Add survival rows."""
        if halls:
            least, start, index, value = building.rows_of(self.model, halls)
            self.lp.add_rows(least, np.full(len(least), INF), start, index, value)
            self.program = self.program.with_rows(least, start, index, value)
            self.halls += halls

    def free(self, until_s: float, stop: Callable[[], bool] | None = None) -> tuple[float, Floats] | None:
        """Return (a bound, what would be decided now) as if this future were known."""
        columns = self.columns[self.there]
        self.lp.set_bounds(columns, self.program.lower[columns], self.program.upper[columns])
        found = self.solve(until_s, stop)
        if found is None or found.x is None:
            return None
        bound = -INF
        if found.row_dual is not None:
            bound = safe_bound(self.program, found.row_dual, self.program.lower, self.program.upper)
        return (bound if np.isfinite(bound) else found.cost - _LOOSE * abs(found.cost)), self.vector(found.x)

    def kept(self, now: Now, until_s: float, stop: Callable[[], bool] | None = None) -> Kept | None:
        """Return the least cost with what is decided now; None where time was over."""
        values = now.vector()
        columns = self.columns[self.there]
        self.lp.set_bounds(columns, values[self.there], values[self.there])
        found = self.solve(until_s, stop)
        if found is None or found.x is None:
            return None
        model, x = self.model, found.x
        _, short = building.missing_halls(
            self.problem,
            building.carried(model, x),
            model.value("unserved", x),
            np.zeros(self.problem.demand.shape[1:]),
        )
        slope = self.lost.copy()
        if found.reduced_cost is not None:
            slope[self.there] = found.reduced_cost[columns]
        late = float(self.lost @ values)  # what arrives too late is paid all the same
        return Kept(cost=building.true_cost(model, x, short) + late, slope=slope)
