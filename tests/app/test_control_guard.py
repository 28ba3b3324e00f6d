"""Host, Origin, sessions, guesses, bodies: what the control listener turns away before anyone's role matters."""

from __future__ import annotations

import socket
import threading
import time
from collections.abc import Iterator

import pytest

from baseload.app.web.guard import Attempts, refusal, require_safe_bind
from baseload.app.web.view import MadeKey, NewKey
from baseload.errors import InputError
from tests.app.control_client import Listener, listening
from tests.app.fake_owner import TOKENS, FakeOwner


@pytest.fixture
def listener() -> Iterator[Listener]:
    """A listener of its own for each test."""
    with listening() as one:
        yield one


@pytest.fixture(scope="module")
def one_for_many() -> Iterator[Listener]:
    """A listener for those who are all turned away."""
    with listening() as one:
        yield one


def cookie_of(listener: Listener, role: str = "admin") -> str:
    """Return a session's cookie header."""
    return listener.log_in(TOKENS[role]).headers["set-cookie"].split(";")[0]


HOSTS = [
    "", "evil.example", "localhost:{port}/#@x", "127.0.0.1:{port}@evil.example", "127.0.0.1:{port}.evil.example", "127.0.0.1",
    "LOCALHOST:{port}\r\nHost: evil.example", "*", "localhost:{port}?", "127.0.0.1:{port} ", "xn--localhost:{port}",
]  # fmt: skip


@pytest.mark.parametrize("method", ["GET", "HEAD", "POST", "DELETE"])
@pytest.mark.parametrize("host", HOSTS)
def test_no_host_but_ours_is_served_on_any_method(one_for_many: Listener, host: str, method: str):
    """A page that made its name point here (DNS rebinding), or a Host that bends the path, gets nothing, token or not."""
    listener = one_for_many
    name = host.format(port=listener.port)
    token = f"Authorization: Bearer {TOKENS['admin']}\r\nConnection: close"
    head = f"{method} /api/keys HTTP/1.1\r\nHost: {name}\r\n{token}\r\n\r\n"

    got = listener.raw(head.encode())

    if name.strip() == listener.host:  # a space at the end is no part of the value
        assert got.startswith((b"HTTP/1.1 200", b"HTTP/1.1 4"))
    else:
        assert got.startswith((b"HTTP/1.1 421", b"HTTP/1.1 400")), got[:100]
    assert listener.owner.asked == []


@pytest.mark.parametrize("method", ["GET", "POST", "DELETE"])
@pytest.mark.parametrize(
    "origin", ["https://evil.example", "null", "http://127.0.0.1", "http://127.0.0.1:1", "file://", ""]
)
def test_no_other_origin_may_ask_with_any_method(one_for_many: Listener, origin: str, method: str):
    """The check is no list of methods that someone could forget one in: DELETE is refused like POST, and GET too."""
    listener = one_for_many
    listener.clock[0] += 60.0  # another minute: log-ins are counted
    headers = {"Origin": origin, "Cookie": cookie_of(listener)}
    path = "/api/keys/k1" if method == "DELETE" else "/api/keys" if method == "GET" else "/api/reload"

    got = listener.ask(method, path, headers=headers)

    assert got.status == 403 and listener.owner.asked == []


@pytest.mark.parametrize(("scheme", "turned"), [("http", False), ("https", True)])
def test_a_page_without_tls_may_not_ask_where_there_is_tls(scheme: str, turned: bool):
    """Who can put a page on the wire at our own name and port, but without TLS, cannot act with a session."""
    headers = [(b"host", b"control.example:8081"), (b"origin", b"http://control.example:8081")]
    scope = {"type": "http", "method": "POST", "scheme": scheme, "headers": headers}
    assert (refusal(scope, frozenset({"control.example:8081"})) is not None) == turned


