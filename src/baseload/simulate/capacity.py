"""How much is enough: the highest load that still meets every promise, of one replica, a pair, and the whole fleet.

A search over load with the twin as the judge: what counts is the share of requests that met TTFT, TPOT and end-to-end
limits, refused and failed ones counted as misses. What a miss costs is the report's business.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from types import SimpleNamespace
from typing import Any

import numpy as np
import numpy.typing as npt

from baseload.records import SERVED
from baseload.simulate import state as st
from baseload.simulate.run import run
from baseload.simulate.world import EngineSpec, PoolSpec, TwinSpec

Ints = npt.NDArray[np.int32]
N_PROBE = 1500  # requests a probe of one replica; the first third warms up
N_STEPS = 9
MOST_TOGETHER = 8  # replicas of a prefill and decode pair in a probe


@dataclass(frozen=True, slots=True, kw_only=True)
class ReplicaCapacity:
    """What one replica can do with a mix of lengths; tokens are prompt and answer together."""

    saturated_tokens_per_s: float
    within_slo_tokens_per_s: float  # 0 where not even an idle replica keeps the promise
    within_slo_requests_per_s: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Promise:
    """The limits a request is held to, in seconds; inf: none. `rtt_s` is added to TTFT and end-to-end."""

    ttft_s: float
    tpot_s: float
    e2e_s: float = float("inf")
    attainment: float = 0.99
    rtt_s: float = 0.0


def kept(records: npt.NDArray[Any], promise: Promise) -> npt.NDArray[np.bool_]:
    """Say of each record whether it was served within the promise."""
    ttft_s = (records["first_token_ns"] - records["arrival_ns"]) / 1e9 + promise.rtt_s
    e2e_s = (records["finish_ns"] - records["arrival_ns"]) / 1e9 + promise.rtt_s
    steps = np.maximum(records["output_tokens"] - 1, 1)
    tpot_s = (records["finish_ns"] - records["first_token_ns"]) / 1e9 / steps
    good = (ttft_s <= promise.ttft_s) & (tpot_s <= promise.tpot_s) & (e2e_s <= promise.e2e_s)
    return np.asarray((records["status"] == SERVED) & good)


def replica_capacity(
    engine: EngineSpec, input_tokens: Ints, output_tokens: Ints, promise: Promise, *, seed: int = 0
) -> ReplicaCapacity:
    """Search the highest Poisson rate of one replica that keeps the promise, with lengths drawn from a sample."""
    (alone,) = _capacity([(replace(engine, role=st.MIXED), 1)], input_tokens, output_tokens, promise, seed)
    return alone


def pair_capacity(
    prefill: tuple[EngineSpec, int],
    decode: tuple[EngineSpec, int],
    input_tokens: Ints,
    output_tokens: Ints,
    promise: Promise,
    *,
    seed: int = 0,
) -> tuple[ReplicaCapacity, ReplicaCapacity]:
    """Search what prefill and decode replicas, so many of each, serve together; return it for one of each kind.

    Prompt tokens are counted where they are computed and answers where they are: added up over the replicas, that is what
    the pair serves. The numbers are cut to a few replicas in the same proportion.
    """
    n_prefill, n_decode = in_proportion(prefill[1], decode[1])
    first, second = _capacity(
        [(prefill[0], n_prefill), (decode[0], n_decode)], input_tokens, output_tokens, promise, seed
    )
    return first, second


def in_proportion(a: int, b: int, most: int = MOST_TOGETHER) -> tuple[int, int]:
    """Return two small whole numbers, at least 1, in about the proportion of `a` to `b`.

    >>> in_proportion(100, 300), in_proportion(2, 3), in_proportion(1, 40)
    ((1, 3), (2, 3), (1, 7))
    """
    a, b = max(1, a), max(1, b)
    choices = [(i, j) for total in range(2, most + 1) for i in range(1, total) for j in (total - i,)]
    return min(choices, key=lambda one: (abs(one[0] / (one[0] + one[1]) - a / (a + b)), sum(one)))


def _capacity(
    engines: Sequence[tuple[EngineSpec, int]], input_tokens: Ints, output_tokens: Ints, promise: Promise, seed: int
) -> list[ReplicaCapacity]:
    """Return what one replica of each kind does in the highest load at which all of them keep the promise."""
    generator = np.random.default_rng([seed, 11])
    pick = generator.integers(0, len(input_tokens), N_PROBE)
    limit = min(min(engine.max_context, engine.blocks * engine.block_tokens - 1) for engine, _ in engines)
    prompts = np.minimum(input_tokens[pick], limit - 1).astype(np.int32)
    answers = np.minimum(output_tokens[pick], np.maximum(1, limit - prompts)).astype(np.int32)
    gaps = generator.exponential(1.0, N_PROBE)
    mean_tokens = [float((prompts + answers).mean())] if len(engines) == 1 else [prompts.mean(), answers.mean()]
    tokens = [float(mean) / n for mean, (_, n) in zip(mean_tokens, engines, strict=True)]  # of a request, by replica

    def rates(most: float, kept: float) -> list[ReplicaCapacity]:
        return [
            ReplicaCapacity(
                saturated_tokens_per_s=most * each,
                within_slo_tokens_per_s=kept * each,
                within_slo_requests_per_s=kept / n,
            )
            for each, (_, n) in zip(tokens, engines, strict=True)
        ]

    def probe(rate: float) -> npt.NDArray[Any]:
        arrivals = np.zeros(N_PROBE) if rate == 0.0 else np.cumsum(gaps) / rate
        return _together(engines, arrivals, prompts, answers)

    rush = probe(0.0)
    busy_s = float(rush["finish_ns"].max()) / 1e9
    most = N_PROBE / busy_s

    def keeps(rate: float) -> bool:
        records = probe(rate)
        steady = records[records["request_id"] >= N_PROBE // 3]
        return bool(kept(steady, promise).mean() >= promise.attainment)

    low, high = 0.0, 1.25 * most
    if not keeps(0.02 * most):
        return rates(most, 0.0)
    low = 0.02 * most
    for _ in range(N_STEPS):
        middle = 0.5 * (low + high)
        if keeps(middle):
            low = middle
        else:
            high = middle
    return rates(most, min(low, most))


def _together(
    engines: Sequence[tuple[EngineSpec, int]],
    arrival_s: npt.NDArray[np.float64],
    input_tokens: Ints,
    output_tokens: Ints,
) -> npt.NDArray[Any]:
    n = len(arrival_s)
    spec = TwinSpec(
        engines=tuple(replace(engine, caching=False, model_i=0) for engine, _ in engines),
        pools=tuple(PoolSpec(deployment=i, site=0, n_min=k, n_max=k) for i, (_, k) in enumerate(engines)),
        one_way_s=np.zeros(1),
        region_rtt_s=np.zeros(1),
        may=np.ones((1, 1, len(engines)), np.uint8),
        slo=np.full((1, 2), np.inf),
        priority=np.zeros(1, np.int64),
        prices=np.zeros((1, 3)),
        budget=np.full(1, np.inf),
        energy=False,
    )
    chunk = SimpleNamespace(
        arrival_ns=np.rint(arrival_s * 1e9).astype(np.int64),
        input_tokens=input_tokens,
        output_tokens=output_tokens,
        tenant_i=np.zeros(n, np.int16),
        region_i=np.zeros(n, np.int16),
        model_i=np.zeros(n, np.int16),
        hash_offsets=np.zeros(n + 1, np.int64),
        hash_ids=np.zeros(0, np.int64),
        first_id=0,
    )
    records: list[npt.NDArray[Any]] = []
    run(spec, [chunk], emit=lambda rows: records.append(rows.copy()), out_rows=4096)
    return np.concatenate(records)


def highest_load(meets: Callable[[float], bool], *, start: float = 1.0, steps: int = 8, most: float = 4096.0) -> float:
    """Return the highest load factor for which `meets` holds, to about 1 %; 0 where it never does.

    Doubles or halves from `start` to bracket the answer, then bisects; `meets` should fail for good above it.
    """
    low = high = start
    if meets(start):
        while high < most:
            high *= 2.0
            if not meets(high):
                break
            low = high
        else:
            return low
    else:
        while low > start / 1024.0:
            low /= 2.0
            if meets(low):
                break
            high = low
        else:
            return 0.0
    for _ in range(steps):
        middle = 0.5 * (low + high)
        if meets(middle):
            low = middle
        else:
            high = middle
        if high / low < 1.01:
            break
    return low
