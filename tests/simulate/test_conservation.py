"""Nothing is lost on the way: requests, tokens, KV blocks, joules, slots; at the end of a run and in its middle."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as some

from baseload.records import SERVED
from baseload.simulate import control
from baseload.simulate import run as twin
from baseload.simulate import state as st
from baseload.simulate import world as room
from baseload.simulate.kernel import advance
from baseload.simulate.world import PoolSpec
from tests.simulate import specs
from tests.simulate.books import check_books, check_world
from tests.simulate.test_exactness import SWITCHES


@settings(max_examples=60)
@given(on=SWITCHES, share=some.floats(0.05, 0.95))
def test_a_run_that_is_cut_short_is_whole_too(on: specs.Switches, share: float) -> None:
    """Stopped at any moment, every request is in one place, every block accounted for, and stepping agrees."""
    spec, chunk = specs.random_system(on)
    until_ns = int(chunk.arrival_ns[-1] * share) + 1
    fast, outcome = specs.simulate(spec, chunk, until_ns=until_ns)
    slow, stepped = specs.simulate(replace(spec, stepping=True), chunk, until_ns=until_ns)
    specs.assert_same(fast, slow)
    check_world(outcome.world)
    check_world(stepped.world)
    assert outcome.n_in == outcome.served + outcome.refused + outcome.failed + outcome.unfinished
    assert outcome.n_in == stepped.n_in and outcome.end_ns == stepped.end_ns
    ended = (fast["finish_ns"] >= until_ns) & (fast["n_tries"] == 0)
    assert not ended.any()
    for name in ("n_steps", "busy_ns", "decode_tokens", "prefill_tokens", "powered_ns", "down_ns", "kv_sum"):
        assert (outcome.world.replicas[name] == stepped.world.replicas[name]).all(), name


def test_the_world_is_whole_after_every_few_events() -> None:
    """With everything switched on, the invariants hold again and again in the middle of a run."""
    on = specs.Switches(
        seed=5, n_requests=150, tiny_kv=True, caching=True, failures=True, scaling=True, cap=3, two_sites=True, network=True,
        disaggregated=True, two_models=True, max_wait=True,
    )  # fmt: skip
    spec, chunk = specs.random_system(on)
    world, plant = room.build(spec)
    rtt_ns = np.rint(spec.region_rtt_s * 1e9).astype(np.int64)
    arrivals = twin.as_arrivals(chunk, rtt_ns)._replace(final=True)
    handlers = {st.DUE_SCRAPE: lambda: control.on_scrape(world), st.DUE_TIMER: lambda: control.on_timer(world)}
    handlers[st.DUE_CONTROL] = lambda: control.on_control(world, plant)
    handlers[st.DUE_OUTAGE] = lambda: control.on_outage(world, plant)
    rounds = 0
    while (why := advance(world, arrivals, st.NEVER, 7)) != st.FINISHED:
        assert why in handlers or why in (st.PAUSED, st.NEED_BINS), why
        if why == st.NEED_BINS:
            world = room.more_bins(world)
        elif why != st.PAUSED:
            handlers[why]()
        check_world(world)
        rounds += 1
    assert rounds > 100


def test_without_failures_each_token_is_computed_once_or_found() -> None:
    """Prompt tokens computed and found sum to the prompts; answers have one token from the prompt, the rest decoded."""
    rng = np.random.default_rng(2)
    n = 400
    hashes = [[1 + j if j < 3 else 1000 + 10 * i + j for j in range(6)] for i in range(n)]
    one = specs.engine(caching=True, chunk_tokens=16, block_tokens=16, blocks=4000)
    spec = specs.system(one, (PoolSpec(deployment=0, site=0, n_min=3, n_max=3),))
    chunk = specs.trace(np.cumsum(rng.exponential(0.02, n)), 100, rng.integers(1, 50, n), hashes=hashes)
    records, outcome = specs.simulate(spec, chunk)
    check_books(spec, records, outcome)
    check_world(outcome.world)
    found = outcome.world.replicas["cached_tokens"].sum()
    assert found == records["cached_tokens"].sum() > 0.8 * 48 * n  # the shared three of six blocks, nearly always
    assert outcome.world.replicas["prefill_tokens"].sum() + found == 100 * n


def test_what_a_prompt_finds_in_an_unlimited_cache_is_its_longest_seen_prefix() -> None:
    """One replica, room for everything: a prompt finds exactly the blocks that any earlier prompt began with."""
    rng = np.random.default_rng(3)
    n, block = 300, 8
    seen: set[int] = set()
    hashes, expected, lengths = [], [], []
    for i in range(n):
        family, depth = int(rng.integers(0, 5)), int(rng.integers(0, 12))
        keys = [family * 100 + j + 1 for j in range(depth)]
        keys += [10_000 + i * 100 + j for j in range(int(rng.integers(0, 4)))]
        length = len(keys) * block + int(rng.integers(1, block))
        hits = 0
        while hits < len(keys) and keys[hits] in seen:
            hits += 1
        seen |= set(keys)
        hashes.append(keys)
        expected.append(hits * block)
        lengths.append(length)
    one = specs.engine(caching=True, chunk_tokens=block, block_tokens=block, blocks=1 << 16, max_tokens=64)
    records, _ = specs.simulate(specs.system(one), specs.trace(np.arange(n) * 1.0, lengths, 3, hashes=hashes))
    assert records["cached_tokens"].tolist() == expected


def test_a_trace_whose_hashes_do_not_tell_the_whole_prefix_cannot_break_the_cache() -> None:
    """The same hash after different prefixes, or twice in one prompt, leaves blocks and chains whole."""
    rng = np.random.default_rng(4)
    n = 400
    hashes = [rng.integers(0, 6, int(rng.integers(0, 9))).tolist() for _ in range(n)]
    one = specs.engine(caching=True, chunk_tokens=4, block_tokens=4, blocks=24, max_tokens=32, max_seqs=4)
    chunk = specs.trace(np.cumsum(rng.exponential(0.05, n)), [4 * len(h) + 2 for h in hashes], 5, hashes=hashes)
    spec = specs.system(one)
    records, outcome = specs.simulate(spec, chunk)
    check_world(outcome.world)
    check_books(spec, records, outcome)
    slow, _ = specs.simulate(replace(spec, stepping=True), chunk)
    specs.assert_same(records, slow)


def test_joules_are_watts_times_seconds() -> None:
    """A replica's energy is its idle watts while powered and its busy watts in steps; requests carry the busy part."""
    rng = np.random.default_rng(5)
    n = 200
    one = specs.engine(power_busy_w=700.0, power_idle_w=120.0, blocks=5000)
    spec = specs.system(one, (PoolSpec(deployment=0, site=0, n_min=2, n_max=2),), bin_s=0.5)
    records, outcome = specs.simulate(
        spec, specs.trace(np.cumsum(rng.exponential(0.1, n)), rng.integers(1, 60, n), rng.integers(1, 40, n))
    )
    replicas, bins = outcome.world.replicas, outcome.world.bins[0]
    busy_s = replicas["busy_ns"].sum() * 1e-9
    assert replicas["energy_j"].sum() == pytest.approx(700.0 * busy_s, rel=1e-9)
    assert records["energy_j"].sum() == pytest.approx(700.0 * busy_s, rel=1e-9)
    assert bins[:, st.B_POWERED_J].sum() == pytest.approx(2 * 120.0 * outcome.end_ns * 1e-9, rel=1e-9)
    assert bins[:, st.B_BUSY_IDLE_J].sum() == pytest.approx(120.0 * busy_s, rel=1e-9)
    assert (bins[:, st.B_DYNAMIC_J] <= 2 * 700.0 * 0.5 + 1e-6).all()  # no bin draws more than all can


