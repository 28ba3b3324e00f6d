"""`baseload plan`: what to build, buy or rent, where and when, with the proof. Heavy parts are imported inside."""

from __future__ import annotations

import argparse
import os
import re
import shutil
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from datetime import date
from pathlib import Path
from typing import TYPE_CHECKING

from baseload.app.capacity_verb import horizon_quarters
from baseload.app.stopping import stoppable
from baseload.errors import InputError, Interrupted

if TYPE_CHECKING:
    from baseload.app.loop import Planned
    from baseload.app.plan_findings import Findings
    from baseload.app.plan_map import PlanMap
    from baseload.fleet.load import Loaded
    from baseload.plan.problem import Answer, Problem
    from baseload.plan.table import ReplicaTable
    from baseload.report.plan_model import PlanReport

DOES_NOT_MEET = 3  # exit code of a plan that breaks a limit, or a promise in the twin
FIRST_ROUND = "both costs are those of the first round, before the twin corrected what a replica carries"
SCENARIOS = 20
ROUNDS = 6
TABLES = ("measured", "modelled")  # else a file


@dataclass(frozen=True, slots=True, kw_only=True)
class Wish:
    """What the user asked of one plan."""

    fleet: Path
    overrides: tuple[str, ...]
    what_if: tuple[str, ...]
    horizon: str | None
    day: date | None
    out: Path
    gap: float
    cpu_limit_s: float
    seed: int
    risk: str | None
    scenarios: int
    table: str  # measured, modelled, or a file
    rounds: int  # of the loop with the twin
    quick: bool  # the answer alone
    as_json: bool


@dataclass(slots=True)
class Asked:
    """A question with its answer."""

    loaded: Loaded
    problem: Problem
    plan_map: PlanMap
    table: ReplicaTable
    answer: Answer | None = None
    notes: list[str] = field(default_factory=list)


def plan_verb(options: argparse.Namespace) -> int:
    """Plan, write the files, print the table; return 0, or DOES_NOT_MEET. A stop raises, with the best plan so far written."""
    from baseload.app import plan_fleet
    from baseload.app.plan_files import FILES, write_all
    from baseload.app.verbs import say
    from baseload.report import plan_text

    wish = wish_of(options)
    with stoppable() as stop:  # also while the answer is told and written: it is not lost to a Ctrl-C at the end
        asked, findings = solved(wish, say, stop)
        assert asked.answer is not None
        if stop() and asked.answer.status != "interrupted":
            asked.answer = replace(asked.answer, status="interrupted")  # which marks every file
            findings.notes.append(
                f"stopped by {stop.by}: the plan was made; what should have followed it was cut short"
            )
        report, planned = reported(asked, findings)
        way = Path(os.path.relpath(asked.loaded.base_folder, wish.out)).as_posix()
        unwritten: InputError | None = None
        try:
            write_all(report, plan_fleet.moved(planned, way), asked.table, wish.out)
        except InputError as error:
            unwritten = error  # the answer is told all the same
        stopped = stop()
    if wish.as_json:
        print(plan_text.to_json(report))
    else:
        columns = shutil.get_terminal_size((80, 24)).columns if "COLUMNS" in os.environ or os.isatty(1) else 80
        print(plan_text.to_text(report, width=max(80, min(columns, 120))), end="")
    if unwritten is not None:
        raise unwritten
    say(f"{', '.join(FILES)} written to {wish.out}")
    if stopped or report.status == "interrupted":
        raise Interrupted(f"interrupted; the best plan so far is in {wish.out}")
    return 0 if report.meets else DOES_NOT_MEET


def wish_of(options: argparse.Namespace) -> Wish:
    """Return what was asked, or raise InputError."""
    from baseload.app.plan_files import require_folder
    from baseload.app.verbs import _day

    if options.seed < 0:
        raise InputError(f"--seed {options.seed}: is negative; write 0 or more")
    if not 0.0 < options.cpu_limit <= 1e6:
        raise InputError(f"--cpu-limit {options.cpu_limit}: write seconds above 0")
    if options.scenarios is not None and options.risk is None:
        mend = "write --risk expected or --risk cvar95 too, or leave it out"
        raise InputError(f"--scenarios {options.scenarios}: is only for --risk; {mend}")
    n_scenarios = SCENARIOS if options.scenarios is None else options.scenarios
    if n_scenarios < 2 or n_scenarios > 1000:
        raise InputError(f"--scenarios {options.scenarios}: write 2 to 1000")
    if options.rounds is not None and not 0 <= options.rounds <= 100:
        raise InputError(f"--rounds {options.rounds}: write 0 to 100")
    if options.rounds and options.quick:
        raise InputError(f"--rounds {options.rounds}: --quick runs nothing in the twin; leave one of both out")
    require_folder(options.out, options.fleet)
    if options.horizon is not None:
        horizon_quarters(options.horizon)
    return Wish(
        fleet=options.fleet,
        overrides=tuple(options.overrides),
        what_if=tuple(options.what_if),
        horizon=options.horizon,
        day=_day(options.date),
        out=options.out,
        gap=gap_of(options.gap),
        cpu_limit_s=options.cpu_limit,
        seed=options.seed,
        risk=options.risk,
        scenarios=n_scenarios,
        table=options.table,
        rounds=0 if options.quick else ROUNDS if options.rounds is None else options.rounds,
        quick=options.quick,
        as_json=options.json,
    )


