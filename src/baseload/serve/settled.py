"""A message's settled rows, read at once by the owner: each row's canonical bytes, and what those that ended alike add up to.

`settled.c` does this in one pass over the message, where `make native` built it (decision 0015), for rows whose fields are
plain; it answers None to all others, and `closely` reads them one by one, as it does everywhere where nothing was built.
A test holds what the C says to what `closely` finds. Whose lease covers which row is the owner's to know.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from importlib import import_module
from typing import NamedTuple

import msgspec

from baseload.serve.rows import SettleRow, decode, encode

Rows = bytes | bytearray | memoryview | msgspec.Raw
PRICE, ENERGY = 4, 6  # places in the sums

_ROWS = msgspec.msgpack.Decoder(list[SettleRow])


class Whose(NamedTuple):
    """Tenant and key of a row, by pseudonym, and how they stand in its bytes."""

    tenant: str
    key: str
    json: bytes  # `,"tenant":…,"key":…`


class Alike(NamedTuple):
    """Rows of a message that are of one key and site, and ended alike; what they come to."""

    whose: Whose
    site: str
    status: int
    reason: int
    client_status: int
    streamed: bool
    sums: tuple[
        int, ...
    ]  # in the order of the ledger's sums: requests, tokens (in, cached, out), price, cost, energy, carbon
    places: list[int]  # of streamed ones: which rows of the batch they are


class Batch(NamedTuple):
    """Settled rows of one time, with their canonical bytes."""

    at_ns: int
    ids: list[int]
    bodies: list[bytes]
    alike: list[Alike]

    def rows(self, places: Iterable[int] | None = None) -> list[SettleRow]:
        """Return the rows at these places, or all."""
        wanted = self.bodies if places is None else [self.bodies[place] for place in places]
        return [row for body in wanted if isinstance(row := decode(body), SettleRow)]


def whose(tenant: str, key: str) -> Whose:
    """Return whose a row is.

    >>> whose("t-1", "k-1").json
    b',"tenant":"t-1","key":"k-1"'
    """
    return Whose(tenant, key, b',"tenant":%b,"key":%b' % (msgspec.json.encode(tenant), msgspec.json.encode(key)))


def plainly(
    raw: Rows, at_ns: int, who: Sequence[Whose]
) -> tuple[list[int], list[bytes], list[tuple[int, str, int, int, int, bool, tuple[int, ...], list[int]]]] | None:
    """Return ids, bodies, and groups (first row, …) of rows in MessagePack; None: look closer."""
    return None


def mask_of(ids: Sequence[int], first: int, n: int) -> bytes | None:
    """Return which of the ids from `first` to `first` + `n` are there, the lowest in the lowest bit of the first byte.

    None where one is another, or there twice.

    >>> mask_of([9, 8, 17], 8, 16), mask_of([8, 8], 8, 16), mask_of([24], 8, 16)
    (b'\\x03\\x02', None, None)
    """
    mask = bytearray((n + 7) // 8)
    for request_id in ids:
        i = request_id - first
        if not 0 <= i < n or mask[i >> 3] >> (i & 7) & 1:
            return None
        mask[i >> 3] |= 1 << (i & 7)
    return bytes(mask)


NAMES = ("plainly", "mask_of")

try:
    globals().update({name: getattr(import_module("baseload.serve.settled_c"), name) for name in NAMES})
except ImportError:
    pass  # not built, or not to be used (`native.use`)


def read(raw: Rows, at_ns: int, who: Sequence[Whose]) -> Batch:
    """Return a message's rows, all written at `at_ns`, each under its tenant and key; raises msgspec.MsgspecError."""
    found = plainly(raw, at_ns, who)
    if found is None:
        return closely(decoded(raw), at_ns, who)
    ids, bodies, groups = found
    alike = [Alike(who[group[0]], *group[1:]) for group in groups]
    return Batch(at_ns, ids, bodies, alike)


def decoded(raw: Rows) -> list[SettleRow]:
    """Return the rows of a message one by one; raises msgspec.MsgspecError where they are none."""
    return _ROWS.decode(raw)


def closely(rows: Sequence[SettleRow], at_ns: int, who: Sequence[Whose]) -> Batch:
    """Return the batch of rows that were read one by one; they get their time, tenant and key."""
    for row, one in zip(rows, who, strict=True):
        row.at_ns, row.tenant, row.key = at_ns, one.tenant, one.key
    return batch_of(rows, at_ns)


def batch_of(rows: Sequence[SettleRow], at_ns: int) -> Batch:
    """Return the batch of rows that say whose they are."""
    return Batch(at_ns, [row.request_id for row in rows], [encode(row) for row in rows], alike_of(rows))


def alike_of(rows: Sequence[SettleRow]) -> list[Alike]:
    """Return groups of rows, in the order of their first ones."""
    groups: dict[tuple[str, str, str, int, int, int, bool], list[int]] = {}
    for place, row in enumerate(rows):
        kind = (row.tenant, row.key, row.site, row.status, row.reason, row.client_status, row.streamed)
        groups.setdefault(kind, []).append(place)
    found = []
    for (tenant, key, site, status, reason, client_status, streamed), places in groups.items():
        sums = sums_of([rows[place] for place in places])
        which = places if streamed else []
        found.append(Alike(whose(tenant, key), site, status, reason, client_status, streamed, sums, which))
    return found


def sums_of(rows: Sequence[SettleRow]) -> tuple[int, ...]:
    """Return what rows come to, in the order of the ledger's sums."""
    return (
        len(rows),
        sum([row.input_tokens for row in rows]),
        sum([row.cached_tokens for row in rows]),
        sum([row.output_tokens for row in rows]),
        sum([row.price_nano for row in rows]),
        sum([row.cost_nano for row in rows]),
        sum([row.energy_mj for row in rows]),
        sum([row.carbon_ug for row in rows]),
    )
