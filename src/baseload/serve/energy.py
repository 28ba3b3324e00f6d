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
from typing import Final, NamedTuple

from baseload.serve import quick
from baseload.serve.tables import DeploymentRow, SiteRow, TenantRow

fields_of: Final = quick.usage_fields

MODEL_ERROR: Final = 0.25  # step times within about 20 %, watts within about 13 %, in quadrature
J_PER_WH: Final = 3600.0
S_PER_HOUR: Final = 3600.0
METHODS: Final = (
    b'{"cost":"modelled: capex, opex, energy and idle share by tokens","price":"exact: price list by tokens",'
    b'"energy":"modelled: replica at half load%b","carbon":"modelled: energy at the meter, grid average of the hour"}'
)


class Accounting:
    """What a request cost, and took; money in the fleet's currency, ranges as (low, high)."""

    __slots__ = (
        "carbon_g", "cost", "cost_high", "cost_low", "energy_wh", "energy_wh_high", "energy_wh_low", "g_per_wh", "rates",
    )  # fmt: skip

    def __init__(
        self,
        rates: Rates,
        cost: float,
        cost_low: float,
        cost_high: float,
        energy_wh: float,
        energy_wh_low: float,
        energy_wh_high: float,
        g_per_wh: float,
    ) -> None:
        self.rates = rates
        self.cost, self.cost_low, self.cost_high = cost, cost_low, cost_high
        self.energy_wh = energy_wh  # at the site's meter: PUE included
        self.energy_wh_low, self.energy_wh_high = energy_wh_low, energy_wh_high
        self.g_per_wh = g_per_wh
        self.carbon_g = energy_wh * g_per_wh

    @property
    def cost_range(self) -> tuple[float, float]:
        """Return the least and the most that it may have cost."""
        return self.cost_low, self.cost_high

    @property
    def energy_wh_range(self) -> tuple[float, float]:
        """Return the least and the most energy that it may have taken."""
        return self.energy_wh_low, self.energy_wh_high

    @property
    def carbon_g_range(self) -> tuple[float, float]:
        """Return the least and the most carbon: its energy's range."""
        return self.energy_wh_low * self.g_per_wh, self.energy_wh_high * self.g_per_wh

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


class Rates:
    """What a token and a second cost and take at one replica: worked out once, so that a request is a few products."""

    __slots__ = (
        "above_j_in", "above_j_out", "all_j_in", "all_j_out", "alone_cost_per_s", "alone_kw", "alone_w", "carbon_g_per_kwh",
        "cost_in", "cost_out", "low_ratio", "methods", "price_per_kwh", "wh_per_j",
    )  # fmt: skip

    def __init__(self, deployment: DeploymentRow, site: SiteRow) -> None:
        self.above_j_in, self.above_j_out = deployment.j_per_input_token, deployment.j_per_output_token
        self.all_j_in = self.above_j_in + idle_j_per_input(deployment)
        self.all_j_out = self.above_j_out + idle_j_per_output(deployment)
        self.wh_per_j = site.pue / J_PER_WH
        self.alone_w = max(deployment.busy_w, deployment.idle_w)
        self.alone_kw = self.alone_w * site.pue / 1e3  # at the site's meter
        self.alone_cost_per_s = deployment.idle_cost_per_s
        self.cost_in, self.cost_out = deployment.cost_per_input_token, deployment.cost_per_output_token
        self.low_ratio = (1.0 - MODEL_ERROR) * (1.0 - deployment.idle_share_ratio)
        self.carbon_g_per_kwh, self.price_per_kwh = site.carbon_g_per_kwh, site.price_per_kwh
        as_if = "" if deployment.kind == "external" else deployment.accelerator  # that a rehearsal pretends to be
        self.methods = METHODS % (b", as if on %b" % as_if.encode() if as_if else b"")

    def account(
        self, fresh: int, output_tokens: int, seconds: float, carbon_g_per_kwh: float, price_per_kwh: float
    ) -> Accounting:
        """Return what a request of `fresh` prompt tokens (not cached) cost and took; see `account` below."""
        above_j = fresh * self.above_j_in + output_tokens * self.above_j_out
        all_j = fresh * self.all_j_in + output_tokens * self.all_j_out
        if seconds < 0.0:
            seconds = 0.0
        if carbon_g_per_kwh < 0.0:
            carbon_g_per_kwh = self.carbon_g_per_kwh
        if price_per_kwh < 0.0:
            price_per_kwh = self.price_per_kwh if self.price_per_kwh > 0.0 else 0.0
        wh_per_j = self.wh_per_j
        high_j, alone_j = (1.0 + MODEL_ERROR) * all_j, seconds * self.alone_w
        cost = fresh * self.cost_in + output_tokens * self.cost_out
        high = (1.0 + MODEL_ERROR) * cost
        alone = seconds * (self.alone_cost_per_s + self.alone_kw * price_per_kwh / S_PER_HOUR)
        return Accounting(
            self, cost, self.low_ratio * cost, alone if alone > high else high, all_j * wh_per_j,
            (1.0 - MODEL_ERROR) * above_j * wh_per_j, (alone_j if alone_j > high_j else high_j) * wh_per_j,
            carbon_g_per_kwh / 1000.0,
        )  # fmt: skip


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
    rates, fresh = Rates(deployment, site), max(0, input_tokens - cached_tokens)
    return rates.account(fresh, output_tokens, seconds, carbon_g_per_kwh, price_per_kwh)


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
    low_wh, high_wh, g_per_wh = done.energy_wh_low, done.energy_wh_high, done.g_per_wh
    return fields_of(
        done.cost, price, done.energy_wh, done.carbon_g, done.cost_low, done.cost_high, low_wh, high_wh,
        low_wh * g_per_wh, high_wh * g_per_wh, currency, done.rates.methods,
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
