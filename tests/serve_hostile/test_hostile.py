"""Hostile clients against a whole gateway over real sockets: refused with the right error, in bounded memory, and the next one
is served as if nothing had been."""

from __future__ import annotations

import importlib.util
import json
import socket
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor, wait
from pathlib import Path

import pytest

from tests.chaos.stack import Gateway, MockEngine, fleet_text
from tests.living import contents
from tests.serve_hostile import cases

HEADER_S, BODY_S = 0.6, 1.2
AT_ONCE = 16
RSS_GROWTH_MAX_BYTES = 32 << 20
CANARY_PROMPT = "canary-prompt-6f1d0c5e"
pytestmark = pytest.mark.skipif(
    importlib.util.find_spec("baseload.serve.worker") is None, reason="not run: the gateway is not built"
)


class Canary:
    """A listener that nobody should ever call."""

    def __init__(self) -> None:
        self.sock = socket.create_server(("127.0.0.1", 0))
        self.port = self.sock.getsockname()[1]
        self.calls = 0
        threading.Thread(target=self._listen, daemon=True).start()

    def _listen(self) -> None:
        while True:
            try:
                self.sock.accept()[0].close()
            except OSError:
                return
            self.calls += 1


class Rig:
    """A gateway with one worker, an engine, a canary and a key."""

    def __init__(self, folder: Path) -> None:
        self.canary = Canary()
        self.engine = MockEngine(folder / "engine.truth", words=("--model", "chat", "--tokens", "1024")).start()
        limits = f"first_byte_s: 2, token_s: 2, request_s: 20, drain_s: 1, header_s: {HEADER_S}, body_s: {BODY_S}, idle_s: 20"
        fleet = folder / "fleet.yaml"
        fleet.write_text(fleet_text([self.engine.url], [], workers=1, limits=limits))
        (folder / "state").mkdir(mode=0o700)
        self.gateway = Gateway(fleet, folder / "state").start()
        self.key = self.gateway.key("acme")

    def probe(self) -> int:
        """Return the status of an ordinary request."""
        case = cases.Case("probe", cases.post(cases.GOOD, self.key), frozenset((200,)))
        return cases.run(case, self.gateway.port, silence_s=0.0).status

    def end(self) -> None:
        """Stop all."""
        self.gateway.stop()
        self.engine.kill()
        self.canary.sock.close()


@pytest.fixture(scope="module")
def rig(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Rig]:
    """A gateway to be mean to."""
    made = Rig(tmp_path_factory.mktemp("hostile"))
    yield made
    made.end()


def check(rig: Rig, found: list[cases.Case]) -> None:
    """Run cases, many at once; meanwhile and after, ordinary requests are served by the same worker.

    Fails with all that was wrong; if a probe fails, with the cases that were under way.
    """
    worker, wrong, running = rig.gateway.part("serve.worker"), [], set()

    def one(case: cases.Case) -> list[str]:
        running.add(case.name)
        try:
            return [f"{case.name}: {what}" for what in cases.wrong(case, cases.run(case, rig.gateway.port))]
        except OSError as error:
            return [f"{case.name}: {error!r}"]
        finally:
            running.discard(case.name)

    with ThreadPoolExecutor(AT_ONCE) as pool:
        futures = [pool.submit(one, case) for case in found]
        while not all(future.done() for future in futures):
            with_it = sorted(running)
            if rig.probe() != 200:
                wrong.append(f"an ordinary request fails beside {with_it}")
            wait(futures, timeout=0.02)
        for future in futures:
            wrong += future.result()
    if rig.probe() != 200:
        wrong.append("the next ordinary request fails")
    if rig.gateway.part("serve.worker") != worker:
        wrong.append("the worker died")
    assert not wrong, "\n".join(wrong)


def test_where_a_request_ends_is_never_in_doubt(rig: Rig) -> None:
    """Smuggling: two lengths, two encodings, broken chunks are refused; no engine ever sees what was hidden in a body."""
    check(rig, list(cases.framing(rig.key)))
    marks = [attempt["mark"] for attempts in rig.engine.truth().values() for attempt in attempts]
    assert marks and "smuggled" not in marks


def test_request_lines_and_headers(rig: Rig) -> None:
    """What is no HTTP/1.1 is refused, pipelined requests are answered in order, and headers are bounded."""
    check(rig, list(cases.lines(rig.key)))


def test_paths_that_pretend(rig: Rig) -> None:
    """Only the documented paths exist, spelled as documented; nothing of an engine's or the control plane's shows."""
    check(rig, list(cases.paths(rig.key)))


def test_without_a_key_there_is_nothing(rig: Rig) -> None:
    """No key, half a key, SQL for a key: 401, in the envelope that clients know."""
    check(rig, list(cases.keys(rig.key)))


