"""Which figures the tables of text and HTML show, under which words, in which order: one list for both."""

from __future__ import annotations

from typing import NamedTuple

from baseload.report.kpi_table import KPIS
from baseload.report.model import Cost, DeploymentReport, Number, Report, Service, SiteReport, TenantReport
from baseload.report.words import figure, megawatts, money, number, percent, scaled, seconds


class Row(NamedTuple):
    """One line of a table of figures."""

    label: str
    value: str
    note: str = ""


class Card(NamedTuple):
    """One figure to see first."""

    label: str
    value: str
    note: str
    good: bool | None = None


COST_WORDS = {
    "cost_accelerators": "accelerators",
    "cost_rent": "rented accelerators",
    "cost_facility": "building and plant",
    "cost_colocation": "colocation",
    "cost_maintenance": "maintenance",
    "cost_staff": "staff",
    "cost_other": "other, company",
    "cost_energy": "energy",
    "cost_demand_charge": "demand charge",
    "cost_water": "water",
    "cost_carbon": "carbon price",
}


def kpi_rows(report: Report) -> list[tuple[str, list[Row]]]:
    """Return the fleet's figures in groups."""
    fleet, currency = report.fleet, report.run.currency
    service, energy, cost, print_ = fleet.service, fleet.energy, fleet.cost, fleet.footprint
    hardware = fleet.hardware

    def of(name: str, value: Number) -> str:
        return figure(value, KPIS[name].unit, currency)

    return [
        ("Service", _service_rows(service)),
        (
            "Hardware",
            [
                Row("replicas", number(hardware.replicas), f"{number(hardware.accelerators)} accelerators"),
                Row("busy", percent(hardware.utilisation_ratio), f"of it prefill {percent(hardware.prefill_ratio)}"),
                Row("MFU", percent(hardware.mfu_ratio), "of peak FLOP/s while powered"),
                Row("availability", percent(hardware.availability_ratio)),
                Row("KV cache at its fullest", percent(hardware.kv_peak_ratio), "of blocks, worst replica"),
            ],
        ),
        (
            "Power and energy",
            [
                Row(
                    "power at the meter",
                    of("power_kw_mean", energy.power_kw_mean),
                    f"p99 {of('power_kw_p99', energy.power_kw_p99)}, max {of('power_kw_max', energy.power_kw_max)}",
                ),
                Row(
                    "of what may be drawn",
                    percent(energy.power_used_ratio),
                    f"{megawatts(float(energy.power_kw_contract or 0.0) / 1000.0)}",
                ),
                Row("PUE", number(energy.pue_mean), f"{number(energy.pue_peak)} at full load in the hottest hour"),
                Row(
                    "energy per token",
                    of("energy_j_per_token", energy.energy_j_per_token),
                    f"{of('energy_j_per_output_token', energy.energy_j_per_output_token)} of output",
                ),
                Row("energy per request", of("energy_wh_per_request", energy.energy_wh_per_request)),
                Row("tokens per kWh", scaled(energy.tokens_per_kwh)),
                Row(
                    "tokens/s per kW",
                    number(energy.tokens_per_s_per_kw),
                    f"{scaled(energy.tokens_per_s_per_rack)} per rack, {scaled(energy.tokens_per_s_per_m2)} per m2",
                ),
                Row("under a power cap", percent(energy.power_capped_ratio), "of the time"),
                Row(
                    "above a power limit",
                    percent(energy.over_limit_ratio),
                    f"of the time, by up to {number(energy.over_limit_kw_max)} kW",
                ),
            ],
        ),
        (
            "Carbon and water",
            [
                Row(
                    "carbon, by location",
                    of("carbon_kg_location", print_.carbon_kg_location),
                    f"by market {of('carbon_kg_market', print_.carbon_kg_market)}",
                ),
                Row("carbon of making", of("carbon_kg_embodied", print_.carbon_kg_embodied)),
                Row("carbon per million tokens", number(print_.carbon_g_per_mtok, "g")),
                Row("water on site", number(print_.water_l, "l")),
            ],
        ),
        ("Money", _money_rows(cost, currency)),
    ]


