"""Whatever stops `baseload simulate` leaves a `.partial` folder or a complete one, and the next command says which.

A whole run in a process of its own, stopped at random moments: Ctrl-C, SIGTERM, SIGKILL, and a disk that takes no more
(a limit on the size of files, which every write meets as it would meet a full disk).
"""

from __future__ import annotations

import os
import random
import resource
import signal
import subprocess
import sys
import threading
import time
from contextlib import redirect_stdout
from io import StringIO
from pathlib import Path

import pytest

from baseload.app.cli import run
from baseload.errors import BaseloadError

ROOT = Path(__file__).resolve().parents[2]
FLEET = ROOT / "examples" / "three-sites" / "fleet.yaml"
GENERATOR = """
demand.generator={kind: poisson, requests_per_s: 2000, duration_s: 2000, input_tokens: 200, output_tokens: 20, length_cv: 1}
"""


def command(*arguments: object) -> list[str]:
    """Return the words of a command line."""
    return [sys.executable, "-m", "baseload", *map(str, arguments)]


def simulate(out: Path) -> list[str]:
    """Return a run that takes much longer than any test waits for it."""
    return command(
        "simulate", FLEET, "--out", out, "--overwrite", "--set", "demand.trace=null", "--set", GENERATOR.strip()
    )


def said(*arguments: object) -> tuple[int, str]:
    """Run a command to its end; return its exit code and everything it said."""
    done = subprocess.run(command(*arguments), cwd=ROOT, capture_output=True, text=True, timeout=300, check=False)
    return done.returncode, done.stdout + done.stderr


def started(out: Path, **options: object) -> subprocess.Popen[str]:
    """Start the run and wait until its folder is there."""
    process = subprocess.Popen(
        simulate(out),
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        # A shell starts what it puts in the background deaf to Ctrl-C, and so would be our children.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
        **options,
    )  # type: ignore[call-overload]
    partial = out.with_name(out.name + ".partial")
    until = time.monotonic() + 240.0  # the twin may have to be compiled first
    while not partial.exists() and process.poll() is None and time.monotonic() < until:
        time.sleep(0.02)
    return process


def stopped(process: subprocess.Popen[str], number: signal.Signals) -> tuple[int, str]:
    """Send a signal; return the exit code and what was said."""
    process.send_signal(number)
    try:
        out, error = process.communicate(timeout=60)
    finally:
        if process.poll() is None:
            process.kill()
            process.communicate()
    return process.returncode, out + error


def report(out: Path) -> tuple[int, str]:
    """Run `baseload report` in this process; return its exit code and everything it said."""
    words = StringIO()
    try:
        with redirect_stdout(words):
            return run(["report", str(out)]), words.getvalue()
    except BaseloadError as error:
        return error.exit_code, words.getvalue() + str(error)


def assert_told(out: Path) -> None:
    """A stopped run left a `.partial` folder or a complete one, and `report` says which."""
    partial = out.with_name(out.name + ".partial")
    assert partial.is_dir() != out.is_dir(), sorted(out.parent.iterdir())
    code, words = report(out)
    if out.is_dir():
        assert code == 0, words
    else:
        assert code == 2 and ".partial" in words, words


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGKILL], ids=lambda one: one.name)
def test_a_signal_at_any_moment_leaves_partial_or_complete(number: signal.Signals, tmp_path: Path) -> None:
    """Ctrl-C, SIGTERM and SIGKILL at random moments: never a half-written folder under the run's own name."""
    dice = random.Random(f"moments of {number.name}")
    for i in range(3):
        out = tmp_path / f"run{i}"
        process = started(out)
        time.sleep(dice.choice([0.0, 0.05, 0.3, 1.0]) * dice.random())
        code, words = stopped(process, number)
        assert "Traceback" not in words, words
        assert code != 0
        if number == signal.SIGINT:
            assert code == 130 and "interrupted" in words, (code, words)
        assert_told(out)


