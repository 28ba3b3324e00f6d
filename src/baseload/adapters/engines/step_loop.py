"""The scheduler of an emulated engine: continuous batching in steps whose length a table says, as the twin's engine does.

It is `simulate/engine.py` over again for one replica in real time, without NumPy: every decoding sequence gets a token a
step, a partly computed prompt goes on, waiting requests are admitted first come first served while token budget, seats
and KV blocks last, equal prefixes are found in the cache, and the last admitted is preempted when blocks run out. It is
told the time and owns no clock; steps end at the times that the table says, however late it is called. HTTP is
`emulated_main.py`.
"""

from __future__ import annotations

from collections import OrderedDict, deque
from collections.abc import Callable
from heapq import heappop, heappush

import msgspec

WAITING, PREFILLING, DECODING, ENDED = range(4)
BURST_S = 0.1  # how much of a fixed request rate may be made up for after a long step


class StepTable(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """How long a step takes and what fits: `formulas/speed.py`'s StepCosts as plain numbers (seconds, tokens, blocks)."""

    base_s: list[float]  # by tokens of the step; the last entry's slope goes on beyond the end
    head_s: list[float]  # by sequences that emit a token
    kv_s_per_token: float = 0.0
    kv_window_s_per_token: float = 0.0
    window_tokens: int = 0
    prefill_attention_s_per_token2: float = 0.0
    prefill_kv_s_per_token: float = 0.0
    max_tokens: int = 2048
    max_seqs: int = 256
    block_tokens: int = 16
    blocks: int = 1 << 20
    max_context: int = 131_072
    overhead_s: float = 0.0
    caching: bool = True
    requests_per_s: float = 0.0  # admits no more than this; 0: as many as fit
    mean_answer_tokens: float = 128.0

    def __post_init__(self) -> None:
        if len(self.base_s) < 2 or len(self.head_s) < 2 or min(self.max_tokens, self.max_seqs, self.block_tokens) < 1:
            raise ValueError("a step table wants at least two entries of base_s and head_s, and room for one sequence")


def flat_table(
    step_s: float, *, prefill_tokens_per_s: float = 1e6, max_seqs: int = 256, requests_per_s: float = 0.0
) -> StepTable:
    """Return a table whose decode step takes `step_s` at any load; for tests of what stands before an engine.

    >>> flat_table(0.01, prefill_tokens_per_s=1000.0).base_s
    [0.01, 0.011]
    """
    return StepTable(
        base_s=[step_s, step_s + 1.0 / prefill_tokens_per_s],
        head_s=[0.0, 0.0],
        max_tokens=max(8192, 2 * max_seqs),
        max_seqs=max_seqs,
        requests_per_s=requests_per_s,
        caching=False,
    )


class Job:
    """A request at an engine: how long its prompt and its answer are, and whom to tell."""

    __slots__ = (
        "admit_no", "base_step", "cached_tokens", "chunk", "computed", "first_s", "generated", "hashes", "held",
        "input_tokens", "on_end", "on_token", "output_tokens", "ready_s", "state", "target",
    )  # fmt: skip

    def __init__(
        self,
        input_tokens: int,
        output_tokens: int,
        hashes: list[int],
        on_token: Callable[[], None] | None,
        on_end: Callable[[], None],
    ) -> None:
        assert input_tokens >= 1 and output_tokens >= 1
        self.input_tokens = input_tokens
        self.output_tokens = output_tokens
        self.hashes = hashes  # of its full blocks, each of the whole prefix up to there
        self.on_token = on_token  # called for each token; None: nobody watches
        self.on_end = on_end  # called after the last token
        self.ready_s = 0.0
        self.first_s = -1.0
        self.state = WAITING
        self.generated = 0  # when it began to decode, or was preempted
        self.target = input_tokens  # tokens to compute before it decodes
        self.computed = 0
        self.chunk = 0
        self.cached_tokens = 0
        self.held: list[int] = []  # hashes of shared blocks it holds
        self.admit_no = -1
        self.base_step = 0


class Replica:
    """One engine's batch, queue, KV blocks and prefix cache. `advance` is called whenever `due_s` has passed."""

    def __init__(self, table: StepTable, *, speedup: float = 1.0) -> None:
        self.table = table
        self.speedup = speedup
        self.slow = [1.0]  # times that a step of so many tokens takes longer (the last for more), as under a power cap
        self.seats = min(table.max_seqs, table.max_tokens)
        self.waiting: deque[Job] = deque()
        self.decoding: dict[Job, None] = {}  # in order of admission to decoding
        self.watched: dict[Job, None] = {}  # those of them whose every token is told
        self.in_step: list[Job] = []  # prompts of the step in progress
        self.partial: Job | None = None
        self.ends: list[tuple[int, int, Job]] = []  # heap: (last step, admission, job); may hold jobs long gone
        self.residues = [0] * table.block_tokens
        self.free = table.blocks
        self.refs: dict[int, int] = {}
        self.idle: OrderedDict[int, None] = OrderedDict()  # cached blocks that nobody holds, longest unused first
        self.kv_sum = 0
        self.window_sum = 0
        self.step_no = 0
        self.admits = 0
        self.clock_s = 0.0
        self.step_end_s = -1.0  # -1: no step in progress
        self.step_tokens = 0  # of the step in progress, or the last one
        self.next_admit_s = 0.0
        self.blocked = False
        self.busy_s = 0.0
        self.prefill_tokens = self.decode_tokens = self.cached_tokens = self.asked_tokens = 0
        self.ended = self.preempted = 0

    # ---- what the outside calls ------------------------------------------------------------------------

    def fits(self, job: Job) -> bool:
        """Say whether the job could ever be served."""
        tokens = job.input_tokens + job.output_tokens
        return tokens <= min(self.table.max_context, self.table.blocks * self.table.block_tokens - 1)

    def submit(self, job: Job, now_s: float) -> None:
        """Queue a job."""
        job.ready_s = now_s + self.table.overhead_s / self.speedup
        self.waiting.append(job)

    def cancel(self, job: Job) -> None:
        """Forget a job whose client has gone; nobody is told."""
        job.on_token = None
        if job.state == WAITING:
            self.waiting.remove(job)
            job.state = ENDED
        elif job.state == DECODING:
            self._stop_decoding(job, ahead=1 if self.step_end_s >= 0.0 else 0)  # the step under way has its block
            job.state = ENDED
            self.blocked = False
        elif job.state == PREFILLING:
            job.state = ENDED  # the step that computes it ends first

    def advance(self, now_s: float) -> float | None:
        """Run all steps that end by `now_s`; return when to call again, or None while there is nothing to do."""
        while True:
            if self.step_end_s >= 0.0:
                if self.step_end_s > now_s:
                    return self.step_end_s
                self.clock_s = self.step_end_s
                self.step_end_s = -1.0
                self._end_step()
                self._plan()
                continue
            if not self.waiting:
                return None
            due_s = max(self.clock_s, self.waiting[0].ready_s, self.next_admit_s if self.table.requests_per_s else 0.0)
            if due_s > now_s:
                return due_s
            self.clock_s = due_s
            self._plan()
            if self.step_end_s < 0.0:  # nothing fits an empty engine: what waits can never be served
                self.waiting.popleft().on_end()

    @property
    def n_running(self) -> int:
        """Return how many sequences hold a seat."""
        return len(self.decoding) + len(self.in_step)

    @property
    def kv_used_ratio(self) -> float:
        """Return the share of KV blocks that running sequences hold."""
        return 1.0 - (self.free + len(self.idle)) / self.table.blocks

    def check(self) -> None:
        """Assert that books balance: seats, blocks and references."""
        assert 0 <= self.free <= self.table.blocks, self.free
        assert all(count >= 0 for count in self.refs.values())
        assert all(self.refs[key] == 0 for key in self.idle)
        assert sum(self.residues) == len(self.decoding)
        if not self.decoding and not self.in_step:
            assert self.free + len(self.idle) == self.table.blocks
            assert self.kv_sum == 0 and self.window_sum == 0

    # ---- a step ends -----------------------------------------------------------------------------------

    def _end_step(self) -> None:
        """Hand out the tokens of the step that ended; let go of who is done."""
        self.step_no += 1
        self.kv_sum += len(self.decoding)
        self.decode_tokens += len(self.decoding)
        for job in tuple(self.watched):
            if job.on_token is not None:
                job.on_token()
        while self.ends and self.ends[0][0] <= self.step_no:
            _, _, job = heappop(self.ends)
            if job.state == DECODING and self._generated(job) >= job.output_tokens:
                self._stop_decoding(job)
                self._leave(job)
        prompts, self.in_step = self.in_step, []
        self.partial = None
        for job in prompts:
            job.computed += job.chunk
            if job.state == ENDED:
                self._release(job, job.computed)
                self.blocked = False
            elif job.computed < job.target:
                self.partial = job
            else:
                self._first_token(job)

    def _first_token(self, job: Job) -> None:
        job.generated += 1
        if job.first_s < 0.0:
            job.first_s = self.clock_s
        if job.on_token is not None:
            job.on_token()
        if job.generated < job.output_tokens:
            self._start_decoding(job)
        else:
            self._release(job, job.computed)
            self._leave(job)

    def _leave(self, job: Job) -> None:
        job.state = ENDED
        self.ended += 1
        self.blocked = False
        job.on_end()

    def _generated(self, job: Job) -> int:
        return job.generated + (self.step_no - job.base_step)

    def _start_decoding(self, job: Job) -> None:
        job.state = DECODING
        job.base_step = self.step_no
        self.decoding[job] = None
        if job.on_token is not None:
            self.watched[job] = None
        heappush(self.ends, (self.step_no + job.output_tokens - job.generated, job.admit_no, job))
        self.residues[(job.target - self.step_no) % self.table.block_tokens] += 1
        self.kv_sum += job.target
        self.window_sum += min(job.target, self.table.window_tokens)

    def _stop_decoding(self, job: Job, *, ahead: int = 0) -> None:
        del self.decoding[job]
        self.watched.pop(job, None)
        position = job.target + self.step_no - job.base_step
        self.residues[(job.target - job.base_step) % self.table.block_tokens] -= 1
        self.kv_sum -= position
        self.window_sum -= min(job.target, self.table.window_tokens)
        self._release(job, position + ahead)

    def _release(self, job: Job, position: int) -> None:
        """Give back the blocks of the first `position` tokens; shared ones stay cached while there is room."""
        self.free += -(-position // self.table.block_tokens) - len(job.held)
        for key in reversed(job.held):
            self.refs[key] -= 1
            if self.refs[key] == 0:
                self.idle[key] = None
        job.held = []

    # ---- the next step ---------------------------------------------------------------------------------

    def _plan(self) -> None:
        """Decide the next step, and when it ends."""
        table = self.table
        preempted = self._room_to_decode()
        budget = table.max_tokens - len(self.decoding)
        attention_s, n_emit, n_prompt_tokens = 0.0, 0, 0
        job = self.partial
        if job is not None:
            chunk = min(job.target - job.computed, budget)
            need = self._blocks(job.computed + chunk) - self._blocks(job.computed)
            if need > self.free + len(self.idle):
                self._preempt_last()
                preempted = True
            elif chunk > 0:
                self._take(need)
                attention_s += self._schedule(job, chunk)
                budget -= chunk
        while not preempted and not self.blocked and budget > 0 and self.waiting and self.n_running < self.seats:
            job = self._admit()
            if job is None:
                break
            chunk = min(job.target - job.computed, budget)
            self._take(self._blocks(job.computed + chunk) - len(job.held))
            attention_s += self._schedule(job, chunk)
            budget -= chunk
        for job in self.in_step:
            n_prompt_tokens += job.chunk
            n_emit += job.computed + job.chunk >= job.target
        n_decode = len(self.decoding)
        if n_decode + n_prompt_tokens == 0:
            return
        seconds = self._at(table.base_s, n_decode + n_prompt_tokens) + self._at(table.head_s, n_decode + n_emit)
        seconds += table.kv_s_per_token * (self.kv_sum + n_decode) + table.kv_window_s_per_token * self.window_sum
        self.step_tokens = n_decode + n_prompt_tokens
        slow = self.slow[min(self.step_tokens, len(self.slow) - 1)]
        seconds = (seconds + attention_s) * slow / self.speedup
        self.busy_s += seconds
        self.prefill_tokens += n_prompt_tokens
        self.step_end_s = self.clock_s + max(seconds, 1e-6)

    def _at(self, values: list[float], n: int) -> float:
        last = len(values) - 1
        if n <= last:
            return values[n] if n else 0.0
        return values[last] + (n - last) * (values[last] - values[last - 1])

    def _room_to_decode(self) -> bool:
        """Take the blocks that this step's tokens need; return whether somebody had to give way."""
        if not self.decoding:
            return False
        preempted, taken = False, 0
        need = self.residues[-self.step_no % self.table.block_tokens]
        while need - taken > (spare := self.free + len(self.idle)):
            self._take(spare)  # blocks are asked for one by one: all are gone before anyone gives way
            taken += spare
            self._preempt_last()
            preempted = True
            need = self.residues[-self.step_no % self.table.block_tokens]
        self._take(need - taken)
        return preempted

    def _preempt_last(self) -> None:
        """Send the last admitted back to the front of the queue, to be recomputed."""
        if self.partial is not None:
            job, self.partial = self.partial, None
            self._release(job, job.computed)
        else:
            job = max(self.decoding, key=lambda job: job.admit_no)
            generated = self._generated(job)
            self._stop_decoding(job)
            job.generated = generated
            job.target = job.input_tokens + generated
        job.state = WAITING
        job.computed = 0
        job.ready_s = self.clock_s
        self.preempted += 1
        self.blocked = False
        self.waiting.appendleft(job)

    def _admit(self) -> Job | None:
        """Return the queue's head with its cached prefix, or None where it cannot start now."""
        table, job = self.table, self.waiting[0]
        if job.ready_s > self.clock_s or (table.requests_per_s and self.next_admit_s > self.clock_s):
            return None
        hits, unheld = 0, 0
        if table.caching:
            most = min(len(job.hashes), min(job.target - 1, job.input_tokens) // table.block_tokens)
            while hits < most and job.hashes[hits] in self.refs:
                unheld += self.refs[job.hashes[hits]] == 0
                hits += 1
        if self._blocks(job.target) - hits > self.free + len(self.idle) - unheld:
            self.blocked = True
            return None
        self.waiting.popleft()
        job.held = job.hashes[:hits]
        for key in job.held:
            if self.refs[key] == 0:
                del self.idle[key]
            self.refs[key] += 1
        job.state = PREFILLING
        job.admit_no = self.admits
        self.admits += 1
        job.computed = hits * table.block_tokens
        if job.generated == 0:
            job.cached_tokens = job.computed
            self.cached_tokens += job.computed
            self.asked_tokens += job.input_tokens
        if table.requests_per_s:
            gap_s = 1.0 / (table.requests_per_s * self.speedup)
            self.next_admit_s = max(self.next_admit_s, self.clock_s - BURST_S) + gap_s
        return job

    def _schedule(self, job: Job, chunk: int) -> float:
        """Put `chunk` prompt tokens of a job into the step; return the seconds of their attention."""
        table = self.table
        job.chunk = chunk
        self.in_step.append(job)
        if table.caching:
            full = min(len(job.hashes), min(job.computed + chunk, job.input_tokens) // table.block_tokens)
            while len(job.held) < full and job.hashes[len(job.held)] not in self.refs:
                self.refs[job.hashes[len(job.held)]] = 1
                job.held.append(job.hashes[len(job.held)])
            self.blocked = False
        compute_s = table.prefill_attention_s_per_token2 * chunk * (job.computed + 0.5 * chunk)
        return max(compute_s, table.prefill_kv_s_per_token * job.computed)

    def _blocks(self, n_tokens: int) -> int:
        return -(-n_tokens // self.table.block_tokens)

    def _take(self, n_blocks: int) -> None:
        """Take free blocks, forgetting cached ones where they do not suffice."""
        while self.free < n_blocks:
            key, _ = self.idle.popitem(last=False)
            del self.refs[key]
            self.free += 1
        self.free -= n_blocks
