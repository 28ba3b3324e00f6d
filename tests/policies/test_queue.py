"""How much a replica is given at once: the limit follows what the replica shows."""

from __future__ import annotations

import heapq

import numpy as np
from hypothesis import given
from hypothesis import strategies as some

from baseload.policies.queue import ReplicaLimits


def drive(servers: list[tuple[float, int]], *, scrapes: bool, slots: int = 32) -> list[tuple[float, float]]:
    """Keep a replica as full as its limit allows while its real slots change; return (time, limit).

    `servers` are (from when, real slots); a first token is expected after 0.1 s and comes when a real slot is free.
    """
    limits, now_s, until_s, scraped_s = ReplicaLimits([slots]), 0.0, 60.0, 0.0
    rng = np.random.default_rng(slots)
    busy: list[tuple[float, float, float]] = []  # (ends, sent, begins)
    free_at = [0.0] * max(n for _, n in servers)
    trail = []
    while now_s < until_s:
        real = next(n for at, n in reversed(servers) if at <= now_s)
        while len(busy) < int(limits.limit[0]):
            i = min(range(real), key=lambda k: free_at[k])
            begins = max(now_s, free_at[i])
            free_at[i] = begins + float(rng.uniform(0.05, 0.15))
            heapq.heappush(busy, (free_at[i], now_s, begins))
        ends, sent, _ = heapq.heappop(busy)
        now_s = max(now_s, ends)
        limits.answered(0, len(busy) + 1, (ends - sent) / 0.1)
        if scrapes and now_s >= scraped_s + 1.0:
            scraped_s = now_s
            running = sum(begins <= now_s for *_, begins in busy)
            limits.scraped(0, running, len(busy) - running)
        limits.check()
        trail.append((now_s, limits.limit[0]))
    return trail


def test_the_limit_follows_when_capacity_halves_and_comes_back() -> None:
    """32 slots become 16 at 20 s and 32 again at 40 s: within 5 s the limit is there, and it stays."""
    trail = drive([(0.0, 32), (20.0, 16), (40.0, 32)], scrapes=True)
    part = [np.array([limit for at, limit in trail if lo < at < hi]) for lo, hi in ((5, 20), (25, 40), (45, 60))]
    assert part[0].min() > 30.0
    assert 15.0 <= part[1].mean() < 20.0 and part[1].min() >= 14.0, part[1].mean()
    assert part[2].mean() > 30.0


def test_slots_declared_too_high_are_found_out_without_a_scrape() -> None:
    """An engine with a quarter of the declared slots, and no counters to read, is soon given half of them."""
    trail = drive([(0.0, 8)], scrapes=False)
    assert np.mean([limit for at, limit in trail if at > 10.0]) < 26.0


@given(seed=some.integers(0, 2**32 - 1), slots=some.integers(1, 300))
def test_the_limit_stays_within_its_bounds(seed: int, slots: int) -> None:
    """At least one request, at most the slots, whatever the replica shows."""
    rng = np.random.default_rng(seed)
    limits = ReplicaLimits([slots])
    for _ in range(300):
        if rng.random() < 0.1:
            limits.refused(0)
        elif rng.random() < 0.1:
            limits.scraped(0, int(rng.integers(0, slots + 1)), int(rng.integers(0, 9)))
        else:
            limits.answered(0, int(rng.integers(0, 2 * slots + 2)), float(rng.exponential(1.5)))
        limits.check()
    assert 1.0 <= limits.limit[0] <= slots
