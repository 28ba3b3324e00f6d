"""Rules about the `plan` section: names that exist, dates in order, limits that can be kept, somebody who may serve.

Written into `notes`; `check.py` is the way in. Rules about one key's own value are the record's. Whether a plan exists
within the limits is found by solving it: `plan/conflict.py` names the smallest set that cannot hold together.
"""

from __future__ import annotations

import re
from collections.abc import Mapping

from baseload.errors import CatalogError, FleetError
from baseload.fleet import catalog, resolve, supply
from baseload.fleet.check_service import an_offer_may, law_of, may_serve
from baseload.fleet.model import Fleet, Rack, Site, Tenant
from baseload.fleet.notes import Notes
from baseload.fleet.planning import Begin, Buy, Lease, Plan, Rent
from baseload.fleet.tree import Path
from baseload.fleet.typed import nearest

_AT: Path = ("plan",)
_YEAR = re.compile(r"(19|20|21)\d\d")
_SLACK = 1e-6
CLOUD_LAW = "US"  # whose law reaches an operator that the file does not name


def look(notes: Notes) -> None:
    """Write down what is wrong with the `plan` section, where there is one."""
    plan = notes.fleet.plan
    if plan is None:
        return
    _demand(notes, plan)
    for i, buy in enumerate(plan.buy or ()):
        _buy(notes, (*_AT, "buy", str(i)), buy)
    _bought_once(notes, plan)
    for i, lease in enumerate(plan.lease):
        _buy(notes, (*_AT, "lease", str(i)), lease)
    _begins(notes, plan)
    for i, block in enumerate(plan.colocation):
        _site(notes, (*_AT, "colocation", str(i), "site"), block.site)
    for i, rent in enumerate(plan.rent or ()):
        _rent(notes, (*_AT, "rent", str(i)), rent)
    _one_law(notes, plan)
    _budgets(notes, plan)
    _shares(notes, plan)
    if plan.survive.halls > 1 and len(notes.fleet.sites) > 1:
        notes.problem(
            (*_AT, "survive", "halls"),
            f"{len(notes.fleet.sites)} sites, and halls are for a fleet of one",
            "remove it, or declare each hall as a site",
        )


def _demand(notes: Notes, plan: Plan) -> None:
    at = (*_AT, "demand")
    for name in plan.demand.tenants:
        if name not in notes.fleet.tenants:
            what = f"there is no tenant `{name}`"
            notes.problem((*at, "tenants", name), what, nearest(name, notes.fleet.tenants))
    blocks = plan.demand.load_blocks
    hours = sum(block.hours_ratio for block in blocks)
    if blocks and abs(hours - 1.0) > _SLACK:
        what = f"hours_ratio adds up to {hours:g}, and a year is 1"
        notes.problem((*at, "load_blocks"), what, "make the blocks cover the year, no more")
    elif blocks and not any(block.of_peak > 0.0 and block.hours_ratio > 0.0 for block in blocks):
        notes.problem((*at, "load_blocks"), "no block has any load", "raise an of_peak")


def _site(notes: Notes, at: Path, name: str) -> Site | None:
    site = notes.fleet.sites.get(name)
    if site is None:
        notes.problem(at, f"there is no site `{name}`", nearest(name, notes.fleet.sites))
    return site


def _buy(notes: Notes, at: Path, buy: Buy | Lease) -> None:
    known = notes.attempt((*at, "accelerator"), lambda: catalog.accelerator(buy.accelerator))
    sites = [_site(notes, (*at, "sites", str(i)), name) for i, name in enumerate(buy.sites)]
    if known is None:
        return
    if buy.lead_weeks is None and supply.lead_weeks(buy.accelerator) is None:
        what = f"how long {known.accelerator_id} takes from order to rack is not known"
        notes.problem((*at, "lead_weeks"), what, "write the weeks that were quoted, or rent it")
    if buy.accelerators_per_rack is not None:
        server = min(known.per_server, buy.accelerators_per_rack)
        if buy.accelerators_per_rack % server:
            what = f"{buy.accelerators_per_rack} accelerators a rack are not whole servers of {server}"
            notes.problem((*at, "accelerators_per_rack"), what, "write a multiple")
    shapes = [rack.accelerators_per_rack for rack in _racks_like(notes.fleet, known.accelerator_id)]
    usual = known.accelerators_per_rack if known.needs_liquid else known.per_server
    per_rack = buy.accelerators_per_rack or min(shapes, default=usual)
    if buy.most_per_quarter is not None and 0 < buy.most_per_quarter < per_rack:
        what = f"{buy.most_per_quarter} accelerators a quarter are less than one rack of {per_rack}: none ever comes"
        notes.warning((*at, "most_per_quarter"), what)
    for i, site in enumerate(sites):
        if site is not None and known.needs_liquid and site.cooling.type == "air":
            what = f"{known.accelerator_id} needs liquid, and {buy.sites[i]} is cooled by air"
            notes.problem((*at, "sites", str(i)), what, "remove it, or write `cooling: {type: direct_to_chip}` there")


