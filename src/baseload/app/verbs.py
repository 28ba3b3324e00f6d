"""One function a verb: reads the options, calls the parts, prints. Heavy parts are imported inside."""

from __future__ import annotations

import argparse
import dataclasses
import sys
from collections.abc import Callable
from datetime import date
from pathlib import Path
from typing import TYPE_CHECKING

from baseload.errors import InputError

if TYPE_CHECKING:
    from baseload.app.load_search import Probe
    from baseload.app.simulating import Wish
    from baseload.simulate.run import Moment


def say(sentence: str) -> None:
    """Tell the user something beside the answer, on stderr."""
    print(sentence, file=sys.stderr, flush=True)


def is_same_file(path: Path, given: Path | str) -> bool:
    """Say whether both paths lead to one file, also by a link; False where one of them leads to none."""
    try:
        return path.samefile(given)
    except (OSError, ValueError):
        return False


def require_page(html: Path | None, *given: Path | str | None) -> None:
    """Raise InputError where `--html` names no file, or one of those that the command reads."""
    if html is None:
        return
    if html.is_dir() or not html.name:
        raise InputError(f"--html {html}: is a folder; name a file")
    over = [one for one in given if one is not None and is_same_file(html, one)]
    if over:
        raise InputError(f"--html {html}: would replace {over[0]}, which is read here; name another file")


def init_verb(options: argparse.Namespace) -> int:
    """Write the commented template; refuse to overwrite."""
    from baseload.fleet.template import template

    path: Path = options.file
    try:
        with path.open("x", encoding="utf-8") as file:
            file.write(template())
    except FileExistsError:
        raise InputError(f"{path}: exists already; choose another name, or remove it first") from None
    except OSError as error:
        raise InputError(f"{path}: cannot be written ({error.strerror}); choose another place") from None
    print(f"{path} written. Next: baseload check {path}; baseload simulate {path}")
    return 0


def check_verb(options: argparse.Namespace) -> int:
    """Print every problem and warning of a fleet file; exit code 2 when there is a problem."""
    from baseload.app.simulating import known_policies
    from baseload.fleet import check, load

    loaded = load.load(options.fleet, options.overrides)
    problems = check.problems(loaded, policies=known_policies())
    for problem in problems:
        print(problem)
    warnings = check.warnings(loaded)
    for warning in warnings:
        print(f"warning: {warning}")
    if problems:
        print(f"{options.fleet}: {len(problems)} problem{'s' if len(problems) > 1 else ''}")
        return 2
    fleet = loaded.fleet
    print(
        f"{options.fleet}: fine. {len(fleet.sites)} sites, {len(fleet.deployments)} deployments, "
        f"{len(fleet.models)} models, {len(fleet.tenants) or 1} tenants"
    )
    return 0


def simulate_verb(options: argparse.Namespace) -> int:
    """Run the twin, write the run folder, print the report."""
    from baseload.app import simulating

    wish = _wish(options)
    _go_together(options)
    require_page(options.html, options.fleet, options.replay, options.trace)
    if options.replay is not None:
        from baseload.app import replay
        from baseload.fleet import load

        kept = replay.named(replay.read(options.replay), load.load(wish.fleet, wish.overrides).fleet)
        wish = dataclasses.replace(wish, replay=kept, overrides=(*kept.overrides, *wish.overrides))
    prepared = simulating.prepare(wish)
    for warning in prepared.warnings:
        say(f"warning: {warning}")
    if options.find_capacity:
        from baseload.app import load_search

        simulating.say_compiling(say)
        return _print_capacity(*load_search.search(prepared.twin, prepared.source, say), as_json=options.json)
    out: Path = options.out or Path("runs") / prepared.loaded.fleet.name
    with _progress(options.json) as progress:
        folder = simulating.run_into(prepared, wish, out, say=say, progress=progress, overwrite=options.overwrite)
    html: Path = options.html or folder / "report.html"
    _show(folder, as_json=options.json, html=html)
    say(f"run folder {folder}, report {html}")
    if wish.replay is not None:
        from baseload.adapters.store import RunReader

        with RunReader(folder) as run:
            columns = run.columns(
                "SELECT request_id, site_i, status, arrival_ns, first_token_ns, finish_ns FROM requests"
            )
        local = replay.on_this_host(prepared.loaded.fleet, options.engines)
        print(replay.comparison(wish.replay, prepared.twin, columns, local))
    return 0


def report_verb(options: argparse.Namespace) -> int:
    """Show a finished run again."""
    if options.run.is_dir():
        require_page(options.html, *(path for path in options.run.iterdir() if path.suffix != ".html"))
    _show(options.run, as_json=options.json, html=options.html, text=not options.html)
    if options.html:
        print(f"{options.html} written")
    return 0


def compare_verb(options: argparse.Namespace) -> int:
    """Print two runs side by side."""
    from baseload.adapters.store import RunReader
    from baseload.report import compare

    with RunReader(options.run_a) as a, RunReader(options.run_b) as b:
        difference = compare.compare(a, b)
    print(compare.to_json(difference) if options.json else compare.to_text(difference))
    return 0


def calibrate_verb(options: argparse.Namespace) -> int:
    """Fit the speed model's constants to a user's measurements."""
    from baseload.app import calibrate

    print(calibrate.calibrate_file(options.measured, accelerator=options.accelerator, model=options.model,
                                   precision=options.precision, tp=options.tp, out=options.out))  # fmt: skip
    return 0


