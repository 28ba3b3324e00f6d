"""The rules as a small gateway runs them: the very same files, loaded once more without the compiler."""

from __future__ import annotations

import importlib.util
import os
from types import ModuleType

from baseload.policies import admit as _admit
from baseload.policies import cap as _cap
from baseload.policies import route as _route
from baseload.policies import scale as _scale


def _load(module: ModuleType) -> ModuleType:
    """Return a second copy of a module, its functions left plain."""
    assert module.__file__ is not None
    spec = importlib.util.spec_from_file_location(f"plain_{module.__name__.rsplit('.', 1)[1]}", module.__file__)
    assert spec is not None and spec.loader is not None
    copy = importlib.util.module_from_spec(spec)
    usual = os.environ.get("BASELOAD_JIT")
    os.environ["BASELOAD_JIT"] = "0"
    try:
        spec.loader.exec_module(copy)
    finally:
        if usual is None:
            del os.environ["BASELOAD_JIT"]
        else:
            os.environ["BASELOAD_JIT"] = usual
    return copy


route, admit, cap, scale = _load(_route), _load(_admit), _load(_cap), _load(_scale)
admit.expected_ttft_s = route.expected_ttft_s  # type: ignore[attr-defined]
