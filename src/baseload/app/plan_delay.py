"""How long a grid phase takes once it is begun, where `plan.begin` declares its `months`: its stages, scaled to them.

The scenarios of `--risk`, the planned fleet file and the ladder of the report all take their delays from here, so that each
has the median that the plan counts with. Without `months` nothing is scaled. Sampling is `report/capacity.py`.
"""

from __future__ import annotations

from calendar import monthrange
from datetime import date, timedelta
from math import inf, sqrt

import msgspec
import numpy as np

from baseload.app.plan_map import PlanMap
from baseload.app.plan_sites import Phase
from baseload.fleet import phases
from baseload.fleet.grid import GridStage
from baseload.fleet.model import GridConnection
from baseload.fleet.phases import DAYS_PER_MONTH, months_between
from baseload.report.capacity import Floats, draw_phase, phase_seed, quarter_ends, quarter_name
from baseload.report.words import percent

LADDER_DRAWS = 2000
ROUNDS = 60  # of scaling: a chance of withdrawal, or a stage that runs, bends the median, so that it takes some
MOST_STEP = 4.0
MOST_OFF_MONTHS = 0.01  # a third of a day: the median falls into the quarter that is meant
MOST_OFF_RATIO = 0.03  # of the wait, where the median leaps from one draw to the next
MOST_MONTHS = 600.0  # of a stage in a fleet file
LEAST_MONTHS = 1e-6
_THREES = (("min_months", "mode_months", "max_months"), ("p10_months", "p50_months", "p90_months"))


def declared_months(plan_map: PlanMap, phase: Phase) -> float | None:
    """Return the months from beginning to power that are declared for an announced phase; None where none count."""
    if phase.kind != "grid" or phase.index is None or phase.begun:
        return None
    wanted = (one for one in plan_map.plan.begin or () if (one.site, one.phase) == (phase.declared, phase.index))
    return next((one.months for one in wanted), None)


def power_day(begun: date, months: float) -> date:
    """Return the day that lies months after another, by the calendar.

    >>> power_day(date(2027, 1, 1), 15.0), power_day(date(2027, 1, 31), 1.5)
    (datetime.date(2028, 4, 1), datetime.date(2027, 3, 15))
    """
    ahead = begun.year * 12 + begun.month - 1 + int(months)
    year, month = ahead // 12, ahead % 12 + 1
    day = date(year, month, min(begun.day, monthrange(year, month)[1]))
    return day + timedelta(days=int(months % 1.0 * DAYS_PER_MONTH))


def once_begun(phase: GridConnection, day: date) -> GridConnection:
    """Return a phase begun on a day: its agreement is signed then, unless its own stages say how long that takes.

    As `plan_fleet.py` writes it: a stage of the agreement of which nothing is said says nothing of that.
    """
    if phase.contracted is not None or phase.stages.get("agreement", GridStage()) != GridStage():
        return phase
    return msgspec.structs.replace(phase, contracted=max(day, phase.permitted or day, phase.announced or day))


def centred(
    phase: GridConnection, today: date, month: float, *, begins: float, n: int, seed: list[int]
) -> GridConnection | None:
    """Return a begun phase whose open stages are scaled alike, so that half of what comes to power has come by a month.

    Months count from `today`; those of the stages from when it `begins`. What is given up is drawn for the scaled stages, at
    the phase's own rate or chance. None where no scale does it: nothing is open, or what is done later alone takes longer.
    """
    phase, best = msgspec.structs.replace(phase, energised=None), None
    factor, low, high = 1.0, 0.0, inf
    for i in range(ROUNDS if month > begins else 0):
        scaled = _scaled(phase, factor)
        if scaled is None:
            break
        drawn = draw_phase(scaled, today, n=n, seed=seed).draws.energised_month
        ever = drawn[np.isfinite(drawn)]
        middle = float(np.median(ever)) if len(ever) else 0.0
        if abs(middle - month) <= MOST_OFF_MONTHS:
            return scaled
        low, high = (factor, high) if middle < month else (low, factor)
        if middle > month and meets(middle, month, begins):
            best = scaled
        if high <= low * (1.0 + 1e-6):
            break  # one draw more is given up beyond here, and the median leaps: not before the month
        # In proportion, which is exact where all begins then and none is given up; else halved every other time.
        factor *= min(MOST_STEP, max(1.0 / MOST_STEP, (month - begins) / max(LEAST_MONTHS, middle - begins)))
        if not low < factor < high or (i % 2 and low > 0.0 and high < inf):
            factor = sqrt(low * high)
    return best


def meets(middle: float, month: float, begins: float) -> bool:
    """Say whether a median is the one that is meant, but for draws being so many and no more."""
    return abs(middle - month) <= max(MOST_OFF_MONTHS, MOST_OFF_RATIO * (month - begins))


