"""Capacity over the years: the ladder of each site and of the fleet, by quarter, with its band and what binds.

Dates and stages come from `fleet/dates.py` and `fleet/phases.py`, chances from `formulas/energise.py`, the plant from
`site_power.py`. A phase with a declared day has no doubt; others are drawn. Phases are drawn independently of each
other: a band of many phases is narrower than it would be if one shortage held them all.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import date, timedelta
from zlib import crc32

import numpy as np
import numpy.typing as npt

from baseload.fleet import dates, phases, resolve, supply
from baseload.fleet.model import Fleet, GridConnection, Site
from baseload.fleet.phases import DAYS_PER_MONTH, PhaseLeft
from baseload.formulas import energise
from baseload.formulas.power import usable_fraction
from baseload.report.capacity_model import MEANING, Band, Binding, CapacityReport, Outlook, PhaseOutlook
from baseload.report.site_power import plant_of
from baseload.report.words import megawatts, percent

Floats = npt.NDArray[np.float64]
DRAWS = 4000
_EPS_MW = 1e-9
STANDS_IN = (
    "Spread of delays and rates of withdrawal are fitted to a queue of generators (CAISO), which stands in for loads: "
    "no public queue of loads with outcomes was found. Levels are secondary sources and estimates."
)
APART = "Phases are drawn independently of each other; a shortage that holds all of them would widen the fleet's band."


def quarter_ends(today: date, n: int) -> list[date]:
    """Return the last days of `n` quarters, the one that holds `today` first.

    >>> [str(day) for day in quarter_ends(date(2026, 11, 21), 2)]
    ['2026-12-31', '2027-03-31']
    """
    ends = []
    index = today.year * 4 + (today.month - 1) // 3
    for i in range(index + 1, index + 1 + n):
        ends.append(date(i // 4, i % 4 * 3 + 1, 1) - timedelta(days=1))
    return ends


def quarter_name(day: date) -> str:
    """Return a quarter as people write it.

    >>> quarter_name(date(2026, 12, 31))
    '2026-Q4'
    """
    return f"{day.year}-Q{(day.month + 2) // 3}"


@dataclass(frozen=True, slots=True)
class PhaseDraws:
    """A phase with its draws: months from today."""

    phase: GridConnection
    left: PhaseLeft
    draws: energise.Draws

    def standing(self, stage: str, months: Floats, days: Sequence[date]) -> npt.NDArray[np.bool_]:
        """Say by draw and day whether the phase has reached announced, contracted or energised and is not gone."""
        energised = self.draws.energised_month[:, None] <= months
        if stage == "energised":
            reached = energised
        else:
            by_date = np.array([dates.reached(self.phase, stage, day) for day in days])
            agreed = self.draws.finish_month.get("agreement") if stage == "contracted" else None
            reached = np.broadcast_to(by_date, energised.shape) | energised
            if agreed is not None:
                reached = (agreed[:, None] <= months) | energised
        gone = self.draws.withdrawn_month[:, None] <= months
        if self.left.ends_month is not None:
            gone = gone | (months >= self.left.ends_month)
        return np.asarray(reached & ~gone)


def draw_phase(phase: GridConnection, today: date, *, n: int, seed: Sequence[int]) -> PhaseDraws:
    """Return the draws of one phase."""
    left = phases.left_of(phase, today)
    if left.fixed_month is not None:
        never = np.full(n, np.inf)
        return PhaseDraws(phase, left, energise.Draws(np.full(n, left.fixed_month), never))
    stages = [
        energise.Stage(
            name=stage.name,
            length=energise.Length(stage.kind, stage.low, stage.middle, stage.high),
            after=stage.after,
            done_month=stage.done_month,
            started_month=stage.started_month,
        )
        for stage in left.stages
    ]
    hazard = energise.Hazard(from_year=left.from_year, per_year=left.withdrawn_per_year)
    draws = energise.energise(
        stages, n=n, seed=seed, rho=left.common_share, hazard=hazard, age_months=left.age_months,
        certainty=left.certainty,
    )  # fmt: skip
    return PhaseDraws(phase, left, draws)


def phase_seed(seed: int, site: str, i: int) -> list[int]:
    """Return the seed of a phase's draws in the ladder, by its site and place in `grid`."""
    return [seed, crc32(site.encode()), i]


