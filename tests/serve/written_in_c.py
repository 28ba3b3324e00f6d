"""What stands in C beside its Python, built for a test with every check that the compiler can put in."""

from __future__ import annotations

import sysconfig
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path
from types import ModuleType

import pytest

from baseload import native
from baseload.app.native_build import compile_c
from baseload.errors import InputError

CHECKS = ("-O1", "-g", "-fsanitize=undefined", "-fno-sanitize-recover=all", "-Wall", "-Wextra", "-Wno-unused-parameter")


def library_of(name: str, folder: Path) -> Path:
    """Return where the library of a file goes."""
    return folder / f"{name}_c{sysconfig.get_config_var('EXT_SUFFIX')}"


def source_of(name: str) -> Path:
    """Return a file in C of the package."""
    (file,) = (file for file in native.WRITTEN.values() if Path(file).stem == name)
    return native.PACKAGE / file


def built(name: str, folder: Path) -> ModuleType:
    """Return the module; skips the test where there is no compiler."""
    library = library_of(name, folder)
    try:
        compile_c(source_of(name), library, [*CHECKS, "-Werror"])
    except InputError as error:
        pytest.skip(f"no C compiler here: {error}")
    spec = spec_from_file_location(f"{name}_c", library)
    assert spec is not None and spec.loader is not None
    module = module_from_spec(spec)
    spec.loader.exec_module(module)
    return module
