"""The bank: who may spend how much, and which slices of it lie with which worker. Pure: told the time, does no I/O.

Two accounts bound each request, the key's and its tenant's. An account has a budget (a key's for its whole life, a
tenant's for a UTC month), requests and tokens a minute (token buckets), and permits to run at once. Workers lease
slices: big ones far from a limit, small ones near it. Before anyone is refused, everybody's unused slices of the two
accounts are recalled. At all times, for each account,

    spent + held by workers <= budget + what delivered chunks cost beyond what was held

and the last term is at most one chunk a running stream. `held` goes down by each settled price and each return, never by
itself; a worker's own sum of unused, reserved and unstored money is the same number once its messages have arrived.
What the worker does with a slice is `pouch.py`; durability and sockets are `owner.py`.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Literal, NamedTuple

from baseload.serve.wire import Ask, Grant, Pouch, Recall, Refuse, Return, Stop

UNLIMITED = 1 << 50  # what is granted at once of something that has no limit: a million of the currency, in nano
RECALL_S = 0.25  # how long a worker may take to answer; a hung one keeps its slice, and others are refused
GROW_S = 30.0  # ids used up faster than this: the next lease is twice as long
IDS_LEAST, IDS_MOST = 16, 2048
LIKE_MOST = 256  # a slice holds at most so many times what was asked for
REFUSALS: dict[str, str] = {  # in the order in which they are told
    "revoked": "the key was revoked",
    "concurrency": "too many requests at once",
    "requests": "too many requests a minute",
    "tokens": "too many tokens a minute",
    "budget": "the budget is spent",
    "storage": "the ledger cannot be written",
}

Change = Grant | Refuse | Recall | Stop


class Limits(NamedTuple):
    """What an account may do; None: no limit."""

    budget_nano: int | None = None
    rpm: int | None = None
    tpm: int | None = None
    concurrency: int | None = None


@dataclass(slots=True)
class Bucket:
    """A token bucket that holds a minute's worth: `per_minute` None never runs dry."""

    per_minute: int | None
    level: float = 0.0
    at_s: float = 0.0

    def filled(self, now_s: float) -> float:
        """Return what is in it now."""
        if self.per_minute is None:
            return float(UNLIMITED)
        if now_s > self.at_s:  # a clock that stands still or runs back fills nothing
            self.level = min(float(self.per_minute), self.level + (now_s - self.at_s) * self.per_minute / 60.0)
            self.at_s = now_s
        return self.level

    def take(self, n: int) -> None:
        """Take, or with a negative number give back; it never holds more than a minute's worth."""
        if self.per_minute is not None:
            self.level = min(float(self.per_minute), self.level - n)

    def wait_s(self, n: int) -> float:
        """Return how long until `n` are in it."""
        if self.per_minute is None or n <= self.level:
            return 0.0
        return 60.0 if self.per_minute == 0 else min(3600.0, (n - self.level) * 60.0 / self.per_minute)

    def change(self, per_minute: int | None, now_s: float) -> None:
        """Take up another limit; what was used in the last minute stays used."""
        if per_minute == self.per_minute:
            return
        used = 0.0 if self.per_minute is None else self.per_minute - self.filled(now_s)
        self.per_minute, self.at_s = per_minute, now_s
        self.level = 0.0 if per_minute is None else float(per_minute) - used


@dataclass(slots=True)
class Account:
    """A key's or a tenant's limits, and what is used of them."""

    limits: Limits
    requests: Bucket
    tokens: Bucket
    spent_nano: int = 0
    held_nano: int = 0
    permits: int = 0  # with workers, in use or not
    overdrawn_nano: int = 0
    month: str = ""  # of spent_nano; '': since ever

    @property
    def free_nano(self) -> int:
        """Return the money that is neither spent nor held; below zero where it was overdrawn, or the budget cut."""
        if self.limits.budget_nano is None:
            return UNLIMITED
        return self.limits.budget_nano - self.spent_nano - self.held_nano

    @property
    def free_permits(self) -> int:
        """Return how many more may run at once."""
        return UNLIMITED if self.limits.concurrency is None else self.limits.concurrency - self.permits


