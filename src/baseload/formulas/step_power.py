"""Step power: what a replica draws while a step runs, from what the step waits for.

An accelerator that reads memory draws most of its limit, one that computes draws all of it, one that waits for
launches and links draws much less. Losses and cooling on the way are `power.py` and `cooling.py`.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from baseload.formulas.step_work import AcceleratorSpec

# Shares of (TDP - idle), fitted to ML.ENERGY's H100 and B200 chat runs (leaderboard, 2026-02): docs/accuracy.md.
MEMORY_SHARE = 0.72
MATH_SHARE = 1.2  # reaches the limit before arithmetic is all it does
LAUNCH_SHARE = 0.36
UNKNOWN_IDLE_SHARE = 0.11  # of TDP, where the catalogue has no idle power (H100: 75 of 700 W)


def step_power_w(accelerator: AcceleratorSpec, n_accelerators: int, memory_s: Any, math_s: Any, launch_s: Any) -> Any:
    """Return the watts of `n_accelerators` and their share of the server during a step of three time parts.

    >>> h100 = AcceleratorSpec(bf16_tflops=989, memory_gb=85.9, memory_bw_tb_s=3.35, tdp_w=700, idle_w=75)
    >>> float(step_power_w(h100, 1, 0.0, 1.0, 0.0)), float(step_power_w(h100, 2, 1.0, 0.0, 0.0))
    (700.0, 1050.0)
    """
    total_s = memory_s + math_s + launch_s
    weighted = MEMORY_SHARE * memory_s + MATH_SHARE * math_s + LAUNCH_SHARE * launch_s
    load = np.minimum(1.0, weighted / np.where(total_s > 0.0, total_s, 1.0))
    idle_w = accelerator.idle_w or UNKNOWN_IDLE_SHARE * accelerator.tdp_w
    accelerator_w = idle_w + (accelerator.tdp_w - idle_w) * load
    # The host follows its accelerators: fans and CPUs rise with the load.
    host_idle_w = accelerator.server_idle_other_w
    host_w = host_idle_w + (accelerator.server_other_w - host_idle_w) * load
    return n_accelerators * (accelerator_w + host_w)


def saturating_w(n_sequences: Any, floor_w: float, rise_w: float, half_sequences: float) -> Any:
    """Return the watts of a measured configuration between its batch sizes: P0 + P1 x / (x + x0).

    >>> float(saturating_w(10.0, 400.0, 300.0, 10.0))
    550.0
    """
    return floor_w + rise_w * n_sequences / (n_sequences + half_sequences)
