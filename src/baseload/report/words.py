"""Numbers and findings in words, for every form of the report: "–" for what is not defined, three digits, SI steps."""

from __future__ import annotations

from collections.abc import Sequence
from math import floor, log10
from typing import Any, TypeVar

import msgspec

from baseload.ports import BasisMeta, SearchMeta
from baseload.report.model import FleetReport, Number, Step, TenantReport

P = TypeVar("P", bound=msgspec.Struct)

NONE = "–"
_STEPS = ((1e12, "T"), (1e9, "G"), (1e6, "M"), (1e3, "k"))


def number(value: Number, unit: str = "", digits: int = 3) -> str:
    """Return a number with `digits` significant digits and thousands set off; whole numbers below 1e6 stay whole.

    >>> number(1234567.0), number(0.01234, "s"), number(None), number(1927)
    ('1,230,000', '0.0123 s', '–', '1,927')
    """
    if value is None:
        return NONE
    if isinstance(value, int) and abs(value) < 1_000_000:
        text = f"{value:,}"
    else:
        text = _significant(float(value), digits)
    return f"{text} {unit}" if unit else text


def scaled(value: Number, unit: str = "", digits: int = 3) -> str:
    """Return a number with an SI prefix: for rates, bytes, joules.

    >>> scaled(1234567.0, "tokens/s"), scaled(950.0, "W"), scaled(None, "W")
    ('1.23 Mtokens/s', '950 W', '–')
    """
    if value is None:
        return NONE
    for size, prefix in _STEPS:
        if abs(value) >= size * 0.9995:
            return f"{_significant(value / size, digits)} {prefix}{unit}".rstrip()
    return f"{_significant(float(value), digits)} {unit}".rstrip()


def seconds(value: Number) -> str:
    """Return a time in ms below a second, in s below two minutes, then min and h.

    >>> seconds(0.0345), seconds(2.5), seconds(7200.0), seconds(None)
    ('34.5 ms', '2.5 s', '2 h', '–')
    """
    if value is None:
        return NONE
    for size, unit, least in ((3600.0, "h", 2 * 3600.0), (60.0, "min", 120.0), (1.0, "s", 0.9995)):
        if abs(value) >= least:
            return f"{_significant(value / size, 3)} {unit}"
    return f"{_significant(value * 1000.0, 3)} ms"


def duration(span_s: float) -> str:
    """Return a span of time in words.

    >>> duration(3600.0), duration(86400.0 * 30), duration(90.0)
    ('60 min', '30 days', '90 s')
    """
    for size, unit in ((86400.0, "days"), (3600.0, "h"), (60.0, "min")):
        if span_s >= 2.0 * size:
            return f"{span_s / size:.3g} {unit}"
    return f"{span_s:.3g} s"


def percent(value: Number, digits: int = 1) -> str:
    """Return a share in percent; never rounded up to 100 %.

    >>> percent(0.99987), percent(0.99), percent(1.0), percent(None), percent(-0.5), percent(1e-6)
    ('99.98 %', '99 %', '100 %', '–', '-50 %', '<0.1 %')
    """
    if value is None:
        return NONE
    if 0.99 <= value < 1.0:
        return f"{floor(value * 1e4 + 1e-6) / 1e2:.2f}".removesuffix(".00") + " %"
    if 0.0 < abs(value) < 0.5 * 10.0 ** (-2 - digits):
        return f"<{10.0**-digits:g} %"
    text = f"{value * 100.0:,.{digits}f}"
    return f"{text.removesuffix('.' + '0' * digits)} %"


def money(value: Number, currency: str) -> str:
    """Return an amount.

    >>> money(1234.5, "EUR"), money(0.0123, "EUR"), money(None, "EUR")
    ('1,230 EUR', '0.0123 EUR', '–')
    """
    return number(None if value is None else float(value), currency)


def megawatts(mw: float) -> str:
    """Return a power given in MW, in kW or W where it is small.

    >>> megawatts(12.3), megawatts(0.0384), megawatts(2.3e-5), megawatts(0.0)
    ('12.3 MW', '38.4 kW', '23 W', '0 MW')
    """
    for size, unit in ((1.0, "MW"), (1e-3, "kW")):
        if abs(mw) >= size or mw == 0.0:
            return f"{_significant(mw / size, 3)} {unit}"
    return f"{_significant(mw * 1e6, 3)} W"


def figure(value: Number, unit: str, currency: str) -> str:
    """Return a KPI's value as its unit is read best.

    >>> figure(0.5, "", "EUR"), figure(0.25, "s", "EUR"), figure(2.0, "currency/Mtok", "EUR")
    ('0.5', '250 ms', '2 EUR/Mtok')
    """
    if unit == "s":
        return seconds(value)
    if unit.startswith("currency"):
        return number(None if value is None else float(value), unit.replace("currency", currency))
    if unit in ("tokens", "tokens/s", "J", "tokens/kWh"):
        return scaled(value, unit)
    return number(value, unit)


def _significant(value: float, digits: int) -> str:
    if value == 0.0:
        return "0"
    places = digits - 1 - floor(log10(abs(value)))
    rounded = round(value, places)
    if places <= 0 or rounded == round(rounded):
        return f"{rounded:,.0f}"
    text = f"{rounded:,.{min(places, 12)}f}"
    return text.rstrip("0").rstrip(".") if "." in text else text


def printable(record: P) -> P:
    """Return a record whose texts hold no control characters: a name may not steer the terminal."""

    def clean(value: Any) -> Any:
        if isinstance(value, dict):
            return {key: clean(one) for key, one in value.items()}
        if isinstance(value, list):
            return [clean(one) for one in value]
        if isinstance(value, str) and not value.isprintable():
            return "".join(one if one.isprintable() else " " for one in value)
        return value

    return msgspec.convert(clean(msgspec.to_builtins(record)), type(record))


