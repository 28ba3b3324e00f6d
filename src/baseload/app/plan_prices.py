"""Prices of a planning problem: cash by period, and its present value after tax, as the arrays of plan/problem.py.

Purchases are paid when ordered, running costs in the middle of a quarter. A rack bought is worth a share of its
straight-line book value at the horizon, buildings and grid connections all of theirs. Tax is a share of profit: costs and
write-offs count less by it.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import date
from math import ceil

import numpy as np
import numpy.typing as npt

from baseload.app import plan_demand, plan_kinds, plan_rent
from baseload.app.plan_demand import Client, Traffic
from baseload.app.plan_map import Kind, PlanSite, Terms
from baseload.app.plan_sites import HOURS_PER_QUARTER, Phase
from baseload.fleet import catalog
from baseload.fleet.model import Fleet
from baseload.fleet.planning import Plan
from baseload.formulas.money import capital_recovery_factor
from baseload.plan.money import Prices
from baseload.plan.table import ReplicaRow

Floats = npt.NDArray[np.float64]
KW_PER_MW = 1000.0
UNSERVED_FACTOR = 300.0  # of the dearest way to serve: nobody is left out to spare a rack or the loss of a site
WEEKS_PER_QUARTER = 365.25 / 7.0 / 4.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Frame:
    """The axes, and what both the arrays of money and those of things are made from."""

    fleet: Fleet
    plan: Plan
    today: date
    days: tuple[date, ...]
    asked: Traffic
    load_ratio: float
    sites: tuple[PlanSite, ...]
    kinds: tuple[Kind, ...]
    terms: tuple[Terms, ...]
    phases: tuple[Phase, ...]
    clients: tuple[Client, ...]
    rows: dict[tuple[int, int], ReplicaRow]
    replicas_per_rack: Floats  # (A,M)
    rack_kw: Floats  # (S,A) IT, full load

    @property
    def n(self) -> tuple[int, int, int, int]:
        """Return (S, A, M, T)."""
        return len(self.sites), len(self.kinds), self.replicas_per_rack.shape[1], len(self.days)

    @property
    def rack_life_periods(self) -> int:
        """Periods that a rack of one's own stays in service."""
        return max(1, round(self.fleet.money.accelerator_life_years * 4.0))

    def life_periods(self, a: int) -> int:
        """Periods that a rack of a kind stays in service: its life, or the term of its lease."""
        lease = self.kinds[a].lease
        return self.rack_life_periods if lease is None else ceil(lease.term_months / 3.0 - 1e-9)

    def lead_periods(self, a: int) -> int:
        """Periods from order to service; the horizon where it cannot be bought."""
        weeks = self.kinds[a].lead_weeks
        return len(self.days) if weeks is None else ceil(weeks / WEEKS_PER_QUARTER - 1e-9)


