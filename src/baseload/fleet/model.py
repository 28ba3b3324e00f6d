"""What an owner declares: the fleet file as frozen records, one field a key, one spelling everywhere.

Reading and line numbers are in `load.py`, what must hold between records in `check.py`, known hardware, models and
places in `catalog.py`. Nothing here computes: prices, power and speed are `formulas/`.
Keys carry their units. Every thing that comes and goes has a from and an until, so `fleet.on(date)` is one function.
"""

from __future__ import annotations

from datetime import date
from typing import Annotated, Literal

from msgspec import Meta

from baseload.fleet.grid import GridStage, RatePerYear
from baseload.fleet.kinds import (
    Celsius,
    CoolingType,
    Count,
    Country,
    D,
    Hours,
    LifeYears,
    Megawatts,
    Milliseconds,
    Name,
    Natural,
    NonNegative,
    OneUp,
    OverZero,
    Parallel,
    Positive,
    PositiveHours,
    PositiveMegawatts,
    PositiveMilliseconds,
    PositiveSeconds,
    PositiveTokens,
    PositiveWidth,
    Precision,
    Ratio,
    Record,
    Redundancy,
    Seconds,
    Width,
    ZeroUp,
    ZeroUpInt,
)
from baseload.fleet.live import Serve
from baseload.fleet.planning import Plan


class Series(Record, frozen=True):
    """An hourly series instead of a flat number: from the catalogue, or from a CSV or Parquet file."""

    place: Annotated[str | None, D("catalogue place whose hourly series is used")] = None
    file: Annotated[
        str | None,
        D("CSV or Parquet, one value an hour from 1 January 00:00 UTC; relative to the fleet file"),
    ] = None
    column: Annotated[str | None, D("column of the file; the last one unless said")] = None
    scale: Annotated[OverZero, D("factor on every value, e.g. a rate of exchange", le=1e6)] = 1.0
    add: Annotated[float, D("added to every value after scaling, e.g. grid fees per MWh", ge=-1e6, le=1e6)] = 0.0


Hourly = Annotated[float, Meta(ge=-1e6, le=1e6)] | Series
HourlyCelsius = Celsius | Series
HourlyCarbon = Annotated[float, Meta(ge=0, le=5000)] | Series


class GridConnection(Record, frozen=True):
    """A connection to the grid, or a phase of one, with the dates that turn announced into usable."""

    power_mw: Annotated[PositiveMegawatts, D("MW of this phase, at the meter")]
    announced: Annotated[date | None, D("day it was announced")] = None
    permitted: Annotated[date | None, D("day the permit was granted")] = None
    contracted: Annotated[date | None, D("day the grid agreement was signed")] = None
    energised: Annotated[date | None, D("day power flowed; none: not yet")] = None
    until: Annotated[date | None, D("first day it is gone")] = None
    stages: Annotated[
        dict[Name, GridStage],
        D(
            "what it takes, by name: land, load_study, agreement, substation, transformer, line, build, "
            "commissioning; without any, and without `energised`, all of them at their priors"
        ),
    ] = {}
    withdrawn_per_year: Annotated[
        RatePerYear | None, D("rate at which such phases are given up; the prior by age where absent")
    ] = None
    certainty: Annotated[Ratio | None, D("chance that it is energised at all, instead of a rate of withdrawal")] = None


class PowerContract(Record, frozen=True):
    """What is bought over the connections: how much, at what price, from when until when."""

    power_mw: Annotated[PositiveMegawatts, D("contracted MW at the meter")]
    price_per_mwh: Annotated[
        Hourly | None,
        D("energy price, all fees included, in the fleet's currency; flat or a series; the place's where absent"),
    ] = None
    demand_charge_per_kw_month: Annotated[NonNegative, D("on the month's highest kW")] = 0.0
    minimum_bill_ratio: Annotated[Ratio, D("share of power_mw billed even when unused")] = 0.0
    ratchet_ratio: Annotated[Ratio, D("share of the highest peak of 11 months billed at least")] = 0.0
    green_ratio: Annotated[
        Ratio, D("share covered by certificates of origin or a PPA: counts in market-based carbon only")
    ] = 0.0
    start: Annotated[date | None, D("first day in force")] = None
    until: Annotated[date | None, D("first day it is gone")] = None


