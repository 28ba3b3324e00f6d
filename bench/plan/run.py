"""Speed and proof of `baseload plan`: `make bench-plan [QUICK=1] [SEEDS=5] [PARTS=check,large,mid,...]`.

    python -m bench.plan.run [--quick] [--seeds 5] [--first-seed 0] [--parts check,large,mid] [--json FILE] [--resume]

Each (case, seed) is solved in a process of its own, one thread, at low priority; the figures are CPU seconds of that process
over all its threads, its peak memory, the certified gap, and whether the independent checker finds the plan whole on the full
problem. `whatif`, `conflict` and `risk` are what is asked after the plan (`questions.py`). `peer` is the same instances
written in linopy and solved by HiGHS with its defaults for the same CPU seconds, in an environment of its own
(`peer_linopy.py`); its plans are priced by the same checker, with what truly cannot survive. `check` shows on small instances
that both are the same model: the same least cost, with survival written out as flows. Figures are kept in a file as they come
(`.bench/plan.json`); `--resume` goes on where the last run stopped.
"""

from __future__ import annotations

import argparse
import importlib.metadata
import json
import os
import resource
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent.parent
HOME = ROOT / ".bench"
PEER_PYTHON = HOME / "linopy" / "bin" / "python"
PEER_PACKAGES = ("linopy==0.10.1", "pandas", "xarray")  # and the project's own numpy and highspy
QUESTIONS = ("whatif", "conflict", "risk")
PARTS = ("check", "large", "mid", "coarse", *QUESTIONS, "peer")


@dataclass(frozen=True, kw_only=True)
class Case:
    """Instances of a size, the CPU seconds that they may take, and the goals."""

    size: tuple[int, int, int, int, int]  # sites, kinds, services, clients, periods
    whole: bool  # hosting decisions and whole racks
    cpu_limit_s: float
    median_goal: float
    worst_goal: float


CASES = {
    "large": Case(size=(20, 8, 12, 50, 20), whole=False, cpu_limit_s=120.0, median_goal=0.02, worst_goal=0.035),
    "mid": Case(size=(10, 5, 6, 20, 12), whole=True, cpu_limit_s=60.0, median_goal=0.015, worst_goal=0.025),
    "coarse": Case(size=(20, 8, 12, 12, 10), whole=False, cpu_limit_s=45.0, median_goal=0.01, worst_goal=0.01),
    "quick": Case(size=(6, 4, 4, 10, 8), whole=True, cpu_limit_s=20.0, median_goal=0.05, worst_goal=0.1),
}
SMALL = Case(size=(4, 3, 3, 6, 6), whole=False, cpu_limit_s=60.0, median_goal=0.0, worst_goal=0.0)
TARGET = 0.01
SAME = 1e-5  # relative: least costs that are the same
EXACT = 1e-6  # gap asked for where they are compared


# ---- in a process of its own ----------------------------------------------------------------------------------------
def ours(case: str, seed: int) -> dict[str, Any]:
    """Solve one instance in this process; return its figures."""
    from baseload.plan import build as building
    from baseload.plan.check_answer import check
    from baseload.plan.generate import instance
    from baseload.plan.highs import Lp
    from baseload.plan.solve import solve

    asked = CASES[case]
    problem = instance(*asked.size, seed=seed, hosting=asked.whole, whole=asked.whole)
    began_s = time.process_time()
    lp = Lp(building.build(problem, building.first_halls(problem)).program)
    build_s = time.process_time() - began_s
    del lp
    began_s = time.process_time()
    answer = solve(problem, gap=TARGET, cpu_limit_s=asked.cpu_limit_s)
    cpu_s = time.process_time() - began_s
    peak_mb = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    return {
        "build_s": round(build_s, 3),
        "cpu_s": round(cpu_s, 1),
        "peak_mb": round(peak_mb),
        "cost": answer.cost,
        "bound": answer.bound,
        "gap": answer.gap,
        "broken_rows": len(check(problem, answer)),
    }


def least(seed: int, whole: bool) -> dict[str, Any]:
    """Return the least cost of a small instance."""
    from baseload.plan.generate import instance
    from baseload.plan.solve import solve

    problem = instance(*SMALL.size, seed=seed, hosting=whole, whole=whole)
    answer = solve(problem, gap=EXACT, cpu_limit_s=SMALL.cpu_limit_s)
    return {"cost": answer.cost, "bound": answer.bound}


