"""Retry: whether a request that failed before its first byte may be asked elsewhere.

At most MOST_TRIES tries a request, and over the last `window_s` at most `ratio` retries a request (LEAST_RETRIES of them
where there is little traffic): so upstreams that all fail see at most (1 + ratio) of what is offered, and a retry storm
cannot feed itself. Told the time; which replica is next is `route.py`'s, after the same hard limits.
"""

from __future__ import annotations

from typing import Final

MOST_TRIES: Final = 3  # the first included (Google SRE: at most three attempts a request)
LEAST_RETRIES: Final = 3  # in a window, however few its requests
BUCKETS: Final = 10


def may_try_again(n_tries: int, retries: int) -> bool:
    """Say whether a request that was tried `n_tries` times may be tried once more, `retries` being allowed after the first.

    >>> [may_try_again(n, retries=9) for n in (1, 2, 3)]
    [True, True, False]
    """
    return n_tries < min(1 + retries, MOST_TRIES)


class RetryBudget:
    """Counts requests and retries over a sliding window of `window_s`, in tenths."""

    def __init__(self, ratio: float, *, window_s: float = 10.0, least: int = LEAST_RETRIES) -> None:
        self.ratio, self.least = ratio, least
        self.bucket_s = window_s / BUCKETS
        self.requests = [0] * BUCKETS
        self.retries = [0] * BUCKETS
        self.n_requests = 0  # in the window
        self.n_retries = 0
        self.turned = 0  # number of the newest bucket

    def turn(self, now_s: float) -> None:
        """Drop what left the window."""
        newest = int(now_s / self.bucket_s)
        if newest <= self.turned:
            return
        for number in range(self.turned + 1, min(newest, self.turned + BUCKETS) + 1):
            i = number % BUCKETS
            self.n_requests -= self.requests[i]
            self.n_retries -= self.retries[i]
            self.requests[i] = self.retries[i] = 0
        self.turned = newest

    def request(self, now_s: float) -> None:
        """Count a first try."""
        if int(now_s / self.bucket_s) > self.turned:
            self.turn(now_s)
        self.requests[self.turned % BUCKETS] += 1
        self.n_requests += 1

    def may_retry(self, now_s: float) -> bool:
        """Take one retry out of the budget, if it holds one."""
        self.turn(now_s)
        if self.n_retries + 1 > max(self.least, int(self.ratio * self.n_requests)):
            return False
        self.retries[self.turned % BUCKETS] += 1
        self.n_retries += 1
        return True

    def check(self) -> None:
        """Assert that the sums are those of the buckets."""
        assert self.n_requests == sum(self.requests) and self.n_retries == sum(self.retries)
        assert min(self.requests) >= 0 and min(self.retries) >= 0
