"""Calibrate the twin to an embedded engine: measure it over HTTP for some seconds, fit the speed model's constants to it.

So that twin and reality may stand side by side, the twin's engine has to be the engine that runs, not the accelerator that
the fleet file names. Users in closed loop stream completions of known lengths; the forward model is the twin's own
scheduler (adapters/engines/step_loop.py agrees with it to the microsecond) over step costs of the model's shape on one
processor core. Loads that were not fitted say how far to trust it.
"""

from __future__ import annotations

import asyncio
import random
import string
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from heapq import heappop, heappush
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import msgspec
import numpy as np

from baseload.adapters.engines.step_loop import Job, Replica, StepTable
from baseload.errors import BaseloadError
from baseload.formulas.fit import Array, calibrate, errors
from baseload.formulas.shape import ModelShape
from baseload.formulas.speed import DEFAULT, SpeedConstants, StepCosts, step_costs
from baseload.formulas.step_work import AcceleratorSpec, Parallelism
from baseload.simulate.engines import half_load_step_s, prefill_speed

if TYPE_CHECKING:
    from baseload.simulate.setup import Twin
    from baseload.simulate.world import EngineSpec

CORE = AcceleratorSpec(bf16_tflops=0.05, memory_gb=1e3, memory_bw_tb_s=0.02, tdp_w=10.0, idle_w=1.0)
TINY = ModelShape(n_layers=4, hidden=128, n_heads=4, n_kv_heads=2, head_dim=32, ffn=352, vocab=640)
BATCH_TOKENS = 2048  # llama.cpp's n_batch
BLOCK_TOKENS = 16
FITTED: Mapping[str, float] = {  # sd of its log: a core's numbers are anybody's guess, the rows shall say
    "math_efficiency": 2.0,
    "attention_efficiency": 2.0,
    "layer_s": 2.0,
    "sequence_s": 2.0,
}
START: Mapping[str, float] = {
    "math_efficiency": 0.3, "attention_efficiency": 0.3, "layer_s": 4e-5, "sequence_s": 5e-5, "activation_passes": 1.0,
    "memory_efficiency": 1.0,
}  # fmt: skip
OVERHEAD_S = 2e-3
ROUNDS = 2
PASSES = 4
MEASURE_S = 7.0  # no pass is begun after it: on a busy machine there are fewer
STAGGER_S = 3e-3  # between the users' first requests, so that who comes first is known
LONGEST_S = 60.0
BUSY_MACHINE = 0.1


class Load(NamedTuple):
    """Users in closed loop, each with some requests of the same length."""

    input_tokens: int
    output_tokens: int
    users: int


FIT_LOADS = (Load(16, 48, 1), Load(256, 24, 1), Load(1024, 16, 1), Load(64, 48, 2), Load(64, 48, 4), Load(256, 32, 4),
             Load(64, 24, 8))  # fmt: skip
OTHER_LOADS = (Load(640, 16, 1), Load(128, 64, 3), Load(160, 32, 4), Load(400, 32, 2), Load(96, 24, 6))


class Times(NamedTuple):
    """Means over the requests of a closed loop, in seconds."""

    ttft_s: float
    tpot_s: float


