"""A plan as one HTML file: no network, no scripts; words and layout are `templates/plan.html`, drawings `plan_charts.py`."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from importlib import resources
from math import isfinite
from pathlib import Path
from typing import Any

import jinja2
from markupsafe import Markup

from baseload.report import bands, plan_charts
from baseload.report.capacity_model import RUNGS
from baseload.report.capacity_text import binding_line
from baseload.report.charts import N_COLOURS
from baseload.report.plan_charts import short
from baseload.report.plan_model import PlanReport
from baseload.report.plan_text import (
    DECISION_HEAD,
    QUARTER_HEAD,
    RENT_NOTE,
    alternative_line,
    money_table,
    money_title,
    priced,
    priced_misses,
    quarter_row,
    swing_lines,
    todo_rows,
    verdict,
    worth_line,
)
from baseload.report.words import money, number, percent

DECISIONS_MAX = 200
SITES_MAX = 12
_WORDS = (
    "",
    "when",
    "what",
    "where",
    "how much",
    "then",
    "service",
    "site",
    "on",
    "accelerator",
    "how",
    "limit",
    "who",
)
_LONG = ("then", "how")


def to_html(report: PlanReport) -> str:
    """Return the page."""
    folder = resources.files("baseload.report").joinpath("templates")
    sources = {name: folder.joinpath(name).read_text("utf-8") for name in ("plan.html", "table.html")}
    environment = jinja2.Environment(
        loader=jinja2.DictLoader(sources), autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True
    )
    environment.globals["words"] = _WORDS
    environment.globals["long_words"] = _LONG
    environment.globals["css"] = Markup(folder.joinpath("report.css").read_text("utf-8"))
    module: Any = environment.get_template("table.html").module
    environment.globals["table"] = module.table
    return environment.get_template("plan.html").render(**_parts(report))


def write(report: PlanReport, path: Path) -> None:
    """Write the page to a file, whole or not at all; raises OSError."""
    path.parent.mkdir(parents=True, exist_ok=True)
    unfinished = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        unfinished.write_text(to_html(report), encoding="utf-8", newline="")
        unfinished.replace(path)
    finally:
        unfinished.unlink(missing_ok=True)


def _parts(report: PlanReport) -> dict[str, Any]:
    todo = todo_rows(report)
    head, rows = money_table(report)
    return {
        "r": report,
        "verdict": verdict(report),
        "priced": priced(report),
        "cards": _cards(report),
        "decision_head": DECISION_HEAD,
        "decision_rows": todo[:DECISIONS_MAX],
        "left_out": max(0, len(todo) - DECISIONS_MAX),
        **_where(report),
        **_money(report),
        "money_head": head,
        "money_title": money_title(report),
        "rent_note": RENT_NOTE if any(row[1] == "rent" for row in todo) else "",
        "money_rows": rows,
        "worth": worth_line(report),
        "quarter_head": QUARTER_HEAD,
        "quarter_rows": [quarter_row(one, report.currency) for one in report.by_quarter],
        "ladder": _ladder(report),
        "alternatives": [alternative_line(one) for one in report.alternatives],
        "tornado": plan_charts.tornado(report.swings, report.cost, report.currency) if report.swings else "",
        "swings": swing_lines(report),
        "carried": [
            [one.service, one.accelerator, number(one.replica), number(one.requests_per_s * one.correction),
             "–" if one.correction == 1.0 else percent(one.correction, 0), one.how]
            for one in report.carried
        ],
    }  # fmt: skip


def _cards(report: PlanReport) -> list[dict[str, str]]:
    last, worth, currency = report.by_quarter[-1], report.worth, report.currency
    capex = sum(sum(values) for values in report.years.capex.values())
    served = sum(one.served_per_s for one in report.by_quarter) / max(
        1e-9, sum(one.demand_per_s for one in report.by_quarter)
    )
    first_cost = next((one.cost_per_mtok for one in report.by_quarter if one.cost_per_mtok is not None), None)
    missed = f"beside {short(report.missed)}, the price of what it misses; with it, " if priced_misses(report) else ""
    return [
        {
            "name": "every limit", "value": "met" if report.meets else "not met", "css": "good" if report.meets else "bad",
            "note": _limits(report) if report.meets else f"{len(report.misses)} listed below",
        },
        {
            "name": "present value of cost", "value": f"{short(report.cost - report.missed)} {currency}", "css": "",
            "note": (f"people and other fixed cost, {short(report.fixed)}, not in it; " if report.fixed else "")
            + missed
            + (
                f"no plan below {short(report.bound)}: gap {percent(report.gap, 2)}"
                if isfinite(report.bound)
                else "how far from the best is not known"
            ),
        },
        {
            "name": "to spend on racks, buildings, grid", "value": f"{short(capex)} {currency}", "css": "",
            "note": f"net present value {short(worth.npv)} {currency}",
        },
        {
            "name": "of the demand at the peak", "value": percent(served, 1), "css": "good" if served > 0.9999 else "bad",
            "note": f"served; {number(last.served_per_s)} requests/s in {last.name}",
        },
        {
            "name": "accelerators", "value": f"{last.accelerators:,}", "css": "",
            "note": f"in {last.name}, {last.rented:,} of them rented; {report.by_quarter[0].accelerators:,} at the start",
        },
        {
            "name": "cost of a million tokens", "value": number(last.cost_per_mtok, currency), "css": "",
            "note": f"{number(first_cost, currency)} in {report.quarters[0]}; input and output together",
        },
        {
            "name": "CO2 of a million tokens", "css": "",
            "value": "–" if last.carbon_kg_per_mtok is None else number(last.carbon_kg_per_mtok * 1000.0, "g"),
            "note": "by location, making included",
        },
        {
            "name": "busy", "value": percent(last.busy_ratio, 0), "css": "",
            "note": f"of capacity at mean load; idle, reserve included, costs {short(worth.idle_cost)} {currency} over all",
        },
    ]  # fmt: skip


def _limits(report: PlanReport) -> str:
    """Return what was looked at of a plan that meets every limit, and what was not."""
    limits = "budgets, shares, power, floor, the loss of a site"
    if not report.rounds:
        return f"{limits}; not run in the twin"
    return f"{limits}; the check in the twin was cut short" if report.rounds[-1].cut else f"{limits}; run in the twin"


def _where(report: PlanReport) -> dict[str, Any]:
    by_kind: dict[str, list[float]] = {}
    by_site: dict[str, list[float]] = {}
    for one in report.standing:
        name = f"{one.kind}, rented" if one.rented else one.kind
        for table, key in ((by_kind, name), (by_site, one.site)):
            old = table.setdefault(key, [0.0] * len(report.quarters))
            table[key] = [a + b for a, b in zip(old, one.accelerators, strict=True)]
    kinds, sites = _largest(by_kind), _largest(by_site)
    caption = "accelerators that may serve"
    shown = sorted({0, len(report.quarters) // 2, len(report.quarters) - 1})
    return {
        "by_kind": plan_charts.stacked("Accelerators by kind", kinds, report.quarters, _count, caption),
        "by_site": plan_charts.stacked("Accelerators by site", sites, report.quarters, _count, caption),
        "kind_legend": _legend(kinds),
        "site_legend": _legend(sites),
        "serving_head": ("service", "site", "on", *(report.quarters[k] for k in shown)),
        "serving_rows": [
            [one.service, one.site, one.kind, *(str(one.replicas[k]) for k in shown)] for one in report.serving
        ],
    }


def _largest(table: Mapping[str, list[float]]) -> dict[str, list[float]]:
    """Return the layers that get a colour of their own, and the rest as one."""
    ordered = sorted(table, key=lambda name: -max(table[name]))
    kept = {name: table[name] for name in ordered[: N_COLOURS - 1]}
    rest = [table[name] for name in ordered[N_COLOURS - 1 :]]
    if rest:
        kept["the rest"] = [sum(column) for column in zip(*rest, strict=True)]
    return kept


def _count(value: float) -> str:
    return f"{value:,.0f}"


def _legend(layers: Mapping[str, Sequence[float]]) -> list[tuple[str, str]]:
    return [(name, f"var(--c{i % N_COLOURS})") for i, name in enumerate(layers)]


def _money(report: PlanReport) -> dict[str, Any]:
    years, names = report.years, report.years.names
    spend = _largest(
        {**{k: v for k, v in years.capex.items() if any(v)}, **{k: v for k, v in years.running.items() if any(v)}}
    )
    cost = {"cost": [one.cost_per_mtok for one in report.by_quarter]}
    carbon = {
        "by location": [_grams(one.carbon_kg_per_mtok) for one in report.by_quarter],
        "by market": [_grams(one.carbon_market_kg_per_mtok) for one in report.by_quarter],
    }
    water = {"water": [one.water_l_per_mtok for one in report.by_quarter]}
    currency = report.currency
    return {
        "spend": plan_charts.stacked("Spend by year", spend, names, short, f"{currency} a year; the line is income",
                                     years.income, "income"),
        "spend_legend": _legend(spend),
        "cash": plan_charts.cash(names, years.cash, currency),
        "per_mtok": plan_charts.lines(
            "Cost of a million tokens", cost, report.quarters, lambda v: number(v), f"{currency} a million tokens"
        ),
        "carbon": plan_charts.lines(
            "CO2 of a million tokens", carbon, report.quarters, lambda v: number(v, "g"), "g CO2e a million tokens"
        ),
        "carbon_legend": _legend({key: [] for key in carbon}),
        "water": plan_charts.lines(
            "Water of a million tokens", water, report.quarters, lambda v: number(v, "l"), "litres on site a million tokens"
        ),
        "total": money(report.cost, currency),
    }  # fmt: skip


def _grams(kg: float | None) -> float | None:
    return None if kg is None else kg * 1000.0


def _ladder(report: PlanReport) -> dict[str, Any]:
    found = report.capacity
    if found is None:
        return {"panels": [], "legend": [], "caveats": []}
    outlooks = ([found.whole] if len(found.sites) != 1 else []) + found.sites[:SITES_MAX]
    return {
        "legend": [(rung, bands.COLOURS[rung]) for rung in RUNGS],
        "caveats": found.caveats,
        "panels": [
            {
                "title": "The fleet" if one is found.whole else one.name,
                "chart": bands.band_chart(one, found.quarters),
                "binds": [binding_line(line) for line in one.binds],
            }
            for one in outlooks
        ],
    }