def prices(f: Frame) -> Prices:
    """Return the cash of each period for each decision."""
    S, A, M, T = f.n
    money, buy = f.fleet.money, {one.accelerator: one for one in plan_kinds.buys(f.fleet, f.plan)}
    by_id = {catalog.accelerator(name).accelerator_id: one for name, one in buy.items()}
    unit = np.array(
        [
            [
                0.0
                if k.lease
                else k.per_rack * plan_kinds.unit_price(k, by_id.get(k.accelerator), f.fleet, f.today, day)
                for day in f.days
            ]
            for k in f.kinds
        ]
    )
    leased = np.array([k.lease is not None for k in f.kinds])
    lease = np.array([3.0 * k.per_rack * k.lease.price_per_accelerator_month if k.lease else 0.0 for k in f.kinds])
    site_of = [f.fleet.sites[one.declared] for one in f.sites]
    facility = np.array([one.facility_capex_per_kw for one in site_of])[:, None] * f.rack_kw
    space = np.array([one.colocation_per_kw_month * 3.0 for one in site_of])[:, None] * f.rack_kw
    # A building outlives a lease: what stands in it for a term pays a level share of it, instead of all at once.
    space = space + np.where(
        leased, facility * capital_recovery_factor(money.wacc, money.facility_life_years) / 4.0, 0.0
    )
    facility = np.where(leased, 0.0, facility)
    cost, carbon, market, water = (_site_rates(f, name) for name in ("energy", "carbon", "market", "water"))
    water_price = np.array([one.years.water_price_per_m3 if one.years else 0.0 for one in f.sites])[:, None, None]
    idle_mwh = _idle_kw(f) * HOURS_PER_QUARTER / KW_PER_MW  # (S,A)
    put_mwh = _put_kw(f) * HOURS_PER_QUARTER / KW_PER_MW  # (S,A,M)
    embodied = (
        np.array([k.per_rack for k in f.kinds]) * money.embodied_kg_per_accelerator / 1000.0 / f.rack_life_periods
    )
    owned_t = idle_mwh[:, :, None] * carbon[:, None, :] + embodied[None, :, None]
    put_t = put_mwh[..., None] * carbon[:, None, None, :]
    all_mwh = _put_kw(f, rented=True) * HOURS_PER_QUARTER / KW_PER_MW
    market_put = all_mwh[..., None] * _site_rates(f, "market", rented=True)[:, None, None, :] + _made(f)
    income = np.array([_income(f, client.tenant) for client in f.clients])
    rented_already, fixed_rent = _rented_already(f)
    return Prices(
        buy_it=np.broadcast_to(unit[None], (S, A, T)).copy(),
        buy_facility=np.broadcast_to(facility[:, :, None], (S, A, T)).copy(),
        owned_energy=idle_mwh[:, :, None] * cost[:, None, :],
        owned_space=np.broadcast_to(space[:, :, None], (S, A, T)).copy(),
        owned_lease=np.broadcast_to(lease[None, :, None], (S, A, T)).copy(),
        owned_upkeep=np.broadcast_to((unit[:, :1] * money.maintenance_ratio_per_year / 4.0)[None], (S, A, T)).copy(),
        owned_water=idle_mwh[:, :, None] * water[:, None, :] * water_price,
        owned_carbon=owned_t * money.carbon_price_per_t,
        owned_mwh=np.broadcast_to(idle_mwh[:, :, None], (S, A, T)).copy(),
        put_mwh=np.broadcast_to(put_mwh[..., None], (S, A, M, T)).copy(),
        put_energy=put_mwh[..., None] * cost[:, None, None, :],
        put_water=put_mwh[..., None] * water[:, None, None, :] * water_price[..., None],
        put_carbon=put_t * money.carbon_price_per_t,
        carbon_market_owned=idle_mwh[:, :, None] * market[:, None, :] + embodied[None, :, None],
        carbon_market_put=market_put,
        demand_charge=np.array(
            [one.years.demand_charge_per_mw_quarter if one.years else np.zeros(T) for one in f.sites]
        ),
        rent=_rent(f),
        used=np.repeat(_used_price(f)[:, None], T, axis=1),
        begin=np.array([one.cost_to_begin for one in f.phases]),
        live=np.array([one.cost_per_year / 4.0 for one in f.phases]),
        income=np.broadcast_to(income[:, None], (len(f.clients), M)).copy(),
        fixed=np.full(T, _fixed(f)),
        fixed_rent=fixed_rent,
        rented_already=rented_already,
    )


def physical(f: Frame) -> dict[str, Floats]:
    """Return tonnes of CO2 and cubic metres of water by rack and period; what is rented emits where it stands, too."""
    carbon, water = _site_rates(f, "carbon"), _site_rates(f, "water")
    idle_mwh = _idle_kw(f) * HOURS_PER_QUARTER / KW_PER_MW
    put_mwh = _put_kw(f) * HOURS_PER_QUARTER / KW_PER_MW
    all_mwh = _put_kw(f, rented=True) * HOURS_PER_QUARTER / KW_PER_MW
    everywhere = _site_rates(f, "carbon", rented=True)
    each_t = f.fleet.money.embodied_kg_per_accelerator / 1000.0 / f.rack_life_periods
    embodied = np.array([k.per_rack * each_t for k in f.kinds])
    return {
        "carbon_owned": idle_mwh[:, :, None] * carbon[:, None, :] + embodied[None, :, None],
        "carbon_put": all_mwh[..., None] * everywhere[:, None, None, :] + _made(f),
        "water_owned": idle_mwh[:, :, None] * water[:, None, :],
        "water_put": put_mwh[..., None] * water[:, None, None, :],
    }


def _made(f: Frame) -> Floats:
    """Return tonnes of a working rack's making, a period, where it is rented: by site and kind, to be added to (S,A,M,T)."""
    each_t = f.fleet.money.embodied_kg_per_accelerator / 1000.0 / f.rack_life_periods
    making = np.array([k.per_rack * each_t for k in f.kinds])
    return np.where(np.array([one.rented for one in f.sites])[:, None], making[None], 0.0)[:, :, None, None]


