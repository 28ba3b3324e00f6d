"""The snapshot as Prometheus metrics, in base units (seconds, watts, joules, ratios), as Prometheus wants them.

Labels are bounded: every label value is a name that the fleet file, or one of our own lists of words, holds; a name that
a client sent never becomes one. Beyond LABELS_MAX series of one metric the rest is left out and counted. Nothing is kept
here between two calls: counters are the owner's. Alert rules over these names are docs/alerts.yml.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Sequence
from typing import get_args

from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.core import (
    CounterMetricFamily,
    GaugeMetricFamily,
    HistogramMetricFamily,
    InfoMetricFamily,
    Metric,
)
from prometheus_client.registry import Collector

from baseload.app.web.view import (
    OUTCOMES,
    TPOT_EDGES_S,
    TTFT_EDGES_S,
    AlarmKind,
    AlarmLevel,
    ReplicaNow,
    ReplicaState,
    Snapshot,
)

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"
LABELS_MAX = 4000
STATES: tuple[ReplicaState, ...] = get_args(ReplicaState)
ALARM_KINDS: tuple[AlarmKind, ...] = get_args(AlarmKind)
ALARM_LEVELS: tuple[AlarmLevel, ...] = get_args(AlarmLevel)

Rows = Iterable[tuple[Sequence[str], float | None]]


def exposition(snapshot: Snapshot) -> bytes:
    """Return the metrics of a snapshot as text."""
    registry = CollectorRegistry(auto_describe=False)
    registry.register(_Now(snapshot))
    return generate_latest(registry)


class _Now(Collector):
    def __init__(self, snapshot: Snapshot) -> None:
        self.snapshot = snapshot
        self.left_out = 0

    def collect(self) -> Iterable[Metric]:
        now = self.snapshot
        yield from self._process(now)
        yield from self._tenants(now)
        yield from self._sites(now)
        yield from self._replicas(now.replicas)
        yield self._gauge("baseload_metrics_left_out", "Series left out, to keep labels bounded", [((), self.left_out)])

    def _bounded(self, rows: Rows) -> Iterator[tuple[Sequence[str], float]]:
        known = [(labels, value) for labels, value in rows if value is not None]
        self.left_out += max(0, len(known) - LABELS_MAX)
        yield from known[:LABELS_MAX]

    def _gauge(self, name: str, about: str, rows: Rows, labels: Sequence[str] = ()) -> Metric:
        family = GaugeMetricFamily(name, about, labels=labels)
        for values, value in self._bounded(rows):
            family.add_metric(values, value)
        return family

    def _counter(self, name: str, about: str, rows: Rows, labels: Sequence[str] = ()) -> Metric:
        family = CounterMetricFamily(name, about, labels=labels)
        for values, value in self._bounded(rows):
            family.add_metric(values, value)
        return family

    def _process(self, now: Snapshot) -> Iterator[Metric]:
        gauge, counter = self._gauge, self._counter
        info = {"version": now.baseload, "fleet": now.fleet, "fleet_digest": now.fleet_digest, "currency": now.currency}
        yield InfoMetricFamily("baseload", "What runs", value=info)
        yield gauge("baseload_start_time_seconds", "When the owner began, Unix time", [((), now.started_ns / 1e9)])
        yield gauge(
            "baseload_snapshot_time_seconds", "When these figures were taken, Unix time", [((), now.at_ns / 1e9)]
        )
        yield gauge(
            "baseload_tables_version", "Version of the fleet file in force, counts reloads", [((), now.tables_version)]
        )
        yield gauge(
            "baseload_reload_refused", "1 while the newest fleet file is refused", [((), float(bool(now.reload_fault)))]
        )
        yield gauge("baseload_workers", "Gateway workers that run", [((), now.workers_up)])
        yield gauge("baseload_workers_wanted", "Gateway workers that should run", [((), now.workers)])
        yield gauge("baseload_draining", "1 while the gateway takes no new requests", [((), float(now.draining))])
        yield gauge("baseload_streams_open", "Requests being answered", [((), now.totals.streams_open)])
        yield gauge("baseload_requests_waiting", "Requests that wait for a free replica", [((), now.totals.waiting)])
        yield counter(
            "baseload_upstream_requests",
            "Requests sent to engines, retries included",
            [((), now.totals.upstream_total)],
        )
        yield counter("baseload_retries", "Requests sent to engines again", [((), now.totals.retries_total)])
        yield gauge(
            "baseload_cost_per_hour",
            "Cost an hour: capex, opex, energy, idle",
            [((now.currency,), now.totals.cost_per_h)],
            ["currency"],
        )
        yield gauge(
            "baseload_ledger_available",
            "1 while the ledger takes rows; 0: no billable request is served",
            [((), float(now.ledger.available))],
        )
        yield gauge("baseload_ledger_rows", "Rows of the ledger", [((), now.ledger.rows_total)])
        signed = None if now.ledger.checkpoint_ns is None else now.ledger.checkpoint_ns / 1e9
        yield gauge("baseload_ledger_checkpoint_time_seconds", "Newest signed checkpoint, Unix time", [((), signed)])
        kinds = Counter((one.kind, one.level) for one in now.alarms)
        rows = [((kind, level), kinds[kind, level]) for kind in ALARM_KINDS for level in ALARM_LEVELS]
        yield gauge("baseload_alarms", "Alarms that hold", rows, ["kind", "level"])

    def _tenants(self, now: Snapshot) -> Iterator[Metric]:
        gauge, counter, tenants = self._gauge, self._counter, now.tenants
        rows: list[tuple[Sequence[str], float | None]] = [
            ((one.name, outcome), one.requests_total.get(outcome, 0)) for one in tenants for outcome in OUTCOMES
        ]
        yield counter("baseload_requests", "Requests that ended", rows, ["tenant", "outcome"])
        refused = [((one.name, why), n) for one in tenants for why, n in sorted(one.refused_total.items())[:32]]
        yield counter("baseload_refused", "Requests refused", refused, ["tenant", "reason"])
        yield counter(
            "baseload_slo_requests",
            "Requests that count towards the SLO",
            [((one.name,), one.slo_requests_total) for one in tenants],
            ["tenant"],
        )
        yield counter(
            "baseload_slo_met",
            "Requests within the SLO",
            [((one.name,), one.slo_met_total) for one in tenants],
            ["tenant"],
        )
        promised = [((one.name,), one.attainment_promised_ratio) for one in tenants]
        yield gauge("baseload_slo_promised_ratio", "Share of requests promised within the SLO", promised, ["tenant"])
        tokens: list[tuple[Sequence[str], float | None]] = []
        for one in tenants:
            kinds = (
                ("input", one.input_tokens_total),
                ("cached", one.cached_tokens_total),
                ("output", one.output_tokens_total),
            )
            tokens += [((one.name, kind), n) for kind, n in kinds]
        yield counter("baseload_tokens", "Tokens billed", tokens, ["tenant", "kind"])
        money = [((one.name, now.currency), one.revenue_total) for one in tenants]
        yield counter("baseload_revenue", "Price of what was served, in the currency", money, ["tenant", "currency"])
        yield gauge(
            "baseload_budget",
            "Budget of the month, in the currency",
            [((one.name, now.currency), one.budget) for one in tenants],
            ["tenant", "currency"],
        )
        yield gauge(
            "baseload_budget_spent",
            "Spent of it, in the currency",
            [((one.name, now.currency), one.spent) for one in tenants],
            ["tenant", "currency"],
        )
        ttft = ((one.name, one.ttft_s_counts, one.ttft_s_sum) for one in tenants)
        yield self._histogram("baseload_ttft_seconds", "Time to first token", TTFT_EDGES_S, ttft)
        tpot = ((one.name, one.tpot_s_counts, one.tpot_s_sum) for one in tenants)
        yield self._histogram("baseload_tpot_seconds", "Time per output token after the first", TPOT_EDGES_S, tpot)

    def _histogram(
        self, name: str, about: str, edges: Sequence[float], rows: Iterable[tuple[str, list[int], float]]
    ) -> Metric:
        family = HistogramMetricFamily(name, about, labels=["tenant"])
        for tenant, counts, total_s in list(rows)[: LABELS_MAX // 16]:
            if not counts:
                continue
            assert len(counts) == len(edges) + 1, (name, len(counts))
            at, buckets = 0, []
            for edge, count in zip([*map(str, edges), "+Inf"], counts):
                at += count
                buckets.append((edge, float(at)))
            family.add_metric([tenant], buckets=buckets, sum_value=total_s)
        return family

    def _sites(self, now: Snapshot) -> Iterator[Metric]:
        gauge, sites = self._gauge, now.sites
        label = ["site"]

        def watts(name: str) -> Rows:
            values = ((one.name, getattr(one, name)) for one in sites)
            return [((site,), None if kw is None else kw * 1e3) for site, kw in values]

        yield gauge(
            "baseload_site_open",
            "1 while the site takes requests",
            [((one.name,), float(one.state in ("open", "limited"))) for one in sites],
            label,
        )
        yield gauge("baseload_site_power_watts", "Power drawn at the meter", watts("power_kw"), label)
        yield gauge("baseload_site_power_limit_watts", "Power that may be drawn now", watts("limit_kw"), label)
        yield gauge("baseload_site_power_contract_watts", "Power contracted", watts("contract_kw"), label)
        carbon = [((one.name,), one.carbon_g_per_kwh) for one in sites]
        yield gauge("baseload_site_grid_carbon_grams_per_kwh", "Carbon of the grid's electricity", carbon, label)
        prices = [((one.name, now.currency), one.price_per_kwh) for one in sites]
        yield gauge(
            "baseload_site_price_per_kwh", "Price of electricity, in the currency", prices, ["site", "currency"]
        )
        yield self._counter(
            "baseload_site_energy_joules",
            "Energy of requests and idleness",
            [((one.name,), one.energy_j_total) for one in sites],
            label,
        )
        yield self._counter(
            "baseload_site_carbon_grams",
            "Carbon of that energy",
            [((one.name,), one.carbon_g_total) for one in sites],
            label,
        )
        rungs: list[tuple[Sequence[str], float | None]] = [
            ((one.name, step.name), step.mw * 1e6) for one in sites for step in one.ladder
        ]
        yield gauge("baseload_ladder_watts", "IT power on each rung of the capacity ladder", rungs, ["site", "rung"])

    def _replicas(self, replicas: Sequence[ReplicaNow]) -> Iterator[Metric]:
        gauge, counter = self._gauge, self._counter
        pools: defaultdict[tuple[str, str, str], list[ReplicaNow]] = defaultdict(list)
        for one in replicas:
            pools[one.deployment, one.site, one.kind].append(one)
        label = ["deployment", "site", "engine"]
        states: list[tuple[Sequence[str], float | None]] = []
        for key, ones in pools.items():
            count = Counter(one.state for one in ones)
            states += [((*key, state), count[state]) for state in STATES]
        yield gauge("baseload_replicas", "Replicas by state", states, [*label, "state"])

        def each(name: str) -> Rows:
            return [(key, float(sum(getattr(one, name) for one in ones))) for key, ones in pools.items()]

        yield gauge("baseload_replicas_ejected", "Replicas left alone after failures", each("ejected"), label)
        yield gauge(
            "baseload_replica_outstanding", "Requests promised to engines, not finished", each("outstanding"), label
        )
        yield gauge("baseload_replica_running", "Sequences that engines run, as scraped", each("running"), label)
        yield gauge("baseload_replica_waiting", "Requests that wait in engines, as scraped", each("waiting"), label)
        yield counter("baseload_engine_restarts", "Engines started again", each("restarts_total"), label)
        yield counter("baseload_ejections", "Times a replica was left alone", each("ejections_total"), label)
        free: list[tuple[Sequence[str], float | None]] = [
            (key, min((one.kv_free_ratio for one in ones if one.kv_free_ratio is not None), default=None))
            for key, ones in pools.items()
        ]
        yield gauge("baseload_kv_free_ratio", "KV cache that is free, at the fullest replica", free, label)
