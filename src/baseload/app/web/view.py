"""What the control listener sees of the owner: one snapshot of the live fleet, and the few things it may ask for.

The owner fills a `Snapshot` in once a second; pages, JSON, metrics and alerts all read that one record, so that they
cannot disagree. Nothing in it is a secret or a prompt. Field names carry units and are the JSON keys; None is "not
known", never NaN. `OwnerView` is what the owner implements. How it is drawn is `page.py`, who may ask is `guard.py`.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal, Protocol

import msgspec

from baseload.errors import Problem
from baseload.report.model import Step

VIEW_VERSION = 1

SERIES_S = 900  # seconds of history that a series holds, one point a second
RECENT_MAX = 100
ALARMS_MAX = 100

Role = Literal["tenant", "viewer", "operator", "admin"]
ROLES: tuple[Role, ...] = ("viewer", "operator", "admin")
"""Least first. A viewer looks, an operator reloads and drains, an admin makes and revokes keys. `tenant` stands apart: it
sees what is its tenant's own (usage, keys, receipts), and nothing of the fleet."""

EngineKind = Literal["external", "embedded", "emulated"]
ReplicaState = Literal["up", "starting", "draining", "down", "parked"]
SiteState = Literal["open", "limited", "draining", "closed"]
Outcome = Literal["served", "refused", "failed", "cancelled", "running"]
AlarmLevel = Literal["warning", "critical"]
OUTCOMES: tuple[Outcome, ...] = ("served", "refused", "failed", "cancelled")
AlarmKind = Literal["divergence", "power", "ledger", "replica", "budget", "slo", "engine", "worker", "fleet"]

TTFT_EDGES_S = (0.05, 0.1, 0.2, 0.5, 1.0, 2.0, 5.0, 10.0, 30.0)
TPOT_EDGES_S = (0.005, 0.01, 0.02, 0.03, 0.05, 0.1, 0.2, 0.5)
"""Upper edges of the histograms' buckets; a last bucket holds everything above."""


class Part(msgspec.Struct, frozen=True, kw_only=True):
    """Base of the parts of a snapshot: frozen, by keyword."""


class SiteNow(Part, frozen=True):
    """A site, now."""

    name: str
    place: str = ""
    lat: float | None = None
    lon: float | None = None
    jurisdiction: str = ""  # where it sits
    operator_jurisdiction: str = ""  # whose law reaches its operator
    state: SiteState = "open"
    state_reason: str = ""
    ladder: list[Step] = []  # from announced down to sold, with reasons
    requests_per_s: float = 0.0
    tokens_per_s: float = 0.0  # input and output
    power_kw: float | None = None  # at the meter
    limit_kw: float | None = None  # at the meter, what may be drawn now
    contract_kw: float | None = None
    power_from: str = "modelled"  # what meters saw stands in the ledger, minute by minute
    carbon_g_per_kwh: float | None = None
    price_per_kwh: float | None = None
    energy_j_total: float = 0.0  # of requests and idle, since the owner began
    carbon_g_total: float = 0.0


class ReplicaNow(Part, frozen=True):
    """A replica, now. Its name is deployment/site/index."""

    name: str
    deployment: str
    site: str
    model: str
    accelerator: str = ""
    kind: EngineKind = "emulated"
    state: ReplicaState = "up"
    reason: str = ""  # why it is not up, or why it is ejected
    ejected: bool = False
    outstanding: int = 0  # promised by the gateway, not finished
    running: int = 0  # as last scraped
    waiting: int = 0
    kv_free_ratio: float | None = None
    restarts_total: int = 0
    ejections_total: int = 0


class TenantNow(Part, frozen=True):
    """A tenant, over the last minutes; what ends in _total counts since the owner began."""

    name: str
    requests_per_s: float = 0.0
    tokens_per_s: float = 0.0
    ttft_s_p50: float | None = None
    ttft_s_p99: float | None = None
    ttft_slo_s: float | None = None
    tpot_s_p50: float | None = None
    tpot_s_p99: float | None = None
    tpot_slo_s: float | None = None
    attainment_ratio: float | None = None  # share of requests within the SLO
    attainment_promised_ratio: float | None = None
    spent: float = 0.0  # this month, in the fleet's currency
    budget: float | None = None  # a month; None: no limit
    requests_total: dict[str, int] = {}  # by outcome
    refused_total: dict[str, int] = {}  # by reason
    slo_requests_total: int = 0  # that count towards the SLO
    slo_met_total: int = 0
    input_tokens_total: int = 0
    cached_tokens_total: int = 0
    output_tokens_total: int = 0
    revenue_total: float = 0.0
    ttft_s_counts: list[int] = []  # by TTFT_EDGES_S and above; empty: not kept
    ttft_s_sum: float = 0.0
    tpot_s_counts: list[int] = []  # by TPOT_EDGES_S and above
    tpot_s_sum: float = 0.0


