"""What each request asks of bytes: the few pure functions that are worth a text in C beside this one.

This is what they do; `quick.c` does the same in a fraction of the time where `make native` built it (decision 0015), and a
test holds the two to each other on whatever Hypothesis can think of. Nothing here decides about money or law: functions of
bytes and numbers. Some answer the common case alone, and "look closer" (False, -2) to all others.
"""

from __future__ import annotations

import re
import struct
import zlib
from collections.abc import Callable
from hashlib import blake2b
from importlib import import_module
from mmap import mmap
from typing import Any

# ---- heads ------------------------------------------------------------------------------------------------------------

_DIGITS = 16  # and the CR behind them


def body_at(data: bytes, prefix: bytes, suffix: bytes) -> int:
    """Return where the body begins in `data`: `prefix`, the body's length in digits, `suffix`, exactly the body; else -1.

    >>> body_at(b"length: 2\\r\\n\\r\\nhi", b"length: ", b"\\r\\n\\r\\n")
    13
    """
    if not data.startswith(prefix):
        return -1
    at = len(prefix)
    end = data.find(b"\r", at, at + _DIGITS)
    digits = data[at:end]
    if end < 0 or not digits.isdigit() or not data.startswith(suffix, end):
        return -1
    start = end + len(suffix)
    return start if len(data) - start == int(digits) else -1


_CHUNK = re.compile(rb"([1-9a-f][0-9a-f]{0,7}|[1-9A-F][0-9A-F]{0,7})\r\n")


def chunks_of(data: bytes) -> list[int]:
    """Return begin and end of each chunk's content, one after the other, where `data` is whole chunks; else nothing.

    >>> chunks_of(b"2\\r\\nhi\\r\\n1\\r\\n!\\r\\n"), chunks_of(b"0\\r\\n\\r\\n")
    ([3, 5, 10, 11], [])
    """
    found: list[int] = []
    at = 0
    while at < len(data):
        head = _CHUNK.match(data, at)
        if head is None:
            return []
        end = head.end() + int(head[1], 16)
        if data[end : end + 2] != b"\r\n":
            return []
        found += (head.end(), end)
        at = end + 2
    return found


def request_name(request_id: int) -> bytes:
    """Return a request's id as clients, engines and receipts see it.

    >>> request_name(255)
    b'req-00000000000000ff'
    """
    return b"req-%016x" % request_id


# ---- bodies -----------------------------------------------------------------------------------------------------------

# Keys with which other gateways let a client choose the upstream (CVE-2024-6587), or an engine unpack tensors.
FORBIDDEN = ("api_base", "base_url", "api_key", "custom_llm_provider", "litellm_params", "model_list", "prompt_embeds")
JUDGED = re.compile(
    b'"(model|stream|messages|max_tokens|max_completion_tokens|max_output_tokens|n|best_of|prompt|input|stream_options|'
    + "|".join(FORBIDDEN).encode()
    + b')"',
    re.IGNORECASE,  # some readers take `Model` for `model`
)
_FORBIDDEN = frozenset(name.encode() for name in FORBIDDEN)
_TOKENS = re.compile(rb'"([^"\\]*(?:\\.[^"\\]*)*)"|[\[\]{},]', re.DOTALL)
_ESCAPE = re.compile(rb"\\(?:u([0-9a-fA-F]{4})|.)", re.DOTALL)
_HIDDEN = frozenset(b"0123456789:_ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz")  # that need no escape
LOOK_CLOSER, PLAIN, LINK = 0, 1, 2


