"""Why a request cannot be met: the smallest set of named demands and limits that contradict each other, and what would end it.

"Met" means that everybody is served and no limit is exceeded. The programme is solved for the least that must be missed; prices
of that solution name the demands and limits that take part, and each of them is given up in turn: where the rest is still
impossible it was not needed (deletion filter: Chinneck and Dravnieks 1991). What is left cannot be made smaller. Phases and
racks count as divisible here: what is impossible so is impossible in whole numbers too.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace

import numpy as np

from baseload.plan import build as building
from baseload.plan.build import Hall, Model
from baseload.plan.highs import INF, Lp, Solution, moved_basis
from baseload.plan.problem import SLACKS, Floats, Ints, Problem
from baseload.plan.project import Program

_ROUNDS = 40
_MOST_PARTS = 40  # demands by client that are tried one by one
_MOST_SIDES = 8  # of a conflict that a person reads
_BOUNDED = ("rent", "supply", "shared supply")  # limits that are bounds and rows, without a slack
_NOTHING = 1e-7  # less than this, relative to the whole, is not missed
_WORST = 3  # periods that are looked at alone
_MANY_COLUMNS = 80_000  # from here on, that all can be met is seen sooner by first-order steps
_NEAR = 1e-5  # rows count as kept, relative to their size, in that quick look
_QUICK_ROUNDS = 8
_QUICK = {"pdlp_optimality_tolerance": 1e-7, "pdlp_iteration_limit": 5000}


@dataclass(frozen=True, kw_only=True)
class Side:
    """One demand or limit of a conflict, and how far it alone would have to give way for the rest to be possible."""

    kind: str  # serve, survive, power, floor, share, capex, carbon, water, supply, shared supply, rent
    who: str  # client and service, site, group ...
    periods: tuple[str, ...]  # those in which it is in the way
    gives: float | None  # in its unit, at its worst period; None where giving way alone is not enough
    unit: str

    def __str__(self) -> str:
        when = self.periods[0] if len(self.periods) == 1 else f"{self.periods[0]} to {self.periods[-1]}"
        enough = f"; {self.gives:.4g} {self.unit} less would do" if self.gives is not None else ""
        return f"{self.kind}: {self.who} ({when}){enough}"


@dataclass(frozen=True, kw_only=True)
class Conflict:
    """The smallest conflict found; `proven` says that none of its sides can be left out.

    There may be others: `together` is the least, by size, that demands and limits have to give way until none is left, in the
    periods that were looked at. A conflict without sides says that time was over before it was known whether there is one.
    """

    sides: tuple[Side, ...]
    proven: bool
    cpu_s: float
    together: tuple[Side, ...] = ()


@dataclass(frozen=True, kw_only=True)
class _Group:
    """The columns that miss one demand or exceed one limit (a supply limit's are the rows)."""

    kind: str
    who: str
    unit: str
    columns: Ints  # slack columns, or buy and rent columns whose upper bound is the limit
    periods: Ints  # of each column
    rows: Ints  # rows that are the limit themselves
    row_periods: Ints


def find(problem: Problem, *, cpu_limit_s: float = 30.0, stop: Callable[[], bool] | None = None) -> Conflict | None:
    """Return the smallest conflict of a request, or None where everything can be met (in divisible phases and racks).

    The period of the largest demand is looked at alone first, then that with the fewest racks for its demand, then the others
    join the first one by one, each from where the last look ended; once they contradict each other, those in which most is
    missed are looked at alone: where the demand of one is impossible by itself, the others need no look. Demands are taken by
    service, and by client where few are left. A limit whose slack has a price of inf cannot give way: it is kept, and no side.
    """
    began_s = time.process_time()
    until_s = began_s + cpu_limit_s
    order = [int(t) for t in np.argsort(-problem.demand.sum(axis=(0, 1)), kind="stable")]
    begun = search = _alone(problem, order[0], until_s, stop)
    least, tight = search.least(), _tightest(problem)
    if least <= _NOTHING and tight != order[0]:
        search = _alone(problem, tight, until_s, stop)
        least = search.least()
    if least <= _NOTHING:
        search = _Search(problem, until_s, stop, building.all_of(begun.halls, search.halls))
        if len(search.cost) > _MANY_COLUMNS and search.can_be_met():
            return None
        search.begin_from(begun)
        for t in order[1:]:
            least = search.ask([t])
            if least > _NOTHING:
                break
        else:
            return None
        if least < INF:
            search = _smaller(search, t, order)
    if least == INF or search.last is None:
        return Conflict(sides=(), proven=False, cpu_s=time.process_time() - began_s)
    together = search.together()
    members, proven = search.smallest()
    if proven:
        members, proven = search.by_client(members)
    sides = tuple(search.side(group) for group in members)
    return Conflict(sides=sides, proven=proven, cpu_s=time.process_time() - began_s, together=together)


def _alone(problem: Problem, t: int, until_s: float, stop: Callable[[], bool] | None) -> _Search:
    """Return the search for a conflict with the demand of one period alone."""
    return _Search(_only(problem, [t]), until_s, stop)


def _tightest(problem: Problem) -> int:
    """Return the period with the fewest racks for its demand: those that are there, may have come by then, may be rented."""
    n_periods = len(problem.periods)
    racks = problem.existing.sum(axis=0) + np.minimum(problem.sign_max, 1e9).sum(axis=(0, 2))[:, None]
    for a, (lead, life) in enumerate(zip(problem.lead, problem.life, strict=True)):
        come = np.concatenate([[0.0], np.cumsum(np.minimum(problem.supply[a], 1e9))])
        t = np.arange(n_periods)
        racks[a] += come[np.maximum(0, t + 1 - lead)] - come[np.maximum(0, t + 1 - lead - life)]
    work = np.maximum(1e-9, problem.rate.max(axis=1) @ racks)
    return int(np.argmax(problem.demand.sum(axis=(0, 1)) / work))


def _only(problem: Problem, periods: list[int]) -> Problem:
    """Return the problem with the demand of some periods alone."""
    alone = np.zeros_like(problem.demand)
    alone[:, :, periods] = problem.demand[:, :, periods]
    return replace(problem, demand=alone)


def _smaller(search: _Search, t: int, order: list[int]) -> _Search:
    """Return the search for a conflict in one period, where there is one; `t` is the last that joined, `order` are all."""
    tried = [t]
    for at in tried:
        of_period = _alone(search.model.problem, at, search.until_s, search.stop)
        if _NOTHING < of_period.least() < INF:
            return of_period
        if len(tried) == 1 and search.ask(order) < INF:
            tried += [other for other in search.worst_periods() if other != t][: _WORST - 1]
    return search


class _Search:
    """The programme of least misses, which periods have joined it, and which demands and limits still count."""

    def __init__(
        self, problem: Problem, until_s: float, stop: Callable[[], bool] | None, halls: Sequence[Hall] = ()
    ) -> None:
        """Build it, all periods joined, with survival rows that one of them needed, in all of them."""
        self.until_s, self.stop = until_s, stop
        bare = _bare(problem)
        self.halls: list[Hall] = building.first_halls(bare)
        known = {_name(hall) for hall in self.halls}
        self.halls += [hall for hall in building.in_all_periods(bare, halls) if _name(hall) not in known]
        self.model = building.build(bare, self.halls)
        self.first_row = building.first_hall_row(self.model)
        self.lp = Lp(self.model.program, relaxed=True)
        self.groups, self.clients = _groups(self.model)
        self.cost = self.model.program.cost.copy()
        self.last: Solution | None = None
        self.asked = set(np.flatnonzero(problem.demand.any(axis=(0, 1))).tolist())

    def begin_from(self, begun: _Search) -> None:
        """Let only those periods join that another search has asked for, and begin where it ended."""
        off = sorted(self.asked - begun.asked)
        serve = self.model.rows["serve"][..., off]
        serve = serve[serve >= 0]
        self.lp.set_rows(serve, np.zeros(len(serve)), np.zeros(len(serve)))
        self.asked = set(begun.asked)
        self._loosen(range(len(self.halls)))
        basis = begun.lp.basis()
        if basis is not None:
            places = building.carried_over(begun.model, begun.halls, self.model, self.halls)
            self.lp.set_basis(moved_basis(basis, *places))

    def _loosen(self, numbers: Iterable[int]) -> None:
        """Ask for no survival in periods that have not joined."""
        rows = np.array([self.first_row + i for i in numbers if self.halls[i].t not in self.asked], dtype=np.int64)
        self.lp.set_rows(rows, np.full(len(rows), -INF), np.full(len(rows), INF))

    def ask(self, periods: list[int]) -> float:
        """Let periods join; return the least that must be missed."""
        program, new = self.model.program, set(periods) - self.asked
        serve = self.model.rows["serve"][..., sorted(new)]
        halls = np.array([self.first_row + i for i, hall in enumerate(self.halls) if hall.t in new], dtype=np.int64)
        for rows in (serve[serve >= 0], halls):
            self.lp.set_rows(rows, program.row_lower[rows], program.row_upper[rows])
        self.asked |= new
        return self._solve()

    def _solve(self, *, anew: bool = False) -> float:
        """Return the least that must be missed, all losses of a site looked at; inf where time was over."""
        for turn in range(_ROUNDS):
            found = self.lp.solve(
                method="ipm" if anew and turn == 0 else "choose",
                cpu_limit_s=max(0.05, self.until_s - time.process_time()),
                stop=self.stop,
            )
            if found.state != "optimal" or found.x is None:
                return INF
            self.last = found
            if found.cost > _NOTHING or not self._more_rows(found.x, 1e-7):
                return found.cost
        return found.cost

    def can_be_met(self) -> bool:
        """Return whether a quick look finds a way to meet everything; where it does not, nothing is known.

        First-order steps (Applegate et al. 2021, in HiGHS) reach such a point of a large programme before a vertex is found.
        """
        for _ in range(_QUICK_ROUNDS):
            if time.process_time() > self.until_s or (self.stop is not None and self.stop()):
                return False
            found = self.lp.solve(method="pdlp", options=dict(_QUICK))
            if found.state != "optimal" or found.x is None:
                return False
            program = self.model.program
            x = np.clip(found.x, program.lower, program.upper)
            if float(program.cost @ x) > _NOTHING or not _keeps(program, x):
                return False
            if not self._more_rows(x, _NEAR):
                return True
        return False

    def _more_rows(self, x: Floats, tolerance: float) -> bool:
        """Add the survival rows that a solution breaks, in all periods; return whether there were any to add."""
        problem = self.model.problem
        known = {_name(hall) for hall in self.halls}
        seen = replace(self.model, problem=_only(problem, sorted(self.asked)))
        halls = building.in_all_periods(problem, building.broken(seen, x, tolerance))
        more = [hall for hall in halls if _name(hall) not in known]
        self.model = building.add_halls(self.model, self.lp, more)
        self.halls += more
        self._loosen(range(len(self.halls) - len(more), len(self.halls)))
        return bool(more)

    def least(self) -> float:
        """Return the least that must be missed, as a share; inf where time was over."""
        return self._solve(anew=True)

    def together(self) -> tuple[Side, ...]:
        """Return what is missed in the last solution, by demand and limit."""
        assert self.last is not None and self.last.x is not None
        found = []
        for group in self.groups:
            missed = self.last.x[group.columns] if group.kind not in _BOUNDED else np.zeros(0)
            if missed.max(initial=0.0) > 1e-6:
                found.append(self._named(group, group.periods[missed > 1e-6], float(missed.max())))
        return tuple(found)

    def worst_periods(self) -> list[int]:
        """Return the periods in which the last solution misses something, the worst first."""
        assert self.last is not None and self.last.x is not None
        missed = np.zeros(len(self.model.problem.periods))
        for group in self.groups:
            if group.kind not in _BOUNDED:
                np.add.at(missed, group.periods, self.last.x[group.columns] * self.cost[group.columns])
        return [int(t) for t in np.argsort(-missed, kind="stable") if missed[t] > 0.0]

    def by_client(self, members: list[_Group]) -> tuple[list[_Group], bool]:
        """Return a conflict with its demands by client, where that leaves few; else as it is."""
        parts = [part for group in members for part in self.clients.get(group.who, ()) if group.kind == "serve"]
        rest = [group for group in members if group.kind != "serve"]
        if len(parts) > _MOST_PARTS:
            return members, True
        self._solve()
        kept, proven = self._filter(parts + rest)
        if proven and len(kept) <= _MOST_SIDES:
            return kept, True
        self._hold(members)
        return members, True

    def smallest(self) -> tuple[list[_Group], bool]:
        """Return a conflict that cannot be made smaller, and whether that was shown to the end."""
        kept = list(self.groups)
        taking_part = {id(group) for group in kept if self._takes_part(group)}
        unlikely = [group for group in kept if id(group) not in taking_part]
        self._give_up(unlikely)
        if self._solve() > _NOTHING:
            kept = [group for group in kept if id(group) in taking_part]
        else:
            self._hold(unlikely)
            self._solve()
        return self._filter(kept)

    def _filter(self, kept: list[_Group]) -> tuple[list[_Group], bool]:
        """Return what is left of an impossible set when all that it can do without is given up, and whether all was tried."""
        proven = True
        for part in _halves(kept):
            if time.process_time() > self.until_s or (self.stop is not None and self.stop()):
                proven = False
                break
            part = [group for group in part if group in kept]
            if not part or len(part) == len(kept) == 1:
                continue
            self._give_up(part)
            least = self._solve()
            if least == INF:
                proven = False
                self._hold(part)
                break
            if least > _NOTHING:
                kept = [group for group in kept if group not in part]
            else:
                self._hold(part)
        return kept, proven

    def _takes_part(self, group: _Group) -> bool:
        """Return whether the last solution's prices speak of a group."""
        assert self.last is not None
        reduced, dual = self.last.reduced_cost, self.last.row_dual
        if reduced is None or dual is None:
            return True
        if group.kind in _BOUNDED:
            at_bound = (reduced[group.columns] < -1e-9).any()
            return bool(at_bound or (np.abs(dual[group.rows]) > 1e-9).any())
        return bool((reduced[group.columns] < self.cost[group.columns] - 1e-9).any())

    def _give_up(self, groups: list[_Group]) -> None:
        """Ask for these no longer."""
        for group in groups:
            n = len(group.columns)
            if group.kind in _BOUNDED:
                self.lp.set_bounds(group.columns, np.zeros(n), np.full(n, INF))
            else:
                self.lp.set_costs(group.columns, np.zeros(n))
            self.lp.set_rows(group.rows, np.full(len(group.rows), -INF), np.full(len(group.rows), INF))

    def _hold(self, groups: list[_Group]) -> None:
        """Ask for these again."""
        program = self.model.program
        for group in groups:
            if group.kind in _BOUNDED:
                self.lp.set_bounds(group.columns, program.lower[group.columns], program.upper[group.columns])
            else:
                self.lp.set_costs(group.columns, self.cost[group.columns])
            self.lp.set_rows(group.rows, program.row_lower[group.rows], program.row_upper[group.rows])

    def side(self, group: _Group) -> Side:
        """Return a group in words' parts: when it is in the way, and by how much it would have to give way alone."""
        self._give_up([group])
        if group.kind in _BOUNDED:
            periods, gives = np.unique(np.concatenate([group.periods, group.row_periods])), None
        else:
            self.lp.set_costs(group.columns, np.full(len(group.columns), 1e-6))
            done = self._solve() < INF
            assert self.last is not None and self.last.x is not None
            missed = self.last.x[group.columns]
            periods, gives = group.periods[missed > 1e-9], float(missed.max(initial=0.0)) if done else None
        self._hold([group])
        return self._named(group, periods, gives)

    def _named(self, group: _Group, periods: Ints, gives: float | None) -> Side:
        names = self.model.problem.periods
        shown = tuple(names[t] for t in np.unique(periods)) or names
        return Side(kind=group.kind, who=group.who, periods=shown, gives=gives, unit=group.unit)


def _name(hall: Hall) -> tuple[int, int, int, bytes]:
    return hall.lost, hall.m, hall.t, hall.sites.tobytes()


def _keeps(program: Program, x: Floats) -> bool:
    """Return whether a point keeps the rows of a programme, relative to their size."""
    row = np.repeat(np.arange(len(program.row_lower)), np.diff(program.start))
    made = np.bincount(row, weights=program.value * x[program.index], minlength=len(program.row_lower))
    size = np.bincount(row, weights=np.abs(program.value * x[program.index]), minlength=len(program.row_lower))
    near = _NEAR * np.maximum(1.0, size)
    return bool(((made >= program.row_lower - near) & (made <= program.row_upper + near)).all())


def _halves(groups: list[_Group]) -> list[list[_Group]]:
    """Return sets of groups to give up, large ones first: all but few take part in no conflict."""
    n = len(groups)
    sets, size = [], n // 2
    while size > 1:
        sets += [groups[i : i + size] for i in range(0, n, size)]
        size //= 3
    return sets + [[group] for group in groups]


def _bare(problem: Problem) -> Problem:
    """Return the problem with a price on what is missed alone, each in shares of a size that suits it; inf stays inf."""
    total = float(max(1e-9, problem.demand.sum() / max(1, len(problem.periods))))
    mw = float(max(1e-9, problem.power_mw.max(initial=0.0) + problem.phase_mw.sum()))
    finite = [
        budget[np.isfinite(budget)] for budget in (problem.capex_budget, problem.carbon_budget, problem.water_budget)
    ]
    sizes = [float(max(1.0, np.abs(part).max(initial=1.0))) for part in finite]
    unit = {"short_power": mw, "short_floor": 1e3, "short_survive": total, "over_share": mw}
    unit |= {"over_capex": sizes[0], "over_carbon": sizes[1], "over_water": sizes[2]}
    zero = {
        name: np.zeros_like(getattr(problem, name))
        for name in ("cost_begin", "cost_live", "cost_buy", "cost_owned", "cost_sign", "cost_put", "cost_flow")
    }
    return replace(
        problem,
        **zero,
        cost_unserved=np.full_like(problem.cost_unserved, 1.0 / total),
        cost_billed=np.zeros_like(problem.cost_billed),
        cost_host=np.zeros_like(problem.cost_host),
        ratchet=np.zeros_like(problem.ratchet),
        minimum_bill=np.zeros_like(problem.minimum_bill),
        billed_least=None,
        cost_used=None,
        phase_paid=None,
        slack_price={
            name: np.where(np.isinf(problem.slack_price.get(name, np.zeros(()))), INF, 1.0 / unit[name])
            for name in SLACKS
        },
        host_min=None,
    )


def _groups(model: Model) -> tuple[list[_Group], dict[str, list[_Group]]]:
    """Return all demands and limits by name, and the demands of each service by client."""
    problem, columns, rows = model.problem, model.columns, model.rows
    every, none = np.arange(len(problem.periods)), np.full(len(problem.periods), -1, dtype=np.int64)
    found: list[_Group] = []

    def group(kind: str, who: str, unit: str, column: Ints, row: Ints = none) -> _Group:
        t, row_t = np.broadcast_to(every, column.shape), np.broadcast_to(every, row.shape)
        return _Group(
            kind=kind,
            who=who,
            unit=unit,
            columns=column[column >= 0],
            periods=t[column >= 0],
            rows=row[row >= 0],
            row_periods=row_t[row >= 0],
        )

    clients = {}
    for m, service in enumerate(problem.services):
        found.append(group("serve", service, "requests/s", columns["unserved"][:, m]))
        parts = [
            group("serve", f"{client}, {service}", "requests/s", columns["unserved"][r, m])
            for r, client in enumerate(problem.clients)
        ]
        clients[service] = [part for part in parts if len(part.columns)]
        found.append(group("survive the loss of a site", service, "requests/s", columns["short_survive"][m]))
    for s, site in enumerate(problem.sites):
        found.append(group("power", site, "MW", columns["short_power"][s]))
        found.append(group("floor", site, "m2", columns["short_floor"][s]))
        term = columns["rent"][s] != columns["sign"][s]  # elsewhere what is in force is what is signed
        in_force = np.where(term, columns["rent"][s], -1)
        found.append(group("rent", site, "racks", np.concatenate([columns["sign"][s], in_force])))
    for g, name in enumerate(problem.groups):
        found.append(group("share", name, "MW", columns["over_share"][g]))
    for name, unit in (("capex", "money"), ("carbon", "t"), ("water", "m3")):
        found.append(group(f"{name} budget", "fleet", unit, columns[f"over_{name}"]))
    for a, kind in enumerate(problem.kinds):
        found.append(group("supply", kind, "racks", columns["buy"][:, a], rows["supply"][a]))
    for i, limit in enumerate(problem.limits):
        found.append(group("shared supply", limit, "units", none, rows["shared"][i]))
    return [one for one in found if len(one.columns) or len(one.rows)], clients
