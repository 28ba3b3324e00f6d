"""Owner and purses over a real socket and a real ledger: what is billed, refused, stopped, stored and recovered."""

from __future__ import annotations

import asyncio
import json
import os
import socket
import struct
import time
from collections.abc import Coroutine
from typing import Any

import msgspec
import pytest
import uvloop

from baseload.errors import LedgerUnavailable
from baseload.serve import wire
from baseload.serve.opened import STEP_TOKENS
from baseload.serve.purse import Opened, Refusal
from baseload.serve.rows import LeaseRow, VoidRow
from tests.serve.fleet import tables as make_tables
from tests.serve.fleet import tenant
from tests.serve.money import Till, open_one, price_nano, row, run_one, until


def run(work: Coroutine[Any, Any, None]) -> None:
    """Run a test's coroutine on the loop that is used live, for at most half a minute."""
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(asyncio.wait_for(work, 30.0))


def test_a_request_is_leased_before_it_is_opened_and_settled_after(tmp_path):
    """When a request opens, the ledger already holds the lease that covers it; its row follows, then the receipt."""

    async def work() -> None:
        till = Till(tmp_path)
        made = till.key(name="ci")
        owner, purse = await till.owner(), None
        purse = await till.purse()
        opened = await open_one(purse, made.secret)
        assert isinstance(opened, Opened) and opened.key.tenant == "t0" and opened.key.tenant_i == 0
        leases = [r for r in till.rows() if isinstance(r, LeaseRow)]
        assert any(x.request_id <= opened.request_id < x.request_id + x.n_ids for x in leases)
        purse.delivered(opened, 20)
        purse.settle(opened, row())
        purse.settle(opened, row())  # a second time changes nothing
        await until(lambda: not purse.n_unstored)
        settled = till.settled()
        assert [x.price_nano for x in settled.values()] == [price_nano(10, 20)]
        assert settled[opened.request_id].tenant == made.record.tenant_pseudonym
        assert settled[opened.request_id].key == made.record.pseudonym
        got: list[bytes | None] = []
        purse.receipt(opened.key, opened.request_id, got.append)
        await until(lambda: got)
        assert got[0] is not None and json.loads(got[0])
        assert await purse.close()
        await until(till.closed)
        assert any(isinstance(r, VoidRow) for r in till.rows())
        owner.bank.check()
        assert owner.bank.keys[made.record.key_i].held_nano == 0
        assert not list(till.run.glob("marks-*")) and not owner.faults
        await owner.stop()

    run(work())


def test_a_receipt_is_for_its_own_tenant_alone(tmp_path):
    """Whoever asks with another tenant's key for a request gets nothing, and cannot tell whether it is there."""

    async def work() -> None:
        till = Till(tmp_path)
        mine, theirs = till.key("t0"), till.key("t1")
        owner = await till.owner()
        purse = await till.purse()
        opened = await run_one(purse, mine.secret)
        other = await run_one(purse, theirs.secret)
        assert isinstance(opened, Opened) and isinstance(other, Opened)
        await until(lambda: not purse.n_unstored)
        got: list[bytes | None] = []
        purse.receipt(other.key, opened.request_id, got.append)
        purse.receipt(other.key, 999, got.append)
        await until(lambda: len(got) == 2)
        assert got == [None, None]
        await purse.close()
        await owner.stop()

    run(work())


def test_unknown_revoked_expired_and_tenantless_keys_are_refused(tmp_path):
    """Each is told its own word; none opens anything."""

    async def work() -> None:
        till = Till(tmp_path)
        revoked, expired = till.key(), till.key(expires_ns=time.time_ns() - 1)
        gone, good = till.key("nobody"), till.key()
        till.keyring.revoke(revoked.record.key_i, time.time_ns())
        owner = await till.owner()
        purse = await till.purse()
        answers = [
            await open_one(purse, secret)
            for secret in ("sk-1", "", "' OR 1=1 --", till.keyring.create("t0", now_ns=0).secret[:-1] + "x")
        ]
        answers += [await open_one(purse, key.secret) for key in (revoked, expired)]
        assert {answer.code for answer in answers} == {"invalid_api_key"}
        assert (await open_one(purse, gone.secret)).status == 403
        assert isinstance(await run_one(purse, good.secret), Opened)
        names: list[Any] = []
        purse.who(good.secret.encode(), names.append)
        assert names[0].tenant == "t0"
        await purse.close()
        await owner.stop()

    run(work())


