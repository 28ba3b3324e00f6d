"""An answer in words and money: the records that plan.json, the tables and the page are made from."""

from __future__ import annotations

from dataclasses import replace

import msgspec
import numpy as np
import numpy.typing as npt

from baseload.app import plan_delay, plan_demand
from baseload.app.plan_findings import Findings
from baseload.app.plan_map import PlanMap
from baseload.app.plan_prices import WEEKS_PER_QUARTER
from baseload.app.plan_whole import Whole, whole
from baseload.fleet.load import Loaded, loads
from baseload.fleet.model import Fleet
from baseload.formulas.money import capital_recovery_factor
from baseload.plan import money
from baseload.plan.check_answer import recompute_cost
from baseload.plan.problem import SLACKS, Answer, Ints, Problem, spans
from baseload.plan.table import ReplicaTable
from baseload.report import capacity
from baseload.report.capacity_model import CapacityReport
from baseload.report.plan_model import (
    RENT_IN_FILE,
    Carried,
    Decision,
    Miss,
    PlanReport,
    Quarter,
    Serving,
    Standing,
    Worth,
    Years,
)
from baseload.report.words import megawatts, number
from baseload.report.words import money as money_words

Floats = npt.NDArray[np.float64]
_EPS = 1e-6
BUDGETS = ("over_capex", "over_carbon", "over_water")
LIMITS = {
    "short_power": ("MW", "power at {who} is short by {amount}"),
    "short_floor": ("m2", "floor at {who} is short by {amount}"),
    "short_survive": ("requests/s", "{amount} of {who} would go unserved if a site were lost"),
    "over_share": ("MW", "{who} has {amount} more than its share"),
    "over_capex": ("money", "{amount} more than the budget is spent"),
    "over_carbon": ("t", "{amount} of CO2 more than the budget"),
    "over_water": ("m3", "{amount} of water more than the budget"),
}


def plan_report(
    loaded: Loaded, problem: Problem, answer: Answer, plan_map: PlanMap, table: ReplicaTable, planned: str,
    findings: Findings,
) -> PlanReport:  # fmt: skip
    """Return the report of an answer; `planned` is its fleet file."""
    numbers = whole(problem, answer, plan_map)
    terms = terms_of(plan_map)
    kept = books(problem, answer, plan_map, terms)
    worth = money.worth(kept, terms)
    unit, missed = plan_map.money_unit, misses(problem, answer, plan_map)
    return PlanReport(
        fleet=loaded.fleet.name,
        currency=plan_map.currency,
        from_day=str(plan_map.today),
        quarters=list(problem.periods),
        seed=plan_map.seed,
        status=answer.status,
        method=answer.method,
        meets=answer.meets and not missed and not findings.broken,
        cost=answer.cost * unit + plan_map.sunk,
        bound=answer.bound * unit + plan_map.sunk,
        missed=_missed(problem, answer) * unit,
        fixed=plan_map.fixed,
        gap=answer.gap,
        cpu_s=answer.cpu_s,
        misses=[*missed, *findings.broken],
        decisions=decisions(problem, answer, plan_map, numbers),
        years=_years(kept, worth, plan_map),
        worth=Worth(
            npv=worth.npv, irr=worth.irr, payback_years=worth.payback_years, invested=worth.invested, roi=worth.roi,
            roi_without_idle=worth.roi_without_idle, idle_cost=worth.idle_cost,
        ),
        by_quarter=_quarters(problem, answer, plan_map, numbers, kept),
        standing=_standing(plan_map, numbers),
        serving=_serving(problem, plan_map, numbers),
        capacity=ladder(planned, loaded, plan_map, numbers),
        binding=list(findings.binding),
        alternatives=list(findings.alternatives),
        swings=list(findings.swings),
        conflict=list(findings.conflict),
        relax=list(findings.relax),
        changes=list(findings.changes),
        rounds=list(findings.rounds),
        risk=findings.risk,
        carried=[
            Carried(
                service=row.service, accelerator=row.accelerator, replica=row.accelerators,
                requests_per_s=row.requests_per_s, correction=row.correction, how=row.how,
            )
            for row in table.rows
        ],
        assumptions=[*plan_map.notes, *scope(plan_map), *answer.notes, *findings.notes],
    )  # fmt: skip


