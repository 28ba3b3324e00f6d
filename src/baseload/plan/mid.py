"""Middle-sized problems with hosting or whole racks: round to a plan, make parts of it anew, raise the bound.

The relaxation is solved with its survival rows and with those that whole hosting implies (`tighten.py`), which make its bound a
good one. It is rounded (`staircase.py`): phases, racks along the sum of what has come, then hosting where enough is carried.
Rows that single periods imply (`slices.py`) come in as long as they pay: the bound rises, and relaxations are nearer to plans.
Then parts of the plan are made anew (`parts.py`): sites, services, spans, all racks, by such a rounding, later by branch and
bound; windows of a few periods, with everything before and after as it is, by branch and bound over what differs from their
relaxation; pairs of sites. The last of the time goes to branch and bound over all whole columns, which without looking for
plans raises the bound further.
"""

from __future__ import annotations

import time
from dataclasses import dataclass, field, replace

import numpy as np

from baseload.plan import build as building
from baseload.plan import slices, tighten
from baseload.plan.build import Model
from baseload.plan.cutout import cut_out, kept_rows, rows_at_least
from baseload.plan.highs import INF, NO_PLANS, Lp, Progress, Solution, Stop, moved_basis
from baseload.plan.nothing import in_order, nothing
from baseload.plan.parts import Part, parts_of
from baseload.plan.problem import Answer, Bools, Floats, Ints, Problem, Status
from baseload.plan.project import Program
from baseload.plan.proof import safe_bound, upper_bounds
from baseload.plan.small import columns_of
from baseload.plan.staircase import hosted, stepped
from baseload.plan.tighten import Rows
from baseload.plan.whole import Box, promised

_SOON = 0.15  # of the time: where a relaxation took longer, a plan is made quickly first
_PROVE = 0.15  # for branch and bound, which raises the bound
_ON_TIME = 0.88  # of what is left for that: it looks at the clock a little late
_PATIENCE = 10.0  # times that, by the clock on the wall: the process may have been halted meanwhile
_LEAST = 3e-4  # of the cost: a part that promises less is left as it is
_SLICED = 0.3  # of the time left: rows that periods alone imply
_WORTH = 2.5e-4  # of the bound, a CPU second: what else is done raises it, or lowers the cost, by as much
_SUB_S = 5.0  # of branch and bound over a part
_WINDOW_S = 3.5  # of that over a window
_NESTED = 1.1  # times that, for the searches within it
_SUB_GAP = 4e-4  # of the whole plan's cost, at which that ends
_SUB_SHARE = 0.15  # the same of what the part promises, where that is more
_DIFFERS = 1e-4  # columns whose relaxation is nearer to the plan stay as they are
_ROUNDS = 4  # of survival rows that a plan which was handed in breaks
_TINY = 1e-6
_DUST = 1e-9


@dataclass(kw_only=True)
class _Search:
    """The programme with the survival rows found so far, the best plan and the bound."""

    problem: Problem
    model: Model
    program: Program
    waiting: tighten.Waiting
    sets: tighten.Sets | None  # of clients, where hosting is decided
    until_s: float
    stop: Stop | None
    progress: Progress | None
    lower: Floats  # of all columns
    upper: Floats
    best: Answer
    best_x: Floats | None = None
    spare: tighten.Waiting = field(default_factory=lambda: tighten.Waiting([]))
    bound: float = -INF
    began: tuple[float, float] = field(default_factory=lambda: (time.monotonic(), time.process_time()))

    def left_s(self) -> float:
        """Return the CPU seconds left."""
        return self.until_s - time.process_time()

    def over(self) -> bool:
        """Return whether time is up, or somebody asked to stop."""
        return self.left_s() <= 0.0 or (self.stop is not None and self.stop())

    def slowness(self) -> float:
        """Return how many seconds pass in one of CPU, 4 at most: HiGHS ends searches within searches by the clock alone."""
        wall_s, cpu_s = time.monotonic() - self.began[0], time.process_time() - self.began[1]
        return min(4.0, max(1.0, wall_s / max(1e-3, cpu_s)))

    def tell(self) -> None:
        """Report bound and cost."""
        if self.progress is not None:
            self.progress(self.bound, self.best.cost)

    def add(self, rows: Rows, lp: Lp | None) -> None:
        """Add rows to the programme, and to `lp`, which holds it relaxed."""
        least, start, index, value = rows
        if len(least):
            self.program = self.program.with_rows(least, start, index, value)
            if lp is not None:
                lp.add_rows(least, np.full(len(least), INF), start, index, value)

    def numbers(self, name: str) -> Ints:
        """Return the columns of a variable."""
        number = self.model.columns.get(name, np.zeros(0, dtype=np.int64)).ravel()
        number = number[number >= 0]
        return number[self.program.whole[number]]


