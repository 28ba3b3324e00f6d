"""Server-sent events of an answer, over any fragmentation: whole events out, tokens counted, and what ends a stream seen.

Events are passed on as bytes. Looked at are: how many tokens a piece brought, a usage object, an error inside the stream,
the word that ends it, and whether each event is JSON at all: an engine is not trusted. What is done about it is `relay.py`.
"""

from __future__ import annotations

import re
from typing import Any, Final

import msgspec

from baseload.serve import glance, quick, shapes
from baseload.serve.body import MESSAGES, RESPONSES, top_level
from baseload.serve.glance import UNSAID

is_like: Final = quick.is_like  # names of our own are found at once where this is compiled
usage_of: Final = glance.usage_of
event_of: Final = glance.event_of
flat_usage_end: Final = quick.usage_end

EVENT_BYTES_MAX: Final = 4 * 1024 * 1024  # an event that is larger is garbage
NO_BOUND: Final = 1 << 60
DEEPEST: Final = 100  # levels of an answer that is read at a glance
LEARN_MAX: Final = 8  # a stream whose events are never alike is read whole
_PLAIN = re.compile(rb'[^"\\\x00-\x1f]+')  # inside a JSON string, and as it is

PIECE: Final = re.compile(
    rb'"(?:content|text|reasoning_content|reasoning|arguments|delta|partial_json|thinking|refusal)"\s*:\s*"(?!")'
)
"""A delta that says something: counted as one token, as engines stream."""
_FINISH = re.compile(rb'"finish_reason"\s*:\s*"')
_USAGE = re.compile(rb'"usage"\s*:\s*\{')
_LAST: Final = b"data: [DONE]\n\n"
_ENDS: Final = {
    MESSAGES: (b'"message_stop"',),
    RESPONSES: (b'"response.completed"', b'"response.incomplete"', b'"response.failed"'),
}


class Usage:
    """Tokens as the engine counted them; -1: it did not say."""

    __slots__ = ("cached_tokens", "input_tokens", "output_tokens")

    def __init__(self, input_tokens: int, cached_tokens: int, output_tokens: int) -> None:
        self.input_tokens, self.cached_tokens, self.output_tokens = input_tokens, cached_tokens, output_tokens

    def over(self, before: Usage) -> Usage:
        """Return what is said here, and where nothing is, what was said before."""
        return Usage(
            self.input_tokens if self.input_tokens >= 0 else before.input_tokens,
            self.cached_tokens if self.cached_tokens >= 0 else before.cached_tokens,
            self.output_tokens if self.output_tokens >= 0 else before.output_tokens,
        )


_TOKENS_MAX: Final = 1 << 31


def _count(*values: int | None) -> int:
    for value in values:
        if value is not None and 0 <= value < _TOKENS_MAX:
            return value
    return -1


def read_usage(usage: shapes.Counts) -> Usage:
    """Return counts from whichever names the engine uses."""
    details = usage.prompt_tokens_details or usage.input_tokens_details
    cached = _count(details.cached_tokens if details else None, usage.cache_read_input_tokens)
    prompt = _count(usage.prompt_tokens, usage.input_tokens)
    if usage.prompt_tokens is None and usage.input_tokens is not None and usage.cache_read_input_tokens is not None:
        prompt += max(0, usage.cache_read_input_tokens) + max(0, usage.cache_creation_input_tokens or 0)  # Anthropic's
    return Usage(
        prompt, min(cached, prompt) if prompt >= 0 else cached, _count(usage.completion_tokens, usage.output_tokens)
    )


def usage_of_answer(body: bytes) -> Usage | None:
    """Return the usage of a whole answer, None where it has none; raises msgspec.DecodeError where it is not JSON."""
    try:
        found = shapes.ANSWER.decode(body)
    except msgspec.ValidationError:
        shapes.ANY.decode(body)
        return None
    return None if found.usage is None else read_usage(found.usage)


def read_answer(body: bytes) -> tuple[Usage | None, int]:
    """Return the usage of a whole answer, and where it ends (-1: to be looked for); raises msgspec.DecodeError."""
    seen = usage_of(body, DEEPEST)
    if seen is None:
        return usage_of_answer(body), -1
    return Usage(seen[0], seen[1], seen[2]), seen[3]


class Broken(Exception):
    """The stream holds what is no event of an answer; the message says what."""


