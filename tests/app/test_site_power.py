"""A site's power cap carried to engines: the twin's own slowness, told once, and reckoned only where it is obeyed."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Sequence
from math import inf
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest
from msgspec.structs import replace

from baseload.adapters.engine_process import ProcessProvisioner
from baseload.adapters.engines.step_loop import Job, Replica, flat_table
from baseload.adapters.http_small import ask
from baseload.adapters.scrape import Seen as Looked
from baseload.app.housekeeping import Housekeeper
from baseload.app.site_power import SLOW_ONE, Draw, PowerHold, stretch
from baseload.ports import Engine, EngineStart
from baseload.serve import reconcile as rc
from baseload.serve.board import Board
from baseload.serve.steer import UP, Steer
from baseload.simulate import state
from baseload.simulate.world import EngineSpec
from tests.adapters.test_emulated import LIKE_A_CARD
from tests.serve.fleet import policy, tables
from tests.simulate import specs

POWER_W = np.minimum(700.0, 120.0 + 8.0 * np.arange(513))
IDLE_W = 120.0


@pytest.mark.parametrize(("rule", "limit_kw"), [(0, 1e-3), (1, 0.3), (1, 0.15)])
def test_an_emulated_engine_under_a_cap_and_the_twin_agree_on_every_token(rule: int, limit_kw: float) -> None:
    """The twin decides a cap each second of a busy run; an engine told the same decisions ends every answer with the twin's."""
    n, tick_s = 300, 1.0
    dice = np.random.default_rng(5)
    arrivals_s = np.sort(dice.uniform(0.0, 6.0, n))
    inputs, outputs = dice.integers(1, 700, n), dice.integers(1, 120, n)
    table = msgspec.structs.replace(LIKE_A_CARD, caching=False, blocks=4000)
    spec = EngineSpec(
        base_s=np.array(table.base_s), head_s=np.array(table.head_s), kv_s_per_token=2e-8,
        prefill_attention_s_per_token2=1e-10, prefill_kv_s_per_token=1e-8, max_tokens=512, max_seqs=16, blocks=4000,
        caching=False, max_context=63_999, power_w=POWER_W, power_idle_w=IDLE_W,
    )  # fmt: skip
    system = specs.system(
        spec, cap=rule, limit_kw=np.full((1, 120), limit_kw), training_kw=np.zeros((1, 120)),
        control_every_s=tick_s, hard_cap=rule == 1,
    )  # fmt: skip
    records, _ = specs.simulate(system, specs.trace(arrivals_s, inputs, outputs))
    free, _ = specs.simulate(specs.system(spec), specs.trace(arrivals_s, inputs, outputs))
    slower = records["finish_ns"].mean() > 1.001 * free["finish_ns"].mean()
    assert slower == (rule > 0), "the cap has to bind for this to mean anything"
    ends_s = engine_under(rule, limit_kw, tick_s, table, list(zip(arrivals_s, inputs, outputs, strict=True)))
    assert SLOW_ONE == state.SLOW_ONE
    np.testing.assert_allclose(ends_s, records["finish_ns"] / 1e9, atol=2e-5)


def engine_under(rule: int, limit_kw: float, tick_s: float, table: Any, asks: Sequence[tuple[Any, ...]]) -> list[float]:
    """Return when each answer ends at an emulated engine that is told what the live side's own decisions come to."""
    fleet = tables(1, sites=1, tenants=1, policy=policy(cap=("none", "slow", "shed", "by_priority")[rule]))
    row = replace(fleet.deployments[0], kind="emulated", idle_w=IDLE_W, peak_w=float(POWER_W.max()))
    fleet = replace(fleet, deployments=[row])
    steer, replica, ends = Steer(fleet), Replica(table), [0.0] * len(asks)
    last_step_s, tick = -inf, 0.0
    waiting = list(enumerate(asks))
    while waiting or replica.n_running or replica.waiting:
        due_s = replica.advance(replica.clock_s)
        now_s = min(tick, waiting[0][1][0] if waiting else inf, due_s if due_s is not None else inf)
        if due_s is not None and now_s == due_s and now_s < tick:
            replica.advance(now_s)
            last_step_s = now_s
            continue
        if waiting and now_s == waiting[0][1][0]:
            i, (at_s, n_in, n_out) = waiting.pop(0)
            job = Job(int(n_in), int(n_out), [], None, lambda i=i: ends.__setitem__(i, replica.clock_s))
            replica.submit(job, float(at_s))
            continue
        replica.advance(now_s)
        decide(steer, replica, now_s, limit_kw, busy=replica.step_end_s >= 0.0 or last_step_s > now_s - tick_s)
        tick += tick_s
    return ends


def decide(steer: Steer, replica: Replica, now_s: float, limit_kw: float, *, busy: bool) -> None:
    """Decide as the owner does, with the twin's meter, and tell the engine."""
    from baseload.serve.steer import SitePower

    watts = POWER_W[replica.step_tokens] - IDLE_W if busy else 0.0
    steer.cap([SitePower((IDLE_W + watts) / 1e3, IDLE_W / 1e3, limit_kw)])
    if steer.tables.policy.cap in ("slow", "by_priority"):
        steer.share_out(0, limit_kw=limit_kw, base_kw=0.0)
    replica.slow = stretch(Draw(POWER_W.tolist(), IDLE_W), steer.ratio[0], steer.cap_w[0])