def priced(case: str, seed: int, decisions: Path, bound: float | None) -> dict[str, Any]:
    """Price a peer's decisions on the full problem: what truly cannot survive is paid for, and every row is checked."""
    from dataclasses import replace

    import numpy as np

    from baseload.plan.check_answer import cannot_survive, check, derived, recompute_cost
    from baseload.plan.generate import instance
    from baseload.plan.nothing import nothing
    from baseload.plan.problem import SLACKS

    asked = CASES[case]
    problem = instance(*asked.size, seed=seed, hosting=asked.whole, whole=asked.whole)
    found = {name: np.maximum(0.0, values) for name, values in np.load(decisions).items()}
    slack = {name: found.pop(name) for name in SLACKS}
    rounded = {name: np.round(found[name]) for name in ("w", "host") if name in found}
    answer = replace(nothing(problem), slack=slack, **(found | rounded))
    short = cannot_survive(problem, derived(problem, answer).carry, answer.unserved)
    answer = replace(answer, slack=slack | {"short_survive": short})
    cost = recompute_cost(problem, answer).total
    answer = replace(answer, cost=cost, bound=cost if bound is None else min(bound, cost))
    return {"cost": cost, "gap": answer.gap, "broken_rows": len(check(problem, answer, tol=1e-5))}


def question(part: str, seed: int, *, quick: bool) -> dict[str, Any]:
    """Return the figures of what is asked of one instance after its plan."""
    from bench.plan import questions

    asked: dict[str, Callable[..., dict[str, Any]]] = {
        "whatif": questions.whatif,
        "conflict": questions.conflict,
        "risk": partial(questions.risk, scenarios=6) if quick else questions.risk,
    }
    return asked[part](seed, questions.QUICK if quick else questions.COARSE)


# ---- processes ------------------------------------------------------------------------------------------------------
def _run(command: list[str]) -> dict[str, Any]:
    """Run a process of one thread at low priority; return the JSON in its last line."""
    environment = os.environ | dict.fromkeys(("OPENBLAS_NUM_THREADS", "OMP_NUM_THREADS", "NUMBA_NUM_THREADS"), "1")
    environment["PYTHONPATH"] = os.pathsep.join((str(ROOT / "src"), str(ROOT)))
    done = subprocess.run(
        command, cwd=ROOT, env=environment, stdout=subprocess.PIPE, check=True, preexec_fn=lambda: os.nice(5)
    )
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return found


def _own(*words: object) -> dict[str, Any]:
    return _run([sys.executable, "-m", "bench.plan.run", "--one", *(str(word) for word in words)])


def _peer(asked: Case, seed: int, whole: bool, *more: str) -> dict[str, Any]:
    command = [str(PEER_PYTHON), "bench/plan/peer_linopy.py", "--size", *map(str, asked.size), "--seed", str(seed)]
    command += ["--cpu-limit", str(asked.cpu_limit_s), *(["--whole"] if whole else []), *more]
    return _run(command)


def _peer_priced(case: str, seed: int) -> dict[str, Any]:
    """Solve one instance by the peer, and price what it decided."""
    asked = CASES[case]
    with tempfile.TemporaryDirectory() as folder:
        decisions = Path(folder) / "decisions.npz"
        found = _peer(asked, seed, asked.whole, "--decisions", str(decisions))
        if found["cost"] is None:
            return found | {"gap": None, "broken_rows": 0}
        return found | _own("priced", case, seed, decisions, "none" if found["bound"] is None else found["bound"])


def setup_peer() -> bool:
    """Make the peer's environment where it is not there yet; return whether it is there."""
    if PEER_PYTHON.exists():
        return True
    home = PEER_PYTHON.parent.parent
    HOME.mkdir(exist_ok=True)
    same = [f"{name}=={importlib.metadata.version(name)}" for name in ("numpy", "highspy")]
    subprocess.run([sys.executable, "-m", "venv", str(home)], check=True)
    install = [str(PEER_PYTHON), "-m", "pip", "install", "-q", "--disable-pip-version-check", *PEER_PACKAGES, *same]
    if subprocess.run(install).returncode:
        shutil.rmtree(home, ignore_errors=True)
        return False
    return True


# ---- the table ------------------------------------------------------------------------------------------------------
class Table:
    """Figures by (part, case, seed), kept in a file as they come."""

    def __init__(self, file: Path, *, resume: bool) -> None:
        """Begin anew, or with what is there."""
        self.file = file
        self.rows: list[dict[str, Any]] = []
        if resume and file.exists():
            self.rows = json.loads(file.read_text(encoding="utf-8"))

    def get(self, by: str, case: str, seed: int, measure: Any) -> dict[str, Any]:
        """Return a row, measured where it is not there yet."""
        key = {"by": by, "case": case, "seed": seed}
        for row in self.rows:
            if key.items() <= row.items():
                return row
        row = key | measure()
        self.rows.append(row)
        self.file.parent.mkdir(exist_ok=True)
        self.file.write_text(json.dumps(self.rows, indent=1) + "\n", encoding="utf-8")
        return row


