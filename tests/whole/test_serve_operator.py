"""A clumsy operator: what stands in the way of `baseload serve` and `keys` is said in a sentence, never as a traceback."""

from __future__ import annotations

import json
import os
import select
import shutil
import signal
import subprocess
import sys
import time
import urllib.request
from pathlib import Path

import pytest

from tests.living import open_to_others

ROOT = Path(__file__).parents[2]
BASELOAD = [sys.executable, "-m", "baseload"]
TENANT = "call-centres"


def keys(state: Path, *words: str) -> subprocess.CompletedProcess[str]:
    """Run `baseload keys`."""
    return subprocess.run(
        [*BASELOAD, "keys", *words, "--state", str(state)], capture_output=True, text=True, timeout=60
    )


def command(state: Path, fleet: Path) -> list[str]:
    """Return the command that serves a fleet at ports that are free."""
    shutil.copy(ROOT / "examples" / "edge" / "fleet.yaml", fleet)
    where = ["--listen", "127.0.0.1:0", "--control", "127.0.0.1:0", "--state", str(state), "--ready-json"]
    return [*BASELOAD, "serve", str(fleet), *where]


@pytest.mark.parametrize("name", ["accounts.db", "admin.token", "run/tables.json", "run/serve.json", "run/lock"])
def test_a_folder_where_a_file_belongs_is_named(tmp_path: Path, name: str) -> None:
    """Exit code 2, the path, and no traceback."""
    state = tmp_path / "state"
    (state / name).mkdir(parents=True)
    done = subprocess.run(command(state, tmp_path / "f.yaml"), capture_output=True, text=True, timeout=60)
    assert done.returncode == 2 and "Traceback" not in done.stderr, done.stderr
    assert name in done.stderr


@pytest.mark.parametrize(
    "words",
    [
        ["--tenant", TENANT, "--days", "nan"],
        ["--tenant", TENANT, "--days", "inf"],
        ["--tenant", TENANT, "--budget", "nan"],
        ["--tenant", TENANT, "--budget", "0"],
        ["--tenant", TENANT, "--rpm", "0"],
        ["--tenant", "a\x1b[2Jb"],
        ["--tenant", TENANT, "--name", "two\nlines"],
        ["--tenant", TENANT, "--name", "turned \u202e round"],
        ["--tenant", TENANT, "--name", "x" * 201],
        ["--role", "viewer", "--name", "bell \x07"],
        ["--role", "viewer", "--budget", "5"],
    ],
)
def test_absurd_keys_are_refused(tmp_path: Path, words: list[str]) -> None:
    """Nothing is made, nothing that steers a terminal is stored, and the sentence says what to mend."""
    done = keys(tmp_path / "state", "create", *words)
    assert done.returncode == 2 and done.stdout == "" and "Traceback" not in done.stderr, done.stderr
    assert "no keys yet" in keys(tmp_path / "state", "list").stdout


def test_a_folder_without_keys_is_said_and_not_made(tmp_path: Path) -> None:
    """Listing the keys of a folder that is not there, a mistyped one, makes none."""
    wrong = tmp_path / "mistyped"
    told = keys(wrong, "list")
    assert told.returncode == 2 and "holds no keys" in told.stderr and not wrong.exists()


@pytest.mark.parametrize("words", [["usage"], ["ledger", "backup", "copy.db"], ["ledger", "rotate", "old.db"]])
def test_asking_for_a_ledger_makes_no_folder(tmp_path: Path, words: list[str]) -> None:
    """A mistyped state folder is named, with exit code 2, and is not there afterwards."""
    wrong = tmp_path / "mistyped"
    told = subprocess.run(
        [*BASELOAD, *words, "--state", str(wrong)], capture_output=True, text=True, timeout=60, cwd=tmp_path
    )
    assert told.returncode == 2 and str(wrong) in told.stderr and "no ledger" in told.stderr, told.stderr
    assert list(tmp_path.iterdir()) == []


