"""Made-up planning problems with a seed: what `make bench-plan` and the tests solve.

The shapes are those of an operator of several sites who grows over five years: sites of about a megawatt over a continent's
distances, each with up to three grid phases that take two to six quarters; rack kinds that get dearer, denser and faster;
services that a kind serves well or badly; clients (a tenant in a region) who may be served from a bit under half of the
sites (latency, law); demand that grows about 8 % a quarter, each service at its own pace. Rent on demand costs nearly three
times what owning does, a reserved year nearly twice. Nothing here is measured: levels follow published prices and powers of
2026 (a rack of eight accelerators at about 0.4 million dollars and 15 kW, 120 to 190 dollars a kW and month of space, 40 to
140 dollars a MWh). Money is in thousands of dollars of present value, so that no coefficient is far from 1.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from baseload.plan.problem import Bools, Floats, Ints, Problem

_WACC = 0.08
_ZONES = 4  # grid zones that the sites lie in
_HOURS = 8766.0 / 4  # of a quarter


Drawn = dict[str, Any]  # arrays of the problem by name


@dataclass(frozen=True, kw_only=True)
class _Size:
    """How much of everything there is, and when the periods are."""

    sites: int
    kinds: int
    services: int
    clients: int
    periods: int
    years: float

    @property
    def quarters(self) -> float:
        """Return the quarters in a period."""
        return 4.0 * self.years / self.periods

    @property
    def times(self) -> Floats:
        """Return the beginnings of the periods, in years."""
        return np.asarray(np.arange(self.periods) * self.quarters / 4.0, dtype=np.float64)

    @property
    def worth(self) -> Floats:
        """Return the present value of 1 paid in each period."""
        worth: Floats = np.asarray((1.0 + _WACC) ** -self.times, dtype=np.float64)
        return worth


def instance(
    sites: int,
    kinds: int,
    services: int,
    clients: int,
    periods: int,
    *,
    seed: int,
    hosting: bool = False,
    whole: bool = False,
    survive: bool = True,
    years: float = 5.0,
) -> Problem:
    """Return a problem of a size; the same arguments give the same problem.

    Args:
        sites, kinds, services, clients, periods: number of each; the periods share `years` evenly.
        seed: of the random draws.
        hosting: ask for hosting decisions (a least size of a hosted service, and its fixed cost).
        whole: ask for whole racks.
        survive: ask for the loss of any one site to be survived in part.
        years: the horizon.
    """
    rng = np.random.default_rng(seed)
    size = _Size(sites=sites, kinds=kinds, services=services, clients=clients, periods=periods, years=years)
    places, apart_km = _places(rng, size)
    racks, heavy, pue = _demand_and_racks(rng, size)
    power, share_mw = _power(rng, size, racks)
    rent = _rent(rng, size, racks, share_mw)
    money = _money(rng, size, racks, apart_km, heavy, pue)
    hosts = (
        _hosts(rng, size, racks) if hosting else {"host_min": None, "cost_host": np.zeros((sites, services, periods))}
    )
    policy = _policy(rng, size)
    limits = _supply(rng, size, racks)
    endless = np.full(periods, np.inf)
    nought_owned, nought_put = np.zeros((sites, kinds, periods)), np.zeros((sites, kinds, services, periods))
    mw_price = 40.0 * float((_owning(size, racks) / racks["rack_kw"]).max()) * 1000.0
    drawn = {**places, **racks, **power, **rent, **money, **hosts, **policy, **limits}
    for only_here in ("price", "rack_kw"):
        del drawn[only_here]
    at = power["phase_site"]
    return Problem(
        name=f"made up {sites}x{kinds}x{services}x{clients}x{periods}, seed {seed}",
        sites=tuple(f"site{i}" for i in range(sites)),
        kinds=tuple(f"kind{i}" for i in range(kinds)),
        services=tuple(f"service{i}" for i in range(services)),
        clients=tuple(f"client{i}" for i in range(clients)),
        periods=tuple(f"{2027 + int(y)}+{y - int(y):.2f}" for y in size.times),
        phases=tuple(f"site{s}.grid[{p - int(np.argmax(at == s))}]" for p, s in enumerate(at)),
        rentals=("on-demand", "reserved year"),
        groups=tuple([f"zone{z}" for z in range(_ZONES)] + ["vendor0", "vendor1"]),
        limits=("packaging",),
        whole=np.full((sites, kinds), whole),
        floor_m2=np.full((sites, periods), np.inf),
        survive_ratio=np.full(services, 0.7 if survive else 0.0),
        capex_budget=endless,
        carbon_budget=endless,
        water_budget=endless,
        carbon_owned=nought_owned,
        water_owned=nought_owned,
        carbon_put=nought_put,
        water_put=nought_put,
        slack_price=_slack_prices(size, money["cost_unserved"], len(policy["share_max"]), mw_price),
        **drawn,
    )


def _places(rng: np.random.Generator, size: _Size) -> tuple[Drawn, Floats]:
    """Draw who may be served from where, by distance and law; also return the distances [R,S] in km."""
    at_site, at_client = rng.random((size.sites, 2)), rng.random((size.clients, 2))
    apart_km: Floats = 3000.0 * np.hypot(*(at_client[:, None] - at_site[None]).transpose(2, 0, 1))  # of a square
    rtt_ms = apart_km * 2 * 1.5 / 200.0 + 4.0
    limit_ms = rng.choice([18.0, 24.0, 30.0, 60.0], size=size.services, p=[0.35, 0.3, 0.2, 0.15])
    law = rng.integers(0, 4, size.sites)
    strict = rng.random(size.clients) < 0.25
    may = law[None, :] == rng.integers(0, 4, size.clients)[:, None]
    may |= ~strict[:, None]
    allowed: Bools = (rtt_ms[:, :, None] <= limit_ms[None, None]) & may[:, :, None]
    nearest = np.argmin(np.where(may, rtt_ms, np.inf), axis=1)
    reachable = np.isfinite(np.where(may, rtt_ms, np.inf).min(axis=1))
    allowed[np.flatnonzero(reachable), nearest[reachable], :] = True
    allowed[np.flatnonzero(~reachable), rtt_ms.argmin(axis=1)[~reachable], :] = True
    return {"allowed": allowed}, apart_km


def _demand_and_racks(rng: np.random.Generator, size: _Size) -> tuple[Drawn, Floats, Floats]:
    """Draw demand (requests a second at the peak) and what racks of a kind do; also return how heavy services are."""
    kinds, services, quarters = size.kinds, size.services, size.quarters
    level = rng.lognormal(0.0, 0.8, (size.clients, services)) * rng.lognormal(0.0, 0.5, services)
    level *= rng.random((size.clients, services)) < 0.7
    pace = 1.0 + rng.normal(0.08, 0.02, services)
    demand = level[:, :, None] * pace[None, :, None] ** (size.times * 4.0)[None, None]
    demand *= rng.uniform(0.97, 1.03, demand.shape)
    generation = np.sort(rng.uniform(0.0, 4.0, kinds))
    rack_kw = 14.0 * 1.35**generation
    speed = 1.8**generation * rng.uniform(0.85, 1.15, kinds)
    heavy = rng.lognormal(0.0, 0.7, services)
    rate = 0.9 * speed[:, None] / heavy[None, :] * rng.uniform(0.8, 1.25, (kinds, services))
    rate[rng.random((kinds, services)) < 0.15] = 0.0
    rate[kinds - 1] = np.where(rate.max(axis=0) > 0.0, rate[kinds - 1], 0.9 * speed[-1] / heavy)
    pue = rng.uniform(1.12, 1.5, size.sites)
    price = 400.0 * 1.55**generation * rng.uniform(0.9, 1.1, kinds)
    lead = np.minimum(np.maximum(1, np.round(rng.uniform(1.0, 3.0, kinds) / quarters)), max(1, size.periods - 1))
    may_place = rng.random((size.sites, kinds)) < 0.85
    may_place[:, -1] |= ~may_place.any(axis=1)
    drawn = {
        "demand": demand,
        "rate": rate,
        "rack_kw": rack_kw,
        "rack_mw": rack_kw[None, :] * pue[:, None] / 1000.0,
        "rack_m2": np.full(kinds, 3.0),
        "price": price,
        "lead": lead.astype(np.int64),
        "life": np.full(kinds, max(1, round(20 / quarters)), dtype=np.int64),
        "may_place": may_place,
    }
    return drawn, heavy, pue


def _power(rng: np.random.Generator, size: _Size, racks: Drawn) -> tuple[Drawn, Floats]:
    """Draw power, its phases and what is there already; also return each site's part of the MW needed at the end."""
    rate, rack_kw, may_place, n_sites = racks["rate"], racks["rack_kw"], racks["may_place"], size.sites
    busy_kw = np.where(rate > 0, rack_kw[:, None] / np.maximum(rate, 1e-9), np.inf).min(axis=0)
    need_mw = float((racks["demand"][:, :, -1].sum(axis=0) * busy_kw).sum()) * 1.3 / 1000.0
    share = rng.dirichlet(np.full(n_sites, 3.0))
    power0 = need_mw * share * rng.uniform(0.25, 0.5, n_sites)
    begun = need_mw * share * 0.18
    first = int(np.argmax(rate.mean(axis=1) * may_place.mean(axis=0)))
    existing = np.zeros((n_sites, size.kinds, size.periods))
    held = np.floor(np.minimum(begun, power0 * 0.9) / racks["rack_mw"][:, first]) * may_place[:, first]
    existing[:, first, :] = held[:, None] * (size.times < 3.0)[None]
    per_site = np.minimum(3, 1 + rng.integers(0, 3, n_sites) + (n_sites >= 10))
    at: Ints = np.repeat(np.arange(n_sites), per_site).astype(np.int64)
    phases = len(at)
    phase_mw = need_mw * share[at] * rng.uniform(0.3, 0.6, phases)
    delay = np.maximum(1, np.round(rng.uniform(2.0, 6.0, phases) / size.quarters)).astype(np.int64)
    begin_cost = phase_mw * rng.uniform(900.0, 2200.0, phases)
    live_cost = phase_mw * rng.uniform(12.0, 30.0, phases) * 3.0 * size.quarters
    drawn = {
        "existing": existing,
        "power_mw": np.repeat(power0[:, None], size.periods, axis=1),
        "phase_site": at,
        "phase_mw": phase_mw,
        "phase_delay": delay,
        "phase_after": np.array([p - 1 if p and at[p - 1] == at[p] else -1 for p in range(phases)], dtype=np.int64),
        "begin_from": np.zeros(phases, dtype=np.int64),
        "begin_by": np.full(phases, size.periods, dtype=np.int64),
        "cost_begin": begin_cost[:, None] * size.worth,
        "cost_live": live_cost[:, None] * size.worth,
        "spend_begin": np.repeat(begin_cost[:, None], size.periods, axis=1),
    }
    return drawn, need_mw * share


