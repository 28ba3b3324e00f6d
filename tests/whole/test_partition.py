"""A site whose packets vanish: its streams end with the truth, the other site serves on, and it is taken back when it heals."""

from __future__ import annotations

import asyncio
import importlib.util
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.chaos import netns
from tests.chaos.client import Outcome, Request, Wire, ask
from tests.chaos.stack import Gateway, MockEngine, fleet_text

pytestmark = pytest.mark.skipif(
    importlib.util.find_spec("baseload.serve.worker") is None, reason="not run: the gateway is not built"
)
TOKEN_S, HEAL_S = 2.0, 10.0


class Rig:
    """Frankfurt in a network namespace, Oslo beside the gateway."""

    def __init__(self, folder: Path) -> None:
        self.site = netns.Site(11)
        self.site.make()
        far = MockEngine(folder / "far.truth", prefix=self.site.command([]), host=self.site.address)
        self.engines = [far.start(), MockEngine(folder / "near.truth").start()]
        fleet, state = folder / "fleet.yaml", folder / "state"
        state.mkdir(mode=0o700)
        fleet.write_text(fleet_text([self.engines[0].url], [self.engines[1].url], workers=1))
        self.gateway = Gateway(fleet, state).start()
        self.key = self.gateway.key("acme")

    def ask(self, n: int, prompt: str, tokens: int) -> list[asyncio.Task[Outcome]]:
        """Begin `n` streams."""

        async def one(i: int) -> Outcome:
            wire = Wire("127.0.0.1", self.gateway.port)
            out = await ask(wire, Request(prompt=f"{i} {prompt}", n=tokens, key=self.key, deadline_s=20))
            wire.drop()
            return out

        return [asyncio.create_task(one(i)) for i in range(n)]

    def end(self) -> None:
        """Stop all."""
        self.gateway.stop()
        for engine in self.engines:
            engine.kill()
        self.site.remove()


@pytest.fixture
def rig(tmp_path: Path) -> Iterator[Rig]:
    """Two sites."""
    why_not = netns.available()
    if why_not:
        pytest.skip(f"not run: {why_not}")
    made = Rig(tmp_path)
    yield made
    made.end()


def test_a_partition_is_told_survived_and_healed(rig: Rig) -> None:
    """Streams of the lost site end in an error event in time, new requests go elsewhere, and after healing it serves again."""

    async def go() -> None:
        running = rig.ask(12, "@gap_ms=60", 60)
        await asyncio.sleep(1.0)
        rig.site.partition()
        lost_s = time.monotonic()
        during = [o for _ in range(3) for o in await asyncio.gather(*rig.ask(6, "", 2))]
        outcomes = await asyncio.gather(*running)
        rig.site.heal()
        healed_s = time.monotonic()
        assert all(o.kind == "answer" for o in during), [o for o in during if o.kind != "answer"][:2]
        assert all("/oslo/" in o.headers["x-baseload-replica"] for o in during)
        kinds = [o.kind for o in outcomes]
        assert set(kinds) == {"answer", "error_event"}, kinds
        late_s = max(o.ended_s - lost_s for o in outcomes if o.kind == "error_event")
        assert late_s <= TOKEN_S + 1.5, late_s
        while time.monotonic() - healed_s < HEAL_S:
            found = await asyncio.gather(*rig.ask(6, "", 2))
            assert all(o.kind == "answer" for o in found)
            if any("/frankfurt/" in o.headers["x-baseload-replica"] for o in found):
                return
            await asyncio.sleep(0.3)
        raise AssertionError(f"frankfurt is still left alone {HEAL_S:.0f} s after it healed")

    asyncio.run(go())
