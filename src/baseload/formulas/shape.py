"""Shape of a language model: parameters, KV bytes and FLOPs, counted from its architecture.

Numbers only. Which models exist, and their shapes, is the catalogue's business (`fleet/catalog.py`); how
long the bytes and FLOPs take on an accelerator is the speed model's. Norms, biases and the small compressor
matrices of DeepSeek-V4 are left out of the counts (below 0.3 % of any model here), and so are vision towers
and multi-token-prediction heads, which the published sizes leave out too.
"""

from __future__ import annotations

from dataclasses import astuple, dataclass
from math import ceil

INDEX_KEY_BYTES = 132  # a sparse indexer's key: 128 values in fp8 and one fp32 scale (DeepSeek-V3.2)
STATE_BYTES_PER_VALUE = 4.0  # linear layers keep their state in fp32 (mamba_ssm_dtype of the configurations)


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelShape:
    """What the counts below need to know of a model; 0 means "has none" unless a comment says otherwise."""

    n_layers: int
    hidden: int
    vocab: int
    tied_embeddings: bool = False

    # Attention with heads (MHA, GQA, MQA).
    n_heads: int
    n_kv_heads: int
    head_dim: int
    gated_attention: bool = False  # the query projection carries an output gate, so it is twice as wide
    k_equals_v: bool = False  # one projection makes both keys and values in the full layers
    o_lora_rank: int = 0  # output projection in two grouped steps (DeepSeek-V4)
    o_groups: int = 1

    # Multi-head latent attention (DeepSeek): what is cached is one latent and one rotary key.
    kv_lora_rank: int = 0
    q_lora_rank: int = 0
    qk_nope_head_dim: int = 0
    qk_rope_head_dim: int = 0
    v_head_dim: int = 0
    index_n_heads: int = 0  # sparse attention: an indexer picks index_topk tokens
    index_head_dim: int = 0
    index_topk: int = 0  # 0: every token is attended to

    # Layers that do not keep the whole context.
    n_sliding_layers: int = 0
    sliding_window_tokens: int = 0
    sliding_n_kv_heads: int = 0  # 0: as n_kv_heads
    sliding_head_dim: int = 0  # 0: as head_dim
    compressed_kv_values_per_token: float = 0.0  # all layers together, beside the windows (DeepSeek-V4)
    n_linear_layers: int = 0  # constant state: gated delta net, Mamba-2
    linear_n_heads: int = 0  # value heads
    linear_head_dim: int = 0
    linear_n_groups: int = 0  # key heads
    linear_state_dim: int = 0  # key head width
    linear_conv_kernel: int = 4

    # Feed-forward, dense and mixture of experts.
    ffn: int = 0  # width of a dense layer
    ffn_matrices: int = 3  # 3: gated (SwiGLU); 2: plain
    n_ffn_layers: int = 0  # 0: one in every layer; else a layer holds a mixer or a feed-forward, never both
    n_experts: int = 0
    experts_per_token: int = 0
    moe_ffn: int = 0  # width of one routed expert
    n_shared_experts: int = 0
    shared_ffn: int = 0  # width of one shared expert; 0: as moe_ffn
    first_dense_layers: int = 0
    moe_every: int = 1  # 2: every second layer is a mixture (Llama-4 Maverick)

    def __post_init__(self) -> None:
        assert self.n_layers > 0 and self.hidden > 0 and self.vocab > 0, self
        assert 0 <= self.experts_per_token <= self.n_experts, self
        assert full_layers(self) >= 0, self


@dataclass(frozen=True, slots=True, kw_only=True)
class ParameterParts:
    """Parameters by what they do; a tied head is 0 here, because the embedding serves as head."""

    attention: int
    linear: int
    dense_ffn: int
    shared_experts: int
    routed_experts: int
    router: int
    embedding: int
    head: int


def full_layers(shape: ModelShape) -> int:
    """Return the number of layers that attend to (and cache) the whole context."""
    return shape.n_layers - shape.n_ffn_layers - shape.n_linear_layers - shape.n_sliding_layers


def moe_layers(shape: ModelShape) -> int:
    """Return the number of layers whose feed-forward is a mixture of experts."""
    if shape.n_experts == 0:
        return 0
    return (_ffn_layers(shape) - shape.first_dense_layers) // shape.moe_every


def dense_layers(shape: ModelShape) -> int:
    """Return the number of layers with one dense feed-forward."""
    return _ffn_layers(shape) - moe_layers(shape)


def _ffn_layers(shape: ModelShape) -> int:
    return shape.n_ffn_layers or shape.n_layers