class PowerLimit(Record, frozen=True):
    """A limit on the site's draw during some hours of the run: grid curtailment, maintenance, a flexible contract."""

    start_h: Annotated[Hours, D("hours after the run's start")]
    until_h: Annotated[PositiveHours, D("hours after the run's start")]
    power_mw: Annotated[Megawatts, D("MW at the meter that may be drawn meanwhile")]
    every_h: Annotated[PositiveHours | None, D("repeats with this period, e.g. 24")] = None


class Cooling(Record, frozen=True):
    """How heat leaves, and how much of it can."""

    type: Annotated[CoolingType, D("air, direct_to_chip or immersion")] = "air"
    capacity_mw: Annotated[
        PositiveMegawatts | None,
        D("IT MW that can be cooled at the design wet bulb; none: follows the energised power"),
    ] = None
    wetbulb_c: Annotated[HourlyCelsius | None, D("outdoor wet bulb, flat or a series; the place's where absent")] = None
    design_wetbulb_c: Annotated[Celsius | None, D("hot hour that the plant must survive; the place's where absent")] = (
        None
    )
    water_price_per_m3: Annotated[NonNegative, D("price of water")] = 0.0
    pue: Annotated[Annotated[float, Meta(ge=1, le=10)] | None, D("fixed PUE instead of the formula")] = None


class Rack(Record, frozen=True):
    """A group of equal racks of one accelerator."""

    accelerator: Annotated[str, D("catalogue name, e.g. h100-sxm")]
    accelerators_per_rack: Annotated[OneUp, D("accelerators in one rack", le=10_000)]
    racks: Annotated[OneUp, D("number of racks", le=1_000_000)] = 1
    accelerators_per_server: Annotated[
        Natural | None, D("what one server failure takes; the catalogue's where absent")
    ] = None
    rack_kw: Annotated[Positive | None, D("kW that one rack may draw; none: no limit of its own")] = None
    liquid_ratio: Annotated[Ratio | None, D("share of heat taken by liquid; from the cooling type where absent")] = None
    area_m2: Annotated[Positive, D("floor that one rack takes with its aisles")] = 3.0
    in_service: Annotated[date | None, D("first day in service; none: already")] = None
    until: Annotated[date | None, D("first day it is gone")] = None
    capex_per_accelerator: Annotated[
        NonNegative | None, D("price with its share of server and network; the catalogue's where absent")
    ] = None
    rent_per_accelerator_hour: Annotated[
        NonNegative | None, D("rented instead of bought: price an hour, used or not")
    ] = None


class TrainingJob(Record, frozen=True):
    """A training job as a base load on a site: it draws power, checkpoints, fails and restarts."""

    accelerator: Annotated[str, D("catalogue name; must be racked at the site")]
    accelerators: Annotated[Natural, D("number it holds")]
    mfu: Annotated[Ratio, D("model FLOPs utilisation while it runs")] = 0.4
    checkpoint_s: Annotated[Seconds, D("seconds a checkpoint stops the job")] = 30.0
    checkpoint_every_s: Annotated[PositiveSeconds | None, D("interval; Young's optimum where absent")] = None
    restart_s: Annotated[Seconds, D("seconds from failure to running again")] = 300.0
    mtbf_hours_per_accelerator: Annotated[
        Positive, D("mean hours between failures of one accelerator's share (Llama-3: 50,600)")
    ] = 50_600.0
    power_ratio: Annotated[Ratio, D("share of TDP drawn while training")] = 0.85


