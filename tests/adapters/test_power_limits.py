"""Power limits through NVML, from a recording of what its library answers: bounds, rights, and what stays behind."""

from __future__ import annotations

import pytest

from baseload.adapters.power_limits import nvml_limiter
from baseload.errors import InputError


class Driver:
    """The part of NVIDIA's library that is asked, with an H100's bounds; `fault` is raised when a limit is set."""

    class NVMLError(Exception):
        """As the library raises."""

    def __init__(self, n: int, fault: str = "") -> None:
        self.limits_mw = [350_000] * n  # left by somebody before
        self.calls = 0
        self.fault, self.faulty = fault, range(n)
        self.closed = False

    def nvmlInit(self) -> None:
        """Nothing to do."""

    def nvmlShutdown(self) -> None:
        """Remember it."""
        self.closed = True

    def nvmlDeviceGetCount(self) -> int:
        """Return how many there are."""
        return len(self.limits_mw)

    def nvmlDeviceGetHandleByIndex(self, i: int) -> int:
        """Return the number itself."""
        return i

    def nvmlDeviceGetPowerManagementLimitConstraints(self, handle: int) -> list[int]:
        """Return the bounds, as the library does: a list."""
        return [200_000, 700_000]

    def nvmlDeviceGetPowerManagementDefaultLimit(self, handle: int) -> int:
        """Return the rated limit."""
        return 700_000

    def nvmlDeviceGetPowerManagementLimit(self, handle: int) -> int:
        """Return what is set."""
        return self.limits_mw[handle]

    def nvmlDeviceSetPowerManagementLimit(self, handle: int, limit_mw: int) -> None:
        """Take a limit."""
        if self.fault and handle in self.faulty:
            raise self.NVMLError(self.fault)
        assert isinstance(limit_mw, int), "the driver takes whole milliwatts"
        self.calls += 1
        self.limits_mw[handle] = limit_mw


def test_a_share_of_the_power_above_idle_is_left():
    """Half of what is above idle of each accelerator; the same again calls nobody; the end puts the rated limit back."""
    driver = Driver(2)
    limiter = nvml_limiter(100.0, driver)
    assert driver.limits_mw == [700_000] * 2, "what a run before left behind is gone"

    assert limiter.limit(0.5) == 800.0
    assert driver.limits_mw == [400_000] * 2
    calls = driver.calls
    assert limiter.limit(0.5001) == 800.0 and driver.calls == calls
    limiter.close()
    assert driver.limits_mw == [700_000] * 2 and driver.closed


def test_a_board_goes_no_lower_than_it_can():
    """A tighter cap than the board takes is cut to its bound, and the watts that are told are those that were set."""
    driver = Driver(1)
    assert nvml_limiter(100.0, driver).limit(0.01) == 200.0
    assert driver.limits_mw == [200_000]


def test_without_the_right_the_start_says_so():
    """Who may not set limits hears it at the start, with what to do; later the driver's refusal is an OSError."""
    with pytest.raises(InputError, match=r"serve\.power_limit: nvml: .*Insufficient Permissions.*root"):
        nvml_limiter(100.0, Driver(1, "Insufficient Permissions"))
    with pytest.raises(InputError, match="no accelerator"):
        nvml_limiter(100.0, Driver(0))
    driver = Driver(1)
    limiter = nvml_limiter(100.0, driver)
    driver.fault = "GPU is lost"
    with pytest.raises(OSError, match="lost"):
        limiter.limit(0.5)


def test_one_board_that_refuses_keeps_no_other_from_its_limit():
    """Of three boards the first is lost: the others are held, and put back at the end; the fault is told."""
    driver = Driver(3)
    limiter = nvml_limiter(100.0, driver)
    driver.fault, driver.faulty = "GPU is lost", range(1)
    with pytest.raises(OSError, match="accelerator 0: GPU is lost"):
        limiter.limit(0.5)
    assert driver.limits_mw == [700_000, 400_000, 400_000]
    limiter.close()
    assert driver.limits_mw == [700_000] * 3 and driver.closed


def test_a_limit_that_somebody_undid_is_set_again():
    """A board that was reset has its rated limit: the next look puts ours back."""
    driver = Driver(1)
    limiter = nvml_limiter(100.0, driver)
    limiter.limit(0.5)
    driver.limits_mw[0] = 700_000
    assert limiter.limit(0.5) == 400.0 and driver.limits_mw == [400_000]
