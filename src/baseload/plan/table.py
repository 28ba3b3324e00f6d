"""What one replica carries: a row for each service on each accelerator it could run on, as the twin measured it.

A service is a model under one promise (SLO and attainment). How the rows are measured is `app/replica_table.py`; here is only
what the planner is handed, as records that can be written to a file and read again.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import msgspec

LEAST_CORRECTION = 0.01


class ReplicaRow(msgspec.Struct, frozen=True, kw_only=True):
    """One service on one accelerator, with the engine's settings: what a replica carries and draws."""

    service: str  # unique name of a model at an SLO class, e.g. `large@2000ms/60ms/99%`
    model: str  # name under `models`
    tenants: tuple[str, ...]  # who is promised this
    ttft_ms: float  # at the client
    tpot_ms: float
    e2e_ms: float | None  # none: no promise
    attainment: float  # share of requests that must meet it: the percentile at which the row was measured
    accelerator: str  # catalogue id
    precision: str
    kv_precision: str | None
    tp: int
    pp: int
    ep: int
    role: str = "mixed"
    max_num_seqs: int
    max_num_batched_tokens: int
    memory_utilisation: float
    deployment: str | None  # name under `deployments` whose settings these are; none: chosen here
    accelerators: int  # of one replica
    replicas: int  # measured together, behind the fleet's own route policy
    requests_per_s: float  # highest rate a replica carries, promise kept; 0: none
    requests_per_s_alone: float  # the same with one replica by itself: less, for a burst has nowhere to go
    tokens_per_s: float  # output, at requests_per_s
    input_tokens: float  # mean of a request of this service
    output_tokens: float
    power_kw_busy: float  # IT, whole replica with its share of the servers, at requests_per_s
    power_kw_idle: float  # powered, loaded, nothing to do
    network_ms: float  # round trip already taken out of the TTFT promise
    requests_measured: int  # in the run that the rate rests on
    margin: float  # attainment reached less attainment promised, in that run
    how: str  # one sentence
    correction: float = 1.0  # lowered where the twin finds that a whole plan carries less than its rows say

    @property
    def carries_per_s(self) -> float:
        """Return the requests a second that the planner may count on, correction included."""
        return self.requests_per_s * self.correction


class _Stored(msgspec.Struct, frozen=True):
    """A table in a file."""

    seed: int
    rows: list[ReplicaRow]


@dataclass(frozen=True, slots=True)
class ReplicaTable:
    """Rows by (service, accelerator). Services keep the order in which they were met."""

    rows: tuple[ReplicaRow, ...]
    seed: int = 0

    def __post_init__(self) -> None:
        keys = [(row.service, row.accelerator) for row in self.rows]
        assert len(set(keys)) == len(keys), "a service has two rows for one accelerator"

    @property
    def services(self) -> tuple[str, ...]:
        """Return the services' names."""
        return tuple(dict.fromkeys(row.service for row in self.rows))

    @property
    def kinds(self) -> tuple[str, ...]:
        """Return the accelerators' catalogue ids."""
        return tuple(dict.fromkeys(row.accelerator for row in self.rows))

    def lookup(self, service: str, kind: str) -> ReplicaRow | None:
        """Return the row of a service on an accelerator; None where it does not fit there."""
        return next((row for row in self.rows if row.service == service and row.accelerator == kind), None)

    def service_of(self, tenant: str, model: str) -> str | None:
        """Return the service under which a tenant calls a model; None where nobody measured it."""
        return next((row.service for row in self.rows if row.model == model and tenant in row.tenants), None)

    def of_model(self, model: str) -> tuple[ReplicaRow, ...]:
        """Return all rows of a model."""
        return tuple(row for row in self.rows if row.model == model)

    def corrected(self, service: str, kind: str, factor: float) -> ReplicaTable:
        """Return the table with one row's correction multiplied by `factor`; it never exceeds 1.

        A row that is not there is left alone: the same table comes back.
        """
        assert factor > 0.0, factor

        def changed(row: ReplicaRow) -> ReplicaRow:
            if (row.service, row.accelerator) != (service, kind):
                return row
            return msgspec.structs.replace(row, correction=min(1.0, max(LEAST_CORRECTION, row.correction * factor)))

        return ReplicaTable(tuple(changed(row) for row in self.rows), self.seed)

    def corrections(self) -> Mapping[tuple[str, str], float]:
        """Return what was corrected: (service, accelerator) -> factor below 1."""
        return {(row.service, row.accelerator): row.correction for row in self.rows if row.correction < 1.0}

    def to_json(self) -> bytes:
        """Return the table as a file holds it: same table, same bytes."""
        return msgspec.json.format(msgspec.json.encode(_Stored(self.seed, list(self.rows))), indent=1) + b"\n"

    @classmethod
    def from_json(cls, text: bytes) -> ReplicaTable:
        """Return the table of a file; raises msgspec.DecodeError where it is no such file."""
        stored = msgspec.json.decode(text, type=_Stored)
        return cls(tuple(stored.rows), stored.seed)

    @classmethod
    def of(cls, rows: Iterable[ReplicaRow], *, seed: int = 0) -> ReplicaTable:
        """Return a table of rows."""
        return cls(tuple(rows), seed)

    def as_columns(self) -> dict[str, list[Any]]:
        """Return the table by column, for CSV and Parquet."""
        names = [field.name for field in msgspec.structs.fields(ReplicaRow)]
        return {name: [getattr(row, name) for row in self.rows] for name in names}


def service_name(model: str, ttft_ms: float, tpot_ms: float, e2e_ms: float | None, attainment: float) -> str:
    """Return the name of a model under a promise.

    >>> service_name("large", 2000.0, 60.0, None, 0.99)
    'large@2000ms/60ms/99%'
    """
    e2e = "" if e2e_ms is None else f"/{e2e_ms:g}ms"
    return f"{model}@{ttft_ms:g}ms/{tpot_ms:g}ms{e2e}/{100.0 * attainment:g}%"
