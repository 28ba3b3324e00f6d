"""`baseload plan` as its user meets it: files that agree with each other, an answer to what if, and a good end to Ctrl-C."""

from __future__ import annotations

import csv
import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import duckdb
import pytest

from baseload.app import cli
from baseload.errors import FleetError, InputError

ROOT = Path(__file__).resolve().parents[2]
FLEET = ROOT / "examples" / "three-sites" / "fleet.yaml"
QUICK = ("--date", "2026-11-21", "--horizon", "2y", "--table", "modelled", "--quick")
WRITTEN = "sites.oslo.grid[1].energised=2026-10-01"  # as the example has it


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the folder of a plan of the example."""
    out = tmp_path_factory.mktemp("plan") / "plan"
    assert cli.run(["plan", str(FLEET), *QUICK, "--out", str(out)]) == 0
    return out


def test_it_writes_every_file_and_check_accepts_the_fleet(folder: Path, capsys: pytest.CaptureFixture[str]):
    """Fleet file, page, decisions twice, everything as JSON, and the table of replicas; the fleet file is fine."""
    names = {"fleet.yaml", "report.html", "decisions.csv", "decisions.parquet", "plan.json", "replicas.json"}
    assert names <= {path.name for path in folder.iterdir()}
    assert cli.run(["check", str(folder / "fleet.yaml")]) == 0
    assert "fine." in capsys.readouterr().out


def test_the_planned_fleet_runs_in_the_twin_on_a_day(folder: Path, tmp_path: Path):
    """`simulate --date` takes what stands on that day, and its demand."""
    out = tmp_path / "run"
    arguments = ["simulate", str(folder / "fleet.yaml"), "--date", "2028-01", "--requests", "1500", "--out", str(out)]
    assert cli.run(arguments) == 0
    meta = json.loads((out / "meta.json").read_text())
    assert "2028-01-01" in json.dumps(meta)


def test_csv_parquet_and_json_say_the_same(folder: Path):
    """Every decision is in all three."""
    rows = list(csv.DictReader((folder / "decisions.csv").read_text().splitlines()))
    report = json.loads((folder / "plan.json").read_text())
    assert len(rows) == len(report["decisions"]) > 0
    with duckdb.connect() as connection:
        found = connection.read_parquet(str(folder / "decisions.parquet"))
        amounts = found.aggregate("sum(amount), sum(cash)").fetchall()[0]
    assert amounts[0] == pytest.approx(sum(one["amount"] for one in report["decisions"]))
    assert amounts[1] == pytest.approx(sum(float(row["cash"]) for row in rows))


def test_bound_cost_and_gap_belong_together(folder: Path):
    """No plan costs less than the bound, and the gap is what lies between, within what was asked for."""
    report = json.loads((folder / "plan.json").read_text())
    assert report["bound"] <= report["cost"] and report["gap"] <= 0.01
    assert report["gap"] == pytest.approx((report["cost"] - report["bound"]) / report["cost"], abs=1e-3)
    assert report["meets"] and not report["misses"]
    years = report["years"]
    for k in range(len(years["names"])):
        paid = sum(values[k] for part in ("capex", "running") for values in years[part].values())
        assert years["cash"][k] == pytest.approx(years["income"][k] - paid - years["tax"][k] + years["salvage"][k])


def test_the_page_needs_nothing_from_outside(folder: Path):
    """No script, no address that would be fetched, and every part of the page is there."""
    page = (folder / "report.html").read_text()
    assert "<script" not in page and not re.search(r"""(src|href)=["']?(https?:)?//""", page)
    for title in ("What to do", "What stands where", "From announced to usable", "Money", "A million tokens"):
        assert f"<h2>{title}</h2>" in page


