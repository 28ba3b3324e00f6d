"""Contracts: what power, colocation, spot and ownership come to month by month and year by year.

`money.py` has the single steps (recovery factor, one month's billed demand, one year's tax); this has what remembers:
ratchets with their history, commitments, schedules of depreciation, losses carried forward. One currency; years and
months are list places, the first is 0.
"""

from __future__ import annotations

from collections.abc import Sequence
from math import fsum
from typing import Literal

from baseload.formulas.money import billed_demand_kw, spot_useful_ratio, take_or_pay_cost

RATCHET_MONTHS = 11
Method = Literal["straight_line", "declining", "macrs5", "macrs15"]

# IRS Publication 946, tables A-1: half-year convention, per cent of cost by year. 5 years: computers; 15: plant and
# land improvements.
_MACRS = {
    "macrs5": (20.0, 32.0, 19.2, 11.52, 11.52, 5.76),
    "macrs15": (5.0, 9.5, 8.55, 7.7, 6.93, 6.23, 5.9, 5.9, 5.91, 5.9, 5.91, 5.9, 5.91, 5.9, 5.91, 2.95),
}


def billed_demand_by_month(
    peak_kw: Sequence[float], contract_kw: float | Sequence[float] = 0.0, *, minimum_bill_ratio: float = 0.0,
    ratchet_ratio: float = 0.0, history_kw: Sequence[float] = (), ratchet_months: int = RATCHET_MONTHS,
) -> list[float]:  # fmt: skip
    """Return the kW billed in each month: its peak, a share of the peaks before it, or of the contract.

    The ratchet looks back `ratchet_months` months, before the first of them into `history_kw` (oldest first). A contract
    by month is a load ramp, as AEP Ohio's data center tariff (PUCO 24-508-EL-ATA, 2025) allows: 85 % of 500 MW with
    300 MW used is 425 MW billed.

    >>> billed_demand_by_month([300e3], contract_kw=500e3, minimum_bill_ratio=0.85)
    [425000.0]
    >>> billed_demand_by_month([100.0, 40.0, 40.0], ratchet_ratio=0.8, history_kw=[90.0], ratchet_months=1)
    [100.0, 80.0, 40.0]
    """
    assert ratchet_months >= 0 and all(kw >= 0.0 for kw in (*peak_kw, *history_kw)), (peak_kw, history_kw)
    contract = [contract_kw] * len(peak_kw) if isinstance(contract_kw, int | float) else list(contract_kw)
    assert len(contract) == len(peak_kw), (len(contract), len(peak_kw))
    seen = list(history_kw)
    billed = []
    for peak, agreed in zip(peak_kw, contract):
        past = max(seen[-ratchet_months:], default=0.0) if ratchet_months else 0.0
        billed.append(
            billed_demand_kw(
                peak, agreed, minimum_bill_ratio=minimum_bill_ratio, past_peak_kw=past, ratchet_ratio=ratchet_ratio
            )
        )
        seen.append(peak)
    return billed


