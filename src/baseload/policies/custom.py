"""An operator's own route rule: a file and function named in the fleet file, compiled by the same rule as ours.

`install` must run before the twin's kernel is first imported: the kernel is compiled once a process with the rule in
this slot. Loaded at start only, never by a reload; the file's digest may be pinned in the fleet file (`policy.digest`).
"""

from __future__ import annotations

import hashlib
import importlib.util
import sys
from pathlib import Path
from typing import Any

from baseload import jit
from baseload.errors import PolicyError
from baseload.policies import route as _route

route: Any = _route.least_outstanding  # the slot; the built-in stands in until a rule is installed


def install(spec: str, base_folder: Path, digests: dict[str, str]) -> None:
    """Load `file.py:function` (relative to the fleet file) into the slot.

    Raises PolicyError when the file or function is missing, the digest differs, or the kernel is already compiled.
    """
    global route
    name, _, function = spec.partition(":")
    path = base_folder / name
    if not function or not function.isidentifier():
        raise PolicyError(f"policy.route: {spec}: name a file and a function as my_rule.py:my_function")
    try:
        source = path.read_bytes()
    except OSError as error:
        raise PolicyError(f"policy.route: {path}: {error.strerror}; name a readable file") from error
    digest = hashlib.sha256(source).hexdigest()
    pinned = digests.get(name)
    if pinned is not None and pinned != digest:
        raise PolicyError(
            f"policy.digest.{name}: the file's SHA-256 is {digest}, not {pinned}; check the file, then renew the digest"
        )
    if "baseload.simulate.kernel" in sys.modules and jit.EXTRA_SOURCES.get(name) != digest:
        raise PolicyError(f"policy.route: {spec}: another rule is already compiled; start a new process for it")
    jit.EXTRA_SOURCES[name] = digest
    module_spec = importlib.util.spec_from_file_location(f"baseload_policy_{digest[:12]}", path)
    assert module_spec is not None and module_spec.loader is not None
    module = importlib.util.module_from_spec(module_spec)
    try:
        module_spec.loader.exec_module(module)
    except Exception as error:
        raise PolicyError(f"policy.route: {path}: {type(error).__name__}: {error}; mend the file") from error
    rule = getattr(module, function, None)
    if not callable(rule):
        raise PolicyError(f"policy.route: {path} has no function {function}; name one that it has")
    jit.enable()
    route = rule if hasattr(rule, "py_func") else jit.kernel_uncached(rule)
