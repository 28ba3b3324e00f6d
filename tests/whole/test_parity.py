"""Twin and gateway decide alike: the plain rules, asked by a small gateway on lists, choose what the compiled twin chose.

The gateway here knows only what reaches a gateway: what it sent, the ends that came back over the network, and what it
read from the engines at each scrape. It replays the twin's own trace and must send every request where the twin did.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from baseload.policies.view import NO_REPLICA, Ask, Columns, Tunables
from baseload.records import REFUSED, SERVED
from baseload.simulate import run as twin
from baseload.simulate.world import PoolSpec
from tests.policies import plain
from tests.simulate import specs

RULES = ("round_robin", "least_outstanding", "least_wait", "prefix_affine", "cheapest", "greenest")
ADMISSION = ("always", "within_slo", "within_budget", "within_slo_and_budget")


class Gateway:
    """A gateway of plain lists; `spec` is what it was configured with."""

    def __init__(self, spec: Any, dice: list[float]) -> None:
        self.spec = spec
        self.pool_of = [p for p, pool in enumerate(spec.pools) for _ in range(pool.n_max)]
        self.site_of = [spec.pools[p].site for p in self.pool_of]
        engines = [spec.engines[spec.pools[p].deployment] for p in self.pool_of]
        n = len(engines)
        self.outstanding, self.queued, self.waiting = [0] * n, [0.0] * n, [0] * n
        self.speed = [e.prefill_tokens_per_s for e in engines]
        self.step_s = [e.decode_s_per_token for e in engines]
        self.slots = [e.max_seqs for e in engines]
        self.cost = [e.cost_per_mtok for e in engines]
        self.predicted = [spec.predicted_output_tokens] * len(spec.priority)
        self.spent, self.reserved = [0.0] * len(spec.priority), [0.0] * len(spec.priority)
        self.tickets = [0] * len(spec.priority)
        self.dice = dice
        self.asked = 0

    def decide(self, tenant: int, region: int, tokens: int, hashes: list[int]) -> tuple[int, int, float, float]:
        """Return the replica or NO_REPLICA, the reason of a refusal, the work promised and the price reserved."""
        spec = self.spec
        self.asked += 1
        prices = spec.prices[tenant].tolist()
        price = tokens * prices[0] + self.predicted[tenant] * prices[2]
        left = float(spec.budget[tenant]) - self.spent[tenant] - self.reserved[tenant]
        blocks = min(len(hashes), 4)
        covered = min(tokens, blocks * max(engine.chunk_tokens for engine in spec.engines))
        ask = Ask(
            tokens, self.predicted[tenant], hashes[blocks - 1] if hashes else 0, covered, *spec.slo[tenant].tolist(),
            int(spec.priority[tenant]), left, price, self.tickets[tenant], self.dice[self.asked % len(self.dice)],
        )  # fmt: skip
        self.tickets[tenant] += 1
        n = len(self.outstanding)
        rtt_s = [float(spec.region_rtt_s[region]) + 2.0 * float(spec.one_way_s[s]) for s in self.site_of]
        columns = Columns(
            self.outstanding, self.queued, self.speed, self.step_s, self.slots, rtt_s, [0] * n, self.waiting, [1.0] * n,
            self.cost, [0.0] * n,
        )  # fmt: skip
        allowed = [int(spec.may[tenant, 0, p]) for p in self.pool_of]
        tunables = Tunables(*spec.tunables)
        chosen = getattr(plain.route, RULES[spec.route])(ask, columns, allowed, tunables)
        if chosen == NO_REPLICA:
            return NO_REPLICA, 1, 0.0, 0.0
        reason = getattr(plain.admit, ADMISSION[spec.admit])(ask, columns, chosen, tunables)
        if reason:
            return NO_REPLICA, reason, 0.0, 0.0
        work = tokens + self.predicted[tenant]
        self.outstanding[chosen] += 1
        self.queued[chosen] += work
        self.reserved[tenant] += price
        return chosen, 0, work, price

    def hear(self, row: Any, work: float, price: float) -> None:
        """Learn that a request ended."""
        replica, tenant = int(row["replica_i"]), int(row["tenant_i"])
        self.outstanding[replica] -= 1
        self.queued[replica] -= work
        if self.outstanding[replica] == 0:
            self.queued[replica] = 0.0
        self.predicted[tenant] += 0.05 * (int(row["output_tokens"]) - self.predicted[tenant])
        prices = self.spec.prices[tenant].tolist()
        fresh, cached = int(row["input_tokens"] - row["cached_tokens"]), int(row["cached_tokens"])
        self.spent[tenant] += fresh * prices[0] + cached * prices[1] + int(row["output_tokens"]) * prices[2]
        self.reserved[tenant] -= price


def system(route: int, admit: int) -> Any:
    """Return two sites of different engines, near and far, and a trace of two tenants with shared prefixes."""
    rng = np.random.default_rng(10 * route + admit)
    n = 1500
    fast = specs.engine(
        step_s=0.0051, max_seqs=6, decode_s_per_token=0.005, prefill_tokens_per_s=9000.0, cost_per_mtok=2.0
    )
    slow = specs.engine(
        step_s=0.0123, max_seqs=9, decode_s_per_token=0.012, prefill_tokens_per_s=4000.0, cost_per_mtok=1.0
    )
    pools = (
        PoolSpec(deployment=0, site=0, n_min=3, n_max=3),
        PoolSpec(deployment=1, site=1, n_min=4, n_max=4),
        PoolSpec(deployment=1, site=0, n_min=1, n_max=1),
    )
    may = np.array([[[1, 1, 1]], [[1, 0, 1]]], np.uint8)
    spec = specs.system(
        (fast, slow), pools, n_tenants=2, may=may, route=route, admit=admit, one_way_s=np.array([0.0013, 0.0171]),
        region_rtt_s=np.array([0.004, 0.031]), slo=np.array([[0.08, 0.02], [0.6, 0.006]]), scrapes=True,
        observe_every_s=0.25, prices=np.array([[1.0, 0.1, 2.0], [1.0, 0.1, 2.0]]), budget=np.array([np.inf, 30_000.0]),
        predicted_output_tokens=40.0, seed=3,
    )  # fmt: skip
    arrival_s = np.cumsum(rng.exponential(1.0 / 90.0, n))
    chunk = specs.trace(
        arrival_s, rng.integers(1, 60, n), rng.integers(1, 60, n), tenant_i=rng.integers(0, 2, n),
        region_i=rng.integers(0, 2, n), hashes=[[int(k), int(k) + 1] for k in rng.integers(1, 40, n)],
    )  # fmt: skip
    return spec, chunk


@pytest.mark.parametrize("admit", [0, 3])
@pytest.mark.parametrize("route", range(6))
def test_a_gateway_of_plain_lists_sends_every_request_where_the_twin_did(route: int, admit: int) -> None:
    """Same trace, same knowledge, same rule: the same replica for every request, and the same refusals."""
    spec, chunk = system(route, admit)
    kept: list[Any] = []
    outcome = twin.run(spec, [chunk], emit=lambda rows: kept.append(rows.copy()))
    ended = np.concatenate(kept)  # in order of their end
    assert not outcome.world.replicas["n_preempted"].any()
    rows = {int(row["request_id"]): row for row in ended}
    gateway = Gateway(spec, outcome.world.dice.tolist())
    one_way_ns = [round(s * 1e9) for s in spec.one_way_s.tolist()]
    notices = [[row for row in ended if row["site_i"] == site] for site in range(2)]
    promised: dict[int, tuple[float, float]] = {}
    observe_ns = round(spec.observe_every_s * 1e9)
    next_scrape = observe_ns
    door = {i: int(row["arrival_ns"]) + one_way_ns[row["site_i"]] for i, row in rows.items() if row["replica_i"] >= 0}
    refused = 0

    def hear_until(at: int) -> None:
        for site in range(2):
            while notices[site] and notices[site][0]["finish_ns"] + one_way_ns[site] <= at:
                row = notices[site].pop(0)
                gateway.hear(row, *promised.pop(int(row["request_id"])))

    for i in range(len(chunk.arrival_ns)):
        now = int(chunk.arrival_ns[i])
        while next_scrape <= now:
            at = next_scrape
            hear_until(at)
            gateway.waiting = [0] * len(gateway.waiting)
            for k, ready in door.items():
                if ready <= at < rows[k]["scheduled_ns"]:
                    gateway.waiting[rows[k]["replica_i"]] += 1
            next_scrape += observe_ns
        hear_until(now)
        lo, hi = chunk.hash_offsets[i], chunk.hash_offsets[i + 1]
        chosen, reason, work, price = gateway.decide(
            int(chunk.tenant_i[i]), int(chunk.region_i[i]), int(chunk.input_tokens[i]), chunk.hash_ids[lo:hi].tolist()
        )
        assert (chosen, reason) == (int(rows[i]["replica_i"]), int(rows[i]["reason"])), i
        assert rows[i]["status"] == (REFUSED if reason else SERVED)
        promised[i] = (work, price)
        refused += reason > 0
    assert len(set(ended["replica_i"])) > 3
    assert (refused > 50) == (admit == 3)
