"""Every route of both listeners times everyone who may knock, with two tenants: nobody gets what is another's.

The real gateway, its real keys and tokens; the control listener's table with all its roles is tests/app/test_control_roles.py.
"""

from __future__ import annotations

import http.client
import json
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from baseload.app.web.control import RULES
from tests.chaos.invariants import ledger_rows
from tests.chaos.leaks import CANARY
from tests.chaos.stack import Gateway, MockEngine, fleet_text

MESSAGES = [{"role": "user", "content": "hello"}]
POSTS: dict[str, dict[str, Any]] = {
    "/v1/chat/completions": {"messages": MESSAGES, "max_tokens": 2},
    "/v1/completions": {"prompt": "hello", "max_tokens": 2},
    "/v1/embeddings": {"input": "hello"},
    "/v1/responses": {"input": "hello", "max_output_tokens": 2},
    "/v1/messages": {"messages": MESSAGES, "max_tokens": 2},
}
ROUTES = (*(f"POST {path}" for path in POSTS), "GET /v1/models", "GET /v1/models/chat", "GET receipt of acme",
          "GET receipt of bank")  # fmt: skip
STRANGERS = ("nobody", "a guess", "a revoked key", "a key cut short", "the admin's token", "an id of a key")
LONG = "a beginning that two tenants share, long enough for many blocks of a cache. " * 60


class Answer:
    """What came back."""

    def __init__(self, response: http.client.HTTPResponse) -> None:
        self.status, self.body = response.status, response.read()
        self.headers = {name.lower(): value for name, value in response.getheaders()}

    @property
    def rid(self) -> str:
        """Return the request's id."""
        return self.headers["x-baseload-request-id"]


class Rig:
    """Two sites, one of them outside the EU; acme may run anywhere, bank in the EU alone."""

    def __init__(self, folder: Path) -> None:
        self.engines = [MockEngine(folder / f"engine-{i}.truth").start() for i in range(2)]
        fleet, state = folder / "fleet.yaml", folder / "state"
        state.mkdir(mode=0o700)
        fleet.write_text(fleet_text([self.engines[0].url], [self.engines[1].url], workers=1))
        self.gateway = Gateway(fleet, state).start()
        self.keys = {name: self.gateway.key(name) for name in ("acme", "bank")}
        revoked = self.gateway.key("acme", "--name", "gone")
        assert self.gateway.baseload("keys", "revoke", revoked, "--state", str(state)).returncode == 0
        self.tokens = {name: self.gateway.key(name, "--role", "tenant") for name in self.keys}
        admin = (state / "admin.token").read_text().strip()
        self.bearers = self.keys | {
            "nobody": "", "a guess": "bl-" + "A" * 43, "a revoked key": revoked, "a key cut short": self.keys["acme"][:-1],
            "the admin's token": admin, "an id of a key": "k1",
        }  # fmt: skip
        self.rids = {name: self.post("/v1/chat/completions", self.keys[name]).rid for name in self.keys}
        for name, rid in self.rids.items():
            self.until(lambda name=name, rid=rid: self.ask("GET", f"/v1/receipts/{rid}", self.keys[name]).status == 200)

    def until(self, there: Any) -> None:
        """Wait for what comes with the next group of commits."""
        until_s = time.monotonic() + 10.0
        while not there():
            assert time.monotonic() < until_s
            time.sleep(0.05)

    def ask(self, method: str, path: str, bearer: str, body: bytes = b"", port: int = 0, **more: str) -> Answer:
        """Send a request on a connection of its own."""
        connection = http.client.HTTPConnection("127.0.0.1", port or self.gateway.port, timeout=20)
        try:
            headers = {"Authorization": f"Bearer {bearer}"} if bearer else {}
            headers |= {name.replace("_", "-"): value for name, value in more.items()}
            connection.request(method, path, body or None, headers | {"Content-Type": "application/json"})
            return Answer(connection.getresponse())
        finally:
            connection.close()

    def post(self, path: str, bearer: str, told: dict[str, Any] | None = None, **more: str) -> Answer:
        """Ask for tokens."""
        return self.ask(
            "POST", path, bearer, json.dumps({"model": "chat", **POSTS[path], **(told or {})}).encode(), **more
        )

    def knock(self, route: str, bearer: str, **more: str) -> Answer:
        """Ask for one of ROUTES."""
        method, _, path = route.partition(" ")
        if method == "POST":
            return self.post(path, bearer, **more)
        if path.startswith("receipt of "):
            path = "/v1/receipts/" + self.rids[path.removeprefix("receipt of ")]
        return self.ask(method, path, bearer, **more)

    def rows(self, *answers: Answer) -> list[dict[str, Any]]:
        """Return the rows that requests were billed with, once they are there."""
        numbers = [int(answer.rid.removeprefix("req-"), 16) for answer in answers]
        found: dict[int, dict[str, Any]] = {}

        def there() -> bool:
            settled = [row for row in ledger_rows(self.gateway.state / "ledger.db") if row["kind"] == "settle"]
            found.update({row["request_id"]: row for row in settled})
            return set(numbers) <= set(found)

        self.until(there)
        return [found[number] for number in numbers]

    def end(self) -> None:
        """Stop all."""
        self.gateway.stop()
        for engine in self.engines:
            engine.kill()


