"""One exception family for what a user can mend; a bug of ours is an AssertionError or a traceback instead.

    BaseloadError                 exit code 1
      InputError                  exit code 2: something the user wrote is wrong
        FleetError                the fleet file (may hold several problems, each with file, line and key)
        TraceError                a trace file or generator
        CatalogError              a name that the catalogue does not know
        PolicyError               a policy name, or an operator's own policy file
        PlanError                 a planning problem without a plan
        RunError                  a run folder: missing, partial, or of another version
        LedgerError               a ledger, its key or its witness: missing, damaged, or not one of ours
      LedgerUnavailable           exit code 1: the ledger cannot store now (disk full, connection lost); nothing half-written
      Interrupted                 exit code 130: Ctrl-C; what was finished is kept in a `.partial` folder

Every message names where, what, and how to mend it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass


class BaseloadError(Exception):
    """Base of every error that is shown to a user as one line, without a traceback."""

    exit_code = 1


class InputError(BaseloadError):
    """Something the user wrote cannot be used; the message says where and how to mend it."""

    exit_code = 2


@dataclass(frozen=True, slots=True, kw_only=True)
class Problem:
    """One thing that is wrong in a file: where (file, line, key), what, and the mend."""

    what: str
    mend: str = ""
    key: str = ""
    file: str = ""
    line: int | None = None

    def __str__(self) -> str:
        where = self.file
        if self.line is not None:
            where += f":{self.line}"
        parts = [part for part in (where, self.key, self.what) if part]
        return ": ".join(parts) + (f"; {self.mend}" if self.mend else "")


class FleetError(InputError):
    """The fleet file is wrong: one message, or a list of `Problem`s in `problems`."""

    def __init__(self, problems: str | Problem | Sequence[Problem]) -> None:
        if isinstance(problems, str):
            problems = [Problem(what=problems)]
        elif isinstance(problems, Problem):
            problems = [problems]
        self.problems: tuple[Problem, ...] = tuple(problems)
        super().__init__("\n".join(str(problem) for problem in self.problems))


class TraceError(InputError):
    """A trace cannot be read, or asks for something impossible; the message names file and line."""


class CatalogError(InputError):
    """A name that the catalogue does not know; the message offers the nearest ones."""


class PolicyError(InputError):
    """A policy name that does not exist, or an operator's own policy that cannot be loaded."""


class PlanError(InputError):
    """A planning problem that has no plan, or asks for something impossible; the message says what stands in the way."""


class RunError(InputError):
    """A run folder is missing, partial, or not one of ours."""


class LedgerError(InputError):
    """A ledger, its signing key or its witness is missing, damaged, or not one of ours."""


class LedgerUnavailable(BaseloadError):
    """The ledger cannot store rows now; nothing was half-written, and the same rows may be handed in again.

    `fatal` says that this process must not go on with it (a failed fsync): end it, and open the ledger anew.
    """

    def __init__(self, message: str, *, fatal: bool = False) -> None:
        super().__init__(message)
        self.fatal = fatal


class Interrupted(BaseloadError):
    """The user asked to stop (Ctrl-C); the message says what was kept and where."""

    exit_code = 130
