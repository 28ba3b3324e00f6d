"""Emulated engines as a process: many replicas whose answers come as fast as a step table says, over real HTTP.

    python -m baseload.adapters.engines.emulated_main --spec spec.json
    python -m baseload.adapters.engines.emulated_main --flat-ms 10 --engines 4 --rate-limit 100

A spec is `Spec` as JSON: step tables by name, and engines that use them, a port each (or one port, and /replica/<i>
before the path). Prints one JSON line when ready: {"ready": true, "kind": "emulated", "pid", "ports", "urls"}. Then
standard input takes a command a line and each is answered by a line:
    {"op": "table", "name": "t", "table": {...}}        -> {"did": "table", "name": "t"}
    {"op": "start", "engine": {"name": "a", "table": "t", "model": "chat"}} -> {"did": "start", "name": "a", "port": 1}
    {"op": "stop", "name": "a", "drain_s": 5}          -> {"did": "stop", "name": "a"} once it is empty, or time is up
    {"op": "power", "name": "a", "engines": ["a", "b"], "slow": [1.0, 1.2]} -> {"did": "power", "name": "a"}; a step of i
        tokens takes slow[i] times as long from the next one on (the last for more)
It ends at SIGTERM or when standard input ends. Nothing here validates anything: it is a rehearsal of hardware.
Steps are `step_loop.py`, HTTP is `emulated_http.py`, words and dialects `rehearsal.py`.
"""

from __future__ import annotations

import argparse
import asyncio
import gc
import resource
import signal
import sys
from pathlib import Path
from typing import Any

import msgspec
import uvloop

from baseload.adapters.engines.emulated_http import Door, EngineIn, Spec, World, port_of
from baseload.adapters.engines.process import die_with_parent, say_ready
from baseload.adapters.engines.step_loop import StepTable, flat_table


class Commands(asyncio.Protocol):
    """Standard input: a command a line; its end is ours."""

    def __init__(self, world: World, ended: asyncio.Event) -> None:
        self.world, self.ended = world, ended
        self.text = b""
        self.tasks: set[asyncio.Task[None]] = set()

    def data_received(self, data: bytes) -> None:
        """Do what each whole line says."""
        *lines, self.text = (self.text + data).split(b"\n")
        for line in filter(None, lines):
            task = self.world.loop.create_task(self._do(line))
            self.tasks.add(task)
            task.add_done_callback(self.tasks.discard)

    def connection_lost(self, exc: Exception | None) -> None:
        """The parent has gone."""
        self.ended.set()

    async def _do(self, line: bytes) -> None:
        answer: dict[str, Any] = {}
        try:
            command = msgspec.json.decode(line)
            name = command["engine"]["name"] if command["op"] == "start" else command["name"]
            answer = {"did": command["op"], "name": name}
            if command["op"] == "table":
                self.world.tables[command["name"]] = msgspec.convert(command["table"], StepTable)
            elif command["op"] == "start":
                wants = msgspec.convert(command["engine"], EngineIn)
                answer["port"] = await self.world.start(wants)
            elif command["op"] == "power":
                self.world.slow_down(command["engines"], msgspec.convert(command["slow"], list[float]))
            elif command["op"] == "stop":
                await self.world.stop(command["name"], float(command.get("drain_s", 0.0)))
            else:
                answer["error"] = "no such command"
        except (KeyError, TypeError, ValueError, OSError, msgspec.MsgspecError) as problem:
            answer["error"] = f"{type(problem).__name__}: {problem}"
        sys.stdout.write(msgspec.json.encode(answer).decode() + "\n")
        sys.stdout.flush()


def _spec_of(wants: argparse.Namespace) -> Spec:
    if wants.spec is not None:
        return msgspec.json.decode(Path(wants.spec).read_bytes(), type=Spec)
    table = flat_table(
        wants.flat_ms / 1e3,
        prefill_tokens_per_s=wants.prefill_tokens_per_s,
        max_seqs=wants.slots,
        requests_per_s=wants.rate_limit,
    )
    table = msgspec.structs.replace(table, mean_answer_tokens=wants.mean_answer_tokens)
    engines = [EngineIn(name=f"flat/{i}", table="flat", port=wants.port if i == 0 else 0) for i in range(wants.engines)]
    return Spec(tables={"flat": table}, engines=engines, one_port=wants.one_port, journal=wants.journal)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--spec", help="JSON file: step tables and engines")
    parser.add_argument("--flat-ms", type=float, default=10.0, help="without a spec: every decode step takes this long")
    parser.add_argument("--prefill-tokens-per-s", type=float, default=1e6)
    parser.add_argument("--mean-answer-tokens", type=float, default=64.0)
    parser.add_argument("--rate-limit", type=float, default=0.0, help="requests/s that each engine admits; 0: any")
    parser.add_argument("--slots", type=int, default=256)
    parser.add_argument("--engines", type=int, default=1)
    parser.add_argument("--port", type=int, default=0, help="of the first engine, or the one port; 0: any free")
    parser.add_argument("--one-port", action="store_true", help="all on one port, under /replica/<i>")
    parser.add_argument("--journal", help="file for a line a request, as this side saw it")
    parser.add_argument("--orphan", action="store_true", help="stay when the parent goes")
    return parser


async def _run(wants: argparse.Namespace, spec: Spec) -> None:
    loop = asyncio.get_running_loop()
    ended = asyncio.Event()
    loop.add_signal_handler(signal.SIGTERM, ended.set)
    loop.add_signal_handler(signal.SIGINT, lambda: None)
    world = World(spec, loop)
    ports = [await world.start(engine) for engine in spec.engines]
    urls = [f"http://127.0.0.1:{port}" for port in ports]
    shared = None
    if spec.one_port:
        shared = await world.listen(lambda: Door(world, None), wants.port)
        ports = [port_of(shared)]
        urls = [f"http://127.0.0.1:{ports[0]}/replica/{i}" for i in range(len(spec.engines))]
    if not wants.orphan:
        await loop.connect_read_pipe(lambda: Commands(world, ended), sys.stdin)
    gc.collect()
    gc.freeze()
    say_ready(kind="emulated", ports=ports, urls=urls, names=[engine.name for engine in spec.engines])
    await ended.wait()
    if world.journal is not None:
        world.journal.close()


def main(arguments: list[str] | None = None) -> int:
    """Run the engines until told to end; return the exit code."""
    wants = _parser().parse_args(arguments)
    try:
        spec = _spec_of(wants)
    except (OSError, msgspec.MsgspecError) as problem:
        sys.stderr.write(f"{wants.spec}: {problem}\n")
        return 2
    most = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))  # ten thousand streams are ten thousand files
    if not wants.orphan:
        die_with_parent()
    uvloop.run(_run(wants, spec))
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
