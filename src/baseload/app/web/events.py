"""The live page's news: sections of the page, drawn once a second for all who look, and sent where they changed.

A reader never has a queue: whoever is slow gets the newest state later, and is dropped when a write takes too long. An
event's id says what the reader has seen, so that a reader who comes back gets only what changed meanwhile. Nothing is
drawn while nobody looks. What the sections look like is `page.py`.
"""

from __future__ import annotations

import asyncio
import secrets
import zlib
from collections.abc import Callable
from typing import Any

import msgspec
from starlette.types import Receive, Scope, Send

from baseload.app.web.guard import header
from baseload.app.web.page import Pages
from baseload.app.web.view import SERIES_COLUMNS, SERIES_S, OwnerView, Series

VIEWERS_MAX = 64
EVERY_S = 1.0
SECTION_BYTES_PER_S = 30_000  # a section of a large fleet is drawn less often than once a second
SEND_S = 10.0  # a write that takes longer drops the reader


class Hub:
    """Draws, and tells the readers."""

    def __init__(self, owner: OwnerView, pages: Pages, every_s: float = EVERY_S) -> None:
        self.owner, self.pages, self.every_s = owner, pages, every_s
        self.boot = secrets.token_hex(4)
        self.tick = 0
        self.drawn_ns = -1
        self.sections: dict[str, tuple[str, int]] = {}  # name: (HTML, tick of its last change)
        self.drawn_s: dict[str, float] = {}
        self.n_viewers = 0
        self.closed = False
        self.dropped_total = 0
        self._news = asyncio.Event()
        self._drawing = asyncio.Lock()
        self._task: asyncio.Task[None] | None = None

    async def draw(self) -> dict[str, str]:
        """Return all sections by name, drawn anew where the snapshot is a new one."""
        async with self._drawing:
            snapshot = self.owner.snapshot()
            if snapshot.at_ns != self.drawn_ns:
                tick, at_s = self.tick + 1, snapshot.at_ns / 1e9

                def due(name: str) -> bool:
                    html, _ = self.sections.get(name, ("", 0))
                    return at_s - self.drawn_s.get(name, 0.0) >= len(html) / SECTION_BYTES_PER_S

                # In a thread, so that the owner's own work waits for a few ms at most.
                for name, html in await asyncio.to_thread(self.pages.sections, snapshot, due):
                    self.drawn_s[name] = at_s
                    if name not in self.sections or self.sections[name][0] != html:
                        self.sections[name] = (html, tick)
                self.tick, self.drawn_ns = tick, snapshot.at_ns
        return {name: html for name, (html, _) in self.sections.items()}

    async def _run(self) -> None:
        while self.n_viewers and not self.closed:
            await self.draw()
            self._news.set()
            self._news = asyncio.Event()
            await asyncio.sleep(self.every_s)

    def close(self) -> None:
        """End all streams."""
        self.closed = True
        if self._task is not None:
            self._task.cancel()
        self._news.set()

    # ---- one reader --------------------------------------------------------------------------------------

    async def stream(
        self,
        send: Send,
        receive: Receive,
        last_id: str,
        scope_name: str,
        still: Callable[[], bool],
        squeeze: bool = False,
    ) -> None:
        """Send news until the reader goes, is too slow, or may no longer look (`still`)."""
        seen_tick, seen_s = self._seen(last_id)
        self.n_viewers += 1
        gone = asyncio.create_task(_disconnected(receive))
        try:
            write = _Writer(send, squeeze)
            await write.begin()
            await write(b"retry: 2000\n\n")
            await self.draw()
            while not gone.done():
                if self._task is None or self._task.done():
                    self._task = asyncio.create_task(self._run())
                if self.closed or not still():
                    await write(b"event: bye\ndata: {}\n\n", more=False)
                    return
                news = self._news
                if self.tick > seen_tick:
                    event, seen_s = self._event(seen_tick, seen_s, scope_name)
                    seen_tick = self.tick
                    await write(event)
                waiting = asyncio.create_task(news.wait())
                await asyncio.wait((waiting, gone), timeout=2.0 * self.every_s, return_when=asyncio.FIRST_COMPLETED)
                waiting.cancel()
        except TimeoutError:
            self.dropped_total += 1  # the server closes a connection whose answer was not finished
        finally:
            self.n_viewers -= 1
            gone.cancel()

    def _seen(self, last_id: str) -> tuple[int, int]:
        """Return the tick and the second that a reader has seen; zeros where it comes for the first time."""
        parts = last_id.split("-")
        if len(parts) == 3 and parts[0] == self.boot and all(one.isascii() and one.isdigit() for one in parts[1:]):
            tick, at_s = int(parts[1][:12]), int(parts[2][:12])
            if tick <= self.tick and at_s <= self.drawn_ns // 1_000_000_000:
                return tick, at_s
        return 0, 0

    def _event(self, seen_tick: int, seen_s: int, scope_name: str) -> tuple[bytes, int]:
        points = newer(self.owner.series(scope_name) or Series(), seen_s)
        at_s = points["at_s"][-1] if points["at_s"] else seen_s
        body = {
            "sections": {name: html for name, (html, tick) in self.sections.items() if tick > seen_tick},
            "points": points,
            "whole": seen_s == 0,
        }
        text = msgspec.json.encode(body)
        assert b"\n" not in text  # JSON escapes them, so that an event is one line
        return b"id: %s-%d-%d\ndata: %s\n\n" % (self.boot.encode(), self.tick, at_s, text), at_s


