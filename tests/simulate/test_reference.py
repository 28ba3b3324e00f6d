"""The compiled twin against a second one that takes every step by itself, in plain Python (reference.py)."""

from __future__ import annotations

from collections import Counter

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as some

from tests.simulate import specs
from tests.simulate.reference import Reference

SEEN: Counter[str] = Counter()


def compare(on: specs.Switches) -> None:
    """Run both twins on one random system and hold every record equal."""
    spec, chunk = specs.random_system(on)
    records, outcome = specs.simulate(spec, chunk)
    reference = Reference(spec, chunk)
    want = reference.run()
    assert len(records) == len(want) == outcome.n_in
    for name in specs.EXACT:
        expected = np.array([q.record[name] for q in want], np.int64)
        differ = np.flatnonzero(records[name].astype(np.int64) != expected)
        assert not len(differ), (name, want[differ[0]].record, records[differ[0]], on)
    assert outcome.world.replicas["n_preempted"].sum() >= reference.preemptions
    SEEN["runs"] += 1
    SEEN["preempted"] += bool(reference.preemptions)
    SEEN["cached"] += bool((records["cached_tokens"] > 0).any())
    SEEN["failed"] += bool((records["status"] == 2).any())
    SEEN["retried"] += bool((records["n_tries"] > 1).any())


@settings(max_examples=300)
@given(
    on=some.builds(
        specs.Switches,
        seed=some.integers(0, 2**32 - 1),
        n_requests=some.integers(10, 60),
        route=some.sampled_from([0, 1]),
        grid=some.booleans(),
        tiny_kv=some.sampled_from([True, True, False]),
        caching=some.sampled_from([False, True, True]),
        failures=some.sampled_from([False, True, True]),
        disaggregated=some.sampled_from([False, False, True]),
        two_sites=some.booleans(),
        network=some.booleans(),
        two_models=some.booleans(),
    )
)
def test_the_twin_does_what_a_plain_step_by_step_model_does(on: specs.Switches) -> None:
    """Every request's times, tokens found in cache, preemptions, tries and end are those of a naive model of vLLM V1."""
    compare(on)


def test_the_comparison_saw_what_matters() -> None:
    """Preemption, prefix caching, failures and retries really happened in a good share of the compared systems."""
    if SEEN["runs"] < 100:
        return  # run by itself
    for what in ("preempted", "cached", "failed", "retried"):
        assert SEEN[what] > 0.12 * SEEN["runs"], SEEN
