"""The twin's rare events: failures and repairs, scaling, power caps, scrapes, and the books at the end.

`advance` returns when one is due and the shell calls the function here; so the hot loop stays small. Rules are asked of
`policies/`; what they answer is applied to the arrays.
"""

from __future__ import annotations

import numpy as np

from baseload.jit import inlined, kernel, part
from baseload.policies import cap as cap_rules
from baseload.policies import custom
from baseload.policies import scale as scale_rules
from baseload.policies.view import Tunables
from baseload.records import FAILED, REASON_LOST, REASON_RETRIES
from baseload.simulate import engine
from baseload.simulate import kernel as hot
from baseload.simulate import prefix as prefix_cache
from baseload.simulate.state import (
    B_CAPPED_S,
    B_POWERED_J,
    B_POWERED_S,
    B_UP_S,
    C_OUTSTANDING,
    C_RUNNING,
    C_WAITING,
    DRAINING,
    F_KV_FREE,
    F_QUEUED,
    G_BIN_NS,
    G_CAP,
    G_CLOSED,
    G_DETECT_NS,
    G_ENERGY,
    G_EVENT_I,
    G_HARD_CAP,
    G_LEAVES,
    G_NEXT_OUTAGE,
    G_NEXT_SCRAPE,
    G_NEXT_TICK,
    G_OUT,
    G_RETRIES,
    G_SCALE,
    G_SCALE_DOWN_NS,
    G_SCRAPE_NS,
    G_TICK_NS,
    GATE_POWER,
    GATE_UNKNOWN,
    NEVER,
    OFF,
    PREFILL,
    SLOW_ONE,
    STARTING,
    T_KNOW_DOWN,
    T_KNOW_UP,
    T_READY,
    T_RETRY,
    UP,
    Plant,
    World,
)

add_over_time = engine.add_over_time
allocations = prefix_cache.allocations
clear_cache = prefix_cache.clear
end_ns = engine.end_ns
issue_again = hot.issue_again
learn = hot.learn
leave = engine.leave
settle = engine.settle
steps_until = engine.steps_until
take_blocks = prefix_cache.take_blocks
timer_drop_first = hot.timer_drop_first
timer_push = hot.timer_push
tree_set = hot.tree_set
SLOT_MASK = engine.SLOT_MASK
target_utilisation = scale_rules.target_utilisation
cap_slow = cap_rules.slow
cap_shed = cap_rules.shed
cap_by_priority = cap_rules.by_priority
speed_ratio = cap_rules.speed_ratio
custom_scale = custom.scale
custom_cap = custom.cap
LONGEST_STEP_NS = 1_000_000_000  # of one step: what a falling limit has to be known ahead


@part
def lose(s: int, now: int, world: World) -> None:
    """A request's replica failed: it is tried elsewhere if no byte had left, and has failed otherwise."""
    scalars = world.scalars
    q = world.slots[s]
    if q.first >= 0 or q.tries > scalars[G_RETRIES]:
        reason = REASON_LOST if q.first >= 0 else REASON_RETRIES
        generated = q.gen if q.first >= 0 else 0
        leave(
            s, FAILED, reason, now, generated, scalars, world.slots, world.replicas, world.nodes, world.sites, world.out
        )
    else:
        r = q.replica
        world.counts[C_OUTSTANDING, r] -= 1
        world.columns[F_QUEUED, r] -= q.work
        if world.counts[C_OUTSTANDING, r] == 0:
            world.columns[F_QUEUED, r] = 0.0  # no residue of rounding
        at_ns = now + world.sites[world.replicas[r].site].one_way_ns
        timer_push(world.timers, scalars, at_ns, T_RETRY, s)


@part
def lose_list(s: int, now: int, world: World) -> None:
    """Lose every request of a linked list."""
    while s >= 0:
        following = world.slots[s].next
        lose(s, now, world)
        s = following


