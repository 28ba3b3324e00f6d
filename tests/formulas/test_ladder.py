"""The capacity ladder: it never rises, it loses nothing on the way, and what is oversold shows."""

from __future__ import annotations

from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from baseload.formulas import cooling, ladder
from baseload.formulas.ladder import RUNGS

mws = st.floats(0.0, 1e4)
raws = st.dictionaries(st.sampled_from(RUNGS), mws)
rates = st.dictionaries(st.sampled_from(("racked", "healthy", "within_slo", "sold")), st.floats(0.0, 1e9))


def test_a_campus_from_announcement_to_sale():
    """A 100 MW campus: each step with its loss, in the order and for the reason an owner would tell it."""
    declared = ladder.it_equivalents({"announced": 100.0, "contracted": 60.0, "energised": 50.0}, pue_peak=1.25)
    raw = declared | {
        "coolable": ladder.coolable_mw(50.0, 1.25, "N+1", 4),
        "racked": 24.0, "healthy": 23.5, "within_slo": 20.0, "sold": 15.0,
    }  # fmt: skip
    rungs = ladder.ladder(raw, reasons={"coolable": "redundancy"})
    assert [rung.name for rung in rungs] == list(RUNGS)
    assert [rung.mw for rung in rungs] == pytest.approx([80.0, 48.0, 40.0, 30.0, 24.0, 23.5, 20.0, 15.0])
    assert [rung.lost_mw for rung in rungs] == pytest.approx([0.0, 32.0, 8.0, 10.0, 6.0, 0.5, 3.5, 5.0])
    assert rungs[3].reason == "redundancy" and all(rung.reason in ladder.REASONS for rung in rungs)
    assert not any(rung.oversold for rung in rungs)


def test_oversold_shows_and_does_not_rise():
    """Selling 12 MW where 10 serve within the SLO leaves the ladder at 10 and shows 2 too many."""
    rungs = ladder.ladder({"announced": 20.0, "within_slo": 10.0, "sold": 12.0})
    assert (rungs[-1].mw, rungs[-1].raw_mw, rungs[-1].excess_mw, rungs[-1].oversold) == (
        10.0,
        12.0,
        2.0,
        True,
    )


@given(raws)
def test_the_ladder_never_rises_and_loses_nothing_unseen(raw: dict[str, float]):
    """Rungs fall or stay, the losses add up to the fall, and each rung is the smallest raw value so far."""
    rungs = ladder.ladder(raw)
    mw = [rung.mw for rung in rungs]
    assert mw == sorted(mw, reverse=True)
    assert sum(rung.lost_mw for rung in rungs) == pytest.approx(mw[0] - mw[-1], abs=1e-6)
    for i, rung in enumerate(rungs):
        assert rung.mw == min(r.raw_mw for r in rungs[: i + 1])
        assert rung.raw_mw == pytest.approx(rung.mw + rung.excess_mw)


@given(raws, rates, st.floats(0.0, 1e7))
def test_tokens_never_rise_either(raw: dict[str, float], known: dict[str, float], per_mw: float):
    """Token rates fall or stay, their losses add up, and only what was given is not called modelled."""
    rungs = ladder.with_tokens(ladder.ladder(raw), known, per_mw)
    tokens = [rung.tokens_per_s for rung in rungs]
    assert tokens == sorted(tokens, reverse=True)
    assert sum(rung.lost_tokens_per_s for rung in rungs) == pytest.approx(tokens[0] - tokens[-1], abs=1e-3)
    assert [rung.name for rung in rungs if not rung.modelled] == [name for name in RUNGS if name in known]


def test_unracked_megawatts_use_the_declared_mix():
    """Power without racks is worth the mix; racks are worth what they did."""
    mix = ladder.mix_tokens_per_s_per_mw([1.0, 3.0], [2e6, 1e6])
    rungs = ladder.ladder({"announced": 10.0, "coolable": 8.0, "racked": 5.0, "healthy": 5.0, "within_slo": 4.0})
    done = {r.name: r for r in ladder.with_tokens(rungs, {"racked": 7e6, "within_slo": 5e6}, mix)}
    assert mix == 1.25e6
    assert done["racked"].tokens_per_s == 7e6 and not done["racked"].modelled
    assert done["coolable"].tokens_per_s == pytest.approx(7e6 + 3 * mix) and done["coolable"].modelled
    # Nothing is known of sales, so all that is within the SLO counts as sold.
    assert done["sold"].tokens_per_s == pytest.approx(5e6) and done["sold"].modelled


def test_no_run_at_all_gives_a_modelled_ladder():
    """Before any run the whole ladder is the mix, and says so."""
    rungs = ladder.with_tokens(ladder.ladder({"announced": 3.0, "racked": 1.0}), {}, 1e6)
    assert [r.tokens_per_s for r in rungs] == pytest.approx([3e6] * 4 + [1e6] * 4)
    assert all(r.modelled for r in rungs)


@given(st.lists(raws, min_size=1, max_size=5))
def test_a_fleet_is_the_sum_of_its_sites(sites: list[dict[str, float]]):
    """A fleet's ladder never rises, and no site's surplus hides another's lack."""
    fleet = ladder.sum_of_ladders([ladder.ladder(raw) for raw in sites])
    mw = [rung.mw for rung in fleet]
    assert all(below <= above + 1e-9 * (1 + above) for above, below in pairwise(mw))
    for i, rung in enumerate(fleet):
        assert rung.mw == pytest.approx(sum(ladder.ladder(raw)[i].mw for raw in sites))
        assert rung.oversold == any(ladder.ladder(raw)[i].oversold for raw in sites) or rung.excess_mw < 1e-6


def test_an_empty_site_has_an_empty_ladder():
    """Nothing declared is nothing, without a division by it."""
    assert [rung.mw for rung in ladder.ladder({})] == [0.0] * len(RUNGS)
    assert ladder.sum_of_ladders([]) == []


@given(st.floats(0.0, 1e4), st.floats(-5.0, 30.0), st.sampled_from(["N", "N+1", "2N"]))
def test_coolable_never_exceeds_energised(site_mw: float, design_c: float, redundancy: str):
    """The coolable rung is at most the energised one, whatever plant and redundancy."""
    for plant in cooling.PLANTS.values():
        peak = cooling.pue_peak(design_c, plant)
        energised = ladder.it_equivalents({"energised": site_mw}, peak)["energised"]
        assert ladder.coolable_mw(site_mw, peak, redundancy) <= energised * (1 + 1e-12)
