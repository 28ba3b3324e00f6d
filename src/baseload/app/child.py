"""A process of the supervisor's: started, heard, told to end. When to start it again is `serving.py`'s."""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
from dataclasses import dataclass


@dataclass(slots=True)
class Child:
    """A process of ours, and when to start it again."""

    name: str
    command: list[str]
    process: subprocess.Popen[bytes] | None = None
    ready: dict[str, object] | None = None
    started_s: float = 0.0
    failures: int = 0
    again_s: float = 0.0
    line: bytes = b""
    restarts: int = 0
    told: bool = False  # to end
    keep_open: int = -1  # our end of its stdin: when it closes, we are gone

    def start(self, now_s: float, *, wait: bool = False) -> None:
        """Start it; its first line on stdout says that it is ready. With `wait` it imports, and goes on at `go`."""
        read_end, write_end = os.pipe()  # ours stays open as long as we live
        try:
            self.process = subprocess.Popen(
                [*self.command, "--wait"] if wait else self.command,
                stdin=read_end,
                stdout=subprocess.PIPE,
                start_new_session=True,
            )
        except BaseException:
            os.close(write_end)
            raise
        finally:
            os.close(read_end)
        self.keep_open = write_end
        assert self.process.stdout is not None
        os.set_blocking(self.process.stdout.fileno(), False)
        self.ready, self.line, self.started_s, self.told = None, b"", now_s, False

    def go(self, said: str = "") -> None:
        """Let one that waits go on."""
        with contextlib.suppress(OSError):
            os.write(self.keep_open, os.fsencode(said) + b"\0")

    def tell(self, number: int) -> None:
        """Send it a signal that ends it."""
        self.told = True
        if self.process is not None and self.process.poll() is None:
            self.process.send_signal(number)

    def let_go(self) -> None:
        """Close our ends of a process that is gone."""
        if self.keep_open >= 0:
            os.close(self.keep_open)
            self.keep_open = -1
        if self.process is not None and self.process.stdout is not None:
            self.process.stdout.close()

    def hear(self) -> None:
        """Read what it says; a whole JSON line means ready."""
        assert self.process is not None and self.process.stdout is not None
        with contextlib.suppress(BlockingIOError):
            while data := os.read(self.process.stdout.fileno(), 65_536):
                self.line = (self.line + data)[-65_536:]
        if self.ready is None and b"\n" in self.line:
            with contextlib.suppress(ValueError):
                self.ready = json.loads(self.line.split(b"\n", 1)[0])