@part
def power_mark(r: int, now: int, up_before: bool, world: World) -> None:
    """Book the time that a replica was powered, and up, since the last mark."""
    rep = world.replicas[r]
    scalars = world.scalars
    bin_ns = scalars[G_BIN_NS]
    row = world.bins[rep.site]
    if rep.powered_since >= 0:
        rep.powered_ns += now - rep.powered_since
        if scalars[G_ENERGY]:
            length_s = (now - rep.powered_since) * 1e-9
            idle_w = world.deployments[rep.dep].idle_w
            add_over_time(row, B_POWERED_S, rep.powered_since, now, length_s, bin_ns)
            add_over_time(row, B_POWERED_J, rep.powered_since, now, length_s * idle_w, bin_ns)
            if up_before:
                add_over_time(row, B_UP_S, rep.powered_since, now, length_s, bin_ns)
        rep.powered_since = now


@part
def settle_until(r: int, now: int, world: World) -> None:
    """Book the steps of the run in progress that ended by `now`; the step in progress stays unbooked."""
    rep = world.replicas[r]
    if rep.run_m > 1:
        done = steps_until(rep, now + 1) - 1  # boundaries at now too: replicas go first
        if done > 0:
            left = rep.run_m - done
            settle(r, done, world.scalars, world.deployments, world.slots, world.replicas, world.residues, world.entries,
                   world.table, world.power, world.bins)  # fmt: skip
            rep.run_b += done * rep.run_g
            rep.run_m = left
            dep = world.deployments[rep.dep]
            need = world.residues[r, (-rep.step_no) & ((1 << dep.block_bits) - 1)]
            take_blocks(r, need, dep.chunk_blocks, world.replicas, world.entries, world.table)


@part
def fail(r: int, now: int, world: World) -> None:
    """One more cause keeps replica `r` down; the first one ends everything that ran or waited there."""
    rep = world.replicas[r]
    rep.down += 1
    if rep.down > 1:
        return
    scalars = world.scalars
    power_mark(r, now, rep.state == UP, world)
    rep.powered_since = -1
    rep.down_since = now
    settle_until(r, now, world)
    rep.run_m = 0
    n = rep.n_dec
    for seat in range(n):  # in order of admission
        s = world.heap[r, seat] & SLOT_MASK
        q = world.slots[s]
        q.energy += rep.cum_j - q.energy0
        q.gen += rep.step_no - q.dec_step
        j = seat
        while j > 0 and world.slots[world.scratch[j - 1]].admit_no > q.admit_no:
            world.scratch[j] = world.scratch[j - 1]
            j -= 1
        world.scratch[j] = s
    for i in range(n):
        lose(world.scratch[i], now, world)
    if rep.pf_head < 0 and rep.partial >= 0:  # a prompt between two of its chunks
        world.slots[rep.partial].next = -1
        rep.pf_head = rep.partial
    lose_list(int(rep.pf_head), now, world)
    lose_list(int(rep.q_head), now, world)
    rep.n_dec = 0
    rep.kv_sum = 0
    rep.window_sum = 0
    rep.partial = -1
    rep.pf_head = -1
    rep.pf_tail = -1
    rep.pf_tokens = 0
    rep.q_head = -1
    rep.q_tail = -1
    rep.n_queue = 0
    rep.blocked = 0
    clear_cache(r, world.deployments, world.replicas, world.entries, world.table, world.residues)
    tree_set(world.tree, scalars[G_LEAVES], r, NEVER)
    timer_push(world.timers, scalars, now + scalars[G_DETECT_NS], T_KNOW_DOWN, r)


@part
def start(r: int, now: int, world: World) -> None:
    """Power a replica on; it takes requests after its cold start."""
    rep = world.replicas[r]
    rep.state = STARTING
    rep.powered_since = now
    rep.ready_at = now + world.deployments[rep.dep].cold_ns
    timer_push(world.timers, world.scalars, rep.ready_at, T_READY, r)


@part
def gate_of(lowest_open: int) -> int:
    """Return what stands at a replica's gate, of a site that takes priorities up to `lowest_open`."""
    return lowest_open if lowest_open >= 0 else GATE_POWER


