"""Keys: how a secret is made, recognised and looked up without ever being stored.

A key is `bl_` and 256 random bits in base62 with a checksum, so that a mistyped or foreign one is refused without a
look-up. Stored is its HMAC-SHA256 under a pepper that lies in a file of its own (0600), outside the database: whoever
copies the database can neither use nor guess a key. Looking up by digest leaks nothing through time. Peppers rotate:
the newest makes digests, older ones still recognise, and a secret that is used moves to the newest. Control tokens
(`blc_`) are made alike. Where rows are kept is `adapters/accounts.py`, behind `ports.Accounts`.
"""

from __future__ import annotations

import hashlib
import hmac
import os
import secrets
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

from baseload.errors import InputError
from baseload.ports import Accounts, KeyRecord, TokenRecord

KEY_PREFIX = "bl_"
TOKEN_PREFIX = "blc_"
ROLES = ("tenant", "viewer", "operator", "admin")
_ALPHABET = "0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz"
_SECRET_CHARS, _SUM_CHARS = 43, 6  # 62**43 > 2**256, 62**6 > 2**32
MOST_NAME = 200
_SHOWN_CHARS = 5  # of the secret, beside its prefix
LONGEST = len(TOKEN_PREFIX) + _SECRET_CHARS + _SUM_CHARS


def _base62(number: int, width: int) -> str:
    digits = []
    for _ in range(width):
        number, digit = divmod(number, 62)
        digits.append(_ALPHABET[digit])
    return "".join(reversed(digits))


def _sum(text: str) -> str:
    return _base62(zlib.crc32(text.encode("ascii")), _SUM_CHARS)


def mint(prefix: str = KEY_PREFIX, dice: Callable[[int], bytes] = secrets.token_bytes) -> str:
    """Return a new secret: the prefix, 256 random bits, a checksum.

    >>> mint(dice=lambda n: bytes(n))
    'bl_000000000000000000000000000000000000000000046BClH'
    """
    text = prefix + _base62(int.from_bytes(dice(32), "big"), _SECRET_CHARS)
    return text + _sum(text)


def well_formed(secret: bytes, prefix: str = KEY_PREFIX) -> bool:
    """Say whether bytes look like a secret of ours, checksum included: a typing mistake costs no look-up.

    >>> well_formed(mint().encode()), well_formed(b"sk-123"), well_formed(b"bl_" + b"0" * 49)
    (True, False, False)
    """
    if len(secret) != len(prefix) + _SECRET_CHARS + _SUM_CHARS or not secret.startswith(prefix.encode("ascii")):
        return False
    try:
        text = secret.decode("ascii")
    except UnicodeDecodeError:
        return False
    return hmac.compare_digest(_sum(text[:-_SUM_CHARS]), text[-_SUM_CHARS:])


def shown(secret: str) -> str:
    """Return the first characters of a secret: enough to tell keys apart, of no use to a thief."""
    return secret[: secret.index("_") + 1 + _SHOWN_CHARS]


# ---- peppers ---------------------------------------------------------------------------------------------


