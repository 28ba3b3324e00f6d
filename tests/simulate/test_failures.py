"""Failures, repairs, retries, cold starts and hand-overs between prefill and decode, to the nanosecond."""

from __future__ import annotations

from typing import Any

import numpy as np

from baseload.records import FAILED, REASON_LOST, REASON_NO_REPLICA, REASON_RETRIES, REFUSED, SERVED
from baseload.simulate import state as st
from baseload.simulate.world import PoolSpec
from tests.simulate import specs

S = 1_000_000_000


def outages(*rows: tuple[float, int, int]) -> Any:
    """Return outage rows (seconds, group, +1 down or -1 up) in order of time."""
    return np.array([(round(s * S), group, change) for s, group, change in sorted(rows)], np.int64)


def fleet(n: int = 2, *, cold_s: float = 0.0, **kw: Any) -> Any:
    """Return n replicas of one engine (10 ms a step) in one site."""
    one = specs.engine(step_s=0.01, max_seqs=4, max_tokens=64, cold_s=cold_s)
    return specs.system(one, (PoolSpec(deployment=0, site=0, n_min=n, n_max=n),), **kw)


def test_what_had_not_answered_is_tried_elsewhere_and_what_had_is_lost() -> None:
    """A failing replica loses requests with a token out; the others are served by another, counted from their arrival."""
    # Request 0 decodes on replica 0, request 1 on replica 1; request 2 has a long prompt on replica 0.
    spec = fleet(outages=outages((0.205, 0, 1)), groups=((0,),), one_way_s=np.array([0.0]))
    records, _ = specs.simulate(spec, specs.trace([0.0, 0.0, 0.195], [5, 5, 600], [100, 100, 3]))
    lost, other, moved = records
    assert (lost["status"], lost["reason"], lost["finish_ns"]) == (FAILED, REASON_LOST, 205_000_000)
    assert lost["output_tokens"] == 20  # steps that ended in 205 ms
    assert (other["status"], other["output_tokens"], other["replica_i"]) == (SERVED, 100, 1)
    assert (moved["status"], moved["n_tries"], moved["replica_i"]) == (SERVED, 3, 1)  # lost, refused, served
    assert moved["scheduled_ns"] == 210_000_000  # the next boundary there


