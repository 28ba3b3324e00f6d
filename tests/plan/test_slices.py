"""Rows that single periods imply: they cut off no plan, raise the bound, and slack ones may wait."""

from __future__ import annotations

import numpy as np

from baseload.plan import build as building
from baseload.plan import slices, tighten
from baseload.plan.cutout import kept_rows
from baseload.plan.generate import instance
from baseload.plan.highs import INF, Lp
from baseload.plan.small import columns_of, solve_small


def test_rows_of_single_periods_hold_for_the_best_plan_and_raise_the_bound() -> None:
    """The best plan, found without them, breaks none; with them the relaxation is dearer, and never dearer than that plan."""
    raised = 0
    for seed in (1, 3):
        problem = instance(3, 2, 2, 5, 4, seed=seed, hosting=True, whole=True)
        best = solve_small(problem, gap=1e-6)
        model = building.build(problem, building.first_halls(problem))
        plan, lp = columns_of(model, best), Lp(model.program, relaxed=True)
        before = lp.solve()
        assert before.row_dual is not None
        rows = slices.implied(model, model.program, before.row_dual, worth=0.0, until_s=INF, stop=None)
        for index, value, least in rows:
            assert value @ plan[index] >= least - 1e-5 * max(1.0, abs(least))
        least, start, index, value = tighten.packed(rows)
        lp.add_rows(least, np.full(len(least), INF), start, index, value)
        after = lp.solve()
        assert before.cost * (1.0 - 1e-9) <= after.cost <= best.cost * (1.0 + 1e-6)
        raised += after.cost > before.cost * (1.0 + 1e-3)
    assert raised >= 1


def test_a_period_at_its_prices_costs_no_more_than_its_part_of_the_relaxation() -> None:
    """The relaxations of all periods, with what the rows between them are worth, add up to that of the whole."""
    problem = instance(4, 2, 2, 5, 5, seed=1, hosting=True, whole=True)
    model = building.build(problem, building.first_halls(problem))
    whole = Lp(model.program, relaxed=True).solve()
    assert whole.row_dual is not None
    _, came = slices.periods_of(model)
    prices, program, total = whole.row_dual, model.program, 0.0
    between = np.ones(len(program.row_lower), bool)
    of = np.repeat(np.arange(len(between)), np.diff(program.start))
    for period in range(int(came.max()) + 1):
        mine = came == period
        total += Lp(slices.slice_of(program, prices, mine), relaxed=True).solve().cost
        between &= np.bincount(of[~mine[program.index]], minlength=len(between)) > 0
    side = np.where(prices > 0.0, program.row_lower, program.row_upper)
    total += float(np.where(between & (prices != 0.0), prices * np.where(np.isfinite(side), side, 0.0), 0.0).sum())
    assert abs(total - whole.cost) <= 1e-6 * abs(whole.cost)


def test_rows_that_do_not_bind_may_be_left_out() -> None:
    """A relaxation without its slack rows costs the same."""
    problem = instance(3, 2, 2, 5, 4, seed=1, hosting=True, whole=True)
    program = building.build(problem, building.first_halls(problem)).program
    found = Lp(program, relaxed=True).solve()
    assert found.row_dual is not None
    kept = np.abs(found.row_dual) > 1e-9
    fewer = Lp(kept_rows(program, kept), relaxed=True).solve()
    assert kept.sum() < len(kept)
    assert abs(fewer.cost - found.cost) <= 1e-7 * abs(found.cost)
