"""From what the owner knows to what a person is shown: one `Snapshot` a second, and 15 minutes of series.

The ladder here is the report's, with what is up now in place of a run's records. Sums are `live_tally.py`; the record's
meaning is `web/view.py`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from baseload import __version__
from baseload.app.live_tally import Scope, Second, Tally, quantile
from baseload.app.web import view
from baseload.formulas import ladder as rungs
from baseload.report.ladders import upper_rungs
from baseload.report.model import Step
from baseload.report.site_power import SitePlant, plant_of

if TYPE_CHECKING:
    from baseload.app.serve_tables import Live

ERRORS_S = 900


@dataclass(slots=True)
class ReplicaFact:
    """What the owner knows of a replica beside the board."""

    state: view.ReplicaState = "parked"
    name: str = ""  # '' as the fleet file alone would number it
    reason: str = ""
    ejected: bool = False
    restarts: int = 0
    ejections: int = 0
    kv_free: float | None = None
    running: int = 0
    waiting: int = 0
    outstanding: int = 0


@dataclass(slots=True)
class Facts:
    """What stands beside the tally at one instant."""

    at_ns: int
    replicas: Sequence[ReplicaFact]
    site_power_kw: Sequence[float | None]  # at the equipment
    site_limit_kw: Sequence[float | None]
    carbon_g_per_kwh: Sequence[float]
    price_per_kwh: Sequence[float]
    closed: Mapping[str, str]  # sites that take nothing, and why
    workers_up: int
    workers: int
    streams_open: int
    waiting: int
    counters: Mapping[str, int]
    ledger: view.LedgerNow
    spent_month: Mapping[str, float]  # by tenant
    recent: Sequence[view.RecentRequest]
    alarms: Sequence[view.Alarm]
    draining: bool = False
    reload_fault: str = ""
    idle_cost_per_s: float = 0.0  # of everything powered, in the currency


@dataclass(slots=True)
class Standing:
    """What does not change between reloads: plants, names, contracts."""

    plants: dict[str, SitePlant] = field(default_factory=dict)
    contract_kw: dict[str, float | None] = field(default_factory=dict)
    places: dict[str, tuple[str, float | None, float | None]] = field(default_factory=dict)
    promised: dict[str, float] = field(default_factory=dict)


def standing(live: Live) -> Standing:
    """Return the facts of a fleet that stand until the next reload."""
    from baseload.fleet import dates, resolve

    made = Standing()
    for name, site in live.fleet.sites.items():
        made.plants[name] = plant_of(live.fleet, name, live.day)
        drawable = dates.drawable_mw(site, live.day)
        made.contract_kw[name] = drawable * 1000.0 if drawable > 0.0 else None
        facts = resolve.site_facts(live.fleet, name)
        made.places[name] = (site.place or "", facts.lat, facts.lon)
    made.promised = {name: tenant.slo.attainment for name, tenant in live.twin.tenant_records.items()}
    return made


def snapshot(live: Live, fixed: Standing, tally: Tally, facts: Facts, started_ns: int) -> view.Snapshot:
    """Return what the pages, metrics and alerts show now."""
    tables = live.tables
    now_s = facts.at_ns // 1_000_000_000
    names = replica_names(live)
    ladders = [_site_ladder(live, fixed, tally, facts, i, now_s) for i in range(len(tables.sites))]
    replicas = [
        view.ReplicaNow(
            name=fact.name or names[r],
            deployment=tables.deployments[row.deployment_i].name,
            site=tables.sites[row.site_i].name,
            model=tables.models[tables.deployments[row.deployment_i].model_i].name,
            accelerator=tables.deployments[row.deployment_i].accelerator,
            kind=_kind(tables.deployments[row.deployment_i].kind),
            state=fact.state, reason=fact.reason, ejected=fact.ejected, outstanding=fact.outstanding,
            running=fact.running, waiting=fact.waiting, kv_free_ratio=fact.kv_free,
            restarts_total=fact.restarts, ejections_total=fact.ejections,
        )
        for r, (row, fact) in enumerate(zip(tables.replicas, facts.replicas, strict=True))
    ]  # fmt: skip
    return view.Snapshot(
        at_ns=facts.at_ns,
        fleet=tables.fleet,
        fleet_digest=tables.fleet_digest,
        currency=tables.currency,
        baseload=__version__,
        tables_version=tables.version,
        started_ns=started_ns,
        workers_up=facts.workers_up,
        workers=facts.workers,
        draining=facts.draining,
        reload_fault=facts.reload_fault,
        totals=_totals(live, fixed, tally, facts, now_s),
        sites=[_site(live, fixed, tally, facts, i, now_s, ladders[i]) for i in range(len(tables.sites))],
        replicas=replicas,
        tenants=[_tenant(live, fixed, tally, facts, row.name, now_s) for row in tables.tenants],
        models=[row.name for row in tables.models],
        ladder=_steps(rungs.sum_of_ladders(ladders)) if ladders else [],
        errors=_errors(tally, now_s),
        recent=list(facts.recent)[: view.RECENT_MAX],
        alarms=sorted(facts.alarms, key=lambda alarm: alarm.level)[: view.ALARMS_MAX],
        ledger=facts.ledger,
    )


def replica_names(live: Live) -> list[str]:
    """Return deployment/site/index of each replica."""
    tables = live.tables
    return [
        f"{tables.deployments[row.deployment_i].name}/{tables.sites[row.site_i].name}/{row.number}"
        for row in tables.replicas
    ]


def _kind(word: str) -> view.EngineKind:
    return "external" if word == "external" else "embedded" if word == "embedded" else "emulated"


def _rates(seconds: Sequence[Second], span_s: float) -> tuple[float, float, float]:
    """Return requests, input and output tokens a second."""
    return (
        sum(one.requests for one in seconds) / span_s,
        sum(one.input_tokens for one in seconds) / span_s,
        sum(one.output_tokens for one in seconds) / span_s,
    )


def _span_s(scope: Scope, now_s: int) -> float:
    """Return the seconds that rates are over: a minute, or since the first request if that is less."""
    first = scope.seconds[0].at_s if scope.seconds else now_s
    return float(max(1, min(60, now_s - first)))


def _percentiles(seconds: Sequence[Second], which: str) -> tuple[float | None, float | None]:
    values = [value for one in seconds for value in getattr(one, which)]
    return quantile(values, 0.5), quantile(values, 0.99)


def _attained(seconds: Sequence[Second]) -> float | None:
    counted = sum(one.slo_requests for one in seconds)
    return sum(one.slo_met for one in seconds) / counted if counted else None


def _totals(live: Live, fixed: Standing, tally: Tally, facts: Facts, now_s: int) -> view.Totals:
    scope = tally.scope("")
    seconds, span_s = scope.last(now_s), _span_s(scope, now_s)
    requests, inputs, outputs = _rates(seconds, span_s)
    ttft, tpot = _percentiles(seconds, "ttft_s"), _percentiles(seconds, "tpot_s")
    power = [kw for kw in facts.site_power_kw if kw is not None]
    site_kw = [kw * site.pue for kw, site in zip(facts.site_power_kw, live.tables.sites, strict=True) if kw is not None]
    limits = [kw for kw in facts.site_limit_kw if kw is not None]
    contracts = [kw for kw in fixed.contract_kw.values() if kw is not None]
    energy_cost = sum(
        kw * site.pue * price
        for kw, site, price in zip(facts.site_power_kw, live.tables.sites, facts.price_per_kwh, strict=True)
        if kw is not None
    )
    return view.Totals(
        requests_per_s=requests,
        input_tokens_per_s=inputs,
        output_tokens_per_s=outputs,
        refused_per_s=sum(one.refused for one in seconds) / span_s,
        failed_per_s=sum(one.failed for one in seconds) / span_s,
        ttft_s_p50=ttft[0],
        ttft_s_p99=ttft[1],
        tpot_s_p50=tpot[0],
        tpot_s_p99=tpot[1],
        attainment_ratio=_attained(seconds),
        streams_open=facts.streams_open,
        waiting=facts.waiting,
        revenue_per_h=sum(one.price_nano for one in seconds) / 1e9 / span_s * 3600.0,
        cost_per_h=facts.idle_cost_per_s * 3600.0 + energy_cost,
        energy_cost_per_h=energy_cost,
        carbon_g_per_h=sum(
            kw * site.pue * carbon
            for kw, site, carbon in zip(facts.site_power_kw, live.tables.sites, facts.carbon_g_per_kwh, strict=True)
            if kw is not None
        ),
        power_kw=sum(site_kw) if power else None,
        limit_kw=sum(kw * site.pue for kw, site in zip(limits, live.tables.sites, strict=False))
        if len(limits) == len(live.tables.sites)
        else None,
        contract_kw=sum(contracts) if contracts else None,
        retries_total=facts.counters.get("retried", 0),
        upstream_total=facts.counters.get("sent", 0),
    )


def _site(
    live: Live, fixed: Standing, tally: Tally, facts: Facts, i: int, now_s: int, ladder: list[rungs.Rung]
) -> view.SiteNow:
    row = live.tables.sites[i]
    scope = tally.scope(f"site/{row.name}")
    seconds, span_s = scope.last(now_s), _span_s(scope, now_s)
    requests, inputs, outputs = _rates(seconds, span_s)
    power, limit = facts.site_power_kw[i], facts.site_limit_kw[i]
    place, lat, lon = fixed.places[row.name]
    closed = facts.closed.get(row.name, "")
    here = [fact for fact, one in zip(facts.replicas, live.tables.replicas, strict=True) if one.site_i == i]
    state: view.SiteState = "open"
    if closed:
        state = "draining" if "drain" in closed else "closed"
    elif here and not any(fact.state == "up" for fact in here):
        state, closed = "closed", "no replica is up"
    elif power is not None and limit is not None and power > 0.97 * limit:
        state, closed = "limited", "at its power limit"
    return view.SiteNow(
        name=row.name,
        place=place,
        lat=lat,
        lon=lon,
        jurisdiction=row.jurisdiction,
        operator_jurisdiction=row.operator_jurisdiction,
        state=state,
        state_reason=closed,
        ladder=_steps(ladder),
        requests_per_s=requests,
        tokens_per_s=inputs + outputs,
        power_kw=None if power is None else power * row.pue,
        limit_kw=None if limit is None else limit * row.pue,
        contract_kw=fixed.contract_kw[row.name],
        carbon_g_per_kwh=facts.carbon_g_per_kwh[i],
        price_per_kwh=facts.price_per_kwh[i],
        energy_j_total=scope.energy_mj / 1e3,
        carbon_g_total=scope.carbon_ug / 1e6,
    )


def _tenant(live: Live, fixed: Standing, tally: Tally, facts: Facts, name: str, now_s: int) -> view.TenantNow:
    scope = tally.scope(f"tenant/{name}")
    row = next(one for one in live.tables.tenants if one.name == name)
    seconds, span_s = scope.last(now_s), _span_s(scope, now_s)
    requests, inputs, outputs = _rates(seconds, span_s)
    ttft, tpot = _percentiles(seconds, "ttft_s"), _percentiles(seconds, "tpot_s")
    budget = row.budget_per_month_nano
    return view.TenantNow(
        name=name,
        requests_per_s=requests,
        tokens_per_s=inputs + outputs,
        ttft_s_p50=ttft[0],
        ttft_s_p99=ttft[1],
        ttft_slo_s=row.ttft_slo_s,
        tpot_s_p50=tpot[0],
        tpot_s_p99=tpot[1],
        tpot_slo_s=row.tpot_slo_s,
        attainment_ratio=_attained(seconds),
        attainment_promised_ratio=fixed.promised.get(name),
        spent=facts.spent_month.get(name, 0.0),
        budget=None if budget is None else budget / 1e9,
        requests_total=dict(scope.outcomes),
        refused_total=dict(scope.refused),
        slo_requests_total=scope.slo_requests,
        slo_met_total=scope.slo_met,
        input_tokens_total=scope.input_tokens,
        cached_tokens_total=scope.cached_tokens,
        output_tokens_total=scope.output_tokens,
        revenue_total=scope.price_nano / 1e9,
        ttft_s_counts=list(scope.ttft_counts),
        ttft_s_sum=scope.ttft_sum_s,
        tpot_s_counts=list(scope.tpot_counts),
        tpot_s_sum=scope.tpot_sum_s,
    )


def _errors(tally: Tally, now_s: int) -> list[view.ErrorNow]:
    kinds: dict[tuple[str, str], list[tuple[int, str, str]]] = {}
    for at_s, outcome, reason, tenant, where in tally.errors:
        if at_s >= now_s - ERRORS_S:
            kinds.setdefault((outcome, reason), []).append((at_s, tenant, where))
    made = [
        view.ErrorNow(
            outcome="refused" if outcome == "refused" else "failed",
            reason=reason,
            requests=len(found),
            tenants=sorted({tenant for _, tenant, _ in found})[:8],
            where=sorted({where for _, _, where in found})[:8],
            last_ns=max(at_s for at_s, _, _ in found) * 1_000_000_000,
        )
        for (outcome, reason), found in kinds.items()
    ]
    return sorted(made, key=lambda one: -one.requests)


def _site_ladder(live: Live, fixed: Standing, tally: Tally, facts: Facts, i: int, now_s: int) -> list[rungs.Rung]:
    """Return a site's ladder as it stands now: what is up in place of a run's records."""
    tables = live.tables
    name = tables.sites[i].name
    plant = fixed.plants[name]
    raw, why = upper_rungs(plant, live.day)
    here = [(r, one) for r, one in enumerate(tables.replicas) if one.site_i == i]
    up = [r for r, _ in here if facts.replicas[r].state == "up"]
    on = [r for r, _ in here if facts.replicas[r].state != "parked"]
    share_up = len(up) / len(on) if on else 0.0
    limit = facts.site_limit_kw[i]
    healthy = raw["racked"] * share_up
    if limit is not None and limit / 1000.0 < healthy:
        healthy, why["healthy"] = limit / 1000.0, "power_limit"
    raw["healthy"] = healthy
    half = {i: _half_load_tokens_per_s(live, i) for i in {one.deployment_i for _, one in here}}
    full = sum(half[one.deployment_i] * 2.0 for _, one in here)
    within = sum(half[tables.replicas[r].deployment_i] for r in up)
    seconds = tally.scope(f"site/{name}").last(now_s)
    span_s = _span_s(tally.scope(f"site/{name}"), now_s)
    sold = sum(one.input_tokens + one.output_tokens for one in seconds) / span_s
    raw["within_slo"] = healthy * (within / full if full > 0.0 else 0.0) * 2.0
    raw["sold"] = raw["within_slo"] * min(1.0, sold / within) if within > 0.0 else 0.0
    made = rungs.ladder(raw, {key: word for key, word in why.items() if key in rungs.RUNGS})
    mix = full / raw["racked"] if raw["racked"] > 0.0 else 0.0
    return rungs.with_tokens(made, {"within_slo": within, "sold": min(sold, within)}, mix)


def _half_load_tokens_per_s(live: Live, deployment_i: int) -> float:
    """Return what a replica answers in a second at half load: the twin's nominal speed."""
    from baseload.simulate.engines import half_load_sequences

    engine = live.twin.engines[deployment_i]
    return half_load_sequences(engine) / engine.spec.decode_s_per_token


