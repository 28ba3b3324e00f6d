"""A changed question beside the one that was answered: solved again from there, what is decided otherwise, what it costs."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from baseload.plan.check_answer import recompute_cost
from baseload.plan.problem import Answer, Floats, Problem
from baseload.plan.solve import solve


@dataclass(frozen=True, kw_only=True)
class Change:
    """A decision that is taken otherwise. A phase's numbers are periods by count, the first being 0; None: never begun."""

    action: str  # begin, buy, rent, serve nobody
    site: str
    what: str  # phase, rack kind, rental
    before: float | None
    after: float | None
    unit: str


@dataclass(frozen=True, kw_only=True)
class WhatIf:
    """The new answer, what it decides otherwise, and what each part of the cost becomes: (before, after)."""

    answer: Answer
    changes: tuple[Change, ...]
    parts: dict[str, tuple[float, float]]

    @property
    def why(self) -> list[tuple[str, float]]:
        """Return the parts of the cost by how much they changed, the most first."""
        moved = [(name, after - before) for name, (before, after) in self.parts.items() if after != before]
        return sorted(moved, key=lambda part: -abs(part[1]))


def what_if(
    before: Problem,
    answer: Answer,
    after: Problem,
    *,
    gap: float = 0.01,
    cpu_limit_s: float = 60.0,
    stop: Callable[[], bool] | None = None,
    progress: Callable[[float, float], None] | None = None,
) -> WhatIf:
    """Solve a changed problem from an earlier answer, and say what changed.

    The shapes may differ: sites, kinds, phases are matched by name, and the search begins anew where they do.
    """
    warm = answer if before.same_axes(after) else None
    new = solve(after, gap=gap, cpu_limit_s=cpu_limit_s, stop=stop, progress=progress, warm=warm)
    return WhatIf(
        answer=new, changes=tuple(changes(before, answer, after, new)), parts=parts(before, answer, after, new)
    )


def parts(before: Problem, old: Answer, after: Problem, new: Answer) -> dict[str, tuple[float, float]]:
    """Return the parts of the cost in two answers: (before, after)."""
    was, now = recompute_cost(before, old).parts, recompute_cost(after, new).parts
    return {name: (was.get(name, 0.0), now.get(name, 0.0)) for name in {**was, **now}}


def changes(before: Problem, old: Answer, after: Problem, new: Answer, least: float = 1e-4) -> list[Change]:
    """Return the decisions that differ, matched by name: phases, racks bought and rented over the horizon, who is not served.

    Racks that differ by less than `least` are the same.
    """
    found: list[Change] = []

    def compare(action: str, unit: str, was: dict[tuple[str, str], float], now: dict[tuple[str, str], float]) -> None:
        for key in {**was, **now}:
            one, other = was.get(key, 0.0), now.get(key, 0.0)
            if abs(one - other) > least * max(1.0, abs(one)):
                found.append(Change(action=action, site=key[0], what=key[1], before=one, after=other, unit=unit))

    begun, begins = _begun(before, old), _begun(after, new)
    for key in {**begun, **begins}:
        if begun.get(key) != begins.get(key):
            found.append(
                Change(
                    action="begin",
                    site=key[0],
                    what=key[1],
                    before=begun.get(key),
                    after=begins.get(key),
                    unit="period",
                )
            )
    compare("buy", "racks", _by_name(before, before.kinds, old.buy), _by_name(after, after.kinds, new.buy))
    rented = [answer.sign.sum(axis=1) for answer in (old, new)]
    compare(
        "rent",
        "racks signed for",
        _by_name(before, before.rentals, rented[0]),
        _by_name(after, after.rentals, rented[1]),
    )
    missed = [
        {("", client): float(answer.unserved[r].sum()) for r, client in enumerate(problem.clients)}
        for problem, answer in ((before, old), (after, new))
    ]
    compare("serve nobody", "requests/s, summed over periods", missed[0], missed[1])
    return found


def _begun(problem: Problem, answer: Answer) -> dict[tuple[str, str], float | None]:
    found: dict[tuple[str, str], float | None] = {}
    for p, name in enumerate(problem.phases):
        at = np.flatnonzero(answer.w[p] > 0.5)
        found[problem.sites[problem.phase_site[p]], name] = float(at[0]) if len(at) else None
    return found


def _by_name(problem: Problem, names: tuple[str, ...], values: Floats) -> dict[tuple[str, str], float]:
    total = values.sum(axis=2)
    return {(site, name): float(total[s, i]) for s, site in enumerate(problem.sites) for i, name in enumerate(names)}
