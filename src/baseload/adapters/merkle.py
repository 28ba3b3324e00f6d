"""The Merkle tree of RFC 6962 / RFC 9162: grow it leaf by leaf, prove that a leaf is in it, prove that it only grew.

Plain functions on hashes; where hashes are stored is told as a function `node(level, i)`: the hash of the complete
subtree over leaves [i << level, (i + 1) << level). The verifier of `report/verify.py` has its own code on purpose.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from hashlib import sha256

Node = Callable[[int, int], bytes]

EMPTY_ROOT = sha256(b"").digest()


def leaf_hash(body: bytes) -> bytes:
    """Return the hash of a leaf (RFC 6962, 2.1): SHA-256(0x00 || body).

    >>> leaf_hash(b"").hex()[:16]
    '6e340b9cffb37a98'
    """
    return sha256(b"\x00" + body).digest()


def node_hash(left: bytes, right: bytes) -> bytes:
    """Return the hash of an inner node (RFC 6962, 2.1): SHA-256(0x01 || left || right)."""
    return sha256(b"\x01" + left + right).digest()


class Frontier:
    """The right edge of a growing tree: one hash for each set bit of its size, largest subtree first.

    The vectors are those of the certificate transparency reference code (merkle tree of 8 leaves).

    >>> frontier = Frontier()
    >>> for leaf in ("", "00", "10", "2021", "3031", "40414243", "5051525354555657",
    ...              "606162636465666768696a6b6c6d6e6f"):
    ...     _ = frontier.append(leaf_hash(bytes.fromhex(leaf)))
    >>> frontier.root().hex()
    '5dc9da79a70659a9ad559cb701ded9a2ab9d823aad2f4960cfe370eff4604328'
    """

    __slots__ = ("peaks", "size")

    def __init__(self, size: int = 0, peaks: Iterable[bytes] = ()) -> None:
        self.size = size
        self.peaks = list(peaks)
        assert len(self.peaks) == size.bit_count()

    def copy(self) -> Frontier:
        """Return a frontier that grows apart from this one."""
        return Frontier(self.size, self.peaks)

    def append(self, leaf: bytes) -> list[tuple[int, int, bytes]]:
        """Add a leaf's hash; return the inner nodes this completed as (level, i, hash), lowest first."""
        done = []
        level, i, peaks = 0, self.size, self.peaks
        while i & 1:
            leaf = sha256(b"\x01" + peaks.pop() + leaf).digest()
            level, i = level + 1, i >> 1
            done.append((level, i, leaf))
        peaks.append(leaf)
        self.size += 1
        return done

    def root(self) -> bytes:
        """Return the root of the tree so far."""
        return fold(self.peaks)


def fold(peaks: Sequence[bytes]) -> bytes:
    """Return the root over subtrees given largest first; the empty tree's root for none."""
    if not peaks:
        return EMPTY_ROOT
    root = peaks[-1]
    for peak in reversed(peaks[:-1]):
        root = node_hash(peak, root)
    return root


def peak_places(size: int, start: int = 0) -> list[tuple[int, int]]:
    """Return (level, i) of the complete subtrees that cover [start, start + size), largest first.

    >>> peak_places(6)
    [(2, 0), (1, 2)]
    """
    places = []
    while size:
        level = size.bit_length() - 1
        places.append((level, start >> level))
        start += 1 << level
        size -= 1 << level
    return places


def range_root(start: int, end: int, node: Node) -> bytes:
    """Return the root over leaves [start, end), where start is a multiple of a power of two not below end - start."""
    return fold([node(level, i) for level, i in peak_places(end - start, start)])


def _split(n: int) -> int:
    """Return the largest power of two below n."""
    return 1 << ((n - 1).bit_length() - 1)


def inclusion(seq: int, size: int, node: Node) -> list[bytes]:
    """Return PATH(seq, D[size]) of RFC 6962, 2.1.1: the hashes that lead from leaf `seq` to the root."""
    if not 0 <= seq < size:
        raise ValueError(f"row {seq} is not in a tree of {size}")
    path, start, end = [], 0, size
    while end - start > 1:
        middle = start + _split(end - start)
        if seq < middle:
            path.append(range_root(middle, end, node))
            end = middle
        else:
            path.append(range_root(start, middle, node))
            start = middle
    return path[::-1]


def consistency(old_size: int, new_size: int, node: Node) -> list[bytes]:
    """Return PROOF(old_size, D[new_size]) of RFC 6962, 2.1.2; empty where there is nothing to prove."""
    if not 0 <= old_size <= new_size:
        raise ValueError(f"a tree of {old_size} cannot grow to {new_size}")
    if old_size in (0, new_size):
        return []
    path, start, end, whole = [], 0, new_size, True
    while end != old_size:
        middle = start + _split(end - start)
        if old_size <= middle:
            path.append(range_root(middle, end, node))
            end = middle
        else:
            path.append(range_root(start, middle, node))
            start, whole = middle, False
    if not whole:
        path.append(range_root(start, end, node))
    return path[::-1]


def included(leaf: bytes, seq: int, size: int, path: Sequence[bytes], root: bytes) -> bool:
    """Say whether a proof shows `leaf` at `seq` in the tree of `size` rows with this root (RFC 9162, 2.1.3.2)."""
    if not 0 <= seq < size:
        return False
    fn, sn, found = seq, size - 1, leaf
    for step in path:
        if sn == 0:
            return False
        if fn & 1 or fn == sn:
            found = node_hash(step, found)
            while not fn & 1 and fn:
                fn, sn = fn >> 1, sn >> 1
        else:
            found = node_hash(found, step)
        fn, sn = fn >> 1, sn >> 1
    return sn == 0 and found == root


def consistent(old_size: int, old_root: bytes, new_size: int, new_root: bytes, path: Sequence[bytes]) -> bool:
    """Say whether a proof shows the old tree to be a prefix of the new one (RFC 9162, 2.1.4.2)."""
    if old_size == new_size:
        return not path and old_root == new_root
    if old_size == 0:
        return not path and old_root == EMPTY_ROOT
    if old_size > new_size or not path:
        return False
    steps = list(path) if old_size & (old_size - 1) else [old_root, *path]
    fn, sn = old_size - 1, new_size - 1
    while fn & 1:
        fn, sn = fn >> 1, sn >> 1
    old = new = steps[0]
    for step in steps[1:]:
        if sn == 0:
            return False
        if fn & 1 or fn == sn:
            old, new = node_hash(step, old), node_hash(step, new)
            while not fn & 1 and fn:
                fn, sn = fn >> 1, sn >> 1
        else:
            new = node_hash(new, step)
        fn, sn = fn >> 1, sn >> 1
    return sn == 0 and old == old_root and new == new_root
