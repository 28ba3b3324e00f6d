"""Succession: new tables after old ones, so that no row that something running points to comes to mean another thing.

A request in flight, a mark on disk and a cell of the board hold row numbers. So a reload renumbers nothing: what the new
fleet file has keeps the row it had (by name), what is new stands at the end, and what it no longer has stays as a row that
takes nothing (`gone`, law closed), to be taken up again should its name come back. External engines keep their row by
their address. A deployment that becomes another engine under its old name gets rows of its own beside the old ones, with
numbers that go on; rows of an engine that has long ended are taken up again. Rows are therefore bounded by the names a
process has ever known and what still runs; a fresh start numbers afresh.
"""

from __future__ import annotations

from collections.abc import Callable, Container, Sequence
from typing import NamedTuple, TypeVar

from msgspec.structs import replace

from baseload.serve.tables import DeploymentRow, PoolRow, ReplicaRow, Row, SiteRow, Tables, TenantRow

GONE = "\0"  # before the name of a tenant that left: no fleet file and no key holds such a name
ENGINE_FIELDS = ("kind", "accelerator", "served_model", "key_env", "metrics")
R = TypeVar("R", bound=Row)


class Succession(NamedTuple):
    """Tables that follow others, and where each row of the fleet file's own tables stands in them."""

    tables: Tables
    tenants: list[int]
    models: list[int]
    sites: list[int]
    deployments: list[int]
    pools: list[int]
    replicas: list[int]


def alone(fresh: Tables) -> Succession:
    """Return tables that follow nobody: each row where the fleet file has it."""
    return Succession(
        fresh, *(list(range(len(rows))) for rows in (
            fresh.tenants, fresh.models, fresh.sites, fresh.deployments, fresh.pools, fresh.replicas,
        ))
    )  # fmt: skip


def follow(old: Tables, fresh: Tables, *, busy: Container[int] = ()) -> Succession:
    """Return `fresh` with the rows of `old` where they were; its version is `fresh`'s, its row numbers are `old`'s.

    `busy` are rows of replicas that still hold an engine or requests: they are not given to another engine.
    """
    tenants, tenant_at = _merge(old.tenants, fresh.tenants, lambda row: row.name.removeprefix(GONE), _left_tenant)
    models, model_at = _merge(old.models, fresh.models, lambda row: row.name, lambda row: row)
    sites, site_at = _merge(old.sites, fresh.sites, lambda row: row.name, _left_site)
    deployments, deployment_at = _deployments(old, fresh, busy)
    regions = [*old.regions, *(name for name in fresh.regions if name not in old.regions)]
    rtt_s = [*old.region_rtt_s, *([0.0] * (len(regions) - len(old.regions)))]
    for name, seconds in zip(fresh.regions, fresh.region_rtt_s, strict=True):
        rtt_s[regions.index(name)] = seconds
    for i in tenant_at:
        tenants[i] = replace(tenants[i], region_i=regions.index(fresh.regions[tenants[i].region_i]))
    for i in deployment_at:
        deployments[i] = replace(deployments[i], model_i=model_at[deployments[i].model_i])
    pools, pool_at = _pools(old, fresh, site_at, deployment_at)
    replicas, replica_at = _replicas(old, fresh, site_at, deployment_at, pool_at)
    tables = replace(
        fresh, first_version=old.first_version, tenants=tenants, models=models, sites=sites, deployments=deployments,
        regions=regions, region_rtt_s=rtt_s, pools=pools, replicas=replicas, seed=old.seed,
        may=_may(fresh, tenant_at, model_at, pool_at, (len(tenants), len(models), len(pools))),
    )  # fmt: skip
    return Succession(tables, tenant_at, model_at, site_at, deployment_at, pool_at, replica_at)


def renumbered(old: Tables, found: Succession) -> bool:
    """Say whether a process that starts afresh would number rows otherwise than `old` did."""
    for was, at in (
        (old.tenants, found.tenants), (old.models, found.models), (old.sites, found.sites),
        (old.deployments, found.deployments), (old.pools, found.pools), (old.replicas, found.replicas),
    ):  # fmt: skip
        if at != list(range(len(at))) or len(was) > len(at):
            return True
    return False


def _merge(
    old: Sequence[R], fresh: Sequence[R], name: Callable[[R], str], left: Callable[[R], R]
) -> tuple[list[R], list[int]]:
    """Return the rows by name: old ones in place, new ones behind; and where each fresh one stands."""
    at = {name(row): i for i, row in enumerate(old)}
    rows = [left(row) for row in old]
    places = []
    for row in fresh:
        i = at.get(name(row), len(rows))
        if i == len(rows):
            rows.append(row)
        else:
            rows[i] = row
        places.append(i)
    return rows, places


def same_engine(old: Tables, was: DeploymentRow, fresh: Tables, now: DeploymentRow) -> bool:
    """Say whether what runs for `was` can go on as `now`: another model, accelerator or flag is another engine."""
    if any(getattr(was, name) != getattr(now, name) for name in ENGINE_FIELDS):
        return False
    if old.models[was.model_i].name != fresh.models[now.model_i].name:
        return False
    return was.engine == now.engine or not was.engine or not now.engine


