"""Speed of the gateway beside haproxy, vllm-router and LiteLLM, in CPU time per request: `make bench-serve [QUICK=1]`.

    python -m bench.serve.run [--quick] [--only plain,stream,idle] [--no-setup] [--together]

All servers run at once, one process each, and are measured in turns, round by round, so that the noise of a shared machine
falls on all alike; the figure is the median of the rounds. On two CPUs or more the servers have the first half of them, load
and upstream the other: a load generator that is woken on the server's own CPU interrupts it at every write. CPU is user and
system time of a server's whole process tree from /proc, divided by completed requests; for Baseload worker and owner are
also told apart. A window with one failed request is invalid. The peers live in `.bench/`, by name and version; what is not
there is `not run`.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import platform
import resource
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from bench.serve import load
from tests.chaos.stack import Gateway, children_of, first_json_line

ROOT = Path(__file__).resolve().parent.parent.parent
HOME = ROOT / ".bench"
PEERS = {"vllm-router": "vllm-router==0.1.17", "litellm": "litellm[proxy]==1.106.2"}
MASTER = "sk-bench-" + "0" * 32
N_REPLICAS = 16

FLEET = """\
baseload: 1
name: bench
money: {{currency: EUR, usd_rate: 0.93}}
sites:
  frankfurt:
    place: frankfurt
    grid: [{{power_mw: 2.0, energised: 2023-01-01}}]
    contracts: [{{power_mw: 2.0, price_per_mwh: 90}}]
    racks: {{h100: {{accelerator: h100-sxm, accelerators_per_rack: 8, racks: 2}}}}
  oslo:
    place: oslo
    grid: [{{power_mw: 2.0, energised: 2023-01-01}}]
    contracts: [{{power_mw: 2.0, price_per_mwh: 60}}]
    racks: {{h100: {{accelerator: h100-sxm, accelerators_per_rack: 8, racks: 2}}}}
models:
  chat: {{catalog: llama-3.1-8b}}
deployments:
  chat:
    model: chat
    accelerator: h100-sxm
    precision: fp8
    max_num_seqs: 2048
    sites: {{frankfurt: {{min: 8}}, oslo: {{min: 8}}}}
tenants:
  acme: {{residency: [EU, "NO"], sovereignty: [EU, "NO"], price: {{input_per_mtok: 0.5, output_per_mtok: 2.0}}}}
policy: {{route: least_outstanding, admit: always}}
serve:
  workers: {workers}
  engines:
    chat: {{kind: external, metrics: vllm, urls: {{frankfurt: [{frankfurt}], oslo: [{oslo}]}}}}
  limits: {{token_s: 300, first_byte_s: 60, request_s: 900, drain_s: 1, queue: 20000}}
"""


@dataclass
class Server:
    """A server under test."""

    name: str
    port: int
    key: str = "none"
    pids: Sequence[int] = ()  # roots of its process tree; empty: not judged
    parts: dict[str, list[int]] = field(default_factory=dict)
    version: str = ""

    @property
    def tree(self) -> list[int]:
        """Return all of its processes."""
        return [p for root in self.pids for p in (root, *children_of(root))]

    def rss_mb(self) -> float:
        """Return resident memory of the tree, in MB (10^6 bytes)."""
        return sum(rss_bytes(pid) for pid in self.tree) / 1e6


@dataclass
class Result:
    """Figures of one server in one test: one entry a round."""

    cpu_us: list[float] = field(default_factory=list)
    parts_us: dict[str, list[float]] = field(default_factory=dict)
    rate: list[float] = field(default_factory=list)
    p50_ms: list[float] = field(default_factory=list)
    p99_ms: list[float] = field(default_factory=list)
    invalid: list[str] = field(default_factory=list)

    def median(self, name: str) -> float:
        """Return the median over the valid rounds."""
        values = getattr(self, name)
        return statistics.median(values) if values else float("nan")


def rss_bytes(pid: int) -> int:
    """Return a process's resident memory."""
    try:
        return int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")
    except (OSError, IndexError):
        return 0


# ---- starting the servers --------------------------------------------------------------------------------


