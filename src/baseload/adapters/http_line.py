"""GETs at one server, again and again: what `scrape.py` asks engines every second, over a connection that is kept.

The same rules as `http_small.py`, whose answers it gives: everything bounded, nothing trusted. A connection that the server
closed between two questions is replaced; one that nobody asked on for a while closes itself.
"""

from __future__ import annotations

import asyncio
import ssl
from collections.abc import Mapping
from typing import cast
from urllib.parse import urlsplit

from baseload.adapters.http_small import CHUNK_LINE_MAX, HEAD_BYTES_MAX, Answer, HttpProblem, read_head

IDLE_S = 10.0


class Line:
    """One server. One question at a time; `close` lets the connection go."""

    def __init__(self, url: str, headers: Mapping[str, str]) -> None:
        self.url, self.headers = url, headers
        self._kept: _Connection | None = None
        self._tls: ssl.SSLContext | None = None
        self._requests: dict[tuple[str, bool], bytes] = {}

    async def get(self, path: str, *, timeout_s: float, body_bytes_max: int, keep: bool) -> Answer:
        """Return the answer to a GET; raises HttpProblem. With `keep` the next one may go over the same connection."""
        loop = asyncio.get_running_loop()
        until_s = loop.time() + timeout_s
        kept, self._kept = self._kept, None
        request = self._requests.get((path, keep))
        if request is None:
            request = self._requests[path, keep] = self._request(path, keep)
        try:
            if kept is not None and kept.loop is loop and kept.open:
                try:
                    answer = await kept.ask(request, body_bytes_max, until_s)
                except _Closed:  # while nobody asked: that says nothing of the server
                    kept = None
                else:
                    self._keep(kept, keep)
                    return answer
            elif kept is not None:
                kept.close()
            fresh = await self._connect(loop, until_s)
            answer = await fresh.ask(request, body_bytes_max, until_s)
        except TimeoutError:
            raise HttpProblem(f"no answer in {timeout_s:g} s") from None
        except HttpProblem:
            raise
        except (OSError, ssl.SSLError, ValueError) as problem:
            raise HttpProblem(f"{type(problem).__name__}: {problem}") from None
        self._keep(fresh, keep)
        return answer

    def close(self) -> None:
        """Let the connection go."""
        kept, self._kept = self._kept, None
        if kept is not None:
            kept.close()

    def _keep(self, connection: _Connection, keep: bool) -> None:
        if keep and connection.open:
            self._kept = connection
            connection.rest()
        else:
            connection.close()

    async def _connect(self, loop: asyncio.AbstractEventLoop, until_s: float) -> _Connection:
        parts = urlsplit(self.url)
        if parts.scheme not in ("http", "https") or not parts.hostname:
            raise HttpProblem("not an http address")
        if parts.scheme == "https" and self._tls is None:
            self._tls = ssl.create_default_context()
        port = parts.port or (443 if self._tls else 80)
        async with asyncio.timeout_at(until_s):
            _, made = await loop.create_connection(lambda: _Connection(loop), parts.hostname, port, ssl=self._tls)
        return made

    def _request(self, path: str, keep: bool) -> bytes:
        parts = urlsplit(self.url + path)
        target = (parts.path or "/") + (f"?{parts.query}" if parts.query else "")
        lines = [f"GET {target} HTTP/1.1", f"host: {parts.netloc.rpartition('@')[2]}"]
        lines += [] if keep else ["connection: close"]
        lines += [f"{name}: {value}" for name, value in self.headers.items()]
        if any("\r" in line or "\n" in line for line in lines):
            raise HttpProblem("a header holds a line break")
        return "\r\n".join([*lines, "", ""]).encode("latin-1")


class _Closed(HttpProblem):
    """The connection was closed before a byte of an answer came."""


