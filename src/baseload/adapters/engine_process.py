"""The provisioner `process`: engines as child processes of the owner, started, warmed, probed, drained and ended here.

An embedded engine is a process of its own; emulated ones share a process, a port each. External engines are only looked
at. Which engine should run is `serve/reconcile.py`'s; how often to try again is too. Children end with their parent
(their standard input ends, and the kernel tells them); they get no secret of ours in their environment. What they print
goes to a bounded log in the state folder; engines print no prompts.

Call it from one event loop, in a thread that lives as long as the process: Linux ends a child when the thread that
started it ends.
"""

from __future__ import annotations

import asyncio
import os
import signal
import sys
import time
from collections import deque
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import msgspec

from baseload.adapters.http_small import HttpProblem, ask
from baseload.adapters.scrape import Scraper, scrape
from baseload.ports import Engine, EngineError, EngineStart

LOG_BYTES_MAX = 262_144
LINE_BYTES_MAX = 1 << 20
TERM_S = 3.0  # to end when asked, before it is made to
LAST_LINES = 3
READY = "ready"
EMULATED = "emulated"  # name of the process that all emulated engines share
PASSED_ON = ("PATH", "HOME", "LANG", "LC_ALL", "TMPDIR", "LD_LIBRARY_PATH", "VIRTUAL_ENV", "PYTHONPATH", "PYTHONHOME",
             "PYTHONDONTWRITEBYTECODE", "XDG_CACHE_HOME", "BASELOAD_CACHE", "SYSTEMROOT")  # fmt: skip


class Child:
    """A process that says in a line when it is ready, and whose end somebody wants to know."""

    def __init__(self, name: str, log: Path) -> None:
        self.name, self.log = name, log
        self.last: deque[str] = deque(maxlen=LAST_LINES)
        self.answers: dict[str, asyncio.Future[dict[str, Any]]] = {}
        self.told_to_end = False
        self.process: asyncio.subprocess.Process
        self.tasks: list[asyncio.Task[None]] = []

    async def start(self, module: str, arguments: list[str]) -> None:
        """Start `python -m module`."""
        environment = {name: os.environ[name] for name in PASSED_ON if name in os.environ}
        self.process = await asyncio.create_subprocess_exec(
            sys.executable, "-m", module, *arguments,
            stdin=asyncio.subprocess.PIPE, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.PIPE,
            env=environment, limit=LINE_BYTES_MAX,
        )  # fmt: skip
        assert self.process.stdout is not None and self.process.stderr is not None
        self.tasks = [
            asyncio.create_task(self._read(self.process.stdout, answers=True)),
            asyncio.create_task(self._read(self.process.stderr, answers=False)),
        ]

    async def _read(self, pipe: asyncio.StreamReader, *, answers: bool) -> None:
        """Pass on what is an answer, and log the rest: the newest lines, up to twice LOG_BYTES_MAX."""
        while True:
            try:
                line = await pipe.readline()
            except ValueError:
                continue  # a line beyond all measure: its beginning was dropped
            if not line:
                return
            if answers and line.startswith(b"{"):
                try:
                    self._answered(msgspec.json.decode(line, type=dict[str, Any]))
                    continue
                except msgspec.DecodeError:
                    pass
            self.last.append(line.decode("utf-8", "replace").strip()[:500])
            self._write(line[:4096])

    def _write(self, line: bytes) -> None:
        try:
            if self.log.exists() and self.log.stat().st_size > LOG_BYTES_MAX:
                self.log.replace(self.log.with_suffix(".old"))
            with self.log.open("ab") as file:
                file.write(line)
        except OSError:
            return  # a full disk must not end the engines

    def _answered(self, answer: dict[str, Any]) -> None:
        key = READY if answer.get("ready") else f"{answer.get('did')} {answer.get('name')}"
        waiting = self.answers.get(key)
        if waiting is not None and not waiting.done():
            waiting.set_result(answer)

    async def answer(self, key: str, timeout_s: float) -> dict[str, Any]:
        """Return its answer to `key`; raises EngineError when it ends or says nothing."""
        getting: asyncio.Future[dict[str, Any]] = asyncio.get_running_loop().create_future()
        self.answers[key] = getting
        ending = asyncio.ensure_future(self.process.wait())
        either: set[asyncio.Future[Any]] = {getting, ending}
        try:
            await asyncio.wait(either, timeout=timeout_s, return_when=asyncio.FIRST_COMPLETED)
            if getting.done():
                return getting.result()
            if ending.done():
                await asyncio.wait(self.tasks, timeout=1.0)
                raise EngineError(f"{self.name}: {self.why()}")
            raise EngineError(f"{self.name}: no answer in {timeout_s:g} s; give it longer, or see {self.log}")
        finally:
            del self.answers[key]
            ending.cancel()

    def why(self) -> str:
        """Return how it ended, with its last words."""
        code = self.process.returncode
        how = f"ended with code {code}"
        if code is not None and code < 0:
            how = f"ended by {signal.Signals(-code).name}" if -code in set(signal.Signals) else f"ended by {-code}"
        return how + (f": {' | '.join(self.last)}" if self.last else "")

    async def end(self, term_s: float = TERM_S) -> None:
        """Ask it to end; make it where it does not."""
        self.told_to_end = True
        if self.process.returncode is None:
            for send, wait_s in ((self.process.terminate, term_s), (self.process.kill, 5.0)):
                try:
                    send()
                except ProcessLookupError:
                    break
                try:
                    await asyncio.wait_for(self.process.wait(), wait_s)
                    break
                except TimeoutError:
                    continue
        if self.process.stdin is not None:
            self.process.stdin.close()
        await asyncio.wait(self.tasks, timeout=1.0)


