"""Tables that follow others: whatever a running request points to still means the same thing after any number of reloads."""

from __future__ import annotations

from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st
from msgspec.structs import replace

from baseload.serve import succession
from baseload.serve import tables as t
from baseload.serve.steer import Steer
from tests.serve.fleet import deployment, policy, tables, tenant

SITES, DEPLOYMENTS, TENANTS, REGIONS = ("oslo", "paris", "rome"), ("large", "small"), ("acme", "bank"), ("eu", "us")
ADDRESSES = tuple(f"http://10.0.0.{i}:8000" for i in range(6))


def site(name: str, limit_kw: float | None = 9.0) -> t.SiteRow:
    """Return a site."""
    return t.SiteRow(
        name=name, jurisdiction="NO", operator_jurisdiction="NO", one_way_s=0.001, pue=1.1, carbon_g_per_kwh=1.0,
        price_per_kwh=0.1, limit_kw=limit_kw, idle_kw=1.0,
    )  # fmt: skip


@st.composite
def fleets(draw: Any, version: int = 2) -> t.Tables:
    """Return the tables of some fleet file: names, addresses and law from a small world, so that they come and go."""

    def some(names: tuple[str, ...], least: int = 1) -> list[str]:
        return draw(st.lists(st.sampled_from(names), min_size=least, max_size=len(names), unique=True))

    sites, names, tenants, regions = some(SITES), some(DEPLOYMENTS), some(TENANTS), some(REGIONS)
    pools, rows = [], []
    for d in range(len(names)):
        for s in draw(st.lists(st.sampled_from(range(len(sites))), min_size=1, unique=True)):
            addresses = some(ADDRESSES) if names[d] == "large" else [""] * draw(st.integers(1, 3))
            pools.append(t.PoolRow(deployment_i=d, site_i=s, n_min=len(addresses), n_max=len(addresses)))
            rows += [
                t.ReplicaRow(deployment_i=d, site_i=s, pool_i=len(pools) - 1, number=k, on_at_start=True, address=a)
                for k, a in enumerate(addresses)
            ]
    may = [[[draw(st.integers(0, 1)) for _ in pools]] for _ in tenants]
    rows_of = [deployment(name, engine=draw(st.sampled_from("abc"))) for name in names]
    return replace(
        tables(2, sites=1), version=version, first_version=version, sites=[site(name) for name in sites],
        deployments=rows_of, pools=pools, replicas=rows, may=may, regions=regions,
        tenants=[tenant(name, region_i=i % len(regions)) for i, name in enumerate(tenants)],
        region_rtt_s=[0.01 * (1 + REGIONS.index(name)) for name in regions], policy=policy(),
    )  # fmt: skip


def full(now: t.Tables, r: int) -> tuple[str, str, int]:
    """Return what a row of a replica means."""
    row = now.replicas[r]
    return now.deployments[row.deployment_i].name, now.sites[row.site_i].name, row.number


@settings(max_examples=80, deadline=None)
@given(st.data())
def test_no_row_ever_means_something_else(data: Any) -> None:
    """Through a chain of reloads a row keeps its name, and what the newest file says is there at its row, with its law."""
    now = data.draw(fleets(1))
    steer = Steer(now)
    for version in range(2, 7):
        fresh = data.draw(fleets(version))
        busy = data.draw(st.sets(st.integers(0, len(now.replicas) - 1)))
        before, found = now, succession.follow(now, fresh, busy=busy)
        now = found.tables
        for r in busy:
            engines = [x.deployments[x.replicas[r].deployment_i].engine for x in (before, now)]
            assert engines[0] == engines[1], "what runs, or is asked, goes on meaning the engine that it is"
        for d, at in enumerate(found.deployments):
            assert now.deployments[at].engine == fresh.deployments[d].engine
        for r in range(len(before.replicas)):
            assert full(before, r) == full(now, r)
        for old, new in ((before.sites, now.sites), (before.deployments, now.deployments), (before.models, now.models)):
            assert [row.name for row in old] == [row.name for row in new[: len(old)]]
        assert before.regions == now.regions[: len(before.regions)]
        assert [x.name.lstrip("\0") for x in before.tenants] == [x.name.lstrip("\0") for x in now.tenants][
            : len(before.tenants)
        ]
        check_fresh(fresh, found)
        assert now.first_version == 1 and now.version == version
        steer.reload(now)
        steer.leave()
        steer.check()
        for r, row in enumerate(now.replicas):
            assert steer.state[r] in ((0,) if row.gone else (1, 2)), (r, row)


