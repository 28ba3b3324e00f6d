"""Phases of many futures moved, and few scenarios that stand for many: what prices promise, and what stand-ins must share."""

from __future__ import annotations

from dataclasses import replace
from itertools import product

import numpy as np
import pytest

from baseload.plan import extensive, orders
from baseload.plan.generate import instance
from baseload.plan.highs import INF
from baseload.plan.moves import moved, promising, whole_phases
from baseload.plan.problem import Floats, Problem
from baseload.plan.scenarios import Scenario, applied, draw, measured
from baseload.plan.scene import Now, Scene


def priced(scenes: list[Scene], now: Now) -> tuple[Floats, Floats]:
    """Return what a decision costs in each scenario, and the slopes of that."""
    kept = [one for scene in scenes if (one := scene.kept(now, INF)) is not None]
    assert len(kept) == len(scenes)
    return np.array([one.cost for one in kept]), np.array([one.slope for one in kept])


def some(seed: int, futures: int = 3) -> tuple[Problem, list[Scene]]:
    """Return a problem without survival rows, and its scenarios' programmes."""
    problem = instance(4, 3, 2, 4, 6, seed=seed, survive=False)
    return problem, [Scene(applied(problem, future), 2) for future in draw(problem, futures, seed=seed)]


@pytest.mark.parametrize("seed", range(4))
def test_a_move_of_phases_saves_no_more_than_its_prices_promise(seed: int) -> None:
    """Every rounding at a site costs at least what prices say; what is promising is tried, and kept where it saves."""
    problem, scenes = some(seed)
    rng = np.random.default_rng(seed)
    part = np.maximum.accumulate(rng.random(scenes[0].parts["w"].shape), axis=1)
    w = whole_phases(problem, part >= 0.5)
    none = [np.zeros(scenes[0].parts[name].shape) for name in ("buy", "sign")]
    costs, slopes = priced(scenes, Now(w=w, buy=none[0], sign=none[1]))
    worth = slopes[:, : w.size].mean(axis=0).reshape(w.shape)
    tried: list[float] = []

    def price(other: Floats) -> Floats:
        found = priced(scenes, Now(w=other, buy=none[0], sign=none[1]))[0]
        promised = float((worth * (other - w)).sum())
        if not tried:  # later ones go from what was kept
            assert found.mean() - costs.mean() >= promised - 1e-6 * abs(costs.mean())
        tried.append(found.mean())
        return found

    even = np.full(len(scenes), 1.0 / len(scenes))
    sites = list(promising(problem, w, part, worth, 1e-9))
    assert all((whole_phases(problem, other) == other).all() for site in sites for _, other in site)
    every = [
        move for site in promising(problem, w, part, worth, -np.inf) for move in site
    ]  # those that promise nothing too
    assert len(every) > sum(len(site) for site in sites)
    for _, other in every:
        tried.clear()
        price(other)
    tried.clear()
    better = moved(problem, w, iter(sites), costs, even, price)
    cost = priced(scenes, Now(w=better, buy=none[0], sign=none[1]))[0].mean()
    assert cost == pytest.approx(min([costs.mean(), *tried]), rel=1e-6)


def test_moves_end_where_time_is_over() -> None:
    """A price that could not be found leaves the phases as they were."""
    problem, scenes = some(1)
    w = np.zeros(scenes[0].parts["w"].shape)
    site = [(np.ones(len(w), bool), np.ones(w.shape))]
    assert (moved(problem, w, iter([site]), np.zeros(3), np.ones(3), lambda other: None) == w).all()


def test_few_scenarios_are_as_often_late_with_what_is_ordered_as_all() -> None:
    """Four of twenty stand for all four ways in which two ordered kinds may be late, by how often each happens."""
    problem = instance(4, 3, 2, 4, 6, seed=0, survive=False)
    late = [which for which, times in zip(product((0, 1), repeat=2), (9, 5, 4, 2), strict=True) for _ in range(times)]
    rng = np.random.default_rng(0)
    futures = [
        Scenario(
            name=str(which),
            late_phase=np.zeros(len(problem.phases), dtype=np.int64),
            late_racks=np.array([*which, rng.integers(2)]),  # the third kind is not ordered
            demand=np.ones(problem.demand.shape[1:]),
        )
        for which in late
    ]
    scenes = [Scene(applied(problem, future), 2) for future in futures]
    mean = np.zeros(len(scenes[0].columns))
    n_w = scenes[0].parts["w"].size
    buy = np.zeros(scenes[0].parts["buy"].shape)
    buy[:, :2] = 1.0
    mean[n_w : n_w + buy.size] = buy.ravel()
    begun = orders.begun(scenes, np.zeros(scenes[0].parts["w"].shape), np.ones(20), None, 4, mean)
    stand = [late[begun.chosen[j]] for j in begun.nearest]
    assert stand == late


@pytest.mark.parametrize("cvar", [None, 0.6])
def test_a_guess_of_all_scenarios_is_the_best_decision(cvar: float | None) -> None:
    """Where all scenarios stand for themselves the first orders cost what one programme of all says, priced before or not."""
    problem, scenes = some(2, futures=4)
    w = whole_phases(problem, np.ones(scenes[0].parts["w"].shape))
    least = np.array([found[0] for scene in scenes if (found := scene.free(INF)) is not None])
    fixed = np.full(len(scenes[0].columns), np.nan)
    fixed[: w.size] = w.ravel()
    best = extensive.relax([scene.block() for scene in scenes], cvar, cpu_limit_s=INF, fixed=fixed)
    assert best is not None
    state = orders.begun(scenes, w, least, cvar, 4, best.now)
    for _ in range(2):
        vector = orders.guess(state, cpu_limit_s=INF)
        assert vector is not None
        now = Now(w=w, buy=np.zeros(scenes[0].parts["buy"].shape), sign=np.zeros(scenes[0].parts["sign"].shape))
        now = replace(now.of(vector), w=w)
        costs, _ = priced(scenes, now)
        assert measured(costs, cvar) == pytest.approx(best.bound, rel=2e-5)
        kept = [one for scene in scenes if (one := scene.kept(now, INF)) is not None]
        orders.learn(state, orders.Priced(now=now.vector(), kept=kept))
