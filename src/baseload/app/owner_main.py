"""The owner process of `baseload serve`: money and ledger, engines, meters, and the control listener, wired together.

Started by the supervisor (`serving.py`) as `python -m baseload.app.owner_main run/serve.json`; prints one JSON line when the
gateway can be used. Each part is elsewhere; here they meet. What the control listener asks is `owner_view.py`.
"""

from __future__ import annotations

import asyncio
import contextlib
import ctypes
import gc
import importlib
import json
import os
import signal
import socket
import sys
import time
from collections.abc import Callable, Coroutine
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import msgspec

from baseload import native
from baseload.app import owner_reload
from baseload.errors import BaseloadError, FleetError

PR_SET_PDEATHSIG = 1
GC_AFTER = 20_000  # objects made and not freed, before the collector looks
FIRST_ENGINE_S = 30.0  # the owner is ready once some engine answers, or after so long
SILENT_S = 5.0  # of that, before it says whom it waits for
WAITED_FOR_SHOWN = 3
ADMIN = "admin.token"
EARLY = (  # what it imports while its supervisor reads the fleet file; nothing that own rules have to come before
    "uvloop", "baseload.fleet.loaded", "baseload.policies", "baseload.adapters.accounts", "baseload.app.owner_made",
    "baseload.adapters.engine_process", "baseload.adapters.ledger_sqlite", "baseload.adapters.signing",
    "baseload.app.serve_config", "baseload.app.housekeeping", "baseload.app.live_tally", "baseload.serve.drift",
    "baseload.serve.keys", "baseload.serve.owner", "baseload.serve.steer",
)  # fmt: skip
NOT_AFTER_A_CRASH = (
    "numpy",
    "baseload.app.serve_tables",
    "baseload.app.live_engines",
)  # `owner_made` stands in at first


def main(arguments: list[str]) -> int:
    """Run until told to stop; return the exit code."""
    from baseload.app.serve_config import ServeConfig

    if __name__ == "__main__":
        native.use(written_alone=True)  # before what it would replace
    die_with_parent()
    gc.disable()  # while it starts: nothing of what is made then goes
    if arguments[-1:] == ["--wait"]:  # started before the supervisor knew of what: it says so in a line, or is gone
        for name in EARLY if "--after-a-crash" in arguments else (*EARLY, *NOT_AFTER_A_CRASH):
            importlib.import_module(name)
        arguments = [_line_of_stdin()]
        if not arguments[0]:
            return 0
    config = msgspec.json.decode(Path(arguments[0]).read_bytes(), type=ServeConfig)
    import uvloop

    try:
        with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
            return runner.run(_run(config))
    except BaseloadError as error:
        say(str(error))
        return error.exit_code
    except OSError as error:
        if error.filename is None:
            raise
        where = error.filename2 or error.filename
        say(f"{where}: {error.strerror}; see to what stands there, or name another folder with --state")
        return 2
    except KeyboardInterrupt:
        return 130


def _line_of_stdin() -> str:
    """Return what standard input says up to a NUL, read letter by letter: its end is for who watches it."""
    line = b""
    while (letter := os.read(0, 1)) not in (b"", b"\0"):
        line += letter
    return line.decode("utf-8", "surrogateescape") if letter else ""


def say(sentence: str) -> None:
    """Tell the operator something; stdout belongs to the supervisor."""
    print(f"baseload: {sentence}", file=sys.stderr, flush=True)


async def first_engine(keeper: Any, *, silent_s: float = SILENT_S, most_s: float = FIRST_ENGINE_S) -> None:
    """Wait until an engine answers, `most_s` at most; after `silent_s` say which ones do not, and why."""
    from baseload.app.housekeeping import until

    if await until(lambda: keeper.n_up > 0, silent_s):
        return
    missing = [r for r, order in enumerate(keeper.orders) if order is not None and keeper.wanted(r)]
    names = [f"{keeper.name(r)} ({keeper.places[r].why or 'is being started'})" for r in missing[:WAITED_FOR_SHOWN]]
    if more := len(missing) - len(names):
        names.append(f"{more} more")
    keeper.say(
        f"no engine answers yet: {', '.join(names) or 'none is wanted'}; requests are taken once one does, "
        f"or in {most_s - silent_s:.0f} s without"
    )
    await until(lambda: keeper.n_up > 0, most_s - silent_s)


