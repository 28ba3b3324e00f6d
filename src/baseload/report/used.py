"""The replicas table by fleet, site, model and deployment: how busy, how much computed, how much down."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

from baseload.ports import Run, RunMeta
from baseload.report.model import Hardware
from baseload.report.requests import ratio, span_of
from baseload.units import NS_PER_S

_REPLICAS = """
SELECT deployment_i, site_i, count(*) AS replicas, sum(accelerators) AS accelerators,
    sum(CAST(busy_ns AS DOUBLE) * accelerators) AS busy, sum(CAST(prefill_ns AS DOUBLE) * accelerators) AS prefill,
    sum(CAST(powered_ns AS DOUBLE) * accelerators) AS powered, sum(CAST(down_ns AS DOUBLE) * accelerators) AS down,
    sum(CAST(prefill_tokens + decode_tokens AS DOUBLE)) AS computed,
    max(kv_blocks_peak / greatest(kv_blocks, 1)) AS kv_peak
FROM replicas GROUP BY deployment_i, site_i ORDER BY deployment_i, site_i
"""


@dataclass(frozen=True, slots=True, kw_only=True)
class Used:
    """What a set of replicas did; times are accelerator-seconds."""

    replicas: int = 0
    accelerators: int = 0
    busy_accelerator_s: float = 0.0
    prefill_accelerator_s: float = 0.0
    powered_accelerator_s: float = 0.0
    down_accelerator_s: float = 0.0
    duration_s: float = 0.0
    flops: float = 0.0  # of computed tokens, 2 per active parameter
    peak_flops: float = 0.0  # that the powered accelerators could have done
    kv_peak_ratio: float | None = None

    @property
    def decode_accelerator_s(self) -> float:
        """Return the busy time that was not prefill."""
        return max(0.0, self.busy_accelerator_s - self.prefill_accelerator_s)

    @property
    def availability_ratio(self) -> float | None:
        """Return the share of time not failed."""
        down = ratio(self.down_accelerator_s, self.accelerators * self.duration_s)
        return None if down is None else max(0.0, 1.0 - down)

    def busy_ratio_of(self, accelerators: float) -> float:
        """Return the busy share of that many accelerators' time; 0 where there are none."""
        return ratio(self.busy_accelerator_s, accelerators * self.duration_s) or 0.0

    def hardware(self) -> Hardware:
        """Return the figures."""
        return Hardware(
            replicas=self.replicas,
            accelerators=self.accelerators,
            utilisation_ratio=ratio(self.busy_accelerator_s, self.powered_accelerator_s),
            prefill_ratio=ratio(self.prefill_accelerator_s, self.busy_accelerator_s),
            mfu_ratio=ratio(self.flops, self.peak_flops),
            availability_ratio=self.availability_ratio,
            kv_peak_ratio=self.kv_peak_ratio,
        )


UsedBy = dict[tuple[int, int], Used]
"""By (deployment_i, site_i)."""


def read(run: Run) -> UsedBy:
    """Return what the replicas did, by deployment and site."""
    meta = run.meta
    return {(row[0], row[1]): _used(meta, row) for row in run.query(_REPLICAS)}


def _used(meta: RunMeta, row: tuple[Any, ...]) -> Used:
    d, _, replicas, accelerators, busy, prefill, powered, down, computed, kv_peak = row
    deployment = meta.deployments[int(d)] if 0 <= d < len(meta.deployments) else None
    return Used(
        replicas=int(replicas),
        accelerators=int(accelerators),
        busy_accelerator_s=float(busy) / NS_PER_S,
        prefill_accelerator_s=float(prefill) / NS_PER_S,
        powered_accelerator_s=float(powered) / NS_PER_S,
        down_accelerator_s=float(down) / NS_PER_S,
        duration_s=span_of(meta).span_s,
        flops=2.0 * deployment.active_parameters * float(computed) if deployment else 0.0,
        peak_flops=deployment.peak_flops_per_s * float(powered) / NS_PER_S if deployment else 0.0,
        kv_peak_ratio=None if kv_peak is None else float(kv_peak),
    )


def total(used: UsedBy, wanted: Callable[[int, int], bool], duration_s: float) -> Used:
    """Return the sum over the (deployment_i, site_i) that are wanted."""
    return _sum([one for (d, s), one in used.items() if wanted(d, s)], duration_s)


def _sum(parts: Iterable[Used], duration_s: float) -> Used:
    parts = list(parts)
    peaks = [part.kv_peak_ratio for part in parts if part.kv_peak_ratio is not None]
    return Used(
        replicas=sum(part.replicas for part in parts),
        accelerators=sum(part.accelerators for part in parts),
        busy_accelerator_s=sum(part.busy_accelerator_s for part in parts),
        prefill_accelerator_s=sum(part.prefill_accelerator_s for part in parts),
        powered_accelerator_s=sum(part.powered_accelerator_s for part in parts),
        down_accelerator_s=sum(part.down_accelerator_s for part in parts),
        duration_s=duration_s,
        flops=sum(part.flops for part in parts),
        peak_flops=sum(part.peak_flops for part in parts),
        kv_peak_ratio=max(peaks, default=None),
    )
