"""What an owner declares: the fleet file as frozen records, one field a key, one spelling everywhere.

Reading and line numbers are in `load.py`, what must hold between records in `check.py`, known hardware, models and
places in `catalog.py`. Nothing here computes: prices, power and speed are `formulas/`.
Keys carry their units. Every thing that comes and goes has a from and an until, so `fleet.on(date)` is one function.
"""

from __future__ import annotations

from datetime import date
from typing import Annotated, Literal

import msgspec
from msgspec import Meta

D = Meta  # `D(description=...)` reads shorter below; the schema and docs/reference come from these texts
NonNegative = Annotated[float, Meta(ge=0)]
Positive = Annotated[float, Meta(gt=0)]
Ratio = Annotated[float, Meta(ge=0, le=1)]
Count = Annotated[int, Meta(ge=0)]
Natural = Annotated[int, Meta(ge=1)]
Name = Annotated[str, Meta(pattern="^[A-Za-z0-9][A-Za-z0-9._-]{0,63}$")]
Redundancy = Literal["N", "N+1", "2N"]
CoolingType = Literal["air", "direct_to_chip", "immersion"]
Precision = Literal["bf16", "fp8", "fp4"]


class Record(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Base of every record of the fleet file: frozen, by keyword, unknown keys refused."""


class Series(Record):
    """An hourly series instead of a flat number: from the catalogue, or from a CSV or Parquet file."""

    place: Annotated[str | None, D(description="catalogue place whose hourly series is used")] = None
    file: Annotated[str | None, D(description="CSV or Parquet, one value an hour from 1 January 00:00 UTC; "
                                              "relative to the fleet file")] = None
    column: Annotated[str | None, D(description="column of the file; the last one unless said")] = None
    scale: Annotated[Positive, D(description="factor on every value, e.g. a rate of exchange")] = 1.0
    add: Annotated[float, D(description="added to every value after scaling, e.g. grid fees per MWh")] = 0.0


Hourly = float | Series


class GridConnection(Record):
    """A connection to the grid, or a phase of one, with the dates that turn announced into usable."""

    power_mw: Annotated[Positive, D(description="MW of this phase, at the meter")]
    announced: Annotated[date | None, D(description="day it was announced")] = None
    permitted: Annotated[date | None, D(description="day the permit was granted")] = None
    contracted: Annotated[date | None, D(description="day the grid agreement was signed")] = None
    energised: Annotated[date | None, D(description="day power flowed; none: not yet")] = None
    until: Annotated[date | None, D(description="first day it is gone")] = None


class PowerContract(Record):
    """What is bought over the connections: how much, at what price, from when until when."""

    power_mw: Annotated[Positive, D(description="contracted MW at the meter")]
    price_per_mwh: Annotated[Hourly | None, D(description="energy price, all fees included, in the fleet's "
                                                          "currency; flat or a series; the place's where absent")] = None
    demand_charge_per_kw_month: Annotated[NonNegative, D(description="on the month's highest kW")] = 0.0
    minimum_bill_ratio: Annotated[Ratio, D(description="share of power_mw billed even when unused")] = 0.0
    ratchet_ratio: Annotated[Ratio, D(description="share of the highest peak of 11 months billed at least")] = 0.0
    green_ratio: Annotated[Ratio, D(description="share covered by certificates of origin or a PPA: counts in "
                                                "market-based carbon only")] = 0.0
    start: Annotated[date | None, D(description="first day in force")] = None
    until: Annotated[date | None, D(description="first day it is gone")] = None


class PowerLimit(Record):
    """A limit on the site's draw during some hours of the run: grid curtailment, maintenance, a flexible contract."""

    start_h: Annotated[NonNegative, D(description="hours after the run's start")]
    until_h: Annotated[Positive, D(description="hours after the run's start")]
    power_mw: Annotated[NonNegative, D(description="MW at the meter that may be drawn meanwhile")]
    every_h: Annotated[Positive | None, D(description="repeats with this period, e.g. 24")] = None


class Cooling(Record):
    """How heat leaves, and how much of it can."""

    type: Annotated[CoolingType, D(description="air, direct_to_chip or immersion")] = "air"
    capacity_mw: Annotated[Positive | None, D(description="IT MW that can be cooled at the design wet bulb; "
                                                          "none: follows the energised power")] = None
    wetbulb_c: Annotated[Hourly | None, D(description="outdoor wet bulb, flat or a series; the place's where absent")] = None
    design_wetbulb_c: Annotated[float | None, D(description="hot hour that the plant must survive; the place's where "
                                                           "absent")] = None
    water_price_per_m3: Annotated[NonNegative, D(description="price of water")] = 0.0
    pue: Annotated[Annotated[float, Meta(ge=1)] | None, D(description="fixed PUE instead of the formula")] = None


class Rack(Record):
    """A group of equal racks of one accelerator."""

    accelerator: Annotated[str, D(description="catalogue name, e.g. h100-sxm")]
    accelerators_per_rack: Annotated[Natural, D(description="accelerators in one rack")]
    racks: Annotated[Natural, D(description="number of racks")] = 1
    accelerators_per_server: Annotated[Natural | None, D(description="what one server failure takes; the catalogue's "
                                                                    "where absent")] = None
    rack_kw: Annotated[Positive | None, D(description="kW that one rack may draw; none: no limit of its own")] = None
    liquid_ratio: Annotated[Ratio | None, D(description="share of heat taken by liquid; from the cooling type where "
                                                        "absent")] = None
    area_m2: Annotated[Positive, D(description="floor that one rack takes with its aisles")] = 3.0
    in_service: Annotated[date | None, D(description="first day in service; none: already")] = None
    until: Annotated[date | None, D(description="first day it is gone")] = None
    capex_per_accelerator: Annotated[NonNegative | None, D(description="price with its share of server and network; the "
                                                                       "catalogue's where absent")] = None
    rent_per_accelerator_hour: Annotated[NonNegative | None, D(description="rented instead of bought: price an hour, "
                                                                           "used or not")] = None


class TrainingJob(Record):
    """A training job as a base load on a site: it draws power, checkpoints, fails and restarts."""

    accelerator: Annotated[str, D(description="catalogue name; must be racked at the site")]
    accelerators: Annotated[Natural, D(description="number it holds")]
    mfu: Annotated[Ratio, D(description="model FLOPs utilisation while it runs")] = 0.4
    checkpoint_s: Annotated[NonNegative, D(description="seconds a checkpoint stops the job")] = 30.0
    checkpoint_every_s: Annotated[Positive | None, D(description="interval; Young's optimum where absent")] = None
    restart_s: Annotated[NonNegative, D(description="seconds from failure to running again")] = 300.0
    mtbf_hours_per_accelerator: Annotated[Positive, D(description="mean hours between failures of one accelerator's "
                                                                  "share (Llama-3: 50,600)")] = 50_600.0
    power_ratio: Annotated[Ratio, D(description="share of TDP drawn while training")] = 0.85


class Site(Record):
    """One data centre, or a share of one, as its owner declares it."""

    place: Annotated[str | None, D(description="catalogue place: gives coordinates, country, grid and weather")] = None
    lat: Annotated[Annotated[float, Meta(ge=-90, le=90)] | None, D(description="latitude; the place's where absent")] = None
    lon: Annotated[Annotated[float, Meta(ge=-180, le=180)] | None, D(description="longitude; the place's where "
                                                                                 "absent")] = None
    jurisdiction: Annotated[str | None, D(description="ISO country code where data sits; the place's where absent")] = None
    operator: Annotated[str, D(description="who operates it")] = "owner"
    operator_jurisdiction: Annotated[str | None, D(description="ISO country code whose law reaches the operator; the "
                                                               "jurisdiction where absent")] = None
    grid: Annotated[list[GridConnection], D(description="grid connections or phases")] = []
    contracts: Annotated[list[PowerContract], D(description="power contracts")] = []
    power_limits: Annotated[list[PowerLimit], D(description="limits on the draw during some hours")] = []
    redundancy: Annotated[Redundancy, D(description="of the power chain: N, N+1 or 2N")] = "N"
    power_modules: Annotated[Natural, D(description="modules of the power chain; with N+1 one of them is spare")] = 4
    chain_efficiency: Annotated[Annotated[float, Meta(gt=0, le=1)], D(description="UPS and distribution, meter to "
                                                                                 "server")] = 0.94
    carbon_g_per_kwh: Annotated[Hourly | None, D(description="grid carbon, flat or a series; the place's where "
                                                             "absent")] = None
    cooling: Annotated[Cooling, D(description="cooling plant")] = Cooling()
    floor_m2: Annotated[Positive | None, D(description="white space; none: as much as the racks take")] = None
    racks: Annotated[dict[Name, Rack], D(description="groups of racks, by name")] = {}
    training: Annotated[dict[Name, TrainingJob], D(description="training jobs as base load, by name")] = {}
    staff_cost_per_year: Annotated[NonNegative, D(description="people on site")] = 0.0
    facility_capex_per_kw: Annotated[NonNegative, D(description="shell, power and cooling, per kW of IT; 0 when rented")] = 0.0
    colocation_per_kw_month: Annotated[NonNegative, D(description="rent per kW of IT and month; 0 when owned")] = 0.0
    opex_per_year: Annotated[NonNegative, D(description="anything else a year: licences, insurance, transit")] = 0.0


class Link(Record):
    """A link between two sites, or a region and a site; what is not declared is computed from distance."""

    between: Annotated[tuple[str, str], D(description="two names of sites or regions")]
    rtt_ms: Annotated[NonNegative | None, D(description="round trip; measured or from distance where absent")] = None
    bandwidth_gbit_s: Annotated[Positive | None, D(description="usable bandwidth")] = None


class Region(Record):
    """Where users are."""

    place: Annotated[str | None, D(description="catalogue place")] = None
    lat: Annotated[Annotated[float, Meta(ge=-90, le=90)] | None, D(description="latitude; the place's where absent")] = None
    lon: Annotated[Annotated[float, Meta(ge=-180, le=180)] | None, D(description="longitude; the place's where "
                                                                                 "absent")] = None
    jurisdiction: Annotated[str | None, D(description="ISO country code; the place's where absent")] = None


class Architecture(Record):
    """A model's shape where the catalogue does not have it; the names are those of `formulas/shape.py`."""

    n_layers: Natural
    hidden: Natural
    n_heads: Natural
    n_kv_heads: Natural
    head_dim: Count = 0
    ffn: Count = 0
    moe_ffn: Count = 0
    n_experts: Count = 0
    experts_per_token: Count = 0
    n_shared_experts: Count = 0
    first_dense_layers: Count = 0
    moe_every: Natural = 1
    kv_lora_rank: Count = 0
    q_lora_rank: Count = 0
    qk_rope_head_dim: Count = 0
    qk_nope_head_dim: Count = 0
    v_head_dim: Count = 0
    sliding_window_tokens: Count = 0
    n_sliding_layers: Count = 0
    n_linear_layers: Count = 0
    vocab: Natural = 128_256
    tied_embeddings: bool = False


class Model(Record):
    """A model that tenants may call, under the name that they use."""

    catalog: Annotated[str | None, D(description="catalogue name, e.g. llama-3.1-8b")] = None
    architecture: Annotated[Architecture | None, D(description="its shape, where the catalogue does not have it")] = None
    max_context_tokens: Annotated[Natural | None, D(description="longest prompt plus answer; the catalogue's where "
                                                                "absent")] = None


class Replicas(Record):
    """How many replicas of a deployment a site runs."""

    min: Annotated[Count, D(description="always on")] = 1
    max: Annotated[Count | None, D(description="most that autoscaling may start; min where absent")] = None


class Deployment(Record):
    """A model on an accelerator, with its engine's settings, in one or more sites."""

    model: Annotated[str, D(description="name under `models`")]
    accelerator: Annotated[str, D(description="catalogue name; must be racked where it runs")]
    sites: Annotated[dict[str, Replicas], D(description="replicas by site")]
    engine: Annotated[Literal["vllm", "sglang", "trtllm", "llamacpp", "other"], D(description="serving engine; the twin "
                                                                                  "batches as vLLM V1 does")] = "vllm"
    precision: Annotated[Precision, D(description="of weights and matrix products")] = "bf16"
    kv_precision: Annotated[Precision | None, D(description="of the KV cache; bf16, or fp8 where the weights are fp8 "
                                                            "or fp4, where absent")] = None
    tp: Annotated[Natural, D(description="tensor parallel accelerators")] = 1
    pp: Annotated[Natural, D(description="pipeline stages")] = 1
    ep: Annotated[Natural, D(description="expert parallel accelerators")] = 1
    role: Annotated[Literal["mixed", "prefill", "decode"], D(description="prefill and decode replicas of one model in one "
                                                                         "site work together (disaggregation)")] = "mixed"
    max_num_seqs: Annotated[Natural, D(description="most sequences in a step")] = 256
    max_num_batched_tokens: Annotated[Natural, D(description="token budget of a step")] = 2048
    block_tokens: Annotated[Natural, D(description="tokens in a KV block")] = 16
    kv_blocks: Annotated[Natural | None, D(description="KV blocks of a replica; computed where absent")] = None
    memory_utilisation: Annotated[Annotated[float, Meta(gt=0, le=1)], D(description="share of accelerator memory the "
                                                                                   "engine may fill")] = 0.9
    prefix_caching: Annotated[bool, D(description="reuse KV of equal prompt prefixes")] = True
    cold_start_s: Annotated[NonNegative, D(description="from decision to first request: load weights, warm up")] = 90.0
    speed: Annotated[dict[str, float], D(description="calibrated constants of the speed model, as `baseload calibrate` "
                                                     "writes them")] = {}
    start: Annotated[date | None, D(description="first day it is served")] = None
    until: Annotated[date | None, D(description="first day it is gone")] = None


class Slo(Record):
    """What a tenant was promised; a request that misses a limit does not count as goodput."""

    ttft_ms: Annotated[Positive, D(description="time to first token, at the client")] = 2000.0
    tpot_ms: Annotated[Positive, D(description="time per output token after the first")] = 100.0
    e2e_ms: Annotated[Positive | None, D(description="whole answer; none: no promise")] = None
    attainment: Annotated[Annotated[float, Meta(gt=0, le=1)], D(description="share of requests that must meet it")] = 0.99


class PriceList(Record):
    """What a tenant pays, in the fleet's currency per million tokens."""

    input_per_mtok: Annotated[NonNegative, D(description="prompt tokens")] = 0.0
    cached_per_mtok: Annotated[NonNegative | None, D(description="prompt tokens found in the prefix cache; "
                                                                 "input_per_mtok where absent")] = None
    output_per_mtok: Annotated[NonNegative, D(description="answer tokens")] = 0.0


class Tenant(Record):
    """A customer, or a group of equal ones: what they ask for, where it may run, and what they pay."""

    share: Annotated[NonNegative, D(description="share of the demand; shares are normalised")] = 1.0
    regions: Annotated[dict[str, NonNegative], D(description="where their users are, with weights; all where empty")] = {}
    models: Annotated[dict[str, NonNegative], D(description="which models they call, with weights; all where empty")] = {}
    residency: Annotated[list[str], D(description="data may sit only in these jurisdictions (country codes, or the blocs "
                                                  "EU, EEA); anywhere where empty")] = []
    sovereignty: Annotated[list[str], D(description="the operator may be under the law of these only; any where empty")] = []
    slo: Annotated[Slo, D(description="promised latency")] = Slo()
    price: Annotated[PriceList, D(description="price list")] = PriceList()
    committed_per_month: Annotated[NonNegative, D(description="paid even when unused")] = 0.0
    budget_per_month: Annotated[Positive | None, D(description="most they will pay in a month; requests beyond are "
                                                               "refused where policy.admit looks at budgets")] = None
    priority: Annotated[Annotated[int, Meta(ge=0, le=9)], D(description="9 is served last when power or capacity is "
                                                                       "short, 0 first")] = 5


class Generator(Record):
    """Made-up demand, where there is no trace."""

    kind: Annotated[Literal["poisson", "gamma", "mmpp", "diurnal", "closed_loop"], D(description="arrival process")]
    requests_per_s: Annotated[Positive, D(description="mean rate (not for closed_loop)")] = 1.0
    duration_s: Annotated[Positive, D(description="length of the run")] = 3600.0
    requests: Annotated[Natural | None, D(description="stop after this many instead")] = None
    cv: Annotated[Positive, D(description="coefficient of variation of gamma arrivals; 1 is Poisson")] = 1.0
    burst_factor: Annotated[Annotated[float, Meta(ge=1)], D(description="mmpp: rate in a burst over the mean rate")] = 4.0
    burst_s: Annotated[Positive, D(description="mmpp: mean length of a burst")] = 30.0
    burst_ratio: Annotated[Annotated[float, Meta(gt=0, lt=1)], D(description="mmpp: share of time in bursts")] = 0.1
    daily_swing: Annotated[Ratio, D(description="diurnal: (peak - mean) / mean over a day")] = 0.6
    weekend_ratio: Annotated[Ratio, D(description="diurnal: weekend rate over weekday rate")] = 0.7
    peak_hour_utc: Annotated[NonNegative, D(description="diurnal: hour of the daily peak")] = 14.0
    users: Annotated[Natural, D(description="closed_loop: concurrent users")] = 32
    think_s: Annotated[NonNegative, D(description="closed_loop: pause between answer and next request")] = 0.0
    input_tokens: Annotated[Positive, D(description="mean prompt, where no lengths are taken from a trace")] = 1024.0
    output_tokens: Annotated[Positive, D(description="mean answer")] = 256.0
    length_cv: Annotated[NonNegative, D(description="coefficient of variation of both (lognormal); 0: fixed")] = 1.0
    lengths_from: Annotated[str | None, D(description="trace whose lengths are resampled")] = None
    prefixes: Annotated[Count, D(description="number of shared prompt prefixes; 0: none")] = 0
    prefix_tokens: Annotated[Count, D(description="tokens of a shared prefix")] = 0


class Demand(Record):
    """What is asked of the fleet: a trace, or a generator."""

    trace: Annotated[str | None, D(description="azure-conv, azure-code, or a file (Azure CSV, Mooncake JSONL, BurstGPT CSV, "
                                               "plain CSV or Parquet), relative to the fleet file")] = None
    generator: Annotated[Generator | None, D(description="made-up demand")] = None
    scale: Annotated[Positive, D(description="load factor: 2 sends the trace twice as fast")] = 1.0
    start: Annotated[date | None, D(description="day of the year on which the run begins (for weather, price, carbon, "
                                                "in service); 15 June 2023 where absent")] = None
    start_hour_utc: Annotated[Annotated[float, Meta(ge=0, lt=24)], D(description="hour at which the run begins")] = 12.0


class Policy(Record):
    """Which decisions are taken by which rule; a name, or an operator's own function as `file.py:function`."""

    route: Annotated[str, D(description="which replica serves a request")] = "least_outstanding"
    admit: Annotated[str, D(description="whether a request is taken at all")] = "always"
    scale: Annotated[str, D(description="how many replicas a deployment runs")] = "fixed"
    cap: Annotated[str, D(description="what happens at a site's power limit")] = "by_priority"
    digest: Annotated[dict[str, str], D(description="SHA-256 of each operator's own policy file, by file name")] = {}
    observe_every_s: Annotated[Positive, D(description="how often engines' queues are scraped")] = 1.0
    control_every_s: Annotated[Positive, D(description="how often scaling and power caps are decided")] = 10.0
    detect_s: Annotated[NonNegative, D(description="from a failure to the gateway knowing")] = 2.0
    retries: Annotated[Annotated[int, Meta(ge=0, le=5)], D(description="tries after the first, before a first byte")] = 2
    max_wait_s: Annotated[Positive | None, D(description="a queued request is given up after this; none: never")] = None
    target_utilisation: Annotated[Annotated[float, Meta(gt=0, le=1)], D(description="scale: wanted share of "
                                                                                   "max_num_seqs in flight")] = 0.6
    scale_down_s: Annotated[NonNegative, D(description="scale: wait before a replica is let go")] = 300.0
    admit_factor: Annotated[Positive, D(description="admit: refuse when the expected TTFT exceeds the SLO by this "
                                                    "factor")] = 1.0
    load_guard: Annotated[Annotated[float, Meta(ge=1)], D(description="prefix_affine: leave the warm replica when its load "
                                                                      "exceeds the mean by this factor")] = 1.5


class Failures(Record):
    """How often things break and how long they stay broken; 0 turns a kind off. Exponential, seeded."""

    replica_mtbf_h: Annotated[NonNegative, D(description="engine crash of one replica")] = 0.0
    replica_mttr_s: Annotated[Positive, D(description="restart of an engine")] = 120.0
    server_mtbf_h: Annotated[NonNegative, D(description="one server (Llama-3: about 6,300)")] = 0.0
    server_mttr_s: Annotated[Positive, D(description="repair or swap of a server")] = 4 * 3600.0
    site_mtbf_h: Annotated[NonNegative, D(description="whole site: grid, cooling, network")] = 0.0
    site_mttr_s: Annotated[Positive, D(description="return of a site")] = 3600.0
    events: Annotated[list[Outage], D(description="outages at known times, beside the random ones")] = []


class Outage(Record):
    """A site that is down at a known time: a drill, a what-if."""

    site: str
    start_s: NonNegative
    duration_s: Positive


class Money(Record):
    """One currency for the whole file, and how capital turns into a cost per hour."""

    currency: Annotated[str, D(description="ISO code; every amount in the file is in it")] = "USD"
    usd_rate: Annotated[Positive, D(description="units of the currency per US dollar, for catalogue prices")] = 1.0
    wacc: Annotated[Ratio, D(description="yearly cost of capital")] = 0.08
    accelerator_life_years: Annotated[Positive, D(description="write-off of racks")] = 5.0
    facility_life_years: Annotated[Positive, D(description="write-off of buildings and plant")] = 15.0
    maintenance_ratio_per_year: Annotated[Ratio, D(description="spares and support, of rack capex")] = 0.03
    opex_per_year: Annotated[NonNegative, D(description="cost of the whole company that no site carries")] = 0.0
    carbon_price_per_t: Annotated[NonNegative, D(description="price of a tonne of CO2, where paid or shadowed")] = 0.0
    embodied_kg_per_accelerator: Annotated[NonNegative, D(description="embodied CO2 of an accelerator with its share of the "
                                                                      "server (EcoLogits: 164 + 5700/8)")] = 876.0


class Gateway(Record):
    """Where the door stands."""

    site: Annotated[str | None, D(description="site whose network the gateway stands in; the first one where "
                                              "absent")] = None


class Fleet(Record):
    """The whole file. `sites`, `models`, `deployments`, `tenants`, `regions` are keyed by name."""

    baseload: Annotated[Literal[1], D(description="version of this format")]
    name: Annotated[Name, D(description="name of the fleet")]
    sites: Annotated[dict[Name, Site], D(description="data centres")]
    models: Annotated[dict[Name, Model], D(description="models that tenants call")]
    deployments: Annotated[dict[Name, Deployment], D(description="what runs where")]
    regions: Annotated[dict[Name, Region], D(description="where users are; one region at the gateway where empty")] = {}
    tenants: Annotated[dict[Name, Tenant], D(description="customers; one anonymous tenant where empty")] = {}
    links: Annotated[list[Link], D(description="measured or rented links")] = []
    demand: Annotated[Demand, D(description="what is asked")] = Demand()
    policy: Annotated[Policy, D(description="rules by name")] = Policy()
    failures: Annotated[Failures, D(description="what breaks")] = Failures()
    money: Annotated[Money, D(description="currency and capital")] = Money()
    gateway: Annotated[Gateway, D(description="the door")] = Gateway()
