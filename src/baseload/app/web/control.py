"""The control listener's routes, in one table: method, path, who may, what it does.

`make_app` builds the routes from RULES and from nothing else; a path without a rule does not exist, and a rule without a
role cannot be written. Who asks is found by `guard.py`; what is answered comes from the owner (`view.py`). A GET changes
nothing. Every change is written to the ledger before it is made and after (fail closed).
"""

from __future__ import annotations

import asyncio
import contextlib
import gzip
import time
from collections.abc import Awaitable, Callable, Sequence
from datetime import UTC, datetime
from functools import partial
from typing import Any, Literal, NamedTuple, TypeVar
from urllib.parse import parse_qsl

import msgspec
from starlette.applications import Starlette
from starlette.requests import ClientDisconnect, Request
from starlette.responses import RedirectResponse, Response
from starlette.routing import Route

from baseload.app import metrics
from baseload.app.web import page
from baseload.app.web.events import VIEWERS_MAX, EventStream, Hub, takes_gzip
from baseload.app.web.guard import (
    COOKIE,
    SESSION_MOST_S,
    Caller,
    Gate,
    Guard,
    allows,
    client_host,
    header,
    is_loopback,
    problem,
)
from baseload.app.web.view import Audit, DrainOrder, NewKey, OwnerView, Role
from baseload.errors import BaseloadError, FleetError, InputError

BODY_BYTES_MAX = 65_536
BODY_S = 10.0
NOTE_S = 2.0

T = TypeVar("T")
Access = Literal["public", "loopback"] | Role
"""public: anyone; loopback: this machine, or a viewer; else the least role that may."""


class Control:
    """What the handlers share."""

    def __init__(self, owner: OwnerView, gate: Gate, hub: Hub, pages: page.Pages, secure: bool) -> None:
        self.owner, self.gate, self.hub, self.pages, self.secure = owner, gate, hub, pages, secure

    def close(self) -> None:
        """End all streams."""
        self.hub.close()


Handler = Callable[[Control, Request, Caller | None], Awaitable[Any]]


class Rule(NamedTuple):
    """One thing that may be asked."""

    method: Literal["GET", "POST", "DELETE"]
    path: str
    access: Access
    handler: Handler
    about: str
    own: bool = False  # a tenant's token may ask this too, and is answered with its tenant's own alone


# ---- answers ---------------------------------------------------------------------------------------------


def _json(value: Any, status: int = 200) -> Response:
    return Response(msgspec.json.encode(value), status, media_type="application/json")


def _plain(text: str, status: int = 200) -> Response:
    return Response(text, status, media_type="text/plain")


async def healthz(control: Control, request: Request, caller: Caller | None) -> Response:
    """Answer: the process lives."""
    return _plain("ok\n")


async def readyz(control: Control, request: Request, caller: Caller | None) -> Response:
    """Answer whether requests are served; why not is for those who log in."""
    return _plain("not ready\n", 503) if control.owner.ready() else _plain("ready\n")


async def prometheus(control: Control, request: Request, caller: Caller | None) -> Response:
    """Answer with the metrics."""
    text = await asyncio.to_thread(metrics.exposition, control.owner.snapshot())
    return Response(text, media_type=metrics.CONTENT_TYPE)


async def snapshot(control: Control, request: Request, caller: Caller | None) -> Response:
    """Answer with all that the page shows, as JSON."""
    return _json({"not_ready": control.owner.ready(), "snapshot": control.owner.snapshot()})


async def events(control: Control, request: Request, caller: Caller | None) -> Any:
    """Answer with a stream of what changes."""
    if control.hub.n_viewers >= VIEWERS_MAX:
        return problem(503, "too_many_readers", f"{VIEWERS_MAX} pages are open already; close one")
    last_id = header(request.scope, b"last-event-id") or request.query_params.get("last", "")
    chosen = request.query_params.get("scope", "")
    if control.owner.series(chosen) is None:
        return problem(404, "not_found", "no such site or tenant")

    def still() -> bool:
        now = control.gate.who(request.scope)
        return now is not None and allows(now.role, "viewer")

    return EventStream(control.hub, last_id, chosen, still)


