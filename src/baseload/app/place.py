"""Where a workload should run: every site and accelerator, held against law, export, cooling, memory, latency and capacity.

The same rules decide as in the twin and in the gateway (`policies/may_run.py`, the export rules of `fleet/supply.py`); what a
replica carries is measured in the twin at the promise's percentile, with the round trip of that site. Ranked by the cost of a
million tokens in the way that the accelerators would be had: standing free, rented, leased or bought.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import date, timedelta
from math import ceil

import msgspec

from baseload.app import plan_demand, plan_kinds, plan_rent, plan_sites, replica_table
from baseload.app.plan_map import Kind
from baseload.errors import CatalogError, FleetError
from baseload.fleet import catalog, dates, resolve
from baseload.fleet.load import Loaded
from baseload.fleet.model import Fleet, Model, Site, Slo, Tenant
from baseload.fleet.planning import Plan, Rent
from baseload.fleet.typed import nearest
from baseload.formulas import money
from baseload.plan.table import ReplicaRow
from baseload.policies.may_run import may_run
from baseload.report.place_model import Obstacle, Place, PlaceReport
from baseload.report.site_power import plant_of
from baseload.simulate.setup import _Rtt
from baseload.units import HOURS_PER_MONTH, HOURS_PER_YEAR

NETWORK_STEPS = 20  # round trips count in steps of a twentieth of the TTFT promise, rounded up
KW_PER_MW = 1000.0


@dataclass(frozen=True, slots=True)
class _Ask:
    """The question, with all that every place needs."""

    loaded: Loaded
    fleet: Fleet  # with a site for each place of rent, and the model
    today: Fleet  # as it stands on the day
    plan: Plan
    day: date
    quoted: date  # day on which declared prices hold, from which they fall
    tenant_name: str
    tenant: Tenant
    model: str
    offers: tuple[Rent, ...]
    kinds: tuple[Kind, ...]
    bench: replica_table.Bench


def place(
    loaded: Loaded, *, tenant: str, model: str, day: date, seed: int = 0, today: date | None = None
) -> PlaceReport:
    """Return every place for a tenant's calls of a model, the best first, the excluded last with their reasons.

    Declared prices hold on the plan's first day, else `today`, else `day`, and fall from there as the plan's do.
    """
    ask = _asked(loaded, tenant, model, day, seed, today or day)
    made = [_place(ask, site, kind) for site in ask.fleet.sites for kind in _kinds_at(ask, site)]
    able = sorted(
        (one for one in made if not one.obstacles), key=lambda one: (one.cost_per_mtok or 0.0, one.network_ms, one.site)
    )
    ranked = [msgspec.structs.replace(one, rank=i + 1) for i, one in enumerate(able)]
    slo = ask.tenant.slo
    e2e = "" if slo.e2e_ms is None else f", whole answer {slo.e2e_ms:g} ms"
    return PlaceReport(
        fleet=loaded.fleet.name,
        currency=loaded.fleet.money.currency,
        day=str(day),
        tenant=tenant,
        model=ask.model,
        promise=f"TTFT {slo.ttft_ms:g} ms, TPOT {slo.tpot_ms:g} ms{e2e}, {100.0 * slo.attainment:g} % of requests",
        places=[*ranked, *(one for one in made if one.obstacles)],
        notes=_notes(ask, ranked),
    )


def _notes(ask: _Ask, ranked: Sequence[Place]) -> list[str]:
    notes = []
    if ask.tenant.models and ask.tenant.models.get(ask.model, 0.0) <= 0.0:
        notes.append(f"{ask.tenant_name} does not call {ask.model} today: lengths of all requests stand for its own")
    if any(one.way == "free" for one in ranked):
        notes.append("free: standing, powered and held by no replica or training job on that day; costs energy alone")
    if any(one.way == "buy" for one in ranked):
        notes.append("buy: energy, capital over the accelerators' life, space and upkeep, every hour at full rate")
    if any(one.way == "lease" for one in ranked):
        notes.append("lease: energy, the lease, building and space, every hour at full rate")
    if any(one.way == "rent" for one in ranked):
        notes.append("rent: list price or offer, every hour at full rate; energy is in the price, cooling not counted")
    if any(one.kind == "spot" for one in ask.offers):
        notes.append("spot: hours in which it was taken away and another starts are paid, and serve nobody")
    return notes


# ---- the question ----------------------------------------------------------------------------------------


def _asked(loaded: Loaded, tenant: str, model: str, day: date, seed: int, today: date) -> _Ask:
    """Return the question; raises FleetError at the line where a name is unknown."""
    everyone = plan_demand.tenants(loaded.fleet)
    if tenant not in everyone:
        raise FleetError(loaded.problem(("tenants",), f"there is no tenant `{tenant}`", nearest(tenant, everyone)))
    name, models = _model(loaded, model)
    plan = loaded.fleet.plan or Plan()
    offers = tuple(plan_rent.offers(loaded.fleet, plan))
    fleet = msgspec.structs.replace(plan_rent.with_rent(loaded.fleet, list(offers)), models=models)
    kinds = tuple(plan_kinds.kinds(loaded.fleet, plan, list(offers)))
    bench = replica_table.bench(loaded, fleet, seed=seed)
    return _Ask(
        loaded, fleet, dates.on(fleet, day), plan, day, plan.start or today, tenant, everyone[tenant], name, offers,
        kinds, bench,
    )  # fmt: skip


def _model(loaded: Loaded, model: str) -> tuple[str, dict[str, Model]]:
    """Return the name of a model in the fleet, and the fleet's models with it: by its name, its catalogue's, or new."""
    known = dict(loaded.fleet.models)
    if model in known:
        return model, known
    try:
        wanted = catalog.model(model).model_id
    except CatalogError:
        names = [*known, *catalog.models()]
        raise FleetError(
            loaded.problem(("models",), f"there is no model `{model}`, here or in the catalogue", nearest(model, names))
        ) from None
    for name, one in known.items():
        if one.catalog is not None and catalog.model(one.catalog).model_id == wanted:
            return name, known
    return model, {**known, model: Model(catalog=model)}


def _kinds_at(ask: _Ask, site: str) -> list[Kind]:
    """Return the kinds that are offered for rent at a site, or for a declared one all that stand or may be bought anywhere."""
    rented = {resolve.accelerator_id(one.accelerator) for one in ask.offers if plan_rent.site_of(one) == site}
    seen: dict[str, Kind] = {}
    for kind in ask.kinds:
        here = kind.accelerator in rented if site not in ask.loaded.fleet.sites else _owned(ask, site, kind)
        if here:
            seen.setdefault(kind.accelerator, kind)
    return list(seen.values())


def _owned(ask: _Ask, site: str, kind: Kind) -> bool:
    return kind.can_buy or kind.accelerator in resolve.rack_accelerators(ask.fleet.sites[site])


# ---- one place -------------------------------------------------------------------------------------------


def _place(ask: _Ask, site: str, kind: Kind) -> Place:
    facts = resolve.site_facts(ask.fleet, site)
    network_ms = _network_ms(ask, site)
    obstacles = [*_law(ask, site), *_goods(ask, site, kind)]
    row = None
    if not obstacles:
        row = _row(ask, kind, network_ms)
        obstacles += _speed(ask, kind, row, network_ms)
    way, from_day, free, more = _capacity(ask, site, kind, row)
    if not obstacles:
        obstacles += more
    base = Place(
        site=site, accelerator=kind.accelerator, jurisdiction=facts.jurisdiction,
        operator_jurisdiction=facts.operator_jurisdiction, way=way if not obstacles else "none",
        from_day=None if from_day is None else str(from_day), rank=None, obstacles=obstacles, network_ms=network_ms,
        free_accelerators=free, replicas_there=_replicas_there(ask, site, kind),
    )  # fmt: skip
    return base if row is None or row.requests_per_s <= 0.0 else _priced(ask, base, kind, row, way)


def _law(ask: _Ask, site: str) -> list[Obstacle]:
    """Return what law says against a site: the very rule that the gateway asks, for each half of it."""
    facts, tenant, found = resolve.site_facts(ask.fleet, site), ask.tenant, []

    def allowed(residency: list[str], sovereignty: list[str]) -> bool:
        return may_run(
            residency, sovereignty, jurisdiction=facts.jurisdiction, operator_jurisdiction=facts.operator_jurisdiction,
            member=resolve.jurisdiction_allows,
        )  # fmt: skip

    if not allowed(tenant.residency, []):
        what = f"data would sit in {facts.jurisdiction}, and may only in {', '.join(tenant.residency)}"
        found.append(Obstacle(rule="residency", what=what, mend=f"add {facts.jurisdiction} to their residency"))
    if not allowed([], tenant.sovereignty):
        law = facts.operator_jurisdiction
        what = f"its operator is under the law of {law}, and may only be of {', '.join(tenant.sovereignty)}"
        found.append(Obstacle(rule="sovereignty", what=what, mend=f"another operator there, or add {law}"))
    return found


def _goods(ask: _Ask, site: str, kind: Kind) -> list[Obstacle]:
    """Return what cooling and export rules say against accelerators at a declared site; what stands there has passed."""
    if site not in ask.loaded.fleet.sites or resolve.rack_accelerators(ask.today.sites[site]).get(kind.accelerator):
        return []
    able, why = plan_kinds.may_stand(ask.fleet, site, kind, ask.day)
    if able:
        return []
    if "liquid" in why:
        return [Obstacle(rule="cooling", what=why, mend="direct_to_chip cooling there")]
    return [Obstacle(rule="export", what=why, mend="a licence, or another accelerator")]


def _row(ask: _Ask, kind: Kind, network_ms: float) -> ReplicaRow | None:
    slo = ask.tenant.slo
    step = slo.ttft_ms / NETWORK_STEPS
    return ask.bench.row(ask.model, slo, (ask.tenant_name,), kind.accelerator, ceil(network_ms / step - 1e-9) * step)


def _speed(ask: _Ask, kind: Kind, row: ReplicaRow | None, network_ms: float) -> list[Obstacle]:
    slo: Slo = ask.tenant.slo
    if row is None:
        what = f"{ask.model} does not fit into {kind.accelerator}, even into the largest group of them"
        return [Obstacle(rule="memory", what=what, mend="a smaller precision, or a larger accelerator")]
    if row.requests_per_s > 0.0:
        return []
    if network_ms >= 0.9 * slo.ttft_ms:
        what = f"the round trip takes {network_ms:.0f} of {slo.ttft_ms:g} ms"
        return [Obstacle(rule="latency", what=what, mend="a gateway or site nearer to the users, or a longer ttft_ms")]
    what = f"even at no load fewer than {100.0 * slo.attainment:g} % of requests keep the promise"
    return [Obstacle(rule="latency", what=what, mend="a faster accelerator, more tp, or a wider promise")]


def _network_ms(ask: _Ask, site: str) -> float:
    """Return the round trip of the tenant's farthest users, through the gateway."""
    rtt, door = _Rtt(ask.fleet), ask.fleet.gateway.site or next(iter(ask.fleet.sites))
    mine = [one.region for one in plan_demand.clients(ask.fleet) if one.tenant == ask.tenant_name and one.region]
    return max((rtt.between(region, door) for region in mine or ask.fleet.regions), default=0.0) + rtt.between(
        door, site
    )


