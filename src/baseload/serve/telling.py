"""Several are told something: what goes wrong at one must not cost the others."""

from __future__ import annotations

from collections.abc import Callable, Iterable


def tell_all(calls: Iterable[Callable[[], object]]) -> None:
    """Make every call; raise what went wrong in an ExceptionGroup when all are made.

    >>> told = []
    >>> tell_all([lambda: told.append(1), lambda: told.append(2)])
    >>> told
    [1, 2]
    """
    wrong: list[Exception] = []
    for call in calls:
        try:
            call()
        except Exception as error:
            wrong.append(error)
    if wrong:
        raise ExceptionGroup("some of those who were told something", wrong)
