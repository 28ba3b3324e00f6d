"""What `baseload serve` does before anything else: it starts the owner, which then imports while this process does.

On a machine with much to do the modules are most of a start; so nothing heavy is imported here.
"""

from __future__ import annotations

import os
import resource
import signal
import sys
import time
from pathlib import Path

from baseload.app.child import Child

STATE = "baseload-state"  # in the current folder, where none is named
FILES_LEAST = 4096  # that a process may open before we warn: two a request, and a few


def start_owner(run: Path) -> tuple[Child, str]:
    """Return an owner that waits to be told of what, and a warning ('' for none); `run` is where it may come back."""
    os.umask(0o077)  # whatever we and our children write is nobody else's to read
    warning = raise_file_limit()
    command = [sys.executable, "-m", "baseload.app.owner_main"]
    owner = Child("owner", [*command, "--after-a-crash"] if after_a_crash(run) else command)
    owner.start(time.monotonic(), wait=True)
    return owner, warning


def after_a_crash(run: Path) -> bool:
    """Say whether a gateway ended here without taking along what it had (`owner_made.py`)."""
    return (run / "fleet.made").exists() and any(run.glob("marks-*"))


def call_off(owner: Child) -> None:
    """End an owner that was never told anything."""
    owner.tell(signal.SIGKILL)
    if owner.process is not None:
        owner.process.wait()
    owner.let_go()


def raise_file_limit(least: int = FILES_LEAST) -> str:
    """Let this process and its children open as many files as they may; return what to tell where that is too few."""
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))
    if most == resource.RLIM_INFINITY or most >= least:
        return ""
    return (
        f"warning: a process may open {most} files here, enough for about {max(0, most - 64) // 2} requests at once; "
        f"raise it (ulimit -Hn {least}, or LimitNOFILE={least} in a systemd unit)"
    )
