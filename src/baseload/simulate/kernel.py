"""The twin's event loop: arrivals and replicas on one line of time; the rare events come back to the shell.

`advance` moves the world until something outside is needed (more arrivals, room, an outage or a control decision that is
due), until a given time, or for a bounded number of events, so that the shell can write records, show progress and
answer Ctrl-C. What happens inside a replica is `engine.py`; failures, scaling and power caps are `control.py`. Every
decision is asked of `policies/`, with only what a gateway can know.
At equal times: replicas first (lowest index), then outages, timers, scrapes, control, arrivals.
"""

from __future__ import annotations

from typing import Any

from baseload.jit import inlined, kernel, part
from baseload.policies import admit as admit_rules
from baseload.policies import custom
from baseload.policies import route as route_rules
from baseload.policies.view import NO_REPLICA, Ask, Columns, Tunables
from baseload.records import (
    FAILED,
    REASON_LOST,
    REASON_NO_REPLICA,
    REASON_NONE,
    REASON_POWER,
    REASON_RETRIES,
    REASON_TOO_LONG,
    REFUSED,
    SERVED,
)
from baseload.simulate import engine
from baseload.simulate.state import (
    C_OUTSTANDING,
    C_RUNNING,
    C_SLOTS,
    C_WAITING,
    DRAINING,
    DUE_CONTROL,
    DUE_OUTAGE,
    DUE_SCRAPE,
    DUE_TIMER,
    F_CARBON,
    F_COST,
    F_DECODE_S,
    F_KV_FREE,
    F_PREFILL_SPEED,
    F_QUEUED,
    FINISHED,
    G_ACTIVE,
    G_ADMIT,
    G_ARRIVAL_I,
    G_BIN_NS,
    G_BLOCK_TOKENS,
    G_CLOSED,
    G_FAILED,
    G_FREE_NODE,
    G_FREE_SLOT,
    G_HANDED,
    G_IN,
    G_LEAVES,
    G_LIVE_NODES,
    G_MAX_WAIT_NS,
    G_MODELS,
    G_N_TIMERS,
    G_NEXT_OUTAGE,
    G_NEXT_SCRAPE,
    G_NEXT_TICK,
    G_NOW,
    G_OUT,
    G_REFUSED,
    G_RETRIES,
    G_ROUTE,
    G_SCRAPES,
    G_SERVED,
    G_THINK_NS,
    G_TICKS,
    G_TIMER_ORDER,
    GATE_UNKNOWN,
    HASHES_PER_NODE,
    KEY_BLOCKS,
    NEED_ARRIVALS,
    NEED_BINS,
    NEED_HASHES,
    NEED_SLOTS,
    NEVER,
    OUT_FULL,
    PAUSED,
    QUEUED,
    REACHED_UNTIL,
    T_ISSUE,
    T_RETRY,
    UP,
    Arrivals,
    World,
)

completions = engine.completions
emit = engine.emit
end_ns = engine.end_ns
free_hashes = engine.free_hashes
leave = engine.leave
next_event = engine.next_event
plan = engine.plan
queue_back = engine.queue_back
settle = engine.settle
steps_until = engine.steps_until

round_robin = route_rules.round_robin
least_outstanding = route_rules.least_outstanding
least_wait = route_rules.least_wait
prefix_affine = route_rules.prefix_affine
cheapest = route_rules.cheapest
greenest = route_rules.greenest
custom_route = custom.route
custom_admit = custom.admit
admit_within_slo = admit_rules.within_slo
admit_within_budget = admit_rules.within_budget
admit_within_both = admit_rules.within_slo_and_budget

LENGTH_MEMORY = 0.05  # weight of the newest answer in a tenant's running mean
BACK_OFF_NS = 1_000_000_000  # who was turned away asks again a second later at the earliest, as Retry-After wants


@part
def tree_set(tree: Any, leaves: int, i: int, key: int) -> None:
    """Set replica `i`'s next event in the winner tree."""
    node = leaves + i
    tree[node] = key
    node >>= 1
    while node >= 1:
        left = tree[2 * node]
        right = tree[2 * node + 1]
        key = left if left <= right else right
        if tree[node] == key:
            return
        tree[node] = key
        node >>= 1


