"""Charts as inline SVG, drawn here: no library, no network. Colours are CSS variables, so light and dark share a drawing.

Each chart is about 380 units wide, so that it is readable at a phone's width; wide screens set several side by side.
All text from outside is escaped. A chart carries a title and a description for those who do not see it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from math import ceil, floor, log10

from markupsafe import Markup, escape

from baseload.report import rows
from baseload.report.model import Cost, LatencyCurve, SiteSeries, Step
from baseload.report.words import megawatts, money, percent, scaled, seconds

WIDTH = 380.0
N_COLOURS = 8  # --c0 … --c7 in the page's CSS
CURVES_MAX = 6

Scale = Callable[[float], float]
"""From a value to a place on the picture."""


def _tag(name: str, content: str = "", **attributes: object) -> str:
    """Return an SVG element; attribute names have `_` for `-`, values are escaped, content is trusted."""
    text = "".join(
        f' {key.rstrip("_").replace("_", "-")}="{escape(_short(value))}"' for key, value in attributes.items()
    )
    return f"<{name}{text}>{content}</{name}>" if content else f"<{name}{text}/>"


def _short(value: object) -> str:
    return f"{value:.1f}".removesuffix(".0") if isinstance(value, float) else str(value)


def _text(x: float, y: float, words: str, css: str = "", anchor: str = "start", **more: object) -> str:
    return _tag("text", str(escape(words)), x=x, y=y, text_anchor=anchor, class_=f"t {css}".strip(), **more)


def _svg(title: str, description: str, height: float, parts: Iterable[str], width: float = WIDTH) -> Markup:
    words = _tag("title", str(escape(title))) + _tag("desc", str(escape(description)))
    body = words + "".join(parts)
    return Markup(_tag("svg", body, viewBox=f"0 0 {width:g} {height:g}", role="img", class_="chart"))


def _path(points: Sequence[tuple[float, float]]) -> str:
    return "M" + "L".join(f"{x:.1f} {y:.1f}" for x, y in points)


def ticks(highest: float, wanted: int = 4) -> list[float]:
    """Return round values from 0 up to the first at or above `highest`, about `wanted` steps.

    >>> ticks(87.0), ticks(0.0)
    ([0.0, 25.0, 50.0, 75.0, 100.0], [0.0, 1.0])
    """
    if highest <= 0.0:
        return [0.0, 1.0]
    rough = highest / wanted
    size = 10.0 ** floor(log10(rough))
    step = next(size * factor for factor in (1.0, 2.0, 2.5, 5.0, 10.0) if size * factor >= rough * 0.999)
    return [step * i for i in range(ceil(highest / step - 1e-9) + 1)]


# ---- the ladder ------------------------------------------------------------------------------------------


def ladder(steps: Sequence[Step], where: str) -> Markup:
    """Draw a ladder as a waterfall: what is left is solid, what the step lost is pale."""
    label, bar_x, bar_width, row, head = 72.0, 78.0, 172.0, 30.0, 18.0
    top = max((step.mw for step in steps), default=0.0) or 1.0
    parts = [
        _text(WIDTH - 60.0, 11.0, "IT power", anchor="end", css="small dim"),
        _text(WIDTH, 11.0, "tokens/s", anchor="end", css="small dim"),
    ]
    above = top
    for i, step in enumerate(steps):
        y = head + i * row
        left, lost = bar_width * step.mw / top, bar_width * max(0.0, above - step.mw) / top
        parts.append(_text(label, y + 15.0, step.name, anchor="end"))
        parts.append(_tag("rect", x=bar_x, y=y, width=bar_width, height=row - 9.0, class_="track"))
        parts.append(_tag("rect", x=bar_x + left, y=y, width=lost, height=row - 9.0, class_="lost"))
        parts.append(_tag("rect", x=bar_x, y=y, width=max(left, 0.8), height=row - 9.0, class_="left"))
        over = step.excess_mw > 1e-9 or step.excess_tokens_per_s > 1e-6
        if over:
            parts.append(_tag("rect", x=bar_x, y=y, width=max(left, 6.0), height=row - 9.0, class_="over"))
        value = f"{megawatts(step.mw)}"
        rate = f"{'~' if step.modelled else ''}{scaled(step.tokens_per_s, 'tok/s')}"
        parts.append(_text(WIDTH - 60.0, y + 15.0, value, anchor="end", css="strong"))
        parts.append(
            _text(WIDTH, y + 15.0, rate.replace("tok/s", ""), anchor="end", css="dim" if step.modelled else "")
        )
        above = step.mw
    words = "; ".join(f"{step.name} {megawatts(step.mw)}" for step in steps)
    return _svg(f"Capacity ladder of {where}", words, head + len(steps) * row, parts)


# ---- latency ---------------------------------------------------------------------------------------------


def latency(curves: Sequence[LatencyCurve], title: str) -> Markup:
    """Draw the share of requests at or under a latency, on a logarithmic axis, with each tenant's limit."""
    height, x0, x1, y0, y1 = 230.0, 40.0, WIDTH - 10.0, 12.0, 196.0
    curves = curves[:CURVES_MAX]
    shown = [value for curve in curves for value in (_at_share(curve, 0.005), curve.latency_s[-1], curve.limit_s)]
    low, high = (min(shown), max(shown)) if shown else (0.01, 1.0)
    low, high = low * 0.9, max(high * 1.1, low * 2.0)

    def x(value: float) -> float:
        return x0 + (x1 - x0) * (log10(max(value, low)) - log10(low)) / (log10(high) - log10(low))

    def y(share: float) -> float:
        return y1 - (y1 - y0) * share

    parts = []
    for share in (0.0, 0.25, 0.5, 0.75, 1.0):
        parts.append(_tag("line", x1=x0, x2=x1, y1=y(share), y2=y(share), class_="grid"))
        parts.append(_text(x0 - 5.0, y(share) + 4.0, percent(share), anchor="end", css="small"))
    for value in _log_ticks(low, high):
        parts.append(_tag("line", x1=x(value), x2=x(value), y1=y0, y2=y1, class_="grid"))
        parts.append(_text(x(value), y1 + 15.0, seconds(value), anchor="middle", css="small"))
    parts.append(_text((x0 + x1) / 2.0, height - 4.0, f"{title}, logarithmic", anchor="middle", css="small dim"))
    for i, curve in enumerate(curves):
        colour = f"var(--c{i % N_COLOURS})"
        limit = x(curve.limit_s)
        parts.append(_tag("line", x1=limit, x2=limit, y1=y0, y2=y1, style=f"stroke:{colour}", class_="limit"))
        points = [(x(curve.latency_s[0]), y(0.0))]
        points += [(x(value), y(share)) for value, share in zip(curve.latency_s, curve.share)]
        points.append((x1, y(1.0)))
        parts.append(_tag("path", d=_path(_thin(points)), style=f"stroke:{colour}", class_="line"))
    words = "; ".join(
        f"{curve.tenant}: half within {seconds(_at_share(curve, 0.5))}, 99 % within "
        f"{seconds(_at_share(curve, 0.99))}, limit {seconds(curve.limit_s)}"
        for curve in curves
    )
    return _svg(f"{title}: share of requests at or under", words or "no request was served", height, parts)


