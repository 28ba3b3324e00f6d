"""From the fleet file to the twin: limits, prices and outages are those that the file and the report speak of."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from baseload.fleet import load
from baseload.simulate.setup import Twin, describe

SITE = """
    place: frankfurt
    grid: [{{power_mw: 0.1, energised: 2023-01-01}}]
    contracts: [{contracts}]
    cooling: {{pue: 1.25}}
    racks: {{a: {{accelerator: h100-sxm, accelerators_per_rack: 8, racks: 2{rack}}}}}
"""
FLAT = "{power_mw: 0.1, price_per_mwh: 100}"


def _twin(*sites: str, rack: str = "", contracts: str = FLAT, more: str = "") -> Twin:
    body = "".join(f"  {name}:" + SITE.format(rack=rack, contracts=contracts) for name in sites)
    where = ", ".join(f"{name}: {{min: 4}}" for name in sites)
    text = (
        f"baseload: 1\nname: t\nsites:\n{body}models: {{m: {{catalog: llama-3.1-70b}}}}\n"
        f"deployments: {{d: {{model: m, accelerator: h100-sxm, tp: 4, precision: fp8, sites: {{{where}}}}}}}\n{more}"
    )
    return describe(load.loads(text).fleet, base_folder=Path("."), duration_s=36_000.0, seed=3)


def _times(twin: Twin, site: str) -> list[tuple[float, int]]:
    """Return the outages that touch a site's replicas: when, and how many of them at once."""
    first = sum(p.n_max for p in twin.spec.pools if p.site < twin.sites.index(site))
    own = set(range(first, first + 4))
    touched = [len(own & set(twin.spec.groups[int(group)])) for _, group, _ in twin.spec.outages]
    return [(int(row[0]), n) for row, n in zip(twin.spec.outages, touched, strict=True) if n]


def test_adding_a_site_does_not_move_the_failures_of_another() -> None:
    """Each replica, server and site fails by its own stream of random numbers, whatever else is in the file."""
    often = "failures: {replica_mtbf_h: 2, server_mtbf_h: 3, site_mtbf_h: 5}\n"
    alone, beside = _twin("old", more=often), _twin("new", "old", more=often)
    assert len(_times(alone, "old")) > 20
    assert _times(alone, "old") == _times(beside, "old")
    assert _times(beside, "new") != _times(beside, "old")
    kinds = {n for _, n in _times(alone, "old")}
    assert kinds == {1, 2, 4}  # a replica, a server of two, the site


@pytest.mark.parametrize(("rack", "limit_kw"), [("", 80.0), (", rack_kw: 5", 10.0), (", rack_kw: 5.5", 11.0)])
def test_what_a_site_may_draw_is_what_its_power_and_its_racks_allow(rack: str, limit_kw: float) -> None:
    """100 kW at the meter are 80 kW of IT at a PUE of 1.25; racks with a limit of their own take no more than that."""
    twin = _twin("a", rack=rack)
    limits: Any = twin.spec.limit_kw
    assert limits.shape[0] == 1 and np.allclose(limits, limit_kw)


def test_several_contracts_share_the_draw_by_their_megawatts() -> None:
    """A quarter of the megawatts at 200 and three quarters at 100 make 125 a MWh, as the report bills it."""
    both = "{power_mw: 0.025, price_per_mwh: 200}, {power_mw: 0.075, price_per_mwh: 100}"
    assert np.allclose(_twin("a", contracts=both).hours[0].price_per_mwh.values, 125.0)
