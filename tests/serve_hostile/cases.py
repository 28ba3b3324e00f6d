"""Raw hostile HTTP: what is sent byte by byte, and what a careful server may answer.

A case says which statuses are right (0: the connection ends without an answer) and whether the connection has to end. `POST`
bodies that try to smuggle carry `@mark=smuggled`; an engine must never see that word as a request of its own.
"""

from __future__ import annotations

import json
import socket
import struct
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

CHAT = "/v1/chat/completions"
GOOD = b'{"model":"chat","max_tokens":2,"messages":[{"role":"user","content":"hello"}]}'
SMUGGLED = b'{"model":"chat","max_tokens":2,"messages":[{"role":"user","content":"@mark=smuggled"}]}'
REFUSED = frozenset((400, 0))


@dataclass(frozen=True)
class Case:
    """What to send, and what may come back."""

    name: str
    send: bytes | Callable[[socket.socket], None]
    allowed: frozenset[int]
    closes: bool | None = None  # True: the connection must end; False: it must stay; None: either
    within_s: float = 10.0  # then it is given up; only cases that are about time set their own
    answers: int = 1  # most answers that may come on the connection
    note: dict[str, Any] = field(default_factory=dict)


@dataclass
class Got:
    """What came back."""

    statuses: list[int]
    closed: bool
    took_s: float
    raw: bytes

    @property
    def status(self) -> int:
        """Return the first final status, 0 where there was none."""
        return next((s for s in self.statuses if s >= 200), 0)


def head(
    method: str = "POST",
    path: str = CHAT,
    *lines: str,
    key: str = "",
    host: str = "localhost",
    version: str = "HTTP/1.1",
) -> bytes:
    """Return a request head with these further lines."""
    auth = [f"Authorization: Bearer {key}"] if key else []
    hosts = [f"Host: {host}"] if host else []
    return ("\r\n".join([f"{method} {path} {version}", *hosts, *auth, *lines]) + "\r\n\r\n").encode("latin-1")


def post(body: bytes, key: str, *lines: str, path: str = CHAT) -> bytes:
    """Return a whole POST."""
    return head("POST", path, f"Content-Length: {len(body)}", *lines, key=key) + body


def framing(key: str) -> Iterator[Case]:
    """Two servers must never disagree where a request ends."""
    inner = post(SMUGGLED, key)
    chunked = b"%x\r\n%b\r\n0\r\n\r\n" % (len(GOOD), GOOD)

    def te(*lines: str, body: bytes = chunked) -> bytes:
        return head("POST", CHAT, *lines, key=key) + body

    length = f"Content-Length: {len(GOOD)}"
    yield Case("cl+te", te(length, "Transfer-Encoding: chunked", body=b"0\r\n\r\n" + inner), REFUSED, True)
    yield Case("te+cl", te("Transfer-Encoding: chunked", "Content-Length: 4", body=chunked + inner), REFUSED, True)
    for value in (
        "xchunked",
        "chunked, identity",
        "identity",
        "chunked, chunked",
        "gzip, chunked",
        "\x0bchunked",
        "chunked;q=1",
    ):
        allowed = REFUSED | {501, 415}
        yield Case(f"te {value!r}", te(f"Transfer-Encoding: {value}", body=chunked + inner), allowed, True)
    yield Case("te twice", te("Transfer-Encoding: chunked", "Transfer-Encoding: identity"), REFUSED | {501}, True)
    yield Case("te folded", te("Transfer-Encoding:", " chunked"), REFUSED | {501}, True)
    yield Case("te space colon", te("Transfer-Encoding : chunked"), REFUSED, True)
    yield Case("cl twice", te(length, "Content-Length: 3", body=GOOD), REFUSED, True)
    yield Case("cl twice equal", te(length, length, body=GOOD), REFUSED | {200})
    for value in ("-1", "+5", "0x10", "5, 5", "5 5", "", "1e3", "９", str(10**30), "18446744073709551621"):
        wire = te(b"".decode() + "Content-Length: ", body=b"").replace(
            b"Content-Length: ", b"Content-Length: " + value.encode()
        )
        yield Case(f"cl {value[:12]!r}", wire + GOOD, REFUSED | {413}, True)
    yield Case("cl beyond the limit", te(f"Content-Length: {1 << 40}", body=b""), frozenset((413, 400)), True)
    yield Case(
        "cl too short, rest is a request",
        te("Content-Length: 2", body=b"{}" + post(GOOD, key)),
        frozenset((400,)),
        answers=2,
    )
    for name, body in (
        ("size ZZ", b"ZZ\r\nabc\r\n0\r\n\r\n"),
        ("size -1", b"-1\r\nabc\r\n0\r\n\r\n"),
        ("size +3", b"+3\r\nabc\r\n0\r\n\r\n"),
        ("size 0x3", b"0x3\r\nabc\r\n0\r\n\r\n"),
        ("size overflow", b"FFFFFFFFFFFFFFFFF\r\nabc\r\n0\r\n\r\n"),
        ("no line end", b"3\r\nabcd\r\n0\r\n\r\n"),
        ("size with space", b"3 \r\nabc\r\n 0\r\n\r\n"),
        ("lf only", b"3\nabc\n0\n\n"),
    ):
        yield Case(f"chunk {name}", te("Transfer-Encoding: chunked", body=body), REFUSED | {413}, True)
    extension = b"3;" + b"a" * (1 << 20) + b"\r\nabc\r\n0\r\n\r\n"
    yield Case("chunk extension of 1 MiB", te("Transfer-Encoding: chunked", body=extension), REFUSED | {413, 431})
    trailer = chunked[:-2] + b"Authorization: Bearer x\r\nContent-Length: 9\r\n\r\n"
    yield Case("trailers", te("Transfer-Encoding: chunked", body=trailer), frozenset((200, 400)))
    yield Case("chunked is served", te("Transfer-Encoding: chunked"), frozenset((200,)), False)


