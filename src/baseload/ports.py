"""What crosses between rooms that may not know each other: what a run says of itself, and how the report asks it.

`RunMeta` is `meta.json` of a run folder; a verb fills it in, `adapters/store.py` writes and reads it, `report/` shows
it. `Run` is what the report needs of a store. `Ledger` is where the live side keeps what it owes and is owed; its rows are
typed in `serve/rows.py`, and stored by `adapters/ledger_sqlite.py` and `adapters/ledger_postgres.py`. Only the shelf is
imported here, so a Fleet appears as `Any`.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, NamedTuple, Protocol

import msgspec

from baseload.errors import BaseloadError

META_VERSION = 1

Basis = Literal["measured", "declared", "calibrated", "datasheet", "modelled"]
BASES: tuple[Basis, ...] = ("measured", "declared", "calibrated", "datasheet", "modelled")
"""How far to trust a figure, best first: seen, written by the owner, fitted, printed by the maker, computed."""


class Part(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Base of the parts of `meta.json`: frozen, by keyword, unknown keys refused."""


class TraceMeta(Part, frozen=True):
    """Which demand was run."""

    name: str
    note: str = ""  # source and licence, or the generator's words
    requests: int = 0
    scale: float = 1.0


class Names(Part, frozen=True):
    """The names behind the indices of the tables, in their order."""

    tenants: list[str]
    regions: list[str]
    models: list[str]
    deployments: list[str]
    sites: list[str]


class DeploymentMeta(Part, frozen=True):
    """What one replica of a deployment is, as the verb reckoned it; in the order of `Names.deployments`."""

    name: str
    model: str
    accelerator: str
    tp: int = 1
    pp: int = 1
    ep: int = 1
    accelerators_per_replica: int = 1
    precision: str = "bf16"
    kv_blocks: int = 0
    block_tokens: int = 16
    weights_gb: float = 0.0
    active_parameters: float = 0.0
    peak_flops_per_s: float = 0.0  # of one accelerator, dense, in this precision
    saturated_tokens_per_s: float | None = None  # of one replica, input and output together, as fast as it can
    within_slo_tokens_per_s: float | None = None  # the same, at the highest load that meets its tenants' SLO
    slo_source: str = ""  # how within_slo_tokens_per_s was found
    basis: Basis = "modelled"  # of the speed


class BasisMeta(Part, frozen=True):
    """Where a figure comes from. The part of `figure` before the first dot is its group: speed, power, price, …"""

    figure: str
    basis: Basis
    source: str = ""


class PolicyMeta(Part, frozen=True):
    """A rule by name; the digest of its file where it is the operator's own."""

    name: str
    digest: str = ""


class Policies(Part, frozen=True):
    """The rules of a run."""

    route: PolicyMeta = PolicyMeta(name="")
    admit: PolicyMeta = PolicyMeta(name="")
    scale: PolicyMeta = PolicyMeta(name="")
    cap: PolicyMeta = PolicyMeta(name="")


class TrainingMeta(Part, frozen=True):
    """How a training job fared."""

    site: str
    name: str
    accelerators: int = 0
    goodput_ratio: float = 0.0
    failures: int = 0
    checkpoint_every_s: float | None = None


class Window(Part, frozen=True):
    """A stretch of the run that stands for `weight` times its own length; what lies in no window is warm-up."""

    start_s: float
    until_s: float
    weight: float


class Balance(Part, frozen=True):
    """The books of a run, for the eye: in = served + refused + failed + unfinished, and nothing leaked."""

    requests_in: int = 0
    served: int = 0
    refused: int = 0
    failed: int = 0
    unfinished: int = 0
    input_tokens: int = 0
    output_tokens: int = 0
    prefill_tokens: int = 0
    decode_tokens: int = 0
    kv_blocks_leaked: int = 0
    energy_j: float = 0.0


class SearchMeta(Part, frozen=True):
    """The highest multiple of the run's demand at which every tenant's SLO held, found by search in the twin."""

    highest_load_factor: float  # 0: not even a thousandth
    requests_per_s: float
    tokens_per_s: float  # input and output, served
    first_to_miss: str  # tenant whose promise breaks first beyond; '' where none did
    cause: str


