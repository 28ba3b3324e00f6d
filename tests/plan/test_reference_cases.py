"""Published cases of sizing and of cost: Melange's example, and sheets that say what a gigawatt and a node cost."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from baseload.formulas.contracts import accelerators_per_mw
from baseload.plan.check_answer import check
from baseload.plan.problem import SLACKS, Problem
from baseload.plan.solve import solve

# github.com/tyler-griggs/melange-release, example.json and README: dollars an hour, requests a second by bucket of sizes
_SHARE = np.array([0.2, 0.1, 0.5, 0.2])
_RATE = {"A10G": np.array([2.0, 1.0, 5.0, 2.0]), "A100": np.array([20.0, 20.0, 40.0, 20.0])}
_DOLLARS = {"A10G": 1.01, "A100": 3.67}
_REQUESTS_S = 30.0


def melange() -> Problem:
    """Return the example as a planning problem: one site, one period, a bucket a service, whole instances."""
    kinds = tuple(_RATE)
    n_a, n_m = len(kinds), len(_SHARE)
    one = np.ones((1, n_a, 1))
    infinite = np.array([np.inf])
    return Problem(
        name="Melange's example",
        sites=("cloud",),
        kinds=kinds,
        services=tuple(f"bucket {i}" for i in range(n_m)),
        clients=("all",),
        periods=("an hour",),
        phases=(),
        rentals=(),
        groups=(),
        limits=(),
        demand=(_REQUESTS_S * _SHARE)[None, :, None],
        allowed=np.ones((1, 1, n_m), bool),
        may_place=np.ones((1, n_a), bool),
        rate=np.array([_RATE[kind] for kind in kinds]),
        rack_mw=np.zeros((1, n_a)),
        rack_m2=np.zeros(n_a),
        existing=np.zeros((1, n_a, 1)),
        lead=np.zeros(n_a, np.int64),
        life=np.ones(n_a, np.int64),
        whole=np.ones((1, n_a), bool),
        power_mw=np.zeros((1, 1)),
        floor_m2=np.full((1, 1), np.inf),
        phase_site=np.zeros(0, np.int64),
        phase_mw=np.zeros(0),
        phase_delay=np.zeros(0, np.int64),
        phase_after=np.zeros(0, np.int64),
        begin_from=np.zeros(0, np.int64),
        begin_by=np.zeros(0, np.int64),
        ratchet=np.zeros(1),
        minimum_bill=np.zeros(1),
        supply=np.full((n_a, 1), 30.0),
        shared_use=np.zeros((0, n_a)),
        shared=np.zeros((0, 1)),
        term=np.zeros(0, np.int64),
        useful=np.zeros(0),
        on_site=np.zeros(0, bool),
        sign_max=np.zeros((1, n_a, 0)),
        group_of=np.zeros((0, 1, n_a), bool),
        share_max=np.zeros(0),
        survive_ratio=np.zeros(n_m),
        host_min=None,
        cost_begin=np.zeros((0, 1)),
        cost_live=np.zeros((0, 1)),
        cost_buy=one * np.array([_DOLLARS[kind] for kind in kinds])[None, :, None],
        cost_owned=0.0 * one,
        cost_sign=np.zeros((1, n_a, 0, 1)),
        cost_put=np.zeros((1, n_a, n_m, 1)),
        cost_flow=np.zeros((1, 1, n_m, 1)),
        cost_unserved=np.full((1, n_m, 1), 100.0),
        cost_billed=np.zeros((1, 1)),
        cost_host=np.zeros((1, n_m, 1)),
        spend_begin=np.zeros((0, 1)),
        spend_buy=0.0 * one,
        capex_budget=infinite,
        carbon_owned=0.0 * one,
        carbon_put=np.zeros((1, n_a, n_m, 1)),
        carbon_budget=infinite,
        water_owned=0.0 * one,
        water_put=np.zeros((1, n_a, n_m, 1)),
        water_budget=infinite,
        slack_price={
            name: np.asarray(100.0) if name[0] == "s" or name == "over_capex" else np.asarray(1.0) for name in SLACKS
        },
    )


def whole_buckets(pieces: int) -> float:
    """Return Melange's own least cost, each bucket in equal pieces that one kind serves whole, by every choice."""
    kinds = list(_RATE)
    loads = {(0.0, 0.0)}
    for bucket, share in enumerate(_SHARE):
        need = _REQUESTS_S * share / pieces
        choices = [
            (n * need / _RATE[kinds[0]][bucket], (pieces - n) * need / _RATE[kinds[1]][bucket])
            for n in range(pieces + 1)
        ]
        loads = {(a + b, c + d) for a, c in loads for b, d in choices}
    ceil = lambda load: int(np.ceil(load - 1e-9))  # noqa: E731
    return min(ceil(a) * _DOLLARS[kinds[0]] + ceil(b) * _DOLLARS[kinds[1]] for a, b in loads)


def test_melange_publishes_six_seventy() -> None:
    """With each bucket served whole by one kind, three A10G and an A100 cost $6.70 an hour, as its README says."""
    assert whole_buckets(1) == pytest.approx(3 * 1.01 + 3.67) == pytest.approx(6.70)


def test_a_finer_split_of_melanges_buckets() -> None:
    """Where buckets may be split, one A10G and one A100 do: $4.68, 30 % under the published figure; thirds suffice for it."""
    answer = solve(melange(), gap=1e-9)
    assert check(melange(), answer) == []
    assert answer.meets and answer.unserved.max() <= 1e-6
    assert answer.cost == pytest.approx(1.01 + 3.67) == pytest.approx(whole_buckets(3))
    assert [whole_buckets(pieces) for pieces in (2, 4)] == pytest.approx([5.69, 5.69])


def test_one_kind_alone_costs_more_than_the_mix() -> None:
    """Twelve A10G alone, or two A100 alone: dearer than the mix."""
    for kind, cost in enumerate((12 * 1.01, 2 * 3.67)):
        place = np.arange(2)[None, :] == kind
        assert solve(replace(melange(), may_place=place), gap=1e-9).cost == pytest.approx(cost)


def test_a_gigawatt_of_nvl72_racks_and_its_price() -> None:
    """Bernstein: 35 G$ a gigawatt at 5.9 M$ a rack are 5,932 racks, 168.6 kW of grid each; InferenceX's 151 kW is the IT."""
    racks = 35e9 / 5.9e6
    assert round(racks) == 5932 and 1e6 / racks == pytest.approx(168.6, abs=0.05)
    assert 151.0 < 168.6 and accelerators_per_mw(168.6 / 72) == 427


def test_the_cost_sheet_of_two_thousand_nodes() -> None:
    """A public sheet of 2,048 H100 nodes: node, operation, switches and InfiniBand are 806.87 M$, 49,247.5 $ a GPU."""
    total = 2048 * (310e3 + 50e3 + 20.48e3) + 768 * 36e3
    assert total == pytest.approx(806.87e6, rel=1e-4) and total / (2048 * 8) == pytest.approx(49247.5, abs=1.0)
