"""What the gateway understands of a body is what every other reader understands; the rest is refused with a sentence."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from baseload.serve.body import (
    CHAT,
    COMPLETIONS,
    EMBEDDINGS,
    MESSAGES,
    ODD_BYTES_MAX,
    RESPONSES,
    BodyError,
    peek,
    prefix_hashes,
    top_level,
    with_model,
    with_usage_wish,
)
from baseload.serve.quick import BLOCK_BYTES, JUDGED

GOOD: dict[str, Any] = {"model": "chat", "max_tokens": 2, "messages": [{"role": "user", "content": "hello"}]}
RAW = json.dumps(GOOD, separators=(",", ":")).encode()
JSON_VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    max_leaves=8,
)


def told(**more: Any) -> bytes:
    """Return a good body with these members beside or in place of its own."""
    return json.dumps({**GOOD, **more}).encode()


def test_what_is_seen_of_a_good_body() -> None:
    """Model, stream, usage, the answer's limit and bounds of the prompt."""
    seen = peek(CHAT, told(stream=True, stream_options={"include_usage": True}, n=3, tools=[{"type": "function"}]))
    assert (seen.model, seen.stream, seen.wants_usage, seen.max_tokens) == ("chat", True, True, 6)
    assert 1 <= seen.input_tokens <= seen.input_tokens_max <= len(told()) + 200
    assert peek(COMPLETIONS, b'{"model":"m","prompt":["a","b"],"stream":null}').stream is False
    assert peek(EMBEDDINGS, b'{"model":"m","input":[1,2],"stream":true}').stream is False
    assert peek(RESPONSES, b'{"model":"m","input":"x","max_output_tokens":9}').max_tokens == 9
    assert peek(MESSAGES, told(system="be kind")).max_tokens == 2


@pytest.mark.parametrize(
    "body",
    [
        b"", b"[]", b'"x"', b"5", b"null", RAW[:-3], b"\xef\xbb\xbf" + RAW, RAW + RAW, RAW[:-1] + b",}", b"/* */" + RAW,
        RAW.replace(b"hello", b"\xff\xfe"), RAW.replace(b"hello", b"a\x01b"), RAW.replace(b"hello", b"a\0b"),
        RAW.replace(b"hello", b"\\x41"), RAW.replace(b":2,", b":02,"), RAW[:-1] + b',"t":NaN}',
        RAW[:-1] + b',"t":-Infinity}', RAW.replace(b"hello", b"\\ud800"), RAW.replace(b"hello", b"\\udc00\\ud800"),
        RAW.replace(b"chat", b"ch\\udc00at"), RAW[:-1] + b',"x":' + b"[" * 101 + b"]" * 101 + b"}",
        RAW[:-1] + b',"x":' + b'{"a":' * 20_000 + b"1" + b"}" * 20_000 + b"}", b"[" * 1_000_000,
        RAW[:-1] + b',"model":"other"}', RAW[:-1] + b',"max_tokens":999}', RAW[:-1] + b',"stream":false,"stream":true}',
        RAW[:-1] + b',"messages":[]}', RAW[:-1] + b',"\\u006dodel":"other"}', RAW[:-1] + b',"api\\u005fbase":"http://x"}',
        RAW[:-1] + b',"Model":"other"}', RAW[:-1] + b',"MAX_TOKENS":999}', RAW.replace(b'"model"', b'"MODEL"'),
        RAW[:-1] + ',"\u017ftream":true}'.encode(), RAW[:-1] + ',"max_to\u212aens":9}'.encode(),
        RAW[:-1] + b',"\\u017ftream":true}', RAW[:-1] + b',"Api_Base":"http://x"}', RAW[:-1] + b',"N":3}',
        b'{"messages":[]}', told(model=None), told(model=5), told(model=""),
        told(model=["chat"]), told(max_tokens=-1), told(max_tokens=0), told(max_tokens=1.5), told(max_tokens="many"),
        told(max_tokens=True), told(max_tokens=2**63), RAW.replace(b":2,", b":" + b"9" * 400 + b","),
        RAW.replace(b":2,", b":1e309,"), told(n=0), told(n=10_000), told(n="2"), told(best_of=500), told(stream="yes"),
        told(stream=1), told(stream_options="x"), told(messages="x"), told(messages=[1, 2]), told(messages=None),
        told(messages={}), told(api_base="http://127.0.0.1:1"), told(base_url="http://127.0.0.1:1"), told(api_base=None),
        told(prompt_embeds="AAAA"), told(api_key="sk-x"),
        told(messages=[{"role": "user", "content": [{"type": "image_url", "image_url": {"url": "http://10.0.0.1/"}}]}]),
        told(messages=[{"role": "user", "content": [{"image_url": {"detail": "low", "url": "http://10.0.0.1/"}}]}]),
        told(messages=[{"role": "user", "content": [{"type": "input_image", "image_url": "file:///etc/passwd"}]}]),
        told(messages=[{"role": "user", "content": [{"type": "image_url", "image_url": {"url": "//10.0.0.1/x"}}]}]),
        RAW.replace(b'"hello"', b'[{"image\\u005furl":{"url":"http://10.0.0.1/"}}]'),
        told(messages=[{"role": "user", "content": [{"source": {"type": "url", "url": "https://10.0.0.1/"}}]}]),
        told(messages=[{"role": "user", "content": {"type": "image_url", "image_url": {"url": "http://10.0.0.1/"}}}]),
        told(messages=[{"role": "user", "content": [{"image_url": {"url": " " * 65 + "http://10.0.0.1/"}}]}]),
        told(prompt={"variables": {"x": {"image_url": "http://10.0.0.1/"}}}),
        told(messages=[{"role": "user", "content": [{"Image_URL": {"Url": "http://10.0.0.1/"}}]}]),
        RAW.replace(b'"hello"', b'[{"image_url":{"url":"http\\u003a//10.0.0.1/"}}]'),
        RAW[:-1] + b',"\\u0061":"' + b"x" * ODD_BYTES_MAX + b'"}',
    ],
)  # fmt: skip
def test_what_is_refused(body: bytes) -> None:
    """Broken, ambiguous, deep, wrongly typed JSON and bodies that choose an upstream: a sentence, and nothing else."""
    with pytest.raises(BodyError) as caught:
        peek(CHAT, body)
    assert caught.value.status == 400 and len(caught.value.message) > 8


