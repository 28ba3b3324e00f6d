"""Racks made whole along their sum: never more than power and supply allow, and near to the line."""

from __future__ import annotations

import numpy as np
import pytest

from baseload.plan.generate import instance
from baseload.plan.nothing import nothing
from baseload.plan.staircase import grid_mw, staircase


@pytest.mark.parametrize("seed", range(3))
def test_a_staircase_is_whole_near_its_line_and_within_power_and_supply(seed: int) -> None:
    """Whole orders, never half a rack above what the line has come to, nor beyond a site's power, supply, shared limits."""
    problem = instance(4, 3, 2, 5, 6, seed=seed, hosting=True, whole=True)
    rng = np.random.default_rng(seed)
    arrives = problem.may_place[:, :, None] & (np.arange(6) + problem.lead[:, None] < 6)[None]
    line = np.where(arrives, rng.uniform(0.0, 0.7, arrives.shape), 0.0)
    grid = grid_mw(problem, nothing(problem).w)
    steps = staircase(problem, line, arrives, grid, 0.5)
    assert (steps == np.round(steps)).all()
    assert (steps[~arrives] == 0.0).all()
    assert (np.cumsum(steps, axis=2) <= np.cumsum(line, axis=2) + 0.5 + 1e-9).all()
    assert (steps.sum(axis=0) <= problem.supply + 1e-9).all()
    assert (np.einsum("la,sat->lt", problem.shared_use, steps) <= problem.shared + 1e-9).all()
    owned = problem.existing.copy()
    for a, lead in enumerate(problem.lead):
        owned[:, a, lead:] += np.cumsum(steps[:, a], axis=1)[:, : 6 - lead]
    draw, before = (np.einsum("sa,sat->st", problem.rack_mw, racks) for racks in (owned, problem.existing))
    assert (draw <= np.maximum(grid, before) + 1e-9).all()


def test_a_tenth_of_a_rack_a_period_is_one_rack_when_half_of_it_has_come() -> None:
    """The line 0.1, 0.2, ... is nothing at first and one rack from 0.5 on, where there is power for it."""
    problem = instance(1, 1, 1, 3, 8, seed=0, whole=True)
    line = np.full((1, 1, 8), 0.1)
    steps = staircase(problem, line, np.ones((1, 1, 8), bool), np.full((1, 8), 1e3), 0.5)
    lead = int(problem.lead[0])
    assert steps.sum() == (1.0 if 8 - lead >= 5 else 0.0)
    assert steps[0, 0, :4].sum() == 0.0
