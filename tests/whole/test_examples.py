"""Every example prints what its expected.txt shows: the same words in the same order, numbers equal as far as they are printed.

After a change that is meant to change a report: `python -m tests.whole.test_examples` writes the files anew; read the
difference before it is committed.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
EXAMPLES = sorted(path.parent for path in (ROOT / "examples").glob("*/fleet.yaml"))
NUMBER = re.compile(r"-?\d[\d,]*(?:\.\d+)?")
CLOSE = 0.002  # relative: the last bits of NumPy's versions differ, and with them a request in a million


def printed(example: Path, out: Path) -> str:
    """Return what `baseload simulate` prints for an example."""
    fleet = str((example / "fleet.yaml").relative_to(ROOT))
    done = subprocess.run(
        [sys.executable, "-m", "baseload", "simulate", fleet, "--out", str(out), "--seed", "0"],
        cwd=ROOT, capture_output=True, text=True, timeout=600, env={**os.environ, "COLUMNS": "120"}, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return "".join(line.rstrip() + "\n" for line in done.stdout.splitlines())


def words_and_numbers(text: str) -> tuple[list[str], list[tuple[float, float]]]:
    """Return the words, with # for each number, and the numbers with the worth of their last digit.

    >>> words_and_numbers("cost  1,200.5 EUR --- 3 x")
    (['cost', '#', 'EUR', '#', 'x'], [(1200.5, 0.1), (3.0, 1.0)])
    """
    numbers = []
    for found in NUMBER.findall(text):
        plain = found.replace(",", "").rstrip(".")
        digits = len(plain.partition(".")[2])
        numbers.append((float(plain), 10.0**-digits))
    words = [word for word in NUMBER.sub("#", text).split() if not set(word) <= set("-─━")]
    return words, numbers


@pytest.mark.parametrize("example", EXAMPLES, ids=[path.name for path in EXAMPLES])
def test_an_example_prints_what_its_page_shows(example: Path, tmp_path: Path) -> None:
    """`baseload simulate examples/NAME/fleet.yaml` prints examples/NAME/expected.txt, numbers within their last digit."""
    told, shown = printed(example, tmp_path / "run"), (example / "expected.txt").read_text("utf-8")
    words, numbers = words_and_numbers(told)
    expected_words, expected = words_and_numbers(shown)
    assert words == expected_words
    for (value, digit), (known, _) in zip(numbers, expected, strict=True):
        assert abs(value - known) <= max(1.01 * digit, CLOSE * abs(known)), (value, known)


def main() -> None:
    """Write every expected.txt anew."""
    for example in EXAMPLES:
        with tempfile.TemporaryDirectory() as folder:
            (example / "expected.txt").write_text(printed(example, Path(folder) / "run"), "utf-8")


if __name__ == "__main__":
    main()
