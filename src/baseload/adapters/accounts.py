"""Keys, control tokens and pseudonyms in SQLite (`accounts.db`), shared by the command line and the running gateway.

Only digests come in; how a secret becomes one is `serve/keys.py`. WAL with synchronous=FULL: a key that was shown is
stored. Another process's changes are seen by SQLite's own counter (PRAGMA data_version), so that a key revoked on the
command line stops a running stream. A tenant's name stands in this file alone: forgetting it here leaves the ledger
whole and nameless. Usable from any thread, one call at a time.
"""

from __future__ import annotations

import os
import secrets
import sqlite3
import threading
from pathlib import Path
from typing import Any

from baseload.errors import InputError
from baseload.ports import KeyRecord, TokenRecord

_VERSION = 2
_SCHEMA = """
CREATE TABLE tenants (
    tenant TEXT PRIMARY KEY, pseudonym TEXT NOT NULL UNIQUE
) STRICT, WITHOUT ROWID;
CREATE TABLE keys (
    key_i INTEGER PRIMARY KEY AUTOINCREMENT, pseudonym TEXT NOT NULL UNIQUE, tenant TEXT NOT NULL,
    tenant_pseudonym TEXT NOT NULL, name TEXT NOT NULL, prefix TEXT NOT NULL, budget_nano INTEGER, rpm INTEGER,
    tpm INTEGER, concurrency INTEGER, created_ns INTEGER NOT NULL, expires_ns INTEGER, revoked_ns INTEGER
) STRICT;
CREATE TABLE secrets (
    digest BLOB PRIMARY KEY, key_i INTEGER NOT NULL REFERENCES keys, pepper_i INTEGER NOT NULL, expires_ns INTEGER
) STRICT, WITHOUT ROWID;
CREATE INDEX secrets_of_key ON secrets (key_i);
CREATE TABLE tokens (
    token_i INTEGER PRIMARY KEY AUTOINCREMENT, digest BLOB NOT NULL UNIQUE, pepper_i INTEGER NOT NULL,
    name TEXT NOT NULL, role TEXT NOT NULL CHECK (role IN ('tenant', 'viewer', 'operator', 'admin')), prefix TEXT NOT NULL,
    created_ns INTEGER NOT NULL, expires_ns INTEGER, revoked_ns INTEGER, tenant TEXT NOT NULL DEFAULT ''
) STRICT;
"""
_SINCE_1 = (  # tokens of a tenant came with version 2
    "ALTER TABLE tokens RENAME TO tokens_1",
    _SCHEMA[_SCHEMA.index("CREATE TABLE tokens") :].strip().rstrip(";"),
    "INSERT INTO tokens (token_i, digest, pepper_i, name, role, prefix, created_ns, expires_ns, revoked_ns)"
    " SELECT token_i, digest, pepper_i, name, role, prefix, created_ns, expires_ns, revoked_ns FROM tokens_1",
    "DROP TABLE tokens_1",
)
_KEY_COLUMNS = (
    "key_i, pseudonym, tenant, tenant_pseudonym, name, prefix, budget_nano, rpm, tpm, concurrency, created_ns,"
    " expires_ns, revoked_ns"
)
_ALL_KEYS = f"SELECT {_KEY_COLUMNS} FROM keys ORDER BY key_i"  # noqa: S608 - a constant of this file
_TENANTS_KEYS = f"SELECT {_KEY_COLUMNS} FROM keys WHERE tenant = ? ORDER BY key_i"  # noqa: S608
_ONE_KEY = f"SELECT {_KEY_COLUMNS} FROM keys WHERE key_i = ?"  # noqa: S608
_TOKEN_COLUMNS = "token_i, name, role, prefix, created_ns, expires_ns, revoked_ns, tenant"
_ALL_TOKENS = f"SELECT {_TOKEN_COLUMNS} FROM tokens ORDER BY token_i"  # noqa: S608
_TOKEN_BY_DIGEST = f"SELECT {_TOKEN_COLUMNS} FROM tokens WHERE digest = ?"  # noqa: S608


