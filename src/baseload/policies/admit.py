"""Admit: whether a request is taken at all. One signature: `rule(ask, columns, replica, tunables) -> 0 or a reason`.

`replica` is where the route rule would send it; the reasons are those of `records.py`.
"""

from __future__ import annotations

from baseload.jit import kernel
from baseload.policies.route import expected_ttft_s
from baseload.policies.view import Ask, Columns, Tunables
from baseload.records import REASON_BUDGET, REASON_NONE, REASON_SLO


@kernel
def always(ask: Ask, columns: Columns, replica: int, tunables: Tunables) -> int:
    """Take every request that some replica may serve."""
    return REASON_NONE


@kernel
def within_slo(ask: Ask, columns: Columns, replica: int, tunables: Tunables) -> int:
    """Refuse what is expected to miss its TTFT promise by more than `admit_factor`."""
    if expected_ttft_s(ask, columns, replica) > tunables.admit_factor * ask.ttft_slo_s:
        return REASON_SLO
    return REASON_NONE


@kernel
def within_budget(ask: Ask, columns: Columns, replica: int, tunables: Tunables) -> int:
    """Refuse what the tenant's budget no longer covers, open requests counted in."""
    if ask.price > ask.budget_left:
        return REASON_BUDGET
    return REASON_NONE


@kernel
def within_slo_and_budget(ask: Ask, columns: Columns, replica: int, tunables: Tunables) -> int:
    """Refuse what the budget does not cover, then what would miss its SLO."""
    reason = within_budget(ask, columns, replica, tunables)
    if reason != REASON_NONE:
        return reason
    return within_slo(ask, columns, replica, tunables)
