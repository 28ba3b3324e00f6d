"""What a connection reads and holds: a request as it comes in, who stands in for one that is being looked up, and refusals.

`client.py` and `upstream.py` read. A head that was read once, letter by letter, need not be read again: `HeadShape` knows
it by its bytes, all of them but the digits of the body's length.
"""

from __future__ import annotations

import re
from typing import Final

from baseload.serve.bearers import Refusal
from baseload.serve.quick import body_at
from baseload.serve.reply import Problem

NEVER_S: Final = float("inf")


class Inbound:
    """A request as it is read."""

    __slots__ = (
        "bearer", "body", "close", "digest", "encoding", "expects", "extra", "hosts", "id", "length", "method", "old", "path",
        "refused", "size", "te",
    )  # fmt: skip

    def __init__(self) -> None:
        self.method = self.path = self.bearer = self.extra = self.id = b""
        self.digest = b""  # of the bearer, once it was needed
        self.body: list[bytes] = []
        self.size = self.hosts = 0
        self.length = -1
        self.te = self.expects = self.close = self.old = False
        self.encoding = b""
        self.refused: Problem | None = None

    def plain(self) -> bool:
        """Say whether nothing about it is special: a body of a stated length, to be kept alive."""
        return self.length >= 0 and not (self.te or self.expects or self.close or self.old) and self.refused is None


_LENGTH = re.compile(rb"\r\ncontent-length:[ \t]*([0-9]{1,15})\r\n", re.IGNORECASE)


class HeadShape:
    """A head that the parser took whole, with a body of a stated length: the same bytes say the same again."""

    __slots__ = ("prefix", "suffix")

    def __init__(self, prefix: bytes, suffix: bytes) -> None:
        self.prefix, self.suffix = prefix, suffix  # before the digits of the length, and behind them

    def body_at(self, data: bytes) -> int:
        """Return where the body begins in `data`, which is such a head and exactly its body; -1 where it is not.

        >>> shape = head_shape(b"A\\r\\nContent-Length: 2\\r\\n\\r\\nhi", 2)
        >>> shape.body_at(b"A\\r\\nContent-Length: 3\\r\\n\\r\\nyou"), shape.body_at(b"A\\r\\nContent-Length: 3\\r\\n\\r\\nhi")
        (24, -1)
        """
        return body_at(data, self.prefix, self.suffix)


def head_shape(data: bytes, length: int) -> HeadShape | None:
    """Return the shape of a message that was just read, all of it and nothing else, with a body of `length` bytes."""
    end = data.find(b"\r\n\r\n") + 4
    if end < 4 or len(data) - end != length:
        return None
    found = _LENGTH.search(data, 0, end)
    if found is None or int(found[1]) != length:
        return None
    return HeadShape(data[: found.start(1)], data[found.end(1) : end])


class Pending:
    """Stands where a relay would, while the purse is asked."""

    due_s = NEVER_S
    deadline_s = NEVER_S
    opened = None

    def gone(self) -> None:
        """Nothing is to be settled."""

    def pause(self, on: bool) -> None:
        """Nothing flows."""

    def late(self, now_s: float) -> None:
        """The purse has its own limit."""

    def stop(self, problem: Problem, reason: int) -> None:
        """The purse answers soon."""


class Refused(Exception):
    """What was read cannot be a request."""

    def __init__(self, problem: Problem) -> None:
        super().__init__(problem.message)
        self.problem = problem


BAD = Problem(400, "bad_request", "this is no HTTP/1.1 request")
LARGE = Problem(413, "request_too_large", "the body is larger than this gateway takes")
LONG_HEAD = Problem(431, "headers_too_large", "the headers are larger than this gateway takes")
NO_KEY = Problem(401, "missing_api_key", "send your API key as `Authorization: Bearer KEY`")
NOT_SO = Problem(405, "method_not_allowed", "this is not asked for like that")
MANY_RECEIPTS = Problem(429, "rate_limit_exceeded", "too many receipts are asked for at once; try again", None, 1.0)
NOWHERE = Problem(404, "not_found", "there is nothing at this path")
SLOW = Problem(408, "request_timeout", "the request took too long to arrive")
DRAINING = Problem(503, "draining", "this gateway is being replaced; try again", None, 1.0)


def as_problem(found: Refusal) -> Problem:
    """Return a refusal of the purse as a client hears it."""
    return Problem(found.status, found.code, found.message, None, found.retry_s)