def _steps(ladder: Sequence[rungs.Rung]) -> list[Step]:
    return [
        Step(
            name="within SLO" if rung.name == "within_slo" else rung.name,
            mw=rung.mw,
            raw_mw=rung.raw_mw,
            lost_mw=rung.lost_mw,
            excess_mw=rung.excess_mw,
            tokens_per_s=rung.tokens_per_s,
            lost_tokens_per_s=rung.lost_tokens_per_s,
            excess_tokens_per_s=rung.excess_tokens_per_s,
            modelled=rung.modelled or rung.name == "within_slo",
            reason=rungs.REASONS[rung.reason] if rung.lost_mw > 0.0 or rung.lost_tokens_per_s > 0.0 else "",
        )
        for rung in ladder
    ]


def series_point(taken: view.Snapshot) -> dict[str, float | None]:
    """Return the columns of one second for the fleet's series."""
    totals = taken.totals
    return {name: getattr(totals, name) for name in view.SERIES_COLUMNS}


def site_point(site: view.SiteNow) -> dict[str, float | None]:
    """Return the same for a site; what a site does not have is None."""
    return {name: getattr(site, name, None) for name in view.SERIES_COLUMNS} | {
        "output_tokens_per_s": site.tokens_per_s
    }


def tenant_point(tenant: view.TenantNow) -> dict[str, float | None]:
    """Return the same for a tenant."""
    return {name: getattr(tenant, name, None) for name in view.SERIES_COLUMNS} | {
        "output_tokens_per_s": tenant.tokens_per_s
    }
