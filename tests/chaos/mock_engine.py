"""An OpenAI-like engine that misbehaves on demand and remembers the truth: `python tests/chaos/mock_engine.py --port 0`.

It prints one JSON line with its port and then serves models, chat, completions, embeddings, responses and Anthropic's
messages, streamed and not, with vLLM's `/metrics` and `/health`. What it says is made from the prompt (`word_of`), so a client
can tell a word of its own answer from a word of somebody else's.

A fault (`FAULTS`) is chosen, first match wins, by
- the text `@fault=NAME` anywhere in the body (so that it travels through any gateway),
- the model's name, `fault-NAME`, or a model named `…:fault-NAME`,
- the control endpoint, `POST /__control {"fault": "hang", "times": 3}` (times absent: until told otherwise),
- dice, `--faults hang=0.01,reset=0.02 --seed 7`.
In the same way `@n=64`, `@ttft_ms=20`, `@gap_ms=10`, `@at=3` (token after which the fault comes), `@lump=4` (tokens a chunk)
and `@mark=word` (noted in the truth) are read out of the body.

Ground truth is kept by `x-request-id`: `GET /__stats` (sums) and `GET /__stats?full=1` (each attempt); with `--log FILE`
each start, token and end is also appended there before it reaches the socket, so that the truth outlives kill -9: tokens
in the file are at least what left. Needs uvloop and httptools, nothing of Baseload.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import ctypes
import json
import os
import random
import re
import signal
import socket
import struct
import sys
import time
import zlib
from collections import deque
from collections.abc import Iterator
from typing import Any

import httptools
import uvloop

FAULTS = (
    "hang",  # takes the request, never answers
    "stall",  # stops for ever after `at` tokens
    "reset",  # RST after `at` tokens; a plain answer: before the status line
    "reset0",  # RST before the first byte
    "fin",  # the connection ends after `at` tokens, without the last chunk
    "cut",  # a well-formed HTTP answer that ends after `at` tokens: no finish_reason, no [DONE]
    "halfbody",  # plain: half of the promised content-length, then FIN
    "garbage",  # no HTTP at all
    "badchunk",  # a chunk size that is no number
    "badjson",  # an event that is no JSON
    "errchunk",  # an error event within the stream, as vLLM sends it
    "clte",  # both content-length and transfer-encoding
    "twocl",  # two content-lengths that differ
    "longheader",  # a header of 1 MiB
    "slow",  # the answer drips out, a few bytes at a time, for three seconds
    "split",  # the answer comes in parts of seven bytes: harmless
    "nousage",  # never says how many tokens
    "lie",  # claims ten times the tokens
    "lie0",  # claims no tokens
    "lieneg",  # claims a negative and a fractional number of tokens
    "huge",  # one line of 64 MiB
    "notjson",  # 200, text/plain
    "redirect",  # 302 to somewhere else
    "hints",  # a 103 before the answer: harmless
    "extra",  # a second answer nobody asked for follows the first
    "closeafter",  # promises keep-alive, closes after the answer: llama.cpp
    "400",
    "401",
    "404",
    "429",
    "500",
    "502",
    "503",
)
HUGE_BYTES = 64 << 20
SLOW_S = 3.0
KNOBS = re.compile(rb"@(fault|n|ttft_ms|gap_ms|at|lump|mark)=([\w.-]+)")
STATUS = {200: "OK", 302: "Found", 400: "Bad Request", 401: "Unauthorized", 404: "Not Found", 405: "Method Not Allowed",
          413: "Content Too Large", 429: "Too Many Requests", 500: "Internal Server Error", 502: "Bad Gateway",
          503: "Service Unavailable"}  # fmt: skip
JSON = "application/json"
SSE = "text/event-stream; charset=utf-8"


def word_of(text: str, i: int) -> str:
    """Return the i-th token of the answer to a prompt; both ends compute it.

    >>> word_of("hello", 0)
    'w3610a686-0 '
    """
    return f"w{zlib.crc32(text.encode('utf-8', 'surrogatepass')):08x}-{i} "


def dumps(value: Any) -> bytes:
    return json.dumps(value, separators=(",", ":")).encode()


def text_of(content: Any) -> str:
    """Return the text of a message's content, a string or a list of parts."""
    if isinstance(content, str):
        return content
    if isinstance(content, list):
        return "".join(part.get("text") or "" for part in content if isinstance(part, dict))
    return ""


def example_of(schema: Any, depth: int = 0) -> Any:
    """Return a value that fits a JSON schema (the parts that clients send)."""
    if not isinstance(schema, dict) or depth > 12:
        return None
    if "enum" in schema:
        return schema["enum"][0]
    if "const" in schema:
        return schema["const"]
    for key in ("anyOf", "oneOf", "allOf"):
        if schema.get(key):
            return example_of(schema[key][0], depth + 1)
    kind = schema.get("type")
    kind = kind[0] if isinstance(kind, list) and kind else kind
    if kind == "object" or "properties" in schema:
        return {name: example_of(part, depth + 1) for name, part in (schema.get("properties") or {}).items()}
    if kind == "array":
        return [example_of(schema.get("items"), depth + 1)]
    return {"string": "Oslo", "integer": 7, "number": 0.5, "boolean": True}.get(str(kind))