def _attention_layer(shape: ModelShape, *, kv_heads: int, head_dim: int, k_equals_v: bool) -> int:
    if shape.kv_lora_rank:
        return _latent_attention_layer(shape)
    width = shape.n_heads * head_dim
    if shape.q_lora_rank:
        query = shape.hidden * shape.q_lora_rank + shape.q_lora_rank * width
    else:
        query = shape.hidden * width * (2 if shape.gated_attention else 1)
    key_value = shape.hidden * kv_heads * head_dim * (1 if k_equals_v else 2)
    if shape.o_lora_rank:
        return query + key_value + shape.o_lora_rank * (width + shape.o_groups * shape.hidden)
    return query + key_value + width * shape.hidden


def _latent_attention_layer(shape: ModelShape) -> int:
    """DeepSeek-V2 (arXiv 2405.04434, section 2.1); the indexer is that of DeepSeek-V3.2 (DSA)."""
    query_width = shape.n_heads * (shape.qk_nope_head_dim + shape.qk_rope_head_dim)
    rank = shape.q_lora_rank
    query = rank * (shape.hidden + query_width) if rank else shape.hidden * query_width
    down = shape.hidden * (shape.kv_lora_rank + shape.qk_rope_head_dim)
    up = shape.kv_lora_rank * shape.n_heads * (shape.qk_nope_head_dim + shape.v_head_dim)
    out = shape.n_heads * shape.v_head_dim * shape.hidden
    index = shape.index_n_heads * (shape.q_lora_rank * shape.index_head_dim + shape.hidden)
    return query + down + up + out + index + shape.hidden * shape.index_head_dim


def _linear_layer(shape: ModelShape) -> int:
    """Mamba-2 and gated delta net alike: in (x, z, two keys, two gates), a short convolution, out."""
    values = shape.linear_n_heads * shape.linear_head_dim
    keys = shape.linear_n_groups * shape.linear_state_dim
    project_in = shape.hidden * (2 * values + 2 * keys + 2 * shape.linear_n_heads)
    return project_in + (values + 2 * keys) * shape.linear_conv_kernel + values * shape.hidden


def _expert(shape: ModelShape) -> int:
    return shape.ffn_matrices * shape.hidden * shape.moe_ffn


def parameter_parts(shape: ModelShape) -> ParameterParts:
    """Return the parameters of each part of the model."""
    full = _attention_layer(shape, kv_heads=shape.n_kv_heads, head_dim=shape.head_dim, k_equals_v=shape.k_equals_v)
    sliding = _attention_layer(
        shape,
        kv_heads=shape.sliding_n_kv_heads or shape.n_kv_heads,
        head_dim=shape.sliding_head_dim or shape.head_dim,
        k_equals_v=shape.k_equals_v and not shape.sliding_head_dim,
    )
    n_moe = moe_layers(shape)
    shared_width = shape.n_shared_experts * (shape.shared_ffn or shape.moe_ffn)
    return ParameterParts(
        attention=full_layers(shape) * full + shape.n_sliding_layers * sliding,
        linear=shape.n_linear_layers * _linear_layer(shape),
        dense_ffn=dense_layers(shape) * shape.ffn_matrices * shape.hidden * shape.ffn,
        shared_experts=n_moe * shape.ffn_matrices * shape.hidden * shared_width,
        routed_experts=n_moe * shape.n_experts * _expert(shape),
        router=n_moe * shape.hidden * shape.n_experts,
        embedding=shape.vocab * shape.hidden,
        head=0 if shape.tied_embeddings else shape.vocab * shape.hidden,
    )


def parameters(shape: ModelShape) -> int:
    """Return all parameters of the model (published for Llama-3.1-8B: 8.03e9).

    >>> llama_8b = ModelShape(n_layers=32, hidden=4096, n_heads=32, n_kv_heads=8, head_dim=128, ffn=14336,
    ...                       vocab=128256)
    >>> parameters(llama_8b) / 1e9
    8.029995008
    """
    return sum(astuple(parameter_parts(shape)))


def active_parameters(shape: ModelShape) -> int:
    """Return the parameters one token is multiplied with: all but the input table and the idle experts.

    Publishers differ: Qwen counts the input table as active, OpenAI does not (gpt-oss model card, table 1).

    >>> mixtral = ModelShape(n_layers=32, hidden=4096, n_heads=32, n_kv_heads=8, head_dim=128, n_experts=8,
    ...                      experts_per_token=2, moe_ffn=14336, vocab=32000)
    >>> round(parameters(mixtral) / 1e9, 1), round(active_parameters(mixtral) / 1e9, 1)
    (46.7, 12.7)
    """
    return layer_parameters(shape) + shape.vocab * shape.hidden


