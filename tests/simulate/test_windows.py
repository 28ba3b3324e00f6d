"""A few windows stand for a long run: weights reproduce what is known, and intervals hold what they promise."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from baseload.simulate.windows import T_975, choose_windows, combine, estimate, t_quantile_975, weighted_quantile

WINDOW_S = 600.0


def load_curve(seed: int, days: int = 1) -> np.ndarray:
    """Return requests a minute of a day-night rhythm with slow drift and Poisson noise."""
    dice = np.random.default_rng(seed)
    at_s = np.arange(1440 * days) * 60.0
    drift = np.exp(dice.normal(0, 0.001, len(at_s)).cumsum())
    return dice.poisson(1200 * (1 + 0.6 * np.cos(2 * np.pi * (at_s / 3600 - 14) / 24)) * drift).astype(float)


def measured(load: np.ndarray, seed: int) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """Return what a twin might measure in each window, as (sum, per): waiting, kept promises, energy."""
    dice = np.random.default_rng([seed, 7])
    busy = load / load.max() * 0.9
    ttft_s = (0.2 + 0.3 * busy**2 / (1 - busy)) * np.exp(dice.normal(0, 0.15, len(load)))
    kept = np.clip(1 - busy**8 * dice.uniform(0, 0.3, len(load)), 0, 1)
    energy = 50 + 100 * busy + dice.normal(0, 4, len(load))
    return {"ttft_s": (ttft_s * load, load), "kept": (kept * load, load), "energy": (energy, np.ones(len(load)))}


@pytest.mark.parametrize("q", [1, 3, 10, 30, 40, 120, 1e6])
def test_t_quantiles_are_those_of_the_tables(q: float):
    """Quantiles agree with SciPy's to three digits."""
    from scipy import stats

    assert t_quantile_975(q) == pytest.approx(stats.t.ppf(0.975, q), abs=1e-3)
    assert len(T_975) == 30


@pytest.mark.parametrize(("days", "k"), [(1, 16), (1, 24), (30, 60)])
def test_intervals_hold_the_truth_nineteen_times_in_twenty(days: int, k: int):
    """Over 150 runs, about 95 % of intervals hold what the whole run would have shown, for waiting, SLO and energy."""
    held: dict[str, list[bool]] = {}
    for seed in range(150):
        curve = load_curve(seed, days)
        load = curve.reshape(-1, 10).sum(axis=1)
        windows = choose_windows(curve, 60.0, k=k, window_s=WINDOW_S, warmup_s=300.0, seed=seed)
        at = [round(window.start_s / WINDOW_S) for window in windows]
        for name, (total, per) in measured(load, seed).items():
            found = estimate(total[at], windows, per=per[at])
            held.setdefault(name, []).append(found.low <= total.sum() / per.sum() <= found.high)

    assert all(np.mean(hits) >= 0.9 for hits in held.values()), {name: np.mean(hits) for name, hits in held.items()}


def test_a_month_needs_few_windows():
    """Sixty windows of ten minutes (1.4 % of a month) know the mean energy to 2 % and the mean waiting to 10 %."""
    curve = load_curve(1, days=30)
    load = curve.reshape(-1, 10).sum(axis=1)
    windows = choose_windows(curve, 60.0, k=60, window_s=WINDOW_S, warmup_s=300.0, seed=1)
    at = [round(window.start_s / WINDOW_S) for window in windows]
    total, per = measured(load, 1)["ttft_s"]
    waiting = estimate(total[at], windows, per=per[at])
    total, per = measured(load, 1)["energy"]
    energy = estimate(total[at], windows, per=per[at])

    assert (waiting.high - waiting.low) / 2 < 0.1 * waiting.mean
    assert (energy.high - energy.low) / 2 < 0.02 * energy.mean


