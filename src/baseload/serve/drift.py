"""Drift: says when measured latency has left the band that the twin expects, for long enough to be told.

The expectation comes from the same numbers that the twin and the door use: time to first token is the prompt at the
deployment's speed, what waits before it, the network, and a step; time per output token is the step at the load at that
time. Each request gives the logarithm of measured over expected; its running mean lies in a band around what was found
normal (a calibration's own bias is no drift), widened by how much requests scatter. An alarm is raised after the mean has
been outside for `hold_s`, and lifted after it has been inside for as long. Measuring is the gateway's; telling people is
the control plane's.
"""

from __future__ import annotations

import math
from typing import NamedTuple

from baseload.records import SERVED
from baseload.serve.rows import SettleRow
from baseload.serve.tables import DeploymentRow, SiteRow

BAND = 0.15  # of the mean: what the twin promises on accelerators it was calibrated for
SIGMAS = 4.0  # of the running mean: false alarms in independent requests about once in 30,000 means
MEMORY = 0.01  # weight of the newest request: the mean spans about 200
LEAST_REQUESTS = 200  # before anything is said
HOLD_S = 60.0
LEAST_STEPS = 8  # shorter answers say little about time per token


def expected_ttft_s(
    row: DeploymentRow, site: SiteRow, *, input_tokens: int, cached_tokens: int = 0, waiting_tokens: float = 0.0
) -> float:
    """Return the time to first token to expect from a replica, in seconds, as seen at the gateway.

    `waiting_tokens`: prompt tokens that were before it in the replica's queue.
    """
    fresh = max(1, input_tokens - cached_tokens)
    return (fresh + waiting_tokens) / row.prefill_tokens_per_s + row.decode_s_per_token + 2.0 * site.one_way_s


def expected_tpot_s(row: DeploymentRow, *, running: float) -> float:
    """Return the time per output token to expect with so many requests running in the replica, in seconds.

    The tables hold the step at half load; between an empty and a full replica a step grows by about half of it, in
    line with the requests in it (the part that reads their KV).
    """
    load = min(1.0, max(0.0, running / row.slots))
    return row.decode_s_per_token * (0.75 + 0.5 * load)


class Verdict(NamedTuple):
    """What is thought of one series now."""

    drifted: bool
    ratio: float  # measured over expected, as far as it is not what was found normal
    low: float  # the band
    high: float
    n: int


class Alarm(NamedTuple):
    """A series that has left its band."""

    deployment: str
    kind: str  # ttft or tpot
    what: str  # in a sentence
    seen: Verdict


class Series:
    """Measured over expected of one quantity of one deployment."""

    def __init__(self, *, band: float = BAND, hold_s: float = HOLD_S, bias: float = 1.0) -> None:
        self.band, self.hold_s = band, hold_s
        self.normal = math.log(bias)  # what a calibration run found
        self.n = 0
        self.mean = 0.0  # of the logarithm, less normal
        self.square = 0.0
        self.drifted = False
        self.changed_s: float | None = None  # since when the mean says otherwise than `drifted`

    def add(self, now_s: float, measured_s: float, expected_s: float) -> None:
        """Take one request."""
        if not (measured_s > 0.0 and expected_s > 0.0):
            return
        value = math.log(measured_s / expected_s) - self.normal
        value = min(3.0, max(-3.0, value))  # one request in a thousand must not be a drift
        self.n += 1
        weight = max(MEMORY, 1.0 / self.n)
        off = value - self.mean
        self.mean += weight * off
        self.square += weight * (off * (value - self.mean) - self.square)
        if self.n < LEAST_REQUESTS:
            return
        low, high = self.limits()
        outside = not low <= self.mean <= high
        if outside == self.drifted:
            self.changed_s = None
        elif self.changed_s is None:
            self.changed_s = now_s
        elif now_s - self.changed_s >= self.hold_s:
            self.drifted, self.changed_s = outside, None

    def limits(self) -> tuple[float, float]:
        """Return the band of the mean logarithm: the twin's, and the scatter of a mean of so many."""
        of_mean = math.sqrt(max(0.0, self.square) * MEMORY / (2.0 - MEMORY))
        return math.log(1.0 - self.band) - SIGMAS * of_mean, math.log(1.0 + self.band) + SIGMAS * of_mean

    def verdict(self) -> Verdict:
        """Return what is thought now."""
        low, high = self.limits()
        return Verdict(self.drifted, math.exp(self.mean), math.exp(low), math.exp(high), self.n)