class Site(Record, frozen=True):
    """One data centre, or a share of one, as its owner declares it."""

    place: Annotated[str | None, D("catalogue place: gives coordinates, country, grid and weather")] = None
    lat: Annotated[Annotated[float, Meta(ge=-90, le=90)] | None, D("latitude; the place's where absent")] = None
    lon: Annotated[Annotated[float, Meta(ge=-180, le=180)] | None, D("longitude; the place's where absent")] = None
    jurisdiction: Annotated[Country | None, D("ISO country code where data sits; the place's where absent")] = None
    operator: Annotated[str, D("who operates it")] = "owner"
    operator_jurisdiction: Annotated[
        Country | None, D("ISO country code whose law reaches the operator; the jurisdiction where absent")
    ] = None
    grid: Annotated[list[GridConnection], D("grid connections or phases")] = []
    contracts: Annotated[list[PowerContract], D("power contracts")] = []
    power_limits: Annotated[list[PowerLimit], D("limits on the draw during some hours")] = []
    redundancy: Annotated[Redundancy, D("of the power chain: N, N+1 or 2N")] = "N"
    parked_power_ratio: Annotated[
        Ratio,
        D(
            "share of their idle power that racked accelerators draw while no replica or "
            "job runs on them; 0: switched off"
        ),
    ] = 1.0
    power_modules: Annotated[Natural, D("modules of the power chain; with N+1 one of them is spare")] = 4
    chain_efficiency: Annotated[float, D("UPS and distribution, meter to server", ge=0.1, le=1)] = 0.94
    carbon_g_per_kwh: Annotated[HourlyCarbon | None, D("grid carbon, flat or a series; the place's where absent")] = (
        None
    )
    cooling: Annotated[Cooling, D("cooling plant")] = Cooling()
    floor_m2: Annotated[Positive | None, D("white space; none: as much as the racks take")] = None
    racks: Annotated[dict[Name, Rack], D("groups of racks, by name")] = {}
    training: Annotated[dict[Name, TrainingJob], D("training jobs as base load, by name")] = {}
    staff_cost_per_year: Annotated[NonNegative, D("people on site")] = 0.0
    facility_capex_per_kw: Annotated[
        NonNegative, D("building and plant, per kW the racks draw at full load; 0 when rented")
    ] = 0.0
    colocation_per_kw_month: Annotated[
        NonNegative, D("rent per month and kW the racks draw at full load; 0 when owned")
    ] = 0.0
    opex_per_year: Annotated[NonNegative, D("anything else a year: licences, insurance, transit")] = 0.0


class Link(Record, frozen=True):
    """A link between two sites, or a region and a site; what is not declared is computed from distance."""

    between: Annotated[tuple[str, str], D("two names of sites or regions")]
    rtt_ms: Annotated[Milliseconds | None, D("round trip; measured or from distance where absent")] = None
    bandwidth_gbit_s: Annotated[Positive | None, D("usable bandwidth")] = None


class Region(Record, frozen=True):
    """Where users are."""

    place: Annotated[str | None, D("catalogue place")] = None
    lat: Annotated[Annotated[float, Meta(ge=-90, le=90)] | None, D("latitude; the place's where absent")] = None
    lon: Annotated[Annotated[float, Meta(ge=-180, le=180)] | None, D("longitude; the place's where absent")] = None
    jurisdiction: Annotated[Country | None, D("ISO country code; the place's where absent")] = None


class Architecture(Record, frozen=True):
    """A model's shape where the catalogue does not have it; the names are those of `formulas/shape.py`."""

    n_layers: Annotated[PositiveWidth, D("layers")]
    hidden: Annotated[PositiveWidth, D("width of the residual stream")]
    n_heads: Annotated[PositiveWidth, D("query heads")]
    n_kv_heads: Annotated[PositiveWidth, D("key and value heads (GQA); as n_heads for plain attention")]
    head_dim: Annotated[Width, D("width of a head; 0: hidden / n_heads")] = 0
    ffn: Annotated[Width, D("width of a dense feed-forward layer")] = 0
    moe_ffn: Annotated[Width, D("width of one routed expert")] = 0
    n_experts: Annotated[Width, D("routed experts in a layer; 0: a dense model")] = 0
    experts_per_token: Annotated[Width, D("routed experts that a token passes through")] = 0
    n_shared_experts: Annotated[Width, D("experts that every token passes through")] = 0
    first_dense_layers: Annotated[Width, D("layers at the start that are dense in a mixture model")] = 0
    moe_every: Annotated[PositiveWidth, D("2: every second layer is a mixture")] = 1
    kv_lora_rank: Annotated[Width, D("latent attention (MLA): width of the cached latent; 0: none")] = 0
    q_lora_rank: Annotated[Width, D("latent attention: width of the query's latent; 0: none")] = 0
    qk_rope_head_dim: Annotated[Width, D("latent attention: rotary part of a key head")] = 0
    qk_nope_head_dim: Annotated[Width, D("latent attention: the other part of a key head")] = 0
    v_head_dim: Annotated[Width, D("latent attention: width of a value head")] = 0
    sliding_window_tokens: Annotated[Width, D("tokens that a sliding-window layer looks back")] = 0
    n_sliding_layers: Annotated[Width, D("layers with a sliding window")] = 0
    n_linear_layers: Annotated[Width, D("layers with a state of constant size instead of KV")] = 0
    vocab: Annotated[PositiveWidth, D("tokens in the vocabulary")] = 128_256
    tied_embeddings: Annotated[bool, D("the embedding serves as output head")] = False


