"""Streams that tell the truth, over real sockets: what clients are told, engines did and the ledger bills agrees."""

from __future__ import annotations

import http.client
import json
import socket
import sqlite3
import time
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from tests.chaos.stack import Gateway, MockEngine, fleet_text

CHAT = "/v1/chat/completions"
LIMITS = "first_byte_s: 4, token_s: 1.5, request_s: 12, drain_s: 2, header_s: 2, body_s: 4, idle_s: 20"
MORE = "  retry_ratio: 1\n  eject_after: 100\n"  # these tests want failures, and all of them tried again
RSS_GROWTH_MAX_BYTES = 32 << 20
pytestmark = pytest.mark.slow


class Rig:
    """Two engines behind one worker."""

    def __init__(self, folder: Path) -> None:
        self.engines = [
            MockEngine(folder / f"engine-{i}.truth", words=("--model", "chat", "--tokens", "6")).start()
            for i in range(2)
        ]
        fleet = folder / "fleet.yaml"
        fleet.write_text(
            fleet_text([self.engines[0].url], [self.engines[1].url], workers=1, limits=LIMITS, serve_more=MORE)
        )
        (folder / "state").mkdir(mode=0o700)
        self.gateway = Gateway(fleet, folder / "state").start()
        self.key = self.gateway.key("acme")

    def open(self, body: dict[str, Any] | bytes, path: str = CHAT) -> tuple[socket.socket, bytes]:
        """Send a request on a connection of its own."""
        raw = body if isinstance(body, bytes) else json.dumps(body).encode()
        head = (
            f"POST {path} HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {self.key}\r\nContent-Length: {len(raw)}\r\n\r\n"
        )
        sock = socket.create_connection(("127.0.0.1", self.gateway.port), timeout=15)
        sock.sendall(head.encode() + raw)
        return sock, raw

    def ask(self, body: dict[str, Any] | bytes, path: str = CHAT) -> tuple[int, dict[str, str], bytes]:
        """Send a request; return status, headers and body."""
        sock, _ = self.open(body, path)
        with sock:
            answer = http.client.HTTPResponse(sock)
            answer.begin()
            return answer.status, {k.lower(): v for k, v in answer.getheaders()}, answer.read()

    def attempts(self, rid: str) -> list[dict[str, Any]]:
        """Return what the engines know of a request."""
        return [a for engine in self.engines for a in engine.truth().get(rid, [])]

    def row(self, rid: str) -> dict[str, Any]:
        """Return the row of a request, when it is there."""
        number, until_s = int(rid.removeprefix("req-"), 16), time.monotonic() + 5.0
        while time.monotonic() < until_s:
            with closing(sqlite3.connect(f"file:{self.gateway.state / 'ledger.db'}?mode=ro", uri=True)) as base:
                names = [name for (name,) in base.execute("select name from sqlite_master where type = 'table'")]
                for table in names:
                    columns = {row[1] for row in base.execute(f'pragma table_info("{table}")')}
                    if {"body", "seq"} <= columns:
                        for (text,) in base.execute(f'select body from "{table}" order by seq desc'):
                            told: dict[str, Any] = json.loads(text)
                            if told["kind"] == "settle" and told["request_id"] == number:
                                return told
            time.sleep(0.05)
        raise AssertionError(f"{rid} has no row")

    def cancelled(self) -> int:
        """Return how many requests the engines saw cancelled."""
        return sum(engine.call("/__stats")["cancelled"] for engine in self.engines)

    def end(self) -> None:
        """Stop all."""
        self.gateway.stop()
        for engine in self.engines:
            engine.kill()


@pytest.fixture(scope="module")
def rig(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Rig]:
    """Engines, gateway, key."""
    made = Rig(tmp_path_factory.mktemp("truth"))
    yield made
    made.end()


def chat(text: str, *, stream: bool = True, usage: bool = False, **more: Any) -> dict[str, Any]:
    """Return a chat request; `@knobs` in the text tell the engine what to do."""
    body: dict[str, Any] = {"model": "chat", "stream": stream, "messages": [{"role": "user", "content": text}], **more}
    return {**body, "stream_options": {"include_usage": True}} if usage else body


def said(events: bytes) -> str:
    """Return the text of a chat stream."""
    text = ""
    for event in events.split(b"\n\n"):
        if event.startswith(b"data: {"):
            for choice in json.loads(event[6:]).get("choices", []):
                text += choice["delta"].get("content") or ""
    return text


