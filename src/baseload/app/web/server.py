"""The control listener's server: uvicorn inside the owner's loop, with limits of time and size, and without its habits.

uvicorn alone takes the process's signals, trusts proxy headers from loopback, logs every request line, and waits for a
slow sender of headers for ever. None of that here.
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


class PatientProtocol(H11Protocol):
    """HTTP/1.1 that waits HEADER_S for a request's headers, and no longer."""

    header_s = HEADER_S
    _late: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Begin to wait."""
        super().connection_made(transport)
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
        super().connection_lost(exc)

    def _too_late(self) -> None:
        self._late = None
        if self.conn.their_state is h11.IDLE and not self.transport.is_closing():
            self.transport.close()


class ControlServer(uvicorn.Server):
    """`await start()`, then `await stop()`; signals stay with the owner."""

    def __init__(self, app: Starlette, sock: socket.socket, tls: ssl.SSLContext | None = None) -> None:
        config = uvicorn.Config(
            app, http=PatientProtocol, ws="none", lifespan="off", loop="none", access_log=False, log_config=None,
            proxy_headers=False, server_header=False, limit_concurrency=CONNECTIONS_MAX, backlog=128,
            timeout_keep_alive=KEEP_ALIVE_S, timeout_graceful_shutdown=3, h11_max_incomplete_event_size=HEADER_BYTES_MAX,
        )  # fmt: skip
        config.load()
        config.ssl = tls
        super().__init__(config)
        self.sock = sock
        self.app = app
        self._task: asyncio.Task[None] | None = None

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        """Leave them alone."""
        yield

    async def start(self) -> None:
        """Listen; returns once connections are taken. Raises what kept it from it."""
        self._task = asyncio.create_task(self.serve(sockets=[self.sock]))
        while not self.started:
            if self._task.done():
                self._task.result()
                raise OSError("the control listener did not start")
            await asyncio.sleep(0.01)

    async def stop(self) -> None:
        """End all streams, let short requests finish, close."""
        control: Any = self.app.state.control
        control.close()
        self.should_exit = True
        if self._task is not None:
            await self._task


__all__ = ["ControlServer", "PatientProtocol", "bound_socket", "tls_of"]
