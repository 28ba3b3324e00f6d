"""Large problems whose whole decisions are the grid phases: one relaxation, then phases chosen by cuts on their worth.

The whole programme is relaxed once, by an interior point without crossover: its duals, evaluated anew over the columns' bounds,
are the bound. For given phases the same programme is solved again; that gives a plan, and prices which say at least what any
other choice of phases would cost (a cut on the phases, Benders 1962). A small programme over the phases alone, with all cuts
found so far, then names the next choice, and what it must cost at least. Survival rows found missing join in on the way.
A plan is settled from its decisions (`settle.py`), so that neither bound nor plan asks for trust in tolerances.
"""

from __future__ import annotations

import time
from dataclasses import dataclass, field, replace

import numpy as np

from baseload.plan import build as building
from baseload.plan import transport
from baseload.plan.build import Model
from baseload.plan.highs import INF, Lp, Progress, Solution, Stop
from baseload.plan.nothing import nothing
from baseload.plan.problem import Answer, Floats, Problem, Status
from baseload.plan.project import Program, Sheet
from baseload.plan.proof import priced, upper_bounds
from baseload.plan.settle import settled

_THRESHOLD = 0.2  # phases begun to this part in the relaxation are begun: power is a small part of what a plan costs
_NEAR = 0.1  # a survival row that has less to spare than this joins too when another period breaks it
_TOLERANCE = 1e-6  # of the interior point; bounds and plans are recomputed, so that more would buy nothing


@dataclass(frozen=True, kw_only=True)
class _Cut:
    """Any plan with phases w costs at least constant + sum of slope times w."""

    constant: float
    slope: Floats  # [P,T]


@dataclass(kw_only=True)
class _Search:
    """The programme with all rows found so far, the cuts on the phases, the best plan."""

    problem: Problem
    of: transport.Blocks
    model: Model
    program: Program
    until_s: float
    stop: Stop | None
    lower: Floats  # [P,T]
    upper: Floats
    best: Answer
    bound: float = -INF
    cuts: list[_Cut] = field(default_factory=list)
    known: set[tuple[int, int, bytes, int]] = field(
        default_factory=set
    )  # survival rows (lost, service, clients, period)
    solve_s: float = 0.0  # CPU seconds of the last solve

    def over(self) -> bool:
        """Return whether time is up, or somebody asked to stop."""
        return time.process_time() >= self.until_s or (self.stop is not None and self.stop())

    def keep(self, answer: Answer) -> None:
        """Remember a plan if it is the best."""
        if answer.cost < self.best.cost:
            self.best = answer


def solve_large(
    problem: Problem,
    *,
    gap: float = 0.01,
    cpu_limit_s: float = 120.0,
    progress: Progress | None = None,
    stop: Stop | None = None,
    warm: Answer | None = None,
    fix: dict[tuple[int, int], int] | None = None,
) -> Answer:
    """Return the best plan within `gap`, or the best found; the arguments are those of `solve.solve`.

    With every phase fixed (`fix`), or the phases of `warm`, it is one solve: the second stage of a risk study.
    """
    if problem.host_min is not None or problem.whole.any():
        raise ValueError("phases alone may be whole here")
    began_s = time.process_time()
    search = begin(problem, until_s=began_s + cpu_limit_s, stop=stop, fix=fix)
    if warm is not None and warm.w.shape == search.lower.shape:
        visit(search, np.clip(warm.w, search.lower, search.upper))
    _search(search, gap, progress)
    bound = min(search.bound, search.best.cost)
    status: Status = "stopped"
    if search.best.cost - bound <= gap * abs(search.best.cost):
        status = "within_gap"
    elif stop is not None and stop():
        status = "interrupted"
    spent_s = time.process_time() - began_s
    return replace(search.best, bound=bound, status=status, method="large", cpu_s=spent_s)


def begin(problem: Problem, *, until_s: float, stop: Stop | None, fix: dict[tuple[int, int], int] | None) -> _Search:
    """Return the search before anything is solved: the programme with its first survival rows."""
    model = building.build(problem, building.first_halls(problem))
    w = model.columns["w"]
    lower, upper = model.program.lower[w].copy(), model.program.upper[w].copy()
    for at, value in (fix or {}).items():
        lower[at] = upper[at] = float(value)
    return _Search(
        problem=problem,
        of=transport.blocks(problem),
        model=model,
        program=model.program,
        until_s=until_s,
        stop=stop,
        lower=lower,
        upper=upper,
        best=nothing(problem, fix),
    )


def _search(search: _Search, gap: float, progress: Progress | None) -> None:
    """Relax, round, then visit what the cuts name, until the gap is closed or time is up."""

    def closed() -> bool:
        if progress is not None:
            progress(search.bound, search.best.cost)
        return search.best.cost - search.bound <= gap * abs(search.best.cost)

    relaxed = relax(search)
    if relaxed is None or closed():
        return
    if (
        time.process_time() + 2.5 * search.solve_s < search.until_s
    ):  # once more, with the survival rows that were missing
        again = relax(search)
        relaxed = relaxed if again is None else again
        if again is None or closed():
            return
    tried = set()
    chosen = _rounded(search, relaxed)
    while not search.over() and chosen.tobytes() not in tried:
        if time.process_time() + 0.9 * search.solve_s > search.until_s:
            break
        tried.add(chosen.tobytes())
        visit(search, chosen)
        if closed():
            break
        chosen, at_least = _next(search)
        search.bound = max(search.bound, min(at_least, search.best.cost))
        if closed():
            break


