"""What each site can power and what an hour of it costs, quarter by quarter, as `baseload plan` needs it.

Usable MW are MW at the meter after redundancy, recurring curtailment and the cooling plant in the hottest design hour;
training holds its share. Energy, carbon and water are means over the hours of a calendar quarter, hour by hour with
the PUE of its wet bulb. Physics is `formulas/`, dates are `fleet/dates.py`, chances of a phase `report/capacity.py`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import date, timedelta
from itertools import pairwise
from math import ceil
from pathlib import Path

import msgspec
import numpy as np
import numpy.typing as npt

from baseload.fleet import dates, phases, planning, resolve
from baseload.fleet.catalog import Quantity
from baseload.fleet.model import Fleet, GridConnection, Hourly, PowerContract, Series, Site
from baseload.fleet.planning import Begin, ColocationBlock, Plan
from baseload.formulas import cooling
from baseload.formulas.power import usable_fraction
from baseload.report.capacity import draw_phase
from baseload.report.site_power import SitePlant, plant_of
from baseload.report.words import percent
from baseload.units import HOURS_PER_YEAR

Floats = npt.NDArray[np.float64]
HOURS_PER_QUARTER = HOURS_PER_YEAR / 4.0
MONTHS_PER_QUARTER = 3.0
KW_PER_MW = 1000.0
PHASE_DRAWS = 2000
LIKELY_LOST = 0.5  # chance of being given up, above which it is said
FOLLOWS_WITHIN = timedelta(days=92)  # of a contract's end: one that begins then takes its place
_EPS_MW = 1e-9
_QUARTER_HOURS = (0, 2160, 4344, 6552, 8760)  # of a year of 365 days


@dataclass(frozen=True, slots=True, kw_only=True)
class Phase:
    """Power that is on its way or may be begun: a grid phase, or a block in somebody's building."""

    name: str
    site: str  # of the problem: a declared one, or a hall of it
    declared: str
    index: int | None  # place in the site's `grid`; None: a new phase or a block
    kind: str  # grid, colocation
    meter_mw: float  # at the connection
    usable_mw: float  # of it, after redundancy, curtailment and cooling
    periods: int  # from begin to power
    begun: bool  # under way already: it costs nothing more
    first_period: int
    after: int | None  # place in the list of all phases
    cost_to_begin: float
    cost_per_year: float
    paid_ratio: float = 1.0  # of a block, paid whether it is used or not
    price_per_mw_quarter: float = 0.0  # of what is used beyond that

    @property
    def paid_mw(self) -> float:
        """MW of what is usable that may be drawn without paying more."""
        return min(self.usable_mw, self.paid_ratio * self.meter_mw)


@dataclass(frozen=True, slots=True, kw_only=True)
class SiteYears:
    """One site over the periods; per MWh is per MWh of IT energy."""

    name: str
    plant: SitePlant
    usable_share: float  # of installed power, by redundancy
    usable_mw: Floats  # (T,) for racks that serve, before any phase
    training_mw: float
    energy_cost_per_mwh: Floats  # (T,)
    carbon_t_per_mwh: Floats
    carbon_market_t_per_mwh: Floats
    water_m3_per_mwh: Floats
    mean_pue: Floats
    water_price_per_m3: float
    demand_charge_per_mw_quarter: Floats  # (T,)
    ratchet: float
    billed_least_mw: Floats  # (T,) billed whatever is drawn, beyond what training draws


