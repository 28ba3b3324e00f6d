"""`make native`: compile the data plane's modules with mypyc into `src/baseload/_native`, where a worker finds them.

Needs mypy (it brings mypyc) and a C compiler; takes one to two minutes of one core. What is there already and fits the
sources is left alone. Nothing is replaced before all of it is built; the manifest is written last (`native.py` reads it).
"""

from __future__ import annotations

import argparse
import json
import os
import shlex
import shutil
import subprocess
import sys
import sysconfig
import tempfile
import time
from pathlib import Path

from baseload import native
from baseload.errors import InputError

GROUP = "__mypyc"  # the end of the name of the one library that holds all the code


def main(arguments: list[str]) -> int:
    """Build; return the exit code."""
    parser = argparse.ArgumentParser(prog="make native", description=__doc__)
    parser.add_argument("--folder", type=Path, default=native.FOLDER, help="where the libraries go")
    parser.add_argument("--opt", default="3", choices=("0", "1", "2", "3"), help="the compiler's -O")
    options = parser.parse_args(arguments)
    try:
        print(build(options.folder, options.opt))
    except InputError as error:
        print(f"baseload: {error}", file=sys.stderr)
        return 2
    return 0


def build(folder: Path, opt: str = "3") -> str:
    """Compile what has changed into `folder`; return a line that says what was done. Raises InputError."""
    told = native.sources()
    manifest = folder / "manifest.json"
    if manifest.exists() and _fits(manifest, told):
        return f"{folder}: fits the sources already"
    began_s = time.monotonic()
    with tempfile.TemporaryDirectory(prefix="baseload-native-") as made:
        libraries = _compile(Path(made), opt)
        for module, file in native.WRITTEN.items():
            libraries[module] = Path(made, f"{module}.so")
            compile_c(native.PACKAGE / file, libraries[module], [f"-O{opt}"])
        if native.sources() != told:
            raise InputError("a source changed while it was being compiled; run `make native` again")
        fresh = folder.with_name(f"{folder.name}.fresh-{os.getpid()}")
        shutil.rmtree(fresh, ignore_errors=True)
        fresh.mkdir(parents=True)
        listed = {}
        for module, library in libraries.items():
            file = f"{module}.so"
            shutil.copyfile(library, fresh / file)
            listed[module] = [file, native.digest(fresh / file)]
        content = {"python": native.PYTHON, "sources": told, "libraries": listed}
        (fresh / "manifest.json").write_text(json.dumps(content, indent=1) + "\n")
    shutil.rmtree(folder, ignore_errors=True)  # a worker that has them mapped keeps them
    fresh.rename(folder)
    n_bytes = sum(file.stat().st_size for file in folder.iterdir())
    took_s = time.monotonic() - began_s
    n_modules = len(native.MODULES) + len(native.WRITTEN)
    return f"{folder}: {n_modules} modules, {n_bytes / 1e6:.1f} MB, in {took_s:.0f} s"


def _fits(manifest: Path, told: dict[str, str]) -> bool:
    try:
        found = json.loads(manifest.read_bytes())
        return bool(
            found["sources"] == told
            and found["python"] == native.PYTHON
            and all(native.digest(manifest.parent / file) == was for file, was in found["libraries"].values())
        )
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return False


def compile_c(source: Path, library: Path, options: list[str]) -> None:
    """Compile one file of C into a module for this Python; raises InputError."""
    compiler = shlex.split(os.environ.get("CC") or sysconfig.get_config_var("CC") or "cc")
    if shutil.which(compiler[0]) is None:
        compiler = ["cc"]
    command = [*compiler, "-std=gnu11", "-fPIC", "-shared", f"-I{sysconfig.get_path('include')}", *options]
    try:
        done = subprocess.run([*command, str(source), "-o", str(library)], capture_output=True, text=True, check=False)
    except OSError as error:
        raise InputError(f"there is no C compiler ({error.filename}); apt install gcc") from None
    if done.returncode:
        raise InputError(f"{source.name} could not be compiled:\n{done.stderr.strip()[-2000:]}")


def _compile(made: Path, opt: str) -> dict[str, Path]:
    """Run mypyc on a copy of the package; return the library of each module."""
    shutil.copytree(
        native.PACKAGE, made / "baseload", ignore=shutil.ignore_patterns("_native*", "__pycache__", "*.so", "data")
    )
    files = [str(native.source(module).relative_to(native.PACKAGE.parent)) for module in native.MODULES]
    environment = {
        **os.environ,
        "PYTHONPATH": str(made),
        "MYPYPATH": str(made),
        "MYPYC_OPT_LEVEL": opt,
        "MYPYC_DEBUG_LEVEL": "0",
    }
    environment["CFLAGS"] = "-fno-plt -fno-semantic-interposition -g0"
    done = subprocess.run(
        [sys.executable, "-m", "mypyc", "--config-file=", "--ignore-missing-imports", *files],
        cwd=made, env=environment, capture_output=True, text=True, check=False,
    )  # fmt: skip
    if done.returncode:
        said = "\n".join((done.stderr + done.stdout).strip().splitlines()[-12:])
        raise InputError(
            f"mypyc could not compile the data plane; it needs mypy and a C compiler (apt install gcc):\n{said}"
        )
    suffix = f".{native.PYTHON}.so"
    group = [path for path in made.glob(f"*{suffix}") if path.name.removesuffix(suffix).endswith(GROUP)]
    found = {path.name.removesuffix(suffix): path for path in group}
    for module in native.MODULES:
        library = made.joinpath(*module.split(".")).with_name(module.rpartition(".")[2] + suffix)
        if not library.exists():
            raise InputError(f"mypyc left no library for {module}")
        found[module] = library
    return found


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
