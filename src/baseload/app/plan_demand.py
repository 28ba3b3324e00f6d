"""What is asked of a plan: who asks from where for what, how much at the peak, and how it grows.

The rate and the lengths come from the fleet file's trace or generator as `simulate` reads it; a peak is what the busiest
tenth of ten-second windows reaches. Growth is by tenant and counts to the end of each quarter.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import date, timedelta

import numpy as np
import numpy.typing as npt

from baseload.adapters import generators, trace_files, trace_transforms
from baseload.errors import RunError
from baseload.fleet import dates
from baseload.fleet.check_service import called_models
from baseload.fleet.load import Loaded
from baseload.fleet.model import Fleet, Slo, Tenant
from baseload.fleet.planning import Plan, grown
from baseload.plan.table import ReplicaTable
from baseload.units import NS_PER_S, S_PER_HOUR, TOKENS_PER_MTOK

Floats = npt.NDArray[np.float64]
WINDOW_S = 10.0
PEAK_QUANTILE = 0.95
SAMPLE_ROWS = 400_000
DAYS_PER_YEAR = 365.25


@dataclass(frozen=True, slots=True, kw_only=True)
class Traffic:
    """The run's demand: mean requests a second, the peak over it, tokens of a mean request, and where that is from."""

    mean_per_s: float
    peak_to_mean: float
    input_tokens: float
    output_tokens: float
    span_s: float
    how: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Service:
    """A model at a promise (SLO): what a replica is measured against."""

    name: str
    model: str
    slo: Slo


@dataclass(frozen=True, slots=True, kw_only=True)
class Client:
    """A tenant in a region of users; `region` is empty where the fleet declares none."""

    tenant: str
    region: str

    @property
    def name(self) -> str:
        """Tenant and region in one word."""
        return f"{self.tenant} in {self.region}" if self.region else self.tenant


def traffic(loaded: Loaded, plan: Plan, seed: int = 0) -> Traffic:
    """Return the demand that the fleet file names, measured on its first rows."""
    demand = loaded.fleet.demand
    if demand.generator is not None:
        source = generators.generate(
            demand.generator, seed=seed, start=dates.run_day(loaded.fleet), start_hour_utc=demand.start_hour_utc,
            base_folder=loaded.base_folder, block_tokens=16,
        )  # fmt: skip
    elif demand.trace is not None:
        source = trace_files.open_trace(demand.trace, base_folder=loaded.base_folder, prefix_block_tokens=16)
    else:
        raise RunError(
            f"{loaded.path}: demand names neither a trace nor a generator, so there is nothing to plan for; add one"
        )
    if source.closed_loop is not None:
        raise RunError(f"{loaded.path}: a closed loop has no rate of its own to plan for; name a trace or another kind")
    if demand.scale != 1.0:
        source = trace_transforms.scaled(source, demand.scale)
    rows = next(iter(source.chunks(SAMPLE_ROWS)), None)
    if rows is None or len(rows) < 2:
        raise RunError(f"{source.name}: holds no demand to plan for; choose another trace")
    at_s = rows.arrival_ns.astype(float) / NS_PER_S
    span_s = float(source.duration_s or at_s[-1]) if len(rows) < SAMPLE_ROWS else float(at_s[-1])
    span_s = max(span_s, 1e-3)
    mean = len(rows) / span_s
    ratio = plan.demand.peak_to_mean
    how = "declared" if ratio is not None else f"the busiest 5 % of windows of {WINDOW_S:g} s of {source.name}"
    return Traffic(
        mean_per_s=mean,
        peak_to_mean=_peak(at_s, span_s, mean) if ratio is None else ratio,
        input_tokens=float(rows.input_tokens.mean()),
        output_tokens=float(rows.output_tokens.mean()),
        span_s=span_s,
        how=how,
    )


def _peak(at_s: Floats, span_s: float, mean: float) -> float:
    """Return the rate that 5 % of windows exceed, over the mean; 1 where the run is shorter than four windows."""
    width = min(WINDOW_S, span_s / 4.0)
    counts = np.bincount((at_s / width).astype(np.int64))[: int(span_s / width)]
    return max(1.0, float(np.quantile(counts, PEAK_QUANTILE)) / width / mean) if len(counts) >= 4 else 1.0


