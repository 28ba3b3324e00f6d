"""HiGHS, and the only file that knows it: a programme of arrays goes in, a solution of arrays comes out.

One thread, so that CPU seconds are what they seem. Bounds, costs and rows can be changed between solves: the next one starts
where the last one ended. `stop` is asked several times a second and ends a solve in good order, with what was found so far.
"""

from __future__ import annotations

import time
import weakref
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal, Protocol

import highspy
import numpy as np

from baseload.plan.problem import Bools, Floats, Ints

INF = float("inf")
Method = Literal["choose", "simplex", "ipm", "pdlp"]
State = Literal["optimal", "stopped", "infeasible", "unbounded", "failed"]
Stop = Callable[[], bool]
Progress = Callable[[float, float], None]  # (bound, cost of the best found; inf where none)

NO_PLANS: dict[str, Any] = {  # branch and bound that looks for a bound alone
    "mip_heuristic_effort": 0.0,
    "mip_heuristic_run_rins": False,
    "mip_heuristic_run_rens": False,
    "mip_heuristic_run_root_reduced_cost": False,
    "mip_heuristic_run_feasibility_jump": False,
}
_ROOT: dict[str, Any] = {"presolve": "off", "mip_max_nodes": 1, "mip_lp_age_limit": 1}


class Arrays(Protocol):
    """A programme by rows: least cost over columns within bounds, rows within bounds."""

    cost: Floats
    lower: Floats
    upper: Floats
    whole: Bools
    row_lower: Floats
    row_upper: Floats
    start: Ints
    index: Ints
    value: Floats


@dataclass(frozen=True, kw_only=True)
class Solution:
    """What HiGHS answered. `x` is None where nothing feasible was found; duals are None after branch and bound."""

    state: State
    x: Floats | None
    row_dual: Floats | None
    reduced_cost: Floats | None
    cost: float
    bound: float  # of the programme with its whole columns; -inf where unknown
    cpu_s: float


def _calls(lp: Lp) -> Callable[..., None]:
    """Return what HiGHS calls: it holds no `lp`, which would hold HiGHS in turn, and neither would ever be given back."""
    held = weakref.ref(lp)

    def called(kind: Any, message: str, out: Any, into: Any, user: Any) -> None:
        there = held()
        if there is not None:
            there._called(kind, message, out, into, user)

    return called