def solve_mid(
    problem: Problem,
    *,
    gap: float = 0.01,
    cpu_limit_s: float = 60.0,
    progress: Progress | None = None,
    stop: Stop | None = None,
    warm: Answer | None = None,
    fix: dict[tuple[int, int], int] | None = None,
) -> Answer:
    """Return the best plan within `gap`, or the best found; the arguments are those of `solve.solve`.

    Of `warm` the phases are tried too.
    """
    began_s = time.process_time()
    model = building.build(problem)
    lower, upper = model.program.lower.copy(), model.program.upper.copy()
    for at, value in (fix or {}).items():
        model.program.lower[model.columns["w"][at]] = model.program.upper[model.columns["w"][at]] = float(value)
        lower[model.columns["w"][at]] = upper[model.columns["w"][at]] = float(value)
    program, waiting = model.program, tighten.Waiting([])
    if problem.host_min is not None:
        rows, waiting = tighten.covered(model)
        program = program.with_rows(*rows)
    search = _Search(
        problem=problem,
        model=model,
        program=program,
        waiting=waiting,
        sets=None if problem.host_min is None else tighten.client_sets(model),
        until_s=began_s + cpu_limit_s,
        stop=stop,
        progress=progress,
        lower=lower,
        upper=upper,
        best=nothing(problem, fix),
    )
    _run(search, gap, cpu_limit_s, warm)
    bound = min(search.bound, search.best.cost)
    status: Status = "stopped"
    if search.best.cost - bound <= gap * abs(search.best.cost):
        status = "within_gap"
    elif stop is not None and stop():
        status = "interrupted"
    return replace(search.best, bound=bound, status=status, method="mid", cpu_s=time.process_time() - began_s)


def _run(search: _Search, gap: float, cpu_limit_s: float, warm: Answer | None) -> None:
    """Relax, improve, prove; in that order, each within its share of the time."""
    began_s = time.process_time()

    def closed() -> bool:
        search.tell()
        return search.over() or search.best.cost - search.bound <= gap * abs(search.best.cost)

    lp = Lp(search.program, relaxed=True)
    root = _relax(search, lp)
    if root is None or root.x is None:
        return
    _raise_bound(search, root)
    if time.process_time() - began_s > _SOON * cpu_limit_s or not search.program.whole.any():
        quickly(search, root.x)  # the plan that comes first otherwise may take as long again
    if closed():
        return
    if warm is not None and warm.w.shape == search.model.columns["w"].shape:
        held(search, columns_of(search.model, warm), rounds=_ROUNDS)
    if search.program.whole.any():
        basis, numbers = lp.basis(), np.concatenate([search.numbers(name) for name in ("buy", "w", "host")])
        _rounded(search, _boxed(search, lp, search.until_s), numbers, root)
        if closed():
            return
        sharp = _sharpened(search, lp, root, basis)
        if sharp is not None:
            lp, root = sharp
        improve(search, lp, root, gap, search.until_s - _PROVE * cpu_limit_s)
        if closed():
            return
        prove(search, search.left_s())
        search.tell()


def _relax(search: _Search, lp: Lp, rounds: int = 12) -> Solution | None:
    """Solve the relaxation with the rows that are missing: survival, and what whole hosting needs. All stay for later."""
    found, cost = None, -INF
    for turn in range(rounds):
        found = lp.solve(
            method="ipm" if turn == 0 else "simplex", cpu_limit_s=max(0.1, search.left_s()), stop=search.stop
        )
        if found.x is None or found.state != "optimal":
            return None
        new = _add_halls(search, lp, found.x)
        if new or found.cost > cost + 1e-4 * abs(cost):
            new += _add_hosting(search, lp, found.x)
        cost = found.cost
        if not new:
            break
    return found


