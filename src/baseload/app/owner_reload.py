"""Reload: how an owner that runs takes up another fleet file, and how one that starts anew carries on where it was.

Everything that can be wrong is found first; only then is anything changed, and where it is wrong the last good file holds.
Sites, deployments, replicas, models, tenants and prices may come, go and change: rows are carried on (`serve/succession.py`),
so that no request under way notices. Engines of ours that take the place of others are started first, beside them; where
one does not start, the last good file holds. What a start alone can take up (ports, workers, TLS, the ledger, own rules) is
refused by name. The parts themselves are put together in `owner_main.py`.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import Iterable, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec

from baseload.errors import FleetError, Problem
from baseload.ports import Engine, EngineError, EngineStart
from baseload.serve import succession, tables
from baseload.serve.board import Board, room_for
from baseload.serve.reconcile import PATIENCE
from baseload.serve.succession import Succession

if TYPE_CHECKING:
    from baseload.app.housekeeping import Housekeeper
    from baseload.app.owner_main import House
    from baseload.app.serve_tables import Live
    from baseload.fleet.loaded import Loaded

AT_A_START = (
    "listen",
    "control",
    "workers",
    "tls_cert",
    "tls_key",
    "control_cert",
    "control_key",
    "control_hosts",
    "ledger_env",
    "meter",
    "power_limit",
)
GOOD = "fleet.good"  # the last fleet file that holds
HEARD_S = 1.0  # by then each worker has taken up new tables; until then what left goes on beside what is new


# ---- what follows what ------------------------------------------------------------------------------------------------


def first_rows(run: Path, fresh: tables.Tables) -> Succession:
    """Return an owner's first tables: after those that running workers hold, where there are any.

    The supervisor takes the board away before it starts the first owner; so where it lies, workers may look at it.
    """
    try:
        old = tables.decode((run / "tables.json").read_bytes())
    except (OSError, msgspec.DecodeError):
        return succession.alone(fresh)
    found = succession.follow(old, fresh, busy=range(len(old.replicas)))
    if not (run / "board").exists() and succession.renumbered(old, found):
        version = old.version + 1  # marks of dead workers hold row numbers of before: they are not read as ours
        return succession.alone(msgspec.structs.replace(fresh, version=version, first_version=version))
    same = msgspec.structs.replace(found.tables, version=old.version) == old
    version = old.version if same else old.version + 1
    return found._replace(tables=msgspec.structs.replace(found.tables, version=version))


def same_fleet(old: Live, new: Live) -> bool:
    """Say whether two readings of a fleet file have the same sites, deployments and replicas."""

    def shape(live: Live) -> Any:
        now = live.tables
        names = (
            [row.name for row in now.deployments],
            [row.name for row in now.sites],
            [row.name for row in now.tenants],
        )
        return names, now.pools, now.replicas, now.may

    return bool(shape(old) == shape(new))


def board_for(run: Path, now: tables.Tables, n_workers: int) -> Board:
    """Return the board that the workers look at, or a new one where there is none that is large enough."""
    return Board.take_over(run / "board", *_size(now), n_workers)


def _size(now: tables.Tables) -> tuple[int, int]:
    return room_for(max(len(now.replicas), len(now.pools))), room_for(len(now.sites))


def by_row(rows: Succession, orders: Sequence[EngineStart | None]) -> list[EngineStart | None]:
    """Return the fleet file's orders for engines by the rows of the tables; None for those that left.

    An engine is named as its row is: an external one may keep a number that the file alone would not give it.
    """
    found: list[EngineStart | None] = [None] * len(rows.tables.replicas)
    for order, r in zip(orders, rows.replicas, strict=True):
        row = rows.tables.replicas[r]
        if order is not None:
            where = f"{rows.tables.deployments[row.deployment_i].name}/{rows.tables.sites[row.site_i].name}"
            found[r] = order._replace(name=f"{where}/{row.number}")
    return found


# ---- a reload ----------------------------------------------------------------------------------------------------------


async def reload(house: House, who: str, text: str | None = None) -> list[Problem]:
    """Read the fleet file again; return its problems (the last good one is kept), or [] when it holds.

    `text` is read in its place: the one that holds already, when a date in it has come.
    """
    from baseload.app import owner_made, owner_power, serve_tables
    from baseload.app.live_engines import Prepared, prepare

    house.version += 1
    started: dict[int, Engine] = {}
    try:
        loaded = house.load(text)
        at_a_start(house, loaded)
        live = await asyncio.to_thread(
            serve_tables.live, loaded, version=house.version, kind=house.config.engines
        )  # describing a large fleet takes a while: the owner goes on granting
        live, by_file, steps = await asyncio.to_thread(prepare, live, kind=house.config.engines)
        rows = succession.follow(house.rows.tables, live.tables, busy=house.keeper.busy())
        orders = by_row(rows, by_file)
        house.provisioner.take_tables(steps, keep=[order.table for order in house.keeper.orders if order is not None])
        started = await start_ahead(house, rows, orders)
        up = await house.keeper.look_ahead(orders)
    except FleetError as error:
        house.version -= 1
        house.reload_fault = str(error)
        return list(error.problems)
    try:
        larger = _larger_board(house, rows.tables)
        write_tables(house.run, rows.tables, loaded)
    except OSError as error:
        house.version -= 1
        house.reload_fault = f"{house.run}: cannot be written ({error.strerror}); make room, and reload"
        await _call_off(house.keeper, started.values())
        return list(FleetError(house.reload_fault).problems)
    _take(house, loaded, live, rows, larger)
    house.keeper.reload(rows.tables, house.board, orders, up, started)
    owner_power.more_meters(house)
    house.set_hour()
    owner_power.take_draws(house)
    if text is None:
        house.reload_fault = ""
    house.owner.reload(rows.tables, who)
    await asyncio.sleep(HEARD_S)
    house.keeper.leave()
    owner_made.keep(house.run, loaded, Prepared(live, by_file, steps), house.config.engines)
    return []


async def start_ahead(house: House, rows: Succession, orders: Sequence[EngineStart | None]) -> dict[int, Engine]:
    """Start those engines of ours that take the place of what leaves, and return them by row; raises FleetError.

    As many of each pool as run from the start; where their number follows the load, as many as ran there of that name.
    """
    old, now, keeper = house.rows.tables, rows.tables, house.keeper
    ran: dict[tuple[str, int], int] = {}
    for r in succession.leaving(old, rows):
        row = old.replicas[r]
        place = (old.deployments[row.deployment_i].name, row.site_i)
        ran[place] = ran.get(place, 0) + keeper.runs(r)
    ahead, taken = [], dict.fromkeys(ran, 0)
    for r in succession.needed_at_once(old, rows):
        row, order = now.replicas[r], orders[r]
        place = (now.deployments[row.deployment_i].name, row.site_i)
        taken[place] = taken.get(place, 0) + 1
        as_before = now.policy.scale != "fixed" and taken[place] <= ran.get(place, 0)
        if order is not None and order.kind != "external" and (row.on_at_start or as_before) and not keeper.runs(r):
            ahead.append(r)
    try:
        return await _start(keeper, [order for r in ahead if (order := orders[r]) is not None], ahead)
    except EngineError as error:
        what, mend = f"an engine did not start: {error}", "what ran goes on; mend that, and reload"
        raise FleetError(Problem(file=house.config.fleet, key="deployments", what=what, mend=mend)) from None


async def _start(keeper: Housekeeper, orders: Sequence[EngineStart], rows: Sequence[int]) -> dict[int, Engine]:
    """Start engines for rows that are not there yet; raises EngineError where one does not start, and then none is left."""
    keeper.lost_ahead.clear()
    at_once = asyncio.Semaphore(PATIENCE.most_starting)
    started: dict[int, Engine] = {}

    async def one(r: int, order: EngineStart) -> None:
        async with at_once:
            started[r] = await keeper.provisioner.start(order)

    tasks = [asyncio.create_task(one(r, order)) for r, order in zip(rows, orders, strict=True)]
    try:
        await asyncio.gather(*tasks)
    except BaseException:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        await _call_off(keeper, started.values())
        raise
    return started


async def _call_off(keeper: Housekeeper, engines: Iterable[Engine]) -> None:
    """End engines that were started ahead."""
    ends = [keeper.provisioner.stop(engine.name, 0.0) for engine in engines]
    for fault in await asyncio.gather(*ends, return_exceptions=True):
        if isinstance(fault, BaseException):
            keeper.say(f"an engine that was started ahead: {fault}")


def _take(house: House, loaded: Any, live: Live, rows: Succession, larger: Board | None) -> None:
    """Switch over; nothing from here on may fail."""
    from baseload.app import live_view

    house.loaded, house.live, house.rows = loaded, live, rows
    house.fixed = live_view.standing(live)
    if larger is not None:
        house.board = larger
    house.tally.reload(rows.tables)
    house.steer.reload(rows.tables)
    house.drift.reload(rows.tables.deployments, rows.tables.sites)


def _larger_board(house: House, now: tables.Tables) -> Board | None:
    """Return a board in the old one's place, where the old one has no room; workers take it up with the tables."""
    n_replicas, n_sites = _size(now)
    if house.board.holds(max(len(now.replicas), len(now.pools)), len(now.sites)):
        return None
    return Board.create(house.run / "board", n_replicas, n_sites, house.board.n_workers)


