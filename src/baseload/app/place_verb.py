"""`baseload place`: where should this workload run? Heavy parts are imported inside."""

from __future__ import annotations

import argparse
import os
import shutil
from datetime import date

from baseload.errors import InputError


def place_verb(options: argparse.Namespace) -> int:
    """Print every site and accelerator for a tenant's model, ranked, with what excludes the others."""
    from baseload import jit
    from baseload.app import simulating
    from baseload.app.verbs import _day, say
    from baseload.fleet import check, dates, load

    if options.seed < 0:
        raise InputError(f"--seed {options.seed}: is negative; write 0 or more")
    loaded = load.load(options.fleet, options.overrides)
    check.require(loaded, policies=simulating.known_policies())
    day: date = _day(options.date) or dates.run_day(loaded.fleet)
    jit.enable()  # before the twin is imported
    from baseload.app import place
    from baseload.report import place_text

    simulating.say_compiling(say)
    report = place.place(
        loaded, tenant=options.tenant, model=options.model, day=day, seed=options.seed, today=date.today()
    )
    if options.json:
        print(place_text.to_json(report))
    else:
        columns = shutil.get_terminal_size((80, 24)).columns if "COLUMNS" in os.environ or os.isatty(1) else 80
        print(place_text.to_text(report, width=max(80, min(columns, 140))), end="")
    return 0
