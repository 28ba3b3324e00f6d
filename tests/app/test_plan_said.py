"""What a plan says beside its numbers: what carries nothing, and whom the loss of a site would strand."""

from __future__ import annotations

from datetime import date

import numpy as np

from baseload.app import plan_demand, plan_problem, plan_rows, replica_table
from baseload.fleet.load import loads
from baseload.fleet.planning import Plan
from baseload.simulate.engines import deployed_engine
from baseload.simulate.world import MAX_STEP_S, too_slow

FLEET = """
baseload: 1
name: said
sites:
  a:
    place: stockholm
    grid: [{power_mw: 0.1, energised: 2024-01-01}]
    racks:
      h: {accelerator: h100-sxm, accelerators_per_rack: 8}
      l: {accelerator: l40s, accelerators_per_rack: 8}
  b:
    place: oslo
    grid: [{power_mw: 0.1, energised: 2024-01-01}]
    racks: {h: {accelerator: h100-sxm, accelerators_per_rack: 8}}
models: {m: {catalog: llama-3.3-70b}}
deployments:
  d: {model: m, accelerator: h100-sxm, precision: bf16, tp: 4, sites: {a: {min: 1}, b: {min: 1}}}
tenants: {free: {share: 1}, bound: {share: 1, residency: ["NO"]}}
demand: {generator: {kind: poisson, requests_per_s: 2, duration_s: 300}, start: 2026-01-01}
plan: {rent: [], buy: [{accelerator: h100-sxm}]}
"""


def notes_of(*overrides: str) -> str:
    """Return all that a plan from formulas assumes."""
    loaded = loads(FLEET, overrides=list(overrides))
    asked = plan_demand.traffic(loaded, loaded.fleet.plan or Plan())
    table = plan_rows.modelled_table(loaded.fleet, asked)
    return " ".join(plan_problem.plan_problem(loaded, table, quarters=4, today=date(2026, 6, 1))[1].notes)


def test_an_accelerator_that_carries_nothing_is_said() -> None:
    """A kind without a row for what is asked carries nothing, and the plan names it; the others are not named."""
    said = notes_of()
    assert "l40s carries nothing: " in said and "h100-sxm carries nothing" not in said


def test_who_may_be_served_from_one_site_alone_is_said() -> None:
    """A tenant whom law binds to one site is not covered for its loss, by name; one with two sites is not named."""
    said = notes_of()
    assert "bound may be served from b alone" in said and "free may be served" not in said
    assert "alone" not in notes_of("plan.survive.ratio=0")


def test_settings_whose_step_the_twin_cannot_hold_are_passed_over() -> None:
    """A step of a second is longer than the twin holds: those settings are not measured, larger ones may be."""
    fleet = loads(FLEET, overrides=["deployments.d.accelerator=l40s"]).fleet
    slow = deployed_engine(fleet, "d", model_i=0, chunk_tokens=0).spec
    assert too_slow(slow) and float(np.max(slow.base_s)) > MAX_STEP_S
    assert [one for group in replica_table.settings(fleet, "m", "l40s") for one in group] == []
    loose = loads(FLEET).fleet
    assert all(not too_slow(one.engine.spec) for group in replica_table.settings(loose, "m", "l40s") for one in group)
