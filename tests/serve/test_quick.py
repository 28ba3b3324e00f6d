"""quick.c is quick.py: what `make native` builds answers as the Python beside it does, to whatever it is asked."""

from __future__ import annotations

import json
import math
import struct
import subprocess
import sys
from hashlib import blake2b
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from baseload.app.native_build import compile_c
from baseload.errors import InputError
from baseload.serve import quick
from tests.serve.written_in_c import built, library_of, source_of

python = SimpleNamespace(**quick.PYTHON)
pytestmark = pytest.mark.skipif(sys.byteorder != "little", reason="quick.c is for little-endian machines")


@pytest.fixture(scope="module")
def c(tmp_path_factory: pytest.TempPathFactory) -> ModuleType:
    """The module in C, built for this run with every check that the compiler can put in."""
    return built("quick", tmp_path_factory.mktemp("quick"))


def said(function: Any, *given: Any) -> Any:
    """Return what a function answers, or that it refuses."""
    try:
        return function(*given)
    except (ValueError, TypeError, IndexError, OverflowError, struct.error):
        return "refused"


BITS = st.sampled_from(
    [
        b'"model"', b'"n"', b'"messages"', b'"api_key"', b'"max_tokens"', b'"x"', b'"Model"', b'"N"',
        b'"mODEL"', b'"', b"\\", b"\\u", b"\\n", b":", b" :",
        b"url",
        b"[", b"]", b"{", b"}", b",", b"\x0b", "é".encode(), b"\xff", b"words", b'"usage":{', b'"usage"', b"12", b"}",
    ]
)  # fmt: skip
SOUP = st.lists(BITS, max_size=30).map(b"".join)
BYTES = st.one_of(SOUP, st.binary(max_size=80))


WORDS = st.sampled_from(
    [
        "a", "model", "n", "stream", "api_base", "Model", "N", "MAX_TOKENS", "\\u006dodel", "\u017ftream", "é", "url", "URL",
        "image_url", "\\n", "\\\\", "\\\"", "\\/", "\\u00e9", "\\u0041", "\\u003a", "\\u003c", "\\u001b", "\\ud83d\\ude00",
        "\\ud83d", "\\ude00", "\\\\u0041", "[", "}", ",", ":", " ",
    ]
)  # fmt: skip
STRINGS = st.lists(WORDS, max_size=4).map(lambda words: f'"{"".join(words)}"')
ATOMS = st.one_of(STRINGS, st.sampled_from(["1", "-2.5e3", "true", "null"]))
GAPS = st.sampled_from(["", " ", "\n"])
VALUES = st.recursive(
    ATOMS,
    lambda inner: st.one_of(
        st.lists(inner, max_size=4).map(lambda parts: f"[{', '.join(parts)}]"),
        st.lists(st.tuples(STRINGS, GAPS, inner), max_size=4).map(
            lambda parts: "{" + ",".join(f"{key}{gap}:{gap}{value}" for key, gap, value in parts) + "}"
        ),
    ),
    max_leaves=12,
)
OBJECTS = st.lists(st.tuples(st.one_of(WORDS.map(lambda word: f'"{word}"'), STRINGS), GAPS, VALUES), max_size=6).map(
    lambda parts: ("{" + ",".join(f"{gap}{key}{gap}:{value}{gap}" for key, gap, value in parts) + "}").encode()
)


@given(body=OBJECTS, deepest=st.sampled_from([1, 2, 3, 100]))
@example(b'{"model":"m","messages":[{"role":"user","content":"a\\nb \\"n\\" c"}],"n":1}', 100)
@example(b'{"mo\\u0064el":"m"}', 100)
@example(b'{"a\\n" :1}', 100)
@example(b'{"Api_Base":1}', 100)
@example(b'{"x":["n","n",{"n":1,"model":"n"}],"n":1}', 100)
def test_the_same_bodies_are_plain(c: ModuleType, body: bytes, deepest: int) -> None:
    """Both look closer at the same JSON, and both see the same links."""
    assert c.is_plain(body, deepest) == python.is_plain(body, deepest)


