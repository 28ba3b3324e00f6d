"""A site's power cap, live: what the site draws and would draw, and the cap carried to the engines that can obey it.

The cap itself is `policies/cap.py` (asked by `serve/steer.py`), what it does to an engine is the twin's: each step takes as
much longer as `speed_ratio` says for the power that is left for it. An emulated engine is told those factors. This host's
accelerators are held by a ports.PowerLimiter where the fleet file names one; they stand in the file's first site, as its
meter does. Every other engine runs on as before: routing alone sees the cap, and its power is reckoned uncapped.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping, Sequence
from math import ceil, inf
from typing import TYPE_CHECKING, NamedTuple

from baseload.policies.cap import MIN_DYNAMIC_RATIO, speed_ratio
from baseload.ports import EngineError, PowerLimiter
from baseload.serve.steer import OFF, SitePower, Steer
from baseload.serve.tables import Tables

if TYPE_CHECKING:
    from baseload.app.housekeeping import Housekeeper

HOST_SITE_I = 0  # where this host stands
SLOW_ONE = 64  # slowness is a whole number of such parts, as in the twin (simulate/state.py)


class Draw(NamedTuple):
    """What a replica of a deployment draws, as the twin has it."""

    power_w: Sequence[float]  # by tokens of a step
    idle_w: float


def stretch(draw: Draw, ratio: float, cap_w: float) -> list[float]:
    """Return how many times longer a step takes, by its tokens, under a cap: the twin's rule (simulate/engine.py).

    `ratio` is of the power above idle, as the site's rule says; `cap_w` the most above idle that this replica may draw (inf:
    any). One number where all steps are slowed alike.

    >>> stretch(Draw([100.0, 180.0, 260.0], 100.0), 0.125, inf), stretch(Draw([100.0, 180.0, 260.0], 100.0), 1.0, 80.0)
    ([2.0], [1.0, 1.0, 1.265625])
    """
    if cap_w == inf:
        return [_slowness(ratio)]
    factors = []
    for watts in draw.power_w:
        left, wanted_w = ratio, watts - draw.idle_w
        if wanted_w * ratio > cap_w:
            left = min(ratio, max(MIN_DYNAMIC_RATIO, cap_w / wanted_w))
        factors.append(_slowness(left))
    return factors if any(one != factors[0] for one in factors) else factors[:1]


def _slowness(ratio: float) -> float:
    return ceil(SLOW_ONE / speed_ratio(ratio)) / SLOW_ONE


def wanted_power(tables: Tables, running: Sequence[float | None], limit_kw: Sequence[float]) -> list[SitePower]:
    """Return each site's IT power as it would be without a cap; `running` (replica,): sequences there, None: no engine."""
    return _power(tables, running, limit_kw, lambda r: 1.0)


def drawn_power(
    tables: Tables, running: Sequence[float | None], limit_kw: Sequence[float], left: Callable[[int], float]
) -> list[SitePower]:
    """Return each site's IT power as it is; `left(r)` is the share of its power above idle that a replica is held to."""
    return _power(tables, running, limit_kw, left)


