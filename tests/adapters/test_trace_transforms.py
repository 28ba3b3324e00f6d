"""Traces made from traces: faster, longer, shorter, thinner, later; and who asks."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from baseload.adapters import trace_transforms as tt
from baseload.adapters import traces
from baseload.adapters.mix import mixed
from baseload.adapters.trace_files import open_trace
from baseload.adapters.traces import Names, Trace, TraceSource, counts_per_bin, survey
from baseload.errors import TraceError
from baseload.fleet.load import loads

MOONCAKE = Path(traces.__file__).parent / "data" / "mooncake_conversation_first2000.jsonl.gz"
FLEET = """
baseload: 1
name: two
sites: {oslo: {place: oslo}}
models: {small: {catalog: llama-3.1-8b}, large: {catalog: llama-3.1-70b}, unused: {catalog: llama-3.1-8b}}
deployments:
  a: {model: small, accelerator: l40s, sites: {oslo: {}}}
  b: {model: large, accelerator: h100-sxm, sites: {oslo: {}}}
regions: {north: {place: oslo}, south: {place: madrid}}
tenants:
  bank: {share: 3, regions: {south: 1}, models: {large: 3, small: 1}}
  shop: {share: 1}
"""


def same(a: Trace, b: Trace) -> bool:
    """Say whether two traces are equal to the byte."""
    return all(np.array_equal(getattr(a, column), getattr(b, column)) for column in Trace.__slots__)


def test_twice_the_load_is_the_same_requests_in_half_the_time():
    """Scaling compresses time and leaves requests as they are."""
    source = open_trace("azure-conv")
    fast = tt.scaled(source, 2.0)
    a, b = source.whole(), fast.whole()

    assert fast.duration_s == pytest.approx(source.duration_s / 2)
    assert np.abs(b.arrival_ns - a.arrival_ns / 2).max() <= 0.5
    assert np.array_equal(a.input_tokens, b.input_tokens)


@pytest.mark.parametrize("factor", [0.0, -1.0, float("nan"), float("inf")])
def test_a_load_factor_that_is_no_load_is_refused(factor: float):
    """Zero, negative and endless factors are the user's mistake, not ours."""
    with pytest.raises(TraceError, match="load factor"):
        tt.scaled(open_trace("azure-conv"), factor)


def test_a_repeated_trace_goes_on_after_a_mean_gap_with_new_prefixes():
    """Three passes have three times the requests, in order, at the same rate, and share no prefix across passes."""
    source = open_trace(MOONCAKE)
    three = tt.repeated(source, 3)
    trace = three.whole()
    trace.check()
    passes = np.split(trace.hash_ids, 3)

    assert three.n == len(trace) == 6000
    assert trace.arrival_ns[2000] - trace.arrival_ns[1999] == 669_000_000_000 // 1999
    assert not set(passes[0].tolist()) & set(passes[1].tolist())
    assert len(np.unique(passes[0])) == len(np.unique(passes[1])) == len(np.unique(passes[2]))


def test_splicing_joins_different_traces():
    """Conversation after code: the requests of both, in order of time, numbered through."""
    both = tt.spliced([open_trace("azure-code"), open_trace("azure-conv")])
    trace = both.whole()
    trace.check()

    assert both.n == len(trace) == 8_819 + 19_366
    assert "azure-code" in both.name and "azure-conv" in both.name


@settings(max_examples=20)
@given(n=st.integers(1, 9000), chunk_rows=st.integers(1, 4000))
def test_limiting_takes_the_first_requests(n: int, chunk_rows: int):
    """The first n requests, or all where there are fewer, whatever the chunks."""
    source = open_trace("azure-code")
    limited = tt.limited(source, n)

    assert same(traces.joined(list(limited.chunks(chunk_rows))), traces.rows(source.whole(), 0, n))
    assert limited.n == min(n, 8_819)


def test_thinning_keeps_its_share_whatever_the_chunks():
    """A tenth of the requests, within four standard deviations, the same ones each time, numbered anew."""
    source = tt.thinned(open_trace(MOONCAKE), 0.1, seed=5)
    trace = source.whole()
    trace.check()

    assert abs(len(trace) - 200) < 4 * (2000 * 0.09) ** 0.5
    assert same(trace, traces.joined(list(source.chunks(7))))
    assert not same(trace, tt.thinned(open_trace(MOONCAKE), 0.1, seed=6).whole())


def test_windows_of_a_trace_together_are_the_trace():
    """Cut into ten minutes each, every request is in exactly one window, at its time after the window's start."""
    source = open_trace("azure-conv")
    pieces = [tt.window(source, 600.0 * i, 600.0 * (i + 1)).whole() for i in range(6)]
    again = np.concatenate([piece.arrival_ns + 600_000_000_000 * i for i, piece in enumerate(pieces)])

    assert np.array_equal(again, source.whole().arrival_ns)
    assert [len(piece) for piece in pieces] == counts_per_bin(source, 600.0).tolist()