def depth_of(value: object) -> int:
    """Return how deep a value is nested."""
    inner = value.values() if isinstance(value, dict) else value if isinstance(value, list) else None
    return 0 if inner is None else 1 + max(map(depth_of, inner), default=0)


@given(body=OBJECTS, deepest=st.sampled_from([1, 2, 3, 100]))
def test_a_plain_body_means_one_thing(body: bytes, deepest: int) -> None:
    """What is plain has each judged name once and in small letters, none that is forbidden, whole text, and no more levels."""
    if python.is_plain(body, deepest) == quick.LOOK_CLOSER:
        return
    tops: list[str] = []

    def pairs(found: list[tuple[str, object]]) -> dict[str, object]:
        tops[:] = [key for key, _ in found]  # of the outermost object, which ends last
        return dict(found)

    value = json.loads(body, object_pairs_hook=pairs)
    json.dumps(value, ensure_ascii=False).encode()  # no half of a pair
    judged = [key for key in tops if quick.JUDGED.fullmatch(f'"{key.casefold()}"'.encode())]
    assert len(judged) == len(set(judged)) and all(key == key.casefold() for key in judged)
    assert not set(judged) & set(quick.FORBIDDEN)
    assert depth_of(value) <= deepest


@given(body=BYTES, deepest=st.integers(0, 20))
def test_what_is_no_json_is_looked_at_without_harm(c: ModuleType, body: bytes, deepest: int) -> None:
    """Bytes that are no JSON get some answer."""
    assert c.is_plain(body, deepest) in (0, 1, 2) and python.is_plain(body, deepest) in (0, 1, 2)


@given(event=BYTES)
def test_usage_ends_at_the_same_place(c: ModuleType, event: bytes) -> None:
    """Both find the end of a flat usage object, and look closer at the same others."""
    assert c.usage_end(event) == python.usage_end(event)


@given(
    prefix=st.binary(max_size=8), digits=st.text("0123456789x", max_size=18), suffix=st.binary(max_size=6), body=BYTES
)
@example(b"A", "2", b"\r\n\r\n", b"hi")
def test_a_body_begins_at_the_same_place(c: ModuleType, prefix: bytes, digits: str, suffix: bytes, body: bytes) -> None:
    """Both know a head again, or do not."""
    suffix = b"\r" + suffix
    for length in (digits, str(len(body)), f"0{len(body)}"):
        data = prefix + length.encode() + suffix + body
        assert c.body_at(data, prefix, suffix) == python.body_at(data, prefix, suffix)
        assert c.body_at(data[:-1], prefix, suffix) == python.body_at(data[:-1], prefix, suffix)


CHUNK = st.tuples(st.sampled_from([b"%x", b"%X", b"0%x", b"%x;a", b"+%x"]), st.binary(max_size=40)).map(
    lambda made: made[0] % len(made[1]) + b"\r\n" + made[1] + b"\r\n"
)


@given(data=st.one_of(st.lists(CHUNK, max_size=4).map(b"".join), BYTES), cut=st.integers(0, 5))
@example(b"1aB\r\n" + bytes(0x1AB) + b"\r\n", 0)
@example(b"ffffffff\r\n\r\n", 0)
@example(b"fffffffff\r\n\r\n", 0)
def test_the_same_bytes_are_chunks(c: ModuleType, data: bytes, cut: int) -> None:
    """Both see the same chunks in what came, whole or cut."""
    for came in (data, data[: len(data) - cut], data + b"\r\n"):
        assert c.chunks_of(came) == python.chunks_of(came)


@given(
    before=st.binary(max_size=4),
    words=BYTES,
    after=st.binary(max_size=4),
    at=st.integers(0, 3),
    more=st.integers(-3, 3),
)
@example(b'{"', "日本語".encode(), b'"}', 2, 0)
@example(b'{"', b"\xe6\x97", b'"}', 2, 0)
@example(b'{"', b"\x7f", b'"}', 0, 0)
def test_the_same_events_are_alike(
    c: ModuleType, before: bytes, words: bytes, after: bytes, at: int, more: int
) -> None:
    """Both know an event again, or do not."""
    data = b"size"[:at] + before + words + after + b"\r\n"
    end = max(0, len(data) - 2 + more)
    assert c.is_like(data, at, end, before, after) is python.is_like(data, at, end, before, after)


