"""`baseload place`: law first, by the gateway's own rule; then what the promise allows; then money."""

from __future__ import annotations

from datetime import date
from pathlib import Path

import msgspec
import pytest

from baseload.app.cli import run
from baseload.app.place import place
from baseload.errors import FleetError
from baseload.fleet import load
from baseload.report.place_model import PlaceReport
from baseload.report.place_text import to_text

ROOT = Path(__file__).resolve().parents[2]
THREE = str(ROOT / "examples" / "three-sites" / "fleet.yaml")
EDGE = str(ROOT / "examples" / "edge" / "fleet.yaml")
FAST = ("--set", "plan.rent=[]")  # no offers: fewer places to measure


def placed(capsys: pytest.CaptureFixture[str], *arguments: str) -> PlaceReport:
    """Return what the verb says, from its JSON."""
    assert run(["place", *arguments, "--json"]) == 0
    return msgspec.json.decode(capsys.readouterr().out, type=PlaceReport)


@pytest.fixture(scope="module")
def public_sector() -> PlaceReport:
    """Return where a tenant may run that is bound to Germany and to the EU's law."""
    loaded = load.load(THREE, FAST[1::2])
    return place(loaded, tenant="public-sector", model="large", day=date(2026, 6, 15))


def test_law_excludes_before_anything_else(public_sector: PlaceReport) -> None:
    """Data that may sit in Germany alone, under nobody's law but the EU's, has one site; the others say what must change."""
    report = public_sector
    assert {one.site for one in report.places if one.rank is not None} == {"frankfurt"}
    madrid = next(one for one in report.places if one.site == "madrid")
    assert {one.rule for one in madrid.obstacles} == {"residency", "sovereignty"}
    assert all(one.mend for place in report.places for one in place.obstacles)
    oslo = next(one for one in report.places if one.site == "oslo")
    assert [one.rule for one in oslo.obstacles] == ["residency", "sovereignty"]  # Norway is in the EEA, not in the EU


def test_a_place_is_ranked_by_what_a_million_tokens_costs_there(capsys: pytest.CaptureFixture[str]) -> None:
    """The catalogue's name finds the fleet's model; what stands free costs energy alone and comes before what is bought."""
    report = placed(capsys, THREE, "--tenant", "enterprise", "--model", "llama-3.1-70b", *FAST)
    assert report.model == "large"
    ranked = [one for one in report.places if one.rank is not None]
    assert [one.rank for one in ranked] == list(range(1, len(ranked) + 1))
    costs = [one.cost_per_mtok for one in ranked]
    assert costs == sorted(costs)
    best = ranked[0]
    assert best.way == "free" and best.site == "madrid" and best.free_accelerators >= best.accelerators
    assert best.cost_per_mtok == best.marginal_per_mtok
    for one in ranked:
        assert one.requests_per_s > 0.0 and one.how
        assert one.marginal_per_mtok is not None and one.owned_per_mtok is not None
        assert one.marginal_per_mtok < one.owned_per_mtok
        if one.way == "buy":
            assert one.from_day is not None and one.from_day > report.day


def test_a_round_trip_beyond_the_promise_excludes(capsys: pytest.CaptureFixture[str]) -> None:
    """Where users are farther away than the first token may take, the place says so and what to change."""
    tight = ("--set", "tenants.enterprise.slo.ttft_ms=40")
    report = placed(capsys, THREE, "--tenant", "enterprise", "--model", "small", *FAST, *tight)
    madrid = next(one for one in report.places if one.site == "madrid" and one.accelerator == "h100-sxm")
    assert madrid.rank is None
    assert madrid.obstacles[0].rule == "latency"


def test_a_model_that_no_deployment_serves_is_placed_too(capsys: pytest.CaptureFixture[str]) -> None:
    """A catalogue model that the fleet does not run yet is measured with the smallest group that holds it."""
    report = placed(capsys, EDGE, "--tenant", "software-houses", "--model", "qwen3-30b-a3b", *FAST)
    able = [one for one in report.places if one.rank is not None]
    assert able and all(one.settings.startswith("fp8") for one in able)
    assert "does not call" in report.notes[0]