_STREAM_HEADERS = [
    (b"content-type", b"text/event-stream"),
    (b"cache-control", b"no-store"),
    (b"vary", b"accept-encoding"),
    (b"x-accel-buffering", b"no"),
]


def newer(series: Series, after_s: int) -> dict[str, Any]:
    """Return the points of a series after a second, as lists, to four digits."""
    first = next((i for i, at_s in enumerate(series.at_s) if at_s > after_s), len(series.at_s)) if after_s else 0
    first = max(first, len(series.at_s) - SERIES_S)
    columns = {name: [_short(value) for value in series.columns.get(name, [])[first:]] for name in SERIES_COLUMNS}
    return {"at_s": list(series.at_s[first:]), **columns}


def _short(value: float | None) -> float | None:
    return None if value is None else float(f"{value:.4g}")


def takes_gzip(scope: Scope) -> bool:
    """Say whether the reader takes gzip."""
    offered = (header(scope, b"accept-encoding") or "").lower().replace(" ", "").split(",")
    return "gzip" in offered


async def _disconnected(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass


class _Writer:
    """Writes a stream, squeezed where the reader takes gzip: HTML shrinks to a fifth or less."""

    def __init__(self, send: Send, squeeze: bool) -> None:
        self.send = send
        self.squeezer = zlib.compressobj(1, wbits=31) if squeeze else None  # 31: with gzip's header

    async def begin(self) -> None:
        headers = [*_STREAM_HEADERS, *([(b"content-encoding", b"gzip")] if self.squeezer else [])]
        await self.send({"type": "http.response.start", "status": 200, "headers": headers})

    async def __call__(self, body: bytes, more: bool = True) -> None:
        if self.squeezer is not None:
            body = self.squeezer.compress(body) + self.squeezer.flush(zlib.Z_SYNC_FLUSH if more else zlib.Z_FINISH)
        await asyncio.wait_for(self.send({"type": "http.response.body", "body": body, "more_body": more}), SEND_S)


class EventStream:
    """An ASGI answer that streams a hub's news."""

    def __init__(self, hub: Hub, last_id: str, scope_name: str, still: Callable[[], bool]) -> None:
        self.hub, self.last_id, self.scope_name, self.still = hub, last_id, scope_name, still

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve the stream."""
        await self.hub.stream(send, receive, self.last_id, self.scope_name, self.still, takes_gzip(scope))
