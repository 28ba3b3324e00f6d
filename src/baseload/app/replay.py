"""`baseload simulate fleet.yaml --replay ledger.db`: yesterday's traffic through the twin, and where reality differed.

Every request that the ledger settled becomes a row of a trace: its arrival, lengths, prefix hashes, tenant, region and
model. The twin then serves them with the fleet file's policies, and each is set beside what happened.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from baseload.app.live_tally import quantile
from baseload.errors import RunError, TraceError
from baseload.fleet.model import Fleet
from baseload.records import REFUSED, SERVED
from baseload.serve.body import BLOCK_TOKENS
from baseload.serve.rows import SettleRow, settled

if TYPE_CHECKING:
    from baseload.adapters.traces import TraceSource
    from baseload.simulate.setup import Twin

NAMES_SHOWN = 8


@dataclass(frozen=True, slots=True, kw_only=True)
class Replay:
    """What a ledger holds, in order of arrival."""

    path: Path
    rows: list[SettleRow]
    tenant_names: dict[str, str]  # pseudonym -> name, as far as known

    @property
    def start(self) -> datetime:
        """Return when the first request arrived."""
        return datetime.fromtimestamp(self.rows[0].arrival_ns / 1e9, UTC)

    @property
    def overrides(self) -> tuple[str, ...]:
        """Return what puts the fleet's run on the ledger's own day and hour."""
        hour = self.start.hour + self.start.minute / 60.0
        return (f"demand.start={self.start:%Y-%m-%d}", f"demand.start_hour_utc={hour:.4f}")


def read(path: Path) -> Replay:
    """Return the settled requests of a ledger; raises RunError where it is none, or holds none."""
    from baseload.adapters.accounts import AccountsFile
    from baseload.adapters.ledger_sqlite import SqliteLedger

    if not path.is_file():
        raise RunError(f"{path}: no such ledger; name the ledger.db of a state folder")
    with SqliteLedger.read(path) as ledger:
        rows = sorted(settled(row.body for row in ledger.rows()), key=lambda row: (row.arrival_ns, row.request_id))
    rows = [row for row in rows if row.arrival_ns >= 0 and row.input_tokens > 0]
    if not rows:
        raise RunError(f"{path}: holds no settled request; let the gateway serve some first")
    names: dict[str, str] = {}
    beside = path.parent / "accounts.db"
    if beside.is_file():
        accounts = AccountsFile(beside)
        names = accounts.tenants()
        accounts.close()
    return Replay(path=path, rows=rows, tenant_names=names)


def source(replay: Replay, fleet: Fleet) -> TraceSource:
    """Return the ledger as demand; a tenant that nobody can name is drawn by the fleet file's shares."""
    from baseload.adapters.traces import TraceSource, columns

    rows = replay.rows
    first_ns = rows[0].arrival_ns
    arrival = np.array([row.arrival_ns - first_ns for row in rows], np.int64)
    lengths = _answer_lengths(rows)
    counts = np.array([len(row.prefix) for row in rows], np.int64)
    hashes = np.array([_positive(one) for row in rows for one in row.prefix], np.int64)
    trace = columns(
        arrival,
        np.array([row.input_tokens for row in rows], np.int32),
        lengths,
        hash_counts=counts,
        hash_ids=hashes,
        hash_block_tokens=BLOCK_TOKENS if len(hashes) else 0,
    )
    trace.tenant_i[:] = _indices([replay.tenant_names.get(r.tenant, "") for r in rows], list(fleet.tenants) or [""])
    trace.region_i[:] = _indices([r.region for r in rows], list(fleet.regions) or [""])
    models = _indices([r.model for r in rows], list(fleet.models))
    if (models < 0).any():
        unknown = sorted({row.model for row, i in zip(rows, models, strict=True) if i < 0})[:NAMES_SHOWN]
        raise TraceError(
            f"{replay.path}: requests for models that the fleet file does not have: {', '.join(unknown)}; "
            "replay it with the fleet file that was served"
        )
    trace.model_i[:] = models
    return TraceSource(
        name=replay.path.name,
        source_note=f"replay of {len(rows):,} settled requests from {replay.start:%Y-%m-%d %H:%M} UTC",
        blocks=lambda: iter([trace]),
        n=len(rows),
        n_about=float(len(rows)),
        duration_s=float(arrival[-1]) / 1e9 + 1.0,
        hash_block_tokens=BLOCK_TOKENS if len(hashes) else 0,
    )