class ProcessProvisioner:
    """Engines as child processes (ports.Provisioner)."""

    def __init__(
        self,
        state: Path,
        *,
        tables: Mapping[str, Mapping[str, Any]] | None = None,
        ended: Callable[[str, str], None] = lambda name, why: None,
        seed: int = 0,
        journal: Path | None = None,
    ) -> None:
        """`tables` are the step tables of emulated engines by name; `ended(name, why)` hears of unforeseen ends."""
        self.logs = state / "engines"
        self.tables = dict(tables or {})
        self.ended, self.seed, self.journal = ended, seed, journal
        self.children: dict[str, Child] = {}
        self.running: dict[str, tuple[EngineStart, Engine]] = {}
        self.watches: set[asyncio.Task[None]] = set()
        self.emulated_turn = asyncio.Lock()
        self.told: dict[str, Mapping[str, Any]] = {}  # step tables that the emulated engines' process has

    def take_tables(self, tables: Mapping[str, Mapping[str, Any]], keep: Iterable[str] = ()) -> None:
        """Take up step tables for emulated engines that are started from now on; of the older ones `keep` some."""
        kept = {name: self.tables[name] for name in keep if name in self.tables}
        self.tables = kept | {name: dict(table) for name, table in tables.items()}

    async def start(self, order: EngineStart) -> Engine:
        """Return the engine once it answers; raises EngineError."""
        if order.name in self.running:
            raise EngineError(f"{order.name}: is started already")
        started_s = time.monotonic()
        ways = {"external": self._look_at, "emulated": self._start_emulated, "embedded": self._start_embedded}
        try:
            engine = await ways[order.kind](order)
            if order.kind != "external" and order.warm:
                await _warm(engine.url, order)
        except BaseException:  # a start that is called off leaves nothing behind either
            await self._end(order)
            raise
        child = self.children.get(self._child_name(order))
        if order.kind != "external" and (child is None or child.process.returncode is not None):
            raise EngineError(f"{order.name}: ended while it was started")
        engine = engine._replace(ready_s=time.monotonic() - started_s)
        self.running[order.name] = (order, engine)
        return engine

    async def probe(self, name: str) -> bool:
        """Say whether the engine answers its health question."""
        if name not in self.running:
            return False
        _, engine = self.running[name]
        return (await scrape(engine.url, kind="none", timeout_s=1.5)).healthy

    async def stop(self, name: str, drain_s: float) -> None:
        """End it: what runs gets `drain_s`, then it is asked, then made to."""
        if name not in self.running:
            if name in self.children:  # still starting: its start ends with an EngineError
                await self.children.pop(name).end()
            return
        order, engine = self.running.pop(name)
        if order.kind == "embedded":
            await _until_idle(engine.url, drain_s)
        if order.kind != "external":
            await self._end(order, drain_s)

    async def slow_down(self, names: Sequence[str], factors: Sequence[float]) -> None:
        """Let emulated engines take that many times longer for a step, by its tokens; raises EngineError."""
        child = self.children.get(EMULATED)
        if child is not None:
            await _command(child, "power", names[0], 5.0, engines=list(names), slow=list(factors))

    async def close(self) -> None:
        """End them all, at once."""
        self.running.clear()
        await asyncio.gather(*(child.end() for child in self.children.values()))
        self.children.clear()
        for watch in tuple(self.watches):
            watch.cancel()

    # ---- how each kind is started ----------------------------------------------------------------------

    def _child_name(self, order: EngineStart) -> str:
        return EMULATED if order.kind == "emulated" else order.name

    async def _look_at(self, order: EngineStart) -> Engine:
        seen = await scrape(order.url, kind="none", api_key=os.environ.get(order.key_env, "") if order.key_env else "")
        if not seen.healthy:
            raise EngineError(f"{order.name}: {order.url} is not healthy ({seen.reason})")
        return Engine(order.name, order.kind, order.url.rstrip("/"), order.digest, 0, 0.0)

    async def _start_embedded(self, order: EngineStart) -> Engine:
        arguments = ["--gguf", order.gguf, "--slots", str(order.slots), "--context", str(order.context_tokens)]
        arguments += ["--alias", order.model or "tiny", "--digest", order.digest]
        child = await self._child(order.name, "baseload.adapters.engines.embedded_main", arguments)
        ready = await child.answer(READY, order.start_s)
        url = f"http://127.0.0.1:{ready['ports'][0]}"
        return Engine(order.name, order.kind, url, ready["model_digest"], child.process.pid, 0.0)

    async def _start_emulated(self, order: EngineStart) -> Engine:
        if order.table not in self.tables:
            raise EngineError(f"{order.name}: no step table {order.table!r}; hand it to the provisioner")
        async with self.emulated_turn:  # one process for all, however many ask at once
            child = self.children.get(EMULATED)
            if child is None or child.process.returncode is not None:
                child = await self._start_emulated_host(order.start_s)
            elif self.told.get(order.table) != self.tables[order.table]:
                table = self.told[order.table] = self.tables[order.table]
                await _command(child, "table", order.table, order.start_s, table=table)
        engine = {"name": order.name, "table": order.table, "model": order.model}
        did = await _command(child, "start", order.name, order.start_s, engine=engine)
        if order.cold_s > 0.0:
            await asyncio.sleep(order.cold_s)  # as long as its weights would take to load
        url = f"http://127.0.0.1:{did['port']}"
        return Engine(order.name, order.kind, url, order.digest, child.process.pid, 0.0)

    async def _start_emulated_host(self, start_s: float) -> Child:
        self.logs.mkdir(parents=True, exist_ok=True, mode=0o700)
        self.told = dict(self.tables)
        spec: dict[str, Any] = {"tables": self.tables, "seed": self.seed}
        if self.journal is not None:
            spec["journal"] = str(self.journal)
        path = self.logs / "emulated.json"
        path.write_bytes(msgspec.json.encode(spec))
        child = await self._child(EMULATED, "baseload.adapters.engines.emulated_main", ["--spec", str(path)])
        try:
            await child.answer(READY, start_s)
        except EngineError:
            self.children.pop(EMULATED, None)
            await child.end(term_s=0.5)
            raise
        return child

    async def _child(self, name: str, module: str, arguments: list[str]) -> Child:
        self.logs.mkdir(parents=True, exist_ok=True, mode=0o700)
        child = Child(name, self.logs / (name.replace("/", "-") + ".log"))
        await child.start(module, arguments)
        self.children[name] = child
        watch = asyncio.create_task(self._watch(child))
        self.watches.add(watch)
        watch.add_done_callback(self.watches.discard)
        return child

    async def _watch(self, child: Child) -> None:
        """Tell of an end that nobody asked for."""
        await child.process.wait()
        if child.told_to_end:
            return
        await asyncio.wait(child.tasks, timeout=1.0)
        gone = [name for name, (order, _) in self.running.items() if self._child_name(order) == child.name]
        if self.children.get(child.name) is child:
            del self.children[child.name]
        for name in gone:
            del self.running[name]
            self.ended(name, child.why())

    async def _end(self, order: EngineStart, drain_s: float = 0.0) -> None:
        """End what was started for the order, if anything was."""
        child = self.children.get(self._child_name(order))
        if child is None or order.kind == "external":
            return
        if order.kind == "emulated":
            try:
                await _command(child, "stop", order.name, drain_s + 5.0, drain_s=drain_s)
            except EngineError:
                return  # it never was, or the whole process is gone
        else:
            del self.children[child.name]
            await child.end()


