"""Start what a whole test needs (mock engines, a fleet file, `baseload serve`, keys), and end it by process id."""

from __future__ import annotations

import contextlib
import json
import os
import random
import selectors
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
MOCK = HERE / "mock_engine.py"
BASELOAD = [sys.executable, "-m", "baseload"]


def first_json_line(process: subprocess.Popen[bytes], timeout_s: float, errors: Path | None = None) -> dict[str, Any]:
    """Return the first JSON line a process prints; raises with what it said on stderr where there is none."""
    assert process.stdout is not None
    until_s, data = time.monotonic() + timeout_s, b""
    with selectors.DefaultSelector() as selector:
        selector.register(process.stdout, selectors.EVENT_READ)
        while time.monotonic() < until_s:
            if selector.select(timeout=0.1):
                piece = os.read(process.stdout.fileno(), 65_536)
                data += piece
                for line in data.split(b"\n"):
                    if line.startswith(b"{") and line.endswith(b"}"):
                        told: dict[str, Any] = json.loads(line)
                        return told
                if not piece:
                    break
    said = errors.read_text("utf-8", "replace")[-2000:] if errors and errors.exists() else ""
    raise RuntimeError(f"{process.args!r} was not ready in {timeout_s:.0f} s (code {process.poll()})\n{said}")


def children_of(pid: int) -> dict[int, str]:
    """Return the children of a process with their command lines, all generations (Linux)."""
    found: dict[int, str] = {}
    todo = [pid]
    while todo:
        parent = todo.pop()
        for task in Path(f"/proc/{parent}/task").glob("*/children"):
            with contextlib.suppress(OSError):
                for child in map(int, task.read_text().split()):
                    line = Path(f"/proc/{child}/cmdline").read_bytes().replace(b"\0", b" ").decode()
                    found[child] = line
                    todo.append(child)
    return found


GIVEN_PORTS: set[int] = set()


def lasting_port() -> int:
    """Return a free port below the range from which the kernel takes ports of clients: it is still free after a restart.

    Each is given out once, and tests in other processes have a range of their own.
    """
    one = int(os.environ.get("PYTEST_XDIST_WORKER", "gw0").removeprefix("gw"))
    many = int(os.environ.get("PYTEST_XDIST_WORKER_COUNT", "1"))
    while True:
        port = random.SystemRandom().randrange(12_000, 31_000 - many) // many * many + one
        with socket.socket() as probe, contextlib.suppress(OSError):
            probe.bind(("127.0.0.1", port))
            if port not in GIVEN_PORTS:
                GIVEN_PORTS.add(port)
                return port


@dataclass
class MockEngine:
    """A mock engine in a process of its own; `log` outlives it."""

    log: Path
    words: Sequence[str] = ("--model", "chat", "--tokens", "4096")
    port: int = 0
    prefix: Sequence[str] = ()
    host: str = "127.0.0.1"
    process: subprocess.Popen[bytes] | None = None

    @property
    def url(self) -> str:
        """Return its base URL."""
        return f"http://{self.host}:{self.port}"

    def start(self) -> MockEngine:
        """Start it, at the port it had before, if any."""
        self.port = self.port or lasting_port()
        command = [*self.prefix, sys.executable, str(MOCK), "--host", self.host, "--port", str(self.port)]
        self.process = subprocess.Popen(
            [*command, "--log", str(self.log), *self.words], stdout=subprocess.PIPE, stdin=subprocess.DEVNULL
        )
        self.port = first_json_line(self.process, 20.0)["port"]
        return self

    def kill(self) -> None:
        """Kill -9."""
        if self.process is not None:
            self.process.kill()
            self.process.wait()
            if self.process.stdout is not None:
                self.process.stdout.close()
            self.process = None

    def call(self, path: str, body: dict[str, Any] | None = None) -> Any:
        """GET, or POST JSON to, one of its own endpoints."""
        data = None if body is None else json.dumps(body).encode()
        with urllib.request.urlopen(urllib.request.Request(self.url + path, data=data), timeout=10) as answer:
            return json.loads(answer.read() or b"{}")

    def truth(self) -> dict[str, list[dict[str, Any]]]:
        """Return every attempt by request id, from the file."""
        return read_truth([self.log])


def read_truth(logs: Sequence[Path]) -> dict[str, list[dict[str, Any]]]:
    """Return every attempt of every engine by request id; an attempt that never ended is `killed`."""
    found: dict[str, list[dict[str, Any]]] = {}
    for log in logs:
        opened: dict[str, dict[str, Any]] = {}
        for line in log.read_bytes().splitlines() if log.exists() else ():
            try:
                told = json.loads(line)
            except ValueError:
                continue  # the last line of a killed engine
            if told["e"] == "start":
                opened[told["rid"]] = {**told, "state": "killed", "engine": log.stem}
                found.setdefault(told["rid"], []).append(opened[told["rid"]])
            elif told["rid"] in opened:
                opened[told["rid"]].update({k: told[k] for k in ("sent", "state") if k in told})
    return found