class Rig:
    """Everything that runs during a benchmark; `end` stops it by process id."""

    def __init__(self, folder: Path, *, apart: bool) -> None:
        self.folder = folder
        cpus = sorted(os.sched_getaffinity(0))
        half = len(cpus) // 2 if apart else 0
        self.cpus = (cpus[:half], cpus[half:]) if half else (cpus, cpus)  # of the servers; of load and upstream
        self.processes: list[subprocess.Popen[bytes]] = []
        self.gateways: list[Gateway] = []
        self.not_run: dict[str, str] = {}
        self.mock_port = self._mock()

    def spawn(self, name: str, words: Sequence[str], env: dict[str, str] | None = None) -> subprocess.Popen[bytes]:
        """Start a process; what it prints goes to a file."""
        with (self.folder / f"{name}.log").open("wb") as log:
            process = subprocess.Popen(
                list(words),
                stdout=log,
                stderr=subprocess.STDOUT,
                stdin=subprocess.DEVNULL,
                env={**os.environ, **(env or {})},
            )
        self.processes.append(process)
        return process

    def _mock(self) -> int:
        compiler = shutil.which("cc") or shutil.which("gcc")
        if compiler:
            program = self.folder / "mock"
            subprocess.run([compiler, "-O2", "-o", str(program), str(Path(__file__).with_name("mock.c"))], check=True)
            words = [str(program), "0"]
        else:
            words = [sys.executable, str(ROOT / "tests/chaos/mock_engine.py"), "--tokens", "64"]
        self.load_here()
        process = subprocess.Popen(words, stdout=subprocess.PIPE, stdin=subprocess.DEVNULL)
        self.processes.append(process)
        return int(first_json_line(process, 10)["port"])

    def serve_here(self) -> None:
        """What is started from here on runs on the servers' CPUs."""
        os.sched_setaffinity(0, self.cpus[0])

    def load_here(self) -> None:
        """What is started from here on, and this process, run on the other CPUs."""
        os.sched_setaffinity(0, self.cpus[1])

    def direct(self) -> Server:
        """Return the upstream itself."""
        return Server("direct", self.mock_port)

    def haproxy(self) -> Server | None:
        """Start haproxy: one process, one thread, round robin."""
        if shutil.which("haproxy") is None:
            self.not_run["haproxy"] = "not installed (Debian package haproxy)"
            return None
        port, config = free_port(), self.folder / "haproxy.cfg"
        config.write_text(
            "global\n  nbthread 1\n  maxconn 4000\ndefaults\n  mode http\n  timeout connect 5s\n  timeout client 600s\n"
            "  timeout server 600s\n  http-reuse always\n"
            f"frontend f\n  bind 127.0.0.1:{port}\n  default_backend b\nbackend b\n  balance roundrobin\n"
            f"  server m 127.0.0.1:{self.mock_port}\n"
        )
        process = self.spawn("haproxy", ["haproxy", "-db", "-f", str(config)])
        version = subprocess.run(["haproxy", "-v"], capture_output=True, text=True).stdout.split("\n")[0]
        return self._up(Server("haproxy", port, pids=[process.pid], version=version.split(" - ")[0]))

    def vllm_router(self) -> Server | None:
        """Start vllm-router with its defaults, round robin."""
        python = HOME / "vllm-router" / "bin" / "python"
        if not python.exists():
            self.not_run["vllm-router"] = f"not in .bench ({PEERS['vllm-router']})"
            return None
        port = free_port()
        words = ["-m", "vllm_router.launch_router", "--worker-urls", f"http://127.0.0.1:{self.mock_port}", "--host"]
        words += ["127.0.0.1", "--port", str(port), "--policy", "round_robin", "--log-level", "warning"]
        words += ["--prometheus-port", str(free_port())]
        process = self.spawn("vllm-router", [str(python), *words])
        return self._up(Server("vllm-router", port, pids=[process.pid], version=PEERS["vllm-router"]))

    def litellm(self) -> Server | None:
        """Start LiteLLM's proxy: one worker, no database."""
        program = HOME / "litellm" / "bin" / "litellm"
        if not program.exists():
            self.not_run["litellm"] = f"not in .bench ({PEERS['litellm']})"
            return None
        port, config = free_port(), self.folder / "litellm.yaml"
        config.write_text(
            "model_list:\n  - model_name: chat\n    litellm_params:\n      model: openai/chat\n"
            f"      api_base: http://127.0.0.1:{self.mock_port}/v1\n      api_key: none\n"
            f"general_settings:\n  master_key: {MASTER}\nlitellm_settings:\n  telemetry: false\n"
        )
        words = [
            str(program),
            "--config",
            str(config),
            "--host",
            "127.0.0.1",
            "--port",
            str(port),
            "--num_workers",
            "1",
        ]
        env = {"LITELLM_LOCAL_MODEL_COST_MAP": "True", "LITELLM_TELEMETRY": "False"}
        process = self.spawn("litellm", words, env)
        return self._up(Server("litellm", port, key=MASTER, pids=[process.pid], version=PEERS["litellm"]), timeout_s=90)

    def baseload(self, workers: int = 1) -> Server | None:
        """Start Baseload with everything on: key, budget, masks over 16 replicas, ledger, cost and energy in the answer."""
        name = f"baseload-{workers}"
        state, fleet = self.folder / f"state-{workers}", self.folder / f"fleet-{workers}.yaml"
        state.mkdir(mode=0o700)
        urls = [f"http://127.0.0.{i + 1}:{self.mock_port}" for i in range(N_REPLICAS)]
        frankfurt, oslo = (", ".join(half) for half in (urls[: N_REPLICAS // 2], urls[N_REPLICAS // 2 :]))
        fleet.write_text(FLEET.format(frankfurt=frankfurt, oslo=oslo, workers=workers))
        gateway = Gateway(fleet, state)
        try:
            gateway.start(90)
        except RuntimeError as error:
            self.not_run[name] = str(error)[-300:]
            return None
        self.gateways.append(gateway)
        key = gateway.key("acme", "--budget", "100000000")
        assert gateway.process is not None
        server = Server("baseload", gateway.port, key=key, pids=[gateway.process.pid], version="this tree")
        server.parts = {"worker": gateway.part("serve.worker"), "owner": gateway.part("owner_main")}
        return self._up(server)

    def _up(self, server: Server, timeout_s: float = 30.0) -> Server | None:
        until_s, why = time.monotonic() + timeout_s, ""
        while time.monotonic() < until_s:
            wire = urllib.request.Request(
                f"http://127.0.0.1:{server.port}/v1/chat/completions", data=load.body(stream=False),
                headers={"content-type": "application/json", "authorization": f"Bearer {server.key}"},
            )  # fmt: skip
            try:
                with urllib.request.urlopen(wire, timeout=5) as answer:
                    json.loads(answer.read())
                return server
            except (OSError, ValueError) as error:
                why = str(error)
                time.sleep(0.2)
        self.not_run[server.name] = f"did not answer in {timeout_s:.0f} s: {why}"
        return None

    def end(self) -> None:
        """Stop all."""
        for gateway in self.gateways:
            gateway.stop()
        for process in self.processes:
            pids = children_of(process.pid)
            process.terminate()
            try:
                process.wait(5)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
            for pid in pids:
                with contextlib.suppress(OSError):
                    os.kill(pid, 9)


def free_port() -> int:
    """Return a port that is free now."""
    import socket

    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def setup() -> None:
    """Make the peers' environments where they are not there yet."""
    HOME.mkdir(exist_ok=True)
    for name, package in PEERS.items():
        python = HOME / name / "bin" / "python"
        if python.exists():
            continue
        subprocess.run([sys.executable, "-m", "venv", str(HOME / name)], check=True)
        done = subprocess.run([str(python), "-m", "pip", "install", "-q", "--disable-pip-version-check", package])
        if done.returncode:
            shutil.rmtree(HOME / name, ignore_errors=True)


# ---- measuring -------------------------------------------------------------------------------------------


def window(server: Server, result: Result, run: object, per: str = "n") -> None:
    """Run one window of load on a server and note what it cost."""
    tree = server.tree
    parts = {name: load.cpu_s(pids) for name, pids in server.parts.items()}
    before_s = load.cpu_s(tree)
    seen: load.Window = run(server)  # type: ignore[operator]
    used_s = load.cpu_s(tree) - before_s
    units = getattr(seen, per)
    if seen.failed or not units:
        result.invalid.append(f"{seen.failed} failed of {seen.n}: {seen.why[:120]}")
        return
    result.cpu_us.append(1e6 * used_s / units)
    for name, pids in server.parts.items():
        result.parts_us.setdefault(name, []).append(1e6 * (load.cpu_s(pids) - parts[name]) / units)
    result.rate.append(seen.n / seen.took_s)
    result.p50_ms.append(seen.p50_ms)
    result.p99_ms.append(seen.p99_ms)


def rounds(servers: list[Server], n: int, run: object, per: str = "n") -> dict[str, Result]:
    """Measure the servers in turns, `n` times."""
    results = {server.name: Result() for server in servers}
    for i in range(n):
        for server in servers[i % len(servers) :] + servers[: i % len(servers)]:  # nobody is always first
            window(server, results[server.name], run, per)
    return results


def table(title: str, results: dict[str, Result], unit: str) -> None:
    """Print one test."""
    print(f"\n{title}")
    print(
        f"  {'':12s} {'CPU us/' + unit:>14s} {'worker':>8s} {'owner':>8s} {'per s':>9s} {'p50 ms':>8s} {'p99 ms':>8s}"
    )
    for name, r in results.items():
        parts = [
            f"{statistics.median(r.parts_us[p]):8.1f}" if r.parts_us.get(p) else f"{'':8s}" for p in ("worker", "owner")
        ]
        cpu = f"{r.median('cpu_us'):14.1f}" if name != "direct" else f"{'':14s}"
        seen = f"{r.median('rate'):9.0f} {r.median('p50_ms'):8.3f} {r.median('p99_ms'):8.2f}"
        print(f"  {name:12s} {cpu} {parts[0]} {parts[1]} {seen}")
        for why in r.invalid:
            print(f"      invalid window: {why}")


def goal(name: str, value: float, limit: float, *, at_least: bool = False, unit: str = "") -> bool:
    """Print a goal beside what was measured."""
    good = value >= limit if at_least else value <= limit
    word = "met" if good else ("missed" if value == value else "not measured")
    print(f"  {word:12s} {name}: {value:.3g}{unit} (goal {'>=' if at_least else '<='} {limit:g}{unit})")
    return good


def plain(rig: Rig, servers: list[Server], *, quick: bool) -> dict[str, float]:
    """Plain requests: CPU at 16 connections, added p50 at one."""
    n, seconds = (3, 2) if quick else (5, 3)
    for server in servers:
        load.wrk(server.port, server.key, connections=8, seconds=1)  # warm
    at16 = rounds(servers, n, lambda s: load.wrk(s.port, s.key, connections=16, seconds=seconds))
    table("plain requests, 16 connections (request 1.2 kB, answer 0.6 kB)", at16, "request")
    at1 = rounds(servers, n, lambda s: load.wrk(s.port, s.key, connections=1, seconds=seconds))
    table("plain requests, 1 connection", at1, "request")
    found = {f"plain/{name}": r.median("cpu_us") for name, r in at16.items()}
    for name, r in at1.items():
        added = [a - b for a, b in zip(r.p50_ms, at1["direct"].p50_ms)]
        found[f"added/{name}"] = statistics.median(added) if added else float("nan")
    return found


def stream(rig: Rig, servers: list[Server], *, quick: bool) -> dict[str, float]:
    """Streams of 64 events: at once, and paced (20 ms, then one each 10 ms: each event is a read and a write of its own)."""
    n, seconds = (3, 2) if quick else (5, 3)
    burst = rounds(servers, 1 if quick else 3, lambda s: load.streams(s.port, s.key, connections=16, seconds=seconds))
    table("streams of 64 events, all at once, 16 connections", burst, "stream")
    knobs = " @ttft_ms=20 @gap_ms=10"
    paced = rounds(
        servers, n, lambda s: load.streams(s.port, s.key, connections=64, seconds=seconds, knobs=knobs), per="n_chunks"
    )
    table("streams of 64 events, paced, 64 connections", paced, "chunk")
    return {f"chunk/{name}": r.median("cpu_us") for name, r in paced.items()}


def litellm_once(rig: Rig, *, quick: bool) -> dict[str, float]:
    """LiteLLM alone: it would starve the others."""
    rig.serve_here()
    server = rig.litellm()
    rig.load_here()
    if server is None:
        return {}
    load.wrk(server.port, server.key, connections=2, seconds=2)
    found = rounds([server], 1 if quick else 3, lambda s: load.wrk(s.port, s.key, connections=4, seconds=4))
    table("LiteLLM alone, plain requests, 4 connections", found, "request")
    print(f"  RSS {server.rss_mb():.0f} MB")
    return {"plain/litellm": found["litellm"].median("cpu_us")}


def idle(rig: Rig, *, n_streams: int) -> dict[str, float]:
    """Many streams that wait for their next event, on two workers; meanwhile an ordinary request is timed."""
    rig.serve_here()
    server = rig.baseload(workers=2)
    rig.load_here()
    if server is None:
        return {}
    probe_before = load.wrk(server.port, server.key, connections=1, seconds=2)
    before = sum(rss_bytes(pid) for pid in server.parts["worker"])
    holders = []
    for i in range(2):  # client and server apart, and two clients: each has its own limit of descriptors
        words = [
            sys.executable,
            "-m",
            "bench.serve.hold",
            "--port",
            str(server.port),
            "--n",
            str(n_streams // 2),
            "--hold",
            "25",
        ]
        holders.append(
            subprocess.Popen(
                words,
                stdout=subprocess.PIPE,
                stdin=subprocess.DEVNULL,
                cwd=ROOT,
                env={**os.environ, "HOLD_KEY": server.key},
            )
        )
        rig.processes.append(holders[i])
    opened = [first_json_line(holder, 60) for holder in holders]
    n_open = sum(told["open"] for told in opened)
    after = sum(rss_bytes(pid) for pid in server.parts["worker"])
    probes = load.wrk(server.port, server.key, connections=1, seconds=5)
    told = [json.loads((holder.communicate(timeout=120)[0] or b"{}").splitlines()[-1]) for holder in holders]
    whole = sum(t.get("whole", 0) for t in told)
    per_stream = (after - before) / max(1, n_open) / 1024
    print(
        f"\n{n_open} idle streams on two workers: {per_stream:.1f} KiB of RSS each; {whole} of {n_streams} ended whole"
    )
    without = f"{probe_before.p50_ms:.2f}, {probe_before.p99_ms:.2f}"
    print(f"  probe p50 {probes.p50_ms:.2f} ms, p99 {probes.p99_ms:.2f} ms (without them {without})")
    for t in told:
        for why in t.get("why", [])[:3]:
            print(f"      {why}")
    return {"idle/kib": per_stream, "idle/p99": probes.p99_ms, "idle/whole": whole / n_streams}


def judge(found: dict[str, float], rss: dict[str, float]) -> None:
    """Print the goals."""
    nan = float("nan")

    def get(name: str) -> float:
        return found.get(name, nan)

    ours = get("plain/baseload")
    print("\ngoals (issue: speed of the gateway)")
    goal("CPU a plain request", ours, 100, unit=" us")
    goal("CPU a relayed chunk", get("chunk/baseload"), 35, unit=" us")
    goal("plain, times vllm-router", ours / get("plain/vllm-router"), 0.7)
    goal("plain, times haproxy", ours / get("plain/haproxy"), 3.5)
    goal("LiteLLM, times ours", get("plain/litellm") / ours, 100, at_least=True)
    goal("added p50 at 1 connection", get("added/baseload"), 0.5, unit=" ms")
    goal("RSS of a worker", rss.get("worker", nan), 80, unit=" MB")
    goal("RSS an idle stream", get("idle/kib"), 30, unit=" KiB")
    goal("probe p99 beside idle streams", get("idle/p99"), 250, unit=" ms")


def main(argv: list[str] | None = None) -> int:
    """Run the benchmark."""
    p = argparse.ArgumentParser(description="The gateway beside haproxy, vllm-router and LiteLLM.")
    p.add_argument("--quick", action="store_true")
    p.add_argument("--only", default="plain,stream,litellm,idle")
    p.add_argument("--idle", type=int, default=10_000)
    p.add_argument("--no-setup", action="store_true", help="do not install what is missing in .bench")
    p.add_argument("--together", action="store_true", help="leave servers, load and upstream to the scheduler")
    p.add_argument("--json", type=Path)
    options = p.parse_args(argv)
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    if not options.no_setup:
        setup()
    only, found, rss = options.only.split(","), {}, {}
    with tempfile.TemporaryDirectory(prefix="baseload-bench-", ignore_cleanup_errors=True) as folder:
        rig = Rig(Path(folder), apart=not options.together)
        try:
            rig.serve_here()
            servers = [s for s in (rig.direct(), rig.haproxy(), rig.vllm_router(), rig.baseload()) if s is not None]
            rig.load_here()
            where = f"{platform.platform()}, {os.cpu_count()} CPUs, Python {platform.python_version()}"
            print(f"{where}, load {os.getloadavg()[0]:.1f}")
            print("; ".join(f"{s.name}: {s.version}" for s in servers if s.version))
            for name, test in (("plain", plain), ("stream", stream)):
                if name in only:
                    found.update(test(rig, servers, quick=options.quick))
            for server in servers:
                if server.pids:
                    rss[server.name] = server.rss_mb()
                    for part, pids in server.parts.items():
                        rss[part] = sum(map(rss_bytes, pids)) / 1e6
            print("\nRSS after load, MB: " + ", ".join(f"{k} {v:.0f}" for k, v in rss.items()))
            if "litellm" in only:
                found.update(litellm_once(rig, quick=options.quick))
            if "idle" in only:
                found.update(idle(rig, n_streams=options.idle // (10 if options.quick else 1)))
            judge(found, rss)
            for name, why in rig.not_run.items():
                print(f"  not run: {name}: {why}")
        finally:
            rig.end()
    if options.json:
        options.json.write_text(json.dumps({"found": found, "rss_mb": rss}, indent=1))
    return 0


if __name__ == "__main__":
    sys.exit(main())