@kernel
def on_outage(world: World, plant: Plant) -> None:
    """Apply the next of the drawn outages to every replica of its group: down, or one cause fewer."""
    scalars = world.scalars
    i = scalars[G_EVENT_I]
    now = plant.outages[i, 0]
    group = plant.outages[i, 1]
    first_out = scalars[G_OUT]
    for k in range(plant.group_start[group], plant.group_start[group + 1]):
        r = int(plant.group_member[k])
        if plant.outages[i, 2] > 0:
            fail(r, now, world)
        else:
            rep = world.replicas[r]
            rep.down -= 1
            if rep.down == 0:
                rep.down_ns += now - rep.down_since
                rep.down_since = -1
                if rep.state != OFF:  # starts again, empty
                    start(r, now, world)
    if scalars[G_CLOSED]:
        issue_again(first_out, scalars, world.timers, world.out)
    i += 1
    scalars[G_EVENT_I] = i
    scalars[G_NEXT_OUTAGE] = plant.outages[i, 0] if i < len(plant.outages) else NEVER


@kernel
def on_timer(world: World) -> None:
    """A replica is ready, or the gateway learns that one came or went."""
    scalars = world.scalars
    now = world.timers[0, 0]
    kind = world.timers[0, 1] & 7
    r = world.timers[0, 2]
    timer_drop_first(world.timers, scalars)
    rep = world.replicas[r]
    if kind == T_READY:
        if rep.state == STARTING and rep.down == 0 and rep.ready_at == now:
            power_mark(r, now, False, world)
            rep.state = UP
            rep.t = now
            rep.frac = 0
            timer_push(world.timers, scalars, now + world.sites[rep.site].one_way_ns, T_KNOW_UP, r)
    elif kind == T_KNOW_UP:
        if rep.state == UP and rep.down == 0:
            world.gate[r] = gate_of(world.sites[rep.site].open)
    elif kind == T_KNOW_DOWN and (rep.down > 0 or rep.state != UP):
        world.gate[r] = GATE_UNKNOWN


@part
def blocks_in_use(r: int, now: int, world: World) -> int:
    """Return the KV blocks that replica `r` holds at `now`, in the middle of a run too."""
    rep = world.replicas[r]
    dep = world.deployments[rep.dep]
    used = dep.blocks - rep.free - rep.n_evictable * dep.chunk_blocks
    if rep.run_m > 1:
        done = min(steps_until(rep, now + 1) - 1, rep.run_m - 1)
        if done > 0:
            used += allocations(r, rep.step_no + 1, done, rep.n_dec, dep.block_bits, world.residues)
    return int(used)


@kernel
def on_scrape(world: World) -> None:
    """Read every engine's own counters, as a gateway does from time to time."""
    now = world.scalars[G_NEXT_SCRAPE]
    world.scalars[G_NEXT_SCRAPE] += world.scalars[G_SCRAPE_NS]
    for r in range(len(world.replicas)):
        rep = world.replicas[r]
        n = rep.n_dec + (1 if rep.partial >= 0 and rep.pf_head < 0 else 0)
        s = rep.pf_head
        while s >= 0:
            n += 1
            s = world.slots[s].next
        world.counts[C_RUNNING, r] = n
        waiting = 0
        s = rep.q_head
        while s >= 0 and world.slots[s].ready <= now:
            waiting += 1
            s = world.slots[s].next
        world.counts[C_WAITING, r] = waiting
        blocks = world.deployments[rep.dep].blocks
        world.columns[F_KV_FREE, r] = (blocks - blocks_in_use(r, now, world)) / blocks


