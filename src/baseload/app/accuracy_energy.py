"""Accuracy of watts and of the spacing between tokens: ML.ENERGY's runs, and MLPerf's wall power.

ML.ENERGY's rows carry no licence and do not ship: they are read from the folder given with --data, if any.
"""

from __future__ import annotations

import csv
import gzip
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from baseload.app.accuracy_silicon import Score, score
from baseload.app.silicon import shape_of, spec_of
from baseload.errors import CatalogError, TraceError
from baseload.fleet import catalog
from baseload.formulas.closedloop import Load, closed_loop_s
from baseload.formulas.fit import calibrate, errors
from baseload.formulas.speed import (
    DEFAULT,
    Parallelism,
    context_token_s,
    head_step_s,
    kv_capacity_tokens,
    time_parts_s,
    window_token_s,
)
from baseload.formulas.step_power import saturating_w, step_power_w
from baseload.formulas.step_work import AcceleratorSpec, step_work, window_tokens

Array = NDArray[np.float64]

MLENERGY = "energy/mlenergy_lm-arena-chat.csv.gz"
CHAT_PROMPT_TOKENS = 300.0  # not in the file: the mean of LMArena conversations, a guess
SMALLEST_CURVE = 5  # batch sizes a configuration needs, so that an unseen one lies between seen ones
SMALLEST_BATCH = 64  # MLPerf end to end: a replica takes as few accelerators as hold this many sequences
SEATS_PER_ACCELERATOR = 2048  # MLPerf end to end: sequences in flight, where memory allows; the rows do not say


@dataclass(frozen=True, slots=True, kw_only=True)
class EnergyRow:
    """One measured configuration: accelerators only, in steady state."""

    model_id: str
    accelerator: str
    n_accelerators: int
    tp: int
    ep: int
    dp: int
    precision: str
    batch: float
    itl_s: float
    power_w: float  # of one accelerator
    output_tokens: float

    @property
    def configuration(self) -> tuple[object, ...]:
        """Return what the rows of one curve have in common: all but the batch."""
        return (
            self.model_id,
            self.accelerator,
            self.n_accelerators,
            self.tp,
            self.ep,
            self.dp,
            self.precision,
        )


def mlenergy_rows(folder: Path) -> list[EnergyRow] | None:
    """Return ML.ENERGY's chat rows, or None where `folder` does not hold them."""
    path = folder / MLENERGY
    if not path.exists():
        return None
    try:
        with gzip.open(path, "rt", encoding="utf-8", newline="") as text:
            return [_energy_row(row) for row in csv.DictReader(text)]
    except (OSError, KeyError, ValueError) as problem:
        raise TraceError(f"{path}: not the ML.ENERGY rows ({problem})") from problem


