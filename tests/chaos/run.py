"""Chaos: a whole `baseload serve`, mock engines, a seeded storm of kills and faults, and books that must balance afterwards.

    python -m tests.chaos.run --seed 7 --requests 10000 [--postgres]

Kills the gateway whole, its owner and its workers, engines, the database; fills the disk; freezes, degrades and partitions;
meanwhile some requests ask their engine for a fault of its own. Then: every request ended in one of four ways, ledger and
ground truth agree by request id, no row twice, no reservation leaked, Merkle proofs hold, recovery took less than 5 s. A
failing run prints the command that repeats it. Prompts and keys stand in no file and on no page of the gateway, and its idle
processes hold no more files and memory than before the storm. What the machine does not allow is told as `not run`.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from baseload.serve.relay import WRITE_TOKENS
from tests.chaos import invariants, leaks, postgres, schedule
from tests.chaos.client import Request, Wire, ask
from tests.chaos.faultproxy import FaultProxy
from tests.chaos.invariants import Seen, Window
from tests.chaos.stack import Gateway, MockEngine, fleet_text, read_truth

RECOVERY_S = 5.0
START_S = 1.7  # of a gateway on a machine that does nothing else; where its start took longer, so may a recovery
N_LOST = WRITE_TOKENS  # tokens that may be delivered and not billed when a process is killed: those of the last write
TMPFS_MB = 24


@dataclass
class Storm:
    """One run: its parts, what was seen, and how long recoveries took."""

    seed: int
    n_requests: int
    folder: Path
    users: int = 32
    n_engines: int = 4
    workers: int = 2
    use_postgres: bool = False
    faulty_ratio: float = 0.12
    spared: bool = False
    say: Any = print
    engines: list[MockEngine] = field(default_factory=list)
    proxies: list[FaultProxy] = field(default_factory=list)
    gateway: Gateway | None = None
    cluster: postgres.Cluster | None = None
    keys: dict[str, str] = field(default_factory=dict)
    seen: list[Seen] = field(default_factory=list)
    windows: list[Window] = field(default_factory=list)
    recoveries_s: list[float] = field(default_factory=list)
    slowest: tuple[float, str] = (0.0, "")  # recovery, and what it was spent on
    full_s: float = float("-inf")  # the last moment at which the disk was full
    recovery_max_s: float = RECOVERY_S
    done: Counter[str] = field(default_factory=Counter)
    not_run: dict[str, str] = field(default_factory=dict)
    mounted: bool = False
    gate: asyncio.Event = field(default_factory=asyncio.Event)
    sent: int = 0
    restarting: set[int] = field(default_factory=set)
    engine_deaths: Counter[int] = field(default_factory=Counter)
    before: dict[str, tuple[int, int]] = field(default_factory=dict)
    after: dict[str, tuple[int, int]] = field(default_factory=dict)
    pages: dict[str, bytes] = field(default_factory=dict)

    # ---- begin and end -----------------------------------------------------------------------------------

    async def begin(self) -> None:
        """Start engines, proxies, database and gateway, and make the keys."""
        self.folder.mkdir(parents=True, exist_ok=True)
        state = self.folder / "state"
        state.mkdir(mode=0o700)
        self._mount(state)
        self.engines = [MockEngine(self.folder / f"engine-{i}.truth").start() for i in range(self.n_engines)]
        urls = []
        for i, engine in enumerate(self.engines):
            if i % 2:  # every second one behind a proxy that can be partitioned
                self.proxies.append(await FaultProxy.open(engine.port))
                urls.append(f"http://127.0.0.1:{self.proxies[-1].port}")
            else:
                urls.append(engine.url)
        env, more = self._database()
        if self.spared:
            self.not_run |= dict.fromkeys(("gateway", "owner", "worker"), "spared, so that what leaks adds up")
        fleet = self.folder / "fleet.yaml"
        half = (len(urls) + 1) // 2
        fleet.write_text(fleet_text(urls[:half], urls[half:], workers=self.workers, serve_more=more))
        self.gateway = Gateway(fleet, state, env=env)
        began_s = time.monotonic()
        await asyncio.to_thread(self.gateway.start)
        self.recovery_max_s = RECOVERY_S * max(1.0, (time.monotonic() - began_s) / START_S)
        for tenant in schedule.TENANTS:
            self.keys[tenant] = await asyncio.to_thread(self.gateway.key, tenant)
        self.gate.set()
        await self._recovered(time.monotonic())
        self.recoveries_s.clear()  # nothing had happened yet
        self.before = leaks.footprint(self.gateway)

    def _mount(self, state: Path) -> None:
        done = subprocess.run(
            ["mount", "-t", "tmpfs", "-o", f"size={TMPFS_MB}m,mode=0700", "tmpfs", str(state)],
            capture_output=True,
            text=True,
        )
        self.mounted = done.returncode == 0
        if not self.mounted:
            self.not_run["disk"] = f"mounting a small tmpfs is not allowed here ({done.stderr.strip()[:60]})"

    def _database(self) -> tuple[dict[str, str], str]:
        why = "" if self.use_postgres else "the ledger is SQLite in this run (--postgres)"
        why = why or postgres.missing()
        if why:
            self.not_run["database"] = why
            return {}, ""
        # Apart from our own folder, which nobody else may enter: the cluster runs as another user.
        self.cluster = postgres.Cluster(Path(tempfile.mkdtemp(prefix="baseload-pg-"))).start()
        return {"BASELOAD_CHAOS_LEDGER": self.cluster.url}, "  ledger_env: BASELOAD_CHAOS_LEDGER\n"

    def end(self) -> None:
        """Stop everything that was started."""
        if self.gateway is not None:
            self.gateway.stop()
        for engine in self.engines:
            engine.kill()
        for proxy in self.proxies:
            proxy.close()
        if self.cluster is not None:
            with contextlib.suppress(RuntimeError):
                self.cluster.stop()
            shutil.rmtree(self.cluster.folder, ignore_errors=True)
        if self.mounted:
            state = self.folder / "state"
            shutil.copytree(state, self.folder / "state-kept", ignore=shutil.ignore_patterns("*.sock", "filler"))
            subprocess.run(["umount", "-l", str(state)], check=False)

    # ---- load --------------------------------------------------------------------------------------------

    async def user(self, numbers: Any) -> None:
        """One client: sends its requests one after the other, on a connection that it keeps."""
        assert self.gateway is not None
        wire = Wire("127.0.0.1", self.gateway.port)
        for i in numbers:
            self.sent += 1
            request = schedule.request(self.seed, i, self.keys, faulty_ratio=self.faulty_ratio)
            for _ in range(300):  # where nobody listens, nothing was sent: wait, as clients do
                await self.gate.wait()
                out = await ask(wire, request)
                if out.kind != "down":
                    break
                await asyncio.sleep(0.05)
            self.seen.append(Seen(out, schedule.fault_of(self.seed, i, self.faulty_ratio), len(request.body())))
            if out.kind in (
                "broken",
                "envelope",
            ):  # who is told to come back later does not spend the run on being told so
                await asyncio.sleep(0.4 if out.status == 503 else 0.05)
        wire.drop()

    async def run(self) -> None:
        """Send all requests while the events come to pass."""
        numbers = iter(range(self.n_requests))
        users = [asyncio.create_task(self.user(numbers)) for _ in range(self.users)]
        storm = asyncio.create_task(self.weather())
        watch = asyncio.create_task(self._progress())
        try:
            await asyncio.gather(storm, *users)  # whatever goes wrong with an event ends the run
        finally:
            watch.cancel()
            storm.cancel()

    async def _progress(self) -> None:
        while True:
            await asyncio.sleep(10)
            self.say(f"  {self.sent}/{self.n_requests} sent, {len(self.seen)} ended, events {dict(self.done)}")

    # ---- events ------------------------------------------------------------------------------------------

    async def weather(self) -> None:
        """Let each event come when its number of requests has been sent; kinds overlap, except kills of the gateway."""
        running: set[asyncio.Task[None]] = set()
        for event in schedule.events(self.seed, self.n_requests, self.n_engines, without=frozenset(self.not_run)):
            while self.sent < event.at:
                await asyncio.sleep(0.005)
            if event.what in ("gateway", "owner", "worker"):
                await self._happen(event)
            else:
                task = asyncio.create_task(self._happen(event))
                running.add(task)
                task.add_done_callback(running.discard)
        await asyncio.gather(*running)

    async def _happen(self, event: schedule.Event) -> None:
        self.done[event.what] += 1
        await getattr(self, f"on_{event.what}")(event)

    async def on_gateway(self, event: schedule.Event) -> None:
        """Kill -9 the whole gateway; start it again."""
        gateway, start_s = self.gateway, time.monotonic()
        assert gateway is not None
        self.windows.append(Window(start_s - 0.05, start_s + 120.0))
        await asyncio.to_thread(gateway.kill9)
        self.gate.clear()
        again_s = await self._start()
        self.gate.set()
        await self._recovered(again_s, f"gateway: {time.monotonic() - again_s:.2f} s to start")
        self.windows[-1] = Window(start_s - 0.05, time.monotonic() + 0.2)

    async def _start(self) -> float:
        """Start the gateway, and return when that began; what a full disk refused is tried again, as a service manager does."""
        gateway = self.gateway
        assert gateway is not None
        while True:
            again_s = time.monotonic()
            try:
                await asyncio.to_thread(gateway.start)
            except RuntimeError:
                if self.full_s < again_s:
                    raise
                await asyncio.to_thread(gateway.kill9)
                await asyncio.sleep(0.2)
            else:
                return again_s

    async def _part(self, word: str) -> None:
        gateway, start_s = self.gateway, time.monotonic()
        assert gateway is not None
        pids = gateway.part(word)
        if not pids:
            return
        self.windows.append(Window(start_s - 0.05, start_s + 30.0))
        with contextlib.suppress(ProcessLookupError):
            os.kill(pids[self.done.total() % len(pids)], signal.SIGKILL)
        await self._recovered(start_s, word)
        self.windows[-1] = Window(start_s - 0.05, time.monotonic() + 0.2)

    async def on_owner(self, event: schedule.Event) -> None:
        """Kill -9 the owner of money and ledger alone."""
        await self._part("owner_main")

    async def on_worker(self, event: schedule.Event) -> None:
        """Kill -9 one worker alone."""
        await self._part("serve.worker")

    async def _recovered(self, since_s: float, what: str = "") -> None:
        """Wait until a plain request is answered, and note how long that took."""
        assert self.gateway is not None
        wire = Wire("127.0.0.1", self.gateway.port)
        for i in range(400):
            request = Request(
                prompt=f"probe {i}", n=1, stream=False, key=self.keys["acme"], tenant="acme", deadline_s=5
            )
            out = await ask(wire, request)
            if out.kind != "down":
                what += f", {out.ended_s - out.started_s:.2f} s {out.kind} {out.why[:40]}" if len(what) < 400 else ""
                self.seen.append(Seen(out, "", len(request.body())))
            if out.kind == "answer":
                break
            await asyncio.sleep(0.05)
        wire.drop()
        self.recoveries_s.append(time.monotonic() - since_s)
        self.slowest = max(self.slowest, (self.recoveries_s[-1], what))

    async def on_engine(self, event: schedule.Event) -> None:
        """Kill -9 an engine; it comes back at the same port."""
        engine = self.engines[event.which]
        while event.which in self.restarting:  # two events of one engine follow each other
            await asyncio.sleep(0.05)
        self.restarting.add(event.which)
        self.engine_deaths[event.which] += 1
        engine.kill()
        await asyncio.sleep(event.seconds)
        await asyncio.to_thread(engine.start)
        self.restarting.discard(event.which)

    async def on_freeze(self, event: schedule.Event) -> None:
        """SIGSTOP an engine for a while: it hangs, and its connections stay."""
        process = self.engines[event.which].process
        if process is None or event.which in self.restarting:
            return
        process.send_signal(signal.SIGSTOP)
        await asyncio.sleep(event.seconds)
        process.send_signal(signal.SIGCONT)

    async def on_degrade(self, event: schedule.Event) -> None:
        """Let an engine fail half of what it is asked for a while."""
        engine = self.engines[event.which]
        for faults in ({"500": 0.25, "reset": 0.25}, {}):
            with contextlib.suppress(OSError, ValueError):
                await asyncio.to_thread(engine.call, "/__control", {"faults": faults})
            await asyncio.sleep(event.seconds)

    async def on_partition(self, event: schedule.Event) -> None:
        """Let everything between the gateway and an engine vanish for a while."""
        proxy = self.proxies[event.which % len(self.proxies)]
        proxy.set("blackhole")
        await asyncio.sleep(2 * event.seconds)
        proxy.set("heal")

    async def on_disk(self, event: schedule.Event) -> None:
        """Fill the state folder's file system to the last byte, then free it."""
        assert self.gateway is not None
        filler = self.gateway.state / "filler"
        self.full_s = float("inf")
        await asyncio.to_thread(fill, filler)
        until_s = time.monotonic() + event.seconds
        while time.monotonic() < until_s:
            await asyncio.sleep(0.1)
            await asyncio.to_thread(fill, filler)
        filler.unlink(missing_ok=True)
        self.full_s = freed_s = time.monotonic()
        await self._recovered(freed_s, "disk")

    async def on_database(self, event: schedule.Event) -> None:
        """Restart the database without a goodbye."""
        assert self.cluster is not None
        await asyncio.to_thread(self.cluster.restart)
        await self._recovered(time.monotonic(), "database")

    # ---- afterwards --------------------------------------------------------------------------------------

    def judge(self) -> list[str]:
        """Return every violation; the gateway has been stopped, so that all is on disk."""
        rows = self.rows()
        truth = read_truth([engine.log for engine in self.engines])
        wrong = invariants.one_end_each(self.seen, self.windows)
        wrong += invariants.one_row_each(rows)
        wrong += invariants.billed_as_delivered(self.seen, rows, truth, n_lost=N_LOST)
        wrong += [f"recovery took {s:.1f} s" for s in self.recoveries_s if s > self.recovery_max_s]
        wrong += self.verified()
        assert self.gateway is not None
        written = [self.kept, self.ledger, self.gateway.log]
        return wrong + leaks.found([leaks.CANARY, *self.keys.values()], written, self.pages)

    def rows(self) -> list[dict[str, Any]]:
        """Return the ledger's rows."""
        return invariants.ledger_rows(self.ledger)

    @property
    def ledger(self) -> Path:
        """Return the ledger file; the tmpfs is gone by now, so its copy."""
        if self.cluster is not None:
            return self.folder / "ledger.db"
        return self.kept / "ledger.db"

    @property
    def kept(self) -> Path:
        """Return the state folder, or what was kept of it."""
        return self.folder / ("state-kept" if self.mounted else "state")

    def verified(self) -> list[str]:
        """Return nothing where `baseload verify` finds the ledger whole."""
        assert self.gateway is not None
        witness = self.kept / "witness.log"
        words = ["--witness", str(witness)] if witness.exists() else []
        done = self.gateway.baseload("verify", str(self.ledger), *words)
        return [] if done.returncode == 0 else [f"verify: {(done.stdout + done.stderr).strip()[-300:]}"]

    async def settle_down(self) -> list[str]:
        """Heal all, give a moment, and return what engines still compute for clients that are gone."""
        for engine in self.engines:
            if engine.process is None:
                await asyncio.to_thread(engine.start)
        wrong = []
        until_s = time.monotonic() + 8.0
        running: dict[int, int] = {}
        while time.monotonic() < until_s:
            running = {i: e.call("/__stats")["running"] for i, e in enumerate(self.engines)}
            if not any(running.values()):
                break
            await asyncio.sleep(0.2)
        if any(running.values()):
            wrong.append(f"engines still compute for clients that are gone: {running}")
        return wrong + await asyncio.to_thread(self._left_over)

    def _left_over(self) -> list[str]:
        """Return what the gateway, idle now, still holds; and keep what it shows."""
        assert self.gateway is not None
        wrong = leaks.grown(self.gateway, self.before, idle_files=8 * self.n_engines, within_s=8.0)
        self.after = leaks.footprint(self.gateway)
        self.pages = leaks.pages(self.gateway, (self.gateway.state / "admin.token").read_text().strip())
        return wrong


