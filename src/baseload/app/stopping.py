"""Ctrl-C, SIGTERM and a terminal that closes, where a verb would rather end in good order: it asks whether to stop."""

from __future__ import annotations

import contextlib
import os
import signal
import stat
import time
from collections.abc import Iterator
from contextlib import contextmanager

AGAIN_S = 1.0  # `timeout` and service managers send SIGTERM to a process and to its group: within this, it is one
NAMES = ("SIGINT", "SIGTERM", "SIGHUP")  # where the system has them


class Stop:
    """Whether to stop, and by what; a second Ctrl-C, or a later second SIGTERM, raises KeyboardInterrupt."""

    def __init__(self) -> None:
        self.by = ""  # Ctrl-C, SIGTERM or SIGHUP, whichever came first
        self._asked_s: float | None = None  # when it was first asked by one that may end it at once

    def __call__(self) -> bool:
        return bool(self.by)

    def press(self, number: int, frame: object) -> None:
        """Take a signal."""
        name = signal.Signals(number).name
        if name == "SIGHUP":
            _leave_terminal()
        elif self._asked_s is not None and (name == "SIGINT" or time.monotonic() - self._asked_s > AGAIN_S):
            raise KeyboardInterrupt
        else:
            self._asked_s = time.monotonic() if self._asked_s is None else self._asked_s
        if not self.by:
            self.by = "Ctrl-C" if name == "SIGINT" else name
            with contextlib.suppress(OSError):
                os.write(2, b"baseload: stopping; once more to end at once\n")


@contextmanager
def stoppable() -> Iterator[Stop]:
    """Give a `stop` that is true once one of the signals came; those that were ignored before stay so."""
    stop, before = Stop(), {}
    try:
        for number in (getattr(signal, name) for name in NAMES if hasattr(signal, name)):
            if signal.getsignal(number) is not signal.SIG_IGN:
                before[number] = signal.signal(number, stop.press)
    except ValueError:  # not in the main thread
        yield stop
        return
    try:
        yield stop
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _leave_terminal() -> None:
    """Write to nowhere what would go to a terminal that is gone, where writing fails."""
    for fd in (1, 2):
        with contextlib.suppress(OSError):
            if stat.S_ISCHR(os.fstat(fd).st_mode) and not os.isatty(fd):
                os.dup2(os.open(os.devnull, os.O_WRONLY), fd)
