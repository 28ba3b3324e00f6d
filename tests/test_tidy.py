"""House rules a machine can hold, read from the sources with `ast`; the rest is in docs/architecture.md.

A rule that has to bend says where and why in one of the tables below. Nothing here runs our code.
"""

from __future__ import annotations

import ast
import re
import subprocess
import tomllib
from collections.abc import Iterator
from functools import cache
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
SRC = ROOT / "src" / "baseload"

SHELF = ("units", "records", "ports", "errors", "jit")
ROOMS = ("fleet", "formulas", "policies", "simulate", "report", "adapters", "app", "plan", "serve")
MODULE_LINES_MAX = 500
BODY_LINES_MAX = 70
FILE_BYTES_MAX = 10_000_000

# file under src/baseload: (lines allowed, why)
LONG_MODULES = {
    "ports.py": (525, "what crosses between rooms stands in one place"),
    "simulate/kernel.py": (900, "one event loop: its state and its steps are read together, and compile together"),
    "serve/relay.py": (605, "one state machine of callbacks: every way a request may end is read together"),
    "serve/client.py": (585, "one connection: its parser's callbacks and its answers share every field"),
    "serve/purse.py": (510, "one worker's money: whatever moves it is read together"),
    "serve/door.py": (510, "one decision, and the state it is made from"),
    "simulate/engine.py": (650, "one replica's scheduler, inlined into the kernel: admission, steps, preemption"),
}
# file::function: (lines allowed, why)
LONG_FUNCTIONS = {
    "plan/generate.py::instance": (210, "one draw after another from one stream: their order is the seed's meaning"),
    "plan/transport.py::cheapest_flows": (150, "one compiled loop: augmenting paths share every array"),
    "simulate/engine.py::plan": (
        150,
        "one scheduler step as vLLM V1 takes it; split, it would pass a dozen locals around",
    ),
    "simulate/kernel.py::advance": (110, "the event loop: one branch a kind of event"),
    "simulate/world.py::build": (100, "one statement a table of the world"),
}

FORBIDDEN_MODULES = {"pickle", "marshal", "shelve", "dill", "cloudpickle", "yaml", "scipy", "pandas"}
FORBIDDEN_CALLS = {"eval", "exec", "compile", "__import__", "breakpoint", "input"}
# Pure rooms are told the time and the dice, and touch no file, socket or log.
PURE_ROOMS_FORBIDDEN = {"time", "random", "os", "socket", "asyncio", "logging", "subprocess", "threading"}
SEEDED = {"default_rng", "Generator", "PCG64", "PCG64DXSM", "Philox", "SeedSequence", "BitGenerator"}

TEXT_SUFFIXES = {
    ".py",
    ".md",
    ".toml",
    ".yaml",
    ".yml",
    ".sh",
    ".html",
    ".css",
    ".js",
    ".json",
    ".txt",
    ".lock",
    "",
}
# Spelled in halves, so that this file does not name them itself.
MACHINE_WORDS = re.compile(
    "|".join(
        [
            r"(?<![\w.])/" + r"(?:work|root|home/\w+|Users/\w+)/",
            r"/opt/" + r"(?:pypi|wheels)",
            r"pypi\." + r"org",
            r"python" + r"hosted\.org",
            r"registry\." + r"npmjs",
            r"\.\./" + r"shared\b",
        ]
    )
)
UNFINISHED_WORDS = re.compile(r"\b(?:TO" + r"DO|FIX" + r"ME|XX" + r"X|HA" + r"CK)\b")
MARKDOWN_LINK = re.compile(r"\]\((?!https?:|mailto:|#)([^)#\s]+)")


# ---- reading ---------------------------------------------------------------------------------------------


