"""Steer: the control loop's decisions, as pure code: how many replicas run, and what a site does at its power limit.

It does what the twin's `scale_pool` and `cap_site` do (simulate/control.py), with the same rules in the same order: first
every pool, then every site. What it decides stands in `state`, `gate`, `ratio` and `lowest_open`, and comes back as
orders; carrying them out is the provisioner's (`reconcile.py`), telling the workers is the owner's (`write` to the board).
It hears of replicas by `ready`, `known_up`, `failed`, `known_down`, `repaired`; metering and probing are others'.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from baseload.policies.cap import LOWEST_PRIORITY
from baseload.policies.view import Tunables
from baseload.serve.board import GATE_POWER, GATE_UNKNOWN, Board
from baseload.serve.rules import Rules, chosen
from baseload.serve.tables import ReplicaRow, Tables

OFF, STARTING, UP, DRAINING = range(4)  # as in the twin
STATES = ("off", "starting", "up", "draining")
START, DRAIN, RESUME, STOP = range(4)
ORDERS = ("start", "drain", "resume", "stop")
LEAST_RATIO = 0.001
ROUNDING_S = 1e-9  # of a clock that counts whole nanoseconds


def gate_of(lowest_open: int) -> int:
    """Return what stands at a replica's gate, of a site that takes priorities up to `lowest_open`.

    >>> gate_of(7), gate_of(-1) == GATE_POWER
    (7, True)
    """
    return lowest_open if lowest_open >= 0 else GATE_POWER


def rows_of(tables: Tables) -> list[list[int]]:
    """Return the rows of each pool's replicas by number; those that left are left out."""
    rows: list[list[int]] = [[] for _ in tables.pools]
    for r, row in enumerate(tables.replicas):
        if not row.gone:
            rows[row.pool_i].append(r)
    return [sorted(found, key=lambda r: tables.replicas[r].number) for found in rows]


class Order(NamedTuple):
    """What is to be done with one replica."""

    kind: int  # START, DRAIN, RESUME, STOP
    replica: int


class SitePower(NamedTuple):
    """What a site's meter says (or the model, where there is none)."""

    power_kw: float  # IT power now
    idle_kw: float  # the part that does not follow load: idle replicas, parked accelerators, training
    limit_kw: float  # inf: none


