"""The twin's state: every array that the kernel reads and writes, what a row means, and how it is laid out.

Rows are records (array of structures): one event touches one replica and one request, so their fields share cache lines.
Time is int64 nanoseconds after the run's start; inside a replica it is finer: a boundary lies at `t` ns plus `frac`
ticks, a tick is 2**-22 ns, and a step's time is a whole number of ticks. So the time of m equal steps is exact in
closed form, and fast-forwarding agrees with stepping to the bit, ties included.
Filling these arrays from a fleet is `setup.py`; moving them is `kernel.py`.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np

from baseload.records import dtypes

TICK_BITS = 22  # a tick is 2**-22 ns
TABLE_BITS = 16  # step tables hold units of 2**-16 ns; times `slow` (64 = full speed) they are ticks
SLOW_ONE = 1 << (TICK_BITS - TABLE_BITS)
NEVER = 1 << 62  # later than any event
TABLE_UNITS_PER_S = 1e9 * (1 << TABLE_BITS)
MAX_STEP_UNITS = 1 << 45  # about 0.54 s a step at full speed; slower than that is refused at setup
HASHES_PER_NODE = 7
GATE_UNKNOWN, GATE_POWER = -1, -2  # of World.gate: not known to be up; closed to everybody at a power limit
KEY_BLOCKS = 4  # a request's prefix key is the hash of its first (up to) four hashed blocks

# State of a replica.
OFF, STARTING, UP, DRAINING = 0, 1, 2, 3
# Role of a deployment.
MIXED, PREFILL, DECODE = 0, 1, 2
# State of a request.
QUEUED, PREFILLING, DECODING = 0, 1, 2
# Kinds of timers.
T_RETRY, T_KNOW_UP, T_KNOW_DOWN, T_READY, T_ISSUE = 0, 1, 2, 3, 4
# Why `advance` came back.
(
    FINISHED,
    NEED_ARRIVALS,
    OUT_FULL,
    NEED_SLOTS,
    NEED_HASHES,
    NEED_BINS,
    REACHED_UNTIL,
    PAUSED,
    DUE_OUTAGE,
    DUE_TIMER,
    DUE_SCRAPE,
    DUE_CONTROL,
) = range(12)

SLOT = np.dtype(
    [
        ("req_id", "i8"),
        ("arrival", "i8"),
        ("ready", "i8"),  # at the replica's door
        ("scheduled", "i8"),
        ("first", "i8"),
        ("notice", "i8"),  # when the gateway learns that it ended
        ("rtt", "i8"),  # client to gateway and back
        ("dec_step", "i8"),  # replica's step_no when it (last) began to decode
        ("admit_no", "i8"),  # order of admission: the last admitted is preempted first
        ("energy", "f8"),
        ("energy0", "f8"),  # replica's cum_j when it began to decode
        ("work", "f8"),  # tokens promised to the gateway's queued_tokens column
        ("price", "f8"),  # reserved of the tenant's budget
        ("inp", "i4"),
        ("out", "i4"),
        ("gen", "i4"),  # tokens answered before dec_step
        ("computed", "i4"),  # tokens whose KV is there, while prefilling
        ("target", "i4"),  # tokens to prefill: prompt, and what was answered before a preemption
        ("chunk", "i4"),  # tokens of it in the step that runs
        ("shared", "i4"),  # chunks of its KV that lie in the prefix cache
        ("leaf", "i4"),  # its deepest prefix-cache entry, -1 none
        ("hashes", "i4"),  # first node of its block hashes, -1 none
        ("n_hash", "i4"),
        ("next", "i4"),  # link in whichever list it is in
        ("replica", "i4"),
        ("door", "i4"),  # replica that the gateway sent it to: with prefill apart from decode, the prefill replica
        ("cached", "i4"),
        ("window", "i4"),  # tokens it reads in sliding-window layers
        ("tenant", "i2"),
        ("region", "i2"),
        ("model", "i2"),
        ("tries", "i2"),
        ("preempted", "i2"),
        ("state", "i1"),
        ("remote", "i1"),  # its KV was computed by a prefill replica
    ],
    align=True,
)

REPLICA = np.dtype(
    [
        ("t", "i8"),  # last boundary, whole ns
        ("frac", "i8"),  # and ticks beyond
        ("run_b", "i8"),  # ticks of the first step of the run in progress
        ("run_g", "i8"),  # ticks that each further step is longer
        ("run_m", "i8"),  # steps in the run; 0: idle
        ("run_tokens", "i8"),  # tokens a step
        ("pre_ticks", "i8"),  # part of a mixed step that its prompts added
        ("step_no", "i8"),
        ("n_dec", "i8"),
        ("kv_sum", "i8"),  # tokens of context over decoding sequences
        ("window_sum", "i8"),
        ("free", "i8"),  # KV blocks neither held nor cached
        ("n_evictable", "i8"),  # cached chunks that nobody holds
        ("admits", "i8"),
        ("slow", "i8"),
        ("ready_at", "i8"),
        ("powered_since", "i8"),
        ("up_since", "i8"),
        ("down_since", "i8"),
        ("below_since", "i8"),
        ("n_steps", "i8"),
        ("busy_ns", "i8"),
        ("prefill_ns", "i8"),
        ("powered_ns", "i8"),
        ("down_ns", "i8"),
        ("prefill_tokens", "i8"),
        ("decode_tokens", "i8"),
        ("cached_tokens", "i8"),
        ("served", "i8"),
        ("n_preempted", "i8"),
        ("blocks_peak", "i8"),
        ("dyn", "f8"),  # power above idle is cut to this share
        ("next_dyn", "f8"),  # from the next boundary on
        ("cap_w", "f8"),  # most power above idle that it may draw in any step
        ("cum_j", "f8"),  # energy given to each decoding sequence so far
        ("energy_j", "f8"),  # while in steps
        ("busy_idle_j", "f8"),  # what idling would have drawn meanwhile
        ("dep", "i4"),
        ("site", "i4"),
        ("pool", "i4"),
        ("partial", "i4"),  # request whose prompt is partly computed, -1 none
        ("pf_head", "i4"),  # requests with a chunk in the running step
        ("pf_tail", "i4"),
        ("pf_tokens", "i4"),
        ("q_head", "i4"),  # waiting, in order
        ("q_tail", "i4"),
        ("n_queue", "i4"),
        ("lru_head", "i4"),
        ("lru_tail", "i4"),
        ("entry_free", "i4"),
        ("decode_lo", "i4"),  # replicas that decode for a prefill replica
        ("decode_hi", "i4"),
        ("down", "i4"),  # causes that keep it down
        ("state", "i1"),
        ("blocked", "i1"),  # the first waiting does not fit until something ends
    ],
    align=True,
)

DEPLOYMENT = np.dtype(
    [
        ("max_tokens", "i8"),
        ("max_seqs", "i8"),
        ("block_bits", "i8"),  # a block holds 2**block_bits tokens
        ("blocks", "i8"),
        ("chunk_blocks", "i8"),  # KV blocks of one hashed block of the trace
        ("chunk_tokens", "i8"),
        ("kv_units", "i8"),  # 2**-16 ns per token of context read
        ("window_units", "i8"),
        ("window_tokens", "i8"),
        ("max_context", "i8"),
        ("cold_ns", "i8"),
        ("overhead_ns", "i8"),  # tokenising and the like, before the engine sees a request
        ("transfer_ns_per_token", "f8"),
        ("att_units", "f8"),  # 2**-16 ns per token^2 of prompt attention
        ("ctx_units", "f8"),  # 2**-16 ns per context token read by a chunk
        ("idle_w", "f8"),
        ("peak_w", "f8"),
        ("role", "i4"),
        ("caching", "i4"),
    ],
    align=True,
)

POOL = np.dtype(  # replicas of one deployment in one site: rows lo..hi
    [
        ("lo", "i4"),
        ("hi", "i4"),
        ("n_min", "i4"),
        ("n_max", "i4"),
        ("below_since", "i8"),
        ("dep", "i4"),
        ("site", "i4"),
    ],
    align=True,
)

SITE = np.dtype(
    [
        ("one_way_ns", "i8"),  # gateway to site
        ("open", "i8"),  # largest priority number that the site takes; -1 none
        ("capped_since", "i8"),
        ("parked_ratio", "f8"),  # share of idle power drawn by accelerators without a replica
        ("notice_head", "i4"),  # requests whose end the gateway has yet to learn
        ("notice_tail", "i4"),
    ],
    align=True,
)

TENANT = np.dtype(
    [
        ("ttft_slo_s", "f8"),
        ("tpot_slo_s", "f8"),
        ("budget", "f8"),
        ("spent", "f8"),
        ("reserved", "f8"),
        ("input_price", "f8"),  # a token
        ("cached_price", "f8"),
        ("output_price", "f8"),
        ("priority", "i8"),
    ],
    align=True,
)

KIND = np.dtype(  # a tenant's requests for one model
    [
        ("predicted", "f8"),  # running mean of its answers, tokens
        ("ticket", "i8"),
        ("asked", "i8"),  # requests that found nobody since the last scaling decision
    ],
    align=True,
)

ENTRY = np.dtype(  # one cached chunk of a replica's prefix cache
    [("key", "i8"), ("parent", "i4"), ("refs", "i4"), ("prev", "i4"), ("next", "i4")], align=True
)

OUT = np.dtype(dtypes("requests"))

# Scalars of the run.
(
    G_FREE_SLOT,
    G_ACTIVE,
    G_FREE_NODE,
    G_N_TIMERS,
    G_TIMER_ORDER,
    G_OUT,
    G_NOW,
    G_NEXT_TICK,
    G_NEXT_SCRAPE,
    G_EVENT_I,
    G_ARRIVAL_I,
    G_IN,
    G_SERVED,
    G_REFUSED,
    G_FAILED,
    G_LIVE_NODES,
    G_CLOSED,
    G_THINK_NS,
    G_STEPPING,
    G_ENERGY,
    G_ROUTE,
    G_ADMIT,
    G_SCALE,
    G_CAP,
    G_SCRAPES,
    G_TICKS,
    G_SCRAPE_NS,
    G_TICK_NS,
    G_DETECT_NS,
    G_RETRIES,
    G_MAX_WAIT_NS,
    G_SCALE_DOWN_NS,
    G_BIN_NS,
    G_LEAVES,
    G_MODELS,
    G_SPECIAL,
    G_HANDED,
    G_NEXT_OUTAGE,
    G_BLOCK_TOKENS,
    G_HARD_CAP,
    G_COUNT,
) = range(41)

# Columns of the bins (site, bin, column).
B_DYNAMIC_J, B_BUSY_IDLE_J, B_POWERED_J, B_POWERED_S, B_UP_S, B_PREFILL, B_DECODE, B_SERVED, B_CAPPED_S = range(9)
N_BIN_COLUMNS = 9


# Rows of World.counts (row, replica) int64 and World.columns (row, replica) float64: what the gateway knows.
C_OUTSTANDING, C_RUNNING, C_WAITING, C_SLOTS = range(4)
F_QUEUED, F_PREFILL_SPEED, F_DECODE_S, F_KV_FREE, F_COST, F_CARBON = range(6)


class World(NamedTuple):
    """Everything the hot kernel works on. (slot,), (replica,) ... name the axes."""

    scalars: Any  # (G_COUNT,) int64
    slots: Any  # (slot,) SLOT
    replicas: Any  # (replica,) REPLICA
    deployments: Any  # (deployment,) DEPLOYMENT
    tree: Any  # (2 * leaves,) int64: winner tree over the replicas' next events
    heap: Any  # (replica, seat) int64: decoding requests, finish step << 24 | slot
    residues: Any  # (replica, block token) int32: decoding sequences by (position - step_no) mod block
    entries: Any  # (replica, entry) ENTRY
    table: Any  # (replica, bucket) int32: open addressing, entry + 1
    nodes: Any  # (node, 8) int64: block hashes of requests in flight, and a link
    base: Any  # (deployment, tokens) int64, 2**-16 ns
    head: Any  # (deployment, sequences) int64, 2**-16 ns
    power: Any  # (deployment, tokens) float64 W
    timers: Any  # (timer, 3) int64: time, order << 3 | kind, row
    sites: Any  # (site,) SITE
    tenants: Any  # (tenant,) TENANT
    kinds: Any  # (tenant * models + model,) KIND
    may: Any  # (tenant * models + model, replica) uint8: law, model and role
    gate: Any  # (replica,) int8: largest priority number it takes; GATE_UNKNOWN or GATE_POWER: none
    allowed: Any  # (replica,) uint8: scratch
    counts: Any  # (4, replica) int64, see C_...
    columns: Any  # (6, replica) float64, see F_...
    rtt_s: Any  # (region, replica) float64
    tunables: Any  # (4,) float64
    dice: Any  # (2**k,) float64: drawn beforehand, used in turn
    limits: Any  # (model,) int64: longest prompt plus answer that every deployment of it can hold
    bins: Any  # (site, bin, N_BIN_COLUMNS) float64
    scratch: Any  # (seat,) int64
    out: Any  # (row,) OUT: records since the shell last emptied it


class Plant(NamedTuple):
    """What only the rare events need: outages, scaling, power limits."""

    pools: Any  # (pool,) POOL
    outages: Any  # (event, 3) int64: time, group, +1 down or -1 up
    group_start: Any  # (group + 1,) int64 into group_member
    group_member: Any  # (member,) int32 replicas
    limit_kw: Any  # (site, bin) float64: IT power that may be drawn
    training_kw: Any  # (site, bin) float64


class Arrivals(NamedTuple):
    """One chunk of the trace, as columns."""

    arrival_ns: Any
    input_tokens: Any
    output_tokens: Any
    tenant_i: Any
    region_i: Any
    model_i: Any
    hash_offsets: Any
    hash_ids: Any
    rtt_ns: Any  # (region,) int64: client to gateway and back
    first_id: int
    most_hashes: int  # of one request of the chunk
    final: bool
