"""Keys, signed notes and the witness file."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest

from baseload.adapters.signing import SigningKey, Witness, checkpoint_of, signed_by
from baseload.errors import LedgerError
from baseload.report import verify_notes
from baseload.report.verify_verdict import Verdict
from baseload.report.verify_witness import read_witness

ROOT = bytes(range(32))


def test_a_key_file_is_for_its_owner_alone(tmp_path: Path):
    """The key's file has mode 0600, is never overwritten, and is refused once others may read it."""
    path = tmp_path / "signing.key"
    key = SigningKey.create(path)

    assert path.stat().st_mode & 0o777 == 0o600
    assert SigningKey.load(path).key_id == key.key_id == SigningKey.load_or_create(path).key_id
    assert (tmp_path / "signing.pub").read_text() == key.public_line + "\n"
    with pytest.raises(LedgerError, match="never overwritten"):
        SigningKey.create(path)
    path.chmod(0o640)
    with pytest.raises(LedgerError, match="readable by others"):
        SigningKey.load(path)
    (tmp_path / "other").write_text("not a key")
    (tmp_path / "other").chmod(0o600)
    with pytest.raises(LedgerError, match="not an Ed25519 key"):
        SigningKey.load(tmp_path / "other")
    with pytest.raises(LedgerError, match="no signing key"):
        SigningKey.load(tmp_path / "absent")


def test_the_key_is_plain_pem_that_openssl_reads(tmp_path: Path):
    """Another program gets the same public key out of the file."""
    key = SigningKey.create(tmp_path / "signing.key")
    made = subprocess.run(
        ["openssl", "pkey", "-in", tmp_path / "signing.key", "-pubout", "-outform", "DER"],
        capture_output=True, check=True, timeout=20,
    )  # fmt: skip

    assert made.stdout[-32:] == verify_notes.read_key(key.public_line).raw


def test_a_checkpoint_says_what_was_signed_and_nothing_else():
    """A note holds origin, size, root and time; the verifier's own reader agrees; any change breaks the signature."""
    key = SigningKey.make()
    made = key.sign_checkpoint("baseload/nordic/1", 12, ROOT, 1_790_000_000_000_000_000, 9)
    stated = verify_notes.read_checkpoint(made.note)

    assert checkpoint_of(made.note) == made
    assert (stated.origin, stated.size, stated.root, stated.time_ns, stated.after) == (
        "baseload/nordic/1", 12, ROOT, 1_790_000_000_000_000_000, 9,
    )  # fmt: skip
    public = verify_notes.read_key(key.public_line)
    assert signed_by(made.note, key.public_line) and verify_notes.signed_with(stated.signed, public)
    other = made.note.replace("\n12\n", "\n13\n")
    assert not signed_by(other, key.public_line)
    assert not verify_notes.signed_with(verify_notes.read_checkpoint(other).signed, public)
    assert not signed_by(made.note, SigningKey.make().public_line)
    assert not signed_by("", key.public_line) and not signed_by(made.note, "nonsense")


def test_a_change_of_key_is_signed_by_both():
    """The note that introduces a new key carries both signatures, and the verifier wants both."""
    old, new = SigningKey.make(), SigningKey.make()
    note = old.succeed(new, 5)

    assert [key.short for key in verify_notes.read_succession(note)] == [old.key_id, new.key_id]
    one_alone = "\n".join(note.splitlines()[:-1]) + "\n"
    with pytest.raises(verify_notes.BadNote, match="did not sign"):
        verify_notes.read_succession(one_alone)


def test_the_witness_writes_at_most_one_line_a_second_and_none_twice(tmp_path: Path):
    """Checkpoints come faster than lines; the last one is there once a second has passed, or the file is closed."""
    key, now_s = SigningKey.make(), [0.0]
    path = tmp_path / "witness.log"
    notes = [key.sign_checkpoint("baseload/nordic/1", i, ROOT, i, i - 1).note for i in range(1, 30)]
    witness = Witness(path, clock=lambda: now_s[0])
    for i, note in enumerate(notes):
        now_s[0] = i / 10
        witness.see(note)
    written = path.read_bytes().count(b"\n")
    witness.flush()
    witness.flush()
    assert path.read_bytes().count(b"\n") == written
    witness.close()
    witness.close()

    verdict = Verdict("witness")
    sizes = [stated.size for stated in read_witness(path.read_bytes(), verdict)]
    assert sizes == [1, 11, 21, 29] and verdict.whole and written == 3
    assert path.stat().st_mode & 0o777 == 0o600


def test_a_line_that_a_crash_tore_is_told_from_one_that_was_changed(tmp_path: Path):
    """Cut anywhere, the file goes on and reads well; a changed line is a finding."""
    key = SigningKey.make()
    path = tmp_path / "witness.log"
    notes = [key.sign_checkpoint("baseload/nordic/1", i, ROOT, i, i - 1).note for i in (1, 2, 3)]
    witness = Witness(path, every_s=0.0)
    witness.see(notes[0])
    witness.see(notes[1])
    witness.close()
    whole = path.read_bytes()
    first = whole.index(b"\n") + 1
    for cut in range(first, len(whole), 7):
        path.write_bytes(whole[:cut])
        witness = Witness(path, every_s=0.0)
        witness.see(notes[2])
        witness.close()
        verdict = Verdict("witness")
        assert [stated.size for stated in read_witness(path.read_bytes(), verdict)] == [1, 3]
        assert verdict.whole and len(verdict.remarks) == (cut > first)
    verdict = Verdict("witness")
    list(read_witness(whole.replace(b"time_ns 2", b"time_ns x"), verdict))
    assert not verdict.whole


def test_the_witness_needs_a_folder(tmp_path: Path):
    """Where it cannot be opened, one line says so."""
    with pytest.raises(LedgerError, match="cannot be opened"):
        Witness(tmp_path / "nowhere" / "witness.log")
    assert os.listdir(tmp_path) == []


def test_openssl_verifies_a_checkpoint(tmp_path: Path):
    """The commands of docs/ledger.md, with nothing of ours, say that the signature is good, and that another is not."""
    key = SigningKey.make()
    note = key.sign_checkpoint("baseload/nordic/1", 12, ROOT, 1_790_000_000_000_000_000, 9).note
    page = (Path(__file__).parents[2] / "docs" / "ledger.md").read_text("utf-8")
    script = page.split("> note\n", 1)[1].split("```", 1)[0]
    for text, status in ((note, 0), (note.replace("\n12\n", "\n13\n"), 1)):
        (tmp_path / "note").write_text(text, "utf-8")
        done = subprocess.run(
            ["bash", "-c", script], cwd=tmp_path, env={**os.environ, "LINE": key.public_line, "LC_ALL": "C.UTF-8"},
            capture_output=True, text=True, check=False, timeout=20,
        )  # fmt: skip
        assert done.returncode == status, done.stderr + done.stdout


def test_a_witness_file_that_is_none_of_ours_is_said(tmp_path: Path):
    """Garbage at the end of a witness file is told at the next opening; a torn line, a note or an empty file is not."""
    path = tmp_path / "witness.log"
    for content, fine in (
        (b"", True), (b'{"note":"a"}\n', True), (b'{"note":"a"}\n{"no', True), (b"\x00\xffgarbage\n", False),
        (b"[1]\n", False),
    ):  # fmt: skip
        path.write_bytes(content)
        witness = Witness(path)
        witness.close()
        assert (witness.doubt == "") is fine, content
        assert fine or str(path) in witness.doubt
