"""A deployment of the fleet file as an engine in numbers: the speed model's tables, what fits, and how fast it is.

The speed model itself is `formulas/speed.py`; who may run where is `setup.py`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields

import msgspec
import numpy as np

from baseload.errors import FleetError, Problem
from baseload.fleet import catalog
from baseload.fleet.model import Deployment, Fleet, Model
from baseload.formulas.shape import ModelShape, active_parameters, parameters
from baseload.formulas.speed import SpeedConstants, StepCosts, step_costs, step_time_s
from baseload.formulas.step_work import AcceleratorSpec, Parallelism, peak_flops
from baseload.simulate import state as st
from baseload.simulate.world import EngineSpec

TYPICAL_CONTEXT_TOKENS = 1024
KV_TRANSFER_SHARE = 0.7  # of the scale-out link, when a prefill replica hands its KV over
ROLES = {"mixed": st.MIXED, "prefill": st.PREFILL, "decode": st.DECODE}


@dataclass(frozen=True, slots=True, kw_only=True)
class DeployedEngine:
    """A deployment's engine, and the figures about it that the report names."""

    name: str
    spec: EngineSpec
    costs: StepCosts
    accelerators: int
    parameters: float
    active_parameters: float
    peak_flops_per_s: float
    max_context: int
    modelled: tuple[str, ...]  # datasheet figures that are guesses
    calibrated: bool


def shape_of(model: Model, key: str) -> ModelShape:
    """Return a model's shape, from the catalogue or as the fleet file declares it."""
    if model.catalog is not None:
        shape = catalog.model(model.catalog).shape
        return ModelShape(**{f.name: getattr(shape, f.name) for f in fields(ModelShape)})
    if model.architecture is None:
        raise FleetError(Problem(key=key, what="has neither `catalog` nor `architecture`", mend="write one of them"))
    declared = msgspec.structs.asdict(model.architecture)
    if not declared["head_dim"]:
        declared["head_dim"] = declared["hidden"] // declared["n_heads"]
    known = {f.name for f in fields(ModelShape)}
    try:
        return ModelShape(**{name: value for name, value in declared.items() if name in known})
    except (AssertionError, ValueError, ZeroDivisionError) as error:
        raise FleetError(
            Problem(key=f"{key}.architecture", what=f"is no possible model ({error})", mend="check the numbers")
        ) from None


def accelerator_numbers(name: str) -> AcceleratorSpec:
    """Return the datasheet numbers of a catalogue accelerator; what it cannot do is 0."""
    known = catalog.accelerator(name)
    return AcceleratorSpec(**{f.name: getattr(known, f.name) or 0 for f in fields(AcceleratorSpec)})


def kv_precision_of(deployment: Deployment) -> str:
    """Return the KV cache's precision: declared, else fp8 beside fp8 or fp4 weights, else bf16."""
    return deployment.kv_precision or ("bf16" if deployment.precision == "bf16" else "fp8")


def speed_constants(name: str, values: Mapping[str, float]) -> SpeedConstants:
    """Return the default constants with a deployment's calibrated ones in their place."""
    try:
        return SpeedConstants.from_dict(values)
    except (ValueError, AssertionError) as error:
        raise FleetError(
            Problem(
                key=f"deployments.{name}.speed",
                what=str(error) or "a constant is negative, zero or not finite",
                mend="use the names and values that `baseload calibrate` writes",
            )
        ) from None


