"""Another engine under an old deployment's name, in one reload: real processes, streams over it, and what if it fails."""

from __future__ import annotations

import http.client
import json
import os
import signal
import threading
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.chaos.stack import Gateway, children_of

FLEET = """\
baseload: 1
name: exchanged
money: {currency: EUR}
sites:
  frankfurt:
    place: frankfurt
    grid: [{power_mw: 1.0, energised: 2023-01-01}]
    contracts: [{power_mw: 1.0, price_per_mwh: 90}]
    racks:
      h100: {accelerator: h100-sxm, accelerators_per_rack: 8, racks: 4}
      h200: {accelerator: h200-sxm, accelerators_per_rack: 8, racks: 4}
models:
  chat: {catalog: llama-3.1-8b}
deployments:
  main: {model: chat, accelerator: h100-sxm, precision: fp8, cold_start_s: 1, sites: {frankfurt: {min: 2}}}
tenants:
  acme: {share: 100, price: {input_per_mtok: 0.5, output_per_mtok: 2.0}}
policy: {route: least_outstanding, admit: always}
serve:
  workers: 2
  engines: {main: {kind: emulated}}
  limits: {drain_s: 5}
"""
LONG_TOKENS = 600  # some seconds of an emulated engine: longer than a reload


class Rig:
    """A gateway with engines of its own, and clients that never stop asking."""

    def __init__(self, folder: Path) -> None:
        self.fleet, self.state = folder / "fleet.yaml", folder / "state"
        self.state.mkdir(mode=0o700)
        self.fleet.write_text(FLEET)
        self.gateway = Gateway(self.fleet, self.state).start()
        self.key = self.gateway.key("acme")
        self.over = threading.Event()
        self.torn: list[tuple[int, bytes]] = []
        self.whole: Counter[str] = Counter()
        self.model = "chat"

    def ask(self, tokens: int, model: str = "") -> str:
        """Stream an answer; return which replica gave it, '' where it was not whole."""
        body = {
            "model": model or self.model, "stream": True, "max_tokens": tokens, "ignore_eos": True,
            "messages": [{"role": "user", "content": "x" * 40}],
        }  # fmt: skip
        connection = http.client.HTTPConnection("127.0.0.1", self.gateway.port, timeout=60)
        try:
            connection.request(
                "POST", "/v1/chat/completions", json.dumps(body), {"Authorization": f"Bearer {self.key}"}
            )
            answer = connection.getresponse()
            blob, where = answer.read(), answer.headers.get("x-baseload-replica", "")
        finally:
            connection.close()
        if answer.status != 200 or b"[DONE]" not in blob or b'"error"' in blob:
            self.torn.append((answer.status, blob[-300:]))
            return ""
        self.whole[where] += 1
        return str(where)

    def users(self, n: int) -> list[threading.Thread]:
        """Begin clients with short streams, one after the other."""

        def user() -> None:
            while not self.over.is_set():
                self.ask(8)
                time.sleep(0.02)

        threads = [threading.Thread(target=user) for _ in range(n)]
        for one in threads:
            one.start()
        return threads

    def long(self) -> tuple[threading.Thread, list[str]]:
        """Begin a stream that outlives a reload; the list gets the replica's name at its end."""
        ran: list[str] = []
        thread = threading.Thread(target=lambda: ran.append(self.ask(LONG_TOKENS)))
        thread.start()
        return thread, ran

    def reload(self, text: str, *, by: str = "SIGHUP") -> str:
        """Exchange the file, and return what the gateway said of it."""
        said = self.said()
        self.fleet.write_text(text)
        if by == "SIGHUP":
            assert self.gateway.process is not None
            os.kill(self.gateway.process.pid, signal.SIGHUP)
            until_s = time.monotonic() + 60.0
            while not (new := [one for one in self.said()[len(said) :].splitlines() if "reload" in one]):
                assert time.monotonic() < until_s, self.said()
                time.sleep(0.05)
            return new[0]
        return json.dumps(self.control("POST", "/api/reload"))

    def said(self) -> str:
        """Return what the operator was told so far."""
        return self.gateway.log.read_text()

    def control(self, method: str, path: str) -> Any:
        """Ask the control listener as an admin."""
        connection = http.client.HTTPConnection("127.0.0.1", self.gateway.control_port, timeout=90)
        token = (self.state / "admin.token").read_text().strip()
        connection.request(method, path, headers={"Authorization": f"Bearer {token}"})
        told = json.loads(connection.getresponse().read())
        connection.close()
        return told

    def stand(self) -> int:
        """Return how many engines have an address."""
        return sum(url is not None for url in json.loads((self.state / "run" / "endpoints.json").read_text())["urls"])

    def settles(self, n: int) -> None:
        """Wait until so many engines stand: those that left have ended."""
        until_s = time.monotonic() + 40.0
        while self.stand() != n:
            assert time.monotonic() < until_s, (self.stand(), self.said())
            time.sleep(0.1)

    def processes(self) -> list[str]:
        """Return the command lines of the engines' processes."""
        (owner,) = self.gateway.part("owner_main")
        return [line for line in children_of(owner).values() if "engines." in line]


