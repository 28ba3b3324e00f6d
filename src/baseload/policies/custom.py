"""An operator's own rules: a file and function named in the fleet file, compiled by the same rule as ours.

`install` must run after `jit.enable()` and before the twin's kernel is first imported: the kernel is compiled once a
process, with the rules in these slots. Loaded at start only, never by a reload; the file's digest may be pinned in the
fleet file (`policy.digest`).
"""

from __future__ import annotations

import hashlib
import importlib.util
import sys
from importlib.machinery import SourceFileLoader
from pathlib import Path
from typing import Any

from baseload import jit
from baseload.errors import PolicyError
from baseload.policies import admit as _admit
from baseload.policies import cap as _cap
from baseload.policies import route as _route
from baseload.policies import scale as _scale
from baseload.policies.view import Ask, Columns, Tunables

# The slots; a built-in stands in until a rule is installed.
route: Any = _route.least_outstanding
admit: Any = _admit.always
scale: Any = _scale.fixed
cap: Any = _cap.none

# What a rule of each kind has to answer, in words.
ANSWERS = {
    "route": "a replica's number, or NO_REPLICA, always",
    "admit": "0 to take the request, or a reason's number from records.py, always",
    "scale": "a number of replicas, always",
    "cap": "(share of the power above idle, largest priority number still taken), always",
}


def install(spec: str, base_folder: Path, digests: dict[str, str], kind: str = "route") -> None:
    """Load `file.py:function` (relative to the fleet file) into the slot of its kind: route, admit, scale or cap.

    Raises PolicyError when the file or function is missing, the digest differs, or the kernel is already compiled.
    """
    name, _, function = spec.partition(":")
    path = base_folder / name
    if not function or not function.isidentifier():
        raise PolicyError(f"policy.{kind}: {spec}: name a file and a function as my_rule.py:my_function")
    try:
        source = path.read_bytes()
    except OSError as error:
        raise PolicyError(f"policy.{kind}: {path}: {error.strerror}; name a readable file") from error
    digest = hashlib.sha256(source).hexdigest()
    pinned = digests.get(name)
    if pinned is not None and pinned != digest:
        raise PolicyError(
            f"policy.digest.{name}: the file's SHA-256 is {digest}, not {pinned}; check the file, then renew the digest"
        )
    if "baseload.simulate.kernel" in sys.modules and jit.EXTRA_SOURCES.get(f"{kind}:{spec}") != digest:
        raise PolicyError(f"policy.{kind}: {spec}: another rule is already compiled; start a new process for it")
    module_name = f"baseload_policy_{digest[:12]}"
    loader = _TheseBytes(module_name, path, source)
    module_spec = importlib.util.spec_from_file_location(module_name, path, loader=loader)
    assert module_spec is not None and module_spec.loader is not None
    module = importlib.util.module_from_spec(module_spec)
    sys.modules[module_spec.name] = module  # the kernel's cache asks for it by name
    try:
        module_spec.loader.exec_module(module)
    except Exception as error:
        raise PolicyError(f"policy.{kind}: {path}: {type(error).__name__}: {error}; mend the file") from error
    rule = getattr(module, function, None)
    if not callable(rule):
        raise PolicyError(f"policy.{kind}: {path} has no function {function}; name one that it has")
    compiled = rule if hasattr(rule, "py_func") else jit.kernel_uncached(rule)
    if jit.compiled():
        _compile(compiled, spec, kind)
    jit.EXTRA_SOURCES[f"{kind}:{spec}"] = digest
    if jit.compiled():
        jit.use_cache_folder()  # the kernel that holds this rule is cached apart
    globals()[kind] = compiled


class _TheseBytes(SourceFileLoader):
    """Runs the very bytes whose digest was taken: neither a file changed since, nor compiled code left beside it."""

    def __init__(self, name: str, path: Path, source: bytes) -> None:
        super().__init__(name, str(path))
        self.source = source

    def get_code(self, fullname: str) -> Any:
        """Return the code of the bytes."""
        return self.source_to_code(self.source, self.path)


def _compile(rule: Any, spec: str, kind: str) -> None:
    """Compile the rule now, for the very types that the kernel will hand it, so that what is wrong is said at start."""
    import numpy as np

    whole, real = np.zeros(1, np.int64), np.zeros(1)
    columns = Columns(whole, real, real, real, whole, real, whole, whole, real, real, real)
    ask = Ask(1, 1.0, 1, 1, 1.0, 1.0, 1, 1.0, 1.0, 1, 0.5)
    tunables = Tunables(1.5, 1.0, 0.6, 300.0)
    seen: dict[str, tuple[Any, ...]] = {
        "route": (ask, columns, np.zeros(1, np.uint8), tunables),
        "admit": (ask, columns, 0, tunables),
        "scale": (1, 1, 1, 1, 1, tunables),
        "cap": (1.0, 1.0, 1.0, 9),
    }
    try:
        is_whole, answer = jit.compile_for(rule, seen[kind])
    except Exception as error:  # numba's own family, and what its compiler lets through
        lines = [line.strip() for line in str(error).splitlines() if line.strip()]
        told = [line for line in lines if not line.startswith(("Failed in", "During:", "[1m"))]
        raise PolicyError(
            f"policy.{kind}: {spec} does not compile: {' '.join(told[:4])[:500]}; "
            "use numbers, the given columns and plain loops, and make no arrays (see the built-in rules)"
        ) from error
    right = answer in ("Tuple(float64, int64)", "Tuple(float64, Literal[int](9))") if kind == "cap" else is_whole
    if not right:
        raise PolicyError(f"policy.{kind}: {spec} answers with {answer}; return {ANSWERS[kind]}")
