"""What there is to see of an owner."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from functools import lru_cache
from typing import TYPE_CHECKING, Any

from baseload.ports import Ledger
from baseload.serve.rows import SettleRow, decode
from baseload.serve.wire import ReceiptAsk, ReceiptIs, Wire

if TYPE_CHECKING:
    from baseload.serve.owner import Owner

DAY_NS = 86_400 * 10**9


def month_of(ns: int) -> str:
    """Return the UTC month of a time.

    >>> month_of(1_790_000_000_000_000_000)
    '2026-09'
    """
    return _month_of_day(ns // DAY_NS)


@lru_cache(maxsize=64)
def _month_of_day(day: int) -> str:
    return datetime.fromtimestamp(day * 86_400, UTC).strftime("%Y-%m")


def receipt_of(ledger: Ledger, request_id: int, tenant: str) -> bytes | None:
    """Return the receipt of a request of a tenant (pseudonym); None where there is none, or it is another's."""
    found = ledger.find(request_id)
    row = None if found is None else decode(found.body)
    if not tenant or not isinstance(row, SettleRow) or row.tenant != tenant:
        return None
    return ledger.receipt(request_id)


async def send_receipt(
    connection: Wire, ledger: Ledger, asked: ReceiptAsk, tenant: str, bug: Callable[[str], None]
) -> None:
    """Answer who asks for a receipt; finding it is a thread's work."""
    try:
        blob = await asyncio.to_thread(receipt_of, ledger, asked.request_id, tenant)
    except Exception as error:
        bug(f"receipt: {error!r}")
        blob = None
    connection.send(ReceiptIs(asked.ask_i, blob))


def newest(bodies: Sequence[bytes], n: int) -> list[SettleRow]:
    """Return the last `n` settled rows of bodies, the newest first."""
    last = list(bodies)[-n:] if n else []
    return [row for body in reversed(last) if isinstance(row := decode(body), SettleRow)]


def overview(owner: Owner) -> dict[str, Any]:
    """Return money by tenant, workers, storage, sums of the workers' counters, and what went wrong."""
    names = {record.tenant_pseudonym: record.tenant for record in owner.clientele.records.values()}
    sums: dict[str, float] = {}
    for holder in owner.holders.values():
        for name, value in holder.stats.items():
            sums[name] = sums.get(name, 0.0) + value
    return {
        "at_ns": owner.now_ns(),
        "storage_ok": owner.journal.ok,
        "rows_waiting": owner.journal.n_waiting,
        "rows_stored": owner.journal.n_rows,
        "commits": owner.journal.n_commits,
        "leases_open": len(owner.leases),
        "tenants": [
            {
                "tenant": names.get(pseudonym, ""), "month": owner.bank.month, "spent_nano": account.spent_nano,
                "held_nano": account.held_nano, "budget_nano": account.limits.budget_nano,
                "overdrawn_nano": account.overdrawn_nano,
            }
            for pseudonym, account in owner.bank.tenants.items()
        ],
        "workers": [
            {
                "worker": holder.worker, "pid": holder.pid, "connected": holder.connection is not None,
                "tables_version": holder.tables_version, "stats": dict(holder.stats),
            }
            for holder in owner.holders.values()
        ],
        "stats": sums,
        "counts": dict(owner.counts),
        "faults": list(owner.faults),
    }  # fmt: skip
