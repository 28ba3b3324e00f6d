"""What the gateway itself says: heads, error envelopes of OpenAI's and Anthropic's kind, error events, model lists.

Bytes out, nothing kept. What an engine says is passed on by `relay.py`.
"""

from __future__ import annotations

from typing import NamedTuple

import msgspec

from baseload.records import (
    REASON_BUDGET,
    REASON_NO_REPLICA,
    REASON_POWER,
    REASON_RETRIES,
    REASON_SLO,
    REASON_TOO_LONG,
    REASON_WAITED,
)
from baseload.serve.body import MESSAGES, RESPONSES

PHRASES = {
    200: "OK", 400: "Bad Request", 401: "Unauthorized", 403: "Forbidden", 404: "Not Found", 405: "Method Not Allowed",
    408: "Request Timeout", 409: "Conflict", 413: "Content Too Large", 415: "Unsupported Media Type",
    417: "Expectation Failed", 421: "Misdirected Request", 422: "Unprocessable Content", 429: "Too Many Requests",
    431: "Request Header Fields Too Large", 500: "Internal Server Error", 501: "Not Implemented", 502: "Bad Gateway",
    503: "Service Unavailable", 504: "Gateway Timeout", 505: "HTTP Version Not Supported",
}  # fmt: skip
_OPENAI_TYPES = {400: "invalid_request_error", 401: "authentication_error", 403: "permission_error", 404: "not_found_error",
                 413: "invalid_request_error", 415: "invalid_request_error", 429: "rate_limit_error"}  # fmt: skip
_ANTHROPIC_TYPES = {400: "invalid_request_error", 401: "authentication_error", 403: "permission_error",
                    404: "not_found_error", 413: "request_too_large", 429: "rate_limit_error", 503: "overloaded_error",
                    504: "timeout_error"}  # fmt: skip


class Problem(NamedTuple):
    """What went wrong, as a client is told."""

    status: int
    code: str
    message: str
    param: str | None = None
    retry_s: float | None = None


# What a refusal of the door (records.REASON_*) is to a client.
REFUSED: dict[int, Problem] = {
    REASON_NO_REPLICA: Problem(
        503, "no_replica", "no replica that may serve this tenant answers now; try again", None, 1.0
    ),
    REASON_SLO: Problem(503, "overloaded", "the promised latency could not be kept now; try again", None, 1.0),
    REASON_BUDGET: Problem(429, "insufficient_quota", "the tenant's budget does not cover this request"),
    REASON_POWER: Problem(503, "power_limit", "the sites that may serve this are at their power limit", None, 5.0),
    REASON_TOO_LONG: Problem(
        400, "context_length_exceeded", "the prompt is longer than the model's context", "messages"
    ),
    REASON_WAITED: Problem(503, "overloaded", "too many requests wait already; try again", None, 1.0),
    REASON_RETRIES: Problem(502, "upstream_error", "no engine answered; try again", None, 1.0),
}


def phrase(status: int) -> str:
    """Return the words of a status."""
    return PHRASES.get(status, "Status")


def envelope(problem: Problem, endpoint: int, request_id: str = "") -> bytes:
    """Return an error as the SDK of the endpoint expects it.

    >>> envelope(Problem(404, "model_not_found", "no such model", "model"), 0)
    b'{"error":{"message":"no such model","type":"not_found_error","param":"model","code":"model_not_found"}}'
    """
    if endpoint == MESSAGES:
        kind = _ANTHROPIC_TYPES.get(problem.status, "api_error")
        inner = {"type": kind, "message": problem.message, "code": problem.code}
        return msgspec.json.encode({"type": "error", "error": inner, "request_id": request_id})
    kind = _OPENAI_TYPES.get(problem.status, "api_error")
    if problem.code == "insufficient_quota":
        kind = "insufficient_quota"
    return msgspec.json.encode(
        {"error": {"message": problem.message, "type": kind, "param": problem.param, "code": problem.code}}
    )


def error_event(problem: Problem, endpoint: int) -> bytes:
    """Return an error inside a stream that has begun; no word that ends a stream well is in it."""
    if endpoint == MESSAGES:
        kind = _ANTHROPIC_TYPES.get(problem.status, "api_error")
        inner = {"type": "error", "error": {"type": kind, "message": problem.message, "code": problem.code}}
        return b"event: error\ndata: " + msgspec.json.encode(inner) + b"\n\n"
    if endpoint == RESPONSES:
        said = {"type": "error", "code": problem.code, "message": problem.message, "param": None}
        return b"event: error\ndata: " + msgspec.json.encode(said) + b"\n\n"
    kind = "insufficient_quota" if problem.code == "insufficient_quota" else "upstream_error"
    if problem.status in (401, 403):
        kind = "authentication_error"
    inner = {"error": {"message": problem.message, "type": kind, "param": None, "code": problem.code}}
    return b"data: " + msgspec.json.encode(inner) + b"\n\n"


def head(status: int, lines: bytes, length: int, *, close: bool = False) -> bytes:
    """Return a response head with a JSON body of `length` bytes; `lines` are further header lines, each with CRLF."""
    return b"HTTP/1.1 %d %b\r\ncontent-type: application/json\r\ncontent-length: %d\r\n%b%b\r\n" % (
        status, phrase(status).encode(), length, lines, b"connection: close\r\n" if close else b"",
    )  # fmt: skip


def whole(problem: Problem, endpoint: int, *, close: bool = False, request_id: str = "", lines: bytes = b"") -> bytes:
    """Return a whole error response."""
    body = envelope(problem, endpoint, request_id)
    if problem.retry_s is not None:
        lines += b"retry-after: %d\r\n" % max(1, round(problem.retry_s))
    if problem.status == 401:
        lines += b"www-authenticate: Bearer\r\n"
    return head(problem.status, lines, len(body), close=close) + body


def models(names: list[str]) -> bytes:
    """Return the list of models, as /v1/models has it."""
    rows = [{"id": name, "object": "model", "created": 0, "owned_by": "baseload"} for name in names]
    return msgspec.json.encode({"object": "list", "data": rows})


def model(name: str) -> bytes:
    """Return one model."""
    return msgspec.json.encode({"id": name, "object": "model", "created": 0, "owned_by": "baseload"})


def request_name(request_id: int) -> str:
    """Return a request id as it is shown.

    >>> request_name(17)
    'req-0000000000000011'
    """
    return f"req-{request_id:016x}"
