"""How an engine is: healthy or not, how many requests run and wait there, how much KV cache is free.

Reads what each engine offers of itself: vLLM's and SGLang's and TGI's and llama.cpp's `/metrics`, llama.cpp's `/slots`,
and `/health`, `/v1/models` or Ollama's `/api/version` where there is no more. What an engine does not tell is -1. An
engine is not trusted: sizes and times are bounded, and a number that cannot be is ignored.
"""

from __future__ import annotations

import math
import time
from typing import NamedTuple

import msgspec

from baseload.adapters.http_line import Line
from baseload.adapters.http_small import Answer, HttpProblem

UNKNOWN = -1
METRICS_BYTES_MAX = 4 << 20
REQUESTS_MAX = 1e7
HEALTH_EVERY = 3  # looks at an engine whose counters were just read, between two at its health page
LOOK_AGAIN = 30  # looks after which an engine without counters is asked for them again

NOTHING = (UNKNOWN, UNKNOWN, float(UNKNOWN))


class Seen(NamedTuple):
    """An engine as last seen."""

    healthy: bool
    running: int = UNKNOWN
    waiting: int = UNKNOWN
    kv_free: float = UNKNOWN  # ratio
    kind: str = "none"
    reason: str = ""  # why it is not healthy
    took_s: float = 0.0


class Names(NamedTuple):
    """How an engine calls what we want; several names where versions differ."""

    running: tuple[str, ...]
    waiting: tuple[str, ...]
    kv_used: tuple[str, ...] = ()  # ratio


NAMES = {
    "vllm": Names(
        ("vllm:num_requests_running",),
        ("vllm:num_requests_waiting",),
        ("vllm:kv_cache_usage_perc", "vllm:gpu_cache_usage_perc"),
    ),
    "sglang": Names(("sglang:num_running_reqs",), ("sglang:num_queue_reqs",), ("sglang:token_usage",)),
    "llamacpp": Names(
        ("llamacpp:requests_processing",), ("llamacpp:requests_deferred",), ("llamacpp:kv_cache_usage_ratio",)
    ),
    "tgi": Names(("tgi_batch_current_size",), ("tgi_queue_size",)),
}
KEPT = ("vllm", "sglang", "tgi")  # llama.cpp gives a kept connection one of its few threads
MARKS = {"vllm": b"vllm:", "sglang": b"sglang:", "llamacpp": b"llamacpp:", "tgi": b"tgi_"}


class Scraper:
    """Looks at one engine again and again; what kind it is, is found out once."""

    def __init__(self, url: str, *, kind: str = "auto", api_key: str = "", timeout_s: float = 2.0) -> None:
        self.url = url.rstrip("/").removesuffix("/v1").rstrip("/")  # as upstream.py reads it
        self.kind = kind
        self.timeout_s = timeout_s
        self.headers = {"authorization": f"Bearer {api_key}"} if api_key else {}
        self._line = Line(self.url, self.headers)
        self.health_path = "/health"
        self.looks = 0
        self.was_ill = False

    async def look(self) -> Seen:
        """Return how the engine is now; never raises for what the engine does."""
        started_s = time.monotonic()
        self.looks += 1
        wants_metrics = self.kind != "none" or self.looks % LOOK_AGAIN == 0
        try:
            running, waiting, kv_free = await self._metrics() if wants_metrics else NOTHING
        except HttpProblem as problem:
            if self.kind != "auto":  # counters that were there, and do not come: no second wait for its health
                return Seen(False, reason=str(problem), kind=self.kind, took_s=time.monotonic() - started_s)
            running, waiting, kv_free = NOTHING
        if running < 0 or self.was_ill or self.looks % HEALTH_EVERY == 1:
            health = await self._health()
            self.was_ill = bool(health)
            if health:
                return Seen(False, reason=health, kind=self.kind, took_s=time.monotonic() - started_s)
        took_s = time.monotonic() - started_s
        return Seen(True, running, waiting, kv_free, self.kind, "", took_s)

    async def _get(self, path: str, bytes_max: int = 65_536) -> Answer:
        keep = self.kind in KEPT
        return await self._line.get(path, timeout_s=self.timeout_s, body_bytes_max=bytes_max, keep=keep)

    def close(self) -> None:
        """Let its connection go; it may be asked again."""
        self._line.close()

    async def _health(self) -> str:
        """Return why the engine is not healthy, or ''. A server without /health is asked for its models."""
        try:
            answer = await self._get(self.health_path)
            if answer.status in (404, 405) and self.health_path == "/health":
                for path in ("/v1/models", "/api/version"):
                    answer = await self._get(path)
                    if answer.status < 400:
                        self.health_path = path
                        break
        except HttpProblem as problem:
            return str(problem)
        return "" if answer.status < 300 else f"{self.health_path} answers {answer.status}"

    async def _metrics(self) -> tuple[int, int, float]:
        """Return the counters; raises HttpProblem where no answer comes."""
        answer = await self._get("/metrics", METRICS_BYTES_MAX)
        if answer.status == 200:
            found = self.kind if self.kind in NAMES else kind_of(answer.body)
            if self.kind == "auto" or found in NAMES:
                self.kind = found
            counters = read_counters(answer.body, self.kind)
            if self.kind == "llamacpp" and counters[2] < 0.0:
                return counters[0], counters[1], await self._free_slots()
            return counters
        if self.kind in ("auto", "llamacpp"):
            counting: list[int] = []
            free = await self._free_slots(counting)
            if counting:
                self.kind = "llamacpp"
                return counting[0], UNKNOWN, free
        if self.kind == "auto":
            self.kind = "none"
        return NOTHING

    async def _free_slots(self, running: list[int] | None = None) -> float:
        """Return the share of llama.cpp's slots that are free, and note how many are not."""
        answer = await self._get("/slots", METRICS_BYTES_MAX)
        busy = read_slots(answer.body) if answer.status == 200 else []
        if not busy:
            return float(UNKNOWN)
        if running is not None:
            running.append(sum(busy))
        return 1.0 - sum(busy) / len(busy)


