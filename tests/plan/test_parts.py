"""Which part of a plan is made anew: every whole column is in some part, and what pays is tried first."""

from __future__ import annotations

import numpy as np

from baseload.plan import build as building
from baseload.plan.generate import instance
from baseload.plan.parts import parts_of, windows_of


def test_parts_cover_all_whole_columns_and_the_most_saved_a_second_comes_first() -> None:
    """All are looked at, sites and single periods first; then what promises most comes, and less of it once it was tried."""
    problem = instance(4, 2, 2, 5, 5, seed=1, hosting=True, whole=True)
    model = building.build(problem, building.first_halls(problem))
    numbers = np.flatnonzero(model.program.whole)
    parts = parts_of(model, numbers)
    assert np.any([part.free for part in parts.parts], axis=0).all()
    seen = []
    while (part := parts.next(1.0)) is not None and not part.seen:
        parts.looked(part, 100.0 if part.members == (2,) else 1.5)
        seen.append(part.kind)
    assert seen.count("site") == 4
    best = parts.next(1.0)
    assert best is not None
    assert best.members == (2,)
    parts.told(best, 0.0, 1.0)
    assert best.stuck > 0.0
    assert best.exact
    assert parts.next(1e9) is None


def test_a_part_that_is_not_worth_trying_holds_up_no_other() -> None:
    """What promises too little is passed over however soon it would be done; the best of the others is tried, not looked at."""
    problem = instance(4, 2, 2, 5, 5, seed=1, hosting=True, whole=True)
    model = building.build(problem, building.first_halls(problem))
    parts = parts_of(model, np.flatnonzero(model.program.whole))
    for part in parts.parts:
        parts.looked(part, 2.0 if part.kind == "span" else 1.0)
    parts.belief["span", False] = (0.001, 9.0)
    chosen = parts.next(1.5)
    assert chosen is not None
    assert chosen.kind == "span"
    assert parts.looked(chosen, 2.0)


def test_a_window_frees_its_periods_and_holds_the_racks_at_its_end() -> None:
    """One period frees hosting there alone; longer ones also racks and phases that come then, up to the first period after."""
    problem = instance(4, 2, 2, 5, 6, seed=1, hosting=True, whole=True)
    model = building.build(problem, building.first_halls(problem))
    at = model.columns
    windows = windows_of(model, np.arange(len(model.program.cost)))
    assert [part.kind for part in windows].count("hosts") == 6
    hosts = windows[2]
    assert set(np.flatnonzero(hosts.free)) == set(at["host"][..., 2][at["host"][..., 2] >= 0])
    window = next(part for part in windows if part.kind == "window")
    assert window.loose is not None
    own = at["own"]
    assert window.loose[own[..., :2][own[..., :2] >= 0]].all()
    assert not window.loose[own[..., 2:][own[..., 2:] >= 0]].any()
    for a, lead in enumerate(problem.lead):
        buy = at["buy"][:, a]
        comes = np.broadcast_to(np.arange(6) + lead, buy.shape)
        assert window.free[buy[(buy >= 0) & (comes <= 2)]].all()
        assert not window.free[buy[(buy >= 0) & (comes > 2)]].any()
