"""What an answer costs, earns, draws and emits, quarter by quarter: the books of a plan, before discounting.

The problem's own arrays are present values after tax; here the same decisions are priced as cash, so that budgets, cash
flow, NPV, IRR, payback and the cost of a million tokens can be read. Formulas are `formulas/money.py` and
`formulas/contracts.py`; which decisions are best is `solve.py`'s.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from baseload.formulas import money
from baseload.formulas.contracts import tax_by_year
from baseload.plan.problem import Answer, Problem
from baseload.units import HOURS_PER_YEAR, S_PER_HOUR, TOKENS_PER_MTOK

Floats = NDArray[np.float64]
SECONDS_PER_QUARTER = HOURS_PER_YEAR / 4.0 * S_PER_HOUR
HALVES_PER_YEAR = 8  # half quarters
HIGHEST_IRR = 1.0  # in half a quarter: above it is no figure
CAPEX = ("racks", "buildings", "grid")
RUNNING = (
    "rent",
    "energy",
    "demand charge",
    "space",
    "upkeep",
    "water",
    "carbon",
    "grid and colocation",
    "people and other",
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Prices:
    """Cash of a period before discounting and tax, in the fleet's currency; shapes as in problem.py."""

    buy_it: Floats  # (S,A,T) a rack with its share of server and network
    buy_facility: Floats  # (S,A,T) building and plant for it
    owned_energy: Floats  # (S,A,T) a rack, idle
    owned_space: Floats  # (S,A,T) rent of space
    owned_lease: Floats  # (S,A,T) what a leased rack costs; 0 of one's own
    owned_upkeep: Floats  # (S,A,T)
    owned_water: Floats
    owned_carbon: Floats  # price of carbon, where paid
    owned_mwh: Floats  # (S,A,T) IT energy of an idle rack
    put_energy: Floats  # (S,A,M,T) beyond idle, at mean load
    put_water: Floats
    put_carbon: Floats
    put_mwh: Floats  # (S,A,M,T)
    carbon_market_owned: Floats  # (S,A,T) t, market-based
    carbon_market_put: Floats  # (S,A,M,T)
    demand_charge: Floats  # (S,T) a MW billed
    used: Floats  # (S,T) a MW drawn of somebody's building, beyond what is paid anyway
    rent: Floats  # (S,A,K,T) a rack for a period
    begin: Floats  # (P,)
    live: Floats  # (P,) a period
    income: Floats  # (R,M) a request a second at the peak, over a period
    fixed: Floats  # (T,) people and offices, whatever is decided
    fixed_rent: Floats  # (T,) racks that stand and are rented already, whatever is decided
    rented_already: Floats  # (S,A,T) such racks, with and without power: no capital, no upkeep


@dataclass(frozen=True, slots=True, kw_only=True)
class Terms:
    """What cash becomes worth: rates, lives, tax, and what the demand is in tokens."""

    wacc: float
    tax_ratio: float
    resale_ratio: float
    it_life_years: float
    facility_life_years: float
    load_ratio: float  # mean over peak
    tokens_per_request: float  # input and output together
    committed: tuple[tuple[tuple[int, ...], float], ...] = ()  # (clients of a tenant, paid a period at least)


@dataclass(frozen=True, slots=True, kw_only=True)
class Books:
    """A plan by period, undiscounted, in the fleet's currency."""

    capex: Mapping[str, Floats]  # by CAPEX, (T,)
    running: Mapping[str, Floats]  # by RUNNING, (T,)
    income: Floats
    capital_charge: Floats  # capex and what stands already, as a level cost over its life
    salvage: float  # what is worth something at the horizon
    book: float  # what is not yet written off then
    depreciation: Floats
    mtok: Floats  # tokens served, in millions
    it_mwh: Floats
    carbon_t: Floats
    carbon_market_t: Floats
    water_m3: Floats
    busy_ratio: Floats  # of usable racks, by the demand that flows, at mean load; what is held in reserve is idle

    @property
    def opex(self) -> Floats:
        """Return all running cost by period."""
        return np.asarray(np.sum(list(self.running.values()), axis=0))

    @property
    def spent(self) -> Floats:
        """Return all capex by period."""
        return np.asarray(np.sum(list(self.capex.values()), axis=0))

    @property
    def cost_per_mtok(self) -> Floats:
        """Return running and capital cost of a million tokens, input and output together; nan where none is served."""
        return _per(self.opex + self.capital_charge, self.mtok)

    @property
    def carbon_kg_per_mtok(self) -> Floats:
        """Return kg of CO2 a million tokens, location-based, embodied included."""
        return _per(self.carbon_t * 1000.0, self.mtok)

    @property
    def water_l_per_mtok(self) -> Floats:
        """Return litres on site a million tokens."""
        return _per(self.water_m3 * 1000.0, self.mtok)


