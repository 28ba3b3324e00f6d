"""A pocket: what one worker holds of one key, and who waits for more of it. Pure, the other half of `bank.py`.

`money_nano` is unused; `reserved_nano` is promised to open requests; `unstored_nano` are prices of rows that the owner
has not stored yet. Their sum is what the owner's bank believes this worker holds, once messages have arrived. It never
goes below zero: what a delivered chunk costs beyond it is told to the owner as overdrawn, and counts.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass, field
from typing import Any, Final

from baseload.serve.wire import Ask, Grant, KeyView, Pouch, Return

IDLE_RATES_S: Final = 2.0  # unused for so long, it goes back
IDLE_MONEY_S: Final = 10.0
IDLE_LEASE_S: Final = 30.0
AHEAD: Final = 8  # the next lease of ids is asked for when less than an eighth of this one is left


@dataclass(slots=True, eq=False)
class Lease:
    """Request ids [next_id, end_id) that may still be used; `n_open` are used and not stored."""

    lease_id: int
    next_id: int
    end_id: int
    low_id: int  # from here on, more are asked for
    n_open: int = 0
    n_skipped: int = 0


@dataclass(slots=True, eq=False)
class Wish:
    """A request, or a running stream's renewal, that waits for more."""

    money_nano: int
    tokens: int
    item: Any
    renewal: bool = False
    until_s: float = 0.0