def waiting_for(drawn: PhaseDraws, month: float) -> str:
    """Return the stage that most often holds a phase up at a month; empty where it is done or given up in most draws."""
    finish = drawn.draws.finish_month
    open_ = (drawn.draws.energised_month > month) & (drawn.draws.withdrawn_month > month)
    if not open_.any() or not finish:
        return ""
    by_name = {stage.name: stage for stage in drawn.left.stages}
    running, names = [], list(finish)
    for name in names:
        before = [finish[one] for one in by_name[name].after if one in finish]
        start = np.max(np.stack(before), axis=0) if before else np.full(len(open_), -np.inf)
        running.append(np.where((start <= month) & (finish[name] > month), finish[name], -np.inf))
    held = np.argmax(np.stack(running), axis=0)[open_]
    (index, _), *_ = Counter(held.tolist()).most_common(1)
    return names[index].replace("_", " ")


@dataclass(frozen=True, slots=True)
class _SiteDraws:
    name: str
    pue_peak: float
    rungs: Mapping[str, Floats]  # IT MW by draw and quarter
    drawn: tuple[PhaseDraws, ...]
    limits: Mapping[str, float]  # IT MW that the cooling plant, and curtailment, allow; inf where none
    agreed: Floats  # IT MW under a grid agreement, before power contracts


def _site(fleet: Fleet, name: str, today: date, days: Sequence[date], n: int, seed: int) -> _SiteDraws:
    site = fleet.sites[name]
    plant = plant_of(fleet, name, days[-1])
    months = np.array([phases.months_between(today, day) for day in days])
    drawn = tuple(draw_phase(phase, today, n=n, seed=phase_seed(seed, name, i)) for i, phase in enumerate(site.grid))
    bought = np.array([sum(c.power_mw for c in dates.active_contracts(site, day)) for day in days])
    shape = (n, len(days))
    if drawn:
        announced, agreed, energised = (
            sum(one.phase.power_mw * one.standing(stage, months, days) for one in drawn)
            for stage in ("announced", "contracted", "energised")
        )
    else:
        announced = agreed = energised = np.broadcast_to(bought, shape)
    contracted = np.minimum(agreed, bought) if site.contracts else np.asarray(agreed, float)
    may_draw = np.minimum(energised, contracted)
    curtailed_mw = min((limit.power_mw for limit in site.power_limits if limit.every_h is not None), default=np.inf)
    cooling_mw = np.inf if site.cooling.capacity_mw is None else site.cooling.capacity_mw
    usable = usable_fraction(site.redundancy, site.power_modules) / plant.pue_peak
    coolable = np.minimum(np.minimum(may_draw * usable, curtailed_mw / plant.pue_peak), cooling_mw)
    racked = np.broadcast_to(np.array([_racked_mw(site, day) for day in days]), shape)
    rungs = {
        "announced": np.maximum(announced, contracted) / plant.pue_peak,
        "contracted": contracted / plant.pue_peak,
        "energised": may_draw / plant.pue_peak,
        "coolable": coolable,
        "racked": racked,
        "usable": np.minimum(coolable, racked),
    }
    limits = {"cooling": float(cooling_mw), "curtailment": float(curtailed_mw) / plant.pue_peak}
    return _SiteDraws(name, plant.pue_peak, rungs, drawn, limits, np.asarray(agreed, float) / plant.pue_peak)


def _racked_mw(site: Site, day: date) -> float:
    standing = dates.site_on(site, day)
    mw = resolve.racks_power_mw(standing)
    area = sum(rack.racks * rack.area_m2 for rack in standing.racks.values())
    return mw * min(1.0, site.floor_m2 / area) if site.floor_m2 is not None and area > 0.0 else mw


def _band(draws: Floats) -> Band:
    low, middle, high = energise.band(draws)
    return Band(p10_mw=[_clean(v) for v in low], p50_mw=[_clean(v) for v in middle], p90_mw=[_clean(v) for v in high])


def _clean(mw: float) -> float:
    return float(f"{mw:.9g}")


