"""The report for a terminal: tables and bars with rich, at any width from 80 columns, without colour, in plain ASCII.

`to_text` returns it, `show` suits it to the terminal it is written to.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Iterable, Sequence
from io import StringIO
from textwrap import fill, wrap
from typing import TextIO

from rich.console import Console
from rich.table import Table
from rich.text import Text

from baseload.report import rows
from baseload.report.model import Report, Step
from baseload.report.words import duration, megawatts, money, number, percent, printable, scaled

_ASCII = str.maketrans({
    "█": "#", "░": ".", "–": "-", "−": "-", "…": "...", "·": "*", "µ": "u", "×": "x", "≤": "<=", "²": "2",
})  # fmt: skip
_WIDTH_MIN = 60
_WORDS = ("", "status", "reason")  # columns of words


def to_text(report: Report, *, width: int = 80, colour: bool = False, ascii_only: bool = False) -> str:
    """Return the report as text for a terminal of `width` columns."""
    report = printable(report)
    out = StringIO()
    console = Console(
        file=out,
        width=max(_WIDTH_MIN, width),
        force_terminal=colour,
        no_color=not colour,
        color_system="standard" if colour else None,
        highlight=False,
        markup=False,
        emoji=False,
        legacy_windows=False,
    )
    _head(console, report)
    for title, part in rows.kpi_rows(report):
        _figures(console, title, part)
    _tables(console, report)
    _ladder(console, "Capacity ladder, fleet", report.fleet.ladder)
    if len(report.sites) > 1:
        for site in report.sites:
            _ladder(console, f"Capacity ladder, {site.name}", site.ladder)
    _training(console, report)
    _cost(console, report)
    _refusals(console, report)
    _foot(console, report)
    text = "\n".join(line.rstrip() for line in out.getvalue().splitlines()) + "\n"
    return text.translate(_ASCII).encode("ascii", "replace").decode() if ascii_only else text


def show(report: Report, file: TextIO | None = None) -> None:
    """Write the report to a terminal (standard output unless given), as wide, coloured and plain as it can show."""
    file = file or sys.stdout
    terminal = Console(file=file)
    coloured = terminal.is_terminal and terminal.color_system is not None and not terminal.no_color
    encoding = (getattr(file, "encoding", None) or "ascii").lower().replace("-", "")
    plain = not encoding.startswith("utf") or os.environ.get("TERM") == "dumb"
    file.write(to_text(report, width=min(terminal.width, 120), colour=coloured, ascii_only=plain))


def _head(console: Console, report: Report) -> None:
    run = report.run
    console.print(Text(f"{run.fleet}: {run.trace}, {duration(run.duration_s)} from {run.start_utc}", style="bold"))
    console.print(
        f"{number(run.trace_requests)} requests, seed {run.seed}, warm-up "
        f"{number(run.warmup_s, 's')}, quantiles {run.quantiles}"
    )
    console.print()
    console.print(report.headline)
    if report.built_on:
        console.print(Text(report.built_on, style="yellow"))


def _training(console: Console, report: Report) -> None:
    if report.run.training:
        _title(console, "Training")
    for job in report.run.training:
        console.print(
            f"{job.name} at {job.site}: {job.accelerators:,} accelerators, goodput {percent(job.goodput_ratio)}, "
            f"{job.failures:,} failures"
        )


def _title(console: Console, title: str) -> None:
    console.print()
    console.print(Text(title, style="bold cyan"))


def _figures(console: Console, title: str, part: Sequence[rows.Row]) -> None:
    _title(console, title)
    table = Table(box=None, show_header=False, padding=(0, 1), pad_edge=False)
    table.add_column(min_width=26)
    table.add_column(justify="right", min_width=14)
    table.add_column(style="dim")
    for row in part:
        table.add_row(Text(row.label), Text(row.value), Text(row.note))
    console.print(table)


def _tables(console: Console, report: Report) -> None:
    currency = report.run.currency
    tenants = [rows.tenant_row(tenant) for tenant in report.tenants]
    _table(console, "Tenants", rows.tenant_head(currency), tenants)
    sites = [rows.site_row(site) for site in report.sites]
    _table(console, "Sites", rows.site_head(currency), sites)


def _table(console: Console, title: str, head: Sequence[str], body: Iterable[Sequence[str]]) -> None:
    _title(console, title)
    lines = lay_out(head, [list(line) for line in body], console.width)
    console.print(Text("\n".join(lines)))


def lay_out(
    head: Sequence[str], body: Sequence[Sequence[str]], width: int, *, words: Sequence[str] = _WORDS
) -> list[str]:
    """Return a table as lines of at most `width`: heads wrap at words, then gaps close, then columns of words fold.

    The columns named in `words` and the first begin at the left.

    >>> lay_out(("site", "tokens/s", "cost EUR"), [["oslo", "9 k", "12"]], 40)
    ['               cost', 'site  tokens/s   EUR', '--------------------', 'oslo       9 k    12']
    """
    n = len(head)
    columns = [[line[i] for line in body] for i in range(n)]
    widths = [
        max([len(word) for word in name.split()] + [len(cell) for cell in column], default=0)
        for name, column in zip(head, columns)
    ]
    gap = 2 if sum(widths) + 2 * (n - 1) <= width else 1
    over = sum(widths) + gap * (n - 1) - width
    for _ in range(over):  # a letter of the widest each time, down to eight
        i = widths.index(max(widths))
        widths[i] = max(min(widths[i], 8), widths[i] - 1)
    folded = [[wrap(cell, size) or [""] for cell, size in zip(line, widths)] for line in (head, *body)]
    lines = []
    for k, cells in enumerate(folded):
        height = max(len(cell) for cell in cells)
        top = [[""] * (height - len(cell)) + cell if k == 0 else cell + [""] * (height - len(cell)) for cell in cells]
        for row in zip(*top):
            parts = [
                part.ljust(size) if i == 0 or head[i] in words else part.rjust(size)
                for i, (part, size) in enumerate(zip(row, widths))
            ]
            lines.append((" " * gap).join(parts).rstrip())
        if k == 0:
            lines.append("-" * (sum(widths) + gap * (n - 1)))
    return lines


def _ladder(console: Console, title: str, ladder: Sequence[Step]) -> None:
    """Draw a ladder as bars of IT MW, each with its tokens/s; the reason for a loss stands under its bar."""
    _title(console, f"{title} (IT power; tokens/s input and output)")
    top = max((step.mw for step in ladder), default=0.0)
    bar_width = max(10, min(36, console.width - 44))
    for step in ladder:
        filled = round(bar_width * step.mw / top) if top > 0.0 else 0
        mark = "~" if step.modelled else " "
        console.print(
            Text(
                f"{step.name:<11}{'█' * filled}{'░' * (bar_width - filled)} {megawatts(step.mw):>9} "
                f"{mark}{scaled(step.tokens_per_s, 'tok/s'):>13}"
            )
        )
        excess = _excess(step)
        for said in filter(None, (_loss(step), excess)):
            folded = fill(said, console.width, subsequent_indent="    ")
            console.print(Text(folded, style="bold red" if said == excess else "dim"))
    console.print(Text("~ converted from MW by the mix of what runs: modelled", style="dim"))


def _loss(step: Step) -> str:
    return f"  - {megawatts(step.lost_mw)}: {step.reason}" if step.reason and step.lost_mw > 0.0 else ""


def _excess(step: Step) -> str:
    if step.excess_tokens_per_s > 1e-6:
        return f"  ! {scaled(step.excess_tokens_per_s, 'tok/s')} more than the rungs above can carry"
    if step.excess_mw > 1e-9:
        return f"  ! {megawatts(step.excess_mw)} more than the rungs above can carry"
    return ""


def _cost(console: Console, report: Report) -> None:
    cost, currency = report.fleet.cost, report.run.currency
    total = float(cost.cost_total or 0.0)
    _title(console, f"Cost over {duration(report.run.span_s)}: {money(total, currency)}")
    bar_width = max(10, min(40, console.width - 44))
    for words, amount in rows.cost_parts(cost):
        filled = round(bar_width * amount / total)
        console.print(Text(f"{words:<20}{money(amount, currency):>14} {percent(amount / total, 0):>5}  {'█' * filled}"))
    shares = (("serving", cost.cost_serving), ("idle", cost.cost_idle), ("training", cost.cost_training))
    said = ", ".join(f"{words} {money(amount, currency)}" for words, amount in shares if amount)
    console.print(f"Borne by: {said or 'nobody'}")


def _refusals(console: Console, report: Report) -> None:
    if not report.refusals:
        return
    body = [(one.tenant, one.status, number(round(one.requests)), one.reason) for one in report.refusals[:20]]
    _table(console, "Not served", ("tenant", "status", "requests", "reason"), body)
    if len(report.refusals) > 20:
        console.print(f"and {len(report.refusals) - 20} more kinds")


def _foot(console: Console, report: Report) -> None:
    _title(console, "How far to trust it")
    for row in report.confidence:
        because = ", ".join(row.because[:4]) + (f" and {len(row.because) - 4} more" if len(row.because) > 4 else "")
        console.print(f"{row.group}: {row.basis} ({because})")
    for note in report.notes:
        console.print(f"Note: {note}")