def check_same(table: Table, seeds: range) -> None:
    """Show that both write the same model: the same least cost of small instances."""
    for whole in (False, True):
        name = "small, whole racks" if whole else "small"
        for seed in seeds:
            own = table.get("baseload", name, seed, lambda s=seed, w=whole: _own("least", s, int(w)))
            peer = table.get(
                "linopy", name, seed, lambda s=seed, w=whole: _peer(SMALL, s, w, "--flows", "--gap", str(EXACT))
            )
            apart = abs(own["cost"] - peer["cost"]) / abs(own["cost"])
            print(f"{name} seed {seed}: least cost {own['cost']:.6g}, in linopy {peer['cost']:.6g}, apart {apart:.1e}",
                  flush=True)  # fmt: skip
            if apart > SAME:
                sys.exit("the two do not write the same model: nothing below would mean anything")


def measure(table: Table, case: str, seeds: range) -> None:
    """Solve the instances of a case; print each and how the goal stands."""
    asked, rows = CASES[case], []
    for seed in seeds:
        row = table.get("baseload", case, seed, lambda s=seed: _own("ours", case, s))
        rows.append(row)
        print(f"{case} seed {seed}: gap {row['gap']:.2%}, {row['cpu_s']} CPU s, {row['peak_mb']} MB, "
              f"build {row['build_s']} s, broken rows {row['broken_rows']}", flush=True)  # fmt: skip
    gaps = [row["gap"] for row in rows]
    met = statistics.median(gaps) <= asked.median_goal and max(gaps) <= asked.worst_goal
    print(f"{case}: median {statistics.median(gaps):.2%} (goal {asked.median_goal:.1%}), worst {max(gaps):.2%} "
          f"(goal {asked.worst_goal:.1%}), at most {asked.cpu_limit_s:g} CPU s: {'met' if met else 'not met'}",
          flush=True)  # fmt: skip


def ask(table: Table, part: str, seeds: range, *, quick: bool) -> None:
    """Ask what comes after the plan; print each seed and how the goal stands."""
    from bench.plan import questions

    rows, size = [], "quick" if quick else "coarse"
    for seed in seeds:
        row = table.get(part, size, seed, lambda s=seed: _own("question", part, s, int(quick)))
        rows.append(row)
        print(f"{part} seed {seed}: {questions.told(part, row)}", flush=True)
    print(questions.verdict(part, rows), flush=True)


def beside(table: Table, case: str, seeds: range) -> None:
    """Solve instances by the peer, for the same CPU seconds."""
    for seed in seeds:
        row = table.get("linopy", case, seed, lambda s=seed: _peer_priced(case, s))
        gap = "no plan" if row["gap"] is None else f"gap {row['gap']:.2%}"
        bound = "none" if row["bound"] is None else f"{row['bound']:.6g}"
        print(f"{case} seed {seed}, linopy with HiGHS defaults: {gap} after {row['cpu_s']} CPU s, {row['peak_mb']} MB, "
              f"build {row['build_s']} s, bound {bound}, broken rows {row['broken_rows']}", flush=True)  # fmt: skip


def one(words: list[str]) -> dict[str, Any]:
    """Do one piece of work in this process."""
    if words[0] == "ours":
        return ours(words[1], int(words[2]))
    if words[0] == "least":
        return least(int(words[1]), words[2] == "1")
    if words[0] == "question":
        return question(words[1], int(words[2]), quick=words[3] == "1")
    return priced(words[1], int(words[2]), Path(words[3]), None if words[4] == "none" else float(words[4]))


def main() -> None:
    """Run the parts and print goal, measured, met or not."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--first-seed", type=int, default=0)
    parser.add_argument("--parts", default=",".join(PARTS))
    parser.add_argument("--peer-seeds", type=int, default=1)
    parser.add_argument("--json", type=Path)
    parser.add_argument("--resume", action="store_true")
    parser.add_argument("--one", nargs="+")
    given = parser.parse_args()
    if given.one:
        print(json.dumps(one(given.one)))
        return
    parts = given.parts.split(",")
    if unknown := [part for part in parts if part not in PARTS]:
        sys.exit(f"bench-plan: no part is called {', '.join(unknown)}; there are {', '.join(PARTS)}")
    file = given.json or HOME / ("plan-quick.json" if given.quick else "plan.json")
    table = Table(file, resume=given.resume)
    first = given.first_seed
    cases = [part for part in parts if part in CASES]
    if given.quick and (cases or "peer" in parts):
        cases = ["quick"]
    has_peer = bool({"check", "peer"} & set(parts)) and setup_peer()
    if "check" in parts and has_peer:
        check_same(table, range(first, first + (1 if given.quick else 3)))
    for case in cases:
        measure(table, case, range(first, first + (2 if given.quick else given.seeds)))
    for part in (part for part in QUESTIONS if part in parts):
        ask(table, part, range(first, first + (1 if given.quick else given.seeds)), quick=given.quick)
    if not cases:
        cases = ["large", "mid", "coarse"]
    for case in cases if "peer" in parts and has_peer else []:
        beside(table, case, range(first, first + (1 if given.quick else given.peer_seeds)))
    if {"check", "peer"} & set(parts) and not has_peer:
        print("linopy: not run (its environment could not be made)")
    print(f"figures: {file}")


if __name__ == "__main__":
    main()