def catalog_verb(options: argparse.Namespace) -> int:
    """List a catalogue, or one entry with its sources."""
    from baseload.app import catalog_page

    print(catalog_page.page(options.kind, options.name, as_json=options.json))
    return 0


def _go_together(options: argparse.Namespace) -> None:
    """Refuse options of `simulate` that have no meaning beside each other: none of them is passed over in silence."""
    if options.replay is None and options.engines is not None:
        raise InputError("--engines says what served a ledger; add --replay LEDGER, or leave it away")
    alone = {
        "--replay": ("runs a ledger, whole", ("--trace", "--windows", "--requests")),
        "--find-capacity": ("prints the highest load, and writes no report", ("--windows", "--html", "--out")),
    }
    for option, (does, others) in alone.items():
        if _given(options, option):
            wrong = [other for other in others if _given(options, other)]
            if wrong:
                raise InputError(f"{option} {does}; leave {' and '.join(wrong)} away")


def _given(options: argparse.Namespace, option: str) -> bool:
    return getattr(options, option.strip("-").replace("-", "_")) not in (None, 0, False)


def _wish(options: argparse.Namespace) -> Wish:
    from baseload.app.simulating import Wish

    if options.requests is not None and options.requests < 1:
        raise InputError(f"--requests {options.requests}: must be at least 1")
    if options.scale is not None and not 0.0 < options.scale < 1e9:
        raise InputError(f"--scale {options.scale:g}: must be above 0 and below 1e9")
    if options.trace is not None and not options.trace.strip():
        raise InputError("--trace: is empty; name a file, azure-conv or azure-code")
    if options.seed < 0:
        raise InputError(f"--seed {options.seed}: must be 0 or more")
    if options.windows < 0:
        raise InputError(f"--windows {options.windows}: must be 0 (the whole trace) or more")
    return Wish(
        fleet=options.fleet,
        trace=options.trace,
        seed=options.seed,
        overrides=tuple(options.overrides),
        scale=options.scale,
        requests=options.requests,
        day=_day(options.date),
        windows=options.windows,
        stepping=options.step,
    )


def _day(text: str | None) -> date | None:
    if text is None:
        return None
    try:
        day = date.fromisoformat(text if text.count("-") == 2 else f"{text}-01")
    except ValueError:
        raise InputError(f"--date {text}: is no day; write YYYY-MM-DD or YYYY-MM") from None
    if not 1900 <= day.year <= 2200:
        raise InputError(f"--date {text}: no fleet stands then; write a day between 1900 and 2200")
    return day


def _show(folder: Path, *, as_json: bool, html: Path | None, text: bool = True) -> None:
    from baseload.adapters.store import RunReader
    from baseload.report import html as html_report
    from baseload.report import json_out, kpis
    from baseload.report import text as text_report

    with RunReader(folder) as run:
        report = kpis.kpis(run)
        if html is not None:
            try:
                html_report.write(report, run, html)
            except (OSError, ValueError) as error:  # ValueError: no name at all
                reason = getattr(error, "strerror", None) or str(error)
                raise InputError(f"{html}: cannot be written ({reason}); choose another place") from None
        if as_json:
            print(json_out.to_json(report))
        elif text:
            text_report.show(report)


def _print_capacity(factor: float, probes: list[Probe], *, as_json: bool) -> int:
    if as_json:
        import msgspec

        print(msgspec.json.encode({"highest_load_factor": factor, "probes": probes}).decode())
        return 0
    if factor == 0.0:
        print("No load was found at which every promise holds: even a thousandth of this demand misses one.")
        print(probes[-1].sentence())
        return 0
    best = max((p for p in probes if p.meets), key=lambda p: p.load_factor)
    over = min((p for p in probes if not p.meets), key=lambda p: p.load_factor, default=None)
    if over is None:
        print(
            "This demand is too short to tell the highest load that meets every SLO: "
            f"even {factor:,.0f} times as fast, it misses none. Ask with more requests."
        )
        return 0
    print(
        f"Highest load that meets every SLO: {factor:.3f} x this demand, {best.requests_per_s:,.1f} requests/s, "
        f"{best.tokens_per_s:,.0f} tokens/s."
    )
    print(
        f"What gives way first, at {over.load_factor:.3f} x: {over.tenant} attains {100 * over.attainment:.2f} % "
        f"of its promised {100 * over.promised:.1f} % ({over.cause})."
    )
    return 0


class _progress:
    """A progress bar on a terminal; nothing elsewhere."""

    def __init__(self, quiet: bool) -> None:
        self.quiet = quiet or not sys.stderr.isatty()

    def __enter__(self) -> Callable[[Moment, float | None], None]:
        """Start the bar."""
        if self.quiet:
            return lambda moment, duration_s: None
        from rich.console import Console
        from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

        self.bar = Progress(
            TextColumn("simulating"), BarColumn(), TextColumn("{task.fields[what]}"), TimeRemainingColumn(),
            console=Console(stderr=True), transient=True,
        )  # fmt: skip
        self.bar.start()
        task = self.bar.add_task("", total=None, what="")

        def show(moment: Moment, duration_s: float | None) -> None:
            now_s = moment.now_ns / 1e9
            what = f"{now_s:,.0f} s, {moment.ended:,} ended, {moment.active:,} in flight"
            self.bar.update(task, completed=min(now_s, duration_s or now_s), total=duration_s, what=what)

        return show

    def __exit__(self, *exc: object) -> None:
        """Remove the bar."""
        if not self.quiet:
            self.bar.stop()
