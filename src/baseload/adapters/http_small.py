"""A small HTTP/1.1 client for what the live side asks beside its traffic: health, counters, a first request.

One connection a question, everything bounded: time, header bytes, body bytes. It trusts nothing that it reads and follows
no redirects. Requests of customers go through the gateway's own client, never through this.
"""

from __future__ import annotations

import asyncio
import ssl
from collections.abc import Mapping
from typing import NamedTuple
from urllib.parse import urlsplit

HEAD_BYTES_MAX = 16_384
CHUNK_LINE_MAX = 256


class Answer(NamedTuple):
    """An HTTP answer; `body` is cut at the limit, and `whole` says whether it was."""

    status: int
    body: bytes
    whole: bool = True


class HttpProblem(OSError):
    """No usable answer: refused, too slow, or not HTTP."""


async def ask(
    url: str,
    *,
    body: bytes | None = None,
    headers: Mapping[str, str] | None = None,
    timeout_s: float = 2.0,
    body_bytes_max: int = 1 << 20,
) -> Answer:
    """Return the answer to a GET of `url`, or a POST of `body` as JSON; raises HttpProblem."""
    try:
        return await asyncio.wait_for(_ask(url, body, headers or {}, body_bytes_max), timeout_s)
    except TimeoutError:
        raise HttpProblem(f"no answer in {timeout_s:g} s") from None
    except HttpProblem:
        raise
    except (OSError, ssl.SSLError, asyncio.IncompleteReadError, asyncio.LimitOverrunError, ValueError) as problem:
        raise HttpProblem(f"{type(problem).__name__}: {problem}") from None


async def _ask(url: str, body: bytes | None, headers: Mapping[str, str], body_bytes_max: int) -> Answer:
    parts = urlsplit(url)
    if parts.scheme not in ("http", "https") or not parts.hostname:
        raise HttpProblem("not an http address")
    tls = ssl.create_default_context() if parts.scheme == "https" else None
    port = parts.port or (443 if tls else 80)
    reader, writer = await asyncio.open_connection(parts.hostname, port, ssl=tls, limit=HEAD_BYTES_MAX)
    try:
        path = (parts.path or "/") + (f"?{parts.query}" if parts.query else "")
        lines = [f"{'GET' if body is None else 'POST'} {path} HTTP/1.1", f"host: {parts.netloc.rpartition('@')[2]}"]
        lines += ["connection: close", *(f"{name}: {value}" for name, value in headers.items())]
        if body is not None:
            lines += ["content-type: application/json", f"content-length: {len(body)}"]
        if any("\r" in line or "\n" in line for line in lines):
            raise HttpProblem("a header holds a line break")
        writer.write("\r\n".join([*lines, "", ""]).encode("latin-1") + (body or b""))
        return await _read(reader, body_bytes_max)
    finally:
        writer.transport.abort()


async def _read(reader: asyncio.StreamReader, body_bytes_max: int) -> Answer:
    while True:
        head = await reader.readuntil(b"\r\n\r\n")
        status, fields = read_head(head[:-4])
        if status >= 200:
            break
    if b"chunked" in fields.get(b"transfer-encoding", b"").lower():
        return await _read_chunks(reader, status, body_bytes_max)
    length = fields.get(b"content-length")
    wanted = body_bytes_max + 1 if length is None or len(length) > 15 else min(int(length), body_bytes_max + 1)
    got = await _read_up_to(reader, wanted)
    if length is not None and len(got) < wanted:
        raise HttpProblem("the answer ends early")
    return Answer(status, got[:body_bytes_max], len(got) <= body_bytes_max)


def read_head(head: bytes) -> tuple[int, dict[bytes, bytes]]:
    """Return status and fields of an answer's head; raises HttpProblem.

    >>> read_head(b"HTTP/1.1 200 OK\\r\\nContent-Length: 2")
    (200, {b'content-length': b'2'})
    """
    first, *lines = head.split(b"\r\n")
    version, _, rest = first.partition(b" ")
    if not version.startswith(b"HTTP/1.") or not rest[:3].isdigit():
        raise HttpProblem("not HTTP")
    fields = {name.strip().lower(): value.strip() for name, _, value in (line.partition(b":") for line in lines)}
    if not fields.get(b"content-length", b"0").isdigit():
        raise HttpProblem("a content-length that is no number")
    return int(rest[:3]), fields


async def _read_up_to(reader: asyncio.StreamReader, wanted: int) -> bytes:
    got = bytearray()
    while len(got) < wanted:
        piece = await reader.read(min(65_536, wanted - len(got)))
        if not piece:
            break
        got += piece
    return bytes(got)


async def _read_chunks(reader: asyncio.StreamReader, status: int, body_bytes_max: int) -> Answer:
    got = bytearray()
    while True:
        line = await reader.readuntil(b"\r\n")
        if len(line) > CHUNK_LINE_MAX:
            raise HttpProblem("a chunk's size of many digits")
        size = int(line.split(b";")[0].strip() or b"x", 16)
        if size < 0:
            raise HttpProblem("a chunk of negative size")
        if size == 0:
            return Answer(status, bytes(got))
        got += await _read_up_to(reader, min(size, body_bytes_max + 1 - len(got)))
        if len(got) > body_bytes_max:
            return Answer(status, bytes(got[:body_bytes_max]), False)
        if await reader.readexactly(2) != b"\r\n":
            raise HttpProblem("a chunk that does not end where it said")
