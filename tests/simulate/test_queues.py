"""The twin finds the textbook's answers by itself: M/G/1, M/M/c, processor sharing, closed loops, Little's law.

An engine with one seat whose steps all take the same time is a first-come-first-served server; an answer's tokens are
its service. Geometric answers of many short steps are an exponential service, to a known and tiny difference.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from baseload.formulas import queues
from baseload.simulate.world import PoolSpec
from tests.simulate import specs

STEP_S = 0.001


def poisson_run(
    rate_per_s: float, out: Any, *, n: int, seed: int = 1, engine: Any = None, n_replicas: int = 1, **kw: Any
) -> Any:
    """Run Poisson arrivals of one-token prompts; return the records and the outcome."""
    rng = np.random.default_rng(seed)
    arrival_s = np.cumsum(rng.exponential(1.0 / rate_per_s, n))
    answers = out(rng, n)
    engine = engine or specs.engine(step_s=STEP_S, max_tokens=8, max_seqs=1)
    pools = (PoolSpec(deployment=0, site=0, n_min=n_replicas, n_max=n_replicas),)
    spec = specs.system(engine, pools, energy=False, bin_s=3600.0, **kw)
    return specs.simulate(spec, specs.trace(arrival_s, 1, answers))


def wait_s(records: Any) -> Any:
    """Return the time each request waited before its service."""
    return (records["scheduled_ns"] - records["arrival_ns"]) * 1e-9


def sojourn_s(records: Any) -> Any:
    """Return the time each request spent inside."""
    return (records["finish_ns"] - records["arrival_ns"]) * 1e-9


def assert_mean(values: Any, theory: float, *, at_most: float = 0.04) -> None:
    """Assert that a mean agrees with theory within four standard errors (batch means), and that these are small."""
    batches = np.array([batch.mean() for batch in np.array_split(values, 25)])
    error = batches.std(ddof=1) / np.sqrt(len(batches))
    assert error < at_most * theory, (error, theory)
    assert abs(values.mean() - theory) < 4.0 * error, (values.mean(), theory, error)


def test_one_seat_follows_lindley_request_by_request() -> None:
    """Each wait is max(0, the one before + its service - the gap): Lindley 1952, to the rounding of a ns."""
    records, _ = poisson_run(8.5, lambda rng, n: rng.geometric(0.01, n), n=50_000)
    arrival, service = records["arrival_ns"], records["output_tokens"].astype(np.int64) * 1_000_000
    free = 0
    for i in range(len(records)):
        start = max(int(arrival[i]), free)
        free = start + int(service[i])
        assert records["scheduled_ns"][i] == start and records["finish_ns"][i] == free


@pytest.mark.parametrize("load", [0.3, 0.7, 0.9])
def test_one_server_agrees_with_theory(load: float) -> None:
    """Mean wait in M/M/1 is rho s / (1 - rho)."""
    records, _ = poisson_run(load / 0.1, lambda rng, n: rng.geometric(0.01, n), n=400_000)
    assert_mean(wait_s(records), queues.mm1_wait_s(load / 0.1, 0.1), at_most=0.06)


def test_constant_service_waits_half_as_long() -> None:
    """Mean wait in M/D/1 is half of that in M/M/1."""
    records, _ = poisson_run(8.0, lambda rng, n: np.full(n, 100), n=300_000)
    assert_mean(wait_s(records), queues.md1_wait_s(8.0, 0.1))


def test_varied_service_waits_by_pollaczek_and_khinchine() -> None:
    """Mean wait in M/G/1 follows from the first two moments of service alone."""
    answers = lambda rng, n: np.where(rng.random(n) < 0.9, 40, 640)  # noqa: E731
    mean_s, second = 0.9 * 0.04 + 0.1 * 0.64, 0.9 * 0.04**2 + 0.1 * 0.64**2
    records, _ = poisson_run(6.0, answers, n=400_000)
    assert_mean(wait_s(records), queues.mg1_wait_s(6.0, mean_s, second / mean_s**2 - 1.0))


@pytest.mark.parametrize(("c", "load"), [(2, 0.8), (8, 0.9), (32, 0.95)])
def test_many_seats_agree_with_erlang_c(c: int, load: float) -> None:
    """Seats of one engine whose step time does not depend on the batch are the servers of M/M/c: mean, share, quantile."""
    service_s = 0.4
    engine = specs.engine(step_s=STEP_S, max_tokens=64, max_seqs=c)
    rate = load * c / service_s
    records, _ = poisson_run(rate, lambda rng, n: rng.geometric(STEP_S / service_s, n), n=400_000, engine=engine)
    waits = wait_s(records)
    delayed = waits > STEP_S  # less is only the step in progress
    assert_mean(delayed * 1.0, queues.erlang_c(load * c, c))
    assert_mean(waits * delayed, queues.mmc_wait_s(rate, service_s, c), at_most=0.1)
    limit_s = queues.mmc_wait_quantile_s(0.9, rate, service_s, c)
    assert_mean((waits > limit_s) * 1.0, 0.1, at_most=0.2)


def test_a_batch_that_shares_its_speed_is_processor_sharing() -> None:
    """Where a step takes as long as its batch is large, a request of n tokens stays n / (1 - rho), whatever the others."""
    engine = specs.engine(step_s=0.0, token_s=STEP_S, max_tokens=512, max_seqs=512)
    answers = lambda rng, n: np.where(rng.random(n) < 0.8, 25, 400)  # noqa: E731
    records, _ = poisson_run(7.0, answers, n=300_000, engine=engine)
    assert_mean(sojourn_s(records), queues.processor_sharing_sojourn_s(7.0, 0.1))
    for tokens in (25, 400):
        own = sojourn_s(records[records["output_tokens"] == tokens])
        assert_mean(own, queues.processor_sharing_sojourn_s(7.0, 0.1, tokens * STEP_S))


def test_round_robin_thins_a_poisson_stream_evenly() -> None:
    """Each of c replicas in turn gets every c-th arrival: Erlang gaps, and the wait of E_c/M/1."""
    c, load, service_s = 4, 0.8, 0.1
    records, _ = poisson_run(
        load * c / service_s, lambda rng, n: rng.geometric(0.01, n), n=400_000, n_replicas=c, route=0
    )
    assert (records["replica_i"] == np.arange(len(records)) % c).all()
    gaps = np.diff(records["arrival_ns"][records["replica_i"] == 2])
    assert gaps.var() / gaps.mean() ** 2 == pytest.approx(1.0 / c, rel=0.03)
    sigma = 0.5  # share that waits in GI/M/1: sigma = A*(mu - mu sigma)
    for _ in range(200):
        sigma = (c * load / (c * load + 1.0 - sigma)) ** c
    assert_mean(wait_s(records), sigma * service_s / (1.0 - sigma))


def test_joining_the_shortest_queue_lies_between_one_queue_and_turns() -> None:
    """Least outstanding waits longer than one queue for all servers (M/M/c), and far shorter than taking turns."""
    c, load, service_s = 4, 0.8, 0.1
    rate = load * c / service_s
    answers = lambda rng, n: rng.geometric(0.01, n)  # noqa: E731
    shortest, _ = poisson_run(rate, answers, n=200_000, n_replicas=c, route=1)
    turns, _ = poisson_run(rate, answers, n=200_000, n_replicas=c, route=0)
    one_queue_s = queues.mmc_wait_s(rate, service_s, c)
    assert one_queue_s < wait_s(shortest).mean() < 0.7 * wait_s(turns).mean()


@pytest.mark.parametrize(("users", "think_s"), [(1, 0.2), (3, 0.2), (10, 0.5)])
def test_a_closed_loop_agrees_with_mean_value_analysis(users: int, think_s: float) -> None:
    """N users who think, ask and wait get the throughput of exact MVA."""
    n = 100_000
    rng = np.random.default_rng(3)
    engine = specs.engine(step_s=STEP_S, max_tokens=8, max_seqs=1)
    spec = specs.system(engine, energy=False, bin_s=3600.0, closed_users=users, think_s=think_s)
    records, outcome = specs.simulate(spec, specs.trace(np.zeros(n), 1, rng.geometric(0.01, n)))
    assert len(records) == n
    throughput = n / (records["finish_ns"].max() * 1e-9)
    assert throughput == pytest.approx(queues.closed_throughput_per_s(users, think_s, 0.1), rel=0.02)
    inside = sojourn_s(records).mean() + think_s
    assert throughput * inside == pytest.approx(users, rel=0.001)  # the response time law
    assert outcome.unfinished == 0


def test_a_closed_loop_never_has_more_requests_inside_than_users() -> None:
    """At any time at most N requests of N users are inside, and each user asks again only after its answer."""
    n, users = 5000, 7
    rng = np.random.default_rng(4)
    engine = specs.engine(step_s=STEP_S, max_tokens=16, max_seqs=4)
    spec = specs.system(
        engine, one_way_s=np.array([0.003]), region_rtt_s=np.array([0.01]), closed_users=users, think_s=0.05
    )
    records, _ = specs.simulate(spec, specs.trace(np.zeros(n), 5, rng.geometric(0.05, n)))
    times = np.concatenate([records["arrival_ns"], records["finish_ns"] + records["rtt_ns"]])
    changes = np.repeat([1, -1], n)
    order = np.lexsort((changes, times))
    assert np.cumsum(changes[order]).max() == users


def test_littles_law_and_what_arrivals_see() -> None:
    """L = lambda W; Poisson arrivals find the time average (PASTA); a seat is busy for lambda E[S]."""
    n, rate = 300_000, 8.0
    records, outcome = poisson_run(rate, lambda rng, n: rng.geometric(0.01, n), n=n)
    end_s = outcome.end_ns * 1e-9
    arrival, finish = records["arrival_ns"], np.sort(records["finish_ns"])
    times = np.concatenate([arrival, finish])
    order = np.argsort(times, kind="stable")
    inside = np.cumsum(np.repeat([1, -1], n)[order])
    mean_inside = float((inside[:-1] * np.diff(times[order])).sum()) * 1e-9 / end_s
    assert mean_inside == pytest.approx(queues.littles_number(n / end_s, sojourn_s(records).mean()), rel=1e-6)
    found = np.arange(n) - np.searchsorted(finish, arrival, side="right")
    assert found.mean() == pytest.approx(mean_inside, rel=0.02)
    busy = outcome.world.replicas["busy_ns"][0]
    assert abs(busy - records["output_tokens"].sum() * 1_000_000) <= n  # rounding of one ns a busy period
    assert busy / outcome.end_ns == pytest.approx(queues.utilisation(rate, 0.1), rel=0.02)
