"""May run here: the hard limits of law, decided once for each tenant and site, before any rule is asked.

Residency is where data sits; sovereignty is whose law reaches the operator. They are separate, and both must hold.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence


def may_run(
    residency: Sequence[str],
    sovereignty: Sequence[str],
    *,
    jurisdiction: str,
    operator_jurisdiction: str,
    member: Callable[[str, Sequence[str]], bool],
) -> bool:
    """Say whether a tenant's requests may run at a site; an empty list means no limit.

    `member(code, allowed)` knows blocs: DE is a member of [EU].

    >>> inside = lambda code, allowed: code in allowed or ("EU" in allowed and code in {"DE", "ES"})
    >>> may_run(["EU"], ["EU"], jurisdiction="DE", operator_jurisdiction="US", member=inside)
    False
    """
    if residency and not member(jurisdiction, residency):
        return False
    return not (sovereignty and not member(operator_jurisdiction, sovereignty))