@given(
    text=st.binary(min_size=0, max_size=700),
    times=st.integers(1, 4),
    key=st.binary(min_size=1, max_size=64),
    most=st.integers(0, 4),
)
def test_prefixes_hash_alike(c: ModuleType, text: bytes, times: int, key: bytes, most: int) -> None:
    """Both are BLAKE2b, keyed, of all blocks so far; the first is what hashlib says of it alone."""
    found = c.prefix_hashes(text * times, key, most)
    assert found == python.prefix_hashes(text * times, key, most)
    if found:
        alone = blake2b((text * times)[: quick.BLOCK_BYTES], digest_size=8, key=key).digest()
        assert found[0] == (int.from_bytes(alone, "little") & quick.MASK_63 or 1)


@given(request_id=st.integers(0, (1 << 64) - 1))
def test_requests_are_named_alike(c: ModuleType, request_id: int) -> None:
    """Both name a request by sixteen digits."""
    assert c.request_name(request_id) == python.request_name(request_id)


NUMBERS = st.one_of(st.floats(), st.floats(0, 1e-3), st.integers(0, 10**6))


@given(
    numbers=st.lists(NUMBERS, min_size=10, max_size=10), currency=st.binary(max_size=5), methods=st.binary(max_size=300)
)
@example(
    [math.inf, math.nan, -math.inf, 5e-324, 1.7976931348623157e308, -1e-300, 0, -0.0, 1 / 3, 123456789.5], b"EUR", b"{}"
)
def test_money_and_energy_are_written_alike(
    c: ModuleType, numbers: list[float], currency: bytes, methods: bytes
) -> None:
    """Both write the same digits."""
    assert c.usage_fields(*numbers, currency, methods) == said(python.usage_fields, *numbers, currency, methods)


WORD = st.integers(0, (1 << 64) - 1)


SMALL = st.lists(st.integers(0, 1 << 40), min_size=6, max_size=6)


@given(
    words=st.lists(WORD, min_size=4, max_size=4), arrival_ns=st.integers(-(1 << 63), (1 << 63) - 1), small=SMALL,
    slot=st.integers(0, 4),
)  # fmt: skip
def test_marks_are_written_alike(c: ModuleType, words: list[int], arrival_ns: int, small: list[int], slot: int) -> None:
    """Both leave the same bytes in a slot, and write in none that is not there."""
    mine, its = bytearray(b"\xaa" * 512), bytearray(b"\xaa" * 512)
    opened = (slot, words[0], arrival_ns, *words[1:], *small)
    assert said(c.write_opened, mine, *opened) == said(python.write_opened, its, *opened)
    for replica_i in (-1, 0, 70_000):
        (
            said(c.write_replica, mine, slot, words[0], replica_i),
            said(python.write_replica, its, slot, words[0], replica_i),
        )
        assert mine == its
    for cell in (slot * 16 + 8, slot * 16 + 9, 1 << 40):
        told = said(python.write_count, its, cell, small[0], words[0])
        assert said(c.write_count, mine, cell, small[0], words[0]) == told and mine == its
    for counts in (small[:3], [count & 0xFFFF_FFFF for count in small[:3]]):
        told = said(python.write_final, its, slot, words[0], words[1], *counts)
        assert said(c.write_final, mine, slot, words[0], words[1], *counts) == told
    assert mine == its