class CalibrationError(BaseloadError):
    """An engine that cannot be measured: gone, or it does not stream."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Fitted:
    """An engine as measured: its constants on `CORE`, what fits, and how well that predicts."""

    constants: dict[str, float]
    overhead_s: float
    slots: int
    context_tokens: int
    shape: ModelShape
    measured: dict[Load, Times]  # fitted loads, then others
    predicted: dict[Load, Times]
    fitted_loads: int
    took_s: float
    waited_ratio: float | None = None  # of the engine's time, spent waiting for a core that others held

    def errors_of(self, *, fitted: bool) -> tuple[list[float], list[float]]:
        """Return relative errors of TTFT and TPOT, over the fitted loads or the others."""
        loads = list(self.measured)[: self.fitted_loads] if fitted else list(self.measured)[self.fitted_loads :]
        return (
            [abs(self.predicted[load].ttft_s / self.measured[load].ttft_s - 1.0) for load in loads],
            [abs(self.predicted[load].tpot_s / self.measured[load].tpot_s - 1.0) for load in loads],
        )

    def text(self) -> str:
        """Return a small table for people: measured and predicted, and the errors on loads that were not fitted."""
        lines = [f"{'prompt':>7s}{'answer':>7s}{'users':>6s}{'TTFT ms':>16s}{'TPOT ms':>16s}"]
        for i, (load, real) in enumerate(self.measured.items()):
            twin = self.predicted[load]
            mark = "" if i < self.fitted_loads else "  not fitted"
            lines.append(
                f"{load.input_tokens:7d}{load.output_tokens:7d}{load.users:6d}{1e3 * real.ttft_s:8.1f}"
                f"{1e3 * twin.ttft_s:8.1f}{1e3 * real.tpot_s:8.2f}{1e3 * twin.tpot_s:8.2f}{mark}"
            )
        for name, fitted in (("fitted", True), ("not fitted", False)):
            ttft, tpot = self.errors_of(fitted=fitted)
            if ttft:
                lines.append(f"median error, {name}: TTFT {np.median(ttft):.0%}, TPOT {np.median(tpot):.0%}")
        if self.waited_ratio is not None and self.waited_ratio > BUSY_MACHINE:
            lines.append(
                f"the engine waited {self.waited_ratio:.0%} of its time for a core: measure again when it is idle"
            )
        return "\n".join(lines)


def calibrate_engine(
    url: str,
    *,
    slots: int,
    context_tokens: int,
    shape: ModelShape = TINY,
    model: str = "",
    pid: int = 0,
    seed: int = 0,
    fit_loads: Sequence[Load] = FIT_LOADS,
    other_loads: Sequence[Load] = OTHER_LOADS,
) -> Fitted:
    """Measure the engine at `url`, which nobody else should use meanwhile, and fit; raises CalibrationError.

    With `pid`, its process, Linux tells how long it had to wait for a core. Runs an event loop of its own.
    """
    started_s = time.monotonic()
    loads = [*fit_loads, *other_loads]
    before = _ran_and_waited_s(pid)
    measured = asyncio.run(_measure_all(url, loads, model, seed))
    ran_s, waited_s = (after - was for after, was in zip(_ran_and_waited_s(pid), before, strict=True))
    constants, overhead_s = fit({load: measured[load] for load in fit_loads}, shape, slots, context_tokens)
    table = table_of(constants, overhead_s, shape, slots, context_tokens)
    return Fitted(
        constants=constants,
        overhead_s=overhead_s,
        slots=slots,
        context_tokens=context_tokens,
        shape=shape,
        measured=measured,
        predicted={load: predict(table, load) for load in loads},
        fitted_loads=len(fit_loads),
        took_s=time.monotonic() - started_s,
        waited_ratio=waited_s / (ran_s + waited_s) if ran_s > 0.0 else None,
    )


def _ran_and_waited_s(pid: int) -> tuple[float, float]:
    """Return how long the threads of a process ran, and waited while they could have run; zeros where nobody tells."""
    ran_ns = waited_ns = 0
    for path in Path(f"/proc/{pid}/task").glob("*/schedstat") if pid else ():
        try:
            ran, waited, *_ = path.read_text().split()
        except (OSError, ValueError):
            continue  # a thread that ended meanwhile
        ran_ns, waited_ns = ran_ns + int(ran), waited_ns + int(waited)
    return ran_ns / 1e9, waited_ns / 1e9


# ---- measuring -------------------------------------------------------------------------------------------


async def _measure_all(url: str, loads: Sequence[Load], model: str, seed: int) -> dict[Load, Times]:
    dice = random.Random(seed)
    passes: dict[Load, list[Times]] = {load: [] for load in loads}
    await _measure(url, Load(64, 8, 2), model, dice)  # first touch of buffers
    until_s = time.monotonic() + MEASURE_S
    for i in range(PASSES):
        if i and time.monotonic() > until_s:
            break
        for load in loads:
            passes[load].append(await _measure(url, load, model, dice))
    # The least of the passes: whatever else the machine did can only have added.
    return {load: Times(*(min(of) for of in zip(*times, strict=True))) for load, times in passes.items()}


async def _measure(url: str, load: Load, model: str, dice: random.Random) -> Times:
    """Run a closed loop once."""

    async def user(i: int, prompts: list[str]) -> list[Times]:
        await asyncio.sleep(i * STAGGER_S)
        return [await _stream(url, prompt, load.output_tokens, model) for prompt in prompts]

    def prompt() -> str:  # nobody shares a beginning; a letter is a token, and one marks the beginning
        return "".join(dice.choices(string.ascii_lowercase, k=load.input_tokens - 1))

    users = [user(i, [prompt() for _ in range(ROUNDS)]) for i in range(load.users)]
    try:
        seen = await asyncio.wait_for(asyncio.gather(*users), LONGEST_S)
    except (OSError, TimeoutError, asyncio.IncompleteReadError) as problem:
        raise CalibrationError(f"{url}: cannot be measured ({type(problem).__name__}: {problem})") from None
    times = [each for row in seen for each in row]
    return Times(float(np.mean([t.ttft_s for t in times])), float(np.mean([t.tpot_s for t in times])))


async def _stream(url: str, prompt: str, output_tokens: int, model: str) -> Times:
    """Stream one completion; return its times."""
    host, _, port = url.removeprefix("http://").partition(":")
    body = msgspec.json.encode({
        "model": model, "prompt": prompt, "max_tokens": output_tokens, "ignore_eos": True, "cache_prompt": False,
        "stream": True,
    })  # fmt: skip
    head = f"POST /v1/completions HTTP/1.1\r\nhost: {host}\r\ncontent-length: {len(body)}\r\n\r\n"
    started_s = time.monotonic()
    reader, writer = await asyncio.open_connection(host, int(port.split("/")[0]))
    try:
        writer.write(head.encode() + body)
        status = await reader.readline()
        if b" 200 " not in status:
            raise CalibrationError(f"{url}: answers {status.decode('latin-1').strip()}")
        at_s: list[float] = []
        while not (line := await reader.readline()).startswith(b"data: [DONE]"):
            if not line:
                raise CalibrationError(f"{url}: the stream broke off")
            if line.startswith(b"data: ") and b'"finish_reason":null' in line.replace(b" ", b""):
                at_s.append(time.monotonic())
    finally:
        writer.close()
    if len(at_s) < 2:
        raise CalibrationError(f"{url}: does not stream token by token")
    return Times(at_s[0] - started_s, (at_s[-1] - at_s[0]) / (output_tokens - 1))


# ---- in company ------------------------------------------------------------------------------------------


def in_company(
    urls: Sequence[str], asks: Sequence[tuple[float, Load]], fitted: Fitted, *, model: str = "", seed: int = 0
) -> list[tuple[float, float]]:
    """Send requests, each at its time in seconds, to engines that share a machine; return how much slower each was.

    The factors are on the times to the first token and after it, over what the fit says of the request alone: whatever the
    engines and the rest of the machine take from each other. Runs an event loop of its own; raises CalibrationError.
    """
    table = table_of(fitted.constants, fitted.overhead_s, fitted.shape, fitted.slots, fitted.context_tokens)
    alone = {load: predict(table, load, rounds=1) for load in {load for _, load in asks}}  # not while streams are read
    dice = random.Random(seed)

    async def one(i: int, at_s: float, load: Load) -> tuple[float, float]:
        await asyncio.sleep(at_s)
        prompt = "".join(dice.choices(string.ascii_lowercase, k=max(1, load.input_tokens - 1)))
        seen = await _stream(urls[i % len(urls)], prompt, load.output_tokens, model)
        return seen.ttft_s / alone[load].ttft_s, seen.tpot_s / alone[load].tpot_s

    async def every() -> list[tuple[float, float]]:
        for url in urls:
            await _measure(url, Load(64, 8, 2), model, dice)  # first touch of buffers
        return await asyncio.gather(*(one(i, at_s, load) for i, (at_s, load) in enumerate(asks)))

    try:
        return asyncio.run(asyncio.wait_for(every(), LONGEST_S))
    except (OSError, TimeoutError, asyncio.IncompleteReadError) as problem:
        raise CalibrationError(f"engines cannot be measured together ({type(problem).__name__}: {problem})") from None


# ---- fitting ---------------------------------------------------------------------------------------------


def costs_of(constants: Mapping[str, float], shape: ModelShape, slots: int) -> StepCosts:
    """Return the step costs of an engine of such constants on one core."""
    return step_costs(
        shape, CORE, Parallelism(), max_tokens=BATCH_TOKENS, max_seqs=slots, block_tokens=BLOCK_TOKENS,
        constants=SpeedConstants.from_dict(constants),
    )  # fmt: skip


def table_of(
    constants: Mapping[str, float], overhead_s: float, shape: ModelShape, slots: int, context_tokens: int
) -> StepTable:
    """Return the same as a step table."""
    costs = costs_of(constants, shape, slots)
    return StepTable(
        base_s=costs.base_s.tolist(), head_s=costs.head_s.tolist(), kv_s_per_token=costs.kv_s_per_token,
        prefill_attention_s_per_token2=costs.prefill_attention_s_per_token2,
        prefill_kv_s_per_token=costs.prefill_kv_s_per_token, max_tokens=BATCH_TOKENS, max_seqs=slots,
        block_tokens=BLOCK_TOKENS, blocks=slots * -(-context_tokens // BLOCK_TOKENS), max_context=context_tokens,
        overhead_s=overhead_s, caching=False,
    )  # fmt: skip


def predict(table: StepTable, load: Load, rounds: int = ROUNDS) -> Times:
    """Return what the twin's scheduler makes of a closed loop."""
    replica = Replica(table)
    sends = [(user * STAGGER_S, user) for user in range(load.users)]  # heap of (when, who)
    done: list[int] = [0] * load.users
    ttft_s: list[float] = []
    tpot_s: list[float] = []

    def send(user: int, now_s: float) -> None:
        job = Job(load.input_tokens, load.output_tokens, [], None, lambda: ended(user, now_s, job))
        replica.submit(job, now_s)

    def ended(user: int, sent_s: float, job: Job) -> None:
        ttft_s.append(job.first_s - sent_s)
        tpot_s.append((replica.clock_s - job.first_s) / max(1, load.output_tokens - 1))
        done[user] += 1
        if done[user] < rounds:
            heappush(sends, (replica.clock_s, user))

    now_s = 0.0
    while len(ttft_s) < rounds * load.users:
        while sends and sends[0][0] <= now_s:
            send(heappop(sends)[1], now_s)
        due_s = replica.advance(now_s)
        waits_s = [when for when in (due_s, sends[0][0] if sends else None) if when is not None]
        now_s = max(now_s, min(waits_s)) if waits_s else now_s
    return Times(float(np.mean(ttft_s)), float(np.mean(tpot_s)))


