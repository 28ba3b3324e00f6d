"""`baseload calibrate`: fit the speed model to a user's own measurements, and say how much better it got.

A CSV of closed-loop measurements goes in (columns: `COLUMNS`), constants for a deployment's `speed:` come out. Only
constants that the rows can tell apart are moved, and none further than they ask for. Docs: docs/accuracy.md.
"""

from __future__ import annotations

import csv
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import isfinite
from pathlib import Path

import numpy as np

from baseload.app.accuracy_silicon import STRAY, Array
from baseload.app.silicon import shape_of, spec_of
from baseload.errors import InputError, TraceError
from baseload.fleet import catalog
from baseload.formulas.closedloop import Load, closed_loop_s, roofline_tpot_s
from baseload.formulas.fit import Fit, calibrate, median_error
from baseload.formulas.shape import ModelShape
from baseload.formulas.speed import DEFAULT, SpeedConstants, time_parts_s
from baseload.formulas.step_power import step_power_w
from baseload.formulas.step_work import AcceleratorSpec, Parallelism, StepWork, stack, step_work, window_tokens

COLUMNS: Mapping[str, str] = {
    "input_tokens": "prompt tokens of a request",
    "output_tokens": "answer tokens of a request, at least 2 where tpot_ms is given",
    "concurrency": "users in closed loop on one replica (`batch` is understood too)",
    "ttft_ms": "mean or median time to first token; may be empty if tpot_ms is not",
    "tpot_ms": "mean or median time per further token; may be empty if ttft_ms is not",
    "tp": "optional: accelerators of the replica, instead of --tp",
    "precision": "optional: bf16, fp8 or fp4, instead of --precision",
    "power_w": "optional: watts of one accelerator; only compared, nothing is fitted to it",
}
PRECISIONS = ("bf16", "fp8", "fp4")
LARGEST = 1e9
N_FOLDS = 4  # every fourth row is left out in turn, to say how well the fit carries over
SMALLEST_HELD_OUT = 8  # rows, below which nothing is left out


@dataclass(frozen=True, slots=True, kw_only=True)
class Measured:
    """One line of the user's CSV; NaN where a cell is empty."""

    input_tokens: float
    output_tokens: float
    concurrency: float
    tp: int
    precision: str
    ttft_s: float
    tpot_s: float
    power_w: float


@dataclass(frozen=True, slots=True)
class _Table:
    work: StepWork
    load: Load
    ttft_s: Array
    tpot_s: Array


def calibrate_file(
    path: Path,
    *,
    accelerator: str,
    model: str,
    precision: str = "bf16",
    tp: int = 1,
    out: Path | None = None,
) -> str:
    """Fit to the rows of `path`; return the report, and write the YAML snippet to `out` if given."""
    if precision not in PRECISIONS:
        raise InputError(f"precision {precision!r}: use one of {', '.join(PRECISIONS)}")
    if tp < 1:
        raise InputError(f"tp {tp}: a replica has at least one accelerator")
    spec = spec_of(catalog.accelerator(accelerator).accelerator_id)
    shape = shape_of(catalog.model(model).model_id)
    rows = read_measured(path, precision=precision, tp=tp)
    fit = fit_measured(rows, shape, spec)
    snippet = yaml_snippet(fit, source=f"{path.name}, {len(rows)} rows, {accelerator}, {model}")
    above = [name for name in ("memory_efficiency", "math_efficiency", "attention_efficiency")
             if fit.constants[name] > 1.0]  # fmt: skip
    too_fast = f"{', '.join(above)} above 1: faster than the data sheet: check tp, precision, units"
    if above and out is not None:
        raise InputError(f"{path}: {too_fast}; {out} is not written")
    if out is not None:
        try:
            out.write_text(snippet, encoding="utf-8")
        except OSError as problem:
            raise InputError(f"{out}: cannot be written ({problem.strerror}); name another file") from problem
    report = report_text(rows, shape, spec, fit) + (f"\nWarning: {too_fast}." if above else "")
    return (
        f"{report}\n\nFor the deployment in the fleet file{f' (written to {out})' if out else ''}:\n{snippet.rstrip()}"
    )


