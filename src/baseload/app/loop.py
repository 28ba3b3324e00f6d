"""The loop closes: the plan is a fleet file; the twin runs it at its milestones, with a site lost, and corrects the table.

A milestone is the last day before something changes, when demand is highest over what is there. At each, the busiest part of
the demand runs once with everything up and once for each site that goes down. Where a promise breaks, the twin says how much
less load it would have kept it at; the rows that were counted on are lowered by that much, and the plan is made again, until
both agree. How a plan is made is the caller's: it hands in a function.
"""

from __future__ import annotations

import dataclasses
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import date, timedelta
from typing import TYPE_CHECKING, Any

import msgspec
import numpy as np

from baseload import jit
from baseload.fleet import dates
from baseload.fleet.load import Loaded
from baseload.plan.table import ReplicaTable

if TYPE_CHECKING:
    from baseload.app.loop_trial import Case, Kept, Stage, Trial
    from baseload.app.plan_map import PlanMap
    from baseload.plan.problem import Answer, Problem

ROUNDS = 6
MILESTONES = 5  # in each round; the others too before plan and twin are said to agree
MOST_REQUESTS = 30_000  # of one trial
LEAST_FACTOR = 0.5  # of the load: what breaks even there, more capacity does not mend
SEARCH_STEPS = 4
GOLDEN = 0.618  # of the way between two days, from round to round: no two rounds try the same ones
SHORT = 1e-6  # units of work a second that count as unserved
SPARE = 0.97  # a correction goes a little further than the twin asks, so that rounds end
TELLING_RATIO = 0.2  # of a tenant's misses that a model or an accelerator must have to be held responsible
MOST_SEARCHES = 2  # of the worst cases of a row in a round

Say = Callable[[str], None]


@dataclass(frozen=True, slots=True, kw_only=True)
class Planned:
    """A plan as a fleet file, with what the loop has to know of it."""

    loaded: Loaded  # the planned fleet
    days: tuple[date, ...]  # first day of each period
    until: date  # last day of the horizon
    everyone: frozenset[tuple[str, str]]  # (tenant, region) that the plan serves whole
    survivors: frozenset[
        tuple[str, str]
    ]  # of them, those that two sites may serve: whom the loss of one must not touch
    survive_ratio: float = 1.0  # share of their demand that must be served with a site lost
    peak_factor: float = 1.0  # declared peak over that of the trace
    halls: Mapping[str, int] = dataclasses.field(
        default_factory=dict
    )  # power halls of a site: one of them is lost, not all
    left_out: tuple[str, ...] = ()  # whom the plan itself does not serve, or not with a site lost: not judged
    detail: Any = None  # what the caller wants back: problem, answer, map


PlanOnce = Callable[[ReplicaTable], Planned]


@dataclass(frozen=True, slots=True, kw_only=True)
class Correction:
    """A row that was lowered, and why."""

    service: str
    accelerator: str
    before: float
    after: float
    why: str

    def __str__(self) -> str:
        counts = f"counts {self.after:.3f} of what was measured, before {self.before:.3f}"
        return f"{self.service} on {self.accelerator} {counts}: {self.why}"


