"""Token speed: how long one step of a serving replica takes, from datasheet numbers and a few constants.

A step processes T tokens (decoding sequences and prompt chunks together, as continuous batching does). It
takes base(T) + head(sequences) + decode attention, exactly affine in the tokens of context read, + prefill
attention. What a step moves and computes is `step_work.py`; who is in the batch is the scheduler's business
(`simulate/`), closed-loop averages are `closedloop.py`, watts are `step_power.py`, fitting is `fit.py`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from typing import Any

import numpy as np
from numpy.typing import NDArray

from baseload.formulas.shape import ModelShape, kv_bytes_per_token, kv_fixed_bytes_per_sequence
from baseload.formulas.step_power import step_power_w
from baseload.formulas.step_work import (
    BYTES_PER_VALUE,
    AcceleratorSpec,
    Parallelism,
    StepWork,
    kv_copies,
    replica_weights_bytes,
    step_work,
    window_tokens,
)

__all__ = ["AcceleratorSpec", "Parallelism", "SpeedConstants", "StepCosts", "step_costs", "step_time_s"]

RESERVED_BYTES = 1.3e9  # per accelerator: activations, graphs, libraries (vLLM on RTX 4090: 1.2e9)
VISIBLE_MEMORY = 0.98  # of the datasheet's memory that a driver hands out (RTX 4090 25.25 of 25.77e9, H100 same)


@dataclass(frozen=True, slots=True, kw_only=True)
class SpeedConstants:
    """What datasheets do not say, in twelve numbers; the defaults are the published fit (docs/accuracy.md)."""

    memory_efficiency: float = 0.892  # of the datasheet's bandwidth, reading weights
    math_efficiency: float = 0.669  # of the datasheet's dense FLOPs, matrix products of a dense layer
    expert_math_ratio: float = 0.356  # the grouped products of experts, relative to that
    attention_efficiency: float = 0.53  # of bandwidth and FLOPs, attention over the context
    activation_passes: float = 14.7  # times a layer moves its hidden states through memory
    layer_s: float = 51.3e-6  # launches, norms, rotary, host: per layer and step
    extra_layer_s: float = 25.9e-6  # on top: routing and permutation of a mixture; low-rank projections of MLA
    collective_s: float = 11.9e-6  # latency of one collective over 8 accelerators; grows with log2 of the group
    sequence_s: float = 9.65e-6  # scheduling, sampling, output: per sequence that emits a token
    first_token_steps: float = 7.92  # closed loop: steps between a free seat and the first chunk
    queued_prefill: float = 0.0285  # closed loop: share of others' prefill met while queueing, chunked prefill
    queued_prefill_alone: float = 0.372  # the same for engines that run prefill in steps of its own

    def __post_init__(self) -> None:
        assert all(np.isfinite(v) and v >= 0.0 for v in asdict(self).values()), self
        assert min(self.memory_efficiency, self.math_efficiency, self.attention_efficiency) > 0.0, self
        assert self.expert_math_ratio > 0.0 and self.queued_prefill <= 1.0, self

    @classmethod
    def from_dict(cls, values: Mapping[str, float]) -> SpeedConstants:
        """Return the defaults with `values` in place of some of them (the fleet file's `speed:`).

        >>> SpeedConstants.from_dict({"layer_s": 1e-5}).layer_s
        1e-05
        """
        unknown = sorted(set(values) - {f.name for f in fields(cls)})
        if unknown:
            raise ValueError(f"no such constant of the speed model: {', '.join(unknown)}")
        return cls(**{name: float(value) for name, value in values.items()})

    def to_dict(self) -> dict[str, float]:
        """Return the constants by name, as a fleet file holds them."""
        return asdict(self)


DEFAULT = SpeedConstants()
FIRST_TOKEN_S = 10e-3  # tokenising, HTTP, detokenising: usual, not fitted; the twin adds it to each TTFT


@dataclass(frozen=True, slots=True, kw_only=True)
class StepCosts:
    """One replica's step-time model: tables by tokens and sequences, and coefficients, in seconds."""

    base_s: NDArray[np.float64]  # (max_tokens+1,) weights, products, collectives of a step of T tokens; [0] is 0
    head_s: NDArray[np.float64]  # (max_seqs+1,) head, sampling, linear states of n sequences that emit a token
    kv_s_per_token: float  # decode attention, per token of context, full layers
    kv_window_s_per_token: float  # the same, per token of min(context, window), sliding or sparse layers
    window_tokens: int
    prefill_attention_s_per_token2: float  # a chunk of c tokens at context s costs this times c * (s + c / 2) ...
    prefill_kv_s_per_token: float  # ... or, if larger, this times s, the reading of the context
    kv_bytes_per_token: float
    kv_bytes_per_sequence: float  # windows and states, however long the sequence grows
    weights_bytes: float
    kv_capacity_tokens: int  # whole replica; 0 if the weights do not fit
    kv_blocks: int
    ttft_overhead_s: float
    power_w: NDArray[np.float64]  # (max_tokens+1,) accelerators and their share of the host; [0] is idle
    power_idle_w: float


def step_costs(
    shape: ModelShape,
    accelerator: AcceleratorSpec,
    parallelism: Parallelism,
    *,
    precision: str = "bf16",
    kv_precision: str = "bf16",
    max_tokens: int = 2048,
    max_seqs: int = 256,
    memory_utilisation: float = 0.9,
    block_tokens: int = 16,
    constants: SpeedConstants = DEFAULT,
) -> StepCosts:
    """Return the step-time model of one replica, in seconds, bytes and watts.

    >>> h100 = AcceleratorSpec(bf16_tflops=989, fp8_tflops=1979, memory_gb=85.9, memory_bw_tb_s=3.35, tdp_w=700)
    >>> llama_8b = ModelShape(n_layers=32, hidden=4096, n_heads=32, n_kv_heads=8, head_dim=128, ffn=14336,
    ...                       vocab=128256)
    >>> costs = step_costs(llama_8b, h100, Parallelism())
    >>> round(1e3 * step_time_s(costs, n_decode=8, kv_tokens=8000), 1)
    7.3
    """
    work = step_work(shape, accelerator, parallelism, precision=precision, kv_precision=kv_precision)
    tokens = np.arange(max_tokens + 1, dtype=np.float64)
    base_s = base_step_s(work, constants, tokens)
    base_s[0] = 0.0
    head_s = head_step_s(work, constants, np.arange(max_seqs + 1, dtype=np.float64))
    head_s[0] = 0.0
    power_w = step_power_w(accelerator, parallelism.accelerators, *time_parts_s(work, constants, tokens))
    idle_w = parallelism.accelerators * (accelerator.idle_w + accelerator.server_idle_other_w)
    power_w[0] = idle_w
    capacity = kv_capacity_tokens(
        shape, accelerator, parallelism, precision=precision, kv_precision=kv_precision,
        memory_utilisation=memory_utilisation, max_seqs=max_seqs,
    )  # fmt: skip
    values = BYTES_PER_VALUE[kv_precision]
    return StepCosts(
        base_s=base_s,
        head_s=head_s,
        kv_s_per_token=float(context_token_s(work, constants)),
        kv_window_s_per_token=float(window_token_s(work, constants)),
        window_tokens=window_tokens(shape),
        prefill_attention_s_per_token2=float(pair_s(work, constants)),
        prefill_kv_s_per_token=float(work.kv_read_s / constants.attention_efficiency),
        kv_bytes_per_token=kv_bytes_per_token(shape, values) * kv_copies(shape, parallelism.tp),
        kv_bytes_per_sequence=kv_fixed_bytes_per_sequence(shape, values),
        weights_bytes=replica_weights_bytes(shape, parallelism, precision),
        kv_capacity_tokens=capacity // block_tokens * block_tokens,
        kv_blocks=capacity // block_tokens,
        ttft_overhead_s=FIRST_TOKEN_S,
        power_w=power_w,
        power_idle_w=float(idle_w),
    )


def step_time_s(
    costs: StepCosts,
    *,
    n_decode: int = 0,
    kv_tokens: float = 0.0,
    kv_window_tokens: float = 0.0,
    chunks: Sequence[tuple[int, int]] = (),
    n_finished_prompts: int = 0,
) -> float:
    """Return the seconds of one step: the definition that the twin's kernel repeats.

    `kv_tokens` is the context read by all `n_decode` sequences together, `kv_window_tokens` the same with each
    capped at the window; `chunks` are (new tokens, context before them); `n_finished_prompts` of the chunks
    end their prompt, and so emit a token.
    """
    n_tokens = n_decode + sum(new for new, _ in chunks)
    if n_tokens == 0:
        return 0.0
    seconds = costs.base_s[n_tokens] + costs.head_s[n_decode + n_finished_prompts]
    seconds += costs.kv_s_per_token * kv_tokens + costs.kv_window_s_per_token * kv_window_tokens
    return float(seconds) + sum(prefill_attention_s(costs, new, context) for new, context in chunks)


def prefill_attention_s(costs: StepCosts, n_tokens: int, context: int) -> float:
    """Return the seconds of attention of a prompt chunk: its arithmetic, or the reading of what came before."""
    pairs = n_tokens * (context + n_tokens / 2.0)
    return max(costs.prefill_attention_s_per_token2 * pairs, costs.prefill_kv_s_per_token * context)


def time_parts_s(work: StepWork, constants: SpeedConstants, n_tokens: Any) -> tuple[Any, Any, Any]:
    """Return the seconds a step of `n_tokens` waits for memory and links, for arithmetic, and for launches.

    A product that reads for r and computes for a seconds takes sqrt(r^2 + a^2): kernels overlap the two, but not
    all of it (kernel timings of Llama-3.1-8B on RTX 4090 and RTX PRO 6000: docs/accuracy.md).
    """
    c = constants
    touched = 1.0 - (1.0 - work.expert_hit) ** (n_tokens / work.micro_batches)
    expert_efficiency = c.math_efficiency * c.expert_math_ratio
    memory_s = (work.activation_s * c.activation_passes + work.wire_s) * n_tokens
    math_s = 0.0 * memory_s
    for read_s, compute_s in (
        (work.attention_read_s, work.attention_math_s * n_tokens / c.math_efficiency),
        (work.dense_read_s, work.dense_math_s * n_tokens / c.math_efficiency),
        (work.experts_read_s * touched, work.experts_math_s * n_tokens / expert_efficiency),
    ):
        waiting_s, computing_s = _overlapped(read_s / c.memory_efficiency, compute_s)
        memory_s, math_s = memory_s + waiting_s, math_s + computing_s
    extra_layers = work.n_moe_layers + work.n_latent_layers
    launch_s = work.n_layers * c.layer_s + extra_layers * c.extra_layer_s
    return memory_s, math_s, launch_s + work.hops / 3.0 * c.collective_s + 0.0 * memory_s


def _overlapped(read_s: Any, compute_s: Any) -> tuple[Any, Any]:
    """Return how sqrt(read^2 + compute^2) divides between the two, in proportion.

    >>> sum(_overlapped(3.0, 4.0))
    np.float64(5.0)
    """
    both = read_s + compute_s
    ratio = np.hypot(read_s, compute_s) / np.where(both > 0.0, both, 1.0)
    return read_s * ratio, compute_s * ratio


def base_step_s(work: StepWork, constants: SpeedConstants, n_tokens: Any) -> Any:
    """Return the seconds of a step of `n_tokens` tokens without head and attention over the context."""
    memory_s, math_s, launch_s = time_parts_s(work, constants, n_tokens)
    return memory_s + math_s + launch_s


def head_step_s(work: StepWork, constants: SpeedConstants, n_sequences: Any) -> Any:
    """Return the seconds of LM head, sampling and linear attention's states for sequences that emit a token."""
    c = constants
    product_s = np.hypot(work.head_read_s / c.memory_efficiency, work.head_math_s * n_sequences / c.math_efficiency)
    states_s = work.state_read_s * n_sequences / c.memory_efficiency
    return product_s + states_s + c.sequence_s * n_sequences


def context_token_s(work: StepWork, constants: SpeedConstants) -> Any:
    """Return the seconds of decode attention per token of context, full layers."""
    return np.maximum(work.kv_read_s, work.kv_math_s) / constants.attention_efficiency


def window_token_s(work: StepWork, constants: SpeedConstants) -> Any:
    """Return the seconds of decode attention per token of min(context, window), sliding or sparse layers."""
    return np.maximum(work.window_read_s, work.window_math_s) / constants.attention_efficiency


def pair_s(work: StepWork, constants: SpeedConstants) -> Any:
    """Return the seconds of prefill attention per pair of (new token, token before it)."""
    return work.pair_math_s / constants.attention_efficiency


def roofline_step_s(
    work: StepWork, *, n_tokens: Any, n_sequences: Any, kv_tokens: Any, kv_window_tokens: Any = 0.0
) -> Any:
    """Return the least a step can take by the datasheet: bytes at full bandwidth or FLOPs at full rate.

    All arithmetic of a step could hide behind its memory traffic, so the larger of the two counts.
    """
    touched = 1.0 - (1.0 - work.expert_hit) ** (n_tokens / work.micro_batches)
    read = work.attention_read_s + work.dense_read_s + work.experts_read_s * touched + work.head_read_s
    read = read + work.kv_read_s * kv_tokens + work.window_read_s * kv_window_tokens
    read = read + work.state_read_s * n_sequences
    per_token = work.attention_math_s + work.dense_math_s + work.experts_math_s
    math = per_token * n_tokens + work.head_math_s * n_sequences
    return np.maximum(read, math + work.kv_math_s * kv_tokens + work.window_math_s * kv_window_tokens)


def kv_capacity_tokens(
    shape: ModelShape,
    accelerator: AcceleratorSpec,
    parallelism: Parallelism,
    *,
    precision: str = "bf16",
    kv_precision: str = "bf16",
    memory_utilisation: float = 0.9,
    max_seqs: int = 0,
) -> int:
    """Return how many tokens of context fit beside the weights of one replica; 0 if the weights do not fit.

    vLLM 0.19 on an RTX 4090 with Llama-3.1-8B in bf16 found room for 41,408 tokens:

    >>> rtx_4090 = AcceleratorSpec(bf16_tflops=165, memory_gb=25.77, memory_bw_tb_s=1.008, tdp_w=450)
    >>> llama_8b = ModelShape(n_layers=32, hidden=4096, n_heads=32, n_kv_heads=8, head_dim=128, ffn=14336,
    ...                       vocab=128256)
    >>> kv_capacity_tokens(llama_8b, rtx_4090, Parallelism())
    40963
    """
    values = BYTES_PER_VALUE[kv_precision]
    usable = accelerator.memory_gb * 1e9 * VISIBLE_MEMORY * memory_utilisation - RESERVED_BYTES
    free = parallelism.accelerators * usable - replica_weights_bytes(shape, parallelism, precision)
    copies = kv_copies(shape, parallelism.tp)
    free -= max_seqs * kv_fixed_bytes_per_sequence(shape, values) * copies
    per_token = kv_bytes_per_token(shape, values) * copies
    return max(0, int(free / per_token)) if per_token else 0
