"""What must hold after any run of chaos, whatever went wrong: the clients' outcomes, the ledger and the engines' truth agree.

Each function returns sentences, one a violation; an empty list is what we want.
"""

from __future__ import annotations

import json
import sqlite3
from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tests.chaos.client import Outcome

TRIES_MAX = 3
LIARS = ("lie", "lie0", "lieneg")


@dataclass(frozen=True)
class Window:
    """A time, by the monotonic clock, in which the gateway may break connections without a word: it was killed."""

    start_s: float
    end_s: float


@dataclass
class Seen:
    """A request's outcome with what was asked of it."""

    outcome: Outcome
    fault: str
    prompt_bytes: int


def number(rid: str) -> int:
    """Return a request id's number.

    >>> number("req-000000000000002a")
    42
    """
    return int(rid.removeprefix("req-"), 16)


def ledger_rows(path: Path) -> list[dict[str, Any]]:
    """Return the rows of a SQLite ledger in their order, read without any code of ours."""
    with closing(sqlite3.connect(f"file:{path}?mode=ro", uri=True)) as base:
        tables = [name for (name,) in base.execute("select name from sqlite_master where type = 'table'")]
        for table in tables:
            columns = [row[1] for row in base.execute(f'pragma table_info("{table}")')]
            if "body" in columns and "seq" in columns:
                return [json.loads(body) for (body,) in base.execute(f'select body from "{table}" order by seq')]
    raise ValueError(f"{path}: no table with seq and body")


def one_end_each(seen: Iterable[Seen], windows: Sequence[Window]) -> list[str]:
    """I1: every request ended in exactly one of answer, error event, envelope, our own hanging up; broken only in a kill."""
    wrong = []
    for s in seen:
        o = s.outcome
        if o.kind in ("answer", "error_event", "envelope", "cancelled"):
            continue
        excused = o.kind == "broken" and any(w.start_s <= o.ended_s and o.started_s <= w.end_s for w in windows)
        if not excused:
            wrong.append(f"{o.kind}: {o.rid or 'no id'} status {o.status} fault {s.fault or 'none'}: {o.why}")
    return wrong


def one_row_each(rows: Sequence[dict[str, Any]]) -> list[str]:
    """No id is settled twice, none without a lease, and no lease is left open."""
    settled = Counter(row["request_id"] for row in rows if row["kind"] == "settle")
    wrong = [f"req-{rid:016x} settled {n} times" for rid, n in settled.items() if n > 1]
    voided = {row["request_id"] for row in rows if row["kind"] == "void"}
    leases = [(row["request_id"], row["n_ids"]) for row in rows if row["kind"] == "lease"]
    covered: set[int] = set()
    for first, n_ids in leases:
        ids = range(first, first + n_ids)
        again = covered & set(ids)
        if again:
            wrong.append(f"ids leased twice: {min(again)} and {len(again) - 1} more")
        covered.update(ids)
        left = sum(i not in settled for i in ids)
        if left and first not in voided:
            wrong.append(f"lease {first} (+{n_ids}): {left} ids neither settled nor voided: a leaked reservation")
    wrong += [f"req-{rid:016x} settled without a lease" for rid in settled if rid not in covered]
    return wrong


def billed_as_delivered(
    seen: Iterable[Seen], rows: Sequence[dict[str, Any]], truth: dict[str, list[dict[str, Any]]], *, n_lost: int
) -> list[str]:
    """I2: what the ledger bills is what was delivered.

    Where a process was killed it may be less, by `n_lost` tokens or those of the last two pieces that the gateway wrote
    (events that come together are passed on together); never more.
    """
    by_id = {row["request_id"]: row for row in rows if row["kind"] == "settle"}
    wrong: list[str] = []
    for s in seen:
        o = s.outcome
        if o.rid:
            wrong += _one_request(s, by_id.get(number(o.rid)), truth.get(o.rid, []), n_lost)
    client_knows = {number(s.outcome.rid) for s in seen if s.outcome.rid}
    for rid, attempts in truth.items():
        if not rid.startswith("req-"):
            wrong.append(f"an engine was asked under {rid!r}, which is no request id of ours")
            continue
        if len(attempts) > TRIES_MAX:
            wrong.append(f"{rid} was tried {len(attempts)} times")
        row = by_id.get(number(rid))
        if row is None and number(rid) in client_knows:
            wrong.append(f"{rid} reached an engine and its client, and is in no settle row")
        if row is not None and row["output_tokens"] > max(a["sent"] for a in attempts):
            if not any(a["fault"] in LIARS for a in attempts):
                wrong.append(
                    f"{rid}: {row['output_tokens']} tokens billed, {max(a['sent'] for a in attempts)} ever sent"
                )
    for rid_number, row in by_id.items():
        if row["output_tokens"] and f"req-{rid_number:016x}" not in truth:
            wrong.append(f"req-{rid_number:016x}: {row['output_tokens']} tokens billed, and no engine was ever asked")
    return wrong


def _one_request(s: Seen, row: dict[str, Any] | None, attempts: list[dict[str, Any]], n_lost: int) -> list[str]:
    o, what = s.outcome, f"{s.outcome.rid} ({s.outcome.kind}, fault {s.fault or 'none'})"
    if row is None:
        refused = o.kind == "envelope" or o.received == 0
        return [] if refused else [f"{what}: {o.received} tokens received, no settle row"]
    billed, wrong = row["output_tokens"], []
    sent = max((a["sent"] for a in attempts), default=0)
    liar = s.fault in LIARS or (s.fault == "nousage" and not o.streamed)  # then nobody can count: nothing is billed
    if o.kind in ("answer", "error_event") and not row["recovered"]:
        good = billed <= o.asked if liar else billed == o.received
        if not good:
            wrong.append(f"{what}: {o.received} tokens received, {billed} billed")
    elif o.kind == "envelope" and billed:
        wrong.append(f"{what}: an error, and {billed} tokens billed")
    elif o.kind in ("cancelled", "broken", "late", "lie") or row["recovered"]:
        if not (o.received - max(n_lost, o.last_pieces) <= billed <= max(sent, o.received)) and not liar:
            wrong.append(f"{what}: {o.received} received, {sent} sent, {billed} billed (recovered {row['recovered']})")
    if row["input_tokens"] > s.prompt_bytes:
        wrong.append(f"{what}: {row['input_tokens']} prompt tokens billed for {s.prompt_bytes} bytes")
    if o.kind == "answer" and o.usage and "price" in o.usage:
        less = row["recovered"] and row["price_nano"] <= o.usage["price"] * 1e9  # told, then closed from the marks
        if abs(o.usage["price"] * 1e9 - row["price_nano"]) > 1.0 and not less:
            wrong.append(f"{what}: told price {o.usage['price']}, ledger {row['price_nano']}e-9")
    return wrong


def tally(seen: Iterable[Seen]) -> dict[str, Counter[str]]:
    """Return how often each fault ended how."""
    found: dict[str, Counter[str]] = defaultdict(Counter)
    for s in seen:
        found[s.fault or "none"][s.outcome.kind] += 1
    return dict(found)
