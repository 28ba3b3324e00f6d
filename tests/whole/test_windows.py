"""Representative windows against the whole: one day at real load, run whole and from windows, through the same twin."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from baseload import jit

jit.enable()

from baseload.app import windowed  # noqa: E402  (numba must be loaded before the kernel)
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


def test_windows_tell_of_the_whole_day(prepared: Prepared) -> None:
    """Some hours of a day, weighted, show the day's latency and energy within their confidence intervals."""
    rows: list[Any] = []
    simulate_source(prepared.twin, prepared.source, emit=lambda out: rows.append(out.copy()))
    whole = _figures(rows, 0.0)
    windows = windowed.choose(prepared.source, N_WINDOWS, seed=3)
    parts = windowed.run_windows(
        windows,
        prepared.source,
        twin_at=prepared.twin_at,
        simulate=simulate_source,
        emit=lambda out: None,
        breathe=None,
    )
    weighted = sum(w.weight * part[3]["ttft_s_mean"][1] for w, part in zip(windows, parts, strict=True))
    assert weighted == pytest.approx(whole["requests"], rel=0.02)
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
