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
from typing import Any

import numpy as np

from baseload.plan import extensive
from baseload.plan.highs import INF, Lp, Stop
from baseload.plan.nothing import live
from baseload.plan.problem import Floats, Ints, Problem
from baseload.plan.project import Program, Sheet
from baseload.plan.scene import Kept, Scene

# costs of 1e5 by a thousand less: the interior point stops half-way otherwise
_SCALED: dict[str, Any] = {"user_objective_scale": -10}
_SWAPS = 20  # of a scenario that stands for others for one that does it better


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


def begun(scenes: Sequence[Scene], w: Floats, least: Floats, cvar: float | None, n: int, mean: Floats) -> Guess:
    """Return the guess to begin with: `n` scenarios stand for all; `mean` is about what is decided now."""
    chosen, nearest = _standing_for(scenes, w, least, cvar, n, mean)
    more = least - least[np.array(chosen)][nearest]
    return Guess(scenes=scenes, w=w, least=least, cvar=cvar, chosen=chosen, nearest=nearest, more=more)


def _standing_for(
    scenes: Sequence[Scene], w: Floats, least: Floats, cvar: float | None, n: int, mean: Floats
) -> tuple[list[int], Ints]:
    """Return `n` scenarios that lie near all others in power, demand, shipments and cost, and which stands for which.

    Those that stand for the others are to be as often late with what is ordered, and so on, as these are: the nearest scenarios
    alone may all be late with the same kind, or none of them.
    """
    seen = _seen(scenes, w, least, mean)
    apart = np.array([np.abs(seen - one).sum(axis=1) for one in seen])
    weight = np.ones(len(scenes))
    if cvar is not None:  # those that cost most decide
        weight = np.where(np.argsort(np.argsort(-least)) < max(n, 2.0 * (1.0 - cvar) * len(least)), 1.0, 0.01)

    def badness(chosen: list[int]) -> float:
        near = np.argmin(apart[:, chosen], axis=1)
        off = weight @ (seen - seen[chosen][near])
        return float(weight @ apart[np.arange(len(seen)), np.array(chosen)[near]] + np.abs(off).sum())

    must = [int(np.argmax(least))] if cvar is not None else []
    chosen, others = list(must), range(len(scenes))
    while len(chosen) < min(n, len(scenes)):
        chosen.append(min((k for k in others if k not in chosen), key=lambda k: badness([*chosen, k])))
    for _ in range(_SWAPS):
        swaps = [
            [*chosen[:i], k, *chosen[i + 1 :]] for i in range(len(must), len(chosen)) for k in others if k not in chosen
        ]
        best = min(swaps, key=badness, default=chosen)
        if badness(best) >= badness(chosen):
            break
        chosen = best
    return chosen, np.asarray(np.argmin(apart[:, chosen], axis=1), dtype=np.int64)


def _seen(scenes: Sequence[Scene], w: Floats, least: Floats, mean: Floats) -> Floats:
    """Return [scenarios, ...]: power, demand, lead times of what is ordered and cost, each of the same weight."""
    power = np.array([_grid(scene.problem, w).ravel() for scene in scenes])
    asked = np.array([scene.problem.demand.sum(axis=0).ravel() for scene in scenes])
    buy = mean[w.size :][: scenes[0].parts["buy"].size].reshape(scenes[0].parts["buy"].shape)
    ordered = (scenes[0].problem.cost_buy[:, :, : buy.shape[2]] * np.maximum(0.0, buy)).sum(axis=(0, 2))
    lead = np.array([scene.problem.lead for scene in scenes]) * (ordered / max(1e-12, float(ordered.max())))
    parts = (power, asked, lead, least[:, None])
    return np.concatenate([part / max(1e-12, float(part.std(axis=0).sum())) for part in parts], axis=1)


