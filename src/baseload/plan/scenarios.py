"""How a plan's future may turn out: late phases, late shipments, other demand, drawn with a seed or given."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from baseload.plan.problem import Floats, Ints, Problem


@dataclass(frozen=True, kw_only=True)
class Scenario:
    """One future: periods by which things are late, and what demand is multiplied by."""

    name: str
    late_phase: Ints  # [P] periods more from begin to energised
    late_racks: Ints  # [A] periods more from order to service
    demand: Floats  # [M,T]


def draw(
    problem: Problem,
    number: int,
    *,
    seed: int,
    phase_delays: Ints | None = None,
    phase_sigma: float = 0.35,
    late_racks: float = 0.2,
    demand_sigma: float = 0.1,
) -> list[Scenario]:
    """Return scenarios of equal weight; the same arguments give the same ones.

    Args:
        problem: what is planned.
        number: how many.
        seed: of the draws.
        phase_delays: [n,P] periods from begin to energised, drawn elsewhere (a delay model): rows are taken in turn.
        phase_sigma: without those, each phase's delay is its own times a lognormal factor of median 1 and this sigma.
        late_racks: probability that a kind's shipments are a period late throughout.
        demand_sigma: of the lognormal factor of each service's demand at the horizon's end, half of it common to all.
    """
    rng = np.random.default_rng(seed)
    n_services, n_periods = len(problem.services), len(problem.periods)
    grows = np.sqrt(np.arange(1, n_periods + 1) / n_periods)
    found = []
    for i in range(number):
        factor = np.exp(rng.normal(0.0, phase_sigma, len(problem.phases)))
        delay = np.round(problem.phase_delay * factor).astype(np.int64)
        if phase_delays is not None:
            delay = phase_delays[i % len(phase_delays)]
        share = np.sqrt(0.5)
        shock = demand_sigma * share * (rng.normal() + rng.normal(size=n_services))
        found.append(
            Scenario(
                name=f"scenario {i + 1}",
                late_phase=delay - problem.phase_delay,
                late_racks=(rng.random(len(problem.kinds)) < late_racks).astype(np.int64),
                demand=np.exp(shock[:, None] * grows[None]),
            )
        )
    return found


def applied(problem: Problem, scenario: Scenario) -> Problem:
    """Return the problem as it turns out in a scenario."""
    return replace(
        problem,
        name=f"{problem.name}, {scenario.name}",
        phase_delay=np.maximum(0, problem.phase_delay + scenario.late_phase),
        lead=problem.lead + scenario.late_racks,
        demand=problem.demand * scenario.demand[None],
    )


def mean_of(scenarios: Sequence[Scenario]) -> Scenario:
    """Return the scenario of means, delays rounded."""
    return Scenario(
        name="the mean",
        late_phase=np.round(np.array([one.late_phase for one in scenarios]).mean(axis=0)).astype(np.int64),
        late_racks=np.round(np.array([one.late_racks for one in scenarios]).mean(axis=0)).astype(np.int64),
        demand=np.array([one.demand for one in scenarios]).mean(axis=0),
    )


def measured(costs: Floats, cvar: float | None) -> float:
    """Return the mean of equally likely costs, or of the worst share `1 - cvar` of them.

    >>> measured(np.array([1.0, 2.0, 3.0, 10.0]), None), measured(np.array([1.0, 2.0, 3.0, 10.0]), 0.75)
    (4.0, 10.0)
    """
    if cvar is None:
        return float(costs.mean())
    worst = np.sort(costs)[::-1]
    tail = (1.0 - cvar) * len(worst)
    weight = np.clip(tail - np.arange(len(worst)), 0.0, 1.0)
    return float((worst * weight).sum() / max(1e-12, tail))
