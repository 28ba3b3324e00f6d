"""Health and queue depth, from recorded answers of five engines, and from servers that mean no good."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import Awaitable, Callable

import pytest
from hypothesis import given
from hypothesis import strategies as st

from baseload.adapters.http_small import Answer, HttpProblem, ask
from baseload.adapters.scrape import Scraper, Seen, kind_of, read_counters, read_slots, scrape

VLLM = b"""# HELP vllm:num_requests_running Number of requests in model execution batches.
# TYPE vllm:num_requests_running gauge
vllm:num_requests_running{engine="0",model_name="meta-llama/Llama-3.1-8B"} 7.0
vllm:num_requests_running{engine="1",model_name="meta-llama/Llama-3.1-8B"} 3.0
# TYPE vllm:num_requests_waiting gauge
vllm:num_requests_waiting{engine="0",model_name="a } b"} 2.0
vllm:num_requests_waiting_by_reason{engine="0",reason="capacity"} 99.0
# TYPE vllm:kv_cache_usage_perc gauge
vllm:kv_cache_usage_perc{engine="0"} 0.25
vllm:kv_cache_usage_perc{engine="1"} 0.75
"""
SGLANG = b"""# TYPE sglang:num_running_reqs gauge
sglang:num_running_reqs{model_name="qwen",tp_rank="0"} 5.0
sglang:num_queue_reqs{model_name="qwen",tp_rank="0"} 1.0
sglang:token_usage{model_name="qwen",tp_rank="0"} 0.5
"""
TGI = b"""# TYPE tgi_batch_current_size gauge
tgi_batch_current_size 4
tgi_queue_size 9
"""
LLAMA = b"""# TYPE llamacpp:requests_processing gauge
llamacpp:requests_processing 2
# TYPE llamacpp:requests_deferred gauge
llamacpp:requests_deferred 6
"""
SLOTS = (
    b'[{"id":0,"is_processing":true},{"id":1,"is_processing":true},'
    b'{"id":2,"is_processing":false},{"id":3,"is_processing":false}]'
)

Pages = dict[str, tuple[int, bytes]]
Behave = Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]


def pages(content: Pages) -> Behave:
    """Return a server of some pages; anything else is 404."""

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        head = await reader.readuntil(b"\r\n\r\n")
        status, body = content.get(head.split()[1].decode(), (404, b"no such page"))
        writer.write(b"HTTP/1.1 %d X\r\ncontent-length: %d\r\n\r\n%b" % (status, len(body), body))

    return serve


def raw(*parts: bytes, every_s: float = 0.0, forever: bool = False) -> Behave:
    """Return a server that sends these bytes whatever it is asked."""

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        while True:
            for part in parts:
                writer.write(part)
                await writer.drain()
                await asyncio.sleep(every_s)
            if not forever:
                return

    return serve


def look(behave: Behave, *, kind: str = "auto", times: int = 1, timeout_s: float = 0.5) -> list[Seen]:
    """Return how an engine that behaves so is seen."""

    async def all_of_it() -> list[Seen]:
        async def polite(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            with contextlib.suppress(OSError, asyncio.IncompleteReadError, asyncio.CancelledError):
                await behave(reader, writer)
            writer.close()

        server = await asyncio.start_server(polite, "127.0.0.1", 0)
        url = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}/"
        scraper = Scraper(url, kind=kind, timeout_s=timeout_s)
        seen = [await scraper.look() for _ in range(times)]
        server.close()
        return seen

    return asyncio.run(all_of_it())


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        ({"/health": (200, b""), "/metrics": (200, VLLM)}, (True, 10, 2, 0.25, "vllm")),
        ({"/health": (200, b""), "/metrics": (200, SGLANG)}, (True, 5, 1, 0.5, "sglang")),
        ({"/health": (200, b""), "/metrics": (200, TGI)}, (True, 4, 9, -1, "tgi")),
        ({"/health": (200, b""), "/metrics": (200, LLAMA), "/slots": (200, SLOTS)}, (True, 2, 6, 0.5, "llamacpp")),
        ({"/health": (200, b""), "/metrics": (501, b"{}"), "/slots": (200, SLOTS)}, (True, 2, -1, 0.5, "llamacpp")),
        ({"/api/version": (200, b'{"version":"0.9"}')}, (True, -1, -1, -1, "none")),  # Ollama
        ({"/v1/models": (200, b"{}")}, (True, -1, -1, -1, "none")),
        ({"/health": (200, b""), "/metrics": (200, b"go_goroutines 7\n")}, (True, -1, -1, -1, "none")),
    ],
)
def test_each_kind_of_engine_is_read_without_being_named(content: Pages, expected: tuple[object, ...]):
    """vLLM, SGLang, TGI, llama.cpp with and without counters, Ollama and what only has a health page."""
    assert look(pages(content), times=2)[-1][:5] == expected


def test_an_engine_that_is_loading_or_broken_is_not_healthy_and_says_why():
    """503 while a model loads, 500 after a crash, 404 everywhere: not healthy, with the status as reason."""
    loading = look(pages({"/health": (503, b"loading"), "/metrics": (200, VLLM)}))[0]
    nothing = look(pages({}))[0]

    assert not loading.healthy
    assert loading.reason == "/health answers 503"
    assert not nothing.healthy
    assert "404" in nothing.reason
    assert not asyncio.run(scrape("http://127.0.0.1:9")).healthy
    assert not asyncio.run(scrape("file:///etc/passwd")).healthy


@pytest.mark.parametrize(
    "behave",
    [
        raw(b""),
        raw(b"\x00\xff\x16\x03\x01" * 100),
        raw(b"HTTP/1.1 200 OK\r\ncontent-length: -5\r\n\r\nx"),
        raw(b"HTTP/1.1 200 OK\r\ncontent-length: 99999999999999999999\r\n\r\nx"),
        raw(b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\nzz\r\n"),
        raw(b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n-5\r\nabc\r\n"),
        raw(b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n5\r\nabcdefgh\r\n0\r\n\r\n"),
        raw(b"HTTP/1.1 200 OK\r\n" + b"x: y\r\n" * 10_000 + b"\r\n"),
        raw(b"HTTP/1.1 100 Continue\r\n\r\n", forever=True),
        raw(b"HTTP/1.1 200 OK\r\nx: ", b"y", every_s=0.05, forever=True),
        raw(b"HTTP/1.1 OK\r\n\r\n"),
    ],
    ids=["closes", "no http", "negative", "huge", "bad chunk", "minus chunk", "long chunk", "headers", "100s", "drip",
         "status"],
)  # fmt: skip
def test_a_hostile_engine_is_unhealthy_within_the_time(behave: Behave):
    """Whatever a server sends, the look ends in time and finds it not healthy."""
    started_s = time.monotonic()
    seen = look(behave)[0]

    assert not seen.healthy
    assert seen.reason
    assert time.monotonic() - started_s < 1.5


def test_endless_metrics_are_cut_and_lies_ignored():
    """A page without end costs four megabytes at most; numbers that cannot be are left out."""
    chunk = b"HTTP/1.1 200 OK\r\n\r\n" + b"vllm:num_requests_running 3\n" * 10_000
    seen = look(raw(chunk, forever=True), timeout_s=3.0)[0]

    assert seen.healthy
    assert seen.running < 3 * (4 << 20) / 27  # what four megabytes hold
    lies = b'vllm:num_requests_running NaN\nvllm:num_requests_waiting -7\nvllm:kv_cache_usage_perc{a="b"} 1e308\n'
    assert read_counters(lies, "vllm") == (-1, -1, 0.0)
    assert read_counters(b"vllm:num_requests_running{a=", "vllm") == (-1, -1, -1)
    assert read_slots(b"[" * 100_000) == []
    assert read_slots(b'[1, "x"]') == []


@given(st.binary(max_size=400), st.sampled_from(["vllm", "sglang", "llamacpp", "tgi", "none"]))
def test_any_bytes_are_read_without_a_crash(text: bytes, kind: str):
    """No page of counters or slots crashes the reader, and what it says is possible."""
    kind_of(text)
    read_slots(text)
    running, waiting, kv_free = read_counters(text + b"\nvllm:num_requests_running " + text, kind)

    assert read_counters(b"vllm:num_requests_running 1e300\n" * 3, "vllm")[0] == 10_000_000  # the most that is believed
    assert running >= -1 and waiting >= -1
    assert kv_free == -1 or 0.0 <= kv_free <= 1.0


def test_a_header_cannot_be_smuggled_through_a_key():
    """An API key with a line break is refused, not sent."""
    with pytest.raises(HttpProblem, match="line break"):
        asyncio.run(_ask_with("x\r\nx-evil: 1"))


async def _ask_with(key: str) -> Answer:
    server = await asyncio.start_server(lambda reader, writer: writer.close(), "127.0.0.1", 0)
    port = server.sockets[0].getsockname()[1]
    try:
        return await ask(f"http://127.0.0.1:{port}/", headers={"authorization": f"Bearer {key}"})
    finally:
        server.close()


def test_an_engine_whose_counters_go_on_but_whose_health_fails_is_found_out():
    """A server that still counts while its engine is dead is noticed within three looks, and its recovery at once."""
    content: Pages = {"/health": (200, b""), "/metrics": (200, VLLM)}
    n_health = 0

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        nonlocal n_health
        head = await reader.readuntil(b"\r\n\r\n")
        path = head.split()[1].decode()
        n_health += path == "/health"
        status, body = content[path]
        if path == "/health":
            status = 503 if 2 <= n_health <= 3 else 200
        writer.write(b"HTTP/1.1 %d X\r\ncontent-length: %d\r\n\r\n%b" % (status, len(body), body))

    seen = [one.healthy for one in look(serve, times=8)]

    assert seen == [True, True, True, False, False, True, True, True]