# ---- capacity --------------------------------------------------------------------------------------------


def _capacity(ask: _Ask, site: str, kind: Kind, row: ReplicaRow | None) -> tuple[str, date | None, int, list[Obstacle]]:
    """Return the way to have a replica's accelerators, from when, how many stand free, and what is against it."""
    need = 1 if row is None else row.accelerators
    if site not in ask.loaded.fleet.sites:
        most = [plan_rent.whole_most(one) for one in _offers(ask, site, kind)]
        if most and None not in most and max(one or 0 for one in most) < need:
            what = f"the offer has {max(one or 0 for one in most)}, and one replica takes {need}"
            return "rent", None, 0, [Obstacle(rule="capacity", what=what, mend="a larger offer")]
        return "rent", ask.day, 0, []
    free = free_accelerators(ask.today, site, kind.accelerator, ask.day)
    if free >= need:
        return "free", ask.day, free, []
    later = _free_later(ask, site, kind, need)
    if later is not None:
        return "free", later, free, []
    buys = {resolve.accelerator_id(one.accelerator): one for one in plan_kinds.buys(ask.loaded.fleet, ask.plan)}
    buy = buys.get(kind.accelerator)
    may, why = plan_kinds.may_stand(ask.fleet, site, kind, ask.day)
    if buy is not None and kind.lead_weeks is not None and may and (not buy.sites or site in buy.sites):
        return "buy", ask.day + timedelta(weeks=kind.lead_weeks), free, []
    leased = _lease(ask, site, kind)
    if leased is not None and leased.lead_weeks is not None and may:
        return "lease", ask.day + timedelta(weeks=leased.lead_weeks), free, []
    what = f"{free} accelerators are free, and one replica takes {need}"
    mend = why or f"fewer replicas of others there, or {kind.accelerator} under plan.buy for {site}"
    return "none", None, free, [Obstacle(rule="capacity", what=what, mend=mend)]