@cache
def repository_files() -> tuple[Path, ...]:
    """Return the files that are, or are about to be, in the repository."""
    listing = subprocess.run(
        ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"],
        cwd=ROOT, capture_output=True, text=True, check=False,
    )  # fmt: skip
    if listing.returncode:  # an unpacked archive: everything but what .gitignore would hide
        hidden = {".venv", "runs", "build", "dist", ".git"}
        names = [p for p in ROOT.rglob("*") if not hidden & set(p.relative_to(ROOT).parts)]
    else:
        names = [ROOT / name for name in listing.stdout.split("\0") if name]
    return tuple(sorted(p for p in names if p.is_file() and "__pycache__" not in p.parts))


@cache
def sources() -> dict[str, ast.Module]:
    """Return the syntax tree of each module of the package, by its path under src/baseload."""
    files = [p for p in repository_files() if SRC in p.parents and p.suffix == ".py"]
    return {p.relative_to(SRC).as_posix(): ast.parse(p.read_text("utf-8"), str(p)) for p in files}


def texts() -> Iterator[tuple[str, str]]:
    """Yield the repository's text files as (path, text)."""
    for path in repository_files():
        if path.suffix in TEXT_SUFFIXES and path.stat().st_size < 2_000_000:
            yield path.relative_to(ROOT).as_posix(), path.read_text("utf-8", errors="replace")


def imported(tree: ast.AST) -> Iterator[tuple[str, int]]:
    """Yield the dotted names a tree imports, with their lines."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from ((alias.name, node.lineno) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            module = "." * node.level + (node.module or "")
            yield module, node.lineno
            yield from ((f"{module}.{alias.name}", node.lineno) for alias in node.names)


def functions(tree: ast.AST, prefix: str = "") -> Iterator[tuple[str, ast.FunctionDef | ast.AsyncFunctionDef]]:
    """Yield every function of a module or class with its dotted name; not those inside functions."""
    for node in ast.iter_child_nodes(tree):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            yield prefix + node.name, node
        elif isinstance(node, ast.ClassDef):
            yield from functions(node, f"{prefix}{node.name}.")
        elif isinstance(node, ast.If | ast.Try):
            yield from functions(node, prefix)


def dotted(node: ast.AST) -> str:
    """Return `a.b.c` for such an expression, and the empty text for others."""
    if isinstance(node, ast.Attribute):
        inner = dotted(node.value)
        return f"{inner}.{node.attr}" if inner else ""
    return node.id if isinstance(node, ast.Name) else ""


def is_protocol(node: ast.ClassDef) -> bool:
    """Say whether a class only describes what others must have."""
    return any(dotted(base).split(".")[-1] == "Protocol" for base in node.bases)


def matches(pattern: re.Pattern[str]) -> list[str]:
    """Return `path:line: text` wherever the pattern occurs in the repository's text."""
    return [
        f"{path}:{number}: {line.strip()[:100]}"
        for path, text in texts()
        if pattern.search(text)
        for number, line in enumerate(text.splitlines(), start=1)
        if pattern.search(line)
    ]


def room_of(path: str) -> str:
    """Return the room a module lies in, or its own name for a file of the shelf."""
    return path.split("/")[0].removesuffix(".py")


# ---- safety ----------------------------------------------------------------------------------------------


def test_no_module_can_run_foreign_text_or_bytes():
    """No source imports a module, or calls a function, that turns bytes or text from outside into code."""
    wrong = []
    for path, tree in sources().items():
        wrong += [
            f"{path}:{line}: imports {name}" for name, line in imported(tree) if name.split(".")[0] in FORBIDDEN_MODULES
        ]
        for node in ast.walk(tree):
            if not isinstance(node, ast.Call):
                continue
            if dotted(node.func) in FORBIDDEN_CALLS | {"os.system", "os.popen", "yaml.load"}:
                wrong.append(f"{path}:{node.lineno}: calls {dotted(node.func)}")
            wrong += [
                f"{path}:{node.lineno}: {keyword.arg}=True"
                for keyword in node.keywords
                if keyword.arg in {"shell", "allow_pickle"}
                and isinstance(keyword.value, ast.Constant)
                and keyword.value.value is True
            ]

    assert not wrong, "\n".join(["", *wrong])