def fit(
    measured: Mapping[Load, Times], shape: ModelShape, slots: int, context_tokens: int
) -> tuple[dict[str, float], float]:
    """Return the constants, and the overhead before a request reaches the engine, that explain what was measured."""

    def forward(values: Mapping[str, float]) -> Array:
        constants = {name: value for name, value in values.items() if name != "overhead_s"}
        table = table_of(constants, values["overhead_s"], shape, slots, context_tokens)
        times = [predict(table, load) for load in measured]
        return np.array([t.ttft_s for t in times] + [t.tpot_s for t in times])

    target = np.array([t.ttft_s for t in measured.values()] + [t.tpot_s for t in measured.values()])
    start = DEFAULT.to_dict() | dict(START) | {"overhead_s": OVERHEAD_S}
    found = calibrate(forward, target, start, dict(FITTED) | {"overhead_s": 1.0})
    constants = dict(found.constants)
    overhead_s = constants.pop("overhead_s")
    return constants, overhead_s


def median_errors(predicted: Mapping[Load, Times], measured: Mapping[Load, Times]) -> tuple[float, float]:
    """Return the median relative errors of TTFT and TPOT."""
    pairs = [(predicted[load], measured[load]) for load in measured]
    ttft = errors(np.array([p.ttft_s for p, _ in pairs]), np.array([m.ttft_s for _, m in pairs]))
    tpot = errors(np.array([p.tpot_s for p, _ in pairs]), np.array([m.tpot_s for _, m in pairs]))
    return float(np.median(ttft)), float(np.median(tpot))


