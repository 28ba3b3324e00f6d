"""All scenarios, a few that must decide alike at a time: a bound for the mean, and about what would be decided now.

Sandikci, Kong and Schaefer (2013). For large problems alone, where each scenario by itself would take most of the time: groups
of three take half as long again, and their bound is much higher. Groups are of four where time is ample, and become smaller
where it is short.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from baseload.plan import build as building
from baseload.plan import extensive
from baseload.plan.build import Hall
from baseload.plan.held import Held
from baseload.plan.highs import INF, Stop
from baseload.plan.problem import Floats, Problem
from baseload.plan.scenarios import Scenario, applied
from baseload.plan.scene import Pace, Scene

GROUP = 3
# of the time of a scenario in a group of three, by the size of the group
_SHARES = {1: 0.7, 2: 0.8, GROUP: 1.0, 4: 1.3}
_COLD_SHARE = 0.53  # what a scenario takes by itself, likewise, from nothing
_CHOSEN_SHARE = 1.3  # what a scenario takes among a few with phases kept, likewise: of three 1.3, of four 1.4
_PRICED_SHARE = 0.4  # what pricing a decision takes in one, likewise; as much is kept for a guess of a few
_WELL_SHARE = 22.0  # what a guess of five, its pricing and trying other phases take, likewise
_DEAR = 0.01  # of a group's cost: slacks that cost less at their own prices are left at a lower one


@dataclass(kw_only=True)
class Alike:
    """What groups of scenarios say."""

    scenes: list[Scene]
    costs: Floats  # [scenarios] in their groups, about
    bound: float  # of the mean cost; -inf where time did not suffice
    now: Floats  # what they decide now, on average
    chosen_s: float = INF  # CPU seconds that a scenario is likely to take among a few with phases kept


def in_groups(
    problem: Problem,
    scenarios: Sequence[Scenario],
    first: int,
    held: Held,
    pace: Pace,
    *,
    until_s: float,
    stop: Stop | None,
) -> Alike:
    """Return the bound of groups of unlike scenarios, those with more and with less demand together."""
    n, made, total = len(scenarios), dict[int, Scene](), 0.0
    halls = building.lawful(problem, held.halls)
    known = {_name(hall) for hall in halls}
    found = Alike(scenes=[], costs=np.zeros(n), bound=-INF, now=np.zeros(0))
    rest = np.argsort([one.demand.mean() for one in scenarios])
    cold_s = pace.cold_s / _COLD_SHARE
    size = max(GROUP, _largest(n, n, cold_s, until_s - time.process_time())) if np.isfinite(cold_s) else GROUP
    while len(rest) and time.process_time() < until_s:
        began_s, step = time.process_time(), -(-len(rest) // size)
        group, rest = rest[::step].tolist(), np.delete(rest, np.arange(0, len(rest), step))
        made |= {k: Scene(applied(problem, scenarios[k]), first, halls, held, pace) for k in group}
        for is_met in (True, False):  # less dear slacks are solved sooner, and say too little where they are used
            blocks = [made[k].block(for_bound=is_met) for k in group]
            left_s = max(0.1, until_s - time.process_time())
            relaxed = extensive.relax(blocks, None, cpu_limit_s=left_s, stop=stop)
            if relaxed is None:
                break
            missed = sum(made[k].missed_cost(x) for k, x in zip(group, relaxed.later, strict=True)) / len(group)
            if missed <= _DEAR * abs(relaxed.bound):
                break
        if relaxed is None:
            break
        total += len(group) * relaxed.bound
        found.now = len(group) / n * relaxed.now + (found.now if len(found.now) else 0.0)
        for k, block, x in zip(group, blocks, relaxed.later, strict=True):
            found.costs[k] = float(block.program.cost @ x + made[k].lost @ relaxed.now)
            broken = building.broken(made[k].model, x, 1e-4)
            made[k].add(broken)
            halls = halls + list({_name(hall): hall for hall in broken if _name(hall) not in known}.values())
            known |= {_name(hall) for hall in broken}
        each_s = (time.process_time() - began_s) / len(group) / _SHARES[len(group)]
        found.chosen_s = _CHOSEN_SHARE * each_s
        size = _largest(n, len(rest), each_s, until_s - time.process_time())
    for k in set(range(n)) - set(made):
        made[k] = Scene(applied(problem, scenarios[k]), first, halls, held, pace)
    found.scenes = [made[k] for k in range(n)]
    if found.costs.all():
        found.bound = total / n
    return found


def _largest(n: int, n_left: int, each_s: float, left_s: float) -> int:
    """Return how large groups may be so that those of `n` scenarios that are left, and a decision after them, come in time."""
    after = {k: _WELL_SHARE if k > GROUP else _PRICED_SHARE * (n + GROUP) for k in _SHARES}
    return max([k for k, share in _SHARES.items() if each_s * (share * n_left + after[k]) < left_s], default=1)


def _name(hall: Hall) -> tuple[int, int, bytes]:
    """Return what survival rows of any demand have in common."""
    return hall.m, hall.t, hall.sites.tobytes()
