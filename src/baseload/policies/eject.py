"""Eject: which replicas are left alone after failures, for how long, and when to stop leaving alone.

Three rules, all told the time. A replica that fails `after` times in a row is left alone for `alone_s`, doubling up to
tenfold; then ONE request may try it (half-open), and its end decides. Never more than `most_ratio` of a group (the
replicas of a model) are left alone: the floor. And the brake: when more than that share of all replicas fail at once it is
we who are cut off, so everything is lifted and nobody ejected until answers come again. A refused connection is not a bad
answer but knowledge (nobody listens there): it closes the replica at once, without floor or brake.
What a failure is, and asking elsewhere, are the caller's and `retry.py`'s.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

NEVER_S = float("inf")
MOST_DOUBLED: Final = 10.0  # times alone_s
MOST_REFUSED: Final = 4.0  # times refused_s
NORMAL: Final = 0
ALONE: Final = 1
TRIAL: Final = 2
PROBING: Final = 3


def alone_for_s(alone_s: float, times: int, most: float = MOST_DOUBLED) -> float:
    """Return how long a replica is left alone the `times`-th time in a row (0: the first), in seconds.

    >>> [alone_for_s(10.0, times) for times in (0, 1, 2, 3, 9)]
    [10.0, 20.0, 40.0, 80.0, 100.0]
    """
    return min(alone_s * 2.0 ** min(times, 30), most * alone_s)


def most_alone(most_ratio: float, n: int) -> int:
    """Return how many of `n` replicas may be left alone at once: the floor keeps the rest.

    >>> most_alone(0.5, 1), most_alone(0.5, 4), most_alone(0.5, 5)
    (0, 2, 2)
    """
    return min(int(most_ratio * n), n - 1)


class Ejection:
    """Who is left alone, from ends of requests that the caller tells.

    `open[r]` is 1 where a request may be sent; `version` counts its changes; from `next_s` on `wake` has something to do.
    A negative group is of a replica that has left: it counts for nothing.
    """

    def __init__(
        self,
        group_of: Sequence[int],
        *,
        after: int = 5,
        alone_s: float = 10.0,
        most_ratio: float = 0.5,
        refused_s: float = 2.0,
    ) -> None:
        n = len(group_of)
        self.group_of = list(group_of)
        self.after, self.alone_s, self.most_ratio, self.refused_s = max(1, after), alone_s, most_ratio, refused_s
        self.size = {group: self.group_of.count(group) for group in set(self.group_of)}
        self.n_here = sum(1 for group in self.group_of if group >= 0)
        self.open = [1] * n
        self.state = [NORMAL] * n
        self.refused = [False] * n  # alone because nobody listens
        self.fails = [0] * n  # in a row
        self.good = [0] * n  # in a row
        self.times = [0] * n  # left alone, lately
        self.until_s = [NEVER_S] * n
        self.braked = False
        self.version = 0
        self.n_ejected = 0
        self.next_s = NEVER_S

    def wake(self, now_s: float) -> None:
        """Let those whose time alone is over be tried once."""
        self.next_s = NEVER_S
        for r, until_s in enumerate(self.until_s):
            if until_s <= now_s:
                self._set(r, TRIAL)
            elif until_s < self.next_s:
                self.next_s = until_s

    def sent(self, r: int) -> None:
        """A request went to `r`: where that was the trial, nobody else is sent there until it ends."""
        if self.state[r] == TRIAL:
            self._set(r, PROBING)

    def succeeded(self, r: int) -> None:
        """`r` answered well."""
        self.fails[r] = 0
        if self.state[r] in (TRIAL, PROBING):
            self.refused[r] = False
            self._set(r, NORMAL)
        self.good[r] += 1
        if self.times[r] and self.good[r] >= self.after:
            self.good[r] = 0
            self.times[r] -= 1
        if self.braked and self._n_bad() <= self.most_ratio * self.n_here:
            self.braked = False

    def no_verdict(self, r: int) -> None:
        """A request to `r` ended for reasons of its own (its client left): a trial has to be repeated."""
        if self.state[r] == PROBING:
            self._set(r, TRIAL)

    def failed(self, r: int, now_s: float) -> None:
        """`r` failed a request: time-out, cut connection, garbage, 5xx."""
        self.good[r] = 0
        self.fails[r] += 1
        if self.state[r] in (TRIAL, PROBING):
            self._leave_alone(r, now_s)
        elif self.state[r] == NORMAL and self.fails[r] >= self.after:
            if self._n_bad() > self.most_ratio * self.n_here and self.n_here > 1:
                self._brake()
            elif not self.braked and self._room(r):
                self._leave_alone(r, now_s)

    def nobody_listens(self, r: int, now_s: float) -> None:
        """The connection to `r` was refused: leave it alone for `refused_s`, doubling up to fourfold."""
        self.good[r] = 0
        if self.state[r] == ALONE and self.refused[r]:
            return  # sent before the first refusal was heard
        self.refused[r] = True
        self._leave_alone(r, now_s)

    def came_up(self, r: int) -> None:
        """`r` is known to have started anew: what was held against it is forgotten."""
        self.fails[r] = self.times[r] = self.good[r] = 0
        self.refused[r] = False
        self._set(r, NORMAL)

    def follow(self, old: Ejection, now_at: Sequence[int]) -> None:
        """Take over what is known of replicas that stay: row `was` of `old` is row `now_at[was]` here (-1: it left).

        Where a group has shrunk, those that would be tried soonest are let in again until the floor holds.
        """
        self.braked, self.n_ejected = old.braked, old.n_ejected
        for was, r in enumerate(now_at):
            if r < 0 or self.group_of[r] < 0:
                continue
            self.fails[r], self.good[r], self.times[r] = old.fails[was], old.good[was], old.times[was]
            self.refused[r] = old.refused[was]
            self._set(r, old.state[was])
            self.until_s[r] = old.until_s[was]
        for group, n in self.size.items():
            alone = [r for r, g in enumerate(self.group_of) if g == group and self._counts(r)]
            soonest = sorted(alone, key=lambda r: (self.state[r] == ALONE, self.until_s[r]))
            for r in soonest[: max(0, len(alone) - most_alone(self.most_ratio, n))]:
                self._set(r, NORMAL)
        self.next_s = min(self.until_s, default=NEVER_S)

    def check(self) -> None:
        """Assert what must hold."""
        for group, n in self.size.items():
            alone = [r for r, g in enumerate(self.group_of) if g == group and self._counts(r)]
            assert len(alone) <= most_alone(self.most_ratio, n), (group, alone)
        for r, state in enumerate(self.state):
            assert self.open[r] == int(state in (NORMAL, TRIAL)), (r, state)
            assert (self.until_s[r] < NEVER_S) == (state == ALONE), (r, state)
            assert self.next_s <= self.until_s[r], r
            assert self.fails[r] >= 0 and self.times[r] >= 0

    def _counts(self, r: int) -> bool:
        return self.state[r] != NORMAL and not self.refused[r]

    def _n_bad(self) -> int:
        return sum(
            1
            for r, n in enumerate(self.fails)
            if self.group_of[r] >= 0 and (n >= self.after or self.state[r] != NORMAL) and not self.refused[r]
        )

    def _room(self, r: int) -> bool:
        group = self.group_of[r]
        alone = sum(1 for other, g in enumerate(self.group_of) if g == group and self._counts(other))
        return alone < most_alone(self.most_ratio, self.size[group])

    def _leave_alone(self, r: int, now_s: float) -> None:
        if self.refused[r]:
            length_s = alone_for_s(self.refused_s, self.times[r], MOST_REFUSED)
        else:
            length_s = alone_for_s(self.alone_s, self.times[r])
            self.n_ejected += 1
        self.times[r] += 1
        self._set(r, ALONE)
        self.until_s[r] = now_s + length_s
        self.next_s = min(self.next_s, self.until_s[r])

    def _brake(self) -> None:
        self.braked = True
        for r in range(len(self.state)):
            if self._counts(r):
                self.times[r] = max(0, self.times[r] - 1)
                self._set(r, NORMAL)

    def _set(self, r: int, state: int) -> None:
        self.state[r] = state
        self.until_s[r] = NEVER_S
        is_open = int(state in (NORMAL, TRIAL))
        if self.open[r] != is_open:
            self.open[r] = is_open
            self.version += 1
