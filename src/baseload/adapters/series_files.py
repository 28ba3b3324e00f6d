"""The series files that a fleet file names: which they are, and the same fleet with their copies' names.

A run folder keeps copies, so that it can be reported after it was moved. Reading them is `fleet/resolve.py`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import msgspec

from baseload.fleet.model import Fleet, Series, Site


def series_files(fleet: Fleet) -> list[str]:
    """Return the names of the series files that a fleet's sites use, as the fleet file writes them."""
    names: list[str] = []

    def note(value: Any) -> Any:
        if isinstance(value, Series) and value.file is not None:
            names.append(value.file)
        return value

    for site in fleet.sites.values():
        _each_series(site, note)
    return sorted(set(names))


def with_files(fleet: Fleet, files: Mapping[str, str]) -> Fleet:
    """Return the fleet with the names of its series files changed, where `files` has a new one."""

    def moved(value: Any) -> Any:
        if isinstance(value, Series) and value.file is not None:
            return msgspec.structs.replace(value, file=files.get(value.file, value.file))
        return value

    sites = {name: _each_series(site, moved) for name, site in fleet.sites.items()}
    return msgspec.structs.replace(fleet, sites=sites)


def _each_series(site: Site, change: Callable[[Any], Any]) -> Site:
    contracts = [
        msgspec.structs.replace(contract, price_per_mwh=change(contract.price_per_mwh)) for contract in site.contracts
    ]
    cooling = msgspec.structs.replace(site.cooling, wetbulb_c=change(site.cooling.wetbulb_c))
    return msgspec.structs.replace(
        site, contracts=contracts, cooling=cooling, carbon_g_per_kwh=change(site.carbon_g_per_kwh)
    )
