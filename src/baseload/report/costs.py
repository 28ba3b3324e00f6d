"""What a site and the fleet cost over the span of a run, part by part, and who bears it: serving, idleness, training.

Standing costs (capital, rent, people) go by accelerator time, energy, water and carbon by IT energy. Serving bears the
busy share, training its own, and the rest is idle: racked accelerators that serve nothing are idle too. Prices
come from the fleet file, formulas from `formulas/money.py`.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import ceil

from baseload.fleet import catalog
from baseload.fleet.model import Fleet, Money, Rack
from baseload.formulas import carbon, money
from baseload.report.model import COST_PARTS, Cost, Number, Service
from baseload.report.requests import ratio
from baseload.report.site_power import SiteHours, SitePlant
from baseload.report.used import Used
from baseload.units import HOURS_PER_MONTH, HOURS_PER_YEAR, S_PER_HOUR

STANDING = (
    "cost_accelerators", "cost_rent", "cost_facility", "cost_colocation", "cost_maintenance", "cost_staff",
    "cost_other", "cost_demand_charge",
)  # fmt: skip
BY_ENERGY = ("cost_energy", "cost_water", "cost_carbon")
NOT_CASH = ("cost_accelerators", "cost_facility")  # capital: what the return is on
L_PER_M3 = 1000.0
KG_PER_T = 1000.0
_PAYBACK_YEARS_MAX = 100


@dataclass(frozen=True, slots=True, kw_only=True)
class Bill:
    """Parts of cost by name, and how each kind is shared out."""

    parts: dict[str, float]
    serving: float
    idle: float
    training: float
    invested: float  # capex of owned racks and facility, training's share left out
    cash_serving: float  # what is paid in the span for serving and idleness, capital not
    embodied_kg: float

    @property
    def total(self) -> float:
        """Return the sum of the parts."""
        return sum(self.parts.values())


def capex_per_accelerator(rack: Rack, terms: Money) -> float:
    """Return the price of one accelerator with its share of server and network, in the fleet's currency."""
    if rack.capex_per_accelerator is not None:
        return rack.capex_per_accelerator
    return catalog.accelerator(rack.accelerator).price_usd * terms.usd_rate


def site_bill(plant: SitePlant, hours: SiteHours, used: Used, fleet: Fleet, span_s: float) -> Bill:
    """Return what a site costs over `span_s`."""
    site, terms = plant.site, fleet.money
    span_h = span_s / S_PER_HOUR
    months, years = span_h / HOURS_PER_MONTH, span_h / HOURS_PER_YEAR
    owned = [rack for rack in site.racks.values() if rack.rent_per_accelerator_hour is None]
    capex = sum(_accelerators(rack) * capex_per_accelerator(rack, terms) for rack in owned)
    facility_capex = site.facility_capex_per_kw * plant.racked_it_kw
    parts = {
        "cost_accelerators": money.owned_cost_per_hour(capex, terms.wacc, terms.accelerator_life_years) * span_h,
        "cost_rent": span_h
        * sum(_accelerators(rack) * (rack.rent_per_accelerator_hour or 0.0) for rack in site.racks.values()),
        "cost_facility": money.owned_cost_per_hour(facility_capex, terms.wacc, terms.facility_life_years) * span_h,
        "cost_colocation": site.colocation_per_kw_month * plant.racked_it_kw * months,
        "cost_maintenance": terms.maintenance_ratio_per_year * capex * years,
        "cost_staff": site.staff_cost_per_year * years,
        "cost_other": site.opex_per_year * years,
        "cost_energy": hours.energy_cost,
        "cost_demand_charge": _demand_charge(plant, hours, months),
        "cost_water": hours.water_l / L_PER_M3 * site.cooling.water_price_per_m3,
        "cost_carbon": hours.carbon_kg / KG_PER_T * terms.carbon_price_per_t,
    }
    assert set(parts) == set(COST_PARTS)
    racked = sum(_accelerators(rack) for rack in site.racks.values())
    training = min(racked, sum(job.accelerators for job in site.training.values()))
    training_time = training / racked if racked else 0.0
    busy_time = min(1.0 - training_time, used.busy_ratio_of(racked))
    life_s = terms.accelerator_life_years * HOURS_PER_YEAR * S_PER_HOUR
    return _shared(
        parts,
        time_shares=(busy_time, training_time),
        energy_shares=(max(0.0, 1.0 - hours.idle_share - hours.training_share), hours.training_share),
        invested=(capex + facility_capex) * (1.0 - training_time),
        embodied_kg=carbon.embodied_kg(terms.embodied_kg_per_accelerator * racked, span_s, life_s),
    )


