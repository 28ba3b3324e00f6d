"""What the control listener asks of the owner, answered from the owner's parts (`web/view.py`: OwnerView).

Once a second the snapshot is made anew; everything else is asked for and answered. Money, keys and ledger are the owner's;
engines the housekeeper's; nothing is decided here.
"""

from __future__ import annotations

import asyncio
import time
from collections import deque
from collections.abc import Sequence
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

import msgspec

from baseload.app import live_tally, live_view
from baseload.app.web import view
from baseload.errors import BaseloadError, InputError
from baseload.ports import KeyRecord
from baseload.records import REASON_NAMES
from baseload.serve import reconcile as rc
from baseload.serve.overview import receipt_of
from baseload.serve.rows import ControlRow, SettleRow, settled

if TYPE_CHECKING:
    from baseload.app.owner_main import House
    from baseload.serve.tables import Tables

NS = 1_000_000_000
STATES: dict[int, view.ReplicaState] = {
    rc.ABSENT: "parked", rc.STARTING: "starting", rc.UP: "up", rc.UNHEALTHY: "down", rc.DRAINING: "draining",
    rc.EXITED: "down",
}  # fmt: skip
BUDGET_WARN_RATIO = 0.9
POWER_WARN_RATIO = 1.0


class View:
    """`OwnerView` over a House."""

    def __init__(self, house: House) -> None:
        self.house = house
        self.points: dict[str, deque[tuple[int, dict[str, float | None]]]] = {}
        self.since: dict[str, int] = {}  # when an alarm began, by what it is about
        self.alarms_now: list[view.Alarm] = []
        self.checkpoint_ns: int | None = None
        self.taken = self.shown = self._take()

    async def loop(self) -> None:
        """Make the snapshot anew, every second."""
        while True:
            await asyncio.sleep(1.0)
            self.taken = self._take()
            self._remember()

    async def watch_checkpoints(self) -> None:
        """Look now and then when the newest checkpoint was signed, in a thread: a database may be away."""
        while True:
            try:
                found = await asyncio.get_running_loop().run_in_executor(None, self.house.ledger.checkpoint)
                self.checkpoint_ns = int(found.time_ns)
            except BaseloadError:
                self.checkpoint_ns = None
            await asyncio.sleep(5.0)

    # ---- the snapshot ------------------------------------------------------------------------------------------------

    def _take(self) -> view.Snapshot:
        house = self.house
        at_ns = time.time_ns()
        seen = house.owner.snapshot()
        board, keeper, tables, rows = house.board, house.keeper, house.live.tables, house.rows
        outstanding = board.totals("outstanding")
        facts = [self._replica(r, outstanding[r]) for r in rows.replicas]
        metered = keeper.metered()
        power = [metered[i] for i in rows.sites]
        workers = [worker for worker in seen["workers"] if worker["connected"]]
        spent = {row["tenant"]: row["spent_nano"] / NS for row in seen["tenants"] if row["tenant"]}
        self.alarms_now = self._alarms(at_ns, seen, power, facts, spent)
        counters = board.counted()
        return live_view.snapshot(
            house.live,
            house.fixed,
            house.tally,
            live_view.Facts(
                at_ns=at_ns,
                replicas=facts,
                site_power_kw=[one.power_kw for one in power],
                site_limit_kw=[row.limit_kw for row in tables.sites],
                carbon_g_per_kwh=[float(board.carbon_g_per_kwh[i]) for i in rows.sites],
                price_per_kwh=[float(board.price_per_kwh[i]) for i in rows.sites],
                closed={
                    key.removeprefix("site/"): why for key, why in keeper.closed.items() if key.startswith("site/")
                },
                workers_up=len(workers),
                workers=house.config.workers,
                streams_open=int(seen["stats"].get("streams", sum(outstanding))),
                waiting=int(seen["stats"].get("waiting", 0)),
                counters=counters,
                ledger=view.LedgerNow(
                    available=bool(seen["storage_ok"]),
                    rows_total=int(seen["rows_stored"]),
                    checkpoint_ns=self.checkpoint_ns,
                    fault="" if seen["storage_ok"] else (seen["faults"] or ["not writable"])[-1],
                ),
                spent_month=spent,
                recent=[],  # they are read when somebody looks
                alarms=self.alarms_now,
                draining=house.draining,
                reload_fault=house.reload_fault,
                idle_cost_per_s=self._standing_per_s(facts),
            ),
            house.started_ns,
        )

    def _standing_per_s(self, facts: Sequence[live_view.ReplicaFact]) -> float:
        tables: Tables = self.house.live.tables
        return sum(
            tables.deployments[row.deployment_i].idle_cost_per_s
            for row, fact in zip(tables.replicas, facts, strict=True)
            if fact.state != "parked"
        )

    def _replica(self, r: int, outstanding: int) -> live_view.ReplicaFact:
        place = self.house.keeper.places[r]
        looked = place.looked
        return live_view.ReplicaFact(
            state=STATES[place.seen.phase],
            name=self.house.keeper.name(r),
            reason=place.why,
            restarts=max(0, place.restarts),
            kv_free=looked.kv_free if looked is not None and looked.kv_free >= 0.0 else None,
            running=max(0, looked.running) if looked is not None else 0,
            waiting=max(0, looked.waiting) if looked is not None else 0,
            outstanding=outstanding,
        )

    def _recent(self) -> list[view.RecentRequest]:
        return [self._request(row) for row in self.house.owner.recent(view.RECENT_MAX)]

    def _request(self, row: SettleRow) -> view.RecentRequest:
        tables = self.house.rows.tables
        ttft_s, _ = live_tally.latencies(row)
        replica, kind = "", "emulated"
        if 0 <= row.replica_i < len(tables.replicas):
            replica = self.house.keeper.name(row.replica_i)
            kind = tables.deployments[tables.replicas[row.replica_i].deployment_i].kind
        outcome = live_tally.outcome_of(row)
        return view.RecentRequest(
            at_ns=row.arrival_ns,
            request_id=f"req-{row.request_id:016x}",
            tenant=self.house.tally.names.get(row.tenant, row.tenant),
            model=row.model,
            outcome=next(one for one in view.OUTCOMES if one == outcome),
            status=row.client_status,
            reason=REASON_NAMES[row.reason] if 0 < row.reason < len(REASON_NAMES) else "",
            site=row.site,
            jurisdiction=row.jurisdiction,
            replica=replica,
            kind="external" if kind == "external" else "embedded" if kind == "embedded" else "emulated",
            why=row.why,
            n_tries=row.n_tries,
            input_tokens=row.input_tokens,
            cached_tokens=row.cached_tokens,
            output_tokens=row.output_tokens,
            ttft_s=ttft_s,
            duration_s=(row.finish_ns - row.arrival_ns) / NS if row.finish_ns > 0 else None,
            price=row.price_nano / NS,
            energy_wh=row.energy_mj / 3.6e6,
        )

    # ---- alarms --------------------------------------------------------------------------------------------------------

    def _alarms(
        self, at_ns: int, seen: dict[str, Any], power: Sequence[Any], facts: Sequence[live_view.ReplicaFact],
        spent: dict[str, float],
    ) -> list[view.Alarm]:  # fmt: skip
        """Return what a person should look at now; each begins when it is first seen."""
        house, tables = self.house, self.house.live.tables
        found: list[tuple[view.AlarmKind, bool, str, str, dict[str, float | None]]] = []
        if not seen["storage_ok"]:
            found.append(
                ("ledger", True, "ledger", "the ledger cannot be written: nothing new is admitted until it can", {})
            )
        for site, one in zip(tables.sites, power, strict=True):
            if site.limit_kw is not None and one.power_kw > POWER_WARN_RATIO * site.limit_kw:
                what = f"{site.name} draws {one.power_kw:.1f} kW at the equipment, and {site.limit_kw:.1f} may be drawn"
                found.append(("power", False, site.name, what, {}))
        for r, fact in zip(house.rows.replicas, facts, strict=True):
            if fact.state == "down":
                name = house.keeper.name(r)
                found.append(("replica", False, name, f"{name} is down: {fact.reason}; it is started again", {}))
        up = sum(1 for worker in seen["workers"] if worker["connected"])
        if up < house.config.workers:
            what = f"{house.config.workers - up} of {house.config.workers} gateway workers are not there"
            found.append(("worker", True, "workers", what, {}))
        for row in tables.tenants:
            budget = row.budget_per_month_nano
            if budget and spent.get(row.name, 0.0) > BUDGET_WARN_RATIO * budget / NS:
                share = spent[row.name] / (budget / NS)
                found.append(
                    ("budget", False, row.name, f"{row.name} has spent {share:.0%} of this month's budget", {})
                )
        if house.reload_fault:
            found.append(("fleet", False, "fleet file", f"the fleet file on disk is refused: {house.reload_fault}", {}))
        for alarm in house.drift_alarms():
            found.append(alarm)
        keys = {f"{kind}/{subject}" for kind, _, subject, _, _ in found}
        self.since = {key: began for key, began in self.since.items() if key in keys}
        return [
            view.Alarm(
                kind=kind,
                level="critical" if critical else "warning",
                what=what,
                since_ns=self.since.setdefault(f"{kind}/{subject}", at_ns),
                subject=subject,
                **numbers,
            )
            for kind, critical, subject, what, numbers in found
        ]

    # ---- history -------------------------------------------------------------------------------------------------------

    def _remember(self) -> None:
        at_s = self.taken.at_ns // NS
        self._point("", at_s, live_view.series_point(self.taken))
        for site in self.taken.sites:
            self._point(f"site/{site.name}", at_s, live_view.site_point(site))
        for tenant in self.taken.tenants:
            self._point(f"tenant/{tenant.name}", at_s, live_view.tenant_point(tenant))

    def _point(self, scope: str, at_s: int, columns: dict[str, float | None]) -> None:
        points = self.points.setdefault(scope, deque(maxlen=view.SERIES_S))
        if not points or points[-1][0] < at_s:
            points.append((at_s, columns))

    # ---- OwnerView -----------------------------------------------------------------------------------------------------

    def snapshot(self) -> view.Snapshot:
        """Return the newest snapshot, and with it the newest requests."""
        if self.shown.at_ns != self.taken.at_ns:
            self.shown = msgspec.structs.replace(self.taken, recent=self._recent())
        return self.shown

    def series(self, scope: str) -> view.Series | None:
        """Return the last minutes of a scope."""
        points = self.points.get(scope)
        if points is None:
            return view.Series() if scope == "" else None
        return view.Series(
            at_s=[at_s for at_s, _ in points],
            columns={name: [columns.get(name) for _, columns in points] for name in view.SERIES_COLUMNS},
        )

    def ready(self) -> str:
        """Return '' when requests are served, else why not."""
        if self.house.draining:
            return "draining"
        if not self.house.owner.journal.ok:
            return "the ledger cannot be written"
        if self.house.keeper.n_up == 0:
            return "no engine answers yet"
        return ""

    def token_digest(self, secret: bytes) -> bytes:
        """Return the digest of a control token under the newest pepper that knows it."""
        peppers = self.house.keyring.peppers
        for _, digest in peppers.digests(secret):
            if self.house.accounts.token_by_digest(digest, time.time_ns()) is not None:
                return digest
        return peppers.digest(secret, peppers.newest)

    def staff(self, digest: bytes) -> view.Staff | None:
        """Return who holds a control token."""
        record = self.house.accounts.token_by_digest(digest, time.time_ns())
        if record is None:
            return None
        role = next(one for one in ("tenant", *view.ROLES) if one == record.role)
        return view.Staff(name=record.name or f"token-{record.token_i}", role=role, tenant=record.tenant)

    async def keys(self) -> Sequence[view.KeyRow]:
        """Return every data key, without secrets."""
        return [self._key(record) for record in self.house.keyring.list()]

    def _key(self, record: KeyRecord) -> view.KeyRow:
        return view.KeyRow(
            key_id=str(record.key_i),
            tenant=record.tenant,
            name=record.name,
            created_ns=record.created_ns,
            expires_ns=record.expires_ns,
            revoked_ns=record.revoked_ns,
            budget=None if record.budget_nano is None else record.budget_nano / NS,
            spent=self._spent_nano(record) / NS,
            rpm=record.rpm,
            tpm=record.tpm,
            concurrency=record.concurrency,
        )

    def _spent_nano(self, record: KeyRecord) -> int:
        account = self.house.owner.bank.keys.get(record.key_i)
        if account is not None:
            return account.spent_nano
        return self.house.owner.clientele.spent_of(record.pseudonym)

    async def create_key(self, wanted: view.NewKey) -> view.MadeKey:
        """Make a data key for a tenant of the fleet file."""
        known = [row.name for row in self.house.live.tables.tenants]
        if wanted.tenant not in known:
            raise InputError(f"tenant: the fleet file has no `{wanted.tenant[:80]}`; it has {', '.join(known[:20])}")
        now_ns = time.time_ns()
        made = self.house.keyring.create(
            wanted.tenant, now_ns=now_ns, name=wanted.name,
            budget_nano=None if wanted.budget is None else round(wanted.budget * NS),
            rpm=wanted.rpm, tpm=wanted.tpm, concurrency=wanted.concurrency,
            expires_ns=None if wanted.expires_s is None else now_ns + round(wanted.expires_s * NS),
        )  # fmt: skip
        return view.MadeKey(key=self._key(made.record), secret=made.secret)

    async def revoke_key(self, key_id: str) -> bool:
        """Revoke a data key, streams included."""
        if not key_id.isascii() or not key_id.isdigit() or self.house.accounts.key(int(key_id)) is None:
            return False
        self.house.owner.revoke(int(key_id))
        return True

    async def usage(self, tenant: str | None, since_ns: int | None) -> Sequence[view.UsageRow]:
        """Return what was used, by tenant and model."""
        names = self.house.accounts.tenants()
        first = datetime.now(UTC).replace(day=1, hour=0, minute=0, second=0, microsecond=0)
        start_ns = since_ns if since_ns is not None else round(first.timestamp()) * NS
        return await asyncio.get_running_loop().run_in_executor(None, self._usage, tenant, start_ns, names)

    def _usage(self, tenant: str | None, since_ns: int, names: dict[str, str]) -> list[view.UsageRow]:
        sums: dict[tuple[str, str], list[int]] = {}
        for row in settled(kept.body for kept in self.house.ledger.rows()):
            name = names.get(row.tenant, row.tenant)
            if row.at_ns < since_ns or (tenant is not None and name != tenant):
                continue
            one = sums.setdefault((name, row.model), [0] * 8)
            for i, n in enumerate(
                (1, row.input_tokens, row.cached_tokens, row.output_tokens, row.price_nano, row.cost_nano,
                 row.energy_mj, row.carbon_ug)
            ):  # fmt: skip
                one[i] += n
        return [
            view.UsageRow(
                tenant=name, model=model, requests=n[0], input_tokens=n[1], cached_tokens=n[2], output_tokens=n[3],
                price=n[4] / NS, cost=n[5] / NS, energy_wh=n[6] / 3.6e6, carbon_g=n[7] / 1e6,
            )
            for (name, model), n in sorted(sums.items())
        ]  # fmt: skip

    async def receipt(self, request_id: str, tenant: str | None = None) -> Any:
        """Return a request's receipt as JSON-able data; None: no such request, or none of that tenant's."""
        try:
            number = int(request_id.removeprefix("req-"), 16)
        except ValueError:
            return None
        if not 0 < number < 1 << 63:
            return None
        loop, ledger = asyncio.get_running_loop(), self.house.ledger
        if tenant is None:
            blob = await loop.run_in_executor(None, ledger.receipt, number)
        else:
            stands_for = {name: pseudonym for pseudonym, name in self.house.accounts.tenants().items()}.get(tenant, "")
            blob = await loop.run_in_executor(None, receipt_of, ledger, number, stands_for)
        return None if blob is None else msgspec.json.decode(blob)

    async def reload(self) -> view.Reloaded:
        """Read the fleet file again; the last good one is kept."""
        problems = await self.house.reload("control")
        return view.Reloaded(version=self.house.version, problems=problems)

    async def drain(self, order: view.DrainOrder) -> str:
        """Let something take no new requests, or take them again."""
        house = self.house
        if order.what == "gateway":
            house.draining = order.on
            house.keeper.drain("gateway/", order.on)
            return "the gateway takes nothing new" if order.on else "the gateway takes requests again"
        tables = house.live.tables
        known = {
            "site": [row.name for row in tables.sites],
            "deployment": [row.name for row in tables.deployments],
            "replica": [house.keeper.name(r) for r in house.rows.replicas],
        }[order.what]
        if order.name not in known:
            raise InputError(f"there is no {order.what} `{order.name[:120]}`; there is {', '.join(known[:10])}")
        house.keeper.drain(f"{order.what}/{order.name}", order.on)
        return f"{order.name} takes {'nothing new' if order.on else 'requests again'}"

    async def audit(self, entry: view.Audit) -> None:
        """Write an admin action to the ledger; raises BaseloadError where that cannot be done."""
        done: asyncio.Future[bool] = asyncio.get_running_loop().create_future()
        row = ControlRow(
            at_ns=time.time_ns(), action=f"{entry.action} {entry.outcome}", who=entry.actor, note=entry.subject[:200]
        )

        def stored_is(ok: bool) -> None:
            if not done.done():
                done.set_result(ok)

        self.house.owner.record(row, stored_is)
        try:
            stored = await asyncio.wait_for(done, 5.0)
        except TimeoutError:
            stored = False
        if not stored:
            raise BaseloadError("the ledger cannot be written, so nothing is changed; mend the storage and try again")
