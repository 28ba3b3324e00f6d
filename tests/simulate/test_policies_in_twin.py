"""The rules at work in the twin: law, budgets, priorities, power limits, scaling, cold starts."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from baseload.records import REASON_BUDGET, REASON_NO_REPLICA, REASON_POWER, REASON_SLO, REFUSED, SERVED
from baseload.simulate import state as st
from baseload.simulate.world import PoolSpec
from tests.simulate import specs

S = 1_000_000_000


def poisson(rng: np.random.Generator, n: int, rate: float) -> Any:
    """Return n Poisson arrivals, in seconds."""
    return np.cumsum(rng.exponential(1.0 / rate, n))


@pytest.mark.parametrize("route", range(6))
def test_no_rule_ever_crosses_a_border(route: int) -> None:
    """Three tenants, three sites: each is served only where its residency and sovereignty allow, under any rule."""
    rng = np.random.default_rng(route)
    n = 3000
    one = specs.engine(step_s=0.005, max_seqs=4)
    pools = tuple(PoolSpec(deployment=0, site=s, n_min=2, n_max=2) for s in range(3))
    may = np.array([[[1, 1, 1]], [[0, 1, 0]], [[0, 0, 0]]], np.uint8)
    spec = specs.system(
        one,
        pools,
        n_tenants=3,
        may=may,
        route=route,
        scrapes=route in (2, 4, 5),
        one_way_s=np.array([0.0, 0.02, 0.001]),
    )
    chunk = specs.trace(
        poisson(rng, n, 200.0),
        20,
        rng.integers(1, 30, n),
        tenant_i=rng.integers(0, 3, n),
        hashes=[[i % 7] for i in range(n)],
    )
    records, _ = specs.simulate(spec, chunk)
    assert len(set(records["site_i"][records["tenant_i"] == 0])) > 1
    assert set(records["site_i"][records["tenant_i"] == 1]) == {1}
    nowhere = records[records["tenant_i"] == 2]
    assert (nowhere["status"] == REFUSED).all() and (nowhere["reason"] == REASON_NO_REPLICA).all()


def test_a_budget_is_overspent_by_no_more_than_the_answers_in_flight() -> None:
    """What a tenant is billed exceeds its budget at most by what answers in flight cost above their prediction."""
    rng = np.random.default_rng(1)
    n, out = 4000, 40
    prices = np.array([[1.0, 0.5, 3.0], [1.0, 0.5, 3.0]])
    spec = specs.system(
        specs.engine(max_seqs=8), n_tenants=2, prices=prices, budget=np.array([20_000.0, np.inf]), admit=2,
        predicted_output_tokens=1.0, one_way_s=np.array([0.01]),
    )  # fmt: skip
    chunk = specs.trace(poisson(rng, n, 20.0), 10, out, tenant_i=rng.integers(0, 2, n))
    records, outcome = specs.simulate(spec, chunk)
    tenants = outcome.world.tenants
    for t in range(2):
        mine = records[(records["tenant_i"] == t) & (records["status"] == SERVED)]
        billed = (
            (mine["input_tokens"] - mine["cached_tokens"]) * 1.0
            + mine["cached_tokens"] * 0.5
            + mine["output_tokens"] * 3.0
        ).sum()
        assert tenants["spent"][t] == pytest.approx(billed, rel=1e-9)
    assert 18_000.0 < tenants["spent"][0] < 20_000.0 + 3.0 * out * 9 * 20  # in flight at once: some hundred at most
    refused = records[records["reason"] == REASON_BUDGET]
    assert len(refused) > 500 and (refused["tenant_i"] == 0).all()
    # Once predictions are right the books are close: nobody is refused who could be paid for.
    assert tenants["spent"][0] > 20_000.0 - (10 + 3.0 * out)


def test_admission_by_slo_refuses_only_under_load_and_keeps_the_promise_for_the_rest() -> None:
    """within_slo refuses nobody on an idle fleet; overloaded, those admitted wait far less than without the rule."""
    rng = np.random.default_rng(2)
    one = specs.engine(step_s=0.01, max_seqs=4, prefill_tokens_per_s=5000.0, decode_s_per_token=0.01)
    spec = specs.system(
        one, slo=np.array([[0.5, 0.1]]), predicted_output_tokens=20.0, admit=1, scrapes=True, observe_every_s=0.1
    )
    calm, _ = specs.simulate(spec, specs.trace(poisson(rng, 300, 4.0), 10, 20))
    assert (calm["status"] == SERVED).all()
    chunk = specs.trace(poisson(rng, 3000, 40.0), 10, 20)
    guarded, _ = specs.simulate(spec, chunk)
    anyone, _ = specs.simulate(replace(spec, admit=0), chunk)
    served = guarded[guarded["status"] == SERVED]
    assert (guarded["reason"][guarded["status"] == REFUSED] == REASON_SLO).all() and len(served) > 1000
    wait_s = (served["first_token_ns"] - served["arrival_ns"]) / S
    assert np.quantile(wait_s, 0.99) < 2.0 * 0.5
    assert ((anyone["first_token_ns"] - anyone["arrival_ns"]) / S).mean() > 10.0


def capped(cap: int, limit_kw: Any, *, rate: float = 60.0, n: int = 3000, bin_s: float = 1.0, **kw: Any) -> Any:
    """Run four replicas (0.1 kW idle, 0.7 kW with all seats taken) under a limit; two tenants, priorities 2 and 7."""
    rng = np.random.default_rng(3)
    watts = 100.0 + 75.0 * np.minimum(np.arange(65), 8)
    one = specs.engine(step_s=0.01, max_seqs=8, power_w=watts, power_idle_w=100.0)
    kw = {"priority": np.array([2, 7])} | kw
    spec = specs.system(
        one, (PoolSpec(deployment=0, site=0, n_min=4, n_max=4),), n_tenants=2, cap=cap, limit_kw=limit_kw, bin_s=bin_s,
        control_every_s=1.0, **kw,
    )  # fmt: skip
    chunk = specs.trace(poisson(rng, n, rate), 10, rng.integers(20, 80, n), tenant_i=np.arange(n) % 2)
    records, outcome = specs.simulate(spec, chunk)
    bins = outcome.world.bins[0]
    last = int(chunk.arrival_ns[-1] // (bin_s * 1e9))
    power_kw = (bins[:, st.B_DYNAMIC_J] - bins[:, st.B_BUSY_IDLE_J] + bins[:, st.B_POWERED_J]) / bin_s / 1000.0
    return records, power_kw[:last], outcome


def test_a_slowed_site_keeps_its_limit_from_the_next_decision_on() -> None:
    """Under `slow` a saturated site draws its limit, not more, one control interval and a step after the limit falls."""
    limit_kw = np.full((1, 1000), np.inf)
    limit_kw[0, 20:40] = 1.6
    free, free_kw, _ = capped(0, None, rate=100.0, n=5500)
    records, power_kw, outcome = capped(1, limit_kw, rate=100.0, n=5500)
    assert free_kw[5:].min() == pytest.approx(2.8)  # saturated: 4 x 700 W
    assert power_kw[5:20].max() == pytest.approx(2.8)
    assert power_kw[22:40].max() <= 1.6 + 0.01 and power_kw[22:40].min() == pytest.approx(1.6, rel=0.02)
    assert power_kw[42:].max() == pytest.approx(2.8)
    assert (records["status"] == SERVED).all()
    inside = (records["scheduled_ns"] > 22 * S) & (records["finish_ns"] < 40 * S)
    before = free["finish_ns"] < 18 * S

    def step_s(rows: Any) -> Any:
        return (rows["finish_ns"] - rows["first_token_ns"]) / S / (rows["output_tokens"] - 1)

    ratio = (1.2 / 2.4) ** (1 / 3)  # half the power above idle
    assert np.median(step_s(free[before])) == pytest.approx(0.01)
    assert np.median(step_s(records[inside])) == pytest.approx(0.01 / ratio, rel=0.02)
    assert outcome.world.bins[0, :, st.B_CAPPED_S].sum() == pytest.approx(20.0, abs=1.1)


@pytest.mark.parametrize("cap", [2, 3])
def test_under_a_power_limit_the_least_important_go_first(cap: int) -> None:
    """shed and by_priority turn away the tenant of priority 7 before anyone of priority 2, and say why."""
    records, power_kw, _ = capped(cap, np.full((1, 1000), 1.7), rate=30.0)
    refused = records[records["status"] == REFUSED]
    assert len(refused) > 100 and (refused["reason"] == REASON_POWER).all()
    by_tenant = np.bincount(refused["tenant_i"], minlength=2)
    assert by_tenant[1] > 2 * by_tenant[0]
    if cap == 3:
        # Between two decisions more may start: a second may lie above, by the load's swing, not a minute.
        assert power_kw[2:].max() <= 1.25 * 1.7 and np.quantile(power_kw[2:], 0.9) <= 1.05 * 1.7


@pytest.mark.parametrize("cap", [1, 3])
def test_with_a_power_cap_at_each_replica_no_second_lies_above_the_limit(cap: int) -> None:
    """Under `slow` and `by_priority` a site never draws more than its limit, however the load swings and the limit falls."""
    limit_kw = np.full((1, 1000), 1.7)
    limit_kw[0, 30:45] = 1.1
    limit_kw[0, 60:] = 2.2
    loose, loose_kw, _ = capped(cap, limit_kw, rate=30.0)
    records, power_kw, outcome = capped(cap, limit_kw, rate=30.0, hard_cap=True)
    n = len(power_kw)
    assert n > 80 and (loose_kw > limit_kw[0, :n] * 1.02).any(), "the load never tries the limit"
    assert (power_kw <= limit_kw[0, :n] * (1 + 1e-9)).all()
    assert power_kw[31:44].max() > 0.9, "what may be drawn is drawn"
    served = records["status"] == SERVED
    assert served.sum() > 0.9 * (loose["status"] == SERVED).sum()
    assert outcome.served + outcome.refused == len(records)


def test_a_site_closed_to_everybody_says_that_it_is_for_want_of_power() -> None:
    """When idle power alone exceeds the limit, `shed` closes the site to all, and the refusals name the power limit."""
    records, _, outcome = capped(2, np.full((1, 1000), 0.2), rate=20.0)
    late = records[(records["arrival_ns"] > 20 * S) & (records["status"] == REFUSED)]
    assert outcome.world.sites["open"][0] == -1 and len(late) > 100
    assert (late["reason"] == REASON_POWER).all()


def test_what_a_capped_site_turns_away_is_served_elsewhere_if_the_law_allows() -> None:
    """Shifting: with a second site open, nobody is refused though the first sheds; who must stay is refused."""
    rng = np.random.default_rng(4)
    n = 2000
    one = specs.engine(step_s=0.01, max_seqs=8, power_busy_w=700.0, power_idle_w=100.0)
    pools = (PoolSpec(deployment=0, site=0, n_min=2, n_max=2), PoolSpec(deployment=0, site=1, n_min=4, n_max=4))
    limit_kw = np.array([[0.5], [np.inf]])
    may = np.array([[[1, 1]], [[1, 0]]], np.uint8)
    spec = specs.system(one, pools, n_tenants=2, may=may, cap=2, limit_kw=limit_kw, control_every_s=0.5)
    chunk = specs.trace(poisson(rng, n, 40.0), 10, 30, tenant_i=np.arange(n) % 2)
    records, _ = specs.simulate(spec, chunk)
    free, bound = (records[records["tenant_i"] == t] for t in range(2))
    assert (free["status"] == SERVED).all() and (free["site_i"] == 1).mean() > 0.5
    assert (bound["status"] == REFUSED).any() and (bound["site_i"][bound["status"] == SERVED] == 0).all()


def test_scaling_follows_the_load_between_its_bounds() -> None:
    """Replicas grow with load up to the most, shrink after the wait down to the least; none serves before its cold start."""
    rng = np.random.default_rng(5)
    one = specs.engine(step_s=0.01, max_seqs=4, cold_s=3.0)
    pool = PoolSpec(deployment=0, site=0, n_min=1, n_max=5)
    spec = specs.system(one, (pool,), scale=1, control_every_s=1.0, tunables=(1.5, 1.0, 0.5, 5.0), bin_s=1.0)
    busy = poisson(rng, 1500, 50.0)
    chunk = specs.trace(np.concatenate([busy, busy[-1] + 60.0 + poisson(rng, 50, 1.0)]), 10, 20)
    records, outcome = specs.simulate(spec, chunk)
    powered = outcome.world.bins[0, :, st.B_POWERED_S]
    end = int(outcome.end_ns // S)
    assert powered[0] == pytest.approx(1.0) and powered[:end].max() == pytest.approx(5.0)
    assert powered[int(busy[-1]) + 40] == pytest.approx(1.0)
    assert (powered[: end - 1] > 0.999).all() and (records["status"] == SERVED).all()
    for replica in range(1, 5):
        mine = records["scheduled_ns"][records["replica_i"] == replica]
        first_on = np.flatnonzero(powered > replica + 0.5)[0]  # the second in which it was powered
        assert mine.min() >= (first_on - 1 + 3.0) * S


def test_scaled_to_zero_wakes_up_for_the_one_who_asks() -> None:
    """A pool that may shrink to nothing refuses the first, starts at the next decision, and serves after its cold start."""
    one = specs.engine(step_s=0.01, cold_s=2.0)
    spec = specs.system(
        one,
        (PoolSpec(deployment=0, site=0, n_min=0, n_max=2),),
        scale=1,
        control_every_s=1.0,
        tunables=(1.5, 1.0, 0.6, 4.0),
    )
    arrival_s = np.concatenate([[0.5], [0.7], np.arange(3.2, 5.0, 0.1), [60.0], np.arange(63.2, 64.0, 0.1)])
    records, outcome = specs.simulate(spec, specs.trace(arrival_s, 5, 5))
    refused = records["status"] == REFUSED
    assert np.flatnonzero(refused).tolist() == [0, 1, len(arrival_s) - 9]  # before each wake-up
    assert (records["reason"][refused] == REASON_NO_REPLICA).all()
    powered_s = outcome.world.replicas["powered_ns"] / S
    assert 3.0 < powered_s.sum() < 30.0  # asleep for most of the minute


def test_draining_finishes_what_runs() -> None:
    """A replica that is scaled away serves every request it holds, and takes no new one."""
    one = specs.engine(step_s=0.01, max_seqs=4, blocks=100_000)
    spec = specs.system(
        one,
        (PoolSpec(deployment=0, site=0, n_min=1, n_max=3),),
        scale=1,
        control_every_s=1.0,
        tunables=(1.5, 1.0, 0.5, 0.0),
    )
    answers = np.full(40, 20)
    answers[5:8] = 3000  # half a minute each
    records, outcome = specs.simulate(spec, specs.trace(np.linspace(0.0, 2.0, 40), 10, answers))
    assert (records["status"] == SERVED).all() and (records["output_tokens"] == answers).all()
    assert (outcome.world.replicas["state"] != st.STARTING).all()
