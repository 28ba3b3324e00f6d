"""What holds of the solver that we hold: an end forced on one solve is not carried into the next."""

from __future__ import annotations

import weakref

from baseload.plan.build import build, first_halls
from baseload.plan.generate import instance
from baseload.plan.highs import Lp


def test_a_solve_that_was_stopped_does_not_stop_the_next() -> None:
    """After branch and bound was ended by somebody or by its time, the same programme still solves to its end."""
    problem = instance(4, 3, 3, 8, 8, seed=2, hosting=True, whole=True)
    lp = Lp(build(problem, first_halls(problem)).program)
    assert lp.solve(stop=lambda: True).state == "stopped"
    lp.set_whole(False)
    assert lp.solve().state == "optimal"
    lp.set_whole(True)
    assert lp.solve(cpu_limit_s=0.3).state == "stopped"
    lp.set_whole(False)
    assert lp.solve().state == "optimal"


def test_a_programme_that_is_no_longer_held_is_given_back() -> None:
    """HiGHS does not keep a programme alive through the function that it calls: hundreds of solves need the memory of one."""
    lp = Lp(build(instance(2, 1, 1, 2, 2, seed=0)).program)
    held = weakref.ref(lp)
    lp.solve()
    del lp
    assert held() is None