def _energy_row(row: dict[str, str]) -> EnergyRow:
    n = int(row["num_gpus"])
    return EnergyRow(
        model_id=row["model_id"],
        accelerator=catalog.accelerator(row["gpu_model"].lower()).accelerator_id,
        n_accelerators=n,
        tp=int(row["tensor_parallel"]),
        ep=int(row["expert_parallel"]),
        dp=int(row["data_parallel"]),
        precision="fp8" if row["weight_precision"] == "fp8" else "bf16",
        batch=float(row["avg_batch_size"]),
        itl_s=float(row["median_itl_ms"]) / 1e3,
        power_w=float(row["avg_power_watts"]) / n,
        output_tokens=float(row["avg_output_len"]),
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class CurveScore:
    """How well a configuration's other batch sizes tell an unseen one between them."""

    n_points: int
    itl_median: float
    itl_within_10_percent: float
    watts_median: float
    watts_within_10_percent: float


def unseen_batch_sizes(rows: Sequence[EnergyRow], accelerator: str) -> CurveScore:
    """Leave out each interior batch size of each configuration in turn, and predict it from the others."""
    curves: dict[tuple[object, ...], list[EnergyRow]] = defaultdict(list)
    for row in rows:
        if row.accelerator == accelerator:
            curves[row.configuration].append(row)
    itl, watts = [], []
    for curve in curves.values():
        points = np.array(sorted((row.batch, row.itl_s, row.power_w) for row in curve))
        for i in range(1, len(points) - 1) if len(points) >= SMALLEST_CURVE else ():
            seen = np.delete(points, i, axis=0)
            itl.append(errors(itl_curve(seen, points[i : i + 1, 0]), points[i : i + 1, 1])[0])
            watts.append(errors(watt_curve(seen, points[i : i + 1, 0]), points[i : i + 1, 2])[0])
    return CurveScore(
        n_points=len(itl),
        itl_median=float(np.median(itl)),
        itl_within_10_percent=float(np.mean(np.array(itl) <= 0.1)),
        watts_median=float(np.median(watts)),
        watts_within_10_percent=float(np.mean(np.array(watts) <= 0.1)),
    )


def itl_curve(seen: Array, batch: Array) -> Array:
    """Return seconds between tokens at `batch` from rows (batch, seconds, ...): a + c B^p."""
    start = {"a": 0.8 * seen[0, 1], "c": (seen[-1, 1] - seen[0, 1]) / seen[-1, 0], "p": 0.9}
    start["c"] = max(start["c"], 1e-3 * seen[0, 1])
    found = calibrate(
        lambda c: c["a"] + c["c"] * seen[:, 0] ** c["p"], seen[:, 1], start, {"a": 1.0, "c": 1.5, "p": 0.3}
    ).constants
    return np.asarray(found["a"] + found["c"] * batch ** found["p"])


def watt_curve(seen: Array, batch: Array) -> Array:
    """Return watts at `batch` from rows (batch, seconds, watts): P0 + P1 x / (x + x0)."""
    start = {"p0": 0.9 * seen[0, 2], "p1": max(50.0, seen[:, 2].max() - seen[0, 2]), "x0": 64.0}
    found = calibrate(
        lambda c: saturating_w(seen[:, 0], c["p0"], c["p1"], c["x0"]),
        seen[:, 2],
        start,
        {"p0": 0.3, "p1": 1.0, "x0": 1.5},
    ).constants
    return np.asarray(saturating_w(batch, found["p0"], found["p1"], found["x0"]))


def step_parts(row: EnergyRow) -> tuple[float, float, float] | None:
    """Return seconds of a default decode step (memory and links, arithmetic, launches); None: unknown model."""
    try:
        shape = shape_of(catalog.model(row.model_id).model_id)
    except CatalogError:
        return None
    parallelism = Parallelism(tp=row.tp, ep=row.ep, dp=max(1, row.n_accelerators // row.tp))
    work = step_work(shape, spec_of(row.accelerator), parallelism, precision=row.precision)
    memory_s, math_s, launch_s = time_parts_s(work, DEFAULT, row.batch)
    context = CHAT_PROMPT_TOKENS + row.output_tokens / 2.0
    memory_s = memory_s + head_step_s(work, DEFAULT, row.batch)
    memory_s = memory_s + context_token_s(work, DEFAULT) * row.batch * context
    windowed = min(context, window_tokens(shape))
    memory_s = memory_s + window_token_s(work, DEFAULT) * row.batch * windowed
    return float(memory_s), float(math_s), float(launch_s)


def unseen_models(rows: Sequence[EnergyRow], accelerator: str) -> tuple[Score, Score]:
    """Score the published defaults, which saw none of these runs' times: (between tokens, watts)."""
    itl, watts = [], []
    for row in rows:
        parts = step_parts(row) if row.accelerator == accelerator else None
        if parts is None:
            continue
        itl.append((sum(parts), row.itl_s))
        watts.append((float(step_power_w(_bare(row.accelerator), 1, *parts)), row.power_w))
    itl_table, watt_table = np.array(itl), np.array(watts)
    return score(itl_table[:, 0], itl_table[:, 1]), score(watt_table[:, 0], watt_table[:, 1])


def _bare(accelerator: str) -> AcceleratorSpec:
    """The accelerator without its share of the server: what ML.ENERGY measures."""
    spec = spec_of(accelerator)
    return AcceleratorSpec(
        bf16_tflops=spec.bf16_tflops,
        memory_gb=spec.memory_gb,
        memory_bw_tb_s=spec.memory_bw_tb_s,
        tdp_w=spec.tdp_w,
        idle_w=spec.idle_w,
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class MlperfScore:
    """One MLPerf result, and what the model says of it; NaN where no wall power was measured."""

    mlperf_id: str
    accelerator: str
    model: str
    scenario: str
    tokens_per_s: float
    joules_per_token: float
    given_throughput: float  # relative error of J/token, the measured tokens/s given
    end_to_end: float  # the same with predicted tokens/s
    throughput: float  # relative error of the predicted tokens/s


def mlperf_scores() -> list[MlperfScore]:
    """Return MLPerf Inference v5.1 results beside the model's: those with wall power first."""
    lines = (files("baseload.app") / "measured/mlperf.csv").read_text(encoding="utf-8").splitlines()
    return [_mlperf_score(row) for row in csv.DictReader(lines)]


def _mlperf_score(row: dict[str, str]) -> MlperfScore:
    shape, spec = shape_of(row["model"]), spec_of(row["accelerator"])
    n = int(row["n_accelerators"])
    prompt, answer = float(row["input_tokens"]), float(row["output_tokens"])
    tp = next(t for t in (1, 2, 4, 8) if _seats(row, t) >= SMALLEST_BATCH)
    seats = _seats(row, tp)
    work = step_work(shape, spec, Parallelism(tp=tp), precision=row["precision"], kv_precision="fp8")
    load = Load(concurrency=float(seats), input_tokens=prompt, output_tokens=answer)
    ttft_s, tpot_s = closed_loop_s(work, DEFAULT, load)
    tokens_per_s = n / tp * seats * answer / float(ttft_s + (answer - 1.0) * tpot_s)
    # A step in the mean carries every seat's token and the prompt tokens that replace what was answered.
    in_step = seats * (1.0 + prompt / answer)
    power_w = n / tp * float(step_power_w(spec, tp, *time_parts_s(work, DEFAULT, in_step)))
    real_tokens_per_s, real_w = float(row["tokens_per_s"]), float(row["wall_power_w"] or "nan")
    return MlperfScore(
        mlperf_id=row["id"],
        accelerator=row["accelerator"],
        model=row["model"],
        scenario=row["scenario"],
        tokens_per_s=real_tokens_per_s,
        joules_per_token=real_w / real_tokens_per_s,
        given_throughput=power_w / real_w - 1.0,
        end_to_end=power_w / tokens_per_s / (real_w / real_tokens_per_s) - 1.0,
        throughput=tokens_per_s / real_tokens_per_s - 1.0,
    )


def _seats(row: dict[str, str], tp: int) -> int:
    """Sequences that fit beside the weights of a replica of `tp` accelerators."""
    capacity = kv_capacity_tokens(
        shape_of(row["model"]), spec_of(row["accelerator"]), Parallelism(tp=tp),
        precision=row["precision"], kv_precision="fp8",
    )  # fmt: skip
    per_sequence = float(row["input_tokens"]) + float(row["output_tokens"])
    return min(SEATS_PER_ACCELERATOR * tp, int(capacity / per_sequence))
