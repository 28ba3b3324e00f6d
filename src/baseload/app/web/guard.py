"""Who may come in: Host, Origin and method of every request, control tokens, sessions, roles, and how often one may guess.

Everything is decided on what was routed (`scope["path"]`, `scope["method"]`) and on raw headers, never on an address put
together from them. Nothing is allowed unless a rule says so. Which route wants which role is `control.py`.
"""

from __future__ import annotations

import hashlib
import ipaddress
import secrets
from collections.abc import Callable, Sequence
from typing import Literal, NamedTuple

import msgspec
from starlette.responses import Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from baseload.app.web.view import ROLES, OwnerView, Role, Staff
from baseload.errors import InputError

COOKIE = "baseload_session"
METHODS = frozenset({"GET", "HEAD", "POST", "DELETE"})
SAFE_METHODS = frozenset({"GET", "HEAD"})
SECRET_BYTES_MAX = 256
SESSIONS_MAX = 1024
SESSION_IDLE_S = 3600.0
SESSION_MOST_S = 12 * 3600.0
GUESSES_PER_MIN = 10  # from one address
GUESSES_PER_MIN_ALL = 120

_HEADERS = (
    (
        b"content-security-policy",
        b"default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; connect-src 'self'; "
        b"form-action 'self'; frame-ancestors 'none'; base-uri 'none'",
    ),
    (b"x-content-type-options", b"nosniff"),
    (b"x-frame-options", b"DENY"),
    (b"referrer-policy", b"same-origin"),
    (b"cross-origin-opener-policy", b"same-origin"),
    (b"cross-origin-resource-policy", b"same-origin"),
    (b"permissions-policy", b"camera=(), microphone=(), geolocation=()"),
)


def is_loopback(host: str) -> bool:
    """Say whether an address is this machine alone.

    >>> is_loopback("127.0.0.1"), is_loopback("::1"), is_loopback("localhost"), is_loopback("10.0.0.1"), is_loopback("")
    (True, True, True, False, False)
    """
    if host == "localhost":
        return True
    try:
        address = ipaddress.ip_address(host.strip("[]"))
    except ValueError:
        return False
    mapped = getattr(address, "ipv4_mapped", None)
    return bool((mapped or address).is_loopback)


def split_listen(listen: str) -> tuple[str, int]:
    """Return host and port of an address such as 127.0.0.1:8081 or [::1]:8081; raises InputError.

    >>> split_listen("127.0.0.1:8081"), split_listen("[::1]:8081")
    (('127.0.0.1', 8081), ('::1', 8081))
    """
    host, colon, port = listen.rpartition(":")
    if not colon or not host or not port.isascii() or not port.isdigit() or int(port) > 65535:
        raise InputError(f"serve.control: {listen!r} is no address; write host:port, e.g. 127.0.0.1:8081")
    return host.removeprefix("[").removesuffix("]"), int(port)


def require_safe_bind(listen: str, has_tokens: bool) -> None:
    """Raise InputError where the control listener would be open to a network without anyone having to log in."""
    host, _ = split_listen(listen)
    if not has_tokens and not is_loopback(host):
        raise InputError(
            f"serve.control: {listen} can be reached from other machines, and no control token exists, so anyone could "
            "manage the fleet; make one with `baseload keys create --role admin`, or listen on 127.0.0.1"
        )


def default_hosts(listen: str) -> tuple[str, ...]:
    """Return the Host headers that a browser sends for a listening address.

    >>> default_hosts("127.0.0.1:8081")
    ('127.0.0.1:8081', 'localhost:8081', '[::1]:8081')
    """
    host, port = split_listen(listen)
    named = f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
    if not is_loopback(host):
        return (named,)
    return tuple(dict.fromkeys((named, f"127.0.0.1:{port}", f"localhost:{port}", f"[::1]:{port}")))


def header(scope: Scope, name: bytes) -> str | None:
    """Return a header that may be there once; None where it is absent, '' where it is there twice or is not ASCII."""
    found = [value for key, value in scope["headers"] if key == name]
    if not found:
        return None
    if len(found) > 1 or not found[0].isascii():
        return ""
    return str(found[0].decode("ascii"))


