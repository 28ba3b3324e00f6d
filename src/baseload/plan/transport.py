"""Who is served from where, once it is known what each site carries: the cheapest flows, with their prices.

Given what the sites carry, the flows of one service in one period are a transport problem of R clients and S sites, with
masks, costs and a price for what stays unserved. Here it is solved exactly, by successive cheapest paths over the sites (a path
moves demand from a full site to another and so on, until a site with room or "unserved" takes it), for all services and
periods at once, with exact prices: the price of a unit of carry at a site is what one more unit there would save. Any such
prices give a lower bound on the cost of serving that is linear in what is carried and holds whatever is carried (`floor_of`);
the same routine with all costs nought and a price of one on the unserved is a largest flow, and its prices name the tightest
cut (`shortfalls`).

Which carry to have is decided in `project.py`. Importing this module loads numba, unless BASELOAD_JIT=0.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from baseload import jit
from baseload.jit import kernel
from baseload.plan.problem import Bools, Floats, Ints, Problem

jit.enable()

FAR = 1e100


@kernel
def cheapest_flows(
    demand: np.ndarray,  # (r,)
    room: np.ndarray,  # (s,) what the sites carry; used up as flows are placed
    cost: np.ndarray,  # (r, s) of a unit; FAR where it may not go
    unserved_cost: np.ndarray,  # (r,)
    flow: np.ndarray,  # (r, s + 1) out: the last column is the unserved
    price: np.ndarray,  # (s + 1,) out: what one more unit of carry would save
    move: np.ndarray,  # (s + 1, s + 1) scratch: cheapest change of cost when a unit placed at i goes to j
    mover: np.ndarray,  # (s + 1, s + 1) scratch: which client that is
    dist: np.ndarray,  # (s + 1,) scratch: cheapest cost of making room at i
    after: np.ndarray,  # (s + 1,) scratch: where the path goes from i
    hops: np.ndarray,  # (s + 1,) scratch: how long that path is
    is_open: np.ndarray,  # (s + 1,) scratch
) -> float:
    """Fill `flow` and `price`; return the cost. Prices are exact: cost = sum of demand times worth, less price times carry."""
    n_clients, n_sites = cost.shape
    off = n_sites
    tiny = 1e-12
    for i in range(n_sites + 1):
        dist[i] = 0.0
        after[i] = -1
        hops[i] = 0
        for j in range(n_sites + 1):
            move[i, j] = FAR
            mover[i, j] = -1
    total_demand, tie = 0.0, 0.0
    for r in range(n_clients):
        tie = max(tie, 1e-12 * unserved_cost[r])
        total_demand += demand[r]
        for i in range(n_sites + 1):
            flow[r, i] = 0.0
    small = tiny * max(1.0, total_demand)
    for i in range(n_sites):
        is_open[i] = 1 if room[i] > small else 0
        dist[i] = 0.0 if is_open[i] else FAR
    is_open[off] = 1
    for i in range(n_sites):
        if is_open[i] == 0:
            room[i] = 0.0
    # dist of a full site without flow is FAR: nobody can be moved away from it.
    for r in range(n_clients):
        left = demand[r]
        while left > small:
            best_cost = unserved_cost[r]
            for i in range(n_sites):
                if cost[r, i] < FAR and dist[i] < FAR:
                    best_cost = min(best_cost, cost[r, i] + dist[i])
            # Of equal costs the shortest path: a longer one may move the client's own flow, and so get nowhere.
            best, best_hops = off, n_sites + 1 if unserved_cost[r] > best_cost + tie else 0
            for i in range(n_sites):
                if cost[r, i] < FAR and dist[i] < FAR and cost[r, i] + dist[i] <= best_cost + tie:
                    if hops[i] < best_hops:
                        best, best_hops = i, hops[i]
            amount = left
            node = best
            while after[node] >= 0:
                amount = min(amount, flow[mover[node, after[node]], node])
                node = after[node]
            if node != off:
                amount = min(amount, room[node])
            stale = False
            carrier, node = r, best
            while True:
                flow[carrier, node] += amount
                to = after[node]
                if to < 0:
                    break
                carrier_next = mover[node, to]
                flow[carrier_next, node] -= amount
                if flow[carrier_next, node] <= small:
                    # what is left is dust: it goes along, so that sums stay whole
                    flow[carrier_next, to] += flow[carrier_next, node]
                    flow[carrier_next, node] = 0.0
                carrier, node = carrier_next, to
            if node != off:
                room[node] -= amount
                if room[node] <= small:
                    room[node] = 0.0
                    is_open[node] = 0
                    stale = True
            left -= amount
            if amount <= 0.0:
                stale = True
            # Moves out of the sites on the path change with their flows; moves out of full sites alone matter.
            node = best
            while node >= 0:
                if is_open[node] == 0:
                    stale = True
                    for j in range(n_sites + 1):
                        move[node, j] = FAR
                        mover[node, j] = -1
                    for q in range(n_clients):
                        if flow[q, node] > small:
                            here = cost[q, node]
                            for j in range(n_sites):
                                if j != node and cost[q, j] < FAR and cost[q, j] - here < move[node, j]:
                                    move[node, j] = cost[q, j] - here
                                    mover[node, j] = q
                            if unserved_cost[q] - here < move[node, off]:
                                move[node, off] = unserved_cost[q] - here
                                mover[node, off] = q
                node = after[node]
            if stale:
                # A client that is off already could only come back: no path leads out of `off`.
                for i in range(n_sites):
                    dist[i] = 0.0 if is_open[i] else FAR
                    after[i] = -1
                    hops[i] = 0
                changed = True
                rounds = 0
                while changed and rounds <= 2 * n_sites:
                    changed = False
                    rounds += 1
                    for i in range(n_sites):
                        if is_open[i] == 0:
                            for j in range(n_sites + 1):
                                if mover[i, j] >= 0 and dist[j] < FAR and hops[j] < n_sites:
                                    d = move[i, j] + dist[j]
                                    shorter = d <= dist[i] + tie and hops[j] + 1 < hops[i]
                                    if d < dist[i] - tie or shorter:
                                        dist[i] = d
                                        after[i] = j
                                        hops[i] = hops[j] + 1
                                        changed = True
        # dust below `small` stays where most of it went
        if left > 0.0:
            top = off
            for i in range(n_sites):
                if flow[r, i] > flow[r, top]:
                    top = i
            flow[r, top] += left
    total = 0.0
    for r in range(n_clients):
        total += flow[r, off] * unserved_cost[r]
        for i in range(n_sites):
            if flow[r, i] > 0.0:
                total += flow[r, i] * cost[r, i]
    # A full site's price is what making room there costs; then each is lowered to what somebody would really pay.
    for i in range(n_sites):
        price[i] = min(dist[i], FAR)
    for i in range(n_sites):
        if is_open[i] == 1:
            price[i] = 0.0
        else:
            need = 0.0
            for r in range(n_clients):
                if cost[r, i] < FAR and demand[r] > 0.0:
                    worth = unserved_cost[r]
                    for j in range(n_sites):
                        if j != i and cost[r, j] < FAR and cost[r, j] + price[j] < worth:
                            worth = cost[r, j] + price[j]
                    if flow[r, i] > 0.0:
                        worth = cost[r, i] + price[i]
                    need = max(need, worth - cost[r, i])
            price[i] = need
    return total


@kernel
def all_flows(
    demand: np.ndarray,  # (m, t, r)
    carry: np.ndarray,  # (m, t, s) used up
    cost: np.ndarray,  # (m, t, r, s)
    unserved_cost: np.ndarray,  # (m, t, r)
    flow: np.ndarray,  # (m, t, r, s + 1) out
    price: np.ndarray,  # (m, t, s + 1) out
    total: np.ndarray,  # (m, t) out
    move: np.ndarray,
    mover: np.ndarray,
    dist: np.ndarray,
    after: np.ndarray,
    hops: np.ndarray,
    is_open: np.ndarray,
) -> None:
    """Solve every (service, period)."""
    for m in range(demand.shape[0]):
        for t in range(demand.shape[1]):
            total[m, t] = cheapest_flows(
                demand[m, t],
                carry[m, t],
                cost[m, t],
                unserved_cost[m, t],
                flow[m, t],
                price[m, t],
                move,
                mover,
                dist,
                after,
                hops,
                is_open,
            )


@dataclass(frozen=True, kw_only=True)
class Blocks:
    """The transport problems of all services and periods, laid out block by block."""

    demand: Floats  # [M,T,R]
    cost: Floats  # [M,T,R,S] FAR where not allowed
    unserved_cost: Floats  # [M,T,R]

    @property
    def n_sites(self) -> int:
        """Return the number of sites."""
        return int(self.cost.shape[3])


@dataclass(frozen=True, kw_only=True)
class Served:
    """The cheapest flows, and what more carry would save."""

    cost: Floats  # [M,T]
    flow: Floats  # [M,T,R,S]
    unserved: Floats  # [M,T,R]
    price: Floats  # [M,T,S] of a unit of carry


def blocks(problem: Problem) -> Blocks:
    """Lay out the flows' part of `problem` block by block."""
    cost = np.where(problem.allowed[:, :, :, None], problem.cost_flow, FAR)
    return Blocks(
        demand=np.ascontiguousarray(problem.demand.transpose(1, 2, 0), dtype=np.float64),
        cost=np.ascontiguousarray(cost.transpose(2, 3, 0, 1), dtype=np.float64),
        unserved_cost=np.ascontiguousarray(problem.cost_unserved.transpose(1, 2, 0), dtype=np.float64),
    )