def is_plain(body: bytes, deepest: int) -> int:
    """Say that a JSON object holds nothing that two readers could read otherwise: PLAIN, or LINK where a string ends in `url`.

    That is: nested at most `deepest` levels; of its own names none has an escape, a letter beyond ASCII or capitals where it
    is judged, is judged twice or forbidden; no escape hides a letter, a digit or a colon, or is half of a pair. Else
    LOOK_CLOSER. What is no JSON may get any answer.

    >>> is_plain(b'{"model":"m","n":1}', 100), is_plain(b'{"n":1,"n":2}', 100), is_plain(b'{"a":{"url":"x"}}', 100)
    (1, 0, 2)
    """
    if b"\\u" in body and not _escapes_are_plain(body):
        return LOOK_CLOSER
    depth, key_next, link = 0, False, False
    seen: set[bytes] = set()
    for found in _TOKENS.finditer(body):
        mark = body[found.start()]
        if mark in b"{[":
            depth += 1
            if depth > deepest:
                return LOOK_CLOSER
            key_next = mark == 0x7B and depth == 1
        elif mark in b"}]":
            depth -= 1
        elif mark == 0x2C:
            key_next = key_next or depth == 1
        else:
            text = found[1]
            link = link or text[-3:].lower() == b"url"
            if key_next and depth == 1:
                if b"\\" in text or not text.isascii():
                    return LOOK_CLOSER
                if JUDGED.fullmatch(found[0]):
                    if text in seen or text in _FORBIDDEN or text != text.lower():
                        return LOOK_CLOSER
                    seen.add(text)
            key_next = False
    return LINK if link else PLAIN


def _escapes_are_plain(body: bytes) -> bool:
    """Say whether no escape hides a letter, and none is half of a pair."""
    high_until = -1
    for found in _ESCAPE.finditer(body):
        code = -1 if found[1] is None else int(found[1], 16)
        low = 0xDC00 <= code < 0xE000
        if code in _HIDDEN or low != (high_until == found.start()):
            return False
        high_until = found.end() if 0xD800 <= code < 0xDC00 else -1
        if high_until >= 0 and body[high_until : high_until + 2] != b"\\u":
            return False
    return True


# ---- prefixes ---------------------------------------------------------------------------------------------------------

BLOCK_BYTES = 512  # of the prompt's JSON that one prefix hash covers, about BLOCK_TOKENS tokens
MASK_63 = (1 << 63) - 1


def prefix_hashes(text: bytes, key: bytes, most: int) -> list[int]:
    """Return keyed hashes of the text's whole blocks, at most so many, each covering all before it; none is 0.

    >>> len(prefix_hashes(bytes(1100), b"key", 64))
    2
    """
    running = blake2b(digest_size=8, key=key)
    hashes: list[int] = []
    for start in range(0, min(len(text) - BLOCK_BYTES + 1, most * BLOCK_BYTES), BLOCK_BYTES):
        running.update(text[start : start + BLOCK_BYTES])
        hashes.append((int.from_bytes(running.digest(), "little") & MASK_63) or 1)
    return hashes


# ---- answers ----------------------------------------------------------------------------------------------------------


def usage_end(event: bytes) -> int:
    """Return where the one `usage` object of some JSON ends, where it is flat and plain; -2: look closer.

    >>> usage_end(b'{"usage":{"a":1},"x":1}'), usage_end(b'{"usage":{"a":{}}}')
    (15, -2)
    """
    at = event.find(b'"usage":{')
    if at < 0 or event.count(b'"usage"') != 1:
        return -2
    end = event.find(b"}", at)
    flat = event[at + 9 : end]
    return end if end > 0 and b"{" not in flat and flat.count(b'"') % 2 == 0 and b"\\" not in flat else -2


_WORDS = re.compile(rb'[^"\\\x00-\x1f]+')  # inside a JSON string, and as it is


def is_like(data: bytes, at: int, end: int, before: bytes, after: bytes) -> bool:
    """Say whether data[at:end] is `before`, words of a JSON string that need no escape, and `after`.

    >>> is_like(b'{"a":"word"}', 0, 12, b'{"a":"', b'"}'), is_like(b'{"a":"wo\\\\"}', 0, 12, b'{"a":"', b'"}')
    (True, False)
    """
    start, stop = at + len(before), end - len(after)
    if stop <= start or not data.startswith(before, at) or not data.startswith(after, stop) or end > len(data):
        return False
    if _WORDS.fullmatch(data, start, stop) is None:
        return False
    try:
        return data.isascii() or bool(data[start:stop].decode())
    except UnicodeDecodeError:
        return False


