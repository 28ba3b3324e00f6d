"""Made-up demand: the statistics that theory promises, and the same bytes for the same seed."""

from __future__ import annotations

from datetime import date

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from baseload.adapters import traces
from baseload.adapters.generators import generate, prefix_block_tokens, weekly_curve
from baseload.adapters.trace_files import open_trace
from baseload.adapters.trace_transforms import limited, scaled
from baseload.adapters.traces import Trace, counts_per_bin
from baseload.errors import TraceError
from baseload.fleet.model import Generator

N = 200_000


def whole(seed: int = 1, **keys: object) -> Trace:
    """Return all requests of a generator."""
    trace = generate(Generator(**keys), seed=seed).whole()  # type: ignore[arg-type]
    trace.check()
    return trace


def gaps_s(trace: Trace) -> np.ndarray:
    """Return the times between arrivals."""
    return np.diff(trace.arrival_ns) / 1e9


# ---- theory --------------------------------------------------------------------------------------------------


def test_poisson_gaps_are_exponential():
    """Mean and standard deviation are 1/rate, the median is ln 2/rate, and neighbours are uncorrelated."""
    gaps = gaps_s(whole(kind="poisson", requests_per_s=50.0, requests=N))

    assert gaps.mean() == pytest.approx(0.02, rel=0.01)
    assert gaps.std() == pytest.approx(0.02, rel=0.01)
    assert np.median(gaps) == pytest.approx(0.02 * np.log(2), rel=0.01)
    assert abs(np.corrcoef(gaps[:-1], gaps[1:])[0, 1]) < 0.01


@pytest.mark.parametrize("cv", [0.3, 1.0, 3.0])
def test_gamma_gaps_have_the_declared_spread(cv: float):
    """Gamma arrivals keep the mean rate and have the coefficient of variation asked for."""
    gaps = gaps_s(whole(kind="gamma", requests_per_s=50.0, requests=N, cv=cv))

    assert gaps.mean() == pytest.approx(0.02, rel=0.03)
    assert gaps.std() / gaps.mean() == pytest.approx(cv, rel=0.03)


def test_mmpp_keeps_the_mean_rate_and_its_dispersion():
    """Counts over an interval T have the index of dispersion that theory gives for a two-state MMPP."""
    # 1 + 2 V r/m (1 - (1 - exp(-T/r)) r/T): variance V of the rate, its mean m, its relaxation time r.
    factor, ratio, burst_s, rate = 4.0, 0.1, 3.0, 20.0
    source = generate(
        Generator(
            kind="mmpp",
            requests_per_s=rate,
            duration_s=200_000.0,
            burst_factor=factor,
            burst_ratio=ratio,
            burst_s=burst_s,
        ),
        seed=2,
    )
    relax_s = burst_s * (1 - ratio)
    variance = (rate * (factor - 1)) ** 2 * ratio / (1 - ratio)

    assert counts_per_bin(source, 1.0).mean() == pytest.approx(rate, rel=0.02)
    for span_s in (1.0, 10.0):
        counts = counts_per_bin(source, span_s)
        wanted = 1 + 2 * variance * relax_s / rate * (1 - (1 - np.exp(-span_s / relax_s)) * relax_s / span_s)
        assert counts.var() / counts.mean() == pytest.approx(wanted, rel=0.06)


@pytest.mark.parametrize(("factor", "ratio", "burst_s"), [(10.0, 0.1, 30.0), (1.0, 0.5, 1.0), (2.0, 0.5, 1e-7)])
def test_mmpp_at_its_limits_keeps_the_mean_rate(factor: float, ratio: float, burst_s: float):
    """All requests in bursts, no bursts at all, and bursts too short to notice: the rate stays what was declared."""
    trace = whole(
        kind="mmpp", requests_per_s=100.0, duration_s=20_000.0, burst_factor=factor, burst_ratio=ratio, burst_s=burst_s
    )

    assert len(trace) == pytest.approx(2_000_000, rel=0.15 if factor == 10.0 else 0.01)


