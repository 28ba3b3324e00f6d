"""The live half of `make demo`: the example fleet with real engines, real HTTP and a real ledger, and the twin beside it.

    python -m baseload.app.live_demo [--seconds 30] [--state FOLDER]

One embedded engine (llama.cpp, a tiny model with random weights) is measured alone and the twin's constants are fitted to
it. Then `baseload serve` brings the fleet up with one such engine a deployment and site, a thinned slice of the same trace
is sent over HTTP, and the ledger is replayed through the twin. The engines share this machine's cores, which the twin does not
know; so all are measured together for some seconds too, before the slice and after it, at its rate with other requests, and the
twin's requests take the longer by what was seen. What it shows is by how much the two differ. The live page stays open until
Ctrl-C.
"""

from __future__ import annotations

import argparse
import contextlib
import http.client
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

import numpy as np

from baseload.app import simulating
from baseload.app.live_tally import quantile
from baseload.errors import BaseloadError
from baseload.fleet import load as fleet_files
from baseload.serve.rows import SettleRow

if TYPE_CHECKING:
    from baseload.simulate.setup import Twin

FLEET = Path("examples/three-sites/fleet.yaml")
TRACE = "azure-conv"
SECONDS = 30.0
REQUESTS_PER_S = 2.0  # thinned from the trace's own 5.5, times the fleet file's scale of 20
PROMPT_LETTERS_MAX = 400  # a letter is a token of the tiny model
ANSWER_TOKENS_MAX = 40
READY_S = 90.0
TOGETHER_S = 6.0  # before the slice, and after it
WORDS = "how much power does a token take and who may serve it where and at what price in which hour of the year "


class DemoError(BaseloadError):
    """The demo cannot go on; the message says why."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Ask:
    """One request of the slice."""

    at_s: float
    tenant: str
    model: str
    letters: int
    tokens: int


def all_up(state: Path, timeout_s: float) -> int:
    """Wait until every engine has an address; return how many have."""
    until_s, n = time.monotonic() + timeout_s, 0
    while time.monotonic() < until_s:
        urls = json.loads((state / "run" / "endpoints.json").read_bytes())["urls"]
        n = sum(url is not None for url in urls)
        if n == len(urls):
            break
        time.sleep(0.1)
    return n


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the demo; return the exit code."""
    parser = argparse.ArgumentParser(prog="baseload demo", description=__doc__)
    parser.add_argument("--fleet", type=Path, default=FLEET, help="fleet file")
    parser.add_argument("--seconds", type=float, default=SECONDS, help="length of the slice")
    parser.add_argument("--state", type=Path, default=Path("runs/demo-live"), help="folder, made anew")
    wants = parser.parse_args(arguments)
    try:
        return run(wants.fleet, wants.seconds, wants.state)
    except KeyboardInterrupt:
        return 130
    except BaseloadError as error:
        print(f"baseload: {error}", file=sys.stderr)
        return error.exit_code


def run(fleet: Path, seconds: float, state: Path) -> int:
    """Calibrate, serve, send, compare, and leave the page open."""
    shutil.rmtree(state, ignore_errors=True)
    kind, fitted = "embedded", None
    try:
        import xllamacpp  # noqa: F401 - is it there?
    except ImportError:
        kind = "emulated"
        say("xllamacpp is not installed: the engines are emulated, and what follows is a rehearsal, no validation")
    overrides = small(fleet, kind)
    if kind == "embedded":
        fitted = calibrated()
    slice_ = asks(fleet, overrides, seconds)
    with served(fleet, overrides, kind, state) as told:
        say(f"live: {all_up(state, READY_S)} engines, gateway {told['gateway']}/v1, page {told['control']}")
        say(f"log in there with the token in {told['admin_token_file']}")
        keys = keys_for(sorted({ask.tenant for ask in slice_}), state)
        slower = together(slice_, state, fitted, 0.0) if fitted is not None else []
        say(f"sending {len(slice_)} requests of {TRACE}, thinned, over {seconds:.0f} s ...")
        failed = send(slice_, told["gateway"], keys)
        time.sleep(1.0)  # the last rows
        if fitted is not None:  # before and after: whatever else this machine does comes and goes
            slower += together(slice_, state, fitted, TOGETHER_S)
            say_factors(slower)
        print(beside(fleet, overrides, state, fitted, slower), flush=True)
        if failed:
            say(f"{len(failed)} requests were not answered whole, the first: {failed[0]}")
        if sys.stdin is not None and sys.stdin.isatty() and os.environ.get("DEMO_ONCE") != "1":
            say(f"the live page stays open: {told['control']} - Ctrl-C ends it")
            signal.pause()
    return 1 if len(failed) > 0.05 * len(slice_) else 0