def test_a_queue_given_up_at_once_fits_into_the_records() -> None:
    """Thousands whose patience ends together are all recorded, however small the buffer for records."""
    n = 5000
    one = specs.engine(max_seqs=1, max_tokens=16)
    arrival_s = np.linspace(0.0, 0.5, n)
    answers = np.full(n, 2)
    answers[0] = 500
    records, outcome = specs.simulate(
        specs.system(one, max_wait_s=0.01), specs.trace(arrival_s, 3, answers), out_rows=1
    )
    assert len(records) == n == outcome.served + outcome.refused and outcome.refused > 4000
    check_world(outcome.world)


def test_a_month_keeps_its_nanoseconds() -> None:
    """After a month of simulated time a request takes to the nanosecond as long as at its start; nothing overflows."""
    day_s = 86_400.0
    arrival_s = np.arange(0.0, 31 * day_s, 3600.0)
    spec = specs.system(specs.engine(step_s=0.0123456789, token_s=1e-5, kv_s_per_token=1e-7), bin_s=3600.0, bins=16)
    records, outcome = specs.simulate(spec, specs.trace(arrival_s, 37, 211))
    assert (records["status"] == SERVED).all() and len(records) == 31 * 24
    for name in ("scheduled_ns", "first_token_ns", "finish_ns"):
        assert len(np.unique(records[name] - records["arrival_ns"])) == 1, name
    assert outcome.end_ns > 30.9 * day_s * 1e9
    check_books(spec, records, outcome)


def test_a_caller_who_raises_in_breathe_stops_the_run() -> None:
    """Ctrl-C reaches the caller between two calls of the kernel, with what was recorded so far handed out."""

    class StoppedError(Exception):
        pass

    moments: list[twin.Moment] = []

    def breathe(moment: twin.Moment) -> None:
        moments.append(moment)
        if len(moments) == 3:
            raise StoppedError

    rows = 0

    def emit(out: np.ndarray) -> None:
        nonlocal rows
        rows += len(out)

    n = 400_000
    chunk = specs.trace(np.arange(n) * 0.001, 5, 3)
    with pytest.raises(StoppedError):
        twin.run(specs.system(specs.engine(step_s=1e-4)), [chunk], emit=emit, breathe=breathe)
    assert len(moments) == 3 and moments[0].arrived < moments[2].arrived < n
    assert 0 <= rows <= moments[2].ended


def test_an_hourly_callback_ends_with_the_trace() -> None:
    """each_hour is called once for each hour that has traffic, and a run with it ends."""
    hours: list[int] = []
    spec = specs.system(specs.engine(), outages=np.array([[10**18, 0, 1], [10**18 + 1, 0, -1]]), groups=((0,),))
    records, outcome = specs.simulate(
        spec, specs.trace([10.0, 4000.0, 7300.0], 5, 5), each_hour=lambda world, hour: hours.append(hour)
    )
    assert hours == [0, 1, 2] and len(records) == 3
    assert outcome.end_ns == records["finish_ns"].max()
