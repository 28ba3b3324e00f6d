"""The HTTP side of emulated engines: connections, requests and their answers, written as the steps give their tokens.

One `World` a process, with an `Engine` a replica; a `Door` a connection, a `Turn` a request. Starting, stopping and the
command line are `emulated_main.py`; steps are `step_loop.py`, words and dialects `rehearsal.py`. No coroutine a token.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from hashlib import blake2b
from math import ceil
from pathlib import Path
from typing import Any, TextIO, cast

import httptools
import msgspec

from baseload.adapters.engines import rehearsal
from baseload.adapters.engines.step_loop import WAITING, Job, Replica, StepTable

BODY_BYTES_MAX = 64 << 20
LATER_BYTES_MAX = 1 << 20  # of further requests that a client sends while one is answered
WAITING_MAX = 65_536
BUSY = b'{"error":{"message":"the rehearsal engine\'s queue is full","type":"overloaded_error","code":503}}'
REASONS = {200: "OK", 400: "Bad Request", 404: "Not Found", 405: "Method Not Allowed", 413: "Content Too Large",
           503: "Service Unavailable"}  # fmt: skip


class EngineIn(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """An engine of the process."""

    name: str
    table: str
    model: str = ""  # the name it answers to; any where empty
    port: int = 0


class Spec(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What the process is to be."""

    tables: dict[str, StepTable] = {}
    engines: list[EngineIn] = []
    seed: int = 0
    speedup: float = 1.0  # times faster than the tables say
    one_port: bool = False
    journal: str | None = None  # file for a line a request: id, tokens and outcome as this side saw them; no text


class Engine:
    """An engine of the process: its batch, its timer, its counters."""

    def __init__(self, wants: EngineIn, table: StepTable, world: World) -> None:
        self.name, self.model, self.world = wants.name, wants.model, world
        self.replica = Replica(table, speedup=world.spec.speedup)
        self.timer: asyncio.TimerHandle | None = None
        self.due_s = float("inf")
        self.late_s = 0.0
        self.served = self.cancelled = 0
        self.server: asyncio.Server | None = None
        self.doors: set[Door] = set()

    def kick(self) -> None:
        """Run what is due, and set the timer for what comes next."""
        now_s = time.monotonic()
        if self.due_s <= now_s:
            self.late_s = max(0.9 * self.late_s, now_s - self.due_s)
        due_s = self.replica.advance(now_s)
        if self.timer is not None:
            if due_s == self.due_s and due_s > now_s:
                return
            self.timer.cancel()
            self.timer = None
        self.due_s = float("inf") if due_s is None else due_s
        if due_s is not None:
            delay_s = ceil(1e3 * max(0.0, due_s - time.monotonic())) / 1e3
            self.timer = self.world.loop.call_later(delay_s, self._due)

    def _due(self) -> None:
        self.timer = None
        self.kick()

    def metrics(self) -> bytes:
        """Return the counters under vLLM's names."""
        replica, label = self.replica, f'{{model_name="{self.model}",engine="emulated"}}'
        rows: list[tuple[str, str, float]] = [
            ("vllm:num_requests_running", "gauge", replica.n_running),
            ("vllm:num_requests_waiting", "gauge", len(replica.waiting)),
            ("vllm:gpu_cache_usage_perc", "gauge", replica.kv_used_ratio),
            ("vllm:kv_cache_usage_perc", "gauge", replica.kv_used_ratio),
            ("vllm:prompt_tokens_total", "counter", replica.prefill_tokens + replica.cached_tokens),
            ("vllm:generation_tokens_total", "counter", replica.decode_tokens + replica.ended),
            ("vllm:prefix_cache_queries_total", "counter", replica.asked_tokens),
            ("vllm:prefix_cache_hits_total", "counter", replica.cached_tokens),
            ("vllm:num_preemptions_total", "counter", replica.preempted),
            ("vllm:request_success_total", "counter", self.served),
            ("baseload_rehearsal:busy_seconds_total", "counter", replica.busy_s),
            ("baseload_rehearsal:late_seconds", "gauge", self.late_s),
        ]
        lines = [f"# HELP {name} Of a rehearsal, no real engine.\n# TYPE {name} {kind}\n{name}{label} {value:.9g}\n"
                 for name, kind, value in rows]  # fmt: skip
        return "".join(lines).encode()


