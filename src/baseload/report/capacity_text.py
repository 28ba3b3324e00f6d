"""Capacity over the years for a terminal, from 80 columns on, and as JSON."""

from __future__ import annotations

from collections.abc import Sequence
from textwrap import fill

import msgspec

from baseload.report.capacity_model import RUNGS, Binding, CapacityReport, Outlook, PhaseOutlook
from baseload.report.text import lay_out
from baseload.report.words import megawatts, percent, printable

YEARLY_FROM = 9  # quarters, above which a table shows the first and then every fourth


def to_json(report: CapacityReport) -> str:
    """Return the report as indented JSON."""
    return msgspec.json.format(msgspec.json.encode(report), indent=2).decode()


def to_text(report: CapacityReport, width: int = 80) -> str:
    """Return the report as text."""
    report = printable(report)
    lines = [f"{report.fleet}: capacity from {report.from_day}, {len(report.quarters)} quarters", ""]
    lines.append(fill(_meaning(), width))
    outlooks = [report.whole, *report.sites] if len(report.sites) > 1 else list(report.sites)
    for outlook in outlooks:
        lines += ["", *_outlook(report, outlook, width)]
    if report.phases:
        lines += ["", "Grid phases", *lay_out(PHASE_HEAD, [phase_row(one) for one in report.phases], width)]
        lines.append("* declared day, taken as it is; ~ rests on shipped priors")
    for caveat in report.caveats:
        lines += ["", fill(caveat, width)]
    if report.sources:
        lines += ["", "Priors:", *(fill(f"- {one}", width, subsequent_indent="  ") for one in report.sources)]
    return "\n".join(lines) + "\n"


PHASE_HEAD = ("site", "phase", "at the meter", "P10", "P50", "P90", "chance", "waits for")


def phase_row(one: PhaseOutlook) -> list[str]:
    """Return a phase as a row; `chance` is to be energised within the horizon."""
    days = [f"{one.declared}*", "", ""] if one.declared else [day or "–" for day in (one.p10, one.p50, one.p90)]
    mark = "~" if one.from_prior else ""
    waits = one.waits_for or "–"
    return [one.site, str(one.phase), megawatts(one.meter_mw), *days, mark + percent(one.chance_in_horizon, 0), waits]


def _meaning() -> str:
    return (
        "IT MW at the end of each quarter: P50, and below it P10 (nine of ten draws have at least this) to P90. "
        "Usable is what is racked, powered and cooled at once."
    )


def shown_quarters(report: CapacityReport) -> list[int]:
    """Return which quarters a table shows: all of a short horizon, else the first, then every fourth, and the last."""
    n = len(report.quarters)
    return list(range(n)) if n < YEARLY_FROM else sorted({0, *range(4, n, 4), n - 1})


def table_rows(report: CapacityReport, outlook: Outlook) -> list[list[str]]:
    """Return the ladder as rows: a quarter, then the band of each rung."""
    rows = []
    for k in shown_quarters(report):
        row = [report.quarters[k]]
        for rung in RUNGS:
            band = outlook.rungs[rung]
            low, middle, high = (megawatts(values[k]) for values in (band.p10_mw, band.p50_mw, band.p90_mw))
            row.append(middle if low == high else f"{middle} ({low} to {high})")
        rows.append(row)
    return rows


def binding_line(one: Binding) -> str:
    """Return what binds, with its quarters."""
    when = one.first if one.first == one.last else f"{one.first} to {one.last}"
    return f"{when}: {one.words}"


def _outlook(report: CapacityReport, outlook: Outlook, width: int) -> list[str]:
    title = outlook.name[:1].upper() + outlook.name[1:] if outlook.name == "the fleet" else outlook.name
    if outlook.pue_peak is not None:
        title += f" (PUE {outlook.pue_peak:.2f} in the hottest design hour)"
    head = ("", *RUNGS)
    body: list[Sequence[str]] = []
    for k in shown_quarters(report):
        bands = [outlook.rungs[rung] for rung in RUNGS]
        body.append([report.quarters[k], *(megawatts(band.p50_mw[k]) for band in bands)])
        if any(megawatts(band.p10_mw[k]) != megawatts(band.p90_mw[k]) for band in bands):
            body.append(["  P10", *(megawatts(band.p10_mw[k]) for band in bands)])
            body.append(["  P90", *(megawatts(band.p90_mw[k]) for band in bands)])
    lines = [title, *lay_out(head, body, width), "What binds"]
    lines += [fill(f"  {binding_line(one)}", width, subsequent_indent="    ") for one in outlook.binds]
    return lines + [fill(f"  ! {note}", width, subsequent_indent="    ") for note in outlook.notes]
