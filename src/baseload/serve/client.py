"""A client's connection: HTTP byte by byte, one request at a time in the order in which they came.

Framing that two servers could read differently is refused; everything has a limit of time and size; backpressure goes both
ways; a client that only ended its side still gets its answer. Only the raw path decides what is asked for. What requests
share is `gateway.py`, a request's own life `relay.py`.
"""

from __future__ import annotations

import asyncio
import socket
import time
from collections import deque
from typing import TYPE_CHECKING, Any, Final

import httptools

from baseload.records import REASON_LOST
from baseload.serve import body as bodies
from baseload.serve import lookups, reply
from baseload.serve.bearers import Refusal, digest_of
from baseload.serve.body import BodyError, peek
from baseload.serve.inbound import (
    BAD,
    DRAINING,
    LARGE,
    LONG_HEAD,
    NO_KEY,
    NOT_SO,
    NOWHERE,
    SLOW,
    HeadShape,
    Inbound,
    Pending,
    Refused,
    as_problem,
    head_shape,
)
from baseload.serve.relay import Relay
from baseload.serve.reply import Problem
from baseload.serve.turn import Outgoing
from baseload.serve.wire import KeyView

if TYPE_CHECKING:
    from baseload.serve.gateway import Gateway

monotonic: Final = time.monotonic  # a name of our own is found at once where this is compiled

HEADERS_MAX: Final = 100
UNLIKE_MAX: Final = 8  # a client whose heads are never alike is read letter by letter
STRANGER_BYTES: Final = 65_536  # of a body that may be read before it is known whose key it comes with
QUEUE_MAX: Final = 16  # requests of one connection that are read ahead
HIGH_WATER_BYTES: Final = 262_144  # of an answer that its client does not read: then the engine is not read either
HALF_CLOSED_S: Final = (
    1.0  # a client that ended its side gets what comes so soon; a longer silence means that it is gone
)
NEVER_S: Final = float("inf")
_PASSED_ON: Final = frozenset(
    (b"accept", b"traceparent", b"tracestate", b"anthropic-version", b"anthropic-beta", b"openai-beta", b"user-agent")
)
_ROUTES_GET = (b"/v1/models", b"/health")
_ALLOW: Final = b"allow: %b\r\n"
_OK: Final = b"HTTP/1.1 200 OK\r\n"