# ---- the twin as measured --------------------------------------------------------------------------------


def engine_as_measured(spec: EngineSpec, fitted: Fitted) -> EngineSpec:
    """Return the twin's engine with measured speed and room; its power and its place stay as the fleet file says."""
    costs = costs_of(fitted.constants, fitted.shape, fitted.slots)
    blocks = fitted.slots * -(-fitted.context_tokens // BLOCK_TOKENS)
    power_w = spec.power_w
    if power_w is not None and len(power_w) != BATCH_TOKENS + 1:
        power_w = np.interp(np.arange(BATCH_TOKENS + 1), np.arange(len(power_w)), power_w)
    return replace(
        spec, base_s=costs.base_s, head_s=costs.head_s, kv_s_per_token=costs.kv_s_per_token, kv_window_s_per_token=0.0,
        window_tokens=0, prefill_attention_s_per_token2=costs.prefill_attention_s_per_token2,
        prefill_kv_s_per_token=costs.prefill_kv_s_per_token, power_w=power_w, max_tokens=BATCH_TOKENS,
        max_seqs=fitted.slots, block_tokens=BLOCK_TOKENS, blocks=blocks, max_context=fitted.context_tokens, cold_s=0.0,
        overhead_s=fitted.overhead_s, prefill_tokens_per_s=prefill_speed(costs, BATCH_TOKENS),
        decode_s_per_token=half_load_step_s(costs, fitted.slots, blocks * BLOCK_TOKENS),
    )  # fmt: skip


def twin_as_measured(twin: Twin, fitted: Mapping[str, Fitted]) -> Twin:
    """Return the twin with the deployments named in `fitted` as measured; the others stay as they are."""
    engines = tuple(
        replace(
            engine,
            spec=engine_as_measured(engine.spec, fitted[engine.name]),
            costs=costs_of(fitted[engine.name].constants, fitted[engine.name].shape, fitted[engine.name].slots),
            max_context=fitted[engine.name].context_tokens,
            calibrated=True,
        )
        if engine.name in fitted
        else engine
        for engine in twin.engines
    )
    return replace(twin, engines=engines, spec=replace(twin.spec, engines=tuple(engine.spec for engine in engines)))
