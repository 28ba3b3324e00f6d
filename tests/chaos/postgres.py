"""A PostgreSQL cluster of our own in a folder, for the legs that restart it; `missing()` says why there is none."""

from __future__ import annotations

import os
import pwd
import shutil
import subprocess
from pathlib import Path

from tests.chaos.stack import lasting_port


def bindir() -> Path | None:
    """Return the folder of `initdb`, if PostgreSQL is installed."""
    found = shutil.which("initdb")
    if found:
        return Path(found).parent
    known = sorted(Path("/usr/lib/postgresql").glob("*/bin/initdb"))
    return known[-1].parent if known else None


def missing() -> str:
    """Return '' where a cluster can be made, else the reason why not."""
    if bindir() is None:
        return "PostgreSQL is not installed"
    if os.geteuid() == 0:
        try:
            pwd.getpwnam("postgres")
        except KeyError:
            return "PostgreSQL does not run as root, and there is no user postgres"
    return ""


class Cluster:
    """A cluster with one database, on a free port of loopback."""

    def __init__(self, folder: Path) -> None:
        found = bindir()
        assert found is not None
        self.bin, self.folder = found, folder
        self.data = folder / "data"
        self.port = lasting_port()

    @property
    def url(self) -> str:
        """Return its address."""
        return f"postgresql://postgres@127.0.0.1:{self.port}/postgres"

    def run(self, *words: str) -> None:
        """Run one of its programs, as the user it wants."""
        command = [str(self.bin / words[0]), *words[1:]]
        if os.geteuid() == 0:
            command = ["runuser", "-u", "postgres", "--", *command]
        done = subprocess.run(command, capture_output=True, text=True, check=False, cwd=self.folder, timeout=60)
        if done.returncode:
            raise RuntimeError(f"{' '.join(words)}: {done.stderr or done.stdout}")

    def start(self) -> Cluster:
        """Make and start it."""
        self.folder.mkdir(parents=True, exist_ok=True)
        if os.geteuid() == 0:
            shutil.chown(self.folder, "postgres", "postgres")
        self.run("initdb", "-D", str(self.data), "-U", "postgres", "-A", "trust", "--no-sync")
        words = f"-p {self.port} -c listen_addresses=127.0.0.1 -c unix_socket_directories={self.folder}"
        self.run("pg_ctl", "-D", str(self.data), "-o", words, "-l", str(self.folder / "log"), "-w", "start")
        return self

    def restart(self, mode: str = "immediate") -> None:
        """Restart it, without saying goodbye to anyone unless mode is fast."""
        self.run("pg_ctl", "-D", str(self.data), "-m", mode, "-l", str(self.folder / "log"), "-w", "restart")

    def stop(self) -> None:
        """Stop it."""
        self.run("pg_ctl", "-D", str(self.data), "-m", "immediate", "-w", "stop")