@pytest.mark.parametrize("site", ["cross-site", "same-site"])
def test_a_browser_that_says_it_comes_from_elsewhere_is_refused(listener: Listener, site: str):
    """Sec-Fetch-Site from another site is refused; only a plain link may open the page, and then without a cookie."""
    cookie = cookie_of(listener)
    image = {"Sec-Fetch-Site": site, "Sec-Fetch-Mode": "no-cors", "Sec-Fetch-Dest": "image", "Cookie": cookie}
    link = {"Sec-Fetch-Site": site, "Sec-Fetch-Mode": "navigate", "Sec-Fetch-Dest": "document"}

    assert listener.ask("GET", "/api/snapshot", headers=image).status == 403
    assert listener.ask("GET", "/", headers=link).status == 303
    assert listener.ask("POST", "/api/reload", headers={**link, "Cookie": cookie}).status == 403


def test_a_cookie_changes_nothing_without_an_origin(listener: Listener):
    """A change with a session needs the browser's own word on where it comes from; a token does not."""
    cookie = cookie_of(listener)

    assert listener.ask("POST", "/api/reload", headers={"Cookie": cookie}).status == 401
    assert listener.ask("POST", "/api/reload", headers={"Cookie": cookie, "Origin": listener.origin}).status == 200
    assert listener.ask("POST", "/api/reload", token=TOKENS["operator"]).status == 200


def test_the_cookie_is_out_of_reach(listener: Listener):
    """Scripts cannot read it, other sites cannot send it, and over TLS it travels by TLS alone."""
    cookie = listener.log_in(TOKENS["viewer"]).headers["set-cookie"]
    with listening(secure_cookies=True) as safe:
        secure = safe.log_in(TOKENS["viewer"]).headers["set-cookie"]

    assert "HttpOnly" in cookie and "SameSite=strict" in cookie and "Path=/" in cookie and "Secure" not in cookie
    assert "Secure" in secure
    assert TOKENS["viewer"] not in cookie


def test_a_session_ends_with_its_token_at_once(listener: Listener):
    """Who is let go is out within a second, open page included, not when the session would have expired."""
    cookie = cookie_of(listener, "operator")
    assert listener.ask("GET", "/api/snapshot", headers={"Cookie": cookie}).status == 200

    listener.owner.revoke_token("operator")

    assert listener.ask("GET", "/api/snapshot", headers={"Cookie": cookie}).status == 401
    listener.control.gate.check()


def test_an_open_stream_ends_with_its_token_within_a_second_or_two(listener: Listener):
    """Revoking a token closes the live page that it opened."""
    cookie = cookie_of(listener)
    head = f"GET /api/events HTTP/1.1\r\nHost: {listener.host}\r\nCookie: {cookie}\r\nConnection: close\r\n\r\n"
    timer = threading.Timer(0.5, listener.owner.revoke_token, args=["admin"])
    timer.start()
    begun_s = time.monotonic()
    got = listener.raw(head.encode(), wait_s=6.0)
    took_s = time.monotonic() - begun_s
    timer.join()

    assert b"event: bye" in got and took_s < 0.5 + 2.0


def test_logging_out_ends_the_session_for_good(listener: Listener):
    """A cookie that was copied before is worth nothing after."""
    cookie = cookie_of(listener)
    listener.ask("POST", "/logout", headers={"Cookie": cookie, "Origin": listener.origin})

    assert listener.ask("GET", "/api/snapshot", headers={"Cookie": cookie}).status == 401


def test_guessing_is_slowed_down(listener: Listener):
    """After ten wrong tokens in a minute an address has to wait; right tokens sent as Bearer still pass."""
    statuses = [listener.log_in(f"guess-{i}").status for i in range(12)]

    assert statuses == [401] * 10 + [429] * 2
    assert listener.ask("GET", "/api/snapshot", token="wrong").status == 429
    assert listener.ask("GET", "/api/snapshot", token=TOKENS["viewer"]).status == 200
    listener.clock[0] += 60.0
    assert listener.log_in(TOKENS["viewer"]).status == 303
    listener.control.gate.check()


def test_the_memory_of_guesses_is_bounded():
    """A million addresses that guess do not fill the memory, and the limit over all of them holds."""
    attempts = Attempts(per_min=10, per_min_all=100)
    allowed = sum(attempts.take(f"10.0.{i // 256}.{i % 256}", 0.0) for i in range(5000))

    assert allowed == 100 and len(attempts.left) <= 1024


