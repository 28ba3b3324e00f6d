"""What a request cost its owner, and what energy and carbon it took: plain numbers from the tables, in microseconds.

An embedded or emulated engine is reckoned as the accelerator that the fleet file names in its place, and the answer says so.
The estimate: a token's share of a replica at half load, its idle draw included while it works (energy), and capital, opex,
energy and idle time as the fleet file expects them (cost). The range is honest about what one request cannot know, namely
who else was in the batch:
  low   the replica was full and never idle: energy above idle alone, cost without its idle share; both less MODEL_ERROR
  high  nobody else was on the replica: all it draws and costs while the request lasted, at least the estimate and MODEL_ERROR
MODEL_ERROR is the speed and power models' median error, put together (docs/accuracy.md). Carbon is energy at the site's
meter times the grid's average intensity of the hour: its range is the energy's. All of it is provisional: what the meter
saw is divided by `reconcile_site` later, and appended.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from baseload.serve.tables import DeploymentRow, SiteRow, TenantRow

MODEL_ERROR = 0.25  # step times within about 20 %, watts within about 13 %, in quadrature
J_PER_KWH = 3.6e6
J_PER_WH = 3600.0
METHODS = (
    b'{"cost":"modelled: capex, opex, energy and idle share by tokens","price":"exact: price list by tokens",'
    b'"energy":"modelled: replica at half load%b","carbon":"modelled: energy at the meter, grid average of the hour"}'
)


class Accounting(NamedTuple):
    """What a request cost, and took; money in the fleet's currency, ranges as (low, high)."""

    cost: float
    energy_wh: float  # at the site's meter: PUE included
    carbon_g: float
    cost_range: tuple[float, float]
    energy_wh_range: tuple[float, float]
    carbon_g_range: tuple[float, float]
    method: str  # of energy, as the ledger names it
    as_if: str = ""  # accelerator that a rehearsal pretends to be; '' where the engine is really there

    @property
    def cost_nano(self) -> int:
        """Return the cost in 1e-9 of the currency."""
        return round(self.cost * 1e9)

    @property
    def energy_mj(self) -> int:
        """Return the energy in millijoules."""
        return round(self.energy_wh * (1e3 * J_PER_WH))

    @property
    def carbon_ug(self) -> int:
        """Return the carbon in micrograms."""
        return round(self.carbon_g * 1e6)


def price_nano(tenant: TenantRow, input_tokens: int, cached_tokens: int, output_tokens: int) -> int:
    """Return the price in 1e-9 of the currency, rounded down; cached tokens are part of the input tokens.

    >>> acme = TenantRow(name="acme", ttft_slo_s=1, tpot_slo_s=1, priority=5, input_pico=2_000_000, cached_pico=500_000,
    ...                  output_pico=6_000_000, budget_per_month_nano=None)
    >>> price_nano(acme, input_tokens=1000, cached_tokens=200, output_tokens=100)
    2300000
    """
    cached = min(cached_tokens, input_tokens)
    fresh = input_tokens - cached
    return (fresh * tenant.input_pico + cached * tenant.cached_pico + output_tokens * tenant.output_pico) // 1000


