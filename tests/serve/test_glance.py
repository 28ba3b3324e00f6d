"""glance.c says nothing that msgspec and the Python behind it would not say: what it answers is what they find."""

from __future__ import annotations

import json
from types import ModuleType
from typing import Any

import msgspec
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from baseload.serve import body as bodies
from baseload.serve import sse
from baseload.serve.body import CHAT, COMPLETIONS, EMBEDDINGS, MAX_DEPTH, MESSAGES, PROMPT_KEYS, RESPONSES, Peek
from baseload.serve.quick import FORBIDDEN
from tests.serve.written_in_c import built


@pytest.fixture(scope="module")
def c(tmp_path_factory: pytest.TempPathFactory) -> ModuleType:
    """The module in C, built for this run with every check that the compiler can put in."""
    return built("glance", tmp_path_factory.mktemp("glance"))


def closely(endpoint: int, body: bytes, monkeypatch: pytest.MonkeyPatch) -> Peek | str:
    """Return what the Python makes of a body without a glance, or why it refuses it."""
    with monkeypatch.context() as patch:
        patch.setattr(bodies, "seen_of", lambda *given: None)
        try:
            return bodies.peek(endpoint, body)
        except bodies.BodyError as error:
            return error.message


STRINGS = st.one_of(
    st.sampled_from(
        ["m", "user", "", "a url", "URL", "é", "a\nb", '"', "\\", "\u017ftream", "https://x/y", "\x7f", "\x01"]
    ),
    st.text(max_size=4),
).map(lambda text: json.dumps(text, ensure_ascii=False))
ODD = st.sampled_from(
    [
        '"\\u0061"', '"\\ud83d\\ude00"', '"\\ud83d"', '"\\x"', '"\\u00e9"', '"a', "01", "-0", "1.", "1.5", "1e5", "-", "9" * 20,
        "NaN",
        "tru", "null", "true", "false", "0", "1", "2147483648", "999999999", "1.0", "[1,]", "{,}", '{"a":}', "[[[1]]]",
        '{"role":1}',
        '[{"role":"user","content":"hi"}]', '[{"role":null}]', '[{"content":[{"type":"text","text":"t"}]}]', "[1]", "[]", "{}",
        '[{"role":"a","role":"b"}]', '[{"role":"a","rol\\u0065":1}]', '{"include_usage":true}', '{"include_usage": null }',
        '{"include_usage":1}', '{"include_usage":true,"x":1}',
    ]
)  # fmt: skip
VALUES = st.recursive(
    st.one_of(STRINGS, ODD),
    lambda inner: st.one_of(
        st.lists(inner, max_size=3).map(lambda parts: f"[{', '.join(parts)}]"),
        st.lists(st.tuples(STRINGS, inner), max_size=3).map(
            lambda parts: "{" + ",".join(f"{k}: {v}" for k, v in parts) + "}"
        ),
    ),
    max_leaves=6,
)
KEYS = st.one_of(
    st.sampled_from(
        [
            '"model"', '"messages"', '"prompt"', '"input"', '"stream"', '"stream_options"', '"max_tokens"', '"n"', '"best_of"',
            '"max_completion_tokens"', '"max_output_tokens"', '"api_key"', '"Model"', '"STREAM"', '"temperature"',
            '"mod\\u0065l"',
            '"image_url"', '"usage"', '"\u017ftream"', '"n "',
        ]
    ),
    STRINGS,
)  # fmt: skip
GAPS = st.sampled_from(["", "", "", " ", "\n\t", "\r", "\x0b", "\x00"])
MEMBERS = st.one_of(
    st.tuples(KEYS, VALUES),
    st.sampled_from(
        [
            ('"model"', '"m"'), ('"messages"', '[{"role":"user","content":"hi"}]'), ('"prompt"', '"hi"'),
            ('"input"', '["hi"]'),
            ('"stream"', "true"), ('"max_tokens"', "5"), ('"n"', "1"), ('"n"', "2"),
            ('"stream_options"', '{"include_usage":true}'),
        ]
    ),
)  # fmt: skip
BODIES = st.tuples(st.lists(MEMBERS, max_size=5), GAPS, st.sampled_from(["", "", "", "x", "}", ",", " ", "\n"])).map(
    lambda found: (
        "{" + ",".join(f"{found[1]}{k}{found[1]}:{v}{found[1]}" for k, v in found[0]) + "}" + found[2]
    ).encode("utf-8", "surrogatepass")
)
USUAL = b'{"model":"m","messages":[{"role":"user","content":"a \\"b\\" \\u00e9"}],"max_tokens":7,"t":0.5,"tools":[{"a":[]}]}'


