"""A TCP proxy with faults, to stand between gateway and engine: latency, reset, truncate, blackhole, corrupt, heal.

In a test: `proxy = await FaultProxy.open(port)`, then `proxy.set("blackhole")`. Alone: `python tests/chaos/faultproxy.py --to
PORT`, which prints its port and then obeys words on its standard input (`latency 300`, `reset`, `heal`, …).
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import os
import socket
import struct
import sys

FAULTS = (
    "heal",  # pass everything
    "latency",  # hold each piece for `amount` ms
    "reset",  # RST to everyone, and to whoever comes
    "truncate",  # end the answer after `amount` more bytes, with FIN
    "blackhole",  # swallow everything, accept and say nothing: a partition
    "half_open",  # what the client sends arrives; what the engine answers does not
    "corrupt",  # every 16th byte of the answer is another one
    "refuse",  # close at once
)


class Link:
    """One connection through the proxy."""

    def __init__(self, proxy: FaultProxy, client: asyncio.StreamWriter, engine: asyncio.StreamWriter) -> None:
        self.proxy, self.client, self.engine = proxy, client, engine
        self.left = -1

    async def pump(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, *, answer: bool) -> None:
        """Carry one direction through whatever fault there is now."""
        proxy = self.proxy
        try:
            while data := await reader.read(65_536):
                if proxy.fault == "latency":
                    await asyncio.sleep(proxy.amount / 1e3)
                while proxy.fault == "blackhole" or (proxy.fault == "half_open" and answer):
                    await proxy.changed.wait()  # TCP would repeat it: after healing the same bytes arrive
                if answer and proxy.fault == "corrupt":
                    damaged = bytearray(data)
                    damaged[::16] = bytes(b ^ 0x20 for b in damaged[::16])
                    data = bytes(damaged)
                if answer and proxy.fault == "truncate":
                    self.left = int(proxy.amount) if self.left < 0 else self.left
                    data, self.left = data[: self.left], max(0, self.left - len(data))
                writer.write(data)
                await writer.drain()
                if answer and self.left == 0:
                    break
        except (OSError, asyncio.CancelledError):
            pass
        finally:
            with contextlib.suppress(OSError, RuntimeError):
                writer.close()

    def reset(self) -> None:
        """End both sides with RST."""
        for writer in (self.client, self.engine):
            sock = writer.get_extra_info("socket")
            with contextlib.suppress(OSError):
                sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            writer.transport.abort()


class FaultProxy:
    """Listens on `port` of loopback and passes on to `to`."""

    def __init__(self, to: int) -> None:
        self.to = to
        self.port = 0
        self.fault, self.amount = "heal", 0.0
        self.links: set[Link] = set()
        self.changed = asyncio.Event()
        self.server: asyncio.Server | None = None

    @classmethod
    async def open(cls, to: int, port: int = 0) -> FaultProxy:
        """Start to listen."""
        proxy = cls(to)
        proxy.server = await asyncio.start_server(proxy.serve, "127.0.0.1", port)
        proxy.port = proxy.server.sockets[0].getsockname()[1]
        return proxy

    def set(self, fault: str, amount: float = 0.0) -> None:
        """Choose the fault from now on."""
        assert fault in FAULTS, fault
        self.fault, self.amount = fault, amount
        self.changed.set()
        self.changed = asyncio.Event()
        if fault == "reset":
            for link in list(self.links):
                link.reset()

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Carry one connection."""
        try:
            await self._serve(reader, writer)
        except asyncio.CancelledError:  # the test is over
            writer.transport.abort()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while self.fault == "blackhole":
            await self.changed.wait()
        try:
            if self.fault == "refuse":
                raise ConnectionRefusedError
            up_reader, up_writer = await asyncio.open_connection("127.0.0.1", self.to)
        except OSError:
            writer.transport.abort()
            return
        link = Link(self, writer, up_writer)
        self.links.add(link)
        if self.fault == "reset":
            link.reset()
        there = asyncio.create_task(link.pump(reader, up_writer, answer=False))
        try:
            await link.pump(up_reader, writer, answer=True)
        finally:
            there.cancel()
            self.links.discard(link)
            await asyncio.gather(there, return_exceptions=True)
            up_writer.close()

    def close(self) -> None:
        """Stop to listen and drop all connections."""
        if self.server is not None:
            self.server.close()
        for link in list(self.links):
            link.reset()


async def main(to: int, port: int) -> None:
    proxy = await FaultProxy.open(to, port)
    print(json.dumps({"port": proxy.port, "pid": os.getpid()}), flush=True)
    loop = asyncio.get_running_loop()
    while line := await loop.run_in_executor(None, sys.stdin.readline):
        words = line.split()
        if words and words[0] in FAULTS:
            proxy.set(words[0], float(words[1]) if len(words) > 1 else 0.0)
    proxy.close()


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--to", type=int, required=True)
    parser.add_argument("--port", type=int, default=0)
    chosen = parser.parse_args()
    asyncio.run(main(chosen.to, chosen.port))
