"""What the catalogue fills in: facts of a site with their origin, hourly series, and whose law allows what."""

from __future__ import annotations

from datetime import date
from pathlib import Path

import pytest

from baseload.errors import FleetError
from baseload.fleet import catalog, resolve
from baseload.fleet.load import loads
from baseload.fleet.model import Fleet, Rack, Series


def fleet_of(site: str) -> Fleet:
    """Return a fleet with one site `a`."""
    return loads(f"{{baseload: 1, name: x, sites: {{a: {site}}}, models: {{}}, deployments: {{}}}}").fleet


def test_facts_come_from_the_file_first():
    """What the owner declares wins over the catalogue, and each figure says where it is from."""
    facts = resolve.site_facts(
        fleet_of("{place: frankfurt, lat: 50.0, operator_jurisdiction: US, cooling: {design_wetbulb_c: 25}}"), "a"
    )

    assert (facts.lat, facts.origin["lat"]) == (50.0, "declared")
    assert facts.lon == catalog.place("frankfurt").lon
    assert facts.origin["lon"].startswith("catalogue, frankfurt")
    assert (facts.jurisdiction, facts.operator_jurisdiction, facts.blocs) == ("DE", "US", ("EU", "EEA"))
    assert facts.design_wetbulb_c == 25.0


def test_a_fact_that_nobody_knows_is_asked_for():
    """Without a place, the file has to say where the site is; the error names the key."""
    with pytest.raises(FleetError, match=r"sites\.a\.jurisdiction: is not known; write `place:`"):
        resolve.site_facts(fleet_of("{lat: 1, lon: 2}"), "a")


@pytest.mark.parametrize(
    ("code", "allowed", "answer"),
    [
        ("DE", [], True),
        ("DE", ["DE"], True),
        ("DE", ["EU"], True),
        ("NO", ["EU"], False),
        ("NO", ["EEA"], True),
        ("CH", ["EU", "EEA"], False),
        ("GB", ["EEA"], False),
        ("US", ["US", "CA"], True),
    ],
)
def test_blocs_are_what_treaties_say(code: str, allowed: list[str], answer: bool):
    """Norway is in the EEA and not in the EU; Switzerland and Britain are in neither; no list allows all."""
    assert resolve.jurisdiction_allows(code, allowed) is answer


def test_blocs_are_countries():
    """27 states in the EU, 30 in the EEA, and every one of them is a country."""
    assert len(catalog.BLOCS["EU"]) == 27
    assert len(catalog.BLOCS["EEA"]) == 30
    assert catalog.BLOCS["EEA"] <= resolve.COUNTRIES
    assert {place.country for place in catalog.places().values()} <= resolve.COUNTRIES


# ---- hourly ----------------------------------------------------------------------------------------------


def series(value: float | Series | None, *, place: str | None = "frankfurt", **more: object) -> resolve.HourlySeries:
    """Return an hourly price."""
    options = {"kind": "price_per_mwh", "base_folder": Path("."), **more}
    return resolve.hourly(value, place=place, **options)


def test_a_flat_number_holds_always():
    """A declared number is a series of one value."""
    assert list(series(40).values) == [40.0]
    assert series(40).at(8759) == 40.0


def test_the_place_fills_in_and_the_currency_is_turned():
    """Where nothing is declared the place's hourly price counts, in the fleet's currency; fees are added after."""
    dollars, euros = series(None), series(None, usd_rate=0.5)
    with_fees = series(Series(scale=2.0, add=10.0), usd_rate=0.5)

    assert len(dollars.values) == 8760
    assert euros.values[100] == pytest.approx(dollars.values[100] / 2)
    assert with_fees.values[100] == pytest.approx(dollars.values[100] + 10.0)
    assert (dollars.basis, dollars.year) == ("measured", 2023)


def test_a_place_without_hours_gives_its_year():
    """A place without an hourly series gives its yearly mean, and says how far to trust it."""
    oslo = series(None, place="oslo")

    assert list(oslo.values) == [catalog.place("oslo").price_per_mwh]
    assert oslo.basis == catalog.place("oslo").provenance["price_per_mwh"].basis
    assert "yearly mean" in oslo.source