@given(body=BODIES, endpoint=st.sampled_from([CHAT, COMPLETIONS, EMBEDDINGS, RESPONSES, MESSAGES]))
@example(USUAL, CHAT)
@example(
    b'{"model":"m","messages":[],"stream":true,"stream_options":{"include_usage":true},"max_completion_tokens":3}', CHAT
)
@example(b'{"model":"m","prompt":"p","max_tokens":0}', COMPLETIONS)
@example(b'{"model":"m","input":' + b"[" * 99 + b"]" * 99 + b"}", RESPONSES)
@example(b'{"model":"m","input":' + b"[" * 100 + b"]" * 100 + b"}", RESPONSES)
def test_a_glance_sees_what_a_closer_look_finds(c: ModuleType, body: bytes, endpoint: int) -> None:
    """Whatever a glance tells of a body, the whole reading tells too; what that refuses, a glance does not take."""
    try:
        body.decode()
    except UnicodeDecodeError:
        return  # refused before
    seen = c.seen_of(body, PROMPT_KEYS[endpoint], 0 if endpoint == COMPLETIONS else 1, MAX_DEPTH)
    if seen is None:
        return
    with pytest.MonkeyPatch.context() as patch:
        found = closely(endpoint, body, patch)
    assert isinstance(found, Peek), found
    model, stream, wants_usage, has_options, most, text = seen
    assert (model, stream and endpoint != EMBEDDINGS, wants_usage, has_options) == (
        found.model, found.stream, found.wants_usage, found.has_stream_options,
    )  # fmt: skip
    assert (most, text, found.choices) == (found.max_tokens, found.text, 1)


def test_the_usual_body_is_seen_at_a_glance(c: ModuleType) -> None:
    """A chat as clients send it needs no closer look; one that names its model twice, or hides a letter, does."""
    assert c.seen_of(USUAL, b"messages", 1, 100) == ("m", False, False, False, 7, USUAL[24 : USUAL.index(b',"max')])
    for more in (b'"model":"m",', b'"mod\\u0065l":"x",', b'"api_base":"x",', b'"n":2,', b'"x":"a url",', b'"x":01,'):
        assert c.seen_of(USUAL.replace(b'"max', more + b'"max'), b"messages", 1, 100) is None


def test_no_name_that_is_forbidden_passes_a_glance(c: ModuleType) -> None:
    """Each name with which a body could choose its upstream, and each judged name in other letters, is looked at closer."""
    for name in (*FORBIDDEN, *(name.upper() for name in FORBIDDEN), "best_of", "Model", "STREAM", "N", "Max_Tokens"):
        body = USUAL.replace(b'"max', b'"%b":null,"max' % name.encode(), 1)
        assert c.seen_of(body, b"messages", 1, 100) is None, name


COUNTS = st.one_of(
    st.tuples(
        st.sampled_from(
            [
                '"prompt_tokens"', '"completion_tokens"', '"total_tokens"', '"input_tokens"', '"prompt_tokens_details"',
                '"cache_read_input_tokens"', '"completion_tokens_details"', '"x"',
            ]
        ),
        st.one_of(
            st.sampled_from(["0", "7", "-1", "1.0", "null", '{"cached_tokens":3}', '{"cached_tokens":null}', "{}", '"7"']),
            VALUES,
        ),
    ),
    st.sampled_from([('"prompt_tokens"', "9"), ('"completion_tokens"', "4")]),
)  # fmt: skip
USAGES = st.lists(COUNTS, max_size=4).map(
    lambda found: ('"usage"', "{" + ",".join(f"{k}:{v}" for k, v in found) + " }")
)
ANSWERS = st.tuples(st.lists(st.one_of(MEMBERS, USAGES), max_size=3), GAPS).map(
    lambda found: ("{" + ",".join(f"{k}{found[1]}:{v}" for k, v in found[0]) + "}" + found[1]).encode(
        "utf-8", "surrogatepass"
    )
)


@given(answer=ANSWERS)
@example(
    b'{"id":"a","choices":[{"message":{"content":"\\u00e9 usage"}}],"usage":{"prompt_tokens":9,"completion_tokens":4}}'
)
@example(b'{"usage":{"prompt_tokens":2,"completion_tokens":4,"prompt_tokens_details":{"cached_tokens":8}}}')
def test_a_glance_counts_what_a_closer_look_counts(c: ModuleType, answer: bytes) -> None:
    """Tokens that are read at a glance are those that msgspec reads, and what is added behind them ends in the same place."""
    try:
        answer.decode()
    except UnicodeDecodeError:
        return
    seen = c.usage_of(answer, 100)
    if seen is None:
        return
    usage = sse.usage_of_answer(answer)
    assert usage is not None
    assert seen[:3] == (usage.input_tokens, usage.cached_tokens, usage.output_tokens)
    added = sse.with_members(answer, b'"cost":1', seen[3])
    assert msgspec.json.decode(added) == msgspec.json.decode(sse.with_members(answer, b'"cost":1'))
    assert msgspec.json.decode(added)["usage"]["cost"] == 1


def test_the_usual_answer_is_counted_at_a_glance(c: ModuleType) -> None:
    """An answer as engines give it needs no closer look; one that says usage twice, or is cut, does."""
    answer = b'{"choices":[{"logprobs":null}],"usage":{"prompt_tokens":9,"completion_tokens":4,"total_tokens":13}}'
    assert c.usage_of(answer, 100) == (9, -1, 4, len(answer) - 2)
    assert c.usage_of(answer[:-1], 100) is None and c.usage_of(answer + b"x", 100) is None
    assert c.usage_of(answer[:-1] + b',"usage":null}', 100) is None


