"""Carbon and water: kg CO2e by location and by market, what was emitted before the first token, and litres.

Intensities and series come from the fleet file or the catalogue; on-site water per kWh is `cooling.py`'s.
Functions typed with `Real` take floats or float64 arrays (hours) and return the same.
"""

from __future__ import annotations

from math import ceil

from baseload.formulas.elementwise import Real, exponential, holds, larger

G_PER_KG = 1000.0

# EcoLogits (mlco2/ecologits, MPL-2.0), ecologits/impacts/llm.py at commit 5be90da; GPU energy fitted on ML.ENERGY.
ECOLOGITS_ALPHA_WH = 1.1665273170451914e-06
ECOLOGITS_BETA = -0.011205921025579175
ECOLOGITS_GAMMA_WH = 4.052928146734005e-05
ECOLOGITS_LATENCY_S = (0.0006785088094353663, 0.0003119310311688259, 0.019473717579473387)
ECOLOGITS_SERVER_KW = 1.2  # without its eight GPUs
ECOLOGITS_GPU_EMBODIED_KG = 164.0
ECOLOGITS_SERVER_EMBODIED_KG = 5700.0
ECOLOGITS_LIFE_S = 94_608_000.0  # three years


def location_based_kg(energy_kwh: Real, intensity_g_per_kwh: Real | float) -> Real:
    """Return kg CO2e of energy at the grid's own intensity (GHG Protocol, Scope 2, location-based). Float or array.

    >>> location_based_kg(1000.0, intensity_g_per_kwh=350.0)
    350.0
    """
    assert holds(intensity_g_per_kwh >= 0.0), intensity_g_per_kwh
    return energy_kwh * intensity_g_per_kwh / G_PER_KG


def market_based_kg(
    energy_kwh: Real, residual_g_per_kwh: Real | float, green_ratio: float = 0.0, green_g_per_kwh: float = 0.0
) -> Real:
    """Return kg CO2e after contracts: a share at the contract's intensity, the rest at the residual mix.

    GHG Protocol Scope 2, market-based. Where no residual mix is known, the grid's intensity stands in for it, which
    flatters. Float or array.

    >>> market_based_kg(1000.0, residual_g_per_kwh=400.0, green_ratio=0.75)
    100.0
    """
    assert 0.0 <= green_ratio <= 1.0 and green_g_per_kwh >= 0.0, (green_ratio, green_g_per_kwh)
    residual_kg: Real = location_based_kg(energy_kwh, residual_g_per_kwh) * (1.0 - green_ratio)
    return residual_kg + energy_kwh * (green_ratio * green_g_per_kwh / G_PER_KG)


def hourly_matched_kg(energy_kwh: Real, green_kwh: Real | float, residual_g_per_kwh: Real | float) -> Real:
    """Return kg CO2e when green energy counts only in the hour it was made: what is not covered, at the residual mix.

    The stricter reading of a contract (24/7 matching). Float or array.

    >>> hourly_matched_kg(1000.0, green_kwh=1200.0, residual_g_per_kwh=400.0)
    0.0
    """
    return location_based_kg(larger(energy_kwh - green_kwh, 0.0), residual_g_per_kwh)


def embodied_kg(total_kg: float, used_s: Real, life_s: float) -> Real:
    """Return the share of an asset's making that its use in a span bears, straight-line over its life.

    Float or array.

    >>> embodied_kg(164.0, used_s=94_608.0, life_s=94_608_000.0)
    0.164
    """
    assert total_kg >= 0.0 and life_s > 0.0, (total_kg, life_s)
    return total_kg * (used_s / life_s)


def grams_per_million_tokens(emitted_kg: float, tokens: float) -> float:
    """Return g CO2e per million tokens.

    >>> grams_per_million_tokens(2.0, tokens=4e6)
    500.0
    """
    assert tokens > 0.0, tokens
    return emitted_kg * G_PER_KG / (tokens / 1e6)


def water_l(it_kwh: Real, wue_on_site: Real | float, pue: Real | float, wue_off_site: Real | float) -> Real:
    """Return litres: evaporated on site per kWh of IT, and at the power plants per kWh at the meter.

    Li, Yang, Islam, Ren 2023 (arXiv 2304.03271), and EcoLogits: E_IT (WUE_on + PUE WUE_off). Float or array.

    >>> round(water_l(100.0, wue_on_site=1.0, pue=1.2, wue_off_site=3.0), 6)
    460.0
    """
    assert holds(pue >= 1.0), pue
    return it_kwh * (wue_on_site + pue * wue_off_site)


def ecologits_gpu_wh_per_token(active_parameters_b: float, batch: float = 64.0) -> float:
    """Return Wh that one GPU takes for one output token, by active parameters in billions and batch (EcoLogits 0.9).

    A fit over many models on H100, not a measurement of yours; kept as a cross-check of the power model.

    >>> f"{ecologits_gpu_wh_per_token(70.0):.3e}"
    '8.039e-05'
    """
    assert active_parameters_b > 0.0 and batch > 0.0, (active_parameters_b, batch)
    return ECOLOGITS_ALPHA_WH * exponential(ECOLOGITS_BETA * batch) * active_parameters_b + ECOLOGITS_GAMMA_WH


def ecologits_seconds_per_token(active_parameters_b: float, batch: float = 64.0) -> float:
    """Return EcoLogits' seconds per output token, by active parameters in billions and batch.

    >>> round(ecologits_seconds_per_token(70.0), 4)
    0.0869
    """
    per_parameter, per_batch, constant = ECOLOGITS_LATENCY_S
    return per_parameter * active_parameters_b + per_batch * batch + constant


def ecologits_gpus(total_parameters_b: float, bits: int = 16, gpu_gb: float = 80.0) -> int:
    """Return the GPUs that EcoLogits gives a model: weights and a fifth more, rounded up to a power of two.

    >>> ecologits_gpus(70.0)  # 168 GB
    4
    """
    assert total_parameters_b > 0.0 and bits > 0 and gpu_gb > 0.0, (total_parameters_b, bits, gpu_gb)
    needed = ceil(1.2 * total_parameters_b * bits / 8.0 / gpu_gb)
    return 1 << (needed - 1).bit_length()


def ecologits_request_wh(
    output_tokens: float,
    active_parameters_b: float,
    total_parameters_b: float,
    *,
    pue: float,
    batch: float = 64.0,
) -> float:
    """Return EcoLogits' Wh at the meter for one request: its GPUs, and its share of the server, times PUE.

    >>> round(ecologits_request_wh(400.0, 70.0, 70.0, pue=1.2), 4)
    0.263
    """
    assert output_tokens >= 0.0 and pue >= 1.0, (output_tokens, pue)
    gpus = ecologits_gpus(total_parameters_b)
    gpu_wh = gpus * ecologits_gpu_wh_per_token(active_parameters_b, batch) * output_tokens
    hours = ecologits_seconds_per_token(active_parameters_b, batch) * output_tokens / 3600.0
    server_wh = hours * ECOLOGITS_SERVER_KW * 1000.0 * gpus / 8.0 / batch
    return pue * (gpu_wh + server_wh)
