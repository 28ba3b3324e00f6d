"""Queues: closed forms against Markov chains solved outright and random walks drawn with a seed."""

from __future__ import annotations

from math import inf

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from baseload.formulas import queues

loads = st.floats(0.01, 0.98)


def steady(births: NDArray[np.float64], deaths: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return the steady state of a birth-death chain from its rates."""
    weight = np.concatenate([[0.0], np.cumsum(np.log(births) - np.log(deaths))])
    chance = np.exp(weight - weight.max())
    return chance / chance.sum()


def walked_wait_s(between_s: NDArray[np.float64], service_s: NDArray[np.float64]) -> float:
    """Return the mean wait of a one-server queue by Lindley's recursion, all at once."""
    walk = np.concatenate([[0.0], np.cumsum(service_s[:-1] - between_s[1:])])
    return float(np.mean(walk - np.minimum.accumulate(walk)))


@given(st.integers(1, 30), loads)
def test_erlang_by_solving_the_chain(c: int, load: float):
    """Erlang B, Erlang C and the mean wait are those of the birth-death chain, solved outright."""
    offered = c * load
    lost = steady(np.full(c, offered), np.arange(1.0, c + 1))
    assert queues.erlang_b(offered, c) == pytest.approx(float(lost[-1]), rel=1e-9)
    states = c + int(40 / (1 - load)) + 200
    chain = steady(np.full(states, offered), np.minimum(np.arange(1.0, states + 1), c))
    assert queues.erlang_c(offered, c) == pytest.approx(float(chain[c:].sum()), rel=1e-6)
    waiting = float((chain * np.maximum(np.arange(states + 1) - c, 0)).sum())
    assert queues.mmc_wait_s(offered, 1.0, c) == pytest.approx(waiting / offered, rel=1e-6)


@pytest.mark.parametrize("kind", ["exponential", "constant", "gamma"])
def test_one_server_by_a_random_walk(kind: str):
    """M/M/1, M/D/1 and M/G/1 waits are those of half a million drawn customers, within 4 %."""
    dice = np.random.default_rng(11)
    n, rho = 500_000, 0.7
    service, cv2 = {
        "exponential": (dice.exponential(1.0, n), 1.0),
        "constant": (np.ones(n), 0.0),
        "gamma": (dice.gamma(0.5, 2.0, n), 2.0),
    }[kind]
    walked = walked_wait_s(dice.exponential(1 / rho, n), service)
    assert queues.mg1_wait_s(rho, 1.0, cv2) == pytest.approx(walked, rel=0.04)


def test_the_special_cases_meet():
    """M/M/1 is M/G/1 with variance 1 and M/M/c with one server; M/D/1 is half of it."""
    for rho in (0.1, 0.5, 0.9, 0.99):
        assert queues.mm1_wait_s(rho, 1.0) == pytest.approx(rho / (1 - rho))
        assert queues.mmc_wait_s(rho, 1.0, 1) == pytest.approx(queues.mm1_wait_s(rho, 1.0))
        assert queues.md1_wait_s(rho, 1.0) == pytest.approx(queues.mm1_wait_s(rho, 1.0) / 2)
        assert queues.mgc_wait_s(rho, 1.0, 1, cv2=3.0) == pytest.approx(queues.mg1_wait_s(rho, 1.0, cv2=3.0))
        assert queues.processor_sharing_sojourn_s(rho, 1.0) == pytest.approx(queues.mm1_wait_s(rho, 1.0) + 1.0)


@given(st.integers(1, 40), st.floats(0.1, 50.0), st.floats(0.05, 5.0))
def test_closed_loop_by_solving_the_chain(users: int, think_s: float, service_s: float):
    """Throughput of a closed loop of exponential users and one server is that of its chain, and in its bounds."""
    inside = np.arange(users)
    chain = steady((users - inside) / think_s, np.full(users, 1 / service_s))
    ours = queues.closed_throughput_per_s(users, think_s, service_s)
    assert ours == pytest.approx(float(1 - chain[0]) / service_s, rel=1e-9)
    assert ours <= min(1 / service_s, users / (think_s + service_s)) * (1 + 1e-12)


@given(st.integers(1, 50), loads, st.floats(0.01, 10.0), st.floats(0.0, 0.999))
def test_quantile_and_tail_are_inverse(c: int, load: float, service_s: float, share: float):
    """The share of waits above the quantile is what the quantile leaves, or fewer wait at all."""
    rate = load * c / service_s
    limit_s = queues.mmc_wait_quantile_s(share, rate, service_s, c)
    above = queues.mmc_wait_above(limit_s, rate, service_s, c)
    assert above <= 1 - share + 1e-9
    assert limit_s == 0.0 or above == pytest.approx(1 - share, rel=1e-6)


@given(st.integers(1, 50), loads, loads, st.floats(0.01, 10.0))
def test_waits_grow_with_load_and_scale_with_time(c: int, a: float, b: float, service_s: float):
    """More load never waits less, and a unit of time is a unit of time."""
    low, high = sorted((a, b))
    waits = [queues.mmc_wait_s(load * c / service_s, service_s, c) for load in (low, high)]
    assert waits[0] <= waits[1] * (1 + 1e-12)
    assert waits[1] == pytest.approx(service_s * queues.mmc_wait_s(high * c, 1.0, c), rel=1e-6)


@given(st.integers(1, 20), loads)
def test_pooling_beats_splitting(c: int, load: float):
    """One pool of c servers waits no longer than c single ones with a share of the load each."""
    assert queues.mmc_wait_s(load * c, 1.0, c) <= queues.mm1_wait_s(load, 1.0) * (1 + 1e-9)


def test_overload_waits_without_end():
    """At or above full load the wait is infinite, and everybody waits."""
    assert queues.mmc_wait_s(3.0, 1.0, 3) == queues.mg1_wait_s(1.5, 1.0, 0.0) == inf
    assert queues.mmc_wait_quantile_s(0.5, 5.0, 1.0, 3) == queues.processor_sharing_sojourn_s(1.0, 1.0) == inf
    assert queues.erlang_c(5.0, 3) == queues.mmc_wait_above(9.0, 5.0, 1.0, 3) == 1.0
    assert queues.utilisation(6.0, 1.0, 3) == 2.0


def test_littles_law_on_a_drawn_queue():
    """The mean number inside, counted over time, is arrival rate times mean stay."""
    dice = np.random.default_rng(5)
    n = 20_000
    arrive = np.cumsum(dice.exponential(1.0, n))
    service = dice.exponential(0.6, n)
    walk = np.concatenate([[0.0], np.cumsum(service[:-1] - np.diff(arrive))])
    leave = arrive + walk - np.minimum.accumulate(walk) + service
    times = np.concatenate([arrive, leave])
    order = np.argsort(times, kind="stable")
    inside = np.cumsum(np.where(order < n, 1, -1))
    span_s = float(times[order][-1])
    counted = float((inside[:-1] * np.diff(times[order])).sum()) / span_s
    assert queues.littles_number(n / span_s, float((leave - arrive).mean())) == pytest.approx(counted, rel=1e-9)


def test_kingmans_shape():
    """Bursty arrivals with squared variation 4 wait two and a half times as long as Poisson ones (M/M/1)."""
    bursty = queues.ggc_wait_s(0.8, 1.0, 1, arrival_cv2=4.0, service_cv2=1.0)
    assert bursty == pytest.approx(2.5 * queues.mm1_wait_s(0.8, 1.0))
