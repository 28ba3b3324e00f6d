"""An engine dies after any byte of its stream: the client has every word, or hears that it has not."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path

import pytest

from tests.serve_hostile import fuzz, mutations


def stream(usage: bool) -> bytes:
    """Return an engine's whole answer on the wire, an event a chunk."""

    def event(**more: object) -> bytes:
        return b"data: " + json.dumps({"id": "c", **more}, separators=(",", ":")).encode() + b"\n\n"

    events = [event(choices=[{"index": 0, "delta": {"content": f"w{i} "}, "finish_reason": None}]) for i in range(2)]
    events.append(event(choices=[{"index": 0, "delta": {}, "finish_reason": "length"}]))
    if usage:
        events.append(event(choices=[], usage={"prompt_tokens": 3, "completion_tokens": 2, "total_tokens": 5}))
    events.append(b"data: [DONE]\n\n")
    head = b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ntransfer-encoding: chunked\r\n\r\n"
    return head + b"".join(b"%x\r\n%b\r\n" % (len(e), e) for e in events) + b"0\r\n\r\n"


async def ask(bench: fuzz.Bench, answer: bytes, step: int, *, wants_usage: bool) -> bytes:
    """Ask once; the engine answers with these bytes in pieces and dies. Return what the client got."""
    bench.asked = []
    client = fuzz.Client(bench.gateway)
    pipe = fuzz.Pipe(client)
    client.connection_made(pipe)  # type: ignore[arg-type]
    options = b',"stream_options":{"include_usage":true}' if wants_usage else b""
    body = b'{"model":"chat","stream":true,"max_tokens":4,"messages":[{"role":"user","content":"x"}]%b}' % options
    head = b"POST /v1/chat/completions HTTP/1.1\r\nhost: x\r\nauthorization: Bearer %b\r\ncontent-length: %d\r\n\r\n"
    client.data_received(head % (mutations.KEY.encode(), len(body)) + body)
    for _ in range(4):  # tries
        for engine in [p for p in bench.asked if not p.closed]:
            for i in range(0, len(answer), step):
                if not engine.closed:
                    engine.protocol.data_received(answer[i : i + step])
            engine.end()
    await asyncio.sleep(0)
    pipe.end()
    bench.check(bytes(pipe.written))
    return bytes(pipe.written)


@pytest.mark.parametrize("wants_usage", [False, True])
@pytest.mark.parametrize("step", [1, 7, 100_000])
def test_a_stream_cut_after_any_byte_is_never_passed_off_as_whole(tmp_path: Path, step: int, wants_usage: bool) -> None:
    """For every length of what came: the last word with its finish_reason, or an error and no `[DONE]`, or a plain 502."""
    wire = stream(usage=True)

    async def go() -> list[str]:
        wrong = []
        for n in range(0, len(wire) + 1, 3 if step < 8 else 1):
            if n % 60 == 0:
                bench = fuzz.Bench(tmp_path)
            got = await ask(bench, wire[:n], step, wants_usage=wants_usage)
            done, told = b"data: [DONE]" in got, b'"error"' in got
            spoken = b'"finish_reason":"length"' in got  # all words were said: then the end may come without [DONE]
            if (done and told) or not (done or told or spoken):
                wrong.append(f"{n} of {len(wire)} bytes, the last {wire[max(0, n - 20) : n]!r}: {got[-120:]!r}")
        return wrong

    assert asyncio.run(go()) == []
