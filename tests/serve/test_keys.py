"""Keys: what a thief of the database gets, what a typing mistake costs, who notices a revocation, who is forgotten."""

from __future__ import annotations

import hashlib
import hmac
import os
import sqlite3
import threading
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from baseload.adapters.accounts import AccountsFile
from baseload.errors import InputError
from baseload.serve.keys import KEY_PREFIX, LONGEST, TOKEN_PREFIX, Keyring, Peppers, mint, shown, well_formed

NOW_NS = 1_790_000_000_000_000_000


def ring_in(folder: Path) -> Keyring:
    """Return a key ring over files in a folder."""
    return Keyring(AccountsFile(folder / "accounts.db"), Peppers(folder / "pepper"))


@given(st.binary(min_size=32, max_size=32))
def test_every_secret_is_well_formed_and_no_neighbour_of_it_is(seed):
    """A secret carries 256 bits, and one changed letter is refused without a look-up."""
    secret = mint(dice=lambda n: seed)
    other = secret[:10] + ("A" if secret[10] != "A" else "B") + secret[11:]

    assert well_formed(secret.encode()) and len(secret) <= LONGEST
    assert not well_formed(other.encode())
    assert not well_formed(secret.encode(), TOKEN_PREFIX)


@given(st.binary(max_size=80))
def test_no_bytes_from_outside_break_the_look_of_a_key(bearer):
    """Whatever is sent as a bearer, the answer is yes or no."""
    assert well_formed(bearer) in (True, False)
    assert not well_formed(KEY_PREFIX.encode() + bearer[:20])


def test_a_digest_is_hmac_sha256_under_the_pepper(tmp_path):
    """The stored digest is RFC 2104's, so another program can recompute it from key and pepper."""
    peppers = Peppers(tmp_path / "pepper")
    pepper = bytes.fromhex((tmp_path / "pepper").read_text().split()[1])
    secret = mint().encode()

    assert peppers.digest(secret, 1) == hmac.new(pepper, secret, hashlib.sha256).digest()
    assert (tmp_path / "pepper").stat().st_mode & 0o777 == 0o600


def test_a_copy_of_the_database_holds_no_secret(tmp_path):
    """Neither a key, nor its plain hash, nor the pepper stands in the files of accounts."""
    ring = ring_in(tmp_path)
    made = ring.create("acme", now_ns=NOW_NS, name="ci", budget_nano=5)
    token = ring.create_token("admin", now_ns=NOW_NS)
    blob = b"".join(path.read_bytes() for path in tmp_path.glob("accounts.db*"))

    for secret in (made.secret, token.secret):
        assert secret.encode() not in blob
        assert secret[len(shown(secret)) :].encode() not in blob
        assert hashlib.sha256(secret.encode()).digest() not in blob
    assert bytes.fromhex((tmp_path / "pepper").read_text().split()[1]) not in blob


def test_a_key_opens_until_it_expires_or_is_revoked(tmp_path):
    """A key is found by its secret alone, until its end or its revocation."""
    ring = ring_in(tmp_path)
    made = ring.create("acme", now_ns=NOW_NS, rpm=60, expires_ns=NOW_NS + 10)
    other = ring.create("acme", now_ns=NOW_NS)

    assert ring.look_up(made.secret.encode(), NOW_NS) == made.record
    assert ring.look_up(made.secret.encode(), NOW_NS + 10) is None
    assert ring.look_up(mint().encode(), NOW_NS) is None
    assert ring.look_up(b"' OR '1'='1", NOW_NS) is None
    assert ring.revoke(other.record.key_i, NOW_NS)
    assert not ring.revoke(other.record.key_i, NOW_NS)
    assert ring.look_up(other.secret.encode(), NOW_NS) is None


def test_a_rotated_key_opens_by_both_secrets_until_the_overlap_ends(tmp_path):
    """Rotation gives a second secret for the same budget; the first ends after the overlap."""
    ring = ring_in(tmp_path)
    old = ring.create("acme", now_ns=NOW_NS, budget_nano=7)
    new = ring.rotate(old.record.key_i, now_ns=NOW_NS, overlap_s=1.0)
    opened = [ring.look_up(secret.encode(), NOW_NS) for secret in (old.secret, new.secret)]

    assert [record and record.key_i for record in opened] == [old.record.key_i] * 2
    assert ring.look_up(old.secret.encode(), NOW_NS + 2 * 10**9) is None
    assert ring.look_up(new.secret.encode(), NOW_NS + 2 * 10**9) == new.record


