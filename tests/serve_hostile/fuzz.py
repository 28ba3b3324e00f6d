"""Fuzz of the gateway in process: real parsers, relays, doors and event scanners; pipes and purse are stand-ins.

    python -m tests.serve_hostile.fuzz --count 1000000 [--seed 0] [--target request|sse|both] [--state FILE]

A case of `request`: a hostile client's bytes in pieces, and hostile answers for whatever an engine is asked then. Nothing may
escape as an exception; what the client gets is HTTP, and what an engine gets is one whole request without the client's key;
every opened request is settled or cancelled once; no count of the door leaks; a stream never says `[DONE]` after an error;
and a request is understood alike in whatever pieces it comes. A case of `sse`: a stream in two fragmentations gives the same
bytes, tokens and verdict.

A long run goes in slices, each told with the memory held; with --state it goes on where it was stopped.
"""

from __future__ import annotations

from tests.serve_hostile import in_c

# isort: split
import argparse
import asyncio
import functools
import json
import os
import random
import re
import sys
import tempfile
import time
import traceback
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from baseload.serve.board import Board
from baseload.serve.body import CHAT, COMPLETIONS, MESSAGES, RESPONSES
from baseload.serve.client import Client
from baseload.serve.gateway import Gateway
from baseload.serve.purse import Refusal
from baseload.serve.sse import NO_BOUND, Broken, Scanner
from baseload.serve.tables import LimitRow, ModelRow
from baseload.serve.upstream import Connection
from baseload.serve.wire import KeyView
from tests.serve.fleet import tables as make_tables
from tests.serve_hostile import cases, mutations

N_REPLICAS = 4
SLICE = 20_000
FINDINGS_MAX = 10
MEMORY_GROWTH_MAX_BYTES = 32 << 20


class Pipe:
    """A transport that keeps what is written."""

    def __init__(self, protocol: Any) -> None:
        self.protocol = protocol
        self.written = bytearray()
        self.closed = False

    def write(self, data: bytes) -> None:
        assert isinstance(data, (bytes, bytearray, memoryview)), type(data)
        if not self.closed:
            self.written += data

    def writelines(self, parts: list[bytes]) -> None:
        self.write(b"".join(parts))

    def close(self) -> None:
        self.closed = True

    abort = close

    def is_closing(self) -> bool:
        return self.closed

    def get_extra_info(self, name: str, default: Any = None) -> Any:
        return default

    def get_write_buffer_size(self) -> int:
        return 0

    def set_write_buffer_limits(self, high: int | None = None, low: int | None = None) -> None:
        pass

    def pause_reading(self) -> None:
        pass

    def resume_reading(self) -> None:
        pass

    def end(self, error: Exception | None = None) -> None:
        """Tell the protocol, once, that the connection is gone."""
        self.closed = True
        if self.protocol is not None:
            protocol, self.protocol = self.protocol, None
            protocol.connection_lost(error)


PRICES = (1_000_000, 500_000, 2_000_000)  # that each request is opened at


class Purse:
    """Opens every request of the right key, and remembers how each ended."""

    def __init__(self) -> None:
        self.view = KeyView(0, "t0", "", "k", "t", 7, 0)
        self.n = 0
        self.step = 1 << 30  # tokens of an answer that are reserved at once
        self.held: list[Any] = []  # streams that wait for more
        self.open_: dict[int, Any] = {}
        self.last: Any = None  # row that was settled

    def open(self, bearer: bytes, *, then: Callable[[Any], None], max_output_tokens: int, **asked: Any) -> None:
        assert max_output_tokens >= 0 and asked["input_tokens"] >= 0, (max_output_tokens, asked)
        if bearer != mutations.KEY.encode():
            return then(Refusal(401, "invalid_api_key", "no such key", None))
        self.n += 1
        opened = SimpleNamespace(request_id=self.n, key=self.view, reserved_nano=1, mark=0, stop="", on_stop=None,
                                 on_more=None, output_tokens=0, stream=asked["stream"], prices=PRICES,
                                 until=self.step, ask_at=self.step - 1, sent=0,
                                 max_tokens=max_output_tokens)  # fmt: skip
        self.open_[self.n] = opened
        then(opened)

    def who(self, bearer: bytes, then: Callable[[Any], None]) -> None:
        then(self.view if bearer == mutations.KEY.encode() else Refusal(401, "invalid_api_key", "no such key", None))

    def delivered(self, opened: Any, output_tokens: int, now_s: float = 0.0) -> bool:
        assert opened.request_id in self.open_ and output_tokens >= opened.output_tokens, output_tokens
        opened.output_tokens = output_tokens
        return True

    def sends(self, opened: Any, output_tokens: int) -> bool:
        """Reserve the next step at once, later, or never."""
        assert opened.request_id in self.open_ and not opened.stop and opened not in self.held
        assert opened.sent < opened.until, "more was sent than is paid for, and the event that crosses it"
        opened.sent = output_tokens
        if output_tokens < opened.until:
            return True
        what = (opened.request_id + output_tokens) % 7
        if what == 0:
            opened.stop = "budget"
        elif what < 4:
            self.held.append(opened)
        else:
            self.cover(opened)
        return what >= 4

    def cover(self, opened: Any) -> None:
        opened.until = max(opened.until, opened.sent) + self.step
        opened.ask_at = opened.until - 1

    def more(self) -> None:
        """There is more money: let those go on that wait."""
        held, self.held = self.held, []
        for opened in held:
            if opened.request_id in self.open_:
                self.cover(opened)
                opened.on_more(opened)

    def prompt(self, opened: Any, input_tokens: int, cached_tokens: int = 0) -> None:
        assert input_tokens >= 0 and cached_tokens >= 0

    def routed(self, opened: Any, replica_i: int) -> None:
        assert 0 <= replica_i < N_REPLICAS

    def settle(self, opened: Any, row: Any) -> None:
        assert row.output_tokens >= 0 and row.input_tokens >= 0 and row.price_nano >= 0, row
        self.last = row
        del self.open_[opened.request_id]

    def cancel(self, opened: Any) -> None:
        del self.open_[opened.request_id]

    def receipt(self, view: KeyView, request_id: int, then: Callable[[bytes | None], None]) -> bool:
        then(None)
        return True