def usage_fields(
    cost: float, price: float, energy_wh: float, carbon_g: float, cost_low: float, cost_high: float, energy_wh_low: float,
    energy_wh_high: float, carbon_g_low: float, carbon_g_high: float, currency: bytes, methods: bytes,
) -> bytes:  # fmt: skip
    """Return what `usage` gains in an answer, as JSON members without braces."""
    return (
        b'"cost":%.9g,"price":%.9g,"energy_wh":%.6g,"carbon_g":%.6g,"baseload":{"currency":"%b","method":%b,'
        b'"range":{"cost":[%.6g,%.6g],"energy_wh":[%.6g,%.6g],"carbon_g":[%.6g,%.6g]},"provisional":true}'
    ) % (
        cost, price, energy_wh, carbon_g, currency, methods,
        cost_low, cost_high, energy_wh_low, energy_wh_high, carbon_g_low, carbon_g_high,
    )  # fmt: skip


# ---- marks ------------------------------------------------------------------------------------------------------------

SLOT_BYTES = 128
OPENED = struct.Struct("<QqQQQIIHHHH")
"""Id, arrival, prices, prompt bound, tables' version, model, tenant, region, flags; its CRC-32 behind it."""
SUM = struct.Struct("<I")
REPLICA = struct.Struct("<II")  # row + 1, check; a count of tokens stands so, too
FINAL = struct.Struct("<QIIII")  # price, input, cached, output, check
REPLICA_AT, FINAL_AT = 96, 104
_MASK = 0xFFFF_FFFF
_BLANK = bytes(SLOT_BYTES - OPENED.size - SUM.size)


def check(value: int, request_id: int) -> int:
    """Return 32 bits that tie a value to its request: another request's, half of one, or zeros do not pass."""
    return (value * 2_654_435_761 + request_id * 40_503 + 0x9E37) & _MASK | 1


def write_opened(
    slots: mmap | bytearray, slot: int, request_id: int, arrival_ns: int, input_pico: int, cached_pico: int,
    output_pico: int, input_tokens: int, tables_version: int, model_i: int, tenant_i: int, region_i: int, flags: int,
) -> None:  # fmt: skip
    """Write what is known of a request when it is opened; all else in its slot is blank from here."""
    at = slot * SLOT_BYTES
    packed = OPENED.pack(
        request_id, arrival_ns, input_pico, cached_pico, output_pico, input_tokens & _MASK, tables_version & _MASK,
        model_i & 0xFFFF, tenant_i & 0xFFFF, region_i & 0xFFFF, flags & 0xFFFF,
    )  # fmt: skip
    if not 0 <= at <= len(slots) - SLOT_BYTES:
        raise IndexError("no such slot")
    slots[at : at + SLOT_BYTES] = packed + SUM.pack(zlib.crc32(packed)) + _BLANK


def write_count(slots: mmap | bytearray, cell: int, tokens: int, request_id: int) -> None:
    """Write how many tokens of an answer were delivered into a cell of eight bytes."""
    if not 0 <= cell * 8 <= len(slots) - 8:
        raise IndexError("no such cell")
    REPLICA.pack_into(slots, cell * 8, tokens & _MASK, check(tokens & _MASK, request_id))


def write_replica(slots: mmap | bytearray, slot: int, request_id: int, replica_i: int) -> None:
    """Write which replica a request was sent to."""
    REPLICA.pack_into(slots, slot * SLOT_BYTES + REPLICA_AT, replica_i + 1, check(replica_i + 1, request_id))


def write_final(
    slots: mmap | bytearray,
    slot: int,
    request_id: int,
    price_nano: int,
    input_tokens: int,
    cached: int,
    output_tokens: int,
) -> None:
    """Write how a request ended; `cached` holds its status too (`marks.py`)."""
    mixed = price_nano ^ input_tokens << 3 ^ cached << 17 ^ output_tokens << 31
    FINAL.pack_into(
        slots, slot * SLOT_BYTES + FINAL_AT, price_nano, input_tokens, cached, output_tokens, check(mixed, request_id)
    )


# ---- the same in C ------------------------------------------------------------------------------------------------------

PYTHON: dict[str, Callable[..., Any]] = {
    function.__name__: function
    for function in (
        body_at, chunks_of, request_name, is_plain, prefix_hashes, usage_end, is_like, usage_fields, write_opened,
        write_count, write_replica, write_final,
    )
}  # fmt: skip
"""Every function that there is in C too, as it stands above."""

try:
    globals().update({name: getattr(import_module("baseload.serve.quick_c"), name) for name in PYTHON})
except ImportError:
    pass  # not built, or not to be used (`native.use`)
