"""What a client may look up: whether the gateway is there, the models that its key may call, receipts of its requests."""

from __future__ import annotations

from typing import TYPE_CHECKING

from baseload.serve import body as bodies
from baseload.serve import reply
from baseload.serve.bearers import Refusal
from baseload.serve.inbound import MANY_RECEIPTS, NO_KEY, NOWHERE, Inbound, Pending, as_problem
from baseload.serve.reply import Problem
from baseload.serve.wire import KeyView

if TYPE_CHECKING:
    from baseload.serve.client import Client


def get(client: Client, request: Inbound, path: bytes) -> None:
    """Answer a request that is no model's to answer."""
    head_only = request.method == b"HEAD"
    if path == b"/health":
        status = 503 if client.gateway.draining else 200
        client.tell(status, b'{"status":"%b"}' % (b"draining" if status == 503 else b"ok"), head_only)
        return
    if path != b"/v1/models" and not path.startswith((b"/v1/models/", b"/v1/receipts/")):
        client.say(NOWHERE, bodies.CHAT)
        return
    if not request.bearer:
        client.say(NO_KEY, bodies.CHAT)
        return
    stand_in = Pending()
    client.relay = stand_in

    def then(found: KeyView | Refusal) -> None:
        if client.relay is not stand_in:
            return
        client.relay = None
        if isinstance(found, Refusal):
            client.say(as_problem(found), bodies.CHAT)
        elif path.startswith(b"/v1/receipts/"):
            _receipt(client, found, path[13:], head_only)
        else:
            _models(client, found, path[11:], head_only)

    client.gateway.purse.who(request.bearer, then)


def _models(client: Client, view: KeyView, name: bytes, head_only: bool) -> None:
    tables = client.gateway.tables
    if view.tenant_i < 0:
        client.say(Problem(403, "tenant_not_served", "the tenant of this API key is not served"), bodies.CHAT)
        return
    mine = [row.name for i, row in enumerate(tables.models) if any(tables.may[view.tenant_i][i])]
    if not name:
        client.tell(200, reply.models(mine), head_only)
        return
    shown = name.decode("utf-8", "replace")
    if shown in mine:
        client.tell(200, reply.model(shown), head_only)
    else:
        client.say(client.gateway.no_such_model(shown), bodies.CHAT)


def _receipt(client: Client, view: KeyView, name: bytes, head_only: bool) -> None:
    stand_in = Pending()
    client.relay = stand_in

    def then(blob: bytes | None) -> None:
        if client.relay is not stand_in:
            return
        client.relay = None
        if blob is None:
            client.say(Problem(404, "receipt_not_found", "no receipt of such a request of yours (yet)"), bodies.CHAT)
        else:
            client.tell(200, blob, head_only)

    try:
        number = int(name.removeprefix(b"req-").decode("ascii"), 16) if len(name) <= 20 else 0
    except (ValueError, UnicodeDecodeError):
        number = 0
    if not 0 < number < 1 << 63:
        then(None)
        return
    if not client.gateway.purse.receipt(view, number, then):
        client.relay = None
        client.say(MANY_RECEIPTS, bodies.CHAT)
