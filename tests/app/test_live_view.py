"""The live view: every figure comes from settled rows and from what is up now, and none is made up."""

from __future__ import annotations

from pathlib import Path

import pytest

from baseload.app import live_tally, live_view, serve_tables
from baseload.app.web import view
from baseload.fleet import load
from baseload.records import FAILED, REASON_SLO, REFUSED, SERVED
from baseload.serve.rows import SettleRow

NOW_S = 1_800_000_000
EXAMPLES = Path(__file__).parents[2] / "examples"


@pytest.fixture(scope="module")
def live() -> serve_tables.Live:
    """Return the example of three sites, as it would be served today."""
    return serve_tables.live(load.load(EXAMPLES / "three-sites" / "fleet.yaml", ()))


def settled(i: int, **fields: object) -> SettleRow:
    """Return a request that arrived two seconds ago and took one second."""
    start = (NOW_S - 2) * 10**9
    values: dict[str, object] = {
        "request_id": i, "at_ns": start + 10**9, "tenant": "t_1", "key": "k_1", "model": "large",
        "deployment": "large-h100", "site": "frankfurt", "arrival_ns": start, "first_token_ns": start + 2 * 10**8,
        "finish_ns": start + 10**9, "streamed": True, "input_tokens": 100, "output_tokens": 41, "status": SERVED,
        "price_nano": 3_000_000, "energy_mj": 5000, "carbon_ug": 700, "client_status": 200,
    }  # fmt: skip
    return SettleRow(**(values | fields))  # type: ignore[arg-type]


def tally_of(live: serve_tables.Live, *rows: SettleRow) -> live_tally.Tally:
    """Return a tally that has seen rows of the tenant `enterprise`."""
    tally = live_tally.Tally(live.tables)
    tally.names = {"t_1": "enterprise"}
    tally.see(rows)
    return tally


def taken(live: serve_tables.Live, tally: live_tally.Tally, up: bool = True) -> view.Snapshot:
    """Return the snapshot with all replicas that start up, or none."""
    n_sites = len(live.tables.sites)
    facts = live_view.Facts(
        at_ns=NOW_S * 10**9,
        replicas=[live_view.ReplicaFact(state="up" if up and row.on_at_start else "parked")
                  for row in live.tables.replicas],
        site_power_kw=[10.0] * n_sites, site_limit_kw=[row.limit_kw for row in live.tables.sites],
        carbon_g_per_kwh=[100.0] * n_sites, price_per_kwh=[0.1] * n_sites, closed={}, workers_up=1, workers=1,
        streams_open=0, waiting=0, counters={}, ledger=view.LedgerNow(), spent_month={}, recent=[], alarms=[],
    )  # fmt: skip
    return live_view.snapshot(live, live_view.standing(live), tally, facts, NOW_S * 10**9)


def test_rates_money_and_latency_of_the_last_minute_are_those_of_the_settled_rows(live: serve_tables.Live) -> None:
    """Two served requests in the last second: their tokens, price, TTFT and TPOT, for fleet, site and tenant."""
    shown = taken(live, tally_of(live, settled(1), settled(2)))
    tenant = next(one for one in shown.tenants if one.name == "enterprise")
    site = next(one for one in shown.sites if one.name == "frankfurt")
    assert shown.totals.requests_per_s == tenant.requests_per_s == site.requests_per_s == 2.0
    assert (shown.totals.input_tokens_per_s, shown.totals.output_tokens_per_s) == (200.0, 82.0)
    assert shown.totals.revenue_per_h == pytest.approx(2 * 0.003 * 3600.0)
    assert (tenant.ttft_s_p50, tenant.tpot_s_p99) == (pytest.approx(0.2), pytest.approx(0.02))
    assert tenant.attainment_ratio == 1.0 and tenant.revenue_total == pytest.approx(0.006)
    assert site.energy_j_total == pytest.approx(10.0) and site.carbon_g_total == pytest.approx(0.0014)


def test_a_refusal_a_failure_and_a_client_that_left_are_told_apart(live: serve_tables.Live) -> None:
    """Refused and failed count against the promise and are listed with their reason; a client that left does not."""
    rows = (
        settled(1),
        settled(2, status=REFUSED, reason=REASON_SLO, first_token_ns=-1, client_status=429, output_tokens=0),
        settled(3, status=FAILED, client_status=502, first_token_ns=-1, output_tokens=0),
        settled(4, status=FAILED, client_status=499),
    )
    shown = taken(live, tally_of(live, *rows))
    tenant = next(one for one in shown.tenants if one.name == "enterprise")
    assert tenant.requests_total == {"served": 1, "refused": 1, "failed": 1, "cancelled": 1}
    assert tenant.attainment_ratio == pytest.approx(1 / 3)
    assert {(error.outcome, error.requests) for error in shown.errors} == {("refused", 1), ("failed", 1)}


def test_a_request_that_nobody_could_have_served_breaks_no_promise(live: serve_tables.Live) -> None:
    """What an engine or the gateway refuses as wrong in itself is counted as refused, and not against the SLO."""
    wrong = [
        settled(i, status=REFUSED, first_token_ns=-1, client_status=code, output_tokens=0)
        for i, code in ((2, 400), (3, 422))
    ]
    shown = taken(live, tally_of(live, settled(1), *wrong))
    tenant = next(one for one in shown.tenants if one.name == "enterprise")
    assert tenant.requests_total["refused"] == 2 and tenant.attainment_ratio == 1.0


def test_the_ladder_never_rises_and_ends_at_what_was_sold(live: serve_tables.Live) -> None:
    """In MW and in tokens/s; with every replica down, nothing is healthy."""
    shown = taken(live, tally_of(live, settled(1)))
    for ladder in (shown.ladder, *(site.ladder for site in shown.sites)):
        assert ladder[0].name == "announced" and ladder[-1].name == "sold"
        for above, below in zip(ladder, ladder[1:], strict=False):
            assert below.mw <= above.mw + 1e-9 and below.tokens_per_s <= above.tokens_per_s + 1e-6
    frankfurt = next(site for site in shown.sites if site.name == "frankfurt")
    assert frankfurt.ladder[-1].tokens_per_s == pytest.approx(141.0)
    dark = taken(live, tally_of(live), up=False)
    assert all(site.state == "closed" and site.ladder[-1].mw == 0.0 for site in dark.sites)
