"""Settled rows on their way from a worker to the owner: in batches, kept until they are stored, handed in again if need be."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Final

import msgspec

from baseload.serve import wire
from baseload.serve.opened import Opened
from baseload.serve.rows import SettleRow

FLUSH_S: Final = 0.05  # rows wait so long for company

Pair = tuple[SettleRow, Opened]


class Outbox:
    """Rows that the owner has not stored yet."""

    def __init__(self, send: Callable[[wire.Rows], None], next_i: Callable[[], int]) -> None:
        self._send, self._next_i = send, next_i
        self._fresh: list[Pair] = []
        self._sent: dict[int, list[Pair]] = {}
        self._overdrawn: dict[int, int] = {}
        self._timer: asyncio.TimerHandle | None = None

    def __len__(self) -> int:
        return len(self._fresh) + sum(map(len, self._sent.values()))

    def put(self, row: SettleRow, opened: Opened, overdrawn_nano: int) -> None:
        """Take a row; it goes out within `FLUSH_S`."""
        if overdrawn_nano:
            key_i = opened.key.key_i
            self._overdrawn[key_i] = self._overdrawn.get(key_i, 0) + overdrawn_nano
        self._fresh.append((row, opened))
        if len(self._fresh) >= wire.MAX_ROWS:
            self.flush()
        elif self._timer is None:
            self._timer = asyncio.get_running_loop().call_later(FLUSH_S, self.flush)

    def flush(self) -> None:
        """Send what waits."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        while self._fresh:
            batch_i = self._next_i()
            self._sent[batch_i], self._fresh = self._fresh[: wire.MAX_ROWS], self._fresh[wire.MAX_ROWS :]
            self._send_batch(batch_i)

    def hand_in_again(self) -> None:
        """Send all again, after a hello, in which what was overdrawn is part of what is held."""
        self._overdrawn.clear()
        for batch_i in sorted(self._sent):
            self._send_batch(batch_i)
        self.flush()

    def stored(self, batch_i: int) -> list[Pair]:
        """A batch is durable: return it, and forget it."""
        return self._sent.pop(batch_i, [])

    def _send_batch(self, batch_i: int) -> None:
        batch = self._sent[batch_i]
        overdrawn, self._overdrawn = list(self._overdrawn.items()), {}
        keys = [opened.key.key_i for _, opened in batch]
        leases = [opened._lease.lease_id for _, opened in batch]
        message = wire.Rows(batch_i, [row for row, _ in batch], keys, leases, overdrawn)
        try:
            self._send(message)
        except (msgspec.MsgspecError, TypeError, ValueError, OverflowError):  # a bug elsewhere must not cost the others
            message.rows = [row if _travels(row) else _bare(row) for row in message.rows]
            self._send(message)


def _travels(row: SettleRow) -> bool:
    try:
        return bool(msgspec.msgpack.encode(row))
    except (msgspec.MsgspecError, TypeError, ValueError, OverflowError):
        return False


def _bare(row: SettleRow) -> SettleRow:
    """Return what must be kept of a row that cannot travel: who, how many tokens, what price."""
    return SettleRow(
        request_id=row.request_id, at_ns=0, tenant=row.tenant, key=row.key, input_tokens=row.input_tokens,
        cached_tokens=row.cached_tokens, output_tokens=row.output_tokens, status=row.status, price_nano=row.price_nano,
        why="its other fields could not be written",
    )  # fmt: skip