@given(
    days=st.integers(1, 4),
    k=st.integers(4, 80),
    seed=st.integers(0, 10**6),
    window_s=st.sampled_from([60.0, 600.0, 700.0, 3600.0]),
)
def test_weights_reproduce_the_whole(days: int, k: int, seed: int, window_s: float):
    """Weights sum to the number of windows, and with the loads to all requests within 1 %; windows lie apart."""
    curve = load_curve(seed, days)
    windows = choose_windows(curve, 60.0, k=k, window_s=window_s, warmup_s=900.0, seed=seed)
    bins = round(window_s / 60.0)
    weights = np.array([window.weight for window in windows])
    counts = np.array([curve[int(w.start_s // 60) : int(w.until_s // 60)].sum() for w in windows])
    whole, rest = divmod(len(curve), bins)

    assert weights.sum() == pytest.approx(whole + bool(rest))
    if len(windows) >= 8:
        assert (weights * counts).sum() == pytest.approx(curve.sum(), rel=0.01)
    assert (weights > 0).all()
    assert counts.tolist() == [window.requests for window in windows]
    assert all(a.until_s <= b.start_s for a, b in zip(windows, windows[1:]))
    assert all(0 <= w.warmup_s <= min(900.0, w.start_s) for w in windows)
    assert len(windows) <= max(k, 2) + 1 + 2


@given(k=st.integers(1, 40), counts=st.lists(st.integers(0, 50), min_size=1, max_size=200), seed=st.integers(0, 99))
def test_any_load_curve_has_windows(k: int, counts: list[int], seed: int):
    """Short, empty and flat curves, and a single window, give windows with finite weights."""
    windows = choose_windows(counts, 10.0, k=k, window_s=50.0, warmup_s=10.0, seed=seed)

    assert windows and all(np.isfinite(window.weight) and window.weight > 0 for window in windows)
    assert all(np.isfinite(estimate([w.requests for w in windows], windows).mean) for _ in (1,))


def test_all_windows_leave_no_doubt():
    """When every window is simulated the answer is the whole run's, with an interval of no width."""
    curve = load_curve(2)
    windows = choose_windows(curve, 60.0, k=1000, window_s=WINDOW_S, warmup_s=60.0, seed=1)
    found = estimate([window.requests for window in windows], windows)

    assert len(windows) == 144 and {window.weight for window in windows} == {1.0}
    assert found.mean == pytest.approx(curve.sum() / 144)
    assert found.high - found.low == pytest.approx(0.0, abs=1e-9)


def test_the_same_seed_chooses_the_same_windows():
    """Windows are drawn, and the draw is the seed's."""
    curve = load_curve(3)
    a, b, c = (choose_windows(curve, 60.0, k=12, window_s=WINDOW_S, warmup_s=60.0, seed=seed) for seed in (1, 1, 2))

    assert a == b != c


def test_a_simple_sample_has_the_textbook_interval():
    """Without strata, the interval is Student's: mean 5, standard error sqrt(2.5/5), 4 degrees of freedom."""
    mean, low, high = combine([3.0, 4.0, 5.0, 6.0, 7.0], [2.0] * 5)

    assert mean == 5.0
    assert high - mean == pytest.approx(2.776 * (2.5 / 5) ** 0.5, rel=1e-3)
    assert mean - low == pytest.approx(high - mean)


@given(st.lists(st.tuples(st.floats(-1e6, 1e6), st.floats(0.001, 1e3)), min_size=1, max_size=30), st.floats(0, 1))
def test_a_weighted_quantile_has_its_share_below(pairs: list[tuple[float, float]], ratio: float):
    """At least the ratio of the weight does not exceed it, and less than the ratio lies strictly below."""
    values, weights = np.array([v for v, _ in pairs]), np.array([w for _, w in pairs])
    found = weighted_quantile(values, weights, ratio)

    assert weights[values <= found].sum() >= ratio * weights.sum() * (1 - 1e-9)
    assert weights[values < found].sum() <= ratio * weights.sum() * (1 + 1e-9)
