"""The ledger's signature: an Ed25519 key in a file, signed checkpoints, and the witness file outside the ledger.

Texts are signed notes (C2SP signed-note, tlog-checkpoint), so other tools of transparency logs can check them:

    baseload/<fleet>/<number>      origin
    1234                           rows
    <base64>                       Merkle root
    time_ns 1790000000000000000    UTC
    after 1230                     rows of the checkpoint before this one
    (empty line)
    — baseload <base64 of 4 bytes of key id and 64 of signature>

A new key is introduced by a note signed with both, the old and the new one. Who checks has own code: `report/verify.py`.
"""

from __future__ import annotations

import base64
import os
import time
from collections.abc import Callable
from hashlib import sha256
from pathlib import Path

import msgspec
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey

from baseload.errors import LedgerError
from baseload.ports import Checkpoint

KEY_NAME = "baseload"
ED25519 = b"\x01"


def _b64(raw: bytes) -> str:
    return base64.b64encode(raw).decode("ascii")


def key_id_of(public: bytes) -> bytes:
    """Return the 4 bytes that name a public key in a signed note."""
    return sha256(KEY_NAME.encode() + b"\n" + ED25519 + public).digest()[:4]


def public_line(public: bytes) -> str:
    """Return a public key as one line: name, key id, key (C2SP verifier key)."""
    return f"{KEY_NAME}+{key_id_of(public).hex()}+{_b64(ED25519 + public)}"


class SigningKey:
    """An Ed25519 key that signs notes. Its file (PEM, PKCS #8) is readable by its owner alone."""

    def __init__(self, private: Ed25519PrivateKey) -> None:
        self._private = private
        self._public = private.public_key().public_bytes_raw()
        self._id = key_id_of(self._public)
        self.key_id = self._id.hex()
        self.public_line = public_line(self._public)
        self.successor: SigningKey | None = None
        """A key that was prepared beside this one's file and not put in its place yet."""

    @classmethod
    def make(cls) -> SigningKey:
        """Return a new key that is in no file."""
        return cls(Ed25519PrivateKey.generate())

    @classmethod
    def create(cls, path: Path) -> SigningKey:
        """Make a key and its file, mode 0600; refuses to overwrite."""
        key = cls.make()
        key.save(path)
        return key

    @classmethod
    def load(cls, path: Path) -> SigningKey:
        """Return the key of a file; raises LedgerError where it is missing, none, or readable by others."""
        key = cls._load(path)
        waiting = successor_path(path)
        if waiting.exists():
            key.successor = cls._load(waiting)
        return key

    @classmethod
    def _load(cls, path: Path) -> SigningKey:
        try:
            mode = path.stat().st_mode
            pem = path.read_bytes()
        except OSError as error:
            raise LedgerError(f"{path}: no signing key ({error.strerror}); restore it, or start a new ledger") from None
        if mode & 0o077:
            raise LedgerError(
                f"{path}: readable by others (mode {mode & 0o777:o}); chmod 600 it, and think of a new key"
            )
        try:
            private = serialization.load_pem_private_key(pem, password=None)
        except (ValueError, TypeError):
            private = None
        if not isinstance(private, Ed25519PrivateKey):
            raise LedgerError(f"{path}: not an Ed25519 key in PEM; restore it from its copy")
        return cls(private)

    @classmethod
    def load_or_create(cls, path: Path) -> SigningKey:
        """Return the key of a file, which is made where there is none; the public key lies beside it (`signing.pub`)."""
        key = cls.load(path) if path.exists() else cls.create(path)
        key.publish(path)
        return key

    def publish(self, path: Path) -> None:
        """Write the public key's line beside the key's file, for whoever shall verify; only where it is not there yet."""
        public = path.with_suffix(".pub")
        try:
            if not public.exists() or public.read_text("utf-8").strip() != self.public_line:
                partial = public.with_name(public.name + ".partial")
                partial.write_text(self.public_line + "\n", "utf-8")
                os.replace(partial, public)
        except (OSError, UnicodeDecodeError) as error:
            raise LedgerError(f"{public}: the public key cannot be written ({error})") from None

    def save(self, path: Path) -> None:
        """Write the key's file, mode 0600, durably; refuses to overwrite."""
        pem = self._private.private_bytes(
            serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
        )
        try:
            fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        except FileExistsError:
            raise LedgerError(f"{path}: exists already; a signing key is never overwritten") from None
        try:
            os.write(fd, pem)
            os.fsync(fd)
        finally:
            os.close(fd)
        sync_folder(path.parent)

    def signature_line(self, text: str) -> str:
        """Return the line that signs a text."""
        return f"\u2014 {KEY_NAME} {_b64(self._id + self._private.sign(text.encode()))}\n"

    def sign_note(self, text: str) -> str:
        """Return the signed note of a text that ends in a line feed."""
        assert text.endswith("\n")
        return f"{text}\n{self.signature_line(text)}"

    def sign_checkpoint(self, origin: str, size: int, root: bytes, time_ns: int, after: int) -> Checkpoint:
        """Return the signed statement that the first `size` rows of `origin` have this root."""
        text = f"{origin}\n{size}\n{_b64(root)}\ntime_ns {time_ns}\nafter {after}\n"
        return Checkpoint(origin, size, root, time_ns, self.key_id, self.sign_note(text))

    def succeed(self, new: SigningKey, time_ns: int) -> str:
        """Return the note that makes `new` the successor of this key, signed by both."""
        text = f"baseload/key-rotation\nold {self.public_line}\nnew {new.public_line}\ntime_ns {time_ns}\n"
        return f"{text}\n{self.signature_line(text)}{new.signature_line(text)}"


