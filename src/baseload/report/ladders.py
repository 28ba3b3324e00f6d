"""The capacity ladder of a site, from its dates, plant, racks and records; the arithmetic is `formulas/ladder.py`.

Rungs in IT MW, and in tokens/s (input and output together, as served). Tokens are what the run's replicas can do; MW
without a replica are converted by the same mix, and marked modelled. Training counts in MW as served and sold.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import date

from baseload.fleet import dates, resolve
from baseload.fleet.model import Site
from baseload.formulas import ladder as rungs
from baseload.formulas.ladder import Rung
from baseload.ports import RunMeta
from baseload.report.model import Step
from baseload.report.site_power import SiteHours, SitePlant
from baseload.report.used import Used, UsedBy
from baseload.report.words import megawatts, percent

KW_PER_MW = 1000.0
NAMES = {"within_slo": "within SLO"}
SPARE = "kept spare by redundancy"
UNBOUGHT = "the grid agreement covers it, but no power contract does"
UNSIGNED_OR_UNBOUGHT = "announced, but no grid agreement or no power contract covers it"


@dataclass(slots=True)
class Serving:
    """What a site's replicas draw and can serve: MW at full load, tokens/s at full load and within the SLO."""

    mw: float = 0.0
    saturated_tokens_per_s: float = 0.0  # with every replica up
    within_slo_mw: float = 0.0
    within_slo_tokens_per_s: float = 0.0
    known: bool = True  # whether every deployment says its rates
    training_mw: float = 0.0  # at full load
    training_useful_mw: float = 0.0


@dataclass(slots=True)
class SiteLadder:
    """A site's rungs with what the report says about each step."""

    rungs: list[Rung]
    reasons: dict[str, str] = field(default_factory=dict)
    open: str = ""


def site_ladder(
    meta: RunMeta, name: str, site_i: int, plant: SitePlant, hours: SiteHours, used: UsedBy, sold_tokens_per_s: float,
    day: date, fleet_mix: float,
) -> SiteLadder:  # fmt: skip
    """Return the ladder of a site; `sold_tokens_per_s` is what it served, on the mean of the measured time.

    `fleet_mix` is the fleet's tokens/s per IT MW: for a site where no replica runs yet.
    """
    serving = _serving(meta, name, site_i, plant, used)
    raw, reason_keys = upper_rungs(plant, day)
    racked_mw = raw["racked"]
    available = _available(site_i, used)
    limit_mw = float("inf") if hours.limit_kw_mean is None else hours.limit_kw_mean / KW_PER_MW
    up_mw = racked_mw * available
    raw["healthy"] = min(up_mw, limit_mw)
    if limit_mw < up_mw:
        reason_keys["healthy"] = "power_limit"
    fits = min(1.0, raw["healthy"] / up_mw) if up_mw > 0.0 else 0.0  # of what is up, under the power limit
    tokens: dict[str, float] = {}
    if serving.known:
        raw["within_slo"] = (serving.within_slo_mw + serving.training_useful_mw) * fits
        tokens["within_slo"] = serving.within_slo_tokens_per_s * fits
        tokens["sold"] = sold_tokens_per_s
        part = sold_tokens_per_s / tokens["within_slo"] if tokens["within_slo"] > 0.0 else 0.0
        raw["sold"] = (serving.within_slo_mw * part + serving.training_useful_mw) * fits
    mix = serving.saturated_tokens_per_s / serving.mw if serving.mw > 0.0 else fleet_mix
    made = rungs.ladder(raw, {key: value for key, value in reason_keys.items() if key in rungs.RUNGS})
    made = rungs.with_tokens(made, tokens, mix)
    result = SiteLadder(made)
    result.reasons = _reasons(plant, made, serving, racked_mw, available, limit_mw) | _uncontracted(plant.site, day)
    if not serving.known:
        result.open = "tokens/s within the SLO were not reckoned for every deployment: the last rungs are not known"
    elif serving.mw == 0.0:
        result.open = "no replica runs here: megawatts are converted to tokens/s by the fleet's mix"
    return result


