"""What a plan is worth: its figures recomputed from its cash alone, and what they leave out is said."""

from __future__ import annotations

import numpy as np

from baseload.plan import money

TERMS = money.Terms(
    wacc=0.1, tax_ratio=0.4, resale_ratio=0.5, it_life_years=5.0, facility_life_years=20.0, load_ratio=0.5,
    tokens_per_request=1000.0,
)  # fmt: skip


def books(income: list[float], spent: list[float], running: list[float], salvage: float = 0.0) -> money.Books:
    """Return books with cash as given, and nothing written off."""
    none = np.zeros(len(income))
    return money.Books(
        capex={"racks": np.array(spent)}, running={"energy": np.array(running)}, income=np.array(income),
        capital_charge=none, salvage=salvage, book=salvage, depreciation=none, mtok=none, it_mwh=none, carbon_t=none,
        carbon_market_t=none, water_m3=none, busy_ratio=none,
    )  # fmt: skip


def test_a_plan_that_is_never_in_the_red_needs_no_payback_and_has_no_rate():
    """Income in each quarter, tax in the last of the year above that quarter's: gain, paid back at once, no rate of return."""
    kept = books(income=[100.0] * 8, spent=[0.0] * 8, running=[20.0] * 8)
    worth = money.worth(kept, TERMS)
    assert worth.cash.tolist() == [80.0, 80.0, 80.0, 80.0 - 0.4 * 320.0] * 2
    assert worth.npv > 0.0 and worth.irr is None and worth.payback_years == 0.0
