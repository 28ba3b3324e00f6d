"""The planner's model written in linopy and solved by HiGHS with its defaults: what a modelling layer gives on the same.

    PYTHONPATH=src .bench/linopy/bin/python bench/plan/peer_linopy.py --size 4 3 3 6 6 --seed 0 [--whole] [--flows]
        [--cpu-limit 60] [--decisions FILE.npz]

It runs in an environment of its own (`make bench-plan` makes it) and takes from the project only the problem's arrays and
the seeded generator: the rows are written from the text of `plan/problem.py`, not from the builder. Survival is exact with
`--flows` (a largest flow for each site lost, as columns: small instances); without it, as in the planner's first programme,
by what all clients of a service need when each site is lost, so that the peer's question is the easier one. One JSON line
comes out; the decisions go to a file, so that the planner's own checker can price them on the full problem.
"""

from __future__ import annotations

import argparse
import json
import resource
import time
import warnings
from pathlib import Path
from typing import Any

import highspy
import linopy
import numpy as np
import pandas as pd
import xarray as xr
from linopy.io import to_highspy

from baseload.plan.generate import instance
from baseload.plan.problem import SLACKS, Problem

INF = float("inf")
warnings.filterwarnings(
    "ignore", category=linopy.LinopySemanticsWarning
)  # absent variables count as nought: what is meant


