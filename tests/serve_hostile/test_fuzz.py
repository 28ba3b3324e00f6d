"""A short form of `make fuzz-serve`: hostile requests, answers and streams against the real parsers, in process."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from tests.serve_hostile import cases, fuzz, mutations


def test_no_request_and_no_answer_escapes() -> None:
    """Whatever a client sends and an engine says: HTTP comes back, each opened request ends once, no count leaks."""
    said: list[str] = []
    assert fuzz.run("request", 0, 1500, said.append) == 0, "\n".join(said)


def test_a_stream_is_read_the_same_in_any_pieces() -> None:
    """Tokens and verdict of an event stream do not depend on how the network cuts it."""
    said: list[str] = []
    assert fuzz.run("sse", 0, 600, said.append) == 0, "\n".join(said)


@pytest.mark.parametrize("chunked", [False, True])
def test_a_request_that_was_read_ahead_keeps_its_body(tmp_path: Path, chunked: bool) -> None:
    """Requests that came in one piece with the first, while that is still being answered, reach engines whole."""
    bodies = [cases.GOOD.replace(b"hello", b"hello %d" % i) for i in range(4)]

    def wire(body: bytes) -> bytes:
        if not chunked:
            return cases.post(body, mutations.KEY)
        told = b"%x\r\n%b\r\n%x\r\n%b\r\n0\r\n\r\n" % (9, body[:9], len(body) - 9, body[9:])
        return cases.head("POST", cases.CHAT, "Transfer-Encoding: chunked", key=mutations.KEY) + told

    async def go() -> list[bytes]:
        bench = fuzz.Bench(tmp_path)
        assert await bench.understood([b"".join(map(wire, bodies))]) == [500] * 4
        return [bytes(pipe.written) for pipe in bench.asked]

    asked = asyncio.run(go())
    assert [any(b"hello %d" % i in one for one in asked) for i in range(4)] == [True] * 4
