"""Every figure of the report: name, unit, formula, what it reads, and which way is better.

`docs/report.md` holds the same table (a test keeps them in step), and `compare.py` takes better and worse from here.
"""

from __future__ import annotations

from typing import Literal, NamedTuple

import msgspec

from baseload.report.model import Cost, Energy, Footprint, Hardware, Part, Service

Better = Literal["higher", "lower", ""]


class Kpi(NamedTuple):
    """One figure; `reads` names columns (table.column), keys of the fleet file (`fleet:`), of meta.json (`meta:`)."""

    name: str
    unit: str
    better: Better
    formula: str
    reads: str


def _latency(name: str, formula: str, reads: str) -> list[Kpi]:
    words = {
        "mean": "mean",
        "p50": "smallest value that half of the requests do not exceed",
        "p90": "the same for 90 %",
        "p99": "the same for 99 %",
    }
    return [Kpi(f"{name}_s_{statistic}", "s", "lower", f"{formula}; {how}", reads) for statistic, how in words.items()]


_TIMES = "requests.arrival_ns, requests.first_token_ns, requests.rtt_ns"
_SLO = "fleet:tenants.slo, requests.finish_ns, requests.status, " + _TIMES
_BINS = "sites.inference_j, sites.training_j, sites.length_ns, fleet:cooling.wetbulb_c, fleet:cooling.pue"
_SERVED = "requests.input_tokens, requests.output_tokens, requests.status"
_SHARES = (
    "replicas.busy_ns, replicas.accelerators, sites.inference_j, sites.idle_j, sites.training_j, fleet:sites.training"
)

SERVICE = (
    Kpi("requests_in", "requests", "", "arrived in the whole run", "requests.status"),
    Kpi("served", "requests", "higher", "answered in full", "requests.status"),
    Kpi("refused", "requests", "lower", "turned away before any work", "requests.status"),
    Kpi("failed", "requests", "lower", "begun or waited, and given up", "requests.status"),
    Kpi("unfinished", "requests", "", "still running when the run ended", "requests.status"),
    *_latency("ttft", "first_token − arrival + rtt, at the client; served, after warm-up", _TIMES),
    *_latency(
        "tpot", "(finish − first_token) / (output_tokens − 1); served with 2 tokens or more, after warm-up",
        "requests.first_token_ns, requests.finish_ns, requests.output_tokens",
    ),
    *_latency("e2e", "finish − arrival + rtt, at the client; served, after warm-up", _TIMES + ", requests.finish_ns"),
    Kpi("slo_attainment_ratio", "", "higher",
        "requests within every limit of their tenant's SLO / (served + refused + failed + unfinished that already "
        "missed TTFT), after warm-up", _SLO),
    Kpi("slo_attainment_served_ratio", "", "higher", "the same / served", _SLO),
    Kpi("goodput_requests_per_s", "1/s", "higher", "requests that met their SLO / measured time", _SLO),
    Kpi("goodput_tokens_per_s", "tokens/s", "higher", "their input and output tokens / measured time",
        _SLO + ", requests.input_tokens, requests.output_tokens"),
    Kpi("requests_per_s", "1/s", "higher", "served after warm-up / measured time",
        "requests.status, requests.arrival_ns"),
    Kpi("input_tokens_per_s", "tokens/s", "higher", "their prompt tokens / measured time", _SERVED),
    Kpi("output_tokens_per_s", "tokens/s", "higher", "their answer tokens / measured time", _SERVED),
    Kpi("input_tokens", "tokens", "higher", "prompt tokens of all served requests", _SERVED),
    Kpi("cached_tokens", "tokens", "", "of these found in the prefix cache",
        "requests.cached_tokens, requests.status"),
    Kpi("output_tokens", "tokens", "higher", "answer tokens of all served requests", _SERVED),
    Kpi("cached_ratio", "", "higher", "cached_tokens / input_tokens",
        "requests.cached_tokens, requests.input_tokens"),
    Kpi("preemptions", "", "lower", "times that requests lost their KV blocks and were computed anew",
        "requests.n_preempted"),
    Kpi("work_energy_j", "J", "lower", "IT energy while working on them; idle, cooling and losses not included",
        "requests.energy_j"),
    Kpi("list_revenue", "currency", "higher",
        "served tokens at the tenant's price list: input that was not cached, cached, output",
        "fleet:tenants.price, requests.input_tokens, requests.cached_tokens, requests.output_tokens, requests.status"),
)  # fmt: skip

