"""What a message of settled rows changes: ids that it closes, money, and what the ledger is handed.

Where each row closes an open id of a lease that its worker holds for its key, all are read and booked at once
(`settled.py`); else, one by one: what was handed in again is booked as repeated, and the ledger ignores what it has. Tells
the owner what to do, and does nothing itself but close ids in the leases it is given.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from baseload.ports import RowIn, SettledIn
from baseload.serve import settled, wire
from baseload.serve.recovery import Leased
from baseload.serve.rows import SettleRow, encode
from baseload.serve.settled import Batch


class Booking(NamedTuple):
    """What is to be booked and stored of a message."""

    fresh: Batch  # rows that close an id now
    store: Sequence[RowIn | SettledIn]
    n_rows: int
    booked: dict[tuple[int, bool], int]  # (key_i, handed in again) -> nano
    n_repeated: int = 0


def book(message: wire.Handed, leases: dict[int, Leased], holder: int, now_ns: int) -> Booking:
    """Close in `leases` what the rows of a message close; raises msgspec.MsgspecError or ValueError where it is none."""
    return _together(message, leases, holder, now_ns) or _one_by_one(
        settled.decoded(message.rows), message, leases, holder, now_ns
    )


def _together(message: wire.Handed, leases: dict[int, Leased], holder: int, now_ns: int) -> Booking | None:
    """Return the booking of rows that are all as they should be; None: look at each, nothing was changed."""
    mine = _leases_of(message, leases, holder)
    if mine is None:
        return None
    batch = settled.read(message.rows, now_ns, [mine[lease_id].whose for lease_id in message.leases])
    closes = _closed_by(batch.ids, message.leases, mine)
    if closes is None:
        return None
    for lease_id, mask in closes.items():
        if mine[lease_id].close_all(mask):
            del leases[lease_id]
    key_i_of = {lease.key: lease.key_i for lease in mine.values()}
    booked: dict[tuple[int, bool], int] = {}
    for alike in batch.alike:
        key_i = key_i_of[alike.whose.key]
        booked[key_i, False] = booked.get((key_i, False), 0) + alike.sums[settled.PRICE]
    sums = [(now_ns, alike.whose.tenant, alike.whose.key, alike.sums) for alike in batch.alike]
    return Booking(batch, [SettledIn(batch.ids, batch.bodies, closes, sums)], len(batch.ids), booked)


def _leases_of(message: wire.Handed, leases: dict[int, Leased], holder: int) -> dict[int, Leased] | None:
    """Return the leases of a message's rows, if each is of this holder and of its row's key."""
    if not message.keys or len(message.keys) != len(message.leases):
        return None
    mine: dict[int, Leased] = {}
    for lease_id, key_i in set(zip(message.leases, message.keys, strict=True)):
        lease = leases.get(lease_id)
        if lease is None or lease.holder != holder or lease.key_i != key_i:
            return None
        mine[lease_id] = lease
    return mine


def _closed_by(ids: list[int], leases: list[int], mine: dict[int, Leased]) -> dict[int, int] | None:
    """Return a mask for each lease of the ids that are closed now, if all of them were open."""
    if len(mine) == 1:
        ids_of = {leases[0]: ids}
    else:
        ids_of = {lease_id: [] for lease_id in mine}
        for lease_id, request_id in zip(leases, ids, strict=True):
            ids_of[lease_id].append(request_id)
    closes: dict[int, int] = {}
    for lease_id, some in ids_of.items():
        bits = settled.mask_of(some, lease_id, mine[lease_id].n_ids)
        mask = 0 if bits is None else int.from_bytes(bits, "little")
        if bits is None or mask & mine[lease_id].closed:
            return None
        closes[lease_id] = mask
    return closes


def _one_by_one(
    rows: Sequence[SettleRow], message: wire.Handed, leases: dict[int, Leased], holder: int, now_ns: int
) -> Booking:
    """Book each row as it is."""
    if not len(rows) == len(message.keys) == len(message.leases):
        raise ValueError("rows without keys")
    fresh: list[SettleRow] = []
    stored: list[RowIn] = []
    booked: dict[tuple[int, bool], int] = {}
    for row, key_i, lease_id in zip(rows, message.keys, message.leases, strict=True):
        lease = leases.get(lease_id)
        known = lease is not None and lease.holder == holder and lease.key_i == key_i
        again = not (known and lease is not None and lease.is_open(row.request_id))
        row.at_ns = now_ns
        booked[key_i, again] = booked.get((key_i, again), 0) + row.price_nano
        if not again:
            assert lease is not None
            row.tenant, row.key = lease.tenant, lease.key
            if lease.close(row.request_id):
                del leases[lease_id]
            fresh.append(row)
        stored.append(RowIn("settle", row.request_id, encode(row), row))
    return Booking(settled.batch_of(fresh, now_ns), stored, len(stored), booked, len(stored) - len(fresh))
