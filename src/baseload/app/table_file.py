"""A table of replicas from a file, held against the fleet that it is to plan for: what it does not answer is refused.

A service is a model under a promise; its row counts for whoever is promised that today. Settings and lengths that the rows
record must be the fleet's; what they do not record is said.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from math import inf
from pathlib import Path

import msgspec

from baseload.app import plan_demand, replica_table
from baseload.app.plan_rows import MODELLED
from baseload.errors import CatalogError, InputError
from baseload.fleet.load import Loaded
from baseload.fleet.model import Deployment, Fleet, Slo
from baseload.fleet.planning import Plan
from baseload.fleet.resolve import accelerator_id
from baseload.plan.table import LEAST_CORRECTION, ReplicaRow, ReplicaTable, service_name

MEND = "leave --table out to measure anew, or name the replicas.json of a plan of this fleet"
SETTINGS = (
    "precision", "kv_precision", "tp", "pp", "ep", "max_num_seqs", "max_num_batched_tokens", "memory_utilisation",
)  # fmt: skip
LENGTHS_APART = 0.25  # of mean tokens, that chance alone may bring between two samples
# The least and the most that a row may hold.
WITHIN: dict[str, tuple[float, float]] = {
    "ttft_ms": (0.0, 1e9), "tpot_ms": (0.0, 1e9), "attainment": (0.0, 1.0), "accelerators": (1.0, 1e5),
    "replicas": (1.0, 1e6), "requests_per_s": (0.0, 1e5), "requests_per_s_alone": (0.0, 1e5), "tokens_per_s": (0.0, 1e8),
    "input_tokens": (0.0, 1e8), "output_tokens": (0.0, 1e8), "power_kw_busy": (0.0, 1e5), "power_kw_idle": (0.0, 1e5),
    "tp": (1.0, 1024.0), "pp": (1.0, 1024.0), "ep": (1.0, 1024.0),
    "network_ms": (0.0, 1e5), "requests_measured": (0.0, inf), "margin": (-1.0, 1.0), "correction": (LEAST_CORRECTION, 1.0),
}  # fmt: skip


def read(path: str, loaded: Loaded, before: Fleet | None = None) -> ReplicaTable:
    """Return a file's table with each service's tenants of today, or raise InputError where it is not this fleet's.

    `before` is the fleet without its what-ifs: what they change must not change what a replica carries.
    """
    try:
        table = ReplicaTable.from_json(Path(path).read_bytes())
    except OSError as error:
        raise InputError(f"--table {path}: cannot be read ({error.strerror}); name a file") from None
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise InputError(f"--table {path}: is no table of replicas ({error}); name replicas.json") from None
    except AssertionError as error:
        raise InputError(f"--table {path}: {error}; {MEND}") from None
    for what in _wrong(table, loaded, before):
        raise InputError(f"--table {path}: {what}; {MEND}")
    own = {_name(model, slo): names for model, slo, names in plan_demand.promises(loaded.fleet)}
    return ReplicaTable.of(
        (msgspec.structs.replace(row, tenants=own.get(row.service, ())) for row in table.rows), seed=table.seed
    )


def said(path: str) -> str:
    """Return what a plan with such a table assumes."""
    return (
        f"what a replica carries is read from {path}, not measured: its rows are held against the fleet's promises, precision, "
        "settings and lengths, and do not record the catalogue's model behind a name, `speed`, `policy` or the gateway; "
        "these are taken to be as when it was measured"
    )


def _wrong(table: ReplicaTable, loaded: Loaded, before: Fleet | None) -> Iterator[str]:
    """Yield what makes a table useless for a fleet."""
    fleet = loaded.fleet
    if not 0 <= table.seed < 2**63:
        yield f"seed {table.seed} is not within 0 to 2^63"
    if not table.rows:
        yield "holds no row"
    for i, row in enumerate(table.rows):
        yield from (f"rows[{i}] ({row.service} on {row.accelerator}): {what}" for what in _absurd(row))
    asked = plan_demand.promises(fleet)
    for model, slo, names in asked:
        if _name(model, slo) not in table.services:
            yield f"holds no row for {_name(model, slo)}, which the fleet asks for ({', '.join(names)})"
    for row in table.rows:
        if any(row.service == _name(model, slo) for model, slo, _ in asked):
            yield from (f"{row.service} on {row.accelerator}: {what}" for what in _other_settings(fleet, row))
    yield from _other_lengths(loaded, table, asked)
    if before is not None:
        for part, now, then in _unrecorded(fleet, before):
            if now != then:
                yield f"the what-if changes `{part}`, on which what a replica carries depends and which no row records"


def _name(model: str, slo: Slo) -> str:
    return service_name(model, slo.ttft_ms, slo.tpot_ms, slo.e2e_ms, slo.attainment)


def _absurd(row: ReplicaRow) -> Iterator[str]:
    for key, (least, most) in WITHIN.items():
        value = getattr(row, key)
        if not least <= value <= most:
            yield f"{key} {value:g} is not within {least:g} to {most:g}"
    if row.service != service_name(row.model, row.ttft_ms, row.tpot_ms, row.e2e_ms, row.attainment):
        yield "the service's name does not say the row's own model and promise"
    try:
        known = accelerator_id(row.accelerator)
    except CatalogError:
        known = ""
    if known != row.accelerator:
        yield "the accelerator is no id of the catalogue"
    if row.accelerators != row.tp * row.pp:
        yield f"accelerators {row.accelerators} is not tp {row.tp} times pp {row.pp}"


def _other_settings(fleet: Fleet, row: ReplicaRow) -> Iterator[str]:
    """Yield where the fleet runs a service otherwise than the row was measured."""
    of_model = {name: one for name, one in fleet.deployments.items() if one.model == row.model}
    here = {name: one for name, one in of_model.items() if accelerator_id(one.accelerator) == row.accelerator}
    if row.deployment in of_model and row.deployment not in here:
        yield f"deployment {row.deployment} runs on {of_model[row.deployment].accelerator}"
    elif here:
        of_row = {row.deployment: here[row.deployment]} if row.deployment in here else here
        apart = [(name, key) for name, one in of_row.items() for key in _apart(one, row, SETTINGS)[:1]]
        if len(apart) == len(of_row):
            name, key = apart[0]
            yield f"{key} is {getattr(row, key)} in the row and {getattr(here[name], key)} in deployment {name}"
    elif row.deployment is None and of_model:
        name, one = next(iter(of_model.items()))
        for key in _apart(one, row, ("precision", "kv_precision"))[:1]:
            yield f"{key} is {getattr(row, key)} in the row and {getattr(one, key)} in deployment {name}"


def _apart(one: Deployment, row: ReplicaRow, keys: Sequence[str]) -> list[str]:
    return [key for key in keys if getattr(one, key) != getattr(row, key)]


def _other_lengths(
    loaded: Loaded, table: ReplicaTable, asked: Sequence[tuple[str, Slo, tuple[str, ...]]]
) -> Iterator[str]:
    """Yield where the fleet's requests are longer or shorter than those that the rows were measured with."""
    if any(_name(model, slo) not in table.services for model, slo, _ in asked):
        return
    of_all = None
    sample = replica_table.demand_sample(loaded, table.seed)
    for model, slo, names in asked:
        row = next(one for one in table.rows if one.service == _name(model, slo))
        if row.how == MODELLED:
            of_all = of_all or plan_demand.traffic(loaded, loaded.fleet.plan or Plan(), table.seed)
            means = (of_all.input_tokens, of_all.output_tokens)
        else:
            prompts, answers, _ = replica_table.own_lengths(sample, loaded.fleet, model, names)
            means = (float(prompts.mean()), float(answers.mean()))
        for what, now, then in zip(("prompt", "answer"), means, (row.input_tokens, row.output_tokens), strict=True):
            if abs(now - then) > LENGTHS_APART * max(now, then):
                yield f"{row.service}: a mean {what} is {then:,.0f} tokens in the row and {now:,.0f} in the fleet's demand"


def _unrecorded(fleet: Fleet, before: Fleet) -> Iterator[tuple[str, object, object]]:
    """Yield (where, now, before) of what a row rests on without recording it."""
    for name in before.models:
        yield f"models.{name}", fleet.models.get(name), before.models[name]
    for name, one in before.deployments.items():
        now = fleet.deployments.get(name)
        if now is not None:
            yield f"deployments.{name}", _bare(now), _bare(one)
    yield "policy", fleet.policy, before.policy
    yield "gateway", fleet.gateway, before.gateway


def _bare(one: Deployment) -> Deployment:
    """Return a deployment without where and when it runs."""
    return msgspec.structs.replace(one, sites={}, start=None, until=None)
