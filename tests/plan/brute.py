"""The planning problem by brute force: every choice of whole decisions, and a linear programme written out for each.

Written from `problem.py`'s words in another way than the builder: named variables in a dictionary, one row after another, the
loss of a site as flows of its own instead of cuts; solved by scipy.
"""

from __future__ import annotations

from itertools import product

import numpy as np
from scipy.optimize import linprog
from scipy.sparse import csr_matrix

from baseload.plan.problem import Problem

INF = float("inf")


class Sheet:
    """Rows over named variables."""

    def __init__(self) -> None:
        self.number: dict[tuple, int] = {}
        self.cost: list[float] = []
        self.upper: list[float] = []
        self.rows: list[tuple[dict[tuple, float], float]] = []  # sum <= right
        self.equal: list[tuple[dict[tuple, float], float]] = []

    def variable(self, name: tuple, cost: float, upper: float = INF) -> tuple:
        self.number[name] = len(self.cost)
        self.cost.append(float(cost))
        self.upper.append(float(upper))
        return name

    def at_most(self, terms: dict[tuple, float], right: float) -> None:
        if right < INF:
            self.rows.append((terms, float(right)))

    def matrix(self, rows: list[tuple[dict[tuple, float], float]]) -> tuple[csr_matrix, np.ndarray] | tuple[None, None]:
        if not rows:
            return None, None
        cells = [(i, self.number[name], value) for i, (terms, _) in enumerate(rows) for name, value in terms.items()]
        i, j, value = zip(*cells, strict=True) if cells else ((), (), ())
        return csr_matrix((value, (i, j)), shape=(len(rows), len(self.cost))), np.array([right for _, right in rows])


def plus(*parts: dict[tuple, float]) -> dict[tuple, float]:
    """Return the sum of linear terms."""
    total: dict[tuple, float] = {}
    for part in parts:
        for name, value in part.items():
            total[name] = total.get(name, 0.0) + value
    return total


def times(factor: float, terms: dict[tuple, float]) -> dict[tuple, float]:
    """Return linear terms times a number."""
    return {name: factor * value for name, value in terms.items()}


def best_cost(p: Problem) -> float:
    """Return the least cost of any plan of `p`; inf where there is none."""
    sheet = written_out(p)
    whole = [
        name for name in sheet.number if name[0] in ("w", "host") or (name[0] == "buy" and p.whole[name[1], name[2]])
    ]
    choices = []
    for name in whole:
        most = 1 if name[0] != "buy" else int(min(p.supply[name[2], name[3]], sheet.upper[sheet.number[name]]))
        choices.append(range(most + 1))
    a, b = sheet.matrix(sheet.rows)
    a_eq, b_eq = sheet.matrix(sheet.equal)
    best = INF
    for values in product(*choices):
        if not _phases_in_order(p, dict(zip(whole, values, strict=True))):
            continue
        bounds = [(0.0, None if high == INF else high) for high in sheet.upper]
        for name, value in zip(whole, values, strict=True):
            bounds[sheet.number[name]] = (value, value)
        found = linprog(sheet.cost, A_ub=a, b_ub=b, A_eq=a_eq, b_eq=b_eq, bounds=bounds, method="highs-ds")
        if found.status == 0:
            best = min(best, float(found.fun) + _constant(p))
    return best


def _phases_in_order(p: Problem, value: dict[tuple, int]) -> bool:
    for phase in range(len(p.phases)):
        row = [value["w", phase, t] for t in range(len(p.periods))]
        if sorted(row) != row:
            return False
        for t, begun in enumerate(row):
            if (begun and t < p.begin_from[phase]) or (not begun and t >= p.begin_by[phase]):
                return False
            if p.phase_after[phase] >= 0 and begun > value["w", int(p.phase_after[phase]), t]:
                return False
    return True


def _constant(p: Problem) -> float:
    """Return what the racks cost that are there anyway."""
    return float((p.cost_owned * p.existing).sum())


