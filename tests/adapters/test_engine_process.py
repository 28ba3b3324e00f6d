"""Engines that Baseload starts itself: real processes, real HTTP, a real llama.cpp."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Coroutine
from pathlib import Path
from typing import Any, TypeVar

import pytest

from baseload.adapters import tiny_gguf
from baseload.adapters.engine_process import ProcessProvisioner
from baseload.adapters.engines.step_loop import flat_table
from baseload.adapters.http_small import HttpProblem, ask
from baseload.adapters.scrape import scrape
from baseload.ports import EngineError, EngineStart

pytest.importorskip("xllamacpp")

T = TypeVar("T")
FLAT = {"flat": flat_table(0.005)}


@pytest.fixture(scope="module")
def gguf(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the tiny model's file."""
    return tiny_gguf.cached(folder=tmp_path_factory.mktemp("models"))


def run(coroutine: Coroutine[Any, Any, T]) -> T:
    """Run a coroutine to its end, within a minute."""
    return asyncio.run(asyncio.wait_for(coroutine, 60.0))


def embedded(gguf: Path, name: str = "chat/oslo/0", **more: Any) -> EngineStart:
    """Return the order for an embedded engine."""
    return EngineStart(name=name, kind="embedded", model="chat", gguf=str(gguf), **more)


def tables() -> dict[str, Any]:
    """Return a step table as JSON would carry it."""
    import msgspec

    return {"flat": msgspec.to_builtins(FLAT["flat"])}


async def chat(url: str, **more: Any) -> dict[str, Any]:
    """Return the answer to a short chat."""
    body = {"model": "chat", "messages": [{"role": "user", "content": "hello"}], "max_tokens": 4} | more
    answer = await ask(f"{url}/v1/chat/completions", body=json.dumps(body).encode(), timeout_s=20.0)
    assert answer.status == 200, answer
    return json.loads(answer.body)


def gone(pid: int, within_s: float = 5.0) -> bool:
    """Say whether a process is gone, or about to be reaped."""
    until_s = time.monotonic() + within_s
    while time.monotonic() < until_s:
        try:
            state = Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0]
        except (FileNotFoundError, ProcessLookupError):
            return True
        if state == "Z":
            return True
        time.sleep(0.02)
    return False


def test_an_embedded_engine_starts_answers_and_is_gone_when_stopped(gguf: Path, tmp_path: Path):
    """A real engine comes up warm, answers with readable words and a digest, and leaves no process behind."""

    async def life() -> tuple[int, dict[str, Any], str]:
        provisioner = ProcessProvisioner(tmp_path)
        engine = await provisioner.start(embedded(gguf))
        answer = await chat(engine.url, ignore_eos=True)  # random weights may choose to end at any word
        assert await provisioner.probe(engine.name)
        await provisioner.stop(engine.name, drain_s=5.0)
        assert not await provisioner.probe(engine.name)
        await provisioner.stop(engine.name, drain_s=5.0)  # of no consequence
        with pytest.raises(HttpProblem):
            await ask(f"{engine.url}/health", timeout_s=0.5)
        return engine.pid, answer, engine.model_digest

    pid, answer, digest = run(life())

    assert answer["usage"]["completion_tokens"] == 4
    assert set(answer["choices"][0]["message"]["content"].split()) <= set(tiny_gguf.WORDS)
    assert digest == tiny_gguf.file_digest(gguf)
    assert gone(pid)


@pytest.mark.parametrize("slots", [1, 3, 5])
def test_an_engine_has_any_number_of_slots(gguf: Path, tmp_path: Path, slots: int):
    """llama.cpp starts and answers with one slot and with an odd number of them, into which its batch does not divide."""

    async def life() -> None:
        provisioner = ProcessProvisioner(tmp_path)
        try:
            engine = await provisioner.start(embedded(gguf, slots=slots))
            answers = await asyncio.gather(*(chat(engine.url, max_tokens=4) for _ in range(slots + 1)))
            assert all(answer["choices"] for answer in answers)
        finally:
            await provisioner.close()

    run(life())


def test_an_engine_that_is_killed_is_reported_once_and_starts_again(gguf: Path, tmp_path: Path):
    """Whoever drives the provisioner hears which engine went and how, and may start the same name anew."""
    heard: list[tuple[str, str]] = []

    async def life() -> None:
        provisioner = ProcessProvisioner(tmp_path, ended=lambda name, why: heard.append((name, why)))
        engine = await provisioner.start(embedded(gguf))
        os.kill(engine.pid, signal.SIGKILL)
        while not heard:
            await asyncio.sleep(0.02)
        again = await provisioner.start(embedded(gguf))
        assert again.pid != engine.pid
        await chat(again.url)
        await provisioner.close()

    run(life())

    assert heard == [("chat/oslo/0", "ended by SIGKILL")]