def test_peppers_rotate_side_by_side(tmp_path):
    """After a rotation old keys still open, move to the new pepper when used, and the old pepper can go."""
    ring = ring_in(tmp_path)
    made = ring.create("acme", now_ns=NOW_NS)
    unused = ring.create("acme", now_ns=NOW_NS)
    ring.peppers.rotate()

    assert ring.peppers.retire(ring.accounts.peppers_in_use()) == []
    assert ring.look_up(made.secret.encode(), NOW_NS) == made.record
    ring.revoke(unused.record.key_i, NOW_NS)
    assert ring.peppers.retire(ring.accounts.peppers_in_use()) == [1]
    assert ring_in(tmp_path).look_up(made.secret.encode(), NOW_NS) == made.record


def test_a_running_gateway_sees_a_pepper_that_the_command_line_added(tmp_path):
    """A key made under a new pepper by another process opens at once; a damaged file closes nothing that was open."""
    gateway, shell = ring_in(tmp_path), ring_in(tmp_path)
    old = shell.create("acme", now_ns=NOW_NS)
    shell.peppers.rotate()
    new = shell.create("acme", now_ns=NOW_NS)
    assert gateway.look_up(new.secret.encode(), NOW_NS) == new.record
    (tmp_path / "pepper").write_text("damaged")
    assert gateway.look_up(old.secret.encode(), NOW_NS) == old.record


def test_a_pepper_that_others_can_read_is_refused(tmp_path):
    """The gateway does not start with a pepper that lies open, or that is damaged."""
    Peppers(tmp_path / "pepper")
    os.chmod(tmp_path / "pepper", 0o640)
    with pytest.raises(InputError, match="chmod 600"):
        Peppers(tmp_path / "pepper")
    os.chmod(tmp_path / "pepper", 0o600)
    (tmp_path / "pepper").write_text("1 abc\n")
    with pytest.raises(InputError, match="restore it"):
        Peppers(tmp_path / "pepper")


def test_another_process_sees_a_revocation(tmp_path):
    """What one connection writes, another notices by asking SQLite's counter, once."""
    gateway, shell = ring_in(tmp_path), ring_in(tmp_path)
    made = shell.create("acme", now_ns=NOW_NS)
    assert gateway.accounts.changed()
    assert not gateway.accounts.changed()
    shell.revoke(made.record.key_i, NOW_NS)
    assert gateway.accounts.changed()


def test_a_forgotten_tenant_leaves_no_name_behind(tmp_path):
    """Forgetting removes the name from every page of the file; the pseudonyms stay, and lead nowhere."""
    ring = ring_in(tmp_path)
    made = ring.create("jane-doe-gmbh", now_ns=NOW_NS, name="jane laptop")

    assert ring.forget("jane-doe-gmbh", NOW_NS) == 1
    assert ring.look_up(made.secret.encode(), NOW_NS) is None
    record = ring.list()[0]
    assert (record.tenant, record.name, record.pseudonym) == ("", "", made.record.pseudonym)
    blob = b"".join(path.read_bytes() for path in tmp_path.glob("accounts.db*"))
    assert b"jane" not in blob
    assert ring.accounts.tenant_pseudonym("jane-doe-gmbh") != made.record.tenant_pseudonym


def test_parallel_writers_are_never_told_that_the_file_is_locked(tmp_path):
    """Eight connections write at once, each waits its turn."""
    ring_in(tmp_path)
    problems: list[BaseException] = []

    def write() -> None:
        try:
            ring = ring_in(tmp_path)
            for _ in range(5):
                ring.create("acme", now_ns=NOW_NS)
        except BaseException as error:
            problems.append(error)

    threads = [threading.Thread(target=write) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()

    assert not problems
    assert len(ring_in(tmp_path).list()) == 40


def test_a_file_that_is_no_database_is_named(tmp_path):
    """A damaged file of keys is told with its path and what to do."""
    (tmp_path / "accounts.db").write_bytes(b"no database" * 1000)
    with pytest.raises(InputError, match=r"accounts\.db.*backup"):
        AccountsFile(tmp_path / "accounts.db")
    assert sqlite3.sqlite_version_info >= (3, 37)  # STRICT tables