def lines(key: str) -> Iterator[Case]:
    """Request line and headers that are none."""
    good = post(GOOD, key)
    yield Case("good", good, frozenset((200,)), False)
    yield Case("bare lf", good.replace(b"\r\n", b"\n"), REFUSED, True)
    yield Case("cr alone", good.replace(b"Host: localhost\r\n", b"Host: localhost\rX: y\r\n"), REFUSED, True)
    yield Case("nul in name", good.replace(b"Host:", b"Ho\0st:"), REFUSED, True)
    yield Case("nul in value", good.replace(b"localhost", b"local\0host"), REFUSED, True)
    yield Case("nul in path", good.replace(b"completions ", b"completions\0 "), REFUSED | {404}, True)
    yield Case("space in name", good.replace(b"Host:", b"Ho st:"), REFUSED, True)
    yield Case("no colon", good.replace(b"Host: localhost", b"Host: localhost\r\nnonsense"), REFUSED, True)
    yield Case("folded header", good.replace(b"Host: localhost", b"Host: localhost\r\nX-A: b\r\n c"), REFUSED | {200})
    yield Case("empty header name", good.replace(b"Host: localhost", b"Host: localhost\r\n: x"), REFUSED, True)
    yield Case("empty lines first", b"\r\n\r\n" + good, REFUSED | {200})
    yield Case(
        "header of 1 MiB", head("POST", CHAT, "X-A: " + "a" * (1 << 20), key=key), frozenset((431, 400, 0)), True
    )
    many = [f"X-{i}: {i}" for i in range(10_000)]
    yield Case("10,000 headers", head("POST", CHAT, *many, key=key), frozenset((431, 400, 0)), True)
    yield Case("path of 100 KiB", head("POST", "/" + "a" * 100_000, key=key), frozenset((414, 431, 400, 404, 0)), True)
    yield Case(
        "no host", head("POST", CHAT, f"Content-Length: {len(GOOD)}", key=key, host="") + GOOD, frozenset((400,))
    )
    yield Case("two hosts", post(GOOD, key, "Host: evil"), frozenset((400,)))
    for host in ("localhost:4000/#@x", "a b", "x/../y", "user@evil", "[::1", "evil\\@x", "a,b"):
        wire = head("POST", CHAT, f"Content-Length: {len(GOOD)}", host=host) + GOOD
        yield Case(f"host {host!r} without a key", wire, frozenset((400, 401, 403, 421)))
    yield Case("http/0.9", b"GET /v1/models\r\n\r\n", REFUSED | {505}, True)
    yield Case("http/1.0", head("GET", "/v1/models", key=key, host="", version="HTTP/1.0"), frozenset((200, 400)), True)
    yield Case("http/2.0 in words", head("GET", "/v1/models", key=key, version="HTTP/2.0"), REFUSED | {505}, True)
    yield Case("http/9.9", head("GET", "/v1/models", key=key, version="HTTP/9.9"), REFUSED | {505}, True)
    yield Case("h2 preface", b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + b"\0" * 40, REFUSED | {505, 405}, True)
    yield Case("tls hello", b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + b"\x11" * 200, REFUSED, True)
    yield Case("noise", bytes(range(256)) * 8, REFUSED, True)
    yield Case("small method", good.replace(b"POST", b"post"), REFUSED | {405, 501})
    for method in ("DELETE", "PUT", "PATCH", "TRACE", "GET", "BREW", "CONNECT"):
        path = CHAT if method != "CONNECT" else "evil:443"
        yield Case(f"method {method}", head(method, path, key=key), frozenset((405, 400, 404, 501, 0)))
    yield Case("options without origin", head("OPTIONS", CHAT), frozenset((204, 200, 401, 405, 404)))
    h2c = ("Connection: Upgrade, HTTP2-Settings", "Upgrade: h2c", "HTTP2-Settings: AAMAAABk")
    yield Case("upgrade h2c", post(GOOD, key, *h2c), frozenset((200, 400, 426)))
    yield Case("upgrade websocket", head("GET", "/v1/models", "Connection: Upgrade", "Upgrade: websocket", key=key),
               frozenset((200, 400, 426)))  # fmt: skip
    yield Case("expect nonsense", post(GOOD, key, "Expect: 200-maybe"), frozenset((417, 200, 400)))
    yield Case("pipelined twice", good + good, frozenset((200,)), False, answers=2, note={"exactly": 2})
    yield Case("pipelined garbage", good + b"\x00\x01garbage\r\n\r\n", frozenset((200,)), True, answers=2)
    yield Case("pipelined 64", good * 64, frozenset((200, 429)), answers=64)