class AccountsFile:
    """`ports.Accounts` in one SQLite file."""

    def __init__(self, path: Path) -> None:
        self.path = path
        if not path.exists():
            os.close(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC, 0o600))
        self._lock = threading.RLock()
        try:
            self._db = sqlite3.connect(path, isolation_level=None, check_same_thread=False, timeout=10.0)
        except sqlite3.Error as error:
            raise InputError(f"{path}: not usable as the file of keys ({error}); see to what stands there") from error
        try:
            self._prepare()
        except sqlite3.DatabaseError as error:
            self._db.close()
            raise InputError(f"{path}: not usable as the file of keys ({error}); restore it from a backup") from error
        self._seen = self._data_version()

    def _prepare(self) -> None:
        self._db.execute("PRAGMA journal_mode = WAL")
        self._db.execute("PRAGMA synchronous = FULL")
        self._db.execute("PRAGMA foreign_keys = ON")
        self._db.execute("PRAGMA secure_delete = ON")  # a forgotten name leaves no trace in free pages
        self._db.execute("BEGIN IMMEDIATE")
        version = self._one("PRAGMA user_version")[0]
        if version == 0:
            for statement in _SCHEMA.split(";\n"):
                self._db.execute(statement)
        elif version == 1:
            for statement in _SINCE_1:
                self._db.execute(statement)
        if version in (0, 1):
            self._db.execute(f"PRAGMA user_version = {_VERSION}")
        self._db.execute("COMMIT")
        if version not in (0, 1, _VERSION):
            raise InputError(f"{self.path}: written by another version of baseload ({version}); upgrade baseload")

    def close(self) -> None:
        """Close the file."""
        self._db.close()

    def _one(self, sql: str, values: tuple[Any, ...] = ()) -> Any:
        with self._lock:
            return self._db.execute(sql, values).fetchone()

    def _all(self, sql: str, values: tuple[Any, ...] = ()) -> list[Any]:
        with self._lock:
            return self._db.execute(sql, values).fetchall()

    def _write(self, *statements: tuple[str, tuple[Any, ...]]) -> sqlite3.Cursor:
        """Run statements in one transaction; returns the last one's cursor."""
        with self._lock:
            self._db.execute("BEGIN IMMEDIATE")
            try:
                for sql, values in statements:
                    cursor = self._db.execute(sql, values)
                self._db.execute("COMMIT")
            except BaseException:
                if self._db.in_transaction:
                    self._db.execute("ROLLBACK")
                raise
            return cursor

    # ---- keys ----

    def tenant_pseudonym(self, tenant: str) -> str:
        """Return what stands for a tenant in the ledger; random, made at the first question."""
        known = self._one("SELECT pseudonym FROM tenants WHERE tenant = ?", (tenant,))
        if known is None:
            made = "t_" + secrets.token_hex(8)
            self._write(("INSERT INTO tenants VALUES (?, ?) ON CONFLICT DO NOTHING", (tenant, made)))
            known = self._one("SELECT pseudonym FROM tenants WHERE tenant = ?", (tenant,))
        return str(known[0])

    def tenants(self) -> dict[str, str]:
        """Return the tenants' names by pseudonym."""
        return {pseudonym: tenant for tenant, pseudonym in self._all("SELECT tenant, pseudonym FROM tenants")}

    def add_key(
        self,
        tenant: str,
        digest: bytes,
        *,
        pepper_i: int,
        prefix: str,
        now_ns: int,
        name: str = "",
        budget_nano: int | None = None,
        rpm: int | None = None,
        tpm: int | None = None,
        concurrency: int | None = None,
        expires_ns: int | None = None,
    ) -> KeyRecord:
        """Store a key with its first secret."""
        stands_for = self.tenant_pseudonym(tenant)
        pseudonym = "k_" + secrets.token_hex(8)
        limits = (budget_nano, rpm, tpm, concurrency)
        self._write(
            (
                "INSERT INTO keys (pseudonym, tenant, tenant_pseudonym, name, prefix, budget_nano, rpm, tpm, concurrency,"
                " created_ns, expires_ns) VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)",
                (pseudonym, tenant, stands_for, name, prefix, *limits, now_ns, expires_ns),
            ),
            (
                "INSERT INTO secrets SELECT ?, key_i, ?, NULL FROM keys WHERE pseudonym = ?",
                (digest, pepper_i, pseudonym),
            ),
        )
        found = self._one("SELECT key_i FROM keys WHERE pseudonym = ?", (pseudonym,))
        record = self.key(int(found[0]))
        assert record is not None
        return record

    def keys(self, tenant: str | None = None) -> list[KeyRecord]:
        """Return every key, or a tenant's, the oldest first."""
        rows = self._all(_ALL_KEYS) if tenant is None else self._all(_TENANTS_KEYS, (tenant,))
        return [_key(row) for row in rows]

    def key(self, key_i: int) -> KeyRecord | None:
        """Return one key."""
        row = self._one(_ONE_KEY, (key_i,))
        return None if row is None else _key(row)

    def key_by_digest(self, digest: bytes, now_ns: int) -> KeyRecord | None:
        """Return the key that a secret opens; a secret past its own end opens none."""
        row = self._one("SELECT key_i, expires_ns FROM secrets WHERE digest = ?", (digest,))
        if row is None or (row[1] is not None and row[1] <= now_ns):
            return None
        return self.key(row[0])

    def add_secret(self, key_i: int, digest: bytes, *, pepper_i: int, prefix: str, now_ns: int) -> None:
        """Give a key one more secret, which is the one it is shown by."""
        self._write(
            ("INSERT INTO secrets VALUES (?, ?, ?, NULL)", (digest, key_i, pepper_i)),
            ("UPDATE keys SET prefix = ? WHERE key_i = ?", (prefix, key_i)),
            ("DELETE FROM secrets WHERE expires_ns <= ?", (now_ns,)),
        )

    def end_secrets(self, key_i: int, *, but: bytes, at_ns: int) -> None:
        """Let all secrets of a key but one end at a time, or earlier where that was set before."""
        self._write(
            (
                "UPDATE secrets SET expires_ns = min(coalesce(expires_ns, ?), ?) WHERE key_i = ? AND digest <> ?",
                (at_ns, at_ns, key_i, but),
            )
        )

    def redigest(self, old: bytes, new: bytes, pepper_i: int) -> None:
        """Store a secret's digest under another pepper."""
        self._write(("UPDATE OR IGNORE secrets SET digest = ?, pepper_i = ? WHERE digest = ?", (new, pepper_i, old)))

    def peppers_in_use(self) -> set[int]:
        """Return the numbers of the peppers that some secret or token needs."""
        live = "SELECT pepper_i FROM secrets JOIN keys USING (key_i) WHERE revoked_ns IS NULL"
        tokens = "SELECT pepper_i FROM tokens WHERE revoked_ns IS NULL"
        return {row[0] for row in [*self._all(live), *self._all(tokens)]}

    def set_limits(
        self, key_i: int, *, budget_nano: int | None, rpm: int | None, tpm: int | None, concurrency: int | None
    ) -> None:
        """Change what a key may do; a running gateway takes it up within a second."""
        self._write(
            (
                "UPDATE keys SET budget_nano = ?, rpm = ?, tpm = ?, concurrency = ? WHERE key_i = ?",
                (budget_nano, rpm, tpm, concurrency, key_i),
            )
        )

    def revoke_key(self, key_i: int, now_ns: int) -> bool:
        """Revoke a key for ever; False where there is none, or it was revoked before."""
        sql = "UPDATE keys SET revoked_ns = ? WHERE key_i = ? AND revoked_ns IS NULL"
        return self._write((sql, (now_ns, key_i))).rowcount == 1

    # ---- control tokens ----

    def add_token(
        self,
        role: str,
        digest: bytes,
        *,
        pepper_i: int,
        prefix: str,
        now_ns: int,
        name: str = "",
        expires_ns: int | None = None,
        tenant: str = "",
    ) -> TokenRecord:
        """Store a control token."""
        self._write(
            (
                "INSERT INTO tokens (digest, pepper_i, name, role, prefix, created_ns, expires_ns, tenant)"
                " VALUES (?, ?, ?, ?, ?, ?, ?, ?)",
                (digest, pepper_i, name, role, prefix, now_ns, expires_ns, tenant),
            )
        )
        return _token(self._one(_TOKEN_BY_DIGEST, (digest,)))

    def tokens(self) -> list[TokenRecord]:
        """Return every control token, the oldest first."""
        return [_token(row) for row in self._all(_ALL_TOKENS)]

    def token_by_digest(self, digest: bytes, now_ns: int) -> TokenRecord | None:
        """Return the live token that a secret opens."""
        row = self._one(_TOKEN_BY_DIGEST, (digest,))
        found = None if row is None else _token(row)
        if found is None or found.revoked_ns is not None or (found.expires_ns or now_ns + 1) <= now_ns:
            return None
        return found

    def revoke_token(self, token_i: int, now_ns: int) -> bool:
        """Revoke a control token; False where there is none, or it was revoked before."""
        sql = "UPDATE tokens SET revoked_ns = ? WHERE token_i = ? AND revoked_ns IS NULL"
        return self._write((sql, (now_ns, token_i))).rowcount == 1

    # ---- forgetting, and noticing ----

    def forget(self, tenant: str, now_ns: int) -> int:
        """Revoke a tenant's keys and remove its name and theirs; returns how many keys it had."""
        done = self._write(
            ("DELETE FROM secrets WHERE key_i IN (SELECT key_i FROM keys WHERE tenant = ?)", (tenant,)),
            ("DELETE FROM tenants WHERE tenant = ?", (tenant,)),
            ("DELETE FROM tokens WHERE role = 'tenant' AND tenant = ?", (tenant,)),
            (
                "UPDATE keys SET tenant = '', name = '', prefix = '', revoked_ns = coalesce(revoked_ns, ?)"
                " WHERE tenant = ?",
                (now_ns, tenant),
            ),
        ).rowcount
        with self._lock:
            self._db.execute("PRAGMA wal_checkpoint(TRUNCATE)")  # nor does it stay in the log
        return done

    def changed(self) -> bool:
        """Say whether anybody, this process included, has written since the last question."""
        now = self._data_version()
        differs, self._seen = now != self._seen, now
        return differs

    def _data_version(self) -> tuple[int, int]:
        with self._lock:  # SQLite counts what others wrote, the connection what it wrote itself
            return int(self._one("PRAGMA data_version")[0]), self._db.total_changes


def _key(row: Any) -> KeyRecord:
    return KeyRecord(**dict(zip(KeyRecord.__struct_fields__, row, strict=True)))


def _token(row: Any) -> TokenRecord:
    return TokenRecord(**dict(zip(TokenRecord.__struct_fields__, row, strict=True)))
