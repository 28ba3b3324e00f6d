"""The fleet on a day: what is in service, in force, announced, permitted, contracted, energised. MW at the meter.

A day counts from its first hour; `until` is the first day that a thing is gone. What the megawatts carry after
cooling and redundancy is `formulas/ladder.py`.
"""

from __future__ import annotations

from collections.abc import Iterable
from datetime import date

import msgspec

from baseload.fleet import planning
from baseload.fleet.model import Fleet, GridConnection, PowerContract, Site, Tenant

DEFAULT_DAY = date(2023, 6, 15)
STAGES = ("announced", "permitted", "contracted", "energised")


def run_day(fleet: Fleet) -> date:
    """Return the day on which the fleet file's run begins."""
    return fleet.demand.start or DEFAULT_DAY


def holds(day: date, start: date | None, until: date | None) -> bool:
    """Say whether `day` lies in [start, until); an end that is absent is open.

    >>> holds(date(2026, 1, 1), date(2026, 1, 1), None), holds(date(2026, 1, 1), None, date(2026, 1, 1))
    (True, False)
    """
    return (start is None or start <= day) and (until is None or day < until)


def on(fleet: Fleet, day: date) -> Fleet:
    """Return the fleet of a day: racks in service, contracts in force, deployments served, ended grid phases gone.

    Grid phases that are not energised stay, because the ladder counts them.
    """
    sites = {name: site_on(site, day) for name, site in fleet.sites.items()}
    deployments = {
        name: deployment
        for name, deployment in fleet.deployments.items()
        if holds(day, deployment.start, deployment.until)
    }
    return msgspec.structs.replace(fleet, sites=sites, deployments=deployments)


def demand_on(fleet: Fleet, day: date) -> Fleet:
    """Return the fleet with the demand of a day: grown from `plan.start` on, by tenant, as the plan section says.

    A fleet without a plan section, or without a start, asks for the same on every day.
    """
    plan = fleet.plan
    years = 0.0 if plan is None else planning.years_after(plan, day)
    if plan is None or years == 0.0:
        return fleet
    tenants = fleet.tenants or {"anyone": Tenant()}
    grown = {name: one.share * planning.grown(plan, name, years) for name, one in tenants.items()}
    before, after = sum(one.share for one in tenants.values()), sum(grown.values())
    if before <= 0.0:
        return fleet
    replaced = {name: msgspec.structs.replace(one, share=grown[name]) for name, one in fleet.tenants.items()}
    demand = msgspec.structs.replace(fleet.demand, scale=fleet.demand.scale * after / before)
    return msgspec.structs.replace(fleet, tenants=replaced, demand=demand)


def site_on(site: Site, day: date) -> Site:
    """Return the site of a day.

    Phases or contracts of which none is left stay as they are: an empty list would mean that the site declares none.
    """
    return msgspec.structs.replace(
        site,
        grid=[phase for phase in site.grid if holds(day, None, phase.until)] or site.grid,
        contracts=active_contracts(site, day) or site.contracts,
        racks={name: rack for name, rack in site.racks.items() if holds(day, rack.in_service, rack.until)},
    )


def reached(phase: GridConnection, stage: str, day: date) -> bool:
    """Say whether a phase had reached a stage by a day.

    A stage without a date counts as reached once a later one is; standing in the file counts as announced.
    """
    if not holds(day, None, phase.until):
        return False
    later = STAGES[STAGES.index(stage) :]
    own, *rest = [getattr(phase, name) for name in later]
    if own is not None:
        return bool(own <= day)
    return stage == "announced" or any(at is not None and at <= day for at in rest)


def announced_mw(site: Site, day: date) -> float:
    """Return the MW announced by a day; what is contracted or energised included."""
    return _grid_mw(site, "announced", day)


def permitted_mw(site: Site, day: date) -> float:
    """Return the MW permitted by a day."""
    return _grid_mw(site, "permitted", day)


def contracted_mw(site: Site, day: date) -> float:
    """Return the MW under a grid agreement, but not more than the power contracts in force, where there are any."""
    grid = _grid_mw(site, "contracted", day)
    return min(grid, _bought_mw(active_contracts(site, day))) if site.contracts else grid


def energised_mw(site: Site, day: date) -> float:
    """Return the MW that can flow on a day."""
    return _grid_mw(site, "energised", day)


def drawable_mw(site: Site, day: date) -> float:
    """Return the MW that may be drawn on a day: energised and contracted."""
    return min(energised_mw(site, day), contracted_mw(site, day))


def active_contracts(site: Site, day: date) -> list[PowerContract]:
    """Return the power contracts in force on a day, in the file's order."""
    return [contract for contract in site.contracts if holds(day, contract.start, contract.until)]


def active_contract(site: Site, day: date) -> PowerContract | None:
    """Return the power contract in force on a day, the largest of several; None where there is none."""
    return max(active_contracts(site, day), key=lambda contract: contract.power_mw, default=None)


def milestones(site: Site) -> list[date]:
    """Return the days on which something changes at a site, in order: where a plot of its ladder has its steps."""
    days: set[date | None] = set()
    for phase in site.grid:
        days |= {*(getattr(phase, stage) for stage in STAGES), phase.until}
    for contract in site.contracts:
        days |= {contract.start, contract.until}
    for rack in site.racks.values():
        days |= {rack.in_service, rack.until}
    return sorted(day for day in days if day is not None)


def _grid_mw(site: Site, stage: str, day: date) -> float:
    # A site that declares contracts alone sits in somebody else's building: the contract is all it knows of the grid.
    if not site.grid:
        return _bought_mw(active_contracts(site, day))
    return sum(phase.power_mw for phase in site.grid if reached(phase, stage, day))


def _bought_mw(contracts: Iterable[PowerContract]) -> float:
    return sum(contract.power_mw for contract in contracts)