def paths(key: str) -> Iterator[Case]:
    """Paths that pretend to be others: nothing but the documented ones is served, nothing of the engine's shows."""
    for path in (
        "/v1/../v1/chat/completions", "//v1/chat/completions", "/v1/chat/completions%00", "/v1/chat%2fcompletions",
        "/V1/CHAT/COMPLETIONS", "/v1/chat/completions/..", "/v1/chat/completions;x", "/__stats", "/__control", "/metrics",
        "/admin", "/v1/../../etc/passwd", "/v1/chat/completions\\..\\x", "*", "/v1/models/../../__stats",
        "/v1/receipts/../keys",
    ):  # fmt: skip
        yield Case(f"path {path}", post(GOOD, key, path=path), frozenset((404, 400, 405)))
    yield Case("absolute form", post(GOOD, key, path="http://localhost" + CHAT), frozenset((200, 400, 404)))
    yield Case(
        "absolute form, elsewhere", post(GOOD, key, path="http://127.0.0.1:9" + CHAT), frozenset((200, 400, 404, 421))
    )
    yield Case("receipt of nobody", head("GET", "/v1/receipts/req-00000000000fffff", key=key), frozenset((404, 400)))
    yield Case("receipt with SQL", head("GET", "/v1/receipts/'%20or%201=1--", key=key), frozenset((404, 400)))


def keys(key: str) -> Iterator[Case]:
    """Who has no key gets 401 and nothing else."""

    def with_auth(*values: str, path: str = CHAT) -> bytes:
        told = [f"Authorization: {v}" for v in values]
        return head("POST", path, f"Content-Length: {len(GOOD)}", *told) + GOOD

    denied = frozenset((401,))
    yield Case("no key", with_auth(), denied)
    for value in (
        "Bearer", "Bearer ", "Bearer x", "Basic dXNlcjpwYXNz", "Bearer ' OR '1'='1' --", 'Bearer "; DROP TABLE keys; --',
        "Bearer " + "a" * 8192, "Bearer \xff\xfe\xfd", f"Bearer {key}x", f"Bearer {key[:-1]}", f"bearer  {key} {key}",
        f"Token {key}", "Bearer null", "Bearer %00", "Bearer ../../pepper",
    ):  # fmt: skip
        yield Case(f"auth {value[:24]!r}", with_auth(value), denied | {400})
    yield Case("auth twice", with_auth(f"Bearer {key}", "Bearer x"), denied | {400})
    yield Case("key in the path", head("GET", f"/v1/models?api_key={key}"), denied | {404})
    yield Case("models without a key", head("GET", "/v1/models"), denied)


