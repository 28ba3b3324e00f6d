"""Seeded hostile bytes: requests as clients might send them, answers and event streams as engines might.

Each function returns the pieces in which the bytes arrive; one seed, one case. Nothing here knows the gateway.
"""

from __future__ import annotations

import json
import random
from functools import cache

from tests.serve_hostile import cases

KEY = "k" * 43
VERBS = (b"POST", b"GET", b"PUT", b"DELETE", b"OPTIONS", b"HEAD", b"post", b"", b"P", b"PRI", b"CONNECT")
PATHS = (
    b"/v1/chat/completions",
    b"/v1/completions",
    b"/v1/embeddings",
    b"/v1/responses",
    b"/v1/messages",
    b"/v1/models",
    b"/v1/models/chat",
    b"/v1/receipts/req-0000000000000001",
    b"/",
    b"*",
    b"/v1/../x",
    b"http://x/v1/models",
    b"\xff",
    b"/%00",
)
TOKENS = (
    b"\r\n",
    b"\n",
    b"\r",
    b"\0",
    b":",
    b" ",
    b"\t",
    b"0\r\n\r\n",
    b"chunked",
    b"Content-Length: 5\r\n",
    b"HTTP/1.1",
    b"{",
    b"}",
    b"[",
    b"]",
    b'"',
    b"\\",
    b"\\ud800",
    b"NaN",
    b"1e999",
    b"-0",
    b"\xff",
    b"\xc3",
    b"\xf0\x9f",
    b"data:",
    b"data: [DONE]\n\n",
    b"event: x\n",
    b'"usage":',
    b'"usage":null',
    b'"error":',
    b'"stream":true',
    b'"max_tokens":',
    b'"model":',
    b"null",
    b"true",
    b"\xef\xbb\xbf",
    b"Transfer-Encoding: chunked\r\n",
    b"Expect: 100-continue\r\n",
    b"Connection: close\r\n",
    b"Connection: upgrade\r\n",
    b"Upgrade: h2c\r\n",
    b"\x00" * 8,
    b"A" * 300,
    b"[" * 200,
    b'{"a":' * 200,
    b"9" * 400,
    b"\r\n\r\n",
    b": ping\n\n",
    b"id: 1\n",
)


FIELDS = (
    "model", "messages", "max_tokens", "stream", "stream_options", "prompt", "input", "tools", "n", "user",
    "response_format", "max_completion_tokens", "max_output_tokens", "temperature", "system", "stop", "logprobs",
    "best_of", "api_base", "x",
)  # fmt: skip
ODD_TEXTS = ("é\u2028", '"usage":', "data: [DONE]", "\\", '{"error":1}', "\n\n")


@cache
def wires() -> tuple[bytes, ...]:
    """Return every raw case as bytes: the seeds of mutation."""
    found = [
        case.send for case in cases.all_cases(KEY, canary_port=9, header_s=1, body_s=1) if isinstance(case.send, bytes)
    ]
    return tuple(wire for wire in found if len(wire) < 20_000)


def scalar(dice: random.Random) -> object:
    """Return a JSON scalar, often an ugly one."""
    return dice.choice(
        (
            None,
            True,
            False,
            0,
            -1,
            1,
            7,
            1.5,
            10**30,
            -(2**63),
            "",
            "chat",
            "x" * 40,
            "\ud800",
            "\u0000",
            "é👩‍🚀",
            [],
            {},
            [[]],
            "1",
            4096,
        )
    )


def tree(dice: random.Random, depth: int = 0) -> object:
    """Return a small JSON value."""
    if depth > 3 or dice.random() < 0.5:
        return scalar(dice)
    if dice.random() < 0.5:
        return [tree(dice, depth + 1) for _ in range(dice.randrange(4))]
    return {
        dice.choice(("role", "content", "type", "text", "x", "")): tree(dice, depth + 1)
        for _ in range(dice.randrange(4))
    }


