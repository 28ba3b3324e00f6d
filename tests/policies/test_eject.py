"""Leaving failing replicas alone: how long, how many at once, when not at all."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as some

from baseload.policies.eject import ALONE, NORMAL, PROBING, TRIAL, Ejection, most_alone


def fail(ejection: Ejection, r: int, n: int, now_s: float = 0.0) -> None:
    """Let a replica fail several times."""
    for _ in range(n):
        ejection.failed(r, now_s)


def test_a_failing_replica_sees_five_requests_and_then_none() -> None:
    """Four failures in a row change nothing, a success forgives them, five close it (Envoy's consecutive_5xx: 5)."""
    ejection = Ejection([0, 0, 0, 0])
    fail(ejection, 2, 4)
    ejection.succeeded(2)
    fail(ejection, 2, 4)
    assert ejection.open == [1, 1, 1, 1]
    ejection.failed(2, 1.0)
    assert ejection.open == [1, 1, 0, 1]
    ejection.check()


def test_the_time_alone_doubles_up_to_tenfold() -> None:
    """10 s, 20, 40, 80, then 100 s each time: each trial that fails makes it longer, by one request."""
    ejection, now_s, lengths = Ejection([0, 0, 0, 0]), 0.0, []
    fail(ejection, 0, 5)
    for _ in range(6):
        lengths.append(ejection.until_s[0] - now_s)
        now_s = ejection.until_s[0]
        ejection.wake(now_s)
        assert ejection.state[0] == TRIAL and ejection.open[0]
        ejection.sent(0)
        assert ejection.state[0] == PROBING and not ejection.open[0]
        ejection.failed(0, now_s)
    assert lengths == [10.0, 20.0, 40.0, 80.0, 100.0, 100.0]


def test_one_good_trial_opens_and_a_cancelled_one_is_repeated() -> None:
    """Half-open lets one request through; only an answer opens the replica again."""
    ejection = Ejection([0, 0, 0, 0])
    fail(ejection, 0, 5)
    ejection.wake(10.0)
    ejection.sent(0)
    ejection.no_verdict(0)
    assert ejection.state[0] == TRIAL
    ejection.sent(0)
    ejection.succeeded(0)
    assert ejection.state[0] == NORMAL and ejection.fails[0] == 0
    ejection.check()


@pytest.mark.parametrize(("n", "most"), [(1, 0), (2, 1), (3, 1), (4, 2), (9, 4)])
def test_the_floor_keeps_half_of_each_model(n: int, most: int) -> None:
    """However many of a model's replicas fail, at most half are left alone, and a single one never is."""
    ejection = Ejection([0] * n + [1] * 40)  # so many others are well that the brake does not act
    for r in range(n):
        fail(ejection, r, 9)
        ejection.check()
    assert ejection.open[:n].count(0) == most == most_alone(0.5, n)


def test_when_most_fail_at_once_it_is_we_who_are_cut_off() -> None:
    """Beyond half of all replicas the brake lifts every ejection; when answers come back, ejection works again."""
    ejection = Ejection([r // 4 for r in range(16)])
    for r in range(16):
        fail(ejection, r, 5)
        assert ejection.braked == (r >= 8), r
    assert ejection.open == [1] * 16
    for r in range(8):
        ejection.succeeded(r)
    assert not ejection.braked
    ejection.failed(12, 1.0)
    assert ejection.state[12] == ALONE
    ejection.check()


def test_a_refused_connection_is_knowledge_and_needs_no_floor() -> None:
    """Nobody listens on any of them: all are closed at once, tried again after 2 s, and open when they came up."""
    ejection = Ejection([0, 0], refused_s=2.0)
    ejection.nobody_listens(0, 0.0)
    ejection.nobody_listens(1, 0.5)
    assert ejection.open == [0, 0] and ejection.next_s == 2.0 and not ejection.braked
    ejection.wake(2.0)
    assert ejection.open == [1, 0]
    ejection.came_up(1)
    assert ejection.open == [1, 1]
    ejection.check()


@given(seed=some.integers(0, 2**32 - 1), n=some.integers(1, 12), groups=some.integers(1, 3))
def test_whatever_happens_the_floor_holds_and_everyone_is_tried_again(seed: int, n: int, groups: int) -> None:
    """Random ends in random order: the floor holds at each step, and after the longest time alone nobody is closed."""
    rng = np.random.default_rng(seed)
    ejection = Ejection([int(g) for g in rng.integers(0, groups, n)], after=3, alone_s=1.0)
    probing: set[int] = set()
    now_s = 0.0
    for _ in range(200):
        now_s += float(rng.exponential(0.3))
        if now_s >= ejection.next_s:
            ejection.wake(now_s)
        r = int(rng.integers(0, n))
        what = rng.choice(["ok", "bad", "gone", "left", "refused", "up"], p=[0.4, 0.4, 0.05, 0.05, 0.05, 0.05])
        if what == "up":
            ejection.came_up(r)
        elif ejection.open[r] or r in probing or rng.random() < 0.3:
            if ejection.state[r] == TRIAL:
                ejection.sent(r)
                probing.add(r)
            if what == "ok":
                ejection.succeeded(r)
            elif what == "bad":
                ejection.failed(r, now_s)
            elif what == "refused":
                ejection.nobody_listens(r, now_s)
            else:
                ejection.no_verdict(r)
            probing.discard(r)
        ejection.check()
    for r in range(n):
        if ejection.state[r] == PROBING:
            ejection.no_verdict(r)
    ejection.wake(now_s + 100.0)
    assert ejection.open == [1] * n and ejection.next_s == float("inf")


def test_replicas_that_left_do_not_count_for_the_brake() -> None:
    """Of twelve rows eight have left: three of the four that are here are most, however many left failing."""
    ejection = Ejection([0] * 4 + [-1 - r for r in range(4, 12)])
    for r in range(4, 12):
        fail(ejection, r, 9)
    assert not ejection.braked, "what left is nobody's trouble"
    fail(ejection, 0, 5)
    assert ejection.state[0] == ALONE and not ejection.braked
    fail(ejection, 1, 5)
    fail(ejection, 2, 5)
    assert ejection.braked and ejection.open == [1] * 12
    ejection.succeeded(0)
    assert not ejection.braked, "two of four are no more than half"
    ejection.check()


def test_what_is_known_of_replicas_that_stay_is_kept_over_a_change() -> None:
    """Rows move, some leave: who is alone stays so until the same second, a trial stays the only one, the floor holds."""
    old = Ejection([0] * 8)
    for r in (1, 2, 3):
        fail(old, r, 5)
    old.nobody_listens(4, 1.0)
    old.wake(old.until_s[4])
    old.sent(4)
    assert [old.state[r] for r in (1, 2, 3, 4)] == [ALONE] * 3 + [PROBING]
    new = Ejection([0] * 6 + [-7])
    new.follow(old, [5, 0, 1, -1, 2, 3, 4, 6])
    assert [new.state[r] for r in (0, 1, 2, 5)] == [ALONE, ALONE, PROBING, NORMAL]
    assert [new.until_s[0], new.times[0], new.fails[0]] == [old.until_s[1], 1, 5] and new.refused[2]
    assert new.next_s == min(new.until_s)
    new.check()
    new.succeeded(2)
    assert new.state[2] == NORMAL
    few = Ejection([0, 0, 0])
    few.follow(old, [0, 1, 2, -1, -1, -1, -1, -1])
    assert few.state.count(ALONE) == 1, "of three at most one is left alone"
    few.check()