def test_offers_of_rent_are_places(capsys: pytest.CaptureFixture[str]) -> None:
    """A cloud under another law is a site of its own: allowed where sovereignty does not forbid it, priced by the hour."""
    offer = "plan.rent=[{accelerator: h100-sxm, place: paris, operator: acme-cloud, price_per_accelerator_hour: 2}]"
    report = placed(capsys, THREE, "--tenant", "enterprise", "--model", "small", "--set", offer)
    rented = next(one for one in report.places if one.site == "acme-cloud-paris")
    assert rented.way == "rent" and rented.rank is not None
    tokens_per_hour = rented.requests_per_s * 3600.0
    assert rented.cost_per_mtok is not None and tokens_per_hour * rented.cost_per_mtok > 0.0
    assert rented.rented_per_mtok == rented.cost_per_mtok


def test_what_is_taken_away_costs_by_its_useful_share() -> None:
    """Six times an hour ten minutes until another serves: half of the time serves, and a token costs twice as much."""
    offer = "plan.rent=[{{accelerator: l40s, place: paris, price_per_accelerator_hour: 1, kind: {}}}]"
    cost = []
    for kind in ("on_demand", "spot, interruptions_per_hour: 6, restart_s: 600"):
        loaded = load.load(THREE, [offer.format(kind)])
        report = place(loaded, tenant="enterprise", model="small", day=date(2026, 6, 15))
        cost.append(next(one.rented_per_mtok for one in report.places if one.site == "cloud-paris"))
    assert cost[0] is not None and cost[1] == pytest.approx(2.0 * cost[0])


def test_a_tier_too_small_for_a_replica_prices_none() -> None:
    """One accelerator at 1 holds no replica of two: it costs what the tier does that holds one, and another's limit is none."""
    small, large = (
        f"{{accelerator: h100-sxm, place: paris, price_per_accelerator_hour: {n}}}" for n in ("1, most: 1", "3")
    )
    cost = []
    for offers in (large, f"{small}, {large}", f"{large}, {{accelerator: l40s, place: paris, most: 1}}"):
        loaded = load.load(THREE, [f"plan.rent=[{offers}]"])
        report = place(loaded, tenant="enterprise", model="large", day=date(2026, 6, 15))
        one = next(one for one in report.places if (one.site, one.accelerator) == ("cloud-paris", "h100-sxm"))
        assert one.accelerators > 1 and one.obstacles == []
        cost.append(one.rented_per_mtok)
    assert cost[0] is not None and cost == [cost[0]] * 3


def test_a_declared_price_falls_until_the_day_that_is_asked_for() -> None:
    """Two years after the plan's start, at half as much each year, capital and upkeep are a quarter of the first day's."""
    offer = "plan.buy=[{{accelerator: h100-sxm, price_per_accelerator: {}, price_drop_per_year: 0.5}}]"
    owned: dict[tuple[int, int], float] = {}
    for price in (0, 40000):
        for day in (date(2027, 1, 1), date(2028, 12, 31)):
            loaded = load.load(THREE, [*FAST[1::2], offer.format(price), "plan.start=2027-01-01"])
            report = place(loaded, tenant="enterprise", model="small", day=day, today=date(2026, 6, 15))
            one = next(one for one in report.places if (one.site, one.accelerator) == ("madrid", "h100-sxm"))
            assert one.owned_per_mtok is not None
            owned[price, day.year] = one.owned_per_mtok
    capital = {year: owned[40000, year] - owned[0, year] for year in (2027, 2028)}
    assert capital[2028] == pytest.approx(0.25 * capital[2027], rel=1e-3)


@pytest.mark.parametrize(
    ("tenant", "model", "told"),
    [
        ("enterprize", "large", "there is no tenant `enterprize`; did you mean `enterprise`?"),
        ("enterprise", "lama-3.1-70b", "did you mean `llama-3.1-70b`"),
        ("enterprise", "", "there is no model ``, here or in the catalogue"),
    ],
)
def test_a_wrong_name_gets_its_line_and_the_nearest(tenant: str, model: str, told: str) -> None:
    """File, line, what is wrong, and the name that was probably meant."""
    with pytest.raises(FleetError) as caught:
        run(["place", THREE, "--tenant", tenant, "--model", model])
    said = str(caught.value)
    assert "fleet.yaml:" in said
    assert told in said


def test_the_text_has_the_best_first_and_reasons_last(public_sector: PlaceReport) -> None:
    """The best in the first sentence, the excluded with their mends below; 80 columns are enough."""
    text = to_text(public_sector, width=80)
    assert "Best: " in text and "Excluded, and what would have to change" in text
    assert max(map(len, text.splitlines())) <= 80
    assert "Wh/Mtok" in to_text(public_sector, width=140)
