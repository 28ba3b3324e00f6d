"""The ledger when the machine fails it: writes that fail or are cut short, kill -9, full disks, torn files, long readers."""

from __future__ import annotations

import errno
import os
import shutil
import signal
import sqlite3
import subprocess
import sys
import threading
import time
from contextlib import closing
from pathlib import Path

import pytest

from baseload.adapters.ledger_sqlite import SqliteLedger, restore
from baseload.adapters.signing import SigningKey, Witness
from baseload.errors import LedgerError, LedgerUnavailable
from baseload.ports import RowIn
from baseload.report import verify, verify_notes
from baseload.serve.rows import LeaseRow, SettleRow, row_in

AT_NS = 1_790_000_000 * 10**9
HERE = Path(__file__).parent
KEY_SECRET = bytes(range(32))


def batch(i: int) -> list[RowIn]:
    """Return the i-th batch of a run: a lease of two ids, and one of them settled; the same on every run."""
    first = 1 + 2 * i
    return [
        row_in(LeaseRow(request_id=first, at_ns=AT_NS, n_ids=2, tenant="t-1", key="k-1")),
        row_in(SettleRow(request_id=first, at_ns=AT_NS, tenant="t-1", key="k-1", price_nano=i, why="x" * 300)),
    ]


def is_prefix(path: Path, key: SigningKey, *, at_least: int = 0) -> int:
    """Return how many batches a ledger holds; each is whole, unchanged, and in order, and the file verifies."""
    verdict = verify.verify_ledger(path, key=verify_notes.read_key(key.public_line))
    assert verdict.whole, verdict.lines()
    with SqliteLedger.read(path) as ledger:
        rows = [(row.kind, row.request_id, row.body) for row in ledger.rows()][1:]
    n = len(rows) // 2
    assert rows == [row[:3] for i in range(n) for row in batch(i)]
    assert n >= at_least, f"{n} batches found, {at_least} were acknowledged"
    return n


# ---- the N-th call of the system fails -------------------------------------------------------------------

