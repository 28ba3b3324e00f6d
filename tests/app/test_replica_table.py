"""What a replica carries: the search agrees with queueing theory, holds what it says, and is the same twice."""

from __future__ import annotations

from dataclasses import replace
from math import log
from pathlib import Path

import numpy as np
import pytest

from baseload.app.replica_probe import Question, highest_rate
from baseload.app.replica_table import network_budget_ms, replica_table
from baseload.fleet import load
from baseload.fleet.model import Policy, Slo
from baseload.simulate.capacity import Promise
from baseload.simulate.world import EngineSpec

EDGE = Path(__file__).resolve().parents[2] / "examples" / "edge" / "fleet.yaml"
STEP_S = 0.01


def one_seat() -> EngineSpec:
    """Return an engine that serves one request after the other, each token in 10 ms."""
    return EngineSpec(base_s=np.full(4097, STEP_S), head_s=np.zeros(2), max_tokens=4096, max_seqs=1)


def question(seed: int = 1) -> Question:
    """Return exponential answers of a second each, to be finished within 10 s in 95 % of cases."""
    dice = np.random.default_rng(5)
    answers = np.maximum(1, np.rint(dice.exponential(1.0 / STEP_S, 20_000))).astype(np.int32)
    return Question(
        engine=one_seat(), n=1, input_tokens=np.ones(20_000, np.int32), output_tokens=answers,
        promise=Promise(ttft_s=np.inf, tpot_s=np.inf, e2e_s=10.0, attainment=0.95), cv=1.0,
        policy=Policy(route="least_outstanding"), seed=seed,
    )  # fmt: skip


def test_one_server_carries_what_theory_says() -> None:
    """M/M/1: the time in the system exceeds t with probability exp(-(mu - lambda) t), so lambda = mu - ln(20) / t."""
    rates = [highest_rate(replace(question(), seed=seed)).requests_per_s for seed in range(4)]
    assert np.mean(rates) == pytest.approx(1.0 - log(20.0) / 10.0, rel=0.06)


def test_a_group_carries_more_for_each_replica() -> None:
    """Four servers behind one door wait for each other less than four with a door each."""
    alone, four = highest_rate(question()), highest_rate(replace(question(), n=4))
    assert four.requests_per_s > 1.05 * alone.requests_per_s


def test_a_harder_promise_is_never_carried_at_a_higher_rate() -> None:
    """A higher percentile, a shorter time or users farther away cost capacity."""
    asked = question()
    plain = highest_rate(asked).requests_per_s
    for harder in (
        replace(asked.promise, attainment=0.99),
        replace(asked.promise, e2e_s=6.0),
        replace(asked.promise, rtt_s=3.0),
    ):
        assert highest_rate(replace(asked, promise=harder)).requests_per_s < plain


def test_what_cannot_be_kept_carries_nothing() -> None:
    """A time to first token below one step is no rate at all, not a small one."""
    never = replace(question().promise, ttft_s=0.5 * STEP_S)
    assert highest_rate(replace(question(), promise=never)).requests_per_s == 0.0


def test_the_table_of_an_example_is_the_same_twice_and_kept_on_disk(tmp_path: Path) -> None:
    """Equal seeds give equal tables; the second time nothing runs; a damaged file is measured anew."""
    loaded = load.load(EDGE, ())
    first = replica_table(loaded, seed=0, cache=tmp_path)
    kept = (tmp_path / "measured.json").read_bytes()
    assert replica_table(loaded, seed=0, cache=tmp_path) == first
    assert (tmp_path / "measured.json").read_bytes() == kept
    (tmp_path / "measured.json").write_bytes(b"{")
    assert replica_table(loaded, seed=0, cache=tmp_path) == first
    for row in first.rows:
        assert row.requests_per_s > 0.0 and row.margin >= 0.0
        assert 0.0 < row.power_kw_idle < row.power_kw_busy
        assert row.tokens_per_s == pytest.approx(row.requests_per_s * row.output_tokens)
    assert {row.service for row in first.rows} == {
        "voice@400ms/50ms/99%", "agent@1500ms/60ms/97%", "agent@2000ms/60ms/99%",
    }  # fmt: skip


def test_the_network_is_what_the_farthest_allowed_site_needs() -> None:
    """Half of the promise at most, but never less than the nearest site of each user."""
    fleet = load.load(EDGE, ()).fleet
    wide = network_budget_ms(fleet, ("call-centres",), Slo(ttft_ms=2000.0))
    tight = network_budget_ms(fleet, ("call-centres",), Slo(ttft_ms=60.0))
    assert 20.0 < tight <= wide < 200.0
