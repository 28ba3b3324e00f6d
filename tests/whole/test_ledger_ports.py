"""One suite for every ledger: SQLite and PostgreSQL keep the same promises, and their exports verify alike."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Callable, Iterator
from itertools import count
from pathlib import Path

import pytest

from baseload.adapters import merkle
from baseload.adapters.ledger_core import rotate_signing_key
from baseload.adapters.ledger_sqlite import SqliteLedger
from baseload.adapters.signing import SigningKey, Witness, prepare_successor, put_successor, signed_by
from baseload.errors import LedgerError, LedgerUnavailable
from baseload.ports import Ledger, RowIn, SettledIn
from baseload.report import verify, verify_notes
from baseload.serve.rows import (
    ControlRow,
    LeaseRow,
    ReconcileRow,
    SettleRow,
    VoidRow,
    decode,
    row_in,
    settled,
)
from baseload.serve.settled import batch_of
from tests.chaos import postgres

AT_NS = 1_790_000_000 * 10**9


# ---- both kinds, behind one way to open them -------------------------------------------------------------


@pytest.fixture(scope="session")
def cluster() -> Iterator[postgres.Cluster]:
    """A PostgreSQL of our own for the session, made when the first test asks."""
    why = postgres.missing()
    if why:
        pytest.skip(f"no PostgreSQL ({why}): apt install postgresql-15")
    folder = Path(tempfile.mkdtemp(prefix="ledger-pg-"))
    made = postgres.Cluster(folder)
    try:
        made.start()
        yield made
    finally:
        if (folder / "data" / "postmaster.pid").exists():
            made.stop()
        shutil.rmtree(folder, ignore_errors=True)


class Place:
    """Where a ledger of one kind lies, and how to open it there, again and again."""

    def __init__(self, kind: str, folder: Path, open_there: Callable[..., Ledger]) -> None:
        self.kind, self.folder, self._open = kind, folder, open_there
        self.key_path = folder / "signing.key"
        self.key = SigningKey.create(self.key_path)
        self._opened: list[Ledger] = []

    def open(self, **options: object) -> Ledger:
        """Open the ledger, made where there is none."""
        self._opened.append(self._open(options.pop("key", self.key), **options))
        return self._opened[-1]

    def close_all(self) -> None:
        """Close what a test left open."""
        for ledger in self._opened:
            ledger.close()

    def verdict(self, ledger: Ledger, witness: Path | None = None) -> verify.Verdict:
        """Return what the offline verifier says of the ledger's export."""
        path = self.folder / f"export-{len(list(self.folder.glob('export-*')))}.db"
        ledger.export(path)
        return verify.verify_ledger(path, key=verify_notes.read_key(self.key.public_line), witness=witness)


SCHEMAS = count()


@pytest.fixture(params=["sqlite", "postgres"])
def place(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Place]:
    """A place for one ledger, of each kind in turn."""
    if request.param == "sqlite":
        made = Place(
            "sqlite", tmp_path, lambda key, **options: SqliteLedger.open(tmp_path / "ledger.db", key, **options)
        )
    else:
        cluster = request.getfixturevalue("cluster")
        pytest.importorskip("asyncpg", reason="asyncpg is not installed: pip install 'baseload[postgres]'")
        from baseload.adapters.ledger_postgres import PostgresLedger

        schema = f"ledger_{next(SCHEMAS)}"
        made = Place(
            "postgres",
            tmp_path,
            lambda key, **options: PostgresLedger.open(cluster.url, key, schema=schema, **options),
        )
    yield made
    made.close_all()


def lease(first: int, n_ids: int = 10, **fields: object) -> RowIn:
    """Return a lease row."""
    facts = {"worker": 1, "tenant": "t-1", "key": "k-1", "money_nano": 10**6} | fields
    return row_in(LeaseRow(request_id=first, at_ns=AT_NS, n_ids=n_ids, **facts))


def settle(request_id: int, price_nano: int = 7, **fields: object) -> RowIn:
    """Return a settle row."""
    facts = {"at_ns": AT_NS, "tenant": "t-1", "key": "k-1", "input_tokens": 11, "output_tokens": 3} | fields
    row = SettleRow(request_id=request_id, price_nano=price_nano, **facts)
    return row_in(row)._replace(said=row if request_id % 2 else None)  # as the owner hands it in, and as others do


