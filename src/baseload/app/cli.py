"""The command line: `baseload init|check|simulate|serve|report|…`. Light: verbs import what they need.

Exit codes: 0 done, 2 something the user wrote is wrong (one line each on stderr: where, what, mend), 1 ours, 130 Ctrl-C;
3 a plan that does not meet every limit, or in the twin every promise, written all the same.
"""

from __future__ import annotations

import _thread
import argparse
import contextlib
import errno
import io
import os
import signal
import sys
import threading
import time
from collections.abc import Sequence
from pathlib import Path
from typing import NoReturn

from baseload import __version__
from baseload.errors import BaseloadError, InputError

DESCRIPTION = """Infrastructure software for those who run AI in several sites: one fleet file declares sites, power,
cooling, racks, accelerators, links, models, deployments, tenants and money; the twin says what the fleet can really serve,
at what latency, cost, energy and carbon, and what stops it from serving more."""
EXIT_CODES = "Exit code: 0 done; 2 something in the command or a file is wrong; 130 Ctrl-C; 1 anything else."
PLAN_EXIT_CODES = """Exit code: 0 the plan meets every limit; 3 it does not, also with --what-if, or breaks a promise in the
twin, and is written all the same; 2 something in the command or a file is wrong;
130 Ctrl-C, with the best plan so far; 1 anything else."""


def parser() -> argparse.ArgumentParser:
    """Return the whole command line; docs/reference/cli.md is generated from it."""
    top = argparse.ArgumentParser(prog="baseload", description=DESCRIPTION, epilog=EXIT_CODES)
    top.add_argument("--version", action="version", version=f"baseload {__version__}")
    verbs = top.add_subparsers(dest="verb", metavar="VERB")
    _init(verbs)
    _check(verbs)
    _simulate(verbs)
    _report(verbs)
    _compare(verbs)
    _capacity(verbs)
    _plan(verbs)
    _place(verbs)
    _calibrate(verbs)
    _catalog(verbs)
    _serve(verbs)
    _keys(verbs)
    _usage(verbs)
    _verify(verbs)
    _ledger(verbs)
    return top


VERBS = "baseload.app.verbs"
VERB_MODULES = dict.fromkeys(("serve", "keys", "usage", "verify", "ledger"), "baseload.app.live_verbs") | {
    "place": "baseload.app.place_verb",
    "capacity": "baseload.app.capacity_verb",
    "plan": "baseload.app.plan_verb",
}
"""Where a verb's function is, if not in VERBS; imported when it is asked for."""

Verbs = argparse._SubParsersAction  # the class has no public name


def _set_option(sub: argparse.ArgumentParser) -> None:
    sub.add_argument(
        "--set",
        dest="overrides",
        action="append",
        default=[],
        metavar="KEY=VALUE",
        help="change one key of the fleet file for this command, e.g. sites.oslo.redundancy=2N; may be repeated",
    )


def _init(verbs: Verbs) -> None:  # type: ignore[type-arg]
    sub = verbs.add_parser("init", help="write a commented fleet file that already simulates")
    sub.add_argument("file", type=Path, help="file to write; an existing one is never overwritten")


def _check(verbs: Verbs) -> None:  # type: ignore[type-arg]
    sub = verbs.add_parser("check", help="say what is wrong with a fleet file: file, line, key, what, how to mend")
    sub.add_argument("fleet", type=Path, help="fleet file")
    _set_option(sub)


def _simulate(verbs: Verbs) -> None:  # type: ignore[type-arg]
    sub = verbs.add_parser("simulate", help="run the twin of a fleet under a request trace and report")
    sub.add_argument("fleet", type=Path, help="fleet file")
    sub.add_argument("--trace", help="azure-conv, azure-code, or a file; the fleet file's demand where absent")
    sub.add_argument("--scale", type=float, help="load factor; the fleet file's demand.scale where absent")
    sub.add_argument("--requests", type=int, help="stop after this many requests")
    sub.add_argument("--date", help="the fleet as it stands on this day (YYYY-MM or YYYY-MM-DD)")
    sub.add_argument("--seed", type=int, default=0, help="of failures, generators and the tenant mix (0)")
    sub.add_argument("--out", type=Path, help="run folder (runs/<name of the fleet>)")
    sub.add_argument("--overwrite", action="store_true", help="replace a complete run folder")
    sub.add_argument("--html", type=Path, help="where to write the report (report.html in the run folder)")
    sub.add_argument("--json", action="store_true", help="print the report as JSON instead of tables")
    sub.add_argument(
        "--windows",
        type=int,
        default=0,
        metavar="N",
        help="run only N representative windows of a long trace, weighted, with a confidence interval",
    )
    sub.add_argument(
        "--find-capacity", action="store_true", help="search the highest load that still meets every promise (SLO)"
    )
    sub.add_argument("--step", action="store_true", help="advance every engine step one by one (slower, same answer)")
    sub.add_argument(
        "--replay",
        type=Path,
        metavar="LEDGER",
        help="run the requests of a ledger instead of a trace, and say where reality differed",
    )
    sub.add_argument(
        "--engines",
        choices=["external", "embedded", "emulated"],
        help="with --replay: the kind that `serve --engines` put everywhere; engines beside the gateway have no network",
    )
    _set_option(sub)


