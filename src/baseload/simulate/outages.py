"""When things break: outages of replicas, servers and sites, drawn before the run from their MTBF and MTTR.

Exponential times, one stream of random numbers a thing, so that adding a site does not move another's failures. What an
outage does to requests is `control.py`.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from baseload.errors import FleetError, Problem
from baseload.fleet.model import Failures

MOST_EVENTS = 5_000_000
LONGEST_S = 4e9  # of a repair: beyond every run, and whole nanoseconds hold it


def stream_of(*name: str | int) -> int:
    """Return the number of a thing's own stream of random numbers, from its name alone.

    >>> stream_of("oslo", 1) == stream_of("oslo", 1) != stream_of("oslo", 2)
    True
    """
    text = "/".join(str(part) for part in name)
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "big")


def drawn(
    seed: int, stream: tuple[int, int], mtbf_s: float, mttr_s: float, horizon_s: float
) -> list[tuple[float, float]]:
    """Return (down, up) times in seconds up to `horizon_s`; none where `mtbf_s` is 0."""
    if mtbf_s <= 0.0:
        return []
    generator = np.random.default_rng([seed, *stream])
    spans = []
    now = generator.exponential(mtbf_s)
    while now < horizon_s:
        repair = min(generator.exponential(mttr_s), LONGEST_S)
        spans.append((now, now + repair))
        now += repair + generator.exponential(mtbf_s)
    return spans


def schedule(
    failures: Failures,
    *,
    groups: Sequence[tuple[str, int]],
    site_names: Sequence[str],
    site_group: Sequence[int],
    horizon_s: float,
    seed: int,
) -> npt.NDArray[np.int64]:
    """Return the outages as (event, 3): ns, group, +1 down or -1 up, in order of time.

    `groups` says of each group its kind ("replica", "server", "site") and its stream of random numbers (`stream_of`).
    """
    rates = {
        "replica": (failures.replica_mtbf_h * 3600.0, failures.replica_mttr_s),
        "server": (failures.server_mtbf_h * 3600.0, failures.server_mttr_s),
        "site": (failures.site_mtbf_h * 3600.0, failures.site_mttr_s),
    }
    expected = sum(2.0 * horizon_s / (rates[kind][0] or np.inf) for kind, _ in groups)
    if expected > MOST_EVENTS:
        raise FleetError(
            Problem(
                key="failures", what=f"{expected:,.0f} outages in this run", mend="raise the MTBFs; they are in hours"
            )
        )
    order = {"replica": 0, "server": 1, "site": 2}
    events: list[tuple[int, int, int]] = []
    for group, (kind, number) in enumerate(groups):
        mtbf_s, mttr_s = rates[kind]
        for down_s, up_s in drawn(seed, (order[kind], number), mtbf_s, mttr_s, horizon_s):
            events.append((round(down_s * 1e9), group, 1))
            events.append((round(up_s * 1e9), group, -1))
    for outage in failures.events:
        group = site_group[list(site_names).index(outage.site)]
        events.append((round(outage.start_s * 1e9), group, 1))
        events.append((round((outage.start_s + outage.duration_s) * 1e9), group, -1))
    events.sort()
    return np.array(events, np.int64).reshape(-1, 3)


def down_ns(outages: npt.NDArray[np.int64], group: int, edges_ns: npt.NDArray[np.int64]) -> npt.NDArray[np.float64]:
    """Return for how many ns a group is down between each two of the edges; one outage within another counts once.

    >>> events = np.array([[10, 0, 1], [15, 0, 1], [20, 0, -1], [30, 0, -1], [12, 1, 1]])
    >>> down_ns(events, 0, np.array([0, 20, 40])).tolist()
    [10.0, 10.0]
    """
    own = outages[outages[:, 1] == group]
    if len(own) == 0:
        return np.zeros(len(edges_ns) - 1)
    causes = np.cumsum(own[:, 2])
    at_ns = np.append(own[:, 0], max(int(edges_ns[-1]), int(own[-1, 0])) + 1)
    so_far = np.concatenate([[0.0], np.cumsum(np.where(causes > 0, np.diff(at_ns), 0).astype(np.float64))])
    return np.diff(np.interp(edges_ns.astype(np.float64), at_ns.astype(np.float64), so_far))