@dataclass(slots=True)
class Held:
    """What one worker holds of one key."""

    money_nano: int = 0
    permits: int = 0
    ids_size: int = IDS_LEAST // 2
    ids_at_s: float = -1e9


@dataclass(slots=True)
class _Waiting:
    worker: int
    ask: Ask
    since_s: float
    recalled: set[tuple[int, int]] | None = None  # (worker, key) that have not answered; None: nobody asked yet


@dataclass(slots=True)
class Bank:
    """Accounts, what workers hold, and asks that wait for a recall. Each method returns what to tell whom."""

    next_id: int = 1
    month: str = ""
    keys: dict[int, Account] = field(default_factory=dict)
    tenants: dict[str, Account] = field(default_factory=dict)
    tenant_of: dict[int, str] = field(default_factory=dict)
    keys_of: dict[str, set[int]] = field(default_factory=dict)
    held: dict[int, dict[int, Held]] = field(default_factory=dict)  # by worker, by key
    stopped: dict[int, Literal["revoked", "gone"]] = field(default_factory=dict)
    waiting: deque[_Waiting] = field(default_factory=deque)

    # ---- what there is ----

    def set_tenant(
        self, tenant: str, limits: Limits, now_s: float, *, spent_nano: int | None = None
    ) -> list[tuple[int, Change]]:
        """Take up a tenant, or its new limits; `spent_nano` of this month, from the ledger."""
        before = self.tenants.get(tenant)
        was = before.limits if before is not None else limits
        self.tenants[tenant] = _account(before, limits, now_s, spent_nano, self.month)
        keys = sorted(self.keys_of.get(tenant, ())) if was != limits else []
        return [told for key_i in keys for told in self._bound(key_i)]

    def set_key(
        self, key_i: int, tenant: str, limits: Limits, now_s: float, *, spent_nano: int | None = None
    ) -> list[tuple[int, Change]]:
        """Take up a key of a tenant that is known, or its new limits; `spent_nano` since ever."""
        assert tenant in self.tenants, tenant
        assert self.tenant_of.get(key_i, tenant) == tenant
        before = self.keys.get(key_i)
        was = before.limits if before is not None else limits
        self.keys[key_i] = _account(before, limits, now_s, spent_nano, "")
        self.tenant_of[key_i] = tenant
        self.keys_of.setdefault(tenant, set()).add(key_i)
        return self._bound(key_i) if was != limits else []

    def _bound(self, key_i: int) -> list[tuple[int, Change]]:
        """Make new limits hold at once: unused slices come back; where the budget is spent already, streams stop."""
        spent = any(
            a.limits.budget_nano is not None and a.spent_nano >= a.limits.budget_nano for a in self._both(key_i)
        )
        return [
            (worker, Stop(key_i, "budget") if spent else Recall(key_i))
            for worker, held in self.held.items()
            if key_i in held
        ]

    def turn_month(self, month: str) -> None:
        """Begin a month: tenants' budgets are whole again; what is held stays held."""
        if month > self.month:
            self.month = month
            for account in self.tenants.values():
                account.spent_nano, account.month = 0, month

    def stop(self, key_i: int, why: Literal["revoked", "gone"], now_s: float) -> list[tuple[int, Change]]:
        """Refuse a key from now on, and stop its streams."""
        self.stopped[key_i] = why
        told: list[tuple[int, Change]] = [(w, Stop(key_i, why)) for w, held in self.held.items() if key_i in held]
        return told + self._settle_waiting(now_s)

    def allow(self, key_i: int) -> None:
        """Take a key up again whose tenant came back."""
        self.stopped.pop(key_i, None)

    # ---- workers come and go ----

    def hello(self, worker: int, pouches: Iterable[Pouch], now_s: float) -> list[tuple[int, Change]]:
        """Believe a worker that says what it holds; its earlier asks are forgotten, it asks again."""
        before = self.held.pop(worker, {})
        for key_i, held in before.items():
            self._move(key_i, -held.money_nano, -held.permits)
        mine = self.held.setdefault(worker, {})
        for pouch in pouches:
            held = mine[pouch.key_i] = before.get(pouch.key_i, Held())
            held.money_nano, held.permits = pouch.money_nano, pouch.permits
            self._move(pouch.key_i, pouch.money_nano, pouch.permits)
        self._unask(worker)
        return self._settle_waiting(now_s)

    def leave(self, worker: int, now_s: float) -> list[tuple[int, Change]]:
        """A worker is dead and its requests are settled: what it held is free."""
        for key_i, held in self.held.pop(worker, {}).items():
            self._move(key_i, -held.money_nano, -held.permits)
        self._unask(worker)
        return self._settle_waiting(now_s)

    def _unask(self, worker: int) -> None:
        self.waiting = deque(w for w in self.waiting if w.worker != worker)
        for waiting in self.waiting:
            if waiting.recalled is not None:
                waiting.recalled = {pair for pair in waiting.recalled if pair[0] != worker}

    def _move(self, key_i: int, money_nano: int, permits: int) -> None:
        for account in (self.keys[key_i], self.tenants[self.tenant_of[key_i]]):
            account.held_nano += money_nano
            account.permits += permits

    # ---- what workers say ----

    def settled(self, worker: int, key_i: int, price_nano: int, *, again: bool = False) -> None:
        """Book a settled price; `again`: the row is in the ledger already, so only the worker's share of it goes."""
        held = self.held.setdefault(worker, {}).setdefault(key_i, Held())
        held.money_nano -= price_nano
        self._move(key_i, -price_nano, 0)
        if not again:
            self.recovered(key_i, price_nano)

    def recovered(self, key_i: int, price_nano: int) -> None:
        """Book a price that a dead worker's marks told."""
        self.keys[key_i].spent_nano += price_nano
        self.tenants[self.tenant_of[key_i]].spent_nano += price_nano

    def overdrawn(self, worker: int, key_i: int, nano: int) -> None:
        """Book what a delivered chunk cost beyond what the worker held: it happened, so it counts."""
        held = self.held.setdefault(worker, {}).setdefault(key_i, Held())
        held.money_nano += nano
        self._move(key_i, nano, 0)
        for account in (self.keys[key_i], self.tenants[self.tenant_of[key_i]]):
            account.overdrawn_nano += nano

    def returned(self, worker: int, back: Return, now_s: float) -> list[tuple[int, Change]]:
        """Take back what is unused; who waited for it goes first."""
        held = self.held.setdefault(worker, {}).setdefault(back.key_i, Held())
        held.money_nano -= back.money_nano
        held.permits -= back.permits
        self._move(back.key_i, -back.money_nano, -back.permits)
        for account in (self.keys[back.key_i], self.tenants[self.tenant_of[back.key_i]]):
            account.requests.filled(now_s)
            account.requests.take(-back.requests)
            account.tokens.filled(now_s)
            account.tokens.take(-back.tokens)
        for waiting in self.waiting:
            if waiting.worker == worker and waiting.ask.key_i == back.key_i:
                _lacks_also(waiting.ask, back)  # it was asked for beside what is now gone
            if back.recalled and waiting.recalled is not None:
                waiting.recalled.discard((worker, back.key_i))
        return self._settle_waiting(now_s)

    def ask(self, worker: int, ask: Ask, now_s: float) -> list[tuple[int, Change]]:
        """Answer an ask at once, or after a recall; one ask of a worker for a key at a time."""
        self.waiting.append(_Waiting(worker, ask, now_s))
        return self._settle_waiting(now_s)

    def tick(self, now_s: float) -> list[tuple[int, Change]]:
        """Give up on recalls that nobody answered."""
        for waiting in self.waiting:
            if waiting.recalled and now_s - waiting.since_s >= RECALL_S:
                waiting.recalled = set()
        return self._settle_waiting(now_s)

    # ---- deciding ----

    def _settle_waiting(self, now_s: float) -> list[tuple[int, Change]]:
        """Answer whoever can be answered, in the order of asking: nobody overtakes an older ask of the same tenant."""
        told: list[tuple[int, Change]] = []
        blocked: set[str] = set()
        for waiting in list(self.waiting):
            tenant = self.tenant_of.get(waiting.ask.key_i, "")
            if tenant in blocked:
                continue
            answers, done = self._try(waiting, now_s)
            told += answers
            if done:
                self.waiting.remove(waiting)
            else:
                blocked.add(tenant)
        return told

    def _try(self, waiting: _Waiting, now_s: float) -> tuple[list[tuple[int, Change]], bool]:
        ask, worker = waiting.ask, waiting.worker
        if ask.key_i not in self.keys or ask.key_i in self.stopped:
            return [(worker, Refuse(ask.key_i, ask.ask_i, "revoked", 0.0))], True
        lacking = self._lacking(ask, now_s)
        if not lacking:
            return [(worker, self._grant(worker, ask, now_s))], True
        if waiting.recalled is None:
            waiting.recalled = self._recallable(worker, ask.key_i, lacking)
            waiting.since_s = now_s
            if waiting.recalled:
                return [(w, Recall(key_i)) for w, key_i in sorted(waiting.recalled)], False
        if waiting.recalled:
            return [], False
        if lacking == ["budget"] and ask.partly and self._free_nano(ask.key_i) > 0:
            ask.money_nano = self._free_nano(ask.key_i)
            return [(worker, self._grant(worker, ask, now_s))], True
        reason = next(word for word in REFUSALS if word in lacking)
        return [(worker, Refuse(ask.key_i, ask.ask_i, reason, self._retry_s(ask, reason)))], True

    def _both(self, key_i: int) -> tuple[Account, Account]:
        return self.keys[key_i], self.tenants[self.tenant_of[key_i]]

    def _free_nano(self, key_i: int) -> int:
        return min(account.free_nano for account in self._both(key_i))

    def _lacking(self, ask: Ask, now_s: float) -> list[str]:
        both = self._both(ask.key_i)
        found = []
        if ask.permits > 0 and min(a.free_permits for a in both) < ask.permits:
            found.append("concurrency")
        if ask.requests > 0 and min(a.requests.filled(now_s) for a in both) < ask.requests:
            found.append("requests")
        if ask.tokens > 0 and min(a.tokens.filled(now_s) for a in both) < ask.tokens:
            found.append("tokens")
        if ask.money_nano > 0 and self._free_nano(ask.key_i) < ask.money_nano:
            found.append("budget")
        return found

    def _recallable(self, worker: int, key_i: int, lacking: list[str]) -> set[tuple[int, int]]:
        """Return who may hold unused slices of the account that is short: of the key, or of its tenant."""
        tenant = self.tenants[self.tenant_of[key_i]]
        short_tenant = (
            ("budget" in lacking and tenant.limits.budget_nano is not None)
            or ("concurrency" in lacking and tenant.limits.concurrency is not None)
            or ("requests" in lacking and tenant.limits.rpm is not None)
            or ("tokens" in lacking and tenant.limits.tpm is not None)
        )
        keys = self.keys_of[self.tenant_of[key_i]] if short_tenant else {key_i}
        rates = "requests" in lacking or "tokens" in lacking  # of these it is not kept who holds them
        found = set()
        for w, held in self.held.items():
            for k in keys & held.keys():
                if (w, k) != (worker, key_i) and (
                    rates
                    or ("budget" in lacking and held[k].money_nano > 0)
                    or ("concurrency" in lacking and held[k].permits > 0)
                ):
                    found.add((w, k))
        return found

    def _retry_s(self, ask: Ask, reason: str) -> float:
        both = self._both(ask.key_i)
        if reason == "requests":
            return max(a.requests.wait_s(ask.requests) for a in both)
        if reason == "tokens":
            return max(a.tokens.wait_s(ask.tokens) for a in both)
        return 1.0 if reason == "concurrency" else 0.0

    def _grant(self, worker: int, ask: Ask, now_s: float) -> Grant:
        """Return at least what was asked, and more of it the farther the limits are."""
        key_i, n_workers = ask.key_i, max(1, len(self.held))
        like = max(1, min(ask.like, LIKE_MOST)) * (16 if n_workers > 1 else 64)
        both = self._both(key_i)
        held = self.held.setdefault(worker, {}).setdefault(key_i, Held())
        money = _slice(ask.money_nano, self._free_nano(key_i), like, n_workers)
        permits = _slice(ask.permits, min(a.free_permits for a in both), 4, n_workers)
        requests = _rate_slice(ask.requests, [a.requests for a in both], now_s, n_workers)
        tokens = _rate_slice(ask.tokens, [a.tokens for a in both], now_s, n_workers)
        held.money_nano += money
        held.permits += permits
        self._move(key_i, money, permits)
        for account in both:
            account.requests.take(requests)
            account.tokens.take(tokens)
        lease_id, n_ids = 0, 0
        if ask.ids > 0:
            quick = now_s - held.ids_at_s < GROW_S
            held.ids_size = min(IDS_MOST, held.ids_size * 2) if quick else max(IDS_LEAST, held.ids_size // 2)
            held.ids_at_s = now_s
            n_ids = max(ask.ids, held.ids_size)
            lease_id, self.next_id = self.next_id, self.next_id + n_ids
        return Grant(key_i, ask.ask_i, money, tokens, requests, permits, lease_id, n_ids)

    # ---- looking ----

    def check(self) -> None:
        """Assert that the books agree: accounts are the sums of what their workers hold."""
        for key_i, account in self.keys.items():
            mine = [held[key_i] for held in self.held.values() if key_i in held]
            assert account.held_nano == sum(h.money_nano for h in mine), key_i
            assert account.permits == sum(h.permits for h in mine), key_i
        for name, account in self.tenants.items():
            of = [key_i for key_i, tenant in self.tenant_of.items() if tenant == name]
            assert account.held_nano == sum(self.keys[key_i].held_nano for key_i in of), name
            assert account.permits == sum(self.keys[key_i].permits for key_i in of), name
        for account in self.accounts():
            for bucket in (account.requests, account.tokens):
                assert bucket.per_minute is None or bucket.level <= bucket.per_minute

    def accounts(self) -> Iterable[Account]:
        """Return every account, keys first."""
        return [*self.keys.values(), *self.tenants.values()]


def _account(before: Account | None, limits: Limits, now_s: float, spent_nano: int | None, month: str) -> Account:
    if before is None:
        return Account(
            limits,
            Bucket(limits.rpm, float(limits.rpm or 0), now_s),
            Bucket(limits.tpm, float(limits.tpm or 0), now_s),
            spent_nano=spent_nano or 0,
            month=month,
        )
    before.limits = limits
    before.requests.change(limits.rpm, now_s)
    before.tokens.change(limits.tpm, now_s)
    if spent_nano is not None:
        before.spent_nano = spent_nano
    return before


def _slice(need: int, free: int, like: int, n_workers: int) -> int:
    """Return how much to grant of something of which `free` is left and `need` (at most that) is wanted.

    >>> _slice(10, 10_000, 16, 4), _slice(10, 100, 16, 4), _slice(10, 12, 16, 4), _slice(10, 10_000, 1024, 1)
    (160, 21, 10, 10000)
    """
    if need <= 0:
        return 0
    if free >= UNLIMITED:
        return UNLIMITED
    spare = free - need if n_workers == 1 else (free - need) // (2 * n_workers)
    return need + max(0, min(spare, need * (like - 1)))


def _rate_slice(need: int, buckets: list[Bucket], now_s: float, n_workers: int) -> int:
    """Return how much of a rate to grant: what is needed, and what flows in two seconds, shared between workers."""
    if need <= 0:
        return 0
    free = min(bucket.filled(now_s) for bucket in buckets)
    if free >= UNLIMITED:
        return UNLIMITED
    flow = min(bucket.per_minute for bucket in buckets if bucket.per_minute is not None) // 30
    return need + max(0, min(int(free) - need, flow) // n_workers)


def _lacks_also(ask: Ask, back: Return) -> None:
    if ask.requests > 0 or ask.permits > 0 or ask.ids > 0:  # a stream's renewal needs money alone
        ask.requests += back.requests if ask.requests > 0 else 0
        ask.permits += back.permits if ask.permits > 0 else 0
        ask.tokens += back.tokens if ask.tokens > 0 else 0
    if ask.money_nano > 0:
        ask.money_nano += back.money_nano
