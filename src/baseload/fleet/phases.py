"""What is left to do until a grid phase carries power: the owner's stages, or the priors, as plain numbers.

A phase with an `energised` date and no stages keeps that date. Otherwise its stages count, each with the owner's
months or the prior's; milestones that have passed (permitted, contracted) settle the stages before them. Sampling and
chances are `formulas/energise.py`. Months are from the day that is asked about, 30.4375 days each.
"""

from __future__ import annotations

from collections.abc import Mapping
from datetime import date
from functools import cache
from importlib.resources import files
from math import exp
from typing import Literal

import msgspec

from baseload.fleet.catalog import Provenance
from baseload.fleet.grid import GridStage
from baseload.fleet.model import GridConnection

DAYS_PER_MONTH = 30.4375
Z90 = 1.2815515655446004  # the standard normal's 90 % quantile
ORDER = ("land", "load_study", "agreement", "substation", "transformer", "line", "build", "commissioning")
# What a milestone of the phase settles.
SETTLES = {"permitted": ("land",), "contracted": ("land", "load_study", "agreement")}


class _StagePrior(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    p50_months: float
    from_: str = msgspec.field(name="from")
    after: tuple[str, ...] = ()


class _Spread(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    sigma_of_log_total: float
    sigma_of_log_stage: float
    common_share: float
    from_: str = msgspec.field(name="from")


class _Withdrawal(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    from_year: tuple[float, ...]
    per_year: tuple[float, ...]
    contracted_per_year: float
    from_: str = msgspec.field(name="from")
    note: str = ""


class Priors(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The shipped priors with their sources."""

    about: str
    date: str
    sources: dict[str, Provenance]
    stages: dict[str, _StagePrior]
    spread: _Spread
    withdrawal: _Withdrawal


@cache
def priors() -> Priors:
    """Return the shipped priors."""
    text = files("baseload.fleet").joinpath("data/energise.json").read_bytes()
    return msgspec.json.decode(text, type=Priors)


class StageLeft(msgspec.Struct, frozen=True, kw_only=True):
    """One stage: its length in months by kind, what comes before it, and when it was or will be done for certain."""

    name: str
    kind: Literal["fixed", "pert", "quantiles"]
    low: float
    middle: float
    high: float
    after: tuple[str, ...]
    done_month: float | None
    started_month: float
    from_prior: bool


class PhaseLeft(msgspec.Struct, frozen=True, kw_only=True):
    """A phase on a day: either `fixed_month`, or stages with what may end it before."""

    power_mw: float
    fixed_month: float | None  # of a declared date
    ends_month: float | None  # of `until`
    stages: tuple[StageLeft, ...]
    from_year: tuple[float, ...]
    withdrawn_per_year: tuple[float, ...]
    age_months: float
    certainty: float | None
    common_share: float
    from_prior: bool  # whether any length or rate is a shipped prior

    @property
    def contracted_month(self) -> float | None:
        """The month of the agreement where it is settled."""
        return next((stage.done_month for stage in self.stages if stage.name == "agreement"), None)


def months_between(today: date, day: date) -> float:
    """Return the months from one day to another, negative for the past.

    >>> months_between(date(2026, 1, 1), date(2027, 1, 1)).__round__(2)
    11.99
    """
    return (day - today).days / DAYS_PER_MONTH


def left_of(phase: GridConnection, today: date) -> PhaseLeft:
    """Return what is left of a phase on a day."""
    flows = phase.energised is not None and (phase.energised <= today or not phase.stages)
    stages = () if flows else _stages(phase, today)
    from_year, rates, rate_is_prior = _rates(phase, today)
    return PhaseLeft(
        power_mw=phase.power_mw,
        fixed_month=months_between(today, phase.energised) if flows and phase.energised is not None else None,
        ends_month=None if phase.until is None else months_between(today, phase.until),
        stages=stages,
        from_year=from_year,
        withdrawn_per_year=rates,
        age_months=0.0 if phase.announced is None else max(0.0, months_between(phase.announced, today)),
        certainty=phase.certainty,
        common_share=priors().spread.common_share,
        from_prior=not flows and (rate_is_prior or any(s.from_prior and s.done_month is None for s in stages)),
    )


def _stages(phase: GridConnection, today: date) -> tuple[StageLeft, ...]:
    declared = phase.stages or {name: GridStage() for name in ORDER}
    settled = settled_days(phase)
    left = []
    for name in in_order(declared):
        stage = declared[name]
        done = stage.done or settled.get(name)
        kind, low, middle, high, from_prior = _length(name, stage)
        begun = _begun(name, phase, declared, settled)
        if done is not None and (stage.done is None or begun is None):  # says when, and nothing of how long
            kind, low, middle, high = "fixed", 0.0, 0.0, 0.0
        left.append(
            StageLeft(
                name=name,
                kind=kind,
                low=low,
                middle=middle,
                high=high,
                after=before(name, declared),
                done_month=None if done is None else months_between(today, done),
                started_month=0.0 if begun is None else months_between(today, begun),
                from_prior=from_prior,
            )
        )
    return tuple(left)


def _begun(
    name: str, phase: GridConnection, declared: Mapping[str, GridStage], settled: Mapping[str, date]
) -> date | None:
    """Return the day on which a stage with nothing declared before it began, as far as the phase says; None: unknown.

    What was skipped before it took time that is not its own, so `announced` counts for land alone, or where the owner
    says that nothing comes before it. Stages with others before them begin when those are done: the phase's own day
    is not asked for.
    """
    own = declared[name].after
    usual = priors().stages[name].after
    if before(name, declared) or not usual or own is not None:
        return phase.announced
    days = [settled[earlier] for earlier in usual if earlier in settled]
    return max(days) if len(days) == len(usual) else None


def settled_days(phase: GridConnection) -> dict[str, date]:
    """Return the days by which milestones of the phase settle its stages; the earliest where several do."""
    days: dict[str, date] = {}
    for milestone, names in SETTLES.items():
        day = getattr(phase, milestone)
        for name in names:
            if day is not None and (name not in days or day < days[name]):
                days[name] = day
    return days


def before(name: str, declared: Mapping[str, GridStage]) -> tuple[str, ...]:
    """Return the declared stages that come right before one: its own `after`, or the usual order."""
    own = declared[name].after if name in declared else None
    if own is not None:
        return tuple(own)
    found: list[str] = []
    for earlier in priors().stages[name].after:
        found += [earlier] if earlier in declared else before(earlier, declared)
    return tuple(dict.fromkeys(found))


def in_order(declared: Mapping[str, GridStage]) -> tuple[str, ...]:
    """Return the stages so that each stands behind those before it; those of a circle are left out."""
    placed: list[str] = []
    waiting = [name for name in ORDER if name in declared]
    while waiting:
        ready = [name for name in waiting if all(b in placed or b not in declared for b in before(name, declared))]
        if not ready:
            break
        placed += ready
        waiting = [name for name in waiting if name not in placed]
    return tuple(placed)


def _length(name: str, stage: GridStage) -> tuple[Literal["fixed", "pert", "quantiles"], float, float, float, bool]:
    if stage.min_months is not None and stage.mode_months is not None and stage.max_months is not None:
        flat = stage.min_months == stage.max_months
        return "fixed" if flat else "pert", stage.min_months, stage.mode_months, stage.max_months, False
    if stage.p10_months is not None and stage.p50_months is not None and stage.p90_months is not None:
        return "quantiles", stage.p10_months, stage.p50_months, stage.p90_months, False
    middle = stage.p50_months or priors().stages[name].p50_months
    factor = exp(priors().spread.sigma_of_log_stage * Z90)
    return "quantiles", middle / factor, middle, middle * factor, True


def _rates(phase: GridConnection, today: date) -> tuple[tuple[float, ...], tuple[float, ...], bool]:
    if phase.certainty is not None:
        return (0.0,), (0.0,), False
    if phase.withdrawn_per_year is not None:
        return (0.0,), (phase.withdrawn_per_year,), False
    prior = priors().withdrawal
    agreement = phase.stages.get("agreement")
    signed = phase.contracted or (agreement.done if agreement else None)
    if signed is not None and signed <= today:
        return (0.0,), (prior.contracted_per_year,), True
    return prior.from_year, prior.per_year, True
