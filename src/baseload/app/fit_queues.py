"""Fit delays and withdrawals to queue data, and say how good that is on what was left out.

`python -m baseload.app.fit_queues FILE_OR_FOLDER` reads CSV files (also .gz) of an interconnection queue: one row a
request with the day it was made, what became of it, and when. Column names of CAISO's public report and of Berkeley
Lab's "Queued Up" are known. It prints the fit, and with two ways of leaving data out: every fifth request in turn,
and all that happened after a day. The shipped priors (`fleet/data/energise.json`) are what it prints.
"""

from __future__ import annotations

import argparse
import csv
import gzip
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import date
from math import log
from pathlib import Path
from typing import Any
from zlib import crc32

import msgspec
import numpy as np

from baseload.errors import BaseloadError, InputError
from baseload.formulas.energise import Z90
from baseload.formulas.energise_fit import DAYS_PER_YEAR, QueueFit, brier, coverage, fit_queue

FOLDS = 5
HORIZON_YEARS = 20.0
BRIER_YEARS = (3.0, 5.0, 7.0, 10.0)
REQUESTED = ("date_queue", "q_date", "queue_date")
OUTCOME = ("sheet_outcome", "q_status", "status")
COMPLETED_ON = ("date_cod_current_or_actual", "on_date", "date_operational")
WITHDRAWN_ON = ("date_withdrawn", "wd_date")
NAME = ("queue_id", "q_id")
WORDS = {
    "completed": 1, "operational": 1, "active": 0, "suspended": 0, "withdrawn": 2,
}  # fmt: skip


@dataclass(frozen=True, slots=True)
class Request:
    """One request: when it was made, what became of it, and when (None: not yet)."""

    name: str
    made: date
    outcome: int  # 0 active, 1 completed, 2 withdrawn
    ended: date | None

    def years(self, day: date) -> float:
        """Return the years from the request to a day."""
        return (day - self.made).days / DAYS_PER_YEAR


class Score(msgspec.Struct, frozen=True, kw_only=True):
    """How good a fit was on requests that it was not fitted on."""

    left_out: str
    completed: int
    p10_p90_coverage: float
    below_p50: float
    brier: dict[str, float]  # by years since the request
    brier_of_base_rate: dict[str, float]  # of the constant chance that was seen in the data fitted on


class Report(msgspec.Struct, frozen=True, kw_only=True):
    """What the command says."""

    files: list[str]
    as_of: str
    requests: int
    completed: int
    withdrawn: int
    left_away: int
    median_years_to_completion_latent: float
    sigma_of_log_latent: float
    completed_within_20_years: float
    p10_p50_p90_years_of_completed: list[float]
    sigma_of_log_total: float
    withdrawal_from_year: list[float]
    withdrawal_per_year: list[float]
    scores: list[Score]


def read(where: Path) -> tuple[list[Request], int, list[str]]:
    """Return the requests of the CSV files, how many rows were left away (no day, or days out of order), the files."""
    files = sorted(_files(where))
    if not files:
        raise InputError(f"{where}: no .csv or .csv.gz of an interconnection queue; name a file or a folder of them")
    requests, left_away, used = [], 0, []
    for file in files:
        rows = list(_rows(file))
        if not rows or _column(rows[0], REQUESTED) is None or _column(rows[0], OUTCOME) is None:
            if where.is_file():
                raise InputError(f"{file}: has no columns of a queue; needs one of {REQUESTED} and one of {OUTCOME}")
            continue
        used.append(file.name)
        for number, row in enumerate(rows, start=2):
            one = _request(row, f"{file.name}:{number}")
            left_away += one is None
            requests += [one] if one else []
    if not requests:
        raise InputError(
            f"{where}: no request with a day and an outcome; see `python -m baseload.app.fit_queues --help`"
        )
    return requests, left_away, used


def _files(where: Path) -> Iterator[Path]:
    if where.is_dir():
        yield from (file for file in where.rglob("*queue*.csv*") if file.suffix in (".csv", ".gz"))
    elif where.is_file():
        yield where


def _rows(file: Path) -> Iterator[dict[str, str]]:
    opener: Any = gzip.open if file.suffix == ".gz" else open
    try:
        with opener(file, "rt", encoding="utf-8", errors="replace", newline="") as lines:
            yield from csv.DictReader(lines)
    except (OSError, EOFError, csv.Error) as error:
        raise InputError(f"{file}: cannot be read as CSV ({error}); write comma separated UTF-8") from None


def _column(row: Mapping[str, str], names: Sequence[str]) -> str | None:
    return next((name for name in names if name in row), None)


def _value(row: Mapping[str, str], names: Sequence[str]) -> str:
    return next((row[name] for name in names if row.get(name)), "")


def _request(row: Mapping[str, str], where: str) -> Request | None:
    made, outcome = _date(_value(row, REQUESTED)), WORDS.get(_value(row, OUTCOME).strip().lower())
    if made is None or outcome is None:
        return None
    ended = _date(_value(row, COMPLETED_ON if outcome == 1 else WITHDRAWN_ON)) if outcome else None
    if outcome and (ended is None or ended <= made):
        return None
    return Request(_value(row, NAME) or where, made, outcome, ended)


