"""What a site is, once the catalogue has filled in what its owner did not declare; each figure with its origin.

Reads series from the catalogue or from CSV and Parquet files. What follows from the figures is `formulas/`.
"""

from __future__ import annotations

import csv
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import date
from math import isfinite
from pathlib import Path
from typing import Protocol

from baseload.errors import CatalogError, FleetError, Problem
from baseload.fleet import catalog
from baseload.fleet.model import Deployment, Fleet, Rack, Region, Series, Site

HOURS_PER_YEAR = 8760
HOURS_PER_LEAP_YEAR = 8784
_LEAP_DAY = slice(59 * 24, 60 * 24)  # 29 February
_MAX_FILE_BYTES = 64 * 1024 * 1024
_BOUNDS: Mapping[catalog.Quantity, tuple[float, float]] = {
    "price_per_mwh": (-1e6, 1e6),
    "carbon_g_per_kwh": (0.0, 5000.0),
    "wetbulb_c": (-60.0, 60.0),
}

# ISO 3166-1 alpha-2.
_COUNTRIES = """
AD AE AF AG AI AL AM AO AQ AR AS AT AU AW AX AZ BA BB BD BE BF BG BH BI BJ BL BM BN BO BQ BR BS BT
BV BW BY BZ CA CC CD CF CG CH CI CK CL CM CN CO CR CU CV CW CX CY CZ DE DJ DK DM DO DZ EC EE EG EH
ER ES ET FI FJ FK FM FO FR GA GB GD GE GF GG GH GI GL GM GN GP GQ GR GS GT GU GW GY HK HM HN HR HT
HU ID IE IL IM IN IO IQ IR IS IT JE JM JO JP KE KG KH KI KM KN KP KR KW KY KZ LA LB LC LI LK LR LS
LT LU LV LY MA MC MD ME MF MG MH MK ML MM MN MO MP MQ MR MS MT MU MV MW MX MY MZ NA NC NE NF NG NI
NL NO NP NR NU NZ OM PA PE PF PG PH PK PL PM PN PR PS PT PW PY QA RE RO RS RU RW SA SB SC SD SE SG
SH SI SJ SK SL SM SN SO SR SS ST SV SX SY SZ TC TD TF TG TH TJ TK TL TM TN TO TR TT TV TW TZ UA UG
UM US UY UZ VA VC VE VG VI VN VU WF WS YE YT ZA ZM ZW
"""
COUNTRIES = frozenset(_COUNTRIES.split())


@dataclass(frozen=True, slots=True, kw_only=True)
class SiteFacts:
    """Where a site is and whose law holds there. `origin` says for each field `declared` or the catalogue's source."""

    lat: float
    lon: float
    jurisdiction: str
    operator_jurisdiction: str
    blocs: tuple[str, ...]
    design_wetbulb_c: float
    origin: Mapping[str, str]
    modelled: tuple[str, ...]  # fields whose figure is a guess or computed


@dataclass(frozen=True, slots=True, kw_only=True)
class HourlySeries:
    """One value for always, or one for each hour of a year of 365 days from 1 January 00:00 UTC."""

    values: Sequence[float]  # length 1 or 8760
    year: int | None  # None: of no year in particular
    basis: str  # declared, measured, calibrated, modelled, datasheet
    source: str

    def at(self, hour_of_year: int) -> float:
        """Return the value of an hour; years repeat."""
        return self.values[hour_of_year % len(self.values)]


# ---- places and law --------------------------------------------------------------------------------------


def blocs_of(code: str) -> tuple[str, ...]:
    """Return the blocs that a country belongs to.

    >>> blocs_of("NO")
    ('EEA',)
    """
    return tuple(bloc for bloc, members in catalog.BLOCS.items() if code in members)


def jurisdiction_allows(code: str, allowed: Sequence[str]) -> bool:
    """Say whether a country is in a list of countries and blocs; an empty list allows every country.

    >>> jurisdiction_allows("DE", ["EU"]), jurisdiction_allows("NO", ["EU"]), jurisdiction_allows("NO", ["SE", "EEA"])
    (True, False, True)
    """
    return not allowed or code in allowed or any(bloc in allowed for bloc in blocs_of(code))