def relax(search: _Search) -> Floats | None:
    """Solve the relaxation; return its phases, and set the bound. Missing survival rows join for what follows."""
    found = _solve(search, search.lower, search.upper)
    if found is None:
        return None
    return search.model.value("w", found)


def visit(search: _Search, w: Floats) -> None:
    """Solve for the phases `w`, keep the plan, and add the cut that its prices are."""
    found = _solve(search, w, w)
    if found is None:
        return
    get = search.model.value
    search.keep(
        settled(
            search.problem,
            search.of,
            w=w,
            buy=get("buy", found),
            sign=get("sign", found),
            put=get("put", found),
            method="large",
        )
    )


def _solve(search: _Search, lower: Floats, upper: Floats) -> Floats | None:
    """Solve with phases within bounds; add the cut on the phases and the survival rows that are missing."""
    began_s = time.process_time()
    number = search.model.columns["w"].ravel()
    lp = Lp(search.program, relaxed=True)
    lp.set_bounds(number, lower.ravel(), upper.ravel())
    found = lp.solve(
        method="ipm",
        crossover=False,
        cpu_limit_s=max(0.1, search.until_s - began_s),
        stop=search.stop,
        options={"ipm_optimality_tolerance": _TOLERANCE},
    )
    if found.row_dual is None or found.x is None or found.state != "optimal":
        return None
    _add_cut(search, found)
    _add_halls(search, found.x)
    search.solve_s = time.process_time() - began_s
    return found.x


def _add_cut(search: _Search, found: Solution) -> None:
    """Add what the prices of a solve say of all phases; the bound rises to its least."""
    assert found.row_dual is not None
    program, number = search.program, search.model.columns["w"]
    upper = upper_bounds(search.model, search.best.cost)
    total, reduced, ends = priced(program, found.row_dual, program.lower, upper)
    ends[number.ravel()] = 0.0  # the phases' part is the slope
    constant = total + float(ends.sum())
    if not np.isfinite(constant):
        return
    cut = _Cut(constant=constant, slope=reduced[number])
    search.cuts.append(cut)
    least = constant + float(np.minimum(cut.slope * search.lower, cut.slope * search.upper).sum())
    search.bound = max(search.bound, least)


def _add_halls(search: _Search, x: Floats) -> None:
    """Add the survival rows that a solution breaks, in all periods in which it comes near to breaking them."""
    model, problem = search.model, search.problem
    short, unserved = np.maximum(0.0, model.value("short_survive", x)), np.maximum(0.0, model.value("unserved", x))
    carry = building.carried(model, x)
    halls, _ = building.missing_halls(problem, carry, unserved, short, tolerance=1e-4)
    new = []
    for hall in halls:
        name = (hall.lost, hall.m, hall.clients.tobytes())
        need = problem.survive_ratio[hall.m] * problem.demand[hall.clients, hall.m].sum(axis=0)
        there = carry[hall.sites, hall.m].sum(axis=0) + short[hall.m]
        for t in np.flatnonzero(there < (1.0 + _NEAR) * need):
            if (*name, int(t)) not in search.known:
                search.known.add((*name, int(t)))
                new.append(replace(hall, t=int(t)))
    if new:
        least, start, index, value = building.rows_of(model, new)
        search.program = search.program.with_rows(least, start, index, value)


def _rounded(search: _Search, w: Floats) -> Floats:
    """Return whole phases: begun where the relaxation has begun them to a part, in their order and within bounds."""
    chosen = np.clip((w >= _THRESHOLD).astype(np.float64), search.lower, search.upper)
    chosen = np.maximum.accumulate(chosen, axis=1)
    for _ in range(len(chosen)):  # what comes before is begun too
        earlier = chosen.copy()
        for p, before in enumerate(search.problem.phase_after):
            if before >= 0:
                chosen[before] = np.maximum(chosen[before], chosen[p])
        if (earlier == chosen).all():
            break
    return np.minimum(chosen, search.upper)


def _next(search: _Search) -> tuple[Floats, float]:
    """Return the whole phases that the cuts think best, and what any plan costs at least by them."""
    problem, sheet = search.problem, Sheet()
    n_phases, n_periods = search.lower.shape
    w = sheet.columns(np.ones((n_phases, n_periods), bool), 0.0, search.lower, search.upper, whole=True)
    cost = sheet.columns(np.ones(1, bool), 1.0, search.bound, INF)
    rows = sheet.rows(np.ones((n_phases, n_periods - 1), bool), 0.0, INF)
    sheet.cells(rows, w[:, 1:], 1.0)
    sheet.cells(rows, w[:, :-1], -1.0)
    rows = sheet.rows(np.repeat((problem.phase_after >= 0)[:, None], n_periods, axis=1), 0.0, INF)
    sheet.cells(rows, w[problem.phase_after], 1.0)
    sheet.cells(rows, w, -1.0)
    rows = sheet.rows(np.ones(len(search.cuts), bool), np.array([cut.constant for cut in search.cuts]), INF)
    sheet.cells(rows, cost, 1.0)
    for row, cut in zip(rows, search.cuts, strict=True):
        sheet.cells(np.array(row), w, -cut.slope)
    found = Lp(sheet.program()).solve(gap=1e-4, cpu_limit_s=3.0, stop=search.stop)
    if found.x is None:
        return search.best.w, found.bound
    return np.round(found.x[w]), found.bound
