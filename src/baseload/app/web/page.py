"""The live page in words: a snapshot becomes sections of HTML, each from one template, numbers with their units.

The same sections make the first page and the news that follow, so that they cannot differ. Everything from outside passes
jinja2's escaping. Ladders are the report's own drawing. A large fleet is shown worst first and counted, never cut in
silence: what is left out is said, and all of it is in /api/snapshot.
"""

from __future__ import annotations

import hashlib
from collections import Counter, defaultdict
from collections.abc import Callable, Mapping, Sequence
from datetime import UTC, datetime
from functools import lru_cache
from importlib import resources
from typing import Any, NamedTuple, cast

import jinja2
from markupsafe import Markup

from baseload.app.web.view import ReplicaNow, Role, SiteNow, Snapshot, TenantNow
from baseload.report import charts, maps
from baseload.report.model import SiteReport, Step
from baseload.report.words import NONE, duration, megawatts, money, number, percent, scaled, seconds

LADDERS_MAX = 6  # sites whose ladder is drawn; the table of sites has all
POOLS_MAX = 60
REPLICAS_MAX = 30
TENANTS_MAX = 100
RECENT_SHOWN = 30
ALARMS_SHOWN = 12
ERRORS_SHOWN = 20
MAP_MAX = 60
BARS_MAX = 12
SITES_AS_DECLARED = 16  # more are shown with those that want a look first

_MEDIA = {".js": "text/javascript", ".css": "text/css", ".svg": "image/svg+xml", ".txt": "text/plain"}
_STATIC = ("uPlot.min.js", "uPlot.css", "uPlot.LICENSE.txt", "live.js", "icon.svg")


class File(NamedTuple):
    """A file of the page, in memory."""

    content: bytes
    media_type: str
    etag: str


class Pages:
    """Templates and files, read once."""

    def __init__(self) -> None:
        here = resources.files("baseload.app.web")
        self.files = {name: _file(name, here.joinpath("static", name).read_bytes()) for name in _STATIC}
        look = resources.files("baseload.report").joinpath("templates/report.css").read_bytes()
        self.files["live.css"] = _file("live.css", look + here.joinpath("static/live.css").read_bytes())
        names = sorted(one.name for one in here.joinpath("templates").iterdir() if one.name.endswith(".html"))
        sources = {name: here.joinpath("templates", name).read_text("utf-8") for name in names}
        self.environment = jinja2.Environment(
            loader=jinja2.DictLoader(sources), autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True,
            lstrip_blocks=True,
        )  # fmt: skip
        self.environment.filters.update(
            seconds=seconds, percent=percent, number=number, scaled=scaled, kw=_kw, duration=duration, clock=_clock
        )
        self.environment.globals["mark"] = {name: one.etag.strip('"')[:12] for name, one in self.files.items()}

    def login(self, fault: str) -> str:
        """Return the form that asks for a control token."""
        return self.environment.get_template("login.html").render(fault=fault)

    def live(self, now: Snapshot, sections: Mapping[str, str], name: str, role: Role, by_session: bool) -> str:
        """Return the whole page with its sections filled in."""
        safe = {key: Markup(html) for key, html in sections.items()}
        scopes = [f"site/{one.name}" for one in now.sites] + [f"tenant/{one.name}" for one in now.tenants]
        template = self.environment.get_template("live.html")
        return template.render(s=now, sections=safe, name=name, role=role, by_session=by_session, scopes=scopes)

    def sections(self, now: Snapshot, due: Callable[[str], bool] = lambda name: True) -> list[tuple[str, str]]:
        """Return the sections of the page that are `due`: name and HTML. May run in another thread."""
        parts: dict[str, Callable[[], dict[str, Any]]] = {
            "head": lambda: {"headline": headline(now)},
            "notices": lambda: {
                "alarms": now.alarms[:ALARMS_SHOWN],
                "more": max(0, len(now.alarms) - ALARMS_SHOWN),
                "told": {one.kind for one in now.alarms},
            },
            "cards": lambda: {"cards": cards(now)},
            "ladders": lambda: _ladders(now),
            "sites": lambda: _sites(now),
            "tenants": lambda: {"rows": [_tenant(one, now) for one in _by_need(now.tenants)[:TENANTS_MAX]]},
            "replicas": lambda: _replicas(now, _pools(now.replicas)),
            "errors": lambda: {"rows": now.errors[:ERRORS_SHOWN]},
            "recent": lambda: {"rows": now.recent[:RECENT_SHOWN]},
            "foot": lambda: {"up": _span(now.at_ns - now.started_ns)},
        }
        get = self.environment.get_template
        return [(name, get(f"s_{name}.html").render(s=now, **values())) for name, values in parts.items() if due(name)]