def test_emulated_engines_share_a_process_and_come_and_go_by_name(tmp_path: Path):
    """Many emulated engines cost one process; one of them stops without the others noticing."""

    async def life() -> None:
        provisioner = ProcessProvisioner(tmp_path, tables=tables())
        orders = [EngineStart(name=f"chat/oslo/{i}", kind="emulated", model="chat", table="flat") for i in range(20)]
        engines = await asyncio.gather(*(provisioner.start(order) for order in orders))
        assert len({engine.pid for engine in engines}) == 1
        assert len({engine.url for engine in engines}) == 20
        slow = asyncio.create_task(chat(engines[0].url, max_tokens=200, ignore_eos=True))  # a second
        await asyncio.sleep(0.1)
        await provisioner.stop(engines[0].name, drain_s=5.0)
        assert (await slow)["usage"]["completion_tokens"] == 200  # it was let finish
        with pytest.raises(HttpProblem):
            await ask(f"{engines[0].url}/health", timeout_s=0.5)
        assert all(await asyncio.gather(*(provisioner.probe(engine.name) for engine in engines[1:])))
        await provisioner.start(orders[0])
        await provisioner.close()

    run(life())


def test_a_process_of_many_emulated_engines_that_dies_reports_each(tmp_path: Path):
    """Each engine of a process that was killed is reported, and they start again in a new one."""
    heard: list[str] = []

    async def life() -> None:
        provisioner = ProcessProvisioner(tmp_path, tables=tables(), ended=lambda name, why: heard.append(name))
        orders = [EngineStart(name=f"a/b/{i}", kind="emulated", table="flat") for i in range(3)]
        engines = [await provisioner.start(order) for order in orders]
        os.kill(engines[0].pid, signal.SIGKILL)
        while len(heard) < 3:
            await asyncio.sleep(0.02)
        await chat((await provisioner.start(orders[1])).url)
        await provisioner.close()

    run(life())

    assert sorted(heard) == ["a/b/0", "a/b/1", "a/b/2"]


def test_what_cannot_start_says_why(gguf: Path, tmp_path: Path):
    """A missing model, a broken one, an unknown step table and a dead address each end in a sentence, not a hang."""
    broken = tmp_path / "broken.gguf"
    broken.write_bytes(b"GGUF" + bytes(100))

    async def life() -> list[str]:
        provisioner = ProcessProvisioner(tmp_path)
        said = []
        for order in (
            EngineStart(name="a/b/0", kind="embedded", gguf=str(tmp_path / "none.gguf")),
            EngineStart(name="a/b/1", kind="embedded", gguf=str(broken)),
            EngineStart(name="a/b/2", kind="emulated", table="none"),
            EngineStart(name="a/b/3", kind="external", url="http://127.0.0.1:9"),
        ):
            with pytest.raises(EngineError) as problem:
                await provisioner.start(order)
            said.append(str(problem.value))
        await provisioner.close()
        return said

    said = run(life())

    assert "no such model file" in said[0]
    assert "ended" in said[1]
    assert "no step table" in said[2]
    assert "not healthy" in said[3]


def test_engines_end_with_their_parent_however_it_dies(gguf: Path):
    """A parent killed with SIGKILL takes its engines along within seconds: no orphan keeps a port or a core."""
    program = (
        "import asyncio, sys\nfrom pathlib import Path\n"
        "from baseload.adapters.engine_process import ProcessProvisioner\n"
        "from baseload.ports import EngineStart\n"
        "async def main():\n"
        "    p = ProcessProvisioner(Path(sys.argv[2]), tables={'flat': {'base_s': [0.01, 0.01], 'head_s': [0.0, 0.0]}})\n"
        "    a = await p.start(EngineStart(name='a', kind='embedded', gguf=sys.argv[1]))\n"
        "    b = await p.start(EngineStart(name='b', kind='emulated', table='flat'))\n"
        "    print(a.pid, b.pid, flush=True)\n"
        "    await asyncio.sleep(60)\n"
        "asyncio.run(main())\n"
    )
    folder = str(gguf.parent)
    parent = subprocess.Popen([sys.executable, "-c", program, str(gguf), folder], stdout=subprocess.PIPE, text=True)
    assert parent.stdout is not None
    pids = [int(word) for word in parent.stdout.readline().split()]
    parent.kill()
    parent.wait()
    parent.stdout.close()

    assert len(pids) == 2
    assert all(gone(pid) for pid in pids)