def _service_rows(service: Service) -> list[Row]:
    def spread(name: str) -> str:
        return f"p90 {seconds(getattr(service, f'{name}_s_p90'))}, p99 {seconds(getattr(service, f'{name}_s_p99'))}"

    refused = f"{number(service.refused)} refused, {number(service.failed)} failed"
    if service.unfinished:
        refused += f", {number(service.unfinished)} unfinished"
    return [
        Row("requests served", number(service.served), f"of {number(service.requests_in)}; {refused}"),
        Row("requests/s", number(service.requests_per_s), f"goodput {number(service.goodput_requests_per_s)}"),
        Row(
            "tokens/s, input",
            scaled(service.input_tokens_per_s),
            f"{percent(service.cached_ratio)} found in the prefix cache",
        ),
        Row(
            "tokens/s, output",
            scaled(service.output_tokens_per_s),
            f"goodput {scaled(service.goodput_tokens_per_s)} input and output",
        ),
        Row("SLO attainment", percent(service.slo_attainment_ratio), "of all requests, each by its tenant's SLO"),
        Row("TTFT, median", seconds(service.ttft_s_p50), f"{spread('ttft')}, mean {seconds(service.ttft_s_mean)}"),
        Row("TPOT, median", seconds(service.tpot_s_p50), f"{spread('tpot')}, mean {seconds(service.tpot_s_mean)}"),
        Row("E2E, median", seconds(service.e2e_s_p50), f"{spread('e2e')}, mean {seconds(service.e2e_s_mean)}"),
        Row("preemptions", number(service.preemptions)),
    ]


def _money_rows(cost: Cost, currency: str) -> list[Row]:
    return [
        Row("cost", money(cost.cost_total, currency), f"of it idle {money(cost.cost_idle, currency)}"),
        Row("revenue", money(cost.revenue, currency)),
        Row("margin", money(cost.margin, currency), percent(cost.margin_ratio) + " of revenue"),
        Row("cost per million tokens", number(cost.cost_per_mtok, currency), "input and output together"),
        Row("… of input", number(cost.cost_per_mtok_input, currency)),
        Row("… of output", number(cost.cost_per_mtok_output, currency)),
        Row("invested", money(cost.invested, currency)),
        Row("return over the accelerators' life", percent(cost.roi_ratio), "if every year were as this run"),
        Row("payback", number(cost.payback_years, "years"), "" if cost.payback_years is not None else "never"),
    ]


def cards(report: Report) -> list[Card]:
    """Return the figures to see first."""
    fleet, currency = report.fleet, report.run.currency
    service = fleet.service
    missed = [tenant.name for tenant in report.tenants if tenant.slo_met is False]
    judged = [tenant for tenant in report.tenants if tenant.slo_met is not None]
    tokens = (service.input_tokens_per_s or 0.0) + (service.output_tokens_per_s or 0.0)
    margin = fleet.cost.margin
    return [
        Card(
            "SLO attainment",
            percent(service.slo_attainment_ratio),
            "no requests" if not judged else f"missed: {', '.join(missed)}" if missed else "every tenant's met",
            None if not judged else not missed,
        ),
        Card("Served", scaled(tokens, "tok/s"), f"{number(service.requests_per_s)} requests/s"),
        Card("TTFT p99", seconds(service.ttft_s_p99), f"median {seconds(service.ttft_s_p50)}"),
        Card("TPOT p99", seconds(service.tpot_s_p99), f"median {seconds(service.tpot_s_p50)}"),
        Card(
            "Cost per Mtok", number(fleet.cost.cost_per_mtok, currency),
            f"output {number(fleet.cost.cost_per_mtok_output, currency)}",
        ),
        Card(
            "Margin", percent(fleet.cost.margin_ratio), money(margin, currency),
            None if fleet.cost.margin_ratio is None else float(margin or 0.0) >= 0.0,
        ),
        Card(
            "Energy", figure(fleet.energy.energy_j_per_token, "J/token", currency),
            f"PUE {number(fleet.energy.pue_mean)}",
        ),
        Card(
            "Carbon", number(fleet.footprint.carbon_g_per_mtok, "g/Mtok"),
            f"{number(fleet.footprint.carbon_kg_location, 'kg')} in all",
        ),
    ]  # fmt: skip


