"""Reconcile: what to do so that what is becomes what should be. A pure function of the two and the time.

Level-triggered: it looks at the state, never at what happened, so events that come late, twice or in another order change
nothing once the state is known (`latest`). Idempotent: when what is equals what should be, there is nothing to do. Each
action names the incarnation it is meant for, so that one that arrives late touches nothing newer. Failures wait longer
each time (back-off), and when most replicas look sick at once it is us who see badly: the brake holds restarts.
Carrying actions out is a provisioner's: `process` today; others take the same actions.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import NamedTuple

ABSENT, STARTING, UP, UNHEALTHY, DRAINING, EXITED = range(6)
PHASES = ("absent", "starting", "up", "unhealthy", "draining", "exited")
START, STOP, DRAIN, RESUME, RESTART = "start", "stop", "drain", "resume", "restart"


class Seen(NamedTuple):
    """One replica as last observed."""

    replica: int
    incarnation: int = 0  # counts starts of it
    seq: int = 0  # counts observations of this incarnation
    phase: int = ABSENT
    since_s: float = 0.0  # in this phase
    in_flight: int = 0
    n_failures: int = 0  # in a row; 0 again after it was up for a while


class Action(NamedTuple):
    """What a provisioner is to do with one replica, if it still is of that incarnation."""

    kind: str
    replica: int
    incarnation: int
    why: str


class Patience(NamedTuple):
    """How long the loop waits, in seconds, and how much it does at once."""

    back_off_s: float = 1.0  # after the first failure, doubling
    most_back_off_s: float = 60.0
    start_s: float = 120.0  # a start that takes longer has failed
    unhealthy_s: float = 10.0  # up and silent for so long: restarted
    drain_s: float = 30.0
    most_sick_ratio: float = 0.5  # of the replicas that should be up: more at once is our own trouble
    brake_s: float = 300.0  # sick for so long under the brake: restarted after all, one at a time
    most_starting: int = 8  # at once


PATIENCE = Patience()


def back_off_s(n_failures: int, patience: Patience = PATIENCE) -> float:
    """Return how long to wait before the next start after `n_failures` in a row, in seconds.

    >>> [back_off_s(n) for n in (0, 1, 2, 3, 20)]
    [0.0, 1.0, 2.0, 4.0, 60.0]
    """
    if n_failures == 0:
        return 0.0
    return min(patience.most_back_off_s, patience.back_off_s * 2.0 ** min(n_failures - 1, 30))


def newer(a: Seen | None, b: Seen) -> Seen:
    """Return the newer of two observations of one replica: the later incarnation, then the later observation."""
    if a is None or (b.incarnation, b.seq) > (a.incarnation, a.seq):
        return b
    return a


def latest(events: Iterable[Seen]) -> dict[int, Seen]:
    """Return each replica as last observed, in whatever order and however often the observations come."""
    found: dict[int, Seen] = {}
    for event in events:
        found[event.replica] = newer(found.get(event.replica), event)
    return found


def braked(desired: Mapping[int, bool], observed: Mapping[int, Seen], patience: Patience = PATIENCE) -> bool:
    """Say whether so many look sick at once that it is more likely us who are cut off."""
    phases = [observed[r].phase for r, on in desired.items() if on and r in observed]
    sick = phases.count(UNHEALTHY)
    return sick >= 2 and sick > patience.most_sick_ratio * (sick + phases.count(UP))


def reconcile(
    desired: Mapping[int, bool], observed: Mapping[int, Seen], now_s: float, patience: Patience = PATIENCE
) -> list[Action]:
    """Return what to do now, by replica: `desired` says which should run; who is observed and not in it should not."""
    actions: list[Action] = []
    brake = braked(desired, observed, patience)
    starting = sum(1 for seen in observed.values() if seen.phase == STARTING)
    for r in sorted({*desired, *observed}):
        seen = observed.get(r) or Seen(r)
        action = _wanted(seen, now_s, patience, brake) if desired.get(r, False) else _unwanted(seen, now_s, patience)
        if action is None:
            continue
        if action.kind in (START, RESTART) and seen.phase != STARTING:
            if starting >= (1 if brake and seen.phase == UNHEALTHY else patience.most_starting):
                continue
            starting += 1
        actions.append(action)
    return actions


def _wanted(seen: Seen, now_s: float, patience: Patience, brake: bool) -> Action | None:
    age_s = now_s - seen.since_s
    wait_s = back_off_s(seen.n_failures, patience)
    if seen.phase == ABSENT or (seen.phase == EXITED and age_s >= wait_s):
        return Action(START, seen.replica, seen.incarnation, "should run" if seen.phase == ABSENT else "exited")
    if seen.phase == STARTING and age_s >= patience.start_s + wait_s:
        return Action(RESTART, seen.replica, seen.incarnation, f"still starting after {age_s:.0f} s")
    if seen.phase == UNHEALTHY:
        limit_s = patience.brake_s if brake else patience.unhealthy_s
        if age_s >= max(limit_s, wait_s):
            return Action(RESTART, seen.replica, seen.incarnation, f"no answer for {age_s:.0f} s")
    if seen.phase == DRAINING:
        return Action(RESUME, seen.replica, seen.incarnation, "should run again")
    return None


def _unwanted(seen: Seen, now_s: float, patience: Patience) -> Action | None:
    if seen.phase in (ABSENT, EXITED):
        return None
    if seen.phase == STARTING or seen.in_flight == 0:
        return Action(STOP, seen.replica, seen.incarnation, "should not run")
    if seen.phase != DRAINING:
        return Action(DRAIN, seen.replica, seen.incarnation, "should not run")
    if now_s - seen.since_s >= patience.drain_s:
        return Action(STOP, seen.replica, seen.incarnation, f"not drained within {patience.drain_s:g} s")
    return None
