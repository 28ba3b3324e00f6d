"""From the fleet file to what a gateway worker is given: the twin's own description of the fleet, as plain numbers.

The one place where `serve` meets `simulate`: both verbs read the same `describe`, so they cannot drift apart. What a token
costs its owner is reckoned here from the standing cost of a site's accelerators; the bill of a run is `report/costs.py`.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, replace
from datetime import UTC, date, datetime
from math import isfinite
from pathlib import Path
from typing import TYPE_CHECKING

import msgspec

from baseload.errors import FleetError, Problem
from baseload.fleet import catalog, dates, resolve
from baseload.fleet.live import LiveEngine
from baseload.fleet.loaded import Loaded
from baseload.fleet.model import Fleet, Replicas, Site
from baseload.formulas import money
from baseload.serve import tables as t
from baseload.units import HOURS_PER_MONTH, HOURS_PER_YEAR, S_PER_HOUR

if TYPE_CHECKING:
    from baseload.simulate.engines import DeployedEngine
    from baseload.simulate.setup import Twin

BUSY_AT_REST = 0.5  # share of time that a replica is expected to be busy before any was measured
PICO_PER_MTOK = 1e6  # a price per million tokens in pico a token


@dataclass(frozen=True, slots=True, kw_only=True)
class Live:
    """A fleet ready to be served: the tables, and the twin's description that they come from."""

    loaded: Loaded
    fleet: Fleet  # of the day
    twin: Twin
    tables: t.Tables
    day: date
    hour: int  # of the year

    def at_version(self, version: int) -> Live:
        """Return the same with the version of the tables that follow others."""
        return replace(self, tables=msgspec.structs.replace(self.tables, version=version))


def live(loaded: Loaded, *, now: datetime | None = None, version: int = 1, kind: str | None = None) -> Live:
    """Return the tables of a checked fleet file as it stands today; `kind` puts one kind of engine in all places.

    Raises FleetError where nothing is deployed today.
    """
    from baseload.simulate.setup import describe

    now = now or datetime.now(UTC)
    day = now.date()
    fleet = _as_reachable(dates.on(loaded.fleet, day), kind)
    fleet = msgspec.structs.replace(fleet, demand=msgspec.structs.replace(fleet.demand, start_hour_utc=float(now.hour)))
    twin = describe(fleet, base_folder=loaded.base_folder, day=day, duration_s=3600.0)
    hour = resolve.hour_of_year(day, now.hour)
    digest = hashlib.sha256(loaded.text.encode()).hexdigest()
    return Live(
        loaded=loaded, fleet=fleet, twin=twin, day=day, hour=hour,
        tables=_tables(fleet, twin, hour, version=version, digest=digest, kind=kind, day=day),
    )  # fmt: skip


def _as_reachable(fleet: Fleet, kind: str | None) -> Fleet:
    """Return the fleet with as many external replicas as have an address: they run always, and are not ours to start."""
    deployments, asked = {}, []
    for name, deployment in fleet.deployments.items():
        engine = engine_of(fleet, name, kind)
        asked.append(engine)
        if engine.kind == "external":
            found = {site: Replicas(min=len(urls), max=len(urls)) for site, urls in engine.urls.items() if urls}
            deployment = msgspec.structs.replace(deployment, sites=found)
        deployments[name] = deployment
    if asked and all(engine.kind == "external" and not any(engine.urls.values()) for engine in asked):
        raise FleetError(
            Problem(
                key="serve.engines",
                what="all engines are external, and none has an address",
                mend="give serve.engines.<deployment> kind: external and urls by site, or let other engines run "
                "(--engines embedded or emulated)",
            )
        )
    return msgspec.structs.replace(fleet, deployments=deployments)


def engine_of(fleet: Fleet, deployment: str, kind: str | None = None) -> LiveEngine:
    """Return how a deployment's replicas come to be; `kind` overrides."""
    engine = fleet.serve.engines.get(deployment, LiveEngine())
    if kind is not None and kind != engine.kind:
        return msgspec.structs.replace(engine, kind=kind, urls={})
    return engine