@part
def tree_first(tree: Any, leaves: int) -> int:
    """Return the replica with the earliest event; the lowest index of equal ones."""
    key = tree[1]
    node = 1
    while node < leaves:
        node *= 2
        if tree[node] != key:
            node += 1
    return node - leaves


@part
def timer_push(timers: Any, scalars: Any, at_ns: int, kind: int, row: int) -> None:
    """Set a timer; equal times fire in the order in which they were set."""
    order = (scalars[G_TIMER_ORDER] << 3) | kind
    scalars[G_TIMER_ORDER] += 1
    i = scalars[G_N_TIMERS]
    scalars[G_N_TIMERS] = i + 1
    while i > 0:
        up = (i - 1) >> 1
        if timers[up, 0] < at_ns or (timers[up, 0] == at_ns and timers[up, 1] <= order):
            break
        timers[i, 0] = timers[up, 0]
        timers[i, 1] = timers[up, 1]
        timers[i, 2] = timers[up, 2]
        i = up
    timers[i, 0] = at_ns
    timers[i, 1] = order
    timers[i, 2] = row


@part
def timer_drop_first(timers: Any, scalars: Any) -> None:
    """Remove the earliest timer."""
    n = scalars[G_N_TIMERS] - 1
    scalars[G_N_TIMERS] = n
    if n == 0:
        return
    at_ns = timers[n, 0]
    order = timers[n, 1]
    row = timers[n, 2]
    i = 0
    while True:
        child = 2 * i + 1
        if child >= n:
            break
        right = child + 1
        if right < n and (
            timers[right, 0] < timers[child, 0]
            or (timers[right, 0] == timers[child, 0] and timers[right, 1] < timers[child, 1])
        ):
            child = right
        if at_ns < timers[child, 0] or (at_ns == timers[child, 0] and order <= timers[child, 1]):
            break
        timers[i, 0] = timers[child, 0]
        timers[i, 1] = timers[child, 1]
        timers[i, 2] = timers[child, 2]
        i = child
    timers[i, 0] = at_ns
    timers[i, 1] = order
    timers[i, 2] = row


@part
def learn(now: int, scalars: Any, slots: Any, sites: Any, tenants: Any, kinds: Any, counts: Any, columns: Any) -> None:
    """Let the gateway learn of every end whose notice has reached it: counts, budgets, lengths of answers."""
    for i in range(len(sites)):
        s = sites[i].notice_head
        while s >= 0 and slots[s].notice <= now:
            q = slots[s]
            following = q.next
            r = q.replica
            counts[C_OUTSTANDING, r] -= 1
            columns[F_QUEUED, r] -= q.work
            if counts[C_OUTSTANDING, r] == 0:
                columns[F_QUEUED, r] = 0.0  # no residue of rounding
            if q.door != r:  # the gateway counts a pair's work at the replica that it sent it to
                counts[C_OUTSTANDING, q.door] -= 1
                columns[F_QUEUED, q.door] -= q.work
            tenant = tenants[q.tenant]
            if q.gen > 0:
                kind = kinds[q.tenant * scalars[G_MODELS] + q.model]
                kind.predicted += LENGTH_MEMORY * (q.gen - kind.predicted)
                fresh = q.inp - q.cached
                tenant.spent += (
                    fresh * tenant.input_price + q.cached * tenant.cached_price + q.gen * tenant.output_price
                )
            tenant.reserved -= q.price
            q.next = scalars[G_FREE_SLOT]
            scalars[G_FREE_SLOT] = s
            scalars[G_ACTIVE] -= 1
            s = following
        sites[i].notice_head = s
        if s < 0:
            sites[i].notice_tail = -1


