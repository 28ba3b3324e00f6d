"""Problems whose only whole decisions are the grid phases, up to a quarter of a million columns: branching by warm LPs.

The whole programme is relaxed once (interior point, then a vertex) and survival rows are added until none is missing; a large
one begins with those that the same question over longer periods needs (`coarse.py`). The phases that the relaxation has begun
are rounded up and a plan is settled from its racks (`settle.py`): that takes a second, so that there is a plan from then on.
Phases are rounded at a few thresholds, each choice is solved warm, and best-first branching on phases closes what is left. All
bounds are prices evaluated anew (`proof.py`), so that they hold whatever the solver's tolerances. An answer holds its basis and
survival rows: a changed price or date is solved from there (`warm`).
"""

from __future__ import annotations

import heapq
import time
from collections.abc import Iterator
from dataclasses import dataclass, replace

import numpy as np

from baseload.errors import PlanError
from baseload.plan import build as building
from baseload.plan import transport
from baseload.plan.build import Hall, Model
from baseload.plan.coarse import Coarse, is_large
from baseload.plan.held import CAPPED, SLOW_PRICES, Held
from baseload.plan.highs import INF, Lp, Progress, Solution, Stop, moved_basis
from baseload.plan.nothing import Fix, in_order, keeps, nothing, pulled
from baseload.plan.problem import Answer, Bools, Floats, Problem, Status
from baseload.plan.proof import safe_bound, upper_bounds
from baseload.plan.settle import settled
from baseload.plan.weights import MANY, Weights

_THRESHOLDS = (0.3, 0.2, 0.5, 0.1, 0.7)  # parts begun from which on a phase is tried, the first the best most often
_LONGER = 5  # periods as one, to know survival rows from
_ROUNDS = 30
_SETTLE_WHEN = 6.0  # times what settling takes a solve has taken: the next with more rows would take about as long
_FEW = 200  # survival rows: so many missing change the bound of a large change little
_PULLS = 3  # times that phases are tried, begun earlier each time where prices say so
_EARLY = 0.2  # of a phase that the relaxation has begun by then: it may be begun as early
_CLOSE = 1.3  # times the gap asked for: a plan so near may be proven good enough by the bound with the rows found since
_NEAR = 1.5  # times the gap asked for: phases that cost no more above the bound may come to it so
_AS_IT_IS, _EVEN = 0, 2  # how HiGHS scales: not at all is a fifth sooner where most rows of survival ask for more
_BROKEN = 1e-4  # of a row's size: a solution that misses one by more is solved for anew
_NOUGHT = 1e-9  # a gap that is none
_WHOLE = 1e-6  # nearer than this counts as whole


@dataclass(frozen=True, kw_only=True)
class _Node:
    """Bounds on the phases, and what is known of the plans within."""

    lower: Floats
    upper: Floats
    bound: float
    x: Floats | None  # of its relaxation; None where it was not solved to the end
    reduced: Floats | None = None


