"""An owner's meters and power limits: what sites draw is divided among requests, and what they may draw reaches the engines."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import Callable
from typing import TYPE_CHECKING

from baseload.app.site_power import HOST_SITE_I, PowerHold, draws_of
from baseload.errors import BaseloadError

if TYPE_CHECKING:
    from baseload.app.owner_main import House

METER_S = 60.0


def begin(house: House) -> None:
    """Put up meters, and what carries power caps to engines; raises InputError where this host has not what is asked for."""
    more_meters(house)
    keeper = house.keeper
    if house.loaded.fleet.serve.power_limit == "nvml":
        from baseload.adapters.power_limits import nvml_limiter

        house.limiter = nvml_limiter(_idle_w(house))
    house.hold = PowerHold(keeper, house.limiter, keeper.say)
    keeper.held_to = house.hold.left
    keeper.on_caps = lambda: house.spawn(house.hold.apply())


def _idle_w(house: House) -> float:
    """Return what an accelerator of this host draws at rest: the first deployment's of the first site, by the catalogue."""
    from baseload.fleet import catalog

    tables = house.rows.tables
    here = [tables.deployments[row.deployment_i].accelerator for row in tables.pools if row.site_i == HOST_SITE_I]
    return catalog.accelerator(here[0]).idle_w if here else 0.0


def take_draws(house: House) -> None:
    """Take up what each deployment draws, once the twin has described it, and tell the engines what they may."""
    house.hold.draws = dict(draws_of(house.rows.deployments, house.live.twin.engines))
    house.keeper.on_caps()


def more_meters(house: House) -> None:
    """Put a meter at each site that has none yet; of a site that left it stays, and reads what still runs."""
    from baseload.adapters import meters

    kind = house.loaded.fleet.serve.meter

    def power_w(i: int) -> Callable[[], float]:
        return lambda: house.keeper.metered()[i].power_kw * 1000.0

    for i, site in enumerate(house.rows.tables.sites):
        if site.name not in house.meters:
            made = meters.meter(kind if i == 0 or kind == "modelled" else "modelled", power_w(i))
            house.meters[site.name], house.metered_j[site.name] = made, made.energy_j()
            house.requests_mj[site.name] = []


async def meter(house: House) -> None:
    """Divide what each meter saw among requests and idleness, once a minute, in the ledger."""
    from baseload.serve.energy import reconcile_site
    from baseload.serve.rows import ReconcileRow

    start_ns = time.time_ns()
    while True:
        for _ in range(int(METER_S)):  # a modelled meter is the integral of its looks
            await asyncio.sleep(1.0)
            seen = {name: one.energy_j() for name, one in house.meters.items()}
        end_ns = time.time_ns()
        idle_kw = {
            site.name: power.idle_kw
            for site, power in zip(house.rows.tables.sites, house.keeper.metered(), strict=True)
        }
        for name, joules in seen.items():
            metered_mj = max(0, round((joules - house.metered_j[name]) * 1000.0))
            told, house.requests_mj[name] = house.requests_mj[name], []
            idle_mj = round(idle_kw[name] * 1e6 * (end_ns - start_ns) / 1e9)
            shares = reconcile_site(metered_mj, told, min(idle_mj, metered_mj))
            house.metered_j[name] = joules
            house.owner.record(
                ReconcileRow(
                    at_ns=end_ns, site=name, start_ns=start_ns, end_ns=end_ns, metered_mj=metered_mj,
                    requests_mj=sum(shares.requests_mj), idle_mj=shares.idle_mj, n_requests=len(told),
                    method=house.meters[name].method,
                )
            )  # fmt: skip
        start_ns = end_ns
        with contextlib.suppress(BaseloadError):
            await asyncio.get_running_loop().run_in_executor(None, house.ledger.flush)
        if house.ledger.witness_error:
            house.keeper.say(
                f"warning: {house.ledger.witness_error}; checkpoints stand in the ledger alone until that is mended"
            )
