"""Supply: how long accelerators take, what they will cost, what all buyers share, and where they may go.

Dated data with sources (`data/supply.json`), most of it recalled and marked modelled: numbers to plan with until a
vendor has answered. Money is US dollars of the catalogue. Which orders are worth it is `plan`'s business.
"""

from __future__ import annotations

from collections.abc import Mapping
from datetime import date
from functools import cache
from importlib.resources import files
from typing import Literal

import msgspec

from baseload.errors import CatalogError
from baseload.fleet import catalog
from baseload.fleet.catalog import Provenance

Verdict = Literal["free", "licence", "denied"]
_HARDEST: Mapping[str, int] = {"free": 0, "licence": 1, "denied": 2}


class _Row(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Base of the rows of the file."""


class Orders(_Row, frozen=True, kw_only=True):
    """How one accelerator is had."""

    lead_weeks: tuple[float, float, float]  # order to rack: P10, P50, P90
    price_drop_per_year: float  # share by which its price falls each year
    units_per_interposer_wafer: int = 0  # 0: needs no advanced packaging
    from_: str = msgspec.field(name="from")


class SharedLimit(_Row, frozen=True, kw_only=True):
    """What all buyers of the world share in a quarter."""

    unit: str
    first_quarter: str
    per_quarter: tuple[float, ...]
    growth_per_year_after: float
    from_: str = msgspec.field(name="from")


class Quota(_Row, frozen=True, kw_only=True):
    """The most of an accelerator that one buyer was promised in a quarter."""

    accelerator: str
    quarter: str
    units: int
    from_: str = msgspec.field(name="from")


class ExportRule(_Row, frozen=True, kw_only=True):
    """A rule of export: which classes, to which destinations or to whose companies, since when, and what it says."""

    name: str
    classes: tuple[str, ...]
    destinations: frozenset[str]
    headquarters: frozenset[str]
    verdict: Verdict
    why: str
    since: date
    until: date | None
    from_: str = msgspec.field(name="from")


class Supply(_Row, frozen=True, kw_only=True):
    """The whole file."""

    about: str
    date: str
    sources: dict[str, Provenance]
    accelerators: dict[str, Orders]
    shared_limits: dict[str, SharedLimit]
    quotas: tuple[Quota, ...]
    export_rules: tuple[ExportRule, ...]


class Weeks(msgspec.Struct, frozen=True, kw_only=True):
    """A lead time in weeks from order to rack, with how far to trust it."""

    low: float
    middle: float
    high: float
    basis: str
    source: str


class Export(msgspec.Struct, frozen=True, kw_only=True):
    """What the export rules say of one accelerator, destination and buyer."""

    verdict: Verdict
    why: str
    source: str


@cache
def supply() -> Supply:
    """Return the shipped data."""
    text = files("baseload.fleet").joinpath("data/supply.json").read_bytes()
    return msgspec.json.decode(text, type=Supply)


def lead_weeks(accelerator: str) -> Weeks | None:
    """Return how long an order of an accelerator takes; None where it cannot be bought (a cloud's own) or is unknown."""
    orders = supply().accelerators.get(catalog.accelerator(accelerator).accelerator_id)
    if orders is None:
        return None
    origin = supply().sources[orders.from_]
    low, middle, high = orders.lead_weeks
    return Weeks(low=low, middle=middle, high=high, basis=origin.basis, source=origin.source)


def price_usd(accelerator: str, day: date) -> float:
    """Return the expected price of one accelerator with its share of server and network, ordered on a day.

    The catalogue's price holds on the day of this data, and falls by the same share each year from there.
    """
    known = catalog.accelerator(accelerator)
    orders = supply().accelerators.get(known.accelerator_id)
    years = max(0.0, (day - date.fromisoformat(supply().date)).days / 365.25)
    drop = 0.0 if orders is None else orders.price_drop_per_year
    price: float = known.price_usd * (1.0 - drop) ** years
    return price


def shared_limit(name: str, quarter: str) -> float:
    """Return what all buyers share in a quarter (`2027-Q1`); beyond the data it grows by its rate.

    >>> shared_limit("packaging", "2026-Q4")
    285000.0
    """
    if name not in supply().shared_limits:
        raise CatalogError(f"no shared limit `{name}`; there are {', '.join(supply().shared_limits)}")
    limit = supply().shared_limits[name]
    i = quarter_index(quarter) - quarter_index(limit.first_quarter)
    last = len(limit.per_quarter) - 1
    if i <= last:
        return limit.per_quarter[max(0, i)]
    grown: float = limit.per_quarter[last] * (1.0 + limit.growth_per_year_after) ** ((i - last) / 4.0)
    return grown


def shared_use(name: str, accelerator: str) -> float:
    """Return how much of a shared limit one accelerator takes: wafers, or GB of HBM.

    >>> round(1.0 / shared_use("packaging", "h100-sxm"))
    28
    """
    known = catalog.accelerator(accelerator)
    orders = supply().accelerators.get(known.accelerator_id)
    packaged = orders is not None and orders.units_per_interposer_wafer > 0
    if name == "packaging":
        return 1.0 / orders.units_per_interposer_wafer if orders is not None and packaged else 0.0
    if name == "hbm":
        return known.memory_gb if packaged else 0.0
    raise CatalogError(f"no shared limit `{name}`; there are {', '.join(supply().shared_limits)}")


def quota_units(accelerator: str, quarter: str, quotas: tuple[Quota, ...] | None = None) -> int | None:
    """Return the most units promised in a quarter; None where no quota is known. Nothing ships: quotas are yours."""
    rows = supply().quotas if quotas is None else quotas
    wanted = catalog.accelerator(accelerator).accelerator_id
    found = [
        row.units
        for row in rows
        if row.quarter == quarter and catalog.accelerator(row.accelerator).accelerator_id == wanted
    ]
    return min(found) if found else None


def quarter_index(quarter: str) -> int:
    """Return quarters since year 0, for differences.

    >>> quarter_index("2027-Q1") - quarter_index("2026-Q4")
    1
    """
    year, dash, number = quarter.partition("-Q")
    if not dash or not year.isdigit() or number not in ("1", "2", "3", "4"):
        raise CatalogError(f"`{quarter}` is no quarter; write e.g. 2027-Q1")
    return int(year) * 4 + int(number) - 1


def export(accelerator: str, destination: str, day: date, headquarters: str | None = None) -> Export:
    """Return whether an accelerator may go to a country, for a buyer with headquarters in one; the hardest rule counts.

    >>> export("h100-sxm", "NO", date(2026, 11, 21)).verdict, export("h100-sxm", "CN", date(2026, 11, 21)).verdict
    ('free', 'denied')
    """
    kind = catalog.accelerator(accelerator).export_class
    told = Export(verdict="free", why="no rule of the data reaches it", source="")
    for rule in supply().export_rules:
        in_force = rule.since <= day and (rule.until is None or day < rule.until)
        reached = destination in rule.destinations or (headquarters is not None and headquarters in rule.headquarters)
        if kind in rule.classes and in_force and reached and _HARDEST[rule.verdict] > _HARDEST[told.verdict]:
            told = Export(
                verdict=rule.verdict, why=f"{rule.name}: {rule.why}", source=supply().sources[rule.from_].source
            )
    return told
