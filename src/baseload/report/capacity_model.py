"""Capacity over the years: what `baseload capacity` says, as records; the JSON is exactly this. All MW are IT MW."""

from __future__ import annotations

import msgspec

RUNGS = ("announced", "contracted", "energised", "coolable", "racked", "usable")
MEANING = {
    "announced": "announced and not given up",
    "contracted": "under a grid agreement and a power contract",
    "energised": "power flows and may be drawn",
    "coolable": "after redundancy, curtailment and cooling in the hottest design hour",
    "racked": "what the racks in service draw, by themselves, on the floor there is",
    "usable": "racked, powered and cooled at once",
}


class _Part(msgspec.Struct, frozen=True, kw_only=True):
    """Base of the records."""


class Band(_Part, frozen=True, kw_only=True):
    """MW by quarter: nine of ten draws have at least P10, half P50, one of ten P90."""

    p10_mw: list[float]
    p50_mw: list[float]
    p90_mw: list[float]


class Binding(_Part, frozen=True, kw_only=True):
    """What keeps usable MW from being more, over a run of quarters in which it is the same."""

    first: str
    last: str
    kind: str  # power, racks, cooling, curtailment, contract, redundancy, nothing
    words: str


class PhaseOutlook(_Part, frozen=True, kw_only=True):
    """A grid phase: when it carries power, given that it is not given up, and the chance of that."""

    site: str
    phase: int  # place in `grid`, from 0
    meter_mw: float
    declared: str | None  # a fixed day
    p10: str | None
    p50: str | None
    p90: str | None
    chance_in_horizon: float
    chance_ever: float
    waits_for: str
    from_prior: bool


class Outlook(_Part, frozen=True, kw_only=True):
    """A site's ladder, or the fleet's, by quarter."""

    name: str
    pue_peak: float | None
    rungs: dict[str, Band]
    binds: list[Binding]
    notes: list[str] = []


class CapacityReport(_Part, frozen=True, kw_only=True):
    """All of it."""

    fleet: str
    from_day: str
    quarters: list[str]  # MW are those of the last day of each
    draws: int
    seed: int
    meaning: dict[str, str]
    whole: Outlook
    sites: list[Outlook]
    phases: list[PhaseOutlook]
    sources: list[str]
    caveats: list[str]
