"""Power, from the chip to the meter: the Frontier system against its published figures, then what must hold."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from baseload.formulas import power

# Frontier as ExaDigiT/RAPS describes it (config/frontier.yaml at 6490d3a): 74 racks of 128 nodes.
RACKS, NODES_PER_RACK, NODES_PER_RECTIFIER, SWITCHES_PER_RACK, CDUS = 74, 128, 4, 32, 25
NODES = RACKS * NODES_PER_RACK
MEMORY_W, NIC_W, NVME_W, SWITCH_W, CDU_W = 74.26, 4 * 20.0, 30.0, 250.0, 8473.47
HPL = (0.33, 0.79)  # CPU and GPU utilisation in RAPS' own benchmark workload

# SC'24 paper (arXiv 2410.05133): RAPS, and Frontier's telemetry, in MW.
SIMULATOR_MW = {"idle": 7.24, "hpl": 22.3, "peak": 28.2}
TELEMETRY_MW = {"idle": 7.4, "hpl": 21.3, "peak": 27.4}


def node_w(cpu: float, gpu: float) -> float:
    cpu_w = power.accelerator_power_w(cpu, idle_w=90.0, max_w=280.0)
    gpu_w = power.accelerator_power_w(gpu, idle_w=88.0, max_w=560.0)
    server_w = power.server_power_w(gpu_w, 4, host_w=cpu_w + MEMORY_W + NIC_W + NVME_W)
    return power.stage_input_w(server_w, power.FRONTIER_SIVOC)


def frontier_mw(cpu: float, gpu: float, nodes: int = NODES) -> float:
    """Return Frontier's draw with `nodes` busy and the rest idle, through our general formulas alone."""
    fed_w = nodes / NODES * node_w(cpu, gpu) + (1 - nodes / NODES) * node_w(0.0, 0.0)
    group_w = power.stage_input_w(NODES_PER_RECTIFIER * fed_w, power.FRONTIER_RECTIFIER)
    rack_w = power.rack_power_w(
        group_w, NODES_PER_RACK / NODES_PER_RECTIFIER, switch_w=SWITCH_W, n_switches=SWITCHES_PER_RACK
    )
    return (RACKS * rack_w + CDUS * CDU_W) / 1e6


@pytest.mark.parametrize("state", ["idle", "hpl", "peak"])
def test_frontier_comes_out_of_the_general_formulas(state: str):
    """Idle, HPL and peak of a 9,472-node system lie within 8 % of its simulator and of its telemetry."""
    loads = {"idle": (0.0, 0.0), "hpl": HPL, "peak": (1.0, 1.0)}
    ours_mw = frontier_mw(*loads[state])
    assert ours_mw == pytest.approx(SIMULATOR_MW[state], rel=0.08)
    assert ours_mw == pytest.approx(TELEMETRY_MW[state], rel=0.08)


