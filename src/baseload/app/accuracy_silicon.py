"""Accuracy on the measured closed loops: fit on some (model, system) groups, score on the others.

The rows and why some are set aside are `silicon.py`; the printed table is `accuracy.py`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from baseload.app.silicon import Row, shape_of, spec_of
from baseload.formulas.closedloop import Load, closed_loop_s, roofline_tpot_s, roofline_ttft_s
from baseload.formulas.fit import Fit, balanced_folds, calibrate, errors, rank_correlation
from baseload.formulas.speed import SpeedConstants
from baseload.formulas.step_work import StepWork, stack, step_work, window_tokens

Array = NDArray[np.float64]

# Round numbers an engineer would write down before seeing a row, and how far each may stray (sd of its log).
# Efficiencies: matrix products measured at 0.7-0.8 of datasheet on H100 and B200, memory copies at 0.85-0.9;
# one-shot all-reduces of small messages over 8 NVLink peers at 10-15 us; decode launches at 40-60 us a layer.
START: Mapping[str, float] = {
    "memory_efficiency": 0.85,
    "math_efficiency": 0.65,
    "expert_math_ratio": 0.35,
    "attention_efficiency": 0.5,
    "activation_passes": 15.0,
    "layer_s": 50e-6,
    "extra_layer_s": 25e-6,
    "collective_s": 12e-6,
    "sequence_s": 10e-6,
    "first_token_steps": 8.0,
    "queued_prefill": 0.03,
    "queued_prefill_alone": 0.35,
}
STRAY: Mapping[str, float] = {
    "memory_efficiency": 0.1,
    "math_efficiency": 0.15,
    "expert_math_ratio": 0.4,
    "attention_efficiency": 0.2,
    "activation_passes": 0.3,
    "layer_s": 0.3,
    "extra_layer_s": 0.3,
    "collective_s": 0.3,
    "sequence_s": 0.5,
    "first_token_steps": 0.3,
    "queued_prefill": 0.4,
    "queued_prefill_alone": 0.4,
}
TTFT_WEIGHT = 0.5  # against TPOT: first tokens depend on client and server settings that no row names
ROWS_PER_GROUP = 5.0  # what a group's rows, whose hidden settings they share, are worth together


@dataclass(frozen=True, slots=True, kw_only=True)
class Score:
    """Errors of predictions: relative, absolute."""

    n_rows: int
    median: float
    mean: float
    rank: float


def score(predicted: Array, measured: Array) -> Score:
    """Return the errors of predictions, row by row against what was measured."""
    error = errors(predicted, measured)
    return Score(
        n_rows=len(measured),
        median=float(np.median(error)),
        mean=float(error.mean()),
        rank=rank_correlation(predicted, measured),
    )


@dataclass(frozen=True, slots=True)
class Table:
    """Rows as columns: what the formulas need, and what was measured."""

    work: StepWork
    load: Load
    ttft_s: Array
    tpot_s: Array
    groups: list[str]


def tabulate(rows: Sequence[Row]) -> Table:
    """Return the columns of `rows`."""
    known: dict[tuple[object, ...], StepWork] = {}
    works = []
    for row in rows:
        key = (row.model, row.accelerator, row.parallelism, row.precision)
        if key not in known:
            known[key] = step_work(
                shape_of(row.model), spec_of(row.accelerator), row.parallelism,
                precision=row.precision, kv_precision=row.kv_precision,
            )  # fmt: skip
        works.append(known[key])
    load = Load(
        concurrency=np.array([float(row.concurrency) for row in rows]),
        input_tokens=np.array([float(row.input_tokens) for row in rows]),
        output_tokens=np.array([float(row.output_tokens) for row in rows]),
        window_tokens=np.array([float(window_tokens(shape_of(row.model))) for row in rows]),
        prefill_alone=np.array([row.backend == "sglang" for row in rows]),
        ranks=np.array([float(row.dp) for row in rows]),
    )
    return Table(
        stack(works),
        load,
        np.array([row.ttft_ms for row in rows]) / 1e3,
        np.array([row.tpot_ms for row in rows]) / 1e3,
        [row.group for row in rows],
    )


def predict(table: Table, constants: Mapping[str, float]) -> tuple[Array, Array]:
    """Return (TTFT, TPOT) in seconds of every row."""
    return closed_loop_s(table.work, SpeedConstants.from_dict(constants), table.load)


def row_weights(groups: Sequence[str]) -> Array:
    """Return what each row is worth: groups count by the square root of their size."""
    sizes = {group: groups.count(group) for group in set(groups)}
    weight = np.array([sizes[group] ** -0.5 for group in groups])
    return np.asarray(weight * (ROWS_PER_GROUP * len(sizes) / weight.sum()))


def fit_constants(rows: Sequence[Row], start: Mapping[str, float] = START) -> Fit:
    """Fit the twelve constants to `rows`."""
    table = tabulate(rows)
    weight = row_weights(table.groups)
    total = TTFT_WEIGHT + 1.0
    return calibrate(
        lambda constants: np.concatenate(predict(table, constants)),
        np.concatenate([table.ttft_s, table.tpot_s]),
        start,
        STRAY,
        weights=np.concatenate([TTFT_WEIGHT * weight, weight]) / total,
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class HeldOut:
    """Predictions of every row by constants that never saw its group."""

    ttft: Score
    tpot: Score
    ttft_s: Array
    tpot_s: Array
    fits: tuple[Fit, ...]


def hold_out(rows: Sequence[Row], *, n_folds: int, groups: Sequence[str] | None = None) -> HeldOut:
    """Fit on all folds but one, predict that one; groups are never split."""
    fold = balanced_folds(list(groups or [row.group for row in rows]), n_folds)
    whole = tabulate(rows)
    ttft_s, tpot_s = np.empty(len(rows)), np.empty(len(rows))
    fits = []
    for i in range(int(fold.max()) + 1):
        fits.append(fit_constants([row for row, f in zip(rows, fold, strict=True) if f != i]))
        there = np.flatnonzero(fold == i)
        part = tabulate([rows[int(j)] for j in there])
        ttft_s[there], tpot_s[there] = predict(part, fits[-1].constants)
    return HeldOut(
        ttft=score(ttft_s, whole.ttft_s),
        tpot=score(tpot_s, whole.tpot_s),
        ttft_s=ttft_s,
        tpot_s=tpot_s,
        fits=tuple(fits),
    )


def below_roofline(rows: Sequence[Row]) -> tuple[list[int], list[int]]:
    """Return the indices of rows whose TPOT, and whose TTFT, is less than the datasheet allows.

    How many users decode at once follows from the measured times themselves (Little's law).
    """
    table = tabulate(rows)
    cycle_s = table.ttft_s + (table.load.output_tokens - 1.0) * table.tpot_s
    decoding = np.maximum(1.0, table.load.concurrency * (1.0 - table.ttft_s / cycle_s))
    tpot = table.tpot_s < roofline_tpot_s(table.work, table.load, decoding=decoding)
    ttft = table.ttft_s < roofline_ttft_s(table.work, table.load)
    return np.flatnonzero(tpot).tolist(), np.flatnonzero(ttft).tolist()