def _binding(one: _SiteDraws, site: Site, k: int, month: float) -> tuple[str, str, str]:
    """Return (kind, what makes it the same binding, words) for a quarter, by the mean over the draws."""
    mean = {name: float(values[:, k].mean()) for name, values in one.rungs.items()}
    if mean["racked"] <= mean["coolable"] + _EPS_MW:
        spare = mean["coolable"] - mean["racked"]
        if mean["racked"] == 0.0 and spare <= _EPS_MW:
            return "power", "no rack", "no power flows yet, and no rack is in service"
        if mean["racked"] == 0.0:
            return "racks", "none", f"no rack is in service, and {megawatts(spare)} could be powered and cooled"
        if spare <= 0.01 * mean["racked"]:
            return "nothing", "", "racks and power are in step"
        return (
            "racks",
            _size(spare),
            f"racks: {megawatts(mean['racked'])} stand, {megawatts(spare)} more could be powered",
        )
    lacks = f"{megawatts(mean['racked'] - mean['usable'])} of racks stand without power or cooling"
    for kind, words in (("cooling", "the cooling plant takes"), ("curtailment", "in curtailed hours there is")):
        if np.mean(one.rungs["coolable"][:, k] >= one.limits[kind] - _EPS_MW) > 0.5:
            return kind, "", f"{words} {megawatts(one.limits[kind])}; {lacks}"
    if (
        mean["contracted"] < float(one.agreed[:, k].mean()) - _EPS_MW
        and mean["energised"] >= mean["contracted"] - _EPS_MW
    ):
        return "contract", "", f"power contracts cover {megawatts(mean['contracted'])} of what is agreed; {lacks}"
    held = Counter(
        stage for drawn in one.drawn if (stage := waiting_for(drawn, month)) and _open_share(drawn, month) > 0.05
    )
    if held:
        stage, _ = held.most_common(1)[0]
        waiting = sum(drawn.phase.power_mw * _open_share(drawn, month) for drawn in one.drawn) / one.pue_peak
        size = _size(mean["racked"] - mean["usable"])
        return "power", f"{stage} {size}", f"power: {megawatts(waiting)} announced wait, mostly for {stage}; {lacks}"
    if site.redundancy != "N" and mean["energised"] > mean["racked"]:
        return "redundancy", "", f"redundancy {site.redundancy} keeps power spare; {lacks}"
    return "power", "none", f"power: nothing more is announced or it was given up; {lacks}"


def _size(mw: float) -> str:
    """Return a word that changes where a power doubles: where it does, what binds is told anew."""
    return str(round(np.log2(max(mw, 1e-9))))


def _open_share(drawn: PhaseDraws, month: float) -> float:
    return float(np.mean((drawn.draws.energised_month > month) & (drawn.draws.withdrawn_month > month)))


def _bindings(one: _SiteDraws, site: Site, today: date, days: Sequence[date]) -> list[Binding]:
    made: list[tuple[str, str, Binding]] = []
    for k, day in enumerate(days):
        kind, same, words = _binding(one, site, k, phases.months_between(today, day))
        name = quarter_name(day)
        if made and made[-1][:2] == (kind, same):
            made[-1] = (kind, same, Binding(first=made[-1][2].first, last=name, kind=kind, words=made[-1][2].words))
        else:
            made.append((kind, same, Binding(first=name, last=name, kind=kind, words=words)))
    return [binding for _, _, binding in made]


def _phase_outlook(site: str, i: int, one: PhaseDraws, today: date, last: date) -> PhaseOutlook:
    drawn = one.draws.energised_month
    ever = drawn[np.isfinite(drawn)]
    fixed = one.left.fixed_month is not None
    days: list[str | None] = [None, None, None]
    if len(ever) and not fixed:
        quantiles = np.quantile(ever, [0.1, 0.5, 0.9])
        days = [_month_name(today, float(month)) for month in quantiles]
    return PhaseOutlook(
        site=site,
        phase=i,
        meter_mw=one.phase.power_mw,
        declared=str(one.phase.energised) if fixed else None,
        p10=days[0],
        p50=days[1],
        p90=days[2],
        chance_in_horizon=energise.chance_by(drawn, phases.months_between(today, last)),
        chance_ever=float(np.mean(np.isfinite(drawn))),
        waits_for=waiting_for(one, 0.0),
        from_prior=one.left.from_prior,
    )


