"""What the supervisor of `baseload serve` tells its children, in `run/serve.json`."""

from __future__ import annotations

from pathlib import Path

import msgspec

FLEET_READ = "fleet.read"  # beside it: the fleet as it was read and checked


class ServeConfig(msgspec.Struct, frozen=True, kw_only=True):
    """What the children are started with; `run/serve.json`. No secret is in it."""

    fleet: str
    overrides: list[str]
    state: str
    listen_host: str
    listen_port: int
    control_host: str
    control_port: int
    workers: int
    engines: str | None = None  # one kind for all deployments
    tls_cert: str | None = None
    tls_key: str | None = None
    control_cert: str | None = None
    control_key: str | None = None
    control_hosts: list[str] = []
    drain_s: float = 30.0

    @property
    def run_folder(self) -> Path:
        """Return the folder of sockets, board and marks."""
        return Path(self.state) / "run"
