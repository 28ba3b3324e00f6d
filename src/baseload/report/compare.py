"""Two runs side by side: every figure that differs, better or worse, and what differs in their fleet files.

Better and worse come from `kpi_table.py`; a change below 0.1 % counts as none. Keys that differ are those of the fleet
as it was run, `--set` included.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from io import StringIO
from typing import Any, Literal

import msgspec
from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

from baseload.ports import Run
from baseload.report.kpi_table import GROUPS, KPIS, Kpi, fields
from baseload.report.kpis import kpis
from baseload.report.model import Number, Part, Report, Step
from baseload.report.words import NONE, figure, megawatts, percent, printable

Mark = Literal["better", "worse", "same", "changed", ""]
_SAME = 1e-3
_RUNG = Kpi("ladder_mw", "MW", "higher", "IT power of a rung of the capacity ladder", "")


class Change(Part, frozen=True):
    """One figure in both runs. `ratio` is b / a; None where it is not defined."""

    scope: str  # fleet, tenant NAME, site NAME
    name: str
    unit: str
    a: Number
    b: Number
    difference: Number
    ratio: Number
    mark: Mark


class KeyChange(Part, frozen=True):
    """One key of the fleet file that differs; values as JSON, '' where the key is absent."""

    key: str
    a: str
    b: str


class Comparison(Part, frozen=True):
    """Run b against run a."""

    a: str
    b: str
    currency: str
    run: list[KeyChange]  # trace, seed, scale, version
    fleet: list[KeyChange]
    changes: list[Change]


def compare(a: Run, b: Run) -> Comparison:
    """Return what differs between two runs: figures of fleet, tenants and sites, and keys of their fleet files."""
    return compare_reports(kpis(a), kpis(b), fleet_a=a.fleet, fleet_b=b.fleet)


def compare_reports(a: Report, b: Report, *, fleet_a: Any, fleet_b: Any) -> Comparison:
    """Return the same from two reports and their fleets."""
    changes: list[Change] = []
    for scope, one, other in _scopes(a, b):
        for group, (record, _) in GROUPS.items():
            left, right = getattr(one, group, None), getattr(other, group, None)
            if left is None or right is None:
                continue
            changes += [_change(scope, name, getattr(left, name), getattr(right, name)) for name in fields(record)]
        changes += _rungs(scope, getattr(one, "ladder", None) or [], getattr(other, "ladder", None) or [])
    return Comparison(
        a=a.run.folder,
        b=b.run.folder,
        currency=a.run.currency,
        run=list(_key_changes(_run_facts(a), _run_facts(b))),
        fleet=list(_key_changes(msgspec.to_builtins(fleet_a), msgspec.to_builtins(fleet_b))),
        changes=changes,
    )


def _scopes(a: Report, b: Report) -> Iterator[tuple[str, Any, Any]]:
    yield "fleet", a.fleet, b.fleet
    for kind, ours, theirs in (("tenant", a.tenants, b.tenants), ("site", a.sites, b.sites)):
        other: dict[str, Any] = {one.name: one for one in theirs}
        yield from ((f"{kind} {one.name}", one, other[one.name]) for one in ours if one.name in other)


def _rungs(scope: str, a: Sequence[Step], b: Sequence[Step]) -> list[Change]:
    """Return the capacity ladder's rungs in both runs, as figures `ladder_NAME_mw`; `sold` is demand, not capacity."""
    theirs = {step.name: step for step in b}
    both = [(step, theirs[step.name]) for step in a if step.name in theirs and step.name != "sold"]
    return [
        _change(scope, f"ladder_{one.name.lower().replace(' ', '_')}_mw", one.mw, other.mw, _RUNG)
        for one, other in both
    ]


def _change(scope: str, name: str, a: Number, b: Number, kpi: Kpi | None = None) -> Change:
    kpi = kpi or KPIS[name]
    both = a is not None and b is not None
    difference = b - a if a is not None and b is not None else None
    return Change(
        scope=scope,
        name=name,
        unit=kpi.unit,
        a=a,
        b=b,
        difference=difference,
        ratio=b / a if both and a and b is not None else None,
        mark=_mark(kpi.better, a, b, difference),
    )


def _mark(better: str, a: Number, b: Number, difference: Number) -> Mark:
    if a is None and b is None:
        return ""
    if a is None or b is None or difference is None:
        return "changed"
    if abs(difference) <= _SAME * max(abs(a), abs(b)):
        return "same"
    if not better:
        return "changed"
    return "better" if (difference > 0) == (better == "higher") else "worse"


def _run_facts(report: Report) -> dict[str, Any]:
    run = report.run
    return {
        "trace": run.trace,
        "requests": run.trace_requests,
        "scale": run.trace_scale,
        "seed": run.seed,
        "start_utc": run.start_utc,
        "duration_s": run.duration_s,
        "warmup_s": run.warmup_s,
        "currency": run.currency,
        "baseload": run.baseload,
    }


