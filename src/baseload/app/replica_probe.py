"""The highest rate that a few equal replicas carry in the twin with a promise kept: bisection over short runs.

The replicas stand together behind the fleet's own rules; users are as far away as the promise's round trip says. What is
measured, and with which settings, is `replica_table.py`.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, fields, replace
from types import SimpleNamespace
from typing import Any

import numpy as np
import numpy.typing as npt

from baseload import jit, policies
from baseload.fleet.model import Policy
from baseload.simulate import state as st
from baseload.simulate.capacity import Promise, kept
from baseload.simulate.run import Outcome, run
from baseload.simulate.world import EngineSpec, PoolSpec, TwinSpec

Ints = npt.NDArray[np.int32]
Rows = npt.NDArray[Any]
N_STEPS = 9
LEAST_REQUESTS, MOST_REQUESTS = 3_000, 16_000  # of one run; the first quarter warms up
PROBE_S = 90.0  # length of a run at full load: a queue that grows by 2 % is 2 s long at its end
PROMISES_A_PROBE = 10.0  # and at least so many times the TTFT promise, for queues grow slowly
RUSH_SEATS = 6  # requests at once a seat, for what a replica does at its limit
WARM_UP_RATIO = 0.25
IDLE_REQUESTS = 1_000  # of the run that is nearly idle
POOR_RATIO = 0.1  # of its limit: what carries less is searched no further, for it is of little use
LIMIT_RATIO = 0.95  # of what a replica finishes at its limit: at more, no queue ends
IDLE_RATIO = 0.02  # of full load: what does not keep the promise here, keeps it nowhere


@dataclass(frozen=True, slots=True, kw_only=True)
class Question:
    """What is measured: an engine, how many of it, which requests, under which promise and rules."""

    engine: EngineSpec
    n: int
    input_tokens: Ints  # a sample of the service's lengths
    output_tokens: Ints
    promise: Promise
    cv: float  # of the gaps between requests; 1: Poisson
    policy: Policy
    seed: int

    def digest(self) -> str:
        """Return a hash of the question and of the code that answers it."""
        digest = hashlib.sha256(jit.sources_digest().encode())
        for field in fields(EngineSpec):
            value = getattr(self.engine, field.name)
            digest.update(value.tobytes() if isinstance(value, np.ndarray) else repr(value).encode())
        digest.update(self.input_tokens.tobytes() + self.output_tokens.tobytes())
        rules = [getattr(self.policy, name) for name in self.policy.__struct_fields__]
        digest.update(repr((self.n, self.promise, self.cv, self.seed, rules, N_STEPS, PROBE_S, MOST_REQUESTS)).encode())
        return digest.hexdigest()


@dataclass(frozen=True, slots=True, kw_only=True)
class Found:
    """The highest rate of one replica of the group, and the run that shows it."""

    requests_per_s: float  # 0 where the promise is not even kept when nearly idle
    attainment: float
    n_requests: int
    n_runs: int
    power_kw: float  # of one replica, mean over the run
    limit_ratio: float  # rate over what the replica would finish if latency did not matter


def highest_rate(asked: Question) -> Found:
    """Return the highest rate at which the promise holds, with the same requests and dice at each load."""
    dice = np.random.default_rng([asked.seed & (2**63 - 1), 23])
    limit = min(asked.engine.max_context, asked.engine.blocks * asked.engine.block_tokens - 1)
    pick = dice.integers(0, len(asked.input_tokens), MOST_REQUESTS)
    prompts = np.minimum(asked.input_tokens[pick], limit - 1).astype(np.int32)
    answers = np.minimum(asked.output_tokens[pick], np.maximum(1, limit - prompts)).astype(np.int32)
    shape = 1.0 / asked.cv**2
    gaps = dice.gamma(shape, 1.0 / shape, MOST_REQUESTS)

    most = asked.n * _saturated(asked, prompts, answers)
    length_s = max(PROBE_S, PROMISES_A_PROBE * asked.promise.ttft_s)
    n = int(min(MOST_REQUESTS, max(LEAST_REQUESTS, length_s * most)))

    def judged(rate: float, n: int) -> tuple[float, float]:
        rows, outcome = _run(asked, np.cumsum(gaps[:n]) / rate, prompts[:n], answers[:n])
        steady = rows[rows["request_id"] >= WARM_UP_RATIO * n]
        replicas = outcome.world.replicas
        kw = float(replicas["energy_j"].sum()) / max(float(replicas["powered_ns"].sum()), 1.0) * 1e6
        return float(kept(steady, asked.promise).mean()), kw

    low, high = IDLE_RATIO * most, LIMIT_RATIO * most
    best = judged(low, IDLE_REQUESTS)
    if best[0] < asked.promise.attainment:
        return Found(requests_per_s=0.0, attainment=best[0], n_requests=n, n_runs=2, power_kw=best[1], limit_ratio=0.0)
    for step in range(N_STEPS):
        middle = 0.5 * (low + high) if step else LIMIT_RATIO * most  # first the most that may be counted on
        found = judged(middle, n)
        if found[0] >= asked.promise.attainment:
            low, best = middle, found
            if step == 0:
                break
        else:
            high = middle
        if high < POOR_RATIO * most:
            break
    return Found(
        requests_per_s=low / asked.n,
        attainment=best[0],
        n_requests=n,
        n_runs=step + 3,
        power_kw=best[1],
        limit_ratio=low / most,
    )


def _saturated(asked: Question, prompts: Ints, answers: Ints) -> float:
    """Return the requests a second that one replica finishes when all came at once, beginning and end left out."""
    n = min(MOST_REQUESTS, max(LEAST_REQUESTS, RUSH_SEATS * asked.engine.max_seqs))
    rows, _ = _run(replace(asked, n=1), np.zeros(n), prompts[:n], answers[:n])
    early, late = np.quantile(rows["finish_ns"], [0.2, 0.8])
    return 0.6 * n / max(1e-9, float(late - early) / 1e9)


def _run(asked: Question, arrival_s: npt.NDArray[np.float64], prompts: Ints, answers: Ints) -> tuple[Rows, Outcome]:
    n, policy = len(arrival_s), asked.policy
    rush = not arrival_s.any()  # how much is enough is no question of admission
    route = policies.ROUTE.get(policy.route, policies.ROUTE_CUSTOM)
    admit = 0 if rush else policies.ADMIT.get(policy.admit, policies.ADMIT_CUSTOM)
    near_s = max(1e-3, asked.promise.ttft_s - asked.promise.rtt_s)
    spec = TwinSpec(
        engines=(replace(asked.engine, caching=False, model_i=0, role=st.MIXED),),
        pools=(PoolSpec(deployment=0, site=0, n_min=asked.n, n_max=asked.n),),
        one_way_s=np.zeros(1),
        region_rtt_s=np.zeros(1),
        may=np.ones((1, 1, 1), np.uint8),
        slo=np.array([[near_s, asked.promise.tpot_s]]),
        priority=np.zeros(1, np.int64),
        prices=np.zeros((1, 3)),
        budget=np.full(1, np.inf),
        route=route,
        admit=admit,
        scrapes=route in policies.READS_SCRAPE or admit in (1, 3, policies.ADMIT_CUSTOM),
        observe_every_s=policy.observe_every_s,
        max_wait_s=0.0 if rush else policy.max_wait_s or 0.0,
        tunables=(policy.load_guard, policy.admit_factor, policy.target_utilisation, policy.scale_down_s),
        predicted_output_tokens=float(answers.mean()),
        bin_s=600.0,
        seed=asked.seed,
    )
    chunk = SimpleNamespace(
        arrival_ns=np.rint(arrival_s * 1e9).astype(np.int64),
        input_tokens=prompts.copy(),
        output_tokens=answers.copy(),
        tenant_i=np.zeros(n, np.int16),
        region_i=np.zeros(n, np.int16),
        model_i=np.zeros(n, np.int16),
        hash_offsets=np.zeros(n + 1, np.int64),
        hash_ids=np.zeros(0, np.int64),
        first_id=0,
    )
    records: list[Rows] = []
    outcome = run(spec, [chunk], emit=lambda rows: records.append(rows.copy()), out_rows=16_384)
    return np.concatenate(records), outcome
