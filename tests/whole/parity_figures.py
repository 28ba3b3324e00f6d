"""Prints how far a gateway is from the twin where it cannot be the same: `python -m tests.whole.parity_figures [systems]`."""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path
from typing import Any

from baseload import jit

jit.enable()

from baseload import policies  # noqa: E402
from tests.whole.test_live_parity import deviation  # noqa: E402

WAYS: dict[str, dict[str, Any]] = {
    "2 workers": {"workers": 2},
    "4 workers": {"workers": 4},
    "not back where it failed": {"tried": True},
    "and ejection, retry budget": {"tried": True, "eject_after": 5, "retry_ratio": 0.1},
}


def main(systems: int) -> None:
    """Print one line a rule and way."""
    with tempfile.TemporaryDirectory() as folder:
        for name, route in policies.ROUTE.items():
            for way, how in WAYS.items():
                seen = deviation(route, range(1000, 1000 + systems), Path(folder), **how)
                shown = " | ".join(f"{100.0 * seen[what]:+.1f} %" for what in ("elsewhere", "otherwise", "goodput"))
                print(f"| {name} | {way} | {shown} |", flush=True)


if __name__ == "__main__":
    main(int(sys.argv[1]) if len(sys.argv) > 1 else 60)
