"""Made-up demand: arrival processes, lengths and shared prefixes as `fleet.model.Generator` declares them.

Seeded, and drawn in blocks of a fixed size, so that the same seed gives the same bytes however the demand is cut into
chunks. Who asks from where is `mix.py`.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from datetime import date
from functools import cache
from pathlib import Path

import numpy as np
import numpy.typing as npt

from baseload.adapters.trace_files import open_trace
from baseload.adapters.trace_rows import prefix_ids
from baseload.adapters.traces import (
    MOST_HASHES,
    MOST_S,
    MOST_TOKENS,
    ClosedLoop,
    Ints,
    Trace,
    TraceSource,
    columns,
    key64,
    mixed64,
)
from baseload.errors import TraceError
from baseload.fleet.model import Generator
from baseload.units import NS_PER_S

BLOCK_ROWS = 65_536
MOST_SAMPLES = 2_000_000  # rows of a trace that lengths are resampled from
ZIPF_EXPONENT = 1.0
"""How much more popular the first of the shared prefixes is: the k-th is asked for 1/k as often."""
_HOUR_S, _WEEK_S, _GRID_S = 3600.0, 604_800.0, 60.0
_STEADY_CYCLES = 0.01  # bursts per request-gap beyond which an MMPP is a Poisson process to 2 % of its dispersion
Floats = npt.NDArray[np.float64]
Dice = np.random.Generator
Arrivals = Iterator[Ints]


def generate(
    generator: Generator,
    *,
    seed: int,
    start: date | None = None,
    start_hour_utc: float = 0.0,
    base_folder: Path | None = None,
    block_tokens: int = 16,
) -> TraceSource:
    """Return the demand that a generator declares.

    `start` and `start_hour_utc` place a diurnal run in the week (a Monday at 0:00 where absent). Prefixes are hashed in
    blocks of 16 to 512 tokens, a multiple of `block_tokens`.
    """
    g = generator
    _check(g)
    lengths, lengths_note = _lengths(g, base_folder)
    hash_tokens = prefix_block_tokens(g.prefix_tokens, block_tokens) if g.prefixes and g.prefix_tokens else 0
    closed = g.kind == "closed_loop"
    week_s = (start.weekday() * 24.0 if start else 0.0) * _HOUR_S + start_hour_utc * _HOUR_S

    def blocks() -> Iterator[Trace]:
        arrival_dice, length_dice, prefix_dice, burst_dice = (
            np.random.Generator(np.random.PCG64(np.random.SeedSequence([seed & (2**64 - 1), stream])))
            for stream in range(4)
        )
        n = 0
        for arrival_ns in _bounded(g, _arrivals(g, arrival_dice, burst_dice, week_s)):
            prompts, answers = lengths(length_dice, len(arrival_ns))
            yield from _with_prefixes(g, arrival_ns, prompts, answers, prefix_dice, hash_tokens, seed, n)
            n += len(arrival_ns)
        if not n:
            raise TraceError(
                f"demand.generator: no request falls into {g.duration_s:g} s at {g.requests_per_s:g} a second; "
                "raise requests_per_s or duration_s, or say `requests`"
            )

    about = None if closed and not g.requests else float(g.requests or g.requests_per_s * g.duration_s)
    lasting_s = g.duration_s
    if g.requests and not closed:
        lasting_s = g.requests / g.requests_per_s  # expected
    rate = f"{g.users} users" if closed else f"{g.requests_per_s:g} requests/s"
    return TraceSource(
        name=g.kind,
        source_note=f"made up: {g.kind}, {rate}, {lengths_note}, seed {seed}",
        blocks=blocks,
        n=g.requests,
        n_about=about,
        duration_s=lasting_s,
        hash_block_tokens=hash_tokens,
        closed_loop=ClosedLoop(g.users, g.think_s) if closed else None,
    )


def _check(g: Generator) -> None:
    if g.kind == "mmpp" and g.burst_factor * g.burst_ratio > 1.0 + 1e-9:
        raise TraceError(
            f"demand.generator.burst_factor: {g.burst_factor:g} times the mean rate in {g.burst_ratio:g} of the time is "
            "more than all requests; burst_factor x burst_ratio may be 1 at most"
        )
    if g.requests and g.kind != "closed_loop" and g.requests / g.requests_per_s > MOST_S / 10:
        raise TraceError(
            f"demand.generator.requests: {g.requests:,} at {g.requests_per_s:g} a second take more than "
            f"{MOST_S // 10:,} s; ask for fewer, or raise requests_per_s"
        )


# ---- arrivals ------------------------------------------------------------------------------------------------


def _bounded(g: Generator, arrivals: Arrivals) -> Arrivals:
    """Cut arrivals off after `requests`, or else at `duration_s`; a closed loop without either goes on."""
    left = g.requests
    end_ns = round(g.duration_s * NS_PER_S)
    for block in arrivals:
        if left is not None:
            if block[min(left, len(block)) - 1] > MOST_S * NS_PER_S:
                raise TraceError(
                    f"demand.generator.requests: {g.requests:,} requests take more than {MOST_S:,} s; ask for fewer, "
                    "or raise requests_per_s"
                )
            yield block[:left]
            left -= len(block)
            if left <= 0:
                return
        elif g.kind != "closed_loop" and block[-1] >= end_ns:
            yield block[: int(np.searchsorted(block, end_ns, side="left"))]
            return
        else:
            yield block


def _arrivals(g: Generator, dice: Dice, burst_dice: Dice, week_s: float) -> Arrivals:
    """Return endless blocks of arrival times."""
    rate = g.requests_per_s
    if g.kind == "closed_loop":
        return _at_once()
    if g.kind == "diurnal":
        return _diurnal(g, dice, week_s)
    if g.kind == "gamma" and g.cv < 1e-6:
        return _renewal(lambda n: np.full(n, 1.0 / rate))
    if g.kind == "gamma" and g.cv != 1.0:
        shape = 1.0 / g.cv**2
        return _renewal(lambda n: dice.standard_gamma(shape, n) / (shape * rate))
    if g.kind == "mmpp" and g.burst_factor > 1.0 and rate * g.burst_s / g.burst_ratio >= _STEADY_CYCLES:
        return _bursts(g, dice, burst_dice)
    return _renewal(lambda n: dice.standard_exponential(n) / rate)


def _at_once() -> Arrivals:
    while True:
        yield np.zeros(BLOCK_ROWS, np.int64)


def _renewal(gaps_s: Callable[[int], Floats]) -> Arrivals:
    """Yield arrivals with independent gaps; whole nanoseconds are carried, so no precision is lost on the way."""
    base_ns = 0
    while True:
        later_s = np.cumsum(gaps_s(BLOCK_ROWS))
        yield _ns(base_ns, later_s)
        base_ns += round(min(float(later_s[-1]), 9e9) * NS_PER_S)


def _ns(base_ns: int, later_s: Floats) -> Ints:
    """Return base plus seconds as nanoseconds; what lies beyond every run stays at the limit."""
    capped = np.minimum(later_s, 4.0 * MOST_S)
    return np.asarray(np.minimum(base_ns + np.rint(capped * NS_PER_S).astype(np.int64), 4 * MOST_S * NS_PER_S))


def _bursts(g: Generator, dice: Dice, burst_dice: Dice) -> Arrivals:
    """Yield arrivals of a two-state Markov-modulated Poisson process (Fischer and Meier-Hellstern, 1993).

    Exponential times in and between bursts; the rate between bursts keeps the mean. Unit-rate Poisson arrivals are laid
    on the integral of the rate, which is piecewise linear.
    """
    cycle = g.requests_per_s * g.burst_s / g.burst_ratio  # requests in a cycle
    quiet = max(0.0, 1.0 - g.burst_factor * g.burst_ratio) / (1.0 - g.burst_ratio)
    rates = np.array([g.requests_per_s * g.burst_factor, g.requests_per_s * quiet])
    stays_s = np.array([g.burst_s, min(g.burst_s * (1.0 - g.burst_ratio) / g.burst_ratio, 4.0 * MOST_S)])
    n_rows = int(min(BLOCK_ROWS, max(2048.0, BLOCK_ROWS * cycle)))
    state = 0 if burst_dice.random() < g.burst_ratio else 1  # 0: in a burst
    base_ns = 0
    turn_s, turn_n = np.zeros(1), np.zeros(1)  # where the rate changes: seconds and expected arrivals after base_ns
    while True:
        wanted = np.cumsum(dice.standard_exponential(n_rows))
        while turn_n[-1] < wanted[-1] and turn_s[-1] < 4.0 * MOST_S:
            m = int(min(65_536.0, max(16.0, 2.2 * (wanted[-1] - turn_n[-1]) / cycle)))
            states = (state + np.arange(m)) % 2
            spans_s = burst_dice.standard_exponential(m) * stays_s[states]
            turn_s = np.concatenate([turn_s, turn_s[-1] + np.cumsum(spans_s)])
            turn_n = np.concatenate([turn_n, turn_n[-1] + np.cumsum(spans_s * rates[states])])
            state = (state + m) % 2
        later_s = np.interp(wanted, turn_n, turn_s, right=4.0 * MOST_S)
        yield _ns(base_ns, later_s)
        ahead = turn_s > later_s[-1]
        base_ns += round(float(later_s[-1]) * NS_PER_S)
        turn_s = np.concatenate([np.zeros(1), turn_s[ahead] - later_s[-1]])
        turn_n = np.concatenate([np.zeros(1), turn_n[ahead] - wanted[-1]])


def _diurnal(g: Generator, dice: Dice, week_s: float) -> Arrivals:
    """Yield arrivals of a Poisson process whose rate follows the hour and the day of the week."""
    grid_s, expected = weekly_curve(g)
    total = float(expected[-1])
    begin = float(np.interp(week_s, grid_s, expected))
    weeks = 0
    week_ns, begin_ns = round(_WEEK_S * NS_PER_S), round(week_s * NS_PER_S)
    while True:
        wanted = begin + np.cumsum(dice.standard_exponential(BLOCK_ROWS))
        passed = np.floor(wanted / total)
        within_s = np.interp(wanted - passed * total, expected, grid_s)
        later_weeks = np.minimum(weeks + passed, 4.0 * MOST_S / _WEEK_S).astype(np.int64)
        yield later_weeks * week_ns + np.rint(within_s * NS_PER_S).astype(np.int64) - begin_ns
        weeks = int(later_weeks[-1])
        begin = float(wanted[-1] - passed[-1] * total)


def weekly_curve(g: Generator) -> tuple[Floats, Floats]:
    """Return a week's minutes in seconds from Monday 0:00 UTC, and the requests expected until each.

    A cosine over the day, times one level on weekdays and another on weekends; a whole week has the mean rate.
    """
    grid_s = np.arange(0.0, _WEEK_S + 1.0, _GRID_S)
    middle_h = (grid_s[:-1] + _GRID_S / 2.0) / _HOUR_S
    daily = 1.0 + g.daily_swing * np.cos(2.0 * np.pi * (middle_h - g.peak_hour_utc) / 24.0)
    weekday = 7.0 / (5.0 + 2.0 * g.weekend_ratio)
    level = np.where(middle_h < 120.0, weekday, weekday * g.weekend_ratio)
    expected = np.concatenate([np.zeros(1), np.cumsum(g.requests_per_s * _GRID_S * daily * level)])
    return grid_s, expected


# ---- lengths and prefixes ------------------------------------------------------------------------------------


def _lengths(g: Generator, base_folder: Path | None) -> tuple[Callable[[Dice, int], tuple[Ints, Ints]], str]:
    """Return how lengths are drawn, and how that is said."""
    if g.lengths_from is None:
        note = f"lognormal lengths of mean {g.input_tokens:g} and {g.output_tokens:g} tokens, cv {g.length_cv:g}"
        return (lambda dice, n: (_lognormal(dice, n, g.input_tokens, g.length_cv),
                                 _lognormal(dice, n, g.output_tokens, g.length_cv))), note  # fmt: skip
    sample = _sample(g.lengths_from, base_folder)
    prompts, answers = sample.input_tokens, sample.output_tokens

    def resampled(dice: Dice, n: int) -> tuple[Ints, Ints]:
        pick = dice.integers(0, len(prompts), n)  # both from one row: long prompts keep their answers
        return prompts[pick].astype(np.int64), answers[pick].astype(np.int64)

    return resampled, f"lengths of {g.lengths_from}"


def _sample(name: str, base_folder: Path | None) -> Trace:
    source = open_trace(name, base_folder=base_folder)
    pieces: list[Trace] = []
    n = 0
    for chunk in source.chunks():
        pieces.append(columns(chunk.arrival_ns, chunk.input_tokens, chunk.output_tokens))
        n += len(chunk)
        if n >= MOST_SAMPLES:
            break
    prompts = np.concatenate([piece.input_tokens for piece in pieces])
    answers = np.concatenate([piece.output_tokens for piece in pieces])
    return columns(np.zeros(n, np.int64), prompts, answers)


def _lognormal(dice: Dice, n: int, mean: float, cv: float) -> Ints:
    """Return whole lengths of that mean and coefficient of variation, each at least 1."""
    if cv == 0.0:
        return np.full(n, max(1, round(mean)), np.int64)
    variance = math.log1p(cv * cv)
    tokens = np.exp(dice.standard_normal(n) * math.sqrt(variance) + (math.log(mean) - variance / 2.0))
    return np.asarray(np.rint(np.clip(tokens, 1.0, float(MOST_TOKENS))), np.int64)


def prefix_block_tokens(prefix_tokens: int, block_tokens: int) -> int:
    """Return how many tokens one hash of a shared prefix stands for: as many as divide it, from 16 to 512.

    >>> prefix_block_tokens(2048, 16), prefix_block_tokens(1200, 16), prefix_block_tokens(1200, 64)
    (512, 16, 64)
    """
    tokens = 16
    while tokens < 512 and prefix_tokens % (2 * tokens) == 0:
        tokens *= 2
    return -(-tokens // block_tokens) * block_tokens


@cache
def _popularity(prefixes: int) -> Floats:
    """Return the cumulative Zipf popularity of shared prefixes."""
    weights = np.arange(1.0, prefixes + 1.0) ** -ZIPF_EXPONENT
    cumulative = np.cumsum(weights)
    return np.asarray(cumulative / cumulative[-1])


def _with_prefixes(
    g: Generator,
    arrival_ns: Ints,
    prompts: Ints,
    answers: Ints,
    dice: Dice,
    hash_tokens: int,
    seed: int,
    first_id: int,
) -> Iterator[Trace]:
    """Yield a block, with a shared prefix for each request; a shorter prompt shares what it has of it."""
    if not hash_tokens:
        if len(arrival_ns):
            yield columns(arrival_ns, prompts, answers, first_id=first_id)
        return
    which = np.searchsorted(_popularity(g.prefixes), dice.random(len(arrival_ns)), side="right").astype(np.uint64)
    keys = mixed64(which ^ key64(seed, 0x9EF1))
    counts = np.minimum(g.prefix_tokens, prompts) // hash_tokens
    ends = np.cumsum(counts)
    at = 0
    while at < len(arrival_ns):
        before = int(ends[at - 1]) if at else 0
        until = max(at + 1, int(np.searchsorted(ends, before + MOST_HASHES, side="right")))
        yield columns(
            arrival_ns[at:until],
            prompts[at:until],
            answers[at:until],
            hash_counts=counts[at:until],
            hash_ids=prefix_ids(keys[at:until], counts[at:until]),
            hash_block_tokens=hash_tokens,
            first_id=first_id + at,
        )
        at = until
