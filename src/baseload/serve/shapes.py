"""The JSON that a worker reads, as far as it looks: a request's body, an engine's answer and events, `run/endpoints.json`.

Shapes alone, read by msgspec from their annotations; what they mean is `body.py`'s, `sse.py`'s and `gateway.py`'s. They
stand apart so that those can be compiled ahead of time: a compiled class keeps no annotations to read (decision 0013).
"""

from __future__ import annotations

from typing import Any

import msgspec

UNSET = msgspec.UNSET
UnsetType = msgspec.UnsetType


class StreamOptions(msgspec.Struct):
    """What a client wants beside the stream."""

    include_usage: bool | None = None


class Body(msgspec.Struct):
    """A request's body."""

    model: str | msgspec.UnsetType = msgspec.UNSET
    stream: bool | None = None
    max_tokens: int | None = None
    max_completion_tokens: int | None = None
    max_output_tokens: int | None = None
    n: int | None = None
    best_of: int | None = None
    stream_options: StreamOptions | msgspec.UnsetType | None = msgspec.UNSET
    messages: msgspec.Raw | msgspec.UnsetType = msgspec.UNSET
    prompt: msgspec.Raw | msgspec.UnsetType = msgspec.UNSET
    input: msgspec.Raw | msgspec.UnsetType = msgspec.UNSET
    api_base: Any = msgspec.UNSET
    base_url: Any = msgspec.UNSET
    api_key: Any = msgspec.UNSET
    custom_llm_provider: Any = msgspec.UNSET
    litellm_params: Any = msgspec.UNSET
    model_list: Any = msgspec.UNSET
    prompt_embeds: Any = msgspec.UNSET


class Message(msgspec.Struct):
    """One message of a prompt."""

    role: str = ""


class Details(msgspec.Struct):
    """Particulars of a prompt's tokens."""

    cached_tokens: int | None = None


class Counts(msgspec.Struct):
    """Tokens, under the names that engines use."""

    prompt_tokens: int | None = None
    completion_tokens: int | None = None
    input_tokens: int | None = None
    output_tokens: int | None = None
    prompt_tokens_details: Details | None = None
    input_tokens_details: Details | None = None
    cache_read_input_tokens: int | None = None
    cache_creation_input_tokens: int | None = None


class Holder(msgspec.Struct):
    """What holds tokens."""

    usage: Counts | None = None


class Event(msgspec.Struct):
    """An event of a stream."""

    error: Any = None
    type: Any = None
    usage: Counts | None = None
    message: Holder | Any = None
    response: Holder | Any = None


class Finish(msgspec.Struct):
    """A choice of an event."""

    finish_reason: str | None = None


class Finished(msgspec.Struct):
    """An event that says why choices ended."""

    choices: list[Finish] | None = None


class Answer(msgspec.Struct):
    """An answer that was not streamed."""

    usage: Counts | None = None


class Endpoints(msgspec.Struct):
    """`run/endpoints.json`, as far as a worker reads it."""

    version: int
    urls: list[str | None]
    digests: list[str] = []
    kinds: list[str] = []


BODY = msgspec.json.Decoder(Body)
MESSAGES = msgspec.json.Decoder(list[Message])
EVENT = msgspec.json.Decoder(Event)
FINISHED = msgspec.json.Decoder(Finished)
ANSWER = msgspec.json.Decoder(Answer)
ANY = msgspec.json.Decoder()
