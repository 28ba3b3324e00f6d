"""Money under pressure, seen from outside: many clients on several workers, one budget; keys that end while streams run."""

from __future__ import annotations

import asyncio
import importlib.util
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.chaos.client import Outcome, Request, Wire, ask
from tests.chaos.invariants import ledger_rows
from tests.chaos.stack import Gateway, MockEngine, fleet_text

PRICE_NANO = 2000  # of an output token of acme: 2.0 a million
pytestmark = pytest.mark.skipif(
    importlib.util.find_spec("baseload.serve.worker") is None, reason="not run: the gateway is not built"
)


@pytest.fixture(scope="module")
def gateway(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Gateway]:
    """A gateway with four workers before one engine."""
    folder = tmp_path_factory.mktemp("budgets")
    engine = MockEngine(folder / "engine.truth", words=("--model", "chat", "--tokens", "100000")).start()
    fleet, state = folder / "fleet.yaml", folder / "state"
    state.mkdir(mode=0o700)
    fleet.write_text(fleet_text([engine.url], [], workers=4))
    started = Gateway(fleet, state).start()
    yield started
    started.stop()
    engine.kill()


def many(gateway: Gateway, key: str, n: int, prompt: str, tokens: int, *, again: int = 1) -> list[Outcome]:
    """Send streams from `n` clients at once, each on a connection of its own, `again` times."""

    async def one(i: int) -> list[Outcome]:
        wire = Wire("127.0.0.1", gateway.port)
        found = []
        for j in range(again):
            request = Request(prompt=f"client {i} round {j} {prompt}", n=tokens, key=key, deadline_s=30)
            found.append(await ask(wire, request))
        wire.drop()
        return found

    async def all_() -> list[Outcome]:
        return [o for found in await asyncio.gather(*(one(i) for i in range(n))) for o in found]

    return asyncio.run(all_())


def test_a_budget_is_overspent_by_at_most_a_chunk_each(gateway: Gateway) -> None:
    """64 clients on 4 workers run one key's budget dry: what they received costs at most one chunk each more than it."""
    budget_nano = 3_000_000  # 1,500 tokens of output, a fifth of what they ask for
    key = gateway.key("acme", "--budget", str(budget_nano / 1e9))
    outcomes = many(gateway, key, 64, "@gap_ms=2", 60, again=2)
    kinds = {o.kind for o in outcomes}
    assert kinds <= {"answer", "error_event", "envelope"}, [
        o for o in outcomes if o.kind not in ("answer", "envelope")
    ][:3]
    received = sum(o.received for o in outcomes)
    assert received * PRICE_NANO <= budget_nano + 64 * PRICE_NANO, f"{received} tokens for a budget of 1,500"
    assert any(o.kind == "envelope" and o.status == 429 and "quota" in o.why for o in outcomes)
    last = many(gateway, key, 1, "", 60)[0]
    assert last.status in (200, 429)
    time.sleep(1.0)
    ids = {int(o.rid.removeprefix("req-"), 16) for o in outcomes if o.rid}
    spent = sum(
        r["price_nano"]
        for r in ledger_rows(gateway.state / "ledger.db")
        if r["kind"] == "settle" and r["request_id"] in ids
    )
    assert spent <= budget_nano + 64 * PRICE_NANO
    assert spent >= 0.6 * budget_nano, (
        "a budget that cannot be spent is no budget: the last slices are recalled before anyone is refused"
    )


def test_a_revoked_key_stops_its_stream_within_a_second(gateway: Gateway) -> None:
    """Revoking a key ends a running stream with an error event, no [DONE], within 1 s."""
    key = gateway.key("acme", "--name", "leaked")

    async def go() -> tuple[Outcome, float]:
        wire = Wire("127.0.0.1", gateway.port)
        running = asyncio.create_task(ask(wire, Request(prompt="@gap_ms=50", n=400, key=key, deadline_s=25)))
        await asyncio.sleep(1.0)
        done = await asyncio.to_thread(revoke, gateway, key)
        out = await running
        wire.drop()
        return out, out.ended_s - done

    out, took_s = asyncio.run(go())
    assert out.kind == "error_event", out
    assert 0 < out.received < 400 and took_s < 1.0, took_s
    refused = many(gateway, key, 1, "", 1)[0]
    assert refused.status == 401


def revoke(gateway: Gateway, key: str) -> float:
    """Revoke the key named `leaked`; return when that was."""
    listed = gateway.baseload("keys", "list", "--state", str(gateway.state)).stdout
    line = next(line for line in listed.splitlines() if "leaked" in line)
    for word in line.split():
        done = gateway.baseload("keys", "revoke", word, "--state", str(gateway.state))
        if done.returncode == 0:
            return time.monotonic()
    raise AssertionError(f"no word of {line!r} names a key that can be revoked")


def test_rates_and_concurrency_hold_over_workers(gateway: Gateway) -> None:
    """Requests a minute and at a time are limits of the key, however many workers there are; refusals say when to come back."""
    key = gateway.key("bank", "--rpm", "20")
    outcomes = many(gateway, key, 16, "", 1, again=4)
    assert sum(o.kind == "answer" for o in outcomes) <= 22
    refused = [o for o in outcomes if o.kind == "envelope"]
    assert refused and all(o.status == 429 and "retry-after" in o.headers for o in refused)
    key = gateway.key("bank", "--concurrency", "3")
    outcomes = many(gateway, key, 12, "@gap_ms=20", 25)
    answered = [o for o in outcomes if o.kind == "answer"]
    most = max(sum(a.first_s <= b.first_s < a.ended_s for a in answered) for b in answered)
    assert most <= 3 and any(o.status == 429 for o in outcomes)


def test_keys_of_two_tenants_see_nothing_of_each_other(gateway: Gateway, tmp_path: Path) -> None:
    """A receipt of one tenant's request is not found by another's key."""
    import urllib.error
    import urllib.request

    acme, bank = gateway.key("acme"), gateway.key("bank")
    rid = many(gateway, acme, 1, "", 2)[0].rid
    time.sleep(1.0)

    def status(key: str) -> int:
        wire = urllib.request.Request(
            f"http://127.0.0.1:{gateway.port}/v1/receipts/{rid}", headers={"authorization": f"Bearer {key}"}
        )
        try:
            with urllib.request.urlopen(wire, timeout=5) as answer:
                return int(answer.status)
        except urllib.error.HTTPError as error:
            return error.code

    assert status(acme) == 200
    assert status(bank) == 404
    assert status("nobody") == 401