@dataclass(slots=True, eq=False)
class Pocket:
    """What is held of a key. `take` and `give` are the common path."""

    view: KeyView
    money_nano: int = 0
    tokens: int = 0
    requests: int = 0
    permits: int = 0
    reserved_nano: int = 0
    unstored_nano: int = 0
    n_open: int = 0
    lease: Lease | None = None
    leases: dict[int, Lease] = field(default_factory=dict)  # every one that has open or unused ids
    spare: deque[Lease] = field(default_factory=deque)  # not begun
    wishes: deque[Wish] = field(default_factory=deque)
    serving: bool = False  # what waits is being opened just now
    asked: int = 0  # number of the ask under way; 0: none
    asked_by: Wish | None = None  # whom it is for; None: for nobody yet
    asked_nano: int = 0
    granted_nano: int = 0  # by the last grant
    stop: str = ""
    used_s: float = 0.0
    refused_s: float = -1.0  # until then the same answer is given without asking
    refused: str = ""
    retry_s: float = 0.0

    # ---- the common path ----

    def take(self, money_nano: int, tokens: int) -> int:
        """Return a request id with money, tokens and a permit taken for it; 0 where something is lacking."""
        lease = self.lease
        if (
            lease is None
            or self.money_nano < money_nano
            or self.tokens < tokens
            or self.requests < 1
            or self.permits < 1
        ):
            return 0
        request_id = lease.next_id
        lease.next_id = request_id + 1
        lease.n_open += 1
        if lease.next_id >= lease.end_id:
            self.lease = self.spare.popleft() if self.spare else None
        self.money_nano -= money_nano
        self.reserved_nano += money_nano
        self.tokens -= tokens
        self.requests -= 1
        self.permits -= 1
        self.n_open += 1
        return request_id

    def give(self, reserved_nano: int, price_nano: int, tokens: int) -> int:
        """End a request: free what it did not need (`tokens` may be negative); return what it overdrew."""
        self.reserved_nano -= reserved_nano
        self.unstored_nano += price_nano
        self.money_nano += reserved_nano - price_nano
        self.tokens += tokens
        self.permits += 1
        self.n_open -= 1
        if self.money_nano >= 0:
            return 0
        overdrawn, self.money_nano = -self.money_nano, 0
        return overdrawn

    def renew(self, money_nano: int) -> bool:
        """Reserve more for a running stream."""
        if self.money_nano < money_nano:
            return False
        self.money_nano -= money_nano
        self.reserved_nano += money_nano
        return True

    def stored(self, lease: Lease, price_nano: int) -> bool:
        """A request's row is stored; True where the rest of its lease, ids that were skipped, is to be made void."""
        self.unstored_nano -= price_nano
        lease.n_open -= 1
        return self._tidy(lease)

    def skip(self, lease: Lease, reserved_nano: int, tokens: int) -> bool:
        """End a request that was never forwarded: its id will be made void; True as in `stored`."""
        self.give(reserved_nano, 0, tokens)
        self.requests += 1
        lease.n_open -= 1
        lease.n_skipped += 1
        return self._tidy(lease)

    def _tidy(self, lease: Lease) -> bool:
        if lease.n_open or lease.next_id < lease.end_id:
            return False
        self.leases.pop(lease.lease_id, None)
        return lease.n_skipped > 0

    # ---- asking ----

    def lacks(self, wish: Wish) -> bool:
        """Say whether a wish cannot be met from here."""
        if wish.renewal:
            return self.money_nano < wish.money_nano
        return (
            self.lease is None
            or self.money_nano < wish.money_nano
            or self.tokens < wish.tokens
            or self.requests < 1
            or self.permits < 1
        )

    def ask(self, ask_i: int) -> Ask:
        """Return what to ask for, so that the first wish comes true."""
        wish = self.wishes[0]
        money_nano = max(0, wish.money_nano - self.money_nano)
        self.asked, self.asked_by, self.asked_nano = ask_i, wish, money_nano
        key_i = self.view.key_i
        if wish.renewal:
            return Ask(key_i, ask_i, money_nano, 0, 0, 0, 0, like=1, partly=True)
        return Ask(
            key_i,
            ask_i,
            money_nano,
            max(0, wish.tokens - self.tokens),
            max(0, 1 - self.requests),
            max(0, 1 - self.permits),
            0 if self.lease is not None else 1,
            like=len(self.wishes),
        )

    def ahead(self, ask_i: int, need_nano: int) -> Ask | None:
        """Return what to ask for before it is needed, where a limit is far: ids run low, or money does."""
        lease = self.lease
        ids = 1 if (lease is None or lease.next_id >= lease.low_id) and not self.spare else 0
        money = need_nano if self.money_nano < 4 * need_nano and self.granted_nano > 16 * need_nano else 0
        if not ids and not money:
            return None
        self.asked, self.asked_by = ask_i, None
        return Ask(self.view.key_i, ask_i, money, 0, 0, 0, ids, like=4)

    def granted(self, grant: Grant) -> None:
        """Put a grant in. A stream that was granted a part of what it asked for has the last there is."""
        self.money_nano += grant.money_nano
        if grant.ask_i == self.asked:
            wish, self.asked, self.asked_by = self.asked_by, 0, None
            if wish is not None and wish.renewal and 0 < grant.money_nano < self.asked_nano:
                wish.money_nano = min(wish.money_nano, self.money_nano)
        self.tokens += grant.tokens
        self.requests += grant.requests
        self.permits += grant.permits
        if grant.money_nano:
            self.granted_nano = grant.money_nano
        if grant.n_ids:
            end_id = grant.lease_id + grant.n_ids
            lease = Lease(grant.lease_id, grant.lease_id, end_id, end_id - grant.n_ids // AHEAD)
            self.leases[grant.lease_id] = lease
            if self.lease is None:
                self.lease = lease
            else:
                self.spare.append(lease)
        self.refused_s = -1.0

    def refuse(self, reason: str) -> list[Wish]:
        """Return the wishes that a refusal ends: the one that asked, and those that want no less of the same."""
        head, self.asked, self.asked_by = self.asked_by, 0, None
        if head is None or head not in self.wishes:
            return []  # it was asked ahead, or for a stream that is over
        ended = [head]
        kept: list[Wish] = []
        for wish in self.wishes:
            same = wish.renewal == head.renewal and wish.money_nano >= head.money_nano and wish.tokens >= head.tokens
            if wish is not head:
                (ended if same or reason == "revoked" else kept).append(wish)
        self.wishes = deque(kept)
        return ended

    # ---- giving back, and saying what is there ----

    def back(self, *, rates: bool = True, money: bool = True, leases: bool = False, recalled: bool = False) -> Return:
        """Return what is unused, and hold it no longer; with `leases`, also those without an open request."""
        requests, tokens, permits = (self.requests, max(0, self.tokens), self.permits) if rates else (0, 0, 0)
        money_nano = self.money_nano if money else 0
        self.requests -= requests
        self.tokens -= tokens
        self.permits -= permits
        self.money_nano -= money_nano
        ids: list[int] = []
        if leases:
            ids = [lease_id for lease_id, lease in self.leases.items() if not lease.n_open]
            for lease_id in ids:
                lease = self.leases.pop(lease_id)
                if lease is self.lease:
                    self.lease = None
                elif lease in self.spare:
                    self.spare.remove(lease)
            if self.lease is None and self.spare:
                self.lease = self.spare.popleft()
        return Return(self.view.key_i, money_nano, tokens, requests, permits, ids, recalled)

    def idle_back(self, now_s: float) -> Return | None:
        """Return what was not used for a while, if anything: a hoard here is a refusal elsewhere."""
        idle_s = now_s - self.used_s
        if self.wishes or self.asked or idle_s < IDLE_RATES_S:
            return None
        back = self.back(money=idle_s >= IDLE_MONEY_S, leases=idle_s >= IDLE_LEASE_S)
        return back if back.money_nano or back.tokens or back.requests or back.permits or back.leases else None

    def late(self, now_s: float) -> list[Wish]:
        """Return who has waited too long, and let them wait no longer."""
        late = [wish for wish in self.wishes if wish.until_s <= now_s]
        if late:
            self.wishes = deque(wish for wish in self.wishes if wish.until_s > now_s)
        return late

    def is_done(self, now_s: float) -> bool:
        """Say whether nothing is left here, and has not been for long."""
        left = self.n_open or self.unstored_nano or self.leases or self.wishes or self.asked or self.money_nano
        return not left and now_s - self.used_s >= IDLE_LEASE_S

    def pouch(self) -> Pouch:
        """Return what is held, as it is said at hello; rates that were leased before are forgotten."""
        self.asked = 0
        money_nano = self.money_nano + self.reserved_nano + self.unstored_nano
        return Pouch(self.view.key_i, money_nano, self.permits + self.n_open, list(self.leases))

    def check(self) -> None:
        """Assert that nothing leaked."""
        assert self.money_nano >= 0 and self.reserved_nano >= 0 and self.unstored_nano >= 0
        assert self.permits >= 0 and self.requests >= 0 and self.n_open >= 0
        assert self.n_open or not self.reserved_nano
