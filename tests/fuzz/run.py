"""Throw mutated input at what reads it: `python -m tests.fuzz.run --count 100000`.

A target is a module with `check(seed) -> str`: it makes one input from the seed, feeds it, and returns a word for what
came out ("error", "valid", ...). Whatever it raises is a finding; the command that repeats it is printed.
"""

from __future__ import annotations

import argparse
import importlib
import importlib.util
import signal
import sys
import time
import traceback
from collections import Counter
from collections.abc import Callable
from types import FrameType

TARGETS = {
    "fleet": "tests.fuzz.fleet_mutations",
    "plan": "tests.fuzz.plan_mutations",
    "run": "tests.fuzz.run_mutations",
    "trace": "tests.fuzz.trace_mutations",
}
SLOWER = {"plan": 20}  # a case takes as long as so many others: of all targets together, it gets so many fewer
CASE_LIMIT_S = 20  # of computing, and ten times that by the clock: a case that takes longer counts as a hang


class Hang(Exception):
    """A case took longer than CASE_LIMIT_S."""


def _alarm(signum: int, frame: FrameType | None) -> None:
    raise Hang(f"more than {CASE_LIMIT_S} s")


def check_in_time(check: Callable[[int], str], seed: int) -> str:
    """Run one case; raise Hang where it does not end."""
    if not hasattr(signal, "SIGALRM"):
        return check(seed)
    kinds = ((signal.SIGPROF, signal.ITIMER_PROF, 1), (signal.SIGALRM, signal.ITIMER_REAL, 10))
    before = [signal.signal(number, _alarm) for number, _, _ in kinds]
    for _, timer, times in kinds:
        signal.setitimer(timer, times * CASE_LIMIT_S)
    try:
        return check(seed)
    finally:
        for (number, timer, _), handler in zip(kinds, before, strict=True):
            signal.setitimer(timer, 0)
            signal.signal(number, handler)


def load_target(name: str) -> Callable[[int], str] | None:
    """Return a target's check, or None where its module is not there."""
    if importlib.util.find_spec(TARGETS[name]) is None:
        return None
    check: Callable[[int], str] = importlib.import_module(TARGETS[name]).check
    return check


def run_target(name: str, *, first_seed: int, count: int, say: Callable[[str], None] = print) -> int:
    """Run `count` seeds of one target; say what came out; return the number of findings."""
    check = load_target(name)
    if check is None:
        say(f"{name}: not here")
        return 0
    outcomes: Counter[str] = Counter()
    findings = 0
    said_s = time.monotonic()
    for seed in range(first_seed, first_seed + count):
        try:
            outcomes[check_in_time(check, seed)] += 1
        except Exception:
            findings += 1
            say(traceback.format_exc())
            say(f"to repeat: python -m tests.fuzz.run --target {name} --seed {seed} --count 1")
            if findings >= 10:
                say(f"{name}: stopped after {findings} findings")
                break
        if time.monotonic() - said_s > 10:
            said_s = time.monotonic()
            say(f"{name}: {seed - first_seed + 1:,} of {count:,}")
    words = ", ".join(f"{n:,} {word}" for word, n in sorted(outcomes.items()))
    say(f"{name}: {sum(outcomes.values()):,} cases ({words}), {findings} findings")
    return findings


def main(arguments: list[str] | None = None) -> int:
    """Run the targets; exit code 1 where anything was found."""
    parser = argparse.ArgumentParser(prog="python -m tests.fuzz.run", description=__doc__.splitlines()[0])
    parser.add_argument("--target", choices=sorted(TARGETS), action="append", help="all of them unless said")
    parser.add_argument("--seed", type=int, default=0, help="the first seed")
    parser.add_argument(
        "--count", type=int, default=1000, help="seeds of each target; of plans a twentieth, unless named"
    )
    options = parser.parse_args(arguments)
    counts = dict.fromkeys(options.target or (), options.count) or {
        name: max(1, options.count // SLOWER.get(name, 1)) for name in sorted(TARGETS)
    }
    findings = sum(run_target(name, first_seed=options.seed, count=count) for name, count in counts.items())
    return 1 if findings else 0


if __name__ == "__main__":
    sys.exit(main())
