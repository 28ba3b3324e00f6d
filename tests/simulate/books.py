"""What must hold of any world at any moment, and of any run at its end. Plain loops over the twin's arrays."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from baseload.records import FAILED, REFUSED, SERVED
from baseload.simulate import state as st
from baseload.simulate.engine import SLOT_MASK


def _chain(slots: Any, head: int) -> list[int]:
    rows = []
    while head >= 0:
        rows.append(int(head))
        head = slots["next"][head]
        assert len(rows) <= len(slots), "a list runs in a circle"
    return rows


def check_replica(world: st.World, r: int) -> tuple[set[int], int]:
    """Hold one replica's KV blocks, cache, heap and sums together; return its requests, and blocks in use."""
    rep = world.replicas[r]
    dep = world.deployments[rep["dep"]]
    entries, table, slots = world.entries[r], world.table[r], world.slots
    block, per = 1 << int(dep["block_bits"]), int(dep["chunk_blocks"])
    # The cache: table and entries name each other; the LRU list holds exactly the entries that nobody holds.
    live = [int(e) - 1 for e in table if e > 0]
    assert len(live) == len(set(live))
    keys = [int(entries["key"][e]) for e in live]
    assert len(keys) == len(set(keys)), "a hash lies twice in the cache"
    if dep["caching"]:
        free_entries = _chain(entries, int(rep["entry_free"]))
        assert set(free_entries).isdisjoint(live) and len(free_entries) + len(live) == len(entries)
    unheld = _chain(entries, int(rep["lru_head"]))
    assert set(unheld) == {e for e in live if entries["refs"][e] == 0}
    assert len(unheld) == rep["n_evictable"]
    # Who runs here holds its chain once each, and the blocks of its tokens.
    decoding = [int(key) & SLOT_MASK for key in world.heap[r, : rep["n_dec"]]]
    prefilling = _chain(slots, int(rep["pf_head"]))
    running = decoding + prefilling
    assert len(set(running)) == len(running)
    holders = dict.fromkeys(live, 0)
    held = len(live) * per
    for s in running:
        q = slots[s]
        e, n = int(q["leaf"]), 0
        while e >= 0:
            holders[e] += 1
            n += 1
            e = int(entries["parent"][e])
        assert n == q["shared"]
        tokens = int(q["computed"] + q["chunk"])
        if s in decoding:
            tokens = int(q["target"] + rep["step_no"] - q["dec_step"]) + (1 if rep["run_m"] else 0)
        held += -(-tokens // block) - n * per
    assert all(holders[e] == entries["refs"][e] for e in live)
    assert rep["free"] + held == dep["blocks"], "KV blocks leak"
    assert rep["free"] >= 0
    position = [int(slots["target"][s] + rep["step_no"] - slots["dec_step"][s]) for s in decoding]
    assert sum(position) == rep["kv_sum"]
    assert sum(int(slots["window"][s]) for s in decoding) == rep["window_sum"]
    residues = np.zeros(block, np.int64)
    for s in decoding:
        residues[(int(slots["target"][s]) - int(slots["dec_step"][s])) % block] += 1
    assert (world.residues[r][:block] == residues).all()
    queue = _chain(slots, int(rep["q_head"]))
    assert len(queue) == rep["n_queue"] and (not queue or queue[-1] == rep["q_tail"])
    return set(running) | set(queue), held - int(rep["n_evictable"]) * per


def check_world(world: st.World) -> None:
    """Hold the whole world together: no request is lost or in two places, no block, slot, node or timer leaks."""
    g = world.scalars
    somewhere: list[int] = []
    for r in range(len(world.replicas)):
        here, used = check_replica(world, r)
        somewhere += here
        assert used <= max(int(world.replicas["blocks_peak"][r]), used)
    for site in world.sites:
        somewhere += _chain(world.slots, int(site["notice_head"]))
    timers = world.timers[: g[st.G_N_TIMERS]]
    retries = [int(t[2]) for t in timers if t[1] & 7 == st.T_RETRY]
    somewhere += retries
    assert len(somewhere) == len(set(somewhere)) == g[st.G_ACTIVE], "a request is lost, or in two places"
    free = _chain(world.slots, int(g[st.G_FREE_SLOT]))
    assert len(free) + len(somewhere) == len(world.slots) and set(free).isdisjoint(somewhere)
    free_nodes = []
    node = int(g[st.G_FREE_NODE])
    while node >= 0:
        free_nodes.append(node)
        node = int(world.nodes[node, st.HASHES_PER_NODE])
    assert len(free_nodes) + g[st.G_LIVE_NODES] == len(world.nodes) and len(set(free_nodes)) == len(free_nodes)
    for i in range(1, len(timers)):
        assert tuple(timers[(i - 1) >> 1, :2]) < tuple(timers[i, :2]), "the timers' heap is out of order"
    leaves = int(g[st.G_LEAVES])
    for node in range(1, leaves):
        assert world.tree[node] == min(world.tree[2 * node], world.tree[2 * node + 1])


def check_books(spec: Any, records: Any, outcome: Any) -> None:
    """Hold a finished run's books: requests, tokens, joules, time."""
    world = outcome.world
    replicas = world.replicas
    status = records["status"]
    assert len(np.unique(records["request_id"])) == len(records) == outcome.n_in
    assert outcome.n_in == outcome.served + outcome.refused + outcome.failed + outcome.unfinished
    assert outcome.unfinished == 0 and world.scalars[st.G_ACTIVE] == 0
    assert [int((status == s).sum()) for s in (SERVED, REFUSED, FAILED)] == [
        outcome.served,
        outcome.refused,
        outcome.failed,
    ]
    assert world.counts[st.C_OUTSTANDING].tolist() == [0] * len(replicas)
    assert np.abs(world.columns[st.F_QUEUED]).max() < 1e-6
    assert (
        replicas["free"] + replicas["n_evictable"] * world.deployments["chunk_blocks"][replicas["dep"]]
    ).tolist() == (world.deployments["blocks"][replicas["dep"]].tolist())
    assert world.scalars[st.G_LIVE_NODES] == 0
    assert np.abs(world.tenants["reserved"]).max() < 1e-6
    assert replicas["served"].sum() == outcome.served
    # Order of a life.
    served = records[status == SERVED]
    assert (served["arrival_ns"] <= served["scheduled_ns"]).all() and (
        served["scheduled_ns"] < served["first_token_ns"]
    ).all()
    one_token = served["output_tokens"] == 1
    assert (served["first_token_ns"] <= served["finish_ns"]).all()
    assert (served["first_token_ns"] == served["finish_ns"])[one_token].all()
    assert (served["first_token_ns"] < served["finish_ns"])[~one_token].all()
    assert (records["cached_tokens"] <= records["input_tokens"]).all()
    at_first = records[(records["n_preempted"] == 0) & (records["input_tokens"] > 0)]
    assert (at_first["cached_tokens"] < at_first["input_tokens"]).all()  # one token at least is computed
    # Law: nobody runs where it may not.
    pool_of = np.repeat(np.arange(len(spec.pools)), [p.n_max for p in spec.pools])
    there = records[records["replica_i"] >= 0]
    may = spec.may[there["tenant_i"], there["model_i"], pool_of[there["replica_i"]]]
    assert may.all()
    # Tokens: an answer's first token comes from its prompt's last step, every other from a decode step.
    once = not (status == FAILED).any() and not (records["n_tries"] > 1).any()
    if once and not replicas["n_preempted"].any():
        assert replicas["decode_tokens"].sum() == (served["output_tokens"] - 1).sum()
        computed = served["input_tokens"] - served["cached_tokens"]
        assert replicas["prefill_tokens"].sum() == computed.sum()
    # Joules and seconds.
    if spec.energy:
        bins = world.bins
        assert bins[:, :, st.B_DYNAMIC_J].sum() == pytest.approx(replicas["energy_j"].sum(), rel=1e-9, abs=1e-9)
        assert bins[:, :, st.B_BUSY_IDLE_J].sum() == pytest.approx(replicas["busy_idle_j"].sum(), rel=1e-9, abs=1e-9)
        assert bins[:, :, st.B_POWERED_S].sum() == pytest.approx(
            replicas["powered_ns"].sum() * 1e-9, rel=1e-9, abs=1e-9
        )
        assert bins[:, :, st.B_PREFILL].sum() == replicas["prefill_tokens"].sum()
        assert bins[:, :, st.B_DECODE].sum() == replicas["decode_tokens"].sum()
        assert bins[:, :, st.B_SERVED].sum() == outcome.served
        assert (bins >= 0.0).all() and np.isfinite(bins).all()
        given = records["energy_j"].sum()
        assert given == pytest.approx(replicas["energy_j"].sum(), rel=1e-7, abs=1e-6)
    assert (replicas["busy_ns"] <= replicas["powered_ns"]).all()
    assert (replicas["powered_ns"] + replicas["down_ns"] <= outcome.end_ns).all()
    assert (replicas["prefill_ns"] <= replicas["busy_ns"] + replicas["n_steps"]).all()
    assert (replicas["blocks_peak"] <= world.deployments["blocks"][replicas["dep"]]).all()