def test_files_of_hours_are_read(tmp_path: Path):
    """CSV with and without header, a named column, leap years, and Parquet give the same 8,760 values."""
    import duckdb

    values = [float(hour % 24) for hour in range(8760)]
    (tmp_path / "plain.csv").write_text("\n".join(map(str, values)))
    (tmp_path / "named.csv").write_text("hour,eur,other\n" + "\n".join(f"{i},{v},9" for i, v in enumerate(values)))
    leap = [*values[: 59 * 24], *([99.0] * 24), *values[59 * 24 :]]
    (tmp_path / "leap.csv").write_text("price\r\n" + "\r\n".join(map(str, leap)))
    with duckdb.connect() as connection:
        connection.execute("CREATE TABLE t AS SELECT range AS hour, (range % 24)::DOUBLE AS eur FROM range(8760)")
        connection.table("t").write_parquet(str(tmp_path / "p.parquet"))

    for file in (
        Series(file="plain.csv"),
        Series(file="named.csv", column="eur"),
        Series(file="leap.csv"),
        Series(file="p.parquet"),
        Series(file="p.parquet", column="eur"),
    ):
        assert list(series(file, base_folder=tmp_path).values) == values


@pytest.mark.parametrize(
    ("name", "text", "words"),
    [
        ("short.csv", "1\n2\n3\n", "3 values; 8760 are wanted"),
        ("words.csv", "price\n1\nten\n", "words.csv:3: file: 'ten' is not a number"),
        ("nan.csv", "price\n1\nnan\n", "nan.csv:3: file: nan is not a number that can be used"),
        ("gap.csv", "a,b\n1,2\n1\n", "gap.csv:3: file: an empty field is not a number"),
        ("column.csv", "a,b\n1,2\n", "no column `x`; its columns: a, b"),
        ("high.csv", "\n".join(["1e9"] * 8760), "hour 0 is 1e+09, outside -1e+06 to 1e+06"),
        ("long.csv", "1\n" * 9000, "more than 8784 rows"),
        ("bad.parquet", "no parquet", "not Parquet"),
        ("binary.csv", "\x00\x01", "0 values; 8760 are wanted"),
        ("none.csv", None, "no such file"),
    ],
)
def test_a_file_that_cannot_be_used_is_named(tmp_path: Path, name: str, text: str | None, words: str):
    """Wrong length, text, gaps and nonsense are told with file and line."""
    if text is not None:
        (tmp_path / name).write_text(text)
    column = "x" if name == "column.csv" else None

    with pytest.raises(FleetError) as caught:
        series(Series(file=name, column=column), base_folder=tmp_path)

    assert words in str(caught.value)


def test_hours_of_the_year():
    """Years repeat and leap days count as the day before, so every day finds its weather."""
    assert resolve.hour_of_year(date(2026, 1, 1)) == 0
    assert resolve.hour_of_year(date(2026, 12, 31), 23.9) == 8759
    assert resolve.hour_of_year(date(2024, 2, 29)) == resolve.hour_of_year(date(2024, 2, 28))


# ---- racks -----------------------------------------------------------------------------------------------


def test_racks_of_one_accelerator_add_up_under_one_name():
    """Aliases of an accelerator count together."""
    site = fleet_of(
        "{racks: {a: {accelerator: h100-sxm, accelerators_per_rack: 8, racks: 2},"
        " b: {accelerator: H100_SXM, accelerators_per_rack: 8}, c: {accelerator: l40s, accelerators_per_rack: 4}}}"
    ).sites["a"]

    assert resolve.rack_accelerators(site) == {"h100-sxm": 24, "l40s": 4}
    assert resolve.server_size(site.racks["a"]) == 8
    assert resolve.server_size(site.racks["c"]) == 4


def test_a_rack_draws_what_its_servers_draw():
    """Eight H100 with their share of the server draw 8 x (700 + 250) W, and a rack's own limit caps it."""
    free = Rack(accelerator="h100-sxm", accelerators_per_rack=8)

    assert resolve.rack_power_kw(free) == pytest.approx(7.6)
    assert resolve.rack_power_kw(Rack(accelerator="h100-sxm", accelerators_per_rack=8, rack_kw=5.0)) == 5.0
