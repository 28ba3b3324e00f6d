"""The file of keys and control tokens over versions, and what forgetting a tenant takes with it."""

from __future__ import annotations

import sqlite3
from contextlib import closing
from pathlib import Path

import pytest

from baseload.adapters.accounts import _SCHEMA, AccountsFile
from baseload.errors import InputError

VERSION_1 = (
    _SCHEMA.replace("'tenant', 'viewer'", "'viewer'").replace(", tenant TEXT NOT NULL DEFAULT ''\n) STRICT;\n", "\n) STRICT;\n")
)  # fmt: skip


def test_a_file_of_the_first_version_is_taken_up(tmp_path: Path) -> None:
    """Tokens that were made before tenants could have some still open, keep their numbers, and tenants' can be added."""
    path = tmp_path / "accounts.db"
    with closing(sqlite3.connect(path)) as old:
        old.executescript(VERSION_1)
        row = (b"digest", 1, "desk", "viewer", "ct-abc", 5, None, None)
        old.execute("INSERT INTO tokens VALUES (7, ?, ?, ?, ?, ?, ?, ?, ?)", row)
        old.execute("PRAGMA user_version = 1")
        old.commit()
    for _ in range(2):  # and opened once more
        accounts = AccountsFile(path)
        found = accounts.token_by_digest(b"digest", 10)
        assert found is not None and (found.token_i, found.role, found.name, found.tenant) == (7, "viewer", "desk", "")
        accounts.close()
    accounts = AccountsFile(path)
    made = accounts.add_token("tenant", b"other", pepper_i=1, prefix="ct-x", now_ns=6, tenant="acme")
    assert made.token_i == 8 and made.tenant == "acme"
    accounts.close()


def test_a_file_of_a_later_version_is_left_alone(tmp_path: Path) -> None:
    """An older program says so, and changes nothing."""
    path = tmp_path / "accounts.db"
    with closing(sqlite3.connect(path)) as newer:
        newer.execute("PRAGMA user_version = 99")
    with pytest.raises(InputError, match="another version"):
        AccountsFile(path)


def test_who_is_forgotten_leaves_no_token_and_no_name(tmp_path: Path) -> None:
    """A forgotten tenant's control tokens open nothing any more, and its name is in no byte of the file."""
    path = tmp_path / "accounts.db"
    accounts = AccountsFile(path)
    accounts.tenant_pseudonym("marzipan")
    accounts.add_token("tenant", b"t", pepper_i=1, prefix="ct-x", now_ns=1, tenant="marzipan")
    accounts.add_token("viewer", b"v", pepper_i=1, prefix="ct-y", now_ns=1)
    accounts.forget("marzipan", 2)
    assert accounts.token_by_digest(b"t", 3) is None and accounts.token_by_digest(b"v", 3) is not None
    accounts.close()
    assert b"marzipan" not in path.read_bytes()
