"""What workers and the owner say to each other: msgpack messages with their length before them, over a Unix socket.

The socket lies in a folder that only its user can enter (0700) and is itself 0600. A frame is four bytes of length and a
body of at most `MAX_FRAME_BYTES`; what is no message of ours closes that one connection and nothing else. What the
messages mean is `bank.py` (the owner's side) and `purse.py` (the worker's); here is only how they travel.
"""

from __future__ import annotations

import asyncio
import os
import socket
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any, cast

import msgspec

from baseload.serve.rows import SettleRow

VERSION = 1
MAX_FRAME_BYTES = 8 * 1024 * 1024
MAX_ROWS = 256  # in one message; a row is at most a few kilobytes
FIRST_PAUSE_S, LAST_PAUSE_S = 0.02, 0.25  # between attempts to connect
_LENGTH_BYTES = 4


class Message(msgspec.Struct, array_like=True, gc=False, tag_field="is"):
    """Base of the messages: fields by position."""


class KeyView(Message, tag=0):
    """A key as a worker knows it: no secret in it."""

    key_i: int
    tenant: str  # its name in the fleet file
    name: str
    key: str  # pseudonym in the ledger
    tenant_pseudonym: str
    salt: int  # of the tenant, for hashes of prompt prefixes
    tenant_i: int = -1  # row in the worker's tables; -1: the fleet file has no such tenant
    expires_ns: int = -1


class Pouch(Message, tag=1):
    """What a worker holds of a key, when it says hello."""

    key_i: int
    money_nano: int  # unused, reserved, and the prices of rows not yet stored
    permits: int  # unused and in use
    leases: list[int]  # first ids


class Hello(Message, tag=2):
    """First word of a worker, also after a lost connection."""

    version: int
    worker: int
    pid: int
    marks: str  # name of its marks file
    pouches: list[Pouch]
    tables_version: int = 0


class LookUp(Message, tag=3):
    """Whose secret is this?"""

    ask_i: int
    bearer: bytes


class KeyIs(Message, tag=4):
    """Answer to LookUp; None: nobody's."""

    ask_i: int
    view: KeyView | None


class Ask(Message, tag=5):
    """A worker lacks something of a key: at least this, or the request that waits for it is refused."""

    key_i: int
    ask_i: int
    money_nano: int
    tokens: int
    requests: int
    permits: int
    ids: int
    like: int = 1  # how many such requests the worker expects soon
    partly: bool = False  # a running stream takes whatever money is left


class Grant(Message, tag=6):
    """Yes: added to what the worker holds. With ids, the lease is durable before this is sent."""

    key_i: int
    ask_i: int
    money_nano: int
    tokens: int
    requests: int
    permits: int
    lease_id: int  # first id; 0: no ids
    n_ids: int


class Refuse(Message, tag=7):
    """No, also after everybody's unused slices were recalled."""

    key_i: int
    ask_i: int
    reason: str  # a word of bank.REFUSALS
    retry_s: float


class Recall(Message, tag=8):
    """Give back what is unused of a key."""

    key_i: int


class Return(Message, tag=9):
    """Given back; `leases` have no open request, their other ids are void. `recalled`: the answer to Recall."""

    key_i: int
    money_nano: int
    tokens: int
    requests: int
    permits: int
    leases: list[int]
    recalled: bool = False


class Rows(Message, tag=10):
    """Settled requests; `overdrawn` pairs (key_i, nano) are what delivered chunks cost beyond what was held."""

    batch_i: int
    rows: list[SettleRow]
    keys: list[int]  # key_i of each row
    leases: list[int]  # lease that each row's id is of
    overdrawn: list[tuple[int, int]] = []


class Handed(Message, tag=10):
    """`Rows` as the owner takes them: the rows themselves are read all at once, by `settled.py`."""

    batch_i: int
    rows: msgspec.Raw
    keys: list[int]
    leases: list[int]
    overdrawn: list[tuple[int, int]] = []


class Stored(Message, tag=11):
    """A batch of rows is durable."""

    batch_i: int


class Stop(Message, tag=12):
    """Stop a key's running streams, and open no more: revoked, budget, or gone (the tenant left the fleet file)."""

    key_i: int
    why: str


class Forget(Message, tag=13):
    """Keys changed: ask again whose each secret is."""


class Reload(Message, tag=14):
    """Tables of this version lie at this path."""

    version: int
    path: str


class Drain(Message, tag=15):
    """Take no new request, end those that run, and leave."""

    deadline_s: float


class Stats(Message, tag=16):
    """A worker's counters and gauges, by name."""

    values: dict[str, float]