@pytest.mark.parametrize("wait_s", [0.04, 0.08, 0.12, 0.2, 0.3])
@pytest.mark.parametrize(
    "words", [("serve", FLEET), ("plan", FLEET), ("check", FLEET), ("keys", "list")], ids=lambda w: w[0]
)
def test_ctrl_c_among_the_imports_is_one_line(words: tuple[str, ...], wait_s: float, tmp_path: Path) -> None:
    """However early Ctrl-C comes once Python has begun with us: 130, one line, no traceback."""
    process = subprocess.Popen(
        [sys.executable, "-X", "importtime", *command(*words)[1:]], cwd=tmp_path, stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE, text=True, env={**os.environ, "PYTHONUNBUFFERED": "1"},
    )  # fmt: skip
    assert process.stderr is not None
    for line in process.stderr:  # until it is our own modules that are being imported
        if "baseload" in line:
            break
    time.sleep(wait_s)
    process.send_signal(signal.SIGINT)
    too_long = threading.Timer(60.0, process.kill)  # a lost interrupt fails here, and does not hold up the others
    too_long.start()
    told = [line for line in process.stderr if not line.startswith("import time:")]
    code = process.wait(20)
    too_long.cancel()
    process.stderr.close()
    assert "Traceback" not in "".join(told), told
    if code not in (0, 2):  # a short command may have ended by itself
        assert code == 130 and [line for line in told if "interrupted" in line], (code, told)


def test_ctrl_c_while_a_plan_measures_replicas_ends_at_once(tmp_path: Path) -> None:
    """A plan that is not begun is not waited for: within a second (on a machine that is not busy) it is over, with 130."""
    out = tmp_path / "plan"
    process = subprocess.Popen(
        command("plan", FLEET, "--out", out), cwd=ROOT, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True
    )
    assert process.stderr is not None
    said = [next(process.stderr)]
    while "measuring" not in said[-1]:
        said.append(next(process.stderr))
    time.sleep(2.5)
    pressed_s = time.monotonic()
    process.send_signal(signal.SIGINT)
    rest = process.stderr.read()
    code, took_s = process.wait(60), time.monotonic() - pressed_s
    process.stderr.close()
    assert code == 130 and "interrupted" in rest and "Traceback" not in rest, (code, rest)
    assert took_s < 1.0 * max(1.0, os.getloadavg()[0] / (os.cpu_count() or 1)) + 0.5, took_s


def test_the_next_run_replaces_what_an_interrupted_one_left(tmp_path: Path) -> None:
    """After SIGKILL the same command runs again: it says that it replaced the leftover, and ends complete."""
    out = tmp_path / "run"
    stopped(started(out), signal.SIGKILL)
    assert out.with_name("run.partial").is_dir()
    code, words = said("simulate", FLEET, "--out", out, "--requests", "300")
    assert code == 0 and "run.partial" in words, words
    assert out.is_dir() and not out.with_name("run.partial").exists()
    assert_told(out)


@pytest.mark.skipif(not hasattr(resource, "RLIMIT_FSIZE"), reason="no limit on file sizes on this system")
@pytest.mark.parametrize("most_bytes", [0, 1000, 60_000, 400_000])
def test_a_full_disk_is_said_and_leaves_partial(most_bytes: int, tmp_path: Path) -> None:
    """Where files may grow no further, the run ends with exit code 2 and a sentence that names the folder and the mend."""

    def limit() -> None:
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)  # the write fails instead, as on a full disk
        resource.setrlimit(resource.RLIMIT_FSIZE, (most_bytes, most_bytes))

    out = tmp_path / "run"
    done = subprocess.run(
        command("simulate", FLEET, "--out", out, "--trace", "azure-conv"), cwd=ROOT, capture_output=True, text=True,
        timeout=300, preexec_fn=limit, env={**os.environ, "PYTHONDONTWRITEBYTECODE": "1"}, check=False,
    )  # fmt: skip
    words = done.stdout + done.stderr
    assert "Traceback" not in words, words
    assert done.returncode == 2 and "run.partial" in words and "free space" in words, (done.returncode, words)
    assert not out.exists()
    assert_told(out)


_NOBODY_TO_RAISE_TO = """
import os, signal, time, weakref
from baseload.app import cli

class Thing: pass

cli._note_interrupts()
for _ in range(3):
    thing = Thing()
    watched = weakref.ref(thing, lambda _: os.kill(os.getpid(), signal.SIGINT))
    try:
        del thing  # the interrupt falls into the callback
        time.sleep(20)
        print("lost")
    except KeyboardInterrupt:
        print("raised")
"""


def test_ctrl_c_where_python_has_nobody_to_raise_it_to_is_raised_a_moment_later() -> None:
    """In the callback of a weak reference, as imports use them, an interrupt is not lost, nor is anything said of it."""
    done = subprocess.run([sys.executable, "-c", _NOBODY_TO_RAISE_TO], capture_output=True, text=True, timeout=60)
    assert done.stdout.split() == ["raised"] * 3 and not done.stderr, (done.stdout, done.stderr)
