"""Availability: every state counted by hand against the closed forms."""

from __future__ import annotations

from itertools import product
from math import prod

import pytest
from hypothesis import given
from hypothesis import strategies as st

from baseload.formulas import availability as av

shares = st.floats(0.0, 1.0)


def counted(k: int, n: int, each: float) -> float:
    """Return k-of-n by adding up all 2^n states."""
    states = product((True, False), repeat=n)
    return sum(prod(each if up else 1 - each for up in state) for state in states if sum(state) >= k)


def test_reference_cases():
    """Four of five at 0.99, two whole feeds at 0.999, and the index of a 50-30-20 market."""
    assert av.k_of_n(4, 5, 0.99) == pytest.approx(0.99902, abs=5e-6)
    assert av.parallel([0.999, 0.999]) == pytest.approx(0.999999)
    assert av.concentration_hhi([0.5, 0.3, 0.2]) == pytest.approx(3800.0)


@given(st.integers(1, 9), st.integers(0, 9), shares)
def test_k_of_n_by_counting_states(n: int, k: int, each: float):
    """The binomial sum is the sum over all states."""
    k = min(k, n)
    assert av.k_of_n(k, n, each) == pytest.approx(counted(k, n, each), abs=1e-9)


@given(st.lists(shares, min_size=1, max_size=6))
def test_chains_and_choices(parts: list[float]):
    """A chain is no better than its worst part, a choice no worse than its best."""
    assert av.series(parts) <= min(parts) + 1e-12
    assert av.parallel(parts) >= max(parts) - 1e-12


@given(st.integers(1, 7), st.integers(1, 7), st.floats(0.5, 1.0), shares)
def test_a_common_cause_by_counting(k: int, n: int, each: float, beta: float):
    """With the cause apart, the rest counts as independent; redundancy never beats the common part."""
    k, n = min(k, n), max(k, n)
    down = 1 - each
    expected = counted(k, n, 1 - (1 - beta) * down) * (1 - beta * down)
    ours = av.k_of_n_common_cause(k, n, each, beta)
    assert ours == pytest.approx(expected, abs=1e-9)
    assert ours <= 1 - beta * down + 1e-12


@given(st.integers(1, 40), st.floats(0.5, 0.9999), st.floats(0.5, 0.99999))
def test_the_fewest_units_are_enough_and_fewest(needed: int, each: float, target: float):
    """What is returned meets the target, and one less does not."""
    n = av.units_for_target(needed, each, target)
    assert av.k_of_n(needed, n, each) >= target
    assert n == needed or av.k_of_n(needed, n - 1, each) < target


def test_thousands_of_parts_keep_their_digits():
    """A fleet of 16,384 parts neither overflows nor loses the tail."""
    assert av.k_of_n(16_000, 16_384, 0.99) == pytest.approx(1.0)
    assert 0.0 < av.k_of_n(16_384, 16_384, 0.999) == pytest.approx(0.999**16_384, rel=1e-9)
    assert av.units_for_target(16_384, 0.999, 0.999) < 16_500


@pytest.mark.parametrize(("up", "hours"), [(0.99671, 28.8), (0.99741, 22.7), (0.99982, 1.6), (0.99995, 0.4)])
def test_uptime_tiers(up: float, hours: float):
    """The hours a year that the Uptime Institute's four tiers allow."""
    assert av.downtime_h_per_year(up) == pytest.approx(hours, abs=0.06)


@given(st.floats(1.0, 1e6), st.floats(0.0, 1e4), st.integers(1, 20_000))
def test_groups_fail_faster_and_heal_alike(mtbf_h: float, mttr_h: float, n: int):
    """n parts fail n times as often, and the mean number at work is n times one's availability."""
    assert av.mtbf_of_group_h(mtbf_h, n) * n == pytest.approx(mtbf_h)
    assert av.expected_healthy(n, mtbf_h, mttr_h) == pytest.approx(n * mtbf_h / (mtbf_h + mttr_h))
    assert av.availability(mtbf_h, 0.0) == 1.0


@given(st.lists(st.floats(0.001, 1e6), min_size=1, max_size=12), st.floats(0.01, 100.0))
def test_concentration_is_about_shares_only(amounts: list[float], scale: float):
    """The index does not care for the unit, and lies between even spread and one holder."""
    index = av.concentration_hhi(amounts)
    assert index == pytest.approx(av.concentration_hhi([scale * amount for amount in amounts]))
    assert 10_000 / len(amounts) - 1e-6 <= index <= 10_000 + 1e-6