def last_good(run: Path) -> str | None:
    """Return the fleet file that running workers were told of; None at a start.

    An owner that starts anew goes on with it, whatever stands on disk by now: what was refused, or only a start may take up,
    is not taken up because something died. It then reads the file as at a reload.
    """
    if not (run / "board").exists():
        return None
    try:
        return (run / GOOD).read_text("utf-8")
    except (OSError, UnicodeDecodeError):
        return None


def differs(fleet: str, good: str) -> bool:
    """Say whether the fleet file on disk is another text, or cannot be read."""
    try:
        return Path(fleet).read_text("utf-8") != good
    except (OSError, UnicodeDecodeError):
        return True


def write_tables(run: Path, now: tables.Tables, loaded: Loaded) -> None:
    """Write what workers read, and the fleet file that it comes from, each whole or not at all."""
    from baseload import jit
    from baseload.app.serve_config import FLEET_READ
    from baseload.fleet.loaded import pack

    digests = {spec.split(":")[1]: digest for spec, digest in jit.EXTRA_SOURCES.items()}
    (run / "rules.json").write_bytes(msgspec.json.encode(digests))  # a worker loads these very bytes or none
    good = loaded.text.encode("utf-8", "surrogatepass")
    read = pack(loaded, datetime.now(UTC).date())
    for name, blob in ((GOOD, good), (FLEET_READ, read), ("tables.json", tables.encode(now))):
        fresh = run / f"{name}.fresh"
        fresh.write_bytes(blob)
        fresh.replace(run / name)


