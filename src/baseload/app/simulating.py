"""`baseload simulate`: wires fleet file, trace, twin, run folder and report together.

Heavy imports happen here, not at the top of the CLI. What the twin does is `simulate/`, what a run looks like on disk is
`adapters/store.py`, what it means is `report/`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, date, datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any

from baseload import jit
from baseload.errors import Interrupted, RunError
from baseload.fleet import check, dates, load
from baseload.policies import KINDS, ROUTE

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

    from baseload.adapters.store import RunWriter
    from baseload.adapters.traces import TraceSource
    from baseload.app.replay import Replay
    from baseload.ports import RunMeta
    from baseload.simulate.run import Moment, Outcome
    from baseload.simulate.setup import Twin

WARM_UP_RATIO = 0.05
MOST_WARM_UP_S = 300.0
LENGTH_SAMPLE = 20_000

Say = Callable[[str], None]
Progress = Callable[["Moment", float | None], None]


@dataclass(frozen=True, slots=True, kw_only=True)
class Wish:
    """What the user asked of one simulation."""

    fleet: Path
    trace: str | None = None
    seed: int = 0
    overrides: tuple[str, ...] = ()
    scale: float | None = None
    requests: int | None = None
    day: date | None = None
    windows: int = 0
    stepping: bool = False
    search: bool = True  # for the highest load, where that takes a few seconds only
    measure_replicas: bool = True
    replay: Replay | None = None  # a ledger instead of a trace


@dataclass(frozen=True, slots=True, kw_only=True)
class Prepared:
    """A fleet and its demand, checked and ready to run."""

    loaded: load.Loaded
    source: TraceSource
    twin: Twin
    twin_at: Callable[[float, float | None], Twin]  # the same fleet, some seconds into the run
    lengths: Mapping[int, tuple[npt.NDArray[np.int32], npt.NDArray[np.int32]]]  # by model
    day: date
    scale: float
    warnings: tuple[str, ...]


def known_policies() -> dict[str, Sequence[str]]:
    """Return the policy names that a fleet file may use, by key."""
    return {kind: list(table) for kind, table in KINDS.items()}


def say_compiling(say: Say) -> None:
    """Say that the twin will have to be compiled first, where that is so."""
    if jit.compiled() and not jit.is_warm():
        say("compiling the twin, once on this machine (about half a minute) ...")


def prepare(wish: Wish) -> Prepared:
    """Read, check and describe; raises InputError where the user's files are wrong."""
    loaded = load.load(wish.fleet, wish.overrides)
    check.require(loaded, policies=known_policies(), day=wish.day)
    if wish.day is not None and wish.scale is None and wish.replay is None:
        loaded = replace(loaded, fleet=dates.demand_on(loaded.fleet, wish.day))
    warnings = tuple(str(problem) for problem in check.warnings(loaded, day=wish.day))
    fleet = loaded.fleet
    jit.enable()  # before any rule is imported: what was imported before stays plain
    for kind, table in KINDS.items():
        if getattr(fleet.policy, kind) not in table:
            from baseload.policies import custom

            custom.install(getattr(fleet.policy, kind), loaded.base_folder, fleet.policy.digest, kind)
    from baseload.adapters.mix import mixed

    day = wish.day or dates.run_day(fleet)
    planned = 1.0 if wish.replay is not None else fleet.demand.scale  # a ledger is replayed at its own pace
    scale = planned if wish.scale is None else wish.scale
    source = _source(wish, loaded, scale)
    source = mixed(source, dates.on(fleet, day), wish.seed)
    lengths, chunk_tokens, mean_output = _lengths(source)

    def twin_at(start_s: float, length_s: float | None) -> Twin:
        from baseload.simulate.setup import describe

        return describe(
            fleet,
            base_folder=loaded.base_folder,
            day=day,
            start_s=start_s,
            duration_s=length_s,
            chunk_tokens=chunk_tokens,
            seed=wish.seed + round(start_s),
            stepping=wish.stepping,
            closed_users=source.closed_loop.users if source.closed_loop else 0,
            think_s=source.closed_loop.think_s if source.closed_loop else 0.0,
            mean_output_tokens=mean_output,
        )

    twin = twin_at(0.0, source.duration_s)
    return Prepared(
        loaded=loaded,
        source=source,
        twin=twin,
        twin_at=twin_at,
        lengths=lengths,
        day=day,
        scale=scale,
        warnings=warnings,
    )


def _source(wish: Wish, loaded: load.Loaded, scale: float) -> TraceSource:
    from baseload.adapters import generators, trace_files, trace_transforms

    demand = loaded.fleet.demand
    block_tokens = max((d.block_tokens for d in loaded.fleet.deployments.values()), default=16)
    if wish.replay is not None:
        from baseload.app import replay

        source = replay.source(wish.replay, loaded.fleet)
    elif wish.trace is None and demand.generator is not None:
        source = generators.generate(
            demand.generator,
            seed=wish.seed,
            start=wish.day or dates.run_day(loaded.fleet),
            start_hour_utc=demand.start_hour_utc,
            base_folder=loaded.base_folder,
            block_tokens=block_tokens,
        )
    else:
        name = demand.trace if wish.trace is None else wish.trace
        if name is None:
            raise RunError(
                f"{loaded.path}: demand names neither a trace nor a generator; add one, or say --trace azure-conv"
            )
        # A path on the command line is relative to the user, one in the file to the file.
        base = Path.cwd() if wish.trace is not None else loaded.base_folder
        source = trace_files.open_trace(name, base_folder=base, prefix_block_tokens=block_tokens)
    if scale != 1.0:
        source = trace_transforms.scaled(source, scale)
    if wish.requests is not None:
        source = trace_transforms.limited(source, wish.requests)
    return source


