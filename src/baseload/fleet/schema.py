"""The fleet file as a JSON Schema, for editors: made from the records of `model.py`, never by hand.

It knows each record's keys, types and bounds; what must hold between records is `check.py` alone.
"""

from __future__ import annotations

import json
from importlib.resources import files
from typing import Any

import msgspec

from baseload.fleet.model import Fleet

FILE_NAME = "fleet.schema.json"


def json_schema() -> dict[str, Any]:
    """Return the schema, as JSON Schema 2020-12."""
    schema = msgspec.json.schema(Fleet)
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "title": "Baseload fleet file",
        **schema,
    }


def schema_text() -> str:
    """Return the text of the shipped file `fleet/fleet.schema.json`."""
    return json.dumps(json_schema(), indent=1) + "\n"


def shipped_schema_text() -> str:
    """Return the text of the schema that was shipped with this version."""
    return (files("baseload.fleet") / FILE_NAME).read_text("utf-8")