def guess(state: Guess, *, cpu_limit_s: float, stop: Stop | None = None) -> Floats | None:
    """Return what to decide now by what is known so far; None where time was over."""
    began_s = time.process_time()
    program, orders = _programme(state)
    left_s = max(0.1, cpu_limit_s - (time.process_time() - began_s))
    options = dict(_SCALED)
    if state.priced or state.cvar is not None:
        options["presolve"] = "off"  # it would put what a scenario costs into all rows that say something of it
    solver = Lp(program, relaxed=True)
    found = solver.solve(method="ipm", crossover=False, cpu_limit_s=left_s, stop=stop, options=options)
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
    """Return the programme of the guess, and how many columns are decided now.

    Where the mean is asked for and nothing was priced yet, the columns cost what they do in the chosen scenarios, in shares;
    rows that say what each scenario costs slow it down, and come where they are needed.
    """
    scenes, n, is_mean = state.scenes, len(state.scenes), state.cvar is None
    side = extensive.side_by_side([scenes[k].block() for k in state.chosen])
    plain, n_now, n_w = side.program, len(scenes[0].columns), state.w.size
    plain.lower[:n_w] = plain.upper[:n_w] = state.w.ravel()
    sheet, end, needs_rows = Sheet(), len(plain.cost), not is_mean or len(state.priced) > 0
    share = np.bincount(state.nearest, minlength=len(state.chosen)) / n
    cost = np.einsum("c,ci->i", share, np.array(side.costs)) if is_mean else 0.0
    sheet.columns(np.ones(end, bool), cost, plain.lower, plain.upper)
    shorts = _power(state, sheet)
    if needs_rows:
        own = sheet.columns(np.ones(len(state.chosen), bool), 0.0, -INF, INF)
        at = sheet.rows(np.ones(len(own), bool), 0.0, 0.0)
        sheet.cells(at, own, 1.0)
        for row, costs in zip(at, side.costs, strict=True):
            sheet.cells(np.asarray(row), np.arange(end), -costs)
        over = sheet.columns(np.ones(n, bool), 1.0 / n if is_mean else 0.0, 0.0, INF)
        known = _Costs(sheet=sheet, own=own[state.nearest], over=over, shorts=shorts)
        more = np.where(np.isin(np.arange(n), state.chosen), 0.0, state.more)
        known.rows(state.least - more)
        for priced in state.priced:
            slope = np.array([kept.slope[n_w:] for kept in priced.kept])  # phases are kept
            row = known.rows(np.array([kept.cost for kept in priced.kept]) - slope @ priced.now[n_w:] - more)
            sheet.cells(row[:, None], np.arange(n_w, n_now)[None], -slope)
        if state.cvar is not None:
            threshold = sheet.columns(np.ones(1, bool), 1.0, -INF, INF)
            beyond = sheet.columns(np.ones(n, bool), 1.0 / max(1.0, (1.0 - state.cvar) * n), 0.0, INF)
            row = known.rows(more, -1.0)
            sheet.cells(row, threshold, 1.0)
            sheet.cells(row, beyond, 1.0)
    return _below(plain, sheet.program()), n_now


@dataclass(frozen=True, kw_only=True)
class _Costs:
    """What each scenario costs, less what it costs more than the one that stands for it: the sum of some columns."""

    sheet: Sheet
    own: Ints  # [scenarios] what the one that stands for it costs
    over: Ints  # [scenarios] what it costs above that
    shorts: list[tuple[int, Ints, Floats]]  # scenario, columns of missing power, their prices

    def rows(self, least: Floats, times: float = 1.0) -> Ints:
        """Add a row a scenario: so many times what it costs is no less than `least`."""
        row = self.sheet.rows(np.ones(len(least), bool), least, INF)
        self.sheet.cells(row, self.own, times)
        self.sheet.cells(row, self.over, times)
        for k, short, price in self.shorts:
            self.sheet.cells(row[k], short, times * price)
        return row


def _below(plain: Program, more: Program) -> Program:
    """Return the rows of one programme, and those of another below, over the columns of the latter."""
    return Program(
        cost=more.cost,
        lower=more.lower,
        upper=more.upper,
        whole=more.whole,
        row_lower=np.concatenate([plain.row_lower, more.row_lower]),
        row_upper=np.concatenate([plain.row_upper, more.row_upper]),
        start=np.concatenate([plain.start, plain.start[-1] + more.start[1:]]),
        index=np.concatenate([plain.index, more.index]),
        value=np.concatenate([plain.value, more.value]),
    )


def _grid(problem: Problem, w: Floats) -> Floats:
    """Return [S,T]: MW that there are with these phases."""
    grid = problem.power_mw.copy()
    np.add.at(grid, problem.phase_site, problem.phase_mw[:, None] * live(problem, w))
    return grid


def _power(state: Guess, sheet: Sheet) -> list[tuple[int, Ints, Floats]]:
    """Add that the first orders alone draw no more than a scenario has, where that is less than its stand-in has, or pay.

    Return (scenario, columns, their prices) of what is paid for.
    """
    stands = [state.scenes[k].problem for k in state.chosen]
    parts, shorts = state.scenes[0].parts, list[tuple[int, Ints, Floats]]()
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
        paid = np.where(np.isfinite(price), price, 0.0)
        weight = 1.0 / len(state.scenes) if state.cvar is None else 0.0
        short = sheet.columns(less & np.isfinite(price), weight * paid, 0.0, INF)
        shorts.append((k, short, paid))
        sheet.cells(row, short, -1.0)
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
    return shorts