SHIM = r"""
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <signal.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>
#include <sys/types.h>
#include <sys/stat.h>
#include <fcntl.h>
#include <stdio.h>
/* Fails, cuts short or kills at the FAIL_AT-th write, fsync, truncate or rename on a file called ledger…. */
static long count, fail_at = -1; static const char *how; static int sticky, busy;
static void setup(void) {
    if (fail_at >= 0) return;
    const char *at = getenv("FAIL_AT"); fail_at = at ? atol(at) : 0;
    how = getenv("FAIL_HOW"); sticky = getenv("FAIL_STICKY") != NULL;
}
static int ours(int fd) {
    char link[64], name[4096]; snprintf(link, sizeof link, "/proc/self/fd/%d", fd);
    ssize_t n = readlink(link, name, sizeof name - 1); if (n < 0) return 0; name[n] = 0;
    return strstr(name, "/ledger") != NULL;
}
static void copy(const char *a, const char *b) {
    char block[65536]; ssize_t n; int from = open(a, O_RDONLY), to = open(b, O_WRONLY | O_CREAT | O_TRUNC, 0600);
    while (from >= 0 && to >= 0 && (n = read(from, block, sizeof block)) > 0) if (write(to, block, n) != n) abort();
    if (from >= 0) close(from);
    if (to >= 0) close(to);
}
/* After a sync, what the disk holds is kept beside the file; when the power fails, files go back to that. */
static void synced(int fd) {
    char link[64], name[4000], kept[4096]; snprintf(link, sizeof link, "/proc/self/fd/%d", fd);
    ssize_t n = readlink(link, name, sizeof name - 1); if (n < 0 || busy) return; name[n] = 0;
    setup(); if (!how || strcmp(how, "power")) return;
    struct stat about; if (fstat(fd, &about) || !S_ISREG(about.st_mode)) return;
    snprintf(kept, sizeof kept, "%s.synced", name); busy = 1; copy(name, kept); busy = 0;
}
static void power_failure(void) {
    const char *ends[] = {"", "-wal", "-journal"}; char name[4000], kept[4096]; busy = 1;
    for (int i = 0; i < 3; i++) {
        snprintf(name, sizeof name, "%s/ledger.db%s", getenv("FAIL_FOLDER"), ends[i]);
        snprintf(kept, sizeof kept, "%s.synced", name);
        if (access(name, F_OK)) continue;
        if (access(kept, F_OK)) { if (truncate(name, 0)) abort(); } else copy(kept, name);
    }
    kill(getpid(), SIGKILL);
}
static int now(void) {
    setup(); if (!fail_at || busy) return 0;
    count++;
    const char *mark = count == fail_at ? getenv("FAIL_MARK") : NULL;
    if (mark) { FILE *f = fopen(mark, "w"); if (f) fclose(f); }
    int hit = sticky ? count >= fail_at : count == fail_at;
    if (hit && !strcmp(how, "kill")) kill(getpid(), SIGKILL);
    if (hit && !strcmp(how, "power")) power_failure();
    return hit;
}
static int error(void) { return !strcmp(how, "full") ? ENOSPC : EIO; }
ssize_t pwrite64(int fd, const void *b, size_t n, off64_t at) {
    static ssize_t (*real)(int, const void *, size_t, off64_t);
    if (!real) real = dlsym(RTLD_NEXT, "pwrite64");
    if (ours(fd) && now()) { if (n > 1) real(fd, b, n / 2, at); errno = error(); return -1; }  /* torn */
    return real(fd, b, n, at);
}
ssize_t pwrite(int fd, const void *b, size_t n, off_t at) { return pwrite64(fd, b, n, at); }
ssize_t write(int fd, const void *b, size_t n) {
    static ssize_t (*real)(int, const void *, size_t);
    if (!real) real = dlsym(RTLD_NEXT, "write");
    if (ours(fd) && now()) { if (n > 1) real(fd, b, n / 2); errno = error(); return -1; }
    return real(fd, b, n);
}
int fsync(int fd) {
    static int (*real)(int); if (!real) real = dlsym(RTLD_NEXT, "fsync");
    if (ours(fd) && now()) { errno = error(); return -1; }
    int done = real(fd); if (!done && ours(fd)) synced(fd);
    return done;
}
int fdatasync(int fd) {
    static int (*real)(int); if (!real) real = dlsym(RTLD_NEXT, "fdatasync");
    if (ours(fd) && now()) { errno = error(); return -1; }
    int done = real(fd); if (!done && ours(fd)) synced(fd);
    return done;
}
int ftruncate64(int fd, off64_t n) {
    static int (*real)(int, off64_t); if (!real) real = dlsym(RTLD_NEXT, "ftruncate64");
    if (ours(fd) && now()) { errno = error(); return -1; }
    return real(fd, n);
}
int ftruncate(int fd, off_t n) { return ftruncate64(fd, n); }
int rename(const char *a, const char *b) {
    static int (*real)(const char *, const char *); if (!real) real = dlsym(RTLD_NEXT, "rename");
    if (strstr(b, "/ledger") && now()) { errno = error(); return -1; }
    return real(a, b);
}
"""

CHILD = """
import sys
from pathlib import Path
from baseload.adapters import ledger_sqlite
from baseload.adapters.ledger_sqlite import SqliteLedger
from baseload.adapters.signing import SigningKey
from baseload.errors import BaseloadError
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from tests.whole.test_ledger_faults import KEY_SECRET, batch

folder, n = Path(sys.argv[1]), int(sys.argv[2])
ledger_sqlite.WAL_BYTES_MAX = 30_000  # so that the WAL moves into the file within the run
key = SigningKey(Ed25519PrivateKey.from_private_bytes(KEY_SECRET))
ledger, tries = None, 0
i = 0
while i < n and tries < 60:
    try:
        if ledger is None:
            ledger = SqliteLedger.open(folder / "ledger.db", key)
        ledger.append(batch(i))
        i += 1
        print(i, flush=True)
        if i == n - 2 and not (folder / "ledger-archive.db").exists():
            ledger.backup(folder / "ledger-archive.db")
    except BaseloadError as error:
        tries += 1
        print("failed:", error, file=sys.stderr, flush=True)
        if getattr(error, "fatal", False) or ledger is None:
            sys.exit(3)  # as the owner does: end, and be started again
if ledger is not None:
    ledger.close()
"""


