"""The checker finds what is broken, by name and by how much."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from scipy.optimize import linprog

from baseload.plan.check_answer import cannot_survive, check, recompute_cost
from baseload.plan.generate import instance
from baseload.plan.nothing import nothing
from baseload.plan.problem import Answer, Problem
from baseload.plan.solve import solve
from tests.plan.tiny import problems


@pytest.fixture(scope="module")
def solved() -> tuple[Problem, Answer]:
    problem = instance(3, 2, 2, 5, 4, seed=3, whole=True, hosting=True)
    return problem, solve(problem, gap=0.05, cpu_limit_s=10.0)


def kinds_of(problem: Problem, answer: Answer) -> set[str]:
    return {violation.kind for violation in check(problem, answer)}


def test_a_plan_passes_and_each_tampering_is_named(solved: tuple[Problem, Answer]) -> None:
    """Every decision that is moved breaks the rows that speak of it, and those are what is said."""
    problem, answer = solved
    assert check(problem, answer) == []
    assert "serve" in kinds_of(problem, replace(answer, flow=answer.flow * 0.9))
    assert "carry" in kinds_of(problem, replace(answer, put=answer.put * 0.9))
    assert {"racks"} <= kinds_of(problem, replace(answer, put=answer.put * 3.0 + 1.0))
    assert "whole racks" in kinds_of(problem, replace(answer, buy=answer.buy + 0.5))
    assert "supply" in kinds_of(problem, replace(answer, buy=answer.buy + 1e4))
    assert "power" in kinds_of(problem, replace(answer, buy=answer.buy + 1e4))
    assert "billed: draw" in kinds_of(problem, replace(answer, billed=answer.billed * 0.0))
    assert "w is 0 or 1" in kinds_of(problem, replace(answer, w=answer.w * 0.5 + 0.2))
    assert answer.host is not None
    assert "host: most" in kinds_of(problem, replace(answer, host=answer.host * 0.0))
    assert "cost" in kinds_of(problem, replace(answer, cost=answer.cost * 1.001))
    assert "bound" in kinds_of(problem, replace(answer, bound=answer.cost * 1.001))


def test_a_phase_out_of_its_dates_is_named(solved: tuple[Problem, Answer]) -> None:
    """Dates and order of phases: each has its own row."""
    problem, answer = solved
    p = 0
    never = replace(problem, begin_from=np.full(len(problem.phases), len(problem.periods)))
    begun = replace(answer, w=np.ones_like(answer.w))
    assert "begin_from" in kinds_of(never, begun)
    decided = replace(problem, begin_by=np.zeros(len(problem.phases), np.int64))
    assert "begin_by" in kinds_of(decided, replace(answer, w=np.zeros_like(answer.w)))
    falling = np.zeros_like(answer.w)
    falling[p, 0] = 1.0
    assert "a phase that is begun stays begun" in kinds_of(problem, replace(answer, w=falling))


@given(problem=problems(), seed=st.integers(0, 2**32 - 1))
@settings(max_examples=40, deadline=None, suppress_health_check=list(HealthCheck))
def test_what_cannot_survive_is_what_flows_of_their_own_say(problem: Problem, seed: int) -> None:
    """The largest flow after a loss is what a linear programme over those flows finds."""
    rng = np.random.default_rng(seed)
    n_s, _, n_m, _, n_t = problem.shape
    carry = rng.uniform(0.0, 3.0, (n_s, n_m, n_t))
    unserved = problem.demand * rng.uniform(0.0, 1.0, problem.demand.shape)
    short = cannot_survive(problem, carry, unserved)
    for m in range(n_m):
        clients = np.flatnonzero(problem.allowed[:, :, m].sum(axis=1) >= 2)
        for t in range(n_t):
            worst = 0.0
            for lost in range(n_s):
                pairs = [(r, s) for r in clients for s in range(n_s) if s != lost and problem.allowed[r, s, m]]
                need = problem.survive_ratio[m] * (problem.demand[clients, m, t] - unserved[clients, m, t])
                if not pairs:
                    worst = max(worst, float(need.sum()))
                    continue
                rows = [[float(pair[0] == r) for pair in pairs] for r in clients]
                rows += [[float(pair[1] == s) for pair in pairs] for s in range(n_s)]
                most = linprog(-np.ones(len(pairs)), A_ub=rows, b_ub=[*need, *carry[:, m, t]])
                worst = max(worst, float(need.sum()) + float(most.fun))
            assert short[m, t] == pytest.approx(worst, abs=1e-7)


def test_the_plan_that_does_nothing_costs_what_it_leaves_unserved(solved: tuple[Problem, Answer]) -> None:
    """Parts of the cost are named, and add up."""
    idle = nothing(solved[0])
    parts = recompute_cost(solved[0], idle).parts
    assert parts["racks bought"] == 0.0 and parts["unserved"] > 0.0
    assert sum(parts.values()) == pytest.approx(idle.cost)
