"""The fleet on a day: MW climb the ladder one date at a time, and what is gone is gone."""

from __future__ import annotations

from datetime import date, timedelta
from itertools import pairwise

from hypothesis import given
from hypothesis import strategies as st

from baseload.fleet import dates
from baseload.fleet.load import loads
from baseload.fleet.model import GridConnection, PowerContract, Site

DAYS = st.dates(date(2020, 1, 1), date(2030, 12, 31))
MAYBE = st.none() | DAYS


@st.composite
def phases(draw: st.DrawFn) -> GridConnection:
    """Draw a phase whose dates come in order, some of them not written down."""
    days = sorted(draw(st.lists(DAYS, min_size=5, max_size=5, unique=True)))
    said = [day if draw(st.booleans()) else None for day in days]
    names = (*dates.STAGES, "until")
    return GridConnection(power_mw=draw(st.integers(1, 100)), **dict(zip(names, said)))


SITES = st.builds(
    lambda grid, contracts: Site(place="oslo", grid=grid, contracts=contracts),
    st.lists(phases(), max_size=4),
    st.lists(st.builds(PowerContract, power_mw=st.integers(1, 100), start=MAYBE, until=MAYBE), max_size=3),
)


def test_a_phase_climbs_one_date_at_a_time():
    """A phase is announced, permitted, contracted and energised from its dates on, and gone from `until` on."""
    phase = GridConnection(
        power_mw=10,
        announced=date(2021, 1, 1),
        permitted=date(2022, 1, 1),
        contracted=date(2023, 1, 1),
        energised=date(2024, 1, 1),
        until=date(2030, 1, 1),
    )
    site = Site(place="oslo", grid=[phase])

    def ladder(day: date) -> list[float]:
        asks = (dates.announced_mw, dates.permitted_mw, dates.contracted_mw, dates.energised_mw)
        return [ask(site, day) for ask in asks]

    assert ladder(date(2020, 12, 31)) == [0, 0, 0, 0]
    assert ladder(date(2021, 1, 1)) == [10, 0, 0, 0]
    assert ladder(date(2022, 6, 1)) == [10, 10, 0, 0]
    assert ladder(date(2023, 6, 1)) == [10, 10, 10, 0]
    assert ladder(date(2029, 12, 31)) == [10, 10, 10, 10]
    assert ladder(date(2030, 1, 1)) == [0, 0, 0, 0]


def test_what_is_energised_was_contracted():
    """A stage without a date counts as reached with a later one; a phase without any date is announced."""
    day = date(2025, 1, 1)
    site = Site(place="oslo", grid=[GridConnection(power_mw=4, energised=day), GridConnection(power_mw=6)])

    assert (dates.announced_mw(site, day), dates.contracted_mw(site, day), dates.energised_mw(site, day)) == (10, 4, 4)


def test_contracts_bound_what_may_be_drawn():
    """No more may be drawn than is bought; in a colocation the contract is all there is."""
    day = date(2025, 1, 1)
    phase = GridConnection(power_mw=10, energised=date(2024, 1, 1))
    small = PowerContract(power_mw=3, price_per_mwh=50.0)
    later = PowerContract(power_mw=7, price_per_mwh=50.0, start=date(2026, 1, 1))

    assert dates.drawable_mw(Site(place="oslo", grid=[phase], contracts=[small, later]), day) == 3
    assert dates.drawable_mw(Site(place="oslo", grid=[phase], contracts=[small, later]), date(2026, 1, 1)) == 10
    assert dates.drawable_mw(Site(place="oslo", grid=[phase]), day) == 10
    assert dates.energised_mw(Site(place="oslo", contracts=[small]), day) == 3
    assert dates.active_contract(Site(place="oslo", contracts=[small, later]), date(2027, 1, 1)) == later
    assert dates.active_contract(Site(place="oslo", contracts=[later]), day) is None


@given(SITES, DAYS)
def test_the_ladder_never_rises(site: Site, day: date):
    """On any day: announced >= permitted >= contracted, and what may be drawn is both energised and contracted."""
    if site.grid:
        assert dates.announced_mw(site, day) >= dates.permitted_mw(site, day) >= dates.contracted_mw(site, day)
        assert dates.permitted_mw(site, day) >= dates.energised_mw(site, day)
    assert dates.drawable_mw(site, day) <= min(dates.energised_mw(site, day), dates.contracted_mw(site, day))


@given(SITES, DAYS)
def test_the_site_of_a_day_answers_alike(site: Site, day: date):
    """Leaving out what is not there on a day changes none of that day's answers, and doing it twice changes nothing."""
    today = dates.site_on(site, day)

    assert dates.site_on(today, day) == today
    assert dates.announced_mw(today, day) == dates.announced_mw(site, day)
    assert dates.energised_mw(today, day) == dates.energised_mw(site, day)
    assert dates.drawable_mw(today, day) == dates.drawable_mw(site, day)
    assert dates.active_contracts(today, day) == dates.active_contracts(site, day)


@given(SITES)
def test_between_milestones_nothing_changes(site: Site):
    """Between two milestones nothing about a site changes."""
    marks = dates.milestones(site)
    for first, second in pairwise(marks):
        last = second - timedelta(days=1)
        if last > first:
            assert dates.active_contracts(site, first) == dates.active_contracts(site, last)
            assert dates.announced_mw(site, first) == dates.announced_mw(site, last)
            assert dates.energised_mw(site, first) == dates.energised_mw(site, last)


def test_the_fleet_of_a_day():
    """Racks and deployments that are not in service are left out; grid phases that wait are kept for the ladder."""
    fleet = loads(
        """
baseload: 1
name: x
sites:
  oslo:
    place: oslo
    grid: [{power_mw: 1, energised: 2024-01-01}, {power_mw: 2}, {power_mw: 3, until: 2023-01-01}]
    racks:
      old: {accelerator: h100-sxm, accelerators_per_rack: 8, until: 2024-01-01}
      new: {accelerator: h200-sxm, accelerators_per_rack: 8, in_service: 2024-01-01}
models: {m: {catalog: llama-3.1-8b}}
deployments:
  old: {model: m, accelerator: h100-sxm, sites: {oslo: {}}, until: 2024-01-01}
  new: {model: m, accelerator: h200-sxm, sites: {oslo: {}}, start: 2024-01-01}
"""
    ).fleet

    before, after = dates.on(fleet, date(2023, 12, 31)), dates.on(fleet, date(2024, 1, 1))

    assert (list(before.deployments), list(after.deployments)) == (["old"], ["new"])
    assert (list(before.sites["oslo"].racks), list(after.sites["oslo"].racks)) == (["old"], ["new"])
    assert [phase.power_mw for phase in before.sites["oslo"].grid] == [1, 2]
    assert dates.run_day(fleet) == dates.DEFAULT_DAY