class World:
    """All engines of the process."""

    def __init__(self, spec: Spec, loop: asyncio.AbstractEventLoop) -> None:
        self.spec, self.loop = spec, loop
        self.tables = dict(spec.tables)
        self.engines: dict[str, Engine] = {}
        self.order: list[Engine] = []
        self.number = 0
        self.salt = b"%d" % spec.seed
        self.journal: TextIO | None = None
        if spec.journal is not None:
            self.journal = Path(spec.journal).open("a", buffering=1, encoding="utf-8")  # noqa: SIM115

    def slow_down(self, names: list[str], factors: list[float]) -> None:
        """Let engines take that many times longer for their next steps, by tokens; one that is gone is passed over."""
        if not factors or min(factors) < 1.0:
            raise ValueError("factors of at least 1, for a step of so many tokens each")
        for name in names:
            if name in self.engines:
                self.engines[name].replica.slow = factors

    async def start(self, wants: EngineIn) -> int:
        """Start an engine; return its port."""
        if wants.name in self.engines:
            raise ValueError(f"engine {wants.name} runs already")
        engine = Engine(wants, self.tables[wants.table], self)
        if not self.spec.one_port:
            engine.server = await self.listen(lambda: Door(self, engine), wants.port)
        self.engines[wants.name] = engine
        self.order.append(engine)
        return port_of(engine.server) if engine.server is not None else 0

    async def listen(self, factory: Callable[[], Door], port: int) -> asyncio.Server:
        """Return a server on loopback."""
        return await self.loop.create_server(factory, "127.0.0.1", port, backlog=4096)

    async def stop(self, name: str, drain_s: float) -> None:
        """End an engine: no new connections, its requests get `drain_s`, then they are cut."""
        engine = self.engines.pop(name)
        self.order.remove(engine)
        if engine.server is not None:
            engine.server.close()
        until_s = time.monotonic() + drain_s
        while time.monotonic() < until_s and (engine.replica.n_running or engine.replica.waiting):
            await asyncio.sleep(0.01)
        for door in tuple(engine.doors):
            door.transport.abort()
        if engine.timer is not None:
            engine.timer.cancel()

    def note(self, **what: Any) -> None:
        """Write a line of the journal."""
        if self.journal is not None:
            self.journal.write(msgspec.json.encode(what).decode() + "\n")


def port_of(server: asyncio.Server) -> int:
    """Return the port a server listens on."""
    return int(server.sockets[0].getsockname()[1])


