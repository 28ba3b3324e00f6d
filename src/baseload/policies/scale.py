"""Scale: how many replicas of a deployment a site should run. One signature, see `target_utilisation`.

The wait before scaling down and the start of replicas are the caller's; this says only the wanted number.
"""

from __future__ import annotations

from baseload.jit import kernel
from baseload.policies.view import Tunables


@kernel
def fixed(n_on: int, outstanding: int, slots: int, n_min: int, n_max: int, tunables: Tunables) -> int:
    """Keep the minimum, always."""
    return n_min


@kernel
def target_utilisation(n_on: int, outstanding: int, slots: int, n_min: int, n_max: int, tunables: Tunables) -> int:
    """Return the replicas that hold `outstanding` requests at the target share of their `slots` (as Kubernetes' HPA).

    `n_on` counts those up or starting; the answer lies in n_min..n_max.
    """
    wanted = outstanding / (slots * tunables.target_utilisation)
    n = int(wanted)
    if n < wanted:
        n += 1
    return min(max(n, n_min), n_max)