class RunMeta(Part, frozen=True):
    """`meta.json`: what was run, and how to read the tables beside it."""

    fleet: str
    fleet_digest: str
    seed: int
    trace: TraceMeta
    start_utc: str  # ISO 8601, e.g. 2023-06-15T12:00:00Z
    duration_ns: int
    names: Names
    version: int = META_VERSION
    records_version: int = 0  # filled in by the store
    baseload: str = ""  # version of the program; filled in by the store where absent
    overrides: list[str] = []  # `--set key=value`, in order
    warmup_ns: int = 0  # arrivals before it do not count in latencies, rates and SLO attainment
    currency: str = "USD"
    deployments: list[DeploymentMeta] = []
    basis: list[BasisMeta] = []
    policies: Policies = Policies()
    training: list[TrainingMeta] = []
    windows: list[Window] = []
    search: SearchMeta | None = None
    balance: Balance = Balance()
    notes: list[str] = []
    files: dict[str, str] = {}  # series files of the fleet file -> their copies in the folder; the store fills it in


class Run(Protocol):
    """A finished run, as the report sees it: what it says of itself, its fleet, and its tables."""

    @property
    def name(self) -> str:
        """Return the folder's name."""

    @property
    def meta(self) -> RunMeta:
        """Return what the run says of itself."""

    @property
    def fleet(self) -> Any:
        """Return the Fleet (fleet.model.Fleet) that was run, overrides included."""

    @property
    def fleet_text(self) -> str:
        """Return the text of its fleet file."""

    @property
    def base_folder(self) -> Path:
        """Return what file names in the fleet are relative to."""

    def query(self, sql: str, params: Sequence[Any] = ()) -> list[tuple[Any, ...]]:
        """Return the rows of a fixed query over the views requests, replicas and sites, `?` bound to `params`."""

    def columns(self, sql: str, params: Sequence[Any] = ()) -> dict[str, Any]:
        """Return the same as NumPy columns."""

    def table(self, name: str, columns: Mapping[str, Any]) -> None:
        """Offer a small table of ours (NumPy columns) to queries under `name`."""


# ---- accounts: who may ask, and for how much ---------------------------------------------------------------


class KeyRecord(Part, frozen=True):
    """A tenant's key as it is stored: never the secret, only what shows and bounds it."""

    key_i: int
    pseudonym: str  # stands for the key in the ledger
    tenant: str  # name in the fleet file; '' once forgotten
    tenant_pseudonym: str  # stands for the tenant in the ledger
    name: str  # the operator's word for it
    prefix: str  # first characters of the newest secret, for the eye
    budget_nano: int | None  # over the whole life of the key, in 1e-9 of the currency; None: no limit
    rpm: int | None  # requests a minute
    tpm: int | None  # tokens a minute, prompt and answer
    concurrency: int | None  # requests at once
    created_ns: int  # UTC
    expires_ns: int | None
    revoked_ns: int | None


class TokenRecord(Part, frozen=True):
    """A token of the control listener as it is stored."""

    token_i: int
    name: str
    role: str  # tenant, viewer, operator, admin
    prefix: str
    created_ns: int
    expires_ns: int | None
    revoked_ns: int | None
    tenant: str = ""  # whose figures alone a `tenant` token sees


class Accounts(Protocol):
    """Where keys and control tokens are kept. Secrets come in as digests (`serve/keys.py`), never themselves."""

    def add_key(
        self,
        tenant: str,
        digest: bytes,
        *,
        pepper_i: int,
        prefix: str,
        now_ns: int,
        name: str = "",
        budget_nano: int | None = None,
        rpm: int | None = None,
        tpm: int | None = None,
        concurrency: int | None = None,
        expires_ns: int | None = None,
    ) -> KeyRecord:
        """Store a key."""

    def keys(self, tenant: str | None = None) -> list[KeyRecord]:
        """Return every key, or a tenant's, the oldest first."""

    def key(self, key_i: int) -> KeyRecord | None:
        """Return one key."""

    def key_by_digest(self, digest: bytes, now_ns: int) -> KeyRecord | None:
        """Return the key that a secret opens; a secret past its own end opens none."""

    def add_secret(self, key_i: int, digest: bytes, *, pepper_i: int, prefix: str, now_ns: int) -> None:
        """Give a key one more secret."""

    def end_secrets(self, key_i: int, *, but: bytes, at_ns: int) -> None:
        """Let all secrets of a key but one end at a time."""

    def redigest(self, old: bytes, new: bytes, pepper_i: int) -> None:
        """Store a secret's digest under another pepper."""

    def peppers_in_use(self) -> set[int]:
        """Return the numbers of the peppers that some secret needs."""

    def set_limits(
        self, key_i: int, *, budget_nano: int | None, rpm: int | None, tpm: int | None, concurrency: int | None
    ) -> None:
        """Change what a key may do."""

    def revoke_key(self, key_i: int, now_ns: int) -> bool:
        """Revoke a key for ever; False where there is none, or it was revoked before."""

    def add_token(
        self, role: str, digest: bytes, *, pepper_i: int, prefix: str, now_ns: int, name: str = "",
        expires_ns: int | None = None, tenant: str = "",
    ) -> TokenRecord:  # fmt: skip
        """Store a control token."""

    def tokens(self) -> list[TokenRecord]:
        """Return every control token."""

    def token_by_digest(self, digest: bytes, now_ns: int) -> TokenRecord | None:
        """Return the live token that a secret opens."""

    def revoke_token(self, token_i: int, now_ns: int) -> bool:
        """Revoke a control token."""

    def tenant_pseudonym(self, tenant: str) -> str:
        """Return what stands for a tenant in the ledger; made at the first question."""

    def forget(self, tenant: str, now_ns: int) -> int:
        """Revoke a tenant's keys and remove its name and theirs; the ledger keeps pseudonyms that lead nowhere."""

    def changed(self) -> bool:
        """Say whether anybody has written since the last question."""


