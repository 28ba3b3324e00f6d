"""Connections to engines: pooled, one request at a time on each, strict about what comes back.

An engine is not trusted: heads are bounded, framing that two readers could understand differently ends the connection, and no
redirect is followed. A connection that was kept and dies before its first byte is the engine's habit and not its failure
(llama.cpp closes after each stream): the request goes out once more on a fresh one. What an answer means is `relay.py`'s.
"""

from __future__ import annotations

import asyncio
import os
import ssl
import time
from collections.abc import Callable, Sequence
from functools import lru_cache
from typing import Any, Final, Protocol
from urllib.parse import urlsplit

import httptools

from baseload.serve import quick
from baseload.serve.inbound import HeadShape, head_shape
from baseload.serve.turn import Outgoing, Turn

chunks_of: Final = quick.chunks_of

monotonic: Final = time.monotonic  # a name of our own is found at once where this is compiled

HEAD_BYTES_MAX: Final = 65_536
IDLE_MAX: Final = 256  # kept connections of a replica
IDLE_S: Final = 20.0
CONNECT_S: Final = 3.0
REST_S: Final = 5.0  # an engine may take so long to end an answer whose last word was passed on
LOOK_S: Final = 1.0  # how often it is looked for such
BUNDLES: Final = 0.25  # tokens beyond one an event, on the mean: less is what ends an answer, or stands in no event
EVENTS_LEAST: Final = 8  # of a stream from which this is learnt
MORE_MOST: Final = 63.0


class Taker(Protocol):
    """Who gets an answer: all calls come from the event loop, none after `broken` or `ended`."""

    def begins(self, status: int, content_type: bytes, retry_after: bytes) -> None:
        """The head is whole."""

    def comes(self, data: bytes) -> None:
        """A piece of the body."""

    def frames(self, data: bytes, ends: list[int]) -> None:
        """A piece of the body that came as whole chunks: where what each holds begins and ends, one after the other."""

    def ended(self) -> None:
        """The answer is whole, as far as its framing says."""

    def broken(self, why: str, *, unreached: bool = False) -> None:
        """The answer will not become whole."""


@lru_cache(maxsize=1)
def _trust() -> ssl.SSLContext:
    """Return the system's trust, read once: for each of many engines anew it would hold up the streams that run."""
    return ssl.create_default_context()


class _Drain:
    """Takes the rest of an answer that is told already, so that its connection can be kept."""

    def begins(self, status: int, content_type: bytes, retry_after: bytes) -> None:
        """Not wanted."""

    def comes(self, data: bytes) -> None:
        """Not wanted."""

    def frames(self, data: bytes, ends: list[int]) -> None:
        """Not wanted."""

    def ended(self) -> None:
        """Kept."""

    def broken(self, why: str, *, unreached: bool = False) -> None:
        """Gone."""


DRAIN = _Drain()


class Place:
    """Where a replica answers: address, what each request begins with, and connections kept."""

    __slots__ = (
        "base", "counts_along", "gone", "head", "host", "idle", "known", "live", "more", "more_known", "port", "shape", "tls",
        "turn", "url",
    )  # fmt: skip

    def __init__(self, url: str, key: str, turn: Turn) -> None:
        parts = urlsplit(url)
        self.url, self.turn = url, turn
        self.host = parts.hostname or "127.0.0.1"
        self.port = parts.port or (443 if parts.scheme == "https" else 80)
        self.tls = _trust() if parts.scheme == "https" else None
        self.base = parts.path.rstrip("/").removesuffix("/v1").encode()
        named = f"[{self.host}]" if ":" in self.host else self.host
        lines = f"host: {named}:{self.port}\r\ncontent-type: application/json\r\n"
        if key:
            lines += f"authorization: Bearer {key}\r\n"
        self.head = lines.encode("latin-1")
        self.idle: list[Connection] = []
        self.live: set[Connection] = set()  # every one, idle or not
        self.gone = False  # the replica answers elsewhere now: what is still open is not kept
        self.shape: HeadShape | None = None  # of an answer's head that was read before, and what it said
        self.known: tuple[int, bytes, bytes] = (0, b"", b"")
        self.more = 0.0  # tokens that an event of its streams held beyond one, of late
        self.more_known = False
        self.counts_along = True  # as far as is known, it tells its count in each event, if it is asked to

    @property
    def bundles(self) -> bool:
        """Say whether it puts several tokens into an event."""
        return self.more > BUNDLES

    def held(self, tokens: int, n_events: int) -> None:
        """Learn from a whole stream how many tokens its engine puts into an event."""
        if n_events >= EVENTS_LEAST:
            more = min(MORE_MOST, max(0.0, tokens / n_events - 1.0))
            self.more += (more - self.more) * (0.25 if self.more_known else 1.0)
            self.more_known = True