def is_known_law(code: str) -> bool:
    """Say whether a code is a country's or a bloc's."""
    return code in COUNTRIES or code in catalog.BLOCS


def site_facts(fleet: Fleet, site_name: str) -> SiteFacts:
    """Return what is known of a site; raises FleetError where neither file nor catalogue says it."""
    site = fleet.sites[site_name]
    found = _Resolver(f"sites.{site_name}", site.place)
    jurisdiction = str(found.take("jurisdiction", site.jurisdiction))
    operator = site.operator_jurisdiction
    origin = found.origin
    return SiteFacts(
        lat=float(found.take("lat", site.lat)),
        lon=float(found.take("lon", site.lon)),
        jurisdiction=jurisdiction,
        operator_jurisdiction=operator or jurisdiction,
        blocs=blocs_of(jurisdiction),
        design_wetbulb_c=float(
            found.take("design_wetbulb_c", site.cooling.design_wetbulb_c, "cooling.design_wetbulb_c")
        ),
        origin={**origin, "operator_jurisdiction": "declared" if operator else "the jurisdiction"},
        modelled=tuple(found.modelled),
    )


def region_location(fleet: Fleet, region_name: str) -> tuple[float, float, str | None]:
    """Return latitude, longitude and country (None where unknown) of a region of users."""
    region: Region = fleet.regions[region_name]
    found = _Resolver(f"regions.{region_name}", region.place)
    country = region.jurisdiction or (found.place.country if found.place else None)
    return float(found.take("lat", region.lat)), float(found.take("lon", region.lon)), country


class _Resolver:
    """Takes a figure from the file, else from the catalogue's place, and notes which."""

    def __init__(self, key: str, place: str | None) -> None:
        self.key = key
        self.place = _place(key, place) if place else None
        self.origin: dict[str, str] = {}
        self.modelled: list[str] = []

    def take(self, field: str, declared: float | str | None, key: str = "") -> float | str:
        """Return the declared value, or the place's."""
        if declared is not None:
            self.origin[field] = "declared"
            return declared
        if self.place is None:
            raise FleetError(
                Problem(
                    key=f"{self.key}.{key or field}",
                    what="is not known",
                    mend=f"write `place:` (`baseload catalog sites` lists them), or `{key or field}:` itself",
                )
            )
        known = self.place.provenance.get(field)
        self.origin[field] = f"catalogue, {self.place.place_id}" + (f": {known.source}" if known else "")
        if known and known.basis == "modelled":
            self.modelled.append(field)
        value: float | str = getattr(self.place, field)
        return value


def _place(key: str, name: str) -> catalog.Place:
    try:
        return catalog.place(name)
    except CatalogError as error:
        raise FleetError(Problem(key=f"{key}.place", what=str(error))) from None


# ---- accelerators ----------------------------------------------------------------------------------------


def accelerator_id(name: str) -> str:
    """Return the catalogue's own id of an accelerator's name or alias."""
    return catalog.accelerator(name).accelerator_id


def rack_accelerators(site: Site) -> dict[str, int]:
    """Return the accelerators racked at a site by catalogue id; racks of other days included (see `dates.on`)."""
    counts: dict[str, int] = {}
    for rack in site.racks.values():
        key = accelerator_id(rack.accelerator)
        counts[key] = counts.get(key, 0) + rack.racks * rack.accelerators_per_rack
    return counts


def server_size(rack: Rack) -> int:
    """Return how many accelerators one server of a rack holds."""
    known = catalog.accelerator(rack.accelerator).per_server
    return rack.accelerators_per_server or min(known, rack.accelerators_per_rack)


