"""Queues: the textbook answers that the twin has to find on its own, and a first guess where no run was made.

Rates are per second, waits in seconds; "wait" is before service, "sojourn" includes it. A queue that cannot
keep up (utilisation 1 or more) waits without end: `math.inf`. What a real fleet does is the twin's business.
"""

from __future__ import annotations

from math import exp, inf, log


def utilisation(arrivals_per_s: float, service_s: float, n_servers: int = 1) -> float:
    """Return the share of time a server is busy, above 1 if it cannot keep up.

    >>> utilisation(8.0, service_s=0.5, n_servers=5)
    0.8
    """
    assert arrivals_per_s >= 0.0 and service_s >= 0.0, (arrivals_per_s, service_s)
    assert n_servers >= 1, n_servers
    return arrivals_per_s * service_s / n_servers


def erlang_b(offered: float, n_servers: int) -> float:
    """Return the chance that an arrival finds all servers busy and is lost (M/M/c/c); load in erlang.

    Jagerman's recursion, stable for any size.

    >>> round(erlang_b(2.0, 3), 6)
    0.210526
    """
    assert offered >= 0.0 and n_servers >= 0, (offered, n_servers)
    if offered == 0.0:
        return 1.0 if n_servers == 0 else 0.0
    blocked = 1.0
    for n in range(1, n_servers + 1):
        blocked = offered * blocked / (n + offered * blocked)
    return blocked


def erlang_c(offered: float, n_servers: int) -> float:
    """Return the chance that an arrival has to wait (M/M/c); 1 if the servers cannot keep up.

    >>> round(erlang_c(2.0, 3), 6)
    0.444444
    """
    assert n_servers >= 1, n_servers
    if offered >= n_servers:
        return 1.0
    blocked = erlang_b(offered, n_servers)
    return blocked / (1.0 - (offered / n_servers) * (1.0 - blocked))


def mm1_wait_s(arrivals_per_s: float, service_s: float) -> float:
    """Return the mean wait in M/M/1: rho s / (1 - rho).

    >>> round(mm1_wait_s(0.8, service_s=1.0), 6)
    4.0
    """
    return mg1_wait_s(arrivals_per_s, service_s, cv2=1.0)


def mmc_wait_s(arrivals_per_s: float, service_s: float, n_servers: int) -> float:
    """Return the mean wait in M/M/c (Erlang C).

    >>> round(mmc_wait_s(2.0, service_s=1.0, n_servers=3), 6)
    0.444444
    """
    offered = arrivals_per_s * service_s
    if offered >= n_servers:
        return inf
    return erlang_c(offered, n_servers) * service_s / (n_servers - offered)


def mmc_wait_quantile_s(share: float, arrivals_per_s: float, service_s: float, n_servers: int) -> float:
    """Return the wait that a `share` of arrivals stays below in M/M/c, first come first served.

    >>> round(mmc_wait_quantile_s(0.99, 0.8, service_s=1.0, n_servers=1), 3)
    21.91
    """
    assert 0.0 <= share < 1.0, share
    offered = arrivals_per_s * service_s
    if offered >= n_servers:
        return inf
    waits = erlang_c(offered, n_servers)
    if waits <= 1.0 - share:
        return 0.0
    return service_s / (n_servers - offered) * log(waits / (1.0 - share))


def mmc_wait_above(limit_s: float, arrivals_per_s: float, service_s: float, n_servers: int) -> float:
    """Return the share of arrivals that wait longer than `limit_s` in M/M/c, first come first served.

    >>> round(mmc_wait_above(21.91, 0.8, service_s=1.0, n_servers=1), 4)
    0.01
    """
    assert limit_s >= 0.0, limit_s
    offered = arrivals_per_s * service_s
    if offered >= n_servers:
        return 1.0
    return erlang_c(offered, n_servers) * exp(-(n_servers - offered) * limit_s / service_s)


def md1_wait_s(arrivals_per_s: float, service_s: float) -> float:
    """Return the mean wait in M/D/1: half of M/M/1.

    >>> round(md1_wait_s(0.8, service_s=1.0), 6)
    2.0
    """
    return mg1_wait_s(arrivals_per_s, service_s, cv2=0.0)


def mg1_wait_s(arrivals_per_s: float, service_s: float, cv2: float) -> float:
    """Return the mean wait in M/G/1 (Pollaczek-Khinchine); `cv2` is variance over squared mean of service.

    >>> round(mg1_wait_s(0.5, service_s=1.0, cv2=3.0), 6)
    2.0
    """
    assert cv2 >= 0.0, cv2
    rho = utilisation(arrivals_per_s, service_s)
    return inf if rho >= 1.0 else rho * service_s * (1.0 + cv2) / (2.0 * (1.0 - rho))


def mgc_wait_s(arrivals_per_s: float, service_s: float, n_servers: int, cv2: float) -> float:
    """Return about the mean wait in M/G/c: M/M/c times (1 + cv2) / 2 (Lee and Longton 1959).

    >>> round(mgc_wait_s(2.0, service_s=1.0, n_servers=3, cv2=0.0), 6)
    0.222222
    """
    return ggc_wait_s(arrivals_per_s, service_s, n_servers, arrival_cv2=1.0, service_cv2=cv2)


def ggc_wait_s(
    arrivals_per_s: float, service_s: float, n_servers: int, *, arrival_cv2: float, service_cv2: float
) -> float:
    """Return about the mean wait in G/G/c: M/M/c times the mean of both squared variations (Allen-Cunneen).

    >>> round(ggc_wait_s(0.8, 1.0, 1, arrival_cv2=4.0, service_cv2=1.0), 6)
    10.0
    """
    assert arrival_cv2 >= 0.0 and service_cv2 >= 0.0, (arrival_cv2, service_cv2)
    return mmc_wait_s(arrivals_per_s, service_s, n_servers) * (arrival_cv2 + service_cv2) / 2.0


def processor_sharing_sojourn_s(arrivals_per_s: float, service_s: float, own_service_s: float | None = None) -> float:
    """Return the mean time in M/G/1 processor sharing of a job of `own_service_s` (the mean job if None).

    Insensitive to the distribution of service; what a server that splits itself evenly does.

    >>> round(processor_sharing_sojourn_s(0.5, service_s=1.0), 6)
    2.0
    """
    rho = utilisation(arrivals_per_s, service_s)
    own_s = service_s if own_service_s is None else own_service_s
    return inf if rho >= 1.0 else own_s / (1.0 - rho)


def closed_throughput_per_s(n_users: int, think_s: float, service_s: float) -> float:
    """Return the throughput of users who each think, send, and wait for the end (exact MVA, one queue).

    >>> round(closed_throughput_per_s(3, think_s=2.0, service_s=1.0), 4)
    0.7895
    """
    assert n_users >= 0 and think_s >= 0.0 and service_s > 0.0, (n_users, think_s, service_s)
    queued, throughput = 0.0, 0.0
    for n in range(1, n_users + 1):
        sojourn_s = service_s * (1.0 + queued)
        throughput = n / (think_s + sojourn_s)
        queued = throughput * sojourn_s
    return throughput


def littles_number(arrivals_per_s: float, sojourn_s: float) -> float:
    """Return the mean number inside: Little's law L = lambda W, whatever the queue.

    >>> littles_number(2.0, sojourn_s=1.5)
    3.0
    """
    assert arrivals_per_s >= 0.0 and sojourn_s >= 0.0, (arrivals_per_s, sojourn_s)
    return arrivals_per_s * sojourn_s
