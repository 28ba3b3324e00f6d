"""Carbon and water: EcoLogits' figures first, then what the accounts must keep."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from baseload.formulas import carbon

energies = st.floats(0.0, 1e9)
intensities = st.floats(0.0, 1500.0)


@pytest.mark.parametrize(("billions", "wh"), [(8.0, 4.508e-5), (70.0, 8.039e-5), (405.0, 2.711e-4)])
def test_gpu_energy_of_ecologits(billions: float, wh: float):
    """Wh per token and GPU at batch 64 are EcoLogits' (mlco2/ecologits at 5be90da)."""
    assert carbon.ecologits_gpu_wh_per_token(billions, batch=64.0) == pytest.approx(wh, rel=2e-4)


def test_gpus_of_ecologits():
    """70 B in 16 bits is 168 GB with its fifth, three 80 GB GPUs, rounded up to four; 8 B fits one."""
    assert [carbon.ecologits_gpus(b) for b in (8.0, 30.0, 70.0, 405.0)] == [1, 1, 4, 16]


def test_request_of_ecologits_step_by_step():
    """A request's Wh is GPUs plus a share of server and batch, times PUE, as its source adds them up."""
    tokens, pue = 400.0, 1.2
    seconds = tokens * (0.0006785088094353663 * 70 + 0.0003119310311688259 * 64 + 0.019473717579473387)
    server_kwh = seconds / 3600 * 1.2 * (4 / 8) * (1 / 64)
    gpu_kwh = tokens * carbon.ecologits_gpu_wh_per_token(70.0) / 1000
    assert carbon.ecologits_request_wh(tokens, 70.0, 70.0, pue=pue) == pytest.approx(
        1000 * pue * (server_kwh + 4 * gpu_kwh)
    )


def test_embodied_of_ecologits():
    """Half a server and four GPUs over three years leave 5.8 mg on a request of 10 s at batch 64."""
    total = 4 / 8 * carbon.ECOLOGITS_SERVER_EMBODIED_KG + 4 * carbon.ECOLOGITS_GPU_EMBODIED_KG
    assert total == 3506.0
    assert carbon.embodied_kg(total, 10.0 / 64, carbon.ECOLOGITS_LIFE_S) == pytest.approx(5.79e-6, rel=1e-3)


@given(energies, intensities, st.floats(0.0, 1.0))
def test_market_and_location_agree_without_contracts(kwh: float, intensity: float, green: float):
    """Without a contract both methods agree; a clean one removes its share, all of it at most."""
    by_place = carbon.location_based_kg(kwh, intensity)
    assert carbon.market_based_kg(kwh, intensity) == pytest.approx(by_place)
    assert carbon.market_based_kg(kwh, intensity, green_ratio=green) == pytest.approx((1 - green) * by_place, abs=1e-9)


@given(st.lists(st.tuples(st.floats(0.0, 1e6), st.floats(0.0, 1e6)), min_size=1, max_size=30), intensities)
def test_hourly_matching_is_never_kinder_than_yearly(hours: list[tuple[float, float]], intensity: float):
    """Matching each hour leaves at least what matching the year's sums leaves."""
    kwh, green = np.array([h[0] for h in hours]), np.array([h[1] for h in hours])
    strict = float(carbon.hourly_matched_kg(kwh, green, intensity).sum())
    loose = carbon.hourly_matched_kg(float(kwh.sum()), float(green.sum()), intensity)
    assert strict >= loose - 1e-6 * (1.0 + loose)
    assert strict <= float(carbon.location_based_kg(kwh, intensity).sum()) * (1 + 1e-9) + 1e-9


@given(energies, st.floats(0.0, 3.0), st.floats(1.0, 2.0), st.floats(0.0, 10.0))
def test_water_counts_pue_once(kwh: float, on_site: float, pue: float, off_site: float):
    """On-site litres are per IT kWh, off-site per kWh at the meter."""
    assert carbon.water_l(kwh, on_site, pue, off_site) == pytest.approx(kwh * on_site + (kwh * pue) * off_site)


def test_units():
    """A kWh at 1,000 g is 1 kg; a kg over a million tokens is 1,000 g."""
    assert carbon.location_based_kg(1.0, 1000.0) == 1.0
    assert carbon.grams_per_million_tokens(1.0, 1e6) == 1000.0
    assert carbon.ecologits_seconds_per_token(70.0, 64.0) == pytest.approx(0.0869, rel=1e-3)
