"""A till for the tests of money: real SQLite ledger, real keys, real Unix socket, one owner and some purses."""

from __future__ import annotations

import asyncio
import time
from pathlib import Path
from typing import Any

from baseload.adapters.accounts import AccountsFile
from baseload.adapters.ledger_sqlite import SqliteLedger
from baseload.adapters.signing import SigningKey
from baseload.serve.keys import Keyring, Made, Peppers
from baseload.serve.owner import Owner
from baseload.serve.purse import Opened, Purse, Refusal
from baseload.serve.rows import SettleRow, decode
from baseload.serve.settled import Batch, alike_of
from baseload.serve.tables import Tables
from tests.serve.fleet import tables as make_tables

IN_NANO, OUT_NANO = 1000, 2000  # price of a token, in tests/serve/fleet.py


def price_nano(input_tokens: int, output_tokens: int) -> int:
    """Return what a request owes."""
    return input_tokens * IN_NANO + output_tokens * OUT_NANO


class Till:
    """A state folder with everything in it. `owner()` may be called again: a new owner over the same folder."""

    def __init__(self, state: Path, tables: Tables | None = None) -> None:
        self.state = state
        self.run = state / "run"
        self.run.mkdir(mode=0o700, exist_ok=True)
        self.tables = tables or make_tables()
        self.accounts = AccountsFile(state / "accounts.db")
        self.keyring = Keyring(self.accounts, Peppers(state / "pepper"))
        self.signer = SigningKey.load_or_create(state / "signing.key")
        self.stored: list[SettleRow] = []

    def key(self, tenant: str = "t0", **limits: Any) -> Made:
        """Make a key."""
        return self.keyring.create(tenant, now_ns=time.time_ns(), **limits)

    def ledger(self) -> SqliteLedger:
        """Open the ledger."""
        return SqliteLedger.open(self.state / "ledger.db", self.signer)

    async def owner(self, ledger: Any = None, **more: Any) -> Owner:
        """Start an owner."""
        owner = Owner(self.run, ledger or self.ledger(), self.keyring, self.tables, on_rows=self._take, **more)
        await owner.start()
        return owner

    async def purse(self, worker: int = 0, **more: Any) -> Purse:
        """Start a purse, and wait until it is connected."""
        purse = Purse(self.run, worker, self.tables, **more)
        await purse.start()
        await until(lambda: purse.connected)
        return purse

    def _take(self, batch: Batch) -> None:
        assert [row.request_id for row in batch.rows()] == batch.ids
        assert batch.alike == alike_of(batch.rows())
        self.stored += batch.rows()

    def rows(self) -> list[Any]:
        """Return every row of the ledger."""
        with SqliteLedger.read(self.state / "ledger.db") as ledger:
            return [decode(row.body) for row in ledger.rows()]

    def settled(self) -> dict[int, SettleRow]:
        """Return the settled requests by id; asserts that each is there once."""
        rows = [row for row in self.rows() if isinstance(row, SettleRow)]
        assert len({row.request_id for row in rows}) == len(rows), "a request was billed twice"
        return {row.request_id: row for row in rows}

    def closed(self) -> bool:
        """Say whether no lease is open."""
        with SqliteLedger.read(self.state / "ledger.db") as ledger:
            return not ledger.open_leases()


async def until(what: Any, seconds: float = 5.0) -> None:
    """Wait until something is so."""
    end_s = time.monotonic() + seconds
    while not what():
        assert time.monotonic() < end_s, f"not so after {seconds} s"
        await asyncio.sleep(0.005)


async def open_one(
    purse: Purse, secret: str, *, tokens: int = 10, most: int = 20, stream: bool = False
) -> Opened | Refusal:
    """Open a request and wait for the answer."""
    future: asyncio.Future[Opened | Refusal] = asyncio.get_running_loop().create_future()
    purse.open(
        secret.encode(), model_i=0, input_tokens=tokens, max_output_tokens=most, stream=stream,
        now_s=time.monotonic(), then=future.set_result,
    )  # fmt: skip
    return await future


def row(input_tokens: int = 10, output_tokens: int = 20, **more: Any) -> SettleRow:
    """Return the row of a request that ended."""
    return SettleRow(
        request_id=0, at_ns=0, tenant="", key="", model="m0", input_tokens=input_tokens, output_tokens=output_tokens,
        price_nano=price_nano(input_tokens, output_tokens), **more,
    )  # fmt: skip


async def run_one(purse: Purse, secret: str, *, tokens: int = 10, out: int = 20) -> Opened | Refusal:
    """Open a request, deliver its answer, settle it."""
    opened = await open_one(purse, secret, tokens=tokens, most=out)
    if isinstance(opened, Opened):
        purse.delivered(opened, out)
        purse.settle(opened, row(tokens, out))
    return opened