def successor_path(path: Path) -> Path:
    """Return where a new key waits until the ledger has taken it."""
    return path.with_name(path.name + ".new")


def prepare_successor(path: Path) -> SigningKey:
    """Make the key that will follow the one in `path`, in a file beside it.

    Then `ledger.change_key(new)`, then `put_successor(path)`. After a crash in between, `SigningKey.load` finds both, and
    opening the ledger takes the one that it is at.
    """
    waiting = successor_path(path)
    waiting.unlink(missing_ok=True)
    return SigningKey.create(waiting)


def put_successor(path: Path) -> None:
    """Put the new key in the old one's place, for good."""
    os.replace(successor_path(path), path)
    sync_folder(path.parent)


def checkpoint_of(note: str) -> Checkpoint:
    """Return the checkpoint that a note states; its signature is not checked here. Raises ValueError."""
    text, _, signature = note.partition("\n\n")
    origin, size, root, when, _after = text.split("\n")
    raw = base64.b64decode(signature.rsplit(" ", 1)[1].strip(), validate=True)
    return Checkpoint(
        origin,
        int(size),
        base64.b64decode(root, validate=True),
        int(when.removeprefix("time_ns ")),
        raw[:4].hex(),
        note,
    )


def signed_by(note: str, line: str) -> bool:
    """Say whether a note carries a valid signature of the public key `line`."""
    try:
        raw = base64.b64decode(line.split("+", 2)[2])
        public = Ed25519PublicKey.from_public_bytes(raw[1:])
        text, _, signatures = note.partition("\n\n")
        for signature in signatures.splitlines():
            blob = base64.b64decode(signature.rsplit(" ", 1)[1])
            if blob[:4] == key_id_of(raw[1:]):
                public.verify(blob[4:], (text + "\n").encode())
                return True
    except (ValueError, IndexError, InvalidSignature):
        return False
    return False


def sync_folder(folder: Path) -> None:
    """Make the names in a folder durable."""
    fd = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


class Witness:
    """A file of checkpoints outside the ledger: appended, synced at most each `every_s`, never rewritten.

    Put it on another disk or host than the ledger: who rewrites the ledger and signs anew still has to rewrite it. One line a
    checkpoint: {"note": …}. What a crash tore is followed by {"torn": bytes}.
    """

    def __init__(self, path: Path, *, every_s: float = 1.0, clock: Callable[[], float] = time.monotonic) -> None:
        self._every_s, self._clock = every_s, clock
        self._waiting: str | None = None
        self._last_s = -every_s * 2.0 - 1e9
        try:
            self._fd = os.open(path, os.O_RDWR | os.O_APPEND | os.O_CREAT, 0o600)
        except OSError as error:
            raise LedgerError(f"{path}: the witness file cannot be opened ({error.strerror})") from None
        self.doubt = _doubt(self._fd, path)
        """What is wrong with a file that was there already; '' nothing. It is written to all the same."""
        torn = _torn_bytes(self._fd)
        if torn:
            self._write(b"\n" + msgspec.json.encode({"torn": torn}) + b"\n")
        sync_folder(path.parent)

    def see(self, note: str) -> None:
        """Take note of a checkpoint; it is written now, or by a later `see` or `flush`."""
        self._waiting = note
        self.flush()

    def flush(self, *, now: bool = False) -> None:
        """Write what waits, if the last line is `every_s` old, or `now`. Raises OSError."""
        if self._waiting is None or (not now and self._clock() - self._last_s < self._every_s):
            return
        self._write(msgspec.json.encode({"note": self._waiting}) + b"\n")
        self._waiting = None
        self._last_s = self._clock()

    def _write(self, line: bytes) -> None:
        torn = _torn_bytes(self._fd)  # an earlier write of ours may have been cut short by a full disk
        if torn and not line.startswith(b"\n"):
            line = b"\n" + msgspec.json.encode({"torn": torn}) + b"\n" + line
        os.write(self._fd, line)
        os.fsync(self._fd)

    def close(self) -> None:
        """Write what waits, and close."""
        if self._fd >= 0:
            try:
                self.flush(now=True)
            finally:
                os.close(self._fd)
                self._fd = -1


def _torn_bytes(fd: int) -> int:
    """Return how many bytes follow the last line feed of a file."""
    end = os.fstat(fd).st_size
    tail = os.pread(fd, 65_536, max(0, end - 65_536))
    return len(tail) - (tail.rfind(b"\n") + 1)


def _doubt(fd: int, path: Path) -> str:
    """Say whether the end of a witness file is none of ours."""
    end = os.fstat(fd).st_size
    lines = os.pread(fd, 65_536, max(0, end - 65_536)).split(b"\n")[:-1]  # what follows the last line feed is torn
    try:
        line = msgspec.json.decode(lines[-1]) if lines else {"torn": 0}
        known = isinstance(line, dict) and ("note" in line or "torn" in line)
    except (msgspec.DecodeError, UnicodeDecodeError):
        known = False
    if known:
        return ""
    return (
        f"{path}: its last line is no checkpoint, so it was changed by somebody or damaged; keep a copy, compare it with "
        f"`baseload verify --witness {path}`, and bring back the right file"
    )
