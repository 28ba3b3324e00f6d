"""The command line: light where it can be, helpful everywhere, and an exit code that a script can rely on."""

from __future__ import annotations

import argparse
import importlib
import os
import subprocess
import sys
from pathlib import Path

import pytest

from baseload.app import cli
from baseload.errors import InputError

ROOT = Path(__file__).resolve().parents[2]
THREE_SITES = ROOT / "examples" / "three-sites" / "fleet.yaml"
HEAVY = ("numpy", "numba", "llvmlite", "duckdb", "rich", "jinja2")

SUB = next(a for a in cli.parser()._actions if isinstance(a, argparse._SubParsersAction))
VERBS = list(SUB.choices)
every_verb = pytest.mark.parametrize("verb", VERBS)

LOADED_BY = """
import sys
from baseload.app.cli import main
try:
    main()
except SystemExit as end:
    code = end.code
heavy = [name for name in %r if name in sys.modules]
print("HEAVY", code, *heavy, file=sys.stderr)
"""


def command(*arguments: object, cwd: Path = ROOT) -> subprocess.CompletedProcess[str]:
    """Run `python -m baseload` as a user would."""
    return subprocess.run(
        [sys.executable, "-m", "baseload", *map(str, arguments)],
        cwd=cwd, capture_output=True, text=True, timeout=60, env={**os.environ, "COLUMNS": "100"}, check=False,
    )  # fmt: skip


def heavy_modules(*arguments: object) -> tuple[str, list[str]]:
    """Return the exit code of a command, and the heavy modules that it imported."""
    done = subprocess.run(
        [sys.executable, "-c", LOADED_BY % (HEAVY,), *map(str, arguments)],
        cwd=ROOT, capture_output=True, text=True, timeout=60, check=False,
    )  # fmt: skip
    _, exit_code, *heavy = done.stderr.splitlines()[-1].split()
    return exit_code, heavy


@pytest.mark.parametrize(
    "arguments",
    [["--help"], ["--version"], ["simulate", "--help"], ["check", THREE_SITES], []],
    ids=["help", "version", "verb-help", "check", "nothing"],
)
def test_help_and_check_import_nothing_heavy(arguments: list[object]):
    """Asking for help, or checking a fleet file, loads neither NumPy, numba, DuckDB, rich nor Jinja."""
    assert heavy_modules(*arguments) == ("0", [])


@pytest.mark.parametrize(("kind", "name"), [("models", "mixtral-8x7b"), ("sites", "oslo")])
def test_the_catalogue_needs_no_numbers_library(kind: str, name: str):
    """Looking something up draws a table with rich, and loads no other heavy module; its JSON form loads none."""
    assert heavy_modules("catalog", kind, name) == ("0", ["rich"])
    assert heavy_modules("catalog", kind, "--json") == ("0", [])


@every_verb
def test_every_verb_explains_itself(verb: str, capsys: pytest.CaptureFixture[str]):
    """`baseload VERB --help` names the command and says what each argument means."""
    with pytest.raises(SystemExit) as end:
        cli.run([verb, "--help"])
    assert end.value.code == 0
    shown = capsys.readouterr().out
    assert shown.startswith(f"usage: baseload {verb}")
    for action in SUB.choices[verb]._actions:
        assert action.help, (verb, action.dest)
        names = action.option_strings or list(action.choices or [action.dest])
        assert names[-1] in shown


@every_verb
def test_every_verb_is_listed_and_leads_somewhere(verb: str):
    """The help names each verb with a line on it, and each has a function behind it."""
    listed = {choice.dest: choice.help for choice in SUB._choices_actions}
    assert listed[verb]
    module = importlib.import_module(cli.VERB_MODULES.get(verb, cli.VERBS))
    assert callable(getattr(module, f"{verb}_verb"))


def test_an_unknown_verb_is_the_users_mistake():
    """A verb that does not exist ends with exit code 2, and the message lists those that do."""
    done = command("simulat")
    assert done.returncode == 2
    assert all(verb in done.stderr for verb in VERBS)
    assert "Traceback" not in done.stderr