HARDWARE = (
    Kpi("replicas", "", "", "rows of the replicas table", "replicas.replica_i"),
    Kpi("accelerators", "", "", "that they hold", "replicas.accelerators"),
    Kpi("utilisation_ratio", "", "higher", "busy / powered time, weighted by accelerators",
        "replicas.busy_ns, replicas.powered_ns, replicas.accelerators"),
    Kpi("prefill_ratio", "", "", "prefill / busy time, weighted by accelerators",
        "replicas.prefill_ns, replicas.busy_ns, replicas.accelerators"),
    Kpi("mfu_ratio", "", "higher",
        "2 · active parameters · computed tokens / (peak FLOP/s · accelerators · powered time); attention not counted",
        "replicas.prefill_tokens, replicas.decode_tokens, replicas.powered_ns, replicas.accelerators, "
        "meta:deployments.active_parameters, meta:deployments.peak_flops_per_s"),
    Kpi("availability_ratio", "", "higher", "1 − down time / duration, weighted by accelerators",
        "replicas.down_ns, replicas.accelerators, meta:duration_ns"),
    Kpi("kv_peak_ratio", "", "", "most KV blocks in use / KV blocks, of the fullest replica",
        "replicas.kv_blocks, replicas.kv_blocks_peak"),
)  # fmt: skip

ENERGY = (
    Kpi("it_kwh", "kWh", "lower", "energy at the equipment, training included",
        "sites.inference_j, sites.training_j"),
    Kpi("site_kwh", "kWh", "lower", "energy at the meter: IT plus cooling, losses and lights by wet bulb and load",
        _BINS),
    Kpi("inference_site_kwh", "kWh", "lower", "the part of site_kwh for inference, by IT energy in each bin", _BINS),
    Kpi("training_site_kwh", "kWh", "", "the part for training", _BINS),
    Kpi("idle_it_kwh", "kWh", "lower", "IT energy of replicas while no step ran", "sites.idle_j"),
    Kpi("pue_mean", "", "lower", "site_kwh / it_kwh", _BINS),
    Kpi("pue_peak", "", "lower", "PUE at the design wet bulb and full load, or the declared PUE",
        "fleet:cooling.design_wetbulb_c, fleet:cooling.type, fleet:cooling.pue"),
    Kpi("power_kw_mean", "kW", "", "site_kwh / time", _BINS),
    Kpi("power_kw_p99", "kW", "lower", "smallest power at the meter not exceeded in 99 % of the time, by bins",
        _BINS),
    Kpi("power_kw_max", "kW", "lower", "highest bin; of the fleet: of its sites together", _BINS),
    Kpi("power_kw_contract", "kW", "", "that may be drawn on the day: contracted and energised",
        "fleet:sites.contracts, fleet:sites.grid"),
    Kpi("power_used_ratio", "", "", "power_kw_max / power_kw_contract", _BINS
        + ", fleet:sites.contracts, fleet:sites.grid"),
    Kpi("power_capped_ratio", "", "lower", "share of time under a power cap; of the fleet: by IT energy",
        "sites.capped_ratio"),
    Kpi("over_limit_ratio", "", "lower",
        "share of time in bins with IT power more than 0.5 % above the limit; of the fleet: at any of its sites",
        "sites.inference_j, sites.training_j, sites.length_ns, sites.limit_kw"),
    Kpi("over_limit_kw_max", "kW", "lower",
        "most that the IT power of such a bin is above its limit, 0 where none is; of the fleet: of its worst site",
        "sites.inference_j, sites.training_j, sites.length_ns, sites.limit_kw"),
    Kpi("energy_j_per_token", "J/token", "lower", "inference_site_kwh / (input + output tokens served)", _BINS
        + ", " + _SERVED),
    Kpi("energy_j_per_output_token", "J/token", "lower", "inference_site_kwh / output tokens served",
        _BINS + ", requests.output_tokens, requests.status"),
    Kpi("energy_wh_per_request", "Wh", "lower", "inference_site_kwh / requests served", _BINS + ", requests.status"),
    Kpi("tokens_per_kwh", "tokens/kWh", "higher", "(input + output tokens served) / inference_site_kwh", _BINS
        + ", " + _SERVED),
    Kpi("tokens_per_s_per_kw", "tokens/s/kW", "higher", "served tokens/s / mean power for inference at the meter",
        _BINS + ", " + _SERVED),
    Kpi("tokens_per_s_per_rack", "tokens/s", "higher", "served tokens/s / racks in service", _SERVED
        + ", fleet:sites.racks"),
    Kpi("tokens_per_s_per_m2", "tokens/s/m2", "higher", "served tokens/s / floor (declared, or what the racks take)",
        _SERVED + ", fleet:sites.floor_m2, fleet:racks.area_m2"),
)  # fmt: skip