def bodies(key: str, canary_port: int) -> Iterator[Case]:
    """JSON that is none, or that means to be read in two ways."""

    def raw(name: str, body: bytes, *allowed: int, **note: Any) -> Case:
        return Case(f"body {name}", post(body, key), frozenset(allowed or (400,)), note=note)

    def told(**more: Any) -> bytes:
        return json.dumps(
            {"model": "chat", "max_tokens": 2, "messages": [{"role": "user", "content": "x"}], **more}
        ).encode()

    for name, body in (
        ("empty", b""), ("list", b"[]"), ("text", b'"x"'), ("number", b"5"), ("null", b"null"), ("cut", GOOD[:-3]),
        ("not utf-8", GOOD.replace(b"hello", b"\xff\xfe")), ("bom", b"\xef\xbb\xbf" + GOOD), ("two", GOOD + GOOD),
        ("trailing comma", GOOD[:-1] + b",}"), ("comment", b"/* x */" + GOOD), ("single quotes", b"{'model':'chat'}"),
        ("control char", GOOD.replace(b"hello", b"he\x01llo")), ("nan", GOOD[:-1] + b',"temperature":NaN}'),
        ("infinity", GOOD[:-1] + b',"temperature":-Infinity}'), ("bad escape", GOOD.replace(b"hello", b"\\x41")),
        ("nul byte", GOOD.replace(b"hello", b"a\0b")), ("leading zero", GOOD.replace(b":2,", b":02,")),
    ):  # fmt: skip
        yield raw(name, body)
    yield raw("lone surrogate", GOOD.replace(b"hello", b"\\ud800"), 400, 200)
    yield raw("lone surrogate in the model", GOOD.replace(b"chat", b"ch\\udc00at"), 400, 404)
    yield raw("deep list", GOOD[:-1] + b',"x":' + b"[" * 100_000 + b"]" * 100_000 + b"}")
    yield raw("deep object", GOOD[:-1] + b',"x":' + b'{"a":' * 20_000 + b"1" + b"}" * 20_000 + b"}")
    yield raw("deep, never closed", b"[" * 1_000_000)
    yield raw("bigint", GOOD[:-1] + b',"n":' + b"9" * 5000 + b"}", 400, 200)
    yield raw("bigint max_tokens", GOOD.replace(b":2,", b":" + b"9" * 400 + b","))
    yield raw("exponent max_tokens", GOOD.replace(b":2,", b":1e309,"))
    for value in (-1, 0, 1.5, "many", True, [], {}, 2**63):
        yield raw(f"max_tokens {value!r}", told(max_tokens=value))
    for value in (None, 5, "", [], {}, "nope", "chat\u0000", "../chat", "CHAT", "chat "):
        yield raw(f"model {value!r}", told(model=value), 400, 404)
    yield raw("no model", b'{"messages":[]}')
    yield raw("model twice", GOOD[:-1] + b',"model":"other"}', 400, 404, 200, never="other")
    yield raw("max_tokens twice", GOOD[:-1] + b',"max_tokens":999}', 400, 200, tokens_max=2)
    yield raw("stream twice", GOOD[:-1] + b',"stream":false,"stream":true}', 400, 200)
    yield raw("escaped key stream", GOOD[:-1] + b',"\\u0073tream":true}', 400, 200)
    yield raw("escaped key max_tokens", GOOD.replace(b'"max_tokens"', b'"max\\u005ftokens"'), 400, 200, tokens_max=2)
    yield raw("stream is text", told(stream="yes"), 400, 200)
    yield raw("stream is 1", told(stream=1), 400, 200)
    yield raw("n choices", told(n=10_000))
    yield raw("best_of", told(n=1, best_of=500), 400, 200)
    yield raw("messages no list", told(messages="x"), 400)
    yield raw("messages of numbers", told(messages=[1, 2]), 400)
    evil = f"http://127.0.0.1:{canary_port}"
    for name in ("api_base", "base_url", "api_url", "endpoint", "custom_llm_provider", "url", "proxy"):
        yield raw(f"{name} elsewhere", told(**{name: evil}, api_key="sk-x"), 400, 200)
    yield raw("stream_options null", told(stream=True, stream_options=None), 200, 400)
    yield raw("stream_options text", told(stream=True, stream_options="x"), 200, 400)
    yield raw(
        "100,000 keys", json.dumps({**json.loads(GOOD), **{f"k{i}": i for i in range(100_000)}}).encode(), 200, 400
    )
    gzip_bomb = bytes.fromhex("1f8b0800000000000203") + b"\0" * 64
    yield Case("body in gzip", post(gzip_bomb, key, "Content-Encoding: gzip"), frozenset((400, 415)))
    yield Case("multipart", post(b"--x\r\n\r\n", key, "Content-Type: multipart/form-data"), frozenset((400, 415)))
    yield Case(
        "17 MiB",
        post(b'{"model":"chat","x":"' + b"a" * (17 << 20) + b'"}', key),
        frozenset((413, 0)),
        True,
    )