class Turned(NamedTuple):
    """Why a request is turned away."""

    status: int
    code: str
    message: str


def refusal(scope: Scope, hosts: frozenset[str]) -> Turned | None:
    """Return why a request is turned away whoever sends it; None where it may go on to its route."""
    if scope["method"] not in METHODS:
        return Turned(405, "method_not_allowed", "only GET, HEAD, POST and DELETE are served here")
    host = (header(scope, b"host") or "").lower()
    if host not in hosts:
        return Turned(421, "wrong_host", "this Host is not served here; ask at the address that serve.control names")
    origin = header(scope, b"origin")
    # Where TLS ends here, a page that came without it may be anybody's; behind a proxy only the proxy knows.
    schemes = ("https",) if scope.get("scheme") == "https" else ("http", "https")
    if origin is not None and origin.lower() not in [f"{scheme}://{host}" for scheme in schemes]:
        return Turned(403, "wrong_origin", "a page of another origin may not ask here")
    if (header(scope, b"sec-fetch-site") or "none") not in ("none", "same-origin"):
        # A link on another page may open ours (without its cookie: SameSite=Strict); nothing else may.
        link = scope["method"] == "GET" and header(scope, b"sec-fetch-mode") == "navigate"
        if not (link and header(scope, b"sec-fetch-dest") == "document"):
            return Turned(403, "wrong_origin", "a page of another origin may not ask here")
    return None


class Guard:
    """ASGI middleware: turns requests away before any route sees them, and puts security headers on every answer."""

    def __init__(self, app: ASGIApp, hosts: Sequence[str]) -> None:
        self.app = app
        self.hosts = frozenset(host.lower() for host in hosts)
        assert self.hosts and "*" not in self.hosts, hosts

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one request."""
        if scope["type"] == "lifespan":
            await self.app(scope, receive, send)
            return
        if scope["type"] != "http":
            return

        async def secured(message: Message) -> None:
            if message["type"] == "http.response.start":
                headers = list(message.get("headers", []))
                if not any(key == b"cache-control" for key, _ in headers):
                    headers.append((b"cache-control", b"no-store"))
                message = {**message, "headers": [*headers, *_HEADERS]}
            await send(message)

        turned = refusal(scope, self.hosts)
        if turned is not None:
            await problem(*turned)(scope, receive, secured)
            return
        await self.app(scope, receive, secured)


def problem(status: int, code: str, message: str, **more: object) -> Response:
    """Return an error in the envelope that all of the control listener's errors have."""
    body = msgspec.json.encode({"error": {"code": code, "message": message, **more}})
    headers = {}
    if status == 401:
        headers["WWW-Authenticate"] = 'Bearer realm="baseload control"'
    if status == 405:
        headers["Allow"] = ", ".join(sorted(METHODS))
    if status in (429, 503):
        headers["Retry-After"] = "10"
    return Response(body, status, headers, media_type="application/json")


# ---- who it is -------------------------------------------------------------------------------------------


class Caller(NamedTuple):
    """Who asks, and how they showed it."""

    name: str
    role: Role
    by: Literal["token", "session", "open"]
    tenant: str | None = None  # whose figures alone it may see; None: everybody's


def allows(role: Role, wanted: Role) -> bool:
    """Say whether a role may do what another may.

    >>> allows("operator", "viewer"), allows("operator", "operator"), allows("operator", "admin")
    (True, True, False)
    >>> allows("tenant", "viewer")
    False
    """
    return role != "tenant" and ROLES.index(role) >= ROLES.index(wanted)


class _Session(msgspec.Struct):
    token_digest: bytes
    made_s: float
    used_s: float


class Attempts:
    """How often someone may guess: a bucket for each address, and one for all; bounded."""

    def __init__(self, per_min: int = GUESSES_PER_MIN, per_min_all: int = GUESSES_PER_MIN_ALL) -> None:
        self.per_min, self.per_min_all = per_min, per_min_all
        self.left: dict[str, tuple[float, float]] = {}  # address: (guesses left, as of)
        self.left_all = (float(per_min_all), 0.0)

    def take(self, address: str, now_s: float) -> bool:
        """Take one guess; False where none is left."""
        mine, at_s = self.left.pop(address, (float(self.per_min), now_s))
        mine = min(self.per_min, mine + (now_s - at_s) * self.per_min / 60.0)
        every, at_s = self.left_all
        every = min(self.per_min_all, every + (now_s - at_s) * self.per_min_all / 60.0)
        allowed = mine >= 1.0 and every >= 1.0
        self.left[address] = (mine - allowed, now_s)
        self.left_all = (every - allowed, now_s)
        while len(self.left) > SESSIONS_MAX:
            del self.left[next(iter(self.left))]
        return allowed