class Bench:
    """A gateway between pipes."""

    def __init__(self, folder: Path) -> None:
        tables = make_tables(N_REPLICAS, tenants=1)
        tables = type(tables)(**{**{f: getattr(tables, f) for f in tables.__struct_fields__},
                                 "models": [ModelRow(name="chat", max_context_tokens=8192)],
                                 "limits": LimitRow(eject_after=1_000_000_000)})  # fmt: skip
        board = Board.create(folder / "board", N_REPLICAS, 2, 1)
        for r in range(N_REPLICAS):
            board.gate[r] = 9
        urls = [f"http://127.0.0.1:{9 + r}" for r in range(N_REPLICAS)]
        (folder / "endpoints.json").write_text(json.dumps({"version": 1, "urls": urls}))
        board.head[_endpoint_cell()] = 1
        self.purse = Purse()
        self.gateway = Gateway(tables, folder, board, self.purse)  # type: ignore[arg-type]
        self.asked: list[Pipe] = []
        self.gateway.pool.take = self.take  # type: ignore[method-assign]
        self.gateway.pool.connect = self.connect  # type: ignore[method-assign,assignment]
        self.refuse = False

    def take(self, place: Any) -> Connection | None:
        """Hand out a fresh connection."""
        place.idle.clear()
        return None

    def connect(self, place: Any, then: Callable[[Connection | None], None]) -> None:
        """Connect at once to a pipe, or refuse."""
        if self.refuse:
            return then(None)
        connection = Connection(place)
        pipe = Pipe(connection)
        connection.connection_made(pipe)  # type: ignore[arg-type]
        self.asked.append(pipe)
        return then(connection)

    async def one(self, seed: int) -> str:
        """Run a case; return a word for what the client got."""
        dice = random.Random(f"case {seed}")
        self.asked, self.refuse = [], dice.random() < 0.03
        self.purse.step, self.purse.held = dice.choice((1 << 30, 1, 2, 7)), []
        client = Client(self.gateway)
        pipe = Pipe(client)
        client.connection_made(pipe)  # type: ignore[arg-type]
        answers = 0
        for piece in mutations.request(seed):
            if pipe.closed:
                break
            client.data_received(piece)
            if dice.random() < 0.7:  # else what comes next comes in the same turn of the loop
                self.gateway.turn.end()
            answers = self.answer(seed, answers)
        for _ in range(8):  # retries ask again
            before = answers
            answers = self.answer(seed, answers)
            if answers == before:
                break
        if dice.random() < 0.5:
            await asyncio.sleep(0)
        if dice.random() < 0.2:
            client.late(time.monotonic() + 1e6)
        pipe.end(ConnectionResetError() if dice.random() < 0.3 else None)
        for other in self.asked:
            other.end()
            if other.written:  # else its client was gone in the same turn
                one_request(bytes(other.written))
        await asyncio.sleep(0)
        self.check(bytes(pipe.written))
        statuses = cases.split_answers(bytes(pipe.written))
        return str(statuses[0]) if statuses else ("cut" if pipe.written else "nothing")

    async def understood(self, pieces: list[bytes]) -> list[int]:
        """Return the statuses of what comes in these pieces while every engine is slow, and then dies; 500 for what was read.

        All is read before anything is answered: what follows a request waits for its turn.
        """
        self.asked = []
        client = Client(self.gateway)
        pipe = Pipe(client)
        client.connection_made(pipe)  # type: ignore[arg-type]
        for piece in pieces:
            if not pipe.closed:
                client.data_received(piece)
                await asyncio.sleep(0)
        n = 0
        while n < len(self.asked):
            self.asked[n].end()
            n += 1
            await asyncio.sleep(0)
        pipe.end()
        await asyncio.sleep(0)
        return [min(status, 500) for status in cases.split_answers(bytes(pipe.written))]

    def answer(self, seed: int, n: int) -> int:
        """Let every engine that was asked and has not answered yet say something hostile."""
        for pipe in self.asked[n:]:
            n += 1
            self.gateway.turn.end()
            streamed = b'"stream":true' in pipe.written or b'"stream": true' in pipe.written
            for piece in mutations.answer(seed * 31 + n, streamed=streamed):
                if pipe.closed:
                    break
                pipe.protocol.data_received(piece)
                if (seed + n) % 2:
                    self.purse.more()
                if (seed + n) % 4:
                    self.gateway.turn.end()
            if (seed + n) % 3 == 0 or pipe.closed:
                pipe.end()
        while self.purse.held and seed % 5:
            self.purse.more()
        return n

    def check(self, written: bytes) -> None:
        """Nothing is left over, and what was written is HTTP."""
        assert not self.purse.open_, f"opened and never ended: {list(self.purse.open_)}"
        assert not self.gateway.clients
        self.gateway.door.check()
        assert (
            not any(self.gateway.door.board_row_outstanding())
            if hasattr(self.gateway.door, "board_row_outstanding")
            else True
        )
        assert not any(self.gateway.board.outstanding[0]), list(self.gateway.board.outstanding[0])
        if written:
            assert written.startswith(b"HTTP/1.1 "), written[:80]
            for part in written.split(b"HTTP/1.1 ")[1:]:
                if b"text/event-stream" in part[:400] and b'data: {"error"' in part:
                    assert b"data: [DONE]" not in part.split(b'data: {"error"', 1)[1], part[-300:]
        assert self.gateway.faults == 0