def test_an_engine_gets_no_secret_of_ours(gguf: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """The environment of an engine holds what it needs to run, not the ledger's address or anybody's key."""
    monkeypatch.setenv("LEDGER_DSN", "secret")

    async def life() -> bytes:
        provisioner = ProcessProvisioner(tmp_path)
        engine = await provisioner.start(embedded(gguf))
        environment = Path(f"/proc/{engine.pid}/environ").read_bytes()
        await provisioner.close()
        return environment

    assert b"LEDGER_DSN" not in run(life())


def test_a_prompt_is_in_no_log_of_an_engine(gguf: Path, tmp_path: Path):
    """What a customer wrote is not written down by the engines we start, and not told by /slots."""
    canary = "canary-5d1f0a"

    async def life() -> bytes:
        provisioner = ProcessProvisioner(tmp_path, tables=tables(), journal=tmp_path / "journal.jsonl")
        engines = [
            await provisioner.start(embedded(gguf)),
            await provisioner.start(EngineStart(name="e", kind="emulated", table="flat")),
        ]
        told = b""
        for engine in engines:
            await chat(engine.url, messages=[{"role": "user", "content": canary}])
            with pytest.raises(AssertionError):
                await chat(engine.url, messages=[{"role": "user", "content": canary}], max_tokens="many")
            for path in ("/slots", "/metrics", "/props"):
                told += (await ask(engine.url + path)).body
        await provisioner.close()
        return told

    told = run(life())

    assert canary.encode() not in told
    written = [path for path in tmp_path.rglob("*") if path.is_file()]
    assert written
    assert not any(canary.encode() in path.read_bytes() for path in written)


def test_llama_cpp_is_seen_as_what_it_is(gguf: Path, tmp_path: Path):
    """Health, queue and free slots of a real llama.cpp are read without being told what it is."""

    async def life() -> tuple[Any, Any]:
        provisioner = ProcessProvisioner(tmp_path)
        engine = await provisioner.start(embedded(gguf, slots=2))
        idle = await scrape(engine.url)
        many = [asyncio.create_task(chat(engine.url, max_tokens=600, ignore_eos=True)) for _ in range(5)]
        until_s = time.monotonic() + 5.0
        while (busy := await scrape(engine.url)).waiting < 3 and time.monotonic() < until_s:
            await asyncio.sleep(0.02)
        await asyncio.gather(*many)
        await provisioner.close()
        return idle, busy

    idle, busy = run(life())

    assert idle[:5] == (True, 0, 0, 1.0, "llamacpp")
    assert (busy.running, busy.waiting, busy.kv_free) == (2, 3, 0.0)


def test_a_start_that_is_called_off_leaves_nothing(gguf: Path, tmp_path: Path):
    """An engine that is stopped, or whose start is cancelled, before it was ready is gone, and may be started again."""

    async def life() -> None:
        provisioner = ProcessProvisioner(tmp_path, tables=tables())
        starting = asyncio.create_task(provisioner.start(embedded(gguf)))
        while "chat/oslo/0" not in provisioner.children:
            await asyncio.sleep(0.001)
        await provisioner.stop("chat/oslo/0", drain_s=1.0)
        with pytest.raises(EngineError):
            await starting
        slow = EngineStart(name="e", kind="emulated", table="flat", cold_s=30.0)
        starting = asyncio.create_task(provisioner.start(slow))
        await asyncio.sleep(1.0)
        starting.cancel()
        with pytest.raises(asyncio.CancelledError):
            await starting
        for order in (embedded(gguf), slow._replace(cold_s=0.0)):
            await chat((await provisioner.start(order)).url)
        await provisioner.close()

    run(life())


@pytest.mark.slow
def test_an_engine_that_hangs_is_noticed_and_ended(gguf: Path, tmp_path: Path):
    """A frozen process fails its probe within seconds, and is ended although it cannot hear the request to end."""

    async def life() -> tuple[int, float]:
        provisioner = ProcessProvisioner(tmp_path)
        engine = await provisioner.start(embedded(gguf))
        os.kill(engine.pid, signal.SIGSTOP)
        await asyncio.sleep(0.3)  # all its threads
        started_s = time.monotonic()
        assert not await provisioner.probe(engine.name)
        await provisioner.stop(engine.name, drain_s=10.0)
        return engine.pid, time.monotonic() - started_s

    pid, took_s = run(life())

    assert gone(pid)
    assert took_s < 9.0


def test_several_real_engines_share_a_process_where_memory_is_short(gguf: Path):
    """Three engines in one process answer on ports of their own, for less memory than three processes."""
    command = [sys.executable, "-m", "baseload.adapters.engines.embedded_main", "--gguf", str(gguf), "--engines", "3"]
    process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    assert process.stdin is not None and process.stdout is not None
    ready = json.loads(process.stdout.readline())
    try:
        answers = [run(chat(f"http://127.0.0.1:{port}", ignore_eos=True)) for port in ready["ports"]]
        rss_mb = int(Path(f"/proc/{process.pid}/statm").read_text().split()[1]) * 4096 / 1e6
    finally:
        process.stdin.close()
        assert process.wait(5.0) == 0
        process.stdout.close()

    assert len(set(ready["ports"])) == 3
    assert all(answer["usage"]["completion_tokens"] == 4 for answer in answers)
    assert rss_mb < 200


def test_an_engine_asked_to_end_ends(gguf: Path):
    """SIGTERM ends both kinds of engine within a second, whatever they do."""
    for arguments in (["embedded_main", "--gguf", str(gguf)], ["emulated_main", "--flat-ms", "5"]):
        command = [sys.executable, "-m", f"baseload.adapters.engines.{arguments[0]}", *arguments[1:]]
        process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        assert process.stdin is not None and process.stdout is not None
        json.loads(process.stdout.readline())
        process.terminate()
        assert process.wait(5.0) == 0
        process.stdin.close()
        process.stdout.close()
