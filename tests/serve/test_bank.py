"""The bank and its pockets: nobody overspends and nothing leaks, in whatever order messages arrive."""

from __future__ import annotations

import random
from collections import deque
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from baseload.serve import wire
from baseload.serve.bank import UNLIMITED, Bank, Bucket, Limits
from baseload.serve.pocket import Lease, Pocket, Wish
from baseload.serve.wire import KeyView

TENANT = "t_1"


def view(key_i: int) -> KeyView:
    """Return a key as a worker sees it."""
    return KeyView(key_i, "acme", "", f"k_{key_i}", TENANT, 0)


class Open:
    """A running request of the world below."""

    def __init__(self, worker: int, key_i: int, request_id: int, lease: Lease, reserved: int) -> None:
        self.worker, self.key_i, self.request_id, self.lease = worker, key_i, request_id, lease
        self.reserved = reserved
        self.used = 0


class World:
    """A bank, its workers' pockets, and messages under way, which arrive in order but whenever they like."""

    def __init__(self, n_workers: int, keys: dict[int, Limits], tenant: Limits) -> None:
        self.now_s = 1000.0
        self.bank = Bank()
        self.bank.set_tenant(TENANT, tenant, self.now_s)
        for key_i, limits in keys.items():
            self.bank.set_key(key_i, TENANT, limits, self.now_s)
        self.keys, self.tenant = keys, tenant
        self.pockets: list[dict[int, Pocket]] = []
        self.to_bank: list[deque[Any]] = []
        self.to_worker: list[deque[Any]] = []
        for worker in range(n_workers):
            self.bank.hello(worker, [], self.now_s)
            self.pockets.append({key_i: Pocket(view(key_i)) for key_i in keys})
            self.to_bank.append(deque())
            self.to_worker.append(deque())
        self.open: list[Open] = []
        self.unstored: list[tuple[int, int, Lease, int]] = []
        self.ids: set[int] = set()
        self.spent = dict.fromkeys(keys, 0)
        self.overdrawn = dict.fromkeys(keys, 0)
        self.refused: list[str] = []
        self.ask_i = 0

    # ---- a worker ----

    def wish(self, worker: int, key_i: int, money: int) -> None:
        """A client comes."""
        self.pockets[worker][key_i].wishes.append(Wish(money, money, None))
        self.serve(worker, key_i)

    def serve(self, worker: int, key_i: int) -> None:
        """Do what a purse does: open what can be opened, ask for the rest."""
        pocket = self.pockets[worker][key_i]
        while pocket.wishes and not pocket.lacks(pocket.wishes[0]):
            wish = pocket.wishes.popleft()
            if wish.renewal:
                assert pocket.renew(wish.money_nano)
                wish.item.reserved += wish.money_nano
                continue
            lease = pocket.lease
            request_id = pocket.take(wish.money_nano, wish.tokens)
            assert lease is not None and request_id not in self.ids
            assert lease.lease_id <= request_id < lease.end_id
            self.ids.add(request_id)
            self.open.append(Open(worker, key_i, request_id, lease, wish.money_nano))
        if pocket.wishes and not pocket.asked:
            self.ask_i += 1
            self.to_bank[worker].append(pocket.ask(self.ask_i))

    def renew(self, opened: Open, money: int) -> None:
        """A stream wants its next step."""
        pocket = self.pockets[opened.worker][opened.key_i]
        pocket.wishes.appendleft(Wish(money, money, opened, renewal=True))
        self.serve(opened.worker, opened.key_i)

    def end(self, opened: Open, price: int) -> None:
        """A request ends, at a price that may exceed its reservation by a chunk."""
        self.open.remove(opened)
        pocket = self.pockets[opened.worker][opened.key_i]
        pocket.wishes = deque(wish for wish in pocket.wishes if wish.item is not opened)
        overdrawn = pocket.give(opened.reserved, price, 0)
        self.to_bank[opened.worker].append(("row", opened.key_i, opened.lease, price, overdrawn))
        self.overdrawn[opened.key_i] += overdrawn
        self.spent[opened.key_i] += price
        self.serve(opened.worker, opened.key_i)

    def give_back(self, worker: int, key_i: int) -> None:
        """A worker is idle."""
        pocket = self.pockets[worker][key_i]
        if not pocket.wishes and not pocket.asked:
            self.to_bank[worker].append(pocket.back(leases=True))

    # ---- messages ----

    def arrive_at_bank(self, worker: int) -> None:
        """The bank hears one message of a worker."""
        message = self.to_bank[worker].popleft()
        if isinstance(message, wire.Ask):
            told = self.bank.ask(worker, message, self.now_s)
        elif isinstance(message, wire.Return):
            told = self.bank.returned(worker, message, self.now_s)
        else:
            _, key_i, lease, price, overdrawn = message
            self.bank.settled(worker, key_i, price)
            if overdrawn:
                self.bank.overdrawn(worker, key_i, overdrawn)
            self.to_worker[worker].append(("stored", key_i, lease, price))
            told = []
        self.tell(told)

    def tell(self, told: list[tuple[int, Any]]) -> None:
        """Send the bank's answers."""
        for number, change in told:
            self.to_worker[number].append(change)

    def arrive_at_worker(self, worker: int) -> None:
        """A worker hears one message of the bank."""
        message = self.to_worker[worker].popleft()
        if isinstance(message, tuple):
            _, key_i, lease, price = message
            self.pockets[worker][key_i].stored(lease, price)
            return
        pocket = self.pockets[worker][message.key_i]
        if isinstance(message, wire.Grant):
            pocket.granted(message)
            self.serve(worker, message.key_i)
        elif isinstance(message, wire.Refuse):
            if pocket.asked == message.ask_i:
                self.refused += [message.reason for _ in pocket.refuse(message.reason)]
                self.serve(worker, message.key_i)
        elif isinstance(message, wire.Recall):
            self.to_bank[worker].append(pocket.back(recalled=True))
        else:
            raise AssertionError(message)

    def deliver_all(self, dice: random.Random | None = None) -> None:
        """Let every message arrive, in random order between connections."""
        for _ in range(100_000):
            ready = [(True, w) for w, queue in enumerate(self.to_bank) if queue]
            ready += [(False, w) for w, queue in enumerate(self.to_worker) if queue]
            if not ready:
                return
            up, worker = (dice or random.Random(0)).choice(ready)
            (self.arrive_at_bank if up else self.arrive_at_worker)(worker)
        raise AssertionError("messages go round for ever")

    def check(self) -> None:
        """Assert what the brief promises, whatever is under way."""
        self.bank.check()
        for key_i, limits in self.keys.items():
            account = self.bank.keys[key_i]
            if limits.budget_nano is not None:
                assert account.spent_nano + account.held_nano <= limits.budget_nano + self.overdrawn[key_i]
                assert self.spent[key_i] <= limits.budget_nano + self.overdrawn[key_i]
            if limits.concurrency is not None:
                assert sum(o.key_i == key_i for o in self.open) <= limits.concurrency
                assert account.permits <= limits.concurrency
        if self.tenant.budget_nano is not None:
            assert sum(self.spent.values()) <= self.tenant.budget_nano + sum(self.overdrawn.values())
        if self.tenant.concurrency is not None:
            assert len(self.open) <= self.tenant.concurrency
        for pockets in self.pockets:
            for pocket in pockets.values():
                pocket.check()

    def finish(self, dice: random.Random | None = None) -> None:
        """End everything, give everything back, and see that nothing is left anywhere."""
        self.deliver_all(dice)
        for opened in list(self.open):
            self.end(opened, opened.used)
            self.deliver_all(dice)
        while self.open:
            self.end(self.open[0], 0)
            self.deliver_all(dice)
        for worker, pockets in enumerate(self.pockets):
            for key_i in pockets:
                self.give_back(worker, key_i)
        self.deliver_all(dice)
        self.check()
        for key_i in self.keys:
            account = self.bank.keys[key_i]
            assert account.held_nano == 0 and account.permits == 0, "leaked"
            assert account.spent_nano == self.spent[key_i]
        assert self.bank.tenants[TENANT].spent_nano == sum(self.spent.values())
        assert not self.bank.waiting
        for pockets in self.pockets:
            for pocket in pockets.values():
                assert not pocket.leases and not pocket.unstored_nano and not pocket.wishes


