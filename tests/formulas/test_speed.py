"""Token speed: what the step-time model promises the twin, and what physics and publications say of it."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from baseload.formulas.closedloop import Load, closed_loop_s, decode_step_s
from baseload.formulas.fit import balanced_folds, calibrate, rank_correlation
from baseload.formulas.shape import ModelShape
from baseload.formulas.speed import (
    DEFAULT,
    AcceleratorSpec,
    Parallelism,
    SpeedConstants,
    StepCosts,
    base_step_s,
    kv_capacity_tokens,
    roofline_step_s,
    step_costs,
    step_time_s,
)
from baseload.formulas.step_work import step_work, weights_bytes

LLAMA_8B = ModelShape(n_layers=32, hidden=4096, n_heads=32, n_kv_heads=8, head_dim=128, ffn=14336, vocab=128256)
LLAMA_70B = ModelShape(n_layers=80, hidden=8192, n_heads=64, n_kv_heads=8, head_dim=128, ffn=28672, vocab=128256)
GPT_OSS_120B = ModelShape(
    n_layers=36, hidden=2880, n_heads=64, n_kv_heads=8, head_dim=64, vocab=201088, n_sliding_layers=18,
    sliding_window_tokens=128, n_experts=128, experts_per_token=4, moe_ffn=2880,
)  # fmt: skip
DEEPSEEK_V3 = ModelShape(
    n_layers=61, hidden=7168, n_heads=128, n_kv_heads=128, head_dim=128, vocab=129280, kv_lora_rank=512,
    q_lora_rank=1536, qk_nope_head_dim=128, qk_rope_head_dim=64, v_head_dim=128, ffn=18432, n_experts=256,
    experts_per_token=8, moe_ffn=2048, n_shared_experts=1, first_dense_layers=3,
)  # fmt: skip
H100 = AcceleratorSpec(
    bf16_tflops=989, fp8_tflops=1979, memory_gb=85.9, memory_bw_tb_s=3.35, tdp_w=700, idle_w=115,
    scale_up_gb_s=450, scale_up_size=8, scale_out_gb_s=50, server_other_w=250, server_idle_other_w=150,
)  # fmt: skip
MODELS = st.sampled_from([LLAMA_8B, LLAMA_70B, GPT_OSS_120B, DEEPSEEK_V3])
PRECISIONS = st.sampled_from(["bf16", "fp8", "fp4"])
SPLITS = st.builds(
    Parallelism, tp=st.sampled_from([1, 2, 4, 8]), pp=st.sampled_from([1, 2]), dp=st.sampled_from([1, 4])
)


def costs_of(shape: ModelShape = LLAMA_8B, split: Parallelism | None = None, **settings: object) -> StepCosts:
    """Return the step costs of `shape` on H100s."""
    return step_costs(shape, H100, split or Parallelism(), **settings)  # type: ignore[arg-type]


def test_decode_of_llama_8b_agrees_with_a_published_run():
    """ML.ENERGY leaderboard, H100, Llama-3.1-8B in bf16: 7.32 ms between tokens at batch 8."""
    costs = costs_of()
    seconds = step_time_s(costs, n_decode=8, kv_tokens=8 * 500)
    assert seconds == pytest.approx(7.32e-3, rel=0.05)


def test_vllm_found_as_many_kv_tokens_as_we_predict():
    """vLLM 0.19 on an RTX 4090 (25.25 GB visible), Llama-3.1-8B in bf16, 90 % of memory: 41,408 tokens."""
    card = AcceleratorSpec(bf16_tflops=165, memory_gb=25.77, memory_bw_tb_s=1.008, tdp_w=450)
    assert kv_capacity_tokens(LLAMA_8B, card, Parallelism()) == pytest.approx(41_408, rel=0.02)


def test_kernels_overlap_reading_and_computing_as_timed():
    """The products of one Llama-3.1-8B layer stack, RTX PRO 6000, 256 tokens: 13.3 ms (LLMServingSim's kernel profile)."""
    card = AcceleratorSpec(bf16_tflops=395.7, memory_gb=100, memory_bw_tb_s=1.529, tdp_w=600)
    bare = replace(DEFAULT, memory_efficiency=0.93, math_efficiency=1.0, layer_s=0.0, activation_passes=0.0)
    seconds = base_step_s(step_work(LLAMA_8B, card, Parallelism()), bare, 256.0)
    assert seconds == pytest.approx(13.3e-3, rel=0.06)


@given(shape=MODELS, split=SPLITS, precision=PRECISIONS, n=st.integers(1, 256), context=st.integers(1, 32_768))
def test_no_step_is_faster_than_the_datasheet(
    shape: ModelShape, split: Parallelism, precision: str, n: int, context: int
):
    """Whatever the model and the split, a predicted step takes at least its roofline time."""
    costs = costs_of(shape, split, precision=precision, max_tokens=256)
    windowed = min(context, costs.window_tokens)
    seconds = step_time_s(costs, n_decode=n, kv_tokens=n * context, kv_window_tokens=n * windowed)
    floor = roofline_step_s(
        step_work(shape, H100, split, precision=precision), n_tokens=n, n_sequences=n,
        kv_tokens=n * context, kv_window_tokens=n * windowed,
    )  # fmt: skip
    assert seconds >= float(floor)


@given(shape=MODELS, n=st.integers(1, 256), kv=st.integers(0, 10**7), more=st.integers(1, 10**6))
def test_a_step_is_affine_in_the_context_it_reads(shape: ModelShape, n: int, kv: int, more: int):
    """The twin runs equal decode steps in closed form, which rests on this."""
    costs = costs_of(shape)
    low, high = (step_time_s(costs, n_decode=n, kv_tokens=tokens) for tokens in (kv, kv + more))
    assert high - low == pytest.approx(costs.kv_s_per_token * more, rel=1e-6, abs=1e-12)


@given(shape=MODELS, split=SPLITS, precision=PRECISIONS)
def test_more_tokens_never_take_less_time(shape: ModelShape, split: Parallelism, precision: str):
    """Tables rise with tokens and with sequences, begin at 0, and hold no NaN; watts stay between idle and limit."""
    costs = costs_of(shape, split, precision=precision)
    for table in (costs.base_s, costs.head_s):
        assert table[0] == 0.0 and np.all(np.isfinite(table)) and np.all(np.diff(table) > 0.0)
    most_w = split.accelerators * (H100.tdp_w + H100.server_other_w)
    assert costs.power_idle_w == costs.power_w[0] == split.accelerators * (115 + 150)
    assert np.all((costs.power_w >= costs.power_idle_w) & (costs.power_w <= most_w + 1e-6))


@given(chunk=st.integers(1, 2048), context=st.integers(0, 65_536), n=st.integers(0, 200), kv=st.integers(0, 10**6))
def test_a_mixed_step_is_the_sum_of_its_parts(chunk: int, context: int, n: int, kv: int):
    """base(T) + head + decode attention + the larger of prefill's arithmetic and its reading."""
    costs = costs_of(max_tokens=2300)
    whole = step_time_s(costs, n_decode=n, kv_tokens=kv, chunks=[(chunk, context)], n_finished_prompts=1)
    pairs = chunk * (context + chunk / 2)
    attention = max(costs.prefill_attention_s_per_token2 * pairs, costs.prefill_kv_s_per_token * context)
    parts = costs.base_s[n + chunk] + costs.head_s[n + 1] + costs.kv_s_per_token * kv + attention
    assert whole == pytest.approx(parts)


def test_an_idle_step_takes_no_time():
    """Nothing to do is done at once."""
    assert step_time_s(costs_of()) == 0.0


def test_few_tokens_wake_few_experts():
    """DeepSeek-V3, one token: 8 of 256 experts, so a step reads about 1/13 of what a crowd makes it read."""
    work = step_work(DEEPSEEK_V3, H100, Parallelism(tp=8), precision="fp8")
    one, crowd = (roofline_step_s(work, n_tokens=n, n_sequences=1, kv_tokens=0) for n in (1.0, 1000.0))
    assert 10.0 < crowd / one < 20.0


def test_quantised_weights_have_the_published_size():
    """gpt-oss-120b in MXFP4 takes about 65 GB on disk, DeepSeek-V3 in fp8 about 689 GB (model cards)."""
    assert weights_bytes(GPT_OSS_120B, "fp4") / 1e9 == pytest.approx(65.2, rel=0.06)
    assert weights_bytes(DEEPSEEK_V3, "fp8") / 1e9 == pytest.approx(689.0 * 671 / 685, rel=0.02)


def test_splitting_a_model_costs_collectives():
    """Eight accelerators are faster than one, but not eight times, and slower still without a fast link."""
    one, eight = (costs_of(LLAMA_70B, Parallelism(tp=tp), precision="fp8").base_s[32] for tp in (1, 8))
    slow = step_costs(LLAMA_70B, replace(H100, scale_up_size=4), Parallelism(tp=8), precision="fp8").base_s[1024]
    assert one / 8 < eight < one / 2
    assert slow > costs_of(LLAMA_70B, Parallelism(tp=8), precision="fp8").base_s[1024]


@given(users=st.integers(1, 256), prompt=st.integers(16, 16_384), answer=st.integers(2, 4096))
def test_a_closed_loop_conserves_the_prompts_work(users: int, prompt: int, answer: int):
    """What others' prompts cost is met as queueing or as stalls: the whole cycle does not depend on how they divide."""
    work = step_work(LLAMA_8B, H100, Parallelism())
    cycles = []
    for alone in (False, True):
        load = Load(
            concurrency=float(users), input_tokens=float(prompt), output_tokens=float(answer), prefill_alone=alone
        )
        ttft_s, tpot_s = closed_loop_s(work, DEFAULT, load)
        assert ttft_s > 0.0 and tpot_s >= decode_step_s(work, DEFAULT, load) * (1 - 1e-9)
        cycles.append(ttft_s + (answer - 1) * tpot_s)
    assert cycles[0] == pytest.approx(cycles[1], rel=1e-9)


def test_constants_come_from_a_dict_and_strangers_are_refused():
    """The fleet file's `speed:` names constants; a misspelt one is an error, not a silence."""
    assert SpeedConstants.from_dict(DEFAULT.to_dict()) == DEFAULT
    with pytest.raises(ValueError, match="layer_seconds"):
        SpeedConstants.from_dict({"layer_seconds": 1e-5})


def test_at_most_twelve_constants():
    """More constants fitted the measured rows better and carried over worse (docs/accuracy.md)."""
    assert len(DEFAULT.to_dict()) == 12


@pytest.mark.parametrize("smooth", [True, False])
def test_a_fit_finds_the_constants_that_made_the_data(smooth: bool):
    """Both ways of minimising recover a known pair from rows that hold one absurd outlier."""
    x = np.linspace(1.0, 50.0, 40)
    measured = 3.0 + 0.2 * x
    measured[7] *= 9.0
    fit = calibrate(lambda c: c["a"] + c["b"] * x, measured, {"a": 1.0, "b": 1.0}, {"a": 1e3, "b": 1e3}, smooth=smooth)
    assert (fit.constants["a"], fit.constants["b"]) == pytest.approx((3.0, 0.2), rel=0.05)
    assert fit.error_after < 0.02 < fit.error_before


def test_what_rows_do_not_show_stays_where_it_was():
    """A constant without influence on the rows is not moved."""
    fit = calibrate(lambda c: np.full(5, c["a"]), np.full(5, 2.0), {"a": 1.0, "idle": 7.0}, {"a": 1.0, "idle": 1.0})
    assert fit.constants["idle"] == pytest.approx(7.0)


@given(st.lists(st.sampled_from("abcdefg"), min_size=1, max_size=60), st.integers(1, 6))
def test_folds_never_split_a_group(groups: list[str], n_folds: int):
    """A group stands wholly in one fold, and no fold is left out of numbering."""
    folds = balanced_folds(groups, n_folds)
    assert all(len({f for g, f in zip(groups, folds, strict=True) if g == name}) == 1 for name in set(groups))
    assert set(folds.tolist()) == set(range(min(n_folds, len(set(groups)))))


def test_rank_correlation_agrees_with_scipy():
    """Spearman's rho without ties, against an independent implementation."""
    stats = pytest.importorskip("scipy.stats")
    rng = np.random.default_rng(5)
    a, b = rng.random(200), rng.random(200)
    assert rank_correlation(a, a + b) == pytest.approx(stats.spearmanr(a, a + b).statistic)
