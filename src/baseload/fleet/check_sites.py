"""Rules about sites: known places, dates in order, racks that find power, cooling and floor, links, outages.

Written into `notes`; `check.py` is the way in.
"""

from __future__ import annotations

from collections.abc import Sequence
from datetime import date
from itertools import pairwise

from baseload.errors import CatalogError
from baseload.fleet import catalog, check_grid, dates, resolve
from baseload.fleet.model import Series, Site
from baseload.fleet.notes import Notes
from baseload.fleet.tree import Path
from baseload.fleet.typed import nearest

_SLACK = 1e-9  # MW and m2 that rounding may add


def look(notes: Notes, day: date) -> None:
    """Write down what is wrong with the sites, links, outages and the gateway on the day of the run."""
    for at, site in declared(notes):
        _power(notes, at, site, day)
    for name in notes.fleet.regions:
        notes.attempt(("regions", name), lambda name=name: resolve.region_location(notes.fleet, name))  # type: ignore[misc]
    _ends(notes)


def declared(notes: Notes) -> list[tuple[Path, Site]]:
    """Write down what is wrong with sites on any day; return those whose racks are known."""
    known: list[tuple[Path, Site]] = []
    for name, site in notes.fleet.sites.items():
        at: Path = ("sites", name)
        _place(notes, at, name, site)
        _series(notes, at, site)
        _order(notes, at, site)
        if all([_rack(notes, (*at, "racks", rack), site, rack) for rack in site.racks]):
            known.append((at, site))
    return known


def in_order(notes: Notes, at: Path, named: Sequence[tuple[str, date | None]]) -> None:
    """Write down the first pair of dates that contradict each other."""
    said = [(name, day) for name, day in named if day is not None]
    for (before, first), (after, second) in pairwise(said):
        if second < first or (after == "until" and second == first):
            notes.problem(
                (*at, after),
                f"{second} is not after {before} {first}",
                "put the dates in the order of events",
            )
            return


def _place(notes: Notes, at: Path, name: str, site: Site) -> None:
    notes.attempt(at, lambda: resolve.site_facts(notes.fleet, name))
    for key in ("jurisdiction", "operator_jurisdiction"):
        code = getattr(site, key)
        if code is not None and code not in resolve.COUNTRIES:
            notes.problem((*at, key), f"`{code}` is no country", "write an ISO 3166 code of two letters, e.g. NO")


def _series(notes: Notes, at: Path, site: Site) -> None:
    wanted: list[tuple[Path, float | Series | None, catalog.Quantity]] = [
        (("carbon_g_per_kwh",), site.carbon_g_per_kwh, "carbon_g_per_kwh"),
        (("cooling", "wetbulb_c"), site.cooling.wetbulb_c, "wetbulb_c"),
    ]
    wanted += [
        (("contracts", str(i), "price_per_mwh"), contract.price_per_mwh, "price_per_mwh")
        for i, contract in enumerate(site.contracts)
    ]
    if not site.contracts:
        wanted.append((("contracts",), None, "price_per_mwh"))
    if site.place is not None and not _known(site.place):
        return  # said already
    for path, value, kind in wanted:
        if value is None and site.place is None:
            notes.problem((*at, *path), "is not known", "write a number or a series here, or the site's `place`")
            continue
        if isinstance(value, Series):
            _one_source(notes, (*at, *path), value)
        notes.attempt(
            (*at, *path),
            lambda value=value, kind=kind: resolve.hourly(  # type: ignore[misc]
                value, place=site.place, kind=kind, base_folder=notes.base_folder
            ),
        )


def _one_source(notes: Notes, at: Path, series: Series) -> None:
    if series.place is not None and series.file is not None:
        notes.problem(at, "has both `place` and `file`", "keep one of them")
    if series.column is not None and series.file is None:
        notes.problem((*at, "column"), "names a column of no file", "add `file`, or remove it")


def _known(place: str) -> bool:
    try:
        catalog.place(place)
    except CatalogError:
        return False
    return True


def _order(notes: Notes, at: Path, site: Site) -> None:
    for i, phase in enumerate(site.grid):
        stages = [(stage, getattr(phase, stage)) for stage in (*dates.STAGES, "until")]
        in_order(notes, (*at, "grid", str(i)), stages)
        check_grid.phase_rules(notes, (*at, "grid", str(i)), phase)
    for i, contract in enumerate(site.contracts):
        in_order(notes, (*at, "contracts", str(i)), [("start", contract.start), ("until", contract.until)])
    for name, rack in site.racks.items():
        in_order(notes, (*at, "racks", name), [("in_service", rack.in_service), ("until", rack.until)])
    for i, limit in enumerate(site.power_limits):
        path = (*at, "power_limits", str(i))
        if limit.until_h <= limit.start_h:
            notes.problem((*path, "until_h"), f"{limit.until_h:g} is not after start_h {limit.start_h:g}")
        elif limit.every_h is not None and limit.every_h < limit.until_h - limit.start_h:
            notes.problem((*path, "every_h"), "is shorter than the limit itself", "it would overlap with itself")
    if site.redundancy == "N+1" and site.power_modules < 2:
        notes.problem((*at, "power_modules"), "N+1 needs at least 2, one of them spare", "raise it")