def _add_halls(search: _Search, lp: Lp | None, x: Floats) -> int:
    """Add the survival rows that a solution breaks; return how many."""
    model = search.model
    short, unserved = np.maximum(0.0, model.value("short_survive", x)), np.maximum(0.0, model.value("unserved", x))
    halls, _ = building.missing_halls(search.problem, building.carried(model, x), unserved, short, tolerance=1e-5)
    if halls:
        search.add(building.rows_of(model, halls), lp)
    return len(halls)


def _add_hosting(search: _Search, lp: Lp, x: Floats) -> int:
    """Add the rows implied by whole hosting that a solution breaks; return how many."""
    if search.sets is None:
        return 0
    linked, shielded = tighten.linked(search.model, x), tighten.shielded(search.model, search.sets, x)
    new = 0
    for rows in (search.waiting.broken(x), search.spare.broken(x), linked, shielded):
        search.add(rows, lp)
        new += len(rows[0])
    return new


def _sharpened(search: _Search, lp: Lp, root: Solution, basis: object | None) -> tuple[Lp, Solution] | None:
    """Return a programme with the rows that periods alone imply, and its relaxation; None where there is no time.

    Rows that do not bind wait until a solution breaks them. `basis` is that of `root`, which `lp` may have left since.
    """
    assert root.row_dual is not None
    n, before = len(search.lower), len(root.row_dual)
    prices = np.zeros(len(search.program.row_lower))
    prices[:before] = root.row_dual
    upper = np.minimum(search.upper, upper_bounds(search.model, search.best.cost))
    tight = replace(search.program, lower=search.lower, upper=upper)
    until_s = time.process_time() + _SLICED * search.left_s()
    worth = _WORTH * abs(search.bound)
    rows = tighten.packed(slices.implied(search.model, tight, prices, worth=worth, until_s=until_s, stop=search.stop))
    search.add(rows, None)
    every = np.arange(n)
    sharp = Lp(replace(search.program, lower=search.lower, upper=search.upper), relaxed=True)
    if basis is not None:
        place = np.arange(len(search.program.row_lower))
        sharp.set_basis(moved_basis(basis, every, np.where(place < before, place, -1)))
    found = sharp.solve(method="simplex", cpu_limit_s=max(0.1, search.left_s()), stop=search.stop)
    if found.x is None or found.row_dual is None or found.state != "optimal":
        return None
    _raise_bound(search, found)
    kept = np.abs(found.row_dual) > _DUST
    kept[: len(search.model.program.row_lower)] = True
    search.spare = tighten.Waiting(rows_at_least(search.program, np.flatnonzero(~kept)))
    search.program = kept_rows(search.program, kept)
    small, basis = Lp(replace(search.program, lower=search.lower, upper=search.upper), relaxed=True), sharp.basis()
    if basis is not None:
        small.set_basis(moved_basis(basis, every, np.flatnonzero(kept)))
    return small, found


def _raise_bound(search: _Search, found: Solution) -> None:
    """Raise the bound to what the prices of a relaxation prove."""
    if found.row_dual is None:
        return
    rows = len(found.row_dual)
    prices = np.zeros(len(search.program.row_lower))
    prices[:rows] = found.row_dual
    upper = np.minimum(search.upper, upper_bounds(search.model, search.best.cost))
    bound = safe_bound(search.program, prices, search.lower, upper)
    if np.isfinite(bound):
        search.bound = max(search.bound, bound)


