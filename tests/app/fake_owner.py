"""A fake owner with plausible figures that move: for the control listener's tests, and to look at the page.

`python -m tests.app.fake_owner [--port 8081] [--sites 3] [--replicas 12] [--empty]` serves the page on loopback.
"""

from __future__ import annotations

import argparse
import asyncio
import hashlib
import hmac
import math
import time
from collections.abc import Sequence
from typing import Any

import msgspec

from baseload.app.web.view import (
    SERIES_COLUMNS,
    TPOT_EDGES_S,
    TTFT_EDGES_S,
    Alarm,
    Audit,
    DrainOrder,
    ErrorNow,
    KeyRow,
    LedgerNow,
    MadeKey,
    NewKey,
    RecentRequest,
    Reloaded,
    ReplicaNow,
    Series,
    SiteNow,
    Snapshot,
    Staff,
    TenantNow,
    Totals,
    UsageRow,
)
from baseload.errors import BaseloadError, InputError, Problem
from baseload.report.model import Step

PEPPER = b"a pepper for tests"
TOKENS = {"viewer": "ct-viewer-" + "a" * 43, "operator": "ct-operator-" + "b" * 43, "admin": "ct-admin-" + "c" * 43}
TENANT_TOKENS = {"acme": "ct-tenant-" + "d" * 43, "lab": "ct-tenant-" + "e" * 43}
CANARY = "the canary prompt of nobody"
PLACES = (
    ("frankfurt", "Germany", 50.1, 8.7, "DE", "DE"),
    ("oslo", "Norway", 59.9, 10.8, "NO", "NO"),
    ("madrid", "Spain", 40.4, -3.7, "ES", "US"),
    ("lulea", "Sweden", 65.6, 22.2, "SE", "SE"),
    ("dublin", "Ireland", 53.3, -6.3, "IE", "US"),
    ("warsaw", "Poland", 52.2, 21.0, "PL", "PL"),
    ("milan", "Italy", 45.5, 9.2, "IT", "IT"),
    ("paris", "France", 48.9, 2.3, "FR", "FR"),
)
RUNGS = (
    ("announced", 1.0, ""),
    ("contracted", 0.5, "announced, but no grid agreement is signed"),
    ("energised", 0.25, "contracted, but power does not flow yet"),
    ("coolable", 0.19, "kept spare by redundancy N+1"),
    ("racked", 0.14, "could be powered and cooled, but no rack stands there"),
    ("healthy", 0.135, "failed, or being repaired"),
    ("within SLO", 0.09, "beyond the load at which every SLO is met"),
    ("sold", 0.024, "could be served within it, but nobody bought it"),
)


def wave(at_s: float, phase: float = 0.0) -> float:
    """Return something between 0.6 and 1.4 that moves without dice."""
    return (
        1.0
        + 0.25 * math.sin(at_s / 97.0 + phase)
        + 0.1 * math.sin(at_s / 11.0 + 3.0 * phase)
        + 0.05 * math.sin(at_s / 2.3)
    )


def ladder(announced_mw: float, sold: float) -> list[Step]:
    """Return a ladder that ends in what is sold."""
    steps, above = [], announced_mw
    for name, share, reason in RUNGS:
        mw = announced_mw * (share * sold if name == "sold" else share)
        steps.append(
            Step(
                name=name,
                mw=mw,
                raw_mw=mw,
                lost_mw=max(0.0, above - mw),
                excess_mw=0.0,
                tokens_per_s=12.2e6 * mw,
                lost_tokens_per_s=12.2e6 * max(0.0, above - mw),
                excess_tokens_per_s=0.0,
                modelled=name not in ("within SLO", "sold"),
                reason=reason,
            )
        )
        above = mw
    return steps


