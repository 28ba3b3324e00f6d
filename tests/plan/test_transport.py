"""The flows of a service, given what the sites carry: against a linear programme solved by somebody else."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.optimize import linprog

from baseload.plan import transport
from baseload.plan.transport import FAR, Blocks


def random_blocks(
    seed: int, n_services: int = 3, n_periods: int = 4, n_clients: int = 9, n_sites: int = 5
) -> tuple[Blocks, np.ndarray]:
    """Return blocks with masks, ties, empty clients and sites that carry nothing, and what the sites carry."""
    dice = np.random.default_rng(seed)
    shape = (n_services, n_periods, n_clients, n_sites)
    cost = dice.integers(0, 9, shape).astype(float) if seed % 2 else dice.random(shape) * 9.0
    cost[dice.random(shape) < 0.4] = FAR
    demand = np.where(dice.random(shape[:3]) < 0.15, 0.0, dice.random(shape[:3]) * 10.0)
    carry = np.where(dice.random((*shape[:2], n_sites)) < 0.3, 0.0, dice.random((*shape[:2], n_sites)) * 25.0)
    carry = np.where(dice.random(carry.shape) < 0.2, 1e-6 * carry, carry)
    unserved_cost = 5.0 + dice.random(shape[:3]) * 20.0
    return Blocks(demand=demand, cost=cost, unserved_cost=unserved_cost), carry


def oracle_cost(demand: np.ndarray, cost: np.ndarray, unserved_cost: np.ndarray, carry: np.ndarray) -> float:
    """Return the cheapest cost of one block, by scipy's linear programming."""
    n_clients, n_sites = cost.shape
    wide = np.concatenate([np.where(cost < FAR, cost, 0.0), unserved_cost[:, None]], axis=1)
    upper = np.where(np.concatenate([cost < FAR, np.ones((n_clients, 1), bool)], axis=1), np.inf, 0.0)
    serve = np.kron(np.eye(n_clients), np.ones(n_sites + 1))
    carry_rows = np.kron(np.ones(n_clients), np.eye(n_sites + 1)[:n_sites])
    bounds = [(0.0, None if np.isinf(u) else u) for u in upper.ravel()]
    found = linprog(wide.ravel(), A_ub=carry_rows, b_ub=carry, A_eq=serve, b_eq=demand, bounds=bounds, method="highs")
    return float(found.fun)


@pytest.mark.parametrize("seed", range(12))
def test_flows_are_the_cheapest_and_feasible(seed: int) -> None:
    """No flows cost less, none exceed what is carried or go where they may not, and all demand is accounted for."""
    of, carry = random_blocks(seed)
    found = transport.serve(of, carry)
    np.testing.assert_allclose(found.flow.sum(axis=3) + found.unserved, of.demand, atol=1e-8)
    assert (found.flow.sum(axis=2) <= carry + 1e-8).all()
    assert found.flow.min() >= 0.0 and found.unserved.min() >= 0.0
    assert (found.flow[of.cost >= FAR] == 0.0).all()
    for m in range(of.cost.shape[0]):
        for t in range(of.cost.shape[1]):
            oracle = oracle_cost(of.demand[m, t], of.cost[m, t], of.unserved_cost[m, t], carry[m, t])
            assert found.cost[m, t] == pytest.approx(oracle, rel=1e-9, abs=1e-9)


@pytest.mark.parametrize("seed", range(12))
def test_prices_prove_the_cost_and_hold_for_any_other_carry(seed: int) -> None:
    """The floor that the prices give is met where they were found, and never above the cost anywhere else or at any time."""
    of, carry = random_blocks(seed)
    found = transport.serve(of, carry)
    other = transport.serve(of, np.random.default_rng(seed + 99).permuted(carry, axis=2))
    every = np.arange(of.demand.shape[1])
    for m in range(of.demand.shape[0]):
        constant, per_unserved = transport.floor_of(of, m, every, found.price[m])
        floor = constant - (found.price[m] * carry[m]).sum(axis=1) + per_unserved * found.unserved[m].sum(axis=1)
        np.testing.assert_allclose(floor, found.cost[m], rtol=1e-9, atol=1e-9)
        for price in found.price[m]:  # the prices of one period, used in all
            constant, per_unserved = transport.floor_of(of, m, every, np.broadcast_to(price, found.price[m].shape))
            floor = constant - np.sum(price * (room := room_of(other, of, m)), axis=1)
            floor += per_unserved * other.unserved[m].sum(axis=1)
            assert room.shape == found.price[m].shape
            assert (floor <= other.cost[m] + 1e-9).all()


def room_of(served: transport.Served, of: Blocks, m: int) -> np.ndarray:
    """Return what service `m` uses at each site and period: no more is needed to serve at that cost."""
    assert served.flow.shape[:3] == of.demand.shape
    return np.asarray(served.flow[m].sum(axis=1))


@pytest.mark.parametrize("seed", range(8))
def test_a_shortfall_is_proven_by_its_cut(seed: int) -> None:
    """What the cut's clients need beyond what its sites carry is exactly the shortfall, and they have no other site."""
    of, carry = random_blocks(seed)
    for lost in range(of.n_sites):
        short, clients, sites = transport.shortfalls(of, carry, of.demand, lost)
        proven = (of.demand * clients).sum(axis=2) - (carry * sites).sum(axis=2)
        np.testing.assert_allclose(np.maximum(proven, 0.0), short, atol=1e-8)
        assert not sites[..., lost].any()
        reach = (of.cost < FAR) & clients[..., None]
        reach[..., lost] = False
        assert not (reach.any(axis=2) & ~sites).any()


def test_the_large_size_takes_well_under_a_second() -> None:
    """All 240 blocks of 20 sites and 50 clients are solved in a part of a CPU second."""
    import time

    of, carry = random_blocks(3, 12, 20, 50, 20)
    transport.serve(of, carry)
    begun_s = time.process_time()
    transport.serve(of, carry * 1.1)
    assert time.process_time() - begun_s < 1.0