def check_fresh(fresh: t.Tables, found: succession.Succession) -> None:
    """Assert that the file's own rows stand where the succession says, that each address has one row, and who may where."""
    now = found.tables
    assert len(set(found.replicas)) == len(fresh.replicas)
    for r, at in enumerate(found.replicas):
        row = now.replicas[at]
        assert full(now, at)[:2] == full(fresh, r)[:2] and row.address == fresh.replicas[r].address and not row.gone
    assert {i for i, row in enumerate(now.replicas) if not row.gone} == set(found.replicas)
    assert len({full(now, r) for r in range(len(now.replicas))}) == len(now.replicas)
    for x, at in enumerate(found.tenants):
        assert now.tenants[at].name == fresh.tenants[x].name
        assert now.regions[now.tenants[at].region_i] == fresh.regions[fresh.tenants[x].region_i]
    for x, tenants in enumerate(now.may):
        for m, by_pool in enumerate(tenants):
            for p, allowed in enumerate(by_pool):
                said = x in found.tenants and m in found.models and p in found.pools
                law = fresh.may[found.tenants.index(x)][found.models.index(m)][found.pools.index(p)] if said else 0
                assert allowed == law, "whoever left may nowhere, whatever left takes nobody"


def test_an_engine_keeps_its_row_by_its_address() -> None:
    """Of two engines the first leaves and a third comes: the second keeps row and name, the new one takes the free row."""
    base = tables(2, sites=1)
    old = replace(base, replicas=[replace(row, address=ADDRESSES[i]) for i, row in enumerate(base.replicas)])
    new = replace(
        base, version=2, replicas=[replace(row, address=ADDRESSES[i + 1]) for i, row in enumerate(base.replicas)]
    )

    found = succession.follow(old, new)

    assert [row.address for row in found.tables.replicas] == [ADDRESSES[2], ADDRESSES[1]]
    assert found.replicas == [1, 0] and not succession.renumbered(old, succession.follow(old, old))
    assert succession.renumbered(old, found)


def test_rows_do_not_pile_up() -> None:
    """A thousand reloads that put another engine in the place of the last one need no more rows than one."""
    now = tables(2, sites=1)
    for version in range(2, 1002):
        rows = [replace(row, address=f"http://10.1.{version}.{i}") for i, row in enumerate(now.replicas)]
        now = succession.follow(now, replace(tables(2, sites=1), version=version, replicas=rows)).tables
    assert len(now.replicas) == 2


def test_another_engine_under_an_old_name_gets_rows_of_its_own() -> None:
    """A deployment that becomes another model or kind of engine begins beside the old one, with numbers that go on."""
    old = tables(2, sites=1, models=2)
    for change in ({"kind": "embedded"}, {"accelerator": "other"}, {"model_i": 1}, {"served_model": "x"}):
        found = succession.follow(old, replace(old, deployments=[replace(old.deployments[0], **change), old.deployments[1]]),
                                  busy={0, 1})  # fmt: skip
        now = found.tables
        assert [row.name for row in now.deployments] == ["d0", "d1", "d0"] and now.deployments[0] == old.deployments[0]
        new = found.replicas[0]
        assert now.replicas[0].gone and not now.replicas[new].gone
        assert full(now, new) == ("d0", full(old, 0)[1], 1), "a name that nobody had"
        assert succession.leaving(old, found) == [0] and succession.needed_at_once(old, found)[0] == new


def test_an_engine_that_has_ended_lends_its_rows_to_the_next() -> None:
    """Replaced a thousand times, each time when the one before has ended: two engines' rows are enough."""
    now, runs = tables(2, sites=1), {0}
    for version in range(2, 1002):
        fresh = tables(2, sites=1)
        rows = [replace(row, engine=str(version)) for row in fresh.deployments]
        found = succession.follow(now, replace(fresh, version=version, deployments=rows), busy=runs)
        now, runs = found.tables, set(found.replicas)
    assert len(now.deployments) == 2 * len(fresh.deployments) and len(now.replicas) == 4


def test_back_to_the_engine_of_before_finds_its_rows() -> None:
    """Taken back while the old engine still drains: it is the same engine, and stays."""
    old = replace(tables(2, sites=1), deployments=[replace(row, engine="a") for row in tables(2, sites=1).deployments])
    other = replace(old, deployments=[replace(row, engine="b") for row in old.deployments])
    between = succession.follow(old, other, busy={0, 1})
    back = succession.follow(between.tables, old, busy=set(range(4)))
    assert back.replicas == [0, 1] and [row.gone for row in back.tables.replicas] == [False, False, True, True]
