"""What is written in a turn of the loop goes out at its end, and is settled behind that."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from pathlib import Path
from typing import Any

from baseload.records import FAILED, SERVED
from baseload.serve.turn import OUT_MOST, TOGETHER, Outgoing, Turn
from tests.serve.test_heads import answer, ask
from tests.serve_hostile import fuzz


class Wire:
    """A transport that keeps each write; a closed one raises, as uvloop's do."""

    def __init__(self, *, closed: bool = False) -> None:
        self.writes: list[bytes] = []
        self.closed = closed

    def write(self, data: bytes) -> None:
        if self.closed:
            raise RuntimeError("the handler is closed")
        self.writes.append(data)

    def get_write_buffer_size(self) -> int:
        return 0


def in_a_turn(do: Callable[[Turn], list[Outgoing]]) -> list[Outgoing]:
    """Do something in one turn of a loop, and let it end."""

    async def go() -> list[Outgoing]:
        found = do(Turn())
        await asyncio.sleep(0)
        await asyncio.sleep(0)
        return found

    return asyncio.run(go())


def outgoing(turn: Turn, wire: Wire) -> Outgoing:
    """Return an end of a connection."""
    one = Outgoing(turn)
    one.transport = wire
    return one


def test_what_is_written_in_a_turn_goes_out_in_one_piece_in_its_order() -> None:
    """Three writes of a turn are one of the socket's; until then all of it counts as not sent."""
    wire = Wire()

    def do(turn: Turn) -> list[Outgoing]:
        one = outgoing(turn, wire)
        for piece in (b"a", b"", b"bc", b"d"):
            one.write(piece)
        assert not wire.writes and one.unsent() == 4
        return [one]

    (one,) = in_a_turn(do)
    assert wire.writes == [b"abcd"] and one.unsent() == 0


def test_a_lot_does_not_wait_for_the_end_of_the_turn() -> None:
    """What waits is bounded; what is forgotten is never written."""
    wire, dropped = Wire(), Wire()

    def do(turn: Turn) -> list[Outgoing]:
        one, other = outgoing(turn, wire), outgoing(turn, dropped)
        one.write(bytes(OUT_MOST))
        one.write(b"!")
        assert len(wire.writes) == 1 and one.unsent() == 0
        one.write(b"behind")
        other.write(b"nobody wants this")
        other.forget()
        return [one]

    in_a_turn(do)
    assert wire.writes[1:] == [b"behind"] and dropped.writes == []


def test_a_connection_that_was_closed_costs_no_other_its_writes() -> None:
    """A transport that refuses a write ends nobody else's turn."""
    wires = [Wire(), Wire(closed=True), Wire()]

    def do(turn: Turn) -> list[Outgoing]:
        ends = [outgoing(turn, wire) for wire in wires]
        for one in ends:
            one.write(b"x")
        return ends

    in_a_turn(do)
    assert [wire.writes for wire in wires] == [[b"x"], [], [b"x"]]


class Wrong(Outgoing):
    """One that fails behind its writes."""

    def pushed(self) -> None:
        raise ValueError("a bug of this one")


def test_what_goes_wrong_at_one_is_heard_of_and_costs_the_others_nothing() -> None:
    """All are told that their writes are out; then the error is raised, to whoever watches over the loop."""

    async def go() -> tuple[list[str], int]:
        heard: list[str] = []
        asyncio.get_running_loop().set_exception_handler(lambda loop, told: heard.append(repr(told["exception"])))
        shared, wires = Turn(), [Wire(), Wire()]
        for one, wire in zip((Wrong(shared), Wrong(shared)), wires, strict=True):
            one.transport = wire
            one.write(b"x")
        await asyncio.sleep(0)
        await asyncio.sleep(0)
        return heard, sum(len(wire.writes) for wire in wires)

    heard, written = asyncio.run(go())
    assert written == 2 and len(heard) == 1 and heard[0].count("a bug of this one") == 2


def test_nobody_waits_for_a_crowd() -> None:
    """In a turn with many writers those that came first are out before the last has come; all are at the end."""
    wires = [Wire() for _ in range(3 * TOGETHER)]

    def do(turn: Turn) -> list[Outgoing]:
        ends = [outgoing(turn, wire) for wire in wires]
        for one in ends:
            one.write(b"x")
        assert sum(len(wire.writes) for wire in wires) == 2 * TOGETHER
        return ends

    in_a_turn(do)
    assert all(wire.writes == [b"x"] for wire in wires)


def one_answer(folder: Path, *, leaves: str) -> tuple[bytes, bytes, Any]:
    """Ask once; the client leaves `after` the turn of its answer, `within` it, or within that of its `request`.

    Returns what the client and the engine got, and how it was settled.
    """

    async def go() -> tuple[bytes, bytes, Any]:
        bench = fuzz.Bench(folder)
        client = fuzz.Client(bench.gateway)
        pipe = fuzz.Pipe(client)
        client.connection_made(pipe)  # type: ignore[arg-type]
        client.data_received(ask(3))
        (engine,) = bench.asked
        if leaves != "request":
            bench.gateway.turn.end()
            engine.protocol.data_received(answer(5))
            assert not pipe.written and bench.purse.open_  # neither told nor billed before the turn ends
        if leaves == "after":
            bench.gateway.turn.end()
        pipe.end()
        await asyncio.sleep(0)
        await asyncio.sleep(0)
        assert not bench.purse.open_
        return bytes(pipe.written), bytes(engine.written), bench.purse.last

    return asyncio.run(go())


def test_an_answer_is_billed_once_it_was_handed_to_the_socket(tmp_path: Path) -> None:
    """Served and billed where it was; a client that left in the same turn was told nothing and pays nothing."""
    told, _, row = one_answer(tmp_path, leaves="after")
    assert told.startswith(b"HTTP/1.1 200 ") and row.status == SERVED and row.output_tokens == 2
    told, _, row = one_answer(tmp_path, leaves="within")
    assert told == b"" and row.status == FAILED and row.output_tokens == 0 and row.price_nano == 0


def test_an_engine_hears_nothing_of_a_request_whose_client_left_at_once(tmp_path: Path) -> None:
    """Who leaves in the turn of its own request has asked no engine, and pays nothing."""
    told, heard, row = one_answer(tmp_path, leaves="request")
    assert told == heard == b"" and row.status == FAILED and row.price_nano == 0


def test_who_asked_for_the_last_time_gets_the_answer_before_the_connection_ends(tmp_path: Path) -> None:
    """`Connection: close`: the whole answer is written, and settled, before the close."""

    async def go() -> None:
        bench = fuzz.Bench(tmp_path)
        client = fuzz.Client(bench.gateway)
        pipe = fuzz.Pipe(client)
        client.connection_made(pipe)  # type: ignore[arg-type]
        client.data_received(ask(3, extra="connection: close\r\n"))
        bench.asked[0].protocol.data_received(answer(5))
        assert pipe.closed and pipe.written.endswith(b"}") and b"yyyyy" in pipe.written
        assert not bench.purse.open_ and bench.purse.last.status == SERVED
        pipe.end()

    asyncio.run(go())
