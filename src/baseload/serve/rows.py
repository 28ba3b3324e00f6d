"""The rows of the ledger: what is written down of leases, requests, meters and administration, and their canonical bytes.

A row's body is JSON with its fields in the order declared here, `kind` first, no spaces, UTF-8, whole numbers only; its
leaf in the Merkle tree is SHA-256(0x00 || body). Where rows are kept is the ledger's business (`ports.Ledger`); a row's
place in it (`seq`) is not in the body, because the tree commits to it. Tenants and keys are pseudonyms here.

`at_ns` is the clock of who wrote the row, never running backwards within one process; the signed checkpoints' times are
the ledger's own.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Literal, NamedTuple, get_args, get_type_hints

import msgspec

from baseload.ports import LEDGER_FORMAT, RowIn

ROWS_VERSION = 1
MAX_PREFIX_BLOCKS = 64
NEVER_NS = -1

Counted = Literal["engine", "counted"]


class Row(msgspec.Struct, kw_only=True, forbid_unknown_fields=True, tag_field="kind", gc=False):
    """Base of the rows: by keyword, unknown keys refused, told apart by `kind`."""

    @property
    def kind(self) -> str:
        """Return the word that stands first in the body."""
        return str(self.__struct_config__.tag)


class LeaseRow(Row, tag="lease"):
    """Request ids [request_id, request_id + n_ids) and a block of money, promised to a worker before it forwards anything."""

    request_id: int
    at_ns: int
    n_ids: int
    worker: int = -1
    tenant: str = ""
    key: str = ""
    money_nano: int = 0


class SettleRow(Row, tag="settle"):
    """How one request ended, and what it costs whom: written exactly once for each request that was opened."""

    request_id: int
    at_ns: int
    tenant: str
    key: str
    model: str = ""
    deployment: str = ""
    site: str = ""
    jurisdiction: str = ""
    replica_i: int = -1
    region: str = ""
    arrival_ns: int = NEVER_NS
    first_token_ns: int = NEVER_NS
    finish_ns: int = NEVER_NS
    streamed: bool = False
    input_tokens: int = 0
    cached_tokens: int = 0
    output_tokens: int = 0
    tokens_from: Counted = "counted"
    status: int = 0
    reason: int = 0
    n_tries: int = 0
    price_nano: int = 0
    cost_nano: int = 0
    energy_mj: int = 0
    carbon_ug: int = 0
    method: str = "modelled"
    policy: str = ""
    why: str = ""
    prefix: list[int] = []
    model_digest: str = ""
    endpoint: str = "chat"
    client_status: int = 0
    recovered: bool = False


class VoidRow(Row, tag="void"):
    """Closes every id of a lease that is not closed yet, at no price; `request_id` is the lease's first id."""

    request_id: int
    at_ns: int
    worker: int = -1
    tenant: str = ""
    key: str = ""
    why: str = ""


class ReconcileRow(Row, tag="reconcile"):
    """A site's energy over an interval: what the meter saw, what requests were told, and what was idle."""

    at_ns: int
    site: str
    start_ns: int
    end_ns: int
    metered_mj: int
    requests_mj: int
    idle_mj: int
    n_requests: int = 0
    method: str = "modelled"
    carbon_ug: int = 0


class ReloadRow(Row, tag="reload"):
    """A fleet file came into force."""

    at_ns: int
    version: int
    fleet: str = ""
    fleet_digest: str = ""
    who: str = ""


class ControlRow(Row, tag="control"):
    """Something an administrator did: a key made or revoked, a pepper or signing key rotated, a tenant forgotten."""

    at_ns: int
    action: str
    who: str = ""
    tenant: str = ""
    key: str = ""
    note: str = ""


class RotateRow(Row, tag="rotate"):
    """Begins a file (linked to its forerunner, if any) or seals it; written by the ledger itself."""

    at_ns: int
    act: Literal["begin", "seal"]
    format: str = LEDGER_FORMAT
    origin: str = ""
    previous: str = ""
    previous_size: int = 0
    previous_root: str = ""
    next: str = ""
    next_request_id: int = 1
    leases: list[list[int | str]] = []
    totals: list[list[int | str]] = []
    successions: list[str] = []
    why: str = ""


AnyRow = LeaseRow | SettleRow | VoidRow | ReconcileRow | ReloadRow | ControlRow | RotateRow
ROW_TYPES: tuple[type[Row], ...] = get_args(AnyRow)

_ENCODER = msgspec.json.Encoder()
_DECODER = msgspec.json.Decoder(AnyRow)


def encode(row: Row) -> bytes:
    """Return the canonical bytes of a row.

    >>> encode(LeaseRow(request_id=1, at_ns=5, n_ids=64))
    b'{"kind":"lease","request_id":1,"at_ns":5,"n_ids":64,"worker":-1,"tenant":"","key":"","money_nano":0}'
    """
    return _ENCODER.encode(row)


def decode(body: bytes) -> AnyRow:
    """Return the row of a body; raises msgspec.ValidationError where it is none of ours.

    >>> decode(b'{"kind":"void","request_id":1,"at_ns":5}').kind
    'void'
    """
    row: AnyRow = _DECODER.decode(body)
    return row


def row_in(row: Row) -> RowIn:
    """Return what `Ledger.append` takes."""
    return RowIn(row.kind, getattr(row, "request_id", 0), _ENCODER.encode(row))


