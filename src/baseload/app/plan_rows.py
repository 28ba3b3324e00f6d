"""Rows of the replica table from formulas alone: no run of the twin, marked modelled; for a quick look and for tests.

A replica decodes as many answers at once as the step time allows within a share of the promised time per token, with the
prompts of as many requests in the same steps; of that rate a share is taken, for bursts. `app/replica_table.py` measures
the rows instead, at the percentile that the promise names; the round trip that both leave room for is the same.
"""

from __future__ import annotations

import msgspec

from baseload.app import plan_demand, plan_rent
from baseload.app.plan_demand import Traffic
from baseload.app.replica_table import network_budget_ms
from baseload.errors import FleetError
from baseload.fleet.model import Deployment, Fleet, Slo
from baseload.fleet.planning import Plan
from baseload.fleet.resolve import accelerator_id, replica_accelerators
from baseload.plan.table import ReplicaRow, ReplicaTable, service_name
from baseload.simulate.engines import deployed_engine
from baseload.simulate.world import EngineSpec

OF_TPOT = 0.7  # mean step time over the promise: the tail must keep it
OF_RATE = 0.6  # of the rate at that step time: bursts wait
MODELLED = "modelled from datasheets and the speed model, not run in the twin"


def modelled_table(fleet: Fleet, asked: Traffic) -> ReplicaTable:
    """Return a row for each promise on each deployment that serves its model; the first of each accelerator counts."""
    rows: dict[tuple[str, str], ReplicaRow] = {}
    everywhere = plan_rent.with_rent(fleet, plan_rent.offers(fleet, fleet.plan or Plan()))
    for model, slo, names in plan_demand.promises(fleet):
        network_ms = network_budget_ms(everywhere, names, slo)
        for name, deployment in fleet.deployments.items():
            if deployment.model != model or deployment.role != "mixed":
                continue
            row = _row(fleet, name, deployment, slo, names, asked, network_ms)
            if row is not None:
                rows.setdefault((row.service, row.accelerator), row)
    return ReplicaTable.of(rows.values())


def _row(
    fleet: Fleet, name: str, deployment: Deployment, slo: Slo, names: tuple[str, ...], asked: Traffic, network_ms: float
) -> ReplicaRow | None:
    try:
        engine = deployed_engine(fleet, name, model_i=0, chunk_tokens=0).spec
    except FleetError:
        return None  # the model does not fit: `simulate` says so
    rate = modelled_rate(engine, slo, asked, network_ms)
    watts = engine.power_w
    busy_w = engine.power_idle_w if watts is None else float(watts[min(len(watts) - 1, engine.max_seqs // 4)])
    return ReplicaRow(
        service=service_name(deployment.model, slo.ttft_ms, slo.tpot_ms, slo.e2e_ms, slo.attainment),
        model=deployment.model,
        tenants=names,
        ttft_ms=slo.ttft_ms,
        tpot_ms=slo.tpot_ms,
        e2e_ms=slo.e2e_ms,
        attainment=slo.attainment,
        accelerator=accelerator_id(deployment.accelerator),
        precision=deployment.precision,
        kv_precision=deployment.kv_precision,
        tp=deployment.tp,
        pp=deployment.pp,
        ep=deployment.ep,
        max_num_seqs=deployment.max_num_seqs,
        max_num_batched_tokens=deployment.max_num_batched_tokens,
        memory_utilisation=deployment.memory_utilisation,
        deployment=name,
        accelerators=replica_accelerators(deployment),
        replicas=1,
        requests_per_s=rate,
        requests_per_s_alone=rate,
        tokens_per_s=rate * asked.output_tokens,
        input_tokens=asked.input_tokens,
        output_tokens=asked.output_tokens,
        power_kw_busy=busy_w / 1000.0,
        power_kw_idle=engine.power_idle_w / 1000.0,
        network_ms=network_ms,
        requests_measured=0,
        margin=0.0,
        how=MODELLED,
    )


def modelled_rate(engine: EngineSpec, slo: Slo, asked: Traffic, network_ms: float = 0.0) -> float:
    """Return about the requests a second that a replica serves within a promise; 0 where even one at a time breaks it."""
    prompt, answer = asked.input_tokens, max(1.0, asked.output_tokens)
    if (slo.ttft_ms - network_ms) / 1000.0 <= engine.overhead_s + float(prompt) / engine.prefill_tokens_per_s:
        return 0.0
    context = prompt + answer / 2.0
    room = engine.blocks * engine.block_tokens / (prompt + answer)
    best = 0.0
    for n in range(1, int(min(engine.max_seqs, room)) + 1):
        tokens = round(n * (1.0 + prompt / answer))
        if tokens > engine.max_tokens:
            break
        step_s = float(engine.base_s[tokens] + engine.head_s[n]) + engine.kv_s_per_token * n * context
        if step_s > OF_TPOT * slo.tpot_ms / 1000.0:
            break
        best = n / (answer * step_s)
    return best * OF_RATE


def looser(fleet: Fleet, table: ReplicaTable, asked: Traffic, by_ms: float) -> dict[str, dict[str, float]]:
    """Return by service and accelerator how much more a replica carries with a promise per token `by_ms` looser.

    The factor is the formulas' on the deployment of the row; 1 where the row's settings stand in no deployment.
    """
    found: dict[str, dict[str, float]] = {}
    for row in table.rows:
        factor = 1.0
        if row.deployment in fleet.deployments:
            try:
                engine = deployed_engine(fleet, row.deployment, model_i=0, chunk_tokens=0).spec
            except FleetError:
                continue
            slo = Slo(ttft_ms=row.ttft_ms, tpot_ms=row.tpot_ms, attainment=row.attainment)
            now = modelled_rate(engine, slo, asked)
            then = modelled_rate(engine, msgspec.structs.replace(slo, tpot_ms=row.tpot_ms + by_ms), asked)
            factor = then / now if now > 0.0 else 1.0
        found.setdefault(row.service, {})[row.accelerator] = factor
    return found