class Totals(Part, frozen=True):
    """The fleet, over the last minute."""

    requests_per_s: float = 0.0
    input_tokens_per_s: float = 0.0
    output_tokens_per_s: float = 0.0
    refused_per_s: float = 0.0
    failed_per_s: float = 0.0
    ttft_s_p50: float | None = None
    ttft_s_p99: float | None = None
    tpot_s_p50: float | None = None
    tpot_s_p99: float | None = None
    attainment_ratio: float | None = None
    streams_open: int = 0
    waiting: int = 0  # at the gateway, for a free replica
    revenue_per_h: float = 0.0
    cost_per_h: float = 0.0  # capex, opex, energy, idle
    energy_cost_per_h: float = 0.0  # the part of cost_per_h
    carbon_g_per_h: float | None = None
    power_kw: float | None = None
    limit_kw: float | None = None
    contract_kw: float | None = None
    retries_total: int = 0
    upstream_total: int = 0  # requests sent to engines, retries included


class ErrorNow(Part, frozen=True):
    """One kind of refusal or failure, over the last 15 minutes."""

    outcome: Outcome
    reason: str
    requests: int
    tenants: list[str] = []
    where: list[str] = []  # replicas or sites
    last_ns: int = 0  # UTC


class RecentRequest(Part, frozen=True):
    """A request that ended lately, or runs; never its prompt, its answer or its key."""

    at_ns: int  # arrival, UTC
    request_id: str
    tenant: str
    model: str
    outcome: Outcome
    status: int = 200  # HTTP, as the client saw it
    reason: str = ""  # why it was not served
    site: str = ""
    jurisdiction: str = ""
    replica: str = ""
    kind: EngineKind = "emulated"
    why: str = ""  # why it went where it went
    n_tries: int = 1
    input_tokens: int = 0
    cached_tokens: int = 0
    output_tokens: int = 0
    ttft_s: float | None = None
    duration_s: float | None = None
    price: float | None = None
    energy_wh: float | None = None


class Alarm(Part, frozen=True):
    """Something that a person should look at."""

    kind: AlarmKind
    level: AlarmLevel
    what: str  # a sentence: where, what, and how to mend it
    since_ns: int  # UTC
    subject: str = ""  # a tenant, site or replica
    measured: float | None = None  # divergence: what was measured,
    band_low: float | None = None  # and the twin's band
    band_high: float | None = None


class LedgerNow(Part, frozen=True):
    """The ledger."""

    available: bool = True
    rows_total: int = 0
    checkpoint_ns: int | None = None  # UTC, of the last signed one
    fault: str = ""


class Snapshot(Part, frozen=True):
    """The live fleet at an instant."""

    at_ns: int  # UTC
    fleet: str
    fleet_digest: str
    currency: str
    baseload: str  # version of the program
    tables_version: int  # counts reloads
    started_ns: int  # UTC
    workers_up: int
    workers: int  # wanted
    totals: Totals
    draining: bool = False
    reload_fault: str = ""  # why the last reload was refused; '' where it was not
    sites: list[SiteNow] = []
    replicas: list[ReplicaNow] = []
    tenants: list[TenantNow] = []
    models: list[str] = []
    ladder: list[Step] = []  # of the whole fleet
    errors: list[ErrorNow] = []
    recent: list[RecentRequest] = []  # newest first, at most RECENT_MAX
    alarms: list[Alarm] = []  # worst first, at most ALARMS_MAX
    ledger: LedgerNow = LedgerNow()
    version: int = VIEW_VERSION

    @property
    def emulated(self) -> int:
        """Return how many replicas are emulated: what they do is a rehearsal."""
        return sum(one.kind == "emulated" for one in self.replicas)