def layer_parameters(shape: ModelShape) -> int:
    """Return the active parameters without the head: what each prompt token is multiplied with."""
    parts = parameter_parts(shape)
    routed = moe_layers(shape) * shape.experts_per_token * _expert(shape)
    return parts.attention + parts.linear + parts.dense_ffn + parts.shared_experts + parts.router + routed


def touched_experts(shape: ModelShape, n_tokens: float) -> float:
    """Return how many experts of a layer a batch wakes, on average, if the router chooses evenly.

    >>> shape = ModelShape(n_layers=1, hidden=8, n_heads=1, n_kv_heads=1, head_dim=8, vocab=8, n_experts=128,
    ...                    experts_per_token=8, moe_ffn=8)
    >>> round(touched_experts(shape, 1), 6), round(touched_experts(shape, 16), 1)
    (8.0, 82.4)
    """
    if shape.n_experts == 0:
        return 0.0
    return float(shape.n_experts * (1.0 - (1.0 - shape.experts_per_token / shape.n_experts) ** n_tokens))


def touched_parameters(shape: ModelShape, n_tokens: float) -> float:
    """Return the parameters a step over `n_tokens` tokens reads from memory (input table aside).

    >>> dense = ModelShape(n_layers=1, hidden=8, n_heads=1, n_kv_heads=1, head_dim=8, vocab=16, ffn=32)
    >>> touched_parameters(dense, 1) == touched_parameters(dense, 64) == active_parameters(dense)
    True
    """
    idle_chosen = shape.experts_per_token - touched_experts(shape, n_tokens)
    return active_parameters(shape) - moe_layers(shape) * _expert(shape) * idle_chosen


def kv_bytes_per_token(shape: ModelShape, bytes_per_value: float, tp: int = 1) -> float:
    """Return the KV bytes one more token of context takes on each of `tp` accelerators.

    Only layers that keep the whole context count; windows and states are in `kv_fixed_bytes_per_sequence`.
    KV heads are split over `tp` and copied when there are fewer of them; an MLA latent is copied to each.

    >>> llama_8b = ModelShape(n_layers=32, hidden=4096, n_heads=32, n_kv_heads=8, head_dim=128, ffn=14336,
    ...                       vocab=128256)
    >>> kv_bytes_per_token(llama_8b, 2.0), kv_bytes_per_token(llama_8b, 2.0, tp=16)
    (131072.0, 16384.0)
    """
    n_full = full_layers(shape)
    index_bytes = n_full * INDEX_KEY_BYTES * shape.index_head_dim / 128
    if shape.kv_lora_rank:
        return n_full * (shape.kv_lora_rank + shape.qk_rope_head_dim) * bytes_per_value + index_bytes
    heads = ceil(shape.n_kv_heads / tp)
    values = n_full * 2 * heads * shape.head_dim + shape.compressed_kv_values_per_token
    return values * bytes_per_value + index_bytes


def kv_window_bytes_per_sequence(shape: ModelShape, bytes_per_value: float, tp: int = 1) -> float:
    """Return the KV bytes of the sliding-window layers of one sequence that is longer than the window.

    >>> gpt_oss = ModelShape(n_layers=36, hidden=2880, n_heads=64, n_kv_heads=8, head_dim=64, vocab=201088,
    ...                      n_sliding_layers=18, sliding_window_tokens=128)
    >>> kv_window_bytes_per_sequence(gpt_oss, 2.0) / 2**20
    4.5
    """
    heads = ceil((shape.sliding_n_kv_heads or shape.n_kv_heads) / tp)
    values = heads * (shape.sliding_head_dim or shape.head_dim) * _values_per_head(shape)
    return shape.n_sliding_layers * shape.sliding_window_tokens * values * bytes_per_value


def _values_per_head(shape: ModelShape) -> int:
    # DeepSeek-V4 keeps one vector that is key and value at once; Gemma-4 caches both, made by one projection.
    return 1 if shape.k_equals_v and shape.compressed_kv_values_per_token else 2


def state_bytes_per_sequence(shape: ModelShape, tp: int = 1) -> float:
    """Return the bytes of the linear layers' state (recurrent and convolution) of one sequence.

    >>> mamba = ModelShape(n_layers=1, hidden=2688, n_heads=1, n_kv_heads=1, head_dim=1, vocab=1,
    ...                    n_linear_layers=1, linear_n_heads=64, linear_head_dim=64, linear_n_groups=8,
    ...                    linear_state_dim=128)
    >>> state_bytes_per_sequence(mamba)
    2170880.0
    """
    values = shape.linear_n_heads * shape.linear_head_dim
    convolved = values + 2 * shape.linear_n_groups * shape.linear_state_dim
    state = values * shape.linear_state_dim + convolved * (shape.linear_conv_kernel - 1)
    return shape.n_linear_layers * state * STATE_BYTES_PER_VALUE / tp


