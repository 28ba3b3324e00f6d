"""Queue: who waits at the gateway, in what order, who is shed, and how much a replica is given at once.

Order: the most important priority first; within it tenants take turns by weighted fair queueing (start-time fair queueing,
Goyal et al., SIGCOMM'96), so that one tenant's flood delays that tenant. Shed: whoever can no longer start before its
deadline, and when the queue is full the newest request of the tenant that waits most among the least important.
How many requests a replica holds at once starts at its slots and follows what it shows (additive increase, multiplicative
decrease): more than it can run would wait inside the engine, where neither priority nor deadline holds. The queue itself is
`serve/waiting.py`; where a request goes is `route.py`.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

BACK_OFF: Final = 0.8
QUEUED_RATIO: Final = 0.1  # of the limit, waiting inside the engine: more is a queue that had better be ours
SLOW: Final = 3.0  # times the expected time to first token, on average: where no queue can be read, this stands for one
LEAST_RATIO: Final = 0.5  # of the slots, as far as slowness goes: first tokens are slow for other reasons too
MEMORY: Final = 0.1  # weight of the newest first token in the running mean of slowness


def start_tag(virtual: float, last_finish: float) -> float:
    """Return the start tag of a request: now in virtual time, or when its tenant's previous request will be over.

    >>> start_tag(virtual=5.0, last_finish=3.0), start_tag(virtual=5.0, last_finish=9.0)
    (5.0, 9.0)
    """
    return max(virtual, last_finish)


def finish_tag(start: float, cost: float, weight: float) -> float:
    """Return the finish tag: a request of `cost` moves its tenant on by cost over weight.

    >>> finish_tag(5.0, cost=3.0, weight=2.0)
    6.5
    """
    assert cost > 0.0 and weight > 0.0, (cost, weight)
    return start + cost / weight


def too_late(now_s: float, deadline_s: float) -> bool:
    """Say whether a request may no longer start: nobody waits for its answer then.

    >>> too_late(3.0, 3.0), too_late(3.1, 3.0)
    (False, True)
    """
    return now_s > deadline_s


def expected_wait_s(n_ahead: int, served_per_s: float) -> float:
    """Return how long a request waits behind `n_ahead` others, in seconds; inf where nothing is being served.

    >>> expected_wait_s(20, 10.0)
    2.0
    """
    return n_ahead / served_per_s if served_per_s > 0.0 else float("inf")


def greediest(waiting: dict[int, int], weights: Sequence[float]) -> int:
    """Return the tenant that has most requests waiting for its weight; the highest index of equals.

    >>> greediest({0: 4, 1: 9, 2: 9}, [1.0, 3.0, 1.0])
    2
    """
    return max(waiting, key=lambda tenant: (waiting[tenant] / weights[tenant], tenant))


class ReplicaLimits:
    """How many requests each replica is given at once: its slots, or fewer.

    Shrinks by up to a fifth at a scrape that finds a queue inside the engine (never below what runs there), or by a fifth a
    round of requests when it refuses for load, or, where nothing can be scraped, while first tokens take SLOW times the
    expected; grows by one a round while it is used and all is well.
    """

    def __init__(self, slots: Sequence[int]) -> None:
        self.slots = list(slots)
        self.limit = [float(n) for n in slots]
        self.slowness = [1.0] * len(self.limit)
        self.since = [0] * len(self.limit)  # ends since the last change downwards
        self.queued = [False] * len(self.limit)  # as last scraped
        self.counted = [False] * len(self.limit)  # its own counters can be read: slowness need not stand for them

    def scraped(self, r: int, running: int, waiting: int) -> None:
        """Hear what the engine says of itself: requests it runs, and requests that wait inside it."""
        self.counted[r] = self.counted[r] or running > 0 or waiting > 0
        self.queued[r] = waiting > max(1.0, QUEUED_RATIO * self.limit[r])
        if self.queued[r]:
            self.since[r] = 0
            self.limit[r] = min(self.limit[r], max(1.0, float(running), self.limit[r] * BACK_OFF))

    def answered(self, r: int, outstanding: int, slowness: float = 1.0) -> None:
        """Hear of a first token at `r` that took `slowness` times the expected, with so many sent there at that time."""
        self.slowness[r] += MEMORY * (slowness - self.slowness[r])
        self.since[r] += 1
        if self.slowness[r] > SLOW:
            if not self.counted[r] and self.limit[r] > LEAST_RATIO * self.slots[r]:
                self._shrink(r)
        elif outstanding >= 0.8 * self.limit[r] and not self.queued[r]:
            self.limit[r] = min(float(self.slots[r]), self.limit[r] + 1.0 / self.limit[r])

    def refused(self, r: int) -> None:
        """Hear that `r` would take no more (429, 503, or no first byte in time)."""
        self.since[r] += 1
        self._shrink(r)

    def _shrink(self, r: int) -> None:
        if self.since[r] < self.limit[r] / 2.0:
            return  # what was sent before the last change is still coming back
        self.since[r] = 0
        self.limit[r] = max(1.0, self.limit[r] * BACK_OFF)

    def check(self) -> None:
        """Assert the bounds."""
        for limit, slots in zip(self.limit, self.slots, strict=True):
            assert 1.0 <= limit <= max(1.0, slots), (limit, slots)
