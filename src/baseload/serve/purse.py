"""The purse: a worker's side of money. Opens, follows and settles requests by callbacks, out of leased slices.

On the common path (key known, slice left) `open`, `delivered` and `settle` touch memory alone: the durable lease was there
before, how far a request has come stands in the marks file, and rows go to the owner in batches. Who waits for more is
called later. A stream with a long bound reserves in steps; where the next step is not to be had, `sends` says so:
stop (`opened.stop` says why), or hold (`stop` is '' and `on_more` will be called). A relay that sets no `on_more` is
told to stop instead. Without the owner, what is leased goes on, and nothing new beyond it. What lies in a slice is
`pocket.py`; who may have one, `bank.py`; sockets, `wire.py`.
"""

from __future__ import annotations

import asyncio
import os
import time
from collections import deque
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any, Final

from baseload.serve import wire
from baseload.serve.bearers import WAIT_S, Bearers, Refusal, digest_of, refusal
from baseload.serve.marks import CELLS, COUNT_CELL, Marks
from baseload.serve.opened import STEP_TOKENS, Opened, Steps, Then, Want
from baseload.serve.outbox import Outbox
from baseload.serve.pocket import Lease, Pocket, Wish
from baseload.serve.rows import SettleRow
from baseload.serve.tables import Tables
from baseload.serve.telling import tell_all
from baseload.serve.wire import KeyView, Wire

__all__ = ["KeyView", "Opened", "Purse", "Refusal"]

RECEIPTS_MOST: Final = 16  # asked for at once by a worker
REFUSED_S: Final = 0.1  # a refusal is repeated without asking for at most so long
_MOST_TOKENS, _MOST_NANO = (1 << 28) - 1, 1 << 60  # of one request; an engine that says more is mistaken