class Scanner:
    """One stream. `feed` bytes as they come; then see `ended`, `error`, `usage`, `usage_event`."""

    __slots__ = (
        "_after", "_before", "_kind", "_late", "_learnt", "_single", "_strip", "_tail", "_waiting", "_words", "ahead", "ended",
        "error", "fault", "finished", "hide", "most", "n_choices", "running", "splice", "tokens", "usage",
    )  # fmt: skip

    def __init__(self, kind: int, *, strip_usage: bool, n_choices: int = 1) -> None:
        self._kind, self._strip, self.n_choices = kind, strip_usage, n_choices
        self._single = n_choices == 1
        self._words = _ENDS.get(kind, ())
        self._tail = b""
        self._before = self._after = (
            b""  # of an event whose like came before: what stands around the words of its delta
        )
        self._learnt = 0
        self.fault = ""  # what came behind events that are passed on, and is no event
        self.ended = False  # the engine said so: [DONE], message_stop, response.completed
        self.finished = False  # a reason to finish was seen of every choice
        self.error: bytes | None = None  # an event that says that the engine failed
        self.usage: Usage | None = None
        self.tokens = 0  # of what went on: one an event, or as the engine counts along
        self.running = False  # the engine tells its count beside the words
        self.ahead = 0  # tokens that it told of beyond one an event
        self.hide = strip_usage  # such counts are not for the client
        self.most = NO_BOUND  # events go on until this many tokens did
        self._waiting: list[bytes] = []  # events that came behind them, the next one last
        self._late = b""  # what came behind those
        self.splice: Any = None  # called with (event with usage) -> event, where the client asked for usage

    @property
    def held(self) -> int:
        """Return the bytes of an event that is not whole yet."""
        return len(self._tail)

    def feed(self, data: bytes) -> bytes:
        """Take bytes; return the whole events to pass on, until `most` tokens are among them. Raises Broken."""
        if self._waiting:
            self._late += data
            return self._some(self._waiting)
        if self._late:
            data, self._late = self._late + data, b""
        if self._tail:
            data = self._tail + data
        if data.endswith(b"\n\n") and b"\r" not in data:
            self._tail = b""
        else:
            data = self._cut(data)
            if not data:
                return b""
        if data.count(b"\n\n") == 1 and b"\r" not in data:
            if self._learnt >= LEARN_MAX:
                return self._one(data)
            seen = (self.usage, self.n_choices, self.ended, self.error)
            tokens, out = self.tokens, self._one(data)
            if out is data and self.tokens > tokens and seen == (self.usage, self.n_choices, self.ended, self.error):
                self._learn(data)
            return out
        events = _events(data)
        events.reverse()
        return self._some(events)

    def _some(self, events: list[bytes]) -> bytes:
        """Take events, the last of the list first, until `most` tokens were among them; from the next token on they wait."""
        whole: list[bytes] = []
        self._waiting = events
        while events:
            try:
                whole.append(self._one(events.pop()))
            except Broken as broken:
                if not any(whole):
                    raise
                self.fault = str(broken)  # what came before it is passed on first
                break
            if self.ended or self.error is not None:  # the last word: what stands behind it is nobody's
                self._tail, self._late = b"", b""
                events.clear()
            elif self.tokens >= self.most and events and PIECE.search(events[-1]) is not None:
                break  # what brings no token goes with the last one that does, its end above all
        return b"".join(whole)

    def keep(self, data: bytes) -> None:
        """Take bytes for later."""
        self._late += data

    @property
    def rest(self) -> bool:
        """Say whether something came that waits."""
        return bool(self._waiting or self._late)

    def same(self, data: bytes, at: int, end: int) -> bool:
        """Say whether data[at:end] is an event that differs from one before in its delta's plain words alone.

        Nothing but the words can differ, and they hold neither quote, backslash nor line end: so it is JSON, one token,
        and neither an end, an error nor usage, as the one before. Who passes it on counts it in `tokens`.
        """
        return bool(self._before) and not self._tail and is_like(data, at, end, self._before, self._after)

    def _learn(self, event: bytes) -> None:
        """Keep what stands around the words of a delta, where that is all that the event says."""
        self._learnt += 1
        found = PIECE.search(event)
        if found is None or _USAGE.search(event) is not None:
            return
        end = event.find(b'"', found.end())
        words = _PLAIN.fullmatch(event, found.end(), end)
        if words is not None and event.isascii() and PIECE.search(event, end) is None:
            self._before, self._after = event[: found.end()], event[end:]

    def _cut(self, data: bytes) -> bytes:
        """Keep back what is no whole event yet."""
        end = max(data.rfind(b"\n\n") + 2, data.rfind(b"\r\n\r\n") + 4 if b"\r" in data else 0)
        if data.rfind(b"\n\n") < 0 and (b"\r" not in data or data.rfind(b"\r\n\r\n") < 0):
            end = 0
        self._tail = data[end:]
        if len(self._tail) > EVENT_BYTES_MAX:
            raise Broken(f"an event of more than {EVENT_BYTES_MAX} bytes")
        return data[:end]

    def _one(self, event: bytes) -> bytes:
        if event == _LAST:
            self.ended = True
            return event
        if self._single and not self._words and event.isascii():
            seen = event_of(event, DEEPEST)
            if seen is not None:
                return self._at_a_glance(event, seen)
        return self._closely(event)

    def _at_a_glance(self, event: bytes, seen: tuple[int, int, int, int, int, int]) -> bytes:
        """Take an event of which all is known that is asked for."""
        words, ends, n_choices, prompt, cached, completion = seen
        if ends and not self.finished:
            self.n_choices -= ends
            self.finished = self.n_choices <= 0
        piece = 1 if words else 0
        self.tokens += piece
        if prompt != UNSAID:
            event = self._with_usage(event, event[6:], Usage(prompt, cached, completion), n_choices)
            if not event:
                self.tokens -= piece
        return event

    def _closely(self, event: bytes) -> bytes:
        if b"\r" in event and event.count(b"\r") != event.count(b"\r\n"):
            raise Broken("a carriage return by itself, which ends a line for some readers")
        if not event.isascii() and not _is_text(event):
            raise Broken("an event that is no UTF-8 text")
        if event.startswith(b"data: {"):
            text = event[6:]
        else:
            found = _data_of(event)
            if found is None:
                line = event.lstrip(b"\r\n")
                if line and not line.startswith((b":", b"event:", b"id:", b"retry:", b"data:")):
                    raise Broken("a line that is no event")
                return event
            text = found
            if text.strip() == b"[DONE]":
                self.ended = True
                return event
        try:
            seen = shapes.EVENT.decode(text)
        except msgspec.ValidationError:
            try:
                seen = shapes.Event(error=_error_of(shapes.ANY.decode(text)))
            except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
                raise Broken("an event that is not JSON") from None
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
            raise Broken("an event that is not JSON") from None
        if seen.error is not None or seen.type == "error":
            self.error = text
            return b""
        if not self.finished and b"finish_reason" in event and _FINISH.search(event) is not None:
            self.n_choices -= _finishes(text)
            self.finished = self.n_choices <= 0
        for word in self._words:
            if word in event and seen.type == word[1:-1].decode():
                self.ended = True
        said = PIECE.search(event) is not None and (not self._words or str(seen.type).endswith("delta"))
        piece = _pieces(event, text) if said and not self._single else int(said)
        self.tokens += piece  # where events have names, what is done is told again at the end
        usage = seen.usage or _inner(seen)
        if usage is not None:
            event = self._with_usage(event, text, read_usage(usage), -1)  # which reckons with what this event brings
            if not event:
                self.tokens -= piece  # it is taken out
        return event

    def _with_usage(self, event: bytes, text: bytes, found: Usage, n_choices: int) -> bytes:
        before = self.usage
        if before is not None:  # Anthropic tells the prompt first and the answer later
            found = found.over(before)
        self.usage = found
        if self._words == () and (self.hide or (self._single and not self.finished)):
            if n_choices == 0 or (n_choices < 0 and _has_no_choice(text)):
                if self._strip:
                    return b""
            else:
                self._runs(found.output_tokens, len(event))
                if self.hide and (self._strip or not self.finished):  # an engine may tell its last count with the end
                    return _without_usage(text)
        return event if self.splice is None else bytes(self.splice(event))

    def _runs(self, count: int, n_bytes: int) -> None:
        """Take the engine's count so far, in an event with words; of several choices engines count each by itself."""
        if self._single and not self.finished and count > 0:
            self.running = True
            more = min(count - self.tokens, n_bytes)  # a token has a byte at least
            if more > 0:
                self.tokens += more
                self.ahead += more


