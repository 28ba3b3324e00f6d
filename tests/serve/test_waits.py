"""What waits, for its client or for money: in bounded memory, ended in time, and settled once for what was taken."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import msgspec
import pytest
import uvloop

from baseload.records import FAILED, SERVED
from baseload.serve.client import HIGH_WATER_BYTES, Client
from tests.serve_hostile import fuzz, mutations

HEAD = b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\n\r\n"
WORD = b'data: {"choices":[{"index":0,"delta":{"content":"%b"},"finish_reason":null}]}\n\n'
END = b'data: {"choices":[{"index":0,"delta":{},"finish_reason":"stop"}]}\n\ndata: [DONE]\n\n'
ASK = b'{"model":"chat","stream":true,"messages":[{"role":"user","content":"hi"}]}'
STREAM = b"POST /v1/chat/completions HTTP/1.1\r\nhost: x\r\nauthorization: Bearer %b\r\ncontent-length: %d\r\n\r\n%b" % (
    mutations.KEY.encode(), len(ASK), ASK,
)  # fmt: skip
HEALTH = b"GET /health HTTP/1.1\r\nhost: x\r\n\r\n"
LoopFactory = Callable[[], asyncio.AbstractEventLoop]
LITTLE_BYTES = 4096  # that sockets hold


def behind_sockets(
    folder: Path,
    token_s: float,
    then: Callable[[fuzz.Bench, socket.socket], Awaitable[None]],
    loop_factory: LoopFactory | None = None,
) -> fuzz.Bench:
    """Let a client of real and small sockets do something with a gateway whose engines are pipes; return the gateway."""

    async def go() -> fuzz.Bench:
        bench = fuzz.Bench(folder)
        bench.gateway.limits = msgspec.structs.replace(bench.gateway.limits, token_s=token_s)
        listening = socket.create_server(("127.0.0.1", 0))
        listening.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, LITTLE_BYTES)
        loop = asyncio.get_running_loop()
        server = await loop.create_server(lambda: Client(bench.gateway), sock=listening)
        with socket.socket() as sock:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, LITTLE_BYTES)
            sock.setblocking(False)
            await loop.sock_connect(sock, listening.getsockname())
            await asyncio.wait_for(then(bench, sock), 10.0)
        server.close()
        while bench.gateway.clients:
            await asyncio.sleep(0.001)
        return bench

    with asyncio.Runner(loop_factory=loop_factory) as runner:
        return runner.run(go())


def test_who_does_not_take_the_end_of_a_stream_is_let_go(tmp_path: Path) -> None:
    """An answer that is whole, and of which the client takes nothing more, is settled all the same, as not delivered."""

    async def never_read(bench: fuzz.Bench, sock: socket.socket) -> None:
        await asyncio.get_running_loop().sock_sendall(sock, STREAM)
        while not bench.asked:
            await asyncio.sleep(0.001)
        bench.asked[0].protocol.data_received(HEAD + WORD % (b"b" * 150_000) + END)
        while bench.gateway.clients:
            bench.gateway.sweep()
            await asyncio.sleep(0.005)

    bench = behind_sockets(tmp_path, 0.03, never_read)
    assert not bench.purse.open_ and bench.purse.last.status == FAILED and bench.purse.last.output_tokens == 0


@pytest.mark.parametrize("loop", [None, uvloop.new_event_loop])
def test_who_closes_behind_the_end_of_a_stream_is_billed_for_all_of_it(
    tmp_path: Path, loop: LoopFactory | None
) -> None:
    """An answer whose last bytes the socket took late, and whose client then closed at once, was delivered whole."""

    async def read_late(bench: fuzz.Bench, sock: socket.socket) -> None:
        running = asyncio.get_running_loop()
        await running.sock_sendall(sock, STREAM)
        while not bench.asked:
            await asyncio.sleep(0.001)
        bench.asked[0].protocol.data_received(HEAD + WORD % (b"b" * 150_000) + END)
        await asyncio.sleep(0.01)
        (client,) = bench.gateway.clients
        assert client.unsent() > 0
        got = b""
        while not got.endswith(b"0\r\n\r\n"):  # no sweep in between
            got += await running.sock_recv(sock, 65_536)
        sock.close()

    bench = behind_sockets(tmp_path, 5.0, read_late, loop)
    row = bench.purse.last
    assert not bench.purse.open_ and (row.status, row.client_status, row.output_tokens) == (SERVED, 200, 1)


def test_an_engine_that_counts_one_choice_of_several_is_not_believed(tmp_path: Path) -> None:
    """Each choice's tokens that reached the client are billed, though the engine's usage, as llama.cpp's, is of one alone."""
    body = ASK.replace(b'"stream"', b'"n":2,"stream"')
    words = b"".join(
        b'data: {"choices":[{"index":%d,"delta":{"content":"a"},"finish_reason":null}]}\n\n' % i
        for i in (0, 1, 0, 1, 1)
    )
    usage = b'data: {"choices":[],"usage":{"prompt_tokens":3,"completion_tokens":2,"total_tokens":5}}\n\n'

    async def ask(bench: fuzz.Bench, sock: socket.socket) -> None:
        loop = asyncio.get_running_loop()
        head = STREAM[: STREAM.index(b"content-length")] + b"content-length: %d\r\n\r\n" % len(body)
        await loop.sock_sendall(sock, head + body)
        while not bench.asked:
            await asyncio.sleep(0.001)
        bench.asked[0].protocol.data_received(HEAD + words + END.replace(b"data: [DONE]", usage + b"data: [DONE]"))
        got = b""
        while not got.endswith(b"0\r\n\r\n"):
            got += await loop.sock_recv(sock, 65_536)

    row = behind_sockets(tmp_path, 5.0, ask).purse.last
    assert (row.status, row.input_tokens, row.output_tokens) == (SERVED, 3, 5)


