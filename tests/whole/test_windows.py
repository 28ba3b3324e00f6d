"""Representative windows against the whole: one day at real load, run whole and from windows, through the same twin."""

from __future__ import annotations

from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from baseload import jit

jit.enable()

from baseload.app import windowed  # noqa: E402  (numba must be loaded before the kernel)
from baseload.app.run_meta import site_rows  # noqa: E402
from baseload.app.simulating import Prepared, Wish, prepare, simulate_source  # noqa: E402

N_WINDOWS = 32


@pytest.fixture(scope="module")
def prepared() -> Prepared:
    """One day of a diurnal demand on the three-sites example, at a tenth of its size."""
    wish = Wish(fleet=Path("tests/whole/day.yaml"))
    return prepare(wish)


def _figures(rows: list[Any], start_ns: float) -> dict[str, float]:
    records = np.concatenate(rows)
    records = records[(records["arrival_ns"] >= start_ns) & (records["status"] == 0)]
    ttft_s = (records["first_token_ns"] - records["arrival_ns"] + records["rtt_ns"]) / 1e9
    return {
        "ttft_s_mean": float(ttft_s.mean()),
        "energy_j_per_request": float(records["energy_j"].mean()),
        "requests": float(len(records)),
    }


def _check_totals(windows: list[Any], parts: list[Any], kept: Any, whole: Any) -> None:
    """Hold that what is written, weighted by its place in time, counts no request and no second twice."""
    assert any(b.start_s - b.warmup_s < a.until_s for a, b in pairwise(windows)), "no warm-up lies in another window"
    weights = np.zeros(len(kept))
    for window in windows:
        weights[(kept["arrival_ns"] >= window.start_s * 1e9) & (kept["arrival_ns"] < window.until_s * 1e9)] += (
            window.weight
        )
    assert (weights > 0.0).all()
    assert weights.sum() == pytest.approx(len(whole), rel=0.01)
    assert len(np.unique(kept["request_id"] + kept["arrival_ns"])) == len(kept)
    tables = [
        windowed.within(site_rows(twin, part, offset_ns=round(start_s * 1e9)), window)
        for window, (twin, part, start_s, _) in zip(windows, parts, strict=True)
    ]
    seconds = sum(w.weight * table["length_ns"].sum() / 1e9 for w, table in zip(windows, tables, strict=True))
    assert seconds == pytest.approx(86_400.0, rel=0.01)
    starts = np.concatenate([table["start_ns"] for table in tables])
    assert len(np.unique(starts)) == len(starts)


def test_windows_tell_of_the_whole_day(prepared: Prepared) -> None:
    """Some hours of a day, weighted, show the day's latency and energy within their confidence intervals."""
    rows: list[Any] = []
    kept: list[Any] = []
    simulate_source(prepared.twin, prepared.source, emit=lambda out: rows.append(out.copy()))
    whole = _figures(rows, 0.0)
    windows = windowed.choose(prepared.source, N_WINDOWS, seed=3)
    parts = windowed.run_windows(
        windows,
        prepared.source,
        twin_at=prepared.twin_at,
        simulate=simulate_source,
        emit=lambda out: kept.append(out.copy()),
        breathe=None,
    )
    weighted = sum(w.weight * part[3]["ttft_s_mean"][1] for w, part in zip(windows, parts, strict=True))
    assert weighted == pytest.approx(whole["requests"], rel=0.02)
    assert windowed.span_s(windows) == pytest.approx(86_400.0)
    _check_totals(windows, parts, np.concatenate(kept), np.concatenate(rows))
    notes = {note.split(":")[0]: note for note in windowed.interval_notes(windows, [part[3] for part in parts])}
    for name in ("ttft_s_mean", "energy_j_per_request"):
        low, high = (float(word) for word in notes[name].split("interval ")[1].split(" from")[0].split(" to "))
        assert low <= whole[name] <= high, (notes[name], whole[name])
        assert high / low < 1.25, notes[name]


def test_too_many_windows_are_refused(prepared: Prepared) -> None:
    """Windows that add up to more than the run are refused, with the mend."""
    from baseload.errors import InputError

    with pytest.raises(InputError, match="run it whole"):
        windowed.choose(prepared.source, 1000, seed=0)
    assert replace(Wish(fleet=Path("x")), windows=2).windows == 2