def _site_rates(f: Frame, what: str, *, rented: bool = False) -> Floats:
    """Return a rate a MWh of IT by site and period; 0 where the power is in the rent, unless `rented` ones are asked for."""
    key = {
        "energy": "energy_cost_per_mwh",
        "carbon": "carbon_t_per_mwh",
        "market": "carbon_market_t_per_mwh",
        "water": "water_m3_per_mwh",
    }[what]
    zero = np.zeros(len(f.days))
    of = [one.grid if rented else one.years for one in f.sites]
    return np.array([getattr(years, key) if years else zero for years in of])


def _used_price(f: Frame) -> Floats:
    """Return the price of a MW for a period beyond what is paid anyway, by site: the mean of its blocks by their MW."""
    found = np.zeros(len(f.sites))
    for s, site in enumerate(f.sites):
        blocks = [(one.usable_mw - one.paid_mw, one.price_per_mw_quarter) for one in f.phases if one.site == site.name]
        open_mw = sum(mw for mw, _ in blocks)
        found[s] = sum(mw * price for mw, price in blocks) / open_mw if open_mw > 0.0 else 0.0
    return found


def _idle_kw(f: Frame) -> Floats:
    """Return IT kW of an owned rack on which nothing runs, by site and kind."""
    parked = np.array([0.0 if one.rented else f.fleet.sites[one.declared].parked_power_ratio for one in f.sites])
    each = []
    for kind in f.kinds:
        known = catalog.accelerator(kind.accelerator)
        each.append(kind.per_rack * (known.idle_w + known.server_idle_other_w) / 1000.0)
    return np.asarray(parked[:, None] * np.array(each)[None, :])


def _put_kw(f: Frame, *, rented: bool = False) -> Floats:
    """Return IT kW of a working rack at mean load, beyond an idle one, by site, kind and service."""
    S, A, M, _ = f.n
    extra = np.zeros((S, A, M))
    for (a, m), row in f.rows.items():
        busy = f.load_ratio * max(0.0, row.power_kw_busy - row.power_kw_idle)
        for s, site in enumerate(f.sites):
            if rented or not site.rented:
                parked = f.fleet.sites[site.declared].parked_power_ratio
                extra[s, a, m] = f.replicas_per_rack[a, m] * (busy + (1.0 - parked) * row.power_kw_idle)
    return extra


def _rent(f: Frame) -> Floats:
    """Return the price of a rented rack for a period; inf where it is not offered."""
    S, A, _, T = f.n
    price = np.full((S, A, len(f.terms), T), np.inf)
    where = {one.declared: s for s, one in enumerate(f.sites)}
    for k, term in enumerate(f.terms):
        for offer in term.offers:
            name = catalog.accelerator(offer.accelerator).accelerator_id
            hour = plan_rent.price_per_hour(offer, f.fleet)
            s = where[plan_rent.site_of(offer)]
            for a, kind in enumerate(f.kinds):
                if kind.accelerator == name and kind.lease is None:
                    price[s, a, k] = np.minimum(price[s, a, k], hour * kind.per_rack * HOURS_PER_QUARTER)
                    break  # one shape of an accelerator is enough
    return price


def _income(f: Frame, tenant: str) -> float:
    """Return what a request a second at the peak earns over a period."""
    each = plan_demand.income_per_request(plan_demand.tenants(f.fleet)[tenant], f.asked)
    return each * plan_demand.seconds_per_quarter() * f.load_ratio


def _fixed(f: Frame) -> float:
    """Return what a period costs whatever is decided: people and offices."""
    sites = [f.fleet.sites[name] for name in {one.declared for one in f.sites}]
    return (f.fleet.money.opex_per_year + sum(one.staff_cost_per_year + one.opex_per_year for one in sites)) / 4.0


def _rented_already(f: Frame) -> tuple[Floats, Floats]:
    """Return the racks that stand and are rented, by site, kind and period, and what they cost by period."""
    S, A, _, T = f.n
    racks, paid = np.zeros((S, A, T)), np.zeros(T)
    for s, site in enumerate(f.sites):
        if not site.rented:
            there, hourly = plan_kinds.rented_already(f.fleet, site.declared, f.kinds, f.days)
            racks[s] = there / site.halls
            paid += hourly.sum(axis=0) / site.halls * HOURS_PER_QUARTER
    return racks, paid


# ---- present value ---------------------------------------------------------------------------------------


def discounts(f: Frame) -> tuple[Floats, Floats]:
    """Return the present value of 1 in the middle of each period, and on its first day."""
    t = np.arange(len(f.days), dtype=np.float64)
    rate = np.float64(1.0 + f.fleet.money.wacc)
    return rate ** -((t + 0.5) / 4.0), rate ** -(t / 4.0)


