"""From a fleet file and a table of replicas to the arrays of plan/problem.py, with the map back.

Sites are the declared ones and, for each place of rent, one of its own. What a rack carries is replicas a rack times the
table's rate; what it draws is its full load at the peak PUE. A tenant may be served from where law lets it and where the
round trip is no longer than the one that the table took out of the promise. Limits of policy have prices that are always
higher than keeping to them where that is possible.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from datetime import date
from typing import Any

import numpy as np
import numpy.typing as npt

from baseload.app import plan_demand, plan_kinds, plan_prices, plan_rent, plan_said, plan_sites
from baseload.app.plan_map import Kind, PlanMap, PlanSite
from baseload.app.plan_prices import Frame
from baseload.app.plan_sites import SiteYears
from baseload.errors import RunError
from baseload.fleet import catalog, planning, resolve, supply
from baseload.fleet.check_plan import grid_zone
from baseload.fleet.check_service import may_serve
from baseload.fleet.load import Loaded
from baseload.fleet.model import Fleet
from baseload.fleet.planning import Plan
from baseload.plan.money import Prices
from baseload.plan.problem import Problem
from baseload.plan.table import ReplicaRow, ReplicaTable
from baseload.simulate.setup import _Rtt

Floats = npt.NDArray[np.float64]
Mask = npt.NDArray[np.bool_]
NETWORK_SLACK_MS = 1.0
WHOLE_BELOW = 100  # racks of a kind at a site, below which they are counted one by one
SHARED = ("packaging", "hbm")
KW_PER_MW = 1000.0
PRICES_OF_YEAR = 2026  # of the shipped prices
FAR_YEARS = 10  # beyond, a trend of prices says nothing any more
SURVIVE_FACTOR = (
    200.0  # of the dearest way to serve: a whole rack for little, and for the last quarter alone, costs less
)


def plan_problem(
    loaded: Loaded, table: ReplicaTable, *, quarters: int, today: date, seed: int = 0
) -> tuple[Problem, PlanMap]:
    """Return the planning problem of a fleet file over some quarters, and what its axes stand for."""
    plan = loaded.fleet.plan or Plan()
    days = tuple(planning.quarters_from(today, quarters))
    found = plan_rent.offers(loaded.fleet, plan)
    fleet = plan_rent.with_rent(loaded.fleet, found)
    asked = plan_demand.traffic(loaded, plan, seed)
    made = tuple(plan_kinds.kinds(loaded.fleet, plan, found))
    years = {
        name: plan_sites.site_years(fleet, name, days, loaded.base_folder, plan, today) for name in loaded.fleet.sites
    }
    rents = [name for name in fleet.sites if name not in loaded.fleet.sites]
    grid = years | {name: plan_sites.site_years(fleet, name, days, loaded.base_folder, plan) for name in rents}
    sites = tuple(_plan_sites(fleet, years, grid, _halls(loaded, plan)))
    phases, notes = plan_sites.site_phases(loaded.fleet, plan, today, days, seed)
    phases = plan_sites.by_hall(phases, {one.declared: _halls(loaded, plan) for one in sites})
    rows, each = _rows(table, made)
    f = Frame(
        fleet=fleet, plan=plan, today=today, days=days, asked=asked,
        load_ratio=plan_demand.load_ratio(plan, asked), sites=sites, kinds=made,
        terms=tuple(plan_rent.terms(found)), phases=tuple(phases), clients=tuple(plan_demand.clients(loaded.fleet)),
        rows=rows, replicas_per_rack=each,
        rack_kw=np.array([[plan_kinds.rack_kw(fleet.sites[one.declared], k, made) for k in made] for one in sites]),
    )  # fmt: skip
    cash = plan_prices.prices(f)
    problem, unit, dark, more = _problem(f, cash, table)
    idle = (dark * (cash.owned_space + cash.owned_upkeep) - cash.rented_already * cash.owned_upkeep).sum(axis=(0, 1))
    middle, begin = plan_prices.discounts(f)
    return problem, PlanMap(
        fleet=fleet, plan=plan, today=today, days=days, seed=seed, asked=asked, load_ratio=f.load_ratio, sites=sites,
        kinds=made, services=tuple(plan_demand.services(table)), clients=f.clients, phases=f.phases, terms=f.terms,
        rows=rows, replicas_per_rack=each, prices=cash, dark=dark, discount=middle, discount_begin=begin,
        money_unit=unit, sunk=float((idle * middle).sum()) * (1.0 - plan.tax_ratio),
        notes=(*_assumed(f, loaded), *notes, *more),
    )  # fmt: skip


def _halls(loaded: Loaded, plan: Plan) -> int:
    """Return the power halls that each declared site counts as: several for a fleet of one site alone."""
    return plan.survive.halls if len(loaded.fleet.sites) == 1 else 1


def _plan_sites(fleet: Fleet, years: dict[str, SiteYears], grid: dict[str, SiteYears], halls: int) -> list[PlanSite]:
    """Return the sites of the problem: rented ones, declared ones, or the halls of a declared one with equal shares."""
    made = []
    for name in fleet.sites:
        own = years.get(name)
        if own is None or halls == 1:
            made.append(PlanSite(name=name, declared=name, rented=own is None, years=own, grid=grid[name]))
            continue
        share = replace(
            own, usable_mw=own.usable_mw / halls, training_mw=own.training_mw / halls,
            billed_least_mw=own.billed_least_mw / halls,
        )  # fmt: skip
        for hall in range(halls):
            title = plan_sites.hall_name(name, hall)
            made.append(
                PlanSite(name=title, declared=name, rented=False, years=share, grid=share, hall=hall, halls=halls)
            )
    return made


def _rows(table: ReplicaTable, made: Sequence[Kind]) -> tuple[dict[tuple[int, int], ReplicaRow], Floats]:
    """Return the table's row for each kind and service, and whole replicas a rack; a share where one spans racks."""
    rows: dict[tuple[int, int], ReplicaRow] = {}
    each = np.zeros((len(made), len(table.services)))
    for a, kind in enumerate(made):
        for m, service in enumerate(table.services):
            row = table.lookup(service, kind.accelerator)
            if row is not None and row.carries_per_s > 0.0:
                rows[a, m] = row
                n = kind.per_rack / row.accelerators
                each[a, m] = float(int(n + 1e-9)) if n >= 1.0 else n
    return rows, each