FOOTPRINT = (
    Kpi("carbon_kg_location", "kg CO2e", "lower",
        "energy at the meter · grid carbon of the hour (GHG Protocol Scope 2)",
        _BINS + ", fleet:sites.carbon_g_per_kwh"),
    Kpi("carbon_kg_market", "kg CO2e", "lower", "the same without the share under certificates or a PPA",
        _BINS + ", fleet:sites.carbon_g_per_kwh, fleet:contracts.green_ratio"),
    Kpi("carbon_kg_embodied", "kg CO2e", "lower", "making of the racked accelerators, straight-line over their life",
        "fleet:money.embodied_kg_per_accelerator, fleet:money.accelerator_life_years, fleet:sites.racks"),
    Kpi("carbon_g_per_mtok", "g/Mtok", "lower", "location-based carbon of inference / served tokens",
        _BINS + ", fleet:sites.carbon_g_per_kwh, " + _SERVED),
    Kpi("water_l", "l", "lower", "evaporated, bled and lost on site, by wet bulb and load",
        _BINS + ", fleet:cooling.type"),
)  # fmt: skip

COST = (
    Kpi("cost_accelerators", "currency", "lower", "capex of owned racks · capital recovery factor · span / year",
        "fleet:racks.capex_per_accelerator, fleet:money.wacc, fleet:money.accelerator_life_years"),
    Kpi("cost_rent", "currency", "lower", "rented accelerators · price an hour · span, used or not",
        "fleet:racks.rent_per_accelerator_hour"),
    Kpi("cost_facility", "currency", "lower",
        "facility capex per kW · racked IT kW at full load · recovery factor · span / year",
        "fleet:sites.facility_capex_per_kw, fleet:sites.racks, fleet:money.facility_life_years"),
    Kpi("cost_colocation", "currency", "lower", "rent per kW and month · racked IT kW at full load · months",
        "fleet:sites.colocation_per_kw_month, fleet:sites.racks"),
    Kpi("cost_maintenance", "currency", "lower", "share of owned racks' capex a year",
        "fleet:money.maintenance_ratio_per_year"),
    Kpi("cost_staff", "currency", "lower", "people on site", "fleet:sites.staff_cost_per_year"),
    Kpi("cost_other", "currency", "lower", "other yearly cost of the site; of the fleet: the company's too",
        "fleet:sites.opex_per_year, fleet:money.opex_per_year"),
    Kpi("cost_energy", "currency", "lower", "energy at the meter · price of the hour (mean of contracts by MW)",
        _BINS + ", fleet:contracts.price_per_mwh"),
    Kpi("cost_demand_charge", "currency", "lower",
        "highest quarter of an hour, but at least the minimum bill · charge · months",
        _BINS + ", fleet:contracts.demand_charge_per_kw_month, fleet:contracts.minimum_bill_ratio"),
    Kpi("cost_water", "currency", "lower", "water_l · price", _BINS + ", fleet:cooling.water_price_per_m3"),
    Kpi("cost_carbon", "currency", "lower", "carbon_kg_location · carbon price",
        _BINS + ", fleet:money.carbon_price_per_t"),
    Kpi("cost_total", "currency", "lower", "sum of the parts above", _SHARES),
    Kpi("cost_serving", "currency", "lower",
        "the share of busy replicas: standing costs by accelerator time, energy, water and carbon by energy",
        _SHARES),
    Kpi("cost_idle", "currency", "lower",
        "the share of accelerators while they serve nothing, racked spares included", _SHARES),
    Kpi("cost_training", "currency", "", "the share of training jobs", _SHARES),
    Kpi("cost_per_mtok", "currency/Mtok", "lower", "(cost_serving + cost_idle) / served tokens, input and output",
        _SHARES + ", " + _SERVED),
    Kpi("cost_per_mtok_input", "currency/Mtok", "lower",
        "the same cost's share by prefill time / input tokens served, cached ones included",
        _SHARES + ", replicas.prefill_ns, " + _SERVED),
    Kpi("cost_per_mtok_output", "currency/Mtok", "lower", "the rest / output tokens served",
        _SHARES + ", replicas.prefill_ns, " + _SERVED),
    Kpi("revenue", "currency", "higher",
        "list revenue, but at least each tenant's committed minimum pro rata; of a site: list revenue",
        "fleet:tenants.price, fleet:tenants.committed_per_month, " + _SERVED),
    Kpi("margin", "currency", "higher", "revenue − cost_serving − cost_idle", _SHARES),
    Kpi("margin_ratio", "", "higher", "margin / revenue", _SHARES),
    Kpi("invested", "currency", "", "capex of owned racks and facility, without training's share",
        "fleet:racks.capex_per_accelerator, fleet:sites.facility_capex_per_kw"),
    Kpi("roi_ratio", "", "higher",
        "cash a year (revenue less what is paid, capital not) · accelerator life / invested − 1, as if every year were "
        "as this run", _SHARES),
    Kpi("payback_years", "years", "lower", "years of that cash until invested is back, not discounted; none: never",
        _SHARES),
)  # fmt: skip

GROUPS: dict[str, tuple[type[Part], tuple[Kpi, ...]]] = {
    "service": (Service, SERVICE),
    "hardware": (Hardware, HARDWARE),
    "energy": (Energy, ENERGY),
    "footprint": (Footprint, FOOTPRINT),
    "cost": (Cost, COST),
}
"""The groups of figures: the record that holds them, and their table."""

KPIS: dict[str, Kpi] = {kpi.name: kpi for _, kpis in GROUPS.values() for kpi in kpis}


def markdown() -> str:
    """Return the tables of docs/report.md.

    >>> markdown().splitlines()[0]
    '### service'
    """
    lines: list[str] = []
    for group, (_, kpis) in GROUPS.items():
        lines += [f"### {group}", "", "| figure | unit | better | formula | reads |", "|---|---|---|---|---|"]
        lines += [f"| `{k.name}` | {k.unit or '–'} | {k.better or '–'} | {k.formula} | {k.reads} |" for k in kpis]
        lines.append("")
    return "\n".join(lines)


def fields(record: type[Part]) -> tuple[str, ...]:
    """Return the figures of a record, in order."""
    return tuple(field.name for field in msgspec.structs.fields(record))