def gap_of(text: str) -> float:
    """Return a gap such as `1%` or `0.01` as a share.

    >>> gap_of("1%"), gap_of("0.02")
    (0.01, 0.02)
    """
    match = re.fullmatch(r"([0-9.]+)\s*(%?)", text.strip())
    try:
        value = float(match[1]) / (100.0 if match[2] else 1.0) if match else -1.0
    except ValueError:
        value = -1.0
    if not 0.0 <= value < 1.0:
        raise InputError(f"--gap {text}: is no share below 100 %; write e.g. 1% or 0.01")
    return value


# ---- asking ----------------------------------------------------------------------------------------------


def ask(
    wish: Wish,
    overrides: tuple[str, ...],
    say: Callable[[str], None],
    table: ReplicaTable | None = None,
    stop: Callable[[], bool] = lambda: False,
) -> Asked:
    """Read and check the fleet file, get the table of replicas, and put the question; `stop` is asked before the long part."""
    from baseload.app import plan_problem, simulating
    from baseload.fleet import check, load
    from baseload.fleet.planning import Plan

    loaded = load.load(wish.fleet, overrides)
    check.require_plannable(loaded, policies=simulating.known_policies())
    plan = loaded.fleet.plan or Plan()
    today = wish.day or plan.start or date.today()
    quarters = horizon_quarters(wish.horizon or plan.horizon)
    _within_the_calendar(wish, today, quarters)
    if stop():
        raise KeyboardInterrupt
    found = table_of(wish, loaded, say) if table is None else table
    problem, plan_map = plan_problem.plan_problem(loaded, found, quarters=quarters, today=today, seed=wish.seed)
    return Asked(loaded=loaded, problem=problem, plan_map=plan_map, table=found)


def _within_the_calendar(wish: Wish, today: date, quarters: int) -> None:
    """Raise InputError where the plan's days could not stand in a fleet file."""
    from baseload.fleet.typed import FIRST_YEAR, LAST_YEAR

    if today.year < FIRST_YEAR or today.year + quarters // 4 + 1 > LAST_YEAR:
        where = f"--date {wish.day}" if wish.day is not None else f"plan.start {today}"
        what = f"the {quarters} quarters from then do not lie within {FIRST_YEAR} to {LAST_YEAR}"
        raise InputError(f"{where}: {what}; write a day that a fleet file may hold")


def table_of(wish: Wish, loaded: Loaded, say: Callable[[str], None]) -> ReplicaTable:
    """Return the table of replicas: measured in the twin, modelled by formulas, or read from a file."""
    from baseload.fleet.planning import Plan

    if wish.table == "modelled":
        from baseload.app import plan_demand, plan_rows

        asked = plan_demand.traffic(loaded, loaded.fleet.plan or Plan(), wish.seed)
        return plan_rows.modelled_table(loaded.fleet, asked)
    if wish.table == "measured":
        from baseload.app import replica_table, simulating

        simulating.say_compiling(say)
        say("measuring in the twin what a replica carries ...")
        return replica_table.replica_table(loaded, seed=wish.seed, cache=wish.out)
    from baseload.app import table_file
    from baseload.fleet import load

    return table_file.read(wish.table, loaded, load.load(wish.fleet, wish.overrides).fleet if wish.what_if else None)


def solved(wish: Wish, say: Callable[[str], None], stop: Callable[[], bool]) -> tuple[Asked, Findings]:
    """Return the question with its answer, and what was found out beside it."""
    from baseload.app import plan_findings, table_file

    findings = plan_findings.Findings()
    if wish.what_if:
        _check_what_if(wish)
    asked = ask(wish, wish.overrides, say, stop=stop)
    if wish.table not in TABLES:
        findings.notes.append(table_file.said(wish.table))
    _solve(asked, wish, stop)
    if wish.what_if:
        before = asked
        asked = ask(wish, (*wish.overrides, *wish.what_if), say, table=None)
        _solve(asked, wish, stop, warm=before)
        findings.changes = plan_findings.what_changed(before, asked)
    if wish.rounds and not stop():
        asked = _in_the_twin(asked, wish, findings, say, stop)
        if findings.changes and len(findings.rounds) > 1:
            findings.changes.append(FIRST_ROUND)
    if not wish.quick and not stop():
        plan_findings.look(asked, findings, wish, say, stop)
    if wish.risk is not None and not stop():
        plan_findings.look_at_risk(asked, findings, wish, say, stop)
    return asked, findings


