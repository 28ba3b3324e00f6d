"""A first look at JSON: what a plain body asks for, what a plain answer counted, in one pass over its bytes.

`glance.c` knows the common case, where `make native` built it (decision 0015), and answers None to all others, as this does
to everything: then msgspec and `body.py`, or `sse.py`, look closer. So whatever is refused is refused there; a test holds
what the C says to what they say.
"""

from __future__ import annotations

from importlib import import_module

Seen = tuple[str, bool, bool, bool, int, bytes]
"""Model, streamed, wants usage in the stream, has stream options, the answer's limit in tokens (0: none), the prompt's JSON."""


def seen_of(body: bytes, prompt: bytes, least: int, deepest: int) -> Seen | None:
    """Return what a request's body asks for, once it is known to be text; None: look closer.

    `prompt` names the key of its prompt, `least` is the smallest limit that makes sense, `deepest` the levels it may have.

    >>> seen_of(b'{"model":"m","messages":[],"stream":true}', b"messages", 1, 100) in (
    ...     None, ("m", True, False, False, 0, b"[]"))
    True
    """
    return None


def usage_of(answer: bytes, deepest: int) -> tuple[int, int, int, int] | None:
    """Return an answer's tokens (prompt; of it cached, -1 unsaid; completion) and where its `usage` ends; None: look closer.

    >>> usage_of(b'{"usage":{"prompt_tokens":2,"completion_tokens":1}}', 100) in (None, (2, -1, 1, 50))
    True
    """
    return None


def event_of(event: bytes, deepest: int) -> tuple[int, int, int, int, int, int] | None:
    """Return what an event of a stream says: places with words, choices that end, choices, and tokens as in `usage_of`.

    Tokens of the prompt are UNSAID where it has no usage; None: look closer.

    >>> event_of(b'data: {"choices":[{"delta":{"content":"a"},"finish_reason":"stop"}]}\\n\\n', 100) in (
    ...     None, (1, 1, 1, -2, -1, -1))
    True
    """
    return None


UNSAID = -2
NAMES = ("event_of", "seen_of", "usage_of")

try:
    globals().update({name: getattr(import_module("baseload.serve.glance_c"), name) for name in NAMES})
except ImportError:
    pass  # not built, or not to be used (`native.use`)
