"""From a solver's nearly right numbers to a plan that keeps every row: decisions in, an answer out.

Whatever a programme was solved to, the plan is recomputed here from its decisions: racks within supply, rent within its limits,
work within racks, flows as the cheapest for what is then carried, and slacks as what is truly missing. So inexact solutions of
an interior point serve, and the cost is of the plan, not of the programme.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from baseload.plan import build as building
from baseload.plan import transport
from baseload.plan.check_answer import derived, recompute_cost
from baseload.plan.problem import Answer, Bools, Floats, Ints, Problem, billed_at_least, in_budgets, used_at_least

_ROUNDS = 12  # of looking for what a loss leaves short, and renting for it
_PART = 1e-6  # of a rack: less is rounding
_DUST = 2e-7  # a row broken by less than this share of its size is rounding, not a shortage


def settled(
    problem: Problem,
    of: transport.Blocks,
    *,
    w: Floats,
    buy: Floats,
    sign: Floats,
    put: Floats,
    host: Floats | None = None,
    bound: float = -np.inf,
    method: str = "",
) -> Answer:
    """Return the answer with these decisions, changed as little as keeps their rows, and the cheapest flows for them."""
    buy, sign = _within_supply(problem, buy), _within_limits(problem, sign)
    nought = {name: np.zeros(shape) for name, shape in _slack_shapes(problem).items()}
    put = np.where((problem.rate > 0.0)[None, :, :, None], np.maximum(put, 0.0), 0.0)
    if host is not None:
        put = put * (host > 0.5)[:, None]
    answer = Answer(
        w=np.round(w),
        buy=buy,
        sign=sign,
        put=put,
        host=host,
        flow=np.zeros((*problem.allowed.shape, len(problem.periods))),
        unserved=problem.demand,
        billed=np.zeros_like(problem.power_mw),
        slack=nought,
        cost=np.inf,
        bound=bound,
        status="stopped",
        method=method,
        cpu_s=0.0,
    )
    there = derived(problem, answer)
    worked = put.sum(axis=2)
    with np.errstate(divide="ignore", invalid="ignore"):
        share = np.where(worked > there.usable, np.maximum(there.usable, 0.0) / worked, 1.0)
    put = put * share[:, :, None]
    put, sign = shored_up(problem, of, put, sign, host)
    carry = np.einsum("am,samt->smt", problem.rate, put)
    served = transport.serve(of, carry.transpose(1, 2, 0))
    flow = served.flow.transpose(2, 3, 0, 1).copy()
    unserved = served.unserved.transpose(2, 0, 1).copy()
    billed = np.maximum(there.draw_mw, problem.minimum_bill[:, None] * there.grid_mw)
    billed = np.maximum(billed, billed_at_least(problem))
    for late in range(1, min(4, billed.shape[1])):
        billed[:, late:] = np.maximum(billed[:, late:], problem.ratchet[:, None] * there.draw_mw[:, :-late])
    _, short = building.missing_halls(problem, carry, unserved, np.zeros(short_shape(problem)))
    used = used_at_least(problem, there.draw_mw, there.live)
    answer = replace(answer, put=put, sign=sign, flow=flow, unserved=unserved, billed=billed, used=used)
    slack = nought | _missing(problem, answer) | {"short_survive": short}
    answer = replace(answer, slack=slack)
    return replace(answer, cost=recompute_cost(problem, answer).total)


def shored_up(
    problem: Problem, of: transport.Blocks, put: Floats, sign: Floats, host: Floats | None
) -> tuple[Floats, Floats]:
    """Return (put, sign) with racks rented by the period, off the sites' power, where a lost site could not be survived.

    The cheapest per unit of carry first, within what may be rented; what stays short is left to its price.
    """
    rents = np.flatnonzero((problem.term == 1) & ~problem.on_site)
    if not len(rents) or not (problem.survive_ratio > 0.0).any():
        return put, sign
    put, sign = put.copy(), sign.copy()
    for _ in range(_ROUNDS):
        carry = np.einsum("am,samt->smt", problem.rate, put)
        unserved = transport.serve(of, carry.transpose(1, 2, 0)).unserved.transpose(2, 0, 1)
        halls, _ = building.missing_halls(problem, carry, unserved, np.zeros(short_shape(problem)))
        if not halls:
            break
        worst: dict[tuple[int, int], tuple[float, Bools]] = {}
        for hall in halls:
            need = float((problem.demand - unserved)[hall.clients, hall.m, hall.t].sum())
            lacks = problem.survive_ratio[hall.m] * need - float(carry[hall.sites, hall.m, hall.t].sum())
            if lacks > worst.get((hall.m, hall.t), (0.0, hall.sites))[0]:
                worst[hall.m, hall.t] = (lacks, hall.sites)
        if not sum(_rent(problem, put, sign, host, m, t, *found, rents) for (m, t), found in worst.items()):
            break
    return put, sign


def _rent(
    problem: Problem,
    put: Floats,
    sign: Floats,
    host: Floats | None,
    m: int,
    t: int,
    lacks: float,
    sites: Bools,
    rents: Ints,
) -> bool:
    """Rent for service `m` at period `t` at `sites` until `lacks` is carried; return whether anything was."""
    useful = problem.rate[None, :, None, m] * problem.useful[None, None, rents]
    room = problem.sign_max[:, :, rents] - sign[:, :, rents, t]
    may = (sites[:, None, None] & problem.may_place[:, :, None]) & (useful > 0.0) & (room > 1e-9)
    if host is not None:
        may &= (host[:, m, t] > 0.5)[:, None, None]
    with np.errstate(divide="ignore", invalid="ignore"):
        price = np.where(may, (problem.cost_sign[:, :, rents, t] + problem.cost_put[:, :, m, t, None]) / useful, np.inf)
    done = False
    lacks *= 1.0 + 1e-7
    for place in np.argsort(price, axis=None)[: int(may.sum())]:
        s, a, k = np.unravel_index(int(place), price.shape)
        racks = min(float(room[s, a, k]), lacks / float(useful[0, a, k]))
        sign[s, a, rents[k], t] += racks
        put[s, a, m, t] += racks * problem.useful[rents[k]]
        lacks -= racks * float(useful[0, a, k])
        done = True
        if lacks <= 0.0:
            break
    return done


def short_shape(problem: Problem) -> tuple[int, int]:
    """Return the shape of what cannot survive."""
    return len(problem.services), len(problem.periods)


def _slack_shapes(problem: Problem) -> dict[str, tuple[int, ...]]:
    n_periods = len(problem.periods)
    shapes: dict[str, tuple[int, ...]] = {name: (n_periods,) for name in ("over_capex", "over_carbon", "over_water")}
    shapes |= {name: (len(problem.sites), n_periods) for name in ("short_power", "short_floor")}
    return shapes | {"over_share": (len(problem.groups), n_periods), "short_survive": short_shape(problem)}


def _within_supply(problem: Problem, buy: Floats) -> Floats:
    """Return orders within what may be bought: a little less of each where there is a little too much."""
    buy = np.where(problem.may_place[:, :, None], np.maximum(buy, 0.0), 0.0)
    buy = np.where(problem.whole[:, :, None], np.round(buy), buy)
    total = buy.sum(axis=0)
    with np.errstate(divide="ignore", invalid="ignore"):
        share = np.where(total > problem.supply, problem.supply / total, 1.0)
        used = np.einsum("la,sat->lt", problem.shared_use, buy * share)
        most = np.where(used > problem.shared, problem.shared / used, 1.0).min(axis=0, initial=1.0)
    buy = buy * share * most
    return np.where(problem.whole[:, :, None], np.floor(buy + 1e-9), buy)


def whole_racks(problem: Problem, buy: Floats, threshold: float = 0.5) -> Floats:
    """Return the orders of the first periods with whole racks where they must be, [S,A,n], within what may be bought.

    Parts of `threshold` or more become a rack, the largest first, while supply and what kinds share allow.
    """
    n = buy.shape[2]
    whole = np.broadcast_to(problem.whole[:, :, None], buy.shape)
    buy = np.maximum(0.0, buy)
    racks = np.where(whole, np.floor(buy + 1e-9), buy)
    part = np.where(whole, buy - racks, 0.0)
    left = problem.supply[:, :n] - racks.sum(axis=0)
    shared = problem.shared[:, :n] - np.einsum("la,sat->lt", problem.shared_use, racks)
    for at in np.argsort(-part, axis=None, kind="stable"):
        s, a, t = (int(i) for i in np.unravel_index(at, part.shape))
        if part[s, a, t] < max(threshold - _PART, _PART):
            break
        use = problem.shared_use[:, a]
        if left[a, t] >= 1.0 - 1e-9 and (shared[:, t] >= use - 1e-9).all():
            racks[s, a, t] += 1.0
            left[a, t] -= 1.0
            shared[:, t] -= use
    return racks


def _within_limits(problem: Problem, sign: Floats) -> Floats:
    """Return rent within what may be in force at once."""
    sign = np.where(problem.may_place[:, :, None, None], np.maximum(sign, 0.0), 0.0)
    n_periods = sign.shape[3]
    for k, term in enumerate(problem.term):
        ages = np.arange(n_periods)[:, None] - np.arange(n_periods)[None, :]
        force = sign[:, :, k] @ ((ages >= 0) & (ages < term)).T.astype(np.float64)
        with np.errstate(divide="ignore", invalid="ignore"):
            share = np.where(force > problem.sign_max[:, :, k, None], problem.sign_max[:, :, k, None] / force, 1.0)
        sign[:, :, k] *= share.min(axis=2)[..., None]
    return sign


def _missing(problem: Problem, answer: Answer) -> dict[str, Floats]:
    """Return what the plan lacks of power, floor, shares and budgets."""
    of = derived(problem, answer)
    on_site = of.owned + of.rented[:, :, problem.on_site, :].sum(axis=2)
    held_mw = problem.rack_mw[:, :, None] * (of.owned + of.rented.sum(axis=2))
    all_mw = held_mw.sum(axis=(0, 1))
    part_mw = np.einsum("gsa,sat->gt", problem.group_of.astype(np.float64), held_mw)
    begun = np.diff(answer.w, axis=1, prepend=0.0)
    spent = (problem.spend_buy * answer.buy).sum(axis=(0, 1)) + (problem.spend_begin * begun).sum(axis=0)
    carbon = (problem.carbon_owned * of.owned).sum(axis=(0, 1)) + (problem.carbon_put * answer.put).sum(axis=(0, 1, 2))
    water = (problem.water_owned * of.owned).sum(axis=(0, 1)) + (problem.water_put * answer.put).sum(axis=(0, 1, 2))
    return {
        "short_power": _beyond(of.draw_mw, of.grid_mw),
        "short_floor": _beyond(np.einsum("a,sat->st", problem.rack_m2, on_site), problem.floor_m2),
        "over_share": _beyond(part_mw, problem.share_max[:, None] * all_mw),
        "over_capex": _beyond(in_budgets(problem, spent), problem.capex_budget),
        "over_carbon": _beyond(in_budgets(problem, carbon), problem.carbon_budget),
        "over_water": _beyond(in_budgets(problem, water), problem.water_budget),
    }


def _beyond(used: Floats, most: Floats) -> Floats:
    """Return by how much `used` exceeds `most`, without the dust of rounding."""
    over = used - most
    return np.where(over > _DUST * np.maximum(1.0, np.abs(used)), over, 0.0)
