"""Every route of the control listener times everyone who may knock at it; the table of routes writes these tests."""

from __future__ import annotations

import json
from collections.abc import Iterator

import pytest

from baseload.app.web.control import RULES, Rule
from baseload.app.web.guard import COOKIE, ROLES, SESSION_IDLE_S, allows
from tests.app.control_client import Answer, Listener, listening
from tests.app.fake_owner import TENANT_TOKENS, TOKENS, FakeOwner

TENANT_KEY = "bl-" + "k" * 43  # a data key: opens the gateway, and nothing here
BODIES = {
    ("POST", "/api/keys"): {"tenant": "acme"},
    ("POST", "/api/drain"): {"what": "gateway"},
}
SESSIONS = tuple(f"{role}, logged in" for role in ROLES)
TENANTS = {f"{tenant}'s token": secret for tenant, secret in TENANT_TOKENS.items()}
WHO = ("nobody", "wrong token", "tenant's key", "expired session", "revoked session", "two tokens", *ROLES, *SESSIONS,
       *TENANTS, "acme's token as a cookie")  # fmt: skip
STREAMS = ("/api/events",)


@pytest.fixture(scope="module")
def listener() -> Iterator[Listener]:
    """One listener for all rows of the table; guesses are not limited here, that has its own test."""
    with listening() as one:
        one.control.gate.attempts.per_min = one.control.gate.attempts.per_min_all = 10**6
        one.control.gate.attempts.left_all = (1e6, 0.0)
        yield one


def path_of(rule: Rule) -> str:
    """Return a path that the rule serves."""
    return (
        rule.path.replace("{key_id}", "k1").replace("{request_id}", "req-0000000000000001").replace("{name}", "live.js")
    )


def knock(listener: Listener, rule: Rule, who: str) -> Answer:
    """Send the rule's request as someone."""
    headers = {"Content-Type": "application/json", "Origin": listener.origin, "X-Forwarded-For": "192.0.2.7"}
    body = json.dumps(BODIES[rule.method, rule.path]).encode() if (rule.method, rule.path) in BODIES else None
    if who in ROLES:
        headers["Authorization"] = f"Bearer {TOKENS[who]}"
    elif who in TENANTS:
        headers["Authorization"] = f"Bearer {TENANTS[who]}"
    elif who == "acme's token as a cookie":  # even a session that somehow came to be opens nothing
        gate = listener.control.gate
        digest, _ = gate.by_secret(TENANT_TOKENS["acme"])
        headers["Cookie"] = f"{COOKIE}={gate.open(digest)}"
    elif who == "wrong token":
        headers["Authorization"] = "Bearer ' OR '1'='1"
    elif who == "tenant's key":
        headers["Authorization"] = f"Bearer {TENANT_KEY}"
    elif who == "two tokens":  # http.client sends a list as one header: written out, it is no token either
        headers["Authorization"] = f"Bearer {TENANT_KEY}, Bearer {TOKENS['admin']}"
    elif who in ("expired session", "revoked session"):
        cookie = listener.log_in(TOKENS["admin"]).headers["set-cookie"].split(";")[0]
        headers["Cookie"] = cookie
        if who == "expired session":
            listener.clock[0] += SESSION_IDLE_S + 1.0
        else:
            listener.control.gate.close(cookie.removeprefix(COOKIE + "="))
    elif who in SESSIONS:
        headers["Cookie"] = listener.log_in(TOKENS[who.split(",")[0]]).headers["set-cookie"].split(";")[0]
    if rule.path in STREAMS and who in (*ROLES, *SESSIONS):
        sent = "".join(f"{name}: {value}\r\n" for name, value in headers.items())
        head = f"GET {path_of(rule)} HTTP/1.1\r\nHost: {listener.host}\r\n{sent}\r\n"
        return Answer(int(listener.raw(head.encode(), wait_s=0.4)[9:12]), {}, b"")
    return listener.ask(rule.method, path_of(rule), body, headers=headers)


@pytest.mark.parametrize("who", WHO)
@pytest.mark.parametrize("rule", RULES, ids=lambda rule: f"{rule.method} {rule.path}")
def test_a_route_serves_the_roles_it_names_and_nobody_else(listener: Listener, rule: Rule, who: str):
    """Whoever has no role that a route wants is refused, and what they asked for is not done."""
    before = len(listener.owner.asked)

    got = knock(listener, rule, who)

    role = who.split(",")[0]
    if rule.access == "public":
        allowed = True
    else:
        wanted = "viewer" if rule.access == "loopback" else rule.access
        allowed = role in ROLES and allows(role, wanted)
    if rule.own and who in TENANTS:
        theirs = "{request_id}" not in rule.path or who.startswith("acme")
        assert got.status == (200 if theirs else 404), got
        assert (b"lab" if who.startswith("acme") else b"acme") not in got.body
    elif allowed:
        assert got.status not in (403, 404, 405, 500), got
        assert rule.access == "public" or got.status < 300, got
    else:
        by_browser = rule.path == "/" and ("session" in who or "cookie" in who or who == "nobody")
        assert got.status == (303 if by_browser else 403 if role in ROLES or who in TENANTS else 401), got
        assert len(listener.owner.asked) == before
        assert not by_browser or got.headers["location"] == "/login"


