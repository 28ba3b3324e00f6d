"""What the requests of a gateway worker share: tables, door, purse, the pool of engines, who waits, and the clock.

`client.py` is a connection, `relay.py` a request's life; `worker.py` starts it all.
"""

from __future__ import annotations

import os
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import msgspec

from baseload.serve import energy
from baseload.serve.board import COUNTER_I, H_ENDPOINTS, Board
from baseload.serve.door import Door
from baseload.serve.energy import Rates
from baseload.serve.purse import Opened, Purse
from baseload.serve.reply import Problem
from baseload.serve.rows import SettleRow
from baseload.serve.shapes import Endpoints
from baseload.serve.tables import Tables
from baseload.serve.turn import Turn
from baseload.serve.upstream import Pool
from baseload.serve.waiting import Waiting

if TYPE_CHECKING:
    from baseload.serve.client import Client

monotonic: Final = time.monotonic  # a name of our own is found at once where this is compiled

SWEEP_S: Final = 0.1
WHY_EVERY_S: Final = 0.05  # a reason in full (with the runner-up) is worth its microseconds so often


class Gateway:
    """What a worker's requests share."""

    def __init__(
        self, tables: Tables, folder: Path, board: Board, purse: Purse, *, worker: int = 0, rules: Any = None
    ) -> None:
        self.folder, self.board, self.purse, self.worker = folder, board, purse, worker
        self.counters = board.counters[worker]
        self.door = Door(tables, board, worker, rules=rules)
        self.turn = Turn()
        self.pool = Pool([tables.deployments[row.deployment_i].key_env for row in tables.replicas], self.turn)
        self.clients: set[Client] = set()
        self.waiting: list[Waiting] = []
        self.draining = False
        self.endpoint_seen = -1
        self.endpoints = Endpoints(0, [None] * len(tables.replicas))
        self.faults = 0
        self._why_s = 0.0
        self._take(tables)

    def _take(self, tables: Tables) -> None:
        self.tables, self.limits = tables, tables.limits
        self.models = {row.name: i for i, row in enumerate(tables.models)}
        self.regions = [row.region_i for row in tables.tenants]
        self.served = [tables.deployments[row.deployment_i].served_model for row in tables.replicas]
        self.contexts = [row.max_context_tokens for row in tables.models]
        self.serves = [[any(pools) for pools in models] for models in tables.may]  # (tenant, model)
        self.route_name, self.policy_name = tables.policy.route, f"{tables.policy.route}/{tables.version}"
        self.currency = tables.currency.encode()
        old = {i: queue for i, queue in enumerate(self.waiting)}
        self.waiting = [
            old[i].resized(tables.limits.queue, len(tables.tenants)) if i in old
            else Waiting(tables.limits.queue, len(tables.tenants))
            for i in range(len(tables.models))
        ]  # fmt: skip
        self._lines()

    def _lines(self) -> None:
        """Prepare what names each replica: header lines, and the fields of its rows; and what a token costs there."""
        tables = self.tables
        self.lines = []
        self._rows: dict[int, SettleRow] = {}
        self.rates = [Rates(tables.deployments[row.deployment_i], tables.sites[row.site_i]) for row in tables.replicas]
        for r, row in enumerate(tables.replicas):
            site, deployment = tables.sites[row.site_i], tables.deployments[row.deployment_i]
            digest = self.endpoints.digests[r] if r < len(self.endpoints.digests) else ""
            digest = digest or tables.models[deployment.model_i].digest
            lines = (
                f"x-baseload-site: {site.name}\r\nx-baseload-jurisdiction: {site.jurisdiction}\r\n"
                f"x-baseload-replica: {self.door.name(r)}\r\nx-baseload-engine: {deployment.kind}\r\n"
            )
            lines += f"x-baseload-model-digest: {digest or 'unknown'}\r\n"
            self.lines.append(lines.encode("latin-1", "replace"))

    def reload(self, tables: Tables, board: Board | None = None) -> None:
        """Take new tables, and a larger board where they need one; what runs goes on as it began.

        Rows stay where they were (`succession.py`), so a request under way still means the replica it was sent to.
        """
        if board is not None:
            board.counters[self.worker][:] = self.counters  # ours alone to write
            self.board, self.counters = board, board.counters[self.worker]
        self.door.reload(tables, board)
        self.purse.reload(tables)
        more = tables.replicas[len(self.pool.places) :]
        self.pool.places += [None] * len(more)
        names = [tables.deployments[row.deployment_i].key_env for row in more]
        self.pool.keys += [os.environ.get(name, "") if name else "" for name in names]
        self._take(tables)
        self.endpoint_seen = -1

    def look_at_endpoints(self) -> None:
        """Read where replicas answer, if that has changed."""
        version = self.board.head[H_ENDPOINTS]
        if version == self.endpoint_seen:
            return
        try:
            self.endpoints = msgspec.json.decode((self.folder / "endpoints.json").read_bytes(), type=Endpoints)
        except (OSError, msgspec.DecodeError):
            self.faults += 1
            return
        self.endpoint_seen = version
        urls = self.endpoints.urls + [None] * (len(self.tables.replicas) - len(self.endpoints.urls))
        self.pool.set_urls(urls)
        self.door.set_endpoints(urls)
        self._lines()

    # ---- what relays ask ---------------------------------------------------------------------------------------------

    def count(self, name: str, n: int = 1) -> None:
        """Add to one of this worker's counters on the board."""
        self.counters[COUNTER_I[name]] += n

    def why(self, replica: int) -> str:
        """Say why the last decision fell on a replica: in full now and then, else in a word."""
        now_s = monotonic()
        if now_s - self._why_s >= WHY_EVERY_S:
            self._why_s = now_s
            return self.door.why(replica)
        return self.route_name

    def served_model(self, replica: int) -> str:
        """Return the engine's own name of its model, '' where it is the one that tenants call."""
        return self.served[replica]

    def replica_lines(self, replica: int) -> bytes:
        """Return the header lines that name a replica."""
        return self.lines[replica] if 0 <= replica < len(self.lines) else b""

    def no_such_model(self, name: str) -> Problem:
        """Return what a client hears of a model that it may not call, or that is not there."""
        shown = name[:100].encode("ascii", "replace").decode()
        return Problem(404, "model_not_found", f"the model `{shown}` does not exist, or you may not use it", "model")

    def room(self, model_i: int) -> None:
        """A request ended: let the next one go that waits for the model."""
        queue = self.waiting[model_i] if model_i < len(self.waiting) else None
        if queue is not None and len(queue):
            now_s = monotonic()
            item = queue.pop(now_s)
            for late in queue.shed(now_s):
                late.shed()
            if item is not None:
                item.go()

    def row(self, replica: int, tenant_i: int) -> SettleRow:
        """Return a row with what is the same for all requests of a tenant at a replica."""
        kind = tenant_i * len(self.rates) + replica if replica >= 0 else ~tenant_i
        known = self._rows.get(kind)
        if known is None:
            known = self._rows[kind] = self._first_row(replica, tenant_i)
        made: SettleRow = known.__copy__()  # type: ignore[attr-defined]  # msgspec does not tell its stubs
        return made

    def _first_row(self, replica: int, tenant_i: int) -> SettleRow:
        tables = self.tables
        row = SettleRow(request_id=0, at_ns=0, tenant="", key="", policy=self.policy_name)
        if 0 <= tenant_i < len(tables.tenants):
            row.region = tables.regions[self.regions[tenant_i]]
        if not 0 <= replica < len(tables.replicas):
            return row
        place = tables.replicas[replica]
        deployment, site = tables.deployments[place.deployment_i], tables.sites[place.site_i]
        row.deployment, row.site, row.jurisdiction, row.replica_i = (
            deployment.name, site.name, site.jurisdiction, replica,
        )  # fmt: skip
        digests = self.endpoints.digests
        digest = digests[replica] if replica < len(digests) else ""
        row.model_digest = digest or tables.models[deployment.model_i].digest
        return row

    def fill(self, row: SettleRow, replica: int, prices: tuple[int, int, int] | None, seconds: float) -> None:
        """Fill in what a request costs its tenant (at the prices it was opened at) and its owner, its energy and carbon."""
        cached, fresh = row.cached_tokens, row.input_tokens - row.cached_tokens
        if prices is not None:
            input_pico, cached_pico, output_pico = prices
            row.price_nano = (fresh * input_pico + cached * cached_pico + row.output_tokens * output_pico) // 1000
        if 0 <= replica < len(self.rates):
            site_i = self.tables.replicas[replica].site_i
            board = self.board
            self._done = done = self.rates[replica].account(
                fresh, row.output_tokens, seconds, board.carbon_g_per_kwh[site_i], board.price_per_kwh[site_i]
            )
            row.cost_nano = int(done.cost * 1e9 + 0.5)
            row.energy_mj = int(done.energy_wh * 3.6e6 + 0.5)
            row.carbon_ug = int(done.carbon_g * 1e6 + 0.5)

    def members(self, row: SettleRow, tenant_i: int) -> bytes:
        """Return what `usage` gains, for the row that was filled in last."""
        return energy.usage_fields(self._done, row.price_nano / 1e9, self.currency)

    def settle(self, opened: Opened, row: SettleRow) -> None:
        """Hand a row to the purse; nothing that goes wrong there may end a connection."""
        try:
            self.purse.settle(opened, row)
        except Exception:
            self.faults += 1
            raise

    # ---- time --------------------------------------------------------------------------------------------------------

    def sweep(self) -> None:
        """Look after everything that has a time limit."""
        now_s = monotonic()
        for client in list(self.clients):
            if (
                now_s >= client.due_s
                or now_s >= client.half_s
                or client.settling
                or (client.relay is not None and now_s >= client.relay_due_s())
            ):
                client.late(now_s)
        for queue in self.waiting:
            if now_s >= queue.next_deadline_s():
                for late in queue.shed(now_s):
                    late.shed()
        for model_i, queue in enumerate(self.waiting):
            if len(queue):
                self.room(model_i)  # a replica may have come up
        self.pool.sweep(now_s)

    def stats(self) -> dict[str, float]:
        """Return what the owner adds up over workers."""
        return {
            "connections": float(len(self.clients)),
            "streams": float(sum(1 for client in self.clients if client.relay is not None)),
            "waiting": float(sum(len(queue) for queue in self.waiting)),
            "faults": float(self.faults),
        }