class Truth:
    """What really happened, by request id; appended to a file as well."""

    def __init__(self, log: str | None) -> None:
        self.by_id: dict[str, list[dict[str, Any]]] = {}
        self.sums = {"requests": 0, "finished": 0, "cancelled": 0, "faulted": 0, "tokens_sent": 0}
        self.fd = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600) if log else -1

    def write(self, line: dict[str, Any]) -> None:
        if self.fd >= 0:
            os.write(self.fd, dumps(line) + b"\n")

    def start(self, rid: str, **what: Any) -> dict[str, Any]:
        entry = {"rid": rid, "start_s": time.time(), "sent": 0, "state": "open", **what}
        self.by_id.setdefault(rid, []).append(entry)
        self.sums["requests"] += 1
        self.write({"e": "start", **entry})
        return entry

    def sent(self, entry: dict[str, Any], n: int) -> None:
        entry["sent"] += n
        self.sums["tokens_sent"] += n
        if self.fd >= 0:
            os.write(self.fd, b'{"e":"p","rid":"%s","sent":%d}\n' % (entry["rid"].encode(), entry["sent"]))

    def end(self, entry: dict[str, Any], state: str) -> None:
        if entry["state"] != "open":
            return
        entry["state"] = state
        entry["end_s"] = time.time()
        self.sums[state] += 1
        self.write({"e": "end", "rid": entry["rid"], "sent": entry["sent"], "state": state, "fault": entry["fault"]})


class Engine:
    """The state all connections share: knobs, slots, queue, truth."""

    def __init__(self, args: argparse.Namespace) -> None:
        self.args = args
        self.models: list[str] = args.model or ["mock"]
        self.ttft_s = args.ttft_ms / 1e3
        self.gap_s = args.gap_ms / 1e3
        self.dice = random.Random(args.seed)
        self.probabilities = [
            (part.split("=")[0], float(part.split("=")[1])) for part in args.faults.split(",") if part
        ]
        self.fault, self.fault_times = "", -1
        self.health = 200
        self.truth = Truth(args.log)
        self.running = 0
        self.waiting: deque[Any] = deque()
        self.next_free_s = 0.0
        self.n_connections = 0
        self.prompt_tokens = 0
        self.generation_tokens = 0

    def pick(self, model: str, knobs: dict[str, str]) -> str:
        """Return the fault of a request, or ''."""
        if "fault" in knobs:
            return knobs["fault"]
        if "fault-" in model:
            return model.rsplit("fault-", 1)[1]
        if self.fault and self.fault_times:
            self.fault_times -= 1
            return self.fault
        draw = self.dice.random()
        for name, probability in self.probabilities:
            draw -= probability
            if draw < 0:
                return name
        return ""

    def delay_s(self) -> float:
        """Return how long fixed capacity makes a request wait: one server, first come first served."""
        if not self.args.capacity_rps:
            return 0.0
        now = time.monotonic()
        self.next_free_s = max(now, self.next_free_s) + 1.0 / self.args.capacity_rps
        return self.next_free_s - now

    def take_slot(self, answer: Answer) -> None:
        if not self.args.slots or self.running < self.args.slots:
            self.running += 1
            answer.begin()
        else:
            self.waiting.append(answer)

    def free_slot(self) -> None:
        self.running -= 1
        while self.waiting and (not self.args.slots or self.running < self.args.slots):
            answer = self.waiting.popleft()
            if not answer.over:
                self.running += 1
                answer.begin()

    def metrics(self) -> bytes:
        """Return what vLLM's /metrics would say of queue, cache and tokens."""
        name = self.models[0]
        waiting = sum(not a.over for a in self.waiting)
        rows = [
            ("vllm:num_requests_running", "gauge", self.running),
            ("vllm:num_requests_waiting", "gauge", waiting),
            ("vllm:kv_cache_usage_perc", "gauge", min(1.0, self.running / (self.args.slots or 256))),
            ("vllm:prompt_tokens_total", "counter", self.prompt_tokens),
            ("vllm:generation_tokens_total", "counter", self.generation_tokens),
            ("vllm:request_success_total", "counter", self.truth.sums["finished"]),
        ]
        text = "".join(
            f'# HELP {n} Of the engine.\n# TYPE {n} {kind}\n{n}{{engine="0",model_name="{name}"}} {float(v)}\n'
            for n, kind, v in rows
        )
        return text.encode()

    def control(self, body: bytes) -> bytes:
        """Change the engine while it runs."""
        told = json.loads(body or b"{}")
        if "fault" in told:
            self.fault, self.fault_times = told["fault"], told.get("times", -1)
        if "faults" in told:
            self.probabilities = list(told["faults"].items())
        self.ttft_s = told.get("ttft_ms", self.ttft_s * 1e3) / 1e3
        self.gap_s = told.get("gap_ms", self.gap_s * 1e3) / 1e3
        self.health = told.get("health", self.health)
        for name in ("capacity_rps", "slots", "close_after_stream"):
            if name in told:
                setattr(self.args, name, told[name])
        return b"{}"


