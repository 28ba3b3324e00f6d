"""What goes wrong, and when: everything about a run follows from its seed and its number of requests.

Events are tied to the number of requests sent so far, not to the clock, so that a slow machine replays the same run.
"""

from __future__ import annotations

import random
from dataclasses import dataclass

from tests.chaos.client import Request
from tests.chaos.leaks import CANARY

REQUEST_FAULTS = (
    "hang", "stall", "reset", "reset0", "fin", "cut", "halfbody", "garbage", "badchunk", "badjson", "errchunk", "clte",
    "twocl", "slow", "split", "nousage", "lie", "lie0", "lieneg", "notjson", "redirect", "hints", "closeafter", "400",
    "429", "500", "503",
)  # fmt: skip
HARMLESS = frozenset(("", "split", "slow", "nousage", "lie", "lie0", "lieneg", "hints", "closeafter"))
TENANTS = ("acme", "bank", "crowd")
# for 10,000 requests, as the acceptance asks; fewer requests, fewer events, one of each at least
PER_10_000 = {
    "gateway": 10, "owner": 5, "worker": 5, "engine": 50, "database": 10, "disk": 5, "partition": 5, "freeze": 10,
    "degrade": 10,
}  # fmt: skip


@dataclass(frozen=True)
class Event:
    """Something that goes wrong when `at` requests have been sent."""

    at: int
    what: str
    which: int  # engine, where one is meant
    seconds: float


def events(seed: int, n_requests: int, n_engines: int, *, without: frozenset[str] = frozenset()) -> list[Event]:
    """Return the events of a run in their order; kills of the gateway keep their distance from each other."""
    dice = random.Random(f"events {seed}")
    found = []
    for what, count in PER_10_000.items():
        n = max(1, round(count * n_requests / 10_000)) if what not in without else 0
        edge = max(1, n_requests // 20)
        for i in range(n):
            lo = edge + (n_requests - 2 * edge) * i / n
            hi = edge + (n_requests - 2 * edge) * (i + 0.8) / n
            found.append(Event(int(dice.uniform(lo, hi)), what, dice.randrange(n_engines), dice.uniform(0.3, 1.5)))
    return sorted(found, key=lambda event: (event.at, event.what))


def fault_of(seed: int, i: int, faulty_ratio: float) -> str:
    """Return the fault that request `i` asks its engine for, or ''."""
    dice = random.Random(f"fault {seed} {i}")
    return dice.choice(REQUEST_FAULTS) if dice.random() < faulty_ratio else ""


def request(
    seed: int, i: int, keys: dict[str, str], *, faulty_ratio: float = 0.12, deadline_s: float = 30.0
) -> Request:
    """Return request `i` of a run."""
    dice = random.Random(f"request {seed} {i}")
    tenant = dice.choice(TENANTS)
    n = dice.choice((1, 2, 3, 8, 16, 24, 48))
    fault = fault_of(seed, i, faulty_ratio)
    gap_ms = dice.choice((1, 1, 2, 3, 8))  # tokens come one by one: what is on its way at a kill is few
    knobs = f"@gap_ms={gap_ms} @n={n} @at={dice.randrange(0, n + 1)}" + (f" @fault={fault}" if fault else "")
    stream = dice.random() < 0.7
    hangs_up = stream and dice.random() < 0.06
    return Request(
        prompt=f"{CANARY} request {i} of {seed} {knobs}", n=n, stream=stream, key=keys[tenant], tenant=tenant,
        usage=dice.random() < 0.6, cancel_after=dice.randrange(0, n) if hangs_up else -1, deadline_s=deadline_s,
    )  # fmt: skip