class Connection(Outgoing):
    """One connection to an engine."""

    __slots__ = (
        "_begun", "_between", "_chunked", "_close", "_content_type", "_contradicts", "_extra", "_head_bytes", "_in_head",
        "_keep", "_length", "_parser", "_pieces", "_retry_after", "_status", "_told", "_whole", "idle_since_s", "place",
        "rest_s", "reused", "taker",
    )  # fmt: skip

    def __init__(self, place: Place) -> None:
        super().__init__(place.turn)
        self.place = place
        self.taker: Taker | None = None
        self.reused = False
        self.rest_s = 0.0  # since when nobody waits for what still comes; 0: somebody does
        self.idle_since_s = 0.0
        self._parser: Any = None
        self._in_head, self._told, self._close, self._chunked = True, False, False, False
        self._head_bytes = self._status = 0
        self._length: bytes | None = None
        self._content_type = self._retry_after = b""
        self._begun = self._whole = self._extra = self._contradicts = self._keep = False
        self._between = False  # the parser stands between two chunks
        self._pieces: list[bytes] = []

    # ---- asyncio ----

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Connected."""
        self.transport = transport
        self.place.live.add(self)
        sock = transport.get_extra_info("socket")
        if sock is not None:
            import socket as names

            sock.setsockopt(names.IPPROTO_TCP, names.TCP_NODELAY, 1)

    def connection_lost(self, exc: Exception | None) -> None:
        """Gone: an answer that has no length of its own is whole now, any other is not."""
        taker, self.transport = self.taker, None
        self.forget()
        self.place.live.discard(self)
        if taker is None:
            if self in self.place.idle:
                self.place.idle.remove(self)
            return
        self.taker = None
        if exc is None and self._told and self._length is None and not self._chunked:
            taker.ended()
        else:
            taker.broken("the engine closed the connection" if exc is None else "the connection to the engine broke")

    def pause_writing(self) -> None:
        """A request is small beside a socket's buffer; nothing to do."""

    def resume_writing(self) -> None:
        """Nothing was stopped."""

    def data_received(self, data: bytes) -> None:
        """Bytes of an answer."""
        taker = self.taker
        if taker is None:  # unasked: no engine of ours
            self.drop()
            return
        if self._between:
            ends = chunks_of(data)
            if ends:  # whole chunks: the parser need not see them
                taker.frames(data, ends)
                return
        fresh = self._head_bytes == 0
        if self._in_head:
            self._head_bytes += len(data)
        if fresh:
            shape = self.place.shape
            if shape is not None and self._as_before(shape, data):
                return
            self._parser = httptools.HttpResponseParser(self)
        fault = ""
        try:
            self._parser.feed_data(data)
        except (httptools.HttpParserError, httptools.HttpParserUpgrade) as error:
            fault = f"the engine's answer is no HTTP ({type(error).__name__})"
        if self._between and not data.endswith(b"\r\n"):
            self._between = False  # some of the next chunk's size is in the parser already
        if fresh and self._whole and self._keep and not (fault or self._chunked or self._close or self._extra):
            self._remember(data)
        self._act(fault)

    def _as_before(self, shape: HeadShape, data: bytes) -> bool:
        """Take a whole answer whose head is known, without reading it again."""
        at = shape.body_at(data)
        if at < 0 or at > HEAD_BYTES_MAX:
            return False
        self._in_head, self._told, self._begun, self._whole, self._keep = False, True, True, True, True
        status, content_type, retry_after = self.place.known
        taker = self.taker
        assert taker is not None
        taker.begins(status, content_type, retry_after)
        if at < len(data):
            taker.comes(data[at:])
        if self.taker is not None:
            self._end(keep=True)
        return True

    def _remember(self, data: bytes) -> None:
        """Keep the head of a whole answer that came in one piece: the next one's is most likely the same."""
        if self._status != 200 or self._length is None or self._contradicts:
            return
        if self._in_head is False and len(self._length) < 16:
            shape = head_shape(data, int(self._length))
            if shape is not None:
                self.place.shape, self.place.known = shape, (self._status, self._content_type, self._retry_after)

    def _act(self, fault: str) -> None:
        """Hand on what the parser found, outside the parser: whoever gets it may end this, or send the next request."""
        taker = self.taker
        assert taker is not None
        if self._contradicts:
            self._fail(fault or "the engine's head contradicts itself")
            return
        if self._told and not self._begun:
            self._begun = True
            taker.begins(self._status, self._content_type, self._retry_after)
        if self._pieces:
            pieces, self._pieces = self._pieces, []
            taker.comes(pieces[0] if len(pieces) == 1 else b"".join(pieces))
        if self.taker is None:
            return
        if self._whole:
            self._end(keep=not fault)
        elif fault:
            self._fail(fault)
        elif self._in_head and self._head_bytes > HEAD_BYTES_MAX:
            self._fail("the engine's headers are too large")

    def eof_received(self) -> bool:
        """The engine has said all: close."""
        return False

    # ---- one request ----

    def send(self, taker: Taker, data: bytes) -> None:
        """Send a request; `taker` gets its answer."""
        self.taker = taker
        self._in_head, self._told, self._close, self._chunked = True, False, False, False
        self._begun = self._whole = self._extra = self._contradicts = self._keep = self._between = False
        self._head_bytes, self._length, self._status = 0, None, 0
        self._pieces = []
        self._content_type = self._retry_after = b""
        self.write(data)

    def drop(self) -> None:
        """End the connection at once: what the engine computes for it is for nobody."""
        self.taker = None
        self.forget()
        if self.transport is not None:
            self.transport.abort()

    def _fail(self, why: str) -> None:
        taker, self.taker = self.taker, None
        self.forget()
        if self.transport is not None:
            self.transport.abort()
        if taker is not None:
            taker.broken(why)

    @property
    def silent(self) -> bool:
        """Say whether nothing has come yet."""
        return self._head_bytes == 0

    # ---- httptools ----

    def on_message_begin(self) -> None:
        """A second answer behind the first is one that nobody asked for: the next request must not get it."""
        self._extra = self._whole

    def on_header(self, name: bytes, value: bytes) -> None:
        """Take note of what matters."""
        if self._whole:
            return
        low = name.lower()
        if low == b"content-length":
            if self._length is not None or not value.isdigit():
                self._contradicts = True
            self._length = value
        elif low == b"transfer-encoding":
            self._chunked = True
        elif low == b"content-type":
            self._content_type = value
        elif low == b"retry-after":
            self._retry_after = value
        elif low == b"connection" and value.lower() == b"close":
            self._close = True

    def on_headers_complete(self) -> None:
        """Judge the head."""
        status = self._parser.get_status_code()
        if self._whole or 100 <= status < 200:
            return
        self._in_head, self._told, self._status = False, True, status
        if (self._chunked and self._length is not None) or self._parser.get_http_version() not in ("1.1", "1.0"):
            self._contradicts = True

    def on_body(self, data: bytes) -> None:
        """A piece of the body."""
        if not self._whole:
            self._pieces.append(data)

    def on_chunk_header(self) -> None:
        """A chunk begins."""
        self._between = False

    def on_chunk_complete(self) -> None:
        """A chunk is whole, the line end behind it too."""
        self._between = self._begun  # so that the head was handed on before

    def on_message_complete(self) -> None:
        """The answer is whole, unless it was an interim one: then the real one follows."""
        self._between = False
        if self._told and not self._whole:
            self._whole = True
            self._keep = self._parser.should_keep_alive()  # the parser forgets it at once

    def _end(self, *, keep: bool) -> None:
        """An answer is whole: keep the connection, if it may be kept."""
        taker, self.taker = self.taker, None
        self.rest_s = 0.0
        keep = keep and self._keep and not (self._close or self._extra or self.place.gone)
        if keep and self.transport is not None and len(self.place.idle) < IDLE_MAX:
            self.reused = True
            self.idle_since_s = monotonic()
            self.place.idle.append(self)
        elif self.transport is not None:
            self.transport.close()
        if taker is not None:
            taker.ended()


