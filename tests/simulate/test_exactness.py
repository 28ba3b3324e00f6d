"""Fast-forwarding is exact, and a run depends on nothing but its file, trace and seed."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as some

from baseload.records import FAILED, REASON_BUDGET, REASON_SLO, REASON_WAITED, REFUSED
from baseload.simulate import run as twin
from baseload.simulate import state as st
from tests.simulate import specs
from tests.simulate.books import check_books, check_world

SEEN: Counter[str] = Counter()

SWITCHES = some.builds(
    specs.Switches,
    seed=some.integers(0, 2**32 - 1),
    n_requests=some.integers(1, 120).map(lambda n: n if n < 4 else max(n, 40)),
    route=some.integers(0, 5),
    grid=some.booleans(),
    tiny_kv=some.sampled_from([False, True, True]),
    caching=some.sampled_from([False, True, True]),
    failures=some.sampled_from([False, True, True]),
    scaling=some.booleans(),
    cap=some.sampled_from([0, 0, 1, 2, 3]),
    hard=some.booleans(),
    disaggregated=some.sampled_from([False, False, True]),
    closed=some.sampled_from([False, False, True]),
    admit=some.sampled_from([0, 0, 1, 2, 3]),
    max_wait=some.sampled_from([False, False, True]),
    two_sites=some.booleans(),
    network=some.booleans(),
    two_models=some.booleans(),
)


def note(on: specs.Switches, records: np.ndarray, world: st.World) -> None:
    """Count what happened, so that the last test can say that the examples were worth it."""
    SEEN["runs"] += 1
    SEEN["preempted"] += bool(world.replicas["n_preempted"].any())
    SEEN["cached"] += bool(world.replicas["cached_tokens"].any())
    SEEN["failed"] += bool((records["status"] == FAILED).any())
    SEEN["retried"] += bool((records["n_tries"] > 1).any())
    SEEN["capped"] += bool(world.bins[:, :, st.B_CAPPED_S].any())
    SEEN["scaled"] += on.scaling and bool((world.replicas["powered_ns"] < world.replicas["powered_ns"].max()).any())
    SEEN["handed over"] += on.disaggregated and bool((records["deployment_i"] % 2 == 1).any())
    SEEN["refused by rule"] += bool(np.isin(records["reason"], [REASON_SLO, REASON_BUDGET]).any())
    SEEN["waited too long"] += bool((records["reason"] == REASON_WAITED).any())
    SEEN["closed loop"] += on.closed
    SEEN["an hour"] += bool(world.scalars[st.G_NOW] > 2000e9)


@settings(max_examples=200)
@given(on=SWITCHES)
def test_fast_forwarding_and_stepping_agree_to_the_bit(on: specs.Switches) -> None:
    """Every time, token count, place and end of every request is the same whether decode steps are merged or not."""
    spec, chunk = specs.random_system(on)
    fast, outcome = specs.simulate(spec, chunk)
    slow, stepped = specs.simulate(replace(spec, stepping=True), chunk)
    specs.assert_same(fast, slow)
    for name in ("n_steps", "decode_tokens", "prefill_tokens", "cached_tokens", "n_preempted", "served", "down_ns"):
        assert (outcome.world.replicas[name] == stepped.world.replicas[name]).all(), name
    assert (outcome.world.replicas["blocks_peak"] == stepped.world.replicas["blocks_peak"]).all()
    assert outcome.world.replicas["energy_j"] == pytest.approx(stepped.world.replicas["energy_j"], rel=1e-9, abs=1e-9)
    assert fast["energy_j"] == pytest.approx(slow["energy_j"], rel=1e-7, abs=1e-7)
    check_world(outcome.world)
    check_books(spec, fast, outcome)
    note(on, fast, outcome.world)


@settings(max_examples=40)
@given(on=SWITCHES, sizes=some.lists(some.integers(1, 50), min_size=1, max_size=6), events=some.integers(1, 40))
def test_a_run_depends_on_file_trace_and_seed_alone(on: specs.Switches, sizes: list[int], events: int) -> None:
    """Chunks of the trace, room for records and requests, and the length of a kernel call leave every byte as it is."""
    spec, chunk = specs.random_system(on)
    once, first = specs.simulate(spec, chunk)
    usual = twin.EVENTS_A_CALL
    try:
        twin.EVENTS_A_CALL = events
        again, second = specs.simulate(spec, specs.split(chunk, sizes), out_rows=1)
    finally:
        twin.EVENTS_A_CALL = usual
    assert once.tobytes() == again.tobytes()
    assert first.world.replicas[list(specs.COUNTERS)].tobytes() == second.world.replicas[list(specs.COUNTERS)].tobytes()
    most = min(first.world.bins.shape[1], second.world.bins.shape[1])
    assert first.world.bins[:, :most].tobytes() == second.world.bins[:, :most].tobytes()
    assert first.end_ns == second.end_ns


def test_the_same_run_twice_writes_the_same_bytes() -> None:
    """Same file, trace and seed: same bytes, in the same order."""
    spec, chunk = specs.random_system(
        specs.Switches(seed=11, n_requests=300, tiny_kv=True, caching=True, failures=True, scaling=True, cap=3)
    )
    kept: list[bytes] = []
    for _ in range(2):
        rows: list[bytes] = []
        twin.run(spec, [chunk], emit=lambda out, rows=rows: rows.append(out.tobytes()))
        kept.append(b"".join(rows))
    assert kept[0] == kept[1] and kept[0]


def test_decisions_at_the_very_boundary_of_a_step_find_it_over() -> None:
    """At equal times the replica goes first: a step that began at the decision runs as before, the next one slower."""
    one = specs.engine(step_s=0.01, power_busy_w=700.0, power_idle_w=100.0)
    limit_kw = np.full((1, 100), np.inf)
    limit_kw[0, 3:] = 0.4  # half the power above idle from 0.3 s on
    spec = specs.system(one, cap=1, limit_kw=limit_kw, bin_s=0.1, control_every_s=0.1)
    for stepping in (False, True):
        records, _ = specs.simulate(replace(spec, stepping=stepping), specs.trace([0.0], 5, 60))
        slow_ns = 10_000_000 * 81 // 64  # the cube root of a half, in whole 64ths
        assert records["finish_ns"][0] == 310_000_000 + 29 * 12_656_250
        assert slow_ns == 12_656_250


def test_an_arrival_at_the_very_boundary_of_a_step_waits_for_the_next() -> None:
    """A request that is there at the moment when a step begins joins the step after it, stepped or not."""
    spec = specs.system(specs.engine(step_s=0.01))
    for stepping in (False, True):
        records, _ = specs.simulate(replace(spec, stepping=stepping), specs.trace([0.0, 0.05], 5, [60, 2]))
        assert records["scheduled_ns"].tolist() == [0, 60_000_000]


def test_the_examples_saw_what_matters() -> None:
    """Preemption, caching, failures, caps, scaling and hand-overs really happened in a good share of the examples."""
    if SEEN["runs"] < 200:
        return  # run by itself
    for what, share in {
        "preempted": 0.25, "cached": 0.25, "failed": 0.15, "retried": 0.1, "capped": 0.1, "scaled": 0.15,
        "handed over": 0.1, "refused by rule": 0.05, "waited too long": 0.05, "closed loop": 0.15, "an hour": 0.03,
    }.items():  # fmt: skip
        assert SEEN[what] >= share * SEEN["runs"], (what, SEEN)
    assert REFUSED == 1