def test_answers_do_not_pile_up_for_who_does_not_read_them(tmp_path: Path) -> None:
    """However much is asked ahead, without a key even: no more is read when a little of it was answered and not taken."""

    async def ask_ahead(bench: fuzz.Bench, sock: socket.socket) -> None:
        loop = asyncio.get_running_loop()
        asking = loop.create_task(loop.sock_sendall(sock, HEALTH * 300_000))
        while not bench.gateway.clients:
            await asyncio.sleep(0.001)
        (client,) = bench.gateway.clients
        for _ in range(200):  # reads, and may read on
            await asyncio.sleep(0.001)
        assert HIGH_WATER_BYTES / 2 < client.transport.get_write_buffer_size() < 2 * HIGH_WATER_BYTES
        assert not asking.done()
        asking.cancel()

    behind_sockets(tmp_path, 30.0, ask_ahead)


def test_what_stands_behind_the_last_request_is_ignored(tmp_path: Path) -> None:
    """`Connection: close` ends what is asked: one answer, whatever follows, and then the end."""

    async def go_on(bench: fuzz.Bench, sock: socket.socket) -> None:
        loop = asyncio.get_running_loop()
        last = STREAM.replace(b"host: x", b"host: x\r\nconnection: close")
        await loop.sock_sendall(sock, HEALTH + last + HEALTH + b"\0 garbage\r\n\r\n")
        while not bench.asked:
            await asyncio.sleep(0.001)
        await loop.sock_sendall(sock, HEALTH)
        for _ in range(10):  # which is read too: a close before that would be a reset
            await asyncio.sleep(0)
        bench.asked[0].protocol.data_received(HEAD + WORD % b"b" + END)
        wire = b""
        while piece := await loop.sock_recv(sock, 65_536):
            wire += piece
        assert wire.count(b"HTTP/1.1") == wire.count(b"HTTP/1.1 200") == 2 and wire.endswith(b"[DONE]\n\n\r\n0\r\n\r\n")

    behind_sockets(tmp_path, 30.0, go_on)


