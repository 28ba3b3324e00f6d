"""From a description in numbers to the kernel's arrays, and room for more when the kernel asks.

`setup.py` describes a fleet; tests describe toy systems with known answers. Seconds in, nanoseconds and table units out.
"""

from __future__ import annotations

import os
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt

from baseload.errors import InputError
from baseload.simulate import state as st

Floats = npt.NDArray[np.float64]
MAX_STEP_S = st.MAX_STEP_UNITS / st.TABLE_UNITS_PER_S
MOST_BIN_ROWS = 4_000_000  # of sites and bins: 288 MB
LATEST_NS = 4 * 10**18  # 127 years: what is set from there on still fits int64
MOST_MEMORY_RATIO = 0.6  # of the machine's memory that the twin's world may take


@dataclass(frozen=True, slots=True, kw_only=True)
class EngineSpec:
    """One deployment's engine: what a step costs (formulas/speed.py: StepCosts) and what fits."""

    base_s: Floats  # (max_tokens + 1,)
    head_s: Floats  # (max_seqs + 1,)
    kv_s_per_token: float = 0.0
    kv_window_s_per_token: float = 0.0
    window_tokens: int = 0
    prefill_attention_s_per_token2: float = 0.0
    prefill_kv_s_per_token: float = 0.0
    power_w: Floats | None = None  # (max_tokens + 1,) while a step runs
    power_idle_w: float = 0.0
    max_tokens: int = 2048
    max_seqs: int = 256
    block_tokens: int = 16
    blocks: int = 1 << 20
    max_context: int = 1 << 30
    cold_s: float = 0.0
    overhead_s: float = 0.0  # tokenising and the like, before the engine sees a request
    role: int = st.MIXED
    caching: bool = False
    chunk_tokens: int = 0  # tokens of one hashed block of the trace; 0: no cache
    transfer_s_per_token: float = 0.0
    prefill_tokens_per_s: float = 10_000.0
    decode_s_per_token: float = 0.02
    accelerators: int = 1
    cost_per_mtok: float = 0.0
    model_i: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class PoolSpec:
    """Replicas of one deployment in one site."""

    deployment: int
    site: int
    n_min: int
    n_max: int
    server_of: tuple[int, ...] = ()  # server number of each replica, for failures; empty: none


@dataclass(frozen=True, slots=True, kw_only=True)
class TwinSpec:
    """A whole system in numbers."""

    engines: tuple[EngineSpec, ...]
    pools: tuple[PoolSpec, ...]
    one_way_s: Floats  # (site,)
    region_rtt_s: Floats  # (region,) client to gateway and back
    may: npt.NDArray[np.uint8]  # (tenant, model, pool)
    slo: Floats  # (tenant, 2) TTFT s, TPOT s
    priority: npt.NDArray[np.int64]  # (tenant,)
    prices: Floats  # (tenant, 3) a token: input, cached, output
    budget: Floats  # (tenant,) for the whole run; inf none
    limit_kw: Floats | None = None  # (site, bin)
    training_kw: Floats | None = None  # (site, bin) everything but replicas, parked accelerators included
    parked_ratio: Floats | None = None  # (site,) share of idle power drawn by accelerators without a replica
    outages: npt.NDArray[np.int64] = field(default_factory=lambda: np.zeros((0, 3), np.int64))
    groups: tuple[tuple[int, ...], ...] = ()
    route: int = 1
    admit: int = 0
    scale: int = 0
    cap: int = 0
    hard_cap: bool = False  # whether replicas hold a power cap of their own, so that no bin exceeds the site's limit
    scrapes: bool = False
    observe_every_s: float = 1.0
    control_every_s: float = 10.0
    detect_s: float = 2.0
    retries: int = 2
    max_wait_s: float = 0.0
    tunables: tuple[float, float, float, float] = (1.5, 1.0, 0.6, 300.0)
    predicted_output_tokens: float = 256.0
    energy: bool = True
    stepping: bool = False
    bin_s: float = 60.0
    bins: int = 120
    closed_users: int = 0
    think_s: float = 0.0
    seed: int = 0


