"""An owner's meters and power limits: what sites draw is divided among requests, and what they may draw reaches the engines."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING

from baseload.app.site_power import HOST_SITE_I, PowerHold, draws_of
from baseload.errors import BaseloadError, InputError

if TYPE_CHECKING:
    from baseload.app.owner_main import House

METER_S = 60.0
LOOK_S = 1.0
READ_S = 2.0  # which a driver may take to say what it counted


def begin(house: House) -> None:
    """Put up meters, and what carries power caps to engines; raises InputError where this host has not what is asked for."""
    more_meters(house)
    keeper = house.keeper
    if house.loaded.fleet.serve.power_limit == "nvml":
        from baseload.adapters.power_limits import nvml_limiter

        with _only_told_after_a_crash(house, "no cap reaches this host's accelerators"):
            house.limiter = nvml_limiter(_idle_w(house))
    house.hold = PowerHold(keeper, house.limiter, keeper.say)
    keeper.held_to = house.hold.left
    keeper.on_caps = lambda: house.spawn(house.hold.apply())


@contextlib.contextmanager
def _only_told_after_a_crash(house: House, instead: str) -> Iterator[None]:
    """Let what this host has not be an error of a start; after a crash, money and streams are worth more than a meter."""
    try:
        yield
    except InputError as problem:
        if house.made is None:
            raise
        house.keeper.say(f"warning: {problem}; {instead}")


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
            house.meters[site.name] = meters.meter("modelled", power_w(i))
            house.requests_mj[site.name] = (0, 0)
            if i == HOST_SITE_I and kind != "modelled":
                with _only_told_after_a_crash(house, "its energy is modelled"):
                    house.meters[site.name] = meters.meter(kind, power_w(i))


async def _look(house: House) -> None:
    """Look at each meter; one whose driver hangs holds up nobody but itself."""
    for name, one in house.meters.items():
        one.modelled.energy_j()  # the integral of such looks
        if one.measured is None:
            continue
        wait_s, reading = 0.0, house.readings.get(name)  # it is waited for once
        if reading is None:
            wait_s, reading = READ_S, asyncio.create_task(asyncio.to_thread(one.read))
            house.readings[name] = reading
        await asyncio.wait([reading], timeout=wait_s)
        if reading.done():
            del house.readings[name]
            reading.result()
        else:
            one.failed("its driver does not answer")


async def meter(house: House) -> None:
    """Divide what each meter saw among requests and idleness, once a minute, in the ledger."""
    from baseload.serve.energy import reconcile_site
    from baseload.serve.rows import ReconcileRow

    start_ns, faults = time.time_ns(), dict[str, str]()
    while True:
        for _ in range(int(METER_S)):
            await asyncio.sleep(LOOK_S)
            await _look(house)
        end_ns = time.time_ns()
        idle_kw = {
            site.name: power.idle_kw
            for site, power in zip(house.rows.tables.sites, house.keeper.metered(), strict=True)
        }
        for name, one in house.meters.items():
            joules, method, fault = one.since()
            if fault and not faults.get(name):
                house.keeper.say(f"warning: {name}: serve.meter: {fault}; until it counts again its energy is modelled")
            faults[name] = fault
            metered_mj = max(0, round(joules * 1000.0))
            (n_told, told_mj), house.requests_mj[name] = house.requests_mj[name], (0, 0)
            idle_mj = round(idle_kw[name] * 1e6 * (end_ns - start_ns) / 1e9)
            shares = reconcile_site(metered_mj, [told_mj], min(idle_mj, metered_mj))
            house.owner.record(
                ReconcileRow(
                    at_ns=end_ns, site=name, start_ns=start_ns, end_ns=end_ns, metered_mj=metered_mj,
                    requests_mj=sum(shares.requests_mj), idle_mj=shares.idle_mj, n_requests=n_told,
                    method=method,
                )
            )  # fmt: skip
        start_ns = end_ns
        with contextlib.suppress(BaseloadError):
            await asyncio.get_running_loop().run_in_executor(None, house.ledger.flush)
        if house.ledger.witness_error:
            house.keeper.say(
                f"warning: {house.ledger.witness_error}; checkpoints stand in the ledger alone until that is mended"
            )