def test_frontier_hpl_on_the_nodes_that_ran_it():
    """With 256 nodes idle, as in the ranked run (8,699,904 cores / 944 a node = 9,216), HPL is within 6 %."""
    ours_mw = frontier_mw(*HPL, nodes=8_699_904 // 944)
    assert ours_mw == pytest.approx(SIMULATOR_MW["hpl"], rel=0.02)
    assert ours_mw == pytest.approx(TELEMETRY_MW["hpl"], rel=0.06)


@pytest.mark.parametrize(
    ("unit_kw", "per_mw"),
    [(1.73, 578), (2.17, 460), (2.10, 476), (2.65, 377)],
    ids=["h100", "b200", "gb200", "mi355x"],
)
def test_accelerators_in_a_megawatt(unit_kw: float, per_mw: int):
    """A MW carries as many accelerators as InferenceX's all-in kW say (packages/app/src/lib/constants.ts)."""
    assert power.units_that_fit(1000.0, unit_kw) == per_mw


def test_oversubscription_is_polcas():
    """Peaks at 1/1.3 of nameplate let 30 % more servers stand behind one budget (POLCA, arXiv 2308.12908)."""
    assert power.oversubscribed_kw(100.0, peak_ratio=1 / 1.3) == pytest.approx(130.0)


@given(st.floats(0.0, 1e6), st.floats(0.0, 100.0), st.floats(0.5, 1.0), st.integers(1, 50))
def test_a_stage_never_creates_power(output_w: float, constant_w: float, efficiency: float, n: int):
    """What enters a converter is at least what leaves it, and n shared stages draw as n of a share each."""
    stage = (constant_w, efficiency)
    entered = power.stage_input_w(output_w, stage, n_units=n)
    assert entered >= output_w
    assert entered == pytest.approx(n * power.stage_input_w(output_w / n, stage))


@given(st.floats(0.0, 1.0), st.floats(0.0, 1.0), st.floats(0.3, 3.0))
def test_more_load_never_draws_less(low: float, high: float, curve: float):
    """The accelerator's curve rises with utilisation and stays between idle and maximum."""
    low, high = sorted((low, high))
    a, b = (power.accelerator_power_w(u, 90.0, 700.0, curve) for u in (low, high))
    assert 90.0 <= a <= b <= 700.0 + 1e-9


@given(st.floats(1.0, 4096.0), st.floats(1.0, 4096.0))
def test_a_bigger_batch_never_draws_less(a: float, b: float):
    """The logistic in batch size rises and never leaves idle..nominal."""
    low, high = (power.accelerator_power_at_batch_w(x, 300.0, 600.0) for x in sorted((a, b)))
    assert 300.0 <= low <= high <= 600.0


@given(st.lists(st.floats(0.0, 1e5), min_size=1, max_size=60), st.integers(1, 8))
def test_billing_peak_by_brute_force(samples: list[float], every: int):
    """The billed peak is the highest mean of consecutive intervals, between the mean and the highest sample."""
    billed = power.billing_peak_kw(np.array(samples), samples_per_interval=every)
    chunks = [samples[i : i + every] for i in range(0, len(samples), every)]
    assert billed == pytest.approx(max(sum(chunk) / len(chunk) for chunk in chunks))
    assert billed <= max(samples) + 1e-6


@given(st.floats(1.0, 1e6), st.floats(1.0, 1e6))
def test_token_energy_is_one_quantity_in_many_units(watts: float, tokens_per_s: float):
    """J, Wh, kWh per million and tokens per kWh are the same fact; doubling both power and rate changes nothing."""
    joules = power.joules_per_token(watts, tokens_per_s)
    assert power.wh_per_token(watts, tokens_per_s) * 3600.0 == pytest.approx(joules)
    assert power.kwh_per_million_tokens(watts, tokens_per_s) * power.tokens_per_kwh(joules) == pytest.approx(1e6)
    assert power.joules_per_token(2 * watts, 2 * tokens_per_s) == pytest.approx(joules)
    assert power.tokens_per_s_per_kw(tokens_per_s, watts / 1000.0) * joules == pytest.approx(1000.0)


def test_hours_at_once_equal_hours_one_by_one():
    """An array of hours gives what a loop over floats gives."""
    load = np.linspace(0.0, 1.0, 11)
    at_once = power.server_power_w(power.accelerator_power_w(load, 88.0, 560.0, 0.7), 4, host_w=300.0)
    singly = [power.server_power_w(power.accelerator_power_w(float(u), 88.0, 560.0, 0.7), 4, 300.0) for u in load]
    assert at_once == pytest.approx(np.array(singly))


def test_redundancy_keeps_what_it_says():
    """N uses all, 2N half, and N+1 ever more the more modules share one spare."""
    assert power.usable_fraction("N") == 1.0
    assert power.usable_fraction("2N") == 0.5
    shares = [power.usable_fraction("N+1", n) for n in range(2, 30)]
    assert shares == sorted(shares) and shares[0] == 0.5 and shares[-1] < 1.0