def _report(verbs: Verbs) -> None:  # type: ignore[type-arg]
    sub = verbs.add_parser("report", help="show a finished run again: tables, JSON or one HTML file")
    sub.add_argument("run", type=Path, help="run folder")
    sub.add_argument("--json", action="store_true", help="print JSON")
    sub.add_argument("--html", type=Path, help="write one self-contained HTML file")


def _compare(verbs: Verbs) -> None:  # type: ignore[type-arg]
    sub = verbs.add_parser("compare", help="set two runs side by side")
    sub.add_argument("run_a", type=Path, help="run folder")
    sub.add_argument("run_b", type=Path, help="run folder")
    sub.add_argument("--json", action="store_true", help="print JSON")


def _capacity(verbs: Verbs) -> None:  # type: ignore[type-arg]
    sub = verbs.add_parser("capacity", help="the ladder over the years, P10, P50 and P90: announced to usable")
    sub.add_argument("fleet", type=Path, help="fleet file")
    sub.add_argument("--horizon", default="5y", help="how far ahead: years, quarters or months, e.g. 5y, 20q, 18m (5y)")
    sub.add_argument("--date", help="the day to look ahead from (YYYY-MM or YYYY-MM-DD); today where absent")
    sub.add_argument("--seed", type=int, default=0, help="of the draws (0)")
    sub.add_argument("--json", action="store_true", help="print JSON")
    sub.add_argument("--html", type=Path, help="write one self-contained HTML file")
    _set_option(sub)


def _plan(verbs: Verbs) -> None:  # type: ignore[type-arg]
    about = "what to build, buy or rent, where and when, with the proof"
    sub = verbs.add_parser("plan", help=about, epilog=PLAN_EXIT_CODES)
    sub.add_argument("fleet", type=Path, help="fleet file; its `plan` section says what may be decided")
    sub.add_argument("--horizon", help="years, quarters or months, e.g. 5y, 20q, 18m; plan.horizon (5y) where absent")
    sub.add_argument("--date", help="the day to plan from (YYYY-MM or YYYY-MM-DD); plan.start, or today, where absent")
    sub.add_argument("--out", type=Path, default=Path("plan"), help="folder to write (plan)")
    sub.add_argument(
        "--what-if",
        action="append",
        default=[],
        metavar="KEY=VALUE",
        help="plan with one key of the fleet file otherwise too, and say what changed; may be repeated",
    )
    sub.add_argument("--risk", choices=["expected", "cvar95"], help="hold against late power, late shipments, demand")
    sub.add_argument("--scenarios", type=int, metavar="N", help="with --risk: how many are drawn (20)")
    sub.add_argument("--gap", default="1%", help="how far from the best possible the plan may be, e.g. 1%% (1%%)")
    sub.add_argument("--cpu-limit", type=float, default=60.0, metavar="S", help="CPU seconds for the solver (60)")
    sub.add_argument("--seed", type=int, default=0, help="of all draws (0)")
    sub.add_argument(
        "--table",
        default="measured",
        help="what a replica carries: `measured` in the twin, `modelled` by formulas, or a file (measured)",
    )
    sub.add_argument(
        "--rounds",
        type=int,
        metavar="N",
        help="run the plan in the twin and correct it, at most N times (6), and once more what --risk makes of it",
    )
    sub.add_argument("--quick", action="store_true", help="the plan alone: not run in the twin, limits not priced")
    sub.add_argument("--json", action="store_true", help="print JSON")
    _set_option(sub)


def _place(verbs: Verbs) -> None:  # type: ignore[type-arg]
    sub = verbs.add_parser(
        "place", help="where should this workload run? every site and accelerator, ranked, with reasons"
    )
    sub.add_argument("fleet", type=Path, help="fleet file")
    sub.add_argument("--tenant", required=True, help="whose requests: name under `tenants`")
    sub.add_argument("--model", required=True, help="name under `models`, or in the catalogue")
    sub.add_argument(
        "--date", help="the fleet as it stands on this day (YYYY-MM or YYYY-MM-DD); the run's day where absent"
    )
    sub.add_argument("--seed", type=int, default=0, help="of the runs that measure what a replica carries (0)")
    sub.add_argument("--json", action="store_true", help="print JSON")
    _set_option(sub)


