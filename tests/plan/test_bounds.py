"""A bound is a promise: no plan that keeps the rows costs less, whatever way was taken; and a plan that is told keeps them."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from baseload.plan import check_answer
from baseload.plan.generate import instance
from baseload.plan.mid import solve_mid
from baseload.plan.problem import Problem
from baseload.plan.solve import solve


@pytest.mark.parametrize("seed", [2, 6, 84, 115, 235])
def test_the_bound_of_a_search_that_ends_early_is_below_the_best_plan(seed: int) -> None:
    """With a gap of 1 % the bound that is told is no higher than the cost of the best plan, found with a gap of nought."""
    problem = instance(3, 2, 2, 4, 6, seed=seed, whole=True)
    soon, best = solve(problem, gap=0.01, cpu_limit_s=20.0), solve(problem, gap=1e-6, cpu_limit_s=20.0)
    assert not check_answer.check(problem, best)
    assert soon.bound <= best.cost * (1.0 + 1e-7)


@pytest.mark.parametrize(("seed", "hosting"), [(6, False), (38, False), (70, True)])
def test_rows_that_periods_imply_cut_off_no_plan(seed: int, hosting: bool) -> None:
    """The middle way's bound is no higher than the best plan where single periods have cheap plans of their own."""
    size = (2, 2, 1, 3, 4) if hosting else (3, 2, 2, 4, 6)
    problem = instance(*size, seed=seed, whole=True, hosting=hosting)
    best = solve(problem, gap=1e-6, cpu_limit_s=20.0)
    found = solve_mid(problem, gap=1e-4, cpu_limit_s=3.0)
    assert not check_answer.check(problem, best)
    assert found.bound <= best.cost * (1.0 + 1e-6)


def test_more_survival_is_solved_warm_without_breaking_a_row() -> None:
    """From plan to plan, each asked to survive or serve more, every answer keeps its rows and costs what a fresh one does."""
    for seed in range(1, 60):
        problem = instance(1, 2, 1, 2, 2, seed=seed)
        answer = solve(problem, gap=0.01, cpu_limit_s=20.0)
        for ratio, demand in ((0.8, 1.0), (1.0, 1.0), (1.0, 1.2)):
            asked = replace(
                problem, survive_ratio=np.full(len(problem.services), ratio), demand=problem.demand * demand
            )
            answer = solve(asked, gap=0.01, cpu_limit_s=20.0, warm=answer)
            assert not check_answer.check(asked, answer), seed
            fresh = solve(asked, gap=0.01, cpu_limit_s=20.0)
            assert answer.bound <= fresh.cost * (1.0 + 1e-7) and fresh.bound <= answer.cost * (1.0 + 1e-7), seed


def test_half_a_rack_of_supply_is_none() -> None:
    """Where racks are whole, a quota of 2.7 is one of 2: cost and bound are the same, and a plan is found."""
    for seed in range(1, 12):
        problem = instance(2, 2, 1, 2, 3, seed=seed, whole=True)
        whole = np.floor(np.where(np.isfinite(problem.supply), problem.supply, 9.0))
        sure = solve(replace(problem, supply=whole), gap=1e-6, cpu_limit_s=20.0)
        part = solve(replace(problem, supply=whole + 0.7), gap=1e-6, cpu_limit_s=20.0)
        assert not check_answer.check(problem, part) or problem.supply.max() < np.inf
        assert part.cost == pytest.approx(sure.cost, rel=1e-5) and part.bound <= sure.cost * (1.0 + 1e-6), seed


def _with_rent_only(problem: Problem) -> Problem:
    """Return the problem with a last site at which nothing is whole and no phase begins, as offers of rent are."""
    last = len(problem.sites) - 1
    kept = np.flatnonzero(problem.phase_site != last)
    place = {int(old): new for new, old in enumerate(kept)}
    whole = problem.whole.copy()
    whole[last] = False
    by_phase = "phase_site phase_mw phase_delay begin_from begin_by cost_begin cost_live spend_begin".split()
    return replace(
        problem,
        whole=whole,
        phases=tuple(problem.phases[p] for p in kept),
        phase_after=np.array([place.get(int(problem.phase_after[p]), -1) for p in kept]),
        **{name: getattr(problem, name)[kept] for name in by_phase},
    )


def test_a_site_with_nothing_whole_is_planned_with() -> None:
    """Rent alone at a site, and all its neighbours with whole racks, is an ordinary question of the middle size."""
    problem = _with_rent_only(instance(4, 2, 2, 5, 5, seed=3, whole=True))
    best = solve(problem, gap=1e-4, cpu_limit_s=20.0)
    found = solve_mid(problem, gap=1e-4, cpu_limit_s=4.0)
    assert not check_answer.check(problem, found)
    assert found.bound <= best.cost * (1.0 + 1e-6) and best.bound <= found.cost * (1.0 + 1e-6)


def test_a_gap_of_nought_ends_with_phases_begun_no_earlier_than_they_may() -> None:
    """Asked for no gap at all, divisible racks and phases that may not begin yet give a plan that keeps their dates."""
    for seed in range(1, 25):
        problem = instance(2, 2, 1, 3, 4, seed=seed)
        late = replace(problem, begin_from=np.minimum(problem.begin_from + 1, problem.begin_by))
        answer = solve(late, gap=0.0, cpu_limit_s=2.0)
        assert not check_answer.check(late, answer), seed
        assert answer.bound <= answer.cost


def test_an_answer_to_another_question_is_no_beginning() -> None:
    """One kind of contract more, or a phase less: an answer without it is left out, and the same is found as without one."""
    for seed in range(1, 6):
        problem = instance(2, 2, 1, 2, 3, seed=seed, whole=True)
        fewer = replace(
            problem, rentals=problem.rentals[:-1], term=problem.term[:-1], useful=problem.useful[:-1],
            on_site=problem.on_site[:-1], sign_max=problem.sign_max[:, :, :-1], cost_sign=problem.cost_sign[:, :, :-1],
        )  # fmt: skip
        before = solve(fewer, gap=1e-4, cpu_limit_s=10.0)
        warm, cold = solve(problem, gap=1e-4, cpu_limit_s=10.0, warm=before), solve(problem, gap=1e-4, cpu_limit_s=10.0)
        assert not check_answer.check(problem, warm)
        assert warm.bound <= cold.cost * (1.0 + 1e-6) and cold.bound <= warm.cost * (1.0 + 1e-6)


def test_nothing_to_decide_is_a_plan() -> None:
    """No phases, no racks and nobody to serve cost nothing, and that is known for certain."""
    none, problem = np.zeros(0, np.int64), instance(2, 2, 1, 2, 3, seed=1)
    empty = replace(
        problem, demand=problem.demand * 0.0, existing=problem.existing * 0.0, minimum_bill=problem.minimum_bill * 0.0,
        phases=(), phase_site=none, phase_mw=np.zeros(0), phase_delay=none, phase_after=none, begin_from=none, begin_by=none,
        cost_begin=np.zeros((0, 3)), cost_live=np.zeros((0, 3)), spend_begin=np.zeros((0, 3)),
    )  # fmt: skip
    answer = solve(empty)
    assert answer.cost == pytest.approx(0.0, abs=1e-9) and not check_answer.check(empty, answer)
