"""Constants and the few conversions that everyone shares; every other conversion lives in `formulas/`."""

from __future__ import annotations

NS_PER_S = 1_000_000_000
S_PER_HOUR = 3600.0
HOURS_PER_YEAR = 8760.0
HOURS_PER_MONTH = HOURS_PER_YEAR / 12.0
J_PER_KWH = 3_600_000.0
J_PER_WH = 3_600.0
TOKENS_PER_MTOK = 1_000_000.0
GB = 1_000_000_000.0
"""Bytes in a gigabyte, as memory and link makers count (SI)."""


def s_to_ns(seconds: float) -> int:
    """Return whole nanoseconds, rounded to the nearest.

    >>> s_to_ns(1.5)
    1500000000
    """
    return round(seconds * NS_PER_S)


def ns_to_s(ns: int) -> float:
    """Return seconds.

    >>> ns_to_s(1_500_000_000)
    1.5
    """
    return ns / NS_PER_S
