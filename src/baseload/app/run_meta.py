"""What a run says of itself: the tables of replicas and sites from the twin's world, and `meta.json`.

The requests are written as they end (`simulating.py`); the meaning of the columns is `records.py`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import TYPE_CHECKING, Any

import msgspec
import numpy as np
import numpy.typing as npt

from baseload.fleet import catalog
from baseload.fleet.model import Policy
from baseload.ports import (
    Balance,
    BasisMeta,
    DeploymentMeta,
    Names,
    Policies,
    PolicyMeta,
    RunMeta,
    TraceMeta,
    TrainingMeta,
)
from baseload.ports import Window as WindowMeta
from baseload.records import REASON_END, REPLICAS, SITES, UNFINISHED, dtypes
from baseload.simulate import state as st
from baseload.simulate.capacity import Promise, ReplicaCapacity, pair_capacity, replica_capacity
from baseload.simulate.outages import down_ns
from baseload.simulate.world import pool_rows

if TYPE_CHECKING:
    from baseload.adapters.store import RunWriter
    from baseload.app.simulating import Prepared
    from baseload.simulate.run import Outcome
    from baseload.simulate.setup import Twin
    from baseload.simulate.windows import Window

Rows = npt.NDArray[Any]


def promise_of(twin: Twin, deployment: int) -> tuple[Promise, str] | None:
    """Return the strictest promise among the tenants that a deployment may serve, and their names; None: nobody."""
    model = twin.engines[deployment].spec.model_i
    pools = [p for p, pool in enumerate(twin.spec.pools) if pool.deployment == deployment]
    served = []
    for t, name in enumerate(twin.tenants):
        tenant = twin.tenant_records[name]
        calls = not tenant.models or tenant.models.get(twin.models[model], 0.0) > 0.0
        if calls and any(twin.spec.may[t, model, p] for p in pools):
            served.append((name, tenant.slo))
    if not served:
        return None
    sites = {twin.spec.pools[p].site for p in pools}
    rtt_s = float(np.max(twin.spec.region_rtt_s) + 2.0 * max(twin.spec.one_way_s[list(sites)], default=0.0))
    return Promise(
        ttft_s=min(slo.ttft_ms for _, slo in served) / 1000.0,
        tpot_s=min(slo.tpot_ms for _, slo in served) / 1000.0,
        e2e_s=min((slo.e2e_ms / 1000.0 for _, slo in served if slo.e2e_ms), default=float("inf")),
        attainment=max(slo.attainment for _, slo in served),
        rtt_s=rtt_s,
    ), ", ".join(name for name, _ in served)


def replica_capacities(twin: Twin, lengths: Mapping[int, tuple[Any, Any]]) -> dict[int, tuple[ReplicaCapacity, str]]:
    """Measure in the twin what one replica of each deployment can do with the run's lengths, and say how."""
    answer = {}
    pairs = pairs_of(twin)
    paired = {decode for decode, *_ in pairs.values()}
    for i, engine in enumerate(twin.engines):
        found = promise_of(twin, i)
        sample = lengths.get(engine.spec.model_i)
        if found is None or sample is None or i in paired:
            continue
        promise, names = found
        how = f"Poisson arrivals, the run's lengths, strictest promise of {names}"
        if i in pairs:
            j, n_prefill, n_decode = pairs[i]
            decode = twin.engines[j]
            first, second = pair_capacity(
                (engine.spec, n_prefill), (decode.spec, n_decode), sample[0], sample[1], promise
            )
            words = f"{engine.name} and {decode.name} together in the twin, {n_prefill} to {n_decode}, {how}"
            answer[i] = (first, f"{words}; prompt tokens")
            answer[j] = (second, f"{words}; answer tokens")
            continue
        alone = "" if engine.spec.role == st.MIXED else ", as if it served whole requests by itself"
        answer[i] = (
            replica_capacity(engine.spec, sample[0], sample[1], promise),
            f"one replica in the twin{alone}, {how}",
        )
    return answer


def pairs_of(twin: Twin) -> dict[int, tuple[int, int, int]]:
    """Return of each prefill deployment the decode deployment beside it, and how many replicas of both stand together.

    Those at the site where most of them stand; at others the proportion may differ, the capacity of one replica is the same.
    """
    pools: dict[tuple[int, int], int] = {}
    for pool in twin.spec.pools:
        pools[pool.site, pool.deployment] = pool.n_max
    found: dict[int, tuple[int, int, int]] = {}
    taken: set[int] = set()
    for (site, i), n_prefill in sorted(pools.items()):
        engine = twin.engines[i].spec
        if engine.role != st.PREFILL:
            continue
        for (other, j), n_decode in sorted(pools.items()):
            decode = twin.engines[j].spec
            fits = other == site and decode.role == st.DECODE and decode.model_i == engine.model_i
            if fits and (j not in taken or (i in found and found[i][0] == j)):
                known = found.get(i)
                if known is None or n_prefill + n_decode > known[1] + known[2]:
                    found[i] = (j, n_prefill, n_decode)
                    taken.add(j)
    return found


