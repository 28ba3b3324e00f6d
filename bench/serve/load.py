"""Load for the gateway benchmark: `wrk` for plain requests, and a small uvloop client of our own for streams.

Every answer is looked at: a window in which one request failed is invalid and says so.
"""

from __future__ import annotations

import asyncio
import json
import re
import subprocess
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import uvloop

PROMPT = " ".join(["the quick brown fox jumps over the lazy dog"] * 24)  # a body of about 1.2 kB


@dataclass
class Window:
    """What one window of load saw."""

    n: int = 0
    failed: int = 0
    took_s: float = 0.0
    p50_ms: float = 0.0
    p99_ms: float = 0.0
    n_chunks: int = 0
    why: str = ""
    latencies_s: list[float] = field(default_factory=list)


def body(*, stream: bool, tokens: int = 64, knobs: str = "") -> bytes:
    """Return a chat request."""
    told = {"model": "chat", "max_tokens": tokens, "messages": [{"role": "user", "content": PROMPT + knobs}]}
    if stream:
        told |= {"stream": True, "stream_options": {"include_usage": True}}
    return json.dumps(told, separators=(",", ":")).encode()


def wrk(port: int, key: str, *, connections: int, seconds: int) -> Window:
    """Send plain requests with wrk for a while."""
    script = f"""wrk.method = "POST"
wrk.path = "/v1/chat/completions"
wrk.body = [=[{body(stream=False).decode()}]=]
wrk.headers["content-type"] = "application/json"
wrk.headers["authorization"] = "Bearer {key}"
"""
    with tempfile.NamedTemporaryFile("w", suffix=".lua") as file:
        file.write(script)
        file.flush()
        told = subprocess.run(
            ["wrk", "-t1", f"-c{connections}", f"-d{seconds}s", "--latency", "-s", file.name, f"http://127.0.0.1:{port}"],
            capture_output=True, text=True, check=False,
        ).stdout  # fmt: skip
    found = Window()
    total = re.search(r"(\d+) requests in ([\d.]+)(m?s)", told)
    if total is None:
        return Window(failed=1, why=told[-200:])
    found.n = int(total[1])
    found.took_s = float(total[2]) * (1e-3 if total[3] == "ms" else 1.0)
    found.p50_ms, found.p99_ms = (_quantile_ms(told, q) for q in ("50%", "99%"))
    bad = re.search(r"Non-2xx or 3xx responses: (\d+)", told)
    errors = re.search(r"Socket errors: connect (\d+), read (\d+), write (\d+), timeout (\d+)", told)
    found.failed = (int(bad[1]) if bad else 0) + (sum(map(int, errors.groups())) if errors else 0)
    found.why = "; ".join(m[0] for m in (bad, errors) if m)
    return found


def _quantile_ms(told: str, name: str) -> float:
    found = re.search(rf"{name}\s+([\d.]+)(us|ms|s)", told)
    return float(found[1]) * {"us": 1e-3, "ms": 1.0, "s": 1e3}[found[2]] if found else float("nan")


class Stream(asyncio.Protocol):
    """One connection that asks for one stream after the other, and looks whether each is whole."""

    def __init__(
        self, wire: bytes, tokens: int, more: Callable[[], bool], window: Window, ended: Callable[[], None]
    ) -> None:
        self.wire, self.tokens, self.more, self.window, self.ended = wire, tokens, more, window, ended
        self.got = bytearray()
        self.began_s = 0.0
        self.first_s = 0.0
        self.over = False

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = transport
        self.ask()

    def ask(self) -> None:
        """Send a request."""
        self.got.clear()
        self.first_s = 0.0
        self.began_s = time.perf_counter()
        self.transport.write(self.wire)  # type: ignore[attr-defined]

    def data_received(self, data: bytes) -> None:
        self.got += data
        self.first_s = self.first_s or time.perf_counter()
        if data.endswith(b"0\r\n\r\n") and b"[DONE]" in self.got[-200:]:
            self.whole()
        elif not self.got.startswith(b"HTTP/1.1 200"[: len(self.got)]):
            self.fail(f"{bytes(self.got[:200])!r}")

    def whole(self) -> None:
        """Judge a stream that ended."""
        events = self.got.count(b'"content":"word')
        if events != self.tokens or b'"usage"' not in self.got:
            self.fail(f"{events} events of {self.tokens}")
            return
        self.window.n += 1
        self.window.n_chunks += events + 1
        self.window.latencies_s.append(time.perf_counter() - self.began_s)
        if self.more():
            self.ask()
        else:
            self.finish()

    def fail(self, why: str) -> None:
        """Note a failure, and end."""
        self.window.failed += 1
        self.window.why = why
        self.finish()

    def finish(self) -> None:
        """End once."""
        if not self.over:
            self.over = True
            self.transport.close()
            self.ended()

    def connection_lost(self, exc: Exception | None) -> None:
        if not self.over:
            self.over = True
            self.window.failed += 1
            self.window.why = f"connection lost: {exc}"
            self.ended()


def head(port: int, key: str, body_: bytes) -> bytes:
    """Return a POST as bytes."""
    return (
        f"POST /v1/chat/completions HTTP/1.1\r\nhost: 127.0.0.1:{port}\r\nauthorization: Bearer {key}\r\n"
        f"content-type: application/json\r\ncontent-length: {len(body_)}\r\n\r\n"
    ).encode() + body_


def streams(port: int, key: str, *, connections: int, seconds: float, tokens: int = 64, knobs: str = "") -> Window:
    """Keep `connections` streams going for a while; all that were begun are ended and counted."""
    window = Window()
    wire = head(port, key, body(stream=True, tokens=tokens, knobs=knobs))

    async def go() -> None:
        loop = asyncio.get_running_loop()
        until_s = time.perf_counter() + seconds
        left, done = connections, asyncio.Event()

        def ended() -> None:
            nonlocal left
            left -= 1
            if left == 0:
                done.set()

        for _ in range(connections):
            await loop.create_connection(
                lambda: Stream(wire, tokens, lambda: time.perf_counter() < until_s, window, ended), "127.0.0.1", port
            )
        await asyncio.wait_for(done.wait(), seconds + 30)

    began_s = time.perf_counter()
    try:
        with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
            runner.run(go())
    except (OSError, TimeoutError) as error:
        window.failed += 1
        window.why = repr(error)
    window.took_s = time.perf_counter() - began_s
    ordered = sorted(window.latencies_s)
    if ordered:
        window.p50_ms = 1e3 * ordered[len(ordered) // 2]
        window.p99_ms = 1e3 * ordered[min(len(ordered) - 1, int(0.99 * len(ordered)))]
    return window


def cpu_s(pids: list[int]) -> float:
    """Return the CPU seconds of processes so far, all threads, from /proc/PID/task/*/schedstat (nanoseconds)."""
    total = 0
    for pid in pids:
        for task in Path(f"/proc/{pid}/task").glob("*/schedstat"):
            try:
                total += int(task.read_text().split()[0])
            except OSError:
                continue
    return total / 1e9