def commitment_by_month(
    used: Sequence[float],
    committed: float,
    unit_price: float,
    floor_ratio: float = 1.0,
    indexation_per_year: float = 0.0,
) -> list[float]:
    """Return what a take-or-pay commitment (colocation kW, reserved accelerators) costs each month; the price is
    raised each twelve months by the indexation.

    >>> commitment_by_month([60.0, 90.0], committed=100.0, unit_price=2.0, floor_ratio=0.8)
    [160.0, 180.0]
    """
    assert indexation_per_year > -1.0, indexation_per_year
    return [
        take_or_pay_cost(amount, committed, unit_price * (1.0 + indexation_per_year) ** (month // 12), floor_ratio)
        for month, amount in enumerate(used)
    ]


def spot_price_per_useful_hour(
    price_per_hour: float, interruptions_per_hour: float, checkpoint_s: float, restart_s: float
) -> float:
    """Return the price of an hour of spot time that did work: the list price over the useful share.

    The share is 1 / (1 + lambda (C/2 + R)), see money.spot_useful_ratio.

    >>> round(spot_price_per_useful_hour(1.0, 0.1, checkpoint_s=600.0, restart_s=300.0), 4)
    1.0167
    """
    assert price_per_hour >= 0.0, price_per_hour
    return price_per_hour / spot_useful_ratio(interruptions_per_hour, checkpoint_s, restart_s)


def cheaper_than_spot_from(
    on_demand_per_hour: float, spot_per_hour: float, checkpoint_s: float, restart_s: float
) -> float:
    """Return the interruptions an hour above which on-demand is cheaper than spot; inf if it never is.

    From price / spot = 1 + lambda (C/2 + R).

    >>> round(cheaper_than_spot_from(2.0, 1.0, checkpoint_s=600.0, restart_s=300.0), 6)
    6.0
    """
    assert on_demand_per_hour > 0.0 and spot_per_hour > 0.0, (on_demand_per_hour, spot_per_hour)
    lost_h = (checkpoint_s / 2.0 + restart_s) / 3600.0
    if lost_h == 0.0:
        return float("inf")
    return max(0.0, (on_demand_per_hour / spot_per_hour - 1.0) / lost_h)


def depreciation_by_year(
    capex: float, years: int, method: Method = "straight_line", salvage: float = 0.0
) -> list[float]:
    """Return what is written off each year; the list adds up to capex less salvage.

    Declining: double the straight rate, changing to straight line where that is more. MACRS: the tables of IRS
    Publication 946 with the half-year convention, where salvage counts for nothing and `years` is the table's.

    >>> depreciation_by_year(100.0, years=4, salvage=20.0)
    [20.0, 20.0, 20.0, 20.0]
    >>> depreciation_by_year(1000.0, years=5, method="macrs5")
    [200.0, 320.0, 192.0, 115.2, 115.2, 57.6]
    >>> [round(x, 1) for x in depreciation_by_year(1000.0, years=5, method="declining")]
    [400.0, 240.0, 144.0, 108.0, 108.0]
    """
    assert capex >= 0.0 and years >= 1 and 0.0 <= salvage <= capex, (capex, years, salvage)
    if method in _MACRS:
        return [round(capex * percent / 100.0, 9) for percent in _MACRS[method]]
    if method == "straight_line":
        return [(capex - salvage) / years] * years
    left, written = capex, []
    for year in range(years):
        straight = (left - salvage) / (years - year)
        written.append(min(left - salvage, max(straight, left * 2.0 / years)))
        left -= written[-1]
    return written


def tax_by_year(profit: Sequence[float], tax_rate: float) -> list[float]:
    """Return the tax of each year, losses carried forward without end and set off in full.

    >>> tax_by_year([-100.0, 60.0, 90.0], tax_rate=0.2)
    [0.0, 0.0, 10.0]
    """
    assert 0.0 <= tax_rate < 1.0, tax_rate
    taxes, loss = [], 0.0
    for amount in profit:
        taxable = amount - loss
        loss = max(0.0, -taxable)
        taxes.append(tax_rate * max(0.0, taxable))
    return taxes


def cash_by_year(
    revenue: Sequence[float], opex: Sequence[float], assets: Sequence[tuple[float, int, int, Method]], tax_rate: float,
    salvage: float = 0.0,
) -> list[float]:  # fmt: skip
    """Return cash after tax by year: revenue - opex - capex - tax; losses are carried forward.

    An asset is (capex, year bought, life, method); what is written off starts in that year. Salvage comes in the
    last year and is taxed as profit.

    >>> cash_by_year([0.0, 100.0, 100.0], [0.0, 20.0, 20.0], [(120.0, 0, 3, "straight_line")], tax_rate=0.25)
    [-120.0, 80.0, 70.0]
    """
    n = len(revenue)
    assert len(opex) == n and n > 0, (n, len(opex))
    written, spent = [0.0] * n, [0.0] * n
    for capex, bought, life, method in assets:
        assert 0 <= bought < n, (bought, n)
        spent[bought] += capex
        for year, amount in enumerate(depreciation_by_year(capex, life, method), start=bought):
            if year < n:
                written[year] += amount
    gain = [0.0] * (n - 1) + [salvage]
    before_tax = [r + g - o for r, g, o in zip(revenue, gain, opex)]
    taxes = tax_by_year([cash - less for cash, less in zip(before_tax, written)], tax_rate)
    return [cash - capex - tax for cash, capex, tax in zip(before_tax, spent, taxes)]


def accelerators_per_mw(all_in_kw: float) -> int:
    """Return whole accelerators for which one MW at the meter is enough, at their all-in provisioned kW.

    All-in kW of SemiAnalysis InferenceX (constants.ts, 77ca49a): H100 1.73, B200 2.17, GB200 2.10, MI355X 2.65.

    >>> [accelerators_per_mw(kw) for kw in (1.73, 2.17, 2.10, 2.65)]
    [578, 460, 476, 377]
    """
    assert all_in_kw > 0.0, all_in_kw
    return int(1000.0 / all_in_kw)


def total_cost_of_ownership(
    capex: float, it_kw: float, *, busy_ratio: float, pue: float, price_per_kwh: float, years: float
) -> float:
    """Return capital and power over the years: capex + kW * busy * PUE * 8760 h * years * price.

    aiinframap: 1,024 accelerators of 700 W at 30,000, busy 0.7, PUE 1.2, 0.08 a kWh, five years.

    >>> round(total_cost_of_ownership(1024 * 30e3, 1024 * 0.7, busy_ratio=0.7, pue=1.2, price_per_kwh=0.08, years=5.0) / 1e6, 2)
    32.83
    """
    assert min(capex, it_kw, busy_ratio, price_per_kwh, years) >= 0.0 and pue >= 1.0, (capex, it_kw, pue)
    return capex + it_kw * busy_ratio * pue * 8760.0 * years * price_per_kwh


def cost_per_useful_hour(costs_per_year: Sequence[float], accelerators: float, busy_ratio: float) -> float:
    """Return what an accelerator-hour with work on it costs: idle hours are borne by the busy ones.

    >>> cost_per_useful_hour([8760.0], accelerators=1.0, busy_ratio=0.5)
    2.0
    """
    assert accelerators > 0.0 and 0.0 < busy_ratio <= 1.0, (accelerators, busy_ratio)
    return fsum(costs_per_year) / (accelerators * 8760.0 * busy_ratio)