def _bought_once(notes: Notes, plan: Plan) -> None:
    """Write down an accelerator that two entries offer: it has one shape, one lead time and one price wherever it is bought."""
    seen: dict[str, int] = {}
    for i, buy in enumerate(plan.buy or ()):
        try:
            name = resolve.accelerator_id(buy.accelerator)
        except CatalogError:
            continue  # said where it stands
        if seen.setdefault(name, i) != i:
            what = f"{name} is the accelerator of buy[{seen[name]}] again"
            mend = "write one entry for each accelerator, with all its `sites` (leases of it may differ, under `lease`)"
            notes.problem((*_AT, "buy", str(i), "accelerator"), what, mend)


def _racks_like(fleet: Fleet, accelerator_id: str) -> list[Rack]:
    """Return the racks that hold an accelerator of the catalogue's."""
    racks = [rack for site in fleet.sites.values() for rack in site.racks.values()]
    try:
        return [rack for rack in racks if resolve.accelerator_id(rack.accelerator) == accelerator_id]
    except CatalogError:
        return []  # said where the rack stands


def _begins(notes: Notes, plan: Plan) -> None:
    seen: dict[tuple[str, int], int] = {}
    for i, begin in enumerate(plan.begin or ()):
        at = (*_AT, "begin", str(i))
        site = _site(notes, (*at, "site"), begin.site)
        if begin.phase is None:
            if begin.power_mw is None:
                notes.problem(at, "names neither a phase nor MW", "write `phase: 0`, or `power_mw:` of a new one")
            elif begin.months is None:
                notes.warning((*at, "months"), "a new phase takes all stages at their priors")
            continue
        if begin.power_mw is not None:
            notes.problem((*at, "power_mw"), "and `phase` both say how much", "keep one of them")
        if site is not None:
            _phase(notes, at, begin, site, begin.phase)
        if (begin.site, begin.phase) in seen:
            what = f"is the phase of begin[{seen[begin.site, begin.phase]}] again"
            notes.problem((*at, "phase"), what, "name each phase once")
        seen.setdefault((begin.site, begin.phase), i)


def _phase(notes: Notes, at: Path, begin: Begin, site: Site, index: int) -> None:
    if index >= len(site.grid):
        there = f"it has 0 to {len(site.grid) - 1}" if site.grid else "it declares no grid"
        notes.problem((*at, "phase"), f"{begin.site} has no phase {index}", there)
        return
    phase = site.grid[index]
    if phase.energised is not None:
        what = f"phase {index} of {begin.site} has `energised: {phase.energised}`: it is begun already"
        notes.problem((*at, "phase"), what, "remove this, or that day")
    first = begin.not_before
    if first is not None and phase.announced is not None and first < phase.announced:
        what = f"{first} is before the phase was announced ({phase.announced})"
        notes.problem((*at, "not_before"), what, "put the dates in the order of events")
    if first is not None and phase.until is not None and first >= phase.until:
        notes.problem((*at, "not_before"), f"{first}: the phase is gone from {phase.until} on", "begin it earlier")


def _rent(notes: Notes, at: Path, rent: Rent) -> None:
    known = notes.attempt((*at, "accelerator"), lambda: catalog.accelerator(rent.accelerator))
    notes.attempt((*at, "place"), lambda: catalog.place(rent.place))
    code = rent.operator_jurisdiction
    if code is not None and code not in resolve.COUNTRIES:
        notes.problem((*at, "operator_jurisdiction"), f"`{code}` is no country", "write a code of two letters, e.g. NO")
    if known is not None and rent.price_per_accelerator_hour is None and list_price_usd(rent) is None:
        what = f"the catalogue has no {rent.kind.replace('_', ' ')} price of {known.accelerator_id}"
        notes.problem((*at, "price_per_accelerator_hour"), what, "write the price that was quoted")
    if rent.interruptions_per_hour > 0.0 and rent.kind != "spot":
        what = f"{rent.kind.replace('_', ' ')} accelerators are not taken away"
        notes.problem((*at, "interruptions_per_hour"), what, "remove it, or write `kind: spot`")


