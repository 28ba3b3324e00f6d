"""The benchmark's workload and its measurements, each in a process of its own: `python bench/cases.py CASE ...`.

A case prints one line of JSON. CPU seconds are `time.process_time` of this process (all its threads); what it takes to
make up arrivals is measured apart and taken off, and so is compiling: every case first runs a few requests unmeasured.
What is run, how often, and against which goal is `run.py`.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import shutil
import signal
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

BENCH = Path(__file__).resolve().parent
RATE_PER_REPLICA = 12.0  # requests/s
SEED = 1
HASH_BLOCK_TOKENS = 512
SHARED_BLOCKS = 2  # of a prompt's beginning, shared with its group: a system prompt, or a document
GROUPS = 1000
CHUNK_ROWS = 131_072


# ---- workload --------------------------------------------------------------------------------------------


@dataclass
class Demand:
    """Poisson arrivals with prompt and answer lengths drawn from the Azure conversation trace, chunk by chunk."""

    n: int
    per_s: float
    hashes: bool
    seed: int = SEED
    cpu_s: float = 0.0  # spent on making it up
    lengths: Any = field(default=None, repr=False)

    def __post_init__(self) -> None:
        from baseload.adapters.trace_files import open_trace

        whole = open_trace("azure-conv").whole()
        self.lengths = whole.input_tokens.copy(), whole.output_tokens.copy()

    def blocks(self) -> Iterator[Any]:
        """Yield the demand as chunks of a trace; the same each time."""
        import numpy as np

        dice = np.random.default_rng(self.seed)
        at_ns, first_id = 0, 0
        while first_id < self.n:
            before = time.process_time()
            chunk = self._chunk(dice, at_ns, first_id, min(CHUNK_ROWS, self.n - first_id))
            at_ns = int(chunk.arrival_ns[-1])
            first_id += len(chunk.arrival_ns)
            self.cpu_s += time.process_time() - before
            yield chunk

    def _chunk(self, dice: Any, at_ns: int, first_id: int, n: int) -> Any:
        import numpy as np

        from baseload.adapters.traces import Trace

        arrival_ns = at_ns + np.cumsum(np.rint(dice.exponential(1e9 / self.per_s, n)).astype(np.int64))
        rows = dice.integers(0, len(self.lengths[0]), n)
        prompts, answers = self.lengths[0][rows], self.lengths[1][rows]
        offsets, ids = np.zeros(n + 1, np.int64), np.zeros(0, np.int64)
        if self.hashes:
            counts = prompts.astype(np.int64) // HASH_BLOCK_TOKENS
            np.cumsum(counts, out=offsets[1:])
            row = np.repeat(np.arange(n), counts)
            position = np.arange(offsets[-1]) - offsets[row]
            group = np.minimum(dice.zipf(1.3, n), GROUPS)[row]
            own = (1 << 40) + ((first_id + row) << 12) + position
            ids = np.where(position < SHARED_BLOCKS, group * SHARED_BLOCKS + position, own)
        who = dice.integers(0, 2, (2, n)).astype(np.int16) if self.hashes else np.zeros((2, n), np.int16)
        return Trace(
            arrival_ns,
            prompts,
            answers,
            who[0],
            who[1],
            np.zeros(n, np.int16),
            offsets,
            ids,
            HASH_BLOCK_TOKENS,
            first_id,
        )


def described(demand: Demand, replicas: int) -> tuple[Any, Any]:
    """Return the benchmark's fleet file with so many replicas, and its twin as `baseload simulate` describes it."""
    from baseload import jit

    jit.enable()
    from baseload.fleet import load
    from baseload.simulate.setup import describe

    half = replicas // 2
    overrides = []
    for site in ("frankfurt", "paris"):
        overrides += [
            f"deployments.chat.sites.{site}.min={half}",
            f"sites.{site}.racks.h100.racks={max(16, half // 16)}",
            f"sites.{site}.grid.0.power_mw={max(2.0, half / 256.0)}",
            f"sites.{site}.contracts.0.power_mw={max(2.0, half / 256.0)}",
        ]
    loaded = load.load(BENCH / "fleet.yaml", overrides)
    twin = describe(
        loaded.fleet,
        base_folder=BENCH,
        duration_s=demand.n / demand.per_s,
        chunk_tokens=HASH_BLOCK_TOKENS,
        seed=SEED,
        mean_output_tokens=float(demand.lengths[1].mean()),
    )
    return loaded, twin


