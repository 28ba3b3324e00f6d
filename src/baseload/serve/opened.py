"""An open request as a worker follows it, and how a running stream reserves its next step.

A stream with a long bound reserves `STEP_TOKENS` of its answer at a time, the next before the last is used up. Where
more is not to be had it takes what is left of its key here, asks once more where that ends (a budget may have been raised
meanwhile), and ends where its reservation does: what is sent beyond is at most the chunk that crosses it, however much an
engine sends at once (`relay.py` sends piece by piece, as far as `until`).
Opening and settling are `purse.py`; what lies in a slice is `pocket.py`.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Final, NamedTuple

from baseload.serve.bearers import WAIT_S, Refusal
from baseload.serve.pocket import Lease, Pocket, Wish

STEP_TOKENS: Final = 256  # of an answer, reserved at once in a stream


class Opened:
    """An open request. `stop` is '' until it has to end: revoked, budget, storage (the owner is gone too long)."""

    __slots__ = (
        "_cell", "_done", "_held", "_lease", "_output_pico", "_pocket", "_sent", "_stuck",
        "_tokens", "_wished", "ask_at", "key", "mark", "max_tokens", "on_more", "on_stop", "output_tokens", "prices",
        "request_id", "reserved_nano", "stop", "stream", "until",
    )  # fmt: skip

    def __init__(
        self, request_id: int, pocket: Pocket, lease: Lease, reserved_nano: int, tokens: int, max_tokens: int
    ) -> None:
        self.request_id = request_id
        self.key = pocket.view
        self.reserved_nano = reserved_nano
        self.prices = (0, 0, 0)  # of a token in 1e-12 of the currency: prompt, cached, answer; as when it was opened
        self.stop = ""
        self.on_stop: Callable[[Opened], None] | None = None
        self.on_more: Callable[[Opened], None] | None = None
        self.output_tokens = 0  # delivered
        self.until = 0  # output tokens that the reservation covers
        self.ask_at = 0  # when more than so many were sent, more is reserved
        self.stream = False
        self.mark = 0
        self._pocket, self._lease = pocket, lease
        self._tokens = tokens  # reserved of tokens a minute
        self.max_tokens = max_tokens  # of the answer
        self._cell = 0
        self._done = False
        self._output_pico = 0
        self._stuck = False  # no more is to be had beyond _until
        self._wished = False  # more was asked for
        self._held = False  # the relay waits for more
        self._sent = 0  # when more was last asked for


Then = Callable[[Opened | Refusal], None]


class Want(NamedTuple):
    """What an `open` that waits was called with."""

    model_i: int
    input_tokens: int
    step_tokens: int
    max_tokens: int
    stream: bool
    then: Then


class Steps:
    """Renewals of running streams: `extend` when a reservation runs low, the rest when the owner has answered."""

    def __init__(
        self, serve: Callable[[Pocket], None], connected: Callable[[], bool], clock_s: Callable[[], float]
    ) -> None:
        self._serve, self._connected, self._clock_s = serve, connected, clock_s

    def extend(self, opened: Opened, tokens: int) -> bool:
        """Reserve the next step before this one is used up; `tokens` of the answer were sent."""
        if opened.stop:
            return False
        pocket, until, opened._sent = opened._pocket, opened.until, tokens
        if tokens <= until and until >= opened.max_tokens:
            opened.ask_at = until
            return True
        if not opened._wished:
            left = opened.max_tokens - tokens  # an engine that says more than it was asked for goes on in whole steps
            step = max(0, tokens - until) + (min(STEP_TOKENS, left) if left > 0 else STEP_TOKENS)
            need_nano = (step * opened._output_pico + 999) // 1000
            pocket.used_s = self._clock_s()
            if pocket.renew(need_nano):
                self._cover(opened, need_nano, step)
                return True
            if not opened._stuck or tokens >= until:  # there may be more meanwhile: asked once more before it ends
                opened._wished = True
                pocket.wishes.appendleft(Wish(need_nano, step, opened, renewal=True, until_s=pocket.used_s + WAIT_S))
                self._serve(pocket)
        opened.ask_at = until - 1
        if tokens < until:
            return True
        if opened._wished and opened.on_more is not None:
            opened._held = True
        else:
            opened.stop = "budget" if self._connected() else "storage"
        return False

    def _cover(self, opened: Opened, nano: int, step: int) -> None:
        opened.reserved_nano += nano
        opened.until += step
        opened._tokens += step
        opened._pocket.tokens -= step
        opened._stuck = False
        opened.ask_at = opened.until if opened.until >= opened.max_tokens else opened.until - step // 2

    def renewed(self, pocket: Pocket, wish: Wish) -> None:
        """A stream that waited for more has it, or a part of it."""
        opened: Opened = wish.item
        opened._wished = False
        if opened._done or opened.stop:
            return
        if wish.tokens * opened._output_pico > wish.money_nano * 1000 or not pocket.renew(wish.money_nano):
            return self.take_last(wish, "budget")  # it was granted a part
        self._cover(opened, wish.money_nano, wish.tokens)
        self._resume(opened)

    def take_last(self, wish: Wish, why: str) -> None:
        """Nothing more is to be had: the stream takes what is left here, and ends where its reservation does."""
        opened: Opened = wish.item
        opened._wished = False
        if opened._done or opened.stop:
            return
        pocket = opened._pocket
        step = min(wish.tokens, pocket.money_nano * 1000 // max(1, opened._output_pico))
        need_nano = (step * opened._output_pico + 999) // 1000
        if step > 0 and pocket.renew(need_nano):
            self._cover(opened, need_nano, step)
        opened._stuck = True
        opened.ask_at = opened.until - 1
        if opened._sent < opened.until:
            self._resume(opened)
        elif opened._held:
            opened._held = False
            self.stop(opened, why if self._connected() else "storage")

    def _resume(self, opened: Opened) -> None:
        if opened._held:
            opened._held = False
            if opened.on_more is not None:
                opened.on_more(opened)

    def stop(self, opened: Opened, why: str) -> None:
        """End a stream from here: the relay is called."""
        if opened.stop or opened._done:
            return
        opened.stop = why
        opened.ask_at = -1
        if opened.on_stop is not None:
            opened.on_stop(opened)