async def ladder(control: Control, request: Request, caller: Caller | None) -> Response:
    """Answer with the capacity ladder as it is now."""
    now = control.owner.snapshot()
    return _json(
        {"at_ns": now.at_ns, "fleet": now.ladder, "sites": {site.name: site.ladder for site in now.sites}},
    )


async def list_keys(control: Control, request: Request, caller: Caller | None) -> Response:
    """Answer with the data keys, without their secrets."""
    assert caller is not None
    keys = await control.owner.keys()
    return _json({"keys": [key for key in keys if caller.tenant is None or key.tenant == caller.tenant]})


async def create_key(control: Control, request: Request, caller: Caller | None) -> Response:
    """Make a data key, and show it this once."""
    wanted = await _body(request, NewKey)
    _check_new_key(wanted)
    made = await _audited(control, caller, "key.create", wanted.tenant, control.owner.create_key(wanted))
    return _json(made, 201)


async def revoke_key(control: Control, request: Request, caller: Caller | None) -> Response:
    """Revoke a data key."""
    key_id = request.path_params["key_id"]
    known = await _audited(control, caller, "key.revoke", key_id[:64], control.owner.revoke_key(key_id))
    return _json({"revoked": key_id}) if known else problem(404, "not_found", "no such key")


async def usage(control: Control, request: Request, caller: Caller | None) -> Response:
    """Answer with what was used, by tenant and model."""
    assert caller is not None
    tenant = request.query_params.get("tenant") or caller.tenant
    if caller.tenant is not None and tenant != caller.tenant:
        return problem(404, "not_found", "no such tenant, or not yours")  # which of the two is not told
    since_ns = _since_ns(request.query_params.get("since", ""))
    rows = await control.owner.usage(tenant, since_ns)
    return _json({"tenant": tenant, "since_ns": since_ns, "currency": control.owner.snapshot().currency, "usage": rows})


async def receipt(control: Control, request: Request, caller: Caller | None) -> Response:
    """Answer with a request's receipt."""
    assert caller is not None
    found = await control.owner.receipt(request.path_params["request_id"], caller.tenant)
    return problem(404, "not_found", "no receipt with this request id") if found is None else _json(found)


async def reload(control: Control, request: Request, caller: Caller | None) -> Response:
    """Read the fleet file again; where it is wrong, the last good one holds on."""
    done = await _audited(control, caller, "fleet.reload", "fleet", control.owner.reload())
    if not done.problems:
        return _json({"version": done.version, "problems": []})
    return problem(
        422, "fleet_file", "the fleet file is wrong; the last good one holds on", version=done.version,
        problems=[_problem(one) for one in done.problems],
    )  # fmt: skip


async def drain(control: Control, request: Request, caller: Caller | None) -> Response:
    """Let the gateway, a site, a deployment or a replica take no new requests, or take them again."""
    order = await _body(request, DrainOrder)
    if (order.what == "gateway") == bool(order.name):
        raise InputError("name: wanted for a site, deployment or replica, and for nothing else")
    action = "drain" if order.on else "undrain"
    now = await _audited(
        control, caller, action, f"{order.what} {order.name}".strip()[:128], control.owner.drain(order)
    )
    return _json({"now": now})


# ---- pages -----------------------------------------------------------------------------------------------


async def live(control: Control, request: Request, caller: Caller | None) -> Response:
    """Answer with the live page, as it is now; news come by /api/events."""
    sections = await control.hub.draw()
    assert caller is not None
    text = control.pages.live(control.owner.snapshot(), sections, caller.name, caller.role, caller.by == "session")
    answer = _html(text)
    if takes_gzip(request.scope):
        answer.body = await asyncio.to_thread(gzip.compress, answer.body, 4, mtime=0)
        answer.headers.update({"Content-Encoding": "gzip", "Content-Length": str(len(answer.body))})
    answer.headers["Vary"] = "Accept-Encoding"
    return answer


