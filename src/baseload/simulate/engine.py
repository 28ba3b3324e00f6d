"""One replica's engine: continuous batching as vLLM V1 does it, a boundary between two steps at a time.

At a boundary the step (or run of equal decode steps) that ended is settled, finished requests leave, and the next step
is planned: every decoding sequence gets one token of the budget, a partly computed prompt goes on, then waiting requests
are admitted first come first served while budget, seats and KV blocks last. When blocks run out the last admitted is
preempted and recomputed. A request is admitted only when its whole prompt fits (vLLM: scheduler_reserve_full_isl).
Runs of pure decode steps advance in closed form up to the next boundary at which anything can change.
"""

from __future__ import annotations

import math
from typing import Any

from baseload.jit import part
from baseload.policies import cap as cap_rules
from baseload.records import (
    REASON_NONE,
    REASON_WAITED,
    REFUSED,
    SERVED,
)
from baseload.simulate import prefix
from baseload.simulate.state import (
    B_BUSY_IDLE_J,
    B_DECODE,
    B_DYNAMIC_J,
    B_PREFILL,
    B_SERVED,
    DECODING,
    DRAINING,
    G_BIN_NS,
    G_ENERGY,
    G_FAILED,
    G_FREE_NODE,
    G_HANDED,
    G_LIVE_NODES,
    G_MAX_WAIT_NS,
    G_OUT,
    G_REFUSED,
    G_SERVED,
    G_STEPPING,
    HASHES_PER_NODE,
    NEVER,
    PREFILL,
    PREFILLING,
    QUEUED,
    SLOW_ONE,
    TICK_BITS,
    UP,
)

SLOT_BITS = 24
SLOT_MASK = (1 << SLOT_BITS) - 1
TICK_MASK = (1 << TICK_BITS) - 1
S_PER_TICK = 1e-9 / (1 << TICK_BITS)
MAX_RUN_TICKS = float(1 << 61)
NO_CAP_W = 1e300

prefix_find = prefix.find
prefix_insert = prefix.insert
take_blocks = prefix.take_blocks
lru_remove = prefix.lru_remove
release_chain = prefix.release_chain
allocations = prefix.allocations
steps_that_fit = prefix.steps_that_fit
speed_ratio = cap_rules.speed_ratio
MIN_DYNAMIC_RATIO = cap_rules.MIN_DYNAMIC_RATIO


