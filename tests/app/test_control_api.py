"""What the control listener answers: health, snapshot, keys, usage, reload, drain, receipts, news."""

from __future__ import annotations

import gzip
import json
import socket
import time
import zlib
from collections.abc import Iterator

import msgspec
import pytest

from baseload.app.web import events as news
from baseload.app.web.view import SERIES_COLUMNS, Snapshot
from baseload.errors import Problem
from tests.app.control_client import Listener, listening
from tests.app.fake_owner import TOKENS, FakeOwner

VIEWER, OPERATOR, ADMIN = (TOKENS[role] for role in ("viewer", "operator", "admin"))


@pytest.fixture
def listener() -> Iterator[Listener]:
    """A listener of its own for each test."""
    with listening() as one:
        yield one


def events(
    listener: Listener, n: int = 1, headers: str = "", query: str = "", wait_s: float = 10.0
) -> list[tuple[str, dict]]:
    """Return the first `n` events: id and data."""
    head = (
        f"GET /api/events{query} HTTP/1.1\r\nHost: {listener.host}\r\nAuthorization: Bearer {VIEWER}\r\n{headers}\r\n"
    )
    return read_events(listener.raw(head.encode(), wait_s, lambda got: len(read_events(got)) >= n))[:n]


def read_events(answer: bytes) -> list[tuple[str, dict]]:
    """Return the events that came whole."""
    pieces = answer.partition(b"\r\n\r\n")[2].decode("utf-8", "replace").split("\r\n")
    text = "".join(pieces[1:-1:2])  # chunks, without their sizes; what follows the last line end is not whole
    found = []
    for block in text.split("\n\n")[:-1]:
        fields = dict(line.split(": ", 1) for line in block.splitlines() if ": " in line)
        if "id" in fields:
            found.append((fields["id"], json.loads(fields["data"])))
    return found


def test_health_says_little_to_strangers(listener: Listener):
    """Probes need no token and learn nothing but yes or no."""
    assert listener.ask("GET", "/healthz").body == b"ok\n"
    assert listener.ask("GET", "/readyz").body == b"ready\n"

    listener.owner.unready = "the ledger at /var/lib/x is full"

    got = listener.ask("GET", "/readyz")
    assert (got.status, got.body) == (503, b"not ready\n")
    assert listener.ask("GET", "/api/snapshot", token=VIEWER).json["not_ready"] == "the ledger at /var/lib/x is full"
    assert listener.ask("HEAD", "/healthz").body == b""


def test_the_snapshot_is_what_the_owner_says(listener: Listener):
    """The JSON reads back as the same record, so that scripts and the page see the same figures."""
    got = listener.ask("GET", "/api/snapshot", token=VIEWER).json

    assert msgspec.convert(got["snapshot"], Snapshot).fleet == "three-sites"
    assert [one["name"] for one in got["snapshot"]["sites"]] == ["frankfurt", "oslo", "madrid"]
    ladder = listener.ask("GET", "/api/ladder", token=VIEWER).json
    assert ladder["fleet"][0]["name"] == "announced" and set(ladder["sites"]) == {
        "frankfurt",
        "oslo",
        "madrid",
    }


def test_a_key_is_shown_once(listener: Listener):
    """The secret is in the answer that made the key, and in no list after."""
    made = listener.send_json("POST", "/api/keys", {"tenant": "acme", "budget": 500.0, "rpm": 600}, ADMIN)
    listed = listener.ask("GET", "/api/keys", token=OPERATOR)

    assert made.status == 201 and made.json["secret"].startswith("bl-")
    assert made.json["secret"].encode() not in listed.body and len(listed.json["keys"]) == 3
    assert [(one.action, one.outcome, one.actor) for one in listener.owner.audits] == [
        ("key.create", "asked", "admin-desk"), ("key.create", "done", "admin-desk"),
    ]  # fmt: skip


def test_the_owner_s_refusal_is_passed_on_and_written_down(listener: Listener):
    """A tenant that does not exist is named with the mend, and the ledger says that it failed."""
    got = listener.send_json("POST", "/api/keys", {"tenant": "unknown"}, ADMIN)

    assert got.status == 422 and "write one of" in got.json["error"]["message"]
    assert [one.outcome for one in listener.owner.audits] == ["asked", "failed"]


