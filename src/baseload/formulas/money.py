"""Money: what capital, power and idleness cost, per hour and per million tokens.

All amounts are in the fleet's one currency; rates are per year (0.08 is 8 %). Prices and what was used come from the
fleet file and the records; which offer to take is `plan`'s business. Functions typed with `Real` take floats or
float64 arrays.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import accumulate, pairwise
from math import expm1, log1p

from baseload.formulas.elementwise import Real, holds, larger
from baseload.units import HOURS_PER_YEAR, S_PER_HOUR, TOKENS_PER_MTOK

KWH_PER_MWH = 1000.0


def capital_recovery_factor(rate: float, years: float) -> float:
    """Return the yearly payment that repays 1 with interest over `years`: r (1+r)^n / ((1+r)^n - 1).

    >>> round(capital_recovery_factor(0.08, years=5.0), 5), capital_recovery_factor(0.0, years=5.0)
    (0.25046, 0.2)
    """
    assert rate >= 0.0 and years > 0.0, (rate, years)
    if rate * years < 1e-12:
        return 1.0 / years
    return rate / -expm1(-years * log1p(rate))  # the same, and exact for small rates


def annualised_cost(capex: float, rate: float, years: float, salvage: float = 0.0) -> float:
    """Return the level yearly cost of an asset: capex less discounted salvage, times the recovery factor.

    >>> round(annualised_cost(1_000_000.0, 0.08, years=5.0))
    250456
    """
    assert salvage <= capex, (capex, salvage)
    discount: float = (1.0 + rate) ** -years
    return (capex - salvage * discount) * capital_recovery_factor(rate, years)


def owned_cost_per_hour(capex: float, rate: float, years: float, salvage: float = 0.0) -> float:
    """Return what an owned asset costs each hour of its life, used or not.

    >>> round(owned_cost_per_hour(30_000.0, 0.08, years=5.0), 3)
    0.858
    """
    return annualised_cost(capex, rate, years, salvage) / HOURS_PER_YEAR


def wacc(equity_ratio: float, cost_of_equity: float, cost_of_debt: float, tax_rate: float = 0.0) -> float:
    """Return the weighted average cost of capital; interest is paid before tax.

    >>> round(wacc(0.6, cost_of_equity=0.12, cost_of_debt=0.05, tax_rate=0.25), 4)
    0.087
    """
    assert 0.0 <= equity_ratio <= 1.0 and 0.0 <= tax_rate < 1.0, (equity_ratio, tax_rate)
    return equity_ratio * cost_of_equity + (1.0 - equity_ratio) * cost_of_debt * (1.0 - tax_rate)


def straight_line_depreciation(capex: float, years: float, salvage: float = 0.0) -> float:
    """Return the yearly write-off of an asset over its life.

    >>> straight_line_depreciation(100.0, years=4.0, salvage=20.0)
    20.0
    """
    assert years > 0.0, years
    return (capex - salvage) / years


def after_tax_cash(revenue: float, opex: float, depreciation: float, tax_rate: float, capex: float = 0.0) -> float:
    """Return a year's cash: (revenue - opex)(1 - tax) + tax * depreciation - capex.

    >>> after_tax_cash(100.0, opex=40.0, depreciation=20.0, tax_rate=0.25)
    50.0
    """
    assert 0.0 <= tax_rate < 1.0, tax_rate
    return (revenue - opex) * (1.0 - tax_rate) + tax_rate * depreciation - capex


def npv(cash_by_year: Sequence[float], rate: float) -> float:
    """Return the net present value of yearly cash, the first entry today.

    >>> round(npv([-100.0, 60.0, 60.0], rate=0.1), 4)
    4.1322
    """
    assert rate > -1.0, rate
    return sum(cash * (1.0 + rate) ** -year for year, cash in enumerate(cash_by_year))


def irr(cash_by_year: Sequence[float], highest: float = 100.0) -> float | None:
    """Return the rate at which the NPV is 0; None where none is from -99 % to `highest`, or where there may be several.

    There is one where money goes out first, and either cash changes sign once, or its running total does and ends above 0:
    then no other rate above 0 does it (Norstrom 1972). The NPV is positive just below it.

    >>> round(irr([-100.0, 60.0, 60.0]), 4), irr([50.0, -20.0, 50.0]), irr([-100.0, 250.0, -150.0])
    (0.1307, None, None)
    """
    total = list(accumulate(cash_by_year))
    first = next((cash for cash in cash_by_year if cash != 0.0), 0.0)
    once = _turns(cash_by_year) == 1 or (_turns(total) == 1 and total[-1] > 0.0)
    if first >= 0.0 or not once:
        return None
    gains = total[-1] > 0.0
    low, high = (0.0, highest) if gains else (-0.99, 0.0)
    if _worth_sign(cash_by_year, low) < 0 or _worth_sign(cash_by_year, high) > 0:
        return None
    for _ in range(200):
        middle = (low + high) / 2.0
        if _worth_sign(cash_by_year, middle) > 0:
            low = middle
        else:
            high = middle
    return (low + high) / 2.0


def _turns(values: Sequence[float]) -> int:
    """Return how often values change sign; zeros do not count."""
    signs = [value > 0.0 for value in values if value != 0.0]
    return sum(one != other for one, other in pairwise(signs))


def _worth_sign(cash_by_year: Sequence[float], rate: float) -> int:
    """Return the sign of the NPV; below 0 % that of the worth at the end, whose terms do not overflow."""
    last = len(cash_by_year) - 1 if rate < 0.0 else 0
    worth = sum(cash * (1.0 + rate) ** (last - year) for year, cash in enumerate(cash_by_year))
    return (worth > 0.0) - (worth < 0.0)


def payback_years(cash_by_year: Sequence[float], rate: float = 0.0) -> float | None:
    """Return the years from which on the discounted balance is not below 0, within the year by the straight line.

    0 where it never is; None where it is at the end.

    >>> payback_years([-100.0, 40.0, 40.0, 40.0]), payback_years([-100.0, 10.0]), payback_years([50.0, -20.0])
    (2.5, None, 0.0)
    """
    balance = paid_back = 0.0
    for year, cash in enumerate(cash_by_year):
        worth: float = cash * (1.0 + rate) ** -year
        if balance < 0.0 <= balance + worth:
            paid_back = year - 1 + -balance / worth
        balance += worth
    return paid_back if balance >= 0.0 else None


def return_on_investment(gain: float, invested: float) -> float:
    """Return what came back over what was put in, less 1: 0.2 is 20 % over the whole span.

    >>> round(return_on_investment(120.0, invested=100.0), 3)
    0.2
    """
    assert invested > 0.0, invested
    return gain / invested - 1.0


def energy_cost(energy_kwh: Real, price_per_mwh: Real | float) -> Real:
    """Return the cost of energy at a price per MWh; hour by hour if both are arrays.

    >>> energy_cost(500.0, price_per_mwh=80.0)
    40.0
    """
    return energy_kwh / KWH_PER_MWH * price_per_mwh


def billed_demand_kw(
    peak_kw: float, contract_kw: float = 0.0, *, minimum_bill_ratio: float = 0.0,
    past_peak_kw: float = 0.0, ratchet_ratio: float = 0.0,
) -> float:  # fmt: skip
    """Return the kW a month is billed for: its peak, a share of the year's highest, or of the contract.

    Large-load tariffs bill most of what was reserved (AEP Ohio's data-center tariff: 85 %, above 25 MW):

    >>> billed_demand_kw(300e3, contract_kw=500e3, minimum_bill_ratio=0.85)
    425000.0
    """
    assert min(peak_kw, contract_kw, past_peak_kw) >= 0.0, (peak_kw, contract_kw, past_peak_kw)
    assert 0.0 <= minimum_bill_ratio <= 1.0 and 0.0 <= ratchet_ratio <= 1.0, (
        minimum_bill_ratio,
        ratchet_ratio,
    )
    return max(peak_kw, ratchet_ratio * past_peak_kw, minimum_bill_ratio * contract_kw)


def demand_charge(billed_kw: float, charge_per_kw_month: float, months: float = 1.0) -> float:
    """Return the demand charge for a billed kW over some months.

    >>> demand_charge(425.0, charge_per_kw_month=10.0)
    4250.0
    """
    assert billed_kw >= 0.0 and charge_per_kw_month >= 0.0 and months >= 0.0, (billed_kw, charge_per_kw_month)
    return billed_kw * charge_per_kw_month * months


def take_or_pay_cost(used: float, committed: float, unit_price: float, floor_ratio: float = 1.0) -> float:
    """Return what a commitment costs: the use, but at least a share of what was committed.

    >>> take_or_pay_cost(60.0, committed=100.0, unit_price=2.0, floor_ratio=0.8)
    160.0
    """
    assert min(used, committed, unit_price) >= 0.0 and 0.0 <= floor_ratio <= 1.0, (
        used,
        committed,
        floor_ratio,
    )
    return max(used, floor_ratio * committed) * unit_price


def spot_useful_ratio(interruptions_per_hour: float, checkpoint_s: float, restart_s: float) -> float:
    """Return the share of rented spot time that is useful: 1 / (1 + lambda (C/2 + R)).

    An interruption loses half of the time between checkpoints on average, and the restart.

    >>> round(spot_useful_ratio(0.1, checkpoint_s=600.0, restart_s=300.0), 4)
    0.9836
    """
    assert min(interruptions_per_hour, checkpoint_s, restart_s) >= 0.0, (interruptions_per_hour, checkpoint_s)
    return 1.0 / (1.0 + interruptions_per_hour * (checkpoint_s / 2.0 + restart_s) / S_PER_HOUR)


def cost_per_million_tokens(cost_per_hour: Real, tokens_per_s: Real | float) -> Real:
    """Return the cost of a million tokens from a cost per hour and a token rate. Float or array.

    >>> round(cost_per_million_tokens(1.30, tokens_per_s=1000.0), 3)  # an H100, InferenceX constants
    0.361
    """
    assert holds(tokens_per_s > 0.0), tokens_per_s
    return cost_per_hour / (tokens_per_s * S_PER_HOUR) * TOKENS_PER_MTOK


def split_by_seconds(
    cost: float, *, prefill_s: float, decode_s: float, input_tokens: float, output_tokens: float
) -> tuple[float, float]:
    """Return cost per million input and per million output tokens.

    The rule: a cost is split by the accelerator-seconds spent in prefill and in decode, and each part is borne by
    its tokens. Input tokens found in the prefix cache took no seconds: leave them out of `input_tokens` for the
    cost of computed ones, or count them for the mean of all. Idle cost follows the same split, so that the parts
    add up to the whole. A phase without seconds or tokens costs 0 and the other bears all.

    >>> split_by_seconds(10.0, prefill_s=1.0, decode_s=4.0, input_tokens=2e6, output_tokens=1e6)
    (1.0, 8.0)
    """
    assert min(cost, prefill_s, decode_s, input_tokens, output_tokens) >= 0.0, (cost, prefill_s, decode_s)
    prefill_s = prefill_s if input_tokens > 0.0 else 0.0
    decode_s = decode_s if output_tokens > 0.0 else 0.0
    busy_s = prefill_s + decode_s
    if busy_s == 0.0:
        return 0.0, 0.0
    million = cost * TOKENS_PER_MTOK
    return (
        million * (prefill_s / busy_s) / input_tokens if prefill_s else 0.0,
        million * (decode_s / busy_s) / output_tokens if decode_s else 0.0,
    )


def idle_cost(cost: Real, busy_ratio: Real | float) -> Real:
    """Return the part of a cost that bought idleness: what stood there while no work ran. Float or array.

    >>> idle_cost(100.0, busy_ratio=0.75)
    25.0
    """
    assert holds(busy_ratio >= 0.0) and holds(busy_ratio <= 1.0), busy_ratio
    return cost * (1.0 - busy_ratio)


def token_revenue(tokens: Real, price_per_million: float, committed_minimum: float = 0.0) -> Real:
    """Return what tokens earn at a list price, but at least the committed minimum. Float or array.

    >>> token_revenue(3e6, price_per_million=0.5), token_revenue(3e6, 0.5, committed_minimum=10.0)
    (1.5, 10.0)
    """
    assert price_per_million >= 0.0 and committed_minimum >= 0.0, (price_per_million, committed_minimum)
    return larger(tokens / TOKENS_PER_MTOK * price_per_million, committed_minimum)


def margin_ratio(revenue: float, cost: float) -> float:
    """Return the share of revenue that is left after cost; 0 where nothing was earned.

    >>> margin_ratio(200.0, cost=150.0)
    0.25
    """
    return 0.0 if revenue == 0.0 else (revenue - cost) / revenue