def serve(of: Blocks, carry: Floats) -> Served:
    """Return the cheapest flows for `carry` [M,T,S] (units of work a second), block by block, exactly."""
    n_services, n_periods, n_clients, n_sites = of.cost.shape
    flow = np.empty((n_services, n_periods, n_clients, n_sites + 1))
    price = np.zeros((n_services, n_periods, n_sites + 1))
    total = np.empty((n_services, n_periods))
    square = (n_sites + 1, n_sites + 1)
    room = np.array(np.maximum(carry, 0.0), dtype=np.float64, order="C")
    all_flows(
        of.demand,
        room,
        of.cost,
        of.unserved_cost,
        flow,
        price,
        total,
        np.empty(square),
        np.empty(square, dtype=np.int64),
        np.empty(n_sites + 1),
        np.empty(n_sites + 1, dtype=np.int64),
        np.empty(n_sites + 1, dtype=np.int64),
        np.empty(n_sites + 1, dtype=np.int64),
    )
    return Served(cost=total, flow=flow[..., :n_sites], unserved=flow[..., n_sites], price=price[..., :n_sites])


def floor_of(of: Blocks, m: int, periods: Ints, price: Floats) -> tuple[Floats, Floats]:
    """Return (constant, per_unserved), one a period: what serving costs at least, whatever is carried.

    For prices >= 0 [n,S], one row for each of `periods`: cost >= constant - sum of price times carry + per_unserved times the
    sum of what is left unserved. A dual solution says nothing of demand or period, so one found in a period serves in others.
    """
    worth = np.minimum((of.cost[m, periods] + price[:, None, :]).min(axis=2), of.unserved_cost[m, periods])
    constant = (worth * of.demand[m, periods]).sum(axis=1)
    return constant, (of.unserved_cost[m, periods] - worth).min(axis=1)


def shortfalls(of: Blocks, carry: Floats, need: Floats, lost: int) -> tuple[Floats, Bools, Bools]:
    """Return what cannot be served when site `lost` is, and the tightest cut: clients [M,T,R] and sites [M,T,S] of it.

    The cut's clients need more than the sites of the cut carry, and no site outside the cut may serve them.
    """
    cost = np.where(of.cost < FAR, 0.0, FAR)
    cost[..., lost] = FAR
    worst = serve(Blocks(demand=need, cost=cost, unserved_cost=np.ones_like(need)), carry)
    sites = worst.price > 0.5
    sites[..., lost] = False
    outside = np.where(sites[:, :, None, :], FAR, cost)
    clients = (outside.min(axis=3) >= FAR) & (need > 0.0)
    return worst.cost, clients, sites
