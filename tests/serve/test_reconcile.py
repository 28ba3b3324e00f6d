"""What is becomes what should be: from any state, however the news came, without a storm of restarts."""

from __future__ import annotations

from typing import Any

import numpy as np
from hypothesis import given
from hypothesis import strategies as some

from baseload.serve import reconcile as r
from baseload.serve.reconcile import Patience, Seen, latest, reconcile


class Machine:
    """A provisioner and its replicas, on a clock that jumps; carries actions out, late or twice as told."""

    def __init__(self, rng: np.random.Generator, n: int) -> None:
        self.rng = rng
        self.now_s = 0.0
        self.seen = {
            i: Seen(i, int(rng.integers(0, 4)), 0, int(rng.integers(0, 6)), -float(rng.integers(0, 50)),
                    int(rng.integers(0, 3)), int(rng.integers(0, 3)))
            for i in range(n)
        }  # fmt: skip
        self.n_starts = 0

    def move(self, i: int, **kw: Any) -> None:
        """Let a replica be seen in another phase."""
        old = self.seen[i]
        self.seen[i] = old._replace(**{"seq": old.seq + 1, "since_s": self.now_s, **kw})

    def do(self, action: r.Action) -> None:
        """Carry an action out, if it is meant for this incarnation."""
        old = self.seen[action.replica]
        if action.incarnation != old.incarnation:
            return
        if action.kind in (r.START, r.RESTART):
            self.n_starts += 1
            failed = old.n_failures + (action.kind == r.RESTART)
            self.seen[action.replica] = Seen(
                action.replica, old.incarnation + 1, 0, r.STARTING, self.now_s, 0, failed
            )  # fmt: skip
        elif action.kind == r.STOP and old.phase not in (r.ABSENT, r.EXITED):
            self.seen[action.replica] = Seen(action.replica, old.incarnation + 1, 0, r.ABSENT, self.now_s)
        elif action.kind == r.DRAIN and old.phase in (r.UP, r.UNHEALTHY):
            self.move(action.replica, phase=r.DRAINING)
        elif action.kind == r.RESUME and old.phase == r.DRAINING:
            self.move(action.replica, phase=r.UP)

    def step(self, desired: dict[int, bool]) -> list[r.Action]:
        """Look, act (sometimes twice), and let time pass: starts end, requests end."""
        actions = reconcile(desired, self.seen, self.now_s)
        for action in actions:
            for _ in range(int(self.rng.integers(1, 3))):
                self.do(action)
        self.now_s += 5.0
        for i, seen in list(self.seen.items()):
            if seen.phase == r.STARTING and self.now_s - seen.since_s >= 10.0:
                self.move(i, phase=r.UP, n_failures=0)
            if seen.in_flight:
                self.seen[i] = self.seen[i]._replace(in_flight=self.seen[i].in_flight - 1, seq=self.seen[i].seq + 1)
        return actions


@given(seed=some.integers(0, 2**32 - 1), n=some.integers(1, 12))
def test_from_any_state_the_loop_ends_where_it_should_and_then_rests(seed: int, n: int) -> None:
    """Whatever stands at first, what should run is up, what should not is gone, and no action is left."""
    rng = np.random.default_rng(seed)
    machine = Machine(rng, n)
    desired = {i: bool(rng.integers(0, 2)) for i in range(n) if rng.random() < 0.9}
    for _ in range(150):
        machine.step(desired)
    for i, seen in machine.seen.items():
        assert (seen.phase == r.UP) if desired.get(i, False) else seen.phase in (r.ABSENT, r.EXITED), (i, seen)
    assert reconcile(desired, machine.seen, machine.now_s) == []
    assert machine.n_starts <= 2 * n


@given(seed=some.integers(0, 2**32 - 1), n=some.integers(1, 6))
def test_events_in_any_order_or_twice_end_in_the_same_state(seed: int, n: int) -> None:
    """Observations shuffled, repeated and late give the same state, so the same actions."""
    rng = np.random.default_rng(seed)
    machine, events = Machine(rng, n), []
    desired = {i: bool(rng.integers(0, 2)) for i in range(n)}
    for _ in range(12):
        events += machine.seen.values()
        machine.step(desired)
        if rng.random() < 0.3:
            i = int(rng.integers(0, n))
            machine.move(i, phase=int(rng.choice([r.UP, r.UNHEALTHY, r.EXITED])))
    events += machine.seen.values()
    want = latest(events)
    assert want == machine.seen
    for _ in range(5):
        mixed = [events[i] for i in rng.permutation(len(events))] + [events[i] for i in rng.integers(0, len(events), 9)]
        assert latest(mixed) == want
        assert reconcile(desired, latest(mixed), 99.0) == reconcile(desired, want, 99.0)


def test_when_everything_looks_down_nothing_is_restarted() -> None:
    """Eight of ten silent at once is our own cable: no restart for five minutes, then one at a time."""
    desired = dict.fromkeys(range(10), True)
    seen = {i: Seen(i, 1, 1, r.UNHEALTHY if i < 8 else r.UP) for i in range(10)}
    assert r.braked(desired, seen)
    assert reconcile(desired, seen, 60.0) == []
    assert [a.replica for a in reconcile(desired, seen, 301.0)] == [0]
    few = {i: Seen(i, 1, 1, r.UNHEALTHY if i < 3 else r.UP) for i in range(10)}
    assert [a.kind for a in reconcile(desired, few, 60.0)] == [r.RESTART] * 3
    assert reconcile(desired, few, 5.0) == []  # silent for 5 s is no reason yet


def test_a_crash_loop_is_slowed_down() -> None:
    """A replica that exits at once is started after 1, 2, 4 ... 60 s: 13 times in ten minutes, not 600."""
    starts, now_s, seen = 0, 0.0, Seen(0, 0, 0, r.EXITED, 0.0, 0, 0)
    while now_s < 600.0:
        for _ in reconcile({0: True}, {0: seen}, now_s):
            starts += 1
            seen = Seen(0, starts, 0, r.EXITED, now_s, 0, seen.n_failures + 1)
        now_s += 0.25
    assert 12 <= starts <= 16, starts


def test_a_drain_waits_for_what_runs_but_not_for_ever() -> None:
    """Who should not run and holds requests is drained, and stopped when empty or after the limit."""
    busy = {0: Seen(0, 1, 1, r.UP, 0.0, in_flight=2)}
    assert [a.kind for a in reconcile({0: False}, busy, 1.0)] == [r.DRAIN]
    draining = {0: Seen(0, 1, 2, r.DRAINING, 1.0, in_flight=2)}
    assert reconcile({}, draining, 20.0) == []
    assert [a.kind for a in reconcile({}, draining, 31.0)] == [r.STOP]
    assert [a.kind for a in reconcile({}, {0: draining[0]._replace(in_flight=0)}, 2.0)] == [r.STOP]
    assert [a.kind for a in reconcile({0: True}, draining, 2.0)] == [r.RESUME]


def test_starts_come_a_few_at_a_time() -> None:
    """A hundred replicas to start are started eight at once, for one disk and one network."""
    assert len(reconcile(dict.fromkeys(range(100), True), {}, 0.0)) == Patience().most_starting