def mix_of(meta: RunMeta, plants: Sequence[SitePlant], used: UsedBy) -> float:
    """Return the fleet's tokens/s per IT MW, of all its replicas at full load; 0 where none runs or rates are unknown."""
    mw = tokens = 0.0
    for (d, s), one in used.items():
        if 0 <= d < len(meta.deployments) and 0 <= s < len(plants):
            full = meta.deployments[d].saturated_tokens_per_s
            if full is not None:
                mw += one.accelerators * _mw_per_accelerator(plants[s], meta.deployments[d].accelerator)
                tokens += one.replicas * full
    return tokens / mw if mw > 0.0 else 0.0


def steps(ladder: SiteLadder) -> list[Step]:
    """Return a site's ladder for the report."""
    return [_step(rung, ladder.reasons.get(rung.name, rungs.REASONS[rung.reason])) for rung in ladder.rungs]


def fleet_steps(ladders: Sequence[tuple[str, SiteLadder]]) -> list[Step]:
    """Return the fleet's ladder: site by site added up; each step names the site that loses most there."""
    summed = rungs.sum_of_ladders([ladder.rungs for _, ladder in ladders])
    made = []
    for i, rung in enumerate(summed):
        lost = [(ladder.rungs[i].lost_mw, name, ladder) for name, ladder in ladders]
        worst = max(lost, key=lambda one: one[0], default=None)
        reason = rungs.REASONS[rung.reason]
        if worst is not None and worst[0] > 0.0:
            some_mw = 0.001 * sum(mw for mw, _, _ in lost)
            told = {ladder.reasons.get(rung.name, reason) for mw, _, ladder in lost if mw > some_mw}
            own = told.pop() if len(told) == 1 else _common(rung, told)
            reason = f"{own}, {_where(worst[0], worst[1], [mw for mw, _, _ in lost])}" if len(ladders) > 1 else own
        made.append(_step(rung, reason))
    return made


def _common(rung: Rung, told: set[str]) -> str:
    """Return one reason for sites that lose at the same step for different ones."""
    if all(reason.startswith(SPARE) for reason in told):
        return f"{SPARE} {' and '.join(sorted(reason.removeprefix(SPARE).strip() for reason in told))}"
    return rungs.REASONS[rung.name]


def _where(worst_mw: float, name: str, lost_mw: Sequence[float]) -> str:
    """Return where a step loses: one site, or how many and the worst of them."""
    n = sum(mw > 0.0 for mw in lost_mw)
    share = worst_mw / sum(lost_mw)
    if share > 0.999:
        return f"at {name}"
    return f"at {n} sites, {percent(share, 0)} of it at {name}"


def _step(rung: Rung, reason: str) -> Step:
    return Step(
        name=NAMES.get(rung.name, rung.name),
        mw=rung.mw,
        raw_mw=rung.raw_mw,
        lost_mw=rung.lost_mw,
        excess_mw=rung.excess_mw,
        tokens_per_s=rung.tokens_per_s,
        lost_tokens_per_s=rung.lost_tokens_per_s,
        excess_tokens_per_s=rung.excess_tokens_per_s,
        modelled=rung.modelled,
        reason=reason if rung.lost_mw > 0.0 or rung.lost_tokens_per_s > 0.0 else "",
    )


def upper_rungs(plant: SitePlant, day: date) -> tuple[dict[str, float], dict[str, str]]:
    """Return the rungs that need no records, in IT MW, and why the plant's step loses what it loses."""
    site = plant.site
    declared: dict[str, float] = {}
    if site.grid or site.contracts:
        declared = {
            "announced": dates.announced_mw(site, day),
            "contracted": dates.contracted_mw(site, day),
            "energised": dates.energised_mw(site, day),
        }
        # What is contracted in somebody else's building was never announced apart.
        declared["announced"] = max(declared.values())
    raw = rungs.it_equivalents(declared, plant.pue_peak)
    if declared or site.cooling.capacity_mw is not None:
        raw["coolable"] = plant.coolable_it_kw / KW_PER_MW
    raw["racked"] = plant.racked_it_kw / KW_PER_MW
    cap_mw = site.cooling.capacity_mw
    binds = cap_mw is not None and raw.get("coolable", 0.0) >= cap_mw - 1e-9
    return raw, {"coolable": "cooling" if binds else "redundancy"}