def _calibrate(verbs: Verbs) -> None:  # type: ignore[type-arg]
    sub = verbs.add_parser("calibrate", help="fit the speed model to measured rows; prints the error before and after")
    sub.add_argument("measured", type=Path, help="CSV: input_tokens, output_tokens, concurrency, ttft_ms, tpot_ms, ...")
    sub.add_argument("--accelerator", required=True, help="catalogue name")
    sub.add_argument("--model", required=True, help="catalogue name")
    sub.add_argument("--precision", default="bf16", choices=["bf16", "fp8", "fp4"], help="of the weights (bf16)")
    sub.add_argument("--tp", type=int, default=1, help="tensor parallel accelerators (1)")
    sub.add_argument("--out", type=Path, help="write the fitted constants as YAML for a deployment's `speed:`")


def _catalog(verbs: Verbs) -> None:  # type: ignore[type-arg]
    sub = verbs.add_parser("catalog", help="list what is known of accelerators, models and sites, with sources")
    sub.add_argument("kind", choices=["accelerators", "models", "sites"], help="which catalogue")
    sub.add_argument("name", nargs="?", help="one entry, with the source of each figure")
    sub.add_argument("--json", action="store_true", help="print JSON")


def _state_option(sub: argparse.ArgumentParser) -> None:
    sub.add_argument("--state", type=Path, help="folder of keys, ledger and sockets (baseload-state)")


def _serve(verbs: Verbs) -> None:  # type: ignore[type-arg]
    sub = verbs.add_parser("serve", help="run the gateway and the control plane of a fleet, live")
    sub.add_argument("fleet", type=Path, help="fleet file")
    sub.add_argument("--listen", metavar="ADDR", help="address and port of the gateway (127.0.0.1:8080)")
    sub.add_argument("--control", metavar="ADDR", help="address and port of the control listener (127.0.0.1:8081)")
    sub.add_argument("--workers", type=int, help="gateway processes; serve.workers of the fleet file where absent")
    sub.add_argument(
        "--engines", choices=["external", "embedded", "emulated"], help="one kind of engine for all deployments"
    )
    _state_option(sub)
    sub.add_argument("--ready-json", action="store_true", help="print one JSON line with the addresses when ready")
    _set_option(sub)


def _keys(verbs: Verbs) -> None:  # type: ignore[type-arg]
    sub = verbs.add_parser("keys", help="make, list and revoke the keys of tenants and of the control listener")
    what = sub.add_subparsers(dest="keys_verb", metavar="WHAT", required=True, help="what to do with them")
    create = what.add_parser("create", help="make a key; it is shown once")
    create.add_argument("--tenant", help="name under `tenants` of the fleet file")
    create.add_argument("--role", choices=["tenant", "viewer", "operator", "admin"], help="a control token instead")
    create.add_argument("--name", default="", help="what it is for, as you will see it in lists")
    create.add_argument("--budget", type=float, help="most it may spend in its whole life, in the fleet's currency")
    create.add_argument("--rpm", type=int, help="requests a minute")
    create.add_argument("--tpm", type=int, help="tokens a minute, input and output together")
    create.add_argument("--concurrency", type=int, help="requests at a time")
    create.add_argument("--days", type=float, help="days until it expires; never where absent")
    listed = what.add_parser("list", help="list keys; the keys themselves are known to nobody")
    listed.add_argument("--tenant", help="of one tenant")
    revoke = what.add_parser("revoke", help="end a key; running streams stop within a second")
    revoke.add_argument("key", help="its id as `keys list` shows it, or the key itself")
    pepper = what.add_parser("rotate-pepper", help="make a new pepper; keys made under the old one stay valid")
    forget = what.add_parser("forget", help="remove a tenant's name from everything but their pseudonym in the ledger")
    forget.add_argument("tenant", help="name under `tenants`")
    for one in (create, listed, revoke, pepper, forget):
        _state_option(one)
        one.add_argument("--json", action="store_true", help="print JSON")


def _usage(verbs: Verbs) -> None:  # type: ignore[type-arg]
    sub = verbs.add_parser("usage", help="what was used and what it comes to, from the ledger")
    sub.add_argument("--tenant", help="of one tenant")
    sub.add_argument("--since", help="from this day on (YYYY-MM-DD), UTC; this month where absent")
    _state_option(sub)
    sub.add_argument("--json", action="store_true", help="print JSON")


def _verify(verbs: Verbs) -> None:  # type: ignore[type-arg]
    sub = verbs.add_parser("verify", help="check a ledger or a receipt offline; names the first row tampered with")
    sub.add_argument("ledger", type=Path, nargs="?", help="ledger file")
    sub.add_argument("--receipt", type=Path, help="receipt of one request, as /v1/receipts/{id} gave it")
    sub.add_argument("--witness", type=Path, help="file of checkpoints kept elsewhere")
    sub.add_argument("--public-key", type=Path, help="the signer's public key, from a place you trust")
    sub.add_argument("--previous", type=Path, help="the archive that a rotated or restored ledger goes on from")
    sub.add_argument("--json", action="store_true", help="print JSON")


