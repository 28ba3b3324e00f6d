"""Ladder: from the megawatts announced to the megawatts that serve within the SLO and are sold, rung by rung.

There is one ladder, for every site and every report. All rungs are in **IT MW**: power at the equipment. What is
declared at the meter (announced, contracted, energised) is divided by the PUE at the design wet bulb on its way in
(`it_equivalents`), so the unit changes before the first rung and no step of the ladder is a mere change of unit.
`coolable` is what energised power carries after redundancy and cooling plant in the hottest design hour; from
`racked` on the equipment's own kW count.

Each rung keeps a raw value and a running minimum. The minimum never rises; where a raw value lies above it (more
racks than power, more sold than can be served) the excess shows. Amounts measured in a run come from `report`.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from math import fsum

from baseload.formulas.cooling import usable_it_kw

RUNGS = ("announced", "contracted", "energised", "coolable", "racked", "healthy", "within_slo", "sold")

REASONS: dict[str, str] = {
    "announced": "nothing is lost here: the top of the ladder",
    "contracted": "announced, but no grid agreement is signed",
    "energised": "contracted, but power does not flow yet",
    "coolable": "held back by redundancy, or more than the plant can cool in the hottest design hour",
    "racked": "could be powered and cooled, but no rack stands there",
    "healthy": "racked, but failed, in repair, starting, or under a power limit",
    "within_slo": "healthy, but beyond the load at which every SLO is met",
    "sold": "could be served within the SLO, but nobody bought it",
    # Finer reasons that a caller may give for a step.
    "redundancy": "kept spare by the redundancy of the power chain",
    "cooling": "more than the cooling plant can take in the hottest design hour",
    "power_limit": "healthy, but under a power limit at the time",
    "starting": "racked, but not yet up",
}

_TOLERANCE_MW = 1e-9
_TOLERANCE_TOKENS_PER_S = 1e-6


@dataclass(frozen=True, slots=True, kw_only=True)
class Rung:
    """One rung: what it would allow by itself, what it allows given those above, and what the step loses."""

    name: str
    raw_mw: float  # IT MW, by itself
    mw: float  # IT MW, never more than the rung above
    lost_mw: float  # the rung above less this one; 0 at the top
    reason: str  # a key of REASONS: why this step loses anything
    excess_mw: float  # raw above what the rungs above allow
    tokens_per_s: float = 0.0  # 0 until `with_tokens`
    lost_tokens_per_s: float = 0.0
    excess_tokens_per_s: float = 0.0
    modelled: bool = False  # tokens_per_s rests on the declared mix, not on what was simulated or measured

    @property
    def oversold(self) -> bool:
        """Whether more is claimed here than the rungs above can carry."""
        return self.excess_mw > _TOLERANCE_MW or self.excess_tokens_per_s > _TOLERANCE_TOKENS_PER_S


def it_equivalents(site_mw: Mapping[str, float], pue_peak: float) -> dict[str, float]:
    """Return declared MW at the meter as IT MW: divided by the PUE at the design wet bulb.

    >>> it_equivalents({"announced": 100.0, "contracted": 50.0}, pue_peak=1.25)
    {'announced': 80.0, 'contracted': 40.0}
    """
    assert pue_peak >= 1.0, pue_peak
    return {name: mw / pue_peak for name, mw in site_mw.items()}


def coolable_mw(
    energised_site_mw: float, pue_peak: float, redundancy: str = "N", n_modules: int = 4,
    cooling_mw: float = float("inf"),
) -> float:  # fmt: skip
    """Return the raw IT MW of the `coolable` rung from MW at the meter; see cooling.usable_it_kw.

    >>> coolable_mw(100.0, pue_peak=1.25, redundancy="N+1", n_modules=4, cooling_mw=55.0)
    55.0
    """
    return usable_it_kw(energised_site_mw, pue_peak, redundancy, n_modules, cooling_mw)


def ladder(raw_mw: Mapping[str, float], reasons: Mapping[str, str] | None = None) -> list[Rung]:
    """Return the ladder of raw IT MW by rung name. A rung that is not known counts as the one above it.

    The loss of a step has the rung's own reason, unless `reasons` gives another key for it.

    >>> rungs = ladder({"announced": 100, "energised": 40, "coolable": 30, "racked": 35, "healthy": 28, "sold": 20})
    >>> [(rung.name, rung.mw, rung.lost_mw) for rung in rungs if rung.lost_mw]
    [('energised', 40.0, 60.0), ('coolable', 30.0, 10.0), ('healthy', 28.0, 2.0), ('sold', 20.0, 8.0)]
    >>> [(rung.name, rung.excess_mw) for rung in rungs if rung.oversold]
    [('racked', 5.0)]
    """
    unknown = set(raw_mw) - set(RUNGS)
    assert not unknown, f"no such rung: {sorted(unknown)}"
    assert all(mw >= 0.0 for mw in raw_mw.values()), raw_mw
    why = {name: name for name in RUNGS} | dict(reasons or {})
    assert set(why) == set(RUNGS) and set(why.values()) <= set(REASONS), reasons
    above = float(raw_mw.get(RUNGS[0], max(raw_mw.values(), default=0.0)))
    rungs = []
    for name in RUNGS:
        raw = float(raw_mw.get(name, above))
        mw, excess = min(raw, above), max(0.0, raw - above)
        rungs.append(Rung(name=name, raw_mw=raw, mw=mw, lost_mw=above - mw, reason=why[name], excess_mw=excess))
        above = mw
    return rungs


def mix_tokens_per_s_per_mw(mw_by_share: Sequence[float], tokens_per_s_per_mw: Sequence[float]) -> float:
    """Return the token rate of one IT MW filled with a declared mix: the mean, weighted by the MW of each part.

    A part is a model on an accelerator at its SLO; the shares need not add up to 1.

    >>> mix_tokens_per_s_per_mw([3.0, 1.0], [1e6, 2e6])
    1250000.0
    """
    assert len(mw_by_share) == len(tokens_per_s_per_mw) and min(mw_by_share) >= 0.0, mw_by_share
    total = fsum(mw_by_share)
    assert total > 0.0, mw_by_share
    return fsum(share * rate for share, rate in zip(mw_by_share, tokens_per_s_per_mw)) / total


def with_tokens(
    rungs: Sequence[Rung], tokens_per_s: Mapping[str, float], declared_tokens_per_s_per_mw: float
) -> list[Rung]:
    """Return the ladder with token rates: as given where known, the rest by the declared mix and marked modelled.

    `tokens_per_s` names rungs whose rate was simulated or measured: `within_slo` and `sold`, say, and `racked` and
    `healthy` if known. A rung that is not adds its extra MW times the mix to the rung below it; one below all
    known rungs keeps the last one's tokens per MW. The rates never rise down the ladder; what is claimed above
    that (more tokens sold than can be served within the SLO) is the excess.

    >>> rungs = ladder({"announced": 10, "racked": 4, "within_slo": 3, "sold": 2})
    >>> done = with_tokens(rungs, {"racked": 4e6, "within_slo": 2.5e6, "sold": 3e6}, 9e5)
    >>> [(rung.tokens_per_s, rung.modelled) for rung in done if rung.name in ("announced", "within_slo")]
    [(9400000.0, True), (2500000.0, False)]
    >>> done[-1].oversold, done[-1].excess_tokens_per_s
    (True, 500000.0)
    """
    assert declared_tokens_per_s_per_mw >= 0.0, declared_tokens_per_s_per_mw
    assert all(rate >= 0.0 for rate in tokens_per_s.values()), tokens_per_s
    rates = _rates(rungs, tokens_per_s, declared_tokens_per_s_per_mw)
    done: list[Rung] = []
    above = rates[0] if rates else 0.0
    for rung, raw in zip(rungs, rates):
        rate = min(raw, above)
        done.append(
            replace(
                rung,
                tokens_per_s=rate,
                lost_tokens_per_s=above - rate,
                excess_tokens_per_s=max(0.0, raw - above) if rung.name in tokens_per_s else 0.0,
                modelled=rung.name not in tokens_per_s,
            )
        )
        above = rate
    return done


def _rates(rungs: Sequence[Rung], known: Mapping[str, float], per_mw: float) -> list[float]:
    # From the bottom: each unknown rung is the one below plus its extra MW at the declared mix. Below all known
    # ones it is its share of the lowest known one.
    lowest = next((rung for rung in reversed(rungs) if rung.name in known and rung.mw > 0.0), None)
    rates: list[float] = []
    below_mw, below_rate, below_all_known = 0.0, 0.0, lowest is not None
    for rung in reversed(rungs):
        below_all_known = below_all_known and rung.name not in known
        if rung.name in known:
            rate = known[rung.name]
        elif below_all_known and lowest:
            rate = known[lowest.name] * (rung.mw / lowest.mw)
        else:
            rate = below_rate + (rung.mw - below_mw) * per_mw
        rates.append(rate)
        below_mw, below_rate = rung.mw, rate
    return rates[::-1]


def sum_of_ladders(ladders: Iterable[Sequence[Rung]]) -> list[Rung]:
    """Return the ladder of a fleet: site by site added up, so that one site's surplus does not hide another's lack.

    >>> a, b = ladder({"announced": 10, "racked": 4}), ladder({"announced": 2, "racked": 5})
    >>> [(rung.mw, rung.excess_mw) for rung in sum_of_ladders([a, b]) if rung.name == "racked"]
    [(6.0, 3.0)]
    """
    columns = list(zip(*ladders))
    return [
        Rung(
            name=column[0].name,
            raw_mw=fsum(rung.raw_mw for rung in column),
            mw=fsum(rung.mw for rung in column),
            lost_mw=fsum(rung.lost_mw for rung in column),
            reason=column[0].reason,
            excess_mw=fsum(rung.excess_mw for rung in column),
            tokens_per_s=fsum(rung.tokens_per_s for rung in column),
            lost_tokens_per_s=fsum(rung.lost_tokens_per_s for rung in column),
            excess_tokens_per_s=fsum(rung.excess_tokens_per_s for rung in column),
            modelled=any(rung.modelled for rung in column),
        )
        for column in columns
    ]
