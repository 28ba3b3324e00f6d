"""Cooling: what a site draws on top of its equipment, and what it drinks, by weather, load and kind of plant.

Power chain losses and lights are in here too, because together they are the PUE. The physics: free cooling takes
what the wet bulb allows, chillers the rest at a COP that falls with it; fans, pumps and idle losses have a part
that does not fall with load, so PUE rises at part load. A measured PUE beats all of this. Functions typed with
`Real` take floats or float64 arrays (hours). Plants named here are modelled, not measured.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np

from baseload.formulas.elementwise import FloatArray, Real, arc_tangent, clipped, holds, smaller
from baseload.formulas.power import usable_fraction

EVAPORATION_L_PER_KWH = 3600.0 / 2430.0  # latent heat of water near 30 C: 2.43 MJ/kg
LATENT_SHARE = 0.9  # a wet tower rejects about nine tenths by evaporation, the rest as warm air
DRIFT_SHARE = 0.0005  # droplets, of evaporation
WET_RAMP_C = 5.0  # dry-capable plants go from dry to fully wet over this span of wet bulb


@dataclass(frozen=True, slots=True, kw_only=True)
class Loop:
    """One medium that carries heat out: air or liquid, its economiser, and its chillers if it has any."""

    supply_c: float  # what the equipment is given
    rise_c: float  # what it warms the medium by
    approach_c: float  # supply that free cooling reaches, above the wet bulb (tower and heat exchangers)
    economiser: bool = True
    chiller: bool = True  # without one the plant must live with the wet bulb it gets
    cop_at_25c: float = 6.0  # chiller plant without fans and pumps, at 25 C wet bulb
    cop_slope_per_c: float = 0.1  # COP lost per degree of wet bulb (SustainDC, HewlettPackard/dc-rl)
    move_share: float  # kW of fans or pumps inside, per kW carried at full load
    reject_share: float  # kW of tower or dry-cooler fans and pumps outside, per kW rejected at full load
    dry_below_c: float = -60.0  # rejects without water below this wet bulb
    wet: bool = True  # False: never evaporates


@dataclass(frozen=True, slots=True, kw_only=True)
class Plant:
    """A whole site's plant: two loops, the share of heat that liquid takes, the power chain, and the rest."""

    air: Loop
    liquid: Loop
    liquid_share: float  # of the equipment's heat
    chain_fixed_share: float  # kW lost in UPS and transformers even at no load, per kW of design load
    chain_load_share: float  # kW lost per kW carried (three-term model of Schneider White Paper 113, no square)
    other_share: float  # lights, offices, security: kW per kW of design load
    fixed_move_share: float = 0.3  # part of fan and pump power that does not fall with load
    cycles: float = 5.0  # of concentration, before tower water is bled off


_WARM_WATER = Loop(supply_c=32.0, rise_c=10.0, approach_c=6.0, move_share=0.020, reject_share=0.012, dry_below_c=8.0)
_CONTAINED_AIR = Loop(supply_c=23.0, rise_c=11.0, approach_c=7.0, move_share=0.040, reject_share=0.015)
_EVAPORATIVE_AIR = Loop(
    supply_c=27.0, rise_c=12.0, approach_c=2.5, move_share=0.032, reject_share=0.003, dry_below_c=9.0
)
_LEGACY_AIR = Loop(
    supply_c=15.0, rise_c=9.0, approach_c=8.0, economiser=False, cop_at_25c=4.0, cop_slope_per_c=0.05,
    move_share=0.060, reject_share=0.030, wet=False,
)  # fmt: skip

