"""Accuracy as published: every figure of docs/accuracy.md is computed anew, and held to the bar the project set itself."""

from __future__ import annotations

import itertools
from pathlib import Path

import numpy as np
import pytest

from baseload.app import accuracy
from baseload.app.accuracy_energy import mlenergy_rows, mlperf_scores, unseen_batch_sizes, unseen_models
from baseload.app.accuracy_silicon import below_roofline, fit_constants, hold_out
from baseload.app.accuracy_vllm import CARDS, fit_run, measured_requests, score_run
from baseload.app.calibrate import calibrate_file
from baseload.app.silicon import REASONS, SPECULATIVE, clean, shipped_rows, unfit_reasons, write_rows
from baseload.errors import InputError, TraceError
from baseload.formulas.speed import DEFAULT

ROWS = shipped_rows()
KEPT = [row for row in ROWS if not unfit_reasons(row)]


def test_unseen_models_and_systems_are_predicted():
    """Fitted and tested on disjoint (model, system) groups: TPOT 12 % median, 18 % mean, rank .94; TTFT 27 %, .90."""
    held = hold_out(KEPT, n_folds=5)
    assert held.tpot.median <= 0.12 and held.tpot.mean <= 0.18 and held.tpot.rank >= 0.94, held.tpot
    assert held.ttft.median <= 0.27 and held.ttft.rank >= 0.90, held.ttft


def test_nothing_excluded_stays_within_bounds():
    """With every row in, speculative and disaggregated ones too: TPOT median 15 %, TTFT median 35 %."""
    held = hold_out(ROWS, n_folds=5)
    assert held.tpot.median <= 0.15 and held.ttft.median <= 0.35, (held.tpot, held.ttft)


def test_the_defaults_are_the_published_fit():
    """The constants in the code are what the shipped rows give, to three digits."""
    assert fit_constants(KEPT).constants == pytest.approx(DEFAULT.to_dict(), rel=5e-3)


def test_rows_set_aside_say_why():
    """Exclusions are by rules that are written down, and each rule's count is what the page says."""
    page = Path(__file__).resolve().parents[2] / "docs" / "accuracy.md"
    text = page.read_text(encoding="utf-8")
    for reason in REASONS:
        count = sum(reason in unfit_reasons(row) for row in ROWS)
        assert f"| {count} | {reason} |" in text, f"docs/accuracy.md should say: | {count} | {reason} |"
    assert f"{len(ROWS):,} rows" in text and f"{len(KEPT):,}" in text


def test_no_measured_time_beats_the_datasheet():
    """No row that is kept lies below its roofline; of all rows nine do, and each is set aside for another reason."""
    assert below_roofline(KEPT) == ([], [])
    tpot, ttft = below_roofline(ROWS)
    assert not ttft and len(tpot) == 9
    assert all(unfit_reasons(ROWS[i]) for i in tpot)


def test_speculative_rows_are_really_faster():
    """R1 rows without a V3 twin run up to twice as fast as the same settings predict; that is why they are set aside."""
    ratio = {}
    for name, rows in (("kept", KEPT), ("aside", [r for r in ROWS if unfit_reasons(r) == (SPECULATIVE,)])):
        table = accuracy.tabulate(rows)
        _, tpot_s = accuracy.predict(table, DEFAULT.to_dict())
        deepseek = [i for i, row in enumerate(rows) if row.group.startswith("deepseek")]
        ratio[name] = float(np.median((tpot_s / table.tpot_s)[deepseek]))
    assert ratio["aside"] > 1.2 * ratio["kept"], ratio


@pytest.fixture(scope="module")
def run_fits() -> dict[str, dict[str, float]]:
    """Constants fitted to the first half of each vLLM run."""
    return {card.accelerator: fit_run(card, measured_requests(card)).constants for card in CARDS}


@pytest.mark.parametrize("card", CARDS, ids=[card.accelerator for card in CARDS])
def test_a_calibrated_twin_repeats_a_vllm_run(card, run_fits: dict[str, dict[str, float]]):
    """Fitted to requests 1-150 and scored on 151-300: mean E2E and TPOT within 3 %, TTFT within 10 %."""
    score = score_run(card, measured_requests(card), run_fits[card.accelerator])
    assert abs(score.e2e_mean) <= 0.03 and abs(score.tpot_mean) <= 0.03 and abs(score.ttft_mean) <= 0.10, score


@pytest.mark.parametrize(("card", "other"), [CARDS, CARDS[::-1]], ids=["to 4090", "to PRO 6000"])
def test_constants_carry_over_to_another_card(card, other, run_fits: dict[str, dict[str, float]]):
    """With the other card's constants and this card's measured peaks: E2E and TPOT within 10 %, TTFT within 20 %."""
    score = score_run(card, measured_requests(card), run_fits[other.accelerator], first=0)
    assert abs(score.e2e_mean) <= 0.10 and abs(score.tpot_mean) <= 0.10 and abs(score.ttft_mean) <= 0.20, score


def test_wall_power_of_mlperf():
    """MLPerf v5.1, 8 x B200 with wall power: J/token within 12 % given the throughput."""
    measured = [s for s in mlperf_scores() if np.isfinite(s.joules_per_token)]
    assert len(measured) == 6
    assert max(abs(s.given_throughput) for s in measured) <= 0.12


