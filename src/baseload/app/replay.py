"""`baseload simulate fleet.yaml --replay ledger.db`: yesterday's traffic through the twin, and where reality differed.

Every request that the ledger settled becomes a row of a trace: its arrival, lengths, prefix hashes, tenant, region and
model. The twin then serves them with the fleet file's policies, and each is set beside what happened.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from baseload.app.live_tally import latencies, quantile
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
    left_away: int = 0  # settled requests whose prompt nobody counted: stopped before the engine told it
    nameless: int = 0  # settled requests left away because nobody can say which of the tenants asked

    @property
    def start(self) -> datetime:
        """Return when the first request arrived."""
        return datetime.fromtimestamp(self.rows[0].arrival_ns / 1e9, UTC)

    @property
    def overrides(self) -> tuple[str, ...]:
        """Return what puts the fleet's run on the ledger's own day and hour."""
        hour = self.start.hour + self.start.minute / 60.0
        return (f"demand.start={self.start:%Y-%m-%d}", f"demand.start_hour_utc={hour:.4f}")

    @property
    def notes(self) -> list[str]:
        """Return what was left away, and why."""
        told = {
            "nobody counted their prompt": self.left_away,
            "no name of their tenant is in accounts.db": self.nameless,
        }
        return [f"{n:,} settled request(s) left away: {why}" for why, n in told.items() if n]


def read(path: Path) -> Replay:
    """Return the settled requests of a ledger; raises RunError where it is none, or holds none."""
    from baseload.adapters.accounts import AccountsFile
    from baseload.adapters.ledger_sqlite import SqliteLedger

    if not path.is_file():
        raise RunError(f"{path}: no such ledger; name the ledger.db of a state folder")
    with SqliteLedger.read(path) as ledger:
        rows = sorted(settled(row.body for row in ledger.rows()), key=lambda row: (row.arrival_ns, row.request_id))
    n = len(rows)
    rows = [row for row in rows if row.arrival_ns >= 0 and row.input_tokens > 0]
    if not rows:
        raise RunError(f"{path}: holds no settled request; let the gateway serve some first")
    names: dict[str, str] = {}
    beside = path.parent / "accounts.db"
    if beside.is_file():
        accounts = AccountsFile(beside)
        names = accounts.tenants()
        accounts.close()
    return Replay(path=path, rows=rows, tenant_names=names, left_away=n - len(rows))


def named(replay: Replay, fleet: Fleet) -> Replay:
    """Return the requests whose tenant is known; where a fleet has one tenant, or none, no name is needed."""
    if len(fleet.tenants) < 2:
        return replay
    rows = [row for row in replay.rows if row.tenant in replay.tenant_names]
    if not rows:
        raise RunError(
            f"{replay.path}: nobody can say which tenants asked: no accounts.db beside it has their names; "
            "name the ledger.db in its own state folder"
        )
    return replace(replay, rows=rows, nameless=replay.nameless + len(replay.rows) - len(rows))


def source(replay: Replay, fleet: Fleet) -> TraceSource:
    """Return the ledger as demand: tenant, region and model of each request as they were (of `named` requests)."""
    from baseload.adapters.traces import TraceSource, columns

    rows = replay.rows
    first_ns = rows[0].arrival_ns
    arrival = np.array([row.arrival_ns - first_ns for row in rows], np.int64)
    counts = np.array([len(row.prefix) for row in rows], np.int64)
    hashes = np.array([_positive(one) for row in rows for one in row.prefix], np.int64)
    trace = columns(
        arrival,
        np.array([row.input_tokens for row in rows], np.int32),
        _answer_lengths(rows),
        hash_counts=counts,
        hash_ids=hashes,
        hash_block_tokens=BLOCK_TOKENS if len(hashes) else 0,
    )
    tenants = [replay.tenant_names.get(row.tenant, "") for row in rows]
    assert len(fleet.tenants) < 2 or all(tenants), "requests without a tenant: ask for the `named` ones first"
    trace = replace(
        trace,
        tenant_i=_indices(replay, "of tenants", tenants, list(fleet.tenants)),
        region_i=_indices(replay, "from regions", [row.region for row in rows], list(fleet.regions)),
        model_i=_indices(replay, "for models", [row.model for row in rows], list(fleet.models)),
    )
    return TraceSource(
        name=replay.path.name,
        source_note=f"replay of {len(rows):,} settled requests from {replay.start:%Y-%m-%d %H:%M} UTC",
        blocks=lambda: iter([trace]),
        n=len(rows),
        n_about=float(len(rows)),
        duration_s=float(arrival[-1]) / 1e9 + 1.0,
        hash_block_tokens=BLOCK_TOKENS if len(hashes) else 0,
        said=(replay.notes,),
    )


def _answer_lengths(rows: Sequence[SettleRow]) -> Any:
    """Return the answers' lengths; of what was refused nobody knows it, so it counts as the mean."""
    known = [row.output_tokens for row in rows if row.output_tokens > 0]
    mean = max(1, round(sum(known) / len(known))) if known else 1
    return np.array([row.output_tokens or (mean if row.status == REFUSED else 1) for row in rows], np.int32)


