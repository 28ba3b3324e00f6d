"""The report as one HTML file: no network, no scripts, its own CSS and SVG; light and dark; for screens, phones, paper.

The page's words and layout are `templates/`, its drawings `charts.py` and `maps.py`. Everything that comes from outside
(names, sources, the fleet file) passes jinja2's escaping or `markupsafe.escape`.
"""

from __future__ import annotations

import os
from functools import cache
from importlib import resources
from pathlib import Path
from typing import Any

import jinja2
from markupsafe import Markup

from baseload.ports import Run
from baseload.report import charts, maps, rows
from baseload.report.model import Report, Step
from baseload.report.words import duration, megawatts, number, percent, scaled

# Heads of columns that hold words, not numbers.
_WORDS = (
    "", "tenant", "status", "reason", "site", "figure", "figures", "basis", "source", "because of", "what", "value",
    "part", "deployment", "model", "accelerator", "speed",
)  # fmt: skip


SITES_MAX = 24  # that get charts of their own; tables and JSON have all


def to_html(report: Report, fleet_text: str = "") -> str:
    """Return the page."""
    return _environment().get_template("report.html").render(**_parts(report, fleet_text))


def write(report: Report, run: Run, path: Path) -> None:
    """Write the page to a file, whole or not at all; raises OSError."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    unfinished = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        unfinished.write_text(to_html(report, run.fleet_text), encoding="utf-8", newline="")
        unfinished.replace(path)
    finally:
        unfinished.unlink(missing_ok=True)


@cache
def _environment() -> jinja2.Environment:
    folder = resources.files("baseload.report").joinpath("templates")
    names = ("report.html", "table.html")
    sources = {name: folder.joinpath(name).read_text("utf-8") for name in names}
    environment = jinja2.Environment(
        loader=jinja2.DictLoader(sources), autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True
    )
    environment.globals["words"] = _WORDS
    environment.globals["long_words"] = ("reason", "source", "because of", "value")
    environment.globals["css"] = Markup(folder.joinpath("report.css").read_text("utf-8"))
    module: Any = environment.get_template("table.html").module
    environment.globals["table"] = module.table
    return environment


def _parts(report: Report, fleet_text: str) -> dict[str, Any]:
    currency, run = report.run.currency, report.run
    return {
        "r": report,
        "cards": rows.cards(report),
        "duration": duration(run.duration_s),
        "span": duration(run.span_s),
        "ladders": _ladders(report),
        "latency": _latency(report),
        "tenant_head": rows.tenant_head(currency),
        "tenant_rows": [rows.tenant_row(tenant) for tenant in report.tenants],
        "refusals": [(one.tenant, one.status, number(round(one.requests)), one.reason) for one in report.refusals[:50]],
        "over_time": [{"title": one.site, "chart": charts.over_time(one)} for one in report.series[:SITES_MAX]],
        **_cost(report),
        "map": maps.site_map(report.sites),
        "site_head": rows.site_head(currency),
        "site_rows": [rows.site_row(site) for site in report.sites],
        "figures": rows.kpi_rows(report),
        "deployment_head": rows.DEPLOYMENT_HEAD,
        "deployment_rows": [rows.deployment_row(one) for one in report.deployments],
        "confidence": [(one.group, one.basis, ", ".join(one.because)) for one in report.confidence],
        "basis": [(one.figure, one.basis, one.source) for one in report.basis],
        "facts": _facts(report),
        "fleet_text": fleet_text,
        "left_out": max(0, len(report.sites) - SITES_MAX),
    }


def _ladders(report: Report) -> list[dict[str, Any]]:
    named: list[tuple[str, list[Step], str]] = []
    if len(report.sites) != 1:
        named.append(("the fleet", report.fleet.ladder, ""))
    named += [(site.name, site.ladder, site.ladder_open) for site in report.sites[:SITES_MAX]]
    return [
        {
            "title": name[:1].upper() + name[1:] if name == "the fleet" else name,
            "chart": charts.ladder(steps, name),
            "open": still_open,
            "steps": [
                {
                    "name": step.name,
                    "reason": step.reason if step.lost_mw > 0.0 else "",
                    "lost": megawatts(step.lost_mw),
                    "over": _over(step),
                }
                for step in steps
            ],
        }
        for name, steps, still_open in named
    ]


def _over(step: Step) -> str:
    if step.excess_tokens_per_s > 1e-6:
        return scaled(step.excess_tokens_per_s, "tok/s")
    return megawatts(step.excess_mw) if step.excess_mw > 1e-9 else ""


def _latency(report: Report) -> list[dict[str, Any]]:
    asked = {tenant.name: float(tenant.service.served or 0.0) for tenant in report.tenants}
    made = []
    for metric, title in (("ttft", "Time to first token"), ("tpot", "Time per output token")):
        curves = sorted(
            (one for one in report.curves if one.metric == metric), key=lambda one: -asked.get(one.tenant, 0.0)
        )
        if not curves:
            continue
        shown = curves[: charts.CURVES_MAX]
        more = f" (the {len(shown)} tenants with most requests)" if len(curves) > len(shown) else ""
        made.append(
            {
                "title": f"{title}: share of requests at or under{more}",
                "chart": charts.latency(shown, title),
                "legend": [(one.tenant, f"var(--c{i % charts.N_COLOURS})") for i, one in enumerate(shown)],
            }
        )
    return made


def _cost(report: Report) -> dict[str, Any]:
    currency, fleet = report.run.currency, report.fleet.cost
    named = [("fleet", fleet), *((site.name, site.cost) for site in report.sites[:SITES_MAX] if len(report.sites) > 1)]
    colours = charts.cost_colours([cost for _, cost in named])
    legend = [(name, f"var(--c{i})") for i, name in enumerate(colours)]
    if len(rows.cost_parts(fleet)) > len(colours):
        legend.append(("the rest", "var(--rest)"))
    total = float(fleet.cost_total or 0.0) or 1.0
    return {
        "cost_chart": charts.cost_bars(named, colours, currency),
        "share_chart": charts.share_bar(fleet, currency),
        "cost_legend": legend,
        "cost_rows": [(name, number(amount), percent(amount / total)) for name, amount in rows.cost_parts(fleet)],
    }


def _facts(report: Report) -> list[tuple[str, str]]:
    run = report.run
    facts = [
        ("trace", f"{run.trace}, {number(run.trace_requests)} requests, load x{run.trace_scale:g}"),
        ("source of the trace", run.trace_note or "–"),
        ("start", run.start_utc),
        ("duration", f"{duration(run.duration_s)}, of it warm-up {duration(run.warmup_s)}"),
        ("seed", str(run.seed)),
        ("policies", ", ".join(f"{kind} {name}" for kind, name in run.policies.items() if name) or "–"),
        ("quantiles", run.quantiles),
        ("fleet file, SHA-256", run.fleet_digest),
        ("version", f"baseload {run.baseload}"),
    ]
    facts += [
        (
            f"training {job.name}",
            f"{job.accelerators:,} accelerators at {job.site}, goodput {percent(job.goodput_ratio)}, "
            f"{job.failures:,} failures",
        )
        for job in run.training
    ]
    return facts
