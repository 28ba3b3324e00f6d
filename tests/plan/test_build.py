"""The whole programme: its size and speed, its rows against the words of `problem.py`, its survival rows, its proven bounds."""

from __future__ import annotations

import time
from dataclasses import replace
from itertools import product

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from baseload.plan import build as building
from baseload.plan.check_answer import check, recompute_cost
from baseload.plan.generate import instance
from baseload.plan.highs import INF, Lp
from baseload.plan.nothing import nothing
from baseload.plan.problem import Problem
from baseload.plan.proof import safe_bound, upper_bounds

SIZES = st.tuples(*(st.integers(1, top) for top in (4, 3, 3, 5, 6)))


def test_the_large_problem_is_built_and_loaded_within_a_second() -> None:
    """20 sites, 8 kinds, 12 services, 50 clients, 20 quarters: arrays to a loaded HiGHS in at most 1 CPU s."""
    problem = instance(20, 8, 12, 50, 20, seed=0)
    building.build(instance(2, 2, 2, 2, 2, seed=0))
    took_s = []
    for _ in range(2):
        began_s = time.process_time()
        model = building.build(problem, building.first_halls(problem))
        Lp(model.program, relaxed=True)
        took_s.append(time.process_time() - began_s)
    assert len(model.program.cost) > 100_000
    assert min(took_s) <= 1.0


@given(sizes=SIZES, seed=st.integers(0, 9999))
def test_any_solution_of_the_programme_is_a_plan(sizes: tuple[int, int, int, int, int], seed: int) -> None:
    """Costs turned about at random give corners of the programme; read as answers, they keep every row but whole phases."""
    problem = instance(*sizes, seed=seed)
    model = building.build(problem, building.first_halls(problem))
    rng = np.random.default_rng(seed)
    program = replace(model.program, cost=model.program.cost * rng.uniform(0.0, 3.0, len(model.program.cost)))
    found = Lp(program).solve(gap=0.5, cpu_limit_s=5.0)
    assert found.x is not None
    answer = building.answer_of(model, found.x, bound=-INF, status="stopped", method="test", cpu_s=0.0)
    answer = replace(answer, cost=recompute_cost(problem, answer).total)
    assert check(problem, answer) == []


@given(sizes=SIZES, seed=st.integers(0, 9999))
def test_doing_nothing_is_a_plan_at_its_price(sizes: tuple[int, int, int, int, int], seed: int) -> None:
    """The plan that serves nobody keeps every row, and its cost is what its decisions cost."""
    problem = instance(*sizes, seed=seed)
    tight = replace(
        problem,
        existing=problem.existing + 2.0,
        begin_by=np.where(np.arange(len(problem.phases)) % 3 == 2, 1, problem.begin_by),
        capex_budget=np.zeros(len(problem.periods)),
        floor_m2=np.ones_like(problem.floor_m2),
    )
    for each in (problem, tight):
        answer = nothing(each)
        assert check(each, replace(answer, bound=0.0)) == []
        assert answer.cost == pytest.approx(recompute_cost(each, answer).total, rel=1e-9)


def test_survival_rows_are_those_of_every_set_of_clients() -> None:
    """Hall's theorem by brute force: what is truly short is the worst over all sets of clients and every site lost."""
    rng = np.random.default_rng(3)
    for seed in range(15):
        problem = instance(4, 2, 2, 5, 3, seed=seed)
        carry = rng.uniform(0.0, 1.0, (4, 2, 3)) * problem.demand.sum() / 40.0
        unserved = problem.demand * rng.uniform(0.0, 0.5, problem.demand.shape)
        _, short = building.missing_halls(problem, carry, unserved, np.zeros((2, 3)))
        assert short == pytest.approx(_short_by_sets(problem, carry, unserved), abs=1e-6 * problem.demand.sum())


def _short_by_sets(problem: Problem, carry: np.ndarray, unserved: np.ndarray) -> np.ndarray:
    n_sites, _, n_services, n_clients, n_periods = problem.shape
    worst = np.zeros((n_services, n_periods))
    for lost, m, chosen in product(range(n_sites), range(n_services), product((False, True), repeat=n_clients)):
        clients = np.array(chosen) & (problem.allowed[:, :, m].sum(axis=1) >= 2)
        sites = problem.allowed[clients, :, m].any(axis=0)
        sites[lost] = False
        need = problem.survive_ratio[m] * (problem.demand - unserved)[clients, m].sum(axis=0)
        worst[m] = np.maximum(worst[m], need - carry[sites, m].sum(axis=0))
    return worst