CHUNK = 7  # the most that a price exceeds its reservation by


class Banking(RuleBasedStateMachine):
    """Any interleaving of clients, streams, crashes of workers, ticks and messages."""

    @initialize(
        n_workers=st.integers(1, 4),
        budget=st.one_of(st.none(), st.integers(0, 400)),
        tenant=st.one_of(st.none(), st.integers(0, 600)),
        concurrency=st.one_of(st.none(), st.integers(0, 5)),
        both=st.one_of(st.none(), st.integers(1, 6)),
        rpm=st.one_of(st.none(), st.integers(0, 90)),
        tpm=st.one_of(st.none(), st.integers(0, 2000)),
    )
    def begin(self, n_workers, budget, tenant, concurrency, both, rpm, tpm):
        keys = {1: Limits(budget, rpm, tpm, concurrency), 2: Limits(None, None, None, None)}
        self.world = World(n_workers, keys, Limits(tenant, None, None, both))
        self.n_workers = n_workers

    @rule(w=st.integers(0, 3), key_i=st.integers(1, 2), money=st.integers(0, 60), n=st.integers(1, 6))
    def clients(self, w, key_i, money, n):
        for _ in range(n):
            self.world.wish(w % self.n_workers, key_i, money)

    @precondition(lambda self: self.world.open)
    @rule(i=st.integers(0, 50), part=st.integers(0, 100), over=st.integers(0, CHUNK))
    def end(self, i, part, over):
        opened = self.world.open[i % len(self.world.open)]
        price = opened.reserved + over if part > 80 else opened.reserved * part // 80
        self.world.end(opened, price)

    @precondition(lambda self: self.world.open)
    @rule(i=st.integers(0, 50), money=st.integers(1, 40))
    def renew(self, i, money):
        self.world.renew(self.world.open[i % len(self.world.open)], money)

    @rule(w=st.integers(0, 3), key_i=st.integers(1, 2))
    def idle(self, w, key_i):
        self.world.give_back(w % self.n_workers, key_i)

    @rule(w=st.integers(0, 3), n=st.integers(1, 5))
    def up(self, w, n):
        for _ in range(n):
            if self.world.to_bank[w % self.n_workers]:
                self.world.arrive_at_bank(w % self.n_workers)

    @rule(w=st.integers(0, 3), n=st.integers(1, 5))
    def down(self, w, n):
        for _ in range(n):
            if self.world.to_worker[w % self.n_workers]:
                self.world.arrive_at_worker(w % self.n_workers)

    @rule(seconds=st.floats(-5.0, 5.0))
    def time_passes(self, seconds):
        self.world.now_s = max(0.0, self.world.now_s + seconds)
        self.world.tell(self.world.bank.tick(self.world.now_s))

    @rule(w=st.integers(0, 3))
    def worker_dies(self, w):
        """What was open is settled from its marks (here: at what it used), the rest is free again."""
        w, world = w % self.n_workers, self.world
        while world.to_bank[w]:
            world.arrive_at_bank(w)
        for opened in [o for o in world.open if o.worker == w]:
            world.open.remove(opened)
            price = opened.reserved // 2
            world.bank.recovered(opened.key_i, price)
            world.spent[opened.key_i] += price
        world.tell(world.bank.leave(w, world.now_s))
        world.to_worker[w].clear()
        world.pockets[w] = {key_i: Pocket(view(key_i)) for key_i in world.keys}
        world.tell(world.bank.hello(w, [], world.now_s))

    @rule(w=st.integers(0, 3))
    def connection_is_lost(self, w):
        """Whatever was under way is gone; hello says what is held, and unstored rows come again."""
        w, world = w % self.n_workers, self.world
        rows = [m for m in world.to_bank[w] if isinstance(m, tuple)]
        world.to_bank[w].clear()
        acks = [m for m in world.to_worker[w] if isinstance(m, tuple)]
        world.to_worker[w].clear()
        pouches = [pocket.pouch() for pocket in world.pockets[w].values()]
        for pocket in world.pockets[w].values():
            pocket.requests, pocket.tokens = 0, min(0, pocket.tokens)
        world.tell(world.bank.hello(w, pouches, world.now_s))
        for _, key_i, lease, price in acks:  # stored, but the worker had not heard: handed in again
            world.bank.settled(w, key_i, price, again=True)
            world.to_worker[w].append(("stored", key_i, lease, price))
        for _, key_i, lease, price, _ in rows:
            world.to_bank[w].append(("row", key_i, lease, price, 0))
        for key_i in world.keys:
            world.serve(w, key_i)

    @invariant()
    def holds(self):
        if hasattr(self, "world"):
            self.world.check()

    def teardown(self):
        if hasattr(self, "world"):
            self.world.finish(random.Random(1))


