"""Housekeeping: brings engines to where they should be, looks at them, and tells the workers through the board.

One loop of the owner: what should run (`serve/steer.py`) against what was seen (`serve/reconcile.py`), carried out by a
provisioner. Every decision is theirs; here is the waiting, the probing and the book-keeping. Power is metered by
`adapters/meters.py` where a site has a meter this host can read, and reckoned from the load otherwise.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import time
from collections.abc import Callable, Mapping, Sequence, Set
from dataclasses import dataclass
from math import inf
from pathlib import Path

import msgspec

from baseload.adapters.scrape import Scraper, scrape
from baseload.adapters.scrape import Seen as Looked
from baseload.app import site_power
from baseload.policies import CAPS_EACH_REPLICA
from baseload.ports import Engine, EngineError, EngineStart, Provisioner
from baseload.serve import reconcile as rc
from baseload.serve.board import Board
from baseload.serve.steer import OFF, STARTING, UP, SitePower, Steer
from baseload.serve.tables import Tables

LOOP_S = 0.1  # how often what is and what should be are compared
REST_S = 0.5  # the same, where all engines are run by others
CALM_S = 60.0  # up for so long: earlier failures are forgotten


class Endpoints(msgspec.Struct, kw_only=True):
    """`run/endpoints.json`: where each replica answers; null: nowhere."""

    version: int
    urls: list[str | None]
    digests: list[str] = []  # of the weights there
    kinds: list[str] = []


@dataclass(slots=True)
class Place:
    """One replica, as the housekeeper knows it."""

    seen: rc.Seen
    engine: Engine | None = None
    scraper: Scraper | None = None
    looked: Looked | None = None
    why: str = ""
    restarts: int = 0
    starting: asyncio.Task[None] | None = None
    sick: bool = False


class Housekeeper:
    """Runs `loop`, `look` and `control` until cancelled. `orders` say how each replica is started; None: never."""

    def __init__(
        self,
        tables: Tables,
        board: Board,
        steer: Steer,
        provisioner: Provisioner,
        orders: Sequence[EngineStart | None],
        folder: Path,
        *,
        say: Callable[[str], None] = lambda sentence: None,
    ) -> None:
        self.tables, self.board, self.steer, self.provisioner = tables, board, steer, provisioner
        self.orders = list(orders)
        self.folder, self.say = folder, say
        self.places = [Place(rc.Seen(r)) for r in range(len(tables.replicas))]
        self.endpoint_version = 0
        self.closed: dict[str, str] = {}  # drained by a person: sites, deployments, replicas
        self.power: list[SitePower] = []
        self.limit_kw: dict[int, float] = {}  # of this hour, by site; else the tables'
        self.on_caps: Callable[[], object] = lambda: None  # caps were decided, or an engine came
        self.held_to: Callable[[int], float] = lambda r: 1.0  # share of its power above idle that a replica is held to
        self.closing = False
        self.lost_ahead: set[str] = set()  # started before their tables came, and gone already
        self.unwritten = False  # endpoints.json is older than what is known
        for r, state in enumerate(steer.state):
            if state == UP:
                steer.starting(r)
            steer.gate[r] = -1
            self._know_external(r)
        self._tell()
        self._write_endpoints()

    def _know_external(self, r: int) -> None:
        """Take up the address of an engine that others run: it is never started here, only looked at, for ever."""
        order = self.orders[r]
        if order is None or order.kind != "external":
            return
        place = self.places[r]
        place.engine = Engine(order.name, order.kind, order.url.rstrip("/"), order.digest, 0, 0.0)
        key = os.environ.get(order.key_env, "") if order.key_env else ""
        kind = self.tables.deployments[self.tables.replicas[r].deployment_i].metrics
        place.scraper = Scraper(place.engine.url, kind=kind, api_key=key)
        place.why = "was not seen yet"
        self._mark(r, rc.STARTING)

    async def look_ahead(self, orders: Sequence[EngineStart | None]) -> set[tuple[str, str]]:
        """Return which engines of others among `orders` answer already: (address, name of its key's variable)."""
        known = {(order.url, order.key_env) for order in self.orders if order is not None}
        new = {(order.url, order.key_env) for order in orders if order is not None and order.kind == "external"} - known

        async def answers(url: str, key_env: str) -> bool:
            key = os.environ.get(key_env, "") if key_env else ""
            return (await scrape(url.rstrip("/"), kind="none", api_key=key)).healthy

        each = sorted(new)
        found = await asyncio.gather(*(answers(*one) for one in each))
        up = {
            (order.url, order.key_env)
            for order, place in zip(self.orders, self.places, strict=True)
            if order is not None and place.seen.phase == rc.UP
        }
        return up | {one for one, healthy in zip(each, found, strict=True) if healthy}

    def runs(self, r: int) -> bool:
        """Say whether an engine stands at a row, or is being started or ended there."""
        place = self.places[r] if r < len(self.places) else None
        return place is not None and (place.engine is not None or place.starting is not None)

    def busy(self) -> set[int]:
        """Return the rows that hold an engine or requests: they go on meaning what they mean."""
        outstanding = self.board.totals("outstanding")
        return {r for r in range(len(self.places)) if outstanding[r] > 0 or self.runs(r)}

    def reload(
        self,
        tables: Tables,
        board: Board,
        orders: Sequence[EngineStart | None],
        up: Set[tuple[str, str]],
        started: Mapping[int, Engine],
    ) -> None:
        """Take up tables that follow the old ones, after `steer` has: what is new begins, or was `started` ahead.

        An address that changed is another engine: nothing is sent there until it was seen, or is among those known to be
        `up`. Those that left go on until `leave`: first the workers have to know of what takes their place.
        """
        before, self.tables, self.board = self.orders, tables, board
        self.orders = list(orders)
        self.places += [Place(rc.Seen(r)) for r in range(len(self.places), len(tables.replicas))]
        for r, row in enumerate(tables.replicas):
            was = before[r] if r < len(before) else None
            order, place = self.orders[r], self.places[r]
            if row.gone:
                self.orders[r] = was  # it still has to be ended
            elif order is not None and r in started and order.name not in self.lost_ahead:
                place.seen = place.seen._replace(incarnation=place.seen.incarnation + 1, seq=0)
                self._answers(r, started[r])
            elif order is None or order.kind != "external" or _same(order, was):
                if self.steer.state[r] == STARTING and place.seen.phase == rc.UP and not place.sick:
                    self._came_up(r)  # it was to leave, and had not yet
            else:
                self.steer.starting(r)
                self.steer.gate[r] = -1
                place.looked = None
                self._know_external(r)
                if (order.url, order.key_env) in up:
                    self._came_up(r)
        self._write_endpoints()
        self._tell()

    def leave(self) -> None:
        """Send nothing more to replicas that left: an engine of ours ends when it is empty, one of others is let be."""
        for r in self.steer.leave():
            place = self.places[r]
            place.sick = False  # `steer` has forgotten it too
            if self._is_external(r):
                self.orders[r] = place.engine = place.scraper = place.looked = None
                self._mark(r, rc.ABSENT, calm=True)
        self._write_endpoints()
        self._tell()

    def _is_external(self, r: int) -> bool:
        order = self.orders[r]
        return order is not None and order.kind == "external"

    # ---- what is known ---------------------------------------------------------------------------------------------

    def name(self, r: int) -> str:
        """Return deployment/site/index of a replica."""
        row = self.tables.replicas[r]
        return f"{self.tables.deployments[row.deployment_i].name}/{self.tables.sites[row.site_i].name}/{row.number}"

    @property
    def n_up(self) -> int:
        """Return how many engines answer."""
        return sum(1 for place in self.places if place.seen.phase == rc.UP and not place.sick)

    def wanted(self, r: int) -> bool:
        """Say whether a replica should run."""
        return self.orders[r] is not None and self.steer.state[r] in (STARTING, UP)

    def ended(self, name: str, why: str) -> None:
        """An engine ended without having been told to."""
        if self.closing:
            return
        r = next((r for r in range(len(self.places)) if self.name(r) == name), -1)
        if r >= 0 and self.tables.replicas[r].gone:
            self.places[r].engine, self.places[r].scraper = None, None
            self._mark(r, rc.ABSENT, calm=True)
        elif r >= 0:
            self.say(f"{name}: {why}")
            self._lost(r, rc.EXITED, why)
        else:
            self.say(f"{name}: {why}")
            self.lost_ahead.add(name)

    def _mark(self, r: int, phase: int, *, failed: bool = False, calm: bool = False) -> None:
        seen = self.places[r].seen
        failures = 0 if calm else seen.n_failures + (1 if failed else 0)
        self.places[r].seen = seen._replace(
            phase=phase, seq=seen.seq + 1, since_s=time.monotonic(), n_failures=failures
        )

    def _lost(self, r: int, phase: int, why: str) -> None:
        """A replica does not answer any more, or is gone."""
        place = self.places[r]
        since_s = time.monotonic() - place.seen.since_s
        if place.seen.phase == rc.UP and since_s > CALM_S:
            self._mark(r, place.seen.phase, calm=True)
        self._mark(r, phase, failed=phase == rc.EXITED)
        place.why = why
        if phase == rc.EXITED:
            place.engine, place.scraper, place.looked = None, None, None
        if not place.sick:
            place.sick = True
            self.steer.failed(r)
            self.steer.known_down(r)
        self._tell()
        if phase == rc.EXITED:
            self._write_endpoints()

    def _tell(self) -> None:
        gates = list(self.steer.gate)
        for r in range(len(gates)):
            if self._is_closed(r):
                self.steer.gate[r] = -1
        self.steer.write(self.board)
        self.steer.gate[:] = gates
        self.board.bump()

    def _is_closed(self, r: int) -> bool:
        if not self.closed:
            return False
        row = self.tables.replicas[r]
        names = (
            "gateway/",
            f"site/{self.tables.sites[row.site_i].name}",
            f"deployment/{self.tables.deployments[row.deployment_i].name}",
            f"replica/{self.name(r)}",
        )
        return any(name in self.closed for name in names)

    def _write_endpoints(self) -> None:
        """Write where replicas answer, whole or not at all, and say that it is new."""
        self.endpoint_version += 1
        shown = Endpoints(
            version=self.endpoint_version,
            urls=[place.engine.url if place.engine else None for place in self.places],
            digests=[place.engine.model_digest if place.engine else "" for place in self.places],
            kinds=[self.tables.deployments[row.deployment_i].kind for row in self.tables.replicas],
        )
        path = self.folder / "endpoints.json"
        fresh = path.with_suffix(".fresh")
        try:
            fresh.write_bytes(msgspec.json.encode(shown))
            fresh.replace(path)
        except OSError as error:
            if not self.unwritten:
                self.say(f"{path}: cannot be written ({error.strerror}); workers keep the addresses that they have")
            self.unwritten = True
            return
        self.unwritten = False
        self.board.bump_endpoints()

    # ---- what is done ----------------------------------------------------------------------------------------------

    async def loop(self) -> None:
        """Compare and act, until cancelled."""
        while True:
            self.act()
            if self.unwritten:
                self._write_endpoints()
            all_of_others = all(self._is_external(r) for r in range(len(self.places)))
            await asyncio.sleep(REST_S if all_of_others else LOOP_S)

    def act(self) -> None:
        """Begin what is to be done now."""
        ours = [r for r in range(len(self.places)) if not self._is_external(r)]
        outstanding = self.board.totals("outstanding")
        observed = {r: self.places[r].seen._replace(in_flight=outstanding[r]) for r in ours}
        desired = {r: self.wanted(r) for r in ours}
        patience = rc.PATIENCE._replace(drain_s=max(rc.PATIENCE.drain_s, self.tables.limits.request_s))
        for action in rc.reconcile(desired, observed, time.monotonic(), patience):  # no request lives longer
            place = self.places[action.replica]
            if place.starting is not None or action.incarnation != place.seen.incarnation:
                continue
            if action.kind in (rc.START, rc.RESTART):
                self._mark(action.replica, rc.STARTING)
                place.starting = asyncio.create_task(self._start(action.replica, again=action.kind == rc.RESTART))
            elif action.kind == rc.STOP:
                place.starting = asyncio.create_task(self._stop(action.replica))
            elif action.kind == rc.DRAIN:
                self._mark(action.replica, rc.DRAINING)
            elif action.kind == rc.RESUME and self.steer.state[action.replica] == STARTING:
                self._came_up(action.replica)
            elif action.kind == rc.RESUME:
                self._mark(action.replica, rc.UP)

    async def _start(self, r: int, *, again: bool) -> None:
        place, order = self.places[r], self.orders[r]
        assert order is not None
        seen = place.seen
        if seen.incarnation == 0 and self.tables.replicas[r].on_at_start:
            order = order._replace(cold_s=0.0)  # what runs from the start is warm, as in the twin
        place.seen = seen._replace(incarnation=seen.incarnation + 1, seq=0)
        if place.restarts or again or place.why:
            place.restarts += 1
        try:
            if again:
                place.engine = None
                self._write_endpoints()
                await self.provisioner.stop(order.name, 0.0)
            engine = await self.provisioner.start(order)
        except EngineError as error:
            place.starting = None
            self.say(str(error))
            self._lost(r, rc.EXITED, str(error))
            return
        except asyncio.CancelledError:
            place.starting = None
            raise
        place.starting = None
        self._answers(r, engine)

    def _answers(self, r: int, engine: Engine) -> None:
        """Take up an engine of ours that answers."""
        place = self.places[r]
        place.engine = engine
        kind = self.tables.deployments[self.tables.replicas[r].deployment_i].metrics
        place.scraper, place.looked = Scraper(engine.url, kind=kind, api_key=""), None
        self._came_up(r)
        self.on_caps()

    def _came_up(self, r: int) -> None:
        place = self.places[r]
        self._mark(r, rc.UP)
        if self.tables.replicas[r].gone and self.steer.state[r] == OFF:  # left while it was started: it will be ended
            return
        place.why = ""
        if place.sick:
            place.sick = False
            self.steer.repaired(r)
        self.steer.starting(r)
        self.steer.ready(r)
        self.steer.known_up(r)
        self._write_endpoints()
        self._tell()

    async def _stop(self, r: int) -> None:
        place, order = self.places[r], self.orders[r]
        assert order is not None
        place.engine, place.scraper = None, None
        self._write_endpoints()
        try:
            await self.provisioner.stop(order.name, 1.0)
        except EngineError as error:
            self.say(str(error))
        finally:
            place.starting = None
        self._mark(r, rc.ABSENT, calm=True)

    # ---- what is looked at -----------------------------------------------------------------------------------------

    async def look(self) -> None:
        """Read each engine's health and counters, every `observe_every_s`, until cancelled."""
        every_s = max(0.2, self.tables.policy.observe_every_s)
        while True:
            began_s = time.monotonic()
            await self.look_once()
            await asyncio.sleep(max(0.05, every_s - (time.monotonic() - began_s)))

    async def look_once(self) -> None:
        """Look at every engine, all at once; a slow one holds up no other."""

        async def one(r: int, scraper: Scraper) -> None:
            looked = await scraper.look()
            if self.places[r].scraper is scraper:
                self._looked(r, looked)

        await asyncio.gather(
            *(one(r, place.scraper) for r, place in enumerate(self.places) if place.scraper is not None)
        )
        self.board.bump()

    def _looked(self, r: int, looked: Looked) -> None:
        place = self.places[r]
        place.looked = looked
        if looked.healthy:
            if place.seen.phase == rc.UNHEALTHY or (place.seen.phase == rc.STARTING and self._is_external(r)):
                self._came_up(r)
            elif place.seen.phase == rc.UP and time.monotonic() - place.seen.since_s > CALM_S and place.seen.n_failures:
                self._mark(r, rc.UP, calm=True)
            self.board.running[r] = max(0, looked.running)
            self.board.waiting[r] = max(0, looked.waiting)
            self.board.kv_free[r] = looked.kv_free if looked.kv_free >= 0.0 else 1.0
        elif place.seen.phase == rc.UP:
            self._lost(r, rc.UNHEALTHY, looked.reason)
        elif place.seen.phase in (rc.STARTING, rc.UNHEALTHY):
            place.why = looked.reason or place.why

    # ---- what is decided now and then ------------------------------------------------------------------------------

    async def control(self) -> None:
        """Decide scaling and power caps every `control_every_s`, until cancelled."""
        while True:
            await asyncio.sleep(self.tables.policy.control_every_s)
            self.decide(time.monotonic())

    def decide(self, now_s: float) -> None:
        """Decide once."""
        outstanding, asked = self.board.totals("outstanding"), self.board.totals("asked")
        busy = [place.looked is not None and place.looked.running > 0 for place in self.places]
        self.steer.scale(now_s, outstanding=outstanding, asked=asked, busy=busy)
        running, policy = self._running(), self.tables.policy
        wanted = site_power.wanted_power(self.tables, running, self.limits_kw())
        self.steer.cap(wanted)  # as the twin: a cap is no reason to lift it
        if policy.cap in CAPS_EACH_REPLICA:
            for i, seen in enumerate(wanted):
                self.steer.share_out(i, limit_kw=seen.limit_kw, base_kw=self.tables.sites[i].idle_kw)
        self.power = self.metered()
        for i, seen in enumerate(self.power):
            self.board.power_kw[i] = seen.power_kw
        self._tell()
        self.on_caps()

    def limits_kw(self) -> list[float]:
        """Return the IT power that each site may draw in this hour."""
        said = [inf if row.limit_kw is None else row.limit_kw for row in self.tables.sites]
        return [self.limit_kw.get(i, limit_kw) for i, limit_kw in enumerate(said)]

    def _running(self) -> list[float | None]:
        """Return how many sequences run in each replica, as its engine or we know it; None where there is no engine."""
        outstanding = self.board.totals("outstanding")
        return [
            None
            if place.engine is None
            else float(max(outstanding[r], place.looked.running if place.looked is not None else 0))
            for r, place in enumerate(self.places)
        ]

    def metered(self) -> list[SitePower]:
        """Return each site's IT power, reckoned from what its engines say they run and are held to."""
        return site_power.drawn_power(self.tables, self._running(), self.limits_kw(), self.held_to)

    def drain(self, key: str, on: bool) -> None:
        """Let a site, a deployment or a replica take nothing new (`site/oslo`), or take again."""
        if on:
            self.closed[key] = "drained by hand"
        else:
            self.closed.pop(key, None)
        self._tell()

    async def close(self) -> None:
        """End all engines."""
        self.closing = True
        for place in self.places:
            if place.scraper is not None:
                place.scraper.close()
        tasks = [place.starting for place in self.places if place.starting is not None]
        for task in tasks:
            task.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await asyncio.gather(*tasks, return_exceptions=True)
        await self.provisioner.close()


def _same(order: EngineStart, was: EngineStart | None) -> bool:
    """Say whether two orders mean the same engine of others."""
    return was is not None and (order.kind, order.url, order.key_env) == (was.kind, was.url, was.key_env)


async def until(true: Callable[[], bool], timeout_s: float, every_s: float = 0.02) -> bool:
    """Wait until something holds; say whether it did in time."""
    end_s = time.monotonic() + timeout_s
    while not true():
        if time.monotonic() > end_s:
            return False
        await asyncio.sleep(every_s)
    return True
