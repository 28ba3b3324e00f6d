"""Which part of a plan to make anew: sites, pairs of them, spans of periods, services, racks; the most saved a second first.

A window is a part of its own kind: all that is decided and all that flows in a few periods, with everything before and after
as it is, racks that are there at its end included. Its programme is as much smaller as it is shorter than the horizon, so that
branch and bound soon ends: one period decides where services are hosted, a few also when racks and phases come.

What a part promises is what the plan would save were the part divisible, the rest as it is: one warm solve says so. How much of
that comes true, and how long it takes, is learnt as one goes, for each kind of part and each way of making it whole again.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from itertools import combinations

import numpy as np

from baseload.plan.build import Model
from baseload.plan.highs import INF
from baseload.plan.problem import Bools, Ints
from baseload.plan.slices import periods_of

_AXES = {"w": ("site", "period"), "buy": ("site", "kind", "period"), "host": ("site", "service", "period")}
_FIRST = {  # (part of the promise that comes true, seconds) as first believed, by kind and way
    ("site", False): (0.4, 1.5),
    ("site", True): (0.2, 5.0),
    ("pair", True): (0.1, 6.0),
    ("racks", False): (0.05, 1.0),
    ("racks", True): (0.2, 6.0),
    ("span", False): (0.05, 4.0),
    ("span", True): (0.05, 7.0),
    ("service", False): (0.03, 0.7),
    ("service", True): (0.15, 5.0),
    ("hosts", True): (0.12, 0.7),
    ("window", True): (0.35, 3.5),
}
_NEAR = 0.6  # of what the next part is believed to save: one that was looked at and saves less gives way to it
_ENDLESS = 1e300
_STUCK = 0.95  # of what branch and bound left of a promise, is believed to be there no more
_STUCK_ROUNDED = 0.5  # the same of rounding
_LEARN = 0.3  # how fast belief follows what happened
_SPAN = 4  # parts of the horizon that are freed together
_WINDOWS = ((2, 1), (3, 1), (4, 2), (6, 3))  # (periods, from one to the next)


@dataclass(kw_only=True)
class Part:
    """Whole columns that belong together."""

    kind: str
    free: Bools  # which of the whole columns
    members: tuple[int, ...] = ()  # of a pair: its sites
    promise: float = INF  # what its relaxation saves
    seen: bool = False  # whether it was ever solved; until then what it promises is a guess
    stuck: float = 0.0  # of that, what did not come true when it was tried last
    tries: int = 0  # ways tried: rounding first, then branch and bound, where that is the way
    loose: Bools | None = None  # of a window: which of all columns are free; None: all but the whole ones

    @property
    def exact(self) -> bool:
        """Return whether branch and bound is next."""
        return self.kind in ("pair", "hosts", "window") or self.tries > 0


@dataclass(kw_only=True)
class Parts:
    """All parts of a model, and what trying them has brought so far."""

    parts: list[Part]
    belief: dict[tuple[str, bool], tuple[float, float]] = field(default_factory=lambda: dict(_FIRST))
    least: float = 0.0  # a part that promises no more is left as it is

    def next(self, least: float) -> Part | None:
        """Return the part to look at: the most saved a second by what is believed; None where none promises `least`."""
        alone = {part.members[0]: part.promise for part in self.parts if part.kind == "site"}
        for part in self.parts:
            if not part.seen and part.kind != "site":
                part.promise = (
                    sum(alone.get(site, 0.0) for site in part.members)
                    if part.members
                    else max(alone.values(), default=INF)
                )
        self.least = least
        worth = [part for part in self.parts if self._is_worth(part)]
        return max(worth, key=self._pace, default=None)

    def _is_worth(self, part: Part) -> bool:
        return part.promise - part.stuck > self.least

    def _pace(self, part: Part) -> float:
        share, seconds = self.belief[part.kind, part.exact]
        return min(part.promise - part.stuck, _ENDLESS) * share / seconds

    def looked(self, part: Part, promise: float) -> bool:
        """Take down what a part promises as things are; return whether it is still about the most promising one."""
        part.promise, part.seen = promise, True
        return self._pace(part) >= _NEAR * max(
            (self._pace(other) for other in self.parts if other is not part and other.seen and self._is_worth(other)),
            default=0.0,
        )

    def told(self, part: Part, saved: float, seconds: float) -> None:
        """Take down what trying a part brought."""
        share, took = self.belief[part.kind, part.exact]
        got = saved / max(part.promise, 1e-9)
        self.belief[part.kind, part.exact] = (share + _LEARN * (got - share), took + _LEARN * (seconds - took))
        part.stuck = (_STUCK if part.exact else _STUCK_ROUNDED) * (part.promise - saved)
        part.promise -= saved
        part.tries += 1


def parts_of(model: Model, numbers: Ints) -> Parts:
    """Return the parts of a model; `numbers` are its whole columns."""
    n, (n_sites, _, n_services, _, n_periods) = len(model.program.cost), model.problem.shape
    where = {axis: np.full(n, -1) for axis in ("site", "kind", "service", "period")}
    for name, axes in _AXES.items():
        columns = model.columns.get(name)
        if columns is None or not columns.size:
            continue
        there = columns >= 0
        for axis, place in zip(axes, np.nonzero(there), strict=True):
            where[axis][columns[there]] = place
        if name == "w":
            where["site"][columns] = np.broadcast_to(model.problem.phase_site[:, None], columns.shape)
    site, service, period = (where[axis][numbers] for axis in ("site", "service", "period"))
    racks = np.isin(numbers, model.columns["buy"])
    long = -(-n_periods // _SPAN)
    parts = [Part(kind="site", free=site == s, members=(s,)) for s in range(n_sites)]
    parts += [Part(kind="pair", free=np.isin(site, pair), members=pair) for pair in combinations(range(n_sites), 2)]
    for first in range(0, max(1, n_periods - long + 1), max(1, long // 2)):
        parts.append(Part(kind="span", free=(period >= first) & (period < first + long)))
    parts.append(Part(kind="racks", free=racks))
    parts += [Part(kind="service", free=service == m) for m in range(n_services)]
    return Parts(parts=[part for part in parts + windows_of(model, numbers) if part.free.any()])


def windows_of(model: Model, numbers: Ints) -> list[Part]:
    """Return the windows of a model: each period for hosting alone, spans of two to six for all that is decided.

    Racks and phases are of the period in which they come, not of that in which they are ordered or begun.
    """
    n_periods = len(model.problem.periods)
    period, came = periods_of(model)
    signed = model.columns["sign"][(model.columns["sign"] >= 0) & (model.columns["sign"] != model.columns["rent"])]
    host, buy = (np.isin(numbers, model.columns.get(name, np.zeros(0))) for name in ("host", "buy"))
    found = []
    for long, step in ((1, 1), *_WINDOWS):
        for first in range(0, n_periods - long + (long < n_periods), step):
            loose = (period >= first) & (period < first + long)
            loose[signed] = True  # what is in force then is held
            free = (came[numbers] >= first) & (came[numbers] < first + long + buy)
            kind = "hosts" if long == 1 else "window"
            found.append(Part(kind=kind, free=free & host if long == 1 else free, loose=loose))
    return found
