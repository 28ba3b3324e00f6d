"""An owner or a worker as a process of its own, for the tests that kill them: `python … owner|worker STATE [arguments]`.

A worker plays its clients too: it writes what each client's socket took to a file, then tells the purse, as the relay
does. What the file says is the truth that the ledger is held against.
"""

from __future__ import annotations

import asyncio
import os
import random
import struct
import sys
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

import uvloop

from baseload.serve.purse import Opened, Purse, Refusal
from tests.serve.fleet import tables
from tests.serve.money import Till, row

TRUTH = struct.Struct("<QI")  # request id, tokens that the client has
CHUNK = 5


async def be_owner(state: Path) -> None:
    """Own until told to stop."""
    till = Till(state)
    owner = await till.owner()
    sys.stdout.write("ready\n")
    sys.stdout.flush()
    await asyncio.get_running_loop().run_in_executor(None, sys.stdin.read)
    await owner.stop()
    owner.ledger.close()


async def be_worker(state: Path, worker: int, seed: int, n_clients: int) -> None:
    """Serve clients without end until told to stop, then hand everything over."""
    dice = random.Random(seed)
    secret = (state / "secret").read_bytes()
    purse = Purse(state / "run", worker, tables())
    await purse.start()
    truth = os.open(state / f"truth-{worker}", os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    going = [True]

    async def client() -> None:
        loop = asyncio.get_running_loop()
        while going[0]:
            answer: asyncio.Future[Opened | Refusal] = loop.create_future()
            most = dice.choice((20, 60, 1000))
            purse.open(
                secret, model_i=0, input_tokens=10, max_output_tokens=most, stream=True,
                now_s=time.monotonic(), then=answer.set_result,
            )  # fmt: skip
            opened = await answer
            if isinstance(opened, Refusal):
                await asyncio.sleep(0.05)
                continue
            await stream(opened, min(most, dice.randrange(5, 400)))

    async def stream(opened: Opened, length: int) -> None:
        more = asyncio.Event()
        opened.on_more = opened.on_stop = lambda _: more.set()
        tokens = 0
        while tokens < length and not opened.stop:
            tokens += CHUNK
            os.write(truth, TRUTH.pack(opened.request_id, tokens))
            purse.delivered(opened, tokens)
            if not purse.sends(opened, tokens):
                if opened.stop:
                    break
                await more.wait()
                more.clear()
            if dice.random() < 0.2:
                await asyncio.sleep(0.001)
        purse.settle(opened, row(10, tokens))

    clients = [asyncio.create_task(client()) for _ in range(n_clients)]
    sys.stdout.write("ready\n")
    sys.stdout.flush()
    await asyncio.get_running_loop().run_in_executor(None, sys.stdin.read)
    going[0] = False
    await asyncio.wait(clients, timeout=10.0)
    whole = await purse.close(10.0)
    sys.exit(0 if whole else 3)


if __name__ == "__main__":
    folder = Path(sys.argv[2])
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        if sys.argv[1] == "owner":
            runner.run(be_owner(folder))
        else:
            runner.run(be_worker(folder, *map(int, sys.argv[3:6])))
