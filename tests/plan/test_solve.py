"""The portfolio: every way gives a plan, a bound that holds, and a good end, whatever is asked."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from baseload.errors import PlanError
from baseload.plan.check_answer import check, recompute_cost
from baseload.plan.generate import instance
from baseload.plan.nothing import nothing
from baseload.plan.phases import solve_phases
from baseload.plan.problem import Answer, Problem
from baseload.plan.small import solve_small
from baseload.plan.solve import solve

TINY = 1e-6


def sound(problem: Problem, answer: Answer) -> None:
    """An answer keeps every row, says its cost, and no bound is above it."""
    assert check(problem, answer) == []
    assert answer.cost == pytest.approx(recompute_cost(problem, answer).total, rel=1e-9)
    assert answer.bound <= answer.cost
    assert answer.cost <= nothing(problem).cost * (1.0 + 1e-9)


def test_two_ways_find_the_same_least_cost() -> None:
    """HiGHS' branch and bound and branching by warm re-solves agree to 1e-6 on problems with phases, rent and survival."""
    for seed in range(4):
        problem = instance(3, 2, 2, 4, 6, seed=seed)
        one, other = solve_small(problem, gap=1e-7), solve_phases(problem, gap=1e-7)
        assert one.cost == pytest.approx(other.cost, rel=2e-6)
        assert one.status == other.status == "optimal"


@settings(max_examples=40)
@given(
    sizes=st.tuples(*(st.integers(1, top) for top in (4, 3, 2, 4, 5))),
    seed=st.integers(0, 10_000),
    hosting=st.booleans(),
    whole=st.booleans(),
    survive=st.booleans(),
)
def test_any_small_problem_is_answered_with_a_plan_and_its_proof(
    sizes: tuple[int, int, int, int, int], seed: int, hosting: bool, whole: bool, survive: bool
) -> None:
    """Whatever is asked: the answer keeps all rows by code that shares nothing with the builder, within the gap."""
    problem = instance(*sizes, seed=seed, hosting=hosting, whole=whole, survive=survive)
    answer = solve(problem, gap=1e-4, cpu_limit_s=20.0)
    sound(problem, answer)
    assert answer.status in ("optimal", "within_gap")
    assert answer.gap <= 1e-4 + 1e-9


@pytest.mark.parametrize("whole", [False, True])
def test_the_first_stop_still_leaves_a_plan(whole: bool) -> None:
    """Told to stop at once, each way answers "interrupted" with a plan and a bound that holds."""
    problem = instance(3, 2, 2, 4, 6, seed=3, whole=whole)
    best = solve(problem, gap=1e-6)
    asked = []

    def stop() -> bool:
        asked.append(1)
        return True

    answer = solve(problem, gap=1e-6, stop=stop)
    assert answer.status == "interrupted"
    assert asked
    sound(problem, answer)
    assert answer.bound <= best.cost * (1.0 + TINY)


@pytest.mark.parametrize("whole", [False, True])
def test_no_time_still_leaves_a_plan(whole: bool) -> None:
    """With next to no CPU time the answer says so and is a plan."""
    problem = instance(4, 3, 3, 8, 8, seed=1, whole=whole)
    answer = solve(problem, gap=1e-9, cpu_limit_s=0.01)
    assert answer.status == "stopped"
    sound(problem, answer)


def test_a_changed_problem_is_solved_from_an_earlier_answer() -> None:
    """Changed prices, dates or demand: the warm answer is as good as a fresh one."""
    problem = instance(5, 3, 3, 6, 8, seed=2)
    first = solve(problem, gap=1e-6)
    late = replace(problem, phase_delay=problem.phase_delay + (np.arange(len(problem.phases)) == 0))
    dear = replace(problem, cost_buy=problem.cost_buy * 1.2)
    more = replace(problem, demand=problem.demand * 1.1)
    longer = replace(problem, lead=problem.lead + 1)
    for changed in (problem, late, dear, more, longer):
        warm, fresh = solve(changed, gap=1e-6, warm=first), solve(changed, gap=1e-6)
        sound(changed, warm)
        assert warm.cost == pytest.approx(fresh.cost, rel=3e-6)


def test_fixed_phases_stay() -> None:
    """`fix` decides w by (phase, period); the rest is best for it, and it costs no less than being free."""
    problem = instance(4, 2, 2, 5, 6, seed=5)
    free = solve(problem, gap=1e-6)
    p = int(np.argmax(free.w[:, -1]))
    never = {(p, t): 0 for t in range(6)}
    held = solve(problem, gap=1e-6, fix=never)
    sound(problem, held)
    assert held.w[p].max() == 0.0
    assert held.cost >= free.cost * (1.0 - TINY)
    first = next(q for q in range(len(problem.phases)) if problem.phase_after[q] < 0)
    begun = solve(problem, gap=1e-6, fix={(first, 0): 1})
    assert begun.w[first].min() == 1.0
    sound(problem, begun)


