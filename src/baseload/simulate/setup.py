"""From the fleet file to the twin: names become indices, dates become what stands, law becomes masks.

The one place where a Fleet is read for the twin. Engines in numbers are `engines.py`, arrays are `world.py`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from datetime import date, timedelta
from pathlib import Path

import numpy as np
import numpy.typing as npt

from baseload import policies
from baseload.errors import FleetError, Problem
from baseload.fleet import catalog, dates
from baseload.fleet.model import Fleet, Site, Tenant
from baseload.fleet.resolve import (
    HourlySeries,
    hour_of_year,
    hourly,
    jurisdiction_allows,
    liquid_share,
    rack_accelerators,
    racks_power_mw,
    region_location,
    server_size,
    site_facts,
)
from baseload.formulas import cooling
from baseload.formulas.distance import great_circle_km, rtt_ms
from baseload.policies.may_run import may_run
from baseload.ports import BASES
from baseload.simulate import state as st
from baseload.simulate.engines import DeployedEngine, deployed_engine, joules_per_token
from baseload.simulate.outages import down_ns, schedule, stream_of
from baseload.simulate.training import TrainingRun, simulate_training
from baseload.simulate.world import PoolSpec, TwinSpec
from baseload.units import HOURS_PER_MONTH

Floats = npt.NDArray[np.float64]
MOST_BINS = 1500
LEAST_BIN_S = 10.0
DEFAULT_DURATION_S = 3600.0
LEAST_TICK_S = 0.001
MOST_TICKS = 100_000_000  # of one kind in a run: about an hour of computing
ANYONE = "anyone"
EVERYWHERE = "everywhere"


@dataclass(frozen=True, slots=True, kw_only=True)
class SiteHours:
    """What a site's hours cost: series by hour of the year."""

    price_per_mwh: HourlySeries
    carbon_g_per_kwh: HourlySeries
    wetbulb_c: HourlySeries
    plant: cooling.Plant
    fixed_pue: float | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Twin:
    """A fleet ready to run, with the names behind its indices."""

    spec: TwinSpec
    engines: tuple[DeployedEngine, ...]
    tenants: tuple[str, ...]
    regions: tuple[str, ...]
    models: tuple[str, ...]
    deployments: tuple[str, ...]
    sites: tuple[str, ...]
    pool_names: tuple[tuple[str, str], ...]  # (deployment, site)
    hours: tuple[SiteHours, ...]  # by site
    start_hour: int  # of the year
    training: Mapping[tuple[str, str], TrainingRun]  # (site, job)
    training_kw: Floats  # (site, bin) of the jobs alone, were the sites never down
    parked_w: Floats  # (site,) what all accelerators of a site would draw if no replica or job ran on them
    rtt_basis: Mapping[tuple[str, str], str]
    tenant_records: Mapping[str, Tenant]