SERIES_COLUMNS = (
    "requests_per_s", "refused_per_s", "failed_per_s", "input_tokens_per_s", "output_tokens_per_s", "ttft_s_p50",
    "ttft_s_p99", "tpot_s_p50", "tpot_s_p99", "power_kw", "limit_kw", "contract_kw", "revenue_per_h", "cost_per_h",
)  # fmt: skip


class Series(Part, frozen=True):
    """Seconds of history: `at_s` are whole UTC seconds, ascending, and each column of SERIES_COLUMNS is as long."""

    at_s: list[int] = []
    columns: dict[str, list[float | None]] = {}


class Staff(Part, frozen=True):
    """Who holds a control token."""

    name: str
    role: Role
    tenant: str = ""  # of the role `tenant`


class KeyRow(Part, frozen=True):
    """A data key as it may be shown: never its secret."""

    key_id: str
    tenant: str
    name: str = ""
    created_ns: int = 0  # UTC
    expires_ns: int | None = None
    revoked_ns: int | None = None
    budget: float | None = None
    spent: float = 0.0
    rpm: int | None = None
    tpm: int | None = None
    concurrency: int | None = None


class NewKey(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What is asked for with a new key. Money in the fleet's currency."""

    tenant: str
    name: str = ""
    budget: float | None = None
    rpm: int | None = None
    tpm: int | None = None
    concurrency: int | None = None
    expires_s: float | None = None  # from now


class MadeKey(Part, frozen=True):
    """A new key; `secret` is shown this once."""

    key: KeyRow
    secret: str


class UsageRow(Part, frozen=True):
    """What a tenant used of a model."""

    tenant: str
    model: str
    requests: int
    input_tokens: int
    cached_tokens: int
    output_tokens: int
    price: float
    cost: float
    energy_wh: float
    carbon_g: float


class Reloaded(Part, frozen=True):
    """How a reload went: the version that now holds, and the problems that kept the new file out."""

    version: int
    problems: list[Problem] = []


class DrainOrder(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What is to take no new requests (`on`), or to take them again."""

    what: Literal["gateway", "site", "deployment", "replica"]
    name: str = ""
    on: bool = True


class Audit(Part, frozen=True):
    """A change that a person asked for."""

    actor: str  # name of the control token
    action: str  # e.g. key.create
    subject: str  # never a secret
    outcome: Literal["asked", "done", "failed"]


class OwnerView(Protocol):
    """What the control listener asks of the owner. All of it runs in the owner's loop; `async` where it may wait.

    What the user did wrong is raised as an InputError (HTTP 422), what cannot be done now as a BaseloadError (503).
    """

    def snapshot(self) -> Snapshot:
        """Return the newest snapshot; it is made once a second and never waits."""

    def series(self, scope: str) -> Series | None:
        """Return the last SERIES_S seconds of '' (the fleet), 'site/NAME' or 'tenant/NAME'; None: no such."""

    def ready(self) -> str:
        """Return '' when requests are served, else why not (starting, draining, ledger unavailable)."""

    def token_digest(self, secret: bytes) -> bytes:
        """Return the digest that a control token is kept under (HMAC-SHA256 under the pepper)."""

    def staff(self, digest: bytes) -> Staff | None:
        """Return who holds the control token with this digest; None once it is revoked or expired."""

    async def keys(self) -> Sequence[KeyRow]:
        """Return every data key, without secrets."""

    async def create_key(self, wanted: NewKey) -> MadeKey:
        """Make a data key."""

    async def revoke_key(self, key_id: str) -> bool:
        """Revoke a data key, streams included; False: no such key."""

    async def usage(self, tenant: str | None, since_ns: int | None) -> Sequence[UsageRow]:
        """Return what was used since a UTC instant (this month's first where None)."""

    async def receipt(self, request_id: str, tenant: str | None = None) -> Any:
        """Return a request's receipt as JSON-able data; None: no such request, or none of that tenant's."""

    async def reload(self) -> Reloaded:
        """Read the fleet file again: its problems, or the new version. The last good one is kept."""

    async def drain(self, order: DrainOrder) -> str:
        """Do it, and return a sentence that says what now holds."""

    async def audit(self, entry: Audit) -> None:
        """Write an admin action to the ledger; raises BaseloadError where that cannot be done."""
