"""What holds of the solver that we hold: an end forced on one solve is not carried into the next."""

from __future__ import annotations

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
