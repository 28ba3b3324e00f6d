"""What every record of the fleet file is made of: bounded numbers, names, and the base of the records.

Bounds are far beyond what anybody owns: they catch a slipped unit, keep times within int64 nanoseconds, and what is
divided by them finite. The records themselves are `model.py` and `live.py`.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

import msgspec
from msgspec import Meta

ZeroUp = Annotated[float, Meta(ge=0)]
OverZero = Annotated[float, Meta(ge=1e-9)]
ZeroUpInt = Annotated[int, Meta(ge=0)]
OneUp = Annotated[int, Meta(ge=1)]
NonNegative = Annotated[float, Meta(ge=0, le=1e12)]
Positive = Annotated[float, Meta(ge=1e-9, le=1e12)]
LifeYears = Annotated[float, Meta(ge=0.25, le=100)]  # a quarter is the shortest that a plan knows
Ratio = Annotated[float, Meta(ge=0, le=1)]
Count = Annotated[int, Meta(ge=0, le=1_000_000_000)]
Natural = Annotated[int, Meta(ge=1, le=1_000_000_000)]
Width = Annotated[int, Meta(ge=0, le=1_000_000)]  # of a model: layers, heads, experts
PositiveWidth = Annotated[int, Meta(ge=1, le=1_000_000)]
Parallel = Annotated[int, Meta(ge=1, le=1024)]
Megawatts = Annotated[float, Meta(ge=0, le=100_000)]
PositiveMegawatts = Annotated[float, Meta(ge=1e-9, le=100_000)]
Seconds = Annotated[float, Meta(ge=0, le=1e9)]
PositiveSeconds = Annotated[float, Meta(ge=1e-9, le=1e9)]
Hours = Annotated[float, Meta(ge=0, le=1e6)]
PositiveHours = Annotated[float, Meta(ge=1e-9, le=1e6)]
Milliseconds = Annotated[float, Meta(ge=0, le=1e9)]
PositiveMilliseconds = Annotated[float, Meta(ge=1e-6, le=1e9)]
PositiveTokens = Annotated[float, Meta(ge=1e-3, le=10_000_000)]
Celsius = Annotated[float, Meta(ge=-60, le=60)]
Country = Annotated[str, Meta(pattern="^[A-Z]{2}$")]
Name = Annotated[str, Meta(pattern="^[A-Za-z0-9][A-Za-z0-9._-]{0,63}$")]
Redundancy = Literal["N", "N+1", "2N"]
CoolingType = Literal["air", "direct_to_chip", "immersion"]
Precision = Literal["bf16", "fp8", "fp4"]


def D(description: str, **bounds: Any) -> Meta:
    """Return the note on a field that the schema, the errors and docs/reference are made from."""
    return Meta(description=description, **bounds)


class Record(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Base of every record of the fleet file: frozen, by keyword, unknown keys refused."""