@inlined
def scale_pool(p: int, now: int, world: World, plant: Plant) -> None:
    """Ask the scaling rule about one deployment in one site, and start or drain replicas."""
    scalars = world.scalars
    pool = plant.pools[p]
    n_on = 0
    outstanding = 0
    for k in range(len(world.kinds)):  # requests that found nobody ask for a first replica
        if world.may[k, pool.lo]:
            outstanding += world.kinds[k].asked
    for r in range(pool.lo, pool.hi):
        if world.deployments[pool.dep].role == PREFILL:  # what it handed on is another pool's load
            outstanding += world.replicas[r].n_queue + (1 if world.replicas[r].run_m > 0 else 0)
        else:
            outstanding += world.counts[C_OUTSTANDING, r]
        if world.replicas[r].state == UP or world.replicas[r].state == STARTING:
            n_on += 1
    tunables = Tunables(world.tunables[0], world.tunables[1], world.tunables[2], world.tunables[3])
    slots = int(world.deployments[pool.dep].max_seqs)
    wanted = 0
    if scalars[G_SCALE] == 2:
        wanted = int(custom_scale(n_on, int(outstanding), slots, int(pool.n_min), int(pool.n_max), tunables))
        wanted = min(max(wanted, int(pool.n_min)), int(pool.n_max))
    else:
        wanted = target_utilisation(n_on, int(outstanding), slots, int(pool.n_min), int(pool.n_max), tunables)
    if wanted >= n_on:
        pool.below_since = -1
    elif pool.below_since < 0:
        pool.below_since = now
    let_go = now - pool.below_since >= scalars[G_SCALE_DOWN_NS]
    for k in range(pool.hi - pool.lo):
        r = pool.lo + k
        rep = world.replicas[r]
        if n_on < wanted and rep.down == 0 and rep.state == DRAINING:
            power_mark(r, now, False, world)
            rep.state = UP
            world.gate[r] = gate_of(world.sites[rep.site].open)
            n_on += 1
        elif n_on < wanted and rep.down == 0 and rep.state == OFF:
            start(r, now, world)
            n_on += 1
    for k in range(pool.hi - pool.lo):
        r = pool.hi - 1 - k
        rep = world.replicas[r]
        if n_on > wanted and let_go and rep.state == UP:
            power_mark(r, now, True, world)
            rep.state = DRAINING
            world.gate[r] = GATE_UNKNOWN
            n_on -= 1
        elif rep.state == DRAINING and world.counts[C_OUTSTANDING, r] == 0 and rep.run_m == 0 and rep.q_head < 0:
            power_mark(r, now, False, world)
            rep.powered_since = -1
            rep.state = OFF
            clear_cache(r, world.deployments, world.replicas, world.entries, world.table, world.residues)