def kv_fixed_bytes_per_sequence(shape: ModelShape, bytes_per_value: float, tp: int = 1) -> float:
    """Return what a sequence holds however long it grows: windows and states."""
    return kv_window_bytes_per_sequence(shape, bytes_per_value, tp) + state_bytes_per_sequence(shape, tp)


def kv_read_bytes_per_step(shape: ModelShape, bytes_per_value: float, context: float, tp: int = 1) -> float:
    """Return the KV and state bytes one decode step reads for a sequence of `context` tokens.

    Sparse attention reads `index_topk` tokens and every indexer key; a window reads no more than it holds.
    """
    index_bytes = full_layers(shape) * INDEX_KEY_BYTES * shape.index_head_dim / 128
    per_token = kv_bytes_per_token(shape, bytes_per_value, tp) - index_bytes
    read = min(context, shape.index_topk) if shape.index_topk else context
    window = kv_window_bytes_per_sequence(shape, bytes_per_value, tp)
    filled = min(1.0, context / shape.sliding_window_tokens) if shape.sliding_window_tokens else 0.0
    return per_token * read + index_bytes * context + window * filled + state_bytes_per_sequence(shape, tp)


def prefill_flops(shape: ModelShape, n_tokens: float, context: float = 0.0) -> float:
    """Return the FLOPs to read `n_tokens` prompt tokens after `context` tokens that are already cached.

    Two per parameter and token, causal attention, and the head for the last token only.

    >>> llama_8b = ModelShape(n_layers=32, hidden=4096, n_heads=32, n_kv_heads=8, head_dim=128, ffn=14336,
    ...                       vocab=128256)
    >>> round(prefill_flops(llama_8b, 2048) / 1e12, 1)
    29.7
    """
    matrices = 2.0 * layer_parameters(shape) * n_tokens + 2.0 * shape.vocab * shape.hidden
    attended = n_tokens * (context + (n_tokens + 1.0) / 2.0)
    topk = shape.index_topk
    read = _capped_sum(n_tokens, context, topk) if topk else attended
    windowed = _capped_sum(n_tokens, context, shape.sliding_window_tokens)
    if shape.kv_lora_rank:
        width = shape.qk_nope_head_dim + shape.qk_rope_head_dim + shape.v_head_dim
    else:
        width = 2 * shape.head_dim
    scores = 2.0 * shape.n_heads * width * full_layers(shape) * read
    return matrices + scores + _other_attention_flops(shape, attended, windowed, n_tokens)


def decode_flops_per_token(shape: ModelShape, context: float) -> float:
    """Return the FLOPs to write one token with `context` tokens before it (MLA in its absorbed form).

    >>> llama_8b = ModelShape(n_layers=32, hidden=4096, n_heads=32, n_kv_heads=8, head_dim=128, ffn=14336,
    ...                       vocab=128256)
    >>> round(decode_flops_per_token(llama_8b, 1024) / 1e9, 2)
    15.55
    """
    attended = context + 1.0  # those before it, and itself
    read = min(attended, shape.index_topk) if shape.index_topk else attended
    width = 2 * shape.kv_lora_rank + shape.qk_rope_head_dim if shape.kv_lora_rank else 2 * shape.head_dim
    scores = 2.0 * shape.n_heads * width * full_layers(shape) * read
    windowed = min(attended, shape.sliding_window_tokens)
    return 2.0 * active_parameters(shape) + scores + _other_attention_flops(shape, attended, windowed, 1.0)


def _other_attention_flops(shape: ModelShape, attended: float, windowed: float, n_tokens: float) -> float:
    """Windows, compressed entries, indexers and linear states; sums over the `n_tokens` new tokens."""
    window_width = shape.sliding_head_dim or shape.head_dim
    window = 4.0 * shape.n_heads * window_width * shape.n_sliding_layers * windowed
    compressed = 4.0 * shape.n_heads * shape.compressed_kv_values_per_token * attended
    index = 2.0 * shape.index_n_heads * shape.index_head_dim * full_layers(shape) * attended
    state = shape.linear_n_heads * shape.linear_head_dim * shape.linear_state_dim
    return window + compressed + index + 4.0 * state * shape.n_linear_layers * n_tokens


def _capped_sum(n_tokens: float, context: float, cap: float) -> float:
    """Sum over the new tokens of min(position, cap), as an integral.

    >>> _capped_sum(10, 0, 4), _capped_sum(4, 100, 16), _capped_sum(3, 0, 100)
    (34.0, 64.0, 6.0)
    """
    free = max(0.0, min(n_tokens, cap - context))  # tokens that still see everything before them
    return free * (context + (free + 1.0) / 2.0) + (n_tokens - free) * cap