def at_once(*request_ids: int, lease_of: Callable[[int], int] = lambda request_id: 1) -> SettledIn:
    """Return settle rows handed in at once, as the owner does."""
    rows = [decode(settle(request_id).body) for request_id in request_ids]
    batch = batch_of([row for row in rows if isinstance(row, SettleRow)], AT_NS)
    closes: dict[int, int] = {}
    for request_id in request_ids:
        first = lease_of(request_id)
        closes[first] = closes.get(first, 0) | 1 << (request_id - first)
    sums = [(AT_NS, alike.whose.tenant, alike.whose.key, alike.sums) for alike in batch.alike]
    return SettledIn(batch.ids, batch.bodies, closes, sums)


def void(first: int) -> RowIn:
    """Return a void row."""
    return row_in(VoidRow(request_id=first, at_ns=AT_NS))


# ---- storing ---------------------------------------------------------------------------------------------


def test_rows_come_back_as_they_were_written_in_order(place: Place):
    """A ledger returns the bytes it was given, numbered from its own first row, over as many openings as there are."""
    rows = [lease(1), settle(1), settle(3), row_in(ReconcileRow(at_ns=AT_NS, site="oslo", start_ns=0, end_ns=1,
                                                               metered_mj=10, requests_mj=6, idle_mj=4)), void(1)]  # fmt: skip
    ledger = place.open()
    assert ledger.append(rows[:2]) == 3
    ledger.close()
    ledger = place.open()
    assert ledger.append(rows[2:]) == 6 == ledger.size()

    found = list(ledger.rows())
    assert [row.seq for row in found] == list(range(6))
    assert [(row.kind, row.request_id, row.body) for row in found[1:]] == [row[:3] for row in rows]
    assert all(row.leaf == merkle.leaf_hash(row.body) for row in found)
    assert decode(found[0].body).kind == "rotate"
    assert [row.price_nano for row in settled(row.body for row in found)] == [7, 7]
    assert [row.request_id for row in ledger.latest(1)] == [3]
    assert ledger.find(3) == found[3] and ledger.find(2) is None
    assert place.verdict(ledger).whole


def test_a_row_handed_in_again_is_stored_once(place: Place):
    """Leases, settlements and voids are idempotent by request id, in one batch, in later ones, and after a restart."""
    rows = [lease(1, 3), settle(1), settle(2), void(1)]
    ledger = place.open()
    size = ledger.append([*rows, settle(2, price_nano=99), lease(1, 3)])
    assert size == 5 == ledger.append(rows)
    assert ledger.append([settle(3)]) == 5  # voided: closed once
    ledger.close()
    ledger = place.open()

    assert ledger.append(rows) == 5
    assert ledger.totals()[0].price_nano == 14
    assert place.verdict(ledger).whole


@pytest.mark.parametrize(
    "wrong",
    [
        [settle(77)],
        [lease(5, 3)],
        [void(2)],
        [RowIn("settle", 1, settle(2).body)],
        [RowIn("lease", 2, settle(2).body)],
        [RowIn("control", 4, row_in(ControlRow(at_ns=1, action="x")).body)],
    ],
    ids=["never leased", "ids given out before", "void of no lease", "other id", "other kind", "id where none belongs"],
)
def test_what_no_honest_caller_hands_in_is_refused_whole(place: Place, wrong: list[RowIn]):
    """A batch with a row that cannot be right stores nothing at all."""
    ledger = place.open()
    ledger.append([lease(1), lease(11)])
    with pytest.raises(ValueError):
        ledger.append([settle(1), *wrong])

    assert ledger.size() == 3
    assert ledger.append([settle(1)]) == 4
    assert place.verdict(ledger).whole


