"""What is asked of the planner and what it answers: arrays only, one page that everything in this room agrees on.

Periods are equal (quarters unless said). Money is present value, so that no discounting is left to do here; `spend_*` is plain
cash of the period, for budgets. Capacity is counted in racks of a kind; demand in units of work a second of a service (a model
at an SLO class), at the peak that the plan must carry. A client is a tenant in a region: latency, residency, sovereignty and
export law are one mask. Each row below that a policy asks for has a slack with a price, so that nothing is silently infeasible.

Axes: S sites, A rack kinds, M services, R clients, T periods, P grid phases, K rental contracts, L shared supply limits,
G concentration groups.

Variables
    w[P,T]          0 or 1: phase p is begun by period t (cumulative: never falls in t)
    buy[S,A,T]      racks ordered, whole numbers where `whole[s,a]`
    sign[S,A,K,T]   racks rented from t on for `term[k]` periods
    put[S,A,M,T]    racks working for a service
    host[S,M,T]     0 or 1: the service runs at the site (only where `host_min` is given)
    flow[R,S,M,T]   demand served where `allowed[r,s,m]`;  unserved[R,M,T] the rest
    billed[S,T]     MW that the demand charge counts
    used[S,T]       MW drawn beyond what is paid whether it is drawn or not
Derived
    live[p,t]    = w[p, t - delay[p]]                                       0 before
    owned[s,a,t] = existing[s,a,t] + sum of buy[s,a,u] over u + lead[a] <= t < u + lead[a] + life[a]
    rented[s,a,k,t] = sum of sign[s,a,k,u] over t - term[k] < u <= t
    usable[s,a,t]   = owned + sum_k useful[k] rented
    carry[s,m,t]    = sum_a rate[a,m] put[s,a,m,t]
    draw_mw[s,t]    = sum_a rack_mw[s,a] (owned + sum over k with on_site[k] of rented)     at the meter, peak PUE included
    grid_mw[s,t]    = power_mw[s,t] + sum over phases of s of phase_mw[p] live[p,t]
Rows
    serve     sum_s flow[r,s,m,t] + unserved[r,m,t] = demand[r,m,t]
    carry     sum_r flow[r,s,m,t] <= carry[s,m,t]
    racks     sum_m put[s,a,m,t] <= usable[s,a,t]
    power     draw_mw[s,t] <= grid_mw[s,t] + short_power[s,t]
    floor     sum_a rack_m2[a] (owned + on-site rented) <= floor_m2[s,t] + short_floor[s,t]
    billed    billed[s,t] >= draw_mw[s,t];  >= ratchet[s] draw_mw[s,u] for t-3 <= u < t;  >= minimum_bill[s] grid_mw[s,t];
              >= billed_least[s,t]
    used      draw_mw[s,t] <= power_mw[s,t] + sum over phases of s of phase_paid[p] live[p,t] + used[s,t]
              (only where cost_used is above nought: blocks of somebody's building, of which a part is paid even when unused)
    phases    w[p,t] >= w[p,t-1];  w[p,t] <= w[after[p],t];  begin_from/begin_by bound it
    supply    sum_s buy[s,a,t] <= supply[a,t];  sum_{s,a} shared_use[l,a] buy[s,a,t] <= shared[l,t]
    place     buy and sign only where may_place[s,a];  sign within sign_max[s,a,k]
              (sign_max bounds what is in force: rented[s,a,k,t] <= sign_max[s,a,k])
    share     sum over (s,a) in group g of rack_mw (owned + sum_k rented)
              <= share_max[g] * the same over all (s,a) + over_share[g,t]
    survive   for every site k lost, every service m, period t: let need[r] = survive_ratio[m] (demand - unserved) for clients r
              with at least two allowed sites; the largest flow into the other sites within their carry serves all of it but
              short_survive[m,t]   (a max-flow; its Hall rows are generated when violated).
              A site of the problem may be one power hall: losing "one site" then means losing one hall.
    host      host_min[m] host[s,m,t] <= carry[s,m,t] <= demand that may come to s * host[s,m,t]
    budget    sum spend_buy buy + spend_phase (w[u]-w[u-1]) over t - budget_span[t] < u <= t <= capex_budget[t] + over_capex[t];
              carbon and water likewise, from their per-owned-rack and per-working-rack amounts
Cost: sum of every cost array times its variable, plus slack prices times slacks; `cost_owned` counts `owned`, so what exists
already is in it too.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]
Bools = NDArray[np.bool_]

SLACKS = (
    "short_power",  # [S,T] MW
    "short_floor",  # [S,T] m2
    "short_survive",  # [M,T] units of work a second
    "over_share",  # [G,T] MW
    "over_capex",  # [T] money
    "over_carbon",  # [T] t
    "over_water",  # [T] m3
)


@dataclass(frozen=True, kw_only=True)
class Problem:
    """One planning question. Arrays have the shapes that the comments say; `inf` in a limit means none."""

    name: str
    sites: tuple[str, ...]
    kinds: tuple[str, ...]  # rack kinds
    services: tuple[str, ...]  # model at an SLO class
    clients: tuple[str, ...]  # tenant in a region
    periods: tuple[str, ...]  # e.g. 2027-Q1
    phases: tuple[str, ...]
    rentals: tuple[str, ...]
    groups: tuple[str, ...]
    limits: tuple[str, ...]

    # demand and law
    demand: Floats  # [R,M,T] units of work a second at the peak
    allowed: Bools  # [R,S,M] latency, residency, sovereignty and export in one
    may_place: Bools  # [S,A] export rules, cooling type
    # capacity
    rate: Floats  # [A,M] units of work a second that one rack carries within its SLO; 0: cannot
    rack_mw: Floats  # [S,A] MW at the meter, at the peak PUE of the site
    rack_m2: Floats  # [A]
    existing: Floats  # [S,A,T] racks that are there anyway
    lead: Ints  # [A] periods from order to service
    life: Ints  # [A] periods in service
    whole: Bools  # [S,A] counts that must be whole
    # power
    power_mw: Floats  # [S,T] drawable without any phase
    floor_m2: Floats  # [S,T]
    phase_site: Ints  # [P]
    phase_mw: Floats  # [P]
    phase_delay: Ints  # [P] periods from begin to energised
    phase_after: Ints  # [P] phase that must be begun first; -1 none
    begin_from: Ints  # [P] first period in which it may begin; T: never
    begin_by: Ints  # [P] period in which it is begun at the latest (already decided); T: free
    ratchet: Floats  # [S]
    minimum_bill: Floats  # [S] of what may be drawn
    # supply and rent
    supply: Floats  # [A,T] racks
    shared_use: Floats  # [L,A]
    shared: Floats  # [L,T]
    term: Ints  # [K] periods
    useful: Floats  # [K] share of rented time that does work (spot: below 1)
    on_site: Bools  # [K] uses the site's power and floor
    sign_max: Floats  # [S,A,K] racks in force at once
    # policy
    group_of: Bools  # [G,S,A]
    share_max: Floats  # [G]
    survive_ratio: Floats  # [M] 0: not asked for
    host_min: Floats | None  # [M] least carry of a hosted service; None: no hosting decisions
    # money, present value
    cost_begin: Floats  # [P,T] one-off, when begun at t
    cost_live: Floats  # [P,T] while energised
    cost_buy: Floats  # [S,A,T] price less what it is worth at the end
    cost_owned: Floats  # [S,A,T] a rack in service: idle energy, space, upkeep
    cost_sign: Floats  # [S,A,K,T] the whole term (cut at the horizon)
    cost_put: Floats  # [S,A,M,T] a working rack beyond an idle one
    cost_flow: Floats  # [R,S,M,T]
    cost_unserved: Floats  # [R,M,T]
    cost_billed: Floats  # [S,T] a MW billed
    cost_host: Floats  # [S,M,T]
    # budgets
    spend_begin: Floats  # [P,T]
    spend_buy: Floats  # [S,A,T]
    capex_budget: Floats  # [T]
    carbon_owned: Floats  # [S,A,T] t a period
    carbon_put: Floats  # [S,A,M,T]
    carbon_budget: Floats  # [T]
    water_owned: Floats  # [S,A,T] m3 a period
    water_put: Floats  # [S,A,M,T]
    water_budget: Floats  # [T]
    billed_least: Floats | None = None  # [S,T] MW billed whatever is drawn or begun; None: none
    cost_used: Floats | None = None  # [S,T] a MW drawn beyond what is paid anyway; None: nothing is paid by its use
    phase_paid: Floats | None = None  # [P] MW of a phase that may be drawn without paying more; given with cost_used
    budget_span: Ints | None = None  # [T] periods, up to t, that the budgets of t are for; None: t alone
    slack_price: dict[str, Floats] = field(default_factory=dict)  # by SLACKS, in the slack's shape

    @property
    def shape(self) -> tuple[int, int, int, int, int]:
        """Return (S, A, M, R, T)."""
        return len(self.sites), len(self.kinds), len(self.services), len(self.clients), len(self.periods)

    def same_axes(self, other: Problem) -> bool:
        """Return whether decisions of one problem mean the same in another: every axis has the same names."""
        axes = ("sites", "kinds", "services", "clients", "periods", "phases", "rentals", "groups", "limits")
        asked = ("host_min", "cost_used")  # each with decisions of its own
        return all(getattr(self, name) == getattr(other, name) for name in axes) and all(
            (getattr(self, name) is None) == (getattr(other, name) is None) for name in asked
        )


def spans(problem: Problem) -> Ints:
    """Return the periods, up to each, that its budgets are for."""
    each = np.ones(len(problem.periods), dtype=np.int64)
    return each if problem.budget_span is None else problem.budget_span


def billed_at_least(problem: Problem) -> Floats:
    """Return the MW [S,T] that are billed whatever is drawn or begun."""
    return np.zeros_like(problem.power_mw) if problem.billed_least is None else problem.billed_least


def used_at_least(problem: Problem, draw_mw: Floats, live: Floats) -> Floats | None:
    """Return the MW [S,T] drawn beyond what is paid anyway, given the phases energised [P,T]; None where nothing is paid so."""
    if problem.cost_used is None or problem.phase_paid is None:
        return None
    free = problem.power_mw.copy()
    np.add.at(free, problem.phase_site, problem.phase_paid[:, None] * live)
    return np.where(problem.cost_used > 0.0, np.maximum(0.0, draw_mw - free), 0.0)


def in_budgets(problem: Problem, used: Floats) -> Floats:
    """Return what each period's budgets count of an amount [T]: that of all periods that they are for."""
    total = np.concatenate([[0.0], np.cumsum(used)])
    at = np.arange(len(used))
    counted: Floats = total[at + 1] - total[np.maximum(0, at + 1 - spans(problem))]
    return np.where(spans(problem) == 1, used, counted)


Status = Literal["optimal", "within_gap", "stopped", "interrupted"]


@dataclass(frozen=True, kw_only=True)
class Answer:
    """Decisions with their cost, and how good they are proven to be. Arrays as in the module's docstring."""

    w: Floats  # [P,T]
    buy: Floats
    sign: Floats
    put: Floats
    host: Floats | None
    flow: Floats
    unserved: Floats
    billed: Floats
    slack: dict[str, Floats]
    cost: float  # of the full problem, recomputed from the decisions
    bound: float  # no plan can be cheaper
    status: Status
    method: str
    cpu_s: float
    notes: tuple[str, ...] = ()
    used: Floats | None = None  # [S,T], where the problem has cost_used
    held: object | None = field(default=None, repr=False, compare=False)  # what a re-solve from here may use

    @property
    def gap(self) -> float:
        """Return (cost - bound) / |cost|: the share that a better plan could save at most."""
        return 0.0 if self.cost == self.bound else (self.cost - self.bound) / max(1e-9, abs(self.cost))

    @property
    def meets(self) -> bool:
        """Return whether no priced slack is used."""
        return all(float(np.max(values, initial=0.0)) <= 1e-6 for values in self.slack.values())