class FakeOwner:
    """Implements OwnerView; what was asked of it is kept in `asked`."""

    def __init__(self, n_sites: int = 3, n_replicas: int = 12, n_tenants: int = 4, well: bool = False) -> None:
        self.n_sites, self.n_replicas, self.n_tenants, self.well = n_sites, n_replicas, n_tenants, well
        self.started_ns = time.time_ns() - 3_900 * 10**9
        self.tokens: dict[bytes, Staff] = {
            self.token_digest(secret.encode()): Staff(name=f"{role}-desk", role=role)  # type: ignore[arg-type]
            for role, secret in TOKENS.items()
        }
        for tenant, secret in TENANT_TOKENS.items():
            staff = Staff(name=f"{tenant}-desk", role="tenant", tenant=tenant)
            self.tokens[self.token_digest(secret.encode())] = staff
        self.asked: list[tuple[str, Any]] = []
        self.audits: list[Audit] = []
        self.held = [
            KeyRow(key_id="k1", tenant="acme", name="prod", created_ns=self.started_ns, budget=500.0, spent=120.5),
            KeyRow(key_id="k2", tenant="lab", name="trial", created_ns=self.started_ns),
        ]
        self.problems: list[Problem] = []
        self.audit_fails = False
        self.unready = ""
        self.extra_alarms: list[Alarm] = []
        self.now_ns: int | None = None  # stands still where given
        self._made: Snapshot | None = None

    # ---- what is now -------------------------------------------------------------------------------------

    def snapshot(self) -> Snapshot:
        """Return the second's snapshot."""
        at_ns = (self.now_ns or time.time_ns()) // 10**9 * 10**9
        if self._made is None or self._made.at_ns != at_ns or self._made.alarms != self._alarms(at_ns):
            self._made = self._make(at_ns)
        return self._made

    def _make(self, at_ns: int) -> Snapshot:
        at_s = at_ns / 1e9
        sites = [self._site(i, at_s) for i in range(self.n_sites)]
        tenants = [self._tenant(i, at_s) for i in range(self.n_tenants)] if self.n_sites else []
        rate = sum(one.requests_per_s for one in sites)
        tokens = sum(one.tokens_per_s for one in sites)
        return Snapshot(
            at_ns=at_ns,
            fleet="three-sites" if self.n_sites == 3 else f"fleet-of-{self.n_sites}",
            fleet_digest="9f2c41d07b6e" + "0" * 52,
            currency="EUR",
            baseload="0.1.0",
            tables_version=3,
            started_ns=self.started_ns,
            workers_up=2,
            workers=2,
            sites=sites,
            tenants=tenants,
            replicas=[self._replica(i, at_s) for i in range(self.n_replicas)],
            models=["chat", "code"],
            ladder=ladder(sum(one.ladder[0].mw for one in sites), wave(at_s)) if sites else [],
            errors=self._errors(at_ns),
            recent=self._recent(at_ns),
            alarms=self._alarms(at_ns),
            ledger=LedgerNow(rows_total=int(at_s) % 10**7, checkpoint_ns=at_ns),
            totals=Totals(
                requests_per_s=rate,
                input_tokens_per_s=0.8 * tokens,
                output_tokens_per_s=0.2 * tokens,
                refused_per_s=0.004 * rate,
                failed_per_s=0.0005 * rate,
                ttft_s_p50=0.1 * wave(at_s) if rate else None,
                ttft_s_p99=0.42 * wave(at_s, 1.0) if rate else None,
                tpot_s_p50=0.0178 if rate else None,
                tpot_s_p99=0.0313 * wave(at_s, 2.0) if rate else None,
                attainment_ratio=0.9991 if rate else None,
                streams_open=int(3 * rate),
                waiting=2 if rate else 0,
                revenue_per_h=1.6 * rate,
                cost_per_h=1.1 * rate,
                energy_cost_per_h=0.09 * rate,
                carbon_g_per_h=120.0 * rate,
                power_kw=sum(one.power_kw or 0.0 for one in sites) if sites else None,
                limit_kw=sum(one.limit_kw or 0.0 for one in sites) if sites else None,
                contract_kw=sum(one.contract_kw or 0.0 for one in sites) if sites else None,
                retries_total=41,
                upstream_total=91_233,
            ),
        )

    def _site(self, i: int, at_s: float) -> SiteNow:
        name, place, lat, lon, where, whose = PLACES[i % len(PLACES)]
        turn = i // len(PLACES)
        announced = 0.194 / (1 + i % 3)
        power_kw = 1000.0 * announced * 0.13 * wave(at_s, i)
        closed = not self.well and i == 7
        return SiteNow(
            name=name + (f"-{turn + 1}" if turn else ""),
            place=place,
            lat=lat + 0.7 * (turn % 5),
            lon=lon + 0.9 * (turn % 7),
            jurisdiction=where,
            operator_jurisdiction=whose,
            state="closed" if closed else "limited" if i == 1 and not self.well else "open",
            state_reason="grid outage"
            if closed
            else "curtailed to 60 % by the grid until 18:00"
            if i == 1 and not self.well
            else "",
            ladder=ladder(announced, wave(at_s, i)),
            requests_per_s=35.0 * wave(at_s, i) / (1 + i % 3),
            tokens_per_s=48_000.0 * wave(at_s, i) / (1 + i % 3),
            power_kw=power_kw,
            limit_kw=1000.0 * announced * (0.12 if i == 1 and not self.well else 0.25),
            contract_kw=1000.0 * announced * 0.5,
            carbon_g_per_kwh=(380.0, 18.0, 160.0)[i % 3],
            price_per_kwh=(0.12, 0.04, 0.09)[i % 3],
            energy_j_total=1e3 * power_kw * (at_s % 1e6),
            carbon_g_total=10.0 * (at_s % 1e6),
        )

    def _replica(self, i: int, at_s: float) -> ReplicaNow:
        site = PLACES[i % max(1, min(self.n_sites, len(PLACES)))][0]
        deployment = ("large-h100", "small-l40s", "mixture-h200")[i % 3]
        ejected = not self.well and i % 41 == 4
        down = not self.well and i % 59 == 7
        busy = int(6 * wave(at_s, i))
        return ReplicaNow(
            name=f"{deployment}/{site}/{i}",
            deployment=deployment,
            site=site,
            model=("chat", "code", "chat")[i % 3],
            accelerator=("h100-sxm", "l40s", "h200-sxm")[i % 3],
            kind=("external", "embedded", "emulated")[i % 3],  # type: ignore[arg-type]
            state="down" if down else "up",
            ejected=ejected,
            reason="no answer within 60 s; started again in 8 s"
            if down
            else "5 failures in a row; tried again in 12 s"
            if ejected
            else "",
            outstanding=0 if down else busy,
            running=0 if down else busy,
            waiting=i % 3,
            kv_free_ratio=0.2 + 0.6 * (i % 7) / 7.0,
            restarts_total=3 if down else 0,
            ejections_total=int(ejected),
        )

    def _tenant(self, i: int, at_s: float) -> TenantNow:
        name = ("public-sector", "acme", "newsroom", "lab")[i % 4] + (f"-{i // 4 + 1}" if i >= 4 else "")
        misses = not self.well and i == 1
        n = 1000 * (i + 1) + int(at_s) % 1000
        return TenantNow(
            name=name,
            requests_per_s=30.0 * wave(at_s, i) / (1 + i % 4),
            tokens_per_s=40_000.0 / (1 + i % 4),
            ttft_s_p50=0.09 * wave(at_s, i),
            ttft_s_p99=(0.62 if misses else 0.4) * wave(at_s, i),
            ttft_slo_s=0.5 if misses else 0.8,
            tpot_s_p50=0.018,
            tpot_s_p99=0.031 * wave(at_s, i),
            tpot_slo_s=0.05,
            attainment_ratio=0.972 if misses else 0.9991,
            attainment_promised_ratio=0.99,
            spent=(120.5, 472.0, 30.0, 0.0)[i % 4],
            budget=(None, 500.0, 2000.0, None)[i % 4],
            requests_total={"served": n, "refused": 7 * misses, "failed": 1},
            refused_total={"requests per minute": 5, "tenant's budget is spent": 2} if misses else {},
            slo_requests_total=n,
            slo_met_total=int(n * (0.972 if misses else 0.999)),
            input_tokens_total=1200 * n,
            cached_tokens_total=300 * n,
            output_tokens_total=200 * n,
            revenue_total=0.002 * n,
            ttft_s_counts=[n // 4, n // 4, n // 4, n // 8, 3, 2, 1, 0, 0, 0][: len(TTFT_EDGES_S) + 1],
            ttft_s_sum=0.12 * n,
            tpot_s_counts=[0, n // 2, n // 4, 9, 2, 1, 0, 0, 0][: len(TPOT_EDGES_S) + 1],
            tpot_s_sum=0.02 * n,
        )

    def _errors(self, at_ns: int) -> list[ErrorNow]:
        if self.well or not self.n_sites:
            return []
        return [
            ErrorNow(
                outcome="refused",
                reason="expected wait beyond the SLO",
                requests=61,
                tenants=["acme", "lab"],
                where=["madrid"],
                last_ns=at_ns - 9 * 10**9,
            ),
            ErrorNow(
                outcome="failed",
                reason="replica failed after the first token",
                requests=3,
                tenants=["newsroom"],
                where=["large-h100/frankfurt/4"],
                last_ns=at_ns - 301 * 10**9,
            ),
        ]

    def _recent(self, at_ns: int) -> list[RecentRequest]:
        if not self.n_sites:
            return []
        made = []
        for k in range(60):
            n = at_ns // 10**9 * 2 - k
            site = PLACES[n % min(self.n_sites, len(PLACES))]
            refused, failed = n % 23 == 0, n % 41 == 0
            deployment = ("large-h100", "small-l40s", "mixture-h200")[n % 3]
            made.append(
                RecentRequest(
                    at_ns=at_ns - k * 500_000_000,
                    request_id=f"req-{n:016x}",
                    tenant=("public-sector", "acme", "newsroom", "lab")[n % 4],
                    model="chat" if n % 3 else "code",
                    outcome="refused" if refused else "failed" if failed else "served",
                    status=429 if refused else 502 if failed else 200,
                    reason="expected wait beyond the SLO"
                    if refused
                    else "replica failed after the first token"
                    if failed
                    else "",
                    site="" if refused else site[0],
                    jurisdiction="" if refused else site[4],
                    replica="" if refused else f"{deployment}/{site[0]}/{n % 9}",
                    kind=("external", "embedded", "emulated")[n % 3],  # type: ignore[arg-type]
                    why="no replica would finish within the SLO; the best, oslo, in 1.9 s"
                    if refused
                    else (
                        "fewest outstanding (2); next: oslo/1 with 4",
                        "prefix of 12 blocks is cached here",
                        "law: DE alone; madrid left out (operator US)",
                    )[n % 3],
                    n_tries=2 if n % 17 == 0 else 1,
                    input_tokens=900 + n % 700,
                    output_tokens=0 if refused else 120 + n % 90,
                    ttft_s=None if refused else 0.08 + 0.01 * (n % 9),
                    duration_s=0.002 if refused else 2.0 + 0.1 * (n % 20),
                    price=None if refused else 0.0021 + 0.0001 * (n % 7),
                    energy_wh=0.3,
                )
            )
        return made

    def _alarms(self, at_ns: int) -> list[Alarm]:
        if self.well or not self.n_sites:
            return list(self.extra_alarms)
        since_ns = at_ns // 10**12 * 10**12
        return [
            Alarm(
                kind="divergence",
                level="warning",
                subject="large-h100 at frankfurt",
                what="TTFT p99 left the twin's band for 5 minutes; calibrate its speed.",
                since_ns=since_ns,
                measured=0.61,
                band_low=0.22,
                band_high=0.45,
            ),
            *self.extra_alarms,
        ]

    def series(self, scope: str) -> Series | None:
        """Return 15 minutes of the fleet, a site or a tenant."""
        known = {
            "",
            *(f"site/{one.name}" for one in self.snapshot().sites),
            *(f"tenant/{one.name}" for one in self.snapshot().tenants),
        }
        if scope not in known:
            return None
        until_s = self.snapshot().at_ns // 10**9
        at_s = list(range(until_s - 899, until_s + 1)) if self.n_sites else []
        phase = float(len(scope))
        size = {
            "requests_per_s": 105.0,
            "refused_per_s": 0.4,
            "failed_per_s": 0.05,
            "input_tokens_per_s": 115e3,
            "output_tokens_per_s": 29e3,
            "ttft_s_p50": 0.1,
            "ttft_s_p99": 0.42,
            "tpot_s_p50": 0.0178,
            "tpot_s_p99": 0.0313,
            "power_kw": 46.0,
            "revenue_per_h": 168.0,
            "cost_per_h": 115.0,
        }
        columns: dict[str, list[float | None]] = {
            name: [size[name] * wave(one, phase + k) for one in at_s]
            for k, name in enumerate(SERIES_COLUMNS)
            if name in size
        }
        columns["limit_kw"] = [88.0 if one % 900 < 500 else 64.0 for one in at_s]
        columns["contract_kw"] = [97.0 for _ in at_s]
        return Series(at_s=at_s, columns=columns)

    def ready(self) -> str:
        """Return why not, '' where it is ready."""
        return self.unready

    # ---- who -------------------------------------------------------------------------------------------------

    def token_digest(self, secret: bytes) -> bytes:
        """Return the digest."""
        return hmac.new(PEPPER, secret, hashlib.sha256).digest()

    def staff(self, digest: bytes) -> Staff | None:
        """Return who."""
        return self.tokens.get(digest)

    def revoke_token(self, role: str) -> None:
        """Forget a token."""
        del self.tokens[self.token_digest(TOKENS[role].encode())]

    # ---- what may be asked -----------------------------------------------------------------------------------

    async def keys(self) -> Sequence[KeyRow]:
        """Return the keys."""
        return self.held

    async def create_key(self, wanted: NewKey) -> MadeKey:
        """Make one."""
        self.asked.append(("create_key", wanted))
        if wanted.tenant == "unknown":
            raise InputError("tenant: unknown is not in the fleet file; write one of acme, lab")
        row = KeyRow(key_id=f"k{len(self.held) + 1}", tenant=wanted.tenant, name=wanted.name, budget=wanted.budget)
        self.held.append(row)
        return MadeKey(key=row, secret="bl-" + "s" * 43)

    async def revoke_key(self, key_id: str) -> bool:
        """Revoke one."""
        self.asked.append(("revoke_key", key_id))
        return any(one.key_id == key_id for one in self.held)

    async def usage(self, tenant: str | None, since_ns: int | None) -> Sequence[UsageRow]:
        """Return what was used."""
        rows = [
            UsageRow(
                tenant=name,
                model="chat",
                requests=10,
                input_tokens=9000,
                cached_tokens=100,
                output_tokens=800,
                price=1.2,
                cost=0.9,
                energy_wh=3.0,
                carbon_g=1.1,
            )
            for name in ("acme", "lab")
        ]
        return [row for row in rows if tenant in (None, row.tenant)]

    async def receipt(self, request_id: str, tenant: str | None = None) -> Any:
        """Return a receipt: the one request was acme's."""
        found = request_id == "req-0000000000000001" and tenant in (None, "acme")
        return {"request_id": request_id, "proof": []} if found else None

    async def reload(self) -> Reloaded:
        """Say how it went."""
        self.asked.append(("reload", None))
        return Reloaded(version=3 if self.problems else 4, problems=self.problems)

    async def drain(self, order: DrainOrder) -> str:
        """Say what holds."""
        self.asked.append(("drain", order))
        return f"{order.what} {order.name} takes {'no ' if order.on else ''}new requests"

    async def audit(self, entry: Audit) -> None:
        """Keep it."""
        if self.audit_fails:
            raise BaseloadError("the ledger takes no rows: disk full")
        self.audits.append(entry)


async def main() -> None:
    """Serve the page."""
    from baseload.app.web.control import make_app
    from baseload.app.web.server import ControlServer, bound_socket

    parser = argparse.ArgumentParser()
    parser.add_argument("--port", type=int, default=0)
    parser.add_argument("--sites", type=int, default=3)
    parser.add_argument("--replicas", type=int, default=12)
    parser.add_argument("--tenants", type=int, default=4)
    parser.add_argument("--well", action="store_true")
    args = parser.parse_args()
    sock = bound_socket("127.0.0.1", args.port)
    port = sock.getsockname()[1]
    owner = FakeOwner(args.sites, args.replicas, args.tenants, args.well)
    app = make_app(owner, allowed_hosts=[f"127.0.0.1:{port}", f"localhost:{port}"], open_role="viewer")
    server = ControlServer(app, sock)
    await server.start()
    print(f"http://127.0.0.1:{port}/ snapshot of {len(msgspec.json.encode(owner.snapshot()))} bytes", flush=True)
    try:
        await asyncio.sleep(3600.0)
    finally:
        await server.stop()


if __name__ == "__main__":
    asyncio.run(main())