class Model(Record, frozen=True):
    """A model that tenants may call, under the name that they use."""

    catalog: Annotated[str | None, D("catalogue name, e.g. llama-3.1-8b")] = None
    architecture: Annotated[Architecture | None, D("its shape, where the catalogue does not have it")] = None
    max_context_tokens: Annotated[Natural | None, D("longest prompt plus answer; the catalogue's where absent")] = None


class Replicas(Record, frozen=True):
    """How many replicas of a deployment a site runs."""

    min: Annotated[ZeroUpInt, D("always on", le=100_000)] = 1
    max: Annotated[Count | None, D("most that autoscaling may start; min where absent")] = None


class Deployment(Record, frozen=True):
    """A model on an accelerator, with its engine's settings, in one or more sites."""

    model: Annotated[str, D("name under `models`")]
    accelerator: Annotated[str, D("catalogue name; must be racked where it runs")]
    sites: Annotated[dict[str, Replicas], D("replicas by site")]
    engine: Annotated[
        Literal["vllm", "sglang", "trtllm", "llamacpp", "other"],
        D("serving engine; the twin batches as vLLM V1 does"),
    ] = "vllm"
    precision: Annotated[Precision, D("of weights and matrix products")] = "bf16"
    kv_precision: Annotated[
        Precision | None, D("of the KV cache; bf16, or fp8 where the weights are fp8 or fp4, where absent")
    ] = None
    tp: Annotated[Parallel, D("tensor parallel accelerators")] = 1
    pp: Annotated[Parallel, D("pipeline stages")] = 1
    ep: Annotated[Parallel, D("expert parallel accelerators")] = 1
    role: Annotated[
        Literal["mixed", "prefill", "decode"],
        D("prefill and decode replicas of one model in one site work together (disaggregation)"),
    ] = "mixed"
    max_num_seqs: Annotated[OneUp, D("most sequences in a step", le=65_536)] = 256
    max_num_batched_tokens: Annotated[OneUp, D("token budget of a step", le=1_048_576)] = 2048
    block_tokens: Annotated[OneUp, D("tokens in a KV block", le=4096)] = 16
    kv_blocks: Annotated[Natural | None, D("KV blocks of a replica; computed where absent")] = None
    memory_utilisation: Annotated[float, D("share of accelerator memory the engine may fill", ge=0.01, le=1)] = 0.9
    prefix_caching: Annotated[bool, D("reuse KV of equal prompt prefixes")] = True
    cold_start_s: Annotated[Seconds, D("from decision to first request: load weights, warm up")] = 90.0
    speed: Annotated[
        dict[str, float], D("calibrated constants of the speed model, as `baseload calibrate` writes them")
    ] = {}
    start: Annotated[date | None, D("first day it is served")] = None
    until: Annotated[date | None, D("first day it is gone")] = None


class Slo(Record, frozen=True):
    """What a tenant was promised; a request that misses a limit does not count as goodput."""

    ttft_ms: Annotated[PositiveMilliseconds, D("time to first token, at the client")] = 2000.0
    tpot_ms: Annotated[PositiveMilliseconds, D("time per output token after the first")] = 100.0
    e2e_ms: Annotated[PositiveMilliseconds | None, D("whole answer; none: no promise")] = None
    attainment: Annotated[float, D("share of requests that must meet it", ge=0.001, le=1)] = 0.99


class PriceList(Record, frozen=True):
    """What a tenant pays, in the fleet's currency per million tokens."""

    input_per_mtok: Annotated[NonNegative, D("prompt tokens")] = 0.0
    cached_per_mtok: Annotated[
        NonNegative | None, D("prompt tokens found in the prefix cache; input_per_mtok where absent")
    ] = None
    output_per_mtok: Annotated[NonNegative, D("answer tokens")] = 0.0


class Tenant(Record, frozen=True):
    """A customer, or a group of equal ones: what they ask for, where it may run, and what they pay."""

    share: Annotated[NonNegative, D("share of the demand; shares are normalised")] = 1.0
    regions: Annotated[dict[str, NonNegative], D("where their users are, with weights; all where empty")] = {}
    models: Annotated[dict[str, NonNegative], D("which models they call, with weights; all where empty")] = {}
    residency: Annotated[
        list[str],
        D("data may sit only in these jurisdictions (country codes, or the blocs EU, EEA); anywhere where empty"),
    ] = []
    sovereignty: Annotated[list[str], D("the operator may be under the law of these only; any where empty")] = []
    slo: Annotated[Slo, D("promised latency")] = Slo()
    price: Annotated[PriceList, D("price list")] = PriceList()
    committed_per_month: Annotated[NonNegative, D("paid even when unused")] = 0.0
    budget_per_month: Annotated[
        Positive | None,
        D("most they will pay in a month; requests beyond are refused where policy.admit looks at budgets"),
    ] = None
    priority: Annotated[
        int, D("0 keeps being served when power is short, 9 is the first to be turned away", ge=0, le=9)
    ] = 5


