"""Door, queue and limits together, in front of engines in simulated time: overload, a flood, and engines that are away.

`Site` is wired as the gateway is: a request that finds its replica full, or others waiting, waits; each end lets the next
one in, which is routed anew (`first=False`: it was admitted and counted when it came).
"""

from __future__ import annotations

import heapq
from typing import Any

import numpy as np

from baseload.policies.retry import may_try_again
from baseload.serve import door as d
from baseload.serve.waiting import Waiting
from tests.serve.fleet import deployment, policy, tables

SLOTS, REPLICAS = 4, 4
SERVICE_S = 0.16  # 16 slots: 100 requests a second
PATIENCE_S = 2.0


class Site:
    """A gateway worker and its engines on a jumping clock."""

    def __init__(self, seed: int, *, away: tuple[float, float] = (0.0, 0.0)) -> None:
        row = deployment("d0", slots=SLOTS, prefill_tokens_per_s=1e4, decode_s_per_token=0.01)
        self.door = d.Door(tables(REPLICAS, sites=1, tenants=3, policy=policy(), deployments=[row]))
        self.waiting = Waiting(256, 3)
        self.rng = np.random.default_rng(seed)
        self.away = away
        self.in_engine = [0] * REPLICAS
        self.lines: list[list[tuple[Any, ...]]] = [[] for _ in range(REPLICAS)]
        self.events: list[tuple[float, int, str, Any]] = []
        self.n_events = 0
        self.ended: list[tuple[int, float, float, bool]] = []  # tenant, arrival, seconds, good
        self.tries = 0

    def at(self, when: float, what: str, item: Any) -> None:
        """Set an event."""
        self.n_events += 1
        heapq.heappush(self.events, (when, self.n_events, what, item))

    def run(self, arrivals: list[tuple[float, int]]) -> list[tuple[int, float, float, bool]]:
        """Let (time, tenant) arrive; return how each ended."""
        for when, tenant in arrivals:
            self.at(when, "arrival", {"tenant": tenant, "at": when, "n": 0, "tried": 0})
        while self.events:
            now, _, what, item = heapq.heappop(self.events)
            getattr(self, what)(now, item)
            while len(self.waiting) and self.let_one_in(now):
                pass
            self.waiting.check()
        for item in self.waiting.shed(1e9):
            self.end(item, 1e9, False)
        self.door.check()
        assert not any(self.door.own) and len(self.ended) == len(arrivals)
        return self.ended

    def end(self, item: Any, now: float, good: bool) -> None:
        """A client has its answer, or its refusal."""
        self.ended.append((item["tenant"], item["at"], now - item["at"], good))

    def decide(self, item: Any, now: float, *, first: bool) -> int:
        """Ask the door."""
        return self.door.decide(
            now, tenant_i=item["tenant"], model_i=0, input_tokens=100, budget_left=1e9, tried=item["tried"], first=first
        )

    def arrival(self, now: float, item: Any) -> None:
        """A request comes."""
        r = self.decide(item, now, first=True)
        if r < 0:
            self.end(item, now, False)
        elif self.door.full(r) and (len(self.waiting) or self.door.with_room() < 0):
            for shed in self.waiting.put(item, item["tenant"], 5, item["at"] + PATIENCE_S - 2.0 * SERVICE_S, now):
                self.end(shed, now, False)
        else:
            self.send(item, self.door.with_room() if self.door.full(r) else r, now)

    def let_one_in(self, now: float) -> bool:
        """Send the next one that waits, if a replica has room."""
        if all(self.door.full(r) or not self.door.ejection.open[r] for r in range(REPLICAS)):
            return False  # at the gateway only an end lets the next one in
        item = self.waiting.pop(now)
        for shed in self.waiting.shed(now):
            self.end(shed, now, False)
        if item is None:
            return False
        r = self.decide(item, now, first=False)
        if r < 0:
            self.end(item, now, False)
        else:
            self.send(item, self.door.with_room() if self.door.full(r) else r, now)
        return True

    def send(self, item: Any, r: int, now: float) -> None:
        """Forward a request; engines that are away refuse the connection."""
        self.tries += 1
        item["n"] += 1
        self.door.sent(r, 150.0)
        if self.away[0] <= now < self.away[1]:
            self.door.ended(now, r, 150.0, tenant_i=item["tenant"], model_i=0, output_tokens=0, outcome=d.UNREACHED)
            item["tried"] |= 1 << r
            if may_try_again(item["n"], 2) and self.door.may_retry(now):
                again = self.decide(item, now, first=False)
                if again >= 0:
                    self.send(item, again, now)
                    return
            self.end(item, now, False)
            return
        item["sent"] = now
        if self.in_engine[r] < SLOTS:
            self.serve(item, r, now)
        else:
            self.lines[r].append(item)

    def serve(self, item: Any, r: int, now: float) -> None:
        """An engine starts on a request."""
        self.in_engine[r] += 1
        self.at(now + float(self.rng.uniform(0.5, 1.5)) * SERVICE_S, "done", (item, r))

    def done(self, now: float, what: Any) -> None:
        """An engine has answered."""
        item, r = what
        self.in_engine[r] -= 1
        self.door.ended(now, r, 150.0, tenant_i=item["tenant"], model_i=0, output_tokens=50, outcome=d.OK)
        self.door.limits.answered(r, int(self.door.own[r]) + 1, (now - item["sent"]) / SERVICE_S)
        self.end(item, now, now - item["at"] <= PATIENCE_S)
        if self.lines[r]:
            self.serve(self.lines[r].pop(0), r, now)