def solve_phases(
    problem: Problem,
    *,
    gap: float = 0.01,
    cpu_limit_s: float = 60.0,
    progress: Progress | None = None,
    stop: Stop | None = None,
    warm: Answer | None = None,
    fix: Fix | None = None,
) -> Answer:
    """Return the best plan within `gap`, or the best found; the arguments are those of `solve.solve`."""
    if problem.host_min is not None or problem.whole.any():
        raise ValueError("phases alone may be whole here")
    began_s = time.process_time()
    held = warm.held if warm is not None and isinstance(warm.held, Held) and warm.held.fits(problem) else None
    until_s, longer = began_s + cpu_limit_s, None
    more_survives = held is not None and bool((problem.survive_ratio > held.model.problem.survive_ratio).any())
    if held is not None:
        halls = building.lawful(problem, held.halls)
        if more_survives and held.longer is not None:  # other rows bind then
            longer = Coarse(problem, _LONGER, until_s=until_s, stop=stop, was=held.longer)
            halls = building.all_of(halls, longer.halls())
    elif is_large(problem):
        longer = Coarse(problem, _LONGER, until_s=until_s, stop=stop)
        halls = longer.halls()
    else:
        halls = building.first_halls(problem)
    search = _Search(problem, halls, fix=fix or {}, gap=gap, until_s=until_s, progress=progress, stop=stop)
    search.longer, search.more_survives = longer, more_survives
    status = search.run(held, warm)
    spent_s = time.process_time() - began_s
    bound = min(search.bound, search.best_cost)
    if status != "interrupted" and search.best_cost - bound <= max(gap, _NOUGHT) * abs(search.best_cost):
        status = "optimal" if gap <= 1e-6 else "within_gap"
    if search.best is None:
        answer = replace(nothing(problem, fix), bound=bound, status=status, method="phases", cpu_s=spent_s)
        if not np.isfinite(search.best_cost):
            raise PlanError(
                f"{problem.name}: no plan was found that meets the rows without a slack; give every slack a price"
            )
    elif isinstance(search.best, Answer):
        answer = replace(search.best, bound=bound, status=status, method="phases", cpu_s=spent_s)
    else:
        answer = building.answer_of(
            search.model, search.best, bound=bound, status=status, method="phases", cpu_s=spent_s
        )
    return replace(answer, held=search.held)