def test_open_leases_tell_what_recovery_has_to_close(place: Place):
    """After a restart the ledger knows which leased ids are open, for whom, and with how much money."""
    ledger = place.open()
    ledger.append([lease(1, 10), lease(11, 5, worker=2, money_nano=5), settle(2), settle(5), settle(6), lease(40, 0)])
    ledger.append([void(11)])
    ledger.close()
    ledger = place.open()
    (found,) = ledger.open_leases()

    assert (found.lease_id, found.worker, found.tenant, found.key, found.money_nano) == (1, 1, "t-1", "k-1", 10**6)
    assert found.open_ids == [(1, 1), (3, 4), (7, 10)]
    assert ledger.next_request_id() == 41
    assert place.verdict(ledger).whole


def test_totals_are_the_sums_of_the_settled_rows(place: Place):
    """Sums by month, tenant and key are those of the rows, month by UTC."""
    ledger = place.open()
    november_ns = 1_793_577_599 * 10**9  # 2026-11-01 23:59:59 less a day and a second: October's end is 1793491199
    ledger.append([lease(1), settle(1), settle(2, key="k-2", price_nano=5), settle(3, at_ns=november_ns, energy_mj=4)])
    ledger.append([settle(4, cost_nano=2, carbon_ug=9, cached_tokens=1)])

    sums = {(t.month, t.key): (t.requests, t.input_tokens, t.output_tokens, t.price_nano) for t in ledger.totals()}
    assert sums == {
        ("2026-09", "k-1"): (2, 22, 6, 14),
        ("2026-09", "k-2"): (1, 11, 3, 5),
        ("2026-11", "k-1"): (1, 11, 3, 7),
    }
    (november,) = ledger.totals("2026-11")
    assert (november.energy_mj, november.tenant) == (4, "t-1")
    assert place.verdict(ledger).whole


def test_rows_handed_in_at_once_are_stored_as_rows_one_by_one_are(place: Place):
    """Each closes its id once, whatever was stored before; leases, sums and hashes are those of single rows."""
    ledger = place.open()
    of_two = at_once(*range(2, 9), 12, lease_of=lambda request_id: 11 if request_id > 10 else 1)
    ledger.append([lease(1), at_once(1), lease(11, 3), of_two, settle(11)])
    ledger.append([at_once(8, 9)])  # one of them again
    ledger.append([of_two, settle(9), at_once(10)])
    ledger.append([at_once(13, lease_of=lambda request_id: 11), at_once(10)])
    for wrong in (at_once(14), at_once(13, 14), at_once(400)):
        with pytest.raises(ValueError, match="no lease covers"):
            ledger.append([wrong])

    assert ledger.ignored == 11 and ledger.open_leases() == []
    stored = [(row.request_id, row.body) for row in ledger.rows() if row.kind == "settle"]
    assert sorted(stored) == [(i, settle(i).body) for i in range(1, 14)]
    assert [(t.requests, t.price_nano) for t in ledger.totals()] == [(13, 91)]
    assert place.verdict(ledger).whole


# ---- proving ---------------------------------------------------------------------------------------------


def test_every_commit_is_signed_and_every_row_proven(place: Place):
    """Each batch ends in a checkpoint of the right key; each row is proven to be in it, each tree to grow from the last."""
    ledger = place.open()
    seen = [ledger.checkpoint()]
    for turn in range(9):
        first = ledger.next_request_id()
        ledger.append([lease(first, 30), *[settle(first + i) for i in range(turn * 3)]])
        seen.append(ledger.checkpoint())
    last = seen[-1]
    rows = list(ledger.rows())

    assert last.size == len(rows) == 118
    assert all(signed_by(point.note, place.key.public_line) for point in seen)
    for row in rows[::7]:
        assert merkle.included(row.leaf, row.seq, last.size, ledger.proof(row.seq, last.size), last.root)
    for old in seen:
        proof = ledger.consistency(old.size, last.size)
        assert merkle.consistent(old.size, old.root, last.size, last.root, proof)
    with pytest.raises(ValueError):
        ledger.proof(118, 118)