KINDS: dict[str, int] = {
    word: i + 1 for i, word in enumerate("lease settle void reconcile reload control rotate".split())
}
"""Kinds of rows, and the number that the `kind` column of a ledger holds."""
KIND_NAMES = {number: name for name, number in KINDS.items()}
LEDGER_FORMAT = "baseload-ledger/1"


class RowIn(NamedTuple):
    """A row to be appended: `body` is its canonical JSON, which says kind and request id again."""

    kind: str
    request_id: int  # lease: its first id; settle: the request; void: the lease's first id; else 0
    body: bytes
    said: Any = None  # what `body` was made from, by who made it: its fields need not be read from there again


class SettledIn(NamedTuple):
    """Settle rows handed in at once, by who read the other columns from their bodies."""

    ids: list[int]
    bodies: list[bytes]
    closes: dict[int, int]  # lease -> which of its ids, as a mask: all of `ids`, each once
    sums: list[tuple[int, str, str, tuple[int, ...]]]  # at_ns, tenant, key, then the sums of such rows


class RowOut(NamedTuple):
    """A row of the ledger; `seq` is its leaf's index in the Merkle tree of the file, from 0."""

    seq: int
    kind: str
    request_id: int
    leaf: bytes  # SHA-256(0x00 || body)
    body: bytes


class Checkpoint(NamedTuple):
    """A signed statement: the first `size` rows have this Merkle root (RFC 6962)."""

    origin: str
    size: int
    root: bytes
    time_ns: int  # UTC; never runs backwards
    key_id: str  # 8 hex digits
    note: str  # the signed text (C2SP tlog-checkpoint)


class OpenLease(msgspec.Struct, frozen=True, kw_only=True):
    """A lease that still has open ids: [lease_id, lease_id + n_ids) less those closed by settle or void."""

    lease_id: int  # its first request id
    n_ids: int
    open_ids: list[tuple[int, int]]  # ranges, both ends included
    worker: int
    tenant: str
    key: str
    money_nano: int
    at_ns: int


class Total(msgspec.Struct, kw_only=True):
    """Sums over the settled requests of a key in a month (2026-11: UTC, of the row's at_ns)."""

    month: str
    tenant: str
    key: str
    requests: int = 0
    input_tokens: int = 0
    cached_tokens: int = 0
    output_tokens: int = 0
    price_nano: int = 0
    cost_nano: int = 0
    energy_mj: int = 0
    carbon_ug: int = 0


