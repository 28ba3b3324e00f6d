"""A live system on a jumping clock: plain engines, and in front of them the real Door, Board and Steer of `serve/`.

The engines and the line of time are those of the plain second twin (tests/simulate/reference.py), here with scaling, power
caps and scrapes. Whatever is decided is asked of `serve/`; what the gateway hears, and when, is written out in `hear`,
`send` and `outage`. Several workers share the board as processes of one host do.
"""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

from baseload import policies
from baseload.policies.cap import MIN_DYNAMIC_RATIO
from baseload.policies.retry import may_try_again
from baseload.serve import door as d
from baseload.serve import steer as s
from baseload.serve import tables as t
from baseload.serve.board import Board
from baseload.serve.rules import chosen
from tests.simulate.reference import FAILED, LOST, REFUSED, RETRIES, TICKS_PER_NS, Reference, Replica, Request

SLOW_ONE = 64
KEY_BLOCKS = 4
NAMES = {kind: {number: name for name, number in rules.items()} for kind, rules in policies.KINDS.items()}
NEVER_EJECT = 1 << 30


def tables_of(spec: Any, **limits: Any) -> t.Tables:
    """Return the tables of a gateway in front of a described system; ejection and the retry budget are off unless said."""
    limit_kw: dict[str, Any] = {"eject_after": NEVER_EJECT, "retry_ratio": 1e9, **limits}
    engines = range(len(spec.engines))
    rooms = [e.blocks * e.block_tokens - 1 for e in spec.engines]
    models = []
    for m in range(spec.may.shape[1]):
        most = min(min(spec.engines[i].max_context, rooms[i]) for i in engines if spec.engines[i].model_i == m)
        models.append(t.ModelRow(name=f"m{m}", max_context_tokens=most))
    pools, replicas = [], []
    for p, pool in enumerate(spec.pools):
        pools.append(
            t.PoolRow(deployment_i=pool.deployment, site_i=pool.site, n_min=pool.n_min, n_max=pool.n_max)
        )  # fmt: skip
        replicas += [
            t.ReplicaRow(deployment_i=pool.deployment, site_i=pool.site, pool_i=p, number=k, on_at_start=k < pool.n_min)
            for k in range(pool.n_max)
        ]
    return t.Tables(
        version=1, fleet="toy", fleet_digest="", currency="EUR", regions=[f"r{i}" for i in range(len(spec.region_rtt_s))],
        tenants=[
            t.TenantRow(
                name=f"t{i}", ttft_slo_s=float(spec.slo[i, 0]), tpot_slo_s=float(spec.slo[i, 1]),
                priority=int(spec.priority[i]), input_pico=round(spec.prices[i, 0] * 1e12),
                cached_pico=round(spec.prices[i, 1] * 1e12), output_pico=round(spec.prices[i, 2] * 1e12),
                budget_per_month_nano=None,
            )
            for i in range(len(spec.priority))
        ],
        models=models,
        sites=[
            t.SiteRow(
                name=f"s{i}", jurisdiction="DE", operator_jurisdiction="DE", one_way_s=float(spec.one_way_s[i]), pue=1.2,
                carbon_g_per_kwh=300.0, price_per_kwh=0.1, limit_kw=None, idle_kw=0.0,
                parked_ratio=0.0 if spec.parked_ratio is None else float(spec.parked_ratio[i]),
            )
            for i in range(len(spec.one_way_s))
        ],
        deployments=[
            t.DeploymentRow(
                name=f"d{i}", model_i=e.model_i, kind="emulated", accelerator="toy", slots=e.max_seqs,
                prefill_tokens_per_s=e.prefill_tokens_per_s, decode_s_per_token=e.decode_s_per_token,
                idle_w=e.power_idle_w, busy_w=e.power_idle_w, j_per_input_token=0.0, j_per_output_token=0.0,
                idle_cost_per_s=0.0, cost_per_input_token=0.0, cost_per_output_token=0.0,
            )
            for i, e in enumerate(spec.engines)
        ],
        pools=pools, replicas=replicas, may=spec.may.tolist(), region_rtt_s=[float(v) for v in spec.region_rtt_s],
        policy=t.PolicyRow(
            route=NAMES["route"][spec.route], admit=NAMES["admit"][spec.admit], scale=NAMES["scale"][spec.scale],
            cap=NAMES["cap"][spec.cap], load_guard=spec.tunables[0], admit_factor=spec.tunables[1],
            target_utilisation=spec.tunables[2], scale_down_s=spec.tunables[3], observe_every_s=spec.observe_every_s,
            control_every_s=spec.control_every_s, detect_s=spec.detect_s, retries=spec.retries, max_wait_s=0.0,
        ),
        limits=t.LimitRow(**limit_kw), predicted_output_tokens=spec.predicted_output_tokens,
    )  # fmt: skip


