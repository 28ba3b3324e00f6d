"""A fleet file that gains and loses sites, replicas and tenants while requests run: nothing is dropped, bills are right."""

from __future__ import annotations

import asyncio
import http.client
import json
import os
import signal
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.chaos.client import Outcome, Request, Wire, ask
from tests.chaos.invariants import ledger_rows
from tests.chaos.stack import Gateway, MockEngine, fleet_text

PARIS = """\
  paris:
    place: paris
    grid: [{power_mw: 1.0, energised: 2023-01-01}]
    contracts: [{power_mw: 1.0, price_per_mwh: 50}]
    racks: {h100: {accelerator: h100-sxm, accelerators_per_rack: 8, racks: 8}}
"""
NEWCOMER = "  aaa: {share: 5, price: {input_per_mtok: 900, output_per_mtok: 900}}\n"  # before all others in the file


def fleet_of(sites: dict[str, list[str]], *, newcomer: bool = False) -> str:
    """Return a fleet file with these sites and engines."""
    text = fleet_text(sites.get("frankfurt", []), sites.get("oslo", []), workers=2)
    if "oslo" not in sites:
        head, _, rest = text.partition("  oslo:\n")
        text = head + rest[rest.index("models:") :]
    if "paris" in sites:
        text = text.replace("models:\n", PARIS + "models:\n")
        text = text.replace("    sites: {", f"    sites: {{paris: {{min: {len(sites['paris'])}}}, ")
        text = text.replace("urls: {", f"urls: {{paris: [{', '.join(sites['paris'])}], ")
    if newcomer:
        text = text.replace("tenants:\n", "tenants:\n" + NEWCOMER)
    return text


class Rig:
    """Engines, a gateway whose file can be exchanged, and streams over it."""

    def __init__(self, folder: Path, n_engines: int) -> None:
        self.engines = [MockEngine(folder / f"engine-{i}.truth").start() for i in range(n_engines)]
        self.fleet, self.state = folder / "fleet.yaml", folder / "state"
        self.state.mkdir(mode=0o700)
        self.gateway = Gateway(self.fleet, self.state)
        self.key = ""

    def urls(self, *numbers: int) -> list[str]:
        """Return engines' addresses."""
        return [self.engines[i].url for i in numbers]

    def begin(self, text: str) -> None:
        """Start the gateway."""
        self.fleet.write_text(text)
        self.gateway.start()
        self.key = self.gateway.key("acme")

    async def reload(self, text: str) -> None:
        """Exchange the fleet file, and wait until it is taken up."""
        seen = self.said().count("reload")
        self.fleet.write_text(text)
        assert self.gateway.process is not None
        os.kill(self.gateway.process.pid, signal.SIGHUP)
        until_s = time.monotonic() + 15.0
        while self.said().count("reload") == seen:
            assert time.monotonic() < until_s, self.said()
            await asyncio.sleep(0.02)

    def said(self) -> str:
        """Return what the gateway has told its operator."""
        return self.gateway.log.read_text()

    def stream(self, i: int, tokens: int, gap_ms: int, key: str = "") -> asyncio.Task[Outcome]:
        """Begin a request."""

        async def one() -> Outcome:
            wire = Wire("127.0.0.1", self.gateway.port)
            knobs = f"@gap_ms={gap_ms} @n={tokens}"
            out = await ask(wire, Request(prompt=f"{i} {knobs}", n=tokens, key=key or self.key, deadline_s=30))
            wire.drop()
            return out

        return asyncio.create_task(one())

    async def streams(self, n: int, tokens: int = 4, gap_ms: int = 1) -> Counter[str]:
        """Send some, expect whole answers, and return where they ran."""
        ended = await asyncio.gather(*(self.stream(i, tokens, gap_ms) for i in range(n)))
        assert {out.kind for out in ended} == {"answer"}, [(out.kind, out.why) for out in ended]
        return Counter(out.headers["x-baseload-replica"] for out in ended)

    def control(self, method: str, path: str) -> Any:
        """Ask the control listener as an admin."""
        connection = http.client.HTTPConnection("127.0.0.1", self.gateway.control_port, timeout=10)
        token = (self.state / "admin.token").read_text().strip()
        connection.request(method, path, headers={"Authorization": f"Bearer {token}"})
        answer = connection.getresponse()
        told = json.loads(answer.read())
        connection.close()
        return told.get("snapshot", told)

    async def idle(self, names: set[str]) -> None:
        """Wait until these replicas are shown, and nothing runs anywhere: no count has leaked."""
        until_s = time.monotonic() + 8.0
        while True:
            shown = self.control("GET", "/api/snapshot")
            open_now = {one["name"]: one["outstanding"] for one in shown["replicas"]}
            if open_now == dict.fromkeys(names, 0) and shown["totals"]["streams_open"] == 0:
                return
            assert time.monotonic() < until_s, (open_now, shown["totals"])
            await asyncio.sleep(0.2)

    def control_is_down(self) -> bool:
        """Say whether the owner is away."""
        try:
            return not self.control("GET", "/api/snapshot")["replicas"]
        except (OSError, http.client.HTTPException):
            return True

    def end(self) -> None:
        """Stop all."""
        self.gateway.stop()
        for engine in self.engines:
            engine.kill()


