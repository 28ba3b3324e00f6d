"""Charts of a plan as inline SVG: what is served by what, money by year, cost and carbon of a million tokens, a tornado."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

from markupsafe import Markup, escape

from baseload.report.charts import N_COLOURS, WIDTH, _path, _svg, _tag, _text, ticks
from baseload.report.plan_model import Swing
from baseload.report.words import money, number

X0, X1, Y0, Y1, HEIGHT = 58.0, WIDTH - 8.0, 14.0, 186.0, 224.0
Words = Callable[[float], str]


def _frame(top: Sequence[float], bottom: float, quarters: Sequence[str], words: Words, caption: str) -> list[str]:
    def y(value: float) -> float:
        return Y1 - (Y1 - Y0) * (value - bottom) / (top[-1] - bottom)

    parts = []
    for value in top:
        parts.append(_tag("line", x1=X0, x2=X1, y1=y(value), y2=y(value), class_="grid"))
        parts.append(_text(X0 - 5.0, y(value) + 4.0, words(value) if value else "0", anchor="end", css="small"))
    n = len(quarters)
    for k, name in enumerate(quarters):
        if name.endswith("Q1") or n < 6:
            x = X0 + (X1 - X0) * k / n
            parts.append(_tag("line", x1=x, x2=x, y1=Y0, y2=Y1, class_="grid"))
            parts.append(_text(x + 3.0, Y1 + 15.0, name[:4] if n >= 6 else name, css="small"))
    parts.append(_text((X0 + X1) / 2.0, HEIGHT - 4.0, caption, "small dim", "middle"))
    return parts


def stacked(
    title: str, layers: Mapping[str, Sequence[float]], quarters: Sequence[str], words: Words, caption: str,
    line: Sequence[float] = (), line_name: str = "",
) -> Markup:  # fmt: skip
    """Draw layers of bars a quarter upon each other, and a line of steps over them."""
    n = len(quarters)
    totals = [sum(values[k] for values in layers.values()) for k in range(n)]
    top = ticks(max([*totals, *line], default=0.0))

    def y(value: float) -> float:
        return Y1 - (Y1 - Y0) * value / top[-1]

    parts = _frame(top, 0.0, quarters, words, caption)
    wide = (X1 - X0) / n
    for k in range(n):
        at = 0.0
        for i, (name, values) in enumerate(layers.items()):
            if values[k] <= 0.0:
                continue
            tip = _tag("title", str(escape(f"{quarters[k]}, {name}: {words(values[k])}")))
            parts.append(
                _tag(
                    "rect", tip, x=X0 + k * wide + 0.6, y=y(at + values[k]), width=max(0.5, wide - 1.2),
                    height=max(0.3, y(at) - y(at + values[k])), style=f"fill:var(--c{i % N_COLOURS})",
                )
            )  # fmt: skip
            at += values[k]
    if line:
        points = [
            point
            for k, value in enumerate(line)
            for point in ((X0 + k * wide, y(value)), (X0 + (k + 1) * wide, y(value)))
        ]
        parts.append(_tag("path", d=_path(points), style="stroke:var(--over)", class_="line"))
    said = "; ".join(f"{name} {words(values[0])} to {words(values[-1])}" for name, values in layers.items())
    return _svg(title, said + (f"; {line_name} {words(line[0])} to {words(line[-1])}" if line else ""), HEIGHT, parts)


def lines(
    title: str, series: Mapping[str, Sequence[float | None]], quarters: Sequence[str], words: Words, caption: str
) -> Markup:
    """Draw series as lines of steps; what is not known is left open."""
    known = [value for values in series.values() for value in values if value is not None]
    top = ticks(max(known, default=0.0))
    parts = _frame(top, 0.0, quarters, words, caption)
    wide = (X1 - X0) / len(quarters)
    for i, values in enumerate(series.values()):
        points: list[tuple[float, float]] = []
        for k, value in enumerate(values):
            if value is not None:
                y = Y1 - (Y1 - Y0) * value / top[-1]
                points += [(X0 + k * wide, y), (X0 + (k + 1) * wide, y)]
        if points:
            parts.append(_tag("path", d=_path(points), style=f"stroke:var(--c{i % N_COLOURS})", class_="line"))
    said = "; ".join(
        f"{name} {words(first)} to {words(last)}"
        for name, values in series.items()
        if (first := next((v for v in values if v is not None), None)) is not None
        and (last := next((v for v in reversed(values) if v is not None), None)) is not None
    )
    return _svg(title, said or "nothing is known", HEIGHT, parts)


def cash(names: Sequence[str], values: Sequence[float], currency: str) -> Markup:
    """Draw cash by year as bars above and below nothing, and its sum so far as a line."""
    so_far, total = [], 0.0
    for value in values:
        total += value
        so_far.append(total)
    high, low = max([0.0, *values, *so_far]), min([0.0, *values, *so_far])
    size = ticks(max(high, -low), 3)[1]
    steps = [size * i for i in range(int(low // size), int(-(-high // size)) + 1)] or [0.0, size]
    if len(steps) < 2:
        steps = [0.0, size]

    def y(value: float) -> float:
        return Y1 - (Y1 - Y0) * (value - steps[0]) / (steps[-1] - steps[0])

    parts = []
    for value in steps:
        parts.append(_tag("line", x1=X0, x2=X1, y1=y(value), y2=y(value), class_="grid"))
        parts.append(_text(X0 - 5.0, y(value) + 4.0, short(value), anchor="end", css="small"))
    wide = (X1 - X0) / max(1, len(names))
    for k, (name, value) in enumerate(zip(names, values, strict=True)):
        tip = _tag("title", str(escape(f"{name}: {money(value, currency)}")))
        css = "left" if value >= 0.0 else "lost"
        parts.append(
            _tag(
                "rect", tip, x=X0 + k * wide + 6.0, y=y(max(0.0, value)), width=wide - 12.0,
                height=max(0.4, abs(y(value) - y(0.0))), class_=css,
            )
        )  # fmt: skip
        parts.append(_text(X0 + (k + 0.5) * wide, Y1 + 15.0, name, anchor="middle", css="small"))
    points = [(X0 + (k + 0.5) * wide, y(value)) for k, value in enumerate(so_far)]
    if len(points) > 1:
        parts.append(_tag("path", d=_path(points), style="stroke:var(--over)", class_="line"))
    parts.append(
        _text((X0 + X1) / 2.0, HEIGHT - 4.0, f"{currency} a year; the line is the sum so far", "small dim", "middle")
    )
    said = "; ".join(f"{name} {money(value, currency)}" for name, value in zip(names, values, strict=True))
    return _svg("Cash flow by year", said, HEIGHT, parts)


def tornado(swings: Sequence[Swing], cost: float, currency: str) -> Markup:
    """Draw what the cost becomes where one assumption is otherwise, the widest first."""
    ordered = sorted(swings, key=lambda one: -abs(one.high - one.low))
    ends = [cost, *(one.low for one in ordered), *(one.high for one in ordered)]
    low, high = min(ends), max(ends)
    span = (high - low) or 1.0
    row, x0, x1 = 40.0, 8.0, WIDTH - 8.0

    def x(value: float) -> float:
        return x0 + (x1 - x0) * (value - low) / span

    parts = [_tag("line", x1=x(cost), x2=x(cost), y1=0.0, y2=row * len(ordered), class_="grid")]
    for i, one in enumerate(ordered):
        y = i * row
        parts.append(_text(x0, y + 13.0, one.what, css="strong"))
        for value, words, css in ((one.low, one.low_words, "left"), (one.high, one.high_words, "lost")):
            tip = _tag("title", str(escape(f"{words}: {money(value, currency)}")))
            a, b = sorted((x(cost), x(value)))
            parts.append(_tag("rect", tip, x=a, y=y + 19.0, width=max(0.8, b - a), height=14.0, class_=css))
    said = "; ".join(f"{one.what}: {money(one.low, currency)} to {money(one.high, currency)}" for one in ordered)
    return _svg("What the cost depends on", said, max(row * len(ordered), 10.0), parts)


def short(value: float) -> str:
    """Return an amount as short as an axis wants it.

    >>> short(1500000.0), short(-20000.0), short(0.0)
    ('1.5 M', '-20 k', '0')
    """
    for size, unit in ((1e9, "bn"), (1e6, "M"), (1e3, "k")):
        if abs(value) >= size:
            return f"{number(value / size)} {unit}"
    return number(float(value))
