"""The retry budget: upstreams that all fail see at most a tenth more than is offered."""

from __future__ import annotations

import numpy as np
from hypothesis import given
from hypothesis import strategies as some

from baseload.policies.retry import LEAST_RETRIES, MOST_TRIES, RetryBudget, may_try_again


def storm(rate: float, until_s: float, ratio: float, retries: int, seed: int = 0) -> tuple[int, int, float]:
    """Offer requests that all fail; return requests, tries, and the most tries a request in any 10 s."""
    rng = np.random.default_rng(seed)
    budget, now_s, requests, tries = RetryBudget(ratio), 0.0, 0, 0
    seen: list[tuple[float, int]] = []
    while now_s < until_s:
        now_s += float(rng.exponential(1.0 / rate))
        requests += 1
        budget.request(now_s)
        n = 1
        while may_try_again(n, retries) and budget.may_retry(now_s):
            n += 1
        tries += n
        seen.append((now_s, n))
        budget.check()
    worst = 0.0
    for from_s in np.arange(0.0, until_s - 10.0, 2.5):
        inside = [n for at, n in seen if from_s <= at < from_s + 10.0]
        worst = max(worst, sum(inside) / len(inside))
    return requests, tries, worst


def test_with_every_upstream_down_the_load_is_at_most_a_tenth_more() -> None:
    """At 100 requests a second that all fail, tries are at most 1.1 of the requests, and near that in any 10 s."""
    requests, tries, worst = storm(100.0, 60.0, 0.1, retries=2)
    assert 1.05 * requests < tries <= 1.1 * requests
    assert worst <= 1.12


def test_without_a_budget_there_is_no_more_than_a_few_retries() -> None:
    """A ratio of nought leaves the small minimum alone: three retries in ten seconds."""
    requests, tries, _ = storm(50.0, 30.0, 0.0, retries=2)
    assert tries - requests <= LEAST_RETRIES * 4


def test_a_quiet_service_may_still_retry() -> None:
    """The first request of a quiet hour may be tried three times, however small a tenth of it is."""
    budget = RetryBudget(0.1)
    budget.request(3600.0)
    assert [budget.may_retry(3600.0) for _ in range(4)] == [True, True, True, False]
    assert may_try_again(1, 2) and may_try_again(2, 2) and not may_try_again(3, 2)
    assert not may_try_again(1, 0) and not may_try_again(MOST_TRIES, 99)


@given(seed=some.integers(0, 2**32 - 1), ratio=some.sampled_from([0.0, 0.1, 0.5]))
def test_at_each_moment_the_window_holds_the_budget(seed: int, ratio: float) -> None:
    """Whatever the traffic, retries in the window are at most the ratio of its requests, or the small minimum."""
    rng = np.random.default_rng(seed)
    budget, now_s = RetryBudget(ratio), 0.0
    for _ in range(300):
        now_s += float(rng.choice([0.0, 0.01, 1.0, 30.0], p=[0.5, 0.44, 0.05, 0.01]))
        if rng.random() < 0.6:
            budget.request(now_s)
        elif budget.may_retry(now_s):
            assert budget.n_retries <= max(LEAST_RETRIES, ratio * budget.n_requests)
        budget.check()
