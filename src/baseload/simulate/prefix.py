"""A replica's KV blocks and its prefix cache: chunks of full blocks, keyed by the hash of the whole prefix.

An entry is one hashed block of the trace (`chunk_blocks` KV blocks). Entries form chains by `parent`; a request holds
every entry of its chain, so a child never outlives its parent. Entries that nobody holds wait in an LRU list, the end of
a chain before its beginning, and are evicted when free blocks run out (as vLLM V1 frees a request's blocks in reverse).
"""

from __future__ import annotations

from typing import Any

from baseload.jit import part


@part
def bucket_of(key: int, mask: int) -> int:
    """Return the home bucket of a key (Fibonacci hashing on 32 bits)."""
    low = (key ^ (key >> 32)) & 0xFFFFFFFF
    return ((low * 0x9E3779B1) >> 13) & mask


@part
def find(r: int, key: int, entries: Any, table: Any) -> int:
    """Return replica `r`'s entry for `key`, or -1."""
    mask = table.shape[1] - 1
    b = bucket_of(key, mask)
    while True:
        e = table[r, b]
        if e == 0:
            return -1
        if entries[r, e - 1].key == key:
            return e - 1
        b = (b + 1) & mask


@part
def insert(r: int, key: int, parent: int, replicas: Any, entries: Any, table: Any) -> int:
    """Add an entry held once, and return it; the caller has made sure that the key is new. -1: no entry left."""
    rep = replicas[r]
    e = rep.entry_free
    if e < 0:
        return -1
    rep.entry_free = entries[r, e].next
    entry = entries[r, e]
    entry.key = key
    entry.parent = parent
    entry.refs = 1
    entry.prev = -1
    entry.next = -1
    mask = table.shape[1] - 1
    b = bucket_of(key, mask)
    while table[r, b] != 0:
        b = (b + 1) & mask
    table[r, b] = e + 1
    return e


@part
def remove_key(r: int, key: int, entries: Any, table: Any) -> None:
    """Take a key out of the open-addressing table, closing the gap it leaves (backward shift)."""
    mask = table.shape[1] - 1
    b = bucket_of(key, mask)
    while entries[r, table[r, b] - 1].key != key:
        b = (b + 1) & mask
    hole = b
    while True:
        b = (b + 1) & mask
        e = table[r, b]
        if e == 0:
            break
        home = bucket_of(entries[r, e - 1].key, mask)
        if ((b - home) & mask) >= ((b - hole) & mask):
            table[r, hole] = e
            hole = b
    table[r, hole] = 0


@part
def lru_append(r: int, e: int, replicas: Any, entries: Any) -> None:
    """Put an entry that nobody holds at the young end of the LRU list."""
    rep = replicas[r]
    entry = entries[r, e]
    entry.prev = rep.lru_tail
    entry.next = -1
    if rep.lru_tail >= 0:
        entries[r, rep.lru_tail].next = e
    else:
        rep.lru_head = e
    rep.lru_tail = e
    rep.n_evictable += 1


@part
def lru_remove(r: int, e: int, replicas: Any, entries: Any) -> None:
    """Take an entry out of the LRU list, because it is held again or evicted."""
    rep = replicas[r]
    entry = entries[r, e]
    if entry.prev >= 0:
        entries[r, entry.prev].next = entry.next
    else:
        rep.lru_head = entry.next
    if entry.next >= 0:
        entries[r, entry.next].prev = entry.prev
    else:
        rep.lru_tail = entry.prev
    rep.n_evictable -= 1


@part
def take_blocks(r: int, n: int, chunk_blocks: int, replicas: Any, entries: Any, table: Any) -> None:
    """Take `n` blocks, evicting the oldest cached chunks as far as needed; the caller knows that there are enough."""
    rep = replicas[r]
    while rep.free < n:
        e = rep.lru_head
        lru_remove(r, e, replicas, entries)
        remove_key(r, entries[r, e].key, entries, table)
        entries[r, e].next = rep.entry_free
        rep.entry_free = e
        rep.free += chunk_blocks
    rep.free -= n


@part
def release_chain(r: int, leaf: int, replicas: Any, entries: Any) -> None:
    """Let go of a chain, its end first."""
    e = leaf
    while e >= 0:
        entry = entries[r, e]
        entry.refs -= 1
        if entry.refs == 0:
            lru_append(r, e, replicas, entries)
        e = entry.parent


@part
def clear(r: int, deployments: Any, replicas: Any, entries: Any, table: Any, residues: Any) -> None:
    """Forget everything: a failed or fresh replica has no KV."""
    rep = replicas[r]
    rep.free = deployments[rep.dep].blocks
    rep.n_evictable = 0
    rep.lru_head = -1
    rep.lru_tail = -1
    if deployments[rep.dep].caching:
        n = entries.shape[1]
        for e in range(n):
            entries[r, e].next = e + 1 if e + 1 < n else -1
        rep.entry_free = 0
        for b in range(table.shape[1]):
            table[r, b] = 0
    else:
        rep.entry_free = -1
    for k in range(residues.shape[1]):
        residues[r, k] = 0


@part
def allocations(r: int, first_step: int, m: int, n_dec: int, block_bits: int, residues: Any) -> int:
    """Return the KV blocks that `m` decode steps from `first_step` on need, over all decoding sequences.

    A sequence needs one at the steps where its position is a multiple of the block; its residue is constant.
    """
    mask = (1 << block_bits) - 1
    total = (m >> block_bits) * n_dec
    for j in range(m & mask):
        total += residues[r, -(first_step + j) & mask]
    return total


@part
def steps_that_fit(r: int, first_step: int, m: int, blocks: int, n_dec: int, block_bits: int, residues: Any) -> int:
    """Return how many of the next `m` decode steps `blocks` blocks are enough for."""
    if ((m >> block_bits) + 1) * n_dec <= blocks:
        return m
    mask = (1 << block_bits) - 1
    whole = min(m >> block_bits, blocks // n_dec)
    steps = whole << block_bits
    left = blocks - whole * n_dec
    while steps < m:
        left -= residues[r, -(first_step + steps) & mask]
        if left < 0:
            break
        steps += 1
    return steps