FLEET = """\
baseload: 1
name: chaos
money: {{currency: EUR}}
sites:
  frankfurt:
    place: frankfurt
    grid: [{{power_mw: 1.0, energised: 2023-01-01}}]
    contracts: [{{power_mw: 1.0, price_per_mwh: 90}}]
    racks: {{h100: {{accelerator: h100-sxm, accelerators_per_rack: 8, racks: 8}}}}
  oslo:
    place: oslo
    grid: [{{power_mw: 1.0, energised: 2023-01-01}}]
    contracts: [{{power_mw: 1.0, price_per_mwh: 60}}]
    racks: {{h100: {{accelerator: h100-sxm, accelerators_per_rack: 8, racks: 8}}}}
models:
  chat: {{catalog: llama-3.1-8b}}
deployments:
  chat:
    model: chat
    accelerator: h100-sxm
    precision: fp8
    sites: {{{sites}}}
tenants:
  acme: {{share: 40, price: {{input_per_mtok: 0.5, output_per_mtok: 2.0}}, priority: 3}}
  bank: {{share: 30, residency: [EU], price: {{input_per_mtok: 0.6, output_per_mtok: 2.4}}, priority: 1}}
  crowd: {{share: 30, price: {{input_per_mtok: 0.2, output_per_mtok: 0.8}}, priority: 8}}
policy: {{route: {route}, admit: always}}
serve:
  workers: {workers}
  engines:
    chat: {{kind: external, metrics: vllm, urls: {{{urls}}}}}
  limits: {{{limits}}}
{serve_more}"""
LIMITS = "first_byte_s: 2, token_s: 2, request_s: 20, drain_s: 3, header_s: 2, body_s: 4, idle_s: 60"


def fleet_text(
    frankfurt: Sequence[str],
    oslo: Sequence[str],
    *,
    workers: int = 2,
    limits: str = LIMITS,
    serve_more: str = "",
    route: str = "least_outstanding",
) -> str:
    """Return a fleet file whose engines run already at these URLs."""
    used = {name: urls for name, urls in (("frankfurt", frankfurt), ("oslo", oslo)) if urls}
    return FLEET.format(
        sites=", ".join(f"{name}: {{min: {len(urls)}}}" for name, urls in used.items()),
        urls=", ".join(f"{name}: [{', '.join(urls)}]" for name, urls in used.items()),
        workers=workers, limits=limits, serve_more=serve_more, route=route,
    )  # fmt: skip


@dataclass
class Gateway:
    """`baseload serve` in a process of its own, restarted on the ports it had."""

    fleet: Path
    state: Path
    words: Sequence[str] = ()
    command: Sequence[str] = tuple(BASELOAD)
    env: dict[str, str] = field(default_factory=dict)
    process: subprocess.Popen[bytes] | None = None
    port: int = 0
    control_port: int = 0
    ready: dict[str, Any] = field(default_factory=dict)

    @property
    def log(self) -> Path:
        """Return where its stderr goes."""
        return self.state.parent / f"{self.state.name}.stderr"

    def start(self, timeout_s: float = 60.0) -> Gateway:
        """Start it and wait until it is ready."""
        self.port = self.port or lasting_port()
        self.control_port = self.control_port or lasting_port()
        command = [
            *self.command, "serve", str(self.fleet), "--listen", f"127.0.0.1:{self.port}",
            "--control", f"127.0.0.1:{self.control_port}", "--state", str(self.state), "--ready-json", *self.words,
        ]  # fmt: skip
        env = {**os.environ, "NUMBA_NUM_THREADS": "1", **self.env}
        with self.log.open("ab") as errors:
            self.process = subprocess.Popen(
                command, stdout=subprocess.PIPE, stderr=errors, stdin=subprocess.DEVNULL, env=env
            )
        self.ready = first_json_line(self.process, timeout_s, self.log)
        self.port = int(self.ready["gateway"].rsplit(":", 1)[1])
        self.control_port = int(str(self.ready["control"]).rsplit(":", 1)[1])
        return self

    @property
    def pids(self) -> dict[int, str]:
        """Return its children with their command lines."""
        return {} if self.process is None else children_of(self.process.pid)

    def part(self, word: str) -> list[int]:
        """Return the ids of its owner (`owner_main`) or workers (`serve.worker`)."""
        return [pid for pid, line in self.pids.items() if word in line]

    def kill9(self) -> None:
        """Kill the whole gateway at once."""
        if self.process is None:
            return
        pids = [self.process.pid, *self.pids]
        for pid in pids:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        self.process.wait()
        until_s = time.monotonic() + 5.0
        while any(Path(f"/proc/{pid}").exists() for pid in pids) and time.monotonic() < until_s:
            time.sleep(0.005)
        if self.process.stdout is not None:
            self.process.stdout.close()
        self.process = None

    def stop(self, timeout_s: float = 20.0) -> int:
        """SIGTERM; return its exit code."""
        if self.process is None:
            return 0
        self.process.terminate()
        try:
            code = self.process.wait(timeout_s)
        except subprocess.TimeoutExpired:
            self.kill9()
            return -9
        if self.process.stdout is not None:
            self.process.stdout.close()
        self.process = None
        return code

    def baseload(self, *words: str) -> subprocess.CompletedProcess[str]:
        """Run another verb on the same state folder."""
        return subprocess.run(
            [*self.command, *words], capture_output=True, text=True, check=False, env={**os.environ, **self.env}
        )

    def key(self, tenant: str, *words: str) -> str:
        """Make a key; it is shown once."""
        done = self.baseload("keys", "create", "--tenant", tenant, "--state", str(self.state), *words)
        if done.returncode:
            raise RuntimeError(f"keys create: {done.stderr or done.stdout}")
        for word in done.stdout.replace('"', " ").replace(",", " ").split():
            if len(word) >= 40:
                return word
        raise RuntimeError(f"keys create printed no key: {done.stdout!r}")

    def rss_bytes(self) -> int:
        """Return the resident memory of its workers."""
        pages = 0
        for pid in self.part("serve.worker"):
            with contextlib.suppress(OSError):
                pages += int(Path(f"/proc/{pid}/statm").read_text().split()[1])
        return pages * os.sysconf("SC_PAGE_SIZE")