def books(problem: Problem, answer: Answer, plan_map: PlanMap, terms: money.Terms) -> money.Books:
    """Return the books of an answer, with racks that stand without power: their capital, space and upkeep, all of it idle."""
    kept, prices, dark = money.books(problem, answer, plan_map.prices, terms), plan_map.prices, plan_map.dark
    if not dark.any():
        return kept
    it_factor = capital_recovery_factor(terms.wacc, terms.it_life_years) / 4.0
    long_factor = capital_recovery_factor(terms.wacc, terms.facility_life_years) / 4.0
    now = prices.buy_it[:, :, :1] * it_factor + prices.buy_facility[:, :, :1] * long_factor
    more = {"space": prices.owned_space, "upkeep": prices.owned_upkeep}
    running = dict(kept.running) | {
        name: kept.running[name] + (dark * each).sum(axis=(0, 1)) for name, each in more.items()
    }
    rented = money.rented_racks(problem, answer.sign) * problem.useful[:, None]
    lit = money.owned_racks(problem, answer.buy)[0].sum(axis=(0, 1)) + rented.sum(axis=(0, 1, 2))
    stand = lit + dark.sum(axis=(0, 1))
    return replace(
        kept,
        running=running,
        capital_charge=kept.capital_charge + (dark * now).sum(axis=(0, 1)),
        busy_ratio=kept.busy_ratio * np.divide(lit, stand, out=np.ones_like(stand), where=stand > 0.0),
    )


def terms_of(plan_map: PlanMap) -> money.Terms:
    """Return the terms under which a plan's cash is judged."""
    asked, terms, plan = plan_map.asked, plan_map.fleet.money, plan_map.plan
    everyone = plan_demand.tenants(plan_map.fleet)
    beside = {name for name, _ in _for_training(plan_map)}
    return money.Terms(
        wacc=terms.wacc,
        tax_ratio=plan.tax_ratio,
        resale_ratio=plan.resale_ratio,
        it_life_years=terms.accelerator_life_years,
        facility_life_years=terms.facility_life_years,
        load_ratio=plan_map.load_ratio,
        tokens_per_request=asked.input_tokens + asked.output_tokens,
        committed=tuple(
            (tuple(r for r, one in enumerate(plan_map.clients) if one.tenant == name), tenant.committed_per_month * 3.0)
            for name, tenant in everyone.items()
            if tenant.committed_per_month > 0.0 and name not in beside
        ),
    )


def _for_training(plan_map: PlanMap) -> list[tuple[str, float]]:
    """Return who commits to money without asking for anything served, (name, money a year), where the fleet trains.

    What training costs is not in the books, so neither is what pays for it.
    """
    if not any(site.training for site in plan_map.fleet.sites.values()):
        return []
    served = {one.tenant for one in plan_map.clients}
    return [
        (name, tenant.committed_per_month * 12.0)
        for name, tenant in plan_demand.tenants(plan_map.fleet).items()
        if tenant.committed_per_month > 0.0 and name not in served
    ]


def scope(plan_map: PlanMap) -> list[str]:
    """Return what the figures leave out because it is training's."""
    if not any(site.training for site in plan_map.fleet.sites.values()):
        return []
    named = [f"{name} ({money_words(paid, plan_map.currency)} a year)" for name, paid in _for_training(plan_map)]
    more = (
        f"; what is committed for it without asking for tokens is no income here: {', '.join(named)}" if named else ""
    )
    return [f"what training draws, costs and emits is not in this plan's power, cost, carbon and water{more}"]


# ---- what is not met -------------------------------------------------------------------------------------


