"""What an owner made of a fleet file, kept for the one that comes after a crash: it serves before the twin is there.

Describing a fleet needs NumPy and the twin, a third of all that a start does. After a crash the tables, orders and prices of
before are taken as they lie; the description follows in the background, and where it says otherwise that is taken up as at a
reload. A start after an orderly end reads nothing of this.
"""

from __future__ import annotations

import asyncio
import contextlib
from datetime import UTC, date, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec

from baseload import __version__
from baseload.app.early import after_a_crash
from baseload.errors import BaseloadError
from baseload.ports import EngineStart
from baseload.serve.tables import SiteRow, Tables

if TYPE_CHECKING:
    from baseload.app.live_engines import Prepared
    from baseload.app.owner_main import House
    from baseload.fleet.loaded import Loaded

NAME = "fleet.made"


class Made(msgspec.Struct, frozen=True, kw_only=True):
    """Tables, orders for engines and the hour's figures, by the rows of the file alone."""

    program: str
    digest: str  # of the fleet file's text and overrides
    day: date
    kind: str | None
    tables: Tables
    orders: list[EngineStart | None]
    steps: dict[str, dict[str, Any]]
    cost_per_mtok: list[float]  # (replica,) in the hour it was made
    carbon_g_per_mtok: list[float]


def today() -> date:
    """Return the day by which fleet files are read."""
    return datetime.now(UTC).date()


def figures(prepared_live: Any) -> tuple[list[float], list[float]]:
    """Return marginal cost and carbon per million tokens of each replica of the file, in this hour."""
    from baseload.simulate.setup import each_hour

    cost, carbon = each_hour(prepared_live.twin)
    rows = prepared_live.tables.replicas
    return [float(cost[0][row.pool_i]) for row in rows], [float(carbon[0][row.pool_i]) for row in rows]


def keep(run: Path, loaded: Loaded, prepared: Prepared, kind: str | None) -> None:
    """Leave it for the next owner; a disk that is full only makes a restart slower."""
    cost, carbon = figures(prepared.live)
    made = Made(
        program=__version__, digest=loaded.digest, day=today(), kind=kind, tables=prepared.live.tables,
        orders=prepared.orders, steps=prepared.steps, cost_per_mtok=cost, carbon_g_per_mtok=carbon,
    )  # fmt: skip
    fresh = run / f"{NAME}.fresh"
    with contextlib.suppress(OSError):
        fresh.write_bytes(msgspec.msgpack.encode(made))
        fresh.replace(run / NAME)


def kept(run: Path, loaded: Loaded, kind: str | None) -> Made | None:
    """Return what the owner before made of the same file today; None where nothing fits, or it ended in order."""
    try:
        if not after_a_crash(run):
            return None
        made = msgspec.msgpack.decode((run / NAME).read_bytes(), type=Made)
    except (OSError, msgspec.DecodeError, ValueError):
        return None
    wanted = (__version__, loaded.digest, today(), kind)
    return made if (made.program, made.digest, made.day, made.kind) == wanted else None


def forget(run: Path) -> None:
    """Let the next owner make everything anew."""
    (run / NAME).unlink(missing_ok=True)


def same(made: Tables, now: Tables) -> bool:
    """Say whether tables differ in nothing but their version and what each hour brings."""
    return _lasting(made) == _lasting(now)


def _lasting(tables: Tables) -> Tables:
    sites: list[SiteRow] = [
        msgspec.structs.replace(row, carbon_g_per_kwh=0.0, price_per_kwh=0.0, pue=1.0, limit_kw=None, idle_kw=0.0)
        for row in tables.sites
    ]
    rows = [
        msgspec.structs.replace(row, cost_per_input_token=0.0, cost_per_output_token=0.0) for row in tables.deployments
    ]
    return msgspec.structs.replace(tables, version=0, first_version=0, sites=sites, deployments=rows)


async def describe(house: House) -> None:
    """Take up what the twin says of the fleet, now that requests are served; keep it for an owner that comes after a crash."""
    from baseload.app import owner_power

    prepared, same_as_before = house.prepared, True
    async with house.reloading:
        try:
            if house.live is None:
                assert house.made is not None
                prepared = await asyncio.to_thread(house.described_by_the_twin)
                same_as_before = same(house.made.tables, prepared.live.tables)
                house.live = prepared.live.at_version(house.version)
                house.set_hour()
        except BaseloadError as error:
            forget(house.run)  # the next owner says so at its start
            house.say_fatal(str(error))
            return
    house.described.set()
    house.prepared = None
    if same_as_before:
        owner_power.take_draws(house)
    if not same_as_before:
        await house.reload_and_say("the twin", house.loaded.text)
    elif prepared is not None:
        await asyncio.to_thread(keep, house.run, house.loaded, prepared, house.config.engines)
