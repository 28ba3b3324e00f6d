"""Route: which replica serves a request. Each rule has the one signature
`rule(ask, columns, allowed, tunables) -> replica or NO_REPLICA`; ties go to the lowest index.

`allowed` (replica,) is 1 where the hard limits hold (model, residency, sovereignty, health, power): no rule may answer
with any other. What the limits are is `may_run.py`; whether to take the request at all is `admit.py`.
"""

from __future__ import annotations

from typing import Any

from baseload.jit import kernel
from baseload.policies.view import NO_REPLICA, Ask, Columns, Tunables

INFINITY = float("inf")
MASK_63 = (1 << 63) - 1


@kernel
def expected_ttft_s(ask: Ask, columns: Columns, i: int) -> float:
    """Return the time to first token to expect at replica `i`, in seconds, from what the gateway knows.

    Network, the prompts seen waiting there at the last scrape, the wait for a free slot when all are taken, and the
    prompt itself.
    """
    own_s = ask.input_tokens / columns.prefill_tokens_per_s[i]
    excess = columns.outstanding[i] + 1 - columns.slots[i]
    slot_s = 0.0
    if excess > 0:
        slot_s = excess * ask.predicted_output_tokens * columns.decode_s_per_token[i] / columns.slots[i]
    return float(columns.rtt_s[i] + slot_s + own_s * (1.0 + columns.waiting[i]) + columns.decode_s_per_token[i])


@kernel
def round_robin(ask: Ask, columns: Columns, allowed: Any, tunables: Tunables) -> int:
    """Return the allowed replicas in turn."""
    n = 0
    for i in range(len(allowed)):
        if allowed[i]:
            n += 1
    if n == 0:
        return NO_REPLICA
    skip = ask.ticket % n
    for i in range(len(allowed)):
        if allowed[i]:
            if skip == 0:
                return i
            skip -= 1
    return NO_REPLICA


@kernel
def least_outstanding(ask: Ask, columns: Columns, allowed: Any, tunables: Tunables) -> int:
    """Return the allowed replica with the fewest requests sent and not yet seen to finish."""
    best = NO_REPLICA
    least = MASK_63
    outstanding = columns.outstanding
    for i in range(len(allowed)):
        if outstanding[i] < least and allowed[i]:
            best = i
            least = outstanding[i]
    return best


@kernel
def least_wait(ask: Ask, columns: Columns, allowed: Any, tunables: Tunables) -> int:
    """Return the allowed replica with the shortest expected time to first token, then the least queued work."""
    best = NO_REPLICA
    best_s = INFINITY
    for i in range(len(allowed)):
        if allowed[i]:
            queued_s = columns.queued_tokens[i] * columns.decode_s_per_token[i] / columns.slots[i]
            wait_s = expected_ttft_s(ask, columns, i) + queued_s
            if wait_s < best_s:
                best = i
                best_s = wait_s
    return best


@kernel
def mixed_hash(key: int, i: int) -> int:
    """Return a well-spread number from a prefix key and a replica, below 2**31 (xorshift-multiply on 31 bits).

    The steps stay within 62 bits, so that plain Python and compiled code agree.
    """
    x = (key ^ (key >> 31)) & 0x7FFFFFFF
    x = (x ^ ((i + 1) * 0x2C1B3C6D)) & 0x7FFFFFFF
    x = ((x ^ (x >> 15)) * 0x2C1B3C6D) & 0x7FFFFFFF
    x = ((x ^ (x >> 12)) * 0x297A2D39) & 0x7FFFFFFF
    return x ^ (x >> 15)


@kernel
def prefix_affine(ask: Ask, columns: Columns, allowed: Any, tunables: Tunables) -> int:
    """Return the replica that equal prefixes always prefer (highest random weight), unless it is too loaded.

    Too loaded: its outstanding requests exceed `load_guard` times the mean of the allowed, plus one; then the next
    preferred is tried. A request without a prefix goes to the least outstanding.
    """
    if ask.prefix_key == 0:
        return least_outstanding(ask, columns, allowed, tunables)
    n = 0
    total = 0
    for i in range(len(allowed)):
        if allowed[i]:
            n += 1
            total += columns.outstanding[i]
    if n == 0:
        return NO_REPLICA
    limit = tunables.load_guard * total / n + 1.0
    best = NO_REPLICA
    highest = -1
    for i in range(len(allowed)):
        if allowed[i] and columns.outstanding[i] <= limit:
            weight = mixed_hash(ask.prefix_key, i)
            if weight > highest:
                best = i
                highest = weight
    return best


@kernel
def _lowest_within_slo(ask: Ask, columns: Columns, allowed: Any, tunables: Tunables, score: Any) -> int:
    best = NO_REPLICA
    best_score = INFINITY
    best_s = INFINITY
    for i in range(len(allowed)):
        if allowed[i]:
            ttft_s = expected_ttft_s(ask, columns, i)
            within = ttft_s <= ask.ttft_slo_s and columns.decode_s_per_token[i] <= ask.tpot_slo_s
            if within and (score[i] < best_score or (score[i] == best_score and ttft_s < best_s)):
                best = i
                best_score = score[i]
                best_s = ttft_s
    if best < 0:
        return least_wait(ask, columns, allowed, tunables)
    return best


@kernel
def cheapest(ask: Ask, columns: Columns, allowed: Any, tunables: Tunables) -> int:
    """Return the allowed replica with the lowest marginal cost among those expected to meet the SLO.

    Equal costs go to the shorter wait; where none is expected to meet the SLO, the least wait.
    """
    return _lowest_within_slo(ask, columns, allowed, tunables, columns.cost_per_mtok)


@kernel
def greenest(ask: Ask, columns: Columns, allowed: Any, tunables: Tunables) -> int:
    """Return the allowed replica with the least carbon a token among those expected to meet the SLO."""
    return _lowest_within_slo(ask, columns, allowed, tunables, columns.carbon_g_per_mtok)