class Plan:
    """One request, read: what to say, how fast, how to fail."""

    def __init__(self, engine: Engine, path: str, raw: bytes, body: dict[str, Any]) -> None:
        knobs = {k.decode(): v.decode() for k, v in KNOBS.findall(raw)} if b"@" in raw else {}
        self.path = path
        self.body = body
        self.model = str(body.get("model") or engine.models[0])
        self.stream = body.get("stream") is True
        self.usage_wanted = bool((body.get("stream_options") or {}).get("include_usage"))
        self.texts = self._texts()
        self.prompt = self.texts[-1] if self.texts else ""
        self.input_tokens = sum(len(t.split()) for t in self.texts) + len(self.texts)
        limit = body.get("max_completion_tokens") or body.get("max_tokens") or body.get("max_output_tokens")
        limit = limit if isinstance(limit, int) and limit > 0 else engine.args.tokens
        self.n = min(limit, int(knobs["n"])) if "n" in knobs else min(limit, engine.args.tokens)
        self.finish = "length" if self.n == limit and self.structured() is None else "stop"
        self.ttft_s = float(knobs["ttft_ms"]) / 1e3 if "ttft_ms" in knobs else engine.ttft_s
        self.gap_s = float(knobs["gap_ms"]) / 1e3 if "gap_ms" in knobs else engine.gap_s
        self.mark = knobs.get("mark", "")
        self.lump = int(knobs.get("lump", 1))
        self.fault = engine.pick(self.model, knobs)
        self.at = min(int(knobs.get("at", 3)), self.n)
        self.id = f"{engine.dice.getrandbits(64):016x}"
        self.tools = self._tools()

    def _texts(self) -> list[str]:
        if "messages" in self.body:
            system = [text_of(self.body["system"])] if self.body.get("system") else []
            return system + [text_of(m.get("content")) for m in self.body["messages"] if isinstance(m, dict)]
        given = self.body.get("prompt", self.body.get("input", ""))
        if isinstance(given, list) and given and isinstance(given[0], dict):
            return [text_of(m.get("content")) for m in given]
        if isinstance(given, list) and all(isinstance(x, str) for x in given):
            return given
        return [given if isinstance(given, str) else json.dumps(given)]

    def _tools(self) -> list[tuple[str, str]]:
        """Return (function, arguments) of the calls to make: the first tool, where one may be called."""
        tools = self.body.get("tools")
        last = self.body["messages"][-1] if self.body.get("messages") else {}
        answered = isinstance(last, dict) and (last.get("role") == "tool" or "tool_result" in json.dumps(last)[:4096])
        if not tools or self.body.get("tool_choice") == "none" or answered:
            return []
        tool = tools[0]
        function = tool.get("function", tool)
        schema = function.get("parameters") or function.get("input_schema") or {}
        return [(str(function.get("name")), json.dumps(example_of(schema) or {}))]

    def structured(self) -> str | None:
        """Return the JSON text that a response_format asks for, or None."""
        form = self.body.get("response_format") or (self.body.get("text") or {}).get("format") or {}
        if form.get("type") == "json_schema":
            return json.dumps(example_of((form.get("json_schema") or form).get("schema")))
        return '{"ok":true}' if form.get("type") == "json_object" else None

    def words(self) -> list[str]:
        """Return the tokens of the answer."""
        told = self.structured()
        if told is not None:
            n = max(1, min(self.n, len(told)))
            step = -(-len(told) // n)
            return [told[i : i + step] for i in range(0, len(told), step)]
        return [word_of(self.prompt, i) for i in range(self.n)]

    def usage(self, n_out: int) -> dict[str, Any] | None:
        """Return the usage object that the engine claims."""
        if self.fault == "nousage":
            return None
        n_in = self.input_tokens
        if self.fault == "lie":
            n_in, n_out = n_in * 10, n_out * 10
        elif self.fault == "lie0":
            n_in, n_out = 0, 0
        elif self.fault == "lieneg":
            return {"prompt_tokens": -5, "completion_tokens": 1.5, "total_tokens": -3.5}
        if self.path in ("/v1/messages", "/v1/responses"):
            return {"input_tokens": n_in, "output_tokens": n_out, "total_tokens": n_in + n_out}
        return {"prompt_tokens": n_in, "completion_tokens": n_out, "total_tokens": n_in + n_out}


def plain_answer(plan: Plan) -> dict[str, Any]:
    """Return the whole answer of a request that is not streamed."""
    words = plan.words()
    text, now = "".join(words), int(time.time())
    usage = plan.usage(len(words))
    out: dict[str, Any]
    if plan.path == "/v1/chat/completions":
        message: dict[str, Any] = {"role": "assistant", "content": text}
        finish = plan.finish
        if plan.tools:
            message["content"], finish = None, "tool_calls"
            message["tool_calls"] = [
                {"id": f"call_{plan.id}_{i}", "type": "function", "function": {"name": n, "arguments": a}}
                for i, (n, a) in enumerate(plan.tools)
            ]
        out = {"id": f"chatcmpl-{plan.id}", "object": "chat.completion", "created": now, "model": plan.model,
               "choices": [{"index": 0, "message": message, "logprobs": None, "finish_reason": finish}]}  # fmt: skip
    elif plan.path == "/v1/completions":
        out = {"id": f"cmpl-{plan.id}", "object": "text_completion", "created": now, "model": plan.model,
               "choices": [{"index": 0, "text": text, "logprobs": None, "finish_reason": plan.finish}]}  # fmt: skip
    elif plan.path == "/v1/embeddings":
        vectors = [[round(zlib.crc32(f"{text}{k}".encode()) / 2**32, 6) for k in range(8)] for text in plan.texts]
        rows = [{"object": "embedding", "index": i, "embedding": v} for i, v in enumerate(vectors)]
        out = {"object": "list", "data": rows, "model": plan.model}
        if usage:
            usage = {"prompt_tokens": usage["prompt_tokens"], "total_tokens": usage["prompt_tokens"]}
    elif plan.path == "/v1/responses":
        out = response_object(plan, text, "completed")
    else:
        content: list[dict[str, Any]] = [{"type": "text", "text": text}]
        stop = "max_tokens" if plan.finish == "length" else "end_turn"
        if plan.tools:
            content = [
                {"type": "tool_use", "id": f"toolu_{plan.id}", "name": n, "input": json.loads(a)} for n, a in plan.tools
            ]
            stop = "tool_use"
        out = {"id": f"msg_{plan.id}", "type": "message", "role": "assistant", "model": plan.model, "content": content,
               "stop_reason": stop, "stop_sequence": None}  # fmt: skip
        if usage:
            usage = {k: v for k, v in usage.items() if k != "total_tokens"}
    if usage:
        out["usage"] = usage
    return out


def response_object(plan: Plan, text: str, status: str) -> dict[str, Any]:
    """Return OpenAI's response object."""
    item = {"type": "message", "id": f"msg_{plan.id}", "status": status, "role": "assistant",
            "content": [{"type": "output_text", "text": text, "annotations": []}]}  # fmt: skip
    return {
        "id": f"resp_{plan.id}", "object": "response", "created_at": int(time.time()), "status": status, "error": None,
        "incomplete_details": None, "instructions": None, "model": plan.model, "output": [item] if text else [],
        "parallel_tool_calls": True, "tool_choice": "auto", "tools": [], "temperature": 1.0, "top_p": 1.0, "metadata": {},
        "usage": None,
    }  # fmt: skip


Part = tuple[bytes, int]  # bytes of an event, tokens in it


def data(value: Any) -> bytes:
    return b"data: " + dumps(value) + b"\n\n"


def event(value: dict[str, Any]) -> bytes:
    return b"event: " + value["type"].encode() + b"\n" + data(value)


def stream_parts(plan: Plan) -> Iterator[Part]:
    """Yield the events of a streamed answer, each with the tokens it carries."""
    if plan.path == "/v1/messages":
        return message_parts(plan)
    if plan.path == "/v1/responses":
        return response_parts(plan)
    return openai_parts(plan)


def lumps(words: list[str], lump: int) -> Iterator[tuple[str, int]]:
    for i in range(0, len(words), lump):
        part = words[i : i + lump]
        yield "".join(part), len(part)


def openai_parts(plan: Plan) -> Iterator[Part]:
    chat = plan.path == "/v1/chat/completions"
    head = {"id": ("chatcmpl-" if chat else "cmpl-") + plan.id,
            "object": "chat.completion.chunk" if chat else "text_completion",
            "created": int(time.time()), "model": plan.model}  # fmt: skip

    def choice(delta: dict[str, Any] | str, finish: str | None = None) -> bytes:
        told = {"delta": delta} if chat else {"text": delta}
        return data({**head, "choices": [{"index": 0, **told, "logprobs": None, "finish_reason": finish}]})

    n_out = 0
    if chat:
        yield choice({"role": "assistant", "content": ""}), 0
    if plan.tools:
        for i, (name, arguments) in enumerate(plan.tools):
            call = {
                "index": i,
                "id": f"call_{plan.id}_{i}",
                "type": "function",
                "function": {"name": name, "arguments": ""},
            }
            yield choice({"tool_calls": [call]}), 1
            n_out += 1
            for j in range(0, len(arguments), 8):
                yield choice({"tool_calls": [{"index": i, "function": {"arguments": arguments[j : j + 8]}}]}), 1
                n_out += 1
        yield choice({}, "tool_calls"), 0
    else:
        for text, n in lumps(plan.words(), plan.lump):
            yield choice({"content": text} if chat else text), n
            n_out += n
        yield choice({} if chat else "", plan.finish), 0
    usage = plan.usage(n_out)
    if plan.usage_wanted and usage:
        yield data({**head, "choices": [], "usage": usage}), 0
    yield b"data: [DONE]\n\n", 0


def message_parts(plan: Plan) -> Iterator[Part]:
    usage = plan.usage(0) or {}
    start = {"id": f"msg_{plan.id}", "type": "message", "role": "assistant", "model": plan.model, "content": [],
             "stop_reason": None, "stop_sequence": None,
             "usage": {"input_tokens": usage.get("input_tokens", 0), "output_tokens": 1}}  # fmt: skip
    yield event({"type": "message_start", "message": start}), 0
    n_out, stop = 0, "max_tokens" if plan.finish == "length" else "end_turn"
    if plan.tools:
        name, arguments = plan.tools[0]
        block = {"type": "tool_use", "id": f"toolu_{plan.id}", "name": name, "input": {}}
        yield event({"type": "content_block_start", "index": 0, "content_block": block}), 0
        for j in range(0, len(arguments), 8):
            delta = {"type": "input_json_delta", "partial_json": arguments[j : j + 8]}
            yield event({"type": "content_block_delta", "index": 0, "delta": delta}), 1
            n_out += 1
        stop = "tool_use"
    else:
        yield event({"type": "content_block_start", "index": 0, "content_block": {"type": "text", "text": ""}}), 0
        for text, n in lumps(plan.words(), plan.lump):
            delta = {"type": "text_delta", "text": text}
            yield event({"type": "content_block_delta", "index": 0, "delta": delta}), n
            n_out += n
    yield event({"type": "content_block_stop", "index": 0}), 0
    ended: dict[str, Any] = {"type": "message_delta", "delta": {"stop_reason": stop, "stop_sequence": None}}
    told = plan.usage(n_out)
    if told:
        ended["usage"] = {"output_tokens": told.get("output_tokens", 0)}
    yield event(ended), 0
    yield event({"type": "message_stop"}), 0


def response_parts(plan: Plan) -> Iterator[Part]:
    number = iter(range(1 << 30))

    def told(kind: str, **rest: Any) -> bytes:
        return event({"type": kind, "sequence_number": next(number), **rest})

    item = {"type": "message", "id": f"msg_{plan.id}", "status": "in_progress", "role": "assistant", "content": []}
    where = {"item_id": item["id"], "output_index": 0, "content_index": 0}
    yield told("response.created", response=response_object(plan, "", "in_progress")), 0
    yield told("response.output_item.added", output_index=0, item=item), 0
    yield told("response.content_part.added", **where, part={"type": "output_text", "text": "", "annotations": []}), 0
    whole, n_out = "", 0
    for text, n in lumps(plan.words(), plan.lump):
        whole += text
        n_out += n
        yield told("response.output_text.delta", **where, delta=text, logprobs=[]), n
    yield told("response.output_text.done", **where, text=whole, logprobs=[]), 0
    done = response_object(plan, whole, "completed")
    yield told("response.output_item.done", output_index=0, item=done["output"][0]), 0
    done["usage"] = plan.usage(n_out)
    yield told("response.completed", response=done), 0


class Answer:
    """One request being answered on one connection."""

    def __init__(self, engine: Engine, connection: Connection, plan: Plan, rid: str, keep: bool) -> None:
        self.engine, self.connection, self.plan, self.keep = engine, connection, plan, keep
        self.over = False
        self.slotted = False
        self.timer: asyncio.TimerHandle | None = None
        self.parts: Iterator[Part] = iter(())
        self.every_s = 0.0  # between parts that drip
        self.tokens = 0
        attempt = len(engine.truth.by_id.get(rid, ())) + 1
        self.entry = engine.truth.start(
            rid, attempt=attempt, path=plan.path, stream=plan.stream, input_tokens=plan.input_tokens, planned=plan.n,
            fault=plan.fault, mark=plan.mark,
        )  # fmt: skip
        engine.prompt_tokens += plan.input_tokens
        delay = engine.delay_s()
        if delay:
            self.later(delay, lambda: engine.take_slot(self))
        else:
            engine.take_slot(self)

    def later(self, delay_s: float, then: Any) -> None:
        self.timer = asyncio.get_running_loop().call_later(delay_s, then)

    def begin(self) -> None:
        """Start to answer: a slot is held from here to `close`."""
        self.slotted = True
        if self.over:
            self.release()
        elif self.plan.ttft_s:
            self.later(self.plan.ttft_s, self.head)
        else:
            self.head()

    def release(self) -> None:
        if self.slotted:
            self.slotted = False
            self.engine.free_slot()

    def close(self, state: str) -> None:
        """Note how the request ended, once."""
        if self.over:
            return
        self.over = True
        if self.timer is not None:
            self.timer.cancel()
        self.engine.truth.end(self.entry, state)
        self.release()

    def head(self) -> None:
        """Send the status line and what the fault makes of it."""
        fault, plan, connection = self.plan.fault, self.plan, self.connection
        if fault == "hang":
            return
        if fault == "reset0" or (fault == "reset" and not plan.stream):
            self.close("faulted")
            connection.reset()
        elif fault.isdigit():
            self.refuse(int(fault))
        elif (
            fault in ODD_HEADS
            or (fault == "huge" and not plan.stream)
            or (fault in ("fin", "halfbody") and not plan.stream)
        ):
            self.odd_head()
        elif plan.stream:
            self.stream_head()
        else:
            self.plain()

    def refuse(self, status: int) -> None:
        body = dumps(
            {"error": {"message": f"engine says {status}", "type": "engine_error", "param": None, "code": status}}
        )
        more = "retry-after: 1\r\n" if status in (429, 503) else ""
        self.close("faulted")
        self.connection.answer(status, body, more=more, keep=self.keep)

    def odd_head(self) -> None:
        fault = self.plan.fault
        body = dumps(plain_answer(self.plan))
        self.close("faulted")
        connection = self.connection
        if fault in ("fin", "halfbody"):
            connection.write(
                head_of(200, JSON, length=len(body)) + body[: len(body) // 2 if fault == "halfbody" else 0]
            )
            connection.finish()
        elif fault == "huge":
            connection.write(head_of(200, JSON, length=HUGE_BYTES))
            connection.pour(HUGE_BYTES, b"x")
        else:
            connection.write(ODD_HEADS[fault](body))
            connection.finish()

    def plain(self) -> None:
        plan = self.plan
        out = plain_answer(plan)
        n = len(plan.words()) if plan.path != "/v1/embeddings" else 0
        self.tokens += n
        self.engine.generation_tokens += n
        self.engine.truth.sent(self.entry, n)
        body = dumps(out)
        wire = head_of(200, JSON, length=len(body), keep=self.keep) + body
        if plan.fault == "hints":
            wire = b"HTTP/1.1 103 Early Hints\r\nlink: </x>\r\n\r\n" + wire
        if plan.fault == "extra":
            wire += head_of(200, JSON, length=2) + b"{}"
        if plan.fault in ("slow", "split"):
            self.cut_up(wire)
            return
        if plan.fault == "badjson":
            broken = body[: len(body) // 2]
            wire = head_of(200, JSON, length=len(broken), keep=self.keep) + broken
        self.connection.write(wire)
        self.done()

    def done(self) -> None:
        self.close("finished")
        closes = self.plan.fault == "closeafter" or (self.plan.stream and self.engine.args.close_after_stream)
        self.connection.next(self.keep and not closes)

    def stream_head(self) -> None:
        if self.plan.fault == "hints":
            self.connection.write(b"HTTP/1.1 103 Early Hints\r\nlink: </x>\r\n\r\n")
        self.connection.write(head_of(200, SSE, length=None, keep=self.keep))
        self.parts = stream_parts(self.plan)
        if self.plan.fault in ("slow", "split"):
            wire = b"".join(chunked(part) for part, _ in self.parts) + b"0\r\n\r\n"
            self.engine.truth.sent(self.entry, self.plan.n)
            self.cut_up(wire)
            return
        self.pump()

    def cut_up(self, wire: bytes) -> None:
        """Begin to send in parts of seven bytes: as soon as may be, or slowly, for SLOW_S at most."""
        parts = [(wire[i : i + 7], 0) for i in range(0, len(wire), 7)]
        self.parts = iter(parts)
        self.every_s = min(0.02, SLOW_S / len(parts)) if self.plan.fault == "slow" else 0.0
        self.drip()

    def drip(self) -> None:
        """Send a part and come back."""
        if self.over:
            return
        for part, _ in self.parts:
            self.connection.write(part)
            self.later(self.every_s, self.drip)
            return
        self.done()

    def pump(self) -> None:
        """Send events until one has to wait: for time, for the reader, or for ever."""
        self.timer = None
        plan, connection = self.plan, self.connection
        for _ in range(64):
            if self.over:
                return
            if connection.paused:
                connection.resumed = self.pump
                return
            if plan.fault and self.tokens >= plan.at and self.fail():
                return
            part, n = next(self.parts, (b"", 0))
            if not part:
                connection.write(
                    b"0\r\n\r\n" + (head_of(200, JSON, length=2) + b"{}" if plan.fault == "extra" else b"")
                )
                self.done()
                return
            if n:
                self.tokens += n
                self.engine.generation_tokens += n
                self.engine.truth.sent(self.entry, n)
            connection.write(chunked(part))
            if n and plan.gap_s:
                self.later(plan.gap_s, self.pump)
                return
        self.later(0.0, self.pump)

    def fail(self) -> bool:
        """Do what the fault asks for in the middle of a stream; False where it has no such moment."""
        fault, connection = self.plan.fault, self.connection
        if fault not in MID_STREAM:
            return False
        if fault == "stall":
            return True  # and never come back: the reader has to give up
        self.close("faulted")
        if fault == "reset":
            connection.reset()
        elif fault == "huge":
            connection.write(b"%x\r\ndata: " % (HUGE_BYTES + 6))
            connection.pour(HUGE_BYTES, b"y")
        else:
            connection.write(MID_STREAM[fault])
            connection.next(self.keep) if fault == "cut" else connection.finish()
        return True


def chunked(part: bytes) -> bytes:
    return b"%x\r\n%b\r\n" % (len(part), part)


def head_of(status: int, kind: str, *, length: int | None, keep: bool = True, more: str = "") -> bytes:
    """Return a response head; length None: chunked."""
    framing = "transfer-encoding: chunked" if length is None else f"content-length: {length}"
    connection = "keep-alive" if keep else "close"
    return (
        f"HTTP/1.1 {status} {STATUS.get(status, 'X')}\r\nserver: mock\r\ncontent-type: {kind}\r\n{framing}\r\n"
        f"connection: {connection}\r\n{more}\r\n"
    ).encode()


ODD_HEADS = {
    "garbage": lambda body: b"\x16\x03\x01\x00\xa5\x01\x00 this is not HTTP at all\r\n\r\n\x00\xff" * 40,
    "clte": lambda body: (
        b"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: 5\r\ntransfer-encoding: chunked\r\n\r\n"
        + chunked(body) + b"0\r\n\r\n"
    ),
    "twocl": lambda body: (
        b"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: 5\r\ncontent-length: %d\r\n\r\n" % len(body)
        + body
    ),
    "longheader": lambda body: head_of(200, JSON, length=len(body), more="x-long: " + "a" * (1 << 20) + "\r\n") + body,
    "notjson": lambda body: head_of(200, "text/plain", length=5, keep=False) + b"hello",
    "redirect": lambda body: head_of(302, JSON, length=0, keep=False, more="location: http://127.0.0.1:9/\r\n"),
}  # fmt: skip
MID_STREAM = {
    "stall": b"",
    "reset": b"",
    "huge": b"",
    "fin": b"",
    "cut": b"0\r\n\r\n",
    "badchunk": b"ZZ!\r\nnot a chunk\r\n",
    "badjson": chunked(b'data: {"id":"x","choices":[{"delta":{"content":"bro\n\n') + b"0\r\n\r\n",
    "errchunk": chunked(b'data: {"error":{"message":"EngineDeadError","type":"InternalServerError","code":500}}\n\n')
    + b"0\r\n\r\n",
}


class Connection(asyncio.Protocol):
    """One connection: requests are read one by one and answered one by one."""

    def __init__(self, engine: Engine) -> None:
        self.engine = engine
        self.parser = httptools.HttpRequestParser(self)
        self.answering: Answer | None = None
        self.queue: deque[tuple[str, str, bytes, str, bool]] = deque()
        self.busy = False
        self.paused = False
        self.resumed: Any = None
        self.url, self.parts, self.rid = b"", [b""], ""

    def connection_made(self, transport: Any) -> None:
        self.transport = transport
        self.engine.n_connections += 1

    def connection_lost(self, exc: Exception | None) -> None:
        self.engine.n_connections -= 1
        if self.answering is not None:
            self.answering.close("cancelled")
            self.answering = None

    def data_received(self, data: bytes) -> None:
        try:
            self.parser.feed_data(data)
        except httptools.HttpParserError:
            self.answer(400, b'{"error":{"message":"bad request line, header or framing"}}', keep=False)

    def on_message_begin(self) -> None:
        self.url, self.parts, self.rid = b"", [], ""

    def on_url(self, url: bytes) -> None:
        self.url += url

    def on_header(self, name: bytes, value: bytes) -> None:
        name = name.lower()
        if name == b"x-request-id":
            self.rid = value.decode("latin-1")
        elif name == b"expect":
            self.transport.write(b"HTTP/1.1 100 Continue\r\n\r\n")

    def on_body(self, body: bytes) -> None:
        self.parts.append(body)

    def on_message_complete(self) -> None:
        method = self.parser.get_method().decode()
        item = (method, self.url.decode("latin-1"), b"".join(self.parts), self.rid, self.parser.should_keep_alive())
        self.parts = []
        if self.busy:
            self.queue.append(item)
        else:
            self.serve(*item)

    def serve(self, method: str, url: str, body: bytes, rid: str, keep: bool) -> None:
        self.busy = True
        path, _, query = url.partition("?")
        engine = self.engine
        if path == "/health":
            self.answer(engine.health, b"", keep=keep)
        elif path == "/metrics":
            self.answer(200, engine.metrics(), kind="text/plain; version=0.0.4; charset=utf-8", keep=keep)
        elif path == "/v1/models":
            rows = [
                {"id": m, "object": "model", "created": 1, "owned_by": "mock", "max_model_len": 131072}
                for m in engine.models
            ]
            self.answer(200, dumps({"object": "list", "data": rows}), keep=keep)
        elif path == "/__stats":
            sums = {
                **engine.truth.sums,
                "running": engine.running,
                "connections": engine.n_connections,
                "pid": os.getpid(),
            }
            full = {"by_id": engine.truth.by_id} if "full=1" in query else {}
            self.answer(200, dumps({**sums, **full}), keep=keep)
        elif path == "/__control":
            self.answer(200, engine.control(body), keep=keep)
        elif method == "POST" and path in PATHS:
            self.generate(path, body, rid or f"-{engine.truth.sums['requests']}", keep)
        else:
            self.answer(404, b'{"error":{"message":"no such path"}}', keep=keep)

    def generate(self, path: str, raw: bytes, rid: str, keep: bool) -> None:
        try:
            body = json.loads(raw)
            plan = Plan(self.engine, path, raw, body)
        except (ValueError, TypeError, AttributeError, KeyError, IndexError) as error:
            told = {
                "error": {"message": f"engine: {type(error).__name__}", "type": "invalid_request_error", "code": 400}
            }
            self.answer(400, dumps(told), keep=keep)
            return
        known = any(
            plan.model == m or plan.model.startswith("fault-") or ":fault-" in plan.model for m in self.engine.models
        )
        if not known and not self.engine.args.any_model:
            told = {
                "error": {"message": f"The model `{plan.model}` does not exist.", "type": "NotFoundError", "code": 404}
            }
            self.answer(404, dumps(told), keep=keep)
            return
        answer = Answer.__new__(Answer)
        self.answering = answer  # before it may begin, and end, in its own constructor
        answer.__init__(self.engine, self, plan, rid, keep)  # type: ignore[misc]

    def answer(self, status: int, body: bytes, *, kind: str = JSON, keep: bool, more: str = "") -> None:
        self.write(head_of(status, kind, length=len(body), keep=keep, more=more) + body)
        self.next(keep)

    def next(self, keep: bool) -> None:
        """Go on with the next request of this connection, or end it."""
        self.answering = None
        self.busy = False
        if not keep:
            self.finish()
        elif self.queue:
            self.serve(*self.queue.popleft())

    def write(self, data: bytes) -> None:
        if not self.transport.is_closing():
            self.transport.write(data)

    def pour(self, n_bytes: int, letter: bytes) -> None:
        """Send n bytes as fast as they are read, then end the connection."""
        if self.transport.is_closing():
            return
        n = min(n_bytes, 1 << 18)
        self.transport.write(letter * n)
        rest = n_bytes - n
        if rest <= 0:
            self.finish()
        elif self.paused:
            self.resumed = lambda: self.pour(rest, letter)
        else:
            asyncio.get_running_loop().call_soon(self.pour, rest, letter)

    def pause_writing(self) -> None:
        self.paused = True

    def resume_writing(self) -> None:
        self.paused = False
        then, self.resumed = self.resumed, None
        if then is not None:
            then()

    def finish(self) -> None:
        if not self.transport.is_closing():
            self.transport.close()

    def reset(self) -> None:
        """End the connection with RST, as a killed machine's successor would."""
        sock = self.transport.get_extra_info("socket")
        if sock is not None:
            with contextlib.suppress(OSError):
                sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.transport.abort()


PATHS = frozenset(("/v1/chat/completions", "/v1/completions", "/v1/embeddings", "/v1/responses", "/v1/messages"))


def parse(argv: list[str] | None = None) -> argparse.Namespace:
    p = argparse.ArgumentParser(description="An OpenAI-like engine that misbehaves on demand.")
    p.add_argument("--host", default="127.0.0.1")
    p.add_argument("--port", type=int, default=0)
    p.add_argument("--model", action="append", help="a model it serves (repeat); default: mock")
    p.add_argument("--any-model", action="store_true", help="answer to every model name")
    p.add_argument("--tokens", type=int, default=16, help="tokens of an answer, unless max_tokens or @n= says less")
    p.add_argument("--ttft-ms", type=float, default=0.0)
    p.add_argument("--gap-ms", type=float, default=0.0, help="between tokens")
    p.add_argument("--slots", type=int, default=0, help="requests at once; 0: any number")
    p.add_argument("--capacity-rps", type=float, default=0.0, help="requests served a second; 0: any number")
    p.add_argument("--faults", default="", help="fault=probability,…")
    p.add_argument("--seed", type=int, default=0)
    p.add_argument("--log", help="append the ground truth here")
    p.add_argument(
        "--close-after-stream", action="store_true", help="close after a stream, though keep-alive was promised"
    )
    return p.parse_args(argv)


async def main(args: argparse.Namespace) -> None:
    loop = asyncio.get_running_loop()
    engine = Engine(args)
    server = await loop.create_server(
        lambda: Connection(engine), args.host, args.port, backlog=4096, reuse_address=True
    )
    port = server.sockets[0].getsockname()[1]
    print(json.dumps({"port": port, "pid": os.getpid(), "url": f"http://{args.host}:{port}"}), flush=True)
    stop = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop.set)
    await stop.wait()
    server.close()


def die_with_parent() -> None:
    """Ask Linux to end this process when its parent goes."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(1, signal.SIGKILL, 0, 0, 0)


if __name__ == "__main__":
    die_with_parent()
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(main(parse()))