def _key_changes(a: Any, b: Any) -> Iterator[KeyChange]:
    left, right = dict(_flat(a)), dict(_flat(b))
    for key in [*left, *(key for key in right if key not in left)]:
        if left.get(key, "") != right.get(key, ""):
            yield KeyChange(key=key, a=left.get(key, ""), b=right.get(key, ""))


def _flat(value: Any, at: str = "") -> Iterator[tuple[str, str]]:
    """Yield (key, value as JSON) for each leaf; lists by number."""
    items: Iterable[tuple[Any, Any]] = ()
    if isinstance(value, dict):
        items = value.items()
    elif isinstance(value, list | tuple):
        items = enumerate(value)
    else:
        yield at, msgspec.json.encode(value).decode()
        return
    for key, one in items:
        yield from _flat(one, f"{at}.{key}" if at else str(key))


# ---- for the eye -----------------------------------------------------------------------------------------

SHOWN = (
    "served", "refused", "failed", "slo_attainment_ratio", "goodput_requests_per_s", "input_tokens_per_s",
    "output_tokens_per_s", "ttft_s_p50", "ttft_s_p99", "tpot_s_p50", "tpot_s_p99", "e2e_s_p99", "cached_ratio",
    "utilisation_ratio", "mfu_ratio", "site_kwh", "pue_mean", "power_kw_max", "energy_j_per_token",
    "tokens_per_s_per_kw", "carbon_g_per_mtok", "water_l", "cost_total", "cost_idle", "cost_per_mtok",
    "cost_per_mtok_output", "revenue", "margin", "roi_ratio",
)  # fmt: skip
SHOWN_TENANT = ("slo_attainment_ratio", "ttft_s_p99", "tpot_s_p99")
SHOWN_SITE = ("served", "power_kw_max", "cost_per_mtok")
_KEYS_MAX = 40


def to_json(comparison: Comparison) -> str:
    """Return the whole comparison as JSON."""
    return msgspec.json.format(msgspec.json.encode(comparison), indent=2).decode()


def to_text(comparison: Comparison, *, width: int = 80) -> str:
    """Return the comparison as text: what differs in the files, then the figures that a reader looks for."""
    comparison = printable(comparison)
    out = StringIO()
    console = Console(
        file=out, width=max(60, width), no_color=True, highlight=False, markup=False, emoji=False,
        color_system=None, legacy_windows=False,
    )  # fmt: skip
    console.print(f"a: {comparison.a}\nb: {comparison.b}")
    _print_keys(console, "The runs differ in", comparison.run)
    _print_keys(console, "The fleets differ in", comparison.fleet)
    if not comparison.run and not comparison.fleet:
        console.print("\nFleet file, trace and seed are the same.")
    _print_changes(console, comparison)
    return "\n".join(line.rstrip() for line in out.getvalue().splitlines())


def _print_keys(console: Console, title: str, keys: list[KeyChange]) -> None:
    if not keys:
        return
    console.print(f"\n{title}")
    for one in keys[:_KEYS_MAX]:
        console.print(Text(f"  {one.key}: {one.a or 'absent'} -> {one.b or 'absent'}"))
    if len(keys) > _KEYS_MAX:
        console.print(f"  and {len(keys) - _KEYS_MAX} more keys (--json has them all)")


def _print_changes(console: Console, comparison: Comparison) -> None:
    table = Table(box=box.SIMPLE_HEAD, padding=(0, 0, 0, 1), pad_edge=False, show_edge=False)
    for i, head in enumerate(("figure", "a", "b", "change", "")):
        table.add_column(head, justify="left" if i in (0, 4) else "right", overflow="fold")
    scope = ""
    for one in comparison.changes:
        kind = one.scope.split(" ")[0]
        rung = one.unit == "MW" and kind == "fleet" and one.mark != "same"
        if not rung and one.name not in {"fleet": SHOWN, "tenant": SHOWN_TENANT, "site": SHOWN_SITE}[kind]:
            continue
        if one.scope != scope:
            scope = one.scope
            table.add_section()
            table.add_row(Text(scope, style="bold"))
        table.add_row(
            Text(f"  {one.name}"),
            _shown(one, one.a, comparison.currency),
            _shown(one, one.b, comparison.currency),
            _relative(one),
            "" if one.mark == "same" else one.mark,
        )
    console.print()
    console.print(table)


def _shown(change: Change, value: Number, currency: str) -> str:
    if change.name.endswith("_ratio"):
        return percent(value)
    if change.unit == "MW" and value is not None:
        return megawatts(value)
    return figure(value, change.unit, currency)


def _relative(change: Change) -> str:
    if change.mark == "same":
        return "same"
    if change.name.endswith("_ratio") and change.difference is not None:
        return f"{change.difference * 100.0:+.1f} pp"
    if change.ratio is None or change.a is None or change.a < 0:
        return NONE
    return f"x{change.ratio:.2f}" if change.ratio >= 2.0 else f"{(change.ratio - 1.0) * 100.0:+.1f} %"
