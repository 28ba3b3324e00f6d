"""Tiny planning problems of every shape, drawn at random: what brute force can still answer."""

from __future__ import annotations

import numpy as np
from hypothesis import strategies as st

from baseload.plan.problem import Problem


def tiny(
    seed: int, n_s: int, n_a: int, n_m: int, n_r: int, n_t: int, n_p: int, n_k: int, *, host: bool, whole: int
) -> Problem:
    """Return a problem of these numbers; `whole` rack counts must be whole, each at most 1 a period."""
    rng = np.random.default_rng(seed)
    u = rng.uniform
    phase_site = np.sort(rng.integers(0, n_s, n_p))
    after = np.array(
        [q - 1 if q and phase_site[q - 1] == phase_site[q] and rng.random() < 0.5 else -1 for q in range(n_p)],
        dtype=np.int64,
    )
    supply = np.where(u(size=(n_a, n_t)) < 0.3, np.inf, rng.integers(1, 4, (n_a, n_t)).astype(float))
    is_whole = np.zeros((n_s, n_a), bool)
    for _ in range(whole):
        is_whole[rng.integers(n_s), rng.integers(n_a)] = True
    supply[is_whole.any(axis=0)] = 1.0
    rate = np.where(u(size=(n_a, n_m)) < 0.2, 0.0, u(0.5, 3.0, (n_a, n_m)))
    begin_from = rng.integers(0, 2, n_p)
    n_g, n_l = int(rng.integers(0, 3)), int(rng.integers(0, 2))

    def budget(low: float, high: float) -> np.ndarray:
        return np.where(u(size=n_t) < 0.6, np.inf, u(low, high, n_t))

    shape = (n_s, n_a, n_t)
    terms = np.random.default_rng([seed, 1])  # of power that is paid without being used
    by_use = bool(terms.random() < 0.5)
    return Problem(
        name=f"tiny {seed}",
        sites=tuple(f"s{i}" for i in range(n_s)),
        kinds=tuple(f"a{i}" for i in range(n_a)),
        services=tuple(f"m{i}" for i in range(n_m)),
        clients=tuple(f"r{i}" for i in range(n_r)),
        periods=tuple(f"t{i}" for i in range(n_t)),
        phases=tuple(f"p{i}" for i in range(n_p)),
        rentals=tuple(f"k{i}" for i in range(n_k)),
        groups=tuple(f"g{i}" for i in range(n_g)),
        limits=tuple(f"l{i}" for i in range(n_l)),
        demand=np.where(u(size=(n_r, n_m, n_t)) < 0.2, 0.0, u(0.2, 3.0, (n_r, n_m, n_t))),
        allowed=u(size=(n_r, n_s, n_m)) < 0.7,
        may_place=u(size=(n_s, n_a)) < 0.85,
        rate=rate,
        rack_mw=u(0.5, 1.5, (n_s, n_a)),
        rack_m2=u(1.0, 3.0, n_a),
        existing=np.where(u(size=(n_s, n_a, 1)) < 0.5, 0.0, rng.integers(0, 3, (n_s, n_a, 1))) * np.ones(n_t),
        lead=rng.integers(0, 2, n_a),
        life=rng.integers(1, 5, n_a),
        whole=is_whole,
        power_mw=u(0.0, 4.0, (n_s, 1)) * np.ones(n_t),
        floor_m2=np.where(u(size=(n_s, 1)) < 0.7, np.inf, u(3.0, 9.0, (n_s, 1))) * np.ones(n_t),
        phase_site=phase_site.astype(np.int64),
        phase_mw=u(0.5, 4.0, n_p),
        phase_delay=rng.integers(0, 3, n_p),
        phase_after=after,
        begin_from=begin_from,
        begin_by=np.where((u(size=n_p) < 0.1) & (after < 0) & (begin_from < n_t), n_t - 1, n_t),
        ratchet=rng.choice([0.0, 0.8], n_s),
        minimum_bill=rng.choice([0.0, 0.5], n_s),
        supply=supply,
        shared_use=u(0.5, 1.5, (n_l, n_a)),
        shared=u(1.0, 6.0, (n_l, n_t)),
        term=rng.integers(1, 4, n_k),
        useful=u(0.6, 1.0, n_k),
        on_site=rng.random(n_k) < 0.5,
        sign_max=np.where(u(size=(n_s, n_a, n_k)) < 0.3, 0.0, u(0.2, 2.0, (n_s, n_a, n_k))),
        group_of=rng.random((n_g, n_s, n_a)) < 0.5,
        share_max=u(0.3, 0.9, n_g),
        survive_ratio=np.where(rng.random(n_m) < 0.4, 0.0, u(0.3, 1.0, n_m)),
        host_min=u(0.2, 1.5, n_m) if host else None,
        cost_begin=u(1.0, 15.0, (n_p, 1)) * 0.95 ** np.arange(n_t),
        cost_live=u(0.0, 2.0, (n_p, n_t)),
        cost_buy=u(2.0, 12.0, shape),
        cost_owned=u(0.1, 1.0, shape),
        cost_sign=u(2.0, 9.0, (n_s, n_a, n_k, n_t)),
        cost_put=u(0.0, 1.0, (n_s, n_a, n_m, n_t)),
        cost_flow=u(0.0, 1.0, (n_r, n_s, n_m, n_t)),
        cost_unserved=u(3.0, 20.0, (n_r, n_m, n_t)),
        cost_billed=u(0.0, 2.0, (n_s, n_t)),
        cost_host=u(0.0, 3.0, (n_s, n_m, n_t)),
        spend_begin=u(1.0, 5.0, (n_p, n_t)),
        spend_buy=u(1.0, 5.0, shape),
        capex_budget=budget(3.0, 12.0),
        carbon_owned=u(0.0, 1.0, shape),
        carbon_put=u(0.0, 1.0, (n_s, n_a, n_m, n_t)),
        carbon_budget=budget(1.0, 8.0),
        water_owned=u(0.0, 1.0, shape),
        water_put=u(0.0, 1.0, (n_s, n_a, n_m, n_t)),
        water_budget=budget(1.0, 8.0),
        billed_least=terms.uniform(0.0, 2.0, (n_s, n_t)) if terms.random() < 0.5 else None,
        cost_used=np.where(terms.random((n_s, 1)) < 0.5, 0.0, terms.uniform(0.2, 3.0, (n_s, n_t))) if by_use else None,
        phase_paid=terms.uniform(0.0, 2.0, n_p) if by_use else None,
        budget_span=rng.integers(1, np.arange(n_t) + 2) if rng.random() < 0.5 else None,
        slack_price={
            "short_power": u(20.0, 60.0, (n_s, n_t)),
            "short_floor": u(20.0, 60.0, (n_s, n_t)),
            "short_survive": u(1.0, 15.0, (n_m, n_t)),
            "over_share": u(1.0, 30.0, (n_g, n_t)),
            "over_capex": u(1.0, 5.0, n_t),
            "over_carbon": u(1.0, 5.0, n_t),
            "over_water": u(1.0, 5.0, n_t),
        },
    )


@st.composite
def problems(draw: st.DrawFn) -> Problem:
    """Draw a problem whose whole decisions can all be tried."""
    n_t = draw(st.integers(1, 3))
    n_p = draw(st.integers(0, 2 if n_t < 3 else 1))
    n_s, n_m = draw(st.integers(1, 3)), draw(st.integers(1, 2))
    host = n_s * n_m * n_t <= 4 and draw(st.booleans())
    whole = draw(st.integers(0, 1)) if n_t < 3 and not host else 0
    return tiny(
        draw(st.integers(0, 2**32 - 1)),
        n_s,
        draw(st.integers(1, 2)),
        n_m,
        draw(st.integers(1, 3)),
        n_t,
        n_p,
        draw(st.integers(0, 2)),
        host=host,
        whole=whole,
    )