def body(dice: random.Random) -> bytes:
    """Return a request body: mostly JSON, mostly near a right one."""
    told: dict[str, object] = {"model": "chat", "messages": [{"role": "user", "content": "hello"}], "max_tokens": 4}
    told |= {"prompt": "hello", "input": "hello", "stream": dice.random() < 0.5}  # for whichever path
    for _ in range(dice.choice((0, 0, 0, 0, 0, 0, 1, 2, 3))):
        name = dice.choice(FIELDS)
        if dice.random() < 0.3:
            told.pop(name, None)
        else:
            told[name] = dice.choice((tree(dice), True, {"include_usage": dice.choice((True, False, None, 3))}))
    encoded = json.dumps(
        told, ensure_ascii=dice.random() < 0.7, separators=dice.choice(((",", ":"), (", ", ": ")))
    ).encode("utf-8", "surrogatepass")
    return mutate(dice, encoded) if dice.random() < 0.12 else encoded


def mutate(dice: random.Random, data: bytes) -> bytes:
    """Return bytes with a few wounds."""
    wounded = bytearray(data)
    for _ in range(dice.randrange(1, 5)):
        at = dice.randrange(len(wounded) + 1)
        act = dice.randrange(6)
        if act == 0 and wounded:
            wounded[at % len(wounded)] = dice.randrange(256)
        elif act == 1:
            wounded[at:at] = dice.choice(TOKENS)
        elif act == 2:
            del wounded[at : at + dice.randrange(1, 40)]
        elif act == 3:
            wounded[at:at] = wounded[at : at + dice.randrange(1, 60)]
        elif act == 4:
            del wounded[at:]
        else:
            other = dice.choice(TOKENS)
            wounded[at : at + len(other)] = other
    return bytes(wounded)


def request(seed: int) -> list[bytes]:
    """Return the pieces of what a hostile client sends: one request, or several, or none."""
    dice = random.Random(f"request {seed}")
    kind = dice.random()
    if kind < 0.1:
        wire = mutate(dice, dice.choice(wires()))
    elif kind < 0.97:
        wire = built(dice)
        if dice.random() < 0.25:
            wire += built(dice)
        if dice.random() < 0.08:
            wire = mutate(dice, wire)
    else:
        wire = dice.randbytes(dice.randrange(1, 400))
    return pieces(dice, wire)


def built(dice: random.Random) -> bytes:
    """Return a request that is nearly right."""
    content = body(dice)
    verb = b"POST" if dice.random() < 0.95 else dice.choice(VERBS)
    path = PATHS[dice.randrange(5)] if dice.random() < 0.9 else dice.choice(PATHS)
    key = KEY.encode() if dice.random() < 0.94 else dice.choice((b"", b"x", b"' or 1=1", b"\xff"))
    head = b"%b %b HTTP/1.1\r\nhost: x\r\nauthorization: Bearer %b\r\n" % (verb, path, key)
    if dice.random() < 0.2:
        head += b"x-api-key: %b\r\nanthropic-version: 2023-06-01\r\n" % key
    if dice.random() < 0.06:
        head += dice.choice(TOKENS)
    if dice.random() < 0.75:
        n = len(content) if dice.random() < 0.93 else dice.choice((0, 1, len(content) + 3, 10**9, -1))
        return head + b"content-length: %d\r\n\r\n" % n + content
    cut = dice.randrange(len(content) + 1)
    parts = [part for part in (content[:cut], content[cut:]) if part]
    return (
        head
        + b"transfer-encoding: chunked\r\n\r\n"
        + b"".join(b"%x\r\n%b\r\n" % (len(p), p) for p in parts)
        + b"0\r\n\r\n"
    )


def pieces(dice: random.Random, wire: bytes) -> list[bytes]:
    """Return bytes in the pieces in which a network might deliver them."""
    if dice.random() < 0.4 or len(wire) < 2:
        return [wire]
    if dice.random() < 0.1 and len(wire) < 600:
        return [wire[i : i + 1] for i in range(len(wire))]
    cuts = sorted(dice.randrange(1, len(wire)) for _ in range(dice.randrange(1, 6)))
    return [wire[a:b] for a, b in zip([0, *cuts], [*cuts, len(wire)]) if a < b]