def services(table: ReplicaTable) -> list[Service]:
    """Return the table's services, in its order."""
    first = {row.service: row for row in reversed(table.rows)}
    return [
        Service(
            name=name,
            model=first[name].model,
            slo=Slo(
                ttft_ms=first[name].ttft_ms,
                tpot_ms=first[name].tpot_ms,
                e2e_ms=first[name].e2e_ms,
                attainment=first[name].attainment,
            ),
        )
        for name in table.services
    ]


def promises(fleet: Fleet) -> list[tuple[str, Slo, tuple[str, ...]]]:
    """Return each model at each promise that somebody was given, with who: (model, promise, tenants)."""
    found: dict[tuple[str, Slo], list[str]] = {}
    deployed = {deployment.model for deployment in fleet.deployments.values()}
    for name, tenant in tenants(fleet).items():
        for model in called_models(tenant, fleet) if tenant.share > 0.0 else ():
            if model in deployed:
                found.setdefault((model, tenant.slo), []).append(name)
    return [(model, slo, tuple(names)) for (model, slo), names in found.items()]


def tenants(fleet: Fleet) -> dict[str, Tenant]:
    """Return the tenants; one that may be anybody where the file names none."""
    return dict(fleet.tenants) or {"anyone": Tenant()}


def clients(fleet: Fleet) -> list[Client]:
    """Return each tenant in each of its regions."""
    return [
        Client(tenant=name, region=region)
        for name, tenant in tenants(fleet).items()
        if tenant.share > 0.0
        for region in (tenant.regions or fleet.regions or {"": 1.0})
        if not tenant.regions or tenant.regions[region] > 0.0
    ]


def peak_demand(
    fleet: Fleet, plan: Plan, asked: Traffic, who: Sequence[Client], table: ReplicaTable, first: date,
    ends: Sequence[date],
) -> Floats:  # fmt: skip
    """Return requests a second at the peak, by client, service of the table, and period; they grow from the day `first` on."""
    what = table.services
    everyone = tenants(fleet)
    total_share = sum(tenant.share for tenant in everyone.values())
    demand = np.zeros((len(who), len(what), len(ends)))
    peak = asked.mean_per_s * asked.peak_to_mean
    deployed = {deployment.model for deployment in fleet.deployments.values()}
    for r, client in enumerate(who):
        tenant = everyone[client.tenant]
        here = tenant.regions or dict.fromkeys(fleet.regions, 1.0) or {"": 1.0}
        called = called_models(tenant, fleet)
        weights = {m: tenant.models.get(m, 0.0) if tenant.models else 1.0 for m in called if m in deployed}
        if not weights:
            continue
        part = tenant.share / total_share * here[client.region] / sum(here.values())
        growth = np.array([grown(plan, client.tenant, years_between(first, end)) for end in ends])
        for model, weight in weights.items():
            service = table.service_of(client.tenant, model)
            if weight > 0.0 and service is not None:
                demand[r, what.index(service)] += peak * part * weight / sum(weights.values()) * growth
    return demand


def years_between(first: date, second: date) -> float:
    """Return years from one day to another.

    >>> round(years_between(date(2026, 1, 1), date(2028, 1, 1)), 3)
    1.999
    """
    return (second - first).days / DAYS_PER_YEAR


def load_ratio(plan: Plan, asked: Traffic) -> float:
    """Return mean load over peak load, over a year."""
    blocks = plan.demand.load_blocks
    if blocks:
        return sum(block.hours_ratio * block.of_peak for block in blocks)
    return 1.0 / asked.peak_to_mean


def income_per_request(tenant: Tenant, asked: Traffic) -> float:
    """Return what a mean request of a tenant earns at its list prices."""
    price = tenant.price
    paid = asked.input_tokens * price.input_per_mtok + asked.output_tokens * price.output_per_mtok
    return paid / TOKENS_PER_MTOK


def period_ends(days: Sequence[date]) -> list[date]:
    """Return the last days of quarters that begin on `days`.

    >>> period_ends([date(2027, 1, 1)])
    [datetime.date(2027, 3, 31)]
    """
    ends = []
    for day in days:
        index = day.year * 12 + day.month - 1 + 3
        ends.append(date(index // 12, index % 12 + 1, 1) - timedelta(days=1))
    return ends


def seconds_per_quarter() -> float:
    """Return the seconds of a quarter of a year."""
    return 2190.0 * S_PER_HOUR