def rack_power_kw(rack: Rack) -> float:
    """Return the kW that one rack draws at full load, servers included, and no more than its own limit."""
    known = catalog.accelerator(rack.accelerator)
    nameplate = rack.accelerators_per_rack * (known.tdp_w + known.server_other_w) / 1000.0
    return min(nameplate, rack.rack_kw) if rack.rack_kw is not None else nameplate


def racks_power_mw(site: Site) -> float:
    """Return the MW that all racks of a site draw at full load, at the equipment."""
    return sum(rack.racks * rack_power_kw(rack) for rack in site.racks.values()) / 1000.0


def liquid_share(site: Site, otherwise: float) -> float:
    """Return the share of a site's heat that liquid takes: its racks' own by their kW, `otherwise` where they say none."""
    total_kw = racks_power_mw(site) * 1000.0
    if total_kw <= 0.0:
        return otherwise
    heat = [
        (rack.racks * rack_power_kw(rack), otherwise if rack.liquid_ratio is None else rack.liquid_ratio)
        for rack in site.racks.values()
    ]
    return min(1.0, max(0.0, sum(kw * share for kw, share in heat) / total_kw))


def racks_area_m2(site: Site) -> float:
    """Return the floor that all racks of a site take."""
    return sum(rack.racks * rack.area_m2 for rack in site.racks.values())


def replica_accelerators(deployment: Deployment) -> int:
    """Return the accelerators that one replica holds."""
    return deployment.tp * deployment.pp


# ---- hourly series ---------------------------------------------------------------------------------------


def hour_of_year(day: date, hour_utc: float = 0.0) -> int:
    """Return the hour of a year of 365 days; 29 February counts as 28.

    >>> hour_of_year(date(2023, 1, 2), 6.5), hour_of_year(date(2024, 3, 1)) == hour_of_year(date(2023, 3, 1))
    (30, True)
    """
    if (day.month, day.day) == (2, 29):
        day = day.replace(day=28)
    return ((day.replace(year=2023) - date(2023, 1, 1)).days * 24 + int(hour_utc)) % HOURS_PER_YEAR


def hourly(
    value: float | Series | None,
    *,
    place: str | None,
    kind: catalog.Quantity,
    base_folder: Path,
    usd_rate: float = 1.0,
    key: str = "",
) -> HourlySeries:
    """Return a declared number or series; the place's where `value` is None.

    `usd_rate` (units of the fleet's currency per US dollar) turns the catalogue's prices into the fleet's; files are in
    the fleet's currency already. `key` is the fleet file's key, for errors. Raises FleetError.
    """
    if isinstance(value, int | float):
        return HourlySeries(values=(float(value),), year=None, basis="declared", source="the fleet file")
    series = value if value is not None else Series()
    if series.file is not None:
        found = _from_file(base_folder / series.file, series.column, key=f"{key}.file", shown=series.file)
    else:
        name = series.place or place
        if name is None:
            raise FleetError(
                Problem(key=key, what="is not known", mend="write a number, a series, or the site's `place`")
            )
        found = _from_catalog(_place(key, name), kind, usd_rate if kind == "price_per_mwh" else 1.0)
    low, high = _BOUNDS[kind]
    values = [one * series.scale + series.add for one in found.values]
    for i, one in enumerate(values):
        if not (isfinite(one) and low <= one <= high):
            raise FleetError(
                Problem(
                    key=key,
                    what=f"hour {i} is {one:g}, outside {low:,g} to {high:,g}",
                    mend=f"look at unit, `scale` and `add`; {found.source}",
                )
            )
    return HourlySeries(values=values, year=found.year, basis=found.basis, source=found.source)


def _from_catalog(place: catalog.Place, kind: catalog.Quantity, rate: float) -> HourlySeries:
    series = catalog.series(place.place_id, kind)
    if series is not None:
        return HourlySeries(
            values=[one * rate for one in series.values],
            year=series.year,
            basis=series.provenance.basis,
            source=f"catalogue, {place.place_id}, hourly {series.year}: {series.provenance.source}",
        )
    field = "mean_wetbulb_c" if kind == "wetbulb_c" else kind
    origin = place.provenance[field]
    return HourlySeries(
        values=(getattr(place, field) * rate,),
        year=None,
        basis=origin.basis,
        source=f"catalogue, {place.place_id}, yearly mean {origin.date}: {origin.source}",
    )


