"""Tests in several processes: nothing is cut in two, and who must be alone is."""

from __future__ import annotations

import threading
import time
from pathlib import Path

from tests import parallel

ROOT = Path(__file__).parents[1]


def test_what_is_named_exists() -> None:
    """A file that was renamed keeps its place in the order, and its company."""
    assert [name for name in (*parallel.LONGEST_FIRST, *parallel.TOGETHER) if not (ROOT / name).is_file()] == []


def test_files_stay_whole_and_the_longest_begin() -> None:
    """All tests of a file are one unit, files that share something are one, and units known to be long have the first ranks."""
    first, last = parallel.LONGEST_FIRST[0], parallel.LONGEST_FIRST[-1]
    assert parallel.unit(f"{first}::test_a") == parallel.unit(f"{first}::TestB::test_c[x::y]")
    assert parallel.unit("tests/whole/test_chaos.py::a") == parallel.unit("tests/whole/test_partition.py::b")
    names = [parallel.unit(name) for name in (last, "tests/fleet/test_load.py", "tests/whole/test_chaos.py", first)]
    assert sorted(names, key=parallel.rank)[0] == first and parallel.rank(names[1]) > parallel.rank(names[0])
    assert parallel.rank("network namespaces") < len(parallel.LONGEST_FIRST)


def test_one_alone_has_nobody_beside_it_and_waits_for_no_more_than_who_was_there(tmp_path: Path) -> None:
    """Many run beside each other, one that is alone beside none; and those who come later do not push in before it."""
    order: list[str] = []
    together, over = threading.Barrier(3), threading.Event()

    def beside(name: str) -> None:
        with parallel.Turns(tmp_path).turn(alone=False):
            order.append(name)
            together.wait(10.0)  # for the other, and for the test
            assert over.wait(10.0)
            order.append(f"{name} left")

    def alone() -> None:
        with parallel.Turns(tmp_path).turn(alone=True):
            order.append("one")
            time.sleep(0.1)
            order.append("one left")

    def later() -> None:
        with parallel.Turns(tmp_path).turn(alone=False):
            order.append("later")

    threads = [threading.Thread(target=beside, args=(name,)) for name in ("a", "b")]
    threads += [threading.Thread(target=alone), threading.Thread(target=later)]
    for thread in threads[:2]:
        thread.start()
    together.wait(10.0)
    for thread in threads[2:]:
        thread.start()
        time.sleep(0.2)
    assert set(order) == {"a", "b"}
    over.set()
    for thread in threads:
        thread.join()

    at = order.index("one")
    assert set(order[:at]) == {"a", "b", "a left", "b left"} and order[at:] == ["one", "one left", "later"], order