def _offers(ask: _Ask, site: str, kind: Kind) -> list[Rent]:
    """Return the offers of an accelerator in a place of rent."""
    return [
        one
        for one in ask.offers
        if plan_rent.site_of(one) == site and resolve.accelerator_id(one.accelerator) == kind.accelerator
    ]


def _lease(ask: _Ask, site: str, kind: Kind) -> Kind | None:
    """Return the cheapest lease of an accelerator for a site; None where there is none."""
    offered = [
        one
        for one in ask.kinds
        if one.lease and one.accelerator == kind.accelerator and (not one.lease.sites or site in one.lease.sites)
    ]
    return min(offered, key=lambda one: one.lease.price_per_accelerator_month if one.lease else 0.0, default=None)


def free_accelerators(fleet: Fleet, site_name: str, kind: str, day: date) -> int:
    """Return the accelerators of a kind that stand, are powered, and are held by no replica or job, on the day of `fleet`."""
    site = fleet.sites[site_name]
    there = resolve.rack_accelerators(site).get(kind, 0)
    held = sum(job.accelerators for job in site.training.values() if resolve.accelerator_id(job.accelerator) == kind)
    for one in fleet.deployments.values():
        replicas = one.sites.get(site_name)
        if replicas is not None and resolve.accelerator_id(one.accelerator) == kind:
            held += max(replicas.min, replicas.max or 0) * resolve.replica_accelerators(one)
    return max(0, int(there * _powered_ratio(fleet, site_name, site, day)) - held)


