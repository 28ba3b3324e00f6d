"""Small systems for the twin's tests: engines, fleets and traces in numbers, random but repeatable.

Everything here is made from a `numpy.random.Generator` and a few switches that Hypothesis draws, so that a failing
example shrinks by switching features off. Step costs lie on a coarse grid on purpose: then boundaries, arrivals,
failures and control decisions often fall on the very same nanosecond, which is where fast-forwarding could go wrong.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from types import SimpleNamespace
from typing import Any

import numpy as np

from baseload import jit

jit.enable()

from baseload.simulate import run as twin  # noqa: E402
from baseload.simulate import state as st  # noqa: E402
from baseload.simulate.world import EngineSpec, PoolSpec, TwinSpec  # noqa: E402

TIMES = ("arrival_ns", "scheduled_ns", "first_token_ns", "finish_ns", "rtt_ns")
COUNTERS = (
    "n_steps", "busy_ns", "prefill_ns", "powered_ns", "down_ns", "prefill_tokens", "decode_tokens", "cached_tokens", "served",
    "n_preempted", "blocks_peak", "energy_j",
)  # fmt: skip
EXACT = (
    "request_id", *TIMES, "tenant_i", "region_i", "model_i", "deployment_i", "site_i", "replica_i", "input_tokens",
    "output_tokens", "cached_tokens", "n_preempted", "n_tries", "status", "reason",
)  # fmt: skip


def engine(
    *,
    step_s: float = 0.01,
    token_s: float = 0.0,
    max_tokens: int = 64,
    max_seqs: int = 8,
    power_busy_w: float = 400.0,
    **kw: Any,
) -> EngineSpec:
    """Return an engine whose step takes `step_s` and `token_s` for each token of its batch."""
    tokens = np.arange(max_tokens + 1)
    base_s = np.where(tokens > 0, step_s, 0.0) + token_s * tokens
    kw.setdefault("head_s", np.zeros(max_seqs + 1))
    kw.setdefault("power_idle_w", 100.0)
    kw.setdefault("power_w", np.full(max_tokens + 1, power_busy_w))
    return EngineSpec(base_s=base_s, max_tokens=max_tokens, max_seqs=max_seqs, **kw)


def system(engines: Any, pools: Any = None, **kw: Any) -> TwinSpec:
    """Return a twin of `engines`, with everything that is not said switched off."""
    engines = (engines,) if isinstance(engines, EngineSpec) else tuple(engines)
    pools = pools or tuple(PoolSpec(deployment=i, site=0, n_min=1, n_max=1) for i in range(len(engines)))
    n_sites = max(p.site for p in pools) + 1
    n_models = max(e.model_i for e in engines) + 1
    n_tenants = kw.pop("n_tenants", 1)
    may = np.zeros((n_tenants, n_models, len(pools)), np.uint8)
    for p, pool in enumerate(pools):
        may[:, engines[pool.deployment].model_i, p] = 1
    kw.setdefault("may", may)
    kw.setdefault("one_way_s", np.zeros(n_sites))
    kw.setdefault("region_rtt_s", np.zeros(1))
    kw.setdefault("slo", np.tile([2.0, 0.1], (n_tenants, 1)))
    kw.setdefault("priority", np.full(n_tenants, 5))
    kw.setdefault("prices", np.zeros((n_tenants, 3)))
    kw.setdefault("budget", np.full(n_tenants, np.inf))
    return TwinSpec(engines=engines, pools=tuple(pools), **kw)


def trace(
    arrival_s: Any,
    input_tokens: Any,
    output_tokens: Any,
    *,
    tenant_i: Any = 0,
    region_i: Any = 0,
    model_i: Any = 0,
    hashes: list[list[int]] | None = None,
) -> SimpleNamespace:
    """Return one chunk of a trace, arrivals in seconds."""
    n = len(arrival_s)
    hashes = hashes or [[] for _ in range(n)]
    return SimpleNamespace(
        arrival_ns=np.rint(np.asarray(arrival_s, float) * 1e9).astype(np.int64),
        input_tokens=np.broadcast_to(np.asarray(input_tokens, np.int32), n),
        output_tokens=np.broadcast_to(np.asarray(output_tokens, np.int32), n),
        tenant_i=np.broadcast_to(np.asarray(tenant_i, np.int16), n),
        region_i=np.broadcast_to(np.asarray(region_i, np.int16), n),
        model_i=np.broadcast_to(np.asarray(model_i, np.int16), n),
        hash_offsets=np.cumsum([0, *(len(h) for h in hashes)]).astype(np.int64),
        hash_ids=np.array([i for h in hashes for i in h], np.int64),
        first_id=0,
    )


def split(chunk: SimpleNamespace, sizes: Any) -> list[SimpleNamespace]:
    """Return the chunk cut into chunks of the given sizes (the last size repeats)."""
    parts = []
    lo = 0
    sizes = list(sizes)
    while lo < len(chunk.arrival_ns):
        hi = min(len(chunk.arrival_ns), lo + (sizes.pop(0) if len(sizes) > 1 else sizes[0]))
        offsets = chunk.hash_offsets[lo : hi + 1]
        rows = {
            name: getattr(chunk, name)[lo:hi]
            for name in ("arrival_ns", "input_tokens", "output_tokens", "tenant_i", "region_i", "model_i")
        }
        parts.append(
            SimpleNamespace(
                **rows,
                hash_offsets=offsets - offsets[0],
                hash_ids=chunk.hash_ids[offsets[0] : offsets[-1]],
                first_id=chunk.first_id + lo,
            )
        )
        lo = hi
    return parts


def simulate(spec: TwinSpec, chunks: Any, **kw: Any) -> tuple[Any, twin.Outcome]:
    """Run the twin; return the records in order of request_id, and the outcome."""
    chunks = [chunks] if isinstance(chunks, SimpleNamespace) else chunks
    kept = [np.zeros(0, st.OUT)]
    outcome = twin.run(spec, chunks, emit=lambda rows: kept.append(rows.copy()), **kw)
    records = np.concatenate(kept)
    return records[np.argsort(records["request_id"], kind="stable")], outcome


def assert_same(a: Any, b: Any, columns: Any = EXACT) -> None:
    """Assert that two tables of records agree, every row, to the bit."""
    assert len(a) == len(b), (len(a), len(b))
    for name in columns:
        differ = np.flatnonzero(a[name] != b[name])
        if len(differ):
            i = differ[0]
            raise AssertionError(
                f"{name} differs in {len(differ)} of {len(a)} rows, first:\n{a[i]}\n{b[i]}\n{a.dtype.names}"
            )


# ---- random systems ------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Switches:
    """What a random system may do; Hypothesis draws these and shrinks them to False and 0."""

    seed: int = 0
    n_requests: int = 40
    route: int = 1
    grid: bool = True  # times on a grid of 1 ms, so that events tie
    tiny_kv: bool = False
    caching: bool = False
    failures: bool = False
    scaling: bool = False
    cap: int = 0
    hard: bool = False  # with slow and by_priority: a power cap at each replica
    disaggregated: bool = False
    closed: bool = False
    admit: int = 0
    max_wait: bool = False
    two_sites: bool = False
    network: bool = False
    two_models: bool = False


def _random_engine(rng: np.random.Generator, on: Switches, role: int = st.MIXED, model_i: int = 0) -> EngineSpec:
    block = int(rng.choice([1, 2, 4, 8, 16]))
    chunk = block * int(rng.choice([1, 2, 3]))
    seqs = int(rng.integers(1, 9))
    tokens = int(rng.integers(max(seqs, 4), 65))
    blocks = int(rng.integers(70, 110) if on.tiny_kv else 4000) // block + 3
    step_s = float(rng.choice([0.001, 0.002, 0.005])) if on.grid else float(rng.uniform(0.0007, 0.008))
    kv_s = float(rng.choice([0.0, 1e-6, 1e-5])) if on.grid else float(rng.uniform(0.0, 1e-5))
    return engine(
        step_s=step_s,
        token_s=float(rng.choice([0.0, 1e-3, 1e-4])) if on.grid else float(rng.uniform(0, 2e-4)),
        max_tokens=tokens,
        max_seqs=seqs,
        head_s=np.linspace(0.0, float(rng.choice([0.0, 1e-4, 0.00037])), seqs + 1),
        kv_s_per_token=kv_s,
        kv_window_s_per_token=float(rng.choice([0.0, 3e-7])),
        window_tokens=int(rng.integers(0, 20)),
        prefill_attention_s_per_token2=float(rng.choice([0.0, 1.7e-8])),
        prefill_kv_s_per_token=float(rng.choice([0.0, 2e-6])),
        power_w=100.0 + 4.0 * np.arange(tokens + 1),
        block_tokens=block,
        blocks=blocks,
        max_context=int(rng.choice([1 << 30, 60])),
        cold_s=float(rng.choice([0.0, 0.05, 1.0])),
        role=role,
        caching=on.caching,
        chunk_tokens=chunk if on.caching else 0,
        transfer_s_per_token=float(rng.choice([0.0, 1e-4, 1e-6])),
        prefill_tokens_per_s=float(rng.uniform(1e3, 2e4)),
        decode_s_per_token=step_s,
        cost_per_mtok=float(rng.choice([1.0, 2.0])),
        model_i=model_i,
    )


def _random_outages(rng: np.random.Generator, n_replicas: int, groups: Any, until_s: float, grid: bool) -> Any:
    rows = []
    for group in range(len(groups)):
        at_s = 0.0
        for _ in range(int(rng.integers(0, 5))):
            at_s += float(rng.exponential(until_s / 4)) + 0.002
            down_s = float(rng.choice([0.001, 0.05, 0.5, 3.0]))
            if grid:
                at_s = round(at_s, 3)
            rows.append((round(at_s * 1e9), group, 1))
            at_s += down_s
            rows.append((round(at_s * 1e9), group, -1))
    rows.sort(key=lambda row: row[0])
    return np.array(rows, np.int64).reshape(-1, 3)


def random_system(on: Switches) -> tuple[TwinSpec, SimpleNamespace]:
    """Return a random fleet and a trace of up to an hour for it."""
    rng = np.random.default_rng(on.seed)
    n_sites = 2 if on.two_sites else 1
    n_models = 2 if on.two_models else 1
    engines: list[EngineSpec] = []
    pools: list[PoolSpec] = []
    chunk_block = None
    for model_i in range(n_models):
        roles = (st.PREFILL, st.DECODE) if on.disaggregated else (st.MIXED,)
        for role in roles:
            one = _random_engine(rng, on, role, model_i)
            if on.caching:  # one trace has one size of hashed block
                chunk_block = chunk_block or one.chunk_tokens
                block = one.block_tokens if chunk_block % one.block_tokens == 0 else 1
                one = replace(
                    one, chunk_tokens=chunk_block, block_tokens=block, blocks=one.blocks * one.block_tokens // block
                )
            engines.append(one)
            for site in range(n_sites):
                n_max = int(rng.integers(1, 4))
                n_min = (
                    int(rng.integers(0 if on.scaling and role == st.MIXED else 1, n_max + 1)) if on.scaling else n_max
                )
                pools.append(PoolSpec(deployment=len(engines) - 1, site=site, n_min=n_min, n_max=n_max))
    n_replicas = sum(p.n_max for p in pools)
    n_tenants, n_regions = 2, 2
    may = np.zeros((n_tenants, n_models, len(pools)), np.uint8)
    for p, pool in enumerate(pools):
        may[:, engines[pool.deployment].model_i, p] = 1
        if on.two_sites and pool.site == 1:
            may[1, :, p] = 0  # the second tenant must stay in the first site
    busy_s = np.mean([e.base_s[-1] for e in engines])
    gap_s = float(busy_s * rng.choice([0.1, 0.3, 1.0, 3.0]))
    if rng.random() < 0.15:
        gap_s = 3000.0 / on.n_requests  # up to an hour, mostly idle
    chunk = random_trace(rng, on, gap_s, n_tenants, n_regions, n_models, chunk_block or 0)
    until_s = float(chunk.arrival_ns[-1]) * 1e-9 + 1.0
    by_site = [tuple(r for r, s in enumerate(_site_of(pools)) if s == site) for site in range(n_sites)]
    pairs = [(r, r + 1) for r in range(n_replicas - 1)]
    groups = tuple([(r,) for r in range(n_replicas)] + by_site + pairs) if on.failures else ()
    limit_kw = None
    if on.cap:
        span = 1000
        limit_kw = rng.choice([np.inf, 0.12, 0.15, 0.25], (n_sites, span)) * n_replicas / n_sites + 0.05
    spec = TwinSpec(
        engines=tuple(engines),
        pools=tuple(pools),
        one_way_s=rng.choice([0.0, 0.001, 0.0153], n_sites) if on.network else np.zeros(n_sites),
        region_rtt_s=rng.choice([0.0, 0.02], n_regions) if on.network else np.zeros(n_regions),
        may=may,
        slo=np.array([[0.05, 0.02], [0.5, 0.1]]),
        priority=np.array([2, 7]),
        prices=np.array([[1.0, 0.5, 2.0], [1.0, 0.1, 3.0]]),
        budget=np.array([on.n_requests * 60.0, np.inf]) if on.admit >= 2 else np.full(2, np.inf),
        limit_kw=limit_kw,
        training_kw=None if limit_kw is None else np.full(limit_kw.shape, 0.05),
        outages=_random_outages(rng, n_replicas, groups, until_s, on.grid),
        groups=groups,
        route=on.route,
        admit=on.admit,
        scale=int(on.scaling),
        cap=on.cap,
        hard_cap=on.hard and on.cap in (1, 3),
        scrapes=on.route in (2, 4, 5),
        observe_every_s=float(rng.choice([0.01, 0.1])) if until_s < 60 else 5.0,
        control_every_s=float(rng.choice([0.01, 0.05])) if until_s < 60 else 5.0,
        detect_s=float(rng.choice([0.0, 0.003, 0.5])),
        retries=int(rng.integers(0, 4)),
        max_wait_s=float(rng.choice([0.005, 0.05])) if on.max_wait else 0.0,
        tunables=(1.2, 1.0, 0.6, 0.05),
        predicted_output_tokens=12.0,
        bin_s=0.1 if until_s < 60 else 20.0,
        closed_users=int(rng.integers(1, 9)) if on.closed else 0,
        think_s=float(rng.choice([0.0, 0.01])),
        seed=on.seed,
    )
    return spec, chunk


def _site_of(pools: Any) -> list[int]:
    return [pool.site for pool in pools for _ in range(pool.n_max)]


def random_trace(
    rng: np.random.Generator, on: Switches, gap_s: float, n_tenants: int, n_regions: int, n_models: int, block: int
) -> SimpleNamespace:
    """Return a trace whose prompts share prefixes: each continues one of a few conversations."""
    n = on.n_requests
    arrival_s = np.cumsum(rng.exponential(gap_s, n))
    if on.grid:
        arrival_s = np.round(arrival_s, 3)
    input_tokens = rng.integers(1, 50, n)
    output_tokens = rng.integers(1, 40, n)
    if rng.random() < 0.3:
        input_tokens[rng.integers(0, n)] = 500  # too long for some
    hashes: list[list[int]] = []
    for i in range(n):
        n_hash = int(input_tokens[i]) // block if block else 0
        family = int(rng.integers(0, 3))
        same = int(rng.integers(0, n_hash + 1))  # blocks shared with the family
        hashes.append([family * 1000 + j + 1 if j < same else 10_000 + i * 1000 + j for j in range(n_hash)])
    return trace(
        arrival_s,
        input_tokens,
        output_tokens,
        tenant_i=rng.integers(0, n_tenants, n),
        region_i=rng.integers(0, n_regions, n),
        model_i=rng.integers(0, n_models, n),
        hashes=hashes,
    )
