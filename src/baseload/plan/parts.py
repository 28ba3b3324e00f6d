"""Which part of a plan to try anew: its sites, periods, services or kinds of rack, drawn at random, the fruitful more often."""

from __future__ import annotations

import numpy as np

from baseload.plan.build import Model
from baseload.plan.problem import Bools, Floats, Ints

_KINDS = ("sites", "periods", "services", "racks", "phases", "unlike")
_AXES = {"w": ("site", "period"), "buy": ("site", "kind", "period"), "host": ("site", "service", "period")}
_LEARN = 0.25  # how fast luck is forgotten
_LUCK = 0.1  # that every kind keeps


class Parts:
    """The whole columns of a model by what they belong to, and how often freeing each kind of part paid."""

    def __init__(self, model: Model, numbers: Ints, rng: np.random.Generator) -> None:
        """Take down where each of `numbers` belongs."""
        self._rng, n = rng, len(model.program.cost)
        where = {axis: np.full(n, -1) for axis in ("site", "kind", "service", "period", "name")}
        for i, (name, axes) in enumerate(_AXES.items()):
            columns = model.columns.get(name)
            if columns is None or not columns.size:
                continue
            there = columns >= 0
            where["name"][columns[there]] = i
            places = np.nonzero(there)
            for axis, place in zip(axes, places, strict=False):
                where[axis][columns[there]] = place
            if name == "w":
                at = np.broadcast_to(model.problem.phase_site[:, None], columns.shape)
                where["site"][columns], where["period"][columns] = at, np.indices(columns.shape)[1]
        self._where = {axis: values[numbers] for axis, values in where.items()}
        self._numbers, self._shape = numbers, model.problem.shape
        self._luck = dict.fromkeys(_KINDS, 1.0)

    def draw(self, root: Floats, best: Floats) -> tuple[str, Bools]:
        """Return a kind of part, and which of the columns belong to the one that was drawn."""
        luck = np.array([self._luck[kind] + _LUCK for kind in _KINDS])
        kind = _KINDS[int(self._rng.choice(len(_KINDS), p=luck / luck.sum()))]
        drawn: Bools = getattr(self, f"_{kind}")(root, best)
        return kind, drawn

    def told(self, kind: str, paid: bool) -> None:
        """Take down whether trying a part of a kind anew paid."""
        self._luck[kind] += _LEARN * (float(paid) - self._luck[kind])

    def _some(self, axis: str, size: int, many: int) -> Bools:
        chosen = self._rng.choice(size, min(size, many), replace=False)
        return np.asarray(np.isin(self._where[axis], chosen), dtype=np.bool_)

    def _sites(self, root: Floats, best: Floats) -> Bools:
        return self._some("site", self._shape[0], int(self._rng.integers(1, 4)))

    def _periods(self, root: Floats, best: Floats) -> Bools:
        n_periods = self._shape[4]
        long = int(self._rng.integers(1, max(2, n_periods // 3) + 1))
        first = int(self._rng.integers(0, max(1, n_periods - long + 1)))
        period = self._where["period"]
        return np.asarray((period >= first) & (period < first + long), dtype=np.bool_)

    def _services(self, root: Floats, best: Floats) -> Bools:
        return np.asarray(self._some("service", self._shape[2], 1) & (self._where["name"] == 2), dtype=np.bool_)

    def _racks(self, root: Floats, best: Floats) -> Bools:
        some = self._some("kind", self._shape[1], int(self._rng.integers(1, 3)))
        return some & self._some("site", self._shape[0], max(2, self._shape[0] // 2))

    def _phases(self, root: Floats, best: Floats) -> Bools:
        return np.asarray(self._where["name"] == 0)

    def _unlike(self, root: Floats, best: Floats) -> Bools:
        far = np.abs(root[self._numbers] - best[self._numbers])
        return (far > 0.3) & (self._rng.random(len(far)) < 0.35)
