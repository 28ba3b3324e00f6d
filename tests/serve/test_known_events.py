"""Events like the one before: taken at sight they say and give just what reading them whole would have."""

from __future__ import annotations

from typing import Any

import httptools
from hypothesis import example, given
from hypothesis import strategies as st

from baseload.serve.body import CHAT, COMPLETIONS, MESSAGES, RESPONSES
from baseload.serve.sse import Broken, Scanner
from baseload.serve.turn import Turn
from baseload.serve.upstream import Connection, Place

HEADS = (
    b'data: {"id":"c","choices":[{"index":0,"delta":{"content":"',
    b'data: {"id":"c","choices":[{"index":1,"delta":{"content": "',
    b'data: {"choices":[{"index":0,"text":"',
    b'event: content_block_delta\ndata: {"type":"content_block_delta","delta":{"type":"text_delta","text":"',
    b'data: {"type":"response.output_text.delta","delta":"',
    b'data: {"usage":{"prompt_tokens":1,"completion_tokens":2},"choices":[{"delta":{"content":"',
    b'data: {"a":[',
)
TAILS = (
    b'"},"logprobs":null,"finish_reason":null}]}\n\n',
    b'"},"finish_reason":"stop"}]}\n\n',
    b'"},"finish_reason":null}],"usage":{"prompt_tokens":3,"completion_tokens":9}}\n\n',
    b'","finish_reason":null}]}\n\n',
    b'"}}\n\n',
    b'"}\n\n',
    b'","text":"b"}\n\n',
    b"]}\n\n",
)
WORDS = st.one_of(
    st.text(max_size=6).map(lambda text: text.encode("utf-8", "surrogatepass")),
    st.sampled_from(
        [b"", b"a", b" word", b'"', b"\\", b'\\"', b"\\u00e9", b"\n", b"\r", b"\n\n", b"\x1f", b"\x7f", b"\xff", b"\xc3",
         b'","finish_reason":"stop","x":"', b'"},"error":"x","y":{"z":"', "é".encode(), "\u2028".encode(), b'"usage":{']
    ),
    st.binary(max_size=5),
)  # fmt: skip
EVENTS = st.one_of(
    st.tuples(st.sampled_from(HEADS), WORDS, st.sampled_from(TAILS)).map(b"".join),
    st.sampled_from([b"data: [DONE]\n\n", b": ping\n\n", b'data: {"error":{"message":"x"}}\n\n', b"data: {\n\n"]),
)
ALIKE = st.tuples(st.sampled_from(HEADS), st.sampled_from(TAILS), st.lists(WORDS, max_size=8)).map(
    lambda parts: [parts[0] + words + parts[1] for words in parts[2]]
)


def framed(event: bytes, size: bytes = b"%x") -> bytes:
    """Return a chunk as an engine sends it."""
    return size % len(event) + b"\r\n" + event + b"\r\n"


def seen(scanner: Scanner) -> Any:
    """Return what a scanner has seen."""
    return (
        scanner.tokens,
        scanner.usage and (scanner.usage.input_tokens, scanner.usage.cached_tokens, scanner.usage.output_tokens),
        scanner.ended,
        scanner.finished,
        scanner.error,
        scanner.held,
        scanner.n_choices,
    )


@given(
    kind=st.sampled_from([CHAT, COMPLETIONS, MESSAGES, RESPONSES]),
    events=st.one_of(ALIKE, st.lists(EVENTS, max_size=10), st.tuples(ALIKE, ALIKE).map(lambda two: two[0] + two[1])),
    strip=st.booleans(),
)
@example(CHAT, [HEADS[0] + word + TAILS[0] for word in (b"a", b"b", b'"', b"c\xff")], False)
@example(CHAT, [HEADS[0] + b"a" + TAILS[1]] * 3, False)
@example(CHAT, [HEADS[0] + b"a" + TAILS[2]] * 3, True)
def test_an_event_taken_at_sight_is_what_reading_it_gives(kind: int, events: list[bytes], strip: bool) -> None:
    """Scanner by scanner, event by event: same bytes out, same count, same end, same fault."""
    whole, quick = Scanner(kind, strip_usage=strip, n_choices=2), Scanner(kind, strip_usage=strip, n_choices=2)
    whole._learnt = 1 << 30  # it never knows one again
    for event in events:
        data = framed(event)
        fault: str | None = None
        try:
            out = whole.feed(event)
        except Broken as broken:
            fault, out = str(broken), b""
        try:
            if quick.same(data, len(data) - len(event) - 2, len(data) - 2):
                got, quick.tokens = event, quick.tokens + 1
            else:
                got = quick.feed(event)
        except Broken as broken:
            got = str(broken).encode()
        assert got == (out if fault is None else fault.encode())
        if fault is not None:
            return
        assert seen(quick) == seen(whole)


