"""What an owner takes up at a reload, at another hour or day, and after a crash: pure parts, over an example."""

from __future__ import annotations

from datetime import UTC, datetime
from pathlib import Path

from msgspec.structs import replace

from baseload.app import owner_reload, serve_tables
from baseload.fleet import load
from baseload.serve import tables

EDGE = Path(__file__).parents[2] / "examples" / "edge" / "fleet.yaml"
NOON = datetime(2026, 3, 1, 12, tzinfo=UTC)


def live_of(text: str, now: datetime = NOON) -> serve_tables.Live:
    """Return a fleet as it is at a time."""
    return serve_tables.live(load.loads(text, base_folder=EDGE.parent), now=now)


def test_an_hour_later_it_is_the_same_fleet_and_on_the_day_of_a_rack_it_is_not() -> None:
    """Prices and weather change each hour without a reload; what comes into service by its date is taken up by one."""
    text = EDGE.read_text()
    later = text.replace("amsterdam: {min: 4}", "amsterdam: {min: 4, max: 4}")
    assert owner_reload.same_fleet(live_of(text), live_of(text, NOON.replace(hour=13)))
    assert owner_reload.same_fleet(live_of(text), live_of(later))
    assert not owner_reload.same_fleet(live_of(text), live_of(text.replace("{min: 4}", "{min: 3}")))


def test_a_fresh_start_numbers_afresh_and_an_owner_that_comes_back_does_not(tmp_path: Path) -> None:
    """Where workers may live (there is a board) rows are carried on; where none do, old marks are not read as the new rows."""
    old = live_of(EDGE.read_text()).tables
    fewer = replace(old, replicas=old.replicas[1:])
    assert owner_reload.first_rows(tmp_path, old).tables == old
    owner_reload.write_tables(tmp_path, old, live_of(EDGE.read_text()).loaded)

    again = owner_reload.first_rows(tmp_path, old)
    assert again.tables == old, "the same file: the same version"
    afresh = owner_reload.first_rows(tmp_path, fewer)
    assert len(afresh.tables.replicas) == len(fewer.replicas) and afresh.tables.first_version == old.version + 1
    assert owner_reload.last_good(tmp_path) is None, "at a start the file on disk counts"

    (tmp_path / "board").write_bytes(b"")
    carried = owner_reload.first_rows(tmp_path, fewer)
    assert len(carried.tables.replicas) == len(old.replicas) and sum(row.gone for row in carried.tables.replicas) == 1
    assert (carried.tables.first_version, carried.tables.version) == (old.version, old.version + 1)
    assert owner_reload.last_good(tmp_path) == EDGE.read_text()
    assert tables.decode((tmp_path / "tables.json").read_bytes()) == old
