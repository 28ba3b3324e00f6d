"""Cost, energy and carbon of a request: bounds that hold for any numbers, and books that balance to the millijoule."""

from __future__ import annotations

import json

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from baseload.serve.energy import account, price_nano, reconcile_site, usage_fields
from baseload.serve.tables import DeploymentRow, SiteRow, TenantRow

SITE = SiteRow(
    name="oslo", jurisdiction="NO", operator_jurisdiction="NO", one_way_s=0.001, pue=1.25, carbon_g_per_kwh=30.0,
    price_per_kwh=0.08, limit_kw=None, idle_kw=0.0,
)  # fmt: skip
H100 = DeploymentRow(
    name="chat", model_i=0, kind="external", accelerator="h100-sxm", slots=256, prefill_tokens_per_s=40_000.0,
    decode_s_per_token=0.012, idle_w=100.0, busy_w=550.0, j_per_input_token=0.015,
    j_per_output_token=450.0 * 0.012 / 128, idle_cost_per_s=3.0 / 3600, cost_per_input_token=5e-8,
    cost_per_output_token=3e-7, idle_share_ratio=0.5,
)  # fmt: skip
tokens = st.integers(0, 200_000)


def test_a_replica_at_half_load_hands_out_its_whole_draw():
    """128 sequences of a token a step take what the replica draws in that step, idle draw included: no joule is lost."""
    seconds = 10.0
    n_tokens = round(seconds / H100.decode_s_per_token)
    one = account(H100, SITE, input_tokens=0, cached_tokens=0, output_tokens=n_tokens, seconds=seconds)

    drawn_wh = 550.0 * n_tokens * 0.012 / 3600.0 * SITE.pue
    assert 128 * one.energy_wh == pytest.approx(drawn_wh, rel=1e-9)


@given(tokens, tokens, tokens, st.floats(0.0, 3600.0), st.floats(0.0, 2000.0), st.floats(-0.2, 2.0))
def test_an_estimate_lies_within_its_range(n_in: int, n_cached: int, n_out: int, s: float, grams: float, price: float):
    """Low is at most the estimate, high at least; nothing is negative, whatever the request and the hour."""
    done = account(H100, SITE, input_tokens=n_in, cached_tokens=n_cached, output_tokens=n_out, seconds=s,
                   carbon_g_per_kwh=grams, price_per_kwh=price)  # fmt: skip

    for value, (low, high) in (
        (done.cost, done.cost_range),
        (done.energy_wh, done.energy_wh_range),
        (done.carbon_g, done.carbon_g_range),
    ):
        assert 0.0 <= low <= value <= high


@given(tokens, tokens, tokens)
def test_more_tokens_never_cost_less(n_in: int, n_out: int, more: int):
    """Cost and energy grow with tokens, and shrink with what the prefix cache spared."""

    def of(n_in: int, n_cached: int, n_out: int) -> tuple[float, float]:
        done = account(H100, SITE, input_tokens=n_in, cached_tokens=n_cached, output_tokens=n_out, seconds=1.0)
        return done.cost, done.energy_wh

    assert of(n_in, 0, n_out) <= of(n_in + more, 0, n_out)
    assert of(n_in, 0, n_out) <= of(n_in, 0, n_out + more)
    assert of(n_in + more, more, n_out) == pytest.approx(of(n_in, 0, n_out))


@given(tokens, tokens, tokens, st.integers(0, 10**9), st.integers(0, 10**9), st.integers(0, 10**9))
def test_a_price_is_never_rounded_up(n_in: int, n_cached: int, n_out: int, p_in: int, p_cached: int, p_out: int):
    """The bill is whole nano units, at most the exact sum, and less than one below it."""
    tenant = TenantRow(name="acme", ttft_slo_s=1, tpot_slo_s=1, priority=5, input_pico=p_in, cached_pico=p_cached,
                       output_pico=p_out, budget_per_month_nano=None)  # fmt: skip
    cached = min(n_cached, n_in)
    exact_pico = (n_in - cached) * p_in + cached * p_cached + n_out * p_out

    assert 0 <= exact_pico - 1000 * price_nano(tenant, n_in, n_cached, n_out) < 1000


@given(st.integers(0, 10**12), st.lists(st.integers(0, 10**9), max_size=50), st.integers(0, 10**12))
def test_requests_and_idleness_sum_to_the_meter(metered: int, requests: list[int], idle: int):
    """What the meter saw is divided to the millijoule, nobody gets less than nothing, equal requests differ by one at most."""
    parts = reconcile_site(metered, requests, idle)

    assert parts.total_mj == metered
    assert len(parts.requests_mj) == len(requests)
    assert min([*parts.requests_mj, parts.idle_mj]) >= 0
    by_told: dict[int, list[int]] = {}
    for told, got in zip(requests, parts.requests_mj):
        by_told.setdefault(told, []).append(got)
    assert all(max(got) - min(got) <= 1 for got in by_told.values())
    if metered == idle + sum(requests) and sum(requests):
        assert parts == (requests, idle)  # a meter that agrees changes nothing


def test_the_members_of_usage_are_json_that_a_client_can_read():
    """`usage` gains four numbers and one object with currency, methods and ranges."""
    done = account(H100, SITE, input_tokens=500, cached_tokens=100, output_tokens=200, seconds=2.5)
    usage = json.loads(b"{" + usage_fields(done, 0.00123, b"EUR") + b"}")

    assert {"cost", "price", "energy_wh", "carbon_g", "baseload"} == set(usage)
    assert usage["baseload"]["currency"] == "EUR"
    assert set(usage["baseload"]["method"]) == {"cost", "price", "energy", "carbon"}
    assert "as if" not in usage["baseload"]["method"]["energy"]
    assert usage["baseload"]["provisional"] is True
    for name in ("cost", "energy_wh", "carbon_g"):
        low, high = usage["baseload"]["range"][name]
        assert low <= usage[name] <= high
    assert msgspec.json.decode(b"{" + usage_fields(done, 1e-30, b"EUR") + b"}")


def test_a_rehearsal_says_what_it_pretends_to_be():
    """Energy told by an engine that only stands in for an accelerator names that accelerator as pretended."""
    emulated = msgspec.structs.replace(H100, kind="emulated")
    done = account(emulated, SITE, input_tokens=5, cached_tokens=0, output_tokens=2, seconds=0.1)
    usage = json.loads(b"{" + usage_fields(done, 0.0, b"EUR") + b"}")

    assert usage["baseload"]["method"]["energy"].endswith("as if on h100-sxm")
