"""Fit of queue outcomes: what was put in comes back, and scores are what their definitions say."""

from __future__ import annotations

import numpy as np
import pytest

from baseload.formulas.energise_fit import brier, coverage, fit_queue, lognormal_censored, withdrawal_by_age


def _queue(n: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Return years and outcomes of requests with lognormal completion (6 y, 0.6) and withdrawal 0.4 then 0.1 a year."""
    rng = np.random.default_rng(seed)
    done = 6.0 * np.exp(0.6 * rng.standard_normal(n))
    spent = rng.standard_exponential(n)
    gone = np.where(spent < 0.4, spent / 0.4, 1.0 + (spent - 0.4) / 0.1)
    seen = rng.uniform(2.0, 15.0, n)
    years = np.minimum(np.minimum(done, gone), seen)
    return years, np.where(years == done, 1, np.where(years == gone, 2, 0))


def test_what_was_put_in_comes_back():
    """From 8,000 censored requests the fit finds the law of completion and the rates of withdrawal."""
    years, outcome = _queue(8000, 1)
    fit = fit_queue(years, outcome)
    assert fit.median_years == pytest.approx(6.0, rel=0.05)
    assert fit.sigma == pytest.approx(0.6, rel=0.06)
    assert fit.hazard.per_year[0] == pytest.approx(0.4, rel=0.06)
    assert fit.hazard.per_year[2] == pytest.approx(0.1, rel=0.15)


def test_chances_and_bands_hold_on_others():
    """On requests drawn anew, completion by five years comes as often as said, and 80 % lie within P10 to P90."""
    fit = fit_queue(*_queue(8000, 1))
    rng = np.random.default_rng(7)
    done = 6.0 * np.exp(0.6 * rng.standard_normal(50_000))
    spent = rng.standard_exponential(50_000)
    gone = np.where(spent < 0.4, spent / 0.4, 1.0 + (spent - 0.4) / 0.1)
    assert fit.completed_by(5.0) == pytest.approx(((done < gone) & (done <= 5.0)).mean(), abs=0.01)
    low, _, high = fit.completion_years((0.1, 0.5, 0.9), 0.0, 20.0)
    kept = done[(done < gone) & (done < 20.0)]
    assert ((low <= kept) & (kept <= high)).mean() == pytest.approx(0.8, abs=0.02)


def test_lower_bounds_count():
    """Ignoring what is still waiting makes completion look sooner than it is; the fit does not."""
    rng = np.random.default_rng(3)
    times, seen = 5.0 * np.exp(0.5 * rng.standard_normal(5000)), rng.uniform(1.0, 8.0, 5000)
    happened = times <= seen
    median, _ = lognormal_censored(np.minimum(times, seen), happened)
    assert np.median(times[happened]) < 4.5 < median < 5.3


def test_rates_are_occurrences_over_exposure():
    """Two withdrawn in 2.5 years at risk below age 1, one in 1.5 years above it."""
    rates = withdrawal_by_age(np.array([0.25, 0.25, 1.5, 2.0]), np.array([True, True, True, False]), ages=(0.0, 1.0))
    assert rates.per_year == pytest.approx((2.0 / 2.5, 1.0 / 1.5))


def test_scores_by_their_definitions():
    """A sure and right forecast scores 0, a coin's 0.25; coverage is a share."""
    assert brier([1.0, 0.0], [True, False]) == 0.0
    assert brier([0.5, 0.5], [True, False]) == 0.25
    assert coverage([True, False]) == 0.5