@pytest.mark.parametrize("listen", ["10.1.2.3:8081", "0.0.0" + ".0:8081", "[2001:db8::1]:8081", "control.example:8081"])
def test_off_loopback_it_wants_a_token_first(listen: str):
    """Auth is never off in silence: an address that others reach does not start without a token."""
    with pytest.raises(InputError, match="control token"):
        require_safe_bind(listen, has_tokens=False)
    require_safe_bind(listen, has_tokens=True)
    for local in ("127.0.0.1:8081", "[::1]:8081", "localhost:8081"):
        require_safe_bind(local, has_tokens=False)


@pytest.mark.parametrize("listen", ["8081", ":8081", "127.0.0.1", "127.0.0.1:x", "127.0.0.1:99999", "127.0.0.1:"])
def test_an_address_that_is_none_is_named(listen: str):
    """A slip of the pen in serve.control is told, with an example."""
    with pytest.raises(InputError, match=r"127\.0\.0\.1:8081"):
        require_safe_bind(listen, has_tokens=True)


WRONG_BODIES = [
    b"", b"{", b"[" * 20_000, b'{"tenant": 1}', b'{"tenant": "a", "api_base": "http://evil"}', b"\xff\xfe", b"NaN",
    b'{"tenant":"a","budget":NaN}', b'{"tenant":"a","budget":-1}', b'{"tenant":"a","rpm":0}', b'{"tenant":""}',
]  # fmt: skip


def test_bodies_are_bounded_and_typed(listener: Listener):
    """What is too large, not JSON, deep, or holds a key nobody knows is refused with a sentence; nothing is done."""
    kind = {"Content-Type": "application/json"}
    admin = TOKENS["admin"]

    assert listener.ask("POST", "/api/keys", b"x" * 70_000, admin, kind).status == 413
    for body in WRONG_BODIES:
        got = listener.ask("POST", "/api/keys", body, admin, kind)
        assert got.status == 422 and got.json["error"]["message"], body
    assert listener.ask("POST", "/api/keys", b'{"tenant":"acme"}', admin, {"Content-Type": "text/plain"}).status == 422
    assert listener.owner.asked == []


def test_a_slow_sender_of_headers_is_dropped():
    """A connection that never finishes its headers does not stay, whether it drips or is silent."""
    from baseload.app.web.server import PatientProtocol

    kept, PatientProtocol.header_s = PatientProtocol.header_s, 0.5
    try:
        with listening() as listener:
            begun_s = time.monotonic()
            got = listener.raw(b"GET / HTTP/1.1\r\nHost: x", wait_s=5.0)
            assert time.monotonic() - begun_s < 2.0 and got == b""
            request = f"GET /healthz HTTP/1.1\r\nHost: {listener.host}\r\n\r\n".encode()
            with socket.create_connection(("127.0.0.1", listener.port), timeout=5.0) as sock:
                sock.sendall(request)
                got = b""
                while b"ok\n" not in got:
                    got += sock.recv(65536)
                begun_s = time.monotonic()
                sock.sendall(b"GET / HTTP")
                assert sock.recv(65536) == b"" and time.monotonic() - begun_s < 2.0
    finally:
        PatientProtocol.header_s = kept


def test_who_sends_on_or_reads_nothing_is_let_go(monkeypatch: pytest.MonkeyPatch):
    """Neither dripping a body behind its answer nor asking for more than one reads keeps a place."""
    from baseload.app.web import server

    monkeypatch.setattr(server.PatientProtocol, "rest_s", 0.1)
    monkeypatch.setattr(server.PatientProtocol, "send_s", 0.1)
    monkeypatch.setattr(server, "LOOK_S", 0.05)
    lost, end = threading.Event(), server.PatientProtocol.connection_lost
    monkeypatch.setattr(server.PatientProtocol, "connection_lost", lambda self, exc: (end(self, exc), lost.set()))
    with listening() as listener, socket.create_connection(("127.0.0.1", listener.port), timeout=5.0) as drips:
        host = f"Host: {listener.host}\r\n".encode()
        drips.sendall(b"POST /login HTTP/1.1\r\n" + host + b"Content-Length: 1000000\r\n\r\n")
        assert drips.recv(65_536).startswith(b"HTTP/1.1 403")
        with pytest.raises(OSError):
            for _ in range(100):
                time.sleep(0.05)
                drips.sendall(b"x")
        with socket.socket() as deaf:
            deaf.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
            deaf.settimeout(5.0)
            assert lost.wait(5.0)
            lost.clear()
            deaf.connect(("127.0.0.1", listener.port))
            deaf.sendall((b"GET /static/uPlot.min.js HTTP/1.1\r\n" + host + b"\r\n") * 200)
            assert lost.wait(5.0), "it is still there"