def fleet_bill(bills: list[Bill], fleet: Fleet, span_s: float) -> Bill:
    """Return the sum of the sites' bills and the company's own cost, borne as the sites' cost is."""
    company = fleet.money.opex_per_year * span_s / S_PER_HOUR / HOURS_PER_YEAR
    total = sum(bill.total for bill in bills)

    def more(amount: float) -> float:
        return amount + (company * amount / total if total > 0.0 else 0.0)

    parts = {name: sum(bill.parts[name] for bill in bills) for name in COST_PARTS}
    parts["cost_other"] += company
    serving, training = more(sum(bill.serving for bill in bills)), more(sum(bill.training for bill in bills))
    idle = sum(parts.values()) - serving - training
    training_share = training / (total + company) if total > 0.0 else 0.0
    return Bill(
        parts=parts,
        serving=serving,
        idle=max(0.0, idle),
        training=training,
        invested=sum(bill.invested for bill in bills),
        cash_serving=sum(bill.cash_serving for bill in bills) + company * (1.0 - training_share),
        embodied_kg=sum(bill.embodied_kg for bill in bills),
    )


def cost_of(
    bill: Bill, service: Service, used: Used, revenue: float, terms: Money, span_s: float
) -> Cost:  # fmt: skip
    """Return the figures of a bill, and what came back on it."""
    ours = bill.serving + bill.idle
    tokens_in, tokens_out = float(service.input_tokens or 0), float(service.output_tokens or 0)
    per_input, per_output = money.split_by_seconds(
        ours,
        prefill_s=used.prefill_accelerator_s,
        decode_s=used.decode_accelerator_s,
        input_tokens=tokens_in,
        output_tokens=tokens_out,
    )
    busy = used.prefill_accelerator_s + used.decode_accelerator_s > 0.0
    cash_year = (revenue - bill.cash_serving) * HOURS_PER_YEAR * S_PER_HOUR / span_s if span_s > 0.0 else None
    parts: dict[str, Number] = {name: amount for name, amount in bill.parts.items()}
    return Cost(
        **parts,
        cost_total=bill.total,
        cost_serving=bill.serving,
        cost_idle=bill.idle,
        cost_training=bill.training,
        cost_per_mtok=ratio(ours * 1e6, tokens_in + tokens_out),
        cost_per_mtok_input=per_input if busy and tokens_in else None,
        cost_per_mtok_output=per_output if busy and tokens_out else None,
        revenue=revenue,
        margin=revenue - ours,
        margin_ratio=ratio(revenue - ours, revenue),
        invested=bill.invested,
        roi_ratio=_roi(bill.invested, cash_year, terms.accelerator_life_years),
        payback_years=_payback(bill.invested, cash_year),
    )


def _accelerators(rack: Rack) -> int:
    return rack.racks * rack.accelerators_per_rack


def _demand_charge(plant: SitePlant, hours: SiteHours, months: float) -> float:
    """Return the demand charge; several contracts share the peak by their MW."""
    contracts = plant.site.contracts
    total_mw = sum(contract.power_mw for contract in contracts)
    charge = 0.0
    for contract in contracts:
        peak_kw = hours.billing_peak_kw * contract.power_mw / total_mw
        billed_kw = money.billed_demand_kw(
            peak_kw, contract.power_mw * 1000.0, minimum_bill_ratio=contract.minimum_bill_ratio,
            past_peak_kw=peak_kw, ratchet_ratio=contract.ratchet_ratio,
        )  # fmt: skip
        charge += money.demand_charge(billed_kw, contract.demand_charge_per_kw_month, months)
    return charge


def _shared(
    parts: dict[str, float],
    *,
    time_shares: tuple[float, float],
    energy_shares: tuple[float, float],
    invested: float,
    embodied_kg: float,
) -> Bill:
    standing = sum(parts[name] for name in STANDING)
    by_energy = sum(parts[name] for name in BY_ENERGY)
    serving = standing * time_shares[0] + by_energy * energy_shares[0]
    training = standing * time_shares[1] + by_energy * energy_shares[1]
    cash = sum(parts[name] for name in STANDING if name not in NOT_CASH) * (1.0 - time_shares[1])
    return Bill(
        parts=parts,
        serving=serving,
        idle=sum(parts.values()) - serving - training,
        training=training,
        invested=invested,
        cash_serving=cash + by_energy * (1.0 - energy_shares[1]),
        embodied_kg=embodied_kg,
    )


def _roi(invested: float, cash_year: float | None, life_years: float) -> float | None:
    if invested <= 0.0 or cash_year is None:
        return None
    return money.return_on_investment(cash_year * life_years, invested)


def _payback(invested: float, cash_year: float | None) -> float | None:
    if invested <= 0.0 or cash_year is None or cash_year <= 0.0:
        return None
    years = min(_PAYBACK_YEARS_MAX, ceil(invested / cash_year) + 1)
    return money.payback_years([-invested, *[cash_year] * years])