def test_a_survival_row_found_is_broken_by_what_it_was_found_in() -> None:
    """Rows that are generated cut off the solution that they were generated from."""
    problem = instance(5, 3, 3, 6, 6, seed=11)
    model = building.build(problem)
    found = Lp(model.program, relaxed=True).solve()
    assert found.x is not None
    short = np.maximum(0.0, model.value("short_survive", found.x))
    halls, _ = building.missing_halls(
        problem, building.carried(model, found.x), model.value("unserved", found.x), short
    )
    assert halls
    for hall in halls:
        (least,), _, index, value = building.rows_of(model, [hall])
        assert value @ found.x[index] < least


@given(sizes=SIZES, seed=st.integers(0, 9999), noise=st.floats(0.0, 1.0))
def test_any_prices_prove_a_bound(sizes: tuple[int, int, int, int, int], seed: int, noise: float) -> None:
    """Prices of rows, exact or spoilt, never prove more than the least cost; exact ones prove it whole."""
    problem = instance(*sizes, seed=seed)
    model = building.build(problem, building.first_halls(problem))
    found = Lp(model.program, relaxed=True).solve(method="simplex")
    assert found.row_dual is not None
    upper = upper_bounds(model, nothing(problem).cost)
    rng = np.random.default_rng(seed)
    spoilt = found.row_dual * rng.uniform(1.0 - noise, 1.0 + noise, len(found.row_dual)) + noise * rng.normal(
        0.0, 0.1, len(found.row_dual)
    )
    scale = abs(found.cost)
    exact = safe_bound(model.program, found.row_dual, model.program.lower, upper)
    assert exact == pytest.approx(found.cost, abs=1e-6 * scale + 1e-6)
    assert safe_bound(model.program, spoilt, model.program.lower, upper) <= found.cost + 1e-7 * scale + 1e-7


def test_the_generator_gives_the_same_problem_for_the_same_seed() -> None:
    """Two calls agree in every array; another seed does not."""
    one, same, other = (instance(4, 3, 3, 8, 8, seed=seed) for seed in (1, 1, 2))
    assert np.array_equal(one.demand, same.demand)
    assert np.array_equal(one.cost_put, same.cost_put)
    assert not np.array_equal(one.demand, other.demand)


def test_the_generator_keeps_to_the_shapes_it_promises() -> None:
    """Between 30 and 60 % of flows are allowed, and every client may be served by someone."""
    for seed in range(5):
        problem = instance(20, 8, 12, 50, 20, seed=seed)
        assert 0.3 <= problem.allowed.mean() <= 0.6
        assert problem.allowed.any(axis=1).all()


def test_columns_and_rows_are_known_again_under_another_law():
    """A programme is itself again number by number; with a site closed to a client, what is left keeps its costs and sides."""
    problem = instance(4, 3, 3, 6, 6, seed=3)
    halls = building.first_halls(problem)
    was = building.build(problem, halls)
    columns, rows = building.carried_over(was, halls, was, halls)
    assert (columns == np.arange(len(was.program.cost))).all()
    assert (rows == np.arange(len(was.program.row_lower))).all()

    allowed = problem.allowed.copy()
    allowed[0, int(np.argmax(allowed[0].sum(axis=1)))] = False
    changed = replace(problem, allowed=allowed)
    fewer = [hall for hall in building.lawful(changed, halls) if hall.clients.any()][1:]
    now = building.build(changed, fewer)
    columns, rows = building.carried_over(was, halls, now, fewer)
    assert len(columns) < len(was.program.cost)
    assert len(rows) < len(was.program.row_lower)
    assert (columns >= 0).all()
    assert (rows >= 0).all()
    assert (now.program.cost == was.program.cost[columns]).all()
    before_survival = rows[: building.first_hall_row(now)]
    assert (now.program.row_upper[: len(before_survival)] == was.program.row_upper[before_survival]).all()