def capacity_notes(twin: Twin) -> list[str]:
    """Return what the reader must know of the capacities of prefill and decode replicas."""
    pairs = pairs_of(twin)
    notes = []
    for i, (j, n_prefill, n_decode) in pairs.items():
        notes.append(
            f"{twin.engines[i].name} and {twin.engines[j].name} enter the capacity ladder as a pair, {n_prefill} to "
            f"{n_decode}: prompt tokens count with the one, answer tokens with the other"
        )
    known = set(pairs) | {j for j, *_ in pairs.values()}
    split = [engine.name for i, engine in enumerate(twin.engines) if engine.spec.role != st.MIXED and i not in known]
    if split:
        notes.append(
            f"{', '.join(split)}: enter the capacity ladder as if each replica served whole requests by itself; what "
            "they can serve together is what the search for the highest load says"
        )
    return notes


def first_meta(
    prepared: Prepared,
    *,
    seed: int,
    overrides: Sequence[str],
    start: datetime,
    warm_up_s: float,
    capacities: Mapping[int, tuple[ReplicaCapacity, str]],
) -> RunMeta:
    """Return what is known before the run."""
    loaded, twin, source = prepared.loaded, prepared.twin, prepared.source
    policy = loaded.fleet.policy
    return RunMeta(
        fleet=loaded.fleet.name,
        fleet_digest=loaded.digest,
        seed=seed,
        trace=TraceMeta(name=source.name, note=source.source_note, requests=source.n or 0, scale=prepared.scale),
        start_utc=start.replace(microsecond=0, tzinfo=None).isoformat() + "Z",
        duration_ns=0,
        names=Names(
            tenants=list(twin.tenants),
            regions=list(twin.regions),
            models=list(twin.models),
            deployments=list(twin.deployments),
            sites=list(twin.sites),
        ),
        overrides=list(overrides),
        warmup_ns=round(warm_up_s * 1e9),
        currency=loaded.fleet.money.currency,
        deployments=[_deployment(prepared, i, capacities.get(i)) for i in range(len(twin.engines))],
        basis=basis_of(prepared),
        policies=Policies(
            route=_rule(policy, "route"),
            admit=_rule(policy, "admit"),
            scale=_rule(policy, "scale"),
            cap=_rule(policy, "cap"),
        ),
        notes=[*prepared.warnings, *capacity_notes(twin)],
    )


def _rule(policy: Policy, kind: str) -> PolicyMeta:
    name: str = getattr(policy, kind)
    return PolicyMeta(name=name, digest=policy.digest.get(name.partition(":")[0], ""))


def _deployment(prepared: Prepared, i: int, measured: tuple[ReplicaCapacity, str] | None) -> DeploymentMeta:
    engine = prepared.twin.engines[i]
    deployment = prepared.loaded.fleet.deployments[engine.name]
    return DeploymentMeta(
        name=engine.name,
        model=deployment.model,
        accelerator=catalog.accelerator(deployment.accelerator).accelerator_id,
        tp=deployment.tp,
        pp=deployment.pp,
        ep=deployment.ep,
        accelerators_per_replica=engine.accelerators,
        precision=deployment.precision,
        kv_blocks=engine.spec.blocks,
        block_tokens=engine.spec.block_tokens,
        weights_gb=engine.costs.weights_bytes / 1e9,
        active_parameters=engine.active_parameters,
        peak_flops_per_s=engine.peak_flops_per_s,
        saturated_tokens_per_s=measured[0].saturated_tokens_per_s if measured else None,
        within_slo_tokens_per_s=measured[0].within_slo_tokens_per_s if measured else None,
        slo_source=measured[1] if measured else "",
        basis="calibrated" if engine.calibrated else "modelled",
    )