@pytest.mark.parametrize(
    "body",
    [
        RAW.replace(b"hello", b"\\ud83d\\ude00"), RAW.replace(b"hello", b"\\\\ud800"), RAW.replace(b"hello", b'\\"x\\": 1'),
        told(messages=[{"role": "user", "content": "see http://x.org and \"url\": \"http://y\""}]),
        told(messages=[{"role": "user", "content": [{"image_url": {"url": "data:image/png;base64,AAAA"}}]}]),
        told(tools=[{"function": {"parameters": {"properties": {"model": {}, "url": {"type": "string"}, "n": {}}}}}]),
        told(stream=True, stream_options=None), told(x=[[[[1]]]] * 200), told(messages=[]),
        "{\"model\":\"chat\",\"messages\":[{\"content\":\"Grüße 你好 👩‍🚀 ( [ {\"}]}".encode(),
        told(messages=[{"role": "user", "content": "[" * 500}]), b" \n" + RAW + b" \n", told(user="Model", x={"Model": 1}),
        told(x="Grüße" * 300_000), told(x={"curl": "http://x", "a-url": "ftp://y"}), told(x="\u00e9<script>"),
        RAW.replace(b"hello", "\u017ftream 5 \u212a".encode()), told(messages=[{"role": "user", "content": "N"}]),
    ],
)  # fmt: skip
def test_what_only_looks_bad_is_served(body: bytes) -> None:
    """Text about urls, brackets, escapes and emoji is text."""
    assert peek(CHAT, body).model == "chat"


def judged(key: str) -> bool:
    """Say whether a key is one that the gateway reads, in whatever letters."""
    return JUDGED.fullmatch(f'"{key.casefold()}"'.encode("utf-8", "replace")) is not None


@given(st.dictionaries(st.text(min_size=1, max_size=6), JSON_VALUES, max_size=5), st.booleans(), st.booleans())
def test_splicing_changes_one_thing(more: dict[str, Any], spaced: bool, asked: bool) -> None:
    """The engine's name of the model and the wish for usage go in; every other value stays byte for byte."""
    body = {**more, **GOOD, "stream": True, **({"stream_options": {"include_usage": False}} if asked else {})}
    raw = json.dumps(body, separators=None if spaced else (",", ":"), ensure_ascii=asked).encode("utf-8", "replace")
    seen = peek(CHAT, raw) if "url" not in str(more) and not any(map(judged, more)) else None
    if seen is None:
        return
    made = with_model(with_usage_wish(raw, seen), 'org/served "x"')
    values = json.loads(made)
    assert values.pop("model") == 'org/served "x"'
    assert values.pop("stream_options")["include_usage"] is True
    want = json.loads(raw)
    want.pop("stream_options", None), want.pop("model")
    assert json.dumps(values, sort_keys=True) == json.dumps(want, sort_keys=True)
    before = {key: raw[a:b] for key, a, b in top_level(raw)}
    for key, a, b in top_level(made):
        if key not in ("model", "stream_options"):
            assert made[a:b] == before[key]


@given(st.binary(max_size=120))
def test_no_bytes_make_it_stumble(noise: bytes) -> None:
    """Whatever is sent, the answer is a Peek or a BodyError."""
    for body in (noise, RAW[:-1] + b"," + noise + b"}", RAW.replace(b"hello", noise)):
        try:
            peek(CHAT, body)
        except BodyError:
            pass


def test_equal_prefixes_have_equal_hashes_and_tenants_share_none() -> None:
    """Hash k covers all blocks to k; another tenant's salt or another model gives other hashes."""
    text = bytes(range(32, 127)) * 20
    one = prefix_hashes(text, 1, "m")
    other = prefix_hashes(text[: 2 * BLOCK_BYTES] + b"!" + text[2 * BLOCK_BYTES + 1 :], 1, "m")
    assert len(one) == len(text) // BLOCK_BYTES and one[:2] == other[:2] and one[2] != other[2]
    assert not set(one) & set(prefix_hashes(text, 2, "m")) and not set(one) & set(prefix_hashes(text, 1, "n"))
    assert all(0 < value < 1 << 63 for value in one) and len(prefix_hashes(text * 100, 1, "m")) == 64


@pytest.mark.parametrize("messages", [{}, {"messages": 0}, {"messages": []}])
def test_a_link_is_refused_wherever_the_prompt_is(messages: dict[str, object]) -> None:
    """What else stands in a body that is no chat hides no link from us."""
    output = {"type": "computer_screenshot", "image_url": "http://169.254.169.254/"}
    body = {"model": "chat", **messages, "input": [{"type": "computer_call_output", "call_id": "c", "output": output}]}
    with pytest.raises(BodyError, match="links to media"):
        peek(RESPONSES, json.dumps(body).encode())