def _serving(meta: RunMeta, name: str, site_i: int, plant: SitePlant, used: UsedBy) -> Serving:
    serving = Serving()
    for (d, s), one in used.items():
        if s != site_i or not 0 <= d < len(meta.deployments):
            continue
        deployment = meta.deployments[d]
        each_mw = _mw_per_accelerator(plant, deployment.accelerator)
        mw = one.accelerators * each_mw
        available = 1.0 if one.availability_ratio is None else one.availability_ratio
        full, within = deployment.saturated_tokens_per_s, deployment.within_slo_tokens_per_s
        serving.mw += mw
        if full is None or within is None:
            serving.known = False
            continue
        serving.saturated_tokens_per_s += one.replicas * full
        serving.within_slo_tokens_per_s += one.replicas * available * min(full, within)
        serving.within_slo_mw += mw * available * (min(full, within) / full if full > 0.0 else 0.0)
    goodput = {job.name: job.goodput_ratio for job in meta.training if job.site == name}
    for job_name, job in plant.site.training.items():
        mw = job.accelerators * _mw_per_accelerator(plant, job.accelerator)
        serving.training_mw += mw
        serving.training_useful_mw += mw * job.power_ratio * goodput.get(job_name, 1.0)
    return serving


def _mw_per_accelerator(plant: SitePlant, accelerator: str) -> float:
    """Return the MW of one accelerator of a kind with its share of the server, as racked at the site; 0 if none is."""
    wanted = resolve.accelerator_id(accelerator)
    racks = [rack for rack in plant.site.racks.values() if resolve.accelerator_id(rack.accelerator) == wanted]
    accelerators = sum(rack.racks * rack.accelerators_per_rack for rack in racks)
    kw = sum(rack.racks * resolve.rack_power_kw(rack) for rack in racks)
    return kw / accelerators / KW_PER_MW if accelerators else 0.0


def _available(site_i: int, used: UsedBy) -> float:
    """Return the share of accelerator time at a site that was not failed; 1 where nothing runs."""
    here: list[Used] = [one for (_, s), one in used.items() if s == site_i]
    time = sum(one.accelerators * one.duration_s for one in here)
    down = sum(one.down_accelerator_s for one in here)
    return max(0.0, 1.0 - down / time) if time > 0.0 else 1.0


def _uncontracted(site: Site, day: date) -> dict[str, str]:
    """Return why the step to `contracted` loses anything, where power contracts cover less than the grid agreements."""
    agreed_mw = sum(phase.power_mw for phase in site.grid if dates.reached(phase, "contracted", day))
    if not site.grid or agreed_mw <= dates.contracted_mw(site, day) + 1e-9:
        return {}
    unsigned = dates.announced_mw(site, day) > agreed_mw + 1e-9
    return {"contracted": UNSIGNED_OR_UNBOUGHT if unsigned else UNBOUGHT}


def _reasons(
    plant: SitePlant, made: list[Rung], serving: Serving, racked_mw: float, available: float, limit_mw: float
) -> dict[str, str]:
    """Return the steps' reasons in words, where more is known than the name of the step."""
    reasons = {}
    site, spare_mw = plant.site, racked_mw - serving.mw - serving.training_mw
    coolable = next(rung for rung in made if rung.name == "coolable")
    if coolable.reason == "redundancy" and site.redundancy != "N":
        reasons["coolable"] = f"{SPARE} {site.redundancy}"
    elif coolable.reason == "cooling":
        reasons["coolable"] = f"the cooling plant takes {megawatts(plant.coolable_it_kw / KW_PER_MW)}"
    down = f"failed or in repair {percent(1.0 - available, 2)} of the time"
    if limit_mw < racked_mw * available:
        reasons["healthy"] = f"racks could draw {megawatts(racked_mw)}, and {megawatts(limit_mw)} may be drawn" + (
            f"; {down}" if available < 1.0 else ""
        )
    elif available < 1.0:
        reasons["healthy"] = down
    beyond = []
    if serving.mw > 0.0:
        beyond.append("beyond the load at which every SLO is met")
    if serving.training_mw > serving.training_useful_mw:
        beyond.append("training draws less than its racks could, checkpoints and restarts")
    if spare_mw > max(1e-9, 0.005 * racked_mw):
        part = "of it " if beyond else ""
        beyond.append(f"{part}{megawatts(spare_mw)} racked without a replica or a job")
    if beyond:
        reasons["within_slo"] = "; ".join(beyond)
    return reasons