def _month_name(today: date, month: float) -> str:
    return (today + timedelta(days=min(month, 1200.0) * DAYS_PER_MONTH)).strftime("%Y-%m")


def _rack_notes(fleet: Fleet, name: str, today: date) -> list[str]:
    """Say where racks are due sooner than an order of today would arrive."""
    notes = []
    for rack_name, rack in fleet.sites[name].racks.items():
        lead = supply.lead_weeks(rack.accelerator)
        if rack.in_service is None or rack.in_service <= today or lead is None:
            continue
        weeks = (rack.in_service - today).days / 7.0
        if weeks < lead.middle:
            notes.append(
                f"racks `{rack_name}` are due in {weeks:.0f} weeks; {rack.accelerator} ordered today takes "
                f"{lead.low:g} to {lead.high:g} weeks ({lead.basis}): counted as already ordered"
            )
    return notes


def capacity(fleet: Fleet, today: date, quarters: int, *, draws: int = DRAWS, seed: int = 0) -> CapacityReport:
    """Return the ladder of each site and of the fleet over the quarters from `today`."""
    days = quarter_ends(today, quarters)
    every = [_site(fleet, name, today, days, draws, seed) for name in fleet.sites]
    sites = [
        Outlook(
            name=one.name,
            pue_peak=round(one.pue_peak, 4),
            rungs={rung: _band(values) for rung, values in one.rungs.items()},
            binds=_bindings(one, fleet.sites[one.name], today, days),
            notes=_rack_notes(fleet, one.name, today),
        )
        for one in every
    ]
    whole = {rung: sum((one.rungs[rung] for one in every), np.zeros((draws, len(days)))) for rung in MEANING}
    outlooks = [
        _phase_outlook(one.name, i, phase, today, days[-1]) for one in every for i, phase in enumerate(one.drawn)
    ]
    doubt = any(outlook.from_prior for outlook in outlooks)
    return CapacityReport(
        fleet=fleet.name,
        from_day=str(today),
        quarters=[quarter_name(day) for day in days],
        draws=draws,
        seed=seed,
        meaning=MEANING,
        whole=Outlook(
            name="the fleet",
            pue_peak=None,
            rungs={rung: _band(values) for rung, values in whole.items()},
            binds=_fleet_bindings(sites, every, [quarter_name(day) for day in days]),
        ),
        sites=sites,
        phases=outlooks,
        sources=_sources() if doubt else [],
        caveats=[*([STANDS_IN] if doubt else []), *([APART] if len(outlooks) > 1 else [])],
    )


def _fleet_bindings(sites: Sequence[Outlook], every: Sequence[_SiteDraws], quarters: Sequence[str]) -> list[Binding]:
    """Return what binds at the site that could gain most: the largest gap between what is announced and usable."""
    made: list[Binding] = []
    for k, name in enumerate(quarters):
        gaps = [float((one.rungs["announced"][:, k] - one.rungs["usable"][:, k]).mean()) for one in every]
        worst = int(np.argmax(gaps))
        share = gaps[worst] / sum(gaps) if sum(gaps) > 0.0 else 0.0
        at = next(b for b in sites[worst].binds if b.first <= name <= b.last)
        words = f"{sites[worst].name} ({percent(share, 0)} of the gap): {at.words}" if len(sites) > 1 else at.words
        kind = f"{sites[worst].name}:{at.kind}:{at.first}"
        if made and made[-1].kind == kind:
            made[-1] = Binding(first=made[-1].first, last=name, kind=kind, words=made[-1].words)
        else:
            made.append(Binding(first=name, last=name, kind=kind, words=words))
    return [Binding(first=b.first, last=b.last, kind=b.kind.split(":")[-2], words=b.words) for b in made]


def _sources() -> list[str]:
    prior = phases.priors()
    used = dict.fromkeys([stage.from_ for stage in prior.stages.values()] + [prior.spread.from_])
    return [f"{prior.sources[key].basis}: {prior.sources[key].source} ({prior.sources[key].date})" for key in used]
