"""One trial of a planned fleet: a day, its peak with demand grown, a site lost or none; who was served as promised.

A site that is lost goes down during the run and stays down. What counts is the hour of the loss: the answers that were in
flight at the site and what came before the gateway knew are lost once, what arrives after that is measured to the end of the
run and stands for the rest of the hour. Other failures are off: they have their own place in `simulate`.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from datetime import date
from math import ceil
from typing import Any

import msgspec
import numpy as np
import numpy.typing as npt

from baseload.adapters.mix import mixed
from baseload.adapters.trace_transforms import limited, scaled, window
from baseload.adapters.traces import TraceSource, counts_per_bin
from baseload.app.load_search import cause
from baseload.app.replica_table import demand_source
from baseload.app.run_meta import unfinished_rows
from baseload.app.simulating import simulate_source
from baseload.fleet import catalog, dates
from baseload.fleet.load import Loaded
from baseload.fleet.model import Failures, Fleet, Outage
from baseload.records import SERVED
from baseload.simulate.capacity import Promise, kept
from baseload.simulate.setup import Twin, describe

Rows = npt.NDArray[Any]
LOST_AT = 0.25  # of the run
WARM_UP_AT = 0.1  # of the run, where no site is lost
SETTLE_S, MOST_SETTLE_RATIO = 10.0, 0.25  # after the gateway knows, until queues are as they will stay
COUNT_S = 1.0
HOUR_S = 3600.0
LEAST_S = 20.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Case:
    """What is tried."""

    day: date
    lost: str | None  # a site, for the rest of the run
    hall: bool = False  # one hall of it alone

    def __str__(self) -> str:
        return f"{self.day}" + (f" with {'a hall of ' if self.hall else ''}{self.lost} lost" if self.lost else "")


@dataclass(frozen=True, slots=True, kw_only=True)
class Kept:
    """How one tenant fared. With a site lost, `attainment` is over the hour of the loss."""

    tenant: str
    attainment: float
    promised: float
    requests: int  # that were judged
    struck: int  # of them missed at the moment of the loss
    cause: str  # of most misses; '' where there are none
    models: Mapping[str, int]  # missed requests by model
    kinds: Mapping[str, int]  # missed requests by accelerator that served or refused them

    @property
    def meets(self) -> bool:
        """Return whether the promise held."""
        return self.attainment >= self.promised - 1e-12


@dataclass(frozen=True, slots=True, kw_only=True)
class Trial:
    """A case and how everybody fared who had to be served."""

    case: Case
    load_factor: float  # over the demand of the day; 1 unless searched
    requests_per_s: float
    requests: int
    kept: tuple[Kept, ...]

    @property
    def meets(self) -> bool:
        """Return whether every promise held."""
        return all(one.meets for one in self.kept)

    @property
    def misses(self) -> tuple[Kept, ...]:
        """Return those whose promise broke, the furthest first."""
        return tuple(sorted((k for k in self.kept if not k.meets), key=lambda k: k.attainment - k.promised))


@dataclass(frozen=True, slots=True)
class Stage:
    """A planned fleet on a day, ready to be tried at several loads and losses."""

    loaded: Loaded
    fleet: Fleet  # with that day's demand
    day: date
    source: TraceSource  # the busiest part of the day's demand, mixed
    start_s: float
    mean_output_tokens: float
    chunk_tokens: int
    seed: int


def stage(loaded: Loaded, day: date, *, peak_factor: float, most_requests: int, seed: int) -> Stage:
    """Return the fleet of a day with the busiest part of its demand, no more than so many requests."""
    fleet = dates.demand_on(loaded.fleet, day)
    fleet = msgspec.structs.replace(fleet, failures=_quiet(fleet.failures))
    grown = msgspec.structs.replace(
        fleet, demand=msgspec.structs.replace(fleet.demand, scale=fleet.demand.scale * peak_factor)
    )
    whole = demand_source(dataclasses.replace(loaded, fleet=grown), seed)
    first_s, until_s = busiest(counts_per_bin(limited(whole, 20 * most_requests), COUNT_S), most_requests)
    source = mixed(window(whole, first_s, until_s), dates.on(fleet, day), seed)
    sample = next(iter(source.chunks(20_000)))
    return Stage(
        loaded, fleet, day, source, first_s, float(sample.output_tokens.mean()), int(sample.hash_block_tokens), seed
    )


def _quiet(failures: Failures) -> Failures:
    return msgspec.structs.replace(failures, replica_mtbf_h=0.0, server_mtbf_h=0.0, site_mtbf_h=0.0, events=[])


def busiest(counts: npt.NDArray[np.float64], most_requests: int) -> tuple[float, float]:
    """Return (start, end) in seconds of the busiest span with about so many requests; the whole where it has no more.

    >>> busiest(np.array([1.0] * 40 + [5.0] * 40 + [1.0] * 40), 150)
    (40.0, 70.0)
    """
    total = float(counts.sum())
    if total <= most_requests:
        return 0.0, len(counts) * COUNT_S
    length = len(counts)
    for _ in range(4):  # a busier span holds them in less time
        ends = np.concatenate([[0.0], np.cumsum(counts)])
        sums = ends[length:] - ends[:-length]
        found = float(sums.max())
        shorter = max(int(min(LEAST_S, len(counts))), int(length * most_requests / max(found, 1.0)))
        if shorter >= length:
            break
        length = shorter
    ends = np.concatenate([[0.0], np.cumsum(counts)])
    first = int(np.argmax(ends[length:] - ends[:-length]))
    return first * COUNT_S, (first + length) * COUNT_S


def try_case(
    at: Stage, lost: str | None, judged: Collection[tuple[str, str]], *, load_factor: float = 1.0, halls: int = 1
) -> Trial:
    """Run a case and judge the (tenant, region) pairs that have to be served in it.

    Where the lost site counts as several power halls, one of them is lost: its share of each deployment's replicas, rounded up,
    is gone from the start.
    """
    source = at.source if load_factor == 1.0 else scaled(at.source, load_factor)
    length_s = float(source.duration_s or HOUR_S)
    lost_at_s = LOST_AT * length_s
    fleet = at.fleet
    falls = lost is not None and halls == 1
    if lost is not None and halls > 1:
        fleet = _without_hall(fleet, lost, halls)
    elif lost is not None:
        events = [Outage(site=lost, start_s=lost_at_s, duration_s=10.0 * length_s + HOUR_S)]
        fleet = msgspec.structs.replace(fleet, failures=msgspec.structs.replace(fleet.failures, events=events))
    twin = describe(
        fleet, base_folder=at.loaded.base_folder, day=at.day, start_s=at.start_s, duration_s=length_s,
        chunk_tokens=at.chunk_tokens, seed=at.seed, mean_output_tokens=at.mean_output_tokens,
    )  # fmt: skip
    found: list[Rows] = []
    outcome = simulate_source(twin, source, emit=lambda rows: found.append(rows.copy()))
    found.append(unfinished_rows(outcome))
    rows = np.concatenate(found)
    settled_s = WARM_UP_AT * length_s
    if falls:
        settled_s = lost_at_s + min(MOST_SETTLE_RATIO * length_s, fleet.policy.detect_s + SETTLE_S)
    return Trial(
        case=Case(day=at.day, lost=lost, hall=lost is not None and halls > 1),
        load_factor=load_factor,
        requests_per_s=len(rows) / length_s,
        requests=len(rows),
        kept=tuple(_kept(twin, fleet, rows, judged, falls, lost_at_s, settled_s, length_s)),
    )


def _without_hall(fleet: Fleet, site: str, halls: int) -> Fleet:
    deployments = {}
    for name, one in fleet.deployments.items():
        sites = dict(one.sites)
        if site in sites:
            n = sites[site].min
            sites[site] = msgspec.structs.replace(sites[site], min=n - ceil(n / halls), max=None)
        deployments[name] = msgspec.structs.replace(one, sites=sites)
    return msgspec.structs.replace(fleet, deployments=deployments)


def _kept(
    twin: Twin, fleet: Fleet, rows: Rows, judged: Collection[tuple[str, str]], lost: bool, lost_at_s: float,
    settled_s: float, length_s: float,
) -> list[Kept]:  # fmt: skip
    kinds = [catalog.accelerator(fleet.deployments[name].accelerator).accelerator_id for name in twin.deployments]
    answer = []
    for t, name in enumerate(twin.tenants):
        regions = [r for r, region in enumerate(twin.regions) if (name, region) in judged or (name, "") in judged]
        own = rows[(rows["tenant_i"] == t) & np.isin(rows["region_i"], regions)].copy()
        if len(own) == 0:
            continue
        slo = twin.tenant_records[name].slo
        promise = Promise(
            ttft_s=slo.ttft_ms / 1e3, tpot_s=slo.tpot_ms / 1e3,
            e2e_s=np.inf if slo.e2e_ms is None else slo.e2e_ms / 1e3,
        )  # fmt: skip
        own["arrival_ns"] -= own["rtt_ns"]  # the network that the times do not hold
        good = kept(own, promise)
        at_s = (own["arrival_ns"] + own["rtt_ns"]) / 1e9
        steady = at_s >= settled_s
        if not steady.any():
            continue
        share, struck = float(good[steady].mean()), 0
        if lost:
            # Those in flight when the site went down, and those before the gateway knew: once in the hour.
            struck = int((~good & ~steady & _in_flight(own, at_s, lost_at_s)).sum())
            share -= struck / max(1.0, len(own) / length_s * HOUR_S)
        missed = own[steady & ~good]
        answer.append(
            Kept(
                tenant=name, attainment=max(0.0, share), promised=slo.attainment, requests=int(steady.sum()),
                struck=struck, cause=cause(missed, promise, twin), models=_count(missed["model_i"], twin.models),
                kinds=_count(missed["deployment_i"], kinds),
            )
        )  # fmt: skip
    return answer


def _in_flight(rows: Rows, at_s: npt.NDArray[np.float64], lost_at_s: float) -> npt.NDArray[np.bool_]:
    """Say which requests were still to be answered, or arrived, after the loss."""
    end_ns = np.where(rows["finish_ns"] >= 0, rows["finish_ns"], np.iinfo(np.int64).max)
    return np.asarray((at_s >= lost_at_s) | (end_ns / 1e9 >= lost_at_s) | (rows["status"] != SERVED))


def _count(indices: npt.NDArray[Any], names: Collection[str]) -> dict[str, int]:
    """Return how often each name is meant; what has no index is left out."""
    listed = list(names)
    counts: dict[str, int] = {}
    for i, n in zip(*np.unique(indices[indices >= 0], return_counts=True), strict=True):
        counts[listed[int(i)]] = counts.get(listed[int(i)], 0) + int(n)
    return counts