@dataclass(frozen=True, slots=True, kw_only=True)
class Round:
    """One plan, its trials, and what was changed after them."""

    number: int
    trials: tuple[Trial, ...]
    corrections: tuple[Correction, ...]
    not_mended: tuple[str, ...]  # misses that no capacity mends, in sentences
    left: int = 0  # runs of this round that were not made, since it was stopped

    @property
    def misses(self) -> tuple[Trial, ...]:
        """Return the trials in which a promise broke."""
        return tuple(trial for trial in self.trials if not trial.meets)

    def sentence(self) -> str:
        """Return the round in a line or two."""
        if self.left:
            broke = f", of which {len(self.misses)} broke a promise" if self.misses else ""
            cut = f"cut short after {len(self.trials)} of {len(self.trials) + self.left} runs of the twin{broke}"
            return f"{cut}: whether every promise is kept is not known"
        if not self.misses:
            worst = min(
                ((k.attainment - k.promised, k, t) for t in self.trials for k in t.kept),
                key=lambda one: one[0],
                default=None,
            )
            near = "" if worst is None else f"; nearest to breaking: {_told(worst[1], worst[2])}"
            return f"every promise kept in {len(self.trials)} runs of the twin{near}"
        first = max(self.misses, key=lambda t: t.misses[0].promised - t.misses[0].attainment)
        changed = "; ".join(map(str, self.corrections)) or "; ".join(self.not_mended) or "nothing was changed"
        return (
            f"{len(self.misses)} of {len(self.trials)} runs of the twin broke a promise, worst {_told(first.misses[0], first)}"
            f"; {changed}"
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class LoopResult:
    """The last plan, the table that it was made with, and how it came to be."""

    planned: Planned
    table: ReplicaTable
    rounds: tuple[Round, ...]
    agreed: bool  # plan and twin: every promise kept in the last round

    def notes(self) -> list[str]:
        """Return what to say of it, in sentences."""
        n = len(self.rounds)
        runs = sum(len(one.trials) for one in self.rounds)
        end = "plan and twin agree" if self.agreed else "plan and twin do NOT agree"
        lines = [f"{end} after {n} round{'s' * (n > 1)} and {runs} runs of the twin"]
        lines += [f"round {one.number}: {one.sentence()}" for one in self.rounds]
        if self.planned.left_out:
            lines.append(f"not judged, since the plan itself leaves them out: {', '.join(self.planned.left_out)}")
        struck = max((k.struck for one in self.rounds[-1:] for t in one.trials for k in t.kept), default=0)
        if struck:
            lines.append(
                f"the moment of a loss costs each tenant up to {struck:,} answers that were in flight; they count in the "
                "hour of the loss"
            )
        return lines


def _told(kept: Kept, trial: Trial) -> str:
    why = f" ({kept.cause})" if kept.cause and not kept.meets else ""
    return f"{kept.tenant} {100.0 * kept.attainment:.2f} % of {100.0 * kept.promised:g} % on {trial.case}{why}"


def close_loop(
    table: ReplicaTable,
    plan_once: PlanOnce,
    *,
    rounds: int = ROUNDS,
    milestones: int = MILESTONES,
    every: bool = True,
    most_requests: int = MOST_REQUESTS,
    seed: int = 0,
    say: Say | None = None,
    stop: Callable[[], bool] = lambda: False,
) -> LoopResult:
    """Plan, simulate, correct, and again, until every promise is kept or `rounds` are over.

    `milestones` is how many of the plan's are run in a round, the last always among them, and those that broke before; with
    `every`, a round that agrees runs the rest too before it counts. `stop` is asked between runs: True ends the loop with what
    there is.
    """
    jit.enable()  # before the twin is imported
    done: list[Round] = []
    planned = plan_once(table)
    before: Counter[Case] = Counter()  # how often a case broke
    for number in range(1, rounds + 1):
        chosen = _chosen(planned, milestones, {case.day for case in before}, number)
        trials, left = _trials(planned, chosen, most_requests, seed, stop)
        if every and all(trial.meets for trial in trials):
            rest = [day for day in all_milestones(planned) if day not in chosen]
            more, more_left = _trials(planned, rest, most_requests, seed, stop)
            trials, left = trials + more, left + more_left
        broken = [trial for trial in trials if not trial.meets]
        corrections: list[Correction] = []
        not_mended: list[str] = []
        if broken and number < rounds and not stop():
            corrections, not_mended = _corrections(planned, table, broken, before, most_requests, seed, stop)
            corrections = [] if stop() else corrections  # there is no time to plan with them
        before.update(trial.case for trial in broken)
        made = Round(
            number=number, trials=tuple(trials), corrections=tuple(corrections), not_mended=tuple(not_mended), left=left
        )  # fmt: skip
        done.append(made)
        if say is not None:
            say(f"round {number}: {made.sentence()}")
        if not corrections:
            break
        for one in corrections:
            table = table.corrected(one.service, one.accelerator, one.after / one.before)
        planned = plan_once(table)
    return LoopResult(planned=planned, table=table, rounds=tuple(done), agreed=not broken and not left)


# ---- milestones ------------------------------------------------------------------------------------------


def all_milestones(planned: Planned) -> list[date]:
    """Return the last day before each change within the horizon, and the horizon's last day."""
    fleet = planned.loaded.fleet
    changes = {day for site in fleet.sites.values() for day in dates.milestones(site)}
    for deployment in fleet.deployments.values():
        changes |= {day for day in (deployment.start, deployment.until) if day is not None}
    first = planned.days[0]
    inside = sorted(day for day in changes if first < day <= planned.until)
    return sorted({day - timedelta(days=1) for day in inside} | {planned.until})


def _chosen(planned: Planned, n: int, always: set[date], number: int = 1) -> list[date]:
    """Return some milestones, spread over the horizon, other ones each round; the last and those in `always` among them."""
    found = all_milestones(planned)
    if len(found) <= n:
        return found
    earlier = 0.0 if n < 2 else (number - 1) * GOLDEN % 1.0 * (len(found) - 1) / (n - 1)
    places: Sequence[float] = (
        (np.linspace(0, len(found) - 1, n)[1 if earlier else 0 :] - earlier).round().tolist() if n > 1 else []
    )
    spread = {found[int(i)] for i in places} | {found[-1]}
    return [day for day in found if day in spread or day in always]


# ---- trials ----------------------------------------------------------------------------------------------


def _trials(
    planned: Planned, days: Sequence[date], most_requests: int, seed: int, stop: Callable[[], bool]
) -> tuple[list[Trial], int]:
    """Run each day whole and with each site lost; return the runs, and how many were not made, since it was stopped."""
    from baseload.app.loop_trial import try_case

    lost = [_sites_up(planned, day) if planned.survivors else [] for day in days]
    n = sum(1 + len(sites) for sites in lost)
    trials: list[Trial] = []
    for day, sites in zip(days, lost, strict=True):
        if stop():
            break
        at = _stage(planned, day, most_requests, seed)
        trials.append(try_case(at, None, planned.everyone))
        for site in sites:
            if stop():
                break
            halls = planned.halls.get(site, 1)
            trials.append(try_case(at, site, planned.survivors, load_factor=planned.survive_ratio, halls=halls))
    return trials, n - len(trials)


def _stage(planned: Planned, day: date, most_requests: int, seed: int) -> Stage:
    from baseload.app.loop_trial import stage

    return stage(planned.loaded, day, peak_factor=planned.peak_factor, most_requests=most_requests, seed=seed)


def _sites_up(planned: Planned, day: date) -> list[str]:
    """Return the sites at which something serves on a day; where one alone does, its loss is no question of the plan."""
    fleet = dates.on(planned.loaded.fleet, day)
    up = {
        name
        for deployment in fleet.deployments.values()
        for name, replicas in deployment.sites.items()
        if max(replicas.min, replicas.max or 0) > 0
    }
    return [name for name in fleet.sites if name in up]


# ---- corrections -----------------------------------------------------------------------------------------


def _corrections(
    planned: Planned, table: ReplicaTable, broken: Sequence[Trial], before: Mapping[Case, int], most_requests: int,
    seed: int, stop: Callable[[], bool],
) -> tuple[list[Correction], list[str]]:  # fmt: skip
    """Return rows to lower, each by the lowest share of the load at which the worst cases keep every promise.

    First the missing tenants' own rows, for their own load; where that did not help before, or cannot, those of everybody who
    shares their replicas, and each time further.
    """
    factors: dict[tuple[str, str], tuple[float, str]] = {}
    not_mended: list[str] = []
    searched: dict[tuple[str, str], int] = {}
    for trial in sorted(broken, key=lambda one: one.misses[0].attainment - one.misses[0].promised):
        rows = _rows_behind(trial, table)
        fresh = [row for row in rows if searched.get(row, 0) < MOST_SEARCHES]
        if not fresh or stop():
            continue
        for row in fresh:
            searched[row] = searched.get(row, 0) + 1
        worst, again = trial.misses[0], before.get(trial.case, 0)
        theirs = frozenset(one.tenant for one in trial.misses)
        factor = None if again else _kept_at(planned, trial, theirs, most_requests, seed)
        if factor is None:
            factor = _kept_at(planned, trial, None, most_requests, seed)
            fresh = _of_their_models(fresh, table)
        if factor is None:
            not_mended.append(f"{_told(worst, trial)}: no lower load mends it")
            continue
        lower = factor * SPARE ** (1 + again)
        for row in fresh:
            if lower < factors.get(row, (1.0, ""))[0]:
                factors[row] = (lower, _told(worst, trial))
    corrections = []
    for (service, kind), (factor, why) in factors.items():
        row_of = table.lookup(service, kind)
        assert row_of is not None
        held = row_of.correction
        corrections.append(Correction(service=service, accelerator=kind, before=held, after=held * factor, why=why))
    return corrections, not_mended


def _rows_behind(trial: Trial, table: ReplicaTable) -> list[tuple[str, str]]:
    """Return the rows that a broken promise rested on: the tenant's services that missed, on the accelerators where they did.

    What never reached a replica counts for each accelerator.
    """
    found: list[tuple[str, str]] = []
    for one in trial.misses:
        total = max(1, sum(one.models.values()))
        routed = sum(one.kinds.values())
        kinds = {kind for kind, n in one.kinds.items() if n >= TELLING_RATIO * total} if 2 * routed >= total else None
        for model in [name for name, n in one.models.items() if n >= TELLING_RATIO * total]:
            service = table.service_of(one.tenant, model)
            rows = [row for row in table.rows if row.service == service and row.carries_per_s > 0.0]
            near = [row for row in rows if kinds is None or row.accelerator in kinds] or rows
            found += [(row.service, row.accelerator) for row in near]
    return list(dict.fromkeys(found))


def _of_their_models(rows: Sequence[tuple[str, str]], table: ReplicaTable) -> list[tuple[str, str]]:
    """Return the rows of all services whose replicas these share: same model, same accelerator."""
    models = {(row.model, row.accelerator) for row in table.rows if (row.service, row.accelerator) in rows}
    return [
        (row.service, row.accelerator)
        for row in table.rows
        if (row.model, row.accelerator) in models and row.carries_per_s > 0.0
    ]


def _kept_at(
    planned: Planned, trial: Trial, tenants: frozenset[str] | None, most_requests: int, seed: int
) -> float | None:
    """Return the highest share of some tenants' load (None: of all) at which a broken case keeps its promises.

    None where half of it breaks them too.
    """
    from baseload.app.loop_trial import try_case

    judged = planned.everyone if trial.case.lost is None else planned.survivors

    def meets(share: float) -> bool:
        less = dataclasses.replace(planned, loaded=_with_less(planned.loaded, tenants, share))
        at = _stage(less, trial.case.day, most_requests, seed)
        halls = planned.halls.get(trial.case.lost or "", 1)
        return try_case(at, trial.case.lost, judged, load_factor=trial.load_factor, halls=halls).meets

    low, high = LEAST_FACTOR, 1.0
    if not meets(low):
        return None
    for _ in range(SEARCH_STEPS):
        middle = 0.5 * (low + high)
        if meets(middle):
            low = middle
        else:
            high = middle
    return low


def _with_less(loaded: Loaded, tenants: frozenset[str] | None, share: float) -> Loaded:
    """Return the fleet with some tenants asking for a share of what they ask for now, all of them where None."""
    fleet, ratio = loaded.fleet, share
    if tenants is not None and fleet.tenants:
        less = {
            name: msgspec.structs.replace(one, share=one.share * (share if name in tenants else 1.0))
            for name, one in fleet.tenants.items()
        }
        ratio = sum(one.share for one in less.values()) / sum(one.share for one in fleet.tenants.values())
        fleet = msgspec.structs.replace(fleet, tenants=less)
    demand = msgspec.structs.replace(fleet.demand, scale=fleet.demand.scale * ratio)
    return dataclasses.replace(loaded, fleet=msgspec.structs.replace(fleet, demand=demand))


# ---- from the planner's arrays ---------------------------------------------------------------------------


def planned_of(loaded: Loaded, problem: Problem, answer: Answer, plan_map: PlanMap) -> Planned:
    """Return what the loop needs of an answer; `loaded` is its fleet file, read again."""
    from baseload.app import plan_demand

    asked = problem.demand.max(axis=2) > 0.0  # (R,M)
    sites = problem.allowed.sum(axis=1)  # (R,M) that may serve
    left = answer.unserved.max(axis=(1, 2)) > SHORT * (1.0 + problem.demand.max(axis=(1, 2)))  # (R,)
    short = answer.slack.get("short_survive", np.zeros((problem.shape[2], 1))).max(axis=1) > SHORT  # (M,)
    exposed = [r for r in range(len(asked)) if (asked[r] & short).any()]
    names = [(client.tenant, client.region) for client in plan_map.clients]
    served = [r for r in range(len(names)) if asked[r].any() and not left[r]]
    two = [r for r in served if (sites[r][asked[r]] >= 2).all()]
    out = [f"{plan_map.clients[r].name}{'' if left[r] else ' with a site lost'}" for r in range(len(names))
           if left[r] or (r in two and r in exposed)]  # fmt: skip
    plan = plan_map.plan
    factor = 1.0
    if plan.demand.peak_to_mean is not None:
        own = msgspec.structs.replace(plan, demand=msgspec.structs.replace(plan.demand, peak_to_mean=None))
        factor = plan.demand.peak_to_mean / plan_demand.traffic(loaded, own, plan_map.seed).peak_to_mean
    ratio = float(problem.survive_ratio.min(initial=1.0))
    return Planned(
        loaded=loaded,
        days=plan_map.days,
        until=plan_demand.period_ends(plan_map.days)[-1],
        everyone=frozenset(names[r] for r in served),
        survivors=frozenset(names[r] for r in two if ratio > 0.0 and r not in exposed),
        survive_ratio=ratio if ratio > 0.0 else 1.0,
        peak_factor=factor,
        halls={one.declared: one.halls for one in plan_map.sites if one.halls > 1},
        left_out=tuple(out),
        detail=(problem, answer, plan_map),
    )