def misses(problem: Problem, answer: Answer, plan_map: PlanMap) -> list[Miss]:
    """Return each limit that is not kept, by who and run of quarters, in words."""
    found: list[Miss] = []
    names = {
        "short_power": problem.sites,
        "short_floor": problem.sites,
        "short_survive": problem.services,
        "over_share": problem.groups,
    }
    for slack, values in answer.slack.items():
        unit, words = LIMITS[slack]
        scale = plan_map.money_unit if slack == "over_capex" else 1.0
        for i, row in enumerate(np.atleast_2d(values) * scale):
            who = names[slack][i] if slack in names else ""
            units = plan_map.currency if unit == "money" else unit
            found += _runs(slack, row, who, units, words, problem, spans(problem) if slack in BUDGETS else None)
    for r, client in enumerate(problem.clients):
        for m, service in enumerate(problem.services):
            words = "{amount} of {who} are not served"
            row = np.where(
                answer.unserved[r, m] > 1e-4 * np.maximum(problem.demand[r, m], _EPS), answer.unserved[r, m], 0
            )
            found += _runs("unserved", row, f"{client}, {service}", "requests/s", words, problem)
    return found


def _missed(problem: Problem, answer: Answer) -> float:
    """Return the price of what is not met, as it stands in the answer's cost."""
    parts = recompute_cost(problem, answer).parts
    return sum(parts.get(name, 0.0) for name in ("unserved", *SLACKS))


def _runs(
    limit: str, row: Floats, who: str, unit: str, words: str, problem: Problem, since: Ints | None = None
) -> list[Miss]:
    made: list[Miss] = []
    over = np.flatnonzero(row > _EPS)
    if since is None:
        parts = np.split(over, np.flatnonzero(np.diff(over) > 1) + 1) if len(over) else []
    else:  # each period stands for those before it that the budget counts with it
        parts = [np.arange(max(0, t + 1 - int(since[t])), t + 1) for t in over.tolist()]
    for part in parts:
        worst = float(row[part].max())
        amount = megawatts(worst) if unit == "MW" else number(worst, unit)
        first, last = problem.periods[part[0]], problem.periods[part[-1]]
        when = first if first == last else f"{first} to {last}"
        worst_of = " at the worst" if first != last and since is None else ""
        said = f"{when}: {words.format(who=who, amount=amount)}{worst_of}"
        made.append(Miss(limit=limit, first=first, last=last, who=who, amount=worst, unit=unit, words=said))
    return made


# ---- decisions -------------------------------------------------------------------------------------------


def decisions(problem: Problem, answer: Answer, plan_map: PlanMap, numbers: Whole) -> list[Decision]:
    """Return every decision by quarter: phases begun, racks ordered, rent signed, services put to work."""
    made: list[Decision] = []
    for t, name in enumerate(problem.periods):
        day = str(plan_map.days[t])
        made += _begun(problem, plan_map, numbers, t, name, day)
        made += _bought(problem, answer, plan_map, numbers, t, name, day)
        made += _signed(problem, answer, plan_map, t, name, day)
        for s, a, m in zip(*np.nonzero(numbers.replicas[:, :, :, t]), strict=True):
            what = f"{problem.services[m]} on {problem.kinds[a]}"
            n = float(numbers.replicas[s, a, m, t])
            made.append(_decision(name, day, "serve", problem.sites[s], what, n, "replicas"))
    return made


def _decision(
    name: str, day: str, action: str, site: str, what: str, amount: float, unit: str, *, until: str = "",
    cash: float = 0.0, note: str = "",
) -> Decision:  # fmt: skip
    return Decision(
        quarter=name, day=day, action=action, site=site, what=what, amount=amount, unit=unit, until=until,
        cash=cash, note=note,
    )  # fmt: skip