SAID = st.sampled_from(
    ["content", "text", "refusal", "Content", "con\\u0074ent", 'x\\"content', "finish_reason", "role"]
)
DELTAS = st.lists(st.tuples(SAID.map('"{}"'.format), VALUES), max_size=3).map(
    lambda found: "{" + ",".join(f"{k}:{v}" for k, v in found) + "}"
)
CHOICES = st.one_of(
    st.tuples(DELTAS, st.sampled_from(["null", '"stop"', '""', "1"])).map(
        lambda found: f'[{{"index":0,"delta":{found[0]},"finish_reason":{found[1]}}}]'
    ),
    st.sampled_from(
        ["[]", "null", "1", "[1]", '[{"delta":{"content":"a"}},{"delta":{"content":"b"}}]', '[{"text":"t"}]']
    ),
)
USAGES = st.sampled_from(
    [
        "null", "{}", '{"prompt_tokens":3,"completion_tokens":2}', '{"prompt_tokens":3,"completion_tokens":2,"text":"x"}',
        '{"prompt_tokens":3,"completion_tokens":2,"prompt_tokens_details":{"cached_tokens":9,"content":"x"}}',
        '{"prompt_tokens":"3","completion_tokens":2}', '{"input_tokens":3,"output_tokens":2}', "[]",
        '{"prompt_tokens":1e3,"completion_tokens":2}',
    ]
)  # fmt: skip
PARTS = st.one_of(
    st.tuples(st.just('"choices"'), CHOICES),
    st.tuples(st.just('"choices"'), CHOICES),
    st.tuples(st.just('"usage"'), USAGES),
    st.tuples(st.sampled_from(['"error"', '"type"', '"message"', '"id"', '"text"', '"us\\u0061ge"']), VALUES),
)
FRAMES = st.sampled_from(
    [("data: ", "\n\n")] * 6 + [("data:", "\n\n"), ("data: ", "\r\n\r\n"), ("data: ", "\n\n\n"), ("", "")]
)
EVENTS = st.tuples(st.lists(PARTS, max_size=4), GAPS, FRAMES).map(
    lambda found: (
        found[2][0] + "{" + ",".join(f"{k}{found[1]}:{found[1]}{v}{found[1]}" for k, v in found[0]) + "}" + found[2][1]
    ).encode("utf-8", "surrogatepass")
)


def all_of(event: bytes, look: Any, finished: bool, strip: bool) -> tuple[Any, ...]:
    """Return all that a scanner makes of an event, with this way to look at it."""
    scanner = sse.Scanner(CHAT, strip_usage=strip)
    scanner.finished, scanner.hide = finished, strip
    scanner.splice = lambda seen: seen + b"!"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sse, "event_of", look)
        try:
            out = scanner.feed(event)
        except sse.Broken as broken:
            return ("broken", str(broken))
    usage = scanner.usage
    counts = usage and (usage.input_tokens, usage.cached_tokens, usage.output_tokens)
    return (
        out, scanner.tokens, scanner.finished, scanner.n_choices, scanner.ended, scanner.error, counts, scanner.running,
        scanner.ahead,
    )  # fmt: skip


@given(event=EVENTS, finished=st.booleans(), strip=st.booleans())
@example(b'data: {"choices":[{"delta":{"content":"a"},"finish_reason":null}],"usage":null}\n\n', False, True)
@example(b'data: {"choices":[],"usage":{"prompt_tokens":3,"completion_tokens":2}}\n\n', True, True)
@example(
    b'data: {"choices":[{"delta":{},"finish_reason":"stop"}],"usage":{"prompt_tokens":3,"completion_tokens":2}}\n\n',
    False,
    False,
)
def test_an_event_at_a_glance_is_what_a_closer_look_makes_of_it(
    c: ModuleType, event: bytes, finished: bool, strip: bool
) -> None:
    """What goes on, tokens, ends, usage and counts along: the same, whichever way an event was looked at."""
    glanced = all_of(event, c.event_of, finished, strip)
    assert glanced == all_of(event, lambda *given: None, finished, strip)


def test_plain_events_are_taken_at_a_glance(c: ModuleType) -> None:
    """A word, an end and a count, as engines send them: else nothing above is tested."""
    word = b'data: {"id":"x","choices":[{"index":0,"delta":{"content":"w"},"logprobs":null,"finish_reason":null}]}\n\n'
    assert c.event_of(word, MAX_DEPTH) == (1, 0, 1, -2, -1, -1)
    end = b'data: {"choices":[{"index":0,"delta":{},"finish_reason":"length"}],"usage":null}\n\n'
    assert c.event_of(end, MAX_DEPTH) == (0, 1, 1, -2, -1, -1)
    told = b'data: {"choices":[],"usage":{"prompt_tokens":9,"completion_tokens":4,"total_tokens":13}}\n\n'
    assert c.event_of(told, MAX_DEPTH) == (0, 0, 0, 9, -1, 4)