def _powered_ratio(fleet: Fleet, name: str, site: Site, day: date) -> float:
    """Return the share of the racks that the site can power at full load in its hottest hour."""
    if not (site.grid or site.contracts) or not site.racks:
        return 1.0
    plant = plant_of(fleet, name, day)
    limited_kw = plan_sites.cap_mw(site, plant.pue_peak) * KW_PER_MW / plant.pue_peak
    return min(1.0, min(plant.coolable_it_kw, limited_kw) / plant.racked_it_kw)


def _free_later(ask: _Ask, site: str, kind: Kind, need: int) -> date | None:
    """Return the first later day on which enough stand free, from what the file declares already."""
    days = set(dates.milestones(ask.fleet.sites[site]))
    days |= {one.until for one in ask.fleet.deployments.values() if one.until is not None}
    for day in sorted(one for one in days if one > ask.day):
        if free_accelerators(dates.on(ask.fleet, day), site, kind.accelerator, day) >= need:
            return day
    return None


def _replicas_there(ask: _Ask, site: str, kind: Kind) -> int:
    return sum(
        one.sites[site].min
        for one in ask.today.deployments.values()
        if one.model == ask.model and site in one.sites and resolve.accelerator_id(one.accelerator) == kind.accelerator
    )


# ---- money, energy, carbon -------------------------------------------------------------------------------


