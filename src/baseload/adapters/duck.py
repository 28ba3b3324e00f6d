"""DuckDB as this project uses it: in memory, in one thread, and never stopped in the middle of a file."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress

import duckdb


def connected(**config: str | bool) -> duckdb.DuckDBPyConnection:
    """Return a database in memory that works in one thread: sums of floats come out the same each time."""
    db = duckdb.connect(":memory:", config={"threads": 1, **config})
    with suppress(duckdb.Error):  # a setting of DuckDB 2: what fails or is stopped while others write may hang there
        db.execute("SET async_threads = 0")
    return db


@contextmanager
def undisturbed() -> Iterator[None]:
    """Let Ctrl-C wait for what is written here: a file is whole or not begun."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    pressed: list[int] = []
    before = signal.signal(signal.SIGINT, lambda number, _frame: pressed.append(number))
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, signal.SIG_DFL if before is None else before)
        if pressed:
            signal.raise_signal(signal.SIGINT)
