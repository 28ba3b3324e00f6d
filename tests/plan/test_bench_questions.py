"""What `make bench-plan` asks after a plan: the same for a seed, problems that can be solved; and how goals stand."""

from __future__ import annotations

import pytest

from baseload.plan.generate import instance
from baseload.plan.sound import require_sound
from bench.plan import questions


def test_changes_and_requests_go_by_the_seed_and_are_sound() -> None:
    """Ten changes and nine requests of other names, all of them problems that can be solved; a seed gives the same ones."""
    problem = instance(4, 3, 2, 4, 5, seed=3)
    found, again = list(questions.changes(problem, 7)), list(questions.changes(problem, 7))
    asked = list(questions.requests(problem))
    assert len({name for name, _ in found}) == 10 and len({name for name, _ in asked}) == 9
    for _, changed in found + asked:
        require_sound(changed)
    assert all(
        (a.demand == b.demand).all() and (a.cost_buy == b.cost_buy).all()
        for (_, a), (_, b) in zip(found, again, strict=True)
    )


def test_small_ones_are_answered_whole() -> None:
    """Every change of a small instance is solved to the gap with no row broken; every request gets its answer, proven."""
    size = (2, 2, 1, 2, 2)
    changed, asked = questions.whatif(1, size), questions.conflict(1, size)
    assert all(one["gap"] <= questions.GAP and one["broken_rows"] == 0 for one in changed["asked"])
    assert len(asked["asked"]) == 9 and all(one["proven"] for one in asked["asked"])
    assert "broken rows 0" in questions.told("whatif", changed) and questions.verdict("conflict", [asked]).endswith(
        ": met"
    )


@pytest.mark.parametrize(
    ("seconds", "gap", "word"), [(4.9, 0.01, ": met"), (5.1, 0.005, "not met"), (1.0, 0.02, "not met")]
)
def test_a_goal_is_met_by_all_or_not(seconds: float, gap: float, word: str) -> None:
    """One change that is too slow, or too far from its bound, and the goal is missed."""
    fine = {"name": "one", "cpu_s": 2.0, "gap": 0.001, "broken_rows": 0}
    rows = [{"asked": [fine, fine | {"name": "other", "cpu_s": seconds, "gap": gap}], "peak_mb": 100}]
    assert questions.verdict("whatif", rows).endswith(word)


def test_what_is_not_known_is_said_so() -> None:
    """Where knowing the future was not priced, the line says that."""
    row = {
        "cpu_s": 200.0,
        "known_s": 0.0,
        "gap": 0.015,
        "value": 100.0,
        "vss": 3.0,
        "evpi": None,
        "unseen": 101.0,
        "peak_mb": 900,
    }
    line = questions.told("risk", row)
    assert "knowing the future at most not known" in line and "value of the stochastic solution 3.00%" in line