def _is_text(words: bytes) -> bool:
    try:
        words.decode()
    except UnicodeDecodeError:
        return False
    return True


def _error_of(value: Any) -> Any:
    return value.get("error") if isinstance(value, dict) else "not an object"


def _inner(seen: shapes.Event) -> shapes.Counts | None:
    for holder in (seen.message, seen.response):
        if isinstance(holder, shapes.Holder) and holder.usage is not None:
            return holder.usage
        if isinstance(holder, dict) and isinstance(holder.get("usage"), dict):
            try:
                return msgspec.convert(holder["usage"], shapes.Counts)
            except msgspec.ValidationError:
                return None
    return None


def _pieces(event: bytes, text: bytes) -> int:
    """Return of how many choices an event brings words, each a token."""
    n = len(PIECE.findall(event))
    if n > 1:
        try:
            n = max(1, min(n, len(shapes.FINISHED.decode(text).choices or ())))
        except msgspec.ValidationError:
            return 1
    return n


def _finishes(text: bytes) -> int:
    """Return of how many choices an event says why they ended."""
    try:
        choices = shapes.FINISHED.decode(text).choices
    except msgspec.ValidationError:
        return 0
    return sum(1 for choice in choices or () if choice.finish_reason)


def _has_no_choice(text: bytes) -> bool:
    try:
        choices = msgspec.json.decode(text).get("choices")
    except (msgspec.DecodeError, UnicodeDecodeError, AttributeError):
        return False
    return choices == [] or choices is None