def test_bodies_that_are_none(rig: Rig) -> None:
    """Broken, deep, huge, ambiguous JSON is refused; no body says where to send it; memory stays bounded."""
    rig.probe()
    before = rig.gateway.rss_bytes()
    check(rig, list(cases.bodies(rig.key, rig.canary.port)))
    assert rig.canary.calls == 0
    assert rig.gateway.rss_bytes() - before < RSS_GROWTH_MAX_BYTES


def test_slow_and_endless_clients_are_cut(rig: Rig) -> None:
    """Slow-loris ends at its limit, endless input at its size; while all of them try at once, others are served."""
    found = list(cases.slowly(rig.key, HEADER_S, BODY_S))
    before, wrong = rig.gateway.rss_bytes(), []

    def one(case: cases.Case) -> None:
        try:
            wrong.extend(f"{case.name}: {what}" for what in cases.wrong(case, cases.run(case, rig.gateway.port)))
        except OSError as error:
            wrong.append(f"{case.name}: {error!r}")

    threads = [threading.Thread(target=one, args=(case,)) for case in found]
    for thread in threads:
        thread.start()
    waits_s = []
    while any(thread.is_alive() for thread in threads):
        began_s = time.monotonic()
        assert rig.probe() == 200
        waits_s.append(time.monotonic() - began_s)
        time.sleep(0.05)
    assert not wrong, "\n".join(wrong)
    assert rig.gateway.rss_bytes() - before < RSS_GROWTH_MAX_BYTES
    assert sorted(waits_s)[int(0.9 * (len(waits_s) - 1))] < 1.0


def test_resets_leak_nothing(rig: Rig) -> None:
    """A hundred clients that vanish right after their request leave no descriptor and no request behind."""
    pid = rig.gateway.part("serve.worker")[0]

    def descriptors() -> int:
        return len(list(Path(f"/proc/{pid}/fd").iterdir()))

    rig.probe()
    before = descriptors()
    slow = json.dumps({"model": "chat", "stream": True, "max_tokens": 50,
                       "messages": [{"role": "user", "content": "@gap_ms=50 x"}]}).encode()  # fmt: skip
    for _ in range(100):
        with socket.create_connection(("127.0.0.1", rig.gateway.port)) as sock:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
            sock.sendall(cases.post(slow, rig.key))
    until_s = time.monotonic() + 6.0
    while time.monotonic() < until_s and (rig.engine.call("/__stats")["running"] or descriptors() > before + 8):
        time.sleep(0.1)
    assert rig.engine.call("/__stats")["running"] == 0
    assert descriptors() <= before + 8


def test_a_forged_request_id_is_only_echoed(rig: Rig) -> None:
    """A client's own x-request-id never becomes the id that engines and the ledger know."""
    forged = "req-00000000000000ff"
    got = cases.run(
        cases.Case("forged", cases.post(cases.GOOD, rig.key, f"x-request-id: {forged}"), frozenset((200,))),
        rig.gateway.port,
    )
    assert got.status == 200
    assert f"x-client-request-id: {forged}".encode() in got.raw
    assert f"x-baseload-request-id: {forged}".encode() not in got.raw.lower()
    assert not any(len(a) > 1 for rid, a in rig.engine.truth().items() if rid == forged)


def test_the_canary_sings_nowhere(rig: Rig) -> None:
    """A prompt and a key appear in no log, metric, page or ledger row, also when their request fails."""
    wires = []
    for knob in ("", "@fault=500", "@fault=reset0", "@fault=cut", "@fault=garbage"):
        body = json.dumps({"model": "chat", "stream": bool(knob), "max_tokens": 3, "user": CANARY_PROMPT,
                           "messages": [{"role": "user", "content": f"{CANARY_PROMPT} {knob}"}]}).encode()  # fmt: skip
        wires += [cases.post(body, rig.key), cases.post(body[:-1], rig.key), cases.post(body, rig.key + CANARY_PROMPT)]
    found = [cases.Case("canary", wire, frozenset((200,)), within_s=4.0) for wire in wires]
    with ThreadPoolExecutor(AT_ONCE) as pool:
        list(pool.map(lambda case: cases.run(case, rig.gateway.port), found))
    time.sleep(1.2)  # group commits, scrapes
    control = str(rig.gateway.ready["control"])
    pages = {}
    for path in ("/metrics", "/healthz", "/readyz", "/", "/live"):
        try:
            with urllib.request.urlopen(control + path, timeout=5) as answer:
                pages[path] = answer.read()
        except urllib.error.HTTPError as error:
            pages[path] = error.read()
        except OSError:
            continue
    files = contents(rig.gateway.state)
    files[str(rig.gateway.log)] = rig.gateway.log.read_bytes()
    for name, content in {**files, **pages}.items():
        for word in (CANARY_PROMPT.encode(), rig.key.encode(), rig.key[-20:].encode()):
            assert word not in content, f"{word!r} is in {name}"
