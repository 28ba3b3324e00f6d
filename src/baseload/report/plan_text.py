"""A plan for a terminal, from 80 columns on; as JSON; and its decisions as rows for CSV and Parquet."""

from __future__ import annotations

import csv
import io
from collections.abc import Sequence
from math import isfinite
from textwrap import fill

import msgspec

from baseload.report.plan_model import IN_THE_TWIN, RENT_IN_FILE, Alternative, Decision, PlanReport, Quarter
from baseload.report.text import lay_out
from baseload.report.words import megawatts, money, number, percent, printable, scaled

DECISIONS_MAX = 40  # in the terminal; the files have all
YEARLY_FROM = 9
STATUS = {
    "optimal": "proven best",
    "within_gap": "within the gap that was asked for",
    "stopped": "the best found when the limit of CPU time was reached",
    "interrupted": "INTERRUPTED: the best plan so far",
}
QUARTER_HEAD = ("", "demand/s", "served/s", "accelerators", "rented", "busy", "at the meter", "cost/Mtok", "CO2/Mtok")


def to_json(report: PlanReport) -> str:
    """Return the report as indented JSON."""
    return msgspec.json.format(msgspec.json.encode(report), indent=2).decode()


def to_text(report: PlanReport, width: int = 80) -> str:
    """Return the report as text."""
    report = printable(report)
    lines = [f"{report.fleet}: plan from {report.from_day}, {report.quarters[0]} to {report.quarters[-1]}", ""]
    lines += [fill(one, width) for one in verdict(report)]
    for title, said in (
        ("Does not meet", [one.words for one in report.misses]),
        ("Cannot hold together", report.conflict),
        ("What to relax", report.relax),
        ("What changed", report.changes),
    ):
        lines += _list(title, said, width)
    lines += ["", "What to do", *_todo(report, width)]
    shown = shown_quarters(report)
    lines += ["", *lay_out(QUARTER_HEAD, [quarter_row(report.by_quarter[k], report.currency) for k in shown], width)]
    lines += ["", fill(money_title(report), width), *lay_out(*money_table(report), width)]
    lines.append(fill(worth_line(report), width))
    lines += _list(f"What binds{priced(report)}", [one.words for one in report.binding], width)
    lines += _list("Plans that cost nearly the same", [alternative_line(one) for one in report.alternatives], width)
    lines += _list(f"What the cost depends on{priced(report)}", swing_lines(report), width)
    lines += _list("In the twin", [f"round {one.number}: {one.words}" for one in report.rounds], width)
    if report.risk is not None:
        lines += _list(f"Risk ({report.risk.measure}, {report.risk.scenarios} scenarios)", report.risk.lines, width)
    lines += _list("Assumed", report.assumptions, width)
    return "\n".join(lines) + "\n"


def _status(report: PlanReport) -> str:
    kept = report.risk is not None and report.risk.kept and report.status != "interrupted"
    return "it keeps what was decided against the scenarios" if kept else STATUS[report.status]


def _list(title: str, said: Sequence[str], width: int) -> list[str]:
    if not said:
        return []
    return ["", title, *(fill(f"- {one}", width, subsequent_indent="  ") for one in said)]


