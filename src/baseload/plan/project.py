"""The large problem with its flows projected out: what each site carries is decided here, what serving then costs is a cut.

The master programme keeps phases, racks, rent and what the sites carry; the flows of a service in a period are replaced by one
column, the cost of serving, which is at least every floor that `transport.py` has proven (Benders' cuts). A floor found in one
period holds in all others with their own costs and demand, so that cuts are shared; the survival rows are Hall rows, found by
largest flows and added when violated. Any duals of the master, exact or not, give a bound that holds for the full problem:
`safe_bound` evaluates them over the columns' bounds. Who is served from where in the answer is `transport.serve`'s choice.

The way through the search is in `large.py` and `mid.py`.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np

from baseload.plan import transport
from baseload.plan.problem import Bools, Floats, Ints, Problem, billed_at_least, spans

Columns = dict[str, Ints]
INF = float("inf")


class Sheet:
    """Columns and rows of a linear programme, taken down as arrays."""

    def __init__(self) -> None:
        """Start empty."""
        self.n_columns = 0
        self.n_rows = 0
        self.families: list[Ints] = []  # rows' numbers as they were added
        self._columns: list[tuple[Floats, Floats, Floats, Bools]] = []
        none, nobody = np.zeros(0), np.zeros(0, dtype=np.int64)
        self._rows: list[tuple[Floats, Floats]] = [(none, none)]
        self._cells: list[tuple[Ints, Ints, Floats]] = [(nobody, nobody, none)]

    def columns(
        self, exists: Bools, cost: Floats | float, lower: Floats | float, upper: Floats | float, whole: bool = False
    ) -> Ints:
        """Add a column wherever `exists`; return their numbers in its shape, -1 elsewhere."""
        number = np.full(exists.shape, -1, dtype=np.int64)
        n = int(exists.sum())
        number[exists] = np.arange(self.n_columns, self.n_columns + n)
        self.n_columns += n
        wide = [
            np.broadcast_to(np.asarray(part, dtype=np.float64), exists.shape)[exists] for part in (cost, lower, upper)
        ]
        self._columns.append((wide[0], wide[1], wide[2], np.full(n, whole)))
        return number

    def rows(self, exists: Bools, lower: Floats | float, upper: Floats | float) -> Ints:
        """Add a row wherever `exists`; return their numbers in its shape, -1 elsewhere."""
        number = np.full(exists.shape, -1, dtype=np.int64)
        n = int(exists.sum())
        number[exists] = np.arange(self.n_rows, self.n_rows + n)
        self.n_rows += n
        wide = [np.broadcast_to(np.asarray(part, dtype=np.float64), exists.shape)[exists] for part in (lower, upper)]
        self._rows.append((wide[0], wide[1]))
        self.families.append(number)
        return number

    def cells(self, row: Ints, column: Ints, value: Floats | float) -> None:
        """Write `value` at (row, column), broadcast against each other; numbers of -1 are left out."""
        rows, columns, values = np.broadcast_arrays(row, column, np.asarray(value, dtype=np.float64))
        keep = (rows >= 0) & (columns >= 0) & (values != 0.0)
        if keep.any():
            self._cells.append((rows[keep], columns[keep], values[keep]))

    def program(self) -> Program:
        """Return the arrays."""
        cost, lower, upper, whole = (np.concatenate([part[i] for part in self._columns]) for i in range(4))
        row_lower, row_upper = (np.concatenate([part[i] for part in self._rows]) for i in range(2))
        row, column, value = (np.concatenate([part[i] for part in self._cells]) for i in range(3))
        return Program(
            cost=cost,
            lower=lower,
            upper=upper,
            whole=whole.astype(bool),
            row_lower=row_lower,
            row_upper=row_upper,
            **_by_row(row, column, value, len(row_lower)),
        )


def _by_row(row: Ints, column: Ints, value: Floats, n_rows: int) -> dict[str, np.ndarray]:
    order = np.argsort(row, kind="stable")
    start = np.zeros(n_rows + 1, dtype=np.int64)
    np.cumsum(np.bincount(row, minlength=n_rows), out=start[1:])
    return {"start": start, "index": column[order], "value": value[order]}


@dataclass(kw_only=True)
class Program:
    """A linear programme by rows: cost over columns within bounds, rows within bounds."""

    cost: Floats
    lower: Floats
    upper: Floats
    whole: Bools
    row_lower: Floats
    row_upper: Floats
    start: Ints
    index: Ints
    value: Floats

    def with_rows(self, lower: Floats, start: Ints, index: Ints, value: Floats) -> Program:
        """Return the programme with rows `>= lower` at its end."""
        return Program(
            cost=self.cost,
            lower=self.lower,
            upper=self.upper,
            whole=self.whole,
            row_lower=np.concatenate([self.row_lower, lower]),
            row_upper=np.concatenate([self.row_upper, np.full(len(lower), INF)]),
            start=np.concatenate([self.start, self.start[-1] + start[1:]]),
            index=np.concatenate([self.index, index]),
            value=np.concatenate([self.value, value]),
        )


@dataclass(kw_only=True)
class Cut:
    """A row `sum of value times column >= lower`."""

    index: Ints
    value: Floats
    lower: float


@dataclass(kw_only=True)
class Master:
    """The projected programme of `problem`, its columns by name, and the cuts found so far."""

    problem: Problem
    of: transport.Blocks
    program: Program
    at: Columns
    multi: Bools  # [M,R] clients with two sites or more: those who must survive a loss
    cuts: list[Cut] = field(default_factory=list)

    def full(self) -> Program:
        """Return the programme with all cuts."""
        if not self.cuts:
            return self.program
        sizes = np.array([len(cut.index) for cut in self.cuts])
        return self.program.with_rows(
            np.array([cut.lower for cut in self.cuts]),
            np.concatenate([[0], np.cumsum(sizes)]),
            np.concatenate([cut.index for cut in self.cuts]),
            np.concatenate([cut.value for cut in self.cuts]),
        )

    def value(self, name: str, x: Floats) -> Floats:
        """Return the columns `name` of a solution, 0 where there is none."""
        number = self.at[name]
        return np.where(number >= 0, x[number], 0.0)


def rented_in(term: int, n_periods: int) -> Floats:
    """Return [t, u]: 1 where what is signed at u is in force at t.

    >>> rented_in(2, 3).tolist()
    [[1.0, 0.0, 0.0], [1.0, 1.0, 0.0], [0.0, 1.0, 1.0]]
    """
    ages = np.arange(n_periods)[:, None] - np.arange(n_periods)[None, :]
    return ((ages >= 0) & (ages < term)).astype(np.float64)


def most_carried(problem: Problem) -> Floats:
    """Return [S,M,T]: the demand that may come to each site; more carry than this serves nobody."""
    most: Floats = np.einsum("rsm,rmt->smt", problem.allowed.astype(np.float64), problem.demand)
    return most


def build(problem: Problem, of: transport.Blocks | None = None) -> Master:
    """Return the projected master of `problem`, with the first floors already in it."""
    of = transport.blocks(problem) if of is None else of
    sheet = Sheet()
    at: Columns = {}
    _columns(problem, sheet, at)
    _rack_rows(problem, sheet, at)
    _power_rows(problem, sheet, at)
    _policy_rows(problem, sheet, at)
    multi = (problem.allowed.sum(axis=1) >= 2).T & (problem.survive_ratio[:, None] > 0.0)
    return Master(problem=problem, of=of, program=sheet.program(), at=at, multi=multi)


def _columns(problem: Problem, sheet: Sheet, at: Columns, projected: bool = True) -> None:
    """Add the columns, those of serving where `projected`.

    Prices of phases: begun at t is w[t] - w[t-1]; energised at t is w[t - delay].
    """
    n_sites, _, n_services, _, n_periods = problem.shape
    period = np.arange(n_periods)
    cost_w = problem.cost_begin - np.pad(problem.cost_begin[:, 1:], ((0, 0), (0, 1)))
    for p, delay in enumerate(problem.phase_delay):
        cost_w[p, : max(0, n_periods - delay)] += problem.cost_live[p, delay:]
    free = np.ones((len(problem.phases), n_periods), bool)
    begun = (period >= problem.begin_by[:, None]).astype(np.float64)
    may_begin = (period >= problem.begin_from[:, None]).astype(np.float64)
    at["w"] = sheet.columns(free, cost_w, begun, may_begin, whole=True)
    arrives = problem.may_place[:, :, None] & (period + problem.lead[:, None] < n_periods)
    whole = np.broadcast_to(problem.whole[:, :, None], arrives.shape)
    at["buy"] = np.full(arrives.shape, -1, dtype=np.int64)
    for is_whole in (False, True):
        chosen = arrives & (whole == is_whole)
        most_bought = np.floor(problem.supply + 1e-9) if is_whole else problem.supply
        found = sheet.columns(chosen, problem.cost_buy, 0.0, most_bought[None], whole=is_whole)
        at["buy"] = np.where(chosen, found, at["buy"])
    here = problem.may_place[:, :, None] | (problem.existing > 0.0)
    at["own"] = sheet.columns(here, problem.cost_owned, 0.0, INF)
    may_rent = problem.may_place[:, :, None, None] & (problem.sign_max > 0.0)[..., None]
    may_rent = np.broadcast_to(may_rent, (*may_rent.shape[:3], n_periods))
    at["sign"] = sheet.columns(may_rent, problem.cost_sign, 0.0, problem.sign_max[..., None])
    at["rent"] = at["sign"].copy()
    long = may_rent & (problem.term > 1)[:, None]
    at["rent"] = np.where(long, sheet.columns(long, 0.0, 0.0, problem.sign_max[..., None]), at["rent"])
    most = most_carried(problem)
    there: Bools = np.asarray(here | may_rent.any(axis=2))
    works: Bools = there[:, :, None, :] & (problem.rate > 0.0)[None, :, :, None] & (most > 0.0)[:, None]
    carries: Bools = np.asarray(works.any(axis=1))
    with np.errstate(divide="ignore", invalid="ignore"):
        most_put = np.where(works, most[:, None] / problem.rate[None, :, :, None], 0.0)
    at["put"] = sheet.columns(works, problem.cost_put, 0.0, most_put)
    at["carry"] = sheet.columns(carries, 0.0, 0.0, most)
    at["billed"] = sheet.columns(
        np.ones((n_sites, n_periods), bool), problem.cost_billed, billed_at_least(problem), INF
    )
    if problem.cost_used is not None:
        at["used"] = sheet.columns(problem.cost_used > 0.0, problem.cost_used, 0.0, INF)
    each = np.ones((n_services, n_periods), bool)
    if projected:
        at["serving"] = sheet.columns(each, 1.0, -INF, INF)
        at["unserved"] = sheet.columns(each, 0.0, 0.0, problem.demand.sum(axis=0))
    shapes: dict[str, tuple[int, ...]] = {}
    shapes |= {"short_power": (n_sites, n_periods), "short_floor": (n_sites, n_periods), "short_survive": each.shape}
    shapes |= {"over_share": (len(problem.groups), n_periods)}
    shapes |= {name: (n_periods,) for name in ("over_capex", "over_carbon", "over_water")}
    for name, shape in shapes.items():
        price = np.broadcast_to(problem.slack_price.get(name, np.float64(INF)), shape)
        at[name] = sheet.columns(np.isfinite(price), price, 0.0, INF)
    if problem.host_min is not None:
        at["host"] = sheet.columns(carries, problem.cost_host, 0.0, 1.0, whole=True)


def _rack_rows(problem: Problem, sheet: Sheet, at: Columns) -> None:
    """Add what there is of racks: owned and rented ones, put to work, and what they carry."""
    n_periods = len(problem.periods)
    own, rent = at["own"], at["rent"]
    change = np.diff(problem.existing, axis=2, prepend=0.0)
    row = sheet.rows(own >= 0, change, change)
    sheet.cells(row, own, 1.0)
    sheet.cells(row[:, :, 1:], own[:, :, :-1], -1.0)
    for a, (lead, life) in enumerate(zip(problem.lead, problem.life, strict=True)):
        if lead < n_periods:
            sheet.cells(row[:, a, lead:], at["buy"][:, a, : n_periods - lead], -1.0)
        if lead + life < n_periods:
            sheet.cells(row[:, a, lead + life :], at["buy"][:, a, : n_periods - lead - life], 1.0)
    long = (rent >= 0) & (rent != at["sign"])
    row = sheet.rows(long, 0.0, 0.0)
    sheet.cells(row, rent, 1.0)
    sheet.cells(row[..., 1:], rent[..., :-1], -1.0)
    sheet.cells(row, at["sign"], -1.0)
    for k, term in enumerate(problem.term):
        if 0 < term < n_periods:
            sheet.cells(row[:, :, k, term:], at["sign"][:, :, k, : n_periods - term], 1.0)
    used: Bools = np.asarray((at["put"] >= 0).any(axis=2))
    row = sheet.rows(used, -INF, 0.0)
    sheet.cells(row[:, :, None], at["put"], 1.0)
    sheet.cells(row, own, -1.0)
    sheet.cells(row[:, :, None], rent, -problem.useful[:, None])
    row = sheet.rows(at["carry"] >= 0, 0.0, 0.0)
    sheet.cells(row, at["carry"], 1.0)
    sheet.cells(row[:, None], at["put"], -problem.rate[None, :, :, None])
    if problem.host_min is not None:
        most = most_carried(problem)
        row = sheet.rows(at["host"] >= 0, -INF, 0.0)
        sheet.cells(row, at["carry"], 1.0)
        sheet.cells(row, at["host"], -most)
        row = sheet.rows(at["host"] >= 0, 0.0, INF)
        sheet.cells(row, at["carry"], 1.0)
        sheet.cells(row, at["host"], -problem.host_min[:, None])


def _power_rows(problem: Problem, sheet: Sheet, at: Columns) -> None:
    """Add power and its bill, floor, and the order of phases."""
    n_sites, n_periods = len(problem.sites), len(problem.periods)
    each = np.ones((n_sites, n_periods), bool)
    site_rent = np.where(problem.on_site[:, None], at["rent"], -1)

    def draws(row: Ints, factor: float, late: int = 0) -> None:
        """Write the draw of `late` periods ago into `row`."""
        end = n_periods - late
        weight = problem.rack_mw[:, :, None] * factor
        sheet.cells(row[:, None, late:], at["own"][:, :, :end], weight)
        sheet.cells(row[:, None, None, late:], site_rent[:, :, :, :end], weight[:, :, None])

    def phases(row: Ints, factor: Floats, mw: Floats = problem.phase_mw) -> None:
        """Write minus the phases' power, or another number of `mw`, into `row`."""
        for p, (s, delay) in enumerate(zip(problem.phase_site, problem.phase_delay, strict=True)):
            if delay < n_periods:
                sheet.cells(row[s, delay:], at["w"][p, : n_periods - delay], -factor[s] * mw[p])

    row = sheet.rows(each, -INF, problem.power_mw)
    draws(row, 1.0)
    phases(row, np.ones(n_sites))
    sheet.cells(row, at["short_power"], -1.0)
    at["power row"] = row
    row = sheet.rows(each, -INF, 0.0)
    draws(row, 1.0)
    sheet.cells(row, at["billed"], -1.0)
    for late in range(1, min(4, n_periods)):
        row = sheet.rows(each & (problem.ratchet > 0.0)[:, None] & (np.arange(n_periods) >= late), -INF, 0.0)
        end = n_periods - late
        weight = (problem.rack_mw * problem.ratchet[:, None])[:, :, None]
        sheet.cells(row[:, None, late:], at["own"][:, :, :end], weight)
        sheet.cells(row[:, None, None, late:], site_rent[:, :, :, :end], weight[:, :, None])
        sheet.cells(row, at["billed"], -1.0)
    least = problem.minimum_bill[:, None]
    row = sheet.rows(each & (least > 0.0), least * problem.power_mw, INF)
    sheet.cells(row, at["billed"], 1.0)
    phases(row, problem.minimum_bill)
    if problem.phase_paid is not None:
        row = sheet.rows(at["used"] >= 0, -INF, problem.power_mw)
        draws(row, 1.0)
        phases(row, np.ones(n_sites), problem.phase_paid)
        sheet.cells(row, at["used"], -1.0)
    row = sheet.rows(np.isfinite(problem.floor_m2), -INF, problem.floor_m2)
    sheet.cells(row[:, None], at["own"], problem.rack_m2[:, None])
    sheet.cells(row[:, None, None], site_rent, problem.rack_m2[:, None, None])
    sheet.cells(row, at["short_floor"], -1.0)
    at["floor row"] = row
    w = at["w"]
    if len(w):
        row = sheet.rows(np.ones((len(w), n_periods - 1), bool), 0.0, INF)
        sheet.cells(row, w[:, 1:], 1.0)
        sheet.cells(row, w[:, :-1], -1.0)
        row = sheet.rows(np.repeat((problem.phase_after >= 0)[:, None], n_periods, axis=1), 0.0, INF)
        sheet.cells(row, w[problem.phase_after], 1.0)
        sheet.cells(row, w, -1.0)


