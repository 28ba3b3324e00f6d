"""What the client scripts share: run named checks, print one JSON line each. Standard library only.

A check returns what its client saw, without what differs from call to call (ids, times); the runner compares it with what
the same client saw at the engine directly.
Told by environment: BASE_URL (with /v1), API_KEY, MODEL, ENGINE_STATS, GATEWAY (set: there is one).
"""

from __future__ import annotations

import json
import os
import time
import traceback
import urllib.request
import zlib
from collections.abc import Callable
from typing import Any

BASE_URL = os.environ.get("BASE_URL", "")
API_KEY = os.environ.get("API_KEY", "")
MODEL = os.environ.get("MODEL", "chat")
ENGINE_STATS = os.environ.get("ENGINE_STATS", "")
VOLATILE = {"id", "created", "created_at", "system_fingerprint", "request_id", "item_id", "call_id", "tool_call_id",
            "completed_at", "run_id", "response_ms", "timestamp", "_request_id", "provider_request_id"}  # fmt: skip
CHECKS: list[tuple[str, Callable[[], Any]]] = []

WEATHER = {
    "type": "object",
    "properties": {"city": {"type": "string"}, "days": {"type": "integer"}},
    "required": ["city", "days"],
    "additionalProperties": False,
}
TOOLS = [{"type": "function", "function": {"name": "weather", "description": "The weather", "parameters": WEATHER}}]
UNICODE = "Grüße, 你好, שלום, 👩‍🚀 \u202e and \\ \" ' \t end"


def check(function: Callable[[], Any]) -> Callable[[], Any]:
    """Register a check under its name; those for the gateway alone only where there is one."""
    if function.__name__.startswith("only_gateway_") and not os.environ.get("GATEWAY"):
        return function
    CHECKS.append((function.__name__, function))
    return function


def words(text: str, n: int) -> str:
    """Return what the mock engine answers to a prompt."""
    return "".join(f"w{zlib.crc32(text.encode('utf-8', 'surrogatepass')):08x}-{i} " for i in range(n))


def plain(value: Any) -> Any:
    """Return a value as JSON has it, without what differs from call to call."""
    if hasattr(value, "model_dump"):
        value = value.model_dump(mode="json", exclude_none=True, warnings=False)
    if isinstance(value, dict):
        return {k: plain(v) for k, v in value.items() if k not in VOLATILE}
    if isinstance(value, (list, tuple)):
        return [plain(v) for v in value]
    return value if isinstance(value, (str, int, float, bool, type(None))) else str(type(value).__name__)


def engine_stats() -> dict[str, Any]:
    """Return the engine's sums."""
    with urllib.request.urlopen(ENGINE_STATS, timeout=5) as answer:
        told: dict[str, Any] = json.loads(answer.read())
    return told


def cancelled_within(seconds: float, before: int) -> bool:
    """Say whether the engine sees one more request cancelled within this time."""
    until_s = time.monotonic() + seconds
    while time.monotonic() < until_s:
        if engine_stats()["cancelled"] > before:
            return True
        time.sleep(0.05)
    return False


def failure(call: Callable[[], Any]) -> dict[str, Any]:
    """Return what error a call raises: its class and status; a call that succeeds is told as such."""
    try:
        got = call()
    except Exception as error:  # any client's own class
        status = getattr(error, "status_code", None)
        return {"raised": type(error).__name__, "status": status}
    return {"raised": None, "got": str(got)[:200]}


def main() -> None:
    """Run all checks."""
    for name, function in CHECKS:
        try:
            line = {"check": name, "ok": True, "saw": plain(function())}
        except Exception as error:
            where = "".join(traceback.format_exception(error)[-2:])[-700:]
            line = {"check": name, "ok": False, "saw": f"{type(error).__name__}: {error}"[:500], "where": where}
        print(json.dumps(line), flush=True)
