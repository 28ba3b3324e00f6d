"""What `baseload plan` says, as records; plan.json is exactly this. Money is the fleet's currency, undiscounted unless said."""

from __future__ import annotations

import msgspec

from baseload.report.capacity_model import CapacityReport

RENT_IN_FILE = "; exact here, whole servers in fleet.yaml"
"""End of the note of a decision to rent."""

IN_THE_TWIN = "in the twin"
"""The limit of a miss that the twin found in its last round; no price stands for it."""


class _Part(msgspec.Struct, frozen=True, kw_only=True):
    """Base of the records."""


class Decision(_Part, frozen=True, kw_only=True):
    """One thing to do, or one thing that runs: a row of decisions.csv."""

    quarter: str
    day: str  # first day of the quarter
    action: str  # begin, buy, lease, rent, serve
    site: str
    what: str  # grid phase, rack kind, or service on a kind
    amount: float
    unit: str  # MW, racks, accelerators, replicas
    until: str  # last quarter that a rent or lease is for, or that a phase begun has no power in; else empty
    cash: float  # spent for it up to the horizon: over its term where it is rent, each quarter with power where that costs
    note: str = ""


class Miss(_Part, frozen=True, kw_only=True):
    """A limit that the plan does not keep, over a run of quarters."""

    limit: str  # name of the slack, `unserved`, or IN_THE_TWIN
    first: str
    last: str
    who: str  # site, service, group
    amount: float  # at its worst
    unit: str
    words: str


class Binding(_Part, frozen=True, kw_only=True):
    """What keeps the plan from being cheaper, and what one more unit of it is worth."""

    what: str
    worth: float
    unit: str  # of the worth: EUR per MW
    words: str


class Alternative(_Part, frozen=True, kw_only=True):
    """Another plan that costs nearly as much."""

    name: str
    cost: float  # present value
    more: float  # than the plan, as a share
    words: str


class Swing(_Part, frozen=True, kw_only=True):
    """What the cost becomes where one assumption is otherwise: a bar of the tornado."""

    what: str
    low_words: str
    low: float  # present value of the plan made anew
    high_words: str
    high: float


class Round(_Part, frozen=True, kw_only=True):
    """A round of the loop: the plan simulated, and what was corrected."""

    number: int
    words: str
    meets: bool
    cut: bool = False  # stopped before it could tell


class Carried(_Part, frozen=True, kw_only=True):
    """A row of the table of replicas, for the reader."""

    service: str
    accelerator: str
    replica: int  # accelerators
    requests_per_s: float
    correction: float
    how: str


class Years(_Part, frozen=True, kw_only=True):
    """Money by year from the first day of the plan."""

    names: list[str]
    income: list[float]
    capex: dict[str, list[float]]
    running: dict[str, list[float]]
    tax: list[float]
    salvage: list[float]
    cash: list[float]


class Worth(_Part, frozen=True, kw_only=True):
    """What the cash is worth."""

    npv: float
    irr: float | None  # None where it is not defined: no rate does it, or several may
    payback_years: float | None  # from then on the discounted balance is not below 0; None: it is at the end
    invested: float
    roi: float | None
    roi_without_idle: float | None
    idle_cost: float


class Quarter(_Part, frozen=True, kw_only=True):
    """One quarter of the plan."""

    name: str
    demand_per_s: float  # at the peak
    served_per_s: float
    racks: float
    accelerators: int  # that serve, owned and rented
    rented: int  # of them
    draw_mw: float
    drawable_mw: float
    busy_ratio: float  # of usable racks, by what is served, at mean load; what is held for the loss of a site is idle
    cost_per_mtok: float | None
    carbon_kg_per_mtok: float | None
    carbon_market_kg_per_mtok: float | None
    water_l_per_mtok: float | None
    carbon_t: float
    water_m3: float


class Standing(_Part, frozen=True, kw_only=True):
    """What stands at a site, by quarter."""

    site: str
    rented: bool
    kind: str
    accelerators: list[int]


class Serving(_Part, frozen=True, kw_only=True):
    """Whole replicas of a service at a site, by quarter."""

    service: str
    site: str
    kind: str
    replicas: list[int]


class Risk(_Part, frozen=True, kw_only=True):
    """What the plan costs over scenarios, and what is gained by having looked at them."""

    measure: str
    scenarios: int
    lines: list[str]
    kept: bool = False  # the plan of the report keeps what was decided against the scenarios


class PlanReport(_Part, frozen=True, kw_only=True):
    """All of it."""

    fleet: str
    currency: str
    from_day: str
    quarters: list[str]
    seed: int
    status: str
    method: str
    meets: bool
    cost: float  # present value, in the fleet's currency, with the price of what is not met and without `fixed`
    bound: float
    gap: float
    cpu_s: float
    misses: list[Miss]
    decisions: list[Decision]
    years: Years
    worth: Worth
    by_quarter: list[Quarter]
    standing: list[Standing]
    serving: list[Serving]
    capacity: CapacityReport | None
    binding: list[Binding] = []
    alternatives: list[Alternative] = []
    swings: list[Swing] = []
    conflict: list[str] = []
    relax: list[str] = []
    changes: list[str] = []  # against the plan without --what-if
    rounds: list[Round] = []
    risk: Risk | None = None
    carried: list[Carried] = []
    assumptions: list[str] = []
    missed: float = 0.0  # part of `cost`: the price of what is not met, which nobody pays
    fixed: float = 0.0  # no part of `cost`: present value of people and other, which no decision changes