def _from_file(path: Path, column: str | None, *, key: str, shown: str) -> HourlySeries:
    def fail(what: str, mend: str, line: int | None = None) -> FleetError:
        return FleetError(Problem(file=str(path), line=line, key=key.removeprefix("."), what=what, mend=mend))

    try:
        if not path.is_file():
            raise fail("no such file", "name a CSV or Parquet file, relative to the fleet file")
        if path.stat().st_size > _MAX_FILE_BYTES:
            raise fail("larger than 64 MB", f"it needs {HOURS_PER_YEAR} values")
        if path.suffix.lower() in (".parquet", ".pq"):
            values = _read_parquet(path, column, fail)
        else:
            values = _read_csv(path, column, fail)
    except (OSError, ValueError, csv.Error) as error:
        raise fail(f"cannot be read: {error}", "name a CSV or Parquet file in UTF-8") from None
    if len(values) == HOURS_PER_LEAP_YEAR:
        del values[_LEAP_DAY]
    if len(values) != HOURS_PER_YEAR:
        raise fail(f"{len(values):,} values", f"{HOURS_PER_YEAR} are wanted: one an hour from 1 January 00:00 UTC")
    return HourlySeries(values=values, year=None, basis="declared", source=shown)


def _read_csv(path: Path, column: str | None, fail: _Fail) -> list[float]:
    values: list[float] = []
    at = -1
    with path.open(encoding="utf-8-sig", newline="") as file:
        rows = csv.reader(file)
        for row in rows:
            if not row or (len(row) == 1 and not row[0].strip()):
                continue
            if not values and at == -1:
                at, has_header = _column(row, column, fail)
                if has_header:
                    continue
            try:
                value = float(row[at])
            except (ValueError, IndexError):
                shown = repr(row[at][:40]) if at < len(row) else "an empty field"
                raise fail(f"{shown} is not a number", "one number in each row", rows.line_num) from None
            if not isfinite(value):
                raise fail(f"{value} is not a number that can be used", "fill the gap", rows.line_num)
            values.append(value)
            if len(values) > HOURS_PER_LEAP_YEAR:
                raise fail(f"more than {HOURS_PER_LEAP_YEAR} rows", f"{HOURS_PER_YEAR} are wanted", rows.line_num)
    return values


def _column(first_row: list[str], column: str | None, fail: _Fail) -> tuple[int, bool]:
    """Return the index of the wanted column, and whether the first row is a header."""
    names = [name.strip() for name in first_row]
    if column is not None:
        if column not in names:
            raise fail(f"no column `{column}`", f"its columns: {', '.join(names[:12])}", 1)
        return names.index(column), True
    try:
        float(names[-1])
    except ValueError:
        return len(names) - 1, True
    return len(names) - 1, False


def _read_parquet(path: Path, column: str | None, fail: _Fail) -> list[float]:
    import duckdb

    try:
        with duckdb.connect() as connection:
            table = connection.read_parquet(str(path))
            name = column or table.columns[-1]
            if name not in table.columns:
                raise fail(f"no column `{name}`", f"its columns: {', '.join(table.columns[:12])}")
            rows = table.select(duckdb.ColumnExpression(name)).limit(HOURS_PER_LEAP_YEAR + 1).fetchall()
    except duckdb.Error as error:
        raise fail(f"not Parquet: {str(error).splitlines()[0]}", "name a Parquet file") from None
    values = []
    for i, (one,) in enumerate(rows):
        if isinstance(one, bool) or not isinstance(one, int | float) or not isfinite(one):
            raise fail(f"row {i} is {one!r}, not a number", "fill the gap, or name another column")
        values.append(float(one))
    return values


class _Fail(Protocol):
    def __call__(self, what: str, mend: str, line: int | None = None) -> FleetError: ...
