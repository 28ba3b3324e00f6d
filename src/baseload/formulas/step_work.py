"""Step work: what one step of a replica moves and computes, as seconds at the datasheet's peak rates.

Shape, accelerator and parallelism go in, seconds come out; no efficiency is applied here, so the sums are a
lower bound (`roofline_step_s`). How far practice stays behind is `speed.py`; tokens and bytes per model are
`shape.py`.
"""

from __future__ import annotations

from dataclasses import dataclass, fields
from math import ceil, log2
from typing import Any

import numpy as np

from baseload.formulas.shape import (
    ModelShape,
    full_layers,
    kv_bytes_per_token,
    kv_window_bytes_per_sequence,
    moe_layers,
    parameter_parts,
    state_bytes_per_sequence,
)

BYTES_PER_VALUE = {"bf16": 2.0, "fp8": 1.0, "fp4": 0.5625}  # fp4 with one fp8 scale for 16 values (NVFP4)
ACTIVATION_BYTES = 2.0  # activations travel between accelerators in bf16


@dataclass(frozen=True, slots=True, kw_only=True)
class AcceleratorSpec:
    """Datasheet numbers of one accelerator (dense FLOPs, links one way) and its share of the server."""

    bf16_tflops: float
    fp8_tflops: float = 0.0  # 0: computes fp8 weights at the bf16 rate
    fp4_tflops: float = 0.0  # 0: fp4 weights are unpacked and computed at the bf16 rate
    memory_gb: float
    memory_bw_tb_s: float
    tdp_w: float
    idle_w: float = 0.0
    scale_up_gb_s: float = 0.0  # 0: no fast link, collectives go over `scale_out_gb_s`
    scale_up_size: int = 1
    scale_out_gb_s: float = 0.0
    server_other_w: float = 0.0  # per accelerator: CPUs, memory, fans, NICs under load
    server_idle_other_w: float = 0.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Parallelism:
    """How a replica is split: `tp * pp * dp` accelerators; `dp` copies the attention, `ep` spreads experts."""

    tp: int = 1
    pp: int = 1
    ep: int = 1
    dp: int = 1

    def __post_init__(self) -> None:
        assert min(self.tp, self.pp, self.ep, self.dp) >= 1, self

    @property
    def accelerators(self) -> int:
        """Return how many accelerators one replica occupies."""
        return self.tp * self.pp * self.dp


@dataclass(frozen=True, slots=True, kw_only=True)
class StepWork:
    """Seconds at peak on the busiest accelerator. Fields may be arrays: one entry a configuration.

    `*_read_s` are per step and do not depend on the number of tokens, `*_math_s` are per token of the step.
    """

    attention_read_s: Any
    attention_math_s: Any
    dense_read_s: Any  # dense feed-forward, shared experts, router
    dense_math_s: Any
    experts_read_s: Any  # if every routed expert were touched
    experts_math_s: Any
    expert_hit: Any  # chance that one token wakes a given expert
    head_read_s: Any
    head_math_s: Any  # per sequence that emits a token
    state_read_s: Any  # per sequence: linear attention's state, read and written
    kv_read_s: Any  # per token of context, full-attention layers
    kv_math_s: Any
    window_read_s: Any  # per token of min(context, window)
    window_math_s: Any
    pair_math_s: Any  # prefill attention, per pair of (new token, token before it)
    n_layers: Any
    n_moe_layers: Any
    n_latent_layers: Any
    hops: Any  # two collectives a layer, each log2(group) deep
    wire_s: Any  # their payload per token at link speed
    activation_s: Any  # per token: each layer's hidden state moved once, with a copy for each chosen expert
    micro_batches: Any  # pipeline stages: a step of T tokens passes them as that many micro-batches


def stack(works: list[StepWork]) -> StepWork:
    """Return one StepWork whose fields are arrays over `works`."""
    return StepWork(**{f.name: np.array([getattr(w, f.name) for w in works], float) for f in fields(StepWork)})


def peak_flops(accelerator: AcceleratorSpec, precision: str) -> float:
    """Return FLOP/s of a matrix product whose weights are in `precision`.

    >>> a100 = AcceleratorSpec(bf16_tflops=312, memory_gb=80, memory_bw_tb_s=2.039, tdp_w=400)
    >>> peak_flops(a100, "fp8") / 1e12
    312.0
    """
    rate = {"bf16": 0.0, "fp8": accelerator.fp8_tflops, "fp4": accelerator.fp4_tflops}[precision]
    return 1e12 * (rate or accelerator.bf16_tflops)


