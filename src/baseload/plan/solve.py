"""The portfolio: which way a problem is solved, by its size. Every way returns a plan with a bound on the full problem.

With phases alone whole: one relaxation, rounding and branching by warm re-solves (`phases.py`), and where the programme
itself is too long for that, `large.py`. With hosting or whole racks: HiGHS' branch and bound on the whole programme where
that is small (`small.py`), `mid.py` beyond, and between them, with hosting, one after the other. The bound and the plan of
each hold for the problem as it was asked, not for a simplified one. The cost in an answer is recomputed from its decisions by
`check_answer.py`, which knows nothing of the programme.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from importlib import import_module

from baseload.plan.check_answer import recompute_cost
from baseload.plan.highs import Progress, Stop
from baseload.plan.nothing import Fix
from baseload.plan.problem import Answer, Problem
from baseload.plan.sound import require_sound

_SMALL_COLUMNS = 14_000  # of the whole programme, flows included
_SMALL_HOSTING_COLUMNS = 6_000  # the same, with hosting decisions
_FIRST_HOSTING_COLUMNS = 1_500  # from here on, branch and bound has a part of the time, and `mid.py` goes on
_FIRST_SHARE = 0.25
_LARGE_COLUMNS = 250_000


def columns(problem: Problem) -> int:
    """Return about how many columns the whole programme has.

    Most are flows and working racks.
    """
    n_sites, n_kinds, n_services, _, n_periods = problem.shape
    flows = int(problem.allowed.sum()) * n_periods
    return flows + n_sites * n_kinds * (n_services + 3 + len(problem.rentals)) * n_periods


def solve(
    problem: Problem,
    *,
    gap: float = 0.01,
    cpu_limit_s: float = 60.0,
    progress: Progress | None = None,
    stop: Stop | None = None,
    warm: Answer | None = None,
    fix: Fix | None = None,
) -> Answer:
    """Return the best plan within `gap`, or the best found when time or `stop` ends it.

    Args:
        problem: what is asked.
        gap: relative gap at which to end; 0.01 is 1 %.
        cpu_limit_s: CPU seconds that it may take, over all threads.
        progress: told (bound, cost of the best plan so far) now and then.
        stop: asked now and then; True ends it in good order: the best plan so far, status "interrupted".
        warm: an earlier answer to begin with; one whose axes are not the problem's is left out.
        fix: values of w by (phase, period) that are not to be decided.

    Raises:
        PlanError: the problem contradicts itself, or no plan meets the rows that have no slack.
    """
    require_sound(problem)
    warm = warm if warm is not None and _is_of(warm, problem) else None
    answer = _way(problem)(problem, gap=gap, cpu_limit_s=cpu_limit_s, progress=progress, stop=stop, warm=warm, fix=fix)
    answer = replace(answer, cost=recompute_cost(problem, answer).total)
    answer = replace(answer, bound=min(answer.bound, answer.cost))
    if progress is not None:
        progress(answer.bound, answer.cost)
    return answer


def _is_of(answer: Answer, problem: Problem) -> bool:
    """Return whether an answer's decisions have the shapes of a problem's."""
    sites, kinds, services, clients, periods = problem.shape
    return (
        answer.w.shape == (len(problem.phases), periods)
        and answer.sign.shape == (sites, kinds, len(problem.rentals), periods)
        and answer.flow.shape == (clients, sites, services, periods)
        and answer.slack["over_share"].shape == (len(problem.groups), periods)
        and (answer.host is None) == (problem.host_min is None)
    )


def _way(problem: Problem) -> Callable[..., Answer]:
    """Return the function that solves problems of this size and kind."""
    size = columns(problem)
    if problem.host_min is not None or problem.whole.any():
        small = _SMALL_COLUMNS if problem.host_min is None else _SMALL_HOSTING_COLUMNS
        if problem.host_min is not None and _FIRST_HOSTING_COLUMNS < size <= small:
            return _both
        name = "small" if size <= small else "mid"
    else:
        name = "phases" if size <= _LARGE_COLUMNS else "large"
    way: Callable[..., Answer] = getattr(import_module(f"baseload.plan.{name}"), f"solve_{name}")
    return way


def _both(
    problem: Problem, *, gap: float, cpu_limit_s: float, progress: Progress | None, stop: Stop | None,
    warm: Answer | None, fix: Fix | None,
) -> Answer:  # fmt: skip
    """Return the answer of branch and bound, or where that has not ended in its part of the time, of `mid.py` from there."""
    from baseload.plan.mid import solve_mid
    from baseload.plan.small import solve_small

    first = solve_small(
        problem, gap=gap, cpu_limit_s=_FIRST_SHARE * cpu_limit_s, progress=progress, stop=stop, warm=warm, fix=fix
    )
    if first.status != "stopped":
        return first
    left_s = cpu_limit_s - first.cpu_s
    then = solve_mid(problem, gap=gap, cpu_limit_s=left_s, progress=progress, stop=stop, warm=first, fix=fix)
    best = then if then.cost <= first.cost else first
    best = replace(
        best, bound=max(first.bound, then.bound), status=then.status, method=then.method, cpu_s=first.cpu_s + then.cpu_s
    )
    return replace(best, status="within_gap") if best.status == "stopped" and best.gap <= gap else best
