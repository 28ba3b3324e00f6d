"""What a connection reads and holds: a request as it comes in, who stands in for one that is being looked up, and refusals.

`client.py` reads; nothing here does anything.
"""

from __future__ import annotations

from baseload.serve.bearers import Refusal
from baseload.serve.reply import Problem

NEVER_S = float("inf")


class Inbound:
    """A request as it is read."""

    __slots__ = (
        "bearer", "body", "close", "encoding", "expects", "extra", "hosts", "id", "length", "method", "old", "path",
        "refused", "size", "te",
    )  # fmt: skip

    def __init__(self) -> None:
        self.method = self.path = self.bearer = self.extra = self.id = b""
        self.body: list[bytes] = []
        self.size = self.hosts = 0
        self.length = -1
        self.te = self.expects = self.close = self.old = False
        self.encoding = b""
        self.refused: Problem | None = None


class Pending:
    """Stands where a relay would, while the purse is asked."""

    due_s = deadline_s = NEVER_S
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
NOWHERE = Problem(404, "not_found", "there is nothing at this path")
SLOW = Problem(408, "request_timeout", "the request took too long to arrive")
DRAINING = Problem(503, "draining", "this gateway is being replaced; try again", None, 1.0)


def as_problem(found: Refusal) -> Problem:
    """Return a refusal of the purse as a client hears it."""
    return Problem(found.status, found.code, found.message, None, found.retry_s)