@part
def share_out(site: int, now: int, world: World, plant: Plant) -> None:
    """Give each replica that may run before the next decision its share of the site's limit, by what it draws at most.

    The tightest limit until a second after the next decision counts, so that the step in progress ends in time. The sum
    of shares and of all idle power is the limit: no bin can exceed it while idle power and a twentieth of the rest fit.
    """
    scalars = world.scalars
    last = plant.limit_kw.shape[1] - 1
    first = min(now // scalars[G_BIN_NS], last)
    ahead_ns = scalars[G_TICK_NS] + LONGEST_STEP_NS
    until = min((now + ahead_ns) // scalars[G_BIN_NS], last)
    limit_kw = np.inf
    base_kw = 0.0
    for i in range(first, until + 1):
        limit_kw = min(limit_kw, plant.limit_kw[site, i])
        base_kw = max(base_kw, plant.training_kw[site, i])
    idle_w = 0.0
    most_w = 0.0
    for r in range(len(world.replicas)):
        rep = world.replicas[r]
        if rep.site == site and rep.state != OFF:
            dep = world.deployments[rep.dep]
            idle_w += (1.0 - world.sites[site].parked_ratio) * dep.idle_w
            most_w += dep.peak_w - dep.idle_w
    share = 1.0
    if most_w > 0.0:
        share = max(0.0, (limit_kw - base_kw) * 1000.0 - idle_w) / most_w
    for r in range(len(world.replicas)):
        rep = world.replicas[r]
        if rep.site == site:
            dep = world.deployments[rep.dep]
            cap_w = np.inf
            if share < 1.0:
                cap_w = share * (dep.peak_w - dep.idle_w)
            if rep.cap_w != cap_w:
                rep.cap_w = cap_w
                cut_run(r, now, world)


@part
def cut_run(r: int, now: int, world: World) -> None:
    """Let the run in progress end with the step in progress: what follows is planned anew."""
    rep = world.replicas[r]
    if rep.run_m > 1:
        rep.run_m = steps_until(rep, now + 1)  # a boundary at `now` has been
        tree_set(world.tree, world.scalars[G_LEAVES], r, end_ns(rep))


@inlined
def cap_site(site: int, now: int, world: World, plant: Plant) -> None:
    """Meter one site, ask the power-cap rule, and apply its answer from each replica's next boundary on."""
    scalars = world.scalars
    i = min(now // scalars[G_BIN_NS], plant.limit_kw.shape[1] - 1)
    limit_kw = plant.limit_kw[site, i]
    here = world.sites[site]
    if limit_kw == np.inf and here.capped_since < 0:
        return
    idle_kw = plant.training_kw[site, i]
    dynamic_kw = 0.0
    for r in range(len(world.replicas)):
        rep = world.replicas[r]
        if rep.site == site and rep.powered_since >= 0:
            idle_w = world.deployments[rep.dep].idle_w
            idle_kw += (1.0 - here.parked_ratio) * idle_w / 1000.0  # training_kw holds what it drew while parked
            if rep.run_m > 0 or rep.t > now - scalars[G_TICK_NS]:
                # Whoever took a step since the last decision may be in the next one the moment after this.
                dynamic_kw += (world.power[rep.dep, rep.run_tokens] - idle_w) / 1000.0
    rule = scalars[G_CAP]
    lowest = 9
    ratio = 1.0
    if rule == 1:
        ratio, lowest = cap_slow(idle_kw + dynamic_kw, idle_kw, limit_kw, int(here.open))
    elif rule == 2:
        ratio, lowest = cap_shed(idle_kw + dynamic_kw, idle_kw, limit_kw, int(here.open))
    elif rule == 3:
        ratio, lowest = cap_by_priority(idle_kw + dynamic_kw, idle_kw, limit_kw, int(here.open))
    elif rule == 4:
        ratio, lowest = custom_cap(idle_kw + dynamic_kw, idle_kw, limit_kw, int(here.open))
        ratio = min(1.0, max(0.001, ratio))
        lowest = min(9, max(-1, lowest))
    if here.capped_since >= 0 and scalars[G_ENERGY]:
        length_s = (now - here.capped_since) * 1e-9
        add_over_time(world.bins[site], B_CAPPED_S, here.capped_since, now, length_s, scalars[G_BIN_NS])
    here.capped_since = now if ratio < 1.0 or lowest < 9 else -1
    slow = int(np.ceil(SLOW_ONE / speed_ratio(ratio)))
    for r in range(len(world.replicas)):
        rep = world.replicas[r]
        if rep.site == site:
            if lowest != here.open and rep.state == UP and rep.down == 0:
                world.gate[r] = gate_of(lowest)
            if rep.slow != slow or rep.next_dyn != ratio:
                cut_run(r, now, world)
                rep.slow = slow
                rep.next_dyn = ratio
    here.open = lowest


@kernel
def on_control(world: World, plant: Plant) -> None:
    """Decide scaling and power caps, as the control plane does from time to time."""
    scalars = world.scalars
    now = scalars[G_NEXT_TICK]
    scalars[G_NEXT_TICK] += scalars[G_TICK_NS]
    if scalars[G_SCALE] > 0:
        for p in range(len(plant.pools)):
            scale_pool(p, now, world, plant)
        for k in range(len(world.kinds)):
            world.kinds[k].asked = 0
    if scalars[G_CAP] > 0:
        for site in range(len(world.sites)):
            cap_site(site, now, world, plant)
            if scalars[G_HARD_CAP]:
                share_out(site, now, world, plant)


@kernel
def close_books(world: World, now: int) -> None:
    """Book steps done, powered, down and capped time up to `now`, the end of the run, and let the gateway hear the rest."""
    scalars = world.scalars
    learn(NEVER, scalars, world.slots, world.sites, world.tenants, world.kinds, world.counts, world.columns)
    for r in range(len(world.replicas)):
        rep = world.replicas[r]
        settle_until(r, now - 1, world)  # events at the end are left
        power_mark(r, now, rep.state == UP, world)
        if rep.down_since >= 0:
            rep.down_ns += now - rep.down_since
            rep.down_since = now
    for i in range(len(world.sites)):
        here = world.sites[i]
        if here.capped_since >= 0:
            if scalars[G_ENERGY]:
                length_s = (now - here.capped_since) * 1e-9
                add_over_time(world.bins[i], B_CAPPED_S, here.capped_since, now, length_s, scalars[G_BIN_NS])
            here.capped_since = now
