"""Which part of a plan is made anew: every whole column is in some part, and what pays is tried first."""

from __future__ import annotations

import numpy as np

from baseload.plan import build as building
from baseload.plan.generate import instance
from baseload.plan.parts import parts_of


def test_parts_cover_all_whole_columns_and_the_most_saved_a_second_comes_first() -> None:
    """Racks come first; then what was looked at and promises most; what did not come true is not promised again."""
    problem = instance(4, 2, 2, 5, 5, seed=1, hosting=True, whole=True)
    model = building.build(problem, building.first_halls(problem))
    numbers = np.flatnonzero(model.program.whole)
    parts = parts_of(model, numbers)
    assert np.any([part.free for part in parts.parts], axis=0).all()
    racks = parts.next(1.0)
    assert racks is not None
    assert racks.kind == "racks"
    parts.looked(racks, 10.0)
    parts.told(racks, 8.0, 1.0)
    for site in range(4):
        part = parts.next(1.0)
        assert part is not None
        assert part.members == (site,)
        parts.looked(part, 100.0 if site == 2 else 20.0)
    best = parts.next(1.0)
    assert best is not None
    assert best.members[0] == 2 or 2 in best.members
    assert parts.next(1e9) is None


def test_racks_of_which_little_came_true_are_tried_once_more() -> None:
    """Where branch and bound was cut short over all racks, it goes on from what it had; a second time it does not."""
    problem = instance(4, 2, 2, 5, 5, seed=1, hosting=True, whole=True)
    model = building.build(problem, building.first_halls(problem))
    parts = parts_of(model, np.flatnonzero(model.program.whole))
    for promise, saved in ((10.0, 1.0), (9.0, 1.0)):
        racks = parts.next(1.0)
        assert racks is not None
        assert racks.kind == "racks"
        parts.looked(racks, promise)
        parts.told(racks, saved, 1.0)
    after = parts.next(1.0)
    assert after is not None
    assert after.kind != "racks"