@part
def chosen_route(rule: int, ask: Ask, columns: Columns, allowed: Any, tunables: Tunables) -> int:
    """Ask the route rule that the fleet file names."""
    if rule == 1:
        return least_outstanding(ask, columns, allowed, tunables)
    if rule == 0:
        return round_robin(ask, columns, allowed, tunables)
    if rule == 2:
        return least_wait(ask, columns, allowed, tunables)
    if rule == 3:
        return prefix_affine(ask, columns, allowed, tunables)
    if rule == 4:
        return cheapest(ask, columns, allowed, tunables)
    if rule == 5:
        return greenest(ask, columns, allowed, tunables)
    return int(custom_route(ask, columns, allowed, tunables))


@part
def chosen_admit(rule: int, ask: Ask, columns: Columns, replica: int, tunables: Tunables) -> int:
    """Ask the admission rule that the fleet file names."""
    if rule == 1:
        return admit_within_slo(ask, columns, replica, tunables)
    if rule == 2:
        return admit_within_budget(ask, columns, replica, tunables)
    if rule == 3:
        return admit_within_both(ask, columns, replica, tunables)
    if rule == 4:
        return int(custom_admit(ask, columns, replica, tunables))
    return REASON_NONE


@part
def turn_away(s: int, now: int, status: int, reason: int, scalars: Any, slots: Any, replicas: Any, nodes: Any,
              tenants: Any, out: Any) -> None:  # fmt: skip
    """End a request at the gateway itself: refused, or failed after its last try."""
    q = slots[s]
    q.replica = -1
    emit(q, status, reason, now, 0, replicas[0], q.rtt, scalars, out)
    if q.hashes >= 0:
        free_hashes(q, scalars, nodes)
    tenants[q.tenant].reserved -= q.price
    q.next = scalars[G_FREE_SLOT]
    scalars[G_FREE_SLOT] = s
    scalars[G_ACTIVE] -= 1


@part
def reach(s: int, r: int, open_ns: int, leaves: int, slots: Any, replicas: Any, deployments: Any, tree: Any) -> None:
    """Put a request on its way to replica `r`; a run in progress there is cut at the first boundary after it arrives.

    Boundaries before `open_ns` are past: at equal times replicas go first, so one that lies at this very moment was there
    before the request.
    """
    rep = replicas[r]
    queue_back(s, r, slots, replicas)
    if rep.run_m == 0:
        tree_set(tree, leaves, r, next_event(r, slots, replicas))
    elif rep.q_head == s and rep.run_m > 1 and rep.blocked == 0 and rep.n_dec < deployments[rep.dep].max_seqs:
        m = steps_until(rep, max(slots[s].ready, open_ns))
        if m < rep.run_m:
            rep.run_m = m
            tree_set(tree, leaves, r, end_ns(rep))


@inlined
def choose(s: int, scalars: Any, slots: Any, tenants: Any, kinds: Any, nodes: Any, may: Any, gate: Any, allowed: Any,
           counts: Any, columns: Any, rtt_s: Any, tunables: Any, dice: Any) -> tuple[int, int, float]:  # fmt: skip
    """Ask the rules where a request goes; return (replica, reason it is refused for, price it may come to)."""
    q = slots[s]
    tenant = tenants[q.tenant]
    k = q.tenant * scalars[G_MODELS] + q.model
    row = may[k]
    priority = tenant.priority
    for i in range(len(allowed)):
        allowed[i] = row[i] & (gate[i] >= priority)
    prefix_key = 0
    n = 0
    if q.n_hash > 0:
        n = min(q.n_hash, KEY_BLOCKS)
        prefix_key = nodes[q.hashes, n - 1]
        n = min(n * scalars[G_BLOCK_TOKENS], q.inp)
    predicted = kinds[k].predicted
    price = q.inp * tenant.input_price + predicted * tenant.output_price
    ask = Ask(
        int(q.inp), predicted, int(prefix_key), int(n), tenant.ttft_slo_s, tenant.tpot_slo_s, int(priority),
        tenant.budget - tenant.spent - tenant.reserved, price, int(kinds[k].ticket), dice[scalars[G_IN] & (len(dice) - 1)],
    )  # fmt: skip
    kinds[k].ticket += 1
    seen = Columns(
        counts[C_OUTSTANDING], columns[F_QUEUED], columns[F_PREFILL_SPEED], columns[F_DECODE_S], counts[C_SLOTS],
        rtt_s[q.region], counts[C_RUNNING], counts[C_WAITING], columns[F_KV_FREE], columns[F_COST], columns[F_CARBON],
    )  # fmt: skip
    numbers = Tunables(tunables[0], tunables[1], tunables[2], tunables[3])
    r = chosen_route(scalars[G_ROUTE], ask, seen, allowed, numbers)
    reason = REASON_NONE
    if r < 0 or r >= len(allowed) or allowed[r] == 0:
        r = NO_REPLICA
        reason = REASON_NO_REPLICA
        kinds[k].asked += 1
        for i in range(len(allowed)):
            if row[i] and gate[i] != GATE_UNKNOWN and gate[i] < priority:
                reason = REASON_POWER
    elif scalars[G_ADMIT] > 0 and q.tries == 0:
        reason = chosen_admit(scalars[G_ADMIT], ask, seen, r, numbers)
    return r, reason, price