class Gate:
    """Control tokens and sessions. A session holds its token's digest, so that it ends with the token at once."""

    def __init__(
        self,
        owner: OwnerView,
        clock: Callable[[], float],
        open_role: Role | None = None,
        idle_s: float = SESSION_IDLE_S,
    ) -> None:
        self.owner, self.clock, self.open_role, self.idle_s = owner, clock, open_role, idle_s
        self.sessions: dict[bytes, _Session] = {}
        self.attempts = Attempts()

    def by_secret(self, secret: str) -> tuple[bytes, Staff | None]:
        """Return a token's digest, and who holds it."""
        raw = secret.encode("utf-8", "surrogateescape")
        if not raw or len(raw) > SECRET_BYTES_MAX:
            return b"", None
        digest = self.owner.token_digest(raw)
        return digest, self.owner.staff(digest)

    def who(self, scope: Scope) -> Caller | None:
        """Return who sends a request; None where that is not shown. A wrong token is never helped by a cookie."""
        authorization = header(scope, b"authorization")
        if authorization is not None:
            scheme, _, secret = authorization.partition(" ")
            staff = self.by_secret(secret.strip())[1] if scheme.lower() == "bearer" else None
            if staff is None or (staff.role == "tenant") != bool(staff.tenant):
                return None
            return Caller(staff.name, staff.role, "token", staff.tenant or None)
        cookie = self.cookie(scope)
        if cookie and (scope["method"] in SAFE_METHODS or header(scope, b"origin")):
            staff = self._by_session(cookie)
            if staff and staff.role != "tenant":  # there is no page for it
                return Caller(staff.name, staff.role, "session")
        if self.open_role and is_loopback(client_host(scope)):
            return Caller("this machine", self.open_role, "open")
        return None

    def cookie(self, scope: Scope) -> str:
        """Return the session's cookie, '' where there is none or more than one."""
        pairs = [pair.strip().partition("=") for pair in (header(scope, b"cookie") or "").split(";")]
        found = [value for name, _, value in pairs if name == COOKIE]
        return found[0] if len(found) == 1 else ""

    def _by_session(self, cookie: str) -> Staff | None:
        name, now_s = _name(cookie), self.clock()
        session = self.sessions.get(name)
        if session is None:
            return None
        staff = self.owner.staff(session.token_digest)
        if staff is None or now_s - session.used_s > self.idle_s or now_s - session.made_s > SESSION_MOST_S:
            del self.sessions[name]
            return None
        session.used_s = now_s
        return staff

    def open(self, digest: bytes) -> str:
        """Begin a session for the holder of a token; return the cookie."""
        now_s, cookie = self.clock(), secrets.token_urlsafe(32)
        self.sessions[_name(cookie)] = _Session(digest, now_s, now_s)
        while len(self.sessions) > SESSIONS_MAX:
            del self.sessions[next(iter(self.sessions))]
        return cookie

    def close(self, cookie: str) -> None:
        """End a session."""
        self.sessions.pop(_name(cookie), None)

    def check(self) -> None:
        """State what must hold: both tables are bounded, no cookie is kept as it is."""
        assert len(self.sessions) <= SESSIONS_MAX and len(self.attempts.left) <= SESSIONS_MAX
        assert all(len(name) == 32 for name in self.sessions)


def _name(cookie: str) -> bytes:
    return hashlib.sha256(cookie.encode()).digest()


def client_host(scope: Scope) -> str:
    """Return the peer's address; '' where it is hidden behind a proxy, which then is not who asks."""
    forwarded = any(key in (b"forwarded", b"x-forwarded-for", b"x-real-ip") for key, _ in scope["headers"])
    return "" if forwarded or not scope.get("client") else str(scope["client"][0])
