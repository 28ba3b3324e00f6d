"""Meters: joules of the equipment, from NVML, RAPL or the speed model's own watts, behind ports.Meter.

NVML counts each accelerator's millijoules since its driver was loaded (Volta and later); RAPL each processor package's
microjoules in a register that wraps. Both see one host, not a site: what lies between them and the site's meter (other
hosts, switches, losses) stays with the model. A counter that goes backwards wrapped or was reset, where that can be: a step
that no board or package can have drawn in the time is an OSError, and counting goes on from there. What could not be read,
or did not move, is the model's (`Watched`).
"""

from __future__ import annotations

import importlib
import time
from collections.abc import Callable, Sequence
from math import inf
from pathlib import Path
from typing import Any

from baseload.errors import InputError
from baseload.ports import Meter

POWERCAP = Path("/sys/class/powercap")
BOARD_MOST_W, PACKAGE_MOST_W = 5000.0, 2000.0  # more than any draws: a counter that says more has jumped
SLACK_S = 1.0  # counters are renewed every so often


class Counter:
    """A counter of energy that may wrap or start anew, as a sum that only grows."""

    def __init__(
        self,
        read: Callable[[], int],
        *,
        per_j: float,
        wraps_at: int = 0,
        most_w: float = inf,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.read, self.per_j, self.wraps_at, self.most_w, self.clock = read, per_j, wraps_at, most_w, clock
        self.last, self.at_s = read(), clock()
        self.units = 0

    def energy_j(self) -> float:
        """Return joules since the beginning; raises OSError for a step that cannot be, which is not counted."""
        now, now_s = self.read(), self.clock()
        last, self.last = self.last, now
        most = self.most_w * (now_s - self.at_s + SLACK_S) * self.per_j
        self.at_s = now_s
        if 0 < self.wraps_at < most < inf:
            raise OSError("a counter was not read for so long that it may have gone around more than once")
        if now >= last:
            step = now - last
        elif self.wraps_at > last and self.wraps_at - last + now <= most:
            step = self.wraps_at - last + now  # once around
        else:
            step = now  # it began anew
        if now < 0 or step > most:
            raise OSError(f"a counter jumped from {last} to {now}")
        self.units += step
        return self.units / self.per_j


class CounterMeter:
    """The sum of some counters (ports.Meter)."""

    def __init__(self, method: str, counters: Sequence[Counter], close: Callable[[], None] = lambda: None) -> None:
        self.method, self.counters, self.close = method, counters, close

    def energy_j(self) -> float:
        """Return joules since the meter was made."""
        return sum(counter.energy_j() for counter in self.counters)


class ModelledMeter:
    """The integral of a power that is reckoned, where nothing measures (ports.Meter)."""

    method = "modelled"

    def __init__(self, power_w: Callable[[], float], clock: Callable[[], float] = time.monotonic) -> None:
        self.power_w, self.clock = power_w, clock
        self.at_s, self.at_w = clock(), max(0.0, power_w())
        self.sum_j = 0.0

    def energy_j(self) -> float:
        """Return joules since the meter was made, by the trapezium between two looks."""
        now_s, now_w = self.clock(), max(0.0, self.power_w())
        self.sum_j += 0.5 * (self.at_w + now_w) * max(0.0, now_s - self.at_s)
        self.at_s, self.at_w = now_s, now_w
        return self.sum_j

    def close(self) -> None:
        """Nothing is held."""


class Watched:
    """A site's meter and the model beside it. An interval in which the meter could not be read throughout is the model's."""

    def __init__(self, modelled: ModelledMeter, measured: Meter | None = None) -> None:
        self.modelled, self.measured = modelled, measured
        self.modelled_from_j = modelled.energy_j()
        self.seen_j = self.from_j = measured.energy_j() if measured is not None else 0.0
        self.fault = ""  # of this interval
        self.ill = ""  # of the last reading

    def read(self) -> None:
        """Look at the meter; a driver may take its time."""
        if self.measured is not None:
            try:
                self.seen_j, self.ill = self.measured.energy_j(), ""
            except OSError as problem:
                self.failed(str(problem))

    def failed(self, why: str) -> None:
        """Note that it could not be read."""
        self.ill = why
        self.fault = self.fault or why

    def since(self) -> tuple[float, str, str]:
        """Return joules since this was last asked, how they are known, and what was wrong with the meter."""
        modelled_j, measured_j = self.modelled.energy_j(), self.seen_j
        reckoned_j, counted_j = modelled_j - self.modelled_from_j, measured_j - self.from_j
        self.modelled_from_j, self.from_j = modelled_j, measured_j
        fault, self.fault = self.fault, self.ill
        if self.measured is None:
            return reckoned_j, self.modelled.method, ""
        if not fault and counted_j <= 0.0:
            fault = "its counters stand still"
        return (reckoned_j, self.modelled.method, fault) if fault else (counted_j, self.measured.method, "")


def nvml_meter(library: Any = None) -> Meter:
    """Return a meter of all accelerators that NVIDIA's driver shows; `library` stands in for `pynvml`.

    Raises InputError where there are none, or they do not count energy.
    """
    mend = "install nvidia-ml-py on a host with an NVIDIA driver, or set serve.meter to modelled"
    try:
        nvml = library or importlib.import_module("pynvml")
    except ImportError:
        raise InputError(f"serve.meter: nvml: the package nvidia-ml-py is not installed; {mend}") from None
    unreadable = (
        getattr(nvml, "NVMLError", OSError),
        AttributeError,
        TypeError,
        ValueError,
    )  # an old library lacks names
    try:
        nvml.nvmlInit()
        handles = [nvml.nvmlDeviceGetHandleByIndex(i) for i in range(nvml.nvmlDeviceGetCount())]

        def reader(handle: Any) -> Callable[[], int]:
            def read() -> int:
                try:
                    return int(nvml.nvmlDeviceGetTotalEnergyConsumption(handle))
                except unreadable as problem:
                    raise OSError(f"NVML: {problem}") from problem

            return read

        counters = [Counter(reader(handle), per_j=1e3, most_w=BOARD_MOST_W) for handle in handles]
    except (*unreadable, OSError) as problem:
        raise InputError(f"serve.meter: nvml: {problem}; {mend}") from None
    if not counters:
        raise InputError(f"serve.meter: nvml: no accelerator is here; {mend}")
    return CounterMeter("nvml", counters, nvml.nvmlShutdown)


def rapl_meter(folder: Path = POWERCAP) -> Meter:
    """Return a meter of all processor packages; raises InputError where they cannot be read."""
    counters = []
    try:
        for zone in sorted(folder.glob("*-rapl:[0-9]*")):
            if zone.name.count(":") != 1 or not (zone / "name").read_text().startswith("package"):
                continue  # a part of a package, or the whole platform: counted already, or not ours
            wraps_at = int((zone / "max_energy_range_uj").read_text())
            reader = _file_reader(zone / "energy_uj")
            counters.append(Counter(reader, per_j=1e6, wraps_at=wraps_at, most_w=PACKAGE_MOST_W))
    except (OSError, ValueError) as problem:
        mend = "it wants root, or a rule that lets the group read it; or set serve.meter to modelled"
        raise InputError(f"serve.meter: rapl: {problem}; {mend}") from None
    if not counters:
        raise InputError(f"serve.meter: rapl: {folder} shows no processor package; set serve.meter to modelled")
    return CounterMeter("rapl", counters)


def _file_reader(path: Path) -> Callable[[], int]:
    def read() -> int:
        try:
            return int(path.read_text())
        except ValueError as problem:
            raise OSError(f"{path}: {problem}") from problem

    return read


def meter(method: str, power_w: Callable[[], float]) -> Watched:
    """Return the meter that the fleet file names (serve.meter); `power_w` is the reckoned power of the site's equipment."""
    measured = nvml_meter() if method == "nvml" else rapl_meter() if method == "rapl" else None
    return Watched(ModelledMeter(power_w), measured)
