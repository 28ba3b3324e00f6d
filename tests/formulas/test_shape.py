"""Parameters, KV bytes and FLOPs against what the makers of the models publish."""

from __future__ import annotations

from dataclasses import MISSING, fields, replace

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from baseload.fleet import catalog
from baseload.formulas.shape import (
    ModelShape,
    active_parameters,
    decode_flops_per_token,
    full_layers,
    kv_bytes_per_token,
    kv_fixed_bytes_per_sequence,
    kv_read_bytes_per_step,
    kv_window_bytes_per_sequence,
    parameter_parts,
    parameters,
    prefill_flops,
    state_bytes_per_sequence,
    touched_experts,
    touched_parameters,
)


def shape_of(name: str) -> ModelShape:
    return ModelShape(**msgspec.structs.asdict(catalog.model(name).shape))


every_model = pytest.mark.parametrize("model_id", sorted(catalog.models()))
shapes = st.sampled_from(sorted(catalog.models())).map(shape_of)


@every_model
def test_size_agrees_with_the_published_one(model_id: str):
    """The count from the architecture is the published size, to the precision that was published."""
    row = catalog.model(model_id)
    assert parameters(shape_of(model_id)) / 1e9 == pytest.approx(row.published_parameters_b, rel=row.size_tolerance)


@every_model
def test_active_size_agrees_with_the_published_one(model_id: str):
    """A token meets as many parameters as published; some publishers count the input table, some do not."""
    row, shape = catalog.model(model_id), shape_of(model_id)
    if row.published_active_b is None:
        assert shape.n_experts == 0 or row.size_from.source == "the model's name"
        return
    table = shape.vocab * shape.hidden if row.active_counts_embedding and not shape.tied_embeddings else 0
    active_b = (active_parameters(shape) + table) / 1e9
    assert active_b == pytest.approx(row.published_active_b, rel=row.active_tolerance)


def test_sizes_published_to_three_digits_are_met_within_two_percent():
    """Only names that round (A3B, A10B) get more room than 2 %, and no total does but one rounded name."""
    loose = {m.model_id for m in catalog.models().values() if m.size_tolerance > 0.02}
    assert loose <= {"qwen3.5-27b", "qwen3.5-35b-a3b"}


@pytest.mark.parametrize(
    ("name", "kv_bytes"),
    [("deepseek-v3", 70_272), ("qwen2.5-72b", 327_680), ("llama-3.1-405b", 516_096)],
)
def test_kv_bytes_per_token_agree_with_deepseeks_table(name: str, kv_bytes: int):
    """KV cache per token in bf16 as published in "Insights into DeepSeek-V3" (arXiv 2505.09343, table 1)."""
    assert kv_bytes_per_token(shape_of(name), 2.0) == kv_bytes


@pytest.mark.parametrize(("name", "gflops"), [("deepseek-v3", 250), ("llama-3.1-405b", 2448)])
def test_training_flops_per_token_agree_with_deepseeks_table(name: str, gflops: float):
    """Three forward passes over 4,096 tokens cost what arXiv 2505.09343, table 2, says."""
    shape, n_tokens = shape_of(name), 4096
    head = 2.0 * shape.vocab * shape.hidden * (n_tokens - 1)  # training computes every token's logits
    forward = prefill_flops(shape, n_tokens) + head
    assert 3.0 * forward / n_tokens / 1e9 == pytest.approx(gflops, rel=0.02)


def test_hybrids_keep_the_context_in_few_layers():
    """Full-attention layers as the configurations list them: 10 of 40, 6 of 52, 5 of 30, 18 of 36."""
    names = ["qwen3.5-35b-a3b", "nemotron-3-nano-30b-a3b", "gemma-4-26b-a4b", "gpt-oss-120b"]
    assert [full_layers(shape_of(name)) for name in names] == [10, 6, 5, 18]
    assert state_bytes_per_sequence(shape_of("qwen3.5-35b-a3b")) > 0 == state_bytes_per_sequence(shape_of("phi-4"))


