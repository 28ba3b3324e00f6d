"""`baseload capacity`: the ladder over the years, with its band. Heavy parts are imported inside."""

from __future__ import annotations

import argparse
import os
import re
import shutil
from datetime import date
from pathlib import Path

from baseload.errors import InputError

QUARTERS_MAX = 80


def capacity_verb(options: argparse.Namespace) -> int:
    """Print or write the ladder by quarter."""
    from baseload.app.verbs import require_page, say
    from baseload.fleet import check, load
    from baseload.report import capacity, capacity_text

    quarters = horizon_quarters(options.horizon)
    today = _day(options.date)
    html: Path | None = options.html
    require_page(html, options.fleet)
    if options.seed < 0:
        raise InputError(f"--seed {options.seed}: is negative; write 0 or more")
    loaded = load.load(options.fleet, options.overrides)
    check.require_sites(loaded)
    report = capacity.capacity(loaded.fleet, today, quarters, seed=options.seed)
    if options.json:
        print(capacity_text.to_json(report))
    else:
        columns = shutil.get_terminal_size((80, 24)).columns if "COLUMNS" in os.environ or os.isatty(1) else 80
        print(capacity_text.to_text(report, width=max(80, min(columns, 120))), end="")
    if html is not None:
        from baseload.report import capacity_html

        try:
            capacity_html.write(report, html)
        except OSError as error:
            raise InputError(f"{html}: cannot be written ({error.strerror}); choose another place") from None
        say(f"{html} written")
    return 0


def horizon_quarters(text: str) -> int:
    """Return the quarters of a horizon such as `5y`, `18m` or `20q`; InputError where it is none.

    >>> horizon_quarters("5y"), horizon_quarters("18m"), horizon_quarters("3q")
    (20, 6, 3)
    """
    match = re.fullmatch(r"(\d{1,4})([ymq])", text.strip())
    quarters = 0
    if match:
        number, unit = int(match[1]), match[2]
        quarters = number * 4 if unit == "y" else number if unit == "q" else -(-number // 3)
    if not 1 <= quarters <= QUARTERS_MAX:
        raise InputError(f"--horizon {text}: is no span up to 20 years; write e.g. 5y, 18m or 20q")
    return quarters


def _day(text: str | None) -> date:
    from baseload.app.verbs import _day as day_of

    return day_of(text) or date.today()
