"""The table of what one replica carries, measured in the twin: each promise on each accelerator that it could run on.

A rate is found at the percentile that the promise names, with the service's own lengths and the fleet's own rules, for one
replica and for a few together. What was measured before is kept beside the plan by a hash of the question, so that a
what-if measures only what it changes. One run of the twin is `replica_probe.py`; the record is `plan/table.py`.
"""

from __future__ import annotations

import os
import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from math import ceil, inf
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec

from baseload import jit
from baseload.errors import CatalogError, FleetError
from baseload.fleet import catalog, dates
from baseload.fleet.load import Loaded
from baseload.fleet.model import Deployment, Fleet, Slo
from baseload.fleet.planning import Plan
from baseload.fleet.resolve import accelerator_id
from baseload.plan.table import ReplicaRow, ReplicaTable, service_name
from baseload.policies import ROUTE

if TYPE_CHECKING:
    from baseload.adapters.traces import Trace, TraceSource
    from baseload.app.replica_probe import Found, Question
    from baseload.simulate.engines import DeployedEngine

SAMPLE_ROWS = 20_000
LEAST_SAMPLE = 300  # of a service's own requests, below which those of its model, then all, stand for it
MOST_TOGETHER = 8
ENOUGH_RATIO = 0.4  # of its limit that a replica carries with the promise kept: a larger one would gain little
MOST_NETWORK_RATIO = 0.5  # of the promised TTFT that the round trip may take, unless nothing nearer may serve
CACHE_FILE = "measured.json"
WINDOW_S = 1.0  # in which short bursts are counted

Say = Callable[[str], None]


@dataclass(frozen=True, slots=True, kw_only=True)
class Demand:
    """The fleet's requests as the twin would see them: a mixed sample, its rate, and how uneven it is from second to second."""

    sample: Trace
    requests_per_s: float
    dispersion: float  # variance over mean of counts a second, slow waves left out; 1: Poisson
    name: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    """A deployment's settings to be measured, and the name it has in the file, if it is there."""

    name: str | None
    deployment: Deployment
    engine: DeployedEngine


@dataclass(frozen=True, slots=True)
class Bench:
    """Measures rows; answers that are known are not measured again."""

    fleet: Fleet
    demand: Demand
    seed: int
    memory: _Memory

    def row(self, model: str, slo: Slo, names: tuple[str, ...], kind: str, network_ms: float) -> ReplicaRow | None:
        """Return what a replica of a model carries on an accelerator; None where it does not fit."""
        return _best(self.fleet, model, slo, names, kind, network_ms, self.demand, self.seed, self._found)

    def _found(self, asked: Question) -> Found:
        from baseload.app.replica_probe import highest_rate

        key = asked.digest()
        return self.memory.get(key) or self.memory.put(key, highest_rate(asked))


def bench(loaded: Loaded, fleet: Fleet, *, seed: int = 0, cache: Path | None = None) -> Bench:
    """Return a bench for a fleet, with the demand of the file; `cache` as for `replica_table`."""
    jit.enable()  # before the twin is imported
    _own_rules(loaded)
    return Bench(fleet, demand_sample(loaded, seed), seed, _Memory(cache))


def replica_table(loaded: Loaded, *, seed: int = 0, cache: Path | None = None, say: Say | None = None) -> ReplicaTable:
    """Return a row for each promise and each accelerator that stands, may be bought or may be rented, where it fits.

    `cache` is a folder: what was measured is read from and written to `measured.json` there.
    """
    jit.enable()  # before the twin is imported
    from baseload.app import plan_demand, plan_rent

    plan = loaded.fleet.plan or Plan()
    fleet = plan_rent.with_rent(loaded.fleet, plan_rent.offers(loaded.fleet, plan))
    with _interrupts_at_once(lambda: None):
        meter = bench(loaded, fleet, seed=seed, cache=cache)
    rows: list[ReplicaRow] = []
    kinds = accelerators(fleet, plan)
    with _interrupts_at_once(meter.memory.write):
        for model, slo, names in plan_demand.promises(loaded.fleet):
            network_ms = network_budget_ms(fleet, names, slo)
            for kind in kinds:
                row = meter.row(model, slo, names, kind, network_ms)
                if row is not None:
                    rows.append(row)
                    if say is not None:
                        say(f"{row.service} on {kind}: {row.requests_per_s:.3g} requests/s a replica")
    meter.memory.write()
    return ReplicaTable.of(rows, seed=seed)