def test_nothing_listens_on_every_address():
    """No source holds an address that would bind to every network of the machine."""
    every_address = {"0.0.0" + ".0", "::", "[::]"}
    wrong = [
        f"{path}:{node.lineno}: {node.value!r}"
        for path, tree in sources().items()
        for node in ast.walk(tree)
        if isinstance(node, ast.Constant) and isinstance(node.value, str) and node.value in every_address
    ]

    assert not wrong, "\n".join(["", *wrong])


def test_no_star_imports():
    """Every imported name is spelled out."""
    wrong = [
        f"{path}:{line}" for path, tree in sources().items() for name, line in imported(tree) if name.endswith(".*")
    ]

    assert not wrong, "\n".join(["", *wrong])


def test_only_the_front_door_prints():
    """Text reaches the terminal through app/ alone."""
    wrong = [
        f"{path}:{node.lineno}"
        for path, tree in sources().items()
        if room_of(path) != "app"
        for node in ast.walk(tree)
        if isinstance(node, ast.Call) and dotted(node.func) == "print"
    ]

    assert not wrong, "\n".join(["", *wrong])


# ---- rooms -----------------------------------------------------------------------------------------------


def test_the_shelf_imports_no_room():
    """The five files that everyone may use depend on nobody."""
    rooms = {f"baseload.{room}" for room in ROOMS}
    wrong = [
        f"{path}:{line}: {name}"
        for path, tree in sources().items()
        if room_of(path) in SHELF
        for name, line in imported(tree)
        if name.startswith(".") or any(name == room or name.startswith(room + ".") for room in rooms)
    ]

    assert not wrong, "\n".join(["", *wrong])


def test_every_room_has_its_import_contract():
    """A folder of the package that no contract in pyproject.toml speaks of cannot come in unseen."""
    contracts = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["tool"]["importlinter"]["contracts"]
    held = {module for contract in contracts for module in contract["source_modules"]}
    rooms = {f"baseload.{path.split('/')[0]}" for path in sources() if "/" in path}

    assert rooms - held == {"baseload.app"} - held  # app may import everything
    assert rooms <= {f"baseload.{room}" for room in ROOMS}


def test_pure_rooms_are_told_the_time_and_the_dice():
    """Formulas and policies import no clock, dice, file or socket, and nobody uses unseeded randomness."""
    wrong = [
        f"{path}:{line}: imports {name}"
        for path, tree in sources().items()
        if room_of(path) in ("formulas", "policies")
        for name, line in imported(tree)
        if name.split(".")[0] in PURE_ROOMS_FORBIDDEN
    ]
    for path, tree in sources().items():
        for node in ast.walk(tree):
            name = dotted(node) if isinstance(node, ast.Attribute) else ""
            if name.startswith(("np.random.", "numpy.random.")) and name.split(".")[2] not in SEEDED:
                wrong.append(f"{path}:{node.lineno}: {name}")
            clock = name.endswith(("datetime.now", "datetime.utcnow", "date.today"))
            if clock and room_of(path) in ("fleet", "formulas", "policies", "simulate", "report"):
                wrong.append(f"{path}:{node.lineno}: {name}")

    assert not wrong, "\n".join(["", *wrong])


# ---- size and words --------------------------------------------------------------------------------------


def test_a_module_has_one_subject():
    """No module is longer than 500 lines, but for those with a reason in LONG_MODULES."""
    wrong = []
    for path in sources():
        lines = len((SRC / path).read_text("utf-8").splitlines())
        allowed = LONG_MODULES.get(path, (MODULE_LINES_MAX, ""))[0]
        if lines > allowed:
            wrong.append(f"{path}: {lines} lines, {allowed} allowed")

    assert not wrong, "\n".join(["", *wrong])


def test_a_function_fits_a_screen():
    """No function's body is longer than 70 lines, but for those with a reason in LONG_FUNCTIONS."""
    wrong = []
    for path, tree in sources().items():
        for name, node in functions(tree):
            first = node.body[1] if ast.get_docstring(node) and len(node.body) > 1 else node.body[0]
            lines = (node.end_lineno or first.lineno) - first.lineno + 1
            allowed = LONG_FUNCTIONS.get(f"{path}::{name}", (BODY_LINES_MAX, ""))[0]
            if lines > allowed:
                wrong.append(f"{path}::{name}: {lines} lines, {allowed} allowed")

    assert not wrong, "\n".join(["", *wrong])