def _power(
    tables: Tables, running: Sequence[float | None], limit_kw: Sequence[float], left: Callable[[int], float]
) -> list[SitePower]:
    idle = [row.idle_kw for row in tables.sites]
    dynamic = [0.0] * len(idle)
    for r, row in enumerate(tables.replicas):
        sequences = running[r]
        if sequences is None:
            continue
        deployment, site = tables.deployments[row.deployment_i], tables.sites[row.site_i]
        idle[row.site_i] += (1.0 - site.parked_ratio) * deployment.idle_w / 1000.0
        share = min(1.0, min(sequences, deployment.slots) / max(1, deployment.slots // 2))
        dynamic[row.site_i] += left(r) * share * max(0.0, deployment.busy_w - deployment.idle_w) / 1000.0
    return [SitePower(idle[i] + dynamic[i], idle[i], limit_kw[i]) for i in range(len(idle))]


class PowerHold:
    """Carries each site's cap to the engines; `draws` (by row of the deployment) comes with the twin's description."""

    def __init__(self, keeper: Housekeeper, limiter: PowerLimiter | None, say: Callable[[str], None]) -> None:
        self.keeper, self.limiter, self.say = keeper, limiter, say
        self.draws: dict[int, Draw] = {}
        self.told: dict[int, tuple[int, float, float]] = {}  # replica: start of it, ratio and share, as last told
        self.fault = ""
        self.turn = asyncio.Lock()

    def obeys(self, r: int) -> bool:
        """Say whether a replica's engine can be held to a cap."""
        row = self.keeper.tables.replicas[r]
        if self.keeper.tables.deployments[row.deployment_i].kind == "emulated":
            return row.deployment_i in self.draws
        return self.limiter is not None and not self.fault and row.site_i == HOST_SITE_I

    def left(self, r: int) -> float:
        """Return the share of its power above idle that a replica is held to; 1 where nothing holds it."""
        return held_to(self.keeper.steer, r) if self.obeys(r) else 1.0

    async def apply(self) -> None:
        """Tell each engine that can obey what it may draw now, where that has changed."""
        async with self.turn:
            try:
                await self._tell_emulated()
                if self.limiter is not None:
                    ratio = min((held_to(self.keeper.steer, r) for r in self._of_this_host()), default=1.0)
                    await asyncio.to_thread(self.limiter.limit, ratio)
                self.fault = ""
            except (EngineError, OSError) as error:
                if not self.fault:
                    self.say(f"a power cap could not be carried out: {error}; the site may exceed its limit")
                self.fault = str(error)

    async def _tell_emulated(self) -> None:
        keeper, same = self.keeper, dict[tuple[int, float, float], list[tuple[int, str]]]()
        for r, row in enumerate(keeper.tables.replicas):
            place, order = keeper.places[r], keeper.orders[r]
            if order is None or order.kind != "emulated" or place.engine is None or row.deployment_i not in self.draws:
                continue
            want = (keeper.steer.ratio[row.site_i], keeper.steer.cap_w[r])
            if self.told.get(r, (place.seen.incarnation, 1.0, inf)) != (place.seen.incarnation, *want):
                same.setdefault((row.deployment_i, *want), []).append((r, order.name))
        for (deployment_i, ratio, cap_w), engines in same.items():
            factors = stretch(self.draws[deployment_i], ratio, cap_w)
            await keeper.provisioner.slow_down([name for _, name in engines], factors)
            for r, _ in engines:
                self.told[r] = (keeper.places[r].seen.incarnation, ratio, cap_w)

    def _of_this_host(self) -> list[int]:
        keeper = self.keeper
        return [
            r
            for r, row in enumerate(keeper.tables.replicas)
            if row.site_i == HOST_SITE_I
            and keeper.steer.state[r] != OFF
            and keeper.tables.deployments[row.deployment_i].kind != "emulated"
        ]


def held_to(steer: Steer, r: int) -> float:
    """Return the share of a replica's power above idle that its site's cap leaves it at full load."""
    row = steer.tables.replicas[r]
    most_w = steer.peak_w[row.deployment_i] - steer.tables.deployments[row.deployment_i].idle_w
    share = min(1.0, steer.cap_w[r] / most_w) if most_w > 0.0 else 1.0
    return min(steer.ratio[row.site_i], share)


def draws_of(rows: Sequence[int], engines: Sequence[object]) -> Mapping[int, Draw]:
    """Return what each deployment's replica draws, by its row; `engines` are the twin's, in the file's order."""
    found = {}
    for i, engine in zip(rows, engines, strict=True):
        spec = engine.spec  # type: ignore[attr-defined]
        if spec.power_w is not None:
            found[i] = Draw([round(float(watts), 3) for watts in spec.power_w], float(spec.power_idle_w))
    return found
