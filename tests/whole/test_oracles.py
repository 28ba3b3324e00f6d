"""Answers from outside: what a whole engine must do by arithmetic alone, however it is scheduled.

Textbook queues stand in tests/simulate/test_queues.py; here are batches, memory and prefixes with answers on paper.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from baseload.records import SERVED
from baseload.simulate.world import PoolSpec
from tests.simulate import specs

MS = 1_000_000
WAY = np.array([0.001])  # over the network, so that what is sent at once is there at once


def test_one_request_alone_takes_its_prompt_and_its_steps() -> None:
    """TTFT is the prompt's chunks, each token after it one step that reads a token more of context."""
    one = specs.engine(
        step_s=0.002, token_s=1e-5, max_tokens=512, kv_s_per_token=1e-6, head_s=np.full(9, 0.0005), blocks=1000
    )
    records, _ = specs.simulate(specs.system(one), specs.trace([0.0], 1200, 101))
    ttft_s = sum(0.002 + 1e-5 * n + 0.0005 for n in (512, 512, 176))
    decode_s = sum(0.002 + 1e-5 + 0.0005 + 1e-6 * (1200 + i + 1) for i in range(100))
    assert records["first_token_ns"][0] * 1e-9 == pytest.approx(ttft_s, abs=3e-9)
    assert records["finish_ns"][0] * 1e-9 == pytest.approx(ttft_s + decode_s, abs=5e-9)


def test_a_full_batch_moves_in_step() -> None:
    """B equal requests at once: one batch of prompts as far as the budget goes, then every step serves them all."""
    one = specs.engine(step_s=0.01, max_tokens=64, max_seqs=8)
    records, outcome = specs.simulate(specs.system(one, one_way_s=WAY), specs.trace(np.zeros(8), 16, 21))
    # Four prompts fill the first step; then 4 tokens and 60 of prompts: three prompts and 12 tokens, the rest a step later.
    assert ((records["first_token_ns"] - MS) // MS).tolist() == [10] * 4 + [20] * 3 + [30]
    assert ((records["finish_ns"] - records["first_token_ns"]) == 20 * 10 * MS).all()
    assert outcome.world.replicas["prefill_tokens"][0] == 128


def test_throughput_at_saturation_is_the_batch_over_the_step() -> None:
    """A saturated engine serves max_seqs tokens a step, less what prompts take."""
    one = specs.engine(step_s=0.01, max_tokens=1024, max_seqs=16)
    n, out = 4000, 50
    records, _ = specs.simulate(specs.system(one), specs.trace(np.zeros(n), 4, out))
    tokens_per_s = n * out / (records["finish_ns"].max() * 1e-9)
    assert tokens_per_s == pytest.approx(16 / 0.01, rel=0.001)  # a prompt's step gives a token as any other


def test_memory_bounds_the_batch() -> None:
    """With blocks for k whole requests and no growth into them, k run at a time; nothing is ever preempted."""
    one = specs.engine(step_s=0.01, max_tokens=1024, max_seqs=64, block_tokens=16, blocks=10 * 4)
    n = 500
    chunk = specs.trace(np.zeros(n), 50, 14)  # 63 tokens: 4 blocks
    records, outcome = specs.simulate(specs.system(one, one_way_s=WAY), chunk)
    assert outcome.world.replicas["n_preempted"][0] == 0
    assert outcome.world.replicas["blocks_peak"][0] == 40
    assert records["finish_ns"].max() == MS + n // 10 * 14 * 10 * MS


def test_preemption_recomputes_and_loses_nothing() -> None:
    """Ten answers that outgrow the memory together: some are thrown out and recomputed, all get every token."""
    one = specs.engine(step_s=0.01, max_tokens=1024, max_seqs=64, block_tokens=16, blocks=30)
    records, outcome = specs.simulate(specs.system(one), specs.trace(np.zeros(10), 16, 100))
    replicas = outcome.world.replicas[0]
    assert replicas["n_preempted"] > 0 and (records["status"] == SERVED).all()
    assert records["n_preempted"].sum() == replicas["n_preempted"]
    recomputed = replicas["prefill_tokens"] - 10 * 16
    assert recomputed > 16 * replicas["n_preempted"]
    # Each answer's tokens come from a decode step, or from the end of a prompt or of a recomputation.
    assert replicas["decode_tokens"] == 10 * 100 - 10 - replicas["n_preempted"]
    assert records["n_preempted"][0] == 0  # the first admitted is never the last


def test_a_shared_prefix_is_computed_once() -> None:
    """A thousand prompts on one system prompt compute it once; the time to first token shows it."""
    one = specs.engine(
        step_s=0.001,
        token_s=1e-5,
        max_tokens=4096,
        max_seqs=8,
        caching=True,
        chunk_tokens=512,
        block_tokens=16,
        blocks=4000,
    )
    n = 200
    hashes = [[1, 2, 3, 4]] * n
    chunk = specs.trace(np.arange(n) * 0.5, 2100, 2, hashes=hashes)
    spec = specs.system(one)
    warm, outcome = specs.simulate(spec, chunk)
    cold, _ = specs.simulate(replace(spec, engines=(replace(one, caching=False),)), chunk)
    assert warm["cached_tokens"].tolist() == [0] + [2048] * (n - 1)
    assert outcome.world.replicas["prefill_tokens"][0] == 2100 + (n - 1) * 52
    saved_ns = cold["first_token_ns"] - warm["first_token_ns"]
    assert np.abs(saved_ns[1:] - 2048 * 10_000).max() <= 1


def test_a_cache_smaller_than_its_prompts_forgets_the_oldest() -> None:
    """Prompts in a circle through an LRU cache one too small never hit; one less in the circle, and all hit (Belady's trap)."""
    one = specs.engine(step_s=0.001, caching=True, chunk_tokens=16, block_tokens=16, blocks=5, max_tokens=64)
    for families, hits in ((4, True), (5, False)):
        n = 100
        chunk = specs.trace(np.arange(n) * 1.0, 17, 1, hashes=[[1 + i % families] for i in range(n)])
        records, _ = specs.simulate(specs.system(one), chunk)
        assert (records["cached_tokens"][families:] > 0).all() == hits
        assert (records["cached_tokens"] > 0).any() == hits


def test_prefill_and_decode_apart_are_two_queues_in_a_row() -> None:
    """Disaggregated, prompts wait as M/D/1 and answers never stretch a prompt; together they do."""
    from baseload.formulas import queues
    from baseload.simulate import state as st

    rng = np.random.default_rng(9)
    n, rate = 60_000, 14.0
    arrival_s = np.cumsum(rng.exponential(1.0 / rate, n))
    base = {"step_s": 0.05, "max_tokens": 64, "max_seqs": 1, "blocks": 4000}
    prefill = specs.engine(role=st.PREFILL, **base)
    decode = specs.engine(role=st.DECODE, step_s=0.001, max_tokens=512, max_seqs=512, blocks=100_000)
    chunk = specs.trace(arrival_s, 40, 30)
    pools = (PoolSpec(deployment=0, site=0, n_min=1, n_max=1), PoolSpec(deployment=1, site=0, n_min=1, n_max=1))
    apart, _ = specs.simulate(specs.system((prefill, decode), pools, energy=False, bin_s=600.0), chunk)
    ttft_s = (apart["first_token_ns"] - apart["arrival_ns"]) * 1e-9
    assert ttft_s.mean() == pytest.approx(0.05 + queues.md1_wait_s(rate, 0.05), rel=0.03)
    rest_ns = apart["finish_ns"] - apart["first_token_ns"]
    assert rest_ns.min() >= 29 * MS and rest_ns.max() <= 30 * MS
