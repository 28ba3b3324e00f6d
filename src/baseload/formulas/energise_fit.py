"""Fit of queue outcomes: how long requests take that are built, how fast others are withdrawn, how good that was.

Two risks compete for each request: completion, lognormal in its time since the request, and withdrawal, a rate a year
by age (Prentice et al., "The Analysis of Failure Times in the Presence of Competing Risks", Biometrics 34, 1978).
What has neither happened is censored at the day of the data. Times are years. `energise.py` uses what this fits.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import exp, log, pi, sqrt
from statistics import NormalDist

import numpy as np
import numpy.typing as npt

from baseload.formulas.energise import Hazard

Floats = npt.NDArray[np.float64]
AGES = (0.0, 1.0, 2.0, 4.0, 7.0)  # pieces of the rate of withdrawal, years since the request
DAYS_PER_YEAR = 365.25
_STEP = 1.0 / 24.0  # of the grid of years
_YEARS = np.arange(_STEP / 2.0, 60.0, _STEP)


@dataclass(frozen=True, slots=True)
class QueueFit:
    """What was fitted: the latent time to completion and the rate of withdrawal by age."""

    median_years: float
    sigma: float  # of the logarithm
    hazard: Hazard
    requests: int
    completed: int
    withdrawn: int

    def incidence(self, age_years: float = 0.0) -> Floats:
        """Return the chance to be completed by each year of the grid, of a request still active at an age."""
        density = _density(self.median_years, self.sigma) * np.exp(-self.hazard.cumulative(_YEARS))
        density = np.where(age_years < _YEARS, density, 0.0)
        alive = (1.0 - _cdf(age_years, self)) * exp(-float(self.hazard.cumulative(age_years)))
        return np.cumsum(density) * _STEP / max(alive, 1e-12)

    def completed_by(self, years: float, age_years: float = 0.0) -> float:
        """Return the chance that a request active at an age is completed by `years` after its request."""
        return float(np.interp(years, _YEARS + _STEP / 2.0, self.incidence(age_years)))

    def completion_years(self, shares: Sequence[float], age_years: float, until_years: float) -> list[float]:
        """Return quantiles of the time to completion of those that complete between an age and `until_years`."""
        share = self.incidence(age_years)
        share = np.minimum(share, np.interp(until_years, _YEARS + _STEP / 2.0, share))
        return [float(np.interp(one, share / share[-1], _YEARS + _STEP / 2.0)) for one in shares]


def _density(median: float, sigma: float) -> Floats:
    z = (np.log(_YEARS) - log(median)) / sigma
    return np.asarray(np.exp(-0.5 * z * z) / (_YEARS * sigma * sqrt(2.0 * pi)))


def _cdf(years: float, fit: QueueFit) -> float:
    return NormalDist().cdf((log(years) - log(fit.median_years)) / fit.sigma) if years > 0.0 else 0.0


def lognormal_censored(years: Floats, happened: npt.NDArray[np.bool_], rounds: int = 400) -> tuple[float, float]:
    """Return median and sigma of a lognormal from times of which some are only lower bounds: maximum likelihood by EM.

    For a normal variable above c: E = mu + s h, E2 = mu^2 + s^2 + s (c + mu) h, h the hazard of the standard normal
    at (c - mu) / s (Schmee, Hahn, "A Simple Method for Regression Analysis with Censored Data", Technometrics 21, 1979).

    >>> median, sigma = lognormal_censored(np.array([1.0, 2.0, 4.0]), np.array([True, True, True]))
    >>> round(median, 3), round(sigma, 3)
    (2.0, 0.566)
    """
    assert happened.any() and (years > 0.0).all(), "needs completed requests and positive times"
    x = np.log(years)
    mu, sigma = float(x[happened].mean()), max(0.1, float(x[happened].std()))
    bounds = x[~happened]
    for _ in range(rounds):
        z = (bounds - mu) / sigma
        h = np.array([_mills(float(one)) for one in z])
        first = np.concatenate([x[happened], mu + sigma * h])
        second = np.concatenate([x[happened] ** 2, mu**2 + sigma**2 + sigma * (bounds + mu) * h])
        new_mu = float(first.mean())
        new_sigma = sqrt(max(1e-6, float(second.mean()) - new_mu**2))
        if abs(new_mu - mu) + abs(new_sigma - sigma) < 1e-7:
            break
        mu, sigma = new_mu, new_sigma
    return exp(mu), sigma


def _mills(z: float) -> float:
    above = NormalDist().cdf(-z)
    return NormalDist().pdf(z) / above if above > 1e-12 else z + 1.0 / z


def withdrawal_by_age(years: Floats, withdrawn: npt.NDArray[np.bool_], ages: Sequence[float] = AGES) -> Hazard:
    """Return the rate of withdrawal in each piece of age: withdrawals by years at risk, the maximum likelihood.

    >>> withdrawal_by_age(np.array([0.5, 1.5, 2.0]), np.array([True, True, False]), ages=(0.0, 1.0)).per_year
    (0.4, 0.6666666666666666)
    """
    rates = []
    for start, end in zip(ages, (*ages[1:], float("inf"))):
        at_risk = float(np.clip(years - start, 0.0, end - start).sum())
        count = int(((years >= start) & (years < end) & withdrawn).sum())
        rates.append(count / at_risk if at_risk > 0.0 else 0.0)
    return Hazard(from_year=tuple(ages), per_year=tuple(rates))


def fit_queue(years: Floats, outcome: npt.NDArray[np.int64]) -> QueueFit:
    """Return the fit of requests: years to outcome, and the outcome (0 still active, 1 completed, 2 withdrawn)."""
    completed, withdrawn = outcome == 1, outcome == 2
    median, sigma = lognormal_censored(years, completed)
    hazard = withdrawal_by_age(years, withdrawn)
    return QueueFit(median, sigma, hazard, len(years), int(completed.sum()), int(withdrawn.sum()))


def coverage(inside: Sequence[bool]) -> float:
    """Return the share of outcomes that fell inside their bands.

    >>> coverage([True, True, False, True])
    0.75
    """
    assert inside, "nothing to compare"
    return sum(inside) / len(inside)


def brier(chances: Sequence[float], happened: Sequence[bool]) -> float:
    """Return the Brier score, the mean squared error of chances: 0 is perfect (Brier, Monthly Weather Review 78, 1950).

    >>> brier([0.8, 0.1], [True, False])
    0.025
    """
    assert chances and len(chances) == len(happened), (len(chances), len(happened))
    return round(sum((chance - bool(was)) ** 2 for chance, was in zip(chances, happened)) / len(chances), 12)
