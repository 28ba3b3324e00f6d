"""Money: published cost sheets and a published tariff first, then what arithmetic must keep."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from baseload.formulas import money, power

rates = st.floats(0.0, 0.4)
amounts = st.floats(0.0, 1e9, allow_subnormal=False)


@pytest.mark.parametrize(
    ("per_hour", "expected"),
    [(1.30, 0.361), (1.95, 0.542), (2.21, 0.614), (1.48, 0.411)],
    ids=["h100", "b200", "gb200", "mi355x"],
)
def test_cost_per_million_tokens_of_inferencex(per_hour: float, expected: float):
    """InferenceX's $/GPU-h at 1,000 tokens/s a GPU give its $ per million tokens (constants.ts)."""
    assert money.cost_per_million_tokens(per_hour, 1000.0) == pytest.approx(expected, abs=5e-4)


@pytest.mark.parametrize(
    ("price", "watts", "acquired", "powered"),
    [(30e3, 700.0, 30.72e6, 2.110e6), (40e3, 1000.0, 40.96e6, 3.014e6)],
    ids=["h100", "b200"],
)
def test_cost_of_a_thousand_gpus_for_five_years(price: float, watts: float, acquired: float, powered: float):
    """aiinframap's sheet: 1,024 GPUs at 70 %, PUE 1.2, $0.08/kWh: acquisition, and power over five years."""
    it_kwh = 1024 * watts / 1000 * 0.7 * 5 * 8760
    assert 1024 * price == acquired
    assert money.energy_cost(power.site_power_kw(it_kwh, 1.2), price_per_mwh=80.0) == pytest.approx(powered, rel=1e-3)


def test_cost_of_two_thousand_h100_nodes():
    """The public H100 cluster sheet: nodes, operations, switches and InfiniBand make $49,248 a GPU."""
    total = 2048 * (310_000 + 50_000 + 20_480) + 768 * 36_000
    assert total == pytest.approx(806.87e6, rel=1e-4)
    assert total / (2048 * 8) == pytest.approx(49_248, abs=1)


def test_a_gigawatt_in_racks():
    """Bernstein: $35 bn a GW at $5.9 M an NVL72 is 5,932 racks of 168.6 kW at the meter."""
    racks = power.units_that_fit(35e9, 5.9e6)
    assert racks == 5932
    assert 1e6 / racks == pytest.approx(168.6, abs=0.05)


def test_large_load_tariff_bills_most_of_the_contract():
    """AEP Ohio's data-center tariff: a 500 MW contract used at 300 MW is billed for 425."""
    assert money.billed_demand_kw(300e3, 500e3, minimum_bill_ratio=0.85) == pytest.approx(425e3)
    assert money.billed_demand_kw(480e3, 500e3, minimum_bill_ratio=0.85) == 480e3
    assert money.billed_demand_kw(100.0, past_peak_kw=400.0, ratchet_ratio=0.6) == pytest.approx(240.0)


def test_annuity_of_a_textbook():
    """A loan of 1,000 at 10 % over three years costs 402.11 a year."""
    assert money.annualised_cost(1000.0, 0.10, 3.0) == pytest.approx(402.1148)


@given(amounts, rates, st.integers(1, 40))
def test_an_annuity_repays_what_was_lent(capex: float, rate: float, years: int):
    """Yearly payments by the recovery factor have the capital as their present value."""
    payment = money.annualised_cost(capex, rate, float(years))
    assert money.npv([0.0] + [payment] * years, rate) == pytest.approx(capex, rel=1e-6, abs=1e-6)
    assert payment * years >= capex * (1 - 1e-9)


@given(st.floats(1.0, 1e6), st.lists(st.floats(0.0, 1e6), min_size=1, max_size=20))
def test_irr_is_where_npv_is_nothing(invested: float, returns: list[float]):
    """The NPV at the IRR is 0; it is positive below, and None only where no rate does it."""
    flow = [-invested, *returns]
    rate = money.irr(flow)
    if rate is None:
        assert money.npv(flow, -0.99) * money.npv(flow, 100.0) >= 0.0
    else:
        assume(rate > -0.9)
        scale = invested + sum(abs(cash) * (1 + rate) ** -year for year, cash in enumerate(flow))
        assert money.npv(flow, rate) == pytest.approx(0.0, abs=1e-6 * scale)
        assert money.npv(flow, rate - 0.01) >= -1e-9 * scale


@given(st.floats(1.0, 1e6), st.lists(st.floats(0.0, 1e6), min_size=1, max_size=20), rates)
def test_payback_is_when_the_balance_turns(invested: float, returns: list[float], rate: float):
    """Payback exists just if discounted returns reach the investment, and a higher rate never shortens it."""
    flow = [-invested, *returns]
    years = money.payback_years(flow, rate)
    worth = money.npv(flow, rate)
    assert (years is not None) == (worth >= 0.0) or abs(worth) < 1e-6 * invested
    slower = money.payback_years(flow, rate + 0.05)
    assert slower is None or (years is not None and slower >= years - 1e-9)