def test_systems_in_none_of_the_fitted_data():
    """MLPerf throughput of MI300X to MI355X, L40S, RTX PRO 6000, GB200 and H200: within a factor 1.5, median 20 %."""
    errors = [abs(s.throughput) for s in mlperf_scores() if s.accelerator != "b200-sxm"]
    assert max(errors) < 0.5 and float(np.median(errors)) < 0.2, errors


def test_ml_energy(data_folder: Path):
    """H100, unseen batch sizes between seen ones: 95 % of points within 10 % for token spacing and for watts."""
    rows = mlenergy_rows(data_folder)
    assert rows is not None
    curve = unseen_batch_sizes(rows, "h100-sxm")
    assert curve.itl_within_10_percent >= 0.95 and curve.watts_within_10_percent >= 0.95, curve
    itl, watts = unseen_models(rows, "h100-sxm")
    assert itl.median <= 0.20 and watts.median <= 0.12, (itl, watts)


def test_the_shipped_rows_are_the_cleaned_source(data_folder: Path, tmp_path: Path):
    """Cleaning the source file again gives the shipped file, byte for byte."""
    again = tmp_path / "silicon.csv.gz"
    write_rows(clean(data_folder / "perf" / "silicon_measured.csv.gz"), again)
    assert again.read_bytes() == (Path(accuracy.__file__).parent / "measured" / "silicon.csv.gz").read_bytes()


def test_the_table_says_what_was_not_run(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    """Without the folder, or with one that lacks the rows, ML.ENERGY's line says so; a wrong folder is an error."""
    for folder in (None, tmp_path):
        assert "not run" in "\n".join(accuracy.mlenergy_lines(folder))
    assert accuracy.main(["--data", str(tmp_path / "nowhere")]) == 2
    assert "no such folder" in capsys.readouterr().err


def test_the_table_begins_with_the_uncalibrated_data_sheet():
    """The first rows show what a data sheet alone would say, so that nobody mistakes it for a model."""
    lines = list(itertools.islice(accuracy.silicon_lines(), 4))
    assert "uncalibrated" in lines[2]


HEADER = "input_tokens,output_tokens,concurrency,tp,precision,ttft_ms,tpot_ms\n"


def test_calibrate_reports_before_and_after(tmp_path: Path):
    """A user's rows come back as errors before, after and held out, and as YAML for the fleet file."""
    rows = [r for r in KEPT if r.group == "llama-3.1-70b on h200-sxm" and r.backend == "vllm"]
    measured, out = tmp_path / "measured.csv", tmp_path / "speed.yaml"
    measured.write_text(
        HEADER
        + "".join(
            f"{r.input_tokens},{r.output_tokens},{r.concurrency},{r.tp},{r.precision},{r.ttft_ms},{r.tpot_ms}\n"
            for r in rows
        )
    )
    report = calibrate_file(measured, accelerator="h200", model="llama-3.1-70b", out=out)
    before, after, held_out = (
        float(x.rstrip("%")) for x in next(x for x in report.splitlines() if "TPOT" in x).split()[1:]
    )
    assert after < before and after <= held_out < 6.0
    assert out.read_text().splitlines()[1] == "speed:" and "layer_s:" in out.read_text()


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("", "empty"),
        ("a,b\n1,2\n", ":1: no column"),
        (HEADER, "no row"),
        (HEADER + "1,2,x,1,fp8,4,5\n", ":2: concurrency"),
        (HEADER + "1,2,3,1,fp8,4\n", ":2: 6 cells"),
        (HEADER + "1,2,-3,1,fp8,4,5\n", ":2: concurrency is -3"),
        (HEADER + "1,2,3,1,fp8,,\n", "neither"),
        (HEADER + "1,2,3,1,fp8,4,nan\n", "tpot_ms is nan"),
        (HEADER + "1,2,3,1,int3,4,5\n", "int3"),
        (HEADER + "1,1,3,1,fp8,4,5\n", "one token"),
        (HEADER + "9,9,3,9999999,fp8,4,5\n", "tp"),
    ],
)
def test_bad_measurements_get_a_sentence(tmp_path: Path, text: str, says: str):
    """File, line, what, and the mend; never a traceback."""
    path = tmp_path / "m.csv"
    path.write_text(text)
    with pytest.raises(TraceError, match="m.csv") as caught:
        calibrate_file(path, accelerator="h100", model="llama-3.1-8b")
    assert says in str(caught.value)


def test_calibrate_refuses_what_it_does_not_know(tmp_path: Path):
    """A missing file, an unknown accelerator or precision: an InputError that says so."""
    for settings in (
        {"accelerator": "h100", "model": "llama-3.1-8b"},
        {"accelerator": "h1000", "model": "llama-3.1-8b"},
        {"accelerator": "h100", "model": "llama-3.1-8b", "precision": "int3"},
        {"accelerator": "h100", "model": "llama-3.1-8b", "tp": 0},
    ):
        with pytest.raises(InputError):
            calibrate_file(tmp_path / "none.csv", **settings)  # type: ignore[arg-type]
