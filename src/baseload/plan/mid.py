"""Middle-sized problems with hosting or whole racks: dive to a plan with warm re-solves, bound by branching on the rest.

The relaxation is solved with its survival rows until none is missing. Diving fixes whole columns in turn, phases first, then
hosting, then racks, a few at a time, and solves again from where the last solve ended; survival rows join on the way, so that
the plan at the end survives. A branch and bound near the plan (what relaxation and plan agree on is fixed) improves it. The
bound comes from branch and bound over phases and hosting with racks left divisible: cuts on these are worth most.
"""

from __future__ import annotations

import time
from dataclasses import dataclass, replace

import numpy as np

from baseload.plan import build as building
from baseload.plan import transport
from baseload.plan.build import Model
from baseload.plan.highs import INF, Lp, Progress, Solution, Stop
from baseload.plan.nothing import nothing
from baseload.plan.problem import Answer, Bools, Floats, Ints, Problem, Status
from baseload.plan.project import Program
from baseload.plan.proof import safe_bound, upper_bounds
from baseload.plan.settle import settled

_STEPS = 40  # of fixing, at most, for hosting, and then for racks
_FEW = 2  # that are fixed in one step at least
_RACKS_S = 14.0  # CPU seconds for choosing whole racks
_SHARE = 0.2  # of what is not whole that is fixed in one step
_HOST_UP = 0.1  # a service that the relaxation hosts to this part is hosted
_TINY = 1e-6