class Provisioner:
    """Remembers what engines were told."""

    def __init__(self) -> None:
        self.told: list[tuple[list[str], list[float]]] = []

    async def slow_down(self, names: Sequence[str], factors: Sequence[float]) -> None:
        """Remember it."""
        self.told.append((list(names), list(factors)))


def keeper_of(folder: Path, kind: str) -> tuple[Housekeeper, Provisioner]:
    """Return a keeper of two busy engines at a site whose limit leaves half of what they would draw."""
    fleet = tables(2, sites=1, tenants=1, policy=policy(cap="slow"))
    fleet = replace(
        fleet, sites=[replace(fleet.sites[0], limit_kw=0.6)],
        deployments=[replace(fleet.deployments[0], kind=kind, peak_w=500.0)],
    )  # fmt: skip
    provisioner = Provisioner()
    orders = [EngineStart(name=f"d0/s0/{r}", kind=kind) for r in range(2)]  # type: ignore[arg-type]
    board = Board.create(folder / "board", 2, 1, 1)
    keeper = Housekeeper(fleet, board, Steer(fleet), provisioner, orders, folder)  # type: ignore[arg-type]
    for r, place in enumerate(keeper.places):
        place.engine, place.seen = Engine(f"d0/s0/{r}", kind, "http://x", "", 1, 0.0), rc.Seen(r, 1, 1, rc.UP)
        place.looked = Looked(healthy=True, running=8, waiting=0)
        keeper.steer.state[r] = UP
    return keeper, provisioner


def test_engines_are_told_once_and_again_when_they_start_anew(tmp_path: Path) -> None:
    """Two emulated engines over the site's limit are slowed alike, the meter shows the limit, and it stays so."""
    keeper, provisioner = keeper_of(tmp_path, "emulated")
    hold = PowerHold(keeper, None, lambda sentence: None)
    hold.draws = {0: Draw([100.0, 500.0], 100.0)}
    keeper.held_to = hold.left

    async def run() -> None:
        for second in range(5):
            keeper.decide(float(second))
            assert keeper.steer.ratio[0] == pytest.approx(0.5), "a cap that holds is no reason to lift it"
            await hold.apply()
        assert keeper.power[0].power_kw == pytest.approx(0.6)
        assert provisioner.told == [(["d0/s0/0", "d0/s0/1"], [81 / 64])]
        keeper.places[1].seen = keeper.places[1].seen._replace(incarnation=2)
        await hold.apply()
        assert provisioner.told[1:] == [(["d0/s0/1"], [81 / 64])]

    asyncio.run(run())


def test_what_cannot_be_held_is_reckoned_as_it_is(tmp_path: Path) -> None:
    """Engines of others run on at full power unless this host's accelerators are limited; the meter does not pretend."""
    keeper, provisioner = keeper_of(tmp_path, "embedded")
    hold = PowerHold(keeper, None, lambda sentence: None)
    keeper.held_to = hold.left
    keeper.decide(0.0)
    assert keeper.steer.ratio[0] == pytest.approx(0.5) and keeper.power[0].power_kw == pytest.approx(1.0)

    class Limiter:
        """Remembers what it was asked."""

        method, asked = "nvml", list[float]()

        def limit(self, dynamic_ratio: float) -> float:
            """Remember it, and refuse the second time."""
            self.asked.append(dynamic_ratio)
            if len(self.asked) > 1:
                raise OSError("NVML: GPU is lost")
            return 1.0

        def close(self) -> None:
            """Nothing is held."""

    limiter, said = Limiter(), list[str]()
    hold = PowerHold(keeper, limiter, said.append)
    keeper.held_to = hold.left
    asyncio.run(hold.apply())
    assert limiter.asked == [pytest.approx(0.5)] and provisioner.told == []
    assert keeper.metered()[0].power_kw == pytest.approx(0.6)
    asyncio.run(hold.apply())
    asyncio.run(hold.apply())
    assert keeper.metered()[0].power_kw == pytest.approx(1.0), "what is not held is not reckoned as held"
    assert len(said) == 1 and "may exceed its limit" in said[0], "said once, not each second"


def test_a_real_process_obeys(tmp_path: Path) -> None:
    """Told to take eight times as long, forty tokens of 5 ms take at least 1.6 s; told otherwise, the next ones do not wait."""

    async def run() -> float:
        table = msgspec.to_builtins(flat_table(0.005))
        provisioner = ProcessProvisioner(tmp_path, tables={"flat": table})
        engine = await provisioner.start(EngineStart(name="a/b/0", kind="emulated", table="flat", model="m"))
        await provisioner.slow_down(["a/b/0", "gone"], [8.0])
        began_s = time.monotonic()
        body = {"model": "m", "prompt": "x", "max_tokens": 40, "ignore_eos": True}
        answer = await ask(f"{engine.url}/v1/completions", body=msgspec.json.encode(body), timeout_s=30.0)
        took_s = time.monotonic() - began_s
        assert answer.status == 200
        await provisioner.close()
        return took_s

    assert asyncio.run(run()) >= 1.55
