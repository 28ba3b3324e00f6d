"""Accuracy of the twin on two measured vLLM runs: every request's TTFT, TPOT and end-to-end time.

300 ShareGPT requests at 10/s through vLLM 0.19.0, Llama-3.1-8B in bf16 on one workstation card each; both runs are
overloaded, so queueing, chunked prefill and preemption all count. The times are those of the engine's log; its clock
is set against the client's by the request that reached the engine soonest.
"""

from __future__ import annotations

import csv
import gzip
from collections.abc import Mapping
from dataclasses import dataclass, replace
from importlib.resources import files
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from baseload import jit
from baseload.app.silicon import shape_of, spec_of
from baseload.formulas.fit import Fit, calibrate
from baseload.formulas.speed import DEFAULT, AcceleratorSpec, Parallelism, SpeedConstants, step_costs

if TYPE_CHECKING:
    from baseload.simulate.world import EngineSpec

Array = NDArray[np.float64]

MODEL = "llama-3.1-8b"
BUDGET_TOKENS = 2048
BLOCK_TOKENS = 16
N_FITTED = 150  # requests: the first half fits, the second half scores

# Efficiencies relative to a card's measured kernels, as an engineer would guess them, and what 150 requests on one
# card can say beyond: how far each constant may stray (sd of its log).
START: Mapping[str, float] = DEFAULT.to_dict() | {
    "memory_efficiency": 0.95,
    "math_efficiency": 0.9,
    "attention_efficiency": 0.75,
}
STRAY: Mapping[str, float] = {
    "memory_efficiency": 0.07,
    "math_efficiency": 0.15,
    "attention_efficiency": 0.25,
    "layer_s": 0.3,
    "sequence_s": 0.7,
}
REQUESTS_ARE_WORTH = 100.0  # independent observations: the requests of one run share its settings and its queue
FIRST_TOKEN_WEIGHT = 0.3  # against TPOT and end-to-end: a first token inherits every error before it


@dataclass(frozen=True, slots=True, kw_only=True)
class Card:
    """One run's settings, from its log, and the card's kernels, from LLMServingSim's profiles of the same model.

    `measured_bf16_tflops`: the four products of a layer at 2,048 tokens. `measured_memory_bw_tb_s`: the LM head for
    one token. Workstation cards lie 5 to 15 % off their data sheets, each in its own direction.
    """

    accelerator: str
    max_seqs: int
    blocks: int  # 0: not logged, so the formula's
    measured_bf16_tflops: float
    measured_memory_bw_tb_s: float

    def spec(self, *, measured_kernels: bool) -> AcceleratorSpec:
        """Return the card's numbers, from its data sheet or with its measured peaks."""
        sheet = spec_of(self.accelerator)
        if not measured_kernels:
            return sheet
        return replace(sheet, bf16_tflops=self.measured_bf16_tflops, memory_bw_tb_s=self.measured_memory_bw_tb_s)


CARDS = (
    Card(
        accelerator="rtx-4090",
        max_seqs=256,
        blocks=2588,
        measured_bf16_tflops=165.2,
        measured_memory_bw_tb_s=0.958,
    ),
    Card(
        accelerator="rtx-pro-6000",
        max_seqs=128,
        blocks=0,
        measured_bf16_tflops=395.7,
        measured_memory_bw_tb_s=1.529,
    ),
)


@dataclass(frozen=True, slots=True)
class Requests:
    """A run's requests in order of arrival; seconds after the first."""

    arrival_s: Array
    input_tokens: Array
    output_tokens: Array
    ttft_s: Array
    tpot_s: Array
    e2e_s: Array


def measured_requests(card: Card) -> Requests:
    """Return the measured run on `card`."""
    with (
        (files("baseload.app") / f"measured/vllm_{card.accelerator}.csv.gz").open("rb") as packed,
        gzip.open(packed, "rt", encoding="utf-8", newline="") as text,
    ):
        rows = list(csv.DictReader(text))
    column = {name: np.array([float(row[name]) for row in rows]) for name in rows[0]}
    e2e_s = column["last_token_s"] - column["arrival_s"]
    ttft_s = column["first_token_s"] - column["arrival_s"]
    tpot_s = (e2e_s - ttft_s) / np.maximum(1.0, column["output_tokens"] - 1.0)
    return Requests(column["arrival_s"], column["input_tokens"], column["output_tokens"], ttft_s, tpot_s, e2e_s)


