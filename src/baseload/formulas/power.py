"""Power: what an accelerator, a server, a rack and a site draw, and what a token costs in joules.

From the chip outwards: utilisation -> accelerator -> server -> conversion stages -> rack -> site. How the
plant's overhead follows weather and load is `cooling.py`; prices are in `money.py`; who may draw is a policy.
Functions typed with `Real` take a float or a float64 array (hours, say) and return the same.
"""

from __future__ import annotations

from collections.abc import Sequence
from math import floor, log2

import numpy as np

from baseload.formulas.elementwise import FloatArray, Real, exponential, holds
from baseload.units import J_PER_KWH, J_PER_WH, TOKENS_PER_MTOK

Stage = tuple[float, float]
"""One conversion stage: constant loss in W per unit, efficiency of the rest (0..1]."""

FRONTIER_SIVOC: Stage = (13.0, 0.98)  # ExaDigiT/RAPS config/frontier.yaml: 380 V DC to 48 V, one per node
FRONTIER_RECTIFIER: Stage = (17.0, 0.96)  # the same file: AC to 380 V DC, one per four nodes
UPS_DOUBLE_CONVERSION: Stage = (0.0, 0.965)  # makers' sheets say 0.96-0.98 above 40 % load; modelled
TRANSFORMER: Stage = (0.0, 0.988)  # 0.985-0.99; modelled
EIGHT_GPU_HOST_W = 1200.0  # CPUs, memory, NICs, fans beside eight accelerators: EcoLogits 0.8, llm.py


def accelerator_power_w(utilisation: Real, idle_w: float, max_w: float, curve: float = 1.0) -> Real:
    """Return the power of an accelerator in W at a utilisation from 0 to 1.

    `curve` 1 is the straight line of ExaDigiT/RAPS (raps/power.py); below 1 the draw rises early, as decode
    does (Fan, Weber, Barroso 2007 bend CPUs the same way). Float or array.

    >>> accelerator_power_w(0.5, idle_w=88.0, max_w=560.0)
    324.0
    """
    assert 0.0 <= idle_w <= max_w and curve > 0.0, (idle_w, max_w, curve)
    assert holds(utilisation >= 0.0) and holds(utilisation <= 1.0), utilisation
    shape: Real = utilisation**curve
    return idle_w + (max_w - idle_w) * shape


def accelerator_power_at_batch_w(
    batch: float, idle_w: float, nominal_w: float, steepness: float = 1.0, midpoint_log2: float = 4.2
) -> float:
    """Return the power in W of an accelerator that decodes `batch` sequences: a logistic in log2(batch).

    Source: vLLM semantic-router fleet-sim (H100: 300 and 600 W, steepness 1, midpoint 4.2; A100: 175 and
    385 W, 1, 2.5). For planning without measured watts; calibrate where you have them.

    >>> round(accelerator_power_at_batch_w(64.0, idle_w=300.0, nominal_w=600.0), 1)
    557.4
    """
    assert 0.0 <= idle_w <= nominal_w and batch >= 0.0, (idle_w, nominal_w, batch)
    if batch == 0.0:
        return idle_w
    return idle_w + (nominal_w - idle_w) / (1.0 + exponential(-steepness * (log2(batch) - midpoint_log2)))


def server_power_w(accelerator_w: Real, n_accelerators: float, host_w: Real | float = EIGHT_GPU_HOST_W) -> Real:
    """Return the power of a server in W: its accelerators and what serves them (CPU, memory, NIC, fans).

    The default host is EcoLogits' 1.2 kW per eight accelerators. Float or array.

    >>> server_power_w(700.0, n_accelerators=8)
    6800.0
    """
    assert n_accelerators >= 0 and holds(host_w >= 0.0), (n_accelerators, host_w)
    return accelerator_w * n_accelerators + host_w


def stage_input_w(output_w: Real, stage: Stage, n_units: float = 1.0) -> Real:
    """Return what `n_units` equal converters draw to deliver `output_w` together: (P + n c) / efficiency.

    Source: ExaDigiT/RAPS, `compute_loss` (arXiv 2410.05133). Float or array, in W.

    >>> stage_input_w(983.0, (17.0, 0.5))
    2000.0
    """
    constant_w, efficiency = stage
    assert constant_w >= 0.0 and 0.0 < efficiency <= 1.0 and n_units >= 0.0, (stage, n_units)
    return (output_w + n_units * constant_w) / efficiency


def chain_input_w(output_w: Real, stages: Sequence[Stage]) -> Real:
    """Return what enters a chain of stages, load side first, that delivers `output_w`. Float or array, in W.

    >>> round(chain_input_w(1000.0, [(13.0, 0.98), (17.0, 0.96)]), 2)
    1094.45
    """
    for stage in stages:
        output_w = stage_input_w(output_w, stage)
    return output_w


def chain_efficiency(output_w: float, stages: Sequence[Stage]) -> float:
    """Return the share of what enters a chain that leaves it, at one load in W.

    >>> round(chain_efficiency(1000.0, [(13.0, 0.98), (17.0, 0.96)]), 4)
    0.9137
    """
    assert output_w > 0.0, output_w
    return output_w / chain_input_w(output_w, stages)


def rack_power_w(server_w: Real, n_servers: float, switch_w: float = 0.0, n_switches: float = 0.0) -> Real:
    """Return the power of a rack in W: servers and switches. Float or array.

    >>> rack_power_w(6800.0, n_servers=4, switch_w=250.0, n_switches=2)
    27700.0
    """
    assert n_servers >= 0 and switch_w >= 0.0 and n_switches >= 0, (n_servers, switch_w, n_switches)
    return server_w * n_servers + switch_w * n_switches