def test_a_stream_is_whole_and_billed_as_the_engine_counts(rig: Rig) -> None:
    """Tokens as sent; usage with cost only for who asked; the same numbers in the ledger."""
    status, headers, body = rig.ask(chat("hello"))
    assert status == 200 and headers["content-type"].startswith("text/event-stream")
    assert body.endswith(b"data: [DONE]\n\n") and b'"usage"' not in body
    rid = headers["x-baseload-request-id"]
    row = rig.row(rid)
    assert row["output_tokens"] == 6 == rig.attempts(rid)[0]["sent"] and row["tokens_from"] == "engine"
    status, headers, body = rig.ask(chat("hello", usage=True))
    usage = json.loads(body.split(b"\n\n")[-3][6:])["usage"]
    row = rig.row(headers["x-baseload-request-id"])
    assert usage["completion_tokens"] == row["output_tokens"] == 6
    assert abs(usage["price"] * 1e9 - row["price_nano"]) <= 1 and row["price_nano"] > 0
    assert usage["baseload"]["provisional"] and usage["cost"] > 0 and usage["energy_wh"] > 0


@pytest.mark.parametrize(
    "fault", ["reset", "fin", "cut", "stall", "badchunk", "badjson", "errchunk", "garbage", "huge"]
)
def test_a_broken_stream_is_told_and_billed_as_delivered(rig: Rig, fault: str) -> None:
    """After the first token a failure is an error event: no [DONE], no stop; what arrived is billed, and no more."""
    before = rig.gateway.rss_bytes()
    status, headers, body = rig.ask(chat(f"x @fault={fault} @at=3 @gap_ms=20"))
    if status != 200:  # nothing had arrived: an error with its envelope, after other engines were tried
        assert status in (502, 504) and b'"error"' in body
        assert "x-baseload-request-id" not in headers or rig.row(headers["x-baseload-request-id"])["output_tokens"] == 0
        return
    assert b'"error"' in body and b"[DONE]" not in body and b'"finish_reason":"stop"' not in body
    n = said(body).count(" ")
    row = rig.row(headers["x-baseload-request-id"])
    assert row["output_tokens"] == n, (row["output_tokens"], n)
    assert rig.gateway.rss_bytes() - before < RSS_GROWTH_MAX_BYTES


@pytest.mark.parametrize("fault", ["reset0", "hang", "garbage", "clte", "twocl", "longheader", "500", "503", "429"])
def test_before_the_first_byte_another_engine_answers(rig: Rig, fault: str) -> None:
    """A failure nobody has seen yet is tried elsewhere: the client gets its answer, tries stay at most three."""
    rig.engines[0].call("/__control", {"fault": fault, "times": 1})
    try:
        for _ in range(2):
            status, headers, body = rig.ask(chat("retry"))
            assert status == 200 and body.endswith(b"data: [DONE]\n\n")
            assert len(rig.attempts(headers["x-baseload-request-id"])) <= 3
    finally:
        rig.engines[0].call("/__control", {"fault": ""})


@pytest.mark.parametrize("fault", ["closeafter", "extra", "split", "slow", "hints"])
@pytest.mark.parametrize("stream", [True, False])
def test_habits_of_engines_are_not_failures(rig: Rig, fault: str, stream: bool) -> None:
    """Kept connections that close, answers nobody asked for, slow and split ones: every client gets its own words."""
    for i in range(1 if fault == "slow" else 6):
        status, headers, body = rig.ask(chat(f"mine{i} @fault={fault}", stream=stream))
        assert status == 200, (i, status, body)
        text = said(body) if stream else json.loads(body)["choices"][0]["message"]["content"]
        other = {a["planned"] for a in rig.attempts(headers["x-baseload-request-id"])}
        assert text.count(" ") == 6 and other == {6}


@pytest.mark.parametrize("fault", ["halfbody", "notjson", "redirect", "huge", "401", "reset"])
def test_a_plain_answer_is_whole_or_an_error(rig: Rig, fault: str) -> None:
    """Half an answer, text, a redirect, 64 MiB in a line: an envelope, no bill, bounded memory."""
    before = rig.gateway.rss_bytes()
    status, headers, body = rig.ask(chat(f"x @fault={fault}", stream=False))
    assert status in (502, 503, 504) and json.loads(body)["error"]["message"]
    assert rig.row(headers["x-baseload-request-id"])["price_nano"] == 0
    assert rig.gateway.rss_bytes() - before < RSS_GROWTH_MAX_BYTES