class Steer:
    """What should run, where requests may go by gate, and each site's power cap."""

    def __init__(self, tables: Tables, *, rules: Rules | None = None, peak_w: Sequence[float] | None = None) -> None:
        """`peak_w` (deployment,): the most that a replica draws in any step; absent, what it draws at half load."""
        self.tables = tables
        self.rules = rules or chosen(tables.policy)
        policy = tables.policy
        self.tunables = Tunables(
            policy.load_guard, policy.admit_factor, policy.target_utilisation, policy.scale_down_s
        )  # fmt: skip
        n = len(tables.replicas)
        self.site_of = [row.site_i for row in tables.replicas]
        self.rows = rows_of(tables)
        self.state = [UP if row.on_at_start else OFF for row in tables.replicas]
        self.down = [0] * n  # causes
        self.gate = [LOWEST_PRIORITY if row.on_at_start else GATE_UNKNOWN for row in tables.replicas]
        self.epoch = [0] * n
        self.below_since_s: list[float | None] = [None] * len(tables.pools)
        self.asked = [0] * len(tables.pools)  # as last seen
        self.lowest_open = [LOWEST_PRIORITY] * len(tables.sites)
        self.ratio = [1.0] * len(tables.sites)
        self.capped = [False] * len(tables.sites)
        self.peak_w = list(peak_w) if peak_w is not None else [row.peak_w or row.busy_w for row in tables.deployments]
        self.cap_w = [float("inf")] * n  # most power above idle that each may draw in any step

    def reload(self, tables: Tables, *, rules: Rules | None = None) -> None:
        """Take new tables that follow the old ones (`succession.py`): rows stay, and new ones start.

        Those that left stay open until `leave`, when the workers have the new tables too. With a fixed number of replicas,
        those that should run from the start do; other rules see the new bounds at their next turn.
        """
        before, policy = self.tables.replicas, tables.policy
        self.tables, self.rules = tables, rules or chosen(policy)
        self.tunables = Tunables(policy.load_guard, policy.admit_factor, policy.target_utilisation, policy.scale_down_s)
        more = len(tables.replicas) - len(before)
        assert more >= 0, "rows of replicas are never taken away"
        self.site_of = [row.site_i for row in tables.replicas]
        self.rows = rows_of(tables)
        for column, empty in ((self.state, OFF), (self.down, 0), (self.gate, GATE_UNKNOWN), (self.epoch, 0)):
            column += [empty] * more
        self.cap_w += [float("inf")] * more
        self.below_since_s += [None] * (len(tables.pools) - len(self.below_since_s))
        self.asked += [0] * (len(tables.pools) - len(self.asked))
        more_sites = len(tables.sites) - len(self.ratio)
        self.lowest_open += [LOWEST_PRIORITY] * more_sites
        self.ratio += [1.0] * more_sites
        self.capped += [False] * more_sites
        self.peak_w = [
            row.peak_w or (self.peak_w[i] if i < len(self.peak_w) else row.busy_w)
            for i, row in enumerate(tables.deployments)
        ]
        for r, row in enumerate(tables.replicas):
            self._follow(r, row, before[r] if r < len(before) else None)

    def leave(self) -> list[int]:
        """Shut the replicas that left; return them. Draining and ending them is `reconcile.py`'s."""
        left = [r for r, row in enumerate(self.tables.replicas) if row.gone]
        for r in left:
            self.state[r], self.gate[r], self.down[r] = OFF, GATE_UNKNOWN, 0
        return left

    def _follow(self, r: int, row: ReplicaRow, was: ReplicaRow | None) -> None:
        """Take up what one row has become."""
        if row.gone:
            return
        if row.on_at_start and (was is None or not was.on_at_start) and self.state[r] == OFF:
            self.state[r] = STARTING
        elif was is not None and was.on_at_start and not row.on_at_start and self.tables.policy.scale == "fixed":
            self.state[r], self.gate[r] = OFF, GATE_UNKNOWN

    # ---- what is heard ---------------------------------------------------------------------------------------------

    def starting(self, r: int) -> None:
        """Replica `r` is being started, by an order of ours or again after a failure; it takes nothing until `known_up`."""
        self.state[r] = STARTING

    def ready(self, r: int) -> None:
        """Replica `r` has finished its start."""
        if self.state[r] == STARTING and not self.down[r]:
            self.state[r] = UP

    def known_up(self, r: int) -> None:
        """The gateway knows that `r` is ready: it may be sent what its site takes, and old verdicts are forgotten."""
        if self.state[r] == UP and not self.down[r]:
            self.gate[r] = gate_of(self.lowest_open[self.site_of[r]])
            self.epoch[r] += 1

    def failed(self, r: int) -> None:
        """One more cause keeps `r` down."""
        self.down[r] += 1

    def known_down(self, r: int) -> None:
        """The gateway knows that `r` is not there."""
        if self.down[r] or self.state[r] != UP:
            self.gate[r] = GATE_UNKNOWN

    def repaired(self, r: int) -> bool:
        """One cause less; say whether `r` is to be started anew."""
        assert self.down[r] > 0, r
        self.down[r] -= 1
        if self.down[r] == 0 and self.state[r] != OFF:
            self.starting(r)
            return True
        return False

    # ---- what is decided -------------------------------------------------------------------------------------------

    def scale(
        self, now_s: float, *, outstanding: Sequence[int], asked: Sequence[int], busy: Sequence[bool]
    ) -> list[Order]:
        """Decide how many replicas of every pool run; return the orders, in order.

        `outstanding` (replica,): sent and not seen to end, of all workers; `asked` (pool,): requests that ever found
        nobody there, of all workers; `busy` (replica,): the engine itself says that it holds requests.
        """
        orders: list[Order] = []
        if self.tables.policy.scale != "fixed":
            for p in range(len(self.tables.pools)):
                new = max(0, asked[p] - self.asked[p])  # a worker counts from 0 again after a reload
                self.asked[p] = asked[p]
                self._scale(p, now_s, new, outstanding, busy, orders)
        return orders

    def cap(self, power: Sequence[SitePower]) -> None:
        """Decide every site's power cap; `power` (site,) as metered after the orders of `scale` were given."""
        if self.tables.policy.cap != "none":
            for site, seen in enumerate(power):
                self._cap(site, seen)

    def _scale(
        self, p: int, now_s: float, asked: int, outstanding: Sequence[int], busy: Sequence[bool], orders: list[Order]
    ) -> None:
        pool = self.tables.pools[p]
        rows = self.rows[p]
        load = asked + sum(int(outstanding[r]) for r in rows)
        n_on = sum(1 for r in rows if self.state[r] in (UP, STARTING))
        slots = self.tables.deployments[pool.deployment_i].slots
        wanted = int(self.rules.scale(n_on, load, slots, pool.n_min, pool.n_max, self.tunables))
        wanted = min(max(wanted, pool.n_min), pool.n_max)
        below_since_s = self.below_since_s[p]
        if wanted >= n_on:
            below_since_s = None
        elif below_since_s is None:
            below_since_s = now_s
        self.below_since_s[p] = below_since_s
        waited_s = now_s - (0.0 if below_since_s is None else below_since_s)
        let_go = below_since_s is not None and waited_s >= self.tunables.scale_down_s - ROUNDING_S
        for r in rows:
            if n_on < wanted and not self.down[r] and self.state[r] in (DRAINING, OFF):
                if self.state[r] == DRAINING:
                    self.state[r] = UP
                    self.gate[r] = gate_of(self.lowest_open[pool.site_i])
                    orders.append(Order(RESUME, r))
                else:
                    self.state[r] = STARTING
                    orders.append(Order(START, r))
                n_on += 1
        for r in reversed(rows):
            if n_on > wanted and let_go and self.state[r] == UP:
                self.state[r] = DRAINING
                self.gate[r] = GATE_UNKNOWN
                n_on -= 1
                orders.append(Order(DRAIN, r))
            elif self.state[r] == DRAINING and not outstanding[r] and not busy[r]:
                self.state[r] = OFF
                orders.append(Order(STOP, r))

    def _cap(self, site: int, seen: SitePower) -> None:
        if seen.limit_kw == float("inf") and not self.capped[site]:
            return
        ratio, lowest = self.rules.cap(seen.power_kw, seen.idle_kw, seen.limit_kw, self.lowest_open[site])
        ratio, lowest = min(1.0, max(LEAST_RATIO, float(ratio))), min(LOWEST_PRIORITY, max(-1, int(lowest)))
        self.capped[site] = ratio < 1.0 or lowest < LOWEST_PRIORITY
        if lowest != self.lowest_open[site]:
            for r, where in enumerate(self.site_of):
                if where == site and self.state[r] == UP and not self.down[r]:
                    self.gate[r] = gate_of(lowest)
        self.ratio[site], self.lowest_open[site] = ratio, lowest

    def share_out(self, site: int, *, limit_kw: float, base_kw: float) -> None:
        """Give each replica of a site that may run its share of the limit, by what it draws at most (`cap_w`).

        For the cap rules of policies.CAPS_EACH_REPLICA, after `cap`. `limit_kw`: the tightest until a second after the
        next decision; `base_kw`: the most that training and parked accelerators draw until then, all counted as parked.
        """
        tables, idle_w, most_w = self.tables, 0.0, 0.0
        here = [(r, row.deployment_i) for r, row in enumerate(tables.replicas) if row.site_i == site]
        for r, i in here:
            if self.state[r] != OFF:
                idle_w += (1.0 - tables.sites[site].parked_ratio) * tables.deployments[i].idle_w
                most_w += self.peak_w[i] - tables.deployments[i].idle_w
        share = max(0.0, (limit_kw - base_kw) * 1000.0 - idle_w) / most_w if most_w > 0.0 else 1.0
        for r, i in here:
            self.cap_w[r] = share * (self.peak_w[i] - tables.deployments[i].idle_w) if share < 1.0 else float("inf")

    def write(self, board: Board) -> None:
        """Tell the workers: gates, starts, caps. The owner calls `board.bump()` when its burst is over."""
        for r in range(len(self.gate)):
            board.gate[r] = self.gate[r]
            board.epoch[r] = self.epoch[r]
        for site in range(len(self.ratio)):
            board.dynamic_ratio[site] = self.ratio[site]
            board.lowest_open[site] = float(self.lowest_open[site])

    def check(self) -> None:
        """Assert what must hold."""
        for r, gate in enumerate(self.gate):
            assert GATE_POWER <= gate <= LOWEST_PRIORITY
            assert gate < 0 or self.state[r] in (UP, STARTING), (r, gate, STATES[self.state[r]])
            assert self.down[r] >= 0
        for pool, rows in zip(self.tables.pools, self.rows, strict=True):
            on = sum(1 for r in rows if self.state[r] in (UP, STARTING))
            assert on <= pool.n_max