@contextmanager
def _interrupts_at_once(keep: Callable[[], None]) -> Iterator[None]:
    """Let Ctrl-C end this at once, whoever else listens for it: there is no plan yet to lose. What was measured is kept."""
    pressed: list[int] = []

    def press(number: int, frame: object) -> None:
        pressed.append(number)
        raise KeyboardInterrupt

    try:
        before = signal.signal(signal.SIGINT, press)
    except ValueError:  # not in the main thread
        yield
        return
    try:
        yield
    except (Exception, KeyboardInterrupt) as error:
        if not pressed:
            raise
        keep()
        raise KeyboardInterrupt from error  # a compiler or a library may have made something else of it
    finally:
        signal.signal(signal.SIGINT, before)


def accelerators(fleet: Fleet, plan: Plan) -> tuple[str, ...]:
    """Return the accelerators that stand, may be bought, or may be rented, by catalogue id."""
    from baseload.app import plan_kinds, plan_rent

    standing = [rack.accelerator for site in fleet.sites.values() for rack in site.racks.values()]
    bought = [one.accelerator for one in plan_kinds.buys(fleet, plan)]
    rented = [one.accelerator for one in plan_rent.offers(fleet, plan)]
    return tuple(dict.fromkeys(accelerator_id(name) for name in (*standing, *bought, *rented)))


def network_budget_ms(fleet: Fleet, names: tuple[str, ...], slo: Slo) -> float:
    """Return the round trip that is taken out of the TTFT promise: the longest that any allowed site needs.

    No more than half of the promise, unless even the nearest site of some users is farther than that.
    """
    from baseload.app import plan_demand
    from baseload.fleet.check_service import may_serve
    from baseload.simulate.setup import _Rtt

    rtt, door = _Rtt(fleet), fleet.gateway.site or next(iter(fleet.sites))
    everyone = plan_demand.tenants(fleet)
    ways: list[list[float]] = []
    for client in plan_demand.clients(fleet):
        if client.tenant not in names:
            continue
        first = rtt.between(client.region, door) if client.region else 0.0
        sites = [name for name in fleet.sites if may_serve(fleet, everyone[client.tenant], name)]
        ways.append(sorted(first + rtt.between(door, name) for name in sites))
    nearest = max((way[0] for way in ways if way), default=0.0)
    near = [ms for way in ways for ms in way if ms <= MOST_NETWORK_RATIO * slo.ttft_ms]
    return max([nearest, *near])


# ---- demand ----------------------------------------------------------------------------------------------


def _own_rules(loaded: Loaded) -> None:
    """Compile an operator's own route and admission rules, as `simulate` does."""
    from baseload.policies import KINDS, custom

    policy = loaded.fleet.policy
    for kind, table in KINDS.items():
        if getattr(policy, kind) not in table:
            custom.install(getattr(policy, kind), loaded.base_folder, policy.digest, kind)


