"""Connections to engines that behave badly, over real sockets: none is kept that should not be, and none stays for ever."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import Awaitable, Callable
from typing import Any

from baseload.serve import upstream
from baseload.serve.turn import Turn
from baseload.serve.upstream import Connection, Place, Pool

HEAD = b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ntransfer-encoding: chunked\r\n\r\n"
WHOLE = b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok"
Answer = Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]


class Asker:
    """Who asks, as a relay does: it holds its connection in `up` until it has what it wants."""

    def __init__(self) -> None:
        self.up: Connection | None = None
        self.got = b""
        self.over = asyncio.Event()

    def begins(self, status: int, content_type: bytes, retry_after: bytes) -> None:
        """Not wanted."""

    def comes(self, data: bytes) -> None:
        """Take a piece."""
        self.got += data

    def frames(self, data: bytes, ends: list[int]) -> None:
        """Take several chunks."""
        self.got += b"".join(data[at:end] for at, end in zip(ends[::2], ends[1::2], strict=True))

    def ended(self) -> None:
        """It is whole."""
        self.up = None
        self.over.set()

    def broken(self, why: str, *, unreached: bool = False) -> None:
        """It is not."""
        self.up = None
        self.over.set()


class Rest:
    """Takes what nobody wants any more, as a relay's drain does."""

    def __getattr__(self, name: str) -> Any:
        if name == "up":
            raise AttributeError(name)
        return lambda *words, **more: None


async def asked(pool: Pool, place: Place) -> tuple[Asker, Connection]:
    """Connect and ask."""
    made: asyncio.Future[Connection | None] = asyncio.get_running_loop().create_future()
    pool.connect(place, made.set_result)
    connection, asker = await made, Asker()
    assert connection is not None
    asker.up = connection
    connection.send(asker, b"POST / HTTP/1.1\r\nhost: x\r\ncontent-length: 0\r\n\r\n")
    return asker, connection


async def served(answer: Answer) -> tuple[asyncio.Server, Pool]:
    """Return an engine, and a pool that knows it."""

    async def tidy(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            with contextlib.suppress(OSError, asyncio.IncompleteReadError):
                await answer(reader, writer)
        finally:
            writer.close()  # at the loop's end too, which cancels this
        with contextlib.suppress(OSError):
            await writer.wait_closed()

    server = await asyncio.start_server(tidy, "127.0.0.1", 0)
    pool = Pool([""])
    pool.set_urls([f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"])
    return server, pool


def test_an_engine_that_never_ends_an_answer_is_let_go(monkeypatch: Any) -> None:
    """After its last word it is given a while to end the chunks; then the connection is closed, however long it drips."""
    monkeypatch.setattr(upstream, "REST_S", 0.3)
    monkeypatch.setattr(upstream, "LOOK_S", 0.05)

    async def drips(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(HEAD + b"4\r\nword\r\n")
        while not reader.at_eof():
            writer.write(b"1\r\n.\r\n")
            await writer.drain()
            await asyncio.sleep(0.05)

    async def run() -> None:
        server, pool = await served(drips)
        place = pool.places[0]
        assert place is not None
        asker, connection = await asked(pool, place)
        while b"word" not in asker.got:
            await asyncio.sleep(0.01)
        for _ in range(10):  # while somebody wants it, it may take as long as it likes
            pool.sweep(time.monotonic())
            await asyncio.sleep(0.06)
        assert place.live == {connection}
        asker.up, connection.taker = None, Rest()
        until_s = time.monotonic() + 5.0
        while place.live:
            assert time.monotonic() < until_s, "the connection stays for ever"
            pool.sweep(time.monotonic())
            await asyncio.sleep(0.02)
        server.close()
        await asyncio.sleep(0.1)  # the engine's side too

    asyncio.run(run())


def test_a_connection_to_a_replica_that_left_is_not_kept() -> None:
    """Its answer is taken to the end, then it is closed: no later request finds it, and no sweep has to."""

    async def slowly(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while await reader.readuntil(b"\r\n\r\n"):
            await asyncio.sleep(0.2)
            writer.write(WHOLE)

    async def run() -> None:
        server, pool = await served(slowly)
        place = pool.places[0]
        assert place is not None
        asker, connection = await asked(pool, place)
        pool.set_urls([None])
        await asyncio.wait_for(asker.over.wait(), 5.0)
        assert asker.got == b"ok"
        await asyncio.sleep(0.1)
        assert connection.transport is None and not place.idle and not place.live
        asker, connection = await kept_as_ever(pool, server)
        connection.drop()
        server.close()
        await asyncio.sleep(0.1)  # the engine's side too

    async def kept_as_ever(pool: Pool, server: asyncio.Server) -> tuple[Asker, Connection]:
        pool.set_urls([f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"])
        place = pool.places[0]
        assert place is not None
        asker, connection = await asked(pool, place)
        await asyncio.wait_for(asker.over.wait(), 5.0)
        assert place.idle == [connection] and pool.take(place) is connection
        return asker, connection

    asyncio.run(run())


def test_a_host_that_is_none_is_an_engine_that_nobody_reaches() -> None:
    """A name that cannot even be looked up ends the try at once, not when its time is over."""

    async def run() -> None:
        pool, made = Pool([""]), asyncio.get_running_loop().create_future()
        pool.connect(Place("http://" + "a" * 70 + ".example:80", "", Turn()), made.set_result)
        assert await asyncio.wait_for(made, 2.0) is None

    asyncio.run(run())


def test_many_engines_over_tls_share_one_trust() -> None:
    """A hundred addresses are taken up in the time of one: a reload holds up no stream."""
    began_s = time.process_time()
    pool = Pool([""] * 100)
    pool.set_urls([f"https://engine-{i}.example" for i in range(100)])
    assert len({id(place.tls) for place in pool.places if place is not None}) == 1
    assert time.process_time() - began_s < 0.5