def say(sentence: str) -> None:
    """Tell the user where we are."""
    print(sentence, file=sys.stderr, flush=True)


def small(fleet: Path, kind: str) -> tuple[str, ...]:
    """Return the overrides that leave one replica of each deployment in each site, and nothing to scale."""
    loaded = fleet_files.load(fleet, ())
    overrides = ["policy.scale=fixed"]
    for name, deployment in loaded.fleet.deployments.items():
        overrides += [f"deployments.{name}.sites.{site}.{key}=1" for site in deployment.sites for key in ("min", "max")]
    return tuple(overrides)


# ---- one engine, measured --------------------------------------------------------------------------------


def calibrated() -> Any:
    """Measure one embedded engine alone, and return what was fitted."""
    from baseload.adapters import tiny_gguf
    from baseload.app.live_calibrate import calibrate_engine
    from baseload.app.live_engines import EMBEDDED_CONTEXT_TOKENS
    from baseload.fleet.live import LiveEngine

    slots = LiveEngine().slots
    say("measuring one engine alone, to calibrate the twin (about 10 s) ...")
    command = [sys.executable, "-m", "baseload.adapters.engines.embedded_main", "--gguf", str(tiny_gguf.cached())]
    command += ["--slots", str(slots), "--context", str(EMBEDDED_CONTEXT_TOKENS)]
    process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL)
    try:
        told = first_line(process, READY_S)
        fitted = calibrate_engine(
            f"http://127.0.0.1:{told['ports'][0]}", slots=slots, context_tokens=EMBEDDED_CONTEXT_TOKENS,
            pid=process.pid,
        )  # fmt: skip
    finally:
        stop(process)
    print(fitted.text(), flush=True)
    return fitted


def together(slice_: Sequence[Ask], state: Path, fitted: Any, from_s: float) -> list[tuple[float, float]]:
    """Measure all engines at once, at the slice's own rate with other requests: they share this machine's cores."""
    from baseload.app.live_calibrate import Load, in_company

    say(f"measuring all engines at once, as they will be used ({TOGETHER_S:.0f} s) ...")
    urls = [url for url in json.loads((state / "run" / "endpoints.json").read_bytes())["urls"] if url is not None]
    last_s = slice_[-1].at_s
    other = sorted((last_s - ask.at_s, Load(max(2, ask.letters), max(2, ask.tokens), 1)) for ask in slice_)
    some = [(at_s - from_s, load) for at_s, load in other if from_s <= at_s < from_s + TOGETHER_S]
    return in_company(urls, some or other[:1], fitted)


def say_factors(slower: Sequence[tuple[float, float]]) -> None:
    """Tell by how much engines that share a machine slow each other."""
    for name, factors in zip(("first token", "each further one"), zip(*slower, strict=True), strict=True):
        low, middle, high = (quantile(sorted(factors), share) or 0.0 for share in (0.05, 0.5, 0.95))
        print(f"together, {name} takes {low:.2f} to {high:.2f} times as long as alone, mostly {middle:.2f}", flush=True)