# ---- a plan ------------------------------------------------------------------------------------------------------------
def held(search: _Search, whole: Floats, rounds: int = 1) -> None:
    """Keep the plan with all whole columns as in `whole`; survival rows that it breaks come in for `rounds` solves."""
    lower, upper = search.lower.copy(), search.upper.copy()
    numbers = np.flatnonzero(search.program.whole)
    lower[numbers] = upper[numbers] = np.clip(np.round(whole[numbers]), lower[numbers], upper[numbers])
    lp = Lp(replace(search.program, lower=lower, upper=upper), relaxed=True)
    for turn in range(rounds):
        found = lp.solve(cpu_limit_s=max(0.1, search.left_s()), stop=search.stop)
        if found.x is None or found.state != "optimal":
            return
        keep(search, found.x)
        if turn + 1 == rounds or not _add_halls(search, lp, found.x):
            return


def quickly(search: _Search, x: Floats) -> None:
    """Keep a first plan, made by one solve: all phases and hosting that the relaxation uses, racks rounded down."""
    columns, hosts = search.model.columns["w"], search.numbers("host")
    to = np.floor(x + _TINY)
    to[columns] = in_order(search.problem, x[columns] > _TINY, search.lower[columns], search.upper[columns])
    to[hosts] = np.ceil(x[hosts] - _TINY)
    held(search, to)


def keep(search: _Search, x: Floats) -> bool:
    """Remember the plan that a solution is, if it is the best; return whether it was."""
    model = search.model
    unserved = np.maximum(0.0, model.value("unserved", x))
    none = np.zeros(search.problem.demand.shape[1:])
    _, short = building.missing_halls(search.problem, building.carried(model, x), unserved, none)
    cost = building.true_cost(model, x, short)
    if cost >= search.best.cost:
        return False
    search.best = building.answer_of(model, x, bound=-INF, status="stopped", method="mid", cpu_s=0.0)
    search.best_x = x
    search.tell()
    return True


# ---- better than it, and below it ----------------------------------------------------------------------------------------
def prove(search: _Search, cpu_s: float) -> None:
    """Raise the bound: branch and bound on the whole programme, without looking for plans."""
    if cpu_s < 1.0:
        return

    def told(bound: float, _: float) -> None:  # on its way: proven is what stands at the end
        if search.progress is not None and np.isfinite(bound):
            search.progress(max(search.bound, min(bound, search.best.cost)), search.best.cost)

    whole = replace(search.program, lower=search.lower, upper=search.upper)
    found = Lp(whole).solve(
        gap=1e-3,
        cpu_limit_s=_ON_TIME * cpu_s,
        start=search.best_x,
        progress=told,
        stop=search.stop,
        options=NO_PLANS
        | {
            "mip_lp_solver": "ipm",
            "time_limit": _PATIENCE * cpu_s * search.slowness(),
        },
    )
    if np.isfinite(found.bound):
        search.bound = max(search.bound, min(found.bound, search.best.cost) - 1e-6 * abs(found.bound))
        search.tell()


def _boxed(search: _Search, lp: Lp, until_s: float) -> Box:
    """Return the programme that `lp` holds, to be narrowed."""
    return Box(
        lp=lp,
        lower=search.lower.copy(),
        upper=search.upper.copy(),
        add_rows=lambda x: _add_halls(search, lp, x),
        stop=search.stop,
        until_s=until_s,
    )


def improve(search: _Search, lp: Lp, root: Solution, gap: float, until_s: float) -> None:
    """Make the relaxation `root`, held by `lp`, whole, then parts of the plan anew, the most promising first.

    That goes on until the gap is closed, nothing promises more, or time is up.
    """
    box = _boxed(search, lp, until_s)
    numbers = np.concatenate([search.numbers(name) for name in ("buy", "w", "host")])
    if search.best_x is None:
        assert root.x is not None
        quickly(search, root.x)
    if search.best_x is None:
        return
    parts = parts_of(search.model, numbers)
    while not box.over() and search.best.cost - search.bound > gap * abs(search.best.cost):
        part = parts.next(_LEAST * abs(search.best.cost))
        if part is None:
            break
        began_s, before = time.process_time(), search.best.cost
        found = _looked(search, box, numbers, part)
        if found is None or found.x is None:
            break
        if not parts.looked(part, before - found.cost):
            continue  # another may promise more
        if part.loose is not None:
            at = np.cumsum(_ours(part, numbers, part.free, len(search.best_x))) - 1  # its solution has only its columns
            differs = part.free.copy()
            differs[part.free] = np.abs(found.x[at[numbers[part.free]]] - search.best_x[numbers[part.free]]) > _DIFFERS
            _branched(search, box, part, numbers, differs, _WINDOW_S, near=part.kind == "hosts")
        elif part.exact:
            differs = part.free & (np.abs(found.x[numbers] - search.best_x[numbers]) > _DIFFERS)
            _branched(search, box, part, numbers, differs, _SUB_S, near=part.kind == "racks")
        else:
            _rounded(search, box, numbers[part.free], found)
        parts.told(part, before - search.best.cost, time.process_time() - began_s)


