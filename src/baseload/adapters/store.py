"""A run on disk: written into `<folder>.partial`, renamed when it is whole, read back with DuckDB.

Whatever stops a writer (Ctrl-C, kill, a full disk) leaves a `.partial` folder or a complete one; only the rename makes
it complete. The same records give the same bytes, however they were handed over. What the tables mean is
`records.py`, what `meta.json` says is `ports.RunMeta`, and what follows from both is `report/`.
"""

from __future__ import annotations

import errno
import os
import shutil
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from functools import cached_property
from pathlib import Path
from types import TracebackType
from typing import Any, Literal, Self

import duckdb
import msgspec
import numpy as np

import baseload
from baseload.adapters.duck import connected, undisturbed
from baseload.adapters.series_files import with_files
from baseload.errors import FleetError, RunError
from baseload.fleet.load import Loaded, loads
from baseload.fleet.model import Fleet
from baseload.ports import META_VERSION, RunMeta
from baseload.records import RECORDS_VERSION, TABLES, dtypes

if sys.platform != "win32":
    import fcntl

PART_ROWS = 131_072  # of a requests part: about 13 MB in memory, written in a fifth of a second
_ROW_GROUP_ROWS = 131_072
_MEMORY_LIMIT = "1500MB"  # of a reader; writers hold one part
_LOCK = ".writing"
_OURS = ("meta.json", "fleet.yaml", "report.html", "report.json", "files", "duckdb-temp", _LOCK)

State = Literal["missing", "partial", "complete", "foreign"]
Columns = Mapping[str, Any] | np.ndarray[Any, Any]
"""Columns by name: a mapping, or a structured array."""


def partial_of(folder: Path) -> Path:
    """Return where the run `folder` is written while it is incomplete.

    >>> partial_of(Path("runs/a")).name
    'a.partial'
    """
    return folder.with_name(folder.name + ".partial")


def state_of(folder: Path) -> State:
    """Say what stands at a run's path: nothing, only an interrupted run beside it, a complete run, something else.

    Raises RunError where that cannot be seen.
    """
    try:
        if folder.name.endswith(".partial"):
            return "partial" if folder.exists() else "missing"
        if (folder / "meta.json").is_file():
            return "complete"
        if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
            return "foreign"
        return "partial" if partial_of(folder).exists() else "missing"
    except (OSError, ValueError) as error:  # a name too long, a folder that may not be read, a null byte
        reason = getattr(error, "strerror", None) or str(error)
        raise RunError(f"{str(folder)[:200]}: cannot be looked at ({reason}); name another folder") from None


def being_written(partial: Path) -> bool:
    """Say whether a living process holds a `.partial` folder: the kernel lets go of its lock however a process ends."""
    lock = partial / _LOCK
    if sys.platform == "win32" or not lock.exists():
        return False
    try:
        with lock.open("rb") as file:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    except OSError:  # not ours to look into: what is done with it next says why
        return False
    return False


def refuse_to_overwrite(folder: Path, *, overwrite: bool) -> None:
    """Raise RunError where a run may not be written to `folder`."""
    if folder.name.endswith(".partial"):
        raise RunError(f"{folder}: a name that ends in .partial is kept for unfinished runs; choose another")
    state = state_of(folder)
    if state == "foreign":
        raise RunError(f"{folder}: exists and is no run folder; choose another --out")
    if state == "complete" and not overwrite:
        raise RunError(f"{folder}: holds a complete run; choose another --out, or add --overwrite")
    if being_written(partial_of(folder)):
        raise RunError(f"{partial_of(folder)}: another run is writing here; wait for it, or choose another --out")


# ---- writing ---------------------------------------------------------------------------------------------


