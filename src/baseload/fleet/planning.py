"""What `baseload plan` may decide and what it must keep to: the fleet file's `plan` section, one field a key.

Every key may be absent: then the plan buys the accelerators already in use at the declared sites, rents them by the
hour where the catalogue knows a price, and begins the grid phases that are announced. What holds between these keys and
the rest of the file is `check_plan.py`; what they come to in numbers is `app/plan_problem.py`.
"""

from __future__ import annotations

from datetime import date
from typing import Annotated, Literal

from msgspec import Meta

from baseload.fleet.kinds import (
    Count,
    Country,
    D,
    Name,
    Natural,
    NonNegative,
    Positive,
    PositiveMegawatts,
    Ratio,
    Record,
    ZeroUp,
)

GrowthPerYear = Annotated[float, Meta(ge=-0.99, le=20)]
GROWTH_PER_YEAR = 0.25
GROWTH_SIGMA = 0.1
GROWS_AT_MOST_YEARS = 50.0  # beyond, demand stays: no plan looks so far, and no number grows without end
GRID_COST_USD_PER_KW = 200.0  # substation and line of a large load; modelled
TERM_MONTHS = {"on_demand": 3, "reserved": 36, "spot": 3}


class Growth(Record, frozen=True):
    """How one tenant's demand grows."""

    per_year: Annotated[GrowthPerYear, D("0.25: a quarter more each year, compounded")] = GROWTH_PER_YEAR
    sigma: Annotated[ZeroUp, D("standard deviation of that, for `--risk`", le=5)] = GROWTH_SIGMA


class LoadBlock(Record, frozen=True):
    """A part of the year and the load in it."""

    hours_ratio: Annotated[Ratio, D("share of the hours of a year")]
    of_peak: Annotated[Ratio, D("load in these hours over the peak")]


class PlannedDemand(Record, frozen=True):
    """How today's demand becomes that of the coming years."""

    growth_per_year: Annotated[GrowthPerYear, D("of tenants that are not named below")] = GROWTH_PER_YEAR
    growth_sigma: Annotated[ZeroUp, D("its standard deviation, for `--risk`", le=5)] = GROWTH_SIGMA
    tenants: Annotated[dict[Name, Growth], D("growth by tenant")] = {}
    peak_to_mean: Annotated[
        Annotated[float, Meta(ge=1, le=1000)] | None,
        D("peak to be carried over the run's mean rate; from the trace where absent"),
    ] = None
    load_blocks: Annotated[
        list[LoadBlock],
        D("load over the year, for energy and income; where empty, every hour is like the run's mean"),
    ] = []
    unserved_price_factor: Annotated[
        Positive, D("a request not served costs its list price times this: lost income and lost customers")
    ] = 10.0


class Buy(Record, frozen=True):
    """An accelerator that may be bought, and where."""

    accelerator: Annotated[str, D("catalogue name")]
    sites: Annotated[list[str], D("where; all declared sites where empty")] = []
    accelerators_per_rack: Annotated[
        Natural | None, D("shape of a rack; as racked already, or the catalogue's, where absent")
    ] = None
    rack_kw: Annotated[Positive | None, D("kW that one rack may draw; as racked already where absent")] = None
    area_m2: Annotated[Positive | None, D("floor of one rack with its aisles; as racked already where absent")] = None
    price_per_accelerator: Annotated[
        NonNegative | None, D("with its share of server and network; the catalogue's where absent")
    ] = None
    price_drop_per_year: Annotated[
        Ratio | None, D("share by which the price falls each year; the shipped figure where absent")
    ] = None
    lead_weeks: Annotated[
        Annotated[float, Meta(ge=0, le=520)] | None, D("order to rack; the shipped median where absent")
    ] = None
    most_per_quarter: Annotated[Count | None, D("accelerators promised in a quarter; no limit where absent")] = None