class Engine(Replica):
    """One engine that can be off, start, drain, and run slower under a power cap."""

    def __init__(self, number: int, spec: Any, pool: Any, on: bool) -> None:
        self.state = s.UP if on else s.OFF
        self.slow = SLOW_ONE
        self.ratio = 1.0  # of the power above idle, as the site's cap rule says
        self.cap_w = math.inf  # its own share of a hard limit
        self.t = 0  # last boundary, whole ns
        self.run_tokens = 0
        self.powered_since = 0 if on else -1
        self.powered_ns = 0
        super().__init__(number, spec, pool)
        self.number = number

    @property
    def up(self) -> bool:  # type: ignore[override]
        """Say whether it takes steps."""
        return self.state in (s.UP, s.DRAINING)

    @up.setter
    def up(self, value: bool) -> None:
        assert value

    def plan(self, now: int) -> None:
        """Decide the next step."""
        self.t = self.ticks // TICKS_PER_NS
        super().plan(now)

    def start(self) -> None:
        """Start the step; a power cap stretches it."""
        before = self.ticks
        super().start()
        self.run_tokens = sum(q.now_computing for q in self.running)
        slow, idle_w = self.slow, self.engine.power_idle_w
        wanted_w = 0.0 if self.engine.power_w is None else float(self.engine.power_w[self.run_tokens]) - idle_w
        if wanted_w * self.ratio > self.cap_w:
            ratio = max(MIN_DYNAMIC_RATIO, self.cap_w / wanted_w)
            slow = max(slow, math.ceil(SLOW_ONE / ratio ** (1.0 / 3.0)))
        self.ticks = before + (self.ticks - before) // SLOW_ONE * slow

    def power_off(self, now: int) -> None:
        """Book what it was powered."""
        if self.powered_since >= 0:
            self.powered_ns += now - self.powered_since
        self.powered_since = -1


