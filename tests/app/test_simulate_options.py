"""`baseload simulate`: options that go together, and what a search for capacity tells."""

from __future__ import annotations

import pytest

from baseload.app import verbs
from baseload.app.cli import parser
from baseload.app.load_search import Probe
from baseload.errors import InputError


@pytest.mark.parametrize(
    ("words", "wrong"),
    [
        (["--engines", "emulated"], "add --replay LEDGER"),
        (["--replay", "ledger.db", "--requests", "5"], "leave --requests away"),
        (["--replay", "ledger.db", "--trace", "azure-conv", "--windows", "2"], "leave --trace and --windows away"),
        (["--find-capacity", "--windows", "2"], "leave --windows away"),
        (["--find-capacity", "--html", "report.html"], "leave --html away"),
        (["--find-capacity", "--out", "runs/here"], "leave --out away"),
    ],
)
def test_options_that_do_not_go_together_are_refused(words: list[str], wrong: str):
    """No option of `simulate` is passed over in silence: what another one makes meaningless is named."""
    with pytest.raises(InputError, match=wrong):
        verbs.simulate_verb(parser().parse_args(["simulate", "fleet.yaml", *words]))


def test_a_search_for_capacity_that_found_no_limit_claims_none(capsys: pytest.CaptureFixture[str]):
    """Where all that was tried met every promise, no rate is told: the demand was too short to tell."""
    probe = Probe(load_factor=4096.0, requests_per_s=9e4, tokens_per_s=1.35e8, meets=True, tenant="office",
                  attainment=1.0, promised=0.99, cause="")  # fmt: skip
    assert verbs._print_capacity(4096.0, [probe], as_json=False) == 0
    told = capsys.readouterr().out
    assert "too short to tell" in told and "tokens/s" not in told
