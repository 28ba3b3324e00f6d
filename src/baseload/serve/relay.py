"""One request's life: opened by the purse, sent where the door says, passed on as it comes, settled exactly once.

Callbacks, no coroutine. Before the first byte reached the client a failure is tried elsewhere, under the same law and within
the retry budget; after it a cut, stalled or garbled answer ends in an error event and never in a word that says it is
whole. Delivered is what the client's socket has taken: a piece counts once the write buffer behind it is empty.
The connection to the client is `gateway.py`, to the engine `upstream.py`, money `purse.py`, decisions `door.py`.
"""

from __future__ import annotations

import time
from asyncio import get_running_loop
from typing import TYPE_CHECKING, Final

import msgspec

from baseload.records import (
    FAILED,
    REASON_BUDGET,
    REASON_LOST,
    REASON_NONE,
    REASON_RETRIES,
    REASON_WAITED,
    REFUSED,
    SERVED,
)
from baseload.serve import quick, reply
from baseload.serve.bearers import Refusal
from baseload.serve.body import (
    BLOCK_TOKENS,
    CHAT,
    COMPLETIONS,
    EMBEDDINGS,
    KEY_BLOCKS,
    PATHS,
    prefix_hashes,
)
from baseload.serve.door import CANCELLED, FAILED_AFTER, FAILED_BEFORE_FIRST_BYTE, OK, UNREACHED
from baseload.serve.quick import BLOCK_BYTES
from baseload.serve.relay_state import NEVER_S, OPENING, OVER, SENT, STREAMING, TAKEN_BACK, WAITING, WISHED, RelayState
from baseload.serve.reply import Problem
from baseload.serve.sse import Broken, Scanner, read_answer, with_members
from baseload.serve.upstream import DRAIN

if TYPE_CHECKING:
    from baseload.serve.purse import Opened
    from baseload.serve.upstream import Connection, Place

request_name: Final = quick.request_name

monotonic: Final = time.monotonic  # a name of our own is found at once where this is compiled


ANSWER_BYTES_MAX: Final = 64 * 1024 * 1024  # of an answer that is not streamed
TRIES_MAX: Final = 3
WRITE_TOKENS: Final = 16  # go on at once: no more are lost to the bill when this process is killed
CLIENT_GONE: Final = 499
SHORT: Final = "the engine's stream ended before its answer did"
_STREAM_HEAD: Final = (
    b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream; charset=utf-8\r\ncache-control: no-cache\r\n%b%b\r\n"
)
_CHUNKED: Final = b"transfer-encoding: chunked\r\n"
STOPPED: Final = {
    "budget": Problem(429, "insufficient_quota", "the budget of this key or tenant is used up"),
    "revoked": Problem(401, "invalid_api_key", "this API key was revoked or has expired"),
    "storage": Problem(503, "storage_unavailable", "usage cannot be recorded any more; try again", None, 1.0),
    "drain": Problem(503, "draining", "this gateway is being replaced; try again", None, 1.0),
}