def test_a_budget_admits_what_it_pays_for_and_not_one_more(tmp_path):
    """With money for five requests, five run and the sixth is refused with insufficient_quota."""

    async def work() -> None:
        till = Till(tmp_path)
        made = till.key(budget_nano=5 * price_nano(10, 20) + 1)
        owner = await till.owner()
        purses = [await till.purse(worker) for worker in range(2)]
        answers = [await run_one(purses[i % 2], made.secret) for i in range(8)]
        assert [isinstance(a, Opened) for a in answers] == [True] * 5 + [False] * 3
        assert {a.code for a in answers if isinstance(a, Refusal)} == {"insufficient_quota"}
        for purse in purses:
            assert await purse.close()
        assert sum(r.price_nano for r in till.settled().values()) == 5 * price_nano(10, 20)
        assert owner.bank.keys[made.record.key_i].spent_nano == 5 * price_nano(10, 20)
        owner.bank.check()
        await owner.stop()

    run(work())


def test_a_tenants_monthly_budget_counts_what_the_ledger_says(tmp_path):
    """A new owner begins with what was spent before it, of the tenant's month and of the key's life."""

    async def work() -> None:
        one = price_nano(10, 20)
        till = Till(tmp_path, make_tables(tenants=1))
        till.tables = msgspec.structs.replace(till.tables, tenants=[tenant("t0", budget_per_month_nano=3 * one)])
        first, second = till.key(), till.key()
        for expected in ([True, True], [True, False]):
            owner = await till.owner()
            purse = await till.purse()
            got = [isinstance(await run_one(purse, key.secret), Opened) for key in (first, second)]
            assert got == expected
            await purse.close()
            await owner.stop()

    run(work())


def test_requests_and_tokens_a_minute_and_concurrency_are_refused_with_a_time(tmp_path):
    """Over a limit the answer is 429 with Retry-After; under it, it is an answer."""

    async def work() -> None:
        till = Till(tmp_path)
        owner = await till.owner()
        purse = await till.purse()
        rpm, tpm, together = till.key(rpm=3), till.key(tpm=100), till.key(concurrency=2)
        answers = [await run_one(purse, rpm.secret) for _ in range(5)]
        assert [isinstance(a, Opened) for a in answers] == [True] * 3 + [False] * 2
        assert answers[-1].status == 429 and 0 < answers[-1].retry_s <= 20.5
        answers = [await run_one(purse, tpm.secret) for _ in range(5)]
        assert [isinstance(a, Opened) for a in answers] == [True] * 3 + [False] * 2
        held = [await open_one(purse, together.secret) for _ in range(3)]
        assert [isinstance(a, Opened) for a in held] == [True, True, False]
        purse.cancel(held[0])
        assert isinstance(await run_one(purse, together.secret), Opened)
        purse.cancel(held[1])
        assert await purse.close()
        owner.bank.check()
        await owner.stop()

    run(work())


def test_a_stream_is_renewed_in_steps_and_ends_where_the_money_does(tmp_path):
    """A stream with a bound of 100,000 tokens runs on a budget for 1,000 and stops within a chunk of it."""

    async def work() -> None:
        till = Till(tmp_path)
        made = till.key(budget_nano=price_nano(10, 1000))
        owner = await till.owner()
        purse = await till.purse()
        opened = await open_one(purse, made.secret, most=100_000, stream=True)
        assert isinstance(opened, Opened)
        more = asyncio.Event()
        opened.on_more = lambda _: more.set()
        opened.on_stop = lambda _: more.set()
        tokens = 0
        for _ in range(400):
            tokens += 7
            purse.delivered(opened, tokens)
            if not purse.sends(opened, tokens):
                if opened.stop:
                    break
                await more.wait()
                more.clear()
                if opened.stop:
                    break
        assert opened.stop == "budget" and 1000 <= tokens <= 1000 + 7
        purse.settle(opened, row(10, tokens))
        assert (await open_one(purse, made.secret)).code == "insufficient_quota"
        assert await purse.close()
        assert price_nano(10, 1000) <= owner.bank.keys[made.record.key_i].spent_nano <= price_nano(10, 1007)
        owner.bank.check()
        await owner.stop()

    run(work())


