"""Deciding now against many futures: against every choice of phases, and what the measures of risk must keep."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from baseload.plan import alike, extensive, risk
from baseload.plan.check_answer import check
from baseload.plan.generate import instance
from baseload.plan.highs import INF
from baseload.plan.keep import keeping
from baseload.plan.risk import evaluate, robust
from baseload.plan.scenarios import applied, draw, measured
from baseload.plan.scene import Kept, Now, Pace, Scene
from baseload.plan.settle import whole_racks
from tests.plan.brute import best_cost
from tests.plan.tiny import tiny

_OF_PHASES = (
    "phases", "phase_site", "phase_mw", "phase_delay", "phase_after",
    "begin_from", "begin_by", "cost_begin", "cost_live", "spend_begin",
)  # fmt: skip


@pytest.mark.slow
def test_the_decision_is_the_best_of_all_choices_of_phases() -> None:
    """With phases alone decided now, brute force over them finds nothing cheaper; the bound never exceeds it."""
    gaps = []
    for seed in range(12):
        problem = replace(tiny(seed, 2, 2, 1, 2, 3, 1, 1, host=False, whole=0), begin_by=np.array([3]))
        futures = draw(problem, 3, seed=seed, phase_sigma=0.8)
        found = robust(problem, futures, first=0, gap=1e-6, cpu_limit_s=20.0)
        choices = []
        for begin in range(int(problem.begin_from[0]), 4):
            begun = replace(problem, begin_from=np.array([begin]), begin_by=np.array([begin]))
            choices.append(np.mean([best_cost(applied(begun, future)) for future in futures]))
        best = min(choices)
        size = max(1.0, abs(best))
        assert found.bound <= best + 1e-5 * size
        assert found.value >= best - 1e-5 * size
        assert found.value <= found.of_mean_plan + 1e-9 and found.evpi >= -1e-6 * size
        gaps.append((found.value - best) / size)
    assert np.median(gaps) < 1e-5 and max(gaps) < 0.02


@pytest.mark.slow
def test_a_robust_plan_beats_the_mean_plan_in_futures_it_has_not_seen() -> None:
    """Out of sample the costs stay near those in sample; the value of the stochastic solution is not negative."""
    problem = instance(4, 3, 3, 8, 8, seed=1)
    found = robust(problem, draw(problem, 8, seed=1), gap=0.02, cpu_limit_s=30.0)
    unseen = evaluate(problem, found.now, draw(problem, 12, seed=2))
    assert found.vss >= 0.0 and found.bound <= found.value
    assert found.value == pytest.approx(measured(found.costs, None))
    assert measured(unseen, None) == pytest.approx(found.value, rel=0.25)
    seen = evaluate(problem, found.now, draw(problem, 8, seed=1))
    assert seen == pytest.approx(found.costs, rel=1e-5)


@given(st.lists(st.floats(-1e6, 1e6), min_size=1, max_size=30), st.floats(0.0, 0.99))
def test_cvar_lies_between_the_mean_and_the_worst(costs: list[float], share: float) -> None:
    """The mean of a worst part is no less than the mean and no more than the worst; of all of them it is the mean."""
    values = np.array(costs)
    slack = 1e-6 * max(1.0, float(np.abs(values).max()))
    assert values.mean() - slack <= measured(values, share) <= values.max() + slack
    assert measured(values, 0.0) == pytest.approx(values.mean(), abs=slack)


def test_scenarios_are_the_same_for_the_same_seed() -> None:
    """A seed fixes the futures; given delays are taken as they are."""
    problem = instance(3, 2, 2, 4, 4, seed=0)
    one, other = draw(problem, 3, seed=5), draw(problem, 3, seed=5)
    assert all(np.array_equal(a.demand, b.demand) for a, b in zip(one, other, strict=True))
    given_delays = np.full((1, len(problem.phases)), 7)
    late = draw(problem, 2, seed=5, phase_delays=given_delays)
    assert (applied(problem, late[1]).phase_delay == 7).all()


@pytest.mark.slow
def test_few_scenarios_stand_for_many_where_one_programme_would_be_too_large(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without all scenarios in one programme the bound still holds, and the decision is near that which they would give."""
    problem = instance(3, 2, 2, 4, 6, seed=3)
    futures = draw(problem, 8, seed=4)
    for share in (None, 0.75):
        whole = robust(problem, futures, cvar=share, gap=0.005, cpu_limit_s=20.0)
        with monkeypatch.context() as less:
            less.setattr(extensive, "MOST_COLUMNS", 0)
            parts = robust(problem, futures, cvar=share, gap=0.005, cpu_limit_s=20.0)
        assert parts.bound <= whole.value * (1.0 + 1e-6) and whole.bound <= parts.value * (1.0 + 1e-6)
        assert parts.value <= whole.value * 1.05
        assert parts.value == pytest.approx(measured(evaluate(problem, parts.now, futures), share), rel=1e-5)


