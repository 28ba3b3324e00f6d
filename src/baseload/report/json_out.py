"""The report as JSON: complete, keys with units in their names and in a fixed order, the same bytes for the same run."""

from __future__ import annotations

import msgspec

from baseload.report.model import Report


def to_json(report: Report) -> str:
    """Return the report as indented JSON; what is not defined is null."""
    return msgspec.json.format(msgspec.json.encode(report), indent=2).decode()


def from_json(text: str) -> Report:
    """Return the report of such a text; raises msgspec.ValidationError where it is something else."""
    return msgspec.json.decode(text, type=Report)