class LiveWorld(Reference):
    """The whole system: engines, the gateway's workers, the owner's control loop."""

    def __init__(
        self, spec: Any, chunk: Any, dice: list[float], folder: Path, *, workers: int = 1, tried: bool = False,
        shadow: bool = False, **limits: Any,
    ) -> None:  # fmt: skip
        super().__init__(spec, chunk)
        pools = [(pool, k) for pool in spec.pools for k in range(pool.n_max)]
        self.engines = [Engine(i, spec, pool, k < pool.n_min) for i, (pool, k) in enumerate(pools)]
        self.replicas = self.engines  # type: ignore[assignment]
        self.tables = tables_of(spec, **limits)
        self.board = Board.create(folder / "board", len(self.engines), len(spec.one_way_s), workers)
        self.shadow_board = Board.create(folder / "shadow", len(self.engines), len(spec.one_way_s), 1)
        peaks = [e.power_idle_w if e.power_w is None else float(e.power_w.max()) for e in spec.engines]
        self.steer = s.Steer(self.tables, rules=chosen(self.tables.policy), peak_w=peaks)
        for r, engine in enumerate(self.engines):
            self.board.cost_per_mtok[r] = self.shadow_board.cost_per_mtok[r] = engine.engine.cost_per_mtok
        self.publish()
        self.doors = [d.Door(self.tables, self.board, w, dice, compiled=False) for w in range(workers)]
        self.shadow = d.Door(self.tables, self.shadow_board, 0, dice, compiled=False) if shadow else None
        self.otherwise = self.n_decided = 0  # decisions of one worker that one that had heard everything would not take
        self.mask_tried = tried
        self.tried: dict[int, int] = {}
        self.promised: dict[int, tuple[float, float]] = {}  # work, price
        self.spent = [0.0] * len(spec.priority)
        self.reserved = [0.0] * len(spec.priority)
        self.told: list[list[tuple[int, Request, int]]] = [[] for _ in spec.one_way_s]  # by site: when, who, tokens
        self.choices: dict[int, list[int]] = {}
        self.denied = self.n_orders = self.n_capped = self.n_shared = 0
        limited = spec.limit_kw is not None and bool((spec.limit_kw < float("inf")).any()) and spec.cap > 0
        self.tick_ns, self.scrape_ns = round(spec.control_every_s * 1e9), round(spec.observe_every_s * 1e9)
        self.next_tick = self.tick_ns if spec.scale > 0 or limited else None
        self.hard = spec.hard_cap and limited
        if self.hard:
            self.next_tick = 0
        self.next_scrape = self.scrape_ns if spec.scrapes else None

    def door_of(self, q: Request) -> d.Door:
        """Return the worker that a request came to."""
        return self.doors[(q.number * 2654435761 >> 7) % len(self.doors)]

    def publish(self) -> None:
        """The owner writes what it decided to the board."""
        for board in (self.board, self.shadow_board):
            self.steer.write(board)
            board.bump()

    def doors_of(self, q: Request) -> list[d.Door]:
        """Return the worker that a request came to, and the shadow that hears everything."""
        door = self.door_of(q)
        return [door] if self.shadow is None else [door, self.shadow]

    def run(self) -> list[Request]:
        """Let everything happen; return the requests in order of their number."""
        outages = [tuple(int(v) for v in row) for row in self.spec.outages]
        n = len(self.arrivals)
        while len(self.done) < n:
            choices: list[tuple[int, int, int]] = []
            for engine in self.engines:
                at = engine.next_ns()
                if at is not None:
                    choices.append((at, 0, engine.number))
            if outages:
                choices.append((outages[0][0], 1, 0))
            if self.timers:
                first = min(range(len(self.timers)), key=lambda i: self.timers[i][:2])
                choices.append((self.timers[first][0], 2, first))
            if self.next_scrape is not None:
                choices.append((self.next_scrape, 3, 0))
            if self.next_tick is not None:
                choices.append((self.next_tick, 4, 0))
            if self.arrivals:
                choices.append((self.arrivals[0].arrival, 5, 0))
            now, kind, index = min(choices)
            if kind == 0:
                self.boundary(self.engines[index], now)
                continue
            self.hear(now)
            if kind == 1:
                _, group, change = outages.pop(0)
                for replica_i in self.spec.groups[group]:
                    self.outage(self.engines[replica_i], change, now)
            elif kind == 2:
                _, _, what, row = self.timers.pop(index)
                self.timer(what, row, now)
            elif kind == 3:
                self.scrape(now)
            elif kind == 4:
                self.control(now)
            else:
                self.send(self.arrivals.pop(0), now)
        self.end_ns = now
        self.hear(1 << 62)
        for door in self.doors:
            door.check()
            assert not any(door.own), "a count leaked"
        self.steer.check()
        self.board.check()
        return sorted(self.done, key=lambda q: q.number)

    # ---- the gateway -----------------------------------------------------------------------------------------------

    def hear(self, now: int) -> None:
        """Ends reach the gateway a network's way later."""
        for line in self.told:
            while line and line[0][0] <= now:
                at, q, tokens = line.pop(0)
                work, price = self.promised.pop(q.number)
                failed = q.record["status"] != 0
                outcome = (d.FAILED_AFTER if q.first >= 0 else d.FAILED_BEFORE_FIRST_BYTE) if failed else d.OK
                for door in self.doors_of(q):
                    door.ended(
                        at * 1e-9, q.replica, work, tenant_i=q.tenant, model_i=q.model, output_tokens=tokens,
                        outcome=outcome,
                    )  # fmt: skip
                if tokens > 0:
                    prices = self.spec.prices[q.tenant].tolist()
                    fresh = q.inp - q.cached
                    self.spent[q.tenant] += fresh * prices[0] + q.cached * prices[1] + tokens * prices[2]
                self.reserved[q.tenant] -= price

    def send(self, q: Request, now: int) -> None:
        """Ask the door where a request goes, and put it on its way."""
        door = self.door_of(q)
        blocks = min(len(q.hashes), KEY_BLOCKS)
        left = float(self.spec.budget[q.tenant]) - self.spent[q.tenant] - self.reserved[q.tenant]
        answers = [
            one.decide(
                now * 1e-9, tenant_i=q.tenant, model_i=q.model, region_i=q.region, input_tokens=q.inp,
                prefix_key=q.hashes[blocks - 1] if blocks else 0, prefix_blocks=blocks, budget_left=left,
                tried=self.tried.get(q.number, 0) if self.mask_tried else 0, first=q.tries == 0,
            )
            for one in self.doors_of(q)
        ]  # fmt: skip
        chosen_r = answers[0]
        self.n_decided += 1
        self.otherwise += answers[0] != answers[-1]
        self.choices.setdefault(q.number, []).append(chosen_r)
        if chosen_r < 0:
            self.give_up(q, REFUSED, -chosen_r, now)
            return
        engine = self.engines[chosen_r]
        work = door.work(q.tenant, q.model, q.inp)
        price = self.promised[q.number][1] if q.number in self.promised else float(door.last[0].price)
        if q.tries == 0:
            self.reserved[q.tenant] += price
        self.promised[q.number] = (work, price)
        q.tries += 1
        for one in self.doors_of(q):
            one.sent(chosen_r, work)
        if not engine.up or engine.down:
            # The twin's gateway knows of a refusal as it sends; a real one hears of it a round trip later.
            self.fail_at(q, chosen_r, now, d.UNREACHED)
            back = now + 2 * self.one_way[engine.site]
            if self.again(door, q, now):
                self.set_timer(back, "retry", q)
            else:
                self.give_up(q, FAILED, RETRIES, back)
            return
        q.replica = q.door = chosen_r
        q.ready = now + self.one_way[engine.site]
        q.scheduled = -1
        q.target = q.inp
        q.computed = q.answered = q.cached = 0
        q.remote = q.decoding = False
        q.window = min(q.inp, engine.engine.window_tokens)
        self.enqueue(engine, q)

    def fail_at(self, q: Request, r: int, now: int, outcome: int) -> None:
        """A try failed before its first byte."""
        work, _ = self.promised[q.number]
        for one in self.doors_of(q):
            one.ended(now * 1e-9, r, work, tenant_i=q.tenant, model_i=q.model, output_tokens=0, outcome=outcome)
        self.tried[q.number] = self.tried.get(q.number, 0) | 1 << r

    def again(self, door: d.Door, q: Request, now: int) -> bool:
        """Say whether a request that failed before its first byte is tried once more."""
        if not may_try_again(q.tries, self.spec.retries):
            return False
        if door.may_retry(now * 1e-9):
            return True
        self.denied += 1
        return False

    def give_up(self, q: Request, status: int, reason: int, now: int) -> None:
        """End a request at the gateway."""
        q.replica = -1
        self.finish(q, status, reason, now, 0)
        _, price = self.promised.pop(q.number, (0.0, 0.0))
        self.reserved[q.tenant] -= price

    def leave(self, q: Request, status: int, reason: int, now: int, tokens: int) -> None:
        """End a request at its engine; the gateway hears of it later."""
        self.finish(q, status, reason, now, tokens)
        site = self.engines[q.replica].site
        self.told[site].append((now + self.one_way[site], q, tokens))

    # ---- engines come and go ---------------------------------------------------------------------------------------

    def power_on(self, engine: Engine, now: int) -> None:
        """Start an engine; it is ready after its cold start."""
        engine.state = s.STARTING
        engine.powered_since = now
        engine.ready_at = now + round(engine.engine.cold_s * 1e9)
        self.set_timer(engine.ready_at, "ready", engine)

    def outage(self, replica: Any, change: int, now: int) -> None:
        """One cause more, or fewer, keeps an engine down."""
        replica.down += change
        if change < 0:
            if self.steer.repaired(replica.number):
                self.power_on(replica, now)
            return
        self.steer.failed(replica.number)
        if replica.down > 1:
            return
        replica.power_off(now)
        lost = replica.running + replica.waiting
        replica.restart(now)
        for q in lost:
            q.held, q.private = [], []
            door = self.door_of(q)
            if q.first >= 0:
                self.leave(q, FAILED, LOST, now, q.answered)
            elif not may_try_again(q.tries, self.spec.retries):
                self.leave(q, FAILED, RETRIES, now, 0)
            else:
                # The twin's gateway counts it out as it fails; a real one does when it hears, before the retry.
                self.fail_at(q, replica.number, now, d.FAILED_BEFORE_FIRST_BYTE)
                if self.again(door, q, now):
                    self.set_timer(now + self.one_way[replica.site], "retry", q)
                else:
                    self.give_up(q, FAILED, RETRIES, now)
        self.set_timer(now + round(self.spec.detect_s * 1e9), "down", replica)

    def timer(self, what: str, row: Any, now: int) -> None:
        """A retry is due, an engine is ready, or the gateway learns that one came or went."""
        if what == "retry":
            self.send(row, now)
        elif what == "ready":
            if row.state == s.STARTING and not row.down and row.ready_at == now:
                row.state = s.UP
                row.restart(now)
                row.t = now
                self.steer.ready(row.number)
                self.set_timer(now + self.one_way[row.site], "up", row)
        elif what == "up":
            self.steer.known_up(row.number)
            self.publish()
        else:
            self.steer.known_down(row.number)
            self.publish()

    # ---- the owner -------------------------------------------------------------------------------------------------

    def scrape(self, now: int) -> None:
        """Read the engines' own counters."""
        self.next_scrape = now + self.scrape_ns
        for r, engine in enumerate(self.engines):
            waiting = 0
            for q in engine.waiting:
                if q.ready > now:
                    break
                waiting += 1
            for board in (self.board, self.shadow_board):
                board.waiting[r] = waiting
                board.running[r] = len(engine.running)
        self.board.bump()
        self.shadow_board.bump()

    def meter(self, site: int, now: int) -> s.SitePower:
        """Return what the site draws: everything that took a step since the last look counts as busy."""
        spec = self.spec
        at = min(now // round(spec.bin_s * 1e9), spec.limit_kw.shape[1] - 1) if spec.limit_kw is not None else 0
        limit_kw = float(spec.limit_kw[site, at]) if spec.limit_kw is not None else float("inf")
        idle_kw = float(spec.training_kw[site, at]) if spec.training_kw is not None else 0.0
        parked = 0.0 if spec.parked_ratio is None else float(spec.parked_ratio[site])
        dynamic_kw = 0.0
        for engine in self.engines:
            if engine.site == site and engine.powered_since >= 0:
                idle_w = engine.engine.power_idle_w
                idle_kw += (1.0 - parked) * idle_w / 1000.0
                if engine.step is not None or engine.t > now - self.tick_ns:
                    watts = engine.engine.power_w
                    busy_w = idle_w if watts is None else float(watts[engine.run_tokens])
                    dynamic_kw += (busy_w - idle_w) / 1000.0
        return s.SitePower(idle_kw + dynamic_kw, idle_kw, limit_kw)

    def ahead(self, site: int, now: int, which: Any) -> float:
        """Return the tightest limit (min) or the most base load (max) until a second after the next decision."""
        bin_ns, last = round(self.spec.bin_s * 1e9), self.spec.limit_kw.shape[1] - 1
        bins = range(min(now // bin_ns, last), min((now + self.tick_ns + 10**9) // bin_ns, last) + 1)
        if which is min:
            return min(float(self.spec.limit_kw[site, i]) for i in bins)
        training = self.spec.training_kw
        return max((float(training[site, i]) for i in bins), default=0.0) if training is not None else 0.0

    def control(self, now: int) -> None:
        """Decide scaling and caps, and carry the orders out."""
        self.next_tick = now + self.tick_ns
        busy = [engine.step is not None or bool(engine.waiting) for engine in self.engines]
        orders = self.steer.scale(
            now * 1e-9, outstanding=self.board.totals("outstanding"), asked=self.board.totals("asked"), busy=busy
        )
        self.carry_out(orders, now)
        self.n_orders += len(orders)
        self.steer.cap([self.meter(site, now) for site in range(len(self.one_way))])
        if self.hard:
            for site in range(len(self.one_way)):
                self.steer.share_out(site, limit_kw=self.ahead(site, now, min), base_kw=self.ahead(site, now, max))
        for r, engine in enumerate(self.engines):
            engine.ratio, engine.cap_w = self.steer.ratio[engine.site], self.steer.cap_w[r]
            engine.slow = math.ceil(SLOW_ONE / self.steer.ratio[engine.site] ** (1.0 / 3.0))
        self.n_capped += any(self.steer.capped)
        self.n_shared += min(self.steer.cap_w) < math.inf
        assert [engine.state for engine in self.engines] == self.steer.state
        self.publish()

    def carry_out(self, orders: list[s.Order], now: int) -> None:
        """Do what the control loop ordered."""
        for kind, r in orders:
            engine = self.engines[r]
            if kind == s.START:
                self.power_on(engine, now)
            elif kind == s.DRAIN:
                engine.state = s.DRAINING
            elif kind == s.RESUME:
                engine.state = s.UP
            else:
                engine.power_off(now)
                engine.state = s.OFF
                engine.restart(now)