def test_nothing_runs_on_a_replica_while_it_is_down_or_starting() -> None:
    """No request is scheduled, answered or finished between a failure and the end of the cold start after its repair."""
    spec = fleet(
        3, cold_s=2.0, outages=outages((5.0, 0, 1), (9.0, 0, -1), (20.0, 1, 1), (20.5, 1, -1)), groups=((0,), (1,))
    )
    rng = np.random.default_rng(1)
    chunk = specs.trace(np.cumsum(rng.exponential(0.02, 2000)), rng.integers(1, 100, 2000), rng.integers(1, 60, 2000))
    records, outcome = specs.simulate(spec, chunk)
    for replica, from_s, until_s in ((0, 5.0, 11.0), (1, 20.0, 22.5)):
        mine = records[(records["replica_i"] == replica) & (records["status"] == SERVED)]
        for name in ("scheduled_ns", "first_token_ns", "finish_ns"):
            assert not ((mine[name] > from_s * S) & (mine[name] < until_s * S)).any(), name
        assert (mine["scheduled_ns"] >= until_s * S).any()  # it came back
        over = (mine["scheduled_ns"] <= from_s * S) & (mine["finish_ns"] > from_s * S)
        assert not over.any()  # nobody lived through it
    assert outcome.world.replicas["down_ns"].tolist() == [4 * S, S // 2, 0]
    end = outcome.end_ns
    assert outcome.world.replicas["powered_ns"].tolist() == [end - 4 * S, end - S // 2, end]


def test_the_gateway_learns_from_a_refused_connection_or_from_its_health_check() -> None:
    """The first request sent to a dead replica finds out and is tried elsewhere; without traffic the health check does."""
    spec = fleet(2, outages=outages((1.0, 0, 1)), groups=((0,),), detect_s=2.0, one_way_s=np.array([0.004]), route=0)
    records, outcome = specs.simulate(spec, specs.trace(np.arange(0.5, 6.0, 0.1), 5, 2))
    again = records["n_tries"] > 1
    assert again.sum() == 1 and (records["status"] == SERVED).all()
    found = records[again][0]
    assert S <= found["arrival_ns"] < 1.2 * S and found["replica_i"] == 1
    # there and back in vain, then there: 3 x 4 ms before it is scheduled on the idle replica
    assert found["scheduled_ns"] - found["arrival_ns"] == 12_000_000
    assert outcome.world.gate.tolist() == [-1, 9]
    quiet, _ = specs.simulate(spec, specs.trace([0.5, 3.1], 5, 2))
    assert quiet["n_tries"].tolist() == [1, 1] and quiet["replica_i"].tolist() == [0, 1]


def test_tries_are_bounded_and_refusal_is_immediate_when_nobody_is_left() -> None:
    """With every replica down a request fails after its retries, or is refused once no replica is thought to live."""
    chunk = specs.trace([1.5, 2.5], 5, 2)
    down = {"outages": outages((1.0, 0, 1)), "groups": ((0, 1),), "detect_s": 0.8}
    few, _ = specs.simulate(fleet(2, retries=1, **down), chunk)
    assert (few[0]["status"], few[0]["reason"], few[0]["n_tries"]) == (FAILED, REASON_RETRIES, 2)
    more, _ = specs.simulate(fleet(2, retries=5, **down), chunk)
    assert (more[0]["status"], more[0]["reason"], more[0]["n_tries"]) == (REFUSED, REASON_NO_REPLICA, 2)
    assert (more[1]["status"], more[1]["reason"], more[1]["n_tries"]) == (REFUSED, REASON_NO_REPLICA, 0)


def test_overlapping_causes_keep_a_replica_down_until_the_last_is_gone() -> None:
    """A replica, its server and its site may fail at once; it comes back when the last cause ends, once."""
    rows = outages((1.0, 0, 1), (2.0, 1, 1), (3.0, 0, -1), (4.0, 2, 1), (5.0, 1, -1), (7.0, 2, -1))
    spec = fleet(2, outages=rows, groups=((0,), (0,), (0, 1)))
    records, outcome = specs.simulate(spec, specs.trace([10.0, 10.0], 5, 2))
    assert outcome.world.replicas["down_ns"].tolist() == [6 * S, 3 * S]
    assert sorted(records["replica_i"].tolist()) == [0, 1]


def test_a_flapping_replica_needs_no_luck() -> None:
    """Hundreds of failures within one detection time leave the timers whole."""
    rows = []
    for i in range(400):
        rows += [(1.0 + i * 0.01, 0, 1), (1.005 + i * 0.01, 0, -1)]
    spec = fleet(2, outages=outages(*rows), groups=((0, 1),), detect_s=60.0)
    chunk = specs.trace(np.linspace(0.0, 100.0, 500), 5, 2)
    records, outcome = specs.simulate(spec, chunk)
    assert len(records) == 500 and outcome.unfinished == 0
    assert outcome.world.replicas["down_ns"].tolist() == [400 * 5_000_000] * 2


def test_a_closed_loop_keeps_its_users_through_failures() -> None:
    """Users whose answer was lost ask again: every row of the trace is asked, and all users stay busy."""
    n, users = 3000, 8
    rows = []
    for i in range(20):
        rows += [(1.0 + i, i % 3, 1), (1.3 + i, i % 3, -1)]
    spec = fleet(2, outages=outages(*rows), groups=((0,), (1,), (0, 1)), closed_users=users, think_s=0.01, detect_s=0.1)
    records, outcome = specs.simulate(spec, specs.trace(np.zeros(n), 5, 20))
    assert len(records) == n and outcome.failed > users
    late = records[records["arrival_ns"] > 25 * S]
    times = np.concatenate([late["arrival_ns"], late["finish_ns"]])
    inside = np.cumsum(np.repeat([1, -1], len(late))[np.argsort(times, kind="stable")])
    assert inside.max() == users


def test_prefill_replicas_hand_over_and_decode_replicas_answer() -> None:
    """The first token leaves the prefill replica; the rest come from a decode replica of the site, after the transfer."""
    prefill = specs.engine(step_s=0.05, role=st.PREFILL, transfer_s_per_token=0.001, max_tokens=1000)
    decode = specs.engine(step_s=0.01, role=st.DECODE)
    pools = (PoolSpec(deployment=0, site=0, n_min=1, n_max=1), PoolSpec(deployment=1, site=0, n_min=2, n_max=2))
    records, outcome = specs.simulate(
        specs.system((prefill, decode), pools), specs.trace([0.0, 1.0], [100, 20], [1, 11])
    )
    alone, both = records
    assert (alone["replica_i"], alone["finish_ns"]) == (0, 50_000_000)  # one token needs no decode replica
    assert both["first_token_ns"] - both["arrival_ns"] == 50_000_000
    assert both["finish_ns"] - both["first_token_ns"] == 20_000_000 + 10 * 10_000_000
    assert both["replica_i"] == 1 and both["deployment_i"] == 1
    assert outcome.world.replicas["decode_tokens"].tolist() == [0, 10, 0]
    assert outcome.world.replicas["prefill_tokens"].tolist() == [120, 0, 0]


def test_without_a_decode_replica_the_answer_is_lost() -> None:
    """A prompt computed while every decode replica is down fails; nothing is left behind."""
    prefill, decode = specs.engine(role=st.PREFILL), specs.engine(role=st.DECODE)
    spec = specs.system((prefill, decode), outages=outages((0.5, 0, 1)), groups=((1,),))
    records, outcome = specs.simulate(spec, specs.trace([0.0, 1.0], 5, 10))
    assert records["status"].tolist() == [SERVED, FAILED] and outcome.unfinished == 0


def test_a_saturated_prefill_queue_with_little_memory_goes_on() -> None:
    """A prefill replica whose queue's head waits for blocks takes it up when a hand-over frees them."""
    prefill = specs.engine(role=st.PREFILL, blocks=8, block_tokens=16, max_tokens=64, step_s=0.01)
    decode = specs.engine(role=st.DECODE, blocks=4000, max_seqs=64, max_tokens=64, step_s=0.001)
    records, _ = specs.simulate(specs.system((prefill, decode)), specs.trace(np.zeros(50), 100, 5))
    assert (records["status"] == SERVED).all()
