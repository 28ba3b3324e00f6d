"""A client that trusts nothing: plain asyncio sockets, and a verdict on how each request ended.

`ask` sends one request and returns an `Outcome`; its `kind` is one of
- `answer`: whole, every word of it from our own prompt, with finish_reason (an engine may die before its `[DONE]`);
- `error_event`: the stream told of an error, and pretended nothing after it;
- `envelope`: an error status with OpenAI's error object;
- `cancelled`: we hung up, as we meant to;
- `broken`: the connection ended, or never came to be, without a word (right only while the gateway itself is being killed);
- `lie`: anything else: an incomplete answer passed off as whole, a foreign word, two ends. There is never an excuse for it.
- `late`: nothing had come by the deadline;
- `down`: nobody listens, so nothing was sent: not a request yet.
"""

from __future__ import annotations

import asyncio
import json
import time
import zlib
from dataclasses import dataclass, field
from typing import Any


def word_of(text: str, i: int) -> str:
    """Return the i-th token of the mock engine's answer to a prompt (as `mock_engine.word_of`)."""
    return f"w{zlib.crc32(text.encode('utf-8', 'surrogatepass')):08x}-{i} "


@dataclass
class Outcome:
    """How a request ended, as its client saw it."""

    kind: str = "broken"
    why: str = ""
    status: int = 0
    rid: str = ""
    tenant: str = ""
    streamed: bool = False
    asked: int = 0  # tokens a whole answer has
    received: int = 0  # tokens that came
    last_pieces: int = 0  # of them, in the last two HTTP chunks: one write of the gateway each
    usage: dict[str, Any] | None = None
    headers: dict[str, str] = field(default_factory=dict)
    started_s: float = 0.0
    first_s: float = 0.0  # first token
    ended_s: float = 0.0


class Wire:
    """One connection to the gateway, kept alive between requests."""

    def __init__(self, host: str, port: int) -> None:
        self.host, self.port = host, port
        self.reader: asyncio.StreamReader | None = None
        self.writer: asyncio.StreamWriter | None = None
        self.fresh = True

    async def open(self) -> None:
        """Connect, unless connected."""
        if self.writer is None or self.writer.is_closing():
            self.reader, self.writer = await asyncio.open_connection(self.host, self.port, limit=1 << 24)
            self.fresh = True

    def drop(self) -> None:
        """Hang up."""
        if self.writer is not None:
            self.writer.transport.abort()
        self.reader = self.writer = None

    async def send(self, path: str, body: bytes, key: str, more: str = "") -> None:
        """Send one POST."""
        await self.open()
        assert self.writer is not None
        head = (
            f"POST {path} HTTP/1.1\r\nhost: {self.host}:{self.port}\r\nauthorization: Bearer {key}\r\n"
            f"content-type: application/json\r\ncontent-length: {len(body)}\r\n{more}\r\n"
        )
        self.writer.write(head.encode() + body)
        await self.writer.drain()

    async def head(self) -> tuple[int, dict[str, str]]:
        """Read status and headers."""
        assert self.reader is not None
        raw = await self.reader.readuntil(b"\r\n\r\n")
        lines = raw[:-4].decode("latin-1").split("\r\n")
        headers = {}
        for line in lines[1:]:
            name, _, value = line.partition(":")
            headers[name.lower()] = value.strip()
        return int(lines[0].split()[1]), headers

    async def pieces(self, headers: dict[str, str]) -> Any:
        """Yield the body's pieces; raises where the framing is broken or the end missing."""
        assert self.reader is not None
        if headers.get("transfer-encoding", "").lower() == "chunked":
            while True:
                size = int((await self.reader.readuntil(b"\r\n")).split(b";")[0], 16)
                piece = await self.reader.readexactly(size + 2)
                if piece[-2:] != b"\r\n":
                    raise ValueError("chunk without its line end")
                if size == 0:
                    return
                yield piece[:-2]
        elif "content-length" in headers:
            yield await self.reader.readexactly(int(headers["content-length"]))
        else:
            yield await self.reader.read()


class StreamReader:
    """Reads server-sent events of chat completions and judges them."""

    def __init__(self, prompt: str, out: Outcome, cancel_after: int) -> None:
        self.prompt, self.out, self.cancel_after = prompt, out, cancel_after
        self.rest = b""
        self.finish = ""
        self.done = False
        self.error = ""

    def feed(self, piece: bytes) -> None:
        """Take bytes; raises ValueError at the first thing that is wrong."""
        *lines, self.rest = (self.rest + piece).replace(b"\r\n", b"\n").split(b"\n")
        for line in lines:
            if line.startswith(b"data:"):
                self.event(line[5:].strip())

    def event(self, raw: bytes) -> None:
        """Judge one event."""
        if self.done:
            raise ValueError(f"an event after [DONE]: {raw[:80]!r}")
        if raw == b"[DONE]":
            if self.error:
                raise ValueError("[DONE] after an error event")
            self.done = True
            return
        try:
            told = json.loads(raw)
        except ValueError:
            raise ValueError(f"an event that is no JSON: {raw[:80]!r}") from None
        if "error" in told:
            self.error = json.dumps(told["error"])[:300]
            return
        if self.error:
            raise ValueError("an event after the error event")
        if told.get("usage"):
            self.out.usage = told["usage"]
        for choice in told.get("choices", ()):
            self.choice(choice)

    def choice(self, choice: dict[str, Any]) -> None:
        """Judge the words of one event, and whether they are ours."""
        text = (choice.get("delta") or {}).get("content") or choice.get("text") or ""
        if text:
            self.words(text)
        if choice.get("finish_reason"):
            self.finish = choice["finish_reason"]

    def words(self, text: str) -> None:
        """Count the words, and see that each is the next of our own answer."""
        now = time.monotonic()
        for word in text.split():
            if word + " " != word_of(self.prompt, self.out.received):
                raise ValueError(f"word {self.out.received} is {word!r}: not of this answer, or not in its place")
            self.out.received += 1
            if self.out.received == 1:
                self.out.first_s = now

    def verdict(self) -> None:
        """Say how the stream ended."""
        out = self.out
        if self.error:
            out.kind = "lie" if self.finish in ("stop", "length") else "error_event"
            out.why = self.error if out.kind == "error_event" else f"finish_reason {self.finish} and an error event"
        elif not self.finish:
            out.kind, out.why = "lie", "a clean end without finish_reason or error event"
        elif out.received != out.asked:
            out.kind, out.why = "lie", f"{out.received} of {out.asked} tokens passed off as a whole answer"
        else:
            out.kind = "answer"


