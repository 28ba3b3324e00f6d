"""Heads that were read before: what is taken without reading it again is exactly what reading it again would have given."""

from __future__ import annotations

import asyncio
import re
from collections.abc import Sequence
from pathlib import Path

import httptools
from hypothesis import given
from hypothesis import strategies as st

from baseload.serve.inbound import head_shape
from tests.serve_hostile import cases, fuzz, mutations

NAMES = ("Host", "content-length", "CONTENT-LENGTH", "authorization", "x-request-id", "x-content-length")


def ask(n: int, model: str = "chat", extra: str = "") -> bytes:
    """Return a request whose body is `n` bytes longer than the shortest."""
    body = f'{{"model":"{model}","messages":[{{"role":"user","content":"{"x" * n}"}}]}}'
    head = f"POST /v1/chat/completions HTTP/1.1\r\nhost: x\r\nauthorization: Bearer {mutations.KEY}\r\n{extra}"
    return f"{head}content-length: {len(body)}\r\n\r\n{body}".encode()


def answer(n: int) -> bytes:
    """Return an engine's answer of a length that depends on `n`."""
    said = (
        f'{{"choices":[{{"message":{{"content":"{"y" * n}"}}}}],"usage":{{"prompt_tokens":3,"completion_tokens":2}}}}'
    )
    return f"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: {len(said)}\r\n\r\n{said}".encode()


def say(folder: Path, pieces: Sequence[bytes]) -> tuple[list[int], int, int]:
    """Send pieces on one connection, each engine answering at once: statuses, contents answered, requests sent on."""

    async def go() -> tuple[list[int], int, int]:
        bench = fuzz.Bench(folder)
        client = fuzz.Client(bench.gateway)
        pipe = fuzz.Pipe(client)
        client.connection_made(pipe)  # type: ignore[arg-type]
        done = 0
        for piece in pieces:
            if not pipe.closed:
                client.data_received(piece)
                bench.gateway.turn.end()
            while done < len(bench.asked):
                bench.asked[done].protocol.data_received(answer(done))
                bench.gateway.turn.end()
                done += 1
        pipe.end()
        wire = bytes(pipe.written)
        bench.check(wire)
        contents = [len(found) for found in re.findall(rb'"content":"(y*)"', wire)]
        assert contents == list(range(len(contents)))
        return cases.split_answers(wire), len(contents), done

    return asyncio.run(go())


def test_requests_with_the_same_head_are_each_answered_with_their_own(tmp_path: Path) -> None:
    """Twenty requests of other lengths behind one head: twenty answers, in order, each whole."""
    statuses, answered, sent = say(tmp_path, [ask(n) for n in range(20)])
    assert statuses == [200] * 20 and answered == sent == 20


def test_a_known_head_with_a_body_that_does_not_fit_is_read_letter_by_letter(tmp_path: Path) -> None:
    """Behind a known head: two requests at once, one in three pieces, and one with a byte too many, which is refused."""
    whole = ask(7)
    pieces = [ask(5), ask(6), ask(1) + ask(2), whole[:40], whole[40:-3], whole[-3:], ask(3) + b"!"]
    statuses, answered, sent = say(tmp_path, pieces)
    assert statuses[:6] == [200] * 6 and answered >= 6 and sent <= 7
    assert statuses[6:] in ([200, 400], [400])


def test_a_known_head_does_not_carry_one_request_over_into_the_next(tmp_path: Path) -> None:
    """A model that does not exist is still not there, and garbage still refused, behind a head that went well before."""
    statuses, _, sent = say(tmp_path, [ask(1), ask(2, model="nope"), ask(3), ask(4).replace(b'"user"', b'"user,')])
    assert statuses == [200, 404, 200, 400] and sent == 2


def test_a_body_over_the_limit_is_refused_behind_a_known_head_too(tmp_path: Path) -> None:
    """413 for a length beyond `serve.limits.body_bytes`, whatever went before."""
    statuses, _, sent = say(tmp_path, [ask(1), ask(2), ask(16_777_216)])
    assert statuses == [200, 200, 413] and sent == 2


class Seen:
    """What a parser tells."""

    def __init__(self) -> None:
        self.lines: list[tuple[bytes, bytes]] = []
        self.body = b""
        self.whole = 0

    def on_header(self, name: bytes, value: bytes) -> None:
        """A line of the head."""
        self.lines.append((name.lower(), value))

    def on_body(self, data: bytes) -> None:
        """A piece of the body."""
        self.body += data

    def on_message_complete(self) -> None:
        """The message is whole."""
        self.whole += 1


def read(data: bytes) -> Seen | None:
    """Return what a parser says of one message; None where it is none, or more than one."""
    seen = Seen()
    try:
        httptools.HttpRequestParser(seen).feed_data(data)
    except httptools.HttpParserError:
        return None
    return seen if seen.whole == 1 else None


lines = st.tuples(
    st.sampled_from(NAMES), st.sampled_from((":", ": ", ":\t")), st.sampled_from(("1", "02", "x", "0", "7"))
)


@given(st.lists(lines, max_size=5), st.binary(max_size=8), st.binary(max_size=12), st.integers(0, 12))
def test_what_is_taken_at_sight_is_what_the_parser_would_have_read(
    told: list[tuple[str, str, str]], body: bytes, other: bytes, length: int
) -> None:
    """Any head, any two bodies: where a known head is recognised, a parser reads the same head but for the length."""
    head = "POST / HTTP/1.1\r\n" + "".join(f"{name}{colon}{value}\r\n" for name, colon, value in told)
    first = read(data := f"{head}Content-Length: {len(body)}\r\n\r\n".encode() + body)
    if first is None:
        return
    shape = head_shape(data, len(body))
    again = f"{head}Content-Length: {length}\r\n\r\n".encode() + other
    at = -1 if shape is None else shape.body_at(again)
    if at < 0:
        return
    second = read(again)
    assert second is not None and second.body == again[at:] == other and length == len(other)
    differ = [a[0] for a, b in zip(first.lines, second.lines) if a != b]
    assert len(first.lines) == len(second.lines) and set(differ) <= {b"content-length"}
