"""Energise: closed forms and theory first, then what must hold of any chain, then examples."""

from __future__ import annotations

from math import exp, inf

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from baseload.formulas import energise as e

N = 40_000
month = st.floats(0.5, 60.0)


@st.composite
def lengths(draw: st.DrawFn) -> e.Length:
    """Return a length of either form."""
    low, more, most = draw(month), draw(month), draw(month)
    if draw(st.booleans()):
        return e.pert(low, low + more, low + more + most)
    low += more  # so that next to nothing is cut at 0
    return e.quantiles(low, low + more, low + more + max(most, more * 1.05))


def chain(*parts: e.Length) -> list[e.Stage]:
    """Return stages one after the other."""
    names = [f"s{i}" for i in range(len(parts))]
    return [e.Stage(name=n, length=p, after=tuple(names[i - 1 : i])) for i, (n, p) in enumerate(zip(names, parts))]


@pytest.mark.parametrize(("a", "m", "b"), [(2.0, 4.0, 12.0), (0.0, 6.0, 7.0), (3.0, 3.0, 9.0)])
def test_pert_is_the_beta_distribution(a: float, m: float, b: float):
    """PERT lengths have the quantiles of scipy's beta with PERT's two shapes."""
    beta = stats.beta(1 + 4 * (m - a) / (b - a), 1 + 4 * (b - m) / (b - a), loc=a, scale=b - a)
    z = np.linspace(-3.0, 3.0, 25)
    assert e.months_at(e.pert(a, m, b), z) == pytest.approx(beta.ppf(stats.norm.cdf(z)), abs=0.01 * (b - a))
    assert e.moments(e.pert(a, m, b)) == pytest.approx((beta.mean(), _pert_variance(a, m, b)))


def _pert_variance(a: float, m: float, b: float) -> float:
    alpha, beta = 1 + 4 * (m - a) / (b - a), 1 + 4 * (b - m) / (b - a)
    return (b - a) ** 2 * alpha * beta / ((alpha + beta) ** 2 * (alpha + beta + 1))


def test_quantiles_are_a_shifted_lognormal():
    """Three quantiles with a longer late side give scipy's shifted lognormal, with its mean and variance."""
    length = e.quantiles(10.0, 14.0, 24.0)
    sigma = np.log(10.0 / 4.0) / e.Z90
    scale = 10.0 / (2.5 - 1.0)
    law = stats.lognorm(sigma, loc=14.0 - scale, scale=scale)
    z = np.linspace(-2.5, 3.0, 25)
    assert e.months_at(length, z) == pytest.approx(law.ppf(stats.norm.cdf(z)), rel=1e-6)
    assert e.moments(length) == pytest.approx((law.mean(), law.var()))


@given(lengths())
def test_the_three_numbers_come_back(length: e.Length):
    """What was said about a length is what it has, and `score` undoes `months_at`."""
    if length.kind == "quantiles":
        told = e.months_at(length, np.array([-e.Z90, 0.0, e.Z90]))
        assert told == pytest.approx([length.low, length.middle, length.high], rel=1e-6)
    for z in (-1.5, 0.2, 2.0):
        months = float(e.months_at(length, np.array([z]))[0])
        assert e.score(length, months) == pytest.approx(z, abs=0.02) or months == 0.0


@settings(max_examples=20)
@given(st.lists(lengths(), min_size=1, max_size=6))
def test_independent_chains_have_the_moments_of_sums(parts: list[e.Length]):
    """Sampled chains of independent stages agree with the closed form of mean and variance."""
    drawn = e.energise(chain(*parts), n=N, seed=5, rho=0.0).energised_month
    mean, variance = e.chain_moments(parts)
    assert drawn.mean() == pytest.approx(mean, abs=5.0 * (variance / N) ** 0.5 + 1e-3 * mean)
    if all(part.kind == "pert" for part in parts):  # lognormal variances need far more draws
        assert drawn.var() == pytest.approx(variance, rel=0.05)


@pytest.mark.parametrize("rho", [0.0, 0.4, 0.8])
def test_stages_that_slip_together_have_the_covariance_of_lognormals(rho: float):
    """With a common part, the variance of a chain of lognormals is the closed form."""
    parts = [e.quantiles(4.0, 6.0, 9.0), e.quantiles(10.0, 15.0, 24.0), e.quantiles(2.0, 3.0, 5.0)]
    drawn = e.energise(chain(*parts), n=200_000, seed=2, rho=rho).energised_month
    mean, variance = e.chain_moments(parts, rho)
    assert drawn.mean() == pytest.approx(mean, rel=0.01)
    assert drawn.var() == pytest.approx(variance, rel=0.04)


def test_parallel_stages_take_as_long_as_the_longest():
    """The end of parallel branches is their maximum: of two independent uniforms-like PERTs, by brute force."""
    both = [e.Stage(name="a", length=e.pert(0.0, 5.0, 10.0)), e.Stage(name="b", length=e.pert(0.0, 5.0, 10.0))]
    drawn = e.energise(both, n=N, seed=3, rho=0.0).energised_month
    rng = np.random.default_rng(9)
    wanted = np.maximum(10 * rng.beta(3, 3, 400_000), 10 * rng.beta(3, 3, 400_000))
    assert np.quantile(drawn, [0.1, 0.5, 0.9]) == pytest.approx(np.quantile(wanted, [0.1, 0.5, 0.9]), abs=0.08)