# ---- what only a start can take up -------------------------------------------------------------------------------------


def at_a_start(house: House, loaded: Any) -> None:
    """Refuse a reload that would change what is read at a start only: it would be ignored unsaid."""
    old, new = house.loaded.fleet.serve, loaded.fleet.serve
    problems = []

    def refuse(key: str, what: str, mend: str) -> None:
        problems.append(Problem(file=house.config.fleet, key=key, what=what, mend=mend))

    for key in AT_A_START:
        if getattr(old, key, None) != getattr(new, key, None):
            refuse(f"serve.{key}", "differs from what runs", "restart `baseload serve` for that, or put it back")
    for kind in ("route", "admit", "scale", "cap"):
        rule = getattr(loaded.fleet.policy, kind)
        if ":" in rule and rule != getattr(house.loaded.fleet.policy, kind):
            refuse(f"policy.{kind}", "an own rule is loaded at start only", "restart `baseload serve` for that")
    known = {engine.key_env for engine in old.engines.values()}
    for name, engine in new.engines.items():
        if engine.key_env and engine.key_env not in known and engine.key_env not in os.environ:
            what = f"{engine.key_env} is not in the environment that `baseload serve` was started with"
            refuse(f"serve.engines.{name}.key_env", what, "restart `baseload serve` with it")
    if problems:
        raise FleetError(problems)
