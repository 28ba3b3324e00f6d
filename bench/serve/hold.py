"""Open many streams and hold them: says how many stand, then how many ended whole. A part of `bench.serve.run`."""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import resource
import time
from collections import Counter

import uvloop

from bench.serve import load

TOKENS = 8


class Held(asyncio.Protocol):
    """One stream."""

    def __init__(self, wire: bytes, all_: Hold) -> None:
        self.wire, self.all = wire, all_
        self.got = b""
        self.standing = self.over = False

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = transport
        transport.write(self.wire)  # type: ignore[attr-defined]

    def data_received(self, data: bytes) -> None:
        self.got += data
        if not self.standing and (b'"content":"word' in self.got or not self.got.startswith(b"HTTP/1.1 200")):
            self.standing = True
            self.all.stood(self.got.startswith(b"HTTP/1.1 200"))
        if self.got.endswith(b"0\r\n\r\n"):
            self.end(
                "" if self.got.count(b'"content":"word') == TOKENS and b"[DONE]" in self.got else f"{self.got[-200:]!r}"
            )
        elif self.standing and not self.got.startswith(b"HTTP/1.1 200"):
            self.end(f"{self.got[:160]!r}")

    def end(self, why: str) -> None:
        """End once."""
        if not self.over:
            self.over = True
            self.transport.close()
            self.all.ended(why)

    def connection_lost(self, exc: Exception | None) -> None:
        if not self.standing:
            self.standing = True
            self.all.stood(False)
        if not self.over:
            self.over = True
            self.all.ended(f"connection lost: {exc}")


class Hold:
    """All the streams of this process."""

    def __init__(self, n: int) -> None:
        self.n = n
        self.n_answered = self.n_open = self.n_ended = self.n_whole = 0
        self.why: Counter[str] = Counter()
        self.all_answered, self.all_ended = asyncio.Event(), asyncio.Event()

    def stood(self, good: bool) -> None:
        """Note that a stream has begun, or was refused."""
        self.n_answered += 1
        self.n_open += good
        if self.n_answered >= self.n:
            self.all_answered.set()

    def ended(self, why: str) -> None:
        """Note how a stream ended."""
        self.n_ended += 1
        self.n_whole += not why
        if why:
            self.why[why[:160]] += 1
        if self.n_ended >= self.n:
            self.all_ended.set()


async def main(port: int, n: int, hold_s: int) -> None:
    loop = asyncio.get_running_loop()
    hold = Hold(n)
    wire = load.head(
        port, os.environ["HOLD_KEY"], load.body(stream=True, tokens=TOKENS, knobs=f" @hold_s={hold_s} @gap_ms=5")
    )
    began_s = time.monotonic()
    for first in range(0, n, 100):
        await asyncio.gather(
            *(loop.create_connection(lambda: Held(wire, hold), "127.0.0.1", port) for _ in range(min(100, n - first))),
            return_exceptions=True,
        )
        await asyncio.sleep(0.02)
    await asyncio.wait_for(hold.all_answered.wait(), 60)
    print(json.dumps({"open": hold.n_open, "took_s": round(time.monotonic() - began_s, 2)}), flush=True)
    try:
        await asyncio.wait_for(hold.all_ended.wait(), hold_s + 60)
    except TimeoutError:
        hold.why["never ended"] += hold.n - hold.n_ended
    print(json.dumps({"whole": hold.n_whole, "why": [f"{n}x {w}" for w, n in hold.why.most_common(3)]}), flush=True)


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("--port", type=int, required=True)
    parser.add_argument("--n", type=int, required=True)
    parser.add_argument("--hold", type=int, default=25)
    chosen = parser.parse_args()
    resource.setrlimit(resource.RLIMIT_NOFILE, (resource.getrlimit(resource.RLIMIT_NOFILE)[1],) * 2)
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(main(chosen.port, chosen.n, chosen.hold))
