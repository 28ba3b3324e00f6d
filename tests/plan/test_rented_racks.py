"""Racks of the fleet file that are rented already: paid while they stand, under rent, with no capital and no upkeep."""

from __future__ import annotations

import pytest

from baseload.app import plan_report
from baseload.app.plan_map import PlanMap
from baseload.app.plan_sites import HOURS_PER_QUARTER
from baseload.plan import money, solve
from tests.plan.test_plan_problem import question

STAND = "accelerator: h100-sxm, accelerators_per_rack: 8, racks: 2"
NOTHING_NEW = ("plan.buy=[]", "plan.begin=[]", "demand.scale=0.2")
RACK = f"sites.oslo.racks.more={{{STAND}, in_service: 2027-07-01, until: 2028-01-01}}"
RENTED = RACK.replace("}", ", rent_per_accelerator_hour: 1.5}")
NO_POWER = "sites.oslo.grid=[{power_mw: 0.3, energised: 2029-06-01}]"


def books(*overrides: str) -> tuple[money.Books, PlanMap, float]:
    """Return the books of the answer over two years, its map, and its cost in present value."""
    _, problem, plan_map = question(*NOTHING_NEW, *overrides, quarters=8)
    answer = solve.solve(problem, cpu_limit_s=20.0)
    kept = plan_report.books(problem, answer, plan_map, plan_report.terms_of(plan_map))
    return kept, plan_map, answer.cost * plan_map.money_unit + plan_map.sunk


@pytest.mark.parametrize("power", [(), (NO_POWER,)])
def test_rented_racks_are_paid_while_they_stand_and_carry_nothing_else(power: tuple[str, ...]):
    """Half a year of sixteen accelerators is two quarters of rent; capital, upkeep and people are as without them."""
    without, _, _ = books(*power)
    rented, plan_map, _ = books(RENTED, *power)
    quarter = 16 * 1.5 * HOURS_PER_QUARTER
    assert rented.running["rent"].tolist() == pytest.approx([0, 0, quarter, quarter, 0, 0, 0, 0])
    assert bool(plan_map.dark.any()) == bool(power)
    for name in ("upkeep", "people and other"):
        assert rented.running[name] == pytest.approx(without.running[name]), name
    assert rented.capital_charge == pytest.approx(without.capital_charge)


def test_owned_racks_carry_capital_and_upkeep_in_cost_and_books():
    """The same racks without a rent cost upkeep and capital while they stand, and the plan's cost holds that upkeep."""
    owned, _, owned_cost = books(RACK)
    rented, plan_map, rented_cost = books(RENTED)
    upkeep = 2.0 * plan_map.prices.owned_upkeep[1, 0]
    assert (owned.running["upkeep"] - rented.running["upkeep"])[2:4] == pytest.approx(upkeep[2:4])
    assert (owned.capital_charge - rented.capital_charge > 0.0).tolist() == [t in (2, 3) for t in range(8)]
    assert owned_cost - rented_cost == pytest.approx(float((upkeep * plan_map.discount)[2:4].sum()), rel=1e-6)


@pytest.mark.parametrize("power", [(), (NO_POWER,)])
def test_cost_and_fixed_cost_together_are_what_is_paid(power: tuple[str, ...]):
    """What the headline tells, in the cost and beside it, is all that the books pay; the rent of such racks is beside it."""
    kept, plan_map, cost = books(RENTED, "plan.survive.ratio=0", *power)
    assert plan_map.fixed == pytest.approx(16 * 1.5 * HOURS_PER_QUARTER * float(plan_map.discount[2:4].sum()))
    assert cost + plan_map.fixed == pytest.approx(float((kept.opex * plan_map.discount).sum()), rel=1e-6)


def test_rent_of_racks_that_training_holds_is_trainings():
    """What training holds is in neither side of the plan: where it has half of the racks, half of their rent is told."""
    job = "sites.oslo.training={job: {accelerator: h100-sxm, accelerators: 16}}"
    stands = f"sites.oslo.racks={{more: {{{STAND.replace('racks: 2', 'racks: 4')}, rent_per_accelerator_hour: 1.5}}}}"
    kept, _, _ = books(stands, job)
    assert kept.running["rent"].tolist() == pytest.approx([16 * 1.5 * HOURS_PER_QUARTER] * 8)
