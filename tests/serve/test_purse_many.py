"""Many who wait at one purse: each is told once, whatever the others do, and nothing of theirs is left behind."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from pathlib import Path

import msgspec
import pytest

from baseload.serve import marks, recovery
from baseload.serve.opened import Opened
from baseload.serve.purse import Purse, Refusal
from baseload.serve.telling import tell_all
from tests.serve.fleet import tables
from tests.serve.money import Till

Found = Opened | Refusal
MANY = 1500  # far more than calls may nest


def ask(purse: Purse, secret: bytes, then: Callable[[Found], None]) -> None:
    """Ask for a short stream of the first model."""
    purse.open(
        secret, model_i=0, input_tokens=5, max_output_tokens=9, stream=True, now_s=time.monotonic(), then=then
    )  # fmt: skip


def test_many_who_end_as_soon_as_they_are_opened_leave_nothing_behind(tmp_path: Path) -> None:
    """Each waiting request that gives back at once what the next one waits for is told, and the purse holds nothing after."""

    async def go() -> None:
        till = Till(tmp_path)
        secret = till.key().secret.encode()
        owner, purse = await till.owner(), await till.purse()
        told: list[str] = []

        def then(found: Found) -> None:
            told.append(type(found).__name__)
            if isinstance(found, Opened):
                purse.cancel(found)

        for _ in range(MANY):
            ask(purse, secret, then)
        until_s = time.monotonic() + 10.0
        while len(told) < MANY and time.monotonic() < until_s:
            await asyncio.sleep(0.01)
        assert told == ["Opened"] * MANY
        assert purse.n_open == 0 and all(not pocket.wishes for pocket in purse._pockets.values())
        await purse.close(1.0)
        await owner.stop()

    asyncio.run(go())


def test_a_bug_at_one_request_ends_no_other_s_wait(tmp_path: Path) -> None:
    """Without an owner everybody is refused in time, also behind one whose callback fails, and the purse goes on ticking."""

    async def go() -> None:
        asyncio.get_running_loop().set_exception_handler(lambda loop, context: heard.append(context["exception"]))
        till = Till(tmp_path)
        secrets = [till.key(tenant).secret.encode() for tenant in ("t0", "t0", "t1")]
        purse = Purse(till.run, 0, till.tables)
        await purse.start()

        def then(found: Found) -> None:
            told.append(found)
            if len(told) == 1:
                raise ValueError("a bug of this one")

        for secret in secrets:
            ask(purse, secret, then)
        until_s = time.monotonic() + 10.0
        while len(told) < 3 and time.monotonic() < until_s:
            await asyncio.sleep(0.05)
        await asyncio.sleep(0.3)  # another tick
        assert [found.code for found in told if isinstance(found, Refusal)] == ["storage_unavailable"] * 3
        assert not any(task.done() for task in purse._tasks)
        await purse.close(1.0)

    told: list[Found] = []
    heard: list[Exception] = []
    asyncio.run(go())
    assert heard and isinstance(heard[0], ExceptionGroup)


def test_what_goes_wrong_at_one_is_raised_once_all_are_told() -> None:
    """Every call is made, and no error is lost."""
    told: list[int] = []
    with pytest.raises(ExceptionGroup) as raised:
        tell_all([lambda: told.append(1), lambda: 1 // 0, lambda: told.append(2), lambda: int("x")])
    assert told == [1, 2]
    assert [type(error) for error in raised.value.exceptions] == [ZeroDivisionError, ValueError]


def test_a_row_recovered_after_a_crash_has_its_tenant_s_region(tmp_path: Path) -> None:
    """What a dead worker left says where the request came from, as the row of a living one does."""

    async def go() -> None:
        fleet = tables()
        fleet = msgspec.structs.replace(
            fleet,
            regions=["north", "south"],
            tenants=[msgspec.structs.replace(row, region_i=1) for row in fleet.tenants],
        )
        till = Till(tmp_path, fleet)
        secret = till.key().secret.encode()
        owner, purse = await till.owner(), await till.purse()
        found: list[Found] = []
        ask(purse, secret, found.append)
        while not found:
            await asyncio.sleep(0.01)
        assert isinstance(found[0], Opened)
        (mark,) = marks.read(purse.marks.path).marks
        row = recovery.settle_row(next(iter(owner.leases.values())), mark, fleet, 1)
        assert row.region == "south"
        purse.cancel(found[0])
        await purse.close(1.0)
        await owner.stop()

    asyncio.run(go())
