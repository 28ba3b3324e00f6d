"""`python -m baseload.app.accuracy [--data FOLDER]`: errors against measured data, uncalibrated and calibrated.

Rows whose data may not ship say "not run" without the folder. Method and limits: docs/accuracy.md.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Iterator, Sequence
from math import isfinite
from pathlib import Path

import numpy as np

from baseload.app.accuracy_energy import (
    mlenergy_rows,
    mlperf_scores,
    unseen_batch_sizes,
    unseen_models,
)
from baseload.app.accuracy_silicon import (
    START,
    HeldOut,
    Score,
    below_roofline,
    hold_out,
    predict,
    score,
    tabulate,
)
from baseload.app.accuracy_vllm import CARDS, RunScore, fit_run, measured_requests, score_run
from baseload.app.accuracy_vllm import START as VLLM_START
from baseload.app.silicon import REASONS, Row, shipped_rows, unfit_reasons
from baseload.errors import BaseloadError
from baseload.formulas.speed import DEFAULT

N_FOLDS = 5
DATA_SHEET = dict.fromkeys(DEFAULT.to_dict(), 0.0) | {
    "memory_efficiency": 1.0,
    "math_efficiency": 1.0,
    "expert_math_ratio": 1.0,
    "attention_efficiency": 1.0,
}
ONE_GROUP_A_FOLD = 10_000
NOT_RUN = "not run: its rows carry no licence; name a folder that holds them with --data"


def main(arguments: Sequence[str] | None = None) -> int:
    """Print the whole table."""
    parser = argparse.ArgumentParser(prog="python -m baseload.app.accuracy", description=__doc__)
    parser.add_argument("--data", type=Path, help="folder of measured data that may not ship")
    folder: Path | None = parser.parse_args(arguments).data
    if folder is not None and not folder.is_dir():
        print(f"--data {folder}: no such folder", file=sys.stderr)
        return 2
    sections: tuple[Callable[[], Iterator[str]], ...] = (
        silicon_lines,
        vllm_lines,
        lambda: mlenergy_lines(folder),
        mlperf_lines,
    )
    try:
        for section in sections:
            for line in section():
                print(line, flush=True)
            print()
    except BaseloadError as problem:
        print(problem, file=sys.stderr)
        return problem.exit_code
    return 0


def silicon_lines() -> Iterator[str]:
    """Yield the closed-loop table: 1,734 measured rows of LLM serving."""
    rows = shipped_rows()
    fit = [row for row in rows if not unfit_reasons(row)]
    yield "CLOSED LOOP, aggregated serving on H100, H200, B200, GB200 (aiconfigurator's silicon sample)"
    yield f"{'errors: median / mean / rank':48s} {'rows':>5s}   {'TPOT':21s} {'TTFT':21s}"
    table = tabulate(fit)
    for name, constants in (
        ("uncalibrated: the data sheet, no losses", DATA_SHEET),
        ("round constants, before fitting", START),
    ):
        ttft_s, tpot_s = predict(table, constants)
        yield _closed_line(name, score(tpot_s, table.tpot_s), score(ttft_s, table.ttft_s))
    for name, kept, n_folds, groups in _silicon_tests(rows, fit):
        held = hold_out(kept, n_folds=n_folds, groups=groups)
        yield _held_line(name, held)
    ttft_s, tpot_s = predict(table, DEFAULT.to_dict())
    yield _closed_line("in sample: the published defaults", score(tpot_s, table.tpot_s), score(ttft_s, table.ttft_s))
    yield ""
    yield f"{len(rows)} rows after merging exact copies; {len(rows) - len(fit)} set aside (a row may have several reasons):"
    for reason in REASONS:
        yield f"  {sum(reason in unfit_reasons(row) for row in rows):4d}  {reason}"
    low_tpot, low_ttft = below_roofline(fit)
    yield f"below the datasheet's roofline: {len(low_tpot)} TPOT and {len(low_ttft)} TTFT of the {len(fit)} rows kept"
    low_tpot, low_ttft = below_roofline(rows)
    yield f"  among all {len(rows)}: {len(low_tpot)} TPOT and {len(low_ttft)} TTFT, every one set aside above"


def _silicon_tests(rows: list[Row], fit: list[Row]) -> list[tuple[str, list[Row], int, list[str]]]:
    def named(kept: list[Row], part: slice) -> list[str]:
        return [" on ".join(row.group.split(" on ")[part]) for row in kept]

    both, model, system = slice(0, 2), slice(0, 1), slice(1, 2)
    return [
        (f"unseen (model, system), {N_FOLDS} folds", fit, N_FOLDS, named(fit, both)),
        ("unseen (model, system), one left out at a time", fit, ONE_GROUP_A_FOLD, named(fit, both)),
        ("unseen model", fit, ONE_GROUP_A_FOLD, named(fit, model)),
        ("unseen system", fit, ONE_GROUP_A_FOLD, named(fit, system)),
        (f"nothing set aside, {N_FOLDS} folds", rows, N_FOLDS, named(rows, both)),
    ]


def _held_line(name: str, held: HeldOut) -> str:
    return _closed_line(name, held.tpot, held.ttft)


def _closed_line(name: str, tpot: Score, ttft: Score) -> str:
    cells = [f"{s.median:6.1%} {s.mean:6.1%}  {s.rank:.3f}" for s in (tpot, ttft)]
    return f"{name:48s} {tpot.n_rows:5d}   {cells[0]:21s} {cells[1]:21s}"


def vllm_lines() -> Iterator[str]:
    """Yield the two vLLM runs through the twin."""
    yield "TWIN, two vLLM 0.19 runs of 300 requests, Llama-3.1-8B (LLMServingSim's logs); error of the mean"
    yield f"{'':78s} {'TTFT':>7s} {'TPOT':>7s} {'E2E':>7s}  {'each E2E':>8s}"
    runs = {card.accelerator: measured_requests(card) for card in CARDS}
    for measured_kernels in (False, True):
        peaks = "measured kernels" if measured_kernels else "data sheet"
        start = VLLM_START if measured_kernels else DEFAULT.to_dict()
        fits = {
            card.accelerator: fit_run(card, runs[card.accelerator], measured_kernels=measured_kernels).constants
            for card in CARDS
        }
        for card, other in zip(CARDS, reversed(CARDS), strict=True):
            name, requests = card.accelerator, runs[card.accelerator]
            for what, constants, first in (
                ("uncalibrated", start, 0),
                ("fitted to its first half, second half scored", fits[name], len(requests.arrival_s) // 2),
                (f"carried over from {other.accelerator}", fits[other.accelerator], 0),
            ):
                result = score_run(card, requests, constants, first=first, measured_kernels=measured_kernels)
                yield _run_line(f"{name} ({peaks}), {what}", result)


def _run_line(name: str, run: RunScore) -> str:
    return f"{name:78s} {run.ttft_mean:+7.1%} {run.tpot_mean:+7.1%} {run.e2e_mean:+7.1%}  {run.e2e_each:8.1%}"


def mlenergy_lines(folder: Path | None) -> Iterator[str]:
    """Yield ML.ENERGY's spacing between tokens and watts, if the folder holds its rows."""
    yield "ML.ENERGY chat runs, spacing between tokens and watts of an accelerator"
    rows = mlenergy_rows(folder) if folder else None
    if rows is None:
        yield f"  {NOT_RUN}"
        return
    for accelerator in ("h100-sxm", "b200-sxm"):
        curve = unseen_batch_sizes(rows, accelerator)
        yield (
            f"{accelerator}: unseen batch size between seen ones, {curve.n_points} points: ITL median "
            f"{curve.itl_median:.1%}, {curve.itl_within_10_percent:.1%} within 10 %; watts median "
            f"{curve.watts_median:.1%}, {curve.watts_within_10_percent:.1%} within 10 %"
        )
        itl, watts = unseen_models(rows, accelerator)
        yield (
            f"{accelerator}: published defaults, nothing of these runs seen but three shares of power: "
            f"{itl.n_rows} points, ITL median {itl.median:.1%} rank {itl.rank:.2f}, watts median {watts.median:.1%}"
        )


def mlperf_lines() -> Iterator[str]:
    """Yield MLPerf's throughput and wall power beside the model's."""
    yield "MLPerf Inference v5.1 (2025-09), none of it fitted but the host power of a B200 server"
    yield f"{'':56s} {'tok/s':>9s} {'error':>8s} {'J/token':>9s} {'tok/s given':>12s} {'end to end':>11s}"
    results = mlperf_scores()
    for r in results:
        name = f"{r.mlperf_id} {r.accelerator:13s} {r.model:15s} {r.scenario}"
        line = f"{name:56s} {r.tokens_per_s:9.0f} {r.throughput:+8.1%}"
        if isfinite(r.joules_per_token):
            line += f" {r.joules_per_token:9.3f} {r.given_throughput:+12.1%} {r.end_to_end:+11.1%}"
        yield line
    measured = [r for r in results if isfinite(r.joules_per_token)]
    yield (
        f"J/token: worst {max(abs(r.given_throughput) for r in measured):.1%} with the throughput given; "
        f"end to end median {np.median([abs(r.end_to_end) for r in measured]):.1%}, "
        f"worst {max(abs(r.end_to_end) for r in measured):.1%}"
    )


if __name__ == "__main__":
    sys.exit(main())