def _answer_lengths(rows: Sequence[SettleRow]) -> Any:
    """Return the answers' lengths; of what was refused nobody knows it, so it counts as the mean."""
    known = [row.output_tokens for row in rows if row.output_tokens > 0]
    mean = max(1, round(sum(known) / len(known))) if known else 1
    return np.array([row.output_tokens or (mean if row.status == REFUSED else 1) for row in rows], np.int32)


def _positive(hashed: int) -> int:
    return (hashed & 0x7FFF_FFFF_FFFF_FFFF) or 1


def _indices(names: Sequence[str], known: Sequence[str]) -> Any:
    """Return the index of each name, -1 where it is not known; one known name takes all that say nothing."""
    place = {name: i for i, name in enumerate(known)}
    if len(known) == 1:
        place[""] = 0
    return np.array([place.get(name, -1) for name in names], np.int16)


# ---- what differed ---------------------------------------------------------------------------------------


def comparison(replay: Replay, twin: Twin, requests: dict[str, Any]) -> str:
    """Return twin and reality side by side, by deployment, and what went elsewhere than the twin sent it.

    `requests` are the run's records as columns; request_id is the row of the trace.
    """
    by_id = {int(request): i for i, request in enumerate(requests["request_id"].tolist())}
    one_way_ns = [round(s * 1e9) for s in twin.spec.one_way_s.tolist()]
    groups: dict[str, dict[str, list[float]]] = {}
    same = moved = status_same = 0
    moves: dict[tuple[str, str], int] = {}
    for i, row in enumerate(replay.rows):
        at = by_id.get(i)
        if at is None:
            continue
        site_i, status = int(requests["site_i"][at]), int(requests["status"][at])
        status_same += (status == SERVED) == (row.status == SERVED)
        if row.status != SERVED or status != SERVED:
            continue
        twin_site = twin.sites[site_i]
        if twin_site == row.site:
            same += 1
        else:
            moved += 1
            moves[row.site, twin_site] = moves.get((row.site, twin_site), 0) + 1
        group = groups.setdefault(row.deployment, {key: [] for key in ("ttft", "twin_ttft", "e2e", "twin_e2e")})
        back_ns = one_way_ns[site_i]
        group["ttft"].append((row.first_token_ns - row.arrival_ns) / 1e9)
        group["e2e"].append((row.finish_ns - row.arrival_ns) / 1e9)
        group["twin_ttft"].append(
            (int(requests["first_token_ns"][at]) - int(requests["arrival_ns"][at]) + back_ns) / 1e9
        )
        group["twin_e2e"].append((int(requests["finish_ns"][at]) - int(requests["arrival_ns"][at]) + back_ns) / 1e9)
    return _table(groups) + _where(len(replay.rows), same, moved, status_same, moves)


def _table(groups: dict[str, dict[str, list[float]]]) -> str:
    lines = [
        "at the gateway, seconds          requests   TTFT p50  twin   TTFT p99  twin   whole p50  twin   whole p99  twin"
    ]
    for name, group in sorted(groups.items()):
        figures = []
        for key in ("ttft", "e2e"):
            for share in (0.5, 0.99):
                figures += [quantile(group[key], share) or 0.0, quantile(group[f"twin_{key}"], share) or 0.0]
        shown = "  ".join(f"{real:8.3f} {twin:7.3f}" for real, twin in zip(figures[::2], figures[1::2], strict=True))
        lines.append(f"{name[:30]:30} {len(group['ttft']):10,}  {shown}")
    return "\n".join(lines) + "\n"


def _where(n: int, same: int, moved: int, status_same: int, moves: dict[tuple[str, str], int]) -> str:
    served = same + moved
    lines = [f"of {n:,} requests {status_same:,} ended alike (served or not) in the twin"]
    if served:
        lines.append(f"of {served:,} served in both, {same:,} ({same / served:.1%}) went to the same site")
    for (real, twin), count in sorted(moves.items(), key=lambda one: -one[1])[:NAMES_SHOWN]:
        lines.append(f"  {count:,} went to {real}, and the twin sent them to {twin}")
    return "\n".join(lines)