def _begun(problem: Problem, plan_map: PlanMap, numbers: Whole, t: int, name: str, day: str) -> list[Decision]:
    T, made = len(problem.periods), []
    for p, phase in enumerate(plan_map.phases):
        if numbers.begun[p] == t and not phase.begun:
            live, kept = int(numbers.live[p]), float(plan_map.prices.live[p])
            median = " (median)" if phase.kind == "grid" else ""
            when = f"power from {problem.periods[live]}{median}" if live < T else "power after the horizon"
            if kept > 0.0 and live < T:
                when += f", {money_words(kept, plan_map.currency)} a quarter"
            dark = problem.periods[min(live, T) - 1] if live > t else ""
            made.append(
                _decision(
                    name, day, "begin", phase.site, phase.name, phase.meter_mw, "MW", until=dark,
                    cash=phase.cost_to_begin + kept * (T - live), note=when,
                )
            )  # fmt: skip
    return made


def _bought(
    problem: Problem, answer: Answer, plan_map: PlanMap, numbers: Whole, t: int, name: str, day: str
) -> list[Decision]:
    T, made, cash = len(problem.periods), [], plan_map.prices
    for s, a in zip(*np.nonzero(numbers.bought[:, :, t]), strict=True):
        n, arrives = float(numbers.bought[s, a, t]), t + int(problem.lead[a])
        leased, gone = plan_map.kinds[a].lease is not None, min(T, arrives + int(problem.life[a]))
        spent = float(
            n * (cash.buy_it[s, a, t] + cash.buy_facility[s, a, t] + cash.owned_lease[s, a, arrives:gone].sum())
        )
        weeks = plan_map.kinds[a].lead_weeks or problem.lead[a] * WEEKS_PER_QUARTER
        when = f"in service {problem.periods[arrives]} ({weeks:.0f} weeks)" if arrives < T else "after the horizon"
        made.append(
            _decision(
                name, day, "lease" if leased else "buy", problem.sites[s], problem.kinds[a], n, "racks",
                until=problem.periods[gone - 1] if leased and arrives < T else "", cash=spent, note=when,
            )
        )  # fmt: skip
    return made


def _signed(problem: Problem, answer: Answer, plan_map: PlanMap, t: int, name: str, day: str) -> list[Decision]:
    T, made = len(problem.periods), []
    for s, a, k in zip(*np.nonzero(answer.sign[:, :, :, t] > 1e-4), strict=True):
        racks, until = float(answer.sign[s, a, k, t]), min(T, t + int(problem.term[k]))
        spent = float(racks * np.where(np.isfinite(r := plan_map.prices.rent[s, a, k, t:until]), r, 0.0).sum())
        n = racks * plan_map.kinds[a].per_rack
        made.append(
            _decision(
                name, day, "rent", problem.sites[s], problem.kinds[a], round(n, 3), "accelerators",
                until=problem.periods[until - 1], cash=spent, note=plan_map.terms[k].name + RENT_IN_FILE,
            )
        )  # fmt: skip
    return made


# ---- by quarter and by year ------------------------------------------------------------------------------


def _years(kept: money.Books, worth: money.Worth, plan_map: PlanMap) -> Years:
    n = len(plan_map.days)
    end = np.zeros(n)
    end[-1] = kept.salvage
    return Years(
        names=[f"{one:%Y-%m}" if one.month != 1 else str(one.year) for one in plan_map.days[::4]],
        income=money.by_year(kept.income).tolist(),
        capex={name: money.by_year(values).tolist() for name, values in kept.capex.items()},
        running={name: money.by_year(values).tolist() for name, values in kept.running.items()},
        tax=worth.tax.tolist(),
        salvage=money.by_year(end).tolist(),
        cash=worth.cash_by_year.tolist(),
    )