def _policy_rows(problem: Problem, sheet: Sheet, at: Columns) -> None:
    """Add supply, shares and budgets."""
    buy, own, rent = at["buy"], at["own"], at["rent"]
    row = sheet.rows(np.isfinite(problem.supply), -INF, problem.supply)
    sheet.cells(row, buy, 1.0)
    at["supply row"] = row
    if len(problem.limits):
        row = sheet.rows(np.isfinite(problem.shared), -INF, problem.shared)
        sheet.cells(row[:, None, None], buy[None], problem.shared_use[:, None, :, None])
        at["shared row"] = row
    for g, most in enumerate(problem.share_max):
        row = sheet.rows(np.ones(len(problem.periods), bool), -INF, 0.0)
        weight = (problem.rack_mw * (problem.group_of[g] - most))[:, :, None]
        sheet.cells(row, own, weight)
        sheet.cells(row, rent, weight[:, :, None])
        sheet.cells(row, at["over_share"][g], -1.0)
        at[f"share {g} row"] = row
    span, spend = spans(problem), problem.spend_begin
    spend_w = spend - np.pad(
        spend[:, 1:], ((0, 0), (0, 1))
    )  # w[t] costs what is begun at t, less what is not begun at t + 1
    row = sheet.rows(np.isfinite(problem.capex_budget), -INF, problem.capex_budget)
    for late in range(int(span.max(initial=1))):
        end, of = len(span) - late, np.where(span > late, row, -1)[late:]
        sheet.cells(of, buy[..., :end], problem.spend_buy[..., :end])
        sheet.cells(of, at["w"][:, :end], (spend_w if late else spend)[:, :end])
    first = np.arange(len(span)) - span  # the last period before those that count
    of = np.where(first >= 0, row, -1)
    sheet.cells(of, at["w"][:, first], -spend[:, np.minimum(first + 1, len(span) - 1)])
    sheet.cells(row, at["over_capex"], -1.0)
    at["over_capex row"] = row
    for name, budget, owned, put in (
        ("over_carbon", problem.carbon_budget, problem.carbon_owned, problem.carbon_put),
        ("over_water", problem.water_budget, problem.water_owned, problem.water_put),
    ):
        row = sheet.rows(np.isfinite(budget), -INF, budget)
        for late in range(int(span.max(initial=1))):
            end, of = len(span) - late, np.where(span > late, row, -1)[late:]
            sheet.cells(of, own[..., :end], owned[..., :end])
            sheet.cells(of, at["put"][..., :end], put[..., :end])
        sheet.cells(row, at[name], -1.0)
        at[f"{name} row"] = row


