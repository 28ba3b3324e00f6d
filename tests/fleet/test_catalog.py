"""The catalogue: sourced figures, sane hardware, places on the map, and round trips that light could make."""

from __future__ import annotations

import subprocess
import sys
from itertools import combinations
from math import asin, cos, radians, sin, sqrt
from pathlib import Path

import msgspec
import pytest

from baseload.errors import CatalogError
from baseload.fleet import catalog
from baseload.fleet.catalog import Accelerator, Place

FIBRE_KM_PER_MS = 200.0  # light in glass, refractive index 1.468, rounded
NAMES = {"accelerator_id", "name", "vendor", "aliases", "notes", "provenance"}
PLACE_FIGURES = {"lat", "lon", "price_per_mwh", "carbon_g_per_kwh", "mean_wetbulb_c", "design_wetbulb_c"}

# Typed in from aiconfigurator 095f58a, systems/*.yaml: bytes of memory, bytes/s, bf16, fp8, fp4 FLOP/s, W
NVIDIA_SYSTEMS = {
    "a100-pcie": (85899345920, 1.935e12, 3.12e14, None, None, 300),
    "a100-sxm": (85899345920, 2.039e12, 3.12e14, None, None, 400),
    "h100-pcie": (85899345920, 2.0e12, 7.565e14, 1.513e15, None, 350),
    "h100-sxm": (85899345920, 3.35e12, 9.89e14, 1.978e15, None, 700),
    "h200-sxm": (151397597184, 4.8e12, 9.89e14, 1.978e15, None, 700),
    "b200-sxm": (193273528320, 7.7e12, 2.25e15, 4.5e15, 9e15, 1000),
    "b300-sxm": (288400343040, 7.75e12, 2.25e15, 4.5e15, 1.4e16, 1100),
    "gb200": (198674743296, 8.0e12, 2.5e15, 5.0e15, 1e16, 1200),
    "gb300": (298013687808, 8.0e12, 2.5e15, 5.0e15, 1.5e16, 1400),
    "l4": (25769803776, 3.0e11, 1.21e14, 2.42e14, None, 72),
    "l40s": (48305799168, 8.64e11, 3.6205e14, 7.33e14, None, 350),
    "rtx-pro-6000": (102641958912, 1.792e12, 4.678e14, 9.356e14, 1.8712e15, 600),
}

every_accelerator = pytest.mark.parametrize("a", catalog.accelerators().values(), ids=lambda a: a.accelerator_id)
every_place = pytest.mark.parametrize("p", catalog.places().values(), ids=lambda p: p.place_id)


def test_there_are_as_many_as_promised():
    """At least 20 accelerators of five makers, 30 models and 24 places."""
    assert len(catalog.accelerators()) >= 20
    assert {"NVIDIA", "AMD", "Google", "AWS", "Intel"} == {a.vendor for a in catalog.accelerators().values()}
    assert len(catalog.models()) >= 30
    assert len(catalog.places()) >= 24


@pytest.mark.parametrize("name", NVIDIA_SYSTEMS)
def test_nvidia_figures_agree_with_aiconfigurator(name: str):
    """Memory, bandwidth, peaks and power are those of the published system files."""
    a, (memory, bandwidth, bf16, fp8, fp4, tdp) = catalog.accelerator(name), NVIDIA_SYSTEMS[name]
    assert a.memory_gb * 1e9 == pytest.approx(memory, rel=1e-4)
    assert a.memory_bw_tb_s * 1e12 == pytest.approx(bandwidth, rel=1e-4)
    assert a.bf16_tflops * 1e12 == pytest.approx(bf16, rel=1e-3)
    assert (a.fp8_tflops is None) == (fp8 is None) and (
        fp8 is None or a.fp8_tflops * 1e12 == pytest.approx(fp8, rel=1e-3)
    )
    assert (a.fp4_tflops is None) == (fp4 is None) and (
        fp4 is None or a.fp4_tflops * 1e12 == pytest.approx(fp4, rel=1e-3)
    )
    assert a.tdp_w == tdp


@every_accelerator
def test_every_figure_has_a_source(a: Accelerator):
    """No number without provenance, and no provenance without its number."""
    known = {f.name for f in msgspec.structs.fields(Accelerator)} - NAMES
    missing = {name for name in known if getattr(a, name) is None} - {
        "fp8_tflops",
        "fp4_tflops",
        "export_class",
    }
    assert set(a.provenance) == known - missing
    assert all(origin.source and origin.date >= "2023" for origin in a.provenance.values())