def too_slow(engine: EngineSpec) -> bool:
    """Say whether a step of an engine is longer than the twin can hold."""
    return float(max(engine.base_s.max(), engine.head_s.max())) >= MAX_STEP_S


def _units(seconds: Floats, what: str) -> npt.NDArray[np.int64]:
    """Return whole table units of 2**-16 ns; refuses what is negative, not finite or absurd."""
    if not np.all(np.isfinite(seconds)) or np.any(seconds < 0.0):
        raise InputError(f"speed model: {what} is negative or not finite; check the deployment's `speed` constants")
    units = np.rint(seconds * st.TABLE_UNITS_PER_S)
    if np.any(units > st.MAX_STEP_UNITS):
        raise InputError(
            f"speed model: {what} gives a step of {float(seconds.max()):.3g} s; a step must stay under "
            f"{MAX_STEP_S:.2g} s: use more accelerators, a smaller model or a lower max_num_batched_tokens"
        )
    return units.astype(np.int64)


def pool_rows(spec: TwinSpec) -> list[tuple[int, int]]:
    """Return (first, past the last) replica row of each pool."""
    rows = []
    n = 0
    for pool in spec.pools:
        rows.append((n, n + pool.n_max))
        n += pool.n_max
    return rows


def _deployments(spec: TwinSpec) -> tuple[Any, Any, Any, Any]:
    engines = spec.engines
    rows = np.zeros(len(engines), st.DEPLOYMENT)
    base = np.zeros((len(engines), max(e.max_tokens for e in engines) + 1), np.int64)
    head = np.zeros((len(engines), max(e.max_seqs for e in engines) + 2), np.int64)
    power = np.zeros(base.shape, np.float64)
    for i, engine in enumerate(engines):
        if engine.max_tokens < engine.max_seqs:
            raise InputError("max_num_batched_tokens must be at least max_num_seqs; raise it, or lower max_num_seqs")
        base[i, : engine.max_tokens + 1] = _units(engine.base_s, "a step's base cost")
        head[i, : engine.max_seqs + 1] = _units(engine.head_s, "the head")
        head[i, engine.max_seqs + 1 :] = head[i, engine.max_seqs]
        power[i, : engine.max_tokens + 1] = engine.power_idle_w if engine.power_w is None else engine.power_w
        row = rows[i]
        if engine.block_tokens & (engine.block_tokens - 1):
            raise InputError(f"block_tokens is {engine.block_tokens}; use a power of two, e.g. 16")
        caching = engine.caching and engine.chunk_tokens > 0
        if caching and engine.chunk_tokens % engine.block_tokens:
            raise InputError(
                f"the trace hashes blocks of {engine.chunk_tokens} tokens, block_tokens is {engine.block_tokens}; "
                "make block_tokens a divisor of it, or turn prefix_caching off"
            )
        row["max_tokens"], row["max_seqs"] = engine.max_tokens, engine.max_seqs
        row["block_bits"], row["blocks"] = engine.block_tokens.bit_length() - 1, engine.blocks
        row["chunk_tokens"] = engine.chunk_tokens if caching else 0
        row["chunk_blocks"] = engine.chunk_tokens // engine.block_tokens if caching else 0
        row["kv_units"] = _units(np.array([engine.kv_s_per_token]), "kv_s_per_token")[0]
        row["window_units"] = _units(np.array([engine.kv_window_s_per_token]), "kv_window_s_per_token")[0]
        row["window_tokens"] = engine.window_tokens
        row["max_context"] = engine.max_context
        row["overhead_ns"] = round(engine.overhead_s * 1e9)
        row["cold_ns"] = round(engine.cold_s * 1e9)
        row["transfer_ns_per_token"] = engine.transfer_s_per_token * 1e9
        row["att_units"] = engine.prefill_attention_s_per_token2 * st.TABLE_UNITS_PER_S
        row["ctx_units"] = engine.prefill_kv_s_per_token * st.TABLE_UNITS_PER_S
        row["idle_w"] = engine.power_idle_w
        row["peak_w"] = power[i].max()
        row["role"], row["caching"] = engine.role, int(caching)
    return rows, base, head, power


