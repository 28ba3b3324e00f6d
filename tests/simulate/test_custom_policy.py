"""An operator's own route rule: compiled into the twin by the same rule as ours, or refused with a sentence."""

from __future__ import annotations

import hashlib
import os
import subprocess
import sys
from pathlib import Path

import pytest

RULE = '''
def fewest(ask, columns, allowed, tunables):
    """Least outstanding, written by an operator."""
    best = -1
    for i in range(len(allowed)):
        if allowed[i] and (best < 0 or columns.outstanding[i] < columns.outstanding[best]):
            best = i
    return best

def first(ask, columns, allowed, tunables):
    for i in range(len(allowed)):
        if allowed[i]:
            return i
    return -1

def few(ask, columns):
    return 1

def none(ask, columns, allowed, tunables):
    for i in range(len(allowed)):
        if allowed[i]:
            return i

def text(ask, columns, allowed, tunables):
    return "replica" + str(ask.price)

def truth(ask, columns, allowed, tunables):
    return ask.output_tokens

def makes_a_list(ask, columns, allowed, tunables):
    return [i for i in range(len(allowed)) if allowed[i]][0]

number = 3
'''

KINDS_RULE = """
def take(ask, columns, replica, tunables):
    # within_slo, written by an operator
    excess = columns.outstanding[replica] + 1 - columns.slots[replica]
    slot_s = 0.0
    if excess > 0:
        slot_s = excess * ask.predicted_output_tokens * columns.decode_s_per_token[replica] / columns.slots[replica]
    own_s = ask.input_tokens / columns.prefill_tokens_per_s[replica]
    ttft_s = columns.rtt_s[replica] + slot_s + own_s * (1.0 + columns.waiting[replica]) + columns.decode_s_per_token[replica]
    return 2 if ttft_s > tunables.admit_factor * ask.ttft_slo_s else 0

def size(n_on, outstanding, slots, n_min, n_max, tunables):
    wanted = outstanding / (slots * tunables.target_utilisation)
    n = int(wanted)
    if n < wanted:
        n += 1
    return min(max(n, n_min), n_max)

def close(power_kw, idle_kw, limit_kw, lowest_open):
    if power_kw > limit_kw:
        return 1.0, max(-1, lowest_open - 1)
    if power_kw < 0.9 * limit_kw:
        return 1.0, min(9, lowest_open + 1)
    return 1.0, lowest_open

def wrong(power_kw, idle_kw, limit_kw, lowest_open):
    return 1.0
"""

EQUAL = """
import sys
from dataclasses import replace
from pathlib import Path
from baseload import jit
jit.enable()
from baseload.errors import PolicyError
from baseload.policies import custom
folder = Path(sys.argv[1])
custom.install("rule.py:fewest", folder, {"rule.py": sys.argv[2]})
custom.install("rule.py:fewest", folder, {})  # the same again is no mistake
for kind, rule in (("admit", "take"), ("scale", "size"), ("cap", "close")):
    custom.install("kinds.py:" + rule, folder, {}, kind)
try:
    custom.install("kinds.py:wrong", folder, {}, "cap")
except PolicyError as error:
    assert "policy.cap: kinds.py:wrong answers with float64" in str(error), error
    print("a wrong type is refused")
from tests.simulate import specs
for seed in range(3):
    spec, chunk = specs.random_system(specs.Switches(seed=seed, n_requests=80, two_sites=True, network=True, failures=True))
    ours, _ = specs.simulate(replace(spec, route=1), chunk)
    theirs, _ = specs.simulate(replace(spec, route=6), chunk)
    assert len(ours) == 80 and (ours["replica_i"] >= 0).any()
    assert ours.tobytes() == theirs.tobytes()
print("routes are equal")
seen = 0
for seed in range(4):
    switches = specs.Switches(seed=seed, n_requests=150, two_sites=True, network=True, scaling=True, cap=2)
    spec, chunk = specs.random_system(switches)
    spec = replace(spec, scrapes=True, slo=spec.slo * 0.1)
    ours, _ = specs.simulate(replace(spec, admit=1, scale=1, cap=2), chunk)
    theirs, _ = specs.simulate(replace(spec, admit=4, scale=2, cap=4), chunk)
    assert ours.tobytes() == theirs.tobytes()
    seen += int((ours["status"] == 1).sum())
assert seen > 0
print("the other kinds are equal")
(folder / "other.py").write_text("def rule(ask, columns, allowed, tunables):\\n    return 0\\n")
try:
    custom.install("other.py:rule", folder, {})
except PolicyError as error:
    assert "new process" in str(error), error
    print("a second rule is refused")
"""