def _priced(ask: _Ask, base: Place, kind: Kind, row: ReplicaRow, way: str) -> Place:
    """Return the place with what a million tokens costs and emits there."""
    site, name = ask.fleet.sites[base.site], base.site
    years = plan_sites.site_years(ask.fleet, name, [ask.day], ask.loaded.base_folder, ask.plan)
    tokens_per_s = row.requests_per_s * (row.input_tokens + row.output_tokens)
    energy_mwh_h = row.power_kw_busy / KW_PER_MW  # of IT, in an hour
    beyond = max(0.0, row.power_kw_busy - site.parked_power_ratio * row.power_kw_idle) / KW_PER_MW
    rate = float(years.energy_cost_per_mwh[0])
    declared = name in ask.loaded.fleet.sites
    marginal = money.cost_per_million_tokens(beyond * rate, tokens_per_s) if declared else None
    owned = None
    had = _lease(ask, name, kind) if way == "lease" else kind
    if declared and had is not None and had.can_buy:
        owned = money.cost_per_million_tokens(_owned_per_hour(ask, site, had, row) + energy_mwh_h * rate, tokens_per_s)
    rents = [  # spot is paid in the hours, too, in which it was taken away and another starts
        plan_rent.price_per_hour(one, ask.fleet) / plan_rent.useful_ratio(one) * row.accelerators
        for one in _offers(ask, name, kind)
        if (most := plan_rent.whole_most(one)) is None or most >= row.accelerators
    ]
    rented = money.cost_per_million_tokens(min(rents), tokens_per_s) if rents else None
    mwh_per_mtok = energy_mwh_h / (tokens_per_s * 3600.0 / 1e6)
    parallel = [f"{key}{getattr(row, key)}" for key in ("tp", "pp", "ep") if getattr(row, key) > 1]
    return msgspec.structs.replace(
        base,
        settings=" ".join([row.precision, *parallel]),
        accelerators=row.accelerators,
        requests_per_s=row.requests_per_s,
        free_requests_per_s=base.free_accelerators // row.accelerators * row.requests_per_s,
        cost_per_mtok={"free": marginal, "rent": rented, "buy": owned, "lease": owned}.get(way),
        marginal_per_mtok=marginal,
        owned_per_mtok=owned,
        rented_per_mtok=rented,
        energy_wh_per_mtok=mwh_per_mtok * 1e6 * float(years.mean_pue[0]),
        carbon_g_per_mtok=mwh_per_mtok * float(years.carbon_t_per_mwh[0]) * 1e6,
        how=row.how,
    )


def _owned_per_hour(ask: _Ask, site: Site, kind: Kind, row: ReplicaRow) -> float:
    """Return what a replica's accelerators cost an hour beside energy, bought or leased: capital, building, space, upkeep."""
    m = ask.fleet.money
    buys = {resolve.accelerator_id(one.accelerator): one for one in plan_kinds.buys(ask.loaded.fleet, ask.plan)}
    buy = buys.get(kind.accelerator)
    price = 0.0 if kind.lease else plan_kinds.unit_price(kind, buy, ask.fleet, ask.quoted, ask.day)
    leased = kind.lease.price_per_accelerator_month / HOURS_PER_MONTH if kind.lease else 0.0
    rack_kw = plan_kinds.rack_kw(site, kind, ask.kinds) / kind.per_rack
    capital = money.owned_cost_per_hour(price, m.wacc, m.accelerator_life_years)
    building = money.owned_cost_per_hour(site.facility_capex_per_kw * rack_kw, m.wacc, m.facility_life_years)
    space = site.colocation_per_kw_month * rack_kw / HOURS_PER_MONTH
    upkeep = price * m.maintenance_ratio_per_year / HOURS_PER_YEAR
    return row.accelerators * (capital + leased + building + space + upkeep)