class Lease(Record, frozen=True):
    """An accelerator that may be leased: it stands at a site of yours, on its power and floor, and goes back when its term ends."""

    accelerator: Annotated[str, D("catalogue name")]
    price_per_accelerator_month: Annotated[
        NonNegative, D("with its share of server and network, used or not, upkeep included")
    ]
    term_months: Annotated[
        Annotated[int, Meta(ge=1, le=240)], D("paid in whole quarters from its first day in service")
    ] = 36
    sites: Annotated[list[str], D("where; all declared sites where empty")] = []
    accelerators_per_rack: Annotated[
        Natural | None, D("shape of a rack; as racked or bought, else the catalogue's, where absent")
    ] = None
    lead_weeks: Annotated[
        Annotated[float, Meta(ge=0, le=520)] | None, D("order to rack; the shipped median where absent")
    ] = None
    most_per_quarter: Annotated[Count | None, D("accelerators promised in a quarter; no limit where absent")] = None


class Begin(Record, frozen=True):
    """A grid phase that may be begun: one that is announced in `grid`, or a new one."""

    site: Annotated[str, D("name under `sites`")]
    phase: Annotated[
        Annotated[int, Meta(ge=0, le=9999)] | None, D("its place in the site's `grid`, from 0; none: a new one")
    ] = None
    power_mw: Annotated[PositiveMegawatts | None, D("MW at the meter, of a new one")] = None
    months: Annotated[
        Annotated[float, Meta(ge=0, le=600)] | None, D("from beginning to power; the median of its stages where absent")
    ] = None
    cost_to_begin: Annotated[
        NonNegative | None, D("connection, substation, agreement; 200 US dollars a kW where absent")
    ] = None
    cost_per_year: Annotated[NonNegative, D("while energised: reservation, upkeep")] = 0.0
    not_before: Annotated[date | None, D("first day on which it may be begun")] = None


class ColocationBlock(Record, frozen=True):
    """Power with space and cooling that may be leased in somebody's building, take or pay."""

    site: Annotated[str, D("name under `sites`: where it is")]
    power_mw: Annotated[PositiveMegawatts, D("MW at the meter of one block")]
    blocks: Annotated[Natural, D("how many may be taken")] = 1
    price_per_kw_month: Annotated[NonNegative, D("of the block, beside what the site's racks pay by their kW")] = 0.0
    take_or_pay_ratio: Annotated[Ratio, D("share of the block that is paid even when unused")] = 1.0
    months: Annotated[Annotated[float, Meta(ge=0, le=600)], D("from signing to power")] = 3.0


class Rent(Record, frozen=True):
    """Accelerators of somebody else's cloud, powered and cooled by them."""

    accelerator: Annotated[str, D("catalogue name")]
    place: Annotated[str, D("catalogue place: latency, and whose law holds where the data sits")]
    operator: Annotated[Name, D("who operates it: offers of one operator in one place are lost together")] = "cloud"
    operator_jurisdiction: Annotated[
        Country | None, D("ISO country code whose law reaches the operator; US where absent")
    ] = None
    kind: Annotated[
        Literal["on_demand", "reserved", "spot"], D("how it is rented: what term and price are absent follows")
    ] = "on_demand"
    price_per_accelerator_hour: Annotated[
        NonNegative | None, D("used or not; the catalogue's list price where absent, of three years where reserved")
    ] = None
    term_months: Annotated[
        Annotated[int, Meta(ge=1, le=240)] | None, D("least time that is paid; 3, reserved 36, where absent")
    ] = None
    most: Annotated[
        Count | None, D("accelerators in force at once, beyond one server in whole ones; no limit where absent")
    ] = None
    interruptions_per_hour: Annotated[ZeroUp, D("spot: how often it is taken away", le=3600)] = 0.0
    restart_s: Annotated[ZeroUp, D("spot: seconds until another serves", le=1e6)] = 600.0


class Budgets(Record, frozen=True):
    """The most that may be spent or emitted; absent: no limit. By calendar year, `2027: 2e6`, the last holds on."""

    capex_by_year: Annotated[dict[str, NonNegative], D("racks, buildings and grid, in money")] = {}
    carbon_t_by_year: Annotated[dict[str, NonNegative], D("tonnes of CO2, location-based, embodied included")] = {}
    water_m3_by_year: Annotated[dict[str, NonNegative], D("cubic metres of water on site")] = {}