def test_a_tenant_that_nobody_knows_is_not_told_to_have_no_keys(tmp_path: Path) -> None:
    """A misspelt tenant is named beside those that are known; one that is known and has no key left is no error."""
    state = tmp_path / "state"
    assert keys(state, "create", "--tenant", TENANT).returncode == 0
    told = keys(state, "list", "--tenant", "call-centers")
    assert told.returncode == 2 and "call-centers" in told.stderr and TENANT in told.stderr
    assert keys(state, "revoke", "1").returncode == 0
    assert keys(state, "list", "--tenant", TENANT).returncode == 0


def test_a_lost_pepper_is_not_replaced_in_silence(tmp_path: Path) -> None:
    """A fresh pepper would shut out every key; it is said, and the old file can still be put back."""
    state = tmp_path / "state"
    assert keys(state, "create", "--tenant", TENANT).returncode == 0
    (state / "pepper").rename(tmp_path / "kept")
    done = keys(state, "list")
    assert done.returncode == 2 and "restore it from a backup" in done.stderr
    assert not (state / "pepper").exists()
    (tmp_path / "kept").rename(state / "pepper")
    assert keys(state, "list").returncode == 0


def test_forgetting_somebody_unknown_is_said(tmp_path: Path) -> None:
    """A misspelt tenant is not reported as forgotten."""
    assert keys(tmp_path / "state", "create", "--tenant", TENANT).returncode == 0
    done = keys(tmp_path / "state", "forget", "call-centers")
    assert done.returncode == 2 and "call-centers" in done.stderr
    assert keys(tmp_path / "state", "forget", TENANT).returncode == 0


def test_files_are_private_and_an_owner_comes_back_where_it_was(tmp_path: Path) -> None:
    """With umask 0 nothing in the state folder is open to others; kill -9 of the owner keeps the control address."""
    state, fleet, errors = tmp_path / "state", tmp_path / "f.yaml", tmp_path / "errors"
    with errors.open("wb") as file:
        process = subprocess.Popen(command(state, fleet), stdout=subprocess.PIPE, stderr=file, umask=0)
    assert process.stdout is not None
    try:
        assert select.select([process.stdout], [], [], 60.0)[0], errors.read_text()
        told = json.loads(process.stdout.readline())
        until_s = time.monotonic() + 1.0
        while time.monotonic() < until_s:  # files that are replaced all the time are private when they are new, too
            assert open_to_others(state) == []
        text = fleet.read_text()
        fleet.write_text(text + "\nserve:\n  workers: 3\n" if "\nserve:" not in text else text)
        os.kill(process.pid, signal.SIGHUP)
        until_s = time.monotonic() + 10.0
        while "serve.workers" not in errors.read_text() and time.monotonic() < until_s:
            time.sleep(0.1)
        assert "reload refused" in errors.read_text() and "serve.workers" in errors.read_text()
        fleet.write_text(text)
        os.kill(told["owner_pid"], signal.SIGKILL)
        until_s = time.monotonic() + 20.0
        while True:
            try:
                with urllib.request.urlopen(told["control"] + "/healthz", timeout=5) as answer:
                    assert answer.status == 200
                break
            except OSError:
                assert time.monotonic() < until_s, errors.read_text()
                time.sleep(0.1)
        key = keys(state, "create", "--tenant", TENANT).stdout.strip()
        body = json.dumps({"model": "voice", "max_tokens": 2, "messages": [{"role": "user", "content": "again"}]})
        headers = {"Authorization": f"Bearer {key}", "Content-Type": "application/json"}
        while True:  # the workers that lived on find the engines that are new
            try:
                request = urllib.request.Request(told["gateway"] + "/v1/chat/completions", body.encode(), headers)
                with urllib.request.urlopen(request, timeout=5) as answer:
                    assert answer.status == 200
                break
            except OSError:
                assert time.monotonic() < until_s, errors.read_text()
                time.sleep(0.1)
    finally:
        process.send_signal(signal.SIGTERM)
        process.wait(30)
        process.stdout.close()