class ReceiptAsk(Message, tag=17):
    """The receipt of a request, for the key that made it."""

    ask_i: int
    key_i: int
    request_id: int


class ReceiptIs(Message, tag=18):
    """Answer to ReceiptAsk: JSON, or None where there is none for this key."""

    ask_i: int
    blob: bytes | None


class Welcome(Message, tag=19):
    """Answer to Hello; `storage` says whether the ledger can be written."""

    version: int
    storage: bool


class Storage(Message, tag=20):
    """The ledger can be written again, or cannot."""

    ok: bool


ToOwner = Hello | LookUp | Ask | Return | Handed | Stats | ReceiptAsk
ToWorker = KeyIs | Grant | Refuse | Recall | Stored | Stop | Forget | Reload | Drain | ReceiptIs | Welcome | Storage

_ENCODER = msgspec.msgpack.Encoder()


def frame(message: Message) -> bytes:
    """Return a message as it travels.

    >>> frame(Recall(key_i=7)).hex()
    '03000000920807'
    """
    body = _ENCODER.encode(message)
    assert len(body) <= MAX_FRAME_BYTES, len(body)
    return len(body).to_bytes(_LENGTH_BYTES, "little") + body


class Wire(asyncio.Protocol):
    """One end of a connection: cuts the stream into messages, and drops the connection at the first that is none."""

    def __init__(
        self,
        kind: Any,  # ToOwner or ToWorker: what may come in
        heard: Callable[[Wire, Any], None],
        lost: Callable[[Wire], None],
        made: Callable[[Wire], None] | None = None,
    ) -> None:
        self._decoder = msgspec.msgpack.Decoder(kind)
        self._heard, self._lost, self._made = heard, lost, made
        self._buffer = bytearray()
        self._transport: asyncio.Transport | None = None
        self.who: Any = None  # the owner's note on whom it speaks with
        self.fault = ""  # why it was dropped
        self.gone = asyncio.Event()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Remember the transport."""
        self._transport = cast(asyncio.Transport, transport)  # uvloop's own is no subclass
        if self._made is not None:
            self._made(self)

    def data_received(self, data: bytes) -> None:
        """Hand on each whole message."""
        buffer = self._buffer
        buffer += data
        at = 0
        while len(buffer) - at >= _LENGTH_BYTES and self._transport is not None:
            n_bytes = int.from_bytes(buffer[at : at + _LENGTH_BYTES], "little")
            if n_bytes > MAX_FRAME_BYTES:
                return self.drop(f"a frame of {n_bytes} bytes")
            if len(buffer) - at - _LENGTH_BYTES < n_bytes:
                break
            body = bytes(buffer[at + _LENGTH_BYTES : at + _LENGTH_BYTES + n_bytes])
            at += _LENGTH_BYTES + n_bytes
            try:
                message = self._decoder.decode(body)
            except msgspec.MsgspecError as error:
                return self.drop(f"no message: {error}")
            self._heard(self, message)
        del buffer[:at]

    def send(self, message: Message) -> None:
        """Send a message; nothing happens where the connection is gone."""
        if self._transport is not None:
            self._transport.write(frame(message))

    def drop(self, fault: str) -> None:
        """End the connection at once."""
        self.fault = fault
        if self._transport is not None:
            self._transport.abort()

    def same_user(self) -> bool:
        """Say whether the process at the other end runs as our user (where the system tells)."""
        peer = None if self._transport is None else self._transport.get_extra_info("socket")
        if peer is None or not hasattr(socket, "SO_PEERCRED"):
            return True
        _, uid, _ = struct.unpack("3i", peer.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, 12))
        return bool(uid == os.getuid())

    def close(self) -> None:
        """End the connection once what was sent has gone out."""
        if self._transport is not None:
            self._transport.close()

    def connection_lost(self, exc: Exception | None) -> None:
        """Tell that it is gone."""
        self._transport = None
        self._buffer.clear()
        self._lost(self)
        self.gone.set()

    @property
    def up(self) -> bool:
        """Say whether something sent now may arrive."""
        return self._transport is not None and not self._transport.is_closing()


async def stay_connected(path: Path, line: Callable[[], Wire]) -> None:
    """Connect, and connect again whenever the other end is gone, for ever."""
    loop = asyncio.get_running_loop()
    pause_s = FIRST_PAUSE_S
    while True:
        try:
            _, connection = await loop.create_unix_connection(line, str(path))
        except OSError:
            await asyncio.sleep(pause_s)
            pause_s = min(LAST_PAUSE_S, pause_s * 2)
        else:
            await connection.gone.wait()
            pause_s = FIRST_PAUSE_S
            await asyncio.sleep(pause_s)