def test_plain_words_are_taken_at_sight() -> None:
    """After the first event of a stream all that differ in their words alone are known, in any script."""
    scanner = Scanner(CHAT, strip_usage=False)
    scanner.feed(HEADS[0] + b"one" + TAILS[0])
    for n, words in enumerate((b" two", "日本語".encode(), b"\x7f", "\u2028".encode()), 2):
        data = framed(HEADS[0] + words + TAILS[0])
        assert scanner.same(data, data.index(b"\n") + 1, len(data) - 2), n


class Taker:
    """Keeps what comes."""

    def __init__(self) -> None:
        self.body, self.n_framed, self.end = b"", 0, ""

    def begins(self, status: int, content_type: bytes, retry_after: bytes) -> None:
        """Not kept."""

    def comes(self, data: bytes) -> None:
        """Keep a piece."""
        self.body += data

    def frames(self, data: bytes, ends: list[int]) -> None:
        """Keep several pieces, and that they came as chunks."""
        self.body += b"".join(data[at:end] for at, end in zip(ends[::2], ends[1::2], strict=True))
        self.n_framed += len(ends) // 2

    def ended(self) -> None:
        """Whole."""
        self.end = "whole"

    def broken(self, why: str, *, unreached: bool = False) -> None:
        """Not whole."""
        self.end = "broken"


class Pipe:
    """A transport that goes nowhere."""

    def write(self, data: bytes) -> None:
        """Nobody listens."""

    def get_extra_info(self, name: str) -> None:
        """There is none."""

    def abort(self) -> None:
        """Nothing to close."""

    close = abort


def read_plainly(data: bytes) -> tuple[bytes, bool, bool]:
    """Return the body that the parser alone finds in an answer, whether it is whole, and whether it is at fault."""
    body, done = [], []

    class Told:
        def on_body(self, piece: bytes) -> None:
            body.append(b"" if done else piece)

        def on_message_complete(self) -> None:
            done.append(1)

    try:
        httptools.HttpResponseParser(Told()).feed_data(data)
    except httptools.HttpParserError:
        return b"".join(body), bool(done), True
    return b"".join(body), bool(done), False


SIZES = st.sampled_from([b"%x", b"%X", b"0%x", b"%x;a=b", b"%x ", b"+%x", b"0x%x", b"%x_0", b"-%x"])
PAYLOADS = st.one_of(
    st.binary(min_size=1, max_size=40), st.sampled_from([b"\r\n", b"2\r\nab\r\n", b"0\r\n\r\n", b"a" * 300])
)


@given(
    chunks=st.lists(st.tuples(PAYLOADS, SIZES, st.integers(-1, 1)), max_size=6),
    cuts=st.lists(st.integers(0, 900), max_size=6),
    by_chunk=st.booleans(),
    end=st.sampled_from([b"0\r\n\r\n", b"0\r\nt: x\r\n\r\n", b"", b"0\r\n\r\nHTTP/1.1 200 OK\r\n", b"5\r\nab"]),
)
def test_a_chunk_taken_at_sight_is_what_the_parser_would_have_read(
    chunks: list[tuple[bytes, bytes, int]], cuts: list[int], by_chunk: bool, end: bytes
) -> None:
    """However an engine frames and cuts its chunks, honest or not: the body is what the parser alone finds in the bytes."""
    head = b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n"
    pieces = [head]
    for payload, size, wrong in chunks:
        pieces.append(
            size % (len(payload) + (0 if by_chunk else wrong * (len(payload) % 3 == 0))) + b"\r\n" + payload + b"\r\n"
        )
    pieces.append(end)
    stream = b"".join(pieces)
    if not by_chunk:
        places = [0, *sorted({cut % (len(stream) + 1) for cut in cuts}), len(stream)]
        pieces = [stream[a:b] for a, b in zip(places, places[1:], strict=False)]
    connection, taker = Connection(Place("http://127.0.0.1:9", "", Turn())), Taker()
    connection.connection_made(Pipe())  # type: ignore[arg-type]
    connection.send(taker, b"")
    connection.place.idle = [connection] * 256  # so that it is not kept
    for piece in pieces:
        if piece and not taker.end:
            connection.data_received(piece)
    body, whole, fault = read_plainly(stream)
    assert taker.body == body or (fault and body.startswith(taker.body))
    assert (taker.end == "whole") == whole
    assert (taker.end == "broken") <= fault


def test_chunks_one_by_one_pass_the_parser_by() -> None:
    """Chunks that come one at a time are framed at sight, all but the first, which comes with the head's judgement."""
    connection, taker = Connection(Place("http://127.0.0.1:9", "", Turn())), Taker()
    connection.connection_made(Pipe())  # type: ignore[arg-type]
    connection.send(taker, b"")
    connection.data_received(b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n")
    for _ in range(9):
        connection.data_received(b"5\r\nhello\r\n")
    assert taker.body == b"hello" * 9 and taker.n_framed == 8