def _without_usage(text: bytes) -> bytes:
    """Return an event that tells no usage: null, as where all but the last have it.

    >>> _without_usage(b'{"choices":[{}],"usage":{"total_tokens":3}}')
    b'data: {"choices":[{}],"usage":null}\\n\\n'
    """
    for key, start, end in top_level(text):
        if key == "usage":
            text = text[:start] + b"null" + text[end:]
            break
    return b"data: %b\n\n" % text.replace(b"\r", b"").replace(b"\n", b"")


def _events(data: bytes) -> list[bytes]:
    """Split whole events, each with the blank line that ends it."""
    if b"\r" in data:
        found, start = [], 0
        for match in re.finditer(rb"\r\n\r\n|\n\n|\r\r", data):
            found.append(data[start : match.end()])
            start = match.end()
        return found + ([data[start:]] if start < len(data) else [])
    return [event + b"\n\n" for event in data.split(b"\n\n")[:-1]]


def _data_of(event: bytes) -> bytes | None:
    """Return the data of an event, its lines joined; None where it has none (a comment, a name)."""
    lines = [
        line[5:].removeprefix(b" ") for line in event.replace(b"\r\n", b"\n").split(b"\n") if line.startswith(b"data:")
    ]
    return b"\n".join(lines) if lines else None


def usage_end(event: bytes) -> int:
    """Return where the last `usage` object of some JSON ends (the index of its closing brace); -1 where there is none.

    >>> usage_end(b'{"usage":{"a":{"b":"}"}},"x":1}')
    23
    """
    at = flat_usage_end(event)
    if at != -2:
        return at
    all_found = list(_USAGE.finditer(event))
    if not all_found:
        return -1
    found = all_found[-1]
    depth = 0
    for match in re.finditer(rb'"(?:[^"\\]|\\.)*"|[{}]', event[found.end() - 1 :]):
        token = match.group()
        if token == b"{":
            depth += 1
        elif token == b"}":
            depth -= 1
            if depth == 0:
                return found.end() - 1 + match.start()
    return -1


def with_members(event: bytes, members: bytes, end: int = -1) -> bytes:
    """Return JSON (or an event with it) with further members at the end of its `usage` object; `end`: where that is known.

    >>> with_members(b'{"usage":{"a":1}}', b'"b":2')
    b'{"usage":{"a":1,"b":2}}'
    """
    if end >= 0:  # of one that is not empty
        return b"%b,%b%b" % (event[:end], members, event[end:])
    at = usage_end(event)
    if at < 0:
        return event
    last = event[at - 1 : at]
    empty = last == b"{" or (last.isspace() and event[:at].rstrip().endswith(b"{"))
    return b"%b%b%b%b" % (event[:at], b"" if empty else b",", members, event[at:])