class Peppers:
    """The peppers of one state folder: a file of lines `number hex`, mode 0600, the newest last."""

    def __init__(self, path: Path) -> None:
        self.path = path
        if not path.exists():
            _write_private(path, f"1 {secrets.token_hex(32)}\n")
        self._by_number = self._read()

    def _read(self) -> dict[int, bytes]:
        self._stamp = self._stamp_now()
        if self.path.stat().st_mode & 0o077:
            raise InputError(f"{self.path}: others can read it; chmod 600 it, then `baseload keys rotate-pepper`")
        found: dict[int, bytes] = {}
        for number, line in enumerate(self.path.read_text("ascii", errors="replace").splitlines(), start=1):
            words = line.split()
            try:
                found[int(words[0])] = bytes.fromhex(words[1])
                whole = len(words) == 2 and len(found[int(words[0])]) == 32
            except (IndexError, ValueError):
                whole = False
            if not whole:
                raise InputError(f"{self.path}:{number}: no pepper (number, 64 hex digits); restore it from a backup")
        if not found:
            raise InputError(f"{self.path}: empty; without it no key opens anything: restore it from a backup")
        return found

    @property
    def newest(self) -> int:
        """Return the number of the pepper that new digests are made under."""
        return max(self._by_number)

    def digest(self, secret: bytes, number: int) -> bytes:
        """Return what is stored of a secret: HMAC-SHA256 under a pepper (RFC 2104)."""
        return hmac.digest(self._by_number[number], secret, "sha256")

    def digests(self, secret: bytes) -> list[tuple[int, bytes]]:
        """Return a secret's digest under each pepper, the newest first."""
        return [(number, self.digest(secret, number)) for number in sorted(self._by_number, reverse=True)]

    def salt(self, tenant_pseudonym: str) -> int:
        """Return a tenant's own salt for hashes of prompt prefixes, 63 bits: tenants cannot probe each other's."""
        oldest = self._by_number[min(self._by_number)]
        blob = hmac.digest(oldest, b"prefix\0" + tenant_pseudonym.encode(), "sha256")
        return int.from_bytes(blob[:8], "big") >> 1

    def rotate(self) -> int:
        """Add a pepper; from now on it makes the digests. Returns its number."""
        number = self.newest + 1
        lines = [f"{n} {pepper.hex()}\n" for n, pepper in sorted(self._by_number.items())]
        _write_private(self.path, "".join(lines) + f"{number} {secrets.token_hex(32)}\n")
        self._by_number = self._read()
        return number

    def retire(self, in_use: set[int]) -> list[int]:
        """Remove the peppers that no secret needs any more, never the newest. Returns their numbers."""
        gone = [n for n in self._by_number if n not in in_use and n != self.newest]
        kept = {n: pepper for n, pepper in self._by_number.items() if n not in gone}
        _write_private(self.path, "".join(f"{n} {pepper.hex()}\n" for n, pepper in sorted(kept.items())))
        self._by_number = kept
        return sorted(gone)

    def refresh(self) -> None:
        """Take up what another process wrote; a file that is damaged meanwhile leaves what is known in force."""
        try:
            if self._stamp_now() != self._stamp:
                self._by_number = self._read()
        except (OSError, InputError):
            pass  # said at the next start; keys that opened still open

    def _stamp_now(self) -> tuple[int, int]:
        status = self.path.stat()
        return status.st_mtime_ns, status.st_ino


