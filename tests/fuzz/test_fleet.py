"""Mutated fleet files, a small share of what `make fuzz` runs."""

from __future__ import annotations

import pytest

from tests.fuzz.run import run_target

N_CHUNKS, CHUNK = 4, 500


@pytest.mark.slow
@pytest.mark.parametrize("chunk", range(N_CHUNKS))
def test_a_mutated_fleet_file_is_an_error_or_a_fleet(chunk: int):
    """2,000 damaged fleet files give FleetError, or a fleet that answers every question; never another exception."""
    said: list[str] = []

    findings = run_target("fleet", first_seed=chunk * CHUNK, count=CHUNK, say=said.append)

    assert findings == 0, "\n".join(said)
    assert "valid" in said[-1] and "error" in said[-1] and "nothing" not in said[-1]


@pytest.mark.slow
def test_a_mutated_plan_section_is_an_error_or_a_plan():
    """30 hostile `plan` sections end in an error that says something, or in a plan that says what it misses."""
    said: list[str] = []

    findings = run_target("plan", first_seed=0, count=30, say=said.append)

    assert findings == 0, "\n".join(said)
    assert "error" in said[-1] and "meet" in said[-1] and "nothing" not in said[-1]
