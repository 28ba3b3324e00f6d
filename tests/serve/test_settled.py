"""settled.c says nothing that msgspec and the Python behind it would not say; a message is booked at once as it is by rows."""

from __future__ import annotations

from types import ModuleType
from typing import Any

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from baseload.ports import SettledIn
from baseload.serve import booking, settled, wire
from baseload.serve.recovery import Leased
from baseload.serve.rows import SettleRow, encode
from tests.serve.written_in_c import built

NUMBERS = st.one_of(
    st.integers(-5, 300), st.integers(-(2**63), 2**63 - 1), st.sampled_from([2**63, 2**64 - 1, 65_536, 2**32, 1 << 31])
)
TEXTS = st.one_of(st.sampled_from(["", "chat", "é", "a" * 40, "\x7f", '"', "\\", "\n", "\ud7ff"]), st.text(max_size=6))
OF_TYPE: dict[Any, st.SearchStrategy[Any]] = {"int": NUMBERS, "str": TEXTS, "bool": st.booleans()}
OF_TYPE |= {"list[int]": st.lists(NUMBERS, max_size=20), "Counted": st.sampled_from(["engine", "counted"])}
PLAIN = st.builds(
    SettleRow, request_id=st.integers(1, 20), at_ns=st.just(0), tenant=st.just(""), key=st.just(""),
    site=st.sampled_from(["oslo", "Århus"]), status=st.integers(0, 2), streamed=st.booleans(), price_nano=st.integers(0, 2**40),
    prefix=st.lists(st.integers(0, 2**64 - 1), max_size=3),
)  # fmt: skip
CHANGES = st.lists(
    st.sampled_from(SettleRow.__struct_fields__).flatmap(
        lambda name: OF_TYPE[SettleRow.__annotations__[name]].map(lambda value: (name, value))
    ),
    max_size=3,
)
ROWS = st.builds(lambda row, changes: msgspec.structs.replace(row, **dict(changes)), PLAIN, CHANGES)
WHO = [settled.whose("t-1", "k-1"), settled.whose("t-2", "k-é"), settled.whose("t-2", "k-1")]


@pytest.fixture(scope="module")
def c(tmp_path_factory: pytest.TempPathFactory) -> ModuleType:
    """The module in C, built for this run with every check that the compiler can put in."""
    return built("settled", tmp_path_factory.mktemp("settled"))


def both(c: ModuleType, raw: bytes, who: list[settled.Whose], patch: pytest.MonkeyPatch) -> tuple[Any, Any]:
    """Return what the C makes of a message (None: look closer), and what the Python makes of it (None: it refuses)."""
    try:
        closely = settled.closely(settled.decoded(raw), 1_790_000_000_000_000_000, who)
    except (msgspec.MsgspecError, ValueError):
        closely = None
    if c.plainly(raw, 1_790_000_000_000_000_000, who) is None:
        return None, closely
    with patch.context() as patched:
        patched.setattr(settled, "plainly", c.plainly)
        return settled.read(raw, 1_790_000_000_000_000_000, who), closely


@settings(max_examples=40)
@given(rows=st.lists(ROWS, max_size=3), data=st.data())
def test_any_row_has_the_same_bytes_and_sums(c: ModuleType, rows: list[SettleRow], data: st.DataObject):
    """Whatever a worker settles: the C says what msgspec's reading and writing says, or nothing."""
    who = [data.draw(st.sampled_from(WHO)) for _ in rows]
    with pytest.MonkeyPatch.context() as patch:
        plainly, closely = both(c, msgspec.msgpack.encode(rows), who, patch)
    assert plainly is None or plainly == closely
    assert closely is not None