class _Search:
    """The programme with all rows found so far, the best plan and the bound."""

    def __init__(
        self,
        problem: Problem,
        halls: list[Hall],
        *,
        fix: Fix,
        gap: float,
        until_s: float,
        progress: Progress | None,
        stop: Stop | None,
    ) -> None:
        self.problem, self.halls, self.gap, self.until_s = problem, halls, gap, until_s
        self.progress, self.stop = progress, stop
        self.cold_s = INF
        self.model: Model = building.build(problem, halls)
        self.program = self.model.program
        self.lp = Lp(self.program, relaxed=True)
        self.weights = Weights(self.lp)
        self.w = self.model.columns["w"]
        self.best: Floats | Answer | None = None  # a solution of the programme, or an answer settled from one
        self.longer: Coarse | None = None
        self.is_fresh = True  # not a re-solve, which has seconds
        self.more_survives = False  # than in the plan that it began with: rent alone will not do it
        self.of = transport.blocks(problem)
        self.settle_s = 1e-5 * len(self.program.cost)  # CPU seconds that settling a plan last took, about
        idle = nothing(problem, fix)
        self.best_cost = idle.cost if keeps(idle.w, fix) else INF
        self.fix = fix
        self.bound = -INF
        self.held: Held | None = None
        self._tried: set[bytes] = set()

    def run(self, held: Held | None, warm: Answer | None) -> Status:
        """Relax, round, branch; return how it ended."""
        lower, upper = self.program.lower[self.w].copy(), self.program.upper[self.w].copy()
        for at, value in self.fix.items():
            lower[at] = upper[at] = float(value)
        self.is_fresh = held is None
        root = self._relax(_Node(lower=lower, upper=upper, bound=-INF, x=None), held, rounds=1 if held else _ROUNDS)
        self.bound = root.bound
        self._tell()
        if held is not None and root.x is not None:  # a small change may leave the earlier phases good enough
            assert warm is not None
            is_other = abs(root.bound - warm.bound) > self.gap * abs(warm.bound)  # a large change wants other phases
            if is_other and (further := self._relax(root, few=_FEW)).x is not None:
                root, self.bound = further, max(self.bound, further.bound)
            self.held = self._hold(held)
            assert root.x is not None
            nearest = next(self._choices(root))
            for w in (nearest,) if is_other else (warm.w, nearest):
                self._try(w, root, unless_hopeless=True)
                if self._closed():
                    return "optimal"
                root = self._raised(root) if self._closed(_CLOSE) else root
                if self._closed():
                    return "optimal"
            root = self._relax(root, self.held)
            self.bound = max(self.bound, root.bound)
        if root.x is None:
            if root.bound == INF:
                raise PlanError(
                    f"{self.problem.name}: no plan meets the rows that have no slack; give every slack a price, or see "
                    "which phases are fixed"
                )
            return self._ended()
        if self.held is None:
            self.held = self._hold(held)
        if held is None and warm is not None and warm.w.shape == lower.shape:
            self._try(warm.w, root)
        if not self._closed():
            self._round_up(root.x)
        choices = self._choices(root)
        while not self._closed() and not self._over() and (chosen := next(choices, None)) is not None:
            self._try(chosen, root)
            if not self._closed() and self._closed(_CLOSE):
                root = self._raised(root)
        if not self._closed() and not self._over():
            self._branch(root)
        return "optimal" if self._closed() else self._ended()

    def _hold(self, before: Held | None) -> Held:
        """Return what a re-solve may begin with; `before` is what this one began with."""
        longer = self.longer.held if self.longer is not None else None if before is None else before.longer
        cold_s = self.cold_s if before is None else min(self.cold_s, before.cold_s)
        return Held(basis=self.lp.basis(), halls=tuple(self.halls), model=self.model, longer=longer, cold_s=cold_s)

    def _raised(self, root: _Node) -> _Node:
        """Raise the bound, where that may do: the relaxation with the rows found since, from where it ended; then be back."""
        assert self.held is not None
        if len(self.halls) == len(self.held.halls) or self._over():
            return root
        here = self.lp.basis()
        again = self._relax(root, self.held, rounds=1)
        if again.x is not None:
            self.bound, self.held = max(self.bound, again.bound), self._hold(self.held)
            self._tell()
        if here is not None:
            self.lp.set_basis(here)
        return root if again.x is None else again

    def program_w(self, x: Floats) -> Floats:
        """Return the phases of a solution."""
        return np.asarray(x[self.w], dtype=np.float64)

    # ---- one node ------------------------------------------------------------------------------------------------
    def _relax(
        self,
        node: _Node,
        held: Held | None = None,
        *,
        rounds: int = _ROUNDS,
        few: int = 0,
        unless_hopeless: bool = False,
    ) -> _Node:
        """Solve a node's relaxation with its survival rows; the bound that comes back holds for all plans within.

        `few` missing survival rows, or `rounds` of looking for them, end it; `unless_hopeless` gives up where the first solve
        shows that the gap will not be closed so.
        """
        self.lp.set_bounds(self.w.ravel(), node.lower.ravel(), node.upper.ravel())
        bound, first = node.bound, self.best is None and node.x is None and not np.isfinite(node.bound)
        if held is not None:
            self.lp.set_basis(self._moved(held))
        if first and held is None:
            found = self._first()
        else:
            found = self._solve("simplex")
        for turn in range(rounds):
            if found.state == "infeasible":
                return replace(node, bound=INF, x=None)
            bound = max(bound, self._safe(found, node))
            if unless_hopeless and turn == 0 and bound - self.bound > self.gap * abs(bound):
                return replace(node, bound=bound, x=None, reduced=found.reduced_cost)
            if found.state != "optimal" or found.x is None:
                return replace(node, bound=bound, x=None)
            if first:
                self.bound = bound
                self._tell()
            if held is None and first and turn == 0:
                self._round_up(found.x)
            is_given = bool((node.lower == node.upper).all())
            if turn == rounds - 1 and not is_given:
                break
            halls, short = self._missing(found.x)
            if is_given:
                is_worth = found.cpu_s > _SETTLE_WHEN * self.settle_s and not self.more_survives
                self._keep(found.x, short, settle=turn == rounds - 1 or is_worth)
                if self._closed() or found.cost >= self.best_cost:
                    break
            if turn == rounds - 1:
                break
            self._add(halls)
            if len(halls) <= few:
                break
            found = self._solve("simplex", len(halls) if is_given else MANY)
        return replace(node, bound=bound, x=found.x, reduced=found.reduced_cost)

    def _moved(self, held: Held) -> object:
        """Return where an earlier relaxation ended, as this programme has it."""
        columns, rows = building.carried_over(held.model, held.halls, self.model, self.halls)
        n_columns, n_rows = len(held.model.program.cost), len(held.halls) + building.first_hall_row(held.model)
        same = len(columns) == n_columns and len(rows) == n_rows
        if same and (columns == np.arange(n_columns)).all() and (rows == np.arange(n_rows)).all():
            return held.basis
        return moved_basis(held.basis, columns, rows)

    def _solve(self, method: str, n_rows: int = MANY) -> Solution:
        """Solve from where the last solve ended, scaled as that was: HiGHS takes broken rows for kept where scaling changes."""
        found = self._solved(method, n_rows)
        if found.state == "optimal" and found.x is not None and not self._keeps_rows(found.x):
            self.lp.forget_basis()
            found = self._solved("ipm", n_rows)
        return found

    def _keeps_rows(self, x: Floats) -> bool:
        """Return whether a solution keeps the programme's rows, nearly: the solver's word is not taken for it."""
        program = self.program
        act = np.bincount(
            np.repeat(np.arange(len(program.row_lower)), np.diff(program.start)),
            weights=program.value * x[program.index],
            minlength=len(program.row_lower),
        )
        off = np.maximum(program.row_lower - act, act - program.row_upper)
        return bool((off <= _BROKEN * np.maximum(1.0, np.abs(act))).all())

    def _solved(self, method: str, n_rows: int) -> Solution:
        return self.lp.solve(
            method="ipm" if method == "ipm" else "simplex",
            cpu_limit_s=max(0.05, self.until_s - time.process_time()),
            stop=self.stop,
            options=self.weights.after(n_rows) | {"simplex_scale_strategy": _AS_IT_IS if self.more_survives else _EVEN},
        )

    def _first(self) -> Solution:
        """Solve for the first time; prices that nobody pays, but that slow an interior point down, come after it."""
        columns = self.model.columns
        slow = np.concatenate([columns[name].ravel() for name in SLOW_PRICES])
        slow = slow[slow >= 0]
        self.lp.set_costs(slow, CAPPED * self.program.cost[slow])
        found = self._solve("ipm")
        self.cold_s = found.cpu_s if found.state == "optimal" else INF
        self.lp.set_costs(slow, self.program.cost[slow])
        if found.state == "optimal" and found.x is not None and found.x[slow].max(initial=0.0) > _WHOLE:
            return self._solve("simplex")
        return found

    def _safe(self, found: Solution, node: _Node) -> float:
        """Return the bound that the prices of a solve prove within a node."""
        lower, upper = self.program.lower.copy(), upper_bounds(self.model, self.best_cost)
        lower[self.w], upper[self.w] = node.lower, node.upper
        prices = found.row_dual if found.row_dual is not None else np.zeros(len(self.program.row_lower))
        bound = safe_bound(self.program, prices, lower, upper)
        return bound if np.isfinite(bound) or found.state != "optimal" else found.cost * (1.0 - 1e-6)

    def _missing(self, x: Floats) -> tuple[list[Hall], Floats]:
        """Return the survival rows that a solution breaks, and what is short in all."""
        get = self.model.value
        short, unserved = np.maximum(0.0, get("short_survive", x)), np.maximum(0.0, get("unserved", x))
        return building.missing_halls(self.problem, building.carried(self.model, x), unserved, short)

    def _add(self, halls: list[Hall]) -> None:
        """Add survival rows."""
        if halls:
            least, start, index, value = building.rows_of(self.model, halls)
            self.lp.add_rows(least, np.full(len(least), INF), start, index, value)
            self.program = self.program.with_rows(least, start, index, value)
            self.halls.extend(halls)

    # ---- plans ---------------------------------------------------------------------------------------------------
    def _try(self, w: Floats | Bools, root: _Node, *, unless_hopeless: bool = False) -> None:
        """Solve for given phases, made to keep their order and bounds, and keep the plan if it is the best.

        `unless_hopeless` gives up where prices, or the first relaxation, show that the gap will not be closed so.
        """
        chosen = in_order(self.problem, w, root.lower, root.upper)
        if unless_hopeless and root.reduced is not None and root.x is not None:
            least = root.bound + float((root.reduced[self.w] * (chosen - self.program_w(root.x))).sum())
            if least - self.bound > _NEAR * self.gap * abs(least):
                return
        for turn in range(_PULLS):
            if chosen.tobytes() in self._tried or (chosen > root.upper).any():
                return
            self._tried.add(chosen.tobytes())
            node = _Node(lower=chosen, upper=chosen, bound=root.bound, x=root.x)
            first = self._relax(node, rounds=2, few=MANY, unless_hopeless=unless_hopeless)
            lacks, may = first.bound - self.bound, self.gap * abs(first.bound)
            if not self.is_fresh and may < lacks <= _CLOSE * may:
                self._raised(root)
                lacks = first.bound - self.bound
                if first.x is None and lacks <= may:  # not so hopeless
                    first = self._relax(node, rounds=2, few=MANY)
                    lacks = first.bound - self.bound
            if first.x is None and unless_hopeless:
                self._tried.discard(chosen.tobytes())
            if first.x is not None and lacks <= may and not self.is_fresh:  # what lacks is survival rows
                self._relax(node, rounds=4)
            is_near = lacks <= _NEAR * may
            if self._closed() or self._over() or first.reduced is None or not (is_near or first.x is not None):
                return
            chosen_next = (
                self._earlier(chosen, first.reduced[self.w], root) if is_near and turn < _PULLS - 1 else chosen
            )
            if chosen_next.tobytes() in self._tried:
                if first.x is not None:
                    self._relax(node, rounds=4)
                return
            chosen = chosen_next

    def _earlier(self, w: Floats, worth: Floats, root: _Node) -> Floats:
        """Return phases with those begun earlier that the relaxation begins by then to a part, where prices say so."""
        assert root.x is not None
        found = pulled(w, worth, self.program_w(root.x) >= _EARLY, least=_WHOLE * abs(self.bound))
        return in_order(self.problem, found, root.lower, root.upper)

    def _choices(self, root: _Node) -> Iterator[Bools]:
        """Yield phases to try: those that the relaxation has begun to a part that is large enough."""
        assert root.x is not None
        w = self.program_w(root.x)
        yield from (w >= threshold for threshold in _THRESHOLDS)

    def _round_up(self, x: Floats) -> None:
        """Keep the plan that is settled from a relaxation's racks, with all phases that it has begun to any part."""
        if self._over():
            return
        lower, upper = self.program.lower[self.w], self.program.upper[self.w]
        self._settle(x, in_order(self.problem, self.program_w(x) > _WHOLE, lower, upper))

    def _settle(self, x: Floats, w: Floats) -> None:
        """Keep the plan that is settled from a solution's racks, if it is the best so far."""
        if not keeps(w, self.fix):
            return
        began_s, get = time.process_time(), self.model.value
        found = settled(self.problem, self.of, w=w, buy=get("buy", x), sign=get("sign", x), put=get("put", x))
        self.settle_s = time.process_time() - began_s
        if found.cost < self.best_cost:
            self.best, self.best_cost = found, found.cost
            self._tell()

    def _keep(self, x: Floats, short: Floats, *, settle: bool = True) -> None:
        """Remember a plan with its true cost, with what is `short`, if it is the best so far; as it is, or settled."""
        cost = building.true_cost(self.model, x, short)
        if cost < self.best_cost:
            self.best, self.best_cost = x, cost
            self._tell()
        if settle and short.any() and not self._closed():
            self._settle(x, np.round(self.program_w(x)))

    # ---- branching -----------------------------------------------------------------------------------------------
    def _branch(self, root: _Node) -> None:
        """Search the phases best bound first, diving now and then; sets the bound that is proven."""
        root = self._narrowed(root)
        heap: list[tuple[float, int, _Node]] = [(root.bound, 0, root)]
        number, dropped = 0, INF
        while heap and not self._over():
            self.bound = max(self.bound, min(heap[0][0], dropped, self.best_cost))
            self._tell()
            if self._closed():
                break
            _, _, node = heapq.heappop(heap)
            if node.x is None:  # could not be solved: what is known of it stays its bound
                dropped = min(dropped, node.bound)
                continue
            if self._is_whole(node.x):
                self._keep(node.x, self._missing(node.x)[1])
                dropped = min(dropped, node.bound)
                continue
            for child in self._children(node):
                solved = self._relax(child, rounds=3)
                if solved.x is None and solved.bound < INF:  # out of time
                    heapq.heappush(heap, (solved.bound, number := number + 1, solved))
                    continue
                if solved.x is None or solved.bound >= self.best_cost:
                    continue
                if self._is_whole(solved.x):
                    self._keep(solved.x, self._missing(solved.x)[1])
                    dropped = min(dropped, solved.bound)
                    continue
                if number % 4 == 0 or number < 8:
                    self._try(self.program_w(solved.x) >= _THRESHOLDS[0], root)
                heapq.heappush(heap, (solved.bound, number := number + 1, solved))
        self.bound = max(self.bound, min([self.best_cost, dropped] + [bound for bound, _, _ in heap]))

    def _children(self, node: _Node) -> list[_Node]:
        """Split a node on the phase that is least whole: begun by then, or not."""
        assert node.x is not None
        w = self.program_w(node.x)
        loose = np.minimum(w, 1.0 - w) * (node.upper > node.lower)
        weight = loose.sum(axis=1) * self.problem.phase_mw
        p = int(np.argmax(np.where(loose.max(axis=1) > _WHOLE, weight, -1.0)))
        t = int(np.argmax(loose[p]))
        early, late = node.lower.copy(), node.upper.copy()
        early[p, t:] = 1.0
        late[p, : t + 1] = 0.0
        children = [replace(node, lower=early), replace(node, upper=late)]
        if w[p, t] < 0.5:
            children.reverse()
        return [child for child in children if (child.lower <= child.upper).all()]

    def _is_whole(self, x: Floats) -> bool:
        w = self.program_w(x)
        return bool(np.abs(w - np.round(w)).max(initial=0.0) <= _WHOLE)

    def _narrowed(self, root: _Node) -> _Node:
        """Fix phases that no better plan would move, by their reduced costs at the root."""
        if root.reduced is None or root.x is None:
            return root
        reduced, w = root.reduced[self.w], self.program_w(root.x)
        spare = self.best_cost - root.bound
        lower, upper = root.lower.copy(), root.upper.copy()
        upper[(reduced > spare) & (w < _WHOLE)] = lower[(reduced > spare) & (w < _WHOLE)]
        lower[(reduced < -spare) & (w > 1.0 - _WHOLE)] = upper[(reduced < -spare) & (w > 1.0 - _WHOLE)]
        return replace(root, lower=lower, upper=upper)

    # ---- the end -------------------------------------------------------------------------------------------------
    def _tell(self) -> None:
        if self.progress is not None:
            self.progress(self.bound, self.best_cost)

    def _closed(self, times: float = 1.0) -> bool:
        lacks = self.best_cost - self.bound
        return bool(np.isfinite(self.best_cost)) and lacks <= times * max(self.gap, _NOUGHT) * abs(self.best_cost)

    def _over(self) -> bool:
        return time.process_time() >= self.until_s or (self.stop is not None and self.stop())

    def _ended(self) -> Status:
        return "interrupted" if self.stop is not None and self.stop() else "stopped"
