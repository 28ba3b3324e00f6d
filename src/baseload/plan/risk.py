"""A plan against many futures: phases and the first orders are decided now, the rest when it is known how things turn out.

Each scenario is a linear programme of its own that is held and re-solved warm. As if each were known, their least costs are a
bound on any plan. Where all together are not too large they are solved in one programme, which gives a better bound and
decisions; where they are, phases come from what scenarios would begin on average, and orders from a few scenarios that stand
for the others (`orders.py`), and the bound is bettered by scenarios that must decide alike, a few at a time: for the mean all
of them, unlike ones in a group (`alike.py`, where even each by itself takes most of the time: at once), for CVaR those that
cost most. Every decision is priced in every scenario, and phases are moved where the prices say so (`moves.py`). Racks and
hosting are divisible after what is decided now.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np

from baseload.plan import alike, extensive, orders
from baseload.plan import build as building
from baseload.plan.build import Hall
from baseload.plan.held import Held
from baseload.plan.highs import INF, Stop
from baseload.plan.moves import moved, promising, whole_phases
from baseload.plan.problem import Answer, Bools, Floats, Problem
from baseload.plan.scenarios import Scenario, applied, mean_of, measured
from baseload.plan.scene import Kept, Pace, Scene
from baseload.plan.scene import Now as Now
from baseload.plan.settle import whole_racks
from baseload.plan.solve import solve

_THRESHOLDS = (0.5, 0.25, 0.75)
_BEGUN = (0.2, 0.4, 0.05)  # phases begun to this part on average are begun: they are a small part of what a plan costs
_TOGETHER = 8  # times that all scenarios are solved in one programme
_TIMES_KNOWN = 2.5  # what all in one programme take, in times of solving each as if it were known
_TIMES_CHOSEN = 1.3  # what a few in one programme take, likewise
_TIMES_WARM = 2.6  # the same, where each was solved from the end of the mean scenario
_TIMES_MORE = 1.7  # what three take in times of two, and five of three
_TIMES_COLD = 2.2  # what groups and one pricing take at least, in times of solving each from nothing
_MOVES = 2  # times that phases are moved
_TIMES_MOVE = 0.6  # what moving them takes, in times of the first pricing
_PROMISE = 0.01  # of the gap asked for: what a move must promise to save
_AGAIN = 0.4  # what pricing nearly the same takes, in times of the last pricing
_FEW = 4  # scenarios that show whether phases that were moved are worth it
_MOST_CHOSEN = 5  # an interior point takes more than twice the time for twice as many
_GUESSES = 4
_GAIN = 0.05  # of the gap asked for: a guess that betters the last by less is the last
_BRANCH_SHARE = 0.4  # of the time left, for whole decisions of now
_DUST = 1e-6
_GRACE_S = 30.0  # to price a decision that was found in time, and the mean plan


@dataclass(frozen=True, kw_only=True)
class RiskPlan:
    """What to decide now, and what it costs over the scenarios."""

    now: Now
    costs: Floats  # [scenarios]
    value: float  # mean, or CVaR
    bound: float  # no decision has a lower value
    cvar: float | None
    of_mean_plan: float  # value of deciding by the mean scenario; inf where it was not reached
    known: float  # at least what it would cost if the future were known; -inf where that was not asked
    searched_s: float  # CPU seconds until the decision and its bound stood; the rest of `cpu_s` is for `known`
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
    stop: Stop | None = None,
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
    if search.is_long():
        search.alike_alone()
        search.guess(gap, 1)
        search.move(gap)
        if not search.gap() <= gap:
            search.price_mean_plan()
            search.guess(gap, _GUESSES)
        search.told_s = time.process_time()
        search.price_mean_plan()
        search.known_after()
        return search.answer(began_s)
    search.known()
    if search.fits():
        search.price_mean_plan()
        search.together(gap)
    else:
        search.guess(gap, 1)
        search.price_mean_plan()
        search.deciding_alike(gap)
        search.move(gap)
        search.guess(gap, _GUESSES)
    return search.answer(began_s)


def evaluate(
    problem: Problem, now: Now, scenarios: Sequence[Scenario], *, cpu_limit_s: float = INF, stop: Stop | None = None
) -> Floats:
    """Return [scenarios]: what a decision costs in each, such as those that it was not made for; NaN where time was over."""
    until_s = time.process_time() + cpu_limit_s
    costs, halls, pace = np.full(len(scenarios), np.nan), None, Pace()
    for k, scenario in enumerate(scenarios):
        if time.process_time() >= until_s or (stop is not None and stop()):
            break
        scene = Scene(applied(problem, scenario), now.buy.shape[2], halls, pace=pace)
        kept = scene.kept(now, until_s, stop)
        halls = scene.halls
        if kept is not None:
            costs[k] = kept.cost
    return costs


class _Search:
    """The scenarios' programmes, the best decision, the bound."""

    def __init__(
        self,
        problem: Problem,
        scenarios: Sequence[Scenario],
        first: int,
        cvar: float | None,
        until_s: float,
        stop: Stop | None,
        say: Callable[[str], None] | None,
    ) -> None:
        self.problem, self.scenarios, self.cvar = problem, scenarios, cvar
        self.first = min(first, len(problem.periods))
        self.until_s, self.stop, self.say = until_s, stop, say
        self.scenes: list[Scene] = []
        self.best: Now | None = None
        self.costs = np.full(len(scenarios), INF)
        self.value, self.bound, self.free, self.of_mean_plan = INF, -INF, -INF, INF
        self.mean = np.zeros(0)  # what scenarios would decide now, on average
        self.tried: set[bytes] = set()
        self.guesses: dict[bytes, orders.Guess] = {}  # by phases
        self.kept: list[Kept] = []  # the best decision, in each scenario
        self.known_s = INF  # CPU seconds that all scenarios took as if known
        self.chosen_s = INF  # what one takes among a few that are solved together
        self.mean_s = self.priced_s = INF  # what the plan for the mean scenario took, and the last pricing
        self.decided: Now | None = None  # by the mean scenario
        self.held: Held | None = None  # where its relaxation ended
        self.pace = Pace()
        self.told_s = INF  # process time at which the search was over

    def over(self) -> bool:
        return time.process_time() >= self.until_s or (self.stop is not None and self.stop())

    def gap(self) -> float:
        return (self.value - self.bound) / max(1e-9, abs(self.value))

    def _told(self) -> None:
        if self.say is not None:
            self.say(f"value {self.value:.6g}, bound {self.bound:.6g}, gap {self.gap():.2%}")

    def answer(self, began_s: float) -> RiskPlan:
        """Return the best found."""
        assert self.best is not None
        return RiskPlan(
            now=self.best,
            costs=self.costs,
            value=self.value,
            bound=min(self.bound, self.value),
            cvar=self.cvar,
            of_mean_plan=self.of_mean_plan,
            known=self.free,
            searched_s=min(self.told_s, time.process_time()) - began_s,
            cpu_s=time.process_time() - began_s,
        )

    def mean_plan(self, cpu_limit_s: float) -> None:
        """Decide by the mean scenario, as the first candidate."""
        began_s = time.process_time()
        answer: Answer = solve(
            applied(self.problem, mean_of(self.scenarios)), gap=0.01, cpu_limit_s=max(1.0, cpu_limit_s), stop=self.stop
        )
        self.held = answer.held if isinstance(answer.held, Held) else None
        if self.held is not None:
            self.pace.cold_s = self.held.cold_s
        self.decided = Now(w=answer.w, buy=answer.buy[..., : self.first], sign=answer.sign[..., : self.first])
        self.mean_s = time.process_time() - began_s

    def is_long(self) -> bool:
        """Return whether each scenario by itself would take most of the time, and groups of them are a better use of it."""
        if self.cvar is not None or self.held is None or len(self.scenarios) <= alike.GROUP:
            return False
        all_s, cold_s = len(self.scenarios) * self.mean_s, len(self.scenarios) * min(self.mean_s, self.pace.cold_s)
        large = len(self.held.model.program.cost) * len(self.scenarios) > extensive.FEW_COLUMNS
        fits = _TIMES_KNOWN * _TIMES_WARM / _TIMES_CHOSEN * all_s < 0.6 * self._left_s()
        return large and not fits and _TIMES_COLD * cold_s < self._left_s()

    def alike_alone(self) -> None:
        """Solve all scenarios in groups that decide alike: the bound, and about what would be decided now."""
        assert self.held is not None
        found = alike.in_groups(
            self.problem, self.scenarios, self.first, self.held, self.pace, until_s=self.until_s, stop=self.stop
        )
        self.scenes, self.bound, self.chosen_s, self.mean = found.scenes, found.bound, found.chosen_s, found.now
        self.least = found.costs if np.isfinite(found.bound) else np.full(len(found.costs), -INF)  # about

    def known(self) -> None:
        """Solve every scenario as if it were known, while time is left: a bound where that suffices for all."""
        began_s = time.process_time()
        held = self.held
        bounds, vectors, halls = [], [], None if held is None else building.lawful(self.problem, held.halls)
        for scenario in self.scenarios:
            scene = Scene(applied(self.problem, scenario), self.first, halls, held, self.pace)
            self.scenes.append(scene)
            found = None if self.over() else scene.free(self.until_s, stop=self.stop)
            bounds.append(-INF if found is None else found[0])
            vectors.append(np.zeros(len(scene.columns)) if found is None else found[1])
            halls = scene.halls
        self.least = np.array(bounds)
        self.free = self.bound = measured(self.least, self.cvar) if np.isfinite(self.least).all() else -INF
        self.mean = np.array(vectors).mean(axis=0)
        self.known_s = time.process_time() - began_s
        times = _TIMES_CHOSEN if self.held is None else _TIMES_WARM
        self.chosen_s = times * self.known_s / len(self.scenes)

    def known_after(self) -> None:
        """Solve every scenario as if it were known, where time is left for all of them: what knowing would be worth."""
        began_s, bounds, n = time.process_time(), list[float](), len(self.scenes)
        for scene in self.scenes:
            found = None if self.over() else scene.free(self.until_s, stop=self.stop)
            if found is None:
                return
            bounds.append(found[0])
            took_s = time.process_time() - began_s
            if took_s / len(bounds) * (n - len(bounds)) > self._left_s():
                return
        self.free = measured(np.array(bounds), self.cvar)
        self.bound = max(self.bound, self.free)

    def price_mean_plan(self) -> None:
        """Price what deciding by the mean scenario costs, and keep it where it is the best."""
        assert self.decided is not None
        grace_s = _GRACE_S if np.isfinite(self.told_s) else 0.0  # the decision stands
        if np.isfinite(self.of_mean_plan) or (self.kept and _AGAIN * self.priced_s > self._left_s() + grace_s):
            return
        costs = self._keep(self.decided, must=self.best is None)
        if costs is not None:
            self.of_mean_plan = measured(costs, self.cvar)

    def fits(self) -> bool:
        """Return whether all scenarios in one programme are likely to be solved in time."""
        columns = sum(len(scene.program.cost) for scene in self.scenes)
        if columns > extensive.MOST_COLUMNS or not np.isfinite(self.least).all():
            return False
        times = _TIMES_KNOWN * (1.0 if self.held is None else _TIMES_WARM / _TIMES_CHOSEN)
        return columns < extensive.FEW_COLUMNS or times * self.known_s < 0.6 * self._left_s()

    def guess(self, gap: float, most: int) -> None:
        """Take phases that scenarios would begin on average, and orders by a few scenarios that stand for the others.

        At most so many guesses; those for the same phases go on where they ended.
        """
        assert self.decided is not None
        if not np.isfinite(self.least).all():
            return
        rounded = [whole_phases(self.problem, self._mean_phases() >= threshold) for threshold in _BEGUN]
        for w in rounded if self.best is None else [self.best.w, *rounded]:
            n = min(int(0.3 * self._left_s() / self.chosen_s), _MOST_CHOSEN, len(self.scenes))
            if w.tobytes() not in self.guesses and n > 0:
                self.guesses[w.tobytes()] = orders.begun(self.scenes, w, self.least, self.cvar, n, self.mean)
            state = self.guesses.get(w.tobytes())
            while state is not None and w.tobytes() not in self.tried:
                if most == 0 or self.gap() <= gap or self.over():
                    return
                most -= 1
                vector = orders.guess(state, cpu_limit_s=0.7 * self._left_s(), stop=self.stop)
                if vector is None:
                    self.tried.add(w.tobytes())
                    break
                now = replace(self._whole(self.decided.of(vector)), w=w)
                before, kept = self.value, self._priced(now)
                if kept is None and self.over():
                    return
                if kept is not None:  # else it breaks a row that has no slack
                    orders.learn(state, orders.Priced(now=now.vector(), kept=kept))
                least_gain = _GAIN * gap * abs(self.value)
                if kept is None or before - self.value < least_gain:  # more of the same would not close it
                    self.tried.add(w.tobytes())

    def move(self, gap: float) -> None:
        """Begin phases earlier, later or never, site by site, where prices call it a saving and a few scenarios agree."""
        for _ in range(_MOVES):
            ends = not self.kept or self.gap() <= gap or _TIMES_MOVE * self.priced_s > self._left_s()
            if ends or self.best is None or not self.guesses:
                return
            now, last = self.best, next(reversed(self.guesses.values()))
            few, near = last.chosen, last.nearest
            until_s = self.until_s - _AGAIN * self.priced_s
            worth = np.mean([one.slope[: now.w.size] for one in self.kept], axis=0).reshape(now.w.shape)
            share = np.bincount(near, minlength=len(few)) / len(near)
            moves = promising(self.problem, now.w, self._mean_phases(), worth, _PROMISE * gap * abs(self.value))

            def price(w: Floats, now: Now = now, few: list[int] = few, until_s: float = until_s) -> Floats | None:
                found = [self.scenes[k].kept(replace(now, w=w), until_s, self.stop) for k in few]
                costs = [one.cost for one in found if one is not None]
                return np.array(costs) if len(costs) == len(few) else None

            w = moved(self.problem, now.w, moves, self.costs[few], share, price)
            if (w == now.w).all() or self._priced(replace(now, w=w), than=self.costs) is None or self.best is now:
                return

    def deciding_alike(self, gap: float) -> None:
        """Better the bound by scenarios that must decide alike, a few at a time; the mean of what they decide is kept."""
        if not np.isfinite(self.least).all():
            return
        least, vectors = self.least.copy(), []
        took_s = alike.GROUP * self.known_s / len(self.scenes) * (_TIMES_CHOSEN if self.held is None else _TIMES_WARM)
        for group in self._groups():
            if self.cvar is None and took_s > self._left_s():
                group, took_s = group[:2], took_s / _TIMES_MORE
            if self.gap() <= gap or self.over() or took_s > self._left_s():
                break
            began_s, rest = time.process_time(), np.delete(self.least, group)
            blocks = [self.scenes[k].block(for_bound=True) for k in group]
            found = extensive.relax(blocks, self.cvar, cpu_limit_s=self._left_s(), stop=self.stop, others=rest)
            if found is None:
                break
            took_s = (time.process_time() - began_s) * (1.0 if self.cvar is None else _TIMES_MORE)
            vectors += [found.now] * len(group)
            if self.cvar is None:
                least[group] = np.maximum(least[group].mean(), found.bound)  # of the group's mean
            self.bound = max(self.bound, found.bound if self.cvar is not None else float(least.mean()))
            self._told()
        if vectors:
            self.mean = np.mean(vectors, axis=0)

    def _groups(self) -> list[list[int]]:
        """Return which scenarios are to decide alike: unlike ones for the mean, more and more of the dearest for CVaR."""
        n = len(self.scenes)
        if self.cvar is None:
            order, number = np.argsort(self.least), -(-n // alike.GROUP)
            return [order[i::number].tolist() for i in range(number)]
        order = np.argsort(-np.where(np.isfinite(self.costs), self.costs, self.least))
        first = min(n, max(alike.GROUP, int(np.ceil((1.0 - self.cvar) * n))))
        return [order[:size].tolist() for size in range(first, min(n, 3 * first) + 1, 2)]

    def together(self, gap: float) -> None:
        """Solve all scenarios in one programme: its bound, and decisions rounded from it; anew with survival rows found."""
        if self.gap() <= gap:
            return
        shape = self.scenes[0].parts["w"].shape
        n_w = shape[0] * shape[1]
        for _ in range(_TOGETHER):
            began_s, known = time.process_time(), self._shared()
            blocks = [scene.block() for scene in self.scenes]
            relaxed = extensive.relax(blocks, self.cvar, cpu_limit_s=0.7 * self._left_s(), stop=self.stop)
            if relaxed is None:
                return
            took_s = time.process_time() - began_s
            self.bound = max(self.bound, relaxed.bound)
            self._told()
            for threshold in _THRESHOLDS:
                fixed = self._rounded(relaxed.now, threshold)
                name = fixed.tobytes() + bytes(str(known), "ascii")
                if self.over() or self.gap() <= gap or name in self.tried:
                    continue
                self.tried.add(name)
                vector = relaxed.now
                far = np.nanmax(np.abs(fixed - vector), initial=0.0) > _DUST
                if far and took_s < 0.3 * self._left_s():
                    left_s = self._left_s()
                    again = extensive.relax(blocks, self.cvar, cpu_limit_s=left_s, stop=self.stop, fixed=fixed)
                    vector = vector if again is None else again.now
                self._pay(fixed[:n_w].reshape(shape), vector)
            if self.gap() > gap and extensive.size(blocks) < extensive.FEW_COLUMNS and not self.over():
                self._branch(blocks, gap)
            if self.gap() <= gap or self._shared() == known or 1.2 * took_s > self._left_s():
                return

    def _branch(self, blocks: Sequence[extensive.Block], gap: float) -> None:
        """Search the whole decisions of now by branch and bound."""
        left_s = _BRANCH_SHARE * self._left_s()
        found = extensive.decide(
            blocks, self.cvar, self._are_whole(), gap=0.3 * gap, cpu_limit_s=left_s, stop=self.stop
        )
        if found is None:
            return
        self.bound = max(self.bound, found.bound)
        shape = self.scenes[0].parts["w"].shape
        self._pay(np.round(found.now[: shape[0] * shape[1]]).reshape(shape), found.now)
        self._told()

    def _are_whole(self) -> Bools:
        """Return which entries of a decision are whole."""
        parts = self.scenes[0].parts
        buy = np.broadcast_to(self.problem.whole[:, :, None], parts["buy"].shape).ravel()
        return np.concatenate([np.ones(parts["w"].size, bool), buy, np.zeros(parts["sign"].size, bool)])

    def _rounded(self, now: Floats, threshold: float) -> Floats:
        """Return whole phases and racks near a decision, NaN for what may be divided."""
        parts = self.scenes[0].parts
        n_w, n_buy = parts["w"].size, parts["buy"].size
        fixed = np.full(now.shape, np.nan)
        begun = (now[:n_w] >= threshold).astype(np.float64).reshape(parts["w"].shape)
        fixed[:n_w] = whole_phases(self.problem, begun).ravel()
        whole = self._are_whole()[n_w : n_w + n_buy]
        racks = whole_racks(self.problem, now[n_w : n_w + n_buy].reshape(parts["buy"].shape), threshold).ravel()
        fixed[n_w : n_w + n_buy] = np.where(whole, racks, np.nan)
        return fixed

    def _shared(self) -> int:
        """Give each scenario the survival rows that any needed; return how many there are."""
        known: dict[tuple[int, int, int, bytes], Hall] = {}
        for scene in self.scenes:
            for hall in scene.halls:
                known.setdefault((hall.lost, hall.m, hall.t, hall.sites.tobytes() + hall.clients.tobytes()), hall)
        for scene in self.scenes:
            own = {(one.lost, one.m, one.t, one.sites.tobytes() + one.clients.tobytes()) for one in scene.halls}
            scene.add([hall for name, hall in known.items() if name not in own])
        return len(known)

    def _left_s(self) -> float:
        return max(0.1, self.until_s - time.process_time())

    def _mean_phases(self) -> Floats:
        shape = self.scenes[0].parts["w"].shape
        return self.mean[: shape[0] * shape[1]].reshape(shape)

    def _pay(self, w: Floats, vector: Floats) -> None:
        """Price a decision in every scenario, and keep it where it is the best."""
        assert self.decided is not None
        self._priced(replace(self._whole(self.decided.of(vector)), w=w))

    def _whole(self, now: Now) -> Now:
        """Return a decision with whole racks where they must be."""
        return replace(now, buy=whole_racks(self.problem, now.buy))

    def _keep(self, now: Now, *, must: bool = False) -> Floats | None:
        """Return what a decision costs in each scenario; where it `must` be, some may be inf for want of time."""
        kept = self._priced(now)
        if kept is not None:
            return np.array([one.cost for one in kept])
        if must:
            self.best = now
        return None

    def _priced(self, now: Now, than: Floats | None = None) -> list[Kept] | None:
        """Price a decision in every scenario, keep it where it is the best; None where time did not suffice.

        None also where it costs more in the first few than another one did, costs `than`.
        """
        kept, began_s = [], time.process_time()
        for k, scene in enumerate(self.scenes):
            if k and not scene.solved:  # the same decision in another future
                scene.begin_from(self.scenes[k - 1])
            one = scene.kept(now, self.until_s + _GRACE_S, self.stop)
            if one is None:
                return None
            kept.append(one)
            if than is not None and k + 1 >= _FEW and sum(each.cost for each in kept) >= than[: k + 1].sum():
                return None
        self.priced_s = time.process_time() - began_s
        costs = np.array([one.cost for one in kept])
        value = measured(costs, self.cvar)
        if value < self.value:
            self.best, self.costs, self.value, self.kept = now, costs, value, kept
            self._told()
        return kept
