"""What a plan says beside its numbers: accelerators that carry nothing, and tenants whom the loss of a site would strand."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from baseload.app.plan_prices import Frame
from baseload.app.plan_rows import MODELLED
from baseload.plan.table import ReplicaTable

NAMES_MOST = 6


def beside(f: Frame, table: ReplicaTable, allowed: npt.NDArray[np.bool_], demand: npt.NDArray[np.float64]) -> list[str]:
    """Return both, in sentences."""
    return [*_carries_nothing(f, table, demand), *_one_site_only(f, table, allowed, demand)]


def _carries_nothing(f: Frame, table: ReplicaTable, demand: npt.NDArray[np.float64]) -> list[str]:
    """Return, for each accelerator that carries some service not at all, which and why."""
    modelled = any(row.how == MODELLED for row in table.rows)
    absent = (
        "no deployment declares it there, or the model does not fit"
        if modelled
        else "the table of replicas has no row for it: the model does not fit there, or is too slow"
    )
    asked = [name for m, name in enumerate(table.services) if demand[:, m].max(initial=0.0) > 0.0]
    said = []
    for kind in dict.fromkeys(one.accelerator for one in f.kinds):
        rows = {name: table.lookup(name, kind) for name in asked}
        why = {
            absent: [name for name, row in rows.items() if row is None],
            "the promise breaks there even at no load": [
                name for name, row in rows.items() if row is not None and row.carries_per_s <= 0.0
            ],
        }
        for reason, names in why.items():
            if names:
                said.append(f"{kind} carries {'nothing' if names == asked else f'nothing of {_few(names)}'}: {reason}")
    return said


def _one_site_only(
    f: Frame, table: ReplicaTable, allowed: npt.NDArray[np.bool_], demand: npt.NDArray[np.float64]
) -> list[str]:
    """Return who may be served from one site alone, so that the loss of that site is not asked to be survived."""
    if f.plan.survive.ratio <= 0.0:
        return []
    found: dict[tuple[str, str], list[str]] = {}
    for r, m in np.argwhere((allowed.sum(axis=1) == 1) & (demand.max(axis=2, initial=0.0) > 0.0)):
        site = f.sites[int(np.argmax(allowed[r, :, m]))].name
        found.setdefault((f.clients[r].name, site), []).append(table.services[m])
    return [
        f"{client} may be served from {site} alone ({_few(names)}): the loss of that site is not covered for it"
        for (client, site), names in found.items()
    ]


def _few(names: Sequence[str]) -> str:
    more = len(names) - NAMES_MOST
    return ", ".join(names[:NAMES_MOST]) + (f" and {more} more" if more > 0 else "")
