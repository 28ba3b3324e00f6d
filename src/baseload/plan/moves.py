"""Phases of many futures begun otherwise, one site after another: what prices promise to save, tried in a few scenarios.

A price of a phase is a slope of a convex cost, so that a move which it does not call a saving is none; most of those that it
does call one are too dear in the end. Each is tried in the few scenarios that stand for the others, and kept where these cost
less on average.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

import numpy as np

from baseload.plan.nothing import in_order, least_begun
from baseload.plan.problem import Bools, Floats, Problem

_PARTS = (0.05, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.75, np.inf)  # begun on average to this part: begun; the last: never
_TRIES = 2  # at a site


def whole_phases(problem: Problem, w: Floats | Bools) -> Floats:
    """Return phases that keep their order and dates, near `w`."""
    most = (np.arange(w.shape[1])[None] >= problem.begin_from[:, None]).astype(np.float64)
    return in_order(problem, w, least_begun(problem), most)


def promising(
    problem: Problem, w: Floats, part: Floats, worth: Floats, least: float
) -> Iterator[list[tuple[Bools, Floats]]]:
    """Yield, by site, (which phases [P] are moved, all phases then [P,T]), the best first; sites that promise most come first.

    Args:
        problem: what is planned.
        w: [P,T] phases as they are.
        part: [P,T] to what part scenarios would have begun them on average.
        worth: [P,T] what the mean cost grows by, for each begun.
        least: what a move must promise to save.
    """
    found = dict[int, list[tuple[float, Floats]]]()
    for s in np.unique(problem.phase_site):
        here, seen = problem.phase_site == s, {w.tobytes()}
        for threshold in _PARTS:
            other = whole_phases(problem, np.where(here[:, None], part >= threshold, w > 0.5))
            saved = -float((worth * (other - w)).sum())
            if other.tobytes() not in seen and saved > least:
                seen.add(other.tobytes())
                found.setdefault(int(s), []).append((saved, other))
    best = {s: sorted(moves, key=lambda move: -move[0])[:_TRIES] for s, moves in found.items()}
    for s in sorted(best, key=lambda s: -best[s][0][0]):
        yield [(problem.phase_site == s, other) for _, other in best[s]]


def moved(
    problem: Problem,
    w: Floats,
    moves: Iterator[list[tuple[Bools, Floats]]],
    costs: Floats,
    share: Floats,
    price: Callable[[Floats], Floats | None],
) -> Floats:
    """Return phases with those moves that save on average; `costs` are those of `w` in the few scenarios, of weight `share`.

    `price` returns what phases cost in these; None ends it.
    """
    for of_site in moves:
        for here, then in of_site:
            other = whole_phases(problem, np.where(here[:, None], then, w))
            found = price(other)
            if found is None:
                return w
            if float(share @ (found - costs)) < 0.0:
                w, costs = other, found
                break
    return w
