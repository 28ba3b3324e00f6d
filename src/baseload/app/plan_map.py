"""What the axes of a planning problem stand for: the way from names to arrays and back, and undiscounted prices.

`plan_problem.py` makes it beside the arrays; `plan_fleet.py` turns an answer back into a fleet file with it, and
`plan_report.py` into money, carbon and words.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import date

import numpy as np
import numpy.typing as npt

from baseload.app.plan_demand import Client, Service, Traffic
from baseload.app.plan_sites import Phase, SiteYears
from baseload.fleet.model import Fleet
from baseload.fleet.planning import Lease, Plan, Rent
from baseload.plan.money import Prices
from baseload.plan.table import ReplicaRow

Floats = npt.NDArray[np.float64]


@dataclass(frozen=True, slots=True, kw_only=True)
class Kind:
    """A rack of an accelerator, as it stands or may be bought."""

    name: str
    accelerator: str  # the catalogue's id
    per_rack: int
    rack_kw: float | None  # a limit of its own
    area_m2: float
    liquid_ratio: float | None
    can_buy: bool  # or lease
    lead_weeks: float | None
    lease: Lease | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class PlanSite:
    """A site of the problem: a declared one, a hall of it, or where accelerators are rented."""

    name: str
    declared: str  # name in the fleet file with offers (`with_rent`)
    rented: bool
    years: SiteYears | None  # None where it is rented
    grid: SiteYears | None  # carbon of power there, also where it is rented
    hall: int = 0  # of the declared site, where it counts as several
    halls: int = 1


@dataclass(frozen=True, slots=True, kw_only=True)
class Terms:
    """A kind of rental contract: offers that share kind, term and useful share, one of each accelerator and place."""

    name: str
    kind: str
    term_periods: int
    useful: float
    offers: tuple[Rent, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class PlanMap:
    """All that the arrays do not say."""

    fleet: Fleet  # with a site for each place of rent
    plan: Plan
    today: date
    days: tuple[date, ...]  # first day of each period
    seed: int
    asked: Traffic
    load_ratio: float  # mean over peak
    sites: tuple[PlanSite, ...]
    kinds: tuple[Kind, ...]
    services: tuple[Service, ...]
    clients: tuple[Client, ...]
    phases: tuple[Phase, ...]
    terms: tuple[Terms, ...]
    rows: Mapping[tuple[int, int], ReplicaRow]  # (kind, service): what a replica carries
    replicas_per_rack: Floats  # (A,M)
    prices: Prices
    dark: Floats  # (S,A,T) racks that stand and find no power
    discount: Floats  # (T,) mid-period
    discount_begin: Floats  # (T,) first day of the period
    money_unit: float  # currency units in one unit of the problem's money
    sunk: float  # present value, in no decision's hand and not in the arrays: racks without power, less upkeep of rented ones
    notes: tuple[str, ...]  # what was assumed, in sentences

    @property
    def currency(self) -> str:
        """The fleet's currency."""
        return self.fleet.money.currency

    @property
    def fixed(self) -> float:
        """Present value after tax of what no decision changes and no cost holds: people, offices, racks rented already."""
        paid = self.prices.fixed + self.prices.fixed_rent
        return float((paid * self.discount).sum()) * (1.0 - self.plan.tax_ratio)