@inlined
def send(s: int, now: int, world: World) -> None:
    """Route one request: hard limits, the route rule, the admission rule, then on its way; or turn it away."""
    scalars = world.scalars
    q = world.slots[s]
    status = REFUSED
    reason = REASON_TOO_LONG
    end_ns_ = now
    r = NO_REPLICA
    if q.inp < world.limits[q.model]:
        r, reason, price = choose(
            s, scalars, world.slots, world.tenants, world.kinds, world.nodes, world.may, world.gate, world.allowed,
            world.counts, world.columns, world.rtt_s, world.tunables, world.dice,
        )  # fmt: skip
        if reason == REASON_NONE:
            if q.tries == 0:
                q.price = price
                world.tenants[q.tenant].reserved += price
            q.tries += 1
            rep = world.replicas[r]
            if rep.down > 0 or (rep.state != UP and rep.state != DRAINING):
                # Connection refused: so the gateway hears, before any health check, that this replica is gone.
                world.gate[r] = GATE_UNKNOWN
                end_ns_ = now + 2 * world.sites[rep.site].one_way_ns
                if q.tries > scalars[G_RETRIES]:
                    status = FAILED
                    reason = REASON_RETRIES
                else:
                    timer_push(world.timers, scalars, end_ns_, T_RETRY, s)
                    return
    if reason != REASON_NONE:
        turn_away(
            s, end_ns_, status, reason, scalars, world.slots, world.replicas, world.nodes, world.tenants, world.out
        )
        return
    q.replica = r
    q.door = r
    dep = world.deployments[world.replicas[r].dep]
    q.ready = now + world.sites[world.replicas[r].site].one_way_ns + dep.overhead_ns
    q.scheduled = -1
    q.state = QUEUED
    q.target = q.inp
    q.computed = 0
    q.gen = 0
    q.cached = 0
    q.remote = 0
    q.leaf = -1
    q.shared = 0
    q.window = min(q.inp, dep.window_tokens)
    q.work = q.inp + world.kinds[q.tenant * scalars[G_MODELS] + q.model].predicted
    world.counts[C_OUTSTANDING, r] += 1
    world.columns[F_QUEUED, r] += q.work
    reach(s, r, now + 1, scalars[G_LEAVES], world.slots, world.replicas, world.deployments, world.tree)