def attention_precision(shape: ModelShape, precision: str) -> str:
    """Return the precision of the attention weights: published fp4 mixtures keep them in bf16.

    Sources: gpt-oss model card (MXFP4 on experts only), nvidia/DeepSeek-R1-FP4 model card.
    """
    return "bf16" if precision == "fp4" and shape.n_experts else precision


def weights_bytes(shape: ModelShape, precision: str) -> float:
    """Return the bytes of one copy of all weights; embedding and head stay in bf16.

    >>> llama_8b = ModelShape(n_layers=32, hidden=4096, n_heads=32, n_kv_heads=8, head_dim=128, ffn=14336,
    ...                       vocab=128256)
    >>> weights_bytes(llama_8b, "bf16") / 1e9
    16.059990016
    """
    parts = parameter_parts(shape)
    attention = (parts.attention + parts.linear) * BYTES_PER_VALUE[attention_precision(shape, precision)]
    ffn = (parts.dense_ffn + parts.shared_experts + parts.routed_experts) * BYTES_PER_VALUE[precision]
    return attention + ffn + (parts.router + parts.embedding + parts.head) * BYTES_PER_VALUE["bf16"]


def replica_weights_bytes(shape: ModelShape, parallelism: Parallelism, precision: str) -> float:
    """Return the weight bytes a replica holds: data-parallel ranks each keep attention and embeddings."""
    parts = parameter_parts(shape)
    attention = (parts.attention + parts.linear) * BYTES_PER_VALUE[attention_precision(shape, precision)]
    copied = attention + (parts.embedding + parts.head) * BYTES_PER_VALUE["bf16"]
    if not shape.n_experts:
        copied = weights_bytes(shape, precision)
    return weights_bytes(shape, precision) + (parallelism.dp - 1) * copied


def step_work(
    shape: ModelShape,
    accelerator: AcceleratorSpec,
    parallelism: Parallelism,
    *,
    precision: str = "bf16",
    kv_precision: str = "bf16",
) -> StepWork:
    """Return the work of one step of one replica, in seconds at peak (see `StepWork`)."""
    parts = parameter_parts(shape)
    bw = accelerator.memory_bw_tb_s * 1e12
    tp, dp, pp = parallelism.tp, parallelism.dp, parallelism.pp
    # Dense models run data-parallel ranks apart; mixtures spread the feed-forward over all of them.
    group = tp * dp if shape.n_experts else tp
    ffn_split = 1 if shape.n_experts else dp
    attention = attention_precision(shape, precision)
    n_attention, n_dense = parts.attention + parts.linear, parts.dense_ffn + parts.shared_experts
    flops, flops_attention = peak_flops(accelerator, precision), peak_flops(accelerator, attention)
    per_token = 2.0 / dp / pp  # FLOPs per parameter and token, on one of the micro-batches
    sequences = tp * dp * pp
    n_head = shape.vocab * shape.hidden
    window = _window_values(shape, kv_precision, tp)
    hops, wire_s = _collectives(shape, accelerator, parallelism, group)
    bf16 = accelerator.bf16_tflops * 1e12
    return StepWork(
        attention_read_s=n_attention * BYTES_PER_VALUE[attention] / tp / bw,
        attention_math_s=n_attention * per_token / tp / flops_attention + _state_math_s(shape, bf16) / sequences,
        dense_read_s=(n_dense * BYTES_PER_VALUE[precision] + parts.router * 2.0) / group / bw,
        dense_math_s=(n_dense + parts.router) * 2.0 / pp / group / ffn_split / flops,
        experts_read_s=parts.routed_experts * BYTES_PER_VALUE[precision] / group / bw,
        experts_math_s=parts.routed_experts * _hit(shape) * 2.0 / pp / group / flops,
        expert_hit=_hit(shape),
        head_read_s=n_head * 2.0 / tp / bw,
        head_math_s=2.0 * n_head / sequences / bf16,
        state_read_s=2.0 * state_bytes_per_sequence(shape) / sequences / bw,
        kv_read_s=_context_bytes(shape, kv_precision, tp) / dp / pp / bw,
        kv_math_s=_context_flops(shape) / sequences / bf16,
        window_read_s=window / dp / pp / bw,
        window_math_s=_window_flops(shape) / sequences / bf16,
        pair_math_s=_pair_flops(shape) / sequences / bf16,
        n_layers=float(shape.n_layers),
        n_moe_layers=float(moe_layers(shape)),
        n_latent_layers=float(full_layers(shape) if shape.kv_lora_rank else 0),
        hops=hops,
        wire_s=wire_s,
        activation_s=_activation_values(shape) * ACTIVATION_BYTES / dp / pp / bw,
        micro_batches=float(pp),
    )