def first_line(process: subprocess.Popen[bytes], timeout_s: float) -> dict[str, Any]:
    """Return the first JSON line that a process prints; raises DemoError where none comes."""
    lines: list[bytes] = []
    assert process.stdout is not None
    reader = threading.Thread(target=lambda: lines.append(process.stdout.readline()), daemon=True)  # type: ignore[union-attr]
    reader.start()
    reader.join(timeout_s)
    if not lines or not lines[0].startswith(b"{"):
        raise DemoError(f"process {process.pid} was not ready in {timeout_s:.0f} s; see above")
    told: dict[str, Any] = json.loads(lines[0])
    return told


def stop(process: subprocess.Popen[bytes], timeout_s: float = 45.0) -> None:
    """End a process that we started."""
    if process.poll() is None:
        process.send_signal(signal.SIGTERM)
        try:
            process.wait(timeout_s)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
    for pipe in (process.stdin, process.stdout):
        if pipe is not None:
            pipe.close()


# ---- the fleet, live -------------------------------------------------------------------------------------


@contextlib.contextmanager
def served(fleet: Path, overrides: Sequence[str], kind: str, state: Path) -> Iterator[dict[str, Any]]:
    """Run `baseload serve` while the block lasts."""
    command = [
        sys.executable,
        "-m",
        "baseload",
        "serve",
        str(fleet),
        "--listen",
        "127.0.0.1:0",
        "--control",
        "127.0.0.1:0",
    ]
    command += ["--engines", kind, "--state", str(state), "--ready-json"]
    for override in overrides:
        command += ["--set", override]
    process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, start_new_session=True)
    try:
        yield first_line(process, READY_S)
    finally:
        stop(process)


def keys_for(tenants: Sequence[str], state: Path) -> dict[str, str]:
    """Make a key for each tenant."""
    from baseload.app.live_verbs import keyring

    ring, accounts = keyring(state)
    try:
        return {tenant: ring.create(tenant, now_ns=time.time_ns(), name="demo").secret for tenant in tenants}
    finally:
        accounts.close()


def asks(fleet: Path, overrides: Sequence[str], seconds: float) -> list[Ask]:
    """Return the slice: the trace's own order, lengths (shortened), tenants and models, at a rate this machine can serve."""
    n = max(1, round(seconds * REQUESTS_PER_S))
    wish = simulating.Wish(fleet=fleet, trace=TRACE, requests=n, overrides=tuple(overrides), measure_replicas=False)
    prepared = simulating.prepare(wish)
    trace = prepared.source.whole()
    twin = prepared.twin
    stretch = seconds / max(1e-9, float(trace.arrival_ns[-1]) / 1e9)
    found = [
        Ask(
            at_s=float(trace.arrival_ns[i]) / 1e9 * stretch,
            tenant=twin.tenants[int(trace.tenant_i[i])],
            model=twin.models[int(trace.model_i[i])],
            letters=min(PROMPT_LETTERS_MAX, int(trace.input_tokens[i])),
            tokens=min(ANSWER_TOKENS_MAX, int(trace.output_tokens[i])),
        )
        for i in range(len(trace))
    ]
    return [ask for ask in found if may_be_served(prepared, ask)]


def may_be_served(prepared: simulating.Prepared, ask: Ask) -> bool:
    """Say whether law lets any of the small fleet's sites serve a request."""
    twin = prepared.twin
    return bool(twin.spec.may[twin.tenants.index(ask.tenant), twin.models.index(ask.model)].any())


def send(slice_: Sequence[Ask], gateway: str, keys: dict[str, str]) -> list[str]:
    """Send the slice at its own pace; return what went wrong."""
    failed: list[str] = []
    begun_s = time.monotonic()
    threads = []
    for ask in slice_:
        wait_s = ask.at_s - (time.monotonic() - begun_s)
        if wait_s > 0.0:
            time.sleep(wait_s)
        thread = threading.Thread(target=one, args=(ask, gateway, keys[ask.tenant], failed.append), daemon=True)
        thread.start()
        threads.append(thread)
    for thread in threads:
        thread.join(60.0)
    return failed