def _owning(size: _Size, racks: Drawn) -> Floats:
    """Return about what owning a rack of each kind costs a period."""
    rate: Floats = racks["price"] * 0.25 / 4.0 * size.quarters
    return rate


def _rent(rng: np.random.Generator, size: _Size, racks: Drawn, share_mw: Floats) -> Drawn:
    """Draw rent on demand and by the year, at a premium over owning."""
    worth, n_periods, may_place = size.worth, size.periods, racks["may_place"]
    term = np.array([1, max(1, round(4 / size.quarters))], dtype=np.int64)
    premium = np.array([2.8, 1.9]) * rng.uniform(0.95, 1.05, 2)
    running = np.array([[worth[t : t + n].sum() for t in range(n_periods)] for n in term])  # [K,T]
    cost_sign = _owning(size, racks)[None, :, None, None] * premium[None, None, :, None] * running[None, None]
    cost_sign = cost_sign * rng.uniform(0.9, 1.15, (size.sites, 1, 1, 1))
    most = np.maximum(2.0, 0.08 * share_mw[:, None, None] / racks["rack_mw"][:, :, None])
    sign_max = np.repeat(np.where(may_place[:, :, None], most, 0.0), 2, axis=2)
    on_site = np.array([False, False])
    return {"term": term, "cost_sign": cost_sign, "sign_max": sign_max, "useful": np.ones(2), "on_site": on_site}


