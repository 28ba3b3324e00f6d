"""What both engine processes share: they end with their parent, at SIGTERM, and say in one JSON line when they are ready."""

from __future__ import annotations

import ctypes
import json
import os
import select
import signal
import sys
import threading
from collections.abc import Callable
from typing import Any

PR_SET_PDEATHSIG = 1


def die_with_parent(signal_number: int = signal.SIGTERM) -> None:
    """Ask the kernel for a signal when the thread that started us ends (Linux; elsewhere the pipe alone tells)."""
    parent = os.getppid()
    try:
        libc = ctypes.CDLL(None, use_errno=True)
        libc.prctl(PR_SET_PDEATHSIG, signal_number, 0, 0, 0)
    except (OSError, AttributeError):
        return
    if os.getppid() != parent:  # it went between the two lines
        os._exit(1)


def when_stdin_ends(then: Callable[[], None]) -> None:
    """Call `then` in a thread of its own when the parent closes our standard input, or dies."""

    def watch() -> None:
        fd = sys.stdin.fileno()
        while True:
            select.select([fd], [], [])
            try:
                if not os.read(fd, 4096):
                    break
            except OSError:
                break
        then()

    threading.Thread(target=watch, name="parent", daemon=True).start()


def say_ready(**what: Any) -> None:
    """Tell the parent, in one line on standard output, what was started."""
    sys.stdout.write(json.dumps({"ready": True, "pid": os.getpid(), **what}) + "\n")
    sys.stdout.flush()