FOLDERS = """
import sys
from pathlib import Path
from baseload import jit
jit.enable()
from baseload.policies import custom
folders = [jit.cache_folder()]
for function in ("fewest", "first"):
    jit.EXTRA_SOURCES.clear()
    custom.install(f"rule.py:{function}", Path(sys.argv[1]), {})
    folders.append(jit.cache_folder())
print(len(set(folders)))
"""

WRONG = """
import sys
from pathlib import Path
from baseload import jit
jit.enable()
from baseload.errors import PolicyError
from baseload.policies import custom
for spec in sys.argv[2:]:
    try:
        custom.install(spec, Path(sys.argv[1]), {"pinned.py": "0" * 64})
        print("installed")
    except PolicyError as error:
        print(str(error).replace("\\n", " "))
"""

STALE = """
import os, py_compile, sys
from pathlib import Path
os.environ["BASELOAD_JIT"] = "0"
from baseload.policies import custom
rule = Path(sys.argv[1], "stale.py")
text = "def rule(ask, columns, allowed, tunables):\\n    return %d\\n"
rule.write_text(text % 7)
py_compile.compile(str(rule))
then = rule.stat().st_mtime_ns
rule.write_text(text % 3)
os.utime(rule, ns=(then, then))
custom.install("stale.py:rule", rule.parent, {})
print(custom.route(None, None, None, None))
"""


def run(script: str, *args: str) -> str:
    """Run a script in a fresh process, because a rule is installed once a process; return what it prints."""
    root = Path(__file__).parents[2]
    environment = os.environ | {"PYTHONPATH": f"{root / 'src'}{os.pathsep}{root}"}
    done = subprocess.run(
        [sys.executable, "-c", script, *args], env=environment, capture_output=True, text=True, timeout=600, check=False
    )
    assert done.returncode == 0, done.stderr[-2000:]
    return done.stdout


@pytest.fixture(scope="module")
def rules(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    """A folder with an operator's rules, and the digest of the route rule's file."""
    folder = tmp_path_factory.mktemp("rules")
    (folder / "rule.py").write_text(RULE)
    (folder / "kinds.py").write_text(KINDS_RULE)
    return folder, hashlib.sha256(RULE.encode()).hexdigest()


@pytest.fixture(scope="module")
def told(rules: tuple[Path, str]) -> list[str]:
    """What a process says that compiles all four rules, once, and runs them beside the built-in ones."""
    return run(EQUAL, str(rules[0]), rules[1]).splitlines()


@pytest.mark.slow
def test_the_operators_rule_runs_as_the_built_in_one_does(rules: tuple[Path, str], told: list[str]) -> None:
    """The same rule from a file, its digest pinned, gives the very bytes of the built-in one; a second rule is refused."""
    assert {"routes are equal", "a second rule is refused"} <= set(told)
    assert run(EQUAL, str(rules[0]), rules[1]).splitlines() == told  # from the cache now
    assert run(FOLDERS, str(rules[0])) == "3\n"


@pytest.mark.slow
def test_own_rules_for_admission_scaling_and_power_caps_equal_the_built_in_ones(told: list[str]) -> None:
    """The built-in rules written again by an operator decide every request alike; a wrong answer's type is refused."""
    assert {"the other kinds are equal", "a wrong type is refused"} <= set(told)


def test_what_is_wrong_with_a_rule_is_said_in_a_sentence(tmp_path: Path) -> None:
    """A missing file or function, a wrong digest, an error in the file, and what does not compile are PolicyErrors."""
    (tmp_path / "rule.py").write_text(RULE)
    (tmp_path / "pinned.py").write_text(RULE)
    (tmp_path / "broken.py").write_text("def rule(:\n")
    (tmp_path / "raises.py").write_text("raise ValueError('out of cheese')\n")
    wrong = {
        "rule.py": "name a file and a function",
        "gone.py:rule": "No such file",
        "rule.py:nobody": "no function nobody",
        "rule.py:number": "no function number",
        "pinned.py:fewest": "renew the digest",
        "broken.py:rule": "SyntaxError",
        "raises.py:rule": "out of cheese",
        "rule.py:few": "takes 2 arguments",
        "rule.py:none": "return a replica's number",
        "rule.py:text": "does not compile",
        "rule.py:truth": "output_tokens",
        "rule.py:makes_a_list": "make no arrays",
    }
    told = run(WRONG, str(tmp_path), *wrong).splitlines()
    assert len(told) == len(wrong)
    for line, (spec, words) in zip(told, wrong.items(), strict=True):
        assert line.startswith("policy.") and words in line, (spec, line)


def test_the_file_that_the_digest_is_of_is_the_one_that_runs(tmp_path: Path) -> None:
    """Compiled code that lies beside a rule's file, of the same age and size, does not stand in for it."""
    assert run(STALE, str(tmp_path)) == "3\n"
