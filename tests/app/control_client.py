"""A running control listener for tests, and a client that sends exactly the bytes it is told to."""

from __future__ import annotations

import asyncio
import http.client
import json
import socket
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any, NamedTuple

from baseload.app.web.control import Control, make_app
from baseload.app.web.server import ControlServer, bound_socket
from tests.app.fake_owner import FakeOwner


class Answer(NamedTuple):
    """What came back."""

    status: int
    headers: dict[str, str]
    body: bytes

    @property
    def json(self) -> Any:
        """Return the body as data."""
        return json.loads(self.body)


class Listener(NamedTuple):
    """A control listener in a thread of its own."""

    owner: FakeOwner
    port: int
    control: Control
    clock: list[float]  # seconds to add to the monotonic clock

    @property
    def host(self) -> str:
        """Return the Host header that it takes."""
        return f"127.0.0.1:{self.port}"

    @property
    def origin(self) -> str:
        """Return its own origin."""
        return f"http://{self.host}"

    def ask(
        self,
        method: str,
        path: str,
        body: bytes | None = None,
        token: str = "",
        headers: Mapping[str, str] | None = None,
    ) -> Answer:
        """Send a request, return the answer."""
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=10)
        sent = {"Authorization": f"Bearer {token}"} if token else {}
        connection.request(method, path, body, {**sent, **(headers or {})})
        answer = connection.getresponse()
        got = Answer(answer.status, {key.lower(): value for key, value in answer.getheaders()}, answer.read())
        connection.close()
        return got

    def send_json(self, method: str, path: str, value: Any, token: str) -> Answer:
        """Send JSON."""
        return self.ask(method, path, json.dumps(value).encode(), token, {"Content-Type": "application/json"})

    def log_in(self, token: str) -> Answer:
        """Send the form, as a browser does."""
        form = {"Content-Type": "application/x-www-form-urlencoded", "Origin": self.origin}
        return self.ask("POST", "/login", f"token={token}".encode(), headers=form)

    def raw(self, sent: bytes, wait_s: float = 5.0, enough: Callable[[bytes], bool] = lambda got: False) -> bytes:
        """Send bytes, return all that comes until the other side closes, it is `enough`, or `wait_s` are over."""
        with socket.create_connection(("127.0.0.1", self.port), timeout=wait_s) as sock:
            got, until_s = b"", time.monotonic() + wait_s
            try:
                sock.sendall(sent)
                while not enough(got) and (chunk := sock.recv(65536)):
                    got += chunk
                    sock.settimeout(max(0.001, until_s - time.monotonic()))
            except (TimeoutError, ConnectionError):
                pass
            return got


@contextmanager
def listening(owner: FakeOwner | None = None, **options: Any) -> Iterator[Listener]:
    """Run a control listener on a free port of loopback until the block ends."""
    owner = owner or FakeOwner()
    sock = bound_socket("127.0.0.1", 0)
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 8192)  # small, so that a slow reader shows soon
    port = sock.getsockname()[1]
    shift = [0.0]
    hosts = [f"127.0.0.1:{port}", f"localhost:{port}"]
    app = make_app(owner, allowed_hosts=hosts, clock=lambda: time.monotonic() + shift[0], **options)
    loop = asyncio.new_event_loop()
    server = ControlServer(app, sock)
    thread = threading.Thread(target=loop.run_forever)
    thread.start()
    try:
        asyncio.run_coroutine_threadsafe(server.start(), loop).result(10)
        yield Listener(owner, port, app.state.control, shift)
    finally:
        asyncio.run_coroutine_threadsafe(server.stop(), loop).result(10)
        asyncio.run_coroutine_threadsafe(loop.shutdown_default_executor(), loop).result(10)
        loop.call_soon_threadsafe(loop.stop)
        thread.join(10)
        loop.close()