class Relay(RelayState):
    """A request, from its body to its row in the ledger."""

    __slots__ = ()

    # ---- opening ---------------------------------------------------------------------------------------------------

    def open(self, bearer: bytes, model_i: int, digest: bytes) -> None:
        """Ask the purse; everything follows from its answer."""
        self.model_i = model_i
        peek = self.peek
        most = self.gateway.contexts[model_i]
        bound = 0 if self.endpoint == EMBEDDINGS else min(peek.max_tokens, most) if peek.max_tokens else most
        self.gateway.purse.open(
            bearer, model_i=model_i, input_tokens=min(peek.input_tokens_max, most), max_output_tokens=bound,
            stream=peek.stream, now_s=self.arrival_s, then=self._opened, digest=digest,
        )  # fmt: skip

    def _opened(self, found: Opened | Refusal) -> None:
        if isinstance(found, Refusal):
            self.gateway.count("unauthorised" if found.status in (401, 403) else "limited")
            self.state = OVER
            self.client.answer(self, Problem(found.status, found.code, found.message, None, found.retry_s))
            return
        self.opened, self.request_id, self.prices = found, found.request_id, found.prices
        self.name = request_name(found.request_id)
        if self.state == OVER:  # the client left meanwhile
            self.gateway.purse.cancel(found)
            return
        found.on_stop, found.on_more = self._stopped, self._more
        view = found.key
        self.tenant_i = view.tenant_i
        serves = self.gateway.serves
        if self.tenant_i < 0 or self.model_i >= len(serves[self.tenant_i]) or not serves[self.tenant_i][self.model_i]:
            self.gateway.purse.cancel(found)
            self.state = OVER
            self.client.answer(self, self.gateway.no_such_model(self.peek.model))
            return
        if len(self.peek.text) >= BLOCK_BYTES:
            self.prefix = prefix_hashes(self.peek.text, view.salt, self.peek.model)
        self._decide()

    # ---- where to --------------------------------------------------------------------------------------------------

    def _decide(self, *, first: bool | None = None) -> None:
        gateway, peek = self.gateway, self.peek
        now_s = monotonic()
        gateway.look_at_endpoints()
        blocks = min(len(self.prefix), KEY_BLOCKS)
        replica = gateway.door.decide(
            now_s, tenant_i=self.tenant_i, model_i=self.model_i, region_i=gateway.regions[self.tenant_i],
            input_tokens=min(peek.input_tokens, gateway.contexts[self.model_i] - 1),
            max_tokens=peek.max_tokens,  # that a prompt is too long is the engine's to say: here it is an estimate
            prefix_key=self.prefix[blocks - 1] if blocks else 0, prefix_blocks=blocks * BLOCK_TOKENS,
            budget_left=NEVER_S, tried=self.tried, first=first,
        )  # fmt: skip
        if replica < 0:
            if self.tries:
                self._give_up()
            else:
                self._refuse(-replica)
            return
        if gateway.door.full(replica) and not self.tries:
            replica = gateway.door.with_room()
            if replica < 0:
                self._wait(now_s)
                return
        self._send(replica, now_s)

    def _wait(self, now_s: float) -> None:
        """Wait at the gateway for room; who cannot be served in time any more is told now."""
        gateway = self.gateway
        self.state = WAITING
        tenant = gateway.tables.tenants[self.tenant_i]
        wait_s = gateway.tables.policy.max_wait_s or tenant.ttft_slo_s
        deadline_s = min(self.deadline_s, self.arrival_s + wait_s)
        gateway.count("waited")
        for shed in gateway.waiting[self.model_i].put(self, self.tenant_i, tenant.priority, deadline_s, now_s):
            shed.shed()

    def shed(self) -> None:
        """Refuse a request that waited in vain."""
        self.gateway.count("shed")
        self._refuse(REASON_WAITED)

    def go(self) -> None:
        """There may be room now."""
        self.state = OPENING
        self._decide(first=False)  # it was admitted and counted when it came

    def _refuse(self, reason: int) -> None:
        self.gateway.count("refused")
        problem = reply.REFUSED[reason]
        if problem.status == 503 and reason == REASON_WAITED:
            problem = problem._replace(retry_s=self.gateway.waiting[self.model_i].retry_after_s())
        try:
            self._settle(REFUSED, reason, problem.status)
        finally:  # who asked is told, whatever goes wrong in the books
            self.client.answer(self, problem)

    def _send(self, replica: int, now_s: float) -> None:
        gateway, opened = self.gateway, self.opened
        assert opened is not None
        place = gateway.pool.places[replica]
        self.replica, self.place = replica, place
        self.state, self.tries = SENT, self.tries + 1
        self.version = gateway.tables.version
        self.work = gateway.door.work(self.tenant_i, self.model_i, self.peek.input_tokens, self.peek.max_tokens)
        gateway.door.sent(replica, self.work)
        self.sent_s = now_s
        gateway.count("sent")
        if self.tries > 1:
            gateway.count("retried")
        gateway.purse.routed(opened, replica)
        self.why = gateway.why(replica)
        self.due_s = now_s + gateway.limits.first_byte_s
        if place is None:
            self._failed("the replica has no address", UNREACHED)
            return
        kept = gateway.pool.take(place)
        if kept is not None:
            self._use(kept)
        else:
            self._connect(place)

    def _connect(self, place: Place) -> None:
        self.gateway.pool.connect(place, lambda connection: self._connected(place, connection))

    def _connected(self, place: Place, connection: Connection | None) -> None:
        if self.state != SENT or self.up is not None or place is not self.place:  # it was tried elsewhere meanwhile
            if connection is not None and connection.transport is not None:
                connection.transport.close()
            return
        if connection is None:
            self._failed("no engine listens there", UNREACHED)
        else:
            self._use(connection)

    def _use(self, connection: Connection) -> None:
        self.up = connection
        self.attempts += 1
        assert self.opened is not None and self.place is not None
        body = self._body()
        connection.send(
            self,
            b"POST %b%b HTTP/1.1\r\n%bcontent-length: %d\r\nx-request-id: %b\r\n%b\r\n%b"
            % (self.place.base, PATHS[self.endpoint], self.place.head, len(body), self.name, self.extra, body),
        )  # fmt: skip

    # ---- what the engine says --------------------------------------------------------------------------------------

    def begins(self, status: int, content_type: bytes, retry_after: bytes) -> None:
        """The engine's head is whole. Nothing is told to the client yet: it may still be tried elsewhere."""
        self.status, self.content_type, self.retry_after = status, content_type, retry_after
        if status == 200 and self.peek.stream and content_type.startswith(b"text/event-stream"):
            self.scanner = Scanner(self.endpoint, strip_usage=self.strip, n_choices=self.peek.choices)
            self._know_events(self.scanner)
            if self.peek.wants_usage or self.endpoint not in (CHAT, COMPLETIONS):
                self.scanner.splice = self._with_cost
        else:
            self.scanner = None

    def comes(self, data: bytes) -> None:
        """A piece of the answer."""
        scanner = self.scanner
        if scanner is None:
            self.answer.append(data)
            self.answer_bytes += len(data)
            if self.answer_bytes > ANSWER_BYTES_MAX:
                self._fail_here("the engine's answer is too large")
            return
        if self.held:
            scanner.keep(data)
        elif self.state != OVER:
            self._feed(scanner, data)

    def _feed(self, scanner: Scanner, data: bytes) -> None:
        """Pass on what came, as far as the money reaches and a write's worth; what lies behind that waits in the scanner."""
        opened = self.opened
        assert opened is not None
        until = opened.until if self.more == 0.0 or scanner.running else int(opened.until / (1.0 + self.more))
        scanner.most = min(max(until, scanner.tokens + 1), scanner.tokens + WRITE_TOKENS)
        try:
            out = scanner.feed(data)
        except Broken as broken:
            self._fail_here(f"the engine sent {broken}", garbled=True)
            return
        if out:
            self._pass_on(out)
        if self.state == OVER:
            return
        if scanner.fault:
            self._fail_here(f"the engine sent {scanner.fault}", garbled=True)
        elif scanner.error is not None:
            self._fail_here("the engine reported an error inside the stream", garbled=True)
        elif scanner.ended:
            self._finish()
        elif self._covered(opened, self._reckoned(opened, scanner)) and scanner.rest:
            self.held = True  # until the socket has taken this: then it counts as delivered
            self._flow()
            get_running_loop().call_soon(self._more, opened)

    def _covered(self, opened: Opened, tokens: int) -> bool:
        """Reserve for what follows; False where nothing may follow, or not yet."""
        if self.gateway.purse.sends(opened, tokens):
            return True
        if opened.stop:
            self._stopped(opened)
        else:
            self.held = True  # read no more from the engine until the purse has more
            self._flow()
        return False

    def frames(self, data: bytes, ends: list[int]) -> None:
        """A piece of the answer that came as whole chunks: events like the one before go on as they are, framing and all."""
        scanner, client, n_bytes = self.scanner, self.client, 0
        plainly = self.first_s > 0.0 and client.chunked and self.state == STREAMING and not (self.held or self.more)
        for i in range(0, len(ends), 2):
            at, end = ends[i], ends[i + 1]
            plainly = plainly and scanner is not None and scanner.same(data, at, end)
            n_bytes += end - at
        purse, opened, n = self.gateway.purse, self.opened, len(ends) // 2
        if not plainly or scanner is None or opened is None or n > WRITE_TOKENS or scanner.tokens + n > opened.until:
            self.comes(b"".join([data[ends[i] : ends[i + 1]] for i in range(0, len(ends), 2)]))
            return
        scanner.tokens += n
        now_s = monotonic()
        if not client.unsent():
            purse.delivered(opened, self.sent_tokens)
        client.write(data)
        self.sent_tokens = scanner.tokens
        self.told_bytes += n_bytes
        self.due_s = now_s + self.gateway.limits.token_s
        if scanner.tokens > opened.ask_at:
            self._covered(opened, scanner.tokens)

    def _pass_on(self, out: bytes) -> None:
        """Write whole events to the client."""
        client, scanner = self.client, self.scanner
        now_s = monotonic()
        if not self.begun:
            self._begin(now_s)
        assert scanner is not None
        if self.sent_tokens and not client.unsent():
            assert self.opened is not None
            self.gateway.purse.delivered(self.opened, self.sent_tokens)
        if scanner.tokens and not self.first_s:
            self.first_s = now_s
            self.gateway.door.answered(self.replica, now_s - self.sent_s, self.peek.input_tokens)
        client.write(b"%x\r\n%b\r\n" % (len(out), out) if client.chunked else out)
        self.sent_tokens = scanner.tokens
        self.told_bytes += len(out)
        self.due_s = now_s + self.gateway.limits.token_s

    def _begin(self, now_s: float) -> None:
        """Tell the client that an answer comes."""
        self.begun = True
        self.state = STREAMING
        self.client.write(_STREAM_HEAD % (_CHUNKED if self.client.chunked else b"connection: close\r\n", self.lines()))

    def _more(self, opened: Opened) -> None:
        """The purse has more: pass on what waits, and read on."""
        self.held = False
        scanner = self.scanner
        if self.state != STREAMING or scanner is None:
            return
        if scanner.rest:
            self._feed(scanner, b"")
        if self.held or self.state != STREAMING:
            return
        if self.cut_why:
            self._cut(self.cut_why)
        else:
            self._flow()

    def pause(self, on: bool) -> None:
        """The client reads slowly, or does again."""
        self.paused = on
        self._flow()

    def _flow(self) -> None:
        if self.up is None or self.up.transport is None:
            return
        if self.held or self.paused:
            self.up.transport.pause_reading()
        else:
            self.up.transport.resume_reading()
            self.due_s = monotonic() + self.gateway.limits.token_s

    def ended(self) -> None:
        """The answer's framing says that it is whole."""
        connection, self.up = self.up, None
        if (self.held or self.paused) and connection is not None and connection.transport is not None:
            connection.transport.resume_reading()  # it may be kept, and is for others now
        scanner = self.scanner
        if scanner is None:
            self._whole()
        elif not self.held:
            self._cut(SHORT)
        else:
            self.cut_why = SHORT

    def broken(self, why: str, *, unreached: bool = False) -> None:
        """The connection to the engine is gone."""
        connection, self.up = self.up, None
        if self.state == OVER:
            return
        if self.held:
            self.cut_why = why
            return
        kept_and_silent = connection is not None and connection.reused and connection.silent
        if kept_and_silent and not self.fresh and self.attempts < TRIES_MAX:
            self.fresh = True  # the engine's habit: once more, on a connection of our own
            assert self.place is not None
            self._connect(self.place)
            return
        self._cut(why)

    def _fail_here(self, why: str, *, garbled: bool = False) -> None:
        """We end it: what comes from the engine cannot be used."""
        connection, self.up = self.up, None
        if connection is not None:
            connection.drop()
        self._cut(why, garbled)

    def _cut(self, why: str, garbled: bool = False) -> None:
        """An answer that will not become whole, or one whose last words were said already."""
        if self._spoken() and not garbled:
            self._finish()  # its one choice has told why it ended: only [DONE] or a usage chunk is missing
            return
        if self.begun:
            self.gateway.count("upstream_cut")
            self._end_stream(Problem(502, "upstream_error", f"{why}; the answer above is not whole"))
            self._left(FAILED_AFTER)
            self._settle(FAILED, REASON_LOST, 200)
            self.client.done(self, close=True)
        else:
            self._failed(why, FAILED_BEFORE_FIRST_BYTE)

    def _spoken(self) -> bool:
        """Say whether the one choice of a stream has told why it ended: its content is whole."""
        scanner = self.scanner
        finished = scanner is not None and scanner.finished and self.peek.choices == 1
        return self.begun and finished and self.endpoint in (CHAT, COMPLETIONS)

    def _end_stream(self, problem: Problem) -> None:
        """Tell an error inside the stream, and end it without a word that says it is whole."""
        event = reply.error_event(problem, self.endpoint)
        if self.client.chunked:
            event = b"%x\r\n%b\r\n0\r\n\r\n" % (len(event), event)
        if self.client.transport is not None:
            self.client.write(event)

    # ---- trying elsewhere ------------------------------------------------------------------------------------------

    def _failed(self, why: str, outcome: int) -> None:
        """Nothing reached the client: try elsewhere, if that is still allowed."""
        gateway = self.gateway
        now_s = monotonic()
        self.problem = Problem(504 if "in time" in why else 502, "upstream_error", f"{why}; try again", None, 1.0)
        self.why = f"{self.why}; {why}"[:200]
        self.answer, self.answer_bytes, self.scanner = [], 0, None
        self.status, self.content_type, self.retry_after, self.wish = 0, b"", b"", 0
        self.tried |= 1 << self.replica
        self._left(outcome)
        policy = gateway.tables.policy
        if self.tries > policy.retries or self.attempts >= TRIES_MAX or now_s >= self.deadline_s:
            self._give_up()
        elif gateway.door.may_retry(now_s):
            self._decide()
        else:
            gateway.count("retry_denied")
            self._give_up()

    def _give_up(self) -> None:
        if self.last is not None:
            status, content_type, body, retry_after = self.last
            self._settle(FAILED, REASON_RETRIES, status)
            self.client.pass_on(self, status, content_type, body, retry_after)
            return
        self._settle(FAILED, REASON_RETRIES, self.problem.status)
        self.client.answer(self, self.problem)

    def _left(self, outcome: int, output_tokens: int = 0) -> None:
        """The door learns how a try ended; somebody who waits may go."""
        if self.replica >= 0:
            self.gateway.door.ended(
                monotonic(), self.replica, self.work, tenant_i=self.tenant_i, model_i=self.model_i,
                output_tokens=output_tokens, outcome=outcome, version=self.version,
            )  # fmt: skip
            self.gateway.room(self.model_i)

    # ---- ends ------------------------------------------------------------------------------------------------------

    def _whole(self) -> None:
        """An answer that was not streamed is whole."""
        body = self.answer[0] if len(self.answer) == 1 else b"".join(self.answer)
        status = self.status
        if status == 200 and self.peek.stream:
            self._failed("the engine did not answer with a stream", FAILED_BEFORE_FIRST_BYTE)
        elif 200 <= status < 300:
            self._served(body)
        elif status == 429 or status >= 500:
            if status < 600:  # what is no status of HTTP is not passed on
                self.last = (status, self.content_type, body, self.retry_after)
            self._failed(f"the engine answered {status}", FAILED_BEFORE_FIRST_BYTE)
        elif status == 400 and self.wish == WISHED and self.place is not None:
            self.wish = TAKEN_BACK  # was it only our own wish that the engine does not know?
            self.answer, self.answer_bytes, self.status = [], 0, 0
            self._connect(self.place)
        elif status in (401, 403, 407) or status < 400:
            self._failed("the engine did not accept the gateway's request", FAILED_BEFORE_FIRST_BYTE)
        else:
            self._left(OK)
            self.why = f"{self.why}; the engine answered {status}"[:200]
            self._settle(REFUSED, REASON_NONE, status)
            self.client.pass_on(self, status, self.content_type, body, self.retry_after)

    def _served(self, body: bytes) -> None:
        try:
            usage, end = read_answer(body)
            if not body.isascii():
                body.decode()
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
            self._failed("the engine's answer is not JSON", FAILED_BEFORE_FIRST_BYTE)
            return
        self.told_bytes = len(body)
        self.first_s = monotonic()
        tokens = self._tokens(usage, 0)
        row = self._row(SERVED, REASON_NONE, 200, usage, tokens)
        if usage is not None:
            body = with_members(body, self.gateway.members(row, self.tenant_i), end)
        self._left(OK, tokens)
        self.gateway.door.answered(self.replica, self.first_s - self.sent_s, self.peek.input_tokens, tokens)
        self.row, self.state = row, OVER
        self.client.pass_on(self, 200, self.content_type or b"application/json", body, b"", done=False)
        self.client.deliver(self)
        self.client.done(self)

    def _finish(self) -> None:
        """A stream is whole, and the client is told so."""
        scanner, client = self.scanner, self.client
        assert scanner is not None
        if not self.begun:
            self._begin(monotonic())
        if client.chunked and client.transport is not None:
            client.write(b"0\r\n\r\n")
        connection, self.up = self.up, None
        if connection is not None:
            connection.taker = DRAIN
            if connection.transport is not None:
                connection.transport.resume_reading()
        tokens = self._tokens(scanner.usage, scanner.tokens)
        self._left(OK, tokens)
        if self.place is not None and scanner.usage is not None and scanner.finished:
            self.place.held(tokens, scanner.tokens - scanner.ahead)
        self.state = OVER
        client.deliver(self)
        client.done(self, close=not client.chunked)

    def delivered(self) -> None:
        """All of a finished stream was taken by the client's socket, or a whole answer handed to it: settle it."""
        if self.row is not None:
            self._settle_row(self.row)
            return
        scanner = self.scanner
        assert scanner is not None
        tokens = self._tokens(scanner.usage, scanner.tokens)
        self._settle_row(self._row(SERVED, REASON_NONE, 200, scanner.usage, tokens))

    def gone(self) -> None:
        """The client left: whatever is computed for it is for nobody, and it pays what it has."""
        if self.state == OVER:
            if self.opened is not None and (self.row is not None or self.scanner is not None):  # not wholly taken
                self._settle(FAILED, REASON_LOST, CLIENT_GONE)
            return
        self.gateway.count("client_gone")
        state, self.state = self.state, OVER
        if state == WAITING:
            self.gateway.waiting[self.model_i].remove(self)
        connection, self.up = self.up, None
        if connection is not None:
            connection.drop()
        if state in (SENT, STREAMING):
            self._left(CANCELLED)
        if self.opened is not None:
            self._settle(FAILED, REASON_LOST, CLIENT_GONE)

    def _stopped(self, opened: Opened) -> None:
        """The purse says: stop now (revoked, budget, storage)."""
        if self.state == OVER:
            return
        problem = STOPPED.get(opened.stop, STOPPED["storage"])
        self.stop(problem, REASON_BUDGET if opened.stop == "budget" else REASON_LOST)

    def stop(self, problem: Problem, reason: int) -> None:
        """End a request that runs or waits, for a reason of ours."""
        state, self.state = self.state, OVER
        if state == WAITING:
            self.gateway.waiting[self.model_i].remove(self)
        connection, self.up = self.up, None
        if connection is not None:
            connection.drop()
        if state in (SENT, STREAMING):
            self._left(CANCELLED)
        if self.begun:
            self._confirm()
            self._end_stream(problem)
            self._settle(FAILED, reason, 200)
            self.client.done(self, close=True)
        else:
            self._settle(FAILED if state in (SENT, STREAMING) else REFUSED, reason, problem.status)
            self.client.answer(self, problem)

    def late(self, now_s: float) -> None:
        """A time limit has passed (see `due_s` and `deadline_s`)."""
        if self.state == OVER or self.state == OPENING:
            return
        if now_s >= self.deadline_s and self.state == STREAMING and self._spoken():
            self._fail_here("the request's time is over")  # which ends it as whole
        elif now_s >= self.deadline_s:
            self.stop(Problem(504, "timeout", "the request's time is over", None, 1.0), REASON_LOST)
        elif now_s >= self.due_s and self.state in (SENT, STREAMING):
            if self.paused or self.held:  # it is not the engine that is slow
                self.due_s = now_s + self.gateway.limits.token_s
                if self.paused:
                    self.client.too_slow()
                return
            self.due_s = NEVER_S
            self._fail_here("the engine did not answer in time")
