"""Who has no key gets no memory of ours; who has one pays the price that stood when the request began."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from tests.serve_hostile import fuzz, mutations

BODY = b'{"model":"chat","messages":[{"role":"user","content":"%b"}]}' % (b"x" * 200_000)
ANSWER = b'{"choices":[{"message":{"content":"y"}}],"usage":{"prompt_tokens":3,"completion_tokens":2}}'


def head(key: str, length: bytes) -> bytes:
    """Return a request's head."""
    bearer = f"authorization: Bearer {key}\r\n".encode() if key else b""
    return b"POST /v1/chat/completions HTTP/1.1\r\nhost: x\r\n" + bearer + length + b"\r\n\r\n"


def say(folder: Path, pieces: list[bytes]) -> tuple[bytes, bool, fuzz.Bench]:
    """Send pieces on one connection, each engine answering at once: what came back, whether it was closed, the bench."""

    async def go() -> tuple[bytes, bool, fuzz.Bench]:
        bench = fuzz.Bench(folder)
        client = fuzz.Client(bench.gateway)
        pipe = fuzz.Pipe(client)
        client.connection_made(pipe)  # type: ignore[arg-type]
        for piece in pieces:
            if not pipe.closed:
                client.data_received(piece)
        for asked in bench.asked:
            length = f"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: {len(ANSWER)}\r\n\r\n"
            asked.protocol.data_received(length.encode() + ANSWER)
        bench.gateway.turn.end()
        return bytes(pipe.written), pipe.closed, bench

    return asyncio.run(go())


@pytest.mark.parametrize("length", [b"content-length: %d" % len(BODY), b"transfer-encoding: chunked"])
@pytest.mark.parametrize("key", ["", "sk-nobody"])
def test_a_stranger_is_told_so_before_a_large_body_has_come(tmp_path: Path, key: str, length: bytes) -> None:
    """401 on the head alone, and the connection ends: no more of the body is read, let alone kept."""
    told, closed, bench = say(tmp_path, [head(key, length), b"3e8\r\n" + BODY[:1000]])

    assert told.startswith(b"HTTP/1.1 401 ") and told.count(b"HTTP/1.1") == 1 and closed
    assert not bench.asked


def test_who_has_a_key_may_send_a_large_body(tmp_path: Path) -> None:
    """The same with a key is served, in whatever pieces it comes."""
    whole = head(mutations.KEY, b"content-length: %d" % len(BODY)) + BODY
    told, _, bench = say(tmp_path, [whole[at : at + 50_000] for at in range(0, len(whole), 50_000)])

    assert told.startswith(b"HTTP/1.1 200 ") and len(bench.asked) == 1


def test_a_request_costs_what_stood_when_it_was_opened(tmp_path: Path) -> None:
    """The price in the ledger and in the answer is by the prices that the request was opened at."""
    whole = b'{"model":"chat","messages":[{"role":"user","content":"hello"}]}'
    told, _, bench = say(tmp_path, [head(mutations.KEY, b"content-length: %d" % len(whole)) + whole])

    price_nano = (3 * fuzz.PRICES[0] + 2 * fuzz.PRICES[2]) // 1000
    assert bench.gateway.purse.last.price_nano == price_nano  # type: ignore[attr-defined]
    assert b'"price":%.9g,' % (price_nano / 1e9) in told