async def login_page(control: Control, request: Request, caller: Caller | None) -> Response:
    """Answer with the form."""
    return _html(control.pages.login(""))


async def login(control: Control, request: Request, caller: Caller | None) -> Response:
    """Begin a session with a control token."""
    if header(request.scope, b"origin") is None:
        return problem(403, "wrong_origin", "log in with the form at /login; programs send the token as Bearer")
    if not control.gate.attempts.take(client_host(request.scope), control.gate.clock()):
        return _html(control.pages.login("Too many attempts. Wait a minute, then try again."), 429)
    form = await _bytes(request)
    try:
        fields = dict(parse_qsl(form.decode("utf-8", "replace"), max_num_fields=8))
    except ValueError:
        raise InputError("the form: it holds more than a token") from None
    secret = fields.get("token", "").strip()
    digest, staff = control.gate.by_secret(secret)
    if staff is None:
        return _html(control.pages.login("This token is not known, or no longer valid."), 401)
    if staff.role == "tenant":
        return _html(control.pages.login("A tenant's token opens no page: send it as Bearer to /api/usage."), 403)
    # Without a ledger one may still look, and see why; every change wants its row first.
    await _noted(control, Audit(actor=staff.name, action="session.open", subject="", outcome="done"))
    control.gate.close(control.gate.cookie(request.scope))
    answer = RedirectResponse("/", 303)
    answer.set_cookie(
        COOKIE, control.gate.open(digest), max_age=int(SESSION_MOST_S), httponly=True, samesite="strict",
        secure=control.secure, path="/",
    )  # fmt: skip
    return answer


async def logout(control: Control, request: Request, caller: Caller | None) -> Response:
    """End the session."""
    if header(request.scope, b"origin") is None:
        return problem(403, "wrong_origin", "log out with the button of the page")
    control.gate.close(control.gate.cookie(request.scope))
    answer = RedirectResponse("/login", 303)
    answer.delete_cookie(COOKIE, path="/", httponly=True, samesite="strict", secure=control.secure)
    return answer


async def static(control: Control, request: Request, caller: Caller | None) -> Response:
    """Answer with one of the page's own files, all of them held in memory by name."""
    found = control.pages.files.get(request.path_params["name"])
    if found is None:
        return problem(404, "not_found", "no such file")
    if header(request.scope, b"if-none-match") == found.etag:
        return Response(status_code=304, headers={"ETag": found.etag})
    headers = {"ETag": found.etag, "Cache-Control": "no-cache"}
    return Response(found.content, headers=headers, media_type=found.media_type)


def _html(text: str, status: int = 200) -> Response:
    return Response(text, status, media_type="text/html")


# ---- the table -------------------------------------------------------------------------------------------

RULES: tuple[Rule, ...] = (
    Rule("GET", "/healthz", "public", healthz, "the process lives"),
    Rule("GET", "/readyz", "public", readyz, "requests are served"),
    Rule("GET", "/login", "public", login_page, "the form"),
    Rule("POST", "/login", "public", login, "begin a session"),
    Rule("POST", "/logout", "public", logout, "end it"),
    Rule("GET", "/static/{name}", "public", static, "the page's own files"),
    Rule("GET", "/metrics", "loopback", prometheus, "for Prometheus"),
    Rule("GET", "/", "viewer", live, "the live page"),
    Rule("GET", "/api/snapshot", "viewer", snapshot, "what the page shows"),
    Rule("GET", "/api/events", "viewer", events, "what changes, as server-sent events"),
    Rule("GET", "/api/ladder", "viewer", ladder, "the capacity ladder now"),
    Rule("GET", "/api/usage", "viewer", usage, "what was used: ?tenant=, ?since=YYYY-MM-DD", own=True),
    Rule("GET", "/api/receipts/{request_id}", "viewer", receipt, "a request's receipt", own=True),
    Rule("GET", "/api/keys", "operator", list_keys, "data keys, without secrets", own=True),
    Rule("POST", "/api/reload", "operator", reload, "read the fleet file again"),
    Rule("POST", "/api/drain", "operator", drain, "take no new requests, or take them again"),
    Rule("POST", "/api/keys", "admin", create_key, "make a data key"),
    Rule("DELETE", "/api/keys/{key_id}", "admin", revoke_key, "revoke a data key"),
)