def bare_spec(twin: Any, replicas: int) -> Any:
    """Return the same engines without anything around them: one site, no cache, no power, no failures."""
    import numpy as np

    from baseload.simulate.world import PoolSpec, TwinSpec

    engine = replace(twin.spec.engines[0], caching=False, chunk_tokens=0, overhead_s=0.0)
    return TwinSpec(
        engines=(engine,),
        pools=(PoolSpec(deployment=0, site=0, n_min=replicas, n_max=replicas),),
        one_way_s=np.zeros(1),
        region_rtt_s=np.zeros(1),
        may=np.ones((1, 1, 1), np.uint8),
        slo=np.array([[2.0, 0.1]]),
        priority=np.array([5], np.int64),
        prices=np.zeros((1, 3)),
        budget=np.array([np.inf]),
        energy=False,
        seed=SEED,
    )


def everything_spec(twin: Any, duration_s: float) -> Any:
    """Return the fleet's twin with scrapes on, a power limit that binds for a while, and one outage that always comes."""
    import numpy as np

    limit_kw = twin.spec.limit_kw.copy()
    bins = slice(int(0.4 * duration_s / twin.spec.bin_s), int(0.6 * duration_s / twin.spec.bin_s) + 1)
    replicas = twin.spec.pools[0].n_max
    assert twin.spec.engines[0].power_w is not None
    limit_kw[0, bins] = 0.6 * replicas * float(twin.spec.engines[0].power_w.max()) / 1000.0
    at_ns = round(0.3e9 * duration_s)
    sure = np.array([[at_ns, 0, 1], [at_ns + round(0.1e9 * duration_s), 0, -1]], np.int64)
    outages = np.concatenate([twin.spec.outages, sure])
    outages = outages[np.lexsort(outages.T[::-1])]
    return replace(twin.spec, scrapes=True, limit_kw=limit_kw, outages=outages)


# ---- measurements ----------------------------------------------------------------------------------------


def cpu_of(action: Callable[[], Any], demand: Demand | None = None) -> tuple[Any, float]:
    """Return what `action` returns and the CPU seconds it took, without those of making up arrivals."""
    made_s = demand.cpu_s if demand else 0.0
    before = time.process_time()
    answer = action()
    took_s = time.process_time() - before
    return answer, took_s - ((demand.cpu_s - made_s) if demand else 0.0)


def rss_mb() -> float:
    """Return the memory of this process that is in RAM, now."""
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE") / 1e6