def read_measured(path: Path, *, precision: str = "bf16", tp: int = 1) -> list[Measured]:
    """Return the rows of a CSV with the columns of `COLUMNS`; errors name file and line."""
    try:
        with path.open(encoding="utf-8-sig", newline="") as text:
            lines = list(csv.reader(text))
    except OSError as problem:
        raise TraceError(f"{path}: {problem.strerror or problem}; name a CSV file of measurements") from problem
    except (UnicodeDecodeError, csv.Error) as problem:
        raise TraceError(f"{path}: not a CSV file in UTF-8 ({problem}); export it as CSV") from problem
    if not lines:
        raise TraceError(f"{path}: empty; the first line names the columns: {', '.join(COLUMNS)}")
    names = ["concurrency" if name.strip() == "batch" else name.strip() for name in lines[0]]
    missing = {"input_tokens", "output_tokens", "concurrency"} - set(names)
    if missing or not {"ttft_ms", "tpot_ms"} & set(names):
        wanted = ", ".join(sorted(missing)) or "ttft_ms or tpot_ms"
        raise TraceError(f"{path}:1: no column {wanted}; columns are {', '.join(COLUMNS)}")
    if len(set(names)) != len(names):
        raise TraceError(f"{path}:1: a column is named twice; name each once")
    rows = []
    for number, cells in enumerate(lines[1:], start=2):
        if not any(cell.strip() for cell in cells):
            continue
        if len(cells) != len(names):
            raise TraceError(f"{path}:{number}: {len(cells)} cells under {len(names)} columns; mend the line")
        cell_of = dict(zip(names, (cell.strip() for cell in cells), strict=True))
        rows.append(_measured(cell_of, f"{path}:{number}", precision, tp))
    if not rows:
        raise TraceError(f"{path}: no row below the column names; add measurements")
    return rows


def _measured(cell_of: Mapping[str, str], where: str, precision: str, tp: int) -> Measured:
    row = Measured(
        input_tokens=_number(cell_of, "input_tokens", where, least=1.0),
        output_tokens=_number(cell_of, "output_tokens", where, least=1.0),
        concurrency=_number(cell_of, "concurrency", where, least=1.0),
        tp=int(_number(cell_of, "tp", where, least=1.0, empty=float(tp))),
        precision=cell_of.get("precision") or precision,
        ttft_s=_number(cell_of, "ttft_ms", where, least=1e-3, empty=float("nan")) / 1e3,
        tpot_s=_number(cell_of, "tpot_ms", where, least=1e-3, empty=float("nan")) / 1e3,
        power_w=_number(cell_of, "power_w", where, least=0.0, empty=float("nan")),
    )
    if row.precision not in PRECISIONS:
        raise TraceError(f"{where}: precision {row.precision!r}; use one of {', '.join(PRECISIONS)}")
    if row.tp > 4096:
        raise TraceError(f"{where}: tp {row.tp}: no replica is that large; mend the cell")
    if row.ttft_s != row.ttft_s and row.tpot_s != row.tpot_s:
        raise TraceError(f"{where}: neither ttft_ms nor tpot_ms; give one of them, or take the line out")
    if row.output_tokens < 2.0 and row.tpot_s == row.tpot_s:
        raise TraceError(f"{where}: tpot_ms of an answer of one token; leave the cell empty")
    return row


def _number(cell_of: Mapping[str, str], name: str, where: str, *, least: float, empty: float | None = None) -> float:
    cell = cell_of.get(name, "")
    if not cell and empty is not None:
        return empty
    try:
        value = float(cell)
    except ValueError:
        raise TraceError(f"{where}: {name} is {cell!r}, not a number; mend the cell") from None
    if not isfinite(value) or not least <= value <= LARGEST:
        raise TraceError(f"{where}: {name} is {cell}; it must lie between {least:g} and {LARGEST:g}")
    return value


def _tabulate(rows: Sequence[Measured], shape: ModelShape, spec: AcceleratorSpec) -> _Table:
    works = []
    for row in rows:
        if row.tp > 1 and not (spec.scale_up_gb_s or spec.scale_out_gb_s):
            raise InputError(f"tp {row.tp}: the catalogue knows no link between these accelerators")
        works.append(step_work(shape, spec, Parallelism(tp=row.tp), precision=row.precision,
                               kv_precision="bf16" if row.precision == "bf16" else "fp8"))  # fmt: skip
    load = Load(
        concurrency=np.array([row.concurrency for row in rows]),
        input_tokens=np.array([row.input_tokens for row in rows]),
        output_tokens=np.array([row.output_tokens for row in rows]),
        window_tokens=float(window_tokens(shape)),
    )
    return _Table(stack(works), load, np.array([row.ttft_s for row in rows]), np.array([row.tpot_s for row in rows]))


def _times(table: _Table, constants: Mapping[str, float]) -> tuple[Array, Array]:
    ttft_s, tpot_s = closed_loop_s(table.work, SpeedConstants.from_dict(constants), table.load)
    return ttft_s, tpot_s


def fit_measured(rows: Sequence[Measured], shape: ModelShape, spec: AcceleratorSpec) -> Fit:
    """Fit the constants that `rows` can tell apart, starting from the published defaults."""
    table = _tabulate(rows, shape, spec)
    has_ttft, has_tpot = ~np.isnan(table.ttft_s), ~np.isnan(table.tpot_s)

    def forward(constants: Mapping[str, float]) -> Array:
        ttft_s, tpot_s = _times(table, constants)
        return np.concatenate([ttft_s[has_ttft], tpot_s[has_tpot]])

    measured = np.concatenate([table.ttft_s[has_ttft], table.tpot_s[has_tpot]])
    return calibrate(forward, measured, DEFAULT.to_dict(), identifiable(rows, shape))