def add_floors(master: Master, price: Floats, service: Ints, period: Ints) -> None:
    """Add the floor on the cost of serving that each row of `price` [n,S] proves for its (service, period)."""
    for m in np.unique(service):
        rows = np.flatnonzero(service == m)
        constant, per_unserved = transport.floor_of(master.of, int(m), period[rows], price[rows])
        for i, row in enumerate(rows):
            t = period[row]
            columns = np.concatenate(
                [[master.at["serving"][m, t], master.at["unserved"][m, t]], master.at["carry"][:, m, t]]
            )
            values = np.concatenate([[1.0, -per_unserved[i]], price[row]])
            keep = (columns >= 0) & (values != 0.0)
            master.cuts.append(Cut(index=columns[keep], value=values[keep], lower=float(constant[i])))


def add_survival(master: Master, lost: int, m: int, t: int, clients: Bools, sites: Bools) -> None:
    """Add a Hall row: what `clients` need when site `lost` is gone is carried by `sites`, or short."""
    ratio = master.problem.survive_ratio[m]
    at = master.at
    need = ratio * float(master.of.demand[m, t, clients].sum())
    columns = np.concatenate([[at["short_survive"][m, t], at["unserved"][m, t]], at["carry"][sites, m, t]])
    values = np.concatenate([[1.0, ratio], np.ones(int(sites.sum()))])
    keep = columns >= 0
    master.cuts.append(Cut(index=columns[keep], value=values[keep], lower=need))