class Peer:
    """The model of a problem: `x` holds its variables by the names of `plan/problem.py`."""

    def __init__(self, problem: Problem, *, flows: bool) -> None:
        """Write all columns, rows and costs."""
        self.problem, self.x, self.costs = problem, {}, []
        self.model = linopy.Model()
        names = ("sites", "kinds", "services", "clients", "periods", "phases", "rentals", "groups", "limits")
        self.axes = {key: pd.RangeIndex(len(getattr(problem, name)), name=key)
                     for key, name in zip("samrtpkgl", names, strict=True)}  # fmt: skip
        self.begin()
        self.racks()
        self.serve()
        self.power()
        self.policy()
        self.survive_flows() if flows else self.survive_halls()
        self.model.add_objective(sum(self.costs[1:], self.costs[0]))

    def data(self, values: Any, axes: str) -> xr.DataArray:
        """Return an array with its axes named."""
        shape = tuple(len(self.axes[axis]) for axis in axes)
        return xr.DataArray(np.broadcast_to(values, shape), [(axis, self.axes[axis]) for axis in axes])

    def column(self, name: str, axes: str, cost: Any = None, upper: Any = INF, lower: Any = 0.0, there: Any = True,
               whole: bool = False) -> Any:  # fmt: skip
        """Add a variable where it is `there`."""
        mask = self.data(there, axes)
        found = self.model.add_variables(
            self.data(lower, axes), self.data(upper, axes), name=name, mask=mask, integer=whole
        )
        self.x[name] = found
        if cost is not None:
            self.costs.append((self.data(np.where(mask, cost, 0.0), axes) * found).sum())
        return found

    def row(self, name: str, left: Any, sign: str, right: Any, there: Any = None) -> None:
        """Add a constraint where it is `there`."""
        self.model.add_constraints(left, sign, right, name=name, mask=there)

    def moved(self, variable: Any, weight: Any, axes: str) -> Any:
        """Return the sum over periods u of weight[..., t, u] times the variable at u; `axes` are those of the weight."""
        values = xr.DataArray(weight, [(a, self.axes["t"] if a in "tu" else self.axes[a]) for a in axes])
        return (values * variable.rename(t="u")).sum("u")

    # ---- columns and rows, in the order of the text ------------------------------------------------------------------
    def begin(self) -> None:
        """Phases."""
        p, t = self.problem, np.arange(len(self.problem.periods))
        if not len(p.phases):
            return
        w = self.column("w", "pt", upper=t >= p.begin_from[:, None], lower=t >= p.begin_by[:, None], whole=True)
        self.step = np.eye(len(t)) - np.eye(len(t), k=-1)
        begun = self.moved(w, self.step, "tu")
        self.costs.append((self.data(p.cost_begin, "pt") * begun).sum())
        self.row("begun stays begun", begun, ">=", 0.0)
        late = np.stack([np.eye(len(t), k=-int(delay)) for delay in p.phase_delay])
        self.live = self.column("live", "pt", cost=p.cost_live)
        self.row("live", self.live - self.moved(w, late, "ptu"), "=", 0.0)
        first = np.flatnonzero(p.phase_after >= 0)
        if len(first):
            order = np.zeros((len(first), len(p.phases)))
            order[np.arange(len(first)), first] = 1.0
            order[np.arange(len(first)), p.phase_after[first]] = -1.0
            self.row(
                "after", (xr.DataArray(order, dims=("o", "p"), coords={"p": self.axes["p"]}) * w).sum("p"), "<=", 0.0
            )

    def racks(self) -> None:
        """What is bought, rented, put to work and carried; hosting."""
        p = self.problem
        t = np.arange(len(p.periods))
        arrives = p.may_place[:, :, None] & (t + p.lead[:, None] < len(t))
        bought = self.column("buy", "sat", cost=p.cost_buy, there=arrives, whole=bool(p.whole.any()))
        assert p.whole.all() or not p.whole.any()
        own = self.column("own", "sat", cost=p.cost_owned, there=p.may_place[:, :, None] | (p.existing > 0.0))
        change = np.stack([np.eye(len(t), k=-int(lead)) - np.eye(len(t), k=-int(lead + life))
                           for lead, life in zip(p.lead, p.life, strict=True)])  # fmt: skip
        step = np.eye(len(t)) - np.eye(len(t), k=-1)
        more = self.data(np.diff(p.existing, axis=2, prepend=0.0), "sat")
        self.row("own", self.moved(own, step, "tu") - self.moved(bought, change, "atu"), "=", more)
        there = p.may_place[:, :, None, None] & (p.sign_max > 0.0)[..., None]
        sign = self.column("sign", "sakt", cost=p.cost_sign, there=there)
        rented = self.column("rented", "sakt", upper=p.sign_max[..., None], there=there)
        ends = np.stack([np.eye(len(t)) - np.eye(len(t), k=-int(term)) for term in p.term])
        self.row("rented", self.moved(rented, step, "tu") - self.moved(sign, ends, "ktu"), "=", 0.0)
        come = np.einsum("rsm,rmt->smt", p.allowed.astype(float), p.demand)
        put = self.column(
            "put", "samt", cost=p.cost_put, there=(p.rate > 0.0)[None, :, :, None] & (come > 0.0)[:, None]
        )
        usable = own + (self.data(p.useful, "k") * rented).sum("k")
        self.row("racks", put.sum("m") - usable, "<=", 0.0)
        carry = self.column("carry", "smt", there=come > 0.0)
        self.row("carry", carry - (self.data(p.rate, "am") * put).sum("a"), "=", 0.0)
        if p.host_min is not None:
            host = self.column("host", "smt", cost=p.cost_host, upper=1.0, there=come > 0.0, whole=True)
            self.row("host most", carry - self.data(come, "smt") * host, "<=", 0.0)
            self.row("host least", carry - self.data(p.host_min[None, :, None], "smt") * host, ">=", 0.0)
        self.held = own + rented.sum("k")
        self.on_site = own + (self.data(p.on_site.astype(float), "k") * rented).sum("k")

    def serve(self) -> None:
        """Who is served from where, and who is not."""
        p = self.problem
        asked = p.demand > 0.0
        flow = self.column("flow", "rsmt", cost=p.cost_flow, there=p.allowed[..., None] & asked[:, None])
        missed = self.column("unserved", "rmt", cost=p.cost_unserved, upper=p.demand, there=asked)
        self.row("serve", flow.sum("s") + missed, "=", self.data(p.demand, "rmt"), self.data(asked, "rmt"))
        self.row("within carry", flow.sum("r") - self.x["carry"], "<=", 0.0)

    def slack(self, name: str, axes: str) -> Any:
        """Return what a policy row may be missed by, at its price."""
        shape = tuple(len(self.axes[axis]) for axis in axes)
        price = np.broadcast_to(self.problem.slack_price.get(name, np.float64(INF)), shape)
        return self.column(name, axes, cost=np.where(np.isfinite(price), price, 0.0),
                           upper=np.where(np.isfinite(price), INF, 0.0))  # fmt: skip

    def power(self) -> None:
        """Power, floor, and the billed peak."""
        p = self.problem
        t = np.arange(len(p.periods))
        draw = (self.data(p.rack_mw, "sa") * self.on_site).sum("a")
        drawn = self.column("draw", "st")
        self.row("draw", drawn - draw, "=", 0.0)
        short, billed = self.slack("short_power", "st"), self.column("billed", "st", cost=p.cost_billed)
        given = self.data(p.power_mw, "st")
        at = np.zeros((len(p.sites), len(p.phases)))
        at[p.phase_site, np.arange(len(p.phases))] = p.phase_mw
        grid = (self.data(at, "sp") * self.live).sum("p")
        self.row("power", drawn - grid - short, "<=", given)
        self.row("billed", billed - drawn, ">=", 0.0)
        for late in range(1, min(4, len(t))):
            if p.ratchet.any():
                before = p.ratchet[:, None, None] * np.eye(len(t), k=-late)
                self.row(f"ratchet {late}", billed - self.moved(drawn, before, "stu"), ">=", 0.0)
        least = self.data(p.minimum_bill[:, None], "st")
        self.row("minimum bill", billed - self.data(p.minimum_bill, "s") * grid, ">=", least * given)
        short_m2 = self.slack("short_floor", "st")
        if np.isfinite(p.floor_m2).any():
            used = (self.data(p.rack_m2, "a") * self.on_site).sum("a")
            finite = self.data(np.where(np.isfinite(p.floor_m2), p.floor_m2, 0.0), "st")
            self.row("floor", used - short_m2, "<=", finite, self.data(np.isfinite(p.floor_m2), "st"))

    def policy(self) -> None:
        """Supply, shares, budgets."""
        p, buy = self.problem, self.x["buy"]

        def limit(name: str, left: Any, most: np.ndarray, axes: str) -> None:
            if np.isfinite(most).any():
                right = self.data(np.where(np.isfinite(most), most, 0.0), axes)
                self.row(name, left, "<=", right, self.data(np.isfinite(most), axes))

        limit("supply", buy.sum("s"), p.supply, "at")
        if len(p.limits):
            limit("shared", (self.data(p.shared_use, "la") * buy.sum("s")).sum("a"), p.shared, "lt")
        over = self.slack("over_share", "gt")
        if len(p.groups):
            weight = p.rack_mw[None] * (p.group_of - p.share_max[:, None, None])
            self.row("share", (self.data(weight, "gsa") * self.held).sum(["s", "a"]) - over, "<=", 0.0)
        spent = (self.data(p.spend_buy, "sat") * buy).sum(["s", "a"])
        spent += (self.data(p.spend_begin, "pt") * self.moved(self.x["w"], self.step, "tu")).sum("p")
        limit("capex", spent - self.slack("over_capex", "t"), p.capex_budget, "t")
        for name in ("carbon", "water"):
            slack, budget = self.slack(f"over_{name}", "t"), getattr(p, f"{name}_budget")
            if np.isfinite(budget).any():
                used = (self.data(getattr(p, f"{name}_owned"), "sat") * self.x["own"]).sum(["s", "a"])
                used += (self.data(getattr(p, f"{name}_put"), "samt") * self.x["put"]).sum(["s", "a", "m"])
                limit(name, used - slack, budget, "t")

    def survive_halls(self) -> None:
        """What all clients of a service that have two sites need, when each site is lost: carried by the others or short."""
        p, short = self.problem, self.slack("short_survive", "mt")
        multi = (p.allowed.sum(axis=1) >= 2) & (p.survive_ratio > 0.0)[None]  # [R,M]
        reach = (p.allowed & multi[:, None]).any(axis=0)  # [S,M]
        sites = len(p.sites)
        others = reach[None] & ~np.eye(sites, dtype=bool)[:, :, None]  # [lost,S,M]
        axis = pd.RangeIndex(sites, name="lost")
        left = xr.DataArray(others.astype(float), [("lost", axis), ("s", self.axes["s"]), ("m", self.axes["m"])])
        ratio = self.data(p.survive_ratio * multi, "rm")
        need = (ratio * self.data(p.demand, "rmt")).sum("r")
        carried = (left * self.x["carry"]).sum("s")
        there = xr.DataArray(reach, [("lost", axis), ("m", self.axes["m"])]) & (need > 0.0)
        need, there = xr.broadcast(need, there)
        order = ("lost", "m", "t")
        self.row("survive", carried + (ratio * self.x["unserved"]).sum("r") + short, ">=",
                 need.transpose(*order), there.transpose(*order))  # fmt: skip

    def survive_flows(self) -> None:
        """For each site lost, flows into the others that serve what must survive, or are short."""
        p, short = self.problem, self.slack("short_survive", "mt")
        multi = (p.allowed.sum(axis=1) >= 2) & (p.survive_ratio > 0.0)[None]
        asked = p.demand > 0.0
        for lost in range(len(p.sites)):
            may = p.allowed & multi[:, None]
            may[:, lost] = False
            there = may[..., None] & asked[:, None]
            left = self.column(f"flow without {lost}", "rsmt", there=there)
            missed = self.column(f"missed without {lost}", "rmt", there=multi[..., None] & asked)
            ratio = self.data(p.survive_ratio * multi, "rm")
            rows = self.data(multi[..., None] & asked, "rmt")
            self.row(f"need without {lost}", left.sum("s") + missed + ratio * self.x["unserved"], ">=",
                     ratio * self.data(p.demand, "rmt"), rows)  # fmt: skip
            self.row(f"carry without {lost}", left.sum("r") - self.x["carry"], "<=", 0.0)
            self.row(f"short without {lost}", missed.sum("r") - short, "<=", 0.0)


