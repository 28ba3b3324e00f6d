"""Training: FLOPs, days, and what failures and checkpoints leave of them.

A job stops when any of its accelerators fails; it loses what it did since the last checkpoint, and the
restart. Dice and dates of failures are the twin's; these are the means it has to agree with.
"""

from __future__ import annotations

from math import exp, expm1, sqrt

from baseload.units import S_PER_HOUR

STATE_BYTES_PER_PARAMETER = 14.0  # bf16 weights, fp32 master weights and two fp32 Adam moments (ZeRO, SC'20)


def training_flops(parameters: float, tokens: float) -> float:
    """Return the FLOPs of a training run: 6 per (active) parameter and token (Kaplan 2020).

    >>> f"{training_flops(405e9, 15.6e12):.2e}"  # Llama-3 405B: 3.8e25 in its paper
    '3.79e+25'
    """
    assert parameters >= 0.0 and tokens >= 0.0, (parameters, tokens)
    return 6.0 * parameters * tokens


def training_time_s(
    flops: float, n_accelerators: float, peak_flops_per_s: float, *, mfu: float, goodput: float = 1.0
) -> float:
    """Return the seconds a run takes: FLOPs over accelerators, peak, model FLOPs utilisation, and goodput.

    >>> round(training_time_s(3.79e25, 16_384, 989e12, mfu=0.4) / 86_400, 1)
    67.7
    """
    assert n_accelerators > 0 and peak_flops_per_s > 0.0, (n_accelerators, peak_flops_per_s)
    assert 0.0 < mfu <= 1.0 and 0.0 < goodput <= 1.0, (mfu, goodput)
    return flops / (n_accelerators * peak_flops_per_s * mfu * goodput)


def model_flops_utilisation(flops: float, seconds: float, n_accelerators: float, peak_flops_per_s: float) -> float:
    """Return the MFU: useful FLOPs over what the accelerators could have done in that time (PaLM, 2022).

    >>> round(model_flops_utilisation(3.79e25, 78.4 * 86_400, 16_384, 989e12), 3)
    0.345
    """
    assert seconds > 0.0 and n_accelerators > 0 and peak_flops_per_s > 0.0, (seconds, n_accelerators)
    return flops / (seconds * n_accelerators * peak_flops_per_s)


def job_mtbf_s(accelerator_mtbf_h: float, n_accelerators: float) -> float:
    """Return the mean seconds between interruptions of a job that any of its accelerators stops.

    `accelerator_mtbf_h` charges each accelerator with its share of host, network and software.

    >>> round(job_mtbf_s(50_678.0, 16_384))  # Llama-3: 419 in 54 days
    11135
    """
    assert accelerator_mtbf_h > 0.0 and n_accelerators > 0, (accelerator_mtbf_h, n_accelerators)
    return accelerator_mtbf_h * S_PER_HOUR / n_accelerators


def accelerator_mtbf_h(failures: float, n_accelerators: float, hours: float) -> float:
    """Return the mean hours between failures of one accelerator's share, from a count.

    >>> round(accelerator_mtbf_h(419, 16_384, 54 * 24))
    50677
    """
    assert failures > 0.0 and n_accelerators > 0 and hours > 0.0, (failures, n_accelerators, hours)
    return n_accelerators * hours / failures


def expected_failures(accelerator_mtbf_h: float, n_accelerators: float, hours: float) -> float:
    """Return the mean number of interruptions of a job in some hours.

    >>> round(expected_failures(50_677.0, 16_384, 54 * 24))
    419
    """
    assert accelerator_mtbf_h > 0.0, accelerator_mtbf_h
    return n_accelerators * hours / accelerator_mtbf_h


def training_state_bytes(parameters: float, bytes_per_parameter: float = STATE_BYTES_PER_PARAMETER) -> float:
    """Return the bytes of a checkpoint from which training goes on: weights and optimizer.

    >>> f"{training_state_bytes(405e9):.2e}"
    '5.67e+12'
    """
    return parameters * bytes_per_parameter


