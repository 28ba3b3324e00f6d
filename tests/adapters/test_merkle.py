"""The ledger's Merkle tree against published vectors, another implementation, and its own definition."""

from __future__ import annotations

from functools import cache
from hashlib import sha256

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pymerkle import InmemoryTree

from baseload.adapters import merkle
from baseload.report import verify_notes

SIZES = st.integers(0, 300)
# Certificate transparency's reference test vectors: eight leaves, and the roots after each.
LEAVES = [bytes.fromhex(text) for text in
          ("", "00", "10", "2021", "3031", "40414243", "5051525354555657", "606162636465666768696a6b6c6d6e6f")]  # fmt: skip
ROOTS = [
    "6e340b9cffb37a989ca544e6bb780a2c78901d3fb33738768511a30617afa01d",
    "fac54203e7cc696cf0dfcb42c92a1d9dbaf70ad9e621f4bd8d98662f00e3c125",
    "aeb6bcfe274b70a14fb067a5e5578264db0fa9b51af5e0ba159158f329e06e77",
    "d37ee418976dd95753c1c73862b9398fa2a2cf9b4ff0fdfe8b30cd95209614b7",
    "4e3bbb1f7b478dcfe71fb631631519a3bca12c9aefca1612bfce4c13a86264d4",
    "76e67dadbcdf1e10e1b74ddc608abd2f98dfb16fbce75277b5232a127f2087ef",
    "ddb89be403809e325750d3d263cd78929c2942b7942a34b77e122c9594a74c8c",
    "5dc9da79a70659a9ad559cb701ded9a2ab9d823aad2f4960cfe370eff4604328",
]


def leaves(n: int) -> list[bytes]:
    """Return the hashes of `n` leaves."""
    return [merkle.leaf_hash(str(i).encode()) for i in range(n)]


def stored(hashes: list[bytes]) -> merkle.Node:
    """Return the function that a ledger's tables are to the proofs."""
    nodes = {(0, i): leaf for i, leaf in enumerate(hashes)}
    frontier = merkle.Frontier()
    for leaf in hashes:
        nodes.update({(level, i): node for level, i, node in frontier.append(leaf)})
    return lambda level, i: nodes[level, i]


@cache
def oracle(n: int = 300) -> InmemoryTree:
    """Return another implementation's tree over the same leaves."""
    tree = InmemoryTree(algorithm="sha256")
    for i in range(n):
        tree.append_entry(str(i).encode())
    return tree


def test_the_published_vectors():
    """Roots over the reference leaves are those that were published."""
    frontier = merkle.Frontier()
    for leaf, root in zip(LEAVES, ROOTS):
        frontier.append(merkle.leaf_hash(leaf))
        assert frontier.root().hex() == root
    assert sha256().digest() == merkle.EMPTY_ROOT


@pytest.mark.parametrize("n", [1, 2, 3, 63, 64, 65, 127, 200, 300])
def test_roots_agree_with_another_implementation(n: int):
    """For every size on the way, three implementations have one root: the frontier, pymerkle, the verifier's recursion."""
    tree, frontier, hashes = oracle(n), merkle.Frontier(), leaves(n)
    recursive = verify_notes.Tree(hashes)
    for size, leaf in enumerate(hashes, start=1):
        frontier.append(leaf)
        assert frontier.root() == tree.get_root(size) == recursive.root(size)


@given(st.integers(1, 300), st.data())
def test_inclusion_is_proven_as_another_implementation_proves_it(n: int, data: st.DataObject):
    """The path is pymerkle's; it leads to the root; no other leaf, place, size or root goes with it."""
    seq = data.draw(st.integers(0, n - 1))
    hashes = leaves(n)
    path = merkle.inclusion(seq, n, stored(hashes))
    root = oracle().get_root(n)

    assert path == [bytes(step) for step in oracle().prove_inclusion(seq + 1, n).path[1:]]
    assert merkle.included(hashes[seq], seq, n, path, root)
    assert verify_notes.root_of_path(hashes[seq], seq, n, path) == root
    assert not merkle.included(hashes[seq], seq, n, [*path, root], root)
    assert not merkle.included(merkle.leaf_hash(b"other"), seq, n, path, root)
    assert not merkle.included(hashes[seq], n, n, path, root)
    if n > 1:
        other = data.draw(st.integers(0, n - 1).filter(lambda i: i != seq))
        assert not merkle.included(hashes[seq], other, n, path, root)
        assert not merkle.included(hashes[seq], seq, n, path[:-1], root)
        assert verify_notes.root_of_path(hashes[seq], other, n, path) != root


@given(SIZES, SIZES)
def test_growth_is_proven_and_nothing_else_is(a: int, b: int):
    """A consistency proof shows the old root to be a prefix of the new one, and fits no other pair of roots."""
    old, new = sorted((a, b))
    node = stored(leaves(new))
    roots = verify_notes.Tree(leaves(new))
    path = merkle.consistency(old, new, node)

    assert merkle.consistent(old, roots.root(old), new, roots.root(new), path)
    assert len(path) <= 2 * 9
    if old < new:
        wrong = sha256(b"wrong").digest()
        assert not merkle.consistent(old, wrong, new, roots.root(new), path)
        assert not merkle.consistent(new, roots.root(new), old, roots.root(old), path)
        if old:
            assert not merkle.consistent(old, roots.root(old), new, wrong, path)
            assert not merkle.consistent(old, roots.root(old), new, roots.root(new), path[:-1])
            assert not merkle.consistent(old, roots.root(old), new, roots.root(new), [*path, wrong])


def test_a_proof_in_a_tree_of_a_million_reads_few_hashes():
    """Proofs ask for O(log n) subtrees, so that a receipt costs the same on the first day and after a year."""
    asked: list[tuple[int, int]] = []

    def node(level: int, i: int) -> bytes:
        asked.append((level, i))
        return b""

    for seq in (0, 1, 500_000, 999_998, 999_999):
        asked.clear()
        assert len(merkle.inclusion(seq, 1_000_000, node)) <= 20
        assert len(asked) <= 40
    asked.clear()
    merkle.consistency(333_333, 1_000_000, node)
    assert len(asked) <= 60


def test_what_cannot_be_proven_is_refused():
    """A row outside the tree, or a tree that shrinks, has no proof."""
    with pytest.raises(ValueError):
        merkle.inclusion(5, 5, stored(leaves(5)))
    with pytest.raises(ValueError):
        merkle.consistency(6, 5, stored(leaves(6)))
