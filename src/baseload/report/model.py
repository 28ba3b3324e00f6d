"""The report as frozen records: what `kpis.py` fills in, and text, JSON, HTML and comparisons show.

Every figure is a number or None where it is not defined (no request was served, say); never NaN or infinity. Field
names carry units, and are the JSON keys; what each means is `kpi_table.py`.
"""

from __future__ import annotations

import msgspec

from baseload.ports import BasisMeta, DeploymentMeta, TrainingMeta, Window

REPORT_VERSION = 1

Number = float | int | None


class Part(msgspec.Struct, frozen=True, kw_only=True):
    """Base of the parts of a report: frozen, by keyword."""


class Service(Part, frozen=True):
    """What requests saw, of a fleet, tenant, model, deployment or site."""

    requests_in: Number
    served: Number
    refused: Number
    failed: Number
    unfinished: Number
    ttft_s_mean: Number
    ttft_s_p50: Number
    ttft_s_p90: Number
    ttft_s_p99: Number
    tpot_s_mean: Number
    tpot_s_p50: Number
    tpot_s_p90: Number
    tpot_s_p99: Number
    e2e_s_mean: Number
    e2e_s_p50: Number
    e2e_s_p90: Number
    e2e_s_p99: Number
    slo_attainment_ratio: Number
    slo_attainment_served_ratio: Number
    goodput_requests_per_s: Number
    goodput_tokens_per_s: Number
    requests_per_s: Number
    input_tokens_per_s: Number
    output_tokens_per_s: Number
    input_tokens: Number
    cached_tokens: Number
    output_tokens: Number
    cached_ratio: Number
    preemptions: Number
    work_energy_j: Number
    list_revenue: Number


class Hardware(Part, frozen=True):
    """How well replicas were used, of a fleet, deployment or site."""

    replicas: Number
    accelerators: Number
    utilisation_ratio: Number
    prefill_ratio: Number
    mfu_ratio: Number
    availability_ratio: Number
    kv_peak_ratio: Number


class Energy(Part, frozen=True):
    """Power and energy, of a fleet or site."""

    it_kwh: Number
    site_kwh: Number
    inference_site_kwh: Number
    training_site_kwh: Number
    idle_it_kwh: Number
    pue_mean: Number
    pue_peak: Number
    power_kw_mean: Number
    power_kw_p99: Number
    power_kw_max: Number
    power_kw_contract: Number
    power_used_ratio: Number
    power_capped_ratio: Number
    over_limit_ratio: Number
    over_limit_kw_max: Number
    energy_j_per_token: Number
    energy_j_per_output_token: Number
    energy_wh_per_request: Number
    tokens_per_kwh: Number
    tokens_per_s_per_kw: Number
    tokens_per_s_per_rack: Number
    tokens_per_s_per_m2: Number


class Footprint(Part, frozen=True):
    """Carbon and water, of a fleet or site."""

    carbon_kg_location: Number
    carbon_kg_market: Number
    carbon_kg_embodied: Number
    carbon_g_per_mtok: Number
    water_l: Number


class Cost(Part, frozen=True):
    """Money in the fleet's currency, over the span of the run, of a fleet or site."""

    cost_accelerators: Number
    cost_rent: Number
    cost_facility: Number
    cost_colocation: Number
    cost_maintenance: Number
    cost_staff: Number
    cost_other: Number
    cost_energy: Number
    cost_demand_charge: Number
    cost_water: Number
    cost_carbon: Number
    cost_total: Number
    cost_serving: Number
    cost_idle: Number
    cost_training: Number
    cost_per_mtok: Number
    cost_per_mtok_input: Number
    cost_per_mtok_output: Number
    revenue: Number
    margin: Number
    margin_ratio: Number
    invested: Number
    roi_ratio: Number
    payback_years: Number


