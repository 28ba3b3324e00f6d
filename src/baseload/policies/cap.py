"""Cap: what a site does at its power limit. One signature: `rule(power_kw, idle_kw, limit_kw, lowest_open) ->
(dynamic_ratio, lowest_open)`.

`dynamic_ratio` scales the power above idle (a clock or power cap on the accelerators); what that costs in speed is
`speed_ratio`. `lowest_open` is the largest priority number still taken (9: everyone, -1: nobody): what a site no longer
takes is routed elsewhere by the ordinary rules (shift), or refused where no other site may serve it (shed).
"""

from __future__ import annotations

from baseload.jit import kernel

LOWEST_PRIORITY = 9
MIN_DYNAMIC_RATIO = 0.05


@kernel
def speed_ratio(dynamic_ratio: float) -> float:
    """Return the speed left when power above idle is cut to `dynamic_ratio`, as its cube root.

    Dynamic power goes with f V^2, about f^3 where voltage follows frequency (textbook CMOS scaling). An upper bound on
    the harm: memory-bound decoding loses less (POLCA, ASPLOS'24, measured under 10 % speed for 20 % power).
    """
    return float(dynamic_ratio ** (1.0 / 3.0))


@kernel
def _fitting_ratio(power_kw: float, idle_kw: float, limit_kw: float) -> float:
    dynamic_kw = power_kw - idle_kw
    if dynamic_kw <= 0.0:
        return 1.0
    return min(1.0, max(MIN_DYNAMIC_RATIO, (limit_kw - idle_kw) / dynamic_kw))


@kernel
def none(power_kw: float, idle_kw: float, limit_kw: float, lowest_open: int) -> tuple[float, int]:
    """Do nothing: a breach of the limit shows in the report."""
    return 1.0, LOWEST_PRIORITY


@kernel
def slow(power_kw: float, idle_kw: float, limit_kw: float, lowest_open: int) -> tuple[float, int]:
    """Cap the accelerators' power so that the site fits; everyone is served, slower."""
    return _fitting_ratio(power_kw, idle_kw, limit_kw), LOWEST_PRIORITY


@kernel
def shed(power_kw: float, idle_kw: float, limit_kw: float, lowest_open: int) -> tuple[float, int]:
    """Close the site to one more priority while over the limit, open one again below 90 % of it."""
    if power_kw > limit_kw:
        return 1.0, max(-1, lowest_open - 1)
    if power_kw < 0.9 * limit_kw:
        return 1.0, min(LOWEST_PRIORITY, lowest_open + 1)
    return 1.0, lowest_open


@kernel
def by_priority(power_kw: float, idle_kw: float, limit_kw: float, lowest_open: int) -> tuple[float, int]:
    """Fit at once by a power cap, and turn the least important new requests away until the cap can be lifted."""
    ratio = _fitting_ratio(power_kw, idle_kw, limit_kw)
    _, lowest = shed(power_kw, idle_kw, limit_kw, lowest_open)
    return ratio, lowest