def make_app(
    owner: OwnerView,
    *,
    allowed_hosts: Sequence[str],
    open_role: Role | None = None,
    secure_cookies: bool = False,
    clock: Callable[[], float] = time.monotonic,
    every_s: float = 1.0,
) -> Starlette:
    """Return the control listener's app.

    `allowed_hosts` are whole Host headers (guard.default_hosts gives those of an address). `open_role` is what a client
    on this machine may do without a token: None where any token exists, 'viewer' where the listener is on loopback and
    none does. `secure_cookies` where it speaks TLS, or a proxy in front of it does.
    """
    pages = page.Pages()
    gate = Gate(owner, clock, open_role)
    control = Control(owner, gate, Hub(owner, pages, every_s), pages, secure_cookies)
    by_path: dict[str, dict[str, Rule]] = {}
    for rule in RULES:
        assert rule.method not in by_path.setdefault(rule.path, {}), rule
        by_path[rule.path][rule.method] = rule
    routes = [Route(path, partial(_answer, control, rules), methods=list(rules)) for path, rules in by_path.items()]
    app = Starlette(routes=routes, exception_handlers={404: _unknown, 405: _unserved, Exception: _broken})
    app.router.redirect_slashes = False
    app.state.control = control
    app.add_middleware(Guard, hosts=tuple(allowed_hosts))
    return app


async def _answer(control: Control, rules: dict[str, Rule], request: Request) -> Any:
    method = "GET" if request.method == "HEAD" else request.method
    rule = rules[method]  # Starlette let only these through
    caller = control.gate.who(request.scope)
    turned = _turned(control, rule, request, caller)
    if turned is not None:
        return turned
    if request.method == "HEAD" and rule.handler is events:
        return problem(405, "method_not_allowed", "a stream has no HEAD")
    try:
        return await rule.handler(control, request, caller)
    except FleetError as error:
        return problem(422, "wrong_input", str(error), problems=[_problem(one) for one in error.problems])
    except InputError as error:
        return problem(422, "wrong_input", str(error))
    except TooLarge as error:
        return problem(413, "too_large", str(error))
    except ClientDisconnect:
        return problem(400, "gone", "the client went away")
    except BaseloadError as error:
        return problem(503, "unavailable", str(error))


def _turned(control: Control, rule: Rule, request: Request, caller: Caller | None) -> Response | None:
    """Return why this caller may not ask this; None where they may."""
    if rule.access == "public":
        return None
    scope = request.scope
    shown = header(scope, b"authorization") is not None
    if rule.access == "loopback":
        if not shown and is_loopback(client_host(scope)):
            return None
        wanted: Role = "viewer"
    else:
        wanted = rule.access
    if caller is None:
        if shown and not control.gate.attempts.take(client_host(scope), control.gate.clock()):
            return problem(429, "too_many_attempts", "too many wrong tokens; wait a minute")
        if rule.path == "/" and not shown:
            return RedirectResponse("/login", 303)
        return problem(401, "unauthorised", "send a control token as Bearer, or log in at /login")
    if not allows(caller.role, wanted) and not (rule.own and caller.tenant is not None):
        return problem(403, "forbidden", f"this wants the role {wanted}; yours is {caller.role}")
    return None