@part
def arrive(i: int, now: int, scalars: Any, slots: Any, nodes: Any, limits: Any, rtt_s: Any, arrivals: Arrivals) -> int:
    """Take row `i` of the trace in at the door; return its slot."""
    s = scalars[G_FREE_SLOT]
    q = slots[s]
    scalars[G_FREE_SLOT] = q.next
    scalars[G_ACTIVE] += 1
    scalars[G_IN] += 1
    q.req_id = arrivals.first_id + i
    q.arrival = now
    q.scheduled = -1
    q.first = -1
    q.energy = 0.0
    q.price = 0.0
    q.work = 0.0
    q.inp = arrivals.input_tokens[i]
    q.gen = 0
    q.cached = 0
    q.preempted = 0
    q.tries = 0
    q.replica = -1
    q.tenant = arrivals.tenant_i[i]
    q.region = arrivals.region_i[i]
    q.model = arrivals.model_i[i]
    q.rtt = arrivals.rtt_ns[q.region]
    q.out = max(1, min(arrivals.output_tokens[i], limits[q.model] - q.inp))  # an engine stops at the end of its context
    q.hashes = -1
    q.n_hash = 0
    if len(arrivals.hash_ids) > 0:
        first = arrivals.hash_offsets[i]
        n = arrivals.hash_offsets[i + 1] - first
        q.n_hash = n
        last = -1
        for j in range(n):
            if j % HASHES_PER_NODE == 0:
                node = scalars[G_FREE_NODE]
                scalars[G_FREE_NODE] = nodes[node, HASHES_PER_NODE]
                scalars[G_LIVE_NODES] += 1
                nodes[node, HASHES_PER_NODE] = -1
                if last < 0:
                    q.hashes = node
                else:
                    nodes[last, HASHES_PER_NODE] = node
                last = node
            nodes[last, j % HASHES_PER_NODE] = arrivals.hash_ids[first + j]
    return s


@part
def hand_over(now: int, scalars: Any, slots: Any, replicas: Any, deployments: Any, tree: Any, nodes: Any, sites: Any,
              counts: Any, columns: Any, out: Any) -> None:  # fmt: skip
    """Send requests whose prompt a prefill replica computed to a decode replica of the same model and site."""
    s = scalars[G_HANDED]
    scalars[G_HANDED] = -1
    turned = -1  # the list was built last in, first out: turn it, so that order of admission holds
    while s >= 0:
        following = slots[s].next
        slots[s].next = turned
        turned = s
        s = following
    s = turned
    while s >= 0:
        q = slots[s]
        following = q.next
        old = q.replica
        best = NO_REPLICA
        for i in range(replicas[old].decode_lo, replicas[old].decode_hi):
            rep = replicas[i]
            up = rep.state == UP and rep.down == 0
            if up and (best < 0 or counts[C_OUTSTANDING, i] < counts[C_OUTSTANDING, best]):
                best = i
        if best < 0:
            leave(s, int(FAILED), int(REASON_LOST), now, int(q.gen), scalars, slots, replicas, nodes, sites, out)
        else:
            counts[C_OUTSTANDING, best] += 1
            columns[F_QUEUED, best] += q.work
            q.replica = best
            q.remote = 1
            q.ready = now + int(deployments[replicas[old].dep].transfer_ns_per_token * q.target)
            reach(s, best, now if best > old else now + 1, scalars[G_LEAVES], slots, replicas, deployments, tree)
        s = following


@part
def issue_again(first_out: int, scalars: Any, timers: Any, out: Any) -> None:
    """Closed loop: whoever was answered (or refused) asks again after thinking."""
    for i in range(first_out, scalars[G_OUT]):
        pause_ns = scalars[G_THINK_NS] if out[i].status == SERVED else max(scalars[G_THINK_NS], BACK_OFF_NS)
        at_ns = max(out[i].finish_ns + out[i].rtt_ns + pause_ns, scalars[G_NOW] + 1)
        timer_push(timers, scalars, at_ns, T_ISSUE, 0)