COST_PARTS = (
    "cost_accelerators", "cost_rent", "cost_facility", "cost_colocation", "cost_maintenance", "cost_staff",
    "cost_other", "cost_energy", "cost_demand_charge", "cost_water", "cost_carbon",
)  # fmt: skip
"""The fields of Cost that add up to `cost_total`; so do cost_serving, cost_idle and cost_training."""


class Step(Part, frozen=True):
    """One rung of the capacity ladder, with why it lies below the one above."""

    name: str
    mw: float
    raw_mw: float
    lost_mw: float
    excess_mw: float
    tokens_per_s: float
    lost_tokens_per_s: float
    excess_tokens_per_s: float
    modelled: bool  # tokens_per_s is converted by the declared mix, not simulated or measured
    reason: str


class Slo(Part, frozen=True):
    """What a tenant was promised."""

    ttft_ms: float
    tpot_ms: float
    e2e_ms: float | None
    attainment: float


class FleetReport(Part, frozen=True):
    """The fleet as a whole."""

    service: Service
    hardware: Hardware
    energy: Energy
    footprint: Footprint
    cost: Cost
    ladder: list[Step]


class TenantReport(Part, frozen=True):
    """One tenant."""

    name: str
    slo: Slo
    slo_met: bool | None  # attainment reached; None where nothing was asked
    service: Service
    commitment: Number  # the committed minimum, pro rata
    revenue: Number


class ModelReport(Part, frozen=True):
    """One model."""

    name: str
    service: Service


class DeploymentReport(Part, frozen=True):
    """One deployment."""

    name: str
    what: DeploymentMeta
    service: Service
    hardware: Hardware


class SiteReport(Part, frozen=True):
    """One site."""

    name: str
    lat: float
    lon: float
    jurisdiction: str
    racks: int
    area_m2: Number
    service: Service
    hardware: Hardware
    energy: Energy
    footprint: Footprint
    cost: Cost
    ladder: list[Step]
    ladder_open: str  # what the ladder could not know, '' where nothing


class Refusal(Part, frozen=True):
    """Requests of a tenant that were not served, and why."""

    tenant: str
    status: str
    reason: str
    requests: float


class SiteSeries(Part, frozen=True):
    """A site over time, for charts: at most 240 points; the means of what lies between."""

    site: str
    start_s: list[float]
    end_s: float
    tokens_per_s: list[float]
    it_kw: list[float]
    site_kw: list[float]
    limit_kw: list[float | None]
    contract_kw: float | None


class LatencyCurve(Part, frozen=True):
    """Share of a tenant's served requests at or under a latency, for charts; exact to 2 %."""

    tenant: str
    metric: str  # ttft or tpot
    limit_s: float
    latency_s: list[float]
    share: list[float]


class Confidence(Part, frozen=True):
    """How far a group of figures may be trusted: as far as the weakest of what it is built on."""

    group: str
    basis: str
    because: list[str]  # figures of that weakest basis


class RunFacts(Part, frozen=True):
    """What was run."""

    folder: str
    fleet: str
    fleet_digest: str
    baseload: str
    seed: int
    trace: str
    trace_note: str
    trace_requests: int
    trace_scale: float
    start_utc: str
    duration_s: float
    warmup_s: float
    span_s: float  # time that totals stand for: the duration, or the weighted windows
    measured_s: float  # time that rates and latencies stand for: without warm-up
    currency: str
    policies: dict[str, str]
    windows: list[Window]
    quantiles: str  # how they were found
    training: list[TrainingMeta]


class Report(Part, frozen=True):
    """Everything that a run says."""

    report: int
    run: RunFacts
    headline: str
    built_on: str  # '' where no figure is modelled
    fleet: FleetReport
    tenants: list[TenantReport]
    models: list[ModelReport]
    deployments: list[DeploymentReport]
    sites: list[SiteReport]
    refusals: list[Refusal]
    confidence: list[Confidence]
    basis: list[BasisMeta]
    notes: list[str]
    series: list[SiteSeries]
    curves: list[LatencyCurve]