# ---- findings --------------------------------------------------------------------------------------------


def headline(fleet: FleetReport, tenants: Sequence[TenantReport], name: str, search: SearchMeta | None = None) -> str:
    """Return what the fleet can serve, what stops it from serving more, and what it did not keep."""
    by_name = {step.name: step for step in fleet.ladder}
    within, sold = by_name.get("within SLO"), by_name.get("sold")
    said = []
    if search is not None:
        rate = (fleet.service.input_tokens_per_s or 0.0) + (fleet.service.output_tokens_per_s or 0.0)
        said.append(_searched(search, name, rate))
        if within is not None and within.tokens_per_s > 0.0:
            most = scaled(within.tokens_per_s, "tokens/s")
            said.append(
                f"Its replicas, all of them running and evenly loaded, could serve {most} within the SLO; "
                "between the two lie the mix of demand, law, routing and scaling."
            )
    elif within is not None and within.tokens_per_s > 0.0:
        text = f"The replicas of {name} can serve {scaled(within.tokens_per_s, 'tokens/s')} within its SLOs"
        if sold is not None:
            excess = sold.excess_tokens_per_s
            used = (sold.tokens_per_s + excess) / within.tokens_per_s
            text += f"; {scaled(sold.tokens_per_s + excess, 'tokens/s')} were sold ({percent(used)} of it)"
        said.append(text + ".")
    else:
        rate = (fleet.service.input_tokens_per_s or 0.0) + (fleet.service.output_tokens_per_s or 0.0)
        said.append(f"{name} served {scaled(rate, 'tokens/s')}; what it could serve within its SLOs is not known.")
    stops = [_loss(step) for step in limits(fleet.ladder)]
    if stops:
        idle = search is not None and within is not None and search.tokens_per_s < 0.9 * within.tokens_per_s
        more = "running more replicas" if idle else "serving more"  # more racks would not lift what the search found
        said.append(f"What stops it from {more}: {'; and, larger, '.join(stops)}.")
    missed = [tenant for tenant in tenants if tenant.slo_met is False]
    if missed:
        shown = ", ".join(
            f"{tenant.name} ({percent(tenant.service.slo_attainment_ratio)} of requests, "
            f"{percent(tenant.slo.attainment)} promised)"
            for tenant in missed[:3]
        )
        others = f" and {len(missed) - 3} more" if len(missed) > 3 else ""
        said.append(f"It missed the SLO of {shown}{others}.")
    elif any(tenant.slo_met for tenant in tenants):
        said.append("It met every tenant's SLO.")
    return " ".join(said)


def _searched(search: SearchMeta, name: str, served_per_s: float) -> str:
    """Return how much more of this very demand the fleet can take, and what breaks first."""
    if search.highest_load_factor <= 0.0:
        return f"No load was found at which {name} keeps its promises: even a thousandth of this demand misses one."
    if not search.first_to_miss:
        return (
            f"This demand is too short to tell how much {name} can serve within its SLOs: "
            f"even {search.highest_load_factor:,.0f} times as fast, it misses none. Ask with more requests."
        )
    return (
        f"{name} can serve {scaled(search.highest_load_factor * served_per_s, 'tokens/s')} of this demand within its SLOs: "
        f"{search.highest_load_factor:.2f} times what it served; "
        f"beyond that, {search.first_to_miss} is the first to miss ({search.cause})."
    )


def limits(ladder: Sequence[Step]) -> list[Step]:
    """Return what to lift to serve more: the step nearest to service that loses a tenth or more, then the largest.

    `sold` is demand, not a limit; and what lies beyond the SLO is lifted by more of what stands above it.
    """
    lossy = [step for step in ladder if step.lost_mw > 0.0 and step.name not in ("sold", "within SLO")]
    first = next((step for step in reversed(lossy) if step.lost_mw >= 0.1 * step.mw), None)
    largest = max(lossy, key=lambda step: step.lost_mw, default=None)
    return [step for step in dict.fromkeys((first, largest)) if step is not None]


def _loss(step: Step) -> str:
    rate = f" ({scaled(step.lost_tokens_per_s, 'tokens/s')})" if step.lost_tokens_per_s > 0.0 else ""
    return f"{megawatts(step.lost_mw)}{rate} {step.reason}"


GROUP_WORDS = {
    "speed": "the speed of",
    "power": "the power of",
    "plant": "cooling and losses (PUE, water) of",
    "weather": "the weather of",
    "price": "the price of",
    "energy_price": "the energy price of",
    "carbon": "the grid carbon of",
    "network": "the network of",
    "model": "the shape of",
    "embodied": "the making of",
}


def built_on(basis: Sequence[BasisMeta]) -> str:
    """Return which modelled figures a report is built on; '' where there is none.

    >>> built_on([BasisMeta(figure="speed.a", basis="modelled"), BasisMeta(figure="speed.b", basis="modelled")])
    'Built on modelled figures: the speed of a, b.'
    """
    groups: dict[str, list[str]] = {}
    for row in basis:
        if row.basis == "modelled":
            group, name = row.figure.split(".")[0], ".".join(row.figure.split(".")[1:2])
            groups.setdefault(group, []).append(name)
    if not groups:
        return ""
    parts = [f"{GROUP_WORDS.get(group, group)} {_some(names)}".strip() for group, names in groups.items()]
    return f"Built on modelled figures: {'; '.join(parts)}."


def _some(names: Sequence[str]) -> str:
    shown = [name for name in dict.fromkeys(names) if name]
    more = f" and {len(shown) - 6} more" if len(shown) > 6 else ""
    return ", ".join(shown[:6]) + more