def site_years(
    fleet: Fleet, name: str, days: Sequence[date], base_folder: Path, plan: Plan, today: date | None = None
) -> SiteYears:
    """Return what a declared site can power and what its energy comes to, from the first day of each period.

    Phases that have stages to go on the day `today`, the first of `days` where absent, are `site_phases`'s.
    """
    site = _without_stages(fleet.sites[name], today or days[0])
    plant = plant_of(fleet, name, days[0])
    share = usable_fraction(site.redundancy, site.power_modules)
    training = _training_mw(site, plant.pue_peak)
    cap = cap_mw(site, plant.pue_peak)
    usable = np.array([min(_drawable_mw(site, day, plan) * share, cap) for day in days])
    site = renewed(site, plan)
    known: dict[tuple[int, ...], _Terms] = {}
    terms = [_terms(fleet, site, name, day, base_folder, known) for day in days]
    pue, water = _by_hour(fleet, name, plant, base_folder)
    carbon = _hours(site.carbon_g_per_kwh, site, "carbon_g_per_kwh", base_folder, f"sites.{name}.carbon_g_per_kwh")
    green = np.array([one.green_ratio for one in terms])
    paid = np.array([one.charge_per_mw_quarter for one in terms])
    return SiteYears(
        name=name,
        plant=plant,
        usable_share=share,
        usable_mw=np.maximum(0.0, usable - training),
        training_mw=training,
        energy_cost_per_mwh=np.array([_of_quarter(one.price * pue, day) for one, day in zip(terms, days, strict=True)]),
        carbon_t_per_mwh=_by_quarter(carbon * pue, days) / 1000.0,
        carbon_market_t_per_mwh=_by_quarter(carbon * pue, days) * (1.0 - green) / 1000.0,
        water_m3_per_mwh=_by_quarter(water, days),
        mean_pue=_by_quarter(pue, days),
        water_price_per_m3=site.cooling.water_price_per_m3,
        demand_charge_per_mw_quarter=paid,
        ratchet=float(np.average([one.ratchet for one in terms], weights=paid)) if paid.sum() > 0.0 else 0.0,
        billed_least_mw=np.maximum(0.0, np.array([one.billed_least_mw for one in terms]) - training),
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class _Terms:
    """What the contracts in force on a day ask for together; each has its part of the peak, by its MW."""

    price: Floats  # of each hour of a year, per MWh
    green_ratio: float
    charge_per_mw_quarter: float
    ratchet: float
    billed_least_mw: float


def _terms(
    fleet: Fleet, site: Site, name: str, day: date, base_folder: Path, known: dict[tuple[int, ...], _Terms]
) -> _Terms:
    """Return the terms of a day; `known` are those of the same contracts on other days."""
    active = dates.active_contracts(site, day)
    which = tuple(i for i, one in enumerate(site.contracts) if one in active)
    if which in known:
        return known[which]
    charges = [one.power_mw * one.demand_charge_per_kw_month * KW_PER_MW * MONTHS_PER_QUARTER for one in active]
    total_mw, charged = sum(one.power_mw for one in active), sum(charges)

    def mean(values: Sequence[float]) -> float:  # by what each contract charges
        return sum(charge * value for charge, value in zip(charges, values, strict=True)) / charged if charged else 0.0

    known[which] = _Terms(
        price=_price(fleet, site, name, day, base_folder),
        green_ratio=_green_ratio(site, day),
        charge_per_mw_quarter=charged / total_mw if active else 0.0,
        ratchet=mean([one.ratchet_ratio for one in active]),
        billed_least_mw=mean([one.minimum_bill_ratio for one in active]) * total_mw,
    )
    return known[which]


def cap_mw(site: Site, pue_peak: float) -> float:
    """Return the MW at the meter beyond which no phase helps: cooling plant and recurring curtailment."""
    curtailed = min((limit.power_mw for limit in site.power_limits if limit.every_h is not None), default=np.inf)
    cool = np.inf if site.cooling.capacity_mw is None else site.cooling.capacity_mw * pue_peak
    return float(min(curtailed, cool))


def renewed(site: Site, plan: Plan) -> Site:
    """Return a site whose contracts go on after their end, until another that began later takes their place.

    One that begins within a quarter before the end, or after it, is taken to follow.
    """
    if not plan.renew_contracts:
        return site

    def until(one: PowerContract) -> date | None:
        if one.until is None:
            return None
        from_day, ends = one.start or date.min, one.until
        following = [
            other.start
            for other in site.contracts
            if other.start is not None and other.start > from_day and other.start >= ends - FOLLOWS_WITHIN
        ]
        return max(ends, min(following)) if following else None

    kept = [msgspec.structs.replace(one, until=until(one)) for one in site.contracts]
    return msgspec.structs.replace(site, contracts=kept)


def _without_stages(site: Site, today: date) -> Site:
    """Return a site without the power of phases that have stages to go, whatever day they declare."""
    grid = [msgspec.structs.replace(one, energised=None) if _has_stages(one, today) else one for one in site.grid]
    return msgspec.structs.replace(site, grid=grid)


def _has_stages(phase: GridConnection, today: date) -> bool:
    """Say whether stages count for a phase on a day: it has no day of power, or stages beside one that is to come."""
    return phase.energised is None or (bool(phase.stages) and phase.energised > today)


def _drawable_mw(site: Site, day: date, plan: Plan) -> float:
    """Return what may be drawn on a day; contracts that end are renewed where the plan says so."""
    return dates.drawable_mw(renewed(site, plan), day)


def _training_mw(site: Site, pue_peak: float) -> float:
    """Return the MW at the meter that training jobs hold at full load of their accelerators."""
    total_kw = 0.0
    for job in site.training.values():
        wanted = resolve.accelerator_id(job.accelerator)
        racks = [rack for rack in site.racks.values() if resolve.accelerator_id(rack.accelerator) == wanted]
        accelerators = sum(rack.racks * rack.accelerators_per_rack for rack in racks)
        kw = sum(rack.racks * resolve.rack_power_kw(rack) for rack in racks)
        total_kw += kw * min(1.0, job.accelerators / accelerators) if accelerators else 0.0
    return total_kw / KW_PER_MW * pue_peak


def _by_hour(fleet: Fleet, name: str, plant: SitePlant, base_folder: Path) -> tuple[Floats, Floats]:
    """Return the PUE, and cubic metres of water a MWh of IT, of each hour of a year."""
    site = fleet.sites[name]
    wetbulb = _hours(site.cooling.wetbulb_c, site, "wetbulb_c", base_folder, f"sites.{name}.cooling.wetbulb_c")
    pue = cooling.pue(wetbulb, 1.0, plant.plant) if site.cooling.pue is None else np.full(8760, site.cooling.pue)
    return np.asarray(pue, float), np.asarray(cooling.wue_l_per_kwh(wetbulb, 1.0, plant.plant), float)


def _price(fleet: Fleet, site: Site, name: str, day: date, base_folder: Path) -> Floats:
    """Return the price of each hour: the mean of the contracts in force by their MW."""
    key = f"sites.{name}.contracts"
    rate = fleet.money.usd_rate
    active = dates.active_contracts(site, day) or site.contracts
    if not active:
        return _hours(None, site, "price_per_mwh", base_folder, key, rate)
    total = sum(contract.power_mw for contract in active)
    price = np.zeros(8760)
    for contract in active:
        hours = _hours(contract.price_per_mwh, site, "price_per_mwh", base_folder, key, rate)
        price += contract.power_mw / total * hours
    return price


def _green_ratio(site: Site, day: date) -> float:
    active = dates.active_contracts(site, day) or site.contracts
    total = sum(contract.power_mw for contract in active)
    return sum(one.power_mw * one.green_ratio for one in active) / total if total else 0.0


def _hours(
    value: Hourly | Series | None, site: Site, kind: Quantity, base_folder: Path, key: str, rate: float = 1.0
) -> Floats:
    if value is None and site.place is None:
        return np.zeros(8760)
    found = resolve.hourly(value, place=site.place, kind=kind, base_folder=base_folder, usd_rate=rate, key=key)
    values = np.asarray(found.values, float)
    return np.broadcast_to(values, (8760,)) if len(values) == 1 else values


def _by_quarter(hourly: Floats, days: Sequence[date]) -> Floats:
    """Return the mean over the hours of each period's calendar quarter."""
    return np.array([_of_quarter(hourly, day) for day in days])


def _of_quarter(hourly: Floats, day: date) -> float:
    a, b = list(pairwise(_QUARTER_HOURS))[(day.month - 1) // 3]
    return float(hourly[a:b].mean())


# ---- phases ----------------------------------------------------------------------------------------------


def site_phases(
    fleet: Fleet, plan: Plan, today: date, days: Sequence[date], seed: int
) -> tuple[list[Phase], list[str]]:
    """Return what may add power at the declared sites, and what is worth knowing of it."""
    made: list[Phase] = []
    notes: list[str] = []
    for name, site in fleet.sites.items():
        plant = plant_of(fleet, name, days[0])
        share = usable_fraction(site.redundancy, site.power_modules)
        first = len(made)
        room = cap_mw(site, plant.pue_peak) - _drawable_mw(_without_stages(site, today), days[-1], plan) * share
        found, said = _of_site(fleet, plan, name, today, days, seed)
        notes += said
        for one in found:
            usable = min(one.meter_mw * share, max(0.0, room))
            room -= usable
            if usable < one.meter_mw * share - _EPS_MW:
                notes.append(f"{one.name}: cooling or curtailment leaves {usable:.3g} of {one.meter_mw * share:.3g} MW")
            after = None if one.after is None else first + one.after
            made.append(replace(one, usable_mw=usable, after=after))
    return made, notes


def _of_site(
    fleet: Fleet, plan: Plan, name: str, today: date, days: Sequence[date], seed: int
) -> tuple[list[Phase], list[str]]:
    site = fleet.sites[name]
    wanted = {one.phase: one for one in plan.begin or () if one.site == name and one.phase is not None}
    found, notes = [], []
    for i, phase in enumerate(site.grid):
        if not _has_stages(phase, today):
            continue  # a declared day is taken as it is: `dates` counts it
        begun = _under_way(phase, today)
        begin = wanted.get(i)
        if begun or begin is not None or (plan.begin is None and phase.energised is None):
            declared = begin.months if begin is not None and not begun else None
            wait, why, said = _awaited(phase, today, days, seed=[seed, i], begun=begun, declared=declared)
            notes += [f"{name} grid {i}: {one}" for one in said]
            if not why:
                found.append(_phase(fleet, name, i, phase, begin or Begin(site=name, phase=i), begun, wait, days))
            else:
                notes.append(f"{name} grid {i}: {why}: the plan does not count on it")
    for n, begin in enumerate(one for one in plan.begin or () if one.site == name and one.phase is None):
        phase, i = GridConnection(power_mw=begin.power_mw or 0.0), len(site.grid) + n
        wait, _, _ = _awaited(phase, today, days, seed=[seed, i], begun=False, declared=begin.months)
        found.append(_phase(fleet, name, i, phase, begin, False, wait, days, new=True))
    found.sort(key=lambda one: one.periods)
    for block in plan.colocation:
        if block.site == name:
            found += _blocks(block, len([one for one in found if one.kind == "colocation"]), len(found))
    return found, notes


def _under_way(phase: GridConnection, today: date) -> bool:
    """Say whether a phase has a grid agreement, or stages that are done beyond it: it goes on without a decision."""
    agreement = phase.stages.get("agreement")
    signed = phase.contracted or (agreement.done if agreement else None) or phase.energised
    return (signed is not None and signed <= today) or phase.energised is not None


def _awaited(
    phase: GridConnection, today: date, days: Sequence[date], *, seed: list[int], begun: bool, declared: float | None
) -> tuple[int, str, list[str]]:
    """Return the periods from begin to power, why it is not to be counted on (empty: it is), and what is worth knowing.

    The months are those declared, else the median of the stages as they would be were the phase not given up.
    """
    if phase.until is not None and phase.until < planning.quarters_from(days[-1], 2)[1]:
        return 0, f"its power ends within the horizon (`until: {phase.until}`)", []
    drawn = draw_phase(phase, today, n=PHASE_DRAWS, seed=seed).draws
    lost = float(np.mean(~np.isfinite(drawn.energised_month)))
    if phase.certainty == 0.0 or (lost == 1.0 and declared is None):
        return 0, f"it never comes to power: it is given up in all of {PHASE_DRAWS:,} draws", []
    done = np.max(np.stack(list(drawn.finish_month.values())), axis=0) if drawn.finish_month else drawn.energised_month
    months = float(np.median(done)) if declared is None else declared
    wait = months - phases.months_between(today, days[0]) if begun else months
    periods = max(0, ceil(wait / MONTHS_PER_QUARTER - 1e-9))
    said = []
    if lost > LIKELY_LOST and declared is None:
        said.append(
            f"it is given up before it has power with a chance of {percent(lost, 0)} (its rate or `certainty`, else the "
            f"prior); {'' if begun else 'where it is begun '}the plan counts on it all the same"
        )
    if phase.energised is not None:
        first = next((t for t, day in enumerate(days) if day >= phase.energised), len(days))
        if first > periods:
            said.append(
                f"its power is counted from its declared day on, {phase.energised}, though its stages are done before"
            )
        elif first < periods:
            said.append(
                f"its stages are done after its declared day, {phase.energised}: its power is counted from then on"
            )
        periods = max(periods, first)
    return periods, "", said


def _phase(
    fleet: Fleet, name: str, i: int, phase: GridConnection, begin: Begin, begun: bool, periods: int,
    days: Sequence[date], *, new: bool = False,
) -> Phase:  # fmt: skip
    first = next((t for t, day in enumerate(days) if begin.not_before is None or day >= begin.not_before), len(days))
    cost = begin.cost_to_begin
    if cost is None:
        cost = planning.GRID_COST_USD_PER_KW * phase.power_mw * KW_PER_MW * fleet.money.usd_rate
    return Phase(
        name=f"{name} grid {i}" + (" (new)" if new else ""),
        site=name,
        declared=name,
        index=None if new else i,
        kind="grid",
        meter_mw=phase.power_mw,
        usable_mw=0.0,
        periods=periods,
        begun=begun,
        first_period=0 if begun else first,
        after=None,
        cost_to_begin=0.0 if begun else cost,
        cost_per_year=begin.cost_per_year,
    )


def _blocks(block: ColocationBlock, taken: int, before: int) -> list[Phase]:
    price = block.price_per_kw_month
    return [
        Phase(
            name=f"{block.site} colocation {taken + n}",
            site=block.site,
            declared=block.site,
            index=None,
            kind="colocation",
            meter_mw=block.power_mw,
            usable_mw=0.0,
            periods=ceil(block.months / MONTHS_PER_QUARTER - 1e-9),
            begun=False,
            first_period=0,
            after=before + n - 1 if n else None,
            cost_to_begin=0.0,
            cost_per_year=block.power_mw * KW_PER_MW * price * 12.0 * block.take_or_pay_ratio,
            paid_ratio=block.take_or_pay_ratio,
            price_per_mw_quarter=price * KW_PER_MW * MONTHS_PER_QUARTER,
        )
        for n in range(block.blocks)
    ]


# ---- halls -----------------------------------------------------------------------------------------------


def hall_name(site: str, hall: int) -> str:
    """Return the name of a power hall of a site.

    >>> hall_name("oslo", 0)
    'oslo hall 1'
    """
    return f"{site} hall {hall + 1}"


def by_hall(phases: Sequence[Phase], halls: Mapping[str, int]) -> list[Phase]:
    """Return phases with equal parts for each hall of a site that counts as several."""
    made: list[Phase] = []
    for p, one in enumerate(phases):
        n = halls.get(one.declared, 1)
        for hall in range(n):
            made.append(
                one
                if n == 1
                else replace(
                    one, name=f"{one.name} hall {hall + 1}", site=hall_name(one.declared, hall), meter_mw=one.meter_mw / n,
                    usable_mw=one.usable_mw / n, cost_to_begin=one.cost_to_begin / n, cost_per_year=one.cost_per_year / n,
                    after=None if one.after is None else len(made) - (p - one.after) * n,
                )
            )  # fmt: skip
    return made