def test_spans_are_cut_out_in_one_pass():
    """Overlapping spans, one before a gap's end and one after the trace's, are what a window of each would be."""
    source = mixture(open_trace("azure-code"))
    spans = [(0.0, 700.0), (600.0, 650.0), (600.0, 1300.0), (2900.0, 3000.0), (3400.0, 5000.0), (6000.0, 7000.0)]

    pieces = list(tt.cut_out(source, spans))

    assert len(pieces) == len(spans) and len(pieces[-1]) == 0
    assert all(same(piece, tt.window(source, *span).whole()) for piece, span in zip(pieces[:-1], spans))


def test_a_shifted_trace_begins_later():
    """An offset adds to every arrival and to the duration."""
    shifted = tt.offset(open_trace("azure-code"), 2.5)

    assert shifted.whole().arrival_ns[0] == 2_500_000_000
    assert survey(shifted).duration_s == pytest.approx(shifted.duration_s)


# ---- who asks ------------------------------------------------------------------------------------------------


def mixture(source: TraceSource, seed: int = 1) -> TraceSource:
    """Return the source mixed over FLEET."""
    return mixed(source, loads(FLEET, file="two.yaml").fleet, seed)


def test_the_mix_follows_the_declared_shares():
    """Tenants, their regions and their models come in the declared shares, within four standard deviations."""
    trace = mixture(open_trace("azure-conv")).whole()
    trace.check()
    bank = trace.tenant_i == 0
    n = len(trace)

    def near(found: float, wanted: float, of: int) -> bool:
        return abs(found - wanted) < 4 * (wanted * (1 - wanted) / of) ** 0.5

    assert near(bank.mean(), 0.75, n)
    assert (trace.region_i[bank] == 1).all()
    assert near((trace.region_i[~bank] == 0).mean(), 0.5, int((~bank).sum()))
    assert near((trace.model_i[bank] == 1).mean(), 0.75, int(bank.sum()))
    assert sorted(set(trace.model_i[~bank].tolist())) == [0, 1]  # `unused` has no deployment


@settings(max_examples=20)
@given(chunk_rows=st.integers(1, 3000), seed=st.integers(0, 2**63))
def test_the_mix_does_not_depend_on_chunks(chunk_rows: int, seed: int):
    """The same seed gives the same bytes however the trace is cut, and another seed gives others."""
    source = mixture(open_trace(MOONCAKE), seed)

    assert same(source.whole(), traces.joined(list(source.chunks(chunk_rows))))
    assert not same(source.whole(), mixture(open_trace(MOONCAKE), seed + 1).whole())


def test_tenants_share_no_prefix():
    """A block that two tenants' prompts have in common is cached for each of them apart, and once within each."""
    plain = open_trace(MOONCAKE).whole()
    trace = mixture(open_trace(MOONCAKE)).whole()
    owner = np.repeat(trace.tenant_i, np.diff(trace.hash_offsets))

    assert not set(trace.hash_ids[owner == 0].tolist()) & set(trace.hash_ids[owner == 1].tolist())
    for tenant in (0, 1):
        assert len(np.unique(trace.hash_ids[owner == tenant])) == len(np.unique(plain.hash_ids[owner == tenant]))


def test_what_the_trace_says_stands(tmp_path: Path):
    """Names in the file are not redrawn; empty cells are."""
    rows = "".join(f"{i},5,5,{('shop', '')[i % 2]},north,unused\n" for i in range(200))
    (tmp_path / "t.csv").write_text("arrival_s,input_tokens,output_tokens,tenant,region,model\n" + rows)
    trace = mixture(tt.scaled(open_trace("t.csv", base_folder=tmp_path), 3.0)).whole()

    assert (trace.tenant_i[::2] == 1).all()
    assert set(trace.tenant_i[1::2].tolist()) == {0, 1}
    assert (trace.region_i == 0).all() and (trace.model_i == 2).all()


def test_a_fleet_without_tenants_and_regions_has_one_of_each():
    """The anonymous tenant in the one region asks for what is deployed."""
    text = "\n".join(
        line for line in FLEET.split("\n") if not line.startswith(("regions", "tenants", "  bank", "  shop"))
    )
    trace = mixed(open_trace("azure-code"), loads(text, file="one.yaml").fleet, 3).whole()

    assert (trace.tenant_i == 0).all() and (trace.region_i == 0).all()
    assert set(trace.model_i.tolist()) == {0, 1}


def test_binding_a_trace_without_names_changes_nothing():
    """A trace that names nobody is itself whatever the fleet calls its tenants."""
    source = open_trace("azure-code")

    assert same(source.bound(Names(("a",), (), ())).whole(), source.whole())