def die_with_parent() -> None:
    """Ask the kernel to end this process when its parent is gone."""
    with contextlib.suppress(OSError, AttributeError):
        ctypes.CDLL(None, use_errno=True).prctl(PR_SET_PDEATHSIG, signal.SIGTERM)
    if os.getppid() == 1:  # it went before we asked
        os.kill(os.getpid(), signal.SIGTERM)


async def _run(config: Any) -> int:
    house = House(config)
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop.set)
    loop.add_signal_handler(signal.SIGHUP, lambda: house.spawn(house.reload_and_say("SIGHUP")))
    _watch_stdin(loop, stop)

    def fatal(said: str) -> None:
        say(said)
        stop.set()

    house.on_fatal = fatal
    try:
        await house.begin()
        print(json.dumps(house.ready()), flush=True)
        await stop.wait()
    finally:
        await house.end()
    return 1 if house.fatal else 0


def _watch_stdin(loop: asyncio.AbstractEventLoop, stop: asyncio.Event) -> None:
    """Stop when the supervisor's end of our standard input closes: it is gone."""

    def read() -> None:
        if not os.read(0, 1024):
            loop.remove_reader(0)
            stop.set()

    with contextlib.suppress(OSError, ValueError):
        loop.add_reader(0, read)


class House:
    """Everything the owner process holds, in the order in which it is put up."""

    def __init__(self, config: Any) -> None:
        self.config = config
        self.state = Path(config.state)
        self.run = Path(config.state) / "run"
        self.started_ns = time.time_ns()
        self.fatal = ""
        self.on_fatal: Callable[[str], object] = lambda said: None
        self.tasks: set[asyncio.Task[Any]] = set()
        self.reload_fault = ""
        self.reloading = asyncio.Lock()
        self.version = 1
        self.live: Any = None  # what the twin says of the fleet; after a crash it comes a little later
        self.prepared: Any = None  # the same, until it is kept for the next owner
        self.described = asyncio.Event()
        self.draining = False
        self.hold: Any = None  # carries power caps to the engines
        self.limiter: Any = None  # of this host's accelerators' power, where the fleet file names one
        self.meters: dict[str, Any] = {}
        self.readings: dict[str, asyncio.Task[None]] = {}  # of meters, under way
        self.requests_mj: dict[str, tuple[int, int]] = {}  # requests since the last division, and their energy, by site

    # ---- up --------------------------------------------------------------------------------------------------------

    async def begin(self) -> None:
        """Put everything up; raises BaseloadError where something of the user's is wrong."""
        from baseload.adapters.accounts import AccountsFile
        from baseload.adapters.engine_process import ProcessProvisioner
        from baseload.app import owner_made, owner_power
        from baseload.app.housekeeping import Housekeeper
        from baseload.app.live_tally import Tally
        from baseload.app.owner_ledger import open_ledger
        from baseload.serve.drift import Drift
        from baseload.serve.keys import open_ring
        from baseload.serve.owner import Owner
        from baseload.serve.steer import Steer

        good = owner_reload.last_good(self.run)
        self.loaded = self.read_already(good) or self.load(good)
        self.made = made = owner_made.kept(self.run, self.loaded, self.config.engines)
        if made is None:
            self.prepared = self.described_by_the_twin()
            self.live, orders, steps = self.prepared
        else:
            orders, steps = made.orders, made.steps
        self.rows = owner_reload.first_rows(self.run, self.live.tables if made is None else made.tables)
        tables = self.rows.tables
        self.version = tables.version
        if made is None:
            self.live = self.live.at_version(self.version)
        owner_reload.write_tables(self.run, tables, self.loaded)
        self.board = owner_reload.board_for(self.run, tables, self.config.workers + 1)
        self.steer = Steer(tables)
        self.tally = Tally(tables)
        self.drift = Drift(tables.deployments, tables.sites)
        self.accounts = AccountsFile(self.state / "accounts.db")
        self.keyring = open_ring(self.accounts, self.state / "pepper")
        self._admin_token()
        self.ledger = open_ledger(self.state, self.loaded.fleet.serve.ledger_env, say)
        self.tally.names = {pseudonym: name for pseudonym, name in self.accounts.tenants().items()}
        self.owner = Owner(
            self.run, self.ledger, self.keyring, tables, on_rows=self._rows, on_fatal=self.say_fatal
        )  # fmt: skip
        await self.owner.start()
        self.provisioner = ProcessProvisioner(
            self.state, tables=steps, ended=lambda name, why: self.keeper.ended(name, why),
            journal=Path(journal) if (journal := os.environ.get("BASELOAD_ENGINE_JOURNAL")) else None,
        )  # fmt: skip
        self.keeper = Housekeeper(
            tables, self.board, self.steer, self.provisioner, owner_reload.by_row(self.rows, orders), self.run, say=say,
        )  # fmt: skip
        owner_power.begin(self)
        self.set_hour()
        self.spawn(self.keeper.loop())
        self.spawn(self.keeper.look())
        self.spawn(self.keeper.control())
        self.spawn(self._each_hour())
        self.spawn(owner_power.meter(self))
        sock = self._bind_control()
        await first_engine(self.keeper)
        self.spawn(owner_made.describe(self))
        self.spawn(self._control(sock))
        if good is not None and owner_reload.differs(self.config.fleet, good):
            self.spawn(self.reload_and_say("the file on disk"))

    def read_already(self, text: str | None) -> Any:
        """Return the fleet as the supervisor, or the last reload, read and checked it today; None where that does not fit."""
        from baseload.app.serve_config import FLEET_READ
        from baseload.fleet.loaded import unpack

        try:
            blob = (self.run / FLEET_READ).read_bytes()
        except OSError:
            return None
        wants, day = self.config, datetime.now(UTC).date()
        loaded = unpack(blob, day=day, path=wants.fleet, overrides=tuple(wants.overrides), text=text)
        if loaded is not None:
            self._own_rules(loaded)
        return loaded

    def load(self, text: str | None = None) -> Any:
        """Return the fleet file as it is now (or the text that was good before), checked; raises FleetError."""
        from baseload.fleet import check, load
        from baseload.policies import KINDS

        path, overrides = Path(self.config.fleet), tuple(self.config.overrides)
        if text is None:
            loaded = load.load(path, overrides)
        else:
            loaded = load.loads(text, file=str(path), base_folder=path.parent, overrides=overrides)
        policies = {kind: list(names) for kind, names in KINDS.items()}
        check.require(loaded, policies=policies, day=datetime.now(UTC).date())
        self._own_rules(loaded)
        return loaded

    def _own_rules(self, loaded: Any) -> None:
        """Take up the operator's own rules at a start; refuse those that come later."""
        from baseload import jit
        from baseload.errors import Problem
        from baseload.policies import KINDS, custom

        for kind, table in KINDS.items():
            name = getattr(loaded.fleet.policy, kind)
            if name not in table and not hasattr(self, "owner"):  # the first time
                custom.install(name, loaded.base_folder, loaded.fleet.policy.digest, kind)
            elif name not in table and f"{kind}:{name}" not in jit.EXTRA_SOURCES:
                mend = "start `baseload serve` anew"
                raise FleetError(Problem(key=f"policy.{kind}", what=f"{name} is taken up at a start only", mend=mend))

    def _admin_token(self) -> None:
        """Make the first control token, once, in a file that its owner alone may read."""
        path = self.state / ADMIN
        if path.exists() and self.keyring.look_up_token(path.read_bytes().strip(), time.time_ns()) is not None:
            return
        made = self.keyring.create_token("admin", now_ns=time.time_ns(), name="first")
        path.unlink(missing_ok=True)
        handle = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
        with os.fdopen(handle, "w", encoding="ascii") as file:
            file.write(made.secret + "\n")

    def _bind_control(self) -> socket.socket:
        """Bind the control listener; who asks before it is put up waits."""
        from baseload.app.web.sockets import BACKLOG, bound_socket

        host, port = self.config.control_host, self.config.control_port
        try:
            sock = bound_socket(host, port)
            sock.listen(BACKLOG)
        except OSError as error:
            raise FleetError(f"serve.control {host}:{port}: {error.strerror}; choose another address or port") from None
        port = int(sock.getsockname()[1])
        self.control_at = f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
        self.control_url = f"{'https' if self.config.control_cert else 'http'}://{self.control_at}"
        return sock

    async def _control(self, sock: socket.socket) -> None:
        """Put up what people look at, once requests are served: its modules are a third of all that is imported."""
        names = ("live_view", "owner_view", "web.control", "web.server")
        await self.described.wait()
        await asyncio.to_thread(lambda: [importlib.import_module(f"baseload.app.{name}") for name in names])
        from baseload.app import live_view
        from baseload.app.owner_view import View
        from baseload.app.web.control import make_app
        from baseload.app.web.guard import default_hosts, require_safe_bind
        from baseload.app.web.server import ControlServer, tls_of

        self.fixed = live_view.standing(self.live)
        self.view = View(self)
        require_safe_bind(self.control_at, has_tokens=True)  # `_admin_token` made the first
        cert, key = self.config.control_cert, self.config.control_key
        hosts = (*default_hosts(self.control_at), *self.config.control_hosts)
        app = make_app(self.view, allowed_hosts=hosts, secure_cookies=bool(cert))
        self.server = ControlServer(app, sock, tls_of(cert, key) if cert and key else None)
        await self.server.start()
        self.spawn(self.view.loop())
        self.spawn(self.view.watch_checkpoints())
        gc.collect()
        gc.freeze()  # what is there from the start is never looked at again
        gc.set_threshold(GC_AFTER, 50, 100)  # rows leave no cycles behind
        gc.enable()

    def ready(self) -> dict[str, Any]:
        """Return what the supervisor tells the user."""
        return {
            "ready": True,
            "control": self.control_url,
            "admin_token_file": str(self.state / ADMIN),
            "ledger": str(self.state / "ledger.db") if self.loaded.fleet.serve.ledger_env is None else "postgresql",
            "engines_up": self.keeper.n_up,
            "replicas": len(self.rows.replicas),
            "rehearsal": self.rows.tables.rehearsal,
            "owner_pid": os.getpid(),
        }

    def spawn(self, work: Coroutine[Any, Any, Any]) -> None:
        """Run something beside everything else; what it raises is told, and nothing else stops."""
        task = asyncio.create_task(work)
        self.tasks.add(task)

        def over(done: asyncio.Task[Any]) -> None:
            self.tasks.discard(done)
            if not done.cancelled() and done.exception() is not None:
                say(f"a part of the owner ended: {done.exception()!r}")
                self.say_fatal("a part of the owner ended; it is started anew")

        task.add_done_callback(over)

    # ---- on ----------------------------------------------------------------------------------------------------------

    def _rows(self, batch: Any) -> None:
        from baseload.serve.settled import ENERGY

        if any(alike.whose.tenant not in self.tally.names for alike in batch.alike):
            self.tally.names = dict(self.accounts.tenants())
        for alike in batch.alike:
            streams = batch.rows(alike.places)
            self.tally.count(alike, streams, batch.at_ns // 1_000_000_000)
            if alike.site in self.requests_mj:
                n, mj = self.requests_mj[alike.site]
                self.requests_mj[alike.site] = (n + alike.sums[0], mj + alike.sums[ENERGY])
            self._tell_drift(streams)

    def _tell_drift(self, streams: list[Any]) -> None:
        """Only streams tell of drift."""
        now_s = time.monotonic()
        for row in streams:
            if 0 <= row.replica_i < self.board.n_replicas:
                running, waiting = self.board.running[row.replica_i], self.board.waiting[row.replica_i]
                deployment_i = self.rows.tables.replicas[row.replica_i].deployment_i
                self.drift.settled(now_s, row, running=running, waiting=waiting, deployment_i=deployment_i)

    def say_fatal(self, said: str) -> None:
        """End this owner; the supervisor starts another."""
        self.fatal = said
        self.on_fatal(said)

    def described_by_the_twin(self) -> Any:
        """Return the twin's description of the fleet, with orders for its engines (live_engines.Prepared)."""
        from baseload.app import serve_tables
        from baseload.app.live_engines import prepare

        live = serve_tables.live(self.loaded, version=self.version, kind=self.config.engines)
        return prepare(live, kind=self.config.engines)

    async def _each_hour(self) -> None:
        """Take up the hour's price, carbon, weather and limits."""
        while True:
            now = datetime.now(UTC)
            await asyncio.sleep(3601.0 - now.minute * 60 - now.second)
            await self.described.wait()
            from baseload.app import serve_tables

            live = await asyncio.to_thread(
                serve_tables.live, self.loaded, version=self.version, kind=self.config.engines
            )
            if owner_reload.same_fleet(self.live, live):
                self.live = live
                self.set_hour()
            else:  # another day: something was energised, or has left
                await self.reload_and_say("the calendar", self.loaded.text)

    def set_hour(self) -> None:
        """Write this hour's prices, carbon and limits to the board."""
        from baseload.app import owner_made

        if self.live is None:
            assert self.made is not None
            tables, cost, carbon = self.made.tables, self.made.cost_per_mtok, self.made.carbon_g_per_mtok
        else:
            tables = self.live.tables  # the file's own, and where its rows stand
            cost, carbon = owner_made.figures(self.live)
        for i, r in enumerate(self.rows.replicas):
            self.board.cost_per_mtok[r], self.board.carbon_g_per_mtok[r] = cost[i], carbon[i]
        for i, site in zip(self.rows.sites, tables.sites, strict=True):
            self.board.limit_kw[i] = float("inf") if site.limit_kw is None else site.limit_kw
            self.keeper.limit_kw[i] = self.board.limit_kw[i]
            self.board.carbon_g_per_kwh[i] = site.carbon_g_per_kwh
            self.board.price_per_kwh[i] = site.price_per_kwh
        self.board.bump()

    def drift_alarms(self) -> list[tuple[Any, bool, str, str, dict[str, float | None]]]:
        """Return where measured latency has left the twin's band."""
        return [
            (
                "divergence", False, f"{alarm.deployment} {alarm.kind}", alarm.what,
                {"measured": alarm.seen.ratio, "band_low": alarm.seen.low, "band_high": alarm.seen.high},
            )
            for alarm in self.drift.alarms()
        ]  # fmt: skip

    # ---- reload --------------------------------------------------------------------------------------------------------

    async def reload(self, who: str, text: str | None = None) -> list[Any]:
        """Read the fleet file again (or a text); return its problems (the last good one is kept), or [] when it holds."""
        async with self.reloading:
            return await owner_reload.reload(self, who, text)

    async def reload_and_say(self, who: str, text: str | None = None) -> None:
        """Reload, and tell the operator how it went."""
        problems = await self.reload(who, text)
        for problem in problems:
            say(f"reload refused: {problem}")
        if not problems:
            say(f"fleet file reloaded, version {self.version}")

    # ---- down ----------------------------------------------------------------------------------------------------------

    async def end(self) -> None:
        """Take everything down, in order; what was never put up is passed over."""
        if hasattr(self, "keeper"):
            self.keeper.closing = True
        for task in list(self.tasks):
            task.cancel()
        await asyncio.gather(*self.tasks, return_exceptions=True)
        for name, work in (("server", "stop"), ("owner", "stop"), ("keeper", "close")):
            part = getattr(self, name, None)
            if part is not None:
                try:
                    await asyncio.wait_for(getattr(part, work)(), 15.0)
                except (TimeoutError, OSError, BaseloadError) as error:
                    say(f"{name}: {error!r}")
        for name in ("limiter", "ledger", "accounts", "board"):
            part = getattr(self, name, None)
            if part is not None:
                part.close()


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