def asset_factor(f: Frame, arrive: int, bought: int, life_periods: int, resale: float) -> float:
    """Return the present value of what 1 of an asset costs: price less tax saved by write-off, less its worth at the end."""
    T, tax = len(f.days), f.plan.tax_ratio
    middle, begin = discounts(f)
    at_end = (1.0 + f.fleet.money.wacc) ** -(T / 4.0)
    used = max(0, min(T, arrive + life_periods) - min(T, arrive))
    book = 1.0 - used / life_periods
    saved = tax * float(middle[min(T, arrive) : min(T, arrive + life_periods)].sum()) / life_periods
    worth = resale * book + tax * (1.0 - resale) * book
    return float(begin[bought]) - saved - worth * float(at_end)


def present_values(f: Frame, p: Prices) -> dict[str, Floats]:
    """Return the cost arrays of plan/problem.py, in the fleet's currency."""
    _, A, M, T = f.n
    middle, _ = discounts(f)
    after_tax = 1.0 - f.plan.tax_ratio
    facility_life = max(1, round(f.fleet.money.facility_life_years * 4.0))
    it = np.array(
        [
            [asset_factor(f, t + f.lead_periods(a), t, f.life_periods(a), f.plan.resale_ratio) for t in range(T)]
            for a in range(A)
        ]
    )
    plant = np.array(
        [[asset_factor(f, t + f.lead_periods(a), t, facility_life, 1.0) for t in range(T)] for a in range(A)]
    )
    owned = p.owned_energy + p.owned_space + p.owned_lease + p.owned_upkeep + p.owned_water + p.owned_carbon
    put = p.put_energy + p.put_water + p.put_carbon
    begin = [
        [p.begin[i] * asset_factor(f, min(T, t + one.periods), t, facility_life, 1.0) for t in range(T)]
        for i, one in enumerate(f.phases)
    ]
    return {
        "cost_begin": np.array(begin).reshape(len(f.phases), T),
        "cost_live": p.live[:, None] * middle[None] * after_tax,
        "cost_buy": p.buy_it * it[None] + p.buy_facility * plant[None],
        "cost_owned": owned * middle * after_tax,
        "cost_put": put * middle * after_tax,
        "cost_sign": _signed(f, p) * after_tax,
        "cost_billed": p.demand_charge * middle * after_tax,
        "cost_used": p.used * middle * after_tax,
        "cost_flow": np.zeros((len(f.clients), len(f.sites), M, T)),
        "cost_unserved": _unserved(f, p) * middle,
    }


def _signed(f: Frame, p: Prices) -> Floats:
    """Return the present value of a whole term signed in each period, cut at the horizon."""
    middle, _ = discounts(f)
    T = len(f.days)
    total = np.zeros_like(p.rent)
    rent = np.where(np.isfinite(p.rent), p.rent, 0.0)
    for k, term in enumerate(f.terms):
        for t in range(T):
            until = min(T, t + term.term_periods)
            total[:, :, k, t] = (rent[:, :, k, t:until] * middle[t:until]).sum(axis=-1)
    return total


def unit_costs(f: Frame, p: Prices) -> Floats:
    """Return the most that a request a second of a service costs in a period, over the ways it can be served, by service."""
    _, A, M, _ = f.n
    rent = np.where(np.isfinite(p.rent), p.rent, 0.0).max(axis=(0, 2, 3)) if len(f.terms) else np.zeros(A)
    buy = [0.0 if not kind.can_buy else float(p.buy_it[:, a].max()) / 8.0 for a, kind in enumerate(f.kinds)]
    run = (p.owned_energy + p.owned_space + p.owned_lease + p.owned_upkeep).max(axis=(0, 2))
    dearest = np.zeros(M)
    for (a, m), row in f.rows.items():
        rate = row.carries_per_s * f.replicas_per_rack[a, m]
        if rate > 0.0:
            dearest[m] = max(dearest[m], max(float(rent[a]), buy[a] + float(run[a])) / rate)
    return np.where(dearest > 0.0, dearest, dearest.max(initial=1.0) or 1.0)


def _unserved(f: Frame, p: Prices) -> Floats:
    """Return the price of a request a second at the peak that nobody serves, for a period: more than serving it could cost.

    Beyond that it is what the request would earn, so that in a shortage those are left out who pay least.
    """
    listed = p.income * f.plan.demand.unserved_price_factor
    least = UNSERVED_FACTOR * unit_costs(f, p)
    return np.broadcast_to((listed + least[None])[:, :, None], (*listed.shape, len(f.days)))