def checkpoint_write_s(state_bytes: float, bandwidth_bytes_per_s: float, pause_s: float = 0.0) -> float:
    """Return the seconds a checkpoint stops the job: writing, and a fixed pause to agree on a step.

    >>> round(checkpoint_write_s(5.67e12, bandwidth_bytes_per_s=2e12), 2)  # Llama-3's storage, sustained
    2.83
    """
    assert state_bytes >= 0.0 and pause_s >= 0.0, (state_bytes, pause_s)
    assert bandwidth_bytes_per_s > 0.0, bandwidth_bytes_per_s
    return pause_s + state_bytes / bandwidth_bytes_per_s


def young_interval_s(checkpoint_s: float, mtbf_s: float) -> float:
    """Return Young's (1974) seconds of work between checkpoints: sqrt(2 C M).

    >>> round(young_interval_s(10.0, mtbf_s=11_135.0))
    472
    """
    assert checkpoint_s >= 0.0 and mtbf_s > 0.0, (checkpoint_s, mtbf_s)
    return sqrt(2.0 * checkpoint_s * mtbf_s)


def daly_interval_s(checkpoint_s: float, mtbf_s: float) -> float:
    """Return Daly's (2006) higher-order seconds of work between checkpoints; the MTBF once C >= 2 M.

    >>> round(daly_interval_s(10.0, mtbf_s=11_135.0))
    465
    """
    assert checkpoint_s >= 0.0 and mtbf_s > 0.0, (checkpoint_s, mtbf_s)
    if checkpoint_s >= 2.0 * mtbf_s:
        return mtbf_s
    small = checkpoint_s / (2.0 * mtbf_s)
    return young_interval_s(checkpoint_s, mtbf_s) * (1.0 + sqrt(small) / 3.0 + small / 9.0) - checkpoint_s


def goodput(interval_s: float, checkpoint_s: float, restart_s: float, mtbf_s: float) -> float:
    """Return the share of time spent on work that is kept, exact for exponential failures (Daly 2006).

    `interval_s` is the work between checkpoints. A failure may also strike while writing or restarting.

    >>> round(goodput(472.0, checkpoint_s=10.0, restart_s=300.0, mtbf_s=11_135.0), 3)
    0.933
    """
    assert interval_s > 0.0 and mtbf_s > 0.0, (interval_s, mtbf_s)
    assert checkpoint_s >= 0.0 and restart_s >= 0.0, (checkpoint_s, restart_s)
    segment = (interval_s + checkpoint_s) / mtbf_s
    if segment > 700.0:  # exp overflows; nothing is ever kept
        return 0.0
    return interval_s / mtbf_s * exp(-restart_s / mtbf_s) / expm1(segment)


def goodput_first_order(interval_s: float, checkpoint_s: float, restart_s: float, mtbf_s: float) -> float:
    """Return the usual estimate of goodput: 1 - C/tau - tau/2M - R/M, not below 0.

    >>> round(goodput_first_order(472.0, checkpoint_s=10.0, restart_s=300.0, mtbf_s=11_135.0), 3)
    0.931
    """
    assert interval_s > 0.0 and mtbf_s > 0.0, (interval_s, mtbf_s)
    return max(0.0, 1.0 - checkpoint_s / interval_s - interval_s / (2.0 * mtbf_s) - restart_s / mtbf_s)


def best_goodput(checkpoint_s: float, restart_s: float, mtbf_s: float) -> float:
    """Return the goodput at Daly's interval: what a well-run job keeps.

    >>> round(best_goodput(checkpoint_s=30.0, restart_s=300.0, mtbf_s=11_135.0), 3)
    0.904
    """
    if checkpoint_s == 0.0:
        return exp(-restart_s / mtbf_s)
    return goodput(daly_interval_s(checkpoint_s, mtbf_s), checkpoint_s, restart_s, mtbf_s)