def test_what_if_says_what_changes(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    """A later substation is planned for anew, and the difference is told, with what its racks cost until there is power."""
    what = "sites.oslo.grid[1].energised=2028-06"
    assert cli.run(["plan", str(FLEET), *QUICK, "--out", str(tmp_path / "p"), "--what-if", what]) == 0
    told = " ".join(capsys.readouterr().out.split())
    assert "What changed" in told
    assert re.search(r"the cost (rises|falls) by .* of it racks that stand without power: [\d,.]+ EUR more", told)
    assert "energised: 2028-06-01" in (tmp_path / "p" / "fleet.yaml").read_text()


def test_a_what_if_that_changes_nothing_says_that_the_cost_stays(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    """The date that the file has already: no rise and no fall of nothing."""
    assert cli.run(["plan", str(FLEET), *QUICK, "--out", str(tmp_path / "p"), "--what-if", WRITTEN]) == 0
    told = " ".join(capsys.readouterr().out.split())
    assert re.search(r"What changed - the cost stays at [\d,.]+ EUR in present value", told)
    assert "what is bought, rented and begun stays the same" in told


def test_an_impossible_demand_gets_its_smallest_conflict(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    """No rent, hardly any money, and demand that doubles: it does not meet, and it says what cannot hold together."""
    changed = ["plan.rent=[]", "plan.budgets.capex_by_year.2027=100", "plan.demand.growth_per_year=1"]
    options = [part for one in changed for part in ("--set", one)]
    arguments = ["plan", str(FLEET), *QUICK[:-1], "--rounds", "0", "--out", str(tmp_path / "p"), *options]
    assert cli.run(arguments) == 3  # for a script that asks whether it does
    said = capsys.readouterr().out
    assert "DOES NOT MEET" in said and "Cannot hold together" in said
    priced, page = "(the price of misses included)", (tmp_path / "p" / "report.html").read_text()
    assert f"What binds {priced}" in said and f"What the cost depends on {priced}" in said
    assert page.count(f"{priced}</h2>") == 2
    assert "IT DOES NOT MEET" in (tmp_path / "p" / "fleet.yaml").read_text().splitlines()[0]


@pytest.mark.parametrize(
    ("options", "what"),
    [
        (["--gap", "110%"], "no share"),
        (["--horizon", "40y"], "no span"),
        (["--cpu-limit", "0"], "above 0"),
        (["--table", "/nowhere.json"], "cannot be read"),
        (["--risk", "expected", "--scenarios", "1"], "2 to 1000"),
        (["--scenarios", "20"], "only for --risk; write --risk"),
        (["--rounds", "-1"], "0 to 100"),
        (["--rounds", "6"], "--quick runs nothing in the twin"),
        (["--what-if", "money.wacc"], "^--what-if money.wacc: .*; e.g. --what-if demand.scale=2$"),
    ],
)
def test_wrong_options_are_named(options: list[str], what: str, tmp_path: Path):
    """Each wrong option is an error with its name, not a traceback."""
    with pytest.raises(InputError, match=what):
        cli.run(["plan", str(FLEET), *QUICK, "--out", str(tmp_path / "p"), *options])


def test_what_is_wrong_in_the_file_comes_first(tmp_path: Path):
    """A plan section with a name that does not exist never reaches the solver."""
    with pytest.raises(FleetError, match="there is no site"):
        cli.run(
            ["plan", str(FLEET), *QUICK, "--out", str(tmp_path), "--set", "plan.begin=[{site: atlantis, phase: 0}]"]
        )


@pytest.mark.skipif(os.name != "posix", reason="sends SIGINT")
def test_ctrl_c_leaves_the_best_plan_so_far(tmp_path: Path):
    """Interrupted in the middle, it ends soon, writes what it has, marked as such, and says so with exit code 130."""
    out = tmp_path / "p"
    arguments = [sys.executable, "-m", "baseload", "plan", str(FLEET), "--date", "2026-11-21", "--horizon", "5y",
                 "--table", "modelled", "--gap", "0", "--rounds", "0", "--out", str(out)]  # fmt: skip
    for pause_s in (1.5, 2.0, 2.5, 3.0, 4.0, 5.0, 6.0, 8.0, 11.0, 15.0):  # until it has begun to plan
        process = subprocess.Popen(arguments, stdout=subprocess.PIPE, stderr=subprocess.PIPE, cwd=tmp_path)
        try:
            time.sleep(pause_s)
            process.send_signal(signal.SIGINT)
            _, said = process.communicate(timeout=90.0)
        finally:
            if process.poll() is None:
                process.kill()
        assert process.returncode == 130, f"after {pause_s} s: {process.returncode} {said.decode()}"
        if (out / "plan.json").exists():
            break
    else:
        pytest.fail("no plan was left, however late it was interrupted")
    assert "Interrupted" in (out / "fleet.yaml").read_text().splitlines()[0]