def solve(peer: Peer, cpu_limit_s: float, gap: float | None) -> tuple[Any, float]:
    """Solve by HiGHS as it comes, but for the end: CPU seconds of this process, and a relative gap where one is given."""
    began_s = time.process_time()
    highs = to_highspy(peer.model)
    highs.setOptionValue("output_flag", False)
    if gap is not None:
        highs.setOptionValue("mip_rel_gap", gap)
    loaded_s = time.process_time() - began_s

    def called(kind: Any, message: str, out: Any, into: Any, user: Any) -> None:
        if time.process_time() - began_s > cpu_limit_s:
            into.user_interrupt = True

    highs.setCallback(called, None)
    kinds = highspy.cb.HighsCallbackType
    for kind in (kinds.kCallbackMipInterrupt, kinds.kCallbackSimplexInterrupt, kinds.kCallbackIpmInterrupt):
        highs.startCallback(kind)
    highs.run()
    return highs, loaded_s


def decisions(peer: Peer, x: np.ndarray) -> dict[str, np.ndarray]:
    """Return a solution by variable; 0 where a variable is not there."""
    place = {int(label): i for i, label in enumerate(peer.model.variables.flat["labels"])}
    found = {}
    for name in ("w", "buy", "sign", "put", "host", "flow", "unserved", "billed", *SLACKS):
        if name in peer.x:
            labels = peer.x[name].labels.values
            at = np.array([place.get(int(label), -1) for label in labels.ravel()])
            found[name] = np.where(at >= 0, x[at], 0.0).reshape(labels.shape)
    return found