def _at_share(curve: LatencyCurve, share: float) -> float:
    return next((value for value, s in zip(curve.latency_s, curve.share) if s >= share), curve.latency_s[-1])


def _log_ticks(low: float, high: float) -> list[float]:
    decades = range(floor(log10(low)), ceil(log10(high)) + 1)
    every = [m * 10.0**d for d in decades for m in (1.0, 2.0, 5.0)]
    found = [value for value in every if low <= value <= high]
    for keep in ((1.0, 2.0, 5.0), (1.0, 3.0), (1.0,)):
        found = [m * 10.0**d for d in decades for m in keep if low <= m * 10.0**d <= high]
        if len(found) <= 6:
            return found
    return found[:: ceil(len(found) / 6)]


def _thin(points: list[tuple[float, float]]) -> list[tuple[float, float]]:
    """Leave out points closer than half a unit to the last one kept."""
    kept = points[:1]
    for point in points[1:-1]:
        if abs(point[0] - kept[-1][0]) + abs(point[1] - kept[-1][1]) >= 0.5:
            kept.append(point)
    return [*kept, points[-1]] if len(points) > 1 else kept


# ---- load and power over time ----------------------------------------------------------------------------


def over_time(series: SiteSeries) -> Markup:
    """Draw a site's token rate above its power, on one time axis, with what it may draw."""
    x0, x1 = 48.0, WIDTH - 8.0
    starts = series.start_s
    if not starts:
        return _svg(f"{series.site} over time", "no bins", 40.0, [_text(x0, 24.0, "no bins were recorded", "dim")])
    end = max(series.end_s, starts[-1] + 1e-9)

    def x(at: float) -> float:
        return x0 + (x1 - x0) * (at - starts[0]) / (end - starts[0])

    parts = _panel(24.0, 112.0, x0, x1, series.tokens_per_s, "tokens/s computed", scaled)
    scale = _scale(series.tokens_per_s, 24.0, 112.0)
    points = _steps(starts, end, series.tokens_per_s, x, scale)
    area = [(x0, scale(0.0)), *points, (x1, scale(0.0))]
    parts.append(_tag("path", d=_path(area) + "Z", class_="area"))
    limits = [limit for limit in (*series.limit_kw, series.contract_kw) if limit is not None]
    powers = [*series.site_kw, *series.it_kw, *limits]
    parts += _panel(152.0, 262.0, x0, x1, powers, "kW", lambda value: scaled(value))
    scale = _scale(powers, 152.0, 262.0)
    for values, css in ((series.site_kw, "line meter"), (series.it_kw, "line it")):
        parts.append(_tag("path", d=_path(_thin(_steps(starts, end, values, x, scale))), class_=css))
    if all(limit is not None for limit in series.limit_kw):
        known = [limit for limit in series.limit_kw if limit is not None]
        parts.append(_tag("path", d=_path(_thin(_steps(starts, end, known, x, scale))), class_="line it dashed"))
    if series.contract_kw is not None:
        at = scale(series.contract_kw)
        parts.append(_tag("line", x1=x0, x2=x1, y1=at, y2=at, class_="line meter dashed"))
    unit_s, unit = next(
        ((s, u) for s, u in ((86400.0, "d"), (3600.0, "h"), (60.0, "min")) if end >= 3.0 * s), (1.0, "s")
    )
    for value in ticks((end - starts[0]) / unit_s, 5):
        at = x(starts[0] + value * unit_s)
        if at <= x1 + 0.5:
            anchor = "end" if at > x1 - 12.0 else "middle"
            parts.append(_text(at, 278.0, f"{value:g} {unit}", anchor=anchor, css="small"))
    mean = sum(series.site_kw) / len(series.site_kw)
    words = f"mean {scaled(mean * 1000.0, 'W')} at the meter, highest {scaled(max(series.site_kw) * 1000.0, 'W')}"
    if series.contract_kw is not None:
        words += f", {scaled(series.contract_kw * 1000.0, 'W')} may be drawn"
    return _svg(f"{series.site}: load and power over time", words, 286.0, parts)


