"""The rules that a fleet file names, as functions: plain Python for a worker with few replicas, compiled for one with many.

Both come from the same files under `policies/`. In a process without numba they are plain as they stand; where numba is
loaded (a compiled worker, a test of both) the other form is made from the same file once more. A process calls `prepare`
first: it puts an operator's own rules in their slots, and loads the compiler where the fleet is large.
"""

from __future__ import annotations

import importlib.util
import os
from collections.abc import Callable, Mapping
from functools import cache
from pathlib import Path
from types import ModuleType
from typing import Any, NamedTuple

from baseload import jit, policies
from baseload.policies import admit, cap, custom, route, scale
from baseload.serve.tables import PolicyRow, Tables

PLAIN_REPLICAS = 64  # up to so many a worker decides on lists, without NumPy and numba
Rule = Callable[..., Any]


class Rules(NamedTuple):
    """One rule of each kind."""

    route: Rule
    admit: Rule
    scale: Rule
    cap: Rule


def prepare(tables: Tables, base_folder: Path, digests: Mapping[str, str] | None = None) -> None:
    """Load what this fleet's rules need, once at the start of a process: the compiler, an operator's own files.

    `base_folder` is the fleet file's; `digests` its `policy.digest`. Raises PolicyError, which says what is wrong.
    """
    if len(tables.replicas) > PLAIN_REPLICAS:
        jit.enable()
    for kind in Rules._fields:
        name = getattr(tables.policy, kind)
        if name not in policies.KINDS[kind]:
            custom.install(name, base_folder, dict(digests or {}), kind)


def chosen(policy: PolicyRow, *, compiled: bool = False) -> Rules:
    """Return the policy's rules in the wanted form; loads numba where `compiled`."""
    if compiled:
        jit.enable()
    modules = _modules(compiled)
    found: list[Rule] = []
    for kind, module in zip(Rules._fields, modules, strict=True):
        name = getattr(policy, kind)
        if name in policies.KINDS[kind]:
            found.append(getattr(module, name))
        else:
            assert f"{kind}:{name}" in jit.EXTRA_SOURCES, f"policy.{kind}: {name} was not loaded; call prepare() first"
            own: Rule = getattr(custom, kind)
            found.append(own if compiled else getattr(own, "py_func", own))
    return Rules(*found)


@cache
def _modules(compiled: bool) -> tuple[ModuleType, ...]:
    """Return the modules of rules in plain or compiled form."""
    as_they_are = (route, admit, scale, cap)
    if hasattr(route.least_outstanding, "py_func") == (compiled and jit.compiled()):
        return as_they_are
    usual = os.environ.get("BASELOAD_JIT")
    if not compiled:
        os.environ["BASELOAD_JIT"] = "0"
    try:
        copies = tuple(_copy(module, compiled) for module in as_they_are)
    finally:
        if not compiled:
            if usual is None:
                del os.environ["BASELOAD_JIT"]
            else:
                os.environ["BASELOAD_JIT"] = usual
    copies[1].expected_ttft_s = copies[0].expected_ttft_s  # type: ignore[attr-defined]  # admit asks route's own
    return copies


def _copy(module: ModuleType, compiled: bool) -> ModuleType:
    form = "compiled" if compiled else "plain"
    assert module.__file__ is not None
    name = f"baseload_{form}_{module.__name__.rsplit('.', 1)[1]}"
    spec = importlib.util.spec_from_file_location(name, module.__file__)
    assert spec is not None and spec.loader is not None
    copy = importlib.util.module_from_spec(spec)
    if compiled:
        import sys

        sys.modules[name] = copy  # the compiler's cache asks for it by name
    spec.loader.exec_module(copy)
    return copy
