"""A long run from a few short ones: which windows of it to simulate, what each stands for, and how sure the answer is.

A month at real load is cut into windows of equal length. Windows alike in load and hour of the day form a stratum; a few of
each are drawn, simulated after a warm-up, and weighted by how many they stand for. The load of every window is known
beforehand, so the weights are calibrated to it: they reproduce the number of windows and of requests.
Sources: Cochran, Sampling Techniques (1977), ch. 5 and 6; Deville and Särndal, JASA 87 (1992), for the calibration.
Simulating a window and adding up is the caller's.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float64]
Ints = npt.NDArray[np.int64]
S_PER_DAY = 86_400.0
MOST_CHANGE = 0.5  # of a window's weight by calibration
TRIES = 200
# Quantiles 0.975 of Student's t for 1 to 30 degrees of freedom (any table of it).
T_975 = (
    12.706, 4.303, 3.182, 2.776, 2.571, 2.447, 2.365, 2.306, 2.262, 2.228, 2.201, 2.179, 2.160, 2.145, 2.131,
    2.120, 2.110, 2.101, 2.093, 2.086, 2.080, 2.074, 2.069, 2.064, 2.060, 2.056, 2.052, 2.048, 2.045, 2.042,
)  # fmt: skip


@dataclass(frozen=True, slots=True, kw_only=True)
class Window:
    """A part of a long run to simulate: run from start_s - warmup_s, count what arrives in [start_s, until_s)."""

    start_s: float
    until_s: float
    warmup_s: float
    weight: float  # windows of the long run that it stands for
    stratum: int = 0
    of: int = 1  # windows in its stratum
    requests: float = 0.0  # that arrive in it


@dataclass(frozen=True, slots=True)
class Estimate:
    """What the long run would show, with its 95 % confidence interval."""

    mean: float
    low: float
    high: float


def choose_windows(
    counts_per_bin: Sequence[float] | Floats,
    bin_s: float,
    *,
    k: int,
    window_s: float,
    warmup_s: float,
    seed: int,
) -> list[Window]:
    """Return about `k` windows (all of them where there are no more) that stand for the whole, in order of time.

    `counts_per_bin` are requests in each bin of `bin_s` seconds; a window is a whole number of bins. The last window is
    shorter where they do not divide the run; it always is one of the chosen.
    """
    counts = np.asarray(counts_per_bin, np.float64)
    assert len(counts) and bin_s > 0.0 and k >= 1 and warmup_s >= 0.0, (len(counts), bin_s, k, warmup_s)
    n_bins = min(len(counts), max(1, round(window_s / bin_s)))
    n = len(counts) // n_bins
    load = counts[: n * n_bins].reshape(n, n_bins).sum(axis=1)
    rest = counts[n * n_bins :]
    length_s = n_bins * bin_s

    def at(i: int, weight: float, stratum: int, of: int) -> Window:
        start_s = i * length_s
        return Window(
            start_s=start_s, until_s=start_s + length_s, warmup_s=min(warmup_s, start_s), weight=weight,
            stratum=stratum, of=of, requests=float(counts[i * n_bins : (i + 1) * n_bins].sum()),
        )  # fmt: skip

    strata = _strata(load, length_s, k)
    shares = _shared_out(load, strata, k)
    dice = np.random.Generator(np.random.PCG64(seed))
    chosen, weights = _balanced(load, strata, shares, dice)
    windows = [
        at(int(i), float(weight), h, len(strata[h]))
        for h, picks in enumerate(chosen)
        for i, weight in zip(picks, weights[h])
    ]
    if len(rest):
        tail = at(n, 1.0, len(strata), 1)
        windows.append(replace(tail, until_s=tail.start_s + len(rest) * bin_s))
    return sorted(windows, key=lambda window: window.start_s)


def combine(
    values: Sequence[float] | Floats,
    weights: Sequence[float] | Floats,
    *,
    per: Sequence[float] | Floats | None = None,
    strata: Sequence[int] | Ints | None = None,
    of: Sequence[int] | Ints | None = None,
    known: Sequence[float] | Floats | None = None,
) -> tuple[float, float, float]:
    """Return (mean, ci_low, ci_high) at 95 % of what the long run would show, from one value a window.

    With `per`, the ratio of sums: seconds of TTFT per request, joules per token, good requests per request. `strata` and
    `of` are the windows' own (`Window.stratum`, `Window.of`); without them all windows form one endless stratum. A stratum
    with a single window drawn borrows the spread of the others. `known` is what the weights were calibrated to
    (`Window.requests`): what of the spread follows it is no uncertainty.

    >>> mean, low, high = combine([1.0, 2.0, 3.0], [1.0, 1.0, 1.0])
    >>> round(mean, 3), round(low, 3), round(high, 3)
    (2.0, -0.484, 4.484)
    """
    y, w = np.asarray(values, np.float64), np.asarray(weights, np.float64)
    x = np.ones(len(y)) if per is None else np.asarray(per, np.float64)
    group = np.zeros(len(y), np.int64) if strata is None else np.asarray(strata, np.int64)
    size = np.full(len(y), 2**62) if of is None else np.asarray(of, np.int64)
    assert len(y) == len(w) == len(x) == len(group) == len(size) and len(y) > 0
    base = float((w * x).sum())
    if base <= 0.0:
        return 0.0, 0.0, 0.0
    mean = float((w * y).sum()) / base
    residuals = y - mean * x
    if known is not None:
        residuals = _unexplained(residuals, np.asarray(known, np.float64), w, group)
    error, freedom = _standard_error(w * residuals, group, size)
    half = t_quantile_975(freedom) * error / base
    return mean, mean - half, mean + half


def estimate(
    values: Sequence[float] | Floats, windows: Sequence[Window], per: Sequence[float] | None = None
) -> Estimate:
    """Return the estimate from one value for each window; see `combine`."""
    return Estimate(
        *combine(
            values,
            [window.weight for window in windows],
            per=per,
            strata=[window.stratum for window in windows],
            of=[window.of for window in windows],
            known=[window.requests for window in windows],
        )
    )


def weighted_quantile(values: Floats, weights: Floats, ratio: float) -> float:
    """Return the smallest value that at least `ratio` of the weight does not exceed.

    >>> weighted_quantile(np.array([3.0, 1.0, 2.0]), np.array([1.0, 1.0, 8.0]), 0.5)
    2.0
    """
    assert len(values) == len(weights) > 0 and 0.0 <= ratio <= 1.0
    order = np.argsort(values, kind="stable")
    reached = np.cumsum(weights[order])
    at = int(np.searchsorted(reached, ratio * reached[-1] * (1.0 - 1e-12), side="left"))
    return float(values[order[min(at, len(values) - 1)]])


def t_quantile_975(freedom: float) -> float:
    """Return the 0.975 quantile of Student's t: by table up to 30 degrees of freedom, Cornish-Fisher beyond.

    >>> round(t_quantile_975(10), 3), round(t_quantile_975(1e9), 3)
    (2.228, 1.96)
    """
    f = max(1.0, freedom)
    if f < len(T_975):
        low = int(f)
        return T_975[low - 1] + (f - low) * (T_975[low] - T_975[low - 1])
    z = 1.959964
    return z + (z**3 + z) / (4 * f) + (5 * z**5 + 16 * z**3 + 3 * z) / (96 * f * f)


# ---- strata, and which windows to draw ---------------------------------------------------------------------------


def _trouble(load: Floats) -> Floats:
    """Return what is expected to differ between windows: work, as the load, and waiting, which grows much faster."""
    relative = load / max(float(load.max(initial=0.0)), 1e-300)
    return np.asarray(relative + 3.0 * relative**6)


def _strata(load: Floats, length_s: float, k: int) -> list[Ints]:
    """Return groups of windows alike in load, and within a load level alike in hour of the day."""
    n = len(load)
    if k >= n:
        return [np.array([i]) for i in range(n)]
    n_strata = max(1, k // 2)
    n_levels = max(1, -(-n_strata // 2))
    hour = (np.arange(n) * length_s) % S_PER_DAY
    order = np.argsort(load, kind="stable")
    # Between equal numbers of windows and equal steps of trouble: levels are finer where load is high.
    steps = np.sqrt(np.diff(_trouble(load)[order], prepend=0.0).clip(0.0) + 1.0 / n)
    level_of = np.minimum((np.cumsum(steps) / steps.sum() * n_levels - 1e-9).astype(np.int64), n_levels - 1)
    strata: list[Ints] = []
    for level in range(n_levels):
        members = order[level_of == level]
        by_hour = members[np.argsort(hour[members], kind="stable")]
        halves = 2 if len(strata) + 2 * (n_levels - level) <= n_strata + 1 and len(members) >= 4 else 1
        strata += [part for part in np.array_split(by_hour, halves) if len(part)]
    return strata


def _shared_out(load: Floats, strata: list[Ints], k: int) -> list[int]:
    """Return how many windows each stratum gives: two at least, and more where trouble differs more (Neyman)."""
    drawn = [min(2, len(stratum)) for stratum in strata]
    trouble = _trouble(load)
    spread = np.array([len(s) * (trouble[s].std() + 0.02 * trouble.mean()) for s in strata])
    while sum(drawn) < min(k, len(load)):
        room = np.array([d < len(s) for d, s in zip(drawn, strata)])
        drawn[int(np.argmax(np.where(room, spread / (np.array(drawn) + 0.5), -1.0)))] += 1
    return drawn


def _balanced(
    load: Floats, strata: list[Ints], shares: list[int], dice: np.random.Generator
) -> tuple[list[Ints], list[Floats]]:
    """Draw windows until their loads represent the whole well enough (rejective sampling, Fuller, Biometrika 2009)."""
    best: tuple[float, list[Ints], list[Floats]] | None = None
    for _ in range(TRIES):
        chosen = [np.sort(dice.permutation(stratum)[:m]) for stratum, m in zip(strata, shares)]
        steepest, weights = _calibrated(load, strata, chosen)
        if best is None or steepest < best[0]:
            best = steepest, chosen, weights
        if steepest <= MOST_CHANGE:
            break
    assert best is not None
    return best[1], best[2]


def _calibrated(load: Floats, strata: list[Ints], chosen: list[Ints]) -> tuple[float, list[Floats]]:
    """Return weights that sum to each stratum's size, and with the loads to all requests (linear calibration).

    Also the largest relative change that this took; a change is cut off where a window would count for almost nothing.
    """
    plain = [np.full(len(picks), len(stratum) / len(picks)) for stratum, picks in zip(strata, chosen)]
    off = [load[picks] - load[picks].mean() for picks in chosen]
    missing = float(load.sum()) - sum(float((d * load[picks]).sum()) for d, picks in zip(plain, chosen))
    room = sum(float((d * o * o).sum()) for d, o in zip(plain, off))
    if room <= 0.0 or missing == 0.0:
        return (0.0 if missing == 0.0 else math.inf), plain
    slope = missing / room
    steepest = max(float(np.abs(slope * o).max(initial=0.0)) for o in off)
    cut = min(1.0, 0.9 / steepest)
    return steepest, [d * (1.0 + cut * slope * o) for d, o in zip(plain, off)]


def _unexplained(residuals: Floats, known: Floats, weights: Floats, group: Ints) -> Floats:
    """Return residuals less what a line in `known`, of one slope in all strata, explains of them."""
    off = known.copy()
    for one in np.unique(group).tolist():
        mine = group == one
        off[mine] -= known[mine].mean()
    room = float((weights * off * off).sum())
    taken = len(known) - len(np.unique(group))  # degrees of freedom
    if room <= 0.0 or taken < 3:
        return residuals
    slope = float((weights * off * residuals).sum()) / room
    return (residuals - slope * off) * math.sqrt(taken / (taken - 1))


def _standard_error(residuals: Floats, group: Ints, size: Ints) -> tuple[float, float]:
    """Return the standard error of the residuals' sum, and its degrees of freedom (Satterthwaite)."""
    parts: list[tuple[float, int]] = []
    alone: list[float] = []
    for one in np.unique(group).tolist():
        mine = residuals[group == one]
        m, of = len(mine), int(size[group == one][0])
        if m >= of:
            continue  # all of it was run: no sampling error
        if m == 1:
            alone.append(float(mine[0]))
        else:
            parts.append((m * float(mine.var(ddof=1)) * (1.0 - m / of), m))
    if len(alone) > 1:
        parts.append((len(alone) * float(np.var(alone, ddof=1)), len(alone)))
    elif alone:
        parts.append((alone[0] ** 2, 2))
    variance = sum(v for v, _ in parts)
    if variance <= 0.0:
        return 0.0, 1e9
    return math.sqrt(variance), variance**2 / sum(v * v / (m - 1) for v, m in parts if v > 0.0)