@pytest.mark.parametrize(
    ("knobs", "stream"),
    [("@ttft_ms=6000", True), ("@ttft_ms=6000", False), ("@gap_ms=600", True), ("@gap_ms=20 @fault=hang", False)],
)
def test_who_leaves_is_noticed_within_two_seconds(rig: Rig, knobs: str, stream: bool) -> None:
    """A client that closes, waiting or reading, streamed or not: its engine stops computing within 2 s."""
    before = rig.cancelled()
    sock, _ = rig.open(chat(f"bye {knobs}", stream=stream))
    time.sleep(0.4)
    sock.close()
    until_s = time.monotonic() + 2.0
    while rig.cancelled() == before and time.monotonic() < until_s:
        time.sleep(0.05)
    assert rig.cancelled() > before


def test_half_closed_clients_get_their_answer(rig: Rig) -> None:
    """Who has said all it will, and listens, is answered."""
    for stream in (True, False):
        sock, _ = rig.open(chat("half @gap_ms=100", stream=stream))
        with sock:
            sock.shutdown(socket.SHUT_WR)
            answer = http.client.HTTPResponse(sock)
            answer.begin()
            body = answer.read()
        assert answer.status == 200 and (not stream or body.endswith(b"[DONE]\n\n"))


def test_a_client_that_does_not_read_grows_no_memory(rig: Rig) -> None:
    """Backpressure reaches the engine: a stream of many megabytes to a client that sleeps takes a bounded buffer."""
    before = rig.gateway.rss_bytes()
    socks = [rig.open(chat("fat @n=60000", max_tokens=60_000))[0] for _ in range(4)]
    time.sleep(1.2)
    assert rig.gateway.rss_bytes() - before < RSS_GROWTH_MAX_BYTES
    for sock in socks:
        sock.close()


def test_bodies_arrive_byte_for_byte(rig: Rig) -> None:
    """Unicode, odd spacing, unknown keys and 2 MiB of text reach the engine as they were."""
    text = "Grüße, 你好, 👩‍🚀 \u202e \\ \" ' \t " + "x" * (2 << 20)
    for ascii_ in (True, False):
        body = json.dumps(chat(text, stream=False, zzz={"a": [1, 2.50]}), ensure_ascii=ascii_, indent=1).encode()
        status, headers, answer = rig.ask(body)
        assert status == 200, answer[:300]
        import zlib

        want = f"w{zlib.crc32(text.encode()):08x}-0 "
        assert json.loads(answer)["choices"][0]["message"]["content"].startswith(want)
        assert headers["content-length"] == str(len(answer))


def test_other_endpoints(rig: Rig) -> None:
    """Completions, embeddings, responses and messages, whole and as streams."""
    asked: list[tuple[str, dict[str, Any], bytes]] = [
        ("/v1/completions", {"model": "chat", "prompt": "a", "stream": True}, b"[DONE]"),
        ("/v1/completions", {"model": "chat", "prompt": "a"}, b'"text"'),
        ("/v1/embeddings", {"model": "chat", "input": ["a", "b"]}, b'"embedding"'),
        ("/v1/responses", {"model": "chat", "input": "a", "stream": True}, b"response.completed"),
        ("/v1/responses", {"model": "chat", "input": "a"}, b'"output"'),
        ("/v1/messages", {**chat("a"), "max_tokens": 4}, b"message_stop"),
        ("/v1/messages", {**chat("a", stream=False), "max_tokens": 4}, b'"content"'),
    ]
    for path, body, sign in asked:
        status, headers, answer = rig.ask(body, path)
        assert status == 200 and sign in answer, (path, status, answer[:300])
        assert rig.row(headers["x-baseload-request-id"])["price_nano"] > 0, path


def test_pipelined_requests_are_answered_in_order(rig: Rig) -> None:
    """Eight requests sent at once on one connection: eight answers, each to its own."""
    wire = b""
    for i in range(8):
        raw = json.dumps(chat(f"p{i} @ttft_ms={80 - 10 * i}", stream=i % 2 == 0)).encode()
        head = (
            f"POST {CHAT} HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {rig.key}\r\nContent-Length: {len(raw)}\r\n\r\n"
        )
        wire += head.encode() + raw
    import zlib

    with socket.create_connection(("127.0.0.1", rig.gateway.port), timeout=10) as sock:
        sock.sendall(wire)
        data = b""
        while data.count(b"-5 ") < 8:
            piece = sock.recv(65_536)
            assert piece, data[-400:]
            data += piece
    places = [data.index(f"w{zlib.crc32(f'p{i} @ttft_ms={80 - 10 * i}'.encode()):08x}-0".encode()) for i in range(8)]
    assert places == sorted(places)