class RunWriter:
    """Writes one run; a context manager. Leaving it without `finish` keeps what there is in `<folder>.partial`.

    `files` are the series files that the fleet file names, with where they lie; copies go into the folder, so that
    a run can be reported anywhere. `said` holds sentences for the user, e.g. about a leftover that was replaced.
    """

    def __init__(
        self,
        folder: Path,
        meta: RunMeta,
        fleet_text: str,
        *,
        overwrite: bool = False,
        files: Mapping[str, Path] | None = None,
        part_rows: int = PART_ROWS,
    ) -> None:
        assert part_rows > 0, part_rows
        self.folder = Path(os.path.abspath(folder))
        self.partial = partial_of(self.folder)
        self.said: list[str] = []
        self.finished = False
        self._meta = msgspec.structs.replace(
            meta, records_version=RECORDS_VERSION, baseload=meta.baseload or baseload.__version__
        )
        self._fleet_text = fleet_text
        self._overwrite = overwrite
        self._files = dict(files or {})
        self._part = {name: np.empty(part_rows, dtype) for name, dtype in dtypes("requests")}
        self._part_rows = part_rows
        self._n_rows = 0
        self._n_parts = 0
        self._written: set[str] = set()
        self._lock = -1
        self._db: duckdb.DuckDBPyConnection | None = None

    def __enter__(self) -> Self:
        """Make the `.partial` folder, or raise RunError where something else stands in the way."""
        with self._blamed():
            refuse_to_overwrite(self.folder, overwrite=self._overwrite)
            self.folder.parent.mkdir(parents=True, exist_ok=True)
            self._clear_leftover()
            self.partial.mkdir()
            self._take_lock()
            self._db = connected()
            self._write_text("fleet.yaml", self._fleet_text)
            self._copy_files()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Let go of the folder; without `finish` it stays partial, with the requests gathered so far."""
        try:
            if not self.finished and self._n_rows and isinstance(error, KeyboardInterrupt):
                self._flush()
        except RunError:
            pass  # the interruption is what the user hears of
        finally:
            if self._db is not None:
                self._db.close()
            if self._lock >= 0:
                os.close(self._lock)
                self._lock = -1

    def append_requests(self, columns: Columns) -> None:
        """Take rows of the requests table; they are copied. A part goes to disk whenever enough are gathered."""
        taken = _checked("requests", columns)
        n = len(taken["request_id"])
        start = 0
        while start < n:
            room = min(n - start, self._part_rows - self._n_rows)
            for name, values in taken.items():
                self._part[name][self._n_rows : self._n_rows + room] = values[start : start + room]
            self._n_rows += room
            start += room
            if self._n_rows == self._part_rows:
                self._flush()

    def write_replicas(self, columns: Columns) -> None:
        """Write the replicas table."""
        self._write_table("replicas", "replicas.parquet", _checked("replicas", columns))

    def write_sites(self, columns: Columns) -> None:
        """Write the sites table."""
        self._write_table("sites", "sites.parquet", _checked("sites", columns))

    def finish(self, extra_meta: Mapping[str, Any] | None = None) -> Path:
        """Write what is left and `meta.json` (its fields changed by `extra_meta`), and make the folder complete."""
        assert not self.finished
        assert {"replicas", "sites"} <= self._written, f"only {sorted(self._written)} were written"
        if self._n_rows or not self._n_parts:
            self._flush()
        self._meta = msgspec.structs.replace(self._meta, **dict(extra_meta or {}))
        with self._blamed():
            text = msgspec.json.format(msgspec.json.encode(self._meta), indent=1)
            self._write_text("meta.json", text.decode() + "\n")
            (self.partial / _LOCK).unlink(missing_ok=True)
            _sync(self.partial)
            with undisturbed():
                self._put_in_place()
                self.finished = True
        return self.folder

    def _clear_leftover(self) -> None:
        if not self.partial.exists():
            return
        strange = [
            path.name
            for path in (self.partial.iterdir() if self.partial.is_dir() else [self.partial])
            if path.name not in _OURS and path.suffix != ".parquet"
        ]
        if strange:
            raise RunError(f"{self.partial}: holds `{strange[0]}`, which no run wrote; move it away")
        if being_written(self.partial):
            raise RunError(f"{self.partial}: another run is writing here; wait for it, or choose another --out")
        shutil.rmtree(self.partial)
        self.said.append(f"{self.partial.name}: left by an interrupted run, and replaced")

    def _take_lock(self) -> None:
        # The kernel lets go of it however the process ends.
        self._lock = os.open(self.partial / _LOCK, os.O_CREAT | os.O_RDWR, 0o644)
        if sys.platform != "win32":
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)

    def _copy_files(self) -> None:
        stored: dict[str, str] = {}
        for i, (name, source) in enumerate(sorted(self._files.items())):
            stored[name] = f"files/{i:03}{Path(name).suffix.lower()}"
            target = self.partial / stored[name]
            target.parent.mkdir(exist_ok=True)
            shutil.copyfile(source, target)
            _sync(target)
        self._meta = msgspec.structs.replace(self._meta, files=stored)

    def _flush(self) -> None:
        rows = {name: column[: self._n_rows] for name, column in self._part.items()}
        with undisturbed():
            self._write_table("requests", f"requests-{self._n_parts:05}.parquet", rows)
            self._n_parts += 1
            self._n_rows = 0

    def _write_table(self, table: str, file: str, columns: Mapping[str, Any]) -> None:
        assert self._db is not None, "use it as a context manager"
        path = self.partial / file
        with self._blamed(), undisturbed():
            self._db.register("rows", dict(columns))
            try:
                # One thread and a fixed row group: the same rows give the same bytes.
                self._db.execute(
                    "COPY (SELECT * FROM rows) TO ? (FORMAT parquet, COMPRESSION zstd, ROW_GROUP_SIZE 131072)",
                    [str(path)],
                )
            finally:
                self._db.unregister("rows")
            _sync(path)
        self._written.add(table)

    def _write_text(self, name: str, text: str) -> None:
        path = self.partial / name
        with path.open("w", encoding="utf-8", newline="") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())

    def _put_in_place(self) -> None:
        old = self.folder.with_name(self.folder.name + ".replaced")
        if state_of(self.folder) == "complete":
            if old.exists():
                shutil.rmtree(old)
            self.folder.rename(old)
        self.partial.rename(self.folder)
        _sync(self.folder.parent)
        if old.exists():
            shutil.rmtree(old)

    @contextmanager
    def _blamed(self) -> Iterator[None]:
        """Turn what the disk refuses into a sentence with a mend."""
        try:
            yield
        except (OSError, duckdb.Error) as error:
            raise RunError(disk_sentence(self.partial, error)) from error


def disk_sentence(partial: Path, error: Exception) -> str:
    """Return what a failed write means to the user, with the mend."""
    number = error.errno if isinstance(error, OSError) else None
    first = str(error).splitlines()[0] if str(error) else type(error).__name__
    lower = first.lower()
    full = number in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG) or any(
        words in lower for words in ("no space left", "file too large", "quota", "could not write")
    )
    if full:
        return (
            f"{partial}: the disk is full, or a file may not grow further ({first}); "
            "free space or choose another --out, and run again: what was written so far stays in the .partial folder"
        )
    if number in (errno.EACCES, errno.EPERM, errno.EROFS):
        return f"{partial}: may not be written ({first}); choose another --out"
    return f"{partial}: cannot be written ({first}); choose another --out"


def _checked(table: str, columns: Columns) -> dict[str, Any]:
    """Return the columns in file order with the dtypes of records.py; ours crash if they do not fit."""
    if isinstance(columns, np.ndarray):
        found: set[str] = set(columns.dtype.names or ())
    else:
        found = set(columns)
    wanted = dtypes(table)
    assert found == {name for name, _ in wanted}, sorted(found ^ {name for name, _ in wanted})
    taken: dict[str, Any] = {}
    for name, dtype in wanted:
        values = np.asarray(columns[name])
        assert np.can_cast(values.dtype, dtype, "same_kind"), (name, values.dtype, dtype)
        taken[name] = np.ascontiguousarray(values, dtype)
    assert len({len(values) for values in taken.values()}) <= 1, {k: len(v) for k, v in taken.items()}
    return taken


def _sync(path: Path) -> None:
    if sys.platform == "win32" and path.is_dir():
        return
    number = os.open(path, os.O_RDONLY)
    try:
        os.fsync(number)
    finally:
        os.close(number)


# ---- reading ---------------------------------------------------------------------------------------------


class _Versions(msgspec.Struct):
    version: int = 0
    records_version: int = 0


class RunReader:
    """A complete run: `meta`, `loaded` (its fleet), and queries over its tables. Raises RunError for anything else."""

    def __init__(self, folder: Path) -> None:
        self.folder = Path(folder)
        self._refuse_unfinished()
        self.meta = self._read_meta()
        self._db: duckdb.DuckDBPyConnection | None = None

    @property
    def name(self) -> str:
        """Return the folder's name."""
        return self.folder.resolve().name

    @cached_property
    def fleet_text(self) -> str:
        """Return the text of the fleet file that was run."""
        try:
            return (self.folder / "fleet.yaml").read_text("utf-8")
        except (OSError, UnicodeDecodeError) as error:
            raise RunError(f"{self.folder}: its fleet.yaml cannot be read ({error}); run it again") from None

    @cached_property
    def loaded(self) -> Loaded:
        """Return the fleet that was run, overrides included, its series files found among the copies."""
        try:
            loaded = loads(
                self.fleet_text,
                file=str(self.folder / "fleet.yaml"),
                base_folder=self.folder,
                overrides=self.meta.overrides,
            )
        except FleetError as error:
            raise RunError(f"{self.folder}: its fleet.yaml is not what was run: {error}") from None
        if not self.meta.files:
            return loaded
        return replace(loaded, fleet=with_files(loaded.fleet, self.meta.files))

    @property
    def fleet(self) -> Fleet:
        """Return the Fleet that was run."""
        return self.loaded.fleet

    @property
    def base_folder(self) -> Path:
        """Return what file names in the fleet are relative to."""
        return self.folder

    def query(self, sql: str, params: Sequence[Any] = ()) -> list[tuple[Any, ...]]:
        """Return rows of a fixed query over the views requests, replicas, sites; `?` is bound to `params`."""
        with self._blamed():
            return self._connection().execute(sql, list(params)).fetchall()

    def columns(self, sql: str, params: Sequence[Any] = ()) -> dict[str, Any]:
        """Return the same as NumPy columns."""
        with self._blamed():
            return dict(self._connection().execute(sql, list(params)).fetchnumpy())

    def table(self, name: str, columns: Mapping[str, Any]) -> None:
        """Offer a small table of NumPy columns to queries, under `name`."""
        with self._blamed():
            self._connection().register(name, {key: np.asarray(values) for key, values in columns.items()})

    def close(self) -> None:
        """Let go of the files."""
        if self._db is not None:
            self._db.close()
            self._db = None

    def __enter__(self) -> Self:
        """Return the reader itself."""
        return self

    def __exit__(self, *_: object) -> None:
        """Let go of the files."""
        self.close()

    def _refuse_unfinished(self) -> None:
        state = state_of(self.folder)
        if state == "complete":
            return
        if state == "foreign":
            raise RunError(f"{self.folder}: is no run folder (it has no meta.json); name one that simulate wrote")
        if state == "partial":
            shown = self.folder if self.folder.name.endswith(".partial") else partial_of(self.folder)
            if being_written(shown):
                raise RunError(f"{shown}: this run is still being written; wait for it to end")
            raise RunError(
                f"{shown}: this run was interrupted, and is not complete; "
                "run it again (the leftover is replaced), or delete it"
            )
        old = self.folder.with_name(self.folder.name + ".replaced")
        more = f"; the run before it is in {old.name}" if old.exists() else ""
        raise RunError(f"{self.folder}: no such run; `baseload simulate FLEET --out {self.folder}` makes one{more}")

    def _read_meta(self) -> RunMeta:
        path = self.folder / "meta.json"
        try:
            content = path.read_bytes()
            versions = msgspec.json.decode(content, type=_Versions)
            if (versions.version, versions.records_version) != (META_VERSION, RECORDS_VERSION):
                raise RunError(
                    f"{self.folder}: written by another version of baseload (meta {versions.version}, records "
                    f"{versions.records_version}; this one reads {META_VERSION} and {RECORDS_VERSION}); run it again"
                )
            return msgspec.json.decode(content, type=RunMeta)
        except (OSError, msgspec.MsgspecError, UnicodeDecodeError) as error:
            raise RunError(f"{path}: cannot be read ({error}); run it again") from None

    def _connection(self) -> duckdb.DuckDBPyConnection:
        if self._db is not None:
            return self._db
        db = connected(memory_limit=_MEMORY_LIMIT, temp_directory=tempfile.gettempdir())
        parts = sorted(str(path) for path in self.folder.glob("requests-*.parquet"))
        files = {"requests": parts, "replicas": ["replicas.parquet"], "sites": ["sites.parquet"]}
        for table, names in files.items():
            paths = [str(self.folder / name) if table != "requests" else name for name in names]
            if not paths or not all(Path(path).is_file() for path in paths):
                raise RunError(f"{self.folder}: its table `{table}` is missing; run it again")
            relation = db.read_parquet(paths)
            wanted = [column.name for column in TABLES[table]]
            if relation.columns != wanted:
                raise RunError(f"{self.folder}: its table `{table}` has other columns; run it again")
            relation.create_view(table)
        self._db = db
        return db

    @contextmanager
    def _blamed(self) -> Iterator[None]:
        try:
            yield
        except (RuntimeError, duckdb.InterruptException) as error:
            if "interrupted" in str(error).lower():  # what DuckDB makes of Ctrl-C
                raise KeyboardInterrupt from None
            raise
        except duckdb.Error as error:
            if isinstance(error, duckdb.ProgrammingError) and not isinstance(error, duckdb.InvalidInputException):
                raise  # a query of ours that is wrong
            first = str(error).splitlines()[0]
            raise RunError(f"{self.folder}: its tables cannot be read ({first}); run it again") from error