def _tables(fleet: Fleet, twin: Twin, hour: int, *, version: int, digest: str, kind: str | None, day: date) -> t.Tables:
    spec = twin.spec
    policy, limits = fleet.policy, fleet.serve
    pools, replicas = [], []
    for i, pool in enumerate(spec.pools):
        pools.append(
            t.PoolRow(
                deployment_i=pool.deployment, site_i=pool.site, n_min=pool.n_min, n_max=pool.n_max,
            )
        )  # fmt: skip
        engine = engine_of(fleet, twin.engines[pool.deployment].name, kind)
        urls = engine.urls.get(twin.sites[pool.site], []) if engine.kind == "external" else []
        replicas += [
            t.ReplicaRow(
                deployment_i=pool.deployment, site_i=pool.site, pool_i=i, number=k, on_at_start=k < pool.n_min,
                address=urls[k] if k < len(urls) else "",
            )
            for k in range(pool.n_max)
        ]  # fmt: skip
    deployments = [_deployment(fleet, twin, i, engine, kind, day) for i, engine in enumerate(twin.engines)]
    return t.Tables(
        version=version,
        first_version=version,
        fleet=fleet.name,
        fleet_digest=digest,
        currency=fleet.money.currency,
        tenants=[_tenant(twin, i) for i in range(len(twin.tenants))],
        regions=list(twin.regions),
        models=[_model(twin, fleet, i, name, kind) for i, name in enumerate(twin.models)],
        sites=[_site(fleet, twin, i, hour) for i in range(len(twin.sites))],
        deployments=deployments,
        pools=pools,
        replicas=replicas,
        may=spec.may.tolist(),
        region_rtt_s=[float(s) for s in spec.region_rtt_s],
        policy=t.PolicyRow(
            route=policy.route, admit=policy.admit, scale=policy.scale, cap=policy.cap, load_guard=policy.load_guard,
            admit_factor=policy.admit_factor, target_utilisation=policy.target_utilisation,
            scale_down_s=policy.scale_down_s, observe_every_s=policy.observe_every_s,
            control_every_s=policy.control_every_s, detect_s=policy.detect_s, retries=policy.retries,
            max_wait_s=policy.max_wait_s or 0.0,
        ),
        limits=t.LimitRow(
            **{name: getattr(limits.limits, name) for name in limits.limits.__struct_fields__},
            retry_ratio=limits.retry_ratio, eject_after=limits.eject_after, eject_s=limits.eject_s,
            eject_most_ratio=limits.eject_most_ratio,
        ),
        predicted_output_tokens=spec.predicted_output_tokens,
        rehearsal=any(row.kind == "emulated" for row in deployments),
    )  # fmt: skip


def _tenant(twin: Twin, i: int) -> t.TenantRow:
    name = twin.tenants[i]
    tenant = twin.tenant_records[name]
    price = tenant.price
    cached = price.input_per_mtok if price.cached_per_mtok is None else price.cached_per_mtok
    budget = tenant.budget_per_month
    regions = tenant.regions or dict.fromkeys(twin.regions, 1.0)
    home = max(regions, key=lambda region: regions[region])
    return t.TenantRow(
        name=name,
        ttft_slo_s=tenant.slo.ttft_ms / 1000.0,
        tpot_slo_s=tenant.slo.tpot_ms / 1000.0,
        priority=tenant.priority,
        input_pico=round(price.input_per_mtok * PICO_PER_MTOK),
        cached_pico=round(cached * PICO_PER_MTOK),
        output_pico=round(price.output_per_mtok * PICO_PER_MTOK),
        budget_per_month_nano=None if budget is None else round(budget * 1e9),
        region_i=twin.regions.index(home),
    )


def _model(twin: Twin, fleet: Fleet, i: int, name: str, kind: str | None) -> t.ModelRow:
    limits = [
        min(engine.max_context, engine.spec.blocks * engine.spec.block_tokens - 1)
        for engine in twin.engines
        if engine.spec.model_i == i
    ]
    digests = {
        engine_of(fleet, engine.name, kind).model_digest or "" for engine in twin.engines if engine.spec.model_i == i
    }
    return t.ModelRow(
        name=name,
        max_context_tokens=max(2, min(limits, default=2)),
        digest=digests.pop() if len(digests) == 1 else "",
    )


def _site(fleet: Fleet, twin: Twin, i: int, hour: int) -> t.SiteRow:
    name = twin.sites[i]
    facts, hours, spec = resolve.site_facts(fleet, name), twin.hours[i], twin.spec
    limit = float(spec.limit_kw[i, 0]) if spec.limit_kw is not None else float("inf")
    idle_kw = float(spec.training_kw[i, 0]) if spec.training_kw is not None else 0.0
    return t.SiteRow(
        name=name,
        jurisdiction=facts.jurisdiction,
        operator_jurisdiction=facts.operator_jurisdiction,
        one_way_s=float(spec.one_way_s[i]),
        pue=pue_at(twin, i, hour),
        carbon_g_per_kwh=hours.carbon_g_per_kwh.at(hour),
        price_per_kwh=hours.price_per_mwh.at(hour) / 1000.0,
        limit_kw=limit if isfinite(limit) else None,
        idle_kw=idle_kw,
        parked_ratio=fleet.sites[name].parked_power_ratio,
    )


def pue_at(twin: Twin, site_i: int, hour: int) -> float:
    """Return a site's PUE in an hour of the year: declared, or from the weather."""
    from baseload.formulas import cooling

    hours = twin.hours[site_i]
    return float(hours.fixed_pue or cooling.pue(hours.wetbulb_c.at(hour), 1.0, hours.plant))


