"""The door: one worker's state for deciding where a request goes, by the very rules that the twin asks.

It does what the twin's `choose` and `learn` do (simulate/kernel.py), on lists: the same Ask, columns, ticket, dice, price
and running mean of answers' lengths. Hard limits come first, and fail closed, in retries too: law and model, the gate that
the owner keeps on the board, then what this worker knows by itself (replicas left alone after failures, replicas without
an address, those this request was already tried at). No clock, no input or output: time is given.
What the fleet is: `tables.py`. What the other processes say: `board.py`. Money is the caller's (`budget_left`).

Calls of one request, in order: `decide`, `sent`, then exactly one `ended` for each `sent`; before another `decide` for the
same request ask `may_retry`, and pass `tried`. A connection that was refused is `ended` with UNREACHED.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from typing import Any, Final

from baseload.policies.eject import TRIAL, Ejection
from baseload.policies.queue import ReplicaLimits
from baseload.policies.retry import RetryBudget
from baseload.policies.view import NO_REPLICA, Ask, Columns, Tunables
from baseload.records import REASON_NO_REPLICA, REASON_POWER, REASON_TOO_LONG
from baseload.serve.board import COUNTER_I, GATE_UNKNOWN, H_VERSION, Board
from baseload.serve.rules import PLAIN_REPLICAS, Rules, chosen
from baseload.serve.tables import Tables

OK: Final = 0  # how a try ended
FAILED_BEFORE_FIRST_BYTE: Final = 1
FAILED_AFTER: Final = 2
CANCELLED: Final = 3
UNREACHED: Final = 4
OUTCOMES = ("ok", "failed before the first byte", "failed after it", "cancelled", "unreached")

LENGTH_MEMORY: Final = 0.05  # weight of the newest answer in a tenant's running mean; as the twin's
PICO: Final = 10**12
N_DICE: Final = 8192
_ask = tuple.__new__
ALIVE = COUNTER_I["alive"]


class Door:
    """One worker's decisions. `compiled` takes arrays and compiled rules; absent, above PLAIN_REPLICAS replicas."""

    def __init__(
        self,
        tables: Tables,
        board: Board | None = None,
        worker: int = 0,
        dice: Sequence[float] | None = None,
        *,
        compiled: bool | None = None,
        rules: Rules | None = None,
    ) -> None:
        self.board, self.worker = board, worker
        self.compiled = len(tables.replicas) > PLAIN_REPLICAS if compiled is None else compiled
        if dice is None:
            generator = random.Random(tables.seed * 1_000_003 + worker)
            dice = [generator.random() for _ in range(N_DICE)]
        assert len(dice) & (len(dice) - 1) == 0, "as many dice as a power of two"
        self.dice = list(dice)
        self.n_in = 0
        self.changes = 0  # of anything that masks replicas, but for ejection
        self.moved: dict[int, list[int]] = {}  # rows of earlier tables, where they are now
        self.retry_budget = RetryBudget(tables.limits.retry_ratio)
        self._take(tables, rules)
        if board is not None:
            board.clear_worker(worker)
            board.counters[worker][ALIVE] = 1
            self._look(board)

    # ---- what stands ---------------------------------------------------------------------------------------------

    def _take(self, tables: Tables, rules: Rules | None) -> None:
        """Turn the tables into the lists that decisions are made on."""
        self.tables = tables
        self.rules = rules or chosen(tables.policy, compiled=self.compiled)
        self.route, self.admit = self.rules.route, self.rules.admit
        self.asks_admission = tables.policy.admit != "always"
        self.reads_queued = tables.policy.route not in ("round_robin", "least_outstanding", "prefix_affine")
        policy, of = tables.policy, [tables.deployments[row.deployment_i] for row in tables.replicas]
        self.tunables = Tunables(
            policy.load_guard, policy.admit_factor, policy.target_utilisation, policy.scale_down_s
        )  # fmt: skip
        self.n, self.n_models, self.n_tenants = len(of), len(tables.models), len(tables.tenants)
        self.n_regions = len(tables.region_rtt_s)
        self.outstanding = self._whole([0] * self.n)  # what the rules see: this worker's and the others'
        self.queued = self._real([0.0] * self.n)
        self.slots = self._whole([row.slots for row in of])
        self.running, self.waiting = self._whole([0] * self.n), self._whole([0] * self.n)
        self.scraped: tuple[list[int], list[int]] = ([], [])
        self.kv_free = self._real([1.0] * self.n)
        self.cost, self.carbon = self._real([0.0] * self.n), self._real([0.0] * self.n)
        prefill = self._real([row.prefill_tokens_per_s for row in of])
        decode = self._real([row.decode_s_per_token for row in of])
        one_way_s = [tables.sites[row.site_i].one_way_s for row in tables.replicas]
        self.columns = [
            Columns(
                self.outstanding, self.queued, prefill, decode, self.slots,
                self._real([rtt_s + 2.0 * s for s in one_way_s]), self.running, self.waiting, self.kv_free, self.cost,
                self.carbon,
            )
            for rtt_s in tables.region_rtt_s
        ]  # fmt: skip
        self._take_board_shape()
        self._take_tenants(tables)
        limits = tables.limits
        self.ejection = Ejection(
            [-1 - r if row.gone else of[r].model_i for r, row in enumerate(tables.replicas)],
            after=limits.eject_after, alone_s=limits.eject_s, most_ratio=limits.eject_most_ratio,
            refused_s=max(policy.detect_s, 0.001) + max(one_way_s, default=0.0),  # by then the owner has seen it too
        )  # fmt: skip
        self.limits = ReplicaLimits([int(row.slots) for row in of])
        self.retry_budget.ratio = limits.retry_ratio
        self.gate = (
            [9 if row.on_at_start else GATE_UNKNOWN for row in tables.replicas]
            if self.board is None
            else [GATE_UNKNOWN] * self.n
        )
        self.epoch = [0] * self.n
        self.reachable = [1] * self.n
        self.asked = [0] * len(tables.pools)
        self.changes += 1

    def _take_board_shape(self) -> None:
        """Tell this worker's own counts from the sum over workers, where there are others."""
        board = self.board
        self.shared = board is not None and board.n_workers > 1
        self.own = self._whole([0] * self.n) if self.shared else self.outstanding
        self.own_queued = self._real([0.0] * self.n) if self.shared else self.queued
        self.seen = -1
        if board is None:
            return
        assert board.n_replicas >= self.n, (board.n_replicas, self.n)
        assert 0 <= self.worker < board.n_workers, self.worker
        self.my_outstanding, self.my_queued = board.outstanding[self.worker], board.queued_tokens[self.worker]
        others = [w for w in range(board.n_workers) if w != self.worker]
        self.other_rows: list[tuple[Any, Any]] = [(board.outstanding[w], board.queued_tokens[w]) for w in others]
        self.other_counters = [board.counters[w] for w in others]
        if self.compiled:
            import numpy as np

            self.other_rows = [
                (np.frombuffer(a, np.int64)[: self.n], np.frombuffer(b, np.float64)[: self.n])
                for a, b in self.other_rows
            ]

    def _take_tenants(self, tables: Tables) -> None:
        """Law, price, promise and memory of each tenant, and of its requests for each model."""
        self.law: list[list[int]] = []  # (tenant * models + model, replica)
        for t in range(self.n_tenants):
            for m in range(self.n_models):
                row = tables.may[t][m]
                self.law.append(
                    [
                        int(row[r.pool_i] == 1 and tables.deployments[r.deployment_i].model_i == m)
                        for r in tables.replicas
                    ]
                )
        kinds = len(self.law)
        self.mean_tokens = [tables.predicted_output_tokens] * kinds
        self.ticket = [self.worker] * kinds
        self.masks: list[Any] = [None] * kinds
        self.mask_seen = [-1] * kinds
        self.tenant_rows = [
            (row.ttft_slo_s, row.tpot_slo_s, row.priority, row.input_pico / PICO, row.output_pico / PICO)
            for row in tables.tenants
        ]
        self.context = [row.max_context_tokens for row in tables.models]
        rows = [(tables.deployments[row.deployment_i], tables.sites[row.site_i]) for row in tables.replicas]
        self.paces = [(row.decode_s_per_token, row.prefill_tokens_per_s, 2.0 * site.one_way_s) for row, site in rows]

    def _whole(self, values: list[int]) -> Any:
        if not self.compiled:
            return values
        import numpy as np

        return np.array(values, np.int64)

    def _real(self, values: list[float]) -> Any:
        if not self.compiled:
            return values
        import numpy as np

        return np.array(values, np.float64)

    def _look(self, board: Board) -> None:
        """Read what the owner wrote since."""
        self.seen = board.head[H_VERSION]  # first: a burst that ends meanwhile is read again
        n = self.n
        gate, epoch = board.gate.tolist()[:n], board.epoch.tolist()[:n]
        if gate != self.gate:
            self.gate = gate
            self.changes += 1
        if epoch != self.epoch:
            for r in range(n):
                if epoch[r] != self.epoch[r]:
                    self.ejection.came_up(r)
            self.epoch = epoch
        running, waiting = board.running.tolist()[:n], board.waiting.tolist()[:n]
        if (running, waiting) != self.scraped:
            self.scraped = (running, waiting)
            self.running[:], self.waiting[:] = running, waiting
            for r in range(n):
                self.limits.scraped(r, running[r], waiting[r])
        self.kv_free[:] = board.kv_free.tolist()[:n]
        self.cost[:], self.carbon[:] = board.cost_per_mtok.tolist()[:n], board.carbon_g_per_mtok.tolist()[:n]

    def _sum(self) -> None:
        """Add up what all workers have in flight."""
        n = self.n
        if not any(cells[ALIVE] for cells in self.other_counters):
            self.outstanding[:], self.queued[:] = self.own, self.own_queued
            return
        if self.compiled:
            self.outstanding[:] = self.own
            self.queued[:] = self.own_queued
            for counts, tokens in self.other_rows:
                self.outstanding += counts
                self.queued += tokens
            return
        counts = [row.tolist()[:n] for row, _ in self.other_rows]
        self.outstanding[:] = list(map(sum, zip(self.own, *counts, strict=True)))
        if self.reads_queued:
            tokens = [row.tolist()[:n] for _, row in self.other_rows]
            self.queued[:] = list(map(sum, zip(self.own_queued, *tokens, strict=True)))

    def _mask(self, k: int, priority: int, seen: int) -> Any:
        """Return, and keep, where requests of a kind may go now."""
        opened, gate, reachable = self.ejection.open, self.gate, self.reachable
        mask: Any = [
            int(may and gate[i] >= priority and opened[i] and reachable[i]) for i, may in enumerate(self.law[k])
        ]
        if self.compiled:
            import numpy as np

            mask = np.array(mask, np.uint8)
        self.masks[k] = mask
        self.mask_seen[k] = seen
        return mask

    def set_endpoints(self, urls: Sequence[object | None]) -> None:
        """Say which replicas have an address (not None): the others get nothing. Before it is said, all do."""
        assert len(urls) >= self.n, (len(urls), self.n)
        self.reachable = [int(url is not None) for url in urls[: self.n]]
        self.changes += 1

    def set_gate(self, gate: Sequence[int]) -> None:
        """Without a board: set the largest priority number that each replica takes."""
        assert self.board is None and len(gate) == self.n
        self.gate = list(gate)
        self.changes += 1

    # ---- one request ---------------------------------------------------------------------------------------------

    def decide(
        self,
        now_s: float,
        *,
        tenant_i: int,
        model_i: int,
        region_i: int = 0,
        input_tokens: int,
        max_tokens: int = 0,
        prefix_key: int = 0,
        prefix_blocks: int = 0,
        budget_left: float,
        tried: int = 0,
        first: bool | None = None,
    ) -> int:
        """Return the replica that a request goes to, or -reason (records.REASON_*).

        `tried` has a bit for each replica that this request failed at: they are left out. `first` tells a retry that may
        go where it was before (the twin's); absent, a request is new when nothing was tried. `max_tokens` 0: not said.
        `prefix_blocks`: prompt tokens in the blocks that the key stands for.
        """
        if first is None:
            first = tried == 0
        if first:
            self.n_in += 1
            self.retry_budget.request(now_s)
        if not (0 <= tenant_i < self.n_tenants and 0 <= model_i < self.n_models and 0 <= region_i < self.n_regions):
            return -REASON_NO_REPLICA
        if input_tokens >= self.context[model_i]:
            return -REASON_TOO_LONG
        board = self.board
        if board is not None:
            if board.head[H_VERSION] != self.seen:
                self._look(board)
            if self.shared:
                self._sum()
        ejection = self.ejection
        if now_s >= ejection.next_s:
            ejection.wake(now_s)
        k = tenant_i * self.n_models + model_i
        ttft_slo_s, tpot_slo_s, priority, input_price, output_price = self.tenant_rows[tenant_i]
        seen = self.changes + ejection.version
        allowed = self.masks[k] if self.mask_seen[k] == seen else self._mask(k, priority, seen)
        if tried:
            allowed = allowed.copy()
            for i in range(self.n):
                if tried >> i & 1:
                    allowed[i] = 0
        predicted = self.mean_tokens[k]
        if 0 < max_tokens < predicted:
            predicted = float(max_tokens)
        ask = _ask(
            Ask,
            (
                input_tokens, predicted, prefix_key, min(prefix_blocks, input_tokens), ttft_slo_s, tpot_slo_s, priority,
                budget_left, input_tokens * input_price + predicted * output_price, self.ticket[k],
                self.dice[self.n_in & (len(self.dice) - 1)],
            ),
        )  # fmt: skip
        self.ticket[k] += 1
        columns = self.columns[region_i]
        r = int(self.route(ask, columns, allowed, self.tunables))
        self.last = (ask, columns, allowed)
        if r < 0 or r >= self.n or not allowed[r] or not self.law[k][r]:
            return -self._nowhere(k, priority)
        if first and self.asks_admission:
            reason = int(self.admit(ask, columns, r, self.tunables))
            if reason:
                return -reason
        return r

    def _nowhere(self, k: int, priority: int) -> int:
        """Say why nobody takes a request of a kind, and let the scaling rule know that it asked."""
        tenant_i, model_i = divmod(k, self.n_models)
        board = self.board
        for p, may in enumerate(self.tables.may[tenant_i][model_i]):
            if may and self.tables.deployments[self.tables.pools[p].deployment_i].model_i == model_i:
                self.asked[p] += 1
                if board is not None:
                    board.asked[self.worker][p] = self.asked[p]
        gate, opened, reachable = self.gate, self.ejection.open, self.reachable
        for i, may in enumerate(self.law[k]):
            if may and GATE_UNKNOWN != gate[i] < priority and opened[i] and reachable[i]:
                return REASON_POWER
        return REASON_NO_REPLICA

    def runner_up(self, replica: int) -> int:
        """Return whom the route rule would have taken had the last decision's `replica` not been allowed; -1 nobody."""
        ask, columns, allowed = self.last
        if replica < 0 or not allowed[replica]:
            return NO_REPLICA
        others = allowed.copy()
        others[replica] = 0
        return int(self.route(ask, columns, others, self.tunables))

    def why(self, replica: int) -> str:
        """Return in a few words why the last decision fell on `replica`: the rule, its count, the runner-up."""
        other = self.runner_up(replica)
        second = f"then {self.name(other)} ({int(self.outstanding[other])} open)" if other >= 0 else "no other"
        return f"{self.tables.policy.route}: {int(self.outstanding[replica])} open there; {second}"

    def name(self, replica: int) -> str:
        """Return a replica's name: deployment/site/number."""
        row = self.tables.replicas[replica]
        return f"{self.tables.deployments[row.deployment_i].name}/{self.tables.sites[row.site_i].name}/{row.number}"

    def predicted(self, tenant_i: int, model_i: int) -> float:
        """Return the running mean of the answers' length of a tenant's requests for a model, in tokens."""
        return self.mean_tokens[tenant_i * self.n_models + model_i]

    def work(self, tenant_i: int, model_i: int, input_tokens: int, max_tokens: int = 0) -> float:
        """Return the tokens that a request is expected to be: prompt and answer."""
        predicted = self.mean_tokens[tenant_i * self.n_models + model_i]
        return input_tokens + (float(max_tokens) if 0 < max_tokens < predicted else predicted)

    def sent(self, replica: int, work_tokens: float) -> None:
        """A request is on its way to `replica`."""
        own, queued = self.own, self.own_queued
        own[replica] += 1
        queued[replica] += work_tokens
        if self.board is not None:
            self.my_outstanding[replica] = own[replica]
            self.my_queued[replica] = queued[replica]
        if self.ejection.state[replica] == TRIAL:
            self.ejection.sent(replica)

    def ended(
        self,
        now_s: float,
        replica: int,
        work_tokens: float,
        *,
        tenant_i: int,
        model_i: int,
        output_tokens: int,
        outcome: int,
        version: int = -1,
    ) -> None:
        """A try that was `sent` ended; `version` is that of the tables when it was sent (absent: the present one)."""
        if version >= 0 and version != self.tables.version:
            replica = self.moved[version][replica]
            if replica < 0:
                return  # its replica is no longer of this fleet
            output_tokens = 0  # the tenant's row may be another now: nothing is learnt from this one
        own, queued = self.own, self.own_queued
        assert own[replica] > 0, f"replica {replica}: more requests ended than were sent"
        own[replica] -= 1
        left = queued[replica] - work_tokens
        queued[replica] = left if own[replica] and left > 0.0 else 0.0  # no residue of rounding
        if self.board is not None:
            self.my_outstanding[replica] = own[replica]
            self.my_queued[replica] = queued[replica]
        ejection = self.ejection
        if outcome == OK:
            if ejection.fails[replica] or ejection.state[replica] or ejection.times[replica] or ejection.braked:
                ejection.succeeded(replica)
        elif outcome == CANCELLED:
            ejection.no_verdict(replica)
        elif outcome == UNREACHED:
            ejection.nobody_listens(replica, now_s)
        else:
            ejection.failed(replica, now_s)
            if outcome == FAILED_BEFORE_FIRST_BYTE:
                self.limits.refused(replica)
        if output_tokens > 0 and outcome != CANCELLED:
            k = tenant_i * self.n_models + model_i
            self.mean_tokens[k] += LENGTH_MEMORY * (output_tokens - self.mean_tokens[k])

    def answered(self, replica: int, seconds: float, input_tokens: float, output_tokens: float = 1.0) -> None:
        """The first token (or, with `output_tokens`, a whole answer) came from `replica`, `seconds` after it was sent there.

        So the replica's limit follows what it shows; time that the request waited at the gateway does not count.
        """
        decode_s_per_token, prefill_tokens_per_s, there_and_back_s = self.paces[replica]
        steps_s = max(1.0, output_tokens) * decode_s_per_token
        expected_s = input_tokens / prefill_tokens_per_s + steps_s + there_and_back_s
        self.limits.answered(replica, int(self.outstanding[replica]), seconds / expected_s)

    def may_retry(self, now_s: float) -> bool:
        """Take one retry out of the budget, if it holds one; the caller counts tries (policies/retry.py)."""
        return self.retry_budget.may_retry(now_s)

    def full(self, replica: int) -> bool:
        """Say whether `replica` holds as much as it should now: a request for it had better wait at the gateway."""
        return bool(self.outstanding[replica] >= self.limits.limit[replica])

    def with_room(self) -> int:
        """Return where the last decision's request may go at once though the first choice is `full`; NO_REPLICA: wait."""
        ask, columns, allowed = self.last
        others = allowed.copy()
        for i in range(self.n):
            if others[i] and self.full(i):
                others[i] = 0
        return int(self.route(ask, columns, others, self.tunables))

    # ---- change --------------------------------------------------------------------------------------------------

    def reload(self, tables: Tables, board: Board | None = None) -> None:
        """Take new tables; counts, lengths and verdicts follow replicas and tenants by name.

        A board of the new size comes along where the number of replicas changed. Requests in flight then pass the
        `version` under which they were sent to `ended`.
        """
        old, own, queued, lengths, epoch = self.tables, self.own, self.own_queued, self.mean_tokens, self.epoch
        names = {self.name(r): r for r in range(self.n)}
        models, ejection, limits, reachable = self.n_models, self.ejection, self.limits, self.reachable
        self.board = board or self.board
        self._take(tables, None)
        now_at = [-1] * len(names)
        for r in range(self.n):
            was = names.get(self.name(r), -1)
            if was < 0:
                continue
            now_at[was] = r
            self.own[r], self.own_queued[r], self.reachable[r] = own[was], queued[was], reachable[was]
            self.limits.limit[r] = min(limits.limit[was], self.limits.slots[r])
            self.epoch[r] = epoch[was]  # else a start of long ago is taken for a new one
        self.ejection.follow(ejection, now_at)
        self.moved = {v: [now_at[r] if r >= 0 else -1 for r in rows] for v, rows in self.moved.items()}
        self.moved[old.version] = now_at
        tenants = {row.name: i for i, row in enumerate(old.tenants)}
        model_rows = {row.name: i for i, row in enumerate(old.models)}
        for t, tenant in enumerate(tables.tenants):
            for m, model in enumerate(tables.models):
                if tenant.name in tenants and model.name in model_rows:
                    was = tenants[tenant.name] * models + model_rows[model.name]
                    self.mean_tokens[t * self.n_models + m] = lengths[was]
        if self.board is not None:
            self.board.clear_worker(self.worker)
            self.board.counters[self.worker][ALIVE] = 1
            for r in range(self.n):
                self.my_outstanding[r], self.my_queued[r] = self.own[r], self.own_queued[r]
            self._look(self.board)

    def close(self) -> None:
        """Let go of the board, so that it can be closed."""
        self.other_rows = []
        self.board, self.shared = None, False

    def check(self) -> None:
        """Assert what must hold between two requests."""
        assert all(n >= 0 for n in self.own), list(self.own)
        assert all(tokens >= 0.0 for tokens in self.own_queued), list(self.own_queued)
        assert all(n > 0 or tokens == 0.0 for n, tokens in zip(self.own, self.own_queued, strict=True))
        if self.board is not None:
            assert self.my_outstanding.tolist()[: self.n] == [int(n) for n in self.own]
        self.ejection.check()
        self.retry_budget.check()
        self.limits.check()