class Generator(Record, frozen=True):
    """Made-up demand, where there is no trace."""

    kind: Annotated[Literal["poisson", "gamma", "mmpp", "diurnal", "closed_loop"], D("arrival process")]
    requests_per_s: Annotated[OverZero, D("mean rate (not for closed_loop)", le=1e7)] = 1.0
    duration_s: Annotated[PositiveSeconds, D("length of the run")] = 3600.0
    requests: Annotated[Natural | None, D("stop after this many instead")] = None
    cv: Annotated[OverZero, D("coefficient of variation of gamma arrivals; 1 is Poisson", le=100)] = 1.0
    burst_factor: Annotated[float, D("mmpp: rate in a burst over the mean rate", ge=1, le=1e6)] = 4.0
    burst_s: Annotated[PositiveSeconds, D("mmpp: mean length of a burst")] = 30.0
    burst_ratio: Annotated[float, D("mmpp: share of time in bursts", ge=1e-6, lt=1)] = 0.1
    daily_swing: Annotated[Ratio, D("diurnal: (peak - mean) / mean over a day")] = 0.6
    weekend_ratio: Annotated[Ratio, D("diurnal: weekend rate over weekday rate")] = 0.7
    peak_hour_utc: Annotated[ZeroUp, D("diurnal: hour of the daily peak", lt=24)] = 14.0
    users: Annotated[OneUp, D("closed_loop: concurrent users", le=1_000_000)] = 32
    think_s: Annotated[Seconds, D("closed_loop: pause between answer and next request")] = 0.0
    input_tokens: Annotated[PositiveTokens, D("mean prompt, where no lengths are taken from a trace")] = 1024.0
    output_tokens: Annotated[PositiveTokens, D("mean answer")] = 256.0
    length_cv: Annotated[ZeroUp, D("coefficient of variation of both (lognormal); 0: fixed", le=20)] = 1.0
    lengths_from: Annotated[str | None, D("trace whose lengths are resampled")] = None
    prefixes: Annotated[ZeroUpInt, D("number of shared prompt prefixes; 0: none", le=10_000_000)] = 0
    prefix_tokens: Annotated[ZeroUpInt, D("tokens of a shared prefix", le=10_000_000)] = 0


class Demand(Record, frozen=True):
    """What is asked of the fleet: a trace, or a generator."""

    trace: Annotated[
        str | None,
        D(
            "azure-conv, azure-code, or a file (Azure CSV, Mooncake JSONL, BurstGPT CSV, "
            "plain CSV or Parquet), relative to the fleet file"
        ),
    ] = None
    generator: Annotated[Generator | None, D("made-up demand")] = None
    scale: Annotated[OverZero, D("load factor: 2 sends the trace twice as fast", le=1e6)] = 1.0
    start: Annotated[
        date | None,
        D("day on which the run begins (for weather, price, carbon, in service); 15 June 2023 where absent"),
    ] = None
    start_hour_utc: Annotated[float, D("hour at which the run begins", ge=0, lt=24)] = 12.0


class Policy(Record, frozen=True):
    """Which decisions are taken by which rule; a name, or an operator's own function as `file.py:function`."""

    route: Annotated[str, D("which replica serves a request")] = "least_outstanding"
    admit: Annotated[str, D("whether a request is taken at all")] = "always"
    scale: Annotated[str, D("how many replicas a deployment runs")] = "fixed"
    cap: Annotated[str, D("what happens at a site's power limit")] = "by_priority"
    digest: Annotated[dict[str, str], D("SHA-256 of each operator's own policy file, by file name")] = {}
    observe_every_s: Annotated[PositiveSeconds, D("how often engines' queues are scraped")] = 1.0
    control_every_s: Annotated[PositiveSeconds, D("how often scaling and power caps are decided")] = 10.0
    detect_s: Annotated[Seconds, D("from a failure to the gateway knowing")] = 2.0
    retries: Annotated[int, D("tries after the first, before a first byte", ge=0, le=5)] = 2
    max_wait_s: Annotated[PositiveSeconds | None, D("a queued request is given up after this; none: never")] = None
    target_utilisation: Annotated[float, D("scale: wanted share of max_num_seqs in flight", ge=0.001, le=1)] = 0.6
    scale_down_s: Annotated[Seconds, D("scale: wait before a replica is let go")] = 300.0
    admit_factor: Annotated[Positive, D("admit: refuse when the expected TTFT exceeds the SLO by this factor")] = 1.0
    load_guard: Annotated[
        float,
        D(
            "prefix_affine: leave the warm replica when its load exceeds the mean by this factor",
            ge=1,
            le=1e6,
        ),
    ] = 1.5


