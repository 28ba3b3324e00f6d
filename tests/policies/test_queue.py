"""How much a replica is given at once: the limit follows what the replica shows."""

from __future__ import annotations

import heapq

import numpy as np
from hypothesis import given
from hypothesis import strategies as some

from baseload.policies.queue import MOST_LIMIT, ReplicaLimits


def drive(servers: list[tuple[float, int]], slots: int = 32) -> list[tuple[float, float]]:
    """Keep a replica as full as its limit allows while its real slots change; return (time, limit).

    `servers` are (from when, real slots); a first token is expected after 0.1 s and comes when a real slot is free.
    """
    limits, now_s, until_s = ReplicaLimits([slots]), 0.0, 60.0
    busy: list[tuple[float, float]] = []  # (ends, sent)
    free_at = [0.0] * max(n for _, n in servers)
    trail = []
    while now_s < until_s:
        real = next(n for at, n in reversed(servers) if at <= now_s)
        while len(busy) < limits.limit[0]:
            i = min(range(real), key=lambda k: free_at[k])
            begins = max(now_s, free_at[i])
            free_at[i] = begins + 0.1
            heapq.heappush(busy, (free_at[i], now_s))
        ends, sent = heapq.heappop(busy)
        now_s = max(now_s, ends)
        limits.answered(0, len(busy) + 1, (ends - sent) / 0.1)
        limits.check()
        trail.append((now_s, limits.limit[0]))
    return trail


def test_the_limit_follows_when_capacity_halves() -> None:
    """32 slots become 16 at 30 s: within 5 s no more than a second helping waits there, and it stays so."""
    trail = drive([(0.0, 32), (30.0, 16)])
    before = [limit for at, limit in trail if 10.0 < at < 30.0]
    after = [limit for at, limit in trail if at > 35.0]
    assert 28.0 < np.mean(before) <= 64.0, np.mean(before)
    assert 14.0 < np.mean(after) < 40.0, np.mean(after)
    assert np.mean(after) < 0.7 * np.mean(before)


def test_slots_declared_too_high_are_found_out() -> None:
    """An engine with a quarter of the declared slots is soon given little more than it can take."""
    trail = drive([(0.0, 8)])
    assert np.mean([limit for at, limit in trail if at > 10.0]) < 20.0


@given(seed=some.integers(0, 2**32 - 1), slots=some.integers(1, 300))
def test_the_limit_stays_within_its_bounds(seed: int, slots: int) -> None:
    """At least one request, at most twice the slots, whatever the replica shows."""
    rng = np.random.default_rng(seed)
    limits = ReplicaLimits([slots])
    for _ in range(300):
        if rng.random() < 0.1:
            limits.refused(0)
        else:
            limits.answered(0, int(rng.integers(0, 2 * slots + 2)), float(rng.exponential(1.5)))
        limits.check()
    assert 1.0 <= limits.limit[0] <= max(1.0, MOST_LIMIT * slots)
