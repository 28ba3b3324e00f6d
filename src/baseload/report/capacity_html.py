"""Capacity over the years as one HTML file: no network, no scripts; words and layout are `templates/capacity.html`."""

from __future__ import annotations

import os
from importlib import resources
from pathlib import Path
from typing import Any

import jinja2
from markupsafe import Markup

from baseload.report import bands
from baseload.report.capacity_model import RUNGS, CapacityReport, Outlook
from baseload.report.capacity_text import PHASE_HEAD, binding_line, phase_row, table_rows
from baseload.report.words import megawatts

SITES_MAX = 24
_WORDS = ("", "site", "waits for")


def to_html(report: CapacityReport) -> str:
    """Return the page."""
    folder = resources.files("baseload.report").joinpath("templates")
    sources = {name: folder.joinpath(name).read_text("utf-8") for name in ("capacity.html", "table.html")}
    environment = jinja2.Environment(
        loader=jinja2.DictLoader(sources), autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True
    )
    environment.globals["words"] = _WORDS
    environment.globals["long_words"] = ()
    environment.globals["css"] = Markup(folder.joinpath("report.css").read_text("utf-8"))
    module: Any = environment.get_template("table.html").module
    environment.globals["table"] = module.table
    outlooks = ([report.whole] if len(report.sites) != 1 else []) + report.sites[:SITES_MAX]
    return environment.get_template("capacity.html").render(
        r=report,
        headline=_headline(report),
        legend=[(rung, bands.COLOURS[rung]) for rung in RUNGS],
        panels=[_panel(report, outlook) for outlook in outlooks],
        phase_head=PHASE_HEAD,
        phase_rows=[phase_row(one) for one in report.phases],
        head=("", *RUNGS),
    )


def write(report: CapacityReport, path: Path) -> None:
    """Write the page to a file, whole or not at all; raises OSError."""
    path.parent.mkdir(parents=True, exist_ok=True)
    unfinished = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        unfinished.write_text(to_html(report), encoding="utf-8", newline="")
        unfinished.replace(path)
    finally:
        unfinished.unlink(missing_ok=True)


def _panel(report: CapacityReport, outlook: Outlook) -> dict[str, Any]:
    return {
        "title": "The fleet" if outlook is report.whole else outlook.name,
        "chart": bands.band_chart(outlook, report.quarters),
        "binds": [binding_line(one) for one in outlook.binds],
        "notes": outlook.notes,
        "rows": table_rows(report, outlook),
    }


def _headline(report: CapacityReport) -> str:
    announced, usable = report.whole.rungs["announced"], report.whole.rungs["usable"]
    low, middle, high = (megawatts(values[-1]) for values in (usable.p10_mw, usable.p50_mw, usable.p90_mw))
    band = "" if low == high else f" (P10 {low}, P90 {high})"
    return (
        f"Of {megawatts(announced.p50_mw[0])} announced in {report.quarters[0]} (IT power), {megawatts(usable.p50_mw[0])} "
        f"is usable then, and {middle} by {report.quarters[-1]}{band}."
    )