def test_revoking_names_the_key(listener: Listener):
    """A known key is revoked, an unknown one is told."""
    assert listener.ask("DELETE", "/api/keys/k1", token=ADMIN).json == {"revoked": "k1"}
    assert listener.ask("DELETE", "/api/keys/k99", token=ADMIN).status == 404


def test_usage_is_asked_by_tenant_and_date(listener: Listener):
    """A date is UTC; what is no date is told how to write one."""
    every = listener.ask("GET", "/api/usage?since=2026-01-31", token=VIEWER).json
    one = listener.ask("GET", "/api/usage?tenant=lab", token=VIEWER).json

    assert every["since_ns"] == 1_769_817_600_000_000_000 and len(every["usage"]) == 2
    assert [row["tenant"] for row in one["usage"]] == ["lab"] and one["currency"] == "EUR"
    for since in ("yesterday", "9999-99-99", "0001-01-01T00:00%2B14:00", "1' OR '1'='1"):
        assert listener.ask("GET", f"/api/usage?since={since.replace(' ', '+')}", token=VIEWER).status == 422, since


def test_a_wrong_fleet_file_is_told_line_by_line(listener: Listener):
    """Reload answers with each problem's file and line, and the version that holds on."""
    assert listener.ask("POST", "/api/reload", token=OPERATOR).json == {"version": 4, "problems": []}
    listener.owner.problems = [
        Problem(what="12 MW exceed 8 MW", mend="raise power_kw", key="site.oslo", file="fleet.yaml", line=7)
    ]

    got = listener.ask("POST", "/api/reload", token=OPERATOR)

    assert got.status == 422 and got.json["error"]["version"] == 3
    assert got.json["error"]["problems"] == [
        {"what": "12 MW exceed 8 MW", "mend": "raise power_kw", "key": "site.oslo", "file": "fleet.yaml", "line": 7}
    ]


def test_draining_wants_a_name_where_there_are_several(listener: Listener):
    """The gateway as a whole has no name; a site, deployment or replica has."""
    ask = {"what": "site", "name": "oslo"}

    assert listener.send_json("POST", "/api/drain", ask, OPERATOR).json == {"now": "site oslo takes no new requests"}
    for wrong in (
        {"what": "site"},
        {"what": "gateway", "name": "x"},
        {"what": "planet", "name": "x"},
        {"name": "oslo"},
    ):
        assert listener.send_json("POST", "/api/drain", wrong, OPERATOR).status == 422, wrong


def test_receipts_are_found_by_request_id(listener: Listener):
    """A known id has a receipt, another has none, and what is no id does no harm."""
    assert listener.ask("GET", "/api/receipts/req-0000000000000001", token=VIEWER).json["proof"] == []
    for other in ("req-0000000000000002", "%00", "..%2f..%2fledger.db", "x" * 4000):
        assert listener.ask("GET", f"/api/receipts/{other}", token=VIEWER).status == 404


def test_news_come_each_second_and_hold_what_changed(listener: Listener):
    """The first event holds the page and 15 minutes of history; later ones only what is new."""
    got = events(listener, 3)

    assert len(got) == 3
    first, later = got[0][1], got[-1][1]
    assert set(first["sections"]) >= {"head", "cards", "sites", "tenants", "recent"} and first["whole"]
    assert len(first["points"]["at_s"]) == 900 and set(first["points"]) == {"at_s", *SERIES_COLUMNS}
    assert not later["whole"] and len(later["points"]["at_s"]) <= 3 and "ladders" in later["sections"]
    assert later["points"]["at_s"][0] > first["points"]["at_s"][-1]


def test_a_reader_who_comes_back_gets_what_was_missed(listener: Listener):
    """After a lost connection the last id brings the points since then, not everything, and not nothing."""
    last_id, first = events(listener)[0]
    time.sleep(2.0)

    again = events(listener, headers=f"Last-Event-ID: {last_id}\r\n")[0][1]

    missed = again["points"]["at_s"]
    assert not again["whole"] and missed[0] == first["points"]["at_s"][-1] + 1 and 1 <= len(missed) <= 6
    for strange in ("x", "-1--1", f"{last_id}0000000000", "0-0-0", "a" * 500):
        assert events(listener, headers=f"Last-Event-ID: {strange}\r\n")[0][1]["whole"], strange