def _write_private(path: Path, text: str) -> None:
    """Write a file that only its owner may read, whole or not at all, and durable on return."""
    partial = path.with_name(path.name + ".partial")
    partial.unlink(missing_ok=True)
    handle = os.open(partial, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
    with os.fdopen(handle, "w", encoding="ascii") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
    partial.replace(path)
    folder = os.open(path.parent, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)


# ---- the ring --------------------------------------------------------------------------------------------


class Made(NamedTuple):
    """A new key: its secret, shown once and never again, and its record."""

    secret: str
    record: KeyRecord


class MadeToken(NamedTuple):
    """A new control token and its record."""

    secret: str
    record: TokenRecord


class Keyring:
    """Keys and control tokens of one state folder, as the command line, the control listener and the owner use them."""

    def __init__(self, accounts: Accounts, peppers: Peppers) -> None:
        self.accounts = accounts
        self.peppers = peppers

    def create(
        self,
        tenant: str,
        *,
        now_ns: int,
        name: str = "",
        budget_nano: int | None = None,
        rpm: int | None = None,
        tpm: int | None = None,
        concurrency: int | None = None,
        expires_ns: int | None = None,
    ) -> Made:
        """Make a key for a tenant; `budget_nano` is 1e-9 of the currency over the key's whole life."""
        if not tenant:
            raise InputError("keys create: no tenant; name one of the fleet file's with --tenant")
        _plain("--tenant", tenant)
        _plain("--name", name)
        for word, limit in (("--budget", budget_nano), ("--rpm", rpm), ("--tpm", tpm), ("--concurrency", concurrency)):
            if limit is not None and not 0 <= limit < 2**62:
                raise InputError(f"keys create: {word} is out of range; give a number from 0, or leave it out")
        secret = mint()
        record = self.accounts.add_key(
            tenant, self.peppers.digest(secret.encode(), self.peppers.newest), pepper_i=self.peppers.newest,
            prefix=shown(secret), now_ns=now_ns, name=name, budget_nano=budget_nano, rpm=rpm, tpm=tpm,
            concurrency=concurrency, expires_ns=expires_ns,
        )  # fmt: skip
        return Made(secret, record)

    def list(self, tenant: str | None = None) -> list[KeyRecord]:
        """Return every key, or a tenant's."""
        return self.accounts.keys(tenant)

    def find(self, word: str) -> KeyRecord:
        """Return the one key that a number, a pseudonym, a shown prefix or a name means."""
        records = self.accounts.keys()
        named = [r for r in records if word in (str(r.key_i), r.pseudonym, r.prefix)]
        named = named or [r for r in records if word and r.name == word]
        if len(named) != 1:
            few = "no key" if not named else f"{len(named)} keys"
            raise InputError(f"{word}: means {few}; take the number from `baseload keys list`")
        return named[0]

    def revoke(self, key_i: int, now_ns: int) -> bool:
        """Revoke a key; running streams of it stop within a second."""
        return self.accounts.revoke_key(key_i, now_ns)

    def rotate(self, key_i: int, *, now_ns: int, overlap_s: float = 86_400.0) -> Made:
        """Give a key a new secret; the old ones open it for `overlap_s` more."""
        record = self.accounts.key(key_i)
        if record is None or record.revoked_ns is not None:
            raise InputError(f"key {key_i}: none, or revoked; create a new one")
        secret = mint()
        digest = self.peppers.digest(secret.encode(), self.peppers.newest)
        self.accounts.add_secret(key_i, digest, pepper_i=self.peppers.newest, prefix=shown(secret), now_ns=now_ns)
        self.accounts.end_secrets(key_i, but=digest, at_ns=now_ns + round(overlap_s * 1e9))
        found = self.accounts.key(key_i)
        assert found is not None
        return Made(secret, found)

    def forget(self, tenant: str, now_ns: int) -> int:
        """Revoke a tenant's keys and remove its name; returns how many keys it had."""
        return self.accounts.forget(tenant, now_ns)

    def look_up(self, secret: bytes, now_ns: int) -> KeyRecord | None:
        """Return the live key that a bearer's secret opens; an old pepper's digest moves to the newest."""
        if not well_formed(secret):
            return None
        self.peppers.refresh()
        for number, digest in self.peppers.digests(secret):
            record = self.accounts.key_by_digest(digest, now_ns)
            if record is not None:
                if number != self.peppers.newest:
                    self.accounts.redigest(
                        digest, self.peppers.digest(secret, self.peppers.newest), self.peppers.newest
                    )
                return record if usable(record, now_ns) else None
        return None

    def create_token(
        self, role: str, *, now_ns: int, name: str = "", expires_ns: int | None = None, tenant: str = ""
    ) -> MadeToken:
        """Make a token of the control listener with a role; one of the role `tenant` sees that tenant's own alone."""
        if role not in ROLES:
            raise InputError(f"{role}: no role; one of {', '.join(ROLES)}")
        if (role == "tenant") != bool(tenant):
            raise InputError("keys create: --role tenant wants the tenant with --tenant, and other roles want none")
        _plain("--name", name)
        _plain("--tenant", tenant)
        secret = mint(TOKEN_PREFIX)
        record = self.accounts.add_token(
            role, self.peppers.digest(secret.encode(), self.peppers.newest), pepper_i=self.peppers.newest,
            prefix=shown(secret), now_ns=now_ns, name=name, expires_ns=expires_ns, tenant=tenant,
        )  # fmt: skip
        return MadeToken(secret, record)

    def look_up_token(self, secret: bytes, now_ns: int) -> TokenRecord | None:
        """Return the live control token that a secret opens."""
        if not well_formed(secret, TOKEN_PREFIX):
            return None
        self.peppers.refresh()
        for _, digest in self.peppers.digests(secret):
            record = self.accounts.token_by_digest(digest, now_ns)
            if record is not None:
                return record if record.revoked_ns is None and not _past(record.expires_ns, now_ns) else None
        return None

    def salt(self, tenant_pseudonym: str) -> int:
        """Return a tenant's salt for hashes of prompt prefixes."""
        return self.peppers.salt(tenant_pseudonym)


def open_ring(accounts: Accounts, pepper: Path) -> Keyring:
    """Return the keys of a state folder; a pepper is made where no key needs one yet, and never in place of a lost one."""
    if not pepper.exists() and accounts.peppers_in_use():
        raise InputError(f"{pepper}: is not there, and without it none of the keys opens; restore it from a backup")
    return Keyring(accounts, Peppers(pepper))


def _plain(word: str, text: str) -> None:
    """Refuse a name that would garble the lists in which it is shown."""
    if len(text) > MOST_NAME or not text.isprintable():
        raise InputError(f"keys create: {word} is not one printable line of at most {MOST_NAME} letters; shorten it")


def usable(record: KeyRecord, now_ns: int) -> bool:
    """Say whether a key may be used now: neither revoked, expired nor forgotten."""
    return record.revoked_ns is None and not _past(record.expires_ns, now_ns) and record.tenant != ""


def _past(expires_ns: int | None, now_ns: int) -> bool:
    return expires_ns is not None and expires_ns <= now_ns


def fingerprint(secret: bytes) -> bytes:
    """Return what a worker's memory keeps of a bearer: its SHA-256, so that no secret lies about."""
    return hashlib.sha256(secret).digest()
