"""`baseload plan` under a careless user: mistakes found before the work, and Ctrl-C late as well as early."""

from __future__ import annotations

import errno
import json
import os
import signal
from collections.abc import Callable, Iterator
from datetime import date
from pathlib import Path

import pytest

from baseload.app import cli, loop, plan_files, plan_findings
from baseload.app.loop_trial import Case, Kept, Trial
from baseload.app.plan_files import FILES, UNFINISHED, refuse_to_overwrite
from baseload.errors import FleetError, InputError, Interrupted
from baseload.plan.table import ReplicaTable
from tests.living import contents

ROOT = Path(__file__).resolve().parents[2]
FLEET = ROOT / "examples" / "three-sites" / "fleet.yaml"
QUICK = ("--date", "2026-11-21", "--horizon", "1q", "--table", "modelled", "--gap", "5%")


@pytest.mark.parametrize("wrong", ["nonsense", "sites.oslo.grid[99].energised=2028-06", "tenants.nobody.share=x"])
def test_a_wrong_what_if_is_named_as_what_if_before_anything_is_planned(
    wrong: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    """The option that is wrong is the one that the error names, and nothing was solved to find it."""
    monkeypatch.setattr("baseload.plan.solve.solve", lambda *_, **__: pytest.fail("solved first"))
    with pytest.raises(FleetError) as caught:
        cli.run(["plan", str(FLEET), *QUICK, "--quick", "--out", str(tmp_path / "p"), "--what-if", wrong])
    assert f"--what-if {wrong}" in str(caught.value) and "--set nonsense" not in str(caught.value)


@pytest.mark.parametrize("day", ["1900-01-01", "2199-06"])
def test_days_that_no_fleet_file_may_hold_are_refused(day: str, tmp_path: Path):
    """A plan whose days could not be written is refused at once, by the option that asked for it."""
    with pytest.raises(InputError, match=f"--date {day[:4]}.*1950 to 2200"):
        cli.run(["plan", str(FLEET), *QUICK, "--horizon", "2y", "--date", day, "--quick", "--out", str(tmp_path)])


def test_a_folder_below_a_file_is_refused_before_the_work(tmp_path: Path):
    """Where --out cannot be made is said before minutes are spent on a plan."""
    (tmp_path / "file").write_text("x")
    with pytest.raises(InputError, match="--out .*cannot be written"):
        cli.run(["plan", str(FLEET), *QUICK, "--quick", "--out", str(tmp_path / "file" / "p")])


@pytest.mark.parametrize(
    ("there", "said"),
    [
        (["mine.yaml", "fleet.yaml"], "holds the fleet file"),
        (["meta.json", "fleet.yaml"], "holds a run of"),
        (["report.html"], "holds report.html, but is no folder of a plan"),
    ],
)
def test_what_no_plan_wrote_is_never_replaced(
    there: list[str], said: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    """The fleet file itself, a finished run and other people's files keep every byte, and no work is done to find that out."""
    monkeypatch.setattr("baseload.app.plan_verb.ask", lambda *_, **__: pytest.fail("asked first"))
    fleet = tmp_path / "mine.yaml"
    fleet.write_bytes(FLEET.read_bytes())
    out = tmp_path / "out"
    out.mkdir()
    for name in there:
        (out / name).write_text("mine")
    if there[0] == "mine.yaml":
        (out / "fleet.yaml").unlink()
        (out / "fleet.yaml").symlink_to(fleet)
    before = {path: path.read_bytes() for path in out.iterdir()}
    with pytest.raises(InputError, match=f"--out .*{said}") as caught:
        cli.run(["plan", str(fleet), *QUICK, "--quick", "--out", str(out)])
    assert caught.value.exit_code == 2 and before == {path: path.read_bytes() for path in out.iterdir()}


def test_a_plan_is_not_written_over_the_fleet_file_that_it_is_made_from(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    """`--out .` beside fleet.yaml is refused, and so is an earlier plan's folder where its own fleet file is planned from."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "fleet.yaml").write_bytes(FLEET.read_bytes())
    (tmp_path / "plan.json").write_text("{}")
    with pytest.raises(InputError, match="holds the fleet file"):
        cli.run(["plan", "fleet.yaml", *QUICK, "--quick", "--out", "."])
    assert (tmp_path / "fleet.yaml").read_bytes() == FLEET.read_bytes()


def test_an_earlier_plan_is_replaced(tmp_path: Path):
    """A folder that a plan wrote may be written again."""
    refuse_to_overwrite(tmp_path / "none", FLEET)
    for name in FILES:
        (tmp_path / name).write_text("x")
    refuse_to_overwrite(tmp_path, FLEET)


@pytest.fixture
def heard() -> Iterator[None]:
    """Let SIGTERM and SIGHUP be heard, whatever the shell that runs the tests ignores (nohup)."""
    before = {kind: signal.signal(kind, signal.SIG_DFL) for kind in (signal.SIGTERM, signal.SIGHUP)}
    yield
    for kind, handler in before.items():
        signal.signal(kind, handler)


@pytest.mark.usefixtures("heard")
@pytest.mark.skipif(os.name != "posix", reason="sends signals")
@pytest.mark.parametrize(("sent", "by"), [("SIGINT", "Ctrl-C"), ("SIGTERM", "SIGTERM"), ("SIGHUP", "SIGHUP")])
def test_a_stop_after_the_solver_keeps_the_plan_and_says_so(
    sent: str, by: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    """Interrupted once the plan is made, the files are there and whole, and the exit code is that of an interrupt."""
    monkeypatch.setattr(plan_findings, "look", lambda *_: signal.raise_signal(getattr(signal, sent)))
    with pytest.raises(Interrupted, match="best plan so far"):
        cli.run(["plan", str(FLEET), *QUICK, "--rounds", "0", "--out", str(tmp_path / "p")])
    report = json.loads((tmp_path / "p" / "plan.json").read_text())
    assert report["cost"] > 0 and any(f"stopped by {by}" in line for line in report["assumptions"])
    head = (tmp_path / "p" / "fleet.yaml").read_text().splitlines()[0]
    assert report["status"] == "interrupted" and "Interrupted: the best plan so far" in head
    assert 'class="badtext">Interrupted: best plan so far' in (tmp_path / "p" / "report.html").read_text(
        encoding="utf-8"
    )
    assert not [path for path in (tmp_path / "p").iterdir() if path.name.startswith(".")]


@pytest.mark.parametrize(("attainment", "left"), [(0.67, 0), (0.995, 0), (0.995, 3)])
def test_what_the_twin_found_last_decides_about_the_plan(
    attainment: float, left: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    """A promise that the last round finds broken is a miss with exit code 3, never a plan that meets; cut short is no word."""
    kept = Kept(
        tenant="startups", attainment=attainment, promised=0.99, requests=9, struck=0, cause="", models={}, kinds={}
    )
    case = Case(day=date(2027, 2, 28), lost="oslo")
    trial = Trial(case=case, load_factor=1.0, requests_per_s=1.0, requests=9, kept=(kept,))

    def close_loop(
        table: ReplicaTable, plan_once: Callable[[ReplicaTable], loop.Planned], **_: object
    ) -> loop.LoopResult:
        last, agreed = loop.Round(number=1, trials=(trial,), corrections=(), not_mended=(), left=left), trial.meets
        return loop.LoopResult(planned=plan_once(table), table=table, rounds=(last,), agreed=agreed and not left)

    monkeypatch.setattr(loop, "close_loop", close_loop)
    monkeypatch.setattr(plan_findings, "look", lambda *_: None)
    out = tmp_path / "p"
    code = cli.run(["plan", str(FLEET), *QUICK, "--rounds", "1", "--out", str(out)])
    said, page = " ".join(capsys.readouterr().out.split()), (out / "report.html").read_text(encoding="utf-8")
    report = json.loads((out / "plan.json").read_text())
    assert report["meets"] == (code == 0) == trial.meets == ("Meets every limit" in said)
    assert ("startups on 2027-02-28 with oslo lost, in the twin: 67.00 % where 99 %" in said) == (not trial.meets)
    assert ("IN THE TWIN" in (out / "fleet.yaml").read_text().splitlines()[0]) == (not trial.meets)
    assert ("DOES NOT AGREE" in said, "The twin agrees" in said) == (not trial.meets, trial.meets and not left)
    assert ("CUT SHORT in round 1" in said) == ("the check in the twin was cut short" in page) == (left > 0)
    assert ('<span class="value">not met</span>' in page) == (not trial.meets)


def test_writing_that_fails_leaves_the_earlier_plan_and_tells_the_answer(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    """Where the disk is full at the end, no file is replaced, the answer stands on stdout, and the error says where."""
    asked = ["plan", str(FLEET), *QUICK, "--quick", "--out", str(tmp_path / "p")]
    assert cli.run(asked) == 0
    before = contents(tmp_path / "p")

    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(plan_files, "_parquet", full)
    capsys.readouterr()
    with pytest.raises(InputError, match="--out .*p: cannot be written .No space left"):
        cli.run([*asked, "--set", "plan.demand.growth_per_year=0.5"])
    assert "Meets every limit" in capsys.readouterr().out
    assert contents(tmp_path / "p") == before


@pytest.mark.parametrize("moved", range(len(FILES)))
def test_writing_that_is_killed_never_looks_finished_and_may_be_repeated(
    moved: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    """Wherever it is cut short, plan.json is missing beside a mixture of files, and the next run in that folder mends it."""
    out = tmp_path / "p"
    asked = ["plan", str(FLEET), *QUICK, "--quick", "--out", str(out)]
    done, replace = [], Path.replace

    def killed(path: Path, target: Path) -> Path:
        if path.parent.name.startswith(UNFINISHED):
            if len(done) == moved:
                raise KeyboardInterrupt
            done.append(path)
        return replace(path, target)

    with monkeypatch.context() as patch:
        patch.setattr(Path, "replace", killed)
        with pytest.raises(KeyboardInterrupt):
            cli.run(asked)
    assert not (out / "plan.json").exists() and len(done) == moved
    assert cli.run(asked) == 0
    assert {Path(path).name for path in contents(out)} == set(FILES)


@pytest.mark.parametrize("name", ["/proc/x/p", "dangling", "n" * 300])
def test_a_folder_that_cannot_be_made_is_named_before_the_work(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    """An --out that no folder can be made of costs no minute, and nothing is left of the attempt."""
    monkeypatch.setattr("baseload.app.plan_verb.ask", lambda *_, **__: pytest.fail("asked first"))
    (tmp_path / "dangling").symlink_to(tmp_path / "none" / "at-all")
    with pytest.raises(InputError, match="--out .*: cannot be written"):
        cli.run(["plan", str(FLEET), *QUICK, "--quick", "--out", str(tmp_path / name)])
    assert [path.name for path in tmp_path.iterdir()] == ["dangling"]


@pytest.mark.parametrize("command", [["capacity", str(FLEET), "--html"], ["report"]])
def test_a_name_that_is_too_long_is_an_error_in_a_sentence(command: list[str]):
    """No traceback where the system takes no such name."""
    with pytest.raises(InputError, match="too long; choose a shorter"):
        cli.run([*command, "n" * 300])