class Lp:
    """A programme held by HiGHS."""

    def __init__(self, arrays: Arrays, *, relaxed: bool = False) -> None:
        """Load it; `relaxed` forgets that columns are whole."""
        self._highs = highspy.Highs()
        self._set("output_flag", False)
        self._set("threads", 1)
        self._set("random_seed", 1)
        self._whole = np.flatnonzero(arrays.whole) if not relaxed else np.zeros(0, dtype=np.int64)
        self._is_whole = len(self._whole) > 0  # asked for, so that branch and bound answers
        self._pass(arrays)
        self._stop: Stop | None = None
        self._progress: Progress | None = None
        self._pool: list[tuple[Any, ...]] | None = None
        self._until_s = INF
        self._highs.setCallback(_calls(self), None)
        kinds = highspy.cb.HighsCallbackType
        for kind in (kinds.kCallbackMipInterrupt, kinds.kCallbackSimplexInterrupt, kinds.kCallbackIpmInterrupt):
            self._highs.startCallback(kind)

    def _set(self, name: str, value: Any) -> None:
        if self._highs.setOptionValue(name, value) == highspy.HighsStatus.kError:
            raise ValueError(f"HiGHS knows no option {name}={value}")

    def _pass(self, arrays: Arrays) -> None:
        n, rows = len(arrays.cost), len(arrays.row_lower)
        whole = np.zeros(n, dtype=np.int32)
        whole[self._whole] = 1
        status = self._highs.passModel(
            n,
            rows,
            len(arrays.value),
            int(highspy.MatrixFormat.kRowwise),
            int(highspy.ObjSense.kMinimize),
            0.0,
            np.ascontiguousarray(arrays.cost, dtype=np.float64),
            np.ascontiguousarray(arrays.lower, dtype=np.float64),
            np.ascontiguousarray(arrays.upper, dtype=np.float64),
            np.ascontiguousarray(arrays.row_lower, dtype=np.float64),
            np.ascontiguousarray(arrays.row_upper, dtype=np.float64),
            np.ascontiguousarray(arrays.start[:-1], dtype=np.int32),
            np.ascontiguousarray(arrays.index, dtype=np.int32),
            np.ascontiguousarray(arrays.value, dtype=np.float64),
            whole,
        )
        if status == highspy.HighsStatus.kError:
            raise ValueError("HiGHS refused the programme: a bound or coefficient is not a number")

    def _called(self, kind: Any, message: str, out: Any, into: Any, user: Any) -> None:
        """Report progress and end the solve where asked; called by HiGHS from inside it."""
        if kind == highspy.cb.HighsCallbackType.kCallbackMipGetCutPool:
            names = ("lower", "upper", "start", "index", "value")
            if self._pool is not None and out.cutpool_num_col == self._highs.getNumCol():
                self._pool.append(tuple(np.array(getattr(out, f"cutpool_{name}")) for name in names))
            return
        if self._progress is not None and kind == highspy.cb.HighsCallbackType.kCallbackMipInterrupt:
            self._progress(float(out.mip_dual_bound), float(out.mip_primal_bound))
        into.user_interrupt = time.process_time() > self._until_s or (self._stop is not None and self._stop())

    # ---- changes -------------------------------------------------------------------------------------------------
    def set_bounds(self, columns: Ints, lower: Floats, upper: Floats) -> None:
        """Change the bounds of some columns."""
        n = len(columns)
        if n:
            status = self._highs.changeColsBounds(
                n, columns.astype(np.int32), np.asarray(lower, np.float64), np.asarray(upper, np.float64)
            )
            if status == highspy.HighsStatus.kError:
                raise ValueError("HiGHS refused new bounds: a column is named twice, or a bound is not a number")

    def set_costs(self, columns: Ints, cost: Floats) -> None:
        """Change the costs of some columns."""
        if len(columns):
            status = self._highs.changeColsCost(len(columns), columns.astype(np.int32), np.asarray(cost, np.float64))
            if status == highspy.HighsStatus.kError:
                raise ValueError("HiGHS refused new costs: a column is named twice, or a cost is not a number")

    def set_rows(self, rows: Ints, lower: Floats, upper: Floats) -> None:
        """Change the bounds of some rows."""
        for row, low, high in zip(rows, lower, upper, strict=True):
            self._highs.changeRowBounds(int(row), float(low), float(high))

    def add_rows(self, lower: Floats, upper: Floats, start: Ints, index: Ints, value: Floats) -> None:
        """Add rows at the end; `start` has one entry more than there are rows."""
        if len(lower):
            self._highs.addRows(
                len(lower),
                np.asarray(lower, np.float64),
                np.asarray(upper, np.float64),
                len(value),
                start[:-1].astype(np.int32),
                index.astype(np.int32),
                np.asarray(value, np.float64),
            )

    def set_whole(self, on: bool) -> None:
        """Ask for whole columns to be whole, or no longer."""
        if len(self._whole):
            kind = highspy.HighsVarType.kInteger if on else highspy.HighsVarType.kContinuous
            self._highs.changeColsIntegrality(
                len(self._whole), self._whole.astype(np.int32), np.array([kind] * len(self._whole))
            )
            self._is_whole = on

    def basis(self) -> object:
        """Return where the simplex method ended, for `set_basis` of a programme of the same size; None where nowhere."""
        basis = self._highs.getBasis()
        return basis if basis.valid else None

    def set_basis(self, basis: object) -> bool:
        """Begin the next solve from another programme's end; one of another size is left out. Return whether it was taken."""
        assert isinstance(basis, highspy.HighsBasis)
        if (len(basis.col_status), len(basis.row_status)) != (self._highs.getNumCol(), self._highs.getNumRow()):
            return False
        return bool(self._highs.setBasis(basis) != highspy.HighsStatus.kError)

    def forget_basis(self) -> None:
        """Begin the next solve from nothing."""
        self._highs.clearSolver()

    # ---- solving -------------------------------------------------------------------------------------------------
    def solve(
        self,
        *,
        method: Method = "choose",
        crossover: bool = True,
        gap: float = 0.0,
        cpu_limit_s: float = INF,
        start: Floats | None = None,
        stop: Stop | None = None,
        progress: Progress | None = None,
        options: dict[str, Any] | None = None,
    ) -> Solution:
        """Solve, warm where something was solved before.

        Args:
            method: of the linear programme; "ipm" without `crossover` gives inexact duals in less time, "pdlp" an inexact
                solution of a large one in less still (it does not look at `stop`: give it `pdlp_iteration_limit`).
            gap: relative one at which branch and bound may end.
            cpu_limit_s: CPU seconds of this process that it may take.
            start: a solution to begin branch and bound with.
            stop: asked now and then; True ends the solve.
            progress: told (bound, cost) now and then in branch and bound.
            options: further HiGHS options.
        """
        began_s = time.process_time()
        self._until_s, self._stop, self._progress = began_s + cpu_limit_s, stop, progress
        self._set("solver", method)
        self._set("run_crossover", "on" if crossover else "off")
        self._set("mip_rel_gap", gap)
        self._set("mip_abs_gap", 1e-9)
        for name, value in (options or {}).items():
            self._set(name, value)
        if start is not None:
            given = highspy.HighsSolution()
            given.col_value = start
            self._highs.setSolution(given)
        self._highs.run()
        return self._solution(time.process_time() - began_s)

    def root_rows(
        self, *, cpu_limit_s: float = INF, stop: Stop | None = None
    ) -> tuple[float, tuple[Floats, Ints, Ints, Floats]]:
        """Return (bound, (least, start, column, value) of rows that whole columns imply and the relaxation breaks).

        They are those of branch and bound before it branches; none where it did not come to its end, or knew a plan, for then
        they may hold for cheaper plans alone.
        """
        pool: list[tuple[Any, ...]] = []
        self._pool = pool
        kind = highspy.cb.HighsCallbackType.kCallbackMipGetCutPool
        self._highs.startCallback(kind)
        found = self.solve(cpu_limit_s=cpu_limit_s, stop=stop, options=_ROOT | NO_PLANS)
        self._highs.stopCallback(kind)
        self._pool = None
        if not pool or not len(pool[-1][0]) or found.x is not None:
            return found.bound, (np.zeros(0), np.zeros(1, np.int64), np.zeros(0, np.int64), np.zeros(0))
        lower, upper, start, index, value = pool[-1]
        turned = ~np.isfinite(lower)
        sign = np.where(turned, -1.0, 1.0)
        rows = np.repeat(np.arange(len(lower)), np.diff(start))
        least = np.where(turned, -upper, lower)
        return found.bound, (least, start.astype(np.int64), index.astype(np.int64), value * sign[rows])

    def _solution(self, cpu_s: float) -> Solution:
        status, info = self._highs.getModelStatus(), self._highs.getInfo()
        kinds = highspy.HighsModelStatus
        states: dict[Any, State] = {
            kinds.kOptimal: "optimal",
            kinds.kModelEmpty: "optimal",
            kinds.kInfeasible: "infeasible",
            kinds.kUnbounded: "unbounded",
            kinds.kUnboundedOrInfeasible: "infeasible",
            kinds.kInterrupt: "stopped",
            kinds.kTimeLimit: "stopped",
            kinds.kIterationLimit: "stopped",
            kinds.kSolutionLimit: "stopped",
            kinds.kObjectiveBound: "stopped",
            kinds.kUnknown: "stopped",
        }
        is_mip = self._is_whole
        feasible = info.primal_solution_status == highspy.SolutionStatus.kSolutionStatusFeasible
        found = self._highs.getSolution()
        x = np.array(found.col_value, dtype=np.float64) if len(found.col_value) else None
        state = states.get(status, "failed")
        if is_mip or state == "infeasible":
            dual = reduced = None
        else:
            dual = np.array(found.row_dual, dtype=np.float64) if found.dual_valid else None
            reduced = np.array(found.col_dual, dtype=np.float64) if found.dual_valid else None
        cost = float(info.objective_function_value) if x is not None else INF
        bound = float(info.mip_dual_bound) if is_mip else (cost if state == "optimal" else -INF)
        if is_mip and not feasible:
            x, cost = None, INF
        return Solution(state=state, x=x, row_dual=dual, reduced_cost=reduced, cost=cost, bound=bound, cpu_s=cpu_s)


def moved_basis(basis: object, column_of: Ints, row_of: Ints) -> object:
    """Return a basis for another programme: each of its columns and rows is as that of the first one which it was.

    `column_of` and `row_of` hold numbers in the first programme, -1 where it had none: such a column is at its lower bound,
    such a row is loose. The solver mends what does not fit together.
    """
    assert isinstance(basis, highspy.HighsBasis)
    kinds = highspy.HighsBasisStatus
    columns, rows = list(basis.col_status), list(basis.row_status)
    moved = highspy.HighsBasis()
    moved.col_status = [columns[i] if i >= 0 else kinds.kLower for i in column_of]
    moved.row_status = [rows[i] if i >= 0 else kinds.kBasic for i in row_of]
    moved.valid, moved.alien = True, True
    return moved
