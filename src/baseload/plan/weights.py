"""How the dual simplex method weighs rows when it goes on: exact weights are worth their time only before many steps.

Exact ones (steepest edge) take a solve with the basis for every row, 0.2 to 0.4 s for 13,000 rows, before the first step; Devex
weights begin as ones. After a few new rows a re-solve is some hundred steps, and takes a quarter of the time so.
"""

from __future__ import annotations

from typing import Any

from baseload.plan.highs import Lp

_FEW = 150  # new rows
MANY = 10**9


class Weights:
    """The weights of a programme that is solved again and again."""

    def __init__(self, lp: Lp) -> None:
        """Begin with those that HiGHS chooses."""
        self._lp, self._is_light = lp, False

    def after(self, n_rows: int) -> dict[str, Any]:
        """Return the options of a solve after so many new rows; `MANY` where more has changed."""
        is_light = n_rows <= _FEW
        if self._is_light and not is_light and (basis := self._lp.basis()) is not None:
            self._lp.set_basis(basis)  # forgets weights that are not exact
        self._is_light = is_light
        return {"simplex_dual_edge_weight_strategy": 1 if is_light else -1}