def _hit(shape: ModelShape) -> float:
    return shape.experts_per_token / shape.n_experts if shape.n_experts else 0.0


def _activation_values(shape: ModelShape) -> float:
    return float(shape.hidden * (shape.n_layers + moe_layers(shape) * shape.experts_per_token))


def _collectives(
    shape: ModelShape, accelerator: AcceleratorSpec, parallelism: Parallelism, group: int
) -> tuple[float, float]:
    """Return (latency hops, wire seconds per token) of two collectives a layer over `group` accelerators."""
    if group == 1:
        return 0.0, 0.0
    link_gb_s = accelerator.scale_up_gb_s
    if group > accelerator.scale_up_size or link_gb_s == 0.0:
        link_gb_s = accelerator.scale_out_gb_s or link_gb_s
    assert link_gb_s > 0.0, "an accelerator without links cannot be part of a group"
    per_token = 2.0 * shape.n_layers * shape.hidden * ACTIVATION_BYTES * 2.0 * (group - 1) / group
    return 2.0 * shape.n_layers * log2(group), per_token / parallelism.dp / parallelism.pp / (link_gb_s * 1e9)


def _context_bytes(shape: ModelShape, kv_precision: str, tp: int) -> float:
    """KV bytes read per token of context; with sparse attention only the indexer reads everything."""
    if shape.index_topk:
        return _index_bytes(shape)
    return kv_bytes_per_token(shape, BYTES_PER_VALUE[kv_precision], tp)


def _index_bytes(shape: ModelShape) -> float:
    return kv_bytes_per_token(shape, 0.0)


def _window_values(shape: ModelShape, kv_precision: str, tp: int) -> float:
    values = BYTES_PER_VALUE[kv_precision]
    if shape.index_topk:
        return kv_bytes_per_token(shape, values, tp) - _index_bytes(shape)
    if not shape.sliding_window_tokens:
        return 0.0
    return kv_window_bytes_per_sequence(shape, values, tp) / shape.sliding_window_tokens


def window_tokens(shape: ModelShape) -> int:
    """Return how much of the context the windowed term reads: the sliding window, or the indexer's choice."""
    return shape.index_topk or shape.sliding_window_tokens


def _decode_width(shape: ModelShape) -> int:
    """FLOPs per head and context token are twice this; MLA decodes in its absorbed form."""
    if shape.kv_lora_rank:
        return 2 * shape.kv_lora_rank + shape.qk_rope_head_dim
    return 2 * shape.head_dim


def _context_flops(shape: ModelShape) -> float:
    if shape.index_topk:
        return 2.0 * shape.index_n_heads * shape.index_head_dim * full_layers(shape)
    return 2.0 * shape.n_heads * _decode_width(shape) * full_layers(shape)


def _window_flops(shape: ModelShape) -> float:
    if shape.index_topk:
        return 2.0 * shape.n_heads * _decode_width(shape) * full_layers(shape)
    return 4.0 * shape.n_heads * (shape.sliding_head_dim or shape.head_dim) * shape.n_sliding_layers


def _pair_flops(shape: ModelShape) -> float:
    """FLOPs of prefill attention for one (query, key) pair over all full layers.

    >>> _pair_flops(ModelShape(n_layers=32, hidden=4096, n_heads=32, n_kv_heads=8, head_dim=128, vocab=1))
    524288.0
    """
    if shape.index_topk:
        return _context_flops(shape)
    if shape.kv_lora_rank:
        width = shape.qk_nope_head_dim + shape.qk_rope_head_dim + shape.v_head_dim
    else:
        width = 2 * shape.head_dim
    return 2.0 * shape.n_heads * width * full_layers(shape)


def _state_math_s(shape: ModelShape, flops: float) -> float:
    """Linear layers' recurrence, per token."""
    state = shape.linear_n_heads * shape.linear_head_dim * shape.linear_state_dim
    return 4.0 * state * shape.n_linear_layers / flops


def kv_copies(shape: ModelShape, tp: int) -> float:
    """Return how many times the KV cache of one token is stored over `tp` accelerators.

    >>> gqa = ModelShape(n_layers=1, hidden=8, n_heads=8, n_kv_heads=2, head_dim=8, vocab=8)
    >>> kv_copies(gqa, 2), kv_copies(gqa, 8)
    (1.0, 4.0)
    """
    if shape.kv_lora_rank:
        return float(tp)
    return ceil(shape.n_kv_heads / tp) * tp / shape.n_kv_heads