@dataclass(frozen=True, slots=True, kw_only=True)
class Worth:
    """What the cash of a plan is worth."""

    cash: Floats  # (T,) after tax, salvage in the last period
    cash_by_year: Floats
    tax: Floats
    npv: float
    irr: float | None  # a year; None where there is none, or may be several
    payback_years: float | None  # from then on the discounted balance is not below 0; None: it is at the end
    invested: float
    roi: float | None  # income over all cost, capital of what stands already included, less 1
    roi_without_idle: float | None  # the same, were capacity that stands idle free
    idle_cost: float


def _per(cost: Floats, mtok: Floats) -> Floats:
    return np.asarray(np.divide(cost, mtok, out=np.full(len(cost), np.nan), where=mtok > 0.0))


def owned_racks(problem: Problem, buy: Floats) -> tuple[Floats, Floats]:
    """Return racks in service by site, kind and period: all, and those that were bought."""
    bought = np.zeros_like(buy)
    for a in range(len(problem.kinds)):
        for u in range(buy.shape[2]):
            first = u + int(problem.lead[a])
            bought[:, a, first : first + int(problem.life[a])] += buy[:, a, u][:, None]
    return problem.existing + bought, bought


def rented_racks(problem: Problem, sign: Floats) -> Floats:
    """Return rented racks in force by site, kind, contract and period."""
    there = np.zeros_like(sign)
    for k in range(len(problem.rentals)):
        for t in range(sign.shape[3]):
            there[:, :, k, t : t + int(problem.term[k])] += sign[:, :, k, t][:, :, None]
    return there


def books(problem: Problem, answer: Answer, prices: Prices, terms: Terms) -> Books:
    """Return the books of an answer."""
    owned, _ = owned_racks(problem, answer.buy)
    rented = rented_racks(problem, answer.sign)
    rent = np.where(np.isfinite(prices.rent), prices.rent, 0.0)
    began = np.diff(answer.w, axis=1, prepend=0.0)
    live = _live(problem, answer.w)
    put = answer.put
    capex = {
        "racks": (prices.buy_it * answer.buy).sum(axis=(0, 1)),
        "buildings": (prices.buy_facility * answer.buy).sum(axis=(0, 1)),
        "grid": (prices.begin[:, None] * began).sum(axis=0),
    }
    running = {
        "rent": (rent * rented).sum(axis=(0, 1, 2)) + (prices.owned_lease * owned).sum(axis=(0, 1)) + prices.fixed_rent,
        "energy": (prices.owned_energy * owned).sum(axis=(0, 1)) + (prices.put_energy * put).sum(axis=(0, 1, 2)),
        "demand charge": (prices.demand_charge * answer.billed).sum(axis=0),
        "space": (prices.owned_space * owned).sum(axis=(0, 1)),
        "upkeep": (prices.owned_upkeep * (owned - prices.rented_already)).sum(axis=(0, 1)),
        "water": (prices.owned_water * owned).sum(axis=(0, 1)) + (prices.put_water * put).sum(axis=(0, 1, 2)),
        "carbon": (prices.owned_carbon * owned).sum(axis=(0, 1)) + (prices.put_carbon * put).sum(axis=(0, 1, 2)),
        "grid and colocation": (prices.live[:, None] * live).sum(axis=0)
        + (0.0 if answer.used is None else (prices.used * answer.used).sum(axis=0)),
        "people and other": prices.fixed.copy(),
    }
    served = answer.flow.sum(axis=1)  # (R,M,T)
    usable = (owned + (rented * problem.useful[None, None, :, None]).sum(axis=2)).sum(axis=(0, 1))
    busy = np.divide(_at_work(problem, answer), usable, out=np.zeros(len(usable)), where=usable > 0.0)
    salvage, book = _at_the_end(problem, answer, prices, terms)
    return Books(
        capex=capex,
        running=running,
        income=_income(served, prices, terms),
        capital_charge=_charge(problem, answer, prices, terms),
        salvage=salvage,
        book=book,
        depreciation=_written_off(problem, answer, prices, terms),
        mtok=served.sum(axis=(0, 1))
        * terms.load_ratio
        * SECONDS_PER_QUARTER
        * terms.tokens_per_request
        / TOKENS_PER_MTOK,
        it_mwh=(prices.owned_mwh * owned).sum(axis=(0, 1)) + (prices.put_mwh * put).sum(axis=(0, 1, 2)),
        carbon_t=(problem.carbon_owned * owned).sum(axis=(0, 1)) + (problem.carbon_put * put).sum(axis=(0, 1, 2)),
        carbon_market_t=(prices.carbon_market_owned * owned).sum(axis=(0, 1))
        + (prices.carbon_market_put * put).sum(axis=(0, 1, 2)),
        water_m3=(problem.water_owned * owned).sum(axis=(0, 1)) + (problem.water_put * put).sum(axis=(0, 1, 2)),
        busy_ratio=np.minimum(1.0, busy) * terms.load_ratio,
    )


