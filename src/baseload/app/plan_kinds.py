"""Rack kinds: what stands, what may be bought or leased and what is offered, by accelerator and shape; each lease is a kind."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from datetime import date

import numpy as np
import numpy.typing as npt

from baseload.app.plan_map import Kind
from baseload.fleet import catalog, dates, resolve, supply
from baseload.fleet.model import Fleet, Rack, Site
from baseload.fleet.planning import Buy, Lease, Plan, Rent

Floats = npt.NDArray[np.float64]


def buys(fleet: Fleet, plan: Plan) -> list[Buy]:
    """Return what may be bought: as declared, or the accelerators in use that can be had."""
    if plan.buy is not None:
        return plan.buy
    used = dict.fromkeys(resolve.accelerator_id(rack.accelerator) for _, rack in racks_of(fleet))
    return [Buy(accelerator=name) for name in used if supply.lead_weeks(name) is not None]


def racks_of(fleet: Fleet) -> list[tuple[str, Rack]]:
    """Return every group of racks with its site."""
    return [(name, rack) for name, site in fleet.sites.items() for rack in site.racks.values()]


def kinds(fleet: Fleet, plan: Plan, found: Sequence[Rent]) -> list[Kind]:
    """Return one kind an accelerator and number in a rack."""
    made: dict[tuple[str, int], Kind] = {}
    buy = {resolve.accelerator_id(one.accelerator): one for one in buys(fleet, plan)}
    for _, rack in racks_of(fleet):
        name = resolve.accelerator_id(rack.accelerator)
        known = made.get((name, rack.accelerators_per_rack))
        area = max(rack.area_m2, known.area_m2 if known else 0.0)
        made[name, rack.accelerators_per_rack] = _kind(
            name, rack.accelerators_per_rack, rack.rack_kw, area, rack.liquid_ratio, None
        )
    for name, one in buy.items():
        shapes = [key for key in made if key[0] == name]
        per_rack = one.accelerators_per_rack or (shapes[0][1] if shapes else _shape(name))
        old = made.get((name, per_rack))
        made[name, per_rack] = _kind(
            name,
            per_rack,
            one.rack_kw if one.rack_kw is not None else (old.rack_kw if old else None),
            one.area_m2 or (old.area_m2 if old else 3.0),
            old.liquid_ratio if old else None,
            one,
        )
    for offer in found:
        name = resolve.accelerator_id(offer.accelerator)
        if not any(key[0] == name for key in made):
            made[name, catalog.accelerator(name).per_server] = _kind(
                name, catalog.accelerator(name).per_server, None, 3.0, None, None
            )
    shapes_of = {name: sum(key[0] == name for key in made) for name, _ in made}
    own = [replace(one, name=name if shapes_of[name] == 1 else f"{name} x{per}") for (name, per), one in made.items()]
    return [*own, *_leased(plan, own)]


def _leased(plan: Plan, own: Sequence[Kind]) -> list[Kind]:
    """Return one kind for each lease: racked as the accelerator is otherwise, in service for its term."""
    made: dict[str, Kind] = {}
    for lease in plan.lease:
        name = resolve.accelerator_id(lease.accelerator)
        like = [one for one in own if one.accelerator == name and lease.accelerators_per_rack in (None, one.per_rack)]
        per_rack = lease.accelerators_per_rack or (like[0].per_rack if like else _shape(name))
        title = f"{name} leased {lease.term_months} months"
        n = sum(one.split(" #")[0] == title for one in made)
        title = title if not n else f"{title} #{n + 1}"
        rack_kw, area_m2, liquid = (
            (like[0].rack_kw, like[0].area_m2, like[0].liquid_ratio) if like else (None, 3.0, None)
        )
        made[title] = replace(_kind(name, per_rack, rack_kw, area_m2, liquid, lease), name=title, lease=lease)
    return list(made.values())


def order_of(kind: Kind, buy: Mapping[str, Buy]) -> Buy | Lease | None:
    """Return the terms on which a kind may be ordered; None where it may not."""
    return kind.lease or (buy.get(kind.accelerator) if kind.can_buy else None)


def _shape(name: str) -> int:
    known = catalog.accelerator(name)
    return known.accelerators_per_rack if known.needs_liquid else known.per_server


def _kind(
    name: str, per_rack: int, rack_kw: float | None, area_m2: float, liquid: float | None, buy: Buy | Lease | None
) -> Kind:
    lead = supply.lead_weeks(name)
    weeks = None if buy is None else buy.lead_weeks if buy.lead_weeks is not None else lead.middle if lead else None
    return Kind(
        name=name,
        accelerator=name,
        per_rack=per_rack,
        rack_kw=rack_kw,
        area_m2=area_m2,
        liquid_ratio=liquid,
        can_buy=buy is not None,
        lead_weeks=weeks,
    )


def rack_of(kind: Kind, racks: int = 1) -> Rack:
    """Return a kind as a group of racks."""
    return Rack(
        accelerator=kind.accelerator,
        accelerators_per_rack=kind.per_rack,
        racks=racks,
        rack_kw=kind.rack_kw,
        area_m2=kind.area_m2,
        liquid_ratio=kind.liquid_ratio,
    )


def kind_of(rack: Rack, made: Sequence[Kind]) -> int:
    """Return the place of a rack's kind."""
    name = resolve.accelerator_id(rack.accelerator)
    return next(
        a for a, one in enumerate(made) if (one.accelerator, one.per_rack) == (name, rack.accelerators_per_rack)
    )


