"""Sums over what was settled: by tenant, by site and for the fleet, a second at a time, for 15 minutes.

Every settled row of the ledger passes here once; nothing is counted that is not in the ledger. What the figures become on
the live page is `live_view.py`.
"""

from __future__ import annotations

from bisect import bisect_left
from collections import deque
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

from baseload.app.web.view import SERIES_S, TPOT_EDGES_S, TTFT_EDGES_S
from baseload.records import FAILED, REASON_BUDGET, REASON_NAMES, REFUSED, SERVED
from baseload.serve.rows import SettleRow
from baseload.serve.settled import Alike, alike_of
from baseload.serve.tables import Tables

SAMPLES_MAX = 2000  # latencies kept of a second and scope, for percentiles
WINDOW_S = 60  # rates and percentiles are over the last minute
CANCELLED = "cancelled"
OUTCOME_NAMES = {SERVED: "served", REFUSED: "refused", FAILED: "failed"}
CLIENT_GONE = 499


@dataclass(slots=True)
class Second:
    """What ended in one second, in one scope."""

    at_s: int
    requests: int = 0
    refused: int = 0
    failed: int = 0
    input_tokens: int = 0
    output_tokens: int = 0
    price_nano: int = 0
    cost_nano: int = 0
    energy_mj: int = 0
    carbon_ug: int = 0
    slo_requests: int = 0
    slo_met: int = 0
    ttft_s: list[float] = field(default_factory=list)
    tpot_s: list[float] = field(default_factory=list)


@dataclass(slots=True)
class Scope:
    """The fleet, a site or a tenant: its last 15 minutes, and what it came to since the owner began."""

    seconds: deque[Second] = field(default_factory=lambda: deque(maxlen=SERIES_S))
    outcomes: dict[str, int] = field(default_factory=dict)
    refused: dict[str, int] = field(default_factory=dict)
    slo_requests: int = 0
    slo_met: int = 0
    input_tokens: int = 0
    cached_tokens: int = 0
    output_tokens: int = 0
    price_nano: int = 0
    energy_mj: int = 0
    carbon_ug: int = 0
    ttft_counts: list[int] = field(default_factory=lambda: [0] * (len(TTFT_EDGES_S) + 1))
    ttft_sum_s: float = 0.0
    tpot_counts: list[int] = field(default_factory=lambda: [0] * (len(TPOT_EDGES_S) + 1))
    tpot_sum_s: float = 0.0

    def second(self, at_s: int) -> Second:
        """Return the bin of a second, made where it is not there; one that is too old is the oldest."""
        if not self.seconds or self.seconds[-1].at_s < at_s:
            self.seconds.append(Second(at_s))
            return self.seconds[-1]
        for one in reversed(self.seconds):
            if one.at_s <= at_s:
                return one
        return self.seconds[0]

    def last(self, now_s: int, window_s: int = WINDOW_S) -> list[Second]:
        """Return the whole seconds of the last `window_s` before `now_s`."""
        found = []
        for one in reversed(self.seconds):
            if one.at_s < now_s - window_s:
                break
            if one.at_s < now_s:
                found.append(one)
        return found[::-1]


ITS_OWN_FAULT = frozenset((400, 404, 405, 413, 415, 422))  # statuses of a request that no engine could have served


def outcome_of(row: SettleRow | Alike) -> str:
    """Return how a request ended, in a word: served, refused, failed, or cancelled by its client."""
    if row.client_status == CLIENT_GONE:
        return CANCELLED
    if row.reason == REASON_BUDGET:
        return OUTCOME_NAMES[REFUSED]  # its budget ended it, and no engine failed
    return OUTCOME_NAMES.get(row.status, "failed")


def latencies(row: SettleRow) -> tuple[float | None, float | None]:
    """Return TTFT and TPOT of a streamed request in seconds; None where it had no such token.

    An answer that came in one piece says nothing of its first token.

    >>> latencies(SettleRow(request_id=1, at_ns=0, tenant="", key="", arrival_ns=0, first_token_ns=2 * 10**9,
    ...                     finish_ns=4 * 10**9, output_tokens=5, streamed=True))
    (2.0, 0.5)
    """
    if row.first_token_ns < 0 or not row.streamed:
        return None, None
    ttft_s = max(0, row.first_token_ns - row.arrival_ns) / 1e9
    if row.output_tokens < 2 or row.finish_ns < 0:
        return ttft_s, None
    return ttft_s, max(0, row.finish_ns - row.first_token_ns) / 1e9 / (row.output_tokens - 1)