def tenant_head(currency: str) -> tuple[str, ...]:
    """Return the heads of the table of tenants."""
    return ("tenant", "served", "TTFT p99 /SLO", "TPOT p99 /SLO", "in SLO /promised", "", f"revenue {currency}")


def tenant_row(tenant: TenantReport) -> tuple[str, ...]:
    """Return a tenant's line under `tenant_head`."""
    service, slo = tenant.service, tenant.slo
    return (
        tenant.name,
        number(service.served),
        f"{seconds(service.ttft_s_p99)}/{seconds(slo.ttft_ms / 1000.0)}",
        f"{seconds(service.tpot_s_p99)}/{seconds(slo.tpot_ms / 1000.0)}",
        f"{percent(service.slo_attainment_ratio)}/{percent(slo.attainment)}",
        {True: "met", False: "MISSED", None: "–"}[tenant.slo_met],
        number(_real(tenant.revenue)),
    )


def site_head(currency: str) -> tuple[str, ...]:
    """Return the heads of the table of sites."""
    return (
        "site", "tokens/s", "busy", "PUE", "kW mean", "max", "may draw", f"cost {currency}", "idle",
        f"{currency} per Mtok", "kg CO2e",
    )  # fmt: skip


def site_row(site: SiteReport) -> tuple[str, ...]:
    """Return a site's line under `site_head`."""
    service, energy, cost = site.service, site.energy, site.cost
    tokens = (service.input_tokens_per_s or 0.0) + (service.output_tokens_per_s or 0.0)
    return (
        site.name,
        scaled(tokens),
        percent(site.hardware.utilisation_ratio, 0),
        number(energy.pue_mean),
        number(_real(energy.power_kw_mean)),
        number(_real(energy.power_kw_max)),
        number(_real(energy.power_kw_contract)),
        number(_real(cost.cost_total)),
        percent(_idle_share(cost), 0),
        number(cost.cost_per_mtok),
        number(_real(site.footprint.carbon_kg_location)),
    )


def _real(value: Number) -> float | None:
    return None if value is None else float(value)


def _idle_share(cost: Cost) -> Number:
    return cost.cost_idle / cost.cost_total if cost.cost_total and cost.cost_idle is not None else None


def cost_parts(cost: Cost) -> list[tuple[str, float]]:
    """Return the parts of a cost that are not 0, largest first, under their words."""
    parts = [(words, float(getattr(cost, name) or 0.0)) for name, words in COST_WORDS.items()]
    return sorted([part for part in parts if part[1] > 0.0], key=lambda part: -part[1])


DEPLOYMENT_HEAD = (
    "deployment", "model", "accelerator", "replicas", "busy", "MFU", "KV tokens", "weights GB", "tok/s full",
    "in SLO", "speed",
)  # fmt: skip


def deployment_row(deployment: DeploymentReport) -> tuple[str, ...]:
    """Return a deployment's line under DEPLOYMENT_HEAD: what one replica is, and how its replicas fared."""
    what, hardware = deployment.what, deployment.hardware
    parallel = "".join(f" {name}{n}" for name, n in (("TP", what.tp), ("PP", what.pp), ("EP", what.ep)) if n > 1)
    return (
        deployment.name,
        what.model,
        f"{what.accelerator} {what.precision}{parallel}",
        number(hardware.replicas),
        percent(hardware.utilisation_ratio, 0),
        percent(hardware.mfu_ratio),
        scaled(float(what.kv_blocks * what.block_tokens)),
        number(float(what.weights_gb)),
        scaled(what.saturated_tokens_per_s),
        scaled(what.within_slo_tokens_per_s),
        what.basis,
    )