TestBanking = Banking.TestCase
TestBanking.settings = settings(max_examples=60, stateful_step_count=60, deadline=None)


@pytest.mark.parametrize("seed", range(5))
def test_sixty_four_clients_on_four_workers_overspend_by_at_most_one_chunk_each(seed):
    """A budget for a hundred requests serves a hundred, whichever workers they reach, and what is over is chunks."""
    dice = random.Random(seed)
    price, budget = 10, 1000
    world = World(4, {1: Limits(budget_nano=budget)}, Limits())
    ended = 0
    for _ in range(6):
        for client in range(64):
            world.wish(client % 4, 1, price)
        while world.open or any(world.to_bank) or any(world.to_worker):
            world.deliver_all(dice)
            for opened in list(world.open):
                world.end(opened, price + (dice.random() < 0.1) * CHUNK)
                ended += 1
            world.check()
    assert budget - price < world.spent[1] <= budget + 64 * CHUNK
    assert world.refused and set(world.refused) == {"budget"}
    world.finish(dice)


def test_the_last_slices_are_recalled_before_anyone_is_refused():
    """Money that lies unused with one worker serves a client of another."""
    world = World(4, {1: Limits(budget_nano=100)}, Limits())
    world.wish(0, 1, 1)
    world.deliver_all()
    world.end(world.open[0], 1)
    world.deliver_all()
    world.wish(1, 1, 99)
    world.deliver_all()
    assert [opened.worker for opened in world.open] == [1] and not world.refused