def _scaled(phase: GridConnection, factor: float) -> GridConnection | None:
    settled = phases.settled_days(phase)
    declared = phase.stages or {name: GridStage() for name in phases.ORDER if name not in settled}
    made = {}
    for name, stage in declared.items():
        made[name] = stage if stage.done is not None or name in settled else _times(name, stage, factor)
        numbers = [value for three in _THREES for key in three if (value := getattr(made[name], key)) is not None]
        if any(value > MOST_MONTHS for value in numbers) or any(0.0 < value < LEAST_MONTHS for value in numbers):
            return None
    return msgspec.structs.replace(phase, stages=made) if made != declared or factor == 1.0 else None


def _times(name: str, stage: GridStage, factor: float) -> GridStage:
    """Return a stage that takes so many times as long; what its prior says is written out."""
    for three in _THREES:
        months = {key: getattr(stage, key) for key in three}
        if None not in months.values():
            return msgspec.structs.replace(stage, **{key: _short(value * factor) for key, value in months.items()})
    middle = stage.p50_months or phases.priors().stages[name].p50_months
    return msgspec.structs.replace(stage, p50_months=_short(middle * factor))


def _short(months: float) -> float:
    return float(f"{months:.6g}")


# ---- in the scenarios, the file and the ladder -----------------------------------------------------------


def drawn_delay(phase: GridConnection, today: date, months: float, *, n: int, seed: list[int]) -> tuple[Floats, bool]:
    """Return draws of the months from beginning to power, inf where it is given up, and whether half are by the declared ones.

    Where its stages cannot be scaled to them it is drawn as the planned fleet file has it: by its own stages, or without doubt
    where it declares none.
    """
    begun = once_begun(phase, today)
    found = centred(begun, today, months, begins=0.0, n=n, seed=seed)
    if found is None and not phase.stages:
        return np.full(n, months), False
    return draw_phase(found or begun, today, n=n, seed=seed).draws.energised_month, found is not None


def written_stages(plan_map: PlanMap, phase: Phase, begun: date) -> dict[str, dict[str, float]]:
    """Return the months of each open stage of a begun phase as the planned fleet file has them; none where not scaled."""
    months = declared_months(plan_map, phase)
    if months is None or phase.index is None:
        return {}
    record = once_begun(plan_map.fleet.sites[phase.declared].grid[phase.index], begun)
    today = plan_map.days[0]
    found = centred(
        record, today, months_between(today, power_day(begun, months)), begins=months_between(today, begun),
        n=LADDER_DRAWS, seed=phase_seed(plan_map.seed, phase.declared, phase.index),
    )  # fmt: skip
    made = {}
    for name, stage in (found.stages if found is not None else {}).items():
        if stage != record.stages.get(name):
            made[name] = {
                key: value for three in _THREES for key in three if (value := getattr(stage, key)) is not None
            }
    return made


def said(plan_map: PlanMap, phase: Phase, record: GridConnection, begun: date, live: int) -> str:
    """Return what the ladder makes of a phase with declared months; `record` is the phase as the planned file has it."""
    months, today = declared_months(plan_map, phase), plan_map.days[0]
    assert months is not None and phase.index is not None
    if not record.stages:
        return f"{phase.name}: no stages can be scaled to its {months:g} months; power is taken to come then, without doubt"
    seed = phase_seed(plan_map.seed, phase.declared, phase.index)
    drawn = draw_phase(record, today, n=LADDER_DRAWS, seed=seed).draws.energised_month
    ever, meant = drawn[np.isfinite(drawn)], months_between(today, power_day(begun, months))
    if not len(ever) or not meets(float(np.median(ever)), meant, months_between(today, begun)):
        words = f"{phase.name}: its stages cannot be scaled to its {months:g} months; the ladder goes by the stages as they are"
    else:
        gone = percent(float(np.mean(~np.isfinite(drawn))), 0)
        words = f"{phase.name}: of what comes to power half does within {months:g} months of its beginning; {gone} is given up"
    return words + _half_of_all(drawn, plan_map, live)


def _half_of_all(drawn: Floats, plan_map: PlanMap, live: int) -> str:
    """Say when half of all draws have power, those given up among them, where that is not the quarter of the plan."""
    n_periods = len(plan_map.days)
    ends = quarter_ends(plan_map.days[0], n_periods)
    reached = [float(np.mean(drawn <= months_between(plan_map.days[0], end))) > 0.5 for end in ends]
    half = reached.index(True) if True in reached else n_periods
    if half == min(live, n_periods):
        return ""
    when = f"by the end of {quarter_name(ends[half])}" if half < n_periods else "at no quarter's end of the horizon"
    counted = f"from {quarter_name(plan_map.days[live])}" if live < n_periods else "after the horizon"
    return f"; {when} more than half of all draws have its power, while the plan counts it {counted}"