async def _command(child: Child, op: str, name: str, timeout_s: float, **what: Any) -> dict[str, Any]:
    """Send a command to the emulated engines' process; return its answer."""
    assert child.process.stdin is not None
    answering = asyncio.ensure_future(child.answer(f"{op} {name}", timeout_s))
    try:
        child.process.stdin.write(msgspec.json.encode({"op": op, "name": name, **what}) + b"\n")
        await child.process.stdin.drain()
    except OSError:
        answering.cancel()
        raise EngineError(f"{child.name}: {child.why()}") from None
    did = await answering
    if "error" in did:
        raise EngineError(f"{child.name}: {did['error']}")
    return did


async def _warm(url: str, order: EngineStart) -> None:
    """Send one short request; an engine that answers it with an error is not ready."""
    body = {"model": order.model, "messages": [{"role": "user", "content": "ready?"}], "max_tokens": 1}
    try:
        answer = await ask(f"{url}/v1/chat/completions", body=msgspec.json.encode(body), timeout_s=order.start_s)
    except HttpProblem as problem:
        raise EngineError(f"{order.name}: its first request failed ({problem})") from None
    if answer.status >= 500:
        raise EngineError(f"{order.name}: its first request was answered with {answer.status}")


async def _until_idle(url: str, drain_s: float) -> None:
    """Wait until nothing runs or waits at an engine, at most `drain_s`."""
    until_s = time.monotonic() + drain_s
    scraper = Scraper(url, timeout_s=1.0)
    while time.monotonic() < until_s:
        seen = await scraper.look()
        if not seen.healthy or (seen.running <= 0 and seen.waiting <= 0):
            return
        await asyncio.sleep(0.05)