def demand_sample(loaded: Loaded, seed: int) -> Demand:
    """Return a sample of the run's requests with tenant and model, as `simulate` draws them."""
    import numpy as np

    from baseload.adapters.mix import mixed

    source = demand_source(loaded, seed)
    day = dates.run_day(loaded.fleet)
    today = dates.on(loaded.fleet, day)
    source = mixed(source, today if today.deployments else loaded.fleet, seed)
    sample = next(iter(source.chunks(SAMPLE_ROWS)), None)
    if sample is None or len(sample) == 0:
        raise FleetError(f"{loaded.path}: demand: {source.name} holds no request; choose another trace")
    at_s = sample.arrival_ns / 1e9
    span_s = max(float(at_s[-1] - at_s[0]), 1e-6)
    counts = np.bincount((at_s - at_s[0]).astype(np.int64) // int(WINDOW_S)).astype(float)[:-1]
    dispersion = 1.0
    if len(counts) >= 4 and counts.mean() > 0.0:
        dispersion = float(np.mean(np.diff(counts) ** 2) / 2.0 / counts.mean())
    return Demand(
        sample=sample,
        requests_per_s=len(sample) / span_s,
        dispersion=min(100.0, max(1.0, dispersion)),
        name=source.name,
    )


def demand_source(loaded: Loaded, seed: int) -> TraceSource:
    """Return the fleet file's demand, at its scale."""
    from baseload.adapters import generators, trace_files, trace_transforms

    demand = loaded.fleet.demand
    blocks = max((one.block_tokens for one in loaded.fleet.deployments.values()), default=16)
    if demand.generator is not None:
        source = generators.generate(
            demand.generator, seed=seed, start=dates.run_day(loaded.fleet), start_hour_utc=demand.start_hour_utc,
            base_folder=loaded.base_folder, block_tokens=blocks,
        )  # fmt: skip
    elif demand.trace is not None:
        source = trace_files.open_trace(demand.trace, base_folder=loaded.base_folder, prefix_block_tokens=blocks)
    else:
        raise FleetError(f"{loaded.path}: demand names neither a trace nor a generator; add one")
    return source if demand.scale == 1.0 else trace_transforms.scaled(source, demand.scale)


def own_lengths(demand: Demand, fleet: Fleet, model: str, names: tuple[str, ...]) -> tuple[Any, Any, float]:
    """Return (prompts, answers) of the service's requests, and its share of all requests."""
    import numpy as np

    from baseload.app import plan_demand

    of_model = demand.sample.model_i == list(fleet.models).index(model)
    rows_of = [i for i, name in enumerate(plan_demand.tenants(fleet)) if name in names]
    own = of_model & np.isin(demand.sample.tenant_i, rows_of)
    share = float(own.mean())
    if own.sum() < LEAST_SAMPLE:
        own = of_model if of_model.sum() >= LEAST_SAMPLE else np.ones(len(demand.sample), bool)
    return demand.sample.input_tokens[own], demand.sample.output_tokens[own], share


# ---- settings --------------------------------------------------------------------------------------------


def settings(fleet: Fleet, model: str, kind: str) -> Iterator[list[Settings]]:
    """Yield groups of settings for a model on an accelerator, to be tried in order until one carries something.

    Those that the file declares; else the precision of the model's first deployment (fp8 where it has none) with the smallest
    tp that fits, then larger ones.
    """
    declared = [
        _settings(fleet, name, one)
        for name, one in fleet.deployments.items()
        if one.model == model and accelerator_id(one.accelerator) == kind
    ]
    if declared:
        mixed = [one for one in declared if one is not None and one.deployment.role == "mixed"]
        yield mixed or [one for one in declared if one is not None]
        return
    known = catalog.accelerator(kind)
    usual = Deployment(model=model, accelerator=kind, sites={}, precision="fp8" if known.fp8_tflops else "bf16")
    first = next((one for one in fleet.deployments.values() if one.model == model), usual)
    tp = 1
    while tp <= max(known.per_server, known.scale_up_size):
        made = msgspec.structs.replace(
            first, accelerator=kind, tp=tp, pp=1, ep=min(tp, first.ep), role="mixed", kv_blocks=None, speed={},
            start=None, until=None,
        )  # fmt: skip
        one = _settings(fleet, None, made)
        if one is not None:
            yield [one]
        tp *= 2


def _settings(fleet: Fleet, name: str | None, deployment: Deployment) -> Settings | None:
    """Return the settings as an engine; None where the model does not fit, or a step is longer than the twin can hold."""
    from baseload.simulate.engines import deployed_engine
    from baseload.simulate.world import too_slow

    key = name or "measured"
    try:
        engine = deployed_engine(
            msgspec.structs.replace(fleet, deployments={key: deployment}), key, model_i=0, chunk_tokens=0
        )
    except (FleetError, CatalogError, AssertionError):
        return None
    if too_slow(engine.spec):
        return None
    return Settings(name=name, deployment=deployment, engine=engine)


def _best(
    fleet: Fleet, model: str, slo: Slo, names: tuple[str, ...], kind: str, network_ms: float, demand: Demand, seed: int,
    measure: Callable[[Question], Found],
) -> ReplicaRow | None:  # fmt: skip
    """Return the row of the settings that carry most for each accelerator; None where the model fits nowhere."""
    from baseload.app.replica_probe import Question
    from baseload.simulate.capacity import Promise

    prompts, answers, share = own_lengths(demand, fleet, model, names)
    promise = Promise(
        ttft_s=slo.ttft_ms / 1e3, tpot_s=slo.tpot_ms / 1e3, attainment=slo.attainment,
        e2e_s=inf if slo.e2e_ms is None else slo.e2e_ms / 1e3, rtt_s=network_ms / 1e3,
    )  # fmt: skip

    def ask(one: Settings, n: int, rate: float) -> Found:
        part = min(1.0, rate / max(demand.requests_per_s, 1e-9))  # a part of uneven traffic is less uneven
        cv = round((1.0 + part * (demand.dispersion - 1.0)) ** 0.5, 2)
        return measure(
            Question(
                engine=one.engine.spec, n=n, input_tokens=prompts, output_tokens=answers, promise=promise, cv=cv,
                policy=fleet.policy, seed=seed,
            )
        )  # fmt: skip

    best: tuple[Settings, Found] | None = None
    for group in settings(fleet, model, kind):
        found = [(one, ask(one, 1, 0.0)) for one in group]
        first = max(found, key=_per_accelerator, default=None)
        if first is not None and (best is None or _per_accelerator(first) > _per_accelerator(best)):
            best = first
        elif best is not None and best[1].requests_per_s > 0.0:
            break  # a larger replica carries less for each accelerator
        if best is not None and best[1].limit_ratio > ENOUGH_RATIO:
            break
    if best is None:
        return None
    one, alone = best
    n, together = 1, alone
    if alone.requests_per_s > 0.0:
        n = min(MOST_TOGETHER, max(2, ceil(share * demand.requests_per_s / alone.requests_per_s)))
        together = ask(one, n, n * alone.requests_per_s)
    deployment, rate = one.deployment, together.requests_per_s
    return ReplicaRow(
        service=service_name(model, slo.ttft_ms, slo.tpot_ms, slo.e2e_ms, slo.attainment),
        model=model, tenants=names, ttft_ms=slo.ttft_ms, tpot_ms=slo.tpot_ms, e2e_ms=slo.e2e_ms,
        attainment=slo.attainment, accelerator=accelerator_id(deployment.accelerator),
        precision=deployment.precision, kv_precision=deployment.kv_precision, tp=deployment.tp, pp=deployment.pp,
        ep=deployment.ep, max_num_seqs=deployment.max_num_seqs,
        max_num_batched_tokens=deployment.max_num_batched_tokens, memory_utilisation=deployment.memory_utilisation,
        deployment=one.name, accelerators=one.engine.accelerators, replicas=n, requests_per_s=rate,
        requests_per_s_alone=alone.requests_per_s, tokens_per_s=rate * float(answers.mean()),
        input_tokens=float(prompts.mean()), output_tokens=float(answers.mean()), power_kw_busy=together.power_kw,
        power_kw_idle=one.engine.spec.power_idle_w / 1e3, network_ms=network_ms,
        requests_measured=together.n_requests, margin=together.attainment - slo.attainment,
        how=_how(fleet, one, together, n, demand, slo),
    )  # fmt: skip


def _per_accelerator(one: tuple[Settings, Found]) -> float:
    return one[1].requests_per_s / one[0].engine.accelerators


def _how(fleet: Fleet, one: Settings, found: Found, n: int, demand: Demand, slo: Slo) -> str:
    route = fleet.policy.route if fleet.policy.route in ROUTE else "the operator's own route"
    alone = "" if one.deployment.role == "mixed" else ", as if it served whole requests by itself"
    ran = (
        f"twin, {found.n_runs} runs of {found.n_requests:,} requests, {n} replica{'s' * (n > 1)} behind {route}{alone}"
    )
    kept = f"{100.0 * found.attainment:.2f} % of requests within the promise, {100.0 * slo.attainment:g} % promised"
    if found.requests_per_s <= 0.0:
        return f"{ran}: keeps the promise at no load ({kept})"
    return f"{ran}, lengths of {demand.name}: at the highest rate {kept}"


class _Memory:
    """Answers by the hash of their question, in a file."""

    def __init__(self, folder: Path | None) -> None:
        self.path = None if folder is None else folder / CACHE_FILE
        self.known: dict[str, list[float]] = {}
        self.used: dict[str, list[float]] = {}
        if self.path is not None and self.path.is_file():
            try:
                self.known = msgspec.json.decode(self.path.read_bytes(), type=dict[str, list[float]])
            except (OSError, msgspec.DecodeError):
                self.known = {}  # an old or damaged file: measured anew

    def get(self, key: str) -> Found | None:
        """Return what is known."""
        from baseload.app.replica_probe import Found

        row = self.known.get(key)
        if row is None or len(row) != 6:
            return None
        self.used[key] = row
        return Found(
            requests_per_s=row[0],
            attainment=row[1],
            n_requests=int(row[2]),
            n_runs=int(row[3]),
            power_kw=row[4],
            limit_ratio=row[5],
        )

    def put(self, key: str, found: Found) -> Found:
        """Keep an answer."""
        row = [found.requests_per_s, found.attainment, float(found.n_requests), float(found.n_runs), found.power_kw,
               found.limit_ratio]  # fmt: skip
        self.known[key] = self.used[key] = row
        return found

    def write(self) -> None:
        """Write what is known, whole or not at all; without a folder, or where none can be written, nothing."""
        if self.path is None:
            return
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            new = self.path.with_suffix(f".{os.getpid()}.partial")
            new.write_bytes(msgspec.json.encode(dict(sorted(self.known.items()))))
            new.replace(self.path)
        except OSError:
            return  # a place that cannot be written costs the time of measuring again, no more