def test_a_tenants_other_keys_give_back_before_one_is_refused():
    """A tenant's budget is one, whichever of its keys holds slices of it."""
    world = World(2, {1: Limits(), 2: Limits()}, Limits(budget_nano=100))
    world.wish(0, 1, 5)
    world.deliver_all()
    world.wish(0, 2, 95)
    world.deliver_all()
    assert len(world.open) == 2 and not world.refused


def test_a_hung_worker_keeps_only_its_slice():
    """Who does not answer a recall is not waited for longer than a quarter of a second."""
    world = World(2, {1: Limits(budget_nano=100)}, Limits())
    world.wish(0, 1, 10)
    world.deliver_all()
    world.wish(1, 1, 90)
    world.arrive_at_bank(1)
    assert not world.to_worker[1]
    world.now_s += 0.3
    world.tell(world.bank.tick(world.now_s))
    world.arrive_at_worker(1)
    assert world.refused == ["budget"]


def test_concurrency_is_exact_across_workers():
    """Three permits let three run at once, wherever, and the fourth goes when one ends."""
    world = World(4, {1: Limits(concurrency=3)}, Limits())
    for worker in range(4):
        world.wish(worker, 1, 0)
        world.deliver_all()
    assert len(world.open) == 3 and world.refused == ["concurrency"]
    world.end(world.open[0], 0)
    world.wish(3, 1, 0)
    world.deliver_all()
    assert len(world.open) == 3


@given(rpm=st.integers(1, 600), seed=st.integers(0, 99))
@settings(max_examples=30)
def test_no_minute_admits_more_than_a_bucket_and_what_flows_into_it(rpm, seed):
    """Requests a minute: at most the full bucket, a minute's flow, and two seconds' flow with each worker."""
    dice = random.Random(seed)
    world = World(3, {1: Limits(rpm=rpm)}, Limits())
    admitted = 0
    for _ in range(120):
        for _ in range(dice.randrange(1, 30)):
            world.wish(dice.randrange(3), 1, 0)
        world.deliver_all(dice)
        admitted += len(world.open)
        for opened in list(world.open):
            world.end(opened, 0)
        world.deliver_all(dice)
        world.now_s += 0.5
    assert admitted <= 2 * rpm + 3 * (rpm // 30) + 1
    assert set(world.refused) <= {"requests"}


def test_a_bucket_neither_fills_when_the_clock_runs_back_nor_at_once_when_it_jumps():
    """A clock that jumps an hour ahead gives one bucket, never more, and running back takes nothing."""
    bucket = Bucket(60, 0.0, 100.0)
    assert bucket.filled(90.0) == 0.0
    assert bucket.filled(101.0) == 1.0
    assert bucket.filled(4000.0) == 60.0
    assert bucket.wait_s(61) == 1.0
    assert Bucket(None).filled(0.0) == UNLIMITED


def test_a_new_month_makes_a_tenants_budget_whole_and_not_a_keys():
    """A tenant's budget is of a month, a key's of its life; the month never turns back."""
    bank = Bank(month="2026-11")
    bank.set_tenant(TENANT, Limits(budget_nano=10), 0.0, spent_nano=10)
    bank.set_key(1, TENANT, Limits(budget_nano=30), 0.0, spent_nano=25)
    bank.turn_month("2026-12")
    assert (bank.tenants[TENANT].free_nano, bank.keys[1].free_nano) == (10, 5)
    bank.settled(0, 1, 5)
    bank.turn_month("2026-11")
    assert bank.tenants[TENANT].spent_nano == 5


def test_a_budget_cut_below_what_is_spent_stops_the_key():
    """An operator who lowers a budget is obeyed at once."""
    world = World(1, {1: Limits(budget_nano=100)}, Limits())
    world.wish(0, 1, 60)
    world.deliver_all()
    world.end(world.open[0], 60)
    world.deliver_all()
    told = world.bank.set_key(1, TENANT, Limits(budget_nano=50), world.now_s)
    assert told == [(0, wire.Stop(1, "budget"))]