class _Connection(asyncio.Protocol):
    """A connection, and the answer that comes in on it."""

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self.loop = loop
        self._transport: asyncio.Transport | None = None
        self._answer: asyncio.Future[Answer] | None = None
        self._reading = _Reading(0)
        self._timer: asyncio.TimerHandle | None = None
        self._rests_s = 0.0

    @property
    def open(self) -> bool:
        """Say whether one may ask."""
        return self._transport is not None and not self._transport.is_closing()

    async def ask(self, request: bytes, body_bytes_max: int, until_s: float) -> Answer:
        """Return the answer to a request; raises HttpProblem, TimeoutError."""
        self._reading = _Reading(body_bytes_max)
        self._answer = answer = self.loop.create_future()
        timer = self.loop.call_at(until_s, self._late)
        try:
            if self._transport is None:
                raise _Closed("the connection was closed")
            self._transport.write(request)
            found: Answer = await answer
            return found
        finally:
            timer.cancel()
            if not answer.done() or answer.cancelled() or answer.exception() is not None or not self._reading.keeps:
                self.close()
            self._answer = None

    def rest(self) -> None:
        """Nobody asks now: close after a while."""
        self._rests_s = self.loop.time()
        if self._timer is None:
            self._timer = self.loop.call_later(IDLE_S, self._rested)

    def close(self) -> None:
        """End it at once."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        if self._transport is not None:
            self._transport.abort()
            self._transport = None

    def _rested(self) -> None:
        self._timer = None
        if self._answer is None and self.loop.time() - self._rests_s >= IDLE_S:
            self.close()
        elif self._transport is not None:
            self._timer = self.loop.call_later(IDLE_S, self._rested)

    def _late(self) -> None:
        if self._answer is not None and not self._answer.done():
            self._answer.set_exception(TimeoutError())

    # ---- what the loop calls ----

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Remember the transport."""
        self._transport = cast(asyncio.Transport, transport)  # uvloop's own is no subclass

    def data_received(self, data: bytes) -> None:
        """Read on; what nobody asked for ends the connection."""
        if self._answer is None or self._answer.done():
            self.close()
            return
        self._feed(data, ended=False)

    def connection_lost(self, exc: Exception | None) -> None:
        """Tell who waits."""
        self.close()
        if self._answer is None or self._answer.done():
            return
        if not self._reading.began:
            self._answer.set_exception(_Closed("the connection was closed"))
        elif exc is not None:
            self._answer.set_exception(HttpProblem(f"{type(exc).__name__}: {exc}"))
        else:
            self._feed(b"", ended=True)

    def _feed(self, data: bytes, *, ended: bool) -> None:
        assert self._answer is not None
        try:
            answer = self._reading.feed(data, ended=ended)
        except (HttpProblem, ValueError) as problem:
            self._answer.set_exception(problem if isinstance(problem, HttpProblem) else HttpProblem(str(problem)))
        else:
            if answer is not None:
                self._answer.set_result(answer)


class _Reading:
    """An answer as it comes in."""

    def __init__(self, body_bytes_max: int) -> None:
        self.keeps = False  # whole, and the server keeps the connection
        self.began = False
        self._most = body_bytes_max
        self._got = bytearray()  # not looked at yet
        self._body = bytearray()
        self._status = 0
        self._length: int | None = None
        self._chunked = False
        self._close = False
        self._left = 0  # of the chunk under way, with its line end

    def feed(self, data: bytes, *, ended: bool) -> Answer | None:
        """Return the answer once it is there; raises HttpProblem, ValueError."""
        self.began = self.began or bool(data)
        self._got += data
        answer = None
        if self._status or self._head():
            answer = self._chunks() if self._chunked else self._plain(ended)
        if ended and answer is None:
            raise HttpProblem("the answer ends early")
        return answer

    def _plain(self, ended: bool) -> Answer | None:
        self._body += self._got
        self._got.clear()
        wanted = self._most + 1 if self._length is None else min(self._length, self._most + 1)
        if len(self._body) < wanted and not (ended and self._length is None):
            return None
        self.keeps = not self._close and self._length == len(self._body) <= self._most
        body = self._body if self._length is None else self._body[: self._length]
        return self._cut(body)

    def _cut(self, body: bytearray) -> Answer:
        return Answer(self._status, bytes(body[: self._most]), len(body) <= self._most)

    def _head(self) -> bool:
        while (end := self._got.find(b"\r\n\r\n")) >= 0 and end < HEAD_BYTES_MAX:
            status, fields = read_head(bytes(self._got[:end]))
            old = self._got.startswith(b"HTTP/1.0")
            del self._got[: end + 4]
            if status >= 200:
                length = fields.get(b"content-length")
                self._status, self._close = status, old or b"close" in fields.get(b"connection", b"").lower()
                self._chunked = b"chunked" in fields.get(b"transfer-encoding", b"").lower()
                if length is not None and not self._chunked:
                    self._length = int(length) if len(length) <= 15 else self._most + 1
                return True
        if len(self._got) > HEAD_BYTES_MAX:
            raise HttpProblem("a head of too many bytes")
        return False

    def _chunks(self) -> Answer | None:
        while True:
            if self._left > 2:
                self._body += self._got[: self._left - 2]
                n = min(len(self._got), self._left - 2)
                del self._got[:n]
                self._left -= n
                if len(self._body) > self._most:
                    return self._cut(self._body)
            if self._left:
                if self._left > 2 or len(self._got) < 2:
                    return None
                if not self._got.startswith(b"\r\n"):
                    raise HttpProblem("a chunk that does not end where it said")
                del self._got[:2]
                self._left = 0
            end = self._got.find(b"\r\n")
            if max(end, len(self._got) if end < 0 else 0) > CHUNK_LINE_MAX:
                raise HttpProblem("a chunk's size of many digits")
            if end < 0:
                return None
            size = int(self._got[:end].split(b";")[0].strip() or b"x", 16)
            if size < 0:
                raise HttpProblem("a chunk of negative size")
            del self._got[: end + 2]
            if size == 0:
                self.keeps = not self._close and self._got == b"\r\n"
                return self._cut(self._body)
            self._left = size + 2