def engine_spec(card: Card, constants: Mapping[str, float], *, measured_kernels: bool = True) -> EngineSpec:
    """Return the twin's engine for `card`."""
    jit.enable()  # before the first import of a kernel
    from baseload.simulate.world import EngineSpec

    costs = step_costs(
        shape_of(MODEL), card.spec(measured_kernels=measured_kernels), Parallelism(),
        max_tokens=BUDGET_TOKENS, max_seqs=card.max_seqs, constants=SpeedConstants.from_dict(constants),
    )  # fmt: skip
    return EngineSpec(
        base_s=costs.base_s,
        head_s=costs.head_s,
        kv_s_per_token=costs.kv_s_per_token,
        kv_window_s_per_token=costs.kv_window_s_per_token,
        window_tokens=costs.window_tokens,
        prefill_attention_s_per_token2=costs.prefill_attention_s_per_token2,
        prefill_kv_s_per_token=costs.prefill_kv_s_per_token,
        max_tokens=BUDGET_TOKENS,
        max_seqs=card.max_seqs,
        blocks=card.blocks or costs.kv_blocks,
        caching=True,
        chunk_tokens=BLOCK_TOKENS,
    )


def simulate_requests(
    card: Card, requests: Requests, constants: Mapping[str, float], *, measured_kernels: bool = True
) -> tuple[Array, Array, Array]:
    """Return (TTFT, TPOT, end-to-end) in seconds of each request, through the twin with one replica."""
    n = len(requests.arrival_s)
    n_blocks = requests.input_tokens // BLOCK_TOKENS
    engine = engine_spec(card, constants, measured_kernels=measured_kernels)
    from baseload.simulate.run import run
    from baseload.simulate.world import PoolSpec, TwinSpec

    twin = TwinSpec(
        engines=(engine,),
        pools=(PoolSpec(deployment=0, site=0, n_min=1, n_max=1),),
        one_way_s=np.zeros(1),
        region_rtt_s=np.zeros(1),
        may=np.ones((1, 1, 1), np.uint8),
        slo=np.full((1, 2), np.inf),
        priority=np.zeros(1, np.int64),
        prices=np.zeros((1, 3)),
        budget=np.full(1, np.inf),
        energy=False,
    )
    chunk = SimpleNamespace(
        arrival_ns=np.rint(requests.arrival_s * 1e9),
        input_tokens=requests.input_tokens,
        output_tokens=requests.output_tokens,
        tenant_i=np.zeros(n),
        region_i=np.zeros(n),
        model_i=np.zeros(n),
        # Prefix caching was on: no prompt is known to share anything, but a preempted one finds its own blocks.
        hash_offsets=np.concatenate([[0], np.cumsum(n_blocks)]),
        hash_ids=np.arange(1, n_blocks.sum() + 1),
        first_id=0,
    )
    records: list[Any] = []
    run(twin, [chunk], emit=lambda rows: records.append(rows.copy()))
    out = np.sort(np.concatenate(records), order="arrival_ns", kind="stable")
    ttft_s = (out["first_token_ns"] - out["arrival_ns"]) / 1e9  # the engine's own log: no HTTP in it
    e2e_s = (out["finish_ns"] - out["arrival_ns"]) / 1e9
    return ttft_s, (e2e_s - ttft_s) / np.maximum(1.0, requests.output_tokens - 1.0), e2e_s


@dataclass(frozen=True, slots=True, kw_only=True)
class RunScore:
    """Relative errors of means over the scored requests, and the mean absolute error of a request's E2E."""

    ttft_mean: float
    tpot_mean: float
    e2e_mean: float
    e2e_each: float


def score_run(
    card: Card,
    requests: Requests,
    constants: Mapping[str, float],
    *,
    first: int = N_FITTED,
    measured_kernels: bool = True,
) -> RunScore:
    """Score the requests from number `first` on."""
    times = simulate_requests(card, requests, constants, measured_kernels=measured_kernels)
    ttft_s, tpot_s, e2e_s = (v[first:] for v in times)
    real_ttft, real_tpot, real_e2e = requests.ttft_s[first:], requests.tpot_s[first:], requests.e2e_s[first:]
    return RunScore(
        ttft_mean=float(ttft_s.mean() / real_ttft.mean() - 1.0),
        tpot_mean=float(tpot_s.mean() / real_tpot.mean() - 1.0),
        e2e_mean=float(e2e_s.mean() / real_e2e.mean() - 1.0),
        e2e_each=float(np.abs(e2e_s / real_e2e - 1.0).mean()),
    )


def fit_run(card: Card, requests: Requests, *, n_fitted: int = N_FITTED, measured_kernels: bool = True) -> Fit:
    """Fit the constants of `STRAY` to the first `n_fitted` requests of a run."""

    def forward(constants: Mapping[str, float]) -> Array:
        times = simulate_requests(card, requests, constants, measured_kernels=measured_kernels)
        return np.concatenate([v[:n_fitted] for v in times])

    seen = [v[:n_fitted] for v in (requests.ttft_s, requests.tpot_s, requests.e2e_s)]
    weight = np.repeat([FIRST_TOKEN_WEIGHT, 1.0, 1.0], n_fitted)
    return calibrate(
        forward,
        np.concatenate(seen),
        START if measured_kernels else DEFAULT.to_dict(),
        STRAY,
        weights=weight * REQUESTS_ARE_WORTH / weight.sum(),
        smooth=False,
    )