class Ledger(Protocol):
    """An append-only Merkle log of rows. All methods block; appends come from one thread, reads from any.

    `append` stores all its rows and a signed checkpoint in one durable transaction, or raises LedgerUnavailable and has
    stored none. Rows with a request id are idempotent: settling or voiding what is closed, and a lease stored already, are
    ignored. A settle that no lease covers is the caller's bug (ValueError), and so is a lease below `next_request_id`.
    """

    @property
    def origin(self) -> str:
        """Return the name of this log: one file, one tree."""

    def append(self, rows: Sequence[RowIn | SettledIn]) -> int:
        """Store the rows in their order in one transaction; return the new number of rows."""

    def flush(self) -> None:
        """Hand what waits to the witness file; call it about each second."""

    def size(self) -> int:
        """Return the number of rows."""

    def checkpoint(self) -> Checkpoint:
        """Return the latest signed checkpoint."""

    def rows(self, since_seq: int = 0, until_seq: int | None = None) -> Iterator[RowOut]:
        """Return the rows since_seq <= seq < until_seq in order."""

    def latest(self, n: int, kind: str = "settle") -> list[RowOut]:
        """Return the last `n` rows of a kind, newest first."""

    def find(self, request_id: int) -> RowOut | None:
        """Return the settle row of a request."""

    def proof(self, seq: int, size: int) -> list[bytes]:
        """Return the inclusion proof of row `seq` in the tree of the first `size` rows."""

    def consistency(self, old_size: int, new_size: int) -> list[bytes]:
        """Return the proof that the tree of `old_size` rows is a prefix of that of `new_size`."""

    def receipt(self, request_id: int) -> bytes | None:
        """Return a self-contained JSON receipt of a settled request, or None."""

    def open_leases(self) -> list[OpenLease]:
        """Return the leases that have open ids, by lease id."""

    def next_request_id(self) -> int:
        """Return the lowest id that was never leased."""

    def totals(self, month: str | None = None) -> list[Total]:
        """Return the sums of a month (`2026-11`), or of each month, by month, tenant, key."""

    def rotate(self, archive: Path, origin: str = "") -> None:
        """Move all rows to the SQLite file `archive`, and begin anew with a row that links to it."""

    def export(self, path: Path) -> None:
        """Write the whole ledger as a SQLite file that `baseload verify` reads; refuses to overwrite."""

    def close(self) -> None:
        """Flush and close; a closed ledger raises LedgerUnavailable."""


class EngineError(BaseloadError):
    """An engine did not start, or ended before it answered; the message says which, and what it said last."""


class EngineStart(NamedTuple):
    """One replica's engine, as a provisioner is told to start it."""

    name: str  # deployment/site/index within the pool
    kind: Literal["external", "embedded", "emulated"]
    model: str = ""  # name at the engine
    url: str = ""  # external: where it runs already
    key_env: str = ""  # external: environment variable with its API key
    gguf: str = ""  # embedded: path of the model file
    digest: str = ""  # of the weights, where known
    slots: int = 4  # embedded: sequences at once
    context_tokens: int = 4096  # embedded: of each slot
    table: str = ""  # emulated: name of its step table
    cold_s: float = 0.0  # emulated: pretends to load its weights for so long
    start_s: float = 60.0  # to answer the first request
    warm: bool = True  # send one short request before it counts as ready


class Engine(NamedTuple):
    """An engine that answers."""

    name: str
    kind: str
    url: str  # base, without /v1
    model_digest: str  # "sha256:…", or "" where unknown
    pid: int  # 0: not a process of ours
    ready_s: float  # from the order to the first answer


class Provisioner(Protocol):
    """Brings engines up and takes them down, as `reconcile` says: coroutines of one loop, a name started once at a time."""

    async def start(self, order: EngineStart) -> Engine:
        """Return the engine once it answers; raises EngineError."""

    async def probe(self, name: str) -> bool:
        """Say whether the engine answers its health question within a second or two."""

    async def stop(self, name: str, drain_s: float) -> None:
        """End it: what runs gets `drain_s` to finish, then it is asked, then made to. An unknown name is no error."""

    async def slow_down(self, names: Sequence[str], factors: Sequence[float]) -> None:
        """Let emulated engines take that many times longer for a step, by its tokens; raises EngineError."""

    async def close(self) -> None:
        """End them all, at once."""


class PowerLimiter(Protocol):
    """Holds the accelerators that this host shows to a power limit."""

    method: str  # nvml

    def limit(self, dynamic_ratio: float) -> float:
        """Let each accelerator draw at most so much of its power above idle (1: all); return the watts set, of all together.

        Raises OSError where the driver refuses.
        """

    def close(self) -> None:
        """Put back what was, and let go of it."""


class Meter(Protocol):
    """Counts the energy of a site's IT equipment, or of the part that this host can see."""

    method: str  # nvml, rapl or modelled

    def energy_j(self) -> float:
        """Return joules since the meter was made; never less than before. Raises OSError where it cannot be read."""

    def close(self) -> None:
        """Let go of it."""
