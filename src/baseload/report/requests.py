"""The requests table by fleet, tenant, model, deployment and site: latencies, SLO attainment, goodput, tokens, revenue.

One pass of DuckDB for the sums and one for each latency's quantiles. A quantile is the smallest value that the share
does not exceed: exact up to 5 million rows, beyond that (or with weighted windows) from bins 0.4 % wide.
Client-side times include the network. Only served requests that arrived after the warm-up have a latency.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from math import exp, inf

import numpy as np

from baseload.fleet.model import Fleet, Tenant
from baseload.ports import Run, RunMeta
from baseload.records import REASON_NAMES, STATUS_NAMES
from baseload.report.model import LatencyCurve, Number, Refusal, Service
from baseload.units import NS_PER_S, TOKENS_PER_MTOK

EXACT_ROWS_MAX = 5_000_000
BINS_PER_E = 256  # of latency, for approximate quantiles: each 0.4 % wide
CURVE_BINS_PER_E = 48  # for charts: 2 % wide
QUANTILES = (0.5, 0.9, 0.99)
SCOPES = ("fleet", "tenant", "model", "deployment", "site")
METRICS = ("ttft", "tpot", "e2e")

Key = tuple[str, int]
"""A scope and the index within it; ("fleet", 0) for all."""

# Which rows count, and each row's latencies and limits. `bounds`, `terms` and `windows` are small tables of ours.
_PLAIN = """
CREATE OR REPLACE TEMP VIEW asked AS SELECT r.*, CAST(1 AS DOUBLE) AS weight FROM requests r
"""
_WEIGHTED = """
CREATE OR REPLACE TEMP VIEW asked AS
SELECT r.*, coalesce(w.weight, 0.0) AS weight
FROM requests r LEFT JOIN windows w ON r.arrival_ns >= w.start_ns AND r.arrival_ns < w.until_ns
"""
_TIMED = """
CREATE OR REPLACE TEMP VIEW timed AS
SELECT a.*, t.*  EXCLUDE (tenant_i),
    a.status = 0 AS is_served,
    a.arrival_ns >= b.warmup_ns AS counts,
    CASE WHEN a.first_token_ns >= 0 THEN a.first_token_ns - a.arrival_ns + a.rtt_ns END AS ttft_ns,
    CASE WHEN a.status = 0 AND a.output_tokens > 1
         THEN (a.finish_ns - a.first_token_ns) / (a.output_tokens - 1.0) END AS tpot_ns,
    CASE WHEN a.status = 0 THEN a.finish_ns - a.arrival_ns + a.rtt_ns END AS e2e_ns,
    b.duration_ns - a.arrival_ns AS age_ns
FROM asked a JOIN terms t USING (tenant_i) CROSS JOIN bounds b
"""
_JUDGED = """
CREATE OR REPLACE TEMP VIEW judged AS
SELECT *,
    counts AND is_served AS has_latency,
    counts AND is_served AND ttft_ns <= ttft_limit_ns AND coalesce(tpot_ns <= tpot_limit_ns, TRUE)
        AND e2e_ns <= e2e_limit_ns AS met,
    counts AND (status <> 3 OR coalesce(ttft_ns, age_ns) > ttft_limit_ns) AS is_judged
FROM timed
"""

# First by all four keys at once, then rolled up: one pass over the rows.
_SUMS = """
WITH small AS (
    SELECT tenant_i, model_i, deployment_i, site_i,
        sum(weight) AS requests_in,
        sum(weight) FILTER (status = 0) AS served, sum(weight) FILTER (status = 1) AS refused,
        sum(weight) FILTER (status = 2) AS failed, sum(weight) FILTER (status = 3) AS unfinished,
        sum(weight) FILTER (has_latency) AS timed, sum(weight) FILTER (has_latency AND output_tokens > 1) AS tpots,
        sum(weight * ttft_ns) FILTER (has_latency) AS ttft, sum(weight * tpot_ns) FILTER (has_latency) AS tpot,
        sum(weight * e2e_ns) FILTER (has_latency) AS e2e,
        sum(weight) FILTER (is_judged) AS judged, sum(weight) FILTER (met) AS met,
        sum(weight * (input_tokens + output_tokens)) FILTER (met) AS met_tokens,
        sum(weight * input_tokens) FILTER (has_latency) AS timed_input,
        sum(weight * output_tokens) FILTER (has_latency) AS timed_output,
        sum(weight * input_tokens) FILTER (status = 0) AS input_tokens,
        sum(weight * least(cached_tokens, input_tokens)) FILTER (status = 0) AS cached_tokens,
        sum(weight * output_tokens) FILTER (status = 0) AS output_tokens,
        sum(weight * n_preempted) AS preemptions,
        sum(weight * energy_j) AS work_energy_j,
        sum(weight * ((input_tokens - least(cached_tokens, input_tokens)) * input_price
            + least(cached_tokens, input_tokens) * cached_price + output_tokens * output_price))
            FILTER (status = 0) AS list_revenue
    FROM judged GROUP BY tenant_i, model_i, deployment_i, site_i
    ORDER BY tenant_i, model_i, deployment_i, site_i
)
SELECT grouping(tenant_i, model_i, deployment_i, site_i) AS g,
    coalesce(tenant_i, model_i, deployment_i, site_i, 0) AS i,
    sum(COLUMNS(* EXCLUDE (tenant_i, model_i, deployment_i, site_i)))