def basis_of(prepared: Prepared) -> list[BasisMeta]:
    """Return where the figures of a run come from, grouped by the word before the first dot."""
    fleet, twin = prepared.loaded.fleet, prepared.twin
    rows: list[BasisMeta] = []
    for engine in twin.engines:
        basis = "calibrated" if engine.calibrated else "modelled"
        source = (
            "constants of the fleet file" if engine.calibrated else "speed model, default constants (docs/accuracy.md)"
        )
        rows.append(BasisMeta(figure=f"speed.{engine.name}", basis=basis, source=source))  # type: ignore[arg-type]
    used = {catalog.accelerator(fleet.deployments[name].accelerator).accelerator_id for name in twin.deployments}
    for name in sorted(used):
        provenance = catalog.accelerator(name).provenance
        for figure in ("tdp_w", "idle_w", "server_other_w", "price_usd"):
            origin = provenance.get(figure)
            if origin is not None:
                group = "price" if figure == "price_usd" else "power"
                rows.append(BasisMeta(figure=f"{group}.{name}.{figure}", basis=origin.basis, source=origin.source))
    for name, hours in zip(twin.sites, twin.hours, strict=True):
        for group, series in (
            ("energy_price", hours.price_per_mwh),
            ("carbon", hours.carbon_g_per_kwh),
            ("weather", hours.wetbulb_c),
        ):
            rows.append(BasisMeta(figure=f"{group}.{name}", basis=series.basis, source=series.source))  # type: ignore[arg-type]
    for (a, b), how in sorted(twin.rtt_basis.items()):
        rows.append(BasisMeta(figure=f"network.{a}-{b}", basis=how, source="round trip"))  # type: ignore[arg-type]
    return rows


def replica_rows(twin: Twin, outcome: Outcome) -> dict[str, Rows]:
    """Return the replicas table."""
    replicas = outcome.world.replicas
    accelerators = np.array([engine.accelerators for engine in twin.engines], np.int32)
    idle_w = np.array([engine.spec.power_idle_w for engine in twin.engines])[replicas["dep"]]
    blocks = np.array([engine.spec.blocks for engine in twin.engines], np.int64)[replicas["dep"]]
    idle_j = np.maximum(0.0, idle_w * replicas["powered_ns"] / 1e9 - replicas["busy_idle_j"])
    columns: dict[str, Rows] = {
        "replica_i": np.arange(len(replicas), dtype=np.int32),
        "deployment_i": replicas["dep"].astype(np.int16),
        "site_i": replicas["site"].astype(np.int16),
        "accelerators": accelerators[replicas["dep"]],
        "energy_j": replicas["energy_j"] + idle_j,
        "idle_j": idle_j,
        "kv_blocks": blocks,
        "kv_blocks_peak": replicas["blocks_peak"],
    }
    for column in REPLICAS:
        if column.name not in columns:
            columns[column.name] = replicas[column.name].astype(column.dtype)
    return columns


