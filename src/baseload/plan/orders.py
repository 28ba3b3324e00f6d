"""First orders for given phases, where all scenarios in one programme would be too large.

A few scenarios that stand for the others are solved whole, side by side. Each other one costs what its nearest of these does,
and as much more as it did when both were last priced; more where the first orders alone would draw more power than it has by
then; and never less than a plane through each of its prices so far. The answer is a guess, no bound: every guess is priced in
every scenario, and what that says is in the next guess.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np

from baseload.plan import extensive
from baseload.plan.highs import INF, Lp, Stop
from baseload.plan.nothing import live
from baseload.plan.problem import Floats, Ints, Problem
from baseload.plan.project import Program, Sheet
from baseload.plan.scene import Kept, Scene


@dataclass(frozen=True, kw_only=True)
class Priced:
    """A decision, and what it costs in every scenario."""

    now: Floats
    kept: list[Kept]


@dataclass(kw_only=True)
class Guess:
    """What is known of the scenarios' costs with phases kept."""

    scenes: Sequence[Scene]
    w: Floats  # [P,T] kept
    least: Floats  # [scenarios] each costs no less
    cvar: float | None
    chosen: list[int]  # scenarios solved whole
    nearest: Ints  # [scenarios] place in `chosen` of the one that stands for it
    priced: list[Priced] = field(default_factory=list)
    more: Floats = field(default_factory=lambda: np.zeros(0))  # [scenarios] than the one that stands for it


def begun(scenes: Sequence[Scene], w: Floats, least: Floats, cvar: float | None, n: int) -> Guess:
    """Return the guess to begin with: `n` scenarios stand for all."""
    chosen, nearest = _standing_for(scenes, w, least, cvar, n)
    more = least - least[np.array(chosen)][nearest]
    return Guess(scenes=scenes, w=w, least=least, cvar=cvar, chosen=chosen, nearest=nearest, more=more)


def _standing_for(
    scenes: Sequence[Scene], w: Floats, least: Floats, cvar: float | None, n: int
) -> tuple[list[int], Ints]:
    """Return `n` scenarios that lie near all others in power and demand, and which stands for which."""
    power = np.array([_grid(scene.problem, w).ravel() for scene in scenes])
    asked = np.array([scene.problem.demand.sum(axis=0).ravel() for scene in scenes])
    lead = np.array([scene.problem.lead for scene in scenes], dtype=np.float64)
    parts = [part / max(1e-12, float(part.std(axis=0).sum())) for part in (power, asked, lead)]
    parts.append(least[:, None] / max(1e-12, float(least.std())))
    apart = sum(np.abs(part[:, None] - part[None]).sum(axis=2) for part in parts)
    weight = np.ones(len(scenes))
    if cvar is not None:  # those that cost most decide
        weight = np.where(np.argsort(np.argsort(-least)) < max(n, 2.0 * (1.0 - cvar) * len(least)), 1.0, 0.01)
    chosen: list[int] = [int(np.argmax(least))] if cvar is not None else []
    while len(chosen) < min(n, len(scenes)):
        near = apart[:, chosen].min(axis=1) if chosen else np.full(len(scenes), INF)
        left = (np.minimum(near[:, None], apart) * weight[:, None]).sum(axis=0)
        left[chosen] = INF
        chosen.append(int(np.argmin(left)))
    return chosen, np.asarray(np.argmin(apart[:, chosen], axis=1), dtype=np.int64)


def guess(state: Guess, *, cpu_limit_s: float, stop: Stop | None = None) -> Floats | None:
    """Return what to decide now by what is known so far; None where time was over."""
    began_s = time.process_time()
    program, orders = _programme(state)
    left_s = max(0.1, cpu_limit_s - (time.process_time() - began_s))
    found = Lp(program, relaxed=True).solve(method="ipm", crossover=False, cpu_limit_s=left_s, stop=stop)
    late = time.process_time() - began_s >= cpu_limit_s or (stop is not None and stop())
    if found.x is None or not np.isfinite(found.x).all() or (found.state != "optimal" and late):
        return None
    return found.x[:orders]  # an inexact end will do: it is priced


def learn(state: Guess, priced: Priced) -> None:
    """Take in what a decision costs in every scenario."""
    costs = np.array([kept.cost for kept in priced.kept])
    state.more = costs - costs[np.array(state.chosen)][state.nearest]
    state.priced.append(priced)