def slowly(key: str, header_s: float, body_s: float) -> Iterator[Case]:
    """Clients that take their time: cut at the limit, not before."""

    def dribble(first: bytes, piece: bytes, every_s: float = 0.2) -> Callable[[socket.socket], None]:
        def send(sock: socket.socket) -> None:
            sock.sendall(first)
            until_s = time.monotonic() + 30
            while time.monotonic() < until_s:
                time.sleep(every_s)
                sock.sendall(piece)

        return send

    start = head("POST", CHAT, f"Content-Length: {len(GOOD)}", key=key)
    yield Case("slow header", dribble(start[:40], b"X-A: b\r\n"), frozenset((408, 400, 431, 0)), True, header_s + 2)
    yield Case(
        "slow header, no line end",
        dribble(start[:40] + b"\r\nX-A: ", b"a"),
        frozenset((408, 400, 431, 0)),
        True,
        header_s + 2,
    )
    yield Case("header never comes", dribble(b"P", b""), frozenset((408, 400, 0)), True, header_s + 2)
    yield Case("slow body", dribble(start, b" "), frozenset((408, 400, 0)), True, body_s + 2)
    yield Case("body never comes", dribble(start, b""), frozenset((408, 400, 0)), True, body_s + 2)
    chunks = head("POST", CHAT, "Transfer-Encoding: chunked", key=key)
    yield Case("slow chunks", dribble(chunks, b"1\r\n \r\n"), frozenset((408, 400, 0)), True, body_s + 2)

    def endless(first: bytes, piece: bytes) -> Callable[[socket.socket], None]:
        def send(sock: socket.socket) -> None:
            sock.sendall(first)
            for _ in range(100_000_000 // len(piece)):
                sock.sendall(piece)

        return send

    yield Case("endless header", endless(start[:40] + b"\r\nX-A: ", b"a" * 65_536), frozenset((431, 400, 0)), True, 4.0)
    yield Case(
        "endless headers", endless(start[:40] + b"\r\n", b"X-A: b\r\n" * 4096), frozenset((431, 400, 0)), True, 4.0
    )
    yield Case(
        "endless chunks", endless(chunks, b"10000\r\n" + b"a" * 65_536 + b"\r\n"), frozenset((413, 0)), True, 8.0
    )
    yield Case("endless empty lines", endless(b"", b"\r\n" * 32_768), frozenset((400, 431, 408, 0)), True, header_s + 6)

    def half_close(sock: socket.socket) -> None:
        sock.sendall(post(GOOD, key))
        sock.shutdown(socket.SHUT_WR)

    yield Case("half-closed after the request", half_close, frozenset((200, 0)), True)

    def half_request(sock: socket.socket) -> None:
        sock.sendall(start)
        sock.shutdown(socket.SHUT_WR)

    yield Case("half-closed within the request", half_request, frozenset((400, 408, 0)), True)


def listen(sock: socket.socket, until_s: float, enough: int, silence_s: float = 0.25) -> tuple[bytes, bool]:
    """Read until the connection ends, `enough` whole answers are there and no more in a while, or the time is over."""
    data = b""
    while True:
        left_s = until_s - time.monotonic()
        if left_s <= 0:
            return data, False
        enough_now = len(split_answers(data)) >= enough
        if enough_now and not silence_s:
            return data, False
        sock.settimeout(min(left_s, silence_s if enough_now else left_s))
        try:
            piece = sock.recv(65_536)
        except TimeoutError:
            return data, False
        except OSError:
            return data, True
        if not piece:
            return data, True
        data += piece


def split_answers(raw: bytes) -> list[int]:
    """Return the final statuses of the whole answers in a byte stream.

    >>> split_answers(b"HTTP/1.1 200 OK\\r\\ncontent-length: 2\\r\\n\\r\\n{}HTTP/1.1 400 Bad\\r\\n\\r\\n")
    [200, 400]
    """
    found = []
    while raw.startswith(b"HTTP/1."):
        top, mark, rest = raw.partition(b"\r\n\r\n")
        if not mark:
            break
        fields = {}
        for line in top.split(b"\r\n")[1:]:
            name, _, value = line.partition(b":")
            fields[name.strip().lower()] = value.strip().lower()
        status = int(top.split()[1])
        if status < 200:
            raw = rest
            continue
        if fields.get(b"transfer-encoding") == b"chunked":
            end = rest.find(b"0\r\n\r\n")
            if end < 0:
                break
            raw = rest[end + 5 :]
        elif b"content-length" in fields:
            n = int(fields[b"content-length"])
            if len(rest) < n:
                break
            raw = rest[n:]
        else:
            raw = b"" if status not in (204, 304) else rest
        found.append(status)
    return found


def run(case: Case, port: int, *, silence_s: float = 0.25) -> Got:
    """Send a case on a connection of its own, and listen; with `silence_s` for what may come after the last answer."""
    began_s = time.monotonic()
    with socket.create_connection(("127.0.0.1", port), timeout=5) as sock:
        send = case.send

        def speak() -> None:
            try:
                sock.sendall(send) if isinstance(send, bytes) else send(sock)
            except OSError:
                pass

        speaker = threading.Thread(target=speak, daemon=True)
        speaker.start()
        raw, closed = listen(sock, began_s + case.within_s, case.note.get("exactly", case.answers), silence_s)
        took_s = time.monotonic() - began_s
        try:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            sock.shutdown(socket.SHUT_RDWR)
        except OSError:
            pass
    statuses = split_answers(raw)
    if not statuses and raw.startswith(b"HTTP/1."):
        statuses = [int(raw.split()[1])]
    return Got(statuses, closed, took_s, raw)


def wrong(case: Case, got: Got) -> list[str]:
    """Return what is wrong with what came back."""
    found = []
    if got.status not in case.allowed:
        found.append(f"status {got.status}, allowed {sorted(case.allowed)}: {got.raw[:160]!r}")
    if got.status == 0 and not got.closed:
        found.append(f"no answer, and the connection still stands after {got.took_s:.1f} s")
    if len(got.statuses) > case.answers:
        found.append(f"{len(got.statuses)} answers to what is at most {case.answers}: {got.statuses}")
    if "exactly" in case.note and len(got.statuses) != case.note["exactly"]:
        found.append(f"{len(got.statuses)} answers instead of {case.note['exactly']}")
    if case.closes is True and not got.closed:
        found.append("the connection stays open")
    if case.closes is False and got.closed:
        found.append("the connection was closed")
    if got.status >= 500 and got.status not in case.allowed:
        found.append("a server error")
    if got.status >= 400 and b"\r\n\r\n" in got.raw:
        body = got.raw.split(b"\r\n\r\n", 1)[1].split(b"HTTP/1.1")[0]
        if b'"error"' not in body or b'"message"' not in body:
            found.append(f"an error without its envelope: {body[:120]!r}")
        if b"Traceback" in body or b".py" in body:
            found.append("an answer that shows our insides")
    return found


def all_cases(key: str, *, canary_port: int, header_s: float, body_s: float) -> list[Case]:
    """Return every case."""
    return [
        *framing(key),
        *lines(key),
        *paths(key),
        *keys(key),
        *bodies(key, canary_port),
        *slowly(key, header_s, body_s),
    ]