def site_rows(twin: Twin, outcome: Outcome, *, offset_ns: int = 0) -> dict[str, Rows]:
    """Return the sites table: one row a site and bin, up to the run's end."""
    world, spec = outcome.world, twin.spec
    bin_ns = round(spec.bin_s * 1e9)
    n_bins = max(1, -(-outcome.end_ns // bin_ns))
    starts = np.arange(n_bins, dtype=np.int64) * bin_ns
    first_site = len(spec.groups) - len(twin.sites)
    lengths = np.minimum(starts + bin_ns, max(outcome.end_ns, 1)) - starts
    parts: list[dict[str, Rows]] = []
    parked_ratio = np.zeros(len(twin.sites)) if spec.parked_ratio is None else spec.parked_ratio
    for i in range(len(twin.sites)):
        bins = world.bins[i, :n_bins]
        idle_j = np.maximum(0.0, bins[:, st.B_POWERED_J] - bins[:, st.B_BUSY_IDLE_J])
        training_kw = _stretched(twin.training_kw, i, n_bins, 0.0)
        # Accelerators without a replica idle too, unless the site switches them off (parked_power_ratio).
        # A site that is down draws nothing at all.
        on_s = (lengths - down_ns(spec.outages, first_site + i, np.append(starts, starts[-1] + lengths[-1]))) / 1e9
        parked_j = twin.parked_w[i] * on_s - parked_ratio[i] * bins[:, st.B_POWERED_J]
        idle_j = idle_j + np.maximum(0.0, parked_j)
        parts.append(
            {
                "site_i": np.full(n_bins, i, np.int16),
                "start_ns": starts + offset_ns,
                "length_ns": lengths,
                "inference_j": bins[:, st.B_DYNAMIC_J] + idle_j,
                "idle_j": idle_j,
                "training_j": training_kw * 1000.0 * on_s,
                "limit_kw": _stretched(spec.limit_kw, i, n_bins, np.inf),
                "powered_replicas": bins[:, st.B_POWERED_S] / (lengths / 1e9),
                "healthy_replicas": bins[:, st.B_UP_S] / (lengths / 1e9),
                "prefill_tokens": np.rint(bins[:, st.B_PREFILL]).astype(np.int64),
                "decode_tokens": np.rint(bins[:, st.B_DECODE]).astype(np.int64),
                "served": np.rint(bins[:, st.B_SERVED]).astype(np.int64),
                "capped_ratio": np.clip(bins[:, st.B_CAPPED_S] / (lengths / 1e9), 0.0, 1.0),
            }
        )
    return {column.name: np.concatenate([part[column.name] for part in parts]) for column in SITES}


def _stretched(table: Rows | None, i: int, n_bins: int, missing: float) -> Rows:
    """Return row `i` of a (site, bin) table with `n_bins` bins: the last value holds on."""
    if table is None:
        return np.full(n_bins, missing)
    row = table[i]
    return np.asarray(row[np.minimum(np.arange(n_bins), len(row) - 1)])


def append_unfinished(outcome: Outcome, writer: RunWriter) -> None:
    """Write a record for each request that was still in flight when the run ended."""
    rows = unfinished_rows(outcome)
    if len(rows):
        writer.append_requests(rows)


def unfinished_rows(outcome: Outcome) -> Rows:
    """Return records of the requests in flight at the end: neither in the free list nor already written."""
    world = outcome.world
    if outcome.unfinished == 0:
        return np.zeros(0, dtypes("requests"))
    free = np.zeros(len(world.slots), np.bool_)
    s = int(world.scalars[st.G_FREE_SLOT])
    while s >= 0:
        free[s] = True
        s = int(world.slots["next"][s])
    for site in world.sites:
        s = int(site["notice_head"])
        while s >= 0:  # ended, the gateway has yet to learn
            free[s] = True
            s = int(world.slots["next"][s])
    live = world.slots[~free]
    rows = np.zeros(len(live), dtypes("requests"))
    routed = live["replica"] >= 0
    of = np.where(routed, live["replica"], 0)
    rows["request_id"], rows["arrival_ns"] = live["req_id"], live["arrival"]
    rows["tenant_i"], rows["region_i"], rows["model_i"] = live["tenant"], live["region"], live["model"]
    rows["deployment_i"] = np.where(routed, world.replicas["dep"][of], -1)
    rows["site_i"] = np.where(routed, world.replicas["site"][of], -1)
    rows["replica_i"] = live["replica"]
    decoding = routed & (live["state"] == st.DECODING)
    steps = np.where(decoding, world.replicas["step_no"][of] - live["dec_step"], 0)
    rows["input_tokens"], rows["output_tokens"] = live["inp"], live["gen"] + steps
    rows["cached_tokens"], rows["n_preempted"], rows["n_tries"] = live["cached"], live["preempted"], live["tries"]
    rows["status"], rows["reason"] = UNFINISHED, REASON_END
    rows["scheduled_ns"], rows["first_token_ns"], rows["finish_ns"] = live["scheduled"], live["first"], outcome.end_ns
    one_way_ns = world.sites["one_way_ns"][world.replicas["site"][of]]
    rows["rtt_ns"] = live["rtt"] + np.where(routed, one_way_ns, 0)
    rows["energy_j"] = live["energy"] + np.where(decoding, world.replicas["cum_j"][of] - live["energy0"], 0.0)
    return rows


def balance_of(outcome: Outcome) -> Balance:
    """Return the books of a run."""
    world = outcome.world
    replicas = world.replicas
    chunk = world.deployments["chunk_blocks"][replicas["dep"]]
    blocks = world.deployments["blocks"][replicas["dep"]]
    held = int((blocks - replicas["free"] - replicas["n_evictable"] * chunk).sum())
    return Balance(
        requests_in=outcome.n_in,
        served=outcome.served,
        refused=outcome.refused,
        failed=outcome.failed,
        unfinished=outcome.unfinished,
        prefill_tokens=int(replicas["prefill_tokens"].sum()),
        decode_tokens=int(replicas["decode_tokens"].sum()),
        kv_blocks_leaked=held if outcome.unfinished == 0 else 0,
        energy_j=float(replicas["energy_j"].sum()),
    )


def last_meta(meta: RunMeta, prepared: Prepared, outcome: Outcome, windows: Sequence[Window]) -> dict[str, Any]:
    """Return the fields of `meta.json` that are known only at the end."""
    training = [
        TrainingMeta(
            site=site,
            name=name,
            accelerators=prepared.loaded.fleet.sites[site].training[name].accelerators,
            goodput_ratio=run.goodput_ratio,
            failures=run.failures,
            checkpoint_every_s=run.checkpoint_every_s,
        )
        for (site, name), run in prepared.twin.training.items()
    ]
    return {
        "duration_ns": outcome.end_ns,
        "trace": msgspec.structs.replace(meta.trace, requests=outcome.n_in),
        "balance": balance_of(outcome),
        "training": training,
        "windows": [
            WindowMeta(start_s=window.start_s, until_s=window.until_s, weight=window.weight) for window in windows
        ],
        "notes": [*meta.notes, *prepared.source.notes],
    }


__all__ = ["balance_of", "first_meta", "last_meta", "pool_rows", "replica_rows", "site_rows", "unfinished_rows"]