def _replicas(spec: TwinSpec, rows: list[tuple[int, int]]) -> tuple[Any, Any]:
    n = rows[-1][1]
    replicas = np.zeros(n, st.REPLICA)
    for name in ("partial", "pf_head", "pf_tail", "q_head", "q_tail", "lru_head", "lru_tail", "entry_free"):
        replicas[name] = -1
    for name in ("powered_since", "up_since", "down_since", "below_since", "ready_at"):
        replicas[name] = -1
    replicas["slow"] = st.SLOW_ONE
    replicas["dyn"] = replicas["next_dyn"] = 1.0
    replicas["cap_w"] = np.inf
    pools = np.zeros(len(spec.pools), st.POOL)
    for p, pool in enumerate(spec.pools):
        lo, hi = rows[p]
        pools[p]["lo"], pools[p]["hi"] = lo, hi
        pools[p]["n_min"], pools[p]["n_max"] = pool.n_min, pool.n_max
        pools[p]["dep"], pools[p]["site"], pools[p]["below_since"] = pool.deployment, pool.site, -1
        replicas["dep"][lo:hi] = pool.deployment
        replicas["site"][lo:hi] = pool.site
        replicas["pool"][lo:hi] = p
        replicas["state"][lo : lo + pool.n_min] = st.UP
        replicas["powered_since"][lo : lo + pool.n_min] = 0
    return replicas, pools