def identifiable(rows: Sequence[Measured], shape: ModelShape) -> dict[str, float]:
    """Return the constants that such rows speak of, and how far each may stray (sd of its log)."""
    names = ["memory_efficiency", "math_efficiency", "attention_efficiency", "layer_s", "sequence_s"]
    if shape.n_experts:
        names.append("expert_math_ratio")
    if shape.n_experts or shape.kv_lora_rank:
        names.append("extra_layer_s")
    if any(row.tp > 1 for row in rows):
        names.append("collective_s")
    if any(row.ttft_s == row.ttft_s for row in rows):
        names += ["activation_passes", "first_token_steps", "queued_prefill"]
    return {name: STRAY[name] for name in names}


def yaml_snippet(fit: Fit, *, source: str) -> str:
    """Return the constants that moved, as the fleet file's `speed:` of a deployment.

    >>> print(yaml_snippet(Fit(constants={"layer_s": 4e-5}, error_before=0.2, error_after=0.1), source="m.csv"))
    # baseload calibrate: m.csv
    speed:
      layer_s: 4.0000e-05
    <BLANKLINE>
    """
    default = DEFAULT.to_dict()
    moved = {k: v for k, v in fit.constants.items() if abs(v / default[k] - 1.0) > 1e-6}
    lines = [f"# baseload calibrate: {source}", "speed:" if moved else "speed: {}"]
    return "\n".join(lines + [f"  {name}: {value:.4e}" for name, value in moved.items()]) + "\n"


def report_text(rows: Sequence[Measured], shape: ModelShape, spec: AcceleratorSpec, fit: Fit) -> str:
    """Return errors before, after and held out, and what else the user should know of the rows."""
    table = _tabulate(rows, shape, spec)
    held = _held_out(rows, shape, spec) if len(rows) >= SMALLEST_HELD_OUT else None
    lines = [f"{len(rows)} rows; median absolute error:", f"{'':12s}{'before':>9s}{'after':>9s}{'held out':>10s}"]
    before, after = _times(table, DEFAULT.to_dict()), _times(table, fit.constants)
    for i, (name, real) in enumerate((("TTFT", table.ttft_s), ("TPOT", table.tpot_s))):
        known = ~np.isnan(real)
        if not known.any():
            lines.append(f"{name:12s}{'not measured':>18s}")
            continue
        cells = [median_error(times[i][known], real[known]) for times in (before, after)]
        unseen = f"{median_error(held[i][known], real[known]):10.1%}" if held else f"{'-':>10s}"
        lines.append(f"{name:12s}" + "".join(f"{cell:9.1%}" for cell in cells) + unseen)
    if held is None:
        lines.append(f"Held out: too few rows; {SMALLEST_HELD_OUT} or more say how well the fit carries over.")
    watts = _watts_error(rows, table, spec, fit)
    if watts is not None:
        lines.append(f"{'Watts':12s}{watts:9.1%}   (median; compared only)")
    n_below = _below_roofline(table)
    if n_below:
        lines.append(
            f"{n_below} rows have a TPOT below what the datasheet allows: speculative decoding, another precision, "
            "or more accelerators than said? Take them out, or mend them."
        )
    return "\n".join(lines)


def _held_out(rows: Sequence[Measured], shape: ModelShape, spec: AcceleratorSpec) -> tuple[Array, Array]:
    ttft_s, tpot_s = np.empty(len(rows)), np.empty(len(rows))
    for i in range(N_FOLDS):
        fit = fit_measured([row for j, row in enumerate(rows) if j % N_FOLDS != i], shape, spec)
        part = _tabulate(rows[i::N_FOLDS], shape, spec)
        ttft_s[i::N_FOLDS], tpot_s[i::N_FOLDS] = _times(part, fit.constants)
    return ttft_s, tpot_s


def _watts_error(rows: Sequence[Measured], table: _Table, spec: AcceleratorSpec, fit: Fit) -> float | None:
    watts = np.array([row.power_w for row in rows])
    known = watts > 0.0
    if not known.any():
        return None
    constants = SpeedConstants.from_dict(fit.constants)
    bare = AcceleratorSpec(bf16_tflops=spec.bf16_tflops, memory_gb=spec.memory_gb, tdp_w=spec.tdp_w,
                           memory_bw_tb_s=spec.memory_bw_tb_s, idle_w=spec.idle_w)  # fmt: skip
    predicted = step_power_w(bare, 1, *time_parts_s(table.work, constants, table.load.concurrency))
    return median_error(np.asarray(predicted)[known], watts[known])


def _below_roofline(table: _Table) -> int:
    """Count rows faster than the datasheet, the number decoding at once taken from Little's law."""
    decoding = table.load.concurrency
    known = ~np.isnan(table.ttft_s) & ~np.isnan(table.tpot_s)
    cycle_s = table.ttft_s + (table.load.output_tokens - 1.0) * table.tpot_s
    share = np.where(known, 1.0 - table.ttft_s / np.where(known, cycle_s, 1.0), 0.5)
    floor = roofline_tpot_s(table.work, table.load, decoding=np.maximum(1.0, decoding * share))
    return int((table.tpot_s < floor).sum())
