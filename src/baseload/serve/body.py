"""A request's body, as far as a gateway must know it: which model, how long an answer at most, streamed or not, its prefix.

The bytes themselves are forwarded as they came; only what the gateway needs changed is spliced in (the engine's own name of
the model, the wish for a usage chunk). What two readers could understand differently is refused: keys that stand there
twice or are written with escapes, text that is no UTF-8, numbers that are none. No body chooses where it is sent.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Final

import msgspec

from baseload.serve import glance, quick, shapes
from baseload.serve.quick import FORBIDDEN, JUDGED, LINK, PLAIN
from baseload.serve.shapes import UNSET

is_plain: Final = quick.is_plain  # names of our own are found at once where this is compiled
seen_of: Final = glance.seen_of
hashes_of: Final = quick.prefix_hashes

BLOCK_TOKENS: Final = 128
KEY_BLOCKS: Final = 4  # blocks that the routing key covers, as in the twin
MAX_BLOCKS: Final = 64
MAX_DEPTH: Final = 100
ODD_BYTES_MAX: Final = 1 << 20  # of a body that has to be looked at name by name
NO_LINKS: Final = "links to media are not fetched here; send the media as a data: URL"
BYTES_PER_TOKEN: Final = 4.0  # of text, on the mean: what a prompt is taken to be before the engine counts it
KEYS_MOST: Final = 4096  # tenants times models whose key is kept ready
_KEYS: Final[dict[tuple[int, str], bytes]] = {}

CHAT: Final = 0
COMPLETIONS: Final = 1
EMBEDDINGS: Final = 2
RESPONSES: Final = 3
MESSAGES: Final = 4
ENDPOINTS: Final[dict[bytes, int]] = {
    b"/v1/chat/completions": CHAT,
    b"/v1/completions": COMPLETIONS,
    b"/v1/embeddings": EMBEDDINGS,
    b"/v1/responses": RESPONSES,
    b"/v1/messages": MESSAGES,
}
PROMPT_KEYS: Final = (b"messages", b"prompt", b"input", b"input", b"messages")  # what holds the prompt
ENDPOINT_NAMES: Final = ("chat", "completions", "embeddings", "responses", "messages")
PATHS = tuple(ENDPOINTS)

_REMOTE: Final = re.compile(
    rb'[uU][rR][lL]"\s*:\s*(?:\{\s*"[uU][rR][lL]"\s*:\s*)?"(?!(?i:data):)(?:\s*//|[^"]*:)'
)  # behind a quote, or a name's `_`
_BEFORE_URL = re.compile(rb"(?:[a-zA-Z_]*_)?")
_ESCAPED = re.compile(rb"\\u00([3-7][0-9a-fA-F])")  # letters, digits and `_` that need no escape
_TOKENS = re.compile(rb'"[^"\\]*(?:\\.[^"\\]*)*"|[\[\]{}:,]')
_STRUCTURE = re.compile(rb'"[^"\\]*(?:\\.[^"\\]*)*"|[\[\]{}]')


class BodyError(Exception):
    """The body cannot be served; the message and the parameter say why, `status` how."""

    def __init__(self, message: str, param: str | None = None, code: str = "invalid_value", status: int = 400) -> None:
        super().__init__(message)
        self.message, self.param, self.code, self.status = message, param, code, status


class Peek:
    """What the gateway knows of a request from its body."""

    __slots__ = (
        "choices", "has_stream_options", "input_tokens", "input_tokens_max", "max_tokens", "model", "stream", "text",
        "wants_usage",
    )  # fmt: skip

    def __init__(
        self,
        model: str,
        stream: bool,
        wants_usage: bool,
        has_stream_options: bool,
        input_tokens: int,
        input_tokens_max: int,
        max_tokens: int,
        text: bytes,
        choices: int = 1,
    ) -> None:
        self.model = model
        self.stream = stream
        self.wants_usage = wants_usage  # in the stream
        self.has_stream_options = has_stream_options
        self.input_tokens = input_tokens  # estimated
        self.input_tokens_max = input_tokens_max  # bound: a token is at least a byte
        self.max_tokens = max_tokens  # the client's own limit of the answer, all choices together; 0: none said
        self.text = text  # the prompt's JSON
        self.choices = choices  # answers asked for at once


def peek(endpoint: int, body: bytes) -> Peek:
    """Return what is to be known of a body; raises BodyError."""
    if not body.isascii():
        _require_text(body)
    seen = seen_of(body, PROMPT_KEYS[endpoint], 0 if endpoint == COMPLETIONS else 1, MAX_DEPTH)
    if seen is not None:
        model, streamed, wants_usage, has_options, most, prompt_json = seen
        return Peek(
            model, streamed and endpoint != EMBEDDINGS, wants_usage, has_options,
            int(len(prompt_json) / BYTES_PER_TOKEN + 0.5) or 1, len(body), most, prompt_json,
        )  # fmt: skip
    try:
        found = shapes.BODY.decode(body)
    except msgspec.ValidationError as error:
        raise _wrong_type(str(error)) from None
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise BodyError(f"the body is not JSON ({error})", code="invalid_json") from None
    except RecursionError:
        raise BodyError(f"the body is nested deeper than {MAX_DEPTH} levels", code="invalid_json") from None
    plain = is_plain(body, MAX_DEPTH)
    if plain != PLAIN:
        if plain != LINK:
            _require_plain(body, found)
        elif _links(body):
            raise BodyError(NO_LINKS, "messages")
    if found.model is UNSET or not found.model:
        raise BodyError("you must say which model", "model", "missing_required_parameter")
    assert isinstance(found.model, str)
    prompt = (
        found.messages if endpoint in (CHAT, MESSAGES) else found.prompt if endpoint == COMPLETIONS else found.input
    )
    text = b"null" if prompt is UNSET else bytes(prompt)
    if text == b"null":
        name = PROMPT_KEYS[endpoint].decode()
        raise BodyError(f"`{name}` is missing", name, "missing_required_parameter")
    if endpoint in (CHAT, MESSAGES):
        try:
            shapes.MESSAGES.decode(text)
        except (msgspec.DecodeError, UnicodeDecodeError):
            raise BodyError("`messages` must be a list of messages", "messages", "invalid_type") from None
    options = found.stream_options
    stream = bool(found.stream) and endpoint != EMBEDDINGS
    return Peek(
        found.model,
        stream,
        isinstance(options, shapes.StreamOptions) and bool(options.include_usage),
        options is not UNSET,
        int(len(text) / BYTES_PER_TOKEN + 0.5) or 1,
        len(body),
        _most(found, 0 if endpoint == COMPLETIONS else 1),
        text,
        found.n or 1,
    )


def _require_text(body: bytes) -> None:
    try:
        body.decode("utf-8")
    except UnicodeDecodeError as error:
        raise BodyError(f"the body is no UTF-8 text (byte {error.start})", code="invalid_json") from None


def _wrong_type(said: str) -> BodyError:
    _, _, path = said.partition(" - at `$")
    param = path.strip("`.") or None
    return BodyError(f"the body has a value of the wrong type: {said}", param, "invalid_type")


def _most(found: shapes.Body, least: int) -> int:
    """Return the answer's limit, all choices together; `least` 0: a completion may be asked for its prompt alone."""
    if found.n is None and found.best_of is None and found.max_completion_tokens is None:
        limit = found.max_tokens
        if found.max_output_tokens is None and (limit is None or least <= limit < 1 << 31):
            return limit or 0
    limits = []
    for name in ("max_tokens", "max_completion_tokens", "max_output_tokens"):
        limit = getattr(found, name)
        if limit is not None:
            if not least <= limit < 1 << 31:
                raise BodyError(f"`{name}` is {str(limit)[:20]}; it must be from {least} to {(1 << 31) - 1}", name)
            limits.append(limit)
    choices = 1
    for name in ("n", "best_of"):
        n = getattr(found, name)
        if n is not None:
            if not 1 <= n <= 128:
                raise BodyError(f"`{name}` is {str(n)[:20]}; it must be from 1 to 128", name)
            choices = max(choices, n)
    return max(limits) * choices if limits else 0