class Drift:
    """The series of every deployment: `ttft` and `tpot`."""

    def __init__(self, deployments: list[DeploymentRow], sites: list[SiteRow], *, band: float = BAND) -> None:
        self.deployments, self.sites, self.band = deployments, sites, band
        self.rows = {row.name: i for i, row in enumerate(deployments)}
        self.places = {row.name: i for i, row in enumerate(sites)}
        self.ttft = [Series(band=band) for _ in deployments]
        self.tpot = [Series(band=band) for _ in deployments]

    def reload(self, deployments: list[DeploymentRow], sites: list[SiteRow]) -> None:
        """Take new numbers of the same deployments and sites, and those that stand behind them now."""
        assert [row.name for row in deployments[: len(self.deployments)]] == [row.name for row in self.deployments]
        more = len(deployments) - len(self.deployments)
        for i, (was, now) in enumerate(zip(self.deployments, deployments, strict=False)):
            if was.engine != now.engine:  # another engine stands there now: nothing was measured of it
                self.ttft[i], self.tpot[i] = Series(band=self.band), Series(band=self.band)
        self.deployments, self.sites = deployments, sites
        self.rows = {row.name: i for i, row in enumerate(deployments)}
        self.places = {row.name: i for i, row in enumerate(sites)}
        self.ttft += [Series(band=self.band) for _ in range(more)]
        self.tpot += [Series(band=self.band) for _ in range(more)]

    def answered(
        self, now_s: float, deployment_i: int, site_i: int, *, ttft_s: float, input_tokens: int, cached_tokens: int = 0,
        waiting_tokens: float = 0.0, tpot_s: float = 0.0, running: float = 0.0,
    ) -> None:  # fmt: skip
        """Take one served request; `tpot_s` 0: one token only."""
        row = self.deployments[deployment_i]
        expected_s = expected_ttft_s(
            row, self.sites[site_i], input_tokens=input_tokens, cached_tokens=cached_tokens,
            waiting_tokens=waiting_tokens,
        )  # fmt: skip
        self.ttft[deployment_i].add(now_s, ttft_s, expected_s)
        if tpot_s > 0.0:
            self.tpot[deployment_i].add(now_s, tpot_s, expected_tpot_s(row, running=running))

    def settled(
        self, now_s: float, row: SettleRow, *, running: float = 0.0, waiting: float = 0.0, deployment_i: int = -1
    ) -> None:
        """Take a settled request from its row; only streams at the first try tell when their first token came.

        `deployment_i` is the row of its replica's deployment (absent: the last of its name). `running`, `waiting`: requests
        in its replica, as last scraped; those that wait are taken to be as long as it.
        """
        i = deployment_i if deployment_i >= 0 else self.rows.get(row.deployment, -1)
        where = self.places.get(row.site, -1)
        whole = row.streamed and row.status == SERVED and row.n_tries == 1 and row.output_tokens > 0
        if i < 0 or where < 0 or not whole or row.first_token_ns < 0:
            return
        steps = row.output_tokens - 1
        self.answered(
            now_s, i, where, ttft_s=(row.first_token_ns - row.arrival_ns) * 1e-9, input_tokens=row.input_tokens,
            cached_tokens=row.cached_tokens, waiting_tokens=waiting * row.input_tokens,
            tpot_s=(row.finish_ns - row.first_token_ns) * 1e-9 / steps if steps >= LEAST_STEPS else 0.0, running=running,
        )  # fmt: skip

    def alarms(self) -> list[Alarm]:
        """Return the series that have left their band."""
        told = []
        for kind, name, series in (
            ("ttft", "time to first token", self.ttft), ("tpot", "time per token", self.tpot),
        ):  # fmt: skip
            for row, one in zip(self.deployments, series, strict=True):
                seen = one.verdict()
                if seen.drifted:
                    what = (
                        f"{row.name}: {name} is {seen.ratio:.2f} times what the twin expects "
                        f"(band {seen.low:.2f} to {seen.high:.2f}, {seen.n} requests); calibrate it again, or look for "
                        "what slows it"
                    )
                    told.append(Alarm(row.name, kind, what, seen))
        return told