def written_out(p: Problem) -> Sheet:
    """Return all rows of `p`."""
    n_s, n_a, n_m, n_r, n_t = p.shape
    sheet = Sheet()
    sites, kinds, services, clients, periods = (range(n) for n in (n_s, n_a, n_m, n_r, n_t))
    price = lambda name, *at: float(np.asarray(p.slack_price[name])[at])  # noqa: E731
    for s, t in product(sites, periods):
        sheet.variable(("short_power", s, t), price("short_power", s, t))
        sheet.variable(("short_floor", s, t), price("short_floor", s, t))
        sheet.variable(("billed", s, t), p.cost_billed[s, t])
    for m, t in product(services, periods):
        sheet.variable(("short", m, t), price("short_survive", m, t))
    for g, t in product(range(len(p.groups)), periods):
        sheet.variable(("over_share", g, t), price("over_share", g, t))
    for name, t in product(("over_capex", "over_carbon", "over_water"), periods):
        sheet.variable((name, t), price(name, t))
    for phase, t in product(range(len(p.phases)), periods):
        cost = p.cost_begin[phase, t] - (p.cost_begin[phase, t + 1] if t + 1 < n_t else 0.0)
        if t + p.phase_delay[phase] < n_t:
            cost += p.cost_live[phase, t + p.phase_delay[phase] :][0]
        sheet.variable(("w", phase, t), cost)
    owned: dict[tuple, dict[tuple, float]] = {(s, a, t): {} for s, a, t in product(sites, kinds, periods)}
    for s, a, u in product(sites, kinds, periods):
        served = [t for t in periods if u + p.lead[a] <= t < u + p.lead[a] + p.life[a]]
        cost = p.cost_buy[s, a, u] + sum(p.cost_owned[s, a, t] for t in served)
        name = sheet.variable(("buy", s, a, u), cost, INF if p.may_place[s, a] else 0.0)
        for t in served:
            owned[s, a, t][name] = 1.0
    rented: dict[tuple, dict[tuple, float]] = {}
    for s, a, k in product(sites, kinds, range(len(p.rentals))):
        for u in periods:
            sheet.variable(("sign", s, a, k, u), p.cost_sign[s, a, k, u], INF if p.may_place[s, a] else 0.0)
        for t in periods:
            rented[s, a, k, t] = {("sign", s, a, k, u): 1.0 for u in periods if t - p.term[k] < u <= t}
            sheet.at_most(rented[s, a, k, t], p.sign_max[s, a, k])
    carry: dict[tuple, dict[tuple, float]] = {(s, m, t): {} for s, m, t in product(sites, services, periods)}
    for s, a, m, t in product(sites, kinds, services, periods):
        name = sheet.variable(("put", s, a, m, t), p.cost_put[s, a, m, t])
        carry[s, m, t][name] = p.rate[a, m]
    for r, m, t in product(clients, services, periods):
        goes = {sheet.variable(("flow", r, s, m, t), p.cost_flow[r, s, m, t]): 1.0 for s in sites if p.allowed[r, s, m]}
        left = {sheet.variable(("unserved", r, m, t), p.cost_unserved[r, m, t]): 1.0}
        sheet.equal.append((plus(goes, left), float(p.demand[r, m, t])))
    for s, m, t in product(sites, services, periods):
        taken = {("flow", r, s, m, t): 1.0 for r in clients if p.allowed[r, s, m]}
        sheet.at_most(plus(taken, times(-1.0, carry[s, m, t])), 0.0)
        if p.host_min is not None:
            host = sheet.variable(("host", s, m, t), p.cost_host[s, m, t])
            may_come = sum(p.demand[r, m, t] for r in clients if p.allowed[r, s, m])
            sheet.at_most(plus(carry[s, m, t], {host: -may_come}), 0.0)
            sheet.at_most(plus({host: p.host_min[m]}, times(-1.0, carry[s, m, t])), 0.0)
    for s, a, t in product(sites, kinds, periods):
        work = {("put", s, a, m, t): 1.0 for m in services}
        rent = [times(-p.useful[k], rented[s, a, k, t]) for k in range(len(p.rentals))]
        sheet.at_most(plus(work, times(-1.0, owned[s, a, t]), *rent), p.existing[s, a, t])
    _site_rows(p, sheet, owned, rented)
    _policy_rows(p, sheet, owned, rented)
    _loss_rows(p, sheet, carry)
    return sheet


def _site_rows(p: Problem, sheet: Sheet, owned: dict, rented: dict) -> None:
    n_s, n_a, _, _, n_t = p.shape
    draws, begun_mw = {}, {}
    for s, t in product(range(n_s), range(n_t)):
        here, on_floor, fixed_mw, fixed_m2 = {}, {}, 0.0, 0.0
        for a in range(n_a):
            racks = plus(owned[s, a, t], *[rented[s, a, k, t] for k in range(len(p.rentals)) if p.on_site[k]])
            here, on_floor = plus(here, times(p.rack_mw[s, a], racks)), plus(on_floor, times(p.rack_m2[a], racks))
            fixed_mw += p.rack_mw[s, a] * p.existing[s, a, t]
            fixed_m2 += p.rack_m2[a] * p.existing[s, a, t]
        live = {
            ("w", q, t - int(p.phase_delay[q])): float(p.phase_mw[q])
            for q in range(len(p.phases))
            if p.phase_site[q] == s and t >= p.phase_delay[q]
        }
        draws[s, t], begun_mw[s, t] = (here, fixed_mw), live
        sheet.at_most(plus(here, times(-1.0, live), {("short_power", s, t): -1.0}), p.power_mw[s, t] - fixed_mw)
        sheet.at_most(plus(on_floor, {("short_floor", s, t): -1.0}), p.floor_m2[s, t] - fixed_m2)
        sheet.at_most(plus(here, {("billed", s, t): -1.0}), -fixed_mw)
        sheet.at_most(
            plus(times(p.minimum_bill[s], live), {("billed", s, t): -1.0}), -p.minimum_bill[s] * p.power_mw[s, t]
        )
        if p.billed_least is not None:
            sheet.at_most({("billed", s, t): -1.0}, -p.billed_least[s, t])
        if p.cost_used is not None and p.cost_used[s, t] > 0.0:
            paid = {("w", q, k): p.phase_paid[q] for _, q, k in live}
            sheet.variable(("used", s, t), p.cost_used[s, t])
            sheet.at_most(plus(here, times(-1.0, paid), {("used", s, t): -1.0}), p.power_mw[s, t] - fixed_mw)
        for u in range(max(0, t - 3), t):
            before, fixed = draws[s, u]
            sheet.at_most(plus(times(p.ratchet[s], before), {("billed", s, t): -1.0}), -p.ratchet[s] * fixed)


