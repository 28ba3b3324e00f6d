"""The tools of chaos, tried on themselves: a judge that never finds anything, or a fault that does nothing, proves nothing."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.chaos import invariants, leaks, schedule
from tests.chaos.client import Outcome, Request, Wire, ask
from tests.chaos.faultproxy import FaultProxy
from tests.chaos.invariants import Seen
from tests.chaos.stack import MockEngine

# What a client sees that talks to the faulty engine without a gateway between: streamed, plain.
DIRECT = {
    "": ("answer", "answer"),
    "hang": ("late", "late"),
    "stall": ("late", "answer"),
    "reset": ("broken", "broken"),
    "reset0": ("broken", "broken"),
    "fin": ("broken", "broken"),
    "cut": ("lie", "answer"),
    "halfbody": ("answer", "broken"),
    "garbage": ("lie", "lie"),
    "badchunk": ("lie", "answer"),
    "badjson": ("lie", "lie"),
    "errchunk": ("error_event", "answer"),
    "split": ("answer", "answer"),
    "lie": ("answer", "answer"),
    "nousage": ("answer", "answer"),
    "closeafter": ("answer", "answer"),
    "503": ("envelope", "envelope"),
}


@pytest.fixture(scope="module")
def engine(tmp_path_factory: pytest.TempPathFactory) -> Iterator[MockEngine]:
    """A mock engine."""
    started = MockEngine(tmp_path_factory.mktemp("mock") / "engine.truth").start()
    yield started
    started.kill()


def one(port: int, prompt: str, *, stream: bool, deadline_s: float = 0.7, cancel_after: int = -1) -> Outcome:
    """Ask once."""

    async def go() -> Outcome:
        wire = Wire("127.0.0.1", port)
        out = await ask(
            wire, Request(prompt=prompt, n=8, stream=stream, deadline_s=deadline_s, cancel_after=cancel_after)
        )
        wire.drop()
        return out

    return asyncio.run(go())


@pytest.mark.parametrize("fault", DIRECT)
def test_the_judge_sees_through_every_fault(engine: MockEngine, fault: str) -> None:
    """A fault that reaches the client unmended is told from a whole answer, streamed and plain."""
    prompt = f"hello @fault={fault}" if fault else "hello"
    got = tuple(one(engine.port, prompt, stream=stream).kind for stream in (True, False))
    assert got == DIRECT[fault]


def test_the_engine_remembers_what_it_sent(engine: MockEngine) -> None:
    """Ground truth counts tokens sent, and notes a client that hung up; it is also in the file."""
    out = one(engine.port, "slowly @gap_ms=30", stream=True, deadline_s=5, cancel_after=3)
    assert out.kind == "cancelled" and out.received >= 3
    truth = [a for attempts in engine.truth().values() for a in attempts]
    assert truth[-1]["sent"] in range(3, 8)
    for _ in range(50):
        if engine.call("/__stats")["cancelled"]:
            break
    assert engine.call("/__stats")["cancelled"] >= 1
    assert engine.call("/__stats")["running"] == 0


def test_the_proxy_does_what_its_faults_say(engine: MockEngine) -> None:
    """Latency is late, reset resets, truncation truncates, a black hole is silent, and all of it heals."""

    async def go() -> list[str]:
        proxy = await FaultProxy.open(engine.port)
        kinds = []
        for fault, amount in (
            ("heal", 0), ("latency", 50), ("reset", 0), ("truncate", 300), ("corrupt", 0), ("blackhole", 0), ("heal", 0),
        ):  # fmt: skip
            proxy.set(fault, amount)
            wire = Wire("127.0.0.1", proxy.port)
            kinds.append((await ask(wire, Request(prompt="hello", n=4, deadline_s=0.6))).kind)
            wire.drop()
        proxy.close()
        return kinds

    kinds = asyncio.run(go())
    assert kinds[4] != "answer"  # what corruption hits first is chance: a word, or the framing
    assert kinds[:4] + kinds[5:] == ["answer", "answer", "broken", "broken", "late", "answer"]


def test_a_seed_names_one_storm() -> None:
    """The same seed gives the same events and requests; 10,000 requests bring the promised number of kills."""
    assert schedule.events(7, 10_000, 4) == schedule.events(7, 10_000, 4)
    kinds = [event.what for event in schedule.events(7, 10_000, 4)]
    assert kinds.count("engine") == 50 and kinds.count("database") == 10 and kinds.count("disk") == 5
    assert sum(kinds.count(k) for k in ("gateway", "owner", "worker")) == 20
    keys = dict.fromkeys(schedule.TENANTS, "k")
    assert schedule.request(7, 3, keys) == schedule.request(7, 3, keys) != schedule.request(8, 3, keys)


def settle(rid: int, tokens: int, **more: object) -> dict[str, object]:
    """Return a settle row."""
    return {"kind": "settle", "request_id": rid, "output_tokens": tokens, "input_tokens": 2, "recovered": False,
            "price_nano": 0, **more}  # fmt: skip


def test_books_that_do_not_balance_are_found(tmp_path: Path) -> None:
    """A token too many, a row twice, a request without a row, a leaked lease: each is one sentence."""
    lease = {"kind": "lease", "request_id": 1, "n_ids": 4}
    void = {"kind": "void", "request_id": 1}
    assert invariants.one_row_each([lease, settle(1, 5), void]) == []
    assert len(invariants.one_row_each([lease, settle(1, 5), settle(1, 5), void])) == 1
    assert len(invariants.one_row_each([lease, settle(1, 5)])) == 1
    assert len(invariants.one_row_each([lease, settle(9, 5), void])) == 1

    def books(kind: str, received: int, billed: int, sent: int) -> list[str]:
        rid = "req-0000000000000001"
        out = Outcome(kind=kind, rid=rid, asked=8, received=received)
        truth = {rid: [{"sent": sent, "fault": "", "state": "finished", "engine": "e"}]}
        return invariants.billed_as_delivered([Seen(out, "", 100)], [settle(1, billed)], truth, n_lost=4)

    assert books("answer", 8, 8, 8) == [] and books("answer", 8, 7, 8) and books("answer", 8, 9, 9)
    assert books("broken", 5, 6, 8) == [] and books("broken", 5, 0, 8) and books("broken", 5, 9, 8)
    assert books("envelope", 0, 1, 1) and books("envelope", 0, 0, 0) == []
    out = Outcome(kind="broken", ended_s=5.0, started_s=4.0)
    assert invariants.one_end_each([Seen(out, "", 1)], [])
    assert invariants.one_end_each([Seen(out, "", 1)], [invariants.Window(4.5, 6.0)]) == []
    assert invariants.one_end_each([Seen(Outcome(kind="lie"), "", 1)], [invariants.Window(0, 9)])


def test_a_word_that_leaked_is_found_wherever_it_stands(tmp_path: Path) -> None:
    """A prompt in a log, a key within the bytes of a ledger, and one on a page are each told by name; else nothing is."""
    (tmp_path / "state" / "run").mkdir(parents=True)
    (tmp_path / "state" / "run" / "worker.log").write_text(f"body: {leaks.CANARY} request 3")
    (tmp_path / "state" / "ledger.db").write_bytes(b"\0\xff" + b"bl-0123456789abcdef" + b"\0")
    pages = {"/metrics": b'key="bl-0123456789abcdef"', "/healthz": b"ok"}

    wrong = leaks.found([leaks.CANARY, "bl-0123456789abcdef"], [tmp_path / "state"], pages)

    assert sorted(line.rsplit("/", 1)[1] for line in wrong) == ["ledger.db", "metrics", "worker.log"], wrong
    assert not any("0123456789" in line for line in wrong), "a finding does not leak in its turn"
    assert leaks.found(["another-word"], [tmp_path / "state"], pages) == []
