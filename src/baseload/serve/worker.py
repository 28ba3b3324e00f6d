"""A gateway worker: `python -m baseload.serve.worker run/serve.json N`. The data plane's process: no NumPy, no secrets on disk.

Opens the tables and the board, connects to the owner, listens beside its siblings (SO_REUSEPORT), and prints one JSON line
when it takes requests. SIGTERM drains: nothing new, what runs gets `drain_s`. It ends when its parent does.
"""

from __future__ import annotations

import asyncio
import contextlib
import ctypes
import gc
import json
import os
import signal
import socket
import ssl
import sys
from pathlib import Path
from typing import Any

import msgspec
import uvloop

from baseload import native

WHY_NOT_NATIVE = native.use() if __name__ == "__main__" else "not started as a worker"  # before what it would replace

from baseload.serve import reply, tables  # noqa: E402
from baseload.serve.board import Board  # noqa: E402
from baseload.serve.client import Client  # noqa: E402
from baseload.serve.gateway import SWEEP_S, Gateway  # noqa: E402
from baseload.serve.purse import Purse  # noqa: E402
from baseload.serve.rules import prepare  # noqa: E402

PR_SET_PDEATHSIG = 1
BACKLOG = 4096
GC_AFTER = 50_000  # objects made and not freed, before the collector looks


class Config(msgspec.Struct):
    """What a worker reads of `run/serve.json`."""

    state: str
    listen_host: str
    listen_port: int
    fleet: str = ""  # its folder holds the operator's own rules
    tls_cert: str | None = None
    tls_key: str | None = None
    drain_s: float = 30.0


def main(arguments: list[str]) -> int:
    """Run until told to stop."""
    with contextlib.suppress(OSError, AttributeError):
        ctypes.CDLL(None, use_errno=True).prctl(PR_SET_PDEATHSIG, signal.SIGTERM)
    if "--wait" in arguments[2:] and not os.read(0, 1):  # the owner is not ready yet; or our parent is gone
        return 0
    config = msgspec.json.decode(Path(arguments[0]).read_bytes(), type=Config)
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        try:
            return runner.run(run(config, int(arguments[1])))
        except OSError as error:  # a full disk, a port or certificate that cannot be had: the supervisor tries again
            where = f"{error.filename}: " if error.filename else ""
            sys.stderr.write(f"baseload: worker {arguments[1]}: {where}{error.strerror or error}\n")
            return 1


async def run(config: Config, worker: int) -> int:
    """Serve; return the exit code."""
    loop = asyncio.get_running_loop()
    stop = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop.set)
    _watch_stdin(loop, stop)
    folder = Path(config.state) / "run"
    found = tables.decode((folder / "tables.json").read_bytes())
    pinned = folder / "rules.json"  # digests of the operator's own rules, as the owner loaded them
    digests = msgspec.json.decode(pinned.read_bytes(), type=dict[str, str]) if pinned.exists() else {}
    prepare(found, Path(config.fleet).parent, digests)
    board = Board.open(folder / "board")
    state: dict[str, Gateway] = {}

    def reload(version: int, path: str) -> None:
        gateway = state["gateway"]
        larger = None if gateway.board.is_at(folder / "board") else Board.open(folder / "board")
        gateway.reload(tables.decode(Path(path).read_bytes()), larger)
        gateway.look_at_endpoints()

    purse = Purse(
        folder, worker, found, on_reload=reload, on_drain=lambda deadline_s: stop.set(),
        stats=lambda: state["gateway"].stats(),
    )  # fmt: skip
    gateway = state["gateway"] = Gateway(found, folder, board, purse, worker=worker)
    await purse.start()
    gateway.look_at_endpoints()
    server = await _listen(config, gateway)
    sweeper = loop.create_task(_sweep(gateway))
    gc.collect()
    gc.freeze()  # what is there from the start is never looked at again
    gc.set_threshold(GC_AFTER, 50, 100)  # requests leave no cycles behind; a look now and then is enough
    _say({"ready": True, "worker": worker, "pid": os.getpid(), "interpreted": WHY_NOT_NATIVE})
    await stop.wait()
    await _drain(gateway, server, config.drain_s)
    sweeper.cancel()
    whole = await purse.close()
    gateway.pool.close()
    gateway.board.clear_worker(worker)
    return 0 if whole else 1


async def _sweep(gateway: Gateway) -> None:
    while True:
        await asyncio.sleep(SWEEP_S)
        try:
            gateway.sweep()
        except Exception as error:  # one bad request must not end the time limits of all others
            gateway.faults += 1
            sys.stderr.write(f"baseload: worker: {error!r}\n")


async def _listen(config: Config, gateway: Gateway) -> asyncio.Server:
    family = socket.AF_INET6 if ":" in config.listen_host else socket.AF_INET
    sock = socket.socket(family, socket.SOCK_STREAM)
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    sock.bind((config.listen_host, config.listen_port))
    sock.setblocking(False)
    tls: ssl.SSLContext | None = None
    if config.tls_cert is not None:
        tls = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
        tls.minimum_version = ssl.TLSVersion.TLSv1_2
        tls.load_cert_chain(config.tls_cert, config.tls_key)
        tls.set_alpn_protocols(["http/1.1"])
    made: Any = lambda: Client(gateway)  # noqa: E731
    return await asyncio.get_running_loop().create_server(
        made, sock=sock, ssl=tls, backlog=BACKLOG,
        ssl_handshake_timeout=gateway.limits.header_s if tls else None,  # nobody is counted, or timed, before it is over
    )  # fmt: skip


async def _drain(gateway: Gateway, server: asyncio.Server, drain_s: float) -> None:
    """Take nothing new; let what runs end."""
    gateway.draining = True
    server.close()
    until_s = asyncio.get_running_loop().time() + drain_s
    for client in list(gateway.clients):
        client.close_if_idle()
    while gateway.clients and asyncio.get_running_loop().time() < until_s:
        await asyncio.sleep(0.02)
    problem = reply.Problem(503, "draining", "this gateway is being replaced; try again", None, 1.0)
    for client in list(gateway.clients):
        client.stop(problem)
    await asyncio.sleep(0.05)
    for client in list(gateway.clients):
        client.abort()
    await asyncio.sleep(0)


def _watch_stdin(loop: asyncio.AbstractEventLoop, stop: asyncio.Event) -> None:
    """Stop when our parent's end of standard input closes."""

    def read() -> None:
        if not os.read(0, 1024):
            loop.remove_reader(0)
            stop.set()

    with contextlib.suppress(OSError, ValueError, PermissionError):
        loop.add_reader(0, read)


def _say(told: dict[str, Any]) -> None:
    sys.stdout.write(json.dumps(told) + "\n")
    sys.stdout.flush()


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
