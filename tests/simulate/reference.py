"""A second twin, written to be obvious and slow: every step of every engine, one at a time, on lists and whole numbers.

It shares no code with the kernel. It reads the same description (a TwinSpec and a trace) and is written after vLLM V1's
scheduler as its source describes it: the running list is walked in order of admission, each request asks for blocks one
at a time, the last of the list is thrown out when none is left, then the waiting are admitted. Blocks are objects, the
prefix cache a dict and a list. It knows routing in turn and to the least outstanding, delayed notices, failures with
retries, and prefill/decode disaggregation; not scaling, power caps, admission rules or max_wait.
Time is counted in ticks of 2**-22 ns, as the description's quantisation says; what is seen outside is rounded up to ns.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

TICKS_PER_NS = 1 << 22
UNITS_PER_S = 1e9 * (1 << 16)
SERVED, REFUSED, FAILED = 0, 1, 2
NO_REPLICA, TOO_LONG, LOST, RETRIES = 1, 5, 7, 8
MIXED, PREFILL, DECODE = 0, 1, 2


@dataclass(eq=False)
class Chunk:
    """Some KV blocks in the prefix cache, under one hash."""

    key: int
    blocks: list[int]
    parent: Chunk | None
    holders: int = 1


@dataclass(eq=False)
class Request:
    """One request, from the door to its record."""

    number: int
    arrival: int
    inp: int
    out: int
    tenant: int
    region: int
    model: int
    hashes: list[int]
    tries: int = 0
    preempted: int = 0
    replica: int = -1
    door: int = -1  # where the gateway sent it: its prefill replica, if prefill stands apart
    ready: int = 0
    scheduled: int = -1
    first: int = -1
    cached: int = 0
    answered: int = 0
    computed: int = 0  # tokens whose KV is there
    target: int = 0  # tokens to compute before it decodes
    window: int = 0
    remote: bool = False
    decoding: bool = False
    now_computing: int = 0
    held: list[Chunk] = field(default_factory=list)
    private: list[int] = field(default_factory=list)
    record: dict[str, int] = field(default_factory=dict)


class Replica:
    """One engine with its KV blocks; `free` are block numbers, `cache` chunks by hash, `unheld` the LRU list."""

    def __init__(self, number: int, spec: Any, pool: Any) -> None:
        self.number = number
        self.engine = spec.engines[pool.deployment]
        self.deployment = pool.deployment
        self.site = pool.site
        self.up = True
        self.starting = False
        self.ready_at = -1
        self.down = 0
        self.caching = self.engine.caching and self.engine.chunk_tokens > 0
        self.restart(0)

    def restart(self, now: int) -> None:
        """Forget everything."""
        self.free = list(range(self.engine.blocks))
        self.cache: dict[int, Chunk] = {}
        self.unheld: list[Chunk] = []
        self.running: list[Request] = []
        self.waiting: list[Request] = []
        self.step: list[Request] | None = None  # who is in the step that runs
        self.ticks = now * TICKS_PER_NS  # the last boundary, or the end of the step that runs

    def next_ns(self) -> int | None:
        """Return when something happens here next."""
        if self.step is not None:
            return -(-self.ticks // TICKS_PER_NS)
        if self.waiting and self.up and self.down == 0:
            return max(self.waiting[0].ready, -(-self.ticks // TICKS_PER_NS))
        return None

    def available(self) -> int:
        """Return the blocks that are free, or would be after emptying the cache."""
        return len(self.free) + sum(len(chunk.blocks) for chunk in self.unheld)

    def take(self, n: int) -> list[int]:
        """Take blocks, evicting chunks that nobody holds, the oldest first."""
        while len(self.free) < n:
            chunk = self.unheld.pop(0)
            del self.cache[chunk.key]
            self.free += chunk.blocks
        return [self.free.pop() for _ in range(n)]

    def give_back(self, q: Request) -> None:
        """Free what a request holds; its chunks stay cached, the end of its prompt the first to go."""
        self.free += q.private
        q.private = []
        for chunk in reversed(q.held):
            chunk.holders -= 1
            if chunk.holders == 0:
                self.unheld.append(chunk)
        q.held = []

    def n_blocks(self, q: Request) -> int:
        """Return the blocks that a request holds."""
        return len(q.private) + sum(len(chunk.blocks) for chunk in q.held)

    def grow(self, q: Request, tokens: int) -> bool:
        """Make room for the KV of the request's first `tokens` tokens, if there is."""
        missing = -(-tokens // self.engine.block_tokens) - self.n_blocks(q)
        if missing > self.available():
            return False
        q.private += self.take(missing)
        return True

    def offer(self, q: Request) -> None:
        """Put the whole hashed blocks of the prompt's scheduled part into the cache."""
        if not self.caching:
            return
        size = self.engine.chunk_tokens
        per = size // self.engine.block_tokens
        whole = min(q.target // size, (q.computed + q.now_computing) // size, q.inp // size, len(q.hashes))
        while len(q.held) < whole:
            key = q.hashes[len(q.held)]
            if key in self.cache:
                return
            chunk = Chunk(key, q.private[:per], q.held[-1] if q.held else None)
            q.private = q.private[per:]
            self.cache[key] = chunk
            q.held.append(chunk)

    def found(self, q: Request) -> list[Chunk]:
        """Return the chunks of the prompt that the cache holds; at least one token stays to be computed."""
        chunks: list[Chunk] = []
        if not self.caching or q.remote:
            return chunks
        most = min(q.target - 1, q.inp) // self.engine.chunk_tokens
        for key in q.hashes[:most]:
            if key not in self.cache:
                break
            chunks.append(self.cache[key])
        return chunks

    def attention_units(self, q: Request) -> int:
        """Return what the request's chunk costs in attention."""
        compute = self.engine.prefill_attention_s_per_token2 * UNITS_PER_S * q.now_computing
        compute *= q.computed + 0.5 * q.now_computing
        return int(max(compute, self.engine.prefill_kv_s_per_token * UNITS_PER_S * q.computed))

    def plan(self, now: int) -> None:
        """Decide the next step, as vLLM V1's scheduler does."""
        self.step = None
        if not self.up or self.down:
            return
        engine = self.engine
        budget = engine.max_tokens
        threw_out = False
        i = 0
        while i < len(self.running):
            q = self.running[i]
            q.now_computing = 1 if q.decoding else min(q.target - q.computed, budget)
            while not self.grow(q, q.computed + q.now_computing):
                victim = self.running.pop()
                threw_out = True
                self.give_back(victim)
                victim.preempted += 1
                victim.ready = now
                victim.remote = False
                victim.decoding = False
                victim.target = victim.inp + victim.answered
                self.waiting.insert(0, victim)
                if victim is q:
                    break
            else:
                budget -= q.now_computing
                if not q.decoding:
                    self.offer(q)
                i += 1
        while not threw_out and self.waiting and budget > 0 and len(self.running) < engine.max_seqs:
            q = self.waiting[0]
            if q.ready > now:
                break
            found = self.found(q)
            whole = -(-(q.target + int(q.remote)) // engine.block_tokens) - sum(len(c.blocks) for c in found)
            if whole > self.available() - sum(len(c.blocks) for c in found if c.holders == 0):
                break
            self.waiting.pop(0)
            self.running.append(q)
            for chunk in reversed(found):
                if chunk.holders == 0:
                    self.unheld.remove(chunk)
                chunk.holders += 1
            q.held = found
            if q.scheduled < 0:
                q.scheduled = now
            if q.remote:
                q.computed = q.target
                q.decoding = True
                q.now_computing = 1
            else:
                q.computed = q.cached = len(found) * engine.chunk_tokens
                q.now_computing = min(q.target - q.computed, budget)
            assert self.grow(q, q.computed + q.now_computing)
            budget -= q.now_computing
            self.offer(q)
        if self.running:
            self.start()

    def start(self) -> None:
        """Start the step and reckon its time."""
        engine = self.engine
        decoding = [q for q in self.running if q.decoding]
        ending = [q for q in self.running if q.decoding or q.computed + q.now_computing == q.target]
        tokens = sum(q.now_computing for q in self.running)
        units = round(float(engine.base_s[tokens]) * UNITS_PER_S)
        units += round(float(engine.head_s[len(ending)]) * UNITS_PER_S)
        units += round(engine.kv_s_per_token * UNITS_PER_S) * sum(q.computed + 1 for q in decoding)
        units += round(engine.kv_window_s_per_token * UNITS_PER_S) * sum(q.window for q in decoding)
        units += sum(self.attention_units(q) for q in self.running if not q.decoding)
        self.step = list(self.running)
        self.ticks += units * 64  # at full speed


class Reference:
    """The whole system: replicas, a gateway, a line of time."""

    def __init__(self, spec: Any, chunk: Any) -> None:
        self.spec = spec
        self.replicas = [Replica(0, spec, pool) for pool in spec.pools for _ in range(pool.n_max)]
        for i, replica in enumerate(self.replicas):
            replica.number = i
        self.pool_of = [p for p, pool in enumerate(spec.pools) for _ in range(pool.n_max)]
        self.one_way = [round(s * 1e9) for s in spec.one_way_s]
        self.outstanding = [0] * len(self.replicas)
        self.known = [True] * len(self.replicas)
        self.tickets: dict[tuple[int, int], int] = {}
        self.timers: list[tuple[int, int, str, Any]] = []
        self.n_timers = 0
        self.notices: list[tuple[int, int]] = []
        self.done: list[Request] = []
        self.preemptions = 0
        self.limits: dict[int, int] = {}
        for engine in spec.engines:
            room = min(engine.max_context, engine.blocks * engine.block_tokens - 1)
            self.limits[engine.model_i] = min(self.limits.get(engine.model_i, room), room)
        self.arrivals = []
        for i in range(len(chunk.arrival_ns)):
            lo, hi = chunk.hash_offsets[i], chunk.hash_offsets[i + 1]
            inp, model = int(chunk.input_tokens[i]), int(chunk.model_i[i])
            out = max(1, min(int(chunk.output_tokens[i]), self.limits[model] - inp))
            who = int(chunk.tenant_i[i]), int(chunk.region_i[i]), model
            hashes = [int(key) for key in chunk.hash_ids[lo:hi]]
            self.arrivals.append(Request(chunk.first_id + i, int(chunk.arrival_ns[i]), inp, out, *who, hashes))

    def set_timer(self, at: int, kind: str, what: Any) -> None:
        """Let something happen later; equal times in the order in which they were set."""
        self.timers.append((at, self.n_timers, kind, what))
        self.n_timers += 1

    def run(self) -> list[Request]:
        """Let everything happen, one thing at a time; return the requests in order of their number."""
        outages = [tuple(int(v) for v in row) for row in self.spec.outages]
        while True:
            choices: list[tuple[int, int, int]] = []  # time, order of kinds at equal times, index
            for replica in self.replicas:
                at = replica.next_ns()
                if at is not None:
                    choices.append((at, 0, replica.number))
            if outages:
                choices.append((outages[0][0], 1, 0))
            if self.timers:
                first = min(range(len(self.timers)), key=lambda i: self.timers[i][:2])
                choices.append((self.timers[first][0], 2, first))
            if self.arrivals:
                choices.append((self.arrivals[0].arrival, 3, 0))
            if not choices:
                return sorted(self.done, key=lambda q: q.number)
            now, kind, index = min(choices)
            if kind == 0:
                self.boundary(self.replicas[index], now)
                continue
            for at, replica_i in self.notices:
                if at <= now:
                    self.outstanding[replica_i] -= 1
            self.notices = [notice for notice in self.notices if notice[0] > now]
            if kind == 1:
                _, group, change = outages.pop(0)
                for replica_i in self.spec.groups[group]:
                    self.outage(self.replicas[replica_i], change, now)
            elif kind == 2:
                _, _, what, row = self.timers.pop(index)
                self.timer(what, row, now)
            else:
                self.send(self.arrivals.pop(0), now)

    def finish(self, q: Request, status: int, reason: int, now: int, tokens: int) -> None:
        """Write a request's record."""
        replica = self.replicas[q.replica] if q.replica >= 0 else None
        rtt = round(float(self.spec.region_rtt_s[q.region]) * 1e9)
        q.record = {
            "request_id": q.number,
            "arrival_ns": q.arrival,
            "tenant_i": q.tenant,
            "region_i": q.region,
            "model_i": q.model,
            "deployment_i": replica.deployment if replica else -1,
            "site_i": replica.site if replica else -1,
            "replica_i": q.replica,
            "input_tokens": q.inp,
            "output_tokens": tokens,
            "cached_tokens": q.cached,
            "n_preempted": q.preempted,
            "n_tries": q.tries,
            "status": status,
            "reason": reason,
            "scheduled_ns": q.scheduled,
            "first_token_ns": q.first,
            "finish_ns": now,
            "rtt_ns": rtt + (self.one_way[replica.site] if replica else 0),
        }
        self.done.append(q)
        self.preemptions += q.preempted

    def leave(self, q: Request, status: int, reason: int, now: int, tokens: int) -> None:
        """End a request at its replica; the gateway hears of it later."""
        self.finish(q, status, reason, now, tokens)
        self.notices.append((now + self.one_way[self.replicas[q.replica].site], q.replica))
        if q.door != q.replica:
            self.notices.append((now + self.one_way[self.replicas[q.replica].site], q.door))

    def send(self, q: Request, now: int) -> None:
        """Route a request."""
        if q.inp >= self.limits[q.model]:
            q.replica = -1
            self.finish(q, REFUSED, TOO_LONG, now, 0)
            return
        spec = self.spec
        ticket = self.tickets.get((q.tenant, q.model), 0)
        self.tickets[q.tenant, q.model] = ticket + 1
        allowed = [
            r.number
            for r in self.replicas
            if spec.may[q.tenant, q.model, self.pool_of[r.number]] and self.known[r.number] and r.engine.role != DECODE
        ]
        if not allowed:
            q.replica = -1
            self.finish(q, REFUSED, NO_REPLICA, now, 0)
            return
        if spec.route == 0:
            chosen = allowed[ticket % len(allowed)]
        else:
            assert spec.route == 1, spec.route
            chosen = min(allowed, key=lambda i: (self.outstanding[i], i))
        q.tries += 1
        replica = self.replicas[chosen]
        if not replica.up or replica.down:
            self.known[chosen] = False
            at = now + 2 * self.one_way[replica.site]
            if q.tries > spec.retries:
                q.replica = -1
                self.finish(q, FAILED, RETRIES, at, 0)
            else:
                self.set_timer(at, "retry", q)
            return
        q.replica = q.door = chosen
        q.ready = now + self.one_way[replica.site]
        q.scheduled = -1
        q.target = q.inp
        q.computed = q.answered = q.cached = 0
        q.remote = q.decoding = False
        q.window = min(q.inp, replica.engine.window_tokens)
        self.outstanding[chosen] += 1
        self.enqueue(replica, q)

    def enqueue(self, replica: Replica, q: Request) -> None:
        """Queue a request in order of its coming; whoever was preempted stays in front."""
        i = len(replica.waiting)
        while i > 0 and replica.waiting[i - 1].ready > q.ready:
            i -= 1
        replica.waiting.insert(i, q)

    def boundary(self, replica: Replica, now: int) -> None:
        """End a step: tokens, completions; then plan the next."""
        handed = []
        if replica.step is None:
            replica.ticks = now * TICKS_PER_NS
        else:
            leaving = []
            for q in sorted(replica.step, key=lambda q: not q.decoding):
                q.computed += q.now_computing
                if not q.decoding and q.computed < q.target:
                    continue
                q.decoding = True
                q.answered += 1
                if q.first < 0:
                    q.first = now
                if q.answered == q.out or replica.engine.role == PREFILL:
                    replica.running.remove(q)
                    replica.give_back(q)
                    (leaving if q.answered == q.out else handed).append(q)
            for q in leaving:
                self.leave(q, SERVED, 0, now, q.out)
        replica.plan(now)
        for q in handed:
            self.hand_over(q, replica, now)

    def hand_over(self, q: Request, old: Replica, now: int) -> None:
        """Send a computed prompt to a decode replica in the same site."""
        able = [
            r.number
            for r in self.replicas
            if r.engine.role == DECODE and r.site == old.site and r.engine.model_i == q.model and r.up and not r.down
        ]
        if not able:
            self.leave(q, FAILED, LOST, now, q.answered)
            return
        best = min(able, key=lambda i: (self.outstanding[i], i))
        self.outstanding[best] += 1
        q.replica = best
        q.remote = True
        q.ready = now + int(old.engine.transfer_s_per_token * 1e9 * q.target)
        self.enqueue(self.replicas[best], q)

    def outage(self, replica: Replica, change: int, now: int) -> None:
        """One cause more, or fewer, keeps a replica down."""
        replica.down += change
        if change > 0 and replica.down == 1:
            lost = replica.running + replica.waiting
            replica.restart(now)
            for q in lost:
                q.held, q.private = [], []
                if q.first >= 0:
                    self.leave(q, FAILED, LOST, now, q.answered)
                elif q.tries > self.spec.retries:
                    self.leave(q, FAILED, RETRIES, now, 0)
                else:
                    self.outstanding[replica.number] -= 1
                    self.set_timer(now + self.one_way[replica.site], "retry", q)
            self.set_timer(now + round(self.spec.detect_s * 1e9), "down", replica)
        elif change < 0 and replica.down == 0:
            replica.up = False
            replica.starting = True
            replica.ready_at = now + round(replica.engine.cold_s * 1e9)
            self.set_timer(replica.ready_at, "ready", replica)

    def timer(self, what: str, row: Any, now: int) -> None:
        """A retry is due, a replica is ready, or the gateway learns that one came or went."""
        if what == "retry":
            self.send(row, now)
        elif what == "ready":
            if row.starting and not row.down and row.ready_at == now:
                row.up = True
                row.starting = False
                row.restart(now)
                self.set_timer(now + self.one_way[row.site], "up", row)
        elif what == "up":
            if row.up and not row.down:
                self.known[row.number] = True
        elif row.down or not row.up:
            self.known[row.number] = False
