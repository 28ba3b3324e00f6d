"""A changed law, solved from an earlier answer: as good and as sound as one solved anew."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from baseload.plan import build as building
from baseload.plan.check_answer import check
from baseload.plan.generate import instance
from baseload.plan.problem import Problem
from baseload.plan.solve import solve
from baseload.plan.whatif import what_if

GAP = 1e-6


def closed(problem: Problem, r: int, s: int) -> Problem:
    """Return the problem with a client no longer served from a site, for services that another site may serve."""
    allowed = problem.allowed.copy()
    allowed[r, s, allowed[r].sum(axis=0) > 1] = False
    return replace(problem, allowed=allowed)


def opened(problem: Problem, r: int) -> Problem:
    """Return the problem with a client served from anywhere."""
    allowed = problem.allowed.copy()
    allowed[r] = True
    return replace(problem, allowed=allowed)


@pytest.mark.parametrize("seed", [3, 4])
def test_another_law_is_solved_from_an_earlier_answer_as_well_as_anew(seed: int):
    """Closing or opening sites to clients changes who must survive: the warm plan costs what a fresh one does."""
    problem = instance(4, 3, 3, 6, 6, seed=seed)
    first = solve(problem, gap=GAP)
    for r in range(2):
        s = int(np.argmax(problem.allowed[r].sum(axis=1)))
        for changed in (closed(problem, r, s), opened(problem, r)):
            warm, fresh = what_if(problem, first, changed, gap=GAP).answer, solve(changed, gap=GAP)
            assert check(changed, warm) == []
            assert warm.cost == pytest.approx(fresh.cost, rel=3e-6)
            assert warm.bound <= fresh.cost * (1.0 + 1e-9)


def test_survival_rows_speak_of_those_who_have_no_way_round():
    """A row kept under a wider law leaves out clients who may now be served elsewhere."""
    problem = instance(4, 3, 3, 6, 6, seed=3)
    halls = building.first_halls(problem)
    narrow = [replace(hall, sites=np.zeros_like(hall.sites)) for hall in halls]

    assert all(not hall.clients.any() for hall in building.lawful(opened_all(problem), narrow))
    assert [hall.clients.tolist() for hall in building.lawful(problem, halls)] == [h.clients.tolist() for h in halls]


def opened_all(problem: Problem) -> Problem:
    """Return the problem with everybody served from anywhere."""
    return replace(problem, allowed=np.ones_like(problem.allowed))
