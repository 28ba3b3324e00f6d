"""Streams that wait for money or for their client: whatever ends them, others do not feel it."""

from __future__ import annotations

import contextlib
import json
import socket
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.chaos.stack import Gateway, fleet_text
from tests.serve.test_said_at_once import DONE, FIN, HEAD, PRICE_NANO, Engine, chunk, word
from tests.serve.test_truth import CHAT, Rig, chat, said

pytestmark = pytest.mark.slow
LAST = b"0\r\n\r\n"
WHOLE = [HEAD + chunk(word("a") + FIN + DONE) + LAST]


class Keeper(Engine):
    """An engine that keeps connections: each request is answered by the next script of pieces and seconds to wait."""

    def __init__(self) -> None:
        self.nth: list[int] = []  # of its connection, each request
        self.heard: list[bytes] = []
        super().__init__([])

    def serve(self, connection: socket.socket) -> None:
        """Answer one request after the other."""
        with connection, contextlib.suppress(OSError):
            for n in range(1, 1000):
                data = connection.recv(65_536)
                if not data:
                    return
                if data.startswith(b"GET"):
                    page = b'{"object":"list","data":[{"id":"chat","object":"model"}]}'
                    connection.sendall(b"HTTP/1.1 200 OK\r\ncontent-length: %d\r\n\r\n%b" % (len(page), page))
                    continue
                self.nth.append(n)
                self.heard.append(data)
                for piece in self.scripts.pop(0):
                    if isinstance(piece, bytes):
                        connection.sendall(piece)
                    else:
                        time.sleep(piece)


class Held(Rig):
    """One such engine behind one worker."""

    def __init__(self, folder: Path) -> None:
        self.engine = Keeper()
        fleet = folder / "fleet.yaml"
        fleet.write_text(
            fleet_text([self.engine.url], [], workers=1, limits="token_s: 3, first_byte_s: 3, drain_s: 1",
                       serve_more="  retry_ratio: 1\n  eject_after: 100\n")
        )  # fmt: skip
        (folder / "state").mkdir(mode=0o700)
        self.gateway = Gateway(fleet, folder / "state").start()
        self.key = self.gateway.key("acme")

    def told(self, *script: bytes | float, key: str = "") -> tuple[bytes, dict[str, Any]]:
        """Return answer and row of a request, which the engine answers so."""
        self.engine.scripts[:] = [list(script)]
        before, self.key = self.key, key or self.key
        try:
            _, headers, answer = self.ask(chat("hello"))
        finally:
            self.key = before
        return answer, self.row(headers["x-baseload-request-id"])

    def with_budget(self, tokens: int) -> str:
        """Return a key that may spend so many tokens of an answer."""
        return self.gateway.key("acme", "--budget", f"{tokens * PRICE_NANO / 1e9:.9f}")

    def raw(self, *requests: tuple[str, bytes], scripts: list[list[bytes | float]], key: str = "") -> bytes:
        """Send requests (version and more head lines; what stands for a body) at once; return all that comes."""
        self.engine.scripts[:] = scripts
        data = b""
        for lines, body in requests:
            data += f"POST {CHAT} {lines}Host: x\r\nAuthorization: Bearer {key or self.key}\r\n".encode()
            data += b"Content-Length: %d\r\n\r\n%b" % (len(body), body)
        with socket.create_connection(("127.0.0.1", self.gateway.port), timeout=10) as sock:
            sock.sendall(data)
            answer = b""
            while piece := sock.recv(65_536):
                answer += piece
        return answer

    def end(self) -> None:
        """Stop all."""
        self.gateway.stop()
        self.engine.sock.close()


@pytest.fixture(scope="module")
def rig(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Held]:
    """Engine, gateway, key."""
    made = Held(tmp_path_factory.mktemp("held"))
    yield made
    made.end()


BODY = json.dumps(chat("hello")).encode()
RSS_GROWTH_MAX_BYTES = 32 << 20


def test_who_waited_for_money_leaves_its_connection_as_it_was(rig: Held) -> None:
    """A kept connection on which a stream was held is read again: the next request on it is answered at once."""
    answer, _ = rig.told(HEAD + chunk(word("a")), 0.1, chunk(word("b") * 700) + LAST, key=rig.with_budget(400))
    assert b"insufficient_quota" in answer
    answer, row = rig.told(*WHOLE)
    assert said(answer) == "a" and answer.endswith(DONE) and row["n_tries"] == 1 and rig.engine.nth[-1] > 1


def test_an_engine_is_read_as_fast_as_its_answer_goes_on(rig: Held) -> None:
    """However much an engine says at once: the gateway holds a little of it, and ends with the connection kept."""
    before, most, events = rig.gateway.rss_bytes(), 0, word("b" * 8000) * 128
    rig.engine.scripts[:] = [[HEAD + chunk(word("a")), 0.1, *[chunk(events)] * 80, chunk(FIN + DONE) + LAST]]
    sock, _ = rig.open(chat("hello"))
    answer = b""
    with sock:
        while not answer.endswith(b"\r\n0\r\n\r\n"):
            answer = answer[-10:] + sock.recv(1 << 20)
            most = max(most, rig.gateway.rss_bytes() - before)
    assert most < RSS_GROWTH_MAX_BYTES
    answer, row = rig.told(*WHOLE)
    assert said(answer) == "a" and row["n_tries"] == 1 and rig.engine.nth[-1] > 1