def _positive(hashed: int) -> int:
    return (hashed & 0x7FFF_FFFF_FFFF_FFFF) or 1


def _indices(replay: Replay, of_what: str, names: Sequence[str], known: Sequence[str]) -> Any:
    """Return the index of each name; what says nothing is the only one there is, or -1: left to the fleet file's shares."""
    if not known:
        return np.zeros(len(names), np.int16)
    place = {name: i for i, name in enumerate(known)}
    place[""] = 0 if len(known) == 1 else -1
    unknown = sorted({name for name in names if name not in place})[:NAMES_SHOWN]
    if unknown:
        raise TraceError(
            f"{replay.path}: requests {of_what} that the fleet file does not have: {', '.join(unknown)}; "
            "replay it with the fleet file that was served"
        )
    return np.array([place[name] for name in names], np.int16)


# ---- what differed ---------------------------------------------------------------------------------------

FIGURES = ("TTFT", "TPOT", "E2E")
SHARES = (0.5, 0.99)


def on_this_host(fleet: Fleet, kind: str | None = None) -> frozenset[str]:
    """Return the deployments whose engines `baseload serve` starts beside the gateway: no network lies between."""
    kinds = {name: kind or (fleet.serve.engines[name].kind if name in fleet.serve.engines else "emulated")
             for name in fleet.deployments}  # fmt: skip
    return frozenset(name for name, one in kinds.items() if one != "external")


@dataclass(slots=True)
class Sides:
    """Latencies of the requests that reality and the twin both served, in seconds, by figure."""

    real: dict[str, list[float]]
    twin: dict[str, list[float]]

    def at(self, figure: str, share: float) -> tuple[float | None, float | None]:
        """Return a quantile of both."""
        return quantile(self.real[figure], share), quantile(self.twin[figure], share)


@dataclass(slots=True)
class Difference:
    """Twin and reality, request by request."""

    groups: dict[str, Sides]  # by deployment that served in reality
    n: int
    same: int = 0
    moved: int = 0
    status_same: int = 0
    moves: dict[tuple[str, str], int] | None = None

    def whole(self) -> Sides:
        """Return all deployments together."""
        found = _sides()
        for group in self.groups.values():
            for figure in FIGURES:
                found.real[figure] += group.real[figure]
                found.twin[figure] += group.twin[figure]
        return found


def _sides() -> Sides:
    return Sides({figure: [] for figure in FIGURES}, {figure: [] for figure in FIGURES})


def difference(
    replay: Replay,
    twin: Twin,
    requests: dict[str, Any],
    local: Collection[str] = (),
    slower: Sequence[tuple[float, float]] = ((1.0, 1.0),),
) -> Difference:
    """Set each request of the ledger beside the twin's; `requests` are the run's records, request_id the trace's row.

    The ledger's times are at the gateway. The twin's hold the way to the site; the way back is added, or, for the
    deployments in `local`, whose engines ran beside the gateway, the way there is taken off. `slower` are factors on the time
    to the first token and after it, as they were measured where engines share a machine: each of the twin's requests then
    counts once with each of them.
    """
    by_id = {int(request): i for i, request in enumerate(requests["request_id"].tolist())}
    one_way_ns = [round(s * 1e9) for s in twin.spec.one_way_s.tolist()]
    moves: dict[tuple[str, str], int] = {}
    found = Difference(groups={}, n=len(replay.rows), moves=moves)
    for i, row in enumerate(replay.rows):
        at = by_id.get(i)
        if at is None:
            continue
        site_i, status = int(requests["site_i"][at]), int(requests["status"][at])
        found.status_same += (status == SERVED) == (row.status == SERVED)
        if row.status != SERVED or status != SERVED:
            continue
        twin_site = twin.sites[site_i]
        found.same += twin_site == row.site
        if twin_site != row.site:
            found.moved += 1
            moves[row.site, twin_site] = moves.get((row.site, twin_site), 0) + 1
        group = found.groups.setdefault(row.deployment, _sides())
        network_ns = -one_way_ns[site_i] if row.deployment in local else one_way_ns[site_i]
        first_ns, finish_ns, arrival_ns = (
            int(requests[name][at]) for name in ("first_token_ns", "finish_ns", "arrival_ns")
        )
        ttft_s, tpot_s = latencies(row)
        first_s, rest_s = (first_ns - arrival_ns + network_ns) / 1e9, (finish_ns - first_ns) / 1e9
        if ttft_s is not None:
            group.real["TTFT"].append(ttft_s)
            group.twin["TTFT"] += [first_s * before for before, _ in slower]
        if tpot_s is not None:
            group.real["TPOT"].append(tpot_s)
            group.twin["TPOT"] += [rest_s * after / (row.output_tokens - 1) for _, after in slower]
        group.real["E2E"].append((row.finish_ns - row.arrival_ns) / 1e9)
        group.twin["E2E"] += [first_s * before + rest_s * after for before, after in slower]
    return found