@part
def span_ticks(b: int, g: int, m: int) -> int:
    """Return the ticks of `m` steps of which the first takes `b` and each further one `g` more."""
    return m * b + g * ((m * (m - 1)) // 2)


@part
def heap_push(row: Any, n: int, key: int) -> None:
    """Add `key` to the binary heap of the first `n` entries of `row`."""
    i = n
    while i > 0:
        up = (i - 1) >> 1
        if row[up] <= key:
            break
        row[i] = row[up]
        i = up
    row[i] = key


@part
def heap_take(row: Any, n: int, i: int) -> None:
    """Remove entry `i` from the binary heap of the first `n` entries of `row`."""
    key = row[n - 1]
    n -= 1
    if i == n:
        return
    while i > 0:
        up = (i - 1) >> 1
        if row[up] <= key:
            break
        row[i] = row[up]
        i = up
    while True:
        child = 2 * i + 1
        if child >= n:
            break
        if child + 1 < n and row[child + 1] < row[child]:
            child += 1
        if row[child] >= key:
            break
        row[i] = row[child]
        i = child
    row[i] = key


@part
def end_ns(rep: Any) -> int:
    """Return when the run in progress ends, in whole ns, rounded up: what anyone outside can see."""
    ticks = rep.frac + span_ticks(rep.run_b, rep.run_g, rep.run_m)
    return rep.t + ((ticks + TICK_MASK) >> TICK_BITS)


@part
def steps_until(rep: Any, at_ns: int) -> int:
    """Return the fewest steps (1..run_m) of the run after which the boundary lies at or after `at_ns`."""
    low = 1
    high = rep.run_m
    while low < high:
        mid = (low + high) >> 1
        ticks = rep.frac + span_ticks(rep.run_b, rep.run_g, mid)
        if rep.t + ((ticks + TICK_MASK) >> TICK_BITS) >= at_ns:
            high = mid
        else:
            low = mid + 1
    return low


@part
def add_over_time(row: Any, column: int, from_ns: int, until_ns: int, amount: float, bin_ns: int) -> None:
    """Spread `amount` over the bins (bin, column) of `row` that from_ns..until_ns touches."""
    first = from_ns // bin_ns
    last = until_ns // bin_ns
    if first == last or until_ns <= from_ns:
        row[last, column] += amount
        return
    per_ns = amount / (until_ns - from_ns)
    row[first, column] += per_ns * ((first + 1) * bin_ns - from_ns)
    for i in range(first + 1, last):
        row[i, column] += per_ns * bin_ns
    row[last, column] += per_ns * (until_ns - last * bin_ns)


@part
def free_hashes(q: Any, scalars: Any, nodes: Any) -> None:
    """Give a request's hash nodes back."""
    node = q.hashes
    while node >= 0:
        following = nodes[node, HASHES_PER_NODE]
        nodes[node, HASHES_PER_NODE] = scalars[G_FREE_NODE]
        scalars[G_FREE_NODE] = node
        scalars[G_LIVE_NODES] -= 1
        node = following
    q.hashes = -1


@part
def emit(
    q: Any, status: int, reason: int, now: int, generated: int, rep: Any, rtt_ns: int, scalars: Any, out: Any
) -> None:
    """Write the request's record."""
    i = scalars[G_OUT]
    row = out[i]
    scalars[G_OUT] = i + 1
    row.request_id = q.req_id
    row.arrival_ns = q.arrival
    row.tenant_i = q.tenant
    row.region_i = q.region
    row.model_i = q.model
    if q.replica >= 0:
        row.deployment_i = rep.dep
        row.site_i = rep.site
    else:
        row.deployment_i = -1
        row.site_i = -1
    row.replica_i = q.replica
    row.input_tokens = q.inp
    row.output_tokens = generated
    row.cached_tokens = q.cached
    row.n_preempted = q.preempted
    row.n_tries = q.tries
    row.status = status
    row.reason = reason
    row.scheduled_ns = q.scheduled
    row.first_token_ns = q.first
    row.finish_ns = now
    row.rtt_ns = rtt_ns
    row.energy_j = q.energy
    if status == SERVED:
        scalars[G_SERVED] += 1
    elif status == REFUSED:
        scalars[G_REFUSED] += 1
    else:
        scalars[G_FAILED] += 1


@part
def leave(s: int, status: int, reason: int, now: int, generated: int, scalars: Any, slots: Any, replicas: Any,
          nodes: Any, sites: Any, out: Any) -> None:  # fmt: skip
    """End a request at its replica: its record now, the gateway's knowledge after the network's delay."""
    q = slots[s]
    rep = replicas[q.replica]
    site = sites[rep.site]
    emit(q, status, reason, now, generated, rep, q.rtt + site.one_way_ns, scalars, out)  # the way there is in `ready`
    if q.hashes >= 0:
        free_hashes(q, scalars, nodes)
    q.gen = generated
    q.notice = now + site.one_way_ns
    q.next = -1
    if site.notice_tail >= 0:
        slots[site.notice_tail].next = s
    else:
        site.notice_head = s
    site.notice_tail = s


@part
def queue_back(s: int, r: int, slots: Any, replicas: Any) -> None:
    """Put a request at the end of a replica's queue, kept in order of `ready` (KV transfers take different times)."""
    rep = replicas[r]
    q = slots[s]
    q.next = -1
    rep.n_queue += 1
    if rep.q_tail < 0:
        rep.q_head = s
        rep.q_tail = s
        return
    if slots[rep.q_tail].ready <= q.ready:
        slots[rep.q_tail].next = s
        rep.q_tail = s
        return
    before = -1
    at = rep.q_head
    while slots[at].ready <= q.ready:
        before = at
        at = slots[at].next
    q.next = at
    if before < 0:
        rep.q_head = s
    else:
        slots[before].next = s


@part
def queue_pop(r: int, slots: Any, replicas: Any) -> None:
    """Take the first request out of a replica's queue."""
    rep = replicas[r]
    rep.q_head = slots[rep.q_head].next
    if rep.q_head < 0:
        rep.q_tail = -1
    rep.n_queue -= 1


@part
def decode_start(s: int, r: int, block_bits: int, slots: Any, replicas: Any, heap: Any, residues: Any) -> None:
    """Let a request whose prompt is computed join the decoding sequences."""
    q = slots[s]
    rep = replicas[r]
    q.state = DECODING
    q.dec_step = rep.step_no
    q.energy0 = rep.cum_j
    heap_push(heap[r], rep.n_dec, ((rep.step_no + q.out - q.gen) << SLOT_BITS) | s)
    residues[r, (q.target - rep.step_no) & ((1 << block_bits) - 1)] += 1
    rep.n_dec += 1
    rep.kv_sum += q.target
    rep.window_sum += q.window


@part
def decode_stop(s: int, r: int, block_bits: int, chunk_blocks: int,
                slots: Any, replicas: Any, residues: Any, entries: Any) -> None:  # fmt: skip
    """Take a decoding sequence (already out of the heap) off the books and free its KV."""
    q = slots[s]
    rep = replicas[r]
    position = q.target + (rep.step_no - q.dec_step)
    q.energy += rep.cum_j - q.energy0
    residues[r, (q.target - q.dec_step) & ((1 << block_bits) - 1)] -= 1
    rep.n_dec -= 1
    rep.kv_sum -= position
    rep.window_sum -= q.window
    rep.free += ((position + (1 << block_bits) - 1) >> block_bits) - q.shared * chunk_blocks
    release_chain(r, q.leaf, replicas, entries)
    q.leaf = -1
    q.shared = 0


@part
def preempt_last(r: int, now: int, deployments: Any, slots: Any, replicas: Any, heap: Any, residues: Any,
                 entries: Any) -> None:  # fmt: skip
    """Send the last admitted request back to the front of the queue, to be recomputed."""
    rep = replicas[r]
    dep = deployments[rep.dep]
    bt = dep.block_bits
    bt_up = (1 << bt) - 1
    s = rep.partial
    if s >= 0:  # a partly computed prompt is always the last admitted
        q = slots[s]
        rep.partial = -1
        rep.free += ((q.computed + bt_up) >> bt) - q.shared * dep.chunk_blocks
        release_chain(r, q.leaf, replicas, entries)
        q.leaf = -1
        q.shared = 0
    else:
        latest = -1
        seat = 0
        for i in range(rep.n_dec):
            other = heap[r, i] & SLOT_MASK
            if slots[other].admit_no > latest:
                latest = slots[other].admit_no
                seat = i
        s = heap[r, seat] & SLOT_MASK
        heap_take(heap[r], rep.n_dec, seat)
        q = slots[s]
        decode_stop(s, r, bt, dep.chunk_blocks, slots, replicas, residues, entries)
        q.gen += rep.step_no - q.dec_step
        q.target = q.inp + q.gen
    q.state = QUEUED
    q.preempted += 1
    q.ready = now
    q.remote = 0
    rep.n_preempted += 1
    rep.blocked = 0
    q.next = rep.q_head
    rep.q_head = s
    if rep.q_tail < 0:
        rep.q_tail = s
    rep.n_queue += 1


@part
def settle(r: int, m: int, scalars: Any, deployments: Any, slots: Any, replicas: Any, residues: Any, entries: Any,
           table: Any, power: Any, bins: Any) -> None:  # fmt: skip
    """Book `m` steps of the run in progress: time, energy, KV blocks, context lengths."""
    rep = replicas[r]
    dep = deployments[rep.dep]
    ticks = span_ticks(rep.run_b, rep.run_g, m)
    from_ns = rep.t
    moved = rep.frac + ticks
    rep.t += moved >> TICK_BITS
    rep.frac = moved & TICK_MASK
    rep.busy_ns += rep.t - from_ns
    rep.n_steps += m
    if m > 1:
        blocks = allocations(r, rep.step_no + 1, m - 1, rep.n_dec, dep.block_bits, residues)
        take_blocks(r, blocks, dep.chunk_blocks, replicas, entries, table)
    rep.step_no += m
    rep.kv_sum += m * rep.n_dec
    rep.decode_tokens += m * rep.n_dec
    rep.prefill_tokens += rep.pf_tokens
    rep.blocks_peak = max(rep.blocks_peak, dep.blocks - rep.free - rep.n_evictable * dep.chunk_blocks)
    if rep.pf_tokens > 0:
        rep.prefill_ns += rep.pre_ticks >> TICK_BITS
    if scalars[G_ENERGY]:
        length_s = ticks * S_PER_TICK
        watts = dep.idle_w + (power[rep.dep, rep.run_tokens] - dep.idle_w) * rep.dyn
        energy_j = watts * length_s
        idle_j = dep.idle_w * length_s
        rep.energy_j += energy_j
        rep.busy_idle_j += idle_j
        row = bins[rep.site]
        bin_ns = scalars[G_BIN_NS]
        add_over_time(row, B_DYNAMIC_J, from_ns, rep.t, energy_j, bin_ns)
        add_over_time(row, B_BUSY_IDLE_J, from_ns, rep.t, idle_j, bin_ns)
        last = rep.t // bin_ns
        row[last, B_PREFILL] += rep.pf_tokens
        row[last, B_DECODE] += m * rep.n_dec
        for_prompts_j = 0.0
        if rep.pf_tokens > 0:
            for_prompts_j = energy_j * (rep.pre_ticks / ticks)
            per_token_j = for_prompts_j / rep.pf_tokens
            s = rep.pf_head
            while s >= 0:
                slots[s].energy += per_token_j * slots[s].chunk
                s = slots[s].next
        if rep.n_dec > 0:
            rep.cum_j += (energy_j - for_prompts_j) / rep.n_dec


@part
def completions(r: int, now: int, scalars: Any, deployments: Any, slots: Any, replicas: Any, heap: Any, residues: Any,
                entries: Any, nodes: Any, sites: Any, bins: Any, out: Any, scratch: Any) -> None:  # fmt: skip
    """Let go of the requests whose last token the step just produced, in order of admission; prompts done decode on."""
    rep = replicas[r]
    dep = deployments[rep.dep]
    bt = dep.block_bits
    row = heap[r]
    n = 0
    due = (rep.step_no + 1) << SLOT_BITS
    while rep.n_dec - n > 0 and row[0] < due:
        s = row[0] & SLOT_MASK
        heap_take(row, rep.n_dec - n, 0)
        i = n
        while i > 0 and slots[scratch[i - 1]].admit_no > slots[s].admit_no:
            scratch[i] = scratch[i - 1]
            i -= 1
        scratch[i] = s
        n += 1
    for i in range(n):
        decode_stop(scratch[i], r, bt, dep.chunk_blocks, slots, replicas, residues, entries)
    if rep.pf_tokens > 0:
        s = rep.pf_head
        rep.pf_head = -1
        rep.pf_tail = -1
        rep.pf_tokens = 0
        rep.partial = -1
        while s >= 0:
            q = slots[s]
            following = q.next
            q.computed += q.chunk
            if q.computed < q.target:
                rep.partial = s
            else:
                q.gen += 1
                if q.first < 0:
                    q.first = now
                if q.gen < q.out and dep.role != PREFILL:
                    decode_start(s, r, bt, slots, replicas, heap, residues)
                else:
                    rep.free += ((q.target + (1 << bt) - 1) >> bt) - q.shared * dep.chunk_blocks
                    release_chain(r, q.leaf, replicas, entries)
                    q.leaf = -1
                    q.shared = 0
                    if q.gen < q.out:
                        q.next = scalars[G_HANDED]
                        scalars[G_HANDED] = s
                    else:
                        scratch[n] = s
                        n += 1
            s = following
    for i in range(n):
        s = scratch[i]
        leave(s, int(SERVED), int(REASON_NONE), now, int(slots[s].out), scalars, slots, replicas, nodes, sites, out)
    if n > 0 or scalars[G_HANDED] >= 0:
        rep.blocked = 0  # KV blocks came free: the queue's head may fit now
    if n > 0:
        rep.served += n
        if scalars[G_ENERGY]:
            bins[rep.site, rep.t // scalars[G_BIN_NS], B_SERVED] += n


@part
def register_chunks(s: int, r: int, covered: int, deployments: Any, slots: Any, replicas: Any, entries: Any, table: Any,
                    nodes: Any) -> None:  # fmt: skip
    """Offer the full hashed blocks of a prompt's first `covered` tokens to the prefix cache, as vLLM does on scheduling."""
    q = slots[s]
    dep = deployments[replicas[r].dep]
    full = min(q.n_hash, min(covered, q.inp) // dep.chunk_tokens)
    if q.shared >= full:
        return
    node = q.hashes
    for _ in range(q.shared // HASHES_PER_NODE):
        node = nodes[node, HASHES_PER_NODE]
    i = q.shared
    while i < full:
        key = nodes[node, i % HASHES_PER_NODE]
        if prefix_find(r, key, entries, table) >= 0:
            break  # computed beside us in the meantime: ours stays private
        e = prefix_insert(r, key, q.leaf, replicas, entries, table)
        if e < 0:
            break
        q.leaf = e
        i += 1
        q.shared = i
        if i % HASHES_PER_NODE == 0:
            node = nodes[node, HASHES_PER_NODE]


@part
def chunk_units(dep: Any, context: int, chunk: int) -> int:
    """Return what `chunk` prompt tokens on top of `context` add in attention, in table units."""
    compute = dep.att_units * chunk * (context + 0.5 * chunk)
    read = dep.ctx_units * context
    return int(max(compute, read))


@part
def plan(r: int, now: int, scalars: Any, deployments: Any, slots: Any, replicas: Any, heap: Any, residues: Any,
         entries: Any, table: Any, nodes: Any, base: Any, head: Any, power: Any, sites: Any, out: Any) -> None:  # fmt: skip
    """Decide the next step of an idle replica, or the next run of equal decode steps, and start it."""
    rep = replicas[r]
    dep = deployments[rep.dep]
    bt = dep.block_bits
    bt_up = (1 << bt) - 1
    rep.run_m = 0
    rep.dyn = rep.next_dyn
    if rep.down > 0 or (rep.state != UP and rep.state != DRAINING):
        return
    preempted = False
    need = 0
    if rep.n_dec > 0:
        need = residues[r, (-rep.step_no) & bt_up]
        taken = 0
        while need - taken > rep.free + rep.n_evictable * dep.chunk_blocks:
            # Blocks are asked for in order of admission: all that are left are gone before anyone is preempted.
            spare = rep.free + rep.n_evictable * dep.chunk_blocks
            take_blocks(r, spare, dep.chunk_blocks, replicas, entries, table)
            taken += spare
            preempt_last(r, now, deployments, slots, replicas, heap, residues, entries)
            preempted = True
            need = residues[r, (-rep.step_no) & bt_up] if rep.n_dec > 0 else 0
        take_blocks(r, need - taken, dep.chunk_blocks, replicas, entries, table)
    budget = dep.max_tokens - rep.n_dec
    attention = 0
    n_emit = 0
    s = rep.partial
    if s >= 0:
        q = slots[s]
        chunk = min(q.target - q.computed, budget)
        need = ((q.computed + chunk + bt_up) >> bt) - ((q.computed + bt_up) >> bt)
        if need > rep.free + rep.n_evictable * dep.chunk_blocks:
            preempt_last(r, now, deployments, slots, replicas, heap, residues, entries)
            preempted = True
        else:
            take_blocks(r, need, dep.chunk_blocks, replicas, entries, table)
            attention += chunk_units(dep, q.computed, chunk)
            q.chunk = chunk
            q.next = -1
            rep.pf_head = s
            rep.pf_tail = s
            rep.pf_tokens = chunk
            budget -= chunk
            if q.computed + chunk >= q.target:
                n_emit += 1
            if dep.caching and q.n_hash > q.shared:
                register_chunks(s, r, q.computed + chunk, deployments, slots, replicas, entries, table, nodes)
                rep.blocked = 0  # the queue's head may share what was cached now
    n_run = rep.n_dec + (1 if rep.partial >= 0 else 0)
    while not preempted and rep.blocked == 0 and budget > 0 and rep.q_head >= 0 and n_run < dep.max_seqs:
        s = rep.q_head
        q = slots[s]
        if q.ready > now:
            break
        if scalars[G_MAX_WAIT_NS] > 0 and q.scheduled < 0 and now - q.ready > scalars[G_MAX_WAIT_NS]:
            queue_pop(r, slots, replicas)
            leave(int(s), int(REFUSED), int(REASON_WAITED), now, 0, scalars, slots, replicas, nodes, sites, out)
            continue
        hits = 0
        leaf = -1
        evictable = 0
        if dep.caching and q.n_hash > 0 and q.remote == 0:
            most = min(q.n_hash, min(q.target - 1, q.inp) // dep.chunk_tokens)
            node = q.hashes
            while hits < most:
                e = prefix_find(r, nodes[node, hits % HASHES_PER_NODE], entries, table)
                if e < 0 or entries[r, e].parent != leaf:  # a hash that does not tell the whole prefix is no hit
                    break
                leaf = e
                if entries[r, e].refs == 0:
                    evictable += 1
                hits += 1
                if hits % HASHES_PER_NODE == 0:
                    node = nodes[node, HASHES_PER_NODE]
        held = hits * dep.chunk_blocks
        whole = ((q.target + q.remote + bt_up) >> bt) - held
        if whole > rep.free + (rep.n_evictable - evictable) * dep.chunk_blocks:
            rep.blocked = 1
            break
        queue_pop(r, slots, replicas)
        e = leaf
        while e >= 0:
            if entries[r, e].refs == 0:
                lru_remove(r, e, replicas, entries)
            entries[r, e].refs += 1
            e = entries[r, e].parent
        q.leaf = leaf
        q.shared = hits
        q.admit_no = rep.admits
        rep.admits += 1
        if q.scheduled < 0:
            q.scheduled = now
        n_run += 1
        if q.remote:
            take_blocks(r, whole, dep.chunk_blocks, replicas, entries, table)
            decode_start(s, r, bt, slots, replicas, heap, residues)
            if dep.caching and q.n_hash > 0:
                register_chunks(s, r, q.target, deployments, slots, replicas, entries, table, nodes)
            budget -= 1
            continue
        q.state = PREFILLING
        q.computed = hits * dep.chunk_tokens
        q.cached = q.computed
        rep.cached_tokens += q.computed
        chunk = min(q.target - q.computed, budget)
        take_blocks(r, ((q.computed + chunk + bt_up) >> bt) - held, dep.chunk_blocks, replicas, entries, table)
        attention += chunk_units(dep, q.computed, chunk)
        q.chunk = chunk
        q.next = -1
        if rep.pf_tail >= 0:
            slots[rep.pf_tail].next = s
        else:
            rep.pf_head = s
        rep.pf_tail = s
        rep.pf_tokens += chunk
        budget -= chunk
        if q.computed + chunk >= q.target:
            n_emit += 1
        if dep.caching and q.n_hash > hits:
            register_chunks(s, r, q.computed + chunk, deployments, slots, replicas, entries, table, nodes)
    tokens = rep.n_dec + rep.pf_tokens
    if tokens == 0:
        return
    rep.run_tokens = tokens
    decode_units = dep.kv_units * (rep.kv_sum + rep.n_dec) + dep.window_units * rep.window_sum
    units = base[rep.dep, tokens] + head[rep.dep, rep.n_dec + n_emit] + decode_units + attention
    slow = rep.slow
    if rep.cap_w < NO_CAP_W:
        wanted_w = power[rep.dep, tokens] - dep.idle_w
        if wanted_w * rep.dyn > rep.cap_w:  # its own share of the site's limit binds: slower still, for this step
            rep.dyn = max(MIN_DYNAMIC_RATIO, rep.cap_w / wanted_w)
            slow = max(slow, math.ceil(SLOW_ONE / speed_ratio(rep.dyn)))
    rep.run_b = units * slow
    rep.run_g = dep.kv_units * rep.n_dec * slow
    rep.run_m = 1
    rep.pre_ticks = 0
    if rep.pf_tokens > 0:
        alone = decode_units + base[rep.dep, rep.n_dec] + head[rep.dep, rep.n_dec]
        rep.pre_ticks = max(0, units - alone) * slow
        return
    if scalars[G_STEPPING] or preempted:
        return
    m = (heap[r, 0] >> SLOT_BITS) - rep.step_no
    if m > 1:
        spare = rep.free + rep.n_evictable * dep.chunk_blocks
        m = 1 + steps_that_fit(r, rep.step_no + 1, m - 1, spare, rep.n_dec, bt, residues)
        while m > 1 and m * (rep.run_b + float(rep.run_g) * m) > MAX_RUN_TICKS:
            m >>= 1
        rep.run_m = m
        if rep.q_head >= 0 and rep.blocked == 0 and n_run < dep.max_seqs:
            rep.run_m = steps_until(rep, slots[rep.q_head].ready)


@part
def next_event(r: int, slots: Any, replicas: Any) -> int:
    """Return when replica `r` needs attention next, in ns."""
    rep = replicas[r]
    if rep.run_m > 0:
        return end_ns(rep)
    if rep.q_head >= 0 and rep.down == 0 and (rep.state == UP or rep.state == DRAINING):
        return max(slots[rep.q_head].ready, rep.t + (1 if rep.frac > 0 else 0))
    return NEVER