def one(ask: Ask, gateway: str, key: str, fail: Callable[[str], None]) -> None:
    """Send one request, and read its stream to the end."""
    parts = urlsplit(gateway)
    dice = random.Random(ask.at_s)  # no two prompts begin alike, or the engine's prompt cache would answer for it
    words = WORDS.split()
    text = " ".join(dice.choice(words) for _ in range(ask.letters // 2 + 1))[: ask.letters]
    body = {
        "model": ask.model, "stream": True, "max_tokens": ask.tokens, "ignore_eos": True,
        "messages": [{"role": "user", "content": text}],
    }  # fmt: skip
    connection = http.client.HTTPConnection(parts.hostname or "127.0.0.1", parts.port, timeout=60.0)
    try:
        connection.request(
            "POST", "/v1/chat/completions", json.dumps(body),
            {"Authorization": f"Bearer {key}", "Content-Type": "application/json"},
        )  # fmt: skip
        answer = connection.getresponse()
        blob = answer.read()
        if answer.status != 200 or b"[DONE]" not in blob:
            fail(f"{answer.status} {blob[-160:]!r}")
    except OSError as error:
        fail(str(error))
    finally:
        connection.close()


# ---- side by side ----------------------------------------------------------------------------------------


def beside(
    fleet: Path, overrides: Sequence[str], state: Path, fitted: Any, slower: Sequence[tuple[float, float]] = ()
) -> str:
    """Replay the ledger through the twin as measured, alone and together, and return both side by side."""
    from baseload.app import replay
    from baseload.app.live_calibrate import twin_as_measured

    kept = replay.named(replay.read(state / "ledger.db"), fleet_files.load(fleet, tuple(overrides)).fleet)
    wish = simulating.Wish(
        fleet=fleet, overrides=(*overrides, *kept.overrides), replay=kept, measure_replicas=False, search=False
    )
    prepared = simulating.prepare(wish)
    twin = prepared.twin
    if fitted is not None:
        twin = as_the_gateway_sees(twin, twin_as_measured(twin, {name: fitted for name in twin.deployments}))
    rows: list[Any] = []
    simulating.simulate_source(twin, prepared.source, emit=lambda some: rows.append(some.copy()))
    columns = np.concatenate(rows)
    records = {name: columns[name] for name in columns.dtype.names or ()}
    table = replay.comparison(kept, twin, records, twin.deployments, slower)
    return f"\ntwin and reality, request by request, from the ledger\n{table}\n{money(kept.rows, prepared)}"


def as_the_gateway_sees(nominal: Twin, measured: Twin) -> Twin:
    """Return the twin as measured, whose door still reckons with the nominal speeds, as the gateway's does."""
    engines = tuple(
        replace(fast, prefill_tokens_per_s=slow.prefill_tokens_per_s, decode_s_per_token=slow.decode_s_per_token)
        for fast, slow in zip(measured.spec.engines, nominal.spec.engines, strict=True)
    )
    return replace(measured, spec=replace(measured.spec, engines=engines))


def money(rows: Sequence[SettleRow], prepared: simulating.Prepared) -> str:
    """Return what the slice came to."""
    served_rows = [row for row in rows if row.output_tokens > 0]
    tokens = sum(row.input_tokens + row.output_tokens for row in served_rows)
    price, cost = sum(row.price_nano for row in rows) / 1e9, sum(row.cost_nano for row in rows) / 1e9
    energy_wh, carbon_g = sum(row.energy_mj for row in rows) / 3.6e6, sum(row.carbon_ug for row in rows) / 1e6
    ttft = [(row.first_token_ns - row.arrival_ns) / 1e6 for row in served_rows if row.first_token_ns > 0]
    currency = prepared.loaded.fleet.money.currency
    return (
        f"{len(served_rows)} answers, {tokens:,} tokens: price {price:.6f} {currency}, own cost {cost:.6f} {currency}, "
        f"{energy_wh:.3f} Wh, {carbon_g:.3f} g CO2e\n"
        f"(cost, energy and carbon are modelled for the accelerators of the fleet file, not for this machine; "
        f"measured: times and tokens; TTFT p50 {quantile(ttft, 0.5) or 0.0:.0f} ms)"
    )


if __name__ == "__main__":
    sys.exit(main())
