"""Cells of a text table as numbers, a column at a time: exact whole nanoseconds and tokens, and which row is wrong.

A column is a byte buffer with a start and an end for each cell. The common forms are read by NumPy, the others one cell
at a time; whatever is not a number comes back as BAD. What a column means, and files, are `trace_files.py`.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime
from decimal import Decimal, InvalidOperation

import numpy as np
import numpy.typing as npt

from baseload.adapters.traces import Ints, mixed64
from baseload.units import NS_PER_S

BAD = np.iinfo(np.int64).min
"""What stands for a cell that is not a number."""
BEYOND = np.int64(4_000_000_000_000_000_000)
"""What stands for a number too large to be meant: beyond every limit, and far from overflow."""
_LONGEST_NUMBER = 64
_ZERO = 48
_DAY_NS = 86_400 * NS_PER_S

Bytes = npt.NDArray[np.uint8]


@dataclass(frozen=True, slots=True)
class Cells:
    """A column: cell i is `text[start[i]:end[i]]`."""

    text: Bytes
    start: Ints
    end: Ints

    def cell(self, i: int) -> bytes:
        """Return one cell without surrounding blanks."""
        return self.text[self.start[i] : self.end[i]].tobytes().strip()


def whole_numbers(cells: Cells) -> Ints:
    """Return whole numbers (tokens); BAD where a cell is none. `1155.0` is one, `1155.5` is not."""
    width = cells.end - cells.start
    most = min(int(width.max(initial=0)), 18)
    value = np.zeros(len(width), np.int64)
    plain = (width > 0) & (width <= 18)
    power = 1
    for place in range(most):
        inside = place < width
        digit = _at(cells, cells.end - 1 - place)
        plain &= ~inside | (digit < 10)
        value += np.where(inside, digit, 0).astype(np.int64) * power
        power *= 10
    return _others(cells, value, ~plain, _whole)


def seconds(cells: Cells) -> Ints:
    """Return nanoseconds of a time in seconds, digits beyond the ninth cut off; BAD where a cell is no number."""
    return _decimals(cells, 9)


def timestamps(cells: Cells) -> Ints:
    """Return nanoseconds since 1970 of `2023-11-16 18:15:46.6805900`, with or without a fraction, Z or an offset."""
    width = cells.end - cells.start
    shape = width * 4 + (_at(cells, cells.start + 19) + _ZERO == ord(".")) * 2
    shape += _at(cells, cells.end - 1) + _ZERO == ord("Z")
    value = np.full(len(width), BAD)
    bad = np.ones(len(width), np.bool_)
    for kind in np.unique(shape)[:64].tolist():  # more kinds than that are left to the slow way
        which = np.flatnonzero(shape == kind)
        found = _timestamps_alike(cells, cells.start[which], kind // 4, bool(kind & 2), bool(kind & 1))
        value[which] = found
        bad[which] = found == BAD
    return _others(cells, value, bad, _timestamp)


def hashes(cells: Cells) -> npt.NDArray[np.uint64]:
    """Return a 64-bit hash of each cell's bytes, 0 for an empty one."""
    width = cells.end - cells.start
    value = np.zeros(len(width), np.uint64)
    for place in range(int(width.max(initial=0))):
        inside = place < width
        letter = _at(cells, cells.start + place).astype(np.uint64) + np.uint64(1 + _ZERO)
        value = np.where(inside, value * np.uint64(0x100000001B3) + letter, value)
    return np.where(width > 0, np.maximum(mixed64(value ^ (width.astype(np.uint64) << np.uint64(56))), 1), 0)


def _at(cells: Cells, where: Ints) -> npt.NDArray[np.uint8]:
    """Return the bytes there minus the code of `0`: a digit's value where it is below 10."""
    return np.asarray(cells.text.take(where, mode="clip") - np.uint8(_ZERO))


def _others(cells: Cells, value: Ints, which: npt.NDArray[np.bool_], read: Callable[[bytes], int]) -> Ints:
    """Read cells of uncommon form one at a time, up to the first that cannot be read."""
    left = np.flatnonzero(which)
    value[left] = BAD
    for i in left.tolist():
        value[i] = read(cells.cell(i))
        if value[i] == BAD:
            break
    return value


def _decimals(cells: Cells, places: int) -> Ints:
    width = cells.end - cells.start
    most = min(int(width.max(initial=0)), 32)
    value = np.zeros(len(width), np.int64)
    after = np.zeros(len(width), np.int64)  # digits taken after the point
    before = np.zeros(len(width), np.int64)
    point = np.zeros(len(width), np.bool_)
    plain = (width > 0) & (width <= 32)
    for place in range(most):
        inside = place < width
        digit = _at(cells, cells.start + place)
        number = digit < 10
        dot = digit == 254  # "." - "0"
        plain &= ~inside | number | (dot & ~point)
        take = inside & number & (~point | (after < places)) & (before < 10)
        value = np.where(take, value * 10 + digit, value)
        after += take & point
        before += inside & number & ~point
        point |= inside & dot
    plain &= (before > 0) & (before < 10)
    power = 10 ** np.arange(places + 1, dtype=np.int64)
    return _others(cells, value * power[places - after], ~plain, lambda text: _decimal(text, places))


