"""A log's tree grown by many rows at once: each row's leaf, and the inner nodes that they complete.

`leaves.c` does the same in one call where `make native` built it and the processor computes SHA-256 itself (decision 0015); a
test holds both to each other and to `merkle.py`, and who verifies a ledger has code of his own.
"""

from __future__ import annotations

from collections.abc import Sequence
from hashlib import sha256
from importlib import import_module

Stored = tuple[int, int, int, bytes, bytes]
"""Place, kind, request id, leaf, body."""
Node = tuple[int, int, bytes]
"""Level, place in it, hash."""


def grow(
    size: int, peaks: Sequence[bytes], kind: int, ids: Sequence[int], bodies: Sequence[bytes], least: int
) -> tuple[list[Stored], list[Node], list[bytes]]:
    """Return rows behind the first `size` as they are stored, the nodes of level `least` and higher, and the new peaks.

    >>> rows, nodes, peaks = grow(1, [bytes(32)], 2, [7], [b"{}"], 1)
    >>> rows[0][:3], nodes[0][:2], peaks == [nodes[0][2]], peaks[0].hex()[:16]
    ((1, 2, 7), (1, 0), True, '1f42ae262679597b')
    """
    assert len(ids) == len(bodies) and len(peaks) == size.bit_count()
    rows: list[Stored] = []
    nodes: list[Node] = []
    edge = list(peaks)
    for seq, (request_id, body) in enumerate(zip(ids, bodies, strict=True), start=size):
        leaf = node = sha256(b"\x00" + body).digest()
        rows.append((seq, kind, request_id, leaf, body))
        level, i = 0, seq
        while i & 1:
            node = sha256(b"\x01" + edge.pop() + node).digest()
            level, i = level + 1, i >> 1
            if level >= least:
                nodes.append((level, i, node))
        edge.append(node)
    return rows, nodes, edge


NAMES = ("grow",)

try:
    globals().update({name: getattr(import_module("baseload.adapters.leaves_c"), name) for name in NAMES})
except (ImportError, AttributeError):
    pass  # not built, not to be used (`native.use`), or of no use on this processor
