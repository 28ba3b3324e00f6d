"""What an engine says at once, honest or not: events that share a read are told and billed singly, and the first end counts."""

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
from tests.serve.test_truth import Rig, chat, said

pytestmark = pytest.mark.slow
HEAD = b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ntransfer-encoding: chunked\r\n\r\n"
FIN = b'data: {"choices":[{"index":0,"delta":{},"finish_reason":"stop"}]}\n\n'
ERROR = b'data: {"error":{"message":"boom"}}\n\n'
DONE = b"data: [DONE]\n\n"
ANSWER = b'{"choices":[],"usage":{"prompt_tokens":2,"completion_tokens":4}}'


def word(text: str, **more: Any) -> bytes:
    """Return an event of one token."""
    event = {"choices": [{"index": 0, "delta": {"content": text}, "finish_reason": None}], **more}
    return b"data: " + json.dumps(event, separators=(",", ":")).encode() + b"\n\n"


class Engine:
    """Answers each request with the next script: pieces, a moment apart; then it closes."""

    def __init__(self, scripts: list[list[Any]]) -> None:
        self.scripts = scripts
        self.sock = socket.create_server(("127.0.0.1", 0))
        self.url = f"http://127.0.0.1:{self.sock.getsockname()[1]}"
        threading.Thread(target=self.run, daemon=True).start()

    def run(self) -> None:
        """Serve until the socket is closed."""
        while True:
            try:
                connection, _ = self.sock.accept()
            except OSError:
                return
            threading.Thread(target=self.serve, args=(connection,), daemon=True).start()

    def serve(self, connection: socket.socket) -> None:
        """Answer one request."""
        with connection:
            data = connection.recv(65_536)
            if data.startswith(b"GET"):
                page = b'{"object":"list","data":[{"id":"chat","object":"model"}]}'
                connection.sendall(
                    b"HTTP/1.1 200 OK\r\ncontent-length: %d\r\nconnection: close\r\n\r\n" % len(page) + page
                )
                return
            with contextlib.suppress(OSError):  # the gateway has heard enough
                for piece in self.scripts.pop(0) if self.scripts else []:
                    connection.sendall(piece)
                    time.sleep(0.15)


class Scripted(Rig):
    """Engines that say what they are told to, behind one worker."""

    def __init__(self, folder: Path) -> None:
        self.scripts: list[list[bytes]] = []
        self.scripted = [Engine(self.scripts), Engine(self.scripts)]
        fleet = folder / "fleet.yaml"
        more = "  retry_ratio: 1\n  eject_after: 100\n"
        fleet.write_text(
            fleet_text(
                *([one.url] for one in self.scripted), workers=1, limits="token_s: 3, drain_s: 1", serve_more=more
            )
        )
        (folder / "state").mkdir(mode=0o700)
        self.gateway = Gateway(fleet, folder / "state").start()
        self.key = self.gateway.key("acme")

    def told(self, *scripts: list[bytes], body: dict[str, Any] | None = None) -> tuple[int, bytes, dict[str, Any]]:
        """Return status, answer and row of a request, for which engines say these things, one script a try."""
        self.scripts[:] = scripts
        status, headers, answer = self.ask(body or chat("hello"))
        rid = headers.get("x-baseload-request-id")
        return status, answer, self.row(rid) if rid else {}

    def end(self) -> None:
        """Stop all."""
        self.gateway.stop()
        for engine in self.scripted:
            engine.sock.close()


def chunk(data: bytes) -> bytes:
    """Return one chunk."""
    return b"%x\r\n%b\r\n" % (len(data), data)


@pytest.fixture(scope="module")
def rig(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Scripted]:
    """Engine, gateway, key."""
    made = Scripted(tmp_path_factory.mktemp("scripted"))
    yield made
    made.end()


END = chunk(DONE) + b"0\r\n\r\n"


@pytest.mark.parametrize(
    ("at_once", "text", "tokens"),
    [
        (word("b") + FIN + b"garbage\n\n", "ab", 2),
        (word("b") * 400 + b"garbage\n\n", "a" + "b" * 400, 401),
        (ERROR + DONE, "a", 1),
        (ERROR + word("z") + FIN + DONE, "a", 1),
        (word("b") + ERROR + DONE, "ab", 2),
        (word("b") + b": x\rdata: [DONE]\n\n", "ab", 2),
        (word("b").replace(b'"b"', b'"\xff"'), "a", 1),
    ],
)
def test_what_breaks_behind_words_of_the_same_read_is_an_error(
    rig: Scripted, at_once: bytes, text: str, tokens: int
) -> None:
    """The words are told and billed, each once; then comes an error event, and neither [DONE] nor what stood behind it."""
    for coalesced in (chunk(at_once), b"".join(chunk(part + b"\n\n") for part in at_once.split(b"\n\n")[:-1])):
        _, answer, row = rig.told([HEAD + chunk(word("a")), coalesced, END])
        assert said(answer) == text and b"[DONE]" not in answer and b'"error"' in answer
        assert row["output_tokens"] == tokens and row["status"] != 0 and row["price_nano"] > 0


def test_an_error_as_the_first_word_is_tried_elsewhere(rig: Scripted) -> None:
    """Nothing was told yet, whatever stands behind the error in the same read."""
    status, answer, row = rig.told([HEAD + chunk(ERROR + DONE) + b"0\r\n\r\n"], [HEAD + chunk(word("a") + FIN), END])
    assert status == 200 and said(answer) == "a" and answer.endswith(DONE) and row["n_tries"] == 2


def test_nothing_behind_the_last_word_is_told_or_billed(rig: Scripted) -> None:
    """[DONE] ends an answer, though more came with it."""
    _, answer, row = rig.told([HEAD + chunk(word("a")), chunk(FIN + DONE + word("b") * 3), b"0\r\n\r\n"])
    assert said(answer) == "a" and answer.endswith(DONE) and row["output_tokens"] == 1


