"""A training job as a base load: it computes, checkpoints, fails and restarts; its power and goodput over time.

Drawn before the run (nothing that serving does changes it). The optimum interval is Young's, in `formulas/training.py`.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from baseload.errors import FleetError, Problem
from baseload.fleet import catalog
from baseload.fleet.model import TrainingJob
from baseload.formulas.training import job_mtbf_s, young_interval_s

MOST_INTERVALS = 1_000_000  # checkpoints and failures in a run
WAITING_POWER_RATIO = 0.35  # of TDP while accelerators wait for a checkpoint or a restart


@dataclass(frozen=True, slots=True, kw_only=True)
class TrainingRun:
    """How a job fared over the run."""

    power_kw: npt.NDArray[np.float64]  # (bin,) mean IT power
    goodput_ratio: float  # time that moved the model forward, over all time
    failures: int
    checkpoint_every_s: float


def simulate_training(
    job: TrainingJob, *, duration_s: float, bin_s: float, bins: int, seed: int, stream: int, key: str = "training"
) -> TrainingRun:
    """Return the job's power and goodput over `duration_s`; work since the last checkpoint is lost at a failure."""
    accelerator = catalog.accelerator(job.accelerator)
    share_kw = (accelerator.tdp_w * job.power_ratio + accelerator.server_other_w) / 1000.0 * job.accelerators
    waiting_kw = (accelerator.tdp_w * WAITING_POWER_RATIO + accelerator.server_other_w) / 1000.0 * job.accelerators
    mtbf_s = job_mtbf_s(job.mtbf_hours_per_accelerator, job.accelerators)
    every_s = job.checkpoint_every_s or max(young_interval_s(job.checkpoint_s, mtbf_s), 1.0)
    expected = duration_s / max(every_s + job.checkpoint_s, 1e-12) + duration_s / max(mtbf_s + job.restart_s, 1e-12)
    if expected > MOST_INTERVALS:
        what = f"about {expected:,.0f} checkpoints and failures in a run of {duration_s:,.0f} s"
        mend = "raise checkpoint_every_s or mtbf_hours_per_accelerator"
        raise FleetError(Problem(key=key, what=what, mend=mend))
    generator = np.random.default_rng([seed, 3, stream])
    waiting: list[tuple[float, float]] = []
    useful_s = 0.0
    failures = 0
    now = 0.0
    next_failure = float(generator.exponential(mtbf_s))
    while now < duration_s:
        end = min(now + every_s, duration_s)
        saved = end + job.checkpoint_s
        if next_failure < min(saved, duration_s):  # the interval is lost
            waiting.append((next_failure, next_failure + job.restart_s))
            failures += 1
            now = next_failure + job.restart_s
            next_failure = now + float(generator.exponential(mtbf_s))
            continue
        useful_s += end - now
        waiting.append((end, saved))
        now = saved
    edges = np.arange(bins + 1) * bin_s
    waits = np.zeros(bins)
    for start, until in waiting:
        first, last = int(start // bin_s), int(until // bin_s)
        for i in range(first, min(last, bins - 1) + 1):
            waits[i] += max(0.0, min(until, edges[i + 1]) - max(start, edges[i]))
    ratio = np.clip(waits / bin_s, 0.0, 1.0)
    return TrainingRun(
        power_kw=share_kw * (1.0 - ratio) + waiting_kw * ratio,
        goodput_ratio=useful_s / duration_s if duration_s > 0.0 else 1.0,
        failures=failures,
        checkpoint_every_s=every_s,
    )