def test_a_receipt_is_verified_without_the_ledger(place: Place):
    """A settled request's receipt holds all that is needed; a request that is not settled has none."""
    ledger = place.open()
    ledger.append([lease(1), settle(1), settle(2)])
    blob = ledger.receipt(2)
    assert blob is not None and ledger.receipt(3) is None
    export = place.folder / "export.db"
    ledger.export(export)

    verdict = verify.verify_receipt(blob, key=verify_notes.read_key(place.key.public_line), ledger=export)
    assert verdict.whole, verdict.lines()
    assert not verify.verify_receipt(blob.replace(b'price_nano\\":7', b'price_nano\\":6')).whole
    assert not verify.verify_receipt(blob, key=verify_notes.read_key(SigningKey.make().public_line)).whole


def test_the_ledgers_time_never_runs_backwards(place: Place):
    """When the clock jumps back an hour, checkpoints keep the last time until the clock has caught up."""
    times = iter([100, 100, 200, 50, 60, 300, 300, 300])
    ledger = place.open(clock_ns=lambda: AT_NS + next(times, 300))
    seen = [ledger.checkpoint().time_ns]
    for i in range(5):
        ledger.append([lease(1 + i, 1)])
        seen.append(ledger.checkpoint().time_ns)

    assert seen == sorted(seen)
    assert place.verdict(ledger).whole


# ---- keys, rotation, witness -----------------------------------------------------------------------------


def test_the_key_changes_and_the_old_one_vouches_for_the_new(place: Place):
    """A change of key is a row, signed by both keys, and survives a crash before the new key's file was in place."""
    ledger = place.open()
    ledger.append([lease(1), settle(1)])
    ledger.change_key(prepare_successor(place.key_path))
    ledger.append([settle(2)])
    ledger.close()
    ledger = place.open(key=SigningKey.load(place.key_path))  # still the old key's file, the new one beside it
    ledger.append([settle(3)])
    put_successor(place.key_path)
    ledger.close()
    ledger = place.open(key=SigningKey.load(place.key_path))

    assert ledger.append([settle(4)]) == 7
    third = rotate_signing_key(ledger, place.key_path, who="operator")
    assert ledger.append([settle(5)]) == 9
    assert ledger.checkpoint().key_id == third.key_id == SigningKey.load(place.key_path).key_id
    assert place.verdict(ledger).whole  # under the first key, which the customer holds
    ledger.close()
    with pytest.raises(LedgerError, match="bring the right one back"):
        place.open(key=SigningKey.make())


def test_a_rotated_ledger_goes_on_where_it_was(place: Place):
    """The rows move to an archive; the new log links to it and carries open leases, sums and ids; both verify."""
    witness = place.folder / "witness.log"
    ledger = place.open(witness=Witness(witness))
    ledger.append([lease(1, 5), settle(1), settle(2)])
    ledger.change_key(SigningKey.make())
    archive = place.folder / "ledger-1.db"
    ledger.rotate(archive)

    assert (ledger.size(), ledger.origin, ledger.next_request_id()) == (1, "baseload/ledger/2", 6)
    assert ledger.append([settle(2), settle(3, price_nano=1), lease(6, 2), lease(1, 5)]) == 3
    assert ledger.open_leases()[0].open_ids == [(4, 5)]
    assert ledger.totals()[0].price_nano == 15
    ledger.flush()
    key = verify_notes.read_key(place.key.public_line)
    export = place.folder / "export.db"
    ledger.export(export)
    for verdict in (
        verify.verify_ledger(archive, key=key, witness=witness),
        verify.verify_ledger(export, key=key, witness=witness, previous=archive),
    ):
        assert verdict.whole, verdict.lines()
    with pytest.raises(LedgerError, match="exists already"):
        ledger.rotate(archive)


def test_a_rotation_that_a_crash_cut_short_is_finished_at_the_next_opening(place: Place):
    """A ledger found sealed has its rows moved to the archive it was sealed for, then goes on."""
    ledger = place.open()
    ledger.append([lease(1, 5), settle(1)])
    archive = place.folder / "old.db"
    with ledger._lock:  # what rotate() does first
        ledger._seal(str(archive), "")
    with pytest.raises(LedgerUnavailable, match="sealed"):
        ledger.append([settle(2)])
    ledger.close()
    ledger = place.open()

    assert archive.exists() and ledger.size() == 1
    assert ledger.append([settle(2)]) == 2
    assert place.verdict(ledger).whole


