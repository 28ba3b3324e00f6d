"""What an emulated engine reads and says: prompts to token counts and prefix hashes, answers in four API dialects.

Every word of an answer is "rehearsal": nobody should take it for a model's. A token is four bytes of text. The dialects
are OpenAI's chat completions, completions and responses, and Anthropic's messages; each is a small class with `opening`,
`token` (where `tokens_alike`, the same bytes for each, so that a step writes them without formatting), `closing` and `whole`.
"""

from __future__ import annotations

import base64
import math
import struct
from typing import Any

import msgspec

WORD = " rehearsal"
BYTES_PER_TOKEN = 4
MESSAGE_TOKENS = 4  # a message's role and marks
IMAGE_TOKENS = 256
EMBEDDING_WIDTH = 64
LONGEST_ANSWER_TOKENS = 1 << 20

encode = msgspec.json.encode


class BadRequest(ValueError):
    """A body that cannot be served; the text is for the client."""


class Ask(msgspec.Struct):
    """What of a request matters here."""

    model: str
    text: str
    input_tokens: int
    max_tokens: int | None
    exact: bool  # the answer is as long as max_tokens: ignore_eos
    stream: bool
    include_usage: bool
    n_inputs: int = 1  # embeddings
    as_base64: bool = False


def read(path: str, body: bytes) -> Ask:
    """Return what a POST to `path` asks; raises BadRequest."""
    try:
        fields = msgspec.json.decode(body)
    except (msgspec.DecodeError, RecursionError) as problem:
        raise BadRequest(f"the body is not JSON: {problem}") from None
    if not isinstance(fields, dict):
        raise BadRequest("the body is not a JSON object")
    texts: list[str] = []
    extra, n_inputs = 0, 1
    if path == "/v1/embeddings":
        value = fields.get("input")
        n_inputs = len(value) if isinstance(value, list) and not all(isinstance(v, int) for v in value) else 1
        extra = _collect(value, texts)
    elif path == "/v1/completions":
        extra = _collect(fields.get("prompt"), texts)
    else:
        for name in ("instructions", "system", "tools"):
            value = fields.get(name)
            if value:
                extra += MESSAGE_TOKENS
                _collect(value if isinstance(value, str) else encode(value).decode(), texts)
        messages = fields.get("input" if path == "/v1/responses" else "messages")
        extra += _collect(messages, texts)
    if not texts and not extra:
        raise BadRequest("the request has no prompt")
    options = fields.get("stream_options")
    return Ask(
        model=str(fields.get("model") or ""),
        text="\x00".join(texts),
        input_tokens=extra + sum(-(-len(text.encode("utf-8", "replace")) // BYTES_PER_TOKEN) for text in texts),
        max_tokens=_limit(fields),
        exact=fields.get("ignore_eos") is True,
        stream=fields.get("stream") is True,
        include_usage=isinstance(options, dict) and options.get("include_usage") is True,
        n_inputs=max(1, n_inputs),
        as_base64=fields.get("encoding_format") == "base64",
    )


def _limit(fields: dict[str, Any]) -> int | None:
    for name in ("max_completion_tokens", "max_tokens", "max_output_tokens"):
        value = fields.get(name)
        if value is None:
            continue
        if not isinstance(value, int) or isinstance(value, bool) or not 1 <= value <= LONGEST_ANSWER_TOKENS:
            raise BadRequest(f"{name} must be a whole number between 1 and {LONGEST_ANSWER_TOKENS}")
        return value
    return None


def _collect(value: Any, texts: list[str], depth: int = 0) -> int:
    """Add the texts within a prompt, in order, to `texts`; return the tokens of what is no text."""
    if isinstance(value, str):
        texts.append(value)
        return 0
    if isinstance(value, int) and not isinstance(value, bool):
        return 1  # a token by number
    if depth > 6:
        return 0
    if isinstance(value, list):
        return sum(_collect(part, texts, depth + 1) for part in value)
    if not isinstance(value, dict):
        return 0
    extra = MESSAGE_TOKENS if "role" in value else 0
    if isinstance(value.get("text"), str):
        texts.append(value["text"])
    elif "content" in value:
        extra += _collect(value["content"], texts, depth + 1)
    elif str(value.get("type", "")).startswith(("image", "input_image")):
        extra += IMAGE_TOKENS
    if value.get("tool_calls"):
        texts.append(encode(value["tool_calls"]).decode())
    return extra


def prefix_hashes(text: str, input_tokens: int, block_tokens: int) -> list[int]:
    """Return a hash of the whole prefix for each full block of a prompt; equal beginnings have equal hashes."""
    raw = text.encode("utf-8", "replace")
    size = block_tokens * BYTES_PER_TOKEN
    hashes, so_far = [], 0
    for at in range(0, min(len(raw), input_tokens * BYTES_PER_TOKEN) - size + 1, size):
        so_far = hash((so_far, raw[at : at + size]))
        hashes.append(so_far)
    return hashes[: input_tokens // block_tokens]


def answer_tokens(dice: float, mean_tokens: float, limit: int | None, *, exact: bool) -> int:
    """Return the length of an answer: geometric around the mean, not above the limit; the limit where `exact`.

    >>> answer_tokens(0.5, 100.0, None, exact=False), answer_tokens(0.5, 100.0, 16, exact=False)
    (69, 16)
    """
    if exact and limit is not None:
        return limit
    drawn = 1 if mean_tokens <= 1.0 else 1 + int(math.log(max(dice, 1e-12)) / math.log(1.0 - 1.0 / mean_tokens))
    return min(drawn, limit or LONGEST_ANSWER_TOKENS)


def embeddings(ask: Ask, model: str) -> bytes:
    """Return the answer to an embeddings request: vectors that mean nothing."""
    vector = [1.0 / math.sqrt(EMBEDDING_WIDTH)] * EMBEDDING_WIDTH
    value: Any = base64.b64encode(struct.pack(f"<{len(vector)}f", *vector)).decode() if ask.as_base64 else vector
    rows = [{"object": "embedding", "index": i, "embedding": value} for i in range(ask.n_inputs)]
    usage = {"prompt_tokens": ask.input_tokens, "total_tokens": ask.input_tokens}
    return encode({"object": "list", "data": rows, "model": model, "usage": usage})


def sse(event: Any, name: str = "") -> bytes:
    """Return a server-sent event."""
    head = f"event: {name}\n".encode() if name else b""
    return head + b"data: " + encode(event) + b"\n\n"


class Chat:
    """OpenAI's chat completions."""

    tokens_alike = True
    object_name, prefix = "chat.completion", "chatcmpl-"

    def __init__(self, ask: Ask, number: int, created: int, model: str) -> None:
        self.ask = ask
        self.head = {"id": f"{self.prefix}{number:016x}", "created": created, "model": model}

    def _chunk(self, delta: dict[str, Any], finish: str | None) -> dict[str, Any]:
        choice = {"index": 0, "delta": delta, "logprobs": None, "finish_reason": finish}
        return self.head | {"object": "chat.completion.chunk", "choices": [choice]}

    def opening(self) -> bytes:
        """Return what comes with the first token."""
        return sse(self._chunk({"role": "assistant", "content": ""}, None))

    def token(self) -> bytes:
        """Return the bytes of one token."""
        return sse(self._chunk({"content": WORD}, None))

    def closing(self, n_tokens: int, cached_tokens: int, *, full: bool) -> bytes:
        """Return what ends the stream; `full` where the limit ended it."""
        end = sse(self._chunk({}, "length" if full else "stop"))
        if self.ask.include_usage:
            usage = self._usage(n_tokens, cached_tokens)
            end += sse(self.head | {"object": "chat.completion.chunk", "choices": [], "usage": usage})
        return end + b"data: [DONE]\n\n"

    def whole(self, n_tokens: int, cached_tokens: int, *, full: bool) -> bytes:
        """Return the whole answer, not streamed."""
        message = {"role": "assistant", "content": WORD * n_tokens}
        choice = {"index": 0, "message": message, "logprobs": None, "finish_reason": "length" if full else "stop"}
        usage = self._usage(n_tokens, cached_tokens)
        return encode(self.head | {"object": self.object_name, "choices": [choice], "usage": usage})

    def _usage(self, n_tokens: int, cached_tokens: int) -> dict[str, Any]:
        return {
            "prompt_tokens": self.ask.input_tokens,
            "completion_tokens": n_tokens,
            "total_tokens": self.ask.input_tokens + n_tokens,
            "prompt_tokens_details": {"cached_tokens": cached_tokens},
        }


class Completion(Chat):
    """OpenAI's older completions."""

    object_name, prefix = "text_completion", "cmpl-"

    def _chunk(self, delta: dict[str, Any], finish: str | None) -> dict[str, Any]:
        choice = {"index": 0, "text": delta.get("content", ""), "logprobs": None, "finish_reason": finish}
        return self.head | {"object": self.object_name, "choices": [choice]}

    def opening(self) -> bytes:
        """Return nothing: the first token opens."""
        return b""

    def closing(self, n_tokens: int, cached_tokens: int, *, full: bool) -> bytes:
        """Return what ends the stream."""
        end = sse(self._chunk({}, "length" if full else "stop"))
        if self.ask.include_usage:
            end += sse(
                self.head | {"object": self.object_name, "choices": [], "usage": self._usage(n_tokens, cached_tokens)}
            )
        return end + b"data: [DONE]\n\n"

    def whole(self, n_tokens: int, cached_tokens: int, *, full: bool) -> bytes:
        """Return the whole answer."""
        choice = {"index": 0, "text": WORD * n_tokens, "logprobs": None, "finish_reason": "length" if full else "stop"}
        usage = self._usage(n_tokens, cached_tokens)
        return encode(self.head | {"object": self.object_name, "choices": [choice], "usage": usage})


class Messages:
    """Anthropic's messages."""

    tokens_alike = True

    def __init__(self, ask: Ask, number: int, created: int, model: str) -> None:
        self.ask = ask
        self.head = {"id": f"msg_{number:016x}", "type": "message", "role": "assistant", "model": model}

    def opening(self) -> bytes:
        """Return the events before the first token's."""
        usage = self._usage(0, 0)
        message: dict[str, Any] = self.head | {
            "content": [],
            "stop_reason": None,
            "stop_sequence": None,
            "usage": usage,
        }
        block = {"type": "content_block_start", "index": 0, "content_block": {"type": "text", "text": ""}}
        return sse({"type": "message_start", "message": message}, "message_start") + sse(block, "content_block_start")

    def token(self) -> bytes:
        """Return the bytes of one token."""
        delta = {"type": "text_delta", "text": WORD}
        return sse({"type": "content_block_delta", "index": 0, "delta": delta}, "content_block_delta")

    def closing(self, n_tokens: int, cached_tokens: int, *, full: bool) -> bytes:
        """Return what ends the stream."""
        delta = {"stop_reason": "max_tokens" if full else "end_turn", "stop_sequence": None}
        return (
            sse({"type": "content_block_stop", "index": 0}, "content_block_stop")
            + sse(
                {"type": "message_delta", "delta": delta, "usage": self._usage(n_tokens, cached_tokens)},
                "message_delta",
            )
            + sse({"type": "message_stop"}, "message_stop")
        )

    def whole(self, n_tokens: int, cached_tokens: int, *, full: bool) -> bytes:
        """Return the whole answer."""
        return encode(
            self.head
            | {
                "content": [{"type": "text", "text": WORD * n_tokens}],
                "stop_reason": "max_tokens" if full else "end_turn",
                "stop_sequence": None,
                "usage": self._usage(n_tokens, cached_tokens),
            }
        )

    def _usage(self, n_tokens: int, cached_tokens: int) -> dict[str, int]:
        return {
            "input_tokens": self.ask.input_tokens - cached_tokens,
            "cache_read_input_tokens": cached_tokens,
            "output_tokens": n_tokens,
        }


class Responses:
    """OpenAI's responses."""

    tokens_alike = False

    def __init__(self, ask: Ask, number: int, created: int, model: str) -> None:
        self.ask = ask
        self.item_id = f"msg_{number:016x}"
        self.n_events = 0
        self.head = {"id": f"resp_{number:016x}", "object": "response", "created_at": created, "model": model}

    def _response(self, status: str, n_tokens: int, cached_tokens: int, *, full: bool) -> dict[str, Any]:
        done = status != "in_progress"
        usage = {
            "input_tokens": self.ask.input_tokens,
            "input_tokens_details": {"cached_tokens": cached_tokens},
            "output_tokens": n_tokens,
            "output_tokens_details": {"reasoning_tokens": 0},
            "total_tokens": self.ask.input_tokens + n_tokens,
        }
        return self.head | {
            "status": status,
            "incomplete_details": {"reason": "max_output_tokens"} if full else None,
            "error": None,
            "parallel_tool_calls": True,
            "tool_choice": "auto",
            "tools": [],
            "output": [self._item(WORD * n_tokens, "completed")] if done else [],
            "usage": usage if done else None,
        }

    def _item(self, text: str, status: str) -> dict[str, Any]:
        content = [self._part(text)] if status == "completed" else []
        return {"id": self.item_id, "type": "message", "role": "assistant", "status": status, "content": content}

    def _part(self, text: str) -> dict[str, Any]:
        return {"type": "output_text", "text": text, "annotations": [], "logprobs": []}

    def _event(self, name: str, number: int, **fields: Any) -> bytes:
        return sse({"type": name, "sequence_number": number, **fields}, name)

    def opening(self) -> bytes:
        """Return the events before the first token's."""
        response = self._response("in_progress", 0, 0, full=False)
        where = {"output_index": 0}
        return (
            self._event("response.created", 0, response=response)
            + self._event("response.in_progress", 1, response=response)
            + self._event("response.output_item.added", 2, item=self._item("", "in_progress"), **where)
            + self._event("response.content_part.added", 3, part=self._part(""), **self._place())
        )

    def _place(self) -> dict[str, Any]:
        return {"item_id": self.item_id, "output_index": 0, "content_index": 0}

    def token(self) -> bytes:
        """Return the bytes of one token; each has a number of its own."""
        self.n_events += 1
        return self._event("response.output_text.delta", 3 + self.n_events, delta=WORD, logprobs=[], **self._place())

    def closing(self, n_tokens: int, cached_tokens: int, *, full: bool) -> bytes:
        """Return what ends the stream."""
        text = WORD * n_tokens
        end = "response.incomplete" if full else "response.completed"
        response = self._response(end.removeprefix("response."), n_tokens, cached_tokens, full=full)
        return (
            self._event("response.output_text.done", 4 + self.n_events, text=text, logprobs=[], **self._place())
            + self._event("response.content_part.done", 5 + self.n_events, part=self._part(text), **self._place())
            + self._event(
                "response.output_item.done", 6 + self.n_events, item=self._item(text, "completed"), output_index=0
            )
            + self._event(end, 7 + self.n_events, response=response)
        )

    def whole(self, n_tokens: int, cached_tokens: int, *, full: bool) -> bytes:
        """Return the whole answer."""
        return encode(self._response("incomplete" if full else "completed", n_tokens, cached_tokens, full=full))


Dialect = Chat | Messages | Responses
DIALECTS: dict[str, type[Chat] | type[Messages] | type[Responses]] = {
    "/v1/chat/completions": Chat,
    "/v1/completions": Completion,
    "/v1/messages": Messages,
    "/v1/responses": Responses,
}
