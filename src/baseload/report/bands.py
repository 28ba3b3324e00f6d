"""The chart of capacity over the years: usable MW as a band, with the rungs above it as lines."""

from __future__ import annotations

from collections.abc import Sequence

from markupsafe import Markup

from baseload.report.capacity_model import RUNGS, Outlook
from baseload.report.charts import N_COLOURS, WIDTH, _path, _svg, _tag, _text, ticks
from baseload.report.words import megawatts

COLOURS = {rung: f"var(--c{i % N_COLOURS})" for i, rung in enumerate(("usable", *RUNGS[:-1]))}


def band_chart(outlook: Outlook, quarters: Sequence[str]) -> Markup:
    """Draw the P50 of each rung as a line of steps, and P10 to P90 of energised and usable as bands."""
    height, x0, x1, y0, y1 = 240.0, 62.0, WIDTH - 8.0, 12.0, 206.0
    top = ticks(max((max(outlook.rungs[rung].p90_mw) for rung in RUNGS), default=0.0))
    n = len(quarters)

    def x(k: float) -> float:
        return x0 + (x1 - x0) * k / n

    def y(mw: float) -> float:
        return y1 - (y1 - y0) * mw / top[-1]

    parts = []
    for value in top:
        parts.append(_tag("line", x1=x0, x2=x1, y1=y(value), y2=y(value), class_="grid"))
        parts.append(_text(x0 - 5.0, y(value) + 4.0, megawatts(value) if value else "0", anchor="end", css="small"))
    for k, name in enumerate(quarters):
        if name.endswith("Q1"):
            parts.append(_tag("line", x1=x(k), x2=x(k), y1=y0, y2=y1, class_="grid"))
            parts.append(_text(x(k) + 3.0, y1 + 15.0, name[:4], css="small"))
    parts.append(_text((x0 + x1) / 2.0, height - 4.0, "IT power at the end of each quarter", "small dim", "middle"))

    def steps(values: Sequence[float]) -> list[tuple[float, float]]:
        return [point for k, mw in enumerate(values) for point in ((x(k), y(mw)), (x(k + 1), y(mw)))]

    for rung, opacity in (("energised", "0.16"), ("usable", "0.34")):
        band = outlook.rungs[rung]
        outline = steps(band.p90_mw) + steps(band.p10_mw)[::-1]
        parts.append(_tag("path", d=_path(outline) + "Z", style=f"fill:{COLOURS[rung]};opacity:{opacity}"))
    for rung in RUNGS:
        css = "line" if rung in ("energised", "usable", "racked") else "line dashed"
        wide = ";stroke-width:5;opacity:.5" if rung == "racked" else ""  # usable often lies on it
        line = _path(steps(outlook.rungs[rung].p50_mw))
        parts.append(_tag("path", d=line, style=f"stroke:{COLOURS[rung]}{wide}", class_=css))
    words = "; ".join(
        f"{rung} {megawatts(outlook.rungs[rung].p50_mw[0])} to {megawatts(outlook.rungs[rung].p50_mw[-1])}"
        for rung in RUNGS
    )
    return _svg(f"Capacity of {outlook.name} over time", f"P50 by rung: {words}", height, parts)