def one_request(written: bytes) -> None:
    """An engine is asked once on a connection: one head, one length, that many bytes; and never sees a client's key."""
    assert mutations.KEY.encode() not in written, written[:300]
    head, _, content = written.partition(b"\r\n\r\n")
    names = [line.partition(b":")[0].strip().lower() for line in head.split(b"\r\n")[1:]]
    lengths = [line.partition(b":")[2] for line in head.split(b"\r\n")[1:] if line[:15].lower() == b"content-length:"]
    assert head.startswith(b"POST /v1/") and b"\n" not in head.replace(b"\r\n", b""), head[:300]
    assert len(lengths) == 1 and int(lengths[0]) == len(content) and b"transfer-encoding" not in names, written[:300]
    json.loads(content)


def _endpoint_cell() -> int:
    from baseload.serve.board import H_ENDPOINTS

    return H_ENDPOINTS


def scan(kind: int, parts: list[bytes], *, strip: bool, step: int = NO_BOUND, waits: int = 1) -> tuple[Any, ...]:
    """Return all that a scanner makes of a stream of which `step` tokens go on at a time; what comes meanwhile waits."""
    scanner = Scanner(kind, strip_usage=strip)
    out = b""
    scanner.most = step
    try:
        for i, part in enumerate([*parts, b""]):
            if scanner.rest and i % waits and i < len(parts):
                scanner.keep(part)
                continue
            out += scanner.feed(part)
            while (
                scanner.rest
                and not (scanner.fault or scanner.ended or scanner.error is not None)
                and (i % waits == 0 or i == len(parts))
            ):
                scanner.most = scanner.tokens + step
                before = scanner.tokens - scanner.ahead
                out += scanner.feed(b"")
                assert scanner.tokens - scanner.ahead <= before + step
            if scanner.fault:
                return (_lines(out), "broken", scanner.tokens)
            if scanner.error is not None or scanner.ended:
                break
    except Broken:
        return (_lines(out), "broken", scanner.tokens)
    return (_lines(out), scanner.tokens, scanner.usage, scanner.ended, scanner.error is None, scanner.finished)


def _lines(out: bytes) -> bytes:
    """Return events with one blank line behind each: which of several goes with which event depends on the pieces."""
    return re.sub(rb"(?:\r?\n){2,}", b"\n\n", out)