def test_tensor_parallel_splits_heads_and_copies_a_latent():
    """KV heads divide until there are fewer than accelerators; MLA holds the latent on each of them."""
    llama, deepseek = shape_of("llama-3.1-70b"), shape_of("deepseek-v3")
    per_gpu = [kv_bytes_per_token(llama, 2.0, tp) for tp in (1, 2, 8, 16)]
    assert per_gpu == [327_680, 163_840, 40_960, 40_960]
    assert kv_bytes_per_token(deepseek, 2.0, tp=8) == kv_bytes_per_token(deepseek, 2.0)


@given(shapes, st.integers(1, 5000), st.integers(1, 5000), st.integers(0, 20_000))
def test_a_prompt_in_chunks_costs_as_much_as_in_one(shape: ModelShape, first: int, second: int, context: int):
    """Chunked prefill moves work, it adds none: only the head is computed once a chunk."""
    head = 2.0 * shape.vocab * shape.hidden
    whole = prefill_flops(shape, first + second, context)
    parts = prefill_flops(shape, first, context) + prefill_flops(shape, second, context + first)
    assert parts - head == pytest.approx(whole, rel=1e-9)


@given(shapes, st.integers(0, 100_000))
def test_a_decoded_token_costs_what_a_one_token_prompt_costs(shape: ModelShape, context: int):
    """Decode and prefill are one computation, but for MLA, which decodes on the latent."""
    decode, prefill = decode_flops_per_token(shape, context), prefill_flops(shape, 1, context)
    assert decode >= prefill * (1 - 1e-12) if shape.kv_lora_rank else decode == pytest.approx(prefill, rel=1e-12)


@given(shapes, st.integers(1, 4096))
def test_a_batch_wakes_no_more_experts_than_there_are(shape: ModelShape, n_tokens: int):
    """At least one token's experts, at most all of them, and at most as many as were chosen."""
    woken = touched_experts(shape, n_tokens)
    assert woken <= min(shape.n_experts, shape.experts_per_token * n_tokens) * (1 + 1e-12)
    touched = touched_parameters(shape, n_tokens)
    assert active_parameters(shape) * (1 - 1e-12) <= touched <= parameters(shape) + shape.vocab * shape.hidden


@given(shapes, st.integers(0, 200_000), st.sampled_from([1.0, 2.0]))
def test_a_step_reads_no_more_than_the_sequence_holds(shape: ModelShape, context: int, width: float):
    """What a decode step reads of a sequence is at most what the sequence takes in memory."""
    held = kv_bytes_per_token(shape, width) * context + kv_fixed_bytes_per_sequence(shape, width)
    assert 0 <= kv_read_bytes_per_step(shape, width, context) <= held * (1 + 1e-12)


def test_parts_sum_to_the_whole_and_none_is_negative():
    """Every model's parts are counted once."""
    for name in catalog.models():
        parts = parameter_parts(shape_of(name))
        values = [getattr(parts, field.name) for field in fields(parts)]
        assert min(values) >= 0
        assert sum(values) == parameters(shape_of(name))


def test_a_tied_head_is_not_counted_twice():
    """Untying the head of a tied model adds exactly one table."""
    tied = shape_of("llama-3.2-1b")
    assert parameters(replace(tied, tied_embeddings=False)) - parameters(tied) == tied.vocab * tied.hidden


def test_the_catalogue_spells_shapes_as_the_formulas_do():
    """Field names and defaults are the same on both sides, so that a shape needs no translation."""
    here = {f.name: ... if f.default is MISSING else f.default for f in fields(ModelShape)}
    there = {
        f.name: ... if f.default is msgspec.NODEFAULT else f.default for f in msgspec.structs.fields(catalog.Shape)
    }
    assert here == there


def test_a_window_is_all_that_a_sliding_layer_holds():
    """gpt-oss-120b: 18 layers x 128 tokens x 2 x 8 heads x 64 values (model card), however long the context."""
    assert kv_window_bytes_per_sequence(shape_of("gpt-oss-120b"), 2.0) == 18 * 128 * 2 * 8 * 64 * 2