def _at_work(problem: Problem, answer: Answer) -> Floats:
    """Return the racks that the demand that flows needs, by period; the rest of `put` is held for the loss of a site."""
    carry = np.einsum("am,samt->smt", problem.rate, answer.put)
    share = np.divide(answer.flow.sum(axis=0), carry, out=np.zeros_like(carry), where=carry > 0.0)
    return np.asarray((answer.put.sum(axis=1) * np.minimum(1.0, share)).sum(axis=(0, 1)))


def _live(problem: Problem, w: Floats) -> Floats:
    live = np.zeros_like(w)
    for p, delay in enumerate(problem.phase_delay):
        n = w.shape[1] - int(delay)
        if n > 0:
            live[p, int(delay) :] = w[p, :n]
    return live


def _income(served: Floats, prices: Prices, terms: Terms) -> Floats:
    """Return income by period: list prices, but for each tenant at least what it committed to."""
    by_client = (served * prices.income[:, :, None]).sum(axis=1)  # (R,T)
    total: Floats = by_client.sum(axis=0)
    for clients, least in terms.committed:
        listed = by_client[list(clients)].sum(axis=0)
        total = total + np.maximum(0.0, least - listed)
    return total


def _assets(problem: Problem, answer: Answer, prices: Prices, terms: Terms) -> list[tuple[float, int, int, float]]:
    """Return (capex, period in service, life in periods, resale ratio) of what is bought."""
    it_life = max(1, round(terms.it_life_years * 4.0))
    long_life = max(1, round(terms.facility_life_years * 4.0))
    found = []
    T = answer.buy.shape[2]
    for a in range(len(problem.kinds)):
        for t in range(T):
            first = t + int(problem.lead[a])
            it = float((prices.buy_it[:, a, t] * answer.buy[:, a, t]).sum())
            plant = float((prices.buy_facility[:, a, t] * answer.buy[:, a, t]).sum())
            found += [(it, first, it_life, terms.resale_ratio)] if it > 0.0 else []
            found += [(plant, first, long_life, 1.0)] if plant > 0.0 else []
    began = np.diff(answer.w, axis=1, prepend=0.0)
    for p, t in zip(*np.nonzero(began > 0.5), strict=True):
        if prices.begin[p] > 0.0:
            found.append((float(prices.begin[p]), int(t) + int(problem.phase_delay[p]), long_life, 1.0))
    return found


def _at_the_end(problem: Problem, answer: Answer, prices: Prices, terms: Terms) -> tuple[float, float]:
    T = answer.buy.shape[2]
    salvage = book = 0.0
    for capex, first, life, resale in _assets(problem, answer, prices, terms):
        left = capex * (1.0 - max(0, min(T, first + life) - min(T, first)) / life)
        book += left
        salvage += resale * left
    return salvage, book