FROM small
GROUP BY GROUPING SETS ((), (tenant_i), (model_i), (deployment_i), (site_i))
ORDER BY g, i
"""
_QUANTILES = """
SELECT grouping(tenant_i, model_i, deployment_i, site_i) AS g,
    coalesce(tenant_i, model_i, deployment_i, site_i, 0) AS i,
    quantile_disc(CASE ? WHEN 'ttft' THEN ttft_ns WHEN 'tpot' THEN tpot_ns ELSE e2e_ns END, [0.5, 0.9, 0.99]) AS q
FROM judged WHERE has_latency
GROUP BY GROUPING SETS ((), (tenant_i), (model_i), (deployment_i), (site_i))
ORDER BY g, i
"""
_BINS = """
WITH latencies AS (
    SELECT tenant_i, model_i, deployment_i, site_i, weight,
        CASE ? WHEN 'ttft' THEN ttft_ns WHEN 'tpot' THEN tpot_ns ELSE e2e_ns END AS x
    FROM judged WHERE has_latency AND weight > 0.0
), small AS (
    SELECT tenant_i, model_i, deployment_i, site_i, CAST(ceil(ln(greatest(x, 1.0)) * ?) AS INTEGER) AS bin,
        sum(weight) AS weight
    FROM latencies WHERE x IS NOT NULL GROUP BY tenant_i, model_i, deployment_i, site_i, bin
)
SELECT grouping(tenant_i, model_i, deployment_i, site_i) AS g,
    coalesce(tenant_i, model_i, deployment_i, site_i, 0) AS i, bin, sum(weight) AS weight
FROM small
GROUP BY GROUPING SETS ((bin), (tenant_i, bin), (model_i, bin), (deployment_i, bin), (site_i, bin))
ORDER BY g, i, bin
"""
_REFUSALS = """
SELECT tenant_i, status, reason, sum(weight) AS n FROM asked WHERE status <> 0
GROUP BY tenant_i, status, reason HAVING n > 0.0 ORDER BY n DESC, tenant_i, status, reason
"""
_SCOPE_OF = {
    15: "fleet",
    7: "tenant",
    11: "model",
    13: "deployment",
    14: "site",
}  # grouping(): a bit per column left out


@dataclass(frozen=True, slots=True)
class Span:
    """How long a run's totals and rates stand for, in s."""

    span_s: float
    measured_s: float


def span_of(meta: RunMeta) -> Span:
    """Return the time that totals stand for, and the time that rates stand for (without warm-up).

    >>> from baseload.ports import Names, TraceMeta
    >>> names = Names(tenants=[], regions=[], models=[], deployments=[], sites=[])
    >>> span_of(RunMeta(fleet="a", fleet_digest="", seed=1, trace=TraceMeta(name="t"), start_utc="", names=names,
    ...     duration_ns=60_000_000_000, warmup_ns=10_000_000_000))
    Span(span_s=60.0, measured_s=50.0)
    """
    if meta.windows:
        weighted_s = sum((window.until_s - window.start_s) * window.weight for window in meta.windows)
        return Span(weighted_s, weighted_s)
    duration_s = meta.duration_ns / NS_PER_S
    return Span(duration_s, max(0.0, duration_s - meta.warmup_ns / NS_PER_S))


def tenant_of(fleet: Fleet, name: str) -> Tenant:
    """Return a tenant by name; the anonymous one where the fleet file has none."""
    return fleet.tenants.get(name) or Tenant()