def _ledger(verbs: Verbs) -> None:  # type: ignore[type-arg]
    sub = verbs.add_parser("ledger", help="back up, restore and rotate the ledger, and change its signing key")
    what = sub.add_subparsers(dest="ledger_verb", metavar="WHAT", required=True, help="what to do with it")
    backup = what.add_parser("backup", help="copy it to a new file, also while the gateway runs")
    backup.add_argument("file", type=Path, help="file to write; an existing one is never overwritten")
    restore = what.add_parser("restore", help="begin a new ledger that goes on from a backup; the old one must be away")
    restore.add_argument("file", type=Path, help="the backup")
    rotate = what.add_parser("rotate", help="move all rows to an archive and go on in a fresh file linked to it")
    rotate.add_argument("file", type=Path, help="archive to write")
    change = what.add_parser("change-key", help="make a new signing key, vouched for by the old one")
    for one in (backup, restore, rotate, change):
        _state_option(one)


def run(arguments: Sequence[str] | None = None) -> int:
    """Run one command; return its exit code. Errors of the user are raised as BaseloadError."""
    top = parser()
    options = top.parse_args(arguments)
    for text in sys.argv[1:] if arguments is None else arguments:
        if any("\ud800" <= letter <= "\udfff" for letter in text):
            raise InputError(f"{text[:200]!a}: holds bytes that are no UTF-8 text; rename the file")
    if options.verb is None:
        top.print_help()
        return 0
    import importlib

    verb = getattr(importlib.import_module(VERB_MODULES.get(options.verb, VERBS)), f"{options.verb}_verb")
    try:
        code: int = verb(options)
    except OSError as error:
        if error.errno != errno.ENAMETOOLONG:
            raise
        raise InputError(f"{error.filename}: is too long; choose a shorter name") from None
    return code


def main() -> None:
    """Entry point of the `baseload` command."""
    _open_streams()
    pressed = _note_interrupts()
    try:
        try:
            code = run()
        finally:
            sys.stdout.flush()
    except BaseloadError as error:
        print(f"baseload: {error}", file=sys.stderr)
        code = error.exit_code
    except KeyboardInterrupt:
        _end_interrupted()
    except MemoryError:
        print("baseload: out of memory; run fewer replicas or fewer requests, or a larger machine", file=sys.stderr)
        code = 1
    except Exception as error:
        if pressed:  # what Ctrl-C turned into on its way through a compiler or a library
            _end_interrupted()
        if not isinstance(error, OSError):
            raise
        if not isinstance(error, BrokenPipeError):
            if error.errno not in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EIO):
                raise
            print(f"baseload: the output cannot be written ({error.strerror}); send it elsewhere", file=sys.stderr)
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # what is left has nowhere to go
        code = 1
    if threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGINT, signal.SIG_IGN)  # all is done: Ctrl-C comes too late to say otherwise
    sys.exit(code)


def _end_interrupted() -> NoReturn:
    """End with 130 and one line.

    Python itself would end by the signal where the interrupt fell into `exec` or `eval` of a text, as imports use them,
    though it was caught since.
    """
    print("baseload: interrupted", file=sys.stderr, flush=True)
    with contextlib.suppress(OSError, ValueError):
        sys.stdout.flush()
    os._exit(130)


def _note_interrupts() -> list[int]:
    """Return a list that tells whether Ctrl-C was pressed; KeyboardInterrupt is raised as ever.

    Where Python has nobody to raise it to (in the callback of a weak reference, as imports use them) it would be lost: it
    is raised once more, a moment later.
    """
    pressed: list[int] = []
    main_thread = threading.get_ident()

    def press(number: int, frame: object) -> None:
        pressed.append(number)
        raise KeyboardInterrupt

    def again() -> None:
        time.sleep(0.01)
        signal.pthread_kill(main_thread, signal.SIGINT)  # which also ends a sleep

    def lost(what: sys.UnraisableHookArgs) -> None:
        if not pressed:
            sys.__unraisablehook__(what)
        elif issubclass(what.exc_type, KeyboardInterrupt):
            _thread.start_new_thread(again, ())

    if threading.current_thread() is threading.main_thread() and signal.getsignal(signal.SIGINT) is not signal.SIG_IGN:
        signal.signal(signal.SIGINT, press)
        sys.unraisablehook = lost
    return pressed


def _open_streams() -> None:
    """Give a command that was started without output somewhere to write, and never fail on a letter it cannot show."""
    for name in ("stdout", "stderr"):
        stream = getattr(sys, name)
        if stream is None:
            setattr(sys, name, open(os.devnull, "w", encoding="utf-8"))  # noqa: SIM115
        elif isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace" if name == "stderr" else "replace")
