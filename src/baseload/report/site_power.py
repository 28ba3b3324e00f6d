"""A site's hours: from IT energy in the records to kW and kWh at the meter, its price, carbon and water.

The physics is `formulas/cooling.py` and `formulas/carbon.py`, the hourly series `fleet/resolve.py`; this joins them to
the bins of the sites table. The plant is taken to be built out with the racks: its design load is what they can
draw, but not more than can be cooled.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import date, datetime
from typing import Any

import numpy as np
import numpy.typing as npt

from baseload.fleet import dates, resolve
from baseload.fleet.model import Fleet, Site
from baseload.formulas import carbon, cooling, power
from baseload.formulas.ladder import coolable_mw
from baseload.ports import BASES, BasisMeta, Run, RunMeta
from baseload.units import J_PER_KWH, NS_PER_S, S_PER_HOUR

Floats = npt.NDArray[np.float64]
BILLING_S = 900.0  # a demand charge bills the highest quarter of an hour
KW_PER_MW = 1000.0
OVER_LIMIT_SLACK = 0.005  # of a power limit, above which it counts as exceeded


@dataclass(frozen=True, slots=True, kw_only=True)
class SitePlant:
    """What is fixed for the run: the site of the day, its plant, and what it can carry."""

    site: Site
    design_wetbulb_c: float
    plant: cooling.Plant
    pue_peak: float
    racked_it_kw: float  # what all racks draw at full load: what facility and colocation cost is for
    coolable_it_kw: float  # what energised power carries after redundancy and cooling in the hottest design hour
    design_it_kw: float  # what the plant is built out for


def plant_of(fleet: Fleet, name: str, day: date) -> SitePlant:
    """Return a site's plant on a day."""
    site = dates.site_on(fleet.sites[name], day)
    facts = resolve.site_facts(fleet, name)
    plant = cooling.with_chain_efficiency(cooling.PLANTS[site.cooling.type], site.chain_efficiency)
    racked_kw = resolve.racks_power_mw(site) * KW_PER_MW
    plant = cooling.with_liquid_share(plant, resolve.liquid_share(site, plant.liquid_share))
    wetbulb = facts.design_wetbulb_c
    pue_peak = site.cooling.pue if site.cooling.pue is not None else cooling.pue_peak(wetbulb, plant)
    cap_mw = site.cooling.capacity_mw
    coolable = coolable_mw(
        dates.drawable_mw(site, day),
        pue_peak,
        site.redundancy,
        site.power_modules,
        float("inf") if cap_mw is None else cap_mw,
    )
    coolable_kw = coolable * KW_PER_MW
    design = min(racked_kw, coolable_kw) if racked_kw > 0.0 and coolable_kw > 0.0 else max(racked_kw, coolable_kw)
    return SitePlant(
        site=site,
        design_wetbulb_c=wetbulb,
        plant=plant,
        pue_peak=pue_peak,
        racked_it_kw=racked_kw,
        coolable_it_kw=coolable_kw,
        design_it_kw=design,
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class SiteHours:
    """The bins of a site, and their totals; weights of windows are in the totals, not in the columns."""

    start_s: Floats
    length_s: Floats
    weight: Floats
    it_kw: Floats
    site_kw: Floats
    limit_kw: Floats  # IT; inf where none
    tokens_per_s: Floats
    healthy_replicas: Floats
    it_kwh: float
    inference_it_kwh: float
    training_it_kwh: float
    idle_it_kwh: float
    site_kwh: float
    inference_site_kwh: float
    capped_ratio: float
    energy_cost: float
    carbon_kg: float
    carbon_market_kg: float
    inference_carbon_kg: float
    water_l: float
    billing_peak_kw: float
    limit_kw_mean: float | None

    @property
    def training_share(self) -> float:
        """Return the share of IT energy that went to training."""
        return self.training_it_kwh / self.it_kwh if self.it_kwh > 0.0 else 0.0

    @property
    def idle_share(self) -> float:
        """Return the share of IT energy that replicas drew while no step ran."""
        return self.idle_it_kwh / self.it_kwh if self.it_kwh > 0.0 else 0.0


_SITE = "SELECT * FROM sites WHERE site_i = ? ORDER BY start_ns"


def hours_of(run: Run, fleet: Fleet, name: str, i: int, plant: SitePlant, basis: list[BasisMeta]) -> SiteHours:
    """Return a site's bins with what they drew, cost, emitted and drank; adds where the series come from to `basis`."""
    columns = {key: np.asarray(values, float) for key, values in run.columns(_SITE, [i]).items()}
    start_s, length_s = columns["start_ns"] / NS_PER_S, columns["length_ns"] / NS_PER_S
    weight = _weights(run.meta, start_s, length_s)
    inference_j, training_j = columns["inference_j"], columns["training_j"]
    it_j = inference_j + training_j
    it_kw = _safe(it_j, length_s) / 1000.0
    series = _Series(run, fleet, name, plant.site, start_s, basis)
    site_kw = it_kw + _overhead_kw(it_kw, series.wetbulb_c, plant)
    site_kwh = site_kw * length_s / S_PER_HOUR * weight
    it_kwh = it_j / J_PER_KWH * weight
    inference_share = np.where(it_j > 0.0, _safe(inference_j, it_j), 1.0)
    carbon_kg: Floats = carbon.location_based_kg(site_kwh, series.carbon_g_per_kwh)
    market_kg: Floats = carbon.market_based_kg(site_kwh, series.carbon_g_per_kwh, series.green_ratio)
    limit = np.where(np.isfinite(columns["limit_kw"]) & (columns["limit_kw"] < 1e9), columns["limit_kw"], np.inf)
    seconds = length_s * weight
    tokens = columns["prefill_tokens"] + columns["decode_tokens"]
    return SiteHours(
        start_s=start_s,
        length_s=length_s,
        weight=weight,
        it_kw=it_kw,
        site_kw=site_kw,
        limit_kw=limit,
        tokens_per_s=_safe(tokens, length_s),
        healthy_replicas=columns["healthy_replicas"],
        it_kwh=float(it_kwh.sum()),
        inference_it_kwh=float((inference_j / J_PER_KWH * weight).sum()),
        training_it_kwh=float((training_j / J_PER_KWH * weight).sum()),
        idle_it_kwh=float((columns["idle_j"] / J_PER_KWH * weight).sum()),
        site_kwh=float(site_kwh.sum()),
        inference_site_kwh=float((site_kwh * inference_share).sum()),
        capped_ratio=_mean(columns["capped_ratio"], seconds),
        energy_cost=float((site_kwh * series.price_per_mwh).sum()) / KW_PER_MW,
        carbon_kg=float(carbon_kg.sum()),
        carbon_market_kg=float(market_kg.sum()),
        inference_carbon_kg=float((carbon_kg * inference_share).sum()),
        water_l=float((_wue(it_kw, series.wetbulb_c, plant) * it_kwh).sum()),
        billing_peak_kw=_billing_peak(start_s, length_s, site_kw),
        limit_kw_mean=_mean(limit, seconds) if len(limit) and np.isfinite(limit).all() else None,
    )


def over_limit(sites: Sequence[SiteHours]) -> tuple[float, float]:
    """Return the share of time in which any of the sites draws more IT power than its limit, and the most kW above it."""
    bins: dict[float, tuple[float, float]] = {}  # start: seconds, kW above the limit
    for one in sites:
        above_kw = np.where(one.it_kw > one.limit_kw * (1.0 + OVER_LIMIT_SLACK), one.it_kw - one.limit_kw, 0.0)
        seconds = one.length_s * one.weight
        for at, length_s, kw in zip(one.start_s.tolist(), seconds.tolist(), above_kw.tolist(), strict=True):
            known = bins.get(at, (0.0, 0.0))
            bins[at] = max(known[0], length_s), max(known[1], kw)
    total_s = sum(length_s for length_s, _ in bins.values())
    above = [(length_s, kw) for length_s, kw in bins.values() if kw > 0.0 and length_s > 0.0]
    share = sum(length_s for length_s, _ in above) / total_s if above else 0.0
    return share, max((kw for _, kw in above), default=0.0)


class _Series:
    """Price, carbon and wet bulb of each bin's hour."""

    def __init__(self, run: Run, fleet: Fleet, name: str, site: Site, start_s: Floats, basis: list[BasisMeta]) -> None:
        at = start_of(run.meta)
        hour0 = resolve.hour_of_year(at.date())
        second = at.hour * 3600 + at.minute * 60 + at.second
        self._hours = (hour0 + ((start_s + second) // S_PER_HOUR).astype(np.int64)) % resolve.HOURS_PER_YEAR
        self._run, self._fleet, self._name, self._site, self._basis = run, fleet, name, site, basis
        self.wetbulb_c = self._values("weather", site.cooling.wetbulb_c, "wetbulb_c", "cooling.wetbulb_c")
        self.carbon_g_per_kwh = self._values("carbon", site.carbon_g_per_kwh, "carbon_g_per_kwh", "carbon_g_per_kwh")
        total_mw = sum(contract.power_mw for contract in site.contracts)
        if site.contracts:
            parts = [
                contract.power_mw
                / total_mw
                * self._values("energy_price", contract.price_per_mwh, "price_per_mwh", "contracts")
                for contract in site.contracts
            ]
            self.price_per_mwh: Floats = np.sum(parts, axis=0)
            self.green_ratio = sum(c.power_mw * c.green_ratio for c in site.contracts) / total_mw
        else:
            self.price_per_mwh = self._values("energy_price", None, "price_per_mwh", "contracts")
            self.green_ratio = 0.0

    def _values(self, group: str, value: Any, kind: Any, key: str) -> Floats:
        # A site without a place and without a contract in force on the day has no known price: 0, and it is said.
        if value is None and self._site.place is None:
            self._note(group, "modelled", "not known: counted as 0")
            return np.zeros(len(self._hours))
        found = resolve.hourly(
            value,
            place=self._site.place,
            kind=kind,
            base_folder=self._run.base_folder,
            usd_rate=self._fleet.money.usd_rate,
            key=f"sites.{self._name}.{key}",
        )
        known = [basis for basis in BASES if basis == found.basis]
        self._note(group, known[0] if known else "modelled", found.source)
        values = np.asarray(found.values, float)
        return values[self._hours % len(values)]

    def _note(self, group: str, basis: Any, source: str) -> None:
        row = BasisMeta(figure=f"{group}.{self._name}", basis=basis, source=source)
        if row.figure not in {one.figure for one in self._basis}:
            self._basis.append(row)


def start_of(meta: RunMeta) -> datetime:
    """Return when the run begins, in UTC."""
    return datetime.fromisoformat(meta.start_utc)


def _overhead_kw(it_kw: Floats, wetbulb_c: Floats, plant: SitePlant) -> Floats:
    if plant.site.cooling.pue is not None:
        return it_kw * (plant.site.cooling.pue - 1.0)
    fixed, per_kw = cooling.overhead_parts(wetbulb_c, plant.plant)
    overhead: Floats = fixed * plant.design_it_kw + per_kw * it_kw
    return overhead


def _wue(it_kw: Floats, wetbulb_c: Floats, plant: SitePlant) -> Floats:
    if plant.design_it_kw <= 0.0 or len(it_kw) == 0:
        return np.zeros(len(it_kw))
    load = it_kw / plant.design_it_kw
    used = cooling.wue_l_per_kwh(wetbulb_c, np.where(load > 0.0, load, 1.0), plant.plant)
    return np.where(load > 0.0, used, 0.0)


def _weights(meta: RunMeta, start_s: Floats, length_s: Floats) -> Floats:
    """Return what each bin counts for: 1, or the weight of the windows it lies in, by the share that does."""
    if not meta.windows:
        return np.ones(len(start_s))
    weight = np.zeros(len(start_s))
    for window in meta.windows:
        inside = np.minimum(start_s + length_s, window.until_s) - np.maximum(start_s, window.start_s)
        weight += window.weight * np.clip(_safe(inside, length_s), 0.0, 1.0)
    return weight


def _billing_peak(start_s: Floats, length_s: Floats, site_kw: Floats) -> float:
    if len(start_s) == 0:
        return 0.0
    step_s = float(length_s[0])
    per_interval = max(1, round(BILLING_S / step_s)) if step_s > 0.0 else 1
    return power.billing_peak_kw(site_kw, per_interval)


def weighted_quantile(values: Floats, weights: Floats, share: float) -> float | None:
    """Return the smallest value not exceeded by `share` of the weight; None without weight.

    >>> weighted_quantile(np.array([1.0, 9.0, 5.0]), np.array([1.0, 1.0, 2.0]), 0.5)
    5.0
    """
    order = np.argsort(values, kind="stable")
    total = np.cumsum(weights[order])
    if len(total) == 0 or total[-1] <= 0.0:
        return None
    return float(values[order][int(np.searchsorted(total, share * total[-1] * (1.0 - 1e-12)))])


def _mean(values: Floats, weights: Floats) -> float:
    total = float(weights.sum())
    return float((values * weights).sum()) / total if total > 0.0 else 0.0


def _safe(a: Floats, b: Floats) -> Floats:
    """Return a / b, and 0 where b is 0."""
    return np.divide(a, b, out=np.zeros(len(a)), where=b > 0.0)