def _number(text: bytes) -> Decimal | None:
    if not text or len(text) > _LONGEST_NUMBER or b"_" in text:
        return None
    try:
        number = Decimal(text.decode("ascii"))
    except (InvalidOperation, ValueError):
        return None
    return number if number.is_finite() else None


def _decimal(text: bytes, places: int) -> int:
    number = _number(text)
    if number is None:
        return int(BAD)
    if abs(number) >= 10_000_000_000:
        return int(BEYOND) if number > 0 else -int(BEYOND)
    if abs(number) < Decimal("1e-12"):
        return 0 if number >= 0 else -1
    return int(number.scaleb(places)) or (0 if number >= 0 else -1)


def _whole(text: bytes) -> int:
    number = _number(text)
    if number is None:
        return int(BAD)
    if abs(number) >= 10**18:
        return int(BEYOND) if number > 0 else -int(BEYOND)
    if abs(number) < 1:
        return 0 if number == 0 else int(BAD)
    return int(number) if number == int(number) else int(BAD)


def _timestamps_alike(cells: Cells, start: Ints, width: int, fraction: bool, zulu: bool) -> Ints:
    """Read timestamps that share width and form; BAD where one does not fit the form."""
    tail = width - 19
    offset = 0
    if zulu:
        tail -= 1
    elif tail >= 6:
        sign = _at(cells, start + width - 6) + _ZERO
        offset = 6 if bool(((sign == ord("+")) | (sign == ord("-"))).all()) else 0
        tail -= offset
    digits = tail - 1 if fraction else 0
    if width < 19 or tail != digits + int(fraction) or not 0 <= digits <= 9 or (fraction and digits == 0):
        return np.full(len(start), BAD)
    right = np.ones(len(start), np.bool_)

    def number(at: int, n: int) -> Ints:
        value = np.zeros(len(start), np.int64)
        for place in range(at, at + n):
            digit = _at(cells, start + place)
            np.logical_and(right, digit < 10, out=right)
            value = value * 10 + digit
        return value

    for at, letters in ((4, "-"), (7, "-"), (10, " T"), (13, ":"), (16, ":")):
        letter = _at(cells, start + at) + _ZERO
        right &= np.isin(letter, [ord(one) for one in letters])
    hour, minute, second = number(11, 2), number(14, 2), number(17, 2)
    right &= (hour < 24) & (minute < 60) & (second < 60)
    ns = (hour * 3600 + minute * 60 + second) * NS_PER_S
    ns += _days(number(0, 4) * 10_000 + number(5, 2) * 100 + number(8, 2), right)
    if fraction:
        ns += number(20, digits) * 10 ** (9 - digits)
    if offset:
        sign = np.where(_at(cells, start + width - 6) + _ZERO == ord("-"), -1, 1)
        right &= _at(cells, start + width - 3) + _ZERO == ord(":")
        hours, minutes = number(width - 5, 2), number(width - 2, 2)
        right &= (hours < 24) & (minutes < 60)
        ns -= sign * (hours * 3600 + minutes * 60) * NS_PER_S
    return np.where(right, ns, BAD)


def _days(yyyymmdd: Ints, right: npt.NDArray[np.bool_]) -> Ints:
    """Return nanoseconds since 1970 of days, and clear `right` where there is no such day."""
    several, which = np.unique(yyyymmdd, return_inverse=True)
    days = np.zeros(len(several), np.int64)
    real = np.zeros(len(several), np.bool_)
    for i, number in enumerate(several.tolist()):
        try:
            day = datetime(number // 10_000, number // 100 % 100, number % 100, tzinfo=UTC)
        except ValueError:
            continue
        if 1900 <= day.year <= 2200:  # within int64 nanoseconds
            days[i], real[i] = day.toordinal() - 719_163, True
    np.logical_and(right, real[which], out=right)
    return np.asarray(days[which] * _DAY_NS)


def _timestamp(text: bytes) -> int:
    if not 19 <= len(text) <= 40:
        return int(BAD)
    try:
        moment = datetime.fromisoformat(text.decode("ascii"))
    except ValueError:
        return int(BAD)
    if not 1900 <= moment.year <= 2200:
        return int(BAD)
    since = (moment if moment.tzinfo else moment.replace(tzinfo=UTC)) - datetime(1970, 1, 1, tzinfo=UTC)
    return ((since.days * 86_400 + since.seconds) * 1_000_000 + since.microseconds) * 1000