def _rounded(search: _Search, box: Box, free: Ints, found: Solution) -> None:
    """Make a part of the plan whole that is relaxed in `found`: phases and racks by steps, then hosting."""
    made, hosts = stepped(box, search.model, free, found), np.intersect1d(free, search.numbers("host"))
    if made is not None and made.x is not None and len(hosts):
        made = hosted(box, search.model, hosts, made)
    if made is not None and made.x is not None:
        keep(search, made.x)


def _looked(search: _Search, box: Box, numbers: Ints, part: Part) -> Solution | None:
    """Return the plan with a part of it relaxed, None where there is no time.

    The box stays that wide; a window is solved on its own, and its solution has only its columns.
    """
    assert search.best_x is not None
    if part.loose is not None:
        alone, held = _alone(search, box, numbers, part, part.free)
        seen = Lp(alone, relaxed=True).solve(cpu_limit_s=max(0.1, box.until_s - time.process_time()), stop=search.stop)
        return replace(seen, cost=seen.cost + held if seen.state == "optimal" else search.best.cost)
    found = promised(box, numbers, part.free, search.best_x)
    if found is not None and found.x is not None and _add_hosting(search, box.lp, found.x):
        found = box.solve(2)
    return found


def _ours(part: Part, numbers: Ints, free: Bools, n: int) -> Bools:
    """Return which of all `n` columns are decided anew: of the whole ones `free`, and what a window leaves loose."""
    ours = np.ones(n, bool) if part.loose is None else part.loose.copy()
    ours[numbers] = free
    return ours


def _alone(search: _Search, box: Box, numbers: Ints, part: Part, free: Bools) -> tuple[Program, float]:
    """Return the programme with only `free` of the whole columns, and what a window leaves loose; and what the others cost."""
    assert search.best_x is not None
    x = search.best_x.copy()
    x[numbers] = np.round(x[numbers])
    ours = _ours(part, numbers, free, len(x))
    whole = replace(search.program, lower=box.widest[0], upper=box.widest[1])
    return cut_out(whole, x, ours), float(whole.cost[~ours] @ x[~ours])


def _branched(search: _Search, box: Box, part: Part, numbers: Ints, free: Bools, most_s: float, *, near: bool) -> None:
    """Branch and bound over some whole columns, the others as in the plan; with `near` also near the best so far.

    That pays in windows and over all racks; on sites it takes longer for no more.
    """
    assert search.best_x is not None
    left_s = box.until_s - time.process_time()
    if left_s < 2.0:
        box.until_s = 0.0
        return
    cpu_s = min(most_s, 0.6 * left_s)
    alone, held = _alone(search, box, numbers, part, free)
    ours = _ours(part, numbers, free, len(search.best_x))
    found = Lp(alone).solve(
        cpu_limit_s=cpu_s,
        start=search.best_x[ours],
        stop=search.stop,
        options={
            "mip_abs_gap": max(_SUB_GAP * search.best.cost, _SUB_SHARE * part.promise),
            "mip_heuristic_run_rins": near,
            "mip_heuristic_run_root_reduced_cost": near,
            "time_limit": _NESTED * cpu_s * search.slowness(),
        },
    )
    if found.x is None or found.cost + held >= search.best.cost * (1.0 - _TINY):
        return
    exact, at = np.round(search.best_x[numbers]), np.cumsum(ours)[numbers[free]] - 1
    exact[free] = np.round(found.x[at])
    box.narrow(numbers, exact, exact)
    clean = box.solve()
    if clean is not None and clean.x is not None:
        keep(search, clean.x)
