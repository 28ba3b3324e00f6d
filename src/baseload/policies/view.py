"""What a policy may see: the request as it stands at the door, and the replicas as last observed.

Never the true output length, never the instant state of an engine. Times are given, dice are drawn by the caller.
The same named columns are NumPy arrays in the twin and plain lists in a small gateway: policies index them and no more.
"""

from __future__ import annotations

from typing import Any, Final, NamedTuple

NO_REPLICA: Final = -1

# Answers of an admission policy; they are reasons in `records.py`.
ADMIT = 0

Column = Any  # a float64 or int64 array in the twin, a list in the gateway; one row a replica


class Ask(NamedTuple):
    """One request at the door."""

    input_tokens: int  # counted or estimated from the body
    predicted_output_tokens: float  # the tenant's running mean, capped by max_tokens; never the truth
    prefix_key: int  # salted hash of the prompt's first blocks; 0: none
    prefix_tokens: int  # tokens that the key covers
    ttft_slo_s: float
    tpot_slo_s: float
    priority: int  # 0 first .. 9 last
    budget_left: float  # in the fleet's currency; inf: no budget
    price: float  # what the request will be billed, as far as can be told now
    ticket: int  # counts requests of this model; what round robin turns on
    dice: float  # one uniform number in [0, 1)


class Columns(NamedTuple):
    """The replicas, one row each, as the gateway knows them."""

    outstanding: Column  # (replica,) int64: sent and not yet seen to finish
    queued_tokens: Column  # (replica,) float64: prompt and predicted answer tokens of those
    prefill_tokens_per_s: Column  # (replica,) float64: nominal prompt speed
    decode_s_per_token: Column  # (replica,) float64: nominal time of a step at half load
    slots: Column  # (replica,) int64: max_num_seqs
    rtt_s: Column  # (replica,) float64: client to replica and back
    running: Column  # (replica,) int64: sequences running, as last scraped
    waiting: Column  # (replica,) int64: sequences waiting, as last scraped
    kv_free_ratio: Column  # (replica,) float64: as last scraped
    cost_per_mtok: Column  # (replica,) float64: marginal cost of a million tokens there now
    carbon_g_per_mtok: Column  # (replica,) float64: grams CO2 of a million tokens there now


class Tunables(NamedTuple):
    """Numbers of the fleet file's `policy` section that the rules may use."""

    load_guard: float
    admit_factor: float
    target_utilisation: float
    scale_down_s: float
