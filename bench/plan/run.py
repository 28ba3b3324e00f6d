"""Speed and proof of `baseload plan`: `make bench-plan [QUICK=1] [SEEDS=5]`.

    python -m bench.plan.run [--quick] [--seeds 5] [--only large,mid,coarse] [--json FILE]

Each (case, seed) is solved in a process of its own, one thread, at low priority; the figures are CPU seconds of that process
over all its threads, its peak memory, the certified gap, and whether the independent checker finds the plan whole on the full
problem. Beside it: HiGHS with its defaults on the same programme (the first survival rows), for the same CPU seconds.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import statistics
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

# case: (sites, kinds, services, clients, periods), hosting and whole racks, CPU seconds, goals: median and worst gap
CASES: dict[str, tuple[tuple[int, int, int, int, int], bool, float, float, float]] = {
    "large": ((20, 8, 12, 50, 20), False, 120.0, 0.02, 0.035),
    "mid": ((10, 5, 6, 20, 12), True, 60.0, 0.015, 0.025),
    "coarse": ((20, 8, 12, 12, 10), False, 45.0, 0.01, 0.01),
}
QUICK = ((6, 4, 4, 10, 8), True, 20.0, 0.05, 0.1)
TARGET = 0.01


def one(case: str, seed: int, peer: bool) -> dict[str, Any]:
    """Solve one instance in this process; return its figures."""
    from baseload.plan import build as building
    from baseload.plan.check_answer import check
    from baseload.plan.generate import instance
    from baseload.plan.highs import Lp
    from baseload.plan.solve import solve

    size, hosting, cpu_limit_s, _, _ = QUICK if case == "quick" else CASES[case]
    problem = instance(*size, seed=seed, hosting=hosting, whole=hosting)
    began_s = time.process_time()
    lp = Lp(building.build(problem, building.first_halls(problem)).program)
    build_s = time.process_time() - began_s
    if peer:
        found = lp.solve(gap=TARGET, cpu_limit_s=cpu_limit_s)
        cost, bound = found.cost, found.bound
    else:
        del lp
        began_s = time.process_time()
        answer = solve(problem, gap=TARGET, cpu_limit_s=cpu_limit_s)
        cost, bound = answer.cost, answer.bound
    cpu_s = time.process_time() - began_s
    broken = 0 if peer else len(check(problem, answer))
    return {
        "case": case,
        "seed": seed,
        "build_s": round(build_s, 3),
        "cpu_s": round(cpu_s, 1),
        "peak_mb": round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024),
        "gap": (cost - bound) / abs(cost) if cost < 1e29 else 1.0,
        "broken_rows": broken,
    }


def apart(case: str, seed: int, peer: bool) -> dict[str, Any]:
    """Solve one instance in a process of its own."""
    command = [sys.executable, "-m", "bench.plan.run", "--one", case, str(seed), "peer" if peer else "ours"]
    environment = os.environ | {"OPENBLAS_NUM_THREADS": "1", "OMP_NUM_THREADS": "1", "NUMBA_NUM_THREADS": "1"}
    done = subprocess.run(command, env=environment, stdout=subprocess.PIPE, check=True, preexec_fn=lambda: os.nice(5))
    found: dict[str, Any] = json.loads(done.stdout)
    return found


def main() -> None:
    """Run the cases and print goal, measured, met or not."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--only", default="large,mid,coarse")
    parser.add_argument("--peer-seeds", type=int, default=1)
    parser.add_argument("--json", type=Path)
    parser.add_argument("--one", nargs=3)
    given = parser.parse_args()
    if given.one:
        print(json.dumps(one(given.one[0], int(given.one[1]), given.one[2] == "peer")))
        return
    cases = ["quick"] if given.quick else given.only.split(",")
    rows = []
    for case in cases:
        _, _, limit_s, median_goal, worst_goal = QUICK if case == "quick" else CASES[case]
        ours = []
        for seed in range(2 if given.quick else given.seeds):
            row = apart(case, seed, peer=False)
            ours.append(row)
            print(f"{case} seed {seed}: gap {row['gap']:.2%}, {row['cpu_s']} CPU s, {row['peak_mb']} MB, "
                  f"build {row['build_s']} s, broken rows {row['broken_rows']}", flush=True)  # fmt: skip
        gaps = [row["gap"] for row in ours]
        met = statistics.median(gaps) <= median_goal and max(gaps) <= worst_goal
        print(f"{case}: median {statistics.median(gaps):.2%} (goal {median_goal:.1%}), worst {max(gaps):.2%} "
              f"(goal {worst_goal:.1%}), at most {limit_s:g} CPU s: {'met' if met else 'not met'}", flush=True)  # fmt: skip
        beside = [apart(case, seed, peer=True) for seed in range(1 if given.quick else given.peer_seeds)]
        for row in beside:
            print(
                f"{case} seed {row['seed']}, HiGHS defaults: gap {row['gap']:.2%} after {row['cpu_s']} CPU s",
                flush=True,
            )
        rows += [{**row, "by": "baseload"} for row in ours] + [{**row, "by": "highs"} for row in beside]
    if given.json:
        given.json.write_text(json.dumps(rows, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