async def scrape(url: str, *, kind: str = "auto", api_key: str = "", timeout_s: float = 2.0) -> Seen:
    """Return how the engine at `url` is, looked at once."""
    scraper = Scraper(url, kind=kind, api_key=api_key, timeout_s=timeout_s)
    try:
        return await scraper.look()
    finally:
        scraper.close()


def kind_of(text: bytes) -> str:
    """Return whose counters these are, or `none`.

    >>> kind_of(b"# TYPE vllm:num_requests_running gauge"), kind_of(b"go_goroutines 7")
    ('vllm', 'none')
    """
    for kind, mark in MARKS.items():
        if text.startswith(mark) or b"\n" + mark in text or b" " + mark in text:
            return kind
    return "none"


def read_counters(text: bytes, kind: str) -> tuple[int, int, float]:
    """Return (running, waiting, free ratio of the KV cache) from counters; -1 for what is not among them.

    >>> read_counters(b'vllm:num_requests_running{model="a"} 2.0\\nvllm:kv_cache_usage_perc 0.25\\n', "vllm")
    (2, -1, 0.75)
    """
    names = NAMES.get(kind)
    if names is None:
        return NOTHING
    running, waiting = (_total(text, which) for which in (names.running, names.waiting))
    used = [value for name in names.kv_used for value in _values(text, name)]
    return running, waiting, 1.0 - min(1.0, max(used)) if used else float(UNKNOWN)


def _total(text: bytes, names: tuple[str, ...]) -> int:
    values = [value for name in names for value in _values(text, name)]
    return int(min(sum(values), REQUESTS_MAX)) if values else UNKNOWN


def _values(text: bytes, name: str) -> list[float]:
    """Return the finite, non-negative values of a metric, whatever its labels."""
    wanted = name.encode()
    values, at = [], 0
    while (at := text.find(wanted, at)) >= 0:
        end = text.find(b"\n", at)
        line = text[at : end if end >= 0 else len(text)]
        after = line[len(wanted) : len(wanted) + 1]
        if (at == 0 or text[at - 1 : at] == b"\n") and after in (b"{", b" "):
            cells = line[line.rfind(b"}") + 1 :].split() if after == b"{" else line[len(wanted) :].split()
            try:
                value = float(cells[0]) if cells else math.nan
            except ValueError:
                value = math.nan
            if math.isfinite(value) and value >= 0.0:
                values.append(min(value, REQUESTS_MAX))
        at += len(wanted)
    return values


def read_slots(body: bytes) -> list[bool]:
    """Return which of llama.cpp's slots are busy; none where this is no list of slots.

    >>> read_slots(b'[{"id": 0, "is_processing": true}, {"id": 1, "state": 0}]')
    [True, False]
    """
    try:
        slots = msgspec.json.decode(body)
    except (msgspec.DecodeError, RecursionError):
        return []
    if not isinstance(slots, list) or not all(isinstance(slot, dict) for slot in slots):
        return []
    return [slot.get("is_processing", slot.get("state", 0)) not in (False, 0, None) for slot in slots]
