"""Prefill and decode replicas as a pair: what the ladder counts for one of each is what they serve together."""

from __future__ import annotations

import numpy as np
import pytest

from baseload.simulate.capacity import Promise, in_proportion, pair_capacity, replica_capacity
from baseload.simulate.state import DECODE, PREFILL
from tests.simulate import specs

EASY = Promise(ttft_s=5.0, tpot_s=1.0)
PROMPTS, ANSWERS = np.full(50, 100, np.int32), np.full(50, 40, np.int32)


def test_both_of_a_pair_serve_the_same_requests() -> None:
    """Tokens of one prefill and of one decode replica, times their numbers, come from one rate of whole requests."""
    prefill = specs.engine(step_s=0.02, max_seqs=4, role=PREFILL)
    decode = specs.engine(step_s=0.01, max_seqs=8, role=DECODE)
    first, second = pair_capacity((prefill, 2), (decode, 1), PROMPTS, ANSWERS, EASY)
    rate = first.within_slo_requests_per_s * 2
    assert rate > 0.0 and rate == pytest.approx(second.within_slo_requests_per_s)
    assert first.within_slo_tokens_per_s * 2 == pytest.approx(rate * 100)
    assert second.within_slo_tokens_per_s == pytest.approx(rate * 40)
    # Eight seats, 39 further tokens each at 10 ms a step: no more than 20.5 requests/s leave a decode replica.
    assert second.saturated_tokens_per_s / 40 == pytest.approx(8 / (39 * 0.01), rel=0.05)


def test_a_pair_is_as_fast_as_its_slower_half() -> None:
    """More decode replicas raise what the pair serves while decode binds, and no further once prompts bind."""
    prefill = specs.engine(step_s=0.01, max_seqs=1, role=PREFILL)
    decode = specs.engine(step_s=0.01, max_seqs=4, role=DECODE)
    served = [
        pair_capacity((prefill, 1), (decode, n), PROMPTS, ANSWERS, EASY)[0].within_slo_requests_per_s
        for n in (1, 2, 6, 7)
    ]
    assert served[1] > 1.6 * served[0]
    assert served[3] == pytest.approx(served[2], rel=0.1) and served[3] <= 1 / 0.02  # two steps a prompt
    alone = replica_capacity(decode, PROMPTS, ANSWERS, EASY).within_slo_requests_per_s
    assert served[0] == pytest.approx(alone, rel=0.25)


def test_a_large_pool_is_measured_in_proportion() -> None:
    """The few replicas of a probe stand in about the proportion of all."""
    assert in_proportion(3, 5) == (3, 5) and in_proportion(30, 50) == (3, 5) and in_proportion(7, 7) == (1, 1)
