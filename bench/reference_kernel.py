"""A small serving simulator to compare with: one file, one loop, every engine step taken one by one.

Written for this purpose alone and sharing no code with Baseload. Continuous batching with chunked prefill, requests sent
to the replica with the fewest outstanding, prompt and answer reserved in the KV cache at admission (so never a
preemption). No network, prefix cache, power, prices, failures, records, pauses or policies; times are floats. What it
leaves out makes it fast; that it steps makes it slow. Its CPU time on a machine is the unit in which ours is stated.
"""

from __future__ import annotations

from typing import Any

import numba
import numpy as np

NONE = -1


@numba.njit(cache=True, nogil=True, error_model="numpy")
def simulate(
    arrival_s: Any,  # (request,) rising
    inp: Any,  # (request,) prompt tokens
    out: Any,  # (request,) answer tokens, at least 1
    n_replicas: int,
    base_s: Any,  # (tokens + 1,) of one step
    head_s: Any,  # (sequences + 1,)
    kv_s: float,  # per token of context that decoding reads
    attention_s: float,  # per prompt token squared
    context_s: float,  # per token of context that a chunk reads again
    max_tokens: int,
    max_seqs: int,
    kv_tokens: int,
    first_s: Any,  # (request,) filled in: first token
    finish_s: Any,  # (request,) filled in: last token
) -> int:
    """Serve every request; return the number of engine steps."""
    n = len(arrival_s)
    end_s = np.full(n_replicas, np.inf)  # of the step that runs
    outstanding = np.zeros(n_replicas, np.int64)
    held = np.zeros(n_replicas, np.int64)  # tokens reserved in the KV cache
    context = np.zeros(n_replicas, np.int64)  # tokens read by a decode step
    n_decode = np.zeros(n_replicas, np.int64)
    n_prompt = np.zeros(n_replicas, np.int64)
    decoding = np.zeros((n_replicas, max_seqs), np.int32)
    left = np.zeros((n_replicas, max_seqs), np.int32)  # tokens still to come
    prompts = np.zeros((n_replicas, max_seqs), np.int32)  # in the step that runs
    done = np.zeros(n, np.int32)  # prompt tokens computed
    queue_head = np.full(n_replicas, NONE, np.int64)
    queue_tail = np.full(n_replicas, NONE, np.int64)
    after = np.full(n, NONE, np.int32)  # next in its queue
    n_steps = 0
    following = 0
    while True:
        r = 0
        for i in range(1, n_replicas):
            if end_s[i] < end_s[r]:
                r = i
        now_s = end_s[r]
        if following < n and arrival_s[following] < now_s:
            q = following
            now_s = arrival_s[q]
            following += 1
            r = 0
            for i in range(1, n_replicas):
                if outstanding[i] < outstanding[r]:
                    r = i
            outstanding[r] += 1
            if queue_head[r] == NONE:
                queue_head[r] = q
            else:
                after[queue_tail[r]] = q
            queue_tail[r] = q
            if end_s[r] < np.inf:
                continue
        elif now_s == np.inf:
            return n_steps
        else:  # the step has ended
            context[r] += n_decode[r]
            seat = 0
            while seat < n_decode[r]:
                left[r, seat] -= 1
                if left[r, seat] > 0:
                    seat += 1
                    continue
                q = decoding[r, seat]
                finish_s[q] = now_s
                outstanding[r] -= 1
                held[r] -= inp[q] + out[q]
                context[r] -= inp[q] + out[q] - 1
                n_decode[r] -= 1
                decoding[r, seat] = decoding[r, n_decode[r]]
                left[r, seat] = left[r, n_decode[r]]
            n_partial = 0
            for k in range(n_prompt[r]):
                q = prompts[r, k]
                if done[q] < inp[q]:
                    prompts[r, 0] = q
                    n_partial = 1
                    continue
                first_s[q] = now_s
                if out[q] == 1:
                    finish_s[q] = now_s
                    outstanding[r] -= 1
                    held[r] -= inp[q] + out[q]
                    continue
                decoding[r, n_decode[r]] = q
                left[r, n_decode[r]] = out[q] - 1
                n_decode[r] += 1
                context[r] += inp[q]
            n_prompt[r] = n_partial
        budget = max_tokens - n_decode[r]
        attention = 0.0
        n_heads = n_decode[r]
        for k in range(max_seqs):
            if k >= n_prompt[r]:  # the partial prompt is in its place; admit the next that waits
                q = queue_head[r]
                if q == NONE or n_decode[r] + k >= max_seqs or held[r] + inp[q] + out[q] > kv_tokens or budget <= 0:
                    break
                queue_head[r] = after[q]
                held[r] += inp[q] + out[q]
                prompts[r, k] = q
                n_prompt[r] = k + 1
            q = prompts[r, k]
            chunk = min(inp[q] - done[q], budget)
            budget -= chunk
            attention += max(attention_s * chunk * (done[q] + 0.5 * chunk), context_s * done[q])
            done[q] += chunk
            if done[q] == inp[q]:
                n_heads += 1
        tokens = max_tokens - budget
        if tokens == 0:
            end_s[r] = np.inf
            continue
        n_steps += 1
        end_s[r] = now_s + base_s[tokens] + head_s[n_heads] + kv_s * (context[r] + n_decode[r]) + attention