class Purse:
    """One worker's money. Everything runs on its event loop."""

    def __init__(
        self,
        folder: Path,
        worker: int,
        tables: Tables,
        *,
        on_reload: Callable[[int, str], None] | None = None,
        on_drain: Callable[[float], None] | None = None,
        stats: Callable[[], dict[str, float]] | None = None,
        clock_s: Callable[[], float] = time.monotonic,
        utc_ns: Callable[[], int] = time.time_ns,
    ) -> None:
        self.folder, self.worker = folder, worker
        self.marks = Marks(folder, worker)
        self._on_reload, self._on_drain, self._stats = on_reload, on_drain, stats
        self._clock_s, self._utc_ns = clock_s, utc_ns
        self._pockets: dict[int, Pocket] = {}
        self.bearers = Bearers(self._ask_whose, self._pocket, clock_s=clock_s, utc_ns=utc_ns)
        self._receipts: dict[int, Callable[[bytes | None], None]] = {}
        self._open: dict[int, Opened] = {}
        self._outbox = Outbox(self._send, self._next_i)
        self._last_i = 0
        self._wire: Wire | None = None
        self._down_s = self._clock_s()
        self._tasks: list[asyncio.Task[None]] = []
        self._steps = Steps(self._serve, lambda: self.connected, clock_s)
        self.draining = False
        self.n_opened = self.n_settled = 0
        self.counts = {"refused": 0, "asks": 0, "reconnects": 0}
        self.reload(tables)

    # ---- life ----

    async def start(self) -> None:
        """Connect to the owner, and stay connected."""
        loop = asyncio.get_running_loop()
        self._tasks = [
            loop.create_task(wire.stay_connected(self.folder / "owner.sock", self._line)),
            loop.create_task(self._tick()),
        ]

    async def close(self, timeout_s: float = 5.0) -> bool:
        """Hand everything over and leave; False where rows could not be stored in time (the marks file then stays)."""
        self._outbox.flush()
        until_s = self._clock_s() + timeout_s
        while len(self._outbox) and self._clock_s() < until_s:
            await asyncio.sleep(0.005)
        for pocket in list(self._pockets.values()):
            self._send(pocket.back(leases=True))
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        whole = not (len(self._outbox) or self._open)
        if self._wire is not None:
            self._wire.close()
            await asyncio.sleep(0)
        self.marks.close(remove=whole)
        return whole

    def reload(self, tables: Tables) -> None:
        """Take up new tables: prices and tenants' rows; running requests keep the price they were opened at."""
        self._tables = tables
        self._tables_version = tables.version
        self._prices = [(t.input_pico, t.cached_pico, t.output_pico) for t in tables.tenants]
        self._regions = [t.region_i for t in tables.tenants]
        rows = {tenant.name: i for i, tenant in enumerate(tables.tenants)}
        self._tenant_rows = rows
        for pocket in self._pockets.values():
            pocket.view.tenant_i = rows.get(pocket.view.tenant, -1)

    @property
    def connected(self) -> bool:
        """Say whether the owner is there."""
        return self._wire is not None and self._wire.up

    @property
    def n_open(self) -> int:
        """Return how many requests are open."""
        return len(self._open)

    @property
    def n_unstored(self) -> int:
        """Return how many settled rows the owner has not stored yet."""
        return len(self._outbox)

    def _line(self) -> Wire:
        return Wire(wire.ToWorker, self._heard, self._lost, self._say_hello)

    def _say_hello(self, connection: Wire) -> None:
        """Tell the owner what is held, and hand in again what it may not have stored."""
        self._wire = connection
        self.counts["reconnects"] += 1
        pouches = [pocket.pouch() for pocket in self._pockets.values()]
        for pocket in self._pockets.values():
            pocket.requests, pocket.tokens = 0, min(0, pocket.tokens)  # the owner may be a new one: rates begin anew
        connection.send(
            wire.Hello(wire.VERSION, self.worker, os.getpid(), self.marks.name, pouches, self._tables.version)
        )
        self._outbox.hand_in_again()
        self.bearers.ask_again()
        for pocket in list(self._pockets.values()):
            self._serve(pocket)

    def _lost(self, connection: Wire) -> None:
        if self._wire is connection:
            self._wire, self._down_s = None, self._clock_s()
            for pocket in self._pockets.values():
                pocket.asked = 0
            receipts, self._receipts = self._receipts, {}
            tell_all(partial(then, None) for then in receipts.values())

    def _ask_whose(self, message: wire.LookUp) -> bool:
        self._send(message)
        return self.connected or self._clock_s() - self._down_s <= WAIT_S

    def _send(self, message: wire.Message) -> None:
        if self._wire is not None:
            self._wire.send(message)

    def _next_i(self) -> int:
        self._last_i += 1
        return self._last_i

    async def _tick(self) -> None:
        beat = 0
        while True:
            await asyncio.sleep(0.25)
            beat += 1
            now_s = self._clock_s()
            try:
                self._end_waits(now_s)
            except Exception as error:  # a bug at one request must not end this for all others
                asyncio.get_running_loop().call_exception_handler({"message": "a purse's tick", "exception": error})
            if beat % 4 == 0:
                self._return_idle(now_s)
                if self._stats is not None:
                    counts = {"opened": self.n_opened, "settled": self.n_settled, **self.counts}
                    mine = {f"purse_{name}": float(n) for name, n in counts.items()}
                    self._send(wire.Stats({**self._stats(), **mine}))

    def _end_waits(self, now_s: float) -> None:
        """Refuse who has waited too long for the owner; what goes wrong at one is raised when all are told."""
        late = [wish for pocket in self._pockets.values() for wish in pocket.late(now_s)]
        tell_all([*(partial(self._refuse, wish, "storage", None) for wish in late), *self.bearers.late(now_s)])

    def _return_idle(self, now_s: float) -> None:
        """Give back what was not used for a while; a hoard at one worker is a refusal at another."""
        if not self.connected:
            return
        for key_i, pocket in list(self._pockets.items()):
            back = pocket.idle_back(now_s)
            if back is not None:
                self._send(back)
            if pocket.is_done(now_s):
                del self._pockets[key_i]
                self.bearers.drop(pocket)

    # ---- whose key ----

    def who(self, bearer: bytes, then: Callable[[KeyView | Refusal], None]) -> None:
        """Say whose a key is, without opening anything."""
        self.bearers.find(
            bearer, self._clock_s(), lambda found: then(found.view if isinstance(found, Pocket) else found)
        )

    def _pocket(self, view: KeyView) -> Pocket:
        view.tenant_i = self._tenant_rows.get(view.tenant, -1)
        pocket = self._pockets.get(view.key_i)
        if pocket is None:
            pocket = self._pockets[view.key_i] = Pocket(view, used_s=self._clock_s())
        elif pocket.stop == "gone":
            pocket.stop = ""
        pocket.view = view
        return pocket

    # ---- opening ----

    def open(
        self,
        bearer: bytes,
        *,
        model_i: int,
        input_tokens: int,
        max_output_tokens: int,
        stream: bool,
        now_s: float,
        then: Then,
        digest: bytes = b"",
    ) -> None:
        """Open a request: call `then` with an Opened whose lease is durable, or with a Refusal; at once if it can be.

        `input_tokens` and `max_output_tokens` are upper bounds: the money for them is set aside. `digest` is the bearer's
        (`bearers.digest_of`), where the caller has it already.
        """
        if self.draining:
            return then(refusal("drain"))
        step = max_output_tokens if not stream or max_output_tokens < STEP_TOKENS else STEP_TOKENS
        pocket = self.bearers.quick(digest or digest_of(bearer), now_s)
        if pocket is not None and not pocket.wishes and pocket.view.tenant_i >= 0:
            prices = self._prices[pocket.view.tenant_i]
            tokens = input_tokens + step
            need_nano = (input_tokens * prices[0] + step * prices[2] + 999) // 1000
            lease = pocket.lease
            request_id = pocket.take(need_nano, tokens)
            if request_id:
                pocket.used_s = now_s
                assert lease is not None
                self._begin(
                    pocket, lease, request_id, need_nano, prices, model_i, input_tokens, step, max_output_tokens, stream, then,
                )  # fmt: skip
                if not pocket.asked and (request_id >= lease.low_id or pocket.money_nano < 4 * need_nano):
                    self._ask_ahead(pocket, need_nano)
                return
        want = Want(model_i, input_tokens, step, max_output_tokens, stream, then)
        if pocket is not None:
            self._open_in(pocket, want, now_s)
        else:
            self.bearers.find(bearer, now_s, lambda found: self._found(found, want))

    def _found(self, found: Pocket | Refusal, want: Want) -> None:
        if isinstance(found, Pocket):
            self._open_in(found, want, self._clock_s())
        else:
            self.counts["refused"] += 1
            want.then(found)

    def _open_in(self, pocket: Pocket, want: Want, now_s: float) -> None:
        """Open as soon as what is lacking has come."""
        tenant_i = pocket.view.tenant_i
        why: Refusal | None = None
        if tenant_i < 0:
            return want.then(refusal("gone"))
        prices = self._prices[tenant_i]
        need_nano = (want.input_tokens * prices[0] + want.step_tokens * prices[2] + 999) // 1000
        wish = Wish(need_nano, want.input_tokens + want.step_tokens, want, until_s=now_s + WAIT_S)
        pocket.used_s = now_s
        if pocket.wishes or pocket.lacks(wish):
            if pocket.refused_s > now_s and not pocket.wishes:
                why = refusal(pocket.refused, pocket.retry_s or None)
            elif not self.connected and now_s - self._down_s > WAIT_S:
                why = refusal("storage")
        if why is not None:
            self.counts["refused"] += 1
            return want.then(why)
        pocket.wishes.append(wish)
        self._serve(pocket)

    def _ask_ahead(self, pocket: Pocket, need_nano: int) -> None:
        """Ask for the next slice while this one lasts, so that nobody waits for it."""
        if self.connected:
            ahead = pocket.ahead(self._next_i(), need_nano)
            if ahead is not None:
                self._send(ahead)

    def _begin(
        self, pocket: Pocket, lease: Lease, request_id: int, need_nano: int, prices: tuple[int, int, int], model_i: int,
        input_tokens: int, step: int, max_tokens: int, stream: bool, then: Then,
    ) -> None:  # fmt: skip
        tokens = input_tokens + step
        tenant_i = pocket.view.tenant_i
        slot = self.marks.begin(
            request_id, self._utc_ns(), prices, input_tokens, self._tables_version, model_i, tenant_i,
            self._regions[tenant_i], stream,
        )  # fmt: skip
        if not slot:
            if pocket.skip(lease, need_nano, tokens):
                self._void(pocket, lease)
            return then(refusal("storage"))
        opened = Opened(request_id, pocket, lease, need_nano, tokens, max_tokens)
        opened.stream = stream
        opened.mark = slot
        opened._cell = slot * CELLS + COUNT_CELL
        opened.prices, opened._output_pico = prices, prices[2]
        opened.until = step
        opened.ask_at = step // 2 if step < max_tokens else step
        self._open[request_id] = opened
        self.n_opened += 1
        then(opened)

    def _void(self, pocket: Pocket, lease: Lease) -> None:
        self._send(wire.Return(pocket.view.key_i, 0, 0, 0, 0, [lease.lease_id]))

    # ---- waiting ----

    def _serve(self, pocket: Pocket) -> None:
        """Open what waits and can be opened, ask for the rest; who ends at once gives back what the next one waits for."""
        if pocket.serving:  # the loop that is at it goes on
            return
        pocket.serving = True
        try:
            tell_all(self._grants(pocket))
        finally:
            pocket.serving = False
            if pocket.wishes and not pocket.asked and self.connected:
                self.counts["asks"] += 1
                self._send(pocket.ask(self._next_i()))

    def _grants(self, pocket: Pocket) -> Iterator[Callable[[], None]]:
        while pocket.wishes and not pocket.lacks(pocket.wishes[0]):
            yield partial(self._grant, pocket, pocket.wishes.popleft())

    def _grant(self, pocket: Pocket, wish: Wish) -> None:
        """Give a wish what it waited for."""
        if wish.renewal:
            self._steps.renewed(pocket, wish)
            return
        if pocket.view.tenant_i < 0:  # its tenant left the fleet file while it waited
            self._refuse(wish, "gone", None)
            return
        lease, request_id = pocket.lease, pocket.take(wish.money_nano, wish.tokens)
        assert request_id and lease is not None
        self._begin(pocket, lease, request_id, wish.money_nano, self._prices[pocket.view.tenant_i], *wish.item)

    def _refuse(self, wish: Wish, reason: str, retry_s: float | None) -> None:
        if wish.renewal:
            return self._steps.take_last(wish, reason)
        self.counts["refused"] += 1
        wish.item.then(refusal(reason, retry_s))

    def _granted(self, grant: wire.Grant) -> None:
        pocket = self._pockets.get(grant.key_i)
        if pocket is None:  # its worker had let go of it meanwhile
            self._send(
                wire.Return(
                    grant.key_i, grant.money_nano, grant.tokens, grant.requests, grant.permits,
                    [grant.lease_id] if grant.n_ids else [],
                )
            )  # fmt: skip
            return
        pocket.granted(grant)
        self._serve(pocket)

    def _refused(self, no: wire.Refuse) -> None:
        pocket = self._pockets.get(no.key_i)
        if pocket is None or pocket.asked != no.ask_i:
            return
        ended = pocket.refuse(no.reason)
        if ended and not ended[0].renewal:
            pocket.refused, pocket.retry_s = no.reason, no.retry_s
            pocket.refused_s = self._clock_s() + min(REFUSED_S, no.retry_s or REFUSED_S)
        for wish in ended:
            self._refuse(wish, no.reason, no.retry_s or None)
        self._serve(pocket)

    # ---- following ----

    def sends(self, opened: Opened, output_tokens: int) -> bool:
        """Say whether more may follow the tokens of the answer that were sent so far; False: stop, or hold (see above)."""
        return output_tokens <= opened.ask_at or self._steps.extend(opened, output_tokens)

    def delivered(self, opened: Opened, output_tokens: int) -> None:
        """Note that the client's socket took so many tokens of the answer in all."""
        opened.output_tokens = output_tokens
        cell = opened._cell
        self.marks.delivered(cell, output_tokens, opened.request_id)
        opened._cell = cell ^ 1

    def routed(self, opened: Opened, replica_i: int) -> None:
        """Note where the request was sent, for the row that a crash leaves to the owner."""
        self.marks.routed(opened.mark, opened.request_id, replica_i)

    # ---- ending ----

    def settle(self, opened: Opened, row: SettleRow) -> None:
        """End a request with its row, exactly once, whatever happened; ids and pseudonyms are filled in here."""
        if opened._done:
            return
        opened._done = True
        pocket = opened._pocket
        row.request_id = opened.request_id
        row.tenant, row.key = pocket.view.tenant_pseudonym, pocket.view.key
        price_nano, given = row.price_nano, row.input_tokens
        cached, output = row.cached_tokens, row.output_tokens
        if not (0 <= cached <= given <= _MOST_TOKENS and 0 <= output <= _MOST_TOKENS and 0 <= price_nano <= _MOST_NANO):
            price_nano = row.price_nano = min(max(0, price_nano), _MOST_NANO)
            given = row.input_tokens = min(max(0, given), _MOST_TOKENS)
            cached = row.cached_tokens = min(max(0, cached), given)
            output = row.output_tokens = min(max(0, output), _MOST_TOKENS)
        self.marks.settle(
            opened.mark, opened.request_id, price_nano=price_nano, input_tokens=given, cached_tokens=cached,
            output_tokens=output, status=row.status & 3,
        )  # fmt: skip
        overdrawn = pocket.give(opened.reserved_nano, price_nano, opened._tokens - given - output)
        del self._open[opened.request_id]
        if opened._wished:
            pocket.wishes = deque(wish for wish in pocket.wishes if wish.item is not opened)
        self.n_settled += 1
        self._outbox.put(row, opened, overdrawn)
        if pocket.wishes:
            self._serve(pocket)

    def cancel(self, opened: Opened) -> None:
        """End a request that was never forwarded: it costs nothing, and its id is made void."""
        if opened._done:
            return
        opened._done = True
        pocket = opened._pocket
        self.marks.free(opened.mark)
        del self._open[opened.request_id]
        if pocket.skip(opened._lease, opened.reserved_nano, opened._tokens):
            self._void(pocket, opened._lease)
        if pocket.wishes:
            self._serve(pocket)

    def _stored(self, message: wire.Stored) -> None:
        for row, opened in self._outbox.stored(message.batch_i):
            self.marks.free(opened.mark)
            if opened._pocket.stored(opened._lease, row.price_nano):
                self._void(opened._pocket, opened._lease)

    def receipt(self, view: KeyView, request_id: int, then: Callable[[bytes | None], None]) -> bool:
        """Ask for a receipt (JSON) of a request that this key made, None where there is none; False: too many are asked for."""
        if not self.connected:
            then(None)
        elif len(self._receipts) >= RECEIPTS_MOST:
            return False
        else:
            ask_i = self._next_i()
            self._receipts[ask_i] = then
            self._send(wire.ReceiptAsk(ask_i, view.key_i, request_id))
        return True

    # ---- what the owner says ----

    def _heard(self, connection: Wire, message: Any) -> None:
        match message:
            case wire.Grant():
                self._granted(message)
            case wire.Stored():
                self._stored(message)
            case wire.Refuse():
                self._refused(message)
            case wire.KeyIs():
                self.bearers.answered(message)
            case wire.Recall():
                pocket = self._pockets.get(message.key_i)
                back = pocket.back(recalled=True) if pocket else wire.Return(message.key_i, 0, 0, 0, 0, [], True)
                self._send(back)
            case wire.Stop():
                self._stop_key(message)
            case wire.Forget():
                self.bearers.forget()
            case wire.ReceiptIs():
                if (then := self._receipts.pop(message.ask_i, None)) is not None:
                    then(message.blob)
            case wire.Reload():
                if self._on_reload is not None:
                    self._on_reload(message.version, message.path)
            case wire.Drain():
                self.draining = True
                if self._on_drain is not None:
                    self._on_drain(message.deadline_s)
            case _:
                pass  # Welcome, Storage: nothing to do

    def _stop_key(self, message: wire.Stop) -> None:
        pocket = self._pockets.get(message.key_i)
        if pocket is None:
            return
        pocket.stop = message.why  # first: behind what ends here its client's next request may wait
        wishes, pocket.wishes = pocket.wishes, deque()
        for opened in [o for o in self._open.values() if o._pocket is pocket]:
            self._steps.stop(opened, "budget" if message.why == "budget" else "revoked")
        for wish in wishes:
            self._refuse(wish, message.why, None)
        if message.why == "budget":
            pocket.stop = ""  # it may be raised again
        self._send(pocket.back())