def test_every_exception_is_still_needed():
    """A module or function that is granted more lines than others exists, and each grant has its reason."""
    names = {f"{path}::{name}" for path, tree in sources().items() for name, _ in functions(tree)}

    assert set(LONG_FUNCTIONS) <= names
    assert all(reason for _, reason in [*LONG_MODULES.values(), *LONG_FUNCTIONS.values()])


def test_every_public_thing_says_what_it_is_for():
    """Every module, public class and public function has a docstring; a Protocol speaks for its members."""
    wrong = []
    for path, tree in sources().items():
        protocols = {node.name for node in tree.body if isinstance(node, ast.ClassDef) and is_protocol(node)}
        if not ast.get_docstring(tree):
            wrong.append(f"{path}: module")
        wrong += [
            f"{path}::{node.name}"
            for node in tree.body
            if isinstance(node, ast.ClassDef) and not node.name.startswith("_") and not ast.get_docstring(node)
        ]
        wrong += [
            f"{path}::{name}"
            for name, node in functions(tree)
            if not any(part.startswith("_") for part in name.split("."))
            and name.split(".")[0] not in protocols
            and not ast.get_docstring(node)
        ]

    assert not wrong, "\n".join(["", *wrong])


def test_every_test_says_in_a_sentence_what_it_promises():
    """Every test function has a docstring of one paragraph that ends as a sentence does."""
    wrong = []
    for path in repository_files():
        if ROOT / "tests" not in path.parents or not path.name.startswith("test_") or path.suffix != ".py":
            continue
        for name, node in functions(ast.parse(path.read_text("utf-8"))):
            if name.split(".")[-1].startswith("test_"):
                said = ast.get_docstring(node) or ""
                if "\n\n" in said or not said.endswith((".", "!", "?", ")")):
                    wrong.append(f"{path.relative_to(ROOT)}::{name}")

    assert not wrong, "\n".join(["", *wrong])


def test_nothing_is_left_for_later():
    """No file holds a mark that says something remains to be done."""
    wrong = matches(UNFINISHED_WORDS)

    assert not wrong, "\n".join(["", *wrong])


def test_no_file_knows_the_machine_it_was_written_on():
    """No file names a package registry's host or a folder of somebody's machine."""
    wrong = matches(MACHINE_WORDS)

    assert not wrong, "\n".join(["", *wrong])


def test_what_stays_out_of_the_repository_is_out():
    """No lock that names hosts, no private file and no blob over 10 MB is tracked."""
    private = {"uv.lock", "pylock.toml", ".env", ".python-version", ".DS_Store"}
    wrong = [
        str(path.relative_to(ROOT))
        for path in repository_files()
        if path.name in private or path.stat().st_size > FILE_BYTES_MAX
    ]

    assert not wrong, "\n".join(["", *wrong])


def test_locks_hold_names_versions_and_hashes_only():
    """Both lock files pin every package by hash and name no place to fetch it from."""
    for name in ("requirements.lock", "requirements-dev.lock"):
        lines = (ROOT / name).read_text("utf-8").splitlines()
        pins = [line for line in lines if re.match(r"[a-z0-9]", line)]

        assert pins
        assert all("==" in line and line.endswith("\\") for line in pins), name
        assert not [line for line in lines if "://" in line or "--index" in line or "--find" in line], name


def test_links_between_pages_lead_somewhere():
    """Every relative link in a Markdown page names a file that exists."""
    wrong = [
        f"{path}: {target}"
        for path, text in texts()
        if path.endswith(".md")
        for target in MARKDOWN_LINK.findall(text)
        if not ((ROOT / path).parent / target).exists()
    ]

    assert not wrong, "\n".join(["", *wrong])
