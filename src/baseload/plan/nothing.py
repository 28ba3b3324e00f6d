"""The plan that is always there: order, rent and begin nothing that is not decided already, serve nobody, and pay for it.

Every policy row has a priced slack, so this plan stands whatever is asked; a search that is ended before it found another
answers with it.
"""

from __future__ import annotations

import numpy as np

from baseload.plan.problem import Answer, Bools, Floats, Problem, billed_at_least, in_budgets, used_at_least

Fix = dict[tuple[int, int], int]  # (phase, period) -> w


def least_begun(problem: Problem, fix: Fix | None = None) -> Floats:
    """Return w [P,T] with what is decided already or by `fix`, and what must come before it, begun as late as it may."""
    w = (np.arange(len(problem.periods))[None] >= problem.begin_by[:, None]).astype(np.float64)
    for (p, t), value in (fix or {}).items():
        if value:
            w[p, t:] = 1.0
    for _ in range(len(problem.phases)):
        for p, before in enumerate(problem.phase_after):
            if before >= 0:
                w[before] = np.maximum(w[before], w[p])
    return w


def keeps(w: Floats, fix: Fix) -> bool:
    """Return whether phases are as `fix` says, by (phase, period)."""
    return all(w[p, t] == value for (p, t), value in fix.items())


def in_order(problem: Problem, w: Floats | Bools, lower: Floats, upper: Floats) -> Floats:
    """Return phases near `w` that never fall, come after those before them, and keep to their bounds."""
    chosen = np.clip(np.asarray(w, dtype=np.float64), lower, upper)
    for _ in range(2):
        chosen = np.maximum.accumulate(chosen, axis=1)
        for p, before in enumerate(problem.phase_after):
            if before >= 0:
                chosen[p] = np.minimum(chosen[p], chosen[before])
        chosen = np.maximum(chosen, lower)
    return chosen


def pulled(w: Floats, worth: Floats, may: Bools, *, least: float) -> Floats:
    """Return phases with those begun earlier, where they `may` be, for which prices promise to save more than `least`.

    `worth` is what a phase that is begun in a period costs more, to begin with. It promises more than a move saves, so that
    of moves to where a relaxation would have begun to a part most are true, and of others few.

    >>> w, worth = np.array([[0.0, 0.0, 0.0, 1.0]]), np.array([[5.0, -2.0, -1.0, 0.0]])
    >>> pulled(w, worth, np.array([[True, True, True, True]]), least=0.1).tolist()
    [[0.0, 1.0, 1.0, 1.0]]
    >>> pulled(w, worth, np.array([[False, False, True, True]]), least=0.1).tolist()
    [[0.0, 0.0, 1.0, 1.0]]
    """
    found = w.copy()
    for p in np.flatnonzero(w[:, -1] > 0.5):
        first = int(np.argmax(w[p]))
        saved = np.cumsum(worth[p, :first][::-1])  # by periods earlier, less one
        if first and may[p, first - 1] and saved.min() < -least:
            found[p, max(first - 1 - int(np.argmin(saved)), int(np.argmax(may[p]))) :] = 1.0
    return found


def live(problem: Problem, w: Floats) -> Floats:
    """Return [P,T]: phases energised, `phase_delay` periods after they are begun."""
    energised = np.zeros_like(w)
    n_periods = w.shape[1]
    for p, delay in enumerate(problem.phase_delay):
        energised[p, delay:] = w[p, : max(0, n_periods - delay)]
    return energised


def nothing(problem: Problem, fix: Fix | None = None, *, bound: float = -np.inf) -> Answer:
    """Return the plan that does nothing beyond what is decided or fixed, priced."""
    n_sites, n_kinds, n_services, _, n_periods = problem.shape
    w = least_begun(problem, fix)
    is_live = live(problem, w)
    grid = problem.power_mw.copy()
    np.add.at(grid, problem.phase_site, problem.phase_mw[:, None] * is_live)
    mw = problem.rack_mw[:, :, None] * problem.existing
    draw = mw.sum(axis=1)
    billed = np.maximum(np.maximum(draw, problem.minimum_bill[:, None] * grid), billed_at_least(problem))
    for late in range(1, min(4, n_periods)):
        billed[:, late:] = np.maximum(billed[:, late:], problem.ratchet[:, None] * draw[:, :-late])
    begun = np.diff(w, axis=1, prepend=0.0)
    grouped = np.einsum("gsa,sat->gt", problem.group_of.astype(np.float64), mw)
    carbon = (problem.carbon_owned * problem.existing).sum(axis=(0, 1))
    water = (problem.water_owned * problem.existing).sum(axis=(0, 1))
    slack = {
        "short_power": draw - grid,
        "short_floor": np.einsum("a,sat->st", problem.rack_m2, problem.existing) - problem.floor_m2,
        "short_survive": np.zeros((n_services, n_periods)),
        "over_share": grouped - problem.share_max[:, None] * draw.sum(axis=0),
        "over_capex": in_budgets(problem, (problem.spend_begin * begun).sum(axis=0)) - problem.capex_budget,
        "over_carbon": in_budgets(problem, carbon) - problem.carbon_budget,
        "over_water": in_budgets(problem, water) - problem.water_budget,
    }
    slack = {name: np.maximum(0.0, short) for name, short in slack.items()}
    cost = (problem.cost_begin * begun).sum() + (problem.cost_live * is_live).sum()
    cost += (problem.cost_owned * problem.existing).sum() + (problem.cost_unserved * problem.demand).sum()
    cost += (problem.cost_billed * billed).sum()
    used = used_at_least(problem, draw, is_live)
    if used is not None and problem.cost_used is not None:
        cost += (problem.cost_used * used).sum()
    for name, short in slack.items():
        if short.any():
            price = np.broadcast_to(problem.slack_price.get(name, np.float64(np.inf)), short.shape)
            cost += float((price[short > 0.0] * short[short > 0.0]).sum())
    host = np.zeros((n_sites, n_services, n_periods)) if problem.host_min is not None else None
    return Answer(
        w=w,
        buy=np.zeros((n_sites, n_kinds, n_periods)),
        sign=np.zeros((n_sites, n_kinds, len(problem.rentals), n_periods)),
        put=np.zeros((n_sites, n_kinds, n_services, n_periods)),
        host=host,
        flow=np.zeros((*problem.allowed.shape, n_periods)),
        unserved=problem.demand.copy(),
        billed=billed,
        used=used,
        slack=slack,
        cost=float(cost),
        bound=bound,
        status="stopped",
        method="nothing",
        cpu_s=0.0,
    )