PLANTS: dict[str, Plant] = {
    # Contained aisles, chilled water with a water-side economiser.
    "air": Plant(
        air=_CONTAINED_AIR, liquid=_WARM_WATER, liquid_share=0.0,
        chain_fixed_share=0.012, chain_load_share=0.034, other_share=0.010,
    ),
    # Cold plates with 32 C water take most of the heat, air the rest (fans, memory, NICs).
    "direct_to_chip": Plant(
        air=_CONTAINED_AIR, liquid=_WARM_WATER, liquid_share=0.80,
        chain_fixed_share=0.012, chain_load_share=0.034, other_share=0.010,
    ),
    # Tanks take nearly all.
    "immersion": Plant(
        air=_CONTAINED_AIR, liquid=replace(_WARM_WATER, supply_c=38.0, move_share=0.012), liquid_share=0.96,
        chain_fixed_share=0.012, chain_load_share=0.034, other_share=0.010,
    ),
    # Hyperscale: outdoor air or adiabatic, batteries in the rack instead of a double-conversion UPS.
    "air_evaporative": Plant(
        air=_EVAPORATIVE_AIR, liquid=_WARM_WATER, liquid_share=0.0,
        chain_fixed_share=0.006, chain_load_share=0.018, other_share=0.006,
    ),
    # The enterprise room of the surveys: CRACs at fixed speed, no economiser, air-cooled chillers, old UPS.
    "air_legacy": Plant(
        air=_LEGACY_AIR, liquid=_WARM_WATER, liquid_share=0.0,
        chain_fixed_share=0.030, chain_load_share=0.050, other_share=0.012, fixed_move_share=0.8,
    ),
}  # fmt: skip


def wetbulb_c(drybulb_c: Real, humidity_pct: Real | float) -> Real:
    """Return the wet-bulb temperature from dry bulb in C and relative humidity in % (Stull 2011).

    Within 1 C for 5-99 % and -20..50 C at sea level, cold and dry at once excepted; never above the dry bulb.
    Float or array. Stull's example:

    >>> round(wetbulb_c(20.0, humidity_pct=50.0), 1)
    13.7
    """
    rh: Real = humidity_pct + 0.0 * drybulb_c
    assert holds(rh >= 0.0) and holds(rh <= 100.0), humidity_pct
    root: Real = (rh + 8.313659) ** 0.5
    warm: Real = drybulb_c * arc_tangent(0.151977 * root) + arc_tangent(drybulb_c + rh)
    damp: Real = 0.00391838 * rh**1.5
    wet: Real = warm - arc_tangent(rh - 1.676331) + damp * arc_tangent(0.023101 * rh) - 4.686035
    return smaller(wet, drybulb_c)


def design_wetbulb_c(hourly_wetbulb_c: FloatArray, exceeded_ratio: float = 0.004) -> float:
    """Return the wet bulb that a share of hours exceeds; ASHRAE sizes plants for 0.4 % (35 hours a year).

    >>> design_wetbulb_c(np.arange(1001.0), exceeded_ratio=0.01)
    990.0
    """
    assert 0.0 <= exceeded_ratio < 1.0 and len(hourly_wetbulb_c) > 0, exceeded_ratio
    return float(np.quantile(hourly_wetbulb_c, 1.0 - exceeded_ratio))


def chiller_cop(wetbulb_c: Real, cop_at_25c: float = 6.0, slope_per_c: float = 0.1) -> Real:
    """Return the heat a chiller moves per unit of electricity: falls linearly with the wet bulb, within 2 and 9.

    Source: SustainDC (HewlettPackard/dc-rl): COP 6 and a linear loss. Float or array.

    >>> chiller_cop(25.0), chiller_cop(35.0)
    (6.0, 5.0)
    """
    assert slope_per_c >= 0.0, slope_per_c
    return clipped(cop_at_25c - slope_per_c * (wetbulb_c - 25.0), 2.0, 9.0)


def chiller_share(wetbulb_c: Real, loop: Loop) -> Real:
    """Return the share of a loop's heat that free cooling cannot take at a wet bulb, 0 to 1. Float or array.

    An integrated economiser pre-cools the return medium to wet bulb plus approach; chillers do what is left down
    to the supply temperature. A loop without chillers has none of it.

    >>> loop = PLANTS["air"].air  # 23 C supply, 11 C rise, 7 C approach
    >>> chiller_share(10.0, loop), chiller_share(21.5, loop), chiller_share(30.0, loop)
    (0.0, 0.5, 1.0)
    """
    zero: Real = 0.0 * wetbulb_c
    if not loop.chiller:
        return zero
    if not loop.economiser:
        return zero + 1.0
    return clipped((wetbulb_c + loop.approach_c - loop.supply_c) / loop.rise_c, 0.0, 1.0)