def test_what_is_taken_out_is_not_billed(rig: Scripted) -> None:
    """Usage events that nobody asked for are no tokens, whatever else they hold."""
    _, answer, row = rig.told(
        [HEAD + chunk(word("a")), chunk(b'data: {"usage":{},"text":"x"}\n\n' * 1000), chunk(FIN), END]
    )
    assert said(answer) == "a" and row["output_tokens"] == 1


@pytest.mark.parametrize(
    "event", [word("b", meta={"finish_reason": "none yet"}), b': "finish_reason":"stop"\ndata: {"choices":[]}\n\n']
)
def test_only_a_choice_says_why_it_ended(rig: Scripted, event: bytes) -> None:
    """The words `finish_reason` anywhere else make no cut stream whole."""
    _, answer, row = rig.told([HEAD + chunk(word("a")), chunk(event)])
    assert b'"error"' in answer and b"[DONE]" not in answer and row["status"] != 0


@pytest.mark.parametrize("first", [b"200 OK", b"500 No"])
def test_no_head_outlives_its_try(rig: Scripted, first: bytes) -> None:
    """An answer whose head contradicts itself is none, whatever the try before it said."""
    status, _, row = rig.told(
        [b"HTTP/1.1 %b\r\ncontent-length: 500\r\n\r\n{}" % first],
        *[[b"HTTP/1.1 200 OK\r\ncontent-length: %d \r\n\r\n" % len(ANSWER) + ANSWER]] * 2,
        body=chat("hello", stream=False),
    )
    assert status == 502 and row["price_nano"] == 0


N_AT_ONCE = 1563
PRICE_NANO = 2000  # of an output token of acme


@pytest.mark.parametrize(("framing", "closes"), [("one", True), ("each", False)])
@pytest.mark.parametrize(("budget_tokens", "most"), [(1000, None), (300, 400)])
def test_a_budget_ends_a_burst_where_it_ends_itself(
    rig: Scripted, budget_tokens: int, most: int | None, closes: bool, framing: str
) -> None:
    """Thousands of events in one read cost no more than the budget and one chunk; what stands behind is never told."""
    key = rig.key
    rig.key = rig.gateway.key("acme", "--budget", f"{budget_tokens * PRICE_NANO / 1e9:.9f}")
    try:
        burst = chunk(word("b") * N_AT_ONCE) if framing == "one" else chunk(word("b")) * N_AT_ONCE
        ends = [chunk(FIN + DONE) + b"0\r\n\r\n"] if closes else [chunk(word("c")), END]
        body = chat("hello") if most is None else chat("hello", max_tokens=most)
        status, answer, row = rig.told([HEAD + chunk(word("a")), burst, *ends], body=body)
        again = rig.told([HEAD + chunk(word("a"))], body=body)[0] if status == 200 else 0
    finally:
        rig.key = key
    assert status == 200 and again == 429
    assert 0.85 * budget_tokens <= len(said(answer)) <= budget_tokens + 1
    assert b"insufficient_quota" in answer and b"[DONE]" not in answer and b'"c"' not in answer
    assert row["output_tokens"] == len(said(answer)) and row["price_nano"] <= (budget_tokens + 1) * PRICE_NANO


@pytest.mark.parametrize("closes", [True, False])
def test_a_burst_that_is_paid_for_arrives_whole(rig: Scripted, closes: bool) -> None:
    """However many steps of money it takes: every event in its order, then the end, also where the engine left long ago."""
    events = b"".join(word(str(i % 10)) for i in range(3 * N_AT_ONCE))
    script = [HEAD + chunk(word("a")), chunk(events) + chunk(FIN + DONE) + b"0\r\n\r\n"]
    key = rig.key
    rig.key = rig.gateway.key("acme", "--budget", "0.02")  # 10,000 tokens: the owner is asked now and then
    try:
        status, answer, row = rig.told(script if closes else [script[0] + script[1]])
    finally:
        rig.key = key
    assert status == 200 and answer == word("a") + events + FIN + DONE
    assert row["status"] == 0 and row["output_tokens"] == 3 * N_AT_ONCE + 1


def test_a_burst_without_its_end_is_not_whole(rig: Scripted) -> None:
    """What waited for money is told first, then that the engine left."""
    events = b"".join(word(str(i % 10)) for i in range(N_AT_ONCE))
    status, answer, row = rig.told([HEAD + chunk(word("a")), chunk(events)])
    assert status == 200 and answer.startswith(word("a") + events) and b"[DONE]" not in answer
    assert b'"error"' in answer and row["status"] != 0 and row["output_tokens"] == N_AT_ONCE + 1


def test_no_more_than_sixteen_tokens_are_on_their_way_at_once(rig: Scripted) -> None:
    """A burst goes on write by write, so that a crash costs the bill sixteen tokens at most; its end comes with its last."""
    burst = word("b") * 100
    rig.scripts[:] = [[HEAD + chunk(word("a")), chunk(burst) + chunk(FIN + DONE) + b"0\r\n\r\n"]]
    sock, _ = rig.open(chat("hello"))
    got = b""
    with sock:
        while not got.endswith(b"0\r\n\r\n"):
            got += sock.recv(65_536)
    pieces, rest = [], got.partition(b"\r\n\r\n")[2]
    while rest:
        size, _, rest = rest.partition(b"\r\n")
        pieces.append(rest[: int(size, 16)])
        rest = rest[int(size, 16) + 2 :]
    assert b"".join(pieces) == word("a") + burst + FIN + DONE
    assert max(piece.count(b'"content":"') for piece in pieces) == 16
