"""An answer's events: the same whatever pieces they come in, counted as engines stream, and never garbage passed on."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from baseload.serve.body import CHAT, COMPLETIONS, MESSAGES, RESPONSES
from baseload.serve.sse import EVENT_BYTES_MAX, Broken, Scanner


def told(value: Any, end: bytes = b"\n\n", *, loose: bool = False) -> bytes:
    """Return an event as an engine sends it."""
    return b"data: " + json.dumps(value, separators=None if loose else (",", ":")).encode() + end


def chunk(delta: dict[str, Any], finish: str | None = None, **more: Any) -> dict[str, Any]:
    """Return a chat chunk."""
    choices = [{"index": 0, "delta": delta, "logprobs": None, "finish_reason": finish}]
    return {"id": "c", "object": "chat.completion.chunk", "model": "m", "choices": choices, **more}


def chat_stream(texts: list[str], end: bytes = b"\n\n", *, loose: bool = False, usage: bool = True) -> list[bytes]:
    """Return the events of a chat stream."""
    out = [told(chunk({"role": "assistant", "content": ""}), end, loose=loose)]
    out += [told(chunk({"content": text}), end, loose=loose) for text in texts]
    out.append(told(chunk({}, "stop"), end, loose=loose))
    if usage:
        counts = {"prompt_tokens": 7, "completion_tokens": len(texts), "total_tokens": 7 + len(texts)}
        out.append(told({"id": "c", "choices": [], "usage": counts}, end, loose=loose))
    return [*out, b"data: [DONE]" + end]


def named(kind: str, **rest: Any) -> bytes:
    """Return an event with a name, as Anthropic's and OpenAI's newer streams have it."""
    return f"event: {kind}\n".encode() + told({"type": kind, **rest})


MESSAGE = [
    named("message_start", message={"id": "m", "usage": {"input_tokens": 9, "output_tokens": 1}}),
    named("content_block_start", index=0, content_block={"type": "text", "text": ""}),
    named("ping"),
    named("content_block_delta", index=0, delta={"type": "text_delta", "text": "hello"}),
    named("content_block_delta", index=0, delta={"type": "input_json_delta", "partial_json": '{"a":'}),
    named("content_block_stop", index=0),
    named("message_delta", delta={"stop_reason": "end_turn"}, usage={"output_tokens": 2}),
    named("message_stop"),
]
RESPONSE = [
    named("response.created", response={"id": "r", "status": "in_progress", "usage": None}),
    named("response.output_text.delta", delta="a", sequence_number=1),
    named("response.output_text.delta", delta="b", sequence_number=2),
    named("response.output_text.done", text="ab", sequence_number=3),
    named("response.completed", response={"id": "r", "usage": {"input_tokens": 3, "output_tokens": 2}}),
]


def run(kind: int, pieces: list[bytes], *, strip: bool = False) -> tuple[bytes, Any]:
    """Feed pieces; return what is passed on, and what was seen."""
    scanner = Scanner(kind, strip_usage=strip)
    out = b"".join(scanner.feed(piece) for piece in pieces)
    usage = scanner.usage and (scanner.usage.input_tokens, scanner.usage.cached_tokens, scanner.usage.output_tokens)
    seen = (scanner.tokens, usage, scanner.ended, scanner.finished, scanner.error, scanner.held)
    return out, seen


def pieces_of(data: bytes, cuts: list[int]) -> list[bytes]:
    """Cut bytes at these places."""
    places = [0, *sorted({cut % (len(data) + 1) for cut in cuts}), len(data)]
    return [data[a:b] for a, b in zip(places, places[1:], strict=False)]


STREAMS = st.one_of(
    st.builds(
        lambda texts, end, loose, usage: (CHAT, b"".join(chat_stream(texts, end, loose=loose, usage=usage))),
        st.lists(st.text(max_size=12), max_size=6),
        st.sampled_from([b"\n\n", b"\r\n\r\n"]),
        st.booleans(),
        st.booleans(),
    ),
    st.sampled_from([(MESSAGES, b"".join(MESSAGE)), (RESPONSES, b"".join(RESPONSE))]),
)


@given(STREAMS, st.lists(st.integers(0, 1 << 16), max_size=40), st.booleans())
def test_any_fragmentation_gives_the_same_events(stream: tuple[int, bytes], cuts: list[int], strip: bool) -> None:
    """Where the network cuts an answer changes neither what is passed on nor what is counted."""
    kind, data = stream
    whole = run(kind, [data], strip=strip)
    assert run(kind, pieces_of(data, cuts), strip=strip) == whole
    assert run(kind, [data[i : i + 1] for i in range(len(data))], strip=strip) == whole


@given(STREAMS, st.lists(st.integers(0, 1 << 16), max_size=20))
def test_what_needs_no_change_is_passed_on_byte_for_byte(stream: tuple[int, bytes], cuts: list[int]) -> None:
    """Nothing is re-serialised: the client gets the engine's bytes."""
    kind, data = stream
    out, seen = run(kind, pieces_of(data, cuts))
    assert out == data
    assert seen[2] and not seen[5]