@dataclass(slots=True)
class Requests:
    """What the requests table says, by scope; `services` is the way in."""

    sums: dict[Key, dict[str, float | None]]
    quantiles: dict[Key, dict[str, tuple[float, ...]]]
    curves: list[LatencyCurve]
    refusals: list[Refusal]
    how: str  # in words, how quantiles were found
    whole: bool  # counts are whole numbers: no weighted windows
    span: Span = field(default_factory=lambda: Span(0.0, 0.0))

    def service(self, scope: str, i: int = 0) -> Service:
        """Return the figures of one fleet (0), tenant, model, deployment or site."""
        found = self.sums.get((scope, i), {})
        quantiles = self.quantiles.get((scope, i), {})

        def number(name: str) -> float:
            return found.get(name) or 0.0

        def count(name: str) -> Number:
            return int(number(name)) if self.whole else number(name)

        figures: dict[str, Number] = {
            name: count(name) for name in ("requests_in", "served", "refused", "failed", "unfinished")
        }
        for metric in METRICS:
            n = number("tpots" if metric == "tpot" else "timed")
            figures[f"{metric}_s_mean"] = ratio(number(metric) / NS_PER_S, n)
            values = quantiles.get(metric, (None,) * len(QUANTILES))
            for share, value in zip(QUANTILES, values):
                figures[f"{metric}_s_p{round(share * 100)}"] = None if value is None else value / NS_PER_S
        measured_s = self.span.measured_s
        figures |= {
            "slo_attainment_ratio": ratio(number("met"), number("judged")),
            "slo_attainment_served_ratio": ratio(number("met"), number("timed")),
            "goodput_requests_per_s": ratio(number("met"), measured_s),
            "goodput_tokens_per_s": ratio(number("met_tokens"), measured_s),
            "requests_per_s": ratio(number("timed"), measured_s),
            "input_tokens_per_s": ratio(number("timed_input"), measured_s),
            "output_tokens_per_s": ratio(number("timed_output"), measured_s),
            "input_tokens": count("input_tokens"),
            "cached_tokens": count("cached_tokens"),
            "output_tokens": count("output_tokens"),
            "cached_ratio": ratio(number("cached_tokens"), number("input_tokens")),
            "preemptions": count("preemptions"),
            "work_energy_j": number("work_energy_j"),
            "list_revenue": number("list_revenue"),
        }
        return Service(**figures)


def ratio(a: float, b: float) -> float | None:
    """Return a / b, and None where b is 0: what is not defined is not a number.

    >>> ratio(1.0, 4.0), ratio(1.0, 0.0)
    (0.25, None)
    """
    return None if b == 0.0 else a / b


def read(run: Run, fleet: Fleet) -> Requests:
    """Return what the requests table says."""
    meta = run.meta
    _offer(run, fleet, meta)
    run.query(_WEIGHTED if meta.windows else _PLAIN)
    run.query(_TIMED)
    run.query(_JUDGED)
    n_rows = run.query("SELECT count(*) FROM requests")[0][0]
    exact = not meta.windows and n_rows <= EXACT_ROWS_MAX
    names = ["g", "i", *_columns_of_sums()]
    sums = {}
    for row in run.query(_SUMS):
        values = dict(zip(names, row))
        key = (_SCOPE_OF[values.pop("g")], int(values.pop("i")))
        sums[key] = {name: None if value is None else float(value) for name, value in values.items()}
    return Requests(
        sums=sums,
        quantiles=_exact_quantiles(run) if exact else _binned_quantiles(run),
        curves=_curves(run, fleet, meta),
        refusals=_refusals(run, meta),
        how="exact" if exact else "approximate, within 0.2 %: from bins 0.4 % wide",
        whole=not meta.windows,
        span=span_of(meta),
    )


def _columns_of_sums() -> list[str]:
    return [
        "requests_in", "served", "refused", "failed", "unfinished", "timed", "tpots", "ttft", "tpot", "e2e",
        "judged", "met", "met_tokens", "timed_input", "timed_output", "input_tokens", "cached_tokens",
        "output_tokens", "preemptions", "work_energy_j", "list_revenue",
    ]  # fmt: skip