def _links(body: bytes) -> bool:
    """Say whether a body names media to be fetched from elsewhere."""
    for last in (b'l"', b'L"'):
        at = body.find(last)
        while at >= 0:
            if at >= 2 and _REMOTE.match(body, at - 2):
                begins = body.rfind(b'"', 0, at - 2) + 1
                if _BEFORE_URL.fullmatch(body, begins, at - 2):
                    return True
            at = body.find(last, at + 1)
    return False


def _require_plain(body: bytes, found: shapes.Body) -> None:
    """Refuse what another reader could read otherwise, and what would let the body choose an upstream."""
    name = next((name for name in FORBIDDEN if getattr(found, name) is not UNSET), "")
    if name:
        raise BodyError(f"`{name}` is not taken here: the operator chooses where a request runs", name)
    if len(body) > ODD_BYTES_MAX:
        raise BodyError(
            f"a body of more than {ODD_BYTES_MAX} bytes must be nested at most {MAX_DEPTH} levels, and write letters and its "
            "own names as they are, without escapes, and once"
        )
    if body.count(b"[") + body.count(b"{") > MAX_DEPTH and _depth(body) > MAX_DEPTH:
        raise BodyError(f"the body is nested deeper than {MAX_DEPTH} levels", code="invalid_json")
    _require_keys_once(body)
    plain = body
    if b"\\u" in body:
        _require_whole_text(body)
        plain = _ESCAPED.sub(lambda found: bytes((int(found[1], 16),)), body)
    if _links(plain):
        raise BodyError(NO_LINKS, "messages")