async def _unknown(request: Request, error: Exception) -> Response:
    return problem(404, "not_found", "no such page")


async def _unserved(request: Request, error: Exception) -> Response:
    answer = problem(405, "method_not_allowed", "this page does not take this method")
    answer.headers["Allow"] = (getattr(error, "headers", None) or {}).get("Allow", "GET")
    return answer


async def _broken(request: Request, error: Exception) -> Response:
    return problem(500, "internal", "a fault of ours; the log of the owner process has it")


# ---- reading what was sent -------------------------------------------------------------------------------


class TooLarge(BaseloadError):
    """A body over the limit."""


async def _bytes(request: Request) -> bytes:
    """Return a body of bounded size that comes in bounded time."""

    async def gather() -> bytes:
        body = bytearray()
        async for chunk in request.stream():
            body += chunk
            if len(body) > BODY_BYTES_MAX:
                raise TooLarge(f"the body is over {BODY_BYTES_MAX} bytes")
        return bytes(body)

    try:
        return await asyncio.wait_for(gather(), BODY_S)
    except TimeoutError:
        raise InputError(f"the body did not come within {BODY_S:g} s") from None


async def _body(request: Request, kind: type[T]) -> T:
    if (header(request.scope, b"content-type") or "").partition(";")[0].strip().lower() != "application/json":
        raise InputError("the body: send JSON, with Content-Type: application/json")
    try:
        return msgspec.json.decode(await _bytes(request), type=kind)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise InputError(f"the body: {error}") from None


def _check_new_key(wanted: NewKey) -> None:
    if not wanted.tenant or len(wanted.tenant) > 128 or len(wanted.name) > 128:
        raise InputError("tenant: wanted, and of at most 128 characters as is name")
    for name in ("budget", "expires_s", "rpm", "tpm", "concurrency"):
        value = getattr(wanted, name)
        if value is not None and not 0 < value < 1e15:
            raise InputError(f"{name}: {value} is not above 0 and below 1e15; leave it out for no limit")


def _since_ns(text: str) -> int | None:
    """Return a date (UTC, or with its offset) as nanoseconds.

    >>> _since_ns("1970-01-02"), _since_ns("")
    (86400000000000, None)
    """
    if not text:
        return None
    try:
        at = datetime.fromisoformat(text)
        since_s = int((at if at.tzinfo else at.replace(tzinfo=UTC)).timestamp())
    except (ValueError, OverflowError):
        since_s = -1
    if not 0 <= since_s < 4_102_444_800:  # the year 2100
        raise InputError("since: write a date as 2026-01-31, or a time as 2026-01-31T12:00:00Z")
    return since_s * 1_000_000_000


def _problem(one: Any) -> dict[str, Any]:
    return {"what": one.what, "mend": one.mend, "key": one.key, "file": one.file, "line": one.line}


async def _audited(control: Control, caller: Caller | None, action: str, subject: str, work: Awaitable[T]) -> T:
    """Do a change between two rows of the ledger: without the first (asked) it is not done; the second says how it went."""
    assert caller is not None
    entry = Audit(actor=caller.name, action=action, subject=subject, outcome="asked")
    try:
        await control.owner.audit(entry)
    except BaseException:
        _forget(work)
        raise
    try:
        done = await work
    except Exception:
        await _noted(control, msgspec.structs.replace(entry, outcome="failed"))
        raise
    await _noted(control, msgspec.structs.replace(entry, outcome="done"))  # it is done: a new key has to be shown
    return done


async def _noted(control: Control, entry: Audit) -> None:
    """Write a row that says how it went; what happened does not depend on it any more."""
    with contextlib.suppress(BaseloadError, TimeoutError):
        await asyncio.wait_for(control.owner.audit(entry), NOTE_S)


def _forget(work: Awaitable[Any]) -> None:
    close = getattr(work, "close", None)  # a coroutine that never runs has to be closed
    if close is not None:
        close()