@pytest.fixture(scope="module")
def shim(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A library that makes a chosen system call of a child process fail."""
    compiler = shutil.which("gcc") or shutil.which("cc")
    if not compiler:
        pytest.skip("no C compiler on PATH (gcc, cc): apt install gcc")
    folder = tmp_path_factory.mktemp("shim")
    (folder / "shim.c").write_text(SHIM)
    subprocess.run(
        [compiler, "-shared", "-fPIC", "-O1", "-w", "-o", folder / "shim.so", folder / "shim.c", "-ldl"],
        check=True,
        timeout=60,
    )
    return folder / "shim.so"


def child(folder: Path, n: int, **environment: str) -> tuple[int, int, str]:
    """Run a writer of `n` batches to its end; return its exit status, the last batch it acknowledged, and its complaints."""
    done = subprocess.run(
        [sys.executable, "-c", CHILD, folder, str(n)],
        capture_output=True, text=True, timeout=60, cwd=HERE.parent.parent, check=False,
        env={**os.environ, **environment},
    )  # fmt: skip
    acknowledged = int((done.stdout.split() or ["0"])[-1])
    return done.returncode, acknowledged, done.stderr


def the_key() -> SigningKey:
    """Return the key that the child signs with."""
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

    return SigningKey(Ed25519PrivateKey.from_private_bytes(KEY_SECRET))


CALLS_MAX = 800


def each_call(shim: Path, tmp_path: Path, how: str, step: int, n: int = 7) -> int:
    """Let the 1st, (1 + step)-th, … call fail until a run has none that fails; return how many calls were tried."""
    key = the_key()
    for tried, number in enumerate(range(1, CALLS_MAX, step)):
        folder = tmp_path / f"{how}-{number}"
        folder.mkdir()
        mark = folder / "hit"
        status, acknowledged, words = child(
            folder,
            n,
            LD_PRELOAD=str(shim),
            FAIL_AT=str(number),
            FAIL_HOW=how,
            FAIL_MARK=str(mark),
            FAIL_FOLDER=str(folder),
        )
        if not mark.exists():
            assert (status, acknowledged) == (0, n), words
            return tried
        assert status in (0, 3, -signal.SIGKILL), words
        if (folder / "ledger.db").exists() and acknowledged:
            is_prefix(folder / "ledger.db", key, at_least=acknowledged)
        status, acknowledged, words = child(folder, n)  # the next start takes up where it was
        assert (status, acknowledged) == (0, n), words
        assert is_prefix(folder / "ledger.db", key) == n
        if (folder / "ledger-archive.db").exists():  # a copy is whole, or not there
            is_prefix(folder / "ledger-archive.db", key, at_least=n - 2)
        shutil.rmtree(folder)
    raise AssertionError(f"more than {CALLS_MAX} calls")


@pytest.mark.slow
@pytest.mark.parametrize(("how", "step"), [("io", 29), ("full", 31), ("kill", 37), ("power", 23)])
def test_whichever_call_of_the_system_fails_the_ledger_recovers_to_a_prefix(
    shim: Path, tmp_path: Path, how: str, step: int
):
    """The N-th write, fsync or truncate fails, is torn, or is the last before a kill or power cut: what was told is there."""
    step = 1 if os.environ.get("BASELOAD_EVERY_FAULT") else step

    assert each_call(shim, tmp_path, how, step) >= 120 // step


def test_a_failed_fsync_is_fatal(shim: Path, tmp_path: Path):
    """After a failed fsync the process ends instead of trusting what the system says it wrote."""
    fatal = 0
    for number in range(75, 120):
        folder = tmp_path / str(number)
        folder.mkdir()
        status, _, words = child(folder, 4, LD_PRELOAD=str(shim), FAIL_AT=str(number), FAIL_HOW="io")
        if "fsync failed" in words:
            assert status == 3, words
            fatal += 1
            break

    assert fatal


# ---- inside the process ----------------------------------------------------------------------------------


def open_there(folder: Path, **options: object) -> SqliteLedger:
    """Open the ledger of a folder with the children's key."""
    return SqliteLedger.open(folder / "ledger.db", the_key(), **options)


def test_a_full_disk_stores_nothing_half_and_ends_by_itself(tmp_path: Path):
    """While there is no room, appends say so and reads go on; once there is, the same rows are stored, without a restart."""
    with open_there(tmp_path) as ledger:
        for i in range(20):
            ledger.append(batch(i))
        (pages,) = ledger._write().execute("PRAGMA page_count").fetchone()
        ledger._write().execute(f"PRAGMA max_page_count = {pages}")
        with pytest.raises(LedgerUnavailable, match="cannot be used now"):
            ledger.append([row for i in range(20, 60) for row in batch(i)])

        assert len(list(ledger.rows())) == 41 == ledger.size()  # the connection was made anew: there is room again
        ledger.append([row for i in range(20, 60) for row in batch(i)])
    assert is_prefix(tmp_path / "ledger.db", the_key()) == 60


def test_a_folder_that_cannot_be_written_is_said_to(tmp_path: Path):
    """Where the ledger's folder is missing, or the file is something else, one line says so."""
    with pytest.raises(LedgerUnavailable, match="cannot be made"):
        SqliteLedger.open(tmp_path / "nowhere" / "ledger.db", the_key())
    (tmp_path / "notes.db").write_text("not a database, but long enough to be looked at " * 100)
    with pytest.raises(LedgerError, match="not a whole ledger"):
        SqliteLedger.open(tmp_path / "notes.db", the_key())
    with closing(sqlite3.connect(tmp_path / "other.db")) as other:
        other.execute("CREATE TABLE t (x)")
    with pytest.raises(LedgerError, match="not a ledger"):
        SqliteLedger.open(tmp_path / "other.db", the_key())
    with pytest.raises(LedgerError, match="no such ledger"):
        SqliteLedger.read(tmp_path / "absent.db")


def test_a_ledger_whose_rows_do_not_match_its_checkpoint_is_not_appended_to(tmp_path: Path):
    """Opening looks at the right edge of the tree: a ledger that was cut or changed there is not continued."""
    with open_there(tmp_path) as ledger:
        for i in range(3):
            ledger.append(batch(i))
    with closing(sqlite3.connect(tmp_path / "ledger.db")) as db:
        db.execute("DROP TRIGGER rows_stay")
        db.execute("DELETE FROM rows WHERE seq = 6")
        db.commit()
    with pytest.raises(LedgerError, match="do not match its last checkpoint"):
        open_there(tmp_path)


def test_the_tables_refuse_to_be_changed(tmp_path: Path):
    """An accident with the file open cannot change, remove or slip in a row, a hash or a checkpoint."""
    with open_there(tmp_path) as ledger:
        for i in range(40):
            ledger.append(batch(i))
    with closing(sqlite3.connect(tmp_path / "ledger.db")) as db:
        for statement in (
            "UPDATE rows SET body = x'00' WHERE seq = 1",
            "DELETE FROM rows WHERE seq = 1",
            "INSERT INTO rows SELECT seq + 1000, kind, 0, leaf, body FROM rows WHERE seq = 1",
            "INSERT OR REPLACE INTO rows SELECT seq, kind, request_id, leaf, x'00' FROM rows WHERE seq = 1",
            "UPDATE nodes SET hash = x'00'",
            "DELETE FROM nodes",
            "UPDATE checkpoints SET note = ''",
            "DELETE FROM checkpoints",
        ):
            with pytest.raises(sqlite3.IntegrityError, match="append-only|only grows"):
                db.execute(statement)


@pytest.mark.slow
def test_a_file_cut_anywhere_near_its_end_recovers_to_a_prefix(tmp_path: Path):
    """The WAL is cut at every 16th byte of its last 4 KiB (every byte with BASELOAD_EVERY_FAULT=1), or garbled there."""
    key, n = the_key(), 6
    ledger = open_there(tmp_path)
    for i in range(n):
        ledger.append(batch(i))
    whole = {name: (tmp_path / f"ledger.db{name}").read_bytes() for name in ("", "-wal")}
    ledger.close()
    wal = whole["-wal"]
    assert len(wal) > 8192
    found = set()
    for cut in range(1, 4097, 1 if os.environ.get("BASELOAD_EVERY_FAULT") else 64):
        for garble in (False, True):
            folder = tmp_path / "cut"
            folder.mkdir()
            (folder / "ledger.db").write_bytes(whole[""])
            place = len(wal) - cut
            torn = wal[:place] + (bytes([wal[place] ^ 0x5A]) + wal[place + 1 :] if garble else b"")
            (folder / "ledger.db-wal").write_bytes(torn)
            with open_there(folder) as again:
                again.append(batch((again.size() - 1) // 2))
            found.add(is_prefix(folder / "ledger.db", key))
            shutil.rmtree(folder)

    assert found <= {n, n + 1} and n in found


def test_kill_9_in_the_midst_of_appends_loses_nothing_that_was_acknowledged(tmp_path: Path):
    """Six writers in a row are killed at some moment; each next one goes on where the last had been heard of."""
    key, acknowledged = the_key(), 0
    for turn in range(6):
        writer = subprocess.Popen(
            [sys.executable, "-c", CHILD, tmp_path, "100000"], stdout=subprocess.PIPE, text=True, cwd=HERE.parent.parent
        )
        assert writer.stdout is not None
        heard = 0
        with writer.stdout:
            for line in writer.stdout:
                heard = int(line)
                if heard >= acknowledged + 20 + turn:
                    writer.kill()
                    break
            heard = max([heard, *(int(line) for line in writer.stdout if line.endswith("\n"))])
        assert writer.wait(timeout=30) == -signal.SIGKILL
        acknowledged = is_prefix(tmp_path / "ledger.db", key, at_least=heard)
    assert acknowledged >= 120


def test_readers_never_find_the_database_locked(tmp_path: Path):
    """Four readers, one of them holding a long look, and a copy being made disturb neither each other nor the writer."""
    stop, trouble = threading.Event(), []
    slowest_s = 0.0
    with open_there(tmp_path) as ledger:
        ledger.append(batch(0))
        holder = sqlite3.connect(f"file:{tmp_path}/ledger.db?mode=ro", uri=True, isolation_level=None)
        holder.execute("BEGIN")
        (held,) = holder.execute("SELECT count(*) FROM rows").fetchone()

        def look(turn: int) -> None:
            try:
                while not stop.is_set():
                    with SqliteLedger.read(tmp_path / "ledger.db") as reader:
                        rows = list(reader.rows())
                        assert rows[-1].seq == len(rows) - 1
                    ledger.receipt(1)
                    if turn == 0:
                        ledger.backup(tmp_path / f"copy-{time.monotonic_ns()}.db")
            except BaseException as error:
                trouble.append(error)

        threads = [threading.Thread(target=look, args=(turn,)) for turn in range(3)]
        for thread in threads:
            thread.start()
        for i in range(1, 120):
            start_s = time.monotonic()
            ledger.append(batch(i))
            slowest_s = max(slowest_s, time.monotonic() - start_s)
        stop.set()
        for thread in threads:
            thread.join()
        assert holder.execute("SELECT count(*) FROM rows").fetchone() == (held,)
        holder.close()
    assert not trouble, trouble
    assert slowest_s < 2.0
    assert is_prefix(tmp_path / "ledger.db", the_key()) == 120


def test_a_backup_opens_and_a_restored_ledger_does_not_pretend(tmp_path: Path):
    """A backup is whole; restored, a new log begins that links to it, gives out no id twice, and says that it was restored."""
    witness = tmp_path / "witness.log"
    with open_there(tmp_path, witness=Witness(witness, every_s=0.0)) as ledger:
        ledger.append(batch(0))
        ledger.backup(tmp_path / "backup.db")
        ledger.append(batch(1))
        with pytest.raises(LedgerError, match="exists already"):
            ledger.backup(tmp_path / "backup.db")
    with pytest.raises(LedgerError, match="exists already"):
        restore(tmp_path / "backup.db", tmp_path / "ledger.db", the_key())
    (tmp_path / "ledger.db").unlink()
    restore(tmp_path / "backup.db", tmp_path / "ledger.db", the_key(), witness=Witness(witness, every_s=0.0))
    with open_there(tmp_path, witness=Witness(witness, every_s=0.0)) as ledger:
        assert ledger.next_request_id() >= 2**32
        assert ledger.open_leases()[0].open_ids == [(2, 2)]
        assert b"restored from a backup" in next(ledger.rows()).body
        first = ledger.next_request_id()
        ledger.append([row_in(LeaseRow(request_id=first, at_ns=AT_NS, n_ids=1)), batch(1)[1]][:1])

    key = verify_notes.read_key(the_key().public_line)
    verdict = verify.verify_ledger(tmp_path / "ledger.db", key=key, witness=witness, previous=tmp_path / "backup.db")
    assert verdict.whole, verdict.lines()
    lost = verify.verify_ledger(tmp_path / "backup.db", key=key, witness=witness)
    assert "cut off" in str(lost.first)


def test_the_witness_being_away_does_not_stop_the_ledger(tmp_path: Path):
    """Rows are stored though the witness file cannot be written; the ledger says why, and writes what waits later."""
    witness = Witness(tmp_path / "witness.log", every_s=0.0)
    with open_there(tmp_path, witness=witness) as ledger:
        real, witness._fd = witness._fd, os.open("/dev/full", os.O_RDWR)
        ledger.append(batch(0))
        assert os.strerror(errno.ENOSPC) in ledger.witness_error or ledger.witness_error
        os.close(witness._fd)
        witness._fd = real
        ledger.flush()
        assert not ledger.witness_error
    verdict = verify.verify_ledger(tmp_path / "ledger.db", witness=tmp_path / "witness.log")
    assert verdict.whole, verdict.lines()


def test_a_running_ledger_is_verified_without_a_false_alarm(tmp_path: Path):
    """The verifier may look at ledger and witness at any moment while rows are appended, and finds them whole."""
    stop = threading.Event()
    witness = tmp_path / "witness.log"
    with open_there(tmp_path, witness=Witness(witness, every_s=0.0)) as ledger:

        def write() -> None:
            i = 0
            while not stop.is_set():
                ledger.append(batch(i))
                i += 1

        thread = threading.Thread(target=write)
        thread.start()
        verdicts, until_s = [], time.monotonic() + 60.0
        while len(verdicts) < 12 or (verdicts[0].n_rows >= verdicts[-1].n_rows and time.monotonic() < until_s):
            verdicts.append(verify.verify_ledger(tmp_path / "ledger.db", witness=witness))
        stop.set()
        thread.join()

    assert all(verdict.whole for verdict in verdicts), [verdict.lines() for verdict in verdicts if not verdict.whole]
    assert verdicts[0].n_rows < verdicts[-1].n_rows
