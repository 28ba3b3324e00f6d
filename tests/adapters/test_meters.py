"""Meters from recorded values: counters that wrap, restart or vanish, and the sum that only grows."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from baseload.adapters.meters import Counter, ModelledMeter, meter, nvml_meter, rapl_meter
from baseload.errors import InputError


def package(folder: Path, number: int, name: str, uj: int, most_uj: int = 262_143_328_850) -> Path:
    """Lay out a RAPL zone as Linux shows it."""
    zone = folder / f"intel-rapl:{number}"
    zone.mkdir(parents=True)
    (zone / "name").write_text(f"{name}\n")
    (zone / "energy_uj").write_text(f"{uj}\n")
    (zone / "max_energy_range_uj").write_text(f"{most_uj}\n")
    return zone


class Driver:
    """The part of NVIDIA's library that is asked, with values from a recording."""

    class NVMLError(Exception):
        """As the library raises."""

    def __init__(self, recorded: dict[int, list[int]]) -> None:
        self.recorded = recorded
        self.closed = False

    def nvmlInit(self) -> None:
        """Nothing to do."""

    def nvmlShutdown(self) -> None:
        """Remember it."""
        self.closed = True

    def nvmlDeviceGetCount(self) -> int:
        """Return how many were recorded."""
        return len(self.recorded)

    def nvmlDeviceGetHandleByIndex(self, i: int) -> int:
        """Return the number itself."""
        return i

    def nvmlDeviceGetTotalEnergyConsumption(self, handle: int) -> int:
        """Return the next recorded millijoules."""
        if not self.recorded[handle]:
            raise self.NVMLError("GPU is lost")
        return self.recorded[handle].pop(0)


def test_rapl_counts_packages_and_no_part_of_them_twice(tmp_path: Path):
    """Two packages are summed; their cores and memory, which they contain, are left out, and so is the platform."""
    zones = [package(tmp_path, 0, "package-0", 1_000_000), package(tmp_path, 1, "package-1", 5_000_000)]
    package(tmp_path, 2, "psys", 0)
    inner = package(tmp_path / "inner", 0, "core", 0)
    inner.rename(tmp_path / "intel-rapl:0:0")
    found = rapl_meter(tmp_path)

    assert found.energy_j() == 0.0
    (zones[0] / "energy_uj").write_text("3000000")
    (zones[1] / "energy_uj").write_text("5500000")
    assert found.energy_j() == pytest.approx(2.5)
    assert found.method == "rapl"


def test_rapl_goes_on_when_its_register_wraps(tmp_path: Path):
    """The register of 2023 server processors wraps each few minutes; the sum does not notice."""
    zone = package(tmp_path, 0, "package-0", 262_143_000_000)
    found = rapl_meter(tmp_path)
    (zone / "energy_uj").write_text("671150")

    assert found.energy_j() == pytest.approx((262_143_328_850 - 262_143_000_000 + 671_150) / 1e6)


@given(st.lists(st.integers(0, 10**6), min_size=1, max_size=40), st.integers(10**6 + 1, 2 * 10**6))
def test_a_sum_of_energy_never_shrinks(added: list[int], wraps_at: int):
    """However a counter wraps, its sum is what was added."""
    total = 0

    def read() -> int:
        return total % wraps_at

    counter = Counter(read, per_j=1.0, wraps_at=wraps_at)
    for units in added:
        total += units
        assert counter.energy_j() == total


def test_nvml_counts_on_after_a_driver_is_loaded_anew():
    """A counter that starts at nothing again adds what it shows; a lost accelerator is an OSError, not a zero."""
    driver = Driver({0: [10_000, 12_500, 400], 1: [0, 1_000, 1_000]})
    found = nvml_meter(driver)

    assert found.energy_j() == pytest.approx(3.5)
    assert found.energy_j() == pytest.approx(3.9)
    with pytest.raises(OSError, match="lost"):
        found.energy_j()
    found.close()
    assert driver.closed


def test_a_meter_that_is_not_there_is_named_at_the_start(tmp_path: Path):
    """A fleet file that asks for a meter which this host has not is told so, with what to do."""
    with pytest.raises(InputError, match="no processor package"):
        rapl_meter(tmp_path)
    with pytest.raises(InputError, match="no accelerator"):
        nvml_meter(Driver({}))
    with pytest.raises(InputError, match="lost"):
        nvml_meter(Driver({0: []}))


def test_modelled_energy_is_power_over_time():
    """A power that rises from 0 to 100 W in ten seconds took 500 J."""
    now_s, watts = 0.0, 0.0
    found = ModelledMeter(lambda: watts, clock=lambda: now_s)
    now_s, watts = 10.0, 100.0

    assert found.energy_j() == pytest.approx(500.0)
    assert meter("modelled", lambda: 1.0).method == "modelled"