def _date(text: str) -> date | None:
    try:
        return date.fromisoformat(text.strip()[:10])
    except ValueError:
        return None


def fit(requests: Sequence[Request], as_of: date) -> QueueFit:
    """Return the fit of what was known on a day: later outcomes count as still active."""
    known = [one for one in requests if one.made < as_of]
    if not any(one.outcome == 1 and one.ended is not None and one.ended <= as_of for one in known):
        raise InputError(f"no request was completed by {as_of}; more data is needed for a fit")
    years, outcome = [], []
    for one in known:
        over = one.ended is not None and one.ended <= as_of
        years.append(one.years(one.ended if one.ended is not None and over else as_of))
        outcome.append(one.outcome if over else 0)
    return fit_queue(np.array(years), np.array(outcome))


def score(
    fitted: QueueFit,
    base: Sequence[Request],
    tested: Sequence[Request],
    *,
    known_on: date | None,
    as_of: date,
    name: str,
) -> Score | None:
    """Return how good a fit is on other requests; `known_on`: what is left out is what happened after that day.

    A band is that of the completion of a request that completes by `as_of`, given that it was active on `known_on`.
    """
    inside, below = [], []
    for one in tested:
        if one.outcome != 1 or one.ended is None or (known_on is not None and one.ended <= known_on):
            continue
        age = 0.0 if known_on is None else max(0.0, one.years(known_on))
        low, middle, high = fitted.completion_years((0.1, 0.5, 0.9), age, one.years(as_of))
        took = one.years(one.ended)
        inside.append(low <= took <= high)
        below.append(took < middle)
    if not inside:
        return None
    scores: dict[str, float] = {}
    rates: dict[str, float] = {}
    for k in BRIER_YEARS:
        chances, happened, rate = _by_years(fitted, base, tested, k, known_on, as_of)
        if chances:
            scores[f"{k:g}"] = round(brier(chances, happened), 4)
            rates[f"{k:g}"] = round(brier([rate] * len(chances), happened), 4)
    return Score(
        left_out=name, completed=len(inside), p10_p90_coverage=round(coverage(inside), 3),
        below_p50=round(coverage(below), 3), brier=scores, brier_of_base_rate=rates,
    )  # fmt: skip


def _by_years(
    fitted: QueueFit, base: Sequence[Request], tested: Sequence[Request], k: float, known_on: date | None, as_of: date
) -> tuple[list[float], list[bool], float]:
    chances, happened = [], []
    for one in tested:
        age = 0.0 if known_on is None else max(0.0, one.years(known_on))
        over = known_on is not None and one.ended is not None and one.ended <= known_on
        if one.years(as_of) < k or age >= k or over:
            continue
        chances.append(fitted.completed_by(k, age))
        happened.append(_done_by(one, k))
    day = known_on or as_of
    seen = [_done_by(one, k) for one in base if one.years(day) >= k]
    return chances, happened, sum(seen) / len(seen) if seen else 0.0


def _done_by(one: Request, k: float) -> bool:
    return one.outcome == 1 and one.ended is not None and one.years(one.ended) <= k


def report(requests: Sequence[Request], left_away: int, files: Sequence[str]) -> Report:
    """Return the fit of all requests, and scores on what is left out: folds, then days known to the fit."""
    as_of = max(max(one.made, one.ended or one.made) for one in requests)
    whole = fit(requests, as_of)
    low, middle, high = whole.completion_years((0.1, 0.5, 0.9), 0.0, HORIZON_YEARS)
    return Report(
        files=list(files), as_of=str(as_of), requests=len(requests), completed=whole.completed,
        withdrawn=whole.withdrawn, left_away=left_away,
        median_years_to_completion_latent=round(whole.median_years, 2), sigma_of_log_latent=round(whole.sigma, 3),
        completed_within_20_years=round(whole.completed_by(HORIZON_YEARS), 3),
        p10_p50_p90_years_of_completed=[round(low, 2), round(middle, 2), round(high, 2)],
        sigma_of_log_total=round(log(high / low) / (2.0 * Z90), 3),
        withdrawal_from_year=list(whole.hazard.from_year),
        withdrawal_per_year=[round(rate, 3) for rate in whole.hazard.per_year],
        scores=[*_folds(requests, as_of), *_later(requests, as_of)],
    )  # fmt: skip


def _folds(requests: Sequence[Request], as_of: date) -> Iterator[Score]:
    inside: list[Score] = []
    for k in range(FOLDS):
        held = [one for one in requests if crc32(one.name.encode()) % FOLDS == k]
        rest = [one for one in requests if crc32(one.name.encode()) % FOLDS != k]
        made = score(
            fit(rest, as_of), rest, held, known_on=None, as_of=as_of, name=f"every {FOLDS}th request, fold {k + 1}"
        )
        inside += [made] if made else []
    if inside:
        yield _mean(inside)
        yield _chain(requests, as_of)