def _problem(f: Frame, cash: Prices, table: ReplicaTable) -> tuple[Problem, float, Floats, list[str]]:
    S, A, M, T = f.n
    demand = _peak_demand(f, table)
    if demand.sum() <= 0.0:
        raise RunError("nobody asks for anything that the table of replicas knows; look at tenants and models")
    peak_pue = np.array([one.years.plant.pue_peak if one.years else 1.0 for one in f.sites])
    rack_mw = f.rack_kw * peak_pue[:, None] / KW_PER_MW
    rate = np.zeros((A, M))
    for (a, m), row in f.rows.items():
        rate[a, m] = f.replicas_per_rack[a, m] * row.carries_per_s
    place, why = _may_place(f)
    power = np.array([one.years.usable_mw if one.years else np.zeros(T) for one in f.sites])
    existing, dark, trimmed = _existing(f, rack_mw, power)
    floor, area = _floor(f)
    values = plan_prices.present_values(f, cash)
    physical = plan_prices.physical(f)
    unit = _money_unit(f, cash, demand)
    for key in values:
        values[key] = values[key] / unit
    supply_racks, shared_use, shared = _supply(f)
    group_names, group_of, share_max = _groups(f)
    arrays: dict[str, Any] = {**values, **physical, **_phase_arrays(f)}
    problem = Problem(
        name=f.fleet.name,
        sites=tuple(one.name for one in f.sites),
        kinds=tuple(one.name for one in f.kinds),
        services=table.services,
        clients=tuple(one.name for one in f.clients),
        periods=tuple(quarter(day) for day in f.days),
        phases=tuple(one.name for one in f.phases),
        rentals=tuple(one.name for one in f.terms),
        groups=group_names,
        limits=SHARED,
        demand=demand,
        allowed=allowed(f, table),
        may_place=place,
        rate=rate,
        rack_mw=rack_mw,
        rack_m2=area,
        existing=existing,
        lead=np.array([min(T, f.lead_periods(a)) for a in range(A)], np.int64),
        life=np.array([f.life_periods(a) for a in range(A)], np.int64),
        whole=_whole(f, rack_mw, power),
        power_mw=power,
        floor_m2=floor,
        **arrays,
        ratchet=np.array([one.years.ratchet if one.years else 0.0 for one in f.sites]),
        minimum_bill=np.zeros(S),
        billed_least=np.array([one.years.billed_least_mw if one.years else np.zeros(T) for one in f.sites]),
        supply=supply_racks,
        shared_use=shared_use,
        shared=shared,
        sign_max=_sign_max(f, cash, rate, demand),
        group_of=group_of,
        share_max=share_max,
        survive_ratio=np.full(M, f.plan.survive.ratio),
        host_min=None,
        cost_host=np.zeros((S, M, T)),
        spend_begin=np.broadcast_to((cash.begin / unit)[:, None], (len(f.phases), T)).copy(),
        spend_buy=(cash.buy_it + cash.buy_facility) / unit,
        capex_budget=_budget(f, f.plan.budgets.capex_by_year) / unit,
        carbon_budget=_budget(f, f.plan.budgets.carbon_t_by_year),
        water_budget=_budget(f, f.plan.budgets.water_m3_by_year),
        budget_span=_year_so_far(f.days),
        slack_price=_slack_prices(
            f, cash, rate, rack_mw, area, values["cost_unserved"] * (demand > 0.0), physical, unit, len(group_names)
        ),
    )
    return problem, unit, dark, [*why, *trimmed, *plan_said.beside(f, table, problem.allowed, demand)]


