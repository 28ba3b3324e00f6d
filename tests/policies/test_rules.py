"""Each rule against brute force, and its compiled form against its plain one, on arrays and on lists."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest

from baseload import jit

jit.enable()

from baseload.policies import admit, cap, route, scale  # noqa: E402
from baseload.policies.view import NO_REPLICA, Ask, Columns, Tunables  # noqa: E402
from baseload.records import REASON_BUDGET, REASON_SLO  # noqa: E402
from tests.policies import plain as plainly  # noqa: E402

ROUTES = [
    route.round_robin, route.least_outstanding, route.least_wait, route.prefix_affine, route.cheapest, route.greenest,
]  # fmt: skip
ADMITS = [admit.always, admit.within_slo, admit.within_budget, admit.within_slo_and_budget]
CAPS = [cap.none, cap.slow, cap.shed, cap.by_priority]


def plain(rule: Any) -> Any:
    """Return the plain Python form of a rule, which calls plain forms alone."""
    module = {"route": plainly.route, "admit": plainly.admit, "cap": plainly.cap, "scale": plainly.scale}
    return getattr(module[rule.__module__.rsplit(".", 1)[1]], rule.__name__)


def random_case(rng: np.random.Generator) -> tuple[Ask, Columns, Any, Tunables]:
    """Return a request and replicas; small whole numbers, so that ties are common."""
    n = int(rng.integers(1, 12))
    ask = Ask(
        int(rng.integers(1, 4000)), float(rng.integers(1, 500)), int(rng.choice([0, -5, 7, 1 << 40, 123456789012345])),
        int(rng.integers(0, 4)), float(rng.choice([0.1, 0.5, 2.0])), float(rng.choice([0.02, 0.05])),
        int(rng.integers(0, 10)), float(rng.choice([0.0, 1.0, np.inf])), float(rng.uniform(0, 2)),
        int(rng.integers(0, 1000)), float(rng.random()),
    )  # fmt: skip
    columns = Columns(
        rng.integers(0, 6, n), rng.integers(0, 3, n) * 1000.0, rng.choice([5e3, 1e4], n), rng.choice([0.01, 0.03], n),
        rng.integers(1, 5, n), rng.choice([0.0, 0.02, 0.3], n), rng.integers(0, 5, n), rng.integers(0, 3, n),
        rng.random(n), rng.choice([1.0, 2.0], n), rng.choice([10.0, 20.0], n),
    )  # fmt: skip
    return ask, columns, rng.integers(0, 2, n).astype(np.uint8), Tunables(1.5, 1.2, 0.6, 300.0)


def as_lists(columns: Columns) -> Columns:
    """Return the columns as a small gateway holds them."""
    return Columns(*(column.tolist() for column in columns))


@pytest.mark.parametrize("rule", ROUTES, ids=lambda rule: plain(rule).__name__)
def test_compiled_and_plain_routes_agree_and_never_leave_the_law(rule: Any) -> None:
    """The gateway's plain rule on lists, on arrays, and the twin's compiled one choose alike, and only what is allowed."""
    rng = np.random.default_rng(5)
    for _ in range(1500):
        ask, columns, allowed, tunables = random_case(rng)
        chosen = rule(ask, columns, allowed, tunables)
        assert chosen == plain(rule)(ask, columns, allowed, tunables)
        assert chosen == plain(rule)(ask, as_lists(columns), allowed.tolist(), tunables)
        assert (chosen == NO_REPLICA) == (not allowed.any())
        assert chosen == NO_REPLICA or allowed[chosen]


def test_least_outstanding_is_the_lowest_of_the_least() -> None:
    """Least outstanding is the arg min over the allowed, the lowest index of equals."""
    rng = np.random.default_rng(6)
    for _ in range(500):
        ask, columns, allowed, tunables = random_case(rng)
        best = (
            min((int(columns.outstanding[i]), i) for i in np.flatnonzero(allowed)) if allowed.any() else (0, NO_REPLICA)
        )
        assert route.least_outstanding(ask, columns, allowed, tunables) == best[1]


def test_round_robin_takes_turns() -> None:
    """Over n tickets in a row each of the n allowed replicas is taken once, in order."""
    ask, columns, allowed, tunables = random_case(np.random.default_rng(8))
    allowed = np.ones_like(allowed)
    n = len(allowed)
    turns = [route.round_robin(ask._replace(ticket=t), columns, allowed, tunables) for t in range(3 * n)]
    assert turns == list(range(n)) * 3


def brute_ttft_s(ask: Ask, columns: Columns, i: int) -> float:
    """Return the expected time to first token, written once more."""
    over = max(0, int(columns.outstanding[i]) + 1 - int(columns.slots[i]))
    step_s, slots = columns.decode_s_per_token[i], columns.slots[i]
    prompt_s = ask.input_tokens / columns.prefill_tokens_per_s[i]
    waiting_s = columns.waiting[i] * prompt_s + over * ask.predicted_output_tokens * step_s / slots
    return float(columns.rtt_s[i] + waiting_s + prompt_s + step_s)


def test_least_wait_is_the_shortest_by_brute_force() -> None:
    """No allowed replica promises a clearly shorter wait than the one that least_wait takes."""
    rng = np.random.default_rng(9)
    for _ in range(500):
        ask, columns, allowed, tunables = random_case(rng)
        if not allowed.any():
            continue
        queued_s = columns.queued_tokens * columns.decode_s_per_token / columns.slots
        waits_s = [brute_ttft_s(ask, columns, i) + queued_s[i] if allowed[i] else math.inf for i in range(len(allowed))]
        assert waits_s[route.least_wait(ask, columns, allowed, tunables)] <= min(waits_s) + 1e-12


@pytest.mark.parametrize(("rule", "score"), [(route.cheapest, "cost_per_mtok"), (route.greenest, "carbon_g_per_mtok")])
def test_cheapest_and_greenest_keep_the_slo_first(rule: Any, score: str) -> None:
    """Among replicas expected to meet the SLO the lowest score wins; where none is, the least wait does."""
    rng = np.random.default_rng(10)
    seen = {True: 0, False: 0}
    for _ in range(800):
        ask, columns, allowed, tunables = random_case(rng)
        ttft_s = [brute_ttft_s(ask, columns, i) for i in range(len(allowed))]
        if any(abs(t - ask.ttft_slo_s) < 1e-9 for t in ttft_s):
            continue
        able = [
            i for i in range(len(allowed))
            if allowed[i] and ttft_s[i] <= ask.ttft_slo_s and columns.decode_s_per_token[i] <= ask.tpot_slo_s
        ]  # fmt: skip
        chosen = rule(ask, columns, allowed, tunables)
        seen[bool(able)] += 1
        if not able:
            assert chosen == route.least_wait(ask, columns, allowed, tunables)
            continue
        scores = getattr(columns, score)
        assert chosen in able and scores[chosen] == min(scores[i] for i in able)
        assert ttft_s[chosen] <= min(ttft_s[i] for i in able if scores[i] == scores[chosen]) + 1e-12
    assert min(seen.values()) > 100


def test_prefix_affine_sticks_until_overloaded_and_moves_few_when_one_leaves() -> None:
    """Equal prefixes meet at one replica; too loaded, it is passed over; when one leaves only its prefixes move."""
    n = 16
    _, _, _, tunables = random_case(np.random.default_rng(1))
    ask, _, _, _ = random_case(np.random.default_rng(11))
    idle = Columns(*(np.zeros(n, np.int64) if i in (0, 4, 6, 7) else np.ones(n) for i in range(11)))
    allowed = np.ones(n, np.uint8)
    keys = [int(k) for k in np.random.default_rng(12).integers(-(2**62), 2**62, 4000)]
    first = [route.prefix_affine(ask._replace(prefix_key=k), idle, allowed, tunables) for k in keys]
    assert first == [route.prefix_affine(ask._replace(prefix_key=k, ticket=9), idle, allowed, tunables) for k in keys]
    shares = np.bincount(first, minlength=n) / len(keys)
    assert shares.min() > 0.5 / n and shares.max() < 1.6 / n  # spread evenly
    without = allowed.copy()
    without[3] = 0
    moved = [route.prefix_affine(ask._replace(prefix_key=k), idle, without, tunables) for k in keys]
    assert all(a == b for a, b in zip(first, moved, strict=True) if a != 3)
    key = keys[0]
    outstanding = np.zeros(n, np.int64)
    outstanding[first[0]] = 16  # mean 1: the guard is 1.5 * 1 + 1
    busy = idle._replace(outstanding=outstanding)
    assert route.prefix_affine(ask._replace(prefix_key=key), busy, allowed, tunables) != first[0]
    outstanding = np.full(n, 16)
    assert (
        route.prefix_affine(ask._replace(prefix_key=key), idle._replace(outstanding=outstanding), allowed, tunables)
        == first[0]
    )


@pytest.mark.parametrize("rule", ADMITS, ids=lambda rule: plain(rule).__name__)
def test_compiled_and_plain_admission_agree(rule: Any) -> None:
    """Admission answers alike compiled and plain, and for the reason that it says."""
    rng = np.random.default_rng(13)
    for _ in range(800):
        ask, columns, allowed, tunables = random_case(rng)
        i = int(rng.integers(0, len(allowed)))
        answer = rule(ask, columns, i, tunables)
        assert answer == plain(rule)(ask, as_lists(columns), i, tunables)
        if answer == REASON_BUDGET:
            assert ask.price > ask.budget_left
        elif answer == REASON_SLO:
            assert brute_ttft_s(ask, columns, i) > 1.2 * ask.ttft_slo_s - 1e-12
        elif rule is admit.within_slo_and_budget:
            assert ask.price <= ask.budget_left and brute_ttft_s(ask, columns, i) <= 1.2 * ask.ttft_slo_s + 1e-12


@pytest.mark.parametrize("rule", CAPS, ids=lambda rule: plain(rule).__name__)
def test_caps_agree_and_fit_the_limit_where_they_can(rule: Any) -> None:
    """A cap answers alike compiled and plain; a slowed site draws at most its limit, unless 5 % of its power is more."""
    rng = np.random.default_rng(14)
    for _ in range(800):
        idle_kw = float(rng.uniform(0, 50))
        power_kw = idle_kw + float(rng.choice([0.0, rng.uniform(0, 100)]))
        limit_kw = float(rng.choice([rng.uniform(0, 150), np.inf]))
        lowest = int(rng.integers(-1, 10))
        ratio, now_open = rule(power_kw, idle_kw, limit_kw, lowest)
        assert (ratio, now_open) == plain(rule)(power_kw, idle_kw, limit_kw, lowest)
        assert 0.0 < ratio <= 1.0 and -1 <= now_open <= 9
        if rule in (cap.shed, cap.by_priority):
            assert abs(now_open - lowest) <= 1  # one priority at a time
        if rule in (cap.slow, cap.by_priority):
            assert idle_kw + ratio * (power_kw - idle_kw) <= max(limit_kw, idle_kw + 0.05 * (power_kw - idle_kw)) + 1e-9
            if power_kw <= limit_kw:
                assert ratio == 1.0
    assert 0.36 < cap.speed_ratio(cap.MIN_DYNAMIC_RATIO) < 0.37 and cap.speed_ratio(1.0) == 1.0


def test_scaling_holds_the_outstanding_at_the_target_share() -> None:
    """The wanted number keeps each replica at most at its target, is the least that does, and stays in its bounds."""
    rng = np.random.default_rng(15)
    tunables = Tunables(1.5, 1.2, 0.6, 300.0)
    for _ in range(800):
        outstanding, slots = int(rng.integers(0, 5000)), int(rng.integers(1, 300))
        low = int(rng.integers(0, 5))
        high = low + int(rng.integers(0, 40))
        n = scale.target_utilisation(3, outstanding, slots, low, high, tunables)
        assert n == plain(scale.target_utilisation)(3, outstanding, slots, low, high, tunables)
        assert low <= n <= high
        if n < high:
            assert outstanding <= n * slots * 0.6 * (1 + 1e-12)
        if n > low:
            assert outstanding > (n - 1) * slots * 0.6 * (1 - 1e-12)
    assert scale.fixed(5, 100, 1, 2, 9, tunables) == 2