def _require_memory(spec: TwinSpec, n_replicas: int) -> None:
    """Refuse a world that does not fit the machine, naming what makes it large."""
    engines = spec.engines
    width = max(e.max_tokens for e in engines) + max(e.max_seqs for e in engines)
    cached = [e.blocks * e.block_tokens // e.chunk_tokens for e in engines if e.caching and e.chunk_tokens > 0]
    of = {
        "the replicas' seats (max_num_seqs)": 8 * n_replicas * max(e.max_seqs for e in engines),
        "the replicas' block tables (block_tokens)": 4 * n_replicas * max(e.block_tokens for e in engines),
        "the replicas' prefix caches (kv_blocks; or prefix_caching: false)": 40 * n_replicas * max(cached, default=0),
        "the deployments' step tables (max_num_batched_tokens)": 24 * len(engines) * width,
        "who may be served where (tenants x models x replicas)": spec.may.shape[0] * spec.may.shape[1] * n_replicas,
        "network times (regions x replicas)": 8 * len(spec.region_rtt_s) * n_replicas,
        "the users of the closed loop": 32 * spec.closed_users,
    }
    total, there = sum(of.values()), _machine_bytes()
    if total > MOST_MEMORY_RATIO * there:
        largest = max(of, key=lambda name: of[name])
        raise InputError(
            f"the twin of this fleet takes {total / 1e9:,.1f} GB, and this machine has {there / 1e9:,.1f} GB; "
            f"most of it are {largest}: lower them, or run fewer replicas"
        )


def _machine_bytes() -> float:
    try:
        return float(os.sysconf("SC_PHYS_PAGES")) * os.sysconf("SC_PAGE_SIZE")
    except (AttributeError, ValueError, OSError):  # Windows
        return 16e9


def _pair_decoders(spec: TwinSpec, rows: list[tuple[int, int]], replicas: Any) -> None:
    """Tell each prefill replica which rows decode for it: the decode pool of its model in its site."""
    for p, pool in enumerate(spec.pools):
        engine = spec.engines[pool.deployment]
        if engine.role != st.PREFILL:
            continue
        for other, candidate in enumerate(spec.pools):
            decoder = spec.engines[candidate.deployment]
            if decoder.role == st.DECODE and candidate.site == pool.site and decoder.model_i == engine.model_i:
                replicas["decode_lo"][rows[p][0] : rows[p][1]] = rows[other][0]
                replicas["decode_hi"][rows[p][0] : rows[p][1]] = rows[other][1]


def build(spec: TwinSpec, *, slots: int = 4096, nodes: int = 4096, out_rows: int = 65_536) -> tuple[st.World, st.Plant]:
    """Return the world and the plant at time 0; every array is fresh, nothing of `spec` is changed."""
    rows = pool_rows(spec)
    n = rows[-1][1]
    if n == 0:
        raise InputError("no replica is deployed anywhere; give a deployment at least one under `sites`")
    _require_memory(spec, n)
    deployments, base, head, power = _deployments(spec)
    replicas, pools = _replicas(spec, rows)
    n_sites, n_tenants, n_models = len(spec.one_way_s), len(spec.priority), spec.may.shape[1]
    seats = max(e.max_seqs for e in spec.engines)
    block_tokens = max(e.block_tokens for e in spec.engines)
    most_entries = 1
    for engine in spec.engines:
        if engine.caching and engine.chunk_tokens > 0:
            most_entries = max(most_entries, engine.blocks // (engine.chunk_tokens // engine.block_tokens) + 2)
    leaves = 1 << max(1, (n - 1).bit_length())
    may = np.zeros((n_tenants * n_models, n), np.uint8)
    for p, (lo, hi) in enumerate(rows):
        if spec.engines[spec.pools[p].deployment].role != st.DECODE:
            may[:, lo:hi] = spec.may[:, :, p].reshape(-1, 1)
    limits = np.full(n_models, st.NEVER, np.int64)
    for engine in (spec.engines[i] for i in sorted({pool.deployment for pool in spec.pools})):
        room = min(engine.max_context, engine.blocks * engine.block_tokens - 1)
        limits[engine.model_i] = min(limits[engine.model_i], room)
    of = replicas["dep"]
    site_of = replicas["site"]
    _pair_decoders(spec, rows, replicas)
    sites = np.zeros(n_sites, st.SITE)
    sites["one_way_ns"] = np.rint(spec.one_way_s * 1e9)
    sites["parked_ratio"] = 0.0 if spec.parked_ratio is None else spec.parked_ratio
    sites["open"], sites["capped_since"], sites["notice_head"], sites["notice_tail"] = 9, -1, -1, -1
    tenants = np.zeros(n_tenants, st.TENANT)
    tenants["ttft_slo_s"], tenants["tpot_slo_s"] = spec.slo[:, 0], spec.slo[:, 1]
    tenants["budget"], tenants["priority"] = spec.budget, spec.priority
    tenants["input_price"], tenants["cached_price"], tenants["output_price"] = spec.prices.T
    kinds = np.zeros(n_tenants * n_models, st.KIND)
    kinds["predicted"] = spec.predicted_output_tokens
    counts = np.zeros((4, n), np.int64)
    counts[st.C_SLOTS] = np.array([e.max_seqs for e in spec.engines], np.int64)[of]
    columns = np.zeros((6, n))
    columns[st.F_PREFILL_SPEED] = np.array([e.prefill_tokens_per_s for e in spec.engines])[of]
    columns[st.F_DECODE_S] = np.array([e.decode_s_per_token for e in spec.engines])[of]
    columns[st.F_KV_FREE] = 1.0
    columns[st.F_COST] = np.array([e.cost_per_mtok for e in spec.engines])[of]
    scalars = np.zeros(st.G_COUNT, np.int64)
    limit_kw = np.full((n_sites, 1), np.inf) if spec.limit_kw is None else spec.limit_kw
    generator = np.random.default_rng(spec.seed)
    world = st.World(
        scalars=scalars,
        slots=np.zeros(slots, st.SLOT),
        replicas=replicas,
        deployments=deployments,
        tree=np.full(2 * leaves, st.NEVER, np.int64),
        heap=np.zeros((n, seats + 1), np.int64),
        residues=np.zeros((n, block_tokens), np.int32),
        entries=np.zeros((n, most_entries), st.ENTRY),
        table=np.zeros((n, 1 << (2 * most_entries).bit_length()), np.int32),
        nodes=np.zeros((nodes, 8), np.int64),
        base=base,
        head=head,
        power=power,
        timers=np.zeros((slots + 8 * n + spec.closed_users + 64, 3), np.int64),
        sites=sites,
        tenants=tenants,
        kinds=kinds,
        may=may,
        gate=np.where(replicas["state"] == st.UP, 9, -1).astype(np.int8),
        allowed=np.zeros(n, np.uint8),
        counts=counts,
        columns=columns,
        rtt_s=spec.region_rtt_s[:, None] + 2.0 * spec.one_way_s[site_of][None, :],
        tunables=np.array(spec.tunables),
        dice=generator.random(8192),
        limits=limits,
        bins=np.zeros((n_sites, spec.bins, st.N_BIN_COLUMNS)),
        scratch=np.zeros(2 * seats + 2, np.int64),
        out=np.zeros(max(out_rows, 4 * seats + 1024), st.OUT),
    )
    plant = st.Plant(
        pools=pools,
        outages=spec.outages,
        group_start=np.cumsum([0, *(len(g) for g in spec.groups)]).astype(np.int64),
        group_member=np.array([r for g in spec.groups for r in g], np.int32),
        limit_kw=limit_kw,
        training_kw=np.zeros((n_sites, limit_kw.shape[1])) if spec.training_kw is None else spec.training_kw,
    )
    _set_scalars(spec, world, leaves, n_models)
    _free_lists(world)
    return world, plant


def _set_scalars(spec: TwinSpec, world: st.World, leaves: int, n_models: int) -> None:
    g = world.scalars
    g[st.G_HANDED] = -1
    g[st.G_NEXT_OUTAGE] = spec.outages[0, 0] if len(spec.outages) else st.NEVER
    g[st.G_CLOSED] = int(spec.closed_users > 0)
    g[st.G_THINK_NS] = round(spec.think_s * 1e9)
    g[st.G_STEPPING] = int(spec.stepping)
    g[st.G_ENERGY] = int(spec.energy)
    g[st.G_ROUTE], g[st.G_ADMIT], g[st.G_SCALE], g[st.G_CAP] = spec.route, spec.admit, spec.scale, spec.cap
    g[st.G_SCRAPES] = int(spec.scrapes)
    limited = spec.limit_kw is not None and bool(np.isfinite(spec.limit_kw).any()) and spec.cap > 0
    g[st.G_TICKS] = int(spec.scale > 0 or limited)
    g[st.G_SCRAPE_NS] = g[st.G_NEXT_SCRAPE] = round(spec.observe_every_s * 1e9)
    g[st.G_TICK_NS] = g[st.G_NEXT_TICK] = round(spec.control_every_s * 1e9)
    g[st.G_HARD_CAP] = int(spec.hard_cap and limited)
    if g[st.G_HARD_CAP]:
        g[st.G_NEXT_TICK] = 0  # nothing may exceed the limit before the first decision either
    g[st.G_BLOCK_TOKENS] = max(engine.chunk_tokens for engine in spec.engines)
    g[st.G_DETECT_NS] = round(spec.detect_s * 1e9)
    g[st.G_RETRIES] = spec.retries
    g[st.G_MAX_WAIT_NS] = round(spec.max_wait_s * 1e9)
    g[st.G_SCALE_DOWN_NS] = round(spec.tunables[3] * 1e9)
    g[st.G_BIN_NS] = round(spec.bin_s * 1e9)
    g[st.G_LEAVES] = leaves
    g[st.G_MODELS] = n_models
    for user in range(spec.closed_users):
        i = g[st.G_N_TIMERS]
        world.timers[i] = (0, (user << 3) | st.T_ISSUE, 0)
        g[st.G_N_TIMERS] += 1
        g[st.G_TIMER_ORDER] += 1


def _free_lists(world: st.World) -> None:
    world.slots["next"] = np.arange(1, len(world.slots) + 1)
    world.slots["next"][-1] = -1
    world.nodes[:, st.HASHES_PER_NODE] = np.arange(1, len(world.nodes) + 1)
    world.nodes[-1, st.HASHES_PER_NODE] = -1
    replicas = world.replicas
    blocks = world.deployments["blocks"][replicas["dep"]]
    replicas["free"] = blocks
    caching = world.deployments["caching"][replicas["dep"]] > 0
    replicas["entry_free"] = np.where(caching, 0, -1)
    world.entries["next"] = np.arange(1, world.entries.shape[1] + 1)
    world.entries["next"][:, -1] = -1


def more_slots(world: st.World) -> st.World:
    """Return the world with twice the room for requests in flight."""
    old = world.slots
    slots = np.zeros(2 * len(old), st.SLOT)
    slots[: len(old)] = old
    slots["next"][len(old) :] = np.arange(len(old) + 1, 2 * len(old) + 1)
    slots["next"][-1] = world.scalars[st.G_FREE_SLOT]
    if len(slots) > 1 << 24:
        raise InputError(
            "more than 16 million requests are in flight: the demand is far beyond the fleet's capacity; "
            "lower demand.scale, add replicas, or set policy.max_wait_s"
        )
    world.scalars[st.G_FREE_SLOT] = len(old)
    timers = np.zeros((len(world.timers) + len(old), 3), np.int64)
    timers[: len(world.timers)] = world.timers
    return world._replace(slots=slots, timers=timers)


def more_nodes(world: st.World) -> st.World:
    """Return the world with twice the room for block hashes of requests in flight."""
    old = world.nodes
    nodes = np.zeros((2 * len(old), 8), np.int64)
    nodes[: len(old)] = old
    nodes[len(old) :, st.HASHES_PER_NODE] = np.arange(len(old) + 1, 2 * len(old) + 1)
    nodes[-1, st.HASHES_PER_NODE] = world.scalars[st.G_FREE_NODE]
    world.scalars[st.G_FREE_NODE] = len(old)
    return world._replace(nodes=nodes)


def more_bins(world: st.World) -> st.World:
    """Return the world with twice as many bins of time; InputError where the run has no sensible end."""
    old = world.bins
    bin_ns = int(world.scalars[st.G_BIN_NS])
    if 2 * old.shape[0] * old.shape[1] > MOST_BIN_ROWS or 2 * old.shape[1] * bin_ns > LATEST_NS:
        raise InputError(
            f"the run goes on for more than {old.shape[1] * bin_ns / 1e9:,.0f} s, far beyond its demand: requests wait for a "
            "queue that hardly moves, or users think that long; add replicas, lower demand.scale, or set policy.max_wait_s"
        )
    bins = np.zeros((old.shape[0], 2 * old.shape[1], old.shape[2]))
    bins[:, : old.shape[1]] = old
    return world._replace(bins=bins)


def more_timers(world: st.World) -> st.World:
    """Return the world with room for a timer for every request in flight and three for every replica, beyond those set."""
    room = int(world.scalars[st.G_N_TIMERS]) + len(world.slots) + 3 * len(world.replicas)
    if room <= len(world.timers):
        return world
    timers = np.zeros((2 * room, 3), np.int64)
    timers[: len(world.timers)] = world.timers
    return world._replace(timers=timers)


def more_out(world: st.World) -> st.World:
    """Return the world with twice the room for records (the shell has emptied the old ones)."""
    return world._replace(out=np.zeros(2 * len(world.out), st.OUT))
