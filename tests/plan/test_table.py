"""The table of what replicas carry: look up, correct, write and read again."""

from __future__ import annotations

import pytest

from baseload.plan.table import ReplicaRow, ReplicaTable, service_name


def row(service: str = "large@2000ms/60ms/99%", kind: str = "h100-sxm", rate: float = 4.0) -> ReplicaRow:
    """Return a row with plain settings."""
    return ReplicaRow(
        service=service, model="large", tenants=("acme",), ttft_ms=2000.0, tpot_ms=60.0, e2e_ms=None, attainment=0.99,
        accelerator=kind, precision="fp8", kv_precision=None, tp=2, pp=1, ep=1, max_num_seqs=256,
        max_num_batched_tokens=2048, memory_utilisation=0.9, deployment="large-h100", accelerators=2, replicas=4,
        requests_per_s=rate, requests_per_s_alone=3.0, tokens_per_s=800.0, input_tokens=1000.0, output_tokens=200.0,
        power_kw_busy=1.6, power_kw_idle=0.5, network_ms=20.0, requests_measured=1000, margin=0.002, how="measured",
    )  # fmt: skip


def test_a_table_survives_its_file() -> None:
    """What is written is what is read, and the same table gives the same bytes."""
    table = ReplicaTable.of([row(), row(kind="l40s")], seed=3)
    text = table.to_json()
    assert ReplicaTable.from_json(text) == table
    assert ReplicaTable.from_json(text).to_json() == text


def test_a_row_is_found_by_service_and_accelerator() -> None:
    """A pair that nobody measured is None, never a guess."""
    table = ReplicaTable.of([row(), row(kind="l40s", rate=1.0)])
    found = table.lookup("large@2000ms/60ms/99%", "l40s")
    assert found is not None and found.requests_per_s == 1.0
    assert table.lookup("large@2000ms/60ms/99%", "b200") is None
    assert table.service_of("acme", "large") == "large@2000ms/60ms/99%"
    assert table.service_of("nobody", "large") is None


def test_corrections_multiply_and_stay_within_bounds() -> None:
    """A correction touches its own row alone, adds up over rounds, and never promises more than was measured."""
    table = ReplicaTable.of([row(), row(kind="l40s")])
    twice = table.corrected("large@2000ms/60ms/99%", "l40s", 0.9).corrected("large@2000ms/60ms/99%", "l40s", 0.9)
    found = twice.lookup("large@2000ms/60ms/99%", "l40s")
    assert found is not None and found.carries_per_s == pytest.approx(4.0 * 0.81)
    assert twice.corrections() == {("large@2000ms/60ms/99%", "l40s"): pytest.approx(0.81)}
    assert table.corrections() == {}
    assert table.corrected("large@2000ms/60ms/99%", "l40s", 3.0).corrections() == {}


def test_two_rows_for_one_pair_are_refused() -> None:
    """A service has one row for an accelerator."""
    with pytest.raises(AssertionError):
        ReplicaTable.of([row(), row()])


def test_promises_have_different_names() -> None:
    """Two promises on one model are two services."""
    names = {service_name("m", 2000.0, 60.0, None, 0.99), service_name("m", 2000.0, 60.0, 9000.0, 0.99),
             service_name("m", 2000.0, 60.0, None, 0.995)}  # fmt: skip
    assert len(names) == 3
