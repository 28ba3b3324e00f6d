"""The same question over fewer, longer periods: what a large programme can be told before it is solved.

Neither bound nor plan comes of it. It knows which survival rows are likely to bind: which sites are short when another is lost
depends little on how finely time is cut.
"""

from __future__ import annotations

import time
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from baseload.plan import build as building
from baseload.plan.build import Hall
from baseload.plan.highs import INF, Lp, Method, Stop
from baseload.plan.problem import Floats, Ints, Problem, spans

_ROUNDS = 12
_LARGE_FLOWS, _LARGE_PERIODS = 8_000, 10  # from both on it is a large programme
_SUMS = (
    *("cost_live", "cost_owned", "cost_put", "cost_flow", "cost_unserved", "cost_billed", "cost_host"),
    *("carbon_owned", "carbon_put", "water_owned", "water_put", "supply", "shared"),
)
_BUDGETS = ("capex_budget", "carbon_budget", "water_budget")
_MEANS = ("demand", "existing", "power_mw", "floor_m2", "cost_begin", "cost_buy", "spend_begin", "spend_buy")


def coarser(problem: Problem, n: int) -> Problem:
    """Return the problem with each `n` periods as one: means of what is there, sums of what is used or paid by the period."""
    n_periods = len(problem.periods)
    start = np.arange(0, n_periods, n)
    size = np.diff(np.append(start, n_periods))

    def total(values: Floats) -> Floats:
        return np.asarray(np.add.reduceat(values, start, axis=-1), dtype=np.float64)

    def fewer(periods: Ints, least: int) -> Ints:
        return np.maximum(least, np.round(periods / n)).astype(np.int64)

    term = fewer(problem.term, 1)
    changed: dict[str, Any] = {name: total(getattr(problem, name)) for name in _SUMS}
    changed |= {name: total(getattr(problem, name)) / size for name in _MEANS}
    if problem.billed_least is not None:
        changed["billed_least"] = total(problem.billed_least) / size
    if problem.cost_used is not None:
        changed["cost_used"] = total(problem.cost_used)
    for name in _BUDGETS:  # those that end within a period are that period's, of as many periods as make up theirs
        budget = getattr(problem, name)
        there = total(np.isfinite(budget).astype(np.float64))
        changed[name] = np.where(there > 0.0, total(np.where(np.isfinite(budget), budget, 0.0)), INF)
    longest = np.maximum.reduceat(spans(problem), start)
    changed["budget_span"] = np.minimum(np.arange(len(start)) + 1, np.ceil(longest / n)).astype(np.int64)
    return replace(
        problem,
        name=f"{problem.name}, {n} periods as one",
        periods=problem.periods[::n],
        lead=fewer(problem.lead, 0),
        life=fewer(problem.life, 1),
        phase_delay=fewer(problem.phase_delay, 0),
        begin_from=-(-problem.begin_from // n),
        begin_by=np.where(problem.begin_by < n_periods, problem.begin_by // n, len(start)),
        term=term,
        cost_sign=total(problem.cost_sign) / size * (term * n / problem.term)[:, None],
        slack_price={
            name: total(price) if price.ndim and price.shape[-1] == n_periods else price
            for name, price in problem.slack_price.items()
        },
        **changed,
    )


def is_large(problem: Problem) -> bool:
    """Return whether what longer periods tell is worth its time."""
    n_periods = len(problem.periods)
    return int(problem.allowed.sum()) * n_periods >= _LARGE_FLOWS and n_periods >= _LARGE_PERIODS


@dataclass(frozen=True, kw_only=True)
class Held:
    """The survival rows that a relaxation over longer periods needed, and where it ended."""

    halls: tuple[Hall, ...]
    basis: object | None


class Coarse:
    """A problem over periods `n` times as long, held for re-solves."""

    def __init__(
        self, problem: Problem, n: int, *, until_s: float, stop: Stop | None = None, was: Held | None = None
    ) -> None:
        """Build it; nothing is solved yet. `was` is what another one of the same shape held."""
        self.problem, self.n, self.until_s, self.stop = problem, n, until_s, stop
        longer = coarser(problem, n)
        self._known: list[Hall] = [] if was is None else building.lawful(longer, was.halls)
        self._model = building.build(longer, self._known)
        self._lp = Lp(self._model.program, relaxed=True)
        self._is_warm = was is not None and was.basis is not None and self._lp.set_basis(was.basis)
        self.held: Held | None = None

    def halls(self) -> list[Hall]:
        """Return the survival rows that a plan over longer periods needs, in all periods of the problem."""
        for turn in range(_ROUNDS):
            method: Method = "simplex" if turn or self._is_warm else "ipm"
            found = self._lp.solve(method=method, cpu_limit_s=self._left_s(), stop=self.stop)
            if found.state != "optimal" or found.x is None:
                break
            self._model, more = building.add_broken(self._model, self._lp, found.x)
            if not more:
                break
            self._known += more
        self.held = Held(halls=tuple(self._known), basis=self._lp.basis())
        return building.in_all_periods(self.problem, self._known)

    def _left_s(self) -> float:
        return max(0.05, self.until_s - time.process_time())
