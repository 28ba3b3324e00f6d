"""The folder that `baseload plan` writes: the planned fleet file, the page, every decision, and all of it as JSON.

All files are made in a hidden folder first. plan.json is what a finished plan has: it goes first and comes last, so that a
folder without it, with the hidden one in it, is one whose writing was cut short, and may be written again.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import tempfile
from pathlib import Path

from baseload.errors import InputError
from baseload.plan.table import ReplicaTable
from baseload.report import plan_html, plan_text
from baseload.report.plan_model import PlanReport

FILES = ("fleet.yaml", "report.html", "decisions.csv", "decisions.parquet", "plan.json", "replicas.json")
MARK = "plan.json"
UNFINISHED = ".unfinished-"  # with the number of the process that writes


def require_folder(out: Path, fleet: Path) -> None:
    """Raise InputError where the folder cannot be made or written, or holds what is no plan; leaves nothing behind."""
    try:
        refuse_to_overwrite(out, fleet)
        if out.exists() and not out.is_dir():
            raise InputError(f"--out {out}: is a file; name a folder")
        made = [folder for folder in (out, *out.parents) if not folder.exists()]
        try:
            out.mkdir(parents=True, exist_ok=True)
            with tempfile.TemporaryFile(dir=out):
                pass
        finally:
            for folder in made:
                with contextlib.suppress(OSError):
                    folder.rmdir()
    except OSError as error:
        raise _unwritable(f"--out {out}", error) from None


def refuse_to_overwrite(out: Path, fleet: Path) -> None:
    """Raise InputError where the plan's files would replace what is no plan: the fleet file, a run, another one's file."""
    from baseload.app.verbs import is_same_file

    if any(is_same_file(out / name, fleet) for name in FILES):
        raise InputError(f"--out {out}: holds the fleet file {fleet}, which would be replaced; choose another --out")
    if (out / "meta.json").exists():
        raise InputError(f"--out {out}: holds a run of `baseload simulate`; choose another --out")
    there = [name for name in FILES if (out / name).exists()]
    if there and MARK not in there and not any(out.glob(f"{UNFINISHED}*")):
        raise InputError(f"--out {out}: holds {there[0]}, but is no folder of a plan; choose another --out")
    folders = [name for name in there if (out / name).is_dir()]
    if folders:
        raise InputError(f"--out {out}: its {folders[0]} is a folder, which no plan replaces; choose another --out")


def write_all(report: PlanReport, planned: str, table: ReplicaTable, out: Path) -> None:
    """Write all files or leave those of before; raises InputError where the folder cannot be written.

    Where the power fails between, plan.json is not there.
    """
    unfinished = out / f"{UNFINISHED}{os.getpid()}"
    try:
        out.mkdir(parents=True, exist_ok=True)
        unfinished.mkdir(exist_ok=True)
        try:
            _make(report, planned, table, unfinished)
        except BaseException:
            shutil.rmtree(unfinished, ignore_errors=True)
            raise
        _move(unfinished, out)
    except OSError as error:
        raise _unwritable(f"--out {out}", error) from None


def _make(report: PlanReport, planned: str, table: ReplicaTable, folder: Path) -> None:
    """Write all files into a folder, down to the disk."""
    _write(folder / "fleet.yaml", planned)
    plan_html.write(report, folder / "report.html")
    _write(folder / "decisions.csv", plan_text.to_csv(report.decisions))
    _parquet(folder / "decisions.csv", folder / "decisions.parquet")
    _write(folder / MARK, plan_text.to_json(report) + "\n")
    _write(folder / "replicas.json", table.to_json().decode())
    for name in FILES:
        with (folder / name).open("rb") as file:
            os.fsync(file.fileno())


def _move(unfinished: Path, out: Path) -> None:
    """Put the files where they belong, the mark last, and clear away what writing that was cut short left."""
    (out / MARK).unlink(missing_ok=True)
    _sync(out)
    for name in (*(name for name in FILES if name != MARK), MARK):
        if name == MARK:
            _sync(out)
        (unfinished / name).replace(out / name)
    _sync(out)
    for left in out.glob(f"{UNFINISHED}*"):
        if left == unfinished or not _runs(left.name.removeprefix(UNFINISHED)):
            shutil.rmtree(left, ignore_errors=True)


def _runs(process_id: str) -> bool:
    """Say whether a process of that number may still be at work."""
    if os.name != "posix" or not process_id.isdecimal():
        return True
    try:
        os.kill(int(process_id), 0)
    except (ProcessLookupError, OverflowError):
        return False
    except PermissionError:
        return True
    return True


def _sync(folder: Path) -> None:
    """Bring a folder's list of names to the disk, where the system can."""
    with contextlib.suppress(OSError):
        fd = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(fd)
        finally:
            os.close(fd)


def _unwritable(where: str, error: OSError) -> InputError:
    return InputError(f"{where}: cannot be written ({error.strerror or error}); choose another place")


def _write(path: Path, text: str) -> None:
    path.write_text(text, encoding="utf-8", newline="")


def _parquet(rows: Path, path: Path) -> None:
    """Write the decisions as Parquet, with numbers as numbers and days as days."""
    import duckdb

    kinds = {"day": "DATE", "amount": "DOUBLE", "cash": "DOUBLE"}
    try:
        with duckdb.connect() as connection:
            names = [row[0] for row in connection.execute("DESCRIBE FROM read_csv(?)", [str(rows)]).fetchall()]
            types = {name: kinds.get(name, "VARCHAR") for name in names}
            connection.read_csv(str(rows), dtype=types, header=True).write_parquet(str(path))
    except duckdb.IOException as error:
        raise OSError(0, f"{path.name}: {str(error).splitlines()[0]}") from None
