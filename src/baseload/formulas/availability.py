"""Availability: how much of what stands there works, and how evenly the risk is spread.

Closed forms for independent parts and for a common cause. The failures that happen in a run, with their dice,
are the twin's business; these are what its long run must agree with.
"""

from __future__ import annotations

from collections.abc import Iterable
from math import exp, fsum, lgamma, log, log1p, prod

from baseload.units import HOURS_PER_YEAR

HHI_SCALE = 10_000.0  # the index of competition law: one holder of everything scores 10,000


def availability(mtbf_h: float, mttr_h: float) -> float:
    """Return the share of time a part works: MTBF / (MTBF + MTTR), both in hours.

    >>> availability(mtbf_h=990.0, mttr_h=10.0)
    0.99
    """
    assert mtbf_h > 0.0 and mttr_h >= 0.0, (mtbf_h, mttr_h)
    return mtbf_h / (mtbf_h + mttr_h)


def downtime_h_per_year(share_up: float) -> float:
    """Return the hours a year that an availability leaves dark.

    >>> round(downtime_h_per_year(0.999), 2)
    8.76
    """
    assert 0.0 <= share_up <= 1.0, share_up
    return (1.0 - share_up) * HOURS_PER_YEAR


def series(parts: Iterable[float]) -> float:
    """Return the availability of a chain that needs every part.

    >>> round(series([0.99, 0.98]), 4)
    0.9702
    """
    return prod(parts)


def parallel(parts: Iterable[float]) -> float:
    """Return the availability of parts of which one is enough: 2N is two of them.

    >>> round(parallel([0.999, 0.999]), 6)
    0.999999
    """
    return 1.0 - prod(1.0 - part for part in parts)


def k_of_n(k: int, n: int, each: float) -> float:
    """Return the availability of `n` equal, independent parts of which `k` are needed (binomial sum).

    >>> round(k_of_n(4, 5, 0.99), 5)
    0.99902
    """
    assert 0 <= k <= n and 0.0 <= each <= 1.0, (k, n, each)
    if k == 0 or each in (0.0, 1.0):
        return 1.0 if k == 0 else each
    if k > n * each:  # the tail on this side is the smaller one, and keeps its digits
        return fsum(_exactly(i, n, each) for i in range(k, n + 1))
    return 1.0 - fsum(_exactly(i, n, each) for i in range(k))


def _exactly(i: int, n: int, each: float) -> float:
    # By logarithms: comb(16384, 8000) does not fit a float.
    ways = lgamma(n + 1) - lgamma(i + 1) - lgamma(n - i + 1)
    return exp(ways + i * log(each) + (n - i) * log1p(-each))


def k_of_n_common_cause(k: int, n: int, each: float, beta: float) -> float:
    """Return k-of-n availability when a share `beta` of each part's downtime strikes all parts at once.

    The beta-factor model (Fleming 1975; IEC 61508-6): redundancy cannot buy more than 1 - beta (1 - each).

    >>> round(k_of_n_common_cause(1, 2, 0.999, beta=0.1), 7)
    0.9998992
    """
    assert 0.0 <= beta <= 1.0 and 0.0 <= each <= 1.0, (beta, each)
    unavailable = 1.0 - each
    return k_of_n(k, n, 1.0 - (1.0 - beta) * unavailable) * (1.0 - beta * unavailable)


def units_for_target(needed: int, each: float, target: float, most: int = 1_000_000) -> int:
    """Return the fewest units of which `needed` work with probability `target`; `most` if fewer do not do.

    >>> units_for_target(4, 0.99, target=0.999)
    5
    """
    assert 0 <= needed <= most and 0.0 < each <= 1.0 and 0.0 <= target < 1.0, (needed, each, target)
    n = needed
    while n < most and k_of_n(needed, n, each) < target:
        n += 1
    return n


def expected_healthy(n: float, mtbf_h: float, mttr_h: float) -> float:
    """Return the mean number of `n` parts that work, each repaired on its own.

    >>> round(expected_healthy(16_384, mtbf_h=50_600.0, mttr_h=24.0), 1)
    16376.2
    """
    assert n >= 0, n
    return n * availability(mtbf_h, mttr_h)


def mtbf_of_group_h(each_mtbf_h: float, n: float) -> float:
    """Return the mean hours to the first failure among `n` parts (exponential lives).

    >>> round(mtbf_of_group_h(50_688.0, 16_384), 3)
    3.094
    """
    assert each_mtbf_h > 0.0 and n > 0, (each_mtbf_h, n)
    return each_mtbf_h / n


def concentration_hhi(amounts: Iterable[float]) -> float:
    """Return the Herfindahl-Hirschman index of amounts by vendor, site, grid zone or law: up to 10,000.

    >>> round(concentration_hhi([50.0, 30.0, 20.0]))
    3800
    """
    shares = list(amounts)
    total = sum(shares)
    assert total > 0.0 and min(shares) >= 0.0, shares
    return HHI_SCALE * sum((share / total) ** 2 for share in shares)