def deployed_engine(fleet: Fleet, name: str, *, model_i: int, chunk_tokens: int) -> DeployedEngine:
    """Return deployment `name` as an engine; raises FleetError when the model does not fit its accelerators."""
    deployment = fleet.deployments[name]
    model = fleet.models[deployment.model]
    shape = shape_of(model, f"models.{deployment.model}")
    accelerator = accelerator_numbers(deployment.accelerator)
    parallelism = Parallelism(tp=deployment.tp, pp=deployment.pp, ep=deployment.ep)
    costs = step_costs(
        shape,
        accelerator,
        parallelism,
        precision=deployment.precision,
        kv_precision=kv_precision_of(deployment),
        max_tokens=deployment.max_num_batched_tokens,
        max_seqs=deployment.max_num_seqs,
        memory_utilisation=deployment.memory_utilisation,
        block_tokens=deployment.block_tokens,
        constants=speed_constants(name, deployment.speed),
    )
    blocks = deployment.kv_blocks or costs.kv_blocks
    if blocks * deployment.block_tokens < 2 * deployment.block_tokens:
        room_gb = parallelism.accelerators * accelerator.memory_gb
        raise FleetError(
            Problem(
                key=f"deployments.{name}",
                what=f"{costs.weights_bytes / 1e9:,.0f} GB of weights leave no room for a KV cache in "
                f"{room_gb:,.0f} GB of accelerator memory",
                mend="raise tp or pp, or choose a smaller precision or a larger accelerator",
            )
        )
    max_context = _max_context(model, name, kv_tokens=blocks * deployment.block_tokens)
    transfer_gb_s = (accelerator.scale_out_gb_s or 1.0) * KV_TRANSFER_SHARE * parallelism.accelerators
    spec = EngineSpec(
        base_s=costs.base_s,
        head_s=costs.head_s,
        kv_s_per_token=costs.kv_s_per_token,
        kv_window_s_per_token=costs.kv_window_s_per_token,
        window_tokens=costs.window_tokens,
        prefill_attention_s_per_token2=costs.prefill_attention_s_per_token2,
        prefill_kv_s_per_token=costs.prefill_kv_s_per_token,
        power_w=costs.power_w,
        power_idle_w=costs.power_idle_w,
        max_tokens=deployment.max_num_batched_tokens,
        max_seqs=deployment.max_num_seqs,
        block_tokens=deployment.block_tokens,
        blocks=blocks,
        max_context=max_context,
        cold_s=deployment.cold_start_s,
        overhead_s=costs.ttft_overhead_s,
        role=ROLES[deployment.role],
        caching=deployment.prefix_caching and chunk_tokens > 0,
        chunk_tokens=chunk_tokens,
        transfer_s_per_token=costs.kv_bytes_per_token / (transfer_gb_s * 1e9),
        prefill_tokens_per_s=prefill_speed(costs, deployment.max_num_batched_tokens),
        decode_s_per_token=half_load_step_s(costs, deployment.max_num_seqs, blocks * deployment.block_tokens),
        accelerators=parallelism.accelerators,
        model_i=model_i,
    )
    provenance = catalog.accelerator(deployment.accelerator).provenance
    return DeployedEngine(
        name=name,
        spec=spec,
        costs=costs,
        accelerators=parallelism.accelerators,
        parameters=parameters(shape),
        active_parameters=active_parameters(shape),
        peak_flops_per_s=peak_flops(accelerator, deployment.precision),
        max_context=max_context,
        modelled=catalog.modelled_figures(provenance),
        calibrated=bool(deployment.speed),
    )


def _max_context(model: Model, name: str, *, kv_tokens: int) -> int:
    """Return the longest context that the model allows; raises FleetError where not even two tokens fit."""
    known = catalog.model(model.catalog).max_context_tokens if model.catalog else 1 << 30
    longest = model.max_context_tokens or known
    room = min(longest, kv_tokens - 1)
    if room < 2:
        what = f"a context of {room} token{'s' * (room != 1)} has no room for a prompt and an answer"
        mend = "raise kv_blocks, or the model's max_context_tokens"
        raise FleetError(Problem(key=f"deployments.{name}", what=what, mend=mend))
    return longest


def prefill_speed(costs: StepCosts, chunk: int) -> float:
    """Return prompt tokens per second of an otherwise empty engine, in full chunks."""
    return chunk / step_time_s(costs, chunks=((chunk, 0),))


def half_load_step_s(costs: StepCosts, max_seqs: int, kv_tokens: int) -> float:
    """Return the time of a decode step at half of what seats or KV cache allow, with typical contexts, in seconds."""
    n = max(1, min(max_seqs // 2, kv_tokens // (2 * TYPICAL_CONTEXT_TOKENS)))
    return step_time_s(costs, n_decode=n, kv_tokens=n * TYPICAL_CONTEXT_TOKENS)


def half_load_sequences(engine: DeployedEngine) -> int:
    """Return the sequences of half load: half of what seats, or the KV cache with typical contexts, allow."""
    spec = engine.spec
    return max(1, min(spec.max_seqs // 2, spec.blocks * spec.block_tokens // (2 * TYPICAL_CONTEXT_TOKENS)))


def joules_per_token(engine: DeployedEngine) -> float:
    """Return the energy above idle of one more token at half load, in joules: what routing compares."""
    spec = engine.spec
    assert spec.power_w is not None
    n = half_load_sequences(engine)
    above_idle_w = float(spec.power_w[min(n, len(spec.power_w) - 1)]) - spec.power_idle_w
    return max(above_idle_w, 0.0) * spec.decode_s_per_token / n


def accelerator_share(engines: list[DeployedEngine]) -> np.ndarray[tuple[int], np.dtype[np.int64]]:
    """Return the accelerators of one replica of each engine."""
    return np.array([engine.accelerators for engine in engines], np.int64)