def _lengths(source: TraceSource) -> tuple[dict[int, tuple[Any, Any]], int, float]:
    """Return a sample of (input, output) lengths by model, the trace's hashed block, and the mean answer."""
    first = next(iter(source.chunks(LENGTH_SAMPLE)), None)
    if first is None or len(first.input_tokens) == 0:
        raise RunError(f"{source.name}: holds no request; choose another trace")
    by_model = {}
    for model in sorted(set(first.model_i.tolist())):
        rows = first.model_i == model
        by_model[int(model)] = (first.input_tokens[rows], first.output_tokens[rows])
    return by_model, int(first.hash_block_tokens), float(first.output_tokens.mean())


def run_into(prepared: Prepared, wish: Wish, out: Path, *, say: Say, progress: Progress, overwrite: bool) -> Path:
    """Run the twin and write the run folder; returns it. Ctrl-C leaves `<out>.partial` and raises Interrupted."""
    from baseload.adapters.series_files import series_files
    from baseload.adapters.store import RunWriter, refuse_to_overwrite
    from baseload.app import load_search, run_meta

    refuse_to_overwrite(out, overwrite=overwrite)  # before the work, not after it
    say_compiling(say)
    loaded, twin, source = prepared.loaded, prepared.twin, prepared.source
    duration_s = source.duration_s or 0.0
    warm_up_s = min(WARM_UP_RATIO * duration_s, MOST_WARM_UP_S)
    capacities = run_meta.replica_capacities(twin, prepared.lengths) if wish.measure_replicas else {}
    start = datetime(prepared.day.year, prepared.day.month, prepared.day.day, tzinfo=UTC)
    start += timedelta(hours=loaded.fleet.demand.start_hour_utc)
    meta = run_meta.first_meta(
        prepared, seed=wish.seed, overrides=wish.overrides, start=start, warm_up_s=warm_up_s, capacities=capacities
    )
    files = {name: loaded.base_folder / name for name in series_files(loaded.fleet)}
    text = loaded.text
    state: dict[str, Any] = {}

    def breathe(moment: Moment) -> None:
        state["moment"] = moment
        progress(moment, duration_s or None)

    with RunWriter(out, meta, text, overwrite=overwrite, files=files) as writer:
        for sentence in writer.said:
            say(sentence)
        try:
            if wish.windows:
                return _run_windows(prepared, wish, writer, meta, breathe)
            outcome = simulate_source(twin, source, emit=writer.append_requests, breathe=breathe)
            run_meta.append_unfinished(outcome, writer)
            writer.write_replicas(run_meta.replica_rows(twin, outcome))
            writer.write_sites(run_meta.site_rows(twin, outcome))
            extra = run_meta.last_meta(meta, prepared, outcome, [])
            extra["search"] = load_search.free_search(twin, source, outcome.n_in) if wish.search else None
            return writer.finish(extra)
        except KeyboardInterrupt:
            moment = state.get("moment")
            at = (
                f" at {moment.now_ns / 1e9:,.0f} s of simulated time, {moment.ended:,} requests ended" if moment else ""
            )
            raise Interrupted(f"interrupted{at}; what was written so far is in {writer.partial}") from None


def _run_windows(
    prepared: Prepared, wish: Wish, writer: RunWriter, meta: RunMeta, breathe: Callable[[Moment], None]
) -> Path:
    """Run representative windows instead of the whole source, into one run folder."""
    import numpy as np

    from baseload.app import run_meta, windowed

    windows = windowed.choose(prepared.source, wish.windows, wish.seed)
    parts = windowed.run_windows(
        windows, prepared.source, twin_at=prepared.twin_at, simulate=simulate_source,
        emit=writer.append_requests, breathe=breathe,
    )  # fmt: skip
    _, outcome = windowed.merged([part for _, part, _, _ in parts], windows)
    tables = [
        windowed.within(run_meta.site_rows(twin, part, offset_ns=round(start_s * 1e9)), window)
        for window, (twin, part, start_s, _) in zip(windows, parts, strict=True)
    ]
    writer.write_replicas(run_meta.replica_rows(prepared.twin, outcome))
    writer.write_sites({name: np.concatenate([table[name] for table in tables]) for name in tables[0]})
    extra = run_meta.last_meta(meta, prepared, outcome, windows)
    extra["duration_ns"] = round(windowed.span_s(windows) * 1e9)
    extra["notes"] = [*extra["notes"], *windowed.interval_notes(windows, [figures for *_, figures in parts])]
    return writer.finish(extra)


def simulate_source(
    twin: Twin,
    source: TraceSource,
    *,
    emit: Callable[[npt.NDArray[Any]], None],
    breathe: Callable[[Moment], None] | None = None,
) -> Outcome:
    """Run the twin over a source, with prices and carbon of each hour where a rule asks for them."""
    from baseload.simulate import state as st
    from baseload.simulate.run import run
    from baseload.simulate.setup import each_hour

    set_hour = None
    if twin.spec.route in (ROUTE["cheapest"], ROUTE["greenest"]) or twin.spec.route >= len(ROUTE):
        cost, carbon = each_hour(twin)

        def set_hour(world: st.World, hour: int) -> None:
            pool = world.replicas["pool"]
            world.columns[st.F_COST] = cost[hour % len(cost)][pool]
            world.columns[st.F_CARBON] = carbon[hour % len(carbon)][pool]

    endless = source.closed_loop is not None and source.n is None and source.duration_s is not None
    until_ns = round((source.duration_s or 0.0) * 1e9) if endless else st.NEVER
    return run(twin.spec, source.chunks(), emit=emit, breathe=breathe, each_hour=set_hour, until_ns=until_ns)