@settings(max_examples=20)
@given(rows=st.lists(PLAIN, max_size=24), data=st.data())
def test_plain_rows_are_read_at_once(c: ModuleType, rows: list[SettleRow], data: st.DataObject):
    """The common case is known in C, so its fields and their order are those of the row; streams are told by place."""
    who = [data.draw(st.sampled_from(WHO)) for _ in rows]
    with pytest.MonkeyPatch.context() as patch:
        plainly, closely = both(c, msgspec.msgpack.encode(rows), who, patch)
    assert plainly is not None and plainly == closely
    assert sorted(place for one in plainly.alike for place in one.places) == [
        i for i, r in enumerate(rows) if r.streamed
    ]
    assert plainly.rows() == closely.rows() and [row.tenant for row in plainly.rows()] == [one.tenant for one in who]


@settings(max_examples=40)
@given(rows=st.lists(PLAIN, min_size=1, max_size=2), data=st.data())
def test_torn_and_garbled_messages_are_never_read(c: ModuleType, rows: list[SettleRow], data: st.DataObject):
    """A message cut, or with a byte changed, is refused, or is what msgspec says it is."""
    raw = bytearray(msgspec.msgpack.encode(rows))
    at = data.draw(st.integers(0, len(raw) - 1))
    if data.draw(st.booleans()):
        del raw[at:]
    else:
        raw[at] = data.draw(st.integers(0, 255))
    with pytest.MonkeyPatch.context() as patch:
        plainly, closely = both(c, bytes(raw), [WHO[0]] * len(rows), patch)
    assert plainly is None or plainly == closely


@given(ids=st.lists(st.integers(-2, 30), max_size=12), first=st.integers(0, 10), n=st.integers(0, 20))
def test_the_mask_of_ids(c: ModuleType, ids: list[int], first: int, n: int):
    """Each id once and within the lease, or no mask."""
    mask = settled.mask_of(ids, first, n)
    assert c.mask_of(ids, first, n) == mask
    good = len(set(ids)) == len(ids) and all(first <= i < first + n for i in ids)
    assert (mask is not None) == good
    assert mask is None or int.from_bytes(mask, "little") == sum(1 << (i - first) for i in ids)


def leases() -> dict[int, Leased]:
    """Return three leases of two keys; another worker holds the last."""
    return {
        1: Leased(1, 8, 0, "t-1", "k-1", 5, 1),
        9: Leased(9, 8, 0, "t-2", "k-2", 6, 1, closed=0b11),
        17: Leased(17, 8, 0, "t-1", "k-1", 5, 2),
    }


def bodies_of(booked: booking.Booking) -> list[bytes]:
    """Return what the ledger is handed, however it is handed in."""
    return [body for one in booked.store for body in (one.bodies if isinstance(one, SettledIn) else [one.body])]


@given(
    rows=st.lists(
        st.tuples(PLAIN, st.sampled_from([1, 1, 1, 9, 17, 25])), max_size=8, unique_by=lambda r: r[0].request_id
    ),
    wrong_key=st.sampled_from([False, False, True]),
)
def test_a_message_is_booked_at_once_as_it_is_row_by_row(rows: list[tuple[SettleRow, int]], wrong_key: bool):
    """Ids closed, money, and what the ledger is handed are the same; where one row is odd, each is looked at."""
    keys = [{1: 5, 9: 6, 17: 5}.get(lease_id, 5) + wrong_key for _, lease_id in rows]
    raw = msgspec.Raw(msgspec.msgpack.encode([row for row, _ in rows]))
    message = wire.Handed(1, raw, keys, [lease_id for _, lease_id in rows])
    mine, theirs = leases(), leases()
    at_once = booking.book(message, mine, 1, 77)
    one_by_one = booking._one_by_one(settled.decoded(raw), message, theirs, 1, 77)
    assert {i: x.closed for i, x in mine.items()} == {i: x.closed for i, x in theirs.items()}
    assert at_once.fresh == one_by_one.fresh and at_once.n_repeated == one_by_one.n_repeated
    assert {k: v for k, v in at_once.booked.items() if v} == {k: v for k, v in one_by_one.booked.items() if v}
    stored = bodies_of(at_once)
    assert stored == bodies_of(one_by_one)
    assert at_once.n_rows == len(rows) and all(encode(row) in stored for row in at_once.fresh.rows())