def wet_share(wetbulb_c: Real, loop: Loop) -> Real:
    """Return the share of rejected heat that goes by evaporation at a wet bulb, 0 to 1. Float or array.

    >>> loop = PLANTS["direct_to_chip"].liquid  # dry below 8 C
    >>> wet_share(5.0, loop), wet_share(10.5, loop), wet_share(20.0, loop)
    (0.0, 0.5, 1.0)
    """
    if not loop.wet:
        return 0.0 * wetbulb_c
    return clipped((wetbulb_c - loop.dry_below_c) / WET_RAMP_C, 0.0, 1.0)


def overhead_share(wetbulb_c: Real, load_ratio: Real | float, plant: Plant) -> Real:
    """Return what the plant draws on top of the equipment, in kW per kW of the site's design IT load.

    `load_ratio` is IT load over design IT load. Affine in load for a given hour, rising in load and in wet bulb,
    and not zero at no load: a site without work still draws. Float or array.

    >>> round(overhead_share(10.0, 1.0, PLANTS["air"]), 4), round(overhead_share(10.0, 0.0, PLANTS["air"]), 4)
    (0.114, 0.0399)
    """
    power, _ = _overhead_and_water(wetbulb_c, load_ratio, plant)
    return power


def overhead_parts(wetbulb_c: Real, plant: Plant) -> tuple[Real, Real]:
    """Return (a, b) so that overhead kW = a * design IT kW + b * IT kW in this hour: for loops over many bins.

    >>> a, b = overhead_parts(10.0, PLANTS["air"])
    >>> round(a + 0.5 * b - overhead_share(10.0, 0.5, PLANTS["air"]), 12)
    0.0
    """
    at_none = overhead_share(wetbulb_c, 0.0, plant)
    return at_none, overhead_share(wetbulb_c, 1.0, plant) - at_none


def pue(wetbulb_c: Real, load_ratio: Real | float, plant: Plant) -> Real:
    """Return power usage effectiveness, site kW over IT kW (ISO/IEC 30134-2). Float or array.

    `load_ratio` is IT load over design IT load, above 0.

    >>> round(pue(10.0, 1.0, PLANTS["air"]), 3), round(pue(10.0, 0.3, PLANTS["air"]), 3)
    (1.114, 1.207)
    """
    assert holds(load_ratio > 0.0), load_ratio
    return 1.0 + overhead_share(wetbulb_c, load_ratio, plant) / load_ratio


def wue_l_per_kwh(wetbulb_c: Real, load_ratio: Real | float, plant: Plant) -> Real:
    """Return on-site water usage effectiveness in litres per kWh of IT (The Green Grid). Float or array.

    Evaporation of the latent share of rejected heat, times C / (C - 1) for bleed at C cycles, and drift.

    >>> round(wue_l_per_kwh(20.0, 1.0, PLANTS["air"]), 2), wue_l_per_kwh(0.0, 1.0, PLANTS["air_evaporative"])
    (1.92, 0.0)
    """
    assert holds(load_ratio > 0.0), load_ratio
    _, water = _overhead_and_water(wetbulb_c, load_ratio, plant)
    return water / load_ratio


def evaporation_l_per_kwh(cycles: float, latent_share: float = LATENT_SHARE) -> float:
    """Return the litres of make-up water per kWh of heat rejected wet: evaporation, bleed, drift.

    >>> round(evaporation_l_per_kwh(cycles=5.0), 3)
    1.667
    """
    assert cycles > 1.0 and 0.0 <= latent_share <= 1.0, (cycles, latent_share)
    return EVAPORATION_L_PER_KWH * latent_share * (cycles / (cycles - 1.0) + DRIFT_SHARE)


def with_liquid_share(plant: Plant, liquid_share: float) -> Plant:
    """Return the plant with another share of the equipment's heat taken by liquid.

    >>> with_liquid_share(PLANTS["direct_to_chip"], 0.5).liquid_share
    0.5
    """
    assert 0.0 <= liquid_share <= 1.0, liquid_share
    return replace(plant, liquid_share=liquid_share)


