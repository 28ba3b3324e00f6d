"""What the rules of `check.py` write down: problems and warnings, each with its line."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path as FilePath
from typing import TypeVar

from baseload.errors import CatalogError, FleetError, Problem
from baseload.fleet.load import Loaded
from baseload.fleet.model import Fleet
from baseload.fleet.tree import Path

T = TypeVar("T")


class Notes:
    """Collects problems and warnings about one loaded fleet."""

    def __init__(self, loaded: Loaded) -> None:
        self.loaded = loaded
        self.problems: list[Problem] = []
        self.warnings: list[Problem] = []

    @property
    def fleet(self) -> Fleet:
        """The fleet that is looked at."""
        return self.loaded.fleet

    @property
    def base_folder(self) -> FilePath:
        """The folder that file names are relative to."""
        return self.loaded.base_folder

    def problem(self, path: Path, what: str, mend: str = "") -> None:
        """Write down what makes the fleet impossible."""
        self.problems.append(self.loaded.problem(path, what, mend))

    def warning(self, path: Path, what: str, mend: str = "") -> None:
        """Write down what is odd but possible."""
        self.warnings.append(self.loaded.problem(path, what, mend))

    def attempt(self, path: Path, ask: Callable[[], T]) -> T | None:
        """Return what `ask` returns; where the catalogue or a file says no, write that down and return None."""
        try:
            return ask()
        except CatalogError as error:
            self.problem(path, str(error))
        except FleetError as error:
            for problem in error.problems:
                own = tuple(problem.key.split(".")) if problem.key and not problem.file else path
                where = f"{problem.file}{f':{problem.line}' if problem.line else ''}: " if problem.file else ""
                self.problem(own, where + problem.what, problem.mend)
        return None
