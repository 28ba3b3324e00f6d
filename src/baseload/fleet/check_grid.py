"""Rules about the stages of a grid phase: three months that fit together, dates that do not contradict, no circle.

Written into `notes`; `check_sites.py` is the way in.
"""

from __future__ import annotations

from baseload.fleet import phases
from baseload.fleet.grid import GridStage
from baseload.fleet.model import GridConnection
from baseload.fleet.notes import Notes
from baseload.fleet.tree import Path
from baseload.fleet.typed import nearest

_PERT = ("min_months", "mode_months", "max_months")
_QUANTILES = ("p10_months", "p50_months", "p90_months")


def phase_rules(notes: Notes, at: Path, phase: GridConnection) -> None:
    """Write down what is wrong with the stages and chances of a phase."""
    if phase.certainty is not None and phase.withdrawn_per_year is not None:
        notes.problem(
            (*at, "certainty"), "and withdrawn_per_year both say whether it is energised at all", "keep one of them"
        )
    for name, stage in phase.stages.items():
        if name not in phases.ORDER:
            path = (*at, "stages", name)
            notes.problem(path, f"there is no stage `{name}`", nearest(name, dict.fromkeys(phases.ORDER)))
        _months(notes, (*at, "stages", name), stage)
    _circle(notes, at, phase)
    _days(notes, at, phase)


def _months(notes: Notes, at: Path, stage: GridStage) -> None:
    pert = [getattr(stage, key) for key in _PERT]
    quantiles = [getattr(stage, key) for key in _QUANTILES]
    given = [value is not None for value in pert], [value is not None for value in quantiles]
    if any(given[0]) and any(given[1]):
        notes.problem(at, "has both min/mode/max and p10/p50/p90 months", "keep one set of three")
    elif any(given[0]) and not all(given[0]):
        missing = _PERT[given[0].index(False)]
        notes.problem(at, f"`{missing}` is missing", "write min_months, mode_months and max_months together")
    elif any(given[1]) and not all(given[1]) and given[1] != [False, True, False]:
        missing = _QUANTILES[given[1].index(False)]
        notes.problem(at, f"`{missing}` is missing", "write p10_months, p50_months and p90_months, or p50_months alone")
    elif all(given[0]) and not pert[0] <= pert[1] <= pert[2]:
        notes.problem(at, f"months {pert[0]:g}, {pert[1]:g}, {pert[2]:g} are not in order", "min <= mode <= max")
    elif all(given[1]) and not quantiles[0] < quantiles[1] < quantiles[2]:
        words = ", ".join(f"{value:g}" for value in quantiles)
        notes.problem(at, f"months {words} do not rise", "p10 < p50 < p90; without doubt, write min = mode = max")


def _circle(notes: Notes, at: Path, phase: GridConnection) -> None:
    stages = phase.stages
    for name, stage in stages.items():
        for i, earlier in enumerate(stage.after or ()):
            if earlier not in stages:
                path = (*at, "stages", name, "after", str(i))
                notes.problem(path, f"`{earlier}` is no stage of this phase", "declare it, or leave it away")
    left_out = [name for name in stages if name in phases.ORDER and name not in phases.in_order(stages)]
    if left_out:
        path = (*at, "stages", left_out[0], "after")
        notes.problem(path, f"{' and '.join(left_out)} wait for each other", "no stage may come before itself")


def _days(notes: Notes, at: Path, phase: GridConnection) -> None:
    settled, stages = phases.settled_days(phase), phase.stages
    for name in phases.in_order(stages):
        done = stages[name].done
        path = (*at, "stages", name, "done")
        if done is None:
            continue
        for earlier in phases.before(name, stages):
            known = stages[earlier].done or settled.get(earlier) if earlier in stages else None
            if known is None:
                notes.problem(path, f"{done}, but {earlier} before it has no day", f"give stages.{earlier}.done too")
            elif known > done:
                notes.problem(
                    path, f"{done} is before {earlier} was done ({known})", "put the dates in the order of events"
                )
        if phase.announced is not None and done < phase.announced and name != "land":
            notes.problem(path, f"{done} is before announced {phase.announced}", "put the dates in the order of events")
        if phase.energised is not None and done > phase.energised:
            notes.problem(
                path, f"{done} is after energised {phase.energised}", "a phase carries power when all is done"
            )
        if name in settled and done > settled[name]:
            what = next(
                m for m, names in phases.SETTLES.items() if name in names and getattr(phase, m) == settled[name]
            )
            notes.problem(path, f"{done} is after {what} {settled[name]}", "put the dates in the order of events")