def test_the_witness_catches_an_older_copy(place: Place):
    """A ledger that was cut back to an honest earlier state verifies by itself, and not against the witness."""
    witness = place.folder / "witness.log"
    ledger = place.open(witness=Witness(witness, every_s=0.0))
    ledger.append([lease(1), settle(1)])
    early = place.folder / "early.db"
    ledger.export(early)
    ledger.append([settle(2)])

    assert place.verdict(ledger, witness).whole
    assert verify.verify_ledger(early).whole
    verdict = verify.verify_ledger(early, witness=witness)
    assert verdict.first is not None and verdict.first.seq == 3 and "cut off" in verdict.first.what


def test_two_writers_do_not_lose_each_others_rows(place: Place):
    """A second process that appends is noticed; both logs are one, and it verifies."""
    one, other = place.open(), place.open()
    one.append([lease(1, 5)])
    other.append([lease(one.next_request_id(), 5), settle(1)])
    with pytest.raises(ValueError):
        one.append([settle(99)])
    one.append([settle(1), settle(2)])
    other.append([settle(2), settle(3)])

    assert one.append([settle(4)]) == 7
    assert [row.request_id for row in one.rows() if row.kind == "settle"] == [1, 2, 3, 4]
    assert place.verdict(one).whole


def test_a_closed_ledger_refuses_and_says_so(place: Place):
    """After close, nothing is stored, and nothing hangs."""
    ledger = place.open()
    ledger.close()

    with pytest.raises(LedgerUnavailable):
        ledger.append([lease(1)])
    with pytest.raises(LedgerUnavailable):
        ledger.size()


# ---- PostgreSQL alone ------------------------------------------------------------------------------------


@pytest.mark.slow
def test_a_database_that_is_restarted_loses_and_doubles_nothing(cluster: postgres.Cluster, tmp_path: Path):
    """Through three immediate restarts in the midst of appends, each row is stored once, and again within five seconds."""
    import threading
    import time

    from baseload.adapters.ledger_postgres import PostgresLedger

    key = SigningKey.make()
    back_s: list[float] = []  # when the database took connections again
    recovered_s: list[float] = []  # how long after that a row was stored
    stop = threading.Event()

    def restarts() -> None:
        for i in range(3):
            cluster.restart("immediate")
            back_s.append(time.monotonic())
            while len(recovered_s) <= i and time.monotonic() < back_s[-1] + 20.0:
                time.sleep(0.02)
        stop.set()

    with PostgresLedger.open(cluster.url, key, schema="restarted", retry_s=20.0) as ledger:
        thread = threading.Thread(target=restarts)
        thread.start()
        written = 0
        while not stop.is_set() or written < 200:
            first = ledger.next_request_id()
            control = row_in(ControlRow(at_ns=AT_NS, action="tick", note=str(first)))
            ledger.append([lease(first, 3), settle(first), settle(first + 1), void(first), control])
            if len(recovered_s) < len(back_s):
                recovered_s.append(time.monotonic() - back_s[-1])
            written += 1
        thread.join()
        rows = list(ledger.rows())
        ledger.export(tmp_path / "export.db")

    assert len(rows) == 1 + 5 * written
    assert len([row for row in rows if row.kind == "control"]) == written
    verdict = verify.verify_ledger(tmp_path / "export.db", key=verify_notes.read_key(key.public_line))
    assert verdict.whole, verdict.lines()
    assert len(recovered_s) == 3 and max(recovered_s) < 5.0, recovered_s


def test_a_database_that_stays_away_is_said_to(tmp_path: Path):
    """Where no database answers, opening and storing fail with a word about it, soon."""
    pytest.importorskip("asyncpg", reason="asyncpg is not installed: pip install 'baseload[postgres]'")
    from baseload.adapters.ledger_postgres import PostgresLedger

    with pytest.raises(LedgerUnavailable, match="does not answer"):
        PostgresLedger.open(f"postgresql://postgres@/postgres?host={tmp_path}", SigningKey.make(), retry_s=0.1)