DRAWS = 400
BAND = (0.05, 0.95)


def bands(found: Difference, n_factors: int, seed: int = 0) -> str:
    """Return the band in which nine of ten samples of the twin's requests, as many as there were, have their quantiles.

    Each sample also draws anew which of the measured factors had been seen: few were, and a rare one weighs much.
    """
    dice, whole, lines = np.random.default_rng(seed), found.whole(), []
    for figure in FIGURES:
        n, pool = len(whole.real[figure]), np.array(whole.twin[figure]).reshape(-1, n_factors)
        if not n:
            continue
        samples = []
        for _ in range(DRAWS):
            factors = dice.integers(0, n_factors, n_factors)[dice.integers(0, n_factors, n)]
            samples.append(pool[dice.integers(0, len(pool), n), factors].tolist())
        told = []
        for share in SHARES:
            draws = [quantile(sample, share) or 0.0 for sample in samples]
            low, high = (float(np.quantile(draws, edge)) for edge in BAND)
            real = whole.at(figure, share)[0] or 0.0
            inside = "inside" if low <= real <= high else "OUTSIDE"
            told.append(f"p{100 * share:.0f} {_milli(low)} to {_milli(high)}, measured {_milli(real)}: {inside}")
        lines.append(f"  {figure:5}{'; '.join(told)}")
    return "the twin's band for so many requests (9 of 10 draws)\n" + "\n".join(lines) + "\n"


def comparison(
    replay: Replay,
    twin: Twin,
    requests: dict[str, Any],
    local: Collection[str] = (),
    slower: Sequence[tuple[float, float]] = (),
) -> str:
    """Return twin and reality side by side, by deployment, and what went elsewhere than the twin sent it."""
    found = difference(replay, twin, requests, local, slower or ((1.0, 1.0),))
    said = (
        "the engines ran beside the gateway: the twin's times are without the network between sites\n" if local else ""
    )
    left = "".join(f"{note}\n" for note in replay.notes)
    return table(found) + off(found) + (bands(found, len(slower)) if slower else "") + said + left + where(found)


def table(found: Difference) -> str:
    """Return quantiles of both sides, a line for each deployment and figure."""
    lines = [f"{'at the gateway':24}{'requests':>10}{'':>6}{'p50':>12}{'twin':>12}{'p99':>12}{'twin':>12}"]
    groups = sorted(found.groups.items())
    for name, group in [*groups, ("all", found.whole())] if len(groups) > 1 else groups:
        for figure in FIGURES:
            cells = "".join(f"{_milli(one):>12}" for share in SHARES for one in group.at(figure, share))
            n = f"{len(group.real['E2E']):,}"
            head = f"{name[:23]:24}{n:>10}" if figure == FIGURES[0] else " " * 34
            lines.append(f"{head}{figure:>6}{cells}")
    return "\n".join(lines) + "\n"


def off(found: Difference) -> str:
    """Return how far the twin is off, all deployments together; empty where nothing was served by both."""
    whole, told = found.whole(), []
    for figure in FIGURES:
        pairs = [whole.at(figure, share) for share in SHARES]
        if all(real and twin is not None for real, twin in pairs):
            told.append(
                f"{figure} " + " ".join(f"{100 * (twin / real - 1):+.0f} %" for real, twin in pairs if real and twin)
            )
    return f"the twin against reality, p50 and p99: {', '.join(told)}\n" if told else ""


def _milli(seconds: float | None) -> str:
    return "–" if seconds is None else f"{1e3 * seconds:,.3g} ms" if seconds < 1.0 else f"{seconds:,.2f} s"


def where(found: Difference) -> str:
    """Return how many requests ended alike, and which went to another site."""
    served = found.same + found.moved
    lines = [f"of {found.n:,} requests {found.status_same:,} ended alike (served or not) in the twin"]
    if served:
        lines.append(f"of {served:,} served in both, {found.same:,} ({found.same / served:.1%}) went to the same site")
    for (real, twin), count in sorted((found.moves or {}).items(), key=lambda one: -one[1])[:NAMES_SHOWN]:
        lines.append(f"  {count:,} went to {real}, and the twin sent them to {twin}")
    return "\n".join(lines)