def _file(name: str, content: bytes) -> File:
    suffix = "." + name.rpartition(".")[2]
    return File(content, _MEDIA[suffix], f'"{hashlib.sha256(content).hexdigest()[:32]}"')


# ---- words -----------------------------------------------------------------------------------------------


def _kw(kw: float | None) -> str:
    return NONE if kw is None else megawatts(kw / 1e3)


def _clock(at_ns: int) -> str:
    """Return the time of day of a UTC instant.

    >>> _clock(1_000_000_000_000_000_000)
    '01:46:40'
    """
    return datetime.fromtimestamp(at_ns // 1_000_000_000, UTC).strftime("%H:%M:%S")


def _span(ns: int) -> str:
    """Return how long, so that it changes once a minute at most.

    >>> _span(30 * 10**9), _span(150 * 10**9)
    ('less than a minute', '2 min')
    """
    whole_min = ns // 60_000_000_000
    return duration(60.0 * whole_min) if whole_min >= 2 else ("a minute" if whole_min else "less than a minute")


def headline(now: Snapshot) -> str:
    """Return what the fleet does now, in a sentence or three."""
    totals = now.totals
    rate = totals.input_tokens_per_s + totals.output_tokens_per_s
    if not now.sites:
        return f"{now.fleet} has no site, so nothing can be served."
    if rate <= 0.0 and totals.requests_per_s <= 0.0:
        said = [f"{now.fleet} is idle: no request came in the last minute."]
    else:
        said = [f"{now.fleet} serves {number(totals.requests_per_s)} requests/s, {scaled(rate, 'tokens/s')}"]
        within = next((step for step in now.ladder if step.name == "within SLO"), None)
        if within is not None and within.tokens_per_s > 0.0:
            said[0] += f": {percent(rate / within.tokens_per_s, 0)} of what its replicas can carry within the SLOs"
        said[0] += "."
        missed = [one.name for one in now.tenants if _meets(one) is False]
        if missed:
            more = f" and {len(missed) - 3} more" if len(missed) > 3 else ""
            said.append(f"It misses the SLO of {', '.join(missed[:3])}{more}.")
        elif any(_meets(one) for one in now.tenants):
            said.append("It meets every tenant's SLO.")
    closed = [one.name for one in now.sites if one.state in ("closed", "draining")]
    if closed:
        more = f" and {len(closed) - 3} more" if len(closed) > 3 else ""
        said.append(f"No requests go to {', '.join(closed[:3])}{more}.")
    return " ".join(said)


def _meets(tenant: TenantNow) -> bool | None:
    """Say whether a tenant's promise is kept; None where nothing was promised or asked."""
    if tenant.attainment_ratio is None or tenant.attainment_promised_ratio is None:
        return None
    return tenant.attainment_ratio >= tenant.attainment_promised_ratio


class Card(NamedTuple):
    """A figure at the top."""

    label: str
    value: str
    note: str
    good: bool | None = None


def _kept_words(n_missed: int, n: int, some_kept: bool) -> str:
    if n_missed:
        return f"{number(n_missed)} of {number(n)} tenants miss it"
    return "every tenant's met" if some_kept else "nothing asked yet"


def cards(now: Snapshot) -> list[Card]:
    """Return the eight figures at the top."""
    totals, currency = now.totals, now.currency
    kept = [_meets(one) for one in now.tenants]
    n_missed = kept.count(False)
    errors = totals.refused_per_s + totals.failed_per_s
    offered = totals.requests_per_s + errors
    margin = totals.revenue_per_h - totals.cost_per_h
    limit = totals.limit_kw if totals.limit_kw is not None else totals.contract_kw
    over = totals.power_kw is not None and limit is not None and totals.power_kw > limit
    return [
        Card("SLO attainment", percent(totals.attainment_ratio),
             _kept_words(n_missed, len(kept), True in kept),
             False if n_missed else True if True in kept else None),
        Card("Served", scaled(totals.input_tokens_per_s + totals.output_tokens_per_s, "tok/s"),
             f"{number(totals.requests_per_s)} requests/s, {number(totals.streams_open)} open"),
        Card("TTFT p99", seconds(totals.ttft_s_p99), f"median {seconds(totals.ttft_s_p50)}"),
        Card("TPOT p99", seconds(totals.tpot_s_p99), f"median {seconds(totals.tpot_s_p50)}"),
        Card("Power at the meter", _kw(totals.power_kw),
             "no limit is known" if limit is None else f"of {_kw(limit)} that may be drawn", False if over else None),
        Card("Revenue", f"{money(totals.revenue_per_h, currency)}/h",
             f"energy {money(totals.energy_cost_per_h, currency)}/h"),
        Card("Margin", f"{money(margin, currency)}/h", f"cost {money(totals.cost_per_h, currency)}/h",
             None if totals.revenue_per_h <= 0.0 else margin >= 0.0),
        Card("Not served", f"{number(errors)}/s" if errors else "0/s",
             f"{percent(errors / offered)} of what was asked" if offered > 0.0 else "nothing asked yet",
             False if offered > 0.0 and errors / offered > 0.01 else None),
    ]  # fmt: skip


# ---- sections --------------------------------------------------------------------------------------------


@lru_cache(maxsize=256)
def _drawn(steps: tuple[Step, ...], name: str) -> Markup:
    return charts.ladder(steps, name)


def _ladders(now: Snapshot) -> dict[str, Any]:
    named: list[tuple[str, list[Step]]] = [("The fleet", now.ladder)] if now.ladder and len(now.sites) != 1 else []
    largest = sorted((one for one in now.sites if one.ladder), key=lambda one: -one.ladder[0].mw)
    named += [(one.name, one.ladder) for one in largest[:LADDERS_MAX]]
    shown = [
        {
            "title": name,
            "chart": _drawn(tuple(steps), name),
            "steps": [step for step in steps if step.lost_mw > 0.0 and step.reason],
        }
        for name, steps in named
    ]
    return {"ladders": shown, "left_out": max(0, len(largest) - LADDERS_MAX)}


class _Dot(NamedTuple):
    name: str
    lat: float
    lon: float
    ladder: Sequence[Step]


def _map(sites: Sequence[SiteNow]) -> Markup | None:
    placed = [one for one in sites if one.lat is not None and one.lon is not None]
    largest = sorted(placed, key=lambda one: -_rung_mw(one, "racked"))[:MAP_MAX]
    return _map_of(tuple((one.name, one.lat or 0.0, one.lon or 0.0, _rung_mw(one, "racked")) for one in largest))


def _rung_mw(site: SiteNow, name: str) -> float:
    return next((step.mw for step in site.ladder if step.name == name), 0.0)


@lru_cache(maxsize=4)
def _map_of(placed: tuple[tuple[str, float, float, float], ...]) -> Markup | None:
    if not placed:
        return None
    dots = [_Dot(name, lat, lon, [_racked(mw)]) for name, lat, lon, mw in placed]
    return maps.site_map(cast("Sequence[SiteReport]", dots))  # it reads no more of a site than a dot has


def _racked(mw: float) -> Step:
    return Step(
        name="racked", mw=mw, raw_mw=mw, lost_mw=0.0, excess_mw=0.0, tokens_per_s=0.0, lost_tokens_per_s=0.0,
        excess_tokens_per_s=0.0, modelled=True, reason="",
    )  # fmt: skip


def _sites(now: Snapshot) -> dict[str, Any]:
    rows = [_site(one, now) for one in now.sites]
    known = [row for row in rows if row["site"].power_kw is not None and row["top_kw"] > 0.0]
    nearest = sorted(known, key=lambda row: -row["site"].power_kw / (row["bound"] or row["top_kw"]))
    kept = {row["site"].name for row in nearest[:BARS_MAX]}
    if len(rows) > SITES_AS_DECLARED:
        rows.sort(key=lambda row: row["site"].state == "open" and not row["over"])
    return {"rows": rows, "map": _map(now.sites), "bars": [row for row in rows if row["site"].name in kept]}


def _site(one: SiteNow, now: Snapshot) -> dict[str, Any]:
    bound = one.limit_kw if one.limit_kw is not None else one.contract_kw
    top = max(one.contract_kw or 0.0, bound or 0.0, one.power_kw or 0.0)
    within = next((step for step in one.ladder if step.name == "within SLO"), None)
    used = None if within is None or within.tokens_per_s <= 0.0 else one.tokens_per_s / within.tokens_per_s
    return {
        "site": one,
        "over": one.power_kw is not None and bound is not None and one.power_kw > bound,
        "bound": bound,
        "top_kw": top,
        "used": used,
        "law": one.jurisdiction + (f", operator {one.operator_jurisdiction}" if one.operator_jurisdiction else ""),
    }


def _by_need(tenants: Sequence[TenantNow]) -> list[TenantNow]:
    return sorted(tenants, key=lambda one: (_meets(one) is not False, -one.requests_per_s, one.name))


def _tenant(one: TenantNow, now: Snapshot) -> dict[str, Any]:
    return {
        "tenant": one,
        "meets": _meets(one),
        "ttft_missed": _over(one.ttft_s_p99, one.ttft_slo_s),
        "tpot_missed": _over(one.tpot_s_p99, one.tpot_slo_s),
        "spent": money(one.spent, now.currency),
        "budget": "no limit" if one.budget is None else money(one.budget, now.currency),
        "nearly": one.budget is not None and one.spent >= 0.9 * one.budget,
        "refused": sorted(one.refused_total.items(), key=lambda item: -item[1]),
    }


def _over(value: float | None, limit: float | None) -> bool:
    return value is not None and limit is not None and value > limit


class Pool(NamedTuple):
    """The replicas of one deployment at one site, added up."""

    deployment: str
    site: str
    model: str
    accelerator: str
    kind: str
    n: int
    states: Mapping[str, int]
    ejected: int
    outstanding: int
    running: int
    waiting: int
    kv_free_ratio: float | None  # at the fullest replica
    restarts_total: int

    @property
    def unwell(self) -> int:
        """Return how many replicas want a look."""
        return self.states.get("down", 0) + self.states.get("starting", 0) + self.ejected


def _pools(replicas: Sequence[ReplicaNow]) -> list[Pool]:
    grouped: defaultdict[tuple[str, str, str], list[ReplicaNow]] = defaultdict(list)
    for one in replicas:
        grouped[one.deployment, one.site, one.kind].append(one)
    return [
        Pool(
            deployment, site, ones[0].model, ones[0].accelerator, kind, len(ones), Counter(one.state for one in ones),
            sum(one.ejected for one in ones), sum(one.outstanding for one in ones), sum(one.running for one in ones),
            sum(one.waiting for one in ones),
            min((one.kv_free_ratio for one in ones if one.kv_free_ratio is not None), default=None),
            sum(one.restarts_total for one in ones),
        )
        for (deployment, site, kind), ones in grouped.items()
    ]  # fmt: skip


def _replicas(now: Snapshot, pools: Sequence[Pool]) -> dict[str, Any]:
    ordered = sorted(pools, key=lambda one: -one.unwell / one.n)  # stable: else as declared
    unwell = [one for one in now.replicas if one.ejected or one.state in ("down", "starting", "draining")]
    return {
        "pools": ordered[:POOLS_MAX],
        "pools_left_out": max(0, len(ordered) - POOLS_MAX),
        "unwell": unwell[:REPLICAS_MAX],
        "unwell_left_out": max(0, len(unwell) - REPLICAS_MAX),
        "n_parked": sum(one.state == "parked" for one in now.replicas),
        "n_up": sum(one.state == "up" and not one.ejected for one in now.replicas),
    }