class Failures(Record, frozen=True):
    """How often things break and how long they stay broken; 0 turns a kind off. Exponential, seeded."""

    replica_mtbf_h: Annotated[Hours, D("engine crash of one replica")] = 0.0
    replica_mttr_s: Annotated[PositiveSeconds, D("restart of an engine")] = 120.0
    server_mtbf_h: Annotated[Hours, D("one server (Llama-3: about 6,300)")] = 0.0
    server_mttr_s: Annotated[PositiveSeconds, D("repair or swap of a server")] = 4 * 3600.0
    site_mtbf_h: Annotated[Hours, D("whole site: grid, cooling, network")] = 0.0
    site_mttr_s: Annotated[PositiveSeconds, D("return of a site")] = 3600.0
    events: Annotated[list[Outage], D("outages at known times, beside the random ones")] = []


class Outage(Record, frozen=True):
    """A site that is down at a known time: a drill, a what-if."""

    site: Annotated[str, D("name under `sites`")]
    start_s: Annotated[Seconds, D("seconds after the run's start")]
    duration_s: Annotated[PositiveSeconds, D("how long it is down")]


class Money(Record, frozen=True):
    """One currency for the whole file, and how capital turns into a cost per hour."""

    currency: Annotated[str, D("ISO code; every amount in the file is in it", pattern="^[A-Z]{3}$")] = "USD"
    usd_rate: Annotated[Positive, D("units of the currency per US dollar, for catalogue prices")] = 1.0
    wacc: Annotated[Ratio, D("yearly cost of capital")] = 0.08
    accelerator_life_years: Annotated[LifeYears, D("write-off of racks")] = 5.0
    facility_life_years: Annotated[LifeYears, D("write-off of buildings and plant")] = 15.0
    maintenance_ratio_per_year: Annotated[
        Ratio, D("spares and support, of rack capex; a plan takes its first day's price, whenever a rack is bought")
    ] = 0.03
    opex_per_year: Annotated[NonNegative, D("cost of the whole company that no site carries")] = 0.0
    carbon_price_per_t: Annotated[NonNegative, D("price of a tonne of CO2, where paid or shadowed")] = 0.0
    embodied_kg_per_accelerator: Annotated[
        NonNegative,
        D("embodied CO2 of an accelerator with its share of the server (EcoLogits: 164 + 5700/8)"),
    ] = 876.0


class Gateway(Record, frozen=True):
    """Where the door stands."""

    site: Annotated[str | None, D("site whose network the gateway stands in; the first one where absent")] = None


class Fleet(Record, frozen=True):
    """The whole file. `sites`, `models`, `deployments`, `tenants`, `regions` are keyed by name."""

    baseload: Annotated[Literal[1], D("version of this format")]
    name: Annotated[Name, D("name of the fleet")]
    sites: Annotated[dict[Name, Site], D("data centres")]
    models: Annotated[dict[Name, Model], D("models that tenants call")]
    deployments: Annotated[dict[Name, Deployment], D("what runs where")]
    regions: Annotated[dict[Name, Region], D("where users are; one region at the gateway where empty")] = {}
    tenants: Annotated[dict[Name, Tenant], D("customers; one anonymous tenant where empty")] = {}
    links: Annotated[list[Link], D("measured or rented links")] = []
    demand: Annotated[Demand, D("what is asked")] = Demand()
    policy: Annotated[Policy, D("rules by name")] = Policy()
    failures: Annotated[Failures, D("what breaks")] = Failures()
    money: Annotated[Money, D("currency and capital")] = Money()
    gateway: Annotated[Gateway, D("the door")] = Gateway()
    serve: Annotated[Serve, D("the live side")] = Serve()
    plan: Annotated[Plan | None, D("the coming years: what may be decided, and within which limits")] = None