def rack_kw(site: Site, kind: Kind, made: Sequence[Kind]) -> float:
    """Return IT kW of one rack at a site: the mean of those that stand there, else the kind's."""
    here = [rack for rack in site.racks.values() if (resolve.accelerator_id(rack.accelerator), rack.accelerators_per_rack)
            == (kind.accelerator, kind.per_rack)]  # fmt: skip
    n = sum(rack.racks for rack in here)
    if n:
        return sum(rack.racks * resolve.rack_power_kw(rack) for rack in here) / n
    return resolve.rack_power_kw(rack_of(kind))


def standing(fleet: Fleet, site_name: str, made: Sequence[Kind], days: Sequence[date]) -> Floats:
    """Return racks that stand at a site by kind and period, less what training holds."""
    site = fleet.sites[site_name]
    there = np.zeros((len(made), len(days)))
    for t, day in enumerate(days):
        for rack in dates.site_on(site, day).racks.values():
            there[kind_of(rack, made), t] += rack.racks
    for job in site.training.values():
        name, left = resolve.accelerator_id(job.accelerator), np.full(len(days), float(job.accelerators))
        for a, kind in enumerate(made):
            if kind.accelerator == name:
                taken = np.minimum(left / kind.per_rack, there[a])
                there[a] -= taken
                left -= taken * kind.per_rack
    return np.floor(there + 1e-9)


def rented_already(fleet: Fleet, site_name: str, made: Sequence[Kind], days: Sequence[date]) -> tuple[Floats, Floats]:
    """Return racks that stand at a site and are rented, by kind and period, and their rent an hour, less training's share."""
    there, rented, hourly = (np.zeros((len(made), len(days))) for _ in range(3))
    for t, day in enumerate(days):
        for rack in dates.site_on(fleet.sites[site_name], day).racks.values():
            a = kind_of(rack, made)
            there[a, t] += rack.racks
            if rack.rent_per_accelerator_hour is not None:
                rented[a, t] += rack.racks
                hourly[a, t] += rack.rent_per_accelerator_hour * rack.racks * rack.accelerators_per_rack
    free = np.divide(standing(fleet, site_name, made, days), there, out=np.zeros_like(there), where=there > 0.0)
    return rented * free, hourly * free


def may_stand(fleet: Fleet, site_name: str, kind: Kind, day: date) -> tuple[bool, str]:
    """Say whether a kind may be bought for a site by cooling and export rules; else why not."""
    known, site = catalog.accelerator(kind.accelerator), fleet.sites[site_name]
    if known.needs_liquid and site.cooling.type == "air":
        return False, f"{kind.name} needs liquid, and {site_name} is cooled by air"
    facts = resolve.site_facts(fleet, site_name)
    rule = supply.export(kind.accelerator, facts.jurisdiction, day, facts.operator_jurisdiction)
    if rule.verdict != "free":
        return False, f"{kind.name} to {site_name}: {rule.verdict} ({rule.why})"
    return True, ""


def unit_price(kind: Kind, buy: Buy | None, fleet: Fleet, today: date, day: date) -> float:
    """Return the price of one accelerator ordered on a day, in the fleet's currency."""
    years = max(0.0, (day - today).days / 365.25)
    orders = supply.supply().accelerators.get(kind.accelerator)
    drop = orders.price_drop_per_year if orders is not None else 0.0
    if buy is not None and buy.price_drop_per_year is not None:
        drop = buy.price_drop_per_year
    if buy is not None and buy.price_per_accelerator is not None:
        return float(buy.price_per_accelerator * (1.0 - drop) ** years)
    if buy is not None and buy.price_drop_per_year is not None:
        now = supply.price_usd(kind.accelerator, today) * fleet.money.usd_rate
        return float(now * (1.0 - drop) ** years)
    return supply.price_usd(kind.accelerator, day) * fleet.money.usd_rate