@given(st.lists(st.integers(0, 1 << 16), max_size=20), st.binary(max_size=200), st.integers(0, 400))
def test_no_bytes_make_it_stumble(cuts: list[int], noise: bytes, at: int) -> None:
    """Whatever an engine sends, the answer is events or `Broken`, never another error."""
    data = b"".join(chat_stream(["a", "b"]))
    for piece in (data[:at] + noise + data[at:], noise):
        scanner = Scanner(CHAT, strip_usage=True)
        try:
            for part in pieces_of(piece, cuts):
                scanner.feed(part)
        except Broken:
            pass


def test_a_token_is_a_piece_that_says_something() -> None:
    """Counted are pieces with content: roles, empty pieces, finish reasons and usage are none."""
    _, (tokens, usage, ended, finished, error, _) = run(CHAT, chat_stream(["x", "", '"', "\\", "\n"]))
    assert (tokens, ended, finished, error) == (4, True, True, None)
    assert usage[0] == 7 and usage[2] == 5


@pytest.mark.parametrize(
    ("delta", "n"),
    [
        ({"reasoning_content": "hm"}, 1),
        ({"reasoning": "hm"}, 1),
        ({"content": None, "tool_calls": [{"index": 0, "function": {"arguments": '{"a'}}]}, 1),
        ({"refusal": "no"}, 1),
        ({"content": ""}, 0),
        ({"role": "assistant", "content": None}, 0),
        ({}, 0),
    ],
)
def test_all_that_an_answer_may_consist_of_counts(delta: dict[str, Any], n: int) -> None:
    """Thoughts, tool calls and refusals are tokens too."""
    assert run(CHAT, [told(chunk(delta))])[1][0] == n


def test_streams_of_all_four_kinds_end_by_their_own_word() -> None:
    """Chat and completions end with [DONE], messages with message_stop, responses with response.completed."""
    text = {"id": "c", "object": "text_completion", "choices": [{"index": 0, "text": "a", "finish_reason": "stop"}]}
    completion = [told(text), b"data: [DONE]\n\n"]
    for kind, stream, tokens in ((COMPLETIONS, completion, 1), (MESSAGES, MESSAGE, 2), (RESPONSES, RESPONSE, 2)):
        assert run(kind, stream[:-1])[1][2] is False
        seen = run(kind, stream)[1]
        assert seen[2] is True and seen[0] == tokens, (kind, seen)
    assert run(MESSAGES, MESSAGE)[1][1] == (9, -1, 2)
    assert run(RESPONSES, RESPONSE)[1][1] == (3, -1, 2)


def test_a_usage_chunk_nobody_asked_for_is_taken_out() -> None:
    """The gateway asks the engine for usage; a client that did not sees the stream as without it."""
    stream = chat_stream(["a", "b"])
    out, seen = run(CHAT, [b"".join(stream)], strip=True)
    assert out == b"".join(chat_stream(["a", "b"], usage=False))
    assert seen[1][2] == 2