@every_accelerator
def test_hardware_is_sane(a: Accelerator):
    """Fewer bits are never slower, idle is below load, servers fit in racks and racks in their power."""
    assert a.bf16_tflops > 0
    assert a.fp8_tflops is None or a.fp8_tflops >= a.bf16_tflops
    assert a.fp4_tflops is None or (a.fp8_tflops is not None and a.fp4_tflops >= a.fp8_tflops)
    assert 0 < a.idle_w < 0.5 * a.tdp_w
    assert 0 < a.server_idle_other_w < a.server_other_w < a.tdp_w + 60
    assert a.accelerators_per_rack % a.per_server == 0
    load_kw = a.accelerators_per_rack * (a.tdp_w + a.server_other_w) / 1000
    assert 0.7 * load_kw <= a.rack_kw <= 2.5 * load_kw
    assert a.scale_up_gb_s >= a.scale_out_gb_s
    # bytes per FLOP of everything since A100 lie within a factor of ten
    assert 1 / 700 < a.memory_bw_tb_s / a.bf16_tflops < 1 / 30


@every_accelerator
def test_accelerators_answer_to_their_names(a: Accelerator):
    """Id, name and aliases lead to the same accelerator, in any case, with _ or -."""
    for name in (a.accelerator_id, a.name, *a.aliases):
        assert catalog.accelerator(name.upper().replace("-", "_")) is a


@pytest.mark.parametrize(
    ("asked", "model_id"),
    [
        ("meta-llama/Meta-Llama-3.1-8B-Instruct", "llama-3.1-8b"),
        ("nvidia/Llama-3.1-8B-Instruct-FP8", "llama-3.1-8b"),
        ("Qwen/Qwen3-235B-A22B-FP8", "qwen3-235b-a22b"),
        ("nvidia/DeepSeek-R1-NVFP4", "deepseek-r1"),
        ("nvidia/DeepSeek-V3.1-NVFP4", "deepseek-v3"),
        ("OPENAI/GPT-OSS-120B", "gpt-oss-120b"),
        ("google/gemma-3-27b-it", "gemma-3-27b"),
        ("nvidia/NVIDIA-Nemotron-3-Nano-30B-A3B-BF16", "nemotron-3-nano-30b-a3b"),
    ],
)
def test_models_answer_to_their_names_on_hugging_face(asked: str, model_id: str):
    """Organisation, case and what the weights were made into do not matter."""
    assert catalog.model(asked).model_id == model_id


def test_every_model_answers_to_its_names():
    """No alias is taken by another model."""
    for row in catalog.models().values():
        for name in (row.model_id, row.name, *row.aliases):
            assert catalog.model(name) is row, name


@pytest.mark.parametrize(
    ("lookup", "asked", "offered"),
    [
        (catalog.accelerator, "h10-sxm", "h100-sxm"),
        (catalog.model, "lama-3.1-8", "llama-3.1-8b"),
        (catalog.place, "frankfort", "frankfurt"),
        (catalog.place, "", "baseload catalog sites"),
    ],
)
def test_an_unknown_name_is_answered_with_the_nearest(lookup, asked: str, offered: str):
    """A typing mistake is told what was probably meant."""
    with pytest.raises(CatalogError, match=offered):
        lookup(asked)


@every_place
def test_places_are_on_the_map_and_sourced(p: Place):
    """Coordinates, price, carbon and weather are within what the Earth has, and each has a source."""
    assert -90 <= p.lat <= 90 and -180 <= p.lon <= 180
    assert len(p.country) == 2 and p.country.isupper() and p.jurisdiction == p.country
    assert 5 < p.price_per_mwh < 300 and 1 < p.carbon_g_per_kwh < 900
    assert -5 < p.mean_wetbulb_c < p.design_wetbulb_c < 33
    assert set(p.provenance) == PLACE_FIGURES
    for name in (p.place_id, p.name, *p.aliases):
        assert catalog.place(name) is p


def test_blocs_are_nested():
    """EU law reaches Frankfurt and Madrid, EEA law Oslo too, neither London nor Zurich."""
    blocs = {name: catalog.place(name).blocs for name in ("frankfurt", "madrid", "oslo", "london", "zurich")}
    assert blocs == {
        "frankfurt": ("EU", "EEA"),
        "madrid": ("EU", "EEA"),
        "oslo": ("EEA",),
        "london": (),
        "zurich": (),
    }
    assert len(catalog.BLOCS["EU"]) == 27 and len(catalog.BLOCS["EEA"]) == 30


def great_circle_km(a: Place, b: Place) -> float:
    (lat_a, lon_a), (lat_b, lon_b) = ((radians(p.lat), radians(p.lon)) for p in (a, b))
    h = sin((lat_b - lat_a) / 2) ** 2 + cos(lat_a) * cos(lat_b) * sin((lon_b - lon_a) / 2) ** 2
    return 2 * 6371.0 * asin(sqrt(h))


