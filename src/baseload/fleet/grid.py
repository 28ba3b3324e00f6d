"""A stage on the way to a grid phase that carries power, as its owner declares it.

The months that a stage takes by default are `data/energise.json`; `phases.py` joins both.
"""

from __future__ import annotations

from datetime import date
from typing import Annotated

from msgspec import Meta

from baseload.fleet.kinds import D, Record

Months = Annotated[float, Meta(ge=0, le=600)]
PositiveMonths = Annotated[float, Meta(ge=1e-6, le=600)]
RatePerYear = Annotated[float, Meta(ge=0, le=10)]


class GridStage(Record, frozen=True):
    """How long one stage of a grid phase takes: least, likely and most months, or P10, P50 and P90; or what is known."""

    min_months: Annotated[Months | None, D("least months (PERT; with mode_months and max_months)")] = None
    mode_months: Annotated[Months | None, D("most likely months")] = None
    max_months: Annotated[Months | None, D("most months")] = None
    p10_months: Annotated[Months | None, D("months in which one of ten is done")] = None
    p50_months: Annotated[
        PositiveMonths | None, D("months in which half are done; alone it takes the prior's spread around it")
    ] = None
    p90_months: Annotated[PositiveMonths | None, D("months in which nine of ten are done")] = None
    done: Annotated[date | None, D("day it was done")] = None
    after: Annotated[list[str] | None, D("stages that must be done before it begins; the usual order where absent")] = (
        None
    )