def with_chain_efficiency(plant: Plant, efficiency: float) -> Plant:
    """Return the plant with a power chain of this efficiency from meter to server at design load.

    The split between idle and load losses stays.

    >>> plant = with_chain_efficiency(PLANTS["air"], 0.94)
    >>> round(1 / (1 + plant.chain_fixed_share + plant.chain_load_share), 6)
    0.94
    """
    assert 0.0 < efficiency <= 1.0, efficiency
    loss = 1.0 / efficiency - 1.0
    fixed = plant.chain_fixed_share / (plant.chain_fixed_share + plant.chain_load_share)
    return replace(plant, chain_fixed_share=loss * fixed, chain_load_share=loss * (1.0 - fixed))


def pue_peak(design_wetbulb_c: float, plant: Plant) -> float:
    """Return the PUE at the design wet bulb and full load: what a power contract has to be sized with.

    >>> round(pue_peak(24.0, PLANTS["air"]), 3)
    1.245
    """
    return pue(design_wetbulb_c, 1.0, plant)


def usable_it_kw(
    energised_kw: float, pue_peak: float, redundancy: str = "N", n_modules: int = 4,
    cooling_kw: float = float("inf"),
) -> float:  # fmt: skip
    """Return the IT kW that energised power carries in the hottest design hour: the "coolable" rung.

    `energised_kw` is what flows at the meter through all installed modules; redundancy keeps a part of them
    spare (power.usable_fraction). `cooling_kw` is the IT load that the cooling plant can take, if that binds.

    >>> usable_it_kw(10_000.0, pue_peak=1.25, redundancy="N+1", n_modules=4)
    6000.0
    """
    assert energised_kw >= 0.0 and pue_peak >= 1.0 and cooling_kw >= 0.0, (energised_kw, pue_peak, cooling_kw)
    return min(energised_kw * usable_fraction(redundancy, n_modules) / pue_peak, cooling_kw)


def energy_weighted_pue(hourly_pue: FloatArray, hourly_it_kw: FloatArray) -> float:
    """Return the PUE of a span of hours: all energy over IT energy, which is not the mean of the PUEs.

    >>> energy_weighted_pue(np.array([1.1, 1.3]), np.array([300.0, 100.0]))
    1.15
    """
    it_kwh = float(hourly_it_kw.sum())
    assert it_kwh > 0.0, it_kwh
    return float((hourly_pue * hourly_it_kw).sum()) / it_kwh


def _overhead_and_water(wetbulb_c: Real, load_ratio: Real | float, plant: Plant) -> tuple[Real, Real]:
    # Per kW of design IT load: (kW drawn on top, litres an hour).
    load: Real = load_ratio + 0.0 * wetbulb_c
    assert holds(load >= 0.0), load_ratio
    chain = plant.chain_fixed_share + plant.chain_load_share * load
    chain_full = plant.chain_fixed_share + plant.chain_load_share
    air_share, liquid_share = 1.0 - plant.liquid_share, plant.liquid_share
    # Losses of the power chain heat rooms that air cools.
    air_power, air_water = _loop(wetbulb_c, air_share * load + chain, air_share + chain_full, plant.air, plant)
    liquid_power, liquid_water = _loop(wetbulb_c, liquid_share * load, liquid_share, plant.liquid, plant)
    return chain + plant.other_share + air_power + liquid_power, air_water + liquid_water


def _loop(wetbulb_c: Real, heat: Real, full_heat: float, loop: Loop, plant: Plant) -> tuple[Real, Real]:
    # (kW, litres an hour) of one loop that carries `heat`, built for `full_heat`; all per kW of design IT load.
    fixed = plant.fixed_move_share
    move = loop.move_share * (fixed * full_heat + (1.0 - fixed) * heat)
    lifted = (heat + move) * chiller_share(wetbulb_c, loop)
    chill = lifted / chiller_cop(wetbulb_c, loop.cop_at_25c, loop.cop_slope_per_c)
    rejected = heat + move + chill
    reject = loop.reject_share * (fixed * full_heat + (1.0 - fixed) * rejected)
    water = rejected * wet_share(wetbulb_c, loop) * evaporation_l_per_kwh(plant.cycles)
    return move + chill + reject, water
