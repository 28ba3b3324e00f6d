"""The divergence alarm: quiet while latency is drawn from the twin's band, loud after a slowdown."""

from __future__ import annotations

import numpy as np
from msgspec.structs import replace

from baseload.records import FAILED, SERVED
from baseload.serve.drift import HOLD_S, Drift, Series, expected_tpot_s, expected_ttft_s
from baseload.serve.rows import SettleRow
from tests.serve.fleet import deployment, tables

DEPLOYMENTS = [deployment("d0"), deployment("d1")]
SITES = tables(4).sites


def feed(drift: Drift, rng: np.random.Generator, *, from_s: float, until_s: float, slow: float = 1.0, bias: float = 1.0,
         sigma: float = 0.5, per_s: float = 2.0) -> float | None:  # fmt: skip
    """Let requests be answered as the twin expects, times bias and slow, scattered; return when an alarm was raised."""
    now_s = from_s
    row, site = DEPLOYMENTS[0], SITES[0]
    while now_s < until_s:
        now_s += float(rng.exponential(1.0 / per_s))
        tokens, running = int(rng.integers(10, 4000)), float(rng.integers(1, 9))
        noise = rng.lognormal(-0.5 * sigma**2, sigma, 2)
        drift.answered(
            now_s, 0, 0, input_tokens=tokens, running=running,
            ttft_s=expected_ttft_s(row, site, input_tokens=tokens) * slow * bias * float(noise[0]),
            tpot_s=expected_tpot_s(row, running=running) * slow * bias * float(noise[1]),
        )  # fmt: skip
        if drift.alarms():
            return now_s
    return None


def test_no_false_alarm_on_requests_from_the_band_itself() -> None:
    """20 series of 14,000 requests each, anywhere within 10 % of the twin and scattered by half: not one alarm."""
    rng = np.random.default_rng(1)
    for bias in np.linspace(0.9, 1.1, 10):
        assert feed(Drift(DEPLOYMENTS, SITES), rng, from_s=0.0, until_s=7000.0, bias=float(bias), sigma=0.3) is None


def test_a_slowdown_of_30_percent_is_told_within_minutes() -> None:
    """After an hour as expected, steps take 1.43 times as long (30 % slower): told within 10 minutes, by name."""
    rng = np.random.default_rng(2)
    for _ in range(5):
        drift = Drift(DEPLOYMENTS, SITES)
        assert feed(drift, rng, from_s=0.0, until_s=3600.0, sigma=0.3) is None
        told_s = feed(drift, rng, from_s=3600.0, until_s=7200.0, slow=1.0 / 0.7, sigma=0.3)
        assert told_s is not None and HOLD_S < told_s - 3600.0 < 600.0, told_s
        alarm = drift.alarms()[0]
        assert alarm.deployment == "d0" and "d0" in alarm.what and "d1" not in alarm.what


def test_the_alarm_is_lifted_when_it_is_over() -> None:
    """Back to what is expected, the alarm goes by itself."""
    rng = np.random.default_rng(3)
    series = Series()
    for i in range(4000):
        series.add(float(i), (1.5 if 1000 <= i < 2000 else 1.0) * float(rng.lognormal(0.0, 0.2)), 1.0)
        if i == 1900:
            assert series.drifted
    assert not series.drifted


def test_nothing_is_said_of_a_few_requests_or_of_nonsense() -> None:
    """Fewer than 200 requests, or times that are no times, raise nothing."""
    series = Series()
    for i in range(150):
        series.add(float(i), 10.0, 1.0)
    for bad in (0.0, -1.0, float("nan")):
        series.add(1e6, bad, 1.0)
    assert not series.drifted and series.n == 150


def test_rows_of_the_ledger_are_what_is_watched() -> None:
    """Streams served at the first try count, as slow as they are; refusals, retries and unstreamed answers do not."""
    drift = Drift(DEPLOYMENTS, SITES)
    ns = 10**9
    for i in range(600):
        row = SettleRow(
            request_id=i, at_ns=i, tenant="t", key="k", deployment="d0", site="s0", arrival_ns=0, n_tries=1,
            first_token_ns=ns, finish_ns=ns + 100 * ns // 10, streamed=True, input_tokens=500, output_tokens=101,
            status=SERVED,
        )  # fmt: skip
        drift.settled(float(i), row, running=4)
        for other in (
            {"streamed": False}, {"status": FAILED}, {"n_tries": 2}, {"deployment": "gone"}, {"first_token_ns": -1},
        ):  # fmt: skip
            drift.settled(float(i), replace(row, **other), running=4)
    assert drift.ttft[0].n == drift.tpot[0].n == 600
    assert [alarm.kind for alarm in drift.alarms()] == ["ttft", "tpot"]
