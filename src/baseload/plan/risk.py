"""A plan against many futures: phases and the first orders are decided now, the rest when it is known how things turn out.

Each scenario is a linear programme of its own that is held and re-solved warm. What is decided now is to be the same in all:
Lagrange prices say what a scenario would pay to have its own way, and with prices that add up to nought the scenarios' least
costs are a bound on any plan (Caroe and Schultz 1999). Plans come from rounding the scenarios' mean phases, and from the plan
for the mean scenario; each is priced in every scenario. For CVaR the bound is that of the scenarios' own least costs. Racks
and hosting are divisible here.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np

from baseload.plan import build as building
from baseload.plan import extensive
from baseload.plan.build import Hall
from baseload.plan.highs import INF, Lp, Solution
from baseload.plan.problem import Answer, Bools, Floats, Problem
from baseload.plan.proof import safe_bound
from baseload.plan.scenarios import Scenario, applied, mean_of, measured
from baseload.plan.solve import solve

_ROUNDS = 12
_THRESHOLDS = (0.5, 0.25, 0.75)
_TOGETHER = 3  # times that all scenarios are solved in one programme
_GRACE_S = 30.0  # to price a decision that was found in time


@dataclass(frozen=True, kw_only=True)
class Now:
    """What is decided now: all phases, and the orders and rent of the first periods."""

    w: Floats  # [P,T]
    buy: Floats  # [S,A,n]
    sign: Floats  # [S,A,K,n]


@dataclass(frozen=True, kw_only=True)
class RiskPlan:
    """What to decide now, and what it costs over the scenarios."""

    now: Now
    costs: Floats  # [scenarios]
    value: float  # mean, or CVaR
    bound: float  # no decision has a lower value
    cvar: float | None
    of_mean_plan: float  # value of deciding by the mean scenario; inf where it was not reached
    known: float  # at least what it would cost if the future were known
    cpu_s: float

    @property
    def gap(self) -> float:
        """Return the share that a better decision could save at most."""
        return (self.value - self.bound) / max(1e-9, abs(self.value))

    @property
    def vss(self) -> float:
        """Return the value of the stochastic solution: what deciding by the mean scenario costs more."""
        return self.of_mean_plan - self.value

    @property
    def evpi(self) -> float:
        """Return the most that knowing the future would be worth."""
        return self.value - self.known


def robust(
    problem: Problem,
    scenarios: Sequence[Scenario],
    *,
    first: int = 2,
    cvar: float | None = None,
    gap: float = 0.02,
    cpu_limit_s: float = 300.0,
    stop: Callable[[], bool] | None = None,
    say: Callable[[str], None] | None = None,
) -> RiskPlan:
    """Return what to decide now so that the mean cost, or the CVaR, over the scenarios is least.

    Args:
        problem: what was asked.
        scenarios: of equal weight.
        first: periods whose orders are decided now; later ones wait and see.
        cvar: None for the mean; 0.95 for the mean of the worst 5 %.
        gap: relative gap at which to end.
        cpu_limit_s: CPU seconds that it may take.
        stop: asked now and then; True ends it with the best so far.
        say: told what was found.
    """
    began_s = time.process_time()
    search = _Search(problem, scenarios, first, cvar, began_s + cpu_limit_s, stop, say)
    search.mean_plan(0.15 * cpu_limit_s)
    search.known()
    search.together(gap)
    while search.gap() > gap and not search.over():
        search.plans()
        if search.gap() <= gap or not search.price(gap):
            break
    assert search.best is not None
    return RiskPlan(
        now=search.best,
        costs=search.costs,
        value=search.value,
        bound=min(search.bound, search.value),
        cvar=cvar,
        of_mean_plan=search.of_mean_plan,
        known=search.free,
        cpu_s=time.process_time() - began_s,
    )


def evaluate(problem: Problem, now: Now, scenarios: Sequence[Scenario], *, cpu_limit_s: float = INF) -> Floats:
    """Return what a decision costs in each scenario, such as those that it was not made for; what time left out is missing."""
    until_s = time.process_time() + cpu_limit_s
    costs, basis = [], None
    for scenario in scenarios:
        scene = _Scene(applied(problem, scenario), now.buy.shape[2], basis)
        cost = scene.kept(now, until_s)
        basis = scene.lp.basis()
        if cost < INF:
            costs.append(cost)
    return np.array(costs)


class _Scene:
    """The programme of one scenario, held for re-solves."""

    def __init__(self, problem: Problem, first: int, basis: object | None) -> None:
        self.problem = problem
        halls: list[Hall] = building.first_halls(problem)
        self.model = building.build(problem, halls)
        self.program = self.model.program
        self.lp = Lp(self.program, relaxed=True)
        self.warm = basis is not None
        if basis is not None:
            self.lp.set_basis(basis)
        at = self.model.columns
        self.parts = {"w": at["w"], "buy": at["buy"][..., :first], "sign": at["sign"][..., :first]}
        self.columns = np.concatenate([part.ravel() for part in self.parts.values()])
        self.there: Bools = self.columns >= 0
        self.cost = self.program.cost.copy()

    def block(self) -> extensive.Block:
        """Return the programme for the one of all scenarios."""
        buy = self.parts["buy"]
        late = np.where(buy < 0, self.problem.cost_buy[..., : buy.shape[2]], 0.0)
        none = [np.zeros(self.parts["w"].size), np.zeros(self.parts["sign"].size)]
        return extensive.Block(
            program=self.program, now=self.columns, lost=np.concatenate([none[0], late.ravel(), none[1]])
        )

    def vector(self, x: Floats) -> Floats:
        """Return what is decided now in a solution."""
        return np.where(self.there, x[self.columns], 0.0)

    def solve(self, until_s: float, stop: Callable[[], bool] | None = None) -> Solution | None:
        """Return the solution with all survival rows that it needs; None where time was over."""
        for _ in range(_ROUNDS):
            found = self.lp.solve(
                method="simplex" if self.warm else "ipm",
                cpu_limit_s=max(0.05, until_s - time.process_time()),
                stop=stop,
            )
            if found.state != "optimal" or found.x is None:
                return None
            self.warm = True
            model, x = self.model, found.x
            short, unserved = np.maximum(0.0, model.value("short_survive", x)), model.value("unserved", x)
            halls, _ = building.missing_halls(self.problem, building.carried(model, x), unserved, short)
            if not halls:
                return found
            least, start, index, value = building.rows_of(model, halls)
            self.lp.add_rows(least, np.full(len(least), INF), start, index, value)
            self.program = self.program.with_rows(least, start, index, value)
        return found

    def free(self, until_s: float, prices: Floats | None = None) -> tuple[float, Floats] | None:
        """Return (a bound, what would be decided now) with extra prices on what is decided now."""
        columns = self.columns[self.there]
        self.lp.set_bounds(columns, self.program.lower[columns], self.program.upper[columns])
        cost = self.cost.copy()
        if prices is not None:
            cost[columns] += prices[self.there]
        self.lp.set_costs(columns, cost[columns])
        found = self.solve(until_s)
        if found is None or found.x is None:
            return None
        bound = -INF
        if found.row_dual is not None:
            bound = safe_bound(replace(self.program, cost=cost), found.row_dual, self.program.lower, self.program.upper)
        return (bound if np.isfinite(bound) else found.cost - 1e-7 * abs(found.cost)), self.vector(found.x)

    def with_phases(self, w: Floats, until_s: float) -> tuple[float, Floats] | None:
        """Return (cost, what would be decided now) with these phases."""
        columns = self.columns[self.there]
        self.lp.set_costs(columns, self.cost[columns])
        self.lp.set_bounds(columns, self.program.lower[columns], self.program.upper[columns])
        at = self.parts["w"].ravel()
        self.lp.set_bounds(at, w.ravel(), w.ravel())
        found = self.solve(until_s)
        return None if found is None or found.x is None else (found.cost, self.vector(found.x))

    def kept(self, now: Now, until_s: float) -> float:
        """Return the least cost with what is decided now; inf where time was over."""
        values = np.concatenate([now.w.ravel(), now.buy.ravel(), now.sign.ravel()])
        columns = self.columns[self.there]
        self.lp.set_costs(columns, self.cost[columns])
        self.lp.set_bounds(columns, values[self.there], values[self.there])
        found = self.solve(until_s)
        lost = np.where(self.parts["buy"] < 0, self.problem.cost_buy[..., : now.buy.shape[2]] * now.buy, 0.0)
        return INF if found is None else found.cost + float(lost.sum())  # what arrives too late is paid all the same


class _Search:
    """The scenarios' programmes, the best decision, the bound."""

    def __init__(
        self,
        problem: Problem,
        scenarios: Sequence[Scenario],
        first: int,
        cvar: float | None,
        until_s: float,
        stop: Callable[[], bool] | None,
        say: Callable[[str], None] | None,
    ) -> None:
        self.problem, self.scenarios, self.cvar = problem, scenarios, cvar
        self.first = min(first, len(problem.periods))
        self.until_s, self.stop, self.say = until_s, stop, say
        self.scenes: list[_Scene] = []
        self.best: Now | None = None
        self.costs = np.full(len(scenarios), INF)
        self.value, self.bound, self.free, self.of_mean_plan = INF, -INF, -INF, INF
        self.mean = np.zeros(0)  # what scenarios would decide now, on average
        self.each = np.zeros((0, 0))
        self.prices: Floats | None = None
        self.tried: set[bytes] = set()
        self.pace = 1.0  # of the prices' moves

    def over(self) -> bool:
        return time.process_time() >= self.until_s or (self.stop is not None and self.stop())

    def gap(self) -> float:
        return (self.value - self.bound) / max(1e-9, abs(self.value))

    def _told(self) -> None:
        if self.say is not None:
            self.say(f"value {self.value:.6g}, bound {self.bound:.6g}, gap {self.gap():.2%}")

    def mean_plan(self, cpu_limit_s: float) -> None:
        """Decide by the mean scenario, as the first candidate."""
        answer: Answer = solve(
            applied(self.problem, mean_of(self.scenarios)), gap=0.01, cpu_limit_s=max(1.0, cpu_limit_s), stop=self.stop
        )
        self.best = Now(w=answer.w, buy=answer.buy[..., : self.first], sign=answer.sign[..., : self.first])

    def known(self) -> None:
        """Solve every scenario as if it were known: a bound; then price the mean scenario's plan."""
        bounds, vectors, basis = [], [], None
        for scenario in self.scenarios:
            scene = _Scene(applied(self.problem, scenario), self.first, basis)
            self.scenes.append(scene)
            found = scene.free(self.until_s)
            bounds.append(-INF if found is None else found[0])
            vectors.append(np.zeros(len(scene.columns)) if found is None else found[1])
            basis = scene.lp.basis()
        self.free = self.bound = measured(np.array(bounds), self.cvar) if np.isfinite(bounds).all() else -INF
        self.each = np.array(vectors)
        self.mean = self.each.mean(axis=0)
        assert self.best is not None
        self.costs = np.array([scene.kept(self.best, self.until_s + 30.0) for scene in self.scenes])
        self.value = self.of_mean_plan = measured(self.costs, self.cvar)
        self._told()

    def together(self, gap: float) -> None:
        """Solve all scenarios in one programme, where that is not too large: its bound, and decisions rounded from it."""
        blocks = [scene.block() for scene in self.scenes]
        if extensive.size(blocks) > extensive.MOST_COLUMNS or self.gap() <= gap:
            return
        few = extensive.size(blocks) < extensive.FEW_COLUMNS
        shape = self.scenes[0].parts["w"].shape
        for _ in range(_TOGETHER):
            relaxed = extensive.relax(blocks, self.cvar, cpu_limit_s=0.7 * self._left_s(), stop=self.stop)
            if relaxed is None:
                return
            self.bound = max(self.bound, relaxed.bound)
            self._told()
            w = relaxed.now[: shape[0] * shape[1]].reshape(shape)
            for threshold in _THRESHOLDS:
                chosen = self._in_order((w >= threshold).astype(np.float64))
                if self.over() or chosen.tobytes() in self.tried:
                    continue
                self.tried.add(chosen.tobytes())
                orders = relaxed.now
                if few:
                    settled = extensive.relax(
                        blocks, self.cvar, cpu_limit_s=self._left_s(), stop=self.stop, w=chosen.ravel()
                    )
                    orders = relaxed.now if settled is None else settled.now
                self._pay(chosen, orders)
                if self.gap() <= gap:
                    return
            blocks = [scene.block() for scene in self.scenes]  # with the survival rows found meanwhile
            if self.over() or not few:
                return

    def _left_s(self) -> float:
        return max(0.1, self.until_s - time.process_time())

    def plans(self) -> None:
        """Round the phases that scenarios would begin on average, and price what comes of it."""
        n_w = self.scenes[0].parts["w"].size
        w = self.mean[:n_w].reshape(self.scenes[0].parts["w"].shape)
        for threshold in _THRESHOLDS:
            if self.over():
                return
            self._try(self._in_order((w >= threshold).astype(np.float64)))

    def _in_order(self, w: Floats) -> Floats:
        """Return phases that keep their order and dates, near `w`."""
        t = np.arange(w.shape[1])[None]
        least = (t >= self.problem.begin_by[:, None]).astype(np.float64)
        most = (t >= self.problem.begin_from[:, None]).astype(np.float64)
        w = np.clip(np.maximum.accumulate(w, axis=1), least, most)
        for _ in range(len(w)):
            for p, before in enumerate(self.problem.phase_after):
                if before >= 0:
                    w[before] = np.maximum(w[before], least[p])
                    w[p] = np.minimum(w[p], w[before])
        return w

    def _try(self, w: Floats) -> None:
        if w.tobytes() in self.tried:
            return
        self.tried.add(w.tobytes())
        vectors, costs = [], []
        for scene in self.scenes:
            found = scene.with_phases(w, self.until_s)
            if found is None:
                return
            costs.append(found[0])
            vectors.append(found[1])
        if measured(np.array(costs), self.cvar) >= self.value:  # even with orders of its own in each scenario
            return
        self._pay(w, np.mean(vectors, axis=0))

    def _pay(self, w: Floats, vector: Floats) -> None:
        """Price a decision in every scenario, and keep it where it is the best."""
        buy, sign = self.scenes[0].parts["buy"], self.scenes[0].parts["sign"]
        orders = np.maximum(0.0, vector[w.size :])
        now = Now(w=w, buy=orders[: buy.size].reshape(buy.shape), sign=orders[buy.size :].reshape(sign.shape))
        whole = self.problem.whole[:, :, None]
        now = replace(now, buy=np.where(whole, np.round(now.buy), now.buy))
        paid = np.array([scene.kept(now, self.until_s + _GRACE_S) for scene in self.scenes])
        value = measured(paid, self.cvar)
        if value < self.value:
            self.best, self.costs, self.value = now, paid, value
            self._told()

    def price(self, gap: float) -> bool:
        """Move the Lagrange prices once and better the bound; return whether that can go on."""
        if self.cvar is not None or self.over():
            return False
        apart = self.each - self.each.mean(axis=0)[None]
        size = float((apart**2).sum(axis=1).mean())
        if size <= 1e-12:
            return False
        step = self.pace * max(self.value - self.bound, gap * abs(self.value)) / size
        base = self.prices if self.prices is not None else np.zeros_like(self.each)
        prices = base + step * apart
        prices -= prices.mean(axis=0)[None]
        bounds, vectors = [], []
        for scene, of_scene in zip(self.scenes, prices, strict=True):
            found = scene.free(self.until_s, of_scene)
            if found is None:
                return False
            bounds.append(found[0])
            vectors.append(found[1])
        self.mean = 0.5 * self.mean + 0.5 * np.mean(vectors, axis=0)
        found_bound = float(np.mean(bounds))
        if found_bound > self.bound:
            self.prices, self.each, self.bound = prices, np.array(vectors), found_bound
        else:
            self.pace *= 0.5
        self._told()
        return self.pace > 1e-3