class Shares(Record, frozen=True):
    """The largest share of all powered racks that one name may have; 1: no limit."""

    vendor: Annotated[Ratio, D("of accelerators")] = 1.0
    site: Annotated[Ratio, D("a site, rented ones included")] = 1.0
    grid_zone: Annotated[Ratio, D("a bidding zone, or the place where there is none")] = 1.0
    jurisdiction: Annotated[Ratio, D("a country")] = 1.0


class Survive(Record, frozen=True):
    """What must still be served when any one site is lost, of tenants that two sites may serve."""

    ratio: Annotated[Ratio, D("share of their demand; 0: not asked for")] = 1.0
    halls: Annotated[
        int, D("power halls that a fleet of one site is split into: any one of them may be lost", ge=1, le=16)
    ] = 1


class Plan(Record, frozen=True):
    """What may be bought, rented and begun in the coming years, how demand grows, and which limits hold."""

    start: Annotated[
        date | None, D("day to plan from, and from which demand grows; today, or `--date`, where absent")
    ] = None
    horizon: Annotated[str, D("years, quarters or months, e.g. 5y, 20q, 18m", pattern=r"^[0-9]{1,4}[yqm]$")] = "5y"
    demand: Annotated[PlannedDemand, D("growth, peak and load")] = PlannedDemand()
    buy: Annotated[list[Buy] | None, D("what may be bought; the accelerators in use, everywhere, where absent")] = None
    lease: Annotated[list[Lease], D("what may be leased for sites of yours")] = []
    begin: Annotated[
        list[Begin] | None, D("grid phases that may be begun; those announced without an agreement where absent")
    ] = None
    colocation: Annotated[list[ColocationBlock], D("blocks that may be leased")] = []
    rent: Annotated[list[Rent] | None, D("offers; where absent, on demand at list prices, at each site's place")] = None
    budgets: Annotated[Budgets, D("most money, carbon and water")] = Budgets()
    shares: Annotated[Shares, D("limits on concentration")] = Shares()
    survive: Annotated[Survive, D("what the loss of a site leaves")] = Survive()
    tax_ratio: Annotated[float, D("tax on profit; losses and write-offs reduce it", ge=0, le=0.9)] = 0.0
    resale_ratio: Annotated[Ratio, D("what a rack is worth at the horizon, of its straight-line book value")] = 0.7
    renew_contracts: Annotated[bool, D("power contracts that end are taken to be renewed on the same terms")] = True


def grown(plan: Plan, tenant: str, years: float) -> float:
    """Return the factor by which a tenant's demand has grown after some years; 1 before the first day.

    >>> round(grown(Plan(), "anyone", 2.0), 4)
    1.5625
    """
    own = plan.demand.tenants.get(tenant)
    per_year = plan.demand.growth_per_year if own is None else own.per_year
    factor: float = (1.0 + per_year) ** min(max(0.0, years), GROWS_AT_MOST_YEARS)
    return factor


def grows_from(plan: Plan, today: date) -> date:
    """Return the day from which demand grows: the plan's start, also where it is made as of another day; else that day.

    >>> grows_from(Plan(start=date(2027, 1, 1)), date(2028, 1, 1)), grows_from(Plan(), date(2028, 1, 1))
    (datetime.date(2027, 1, 1), datetime.date(2028, 1, 1))
    """
    return plan.start or today


def years_after(plan: Plan, day: date) -> float:
    """Return the years from the plan's start to a day; 0 before it, or where it has no start."""
    return 0.0 if plan.start is None else max(0.0, (day - plan.start).days / 365.25)


def quarters_from(day: date, n: int) -> list[date]:
    """Return the first days of `n` quarters, the first one on or after `day`.

    >>> [str(one) for one in quarters_from(date(2026, 11, 21), 2)]
    ['2027-01-01', '2027-04-01']
    """
    index = day.year * 4 + (day.month - 1) // 3
    if date(index // 4, index % 4 * 3 + 1, 1) < day:
        index += 1
    return [date(i // 4, i % 4 * 3 + 1, 1) for i in range(index, index + n)]
