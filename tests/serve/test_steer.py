"""The control loop by itself: the examples that a reader would check by hand; parity with the twin is in tests/whole."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from msgspec.structs import replace

from baseload.serve import steer as s
from baseload.serve.board import Board
from baseload.serve.steer import SitePower, Steer
from tests.serve.fleet import policy, tables

IDLE = SitePower(1.0, 1.0, float("inf"))


def fleet(n_min: int = 1, **kw: Any) -> Any:
    """Return one pool of four replicas with eight slots, of which `n_min` always run."""
    base = tables(4, sites=1, tenants=1, policy=policy(scale="target_utilisation", scale_down_s=60.0, **kw))
    pools = [replace(base.pools[0], n_min=n_min)]
    rows = [replace(row, on_at_start=i < n_min) for i, row in enumerate(base.replicas)]
    return replace(base, pools=pools, replicas=rows)


def scale(steer: Steer, now_s: float, load: int, asked: int = 0) -> list[s.Order]:
    """Decide with so many requests at the first replica."""
    return steer.scale(now_s, outstanding=[load, 0, 0, 0], asked=[asked], busy=[load > 0, False, False, False])


def test_it_starts_at_once_and_stops_after_a_wait() -> None:
    """Load for three replicas starts two; when it is gone they drain a minute later, and are off when empty."""
    steer = Steer(fleet())
    assert scale(steer, 0.0, 12) == [(s.START, 1), (s.START, 2)]
    assert scale(steer, 10.0, 12) == []
    for r in (1, 2):
        steer.ready(r)
        steer.known_up(r)
    assert steer.gate == [9, 9, 9, -1] and steer.epoch == [0, 1, 1, 0]
    assert scale(steer, 20.0, 0) == [] and scale(steer, 79.0, 0) == []
    assert scale(steer, 80.0, 0) == [(s.DRAIN, 2), (s.DRAIN, 1)]
    assert steer.gate == [9, -1, -1, -1]
    assert scale(steer, 90.0, 12) == [(s.RESUME, 1), (s.RESUME, 2)]  # draining ones come back before new ones
    steer.check()


def test_who_found_nobody_wakes_a_sleeping_pool() -> None:
    """With nothing running, a request that was turned away starts the first replica."""
    steer = Steer(fleet(n_min=0))
    assert scale(steer, 0.0, 0) == []
    assert scale(steer, 10.0, 0, asked=1) == [(s.START, 0)]
    steer.ready(0)
    assert scale(steer, 20.0, 1, asked=1) == []  # asked once, counted once


def test_a_site_over_its_limit_closes_by_priority_and_opens_again() -> None:
    """Each decision over the limit closes one priority more; below 90 % of it one opens again."""
    steer = Steer(fleet(n_min=2, cap="shed"))
    over, under = SitePower(12.0, 1.0, 10.0), SitePower(8.0, 1.0, 10.0)
    for lowest in (8, 7, 6):
        steer.cap([over])
        assert steer.gate == [lowest, lowest, -1, -1]
    steer.cap([under])
    assert steer.gate[:2] == [7, 7] and steer.ratio == [1.0]
    steer.cap([SitePower(9.5, 1.0, 10.0)])
    assert steer.gate[:2] == [7, 7]


def test_what_is_down_is_closed_until_it_is_known_up(tmp_path: Path) -> None:
    """A failure closes the gate when it is known, a start alone does not open it, and the board says the same."""
    steer, board = Steer(fleet(n_min=2, cap="slow")), Board.create(tmp_path / "board", 4, 1, 1)
    steer.failed(0)
    steer.failed(0)  # two causes
    steer.known_down(0)
    assert steer.gate[0] == -1
    assert not steer.repaired(0) and steer.repaired(0)
    assert steer.state[0] == s.STARTING
    steer.known_up(0)
    assert steer.gate[0] == -1  # not ready yet
    steer.ready(0)
    steer.known_up(0)
    steer.cap([SitePower(12.0, 2.0, 7.0)])
    steer.write(board)
    assert board.gate.tolist() == [9, 9, -1, -1] and board.epoch[0] == 1 and board.dynamic_ratio[0] == 0.5
    steer.check()
    board.check()