def _peak_demand(f: Frame, table: ReplicaTable) -> Floats:
    first, ends = planning.grows_from(f.plan, f.today), plan_demand.period_ends(f.days)
    return plan_demand.peak_demand(f.fleet, f.plan, f.asked, f.clients, table, first, ends)


def _phase_arrays(f: Frame) -> dict[str, Any]:
    """Return the arrays of phases and of kinds of contract."""
    T, P, K = len(f.days), len(f.phases), len(f.terms)
    return {
        "phase_site": np.array([[s.name for s in f.sites].index(one.site) for one in f.phases], np.int64).reshape(P),
        "phase_mw": np.array([one.usable_mw for one in f.phases]).reshape(P),
        "phase_paid": np.array([one.paid_mw for one in f.phases]).reshape(P),
        "phase_delay": np.array([one.periods for one in f.phases], np.int64).reshape(P),
        "phase_after": np.array([-1 if one.after is None else one.after for one in f.phases], np.int64).reshape(P),
        "begin_from": np.array([one.first_period for one in f.phases], np.int64).reshape(P),
        "begin_by": np.array([0 if one.begun else T for one in f.phases], np.int64).reshape(P),
        "term": np.array([one.term_periods for one in f.terms], np.int64).reshape(K),
        "useful": np.array([one.useful for one in f.terms]).reshape(K),
        "on_site": np.zeros(K, bool),
    }


def quarter(day: date) -> str:
    """Return a quarter's name by its first day.

    >>> quarter(date(2027, 4, 1))
    '2027-Q2'
    """
    return f"{day.year}-Q{(day.month + 2) // 3}"


# ---- law, latency, export --------------------------------------------------------------------------------


def allowed(f: Frame | PlanMap, table: ReplicaTable, opened: str = "") -> npt.NDArray[np.bool_]:
    """Return which site may serve which client for which service: law, and the round trip within the table's.

    In the country `opened` the law is taken to let everybody be served.
    """
    rtt, everyone = _Rtt(f.fleet), plan_demand.tenants(f.fleet)
    door = f.fleet.gateway.site or next(iter(f.fleet.sites))
    network = {
        m: max(row.network_ms for row in table.rows if row.service == name) for m, name in enumerate(table.services)
    }
    may = np.zeros((len(f.clients), len(f.sites), len(table.services)), bool)
    for r, client in enumerate(f.clients):
        tenant = everyone[client.tenant]
        way_ms = rtt.between(client.region, door) if client.region else 0.0
        names = [table.service_of(client.tenant, model) for model in f.fleet.models]
        called = [m for m, name in enumerate(table.services) if name in names]
        for s, site in enumerate(f.sites):
            here = opened and plan_rent.law_of(f.fleet, site.declared) == opened
            if not here and not may_serve(f.fleet, tenant, site.declared):
                continue
            ms = way_ms + rtt.between(door, site.declared)
            for m in called:
                may[r, s, m] = ms <= network[m] + NETWORK_SLACK_MS
    return may