def verdict(report: PlanReport) -> list[str]:
    """Return the answer in a few sentences."""
    capex = sum(sum(values) for values in report.years.capex.values())
    running = sum(sum(values) for values in report.years.running.values())
    last = report.by_quarter[-1]
    cost = f"costs {money(report.cost - report.missed, report.currency)} in present value{_beside(report)}"
    how = f"{_status(report)}; {report.method}, {number(report.cpu_s, 's')} CPU"
    less = "no plan can cost less than"
    if report.meets:
        told = f"Meets every limit: {cost}"
    elif not priced_misses(report):
        told = f"DOES NOT MEET every promise in the twin, though every limit: {cost}"
    else:
        missed = money(report.missed, report.currency)
        told = f"DOES NOT MEET every limit: {cost}, and what it misses is priced at {missed}"
        less = "no plan can bring both together below"
    if isfinite(report.bound):
        proof = f"{less} {money(report.bound, report.currency)} (gap {percent(report.gap, 2)}; {how})."
    else:
        proof = f"how far from the best that is was not found out ({how})."
    said = [
        f"{told}; {proof}",
        f"It spends {money(capex, report.currency)} on racks, buildings and grid and {money(running, report.currency)} "
        f"to run them, and serves {number(last.served_per_s)} of {number(last.demand_per_s)} requests/s at the peak of "
        f"{last.name} with {last.accelerators:,} accelerators, {last.rented:,} of them rented.",
    ]
    if report.rounds:
        n = len(report.rounds)
        agree = "agrees" if report.rounds[-1].meets else "DOES NOT AGREE"
        only = "" if not priced_misses(report) else ", on what is served: what the plan misses was not asked of it"
        told = f"The twin {agree} after {n} round{'s' * (n > 1)}{only}."
        if report.rounds[-1].cut:
            more = (
                "whether every promise is kept there" if report.meets or priced_misses(report) else "whether more break"
            )
            told = f"The check in the twin was CUT SHORT in round {n}: {more} is not known."
        said.append(told)
    else:
        said.append("It was NOT RUN in the twin: whether every promise is kept there is not known.")
    return said


def _beside(report: PlanReport) -> str:
    return f" (people and other fixed cost, {money(report.fixed, report.currency)}, not in it)" if report.fixed else ""


def priced_misses(report: PlanReport) -> bool:
    """Say whether the plan itself misses a limit, which its cost holds a price for, besides what the twin found."""
    return any(one.limit != IN_THE_TWIN for one in report.misses)


def _todo(report: PlanReport, width: int) -> list[str]:
    rows = todo_rows(report)
    if not rows:
        return ["Nothing: what stands, and what is on its way, is enough."]
    lines = lay_out(DECISION_HEAD, rows[:DECISIONS_MAX], width, words=_DECISION_WORDS)
    if len(rows) > DECISIONS_MAX:
        lines.append(f"and {len(rows) - DECISIONS_MAX} more: decisions.csv")
    if any(row[1] == "rent" for row in rows):
        lines.append(fill(RENT_NOTE, width))
    return lines


def todo_rows(report: PlanReport) -> list[list[str]]:
    """Return what to do as rows: each order and each phase, and what is rented of a kind at a site as one."""
    rows = [decision_row(one, report.currency) for one in report.decisions if one.action in ("begin", "buy", "lease")]
    rented: dict[tuple[str, str], list[Decision]] = {}
    for one in report.decisions:
        if one.action == "rent":
            rented.setdefault((one.site, one.what), []).append(one)
    for (site, what), signed in rented.items():
        there = next((s.accelerators for s in report.standing if s.rented and (s.site, s.kind) == (site, what)), [])
        used = [n for n in there if n > 0]
        low, high = min(used, default=0), max(used, default=0)
        count = f"{low:,}" if low == high else f"{low:,} to {high:,}"
        terms = " and ".join(dict.fromkeys(one.note.removesuffix(RENT_IN_FILE) for one in signed))
        cash = money(sum(one.cash for one in signed), "").strip()
        until = max(one.until for one in signed)
        rows.append([signed[0].quarter, "rent", site, f"{count} {what}", cash, f"to {until}; {terms}"])
    return sorted(rows, key=lambda row: row[0])


RENT_NOTE = "Rent counts in whole servers here and in fleet.yaml; decisions.csv and its cash are exact."
DECISION_HEAD = ("when", "what", "where", "how much", "cash", "then")
_DECISION_WORDS = ("what", "where", "how much", "then")  # which begin at the left


def decision_row(one: Decision, currency: str) -> list[str]:
    """Return a decision as a row; what is rented counts in accelerators, the term of a lease stands last."""
    what, _, term = one.what.partition(" leased ")
    note = f"{term}; {one.note}" if term else one.note
    if one.unit == "MW":
        amount = f"{megawatts(one.amount)}, {one.what.removeprefix(one.site).strip()}"
    else:
        amount = f"{one.amount:g} {one.unit if one.amount != 1 else one.unit.removesuffix('s')} {what}"
    cash = money(one.cash, "").strip() if one.cash else "–"
    return [one.quarter, one.action, one.site, amount, cash, note]