def site_power_kw(it_power_kw: Real, pue: Real | float) -> Real:
    """Return the power a site draws for `it_power_kw` of equipment (ISO/IEC 30134-2). Float or array.

    >>> site_power_kw(1000.0, pue=1.25)
    1250.0
    """
    assert holds(pue >= 1.0), pue
    return it_power_kw * pue


def usable_fraction(redundancy: str, n_modules: int = 4) -> float:
    """Return the share of installed power modules that may carry load: N all, N+1 all but one, 2N half.

    With N+1 one of `n_modules` is spare: four to make three leave 75 % (Uptime Institute tiers; distributed
    redundancy is the same arithmetic).

    >>> usable_fraction("N"), usable_fraction("N+1", n_modules=4), usable_fraction("2N")
    (1.0, 0.75, 0.5)
    """
    assert redundancy in ("N", "N+1", "2N"), redundancy
    assert n_modules >= (2 if redundancy == "N+1" else 1), (redundancy, n_modules)
    return {"N": 1.0, "N+1": (n_modules - 1) / n_modules, "2N": 0.5}[redundancy]


def units_that_fit(power_kw: float, unit_kw: float) -> int:
    """Return how many whole accelerators, servers or racks a power budget carries.

    >>> units_that_fit(1000.0, unit_kw=1.73)  # an H100 with all that belongs to it, InferenceX constants
    578
    """
    assert power_kw >= 0.0 and unit_kw > 0.0, (power_kw, unit_kw)
    return floor(power_kw / unit_kw + 1e-9)


def oversubscribed_kw(budget_kw: float, peak_ratio: float) -> float:
    """Return the nameplate kW that may stand behind a budget when the real peak is only a share of nameplate.

    POLCA (arXiv 2308.12908) puts 30 % more inference servers behind the same budget.

    >>> round(oversubscribed_kw(1000.0, peak_ratio=1 / 1.3), 3)
    1300.0
    """
    assert budget_kw >= 0.0 and 0.0 < peak_ratio <= 1.0, (budget_kw, peak_ratio)
    return budget_kw / peak_ratio


def billing_peak_kw(power_kw: FloatArray, samples_per_interval: int = 1) -> float:
    """Return the highest mean over one billing interval, the kW that a demand charge bills.

    `power_kw` are evenly spaced samples; utilities average over 15, 30 or 60 minutes. A last interval that is
    not full counts by its mean.

    >>> billing_peak_kw(np.array([10.0, 30.0, 20.0, 20.0]), samples_per_interval=2)
    20.0
    """
    assert samples_per_interval >= 1, samples_per_interval
    if len(power_kw) == 0:
        return 0.0
    starts = np.arange(0, len(power_kw), samples_per_interval)
    counts = np.diff(np.append(starts, len(power_kw)))
    return float((np.add.reduceat(power_kw, starts) / counts).max())


def joules_per_token(power_w: Real, tokens_per_s: Real | float) -> Real:
    """Return J per token at a power and a token rate. Float or array.

    >>> joules_per_token(700.0, tokens_per_s=2000.0)
    0.35
    """
    assert holds(tokens_per_s > 0.0), tokens_per_s
    return power_w / tokens_per_s


def wh_per_token(power_w: Real, tokens_per_s: Real | float) -> Real:
    """Return Wh per token at a power and a token rate. Float or array.

    >>> round(wh_per_token(720.0, tokens_per_s=2000.0), 7)
    0.0001
    """
    return joules_per_token(power_w, tokens_per_s) / J_PER_WH


def kwh_per_million_tokens(power_w: Real, tokens_per_s: Real | float) -> Real:
    """Return kWh per million tokens. Float or array.

    >>> kwh_per_million_tokens(720.0, tokens_per_s=2000.0)
    0.1
    """
    return joules_per_token(power_w, tokens_per_s) * TOKENS_PER_MTOK / J_PER_KWH


def tokens_per_kwh(joules_each: Real) -> Real:
    """Return tokens per kWh from J per token: 3.6e6 / J. Float or array.

    >>> tokens_per_kwh(0.36)
    10000000.0
    """
    assert holds(joules_each > 0.0), joules_each
    return J_PER_KWH / joules_each


def tokens_per_s_per_kw(tokens_per_s: Real, power_kw: Real | float) -> Real:
    """Return the token rate that each kW carries; of IT or of the site, as `power_kw` is. Float or array.

    >>> tokens_per_s_per_kw(20_000.0, power_kw=10.0)
    2000.0
    """
    assert holds(power_kw > 0.0), power_kw
    return tokens_per_s / power_kw


def tokens_per_s_per_rack(tokens_per_s: Real, n_racks: float) -> Real:
    """Return the token rate of one rack. Float or array.

    >>> tokens_per_s_per_rack(1.2e6, n_racks=8)
    150000.0
    """
    assert n_racks > 0, n_racks
    return tokens_per_s / n_racks


def tokens_per_s_per_m2(tokens_per_s: Real, area_m2: float) -> Real:
    """Return the token rate of one square metre of white space. Float or array.

    >>> tokens_per_s_per_m2(1.2e6, area_m2=24.0)
    50000.0
    """
    assert area_m2 > 0.0, area_m2
    return tokens_per_s / area_m2
