"""What a gateway worker knows of the fleet: names turned into rows once, as plain lists and numbers.

`app/` fills it in from the fleet file and the twin's description of it, so that a worker needs neither the fleet file nor
NumPy; it crosses to the workers as JSON. What changes by the second (load, health, power) is `board.py`.
"""

from __future__ import annotations

import msgspec


class Row(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Base of the tables: frozen, by keyword, unknown keys refused."""


class TenantRow(Row, frozen=True):
    """A tenant: promise, price, priority."""

    name: str
    ttft_slo_s: float
    tpot_slo_s: float
    priority: int
    input_pico: int  # price of a prompt token in 1e-12 of the currency: price_per_mtok * 1e6, rounded
    cached_pico: int
    output_pico: int
    budget_per_month_nano: int | None  # in 1e-9 of the currency; None: no limit
    region_i: int = 0  # where its users are, most of them


class ModelRow(Row, frozen=True):
    """A model that tenants call."""

    name: str
    max_context_tokens: int  # longest prompt plus answer that every replica of it holds
    digest: str = ""  # of its weights; '' where unknown


class SiteRow(Row, frozen=True):
    """A site, and whose law holds there."""

    name: str
    jurisdiction: str
    operator_jurisdiction: str
    one_way_s: float  # gateway to site
    pue: float
    carbon_g_per_kwh: float  # at the hour the table was made; the owner writes the current one to the board
    price_per_kwh: float  # in the fleet's currency
    limit_kw: float | None  # IT power that may be drawn now; None: no limit
    idle_kw: float  # IT power of training and of parked accelerators, all of them counted as parked
    parked_ratio: float = 0.0  # share of idle power that an accelerator without a replica draws


class DeploymentRow(Row, frozen=True):
    """What one replica of a deployment is, and what a token there costs its owner."""

    name: str
    model_i: int
    kind: str  # external, embedded, emulated
    accelerator: str
    slots: int  # sequences at once
    prefill_tokens_per_s: float
    decode_s_per_token: float  # a step at half load
    idle_w: float
    busy_w: float  # at half load
    j_per_input_token: float  # IT energy above idle
    j_per_output_token: float
    idle_cost_per_s: float  # capex and opex of one replica a second, in the fleet's currency
    cost_per_input_token: float  # capex, opex, energy and idle share, at the load that the fleet file expects
    cost_per_output_token: float
    served_model: str = ""  # name at the engine; '' as asked
    key_env: str = ""
    metrics: str = "auto"
    cold_start_s: float = 0.0
    idle_share_ratio: float = 0.0  # part of the cost above that idle time causes
    basis: str = "modelled"
    peak_w: float = 0.0  # the most in any step; 0: not known
    engine: str = ""  # digest of all that a running engine cannot change: another one is another engine


class ReplicaRow(Row, frozen=True):
    """One replica: rows are in the twin's order (pools by deployment, then site; lowest number first).

    After a reload (`succession.py`) rows stay where they were, and new ones stand at the end.
    """

    deployment_i: int
    site_i: int
    pool_i: int
    number: int  # in its pool, from 0: the last part of its name
    on_at_start: bool  # the first n_min of its pool
    address: str = ""  # of an external engine
    gone: bool = False  # left at a reload: takes nothing any more


class PoolRow(Row, frozen=True):
    """The replicas of one deployment in one site."""

    deployment_i: int
    site_i: int
    n_min: int
    n_max: int


class PolicyRow(Row, frozen=True):
    """The rules by name, and their numbers (view.Tunables and the rest of the fleet file's `policy`)."""

    route: str
    admit: str
    scale: str
    cap: str
    load_guard: float
    admit_factor: float
    target_utilisation: float
    scale_down_s: float
    observe_every_s: float
    control_every_s: float
    detect_s: float
    retries: int
    max_wait_s: float  # 0: never


class LimitRow(Row, frozen=True):
    """Time and size limits: `serve.limits` of the fleet file, and the three of ejection."""

    header_s: float = 10.0
    body_s: float = 60.0
    idle_s: float = 75.0
    first_byte_s: float = 60.0
    token_s: float = 30.0
    request_s: float = 600.0
    drain_s: float = 30.0
    header_bytes: int = 32_768
    body_bytes: int = 16_777_216
    connections: int = 16_384
    queue: int = 1024
    retry_ratio: float = 0.1
    eject_after: int = 5
    eject_s: float = 10.0
    eject_most_ratio: float = 0.5


class Tables(Row, frozen=True):
    """The whole: what a worker is started with, and given anew at a reload."""

    version: int  # counts reloads
    fleet: str  # name
    fleet_digest: str
    currency: str
    tenants: list[TenantRow]
    regions: list[str]
    models: list[ModelRow]
    sites: list[SiteRow]
    deployments: list[DeploymentRow]
    pools: list[PoolRow]
    replicas: list[ReplicaRow]
    may: list[list[list[int]]]  # (tenant, model, pool) 1 where law and model allow
    region_rtt_s: list[float]  # client to gateway and back
    policy: PolicyRow
    limits: LimitRow = LimitRow()
    predicted_output_tokens: float = 256.0  # before anything was seen
    seed: int = 0
    first_version: int = 1  # since when a row number means what it means here
    rehearsal: bool = False  # some engines are emulated: nothing here validates anything


def encode(tables: Tables) -> bytes:
    """Return the tables as JSON."""
    return msgspec.json.encode(tables)


def decode(blob: bytes) -> Tables:
    """Return the tables from JSON; raises msgspec.ValidationError."""
    return msgspec.json.decode(blob, type=Tables)
