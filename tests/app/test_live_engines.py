"""From the fleet file to engines: orders for every replica, step tables that are the twin's, and the twin as measured."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path
from types import SimpleNamespace

import msgspec
import numpy as np
import pytest

from baseload.adapters.engine_process import ProcessProvisioner
from baseload.adapters.engines.step_loop import StepTable
from baseload.adapters.http_small import ask
from baseload.app import live_calibrate as lc
from baseload.app import live_engines, owner_main, serve_tables
from baseload.errors import FleetError
from baseload.fleet import load
from tests.simulate import specs

ROOT = Path(__file__).resolve().parents[2]
EXAMPLE = ROOT / "examples" / "three-sites" / "fleet.yaml"


def live(kind: str | None, *overrides: str) -> serve_tables.Live:
    """Return the example's tables."""
    return serve_tables.live(load.load(EXAMPLE, overrides), kind=kind)


def test_every_replica_has_an_order_under_its_own_name():
    """Orders stand in the order of the replica rows; names are unique and say deployment, site and number."""
    found = live("emulated")
    orders = live_engines.engine_orders(found, kind="emulated")

    assert len(orders) == len(found.tables.replicas)
    names = [order.name for order in orders if order is not None]
    assert len(set(names)) == len(orders)
    for row, name in zip(found.tables.replicas, names, strict=True):
        deployment, site, _ = name.split("/")
        assert deployment == found.tables.deployments[row.deployment_i].name
        assert site == found.tables.sites[row.site_i].name


def test_a_step_table_is_the_twins_engine_in_json():
    """What crosses to the emulated engines' process is read there, and holds the twin's own numbers."""
    found = live("emulated")
    tables = live_engines.step_tables(found)

    for engine in found.twin.engines:
        table = msgspec.json.decode(json.dumps(tables[engine.name]).encode(), type=StepTable)
        np.testing.assert_allclose(table.base_s, engine.spec.base_s, atol=1e-9)
        np.testing.assert_allclose(table.head_s, engine.spec.head_s, atol=1e-9)
        assert (table.max_seqs, table.blocks) == (engine.spec.max_seqs, engine.spec.blocks)


def test_the_example_comes_up_emulated_in_one_process(tmp_path: Path):
    """All replicas of the three-sites example answer, each on a port of its own, in seconds and tens of megabytes."""

    async def up() -> tuple[int, float]:
        found = live("emulated")
        orders = [order for order in live_engines.engine_orders(found, kind="emulated") if order is not None]
        provisioner = ProcessProvisioner(tmp_path, tables=live_engines.step_tables(found))
        engines = await asyncio.gather(*(provisioner.start(order._replace(cold_s=0.0)) for order in orders))
        answers = await asyncio.gather(*(ask(f"{engine.url}/v1/models") for engine in engines))
        assert all(answer.status == 200 for answer in answers)
        (pid,) = {engine.pid for engine in engines}
        rss_mb = int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * 4096 / 1e6
        await provisioner.close()
        return len(engines), rss_mb

    n_engines, rss_mb = asyncio.run(up())

    assert n_engines > 30
    assert rss_mb < 120


def test_external_engines_without_an_address_are_named_as_such():
    """Asking for external engines alone, none of which has an address, says so, and not that nothing is deployed."""
    with pytest.raises(FleetError, match="none has an address"):
        live("external")


def test_who_waits_for_a_first_engine_is_told_for_which():
    """After a few silent seconds the engines that do not answer are named with the reason, once; then it goes on without."""
    told: list[str] = []
    keeper = SimpleNamespace(
        n_up=0, orders=[object(), None], places=[SimpleNamespace(why="connection refused"), SimpleNamespace(why="")],
        wanted=lambda r: r == 0, name=lambda r: "chat/oslo/0", say=told.append,
    )  # fmt: skip
    asyncio.run(owner_main.first_engine(keeper, silent_s=0.05, most_s=0.1))
    assert len(told) == 1 and "chat/oslo/0 (connection refused)" in told[0]

    keeper.n_up = 1
    asyncio.run(owner_main.first_engine(keeper, silent_s=0.05, most_s=0.1))
    assert len(told) == 1


def test_an_external_replica_is_told_its_address():
    """Each replica of an external deployment has an address of its own, in the order of the fleet file."""
    urls = ["http://127.0.0.1:8000", "http://127.0.0.1:8001/engine"]
    engine = json.dumps({"kind": "external", "urls": {"oslo": urls}, "served_model": "qwen"})
    found = live(None, f"serve.engines.mixture-h200={engine}")
    orders = live_engines.engine_orders(found)
    names = live_engines.replica_names(found)
    mixture = [order for order, name in zip(orders, names, strict=True) if name.startswith("mixture-h200/")]

    assert [order.url for order in mixture if order is not None] == urls
    assert {order.model for order in mixture if order is not None} == {"qwen"}


def test_a_model_file_that_is_not_there_is_named():
    """The fleet file's key and the path are told."""
    found = live(None, 'serve.engines.small-l40s={"kind": "embedded", "gguf": "nowhere.gguf"}')

    with pytest.raises(FleetError, match=r"serve\.engines\.small-l40s\.gguf"):
        live_engines.engine_orders(found)


def test_the_twin_as_measured_runs_with_the_measured_engine():
    """The twin keeps its sites and rules and takes over an engine's measured steps, seats and overhead."""
    found = live("embedded")
    constants = {**lc.DEFAULT.to_dict(), **lc.START}
    fitted = lc.Fitted(
        constants=constants, overhead_s=0.003, slots=4, context_tokens=8192, shape=lc.TINY, measured={}, predicted={},
        fitted_loads=0, took_s=0.0,
    )  # fmt: skip
    twin = lc.twin_as_measured(found.twin, {engine.name: fitted for engine in found.twin.engines})
    small = twin.models.index("small")
    tenant = twin.tenants.index("summaries")
    records, _ = specs.simulate(
        twin.spec, specs.trace([0.0, 10.0], [100, 100], [11, 11], tenant_i=tenant, model_i=small)
    )
    alone = lc.predict(lc.table_of(constants, 0.003, lc.TINY, 4, 8192), lc.Load(100, 11, 1), rounds=1)

    took_s = (records["finish_ns"] - records["first_token_ns"]) / 1e9
    assert took_s == pytest.approx(10 * alone.tpot_s, rel=1e-4)
    assert all(engine.spec.max_seqs == 4 for engine in twin.engines)
