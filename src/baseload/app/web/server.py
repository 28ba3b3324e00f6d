"""The control listener's server: uvicorn inside the owner's loop, with limits of time and size, and without its habits.

uvicorn alone takes the process's signals, trusts proxy headers from loopback, logs every request line, and waits for ever for
who sends headers slowly, sends on behind an answer, or reads none of it. None of that here. Where all places are taken, who has
waited longest without a request makes room, so that a crowd of strangers keeps nobody out.
"""

from __future__ import annotations

import asyncio
import contextlib
import socket
import ssl
from collections.abc import Iterator
from typing import Any

import h11
import uvicorn
from starlette.applications import Starlette
from uvicorn.protocols.http.h11_impl import H11Protocol

from baseload.app.web.sockets import bound_socket, tls_of

CONNECTIONS_MAX = 256
HEADER_S = 10.0
HEADER_BYTES_MAX = 32_768
KEEP_ALIVE_S = 30
REST_S = 2.0  # that a body may take which nobody reads any more
SEND_S = 10.0  # that a reader may take for nothing of what waits for it
LOOK_S = 1.0


class PatientProtocol(H11Protocol):
    """HTTP/1.1 that waits so long for a request's headers, for the rest of its body and for its reader, and no longer."""

    header_s, rest_s, send_s, most = HEADER_S, REST_S, SEND_S, CONNECTIONS_MAX
    _late: asyncio.TimerHandle | None = None
    _rest: asyncio.TimerHandle | None = None
    _unsent = 0
    _since_s = _begun_s = 0.0

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Begin to wait, in the place of who waited longest where all are taken."""
        super().connection_made(transport)
        self._begun_s = self.loop.time()
        others: Any = self.connections
        if len(others) > self.most:
            idle = [one for one in others if one.conn.their_state is h11.IDLE and not one.transport.is_closing()]
            min(idle, key=lambda one: one._begun_s).transport.abort()  # it may be this one
        self._late = self.loop.call_later(self.header_s, self._too_late)

    def data_received(self, data: bytes) -> None:
        """Take bytes; the first of a request begin the wait, the end of its headers ends it."""
        if self._late is None and self.conn.their_state is h11.IDLE:
            self._late = self.loop.call_later(self.header_s, self._too_late)
        super().data_received(data)
        if self._late is not None and self.conn.their_state is not h11.IDLE:
            self._late.cancel()
            self._late = None

    def connection_lost(self, exc: Exception | None) -> None:
        """End the wait."""
        if self._late is not None:
            self._late.cancel()
            self._late = None
        if self._rest is not None:
            self._rest.cancel()
        super().connection_lost(exc)

    def on_response_complete(self) -> None:
        """Let go of who still sends what was answered already."""
        super().on_response_complete()
        if self.conn.their_state is h11.SEND_BODY and not self.transport.is_closing():
            self._rest = self.loop.call_later(self.rest_s, self._no_rest)

    def _no_rest(self) -> None:
        if self.conn.their_state is h11.SEND_BODY and self.cycle.response_complete:
            self.transport.close()

    def look(self, now_s: float) -> None:
        """Let go of who takes nothing of what waits for it, be it closed already."""
        unsent = self.transport.get_write_buffer_size()
        if unsent == 0 or unsent != self._unsent:
            self._unsent, self._since_s = unsent, now_s
        elif now_s - self._since_s >= self.send_s:
            self.transport.abort()

    def _too_late(self) -> None:
        self._late = None
        if self.conn.their_state is h11.IDLE and not self.transport.is_closing():
            self.transport.close()


class ControlServer(uvicorn.Server):
    """`await start()`, then `await stop()`; signals stay with the owner."""

    def __init__(self, app: Starlette, sock: socket.socket, tls: ssl.SSLContext | None = None) -> None:
        config = uvicorn.Config(
            app, http=PatientProtocol, ws="none", lifespan="off", loop="none", access_log=False, log_config=None,
            proxy_headers=False, server_header=False, limit_concurrency=2 * CONNECTIONS_MAX, backlog=128,
            timeout_keep_alive=KEEP_ALIVE_S, timeout_graceful_shutdown=3, h11_max_incomplete_event_size=HEADER_BYTES_MAX,
        )  # fmt: skip
        config.load()
        config.ssl = tls
        super().__init__(config)
        self.sock = sock
        self.app = app
        self._task: asyncio.Task[None] | None = None
        self._ending = asyncio.Event()

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        """Leave them alone."""
        yield

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """Listen, as uvicorn does, but wait no longer for a TLS handshake than for headers."""
        await self.lifespan.startup()

        def made() -> PatientProtocol:
            return PatientProtocol(self.config, self.server_state, self.lifespan.state)

        server = await asyncio.get_running_loop().create_server(
            made, sock=self.sock, ssl=self.config.ssl, backlog=self.config.backlog,
            ssl_handshake_timeout=PatientProtocol.header_s if self.config.ssl else None,
        )  # fmt: skip
        self.servers, self.started = [server], True

    async def start(self) -> None:
        """Listen; returns once connections are taken. Raises what kept it from it."""
        self._task = asyncio.create_task(self.serve(sockets=[self.sock]))
        while not self.started:
            if self._task.done():
                self._task.result()
                raise OSError("the control listener did not start")
            await asyncio.sleep(0.01)

    async def main_loop(self) -> None:
        """Tell the time and look at each connection, once a second; uvicorn would wake ten times as often for it."""
        while not await self.on_tick(0):
            for connection in list(self.server_state.connections):
                if isinstance(connection, PatientProtocol):
                    connection.look(asyncio.get_running_loop().time())
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._ending.wait(), LOOK_S)

    async def stop(self) -> None:
        """End all streams, let short requests finish, close."""
        control: Any = self.app.state.control
        control.close()
        self.should_exit = True
        self._ending.set()
        if self._task is not None:
            await self._task


__all__ = ["ControlServer", "PatientProtocol", "bound_socket", "tls_of"]
