"""The board: what one process writes another reads; anything else in its place is refused."""

from __future__ import annotations

import multiprocessing
from pathlib import Path

import pytest

from baseload.serve.board import COUNTERS, Board, size_bytes


def _count(path: Path, w: int, n: int) -> None:
    board = Board.open(path)
    for i in range(n):
        board.outstanding[w][w] = i + 1
        board.count(w, "sent")
    board.close()


def test_processes_write_side_by_side_and_nothing_is_lost(tmp_path: Path) -> None:
    """Three workers write their own rows at full speed; the owner reads the exact sums."""
    path = tmp_path / "board"
    board = Board.create(path, 5, 2, 3)
    context = multiprocessing.get_context("spawn")
    workers = [context.Process(target=_count, args=(path, w, 5000)) for w in range(3)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
        assert worker.exitcode == 0
    assert board.totals("outstanding") == [5000, 5000, 5000, 0, 0]
    assert board.counted()["sent"] == 15_000
    board.clear_worker(1)
    assert board.totals("outstanding") == [5000, 0, 5000, 0, 0]
    board.check()
    board.close()


@pytest.mark.parametrize(("replicas", "sites", "workers"), [(1, 1, 1), (8, 3, 2), (9, 1, 5), (1000, 40, 16)])
def test_no_two_cells_share_a_place(tmp_path: Path, replicas: int, sites: int, workers: int) -> None:
    """Each cell keeps the number that was written to it, whatever is written elsewhere, also after opening it anew."""
    board = Board.create(tmp_path / "board", replicas, sites, workers)
    columns = [
        *board.outstanding, *board.asked, *board.queued_tokens, *board.counters, board.gate, board.running, board.waiting,
        board.epoch, board.kv_free, board.cost_per_mtok, board.carbon_g_per_mtok, board.limit_kw, board.power_kw,
        board.carbon_g_per_kwh, board.price_per_kwh, board.dynamic_ratio, board.lowest_open,
    ]  # fmt: skip
    number = 0
    for column in columns:
        for i in range(len(column)):
            number += 1
            column[i] = number
    board.bump()
    again = Board.open(tmp_path / "board")
    number = 0
    for name in ("outstanding", "asked", "queued_tokens", "counters"):
        assert [len(row) for row in getattr(again, name)] == [
            len(COUNTERS) if name == "counters" else replicas
        ] * workers
    for column in columns:
        for value in column.tolist():
            number += 1
            assert value == number
    assert again.version == 1 and again.gate.tolist() == board.gate.tolist()
    assert (tmp_path / "board").stat().st_size == size_bytes(replicas, sites, workers)
    assert (tmp_path / "board").stat().st_mode & 0o777 == 0o600
    again.close()
    board.close()


@pytest.mark.parametrize("content", [b"", b"x" * 64, bytes(4096), b"\\xff" * 4096])
def test_what_is_no_board_is_refused_in_a_sentence(tmp_path: Path, content: bytes) -> None:
    """An empty, short or foreign file is named and refused."""
    path = tmp_path / "board"
    path.write_bytes(content)
    with pytest.raises(ValueError, match=r"board.*start `baseload serve` anew"):
        Board.open(path)
