"""What must hold between the records of a fleet file: names that exist, room for what is promised, dates in order.

One record's own keys are checked by `load.py`. Rules about places, racks and power are in `check_sites.py`, those about
models, deployments, tenants, demand and policies in `check_service.py`, those about the live side in `check_serve.py`,
those about the coming years in `check_plan.py`.
Whether a model fits its accelerator's memory needs formulas: the twin says it.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from datetime import date

from baseload.errors import FleetError, Problem
from baseload.fleet import check_plan, check_serve, check_service, check_sites, dates
from baseload.fleet.load import Loaded
from baseload.fleet.notes import Notes

# More would not fit the 16-bit index columns of Records, or a machine's memory.
MAX_NAMES = 30_000
MAX_REPLICAS = 100_000


def problems(
    loaded: Loaded, *, policies: Mapping[str, Collection[str]] | None = None, day: date | None = None
) -> list[Problem]:
    """Return what makes the fleet impossible on `day` (that of its run where absent); an empty list when nothing does.

    `policies` are the known policy names by key (`baseload.policies.KINDS`); without it, names are not looked at.
    """
    return _look(loaded, policies, day).problems


def warnings(loaded: Loaded, *, day: date | None = None) -> list[Problem]:
    """Return what is odd but possible on `day` (as above): a model that nobody calls, power that is announced alone."""
    return _look(loaded, None, day).warnings


def require(loaded: Loaded, *, policies: Mapping[str, Collection[str]] | None = None, day: date | None = None) -> None:
    """Raise FleetError with all problems, if there are any."""
    found = problems(loaded, policies=policies, day=day)
    if found:
        raise FleetError(found)


def require_sites(loaded: Loaded) -> None:
    """Raise FleetError with what is wrong with the sites on any day: for those who look at years, not at one day."""
    notes = Notes(loaded)
    _sizes(notes)
    if not notes.problems:
        check_sites.declared(notes)
    if notes.problems:
        raise FleetError(notes.problems)


def require_plannable(loaded: Loaded, *, policies: Mapping[str, Collection[str]] | None = None) -> None:
    """Raise FleetError with all that stands in the way of a plan: what is wrong today, or may be served by nobody."""
    notes = _look(loaded, policies)
    if not notes.problems:
        check_plan.plannable(notes)
    if notes.problems:
        raise FleetError(notes.problems)


def _look(loaded: Loaded, policies: Mapping[str, Collection[str]] | None, day: date | None = None) -> Notes:
    notes = Notes(loaded)
    _sizes(notes)
    if notes.problems:  # the other rules walk every pair of names
        return notes
    day = day or dates.run_day(loaded.fleet)
    check_sites.look(notes, day)
    check_service.look(notes, day, policies)
    check_serve.look(notes)
    check_plan.look(notes)
    return notes


def _sizes(notes: Notes) -> None:
    fleet = notes.fleet
    for key in ("sites", "models", "deployments", "regions", "tenants"):
        if len(getattr(fleet, key)) > MAX_NAMES:
            notes.problem((key,), f"{len(getattr(fleet, key)):,} names", f"at most {MAX_NAMES:,} are possible")
    for key, mend in (
        ("sites", "name a data centre and what stands in it"),
        ("models", "name a model, e.g. `chat: {catalog: llama-3.1-8b}`"),
        ("deployments", "say which model runs on which accelerator, and where"),
    ):
        if not getattr(fleet, key):
            notes.problem((key,), "is empty", mend)
    n_replicas = 0
    for name, deployment in fleet.deployments.items():
        for site, replicas in deployment.sites.items():
            most = replicas.min if replicas.max is None else replicas.max
            if most < replicas.min:
                path = ("deployments", name, "sites", site, "max")
                notes.problem(path, f"{most} is below min {replicas.min}", "raise max, or lower min")
            n_replicas += max(most, replicas.min)
    if n_replicas > MAX_REPLICAS:
        notes.problem(("deployments",), f"{n_replicas:,} replicas", f"at most {MAX_REPLICAS:,} are possible")