class Client(Outgoing):
    """One connection of a client."""

    __slots__ = (
        "_cut", "_full", "_head_bytes", "_in_head", "_known", "_line_bytes", "_n_headers", "_parser", "_queue", "_read",
        "_reading", "_shape", "_unlike", "_unsent", "chunked", "closing", "current", "due_s", "gateway", "half_s", "heard",
        "relay", "settling",
    )  # fmt: skip

    def __init__(self, gateway: Gateway) -> None:
        super().__init__(gateway.turn)
        self.gateway = gateway
        self._cut = False
        self.relay: Relay | Pending | None = None
        self.settling: deque[Relay] = deque()  # told to the end, and not yet wholly taken by the socket
        self.current: Inbound | None = None  # being read
        self._queue: deque[Inbound] = deque()
        self._parser: Any = None
        self._in_head = True
        self._shape: HeadShape | None = None  # of the last request's head, and what it said
        self._known: Inbound | None = None
        self._read: Inbound | None = None  # the request that was read last
        self._unlike = 0  # heads that were not like the one before
        self._head_bytes = self._line_bytes = self._n_headers = 0
        self._reading = True
        self._full = False  # of answers that the client does not read
        self._unsent = 0  # bytes of them, when last looked
        self.closing = False
        self.chunked = True
        self.due_s = self.half_s = NEVER_S
        self.heard = 0  # bytes of the answer when the client ended its side

    # ---- asyncio -----------------------------------------------------------------------------------------------------

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Begin to read, if there is room for one more."""
        self.transport = transport
        gateway = self.gateway
        if len(gateway.clients) >= gateway.limits.connections:
            transport.abort()  # type: ignore[attr-defined]
            return
        sock = transport.get_extra_info("socket")
        if sock is not None:
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        transport.set_write_buffer_limits(HIGH_WATER_BYTES)  # type: ignore[attr-defined]
        gateway.clients.add(self)
        gateway.count("connections")
        self._parser = httptools.HttpRequestParser(self)
        self.due_s = monotonic() + gateway.limits.header_s

    def connection_lost(self, exc: Exception | None) -> None:
        """The client is gone, and so is what it asked for and its socket had not taken."""
        self.gateway.clients.discard(self)
        closed = exc is None and not self._cut and self.transport is not None
        try:
            if closed and self.settling and not self.transport.get_write_buffer_size():
                self.pushed()  # it was closed behind all that was written
        finally:
            self._gone()

    def _gone(self) -> None:
        self.transport, self.closing = None, True
        self.forget()
        self._queue.clear()
        settling, self.settling = self.settling, deque()
        for relay in settling:
            relay.gone()
        relay_now, self.relay = self.relay, None
        if relay_now is not None:
            relay_now.gone()

    def eof_received(self) -> bool:
        """The client has said all it will: it still gets its answers."""
        self.push()
        self.pushed()
        if self.relay is None and not self._queue:
            return False
        self.closing = True
        self.half_s = monotonic() + HALF_CLOSED_S
        return True

    def pause_writing(self) -> None:
        """The client reads slowly: so do we."""
        self._full = True
        if self.relay is not None:
            self.relay.pause(True)
        else:
            self._hold()

    def _hold(self) -> None:
        """Begin nothing more for a client that reads nothing."""
        self.due_s = monotonic() + self.gateway.limits.token_s
        if self._reading:
            self._reading = False
            self.transport.pause_reading()

    def resume_writing(self) -> None:
        """The client reads again."""
        self._full = False
        if self.relay is not None:
            self.relay.pause(False)
        elif not self._reading:
            self._next()

    def data_received(self, data: bytes) -> None:
        """Bytes of requests."""
        if self.closing:
            return
        fresh = self._head_bytes == 0 and self.current is None and self.relay is None and not self._queue
        if fresh and self._shape is not None and self._as_before(self._shape, data):
            return
        if self._in_head:
            self._head_bytes += len(data)
        before = self._read
        try:
            self._parser.feed_data(data)
        except httptools.HttpParserUpgrade:  # it was answered as an ordinary request; what follows is none of ours
            self.closing = True
            if self.relay is None and not self._queue and self.transport is not None:
                self._close()
            return
        except httptools.HttpParserError as error:
            context = error.__context__
            last = self._read if self.current is None else None
            if last is not None and last.close and not isinstance(context, Refused):
                return  # what stands behind a request that said it is the last is nobody's (RFC 9112, 9.6)
            self._refuse_bytes(context.problem if isinstance(context, Refused) else BAD)
            return
        if self._in_head and self._head_bytes > self.gateway.limits.header_bytes:
            self._refuse_bytes(LONG_HEAD)
        elif fresh and self._read is not before and self.current is None and self._unlike < UNLIKE_MAX:
            self._remember(data, self._read)

    def _remember(self, data: bytes, request: Inbound | None) -> None:
        """Keep the head of a request that came in one piece: the next one's is most likely the same."""
        assert request is not None
        self._unlike += 1
        self._shape = head_shape(data, request.length) if request.plain() else None
        if self._shape is not None:  # it was alone in what came, so it is no longer needed whole
            self._known, request.body = request, []

    def _as_before(self, shape: HeadShape, data: bytes) -> bool:
        """Take a whole request whose head is known, without reading it again."""
        at = shape.body_at(data)
        limits = self.gateway.limits
        if at < 0 or at > limits.header_bytes or len(data) - at > limits.body_bytes:
            return False
        request = self._known
        assert request is not None
        self._unlike = 0
        self.due_s = NEVER_S
        request.body = [data[at:]]
        self._answer_to(request)
        request.body = []
        return True

    # ---- httptools ---------------------------------------------------------------------------------------------------

    def on_message_begin(self) -> None:
        """A request begins."""
        self.current = Inbound()
        self._n_headers = self._line_bytes = 0
        self.due_s = monotonic() + self.gateway.limits.header_s

    def on_url(self, url: bytes) -> None:
        """Part of the request's target."""
        request = self.current
        assert request is not None
        request.path += url
        self._line_bytes += len(url)
        if self._line_bytes > self.gateway.limits.header_bytes:
            raise Refused(LONG_HEAD)

    def on_header(self, name: bytes, value: bytes) -> None:
        """Take note of what matters."""
        request = self.current
        assert request is not None
        self._n_headers += 1
        self._line_bytes += len(name) + len(value) + 4
        if self._n_headers > HEADERS_MAX or self._line_bytes > self.gateway.limits.header_bytes:
            raise Refused(LONG_HEAD)
        if not self._in_head:
            return  # trailers mean nothing
        low = name.lower()
        if low == b"authorization":
            scheme, _, secret = value.partition(b" ")
            if scheme.lower() == b"bearer":
                request.bearer = secret.strip()
        elif low == b"x-api-key":
            request.bearer = request.bearer or value.strip()
        elif low == b"content-length":
            if request.length >= 0 or not value.isdigit() or len(value) > 18:
                raise Refused(BAD)
            request.length = int(value)
        elif low == b"transfer-encoding":
            if request.te or value.lower() != b"chunked":
                raise Refused(BAD)
            request.te = True
        elif low == b"expect":
            request.expects = True
            if value.lower() != b"100-continue":
                request.refused = Problem(417, "expectation_failed", "only 100-continue can be expected")
        elif low == b"host":
            request.hosts += 1
        elif low == b"content-encoding":
            request.encoding = value.lower()
        elif low == b"x-request-id":
            if len(value) <= 128 and value.isascii() and all(32 < c < 127 for c in value):
                request.id = value
        elif low in _PASSED_ON and len(value) <= 512 and value.isascii() and b"\r" not in value and b"\n" not in value:
            if low != b"user-agent":
                request.extra += low + b": " + value + b"\r\n"

    def on_headers_complete(self) -> None:
        """Judge the head before any of the body is read."""
        request, limits = self.current, self.gateway.limits
        assert request is not None
        self._in_head = False
        request.method = self._parser.get_method()
        request.old = self._parser.get_http_version() != "1.1"
        request.close = not self._parser.should_keep_alive()
        if self._parser.get_http_version() not in ("1.1", "1.0"):
            raise Refused(BAD)
        if request.te and (request.length >= 0 or request.old):
            raise Refused(BAD)
        if request.hosts > 1 or (request.hosts == 0 and not request.old):
            raise Refused(BAD)
        if request.length > limits.body_bytes:
            raise Refused(LARGE)
        self.due_s = monotonic() + limits.body_s
        if request.te or request.length > STRANGER_BYTES:  # who sends so much is asked for a key before it has come
            if not request.bearer:
                raise Refused(NO_KEY)
            at_once = [True]
            self.gateway.purse.who(request.bearer, lambda found: self._judged(request, found, at_once))
            at_once.clear()
            if request.refused is not None:
                raise Refused(request.refused)
        if request.expects and request.refused is None and self.relay is None and not self._queue:
            self.write(b"HTTP/1.1 100 Continue\r\n\r\n")

    def _judged(self, request: Inbound, found: KeyView | Refusal, at_once: list[bool]) -> None:
        """Read no more of a large body whose sender has no key."""
        if isinstance(found, Refusal) and self.current is request and not self.closing:
            if at_once:  # within the parser, which ends by itself
                request.refused = as_problem(found)
            else:
                self._refuse_bytes(as_problem(found))

    def on_body(self, data: bytes) -> None:
        """A piece of the body."""
        request = self.current
        assert request is not None
        request.size += len(data)
        if request.size > self.gateway.limits.body_bytes:
            raise Refused(LARGE)
        request.body.append(data)

    def on_message_complete(self) -> None:
        """A request is whole: it is next, or it waits its turn."""
        request, self.current = self.current, None
        assert request is not None
        self._read = request
        self._in_head, self._head_bytes = True, 0
        self.due_s = NEVER_S
        if self.relay is None and not (self._queue or self._full):
            self._answer_to(request)
        elif len(self._queue) < QUEUE_MAX:
            self._queue.append(request)
            if self._reading:
                self._reading = False
                self.transport.pause_reading()
        else:
            raise Refused(BAD)

    # ---- requests ----------------------------------------------------------------------------------------------------

    def _refuse_bytes(self, problem: Problem) -> None:
        """Answer what is no request, after those that were, and close: nobody knows where the next one would begin."""
        self.closing = True
        self.due_s = monotonic() + 1.0
        if self.transport is None:
            return
        if self.relay is None and not self._queue:
            self.write(reply.whole(problem, bodies.CHAT, close=True))
            self._close()
        else:
            bad = Inbound()
            bad.refused, bad.close = problem, True
            self._queue.append(bad)

    def _answer_to(self, request: Inbound) -> None:
        """Route one request; only the raw path decides."""
        self.chunked = not request.old
        if request.close:
            self.closing = True
        if request.refused is not None:
            self.closing = True
            self.say(request.refused, bodies.CHAT)
            return
        path = request.path.partition(b"?")[0]
        endpoint = bodies.ENDPOINTS.get(path)
        if endpoint is not None:
            if request.method != b"POST":
                self.say(NOT_SO, endpoint, lines=_ALLOW % b"POST")
                return
            self._post(request, endpoint)
        elif request.method not in (b"GET", b"HEAD"):
            known = path in _ROUTES_GET or path.startswith((b"/v1/models/", b"/v1/receipts/"))
            self.say(NOT_SO if known else NOWHERE, bodies.CHAT, lines=_ALLOW % b"GET" if known else b"")
        else:
            lookups.get(self, request, path)

    def _post(self, request: Inbound, endpoint: int) -> None:
        gateway = self.gateway
        if not request.bearer:
            self.say(NO_KEY, endpoint)
            return
        if gateway.draining:
            self.closing = True
            self.say(DRAINING, endpoint)
            return
        if request.encoding not in (b"", b"identity"):
            self.say(Problem(415, "unsupported_encoding", "send the body without content-encoding"), endpoint)
            return
        body = request.body[0] if len(request.body) == 1 else b"".join(request.body)
        try:
            seen = peek(endpoint, body)
        except BodyError as error:
            self._known_only(request, endpoint, Problem(error.status, error.code, error.message, error.param))
            return
        model_i = gateway.models.get(seen.model)
        if model_i is None:
            self._known_only(request, endpoint, gateway.no_such_model(seen.model))
            return
        gateway.count("decided")
        relay = Relay(gateway, self, endpoint, body, seen, request.extra, request.id)
        self.relay = relay
        if not request.digest:
            request.digest = digest_of(request.bearer)
        relay.open(request.bearer, model_i, request.digest)

    def _known_only(self, request: Inbound, endpoint: int, problem: Problem) -> None:
        """Say what is wrong to who has a key; to anybody else, that they have none."""
        stand_in = Pending()
        self.relay = stand_in

        def then(found: KeyView | Refusal) -> None:
            if self.relay is not stand_in:
                return
            told = as_problem(found) if isinstance(found, Refusal) else problem
            self.relay = None
            self.say(told, endpoint)

        self.gateway.purse.who(request.bearer, then)

    # ---- answers -----------------------------------------------------------------------------------------------------

    def say(self, problem: Problem, endpoint: int, *, lines: bytes = b"") -> None:
        """Answer with an error of the gateway's own, outside any relay."""
        if self.transport is not None:
            self.write(reply.whole(problem, endpoint, close=self.closing, lines=lines))
        self._next()

    def tell(self, status: int, body: bytes, head_only: bool = False) -> None:
        """Answer with JSON of the gateway's own."""
        if self.transport is not None:
            head = reply.head(status, b"", len(body), close=self.closing)
            self.write(head if head_only else head + body)
        self._next()

    def answer(self, relay: Relay, problem: Problem) -> None:
        """A relay ends with an error of ours."""
        if self.relay is not relay:
            return
        if self.transport is not None:
            self.write(reply.whole(problem, relay.endpoint, close=self.closing, lines=relay.lines()))
        self.relay = None
        self._next()

    def pass_on(
        self, relay: Relay, status: int, content_type: bytes, body: bytes, retry_after: bytes, *, done: bool = True
    ) -> None:
        """A relay ends with what the engine said."""
        if self.relay is relay and self.transport is not None:
            lines = relay.lines()
            if retry_after and len(retry_after) < 40 and retry_after.isascii():
                lines += b"retry-after: " + retry_after + b"\r\n"
            kind = content_type if content_type and len(content_type) < 200 else b"application/json"
            self.write(
                b"%bcontent-type: %b\r\ncontent-length: %d\r\n%b%b\r\n%b"
                % (
                    _OK if status == 200 else b"HTTP/1.1 %d %b\r\n" % (status, reply.phrase(status).encode()), kind,
                    len(body), lines, b"connection: close\r\n" if self.closing else b"", body,
                )
            )  # fmt: skip
        if done:
            self.done(relay)

    def done(self, relay: Relay, *, close: bool = False) -> None:
        """A relay has said all: the next request may have its turn."""
        if close:
            self.closing = True
            if not self.chunked:
                self._queue.clear()  # this answer ends where the connection does
        if self.relay is relay:
            self.relay = None
            self._next()

    def deliver(self, relay: Relay) -> None:
        """Settle a finished stream as soon as the socket has taken it, a whole answer once it was handed to it."""
        self.settling.append(relay)
        if not self.n_out:
            self.turn.add(self)

    def pushed(self) -> None:
        """Settle what is out now."""
        if self.settling and self.transport is not None and not self.n_out:
            taken = not self.transport.get_write_buffer_size()
            while self.settling and (taken or self.settling[0].row is not None):
                self.settling.popleft().delivered()
            if self.settling:
                return
            if self.relay is None and self.current is None and not self.closing:
                self.due_s = monotonic() + self.gateway.limits.idle_s

    def _close(self) -> None:
        """Close behind what was written."""
        self.push()
        self.pushed()
        if self.transport is not None:
            self.transport.close()

    def _next(self) -> None:
        """Take the next request that was read ahead, or read on, or close."""
        if self.transport is None:
            return
        if self._full and (self._queue or not self.closing):
            self._hold()
            return
        if self._queue:
            request = self._queue.popleft()
            self._answer_to(request)
            return
        if self.closing:
            self.due_s = monotonic() + self.gateway.limits.token_s  # which it has to take the rest
            self._close()
            return
        limits = self.gateway.limits
        self.due_s = monotonic() + (limits.token_s if self.settling else limits.idle_s)
        if not self._reading:
            self._reading = True
            self.transport.resume_reading()

    # ---- time --------------------------------------------------------------------------------------------------------

    def relay_due_s(self) -> float:
        """Return when the running relay has to be looked at."""
        relay = self.relay
        assert relay is not None
        return relay.due_s if relay.due_s < relay.deadline_s else relay.deadline_s

    def late(self, now_s: float) -> None:
        """Some time limit has passed."""
        if self.settling:
            self.pushed()
        if now_s >= self.half_s:
            self._still_there(now_s)
        if self.relay is not None:
            if now_s >= self.relay_due_s():
                self.relay.late(now_s)
            return
        if now_s < self.due_s or self.transport is None:
            return
        unsent = self.unsent()
        if unsent:  # it takes the last of its answers, or nothing any more
            if unsent == self._unsent:
                self.abort()
            self._unsent, self.due_s = unsent, now_s + self.gateway.limits.token_s
            return
        self.due_s = NEVER_S
        if self.current is not None:
            self.closing = True
            self.write(reply.whole(SLOW, bodies.CHAT, close=True))
        self._close()

    def _still_there(self, now_s: float) -> None:
        """Let go of a client that ended its side, unless it has taken something since: then it only ended its side."""
        told = self.relay.told_bytes if isinstance(self.relay, Relay) else 0
        if told == self.heard:
            self.abort()
        self.heard, self.half_s = told, now_s + HALF_CLOSED_S

    def too_slow(self) -> None:
        """The client takes nothing of its answer: let it go."""
        self.abort()

    def abort(self) -> None:
        """Let go of the client; what its socket has not taken is not sent any more."""
        self._cut = True
        if self.transport is not None:
            self.transport.abort()

    def stop(self, problem: Problem) -> None:
        """Drain: end what runs, or close where nothing does."""
        if self.relay is not None:
            self.closing = True
            self.relay.stop(problem, REASON_LOST)
        elif self.transport is not None and not self.settling:
            self._close()

    def close_if_idle(self) -> None:
        """Drain: close where nothing runs; what runs ends with its answer."""
        self.closing = True
        if self.relay is None and not self._queue and self.transport is not None and self.current is None:
            self._close()