def _may_place(f: Frame) -> tuple[npt.NDArray[np.bool_], list[str]]:
    S, A, _, _ = f.n
    may, why = np.zeros((S, A), bool), []
    buys = {resolve.accelerator_id(one.accelerator): one for one in plan_kinds.buys(f.fleet, f.plan)}
    offered = {
        (plan_rent.site_of(offer), resolve.accelerator_id(offer.accelerator))
        for term in f.terms
        for offer in term.offers
    }
    for s, site in enumerate(f.sites):
        for a, kind in enumerate(f.kinds):
            if site.rented:
                may[s, a] = kind.lease is None and (site.name, kind.accelerator) in offered
                continue
            order = plan_kinds.order_of(kind, buys)
            if order is None or (order.sites and site.declared not in order.sites):
                continue
            may[s, a], reason = plan_kinds.may_stand(f.fleet, site.declared, kind, f.days[0])
            why += [reason] if reason else []
    return may, why


# ---- capacity --------------------------------------------------------------------------------------------


def _existing(f: Frame, rack_mw: Floats, power: Floats) -> tuple[Floats, Floats, list[str]]:
    """Return racks that stand and are powered in the hottest design hour, and those that are not, which are said."""
    S, A, _, T = f.n
    there, dark, notes = np.zeros((S, A, T)), np.zeros((S, A, T)), []
    sure = power + _sure_power(f)
    for s, site in enumerate(f.sites):
        if site.rented:
            continue
        there[s] = plan_kinds.standing(f.fleet, site.declared, f.kinds, f.days)
        there[s] = (there[s] + site.halls - 1 - site.hall) // site.halls
        wanted = (there[s] * rack_mw[s][:, None]).sum(axis=0)
        short = wanted > sure[s] + 1e-9
        if short.any():
            t = int(np.argmax(short))
            share = np.divide(sure[s], wanted, out=np.ones(T), where=wanted > 0.0)
            before = float(there[s, :, t].sum())
            lit = np.where(short, np.floor(there[s] * share + 1e-9), there[s])
            dark[s], there[s] = there[s] - lit, lit
            notes.append(
                f"{site.name}: of {before:g} racks that stand free, {there[s, :, t].sum():g} find power in the hottest "
                f"design hour, after redundancy and curtailment (from {quarter(f.days[t])})"
            )
    return there, dark, notes


def _sure_power(f: Frame) -> Floats:
    """Return MW of phases that are under way, by site and period."""
    S, _, _, T = f.n
    more, names = np.zeros((S, T)), [one.name for one in f.sites]
    for one in f.phases:
        if one.begun and one.periods < T:
            more[names.index(one.site), one.periods :] += one.usable_mw
    return more


def _floor(f: Frame) -> tuple[Floats, Floats]:
    S, _, _, T = f.n
    area = np.array([one.area_m2 for one in f.kinds])
    floor = np.full((S, T), np.inf)
    for s, site in enumerate(f.sites):
        declared = f.fleet.sites[site.declared]
        if not site.rented and declared.floor_m2 is not None:
            held = sum(
                job.accelerators / rack.accelerators_per_rack * rack.area_m2
                for job in declared.training.values()
                for rack in list(declared.racks.values())[:1]
            )
            floor[s] = max(0.0, declared.floor_m2 - held) / site.halls
    return floor, area


def _whole(f: Frame, rack_mw: Floats, power: Floats) -> npt.NDArray[np.bool_]:
    """Return where racks are counted one by one: where power could ever carry few of them."""
    names = [one.name for one in f.sites]
    most = power.max(axis=1)
    for one in f.phases:
        most[names.index(one.site)] += one.usable_mw
    few = most[:, None] / np.maximum(rack_mw, 1e-12) < WHOLE_BELOW
    return np.asarray(few & ~np.array([one.rented for one in f.sites])[:, None])


