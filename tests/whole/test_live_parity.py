"""Twin and gateway take the same trace to the same decisions, request by request, on a jumping clock.

The twin is the compiled one. The gateway is the real Door, Board and Steer in front of plain engines (live_world.py):
admission, routing, retries after failures, scaling and power caps are all on. docs/serve-parity.md has the figures.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.simulate import specs
from tests.whole.live_world import LiveWorld

SEEN: Counter[str] = Counter()
SEEDS = range(24)


def system(seed: int, route: int, admit: int) -> tuple[Any, Any]:
    """Return a random system with everything on that a live one has, and a trace."""
    rng = np.random.default_rng([seed, route, admit])
    on = specs.Switches(
        seed=int(rng.integers(0, 2**31)), n_requests=60, route=route, admit=admit, grid=bool(rng.integers(0, 2)),
        tiny_kv=bool(rng.random() < 0.3), caching=bool(rng.integers(0, 2)), failures=bool(rng.random() < 0.7),
        scaling=bool(rng.random() < 0.6), cap=int(rng.integers(0, 4)), two_sites=bool(rng.random() < 0.7),
        network=bool(rng.integers(0, 2)), two_models=bool(rng.random() < 0.3), hard=bool(rng.integers(0, 2)),
    )  # fmt: skip
    spec, chunk = specs.random_system(on)
    return replace(spec, retries=min(spec.retries, 2), scrapes=spec.scrapes or admit in (1, 3)), chunk


def compare(seed: int, route: int, admit: int, folder: Path) -> None:
    """Run both on one system and hold every record and every remembered number equal."""
    spec, chunk = system(seed, route, admit)
    records, outcome = specs.simulate(spec, chunk)
    world = outcome.world
    live = LiveWorld(spec, chunk, world.dice.tolist(), folder)
    want = live.run()
    for name in specs.EXACT:
        expected = np.array([q.record[name] for q in want], np.int64)
        differ = np.flatnonzero(records[name].astype(np.int64) != expected)
        assert not len(differ), (name, seed, route, admit, want[differ[0]].record, records[differ[0]])
    door = live.doors[0]
    assert door.mean_tokens == world.kinds["predicted"].tolist()
    assert door.ticket == world.kinds["ticket"].tolist()
    assert live.spent == world.tenants["spent"].tolist()
    assert live.end_ns == outcome.end_ns
    for engine in live.engines:
        engine.power_off(outcome.end_ns)
    assert [engine.powered_ns for engine in live.engines] == world.replicas["powered_ns"].tolist()
    assert live.steer.state == world.replicas["state"].tolist()
    assert live.steer.lowest_open == world.sites["open"].tolist()
    tries = records["n_tries"]
    SEEN["runs"] += 1
    SEEN["refused"] += bool((records["status"] == 1).any())
    SEEN["retried"] += bool((tries > 1).any())
    SEEN["failed"] += bool((records["status"] == 2).any())
    SEEN["scaled"] += live.n_orders > 0
    SEEN["capped"] += live.n_capped > 0
    SEEN["held to a share"] += live.n_shared > 0
    SEEN["requests"] += len(records)


@pytest.mark.parametrize("admit", range(4))
@pytest.mark.parametrize("route", range(6))
def test_twin_and_gateway_decide_alike_request_by_request(route: int, admit: int, tmp_path: Path) -> None:
    """Every request of every system ends where, when and why it does in the twin; so do lengths, tickets and budgets."""
    for seed in SEEDS:
        compare(seed, route, admit, tmp_path)


def goodput(records: list[dict[str, int]], spec: Any) -> int:
    """Return how many requests were served within both promises, network included."""
    n = 0
    for q in records:
        ttft_slo_s, tpot_slo_s = spec.slo[q["tenant_i"]]
        ttft_s = (q["first_token_ns"] - q["arrival_ns"] + q["rtt_ns"]) * 1e-9
        tpot_s = (q["finish_ns"] - q["first_token_ns"]) * 1e-9 / max(1, q["output_tokens"] - 1)
        n += q["status"] == 0 and ttft_s <= ttft_slo_s and tpot_s <= tpot_slo_s
    return n


def deviation(route: int, seeds: range, folder: Path, **how: Any) -> dict[str, float]:
    """Return the share of requests that end elsewhere than in the twin, of decisions taken otherwise, and goodput."""
    n = elsewhere = otherwise = decided = twin_good = live_good = 0
    for seed in seeds:
        spec, chunk = system(seed, route, 0 if seed % 2 else 3)
        records, outcome = specs.simulate(spec, chunk)
        live = LiveWorld(spec, chunk, outcome.world.dice.tolist(), folder, shadow=True, **how)
        got = [q.record for q in live.run()]
        want = [{name: int(row[name]) for name in specs.EXACT} for row in records]
        n += len(got)
        elsewhere += sum(a["replica_i"] != b["replica_i"] for a, b in zip(got, want, strict=True))
        otherwise, decided = otherwise + live.otherwise, decided + live.n_decided
        twin_good, live_good = twin_good + goodput(want, spec), live_good + goodput(got, spec)
    return {
        "elsewhere": elsewhere / n, "otherwise": otherwise / decided, "goodput": live_good / max(1, twin_good) - 1.0,
    }  # fmt: skip


@pytest.mark.parametrize("workers", [2, 4])
@pytest.mark.parametrize("route", range(6))
def test_several_workers_stay_near_the_twin(route: int, workers: int, tmp_path: Path) -> None:
    """Workers that share the board send few requests elsewhere than the twin, and serve as many in time."""
    seen = deviation(route, range(1000, 1012), tmp_path, workers=workers)
    assert seen["elsewhere"] < (0.4 if route == 0 else 0.08), seen  # taking turns depends on who came before
    assert seen["otherwise"] < (0.4 if route == 0 else 0.1), seen
    assert abs(seen["goodput"]) < (0.1 if route == 0 else 0.05), seen


@pytest.mark.parametrize("route", range(6))
def test_what_the_twin_does_not_have_changes_little(route: int, tmp_path: Path) -> None:
    """Never going back to where it failed, ejection and the retry budget move few requests in fleets that fail a lot."""
    seen = deviation(route, range(1000, 1012), tmp_path, tried=True, eject_after=5, retry_ratio=0.1)
    assert seen["elsewhere"] < 0.08, seen
    assert abs(seen["goodput"]) < 0.05, seen


def test_the_comparison_saw_what_matters() -> None:
    """Refusals, retries, failures, scaling orders and power caps happened in a good share of the compared systems."""
    if SEEN["runs"] < 100:
        return  # run by itself
    for what in ("refused", "retried", "failed", "scaled", "capped", "held to a share"):
        assert SEEN[what] > 0.1 * SEEN["runs"], SEEN
