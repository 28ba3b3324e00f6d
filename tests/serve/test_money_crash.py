"""Owner and workers as real processes that are killed: what clients received and what the ledger bills agree."""

from __future__ import annotations

import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.serve.money import IN_NANO, OUT_NANO, Till
from tests.serve.money_process import CHUNK, TRUTH

SCRIPT = Path(__file__).with_name("money_process.py")


class Crew:
    """The processes of one state folder; whatever happens, they are gone at the end."""

    def __init__(self, state: Path, n_workers: int, n_clients: int) -> None:
        self.state, self.n_workers, self.n_clients = state, n_workers, n_clients
        self.owner = self._start("owner")
        self.workers = [self._worker(w, w) for w in range(n_workers)]

    def _start(self, *words: object) -> subprocess.Popen[bytes]:
        process = subprocess.Popen(
            [sys.executable, "-W", "ignore", str(SCRIPT), str(words[0]), str(self.state), *map(str, words[1:])],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE,
        )  # fmt: skip
        return process

    def _worker(self, worker: int, seed: int) -> subprocess.Popen[bytes]:
        return self._start("worker", worker, seed, self.n_clients)

    def ready(self) -> None:
        """Wait until all are."""
        for process in (self.owner, *self.workers):
            assert process.stdout is not None and process.stdout.readline() == b"ready\n"

    def kill(self, i: int, seed: int) -> None:
        """Kill -9 the owner (-1) or a worker, and start another in its place."""
        process = self.owner if i < 0 else self.workers[i]
        process.send_signal(signal.SIGKILL)
        self._reap(process)
        if i < 0:
            self.owner = self._start("owner")
        else:
            self.workers[i] = self._worker(i, seed)
        fresh = self.owner if i < 0 else self.workers[i]
        assert fresh.stdout is not None and fresh.stdout.readline() == b"ready\n"

    def end(self, process: subprocess.Popen[bytes]) -> int:
        """Let one end by itself."""
        assert process.stdin is not None
        process.stdin.close()
        code = process.wait(20.0)
        self._reap(process)
        return code

    def _reap(self, process: subprocess.Popen[bytes]) -> None:
        process.wait(20.0)
        for pipe in (process.stdin, process.stdout):
            if pipe is not None and not pipe.closed:
                try:
                    pipe.close()
                except BrokenPipeError:
                    pass

    def gone(self) -> None:
        """Kill what is left."""
        for process in (self.owner, *self.workers):
            if process.poll() is None:
                process.kill()
            self._reap(process)


def truth(state: Path) -> dict[int, int]:
    """Return what clients received, by request."""
    found: dict[int, int] = {}
    for path in state.glob("truth-*"):
        blob = path.read_bytes()
        for request_id, tokens in TRUTH.iter_unpack(blob[: len(blob) // TRUTH.size * TRUTH.size]):
            found[request_id] = max(found.get(request_id, 0), tokens)
    return found


def settle_and_close(crew: Crew, till: Till) -> None:
    """End all workers, then the owner; a last owner closes what a killed one left."""
    codes = [crew.end(worker) for worker in crew.workers]
    assert codes == [0] * crew.n_workers
    crew.end(crew.owner)
    if not till.closed():
        crew.owner = crew._start("owner")
        assert crew.owner.stdout is not None and crew.owner.stdout.readline() == b"ready\n"
        time.sleep(0.5)
        crew.end(crew.owner)
    assert till.closed(), "a lease stayed open"
    assert not list(till.run.glob("marks-*")), "marks of the dead stayed"


def compare(till: Till, received: dict[int, int]) -> None:
    """Assert: billed <= delivered, and >= delivered - one chunk; nothing billed that nobody received."""
    settled = till.settled()
    for request_id, tokens in received.items():
        billed = settled[request_id].output_tokens if request_id in settled else 0
        assert tokens - CHUNK <= billed <= tokens, (request_id, billed, tokens)
    for request_id, billed_row in settled.items():
        assert billed_row.output_tokens <= received.get(request_id, 0)
        assert billed_row.price_nano == billed_row.input_tokens * IN_NANO + billed_row.output_tokens * OUT_NANO
    totals = till.ledger().totals()
    assert sum(t.price_nano for t in totals) == sum(r.price_nano for r in settled.values())


@pytest.mark.slow
@pytest.mark.parametrize("seed", [1, 2])
def test_killed_at_random_moments_the_bill_is_what_was_delivered_less_at_most_a_chunk(tmp_path, seed):
    """Kill -9 of workers, the owner, and both: every request is billed once, never above what its client has."""
    dice = random.Random(seed)
    till = Till(tmp_path)
    made = till.key()
    (tmp_path / "secret").write_text(made.secret)
    crew = Crew(tmp_path, n_workers=2, n_clients=4)
    try:
        crew.ready()
        for turn in range(6):
            time.sleep(dice.uniform(0.1, 0.5))
            whom = dice.choice([[0], [1], [-1], [0, -1], [-1, 1]])
            for i in whom:
                crew.kill(i, seed * 100 + turn)
        time.sleep(0.3)
        settle_and_close(crew, till)
    finally:
        crew.gone()
    received = truth(tmp_path)
    assert len(received) > 50
    compare(till, received)
    assert any(r.recovered for r in till.settled().values())


@pytest.mark.slow
def test_sixty_four_clients_on_four_processes_overspend_by_at_most_a_chunk_each(tmp_path):
    """A budget that 64 parallel clients on 4 worker processes hammer is spent, and not beyond a chunk a client."""
    till = Till(tmp_path)
    budget = 40_000 * OUT_NANO
    made = till.key(budget_nano=budget)
    (tmp_path / "secret").write_text(made.secret)
    crew = Crew(tmp_path, n_workers=4, n_clients=16)
    try:
        crew.ready()
        spent, end_s = -1, time.monotonic() + 20.0
        while time.monotonic() < end_s:
            time.sleep(0.5)
            now = sum(t.price_nano for t in till.ledger().totals())
            if now == spent and now > budget // 2:
                break
            spent = now
        settle_and_close(crew, till)
    finally:
        crew.gone()
    compare(till, truth(tmp_path))
    spent = sum(r.price_nano for r in till.settled().values())
    assert budget - 64 * (256 * OUT_NANO + 10 * IN_NANO) <= spent <= budget + 64 * CHUNK * OUT_NANO