def test_what_is_no_bytes_is_refused(c: ModuleType) -> None:
    """Anything but bytes, a number too many, a map that cannot be written: an error, and no crash."""
    for ask in (
        (c.is_plain, "text", 1), (c.is_plain, b"", None), (c.is_plain, b""), (c.body_at, b"", b"", None),
        (c.usage_end, 3), (c.chunks_of, bytearray(b"1")), (c.chunks_of, None), (c.is_like, b"", "a", 2, b"", b""),
        (c.prefix_hashes, b"", b"", 3), (c.prefix_hashes, b"", bytes(65), 3), (c.usage_fields, *["x"] * 12),
        (c.usage_fields, *[0.0] * 9, "x", b"", b""), (c.write_opened, bytes(512), 1, *[0] * 11),
        (c.write_final, bytearray(8), 0, *[0] * 5),
        (c.write_count, bytearray(8), 1, 2, 3), (c.write_count, bytes(8), 0, 2, 3),
        (c.write_replica, bytearray(512), -1, 2, 3), (c.write_replica, bytearray(512), 1, 2.5, 3),
    ):  # fmt: skip
        with pytest.raises((TypeError, ValueError, IndexError, BufferError)):
            ask[0](*ask[1:])


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="Linux only")
def test_no_address_is_wrong(tmp_path: Path) -> None:
    """Under AddressSanitizer, thousands of random askings of each function touch no byte that is not theirs."""
    try:
        for name in ("quick", "glance"):
            compile_c(source_of(name), library_of(name, tmp_path), ["-O1", "-g", "-fsanitize=address"])
    except InputError as error:
        pytest.skip(f"no C compiler with AddressSanitizer here: {error}")
    runtime = subprocess.run(["cc", "-print-file-name=libasan.so"], capture_output=True, text=True).stdout.strip()
    done = subprocess.run(
        [sys.executable, "-c", _RANDOM, str(tmp_path)], capture_output=True, text=True,
        env={"LD_PRELOAD": runtime, "ASAN_OPTIONS": "detect_leaks=0", "PYTHONMALLOC": "malloc"},
    )  # fmt: skip
    assert done.returncode == 0 and done.stdout.strip() == "fine", done.stderr[-3000:]


_RANDOM = """
import random, sys
sys.path.insert(0, sys.argv[1])
import glance_c as glance, quick_c as quick
bits = [b'"model"', b'"n"', b'"', b"\\\\", b"\\\\u00", b"\\\\ud83d",
        b":", b"url", b"[", b"{", b"}", b'"usage":{', b'"usage"', b"1", b"\\r\\n", b"\\xff"]
draw = random.Random(7)
soup = lambda: b"".join(draw.choice(bits) for _ in range(draw.randrange(12)))
for _ in range(20_000):
    a, b, c, n = soup(), soup(), soup(), draw.randrange(-3, 40)
    quick.is_plain(a, n), quick.usage_end(a), quick.chunks_of(a), quick.body_at(a, b, c)
    quick.is_like(a + b + c, n, n + draw.randrange(-3, 40), b, c)
    quick.body_at(b + b"3\\r\\n" + a, b, b"\\r\\n")
    body = b'{"model":"m","messages":[{"role":"u","c":[1,{"a":"b","n":-1.5}]}],' + a
    for cut in (body, b'{"usage":{"prompt_tokens":1' + b, a):
        cut = cut[: len(cut) - max(0, n)]
        glance.event_of(b"data: {" + cut[1:] + b"}\\n\\n", n), glance.event_of(b'data: {"choices":[' + a + b"]}\\n\\n", 99)
        glance.seen_of(cut, b"messages", 1, n), glance.usage_of(cut, n), glance.seen_of(cut + b"}", b"input", 0, 99)
for n in range(0, 2100, 37):
    quick.prefix_hashes(bytes(n), b"key", 64)
for _ in range(500):
    quick.usage_fields(*[draw.uniform(-1e300, 1e300) * 10.0 ** draw.randrange(-300, 8) for _ in range(10)], soup(), soup())
slots = bytearray(512)
for slot in (0, 3):
    quick.write_opened(slots, slot, *range(11)), quick.write_replica(slots, slot, 1, 2)
    quick.write_final(slots, slot, *range(5))
for wrong in (4, -1, 1 << 60):
    try:
        quick.write_final(slots, wrong, *range(5))
        sys.exit("written")
    except IndexError:
        pass
print("fine")
"""