def _one_law(notes: Notes, plan: Plan) -> None:
    """Write down offers of one operator in one place, which are one site, that name two laws."""
    first: dict[tuple[str, str], tuple[int, str]] = {}
    for i, rent in enumerate(plan.rent or ()):
        try:
            place = catalog.place(rent.place).place_id
        except CatalogError:
            continue  # said where it stands
        law = rent.operator_jurisdiction or CLOUD_LAW
        at, known = first.setdefault((rent.operator, place), (i, law))
        if known != law:
            told = "" if rent.operator_jurisdiction else ", where it is absent"
            what = (
                f"{rent.operator} in {place} is under the law of {law}{told}, and under that of {known} in rent[{at}]"
            )
            mend = f"write `operator_jurisdiction: {known}` here, too, or another `operator`"
            notes.problem((*_AT, "rent", str(i)), what, mend)


def list_price_usd(rent: Rent) -> float | None:
    """Return the catalogue's price of an accelerator-hour for a kind of rent; None where it knows none."""
    known = catalog.accelerator(rent.accelerator)
    if rent.kind == "reserved":
        return known.rental_3yr_usd_h
    return known.rental_usd_h if rent.kind == "on_demand" else None


def _budgets(notes: Notes, plan: Plan) -> None:
    for key in ("capex_by_year", "carbon_t_by_year", "water_m3_by_year"):
        years: Mapping[str, float] = getattr(plan.budgets, key)
        for year in years:
            if not _YEAR.fullmatch(year):
                notes.problem((*_AT, "budgets", key, year), "is no year", "write e.g. `2027: 2000000`")


def _shares(notes: Notes, plan: Plan) -> None:
    shares, fleet = plan.shares, notes.fleet
    for key in ("vendor", "site", "grid_zone", "jurisdiction"):
        most: float = getattr(shares, key)
        names = _names_of(key, fleet, plan)
        if names and most * len(names) < 1.0 - _SLACK:
            what = f"{most:g} each of {len(names)} ({', '.join(sorted(names)[:4])}) does not add up to a whole"
            notes.problem((*_AT, "shares", key), what, f"at least {1.0 / len(names):.3g}, or offer another")


def _names_of(key: str, fleet: Fleet, plan: Plan) -> set[str]:
    """Return the names among which a share is limited; empty where one is not known."""
    try:
        if key == "vendor":
            bought = [one.accelerator for one in plan.buy or ()] or [
                rack.accelerator for site in fleet.sites.values() for rack in site.racks.values()
            ]
            rented = [one.accelerator for one in (*plan.lease, *(plan.rent or ()))]
            return {catalog.accelerator(name).vendor for name in (*bought, *rented)}
        rents = [catalog.place(one.place) for one in plan.rent or ()]
        if key == "site":
            offers = {f"{one.operator} {one.place}" for one in plan.rent or ()}
            return set(fleet.sites) | (offers if plan.rent is not None else {f"rent {name}" for name in fleet.sites})
        if key == "jurisdiction":
            here = {resolve.site_facts(fleet, name).jurisdiction for name in fleet.sites}
            return here | {place.country for place in rents}
        zones = {grid_zone(site, name) for name, site in fleet.sites.items()}
        return zones | {place.price_zone or place.place_id for place in rents}
    except (CatalogError, FleetError):
        return set()


def grid_zone(site: Site, name: str) -> str:
    """Return the bidding zone that a site hangs on: its place's, else the place, else the site's own name."""
    if site.place is None:
        return name
    place = catalog.place(site.place)
    return place.price_zone or place.place_id


def nobody_serves(fleet: Fleet) -> list[tuple[str, Tenant]]:
    """Return the tenants whom neither a declared site nor an offer of rent may serve, whatever is built."""
    return [
        (name, tenant)
        for name, tenant in fleet.tenants.items()
        if not any(may_serve(fleet, tenant, site) for site in fleet.sites) and not an_offer_may(fleet, tenant)
    ]


def plannable(notes: Notes) -> None:
    """Write down what makes planning, and only planning, impossible: a tenant whom no site may ever serve."""
    for name, tenant in nobody_serves(notes.fleet):
        notes.problem(
            ("tenants", name),
            f"no site and no offer of rent may serve them ({law_of(tenant)})",
            "declare a site that may, offer rent there, or widen residency or sovereignty",
        )
