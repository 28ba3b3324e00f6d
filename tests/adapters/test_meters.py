"""Meters from recorded values: counters that wrap, restart or vanish, and the sum that only grows."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from baseload.adapters.meters import Counter, ModelledMeter, Watched, meter, nvml_meter, rapl_meter
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
    assert meter("modelled", lambda: 1.0).since()[1:] == ("modelled", "")


@pytest.mark.parametrize(
    ("values", "seconds", "joules"),
    [
        ([500, 700], 1.0, 200.0),
        ([900, 50], 1.0, 150.0),  # once around
        ([300, 40], 1.0, 40.0),  # began anew: to have gone around it would have had to draw 740 W
        ([800, 700], 1.0, None),  # neither
        ([0, 900], 1.0, None),  # no package draws that
        ([500, -1], 1.0, None),
        ([500, 520], 3.0, None),  # it may have gone around and around
    ],
)
def test_a_counter_adds_only_what_can_have_been_drawn(values: list[int], seconds: float, joules: float | None):
    """A register of 1,000 J of a package that draws 300 W at most: what cannot be is an error, never a figure."""
    now_s, values = 0.0, [*values, values[-1] + 10]
    counter = Counter(lambda: values.pop(0), per_j=1.0, wraps_at=1000, most_w=300.0, clock=lambda: now_s)
    now_s = seconds
    if joules is None:
        with pytest.raises(OSError, match=r"jumped|gone around"):
            counter.energy_j()
    else:
        assert counter.energy_j() == joules
    now_s += 1.0
    assert counter.energy_j() == (joules or 0.0) + 10.0, "it goes on from there"


def test_what_a_meter_did_not_see_is_modelled_and_said(tmp_path: Path):
    """A right that is taken away, a package that is gone, a register that stands still: the model's figure, and why."""
    now_s = 0.0
    zone = package(tmp_path, 0, "package-0", 1_000_000)
    found = Watched(ModelledMeter(lambda: 100.0, clock=lambda: now_s), rapl_meter(tmp_path))
    uj = zone / "energy_uj"

    def interval(*texts: str | None) -> tuple[float, str, str]:
        nonlocal now_s
        for text in texts:
            uj.unlink(missing_ok=True)
            if text is not None:
                uj.write_text(text)
            found.read()
        now_s += 10.0
        return found.since()

    assert interval("2000000", "9000000") == (8.0, "rapl", "")
    assert interval("9000000")[:2] == (1000.0, "modelled") and found.fault == ""
    joules, method, why = interval("10000000", None)
    assert (joules, method) == (1000.0, "modelled") and "energy_uj" in why
    joules, method, why = interval("11000000")
    assert (joules, method) == (1000.0, "modelled") and "energy_uj" in why, "it was away when this began"
    assert interval("14000000") == (3.0, "rapl", "")
    assert interval("no number")[1] == "modelled"


def test_a_library_that_lacks_what_is_asked_is_named_at_the_start():
    """An old nvidia-ml-py has no such function: that is told with what to do, not as a crash."""

    class Old(Driver):
        nvmlDeviceGetTotalEnergyConsumption = property()

    with pytest.raises(InputError, match=r"serve\.meter: nvml: .*nvidia-ml-py"):
        nvml_meter(Old({0: [1]}))
