"""Partition by network namespace, where the machine allows it: a site whose packets vanish, and come back.

`available()` says why not, where it is not allowed (no `ip`, not root). A partition is a blackhole route:
packets of open connections vanish, and after healing the same connections deliver; new ones fail at once.
"""

from __future__ import annotations

import os
import shutil
import subprocess
from dataclasses import dataclass


def ip(*words: str) -> subprocess.CompletedProcess[str]:
    """Run `ip`; the caller looks at the code."""
    return subprocess.run(["ip", *words], capture_output=True, text=True, check=False)


def available() -> str:
    """Return '' where namespaces may be made, else the reason why not."""
    if shutil.which("ip") is None:
        return "no `ip` command (package iproute2)"
    name = f"blprobe{os.getpid() % 10_000}"
    made = ip("netns", "add", name)
    if made.returncode:
        return f"ip netns is not allowed here ({made.stderr.strip()[:80]})"
    ip("netns", "del", name)
    return ""


@dataclass
class Site:
    """A namespace with one address, reached over a veth pair from here."""

    number: int  # 0..200
    tag: str = "bl"

    @property
    def name(self) -> str:
        """Return the namespace's name."""
        return f"{self.tag}{os.getpid() % 100_000}x{self.number}"

    @property
    def address(self) -> str:
        """Return the address of the site's side."""
        return f"10.213.{self.number}.2"

    @property
    def veth(self) -> str:
        """Return the name of our side of the pair."""
        return f"v{os.getpid() % 100_000}x{self.number}"

    def make(self) -> None:
        """Create namespace and link."""
        here = f"10.213.{self.number}.1/24"
        steps = [
            ("netns", "add", self.name),
            ("link", "add", self.veth, "type", "veth", "peer", "name", "eth0", "netns", self.name),
            ("addr", "add", here, "dev", self.veth),
            ("link", "set", self.veth, "up"),
            ("-n", self.name, "addr", "add", f"{self.address}/24", "dev", "eth0"),
            ("-n", self.name, "link", "set", "eth0", "up"),
            ("-n", self.name, "link", "set", "lo", "up"),
        ]
        for step in steps:
            done = ip(*step)
            if done.returncode:
                self.remove()
                raise OSError(f"ip {' '.join(step)}: {done.stderr.strip()}")

    def command(self, words: list[str]) -> list[str]:
        """Return a command that runs inside."""
        return ["ip", "netns", "exec", self.name, *words]

    def partition(self) -> None:
        """Let all packets to the site vanish."""
        ip("route", "add", "blackhole", f"{self.address}/32")

    def heal(self) -> None:
        """Let them through again."""
        ip("route", "del", "blackhole", f"{self.address}/32")

    def remove(self) -> None:
        """Remove namespace and link."""
        self.heal()
        ip("link", "del", self.veth)
        ip("netns", "del", self.name)
