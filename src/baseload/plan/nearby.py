"""A plan's phases kept, all else decided anew under changed numbers: what a change costs, without the noise of a new search.

The programme with phases and hosting as in an answer is linear (racks divisible), so that its cost is exact and its prices are
worth reading; each change starts from the last solution.
"""

from __future__ import annotations

import time
from collections.abc import Callable

import numpy as np

from baseload.plan import build as building
from baseload.plan.build import Hall, Model
from baseload.plan.highs import INF, Lp, Solution
from baseload.plan.problem import Answer, Floats, Problem

_ROUNDS = 20


class Nearby:
    """Re-solves around an answer, until CPU time or patience ends."""

    def __init__(
        self, problem: Problem, answer: Answer, *, cpu_limit_s: float = INF, stop: Callable[[], bool] | None = None
    ) -> None:
        """Keep the answer's phases and hosting; nothing is solved yet."""
        self.problem, self.w, self.host = problem, answer.w, answer.host
        self.until_s, self.stop = time.process_time() + cpu_limit_s, stop
        self.halls: list[Hall] = list(getattr(answer.held, "halls", ())) or building.first_halls(problem)
        self._basis: object | None = None

    def over(self) -> bool:
        """Return whether time or patience is over."""
        return time.process_time() >= self.until_s or (self.stop is not None and self.stop())

    def solve(
        self, changed: Problem | None = None, w: Floats | None = None, more: dict[str, Floats] | None = None
    ) -> tuple[Model, Solution] | None:
        """Return the programme and its solution under changed numbers (shapes as before); None where time was over.

        Args:
            changed: the changed problem; None asks for the one as it was.
            w: other phases than the answer's.
            more: other decisions to keep by variable, not a number where they are free.
        """
        asked = changed or self.problem
        other_law = bool((asked.allowed != self.problem.allowed).any())  # who must survive is another matter then
        halls_known = building.first_halls(asked) if other_law else self.halls
        model = building.build(asked, halls_known)
        lp = Lp(model.program, relaxed=True)
        if self._basis is not None:
            lp.set_basis(self._basis)
        self._keep(model, lp, self.w if w is None else w, more or {})
        first = self._basis is None
        for _ in range(_ROUNDS):
            left_s = self.until_s - time.process_time()
            found = lp.solve(method="ipm" if first else "simplex", cpu_limit_s=max(0.05, left_s), stop=self.stop)
            first = False
            if found.state != "optimal" or found.x is None:
                return None
            basis = lp.basis()
            model, halls = building.add_broken(model, lp, found.x)
            if not halls:
                self._basis = self._basis if other_law else basis
                return model, found
            halls_known += halls
        return None

    def cost(self, changed: Problem | None = None, w: Floats | None = None) -> float | None:
        """Return the least cost under changed numbers, racks divisible; None where time was over."""
        found = self.solve(changed, w)
        return None if found is None else found[1].cost

    def _keep(self, model: Model, lp: Lp, w: Floats, more: dict[str, Floats]) -> None:
        kept = {"w": w} | ({"host": np.round(self.host)} if self.host is not None else {}) | more
        for name, values in kept.items():
            number = model.columns[name]
            here = (number >= 0) & np.isfinite(values)
            exact = values[here].astype(np.float64)
            lp.set_bounds(number[here], exact, exact)
        # a limit of supply is a row; as a bound of a column too it would hide its price
        buy = model.columns["buy"]
        free = buy[(buy >= 0) & ~np.isfinite(np.asarray(more.get("buy", np.full(buy.shape, np.nan))))]
        lp.set_bounds(free, np.zeros(len(free)), np.full(len(free), INF))