def _rack(notes: Notes, at: Path, site: Site, name: str) -> bool:
    rack = site.racks[name]
    known = notes.attempt((*at, "accelerator"), lambda: catalog.accelerator(rack.accelerator))
    if known is None:
        return False
    if rack.accelerators_per_rack % resolve.server_size(rack):
        key = "accelerators_per_rack" if rack.accelerators_per_server is None else "accelerators_per_server"
        notes.problem(
            (*at, key),
            f"{rack.accelerators_per_rack} accelerators a rack are not whole servers of {resolve.server_size(rack)}",
            "make one a multiple of the other",
        )
    if known.needs_liquid and site.cooling.type == "air" and not rack.liquid_ratio:
        notes.problem(
            (*at, "accelerator"),
            f"{rack.accelerator} needs liquid, and the site is cooled by air",
            "write `cooling: {type: direct_to_chip}`, or `liquid_ratio` on the rack",
        )
    return True


def _power(notes: Notes, at: Path, site: Site, day: date) -> None:
    if not site.grid and not site.contracts:
        notes.problem(
            at,
            "has neither a grid connection nor a power contract",
            "add e.g. `grid: [{power_mw: 2, energised: 2023-01-01}]`, or `contracts` in a colocation",
        )
        return
    today = dates.site_on(site, day)
    racks_mw = resolve.racks_power_mw(today)
    for words, limit_mw, key, mend in _limits(today, day):
        if racks_mw > limit_mw + _SLACK:
            notes.problem(
                (*at, key),
                f"racks draw {racks_mw:.4g} MW at full load on {day}, and {limit_mw:.4g} MW are {words}",
                mend + ", move racks, or set `rack_kw` to what a rack may draw",
            )
            break
    area_m2 = resolve.racks_area_m2(today)
    if site.floor_m2 is not None and area_m2 > site.floor_m2 + _SLACK:
        notes.problem(
            (*at, "floor_m2"),
            f"racks take {area_m2:,.0f} m2, and the floor has {site.floor_m2:,.0f}",
            "enlarge it, or lower the racks' `area_m2`",
        )
    _power_warnings(notes, at, site, day, racks_mw)


def _limits(today: Site, day: date) -> list[tuple[str, float, str, str]]:
    key = "grid" if today.grid else "contracts"
    limits = [
        ("energised", dates.energised_mw(today, day), key, "energise more"),
        ("contracted", dates.contracted_mw(today, day), "contracts", "contract more"),
    ]
    if today.cooling.capacity_mw is not None:
        limits.append(("coolable", today.cooling.capacity_mw, "cooling", "raise `capacity_mw`"))
    return limits


def _power_warnings(notes: Notes, at: Path, site: Site, day: date, racks_mw: float) -> None:
    share = {"N": 1.0, "N+1": (site.power_modules - 1) / site.power_modules, "2N": 0.5}[site.redundancy]
    usable_mw = dates.drawable_mw(site, day) * share * site.chain_efficiency
    if usable_mw + _SLACK < racks_mw <= dates.drawable_mw(site, day) + _SLACK:
        notes.warning(
            at,
            f"racks draw {racks_mw:.4g} MW at full load, and with redundancy {site.redundancy} "
            f"{usable_mw:.4g} MW reach them",
            "policy.cap decides what happens when all are busy",
        )
    if site.racks and not dates.site_on(site, day).racks:
        notes.warning(
            (*at, "racks"),
            f"none is in service on {day}",
            "look at in_service, until, and the day of the run: --date, or demand.start",
        )
    if dates.announced_mw(site, day) > 0 and dates.energised_mw(site, day) == 0:
        notes.warning((*at, "grid"), f"power is announced, and none is energised on {day}")
    for later in sorted(rack.in_service for rack in site.racks.values() if rack.in_service is not None):
        then = dates.site_on(site, later)
        if later > day and resolve.racks_power_mw(then) > dates.drawable_mw(site, later) + _SLACK:
            notes.warning(
                at,
                f"on {later} racks draw {resolve.racks_power_mw(then):.4g} MW at full load, "
                f"and {dates.drawable_mw(site, later):.4g} MW may be drawn",
            )
            return


def _ends(notes: Notes) -> None:
    fleet = notes.fleet
    places = {**fleet.sites, **fleet.regions}
    first: dict[frozenset[str], int] = {}
    for i, link in enumerate(fleet.links):
        at = ("links", str(i), "between")
        for j, end in enumerate(link.between):
            if end not in places:
                notes.problem((*at, str(j)), f"`{end}` is neither a site nor a region", nearest(end, places))
        if link.between[0] == link.between[1]:
            notes.problem(at, "both ends are the same", "name two sites or regions")
        elif (other := first.setdefault(frozenset(link.between), i)) != i:
            line = notes.loaded.problem(("links", str(other), "between"), "").line
            there = f"links.{other}" + (f", line {line}" if line else "")
            notes.problem(
                at,
                f"{' and '.join(link.between)} are linked already ({there}); a pair has one link, in either order",
                "keep one of the two",
            )
    for i, outage in enumerate(fleet.failures.events):
        if outage.site not in fleet.sites:
            path = ("failures", "events", str(i), "site")
            notes.problem(path, f"there is no site `{outage.site}`", nearest(outage.site, fleet.sites))
    gateway = fleet.gateway.site
    if gateway is not None and gateway not in fleet.sites:
        notes.problem(("gateway", "site"), f"there is no site `{gateway}`", nearest(gateway, fleet.sites))