def test_a_diurnal_week_peaks_when_declared_and_rests_on_weekends():
    """Busiest at the peak hour, (1 + swing) times the day's mean; weekends at their ratio; a whole week at the mean rate."""
    g = Generator(kind="diurnal", requests_per_s=5.0, duration_s=604_800.0, daily_swing=0.5, weekend_ratio=0.6,
                  peak_hour_utc=9.5)  # fmt: skip
    hourly = counts_per_bin(generate(g, seed=3, start=date(2024, 1, 1)), 3600.0)  # a Monday
    days = hourly.reshape(7, 24)

    assert hourly.sum() == pytest.approx(5.0 * 604_800, rel=0.01)
    assert days.sum(axis=0).argmax() == 9
    assert days[:5].mean(axis=0).max() / days[:5].mean() == pytest.approx(1.5, rel=0.03)
    assert days[5:].mean() / days[:5].mean() == pytest.approx(0.6, rel=0.02)


def test_a_diurnal_run_begins_at_its_day_and_hour():
    """A run from Saturday noon is the second half of the week's curve, to the statistics of its counts."""
    g = Generator(kind="diurnal", requests_per_s=20.0, duration_s=86_400.0)
    found = counts_per_bin(generate(g, seed=4, start=date(2024, 1, 6), start_hour_utc=12.0), 3600.0)
    grid_s, expected = weekly_curve(g)
    wanted = np.diff(np.interp(5.5 * 86_400 + 3600.0 * np.arange(25), grid_s, expected))

    assert (np.abs(found - wanted) < 5 * np.sqrt(wanted)).all()