def fill(path: Path) -> None:
    """Write until the file system is full."""
    piece = b"\0" * 65_536
    with path.open("ab", buffering=0) as file:
        for size in (65_536, 4096, 512, 1):
            with contextlib.suppress(OSError):
                while file.write(piece[:size]) == size:
                    pass


async def storm_of(options: argparse.Namespace, folder: Path, say: Any = print) -> tuple[Storm, list[str]]:
    """Run one storm; return it with its violations."""
    storm = Storm(
        seed=options.seed, n_requests=options.requests, folder=folder, users=options.users, workers=options.workers,
        use_postgres=options.postgres, spared=options.spare, say=say,
    )  # fmt: skip
    wrong: list[str] = []
    try:
        await storm.begin()
        await storm.run()
        wrong += await storm.settle_down()
        if storm.cluster is not None:  # while the database still runs
            assert storm.gateway is not None
            storm.gateway.stop()
            export_postgres(storm)
    finally:
        storm.end()
    return storm, wrong + storm.judge()


def export_postgres(storm: Storm) -> None:
    """Write the ledger in PostgreSQL as the SQLite file that `verify` reads; its folder may be a small tmpfs."""
    from baseload.adapters.ledger_postgres import PostgresLedger
    from baseload.adapters.signing import SigningKey

    assert storm.cluster is not None and storm.gateway is not None
    state = storm.gateway.state
    ledger = PostgresLedger.open(storm.cluster.url, SigningKey.load(state / "signing.key"))
    ledger.export(storm.folder / "ledger.db")
    ledger.close()