def _scale(values: Sequence[float], y0: float, y1: float) -> Scale:
    top = ticks(max(values, default=0.0), 3)[-1]
    return lambda value: y1 - (y1 - y0) * value / top


def _panel(
    y0: float, y1: float, x0: float, x1: float, values: Sequence[float], title: str, words: Callable[[float], str]
) -> list[str]:
    marks = ticks(max(values, default=0.0), 3)
    parts = [_text(x0, y0 - 10.0, title, css="small dim")]
    for value in marks:
        y = y1 - (y1 - y0) * value / marks[-1]
        parts.append(_tag("line", x1=x0, x2=x1, y1=y, y2=y, class_="grid"))
        parts.append(_text(x0 - 5.0, y + 4.0, words(value), anchor="end", css="small"))
    return parts


def _steps(
    starts: Sequence[float], end: float, values: Sequence[float], x: Scale, y: Scale
) -> list[tuple[float, float]]:
    """Return a staircase: a bin's value holds for its whole length."""
    untils = [*starts[1:], end]
    return [
        point
        for start, until, value in zip(starts, untils, values)
        for point in ((x(start), y(value)), (x(until), y(value)))
    ]


# ---- money -----------------------------------------------------------------------------------------------


def cost_colours(costs: Sequence[Cost]) -> list[str]:
    """Return the names of parts of cost that get a colour of their own, largest first; the rest are together."""
    total: dict[str, float] = {}
    for cost in costs:
        for name, amount in rows.cost_parts(cost):
            total[name] = total.get(name, 0.0) + amount
    return sorted(total, key=lambda name: -total[name])[: N_COLOURS - 1]


def cost_bars(named: Sequence[tuple[str, Cost]], colours: Sequence[str], currency: str) -> Markup:
    """Draw each cost as one stacked bar of its parts, all on one scale."""
    row, x0, x1 = 46.0, 0.0, WIDTH
    top = max((float(cost.cost_total or 0.0) for _, cost in named), default=0.0) or 1.0
    parts: list[str] = []
    for i, (name, cost) in enumerate(named):
        y = i * row
        parts.append(_text(x0, y + 13.0, name, css="strong"))
        parts.append(_text(x1, y + 13.0, money(cost.cost_total, currency), anchor="end"))
        at = x0
        amounts = dict(rows.cost_parts(cost))
        ordered = [(one, amounts.pop(one, 0.0)) for one in colours]
        for k, (part, amount) in enumerate([*ordered, ("rest", sum(amounts.values()))]):
            width = (x1 - x0) * amount / top
            if width <= 0.0:
                continue
            tip = _tag("title", str(escape(f"{part}: {money(amount, currency)}")))
            colour = f"fill:var(--c{k})" if k < len(colours) else "fill:var(--rest)"
            parts.append(_tag("rect", tip, x=at, y=y + 19.0, width=width, height=17.0, style=colour))
            at += width
    words = "; ".join(f"{name} {money(cost.cost_total, currency)}" for name, cost in named)
    return _svg("Cost by part", words, len(named) * row, parts)


def share_bar(cost: Cost, currency: str) -> Markup:
    """Draw who bears the cost: serving, idleness, training."""
    shares = [
        ("serving", cost.cost_serving, "left"),
        ("idle", cost.cost_idle, "lost"),
        ("training", cost.cost_training, "area2"),
    ]
    total = float(cost.cost_total or 0.0) or 1.0
    at, parts = 0.0, []
    for name, amount, css in shares:
        width = WIDTH * float(amount or 0.0) / total
        if width <= 0.0:
            continue
        parts.append(_tag("rect", x=at, y=0.0, width=width, height=22.0, class_=css))
        label = f"{name} {percent(float(amount or 0.0) / total, 0)}"
        if width > 6.8 * len(label):
            parts.append(_text(at + 6.0, 15.5, label, css="on" if css == "left" else "strong"))
        at += width
    words = ", ".join(f"{name} {money(amount, currency)}" for name, amount, _ in shares)
    return _svg("Who bears the cost", words, 22.0, parts)
