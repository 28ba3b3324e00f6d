"""The whole planning problem as one programme: every row of `problem.py`, flows included, in arrays for `highs.py`.

The columns and rows that the projected master of `project.py` has too are made there; here come the flows, who is left
unserved, and the Hall rows of survival. `answer_of` reads decisions from a solution; its slacks are what is truly missing.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Protocol

import numpy as np

from baseload.plan import project, transport
from baseload.plan.problem import SLACKS, Answer, Bools, Floats, Ints, Problem, Status
from baseload.plan.project import INF, Columns, Program, Sheet


@dataclass(frozen=True, kw_only=True)
class Hall:
    """When site `lost` is gone, what `clients` need of a service in a period is carried by `sites`, or short."""

    lost: int
    m: int
    t: int
    clients: Bools  # [R]
    sites: Bools  # [S]


@dataclass(frozen=True, kw_only=True)
class Model:
    """The programme of a problem, with its columns and rows by name (numbers in the variable's shape, -1 where none)."""

    problem: Problem
    program: Program
    columns: Columns
    rows: Columns
    families: tuple[Ints, ...] = ()  # numbers of all rows but those of survival, in the order in which they are made

    def value(self, name: str, x: Floats) -> Floats:
        """Return a variable of a solution, 0 where it has no column."""
        number = self.columns[name]
        return np.where(number >= 0, x[number], 0.0) if number.size else np.zeros(number.shape)


def build(problem: Problem, halls: Iterable[Hall] = ()) -> Model:
    """Return the programme of `problem` with the survival rows `halls`."""
    sheet = Sheet()
    at: Columns = {}
    project._columns(problem, sheet, at, projected=False)
    _flow_columns(problem, sheet, at)
    rows = _flow_rows(problem, sheet, at)
    project._rack_rows(problem, sheet, at)
    project._power_rows(problem, sheet, at)
    project._policy_rows(problem, sheet, at)
    families = tuple(sheet.families)
    columns = {name: number for name, number in at.items() if not name.endswith(" row")}
    rows |= {name.removesuffix(" row"): number for name, number in at.items() if name.endswith(" row")}
    model = Model(problem=problem, program=sheet.program(), columns=columns, rows=rows, families=families)
    return _with_rows(model, *rows_of(model, halls))


def carried_over(was: Model, halls: Sequence[Hall], now: Model, halls_now: Sequence[Hall]) -> tuple[Ints, Ints]:
    """Return (columns, rows) of one programme by those of another of the same shapes, -1 where it had none.

    Columns are the same by name and place, rows by what they are of; survival rows by service, period and sites.
    """
    columns = np.full(len(now.program.cost), -1, dtype=np.int64)
    for name, number in now.columns.items():
        columns[number[number >= 0]] = was.columns[name][number >= 0]
    first, first_now = first_hall_row(was), first_hall_row(now)
    rows = np.full(first_now + len(halls_now), -1, dtype=np.int64)
    for old, new in zip(was.families, now.families, strict=True):
        rows[new[new >= 0]] = old[new >= 0]
    known = {(hall.m, hall.t, hall.sites.tobytes()): first + i for i, hall in enumerate(halls)}
    for i, hall in enumerate(halls_now):
        rows[first_now + i] = known.get((hall.m, hall.t, hall.sites.tobytes()), -1)
    return columns, rows


def first_hall_row(model: Model) -> int:
    """Return how many rows there are before those of survival."""
    return 1 + max(int(number.max(initial=-1)) for number in model.families)


def _flow_columns(problem: Problem, sheet: Sheet, at: Columns) -> None:
    """Add who is served from where, and who is not."""
    asked = problem.demand > 0.0
    goes = problem.allowed[..., None] & asked[:, None] & (at["carry"] >= 0)[None]
    at["flow"] = sheet.columns(goes, problem.cost_flow, 0.0, INF)
    at["unserved"] = sheet.columns(asked, problem.cost_unserved, 0.0, problem.demand)


def _flow_rows(problem: Problem, sheet: Sheet, at: Columns) -> Columns:
    """Add that all demand is served or not, within what sites carry; return the rows by name."""
    serve = sheet.rows(problem.demand > 0.0, problem.demand, problem.demand)
    sheet.cells(serve[:, None], at["flow"], 1.0)
    sheet.cells(serve, at["unserved"], 1.0)
    carry = sheet.rows(at["carry"] >= 0, -INF, 0.0)
    sheet.cells(carry[None], at["flow"], 1.0)
    sheet.cells(carry, at["carry"], -1.0)
    return {"serve": serve, "carry": carry}


def first_halls(problem: Problem) -> list[Hall]:
    """Return the survival rows to begin with: all clients of a service that have two sites or more, each site lost."""
    found = []
    for m in np.flatnonzero(problem.survive_ratio > 0.0):
        clients = problem.allowed[:, :, m].sum(axis=1) >= 2
        if not clients.any():
            continue
        reach = problem.allowed[clients][:, :, m].any(axis=0)
        for k in np.flatnonzero(reach):
            sites = reach.copy()
            sites[k] = False
            for t in range(len(problem.periods)):
                needs = clients & (problem.demand[:, m, t] > 0.0)
                found.append(Hall(lost=int(k), m=int(m), t=t, clients=needs, sites=sites))
    return found


def missing_halls(
    problem: Problem, carry: Floats, unserved: Floats, short: Floats, tolerance: float = 1e-7
) -> tuple[list[Hall], Floats]:
    """Return the survival rows that an answer breaks by more than `short` [M,T], and what is truly short [M,T].

    `carry` is [S,M,T], `unserved` [R,M,T]. The rows are the tightest cuts of largest flows, so that none is missed.
    """
    n_sites, _, n_services, _, n_periods = problem.shape
    truly = np.zeros((n_services, n_periods))
    found: list[Hall] = []
    if not (problem.survive_ratio > 0.0).any():
        return found, truly
    multi = problem.allowed.sum(axis=1) >= 2  # [R,M]
    need = problem.survive_ratio[None, :, None] * (problem.demand - unserved) * multi[:, :, None]
    need_mtr = np.ascontiguousarray(np.maximum(need, 0.0).transpose(1, 2, 0))
    carry_mts = np.ascontiguousarray(carry.transpose(1, 2, 0))
    of = transport.blocks(problem)
    scale = np.maximum(1.0, need_mtr.sum(axis=2))
    for k in range(n_sites):
        if not (problem.allowed[:, k].any(axis=0) & (problem.survive_ratio > 0.0)).any():
            continue
        missing, clients, sites = transport.shortfalls(of, carry_mts, need_mtr, k)
        truly = np.maximum(truly, missing)
        for m, t in np.argwhere(missing > short + tolerance * scale):
            # the row speaks of all clients that have no way round these sites, needed or not today
            found.append(Hall(lost=k, m=int(m), t=int(t), clients=clients[m, t], sites=sites[m, t]))
    return found, truly


class _Grows(Protocol):
    """A solver that takes more rows."""

    def add_rows(self, lower: Floats, upper: Floats, start: Ints, index: Ints, value: Floats) -> None:
        """Add rows at the end."""


def add_halls(model: Model, lp: _Grows, halls: list[Hall]) -> Model:
    """Add survival rows to what a solver holds; return the model with them."""
    if not halls:
        return model
    least, start, index, value = rows_of(model, halls)
    lp.add_rows(least, np.full(len(least), INF), start, index, value)
    return _with_rows(model, least, start, index, value)


def _with_rows(model: Model, least: Floats, start: Ints, index: Ints, value: Floats) -> Model:
    return replace(model, program=model.program.with_rows(least, start, index, value)) if len(least) else model


def broken(model: Model, x: Floats, tolerance: float = 1e-7) -> list[Hall]:
    """Return the survival rows that a solution breaks."""
    short, unserved = np.maximum(0.0, model.value("short_survive", x)), model.value("unserved", x)
    return missing_halls(model.problem, carried(model, x), unserved, short, tolerance)[0]


def add_broken(model: Model, lp: _Grows, x: Floats) -> tuple[Model, list[Hall]]:
    """Add the survival rows that a solution breaks; return the model with them, and them (none: the solution stands)."""
    halls = broken(model, x)
    return add_halls(model, lp, halls), halls


def lawful(problem: Problem, halls: Iterable[Hall]) -> list[Hall]:
    """Return survival rows that hold under a problem's law: of the same sites, with the clients that have no way round them.

    They are as many and in the same order; one that speaks of nobody any longer asks for nothing.
    """
    every = list(halls)
    if not every:
        return []
    lost, m, t = _places(every)
    outside = ~np.array([hall.sites for hall in every])
    outside[np.arange(len(every)), lost] = False
    allowed = problem.allowed.transpose(2, 0, 1)  # [M,R,S]
    clients = (
        ~(allowed[m] & outside[:, None]).any(axis=2) & (allowed.sum(axis=2) >= 2)[m] & (problem.demand > 0.0)[:, m, t].T
    )
    return [
        Hall(lost=hall.lost, m=hall.m, t=hall.t, clients=clients[i], sites=hall.sites) for i, hall in enumerate(every)
    ]


def _places(halls: Sequence[Hall]) -> tuple[Ints, Ints, Ints]:
    """Return the lost sites, services and periods of survival rows."""
    found = np.array([(hall.lost, hall.m, hall.t) for hall in halls], dtype=np.int64)
    return found[:, 0], found[:, 1], found[:, 2]


def all_of(halls: list[Hall], more: Iterable[Hall]) -> list[Hall]:
    """Return survival rows with those of others that speak of other sites, services or periods."""
    found = {(hall.m, hall.t, hall.sites.tobytes()) for hall in halls}
    return halls + [hall for hall in more if (hall.m, hall.t, hall.sites.tobytes()) not in found]


def in_all_periods(problem: Problem, halls: Iterable[Hall]) -> list[Hall]:
    """Return survival rows as they hold in every period: what one period breaks, others often do too."""
    sets = {(hall.lost, hall.m, hall.sites.tobytes()): hall for hall in halls}
    every = [
        Hall(lost=hall.lost, m=hall.m, t=t, clients=hall.clients, sites=hall.sites)
        for hall in sets.values()
        for t in range(len(problem.periods))
    ]
    return [hall for hall in lawful(problem, every) if hall.clients.any()]


def rows_of(model: Model, halls: Iterable[Hall]) -> tuple[Floats, Ints, Ints, Floats]:
    """Return (least, start, column, value) of survival rows, to be added to a programme that is held already."""
    every, problem, at = list(halls), model.problem, model.columns
    if not every:
        return np.zeros(0), np.zeros(1, dtype=np.int64), np.zeros(0, dtype=np.int64), np.zeros(0)
    _, m, t = _places(every)
    clients, ratio = np.array([hall.clients for hall in every]), problem.survive_ratio[m]
    column = np.concatenate(
        [at["short_survive"][m, t][:, None], at["unserved"][:, m, t].T, at["carry"][:, m, t].T], axis=1
    )
    value = np.ones(column.shape)
    value[:, 1 : 1 + clients.shape[1]] = ratio[:, None]
    keep = np.concatenate([np.ones((len(every), 1), bool), clients, np.array([hall.sites for hall in every])], axis=1)
    keep &= (column >= 0) & (value != 0.0)
    start = np.concatenate([[0], np.cumsum(keep.sum(axis=1))]).astype(np.int64)
    least = ratio * (clients * problem.demand[:, m, t].T).sum(axis=1)
    return least, start, column[keep], value[keep]


def carried(model: Model, x: Floats) -> Floats:
    """Return [S,M,T]: what the working racks of a solution carry."""
    carry: Floats = np.einsum("am,samt->smt", model.problem.rate, np.maximum(0.0, model.value("put", x)))
    return carry


def true_cost(model: Model, x: Floats, short: Floats) -> float:
    """Return the cost of a solution with `short` [M,T] for what cannot survive; inf where that has no price."""
    price = np.broadcast_to(model.problem.slack_price.get("short_survive", np.float64(INF)), short.shape)
    said = model.value("short_survive", x)
    if (~np.isfinite(price) & (short > 1e-6)).any():
        return INF
    more = np.where(np.isfinite(price), price, 0.0) * (short - said)
    return float(model.program.cost @ x + more.sum())


def answer_of(model: Model, x: Floats, *, bound: float, status: Status, method: str, cpu_s: float) -> Answer:
    """Return the answer that a solution of the whole programme is; what cannot survive is recomputed from the decisions."""
    get: dict[str, Floats] = {name: np.maximum(0.0, model.value(name, x)) for name in model.columns}
    problem = model.problem
    _, short = missing_halls(problem, carried(model, x), get["unserved"], np.zeros(problem.demand.shape[1:]))
    slack = {name: get[name] for name in SLACKS} | {"short_survive": short}
    whole = problem.whole[:, :, None]
    return Answer(
        w=_rounded(get["w"]),
        buy=np.where(whole, _rounded(get["buy"]), get["buy"]),
        sign=get["sign"],
        put=get["put"],
        host=_rounded(get["host"]) if problem.host_min is not None else None,
        flow=get["flow"],
        unserved=get["unserved"],
        billed=get["billed"],
        used=get.get("used"),
        slack=slack,
        cost=true_cost(model, x, short),
        bound=bound,
        status=status,
        method=method,
        cpu_s=cpu_s,
    )


def _rounded(values: Floats) -> Floats:
    return np.round(values).astype(np.float64) + 0.0  # no minus nought