def test_a_crowd_that_asks_nothing_keeps_nobody_out(monkeypatch: pytest.MonkeyPatch):
    """Where all places are taken, who has waited longest without a request makes room; a request under way stays."""
    from baseload.app.web.server import PatientProtocol

    monkeypatch.setattr(PatientProtocol, "most", 8)
    with listening() as listener:
        stream = b"GET /api/events HTTP/1.1\r\nHost: %b\r\nAuthorization: Bearer %b\r\n\r\n"
        with socket.create_connection(("127.0.0.1", listener.port), timeout=5.0) as reads:
            reads.sendall(stream % (listener.host.encode(), TOKENS["viewer"].encode()))
            assert reads.recv(4096).startswith(b"HTTP/1.1 200")
            crowd = [socket.create_connection(("127.0.0.1", listener.port)) for _ in range(30)]
            assert listener.ask("GET", "/healthz").status == 200
            assert reads.recv(65_536), "the page that was open goes on"
            for one in crowd:
                one.close()


def test_a_form_of_many_fields_is_refused(listener: Listener):
    """It is the sender's fault, not ours."""
    form = {"Content-Type": "application/x-www-form-urlencoded", "Origin": listener.origin}
    assert listener.ask("POST", "/login", b"&".join([b"a=1"] * 20), headers=form).status == 422


def test_huge_headers_are_refused(listener: Listener):
    """A megabyte of headers does not become a megabyte of memory for long."""
    got = listener.raw(
        b"GET /healthz HTTP/1.1\r\nHost: " + listener.host.encode() + b"\r\nX: " + b"a" * 1_000_000 + b"\r\n\r\n"
    )

    assert b"200 OK" not in got


def test_every_answer_carries_the_headers_that_keep_it_where_it_is(listener: Listener):
    """No inline script, no framing, no sniffing, no caching of figures; also on errors."""
    answers = [listener.ask("GET", "/login"), listener.ask("GET", "/nowhere"), listener.ask("GET", "/api/keys")]
    answers.append(listener.ask("GET", "/healthz", headers={"Origin": "https://evil.example"}))

    for got in answers:
        policy = got.headers["content-security-policy"]
        assert "default-src 'none'" in policy and "unsafe" not in policy
        assert got.headers["x-frame-options"] == "DENY" and got.headers["x-content-type-options"] == "nosniff"
        assert got.headers["cache-control"] == "no-store"
        assert "server" not in got.headers and "access-control-allow-origin" not in got.headers


def test_an_action_without_its_row_in_the_ledger_is_not_done():
    """Where the ledger takes no rows, no key is made: the answer is 503."""
    owner = FakeOwner()
    owner.audit_fails = True
    with listening(owner) as listener:
        got = listener.send_json("POST", "/api/keys", {"tenant": "acme"}, TOKENS["admin"])

        assert got.status == 503 and "disk full" in got.json["error"]["message"] and owner.asked == []
        assert len(owner.held) == 2
        assert listener.log_in(TOKENS["viewer"]).status == 303  # one may still look, and see why


def test_a_key_that_was_made_is_shown_though_the_ledger_fails_right_after():
    """The row before the change stands; the answer is not lost with the row after it."""
    owner = FakeOwner()
    make = owner.create_key

    async def make_then_fail(wanted: NewKey) -> MadeKey:
        made = await make(wanted)
        owner.audit_fails = True
        return made

    owner.create_key = make_then_fail  # type: ignore[method-assign]
    with listening(owner) as listener:
        got = listener.send_json("POST", "/api/keys", {"tenant": "acme"}, TOKENS["admin"])

        assert got.status == 201 and got.json["secret"] and [one.outcome for one in owner.audits] == ["asked"]
