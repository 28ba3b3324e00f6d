"""The highest load that still meets every promise: the same demand sent faster, until a tenant's SLO breaks.

Says what broke first, for whom and where. The search itself is `simulate/capacity.py`, the twin is the judge.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from baseload.adapters.trace_transforms import scaled
from baseload.adapters.traces import TraceSource
from baseload.app.simulating import MOST_WARM_UP_S, WARM_UP_RATIO, simulate_source
from baseload.errors import InputError
from baseload.ports import SearchMeta
from baseload.records import REASON_NAMES, SERVED
from baseload.simulate.capacity import Promise, highest_load, kept
from baseload.simulate.run import Moment
from baseload.simulate.setup import Twin

Rows = npt.NDArray[Any]
FREE_SEARCH_REQUESTS = (100, 60_000)  # between them a plain `simulate` searches too: fewer say nothing, more take long
FREE_SEARCH_BREATHS = 60  # and no longer than this: some CPU seconds, counted so that equal runs end equal


@dataclass(frozen=True, slots=True, kw_only=True)
class Probe:
    """One load, and how far it was from breaking a promise."""

    load_factor: float
    requests_per_s: float
    tokens_per_s: float
    meets: bool
    tenant: str  # the one nearest to breaking, or broken furthest
    attainment: float
    promised: float
    cause: str  # what most of its misses are, and where; '' where it has none

    def sentence(self) -> str:
        """Return the probe in a line."""
        return (
            f"load x{self.load_factor:.3f}: {self.requests_per_s:,.1f} requests/s, {self.tenant} "
            f"{100.0 * self.attainment:.2f} % of {100.0 * self.promised:.1f} % -> {'meets' if self.meets else 'misses'}"
            + (f" ({self.cause})" if not self.meets and self.cause else "")
        )


class TooLong(Exception):
    """A search that would take more than some seconds."""


def free_search(twin: Twin, source: TraceSource, n_requests: int) -> SearchMeta | None:
    """Return what a search finds that takes a few seconds only; None where it would take longer, or mean nothing."""
    least, most = FREE_SEARCH_REQUESTS
    if source.closed_loop is not None or not least <= n_requests <= most:
        return None
    breaths = 0

    def breathe(_: Moment) -> None:
        nonlocal breaths
        breaths += 1
        if breaths > FREE_SEARCH_BREATHS:
            raise TooLong

    try:
        return as_meta(*search(twin, source, lambda sentence: None, breathe))
    except (TooLong, InputError):  # a load at which the run has no end is no mistake of the user's
        return None


def search(
    twin: Twin, source: TraceSource, say: Callable[[str], None], breathe: Callable[[Moment], None] | None = None
) -> tuple[float, list[Probe]]:
    """Return the highest load factor at which every tenant's promise holds (0: none found), and each probe."""
    if source.closed_loop is not None:
        raise InputError(
            f"{source.name}: a closed loop waits for its answers, so its load cannot be raised; set the generator's `users`"
        )
    probes: list[Probe] = []

    def meets(factor: float) -> bool:
        found: list[Rows] = []
        faster = scaled(source, factor) if factor != 1.0 else source
        simulate_source(twin, faster, emit=lambda rows: found.append(rows.copy()), breathe=breathe)
        probes.append(judged(twin, np.concatenate(found), factor))
        say(probes[-1].sentence())
        return probes[-1].meets

    return highest_load(meets), probes


def judged(twin: Twin, rows: Rows, factor: float) -> Probe:
    """Return how the tenants fared in a run's records, warm-up left out."""
    last_ns = int(rows["arrival_ns"].max())
    warm_ns = min(WARM_UP_RATIO * last_ns, MOST_WARM_UP_S * 1e9)
    rows = rows[rows["arrival_ns"] >= warm_ns]
    length_s = max((int(rows["finish_ns"].max()) - warm_ns) / 1e9, 1e-9)  # to the end of the run, as the report does
    served = rows[rows["status"] == SERVED]
    tokens = int(served["input_tokens"].sum()) + int(served["output_tokens"].sum())
    worst: tuple[float, str, float, float, str] | None = None
    for i, name in enumerate(twin.tenants):
        own = rows[rows["tenant_i"] == i]
        if len(own) == 0:
            continue
        slo = twin.tenant_records[name].slo
        e2e_s = float("inf") if slo.e2e_ms is None else slo.e2e_ms / 1000.0
        promise = Promise(ttft_s=slo.ttft_ms / 1000.0, tpot_s=slo.tpot_ms / 1000.0, e2e_s=e2e_s)
        own = own.copy()
        own["arrival_ns"] -= own["rtt_ns"]  # the network that the times do not hold
        good = kept(own, promise)
        share = float(good.mean())
        if worst is None or share - slo.attainment < worst[0]:
            worst = (share - slo.attainment, name, share, slo.attainment, cause(own[~good], promise, twin))
    assert worst is not None, "a run without requests"
    return Probe(
        load_factor=factor,
        requests_per_s=len(rows) / length_s,
        tokens_per_s=tokens / length_s,
        meets=worst[0] >= 0.0,
        tenant=worst[1],
        attainment=worst[2],
        promised=worst[3],
        cause=worst[4],
    )


def cause(missed: Rows, promise: Promise, twin: Twin) -> str:
    """Return what most of the missed requests suffered, and at which site."""
    if len(missed) == 0:
        return ""
    lost = missed[missed["status"] != SERVED]
    if 2 * len(lost) > len(missed):
        reason = REASON_NAMES[int(np.bincount(lost["reason"].astype(np.int64)).argmax())]
        return f"not served: {reason}" + _where(lost, twin)
    served = missed[missed["status"] == SERVED]
    late = (served["first_token_ns"] - served["arrival_ns"]) / 1e9 > promise.ttft_s
    slow = served[~late]
    word, rows = ("TTFT", served[late]) if 2 * int(late.sum()) >= len(served) else ("TPOT or end-to-end", slow)
    return word + _where(rows, twin)


def _where(rows: Rows, twin: Twin) -> str:
    routed = rows[rows["site_i"] >= 0]
    if len(routed) == 0:
        return ""
    site = int(np.bincount(routed["site_i"].astype(np.int64)).argmax())
    deployment = int(np.bincount(routed["deployment_i"][routed["site_i"] == site].astype(np.int64)).argmax())
    return f", mostly {twin.deployments[deployment]} at {twin.sites[site]}"


def as_meta(factor: float, probes: list[Probe]) -> SearchMeta:
    """Return the search as `meta.json` holds it."""
    best = max((p for p in probes if p.meets), key=lambda p: p.load_factor, default=None)
    over = min((p for p in probes if not p.meets), key=lambda p: p.load_factor, default=None)
    return SearchMeta(
        highest_load_factor=factor,
        requests_per_s=best.requests_per_s if best else 0.0,
        tokens_per_s=best.tokens_per_s if best else 0.0,
        first_to_miss=over.tenant if over else "",
        cause=over.cause if over else "",
    )