def test_no_round_trip_is_faster_than_light_in_fibre():
    """Each measured round trip is twice the great circle at 200 km/ms at least (1 ms for rounding)."""
    pairs = 0
    for a, b in combinations(catalog.places().values(), 2):
        measured = catalog.rtt_ms(a.place_id, b.place_id)
        if measured is not None:
            value, basis = measured
            least = 2 * great_circle_km(a, b) / FIBRE_KM_PER_MS
            assert least - 1.0 <= value <= 9 * least + 12, (a.place_id, b.place_id, value, least)
            assert basis == "measured" and catalog.rtt_ms(b.place_id, a.place_id) == measured
            pairs += 1
    assert pairs > 300


def test_both_directions_of_a_round_trip_agree():
    """The matrix is nearly symmetric, so the mean of both directions loses nothing (5 ms or 10 %)."""
    matrix = catalog._rtt_matrix()
    for (a, b), there in matrix.items():
        back = matrix.get((b, a))
        assert back is None or abs(there - back) <= max(5.0, 0.1 * back), (a, b)


def test_what_is_not_measured_is_not_made_up():
    """Madrid's region is not in the matrix, and Oslo has no hourly series: None, not a guess."""
    assert catalog.rtt_ms("madrid", "oslo") is None
    assert catalog.series("oslo", "price_per_mwh") is None
    assert catalog.series("madrid", "price_per_mwh") is not None


def test_hourly_series_are_whole_years_and_agree_with_the_flat_figures():
    """8,760 values each, at most 25 filled, and their means are the places' flat figures."""
    seen = 0
    for p in catalog.places().values():
        flat = {
            "price_per_mwh": p.price_per_mwh,
            "carbon_g_per_kwh": p.carbon_g_per_kwh,
            "wetbulb_c": p.mean_wetbulb_c,
        }
        for quantity in catalog.QUANTITIES:
            hourly = catalog.series(p.place_id, quantity)
            if hourly is not None:
                assert len(hourly.values) == 8760 and hourly.year == 2023 and 0 <= hourly.n_filled <= 25
                assert sum(hourly.values) / 8760 == pytest.approx(flat[quantity], abs=0.6)
                seen += 1
    assert seen >= 40


@pytest.mark.parametrize(
    ("zone_place", "mean"), [("frankfurt", 95.18), ("madrid", 87.10), ("paris", 96.86), ("amsterdam", 95.82)]
)
def test_day_ahead_prices_are_those_that_were_published(zone_place: str, mean: float):
    """Mean day-ahead price of 2023 in EUR/MWh as the power exchanges reported it, within 2 %."""
    hourly = catalog.series(zone_place, "price_per_mwh")
    assert hourly is not None
    assert sum(hourly.values) / 8760 / 1.07764 == pytest.approx(mean, rel=0.02)


def test_the_sun_shows_in_the_weather():
    """July is warmer than January north of the equator, colder south of it."""
    for name, sign in (("frankfurt", 1), ("texas", 1), ("tokyo", 1), ("melbourne", -1), ("sao-paulo", -1)):
        hourly = catalog.series(name, "wetbulb_c")
        assert hourly is not None
        january, july = sum(hourly.values[:744]) / 744, sum(hourly.values[4344:5088]) / 744
        assert sign * (july - january) > 2.0, name


def test_guesses_are_marked():
    """Prices of hardware are never passed off as measured, and a list of guesses can be had for a report."""
    for a in catalog.accelerators().values():
        assert "price_usd" in catalog.modelled_figures(a.provenance)
        assert (
            "bf16_tflops" not in catalog.modelled_figures(a.provenance)
            or "memory" in a.provenance["bf16_tflops"].source
        )


def test_the_catalogue_loads_without_heavy_imports():
    """Looking a name up loads neither numpy, numba nor duckdb."""
    code = (
        "import sys; from baseload.fleet import catalog as c; c.accelerator('h100'); c.model('llama-3-8b'); "
        "c.place('oslo'); sys.exit(bool({'numpy', 'numba', 'duckdb'} & set(sys.modules)))"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_the_documentation_lists_every_guess():
    """docs/catalogue.md names each accelerator's and place's modelled figures, and every model."""
    text = (Path(__file__).parents[2] / "docs" / "catalogue.md").read_text(encoding="utf-8")
    lines = text.splitlines()
    for a in catalog.accelerators().values():
        row = f"| `{a.accelerator_id}` | {', '.join(catalog.modelled_figures(a.provenance))} |"
        assert row in lines, f"docs/catalogue.md should say: {row}"
    for p in catalog.places().values():
        guesses = f" {', '.join(catalog.modelled_figures(p.provenance)) or '-'} |"
        assert any(line.startswith(f"| `{p.place_id}` |") and line.endswith(guesses) for line in lines), p.place_id
    for model_id in catalog.models():
        assert f"| `{model_id}` |" in text, model_id