@pytest.fixture
def rig(tmp_path: Path) -> Iterator[Rig]:
    """A gateway that serves the fleet above."""
    made = Rig(tmp_path)
    yield made
    made.over.set()
    made.gateway.stop()


def test_another_engine_takes_over_in_one_reload(rig: Rig) -> None:
    """Accelerator, flags, count, kind and model change under one name, a reload each: no stream ends, nothing is left."""
    users = rig.users(3)
    changes = (  # text, how it is told, engines, new names
        (("h100-sxm, precision: fp8", "h200-sxm, precision: bf16"), "SIGHUP", {"2", "3"}),
        (("min: 2}}", "min: 3}}, max_num_seqs: 32"), "POST", {"0", "1", "4"}),  # rows that rest are taken up again
        (("kind: emulated", "kind: embedded, slots: 2"), "SIGHUP", {"2", "3", "5"}),
        (("min: 3}}, max_num_seqs: 32", "min: 1}}"), "SIGHUP", None),
    )
    text = FLEET
    try:
        for (old, new), by, numbers in changes:
            assert old in text
            text = text.replace(old, new)
            thread, ran = rig.long() if "embedded" not in rig.fleet.read_text() else (None, [])
            time.sleep(0.5)
            told = rig.reload(text, by=by)
            assert "refused" not in told and "problem" not in told.replace('"problems": []', ""), told
            now = {rig.ask(4) for _ in range(12)}
            if numbers is not None:
                assert now <= {f"main/frankfurt/{n}" for n in numbers}, (now, rig.said())
            if thread is not None:
                thread.join()
                assert ran[0].startswith("main/frankfurt/") and ran[0] not in now, "it ran on where it began"
            rig.settles(len(numbers) if numbers is not None else 1)
    finally:
        rig.over.set()
        for one in users:
            one.join()
    assert not rig.torn and sum(rig.whole.values()) > 50, rig.torn[:3]
    embedded = [line for line in rig.processes() if "embedded_main" in line]
    assert len(embedded) == 1, "engines that left have ended"
    rig.reload(text.replace("chat: {catalog", "talk: {catalog").replace("model: chat,", "model: talk,"))
    assert rig.ask(4, "talk") and rig.ask(4, "chat") == "" and rig.torn[0][0] in (404, 503)
    rig.gateway.stop()
    assert rig.gateway.baseload("verify", str(rig.state / "ledger.db")).returncode == 0


def test_an_engine_that_does_not_start_changes_nothing(rig: Rig, tmp_path: Path) -> None:
    """The new engine's file is no model: the reload is refused and says so, the old engines serve on, none is left over."""
    (tmp_path / "broken.gguf").write_bytes(b"GGUF" + bytes(4000))
    users = rig.users(2)
    wrong = FLEET.replace("kind: emulated", f"kind: embedded, gguf: {tmp_path / 'broken.gguf'}")
    told = rig.reload(wrong)
    assert "reload refused" in told and "did not start" in told, told
    assert rig.stand() == 2 and len(rig.processes()) == 1
    told = rig.reload(FLEET.replace("min: 2}}", "min: 2}}, max_num_seqs: 16"))
    assert "version 2" in told, told
    rig.over.set()
    for one in users:
        one.join()
    rig.settles(2)
    assert not rig.torn, rig.torn[:3]
    assert {rig.ask(4) for _ in range(8)} <= {"main/frankfurt/2", "main/frankfurt/3"}