def _written_off(problem: Problem, answer: Answer, prices: Prices, terms: Terms) -> Floats:
    T = answer.buy.shape[2]
    total = np.zeros(T)
    for capex, first, life, _ in _assets(problem, answer, prices, terms):
        total[min(T, first) : min(T, first + life)] += capex / life
    return total


def _charge(problem: Problem, answer: Answer, prices: Prices, terms: Terms) -> Floats:
    """Return the level cost of capital: what is bought from its day in service, what stands at today's price."""
    T = answer.buy.shape[2]
    it_factor = money.capital_recovery_factor(terms.wacc, terms.it_life_years) / 4.0
    long_factor = money.capital_recovery_factor(terms.wacc, terms.facility_life_years) / 4.0
    racks = (problem.existing - prices.rented_already) * prices.buy_it[:, :, :1] * it_factor
    total: Floats = (racks + problem.existing * prices.buy_facility[:, :, :1] * long_factor).sum(axis=(0, 1))
    for capex, first, life, _ in _assets(problem, answer, prices, terms):
        factor = it_factor if life == max(1, round(terms.it_life_years * 4.0)) else long_factor
        total[min(T, first) : min(T, first + life)] += capex * factor
    return total


def worth(book: Books, terms: Terms) -> Worth:
    """Return NPV, IRR, payback and ROI of a plan's books; losses are carried forward, racks resold at the horizon.

    Discounted as the objective is: capex on a quarter's first day, the rest in mid-quarter, resale at the horizon.
    """
    n = len(book.income)
    end = np.zeros(n)
    end[-1] = book.salvage
    gone = np.zeros(n)
    gone[-1] = book.book
    profit = book.income - book.opex - book.depreciation + end - gone
    tax = np.array(tax_by_year(by_year(profit).tolist(), terms.tax_ratio))
    tax_by_period = np.zeros(n)
    tax_by_period[_last_of_years(n)] = tax
    cash = book.income - book.opex - book.spent - tax_by_period + end
    by_half = np.zeros(2 * n + 1)  # cash of half quarters, at the beginning of each
    by_half[0:-1:2] = -book.spent
    by_half[1::2] = book.income - book.opex - tax_by_period
    by_half[-1] = book.salvage
    halves = by_half.tolist()
    per_half = (1.0 + terms.wacc) ** (1.0 / HALVES_PER_YEAR) - 1.0
    invests = money.irr(cash.tolist()) is not None  # by quarter: what a quarter's own income pays for is no investment
    rate = money.irr(halves, highest=HIGHEST_IRR) if invests else None
    invested = float(book.spent.sum())
    cost = float((book.opex + book.capital_charge).sum())
    earned = float(book.income.sum())
    idle = float(((book.opex + book.capital_charge) * (1.0 - book.busy_ratio)).sum())
    return Worth(
        cash=cash,
        cash_by_year=by_year(cash),
        tax=tax,
        npv=money.npv(halves, per_half),
        irr=None if rate is None else (1.0 + rate) ** HALVES_PER_YEAR - 1.0,
        payback_years=_payback_years(by_half * (1.0 + per_half) ** -np.arange(2.0 * n + 1.0)),
        invested=invested,
        roi=money.return_on_investment(earned, cost) if cost > 0.0 else None,
        roi_without_idle=money.return_on_investment(earned, cost - idle) if cost > idle else None,
        idle_cost=idle,
    )


def _payback_years(worth: Floats) -> float | None:
    """Return the years from which on no quarter ends with a balance below 0; `worth` is of half quarters, discounted."""
    by_quarter = worth[:-1].reshape(-1, 2).sum(axis=1)
    by_quarter[-1] += worth[-1]
    after = money.payback_years(by_quarter.tolist())  # counts from the end of the first quarter
    return (after + 1.0) / 4.0 if after else after


def by_year(values: Floats) -> Floats:
    """Return sums over four periods each; the last year may be shorter.

    >>> by_year(np.ones(6)).tolist()
    [4.0, 2.0]
    """
    return np.add.reduceat(values, np.arange(0, len(values), 4))


def _last_of_years(n: int) -> Sequence[int]:
    return [min(n, start + 4) - 1 for start in range(0, n, 4)]
