"""Months at real load: representative windows, each run with its warm-up, weighted, with confidence intervals.

Which windows stand for the whole is `simulate/windows.py`. Each is a run of its own on a fresh twin, its records moved to
their place on the run's time axis, so that the report reads one folder like any other.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from baseload.errors import InputError
from baseload.records import SERVED
from baseload.simulate.run import Outcome

if TYPE_CHECKING:
    from baseload.adapters.traces import TraceSource
    from baseload.simulate.run import Moment
    from baseload.simulate.setup import Twin
    from baseload.simulate.windows import Window

BIN_S = 300.0
WINDOW_S = 900.0
WARM_UP_S = 300.0

Rows = npt.NDArray[Any]
NS_COLUMNS = ("arrival_ns", "scheduled_ns", "first_token_ns", "finish_ns")


def choose(source: TraceSource, n: int, seed: int) -> list[Window]:
    """Return `n` windows that stand for the whole source; raises InputError where it is too short for that."""
    from baseload.adapters.traces import counts_per_bin
    from baseload.simulate.windows import choose_windows

    counts = counts_per_bin(source, BIN_S)
    length_s = len(counts) * BIN_S
    if n * (WINDOW_S + WARM_UP_S) >= length_s:
        raise InputError(
            f"--windows {n}: {n} windows of {WINDOW_S / 60:.0f} min with {WARM_UP_S / 60:.0f} min of warm-up are no shorter "
            f"than the whole {length_s / 3600:.1f} h; run it whole, or ask for fewer"
        )
    return choose_windows(counts, BIN_S, k=n, window_s=WINDOW_S, warmup_s=WARM_UP_S, seed=seed)


def run_windows(
    windows: list[Window],
    source: TraceSource,
    *,
    twin_at: Callable[[float, float], Twin],
    simulate: Callable[..., Outcome],
    emit: Callable[[Rows], None],
    breathe: Callable[[Moment], None] | None,
) -> list[tuple[Twin, Outcome, float, dict[str, tuple[float, float]]]]:
    """Run each window; return (twin, outcome, its start on the run's axis in s, its figures) of each.

    Only what arrives within a window is emitted: a warm-up may lie in the window before, where it counts already.
    `twin_at(start_s, length_s)` describes the fleet as it is then: prices, weather and outages move on.
    """
    from baseload.adapters.trace_transforms import window as cut
    from baseload.app.run_meta import unfinished_rows

    parts = []
    for window in windows:
        start_s = max(0.0, window.start_s - window.warmup_s)
        twin = twin_at(start_s, window.until_s - start_s)
        kept: list[Rows] = []

        def keep(
            rows: Rows, start_s: float = start_s, kept: list[Rows] = kept,
            first_s: float = window.start_s, until_s: float = window.until_s,
        ) -> None:  # fmt: skip
            moved = rows.copy()
            for name in NS_COLUMNS:
                moved[name] = np.where(rows[name] >= 0, rows[name] + round(start_s * 1e9), rows[name])
            at_ns = moved["arrival_ns"]
            moved = moved[(at_ns >= round(first_s * 1e9)) & (at_ns < round(until_s * 1e9))]
            kept.append(moved)
            emit(moved)

        outcome = simulate(twin, cut(source, start_s, window.until_s), emit=keep, breathe=breathe)
        keep(unfinished_rows(outcome))
        figures = window_figures(np.concatenate(kept) if kept else None, window)
        parts.append((twin, outcome, start_s, figures))
    return parts


def window_figures(rows: Rows | None, window: Window) -> dict[str, tuple[float, float]]:
    """Return (sum, count) of a window's figures, of which the run's are ratios; arrivals in its warm-up are left out."""
    length_s = window.until_s - window.start_s
    if rows is None:
        return {"requests_per_s": (0.0, length_s)}
    inside = rows[(rows["arrival_ns"] >= window.start_s * 1e9) & (rows["arrival_ns"] < window.until_s * 1e9)]
    served = inside[inside["status"] == SERVED]
    n = float(len(served))
    ttft_s = (served["first_token_ns"] - served["arrival_ns"] + served["rtt_ns"]) / 1e9
    tpot_s = (served["finish_ns"] - served["first_token_ns"]) / 1e9 / np.maximum(served["output_tokens"] - 1, 1)
    return {
        "requests_per_s": (float(len(inside)), length_s),
        "served_ratio": (n, float(len(inside))),
        "ttft_s_mean": (float(ttft_s.sum()), n),
        "tpot_s_mean": (float(tpot_s.sum()), n),
        "energy_j_per_request": (float(served["energy_j"].sum()), n),
    }


def within(table: dict[str, Rows], window: Window) -> dict[str, Rows]:
    """Return the bins of a sites table that lie in the window: its warm-up, and what runs on after it, stand for nothing."""
    middle_ns = table["start_ns"] + table["length_ns"] // 2
    inside = (middle_ns >= window.start_s * 1e9) & (middle_ns < window.until_s * 1e9)
    return {name: column[inside] for name, column in table.items()}


def span_s(windows: list[Window]) -> float:
    """Return the time that windows stand for together."""
    return sum(window.weight * (window.until_s - window.start_s) for window in windows)


def interval_notes(windows: list[Window], figures: list[dict[str, tuple[float, float]]]) -> list[str]:
    """Return a sentence for each figure: what the whole run would show, with its 95 % confidence interval."""
    from baseload.simulate.windows import estimate

    notes = []
    for name in figures[0]:
        sums = [row.get(name, (0.0, 0.0))[0] for row in figures]
        counts = [row.get(name, (0.0, 0.0))[1] for row in figures]
        if sum(counts) <= 0.0:
            continue
        found = estimate(sums, windows, per=counts)
        notes.append(
            f"{name}: {found.mean:.4g}, 95 % confidence interval {found.low:.4g} to {found.high:.4g} "
            f"from {len(windows)} windows"
        )
    return notes


def merged(parts: list[Outcome], windows: list[Window]) -> tuple[Rows, Outcome]:
    """Return the replicas of all windows added up by weight, and an outcome whose counts are the plain sums.

    Warm-up and what runs on after a window are in its replicas, so each is weighted by what it stands for over what was
    simulated: the replicas' times add up to the time that all windows together stand for.
    """
    weights = [
        window.weight * (window.until_s - window.start_s) * 1e9 / max(part.end_ns, 1)
        for part, window in zip(parts, windows, strict=True)
    ]
    total = parts[0].world.replicas.copy()
    summed = ("n_steps", "busy_ns", "prefill_ns", "powered_ns", "down_ns", "prefill_tokens", "decode_tokens",
              "cached_tokens", "served", "n_preempted")  # fmt: skip
    for name in summed:
        column = sum(w * part.world.replicas[name] for part, w in zip(parts, weights, strict=True))
        total[name] = np.rint(np.asarray(column)).astype(np.int64)
    for name in ("energy_j", "busy_idle_j"):
        total[name] = sum(w * part.world.replicas[name] for part, w in zip(parts, weights, strict=True))
    total["blocks_peak"] = np.max([part.world.replicas["blocks_peak"] for part in parts], axis=0)
    last = parts[-1]
    counts = [sum(getattr(part, name) for part in parts)
              for name in ("n_in", "served", "refused", "failed", "unfinished")]  # fmt: skip
    return total, Outcome(last.world._replace(replicas=total), last.end_ns, *counts)