@pytest.fixture(scope="module")
def rig(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Rig]:
    """A gateway with two tenants."""
    made = Rig(tmp_path_factory.mktemp("tenants"))
    yield made
    made.end()


@pytest.mark.parametrize("route", ROUTES)
def test_a_stranger_gets_nothing_anywhere(rig: Rig, route: str) -> None:
    """Without a key that holds: 401 on every route and with either header, and no engine is asked."""
    asked = [engine.call("/__stats")["requests"] for engine in rig.engines]
    for who in STRANGERS:
        for got in (rig.knock(route, rig.bearers[who]), rig.knock(route, "", x_api_key=rig.bearers[who] or " ")):
            assert got.status == 401, (route, who, got.status, got.body)
            assert b'"error"' in got.body and (rig.bearers[who] or "-none-").encode() not in got.body
    assert [engine.call("/__stats")["requests"] for engine in rig.engines] == asked


@pytest.mark.parametrize("route", ROUTES)
def test_each_tenant_gets_its_own_and_no_more(rig: Rig, route: str) -> None:
    """A key opens every route to its tenant, with either header; another tenant's receipt does not exist for it."""
    for who, key in rig.keys.items():
        another = route.startswith("GET receipt") and not route.endswith(who)
        for got in (rig.knock(route, key), rig.knock(route, "", x_api_key=key)):
            assert got.status == (404 if another else 200), (route, who, got.status, got.body)
            if route.startswith("POST") and who == "bank":
                assert got.headers["x-baseload-site"] == "frankfurt"
        if another:
            nowhere = rig.ask("GET", "/v1/receipts/req-00000000000fffff", key)
            assert got.body == nowhere.body, "whether it exists is not told either"


def test_who_pays_is_who_holds_the_key(rig: Rig) -> None:
    """No header and no field of a body makes a request another tenant's; of two keys in one request one counts, wholly."""
    acme, bank = rig.keys["acme"], rig.keys["bank"]
    path = "/v1/chat/completions"
    mine, theirs = rig.post(path, acme), rig.post(path, bank)
    claims = [
        rig.post(path, acme, x_baseload_tenant="bank", openai_organization="bank", openai_project="bank"),
        rig.post(path, acme, x_forwarded_user="bank", x_tenant_id="bank", x_baseload_request_id=theirs.rid),
        rig.post(path, acme, {"user": "bank", "metadata": {"tenant": "bank"}}),
        rig.post(path, acme, x_api_key=bank),
    ]
    both = rig.post(path, bank, x_api_key=acme)
    rows = rig.rows(mine, theirs, both, *claims)
    tenant_of_acme, tenant_of_bank = rows[0]["tenant"], rows[1]["tenant"]
    assert tenant_of_acme != tenant_of_bank and not {"acme", "bank"} & {row["tenant"] for row in rows}
    assert [row["tenant"] for row in rows[3:]] == [tenant_of_acme] * len(claims)
    assert rows[2]["tenant"] == tenant_of_bank and rows[2]["site"] == "frankfurt"
    assert len({answer.rid for answer in (mine, theirs, both, *claims)}) == 3 + len(claims)


