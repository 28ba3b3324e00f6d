"""Contracts: published tariffs, tables and cost sheets first, then what arithmetic must keep."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from baseload.formulas import contracts, money
from baseload.formulas.availability import concentration_hhi, k_of_n

amounts = st.floats(0.0, 1e6, allow_subnormal=False)


def test_aep_ohio_bills_most_of_the_contract():
    """AEP Ohio's data center tariff: 500 MW contracted, 300 used: 425 MW billed, in each month."""
    assert contracts.billed_demand_by_month([300e3] * 3, 500e3, minimum_bill_ratio=0.85) == [425e3] * 3


def test_a_load_ramp_bills_what_is_agreed_for_the_month():
    """A contract by month is a ramp: the minimum follows it."""
    assert contracts.billed_demand_by_month([10.0, 10.0], [20.0, 100.0], minimum_bill_ratio=0.85) == [17.0, 85.0]


def test_closed_forms_of_redundancy_and_concentration():
    """Four of five at 0.99 stand 0.99902 of the time, one of two at 0.999 0.999999; shares of 5, 3, 2 have HHI 3800."""
    assert k_of_n(4, 5, 0.99) == pytest.approx(0.99902, abs=5e-6)
    assert k_of_n(1, 2, 0.999) == pytest.approx(0.999999, abs=1e-9)
    assert concentration_hhi([5.0, 3.0, 2.0]) == pytest.approx(3800.0)


@pytest.mark.parametrize(("price", "watts", "total"), [(30e3, 700.0, 32.83e6), (40e3, 1000.0, 43.97e6)])
def test_cost_of_a_thousand_accelerators(price: float, watts: float, total: float):
    """aiinframap's sheet: 1,024 accelerators, busy 0.7, PUE 1.2, $0.08, five years: $30.72M + 2.11M, $40.96M + 3.01M."""
    own = contracts.total_cost_of_ownership(
        1024 * price, 1024 * watts / 1000.0, busy_ratio=0.7, pue=1.2, price_per_kwh=0.08, years=5.0
    )
    assert own == pytest.approx(total, rel=1e-3)


def test_accelerators_per_megawatt_of_inferencex():
    """All-in kW of InferenceX: 578 H100, 460 B200, 476 GB200, 377 MI355X on a megawatt; an NVL72 rack takes 151 kW."""
    assert [contracts.accelerators_per_mw(kw) for kw in (1.73, 2.17, 2.10, 2.65)] == [578, 460, 476, 377]
    assert round(72 * 2.10) == 151


def test_macrs_tables_write_off_everything():
    """The tables of IRS Publication 946 add up to the cost."""
    for method, years in (("macrs5", 6), ("macrs15", 16)):
        written = contracts.depreciation_by_year(1e6, years, method)  # type: ignore[arg-type]
        assert len(written) == years and sum(written) == pytest.approx(1e6)


@given(amounts, st.integers(1, 30), st.floats(0.0, 1.0), st.sampled_from(["straight_line", "declining"]))
def test_schedules_write_off_capex_less_salvage(capex: float, years: int, share: float, method: contracts.Method):
    """Every schedule adds up, and no year is negative."""
    written = contracts.depreciation_by_year(capex, years, method, salvage=capex * share)
    assert len(written) == years and min(written) >= -1e-9 * capex
    assert sum(written) == pytest.approx(capex * (1.0 - share), abs=1e-6 * max(1.0, capex))


@given(st.lists(amounts, min_size=1, max_size=30), st.floats(0.0, 1.0), st.floats(0.0, 1.0), amounts)
def test_a_ratchet_by_brute_force(peaks: list[float], ratchet: float, minimum: float, contract: float):
    """Each month bills the highest of its peak, the share of the eleven before, and the share of the contract."""
    billed = contracts.billed_demand_by_month(peaks, contract, minimum_bill_ratio=minimum, ratchet_ratio=ratchet)
    for month, kw in enumerate(billed):
        past = max(peaks[max(0, month - 11) : month], default=0.0)
        assert kw == max(peaks[month], ratchet * past, minimum * contract)


@given(st.lists(st.floats(-1e6, 1e6), min_size=1, max_size=20))
def test_losses_are_set_off_once(profit: list[float]):
    """No year's tax is negative, and a profitable whole never pays less than on its sum."""
    taxes = contracts.tax_by_year(profit, 0.25)
    assert min(taxes) >= 0.0
    assert sum(taxes) >= 0.25 * sum(profit) - 1e-6


def test_cash_agrees_with_the_single_year():
    """Without losses, each year's cash is money.after_tax_cash of that year."""
    cash = contracts.cash_by_year([100.0, 100.0], [40.0, 40.0], [(40.0, 0, 2, "straight_line")], tax_rate=0.25)
    assert cash[0] == pytest.approx(money.after_tax_cash(100.0, 40.0, 20.0, 0.25, capex=40.0))
    assert cash[1] == pytest.approx(money.after_tax_cash(100.0, 40.0, 20.0, 0.25))


def test_spot_breaks_even_where_it_says():
    """At the rate of interruption that is named, an hour that worked costs the same on both."""
    rate = contracts.cheaper_than_spot_from(3.0, 1.2, 900.0, 600.0)
    assert contracts.spot_price_per_useful_hour(1.2, rate, 900.0, 600.0) == pytest.approx(3.0)


def test_indexation_and_idle():
    """A commitment's price rises in its thirteenth month; half idle doubles the cost of a useful hour."""
    paid = contracts.commitment_by_month([0.0] * 13, 10.0, 1.0, indexation_per_year=0.1)
    assert paid[11] == 10.0 and paid[12] == pytest.approx(11.0)
    assert contracts.cost_per_useful_hour([8760.0], 2.0, 0.5) == 1.0