def _deployment(
    fleet: Fleet, twin: Twin, i: int, engine: DeployedEngine, kind: str | None, day: date
) -> t.DeploymentRow:
    from baseload.simulate.engines import half_load_sequences, joules_per_token

    spec = engine.spec
    live_engine = engine_of(fleet, engine.name, kind)
    sites = [pool.site for pool in twin.spec.pools if pool.deployment == i]
    where = twin.sites[sites[0]] if sites else twin.sites[0]
    standing = standing_per_accelerator_s(fleet, where, day) * engine.accelerators
    n = half_load_sequences(engine)
    power = spec.power_w
    busy_w = float(power[min(n, len(power) - 1)]) if power is not None else spec.power_idle_w
    full_w = float(power[-1]) if power is not None else spec.power_idle_w
    busy_s_in, busy_s_out = 1.0 / spec.prefill_tokens_per_s, spec.decode_s_per_token / n
    j_in, j_out = max(0.0, full_w - spec.power_idle_w) * busy_s_in, joules_per_token(engine)
    kwh_price = _kwh_price(twin, sites)
    energy_idle_s = spec.power_idle_w / 3.6e6 * kwh_price
    per_busy_s = (standing + energy_idle_s) / BUSY_AT_REST
    return t.DeploymentRow(
        name=engine.name,
        model_i=spec.model_i,
        kind=live_engine.kind,
        accelerator=fleet.deployments[engine.name].accelerator,
        slots=spec.max_seqs if live_engine.kind != "embedded" else live_engine.slots,
        prefill_tokens_per_s=spec.prefill_tokens_per_s,
        decode_s_per_token=spec.decode_s_per_token,
        idle_w=spec.power_idle_w,
        busy_w=busy_w,
        peak_w=float(power.max()) if power is not None else 0.0,
        j_per_input_token=j_in,
        j_per_output_token=j_out,
        idle_cost_per_s=standing,
        cost_per_input_token=per_busy_s * busy_s_in + j_in / 3.6e6 * kwh_price,
        cost_per_output_token=per_busy_s * busy_s_out + j_out / 3.6e6 * kwh_price,
        served_model=live_engine.served_model or "",
        key_env=live_engine.key_env or "",
        metrics=live_engine.metrics,
        cold_start_s=fleet.deployments[engine.name].cold_start_s if live_engine.kind == "emulated" else 0.0,
        idle_share_ratio=1.0 - BUSY_AT_REST,
        basis="calibrated" if engine.calibrated else "modelled",
    )


def _kwh_price(twin: Twin, sites: list[int]) -> float:
    """Return what a kWh at the equipment costs: the meter's price times PUE, the dearest of the deployment's sites."""
    return max(
        (
            max(0.0, twin.hours[i].price_per_mwh.at(twin.start_hour)) / 1000.0 * pue_at(twin, i, twin.start_hour)
            for i in sites
        ),
        default=0.0,
    )


def standing_per_accelerator_s(fleet: Fleet, name: str, day: date) -> float:
    """Return what an accelerator costs a second while it stands there: capital, rent, room, people, demand charge.

    In the fleet's currency; a site's standing cost is shared by its accelerators alike (as `report/costs.py` does).
    """
    site, terms = fleet.sites[name], fleet.money
    n = sum(resolve.rack_accelerators(site).values())
    if n == 0:
        return 0.0
    kw = resolve.racks_power_mw(site) * 1000.0
    capex, rent = _capex_and_rent(fleet, site)
    per_hour = (
        money.owned_cost_per_hour(capex, terms.wacc, terms.accelerator_life_years)
        + rent
        + money.owned_cost_per_hour(site.facility_capex_per_kw * kw, terms.wacc, terms.facility_life_years)
        + site.colocation_per_kw_month * kw / HOURS_PER_MONTH
        + (terms.maintenance_ratio_per_year * capex + site.staff_cost_per_year + site.opex_per_year) / HOURS_PER_YEAR
        + _demand_charge_per_hour(site, kw)
    )
    everywhere = sum(sum(resolve.rack_accelerators(one).values()) for one in fleet.sites.values())
    company = terms.opex_per_year / HOURS_PER_YEAR / everywhere
    return (per_hour / n + company) / S_PER_HOUR


def _capex_and_rent(fleet: Fleet, site: Site) -> tuple[float, float]:
    capex, rent = 0.0, 0.0
    for rack in site.racks.values():
        n = rack.racks * rack.accelerators_per_rack
        if rack.rent_per_accelerator_hour is not None:
            rent += n * rack.rent_per_accelerator_hour
            continue
        price = rack.capex_per_accelerator
        if price is None:
            price = catalog.accelerator(rack.accelerator).price_usd * fleet.money.usd_rate
        capex += n * price
    return capex, rent


def _demand_charge_per_hour(site: Site, full_load_kw: float) -> float:
    total_mw = sum(contract.power_mw for contract in site.contracts)
    charge = 0.0
    for contract in site.contracts:
        peak_kw = full_load_kw * contract.power_mw / total_mw
        billed = money.billed_demand_kw(
            peak_kw, contract.power_mw * 1000.0, minimum_bill_ratio=contract.minimum_bill_ratio,
            past_peak_kw=peak_kw, ratchet_ratio=contract.ratchet_ratio,
        )  # fmt: skip
        charge += money.demand_charge(billed, contract.demand_charge_per_kw_month, 1.0)
    return charge / HOURS_PER_MONTH


def state_folder(path: Path | None) -> Path:
    """Return the folder of keys, ledger and sockets; `baseload-state` in the current folder where none is named."""
    return path or Path("baseload-state")