def test_a_diurnal_run_wraps_around_the_week():
    """Three weeks have three equal weeks' worth of requests, in order."""
    trace = whole(kind="diurnal", requests_per_s=0.5, duration_s=3 * 604_800.0)
    weeks = np.bincount(trace.arrival_ns // 604_800_000_000_000)

    assert len(weeks) == 3
    assert weeks == pytest.approx(0.5 * 604_800, rel=0.01)


def test_lognormal_lengths_have_mean_and_spread_as_declared():
    """Means and coefficients of variation of both lengths are those of the file, to the rounding to whole tokens."""
    trace = whole(
        kind="poisson", requests_per_s=1e3, requests=N, input_tokens=800.0, output_tokens=200.0, length_cv=0.8
    )

    for column, mean in ((trace.input_tokens, 800.0), (trace.output_tokens, 200.0)):
        assert column.mean() == pytest.approx(mean, rel=0.01)
        assert column.std() / column.mean() == pytest.approx(0.8, rel=0.02)


def test_resampled_lengths_come_in_pairs():
    """Lengths taken from a trace are rows of it: prompt and answer of one request stay together."""
    sample = open_trace("azure-conv").whole()
    trace = whole(kind="poisson", requests_per_s=1e3, requests=N, lengths_from="azure-conv")
    pairs = set(zip(sample.input_tokens.tolist(), sample.output_tokens.tolist()))

    assert set(zip(trace.input_tokens.tolist(), trace.output_tokens.tolist())) <= pairs
    assert trace.input_tokens.mean() == pytest.approx(1155, rel=0.01)
    assert trace.output_tokens.mean() == pytest.approx(211, rel=0.01)


def test_shared_prefixes_are_asked_for_as_zipf_says():
    """The k-th most popular prefix is asked for 1/k as often as the first; equal ids are whole equal prefixes."""
    trace = whole(
        kind="poisson",
        requests_per_s=1e3,
        requests=N,
        input_tokens=4000.0,
        length_cv=0.0,
        prefixes=20,
        prefix_tokens=1024,
    )
    first = np.sort(np.unique(trace.hash_ids[trace.hash_offsets[:-1]], return_counts=True)[1])[::-1]

    assert trace.hash_block_tokens == 512 and len(trace.hash_ids) == 2 * N
    assert first / first[0] == pytest.approx(1 / np.arange(1, 21), rel=0.1)
    assert len(np.unique(trace.hash_ids)) == 2 * 20


def test_a_short_prompt_shares_what_it_has_of_the_prefix():
    """No request has more hashed tokens than its prompt."""
    trace = whole(kind="poisson", requests_per_s=1e3, requests=5000, input_tokens=600.0, prefixes=3, prefix_tokens=1200)

    assert trace.hash_block_tokens == prefix_block_tokens(1200, 16) == 16
    assert (np.diff(trace.hash_offsets) == np.minimum(1200, trace.input_tokens) // 16).all()


def test_a_closed_loop_is_lengths_without_times():
    """Its requests wait for answers, so they have no arrival times; users and pause are told; load scales the users."""
    source = generate(Generator(kind="closed_loop", users=8, think_s=1.5, requests=100), seed=1)
    endless = generate(Generator(kind="closed_loop", users=8), seed=1)

    assert source.closed_loop is not None and (source.closed_loop.users, source.closed_loop.think_s) == (8, 1.5)
    assert (source.whole().arrival_ns == 0).all() and len(source.whole()) == 100
    assert scaled(source, 2.5).closed_loop == type(source.closed_loop)(20, 1.5)
    assert len(limited(endless, 70_000).whole()) == 70_000
    with pytest.raises(TraceError, match="no end"):
        endless.whole()


# ---- properties --------------------------------------------------------------------------------------------------

KINDS = st.sampled_from(["poisson", "gamma", "mmpp", "diurnal", "closed_loop"])


@settings(max_examples=20)
@given(kind=KINDS, seed=st.integers(0, 2**63), chunk_rows=st.integers(100, 80_000), prefixes=st.integers(0, 4))
def test_the_same_seed_gives_the_same_bytes_whatever_the_chunks(kind: str, seed: int, chunk_rows: int, prefixes: int):
    """Every kind, cut anyhow, read twice: the same requests; more of them begin with the same."""
    g = Generator(
        kind=kind,
        requests_per_s=90.0,
        requests=70_000,
        cv=2.0,
        prefixes=prefixes,
        prefix_tokens=64,
        lengths_from="azure-code",
    )  # type: ignore[arg-type]
    source = generate(g, seed=seed)
    a, b = source.whole(), traces.joined(list(source.chunks(chunk_rows)))

    for column in Trace.__slots__:
        assert np.array_equal(getattr(a, column), getattr(b, column))


POSITIVE = st.floats(1e-9, 1e9)


@given(
    kind=KINDS,
    requests_per_s=st.floats(1e-6, 1e7),
    requests=st.integers(1, 3000),
    cv=st.floats(1e-300, 100),
    burst_s=POSITIVE,
    burst_ratio=st.floats(1e-300, 1 - 1e-9),
    burst_share=st.floats(0, 1),
    swing=st.floats(0, 1),
    weekend=st.floats(0, 1),
    peak=st.floats(0, 23.999),
    length=st.tuples(st.floats(1e-9, 1e7), st.floats(0, 20)),
)
def test_any_generator_that_may_be_declared_gives_requests_or_says_why_not(
    kind, requests_per_s, requests, cv, burst_s, burst_ratio, burst_share, swing, weekend, peak, length
):
    """At the edges of what a fleet file may hold: sorted times, whole lengths, the number asked for, or a TraceError."""
    factor = max(1.0, min(1e6, burst_share / burst_ratio))
    g = Generator(
        kind=kind, requests_per_s=requests_per_s, requests=requests, cv=cv, burst_s=burst_s, burst_ratio=burst_ratio,
        burst_factor=factor, daily_swing=swing, weekend_ratio=weekend, peak_hour_utc=peak, input_tokens=length[0],
        length_cv=length[1],
    )  # fmt: skip
    try:
        trace = generate(g, seed=1).whole()
    except TraceError:
        return  # too long, or more bursts than requests; the words have tests of their own
    trace.check()

    assert len(trace) == requests


def test_a_duration_ends_the_demand():
    """Without `requests` nothing arrives at or after duration_s; with them exactly that many do."""
    timed = whole(kind="poisson", requests_per_s=100.0, duration_s=500.0)

    assert timed.arrival_ns[-1] < 500_000_000_000
    assert abs(len(timed) - 50_000) < 5 * 50_000**0.5
    assert len(whole(kind="poisson", requests_per_s=100.0, duration_s=1.0, requests=777)) == 777


def test_demand_without_a_request_is_said():
    """A rate too low for its duration is named, with the mend."""
    with pytest.raises(TraceError, match=r"demand\.generator: no request .*raise requests_per_s"):
        generate(Generator(kind="poisson", requests_per_s=1e-9, duration_s=1.0), seed=1).whole()