def test_a_tenant_s_token_sees_its_own_and_asks_for_no_one_else(listener: Listener):
    """Usage, keys and receipts of its tenant; another's, and one that is not there, are told alike; no page, no metrics."""
    acme, lab = TENANT_TOKENS["acme"], TENANT_TOKENS["lab"]

    for token, own, other in ((acme, "acme", "lab"), (lab, "lab", "acme")):
        for path in ("/api/usage", f"/api/usage?tenant={own}"):
            rows = listener.ask("GET", path, token=token).json["usage"]
            assert rows and {row["tenant"] for row in rows} == {own}
        assert {row["tenant"] for row in listener.ask("GET", "/api/keys", token=token).json["keys"]} == {own}
        theirs, nobodys = (listener.ask("GET", f"/api/usage?tenant={name}", token=token) for name in (other, "nobody"))
        assert theirs.status == nobodys.status == 404 and theirs.body == nobodys.body
        assert listener.ask("GET", "/metrics", token=token).status == 403
        assert listener.log_in(token).status == 403
    receipt, none = ("req-0000000000000001", "req-0000000000000002")
    assert listener.ask("GET", f"/api/receipts/{receipt}", token=acme).status == 200
    hidden, nowhere = (listener.ask("GET", f"/api/receipts/{name}", token=lab) for name in (receipt, none))
    assert hidden.status == nowhere.status == 404 and hidden.body == nowhere.body
    assert {rule.path for rule in RULES if rule.own} == {"/api/usage", "/api/keys", "/api/receipts/{request_id}"}
    assert {rule.method for rule in RULES if rule.own} == {"GET"}


def test_what_is_served_is_the_table():
    """No route exists beside the table, each has one rule a method, and what changes something is never a GET."""
    with listening() as listener:
        app_paths = {rule.path for rule in RULES}

    assert len({(rule.method, rule.path) for rule in RULES}) == len(RULES)
    assert {rule.path for rule in RULES if rule.access == "public"} == {
        "/healthz", "/readyz", "/login", "/logout", "/static/{name}",
    }  # fmt: skip
    assert all(rule.about for rule in RULES) and listener.port
    assert {rule.method for rule in RULES if rule.path == "/api/reload"} == {"POST"} and "/docs" not in app_paths


@pytest.mark.parametrize("method", ["PUT", "PATCH", "OPTIONS", "TRACE", "CONNECT", "PROPFIND", "DELETE", "POST"])
def test_methods_outside_the_table_do_nothing(listener: Listener, method: str):
    """An admin's browser cannot be made to use a method that nobody thought of."""
    got = listener.ask(method, "/api/snapshot", token=TOKENS["admin"])

    assert got.status == 405 and got.headers["allow"]


@pytest.mark.parametrize(
    "path",
    ["/api/keys/", "//api/keys", "/API/keys", "/api/../api/keys", "/api/keys;x", "/login/../api/keys", "/docs",
     "/static/../control.py", "/static/..%2f..%2fcontrol.py", "/static/%2e%2e/control.py", "/openapi.json", "/.git/config"],
)  # fmt: skip
def test_a_path_that_is_not_in_the_table_does_not_exist(listener: Listener, path: str):
    """Other spellings of a path lead nowhere, whoever asks."""
    got = listener.raw(f"GET {path} HTTP/1.1\r\nHost: {listener.host}\r\nConnection: close\r\n\r\n".encode())

    assert got.startswith(b"HTTP/1.1 404"), got[:80]


@pytest.mark.parametrize("encoded", ["/api%2Fkeys", "/%61pi/keys", "/api/%6beys"])
def test_an_encoded_path_wants_the_same_role(listener: Listener, encoded: str):
    """What is routed is what is guarded: percent signs change neither."""
    bare = listener.raw(
        f"GET {encoded} HTTP/1.1\r\nHost: {listener.host}\r\nX-Real-Ip: 1\r\nConnection: close\r\n\r\n".encode()
    )

    assert bare.startswith((b"HTTP/1.1 401", b"HTTP/1.1 404")), bare[:80]


def test_on_a_fresh_machine_a_visitor_from_loopback_may_look_and_no_more():
    """Without any token the page opens on this machine, read-only; behind a proxy it does not."""
    with listening(FakeOwner(), open_role="viewer") as listener:
        assert listener.ask("GET", "/").status == 200
        assert listener.ask("GET", "/api/keys").status == 403
        assert listener.ask("POST", "/api/reload", headers={"Origin": listener.origin}).status == 403
        assert listener.ask("GET", "/api/snapshot", headers={"X-Forwarded-For": "10.0.0.9"}).status == 401
        assert listener.ask("GET", "/api/snapshot", token="wrong").status == 401
        assert listener.owner.asked == []
