"""`baseload serve` as an operator runs it: one fleet file, real processes, real HTTP, a real ledger."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
BASELOAD = [sys.executable, "-m", "baseload"]
TENANT, MODEL = "call-centres", "voice"


class Served:
    """The example of six small sites, served with emulated engines."""

    def __init__(self, folder: Path) -> None:
        self.state = folder / "state"
        self.fleet = folder / "fleet.yaml"
        self.fleet.write_text((ROOT / "examples" / "edge" / "fleet.yaml").read_text())
        self.key = self.run("keys", "create", "--tenant", TENANT, "--state", str(self.state)).strip()
        self.errors = folder / "errors"
        command = [*BASELOAD, "serve", str(self.fleet), "--listen", "127.0.0.1:0", "--control", "127.0.0.1:0"]
        command += ["--state", str(self.state), "--ready-json"]
        with self.errors.open("wb") as errors:
            self.process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=errors)
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        assert line, self.errors.read_text()
        self.told = json.loads(line)

    def run(self, *words: str, code: int = 0) -> str:
        """Run another verb; return what it printed."""
        done = subprocess.run([*BASELOAD, *words], capture_output=True, text=True, timeout=60)
        assert done.returncode == code, (words, done.returncode, done.stdout, done.stderr)
        return done.stdout

    def ask(self, path: str, body: object = None, *, key: str | None = None) -> tuple[int, dict[str, str], bytes]:
        """Return status, headers and body of an answer of the gateway."""
        blob = None if body is None else json.dumps(body).encode()
        headers = {"Authorization": f"Bearer {key or self.key}", "Content-Type": "application/json"}
        request = urllib.request.Request(self.told["gateway"] + path, blob, headers)
        try:
            with urllib.request.urlopen(request, timeout=30) as answer:
                return answer.status, {k.lower(): v for k, v in answer.headers.items()}, answer.read()
        except urllib.error.HTTPError as error:
            with error:
                return error.code, {k.lower(): v for k, v in error.headers.items()}, error.read()

    def chat(self, *, stream: bool, tokens: int = 8, key: str | None = None) -> tuple[int, dict[str, str], bytes]:
        """Ask for a short answer."""
        messages = [{"role": "user", "content": "how much is a megawatt?"}]
        body = {"model": MODEL, "stream": stream, "max_tokens": tokens, "messages": messages}
        return self.ask("/v1/chat/completions", body, key=key)

    def up(self) -> int:
        """Return how many replicas are shown as up."""
        token = Path(self.told["admin_token_file"]).read_text().strip()
        request = urllib.request.Request(
            self.told["control"] + "/api/snapshot", headers={"Authorization": f"Bearer {token}"}
        )
        with urllib.request.urlopen(request, timeout=10) as answer:
            shown = json.loads(answer.read())["snapshot"]["replicas"]
        return sum(one["state"] == "up" for one in shown)

    def engines(self) -> int:
        """Return how many addresses of engines there are."""
        told = json.loads((self.state / "run" / "endpoints.json").read_text())
        return sum(url is not None for url in told["urls"])

    def end(self) -> None:
        """Stop it, and expect it to go in peace."""
        self.process.send_signal(signal.SIGTERM)
        assert self.process.wait(30) == 0, self.errors.read_text()
        assert self.process.stdout is not None
        self.process.stdout.close()


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    """A running fleet."""
    made = Served(tmp_path_factory.mktemp("served"))
    yield made
    if made.process.poll() is None:
        made.end()


def test_an_answer_tells_where_it_ran_and_what_it_cost(served: Served) -> None:
    """Site, jurisdiction, replica and engine in headers; cost, price, energy and carbon in `usage`."""
    status, headers, body = served.chat(stream=False)
    usage = json.loads(body)["usage"]
    assert status == 200 and headers["x-baseload-engine"] == "emulated"
    assert {"x-baseload-site", "x-baseload-jurisdiction", "x-baseload-replica", "x-baseload-request-id"} <= set(headers)
    assert all(usage[name] > 0.0 for name in ("cost", "price", "energy_wh", "carbon_g"))
    low, high = usage["baseload"]["range"]["energy_wh"]
    assert low <= usage["energy_wh"] <= high and usage["baseload"]["provisional"] is True


def test_a_receipt_is_proved_offline(served: Served, tmp_path: Path) -> None:
    """What a tenant was billed can be checked with the receipt and the ledger alone; somebody else gets none."""
    _, headers, _ = served.chat(stream=True)
    name = headers["x-baseload-request-id"]
    for _ in range(100):
        status, _, blob = served.ask(f"/v1/receipts/{name}")
        if status == 200:
            break
        time.sleep(0.05)
    receipt = tmp_path / "receipt.json"
    receipt.write_bytes(blob)
    assert "whole" in served.run("verify", "--receipt", str(receipt))
    other = served.run("keys", "create", "--tenant", "retail-assistant", "--state", str(served.state), code=2)
    assert other == ""  # no such tenant in this fleet: said, and not made


def test_workers_are_replaced_and_the_file_reloaded_without_dropping_a_stream(served: Served) -> None:
    """SIGUSR2 and SIGHUP while eight clients stream: every stream ends whole."""
    whole, torn, over = [0], [], threading.Event()

    def client() -> None:
        while not over.is_set():
            status, _, body = served.chat(stream=True, tokens=40)
            if status == 200 and b"[DONE]" in body:
                whole[0] += 1
            else:
                torn.append((status, body[-300:]))

    clients = [threading.Thread(target=client) for _ in range(8)]
    for one in clients:
        one.start()
    os.kill(served.process.pid, signal.SIGUSR2)
    text = served.fleet.read_text()
    served.fleet.write_text(text.replace("tenants:", "tenants:  # a comment", 1))
    os.kill(served.process.pid, signal.SIGHUP)
    until_s = time.monotonic() + 20.0
    while "replaced" not in served.errors.read_text() and time.monotonic() < until_s:
        time.sleep(0.1)
    time.sleep(1.0)
    over.set()
    for one in clients:
        one.join()
    assert not torn and whole[0] > 20, torn[:3]
    said = served.errors.read_text()
    assert "the workers are replaced" in said and "reloaded, version 2" in said, said


def test_engines_of_ours_come_and_go_at_a_reload(served: Served) -> None:
    """Half of the emulated replicas are drained away, then started again and used: no stream is torn, and none stays."""
    text, whole, torn, over, where = served.fleet.read_text(), [0], [], threading.Event(), set()

    def client() -> None:
        while not over.is_set():
            status, headers, body = served.chat(stream=True, tokens=60)
            if status == 200 and b"[DONE]" in body:
                whole[0] += 1
                where.add(headers["x-baseload-replica"])
            else:
                torn.append((status, body[-300:]))

    def reload(n: int, replicas: int) -> None:
        warm = text.replace("max_num_seqs: 128", "max_num_seqs: 128\n    cold_start_s: 0.5")
        served.fleet.write_text(warm.replace("{min: 4}", f"{{min: {n}}}"))
        os.kill(served.process.pid, signal.SIGHUP)
        until_s = time.monotonic() + 30.0
        while (served.up(), served.engines()) != (replicas, replicas):
            assert time.monotonic() < until_s, (served.up(), served.engines(), served.errors.read_text())
            time.sleep(0.2)

    clients = [threading.Thread(target=client) for _ in range(8)]
    for one in clients:
        one.start()
    try:
        reload(2, 24)
        time.sleep(1.0)
        reload(4, 48)
        time.sleep(1.0)
        reload(3, 36)
        reload(4, 48)
    finally:
        over.set()
        for one in clients:
            one.join()
        served.fleet.write_text(text)
    assert not torn and whole[0] > 20, torn[:3]
    assert where, "they ran somewhere"


def test_a_bad_reload_keeps_the_last_good_file(served: Served) -> None:
    """A broken fleet file is named with its line, and requests are served as before."""
    text = served.fleet.read_text()
    served.fleet.write_text(text + "\nnonsense: 1\n")
    os.kill(served.process.pid, signal.SIGHUP)
    until_s = time.monotonic() + 10.0
    while "nonsense" not in served.errors.read_text() and time.monotonic() < until_s:
        time.sleep(0.1)
    served.fleet.write_text(text)
    assert "reload refused" in served.errors.read_text() and "nonsense" in served.errors.read_text()
    assert served.chat(stream=False)[0] == 200


def test_a_revoked_key_opens_nothing_a_second_later(served: Served) -> None:
    """Revoked on the command line, refused by the running gateway."""
    key = served.run("keys", "create", "--tenant", TENANT, "--state", str(served.state)).strip()
    assert served.chat(stream=False, key=key)[0] == 200
    served.run("keys", "revoke", key, "--state", str(served.state))
    time.sleep(1.0)
    status, _, body = served.chat(stream=False, key=key)
    assert status == 401 and json.loads(body)["error"]["code"] == "invalid_api_key"


def test_at_the_end_the_books_are_whole_and_nothing_is_left(served: Served) -> None:
    """SIGTERM: exit code 0, no marks and no socket left, the ledger verifies, usage adds up to it."""
    children = [
        int(pid) for pid in Path(f"/proc/{served.process.pid}/task/{served.process.pid}/children").read_text().split()
    ]
    served.end()
    left = sorted(path.name for path in (served.state / "run").iterdir())
    assert not [name for name in left if "marks" in name or name.endswith(".sock")], left
    assert not [pid for pid in children if Path(f"/proc/{pid}").exists()]
    witness = str(served.state / "witness.log")
    assert "whole" in served.run("verify", str(served.state / "ledger.db"), "--witness", witness)
    rows = json.loads(served.run("usage", "--json", "--state", str(served.state)))
    assert sum(row["requests"] for row in rows) > 20 and rows[0]["tenant"] == TENANT
    assert served.run("usage", "--tenant", "nobody", "--state", str(served.state), code=2) == ""