@dataclass(kw_only=True)
class Request:
    """What to ask, and when to give up on it."""

    prompt: str
    n: int
    stream: bool = True
    model: str = "chat"
    key: str = ""
    tenant: str = ""
    usage: bool = True
    cancel_after: int = -1  # tokens after which the client hangs up
    cancel_after_s: float = -1.0
    deadline_s: float = 30.0
    path: str = "/v1/chat/completions"

    def body(self) -> bytes:
        """Return the JSON body."""
        told: dict[str, Any] = {
            "model": self.model, "max_tokens": self.n, "messages": [{"role": "user", "content": self.prompt}],
        }  # fmt: skip
        if self.stream:
            told["stream"] = True
            if self.usage:
                told["stream_options"] = {"include_usage": True}
        return json.dumps(told).encode()


async def ask(wire: Wire, request: Request) -> Outcome:
    """Send one request and return how it ended; the connection is dropped where it is no longer good."""
    out = Outcome(streamed=request.stream, asked=request.n, tenant=request.tenant, started_s=time.monotonic())
    limit_s = request.deadline_s if request.cancel_after_s < 0 else request.cancel_after_s
    try:
        await asyncio.wait_for(_ask(wire, request, out), limit_s)
    except TimeoutError:
        wire.drop()
        out.kind = "late" if request.cancel_after_s < 0 else "cancelled"
        out.why = f"{out.received} tokens, then nothing until the deadline"
    except ConnectionRefusedError:
        wire.drop()
        out.kind, out.why = "down", "nobody listens"
    except (OSError, EOFError, asyncio.LimitOverrunError) as error:
        wire.drop()
        out.kind, out.why = "broken", f"{type(error).__name__} after {out.received} tokens"
    except ValueError as error:
        wire.drop()
        out.kind, out.why = "lie", str(error)
    out.ended_s = time.monotonic()
    return out


async def _ask(wire: Wire, request: Request, out: Outcome) -> None:
    reused = wire.writer is not None and not wire.writer.is_closing()
    try:
        await wire.send(request.path, request.body(), request.key)
        out.status, out.headers = await wire.head()
    except (OSError, EOFError):
        if not reused:
            raise
        wire.drop()  # a kept-alive connection may have been closed meanwhile: once more on a fresh one, as clients do
        await wire.send(request.path, request.body(), request.key)
        out.status, out.headers = await wire.head()
    out.rid = out.headers.get("x-baseload-request-id", "")
    if out.status != 200 or not request.stream:
        body = b"".join([piece async for piece in wire.pieces(out.headers)])
        judge_plain(request, out, body)
    else:
        reader = StreamReader(request.prompt, out, request.cancel_after)
        marks = (0, 0)  # tokens before the last piece, and before the one before
        async for piece in wire.pieces(out.headers):
            seen = out.received
            reader.feed(piece)
            if out.received > seen:
                marks = (seen, marks[0])
                out.last_pieces = out.received - marks[1]
            if 0 <= request.cancel_after <= out.received and not reader.error and not reader.done:
                wire.drop()
                out.kind = "cancelled"
                return
        reader.verdict()
    if out.headers.get("connection", "").lower() == "close":
        wire.drop()


def judge_plain(request: Request, out: Outcome, body: bytes) -> None:
    """Judge an answer that was not streamed, or an error."""
    told = json.loads(body)
    if out.status != 200:
        error = told.get("error")
        good = isinstance(error, dict) and isinstance(error.get("message"), str) and "type" in error
        out.kind, out.why = ("envelope", str(error.get("code"))) if good else ("lie", f"no envelope: {body[:100]!r}")
        return
    choice = told["choices"][0]
    text = choice["message"]["content"] if "message" in choice else choice["text"]
    out.usage = told.get("usage")
    for word in text.split():
        if word + " " != word_of(request.prompt, out.received):
            raise ValueError(f"word {out.received} is {word!r}: not of this answer")
        out.received += 1
    whole = out.received == out.asked and choice["finish_reason"]
    out.kind, out.why = ("answer", "") if whole else ("lie", f"{out.received} of {out.asked} tokens")
