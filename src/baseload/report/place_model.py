"""What `baseload place` says, as records; its JSON is exactly this. Tokens are those of prompt and answer together."""

from __future__ import annotations

import msgspec


class Obstacle(msgspec.Struct, frozen=True, kw_only=True):
    """One reason against a place, and what would have to change."""

    rule: str  # residency, sovereignty, export, cooling, memory, latency, capacity
    what: str
    mend: str


class Place(msgspec.Struct, frozen=True, kw_only=True):
    """A site and an accelerator for the workload, possible or not."""

    site: str
    accelerator: str
    jurisdiction: str
    operator_jurisdiction: str
    way: str  # free, rent, lease, buy; none where it cannot be
    from_day: str | None  # first day on which it can serve, where that is known
    rank: int | None  # 1 is the best; none: excluded
    obstacles: list[Obstacle] = []
    settings: str = ""  # precision and parallelism of one replica
    accelerators: int = 0  # of one replica
    network_ms: float = 0.0  # round trip of the farthest users
    requests_per_s: float = 0.0  # that one replica carries with the promise kept
    free_accelerators: int = 0
    free_requests_per_s: float = 0.0  # that they carry
    replicas_there: int = 0  # of this model, on the day
    cost_per_mtok: float | None = None  # by the way in which it would be had
    marginal_per_mtok: float | None = None  # energy alone, on accelerators that stand idle
    owned_per_mtok: float | None = None  # energy, capital, space and upkeep, were they bought
    rented_per_mtok: float | None = None
    energy_wh_per_mtok: float | None = None  # at the meter
    carbon_g_per_mtok: float | None = None
    how: str = ""


class PlaceReport(msgspec.Struct, frozen=True, kw_only=True):
    """Where a workload should run."""

    fleet: str
    currency: str
    day: str
    tenant: str
    model: str
    promise: str
    places: list[Place]  # ranked ones first
    notes: list[str]
