"""What the rows of a ledger say together: every leased id closed at most once, and the sums, recomputed from the bodies.

Only bodies are believed here (their hashes are `verify.py`'s to check); the ledger's own tables of leases and sums are
compared with what comes out.
"""

from __future__ import annotations

import json
from bisect import bisect_right
from collections.abc import Iterator
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any

KIND_WORDS = ("", "lease", "settle", "void", "reconcile", "reload", "control", "rotate")
SUM_FIELDS = ("input_tokens", "cached_tokens", "output_tokens", "price_nano", "cost_nano", "energy_mj", "carbon_ug")


class BadRow(ValueError):
    """A row's body cannot be what was written."""


def _pairs(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) != len(pairs):
        raise BadRow("a field twice")
    return found


def _no_fraction(text: str) -> Any:
    raise BadRow(f"a number that is not whole: {text}")


_READ = json.JSONDecoder(
    object_pairs_hook=_pairs, parse_float=_no_fraction, parse_constant=_no_fraction
)  # one reader, one writer
_WRITE = json.JSONEncoder(ensure_ascii=False, separators=(",", ":"))


def read_body(body: object) -> dict[str, Any]:
    """Return a body's fields; raises BadRow where its bytes are not the canonical ones of what they say."""
    if not isinstance(body, bytes):
        raise BadRow("its body is not bytes")
    try:
        text = body.decode("utf-8")
        row = _READ.decode(text)
    except BadRow:
        raise
    except ValueError:
        raise BadRow("its body is not JSON") from None
    if not isinstance(row, dict) or not isinstance(row.get("kind"), str):
        raise BadRow("its body is not a row")
    if _WRITE.encode(row) != text:
        raise BadRow("its body is not in canonical form")
    return row


def _count(row: dict[str, Any], name: str) -> int:
    value = row.get(name, 0)
    if type(value) is not int:
        raise BadRow(f"its {name} is not a number")
    return value


def _word(row: dict[str, Any], name: str) -> str:
    value = row.get(name, "")
    if not isinstance(value, str):
        raise BadRow(f"its {name} is not a text")
    return value


@dataclass(slots=True)
class _Lease:
    n_ids: int
    facts: tuple[int, str, str, int, int]  # worker, tenant, key, money_nano, at_ns
    closed: set[int] = field(default_factory=set)


class Books:
    """Goes through rows in their order; `take` raises BadRow for a row that does not fit those before it."""

    def __init__(self) -> None:
        self.sums: dict[tuple[str, str, str], list[int]] = {}
        self.next_id = 1
        self.kinds: dict[str, int] = {}
        self._leases: dict[int, _Lease] = {}
        self._firsts: list[int] = []
        self.sealed = False

    def take(self, seq: int, row: dict[str, Any]) -> None:
        """Book one row."""
        kind = row["kind"]
        if self.sealed:
            raise BadRow("it follows the row that sealed this log")
        if (seq == 0) != (kind == "rotate" and row.get("act") == "begin"):
            raise BadRow("a log has one beginning, its first row")
        self.kinds[kind] = self.kinds.get(kind, 0) + 1
        if kind == "rotate":
            self._rotate(row)
        elif kind == "lease":
            self._lease(row)
        elif kind == "settle":
            self._settle(row)
        elif kind == "void":
            self._void(row)
        elif kind not in KIND_WORDS or not kind:
            raise BadRow(f"its kind is unknown: {kind!r}")

    def _rotate(self, row: dict[str, Any]) -> None:
        if row.get("act") != "begin":
            self.sealed = True
            return
        self.next_id = _count(row, "next_request_id")
        try:
            for first, n_ids, mask, *facts in row["leases"]:
                shut = int(mask, 16)
                worker, tenant, key, money, at_ns = facts
                lease = _Lease(n_ids, (worker, tenant, key, money, at_ns))
                lease.closed = {i for i in range(n_ids) if shut >> i & 1}
                self._leases[first] = lease
                self._firsts.append(first)
            for month, tenant, key, *sums in row["totals"]:
                self.sums[month, tenant, key] = [int(value) for value in sums]
        except (KeyError, TypeError, ValueError):
            raise BadRow("what it carries over cannot be read") from None

    def _lease(self, row: dict[str, Any]) -> None:
        first, n_ids = _count(row, "request_id"), _count(row, "n_ids")
        if first < self.next_id or n_ids < 0:
            raise BadRow(f"leases id {first} again: the next free one is {self.next_id}")
        self.next_id = first + max(1, n_ids)
        if n_ids:
            facts = (
                _count(row, "worker"), _word(row, "tenant"), _word(row, "key"),
                _count(row, "money_nano"), _count(row, "at_ns"),
            )  # fmt: skip
            self._leases[first] = _Lease(n_ids, facts)
            self._firsts.append(first)

    def _find(self, request_id: int) -> tuple[int, _Lease]:
        place = bisect_right(self._firsts, request_id)
        first = self._firsts[place - 1] if place else -1
        lease = self._leases.get(first)
        if lease is None or request_id >= first + lease.n_ids:
            raise BadRow(f"request id {request_id} was never leased before it")
        return first, lease

    def _settle(self, row: dict[str, Any]) -> None:
        request_id = _count(row, "request_id")
        first, lease = self._find(request_id)
        if request_id - first in lease.closed or len(lease.closed) == lease.n_ids:
            raise BadRow(f"request id {request_id} is closed already")
        lease.closed.add(request_id - first)
        month = datetime.fromtimestamp(_count(row, "at_ns") // 10**9, UTC).strftime("%Y-%m")
        sums = self.sums.setdefault((month, _word(row, "tenant"), _word(row, "key")), [0] * (1 + len(SUM_FIELDS)))
        sums[0] += 1
        for place, name in enumerate(SUM_FIELDS, start=1):
            sums[place] += _count(row, name)

    def _void(self, row: dict[str, Any]) -> None:
        request_id = _count(row, "request_id")
        first, lease = self._find(request_id)
        if first != request_id:
            raise BadRow(f"voids {request_id}, which is no lease")
        if len(lease.closed) == lease.n_ids:
            raise BadRow(f"voids the lease {first}, which is closed already")
        lease.closed.update(range(lease.n_ids))

    def open_leases(self) -> Iterator[tuple[object, ...]]:
        """Yield the leases with open ids as the ledger's table should have them."""
        for first in self._firsts:
            lease = self._leases[first]
            if len(lease.closed) < lease.n_ids:
                mask = bytearray((lease.n_ids + 7) // 8)
                for i in lease.closed:
                    mask[i // 8] |= 1 << i % 8
                yield (first, lease.n_ids, bytes(mask), *lease.facts)

    @property
    def open_ids(self) -> int:
        """Return how many leased ids are not closed."""
        return sum(lease.n_ids - len(lease.closed) for lease in self._leases.values())
