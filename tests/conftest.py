"""What every test may lean on: one thread, seeded properties, and honest words about what was not run.

In several processes (`make test` takes two): tests/parallel.py.

Skips: with CI=true or STRICT_SKIPS=1 a skip is a failure, because there everything a test wants is installed.
Data that may not ship is another matter: tests that name the fixture `data_folder` (or carry the mark
`needs_data`) are left out, and listed as "not run", unless BASELOAD_DATA names the folder.
"""

from __future__ import annotations

import os
import shutil
import signal
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

# Before numba is imported by anyone: parallel sections on a shared machine cost more than they give.
os.environ.setdefault("NUMBA_NUM_THREADS", "1")

import pytest
from hypothesis import HealthCheck, settings

from baseload import jit, native
from tests import parallel

jit.enable()  # before any test imports a rule or the twin: what is imported earlier stays plain Python

if os.environ.get("TEST_NATIVE") == "1" and (why := native.use()):  # `make test-native`: the same tests, compiled
    pytest.exit(f"the compiled data plane cannot be tested: {why}", returncode=4)

if (
    signal.getsignal(signal.SIGINT) is signal.SIG_IGN
):  # as in the background of a shell: tests of Ctrl-C want it to be heard
    signal.signal(signal.SIGINT, signal.default_int_handler)

STRICT_SKIPS = os.environ.get("CI") == "true" or os.environ.get("STRICT_SKIPS") == "1"
CHROMIUM_NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable", "chrome")

settings.register_profile(
    "ci", derandomize=True, deadline=None, database=None, suppress_health_check=[HealthCheck.too_slow]
)
settings.register_profile("dev", derandomize=True, deadline=None, print_blob=True)
settings.register_profile("explore", derandomize=False, deadline=None, print_blob=True, max_examples=1_000)
settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE") or ("ci" if STRICT_SKIPS else "dev"))


# ---- fixtures --------------------------------------------------------------------------------------------


@pytest.fixture(scope="session")
def data_folder() -> Path:
    """Return the folder of measured data that may not ship (environment BASELOAD_DATA)."""
    return Path(os.environ["BASELOAD_DATA"])


@pytest.fixture(scope="session")
def chromium() -> str:
    """Return the path of a Chromium that can draw a page without a screen."""
    found = os.environ.get("CHROMIUM") or next(filter(None, map(shutil.which, CHROMIUM_NAMES)), None)
    if not found:
        pytest.skip(f"no Chromium on PATH (looked for {', '.join(CHROMIUM_NAMES)}): apt install chromium")
    return found


@pytest.fixture
def run_folder(tmp_path: Path) -> Path:
    """Return a path where a run may be written; it does not exist yet, as the command line wants it."""
    return tmp_path / "run"


@pytest.fixture(autouse=True)
def _same_terminal_everywhere(monkeypatch: pytest.MonkeyPatch) -> None:
    """Draw tables for the same plain terminal, whoever runs the tests and wherever."""
    monkeypatch.setenv("COLUMNS", "120")
    monkeypatch.setenv("NO_COLOR", "1")


# ---- several processes -----------------------------------------------------------------------------------

TURNS = pytest.StashKey[parallel.Turns]()
TURNS_FOLDER = pytest.StashKey[str]()


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> Any:
    """Let files stay together and the longest begin, whatever --dist says."""
    return parallel.scheduler(config, log)


@pytest.hookimpl(optionalhook=True)
def pytest_configure_node(node: Any) -> None:
    """Tell a process where it waits for its turn."""
    stash = node.config.stash
    if TURNS_FOLDER not in stash:
        stash[TURNS_FOLDER] = tempfile.mkdtemp(prefix="baseload-turns-")
    node.workerinput["turns"] = stash[TURNS_FOLDER]


def pytest_unconfigure(config: pytest.Config) -> None:
    """Remove the folder of the locks."""
    if TURNS_FOLDER in config.stash:
        shutil.rmtree(config.stash[TURNS_FOLDER], ignore_errors=True)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_protocol(item: pytest.Item) -> Iterator[None]:
    """Keep the other processes' tests away while one that is marked `alone` runs."""
    if TURNS not in item.config.stash:
        return (yield)
    with item.config.stash[TURNS].turn(alone=item.get_closest_marker("alone") is not None):
        return (yield)