def describe(
    fleet: Fleet,
    *,
    base_folder: Path,
    day: date | None = None,
    start_s: float = 0.0,
    duration_s: float | None = None,
    chunk_tokens: int = 0,
    seed: int = 0,
    stepping: bool = False,
    closed_users: int = 0,
    think_s: float = 0.0,
    mean_output_tokens: float = 256.0,
) -> Twin:
    """Return the twin of the fleet as it stands on `day` (the file's start where absent), `start_s` into the run."""
    day = day or dates.run_day(fleet)
    start_hour = hour_of_year(day, fleet.demand.start_hour_utc) + int(start_s // 3600.0)
    day += timedelta(days=int((fleet.demand.start_hour_utc * 3600.0 + start_s) // 86_400.0))
    fleet = dates.on(fleet, day)
    length_s = duration_s or DEFAULT_DURATION_S
    bin_s = max(LEAST_BIN_S, float(np.ceil(length_s / MOST_BINS / LEAST_BIN_S)) * LEAST_BIN_S)
    bins = int(length_s * 1.25 // bin_s) + 8
    tenants: Mapping[str, Tenant] = fleet.tenants or {ANYONE: Tenant()}
    sites, models = tuple(fleet.sites), tuple(fleet.models)
    regions = tuple(fleet.regions) or (EVERYWHERE,)
    engines, pools, pool_names = _pools(fleet, models, sites, chunk_tokens)
    hours = tuple(site_hours(fleet, name, base_folder) for name in sites)
    training = _training(fleet, sites, bin_s=bin_s, bins=bins, seed=seed)
    training_kw = np.array(
        [sum((run.power_kw for (where, _), run in training.items() if where == site), np.zeros(bins)) for site in sites]
    )
    parked_w = np.array([_parked_w(fleet.sites[name]) for name in sites])
    rtt = _Rtt(fleet)
    door = fleet.gateway.site or sites[0]
    policy = fleet.policy
    route = policies.ROUTE.get(policy.route, policies.ROUTE_CUSTOM)
    admit = policies.ADMIT.get(policy.admit, policies.ADMIT_CUSTOM)
    scrapes = route in policies.READS_SCRAPE or admit in (1, 3, policies.ADMIT_CUSTOM)  # these read the queues
    _require_few_ticks("observe_every_s", policy.observe_every_s, length_s, used=scrapes)
    _require_few_ticks("control_every_s", policy.control_every_s, length_s, used=policy.scale != "fixed")
    groups, outages = _outages(fleet, pools, sites, length_s, seed)
    month_ratio = length_s / 3600.0 / HOURS_PER_MONTH
    spec = TwinSpec(
        engines=tuple(engine.spec for engine in engines),
        pools=tuple(pools),
        one_way_s=np.array([rtt.between(door, site) / 2000.0 for site in sites]),
        region_rtt_s=np.array([rtt.between(region, door) / 1000.0 if fleet.regions else 0.0 for region in regions]),
        may=_may(fleet, tenants, models, pools, sites, engines),
        slo=np.array([[t.slo.ttft_ms / 1000.0, t.slo.tpot_ms / 1000.0] for t in tenants.values()]),
        priority=np.array([t.priority for t in tenants.values()], np.int64),
        prices=np.array([_prices(t) for t in tenants.values()]),
        budget=np.array([np.inf if t.budget_per_month is None else t.budget_per_month * month_ratio
                         for t in tenants.values()]),
        limit_kw=np.array([_limit_kw(fleet.sites[name], hours[i], day, start_hour, bin_s, bins, fleet, name, start_s)
                           for i, name in enumerate(sites)]),
        # A site that is down draws nothing.
        training_kw=(training_kw + parked_w[:, None] / 1000.0) * _up_ratio(outages, len(groups), len(sites), bin_s, bins),
        parked_ratio=np.array([fleet.sites[name].parked_power_ratio for name in sites]),
        outages=outages,
        groups=tuple(groups),
        route=route,
        admit=admit,
        scale=policies.SCALE.get(policy.scale, policies.SCALE_CUSTOM),
        cap=policies.CAP.get(policy.cap, policies.CAP_CUSTOM),
        hard_cap=policy.cap in policies.CAPS_EACH_REPLICA,
        scrapes=scrapes,
        observe_every_s=policy.observe_every_s,
        control_every_s=policy.control_every_s,
        detect_s=policy.detect_s,
        retries=policy.retries,
        max_wait_s=policy.max_wait_s or 0.0,
        tunables=(policy.load_guard, policy.admit_factor, policy.target_utilisation, policy.scale_down_s),
        predicted_output_tokens=mean_output_tokens,
        stepping=stepping,
        bin_s=bin_s,
        bins=bins,
        closed_users=closed_users, think_s=think_s, seed=seed,
    )  # fmt: skip
    return Twin(
        spec=spec, engines=tuple(engines), tenants=tuple(tenants), regions=regions, models=models,
        deployments=tuple(engine.name for engine in engines), sites=sites, pool_names=tuple(pool_names), hours=hours,
        start_hour=start_hour, training=training, training_kw=training_kw, parked_w=parked_w,
        rtt_basis=rtt.basis, tenant_records=tenants,
    )  # fmt: skip


def _up_ratio(outages: npt.NDArray[np.int64], n_groups: int, n_sites: int, bin_s: float, bins: int) -> Floats:
    """Return (site, bin) the share of each bin in which a site is not down as a whole; sites are the last groups."""
    edges_ns = np.rint(np.arange(bins + 1) * bin_s * 1e9).astype(np.int64)
    first = n_groups - n_sites
    return np.array([1.0 - down_ns(outages, first + i, edges_ns) / np.diff(edges_ns) for i in range(n_sites)])


def _training(
    fleet: Fleet, sites: tuple[str, ...], *, bin_s: float, bins: int, seed: int
) -> dict[tuple[str, str], TrainingRun]:
    """Return how each training job fares, by site and name."""
    return {
        (site, name): simulate_training(
            job,
            duration_s=bins * bin_s,
            bin_s=bin_s,
            bins=bins,
            seed=seed,
            stream=stream_of(site, name),
            key=f"sites.{site}.training.{name}",
        )
        for site in sites
        for name, job in fleet.sites[site].training.items()
    }


def _require_few_ticks(key: str, every_s: float, length_s: float, *, used: bool) -> None:
    """Refuse an interval that no run would ever get through."""
    least_s = max(LEAST_TICK_S, length_s / MOST_TICKS)
    if every_s < (least_s if used else LEAST_TICK_S):
        what = f"{every_s:g} s would be {length_s / every_s:,.0f} times in a run of {length_s:,.0f} s"
        raise FleetError(Problem(key=f"policy.{key}", what=what, mend=f"write at least {least_s:g}"))


def site_hours(fleet: Fleet, name: str, base_folder: Path) -> SiteHours:
    """Return a site's hourly price, carbon, weather, and its cooling plant."""
    site = fleet.sites[name]
    key = f"sites.{name}"
    plant = cooling.PLANTS[site.cooling.type]
    plant = cooling.with_liquid_share(plant, liquid_share(site, plant.liquid_share))
    plant = cooling.with_chain_efficiency(plant, site.chain_efficiency)
    return SiteHours(
        price_per_mwh=_price(fleet, site, key, base_folder),
        carbon_g_per_kwh=hourly(
            site.carbon_g_per_kwh, place=site.place, kind="carbon_g_per_kwh", base_folder=base_folder,
            key=f"{key}.carbon_g_per_kwh",
        ),
        wetbulb_c=hourly(
            site.cooling.wetbulb_c, place=site.place, kind="wetbulb_c", base_folder=base_folder,
            key=f"{key}.cooling.wetbulb_c",
        ),
        plant=plant,
        fixed_pue=site.cooling.pue,
    )  # fmt: skip


def _price(fleet: Fleet, site: Site, key: str, base_folder: Path) -> HourlySeries:
    """Return what a MWh costs each hour: the contracts in force share the draw by their MW, as in the report."""
    found = [
        hourly(
            contract.price_per_mwh if contract else None,
            place=site.place,
            kind="price_per_mwh",
            base_folder=base_folder,
            usd_rate=fleet.money.usd_rate,
            key=f"{key}.contracts.{i}.price_per_mwh",
        )
        for i, contract in enumerate(site.contracts or [None])
    ]
    if len(found) == 1:
        return found[0]
    hours = np.arange(8760)
    share = [contract.power_mw / sum(c.power_mw for c in site.contracts) for contract in site.contracts]
    values = sum((part * _series(one, hours) for part, one in zip(share, found, strict=True)), np.zeros(8760))
    trusted_least = max(found, key=lambda one: BASES.index(one.basis) if one.basis in BASES else len(BASES))
    source = "; ".join(dict.fromkeys(one.source for one in found))
    return HourlySeries(values=values.tolist(), year=found[0].year, basis=trusted_least.basis, source=source)


def each_hour(twin: Twin) -> tuple[Floats, Floats]:
    """Return (hour, pool) marginal cost per million tokens and grams of CO2 per million tokens, for a year ahead."""
    joules = np.array([joules_per_token(engine) for engine in twin.engines])
    n = len(twin.spec.pools)
    span = np.arange(8760) + twin.start_hour
    cost, carbon = np.zeros((8760, n)), np.zeros((8760, n))
    for p, pool in enumerate(twin.spec.pools):
        hours = twin.hours[pool.site]
        pue = hours.fixed_pue or np.asarray(cooling.pue(_series(hours.wetbulb_c, span), 1.0, hours.plant))
        kwh_per_mtok = joules[pool.deployment] / 3.6 * pue
        cost[:, p] = kwh_per_mtok * _series(hours.price_per_mwh, span) / 1000.0
        carbon[:, p] = kwh_per_mtok * _series(hours.carbon_g_per_kwh, span)
    return cost, carbon


def _parked_w(site: Site) -> float:
    """Return what a site's accelerators draw, in watts, while neither a replica nor a job runs on any of them."""
    counts = {catalog.accelerator(name).accelerator_id: n for name, n in rack_accelerators(site).items()}
    for job in site.training.values():
        kind = catalog.accelerator(job.accelerator).accelerator_id
        counts[kind] = counts.get(kind, 0) - job.accelerators
    idle_w = 0.0
    for name, n in counts.items():
        known = catalog.accelerator(name)
        idle_w += max(0, n) * (known.idle_w + known.server_idle_other_w)
    return idle_w * site.parked_power_ratio


def _series(series: HourlySeries, hours: npt.NDArray[np.int64]) -> Floats:
    values = np.asarray(series.values, np.float64)
    return values[hours % len(values)]


def _prices(tenant: Tenant) -> tuple[float, float, float]:
    price = tenant.price
    cached = price.input_per_mtok if price.cached_per_mtok is None else price.cached_per_mtok
    return price.input_per_mtok / 1e6, cached / 1e6, price.output_per_mtok / 1e6


def _pools(
    fleet: Fleet, models: tuple[str, ...], sites: tuple[str, ...], chunk_tokens: int
) -> tuple[list[DeployedEngine], list[PoolSpec], list[tuple[str, str]]]:
    engines: list[DeployedEngine] = []
    pools: list[PoolSpec] = []
    names: list[tuple[str, str]] = []
    for name, deployment in fleet.deployments.items():
        engine = deployed_engine(fleet, name, model_i=models.index(deployment.model), chunk_tokens=chunk_tokens)
        for site, replicas in deployment.sites.items():
            most = replicas.min if replicas.max is None or fleet.policy.scale == "fixed" else replicas.max
            if most == 0:
                continue
            pools.append(
                PoolSpec(deployment=len(engines), site=sites.index(site), n_min=min(replicas.min, most), n_max=most)
            )
            names.append((name, site))
        engines.append(engine)
    if not pools:
        raise FleetError(
            Problem(
                key="deployments", what="nothing is deployed on this day", mend="check start and until, and replicas"
            )
        )
    # A model has one context limit: the shortest KV cache among its replicas would otherwise hold what it cannot.
    return engines, pools, names


def _may(
    fleet: Fleet,
    tenants: Mapping[str, Tenant],
    models: tuple[str, ...],
    pools: list[PoolSpec],
    sites: tuple[str, ...],
    engines: list[DeployedEngine],
) -> npt.NDArray[np.uint8]:
    facts = [site_facts(fleet, name) for name in sites]
    may = np.zeros((len(tenants), len(models), len(pools)), np.uint8)
    for t, tenant in enumerate(tenants.values()):
        for p, pool in enumerate(pools):
            fact = facts[pool.site]
            if may_run(
                tenant.residency,
                tenant.sovereignty,
                jurisdiction=fact.jurisdiction,
                operator_jurisdiction=fact.operator_jurisdiction,
                member=jurisdiction_allows,
            ):
                may[t, engines[pool.deployment].spec.model_i, p] = 1
    return may


class _Rtt:
    """Round trips between named sites and regions: declared, measured, or from distance."""

    def __init__(self, fleet: Fleet) -> None:
        self.fleet = fleet
        self.basis: dict[tuple[str, str], str] = {}
        self.declared = {frozenset(link.between): link.rtt_ms for link in fleet.links if link.rtt_ms is not None}

    def between(self, a: str, b: str) -> float:
        """Return milliseconds there and back."""
        if a == b:
            return 0.0
        declared = self.declared.get(frozenset((a, b)))
        if declared is not None:
            self.basis[a, b] = "declared"
            return declared
        places = self._place(a), self._place(b)
        if places[0] is not None and places[1] is not None:
            if places[0] == places[1]:
                self.basis[a, b] = "modelled"
                return rtt_ms(1.0)
            measured = catalog.rtt_ms(places[0], places[1])
            if measured is not None:
                self.basis[a, b] = measured[1]
                return measured[0]
        self.basis[a, b] = "modelled"
        return rtt_ms(great_circle_km(*self._where(a), *self._where(b)))

    def _place(self, name: str) -> str | None:
        node = self.fleet.sites.get(name) or self.fleet.regions[name]
        return None if node.lat is not None or node.lon is not None else node.place

    def _where(self, name: str) -> tuple[float, float]:
        if name in self.fleet.sites:
            facts = site_facts(self.fleet, name)
            return facts.lat, facts.lon
        lat, lon, _ = region_location(self.fleet, name)
        return lat, lon


def _limit_kw(
    site: Site, hours: SiteHours, day: date, start_hour: int, bin_s: float, bins: int, fleet: Fleet, name: str,
    start_s: float = 0.0,
) -> Floats:  # fmt: skip
    """Return the IT kW that may be drawn in each bin: energised and contracted power, redundancy, cooling, limits."""
    starts_s = np.arange(bins) * bin_s
    design_c = site_facts(fleet, name).design_wetbulb_c
    peak = hours.fixed_pue or cooling.pue_peak(design_c, hours.plant)
    drawable_mw = dates.drawable_mw(site, day)
    cooling_kw = np.inf if site.cooling.capacity_mw is None else site.cooling.capacity_mw * 1000.0
    if drawable_mw > 0.0:
        flat = cooling.usable_it_kw(drawable_mw * 1000.0, peak, site.redundancy, site.power_modules, cooling_kw)
    else:
        flat = cooling_kw if not site.grid and not site.contracts else 0.0
    if any(rack.rack_kw is not None for rack in site.racks.values()):
        flat = min(flat, racks_power_mw(site) * 1000.0)
    limit = np.full(bins, flat)
    span = start_hour + (starts_s // 3600.0).astype(np.int64)
    now_pue = hours.fixed_pue or np.asarray(cooling.pue(_series(hours.wetbulb_c, span), 1.0, hours.plant))
    for window in site.power_limits:
        at_h = (start_s + starts_s) / 3600.0
        if window.every_h is not None:
            at_h = at_h % window.every_h
        inside = (at_h >= window.start_h) & (at_h < window.until_h)
        limit = np.where(inside, np.minimum(limit, window.power_mw * 1000.0 / now_pue), limit)
    return limit


def _outages(
    fleet: Fleet, pools: list[PoolSpec], sites: tuple[str, ...], length_s: float, seed: int
) -> tuple[list[tuple[int, ...]], npt.NDArray[np.int64]]:
    """Return the groups of replicas that fail together, and when they do."""
    rows, n = [], 0
    for pool in pools:
        rows.append((n, n + pool.n_max))
        n += pool.n_max
    groups: list[tuple[int, ...]] = [(r,) for r in range(n)]
    names = list(fleet.deployments)
    kinds = [
        ("replica", stream_of(names[pool.deployment], sites[pool.site], r - lo))
        for pool, (lo, hi) in zip(pools, rows, strict=True)
        for r in range(lo, hi)
    ]
    servers = _servers(fleet, pools, rows, sites)
    groups += servers.values()
    kinds += [("server", stream_of(sites[site], kind, server)) for site, kind, server in servers]
    first_site = len(groups)
    for i, name in enumerate(sites):
        groups.append(
            tuple(r for pool, (lo, hi) in zip(pools, rows, strict=True) if pool.site == i for r in range(lo, hi))
        )
        kinds.append(("site", stream_of(name)))
    events = schedule(
        fleet.failures, groups=kinds, site_names=sites, site_group=range(first_site, first_site + len(sites)),
        horizon_s=1.5 * length_s + 3600.0, seed=seed,
    )  # fmt: skip
    return groups, events


def _servers(
    fleet: Fleet, pools: list[PoolSpec], rows: list[tuple[int, int]], sites: tuple[str, ...]
) -> dict[tuple[int, str, int], tuple[int, ...]]:
    """Return the replicas on each server (site, accelerator, number).

    Filled in order; a replica larger than a server stands on several.
    """
    members: dict[tuple[int, str, int], list[int]] = {}
    used: dict[tuple[int, str], int] = {}
    deployments = list(fleet.deployments.values())
    for pool, (lo, hi) in zip(pools, rows, strict=True):
        deployment = deployments[pool.deployment]
        kind = catalog.accelerator(deployment.accelerator).accelerator_id
        racks = [r for r in fleet.sites[sites[pool.site]].racks.values()
                 if catalog.accelerator(r.accelerator).accelerator_id == kind]  # fmt: skip
        size = server_size(racks[0]) if racks else catalog.accelerator(kind).per_server
        held = deployment.tp * deployment.pp
        for r in range(lo, hi):
            first = used.get((pool.site, kind), 0)
            used[pool.site, kind] = first + held
            for server in range(first // size, (first + held - 1) // size + 1):
                members.setdefault((pool.site, kind, server), []).append(r)
    return {server: tuple(replicas) for server, replicas in members.items()}


def stepped(twin: Twin) -> Twin:
    """Return the same twin without fast-forwarding."""
    return replace(twin, spec=replace(twin.spec, stepping=True))


__all__ = ["SiteHours", "Twin", "describe", "each_hour", "site_hours", "st", "stepped"]