@dataclass(kw_only=True)
class _Search:
    """The programme with the survival rows found so far, the best plan and the bound."""

    problem: Problem
    of: transport.Blocks
    model: Model
    program: Program
    until_s: float
    stop: Stop | None
    progress: Progress | None
    lower: Floats  # of all columns
    upper: Floats
    best: Answer
    best_x: Floats | None = None
    bound: float = -INF

    def left_s(self) -> float:
        """Return the CPU seconds left."""
        return self.until_s - time.process_time()

    def over(self) -> bool:
        """Return whether time is up, or somebody asked to stop."""
        return self.left_s() <= 0.0 or (self.stop is not None and self.stop())

    def tell(self) -> None:
        """Report bound and cost."""
        if self.progress is not None:
            self.progress(self.bound, self.best.cost)

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
    model = building.build(problem, building.first_halls(problem))
    lower, upper = model.program.lower.copy(), model.program.upper.copy()
    for at, value in (fix or {}).items():
        lower[model.columns["w"][at]] = upper[model.columns["w"][at]] = float(value)
    search = _Search(
        problem=problem,
        of=transport.blocks(problem),
        model=model,
        program=model.program,
        until_s=began_s + cpu_limit_s,
        stop=stop,
        progress=progress,
        lower=lower,
        upper=upper,
        best=nothing(problem),
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
    """Relax, dive, improve, prove; in that order, each within its share of the time."""

    def closed() -> bool:
        search.tell()
        return search.over() or search.best.cost - search.bound <= gap * abs(search.best.cost)

    lp = Lp(search.program, relaxed=True)
    root = _relax(search, lp, method="ipm")
    if root is None or root.x is None:
        return
    _raise_bound(search, root)
    if closed():
        return
    starts: list[Floats | None] = [None]
    if warm is not None and warm.w.shape == search.model.columns["w"].shape:
        starts.append(warm.w)
    for w in starts:
        dive(search, lp, root.x, w)
        if closed():
            return
    if search.program.whole.any():
        prove(search, min(0.4 * cpu_limit_s, search.left_s()))
        if closed():
            return
        near(search, root.x, search.left_s() - 1.0, gap)
        search.tell()


def _relax(search: _Search, lp: Lp, *, method: str = "simplex", rounds: int = 6) -> Solution | None:
    """Solve what `lp` holds with all survival rows that are missing; they join the programme."""
    found = None
    for turn in range(rounds):
        found = lp.solve(
            method="ipm" if method == "ipm" and turn == 0 else "simplex",
            cpu_limit_s=max(0.1, search.left_s()),
            stop=search.stop,
        )
        if found.x is None or found.state != "optimal":
            return None
        if not _add_halls(search, lp, found.x):
            break
    return found


def _add_halls(search: _Search, lp: Lp | None, x: Floats) -> int:
    """Add the survival rows that a solution breaks; return how many."""
    model = search.model
    short, unserved = np.maximum(0.0, model.value("short_survive", x)), np.maximum(0.0, model.value("unserved", x))
    halls, _ = building.missing_halls(search.problem, building.carried(model, x), unserved, short, tolerance=1e-5)
    if halls:
        least, start, index, value = building.rows_of(model, halls)
        search.program = search.program.with_rows(least, start, index, value)
        if lp is not None:
            lp.add_rows(least, np.full(len(least), INF), start, index, value)
    return len(halls)


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
def dive(search: _Search, lp: Lp, x: Floats, w: Floats | None = None) -> None:
    """Fix phases (as `w` says), then hosting, then racks, a batch at a time with a re-solve after each; keep the plan."""
    lower, upper = search.lower.copy(), search.upper.copy()
    every = np.arange(len(lower))
    columns = search.model.columns["w"]
    chosen = whole_phases(search, np.asarray(x[columns]) if w is None else w)
    lower[columns] = upper[columns] = chosen
    lp.set_bounds(every, lower, upper)
    found = _relax(search, lp)
    hosts = search.numbers("host")
    for _ in range(_STEPS if len(hosts) else 0):
        if found is None or found.x is None or search.over():
            break
        batch, to = _batch(found.x, hosts, lower, upper)
        if not len(batch):
            break
        lower[batch] = upper[batch] = to
        lp.set_bounds(batch, to, to)
        found = _relax(search, lp, rounds=3)
    if found is not None and found.x is not None:
        lower[hosts] = upper[hosts] = np.round(found.x[hosts])
        _whole_racks(search, lp, lower, upper, found.x)
    lp.set_bounds(every, search.lower, search.upper)


def _whole_racks(search: _Search, lp: Lp, lower: Floats, upper: Floats, x: Floats) -> None:
    """Choose whole racks for given phases and hosting, by branch and bound; then all that is divisible once more."""
    racks = search.numbers("buy")
    if len(racks):
        lower[racks] = np.maximum(lower[racks], np.floor(x[racks] + _TINY) - 1.0)
        upper[racks] = np.minimum(upper[racks], np.ceil(x[racks] - _TINY) + 1.0)
        lower[racks] = np.maximum(lower[racks], 0.0)
        cpu_s = min(_RACKS_S, 0.4 * search.left_s())
        found = Lp(replace(search.program, lower=lower, upper=upper)).solve(
            gap=1e-3, cpu_limit_s=cpu_s, stop=search.stop
        )
        if found.x is None:
            return
        lower[racks] = upper[racks] = np.round(found.x[racks])
    lp.set_bounds(np.arange(len(lower)), lower, upper)
    settled_to = _relax(search, lp)
    if settled_to is not None and settled_to.x is not None:
        keep(search, settled_to.x)


def whole_phases(search: _Search, w: Floats, threshold: float = 0.3) -> Floats:
    """Return whole phases in their order: begun where `w` has begun them to a part."""
    columns = search.model.columns["w"]
    low, high = search.lower[columns], search.upper[columns]
    chosen = np.maximum.accumulate(np.clip((w >= threshold).astype(np.float64), low, high), axis=1)
    for _ in range(len(chosen)):
        earlier = chosen.copy()
        for p, before in enumerate(search.problem.phase_after):
            if before >= 0:
                chosen[before] = np.maximum(chosen[before], chosen[p])
        if (earlier == chosen).all():
            break
    return np.asarray(np.minimum(chosen, high))


def _batch(x: Floats, numbers: Ints, lower: Floats, upper: Floats) -> tuple[Ints, Floats]:
    """Return which of the columns `numbers` that are not whole are fixed next, nearest to whole first, and at what.

    A part above `_HOST_UP` is rounded up. What is whole already stays free: a rounding elsewhere may still move it.
    """
    part = x[numbers] - np.floor(x[numbers] + _TINY)
    loose = numbers[(part > 10.0 * _TINY) & (lower[numbers] < upper[numbers] - 0.5)]
    part = x[loose] - np.floor(x[loose])
    to = np.clip(np.floor(x[loose]) + (part > _HOST_UP), lower[loose], upper[loose])
    order = np.argsort(np.abs(x[loose] - to), kind="stable")[: max(_FEW, int(np.ceil(_SHARE * len(loose))))]
    return loose[order], to[order]


def keep(search: _Search, x: Floats) -> None:
    """Settle a solution, and remember the plan if it is the best."""
    get = search.model.value
    host = np.round(get("host", x)) if search.problem.host_min is not None else None
    answer = settled(
        search.problem,
        search.of,
        w=np.round(get("w", x)),
        buy=get("buy", x),
        sign=get("sign", x),
        put=get("put", x),
        host=host,
        method="mid",
    )
    if answer.cost < search.best.cost and _hosts_enough(search.problem, answer):
        search.best, search.best_x = answer, x
        search.tell()


def _hosts_enough(problem: Problem, answer: Answer) -> bool:
    """Return whether each hosted service carries its least, and no more than may come."""
    if problem.host_min is None or answer.host is None:
        return True
    carry = np.einsum("am,samt->smt", problem.rate, answer.put)
    least = problem.host_min[None, :, None] * answer.host
    most = np.einsum("rsm,rmt->smt", problem.allowed.astype(np.float64), problem.demand) * answer.host
    slack = 1e-6 * np.maximum(1.0, carry)
    return bool((carry >= least - slack).all() and (carry <= most + slack).all())


# ---- near it, and below it -----------------------------------------------------------------------------------------------
def near(search: _Search, root: Floats, cpu_s: float, gap: float) -> None:
    """Branch and bound near the plan: fixed where the relaxation agrees with it, racks within one of either."""
    start = search.best_x
    if start is None or cpu_s < 1.0:
        return
    began_s, lower, upper = time.process_time(), search.lower.copy(), search.upper.copy()
    yes_no = np.concatenate([search.numbers("w"), search.numbers("host")])
    agreed = yes_no[np.abs(root[yes_no] - start[yes_no]) < 0.25]
    lower[agreed] = upper[agreed] = np.round(start[agreed])
    racks = search.numbers("buy")
    lower[racks] = np.maximum(lower[racks], np.floor(np.minimum(root[racks], start[racks]) + _TINY))
    upper[racks] = np.minimum(upper[racks], np.ceil(np.maximum(root[racks], start[racks]) - _TINY))
    while search.left_s() > 1.0 and time.process_time() - began_s < cpu_s:
        lp = Lp(replace(search.program, lower=lower, upper=upper))
        found = lp.solve(
            gap=0.3 * gap, cpu_limit_s=cpu_s - (time.process_time() - began_s), start=start, stop=search.stop
        )
        if found.x is None:
            return
        keep(search, found.x)
        if not _add_halls(search, None, found.x) or found.state != "optimal":
            return


def prove(search: _Search, cpu_s: float) -> None:
    """Raise the bound: branch and bound over phases and hosting, racks left divisible."""
    whole: Bools = np.zeros_like(search.program.whole)
    for name in ("w", "host"):
        whole[search.numbers(name)] = True
    if not whole.any() or cpu_s < 1.0:
        return

    def told(bound: float, _: float) -> None:
        if np.isfinite(bound):
            search.bound = max(search.bound, min(bound, search.best.cost) - 1e-6 * abs(bound))

    relaxed = replace(search.program, whole=whole, lower=search.lower, upper=search.upper)
    found = Lp(relaxed).solve(
        gap=1e-3, cpu_limit_s=cpu_s, progress=told, stop=search.stop, options={"mip_heuristic_effort": 0.0}
    )
    told(found.bound, 0.0)
