"""The rows of the ledger and their bytes."""

from __future__ import annotations

import json
from hashlib import sha256

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from baseload.adapters import ledger_book
from baseload.ports import KINDS
from baseload.report.verify_books import BadRow, read_body
from baseload.serve.rows import (
    ROW_TYPES,
    ControlRow,
    LeaseRow,
    RotateRow,
    SettleRow,
    decode,
    describe,
    encode,
    row_in,
    settled,
)  # fmt: skip

WORDS = st.text(st.characters(exclude_categories=["Cs"]), max_size=20)


@given(WORDS, WORDS, st.lists(st.integers(-(2**63), 2**63 - 1), max_size=4), st.integers(0, 2**63 - 1))
def test_bytes_are_canonical_for_two_programs(why: str, model: str, prefix: list[int], price_nano: int):
    """Whatever text a row holds, its bytes are those that the verifier's own writer would make of what they say."""
    row = SettleRow(
        request_id=1, at_ns=2, tenant="t", key="k", why=why, model=model, prefix=prefix, price_nano=price_nano
    )
    body = encode(row)

    assert decode(body) == row
    assert read_body(body)["why"] == why
    assert next(settled(iter([body]))) == row


@pytest.mark.parametrize(
    "body",
    [b'{"kind":"void", "request_id":1}', b'{"kind":"void","kind":"void"}', b'{"kind":"void","at_ns":1.5}',
     b'{"kind":"void","at_ns":NaN}', b"[]", b"{}", b'"void"', b"\xff", b'{"kind":"v\\u006fid"}', b'{"kind":1}'],
)  # fmt: skip
def test_bytes_that_are_not_canonical_are_refused(body: bytes):
    """One meaning has one spelling: spaces, doubled fields, fractions and needless escapes are no row."""
    with pytest.raises(BadRow):
        read_body(body)


def test_unknown_fields_and_kinds_are_refused():
    """A body with a field or kind that this version does not know is not read as if it were ours."""
    for body in (b'{"kind":"void","request_id":1,"at_ns":1,"more":1}', b'{"kind":"gift","at_ns":1}'):
        with pytest.raises(msgspec.ValidationError):
            decode(body)


def test_every_kind_has_its_number_and_says_its_name_first():
    """The kinds of rows are those that the ledger numbers; each body begins with its kind."""
    assert {str(row_type.__struct_config__.tag) for row_type in ROW_TYPES} == set(KINDS)
    row = LeaseRow(request_id=7, at_ns=1, n_ids=2)
    assert row_in(row)[:3] == ("lease", 7, encode(row))
    assert row_in(ControlRow(at_ns=1, action="x")).request_id == 0
    assert encode(row).startswith(b'{"kind":"lease","request_id":7,')


def test_what_the_ledger_writes_itself_has_the_same_bytes():
    """The ledger's own rows, written below this room, are rows as this room declares them."""
    rotate = {"at_ns": 1, "act": "begin", "origin": "a/1", "leases": [[1, 2, "0", -1, "t", "k", 5, 6]], "why": "w"}
    assert msgspec.json.encode(ledger_book.Rotate(**rotate)) == encode(RotateRow(**rotate))
    control = {"at_ns": 1, "action": "signing-key", "who": "w", "key": "k", "note": "n"}
    assert msgspec.json.encode(ledger_book.Control(**control)) == encode(ControlRow(**control))


def test_every_field_is_described_once():
    """The reference page has each field of each kind, in the order of the bytes, with unit and meaning."""
    fields = describe()
    body = json.loads(encode(SettleRow(request_id=1, at_ns=1, tenant="t", key="k")))

    assert ["kind", *[field.name for field in fields if field.kind == "settle"]] == list(body)
    assert all(field.meaning for field in fields)
    assert {field.unit for field in fields if field.name.endswith("_ns")} == {"ns"}
    assert {field.unit for field in fields if field.name.endswith("_nano")} == {"1e-9 currency"}


def test_the_leaf_of_a_row_can_be_computed_by_hand():
    """A row's hash is SHA-256 over a zero byte and its body, and nothing more."""
    plan = ledger_book.Plan(ledger_book.merkle.Frontier(), 1)
    plan.add(6, 0, b"{}")

    assert plan.rows[0][3] == sha256(b"\x00{}").digest()