def test_no_verb_prints_the_help():
    """`baseload` alone shows the help and succeeds."""
    done = command()
    assert done.returncode == 0
    assert done.stdout.startswith("usage: baseload")


def test_init_writes_a_file_that_checks(tmp_path: Path):
    """The file that `init` writes passes `check`."""
    made = command("init", tmp_path / "my.yaml")
    assert made.returncode == 0, made.stderr
    checked = command("check", tmp_path / "my.yaml")
    assert checked.returncode == 0, checked.stdout + checked.stderr
    assert "fine" in checked.stdout


def test_init_never_overwrites(tmp_path: Path):
    """A file that is there already keeps its content; the command says so and ends with 2."""
    file = tmp_path / "my.yaml"
    file.write_text("mine", "utf-8")
    done = command("init", file)
    assert done.returncode == 2
    assert file.read_text("utf-8") == "mine"
    assert str(file) in done.stderr
    assert "exists" in done.stderr


def test_init_into_a_folder_that_is_not_there(tmp_path: Path):
    """A place that cannot be written is named, with the system's reason, without a traceback."""
    done = command("init", tmp_path / "none" / "my.yaml")
    assert done.returncode == 2
    assert "cannot be written" in done.stderr
    assert "Traceback" not in done.stderr


def test_check_names_file_line_and_key(tmp_path: Path):
    """A misspelt key and a wrong value are each shown as file:line: key: what; mend, and the exit code is 2."""
    lines = THREE_SITES.read_text("utf-8").splitlines()
    at = next(i for i, line in enumerate(lines) if line.strip().startswith("redundancy:"))
    indent = lines[at][: len(lines[at]) - len(lines[at].lstrip())]
    lines[at] = f"{indent}redundancie: N+1"
    file = tmp_path / "broken.yaml"
    file.write_text("\n".join(lines) + "\n", "utf-8")
    done = command("check", file)
    said = done.stdout + done.stderr
    assert done.returncode == 2, said
    assert f"{file}:{at + 1}: " in said
    assert "redundancie" in said
    assert "redundancy" in said.replace("redundancie", "")  # the mend names the key that was meant
    assert "Traceback" not in said


def test_check_of_a_file_that_is_not_there(tmp_path: Path):
    """A missing fleet file is one line with its name, and exit code 2."""
    done = command("check", tmp_path / "no.yaml")
    assert done.returncode == 2
    assert "no.yaml" in done.stderr
    assert len(done.stderr.strip().splitlines()) == 1


@pytest.mark.parametrize("kind", ["accelerators", "models", "sites"])
def test_the_catalogue_prints(kind: str):
    """`baseload catalog KIND` prints a table and succeeds."""
    done = command("catalog", kind)
    assert done.returncode == 0, done.stderr
    assert len(done.stdout.splitlines()) > 20
    assert not done.stderr


def test_the_catalogue_refuses_what_it_does_not_know():
    """An unknown name ends with exit code 2 and offers the nearest; so does an unknown kind."""
    done = command("catalog", "accelerators", "h1000")
    assert done.returncode == 2
    assert "h100" in done.stderr
    assert command("catalog", "gpus").returncode == 2


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        (["--requests", "0"], "--requests"),
        (["--scale", "0"], "--scale"),
        (["--scale", "nan"], "--scale"),
        (["--seed", "-1"], "--seed"),
        (["--windows", "-2"], "--windows"),
        (["--date", "2026-13"], "--date"),
    ],
)
def test_simulate_refuses_absurd_numbers(arguments: list[str], named: str):
    """A number that cannot be meant is refused before anything runs, and the option is named."""
    with pytest.raises(InputError, match=named):
        cli.run(["simulate", str(THREE_SITES), *arguments])


def test_a_closed_pipe_is_no_traceback():
    """`baseload catalog models | head -1` ends quietly."""
    line = f"{sys.executable} -m baseload catalog models | head -1"
    done = subprocess.run(["sh", "-c", line], cwd=ROOT, capture_output=True, text=True, timeout=60, check=False)
    assert done.stdout.startswith("model")
    assert "Traceback" not in done.stderr