def test_a_stream_on_its_last_money_asks_again_before_it_ends(tmp_path):
    """A budget that is raised while a stream spends the last of it carries the stream on; the new one ends it as exactly."""

    async def work() -> None:
        till = Till(tmp_path)
        made = till.key(budget_nano=price_nano(10, 1000))
        key_i = made.record.key_i
        owner = await till.owner()
        purse = await till.purse()
        opened = await open_one(purse, made.secret, most=100_000, stream=True)
        assert isinstance(opened, Opened)
        more = asyncio.Event()
        opened.on_more = opened.on_stop = lambda _: more.set()
        tokens = raised = 0
        while not opened.stop:
            tokens += 1
            purse.delivered(opened, tokens)
            if not purse.sends(opened, tokens) and not opened.stop:
                await more.wait()
                more.clear()
            if opened._stuck and not raised:
                raised = tokens
                till.accounts.set_limits(key_i, budget_nano=price_nano(10, 2000), rpm=None, tpm=None, concurrency=None)
                await until(lambda: owner.bank.keys[key_i].limits.budget_nano == price_nano(10, 2000))
        purse.settle(opened, row(10, tokens))
        assert await purse.close()
        owner.bank.check()
        await owner.stop()
        assert opened.stop == "budget" and raised < 1000 and tokens == 2000

    run(work())


@pytest.mark.parametrize("most", [1, 100])
def test_a_refusal_is_for_who_asked(tmp_path, most):
    """A request that is refused for its rate ends no stream of the same key, which waits for money that is there."""

    async def work() -> None:
        till = Till(tmp_path)
        made = till.key(budget_nano=price_nano(10, 1_000_000), rpm=2)
        owner = await till.owner()
        purse = await till.purse()
        assert isinstance(await run_one(purse, made.secret, tokens=1, out=1), Opened)  # so that its slice is small
        opened = await open_one(purse, made.secret, most=100_000, stream=True)
        assert isinstance(opened, Opened)
        more = asyncio.Event()
        opened.on_more = opened.on_stop = lambda _: more.set()
        refused: list[asyncio.Task] = []
        for tokens in range(0, 20_001, 64):
            if opened._pocket.money_nano < price_nano(0, STEP_TOKENS) and not refused:
                refused.append(asyncio.create_task(open_one(purse, made.secret, most=most)))
                await asyncio.sleep(0)  # it asks first
            purse.delivered(opened, tokens)
            if not purse.sends(opened, tokens) and not opened.stop:
                await more.wait()
                more.clear()
            if opened.stop:
                break
        purse.settle(opened, row(10, tokens))
        answer = await refused[0]
        assert await purse.close()
        owner.bank.check()
        await owner.stop()
        assert answer.code == "rate_limit_exceeded"
        assert not opened.stop, f"stopped at {tokens}: {opened.stop}"

    run(work())


@pytest.mark.parametrize("elsewhere", [False, True])
def test_a_revoked_key_stops_its_streams_within_a_second(tmp_path, elsewhere):
    """Revoked by the control listener or by another process: running streams hear of it, new requests get 401."""

    async def work() -> None:
        till = Till(tmp_path)
        made = till.key()
        owner = await till.owner()
        purse = await till.purse()
        opened = await open_one(purse, made.secret, most=100_000, stream=True)
        assert isinstance(opened, Opened)
        stopped: list[float] = []
        opened.on_stop = lambda _: stopped.append(time.monotonic())
        begun_s = time.monotonic()
        if elsewhere:
            Till(tmp_path).keyring.revoke(made.record.key_i, time.time_ns())
        else:
            assert owner.revoke(made.record.key_i, "an operator")
        await until(lambda: stopped, 1.0)
        assert stopped[0] - begun_s < 1.0 and opened.stop == "revoked"
        assert not purse.sends(opened, 1)
        purse.settle(opened, row(10, 1))
        assert (await open_one(purse, made.secret)).status == 401
        await purse.close()
        await owner.stop()

    run(work())