def test_scenarios_that_decide_alike_bound_all_of_them_from_below() -> None:
    """A few together are no dearer than all, and no cheaper than each as if it were known: for the mean and for CVaR."""
    problem = instance(3, 2, 2, 4, 6, seed=3)
    scenes = [Scene(applied(problem, future), 2) for future in draw(problem, 5, seed=4)]
    known = [scene.free(float("inf")) for scene in scenes]
    least = np.array([INF if one is None else one[0] for one in known])
    dearest = np.argsort(-least)
    for share in (None, 0.6, 0.8):
        whole = extensive.relax([scene.block() for scene in scenes], share, cpu_limit_s=60.0)
        assert whole is not None
        size = 1e-5 * abs(whole.bound)
        for number in (1, 2, 4):
            group, rest = dearest[:number], least[dearest[number:]]
            found = extensive.relax([scenes[k].block() for k in group], share, cpu_limit_s=60.0, others=rest)
            assert found is not None
            alike = found.bound if share else (number * found.bound + rest.sum()) / len(least)
            assert measured(least, share) - size <= alike <= whole.bound + size


def test_groups_alone_bound_the_mean_and_lead_to_a_decision(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where each scenario by itself would take too long: what groups say is no more than any decision costs, and near it."""
    problem = instance(3, 2, 2, 3, 4, seed=3)
    futures = draw(problem, 4, seed=4)
    monkeypatch.setattr(risk._Search, "is_long", lambda _: True)
    found = robust(problem, futures, gap=0.005, cpu_limit_s=20.0)
    least = [Scene(applied(problem, future), 2).free(float("inf")) for future in futures]
    assert np.mean([one[0] for one in least if one]) <= found.bound * (1.0 + 1e-6) <= found.value * (1.0 + 1e-6)
    assert found.value == pytest.approx(evaluate(problem, found.now, futures).mean(), rel=1e-5)
    assert found.value <= 1.05 * found.bound


def test_a_scenario_costs_the_same_wherever_its_solve_begins() -> None:
    """From nothing, from another one's end, from nothing once that took too long: one least cost, one cost of a decision."""
    problem = instance(3, 2, 2, 4, 6, seed=3)
    one, other = (applied(problem, future) for future in draw(problem, 2, seed=4))
    costs = []
    for cold_s, near_s in ((INF, 0.0), (1e-9, 0.0), (1e-9, 1.0)):  # no limit; one of nought; never from another's end
        pace = Pace()
        before, scene = Scene(one, 2, pace=pace), Scene(other, 2, pace=pace)
        assert before.free(INF) is not None and pace.cold_s < INF
        pace.cold_s, pace.near_s = cold_s, near_s
        with pytest.MonkeyPatch.context() as hurried:
            hurried.setattr("baseload.plan.scene._SOON_S", 0.0)
            scene.begin_from(before)
            free = scene.free(INF)
            assert free is not None
            begun = np.ones(scene.parts["w"].shape)
            none = [np.zeros(scene.parts[name].shape) for name in ("buy", "sign")]
            kept = scene.kept(Now(w=begun, buy=none[0], sign=none[1]), INF)
        assert kept is not None and kept.cost >= free[0] - 1e-6 * abs(free[0])
        assert (pace.near_s > 0.0) and (pace.cold_s > 1e-9)
        costs.append((free[0], kept.cost))
    assert np.ptp(costs, axis=0) == pytest.approx(0.0, abs=1e-6 * abs(costs[0][0]))


def test_less_dear_slacks_bound_a_group_from_below(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where power lacks, a group solved with slacks at a tenth of their price says no more than all scenarios cost together."""
    problem = instance(3, 2, 2, 3, 4, seed=3)
    problem = replace(problem, existing=problem.existing + 3.0, power_mw=0.2 * problem.power_mw)
    futures = draw(problem, 4, seed=4)
    monkeypatch.setattr(risk._Search, "is_long", lambda _: True)
    bounds = []
    for dear in (INF, 0.0):  # never solved again at the full price; always where a slack is used
        monkeypatch.setattr(alike, "_DEAR", dear)
        found = robust(problem, futures, gap=0.005, cpu_limit_s=20.0)
        assert found.bound <= found.value * (1.0 + 1e-6)
        bounds.append(found.bound)
    assert bounds[0] <= bounds[1] * (1.0 + 1e-6)


def test_the_plan_that_goes_on_keeps_what_is_decided_now() -> None:
    """Its phases, first orders and rent are those decided, every row holds, and no plan with them costs less than its bound."""
    problem = tiny(5, 2, 2, 1, 2, 4, 1, 1, host=False, whole=1)
    found = robust(problem, draw(problem, 3, seed=1), first=2, gap=0.01, cpu_limit_s=10.0)
    plan = keeping(problem, found.now, bound=-np.inf, cpu_limit_s=10.0)
    assert plan is not None and plan.bound <= plan.cost
    assert plan.w == pytest.approx(found.now.w) and plan.buy[..., :2] == pytest.approx(found.now.buy, abs=1e-6)
    assert plan.sign[..., :2] == pytest.approx(found.now.sign, abs=1e-6)
    assert check(problem, plan) == []


def test_a_stopped_simplex_method_is_no_plan() -> None:
    """Where nothing is whole and there was no time, no plan is said to keep the decision; with time one does, by every row."""
    problem = instance(4, 3, 3, 8, 8, seed=1)
    n_sites, n_kinds, *_, n_periods = problem.shape
    lacking = {name: getattr(problem, name)[:0] for name in _OF_PHASES}
    problem = replace(problem, **lacking)
    none = np.zeros((n_sites, n_kinds, 2)), np.zeros((n_sites, n_kinds, len(problem.rentals), 2))
    now = Now(w=np.zeros((0, n_periods)), buy=none[0], sign=none[1])
    plan = keeping(problem, now, bound=-INF, cpu_limit_s=60.0)
    assert plan is not None and plan.status == "within_gap" and check(problem, plan) == []
    assert keeping(problem, now, bound=0.99 * plan.cost, cpu_limit_s=60.0, stop=lambda: True) is None


def test_rounds_of_survival_rows_that_run_out_leave_a_bound(monkeypatch: pytest.MonkeyPatch) -> None:
    """However few rounds there are, what a scenario costs as if known is bounded from below, by no more than with all rows."""
    problem = instance(3, 2, 2, 4, 6, seed=3)
    one = applied(problem, draw(problem, 1, seed=4)[0])
    bounds = []
    for rounds in (1, 2, 12):
        monkeypatch.setattr("baseload.plan.scene._ROUNDS", rounds)
        found = Scene(one, 2, halls=[]).free(INF)
        assert found is not None
        bounds.append(found[0])
    assert bounds[0] < bounds[1] <= bounds[2] * (1.0 + 1e-6)


def test_what_time_left_out_is_told_apart_from_what_was_priced(monkeypatch: pytest.MonkeyPatch) -> None:
    """Scenarios are priced in order until the limit or a stop; those after that have no cost, and keep their places."""
    problem = instance(3, 2, 2, 4, 6, seed=3)
    futures, priced, kept = draw(problem, 5, seed=4), [], Scene.kept
    none = np.zeros((3, 2, 2)), np.zeros((3, 2, len(problem.rentals), 2))
    now = Now(w=np.ones((len(problem.phases), 6)), buy=none[0], sign=none[1])

    def counted(scene: Scene, *asked: Any) -> Kept | None:
        found = kept(scene, *asked)
        priced.append(found)
        return found

    whole = evaluate(problem, now, futures)
    assert np.isfinite(whole).all()
    monkeypatch.setattr(Scene, "kept", counted)
    part = evaluate(problem, now, futures, stop=lambda: len(priced) >= 2)
    assert part[:2] == pytest.approx(whole[:2], rel=1e-6) and np.isnan(part[2:]).all() and len(priced) == 2
    assert np.isnan(evaluate(problem, now, futures, cpu_limit_s=0.0)).all() and len(priced) == 2


def test_without_time_the_mean_plan_is_priced_and_nothing_is_proven(monkeypatch: pytest.MonkeyPatch) -> None:
    """Once the limit is over no scenario is solved as if known; the first decision still has its cost in every one of them."""
    problem = instance(3, 2, 2, 4, 6, seed=3)
    futures = draw(problem, 5, seed=4)
    monkeypatch.setattr(Scene, "free", lambda *_, **__: pytest.fail("solved as if known"))
    found = robust(problem, futures, cpu_limit_s=1e-9)
    assert found.bound == found.known == -INF and found.value == found.of_mean_plan
    assert found.costs == pytest.approx(evaluate(problem, found.now, futures), rel=1e-5)


@given(st.integers(0, 2**32 - 1))
def test_racks_are_rounded_within_what_may_be_bought(seed: int) -> None:
    """Whole racks of all sites stay within supply and what kinds share, and are less than one from what was found."""
    rng = np.random.default_rng(seed)
    problem, n = instance(4, 3, 2, 3, 4, seed=seed % 5, whole=True), 2
    buy = rng.choice([0.3, 0.5, 0.7, 1.0, 2.6], size=(4, 3, n)) * rng.integers(0, 2, size=(4, 3, n))
    used = np.einsum("la,sat->lt", problem.shared_use, buy)
    spare = rng.choice([0.0, 0.8, np.inf])
    supply, shared = np.full((3, 4), np.inf), np.full((len(used), 4), np.inf)
    supply[:, :n], shared[:, :n] = buy.sum(axis=0) + spare, used + spare
    problem = replace(problem, supply=supply, shared=shared)
    racks = whole_racks(problem, buy)
    assert (racks == np.round(racks)).all() and (np.abs(racks - buy) < 1.0).all()
    assert (racks.sum(axis=0) <= supply[:, :n] + 1e-6).all()
    assert (np.einsum("la,sat->lt", problem.shared_use, racks) <= shared[:, :n] + 1e-6).all()
    if spare == np.inf:
        assert (racks == np.floor(buy + 0.5)).all()


def test_a_guess_that_cannot_be_kept_is_not_the_last(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where supply is short, guesses are kept in every scenario; one that no scenario can keep leaves the others their turn."""
    problem = instance(6, 2, 2, 6, 5, seed=1, whole=True)
    problem = replace(problem, supply=np.full_like(problem.supply, 1.0), demand=2.0 * problem.demand)
    futures, tried, priced = draw(problem, 4, seed=1), list[bool](), risk._Search._priced

    def noted(search: risk._Search, now: Now, than: np.ndarray | None = None) -> list[Kept] | None:
        found = priced(search, now, than)
        tried.append(found is not None)
        return found

    monkeypatch.setattr(extensive, "MOST_COLUMNS", 0)
    monkeypatch.setattr(risk._Search, "_priced", noted)
    robust(problem, futures, gap=1e-4, cpu_limit_s=20.0)
    assert all(tried)
    tried.clear()
    monkeypatch.setattr(risk, "whole_racks", lambda problem, buy, *_: np.ceil(buy + 0.5))
    robust(problem, futures, gap=1e-4, cpu_limit_s=20.0)
    assert tried.count(False) > 2
