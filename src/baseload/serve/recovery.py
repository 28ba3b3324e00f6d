"""After a crash: every leased id closes once. From open leases and a dead worker's marks come the rows that say how.

A request with a mark is settled at what its client's socket had accepted, at the price of its opening; the prompt is
billed only if the engine had counted it, so that the bill is never above what was delivered. What was delivered and is
not billed is at most the last write (the count is written when the socket has taken it), or, after a power loss, what came
in the last 100 ms. Ids without a mark were never forwarded: the lease's void row closes them.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

from baseload.ports import OpenLease
from baseload.records import REASON_LOST, REASON_NONE, SERVED, UNFINISHED
from baseload.serve.marks import Mark
from baseload.serve.rows import NEVER_NS, Row, SettleRow, VoidRow
from baseload.serve.settled import Whose, whose
from baseload.serve.tables import Tables


@dataclass(slots=True, eq=False)
class Leased:
    """A lease that the ledger holds and that has open ids; bit i of `closed` is id `lease_id` + i."""

    lease_id: int
    n_ids: int
    worker: int
    tenant: str
    key: str
    key_i: int
    holder: int = 0  # number of the process that holds it; 0: of one that has not said hello
    closed: int = 0
    whose: Whose = field(init=False)  # of `tenant` and `key`

    def __post_init__(self) -> None:
        self.whose = whose(self.tenant, self.key)

    def is_open(self, request_id: int) -> bool:
        """Say whether an id of this lease is still to be closed."""
        i = request_id - self.lease_id
        return 0 <= i < self.n_ids and not self.closed >> i & 1

    def close(self, request_id: int) -> bool:
        """Close an id; True where it was the last."""
        self.closed |= 1 << (request_id - self.lease_id)
        return self.closed.bit_count() == self.n_ids

    def close_all(self, mask: int) -> bool:
        """Close the ids of a mask; True where none is open after it."""
        self.closed |= mask
        return self.closed.bit_count() == self.n_ids


def leased(lease: OpenLease, key_i: int) -> Leased:
    """Return an open lease of the ledger, as the owner keeps it.

    >>> found = OpenLease(lease_id=8, n_ids=4, open_ids=[(9, 10)], worker=0, tenant="", key="", money_nano=0, at_ns=0)
    >>> bin(leased(found, 1).closed)
    '0b1001'
    """
    closed = (1 << lease.n_ids) - 1
    for first, last in lease.open_ids:
        closed &= ~(((1 << (last - first + 1)) - 1) << (first - lease.lease_id))
    return Leased(lease.lease_id, lease.n_ids, lease.worker, lease.tenant, lease.key, key_i, closed=closed)


def close(leases: Iterable[Leased], marks: Mapping[int, Mark], tables: Tables, now_ns: int) -> list[Row]:
    """Return the rows that close leases of a dead worker: what its marks tell, and void for the rest."""
    rows: list[Row] = []
    for lease in leases:
        for request_id in range(lease.lease_id, lease.lease_id + lease.n_ids):
            mark = marks.get(request_id)
            if mark is not None and lease.is_open(request_id):
                rows.append(settle_row(lease, mark, tables, now_ns))
                lease.close(request_id)
        if lease.closed != (1 << lease.n_ids) - 1:
            rows.append(void_row(lease, now_ns, "its worker ended"))
            lease.closed = (1 << lease.n_ids) - 1
    return rows


def void_row(lease: Leased, now_ns: int, why: str) -> VoidRow:
    """Return the row that closes what is open of a lease."""
    return VoidRow(
        request_id=lease.lease_id, at_ns=now_ns, worker=lease.worker, tenant=lease.tenant, key=lease.key, why=why
    )


def settle_row(lease: Leased, mark: Mark, tables: Tables, now_ns: int) -> SettleRow:
    """Return the row of a request whose worker died; names only where its row numbers are the tables' own."""
    row = SettleRow(
        request_id=mark.request_id, at_ns=now_ns, tenant=lease.tenant, key=lease.key, arrival_ns=mark.arrival_ns,
        first_token_ns=NEVER_NS, finish_ns=now_ns, streamed=mark.streamed, input_tokens=mark.input_tokens,
        cached_tokens=mark.cached_tokens, output_tokens=mark.output_tokens, status=mark.status,
        reason=REASON_LOST if mark.status == UNFINISHED else REASON_NONE, n_tries=1 if mark.replica_i >= 0 else 0,
        price_nano=mark.price_nano, why="closed from its worker's marks", recovered=True,
        client_status=200 if mark.output_tokens or mark.status == SERVED else 0,
    )  # fmt: skip
    if tables.first_version <= mark.tables_version <= tables.version:  # row numbers have meant the same since
        _name(row, mark, tables)
    return row


def _name(row: SettleRow, mark: Mark, tables: Tables) -> None:
    if mark.model_i < len(tables.models):
        row.model = tables.models[mark.model_i].name
        row.model_digest = tables.models[mark.model_i].digest
    if mark.region_i < len(tables.regions):
        row.region = tables.regions[mark.region_i]
    if 0 <= mark.replica_i < len(tables.replicas):
        replica = tables.replicas[mark.replica_i]
        site = tables.sites[replica.site_i]
        row.replica_i = mark.replica_i
        row.deployment = tables.deployments[replica.deployment_i].name
        row.site, row.jurisdiction = site.name, site.jurisdiction
        row.cost_nano = round(1e9 * mark.output_tokens * tables.deployments[replica.deployment_i].cost_per_output_token)
