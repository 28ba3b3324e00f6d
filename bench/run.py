"""`make bench`: how fast the twin is, in CPU seconds of one process and as a ratio to a reference kernel, against goals.

Each measurement runs in a process of its own (`cases.py`). QUICK=1 (or --quick) is a short look with fewer requests,
scaled up and marked as such; FULL=1 (or --full) streams all 50 million requests. Method and figures: docs/benchmarks.md.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path
from statistics import median
from typing import Any

BENCH = Path(__file__).resolve().parent
MILLION = 1_000_000

# Requests per CPU second of other simulators, measured for the project on a like 2-core machine, not in this run.
ELSEWHERE = (("Vidur", "184-262"), ("BLIS", "124-223"))

Row = tuple[str, str, str, str]  # what, goal, measured, met


class CaseFailed(Exception):
    """A measurement ended in an error; the others still count."""


class Bench:
    """Runs cases against one cache of compiled code, and gathers the rows of the table."""

    def __init__(self, size: float, full: bool, cache: Path) -> None:
        self.size = size  # of the measurements, 1 is the real one
        self.full = full
        self.environment = os.environ | {"BASELOAD_CACHE": str(cache), "NUMBA_NUM_THREADS": "1"}
        self.environment.pop("NUMBA_CACHE_DIR", None)  # jit.py chooses it
        self.rows: list[Row] = []
        self.figures: dict[str, Any] = {}

    def case(self, name: str, label: str, **options: Any) -> dict[str, Any]:
        """Run one case in its own process; return its figures."""
        print(f"... {label}", file=sys.stderr, flush=True)
        words = [word for key, value in options.items() for word in (f"--{key.replace('_', '-')}", str(value))]
        done = subprocess.run(
            [sys.executable, str(BENCH / "cases.py"), name, *words],
            stdout=subprocess.PIPE, text=True, env=self.environment, check=False,
        )  # fmt: skip
        if done.returncode:
            raise CaseFailed(f"{label}: ended with exit code {done.returncode}, its last words above")
        figures: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
        self.figures[label] = figures
        return figures

    def row(self, what: str, goal: str, measured: str, met: bool | None = None) -> None:
        """Add a row to the table; `met` None: there is no goal."""
        self.rows.append((what, goal, measured, "" if met is None else "met" if met else "NOT MET"))

    def n(self, requests: int) -> int:
        """Return how many requests to run where the goal speaks of `requests`."""
        return max(20_000, round(requests * self.size))


def spread(values: list[float], digits: int = 2) -> str:
    """Return min / median / max of some measurements.

    >>> spread([3.0, 1.0, 2.0])
    '1.00 / 2.00 / 3.00'
    """
    return " / ".join(f"{value:.{digits}f}" for value in (min(values), median(values), max(values)))


def start(bench: Bench) -> None:
    """Measure what compiling costs: once on a machine, and in each process after that."""
    cold = bench.case("start", "start, nothing compiled yet")
    cold_s = cold["first_cpu_s"] - cold["second_cpu_s"]
    bench.row("JIT, cold cache: CPU s", "<= 30", f"{cold_s:.1f}", cold_s <= 30.0)
    warm = [bench.case("start", f"start, compiled before ({i})") for i in (1, 2, 3)]
    own = [w["first_cpu_s"] - w["second_cpu_s"] for w in warm]
    libraries = [w["libraries_cpu_s"] for w in warm]
    bench.row("JIT, warm cache: CPU s, our imports + load", "<= 2", spread(own), median(own) <= 2.0)
    bench.row("  beside it: interpreter, NumPy, numba imports", "", spread(libraries))


def speed(bench: Bench) -> None:
    """Measure a million requests on 64 replicas, bare and with everything on, in turn with the reference kernel."""
    n, rounds = bench.n(MILLION), 5 if bench.size >= 1.0 else 3
    scale = MILLION / n
    found = bench.case("in-turn", "1,000,000 requests, 64 replicas", kinds="reference,bare,everything", requests=n,
                       replicas=64, rounds=rounds)["rounds"]  # fmt: skip
    reference, bare, everything = ([r["cpu_s"] * scale for r in found[k]] for k in ("reference", "bare", "everything"))
    bench.row("1,000,000 requests, 64 replicas: CPU s", "", "min / median / max")
    bench.row("  reference kernel", "", spread(reference))
    bench.row("  bare serving", "<= 1.5", spread(bare), median(bare) <= 1.5)
    bench.row("  everything on, records written", "<= 5", spread(everything), median(everything) <= 5.0)
    bench.row("    of it handing over and writing records", "",
              spread([r["writing_cpu_s"] * scale for r in found["everything"]]))  # fmt: skip
    bench.row("  bare / reference, same round", "", spread([b / r for b, r in zip(bare, reference, strict=True)]))
    bench.row("  everything / reference, same round", "",
              spread([e / r for e, r in zip(everything, reference, strict=True)]))  # fmt: skip
    bench.row("  requests per CPU s: bare, everything", "",
              f"{MILLION / median(bare):,.0f}, {MILLION / median(everything):,.0f}")  # fmt: skip
    first, second = found["reference"][0], found["bare"][0]
    bench.row("  same answer? mean TTFT ms: reference, bare", "",
              f"{1000 * first['ttft_s']:.2f}, {1000 * second['ttft_s']:.2f}")  # fmt: skip
    bench.row("  same answer? mean E2E s: reference, bare", "", f"{first['e2e_s']:.4f}, {second['e2e_s']:.4f}")
    for name, per_s in ELSEWHERE:
        bench.row(f"  for comparison, measured elsewhere: {name}", "", f"{per_s} requests per CPU s")


def memory(bench: Bench) -> None:
    """Measure the memory of a million requests with everything on."""
    found = bench.case("memory", "memory, everything on", requests=bench.n(MILLION), replicas=64)
    bench.row("peak RSS MB, everything on, 64 replicas", "<= 600", f"{found['peak_rss_mb']:.0f}",
              found["peak_rss_mb"] <= 600.0)  # fmt: skip


def large(bench: Bench) -> None:
    """Measure the cost of a request among 1,024 replicas against that among 64."""
    many = bench.n(4 * MILLION)
    ratios, costs = [], []
    for i in range(2 if bench.size >= 1.0 else 1):
        small = bench.case("in-turn", f"everything on, 64 replicas ({i})", kinds="everything", replicas=64,
                           requests=bench.n(MILLION))["rounds"]["everything"][0]["cpu_s"] / bench.n(MILLION)  # fmt: skip
        big = bench.case("in-turn", f"everything on, 1,024 replicas ({i})", kinds="everything", replicas=1024,
                         requests=many)["rounds"]["everything"][0]["cpu_s"] / many  # fmt: skip
        ratios.append(big / small)
        costs.append(1e6 * big)
    bench.row("everything on, 1,024 replicas: CPU us a request", "", spread(costs))
    bench.row("  against 64 replicas", "<= 2x", spread(ratios), median(ratios) <= 2.0)


def stream(bench: Bench) -> None:
    """Stream very many requests: memory that does not grow, and a shell that is never away for long."""
    whole = 50 * MILLION
    n = whole if bench.full else bench.n(5 * MILLION)
    found = bench.case("stream", f"{n:,} requests streamed", requests=n, replicas=64)
    scale = whole / n
    said = "" if n == whole else f" (of {n:,}, times {scale:.0f})"
    bench.row(f"50,000,000 requests streamed: CPU s{said}", "", f"{found['cpu_s'] * scale:.0f}")
    tenths = found["rss_mb_by_tenth"]
    grown = tenths[-1] / max(tenths[1], 1)
    bench.row("  RSS MB after each tenth", "bounded", " ".join(map(str, tenths)), grown < 1.25)
    bench.row("  run folder: GB", "", f"{found['folder_mb'] * scale / 1000.0:.2f}")
    bench.row("  longest between two signs of life: wall s, CPU s", "<= 1",
              f"{found['longest_breath_wall_s']:.2f}, {found['longest_breath_cpu_s']:.2f}",
              found["longest_breath_wall_s"] <= 1.0)  # fmt: skip
    answers = [bench.case("interrupted", f"Ctrl-C ({i})", requests=5 * MILLION, replicas=64, after_s=3.0 + 0.37 * i)
               ["answered_wall_s"] for i in range(3)]  # fmt: skip
    bench.row("  Ctrl-C to a closed .partial folder: wall s", "<= 1", spread(answers), max(answers) <= 1.0)


PARTS = {"start": start, "speed": speed, "memory": memory, "large": large, "stream": stream}


def table(rows: list[Row]) -> str:
    """Return the rows as aligned text."""
    rows = [("", "goal", "measured", ""), *rows]
    widths = [max(len(row[i]) for row in rows) for i in range(4)]
    lines = ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows]
    return "\n".join([lines[0], "-" * max(map(len, lines)), *lines[1:]])


def main() -> None:
    """Run the parts asked for and print the table; exit code 1 when a goal is missed."""
    top = argparse.ArgumentParser(description=__doc__)
    top.add_argument("--quick", action="store_true", help="a tenth of the requests")
    top.add_argument("--full", action="store_true", help="all 50 million requests in `stream` (or FULL=1)")
    top.add_argument("--only", default=",".join(PARTS), help=f"parts, of {', '.join(PARTS)}")
    top.add_argument("--json", type=Path, help="write every figure to this file")
    options = top.parse_args()
    cache = Path(tempfile.mkdtemp(prefix="baseload-bench-cache-"))
    bench = Bench(0.1 if options.quick else 1.0, options.full or os.environ.get("FULL") == "1", cache)
    try:
        for name in options.only.split(","):
            try:
                PARTS[name](bench)
            except CaseFailed as failure:
                bench.row(str(failure), "", "", False)
    finally:
        shutil.rmtree(cache, ignore_errors=True)
    load = ", ".join(f"{x:.1f}" for x in os.getloadavg())
    print(f"{platform.machine()}, {os.cpu_count()} cores, Python {platform.python_version()}, load {load}")
    if options.quick:
        print("QUICK: a tenth of the requests, CPU seconds scaled up; for the real figures leave QUICK out")
    print(table(bench.rows))
    if options.json:
        options.json.write_text(json.dumps(bench.figures, indent=1) + "\n", "utf-8")
    sys.exit(1 if any(row[3] == "NOT MET" for row in bench.rows) else 0)


if __name__ == "__main__":
    main()