def test_equal_prompts_of_two_tenants_have_nothing_in_common(rig: Rig) -> None:
    """Prefix hashes are salted by tenant: the ledger does not tell who asked the same, and no cache is probed across."""
    told = {"messages": [{"role": "user", "content": LONG}]}
    first, again, other = (rig.post("/v1/chat/completions", rig.keys[who], told) for who in ("acme", "acme", "bank"))
    mine, mine_again, theirs = (row["prefix"] for row in rig.rows(first, again, other))
    assert mine and mine == mine_again and not set(mine) & set(theirs)


@pytest.mark.parametrize("rule", RULES, ids=lambda rule: f"{rule.method} {rule.path}")
def test_neither_listener_does_the_other_s_work(rig: Rig, rule: Any) -> None:
    """Tenants' keys open nothing on the control listener; its paths do not exist on the data listener, for anyone."""
    path = rule.path.replace("{key_id}", "k1").replace("{request_id}", rig.rids["acme"]).replace("{name}", "live.js")
    for key in rig.keys.values():
        there = rig.ask(rule.method, path, key, b"{}", port=rig.gateway.control_port)
        refused = (
            (404, 413, 422, 400, 401, 303) if rule.path in ("/login", "/logout") else (401, 429)
        )  # guesses are counted
        assert there.status in refused or rule.access == "public", (rule, there.status, there.body)
        assert b'"secret"' not in there.body
    for bearer in (*rig.keys.values(), rig.bearers["the admin's token"]):
        here = rig.ask(rule.method, path, bearer, b"{}")
        assert here.status in (404, 405), (rule, here.status, here.body)


@pytest.mark.parametrize("rule", RULES, ids=lambda rule: f"{rule.method} {rule.path}")
def test_a_tenant_s_control_token_crosses_nowhere(rig: Rig, rule: Any) -> None:
    """On the control listener it sees its own usage, keys and receipts alone; on the data listener it opens nothing."""
    for who, other in (("acme", "bank"), ("bank", "acme")):
        for whose in ("acme", "bank"):
            path = (
                rule.path.replace("{key_id}", "1").replace("{request_id}", rig.rids[whose]).replace("{name}", "live.js")
            )
            got = rig.ask(rule.method, path, rig.tokens[who], b"{}", port=rig.gateway.control_port)
            if not rule.own:
                assert rule.access == "public" or got.status == 403, (rule, who, got.status)
            elif "{request_id}" in rule.path:
                assert got.status == (200 if whose == who else 404), (rule, who, whose, got.status)
            else:
                told = json.loads(got.body)
                rows = told.get("usage", told.get("keys"))
                assert got.status == 200 and rows and {row["tenant"] for row in rows} == {who}
                crossed = rig.ask("GET", f"{path}?tenant={other}", rig.tokens[who], port=rig.gateway.control_port)
                assert other.encode() not in crossed.body
    for route in ROUTES:
        assert rig.knock(route, rig.tokens["acme"]).status == 401


def test_an_error_tells_nothing_of_others(rig: Rig) -> None:
    """What a tenant is told when an engine fails names no other tenant, no engine's address and nothing of its prompt."""
    for fault in ("500", "garbage", "notjson", "reset0", "redirect"):
        got = rig.post(
            "/v1/chat/completions",
            rig.keys["acme"],
            {"messages": [{"role": "user", "content": f"{CANARY} @fault={fault}"}]},
        )
        assert got.status >= 400, (fault, got.status)
        urls = [engine.url.removeprefix("http://").encode() for engine in rig.engines]
        for word in (b"bank", b"crowd", CANARY.encode(), rig.keys["acme"].encode(), *urls):
            assert word not in got.body and word not in repr(got.headers).encode(), (fault, word, got.body)