class Pool:
    """The replicas' places, and connections to them."""

    def __init__(self, keys: Sequence[str], turn: Turn | None = None, *, connect_s: float = CONNECT_S) -> None:
        self.turn = turn or Turn()
        self.places: list[Place | None] = [None] * len(keys)
        self.keys = [os.environ.get(name, "") if name else "" for name in keys]  # values of environment variables
        self.connect_s = connect_s
        self._connecting: set[asyncio.Task[None]] = set()
        self._left: list[Place] = []  # places that are gone and have connections open
        self._looked_s = 0.0

    def set_urls(self, urls: Sequence[str | None]) -> None:
        """Take up where replicas answer now; connections to places that are gone are left to end."""
        for r, url in enumerate(urls[: len(self.places)]):
            place = self.places[r]
            if place is not None and place.url == url:
                continue
            if place is not None:
                place.gone = True
                self._left.append(place)
                self._close_idle(place)
            self.places[r] = None if url is None else Place(url, self.keys[r], self.turn)

    def take(self, place: Place) -> Connection | None:
        """Return a kept connection, the newest first; None where there is none."""
        while place.idle:
            connection = place.idle.pop()
            if connection.transport is not None and not connection.transport.is_closing():
                return connection
        return None

    def connect(self, place: Place, then: Callable[[Connection | None], None]) -> None:
        """Make a connection, and call `then` with it, or with None where nobody answers."""
        task = asyncio.get_running_loop().create_task(self._connect(place, then))
        self._connecting.add(task)
        task.add_done_callback(self._connecting.discard)

    async def _connect(self, place: Place, then: Callable[[Connection | None], None]) -> None:
        connection: Connection | None
        made: Any = lambda: Connection(place)  # noqa: E731
        try:
            _, connection = await asyncio.wait_for(
                asyncio.get_running_loop().create_connection(
                    made, place.host, place.port, ssl=place.tls,
                    server_hostname=place.host if place.tls else None,
                ),
                self.connect_s,
            )  # fmt: skip
        except (OSError, TimeoutError, ValueError):  # ssl's errors are OSErrors; a host that is none is a ValueError
            connection = None
        if connection is not None and connection.transport is None:  # made, and lost before we looked
            connection = None
        then(connection)

    def sweep(self, now_s: float) -> None:
        """Close connections that were idle for long."""
        for place in self.places:
            if place is None:
                continue
            old = [one for one in place.idle if now_s - one.idle_since_s > IDLE_S]
            if old:
                place.idle = [one for one in place.idle if now_s - one.idle_since_s <= IDLE_S]
                for connection in old:
                    if connection.transport is not None:
                        connection.transport.close()

        if now_s - self._looked_s >= LOOK_S:
            self._looked_s = now_s
            self._left = [place for place in self._left if place.live]
            for place in (*self.places, *self._left):
                if place is not None:
                    self._end_rests(place, now_s)

    def _end_rests(self, place: Place, now_s: float) -> None:
        """Let go of engines that have said all, and do not end: whoever asked holds such a connection no more."""
        for connection in [c for c in place.live if c.taker is not None and getattr(c.taker, "up", None) is not c]:
            if not connection.rest_s:
                connection.rest_s = now_s
            elif now_s - connection.rest_s >= REST_S:
                connection.drop()

    def _close_idle(self, place: Place) -> None:
        idle, place.idle = place.idle, []
        for connection in idle:
            if connection.transport is not None:
                connection.transport.close()

    def close(self) -> None:
        """Close what is idle."""
        for place in self.places:
            if place is not None:
                self._close_idle(place)