def test_progress_tells_a_rising_bound_and_a_falling_cost() -> None:
    """Each line says no less of the bound and no more of the cost than the one before."""
    told: list[tuple[float, float]] = []
    solve(instance(5, 3, 3, 6, 8, seed=1), gap=1e-4, progress=lambda bound, cost: told.append((bound, cost)))
    bounds, costs = np.array(told).T
    assert len(told) > 1
    assert (np.diff(bounds) >= -1e-6 * costs[-1]).all()
    assert (np.diff(costs) <= 1e-6 * costs[-1]).all()


def degenerate() -> dict[str, Problem]:
    """Return problems at the edge of sense."""
    base = instance(3, 2, 2, 4, 6, seed=7)
    phases, n = len(base.phases), 6
    few = {
        name: getattr(base, name)[:0]
        for name in (
            *("phase_site", "phase_mw", "phase_delay", "phase_after", "begin_from", "begin_by"),
            *("cost_begin", "cost_live", "spend_begin"),
        )
    }
    empty = {"term": base.term[:0], "useful": base.useful[:0], "on_site": base.on_site[:0]}
    none = {"rentals": (), "sign_max": base.sign_max[:, :, :0], "cost_sign": base.cost_sign[:, :, :0], **empty}
    return {
        "nobody may be served": replace(base, allowed=np.zeros_like(base.allowed)),
        "no demand": replace(base, demand=np.zeros_like(base.demand)),
        "nothing carries anything": replace(base, rate=np.zeros_like(base.rate)),
        "racks may stand nowhere": replace(base, may_place=np.zeros_like(base.may_place), existing=base.existing * 0.0),
        "no limits": replace(base, supply=base.supply * 0 + np.inf, shared=base.shared * 0 + np.inf),
        "one period": instance(3, 2, 2, 4, 1, seed=7),
        "one of each": instance(1, 1, 1, 1, 2, seed=7),
        "no phases": replace(base, phases=(), **few),
        "no rentals": replace(base, **none),
        "no power": replace(base, power_mw=base.power_mw * 0.0, phase_mw=base.phase_mw * 0.0),
        "no groups": replace(
            base,
            groups=(),
            group_of=base.group_of[:0],
            share_max=base.share_max[:0],
            slack_price=base.slack_price | {"over_share": np.zeros((0, n))},
        ),
        "no supply": replace(base, supply=base.supply * 0.0),
        "no money": replace(base, capex_budget=np.zeros(n)),
        "no floor": replace(base, floor_m2=np.zeros_like(base.floor_m2)),
        "a rack nowhere allowed": replace(base, may_place=np.zeros_like(base.may_place)),
        "all is free": replace(
            base, cost_buy=base.cost_buy * 0, cost_owned=base.cost_owned * 0, cost_put=base.cost_put * 0
        ),
        "late racks": replace(base, lead=base.lead + 99),
        "late phases": replace(base, phase_delay=base.phase_delay + 99),
        "all is decided": replace(base, begin_by=np.zeros(phases, dtype=np.int64)),
        "never": replace(base, begin_from=np.full(phases, n, dtype=np.int64)),
    }


@pytest.mark.parametrize("name", sorted(degenerate()))
@pytest.mark.parametrize("whole", [False, True])
def test_problems_at_the_edge_of_sense_have_an_answer(name: str, whole: bool) -> None:
    """No demand, no sites, no phases, no limits, one of everything: a plan with its proof all the same."""
    problem = degenerate()[name]
    problem = replace(problem, whole=np.full_like(problem.whole, whole))
    answer = solve(problem, gap=1e-4, cpu_limit_s=20.0)
    sound(problem, answer)
    assert answer.gap <= 1e-4 + 1e-9 or answer.cost == pytest.approx(answer.bound, abs=1e-6)


def test_what_contradicts_itself_is_said_with_its_mend() -> None:
    """Each thing that cannot be is one line: where, what, how to mend it."""
    base = instance(3, 2, 2, 4, 6, seed=7)
    ring = base.phase_after.copy()
    ring[0] = 0
    wrong = {
        "demand": replace(base, demand=base.demand - 1e9),
        "cost_put": replace(base, cost_put=base.cost_put * np.nan),
        "rate": replace(base, rate=base.rate + np.inf),
        "not before": replace(base, begin_by=base.begin_by * 0 + 1, begin_from=base.begin_from + 3),
        "ring": replace(base, phase_after=ring),
        "shape": replace(base, supply=base.supply[:, :2]),
        "life": replace(base, life=base.life * 0),
        "lead": replace(base, lead=base.lead - 10),
        "short_hope": replace(base, slack_price={**base.slack_price, "short_hope": np.zeros(1)}),
    }
    for said, problem in wrong.items():
        with pytest.raises(PlanError, match=said):
            solve(problem)


def test_rows_without_a_price_that_cannot_be_kept_are_an_error() -> None:
    """A slack without a price is a hard row: where it cannot be kept the error says what to do."""
    base = instance(3, 2, 2, 4, 6, seed=7)
    hard = {name: price for name, price in base.slack_price.items() if name != "short_power"}
    for whole in (False, True):
        problem = replace(
            base,
            slack_price=hard,
            power_mw=np.zeros_like(base.power_mw),
            existing=base.existing + 1.0,
            begin_from=np.full(len(base.phases), 6, dtype=np.int64),
            whole=np.full_like(base.whole, whole),
        )
        with pytest.raises(PlanError, match="slack"):
            solve(problem)