def _policy_rows(p: Problem, sheet: Sheet, owned: dict, rented: dict) -> None:
    n_s, n_a, n_m, _, n_t = p.shape
    for t in range(n_t):
        for a in range(n_a):
            sheet.at_most({("buy", s, a, t): 1.0 for s in range(n_s)}, p.supply[a, t])
        for i in range(len(p.limits)):
            use = {("buy", s, a, t): float(p.shared_use[i, a]) for s in range(n_s) for a in range(n_a)}
            sheet.at_most(use, p.shared[i, t])
        for g in range(len(p.groups)):
            terms, fixed = {("over_share", g, t): -1.0}, 0.0
            for s, a in product(range(n_s), range(n_a)):
                weight = p.rack_mw[s, a] * (float(p.group_of[g, s, a]) - p.share_max[g])
                held = plus(owned[s, a, t], *[rented[s, a, k, t] for k in range(len(p.rentals))])
                terms, fixed = plus(terms, times(weight, held)), fixed + weight * p.existing[s, a, t]
            sheet.at_most(terms, -fixed)
        together = range(t + 1 - (1 if p.budget_span is None else int(p.budget_span[t])), t + 1)
        spent: dict = {}
        for u in together:
            spent = plus(spent, {("buy", s, a, u): float(p.spend_buy[s, a, u]) for s in range(n_s) for a in range(n_a)})
            for q in range(len(p.phases)):
                spent = plus(spent, {("w", q, u): float(p.spend_begin[q, u])})
                if u:
                    spent = plus(spent, {("w", q, u - 1): -float(p.spend_begin[q, u])})
        sheet.at_most(plus(spent, {("over_capex", t): -1.0}), p.capex_budget[t])
        for name, budget, per_owned, per_put in (
            ("over_carbon", p.carbon_budget, p.carbon_owned, p.carbon_put),
            ("over_water", p.water_budget, p.water_owned, p.water_put),
        ):
            terms, fixed = {(name, t): -1.0}, 0.0
            for s, a, u in product(range(n_s), range(n_a), together):
                terms = plus(terms, times(per_owned[s, a, u], owned[s, a, u]))
                terms = plus(terms, {("put", s, a, m, u): float(per_put[s, a, m, u]) for m in range(n_m)})
                fixed += per_owned[s, a, u] * p.existing[s, a, u]
            sheet.at_most(terms, budget[t] - fixed)


def _loss_rows(p: Problem, sheet: Sheet, carry: dict) -> None:
    """Write the flows that serve what must survive, for each site lost."""
    n_s, _, n_m, n_r, n_t = p.shape
    for m in range(n_m):
        multi = [r for r in range(n_r) if p.allowed[r, :, m].sum() >= 2]
        if p.survive_ratio[m] <= 0.0:
            continue
        for k, t in product(range(n_s), range(n_t)):
            missing = {("short", m, t): 1.0}
            for r in multi:
                goes = {}
                for s in range(n_s):
                    if s != k and p.allowed[r, s, m]:
                        goes[sheet.variable(("loss", k, r, s, m, t), 0.0)] = 1.0
                left = sheet.variable(("lost", k, r, m, t), 0.0)
                need = float(p.survive_ratio[m] * p.demand[r, m, t])
                # goes + left >= ratio * (demand - unserved)
                terms = plus(times(-1.0, goes), {left: -1.0, ("unserved", r, m, t): -float(p.survive_ratio[m])})
                sheet.at_most(terms, -need)
                missing = plus(missing, {left: -1.0})
            sheet.at_most(times(-1.0, missing), 0.0)
            for s in range(n_s):
                taken = {("loss", k, r, s, m, t): 1.0 for r in multi if s != k and p.allowed[r, s, m]}
                if taken:
                    sheet.at_most(plus(taken, times(-1.0, carry[s, m, t])), 0.0)