def _check_what_if(wish: Wish) -> None:
    """Find what is wrong in --what-if before the first plan is made; errors name the option that was written."""
    from baseload.app import simulating
    from baseload.errors import FleetError
    from baseload.fleet import check, load

    check.require_plannable(load.load(wish.fleet, wish.overrides), policies=simulating.known_policies())
    try:
        changed = load.load(wish.fleet, (*wish.overrides, *wish.what_if))
        check.require_plannable(changed, policies=simulating.known_policies())
    except FleetError as error:
        said = [(one, _as_what_if(one.file, wish)) for one in error.problems]
        raise FleetError(
            [one if file == one.file else replace(one, file=file, mend=_mend(one.mend)) for one, file in said]
        ) from None


def _as_what_if(file: str, wish: Wish) -> str:
    """Return where a mistake stands: `--set` is `--what-if` where the user wrote that, and what a file became of it."""
    option, _, written = file.partition(" ")
    asked = option == "--set" and any(one.startswith(written.rstrip(".… ")) for one in wish.what_if)
    return f"--what-if {written}" if asked else file


def _mend(mend: str) -> str:
    return mend.replace("--set ", "--what-if ")


def _solve(asked: Asked, wish: Wish, stop: Callable[[], bool], warm: Asked | None = None) -> None:
    from baseload.plan import solve

    known = warm.answer if warm is not None and warm.problem.same_axes(asked.problem) else None
    with _progress(wish.as_json, asked) as progress:
        asked.answer = solve.solve(
            asked.problem, gap=wish.gap, cpu_limit_s=wish.cpu_limit_s, progress=progress, stop=stop, warm=known
        )


def _in_the_twin(
    asked: Asked, wish: Wish, findings: Findings, say: Callable[[str], None], stop: Callable[[], bool]
) -> Asked:
    """Run the plan in the twin, correct the table where it breaks a promise, plan again; return the last plan."""
    from baseload.app import plan_findings
    from baseload.app.loop import close_loop

    latest = asked

    def plan_once(table: ReplicaTable) -> Planned:
        nonlocal latest
        if table is not asked.table:
            latest = replan(latest, table)
            _solve(latest, wish, stop)
        return in_the_twin(latest)

    result = close_loop(asked.table, plan_once, rounds=wish.rounds, seed=wish.seed, say=say, stop=stop)
    findings.rounds, findings.broken = plan_findings.rounds_of(result), plan_findings.broken_of(result)
    latest.table = result.table
    return latest


def replan(asked: Asked, table: ReplicaTable) -> Asked:
    """Return the question anew with another table."""
    from baseload.app import plan_problem

    known = asked.plan_map
    problem, plan_map = plan_problem.plan_problem(
        asked.loaded, table, quarters=len(known.days), today=known.today, seed=known.seed
    )
    return Asked(loaded=asked.loaded, problem=problem, plan_map=plan_map, table=table)


def in_the_twin(asked: Asked) -> Planned:
    """Return an answer as the loop takes it: its fleet file, read again."""
    from baseload.app import loop, plan_fleet
    from baseload.fleet import load

    assert asked.answer is not None
    text = plan_fleet.planned_fleet(asked.loaded, asked.problem, asked.answer, asked.plan_map)
    loaded = load.loads(text, file="plan/fleet.yaml", base_folder=asked.loaded.base_folder)
    planned = loop.planned_of(loaded, asked.problem, asked.answer, asked.plan_map)
    if any(site.halls > 1 for site in asked.plan_map.sites):
        planned = replace(planned, survivors=frozenset())  # the twin loses whole sites, not halls of one
    return planned


def reported(asked: Asked, findings: Findings) -> tuple[PlanReport, str]:
    """Return the report of an answer and its fleet file."""
    from baseload.app import plan_fleet, plan_report

    assert asked.answer is not None
    planned = plan_fleet.planned_fleet(asked.loaded, asked.problem, asked.answer, asked.plan_map)
    if findings.broken:
        head, _, rest = planned.partition("\n")
        planned = f"{head} IT DOES NOT KEEP EVERY PROMISE IN THE TWIN: see the report.\n{rest}"
    report = plan_report.plan_report(
        asked.loaded, asked.problem, asked.answer, asked.plan_map, asked.table, planned, findings
    )
    return report, planned


# ---- waiting for it --------------------------------------------------------------------------------------


@contextmanager
def _progress(quiet: bool, asked: Asked) -> Iterator[Callable[[float, float], None]]:
    """Give a function that shows bound, best plan and gap on one line of a terminal; nothing elsewhere."""
    if quiet or not sys.stderr.isatty():
        yield lambda bound, cost: None
        return
    from baseload.report.plan_charts import short

    unit, currency, began = asked.plan_map.money_unit, asked.plan_map.currency, time.monotonic()

    def show(bound: float, cost: float) -> None:
        known = cost < float("inf")
        gap = f", gap {100.0 * (cost - bound) / max(1e-9, abs(cost)):.2f} %" if known else ""
        best = f"{short(cost * unit)} {currency}" if known else "none yet"
        low = f"{short(bound * unit)} {currency}" if bound > float("-inf") else "none yet"
        line = f"planning {time.monotonic() - began:.0f} s: best {best}, bound {low}{gap}"
        print(f"\r{line:<78}", end="", file=sys.stderr, flush=True)

    try:
        yield show
    finally:
        print("\r" + " " * 78 + "\r", end="", file=sys.stderr, flush=True)