class Door(asyncio.Protocol):
    """One connection of a client."""

    transport: asyncio.Transport

    def __init__(self, world: World, engine: Engine | None) -> None:
        self.world, self.home = world, engine
        self.parser: Any = httptools.HttpRequestParser(self)
        self.turn: Turn | None = None
        self.later = bytearray()
        self._fresh()

    def _fresh(self) -> None:
        self.url = b""
        self.body = bytearray()
        self.client_id = ""
        self.expects = False

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Remember the way back."""
        self.transport = cast("asyncio.Transport", transport)  # uvloop's is no subclass
        if self.home is not None:
            self.home.doors.add(self)

    def connection_lost(self, exc: Exception | None) -> None:
        """The client has gone: so has its request."""
        if self.home is not None:
            self.home.doors.discard(self)
        if self.turn is not None:
            self.turn.cancel()
            self.turn = None

    def data_received(self, data: bytes) -> None:
        """Read requests; those that come while one is answered wait."""
        if self.turn is not None:
            self.later += data
            if len(self.later) > LATER_BYTES_MAX:
                self.transport.abort()
            return
        try:
            self.parser.feed_data(data)
        except httptools.HttpParserUpgrade:
            self._refuse(400, "no upgrade here")
        except httptools.HttpParserError:
            self._refuse(400, "not HTTP")

    def on_url(self, url: bytes) -> None:
        """Note the path."""
        self.url += url

    def on_header(self, name: bytes, value: bytes) -> None:
        """Note the two headers that matter."""
        lower = name.lower()
        if lower == b"x-request-id":
            self.client_id = value.decode("latin-1")[:128]
        elif lower == b"expect":
            self.expects = True

    def on_headers_complete(self) -> None:
        """Encourage a client that asks first."""
        if self.expects:
            self.transport.write(b"HTTP/1.1 100 Continue\r\n\r\n")

    def on_body(self, body: bytes) -> None:
        """Collect the body, within a limit."""
        self.body += body
        if len(self.body) > BODY_BYTES_MAX:
            self._refuse(413, "the body is too long")

    def on_message_complete(self) -> None:
        """Answer."""
        method = self.parser.get_method()
        path = self.url.split(b"?", 1)[0].decode("latin-1")
        engine = self.home
        if engine is None and path.startswith("/replica/"):
            number, _, rest = path[9:].partition("/")
            if number.isdigit() and int(number) < len(self.world.order):
                engine, path = self.world.order[int(number)], "/" + rest
        if engine is None:
            return self._refuse(404, "no such replica")
        body = bytes(self.body)
        if method == b"GET":
            self._get(engine, path)
        elif method == b"POST" and (path in rehearsal.DIALECTS or path == "/v1/embeddings"):
            try:
                ask = rehearsal.read(path, body)
                self.turn = Turn(self, engine, path, ask)
            except rehearsal.BadRequest as problem:
                return self._refuse(400, str(problem), path)
            except KeyError:
                return self._refuse(404, "no such model here", path)
            self.turn.begin()
        else:
            self._refuse(404 if path not in ("/health", "/metrics", "/v1/models") else 405, "no such endpoint", path)

    def _get(self, engine: Engine, path: str) -> None:
        if path == "/health":
            self.send(200, b'{"status":"ok"}')
        elif path == "/metrics":
            self.send(200, engine.metrics(), b"text/plain; version=0.0.4; charset=utf-8")
        elif path == "/v1/models":
            row = {"id": engine.model or "rehearsal", "object": "model", "created": 0, "owned_by": "baseload rehearsal"}
            self.send(200, msgspec.json.encode({"object": "list", "data": [row]}))
        else:
            self._refuse(404, "no such endpoint")

    def _refuse(self, status: int, why: str, path: str = "") -> None:
        error = {"message": why, "type": "invalid_request_error"}
        whole = {"type": "error", "error": error} if path == "/v1/messages" else {"error": error | {"code": status}}
        self.send(status, msgspec.json.encode(whole))
        if status == 413 or why == "not HTTP":
            self.transport.close()

    def head(self, status: int, content_type: bytes, length: int | None) -> bytes:
        """Return status line and headers; a length of None means chunks."""
        size = b"transfer-encoding: chunked" if length is None else b"content-length: %d" % length
        name = f"x-request-id: {self.client_id}\r\n".encode("latin-1") if self.client_id else b""
        return (
            b"HTTP/1.1 %d %b\r\ncontent-type: %b\r\n%b\r\n%bx-baseload-engine: emulated\r\n\r\n"
        ) % (status, REASONS.get(status, "").encode(), content_type, size, name)  # fmt: skip

    def send(self, status: int, body: bytes, content_type: bytes = b"application/json") -> None:
        """Write a whole answer, and go on with the next request."""
        self.transport.write(self.head(status, content_type, len(body)) + body)
        self.next()

    def next(self) -> None:
        """Be ready for another request on the connection."""
        self.turn = None
        keep = self.parser.should_keep_alive()
        self._fresh()
        if not keep:
            self.transport.close()
        elif self.later:
            data, self.later = bytes(self.later), bytearray()
            self.world.loop.call_soon(self.data_received, data)


class Turn:
    """One request in the engine, and how its answer is written."""

    def __init__(self, door: Door, engine: Engine, path: str, ask: rehearsal.Ask) -> None:
        if engine.model and ask.model and ask.model != engine.model:
            raise KeyError(ask.model)
        world, table = engine.world, engine.replica.table
        world.number += 1
        self.door, self.engine, self.path, self.ask = door, engine, path, ask
        text = ask.text.encode("utf-8", "replace")
        dice = int.from_bytes(blake2b(text, digest_size=7, key=world.salt).digest(), "big") / 2**56
        n = 1 if path == "/v1/embeddings" else 0
        n = n or rehearsal.answer_tokens(dice, table.mean_answer_tokens, ask.max_tokens, exact=ask.exact)
        n = max(1, min(n, table.max_context - ask.input_tokens))
        hashes = rehearsal.prefix_hashes(ask.text, ask.input_tokens, table.block_tokens) if table.caching else []
        self.job = Job(max(1, ask.input_tokens), n, hashes, self._token if ask.stream else None, self._end)
        if not engine.replica.fits(self.job):
            raise rehearsal.BadRequest(f"prompt and answer are longer than the context of {table.max_context} tokens")
        self.full = n == ask.max_tokens
        self.given = 0
        kind = rehearsal.DIALECTS.get(path)
        self.dialect = None if kind is None else kind(ask, world.number, int(time.time()), ask.model or engine.model)
        self.chunk = b""

    def begin(self) -> None:
        """Queue it."""
        if len(self.engine.replica.waiting) >= WAITING_MAX:
            self.door.send(503, BUSY)
            return
        self.engine.replica.submit(self.job, time.monotonic())
        self.engine.kick()

    def _token(self) -> None:
        self.given += 1
        if self.chunk:
            self.door.transport.write(self.chunk)
            return
        assert self.dialect is not None
        event = self.dialect.token()
        if self.given > 1:
            self.door.transport.write(b"%x\r\n%b\r\n" % (len(event), event))
            return
        if self.dialect.tokens_alike:
            self.chunk = b"%x\r\n%b\r\n" % (len(event), event)
        first = self.dialect.opening() + event
        head = self.door.head(200, b"text/event-stream; charset=utf-8", None)
        self.door.transport.write(head + b"%x\r\n%b\r\n" % (len(first), first))

    def _end(self) -> None:
        job, ask, door = self.job, self.ask, self.door
        self.engine.served += 1
        n = job.output_tokens
        if self.dialect is None:
            answer = rehearsal.embeddings(ask, ask.model or self.engine.model)
            self._note(0, "ok")
            return door.send(200, answer)
        self._note(n, "ok")
        if not ask.stream:
            return door.send(200, self.dialect.whole(n, job.cached_tokens, full=self.full))
        closing = self.dialect.closing(n, job.cached_tokens, full=self.full)
        door.transport.write(b"%x\r\n%b\r\n0\r\n\r\n" % (len(closing), closing))
        door.next()

    def cancel(self) -> None:
        """The client has gone."""
        self.engine.cancelled += 1
        waited = self.job.state == WAITING
        self.engine.replica.cancel(self.job)
        self._note(self.given, "cancelled while waiting" if waited else "cancelled")
        self.engine.kick()

    def _note(self, n_tokens: int, outcome: str) -> None:
        if self.engine.world.journal is not None:
            self.engine.world.note(
                id=self.door.client_id, engine=self.engine.name, path=self.path, stream=self.ask.stream,
                input_tokens=self.ask.input_tokens, cached_tokens=self.job.cached_tokens, output_tokens=n_tokens,
                outcome=outcome,
            )  # fmt: skip
