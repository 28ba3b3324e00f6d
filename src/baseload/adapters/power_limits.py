"""Power limits of accelerators, set through NVML (what `nvidia-smi -pl` sets), behind ports.PowerLimiter.

NVML sees the accelerators of one host, and lets root alone set their limits, within bounds of the board (commonly from half
to all of its rated power): a tighter wish is cut to the bound, and what is set is told. A limit outlives the process that set
it, so it is put back at an orderly end, and set anew at a start. What the site as a whole may draw is `policies/cap.py`'s.
"""

from __future__ import annotations

import contextlib
import importlib
from collections.abc import Sequence
from typing import Any, NamedTuple

from baseload.errors import InputError
from baseload.ports import PowerLimiter

LEAST_CHANGE_MW = 1000  # milliwatts: less is not worth a call into the driver


class Board(NamedTuple):
    """One accelerator, in milliwatts."""

    handle: Any
    rated_mw: int  # its own default limit
    least_mw: int
    most_mw: int


class NvmlLimiter:
    """All accelerators of this host (ports.PowerLimiter)."""

    method = "nvml"

    def __init__(self, nvml: Any, boards: Sequence[Board], idle_w: float) -> None:
        self.nvml, self.boards = nvml, list(boards)
        self.idle_mw = idle_w * 1e3
        self.set_mw = [-1] * len(self.boards)
        self.reads = True

    def limit(self, dynamic_ratio: float) -> float:
        """Let each accelerator draw at most so much of its power above idle; return the watts that are set, of all together."""
        faults = []  # one board that refuses keeps no other from its limit
        for i, board in enumerate(self.boards):
            above_mw = max(0.0, board.rated_mw - self.idle_mw)
            wanted_mw = board.rated_mw if dynamic_ratio >= 1.0 else round(self.idle_mw + dynamic_ratio * above_mw)
            wanted_mw = min(board.most_mw, max(board.least_mw, wanted_mw))
            try:
                if self.set_mw[i] >= 0 and abs(wanted_mw - self._limit_mw(i)) < LEAST_CHANGE_MW:
                    continue
                self.nvml.nvmlDeviceSetPowerManagementLimit(board.handle, wanted_mw)
            except _problems(self.nvml) as problem:
                faults.append(f"accelerator {i}: {problem}")
            else:
                self.set_mw[i] = wanted_mw
        if faults:
            raise OSError(f"NVML: {'; '.join(faults)}")
        return sum(self.set_mw) / 1e3

    def _limit_mw(self, i: int) -> int:
        """Return a board's limit as it is now: a reset, or somebody else, may have changed it since we did."""
        if self.reads:
            try:
                return int(self.nvml.nvmlDeviceGetPowerManagementLimit(self.boards[i].handle))
            except AttributeError:
                self.reads = False  # an old library
        return self.set_mw[i]

    def close(self) -> None:
        """Put the rated limits back, and let go of the driver."""
        with contextlib.suppress(OSError):  # a board that is lost keeps nothing
            self.limit(1.0)
        with contextlib.suppress(*_problems(self.nvml)):
            self.nvml.nvmlShutdown()


def _problems(nvml: Any) -> tuple[type[Exception], ...]:
    """Return what a driver's library raises; one that is older than what is asked of it lacks names."""
    return getattr(nvml, "NVMLError", OSError), OSError, AttributeError, TypeError, ValueError


def nvml_limiter(idle_w: float, library: Any = None) -> PowerLimiter:
    """Return a limiter of all accelerators that NVIDIA's driver shows; `library` stands in for `pynvml`.

    `idle_w` is what one draws when it does nothing. Limits of an earlier run are put back at once. Raises InputError where
    there are no accelerators, they have no limit, or we may not set it.
    """
    mend = "run as root on a host with an NVIDIA driver and nvidia-ml-py, or set serve.power_limit to none"
    try:
        nvml = library or importlib.import_module("pynvml")
    except ImportError:
        raise InputError(f"serve.power_limit: nvml: the package nvidia-ml-py is not installed; {mend}") from None
    try:
        nvml.nvmlInit()
        boards = []
        for i in range(nvml.nvmlDeviceGetCount()):
            handle = nvml.nvmlDeviceGetHandleByIndex(i)
            least_mw, most_mw = nvml.nvmlDeviceGetPowerManagementLimitConstraints(handle)
            rated_mw = int(nvml.nvmlDeviceGetPowerManagementDefaultLimit(handle))
            boards.append(Board(handle, rated_mw, int(least_mw), int(most_mw)))
        limiter = NvmlLimiter(nvml, boards, idle_w)
        limiter.limit(1.0)
    except _problems(nvml) as problem:
        raise InputError(f"serve.power_limit: nvml: {problem}; {mend}") from None
    if not boards:
        raise InputError(f"serve.power_limit: nvml: no accelerator is here; {mend}")
    return limiter
