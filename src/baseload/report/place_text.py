"""Where a workload should run, for a terminal and as JSON."""

from __future__ import annotations

from collections.abc import Sequence
from textwrap import fill

import msgspec

from baseload.report.place_model import Place, PlaceReport
from baseload.report.text import lay_out
from baseload.report.words import money, number, printable

HEAD = (
    "", "site", "accelerator", "way", "from", "replica", "network", "requests/s", "free", "cost/Mtok", "Wh/Mtok",
    "g CO2/Mtok",
)  # fmt: skip
NARROW, NARROW_BELOW = (0, 1, 2, 3, 4, 7, 9), 120  # columns of a narrow terminal
WAYS = {"free": "stands free", "rent": "rent", "lease": "lease", "buy": "buy"}


def to_json(report: PlaceReport) -> str:
    """Return the report as indented JSON."""
    return msgspec.json.format(msgspec.json.encode(report), indent=2).decode()


def to_text(report: PlaceReport, width: int = 80) -> str:
    """Return the report as text."""
    report = printable(report)
    ranked = [place for place in report.places if place.rank is not None]
    lines = [f"{report.fleet}: where {report.tenant} should run {report.model} on {report.day}", ""]
    lines.append(fill(_verdict(report, ranked), width))
    if ranked:
        shown = NARROW if width < NARROW_BELOW else range(len(HEAD))
        rows = [_row(place, report.currency) for place in ranked]
        lines += ["", *lay_out([HEAD[i] for i in shown], [[row[i] for i in shown] for row in rows], width)]
    excluded = [place for place in report.places if place.rank is None]
    if excluded:
        lines += ["", "Excluded, and what would have to change"]
        for (site, told), kinds in _alike(excluded).items():
            lines.append(fill(f"- {site} ({', '.join(kinds)}): {told}", width, subsequent_indent="  "))
    if report.notes:
        lines += ["", *(fill(f"- {note}", width, subsequent_indent="  ") for note in report.notes)]
    return "\n".join(lines) + "\n"


def _alike(excluded: Sequence[Place]) -> dict[tuple[str, str], list[str]]:
    """Return the accelerators that are excluded at a site for the same reasons, by (site, reasons)."""
    found: dict[tuple[str, str], list[str]] = {}
    for place in excluded:
        told = "; ".join(f"{one.rule}: {one.what} ({one.mend})" for one in place.obstacles)
        found.setdefault((place.site, told), []).append(place.accelerator)
    return found


def _verdict(report: PlaceReport, ranked: Sequence[Place]) -> str:
    if not ranked:
        return f"Nowhere: no site and accelerator may and can serve it as promised ({report.promise})."
    best = ranked[0]
    return (
        f"Best: {best.accelerator} at {best.site} ({WAYS[best.way]}), {money(best.cost_per_mtok, report.currency)} per million "
        f"tokens; one replica carries {number(best.requests_per_s)} requests/s within the promise ({report.promise})."
    )


def _row(place: Place, currency: str) -> list[str]:
    return [
        str(place.rank),
        place.site,
        place.accelerator,
        WAYS[place.way],
        place.from_day or "unknown",
        place.settings,
        f"{place.network_ms:.0f} ms",
        number(place.requests_per_s),
        number(place.free_requests_per_s) if place.free_accelerators else "–",
        money(place.cost_per_mtok, currency),
        number(place.energy_wh_per_mtok),
        number(place.carbon_g_per_mtok),
    ]