def tell(storm: Storm, wrong: list[str], took_s: float) -> None:
    """Print what happened."""
    kinds = Counter(s.outcome.kind for s in storm.seen)
    clean = [s for s in storm.seen if not s.fault]
    good = sum(s.outcome.kind == "answer" for s in clean) / max(1, len(clean))
    print(f"chaos seed {storm.seed}: {len(storm.seen)} requests in {took_s:.0f} s; ended as {dict(kinds)}")
    print(f"  events {dict(storm.done)}; without a fault of their own, {good:.1%} were answered")
    if storm.recoveries_s:
        worst = sorted(storm.recoveries_s)
        middle, at_most = worst[len(worst) // 2], storm.recovery_max_s
        print(f"  slowest recovery: {storm.slowest[1]}")
        print(f"  recovery: median {middle:.2f} s, worst {worst[-1]:.2f} s of {len(worst)}, at most {at_most:.1f}")
    for part, (files, rss) in storm.after.items():
        files_were, rss_was = storm.before[part]
        print(f"  {part}: {files_were} open files before, {files} after; {rss_was >> 20} MiB before, {rss >> 20} after")
    for what, why in storm.not_run.items():
        print(f"  not run: {what}: {why}")
    for fault, counts in sorted(invariants.tally(storm.seen).items()):
        print(f"    {fault:12s} {dict(counts)}")
    for line in wrong[:40]:
        print(f"  WRONG {line}")
    if len(wrong) > 40:
        print(f"  … and {len(wrong) - 40} more")


def parse(argv: list[str] | None = None) -> argparse.Namespace:
    p = argparse.ArgumentParser(description="A seeded storm of kills and faults over a whole gateway.")
    p.add_argument("--seed", type=int, default=1)
    p.add_argument("--requests", type=int, default=10_000)
    p.add_argument("--users", type=int, default=32)
    p.add_argument("--workers", type=int, default=2)
    p.add_argument("--postgres", action="store_true", help="keep the ledger in PostgreSQL, and restart that too")
    p.add_argument("--spare", action="store_true", help="kill no process of the gateway, so that what leaks adds up")
    p.add_argument("--keep", type=Path, help="keep all files in this folder")
    p.add_argument("--json", type=Path, help="write the violations here")
    return p.parse_args(argv)


def main(argv: list[str] | None = None) -> int:
    """Run and return 1 where an invariant was broken."""
    options = parse(argv)
    folder = options.keep or Path(tempfile.mkdtemp(prefix="baseload-chaos-"))
    began_s = time.monotonic()
    storm, wrong = asyncio.run(storm_of(options, folder))
    tell(storm, wrong, time.monotonic() - began_s)
    if options.json:
        options.json.write_text(json.dumps(wrong, indent=1))
    if wrong:
        more = " --postgres" if options.postgres else ""
        print(f"repeat: python -m tests.chaos.run --seed {options.seed} --requests {options.requests}{more}")
        print(f"files: {folder}")
        return 1
    if options.keep is None:
        shutil.rmtree(folder, ignore_errors=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