def test_what_says_nothing_is_passed_on_at_once(rig: Held) -> None:
    """Thousands of comments behind the last word that was asked for go on together, and nobody else waits for them."""
    said_nothing = b":\n\n" * 20_000
    answer = rig.raw(
        ("HTTP/1.1\r\nConnection: close\r\n", json.dumps(chat("hello", max_tokens=1)).encode()),
        scripts=[[HEAD + chunk(word("a") + said_nothing) + chunk(FIN + DONE) + LAST]],
    )
    assert answer.count(b":\n\n") == 20_000 and answer.count(b"\r\n") < 100 and DONE in answer


@pytest.mark.parametrize("more", ["", "Connection: keep-alive\r\n"])
@pytest.mark.parametrize("whole", [True, False])
def test_nothing_stands_behind_an_answer_that_the_connection_ends(rig: Held, more: str, whole: bool) -> None:
    """HTTP/1.0 has no chunks: what was sent ahead gets no answer inside the first one's body."""
    script = [HEAD, 0.1, chunk(word("a") + FIN + DONE) + LAST] if whole else [HEAD, 0.1, chunk(word("a") + b"bad\n\n")]
    answer = rig.raw(*[("HTTP/1.0\r\n" + more, BODY)] * 2, scripts=[list(script), list(script)])
    assert answer.count(b"HTTP/1.1") == 1 and said(answer.partition(b"\r\n\r\n")[2]) == "a"
    assert answer.endswith(word("a") + FIN + DONE) if whole else b'"error"' in answer.split(b"\n\n")[-2]


def test_what_was_sent_ahead_does_not_outlive_its_key(rig: Held) -> None:
    """A revoked key's running stream ends, and the request that waits behind it on the same connection is refused."""
    key = rig.gateway.key("acme", "--name", "ahead")
    listed = rig.gateway.baseload("keys", "list", "--state", str(rig.gateway.state)).stdout
    number = next(line.split()[0] for line in listed.splitlines() if " ahead " in line)
    revoke = ("keys", "revoke", number, "--state", str(rig.gateway.state))
    later = threading.Timer(0.5, rig.gateway.baseload, revoke)
    later.start()
    answer = rig.raw(*[("HTTP/1.1\r\n", BODY)] * 2, scripts=[[HEAD + chunk(word("a")), 2.5], WHOLE], key=key)
    later.join()
    assert answer.count(b"invalid_api_key") == 2 and b"HTTP/1.1 401" in answer and DONE not in answer


WISH = b'"continuous_usage_stats":true'
FOUR = "one two six ten "  # what an engine that guesses ahead may say at once: four tokens
UNKNOWN = b'{"error":{"message":"unknown field"}}'
REFUSED = b"HTTP/1.1 400 Bad Request\r\ncontent-length: %d\r\n\r\n%b" % (len(UNKNOWN), UNKNOWN)


def four(n_events: int, *, telling: bool) -> bytes:
    """Return events of four tokens each, which tell how many there were so far, or do not."""
    usage = [
        {"usage": {"prompt_tokens": 2, "completion_tokens": 4 * i}} if telling else {} for i in range(1, n_events + 1)
    ]
    return b"".join(word(FOUR, **more) for more in usage)


def of_four(n_events: int) -> bytes:
    """Return an engine's whole answer in events of four tokens, which it counts at the end."""
    end = b'data: {"choices":[],"usage":{"prompt_tokens":2,"completion_tokens":%d}}\n\n' % (4 * n_events)
    return HEAD + chunk(four(n_events, telling=False) + FIN + end + DONE) + LAST


def test_an_engine_that_bundles_tokens_is_asked_to_count_along(rig: Held) -> None:
    """Once it is known for it: its own count is what a budget ends at and a cut answer costs; the client does not see it."""
    assert rig.told(of_four(20))[1]["output_tokens"] == 80
    answer, row = rig.told(HEAD + chunk(four(300, telling=True)), key=rig.with_budget(400))
    assert WISH in rig.engine.heard[-1] and b"insufficient_quota" in answer
    events = answer.count(b"one two")
    assert row["output_tokens"] == 4 * events and 340 <= 4 * events <= 400 + 4
    assert answer.count(b'"usage":null') == events and b"completion_tokens" not in answer


def test_an_engine_that_does_not_count_along_is_not_asked_again(rig: Held) -> None:
    """Its 400 is not the client's; what its events held before is what they are taken for, and billed is what is sure."""
    rig.told(of_four(20))
    rig.engine.scripts[:] = [[REFUSED], [HEAD + chunk(four(300, telling=False))]]
    before, rig.key = rig.key, rig.with_budget(400)
    try:
        status, headers, answer = rig.ask(chat("hello"))
    finally:
        rig.key = before
    row, events = rig.row(headers["x-baseload-request-id"]), answer.count(b"one two")
    assert status == 200 and b"insufficient_quota" in answer and row["n_tries"] == 1
    assert [WISH in heard for heard in rig.engine.heard[-2:]] == [True, False]
    assert 340 <= 4 * events <= 400 + 4 and row["output_tokens"] == events
    rig.told(*WHOLE)
    assert WISH not in rig.engine.heard[-1]
