"""The queue at the gateway: requests that a replica could serve, but none has room for now. Pure: time is given.

Whoever is let in next, and who is shed, are the rules of `policies/queue.py`; where a request then goes is `door.py`, asked
anew when it is popped. Keep one queue a model: a request for a free model must not stand behind one for a full model.
`deadline_s` is the time by which a request must START to be worth anything (its client's limit, or `policy.max_wait_s`,
less what serving takes): so whatever is popped can still be good, and the rest is told early.
"""

from __future__ import annotations

import heapq
from collections import deque
from collections.abc import Sequence
from typing import Any, Final

from baseload.policies.queue import expected_wait_s, finish_tag, greediest, start_tag, too_late

RATE_MEMORY: Final = 0.1  # weight of the newest gap between two pops


class Entry:
    """One waiting request."""

    __slots__ = ("deadline_s", "inside", "item", "priority", "start", "tenant_i")

    def __init__(self, item: Any, tenant_i: int, priority: int, deadline_s: float, start: float) -> None:
        self.item, self.tenant_i, self.priority = item, tenant_i, priority
        self.deadline_s, self.start = deadline_s, start
        self.inside = True


class Waiting:
    """At most `limit` requests, by priority, then fairly by tenant, then in order of coming.

    `weights` (tenant,): a tenant of weight 2 is let in twice as often as one of weight 1 while both wait.
    """

    def __init__(self, limit: int, n_tenants: int, weights: Sequence[float] | None = None) -> None:
        self.limit = limit
        self.weights = list(weights or [1.0] * n_tenants)
        assert len(self.weights) == n_tenants and all(weight > 0.0 for weight in self.weights)
        self.lines: dict[int, dict[int, deque[Entry]]] = {}  # priority, tenant
        self.deadlines: list[tuple[float, int, Entry]] = []  # a heap, of entries that left too
        self.n_put = 0
        self.n = 0
        self.virtual = 0.0
        self.finish = [0.0] * n_tenants
        self.late: list[Any] = []  # found past their deadline, not yet told
        self.gap_s = 0.0  # mean time between two pops while requests waited
        self.popped_s = -1.0
        self.n_shed = 0

    def resized(self, limit: int, n_tenants: int) -> Waiting:
        """Return this queue with room for more tenants; who waits goes on waiting, and rows of tenants stay."""
        self.limit = limit
        more = n_tenants - len(self.finish)
        self.weights += [1.0] * more
        self.finish += [0.0] * more
        return self

    def __len__(self) -> int:
        return self.n

    def put(
        self, item: Any, tenant_i: int, priority: int, deadline_s: float, now_s: float, cost: float = 1.0
    ) -> list[Any]:
        """Let `item` wait; return what is shed for it: nothing, itself, or others."""
        shed = self.shed(now_s)
        ahead = sum(sum(map(len, line.values())) for level, line in self.lines.items() if level < priority)
        if too_late(now_s + expected_wait_s(ahead, 1.0 / self.gap_s if self.gap_s > 0.0 else float("inf")), deadline_s):
            self.n_shed += 1
            return [*shed, item]  # even those before it take longer than it can wait
        start = start_tag(self.virtual, self.finish[tenant_i])
        self.finish[tenant_i] = finish_tag(start, cost, self.weights[tenant_i])
        line = self.lines.setdefault(priority, {}).setdefault(tenant_i, deque())
        entry = Entry(item, tenant_i, priority, deadline_s, start)
        line.append(entry)
        self.n += 1
        self.n_put += 1
        heapq.heappush(self.deadlines, (deadline_s, self.n_put, entry))
        if self.n > self.limit:
            shed.append(self._drop_one())
        return shed

    def pop(self, now_s: float) -> Any | None:
        """Return the next request to serve, or None; those past their deadline are put aside for `shed`."""
        while self.n:
            priority = min(self.lines)
            lines = self.lines[priority]
            tenant_i = min(lines, key=lambda t: (lines[t][0].start, t))
            entry = lines[tenant_i].popleft()
            self._left(entry)
            if too_late(now_s, entry.deadline_s):
                self.late.append(entry.item)
                self.n_shed += 1
                continue
            self.virtual = max(self.virtual, entry.start)
            if self.popped_s >= 0.0:
                self.gap_s += RATE_MEMORY * ((now_s - self.popped_s) - self.gap_s)
            self.popped_s = now_s if self.n else -1.0  # an idle time says nothing about speed
            return entry.item
        return None

    def shed(self, now_s: float) -> list[Any]:
        """Return the requests whose deadline has passed, each once: to be refused now."""
        while self.deadlines and too_late(now_s, self.deadlines[0][0]):
            entry = heapq.heappop(self.deadlines)[2]
            if entry.inside:
                self.lines[entry.priority][entry.tenant_i].remove(entry)
                self._left(entry)
                self.late.append(entry.item)
                self.n_shed += 1
        late, self.late = self.late, []
        return late

    def remove(self, item: Any) -> bool:
        """Take out a request whose client left; say whether it waited."""
        for lines in self.lines.values():
            for line in lines.values():
                for entry in line:
                    if entry.item is item:
                        line.remove(entry)
                        self._left(entry)
                        return True
        return False

    def next_deadline_s(self) -> float:
        """Return when `shed` has something to do at the earliest; inf while nobody waits."""
        heap = self.deadlines
        while heap and not heap[0][2].inside:
            heapq.heappop(heap)
        return heap[0][0] if heap else float("inf")

    def retry_after_s(self) -> float:
        """Return when a refused client had better ask again: when what waits now is served, 1 to 60 s."""
        return min(60.0, max(1.0, self.n * self.gap_s))

    def check(self) -> None:
        """Assert that the count is that of the entries, and that no line is empty."""
        lines = [line for by_tenant in self.lines.values() for line in by_tenant.values()]
        assert self.n == sum(map(len, lines)) <= self.limit
        assert all(lines) and all(self.lines.values())

    def _drop_one(self) -> Any:
        """Take out the newest request of the tenant that waits most, among the least important."""
        priority = max(self.lines)
        lines = self.lines[priority]
        tenant_i = greediest({t: len(line) for t, line in lines.items()}, self.weights)
        entry = lines[tenant_i].pop()
        self._left(entry)
        self.finish[tenant_i] = max(self.virtual, min(self.finish[tenant_i], entry.start))
        self.n_shed += 1
        return entry.item

    def _left(self, entry: Entry) -> None:
        """An entry was taken out of its line."""
        entry.inside = False
        self.n -= 1
        lines = self.lines[entry.priority]
        if not lines[entry.tenant_i]:
            del lines[entry.tenant_i]
            if not lines:
                del self.lines[entry.priority]
        if len(self.deadlines) > 2 * self.n + 64:
            self.deadlines = [row for row in self.deadlines if row[2].inside]
            heapq.heapify(self.deadlines)
