"""Training: Llama-3 405B as published, a job with drawn failures, then what must hold."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from baseload.formulas import training

# The Llama 3 Herd of Models (2024), section 3.3.4: 54 days on 16,384 H100, 466 interruptions, 47 of them planned
# and 419 not, and effective training time above 90 %.
GPUS, DAYS, UNPLANNED, PLANNED, EFFECTIVE = 16_384, 54.0, 419, 47, 0.90

# The paper's table of what the 419 were; rates per 1,000 GPU-days from glennklockwood.com (component reliability).
CAUSES = {
    "faulty GPU": (148, 0.16728), "GPU HBM3": (72, 0.08138), "software": (54, 0.06104),
    "switch or cable": (35, 0.03956), "host maintenance": (32, 0.03617), "GPU SRAM": (19, 0.02148),
    "GPU system processor": (17, 0.01921), "NIC": (7, 0.00791), "NCCL watchdog": (7, 0.00791),
    "silent corruption": (6, 0.00678), "thermal": (6, 0.00678), "SSD": (3, 0.00339),
    "power supply": (3, 0.00339), "chassis": (2, 0.00226), "IO board": (2, 0.00226), "dependency": (2, 0.00226),
    "CPU": (2, 0.00226), "memory": (2, 0.00226),
}  # fmt: skip

# What we assume of its checkpoints, since the paper gives no interval: 14 bytes a parameter written at the paper's
# sustained 2 TB/s (2.8 s) with every rank waiting, 10 s in all; five minutes from failure to running again.
CHECKPOINT_S, RESTART_S = 10.0, 300.0


def llama_mtbf_s(interruptions: float = UNPLANNED) -> float:
    per_gpu_h = training.accelerator_mtbf_h(interruptions, GPUS, DAYS * 24)
    return training.job_mtbf_s(per_gpu_h, GPUS)


def test_llama3_failures_by_cause():
    """The rates per GPU and day of all causes give the 419 failures of 16,384 GPUs in 54 days, within 8 %."""
    assert sum(count for count, _ in CAUSES.values()) == UNPLANNED
    per_gpu_hour = sum(rate for _, rate in CAUSES.values()) / 1000 / 24
    failures = training.expected_failures(1 / per_gpu_hour, GPUS, DAYS * 24)
    assert failures == pytest.approx(UNPLANNED, rel=0.08)


def test_llama3_interruption_every_three_hours():
    """419 in 54 days is one every 3.09 h, 50,700 h for one GPU's share, 6,300 h for a node of eight."""
    assert llama_mtbf_s() / 3600 == pytest.approx(3.09, abs=0.01)
    assert training.accelerator_mtbf_h(UNPLANNED, GPUS, DAYS * 24) / 8 == pytest.approx(6335, rel=1e-3)


@pytest.mark.parametrize("interruptions", [UNPLANNED, UNPLANNED + PLANNED])
def test_llama3_goodput(interruptions: int):
    """With the checkpoints assumed above, goodput is over 90 % and within 8 % of the published floor."""
    goodput = training.best_goodput(CHECKPOINT_S, RESTART_S, llama_mtbf_s(interruptions))
    assert goodput > EFFECTIVE
    assert goodput == pytest.approx(EFFECTIVE, rel=0.08)


def test_llama3_checkpoint_is_what_storage_allows():
    """A 405 B state is 5.7 TB: 2.8 s at 2 TB/s sustained, well inside the ten seconds assumed."""
    state_bytes = training.training_state_bytes(405e9)
    assert training.checkpoint_write_s(state_bytes, 2e12) == pytest.approx(2.835)
    assert training.checkpoint_write_s(state_bytes, 2e12, pause_s=7.0) <= CHECKPOINT_S


def test_llama3_goodput_breaks_where_checkpoints_are_slow():
    """A minute a checkpoint and ten to restart would have missed 90 %: the assumption matters."""
    assert training.best_goodput(30.0, 300.0, llama_mtbf_s()) == pytest.approx(0.90, abs=0.01)
    assert training.best_goodput(60.0, 600.0, llama_mtbf_s()) < 0.86


def test_llama3_gpu_hours():
    """3.8e25 FLOPs at the paper's 40 % MFU and 90 % goodput take the model card's 30.84 M GPU-hours, within 8 %."""
    flops = training.training_flops(405e9, 15.6e12)
    assert flops == pytest.approx(3.8e25, rel=0.01)
    seconds = training.training_time_s(flops, GPUS, 989e12, mfu=0.40, goodput=EFFECTIVE)
    assert seconds * GPUS / 3600 == pytest.approx(30.84e6, rel=0.08)


