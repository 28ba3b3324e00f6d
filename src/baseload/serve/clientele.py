"""Whom the owner deals with: keys and tenants as the bank knows them, with what the ledger says they have spent.

Keys are taken up when they are first asked about, so that a hundred thousand sleeping ones cost nothing.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence

from baseload.ports import KeyRecord, OpenLease, Total
from baseload.serve import wire
from baseload.serve.bank import Bank, Change, Limits
from baseload.serve.keys import Keyring, usable
from baseload.serve.recovery import Leased, leased
from baseload.serve.tables import Tables


class Clientele:
    """Keys and tenants that were seen since the owner began."""

    def __init__(
        self,
        bank: Bank,
        keyring: Keyring,
        tables: Tables,
        do: Callable[[list[tuple[int, Change]]], None],  # says to the workers what the bank decided
        *,
        clock_s: Callable[[], float],
        utc_ns: Callable[[], int],
    ) -> None:
        self.bank, self.keyring, self.tables = bank, keyring, tables
        self._do, self._clock_s, self._utc = do, clock_s, utc_ns
        self.records: dict[int, KeyRecord] = {}
        self._spent: dict[str, int] = {}  # by key's pseudonym, since ever
        self._spent_month: dict[str, int] = {}  # by tenant's pseudonym

    def spent_of(self, pseudonym: str) -> int:
        """Return what a key had spent when this owner began, in 1e-9 of the currency."""
        return self._spent.get(pseudonym, 0)

    def begin(self, totals: Iterable[Total]) -> None:
        """Take up what the ledger says was spent."""
        for total in totals:
            self._spent[total.key] = self._spent.get(total.key, 0) + total.price_nano
            if total.month == self.bank.month:
                self._spent_month[total.tenant] = self._spent_month.get(total.tenant, 0) + total.price_nano

    def leased(self, found: Sequence[OpenLease]) -> dict[int, Leased]:
        """Return the ledger's open leases by their first id; their keys are taken up."""
        by_pseudonym = {record.pseudonym: record for record in self.keyring.list()} if found else {}
        leases = {}
        for lease in found:
            record = by_pseudonym.get(lease.key)
            if record is not None:
                self.take_up(record)
            leases[lease.lease_id] = leased(lease, 0 if record is None else record.key_i)
        return leases

    def take_up(self, record: KeyRecord) -> None:
        """Let the bank know a key and its tenant."""
        now_s = self._clock_s()
        if record.tenant_pseudonym not in self.bank.tenants:
            spent = self._spent_month.get(record.tenant_pseudonym, 0)
            self.bank.set_tenant(record.tenant_pseudonym, self._tenant_limits(record.tenant), now_s, spent_nano=spent)
        if record.key_i not in self.bank.keys:
            self.bank.set_key(
                record.key_i, record.tenant_pseudonym, _limits(record), now_s,
                spent_nano=self._spent.get(record.pseudonym, 0),
            )  # fmt: skip
            self.records[record.key_i] = record
            self._judge(record)
        elif self.records.get(record.key_i) != record:
            self.records[record.key_i] = record
            self._do(self.bank.set_key(record.key_i, record.tenant_pseudonym, _limits(record), now_s))
            self._judge(record)

    def _judge(self, record: KeyRecord) -> None:
        if not usable(record, self._utc()):
            if record.key_i not in self.bank.stopped:
                self._do(self.bank.stop(record.key_i, "revoked", self._clock_s()))
        elif all(tenant.name != record.tenant for tenant in self.tables.tenants):
            self._do(self.bank.stop(record.key_i, "gone", self._clock_s()))
        else:
            self.bank.allow(record.key_i)

    def _tenant_limits(self, tenant: str) -> Limits:
        for row in self.tables.tenants:
            if row.name == tenant:
                return Limits(budget_nano=row.budget_per_month_nano)
        return Limits()

    def look_again(self) -> None:
        """Take up what was done to the keys that are known here."""
        for key_i in list(self.bank.keys):
            record = self.keyring.accounts.key(key_i)
            if record is not None:
                self.take_up(record)

    def reload(self, tables: Tables) -> None:
        """Take up tenants' new budgets; stop the keys of those that left, take up those that came back."""
        self.tables = tables
        for record in list(self.records.values()):
            limits = self._tenant_limits(record.tenant)
            self._do(self.bank.set_tenant(record.tenant_pseudonym, limits, self._clock_s()))
            self._judge(record)

    def view(self, record: KeyRecord) -> wire.KeyView:
        """Return what a worker may know of a key."""
        salt = self.keyring.salt(record.tenant_pseudonym)
        return wire.KeyView(
            record.key_i, record.tenant, record.name, record.pseudonym, record.tenant_pseudonym, salt,
            expires_ns=-1 if record.expires_ns is None else record.expires_ns,
        )  # fmt: skip


def _limits(record: KeyRecord) -> Limits:
    return Limits(record.budget_nano, record.rpm, record.tpm, record.concurrency)