def shown_quarters(report: PlanReport) -> list[int]:
    """Return which quarters a table shows: all of a short horizon, else the first, then every fourth, and the last."""
    n = len(report.quarters)
    return list(range(n)) if n < YEARLY_FROM else sorted({*range(0, n, 4), n - 1})


def quarter_row(one: Quarter, currency: str) -> list[str]:
    """Return a quarter as a row."""
    return [
        one.name,
        number(one.demand_per_s),
        number(one.served_per_s),
        f"{one.accelerators:,}",
        f"{one.rented:,}",
        percent(one.busy_ratio, 0),
        megawatts(one.draw_mw),
        number(one.cost_per_mtok, currency),
        "–" if one.carbon_kg_per_mtok is None else scaled(one.carbon_kg_per_mtok * 1000.0, "g"),
    ]


def money_title(report: PlanReport) -> str:
    """Return what the money by year is, in a line."""
    return f"Money ({report.currency}, not discounted; years from {report.quarters[0]} on, budgets by calendar year)"


def money_table(report: PlanReport) -> tuple[tuple[str, ...], list[list[str]]]:
    """Return head and rows of the money by year."""
    years = report.years
    rows = [["income", *_amounts(years.income)]]
    rows += [[f"- {name}", *_amounts(values)] for name, values in years.capex.items() if any(values)]
    rows += [[f"- {name}", *_amounts(values)] for name, values in years.running.items() if any(values)]
    for name, values in (("- tax", years.tax), ("worth at the end", years.salvage)):
        rows += [[name, *_amounts(values)]] if any(values) else []
    rows.append(["cash", *_amounts(years.cash)])
    return ("", *years.names), rows


def _amounts(values: Sequence[float]) -> list[str]:
    return [number(float(value)) for value in values]


def worth_line(report: PlanReport) -> str:
    """Return what the cash is worth, in a sentence."""
    worth, currency = report.worth, report.currency
    parts = [f"Net present value {money(worth.npv, currency)}"]
    parts.append(f"internal rate of return {'not defined' if worth.irr is None else percent(worth.irr)}")
    if worth.payback_years is None:
        parts.append("not paid back by the end")
    else:
        parts.append(f"paid back after {worth.payback_years:.1f} years" if worth.payback_years else "never in the red")
    if worth.roi is not None:
        parts.append(
            f"income is {percent(abs(worth.roi), 0)} {'above' if worth.roi >= 0.0 else 'below'} all cost, capital of what "
            f"stands already included ({percent(worth.roi_without_idle, 0)} were idle capacity free)"
        )
    parts.append(
        f"idle capacity, what is held for the loss of a site included, costs {money(worth.idle_cost, currency)}"
    )
    return "; ".join(parts) + "."


def priced(report: PlanReport) -> str:
    """Return what a title adds whose figures hold the price of what the plan misses."""
    return " (the price of misses included)" if priced_misses(report) else ""


def alternative_line(one: Alternative) -> str:
    """Return an alternative in a line."""
    return f"{one.name}, {percent(one.more, 2)} more: {one.words}"


def swing_lines(report: PlanReport) -> list[str]:
    """Return the bars of the tornado in words."""
    return [
        f"{one.what}: {one.low_words} {money(one.low, report.currency)}, {one.high_words} "
        f"{money(one.high, report.currency)}"
        for one in report.swings
    ]


def to_csv(decisions: Sequence[Decision]) -> str:
    """Return the decisions as CSV with a head."""
    out = io.StringIO()
    names = [one.name for one in msgspec.structs.fields(Decision)]
    writer = csv.writer(out, lineterminator="\n")
    writer.writerow(names)
    for one in decisions:
        writer.writerow([_safe(getattr(one, name)) for name in names])
    return out.getvalue()


def _safe(value: object) -> object:
    """Return a cell that no spreadsheet takes for a formula."""
    return f"'{value}" if isinstance(value, str) and value[:1] in ("=", "+", "-", "@") else value
