"""Meters: joules of the equipment, from NVML, RAPL or the speed model's own watts, behind ports.Meter.

NVML counts each accelerator's millijoules since its driver was loaded (Volta and later); RAPL each processor package's
microjoules in a register that wraps. Both see one host, not a site: what lies between them and the site's meter (other
hosts, switches, losses) stays with the model. A counter that goes backwards was reset: it counts on from there.
"""

from __future__ import annotations

import importlib
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from baseload.errors import InputError
from baseload.ports import Meter

POWERCAP = Path("/sys/class/powercap")


class Counter:
    """A counter of energy that may wrap or start anew, as a sum that only grows."""

    def __init__(self, read: Callable[[], int], *, per_j: float, wraps_at: int = 0) -> None:
        self.read, self.per_j, self.wraps_at = read, per_j, wraps_at
        self.last = read()
        self.units = 0

    def energy_j(self) -> float:
        """Return joules since the beginning."""
        now = self.read()
        if now >= self.last:
            self.units += now - self.last
        elif self.wraps_at > self.last:
            self.units += self.wraps_at - self.last + now  # once around: read it more often than it wraps
        else:
            self.units += now
        self.last = now
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


def nvml_meter(library: Any = None) -> Meter:
    """Return a meter of all accelerators that NVIDIA's driver shows; `library` stands in for `pynvml`.

    Raises InputError where there are none, or they do not count energy.
    """
    mend = "install nvidia-ml-py on a host with an NVIDIA driver, or set serve.meter to modelled"
    try:
        nvml = library or importlib.import_module("pynvml")
    except ImportError:
        raise InputError(f"serve.meter: nvml: the package nvidia-ml-py is not installed; {mend}") from None
    try:
        nvml.nvmlInit()
        handles = [nvml.nvmlDeviceGetHandleByIndex(i) for i in range(nvml.nvmlDeviceGetCount())]

        def reader(handle: Any) -> Callable[[], int]:
            def read() -> int:
                try:
                    return int(nvml.nvmlDeviceGetTotalEnergyConsumption(handle))
                except nvml.NVMLError as problem:
                    raise OSError(f"NVML: {problem}") from problem

            return read

        counters = [Counter(reader(handle), per_j=1e3) for handle in handles]
    except (nvml.NVMLError, OSError) as problem:
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
            counters.append(Counter(_file_reader(zone / "energy_uj"), per_j=1e6, wraps_at=wraps_at))
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


def meter(method: str, power_w: Callable[[], float]) -> Meter:
    """Return the meter that the fleet file names (serve.meter); `power_w` is the reckoned power of the site's equipment."""
    if method == "nvml":
        return nvml_meter()
    if method == "rapl":
        return rapl_meter()
    return ModelledMeter(power_w)