def _supply(f: Frame) -> tuple[Floats, Floats, Floats]:
    _, A, _, T = f.n
    most = np.full((A, T), np.inf)
    buys = {resolve.accelerator_id(one.accelerator): one for one in plan_kinds.buys(f.fleet, f.plan)}
    for a, kind in enumerate(f.kinds):
        own = plan_kinds.order_of(kind, buys)
        for t, day in enumerate(f.days):
            quotas = [supply.quota_units(kind.accelerator, quarter(day)), own.most_per_quarter if own else None]
            units = min((one for one in quotas if one is not None), default=None)
            if units is not None:
                most[a, t] = units // kind.per_rack
        if not kind.can_buy:
            most[a] = 0.0
    use = np.array([[supply.shared_use(name, kind.accelerator) * kind.per_rack for kind in f.kinds] for name in SHARED])
    limit = np.array([[supply.shared_limit(name, quarter(day)) for day in f.days] for name in SHARED])
    return most, use, limit


def _sign_max(f: Frame, cash: Prices, rate: Floats, demand: Floats) -> Floats:
    """Return the most racks of an offer in force at once: its own limit, else twice what all demand would take."""
    S, A, _, _ = f.n
    most = np.zeros((S, A, len(f.terms)))
    peak = demand.sum(axis=0).max(axis=1)  # (M,)
    where = {one.name: s for s, one in enumerate(f.sites)}
    for k, term in enumerate(f.terms):
        for offer in term.offers:
            s = where[plan_rent.site_of(offer)]
            for a, kind in enumerate(f.kinds):
                other = kind.lease is not None or kind.accelerator != resolve.accelerator_id(offer.accelerator)
                if other or not np.isfinite(cash.rent[s, a, k, 0]):
                    continue
                need = np.divide(peak, rate[a], out=np.zeros(len(peak)), where=rate[a] > 0.0).sum()
                own = plan_rent.whole_most(offer)
                most[s, a, k] += 2.0 * np.ceil(need) + 1.0 if own is None else own / kind.per_rack
    return most


# ---- policy ----------------------------------------------------------------------------------------------


def _groups(f: Frame) -> tuple[tuple[str, ...], npt.NDArray[np.bool_], Floats]:
    S, A, _, _ = f.n
    names, masks, most = [], [], []
    shares = f.plan.shares
    site_keys = {
        "site": [one.name for one in f.sites],
        "grid_zone": [grid_zone(f.fleet.sites[one.declared], one.name) for one in f.sites],
        "jurisdiction": [plan_rent.law_of(f.fleet, one.declared) for one in f.sites],
    }
    for key, of in site_keys.items():
        limit: float = getattr(shares, key)
        for name in dict.fromkeys(of) if limit < 1.0 else ():
            names.append(f"{key.replace('_', ' ')} {name}")
            masks.append(np.repeat(np.array([one == name for one in of])[:, None], A, axis=1))
            most.append(limit)
    vendors = [catalog.accelerator(kind.accelerator).vendor for kind in f.kinds]
    for name in dict.fromkeys(vendors) if shares.vendor < 1.0 else ():
        names.append(f"vendor {name}")
        masks.append(np.repeat(np.array([one == name for one in vendors])[None], S, axis=0))
        most.append(shares.vendor)
    return tuple(names), np.array(masks, bool).reshape(len(names), S, A), np.array(most, float)


def _budget(f: Frame, by_year: dict[str, float]) -> Floats:
    """Return each year's budget at its last quarter, of a year in part as much of it; the last year named holds on."""
    years = sorted(by_year)
    most, so_far = np.full(len(f.days), np.inf), _year_so_far(f.days)
    for t, day in enumerate(f.days):
        named = [year for year in years if int(year) <= day.year]
        ends = t + 1 == len(f.days) or f.days[t + 1].year > day.year
        if named and ends:
            most[t] = by_year[named[-1]] * so_far[t] / 4.0
    return most


def _year_so_far(days: Sequence[date]) -> npt.NDArray[np.int64]:
    """Return how many quarters of its year have come by the end of each.

    >>> _year_so_far([date(2026, 10, 1), date(2027, 1, 1), date(2027, 4, 1)]).tolist()
    [1, 1, 2]
    """
    return np.array([sum(one.year == day.year and one <= day for one in days) for day in days], np.int64)


