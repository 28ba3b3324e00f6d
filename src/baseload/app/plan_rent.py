"""Offers of rent: as sites of their own in the fleet, and as kinds of contract with what an hour costs.

An offer's accelerators stand in somebody else's building, with its power and cooling in the price: they are a site
apart, that can be lost apart. Offers of one operator in one place are one site.
"""

from __future__ import annotations

from itertools import count
from math import ceil

import msgspec

from baseload.app.plan_map import Terms
from baseload.fleet import catalog, resolve
from baseload.fleet.check_plan import CLOUD_LAW, list_price_usd
from baseload.fleet.model import Cooling, Fleet, PowerContract, Site
from baseload.fleet.planning import TERM_MONTHS, Plan, Rent
from baseload.formulas.money import spot_useful_ratio

MOST_POWER_MW = 100_000.0


def offers(fleet: Fleet, plan: Plan) -> list[Rent]:
    """Return the offers: declared ones, or where the plan says nothing the list prices, at each site's place."""
    if plan.rent is not None:
        return plan.rent
    used = dict.fromkeys(
        catalog.accelerator(rack.accelerator).accelerator_id
        for site in fleet.sites.values()
        for rack in site.racks.values()
    )
    places = dict.fromkeys(catalog.place(site.place).place_id for site in fleet.sites.values() if site.place)
    return [
        Rent(accelerator=name, place=place)
        for place in places
        for name in used
        if catalog.accelerator(name).rental_usd_h is not None
    ]


def site_of(offer: Rent) -> str:
    """Return the name of the site that an offer stands in."""
    return f"{offer.operator}-{catalog.place(offer.place).place_id}"


def with_rent(fleet: Fleet, found: list[Rent]) -> Fleet:
    """Return the fleet with a site for each place of rent; power and cooling there are in the price."""
    sites = dict(fleet.sites)
    for offer in found:
        name = site_of(offer)
        sites.setdefault(
            name,
            Site(
                place=offer.place,
                operator=offer.operator,
                operator_jurisdiction=offer.operator_jurisdiction or CLOUD_LAW,
                contracts=[PowerContract(power_mw=MOST_POWER_MW, price_per_mwh=0.0)],
                cooling=Cooling(pue=1.0, type="direct_to_chip"),
                chain_efficiency=1.0,
                parked_power_ratio=0.0,
            ),
        )
    return msgspec.structs.replace(fleet, sites=sites)


def terms(found: list[Rent]) -> list[Terms]:
    """Return the kinds of contract among the offers; another of the same accelerator, place and kind is a kind of its own."""
    groups: dict[tuple[str, int, float, int], list[Rent]] = {}
    for offer in found:
        months = offer.term_months or TERM_MONTHS[offer.kind]
        key = (offer.kind, max(1, ceil(months / 3.0 - 1e-9)), round(useful_ratio(offer), 6))
        what = _what(offer)
        nth = next(n for n in count() if what not in map(_what, groups.get((*key, n), ())))
        groups.setdefault((*key, nth), []).append(offer)
    names: list[str] = []
    for kind, periods, _, _ in groups:
        title = f"{kind.replace('_', ' ')}, {periods * 3} months"
        n = sum(one.split(" #")[0] == title for one in names)
        names.append(title if not n else f"{title} #{n + 1}")
    return [
        Terms(name=name, kind=kind, term_periods=periods, useful=useful, offers=tuple(group))
        for name, ((kind, periods, useful, _), group) in zip(names, groups.items(), strict=True)
    ]


def _what(offer: Rent) -> tuple[str, str]:
    """Return the site and the accelerator of an offer."""
    return site_of(offer), resolve.accelerator_id(offer.accelerator)


def useful_ratio(offer: Rent) -> float:
    """Return the share of rented time that serves: spot is taken away, and another must be started."""
    return spot_useful_ratio(offer.interruptions_per_hour, 0.0, offer.restart_s) if offer.kind == "spot" else 1.0


def price_per_hour(offer: Rent, fleet: Fleet) -> float:
    """Return the price of an accelerator-hour in the fleet's currency."""
    if offer.price_per_accelerator_hour is not None:
        return offer.price_per_accelerator_hour
    listed = list_price_usd(offer)
    assert listed is not None, offer  # check_plan says it before
    return listed * fleet.money.usd_rate


def whole_most(offer: Rent) -> int | None:
    """Return the most accelerators of an offer, in whole servers where it has more than one; None where it has no limit.

    >>> [whole_most(Rent(accelerator="h100-sxm", place="paris", most=n)) for n in (None, 4, 20)]
    [None, 4, 16]
    """
    server = catalog.accelerator(offer.accelerator).per_server
    return offer.most if offer.most is None or offer.most <= server else offer.most // server * server


def law_of(fleet: Fleet, site: str) -> str:
    """Return the country where a site's data sits."""
    return resolve.site_facts(fleet, site).jurisdiction