def test_what_is_leased_goes_on_without_the_owner_and_comes_home_to_the_next(tmp_path):
    """With the owner gone, leased ids and money still serve; their rows reach the next owner, once each."""

    async def work() -> None:
        till = Till(tmp_path)
        made = till.key(budget_nano=price_nano(10, 20) * 100)
        owner = await till.owner()
        purse = await till.purse()
        assert isinstance(await run_one(purse, made.secret), Opened)
        running = await open_one(purse, made.secret)
        assert isinstance(running, Opened)
        await owner.stop()
        owner.ledger.close()
        done = [await run_one(purse, made.secret) for _ in range(5)]
        assert all(isinstance(a, Opened) for a in done)
        owner = await till.owner()
        await until(lambda: purse.connected)
        purse.settle(running, row())
        assert isinstance(await run_one(purse, made.secret), Opened)
        await until(lambda: not purse.n_unstored)
        assert len(till.settled()) == 8
        assert owner.bank.keys[made.record.key_i].spent_nano == 8 * price_nano(10, 20)
        owner.bank.check()
        assert await purse.close()
        assert owner.bank.keys[made.record.key_i].held_nano == 0
        await until(till.closed)
        await owner.stop()

    run(work())


def test_nothing_new_is_opened_while_the_owner_is_away(tmp_path):
    """Beyond what is leased the answer is 503 storage_unavailable with Retry-After, and it ends by itself."""

    async def work() -> None:
        till = Till(tmp_path)
        made = till.key()
        owner = await till.owner()
        purse = await till.purse()
        await owner.stop()
        owner.ledger.close()
        await until(lambda: not purse.connected)
        answer = await open_one(purse, made.secret)
        assert isinstance(answer, Refusal)
        assert (answer.status, answer.code, answer.retry_s) == (503, "storage_unavailable", 1.0)
        owner = await till.owner()
        await until(lambda: purse.connected)
        assert isinstance(await run_one(purse, made.secret), Opened)
        await purse.close()
        await owner.stop()

    run(work())


class FullDisk:
    """A real ledger on a disk that can be full."""

    def __init__(self, ledger: Any) -> None:
        self.ledger, self.full = ledger, False

    def __getattr__(self, name: str) -> Any:
        return getattr(self.ledger, name)

    def append(self, rows: Any) -> int:
        """Store, or say that it cannot be."""
        if self.full:
            raise LedgerUnavailable("the disk is full")
        return int(self.ledger.append(rows))


def test_a_full_disk_refuses_new_requests_and_loses_no_row(tmp_path):
    """While the ledger cannot be written, what runs ends, nothing new is opened, and all is stored when it can."""

    async def work() -> None:
        till = Till(tmp_path)
        first, second = till.key(budget_nano=10**9), till.key()
        disk = FullDisk(till.ledger())
        owner = await till.owner(disk)
        purse = await till.purse()
        running = await open_one(purse, first.secret)
        assert isinstance(running, Opened)
        disk.full = True
        purse.settle(running, row())
        answer = await open_one(purse, second.secret)
        assert isinstance(answer, Refusal) and answer.code == "storage_unavailable" and answer.retry_s
        await until(lambda: not owner.journal.ok)
        assert (await open_one(purse, second.secret)).status == 503
        assert len(till.settled()) == 0
        disk.full = False
        await until(lambda: owner.journal.ok)
        await asyncio.sleep(0.15)
        assert isinstance(await run_one(purse, second.secret), Opened)
        await until(lambda: not purse.n_unstored)
        assert len(till.settled()) == 2
        assert await purse.close()
        await until(till.closed)
        assert all(account.held_nano == 0 for account in owner.bank.accounts())
        await owner.stop()

    run(work())


def test_a_malformed_frame_closes_one_connection_and_nothing_else(tmp_path):
    """Garbage, a huge length, rows before hello: the sender is dropped, the others do not notice."""

    async def work() -> None:
        till = Till(tmp_path)
        made = till.key()
        owner = await till.owner()
        purse = await till.purse()
        bad = [
            b"\xff\xff\xff\xff", struct.pack("<I", 3) + b"\xc1\xc1\xc1", wire.frame(wire.Recall(1)),
            wire.frame(wire.Stats({})), wire.frame(wire.Hello(1, 0, 0, "../../pepper", [])),
        ]  # fmt: skip
        for blob in bad:
            sock = socket.socket(socket.AF_UNIX)
            sock.settimeout(5.0)
            sock.connect(str(till.run / "owner.sock"))
            sock.sendall(blob)
            assert await asyncio.get_running_loop().run_in_executor(None, sock.recv, 100) == b""
            sock.close()
        assert owner.counts["dropped_connections"] == len(bad)
        assert isinstance(await run_one(purse, made.secret), Opened)
        assert (till.run / "owner.sock").stat().st_mode & 0o777 == 0o600
        await purse.close()
        await owner.stop()

    run(work())