@pytest.fixture
def rig(tmp_path: Path) -> Iterator[Rig]:
    """Five engines, and a gateway that is not started yet."""
    made = Rig(tmp_path, 5)
    yield made
    made.end()


def test_a_site_comes_another_goes_and_no_stream_ends(rig: Rig) -> None:
    """Paris comes with two replicas and Oslo goes while streams run on Oslo: they end whole, and are billed as opened there."""
    before = {"frankfurt": rig.urls(0), "oslo": rig.urls(1, 2)}
    after = {"frankfurt": rig.urls(0), "paris": rig.urls(3, 4)}
    rig.begin(fleet_of(before))

    async def run() -> None:
        running = [rig.stream(i, 60, 50) for i in range(12)]
        await asyncio.sleep(0.8)
        await rig.reload(fleet_of(after, newcomer=True))
        assert not any(task.done() for task in running), "they have to be in flight for this to mean anything"
        where = await rig.streams(24)
        assert set(where) == {"chat/frankfurt/0", "chat/paris/0", "chat/paris/1"}, where
        ended = await asyncio.gather(*running)
        assert [out.kind for out in ended] == ["answer"] * 12 and {out.received for out in ended} == {60}
        ran = Counter(out.headers["x-baseload-site"] for out in ended)
        assert ran["oslo"] >= 4 and ran["paris"] == 0, ran
        await settled_as_run(rig, ended)
        await back_again(rig, before)

    asyncio.run(run())
    rig.gateway.stop()
    assert rig.gateway.baseload("verify", str(rig.state / "ledger.db")).returncode == 0


async def settled_as_run(rig: Rig, ended: list[Outcome]) -> None:
    """Assert that each row names the site that answered and acme's price, not that of who stands at its row now."""
    numbers = {int(out.rid.removeprefix("req-"), 16): out for out in ended}
    until_s = time.monotonic() + 5.0
    rows: dict[int, dict[str, Any]] = {}
    while set(numbers) - set(rows):
        assert time.monotonic() < until_s
        await asyncio.sleep(0.05)
        found = ledger_rows(rig.state / "ledger.db")
        rows = {row["request_id"]: row for row in found if row["kind"] == "settle"}
    for number, out in numbers.items():
        row = rows[number]
        assert row["site"] == out.headers["x-baseload-site"] and row["output_tokens"] == 60
        assert row["price_nano"] == row["input_tokens"] * 500 + 60 * 2000
    names = {"chat/frankfurt/0", "chat/paris/0", "chat/paris/1"}
    await rig.idle(names)
    assert {site["name"] for site in rig.control("GET", "/api/snapshot")["sites"]} == {"frankfurt", "paris"}


