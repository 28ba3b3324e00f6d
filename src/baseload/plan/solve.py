"""The portfolio: which way a problem is solved, by its size. Every way returns a plan with a bound on the full problem.

Small: branch and bound on the whole programme (`small.py`). With hosting or whole racks beyond that: `mid.py`; large with whole
phases alone: `large.py`. The bound and the plan of each hold for the problem as it was asked, not for a simplified one.
"""

from __future__ import annotations

from collections.abc import Callable
from importlib import import_module

from baseload.errors import PlanError
from baseload.plan.highs import Stop
from baseload.plan.problem import Answer, Problem
from baseload.plan.small import Told, solve_small

_SMALL_COLUMNS = 14_000  # of the whole programme, flows included


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
    progress: Told | None = None,
    stop: Stop | None = None,
    warm: Answer | None = None,
    fix: dict[tuple[int, int], int] | None = None,
) -> Answer:
    """Return the best plan within `gap`, or the best found when time or `stop` ends it.

    Args:
        problem: what is asked.
        gap: relative gap at which to end; 0.01 is 1 %.
        cpu_limit_s: CPU seconds that it may take, over all threads.
        progress: told (bound, cost of the best plan so far) now and then.
        stop: asked now and then; True ends it in good order: the best plan so far, status "interrupted".
        warm: an earlier answer to begin with.
        fix: values of w by (phase, period) that are not to be decided.

    Raises:
        PlanError: no plan meets the rows that have no slack.
    """
    _refuse(problem)
    answer = _way(problem)(problem, gap=gap, cpu_limit_s=cpu_limit_s, progress=progress, stop=stop, warm=warm, fix=fix)
    if progress is not None:
        progress(answer.bound, answer.cost)
    return answer


def _refuse(problem: Problem) -> None:
    """Raise where what is decided already contradicts itself."""
    n_periods = len(problem.periods)
    for p, name in enumerate(problem.phases):
        first, last = int(problem.begin_from[p]), int(problem.begin_by[p])
        before = int(problem.phase_after[p])
        if last < n_periods and first > last:
            raise PlanError(
                f"{name}: begun by {problem.periods[last]} at the latest, but not before "
                f"{problem.periods[first] if first < n_periods else 'the end'}; change one of the two"
            )
        if last < n_periods and before >= 0 and int(problem.begin_from[before]) > last:
            raise PlanError(
                f"{name}: begun by {problem.periods[last]}, but {problem.phases[before]} comes first and may only begin later"
            )


def _way(problem: Problem) -> Callable[..., Answer]:
    """Return the function that solves problems of this size and kind."""
    if columns(problem) <= _SMALL_COLUMNS:
        return solve_small
    name = "mid" if problem.host_min is not None or problem.whole.any() else "large"
    way: Callable[..., Answer] = getattr(import_module(f"baseload.plan.{name}"), f"solve_{name}")
    return way
