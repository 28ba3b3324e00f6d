"""Fit: find the constants of a model from measured rows, robustly, and no further than the rows can say.

Works with any forward function: constants in, predicted positive numbers out. Errors are logarithmic, large
ones count linearly (Huber), and each constant is pulled to where it started, so a constant that the rows do not
identify stays put. NumPy only, and deterministic.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]
Forward = Callable[[Mapping[str, float]], Array]

HUBER_LOG = 0.15  # log errors beyond this count linearly: hidden settings, not noise
ROW_LOG = 0.15  # a row's own scatter around a right model
STEP_LOG = 1e-4
LARGEST_MOVE_LOG = 0.7
ROUNDS = 40
WALK_SIZES_LOG = (0.3, 0.2, 0.1)
WALK_STEPS = 40  # a constant, a round


@dataclass(frozen=True, slots=True, kw_only=True)
class Fit:
    """Constants after the fit, and the median absolute relative error before and after."""

    constants: dict[str, float]
    error_before: float
    error_after: float


def calibrate(
    forward: Forward,
    measured: Array,
    start: Mapping[str, float],
    which: Mapping[str, float],
    *,
    weights: Array | None = None,
    smooth: bool = True,
) -> Fit:
    """Fit the constants named in `which` (name: how far it may stray, as a standard deviation of its log).

    `weights` say how many independent observations each row is worth (default 1 each). A forward function that
    jumps (a simulation with queues) is not `smooth`: no slopes then, but a simplex that walks downhill.

    >>> x = np.array([1.0, 2.0, 4.0])
    >>> fit = calibrate(lambda c: c["a"] * x + c["b"], 3.0 * x + 1.0, {"a": 2.0, "b": 1.5},
    ...                 {"a": 1e3, "b": 1e3})
    >>> round(fit.constants["a"], 3), round(fit.constants["b"], 3), round(fit.error_after, 4)
    (3.0, 1.0, 0.0)
    """
    names = [name for name in which if start[name] > 0.0]
    spread = np.array([which[name] for name in names])
    x0 = np.log([start[name] for name in names])
    target = np.log(measured)
    weight = (np.ones(len(target)) if weights is None else weights) / ROW_LOG**2

    def at(x: Array) -> dict[str, float]:
        return dict(start) | {name: float(v) for name, v in zip(names, np.exp(x), strict=True)}

    def residual(x: Array) -> Array:
        gap: Array = np.log(forward(at(x))) - target
        return gap

    def loss(r: Array, x: Array) -> float:
        size = np.abs(r)
        rows = np.where(size < HUBER_LOG, 0.5 * size**2, HUBER_LOG * (size - 0.5 * HUBER_LOG))
        return float((weight * rows).sum() + 0.5 * (((x - x0) / spread) ** 2).sum())

    if not names:
        x = x0
    elif smooth:
        x = _minimise(residual, loss, x0, spread, weight)
    else:
        x = _walk(lambda x: loss(residual(x), x), x0)
    return Fit(
        constants=at(x),
        error_before=median_error(forward(dict(start)), measured),
        error_after=median_error(forward(at(x)), measured),
    )


def _minimise(
    residual: Callable[[Array], Array],
    loss: Callable[[Array, Array], float],
    x0: Array,
    spread: Array,
    weight: Array,
) -> Array:
    """Levenberg-Marquardt with Huber weights and a Gaussian pull towards `x0`."""
    x, damping = x0.copy(), 1e-2
    r = residual(x)
    best = loss(r, x)
    for _ in range(ROUNDS):
        slopes = np.stack([(residual(x + STEP_LOG * unit) - r) / STEP_LOG for unit in np.eye(len(x))], axis=1)
        row_weight = weight * np.minimum(1.0, HUBER_LOG / np.maximum(np.abs(r), 1e-12))
        curvature = slopes.T @ (row_weight[:, None] * slopes) + np.diag(spread**-2.0)
        gradient = slopes.T @ (row_weight * r) + (x - x0) / spread**2
        for _ in range(10):
            move = np.linalg.solve(curvature + damping * np.diag(np.diag(curvature)), gradient)
            tried: Array = x - np.clip(move, -LARGEST_MOVE_LOG, LARGEST_MOVE_LOG)
            r_tried = residual(tried)
            found = loss(r_tried, tried)
            if found < best:
                break
            damping *= 4.0
        else:
            return x
        done = best - found < 1e-10 * best
        x, r, best, damping = tried, r_tried, found, max(damping / 5.0, 1e-6)
        if done:
            break
    return x


def _walk(loss: Callable[[Array], float], x0: Array) -> Array:
    """Nelder-Mead (1965), started anew from its best point until a fresh simplex finds nothing better."""
    x, best = x0, loss(x0)
    for size in WALK_SIZES_LOG:
        corners = [(best, x)] + [(loss(x + size * unit), x + size * unit) for unit in np.eye(len(x))]
        for _ in range(WALK_STEPS * len(x)):
            corners.sort(key=lambda corner: corner[0])
            if corners[-1][0] - corners[0][0] < 1e-6 * abs(corners[0][0]):
                break
            centre = np.mean([point for _, point in corners[:-1]], axis=0)
            worst = corners[-1][1]
            away = 2.0 * centre - worst
            reflected = loss(away)
            if reflected < corners[0][0]:
                further = 3.0 * centre - 2.0 * worst
                expanded = loss(further)
                corners[-1] = (expanded, further) if expanded < reflected else (reflected, away)
            elif reflected < corners[-2][0]:
                corners[-1] = (reflected, away)
            else:
                inside = 0.5 * (centre + (away if reflected < corners[-1][0] else worst))
                contracted = loss(inside)
                if contracted < min(reflected, corners[-1][0]):
                    corners[-1] = (contracted, inside)
                else:
                    near = corners[0][1]
                    halves = [0.5 * (near + point) for _, point in corners[1:]]
                    corners[1:] = [(loss(point), point) for point in halves]
        best, x = min(corners, key=lambda corner: corner[0])
    return x


def errors(predicted: Array, measured: Array) -> Array:
    """Return absolute relative errors.

    >>> errors(np.array([1.1, 0.5]), np.array([1.0, 1.0])).round(3).tolist()
    [0.1, 0.5]
    """
    return np.asarray(np.abs(predicted / measured - 1.0))


def median_error(predicted: Array, measured: Array) -> float:
    """Return the median of the relative errors."""
    return float(np.median(errors(predicted, measured)))


def rank_correlation(a: Array, b: Array) -> float:
    """Return Spearman's rank correlation (ties broken by position).

    >>> rank_correlation(np.array([1.0, 5.0, 3.0]), np.array([10.0, 30.0, 20.0]))
    1.0
    """
    ranks = [np.argsort(np.argsort(v, kind="stable"), kind="stable") for v in (a, b)]
    return round(float(np.corrcoef(ranks[0], ranks[1])[0, 1]), 12)


def balanced_folds(groups: list[str], n_folds: int) -> NDArray[np.int64]:
    """Return a fold for each row so that a group is never split: largest first, into the emptiest fold.

    >>> balanced_folds(["a", "a", "b", "c"], 2).tolist()
    [0, 0, 1, 1]
    """
    sizes = {g: groups.count(g) for g in sorted(set(groups))}
    filled = [0] * min(n_folds, len(sizes))
    fold_of = {}
    for group in sorted(sizes, key=lambda g: (-sizes[g], g)):
        fold_of[group] = filled.index(min(filled))
        filled[fold_of[group]] += sizes[group]
    return np.array([fold_of[g] for g in groups], dtype=np.int64)
