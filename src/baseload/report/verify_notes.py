"""Signed notes as the verifier reads them: parse, check the signature, follow a key to its successor; and the Merkle root.

Written apart from the code that signs and hashes, and differently (the tree by the recursive definition of RFC 6962), so
that one mistake is not made twice. Nothing of `serve/` or `adapters/` is used here.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
from dataclasses import dataclass
from functools import lru_cache

KEY_NAME = "baseload"


class BadNote(ValueError):
    """A text is not a signed note of ours."""


@dataclass(frozen=True, slots=True)
class Key:
    """An Ed25519 public key, and the four bytes that name it in notes."""

    key_id: bytes
    raw: bytes

    @property
    def short(self) -> str:
        """Return the name as eight hexadecimal digits."""
        return self.key_id.hex()

    @property
    def line(self) -> str:
        """Return the key as the line it is published as."""
        return f"{KEY_NAME}+{self.short}+{base64.b64encode(bytes([1]) + self.raw).decode()}"


@dataclass(frozen=True, slots=True)
class Signed:
    """A note taken apart: its text (which ends in a line feed), and each signature by key id."""

    text: str
    signatures: tuple[tuple[bytes, bytes], ...]


@dataclass(frozen=True, slots=True)
class Stated:
    """What a checkpoint states."""

    origin: str
    size: int
    root: bytes
    time_ns: int
    after: int
    signed: Signed


def read_key(line: str) -> Key:
    """Return the key of a line `baseload+<key id>+<base64>`; raises BadNote."""
    parts = line.strip().split("+", 2)
    if len(parts) != 3 or parts[0] != KEY_NAME:
        raise BadNote("not a public key of ours: expected one line, baseload+<key id>+<base64>")
    blob = _bytes(parts[2])
    named = hashlib.sha256(f"{KEY_NAME}\n".encode() + blob).digest()[:4]
    if len(blob) != 33 or blob[0] != 1 or named.hex() != parts[1]:
        raise BadNote("a public key whose name does not fit its bytes")
    return Key(named, blob[1:])


def _bytes(text: str) -> bytes:
    try:
        raw = base64.b64decode(text, validate=True)
    except (binascii.Error, ValueError):
        raise BadNote("not base64") from None
    if base64.b64encode(raw).decode() != text:
        raise BadNote("not the shortest base64")
    return raw


def _number(text: str) -> int:
    if not text.isascii() or not text.isdecimal() or (text[0] == "0" and text != "0") or len(text) > 19:
        raise BadNote(f"not a number: {text[:24]!r}")
    return int(text)


def read_signed(note: str) -> Signed:
    """Return a note taken apart; raises BadNote where a byte is not as the format wants it."""
    text, gap, rest = note.partition("\n\n")
    if not gap or not rest.endswith("\n"):
        raise BadNote("no signature")
    found = []
    for line in rest[:-1].split("\n"):
        start = f"\u2014 {KEY_NAME} "
        if not line.startswith(start):
            raise BadNote("a line that is no signature of ours")
        blob = _bytes(line[len(start) :])
        if len(blob) != 68:
            raise BadNote("a signature of the wrong length")
        found.append((blob[:4], blob[4:]))
    return Signed(text + "\n", tuple(found))


def read_checkpoint(note: object) -> Stated:
    """Return what a checkpoint states; its signature is not checked yet. Raises BadNote."""
    if not isinstance(note, str):
        raise BadNote("not a text")
    signed = read_signed(note)
    lines = signed.text.split("\n")
    if len(lines) != 6 or lines[3][:8] != "time_ns " or lines[4][:6] != "after " or len(signed.signatures) != 1:
        raise BadNote("not a checkpoint: expected origin, size, root, time_ns, after and one signature")
    root = _bytes(lines[2])
    if len(root) != 32:
        raise BadNote("a root of the wrong length")
    return Stated(lines[0], _number(lines[1]), root, _number(lines[3][8:]), _number(lines[4][6:]), signed)


@lru_cache(maxsize=16)
def _public(raw: bytes) -> object:
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey

    return Ed25519PublicKey.from_public_bytes(raw)


@lru_cache(maxsize=8192)  # the witness holds the same notes as the ledger
def _valid(text: str, signature: bytes, raw: bytes) -> bool:
    from cryptography.exceptions import InvalidSignature
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey

    public = _public(raw)
    assert isinstance(public, Ed25519PublicKey)
    try:
        public.verify(signature, text.encode())
    except InvalidSignature:
        return False
    return True


def signed_with(signed: Signed, key: Key) -> bool:
    """Say whether a note carries a valid signature of this key."""
    return any(key_id == key.key_id and _valid(signed.text, found, key.raw) for key_id, found in signed.signatures)


def read_succession(note: object) -> tuple[Key, Key]:
    """Return (old, new) of a change of key, signed by both; raises BadNote."""
    if not isinstance(note, str):
        raise BadNote("not a text")
    signed = read_signed(note)
    lines = signed.text.split("\n")
    if len(lines) != 5 or lines[0] != "baseload/key-rotation" or lines[1][:4] != "old " or lines[2][:4] != "new ":
        raise BadNote("not a change of key")
    old, new = read_key(lines[1][4:]), read_key(lines[2][4:])
    if len(signed.signatures) != 2 or not (signed_with(signed, old) and signed_with(signed, new)):
        raise BadNote("a change of key that one of the two keys did not sign")
    return old, new


# ---- the tree, by its definition -------------------------------------------------------------------------


class Tree:
    """All complete subtrees over a list of leaf hashes; roots of any prefix by RFC 6962's recursion.

    >>> Tree([]).root(0).hex()[:16]
    'e3b0c44298fc1c14'
    """

    def __init__(self, leaves: list[bytes]) -> None:
        self.levels = [leaves]
        while len(self.levels[-1]) > 1:
            below = self.levels[-1]
            self.levels.append(
                [hashlib.sha256(b"\x01" + below[i] + below[i + 1]).digest() for i in range(0, len(below) - 1, 2)]
            )

    def root(self, size: int) -> bytes:
        """Return the Merkle root of the first `size` leaves."""
        return self._over(0, size) if size else hashlib.sha256().digest()

    def _over(self, start: int, n: int) -> bytes:
        if n & (n - 1) == 0:
            return self.levels[n.bit_length() - 1][start // n]
        left = 1
        while left * 2 < n:
            left *= 2
        return hashlib.sha256(b"\x01" + self._over(start, left) + self._over(start + left, n - left)).digest()


def root_of_path(leaf: bytes, seq: int, size: int, path: list[bytes]) -> bytes | None:
    """Return the root that an inclusion proof leads to, or None where its length does not fit.

    >>> root_of_path(b"a", 0, 1, []), root_of_path(b"a", 0, 2, [])
    (b'a', None)
    """
    if size == 1:
        return leaf if not path and seq == 0 else None
    if not path or not 0 <= seq < size:
        return None
    left = 1
    while left * 2 < size:
        left *= 2
    if seq < left:
        inner = root_of_path(leaf, seq, left, path[:-1])
        return None if inner is None else hashlib.sha256(b"\x01" + inner + path[-1]).digest()
    inner = root_of_path(leaf, seq - left, size - left, path[:-1])
    return None if inner is None else hashlib.sha256(b"\x01" + path[-1] + inner).digest()
