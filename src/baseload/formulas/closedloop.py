"""Closed loop: the mean TTFT and TPOT of C users who each send the next request when the last is answered.

The steady state in closed form, for fitting and for quick tables; the twin (`simulate/`) finds the same from
events. What the others' prompts cost is either met while queueing or as stalls of one's own decoding, so it is
conserved between the two.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from baseload.formulas.speed import (
    SpeedConstants,
    base_step_s,
    context_token_s,
    head_step_s,
    pair_s,
    roofline_step_s,
    window_token_s,
)
from baseload.formulas.step_work import StepWork

CHUNK_TOKENS = 8192.0  # token budget of a step: the default of vLLM, SGLang and TensorRT-LLM on data-centre cards


@dataclass(frozen=True, slots=True, kw_only=True)
class Load:
    """A closed loop; fields may be arrays, one entry a configuration, beside a stacked `StepWork`."""

    concurrency: Any
    input_tokens: Any
    output_tokens: Any
    window_tokens: Any = 0.0
    prefill_alone: Any = False  # the engine runs prefill in steps of its own, before decoding (SGLang)
    ranks: Any = 1.0  # data-parallel ranks: one prompt is computed by one of them


def decode_step_s(work: StepWork, constants: SpeedConstants, load: Load) -> Any:
    """Return the seconds of a step in which every user gets a token, halfway through their answers."""
    n, context = load.concurrency, load.input_tokens + load.output_tokens / 2.0
    seconds = base_step_s(work, constants, n) + head_step_s(work, constants, n)
    seconds = seconds + context_token_s(work, constants) * n * context
    return seconds + window_token_s(work, constants) * n * np.minimum(context, load.window_tokens)


def closed_loop_s(work: StepWork, constants: SpeedConstants, load: Load) -> tuple[Any, Any]:
    """Return (mean TTFT, mean TPOT) in seconds.

    A cycle of one user holds its own first token, its decode steps, and the prompts of the other C - 1. Of
    those a share `queued` + (1 - `queued`) x (time to first token / cycle) delays the first token, the rest
    stretches the decoding.
    """
    c = constants
    n, prompt, answer = load.concurrency, load.input_tokens, load.output_tokens
    decode_s = decode_step_s(work, c, load)
    chunk = np.minimum(prompt, CHUNK_TOKENS)
    n_chunks = prompt / chunk
    added_s = n_chunks * (base_step_s(work, c, n + chunk) - base_step_s(work, c, n))
    other_s = added_s + pair_s(work, c) * prompt**2 / 2.0
    own_s = other_s + n_chunks * decode_s + (load.ranks - 1.0) * _rank_s(work, c, prompt)
    first_s = c.first_token_steps * decode_s + own_s
    others_s = (n - 1.0) * other_s
    cycle_s = first_s + others_s + (answer - 1.0) * decode_s
    queued = np.where(load.prefill_alone, c.queued_prefill_alone, c.queued_prefill)
    # ttft = first + (queued + (1 - queued) ttft / cycle) others, solved for ttft
    share = (first_s + queued * others_s) / (cycle_s - (1.0 - queued) * others_s)
    ttft_s = first_s + (queued + (1.0 - queued) * share) * others_s
    return ttft_s, decode_s + (1.0 - queued) * (1.0 - share) * others_s / np.maximum(1.0, answer - 1.0)


def _rank_s(work: StepWork, constants: SpeedConstants, prompt: Any) -> Any:
    """Attention of a prompt as if spread over all ranks: each further rank that does not help adds as much."""
    per_token = work.attention_math_s / constants.math_efficiency
    per_token = per_token + work.activation_s * constants.activation_passes
    return per_token * prompt + pair_s(work, constants) * prompt**2 / 2.0


def roofline_tpot_s(work: StepWork, load: Load, *, decoding: Any) -> Any:
    """Return the least mean TPOT the datasheet allows with `decoding` sequences in a step, prefill free."""
    context = load.input_tokens + load.output_tokens / 2.0
    windowed = np.minimum(context, load.window_tokens)
    return roofline_step_s(
        work, n_tokens=decoding, n_sequences=decoding, kv_tokens=decoding * context,
        kv_window_tokens=decoding * windowed,
    )  # fmt: skip


def roofline_ttft_s(work: StepWork, load: Load) -> Any:
    """Return the least time to first token the datasheet allows: the arithmetic of one's own prompt."""
    per_token = work.attention_math_s + work.dense_math_s + work.experts_math_s
    return per_token * load.input_tokens + work.pair_math_s * load.input_tokens**2 / 2.0