# ---- what was not run ------------------------------------------------------------------------------------


def pytest_configure(config: pytest.Config) -> None:
    """Refuse a BASELOAD_DATA that is no folder, and make room for the list of what was not run."""
    folder = os.environ.get("BASELOAD_DATA")
    if folder and not Path(folder).is_dir():
        raise pytest.UsageError(f"BASELOAD_DATA={folder}: no such folder; unset it, or name the data's folder")
    config.stash[NOT_RUN] = set()
    workerinput: dict[str, Any] | None = getattr(config, "workerinput", None)
    if workerinput is not None:
        config.stash[TURNS] = parallel.Turns(Path(workerinput["turns"]))


NOT_RUN = pytest.StashKey[set[str]]()


def _wants_data(item: pytest.Item) -> bool:
    return "data_folder" in getattr(item, "fixturenames", ()) or item.get_closest_marker("needs_data") is not None


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Leave out the tests whose data is not here, and remember their names."""
    if os.environ.get("BASELOAD_DATA"):
        return
    without = [item for item in items if _wants_data(item)]
    if without:
        config.stash[NOT_RUN].update(item.nodeid for item in without)
        config.hook.pytest_deselected(items=without)
        items[:] = [item for item in items if not _wants_data(item)]


@pytest.hookimpl(trylast=True)
def pytest_sessionfinish(session: pytest.Session) -> None:
    """Hand a parallel worker's list to the process that prints the summary."""
    workeroutput: dict[str, Any] | None = getattr(session.config, "workeroutput", None)
    if workeroutput is not None:
        workeroutput["not_run"] = sorted(session.config.stash[NOT_RUN])


@pytest.hookimpl(optionalhook=True)
def pytest_testnodedown(node: Any) -> None:
    """Take over a parallel worker's list of what was not run."""
    node.config.stash[NOT_RUN].update(getattr(node, "workeroutput", {}).get("not_run", ()))


def _refuse_skip(report: pytest.TestReport | pytest.CollectReport) -> None:
    if STRICT_SKIPS and report.skipped and not hasattr(report, "wasxfail"):
        reason = report.longrepr[2] if isinstance(report.longrepr, tuple) else str(report.longrepr)
        report.outcome = "failed"
        report.longrepr = f"{report.nodeid}: {reason}\n(here a skip is a failure: CI=true or STRICT_SKIPS=1)"


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport() -> Iterator[None]:
    """Turn a skipped test into a failed one where skips are refused."""
    report = yield
    _refuse_skip(report)
    return report


@pytest.hookimpl(wrapper=True)
def pytest_make_collect_report() -> Iterator[None]:
    """Turn a skipped module into a failed one where skips are refused."""
    report = yield
    _refuse_skip(report)
    return report


def _skip_reasons(terminalreporter: Any) -> dict[str, list[str]]:
    """Return the reasons tests were skipped for, each with the tests that gave it."""
    reasons: dict[str, list[str]] = {}
    for report in terminalreporter.stats.get("skipped", []):
        reason = report.longrepr[2] if isinstance(report.longrepr, tuple) else str(report.longrepr)
        reasons.setdefault(reason.removeprefix("Skipped: "), []).append(report.nodeid)
    return reasons


def pytest_terminal_summary(terminalreporter: Any, config: pytest.Config) -> None:
    """Say what was skipped or not run, and why; the last thing before pytest's own closing line."""
    reasons = _skip_reasons(terminalreporter)
    not_run = sorted(config.stash[NOT_RUN])
    if not (reasons or not_run):
        return
    terminalreporter.section("skipped, and not run")
    for reason, tests in reasons.items():
        terminalreporter.line(f"skipped  {len(tests)}: {reason}")
    if not_run:
        terminalreporter.line(
            f"not run  {len(not_run)}: measured data that may not ship is not here (BASELOAD_DATA=folder)"
        )
        for nodeid in not_run:
            terminalreporter.line(f"         {nodeid}")