def account(
    deployment: DeploymentRow,
    site: SiteRow,
    *,
    input_tokens: int,
    cached_tokens: int,
    output_tokens: int,
    seconds: float,
    carbon_g_per_kwh: float = -1.0,
    price_per_kwh: float = -1.0,
) -> Accounting:
    """Return what a request cost and took; `seconds` is how long it held the replica.

    Carbon and price of the current hour come from the board where the caller has them; below 0 the tables' count.
    """
    carbon_per_kwh = site.carbon_g_per_kwh if carbon_g_per_kwh < 0.0 else carbon_g_per_kwh
    kwh_price = site.price_per_kwh if price_per_kwh < 0.0 else price_per_kwh
    fresh = max(0, input_tokens - cached_tokens)
    above_j = fresh * deployment.j_per_input_token + output_tokens * deployment.j_per_output_token
    all_j = above_j + fresh * idle_j_per_input(deployment) + output_tokens * idle_j_per_output(deployment)
    alone_j = max(0.0, seconds) * max(deployment.busy_w, deployment.idle_w)
    wh_per_j = site.pue / J_PER_WH
    energy_wh = all_j * wh_per_j
    low_wh = (1.0 - MODEL_ERROR) * above_j * wh_per_j
    high_wh = max((1.0 + MODEL_ERROR) * all_j, alone_j) * wh_per_j
    cost = fresh * deployment.cost_per_input_token + output_tokens * deployment.cost_per_output_token
    alone = max(0.0, seconds) * deployment.idle_cost_per_s + alone_j * site.pue / J_PER_KWH * max(0.0, kwh_price)
    g_per_wh = carbon_per_kwh / 1000.0
    return Accounting(
        cost=cost,
        energy_wh=energy_wh,
        carbon_g=energy_wh * g_per_wh,
        cost_range=(
            (1.0 - MODEL_ERROR) * (1.0 - deployment.idle_share_ratio) * cost,
            max((1.0 + MODEL_ERROR) * cost, alone),
        ),
        energy_wh_range=(low_wh, high_wh),
        carbon_g_range=(low_wh * g_per_wh, high_wh * g_per_wh),
        method="modelled",
        as_if="" if deployment.kind == "external" else deployment.accelerator,
    )


def idle_j_per_input(deployment: DeploymentRow) -> float:
    """Return a prompt token's share of the replica's idle draw while it is computed, in joules."""
    speed = deployment.prefill_tokens_per_s
    return deployment.idle_w / speed if speed > 0.0 else 0.0


def idle_j_per_output(deployment: DeploymentRow) -> float:
    """Return an answer token's share of the replica's idle draw in a step at half load, in joules.

    What it takes above idle is (busy - idle) x step / sequences, so its share of idle is in the same proportion.
    """
    above_w = deployment.busy_w - deployment.idle_w
    if above_w > 0.0 and deployment.j_per_output_token > 0.0:
        return deployment.j_per_output_token * deployment.idle_w / above_w
    return deployment.idle_w * deployment.decode_s_per_token / max(1, deployment.slots // 2)


def usage_fields(done: Accounting, price: float, currency: bytes) -> bytes:
    """Return what `usage` gains in an answer, as JSON members without braces: `"cost":…,"price":…,…,"baseload":{…}`."""
    methods = METHODS % (b", as if on %b" % done.as_if.encode() if done.as_if else b"")
    return (
        b'"cost":%.9g,"price":%.9g,"energy_wh":%.6g,"carbon_g":%.6g,"baseload":{"currency":"%b","method":%b,'
        b'"range":{"cost":[%.6g,%.6g],"energy_wh":[%.6g,%.6g],"carbon_g":[%.6g,%.6g]},"provisional":true}'
    ) % (
        done.cost, price, done.energy_wh, done.carbon_g, currency, methods,
        *done.cost_range, *done.energy_wh_range, *done.carbon_g_range,
    )  # fmt: skip


class Reconciled(NamedTuple):
    """A site's metered energy, divided to the millijoule."""

    requests_mj: list[int]
    idle_mj: int

    @property
    def total_mj(self) -> int:
        """Return the sum: what the meter saw."""
        return sum(self.requests_mj) + self.idle_mj


def reconcile_site(metered_mj: int, requests_mj: Sequence[int], idle_mj: int) -> Reconciled:
    """Divide what the meter saw among requests and idleness; the parts sum to it exactly.

    Idleness keeps what it was reckoned at, requests share the rest in proportion to what they were told. Where the meter
    saw less than idleness alone, both shrink alike; where nothing was asked, all of it was idle.

    >>> reconcile_site(1000, [100, 200], 400)
    Reconciled(requests_mj=[200, 400], idle_mj=400)
    """
    assert metered_mj >= 0 and idle_mj >= 0
    told = sum(requests_mj)
    if told <= 0:
        return Reconciled([0] * len(requests_mj), metered_mj)
    idle = idle_mj if metered_mj >= idle_mj else metered_mj * idle_mj // (idle_mj + told)
    rest, before, shares = metered_mj - idle, 0, []
    given = 0
    for mj in requests_mj:
        assert mj >= 0, mj
        before += mj
        until = rest * before // told  # rounding is carried on, so that nothing is lost
        shares.append(until - given)
        given = until
    return Reconciled(shares, idle)