def _chain(requests: Sequence[Request], as_of: date) -> Score:
    """Score the chain of stages that the ladder draws, its median set to that of the requests fitted on."""
    from baseload.fleet.model import GridConnection
    from baseload.report.capacity import draw_phase

    finish = draw_phase(GridConnection(power_mw=1.0, announced=as_of), as_of, n=20_000, seed=[0]).draws.finish_month
    total = np.max(np.stack(list(finish.values())), axis=0)
    low, middle, high = np.quantile(total, [0.1, 0.5, 0.9])
    inside, below = [], []
    for k in range(FOLDS):
        rest = [one for one in requests if crc32(one.name.encode()) % FOLDS != k]
        (median,) = fit(rest, as_of).completion_years((0.5,), 0.0, HORIZON_YEARS)
        for one in requests:
            if one.outcome == 1 and one.ended is not None and crc32(one.name.encode()) % FOLDS == k:
                ratio = one.years(one.ended) / median
                inside.append(bool(low / middle <= ratio <= high / middle))
                below.append(ratio < 1.0)
    return Score(
        left_out="the same, by the ladder's chain",
        completed=len(inside),
        p10_p90_coverage=round(coverage(inside), 3),
        below_p50=round(coverage(below), 3),
        brier={},
        brier_of_base_rate={},
    )


def _mean(scores: Sequence[Score]) -> Score:
    total = sum(one.completed for one in scores)
    by = [one.completed / total for one in scores]
    keys = [key for key in scores[0].brier if all(key in one.brier for one in scores)]
    return Score(
        left_out=f"every {FOLDS}th request in turn",
        completed=total,
        p10_p90_coverage=round(sum(w * one.p10_p90_coverage for w, one in zip(by, scores)), 3),
        below_p50=round(sum(w * one.below_p50 for w, one in zip(by, scores)), 3),
        brier={key: round(sum(one.brier[key] for one in scores) / len(scores), 4) for key in keys},
        brier_of_base_rate={key: round(sum(one.brier_of_base_rate[key] for one in scores) / len(scores), 4) for key in keys},
    )  # fmt: skip


def _later(requests: Sequence[Request], as_of: date) -> Iterator[Score]:
    for back in (15, 13, 11, 9, 7, 5):
        day = date(as_of.year - back, 1, 1)
        known = [one for one in requests if one.made < day]
        if sum(one.outcome == 1 and one.ended is not None and one.ended <= day for one in known) < 10:
            continue
        made = score(fit(known, day), known, requests, known_on=day, as_of=as_of, name=f"what happened after {day}")
        if made:
            yield made


def words(made: Report) -> str:
    """Return the report for a terminal."""
    low, middle, high = made.p10_p50_p90_years_of_completed
    lines = [
        f"{', '.join(made.files)} as of {made.as_of}: {made.requests:,} requests, {made.completed} completed, "
        f"{made.withdrawn:,} withdrawn; {made.left_away} rows left away (no day, or days out of order)",
        f"time to completion of those that complete: P10 {low:g}, P50 {middle:g}, P90 {high:g} years "
        f"(sigma of log {made.sigma_of_log_total:g}); {100 * made.completed_within_20_years:.0f} % complete in 20 years",
        "withdrawal a year by age: "
        + ", ".join(f"from {y:g} y {r:g}" for y, r in zip(made.withdrawal_from_year, made.withdrawal_per_year)),
        "",
        "on what was left out            completed  P10-P90 coverage  below P50  Brier by years (base rate)",
    ]
    for one in made.scores:
        scores = ", ".join(f"{k}: {one.brier[k]:g} ({one.brier_of_base_rate[k]:g})" for k in one.brier)
        percents = f"{100 * one.p10_p90_coverage:>14.0f} %  {100 * one.below_p50:>7.0f} %"
        lines.append(f"{one.left_out:<31} {one.completed:>9}  {percents}  {scores}".rstrip())
    lines += ["", "These are generators that ask to feed in. Where they stand in for loads, take shape and not level."]
    return "\n".join(lines)


def main(arguments: Sequence[str] | None = None) -> int:
    """Read, fit, print; exit code 2 where the data is wrong."""
    parser = argparse.ArgumentParser(prog="python -m baseload.app.fit_queues", description=__doc__)
    parser.add_argument("data", type=Path, help="CSV file of a queue, or a folder with files named *queue*.csv(.gz)")
    parser.add_argument("--json", action="store_true", help="print JSON")
    options = parser.parse_args(arguments)
    try:
        made = report(*read(options.data))
    except BaseloadError as error:
        print(f"fit_queues: {error}", file=sys.stderr)
        return error.exit_code
    print(msgspec.json.format(msgspec.json.encode(made), indent=2).decode() if options.json else words(made))
    return 0


if __name__ == "__main__":
    sys.exit(main())