def _deployments(old: Tables, fresh: Tables, busy: Container[int]) -> tuple[list[DeploymentRow], list[int]]:
    """Return deployments by name and engine: that row, else one of the name whose replicas all rest, else a new one."""
    rows, places = list(old.deployments), []
    used = {row.deployment_i for r, row in enumerate(old.replicas) if r in busy}
    shown = {row.deployment_i for row in old.replicas if not row.gone}
    for row in fresh.deployments:
        named = [i for i, was in enumerate(old.deployments) if was.name == row.name]
        same = [i for i in named if same_engine(old, old.deployments[i], fresh, row)]
        free = [i for i in named if i not in used and i not in shown and old.deployments[i].key_env == row.key_env]
        if same:
            i = next((i for i in same if i in shown), same[-1])
        else:
            i = free[0] if free else len(rows)
        if i == len(rows):
            rows.append(row)
        else:
            rows[i] = row
        places.append(i)
    return rows, places


def _left_tenant(row: TenantRow) -> TenantRow:
    return row if row.name.startswith(GONE) else replace(row, name=GONE + row.name)


def _left_site(row: SiteRow) -> SiteRow:
    return replace(row, limit_kw=None, idle_kw=0.0)


def _pools(old: Tables, fresh: Tables, site_at: list[int], deployment_at: list[int]) -> tuple[list[PoolRow], list[int]]:
    moved = [
        replace(row, site_i=site_at[row.site_i], deployment_i=deployment_at[row.deployment_i]) for row in fresh.pools
    ]
    at = {(row.deployment_i, row.site_i): i for i, row in enumerate(old.pools)}
    rows = [replace(row, n_min=0, n_max=0) for row in old.pools]
    places = []
    for row in moved:
        i = at.get((row.deployment_i, row.site_i), len(rows))
        if i == len(rows):
            rows.append(row)
        else:
            rows[i] = row
        places.append(i)
    return rows, places


def _replicas(
    old: Tables, fresh: Tables, site_at: list[int], deployment_at: list[int], pool_at: list[int]
) -> tuple[list[ReplicaRow], list[int]]:
    rows = [replace(row, gone=True, on_at_start=False) for row in old.replicas]
    places = [-1] * len(fresh.replicas)
    for pool_i, at in enumerate(pool_at):
        mine = [r for r, row in enumerate(fresh.replicas) if row.pool_i == pool_i]
        there = sorted(
            (r for r, row in enumerate(old.replicas) if row.pool_i == at), key=lambda r: old.replicas[r].number
        )
        seats = _seats([fresh.replicas[r] for r in mine], [old.replicas[r] for r in there])
        deployment_i, site_i = deployment_at[fresh.pools[pool_i].deployment_i], site_at[fresh.pools[pool_i].site_i]
        name = fresh.deployments[fresh.pools[pool_i].deployment_i].name
        taken = {  # of older engines of that name, too
            row.number for row in old.replicas
            if row.site_i == site_i and old.deployments[row.deployment_i].name == name
        }  # fmt: skip
        for r, seat in zip(mine, seats, strict=True):
            if seat < len(there):
                places[r], number = there[seat], old.replicas[there[seat]].number
            else:
                places[r], number = len(rows), next(n for n in range(len(taken) + 1) if n not in taken)
                rows.append(fresh.replicas[r])
            taken.add(number)
            rows[places[r]] = replace(
                fresh.replicas[r], pool_i=at, number=number, site_i=site_i, deployment_i=deployment_i
            )
    return rows, places


def _seats(fresh: Sequence[ReplicaRow], old: Sequence[ReplicaRow]) -> list[int]:
    """Return each fresh replica's seat among its pool's: the one that its address had, else the lowest that is free."""
    seats = [-1] * len(fresh)
    free = set(range(len(old) + len(fresh)))
    for seat, was in enumerate(old):
        for k, row in enumerate(fresh):
            if seats[k] < 0 and not was.gone and row.address == was.address:
                seats[k] = seat
                free.discard(seat)
                break
    for k in range(len(fresh)):
        if seats[k] < 0:
            seats[k] = min(free)
            free.discard(seats[k])
    return seats


def _may(
    fresh: Tables, tenant_at: list[int], model_at: list[int], pool_at: list[int], size: tuple[int, int, int]
) -> list[list[list[int]]]:
    """Return the law by the new rows: closed for whatever the fresh tables do not have."""
    may = [[[0] * size[2] for _ in range(size[1])] for _ in range(size[0])]
    for t, by_model in enumerate(fresh.may):
        for m, by_pool in enumerate(by_model):
            for p, allowed in enumerate(by_pool):
                may[tenant_at[t]][model_at[m]][pool_at[p]] = allowed
    return may


def leaving(old: Tables, found: Succession) -> list[int]:
    """Return the rows of replicas that were in the old tables' file and are not in the new one's."""
    return [r for r, row in enumerate(old.replicas) if not row.gone and found.tables.replicas[r].gone]


def needed_at_once(old: Tables, found: Succession) -> list[int]:
    """Return the rows, of those that the file has, which take the place of what leaves: of its deployment, or its model."""
    now = found.tables
    left = [old.deployments[old.replicas[r].deployment_i] for r in leaving(old, found)]
    names, models = {row.name for row in left}, {row.model_i for row in left}
    needed = [row.name in names or row.model_i in models for row in now.deployments]
    return [r for r in found.replicas if needed[now.replicas[r].deployment_i]]


__all__ = ["GONE", "DeploymentRow", "Succession", "alone", "follow", "leaving", "needed_at_once", "renumbered"]