def drawn_goodput(interval_s: float, checkpoint_s: float, restart_s: float, mtbf_s: float, seed: int) -> float:
    """Return the goodput of a job whose failures are drawn one by one."""
    dice = np.random.default_rng(seed)
    clock_s, kept_s = 0.0, 0.0
    for _ in range(20_000):
        left_s = dice.exponential(mtbf_s)  # to the next failure
        segments = int(left_s // (interval_s + checkpoint_s))
        kept_s += segments * interval_s
        clock_s += left_s
        while (again_s := dice.exponential(mtbf_s)) < restart_s:  # a restart may fail too
            clock_s += again_s
        clock_s += restart_s
    return kept_s / clock_s


@pytest.mark.parametrize(("interval_s", "checkpoint_s", "restart_s"), [(472.0, 10.0, 300.0), (3600.0, 120.0, 900.0)])
def test_goodput_of_drawn_failures(interval_s: float, checkpoint_s: float, restart_s: float):
    """The closed form is what twenty thousand drawn failures leave, within 1 %."""
    drawn = drawn_goodput(interval_s, checkpoint_s, restart_s, 11_135.0, seed=3)
    assert training.goodput(interval_s, checkpoint_s, restart_s, 11_135.0) == pytest.approx(drawn, rel=0.01)


@given(st.floats(1.0, 600.0), st.floats(0.0, 1800.0), st.floats(2_000.0, 1e6))
def test_dalys_interval_is_the_best_one(checkpoint_s: float, restart_s: float, mtbf_s: float):
    """No interval on a fine grid keeps noticeably more than Daly's; Young's is nearly as good for small C."""
    best = training.best_goodput(checkpoint_s, restart_s, mtbf_s)
    grid = np.geomspace(checkpoint_s / 5, 5 * mtbf_s, 400)
    searched = max(training.goodput(float(tau), checkpoint_s, restart_s, mtbf_s) for tau in grid)
    assert best >= searched * (1 - 2e-3)
    young = training.goodput(training.young_interval_s(checkpoint_s, mtbf_s), checkpoint_s, restart_s, mtbf_s)
    assert young <= best * (1 + 1e-3)


@given(st.floats(10.0, 1e4), st.floats(0.0, 600.0), st.floats(0.0, 1800.0), st.floats(1_000.0, 1e7))
def test_goodput_is_a_share_and_falls_with_trouble(tau: float, c: float, r: float, mtbf_s: float):
    """Goodput lies in 0..1; slower checkpoints, slower restarts or more failures never raise it."""
    here = training.goodput(tau, c, r, mtbf_s)
    assert 0.0 <= here < 1.0
    assert training.goodput(tau, c + 1, r, mtbf_s) <= here
    assert training.goodput(tau, c, r + 1, mtbf_s) <= here
    assert training.goodput(tau, c, r, mtbf_s * 2) >= here


@given(st.floats(0.1, 60.0), st.floats(0.0, 600.0), st.floats(1e5, 1e8))
def test_the_usual_estimate_is_close_when_failures_are_rare(c: float, r: float, mtbf_s: float):
    """The first-order formula is within 1 % once the MTBF is long beside everything else."""
    tau = training.young_interval_s(c, mtbf_s)
    assert training.goodput_first_order(tau, c, r, mtbf_s) == pytest.approx(
        training.goodput(tau, c, r, mtbf_s), rel=0.01
    )


@given(st.floats(1e20, 1e27), st.integers(1, 100_000), st.floats(0.1, 0.7), st.floats(0.5, 1.0))
def test_time_and_utilisation_are_inverse(flops: float, n: int, mfu: float, goodput: float):
    """The MFU over the whole time is MFU times goodput; twice the accelerators take half the time."""
    seconds = training.training_time_s(flops, n, 989e12, mfu=mfu, goodput=goodput)
    assert training.model_flops_utilisation(flops, seconds, n, 989e12) == pytest.approx(mfu * goodput)
    assert training.training_time_s(flops, 2 * n, 989e12, mfu=mfu, goodput=goodput) == pytest.approx(seconds / 2)


def test_a_job_that_never_finishes_a_segment():
    """Where a segment outlasts any luck, goodput is 0, not an overflow; a free checkpoint loses restarts alone."""
    assert training.goodput(1e9, 0.0, 0.0, 1.0) == 0.0
    assert training.best_goodput(0.0, 300.0, 11_135.0) == pytest.approx(np.exp(-300 / 11_135))
    assert training.daly_interval_s(100.0, 10.0) == 10.0