class Tally:
    """All scopes: '' is the fleet, 'site/NAME', 'tenant/NAME'. `names` tells a tenant's name from its pseudonym."""

    def __init__(self, tables: Tables) -> None:
        self.tables = tables
        self.scopes: dict[str, Scope] = {"": Scope()}
        self.names: Mapping[str, str] = {}
        self.errors: deque[tuple[int, str, str, str, str]] = deque(maxlen=5000)  # s, outcome, reason, tenant, where
        self._promises = {row.name: (row.ttft_slo_s, row.tpot_slo_s) for row in tables.tenants}

    def reload(self, tables: Tables) -> None:
        """Take up new promises."""
        self.tables = tables
        self._promises = {row.name: (row.ttft_slo_s, row.tpot_slo_s) for row in tables.tenants}

    def scope(self, name: str) -> Scope:
        """Return a scope, made where it is not there."""
        found = self.scopes.get(name)
        if found is None:
            found = self.scopes[name] = Scope()
        return found

    def see(self, rows: Iterable[SettleRow]) -> None:
        """Count rows that are in the ledger now."""
        by_second: dict[int, list[SettleRow]] = {}
        for row in rows:
            by_second.setdefault(row.at_ns // 1_000_000_000, []).append(row)
        for at_s, some in by_second.items():
            for alike in alike_of(some):
                self.count(alike, [some[place] for place in alike.places], at_s)

    def count(self, alike: Alike, streams: Sequence[SettleRow], at_s: int) -> None:
        """Count rows of one second that ended alike; those that were streamed tell how long they took."""
        tenant = self.names.get(alike.whose.tenant, alike.whose.tenant)
        scopes = [self.scopes[""], self.scope(f"tenant/{tenant}")]
        if alike.site:
            scopes.append(self.scope(f"site/{alike.site}"))
        outcome = outcome_of(alike)
        reason = REASON_NAMES[alike.reason] if 0 <= alike.reason < len(REASON_NAMES) else ""
        sums = _Sums(*alike.sums)
        times = [latencies(row) for row in streams]
        n_whole = sums.requests - len(times)  # answers in one piece: no latency of their own
        wrong = outcome != "served" and alike.client_status in ITS_OWN_FAULT
        end = CANCELLED if wrong else outcome  # of what is wrong in itself nothing was promised
        whole_met = self._met(tenant, end, None, None)
        met = [found for ttft_s, tpot_s in times if (found := self._met(tenant, end, ttft_s, tpot_s)) is not None]
        n_slo = 0 if whole_met is None else n_whole + len(met)
        n_met = sum(met) + (n_whole if whole_met else 0)
        for scope in scopes:
            second = scope.second(at_s)
            _add(scope, second, sums, outcome, reason)
            second.slo_requests += n_slo
            scope.slo_requests += n_slo
            second.slo_met += n_met
            scope.slo_met += n_met
            for ttft_s, tpot_s in times:
                _add_latencies(scope, second, ttft_s, tpot_s)
        if outcome in ("refused", "failed"):
            self.errors.extend([(at_s, outcome, reason or "upstream", tenant, alike.site or "gateway")] * sums.requests)

    def _met(self, tenant: str, outcome: str, ttft_s: float | None, tpot_s: float | None) -> bool | None:
        """Say whether the promise was kept; None where the request does not count (its client went, or overspent)."""
        promise = self._promises.get(tenant)
        if promise is None or outcome == CANCELLED:
            return None
        if outcome != "served":
            return False
        return (ttft_s is None or ttft_s <= promise[0]) and (tpot_s is None or tpot_s <= promise[1])


class _Sums(NamedTuple):
    """What rows that ended alike come to, in the order of the ledger's sums."""

    requests: int
    input_tokens: int
    cached_tokens: int
    output_tokens: int
    price_nano: int
    cost_nano: int
    energy_mj: int
    carbon_ug: int


def _add(scope: Scope, second: Second, sums: _Sums, outcome: str, reason: str) -> None:
    n = sums.requests
    second.requests += n
    scope.outcomes[outcome] = scope.outcomes.get(outcome, 0) + n
    if outcome == "refused":
        second.refused += n
        scope.refused[reason] = scope.refused.get(reason, 0) + n
    elif outcome == "failed":
        second.failed += n
    second.input_tokens += sums.input_tokens
    second.output_tokens += sums.output_tokens
    second.price_nano += sums.price_nano
    second.cost_nano += sums.cost_nano
    second.energy_mj += sums.energy_mj
    second.carbon_ug += sums.carbon_ug
    scope.input_tokens += sums.input_tokens
    scope.cached_tokens += sums.cached_tokens
    scope.output_tokens += sums.output_tokens
    scope.price_nano += sums.price_nano
    scope.energy_mj += sums.energy_mj
    scope.carbon_ug += sums.carbon_ug


def _add_latencies(scope: Scope, second: Second, ttft_s: float | None, tpot_s: float | None) -> None:
    if ttft_s is not None:
        if len(second.ttft_s) < SAMPLES_MAX:
            second.ttft_s.append(ttft_s)
        scope.ttft_counts[bisect_left(TTFT_EDGES_S, ttft_s)] += 1
        scope.ttft_sum_s += ttft_s
    if tpot_s is not None:
        if len(second.tpot_s) < SAMPLES_MAX:
            second.tpot_s.append(tpot_s)
        scope.tpot_counts[bisect_left(TPOT_EDGES_S, tpot_s)] += 1
        scope.tpot_sum_s += tpot_s


def quantile(values: list[float], share: float) -> float | None:
    """Return the value that `share` of them do not exceed (nearest rank); None of none.

    >>> quantile([3.0, 1.0, 2.0], 0.5), quantile([], 0.5)
    (2.0, None)
    """
    if not values:
        return None
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, max(0, -(-int(share * 1e6) * len(ordered) // 1_000_000) - 1))]
