"""Supply: every accelerator that is sold has a lead time with its source; limits, quotas and export rules answer."""

from __future__ import annotations

from datetime import date

import pytest

from baseload.errors import CatalogError
from baseload.fleet import catalog, supply
from baseload.fleet.resolve import COUNTRIES

TODAY = date(2026, 11, 21)


def test_every_row_has_a_source_and_a_known_accelerator():
    """No figure without its source; no accelerator that the catalogue does not know."""
    data = supply.supply()
    rows = [*data.accelerators.values(), *data.shared_limits.values(), *data.export_rules, *data.quotas]
    assert {row.from_ for row in rows} <= set(data.sources)
    assert set(data.accelerators) <= set(catalog.accelerators())
    assert all(source.date and source.source for source in data.sources.values())


def test_what_a_cloud_keeps_for_itself_has_no_lead_time():
    """TPUs and Trainium cannot be bought; all else that the catalogue knows can, with rising P10, P50 and P90."""
    for name, known in catalog.accelerators().items():
        weeks = supply.lead_weeks(name)
        assert (weeks is None) == (known.vendor in ("Google", "AWS")), name
        assert weeks is None or 0 < weeks.low < weeks.middle < weeks.high


def test_prices_fall_from_the_catalogues():
    """Today's price is the catalogue's, and a year later it is lower by the stated share."""
    assert supply.price_usd("h100-sxm", TODAY) == catalog.accelerator("h100-sxm").price_usd
    year = supply.price_usd("h100-sxm", date(2027, 11, 21)) / supply.price_usd("h100-sxm", TODAY)
    assert year == pytest.approx(1.0 - supply.supply().accelerators["h100-sxm"].price_drop_per_year, abs=1e-3)


def test_shared_limits_grow_and_are_used():
    """The data's last quarter is followed by growth at its rate; a larger interposer takes more of a wafer."""
    limit = supply.supply().shared_limits["hbm"]
    assert supply.shared_limit("hbm", "2026-Q4") == limit.per_quarter[0]
    assert supply.shared_limit("hbm", "2029-Q3") == pytest.approx(
        limit.per_quarter[-1] * (1 + limit.growth_per_year_after)
    )
    assert supply.shared_use("packaging", "b200-sxm") > supply.shared_use("packaging", "h100-sxm") > 0.0
    assert supply.shared_use("hbm", "l40s") == supply.shared_use("packaging", "l40s") == 0.0


def test_quotas_are_the_owners():
    """None ships; the lowest of several for a quarter counts, by any name of the accelerator."""
    rows = tuple(supply.Quota(accelerator="h100-sxm", quarter="2027-Q1", units=n, from_="mem") for n in (500, 200))
    assert supply.quota_units("h100-sxm", "2027-Q1") is None
    assert supply.quota_units("h100-sxm", "2027-Q1", rows) == 200
    assert supply.quota_units("h100-sxm", "2027-Q2", rows) is None


@pytest.mark.parametrize(
    ("accelerator", "destination", "headquarters", "verdict"),
    [
        ("h100-sxm", "NO", None, "free"),
        ("h100-sxm", "CN", None, "denied"),
        ("h100-sxm", "SG", "CN", "denied"),
        ("h100-sxm", "AE", None, "licence"),
        ("h20", "CN", None, "free"),
        ("mi300x", "RU", None, "denied"),
    ],
)
def test_who_may_buy_what_where(accelerator: str, destination: str, headquarters: str | None, verdict: str):
    """Class, destination and the buyer's headquarters decide, and the hardest rule counts; before a rule all is free."""
    told = supply.export(accelerator, destination, TODAY, headquarters)
    assert told.verdict == verdict and bool(told.source) == (verdict != "free")
    assert supply.export(accelerator, destination, date(2020, 1, 1), headquarters).verdict == "free"


def test_rules_name_real_countries():
    """Every country of a rule is an ISO code that the fleet file may use."""
    for rule in supply.supply().export_rules:
        assert rule.destinations | rule.headquarters <= COUNTRIES, rule.destinations - COUNTRIES


@pytest.mark.parametrize("quarter", ["2027", "2027-Q5", "27-Q", "Q1-2027"])
def test_a_quarter_that_is_none(quarter: str):
    """What is no quarter is refused with an example."""
    with pytest.raises(CatalogError, match="write e.g. 2027-Q1"):
        supply.shared_limit("hbm", quarter)
