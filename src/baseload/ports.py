"""What crosses between rooms that may not know each other: what a run says of itself, and how the report asks it.

`RunMeta` is `meta.json` of a run folder; a verb fills it in, `adapters/store.py` writes and reads it, `report/` shows
it. `Run` is what the report needs of a store. Only the shelf is imported here, so a Fleet appears as `Any`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, Protocol

import msgspec

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
