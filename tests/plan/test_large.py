"""The ways for large and middle-sized problems, on problems small enough to be solved to the end by another way."""

from __future__ import annotations

import numpy as np
import pytest

from baseload.plan.check_answer import check
from baseload.plan.generate import instance
from baseload.plan.large import solve_large
from baseload.plan.mid import solve_mid
from baseload.plan.small import solve_small


@pytest.mark.parametrize("seed", [0, 1])
def test_large_plans_are_whole_and_their_bound_holds(seed: int) -> None:
    """Every row is kept, the bound is below what branch and bound finds, and the plan is not below that bound."""
    problem = instance(4, 3, 3, 8, 5, seed=seed)
    exact = solve_small(problem, gap=1e-4, cpu_limit_s=20.0)
    found = solve_large(problem, gap=0.005, cpu_limit_s=10.0)
    assert check(problem, found) == []
    assert found.bound <= exact.cost * (1.0 + 1e-6)
    assert found.cost >= exact.bound * (1.0 - 1e-6)


def test_given_phases_are_kept() -> None:
    """With every phase fixed the answer has those phases: what a study of risk solves for each scenario."""
    problem = instance(4, 3, 3, 8, 5, seed=2)
    chosen = np.zeros((len(problem.phases), len(problem.periods)))
    fixed = {(p, t): 0 for p in range(chosen.shape[0]) for t in range(chosen.shape[1])}
    found = solve_large(problem, gap=0.005, cpu_limit_s=5.0, fix=fixed)
    assert (found.w == chosen).all()
    assert check(problem, found) == []


def test_middle_sized_plans_are_whole_and_their_bound_holds() -> None:
    """With hosting and whole racks too, every row is kept and the bound is below the exact cost."""
    problem = instance(3, 2, 2, 5, 4, seed=1, hosting=True, whole=True)
    exact = solve_small(problem, gap=1e-4, cpu_limit_s=20.0)
    found = solve_mid(problem, gap=0.01, cpu_limit_s=10.0)
    assert check(problem, found) == []
    assert found.bound <= exact.cost * (1.0 + 1e-6)
    assert found.cost >= exact.bound * (1.0 - 1e-6)