def _slack_prices(
    f: Frame, cash: Prices, rate: Floats, rack_mw: Floats, area: Floats, unserved: Floats,
    physical: dict[str, Floats], unit: float, n_groups: int,
) -> dict[str, Floats]:  # fmt: skip
    """Return what breaking a limit costs: more than leaving the demand unserved that it would carry."""
    S, _, _, T = f.n
    middle, _ = plan_prices.discounts(f)
    worth = unserved.max(axis=(0, 2))  # (M,) of a request a second
    rack = (rate * worth[None]).max(axis=1, initial=0.0)  # (A,) what a rack may serve for, a period
    per_mw = 2.0 * float((rack[None] / np.maximum(rack_mw, 1e-12)).max())
    per_m2 = 2.0 * float((rack / area).max())
    price = (cash.buy_it + cash.buy_facility).min(axis=(0, 2)) / unit
    can = np.array([one.can_buy for one in f.kinds]) & (price > 0.0)
    per_money = 2.0 * float((rack * f.rack_life_periods / np.maximum(price, 1e-12))[can].max(initial=1.0))
    tonnes = physical["carbon_owned"].mean(axis=(0, 2)) + physical["carbon_put"].max(axis=(0, 2, 3))
    cubic = physical["water_owned"].mean(axis=(0, 2)) + physical["water_put"].max(axis=(0, 2, 3))
    dearest = plan_prices.unit_costs(f, cash) / unit
    return {
        "short_power": np.full((S, T), per_mw),
        "short_floor": np.full((S, T), per_m2),
        "short_survive": SURVIVE_FACTOR * dearest[:, None] * middle[None],
        "over_share": np.full((n_groups, T), per_mw),
        "over_capex": np.full(T, min(1e3, max(2.0, per_money))),
        "over_carbon": np.full(T, 2.0 * float((rack / np.maximum(tonnes, 1e-9)).max())),
        "over_water": np.full(T, 2.0 * float((rack / np.maximum(cubic, 1e-9)).max())),
    }


def _money_unit(f: Frame, cash: Prices, demand: Floats) -> float:
    """Return a power of ten, so that the plan costs some hundreds to some hundred thousands of it."""
    year = 4.0 * float((demand.sum(axis=0).max(axis=1) * plan_prices.unit_costs(f, cash)).sum())
    return float(10.0 ** max(0, int(np.floor(np.log10(max(year, 1.0)))) - 3))


def _assumed(f: Frame, loaded: Loaded) -> list[str]:
    """Return what was assumed because the fleet file does not say it."""
    said, first = [], planning.grows_from(f.plan, f.today)
    start = f", the plan's start (with --date {f.today} too)" if first != f.today else ""
    if loaded.fleet.plan is None or not loaded.fleet.plan.demand.tenants:
        said.append(
            f"demand grows by {100.0 * f.plan.demand.growth_per_year:g} % a year from {first} on{start}"
            + (" (the default: write plan.demand.growth_per_year)" if loaded.fleet.plan is None else "")
        )
    else:
        said.append(f"demand grows from {first} on{start}, each tenant's at its own rate")
    said.append(
        f"peak {f.asked.peak_to_mean:.3g} times the mean rate ({f.asked.how}); mean load over the year "
        f"{100.0 * f.load_ratio:.0f} % of the peak"
    )
    guessed = sorted({one.accelerator for one in f.kinds if one.can_buy and one.lead_weeks is not None})
    if guessed:
        said.append(
            f"lead times and price curves of {', '.join(guessed)} are shipped figures unless declared (modelled)"
        )
    if any(one.lease for one in f.kinds) or any(one.term_periods > 1 for one in f.terms):
        said.append("what is leased or rented for a term is paid up to the horizon; months beyond it count nowhere")
    if f.days[-1].year - PRICES_OF_YEAR > FAR_YEARS:
        said.append(
            f"WARNING: the plan reaches to {f.days[-1].year}, and prices are known up to {PRICES_OF_YEAR}: what hardware, rent "
            f"and power cost more than {FAR_YEARS} years on is today's trend drawn out, no forecast"
        )
    return said