def settled(bodies: Iterator[bytes]) -> Iterator[SettleRow]:
    """Return the settled requests among bodies, in their order: what a replay reads."""
    for body in bodies:
        if body.startswith(b'{"kind":"settle"'):
            row = _DECODER.decode(body)
            assert isinstance(row, SettleRow)
            yield row


# ---- for the reference page ------------------------------------------------------------------------------


class Field(NamedTuple):
    """One field of a row, for the docs: kind, name, type, unit ('' for a count, name or number), meaning."""

    kind: str
    name: str
    type: str
    unit: str
    meaning: str


_COMMON: dict[str, tuple[str, str]] = {
    "request_id": ("", "id of the request; a lease's is its first id, a void's that of the lease"),
    "at_ns": ("ns", "UTC, when the row was written; never backwards within one process"),
    "tenant": ("", "pseudonym of the tenant"),
    "key": ("", "pseudonym of the key"),
    "worker": ("", "worker that holds the lease; -1: none"),
    "n_ids": ("", "how many ids the lease covers"),
    "money_nano": ("1e-9 currency", "money promised with the lease"),
    "model": ("", "model that was asked for"),
    "deployment": ("", "deployment that answered; '' never routed"),
    "site": ("", "site that answered, or whose meter was read"),
    "jurisdiction": ("", "where that site sits"),
    "replica_i": ("", "row of the replica in the fleet's tables; -1: never routed"),
    "region": ("", "where the client was taken to be"),
    "arrival_ns": ("ns", "UTC, request seen at the gateway"),
    "first_token_ns": ("ns", "UTC, first token handed to the client; -1: never"),
    "finish_ns": ("ns", "UTC, answer ended; -1: never"),
    "streamed": ("", "the client asked for a stream"),
    "input_tokens": ("tokens", "prompt, billed"),
    "cached_tokens": ("tokens", "part of the prompt found in a prefix cache"),
    "output_tokens": ("tokens", "answer accepted by the client's socket, billed"),
    "tokens_from": ("", "who counted: the engine's usage, or the gateway"),
    "status": ("", "index into records.STATUS_NAMES"),
    "reason": ("", "index into records.REASON_NAMES"),
    "n_tries": ("", "times it was sent to an engine"),
    "price_nano": ("1e-9 currency", "what the tenant owes, rounded down"),
    "cost_nano": ("1e-9 currency", "what it cost the owner: capex, opex, energy, idle share"),
    "energy_mj": ("mJ", "energy of the request at the site"),
    "carbon_ug": ("ug CO2e", "carbon of that energy"),
    "method": ("", "where energy comes from: modelled, metered, …"),
    "policy": ("", "routing policy and its version"),
    "why": ("", "why it went there, or why this was done"),
    "prefix": ("", "salted hashes of the prompt's blocks, at most 64: enough to replay prefix caching, no text"),
    "model_digest": ("", "digest of the weights; '' unknown"),
    "endpoint": ("", "which door: chat, completions, embeddings, …"),
    "client_status": ("", "HTTP status the client saw; 0: gone before one was sent"),
    "recovered": ("", "closed after a crash from the worker's marks"),
    "start_ns": ("ns", "UTC, start of the interval"),
    "end_ns": ("ns", "UTC, end of the interval"),
    "metered_mj": ("mJ", "by the site's meter"),
    "requests_mj": ("mJ", "told to requests that ended in the interval"),
    "idle_mj": ("mJ", "the rest"),
    "n_requests": ("", "requests that ended in the interval"),
    "version": ("", "counts reloads"),
    "fleet": ("", "name of the fleet"),
    "fleet_digest": ("", "digest of the fleet file"),
    "who": ("", "pseudonym of who did it"),
    "action": ("", "what was done"),
    "note": ("", "its particulars"),
    "act": ("", "begin: first row of a file; seal: its last"),
    "format": ("", "format of the ledger"),
    "origin": ("", "name of this log"),
    "previous": ("", "name of the log before it; '' none"),
    "previous_size": ("", "rows of the log before it"),
    "previous_root": ("", "its Merkle root, hexadecimal"),
    "next": ("", "name of the log after it"),
    "next_request_id": ("", "lowest id never leased"),
    "leases": ("", "open leases carried over: id, n_ids, hex mask of closed ids, worker, tenant, key, money_nano, at_ns"),
    "totals": ("", "sums carried over: month, tenant, key, then as in the table of totals"),
    "successions": ("", "changes of the signing key so far: notes signed by the old and the new key"),
}  # fmt: skip


def describe() -> list[Field]:
    """Return every field of every kind of row, in the order of the bytes.

    >>> describe()[0].name, describe()[1].unit
    ('request_id', 'ns')
    """
    found = []
    for row_type in ROW_TYPES:
        hints = get_type_hints(row_type)
        for name in row_type.__struct_fields__:
            unit, meaning = _COMMON[name]
            kind = str(row_type.__struct_config__.tag)
            found.append(Field(kind, name, _type_name(hints[name]), unit, meaning))
    return found


def _type_name(hint: object) -> str:
    """Return a type as a reader would say it."""
    words = {int: "int", str: "text", bool: "true or false"}
    if isinstance(hint, type) and hint in words:
        return words[hint]
    said = get_args(hint)
    return " or ".join(f'"{word}"' for word in said) if said and isinstance(said[0], str) else "list"