def _depth(body: bytes) -> int:
    depth = most = 0
    for match in _STRUCTURE.finditer(body):
        first = body[match.start()]
        if first in b"[{":
            depth += 1
            most = max(most, depth)
        elif first in b"]}":
            depth -= 1
    return most


def _require_whole_text(body: bytes) -> None:
    """Refuse half of a surrogate pair: it is no text, and readers differ in what they make of it."""
    low = body.lower()
    if b"\\ud" not in low:
        return
    try:
        text = msgspec.json.encode(shapes.ANY.decode(body)).decode("utf-8")
        text.encode("utf-8")
    except (msgspec.DecodeError, UnicodeError, RecursionError):
        raise BodyError("the body holds half of a surrogate pair, which is no text", code="invalid_json") from None


def _require_keys_once(body: bytes) -> None:
    seen: set[str] = set()
    for key, _, _ in top_level(body):
        if key in seen:
            raise BodyError(f"`{key[:60]}` stands there twice", key[:60], "duplicate_key")
        seen.add(key)
        name = key.casefold()
        if name != key and JUDGED.fullmatch(f'"{name}"'.encode()):
            raise BodyError(f"`{key[:60]}` must be written `{name}`", key[:60], "unknown_key")
    if any(name in seen for name in FORBIDDEN):
        raise BodyError("the body may not choose where it is sent")


def top_level(body: bytes) -> Iterator[tuple[str, int, int]]:
    """Yield (key, start and end of its value) of a valid JSON object, in order.

    >>> [(key, b'{"a": [1,2], "b":"x"}'[i:j]) for key, i, j in top_level(b'{"a": [1,2], "b":"x"}')]
    [('a', b'[1,2]'), ('b', b'"x"')]
    """
    depth, key, start, expect_key, last = 0, "", -1, True, b""
    for match in _TOKENS.finditer(body):
        token = match.group()
        if token in (b"{", b"["):
            depth += 1
        elif token in (b"}", b"]"):
            depth -= 1
            if depth == 0 and start >= 0:
                yield key, start, _trimmed(body, start, match.start())
        elif depth == 1:
            if token == b":" and expect_key:
                key, expect_key = msgspec.json.decode(last, type=str), False
                start = match.end()
                while body[start : start + 1] in (b" ", b"\t", b"\n", b"\r"):
                    start += 1
            elif token == b",":
                yield key, start, _trimmed(body, start, match.start())
                expect_key, start = True, -1
            elif expect_key:
                last = token


def _trimmed(body: bytes, start: int, end: int) -> int:
    while end > start and body[end - 1 : end] in (b" ", b"\t", b"\n", b"\r"):
        end -= 1
    return end


# ---- what is spliced in ----------------------------------------------------------------------------------


def with_usage_wish(body: bytes, seen: Peek, *, running: bool = False) -> bytes:
    """Return the body with the wish for a usage chunk at the end of the stream; `running`: and in each chunk."""
    wish = b'{"include_usage":true,"continuous_usage_stats":true}' if running else b'{"include_usage":true}'
    if not seen.has_stream_options:
        at = body.index(b"{") + 1
        return body[:at] + b'"stream_options":' + wish + b"," + body[at:]
    for key, start, end in top_level(body):
        if key == "stream_options":
            return body[:start] + wish + body[end:]
    return body


def with_model(body: bytes, name: str) -> bytes:
    """Return the body with the engine's own name of the model."""
    for key, start, end in top_level(body):
        if key == "model":
            return body[:start] + msgspec.json.encode(name) + body[end:]
    return body


# ---- prefixes --------------------------------------------------------------------------------------------


def prefix_hashes(text: bytes, salt: int, model: str) -> list[int]:
    """Return salted hashes of the prompt's whole blocks, each covering all before it: equal hash, equal prefix.

    The salt is the tenant's: nobody learns from timing or from the ledger what another tenant has asked.
    """
    key = _KEYS.get((salt, model))
    if key is None:
        if len(_KEYS) >= KEYS_MOST:
            _KEYS.clear()
        key = _KEYS[salt, model] = (salt & ((1 << 64) - 1)).to_bytes(8, "little") + model.encode()[:48]
    return hashes_of(text, key, MAX_BLOCKS)