def peak_rss_mb() -> float:
    """Return the most memory that this process has had in RAM."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / 1e6


def run_bare(demand: Demand, replicas: int) -> dict[str, Any]:
    """Serve the demand without anything around it; records are looked at and dropped."""
    spec = bare_spec(described(demand, replicas)[1], replicas)
    from baseload.simulate.run import run

    sums = {"ttft_s": 0.0, "e2e_s": 0.0}

    def look(rows: Any) -> None:
        sums["ttft_s"] += float((rows["first_token_ns"] - rows["arrival_ns"]).sum()) / 1e9
        sums["e2e_s"] += float((rows["finish_ns"] - rows["arrival_ns"]).sum()) / 1e9

    outcome, cpu_s = cpu_of(lambda: run(spec, demand.blocks(), emit=look), demand)
    assert outcome.served == demand.n, outcome.served
    return {
        "cpu_s": cpu_s,
        "ttft_s": sums["ttft_s"] / demand.n,
        "e2e_s": sums["e2e_s"] / demand.n,
        "steps": int(outcome.world.replicas["n_steps"].sum()),
    }


def run_everything(demand: Demand, replicas: int, breathe: Callable[[Any], None] | None = None) -> dict[str, Any]:
    """Serve the demand with everything on and write the run folder, into a temporary place."""
    loaded, twin = described(demand, replicas)
    from baseload.adapters.store import RunWriter
    from baseload.app import run_meta
    from baseload.ports import Names, RunMeta, TraceMeta
    from baseload.simulate.run import run

    twin = replace(twin, spec=everything_spec(twin, demand.n / demand.per_s))
    meta = RunMeta(
        fleet=loaded.fleet.name,
        fleet_digest=loaded.digest,
        seed=SEED,
        trace=TraceMeta(name="bench", requests=demand.n),
        start_utc="2024-06-15T12:00:00Z",
        duration_ns=0,
        names=Names(tenants=list(twin.tenants), regions=list(twin.regions), models=list(twin.models),
                    deployments=list(twin.deployments), sites=list(twin.sites)),
    )  # fmt: skip
    writing = {"cpu_s": 0.0, "longest_s": 0.0}
    folder = Path(tempfile.mkdtemp(prefix="baseload-bench-"))
    try:

        def whole() -> Any:
            with RunWriter(folder / "run", meta, loaded.text) as writer:

                def write(rows: Any) -> None:
                    before = time.process_time()
                    writer.append_requests(rows)
                    took_s = time.process_time() - before
                    writing["cpu_s"] += took_s
                    writing["longest_s"] = max(writing["longest_s"], took_s)

                outcome = run(twin.spec, demand.blocks(), emit=write, breathe=breathe)
                run_meta.append_unfinished(outcome, writer)
                writer.write_replicas(run_meta.replica_rows(twin, outcome))
                writer.write_sites(run_meta.site_rows(twin, outcome))
                writer.finish({"duration_ns": outcome.end_ns, "balance": run_meta.balance_of(outcome)})
                return outcome

        outcome, cpu_s = cpu_of(whole, demand)
        size_mb = sum(file.stat().st_size for file in folder.rglob("*") if file.is_file()) / 1e6
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    replicas_table = outcome.world.replicas
    assert outcome.served + outcome.refused + outcome.failed + outcome.unfinished == demand.n
    return {
        "cpu_s": cpu_s,
        "writing_cpu_s": writing["cpu_s"],
        "longest_write_cpu_s": writing["longest_s"],
        "served": outcome.served,
        "refused": outcome.refused,
        "failed": outcome.failed,
        "unfinished": outcome.unfinished,
        "outages": int((twin.spec.outages[:, 0] < outcome.end_ns).sum()) if len(twin.spec.outages) else 0,
        "preempted": int(replicas_table["n_preempted"].sum()),
        "cached_tokens": int(replicas_table["cached_tokens"].sum()),
        "prefill_tokens": int(replicas_table["prefill_tokens"].sum()),
        "capped_s": float(outcome.world.bins[:, :, 8].sum()),
        "folder_mb": size_mb,
    }


def run_reference(demand: Demand, replicas: int) -> dict[str, Any]:
    """Serve the demand with the reference kernel."""
    import numpy as np
    from reference_kernel import simulate

    engine = described(demand, replicas)[1].spec.engines[0]
    chunks = list(demand.blocks())
    arrival_s = np.concatenate([c.arrival_ns for c in chunks]) / 1e9
    prompts = np.concatenate([c.input_tokens for c in chunks])
    answers = np.concatenate([c.output_tokens for c in chunks])
    first_s, finish_s = np.zeros(len(arrival_s)), np.zeros(len(arrival_s))
    steps, cpu_s = cpu_of(
        lambda: simulate(
            arrival_s, prompts, answers, replicas, engine.base_s, engine.head_s, engine.kv_s_per_token,
            engine.prefill_attention_s_per_token2, engine.prefill_kv_s_per_token, engine.max_tokens, engine.max_seqs,
            engine.blocks * engine.block_tokens, first_s, finish_s,
        )
    )  # fmt: skip
    assert (finish_s >= first_s).all() and (first_s > arrival_s).all()
    return {
        "cpu_s": cpu_s,
        "ttft_s": float((first_s - arrival_s).mean()),
        "e2e_s": float((finish_s - arrival_s).mean()),
        "steps": int(steps),
    }


KINDS = {"bare": run_bare, "everything": run_everything, "reference": run_reference}


def demand_of(kind: str, n: int, replicas: int) -> Demand:
    """Return the demand of a case."""
    return Demand(n=n, per_s=RATE_PER_REPLICA * replicas, hashes=kind == "everything")


def measured(kind: str, n: int, replicas: int) -> dict[str, Any]:
    """Run a case once; compiled code is made or loaded before."""
    return KINDS[kind](demand_of(kind, n, replicas), replicas)


# ---- cases -----------------------------------------------------------------------------------------------


def case_in_turn(options: argparse.Namespace) -> dict[str, Any]:
    """Run several kinds in turn, A B A B, so that a noisy machine is noisy for all of them."""
    kinds = options.kinds.split(",")
    for kind in kinds:
        measured(kind, 2000, 4)
    rounds: dict[str, list[dict[str, Any]]] = {kind: [] for kind in kinds}
    for _ in range(options.rounds):
        for kind in kinds:
            rounds[kind].append(measured(kind, options.requests, options.replicas))
    return {"rounds": rounds}


def case_memory(options: argparse.Namespace) -> dict[str, Any]:
    """Run everything once, and say how much memory it took at most."""
    measured("everything", 2000, 4)
    before_mb = peak_rss_mb()
    figures = measured("everything", options.requests, options.replicas)
    return figures | {"peak_rss_mb": peak_rss_mb(), "before_mb": before_mb}


def case_stream(options: argparse.Namespace) -> dict[str, Any]:
    """Stream many requests with everything on; memory over time, and how long the shell ever waits for the kernel."""
    measured("everything", 2000, 4)
    watch = Watch()
    demand = demand_of("everything", options.requests, options.replicas)
    figures = run_everything(demand, options.replicas, watch.breathe)
    return figures | {
        "generating_cpu_s": demand.cpu_s,
        "peak_rss_mb": peak_rss_mb(),
        "rss_mb_by_tenth": watch.tenths(options.requests),
        "longest_breath_wall_s": watch.longest_wall_s,
        "longest_breath_cpu_s": watch.longest_cpu_s,
        "breaths": watch.n,
    }


class Watch:
    """Notes memory and the time between two calls of `breathe`."""

    def __init__(self) -> None:
        self.n = 0
        self.longest_wall_s = self.longest_cpu_s = 0.0
        self.rss: list[tuple[int, float]] = []
        self.last: tuple[float, float] | None = None

    def breathe(self, moment: Any) -> None:
        """Take note; the first call starts the clock."""
        now = time.perf_counter(), time.process_time()
        if self.last is not None:
            self.longest_wall_s = max(self.longest_wall_s, now[0] - self.last[0])
            self.longest_cpu_s = max(self.longest_cpu_s, now[1] - self.last[1])
        self.last = now
        self.n += 1
        if self.n % 16 == 1:
            self.rss.append((moment.ended, rss_mb()))

    def tenths(self, n: int) -> list[int]:
        """Return the memory in MB after each tenth of the requests."""
        return [round(max((mb for ended, mb in self.rss if ended <= n * i / 10), default=0.0)) for i in range(1, 11)]


def case_interrupted(options: argparse.Namespace) -> dict[str, Any]:
    """Send this process Ctrl-C in the midst of a long run, and say how long it took to stop with its files closed."""
    import threading

    measured("everything", 2000, 4)
    sent: list[float] = []

    def press() -> None:
        sent.append(time.perf_counter())
        os.kill(os.getpid(), signal.SIGINT)

    timer = threading.Timer(options.after_s, press)
    timer.start()
    try:
        measured("everything", options.requests, options.replicas)
    except KeyboardInterrupt:
        return {"answered_wall_s": time.perf_counter() - sent[0]}
    timer.cancel()
    return {"answered_wall_s": None}


def case_start(options: argparse.Namespace) -> dict[str, Any]:
    """Say what the first run of a process costs: importing numba, our modules, and compiled code made or loaded."""
    from baseload import jit

    jit.enable()  # imports numba, and NumPy with it

    libraries_s = time.process_time()
    measured("everything", 2000, 4)
    first_s = time.process_time()
    measured("everything", 2000, 4)
    again_s = time.process_time() - first_s
    return {"libraries_cpu_s": libraries_s, "first_cpu_s": first_s - libraries_s, "second_cpu_s": again_s}


CASES = {
    "in-turn": case_in_turn,
    "memory": case_memory,
    "stream": case_stream,
    "interrupted": case_interrupted,
    "start": case_start,
}


def main() -> None:
    """Run one case and print its figures as JSON."""
    top = argparse.ArgumentParser(description="One measurement of the benchmark; `run.py` runs them all.")
    top.add_argument("case", choices=list(CASES))
    top.add_argument("--requests", type=int, default=1_000_000)
    top.add_argument("--replicas", type=int, default=64)
    top.add_argument("--rounds", type=int, default=1)
    top.add_argument("--kinds", default="reference,bare", help="of in-turn, e.g. reference,bare,everything")
    top.add_argument("--after-s", type=float, default=5.0, help="of interrupted: when Ctrl-C comes")
    options = top.parse_args()
    print(json.dumps(CASES[options.case](options)))
    sys.stdout.flush()


if __name__ == "__main__":
    main()