def _money(rng: np.random.Generator, size: _Size, racks: Drawn, apart_km: Floats, heavy: Floats, pue: Floats) -> Drawn:
    """Draw prices of energy, space, racks, flows and of what is not served."""
    times, worth, quarters, price, rate = size.times, size.worth, size.quarters, racks["price"], racks["rate"]
    n_sites, n_periods, rack_kw, lead = size.sites, size.periods, racks["rack_kw"], racks["lead"]
    hours = _HOURS * quarters
    energy = rng.uniform(0.04, 0.14, n_sites)[:, None] * rng.uniform(0.95, 1.1, (n_sites, n_periods))  # dollars a kWh
    space = rng.uniform(120.0, 190.0, n_sites) * 3.0 * quarters / 1000.0  # thousand dollars a kW and period
    kw = rack_kw[None, :] * pue[:, None]
    owned_cost = (
        0.3 * kw[:, :, None] * energy[:, None] * hours / 1000.0
        + (rack_kw[None, :] * space[:, None])[:, :, None]
        + (0.03 * price / 4.0 * quarters)[None, :, None]
    ) * worth
    put_cost = (0.35 * kw[:, :, None] * energy[:, None] * hours / 1000.0 * worth)[:, :, None, :]
    falling = 0.9 ** (times[None, :] + 0 * price[:, None])
    arrive = np.minimum(np.arange(n_periods)[None, :] + lead[:, None], n_periods)
    left = np.clip(1.0 - (n_periods - arrive) / racks["life"][:, None], 0.0, 1.0)
    salvage = 0.5 * left * (1.0 + _WACC) ** -size.years
    spend_buy = np.repeat((price[:, None] * falling)[None], n_sites, axis=0)
    last = rate[-1][rate[-1] > 0]
    per_unit = _owning(size, racks)[-1] / max(1e-9, float(np.median(last))) if len(last) else 1.0
    revenue = per_unit * heavy / np.median(heavy)
    cost_unserved = 8.0 * revenue[None, :, None] * rng.uniform(0.9, 1.4, (size.clients, size.services, 1)) * worth
    return {
        "cost_owned": owned_cost,
        "cost_put": np.repeat(put_cost, size.services, axis=2),
        "spend_buy": spend_buy,
        "cost_buy": spend_buy * (worth[None] - salvage)[None],
        "cost_unserved": cost_unserved,
        "cost_flow": 0.01 * revenue[None, None, :, None] * (apart_km / 1000.0)[:, :, None, None] * worth,
        "cost_billed": np.outer(rng.uniform(5.0, 12.0, n_sites) * 3.0 * quarters, worth),
    }


