"""Energise: when a grid phase carries power, as a network of stages with uncertain lengths that may be withdrawn.

A stage starts when those before it are done; the phase is energised when all are done (PERT: Malcolm, Roseboom,
Clark, Fazar, "Application of a Technique for Research and Development Program Evaluation", Operations Research 7,
1959). Lengths come in two forms, after what people can say. Least, most likely and most months: the PERT beta, bounded
as an engineer means it. P10, P50 and P90: the distribution through three quantiles of Myerson ("Probability Models
for Economic Decisions", 2005), which is a shifted lognormal where the late side is longer, as delays are.

Stages of one phase slip together (one utility, one permit office, one supply of transformers): a share `rho` of the
variance of each is common (Gaussian copula). Independent stages would make the band of a long chain too narrow.
Times are months from today; months already spent, and stages already done, condition what is left.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from math import exp, inf, log, sqrt
from statistics import NormalDist
from typing import Literal

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float64]
Z90 = NormalDist().inv_cdf(0.9)
MONTHS_PER_YEAR = 12.0
_GRID = np.linspace(-6.0, 6.0, 2401)
_CDF = np.array([NormalDist().cdf(float(z)) for z in _GRID])


@dataclass(frozen=True, slots=True)
class Length:
    """How long a stage takes, in months: three numbers by kind; `fixed` has one and no doubt."""

    kind: Literal["fixed", "pert", "quantiles"]
    low: float  # least, or P10
    middle: float  # most likely, or P50
    high: float  # most, or P90


def fixed(months: float) -> Length:
    """Return a length without doubt.

    >>> moments(fixed(6.0))
    (6.0, 0.0)
    """
    assert months >= 0.0, months
    return Length("fixed", months, months, months)


def pert(least: float, likely: float, most: float) -> Length:
    """Return the PERT beta distribution: mean (a + 4m + b) / 6, density bounded by a and b.

    >>> mean, variance = moments(pert(2.0, 4.0, 12.0))
    >>> mean, round(variance, 3)
    (5.0, 3.0)
    """
    assert 0.0 <= least <= likely <= most, (least, likely, most)
    return fixed(least) if least == most else Length("pert", least, likely, most)


def quantiles(p10: float, p50: float, p90: float) -> Length:
    """Return Myerson's distribution through three quantiles: a shifted lognormal where p90 - p50 > p50 - p10.

    >>> [round(float(m), 6) for m in months_at(quantiles(6.0, 10.0, 20.0), np.array([-Z90, 0.0, Z90]))]
    [6.0, 10.0, 20.0]
    """
    assert 0.0 <= p10 < p50 < p90, (p10, p50, p90)
    return Length("quantiles", p10, p50, p90)


def _lognormal(length: Length) -> tuple[float, float, float]:
    """Return (shift, scale, sigma) of shift + scale exp(sigma z); only where the two sides differ."""
    ratio = (length.high - length.middle) / (length.middle - length.low)
    scale = (length.high - length.middle) / (ratio - 1.0)
    return length.middle - scale, scale, log(ratio) / Z90


def _even(length: Length) -> bool:
    ratio = (length.high - length.middle) / (length.middle - length.low)
    return abs(ratio - 1.0) < 1e-6


@lru_cache(maxsize=256)
def _pert_table(length: Length) -> Floats:
    """Return the months at each z of the grid, by integrating the beta density."""
    a, m, b = length.low, length.middle, length.high
    x = np.linspace(0.0, 1.0, 4001)
    alpha, beta = 1.0 + 4.0 * (m - a) / (b - a), 1.0 + 4.0 * (b - m) / (b - a)
    middle = (x[1:] + x[:-1]) / 2.0
    density = np.concatenate([[0.0], middle ** (alpha - 1.0) * (1.0 - middle) ** (beta - 1.0)])
    share = np.cumsum(density)
    return np.asarray(a + (b - a) * np.interp(_CDF, share / share[-1], x))


def months_at(length: Length, z: Floats) -> Floats:
    """Return the months at standard normal scores z: the quantile function at Phi(z); never below 0.

    >>> round(float(months_at(pert(2.0, 4.0, 12.0), np.array([-9.0]))[0]), 3)
    2.0
    """
    if length.kind == "fixed":
        return np.full(np.shape(z), length.middle)
    if length.kind == "pert":
        return np.interp(z, _GRID, _pert_table(length))
    if _even(length):
        return np.maximum(0.0, length.middle + (length.high - length.middle) * z / Z90)
    shift, scale, sigma = _lognormal(length)
    return np.maximum(0.0, shift + scale * np.exp(sigma * np.asarray(z)))


def score(length: Length, months: float) -> float:
    """Return the z at which a length takes these months: the inverse of `months_at`, within -6 … 6.

    >>> round(score(quantiles(6.0, 10.0, 20.0), 20.0), 3)
    1.282
    """
    if length.kind == "fixed":
        return 0.0
    table = months_at(length, _GRID)
    if months <= table[0]:
        return float(_GRID[0])
    return float(np.interp(months, table, _GRID))


def moments(length: Length) -> tuple[float, float]:
    """Return mean (months) and variance in closed form, before the cut at 0.

    >>> mean, variance = moments(quantiles(6.0, 10.0, 20.0))
    >>> round(mean, 2), round(variance, 1)
    (11.94, 49.4)
    """
    if length.kind == "fixed":
        return length.middle, 0.0
    if length.kind == "pert":
        mean = (length.low + 4.0 * length.middle + length.high) / 6.0
        return mean, (mean - length.low) * (length.high - mean) / 7.0
    if _even(length):
        return length.middle, ((length.high - length.middle) / Z90) ** 2
    shift, scale, sigma = _lognormal(length)
    return shift + scale * exp(sigma**2 / 2.0), scale**2 * exp(sigma**2) * (exp(sigma**2) - 1.0)


def chain_moments(lengths: Sequence[Length], rho: float = 0.0) -> tuple[float, float]:
    """Return mean and variance of stages one after the other: the check of the sampling.

    Exact for rho = 0 and for shifted lognormals (their covariance is s_i s_j e^((o_i^2+o_j^2)/2) (e^(rho o_i o_j) - 1));
    with a PERT beta or an even length in the pair, rho is taken as the correlation of the lengths themselves.

    >>> chain_moments([pert(2.0, 4.0, 12.0), fixed(3.0), pert(2.0, 4.0, 12.0)])
    (13.0, 6.0)
    """
    assert 0.0 <= rho <= 1.0, rho
    each = [moments(one) for one in lengths]
    variance = sum(var for _, var in each)
    for i, one in enumerate(lengths):
        for j in range(i):
            variance += 2.0 * _covariance(one, lengths[j], rho)
    return sum(mean for mean, _ in each), variance


def _covariance(one: Length, other: Length, rho: float) -> float:
    if all(length.kind == "quantiles" and not _even(length) for length in (one, other)):
        (_, scale, sigma), (_, scale2, sigma2) = _lognormal(one), _lognormal(other)
        return scale * scale2 * exp((sigma**2 + sigma2**2) / 2.0) * (exp(rho * sigma * sigma2) - 1.0)
    return rho * sqrt(moments(one)[1] * moments(other)[1])


@dataclass(frozen=True, slots=True, kw_only=True)
class Stage:
    """One stage of a phase. Months are from today: what is past is negative."""

    name: str
    length: Length
    after: tuple[str, ...] = ()  # names of stages that come before
    done_month: float | None = None  # when it was done, at most 0
    started_month: float = 0.0  # of a stage with nothing before it; at most 0 if it began already


@dataclass(frozen=True, slots=True, kw_only=True)
class Hazard:
    """The rate of withdrawal a year by age since the request: piecewise constant, the last piece for ever."""

    from_year: tuple[float, ...] = (0.0,)
    per_year: tuple[float, ...] = (0.0,)

    def cumulative(self, years: Floats | float) -> Floats:
        """Return the integral of the rate from age 0.

        >>> [float(h) for h in Hazard(from_year=(0.0, 2.0), per_year=(0.3, 0.1)).cumulative(np.array([1.0, 4.0]))]
        [0.3, 0.8]
        """
        years = np.maximum(0.0, np.asarray(years, float))
        ends = (*self.from_year[1:], inf)
        total = np.zeros_like(years)
        for start, end, rate in zip(self.from_year, ends, self.per_year):
            total += rate * np.clip(years - start, 0.0, end - start)
        return total

    def age_at(self, cumulative: Floats) -> Floats:
        """Return the age in years at which the integral reaches a value; inf where it never does."""
        edges = np.asarray(self.from_year)
        at_edges = self.cumulative(edges)
        i = np.searchsorted(at_edges, cumulative, side="right") - 1
        rate = np.asarray(self.per_year)[i]
        with np.errstate(divide="ignore", invalid="ignore"):
            over = np.where(rate > 0.0, (cumulative - at_edges[i]) / rate, inf)
        return np.asarray(edges[i] + over)


@dataclass(frozen=True, slots=True)
class Draws:
    """What sampling gave: months from today, one entry a draw; inf: never."""

    energised_month: Floats  # inf where it was withdrawn before
    withdrawn_month: Floats  # inf where it was energised
    finish_month: Mapping[str, Floats] = field(default_factory=dict)  # of each stage, were it not withdrawn


def energise(
    stages: Sequence[Stage], *, n: int, seed: int | Sequence[int], rho: float = 0.5,
    hazard: Hazard | None = None, age_months: float = 0.0, certainty: float | None = None,
) -> Draws:  # fmt: skip
    """Return seeded draws of when a phase is energised, given what is done and running today.

    Stages must stand in an order in which those before come first. `certainty`, the chance to be energised at all,
    takes the place of the hazard; it is spread evenly over the time that is left.

    >>> draws = energise([Stage(name="build", length=pert(2.0, 4.0, 12.0))], n=20_000, seed=1)
    >>> round(float(np.mean(draws.energised_month)), 1)
    5.0
    >>> gone = energise([Stage(name="build", length=fixed(24.0))], n=20_000, seed=1, hazard=Hazard(per_year=(0.2,)))
    >>> round(float(np.mean(np.isfinite(gone.energised_month))), 2)  # exp(-0.4) = 0.67
    0.67
    """
    assert n > 0 and 0.0 <= rho < 1.0 and age_months >= 0.0, (n, rho, age_months)
    assert certainty is None or 0.0 <= certainty <= 1.0, certainty
    rng = np.random.default_rng(seed)
    common = _common_factor(stages, rho, n, rng)
    finish: dict[str, Floats] = {}
    for stage in stages:
        finish[stage.name] = _finish(stage, finish, common, rho, rng)
    done = np.max(np.stack(list(finish.values())), axis=0) if finish else np.zeros(n)
    if certainty is not None:
        lost = rng.random(n) >= certainty
        gone = np.where(lost, np.maximum(0.0, done) * rng.random(n), inf)
        gone = np.where(done > 0.0, gone, inf)
    else:
        gone = _withdrawn(hazard or Hazard(), age_months, n, rng)
    kept = (gone >= done) | (done <= 0.0)
    return Draws(np.where(kept, done, inf), np.where(kept, inf, gone), finish)


def _withdrawn(hazard: Hazard, age_months: float, n: int, rng: np.random.Generator) -> Floats:
    spent = float(hazard.cumulative(age_months / MONTHS_PER_YEAR))
    age = hazard.age_at(spent + rng.standard_exponential(n))
    return np.asarray(age * MONTHS_PER_YEAR - age_months)


def _start(stage: Stage, finish: Mapping[str, Floats]) -> Floats | float:
    before = [finish[name] for name in stage.after if name in finish]
    return np.max(np.stack(before), axis=0) if before else stage.started_month


def _known_start(stage: Stage, by_name: Mapping[str, Stage]) -> float | None:
    """Return the month in which a stage began, where everything before it is done; None where not."""
    before = [by_name[name].done_month for name in stage.after if name in by_name]
    known = [month for month in before if month is not None]
    if len(known) < len(before):
        return None
    return max(known) if known else stage.started_month


def _common_factor(stages: Sequence[Stage], rho: float, n: int, rng: np.random.Generator) -> Floats:
    """Draw what the stages share, given how long the done ones took and how long the running ones have.

    Done ones: the normal posterior in closed form. Running ones are only known to last longer than so far: draws are
    weighted by the chance of that and resampled.
    """
    by_name = {stage.name: stage for stage in stages}
    seen, running = [], []
    for stage in stages:
        begun = _known_start(stage, by_name)
        if begun is None or stage.length.kind == "fixed":
            continue
        if stage.done_month is not None and stage.done_month > begun:
            seen.append(score(stage.length, stage.done_month - begun))
        elif stage.done_month is None and begun < 0.0:
            running.append(score(stage.length, -begun))
    precision = 1.0 + len(seen) * rho / (1.0 - rho)
    mean = sqrt(rho) / (1.0 - rho) * sum(seen) / precision
    drawn = mean + rng.standard_normal(n) / sqrt(precision)
    if not running:
        return drawn
    weight = np.ones(n)
    for z in running:
        weight *= 1.0 - _phi((z - sqrt(rho) * drawn) / sqrt(1.0 - rho)) + 1e-12
    steps = (np.arange(n) + rng.random()) / n
    total = np.cumsum(weight)
    picked = drawn[np.minimum(np.searchsorted(total / total[-1], steps), n - 1)]
    rng.shuffle(picked)
    return np.asarray(picked)


def _phi(z: Floats) -> Floats:
    return np.asarray(np.interp(z, _GRID, _CDF, left=0.0, right=1.0))


def _finish(stage: Stage, finish: Mapping[str, Floats], common: Floats, rho: float, rng: np.random.Generator) -> Floats:
    n = len(common)
    own = rng.random(n)  # always one number a draw: a stage that gets done moves no other's draws
    if stage.done_month is not None:
        return np.full(n, stage.done_month)
    start = np.broadcast_to(np.asarray(_start(stage, finish), float), (n,))
    if stage.length.kind == "fixed":
        return np.asarray(np.maximum(0.0, start + stage.length.middle))
    # A stage that runs today lasts longer than so far: its own part is drawn from above the score of that.
    table = months_at(stage.length, _GRID)
    elapsed = np.maximum(0.0, -start)
    floor = np.where(elapsed > table[0], np.interp(elapsed, table, _GRID), -inf)
    least = _phi((floor - sqrt(rho) * common) / sqrt(1.0 - rho))
    share = np.clip(least + own * (1.0 - least), _CDF[0], _CDF[-1])
    z = sqrt(rho) * common + sqrt(1.0 - rho) * np.interp(share, _CDF, _GRID)
    return np.asarray(np.maximum(0.0, start + np.maximum(months_at(stage.length, z), elapsed)))


def chance_by(energised_month: Floats, month: float) -> float:
    """Return the chance that a phase is energised by a month from today.

    >>> chance_by(np.array([1.0, 5.0, 9.0, inf]), 6.0)
    0.5
    """
    return float(np.mean(energised_month <= month))


def megawatts_by(phases: Sequence[tuple[float, Floats]], months: Sequence[float]) -> Floats:
    """Return energised MW by draw and month, from (MW, draws) of each phase.

    >>> megawatts_by([(10.0, np.array([1.0, 9.0])), (5.0, np.array([3.0, 3.0]))], [2.0, 12.0]).tolist()
    [[10.0, 15.0], [0.0, 15.0]]
    """
    assert phases, "no phase"
    at = np.asarray(months, float)
    total = np.zeros((len(phases[0][1]), len(at)))
    for power_mw, drawn in phases:
        total += power_mw * (drawn[:, None] <= at[None, :])
    return total


def band(draws: Floats) -> tuple[Floats, Floats, Floats]:
    """Return P10, P50 and P90 over the draws (first axis). P10 is reached in nine draws of ten.

    >>> [float(p[0]) for p in band(np.arange(11.0)[:, None])]
    [1.0, 5.0, 9.0]
    """
    low, middle, high = np.quantile(draws, [0.1, 0.5, 0.9], axis=0, method="inverted_cdf")
    return low, middle, high