def test_words_in_an_answer_are_no_signs() -> None:
    """Text that looks like usage, an error, an end or a finish reason is text."""
    texts = ['{"error":{"message":"x"}}', "data: [DONE]\n\n", '"finish_reason":"stop"', '"usage":{"prompt_tokens":99}']
    stream = [told(chunk({"content": text})) for text in texts]
    out, (tokens, usage, ended, finished, error, held) = run(CHAT, stream)
    assert out == b"".join(stream)
    assert (tokens, usage, ended, finished, error, held) == (4, None, False, False, None, 0)


def test_an_error_within_the_stream_is_seen() -> None:
    """An engine that says that it failed is believed, in each of the forms in which engines say so."""
    for event in (
        told({"error": {"message": "boom", "code": 500}}),
        told({"object": "error", "error": "boom"}),
        named("error", error={"type": "overloaded_error", "message": "boom"}),
    ):
        assert run(MESSAGES if event.startswith(b"event") else CHAT, [event])[1][4] is not None


@pytest.mark.parametrize(
    "bad",
    [b'data: {"choices":[{"delta":{"content":"x"\n\n', b"data: {]}\n\n", b"data: hello\n\n", b"HTTP/1.1 500\r\n\r\n",
     b"data: [DONE\n\n", b"<html>\n\n", b"data: " + b"[" * 100_000 + b"\n\n", b'data: {"a":' + b"[" * 100_000 + b"\n\n"],
)  # fmt: skip
def test_garbage_is_told_from_events(bad: bytes) -> None:
    """What is no event of an answer is never passed on."""
    with pytest.raises(Broken):
        run(CHAT, [told(chunk({"content": "x"})), bad])


def test_comments_and_keepalives_pass() -> None:
    """Lines that are no data go through: engines keep connections awake with them."""
    stream = [b": ping\n\n", told(chunk({"content": "x"})), b"\n", b"event: ping\n\n", b"retry: 10\n\n", b"id: 4\n\n"]
    assert run(CHAT, [b"".join(stream)])[0] == b"".join(stream)


def test_an_endless_line_is_cut() -> None:
    """An event without an end is refused before it fills the memory."""
    scanner = Scanner(CHAT, strip_usage=False)
    with pytest.raises(Broken):
        for _ in range(EVENT_BYTES_MAX // 65_536 + 2):
            scanner.feed(b"a" * 65_536)


def test_an_event_with_usage_is_reckoned_with_its_own_token() -> None:
    """Engines that tell usage with every token: what an event costs so far has that event's token in it."""
    scanner, counted = Scanner(CHAT, strip_usage=False), []

    def splice(event: bytes) -> bytes:
        counted.append(scanner.tokens)
        return event

    scanner.splice = splice
    for n in (1, 2, 3):
        scanner.feed(told({**chunk({"content": "x"}), "usage": {"prompt_tokens": 2, "completion_tokens": n}}))
    assert counted == [1, 2, 3] and scanner.tokens == 3


@given(
    st.lists(st.sampled_from(["a", "", "b", '"', "\\n"]), max_size=12),
    st.lists(st.integers(0, 1 << 12), max_size=8),
    st.lists(st.integers(0, 4), max_size=20),
    st.sampled_from([b"\n\n", b"\r\n\r\n"]),
)
def test_events_wait_for_money_and_lose_nothing(
    texts: list[str], cuts: list[int], grants: list[int], end: bytes
) -> None:
    """Fed in any pieces and let on in any steps, a stream is the same bytes, and never further than it was let."""
    stream = b"".join(chat_stream(texts, end))
    scanner, out, later = Scanner(CHAT, strip_usage=False), b"", iter(grants)
    scanner.most = next(later, 1 << 20)
    for piece in [*pieces_of(stream, cuts), b""]:
        if scanner.tokens >= scanner.most:
            scanner.keep(piece)
        else:
            out += scanner.feed(piece)
        assert scanner.tokens <= scanner.most
        scanner.most += next(later, 1) if piece else 1 << 20
        while scanner.rest and scanner.tokens < scanner.most:
            out += scanner.feed(b"")
            assert scanner.tokens <= scanner.most
    assert out == stream and scanner.ended and not scanner.rest and not scanner.held
