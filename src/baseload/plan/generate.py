"""Made-up planning problems with a seed: what `make bench-plan` and the tests solve.

The shapes are those of an operator of several sites who grows over five years: sites of about a megawatt over a continent's
distances, each with up to three grid phases that take two to six quarters; rack kinds that get dearer, denser and faster;
services that a kind serves well or badly; clients (a tenant in a region) who may be served from a bit under half of the sites
(latency, law); demand that grows about 8 % a quarter, each service at its own pace. Rent on demand costs nearly three times what
owning does, a reserved year nearly twice. Nothing here is measured: levels follow published prices and powers of 2026
(a rack of eight accelerators at about 0.4 million dollars and 15 kW, 120 to 190 dollars a kW and month of space, 40 to 140
dollars a MWh).
Money is in thousands of dollars of present value, so that no coefficient is far from 1.
"""

from __future__ import annotations

import numpy as np

from baseload.plan.problem import Problem

_WACC = 0.08
_ZONES = 4  # grid zones that the sites lie in
_HOURS = 8766.0 / 4  # of a quarter


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
    quarters = 4.0 * years / periods  # in one period
    times = np.arange(periods) * quarters / 4.0
    worth = (1.0 + _WACC) ** -times
    hours = _HOURS * quarters

    # where things are: 0..1 square of 3,000 km
    at_site, at_client = rng.random((sites, 2)), rng.random((clients, 2))
    apart_km = 3000.0 * np.hypot(*(at_client[:, None] - at_site[None]).transpose(2, 0, 1))
    rtt_ms = apart_km * 2 * 1.5 / 200.0 + 4.0
    limit_ms = rng.choice([18.0, 24.0, 30.0, 60.0], size=services, p=[0.35, 0.3, 0.2, 0.15])
    law = rng.integers(0, 4, sites)
    strict = rng.random(clients) < 0.25
    may = law[None, :] == rng.integers(0, 4, clients)[:, None]
    may |= ~strict[:, None]
    allowed = (rtt_ms[:, :, None] <= limit_ms[None, None]) & may[:, :, None]
    nearest = np.argmin(np.where(may, rtt_ms, np.inf), axis=1)
    reachable = np.isfinite(np.where(may, rtt_ms, np.inf).min(axis=1))
    allowed[np.flatnonzero(reachable), nearest[reachable], :] = True
    allowed[np.flatnonzero(~reachable), rtt_ms.argmin(axis=1)[~reachable], :] = True

    # demand: requests a second at the peak
    level = rng.lognormal(0.0, 0.8, (clients, services)) * rng.lognormal(0.0, 0.5, services)
    level *= rng.random((clients, services)) < 0.7
    pace = 1.0 + rng.normal(0.08, 0.02, services)
    demand = level[:, :, None] * pace[None, :, None] ** (times * 4.0)[None, None]
    demand *= rng.uniform(0.97, 1.03, demand.shape)

    # racks
    generation = np.sort(rng.uniform(0.0, 4.0, kinds))
    rack_kw = 14.0 * 1.35**generation
    speed = 1.8**generation * rng.uniform(0.85, 1.15, kinds)
    size = rng.lognormal(0.0, 0.7, services)
    rate = 0.9 * speed[:, None] / size[None, :] * rng.uniform(0.8, 1.25, (kinds, services))
    rate[rng.random((kinds, services)) < 0.15] = 0.0
    rate[kinds - 1] = np.where(rate.max(axis=0) > 0.0, rate[kinds - 1], 0.9 * speed[-1] / size)
    pue = rng.uniform(1.12, 1.5, sites)
    rack_mw = rack_kw[None, :] * pue[:, None] / 1000.0
    price = 400.0 * 1.55**generation * rng.uniform(0.9, 1.1, kinds)
    lead = np.minimum(np.maximum(1, np.round(rng.uniform(1.0, 3.0, kinds) / quarters)), max(1, periods - 1)).astype(
        np.int64
    )
    life = np.full(kinds, max(1, round(20 / quarters)), dtype=np.int64)
    may_place = rng.random((sites, kinds)) < 0.85
    may_place[:, -1] |= ~may_place.any(axis=1)

    # what the fleet will need at the end, to give the sites a size
    busy_kw = np.where(rate > 0, rack_kw[:, None] / np.maximum(rate, 1e-9), np.inf).min(axis=0)
    need_mw = float((demand[:, :, -1].sum(axis=0) * busy_kw).sum()) * 1.3 / 1000.0
    share = rng.dirichlet(np.full(sites, 3.0))
    power0 = need_mw * share * rng.uniform(0.25, 0.5, sites)
    power_mw = np.repeat(power0[:, None], periods, axis=1)
    begun = need_mw * share * 0.18
    first = int(np.argmax(rate.mean(axis=1) * may_place.mean(axis=0)))
    existing = np.zeros((sites, kinds, periods))
    held = np.floor(np.minimum(begun, power0 * 0.9) / rack_mw[:, first]) * may_place[:, first]
    existing[:, first, :] = held[:, None] * (times < 3.0)[None]

    # grid phases
    per_site = np.minimum(3, 1 + rng.integers(0, 3, sites) + (sites >= 10))
    phase_site = np.repeat(np.arange(sites), per_site).astype(np.int64)
    phases = len(phase_site)
    phase_mw = need_mw * share[phase_site] * rng.uniform(0.3, 0.6, phases)
    delay = np.maximum(1, np.round(rng.uniform(2.0, 6.0, phases) / quarters)).astype(np.int64)
    after = np.array([p - 1 if p and phase_site[p - 1] == phase_site[p] else -1 for p in range(phases)], dtype=np.int64)
    begin_cost = phase_mw * rng.uniform(900.0, 2200.0, phases)
    live_cost = phase_mw * rng.uniform(12.0, 30.0, phases) * 3.0 * quarters

    # rent
    rentals = ("on-demand", "reserved year")
    term = np.array([1, max(1, round(4 / quarters))], dtype=np.int64)
    own_rate = price * 0.25 / 4.0 * quarters  # about what owning costs a period
    premium = np.array([2.8, 1.9]) * rng.uniform(0.95, 1.05, 2)
    running = np.array([[worth[t : t + n].sum() for t in range(periods)] for n in term])  # [K,T]
    cost_sign = own_rate[None, :, None, None] * premium[None, None, :, None] * running[None, None]
    cost_sign = cost_sign * rng.uniform(0.9, 1.15, (sites, 1, 1, 1))
    sign_max = np.where(
        may_place[:, :, None], np.maximum(2.0, 0.08 * need_mw * share[:, None, None] / rack_mw[:, :, None]), 0.0
    )
    sign_max = np.repeat(sign_max, 2, axis=2)

    # money
    energy = rng.uniform(0.04, 0.14, sites)[:, None] * rng.uniform(0.95, 1.1, (sites, periods))  # dollars a kWh
    space = rng.uniform(120.0, 190.0, sites) * 3.0 * quarters / 1000.0  # thousand dollars a kW and period
    kw = rack_kw[None, :] * pue[:, None]
    owned_cost = (
        0.3 * kw[:, :, None] * energy[:, None] * hours / 1000.0
        + (rack_kw[None, :] * space[:, None])[:, :, None]
        + (0.03 * price / 4.0 * quarters)[None, :, None]
    ) * worth
    put_cost = (0.35 * kw[:, :, None] * energy[:, None] * hours / 1000.0 * worth)[:, :, None, :]
    falling = 0.9 ** (times[None, :] + 0 * price[:, None])
    arrive = np.minimum(np.arange(periods)[None, :] + lead[:, None], periods)
    left = np.clip(1.0 - (periods - arrive) / life[:, None], 0.0, 1.0)
    salvage = 0.5 * left * (1.0 + _WACC) ** -years
    spend_buy = np.repeat((price[:, None] * falling)[None], sites, axis=0)
    cost_buy = spend_buy * (worth[None] - salvage)[None]
    per_unit = own_rate[-1] / max(1e-9, float(np.median(rate[-1][rate[-1] > 0]))) if (rate[-1] > 0).any() else 1.0
    revenue = per_unit * size / np.median(size)
    cost_unserved = 8.0 * revenue[None, :, None] * rng.uniform(0.9, 1.4, (clients, services, 1)) * worth
    cost_flow = 0.01 * revenue[None, None, :, None] * (apart_km / 1000.0)[:, :, None, None] * worth
    cost_billed = np.outer(rng.uniform(5.0, 12.0, sites) * 3.0 * quarters, worth)
    cost_host = np.zeros((sites, services, periods))
    host_min = None
    if hosting:
        host_min = 0.5 * rate.max(axis=0)
        cost_host = np.repeat(
            (0.08 * own_rate.max() * rng.uniform(0.8, 1.2, (sites, services)))[:, :, None], periods, 2
        )
        cost_host = cost_host * worth
    zone, vendor = rng.integers(0, _ZONES, sites), rng.integers(0, 2, kinds)
    group_of = np.array(
        [np.repeat((zone == z)[:, None], kinds, axis=1) for z in range(_ZONES)]
        + [np.repeat((vendor == v)[None, :], sites, axis=0) for v in range(2)]
    )
    share_max = np.array([0.5] * _ZONES + [0.85] * 2)
    racks_needed = (demand[:, :, -1].sum(axis=0) / np.maximum(rate.max(axis=0), 1e-9)).sum()
    supply = np.repeat((racks_needed * rng.uniform(0.12, 0.3, kinds) * quarters)[:, None], periods, axis=1)
    supply = np.ceil(supply * np.linspace(0.6, 1.4, periods))
    shared_use = rng.uniform(0.5, 1.5, (1, kinds))
    shared = supply.sum(axis=0)[None] * 0.6
    huge = float(cost_unserved.max())
    mw_price = 40.0 * float((own_rate / rack_kw).max()) * 1000.0
    infinite = np.full(periods, np.inf)
    return Problem(
        name=f"made up {sites}x{kinds}x{services}x{clients}x{periods}, seed {seed}",
        sites=tuple(f"site{i}" for i in range(sites)),
        kinds=tuple(f"kind{i}" for i in range(kinds)),
        services=tuple(f"service{i}" for i in range(services)),
        clients=tuple(f"client{i}" for i in range(clients)),
        periods=tuple(f"{2027 + int(y)}+{y - int(y):.2f}" for y in times),
        phases=tuple(f"site{s}.grid[{p - int(np.argmax(phase_site == s))}]" for p, s in enumerate(phase_site)),
        rentals=rentals,
        groups=tuple([f"zone{z}" for z in range(_ZONES)] + ["vendor0", "vendor1"]),
        limits=("packaging",),
        demand=demand,
        allowed=allowed,
        may_place=may_place,
        rate=rate,
        rack_mw=rack_mw,
        rack_m2=np.full(kinds, 3.0),
        existing=existing,
        lead=lead,
        life=life,
        whole=np.full((sites, kinds), whole),
        power_mw=power_mw,
        floor_m2=np.full((sites, periods), np.inf),
        phase_site=phase_site,
        phase_mw=phase_mw,
        phase_delay=delay,
        phase_after=after,
        begin_from=np.zeros(phases, dtype=np.int64),
        begin_by=np.full(phases, periods, dtype=np.int64),
        ratchet=rng.choice([0.0, 0.6, 0.8], sites),
        minimum_bill=rng.choice([0.0, 0.5, 0.85], sites),
        supply=supply,
        shared_use=shared_use,
        shared=shared,
        term=term,
        useful=np.ones(2),
        on_site=np.array([False, False]),
        sign_max=sign_max,
        group_of=group_of,
        share_max=share_max,
        survive_ratio=np.full(services, 0.7 if survive else 0.0),
        host_min=host_min,
        cost_begin=begin_cost[:, None] * worth,
        cost_live=live_cost[:, None] * worth,
        cost_buy=cost_buy,
        cost_owned=owned_cost,
        cost_sign=cost_sign,
        cost_put=np.repeat(put_cost, services, axis=2),
        cost_flow=cost_flow,
        cost_unserved=cost_unserved,
        cost_billed=cost_billed,
        cost_host=cost_host,
        spend_begin=np.repeat(begin_cost[:, None], periods, axis=1),
        spend_buy=spend_buy,
        capex_budget=infinite,
        carbon_owned=np.zeros((sites, kinds, periods)),
        carbon_put=np.zeros((sites, kinds, services, periods)),
        carbon_budget=infinite,
        water_owned=np.zeros((sites, kinds, periods)),
        water_put=np.zeros((sites, kinds, services, periods)),
        water_budget=infinite,
        slack_price={
            "short_power": np.outer(np.full(sites, mw_price), worth),
            "short_floor": np.outer(np.full(sites, 10.0 * huge), worth),
            "short_survive": np.outer(0.6 * cost_unserved.mean(axis=(0, 2)), worth),
            "over_share": np.outer(np.full(len(share_max), 0.2 * mw_price), worth),
            "over_capex": np.asarray(2.0 * worth, dtype=np.float64),
            "over_carbon": np.asarray(worth, dtype=np.float64),
            "over_water": np.asarray(worth, dtype=np.float64),
        },
    )
