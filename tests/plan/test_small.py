"""Branch and bound on the whole programme: whole racks, hosting, budgets, against every choice written out."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.optimize import Bounds, LinearConstraint, milp

from baseload.plan import build as building
from baseload.plan.check_answer import check
from baseload.plan.generate import instance
from baseload.plan.highs import Lp
from baseload.plan.problem import Problem
from baseload.plan.small import columns_of, solve_small
from tests.plan.brute import written_out


def another_way(problem: Problem) -> float:
    """Return the least cost by the rows written out one by one and scipy's branch and bound."""
    sheet = written_out(problem)
    n = len(sheet.cost)
    whole = np.zeros(n)
    for name, number in sheet.number.items():
        if name[0] in ("w", "host") or (name[0] == "buy" and problem.whole[name[1], name[2]]):
            whole[number] = 1
    upper = np.array([1.0 if name[0] in ("w", "host") else sheet.upper[i] for name, i in sheet.number.items()])
    lower = np.zeros(n)
    for (kind, *at), number in sheet.number.items():
        if kind == "w":
            p, t = at
            lower[number] = t >= problem.begin_by[p]
            upper[number] = t >= problem.begin_from[p]
    order = []
    for p, before in enumerate(problem.phase_after):
        for t in range(len(problem.periods)):
            if t:
                order.append(({("w", p, t - 1): 1.0, ("w", p, t): -1.0}, 0.0))
            if before >= 0:
                order.append(({("w", p, t): 1.0, ("w", int(before), t): -1.0}, 0.0))
    a, b = sheet.matrix(sheet.rows + order)
    a_eq, b_eq = sheet.matrix(sheet.equal)
    rows = [LinearConstraint(a, -np.inf, b)] + ([LinearConstraint(a_eq, b_eq, b_eq)] if a_eq is not None else [])
    found = milp(
        sheet.cost, integrality=whole, bounds=Bounds(lower, upper), constraints=rows, options={"mip_rel_gap": 1e-9}
    )
    assert found.status == 0
    return float(found.fun) + float((problem.cost_owned * problem.existing).sum())


@settings(max_examples=20)
@given(
    seed=st.integers(0, 10_000),
    sizes=st.tuples(*(st.integers(1, top) for top in (3, 2, 2, 3, 4))),
    hosting=st.booleans(),
    money=st.sampled_from([np.inf, 800.0, 0.0]),
)
def test_whole_racks_hosts_and_budgets_cost_what_another_way_finds(
    seed: int, sizes: tuple[int, int, int, int, int], hosting: bool, money: float
) -> None:
    """The rows written out one by one, losses of sites as flows of their own, solved by scipy: the same least cost."""
    problem = instance(*sizes, seed=seed, hosting=hosting, whole=True)
    problem = replace(problem, capex_budget=np.full(sizes[4], money))
    answer = solve_small(problem, gap=1e-8)
    least = another_way(problem)
    assert check(problem, answer) == []
    assert answer.cost == pytest.approx(least, rel=2e-6, abs=1e-6)
    assert answer.bound <= least * (1.0 + 2e-6) + 1e-6


def test_counts_that_must_be_whole_are_exactly_whole() -> None:
    """Racks bought, phases begun and hosts are whole numbers to the last digit, also when time ran out."""
    for limit_s in (1.0, 5.0):
        problem = instance(4, 3, 3, 8, 8, seed=2, hosting=True, whole=True)
        answer = solve_small(problem, gap=1e-3, cpu_limit_s=limit_s)
        assert answer.host is not None
        for values in (answer.buy, answer.w, answer.host):
            assert np.array_equal(values, np.round(values))
        assert check(problem, answer) == []


def test_a_plan_is_found_long_before_it_is_proven() -> None:
    """Whole racks and hosting on six sites: within a few CPU seconds a plan within 10 % of its bound."""
    problem = instance(6, 3, 4, 8, 8, seed=4, hosting=True, whole=True)
    answer = solve_small(problem, gap=0.01, cpu_limit_s=5.0)
    assert check(problem, answer) == []
    assert answer.gap <= 0.10


def test_the_loss_of_any_site_is_survived_where_that_pays() -> None:
    """Where not surviving is dear, what is short is nought, and where survival is not asked for the plan is cheaper."""
    problem = instance(3, 2, 2, 5, 5, seed=9)
    dear = {name: price * (50.0 if name == "short_survive" else 1.0) for name, price in problem.slack_price.items()}
    asked = replace(problem, slack_price=dear)
    free = replace(problem, survive_ratio=np.zeros(2))
    one, other = solve_small(asked, gap=1e-6), solve_small(free, gap=1e-6)
    assert one.slack["short_survive"].max() <= 1e-6
    assert other.cost <= one.cost


def test_an_answer_read_back_is_the_same_solution() -> None:
    """The columns that are made of an answer keep every row and cost what the answer costs."""
    problem = instance(3, 2, 2, 4, 6, seed=6, whole=True, hosting=True)
    answer = solve_small(problem, gap=1e-6)
    model = building.build(problem)
    x = columns_of(model, answer)
    program = model.program
    activity = np.add.reduceat(np.append(program.value * x[program.index], 0.0), program.start[:-1])
    activity[np.diff(program.start) == 0] = 0.0
    assert (activity >= program.row_lower - 1e-5).all()
    assert (activity <= program.row_upper + 1e-5).all()
    assert program.cost @ x == pytest.approx(answer.cost, rel=1e-6)
    assert Lp(program).solve().cost <= answer.cost * (1.0 + 1e-9)
