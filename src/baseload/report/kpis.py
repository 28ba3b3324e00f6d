"""The report of a run: from its Fleet and Records to every figure, once; text, JSON and HTML only show it.

What each figure means is `kpi_table.py`. The parts are reckoned in `requests.py` (latency, SLO, tokens), `used.py`
(replicas), `site_power.py` (energy, carbon, water), `costs.py` and `ladders.py`; here they are put together.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import isfinite
from typing import Any

import msgspec
import numpy as np

from baseload.fleet import catalog, dates, resolve
from baseload.fleet.model import Fleet
from baseload.formulas import money as money_formulas
from baseload.ports import BASES, Basis, BasisMeta, Run, RunMeta
from baseload.report import costs, ladders, requests, used, words
from baseload.report.model import (
    REPORT_VERSION,
    Confidence,
    Cost,
    DeploymentReport,
    Energy,
    FleetReport,
    Footprint,
    ModelReport,
    Report,
    RunFacts,
    Service,
    SiteReport,
    SiteSeries,
    Slo,
    TenantReport,
)
from baseload.report.requests import Requests, ratio, tokens_of
from baseload.report.site_power import SiteHours, SitePlant, hours_of, over_limit, plant_of, start_of, weighted_quantile
from baseload.report.used import UsedBy
from baseload.units import HOURS_PER_MONTH, J_PER_KWH, S_PER_HOUR

SERIES_POINTS = 240
GROUPS: dict[str, tuple[str, ...]] = {
    "latency, SLO and throughput": ("speed", "network", "model"),
    "capacity ladder": ("speed", "plant", "weather", "model"),
    "power and energy": ("power", "plant", "weather"),
    "cost and return": ("price", "energy_price", "power", "plant", "weather"),
    "carbon and water": ("carbon", "power", "plant", "weather", "embodied"),
}
"""Groups of figures, and which figures of the basis each is built on."""


@dataclass(slots=True)
class _Site:
    """What is known of one site before its report is put together."""

    name: str
    plant: SitePlant
    hours: SiteHours
    used: used.Used
    service: Service
    bill: costs.Bill
    ladder: ladders.SiteLadder
    n_racks: int
    area_m2: float


def kpis(run: Run) -> Report:
    """Return the report of a run."""
    meta, fleet = run.meta, run.fleet
    asked = requests.read(run, fleet)
    done = used.read(run)
    basis = list(meta.basis)
    day = start_of(meta).date()
    plants = [plant_of(fleet, name, day) for name in meta.names.sites]
    mix = ladders.mix_of(meta, plants, done)
    sites = [
        _site(run, fleet, (i, name, plants[i]), asked, done, basis, mix) for i, name in enumerate(meta.names.sites)
    ]
    _more_basis(meta, fleet, sites, basis)
    tenants = _tenants(meta, fleet, asked)
    whole = _fleet(meta, fleet, sites, tenants, asked, done)
    facts = {site.name: resolve.site_facts(fleet, site.name) for site in sites}
    report = Report(
        report=REPORT_VERSION,
        run=_facts(run, asked),
        headline=words.headline(whole, tenants, meta.fleet, meta.search),
        built_on=words.built_on(basis),
        fleet=whole,
        tenants=tenants,
        models=[ModelReport(name=name, service=asked.service("model", i)) for i, name in enumerate(meta.names.models)],
        deployments=_deployments(meta, asked, done),
        sites=[_site_report(site, facts[site.name], fleet, day, asked.span.span_s) for site in sites],
        refusals=asked.refusals,
        confidence=_confidence(basis),
        basis=basis,
        notes=_notes(meta, sites),
        series=[_series(site, day) for site in sites],
        curves=asked.curves,
    )
    _check(msgspec.to_builtins(report))
    return report


# ---- sites -----------------------------------------------------------------------------------------------


def _site(
    run: Run, fleet: Fleet, which: tuple[int, str, SitePlant], asked: Requests, done: UsedBy,
    basis: list[BasisMeta], mix: float,
) -> _Site:  # fmt: skip
    i, name, plant = which
    day = start_of(run.meta).date()
    hours = hours_of(run, fleet, name, i, plant, basis)
    service = asked.service("site", i)
    here = used.total(done, lambda _, s: s == i, asked.span.span_s)
    sold = (service.input_tokens_per_s or 0.0) + (service.output_tokens_per_s or 0.0)
    area = plant.site.floor_m2 if plant.site.floor_m2 is not None else resolve.racks_area_m2(plant.site)
    return _Site(
        name=name,
        plant=plant,
        hours=hours,
        used=here,
        service=service,
        bill=costs.site_bill(plant, hours, here, fleet, asked.span.span_s),
        ladder=ladders.site_ladder(run.meta, name, i, plant, hours, done, sold, day, mix),
        n_racks=sum(rack.racks for rack in plant.site.racks.values()),
        area_m2=area,
    )


def _site_report(site: _Site, facts: resolve.SiteFacts, fleet: Fleet, day: Any, span_s: float) -> SiteReport:
    hours = site.hours
    seconds = hours.length_s * hours.weight
    return SiteReport(
        name=site.name,
        lat=facts.lat,
        lon=facts.lon,
        jurisdiction=facts.jurisdiction,
        racks=site.n_racks,
        area_m2=site.area_m2,
        service=site.service,
        hardware=site.used.hardware(),
        energy=_energy(
            [site],
            site.service,
            power_kw=hours.site_kw,
            seconds=seconds,
            contract_kw=_contract_kw(site, day),
            pue_peak=site.plant.pue_peak,
            span_s=span_s,
        ),
        footprint=_footprint([site], site.service),
        cost=costs.cost_of(
            site.bill, site.service, site.used, float(site.service.list_revenue or 0.0), fleet.money, span_s
        ),
        ladder=ladders.steps(site.ladder),
        ladder_open=site.ladder.open,
    )


def _contract_kw(site: _Site, day: Any) -> float:
    return dates.drawable_mw(site.plant.site, day) * 1000.0


def _energy(
    sites: Sequence[_Site],
    service: Service,
    *,
    power_kw: Any,
    seconds: Any,
    contract_kw: float,
    pue_peak: float | None,
    span_s: float,
) -> Energy:
    """Return the energy figures of a set of sites, whose power together is `power_kw` over `seconds`."""
    hours = [site.hours for site in sites]
    it_kwh = sum(one.it_kwh for one in hours)
    site_kwh = sum(one.site_kwh for one in hours)
    ours_kwh = sum(one.inference_site_kwh for one in hours)
    tokens = tokens_of(service)
    highest = float(power_kw.max()) if len(power_kw) else 0.0
    ours_j = ours_kwh * J_PER_KWH
    over_ratio, over_kw_max = over_limit(hours)
    rate = ratio(tokens, span_s)
    n_racks, area = sum(site.n_racks for site in sites), sum(site.area_m2 for site in sites)
    return Energy(
        it_kwh=it_kwh,
        site_kwh=site_kwh,
        inference_site_kwh=ours_kwh,
        training_site_kwh=site_kwh - ours_kwh,
        idle_it_kwh=sum(one.idle_it_kwh for one in hours),
        pue_mean=ratio(site_kwh, it_kwh),
        pue_peak=pue_peak,
        power_kw_mean=ratio(float((power_kw * seconds).sum()), float(seconds.sum())),
        power_kw_p99=weighted_quantile(power_kw, seconds, 0.99),
        power_kw_max=highest,
        power_kw_contract=contract_kw,
        power_used_ratio=ratio(highest, contract_kw),
        power_capped_ratio=ratio(sum(one.capped_ratio * one.it_kwh for one in hours), it_kwh),
        over_limit_ratio=over_ratio,
        over_limit_kw_max=over_kw_max,
        energy_j_per_token=ratio(ours_j, tokens),
        energy_j_per_output_token=ratio(ours_j, float(service.output_tokens or 0)),
        energy_wh_per_request=ratio(ours_kwh * 1000.0, float(service.served or 0)),
        tokens_per_kwh=ratio(tokens, ours_kwh),
        tokens_per_s_per_kw=ratio(tokens, ours_kwh * S_PER_HOUR),
        tokens_per_s_per_rack=None if rate is None else ratio(rate, n_racks),
        tokens_per_s_per_m2=None if rate is None else ratio(rate, area),
    )


def _footprint(sites: Sequence[_Site], service: Service) -> Footprint:
    hours = [site.hours for site in sites]
    ours_g = sum(one.inference_carbon_kg for one in hours) * 1000.0
    return Footprint(
        carbon_kg_location=sum(one.carbon_kg for one in hours),
        carbon_kg_market=sum(one.carbon_market_kg for one in hours),
        carbon_kg_embodied=sum(site.bill.embodied_kg for site in sites),
        carbon_g_per_mtok=ratio(ours_g * 1e6, tokens_of(service)),
        water_l=sum(one.water_l for one in hours),
    )


def _series(site: _Site, day: Any) -> SiteSeries:
    hours = site.hours
    n = len(hours.start_s)
    step = max(1, -(-n // SERIES_POINTS))
    starts = np.arange(0, n, step)

    def mean(values: Any) -> list[float]:
        if n == 0:
            return []
        seconds = np.add.reduceat(hours.length_s, starts)
        return [float(one) for one in np.add.reduceat(values * hours.length_s, starts) / np.maximum(seconds, 1e-12)]

    limits = [float(hours.limit_kw[i : i + step].min()) for i in starts]
    return SiteSeries(
        site=site.name,
        start_s=[float(one) for one in hours.start_s[starts]],
        end_s=float(hours.start_s[-1] + hours.length_s[-1]) if n else 0.0,
        tokens_per_s=mean(hours.tokens_per_s),
        it_kw=mean(hours.it_kw),
        site_kw=mean(hours.site_kw),
        limit_kw=[limit if isfinite(limit) else None for limit in limits],
        contract_kw=_contract_kw(site, day) or None,
    )


# ---- the fleet, tenants, deployments ---------------------------------------------------------------------


def _fleet(
    meta: RunMeta, fleet: Fleet, sites: Sequence[_Site], tenants: Sequence[TenantReport], asked: Requests, done: UsedBy
) -> FleetReport:
    service = asked.service("fleet")
    everything = used.total(done, lambda _d, _s: True, asked.span.span_s)
    day = start_of(meta).date()
    span_s = asked.span.span_s
    power_kw, seconds = _together(sites)
    bill = costs.fleet_bill([site.bill for site in sites], fleet, span_s)
    revenue = sum(float(tenant.revenue or 0.0) for tenant in tenants)
    cost: Cost = costs.cost_of(bill, service, everything, revenue, fleet.money, span_s)
    it_kwh = sum(site.hours.it_kwh for site in sites)
    pue_peak = ratio(sum(site.plant.pue_peak * site.hours.it_kwh for site in sites), it_kwh)
    return FleetReport(
        service=service,
        hardware=everything.hardware(),
        energy=_energy(
            sites,
            service,
            power_kw=power_kw,
            seconds=seconds,
            contract_kw=sum(_contract_kw(site, day) for site in sites),
            pue_peak=pue_peak,
            span_s=span_s,
        ),
        footprint=_footprint(sites, service),
        cost=cost,
        ladder=ladders.fleet_steps([(site.name, site.ladder) for site in sites]),
    )


def _together(sites: Sequence[_Site]) -> tuple[Any, Any]:
    """Return the sites' power summed bin by bin, and the bins' seconds."""
    if not sites:
        return np.zeros(0), np.zeros(0)
    starts = np.unique(np.concatenate([site.hours.start_s for site in sites]))
    power_kw, seconds = np.zeros(len(starts)), np.zeros(len(starts))
    for site in sites:
        at = np.searchsorted(starts, site.hours.start_s)
        power_kw[at] += site.hours.site_kw
        seconds[at] = np.maximum(seconds[at], site.hours.length_s * site.hours.weight)
    return power_kw, seconds


def _tenants(meta: RunMeta, fleet: Fleet, asked: Requests) -> list[TenantReport]:
    made = []
    months = asked.span.span_s / S_PER_HOUR / HOURS_PER_MONTH
    for i, name in enumerate(meta.names.tenants):
        tenant, service = requests.tenant_of(fleet, name), asked.service("tenant", i)
        slo, reached = tenant.slo, service.slo_attainment_ratio
        commitment = tenant.committed_per_month * months
        made.append(
            TenantReport(
                name=name,
                slo=Slo(ttft_ms=slo.ttft_ms, tpot_ms=slo.tpot_ms, e2e_ms=slo.e2e_ms, attainment=slo.attainment),
                slo_met=None if reached is None else reached >= slo.attainment,
                service=service,
                commitment=commitment,
                revenue=money_formulas.token_revenue(float(service.list_revenue or 0.0) * 1e6, 1.0, commitment),
            )
        )
    return made


def _deployments(meta: RunMeta, asked: Requests, done: UsedBy) -> list[DeploymentReport]:
    made = []
    for i, what in enumerate(meta.deployments):
        here = used.total(done, lambda d, _, i=i: d == i, asked.span.span_s)  # type: ignore[misc]
        service = asked.service("deployment", i)
        made.append(DeploymentReport(name=what.name, what=what, service=service, hardware=here.hardware()))
    return made


def _facts(run: Run, asked: Requests) -> RunFacts:
    meta = run.meta
    policies: dict[str, Any] = msgspec.to_builtins(meta.policies)
    return RunFacts(
        folder=run.name,
        fleet=meta.fleet,
        fleet_digest=meta.fleet_digest,
        baseload=meta.baseload,
        seed=meta.seed,
        trace=meta.trace.name,
        trace_note=meta.trace.note,
        trace_requests=meta.trace.requests,
        trace_scale=meta.trace.scale,
        start_utc=meta.start_utc,
        duration_s=meta.duration_ns / 1e9,
        warmup_s=meta.warmup_ns / 1e9,
        span_s=asked.span.span_s,
        measured_s=asked.span.measured_s,
        currency=meta.currency,
        policies={kind: policy["name"] for kind, policy in policies.items()},
        windows=meta.windows,
        quantiles=asked.how,
        training=meta.training,
    )


# ---- where figures come from -----------------------------------------------------------------------------


def _more_basis(meta: RunMeta, fleet: Fleet, sites: Sequence[_Site], basis: list[BasisMeta]) -> None:
    """Add what the report itself builds on: speeds the run did not explain, plants, prices of accelerators."""
    said = {row.figure for row in basis}

    def add(figure: str, kind: Basis, source: str) -> None:
        if figure not in said:
            said.add(figure)
            basis.append(BasisMeta(figure=figure, basis=kind, source=source))

    for deployment in meta.deployments:
        add(f"speed.{deployment.name}", deployment.basis, deployment.slo_source)
    for site in sites:
        declared = site.plant.site.cooling.pue is not None
        source = (
            "declared PUE; water from the formula"
            if declared
            else f"formulas/cooling.py: {site.plant.site.cooling.type}"
        )
        add(f"plant.{site.name}", "declared" if declared else "modelled", source)
        for rack in site.plant.site.racks.values():
            if rack.rent_per_accelerator_hour is not None or rack.capex_per_accelerator is not None:
                add(f"price.{resolve.accelerator_id(rack.accelerator)}.price_usd", "declared", "the fleet file")
            else:
                known = catalog.accelerator(rack.accelerator).provenance.get("price_usd")
                kinds = [one for one in BASES if known is not None and one == known.basis]
                source = f"catalogue: {known.source}" if known is not None else "catalogue"
                add(
                    f"price.{resolve.accelerator_id(rack.accelerator)}.price_usd",
                    kinds[0] if kinds else "modelled",
                    source,
                )
    default = fleet.money.embodied_kg_per_accelerator == type(fleet.money)().embodied_kg_per_accelerator
    source = "EcoLogits: 164 kg an accelerator and an eighth of 5,700 kg a server" if default else "the fleet file"
    add("embodied.accelerators", "modelled" if default else "declared", source)


def _confidence(basis: Sequence[BasisMeta]) -> list[Confidence]:
    made = []
    for group, prefixes in GROUPS.items():
        rows = [row for row in basis if row.figure.partition(".")[0] in prefixes]
        if not rows:
            continue
        weakest = max(rows, key=lambda row: BASES.index(row.basis)).basis
        made.append(
            Confidence(group=group, basis=weakest, because=sorted({row.figure for row in rows if row.basis == weakest}))
        )
    return made


def _notes(meta: RunMeta, sites: Sequence[_Site]) -> list[str]:
    notes = list(meta.notes)
    if meta.windows:
        notes.append(
            f"{len(meta.windows)} weighted windows stand for a longer time: counts, energy and money are weighted, and "
            "shares of busy time and MFU are of the simulated time"
        )
    balance = meta.balance
    ended = balance.served + balance.refused + balance.failed + balance.unfinished
    if ended != balance.requests_in:
        notes.append(f"the books do not balance: {balance.requests_in} requests in, {ended} accounted for")
    if balance.kv_blocks_leaked:
        notes.append(f"the books do not balance: {balance.kv_blocks_leaked} KV blocks were not given back")
    for site in sites:
        share, most_kw = over_limit([site.hours])
        if most_kw > 0.0:
            notes.append(
                f"{site.name} drew up to {words.number(most_kw)} kW more IT power than its limit, and was above it for "
                f"{words.percent(share)} of the time (policy.cap says what a site does at its limit)"
            )
    notes += [f"{site.name}: {site.ladder.open}" for site in sites if site.ladder.open]
    return notes


def _check(value: Any, at: str = "report") -> None:
    """Hold that no figure is NaN or infinite, wherever it stands."""
    if isinstance(value, float):
        assert isfinite(value), at
    elif isinstance(value, dict):
        for key, one in value.items():
            _check(one, f"{at}.{key}")
    elif isinstance(value, list):
        for i, one in enumerate(value):
            _check(one, f"{at}.{i}")