async def back_again(rig: Rig, before: dict[str, list[str]]) -> None:
    """Assert that the old file can be put back, over a dead worker and a dead owner."""
    await rig.reload(fleet_of(before))
    assert set(await rig.streams(24)) == {"chat/frankfurt/0", "chat/oslo/0", "chat/oslo/1"}
    for part in ("serve.worker", "owner_main"):
        os.kill(rig.gateway.part(part)[0], signal.SIGKILL)
        await asyncio.sleep(0.3)
        until_s = time.monotonic() + 15.0
        while True:
            out = await rig.stream(0, 2, 1)
            if out.kind == "answer" and not rig.control_is_down():
                break
            assert time.monotonic() < until_s, (out.kind, out.why, rig.said())
            await asyncio.sleep(0.1)
    assert set(await rig.streams(24)) == {"chat/frankfurt/0", "chat/oslo/0", "chat/oslo/1"}


def test_replicas_of_a_site_come_and_go_beyond_the_board(rig: Rig, tmp_path: Path) -> None:
    """From one replica to ten (a larger board) and back to one, while streams run without a pause: none is torn."""
    rig.begin(fleet_of({"frankfurt": rig.urls(0)}))
    many = [engine.url for engine in rig.engines] * 2  # the same engines twice: only the addresses count
    paths = [url.replace("127.0.0.1", "localhost") if i >= 5 else url for i, url in enumerate(many)]

    async def run() -> None:
        over, torn, whole = asyncio.Event(), [], Counter[str]()

        async def user(i: int) -> None:
            while not over.is_set():
                out = await rig.stream(i, 8, 5)
                if out.kind == "answer":
                    whole[out.headers["x-baseload-replica"]] += 1
                else:
                    torn.append((out.kind, out.why))

        users = [asyncio.create_task(user(i)) for i in range(12)]
        board = (rig.state / "run" / "board").stat().st_size
        for urls in (paths, paths[:3], paths[5:], paths[6:7]):
            await asyncio.sleep(0.3)
            await rig.reload(fleet_of({"frankfurt": urls}))
        await asyncio.sleep(0.3)
        over.set()
        await asyncio.gather(*users)
        assert not torn, torn[:5]
        assert len(whole) == 10 and sum(whole.values()) > 100, whole
        assert (rig.state / "run" / "board").stat().st_size > board
        await rig.idle({"chat/frankfurt/1"})  # the engine's own row, since its address came

    asyncio.run(run())


def test_a_dead_owner_comes_back_with_the_last_good_file(rig: Rig) -> None:
    """The file on disk is broken, or asks for what only a start takes up: an owner that dies goes on, and says why."""
    good = fleet_of({"frankfurt": rig.urls(0)})
    rig.begin(good)

    async def run() -> None:
        for text, word in (
            (good + "\nnonsense: 1\n", "nonsense"),
            (good.replace("workers: 2", "workers: 3"), "serve.workers"),
        ):
            rig.fleet.write_text(text)
            os.kill(rig.gateway.part("owner_main")[0], signal.SIGKILL)
            until_s = time.monotonic() + 15.0
            while rig.said().count(word) == 0 or rig.control_is_down():
                assert time.monotonic() < until_s, rig.said()
                await asyncio.sleep(0.1)
            assert "reload refused" in rig.said()
            assert set(await rig.streams(4)) == {"chat/frankfurt/0"}
        rig.fleet.write_text(good)

    asyncio.run(run())


def test_a_file_that_is_wrong_or_asks_too_much_changes_nothing(rig: Rig) -> None:
    """What only a start can take up is refused by name and with what to do; the last good file goes on serving."""
    good = fleet_of({"frankfurt": rig.urls(0)})
    rig.begin(good)
    wrong = {
        "serve.control": good.replace("serve:\n", "serve:\n  control: 127.0.0.1:1\n"),
        "serve.workers serve.meter": good.replace("workers: 2", "workers: 3\n  meter: rapl"),
        "NOT_THERE": good.replace("metrics: vllm", "metrics: vllm, key_env: NOT_THERE"),
    }

    async def run() -> None:
        for word, text in wrong.items():
            await rig.reload(text)
            for each in word.split():
                assert each in rig.said() and "reload refused" in rig.said(), (each, rig.said())
            assert set(await rig.streams(4)) == {"chat/frankfurt/0"}
        await rig.reload(good)
        assert "fleet file reloaded, version 2" in rig.said()

    asyncio.run(run())