def _programme(state: Guess) -> tuple[Program, int]:
    """Return the programme of the guess, and how many columns are decided now."""
    scenes, n = state.scenes, len(state.scenes)
    side = extensive.side_by_side([scenes[k].block() for k in state.chosen])
    plain, n_now, n_w = side.program, len(scenes[0].columns), state.w.size
    plain.lower[:n_w] = plain.upper[:n_w] = state.w.ravel()
    sheet, end = Sheet(), len(plain.cost)
    sheet.columns(np.ones(end, bool), 0.0, plain.lower, plain.upper)
    tail = 0.0 if state.cvar is None else 1.0 / max(1.0, (1.0 - state.cvar) * n)
    cost = sheet.columns(np.ones(n, bool), 1.0 / n if state.cvar is None else 0.0, state.least, INF)
    if state.cvar is not None:
        threshold = sheet.columns(np.ones(1, bool), 1.0, -INF, INF)
        beyond = sheet.columns(np.ones(n, bool), tail, 0.0, INF)
        row = sheet.rows(np.ones(n, bool), 0.0, INF)
        for column, sign in ((threshold, 1.0), (beyond, 1.0), (cost, -1.0)):
            sheet.cells(row, column, sign)
    of = sheet.columns(np.ones(len(state.chosen), bool), 0.0, -INF, INF)
    row = sheet.rows(np.ones(len(of), bool), 0.0, 0.0)
    sheet.cells(row, of, 1.0)
    for at, costs in zip(row, side.costs, strict=True):
        sheet.cells(np.asarray(at), np.arange(end), -costs)
    near = sheet.rows(np.ones(n, bool), np.where(np.isin(np.arange(n), state.chosen), 0.0, state.more), INF)
    sheet.cells(near, cost, 1.0)
    sheet.cells(near, of[state.nearest], -1.0)
    _power(state, sheet, near)
    for priced in state.priced:
        slope = np.array([kept.slope[n_w:] for kept in priced.kept])  # phases are kept
        least = np.array([kept.cost for kept in priced.kept]) - slope @ priced.now[n_w:]
        row = sheet.rows(np.ones(n, bool), least, INF)
        sheet.cells(row, cost, 1.0)
        sheet.cells(row[:, None], np.arange(n_w, n_now)[None], -slope)
    more = sheet.program()
    return (
        Program(
            cost=more.cost,
            lower=more.lower,
            upper=more.upper,
            whole=more.whole,
            row_lower=np.concatenate([plain.row_lower, more.row_lower]),
            row_upper=np.concatenate([plain.row_upper, more.row_upper]),
            start=np.concatenate([plain.start, plain.start[-1] + more.start[1:]]),
            index=np.concatenate([plain.index, more.index]),
            value=np.concatenate([plain.value, more.value]),
        ),
        n_now,
    )


def _grid(problem: Problem, w: Floats) -> Floats:
    """Return [S,T]: MW that there are with these phases."""
    grid = problem.power_mw.copy()
    np.add.at(grid, problem.phase_site, problem.phase_mw[:, None] * live(problem, w))
    return grid


def _power(state: Guess, sheet: Sheet, near: Ints) -> None:
    """Add that the first orders alone draw no more than a scenario has, where that is less than its stand-in has, or pay."""
    stands = [state.scenes[k].problem for k in state.chosen]
    parts = state.scenes[0].parts
    n_w, n_buy = parts["w"].size, parts["buy"].size
    buy = n_w + np.arange(n_buy).reshape(parts["buy"].shape)
    sign = n_w + n_buy + np.arange(parts["sign"].size).reshape(parts["sign"].shape)
    first = buy.shape[2]
    for k, scene in enumerate(state.scenes):
        problem = scene.problem
        if k in state.chosen:
            continue
        price = np.broadcast_to(problem.slack_price.get("short_power", np.float64(INF)), problem.power_mw.shape)
        grid = _grid(problem, state.w)
        less = grid < _grid(stands[int(state.nearest[k])], state.w) - 1e-9
        held = np.einsum("sa,sat->st", problem.rack_mw, problem.existing)
        row = sheet.rows(less, -INF, grid - held)
        short = sheet.columns(less & np.isfinite(price), 0.0, 0.0, INF)
        sheet.cells(row, short, -1.0)
        sheet.cells(near[k], short, -np.where(np.isfinite(price), price, 0.0))
        t = np.arange(grid.shape[1])
        for u in range(first):
            for a, (lead, life) in enumerate(zip(problem.lead, problem.life, strict=True)):
                on = (t >= u + lead) & (t < u + lead + life)
                sheet.cells(row[:, on], buy[:, a, u, None], problem.rack_mw[:, a, None])
            for c, term in enumerate(problem.term):
                on = (t >= u) & (t < u + term)
                if problem.on_site[c]:
                    sheet.cells(
                        np.broadcast_to(row[:, None, on], (*problem.rack_mw.shape, int(on.sum()))),
                        sign[:, :, c, u, None],
                        problem.rack_mw[:, :, None],
                    )