def _quarters(problem: Problem, answer: Answer, plan_map: PlanMap, numbers: Whole, kept: money.Books) -> list[Quarter]:
    owned, _ = money.owned_racks(problem, answer.buy)
    draw = (owned * problem.rack_mw[:, :, None]).sum(axis=(0, 1))
    grid = problem.power_mw.sum(axis=0).copy()
    for p, mw in enumerate(problem.phase_mw):
        grid[int(numbers.live[p]) :] += mw
    per_rack = np.array([kind.per_rack for kind in plan_map.kinds])
    own = (numbers.owned * per_rack[None, :, None]).sum(axis=(0, 1))
    rented = numbers.rented.sum(axis=(0, 1))
    market = np.divide(
        kept.carbon_market_t * 1000.0, kept.mtok, out=np.full(len(kept.mtok), np.nan), where=kept.mtok > 0.0
    )
    return [
        Quarter(
            name=name,
            demand_per_s=float(problem.demand[:, :, t].sum()),
            served_per_s=float(answer.flow[..., t].sum()),
            racks=float(owned[:, :, t].sum()),
            accelerators=int(own[t] + rented[t]),
            rented=int(rented[t]),
            draw_mw=float(draw[t]),
            drawable_mw=float(grid[t]),
            busy_ratio=float(kept.busy_ratio[t]),
            cost_per_mtok=_maybe(kept.cost_per_mtok[t]),
            carbon_kg_per_mtok=_maybe(kept.carbon_kg_per_mtok[t]),
            carbon_market_kg_per_mtok=_maybe(market[t]),
            water_l_per_mtok=_maybe(kept.water_l_per_mtok[t]),
            carbon_t=float(kept.carbon_t[t]),
            water_m3=float(kept.water_m3[t]),
        )
        for t, name in enumerate(problem.periods)
    ]


def _maybe(value: float) -> float | None:
    return float(value) if np.isfinite(value) else None


def _standing(plan_map: PlanMap, numbers: Whole) -> list[Standing]:
    made = []
    for s, site in enumerate(plan_map.sites):
        for a, kind in enumerate(plan_map.kinds):
            n = numbers.owned[s, a] * kind.per_rack + numbers.rented[s, a]
            if n.any():
                made.append(Standing(site=site.name, rented=site.rented, kind=kind.name, accelerators=n.tolist()))
    return made


def _serving(problem: Problem, plan_map: PlanMap, numbers: Whole) -> list[Serving]:
    return [
        Serving(
            service=problem.services[m], site=problem.sites[s], kind=problem.kinds[a],
            replicas=numbers.replicas[s, a, m].tolist(),
        )
        for m in range(len(problem.services))
        for s in range(len(problem.sites))
        for a in range(len(problem.kinds))
        if numbers.replicas[s, a, m].any()
    ]  # fmt: skip


# ---- the ladder ------------------------------------------------------------------------------------------


def ladder(planned: str, loaded: Loaded, plan_map: PlanMap, numbers: Whole) -> CapacityReport | None:
    """Return the planned fleet's capacity over time; planned phases keep their doubt, rented sites are left out.

    A phase with declared months stands as the file has it: its stages were scaled to them.
    """
    fleet: Fleet = loads(planned, file="plan/fleet.yaml", base_folder=loaded.base_folder).fleet
    own = {name: site for name, site in fleet.sites.items() if name in loaded.fleet.sites}
    said: list[str] = []
    for p, phase in enumerate(plan_map.phases):
        if phase.kind != "grid" or phase.index is None or numbers.begun[p] >= len(plan_map.days):
            continue
        record = own[phase.declared].grid[phase.index]
        if plan_delay.declared_months(plan_map, phase) is not None:
            begun, live = plan_map.days[int(numbers.begun[p])], int(numbers.live[p])
            said.append(plan_delay.said(plan_map, phase, record, begun, live))
            continue
        grid = list(own[phase.declared].grid)
        grid[phase.index] = msgspec.structs.replace(record, energised=None)
        own[phase.declared] = msgspec.structs.replace(own[phase.declared], grid=grid)
    if not own:
        return None
    kept = msgspec.structs.replace(fleet, sites=own)
    made = capacity.capacity(
        kept, plan_map.days[0], len(plan_map.days), draws=plan_delay.LADDER_DRAWS, seed=plan_map.seed
    )
    return msgspec.structs.replace(made, caveats=[*said, *made.caveats])
