"""What is known of a request on its way through the gateway, and how it becomes a row of the ledger.

`relay.py` moves it; here is what it holds, what it counts as delivered, and what it is billed.
"""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Final

from baseload.records import REASON_NONE, REASON_RETRIES, SERVED
from baseload.serve import reply
from baseload.serve.body import CHAT, COMPLETIONS, ENDPOINT_NAMES, Peek, with_model, with_usage_wish
from baseload.serve.rows import SettleRow
from baseload.serve.sse import Scanner, Usage, with_members

if TYPE_CHECKING:
    from baseload.serve.client import Client
    from baseload.serve.gateway import Gateway
    from baseload.serve.purse import Opened
    from baseload.serve.upstream import Connection, Place

monotonic: Final = time.monotonic  # a name of our own is found at once where this is compiled
time_ns: Final = time.time_ns

TEMPLATE_TOKENS: Final = 4096  # a chat template may add as many to a prompt's bytes, at most
NEVER_S: Final = float("inf")
OPENING: Final = 0
WAITING: Final = 1
SENT: Final = 2
STREAMING: Final = 3
OVER: Final = 4
WISHED: Final = 1
TAKEN_BACK: Final = 2


class RelayState:
    """A request: what it asks for, where it is, what of it was delivered."""

    __slots__ = (
        "answer", "answer_bytes", "arrival_ns", "arrival_s", "attempts", "begun", "body", "client", "client_id", "content_type",
        "cut_why", "deadline_s", "due_s", "endpoint", "extra", "first_s", "fresh", "gateway", "held", "last", "model_i", "more",
        "name", "opened", "paused", "peek", "place", "prefix", "prices", "problem", "replica", "request_id", "retry_after",
        "row", "scanner", "sent_s", "sent_tokens", "state", "status", "strip", "tenant_i", "told_bytes", "tried", "tries", "up",
        "version", "why", "wish", "work",
    )  # fmt: skip

    def __init__(
        self, gateway: Gateway, client: Client, endpoint: int, body: bytes, peek: Peek, extra: bytes, client_id: bytes
    ) -> None:
        self.gateway, self.client, self.endpoint = gateway, client, endpoint
        self.body, self.peek, self.extra, self.client_id = body, peek, extra, client_id
        self.arrival_ns, self.arrival_s = time_ns(), monotonic()
        self.deadline_s = self.arrival_s + gateway.limits.request_s
        self.due_s = NEVER_S
        self.state = OPENING
        self.opened: Opened | None = None
        self.request_id = 0  # kept when the purse has let go of it
        self.name = b""  # as clients and engines see it
        self.replica = -1
        self.tried = self.tries = 0
        self.attempts = 0  # requests that an engine may have seen, those on dead connections too
        self.work = 0.0
        self.version = 0
        self.up: Connection | None = None
        self.place: Place | None = None
        self.fresh = False
        self.scanner: Scanner | None = None
        self.begun = False  # the client was told a head
        self.status = 0
        self.content_type = self.retry_after = b""
        self.answer: list[bytes] = []
        self.answer_bytes = 0
        self.row: SettleRow | None = None  # of a whole answer, until it is settled
        self.first_s = self.sent_s = 0.0
        self.sent_tokens = self.told_bytes = 0
        self.held = self.paused = False
        self.cut_why = ""  # the engine's connection ended so, behind what waits in the scanner
        self.strip = False
        self.more = 0.0  # tokens of an event beyond one, that its engine is known to put there and does not tell
        self.wish = 0  # for a count in each event: 0, WISHED, or TAKEN_BACK
        self.why = ""
        self.problem = reply.REFUSED[REASON_RETRIES]
        self.last: tuple[int, bytes, bytes, bytes] | None = None  # an engine's own refusal
        self.prefix: list[int] = []
        self.model_i = self.tenant_i = -1
        self.prices: tuple[int, int, int] | None = None

    # ---- what the engine is asked, and how it answers ----------------------------------------------------------------

    def _body(self) -> bytes:
        """Return the bytes for the engine: the client's own, with what has to be spliced in."""
        body, peek = self.body, self.peek
        in_events = peek.stream and self.endpoint in (CHAT, COMPLETIONS)
        self.strip = in_events and not peek.wants_usage
        place, running = self.place, False
        if place is not None and place.bundles and in_events:
            one = peek.choices == 1 and b'"continuous_usage_stats"' not in body  # which is the client's own to say
            running = place.counts_along and one and self.wish != TAKEN_BACK
        if self.wish != TAKEN_BACK:
            self.wish = WISHED if running else 0
        if self.strip or running:
            body = with_usage_wish(body, peek, running=running)
        name = self.gateway.served_model(self.replica)
        if name and name != peek.model:
            body = with_model(body, name)
        return body

    def _know_events(self, scanner: Scanner) -> None:
        """Reckon with an engine that puts several tokens into an event."""
        place = self.place
        self.more = place.more if place is not None and place.bundles else 0.0
        if self.wish == WISHED:
            scanner.hide = True
        elif self.wish == TAKEN_BACK and place is not None:
            place.counts_along = False  # so that is what it would not take

    # ---- the row ---------------------------------------------------------------------------------------------------

    def _confirm(self) -> None:
        """Count what the client's socket has taken by now."""
        client, opened = self.client, self.opened
        client.push()
        if self.begun and opened is not None and client.transport is not None and not client.unsent():
            self.gateway.purse.delivered(opened, self.sent_tokens)

    def _tokens(self, usage: Usage | None, counted: int) -> int:
        """Return the answer's tokens: the engine's count, as far as it can be true."""
        if usage is None or usage.output_tokens < 0:
            return counted
        if self.peek.choices > 1 and usage.output_tokens < counted:
            return counted  # of one choice alone, as llama.cpp counts
        tokens = min(usage.output_tokens, max(counted, self.told_bytes))
        most = self.peek.max_tokens
        return min(tokens, max(counted, most)) if most else tokens

    def _reckoned(self, opened: Opened, scanner: Scanner) -> int:
        """Return of how many tokens the reservation has to reach: what was counted, more where events hold several."""
        tokens = scanner.tokens
        if self.more == 0.0 or scanner.running:
            return tokens
        return max(tokens, min(tokens + int(tokens * self.more), opened.max_tokens))

    def _settle(self, status: int, reason: int, client_status: int) -> None:
        """Settle what did not end well: at most what was delivered is billed."""
        self.state = OVER
        if self.opened is None:
            return
        self._confirm()
        usage = self.scanner.usage if self.scanner is not None else None
        tokens = self.opened.output_tokens if self.begun else 0
        self._settle_row(self._row(status, reason, client_status, usage if tokens else None, tokens))

    def _settle_row(self, row: SettleRow) -> None:
        opened, self.opened = self.opened, None
        self.state = OVER
        if opened is not None:
            opened.on_stop = opened.on_more = None
            self.gateway.settle(opened, row)

    def _row(self, status: int, reason: int, client_status: int, usage: Usage | None, tokens: int) -> SettleRow:
        gateway, peek, arrival_ns = self.gateway, self.peek, self.arrival_ns
        seconds = monotonic() - self.arrival_s
        row = gateway.row(self.replica, self.tenant_i)
        if usage is not None and usage.input_tokens >= 0:
            row.input_tokens = min(usage.input_tokens, peek.input_tokens_max + TEMPLATE_TOKENS)
            row.cached_tokens = max(0, min(usage.cached_tokens, row.input_tokens))
            row.tokens_from = "engine"
        row.model = peek.model
        row.arrival_ns = arrival_ns
        if self.first_s:
            row.first_token_ns = arrival_ns + int((self.first_s - self.arrival_s) * 1e9)
        row.finish_ns = arrival_ns + int(seconds * 1e9)
        if peek.stream:
            row.streamed = True
        row.output_tokens, row.n_tries, row.why = tokens, self.tries, self.why
        if status or reason:
            row.status, row.reason = status, reason
        if self.prefix:
            row.prefix = self.prefix
        row.endpoint, row.client_status = ENDPOINT_NAMES[self.endpoint], client_status
        gateway.fill(row, self.replica, self.prices, seconds)
        return row

    def _with_cost(self, event: bytes) -> bytes:
        """Return an event with usage, with what the request cost beside it."""
        scanner = self.scanner
        assert scanner is not None
        usage = scanner.usage
        if usage is None or usage.output_tokens < 0 or b'"message_start"' in event:
            return event
        row = self._row(SERVED, REASON_NONE, 200, usage, self._tokens(usage, scanner.tokens))
        return with_members(event, self.gateway.members(row, self.tenant_i))

    def lines(self) -> bytes:
        """Return the header lines that say where and by whom it was answered."""
        client = b"x-client-request-id: " + self.client_id + b"\r\n" if self.client_id else b""
        if not self.request_id:
            return client
        return b"x-baseload-request-id: %b\r\n%b%b" % (self.name, client, self.gateway.replica_lines(self.replica))
