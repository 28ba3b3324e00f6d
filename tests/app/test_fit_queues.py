"""`python -m baseload.app.fit_queues`: it finds what was put in, scores on what was left out, and refuses other files."""

from __future__ import annotations

import csv
import gzip
import json
import os
from datetime import date, timedelta
from pathlib import Path

import numpy as np
import pytest

from baseload.app import fit_queues
from baseload.fleet import phases

AS_OF = date(2025, 1, 1)


@pytest.fixture
def queue(tmp_path: Path) -> Path:
    """Return a queue of 1,500 requests."""
    return made_up(tmp_path / "some_queue.csv.gz", 1500)


def made_up(file: Path, n: int) -> Path:
    """Write a queue of `n` requests: completion lognormal about 5 years (0.5), withdrawal 0.2 a year."""
    rng = np.random.default_rng(1)
    with gzip.open(file, "wt", newline="") as out:
        rows = csv.writer(out)
        rows.writerow(["q_id", "q_date", "q_status", "on_date", "wd_date"])
        for i in range(n):
            made = date(2000, 1, 1) + timedelta(days=int(rng.integers(0, 9000)))
            done = made + timedelta(days=365.25 * 5.0 * float(np.exp(0.5 * rng.standard_normal())))
            gone = made + timedelta(days=365.25 * float(rng.standard_exponential()) / 0.2)
            if min(done, gone) > AS_OF:
                rows.writerow([i, made, "active", "", ""])
            elif done < gone:
                rows.writerow([i, made, "operational", done, ""])
            else:
                rows.writerow([i, made, "withdrawn", "", gone])
        rows.writerow(["x", "no day", "active", "", ""])
    return file


def test_it_finds_what_was_put_in(queue: Path):
    """Berkeley Lab's column names are read; median, spread and rate come back; a row without a day is left away."""
    requests, left_away, files = fit_queues.read(queue.parent)
    made = fit_queues.report(requests, left_away, files)
    assert (left_away, files) == (1, ["some_queue.csv.gz"])
    assert made.median_years_to_completion_latent == pytest.approx(5.0, rel=0.08)
    assert made.sigma_of_log_latent == pytest.approx(0.5, rel=0.1)
    assert made.withdrawal_per_year[0] == pytest.approx(0.2, abs=0.03)
    assert all(0.7 <= one.p10_p90_coverage <= 0.9 for one in made.scores if "chain" not in one.left_out)


def test_the_command_prints_text_and_json(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    """Both forms say how good the fit is on what was left out, and that generators are no loads."""
    queue = made_up(tmp_path / "short_queue.csv.gz", 400)
    assert fit_queues.main([str(queue), "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert told["scores"] and told["requests"] == 400
    assert fit_queues.main([str(queue)]) == 0
    assert "take shape and not level" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("text", "what"),
    [("", "no columns"), ("a,b\n1,2\n", "no columns"), ("q_date,q_status\nx,active\n", "no request with a day")],
)
def test_other_files_are_refused(text: str, what: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    """A file that is no queue is the user's error, told in one line."""
    file = tmp_path / "queue.csv"
    file.write_text(text)
    assert fit_queues.main([str(file)]) == 2
    assert what in capsys.readouterr().err
    assert fit_queues.main([str(tmp_path / "nothing")]) == 2


@pytest.mark.needs_data
def test_the_delay_model_covers_what_it_was_not_fitted_on():
    """CAISO's queue: P10 to P90 holds 70 to 90 % of completions left out, by folds, by the ladder's own chain, and
    forward in time from six days; chances of completion score no worse than the base rate by more than a hair."""
    requests, left_away, files = fit_queues.read(Path(os.environ["BASELOAD_DATA"]) / "capacity")
    made = fit_queues.report(requests, left_away, files)
    assert len(made.scores) == 8
    for one in made.scores:
        assert 0.70 <= one.p10_p90_coverage <= 0.90, one
        assert all(one.brier[k] <= one.brier_of_base_rate[k] + 0.004 for k in one.brier), one


@pytest.mark.needs_data
def test_the_shipped_priors_are_what_the_command_prints():
    """`fleet/data/energise.json` has the spread and the rates of the fit, to the digits that it shows."""
    requests, left_away, files = fit_queues.read(Path(os.environ["BASELOAD_DATA"]) / "capacity")
    made, prior = fit_queues.report(requests, left_away, files), phases.priors()
    assert prior.spread.sigma_of_log_total == pytest.approx(made.sigma_of_log_total, abs=0.005)
    assert list(prior.withdrawal.per_year) == pytest.approx(made.withdrawal_per_year, abs=0.0011)
    assert list(prior.withdrawal.from_year) == made.withdrawal_from_year
    assert made.as_of == prior.sources["caiso"].date
