"""From the fleet's tables to orders for engines: which process, model file, step table or address each replica has.

Who carries the orders out is `adapters/engine_process.py`; when is `serve/reconcile.py`'s. A step table is the twin's own
engine in numbers, handed to the emulated engines' process as JSON, so that it needs no NumPy.
"""

from __future__ import annotations

import dataclasses
import hashlib
import os
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import msgspec

from baseload.errors import FleetError, Problem
from baseload.ports import EngineStart

if TYPE_CHECKING:
    from baseload.app.serve_tables import Live
    from baseload.fleet.live import LiveEngine
    from baseload.simulate.world import EngineSpec

EMBEDDED_CONTEXT_TOKENS = 8192  # of each slot, where the model allows more: a kilobyte each in the tiny model
DIGEST_LETTERS = 12


class Prepared(NamedTuple):
    """A fleet with all that its engines are started with."""

    live: Live  # each deployment's row with the digest of its engine
    orders: list[EngineStart | None]  # by the file's own rows of replicas
    steps: dict[str, dict[str, Any]]  # step tables of emulated engines, by their name in the orders


def prepare(live: Live, *, kind: str | None = None) -> Prepared:
    """Return the orders for a fleet's engines, and the fleet with a digest of what each deployment's engine is.

    Two deployments of one digest can be served by one running engine: it covers the model's file, slots, context and step
    table, not what may change while it runs (prices, demand). Raises FleetError as `engine_orders` does.
    """
    orders = engine_orders(live, kind=kind)
    tables, steps = live.tables, step_tables(live)
    first: dict[int, EngineStart] = {}
    for order, replica in zip(orders, tables.replicas, strict=True):
        if order is not None:
            first.setdefault(replica.deployment_i, order)
    rows, names = [], {}
    for i, row in enumerate(tables.deployments):
        engine = _digest(first.get(i), steps.get(row.name, {}))
        names[row.name] = f"{row.name}@{engine}"
        rows.append(msgspec.structs.replace(row, engine=engine))
    orders = [order and order._replace(table=names[order.table]) for order in orders]
    return Prepared(
        dataclasses.replace(live, tables=msgspec.structs.replace(tables, deployments=rows)), orders,
        {names[name]: table for name, table in steps.items()},
    )  # fmt: skip


def _digest(order: EngineStart | None, steps: dict[str, Any]) -> str:
    """Return the digest of what an engine is started with; '' for one that others run, or none."""
    if order is None or order.kind == "external":
        return ""
    fixed = {name: value for name, value in steps.items() if name != "mean_answer_tokens"}  # that is the demand's
    what: list[object] = [order.kind, order.model, fixed]
    if order.kind == "embedded":
        what += [order.gguf, order.digest, order.slots, order.context_tokens]
    return hashlib.sha256(msgspec.json.encode(what, order="sorted")).hexdigest()[:DIGEST_LETTERS]


def step_table(spec: EngineSpec, *, mean_answer_tokens: float = 128.0) -> dict[str, Any]:
    """Return an engine of the twin as the JSON that `emulated_main` takes (adapters/engines/step_loop.py: StepTable)."""
    return {
        "base_s": [round(float(s), 10) for s in spec.base_s],
        "head_s": [round(float(s), 10) for s in spec.head_s],
        "kv_s_per_token": spec.kv_s_per_token,
        "kv_window_s_per_token": spec.kv_window_s_per_token,
        "window_tokens": spec.window_tokens,
        "prefill_attention_s_per_token2": spec.prefill_attention_s_per_token2,
        "prefill_kv_s_per_token": spec.prefill_kv_s_per_token,
        "max_tokens": spec.max_tokens,
        "max_seqs": spec.max_seqs,
        "block_tokens": spec.block_tokens,
        "blocks": spec.blocks,
        "max_context": min(spec.max_context, spec.blocks * spec.block_tokens - 1),
        "overhead_s": spec.overhead_s,
        "caching": True,
        "mean_answer_tokens": max(1.0, mean_answer_tokens),
    }


def step_tables(live: Live) -> dict[str, dict[str, Any]]:
    """Return the step tables of all emulated deployments, by deployment."""
    return {
        engine.name: step_table(engine.spec, mean_answer_tokens=live.tables.predicted_output_tokens)
        for engine, row in zip(live.twin.engines, live.tables.deployments, strict=True)
        if row.kind == "emulated"
    }


def replica_names(live: Live) -> list[str]:
    """Return deployment/site/index of each replica, by row."""
    tables = live.tables
    return [
        f"{tables.deployments[row.deployment_i].name}/{tables.sites[row.site_i].name}/{row.number}"
        for row in tables.replicas
    ]


def engine_orders(live: Live, *, kind: str | None = None) -> list[EngineStart | None]:
    """Return the order for each replica's engine, by row; None where the fleet file names no address for it.

    `kind` puts one kind of engine in all places, as in `serve_tables.live`. Makes the tiny model where one is embedded and
    none is named; raises FleetError where a model file is not there.
    """
    from baseload.app.serve_tables import engine_of

    tables = live.tables
    orders: list[EngineStart | None] = []
    names = replica_names(live)
    files: dict[str, tuple[str, str]] = {}
    for r, replica in enumerate(tables.replicas):
        row = tables.deployments[replica.deployment_i]
        engine = engine_of(live.fleet, row.name, kind)
        if row.kind == "embedded" and row.name not in files:
            files[row.name] = model_file(row.name, engine, live.loaded.base_folder)
        gguf, digest = files.get(row.name, ("", engine.model_digest or ""))
        model = tables.models[row.model_i]
        if row.kind == "external" and not replica.address:
            orders.append(None)
            continue
        orders.append(
            EngineStart(
                name=names[r],
                kind=engine.kind,
                model=row.served_model or model.name,
                url=replica.address,
                key_env=row.key_env,
                gguf=gguf,
                digest=digest,
                slots=engine.slots,
                context_tokens=min(EMBEDDED_CONTEXT_TOKENS, model.max_context_tokens),
                table=row.name,
                cold_s=row.cold_start_s,
            )
        )
    return orders


def model_file(deployment: str, engine: LiveEngine, base_folder: Path) -> tuple[str, str]:
    """Return the path and digest of an embedded engine's model: the one named, or the tiny one."""
    from baseload.adapters import tiny_gguf

    if engine.gguf is None:
        path = tiny_gguf.cached()
    else:
        path = base_folder / engine.gguf
        if not (path.is_file() and os.access(path, os.R_OK)):
            key = f"serve.engines.{deployment}.gguf"
            raise FleetError(Problem(key=key, what=f"{path} is no readable file", mend="name a GGUF file"))
    return str(path.resolve()), engine.model_digest or tiny_gguf.file_digest(path)