def main() -> None:
    """Build, solve, report."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--size", nargs=5, type=int, required=True)
    parser.add_argument("--seed", type=int, required=True)
    parser.add_argument("--whole", action="store_true", help="hosting decisions and whole racks")
    parser.add_argument("--flows", action="store_true", help="survival exactly")
    parser.add_argument("--cpu-limit", type=float, default=60.0)
    parser.add_argument("--gap", type=float)
    parser.add_argument("--decisions", type=Path)
    given = parser.parse_args()
    problem = instance(*given.size, seed=given.seed, hosting=given.whole, whole=given.whole)
    began_s = time.process_time()
    peer = Peer(problem, flows=given.flows)
    written_s = time.process_time() - began_s
    began_s = time.process_time()
    highs, loaded_s = solve(peer, given.cpu_limit, given.gap)
    cpu_s = time.process_time() - began_s
    info, lp = highs.getInfo(), highs.getLp()
    feasible = info.primal_solution_status == highspy.SolutionStatus.kSolutionStatusFeasible
    is_mip = len(lp.integrality_) > 0
    found = {
        "columns": lp.num_col_,
        "rows": lp.num_row_,
        "build_s": round(written_s + loaded_s, 2),
        "cpu_s": round(cpu_s - loaded_s, 1),
        "status": highs.modelStatusToString(highs.getModelStatus()),
        "cost": float(info.objective_function_value) if feasible else None,
        "bound": float(info.mip_dual_bound) if is_mip else None,
        "peak_mb": round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024),
    }
    if feasible and given.decisions:
        np.savez(given.decisions, **decisions(peer, np.array(highs.getSolution().col_value)))
    print(json.dumps(found))


if __name__ == "__main__":
    main()
