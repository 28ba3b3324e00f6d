"""An answer checked against the problem's own words: every row of `problem.py`, and the cost, from the decisions alone.

Nothing here comes from the builder or a solver: plain definitions over the arrays, and a largest flow of our own for the loss
of a site. A plan that passes here is a plan, whoever made it.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from baseload.jit import kernel
from baseload.plan.problem import SLACKS, Answer, Bools, Floats, Ints, Problem


@dataclass(frozen=True, kw_only=True)
class Violation:
    """A row that an answer breaks: its kind, where, and by how much in its own unit."""

    kind: str
    where: tuple[str, ...]
    by: float

    def __str__(self) -> str:
        return f"{self.kind} at {', '.join(self.where)}: broken by {self.by:.6g}"


@dataclass(frozen=True, kw_only=True)
class Derived:
    """What follows from the decisions, as the problem defines it."""

    live: Floats  # [P,T]
    owned: Floats  # [S,A,T]
    rented: Floats  # [S,A,K,T]
    usable: Floats  # [S,A,T]
    carry: Floats  # [S,M,T]
    draw_mw: Floats  # [S,T]
    grid_mw: Floats  # [S,T]


def derived(problem: Problem, answer: Answer) -> Derived:
    """Return what follows from the decisions of an answer."""
    n_periods = len(problem.periods)
    live = np.zeros_like(answer.w)
    for p, delay in enumerate(problem.phase_delay):
        for t in range(int(delay), n_periods):
            live[p, t] = answer.w[p, t - int(delay)]
    owned, rented = problem.existing.astype(np.float64).copy(), np.zeros_like(answer.sign)
    for t in range(n_periods):
        for u in range(t + 1):
            here = (u + problem.lead <= t) & (t < u + problem.lead + problem.life)
            owned[:, :, t] += np.where(here[None, :], answer.buy[:, :, u], 0.0)
            held = u > t - problem.term
            rented[:, :, :, t] += np.where(held[None, None, :], answer.sign[:, :, :, u], 0.0)
    usable = owned + np.einsum("k,sakt->sat", problem.useful, rented)
    carry = np.einsum("am,samt->smt", problem.rate, answer.put)
    on_site = rented[:, :, problem.on_site, :].sum(axis=2)
    draw_mw = np.einsum("sa,sat->st", problem.rack_mw, owned + on_site)
    grid_mw = problem.power_mw.astype(np.float64).copy()
    for p, s in enumerate(problem.phase_site):
        grid_mw[s] += problem.phase_mw[p] * live[p]
    return Derived(live=live, owned=owned, rented=rented, usable=usable, carry=carry, draw_mw=draw_mw, grid_mw=grid_mw)


# ---- what the loss of a site leaves unserved ---------------------------------------------------------------------------
@kernel
def largest_flow(
    need: Floats, room: Floats, allowed: Bools, flow: Floats, from_client: Ints, from_site: Ints, queue: Ints
) -> float:
    """Return the largest flow from clients [R] with `need` to sites [S] with `room` where `allowed` [R,S]; both are consumed.

    `flow` [R,S] comes zeroed; `from_client` [S], `from_site` [R] and `queue` [R] are room to work in. Shortest augmenting
    paths over clients and sites (Edmonds and Karp 1972).
    """
    n_clients, n_sites = allowed.shape
    total = 0.0
    tiny = 1e-12
    for r in range(n_clients):
        tiny += 1e-12 * need[r]
    for r in range(n_clients):  # straight ways first: the paths below then only mend what these have taken from others
        for s in range(n_sites):
            if allowed[r, s]:
                step = min(need[r], room[s])
                need[r] -= step
                room[s] -= step
                flow[r, s] = step
                total += step
    while True:
        for s in range(n_sites):
            from_client[s] = -1
        head, tail = 0, 0
        for r in range(n_clients):
            from_site[r] = -2
            if need[r] > tiny:
                from_site[r] = -1
                queue[tail] = r
                tail += 1
        end = -1
        while head < tail and end < 0:
            r = queue[head]
            head += 1
            for s in range(n_sites):
                if allowed[r, s] and from_client[s] < 0:
                    from_client[s] = r
                    if room[s] > tiny:
                        end = s
                        break
                    for q in range(n_clients):
                        if from_site[q] == -2 and flow[q, s] > tiny:
                            from_site[q] = s
                            queue[tail] = q
                            tail += 1
        if end < 0:
            return total
        step = room[end]
        s = end
        while True:
            r = from_client[s]
            if from_site[r] == -1:
                step = min(step, need[r])
                break
            s = from_site[r]
            step = min(step, flow[r, s])
        room[end] -= step
        total += step
        s = end
        while True:
            r = from_client[s]
            flow[r, s] += step
            if from_site[r] == -1:
                need[r] -= step
                break
            s = from_site[r]
            flow[r, s] -= step


def _most(need: Floats, room: Floats, allowed: Bools) -> float:
    n_clients, n_sites = allowed.shape
    flow, path = np.zeros((n_clients, n_sites)), np.empty((3, max(n_clients, n_sites)), dtype=np.int64)
    return float(
        largest_flow(need.copy(), room, allowed, flow, path[0, :n_sites], path[1, :n_clients], path[2, :n_clients])
    )


def cannot_survive(problem: Problem, carry: Floats, unserved: Floats) -> Floats:
    """Return [M,T]: what the worst loss of one site leaves unserved of what is to survive it (units of work a second)."""
    n_sites, _, n_services, _, n_periods = problem.shape
    short = np.zeros((n_services, n_periods))
    for m in np.flatnonzero(problem.survive_ratio > 0.0):
        allowed: Bools = problem.allowed[:, :, m]
        clients = np.flatnonzero(allowed.sum(axis=1) >= 2)
        for t in range(n_periods):
            need = problem.survive_ratio[m] * np.maximum(0.0, problem.demand[clients, m, t] - unserved[clients, m, t])
            for k in range(n_sites):
                room = np.maximum(0.0, carry[:, m, t])
                room[k] = 0.0
                left = allowed[clients].copy()
                left[:, k] = False
                served = _most(need, room, left) if len(clients) else 0.0
                short[m, t] = max(short[m, t], float(need.sum()) - served)
    return np.where(short < 1e-9, 0.0, short)


# ---- rows ------------------------------------------------------------------------------------------------------------
class _Report:
    """Violations so far."""

    def __init__(self, problem: Problem, tolerance: float) -> None:
        self.found: list[Violation] = []
        self.tolerance = tolerance
        self.names = {
            "S": problem.sites,
            "A": problem.kinds,
            "M": problem.services,
            "R": problem.clients,
            "T": problem.periods,
            "P": problem.phases,
            "K": problem.rentals,
            "L": problem.limits,
            "G": problem.groups,
        }

    def at_most(self, kind: str, axes: str, left: Floats, right: Floats | float) -> None:
        """Note where `left` exceeds `right`, relative to the size of both."""
        wide = np.broadcast_to(right, left.shape)
        by = np.where(np.isposinf(wide), -1.0, left - np.where(np.isfinite(wide), wide, 0.0))
        allowed = self.tolerance * np.maximum(1.0, np.where(np.isfinite(wide), np.abs(wide), 0.0))
        self.note(kind, axes, by, allowed)

    def equal(self, kind: str, axes: str, left: Floats, right: Floats | float) -> None:
        """Note where both differ."""
        wide = np.broadcast_to(right, left.shape)
        self.note(kind, axes, np.abs(left - wide), self.tolerance * np.maximum(1.0, np.abs(wide)))

    def note(self, kind: str, axes: str, by: Floats, allowed: Floats) -> None:
        """Note where `by` exceeds `allowed`, or is not a number."""
        for index in np.argwhere(~(by <= allowed)):
            where = tuple(self.names[axis][i] for axis, i in zip(axes, index, strict=True))
            self.found.append(Violation(kind=kind, where=where, by=float(by[tuple(index)])))


def check(problem: Problem, answer: Answer, tol: float = 1e-6) -> list[Violation]:
    """Return every row that an answer breaks by more than `tol` (relative to the row's size); empty where it is a plan."""
    report = _Report(problem, tol)
    of = derived(problem, answer)
    _decisions(problem, answer, report)
    _serving(problem, answer, of, report)
    _sites(problem, answer, of, report)
    _policies(problem, answer, of, report)
    said = recompute_cost(problem, answer).total
    report.equal("cost", "", np.array(answer.cost), said)
    report.at_most("bound", "", np.array(answer.bound), said)
    return report.found


def _decisions(problem: Problem, answer: Answer, report: _Report) -> None:
    """Signs, whole numbers, phases in order, what may be bought and rented where and how much."""
    periods = np.arange(len(problem.periods))
    for name, axes in (
        ("w", "PT"),
        ("buy", "SAT"),
        ("sign", "SAKT"),
        ("put", "SAMT"),
        ("flow", "RSMT"),
        ("unserved", "RMT"),
    ):
        report.at_most(f"{name} is not negative", axes, -getattr(answer, name), 0.0)
    report.at_most("billed is not negative", "ST", -answer.billed, 0.0)
    for name, axes in zip(SLACKS, ("ST", "ST", "MT", "GT", "T", "T", "T"), strict=True):
        report.at_most(f"{name} is not negative", axes, -answer.slack[name], 0.0)
    report.equal("w is 0 or 1", "PT", answer.w, np.round(answer.w))
    report.at_most("w is 0 or 1", "PT", answer.w, 1.0)
    report.at_most("a phase that is begun stays begun", "PT", answer.w[:, :-1], answer.w[:, 1:])
    early = periods[None, :] < problem.begin_from[:, None]
    report.at_most("begin_from", "PT", np.where(early, answer.w, 0.0), 0.0)
    late = periods[None, :] >= problem.begin_by[:, None]
    report.at_most("begin_by", "PT", np.where(late, 1.0 - answer.w, 0.0), 0.0)
    for p, before in enumerate(problem.phase_after):
        if before >= 0:
            report.at_most(f"{problem.phases[p]} after {problem.phases[before]}", "T", answer.w[p], answer.w[before])
    whole = np.where(problem.whole[:, :, None], np.abs(answer.buy - np.round(answer.buy)), 0.0)
    report.at_most("whole racks", "SAT", whole, 0.0)
    report.at_most("may_place: bought", "SAT", np.where(problem.may_place[:, :, None], 0.0, answer.buy), 0.0)
    report.at_most("may_place: rented", "SAKT", np.where(problem.may_place[:, :, None, None], 0.0, answer.sign), 0.0)
    report.at_most("supply", "AT", answer.buy.sum(axis=0), problem.supply)
    report.at_most("shared supply", "LT", np.einsum("la,sat->lt", problem.shared_use, answer.buy), problem.shared)


def _serving(problem: Problem, answer: Answer, of: Derived, report: _Report) -> None:
    """Demand, carry, racks at work, hosting, survival."""
    report.equal("serve", "RMT", answer.flow.sum(axis=1) + answer.unserved, problem.demand)
    report.at_most("allowed", "RSMT", np.where(problem.allowed[..., None], 0.0, answer.flow), 0.0)
    report.at_most("carry", "SMT", answer.flow.sum(axis=0), of.carry)
    report.at_most("racks", "SAT", answer.put.sum(axis=2), of.usable)
    if problem.host_min is not None:
        assert answer.host is not None
        report.equal("host is 0 or 1", "SMT", answer.host, np.round(answer.host))
        report.at_most("host is 0 or 1", "SMT", answer.host, 1.0)
        may_come = np.einsum("rsm,rmt->smt", problem.allowed.astype(np.float64), problem.demand)
        report.at_most("host: most", "SMT", of.carry, may_come * answer.host)
        report.at_most("host: least", "SMT", problem.host_min[None, :, None] * answer.host, of.carry)
    short = cannot_survive(problem, of.carry, answer.unserved)
    report.at_most("survive", "MT", short, answer.slack["short_survive"])


def _sites(problem: Problem, answer: Answer, of: Derived, report: _Report) -> None:
    """Power, floor, the billed peak, rent in force."""
    report.at_most("power", "ST", of.draw_mw, of.grid_mw + answer.slack["short_power"])
    on_site = of.owned + of.rented[:, :, problem.on_site, :].sum(axis=2)
    used_m2 = np.einsum("a,sat->st", problem.rack_m2, on_site)
    report.at_most("floor", "ST", used_m2, problem.floor_m2 + answer.slack["short_floor"])
    report.at_most("billed: draw", "ST", of.draw_mw, answer.billed)
    for t in range(len(problem.periods)):
        for u in range(max(0, t - 3), t):
            owed = problem.ratchet * of.draw_mw[:, u]
            report.at_most(f"billed: ratchet in {problem.periods[t]}", "S", owed, answer.billed[:, t])
    report.at_most("billed: minimum", "ST", problem.minimum_bill[:, None] * of.grid_mw, answer.billed)
    if problem.billed_least is not None:
        report.at_most("billed: contracts", "ST", problem.billed_least, answer.billed)
    if problem.cost_used is not None and problem.phase_paid is not None:
        used = np.zeros_like(of.draw_mw) if answer.used is None else answer.used
        report.at_most("used is not negative", "ST", -used, 0.0)
        for s, name in enumerate(problem.sites):
            here = problem.phase_site == s
            free = problem.power_mw[s] + problem.phase_paid[here] @ of.live[here] + used[s]
            report.at_most(f"used: {name}", "T", np.where(problem.cost_used[s] > 0.0, of.draw_mw[s], 0.0), free)
    report.at_most("sign_max", "SAKT", of.rented, problem.sign_max[..., None])


def _policies(problem: Problem, answer: Answer, of: Derived, report: _Report) -> None:
    """Shares and budgets."""
    held_mw = problem.rack_mw[:, :, None] * (of.owned + of.rented.sum(axis=2))
    for g, name in enumerate(problem.groups):
        part = np.where(problem.group_of[g][:, :, None], held_mw, 0.0).sum(axis=(0, 1))
        most = problem.share_max[g] * held_mw.sum(axis=(0, 1)) + answer.slack["over_share"][g]
        report.at_most(f"share of {name}", "T", part, most)
    begun = np.diff(answer.w, axis=1, prepend=0.0)
    spent = (problem.spend_buy * answer.buy).sum(axis=(0, 1)) + (problem.spend_begin * begun).sum(axis=0)
    years = np.ones(len(spent), np.int64) if problem.budget_span is None else problem.budget_span

    def counted(used: Floats) -> Floats:
        return np.array([used[max(0, t + 1 - int(n)) : t + 1].sum() for t, n in enumerate(years)])

    report.at_most("capex budget", "T", counted(spent), problem.capex_budget + answer.slack["over_capex"])
    for name, budget, per_owned, per_put in (
        ("carbon", problem.carbon_budget, problem.carbon_owned, problem.carbon_put),
        ("water", problem.water_budget, problem.water_owned, problem.water_put),
    ):
        used = (per_owned * of.owned).sum(axis=(0, 1)) + (per_put * answer.put).sum(axis=(0, 1, 2))
        report.at_most(f"{name} budget", "T", counted(used), budget + answer.slack[f"over_{name}"])


# ---- cost ------------------------------------------------------------------------------------------------------------
@dataclass(frozen=True, kw_only=True)
class Cost:
    """The cost of an answer by part, present value."""

    parts: dict[str, float]

    @property
    def total(self) -> float:
        """Return the sum of the parts."""
        return float(sum(self.parts.values()))


def recompute_cost(problem: Problem, answer: Answer) -> Cost:
    """Return what an answer costs, from its decisions and the problem's prices."""
    of = derived(problem, answer)
    begun = np.diff(answer.w, axis=1, prepend=0.0)
    parts = {
        "grid phases": float((problem.cost_begin * begun).sum() + (problem.cost_live * of.live).sum()),
        "racks bought": float((problem.cost_buy * answer.buy).sum()),
        "racks held": float((problem.cost_owned * of.owned).sum()),
        "rent": float((problem.cost_sign * answer.sign).sum()),
        "work": float((problem.cost_put * answer.put).sum()),
        "network": float((problem.cost_flow * answer.flow).sum()),
        "demand charge": float((problem.cost_billed * answer.billed).sum()),
        "unserved": float((problem.cost_unserved * answer.unserved).sum()),
    }
    if problem.cost_used is not None and answer.used is not None:
        parts["power by its use"] = float((problem.cost_used * answer.used).sum())
    if answer.host is not None:
        parts["hosting"] = float((problem.cost_host * answer.host).sum())
    for name in SLACKS:
        used = answer.slack[name]
        if np.any(used > 0.0):
            price = np.broadcast_to(problem.slack_price.get(name, np.float64(np.inf)), used.shape)
            parts[name] = float((np.where(used > 0.0, price, 0.0) * used).sum())
    return Cost(parts=parts)