def _hosts(rng: np.random.Generator, size: _Size, racks: Drawn) -> Drawn:
    """Draw the fixed cost of hosting a service, and its least size."""
    fixed = 0.08 * _owning(size, racks).max() * rng.uniform(0.8, 1.2, (size.sites, size.services))
    cost_host = np.repeat(fixed[:, :, None], size.periods, 2) * size.worth
    return {"host_min": 0.5 * racks["rate"].max(axis=0), "cost_host": cost_host}


def _policy(rng: np.random.Generator, size: _Size) -> Drawn:
    """Draw grid zones and vendors, and how much of the fleet may depend on one."""
    zone, vendor = rng.integers(0, _ZONES, size.sites), rng.integers(0, 2, size.kinds)
    zones = [np.repeat((zone == z)[:, None], size.kinds, axis=1) for z in range(_ZONES)]
    vendors = [np.repeat((vendor == v)[None, :], size.sites, axis=0) for v in range(2)]
    return {"group_of": np.array(zones + vendors), "share_max": np.array([0.5] * _ZONES + [0.85] * 2)}


def _supply(rng: np.random.Generator, size: _Size, racks: Drawn) -> Drawn:
    """Draw quotas of racks a period, a limit that kinds share, and how power is billed."""
    most = np.maximum(racks["rate"].max(axis=0), 1e-9)
    racks_needed = (racks["demand"][:, :, -1].sum(axis=0) / most).sum()
    quota = racks_needed * rng.uniform(0.12, 0.3, size.kinds) * size.quarters
    supply = np.ceil(np.repeat(quota[:, None], size.periods, axis=1) * np.linspace(0.6, 1.4, size.periods))
    return {
        "supply": supply,
        "shared_use": rng.uniform(0.5, 1.5, (1, size.kinds)),
        "shared": supply.sum(axis=0)[None] * 0.6,
        "ratchet": rng.choice([0.0, 0.6, 0.8], size.sites),
        "minimum_bill": rng.choice([0.0, 0.5, 0.85], size.sites),
    }


def _slack_prices(size: _Size, cost_unserved: Floats, groups: int, mw_price: float) -> dict[str, Floats]:
    """Return what it costs to break a rule: far more than keeping it, for most."""
    worth = size.worth
    return {
        "short_power": np.outer(np.full(size.sites, mw_price), worth),
        "short_floor": np.outer(np.full(size.sites, 10.0 * float(cost_unserved.max())), worth),
        "short_survive": np.outer(0.6 * cost_unserved.mean(axis=(0, 2)), worth),
        "over_share": np.outer(np.full(groups, 0.2 * mw_price), worth),
        "over_capex": np.asarray(2.0 * worth, dtype=np.float64),
        "over_carbon": np.asarray(worth, dtype=np.float64),
        "over_water": np.asarray(worth, dtype=np.float64),
    }
