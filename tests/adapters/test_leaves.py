"""A tree grown by many rows at once is the tree grown one by one, in Python and in C."""

from __future__ import annotations

from types import ModuleType
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from baseload.adapters import leaves
from baseload.adapters.merkle import Frontier, leaf_hash
from tests.serve.written_in_c import built


@pytest.fixture(scope="module")
def grown(tmp_path_factory: pytest.TempPathFactory) -> list[Any]:
    """The Python and, where this processor computes SHA-256 itself, the C."""
    c: ModuleType = built("leaves", tmp_path_factory.mktemp("leaves"))
    return [leaves.grow, *([c.grow] if hasattr(c, "grow") else [])]


@settings(max_examples=25)
@given(batches=st.lists(st.lists(st.binary(max_size=200), max_size=20), max_size=5), least=st.integers(1, 4))
def test_many_at_once_are_as_one_by_one(grown: list[Any], batches: list[list[bytes]], least: int):
    """Places, leaves, inner nodes and the right edge are those of RFC 6962's tree, however rows are batched."""
    edge, size, nodes = Frontier(), 0, []
    for bodies in batches:
        peaks, ids = list(edge.peaks), list(range(100, 100 + len(bodies)))
        nodes = [node for body in bodies for node in edge.append(leaf_hash(body)) if node[0] >= least]
        rows = [(size + i, 2, ids[i], leaf_hash(body), body) for i, body in enumerate(bodies)]
        for grow in grown:
            assert grow(size, peaks, 2, ids, bodies, least) == (rows, nodes, edge.peaks)
        size += len(bodies)
    assert edge.size == size


def test_every_length_around_a_block_is_hashed_as_the_standard_says(grown: list[Any]):
    """SHA-256 pads differently at each length; hashlib says what comes out."""
    bodies = [bytes(i & 0xFF for i in range(n)) for n in (*range(200), 65_535)]
    for grow in grown:
        rows, _, _ = grow(0, [], 2, list(range(len(bodies))), bodies, 63)
        assert [row[3] for row in rows] == [leaf_hash(body) for body in bodies]


def test_a_tree_of_another_size_is_refused(grown: list[Any]):
    """Peaks that are not those of the size never grow a log."""
    for grow in grown:
        for size, peaks, bodies in ((1, [], []), (0, [bytes(32)], []), (0, [], [b""])):
            with pytest.raises(AssertionError):
                grow(size, peaks, 2, [], bodies, 6)