@kernel
def advance(world: World, arrivals: Arrivals, until_ns: int, max_events: int) -> int:
    """Move the world; return why it stopped (state.py: FINISHED, NEED_ARRIVALS, ...). Events at until_ns are left."""
    scalars = world.scalars
    slots = world.slots
    replicas = world.replicas
    out = world.out
    tree = world.tree
    timers = world.timers
    leaves = scalars[G_LEAVES]
    n_arrivals = len(arrivals.arrival_ns)
    closed = scalars[G_CLOSED]
    slot_room = len(slots) - 2
    node_room = len(world.nodes) - 2
    need_nodes = arrivals.most_hashes // HASHES_PER_NODE + 1
    bins_until = world.bins.shape[1] * scalars[G_BIN_NS]
    out_room = len(out) - len(world.scratch) - 66
    next_scrape = scalars[G_NEXT_SCRAPE] if scalars[G_SCRAPES] else NEVER
    next_tick = scalars[G_NEXT_TICK] if scalars[G_TICKS] else NEVER
    next_outage = scalars[G_NEXT_OUTAGE]
    for _ in range(max_events):
        key = tree[1]
        what = 0
        if next_outage < key:
            key = next_outage
            what = DUE_OUTAGE
        if scalars[G_N_TIMERS] > 0 and timers[0, 0] < key:
            key = timers[0, 0]
            what = DUE_TIMER
        if next_scrape < key:
            key = next_scrape
            what = DUE_SCRAPE
        if next_tick < key:
            key = next_tick
            what = DUE_CONTROL
        i = scalars[G_ARRIVAL_I]
        if closed == 0:
            if i < n_arrivals:
                if arrivals.arrival_ns[i] < key:
                    key = arrivals.arrival_ns[i]
                    what = PAUSED  # an arrival
            elif not arrivals.final:
                return NEED_ARRIVALS
        elif what == DUE_TIMER and (timers[0, 1] & 7) == T_ISSUE and i >= n_arrivals:
            if not arrivals.final:
                return NEED_ARRIVALS
            timer_drop_first(timers, scalars)  # nothing left to ask
            continue
        if i >= n_arrivals and arrivals.final and tree[1] == NEVER:
            ended = scalars[G_SERVED] + scalars[G_REFUSED] + scalars[G_FAILED]
            if scalars[G_N_TIMERS] == 0 or ended == scalars[G_IN]:  # a start or a repair is not waited for
                return FINISHED
        if key >= until_ns:
            return REACHED_UNTIL
        if key >= bins_until:
            return NEED_BINS
        if scalars[G_OUT] > out_room:
            return OUT_FULL
        if what == 0:
            r = tree_first(tree, leaves)
            rep = replicas[r]
            if scalars[G_MAX_WAIT_NS] > 0 and scalars[G_OUT] + rep.n_queue > out_room:
                return OUT_FULL  # its whole queue may be given up at once
            scalars[G_NOW] = key
            first_out = scalars[G_OUT]
            if rep.run_m > 0:
                settle(r, rep.run_m, scalars, world.deployments, slots, replicas, world.residues, world.entries,
                       world.table, world.power, world.bins)  # fmt: skip
                completions(r, key, scalars, world.deployments, slots, replicas, world.heap, world.residues,
                            world.entries, world.nodes, world.sites, world.bins, out, world.scratch)  # fmt: skip
            else:
                rep.t = key
                rep.frac = 0
            plan(r, key, scalars, world.deployments, slots, replicas, world.heap, world.residues, world.entries,
                 world.table, world.nodes, world.base, world.head, world.power, world.sites, out)  # fmt: skip
            tree_set(tree, leaves, r, next_event(r, slots, replicas))
            if scalars[G_HANDED] >= 0:
                hand_over(key, scalars, slots, replicas, world.deployments, tree, world.nodes, world.sites, world.counts,
                          world.columns, out)  # fmt: skip
        else:
            if scalars[G_ACTIVE] >= slot_room:
                return NEED_SLOTS
            if scalars[G_LIVE_NODES] + need_nodes >= node_room:
                return NEED_HASHES
            learn(key, scalars, slots, world.sites, world.tenants, world.kinds, world.counts, world.columns)
            scalars[G_NOW] = key
            first_out = scalars[G_OUT]
            if what == PAUSED:
                scalars[G_ARRIVAL_I] = i + 1
                s = arrive(i, key, scalars, slots, world.nodes, world.limits, world.rtt_s, arrivals)
            elif what == DUE_TIMER and (timers[0, 1] & 7) == T_RETRY:
                s = timers[0, 2]
                timer_drop_first(timers, scalars)
            elif what == DUE_TIMER and (timers[0, 1] & 7) == T_ISSUE:
                timer_drop_first(timers, scalars)
                scalars[G_ARRIVAL_I] = i + 1
                s = arrive(i, key, scalars, slots, world.nodes, world.limits, world.rtt_s, arrivals)
            else:
                return what
            send(s, key, world)
        if closed and scalars[G_OUT] > first_out:
            issue_again(first_out, scalars, timers, out)
    return PAUSED
