"""The plan that goes on from a decision of now: what was decided against scenarios is kept, the rest is best for one future.

Phases, first orders and first rent are held as they are; later orders, rent, hosting and work are found by branch and bound.
"""

from __future__ import annotations

import time

import numpy as np

from baseload.plan import build as building
from baseload.plan.highs import INF, Lp, Stop
from baseload.plan.problem import Answer, Floats, Problem, Status
from baseload.plan.scene import Now

_ROUNDS = 6
_GAP = 0.002


def keeping(problem: Problem, now: Now, *, bound: float, cpu_limit_s: float, stop: Stop | None = None) -> Answer | None:
    """Return the plan of `problem` that keeps `now`; None where none was found in time.

    `bound` is one of the problem without that: the answer's gap then holds what keeping the decision costs in this future.
    """
    began_s = time.process_time()
    model = building.build(problem, building.first_halls(problem))
    lp, first = Lp(model.program), now.buy.shape[2]
    at = model.columns
    columns = np.concatenate([at["w"].ravel(), at["buy"][..., :first].ravel(), at["sign"][..., :first].ravel()])
    values = now.vector()
    if ((columns < 0) & (values > 1e-6)).any():
        return None  # an order that comes after the horizon
    lp.set_bounds(columns[columns >= 0], values[columns >= 0], values[columns >= 0])
    best: Floats | None = None
    best_cost, state = INF, "stopped"
    for turn in range(_ROUNDS):
        lp.set_whole(turn > 0)  # the relaxation finds most survival rows
        left_s = max(0.5, (cpu_limit_s - (time.process_time() - began_s)) / (1.0 if turn == 0 else 2.0))
        found = lp.solve(gap=_GAP, cpu_limit_s=left_s, stop=stop)
        whole = turn > 0 and bool(model.program.whole.any())
        if found.x is None or not (found.state == "optimal" or (whole and found.state == "stopped")):
            break  # without whole columns, where the simplex method was stopped is no plan
        x = found.x
        unserved = np.maximum(0.0, model.value("unserved", x))
        said = np.maximum(0.0, model.value("short_survive", x))
        halls, short = building.missing_halls(problem, building.carried(model, x), unserved, said)
        cost = building.true_cost(model, x, short)
        if turn and cost < best_cost:
            best, best_cost, state = x, cost, found.state
        if turn and (not halls or time.process_time() - began_s > cpu_limit_s):
            break
        if halls:
            least, start, index, value = building.rows_of(model, halls)
            lp.add_rows(least, np.full(len(least), INF), start, index, value)
    if best is None:
        return None
    spent_s = time.process_time() - began_s
    least_cost = min(bound, best_cost)
    status: Status = "within_gap" if state == "optimal" else "stopped"
    return building.answer_of(
        model, best, bound=least_cost, status=status, method="kept against scenarios", cpu_s=spent_s
    )