def test_a_clock_that_runs_back_neither_turns_rows_nor_months_back(tmp_path):
    """Rows' times never decrease, whatever the system's clock does."""

    async def work() -> None:
        till = Till(tmp_path)
        made = till.key()
        now = [time.time_ns()]
        owner = await till.owner(utc_ns=lambda: now[0])
        purse = await till.purse()
        for jump_s in (0, 3600, -7200, 3600):
            now[0] += jump_s * 10**9
            assert isinstance(await run_one(purse, made.secret), Opened)
            await until(lambda: not purse.n_unstored)
        times = [r.at_ns for r in till.settled().values()]
        assert times == sorted(times)
        await purse.close()
        await owner.stop()

    run(work())


def test_a_reload_moves_prices_budgets_and_tenants_without_a_restart(tmp_path):
    """Workers are told of new tables; a tenant that leaves is stopped, one whose budget shrinks is bound by it."""

    async def work() -> None:
        till = Till(tmp_path)
        one, two = till.key("t0"), till.key("t1")
        owner = await till.owner()
        told: list[int] = []
        purse = await till.purse(on_reload=lambda version, path: told.append(version))
        assert isinstance(await run_one(purse, one.secret), Opened)
        assert isinstance(await run_one(purse, two.secret), Opened)
        fresh = msgspec.structs.replace(
            till.tables, version=2, tenants=[tenant("t0", budget_per_month_nano=price_nano(10, 20))]
        )
        owner.reload(fresh, "an operator")
        purse.reload(fresh)
        await until(lambda: told == [2])
        await until(lambda: not purse.n_unstored)
        assert (await open_one(purse, one.secret)).code == "insufficient_quota"
        assert (await open_one(purse, two.secret)).status in (401, 403)
        await purse.close()
        await owner.stop()

    run(work())


def test_a_worker_that_leaves_is_forgotten_whatever_it_could_still_say(tmp_path):
    """After a clean end, or one whose last words were lost, nothing is held and nobody is counted any more."""

    async def work() -> None:
        till = Till(tmp_path)
        made = till.key(budget_nano=10**9)
        owner = await till.owner()
        for last_words in (True, False):
            purse = await till.purse()
            assert isinstance(await run_one(purse, made.secret), Opened)
            await until(lambda p=purse: not p.n_unstored)
            if not last_words:
                purse._send = lambda message: None
            assert await purse.close()
            await until(lambda: not owner.holders)
            assert owner.snapshot()["workers"] == [] and not owner.leases and not owner.bank.held
            assert owner.bank.keys[made.record.key_i].held_nano == 0
        await until(till.closed)
        assert not owner.faults
        await owner.stop()

    run(work())


def test_draining_and_statistics_travel(tmp_path):
    """A worker hears that it is to leave, and its numbers are in the owner's snapshot."""

    async def work() -> None:
        till = Till(tmp_path)
        made = till.key()
        owner = await till.owner()
        drained: list[float] = []
        purse = await till.purse(on_drain=drained.append, stats=lambda: {"streams": 3.0})
        assert isinstance(await run_one(purse, made.secret), Opened)
        await until(lambda: owner.snapshot()["stats"].get("streams") == 3.0)
        owner.drain(5.0)
        await until(lambda: drained == [5.0])
        assert (await open_one(purse, made.secret)).code == "draining"
        shown = owner.snapshot()
        assert shown["storage_ok"] and shown["workers"][0]["pid"] == os.getpid()
        assert shown["tenants"][0]["spent_nano"] == price_nano(10, 20)
        assert "bl_" not in json.dumps(shown)
        await purse.close()
        await owner.stop()

    run(work())
