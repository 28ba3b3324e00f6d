"""The only file that knows numba: `@kernel` marks a plain function that the twin compiles and the gateway may not.

While numba is not loaded, or with BASELOAD_JIT=0, `@kernel` returns the plain Python function, so that a gateway worker
or `--help` pays for nothing. `enable()` loads numba; call it before the modules with kernels are first imported.

Numba's on-disk cache does not see edits in a *callee's* file, so the folder's name carries a hash of the sources of all
compiled rooms: an edit anywhere in them starts a fresh folder, and an unchanged tree starts warm.
"""

from __future__ import annotations

import gc
import hashlib
import os
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, TypeVar

F = TypeVar("F", bound=Callable[..., Any])

COMPILED_ROOMS = ("policies", "simulate", "jit.py", "records.py", "units.py")
EXTRA_SOURCES: dict[str, str] = {}
"""Digests of an operator's own policy files, by name: compiled into the kernel, so the cache must know them."""


# Kernels allocate nothing: without numba's reference counts (an atomic operation at each touch of an array) they run
# about twice as fast and compile faster. No fastmath, so that compiled and plain form agree bit for bit.
OPTIONS: dict[str, Any] = {"nogil": True, "error_model": "numpy", "_nrt": False, "no_cfunc_wrapper": True}


def sources_digest() -> str:
    """Return a hash over the sources that are compiled, and the versions that compile them."""
    root = Path(__file__).parent
    digest = hashlib.sha256()
    digest.update(sys.version.encode())
    for room in COMPILED_ROOMS:
        path = root / room
        files = sorted(path.rglob("*.py")) if path.is_dir() else [path]
        for file in files:
            digest.update(file.name.encode())
            digest.update(file.read_bytes())
    for name, file_digest in sorted(EXTRA_SOURCES.items()):
        digest.update(f"{name}={file_digest}".encode())
    return digest.hexdigest()[:16]


def cache_folder() -> Path:
    """Return where compiled code is kept between runs; it may be deleted at any time."""
    base = os.environ.get("BASELOAD_CACHE") or os.environ.get("XDG_CACHE_HOME") or str(Path.home() / ".cache")
    return Path(base) / "baseload" / "jit" / sources_digest()


def enable() -> bool:
    """Load numba, with its cache in our folder; return whether kernels are compiled from here on."""
    if os.environ.get("BASELOAD_JIT") == "0":
        return False
    os.environ.setdefault("NUMBA_NUM_THREADS", "1")
    # Numba may have been imported by somebody before; and a child inherits the folder's name, but not numba.
    if "numba" not in sys.modules or os.environ.get("NUMBA_CACHE_DIR") != str(cache_folder()):
        use_cache_folder()
    return True


def use_cache_folder() -> None:
    """Point numba's cache at the folder of the sources as they are now; call it again when EXTRA_SOURCES grows."""
    folder = cache_folder()
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError:
        os.environ["BASELOAD_JIT_NO_CACHE"] = "1"  # read-only home: compile in memory
        return
    # Set, not left as found: a folder inherited from another process may belong to other sources.
    os.environ["NUMBA_CACHE_DIR"] = str(folder)
    import numba

    numba.config.CACHE_DIR = str(folder)


def is_warm() -> bool:
    """Say whether compiled code of these very sources lies in the cache, as far as can be told by looking."""
    try:
        return any(cache_folder().rglob("kernel.advance-*.nbc"))
    except OSError:
        return False


def compiled() -> bool:
    """Say whether `@kernel` compiles in this process."""
    return "numba" in sys.modules and os.environ.get("BASELOAD_JIT") != "0"


def kernel(function: F) -> F:
    """Mark `function` as compilable: compiled when numba is loaded, the plain function otherwise.

    No fastmath, so that both forms agree bit for bit.
    """
    if not compiled():
        return function
    import numba

    cache = "BASELOAD_JIT_NO_CACHE" not in os.environ
    wrapped: F = numba.njit(cache=cache, **OPTIONS)(function)
    _without_gc(wrapped)
    _in_one_form(wrapped)
    return wrapped


def part(function: F) -> F:
    """Like `kernel`, callable from kernels alone: without the entry from Python, which costs compile time."""
    if not compiled():
        return function
    import numba

    cache = "BASELOAD_JIT_NO_CACHE" not in os.environ
    wrapped: F = numba.njit(cache=cache, no_cpython_wrapper=True, **OPTIONS)(function)
    _in_one_form(wrapped)
    return wrapped


def _in_one_form(dispatcher: Any) -> None:
    """Let compiled callers hand over whole numbers as int64, whatever width or constant they hold.

    Left alone, numba compiles a function anew for each width and for each constant it is called with: the twin's parts
    three times over. LLVM still sees the constants where it inlines.
    """
    from numba import types

    template_for = dispatcher.get_call_template

    def wide(kind: Any) -> Any:
        kind = types.unliteral(kind)
        return types.int64 if isinstance(kind, types.Integer) else kind

    def get_call_template(args: Sequence[Any], kws: dict[str, Any]) -> Any:
        return template_for(tuple(wide(kind) for kind in args), {name: wide(kind) for name, kind in kws.items()})

    dispatcher.get_call_template = get_call_template


def _without_gc(dispatcher: Any) -> None:
    """Compile without looking for garbage meanwhile: a tenth of the time, for nothing found."""
    compile_now = dispatcher.compile

    def compile_quietly(signature: Any) -> Any:
        was_on = gc.isenabled()
        gc.disable()
        try:
            return compile_now(signature)
        finally:
            if was_on:
                gc.enable()

    dispatcher.compile = compile_quietly


def kernel_uncached(function: F) -> F:
    """Compile a function from outside the package; it is cached only as a part of the kernel that calls it."""
    if not compiled():
        return function
    import numba

    wrapped: F = numba.njit(**OPTIONS)(function)
    return wrapped


def compile_for(function: Any, arguments: Sequence[Any]) -> tuple[bool, str]:
    """Compile `function` for the types of these values; return whether its answer is a whole number, and its type in words.

    Raises what the compiler raises.
    """
    import numba

    function.compile(tuple(numba.typeof(value) for value in arguments))
    answer = function.overloads[next(iter(function.overloads))].signature.return_type
    return isinstance(answer, numba.types.Integer), str(answer)


def inlined(function: F) -> F:
    """Like `kernel`, inlined where it is called: for hot functions with many arrays and one call site."""
    if not compiled():
        return function
    import numba

    wrapped: F = numba.njit(inline="always", **OPTIONS)(function)
    return wrapped