def _offer(run: Run, fleet: Fleet, meta: RunMeta) -> None:
    """Hand the store what the fleet file says of tenants, and the bounds of the run."""
    tenants = [tenant_of(fleet, name) for name in meta.names.tenants]
    prices = [tenant.price for tenant in tenants]
    ms = NS_PER_S / 1000.0
    cached = [p.input_per_mtok if p.cached_per_mtok is None else p.cached_per_mtok for p in prices]
    run.table(
        "terms",
        {
            "tenant_i": np.arange(len(tenants), dtype=np.int16),
            "ttft_limit_ns": np.array([tenant.slo.ttft_ms * ms for tenant in tenants], float),
            "tpot_limit_ns": np.array([tenant.slo.tpot_ms * ms for tenant in tenants], float),
            "e2e_limit_ns": np.array([(tenant.slo.e2e_ms or inf) * ms for tenant in tenants], float),
            "input_price": np.array([p.input_per_mtok / TOKENS_PER_MTOK for p in prices], float),
            "cached_price": np.array([price / TOKENS_PER_MTOK for price in cached], float),
            "output_price": np.array([p.output_per_mtok / TOKENS_PER_MTOK for p in prices], float),
        },
    )
    run.table(
        "bounds",
        {"warmup_ns": np.array([meta.warmup_ns], np.int64), "duration_ns": np.array([meta.duration_ns], np.int64)},
    )
    windows = meta.windows
    run.table(
        "windows",
        {
            "start_ns": np.array([window.start_s * NS_PER_S for window in windows], float),
            "until_ns": np.array([window.until_s * NS_PER_S for window in windows], float),
            "weight": np.array([window.weight for window in windows], float),
        },
    )


def _exact_quantiles(run: Run) -> dict[Key, dict[str, tuple[float, ...]]]:
    found: dict[Key, dict[str, tuple[float, ...]]] = {}
    for metric in METRICS:
        for g, i, values in run.query(_QUANTILES, [metric]):
            if values is not None:
                found.setdefault((_SCOPE_OF[g], int(i)), {})[metric] = tuple(float(value) for value in values)
    return found


def _binned_quantiles(run: Run) -> dict[Key, dict[str, tuple[float, ...]]]:
    found: dict[Key, dict[str, tuple[float, ...]]] = {}
    for metric in METRICS:
        for key, (bins, weights) in _binned(run, metric, BINS_PER_E).items():
            total = np.cumsum(weights)
            at = [int(np.searchsorted(total, q * total[-1] * (1.0 - 1e-12))) for q in QUANTILES]
            found.setdefault(key, {})[metric] = tuple(exp((bins[k] - 0.5) / BINS_PER_E) for k in at)
    return found


def _binned(run: Run, metric: str, per_e: int) -> dict[Key, tuple[np.ndarray, np.ndarray]]:
    """Return for each scope the bins of a latency that hold anything, and their weights."""
    columns = run.columns(_BINS, [metric, float(per_e)])
    found = {}
    group = columns["g"].astype(np.int64) * 2**32 + columns["i"].astype(np.int64) + 1  # an index may be -1
    starts = np.flatnonzero(np.diff(group, prepend=-1))
    for start, until in zip(starts, [*starts[1:], len(group)]):
        key = (_SCOPE_OF[int(columns["g"][start])], int(columns["i"][start]))
        found[key] = (columns["bin"][start:until], columns["weight"][start:until])
    return found


def _curves(run: Run, fleet: Fleet, meta: RunMeta) -> list[LatencyCurve]:
    curves = []
    for metric in ("ttft", "tpot"):
        by_key = _binned(run, metric, CURVE_BINS_PER_E)
        for i, name in enumerate(meta.names.tenants):
            if ("tenant", i) not in by_key:
                continue
            bins, weights = by_key["tenant", i]
            slo = tenant_of(fleet, name).slo
            total = np.cumsum(weights)
            curves.append(
                LatencyCurve(
                    tenant=name,
                    metric=metric,
                    limit_s=(slo.ttft_ms if metric == "ttft" else slo.tpot_ms) / 1000.0,
                    latency_s=[exp(int(one) / CURVE_BINS_PER_E) / NS_PER_S for one in bins],
                    share=[float(one) for one in total / total[-1]],
                )
            )
    return curves


def _refusals(run: Run, meta: RunMeta) -> list[Refusal]:
    return [
        Refusal(
            tenant=_at(meta.names.tenants, tenant),
            status=_at(STATUS_NAMES, status),
            reason=_at(REASON_NAMES, reason),
            requests=float(n),
        )
        for tenant, status, reason, n in run.query(_REFUSALS)
    ]


def _at(names: Sequence[str], i: int) -> str:
    return names[i] if 0 <= i < len(names) else f"number {i}"


def tokens_of(service: Service) -> float:
    """Return the served tokens, input and output together."""
    return float(service.input_tokens or 0) + float(service.output_tokens or 0)


def by_name(names: Sequence[str], requests: Requests, scope: str) -> Mapping[str, Service]:
    """Return the services of a scope by name."""
    return {name: requests.service(scope, i) for i, name in enumerate(names)}