def event(n_choices: int = 1, **more: Any) -> bytes:
    """Return an event with a word for each choice."""
    choices = [{"index": i, "delta": {"content": "b"}, "finish_reason": None} for i in range(n_choices)]
    return b"data: %b\n\n" % msgspec.json.encode({"choices": choices, **more})


def asked(folder: Path, body: bytes, said: list[bytes], *, step: int, deadline_s: float = 60.0) -> tuple[bytes, Any]:
    """Return what comes of a stream whose money comes in steps (`fuzz.Purse`), a step whenever it waits, and its row."""
    wire = b""

    async def read(bench: fuzz.Bench, sock: socket.socket) -> None:
        nonlocal wire
        loop = asyncio.get_running_loop()
        bench.purse.step = step
        bench.gateway.limits = msgspec.structs.replace(bench.gateway.limits, request_s=deadline_s)
        await loop.sock_sendall(
            sock, STREAM.partition(b"content-length")[0] + b"content-length: %d\r\n\r\n%b" % (len(body), body)
        )
        while not bench.asked:
            await asyncio.sleep(0.001)
        for piece in said:
            if bench.asked[0].protocol is not None:
                bench.asked[0].protocol.data_received(piece)
        while bench.purse.open_:
            await asyncio.sleep(0.005)
            bench.gateway.sweep()
            if deadline_s >= 60.0:
                bench.purse.more()
        while b"0\r\n\r\n" not in wire:
            wire += await loop.sock_recv(sock, 65_536)

    bench = behind_sockets(folder, 60.0, read)
    return wire, bench.purse.last


def test_a_deadline_falls_into_a_wait_for_money(tmp_path: Path) -> None:
    """A stream that waits for money when its time is over ends then, with an error, and costs what was taken."""
    wire, row = asked(tmp_path, ASK, [HEAD + event() * 9 + END], step=2, deadline_s=0.05)
    assert wire.count(b'"content"') == 2 and b'"timeout"' in wire and b"[DONE]" not in wire
    assert row.output_tokens == 2 and row.status == FAILED


def test_usage_behind_a_wait_for_money_is_told_with_its_cost(tmp_path: Path) -> None:
    """What the engine said of tokens comes after the words that waited, and once."""
    body = ASK.replace(b'"stream":', b'"stream_options":{"include_usage":true},"stream":')
    usage = b'data: {"choices":[],"usage":{"prompt_tokens":3,"completion_tokens":4}}\n\n'
    end, done, _ = END.partition(b"data: [DONE]")
    wire, row = asked(tmp_path, body, [HEAD + event() * 4 + end + usage + done + b"\n\n"], step=2)
    assert wire.count(b'"content"') == 4 and wire.count(b'"price":1.1e-05') == 1 and b"[DONE]" in wire
    assert (row.output_tokens, row.input_tokens, row.status) == (4, 3, SERVED)


def test_each_choice_of_an_event_is_a_token(tmp_path: Path) -> None:
    """Engines that tell of all choices at once do not get them past a budget at the price of one."""
    three = ASK.replace(b'"stream":', b'"n":3,"stream":')
    wire, row = asked(tmp_path, three, [HEAD + event(3) * 9], step=6, deadline_s=0.05)
    assert wire.count(b'"content"') == row.output_tokens == 6


def test_an_answer_as_long_as_its_money_is_whole(tmp_path: Path) -> None:
    """What came with the last token that a budget pays for, and brings no other, is told: it may be the end."""
    wire, row = asked(tmp_path, ASK, [HEAD + event() * 6 + END], step=6)
    assert wire.count(b'"content"') == 6 and b"[DONE]" in wire and b'"error"' not in wire
    assert row.status == SERVED and row.output_tokens == 6