def test_news_are_squeezed_where_the_reader_takes_it(listener: Listener):
    """A browser's stream and page are gzip, each event complete when it comes, and much smaller; curl's are plain."""
    head = f"GET /api/events HTTP/1.1\r\nHost: {listener.host}\r\nAuthorization: Bearer {VIEWER}\r\n"

    def told(answer: bytes) -> tuple[bytes, bytes]:
        rest, squeezed = answer.partition(b"\r\n\r\n")[2], b""
        while b"\r\n" in rest:
            size, _, rest = rest.partition(b"\r\n")
            if len(rest) < int(size, 16) + 2:
                break
            squeezed, rest = squeezed + rest[: int(size, 16)], rest[int(size, 16) + 2 :]
        return squeezed, zlib.decompressobj(wbits=31).decompress(squeezed)

    asked = (head + "Accept-Encoding: br, gzip\r\n\r\n").encode()
    answer = listener.raw(asked, 10.0, lambda got: told(got)[1].count(b"\nid: ") >= 2)
    headers, (squeezed, text) = answer.partition(b"\r\n\r\n")[0], told(answer)

    assert b"content-encoding: gzip" in headers and text.count(b"\nid: ") == 2 and text.endswith(b"\n\n")
    assert len(squeezed) < len(text) / 4
    page = listener.ask("GET", "/", token=VIEWER, headers={"Accept-Encoding": "gzip"})
    assert b"<h1>three-sites</h1>" in gzip.decompress(page.body)


def test_a_site_or_tenant_has_its_own_news(listener: Listener):
    """`scope` chooses whose series come; an unknown one is told."""
    assert events(listener, query="?scope=site/oslo")[0][1]["points"]["at_s"]
    assert listener.ask("GET", "/api/events?scope=site/atlantis", token=VIEWER).status == 404


def test_a_reader_who_does_not_read_is_dropped(monkeypatch: pytest.MonkeyPatch):
    """Whoever stops reading holds no memory for long, and keeps nobody else from reading."""
    monkeypatch.setattr(news, "SEND_S", 0.5)
    with listening(FakeOwner(60, 400)) as listener, socket.socket() as sock:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        sock.connect(("127.0.0.1", listener.port))
        head = f"GET /api/events HTTP/1.1\r\nHost: {listener.host}\r\nAuthorization: Bearer {VIEWER}\r\n\r\n"
        sock.sendall(head.encode())
        until_s = time.monotonic() + 8.0
        while not listener.control.hub.dropped_total and time.monotonic() < until_s:
            time.sleep(0.1)

        assert listener.control.hub.dropped_total == 1 and listener.control.hub.n_viewers == 0
        assert events(listener)


def test_nobody_looking_means_no_drawing(listener: Listener):
    """The owner's time is not spent on pages that nobody has open."""
    hub, until_s = listener.control.hub, time.monotonic() + 10.0
    events(listener)
    while (hub.n_viewers or not hub._task.done()) and time.monotonic() < until_s:
        time.sleep(0.05)
    tick = hub.tick
    time.sleep(1.5 * hub.every_s)

    assert hub.n_viewers == 0 and hub.tick == tick


def test_names_from_outside_are_text():
    """A tenant, site or reason that holds markup is shown as it is written, never run."""
    owner = FakeOwner()
    evil = "<img src=x onerror=alert(1)>\"'</script>"
    now = owner.snapshot()
    sites = [msgspec.structs.replace(now.sites[0], name=evil, state="closed", state_reason=evil)]
    tenants = [msgspec.structs.replace(now.tenants[0], name=evil, refused_total={evil: 3})]
    recent = [msgspec.structs.replace(one, why=evil, tenant=evil, reason=evil) for one in now.recent[:3]]
    made = msgspec.structs.replace(now, fleet=evil, sites=sites, tenants=tenants, recent=recent, reload_fault=evil)
    owner.snapshot = lambda: made  # type: ignore[method-assign]
    with listening(owner) as listener:
        body = listener.ask("GET", "/", token=VIEWER).body

    assert b"<img" not in body and b"&lt;img" in body


def test_prompts_and_secrets_are_nowhere(listener: Listener):
    """Neither token, digest nor key shows on any page, in any list, or in the metrics."""
    seen = b"".join(
        listener.ask("GET", path, token=ADMIN).body
        for path in ("/", "/api/snapshot", "/api/keys", "/api/usage", "/api/ladder", "/metrics", "/login")
    )
    for secret in (*TOKENS.values(), *(digest.hex() for digest in listener.owner.tokens)):
        assert secret.encode() not in seen