def events(dice: random.Random) -> tuple[bytes, bool]:
    """Return an event stream and whether it is whole: every event right, a finish_reason, and [DONE] at its end."""
    n, end = dice.randrange(6), dice.choice((b"\n\n", b"\n\n", b"\n\n", b"\r\n\r\n"))

    def line(value: object) -> bytes:
        return b"data: " + json.dumps(value, separators=dice.choice(((",", ":"), (", ", ": ")))).encode() + end

    def chunk(delta: object, finish: str | None = None, **more: object) -> bytes:
        return line({"id": "c", "choices": [{"index": 0, "delta": delta, "finish_reason": finish}], **more})

    found = [chunk({"role": "assistant", "content": ""})] if dice.random() < 0.8 else []
    along = dice.random() < 0.1  # an engine that counts along
    for i in range(n):
        usage = {"usage": {"prompt_tokens": 3, "completion_tokens": dice.randrange(4 * i + 2)}} if along else {}
        found.append(chunk({"content": dice.choice((f"w{i} ", *ODD_TEXTS))}, **usage))
        if dice.random() < 0.1:
            found.append(dice.choice((b": ping" + end, b"retry: 5" + end, end, b"event: x\n")))
    whole = dice.random() < 0.6
    if whole or dice.random() < 0.5:
        found.append(chunk({}, dice.choice(("stop", "length", "tool_calls"))))
        if dice.random() < 0.6:
            found.append(
                line(
                    {
                        "id": "c",
                        "choices": [],
                        "usage": {"prompt_tokens": 3, "completion_tokens": n, "total_tokens": n + 3},
                    }
                )
            )
    if whole:
        found.append(b"data: [DONE]" + end)
    elif dice.random() < 0.3:
        found.append(line({"error": {"message": "dead", "type": "x"}}))
    return b"".join(found), whole


def stream(seed: int) -> tuple[list[bytes], bool]:
    """Return the pieces of an event stream, and whether it may count as a whole answer."""
    dice = random.Random(f"stream {seed}")
    wire, whole = events(dice)
    if dice.random() < 0.3:
        wounded = mutate(dice, wire)
        whole = whole and wounded == wire
        wire = wounded
        return pieces(dice, wire) if wire else [], whole
    return pieces(dice, wire) if wire else [], whole


def answer(seed: int, *, streamed: bool) -> list[bytes]:
    """Return the pieces of an engine's HTTP answer: a head, and a body or a chunked stream, mostly the one that was asked
    for, often wounded."""
    dice = random.Random(f"answer {seed}")
    status = 200 if dice.random() < 0.8 else dice.choice((100, 101, 103, 204, 302, 400, 404, 429, 500, 503, 999, 0))
    if streamed == (dice.random() < 0.85):
        sse, _ = events(dice)
        cuts = sorted(dice.randrange(len(sse) + 1) for _ in range(dice.randrange(4)))
        parts = [sse[a:b] for a, b in zip([0, *cuts], [*cuts, len(sse)]) if a < b]
        wire = b"HTTP/1.1 %d OK\r\ncontent-type: text/event-stream\r\ntransfer-encoding: chunked\r\n\r\n" % status
        wire += b"".join(b"%x\r\n%b\r\n" % (len(p), p) for p in parts) + (b"0\r\n\r\n" if dice.random() < 0.8 else b"")
    else:
        told = {"id": "x", "choices": [{"message": {"content": "hi"}, "finish_reason": "stop"}],
                "usage": {"prompt_tokens": 3, "completion_tokens": 2, "total_tokens": 5}}  # fmt: skip
        content = json.dumps(told if dice.random() < 0.7 else tree(dice)).encode()
        n = len(content) if dice.random() < 0.85 else dice.choice((0, 3, len(content) + 9, 10**12))
        wire = b"HTTP/1.1 %d OK\r\ncontent-type: application/json\r\ncontent-length: %d\r\n\r\n" % (status, n) + content
    if dice.random() < 0.35:
        wire = mutate(dice, wire)
    return pieces(dice, wire) if wire else []
