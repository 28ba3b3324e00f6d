"""The folder that `baseload plan` writes: the planned fleet file, the page, every decision, and all of it as JSON."""

from __future__ import annotations

import os
from pathlib import Path

from baseload.errors import InputError
from baseload.plan.table import ReplicaTable
from baseload.report import plan_html, plan_text
from baseload.report.plan_model import PlanReport


def write_all(report: PlanReport, planned: str, table: ReplicaTable, out: Path) -> None:
    """Write each file whole or not at all; raises InputError where the folder cannot be written."""
    try:
        out.mkdir(parents=True, exist_ok=True)
        _write(out / "fleet.yaml", planned)
        plan_html.write(report, out / "report.html")
        _write(out / "decisions.csv", plan_text.to_csv(report.decisions))
        _parquet(out / "decisions.csv", out / "decisions.parquet")
        _write(out / "plan.json", plan_text.to_json(report) + "\n")
        _write(out / "replicas.json", table.to_json().decode())
    except OSError as error:
        raise InputError(f"{out}: cannot be written ({error.strerror}); choose another place") from None


def _write(path: Path, text: str) -> None:
    unfinished = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        unfinished.write_text(text, encoding="utf-8", newline="")
        unfinished.replace(path)
    finally:
        unfinished.unlink(missing_ok=True)


def _parquet(rows: Path, path: Path) -> None:
    """Write the decisions as Parquet, with numbers as numbers and days as days."""
    import duckdb

    unfinished = path.with_name(f".{path.name}.{os.getpid()}")
    kinds = {"day": "DATE", "amount": "DOUBLE", "cash": "DOUBLE"}
    try:
        with duckdb.connect() as connection:
            names = [row[0] for row in connection.execute("DESCRIBE FROM read_csv(?)", [str(rows)]).fetchall()]
            types = {name: kinds.get(name, "VARCHAR") for name in names}
            connection.read_csv(str(rows), dtype=types, header=True).write_parquet(str(unfinished))
        unfinished.replace(path)
    finally:
        unfinished.unlink(missing_ok=True)