@given(st.lists(st.integers(-5, 5), min_size=2, max_size=8))
def test_a_rate_of_return_is_the_only_one(cash: list[int]):
    """No other rate above 0 has an NPV of 0 (roots of the polynomial), and at each rate below it the plan gains."""
    rate = money.irr(cash)
    if rate is None:
        return
    found = [1.0 / x.real - 1.0 for x in np.roots(cash[::-1]) if abs(x.imag) < 1e-7 and x.real > 1e-9]
    above = [one for one in found if one > 1e-6]
    assert min(abs(one - rate) for one in found) < 1e-5
    assert len(above) == (1 if rate > 1e-6 else 0)
    if rate > 0.01:
        assert money.npv(cash, rate / 2.0) > 0.0 > money.npv(cash, 2.0 * rate)


def test_a_stream_without_one_rate_of_return_has_none():
    """Two rates at once, a stream never in the red with a late outlay (its only rates would be absurd), no gain at all."""
    assert money.npv([-100.0, 230.0, -132.0], 0.1) == pytest.approx(0.0)
    assert money.npv([-100.0, 230.0, -132.0], 0.2) == pytest.approx(0.0)
    assert money.irr([-100.0, 230.0, -132.0]) is None
    assert money.irr([10.0, 10.0, -1.0, 10.0]) is None
    assert money.irr([0.0, 0.0]) is None and money.irr([-1.0, -1.0]) is None and money.irr([1.0, -2.0]) is None


def test_payback_is_by_the_balance():
    """A late outlay that the balance bears leaves nothing to pay back; one that it does not bear has to come back, too."""
    assert money.payback_years([10.0, 10.0, -1.0, 10.0]) == 0.0
    assert money.payback_years([-10.0, 20.0, -20.0, 40.0]) == pytest.approx(2.25)
    assert money.payback_years([-10.0, 20.0, -20.0]) is None


@given(amounts, st.floats(0.0, 1e6), st.floats(0.0, 1e6), st.floats(0.0, 1e12), st.floats(0.0, 1e12))
def test_split_parts_add_up(cost: float, prefill_s: float, decode_s: float, inputs: float, outputs: float):
    """Cost of input and of output tokens is the whole cost, whichever phase is empty."""
    assume(inputs == 0.0 or inputs > 1.0)
    assume(outputs == 0.0 or outputs > 1.0)
    per_in, per_out = money.split_by_seconds(
        cost, prefill_s=prefill_s, decode_s=decode_s, input_tokens=inputs, output_tokens=outputs
    )
    somebody = (prefill_s > 0 and inputs > 0) or (decode_s > 0 and outputs > 0)
    assert (per_in * inputs + per_out * outputs) / 1e6 == pytest.approx(cost if somebody else 0.0, rel=1e-6, abs=1e-9)


@given(amounts, st.floats(0.0, 1.0))
def test_idle_and_busy_make_the_whole(cost: float, busy: float):
    """Idle cost and its complement are the cost."""
    assert money.idle_cost(cost, busy) + money.idle_cost(cost, 1.0 - busy) == pytest.approx(cost)


@given(st.floats(0.0, 1e3), st.floats(0.0, 1e3), st.floats(0.0, 100.0), st.floats(0.0, 1.0))
def test_take_or_pay_is_never_cheaper_than_use(used: float, committed: float, price: float, floor: float):
    """A commitment costs at least the use and at least its floor, and just one of them."""
    cost = money.take_or_pay_cost(used, committed, price, floor)
    assert cost == pytest.approx(max(used * price, floor * committed * price))


def test_tax_and_depreciation():
    """Depreciation saves its tax and no more: WACC and yearly cash of a textbook case."""
    assert money.wacc(0.5, 0.10, 0.06, tax_rate=0.25) == pytest.approx(0.0725)
    shield = money.after_tax_cash(100, 40, 20, 0.25) - money.after_tax_cash(100, 40, 0, 0.25)
    assert shield == pytest.approx(0.25 * 20)
    assert money.straight_line_depreciation(100, 5) * 5 == pytest.approx(100)


def test_hours_at_once_equal_hours_one_by_one():
    """Energy cost over an array of hours is the sum over floats."""
    kwh, price = np.array([10.0, 20.0, 5.0]), np.array([100.0, -20.0, 60.0])
    singly = sum(money.energy_cost(float(a), float(b)) for a, b in zip(kwh, price))
    assert money.energy_cost(kwh, price).sum() == pytest.approx(singly)


def test_little_things():
    """Ratios and floors behave at their edges."""
    assert money.margin_ratio(0.0, cost=5.0) == 0.0
    assert money.return_on_investment(150.0, 100.0) == pytest.approx(0.5)
    assert money.spot_useful_ratio(0.0, 600.0, 300.0) == 1.0
    assert money.owned_cost_per_hour(8760.0, 0.0, 1.0) == pytest.approx(1.0)
    assert money.demand_charge(100.0, 12.0, months=2.0) == 2400.0
    assert money.token_revenue(1e6, 2.0, committed_minimum=5.0) == 5.0
