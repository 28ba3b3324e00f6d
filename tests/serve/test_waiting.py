"""The queue at the gateway under overload, in simulated time: goodput, fairness, priority, bounds."""

from __future__ import annotations

import heapq
from typing import Any

import numpy as np
from hypothesis import given
from hypothesis import strategies as some

from baseload.serve.waiting import Waiting

SERVICE_S = 0.08
SERVERS = 8  # 100 requests a second
PATIENCE_S = 1.0


def serve(arrivals: list[tuple[float, int, int]], *, limit: int = 1024, seed: int = 0) -> list[tuple[int, float, bool]]:
    """Serve (time, tenant, priority) with SERVERS servers; return (tenant, seconds till the end, good)."""
    rng = np.random.default_rng(seed)
    waiting = Waiting(limit, 4)
    free, clock = SERVERS, 0
    events: list[tuple[float, int, int, Any]] = [(t, 1, i, (t, who, p)) for i, (t, who, p) in enumerate(arrivals)]
    heapq.heapify(events)
    ended: list[tuple[int, float, bool]] = []

    def begin(now: float, item: Any) -> None:
        nonlocal clock
        clock += 1
        heapq.heappush(events, (now + float(rng.uniform(0.5, 1.5)) * SERVICE_S, 0, clock, item))

    while events:
        now, kind, _, item = heapq.heappop(events)
        if kind == 0:
            free += 1
            ended.append((item[1], now - item[0], now - item[0] <= PATIENCE_S))
        else:
            for shed in waiting.put(item, item[1], item[2], item[0] + PATIENCE_S - 1.5 * SERVICE_S, now):
                ended.append((shed[1], -1.0, False))
        while free and len(waiting):
            nxt = waiting.pop(now)
            if nxt is None:
                break
            free -= 1
            begin(now, nxt)
        waiting.check()
    ended += [(item[1], -1.0, False) for item in waiting.shed(1e9)]
    assert len(ended) == len(arrivals)  # each ends exactly once
    return ended


def poisson(rate: float, until_s: float, tenant: int, seed: int, priority: int = 5) -> list[tuple[float, int, int]]:
    """Return arrivals of a tenant."""
    rng = np.random.default_rng(seed)
    times = np.cumsum(rng.exponential(1.0 / rate, int(rate * until_s * 1.2)))
    return [(float(t), tenant, priority) for t in times if t < until_s]


def test_goodput_stays_at_nine_tenths_of_its_peak_at_ten_times_the_load() -> None:
    """100 requests a second can be served; offered 1,000 a second, at least 90 % of the peak still end in time."""
    good = {}
    for rate in (50, 90, 100, 150, 300, 1000):
        ended = serve(poisson(rate, 20.0, 0, seed=rate))
        good[rate] = sum(ok for _, _, ok in ended) / 20.0
    assert max(good.values()) > 85.0, good
    assert good[1000] >= 0.9 * max(good.values()), good
    assert good[50] > 47.0, good


def test_a_tenants_flood_at_most_doubles_another_tenants_p99() -> None:
    """A tenant with a fifth of the capacity keeps its p99 within twice what it is alone, while another floods tenfold."""
    alone = serve(poisson(20, 30.0, 1, seed=4))
    both = serve(sorted(poisson(20, 30.0, 1, seed=4) + poisson(1000, 30.0, 0, seed=5)))
    p99 = [np.quantile([s for who, s, ok in ended if who == 1 and s >= 0.0], 0.99) for ended in (alone, both)]
    lost = sum(1 for who, _, ok in both if who == 1 and not ok) / sum(1 for who, _, _ in both if who == 1)
    assert p99[1] <= 2.0 * p99[0], p99
    assert lost < 0.01, lost


def test_priority_goes_first_and_is_shed_last() -> None:
    """While both overload the servers, the important ones are served as if alone."""
    ended = serve(sorted(poisson(60, 20.0, 0, seed=7, priority=1) + poisson(600, 20.0, 1, seed=8, priority=8)))
    kept = [np.mean([ok for who, _, ok in ended if who == tenant]) for tenant in (0, 1)]
    assert kept[0] > 0.995 and kept[1] < 0.2, kept


def test_weights_share_what_there_is() -> None:
    """Two tenants that both flood are let in by their weights, within 5 %."""
    waiting = Waiting(10_000, 2, [3.0, 1.0])
    for i in range(2000):
        waiting.put(("a", i), 0, 5, 1e9, 0.0)
        waiting.put(("b", i), 1, 5, 1e9, 0.0)
    first = [waiting.pop(1.0)[0] for _ in range(800)]
    assert abs(first.count("a") / 800 - 0.75) < 0.05


@given(seed=some.integers(0, 2**32 - 1), limit=some.integers(1, 12))
def test_every_request_leaves_exactly_once(seed: int, limit: int) -> None:
    """Put, popped, shed or removed: nothing is lost, nothing comes twice, and the bound holds at each moment."""
    rng = np.random.default_rng(seed)
    waiting = Waiting(limit, 3)
    inside: set[int] = set()
    items = [[i] for i in range(80)]
    now_s = 0.0
    for i in range(80):
        now_s += float(rng.exponential(0.1))
        deadline_s = now_s + float(rng.uniform(0.0, 1.0))
        inside.add(i)
        gone = waiting.put(items[i], int(rng.integers(0, 3)), int(rng.integers(0, 10)), deadline_s, now_s)
        if rng.random() < 0.4:
            popped = waiting.pop(now_s)
            gone += [] if popped is None else [popped]
        if inside and rng.random() < 0.2:
            one = items[int(rng.choice(sorted(inside)))]
            if waiting.remove(one):
                gone.append(one)
        for item in gone:
            inside.remove(item[0])
        waiting.check()
        assert waiting.next_deadline_s() >= now_s or not len(waiting)
    for item in waiting.shed(1e9):
        inside.remove(item[0])
    assert not inside and len(waiting) == 0