def poisson(rate: float, until_s: float, tenant: int, seed: int) -> list[tuple[float, int]]:
    """Return arrivals of a tenant."""
    rng = np.random.default_rng(seed)
    at_s = np.cumsum(rng.exponential(1.0 / rate, int(1.2 * rate * until_s) + 50))
    return [(float(at), tenant) for at in at_s[at_s < until_s]]


def test_ten_times_the_load_leaves_nine_tenths_of_the_goodput() -> None:
    """Whatever is offered, what ends in time stays at 90 % of its peak, and nobody is left without an answer."""
    good = {}
    for rate in (50, 90, 110, 300, 1000):
        ended = Site(rate).run(poisson(rate, 15.0, 0, rate))
        good[rate] = sum(ok and 3.0 <= at + s < 14.0 for _, at, s, ok in ended) / 11.0
    assert max(good.values()) > 90.0, good
    assert good[1000] >= 0.9 * max(good.values()), good


def test_a_flood_at_most_doubles_anothers_p99() -> None:
    """A tenant with 15 requests a second has at most twice its p99 while another asks for ten times the capacity."""
    alone = Site(1).run(poisson(15, 20.0, 1, 2))
    both = Site(1).run(sorted(poisson(15, 20.0, 1, 2) + poisson(1000, 20.0, 0, 3)))
    p99 = [np.quantile([s for who, _, s, ok in ended if who == 1 and ok], 0.99) for ended in (alone, both)]
    assert p99[1] <= 2.0 * p99[0], p99
    assert all(ok for who, _, _, ok in both if who == 1)


def test_engines_that_come_back_are_used_within_ten_seconds_and_no_storm_waits_for_them() -> None:
    """All engines refuse for 30 s: they see at most 1.1 of what is offered, and are served from again within 10 s."""
    site = Site(5, away=(20.0, 50.0))
    ended = site.run(poisson(60, 80.0, 0, 6))
    assert site.tries <= 1.1 * len(ended)
    share = {int(s): [ok for _, at, _, ok in ended if s <= at < s + 1] for s in range(79)}
    assert all(np.mean(share[s]) > 0.95 for s in [*range(20), *range(60, 79)])
    assert np.mean(share[30]) == 0.0