def sse(seed: int) -> str:
    """One stream in its pieces and in others, often of a byte each: the same tokens; never `ended` without an end."""
    parts, whole = mutations.stream(seed)
    wire = b"".join(parts)
    kind = (CHAT, COMPLETIONS, MESSAGES, RESPONSES)[seed % 4] if seed % 5 == 0 else CHAT
    strip = seed % 2 == 0
    found = scan(kind, parts, strip=strip)
    dice = random.Random(seed)
    others = [wire[i : i + 1] for i in range(len(wire))] if seed % 4 == 0 else mutations.pieces(dice, wire)
    one = scan(kind, others, strip=strip, step=(NO_BOUND, 1, 3)[seed % 3], waits=1 + seed % 2)
    if found[1] == "broken" or one[1] == "broken":
        assert found == one, f"{found[1:]} in pieces, {one[1:]} in others"
        return "broken"
    if kind == CHAT:
        assert not found[3] or b"[DONE]" in wire, "ended without [DONE]"
        if whole and found[4]:
            assert found[3], "a whole stream is not seen to end"
    assert found[:2] == one[:2], f"tokens {found[1]} in pieces, {one[1]} in others"
    return "whole" if found[3] else ("error" if not found[4] else "open")


def run(target: str, first: int, count: int, say: Callable[[str], None] = print) -> int:
    """Run seeds; print findings with the command that repeats each; return their number."""
    outcomes: Counter[str] = Counter()
    findings = 0

    async def requests(folder: Path) -> None:
        nonlocal findings
        (folder / "alike").mkdir()
        bench = alike = None
        for seed in range(first, first + count):
            if (
                bench is None or alike is None or seed % 50 == 0
            ):  # circuits and ejections of engines that only ever fail
                bench, alike = Bench(folder), Bench(folder / "alike")
            try:
                outcomes[await bench.one(seed)] += 1
                if seed % 4 == 0:
                    pieces = mutations.request(seed)
                    whole, cut = await alike.understood([b"".join(pieces)]), await alike.understood(pieces)
                    assert whole == cut, f"in one piece {whole}, in {len(pieces)} {cut}"
            except Exception:
                findings += 1
                tell(seed)
                bench = None
                if findings >= FINDINGS_MAX:
                    return

    def tell(seed: int) -> None:
        say(traceback.format_exc(limit=-6))
        say(f"to repeat: python -m tests.serve_hostile.fuzz --target {target} --seed {seed} --count 1")

    began_s = time.process_time()
    if target == "request":
        with tempfile.TemporaryDirectory() as folder:
            asyncio.run(requests(Path(folder)))
    else:
        for seed in range(first, first + count):
            try:
                outcomes[sse(seed)] += 1
            except Exception:
                findings += 1
                tell(seed)
                if findings >= FINDINGS_MAX:
                    break
    n = sum(outcomes.values())
    rate = n / max(1e-9, time.process_time() - began_s)
    say(f"{target}: {n:,} cases, {rate:,.0f} a CPU second, {findings} findings; {dict(outcomes.most_common(14))}")
    return findings


def campaign(targets: Sequence[str], first: int, count: int, state: Path | None, say: Callable[[str], None]) -> int:
    """Run slices until all seeds are through, from where `state` says the last run came; return the first slice's findings."""
    saved: dict[str, int] = json.loads(state.read_text()) if state and state.exists() else {}
    rss = 0
    for target in targets:
        at = max(first, saved.get(target, first))
        while at < first + count:
            n = min(SLICE, first + count - at)
            findings = run(target, at, n, say)
            if findings:
                return findings
            saved[target] = at = at + n
            if state is not None:
                state.write_text(json.dumps(saved))
            now = int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")
            rss = rss or now
            say(f"  {target}: seeds below {at:,} are through; {now >> 20} MiB held, {rss >> 20} after the first slice")
            if now > rss + MEMORY_GROWTH_MAX_BYTES:
                say("  memory grows from slice to slice")
                return 1
    return 0


def main(argv: list[str] | None = None) -> int:
    """Run; return 1 where anything was found."""
    p = argparse.ArgumentParser(description="Hostile requests and streams against the gateway, in process.")
    p.add_argument("--target", choices=("request", "sse", "both"), default="both")
    p.add_argument("--seed", type=int, default=0)
    p.add_argument("--count", type=int, default=10_000)
    p.add_argument("--state", type=Path, help="keep in this file how far the run came, and go on from there")
    options = p.parse_args(argv)
    print(f"functions in C: {in_c.WHY or 'used'}", flush=True)
    targets = ("request", "sse") if options.target == "both" else (options.target,)
    return (
        1 if campaign(targets, options.seed, options.count, options.state, functools.partial(print, flush=True)) else 0
    )


if __name__ == "__main__":
    sys.exit(main())