@pytest.mark.parametrize("rate", [0.05, 0.3, 1.0])
def test_withdrawal_at_a_constant_rate_is_exponential(rate: float):
    """A phase of two years is energised with chance exp(-2 rate)."""
    drawn = e.energise([e.Stage(name="x", length=e.fixed(24.0))], n=N, seed=1, hazard=e.Hazard(per_year=(rate,)))
    assert np.isfinite(drawn.energised_month).mean() == pytest.approx(exp(-2.0 * rate), abs=0.01)
    gone = drawn.withdrawn_month[np.isfinite(drawn.withdrawn_month)]
    assert (gone < 24.0).all() and (gone >= 0.0).all()


def test_age_spends_the_early_rates():
    """A phase that outlived the years in which most are given up has the rate of its age only."""
    hazard = e.Hazard(from_year=(0.0, 3.0), per_year=(1.0, 0.1))
    old = e.energise([e.Stage(name="x", length=e.fixed(24.0))], n=N, seed=1, hazard=hazard, age_months=36.0)
    assert np.isfinite(old.energised_month).mean() == pytest.approx(exp(-0.2), abs=0.01)


@pytest.mark.parametrize("certainty", [0.0, 0.35, 1.0])
def test_certainty_is_the_chance_to_be_energised(certainty: float):
    """What the owner says of the chance is what comes out."""
    drawn = e.energise([e.Stage(name="x", length=e.pert(1.0, 2.0, 6.0))], n=N, seed=1, certainty=certainty)
    assert np.isfinite(drawn.energised_month).mean() == pytest.approx(certainty, abs=0.01)


def test_what_lasts_already_is_drawn_from_what_is_left():
    """A stage that runs for 20 months has the law of its length given more than 20: brute force by rejection."""
    length = e.quantiles(8.0, 14.0, 30.0)
    drawn = e.energise([e.Stage(name="x", length=length, started_month=-20.0)], n=N, seed=4, rho=0.6).energised_month
    all_of_it = e.months_at(length, np.random.default_rng(1).standard_normal(600_000))
    wanted = all_of_it[all_of_it > 20.0] - 20.0
    assert np.quantile(drawn, [0.1, 0.5, 0.9]) == pytest.approx(np.quantile(wanted, [0.1, 0.5, 0.9]), rel=0.05)


def test_a_late_stage_foretells_late_ones():
    """With a common part, the law of the second stage given the first is that of rejection sampling; with none, the prior."""
    one, two, rho = e.quantiles(4.0, 6.0, 12.0), e.quantiles(8.0, 12.0, 24.0), 0.6
    known = [
        e.Stage(name="a", length=one, started_month=-12.0, done_month=0.0),
        e.Stage(name="b", length=two, after=("a",)),
    ]
    drawn = e.energise(known, n=N, seed=4, rho=rho).energised_month
    rng = np.random.default_rng(1)
    common = rng.standard_normal(2_000_000)
    z1, z2 = (rho**0.5 * common + (1 - rho) ** 0.5 * rng.standard_normal(2_000_000) for _ in range(2))
    near = np.abs(z1 - e.score(one, 12.0)) < 0.02
    wanted = e.months_at(two, z2[near])
    assert np.quantile(drawn, [0.1, 0.5, 0.9]) == pytest.approx(np.quantile(wanted, [0.1, 0.5, 0.9]), rel=0.04)
    alone = e.energise(known, n=N, seed=4, rho=0.0).energised_month
    assert np.median(alone) == pytest.approx(12.0, rel=0.03)


@settings(max_examples=25)
@given(st.lists(lengths(), min_size=1, max_size=5), st.integers(0, 9))
def test_doing_a_stage_never_brings_the_day_back(parts: list[e.Length], seed: int):
    """Draws are never negative, the same seed gives the same draws, and a longer chain is never sooner."""
    drawn = e.energise(chain(*parts), n=500, seed=seed)
    again = e.energise(chain(*parts), n=500, seed=seed)
    assert (drawn.energised_month >= 0.0).all() and (drawn.energised_month == again.energised_month).all()
    longer = e.energise(chain(*parts, e.fixed(1.0)), n=500, seed=seed)
    assert longer.energised_month == pytest.approx(drawn.energised_month + 1.0)


def test_the_band_of_megawatts():
    """P10 is what nine draws of ten reach: two phases of 10 MW, each energised in half the draws."""
    half = np.array([1.0, 1.0, inf, inf] * 250)
    quarter = np.array([1.0, inf, 1.0, inf] * 250)
    low, middle, high = e.band(e.megawatts_by([(10.0, half), (10.0, quarter)], [2.0]))
    assert (low[0], middle[0], high[0]) == (0.0, 10.0, 20.0)
